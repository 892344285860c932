"""The writer: follows every partition's stream and appends what it finds to the ledger.

Where it stands is what the ledger has committed, so it may be killed at any moment and goes on without a gap or a repetition.
What it reads must follow: numbers count one by one, an epoch begins with its own event, and where store and ledger overlap they have
the same bytes. Anything else is an alarm (LedgerConflict): nothing more is written until somebody has looked, since each of the two
would be evidence against the other.

One round: read the streams; see that it follows; with durability `replicated` tell the store the mark of the round before, which
waits for the replicas (engine.state.streams.Streams.mark); commit. Else the mark is told once a second: it is a write of the store, which is
flushed to its disk, and calls wait for that. The store drops events only behind a committed mark.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from engine.errors import LedgerConflict, NotReplicated, StoreUnavailable, Unavailable
from engine.ledger import heads
from engine.ledger.attempts import AttemptsWriter
from engine.ledger.heads import Signer
from engine.ledger.ledger import Head, HeadMoved, Ledger
from engine.state import layouts
from engine.state.streams import CONTROL, ENTRIES_MAX, START, Entry, Place, Streams, follows

_log = logging.getLogger(__name__)

BLOCK_MS: Final = 500
"""How long a round waits for news: well under the store's timeout, and a stop is noticed."""
LINGER_S: Final = 0.05
"""Between two rounds that found little: events come one by one, and a commit each would be a flush of the disk each."""
LITTLE: Final = 512
"""Events of a round, below which it lingers."""
PUBLISH_S: Final = 1.0
"""How often the store is told how far the ledger has come, and may drop what is older; servers look each second (limits.CONTROL_POLL_S)."""
ATTEMPTS_S: Final = 1.0
"""How often refused attempts are copied: more than the store keeps of a partition's come in a second only in a flood."""
OVERLAP: Final = 256
"""Events of each partition that store and ledger must agree on when a writer begins, and when an epoch does."""
STAND_BY_S: Final = 1.0
"""How long a writer lets another one go on that was faster."""
FINISH_S: Final = 5.0
"""How long a stopping writer goes on appending what is there."""
RETRY_S_MIN: Final = 0.2
RETRY_S_MAX: Final = 5.0
SHOWN_BYTES: Final = 24
"""How much of two events that differ an alarm shows, from the first difference on."""


class Writer:
    """Appends the events of one deployment to one ledger. For one thread; several writers only wait for one another."""

    def __init__(
        self,
        streams: Streams,
        ledger: Ledger,
        *,
        now_ms: Callable[[], int],
        monotonic_s: Callable[[], float] = time.monotonic,
        signer: Signer | None = None,
    ) -> None:
        self._streams = streams
        self._signer = signer
        self._signed_at_s = float("-inf")
        self._ledger = ledger
        self._now_ms = now_ms
        self._monotonic_s = monotonic_s
        self._heads: dict[int, Head] = {}
        self._marked: dict[int, Place] = {}
        """Up to where the store was told."""
        self._unseen: set[int] = set()
        """Partitions whose server did not answer when it was to be seen whether store and ledger agree."""
        self._caught_up_ms: dict[int, int] = {}
        """Of each partition, a time (unix ms) before which all its events are in the ledger."""
        self._published_at_s = float("-inf")
        self._attempts = AttemptsWriter(streams, ledger)
        self._attempts_at_s = float("-inf")
        self._standing_by = False
        """Another writer was faster last time."""

    # --- state ------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Find the place to go on from, and see that store and ledger agree there.

        A partition whose server does not answer, while others do, is looked at before the first of its events is taken. Raises
        LedgerConflict, StoreUnavailable, LedgerUnavailable.
        """
        known = self._ledger.heads()
        self._heads = {
            number: known.get(number, self._ledger.first_head(number)) for number in self._streams.numbers
        }
        if strange := sorted(set(known) - set(self._heads)):
            raise LedgerConflict(
                f"the ledger has partition {strange[0]}, the store has not: it belongs to another store"
            )
        self._unseen.clear()
        for number, head in self._heads.items():
            try:
                self._see_overlap(number, head)
            except StoreUnavailable:
                self._unseen.add(number)
                if len(self._unseen) == len(self._heads):
                    raise
        self._attempts.start()
        self._ledger.keep_setup(*self._streams.setup())

    @property
    def caught_up_ms(self) -> int:
        """A time, unix ms, before which every event is in the ledger; 0 before the first round."""
        if len(self._caught_up_ms) < len(self._heads):
            return 0
        return min(self._caught_up_ms.values(), default=0)

    # --- one round --------------------------------------------------------------------------------------------
    def step(self, block_ms: int = BLOCK_MS) -> int:
        """Append what there is now; gives how many events that was.

        Waits for at most block_ms milliseconds for the first. Raises LedgerConflict (the writer must not go on), StoreUnavailable,
        NotReplicated, LedgerUnavailable (nothing was written; call again).
        """
        asked_at_ms = self._now_ms()
        self._ledger.make_ahead(asked_at_ms)
        places = {number: head.place for number, head in self._heads.items()}
        found = self._streams.read(places, block_ms)
        for number in self._unseen & found.keys():
            self._see_overlap(number, self._heads[number])
            self._unseen.discard(number)
        for number, entries in found.items():
            self._see_that_they_follow(number, entries)
        if found:
            if self._streams.replicated:
                # Before the commit, and with what was committed before: the replicas then have what was read.
                self._streams.mark({number: self._heads[number].place for number in found})
            try:
                self._heads |= self._ledger.append(self._heads, found)
            except HeadMoved:
                if not self._standing_by:
                    _log.warning("another writer appends to the same ledger: this one stands by")
                self._standing_by = True
                self.start()
                return 0
            self._standing_by = False
        if CONTROL in found:
            self._ledger.keep_setup(*self._streams.setup())
        for number in self._heads:
            if number in self._streams.unread:
                continue
            entries = found.get(number, [])
            if len(entries) < ENTRIES_MAX:
                self._caught_up_ms[number] = asked_at_ms
            elif number != CONTROL:
                self._caught_up_ms[number] = _at_ms(entries[-1])
        self._publish_when_due()
        self._sign_when_due()
        self._copy_attempts_when_due()
        return sum(map(len, found.values()))

    def _publish_when_due(self) -> None:
        now_s = self._monotonic_s()
        if now_s - self._published_at_s < PUBLISH_S:
            return
        news = {
            number: head.place
            for number, head in self._heads.items()
            if head.rows and self._marked.get(number) != head.place and number not in self._streams.unread
        }
        if news:
            self._streams.mark(news)
            self._marked |= news
        if self.caught_up_ms:
            self._streams.publish(caught_up_ms=self.caught_up_ms)
            self._published_at_s = now_s

    def _sign_when_due(self) -> None:
        now_s = self._monotonic_s()
        if self._signer is not None and now_s - self._signed_at_s >= heads.EVERY_S:
            self._signer.sign(self._heads, self._now_ms())
            self._signed_at_s = now_s

    def _copy_attempts_when_due(self) -> None:
        """Refused attempts come behind the events: they may wait, and what is lost of them is no loss of a change."""
        now_s = self._monotonic_s()
        if now_s - self._attempts_at_s >= ATTEMPTS_S:
            self._attempts_at_s = now_s
            self._attempts.step()

    # --- seeing that all is right -----------------------------------------------------------------------------
    def _see_that_they_follow(self, number: int, entries: Sequence[Entry]) -> None:
        """Numbers count one by one; a new epoch begins with its own event, behind the last one of the ledger."""
        head = self._heads[number].place
        last_epoch, last_seq = head
        for entry in entries:
            epoch, seq, _ = entry
            # Nearly all of them, and the rest is not cheap: this runs for every event.
            if epoch == last_epoch and seq == last_seq + 1:
                last_seq = seq
                continue
            before = Place(last_epoch, last_seq)
            if not follows(before, entry):
                raise LedgerConflict(
                    f"partition {number}: event {epoch}-{seq} follows {before} in the store, with a gap: events were lost or"
                    " deleted before the ledger had them; compare with a backup of the store, and rebuild what is left"
                )
            if epoch > max(last_epoch, 1) and before == head:
                self._see_overlap(number, self._heads[number])
            last_epoch, last_seq = epoch, seq

    def _see_overlap(self, number: int, head: Head) -> None:
        """What both have must be the same, and the store must have what the ledger has last."""
        if head.rows == 0:
            return
        in_store = self._streams.before(number, head.place, OVERLAP)
        newest = Place(in_store[0].epoch, in_store[0].seq) if in_store else START
        if newest != head.place:
            raise LedgerConflict(
                f"partition {number}: the ledger ends with event {head.place}, the store has none newer than {newest} up to"
                " there: it was put back to an older state, or lost its last writes; rebuild it from the ledger"
            )
        first = Place(in_store[-1].epoch, in_store[-1].seq - 1)
        in_ledger = {
            (row.entry.epoch, row.entry.seq): row.entry.data
            for row in self._ledger.rows(number, after=first, upto=head.place)
        }
        for entry in in_store:
            kept = in_ledger.get((entry.epoch, entry.seq))
            if kept != entry.data:
                raise LedgerConflict(_difference(number, entry, kept))

    # --- for ever ---------------------------------------------------------------------------------------------
    def run(self, stopping: Callable[[float], bool]) -> None:
        """Write until `stopping` says True, and then what is there; it is asked between rounds with the seconds that it may wait.

        A store or a database that can't be reached is asked again, ever more slowly. Raises LedgerConflict, after the alarm was
        published.
        """
        wait_s = RETRY_S_MIN
        begun = failing = False
        while not stopping(0.0):
            try:
                if not begun:
                    self.start()
                    begun = True
                appended = self.step()
            except LedgerConflict as conflict:
                self._alarm(conflict)
                raise
            except Unavailable as error:
                if not failing:
                    _log.warning("the ledger can't go on now, and will: %s", error.message)
                failing = True
                # What was sent to the database may have been committed: look where it stands.
                begun = begun and isinstance(error, NotReplicated)
                if stopping(wait_s):
                    return
                wait_s = min(2 * wait_s, RETRY_S_MAX)
                continue
            if failing:
                _log.warning("the ledger goes on")
            failing, wait_s = False, RETRY_S_MIN
            if appended < LITTLE and stopping(STAND_BY_S if self._standing_by else LINGER_S):
                break
        if begun:
            self._finish()

    def _finish(self) -> None:
        """Append what there still is, and tell the store: whoever stops a server in order wants the ledger complete."""
        end_s = self._monotonic_s() + FINISH_S
        try:
            while self.step(block_ms=0) and self._monotonic_s() < end_s:
                pass
            self._published_at_s = float("-inf")
            self._publish_when_due()
            self._signed_at_s = float("-inf")
            self._sign_when_due()
            self._attempts.step()
        except (LedgerConflict, Unavailable) as error:
            _log.warning("the ledger was not brought up to date before the end: %s", error.message)

    def _alarm(self, conflict: LedgerConflict) -> None:
        try:
            self._streams.publish(caught_up_ms=self.caught_up_ms or 1, alarm=conflict.message)
        except Unavailable as error:
            _log.warning("the alarm could not be published: %s", error.message)

    def lag_ms(self) -> int:
        """How far the ledger is behind, in milliseconds; the whole of time before the first round."""
        return max(0, self._now_ms() - self.caught_up_ms)

    def heads(self) -> Mapping[int, Head]:
        """The last row of every partition, as this writer knows it."""
        return dict(self._heads)


def _at_ms(entry: Entry) -> int:
    return int(layouts.EVENT.unpack(entry.data)[layouts.EVENT.names.index("at")])


def _difference(number: int, entry: Entry, kept: bytes | None) -> str:
    place = Place(entry.epoch, entry.seq)
    if kept is None:
        return (
            f"partition {number}: the store has event {place}, the ledger has not, though it has later ones: rows were taken out"
            " of the ledger; verify its chain"
        )
    at = next(
        (n for n, pair in enumerate(zip(kept, entry.data, strict=False)) if pair[0] != pair[1]),
        min(len(kept), len(entry.data)),
    )
    return (
        f"partition {number}: event {place} has other bytes in the store than in the ledger, from byte {at} on"
        f" ({entry.data[at : at + SHOWN_BYTES].hex()} and {kept[at : at + SHOWN_BYTES].hex()}): one number stands for two"
        " events; nothing more is written until somebody has looked"
    )
