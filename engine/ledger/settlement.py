"""Settlements: what each redemption releases to the parties of an order, and what each reversal takes back, to the fen.

The rule. At issue an order's amount is split: payee, role, level, amount. A code stands for so many units, all its lines together. After
each event that hands out or takes back units, a party is due

    amount x units that are out ÷ units at issue, rounded down to the fen,

and the settlement of the event is that less what was due before it. So the parts of a partial pickup add up to the whole: what was rounded
away comes with the last unit; a reversal takes back exactly what its redemptions released; and a refund, by which units leave the code, too.

A settlement is a function of the code's own events up to its own: nothing is stored for it, and whoever asks again gets the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, and_, select, tuple_

from engine.claims import EventId, Split
from engine.errors import InvalidInput
from engine.ledger import database, records
from engine.ledger.ledger import Ledger, read_heads
from engine.ledger.tables import EVENTS, ORDERS
from engine.state.codes import unpack_splits
from engine.state.events import Event, EventType, parse
from engine.state.streams import START, Place

PAGE_MAX: Final = 1_000
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


@dataclass(frozen=True, slots=True)
class Page:
    """Some settlements, and the places from which the next page goes on."""

    settlements: tuple[Settlement, ...]
    cursor: dict[int, Place]
    complete: bool
    """Whether there was nothing more behind them."""


def shares_due(splits: Sequence[Split], out: int, units: int) -> list[int]:
    """What each party is due when `out` of `units` units are out: see the module."""
    return [split.amount_fen * out // units if units else 0 for split in splits]


def cursor_text(cursor: Mapping[int, Place]) -> str:
    """A cursor as text: partition:epoch-number, separated by commas."""
    return ",".join(f"{number}:{place}" for number, place in sorted(cursor.items()) if place != START)


def parse_cursor(text: str) -> dict[int, Place]:
    """Read what `cursor_text` wrote; '' is the beginning. Raises InvalidInput."""
    cursor: dict[int, Place] = {}
    try:
        for part in text.split(",") if text else ():
            number, _, place = part.partition(":")
            epoch, _, seq = place.partition("-")
            cursor[int(number)] = Place(int(epoch), int(seq))
    except ValueError:
        raise InvalidInput(
            f"the cursor {text[:60]!r} is none; expected what an earlier page ended with", field="cursor"
        ) from None
    return cursor


def page(ledger: Ledger, cursor: Mapping[int, Place], *, count: int = 100, mall_id: int = 0) -> Page:
    """The next settlements behind a cursor, about `count` (1 .. PAGE_MAX), in order within each partition. Raises LedgerUnavailable."""
    if not 1 <= count <= PAGE_MAX:
        raise InvalidInput(f"count is {count}; expected 1 to {PAGE_MAX}", field="count")
    found: list[Settlement] = []
    places = dict(cursor)
    complete = True
    with database.snapshot(ledger.engine) as connection:
        for number, head in read_heads(connection).items():
            left = count - len(found)
            if left <= 0:
                complete = False
                break
            rows = _moving(connection, number, places.get(number, START), head.place, left, mall_id)
            found += _settle(connection, number, rows)
            if len(rows) == left:
                complete = False
                places[number] = Place(rows[-1].id.epoch, rows[-1].id.seq)
            else:
                places[number] = head.place
    return Page(tuple(found), places, complete)


def of_order(ledger: Ledger, mall_id: int, order_id: str) -> tuple[Settlement, ...]:
    """Every settlement of an order, in order. Raises LedgerUnavailable."""
    with database.snapshot(ledger.engine) as connection:
        uids = connection.execute(
            select(ORDERS.c.uid)
            .where(ORDERS.c.mall_id == mall_id, ORDERS.c.order_id == order_id)
            .distinct()
            .order_by(ORDERS.c.uid)
        ).scalars()
        found: list[Settlement] = []
        for uid in list(uids):
            for making, event, before, after in _lives(_events_of(connection, bytes(uid))):
                if making.mall_id == mall_id and _order(making) == order_id:
                    found += _settlement(making, event, before, after)
    return tuple(found)


def _moving(
    connection: Connection, number: int, after: Place, upto: Place, count: int, mall_id: int
) -> list[Event]:
    """Events behind a place that may move units of a code."""
    wanted = and_(
        EVENTS.c.partition == number,
        tuple_(EVENTS.c.epoch, EVENTS.c.seq) > tuple_(*after),
        tuple_(EVENTS.c.epoch, EVENTS.c.seq) <= tuple_(*upto),
        EVENTS.c.type.in_(sorted(_MOVING)),
    )
    if mall_id:
        wanted = and_(wanted, EVENTS.c.mall_id == mall_id)
    rows = connection.execute(
        select(EVENTS.c.epoch, EVENTS.c.seq, EVENTS.c.data)
        .where(wanted)
        .order_by(EVENTS.c.epoch, EVENTS.c.seq)
        .limit(count)
    )
    return [_parsed(number, row) for row in rows]


def _parsed(number: int, row: Any) -> Event:
    return parse(number, b"%d-%d" % (row.epoch, row.seq), database.raw(row.data))


def _events_of(connection: Connection, uid: bytes) -> list[Event]:
    """A code's events in order: those of earlier lives of its uid too."""
    rows = connection.execute(
        select(EVENTS.c.partition, EVENTS.c.epoch, EVENTS.c.seq, EVENTS.c.data)
        .where(EVENTS.c.uid == uid)
        .order_by(EVENTS.c.partition, EVENTS.c.epoch, EVENTS.c.seq)
    )
    return [_parsed(row.partition, row) for row in rows]


def _settle(connection: Connection, number: int, moving: Sequence[Event]) -> list[Settlement]:
    """The settlements of events of one partition, in their order."""
    settled: dict[EventId, list[Settlement]] = {}
    for uid in {event.uid for event in moving}:
        for making, event, before, after in _lives(_events_of(connection, uid)):
            settled[event.id] = _settlement(making, event, before, after)
    return [one for event in moving for one in settled.get(event.id, [])]


def _lives(events: Sequence[Event]) -> Iterator[tuple[Event, Event, int, int]]:
    """Each event that moved units: the one that made the code, itself, and the units that were out before and after."""
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
