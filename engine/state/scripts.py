"""Loads the Lua scripts: constants from Python, then base.lua, then the verb.

Numbers that both sides use (states, verdicts, limits, layouts) are written once, in Python; the loader puts them in front of
each script as Lua tables, so the two can't drift apart. The header of each script is its contract; tests compare it with the
layouts.
"""

from __future__ import annotations

from collections.abc import Iterable
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


def _table(name: str, pairs: Iterable[tuple[str, object]]) -> str:
    return f"local {name} = {{ " + ", ".join(f"{key} = {value}" for key, value in pairs) + " }"


def _members(enum: type[Enum]) -> Iterable[tuple[str, object]]:
    return ((member.name, int(member.value)) for member in enum)


def constants() -> str:
    """Lua source of every constant that scripts share with Python."""
    return "\n".join(
        [
            _table("LIMIT", ((name, getattr(limits, name)) for name in _LIMITS)),
            _table("STATE", _members(State)),
            _table("EVENT_TYPE", _members(EventType)),
            _table("CHANNEL", _members(Channel)),
            _table("TIER", _members(Tier)),
            _table("CHANGE", _members(StockChange)),
            _table("TRANSFER_STEP", _members(TransferStep)),
            _table("DECISION", _members(Decision)),
            _table("ISSUE", _members(verdict.IssueVerdict)),
            _table("REDEEM", _members(verdict.RedeemVerdict)),
            _table("RENDER", _members(verdict.RenderVerdict)),
            _table("CONFIRM", _members(verdict.ConfirmVerdict)),
            _table("EXTEND", _members(verdict.ExtendVerdict)),
            _table("REVERSE", _members(verdict.ReverseVerdict)),
            _table("REVIEW", _members(verdict.ReviewVerdict)),
            _table("TRANSFER", _members(verdict.TransferVerdict)),
            _table("VOID", _members(verdict.VoidVerdict)),
            _table("STOCK_VERDICT", _members(verdict.StockVerdict)),
            f"local FLAG_WINDOWS_BIND, FLAG_PROOF_NEEDED = {layouts.FLAG_WINDOWS_BIND}, {layouts.FLAG_PROOF_NEEDED}",
            *(f"local {name} = '{layout.lua}'" for name, layout in layouts.LAYOUTS.items()),
        ]
    )


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
    parts = [constants(), verb_source("base") if base else "", verb_source(name)]
    source = "\n".join(parts).encode()
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
)
