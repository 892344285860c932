"""The tables of docs/rules.md, made from the code: `python -m tests.engine.rule_tables docs/rules.md` writes them anew."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, get_args

from engine.claims import State, Tier
from engine.policies import BUILT_IN, LEVELS_OF_FIELD, Level, Tiers
from engine.transitions import ANSWERS, STEPS, Happening
from engine.verdict import (
    ConfirmVerdict,
    ExtendVerdict,
    HoldVerdict,
    InspectVerdict,
    IssueVerdict,
    Next,
    RedeemVerdict,
    RenderVerdict,
    ReverseVerdict,
    ReviewVerdict,
    StockVerdict,
    TransferVerdict,
    Verdict,
    VoidVerdict,
)
from tests.engine.test_order import RULES
from tests.engine.test_verdicts import CASES

VERBS: Final[dict[str, type[Verdict]]] = {
    "hold": HoldVerdict,
    "issue": IssueVerdict,
    "confirm": ConfirmVerdict,
    "extend": ExtendVerdict,
    "render": RenderVerdict,
    "redeem": RedeemVerdict,
    "inspect": InspectVerdict,
    "reverse": ReverseVerdict,
    "review": ReviewVerdict,
    "void": VoidVerdict,
    "stock": StockVerdict,
    "transfer": TransferVerdict,
}
NEXT: Final = {
    Next.FINAL: "final",
    Next.REFRESH: "refresh the code, scan again",
    Next.RETRY: "try again",
    Next.ASK_CUSTOMER: "ask the customer",
    Next.MANUAL_REVIEW: "manual review",
}
STATES: Final = {
    State.HELD: "held",
    State.LIVE: "live",
    State.PARTLY: "partly redeemed",
    State.LOCKED: "locked",
    State.REDEEMED: "redeemed",
    State.VOIDED: "voided",
    State.EXPIRED: "expired",
}
QUESTIONS: Final = {
    1: "Is it a genuine code of this deployment?",
    2: "Does this mall have such a code?",
    3: "Has it ended, or is its time over?",
    4: "Is it locked, or not paid yet?",
    5: "Is what was scanned fresh?",
    6: "Is it for this store?",
    7: "Is the second factor there and right: the PIN of a static code, the proof of a valuable one?",
    8: "Is the terminal where the store is?",
    9: "Does the store hand out, now?",
    10: "If windows bind the code: is it in one?",
    11: "Is that much left of the code?",
    12: "Is it on the shelf, by the books?",
}
ONLY_SOME: Final = {
    4: (RedeemVerdict.NOT_CONFIRMED,),
    7: (RedeemVerdict.PROOF_REQUIRED, RedeemVerdict.PROOF_REJECTED),
    8: (RedeemVerdict.LOCATION_REQUIRED,),
}
"""Answers that share a place with a rule of test_order but need another kind of code, or another set-up."""

EFFECTS: Final = {
    Tier.NORMAL: "none",
    Tier.TIGHT: "codes issued from now on are handed out in the store's pickup windows only",
    Tier.RED: "also: an alert; promotional issue and hold stop (PROMOTION_STOPPED)",
    Tier.CLOSED: "also: online issue and hold stop (CHANNEL_CLOSED); staff may still issue",
    Tier.EMERGENCY: "also: a transfer is asked of the region's factory store",
}
LEVELS: Final = {"deployment": "deployment", "store": "store", "sku": "SKU"}


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def tables() -> dict[str, str]:
    """Every generated table by its name in the document."""
    return {
        **{verb: _verdicts(enum) for verb, enum in VERBS.items()},
        "order": _order(),
        "life": _life(),
        "answers": _answers(),
        "tiers": _tiers(),
        "policies": _policies(),
    }


def _verdicts(enum: type[Verdict]) -> str:
    return table(
        ("number", "verdict", "for the clerk (zh-CN)", "for the clerk (English)", "next", "shown by"),
        (
            (one.number, one.slug, one.answer.zh, one.answer.en, NEXT[one.next], _shown_by(one))
            for one in enum
        ),
    )


def _shown_by(one: Verdict) -> str:
    """Links to the preparations of its cases in test_verdicts."""
    names = dict.fromkeys(_prepared_by(prepare) for wanted, prepare in CASES if wanted is one)
    return " ".join(
        f"[{name.strip('_').replace('_', ' ')}](../tests/engine/test_verdicts.py#{name})" for name in names
    )


def _prepared_by(prepare: Callable[..., Any]) -> str:
    told = prepare.args[0] if isinstance(prepare, partial) else prepare
    return str(told.__name__)


def _order() -> str:
    places: dict[int, list[str]] = {}
    for rule in RULES:
        places.setdefault(rule.place, []).append(rule.verdict.slug)
    for place, verdicts in ONLY_SOME.items():
        places[place] += [verdict.slug for verdict in verdicts]
    assert places.keys() == QUESTIONS.keys()
    return table(
        ("place", "question", "answers"),
        ((place, QUESTIONS[place], ", ".join(slugs)) for place, slugs in sorted(places.items())),
    )


def _life() -> str:
    def after(state: State | None, happening: Happening) -> str:
        step = STEPS.get((state, happening))
        if step is None:
            return "—"
        return STATES[step.after] if step.after is not None else "forgotten"

    def event(happening: Happening) -> str:
        found = {step.event for step in STEPS.values() if step.happening is happening}
        return ", ".join(one.name if one else "none" for one in found)

    return table(
        ("what happens", "no code yet", *STATES.values(), "event"),
        (
            (happening.value, *(after(state, happening) for state in (None, *STATES)), event(happening))
            for happening in Happening
        ),
    )


def _answers() -> str:
    return table(
        ("verb", "no such code", *STATES.values()),
        (
            (
                verb.value,
                *(answers[state].slug if state in answers else "allowed" for state in (None, *STATES)),
            )
            for verb, answers in ANSWERS.items()
        ),
    )


def _tiers() -> str:
    bounds = Tiers()
    reached = {
        Tier.NORMAL: f"{bounds.tight_percent} % or more",
        Tier.TIGHT: f"less than {bounds.tight_percent} %",
        Tier.RED: f"{bounds.red_percent} % or less",
        Tier.CLOSED: f"{bounds.closed_percent} % or less",
        Tier.EMERGENCY: f"{bounds.emergency_percent} % or less",
    }
    left = {
        Tier.TIGHT: f"{bounds.tight_percent + bounds.hysteresis_percent} % or more",
        Tier.RED: f"more than {bounds.red_percent + bounds.hysteresis_percent} %",
        Tier.CLOSED: f"more than {bounds.closed_percent + bounds.hysteresis_percent} %",
        Tier.EMERGENCY: f"more than {bounds.emergency_percent + bounds.hysteresis_percent} %",
    }
    return table(
        ("tier", "available ÷ baseline", "left upwards at", "effect"),
        ((tier.name.lower(), reached[tier], left.get(tier, "—"), EFFECTS[tier]) for tier in Tier),
    )


def _policies() -> str:
    levels = get_args(Level)

    def value(name: str) -> str:
        built_in = getattr(BUILT_IN, name)
        if isinstance(built_in, Tiers):
            return "see the tiers"
        return ", ".join(built_in) if isinstance(built_in, tuple) else str(built_in)

    return table(
        ("field", "built in", *(LEVELS[level] for level in levels)),
        (
            (name, value(name), *("yes" if level in stated_by else "—" for level in levels))
            for name, stated_by in LEVELS_OF_FIELD.items()
        ),
    )


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
