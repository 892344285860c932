"""Events: what each change of state appended to its partition's stream, read back into plain values.

State = fold(events), always: an event carries all that is needed to make the change again.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from engine.claims import EventId, LineState, State
from engine.state import layouts


class EventType(IntEnum):
    """Kinds of event. Numbers are stored: never renumber, never reuse."""

    ISSUED = 1
    REDEEMED = 2
    TRIED = 3
    LOCKED = 4
    VOIDED = 5
    EXPIRED = 6
    STOCK = 7
    EPOCH = 8
    HELD = 9
    CONFIRMED = 10
    EXTENDED = 11
    REVERSED = 12
    REVIEWED = 13
    TIER = 14
    TRANSFER_OUT = 15
    TRANSFER_IN = 16


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `facts` holds what its type says:

    ISSUED, HELD record (bytes as stored) · REDEEMED state, cycle, bucket, lines (count taken, left after), places, burnt (digest
    of the proof that it used up, or empty) · TRIED, LOCKED tries,
    bucket · VOIDED lines (left = released), reason · EXPIRED lines (left = released) · STOCK change, sku_id, amount,
    on_hand, reserved, baseline, tier, reason · EPOCH run_id · CONFIRMED, EXTENDED expires_at_s · REVERSED state, cycle,
    release, expires_at_s, lines (count = came back, left after), places, reason · REVIEWED decision, state, lines, reason · TIER
    sku_id, old, and the figures with the new tier · TRANSFER_OUT, TRANSFER_IN sku_id, amount, other_store_id, and
    TRANSFER_IN the departure (epoch and seq of the event by which the units left there). TRIED and LOCKED
    also say the verdict that counted. `places` says for each of the lines which line of the record it is (0-based): two of a
    record may name one SKU. Without places the lines are all that had something left, in the record's order.
    """

    id: EventId
    type: EventType
    at_ms: int
    mall_id: int
    store_id: int
    uid: bytes
    terminal_id: int
    request: bytes
    body: bytes
    actor: str
    facts: dict[str, Any]


def unpack_lines(data: bytes, offset: int, count: int) -> tuple[tuple[LineState, ...], int]:
    """`count` lines at `offset`, and the offset behind them."""
    size = layouts.LINE.size
    lines = tuple(LineState(*layouts.LINE.struct.unpack_from(data, offset + n * size)) for n in range(count))
    return lines, offset + count * size


def _places(data: bytes, offset: int, count: int) -> tuple[int, ...]:
    return tuple(place - 1 for place in data[offset : offset + count])


def parse(partition: int, entry_id: bytes, data: bytes) -> Event:
    """Read one event of a partition's stream: `entry_id` is the stream id (epoch-seq), `data` its field `e`."""
    epoch, seq = entry_id.split(b"-")
    _, type_, at_ms, mall, store, uid, terminal, request, body, actor_len = layouts.EVENT.unpack(data)
    at = layouts.EVENT.size
    actor = data[at : at + actor_len].decode()
    at += actor_len
    facts: dict[str, Any] = {}
    kind = EventType(type_)
    if kind in (EventType.ISSUED, EventType.HELD):
        facts["record"] = data[at:]
    elif kind is EventType.REDEEMED:
        state, facts["cycle"], facts["bucket"], count = data[at : at + 4]
        facts["state"] = State(state)
        facts["lines"], at = unpack_lines(data, at + 4, count)
        facts["places"], facts["burnt"] = _places(data, at, count), data[at + count :]
    elif kind in (EventType.TRIED, EventType.LOCKED):
        facts["tries"], facts["bucket"], facts["verdict"] = data[at : at + 3]
    elif kind in (EventType.CONFIRMED, EventType.EXTENDED):
        facts["expires_at_s"] = int.from_bytes(data[at : at + 4], "big")
    elif kind is EventType.REVERSED:
        state, facts["cycle"], released, facts["expires_at_s"], count, reason_len = struct.unpack_from(
            ">BBBIBH", data, at
        )
        facts["state"], facts["release"] = State(state), bool(released)
        facts["lines"], at = unpack_lines(data, at + 10, count)
        facts["places"] = _places(data, at, count)
        facts["reason"] = data[at + count : at + count + reason_len].decode()
    elif kind is EventType.REVIEWED:
        facts["decision"], state, count, reason_len = struct.unpack_from(">BBBH", data, at)
        facts["state"] = State(state)
        facts["lines"], at = unpack_lines(data, at + 5, count)
        facts["reason"] = data[at : at + reason_len].decode()
    elif kind is EventType.TIER:
        facts["sku_id"], facts["old"] = struct.unpack_from(">IB", data, at)
        facts.update(zip(layouts.STOCK.names, layouts.STOCK.unpack(data, at + 6), strict=True))
    elif kind in (EventType.TRANSFER_OUT, EventType.TRANSFER_IN):
        facts["sku_id"], facts["amount"], facts["other_store_id"] = struct.unpack_from(">III", data, at)
        if kind is EventType.TRANSFER_IN:
            facts["departure"] = layouts.DEPARTURE.unpack(data, at + 12)
    elif kind is EventType.VOIDED:
        count, reason_len = struct.unpack_from(">BH", data, at)
        facts["lines"], at = unpack_lines(data, at + 3, count)
        facts["reason"] = data[at : at + reason_len].decode()
    elif kind is EventType.EXPIRED:
        facts["lines"], at = unpack_lines(data, at + 1, data[at])
    elif kind is EventType.STOCK:
        change, sku_id, negative, amount = struct.unpack_from(">BIBI", data, at)
        at += 10
        facts.update(change=change, sku_id=sku_id, amount=-amount if negative else amount)
        facts.update(zip(layouts.STOCK.names, layouts.STOCK.unpack(data, at), strict=True))
        at += layouts.STOCK.size
        facts["reason"] = data[at + 2 :].decode()
    else:
        facts["run_id"] = data[at:].decode("ascii")
    return Event(
        EventId(partition, int(epoch), int(seq)),
        kind,
        at_ms,
        mall,
        store,
        uid,
        terminal,
        request,
        body,
        actor,
        facts,
    )
