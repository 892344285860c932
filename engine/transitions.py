"""A code's life: what may happen to it in each state, what it becomes, and the event that says so. Plain data, and closed.

TABLE lists every change there is; what it doesn't list can't happen. ANSWERS lists what each verb says to a code in a state
that doesn't allow it. docs/rules.md prints both, the scripts are checked against both, and so is the model of the tests.

A code's time is over from its expiry on: its answers are those of an expired one, whether or not the sweep has come by and
written the event. So no answer depends on when the sweep comes; only the stock comes back by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from engine.claims import State
from engine.state.events import EventType
from engine.verdict import (
    ConfirmVerdict,
    ExtendVerdict,
    InspectVerdict,
    RedeemVerdict,
    RenderVerdict,
    ReverseVerdict,
    ReviewVerdict,
    Verdict,
    VoidVerdict,
)


class Happening(Enum):
    """What can happen to a code. Where the outcome depends on how much is out or left, each case has a name of its own."""

    HOLD = "stock is held for an order that is not paid yet"
    ISSUE = "a code is issued for a paid order"
    CONFIRM = "the order is paid"
    EXTEND = "the mall moves the expiry to a later time"
    REDEEM_SOME = "a part is handed out"
    REDEEM_REST = "all that is left is handed out"
    FAIL = "a try that counts fails: wrong PIN, rejected proof, the customer is somewhere else"
    FAIL_THIRD = "the third such try fails"
    APPROVE_WHOLE = "a reviewer sets the code free; nothing of it is handed out"
    APPROVE_PART = "a reviewer sets the code free; a part of it is handed out"
    REDEEM_BY_HAND = "a reviewer hands out what is left"
    REJECT = "a reviewer ends the code"
    TAKE_BACK_SOME = "units come back and stay reserved for the code; others remain with the customer"
    TAKE_BACK_ALL = "all units come back and stay reserved for the code"
    REFUND_SOME = (
        "units come back and leave the code, as the customer was refunded; others remain with the customer"
    )
    REFUND_ALL = "all units that were handed out come back and leave the code, as the customer was refunded"
    VOID = "the mall ends the code"
    EXPIRE = "its time is over"
    FORGET = "72 hours have passed since it ended"


@dataclass(frozen=True, slots=True)
class Transition:
    """One change: in `state` (None: there is no code), `happening` leads to `after` and writes `event` (None: none)."""

    state: State | None
    happening: Happening
    after: State | None
    event: EventType | None


def _rows(happening: Happening, event: EventType | None, **after: State | None) -> tuple[Transition, ...]:
    return tuple(Transition(State[state], happening, end, event) for state, end in after.items())


_H: Final = Happening
_HELD, _LIVE, _PARTLY, _LOCKED = State.HELD, State.LIVE, State.PARTLY, State.LOCKED
_REDEEMED, _VOIDED, _EXPIRED = State.REDEEMED, State.VOIDED, State.EXPIRED

TABLE: Final[tuple[Transition, ...]] = (
    Transition(None, _H.HOLD, _HELD, EventType.HELD),
    Transition(None, _H.ISSUE, _LIVE, EventType.ISSUED),
    *_rows(_H.CONFIRM, EventType.CONFIRMED, HELD=_LIVE),
    *_rows(_H.EXTEND, EventType.EXTENDED, LIVE=_LIVE, PARTLY=_PARTLY, LOCKED=_LOCKED),
    *_rows(_H.REDEEM_SOME, EventType.REDEEMED, LIVE=_PARTLY, PARTLY=_PARTLY),
    *_rows(_H.REDEEM_REST, EventType.REDEEMED, LIVE=_REDEEMED, PARTLY=_REDEEMED),
    *_rows(_H.FAIL, EventType.TRIED, LIVE=_LIVE, PARTLY=_PARTLY),
    *_rows(_H.FAIL_THIRD, EventType.LOCKED, LIVE=_LOCKED, PARTLY=_LOCKED),
    *_rows(_H.APPROVE_WHOLE, EventType.REVIEWED, LOCKED=_LIVE),
    *_rows(_H.APPROVE_PART, EventType.REVIEWED, LOCKED=_PARTLY),
    *_rows(_H.REDEEM_BY_HAND, EventType.REVIEWED, LOCKED=_REDEEMED),
    *_rows(_H.REJECT, EventType.REVIEWED, LOCKED=_VOIDED),
    *_rows(_H.TAKE_BACK_SOME, EventType.REVERSED, PARTLY=_PARTLY, LOCKED=_LOCKED, REDEEMED=_PARTLY),
    *_rows(_H.TAKE_BACK_ALL, EventType.REVERSED, PARTLY=_LIVE, LOCKED=_LOCKED, REDEEMED=_LIVE),
    *_rows(_H.REFUND_SOME, EventType.REVERSED, PARTLY=_PARTLY, LOCKED=_LOCKED, REDEEMED=_REDEEMED),
    *_rows(_H.REFUND_ALL, EventType.REVERSED, PARTLY=_LIVE, LOCKED=_LOCKED, REDEEMED=_VOIDED),
    *_rows(_H.VOID, EventType.VOIDED, HELD=_VOIDED, LIVE=_VOIDED, PARTLY=_VOIDED, LOCKED=_VOIDED),
    *_rows(_H.EXPIRE, EventType.EXPIRED, HELD=_EXPIRED, LIVE=_EXPIRED, PARTLY=_EXPIRED, LOCKED=_EXPIRED),
    *_rows(_H.FORGET, None, REDEEMED=None, VOIDED=None, EXPIRED=None),
)
"""Every change of a code's life."""

STEPS: Final[Mapping[tuple[State | None, Happening], Transition]] = {
    (step.state, step.happening): step for step in TABLE
}
"""TABLE by state and happening: at most one outcome for each."""


class Verb(Enum):
    """The verbs that meet a code which is there, or not."""

    CONFIRM = "confirm"
    EXTEND = "extend"
    RENDER = "render"
    INSPECT = "inspect"
    REDEEM = "redeem"
    REVERSE = "reverse"
    REVIEW = "review"
    VOID = "void"


ANSWERS: Final[Mapping[Verb, Mapping[State | None, Verdict]]] = {
    Verb.CONFIRM: {
        None: ConfirmVerdict.UNKNOWN_CODE,
        _LIVE: ConfirmVerdict.ALREADY_CONFIRMED,
        _PARTLY: ConfirmVerdict.ALREADY_CONFIRMED,
        _LOCKED: ConfirmVerdict.ALREADY_CONFIRMED,
        _REDEEMED: ConfirmVerdict.ALREADY_CONFIRMED,
        _VOIDED: ConfirmVerdict.VOIDED,
        _EXPIRED: ConfirmVerdict.EXPIRED,
    },
    Verb.EXTEND: {
        None: ExtendVerdict.UNKNOWN_CODE,
        _HELD: ExtendVerdict.NOT_CONFIRMED,
        _REDEEMED: ExtendVerdict.ALREADY_REDEEMED,
        _VOIDED: ExtendVerdict.VOIDED,
        _EXPIRED: ExtendVerdict.EXPIRED,
    },
    Verb.RENDER: {
        None: RenderVerdict.UNKNOWN_CODE,
        _HELD: RenderVerdict.NOT_CONFIRMED,
        _LOCKED: RenderVerdict.LOCKED,
        _REDEEMED: RenderVerdict.ALREADY_REDEEMED,
        _VOIDED: RenderVerdict.VOIDED,
        _EXPIRED: RenderVerdict.EXPIRED,
    },
    Verb.INSPECT: {
        None: InspectVerdict.UNKNOWN_CODE,
        _HELD: InspectVerdict.NOT_CONFIRMED,
        _LOCKED: InspectVerdict.LOCKED,
        _REDEEMED: InspectVerdict.ALREADY_REDEEMED,
        _VOIDED: InspectVerdict.VOIDED,
        _EXPIRED: InspectVerdict.EXPIRED,
    },
    Verb.REDEEM: {
        None: RedeemVerdict.UNKNOWN_CODE,
        _HELD: RedeemVerdict.NOT_CONFIRMED,
        _LOCKED: RedeemVerdict.LOCKED,
        _REDEEMED: RedeemVerdict.ALREADY_REDEEMED,
        _VOIDED: RedeemVerdict.VOIDED,
        _EXPIRED: RedeemVerdict.EXPIRED,
    },
    # A code of which nothing is out is NOT_REDEEMED in any state; these are answers for one of which something is.
    Verb.REVERSE: {
        None: ReverseVerdict.UNKNOWN_CODE,
        _HELD: ReverseVerdict.NOT_REDEEMED,
        _LIVE: ReverseVerdict.NOT_REDEEMED,
        _VOIDED: ReverseVerdict.REVERSAL_CLOSED,
        _EXPIRED: ReverseVerdict.REVERSAL_CLOSED,
    },
    Verb.REVIEW: {
        None: ReviewVerdict.UNKNOWN_CODE,
        _HELD: ReviewVerdict.NOT_LOCKED,
        _LIVE: ReviewVerdict.NOT_LOCKED,
        _PARTLY: ReviewVerdict.NOT_LOCKED,
        _REDEEMED: ReviewVerdict.NOT_LOCKED,
        _VOIDED: ReviewVerdict.NOT_LOCKED,
        _EXPIRED: ReviewVerdict.EXPIRED,
    },
    Verb.VOID: {
        None: VoidVerdict.UNKNOWN_CODE,
        _REDEEMED: VoidVerdict.ALREADY_REDEEMED,
        _VOIDED: VoidVerdict.ALREADY_VOIDED,
        _EXPIRED: VoidVerdict.EXPIRED,
    },
}
"""What each verb says to a code in a state that doesn't allow it. A state that is missing allows the verb."""
