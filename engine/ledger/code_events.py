"""Code events as a mall is told of them: what happened to its codes, with the order that each was made for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, select

from engine.claims import Decision, EventId, LineState, State
from engine.errors import InvalidInput
from engine.ledger import database, feed
from engine.ledger.feed import Page
from engine.ledger.ledger import Ledger
from engine.ledger.records import Record
from engine.ledger.records import read as read_record
from engine.ledger.tables import EVENTS
from engine.state.events import Event, EventType
from engine.state.streams import Place

TYPES: Final = frozenset(
    {
        EventType.ISSUED,
        EventType.HELD,
        EventType.CONFIRMED,
        EventType.EXTENDED,
        EventType.REDEEMED,
        EventType.REVERSED,
        EventType.TRIED,
        EventType.LOCKED,
        EventType.REVIEWED,
        EventType.VOIDED,
        EventType.EXPIRED,
    }
)
"""What happens to codes; the others are of stock, or of the store itself."""

_MAKING: Final = frozenset({EventType.ISSUED, EventType.HELD})
_CODES_AT_ONCE: Final = 200
_STATE_AFTER: Final = {
    EventType.ISSUED: State.LIVE,
    EventType.HELD: State.HELD,
    EventType.CONFIRMED: State.LIVE,
    EventType.LOCKED: State.LOCKED,
    EventType.VOIDED: State.VOIDED,
    EventType.EXPIRED: State.EXPIRED,
}
"""Of the others their own facts say it, or they leave it as it was."""


@dataclass(frozen=True, slots=True)
class CodeEvent:
    """One change of one code."""

    event: EventId
    type: EventType
    at_ms: int
    mall_id: int
    store_id: int
    terminal_id: int
    uid: bytes
    order_id: str
    actor: str
    state: State | None
    """After it; None: as it was before."""
    lines: tuple[LineState, ...]
    expires_at_s: int
    """When it expires from then on; 0: not moved."""
    cycle: int
    tries: int
    reason: str
    decision: Decision | None
    release: bool
    replaces: bytes


def page(
    ledger: Ledger,
    cursor: Mapping[int, Place],
    *,
    mall_id: int,
    types: Collection[EventType] = TYPES,
    count: int = 100,
    first_partition: int = 0,
) -> Page[CodeEvent]:
    """The next events of a mall's codes behind a cursor, at most `count` (1 .. feed.PAGE_MAX), in order within each partition.

    Raises InvalidInput, CursorAhead, CursorCut, LedgerUnavailable.
    """
    if mall_id < 1:
        # 0 would mean all of them, and a feed is one mall's.
        raise InvalidInput(f"mall_id is {mall_id}; expected a mall", field="mall_id")
    if not set(types) <= TYPES:
        raise InvalidInput("types names an event that is of no code", field="types")
    with database.snapshot(ledger.engine) as connection:
        found = feed.read(
            connection,
            cursor,
            types=types,
            mall_id=mall_id,
            count=count,
            first_partition=first_partition,
        )
        orders = _orders(connection, found.items)
    return Page(
        tuple(_told(event, orders[event.id]) for event in found.items),
        found.cursor,
        found.complete,
        found.next_partition,
    )


def _orders(connection: Connection, events: Sequence[Event]) -> dict[EventId, str]:
    """The order that each event's code was made for; '' where the ledger no longer has the event that made it."""
    made: dict[bytes, list[tuple[Place, str]]] = {}
    for uids in feed.in_pieces(sorted({event.uid for event in events}), _CODES_AT_ONCE):
        rows = connection.execute(
            select(EVENTS.c.partition, EVENTS.c.epoch, EVENTS.c.seq, EVENTS.c.data)
            .where(EVENTS.c.uid.in_(uids), EVENTS.c.type.in_(sorted(_MAKING)))
            .order_by(EVENTS.c.epoch, EVENTS.c.seq)
        )
        for event in map(feed.parsed, rows):
            place = Place(event.id.epoch, event.id.seq)
            made.setdefault(event.uid, []).append((place, _record(event).order.decode()))
    return {
        event.id: _order(made.get(event.uid, ()), Place(event.id.epoch, event.id.seq)) for event in events
    }


def _order(made: Sequence[tuple[Place, str]], place: Place) -> str:
    """Of the lives of a uid the one that an event is of: the last that began by then."""
    return next((order for began, order in reversed(made) if began <= place), "")


def _record(event: Event) -> Record:
    return read_record(event.facts["record"])


def _told(event: Event, order_id: str) -> CodeEvent:
    facts = event.facts
    lines: tuple[LineState, ...] = facts.get("lines", ())
    expires_at_s, replaces = facts.get("expires_at_s", 0), b""
    if event.type in _MAKING:
        record = _record(event)
        lines = tuple(LineState(line.sku, line.count, line.left) for line in record.lines)
        expires_at_s, replaces = record.exp, record.replaces
    return CodeEvent(
        event=event.id,
        type=event.type,
        at_ms=event.at_ms,
        mall_id=event.mall_id,
        store_id=event.store_id,
        terminal_id=event.terminal_id,
        uid=event.uid,
        order_id=order_id,
        actor=event.actor,
        state=_state(event.type, facts),
        lines=lines,
        expires_at_s=expires_at_s,
        cycle=facts.get("cycle", 0),
        tries=facts.get("tries", 0),
        reason=facts.get("reason", ""),
        decision=Decision(facts["decision"]) if event.type is EventType.REVIEWED else None,
        release=facts.get("release", False),
        replaces=replaces,
    )


def _state(type_: EventType, facts: Mapping[str, Any]) -> State | None:
    state: State | None = facts.get("state")
    return state if state is not None else _STATE_AFTER.get(type_)
