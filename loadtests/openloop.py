"""The generators: calls at a set rate (open loop), or with a set number outstanding (closed loop).

Open loop, since terminals don't wait for one another: each call has an instant at which it is due, fixed before the run, and its
latency counts from that instant. A server that stalls for a second so shows the second in every call that was due meanwhile,
where a generator that waits for answers would show it once (coordinated omission).

Requests come as a deck of numbers: each call takes the next. A call that the server shed (RESOURCE_EXHAUSTED) was not decided,
so its request goes back under the deck and is sent again later on, with the same request id, as a terminal would.
"""

from __future__ import annotations

import gc
import random
import time
from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol

from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from loadtests import bounds
from loadtests.runs import Run, status_name
from loadtests.wire.connection import Done, Request
from loadtests.wire.headers import STATUS_RESOURCE_EXHAUSTED, Status
from loadtests.wire.pool import Pool

Clock = Callable[[], int]
"""Monotonic nanoseconds; must be the pool's."""

_LEAD_NS: Final = 5_000_000
"""From the start of a run to its first instant, so that the first call is not late already."""


class Reader(Protocol):
    """Reads answers: the name of the verdict, and whether it is the one that was wanted."""

    def __call__(self, message: bytes) -> tuple[str, bool]:
        """Raises ValueError (protobuf's DecodeError) for what is no answer."""


# --- arrivals ---------------------------------------------------------------------------------------------------------
def even_arrivals(rate_per_s: float, seconds: float) -> array[int]:
    """Instants at equal distances, nanoseconds from the beginning. Raises ValueError for a rate that is not positive."""
    _check(rate_per_s, seconds)
    step_ns = 1e9 / rate_per_s
    return array("q", (int(n * step_ns) for n in range(int(rate_per_s * seconds))))


def poisson_arrivals(rate_per_s: float, seconds: float, seed: int) -> array[int]:
    """Instants of callers who know nothing of one another, the same for the same seed."""
    _check(rate_per_s, seconds)
    source = random.Random(seed)
    found = array("q")
    at_s = source.expovariate(rate_per_s)
    while at_s < seconds:
        found.append(int(at_s * 1e9))
        at_s += source.expovariate(rate_per_s)
    return found


def _check(rate_per_s: float, seconds: float) -> None:
    if not rate_per_s > 0 or not seconds > 0:
        raise ValueError(f"{rate_per_s:g} calls a second for {seconds:g} s: both must be more than 0")


# --- open loop --------------------------------------------------------------------------------------------------------
def open_loop(
    pool: Pool,
    requests: Sequence[Request],
    arrivals: Sequence[int],
    read: Reader,
    *,
    deck: deque[int] | None = None,
    clock_ns: Clock = time.perf_counter_ns,
    tick_s: float = bounds.TICK_S,
    drain_s: float = bounds.DRAIN_S,
    stream_wait_s: float | None = None,
    each_tick: Callable[[], object] | None = None,
) -> Run:
    """Send one request at each instant of `arrivals`, in order; returns when all are answered, or `drain_s` after the last.

    Args:
        pool: the connections. All calls of a tick go over one of them, those of the next tick over the next; but see `stream_wait_s`.
        requests: what is sent; `deck` holds their numbers.
        arrivals: when, in nanoseconds from the beginning, ascending.
        read: what an answer says.
        deck: numbers of requests not used yet, taken from the left; what was not sent is left in it. None: each once.
        clock_ns: the pool's clock.
        tick_s: see bounds.TICK_S.
        drain_s: how long to wait for the last answers.
        stream_wait_s: how long after its instant a call may wait while all connections have as many calls as the server allows; then its caller
            gives up. It goes over any that has room, and takes a request only then. None: for ever, over the one whose turn it is.
        each_tick: called between ticks, for watching; it must be quick.

    With fewer requests than arrivals the run ends early: `Run.planned` says how many calls were due, `Run.sent` how many went.
    """
    cards = deque(range(len(requests))) if deck is None else deck
    seconds = arrivals[-1] / 1e9 if len(arrivals) else 0.0
    run = Run("open", pool.connections, len(arrivals) / seconds if seconds else 0.0, planned=len(arrivals))
    card_of = array("q", bytes(8 * len(arrivals)))
    take = _Taker(run, cards, arrivals, card_of, read)
    # Of the calls that are due those from `sent` on wait here, for a connection that has room.
    due, sent, planned, slot = 0, 0, len(arrivals), 0
    tick_ns = int(tick_s * 1e9)
    wait_max_ns = None if stream_wait_s is None else int(stream_wait_s * 1e9)
    looked_ns = 0

    def start(slot: int, count: int) -> None:
        nonlocal sent
        for _ in range(min(count, due - sent, len(cards))):
            card_of[sent] = card = cards.popleft()
            pool.start(slot, requests[card], sent)
            sent += 1

    with _undisturbed():
        cpu_began_s, began_ns = time.process_time(), clock_ns() + _LEAD_NS
        take.began_ns = began_ns
        while sent < planned and (cards or pool.open_calls):
            now_ns = clock_ns() - began_ns
            if due < planned and arrivals[due] <= now_ns and cards:
                run.lags_ns.append(now_ns - arrivals[due])
                due = bisect_right(arrivals, now_ns, due)
            if sent < due and cards:
                slot = (slot + 1) % pool.connections
                if wait_max_ns is None:
                    start(slot, due)
                else:
                    overdue = bisect_left(arrivals, now_ns - wait_max_ns, sent, due)
                    run.given_up += overdue - sent
                    sent = overdue
                    rooms = pool.rooms()
                    first = bisect_left(rooms, (slot, 0))
                    for roomy, room in (*rooms[first:], *rooms[:first]):
                        if sent == due or not cards:
                            break
                        start(roomy, room)
            next_ns = arrivals[due] if due < planned and cards else now_ns + 1_000_000
            wait_ns = max(next_ns, now_ns + tick_ns) - (clock_ns() - began_ns)
            take(pool.poll(max(0, wait_ns) / 1e9))
            if wait_max_ns is not None and now_ns - looked_ns > bounds.GIVE_UP_LOOK_S * 1e9:
                looked_ns = now_ns
                take.give_up(pool, now_ns - wait_max_ns)
            if each_tick is not None:
                each_tick()
        run.sent, run.sending_s = sent, max(0, clock_ns() - began_ns) / 1e9
        run.cpu_share = (time.process_time() - cpu_began_s) / max(run.sending_s, 1e-3)
        take.sending = False
        _drain(pool, take, clock_ns, drain_s)
    run.total_s, run.reconnects = (clock_ns() - began_ns) / 1e9, pool.reconnects
    return run


# --- closed loop ------------------------------------------------------------------------------------------------------
def closed_loop(
    pool: Pool,
    requests: Sequence[Request],
    window: int,
    read: Reader,
    *,
    seconds: float | None = None,
    deck: deque[int] | None = None,
    clock_ns: Clock = time.perf_counter_ns,
    drain_s: float = bounds.DRAIN_S,
) -> Run:
    """Keep `window` calls outstanding on each connection until the requests or the seconds are used up.

    Finds the most that a server can do; its latencies say little, since a slow answer holds the next call back. Arguments as of
    `open_loop`.
    """
    cards = deque(range(len(requests))) if deck is None else deck
    run = Run("closed", pool.connections, 0.0, window=window * pool.connections, planned=len(cards))
    due = array("q")
    card_of = array("q")
    take = _Taker(run, cards, due, card_of, read)
    end_ns = None if seconds is None else int(seconds * 1e9)
    with _undisturbed():
        cpu_began_s, began_ns = time.process_time(), clock_ns()
        take.began_ns = began_ns
        heard_ns = 0
        free = [slot for slot in range(pool.connections) for _ in range(window)]
        while (free and cards) or pool.open_calls:
            now_ns = clock_ns() - began_ns
            if end_ns is not None and now_ns >= end_ns:
                break
            taken, free = free[: len(cards)], free[len(cards) :]
            for slot in taken:
                card = cards.popleft()
                card_of.append(card)
                due.append(now_ns)
                pool.start(slot, requests[card], len(due) - 1)
                take.slots.append(slot)
            done = pool.poll(drain_s)
            if done:
                heard_ns = now_ns
            elif now_ns - heard_ns > drain_s * 1e9:
                break
            free += [take.slots[item.tag] for item in done]
            take(done)
        run.sent, run.sending_s = len(due), (clock_ns() - began_ns) / 1e9
        run.cpu_share = (time.process_time() - cpu_began_s) / max(run.sending_s, 1e-3)
        take.sending = False
        _drain(pool, take, clock_ns, drain_s)
    run.total_s, run.reconnects = (clock_ns() - began_ns) / 1e9, pool.reconnects
    return run


# --- both -------------------------------------------------------------------------------------------------------------
class _Taker:
    """Books answers into the run."""

    def __init__(
        self, run: Run, cards: deque[int], due_ns: Sequence[int], card_of: array[int], read: Reader
    ) -> None:
        self._run = run
        self._cards = cards
        self._due_ns = due_ns
        self._card_of = card_of
        self._read = read
        self._advised: dict[bytes, bool] = {}
        self.began_ns = 0
        self.sending = True
        self.slots: list[int] = []

    def __call__(self, answers: list[Done]) -> None:
        run, due_ns, card_of, began_ns = self._run, self._due_ns, self._card_of, self.began_ns
        run.answered += len(answers)
        for tag, status, message, at_ns in answers:
            if status.code:
                self._refused(tag, status)
                continue
            verdict, good = self._read(message)
            run.statuses["OK"] += 1
            run.verdicts[verdict] += 1
            if good:
                run.good += 1
                run.good_while_sending += self.sending
                run.good_latencies_ns.append(at_ns - began_ns - due_ns[tag])
                run.good_due_ns.append(due_ns[tag])
                run.acknowledged.append(card_of[tag])

    def give_up(self, pool: Pool, before_ns: int) -> None:
        """Forget calls that were due before, and have not left."""
        tags = pool.give_up(lambda tag: self._due_ns[tag] < before_ns)
        self._run.given_up += len(tags)
        self._cards.extend(self._card_of[tag] for tag in tags)

    def _refused(self, tag: int, status: Status) -> None:
        run = self._run
        run.statuses[status_name(status.code)] += 1
        if status.code == STATUS_RESOURCE_EXHAUSTED:
            self._cards.append(self._card_of[tag])
            run.shed_without_advice += not self._is_advised(status.details)
        if len(run.samples) < bounds.SAMPLES_MAX:
            sample = f"{status_name(status.code)}: {status.message}"
            if sample not in run.samples:
                run.samples.append(sample)

    def _is_advised(self, details: bytes) -> bool:
        """Whether google.rpc.RetryInfo is among the details."""
        known = self._advised.get(details)
        if known is None:
            rich = status_pb2.Status.FromString(details)
            known = any(item.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for item in rich.details)
            self._advised[details] = known
        return known


def _drain(pool: Pool, take: _Taker, clock_ns: Clock, drain_s: float) -> None:
    end_ns = clock_ns() + int(drain_s * 1e9)
    while pool.open_calls and (left_ns := end_ns - clock_ns()) > 0:
        take(pool.poll(left_ns / 1e9))


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without the garbage collector, whose long pauses would count as the server's; what is made here has no cycles."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
