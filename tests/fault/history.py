"""A history checker: every call that clients made, with what they were told, held against the events in the store.

Clients keep what they see (which request was sent when, what was answered, or that nothing was); afterwards `violations`
says which promises were broken. It knows codes that are used up in one piece: redeemed whole, or voided.

The promises:
P1 retries of one request get the same answer, and only one of them is the first
P2 at most one request succeeds per code
P3 what was acknowledged is in the events: same event, code, request, time and terminal
P4 what is in the events was asked for, by that request, and not before it was sent
P5 a refusal is true: it names the ending of this code that is in the events, that had been asked for by then, and by another
   request than this one (who is refused hands over nothing)
P6 a code ends once, and no event number is given twice
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

from engine.state.events import Event, EventType

ENDINGS: Final = {"redeem": EventType.REDEEMED, "void": EventType.VOIDED}
TRUE_OF: Final = {
    "ALREADY_REDEEMED": EventType.REDEEMED,
    "VOIDED": EventType.VOIDED,
    "ALREADY_VOIDED": EventType.VOIDED,
}
"""What a refusal says has happened. Any other refusal is none that a good code may get here."""


@dataclass(frozen=True)
class Answer:
    """What a client was told: `verdict` by its slug, `event` as text ('' for none)."""

    verdict: str
    success: bool
    at_ms: int
    terminal_id: int
    event: str
    replayed: bool


@dataclass(frozen=True)
class Call:
    """One sending of a request. `answer` None: it was not decided as far as the client knows, or it hung up."""

    verb: str
    request: bytes
    """Digest of the request id in its scope, as events carry it."""
    terminal_id: int
    """Who asked; 0 for a void."""
    uid: bytes
    sent_at_ms: int
    ended_at_ms: int
    answer: Answer | None


class History:
    """Calls of many threads, in the order in which they ended."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._lock = threading.Lock()

    def record(
        self, verb: str, request: bytes, terminal_id: int, uid: bytes, ask: Callable[[], Answer | None]
    ) -> Answer | None:
        """Make one call, and keep what came of it."""
        sent_at_ms = time.time_ns() // 1_000_000
        answer = ask()
        ended_at_ms = time.time_ns() // 1_000_000
        with self._lock:
            self.calls.append(Call(verb, request, terminal_id, uid, sent_at_ms, ended_at_ms, answer))
        return answer

    def answered(self) -> int:
        """How many calls have been answered until now."""
        with self._lock:
            return sum(call.answer is not None for call in self.calls)

    def unanswered(self) -> int:
        """How many calls have ended without an answer until now."""
        with self._lock:
            return sum(call.answer is None for call in self.calls)


def violations(calls: Iterable[Call], events: Iterable[Event]) -> list[str]:
    """Every broken promise, one sentence each; empty when all were kept."""
    calls, events = list(calls), list(events)
    endings = [event for event in events if event.type in ENDINGS.values()]
    by_request: dict[bytes, list[Call]] = defaultdict(list)
    for call in calls:
        by_request[call.request].append(call)
    return [
        *_p1(by_request),
        *_p2(calls),
        *_p3(calls, endings),
        *_p4(by_request, endings),
        *_p5(by_request, calls, endings),
        *_p6(events, endings),
    ]


def _p1(by_request: dict[bytes, list[Call]]) -> Iterable[str]:
    for request, sendings in by_request.items():
        answers = [call.answer for call in sendings if call.answer is not None]
        if len({replace(answer, replayed=False) for answer in answers}) > 1:
            yield f"P1 {request.hex()}: answers differ: {answers}"
        if sum(answer.success and not answer.replayed for answer in answers) > 1:
            yield f"P1 {request.hex()}: done more than once: {answers}"


def _p2(calls: list[Call]) -> Iterable[str]:
    winners: dict[bytes, set[bytes]] = defaultdict(set)
    for call in calls:
        if call.answer is not None and call.answer.success:
            winners[call.uid].add(call.request)
    for uid, requests in winners.items():
        if len(requests) > 1:
            yield f"P2 {uid.hex()}: {len(requests)} requests succeeded"


def _p3(calls: list[Call], endings: list[Event]) -> Iterable[str]:
    by_id = {str(event.id): event for event in endings}
    for call in calls:
        if call.answer is None or not call.answer.success:
            continue
        event = by_id.get(call.answer.event)
        if event is None:
            yield f"P3 {call}: acknowledged, and lost"
        elif (event.type, event.uid, event.request, event.at_ms, event.terminal_id) != (
            ENDINGS[call.verb],
            call.uid,
            call.request,
            call.answer.at_ms,
            call.answer.terminal_id,
        ) or event.terminal_id != call.terminal_id:
            yield f"P3 {call}: its event says otherwise: {event}"


def _p4(by_request: dict[bytes, list[Call]], endings: list[Event]) -> Iterable[str]:
    for event in endings:
        asked = [
            call
            for call in by_request.get(event.request, [])
            if (ENDINGS[call.verb], call.uid, call.terminal_id) == (event.type, event.uid, event.terminal_id)
        ]
        if not asked:
            yield f"P4 {event}: nobody asked for it"
        elif event.at_ms < min(call.sent_at_ms for call in asked):
            yield f"P4 {event}: before it was asked for"


def _p5(by_request: dict[bytes, list[Call]], calls: list[Call], endings: list[Event]) -> Iterable[str]:
    ended: dict[bytes, Event] = {event.uid: event for event in endings}
    for call in calls:
        if call.answer is None or call.answer.success:
            continue
        event = ended.get(call.uid)
        told = TRUE_OF.get(call.answer.verdict)
        if told is None:
            yield f"P5 {call}: not an answer for this code"
        elif event is not None and event.request == call.request:
            yield f"P5 {call}: refused for what it has itself done: {event}"
        elif event is None or event.type is not told:
            yield f"P5 {call}: not true, its ending is {event}"
        elif call.answer.at_ms != event.at_ms or call.answer.terminal_id != event.terminal_id:
            yield f"P5 {call}: names another ending than {event}"
        elif min((cause.sent_at_ms for cause in by_request[event.request]), default=0) > call.ended_at_ms:
            yield f"P5 {call}: told before anybody asked for {event}"


def _p6(events: list[Event], endings: list[Event]) -> Iterable[str]:
    for uid, times in Counter(event.uid for event in endings).items():
        if times > 1:
            yield f"P6 {uid.hex()}: ended {times} times"
    for number, times in Counter(event.id for event in events).items():
        if times > 1:
            yield f"P6 {number}: given {times} times"
