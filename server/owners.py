"""Partition owners: who decides which calls of the hot lane, one batch at a time each.

An owner is one server of the store, with the partitions that live there (engine.state.connection). It has a queue, a thread, and at
most one batch in flight. While that waits for the store, the next calls gather; when it comes back the thread takes all that is in the
queue and sends it, and only then is the first batch answered. So the store is never idle while there is work, batches
grow with the load and vanish when there is none, and one slow owner stops only its own calls.

Owners come with their first call: a cluster may grow a primary at any time. Calls that need several of them have an owner of their
own (engine.state.connection.SEVERAL), so that the calls of each single one never wait for another.

All else, draining, sorting and answering, is done by one thread, the lane's. It fills the queues at one end, the owner's thread takes
from the other; what both look at twice has the owner's lock.
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

    def __init__(self, owner: _Owner, batch: Sequence[tuple[Waiting, Any]], began_s: float) -> None:
        self.owner = owner
        self.batch = batch
        self.work: Work | None = None
        self.began_s = began_s
        self.error: Exception | None = None
        self.outcomes: Iterator[Outcome] | None = None
        self.answered = 0
        """How many of the calls, from the first, have their outcome."""


class _Owner:
    """One owner: its queue, its flight, and the thread that sends and waits.

    Args:
        number: which one.
        fly: decides a batch that is in the queue, on the owner's thread; False when there is none.
    """

    def __init__(self, number: int, fly: Callable[[_Owner], bool]) -> None:
        self.number = number
        self.queue: deque[tuple[Waiting, Any]] = deque()
        """The lane's thread adds at the right end."""
        self.lock = threading.Lock()
        """Of taking from the queue, and of `idle`."""
        self.idle = True
        """Whether the thread waits to be woken."""
        self.began_s: float | None = None
        """When the batch in flight began; None while there is none."""
        self.batch_s = 0.0
        """How long a batch takes of late."""
        self._fly = fly
        self._wakes: SimpleQueue[bool] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"pickgate-owner-{number}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._wakes.put(False)
        if self._thread.is_alive():
            self._thread.join()

    def wake(self) -> None:
        """See to it that what is in the queue is taken."""
        with self.lock:
            if not self.idle or not self.queue:
                return
            self.idle = False
        self._wakes.put(True)

    def _run(self) -> None:
        while self._wakes.get():
            try:
                while self._fly(self):
                    pass
            except Exception:
                # A defect of this file, and yet the owner has its thread: the next call wakes it.
                _log.exception("owner %d failed; going on", self.number)
                with self.lock:
                    self.idle = True


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
        """Batches that have come back, from the owners' threads."""
        self._overdue: deque[Waiting] = deque()
        """Calls whose deadline had passed when an owner's thread took them."""
        self._answering: deque[_Flight] = deque()
        self._owners = {number: _Owner(number, self._fly) for number in range(owners)}
        self._started = False
        # Statistics.
        self.waiting = 0
        """Calls submitted and not answered."""
        self.sizes: Counter[int] = Counter()
        """Batches decided, by the number of their calls."""
        self.shed = 0
        """Calls refused because they would have waited past their deadline, or past `wait_s`."""
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
            owner = _Owner(number, self._fly)
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
        """Sort what has come, as far as that does not wait for more.

        A sorting costs something however small it is, so what comes while all owners are busy is sorted as one: when an owner is free,
        when it is as many as bounds.SORTED_AT_ONCE, or when there is nothing else to do (`sort_ahead`).
        """
        while self._unsorted and (
            len(self._unsorted) >= bounds.SORTED_AT_ONCE or any(owner.idle for owner in self._owners.values())
        ):
            self._sort_some()

    def sort_ahead(self) -> bool:
        """Sort what has come, with nothing else to do; says whether there was anything."""
        if not self._unsorted:
            return False
        self._sort_some()
        return True

    def _sort_some(self) -> None:
        count = min(len(self._unsorted), limits.BATCH_MAX)
        chunk = [self._unsorted.popleft() for _ in range(count)]
        try:
            results = self._sort(chunk)
        except Exception as error:
            # A defect of this file, and yet these calls have an answer.
            _log.exception("sorting calls failed")
            results = [(call, error) for call in chunk]
        self._distribute(results)

    @property
    def busy(self) -> bool:
        """Whether there is something to do here without waiting: batches that have come back, calls that are not sorted."""
        return bool(self._back or self._answering or self._unsorted)

    @property
    def has_answers(self) -> bool:
        """Whether batches have come back that are not answered yet."""
        return bool(self._back or self._answering)

    def turn(self) -> None:
        """Take up the batches that have come back, ready to be answered; if their owners have nothing to do, sort for them first."""
        while self._back:
            flight = self._back.popleft()
            self.sizes[len(flight.batch)] += 1
            self._answering.append(flight)
        self._go_on()
        if self._overdue:
            overdue = [self._overdue.popleft() for _ in range(len(self._overdue))]
            self.expired += len(overdue)
            self._hand_back([(call, TooLate()) for call in overdue])

    def answer(self, calls_max: int) -> None:
        """Answer some of the calls that have come back, the oldest batch first.

        A few at a time, and the caller drains in between: whoever is answered may ask again at once, and the store would be
        idle until the last of a batch had its answer.
        """
        while self._answering and calls_max > 0:
            flight = self._answering[0]
            try:
                if flight.error is not None:
                    # Off the flight: its traceback leads to the calls, and a ring of them would live until garbage is looked for.
                    error, flight.error = flight.error, None
                    raise error
                if flight.outcomes is None:
                    assert flight.work is not None
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
            with owner.lock:
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
        filled: dict[int, _Owner] = {}
        for call, result in results:
            if not isinstance(result, Sorted):
                self.expired += isinstance(result, TooLate)
                done.append((call, result))
                continue
            owner = filled.get(result.owner)
            if owner is None:
                owner = filled[result.owner] = self._owner(result.owner)
            if self._expected_s(owner, now_s) > min(call.deadline_s - unix_s, self._wait_s):
                self.shed += 1
                done.append((call, _CROWDED))
            else:
                owner.queue.append((call, result.prepared))
        for owner in filled.values():
            owner.wake()
        self._hand_back(done)

    def _expected_s(self, owner: _Owner, now_s: float) -> float:
        """How long a call will wait that comes into the queue now, at least; 0.0 for an owner that is free.

        By batches, not by calls: up to limits.BATCH_MAX of them take little longer than one, since most of it is the
        store's disk. A batch that takes longer than usual is expected to take as long again.
        """
        began_s = owner.began_s
        if began_s is None:
            return 0.0
        # No batch takes longer than the store's timeout: if it seems so, this process stood still.
        batch_s = min(max(owner.batch_s, now_s - began_s), limits.STORE_TIMEOUT_S)
        return batch_s * (1 + len(owner.queue) // limits.BATCH_MAX)

    # --- deciding, on the owner's thread ----------------------------------------------------------------------
    def _fly(self, owner: _Owner) -> bool:
        """Decide a batch of what is in the queue; False, and the owner idle, when there is nothing."""
        batch, overdue = self._take(owner)
        if overdue:
            self._overdue.extend(overdue)
            self._wake(overdue[0])
        if not batch:
            return False
        flight = _Flight(owner, batch, self._monotonic_s())
        owner.began_s = flight.began_s
        try:
            prepared = [prepared for _, prepared in batch]
            flight.work = self._methods[batch[0][0].method].begin(owner.number, prepared)
            flight.work.wait()
        except Exception as error:
            flight.error = error
        took_s, known_s = self._monotonic_s() - flight.began_s, owner.batch_s
        owner.batch_s = known_s + _BATCH_WEIGHT * (took_s - known_s) if known_s else took_s
        owner.began_s = None
        self._back.append(flight)
        self._wake(batch[0][0])
        return True

    def _take(self, owner: _Owner) -> tuple[list[tuple[Waiting, Any]], list[Waiting]]:
        """What waits there, of one method, the oldest first, and no more than a batch of work; and what is too late for that."""
        unix_s = self._unix_s()
        queue = owner.queue
        batch: list[tuple[Waiting, Any]] = []
        late: list[Waiting] = []
        others: list[tuple[Waiting, Any]] = []
        room, weigh = limits.BATCH_MAX, None
        with owner.lock:
            while queue and room > 0:
                call, prepared = pair = queue.popleft()
                if call.deadline_s <= unix_s:
                    late.append(call)
                elif not batch or (
                    call.method == batch[0][0].method and not call.alone and not batch[0][0].alone
                ):
                    if not batch:
                        weigh = self._methods[call.method].weigh
                    batch.append(pair)
                    room -= 1 if weigh is None else weigh(prepared)
                else:
                    others.append(pair)
            queue.extendleft(reversed(others))
            owner.idle = not batch
        return batch, late

    # --- answering --------------------------------------------------------------------------------------------
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
        with owner.lock:
            owner.queue.extendleft(reversed(batch))
        owner.wake()

    def _hand_back(self, done: Sequence[tuple[Waiting, Outcome]]) -> None:
        if done:
            self.waiting -= len(done)
            self._answer(done)


_CROWDED: Final = Exhausted("more calls wait than can be answered in time before this one: try again later")


def _by_method(calls: Sequence[Waiting]) -> list[tuple[int, list[Waiting]]]:
    """Calls by what they ask for, in order; most batches ask for one thing."""
    groups: dict[int, list[Waiting]] = {}
    for call in calls:
        groups.setdefault(call.method, []).append(call)
    return list(groups.items())
