"""Partition owners: who decides which calls of the hot lane, one batch at a time each.

An owner is one server of the store, with the partitions that live there (engine.state.connection). It has a queue and a thread.
The thread takes all that waits, up to limits.BATCH_MAX, asks the engine for it as one batch, hands the outcomes back, and takes
again: so batches grow with the load and vanish when there is none, and one slow owner stops only its own calls.

Which owner a call belongs to is known only when it has been opened. That is work for whoever has time: calls come into one list,
and the first owner that is free sorts it, for all of them.

A call is always in exactly one place: the list, an owner's queue, or the hands of a thread. Whoever takes it from there answers
it, so that it is answered once.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from engine import limits
from engine.errors import Exhausted, PickgateError, Unavailable
from server import bounds
from server.batches import Method, Outcome, Sorted
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
    answered: kept by the owners, False at first.
    """

    __slots__ = ("answered", "came_s", "deadline_s", "message", "method")

    method: int
    message: bytes
    deadline_s: float
    came_s: float
    answered: bool


Answered: TypeAlias = Sequence[tuple[Waiting, Outcome]]
_Queue: TypeAlias = "deque[tuple[Waiting, Any]]"


class Owners:
    """The owners of all partitions. Needs `start`, then `stop` when no call comes any more.

    Args:
        methods: what calls ask for, by number.
        owners: how many there are.
        answer: takes outcomes, from any thread; it never raises.
        wait_s: how long a call may wait for its owner.
        monotonic_s: the clock of the waits.
        unix_s: the clock of the deadlines.
    """

    def __init__(
        self,
        methods: Sequence[Method],
        owners: int,
        answer: Callable[[Answered], None],
        *,
        wait_s: float = bounds.QUEUE_WAIT_S,
        monotonic_s: Callable[[], float] = time.monotonic,
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        self._methods = tuple(methods)
        self._answer = answer
        self._wait_s = wait_s
        self._monotonic_s = monotonic_s
        self._unix_s = unix_s
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._unsorted: deque[Waiting] = deque()
        self._sorting = False
        self._queues: tuple[_Queue, ...] = tuple(deque() for _ in range(owners))
        self._busy_since_s = [0.0] * owners
        """When each began with the batch in hand; 0.0: it has none."""
        self._batch_s = [0.0] * owners
        """How long each takes for a batch, of late."""
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._work, args=(n,), name=f"pickgate-owner-{n}", daemon=True)
            for n in range(owners)
        ]
        # Statistics: kept per batch, read by anybody.
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
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Decide what still waits, then end. A thread that waits for the store has its timeout to come back."""
        with self._news:
            self._stopped = True
            self._news.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def submit(self, calls: Sequence[Waiting]) -> None:
        """Take calls over, each with all its attributes set; never waits for an owner."""
        with self._news:
            self._unsorted.extend(calls)
            self.waiting += len(calls)
            self._news.notify()

    def sweep(self) -> None:
        """Answer the calls that have waited too long, UNAVAILABLE: for the thread that never waits for an owner.

        What an owner has in hand stays with it; the store's timeout bounds that.
        """
        before_s = self._monotonic_s() - self._wait_s
        late: list[Waiting] = []
        with self._lock:
            while self._unsorted and self._unsorted[0].came_s < before_s:
                late.append(self._unsorted.popleft())
            for queue in self._queues:
                while queue and queue[0][0].came_s < before_s:
                    late.append(queue.popleft()[0])
            self.late += len(late)
        if late:
            error = Unavailable(
                f"{len(late)} calls waited longer than {self._wait_s:g} s for the store's answer to those before them:"
                " retry with the same request id; if it lasts, look at the store"
            )
            self._hand_back([(call, error) for call in late])

    # --- one owner --------------------------------------------------------------------------------------------
    def _work(self, owner: int) -> None:
        sorted_just_now = False
        while True:
            fresh, batch = self._take(owner, sorted_just_now)
            if not fresh and not batch:
                return
            try:
                if fresh:
                    self._distribute(self._sort(fresh))
                else:
                    self._decide(owner, batch)
            except Exception as error:
                # A defect of this file, and yet not a deaf server: the calls in hand end, the thread goes on.
                _log.exception("the owner's thread failed; going on")
                self._sorting = self._sorting and not fresh
                self._hand_back([(call, error) for call in fresh] + [(call, error) for call, _ in batch])
            sorted_just_now = bool(fresh)

    def _take(self, owner: int, sorted_just_now: bool) -> tuple[list[Waiting], list[tuple[Waiting, Any]]]:
        """Wait for something to do: calls to sort, else a batch to decide; neither when it is time to end.

        It sorts once and then decides, or a steady stream would have it sort for ever; and not beyond a full batch.
        """
        queue = self._queues[owner]
        with self._news:
            self._busy_since_s[owner] = 0.0
            while True:
                enough = len(queue) >= (1 if sorted_just_now else limits.BATCH_MAX)
                if self._unsorted and not self._sorting and not enough:
                    self._sorting = True
                    count = min(len(self._unsorted), limits.BATCH_MAX)
                    return [self._unsorted.popleft() for _ in range(count)], []
                if queue:
                    self._busy_since_s[owner] = self._monotonic_s()
                    return [], [queue.popleft() for _ in range(min(len(queue), limits.BATCH_MAX))]
                if self._stopped and not self._sorting:
                    return [], []
                self._news.wait()

    # --- sorting ----------------------------------------------------------------------------------------------
    def _sort(self, calls: Sequence[Waiting]) -> list[tuple[Waiting, Sorted | Outcome]]:
        now_s = self._unix_s()
        found: list[tuple[Waiting, Sorted | Outcome]] = []
        for method, group in _by_method(calls):
            alive = [call for call in group if call.deadline_s > now_s]
            found += [(call, TooLate()) for call in group if call.deadline_s <= now_s]
            results = _each(
                self._methods[method].sort, [call.message for call in alive], "sorting calls failed"
            )
            found += zip(alive, results, strict=True)
        return found

    def _distribute(self, results: Sequence[tuple[Waiting, Sorted | Outcome]]) -> None:
        done: list[tuple[Waiting, Outcome]] = []
        now_s, unix_s = self._monotonic_s(), self._unix_s()
        crowded = Exhausted(
            "more calls wait than can be answered before this one's deadline: try again later"
        )
        with self._news:
            for call, result in results:
                if not isinstance(result, Sorted):
                    self.expired += isinstance(result, TooLate)
                    done.append((call, result))
                elif self._expected_s(result.owner, now_s) > call.deadline_s - unix_s:
                    self.shed += 1
                    done.append((call, crowded))
                else:
                    self._queues[result.owner].append((call, result.prepared))
            self._sorting = False
            self._news.notify_all()
        self._hand_back(done)

    def _expected_s(self, owner: int, now_s: float) -> float:
        """How long a call will wait that comes into the queue now, at least; 0.0 for an owner that is free.

        By batches, not by calls: up to limits.BATCH_MAX of them take little longer than one, since most of it is the
        store's disk. A batch that takes longer than usual is expected to take as long again.
        """
        since_s, ahead = self._busy_since_s[owner], len(self._queues[owner])
        if not since_s and not ahead:
            return 0.0
        batch_s = max(self._batch_s[owner], now_s - since_s if since_s else 0.0)
        return batch_s * (1 + ahead // limits.BATCH_MAX)

    # --- deciding ---------------------------------------------------------------------------------------------
    def _decide(self, owner: int, batch: Sequence[tuple[Waiting, Any]]) -> None:
        began_s, unix_s = self._monotonic_s(), self._unix_s()
        late: list[tuple[Waiting, Outcome]] = [
            (call, TooLate()) for call, _ in batch if call.deadline_s <= unix_s
        ]
        alive = [(call, prepared) for call, prepared in batch if call.deadline_s > unix_s]
        self._hand_back(late)
        for method, group in _by_method([call for call, _ in alive]):
            prepared = [item for call, item in alive if call.method == method]
            decide = functools.partial(self._methods[method].decide, owner)
            outcomes = _each(decide, prepared, "deciding calls failed")
            self._hand_back(list(zip(group, outcomes, strict=True)))
            self.sizes[len(group)] += 1
        self.expired += len(late)
        if alive:
            took_s = self._monotonic_s() - began_s
            known_s = self._batch_s[owner]
            self._batch_s[owner] = known_s + _BATCH_WEIGHT * (took_s - known_s) if known_s else took_s

    def _hand_back(self, done: Sequence[tuple[Waiting, Outcome]]) -> None:
        fresh = [pair for pair in done if not pair[0].answered]
        for call, _ in fresh:
            call.answered = True
        with self._lock:
            self.waiting -= len(fresh)
        if fresh:
            self._answer(fresh)


def _by_method(calls: Sequence[Waiting]) -> list[tuple[int, list[Waiting]]]:
    """Calls by what they ask for, in order; most batches ask for one thing."""
    groups: dict[int, list[Waiting]] = {}
    for call in calls:
        groups.setdefault(call.method, []).append(call)
    return list(groups.items())


def _each(ask: Callable[[Sequence[Any]], Sequence[Any]], items: Sequence[Any], defect: str) -> Sequence[Any]:
    """The results of a batch, one for each item whatever happens.

    A defect that one item brings up must not be everybody's: then each is asked for alone, which is safe, since a change that
    has happened already answers to its request id.
    """
    if not items:
        return []
    try:
        results = ask(items)
        if len(results) != len(items):
            raise AssertionError(f"{len(results)} results for {len(items)} items")
        return results
    except PickgateError as error:
        return [error] * len(items)
    except Exception as error:
        if len(items) == 1:
            return [error]
        _log.exception("%s; asking for each of %d alone", defect, len(items))
    return [_each(ask, [item], defect)[0] for item in items]
