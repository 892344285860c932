"""The event streams as the ledger reads them: raw entries of every partition and of the control partition, in order.

The position is the reader's own: what the ledger has committed says where to read on. The store is told that position
afterwards (`Streams.mark`), as the mark of a consumer group, and may then drop what is older.

The control partition is read like any other, under the number CONTROL. Its events carry the version of the control
partition in place of epoch and number; here that is epoch 1, number = version.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple

from engine import limits
from engine.errors import PickgateError
from engine.state import forgeries, scripts
from engine.state.connection import Call, Connection, Durability
from engine.state.events import EventType
from engine.state.forgeries import Told
from engine.state.keys import ControlKeys

CONTROL: Final = limits.PARTITIONS_MAX
"""Number of the control partition: the first that no partition has."""
ENTRIES_MAX: Final = 2_048
"""Entries of one stream in one read: half a megabyte."""
KEPT: Final = 10_000
"""Events of each partition that stay in the store behind the ledger's mark: for those who watch, and for a ledger that was
put back to last night's backup. About 3 MB a partition."""

_CONTROL_EPOCH: Final = 1
_EPOCH: Final = bytes([EventType.EPOCH])
FACTS: Final = {"caught_up": "ledger_caught_up", "alarm": "ledger_alarm"}
"""Fields of the control partition's facts in which the ledger says how it is."""


class Place(NamedTuple):
    """Where an event stands in its partition: it sorts as the events do."""

    epoch: int
    seq: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.seq}"


START: Final = Place(0, 0)
"""Before the first event of any partition."""


class Entry(NamedTuple):
    """One event as it lies in the stream."""

    epoch: int
    seq: int
    data: bytes
    """A partition's event as its script packed it; a control event as `pack_fields` has it."""


class Attempt(NamedTuple):
    """One refused attempt as it lies in its stream, which the store itself numbers: by its time."""

    stream_ms: int
    stream_seq: int
    data: bytes
    """layouts.ATTEMPT."""


def next_place(before: Place) -> Place:
    """The place behind another one, within its epoch."""
    return Place(max(before.epoch, 1), before.seq + 1)


def begins_epoch(entry: Entry) -> bool:
    """Whether an event opens an epoch: the first of its own, by number and by type."""
    return entry.seq == 1 and entry.data[1:2] == _EPOCH


def follows(before: Place, entry: Entry) -> bool:
    """Whether an event can stand behind a place: the next number, or the opening of the next epoch."""
    if entry[:2] == next_place(before):
        return True
    return entry.epoch == max(before.epoch, 1) + 1 and begins_epoch(entry)


def pack_fields(values: Sequence[bytes]) -> bytes:
    """Fields and values of a control event, each behind its length in four bytes: one encoding, and one only."""
    return b"".join(chain.from_iterable((len(value).to_bytes(4, "big"), value) for value in values))


def unpack_fields(data: bytes) -> list[tuple[bytes, bytes]]:
    """Fields and values of a control event, in order. The script's own come first: a name may return among the entries."""
    values = []
    at = 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        values.append(data[at + 4 : end])
        at = end
    return list(zip(values[::2], values[1::2], strict=True))


class Streams:
    """All event streams of a deployment. For one thread at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        control = ControlKeys()
        self._names = {
            **{number: (keys.meta, keys.events) for number, keys in enumerate(connection.partitions)},
            CONTROL: (control.meta, control.events),
        }
        self._numbers = {events: number for number, (_, events) in self._names.items()}
        self._facts = control.meta
        self.unread: frozenset[int] = frozenset()
        """Partitions that the last `read` could not look at, because their server did not answer in time."""

    @property
    def replicated(self) -> bool:
        """Whether what is acknowledged is on replicas, so that nothing may be taken that they might lack (`mark`)."""
        return self._connection.durability is Durability.REPLICATED

    @property
    def numbers(self) -> tuple[int, ...]:
        """The partitions there are, CONTROL last."""
        return tuple(self._names)

    def read(self, places: Mapping[int, Place], block_ms: int) -> dict[int, list[Entry]]:
        """What lies behind a place, of each partition at most ENTRIES_MAX events; a partition without news is left out.

        Waits for at most block_ms milliseconds (0: not at all; less than the store's timeout) while there is nothing anywhere.
        See `unread`. Raises StoreUnavailable when nothing can be read.
        """
        ids = {self._names[number][1]: _id(number, place) for number, place in places.items()}
        found, unread = self._connection.read_streams(ids, ENTRIES_MAX, block_ms)
        self.unread = frozenset(self._numbers[stream] for stream in unread)
        return {
            self._numbers[stream]: list(_entries(self._numbers[stream], entries))
            for stream, entries in found.items()
        }

    def before(self, number: int, place: Place, count: int) -> list[Entry]:
        """The last `count` events that the store has up to a place, that one included, newest first. Raises StoreUnavailable."""
        command = ("XREVRANGE", self._names[number][1], _id(number, place), "-", "COUNT", count)
        return list(_entries(number, self._connection.read_raw(command)))

    def last(self, number: int) -> Place:
        """The newest event of a partition, START when it never had one. Raises StoreUnavailable."""
        found = self._connection.read_raw(["XREVRANGE", self._names[number][1], "+", "-", "COUNT", 1])
        return next((Place(entry.epoch, entry.seq) for entry in _entries(number, found)), START)

    def lasts(self) -> dict[int, Place]:
        """The newest event of every partition, START of one that never had any. Raises StoreUnavailable."""
        found = self._connection.read(
            [("XREVRANGE", events, "+", "-", "COUNT", 1) for _, events in self._names.values()]
        )
        lasts: dict[int, Place] = {}
        for number, entries in zip(self._names, found, strict=True):
            lasts[number] = START
            for entry_id, _ in entries:
                first, _, second = entry_id.partition(b"-")
                lasts[number] = (
                    Place(_CONTROL_EPOCH, int(first)) if number == CONTROL else Place(int(first), int(second))
                )
        return lasts

    def attempts(self, seen: Mapping[int, tuple[int, int]]) -> dict[int, list[Attempt]]:
        """Refused attempts behind those seen, of each partition at most ENTRIES_MAX; does not wait.

        Those whose server does not answer are left out. Raises StoreUnavailable when nothing can be read.
        """
        streams = [keys.attempts for keys in self._connection.partitions]
        ids = {stream: b"%d-%d" % seen.get(number, (0, 0)) for number, stream in enumerate(streams)}
        found, _ = self._connection.read_streams(ids, ENTRIES_MAX, 0)
        return {
            streams.index(stream): [_attempt(entry_id, data) for entry_id, (_, data) in entries]
            for stream, entries in found.items()
        }

    def forgeries(self, seen: tuple[int, int]) -> list[Told]:
        """What was told of forged codes behind what was seen; does not wait. Raises StoreUnavailable."""
        return forgeries.read(self._connection, seen)

    def setup(self) -> tuple[bytes, bytes]:
        """The deployment's constants as stored and its wrapped keyring: what no event carries. Raises StoreUnavailable."""
        constants = ("HGET", self._facts, "constants")
        blob = ("HGET", ControlKeys().keyring, "blob")
        found = self._connection.read([constants, blob])
        return found[0] or b"", found[1] or b""

    def mark(self, places: Mapping[int, Place]) -> None:
        """Tell the store up to where the ledger has each partition's events; it drops all but the last KEPT of those.

        With durability `replicated` it returns when the replicas have this mark on their disks, and so, in the order of
        replication, every event that was read before it: so what is read is marked before it is committed, and the ledger
        never has what a promoted replica might lack. Raises StoreUnavailable, NotReplicated.
        """
        calls = [
            Call(scripts.MARK, self._names[number], [_id(number, place), _oldest_kept(number, place), KEPT])
            for number, place in places.items()
        ]
        for outcome in self._connection.run(calls):
            if isinstance(outcome, PickgateError):
                raise outcome

    def publish(self, *, caught_up_ms: int, alarm: str = "") -> None:
        """Say to every server up to which time all events are in the ledger (unix ms), and what is wrong, '' for nothing.

        Raises StoreUnavailable.
        """
        values: dict[str, str | int] = {"caught_up": caught_up_ms, "alarm": alarm}
        pairs: list[str | int] = [part for fact, field in FACTS.items() for part in (field, values[fact])]
        self._connection.write([("HSET", self._facts, *pairs)])


def _id(number: int, place: Place) -> bytes:
    """The stream's own id of a place."""
    return b"%d-0" % place.seq if number == CONTROL else b"%d-%d" % place


def _entries(number: int, found: Sequence[Any]) -> Iterator[Entry]:
    if number == CONTROL:
        for entry_id, values in found:
            yield Entry(_CONTROL_EPOCH, int(entry_id.partition(b"-")[0]), pack_fields(values))
        return
    for entry_id, (_, data) in found:
        epoch, _, seq = entry_id.partition(b"-")
        yield Entry(int(epoch), int(seq), data)


def _attempt(entry_id: bytes, data: bytes) -> Attempt:
    stream_ms, _, stream_seq = entry_id.partition(b"-")
    return Attempt(int(stream_ms), int(stream_seq), data)


def _oldest_kept(number: int, place: Place) -> bytes:
    """Id of the oldest event to keep when the ledger has all up to `place`.

    Numbers count one by one, so the number says how many lie behind it. Of an epoch that has just begun nothing is dropped, and
    of the epoch before it only what was dropped while it lasted. Epochs before that one go, if there are more than KEPT in all:
    a store that ends often begins many, with few events each.
    """
    if place.seq > KEPT:
        return _id(number, Place(place.epoch, place.seq - KEPT))
    return _id(number, Place(place.epoch - 1, 0)) if place.epoch > 1 and number != CONTROL else b""
