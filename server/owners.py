"""Partition owners: who decides which calls of the hot lane, one batch at a time each.

An owner is one server of the store, with the partitions that live there (engine.state.connection). It has a queue, and at most
one batch in flight. While that waits for the store, on the owner's own thread, the next calls gather; when it comes
back they are sorted, and the next batch goes out before the answers of this one are written. So the store is never idle while there is work, batches
grow with the load and vanish when there is none, and one slow owner stops only its own calls.

Owners come with their first call: a cluster may grow a primary at any time. Calls that need several of them have an owner of their
own (engine.state.connection.SEVERAL), so that the calls of each single one never wait for another.

All but the waiting is done by one thread, the lane's, which drains the calls too: nothing here is locked.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any, Final, TypeAlias

from engine import limits
from engine.errors import Exhausted, PickgateError, Unavailable
from server import bounds
from server.batches import Method, Outcome, Sorted, Work
from server.roles import Grant
from server.turns import TooLate

_log = logging.getLogger(__name__)

_BATCH_WEIGHT: Final = 0.25
"""Of the newest batch in the time that a batch is expected to take."""


class Waiting:
    """A call that waits to be decided.

    method: which of the methods, by its number.
    message: its request on the wire.
    deadline_s: when its caller will have gone, unix seconds; beyond all time for one that waits for ever.
    came_s: when it came, by the owners' monotonic clock.
    alone: kept by the owners, False at first: a defect was met in its company, so it is decided in none.
    grant: what its caller may do, and who it is; None where callers are not known.
    """

    __slots__ = ("alone", "came_s", "deadline_s", "grant", "message", "method")

    method: int
    message: bytes
    deadline_s: float
    came_s: float
    alone: bool
    grant: Grant | None


Answered: TypeAlias = Sequence[tuple[Waiting, Outcome]]


class _Flight:
    """A batch in flight: its calls with what was prepared of each, and the work."""

    __slots__ = ("answered", "batch", "began_s", "error", "outcomes", "owner", "work")

    def __init__(
        self, owner: _Owner, batch: Sequence[tuple[Waiting, Any]], work: Work, began_s: float
    ) -> None:
        self.owner = owner
        self.batch = batch
        self.work = work
        self.began_s = began_s
        self.error: Exception | None = None
        self.outcomes: Iterator[Outcome] | None = None
        self.answered = 0
        """How many of the calls, from the first, have their outcome."""


class _Owner:
    """One owner: its queue, its flight, and the thread that waits."""

    def __init__(self, number: int, landed: Callable[[_Flight], None]) -> None:
        self.number = number
        self.queue: deque[tuple[Waiting, Any]] = deque()
        self.flight: _Flight | None = None
        self.batch_s = 0.0
        """How long a batch takes of late."""
        self._landed = landed
        self._flights: SimpleQueue[_Flight | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._wait, name=f"pickgate-owner-{number}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._flights.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def send(self, flight: _Flight) -> None:
        self.flight = flight
        self._flights.put(flight)

    def _wait(self) -> None:
        while (flight := self._flights.get()) is not None:
            try:
                flight.work.wait()
            except Exception as error:
                flight.error = error
            self._landed(flight)


class Owners:
    """The owners of all partitions. All its methods are for one thread.

    Args:
        methods: what calls ask for, by number.
        owners: how many there are to begin with.
        answer: takes outcomes, on the calling thread; it never raises.
        wake: called on an owner's thread when a batch has come back, with one of its calls: see to it that `turn`, then `answer` is called.
        wait_s: how long a call may wait for its owner.
        monotonic_s: the clock of the waits.
        unix_s: the clock of the deadlines.
    """

    def __init__(
        self,
        methods: Sequence[Method],
        owners: int,
        answer: Callable[[Answered], None],
        wake: Callable[[Waiting], None],
        *,
        wait_s: float = bounds.QUEUE_WAIT_S,
        monotonic_s: Callable[[], float] = time.monotonic,
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        self._methods = tuple(methods)
        self._answer = answer
        self._wake = wake
        self._wait_s = wait_s
        self._monotonic_s = monotonic_s
        self._unix_s = unix_s
        self._unsorted: deque[Waiting] = deque()
        self._back: deque[_Flight] = deque()
        """Batches that have come back. The one thing that two threads touch."""
        self._answering: deque[_Flight] = deque()
        self._owners = {number: _Owner(number, self._landed) for number in range(owners)}
        self._started = False
        # Statistics.
        self.waiting = 0
        """Calls submitted and not answered."""
        self.sizes: Counter[int] = Counter()
        """Batches decided, by the number of their calls."""
        self.shed = 0
        """Calls refused because they would have waited past their deadline."""
        self.expired = 0
        """Calls whose deadline had passed when their turn came."""
        self.late = 0
        """Calls that waited longer than `wait_s` for their owner."""

    def start(self) -> None:
        """Begin to work."""
        self._started = True
        for owner in self._owners.values():
            owner.start()

    def _owner(self, number: int) -> _Owner:
        owner = self._owners.get(number)
        if owner is None:
            owner = _Owner(number, self._landed)
            if self._started:
                owner.start()
            # Another mapping, since `stop` may go through this one.
            self._owners = {**self._owners, number: owner}
        return owner

    def stop(self) -> None:
        """End the waiting threads, on any thread; nothing is in flight any more, or nobody waits for it."""
        for owner in self._owners.values():
            owner.stop()

    @property
    def idle(self) -> bool:
        """Whether no call waits and none is in flight."""
        return not self.waiting

    def submit(self, calls: Sequence[Waiting]) -> None:
        """Take calls over, each with all its attributes set; those whose owner is free go out."""
        self.waiting += len(calls)
        self._unsorted.extend(calls)
        self._go_on()

    def _go_on(self) -> None:
        """Send every free owner its next batch; what has come meanwhile is sorted for that.

        A batch costs something however small it is, so what comes while all are busy is sorted as one: when an owner is free, or
        when it is as many as bounds.SORTED_AT_ONCE, and then no owner waits for that.
        """
        self._send_all()
        while self._unsorted and (
            len(self._unsorted) >= bounds.SORTED_AT_ONCE
            or any(owner.flight is None for owner in self._owners.values())
        ):
            count = min(len(self._unsorted), limits.BATCH_MAX)
            chunk = [self._unsorted.popleft() for _ in range(count)]
            try:
                results = self._sort(chunk)
            except Exception as error:
                # A defect of this file, and yet these calls have an answer.
                _log.exception("sorting calls failed")
                results = [(call, error) for call in chunk]
            self._distribute(results)
            self._send_all()

    @property
    def has_answers(self) -> bool:
        """Whether batches have come back that are not answered yet."""
        return bool(self._back or self._answering)

    def turn(self) -> None:
        """Take up the batches that have come back: the next ones go out, and these are ready to be answered."""
        while self._back:
            flight = self._back.popleft()
            owner = flight.owner
            owner.flight = None
            took_s, known_s = self._monotonic_s() - flight.began_s, owner.batch_s
            owner.batch_s = known_s + _BATCH_WEIGHT * (took_s - known_s) if known_s else took_s
            self._answering.append(flight)
            self._go_on()

    def answer(self, calls_max: int) -> None:
        """Answer some of the calls that have come back, the oldest batch first.

        A few at a time, and the caller drains in between: whoever is answered may ask again at once, and the store would be
        idle until the last of a batch had its answer.
        """
        while self._answering and calls_max > 0:
            flight = self._answering[0]
            try:
                if flight.error is not None:
                    raise flight.error
                if flight.outcomes is None:
                    flight.outcomes = flight.work.outcomes()
                done = [
                    (call, outcome)
                    for (call, _), outcome in zip(
                        flight.batch[flight.answered : flight.answered + calls_max],
                        flight.outcomes,
                        strict=False,
                    )
                ]
                if not done:
                    raise AssertionError(f"{flight.answered} outcomes for {len(flight.batch)} calls")
            except Exception as error:
                self._answering.popleft()
                self._fail(flight.owner, flight.batch[flight.answered :], error)
                self._send_all()
                continue
            flight.answered += len(done)
            calls_max -= len(done)
            if flight.answered == len(flight.batch):
                self._answering.popleft()
            self._hand_back(done)

    def sweep(self) -> None:
        """Answer the calls that have waited too long for an owner, UNAVAILABLE.

        What is in flight stays there; the store's timeout bounds that.
        """
        before_s = self._monotonic_s() - self._wait_s
        late: list[Waiting] = []
        while self._unsorted and self._unsorted[0].came_s < before_s:
            late.append(self._unsorted.popleft())
        for owner in self._owners.values():
            while owner.queue and owner.queue[0][0].came_s < before_s:
                late.append(owner.queue.popleft()[0])
        if late:
            self.late += len(late)
            error = Unavailable(
                f"{len(late)} calls waited longer than {self._wait_s:g} s for the store's answer to those before them:"
                " retry with the same request id; if it lasts, look at the store"
            )
            self._hand_back([(call, error) for call in late])

    # --- sorting ----------------------------------------------------------------------------------------------
    def _sort(self, calls: Sequence[Waiting]) -> list[tuple[Waiting, Sorted | Outcome]]:
        now_s = self._unix_s()
        found: list[tuple[Waiting, Sorted | Outcome]] = []
        for method, group in _by_method(calls):
            alive = [call for call in group if call.deadline_s > now_s]
            if len(alive) < len(group):
                found += [(call, TooLate()) for call in group if call.deadline_s <= now_s]
            found += zip(alive, self._sort_each(method, alive), strict=True)
        return found

    def _sort_each(self, method: int, calls: Sequence[Waiting]) -> Sequence[Sorted | Outcome]:
        """One result for each call, whatever happens: a defect that one brings up must not be everybody's."""
        if not calls:
            return []
        try:
            grants = [call.grant for call in calls]
            # All or none of them: there is a gate, or there is not.
            known = grants if grants[0] is not None else ()
            results = self._methods[method].sort([call.message for call in calls], known)
            if len(results) != len(calls):
                raise AssertionError(f"{len(results)} results for {len(calls)} calls")
            return results
        except PickgateError as error:
            return [error] * len(calls)
        except Exception as error:
            if len(calls) == 1:
                return [error]
            _log.exception("sorting %d calls failed; sorting each alone", len(calls))
        return [self._sort_each(method, [call])[0] for call in calls]

    def _distribute(self, results: Sequence[tuple[Waiting, Sorted | Outcome]]) -> None:
        done: list[tuple[Waiting, Outcome]] = []
        now_s, unix_s = self._monotonic_s(), self._unix_s()
        for call, result in results:
            if not isinstance(result, Sorted):
                self.expired += isinstance(result, TooLate)
                done.append((call, result))
                continue
            owner = self._owner(result.owner)
            if self._expected_s(owner, now_s) > call.deadline_s - unix_s:
                self.shed += 1
                done.append((call, _CROWDED))
            else:
                owner.queue.append((call, result.prepared))
        self._hand_back(done)

    def _expected_s(self, owner: _Owner, now_s: float) -> float:
        """How long a call will wait that comes into the queue now, at least; 0.0 for an owner that is free.

        By batches, not by calls: up to limits.BATCH_MAX of them take little longer than one, since most of it is the
        store's disk. A batch that takes longer than usual is expected to take as long again.
        """
        flight = owner.flight
        if flight is None:
            return 0.0
        # No batch takes longer than the store's timeout: if it seems so, this process stood still.
        batch_s = min(max(owner.batch_s, now_s - flight.began_s), limits.STORE_TIMEOUT_S)
        return batch_s * (1 + len(owner.queue) // limits.BATCH_MAX)

    # --- deciding ---------------------------------------------------------------------------------------------
    def _send_all(self) -> None:
        for owner in self._owners.values():
            while owner.queue and owner.flight is None:
                self._send(owner)

    def _send(self, owner: _Owner) -> None:
        """Send an owner its next batch: what waits there, of one method, the oldest first."""
        batch = self._take(owner)
        if not batch:
            return
        method = batch[0][0].method
        try:
            work = self._methods[method].begin(owner.number, [prepared for _, prepared in batch])
        except Exception as error:
            self._fail(owner, batch, error)
            return
        self.sizes[len(batch)] += 1
        owner.send(_Flight(owner, batch, work, self._monotonic_s()))

    def _take(self, owner: _Owner) -> list[tuple[Waiting, Any]]:
        unix_s = self._unix_s()
        queue = owner.queue
        batch: list[tuple[Waiting, Any]] = []
        late: list[tuple[Waiting, Outcome]] = []
        others: list[tuple[Waiting, Any]] = []
        while queue and len(batch) < limits.BATCH_MAX:
            call, _ = pair = queue.popleft()
            if call.deadline_s <= unix_s:
                late.append((call, TooLate()))
            elif not batch or (
                call.method == batch[0][0].method and not call.alone and not batch[0][0].alone
            ):
                batch.append(pair)
            else:
                others.append(pair)
        queue.extendleft(reversed(others))
        self.expired += len(late)
        self._hand_back(late)
        return batch

    def _landed(self, flight: _Flight) -> None:
        """On an owner's thread: a batch has come back."""
        self._back.append(flight)
        self._wake(flight.batch[0][0])

    def _fail(self, owner: _Owner, batch: Sequence[tuple[Waiting, Any]], error: Exception) -> None:
        """A batch could not be decided: an error of ours is everybody's; after a defect each is decided alone.

        That is safe: a change that has happened answers to its request id.
        """
        if isinstance(error, PickgateError) or len(batch) == 1:
            self._hand_back([(call, error) for call, _ in batch])
            return
        _log.error("deciding %d calls failed; deciding each alone", len(batch), exc_info=error)
        for call, _ in batch:
            call.alone = True
        owner.queue.extendleft(reversed(batch))

    def _hand_back(self, done: Sequence[tuple[Waiting, Outcome]]) -> None:
        if done:
            self.waiting -= len(done)
            self._answer(done)


_CROWDED: Final = Exhausted(
    "more calls wait than can be answered before this one's deadline: try again later"
)


def _by_method(calls: Sequence[Waiting]) -> list[tuple[int, list[Waiting]]]:
    """Calls by what they ask for, in order; most batches ask for one thing."""
    groups: dict[int, list[Waiting]] = {}
    for call in calls:
        groups.setdefault(call.method, []).append(call)
    return list(groups.items())
