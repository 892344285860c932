"""Settlements: what each redemption releases to the parties of an order, and what each reversal takes back, to the fen.

The rule. At issue an order's amount is split: payee, role, level, amount. A code stands for so many units, all its lines together. After
each event that hands out or takes back units, a party is due

    amount x units that are out ÷ units at issue, rounded down to the fen,

and the settlement of the event is that less what was due before it. So the parts of a partial pickup add up to the whole: what was rounded
away comes with the last unit; a reversal takes back exactly what its redemptions released; and a refund, by which units leave the code, too.

A settlement is a function of the code's own events up to its own: nothing is stored for it, and whoever asks again gets the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from sqlalchemy import Connection, select

from engine.claims import EventId, Split
from engine.errors import InvalidInput
from engine.ledger import database, feed, records
from engine.ledger.feed import PAGE_MAX, Page
from engine.ledger.ledger import Ledger
from engine.ledger.tables import EVENTS, ORDERS
from engine.state.codes import unpack_splits
from engine.state.events import Event, EventType
from engine.state.streams import Place

_CODES_AT_ONCE: Final = 200
"""Codes whose events are read by one statement; a code has a handful of them as a rule."""
_MOVING: Final = frozenset({EventType.REDEEMED, EventType.REVERSED, EventType.REVIEWED})
_MAKING: Final = frozenset({EventType.ISSUED, EventType.HELD})


@dataclass(frozen=True, slots=True)
class Share:
    """What one party gets by one event; negative: what is taken back."""

    payee: str
    role: str
    level: int
    amount_fen: int


@dataclass(frozen=True, slots=True)
class Settlement:
    """What one event settles. `event` is unique: a wallet books it once."""

    event: EventId
    at_ms: int
    mall_id: int
    store_id: int
    order_id: str
    uid: bytes
    reversal: bool
    shares: tuple[Share, ...]
    """One for each split of the order, in its order; a share may be 0."""


def shares_due(splits: Sequence[Split], out: int, units: int) -> list[int]:
    """What each party is due when `out` of `units` units are out: see the module."""
    return [split.amount_fen * out // units if units else 0 for split in splits]


def page(
    ledger: Ledger,
    cursor: Mapping[int, Place],
    *,
    count: int = 100,
    mall_id: int = 0,
    first_partition: int = 0,
) -> Page[Settlement]:
    """The next settlements behind a cursor, at most `count` (1 .. feed.PAGE_MAX), in order within each partition.

    mall_id: only of this mall; 0: of all. Raises InvalidInput, CursorAhead, CursorCut, LedgerUnavailable.
    """
    with database.snapshot(ledger.engine) as connection:
        found = feed.read(
            connection,
            cursor,
            types=_MOVING,
            mall_id=mall_id,
            count=count,
            first_partition=first_partition,
        )
        settlements = tuple(_settle(connection, found.items))
    return Page(settlements, found.cursor, found.complete, found.next_partition)


def of_order(
    ledger: Ledger,
    mall_id: int,
    order_id: str,
    *,
    count: int = PAGE_MAX,
    after: tuple[bytes, EventId] | None = None,
) -> tuple[Settlement, ...]:
    """Settlements of an order, by code and in the order of events, at most `count`, behind one (its code and event).

    Raises InvalidInput, LedgerUnavailable.
    """
    if not 1 <= count <= PAGE_MAX:
        raise InvalidInput(f"count is {count}; expected 1 to {PAGE_MAX}", field="count")
    found: list[Settlement] = []
    with database.snapshot(ledger.engine) as connection:
        uid = b"" if after is None else after[0]
        next_uid = ORDERS.c.uid >= uid
        while len(found) < count:
            found_uid = connection.execute(
                select(ORDERS.c.uid)
                .where(ORDERS.c.mall_id == mall_id, ORDERS.c.order_id == order_id, next_uid)
                .order_by(ORDERS.c.uid)
                .limit(1)
            ).scalar()
            if found_uid is None:
                break
            uid = bytes(found_uid)
            for making, event, before, now in _lives(_events_of(connection, [uid])):
                if making.mall_id == mall_id and _order(making) == order_id:
                    found += _settlement(making, event, before, now)
            if after is not None and after[0] == uid:
                found = [one for one in found if _number(one.event) > _number(after[1])]
            next_uid = ORDERS.c.uid > uid
    return tuple(found[:count])


def _number(event: EventId) -> Place:
    return Place(event.epoch, event.seq)


def _events_of(connection: Connection, uids: Sequence[bytes]) -> list[Event]:
    """The events of codes of one partition in order, those of earlier lives of their uids too."""
    rows = connection.execute(
        select(EVENTS.c.partition, EVENTS.c.epoch, EVENTS.c.seq, EVENTS.c.data)
        .where(EVENTS.c.uid.in_(uids))
        .order_by(EVENTS.c.uid, EVENTS.c.epoch, EVENTS.c.seq)
    )
    return [feed.parsed(row) for row in rows]


def _settle(connection: Connection, moving: Sequence[Event]) -> list[Settlement]:
    """The settlements of events, in their order."""
    settled: dict[EventId, list[Settlement]] = {}
    wanted = {event.id for event in moving}
    for uids in feed.in_pieces(sorted({event.uid for event in moving}), _CODES_AT_ONCE):
        for _, events in groupby(_events_of(connection, uids), key=lambda event: event.uid):
            for making, event, before, after in _lives(events):
                if event.id in wanted:
                    settled[event.id] = _settlement(making, event, before, after)
    return [one for event in moving for one in settled.get(event.id, [])]


def _lives(events: Iterable[Event]) -> Iterator[tuple[Event, Event, int, int]]:
    """Of one code, each event that moved units: the one that made the code, itself, and the units out before and after it."""
    making: Event | None = None
    out = 0
    for event in events:
        if event.type in _MAKING:
            making, out = event, 0
        elif making is not None and event.type in _MOVING:
            moved = _moved(event)
            if moved:
                yield making, event, out, out + moved
                out += moved


def _moved(event: Event) -> int:
    """Units that went out by an event; negative: that came back."""
    units: int = sum(line.count for line in event.facts["lines"])
    if event.type is EventType.REVERSED:
        return -units
    if event.type is EventType.REVIEWED and event.facts["state"].name == "VOIDED":
        return 0  # its lines are what was released, not handed out
    return units


def _order(making: Event) -> str:
    return records.read(making.facts["record"]).order.decode()


def _settlement(making: Event, event: Event, before: int, after: int) -> list[Settlement]:
    """The settlement of an event; none for an order without splits."""
    record = records.read(making.facts["record"])
    splits = unpack_splits(record.split)
    if not splits:
        return []
    units = sum(line.count for line in record.lines)
    due = zip(splits, shares_due(splits, before, units), shares_due(splits, after, units), strict=True)
    shares = tuple(Share(split.payee, split.role, split.level, new - old) for split, old, new in due)
    return [
        Settlement(
            event.id,
            event.at_ms,
            event.mall_id,
            event.store_id,
            record.order.decode(),
            event.uid,
            after < before,
            shares,
        )
    ]
