"""From an event's bytes to the columns that repeat what it says."""

from __future__ import annotations

from typing import Final, NamedTuple

from engine.state import layouts
from engine.state.codes import NOBODY
from engine.state.events import EventType
from engine.state.streams import CONTROL, Entry, unpack_fields

CONTROL_TYPE: Final = 0
"""Type of a control event's row; EventType begins at 1."""

MAKING: Final = frozenset({EventType.ISSUED, EventType.HELD})
"""Types of events that make a code for an order."""
_ORDER_LEN: Final = layouts.RECORD.names.index("order_len")
_COUNTS: Final = tuple(layouts.RECORD.names.index(name) for name in ("n_lines", "n_bundles", "n_requests"))
_SIZES: Final = (layouts.LINE.size, layouts.BUNDLE.size, 12)


class EventRow(NamedTuple):
    """One row of tables.EVENTS, in the order of its columns."""

    partition: int
    epoch: int
    seq: int
    at_ms: int
    type: int
    mall_id: int
    store_id: int
    uid: bytes | None
    terminal_id: int
    actor: str
    data: bytes
    link: bytes


class OrderRow(NamedTuple):
    """One row of tables.ORDERS, in the order of its columns."""

    partition: int
    epoch: int
    seq: int
    mall_id: int
    order_id: str
    uid: bytes


def event_row(partition: int, entry: Entry, link: bytes) -> EventRow:
    """The row of an event."""
    epoch, seq, data = entry
    if partition == CONTROL:
        said = dict(reversed(unpack_fields(data)))
        actor = said.get(b"actor", b"").decode()
        return EventRow(
            partition, epoch, seq, int(said[b"at"]), CONTROL_TYPE, 0, 0, None, 0, actor, data, link
        )
    # The six bytes of a time are read here: this runs for every event, and Layout.unpack looks for them each time.
    _, type_, at, mall_id, store_id, uid, terminal_id, _, _, actor_len = layouts.EVENT.struct.unpack_from(
        data
    )
    return EventRow(
        partition,
        epoch,
        seq,
        int.from_bytes(at, "big"),
        type_,
        mall_id,
        store_id,
        uid if uid != NOBODY else None,
        terminal_id,
        data[layouts.EVENT.size : layouts.EVENT.size + actor_len].decode() if actor_len else "",
        data,
        link,
    )


def order_row(row: EventRow) -> OrderRow | None:
    """The row of ORDERS that goes with an event; None for one that makes no code."""
    if row.type not in MAKING or row.uid is None:
        return None
    data = row.data
    record_at = layouts.EVENT.size + int.from_bytes(data[layouts.EVENT.size - 2 : layouts.EVENT.size], "big")
    record = layouts.RECORD.struct.unpack_from(data, record_at)
    at = record_at + layouts.RECORD.size
    for count, size in zip(_COUNTS, _SIZES, strict=True):
        at += record[count] * size
    order_id = data[at : at + record[_ORDER_LEN]].decode()
    return OrderRow(row.partition, row.epoch, row.seq, row.mall_id, order_id, row.uid)
