"""The history checker itself: a good history passes, and each kind of broken promise is noticed, by its number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from engine.claims import EventId
from engine.state.events import Event, EventType
from tests.fault.history import Answer, Call, violations

UID, OTHER = b"uid-0001", b"uid-0002"
WON = Answer("REDEEMED", True, 1_010, 7, "0-1-5", False)
TOLD = Answer("ALREADY_REDEEMED", False, 1_010, 7, "", False)
EVENT = Event(
    EventId(0, 1, 5), EventType.REDEEMED, 1_010, 1, 2, UID, 7, b"winner".ljust(12), b"body".ljust(8), "", {}
)

WINNER = Call("redeem", EVENT.request, 7, UID, 1_000, 1_020, WON)
LOST_REPLY = Call("redeem", EVENT.request, 7, UID, 1_005, 1_008, None)
RETRY = Call("redeem", EVENT.request, 7, UID, 1_030, 1_040, replace(WON, replayed=True))
RIVAL = Call("redeem", b"rival".ljust(12), 8, UID, 1_000, 1_021, TOLD)
VOID = Call("void", b"void".ljust(12), 0, UID, 1_000, 1_021, TOLD)
GOOD = [WINNER, LOST_REPLY, RETRY, RIVAL, VOID]

History = tuple[list[Call], list[Event]]


def test_a_good_history_has_no_violations() -> None:
    assert violations(GOOD, [EVENT]) == []
    assert violations([], []) == []
    # Nothing was ever answered, and yet it happened: that is allowed, and the retry would say so.
    assert violations([LOST_REPLY], [EVENT]) == []
    # Nor need it have happened.
    assert violations([LOST_REPLY], []) == []


BROKEN: dict[str, tuple[str, Callable[[], History]]] = {
    "a retry is told another time": (
        "P1",
        lambda: ([WINNER, replace(RETRY, answer=replace(WON, at_ms=1_011, replayed=True))], [EVENT]),
    ),
    "a retry is refused": ("P1", lambda: ([WINNER, replace(RETRY, answer=TOLD)], [EVENT])),
    "a retry is done again": ("P1", lambda: ([WINNER, replace(RETRY, answer=WON)], [EVENT])),
    "two requests succeed": (
        "P2",
        lambda: ([WINNER, replace(RIVAL, answer=replace(WON, terminal_id=8))], [EVENT]),
    ),
    "redeemed and voided": (
        "P2",
        lambda: ([WINNER, replace(VOID, answer=replace(WON, verdict="VOIDED", terminal_id=0))], [EVENT]),
    ),
    "an acknowledged redemption is lost": ("P3", lambda: ([WINNER], [])),
    "the event has another time": ("P3", lambda: ([WINNER], [replace(EVENT, at_ms=1_011)])),
    "the event has another terminal": ("P3", lambda: ([WINNER], [replace(EVENT, terminal_id=9)])),
    "the answer was meant for somebody else": (
        "P3",
        lambda: ([WINNER, replace(WINNER, request=b"else".ljust(12), uid=OTHER)], [EVENT]),
    ),
    "nobody asked": ("P4", lambda: ([], [EVENT])),
    "asked for another code": ("P4", lambda: ([replace(LOST_REPLY, uid=OTHER)], [EVENT])),
    "done before it was asked": ("P4", lambda: ([replace(LOST_REPLY, sent_at_ms=1_011)], [EVENT])),
    "a good code is said to be unknown": (
        "P5",
        lambda: ([replace(RIVAL, answer=replace(TOLD, verdict="UNKNOWN_CODE"))], []),
    ),
    "refused for its own redemption, of which it had not heard": (
        "P5",
        lambda: ([LOST_REPLY, replace(RETRY, answer=TOLD)], [EVENT]),
    ),
    "refused for what never happened": ("P5", lambda: ([RIVAL], [])),
    "refused for another ending": (
        "P5",
        lambda: ([WINNER, replace(RIVAL, answer=replace(TOLD, verdict="VOIDED"))], [EVENT]),
    ),
    "refused, naming another time": (
        "P5",
        lambda: ([WINNER, replace(RIVAL, answer=replace(TOLD, at_ms=1_011))], [EVENT]),
    ),
    "refused, naming another terminal": (
        "P5",
        lambda: ([WINNER, replace(RIVAL, answer=replace(TOLD, terminal_id=8))], [EVENT]),
    ),
    "refused before the cause": (
        "P5",
        lambda: ([WINNER, replace(RIVAL, sent_at_ms=900, ended_at_ms=990)], [EVENT]),
    ),
    "ended twice": ("P6", lambda: (GOOD, [EVENT, replace(EVENT, id=EventId(0, 1, 6))])),
    "a number given twice": (
        "P6",
        lambda: (GOOD, [EVENT, replace(EVENT, type=EventType.ISSUED, uid=OTHER)]),
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_each_broken_promise_is_noticed(what: str) -> None:
    promise, history = BROKEN[what]
    found = violations(*history())
    assert found
    assert promise in {sentence[:2] for sentence in found}
