"""The tables of docs/rules.md, made from the code: `python -m tests.engine.rule_tables docs/rules.md` writes them anew."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from engine.claims import State
from engine.verdict import (
    InspectVerdict,
    IssueVerdict,
    Next,
    RedeemVerdict,
    RenderVerdict,
    StockVerdict,
    Verdict,
    VoidVerdict,
)
from tests.engine.test_order import RULES

VERBS: Final[dict[str, type[Verdict]]] = {
    "issue": IssueVerdict,
    "render": RenderVerdict,
    "redeem": RedeemVerdict,
    "inspect": InspectVerdict,
    "void": VoidVerdict,
    "stock": StockVerdict,
}
NEXT: Final = {
    Next.FINAL: "final",
    Next.REFRESH: "refresh the code, scan again",
    Next.RETRY: "try again",
    Next.ASK_CUSTOMER: "ask the customer",
    Next.MANUAL_REVIEW: "manual review",
}
TRANSITIONS: Final[dict[tuple[State, str], State]] = {
    (State.LIVE, "part"): State.PARTLY,
    (State.LIVE, "all"): State.REDEEMED,
    (State.LIVE, "third wrong PIN"): State.LOCKED,
    (State.LIVE, "void"): State.VOIDED,
    (State.LIVE, "time"): State.EXPIRED,
    (State.PARTLY, "part"): State.PARTLY,
    (State.PARTLY, "all"): State.REDEEMED,
    (State.PARTLY, "third wrong PIN"): State.LOCKED,
    (State.PARTLY, "void"): State.VOIDED,
    (State.PARTLY, "time"): State.EXPIRED,
    (State.LOCKED, "void"): State.VOIDED,
    (State.LOCKED, "time"): State.EXPIRED,
}
"""Every change of state there is; any other combination changes nothing."""
ACTS: Final = {
    "part": "a part is redeemed",
    "all": "all that is left is redeemed",
    "third wrong PIN": "third wrong PIN",
    "void": "void",
    "time": "its time has come",
}
STATES: Final = {
    State.LIVE: "live",
    State.PARTLY: "partly redeemed",
    State.LOCKED: "locked",
    State.REDEEMED: "redeemed",
    State.VOIDED: "voided",
    State.EXPIRED: "expired",
}
"""States that a code can be in today."""


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def tables() -> dict[str, str]:
    """Every generated table by its name in the document."""
    found = {
        verb: table(
            ("number", "verdict", "for the clerk (zh-CN)", "for the clerk (English)", "next"),
            ((one.number, one.slug, one.answer.zh, one.answer.en, NEXT[one.next]) for one in enum),
        )
        for verb, enum in VERBS.items()
    }
    places: dict[int, list[str]] = {}
    for rule in RULES:
        places.setdefault(rule.place, []).append(rule.verdict.slug)
    places[8].append(RedeemVerdict.LOCATION_REQUIRED.slug)
    found["order"] = table(
        ("place", "question", "answers"),
        ((place, _QUESTIONS[place], ", ".join(slugs)) for place, slugs in sorted(places.items())),
    )
    found["states"] = table(
        ("state", *ACTS.values()),
        (
            (f"**{text}**", *(STATES.get(TRANSITIONS.get((state, act), State.HELD), "—") for act in ACTS))
            for state, text in STATES.items()
        ),
    )
    return found


_QUESTIONS: Final = {
    1: "Is it a genuine code of this deployment?",
    2: "Does this mall have such a code?",
    3: "Has it ended, or is it locked?",
    4: "Has its time come?",
    5: "Is what was scanned fresh?",
    6: "Is it for this store?",
    7: "Is the PIN there and right? (static codes)",
    8: "Is the terminal where the store is?",
    9: "Does the store hand out?",
    10: "Is that much left of the code?",
    11: "Is it on the shelf, by the books?",
}


def written(text: str) -> str:
    """The document with every table replaced by the code's."""
    for name, content in tables().items():
        begin, end = f"<!-- table: {name} -->\n", "<!-- end -->"
        head, found, rest = text.partition(begin)
        _, closed, tail = rest.partition(end)
        if not found or not closed:
            raise SystemExit(f"the document has no table named {name}")
        text = head + begin + content + "\n" + end + tail
    return text


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
