"""Reading on in the event streams: what has happened since, of all partitions together.

A follower remembers how far it has read in each partition's stream. Epochs rise and sequences within them, so stream ids only
ever rise, and a position stays good when the server behind a partition changes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from engine.errors import PickgateError, StoreUnavailable
from engine.state import codes, events, layouts
from engine.state.connection import Connection
from engine.state.events import Event, EventType

ENTRIES_MAX: Final = 512
"""Entries of one partition in one read: about 100 KB."""
_log = logging.getLogger(__name__)

_MALL, _STORE = layouts.EVENT.names.index("mall"), layouts.EVENT.names.index("store")


class Following:
    """One reader of all partitions' events, from now on. For one thread at a time."""

    def __init__(self, connection: Connection) -> None:
        """Go to the end of every stream; of an owner among several that can't be reached, when it can. Raises StoreUnavailable."""
        self._connection = connection
        self._streams = [names.events for names in connection.partitions]
        self._positions: dict[int, bytes] = {}
        self._unread: frozenset[bytes] = frozenset()
        failed = self._go_to_ends(connection.by_owner())
        if failed is not None and not self._positions:
            raise failed

    def _go_to_ends(self, groups: list[list[int]]) -> PickgateError | None:
        """Go to the end of the streams of some partitions, those of one owner together; the first error met."""
        failed: PickgateError | None = None
        for group in groups:
            commands = [("XREVRANGE", self._streams[number], "+", "-", "COUNT", 1) for number in group]
            try:
                last = self._connection.read_of(group, commands)
            except PickgateError as error:
                failed = failed or error
                continue
            self._positions.update(
                (number, found[0][0] if found else b"0-0") for number, found in zip(group, last, strict=True)
            )
        return failed

    def read(self, block_ms: int, wanted: Callable[[int, int], bool]) -> list[Event]:
        """Events behind the last ones read, of each partition in order: those of the (mall, store) that are wanted.

        Waits for at most block_ms milliseconds (1 ..; less than the store's timeout) while nothing happens anywhere; what is wanted
        is asked after that. Of several owners one that does not answer is read later on, when it does. Raises StoreUnavailable; then
        nothing counts as read, and once when an owner's end was found that was not known at the beginning: what happened
        there before is not told.
        """
        unknown = [number for number in range(len(self._streams)) if number not in self._positions]
        if unknown and self._go_to_ends([unknown]) is None:
            raise StoreUnavailable("a part of the store that could not be followed is followed from now on")
        places = {self._streams[number]: position for number, position in self._positions.items()}
        streams, unread = self._connection.read_streams(places, ENTRIES_MAX, block_ms)
        if unread and not self._unread:
            _log.warning("%d partitions can't be followed now, and will be", len(unread))
        self._unread = unread
        found: list[Event] = []
        for stream, entries in streams.items():
            partition = self._streams.index(stream)
            for entry_id, (_, data) in entries:
                head = layouts.EVENT.unpack(data)
                if wanted(head[_MALL], head[_STORE]):
                    found.append(events.parse(partition, entry_id, data))
                self._positions[partition] = entry_id
        return found


def touched_skus(event: Event) -> set[int]:
    """The SKUs whose stock figures an event changed."""
    if event.type in (EventType.ISSUED, EventType.HELD):
        return {line.sku_id for line in codes.parse_record(event.uid, event.facts["record"]).lines}
    if "lines" in event.facts:
        return {line.sku_id for line in event.facts["lines"]}
    return {event.facts["sku_id"]} if "sku_id" in event.facts else set()
