"""Subscriptions: a feed told from a cursor on, for as long as somebody wants to know.

Each subscriber reads in a thread of its own, a page at a time, and reads the next page when this one is taken: so nobody waits for another,
and what lies in memory for one who is slow is one page. Those who have everything wait; one thread of the process looks a few times a
second whether the ledger has grown, and wakes them. A subscriber that leaves a page untaken for long is cut off: it holds a thread and a
place that others may want, and with its cursor it can go on at any time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Generic, Protocol, Self, TypeVar

from engine.errors import Exhausted, PickgateError, Stopping
from engine.ledger import database, feed
from engine.ledger.feed import Cursor, Page
from engine.ledger.ledger import Ledger
from engine.state.streams import Place

_log = logging.getLogger(__name__)

T = TypeVar("T")

SUBSCRIBERS_MAX: Final = 64
"""Subscriptions at the same time in one process: each holds a thread and a connection of its caller."""
LOOK_S: Final = 0.2
"""How often the ledger is looked at for news while anybody waits; its writer commits about as often."""
STALLED_S_MAX: Final = 300.0
"""How long a batch may stay untaken: a wallet whose own database is being restarted gets over it."""
TELL_CURSOR_S: Final = 10.0
"""How often somebody who has everything is told that the cursor has moved, past events that are not theirs: one that stands still for
years would at last fall behind what is kept."""


class ReadPage(Protocol[T]):
    """Reads a feed's next page: see engine.ledger.settlement.page."""

    def __call__(
        self, ledger: Ledger, cursor: Mapping[int, Place], /, *, count: int, first_partition: int
    ) -> Page[T]:
        """The next page behind a cursor. Raises InvalidInput, CursorAhead, CursorCut, LedgerUnavailable."""


@dataclass(frozen=True, slots=True)
class Batch(Generic[T]):
    """What is told at once."""

    items: tuple[T, ...]
    cursor: Cursor
    caught_up: bool
    """Whether there was nothing more behind it."""


class Subscription(Generic[T]):
    """One subscription: iterate over it, in one thread. Use it as a context manager, or call `close`."""

    def __init__(
        self,
        feeds: Feeds,
        ledger: Ledger,
        read: ReadPage[T],
        cursor: Cursor,
        count: int,
        monotonic_s: Callable[[], float],
    ) -> None:
        self._feeds = feeds
        self._ledger = ledger
        self._read = read
        self._cursor = cursor
        self._count = count
        self._monotonic_s = monotonic_s
        self._closed = False
        self._error: PickgateError | None = None
        self._handed_on_s: float | None = None
        self._when_stalled: Callable[[], object] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Batch[T]]:
        """What there is, then news as it comes; ends when the subscription is closed.

        Raises CursorAhead, CursorCut, LedgerUnavailable, and what ended it: Exhausted (too slow), Stopping.
        """
        first_partition = 0
        told: Cursor | None = None
        told_at_s = self._monotonic_s()
        while not self._closed:
            seen = self._feeds.seen
            page = self._read(self._ledger, self._cursor, count=self._count, first_partition=first_partition)
            self._cursor, first_partition = page.cursor, page.next_partition
            now_s = self._monotonic_s()
            moved = page.cursor != told and now_s - told_at_s >= TELL_CURSOR_S
            # Told at once: news, and that everything is told. After that only that the cursor has moved, now and then.
            if page.items or (page.complete and told is None) or moved:
                self._handed_on_s = now_s
                yield Batch(page.items, dict(page.cursor), page.complete)
                self._handed_on_s = None
                told, told_at_s = page.cursor, self._monotonic_s()
            if page.complete:
                self._feeds.wait_for_more(self, seen, TELL_CURSOR_S)
        if self._error is not None:
            raise self._error

    @property
    def closed(self) -> bool:
        """Whether it has ended, or is about to."""
        return self._closed

    @property
    def untaken_since_s(self) -> float | None:
        """Since when the batch that was handed on has not been taken, by the clock given; None: it was."""
        return self._handed_on_s

    def close(self) -> None:
        """End it. From any thread, any number of times."""
        self.end(None)

    def end(self, error: PickgateError | None) -> None:
        """End it, with the error that its iterator raises (None: none)."""
        if not self._closed:
            self._error = error
            self._closed = True
        self._feeds.leave(self)

    def when_stalled(self, function: Callable[[], object]) -> None:
        """What to call, once, when it ends because a batch is not taken: its thread hangs in handing that on."""
        self._when_stalled = function

    def cut_off(self) -> None:
        """End it because its batch is not taken."""
        self.end(
            Exhausted(
                f"a batch was not taken for {STALLED_S_MAX:g} s: subscribe again with the last cursor, and read faster"
            )
        )
        if self._when_stalled is not None:
            self._when_stalled()


class Feeds:
    """All subscriptions of a process, and the thread that looks for news on their behalf."""

    def __init__(
        self, open_ledger: Callable[[], Ledger], *, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        """open_ledger: gives the open ledger. Raises what it raises, at each subscription."""
        self._open_ledger = open_ledger
        self._monotonic_s = monotonic_s
        self._changed = threading.Condition()
        self._subscriptions: set[Subscription[object]] = set()
        self._seen = 0
        self._ends: Cursor = {}
        self._stopped = False
        self._thread: threading.Thread | None = None

    def subscribe(self, read: ReadPage[T], cursor: Cursor, *, count: int) -> Subscription[T]:
        """Begin a subscription behind a cursor. Raises CursorAhead, Exhausted (too many), Stopping, LedgerUnavailable."""
        ledger = self._open_ledger()
        with database.snapshot(ledger.engine) as connection:
            feed.check_not_ahead(cursor, feed.ends(connection))
        subscription = Subscription(self, ledger, read, cursor, count, self._monotonic_s)
        with self._changed:
            if self._stopped:
                raise _stopping()
            if len(self._subscriptions) >= SUBSCRIBERS_MAX:
                raise Exhausted(f"{SUBSCRIBERS_MAX} subscribe already: try again later, or at another server")
            self._subscriptions.add(subscription)  # type: ignore[arg-type]
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, name="pickgate-feeds", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return subscription

    def close(self) -> None:
        """End all subscriptions, and take no new ones."""
        with self._changed:
            self._stopped = True
            subscriptions, thread = list(self._subscriptions), self._thread
            self._changed.notify_all()
        for subscription in subscriptions:
            subscription.end(_stopping())
        if thread is not None:
            thread.join()

    # --- for the subscriptions ----------------------------------------------------------------------------------
    @property
    def seen(self) -> int:
        """How often the ledger was seen to have grown."""
        return self._seen

    def wait_for_more(self, subscription: Subscription[T], seen: int, timeout_s: float) -> None:
        """Wait until the ledger has grown since `seen`, the subscription is closed, or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._seen != seen or subscription.closed, timeout_s)

    def leave(self, subscription: Subscription[T]) -> None:
        """Forget a subscription that has ended, and wake it if it waits."""
        with self._changed:
            self._subscriptions.discard(subscription)
            self._changed.notify_all()

    def __len__(self) -> int:
        return len(self._subscriptions)

    # --- looking ------------------------------------------------------------------------------------------------
    def _look(self) -> None:
        """Until it is stopped: see whether the ledger has grown, and who does not take what is handed on."""
        failing = False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or bool(self._subscriptions))
                if self._changed.wait_for(lambda: self._stopped, LOOK_S):
                    return
                subscriptions = list(self._subscriptions)
            try:
                self._look_at_ledger()
                failing = False
            except PickgateError as error:
                if not failing:
                    _log.warning("the feeds can't be followed now: %s", error.message)
                failing = True
                # Each would find out by itself only with its next page; now its reader knows at once, and asks again.
                for subscription in subscriptions:
                    subscription.end(error)
            now_s = self._monotonic_s()
            for subscription in subscriptions:
                since_s = subscription.untaken_since_s
                if since_s is not None and now_s - since_s > STALLED_S_MAX:
                    subscription.cut_off()

    def _look_at_ledger(self) -> None:
        ledger = self._open_ledger()
        with database.snapshot(ledger.engine) as connection:
            found = feed.ends(connection)
        if found != self._ends:
            with self._changed:
                self._ends = found
                self._seen += 1
                self._changed.notify_all()


def _stopping() -> Stopping:
    return Stopping("the service stops: subscribe again with the last cursor, elsewhere or when it is back")
