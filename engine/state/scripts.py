"""Loads the Lua scripts: layouts from Python, then base.lua, then the verb.

Numbers that both sides use (states, verdicts, limits, layouts) are written once, in Python, so the two can't drift apart. Scripts
name them as members of tables (`STATE.LIVE`), and the loader puts the numbers in their place: a script runs from its first line
at each call, and would build all the tables each time. The header of each script is its contract; tests compare it with the
layouts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from hashlib import sha1
from importlib import resources
from typing import Final

from engine import limits, verdict
from engine.calls import StockChange
from engine.claims import Channel, Decision, State, Tier, TransferStep
from engine.state import layouts
from engine.state.events import EventType

_LIMITS: Final = (
    "AFTERLIFE_S",
    "ARRIVAL_TTL_S",
    "ATTEMPTS_KEPT",
    "CLOCK_SKEW_MS_MAX",
    "REMEMBERED_REQUESTS_MAX",
    "STOCK_ANSWER_TTL_S",
    "STOCK_MAX",
    "TIER_CLOSED_PERCENT",
    "TIER_EMERGENCY_PERCENT",
    "TIER_HYSTERESIS_PERCENT",
    "TIER_RED_PERCENT",
    "TIER_TIGHT_PERCENT",
    "TRIES_MAX",
    "TTL_S_MAX",
)


def _members(enum: type[Enum]) -> dict[str, int]:
    return {member.name: int(member.value) for member in enum}


_TABLES: Final[Mapping[str, Mapping[str, int]]] = {
    # Places of a record's fields in the array that a script reads them into, counted from 1 as Lua does.
    "R": {name: n for n, name in enumerate((*layouts.RECORD.names, "behind"), 1)},
    "LIMIT": {name: getattr(limits, name) for name in _LIMITS},
    "STATE": _members(State),
    "EVENT_TYPE": _members(EventType),
    "CHANNEL": _members(Channel),
    "TIER": _members(Tier),
    "CHANGE": _members(StockChange),
    "TRANSFER_STEP": _members(TransferStep),
    "DECISION": _members(Decision),
    "ISSUE": _members(verdict.IssueVerdict),
    "REDEEM": _members(verdict.RedeemVerdict),
    "RENDER": _members(verdict.RenderVerdict),
    "CONFIRM": _members(verdict.ConfirmVerdict),
    "EXTEND": _members(verdict.ExtendVerdict),
    "REVERSE": _members(verdict.ReverseVerdict),
    "REVIEW": _members(verdict.ReviewVerdict),
    "TRANSFER": _members(verdict.TransferVerdict),
    "VOID": _members(verdict.VoidVerdict),
    "STOCK_VERDICT": _members(verdict.StockVerdict),
}
_MEMBER: Final = re.compile(rf"\b({'|'.join(_TABLES)})\.(\w+)")


def constants() -> str:
    """Lua source of every constant that scripts share with Python, tables included."""
    tables = (
        f"local {name} = {{ {', '.join(f'{key} = {value}' for key, value in members.items())} }}"
        for name, members in _TABLES.items()
    )
    return "\n".join([*tables, _layouts()])


def _layouts() -> str:
    return "\n".join(
        [
            f"local FLAG_WINDOWS_BIND, FLAG_PROOF_NEEDED = {layouts.FLAG_WINDOWS_BIND}, {layouts.FLAG_PROOF_NEEDED}",
            *(f"local {name} = '{layout.lua}'" for name, layout in layouts.LAYOUTS.items()),
        ]
    )


def _with_numbers(source: str) -> str:
    """The source with each member of a table replaced by its number. Raises KeyError for one that doesn't exist."""
    return _MEMBER.sub(lambda found: str(_TABLES[found[1]][found[2]]), source)


@dataclass(frozen=True, slots=True)
class Script:
    """One verb's script: its source as sent to the store, and the SHA-1 (hex) that EVALSHA names it by."""

    name: str
    source: bytes
    sha: str


def verb_source(name: str) -> str:
    """Text of lua/<name>.lua alone, header included."""
    return resources.files("engine.state").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")


def load(name: str, *, base: bool = True) -> Script:
    """Assemble one script."""
    parts = [_layouts(), verb_source("base") if base else "", verb_source(name)]
    source = _with_numbers("\n".join(parts)).encode()
    return Script(name, source, sha1(source, usedforsecurity=False).hexdigest())


OPEN: Final = load("open")
ISSUE: Final = load("issue")
REDEEM: Final = load("redeem")
VOID: Final = load("void")
STOCK: Final = load("stock")
CONFIRM: Final = load("confirm")
EXTEND: Final = load("extend")
REVERSE: Final = load("reverse")
TRY: Final = load("try")
REVIEW: Final = load("review")
TRANSFER: Final = load("transfer")
BOUNDS: Final = load("bounds")
SWEPT: Final = load("swept")
EXPIRE: Final = load("expire")
REGISTER: Final = load("register")
CREATE: Final = load("create", base=False)
CONTROL: Final = load("control", base=False)
MARK: Final = load("mark", base=False)
SNAPSHOT: Final = load("snapshot", base=False)
SEEN: Final = load("seen", base=False)
BARRIER: Final = load("barrier", base=False)
ALL: Final = (
    OPEN,
    ISSUE,
    REDEEM,
    VOID,
    STOCK,
    CONFIRM,
    EXTEND,
    REVERSE,
    TRY,
    REVIEW,
    TRANSFER,
    BOUNDS,
    SWEPT,
    EXPIRE,
    REGISTER,
    CREATE,
    CONTROL,
    MARK,
    SNAPSHOT,
    SEEN,
    BARRIER,
)
