"""Reading on in the event streams: what has happened since, of all partitions together.

A follower remembers how far it has read in each partition's stream. Epochs rise and sequences within them, so stream ids only
ever rise, and a position stays good when the server behind a partition changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from engine.state import codes, events, layouts
from engine.state.connection import Connection
from engine.state.events import Event, EventType

ENTRIES_MAX: Final = 512
"""Entries of one partition in one read: about 100 KB."""
_MALL, _STORE = layouts.EVENT.names.index("mall"), layouts.EVENT.names.index("store")


class Following:
    """One reader of all partitions' events, from now on. For one thread at a time."""

    def __init__(self, connection: Connection) -> None:
        """Go to the end of every stream. Raises StoreUnavailable."""
        self._connection = connection
        self._streams = [names.events for names in connection.partitions]
        last = connection.read_of(
            range(len(self._streams)),
            [("XREVRANGE", stream, "+", "-", "COUNT", 1) for stream in self._streams],
        )
        self._positions: list[bytes] = [found[0][0] if found else b"0-0" for found in last]

    def read(self, block_ms: int, wanted: Callable[[int, int], bool]) -> list[Event]:
        """Events behind the last ones read, of each partition in order: those of the (mall, store) that are wanted.

        Waits for at most block_ms milliseconds (1 ..; less than the store's timeout) while nothing happens anywhere; what is wanted
        is asked after that. Raises StoreUnavailable; then nothing counts as read.
        """
        command = ("XREAD", "COUNT", ENTRIES_MAX, "BLOCK", block_ms, "STREAMS")
        [streams] = self._connection.read([(*command, *self._streams, *self._positions)])
        found: list[Event] = []
        for stream, entries in _pairs(streams):
            partition = self._streams.index(stream)
            for entry_id, fields in entries:
                data = fields[b"e"]
                head = layouts.EVENT.unpack(data)
                if wanted(head[_MALL], head[_STORE]):
                    found.append(events.parse(partition, entry_id, data))
                self._positions[partition] = entry_id
        return found


def _pairs(streams: Any) -> Any:
    """What XREAD gave, as (stream, entries): the driver makes a list of pairs or a dict of it, and None of nothing."""
    return streams.items() if isinstance(streams, dict) else streams or ()


def touched_skus(event: Event) -> set[int]:
    """The SKUs whose stock figures an event changed."""
    if event.type in (EventType.ISSUED, EventType.HELD):
        return {line.sku_id for line in codes.parse_record(event.uid, event.facts["record"]).lines}
    if "lines" in event.facts:
        return {line.sku_id for line in event.facts["lines"]}
    return {event.facts["sku_id"]} if "sku_id" in event.facts else set()
