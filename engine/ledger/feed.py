"""Feeds: what of the ledger lies behind a cursor, a page at a time, in order within each partition.

A cursor says of every partition up to which event its bearer has it. It is a value and nothing is kept for it here, so a page may be asked for
again, by several readers, and gives the same. What a page costs is bounded by the events that it looks at, not by how many of them are wanted.

A cursor stays good for as long as the ledger has what lies behind it. Rows that retention has cut off can't be told any more: then a
page is refused (CursorCut) rather than told with a gap in it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeAlias, TypeVar

from sqlalchemy import Connection, and_, func, select, tuple_

from engine import limits
from engine.errors import CursorAhead, CursorCut, InvalidInput
from engine.ledger import cuts, database
from engine.ledger.ledger import read_heads, since_ms
from engine.ledger.tables import EVENTS
from engine.state.events import Event, EventType, parse
from engine.state.streams import CONTROL, START, Place

T = TypeVar("T")

Cursor: TypeAlias = dict[int, Place]
"""By partition, the last event that its bearer has; a partition that is missing: none."""

PAGE_MAX: Final = 1_000
LOOKED_AT_MAX: Final = 20_000
"""Events that one page looks at, wanted or not: a few megabytes, some tens of milliseconds."""
CURSOR_CHARS_MAX: Final = 40 * 1_024
"""A cursor of the most partitions there can be, with long numbers; of 16 partitions it has some 200 characters."""
_NUMBER_MAX: Final = 2**53
_SHOWN: Final = 60


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """What was found, and the cursor behind it."""

    items: tuple[T, ...]
    cursor: Cursor
    complete: bool
    """Whether there was nothing more behind them."""
    next_partition: int = 0
    """Where the next page should begin, so that a busy partition does not keep the others waiting."""


def cursor_text(cursor: Mapping[int, Place]) -> str:
    """A cursor as text: partition:epoch-number, separated by commas."""
    return ",".join(f"{number}:{place}" for number, place in sorted(cursor.items()) if place != START)


def parse_cursor(text: str) -> Cursor:
    """Read what `cursor_text` wrote; '' is the beginning. Raises InvalidInput."""
    cursor: Cursor = {}
    for part in text.split(",") if text else ():
        number, colon, place = part.partition(":")
        epoch, dash, seq = place.partition("-")
        digits = (number, epoch, seq)
        if (
            not (colon and dash and all(one.isascii() and one.isdigit() for one in digits))
            or any(len(one) > len(str(_NUMBER_MAX)) for one in digits)
            or int(number) >= limits.PARTITIONS_MAX
            or int(number) in cursor
        ):
            raise InvalidInput(
                f"the cursor {text[:_SHOWN]!r} is none; expected what an earlier answer ended with",
                field="cursor",
            )
        cursor[int(number)] = Place(int(epoch), int(seq))
    return cursor


def ends(connection: Connection) -> Cursor:
    """The cursor behind everything that the ledger has; the set-up's partition is in no feed."""
    return {number: head.place for number, head in read_heads(connection).items() if number != CONTROL}


def check_not_ahead(cursor: Mapping[int, Place], end_of: Mapping[int, Place]) -> None:
    """See that the ledger, which ends with `end_of`, has come as far as a cursor. Raises CursorAhead."""
    for number, place in sorted(cursor.items()):
        end = end_of.get(number, START)
        if place > end:
            raise CursorAhead(
                f"the cursor says {number}:{place}, and the ledger ends with"
                f" {f'{number}:{end}' if end != START else f'nothing in partition {number}'}: it is no cursor of this ledger, or the"
                " ledger was put back to an older state",
                field="cursor",
            )


def oldest(connection: Connection) -> Cursor:
    """The cursor before the oldest events that are kept."""
    return {number: place for number in ends(connection) if (place := cut_place(connection, number)) != START}


def cut_place(connection: Connection, number: int) -> Place:
    """Behind which event a partition's rows are kept; START when nothing was ever cut off."""
    by_order = cuts.places(connection).get(number, START)
    if by_order != START:
        return by_order
    first = connection.execute(
        select(EVENTS.c.epoch, EVENTS.c.seq)
        .where(EVENTS.c.partition == number)
        .order_by(EVENTS.c.epoch, EVENTS.c.seq)
        .limit(1)
    ).first()
    if first is None:
        head = read_heads(connection).get(number)
        return START if head is None else head.place
    return Place(first.epoch, first.seq - 1) if first.seq > 1 else START


def read(
    connection: Connection,
    cursor: Mapping[int, Place],
    *,
    types: Collection[EventType],
    mall_id: int = 0,
    count: int = 100,
    first_partition: int = 0,
) -> Page[Event]:
    """The next events of some types behind a cursor, at most `count` (1 .. PAGE_MAX).

    mall_id: only of this mall; 0: of all. Raises InvalidInput, CursorAhead, CursorCut.
    """
    if not 1 <= count <= PAGE_MAX:
        raise InvalidInput(f"count is {count}; expected 1 to {PAGE_MAX}", field="count")
    heads = ends(connection)
    check_not_ahead(cursor, heads)
    places = dict(cursor)
    behind = [number for number, head in sorted(heads.items()) if places.get(number, START) < head]
    behind = [number for number in behind if number >= first_partition] + [
        number for number in behind if number < first_partition
    ]
    found: list[Event] = []
    budget = LOOKED_AT_MAX
    for number in behind:
        if len(found) >= count or budget <= 0:
            return Page(tuple(found), places, False, number)
        after = places.get(number, START)
        if after < (kept := cut_place(connection, number)):
            raise _cut(number, after, kept)
        upto, looked_at = _upto(connection, number, after, heads[number], budget)
        budget -= looked_at
        left = count - len(found)
        events = _events(connection, number, after, upto, types, mall_id, left)
        found += events
        if len(events) == left and (last := _place(events[-1])) < heads[number]:
            places[number] = last
            return Page(tuple(found), places, False, number + 1)
        places[number] = upto
        if upto < heads[number]:
            return Page(tuple(found), places, False, number + 1)
    return Page(tuple(found), places, True)


def _cut(number: int, after: Place, kept: Place) -> CursorCut:
    return CursorCut(
        f"the cursor stands at {f'{number}:{after}' if after != START else f'the beginning of partition {number}'}, and what lies"
        f" behind it up to {number}:{kept} is no longer kept: take that from the backup of the ledger, then begin with the oldest"
        f" that is kept (oldest), or with a cursor that says {number}:{kept} instead",
        field="cursor",
    )


def _upto(connection: Connection, number: int, after: Place, head: Place, budget: int) -> tuple[Place, int]:
    """Up to where a page looks in a partition, and how many events at most that are.

    Numbers count one by one within an epoch, so they say how many events lie between two places.
    """
    after = Place(max(after.epoch, 1), after.seq)
    upto = Place(after.epoch, after.seq + budget)
    if head.epoch == after.epoch:
        upto = min(upto, head)
        return upto, upto.seq - after.seq
    last = connection.execute(
        select(func.max(EVENTS.c.seq)).where(EVENTS.c.partition == number, EVENTS.c.epoch == after.epoch)
    ).scalar()
    if (last or 0) > upto.seq:
        return upto, budget
    # The epoch ends within the page: the next page begins with the one behind it.
    return Place(after.epoch + 1, 0), max(1, (last or 0) - after.seq)


def _events(
    connection: Connection,
    number: int,
    after: Place,
    upto: Place,
    types: Collection[EventType],
    mall_id: int,
    count: int,
) -> list[Event]:
    place = tuple_(EVENTS.c.epoch, EVENTS.c.seq)
    wanted = and_(
        EVENTS.c.partition == number,
        place > tuple_(*after),
        place <= tuple_(*upto),
        EVENTS.c.type.in_(sorted(types)),
        # Where each day has a table, only those of the page's days are looked into.
        EVENTS.c.at_ms >= since_ms(connection, number, after),
    )
    if mall_id:
        wanted = and_(wanted, EVENTS.c.mall_id == mall_id)
    rows = connection.execute(
        select(EVENTS.c.partition, EVENTS.c.epoch, EVENTS.c.seq, EVENTS.c.data)
        .where(wanted)
        .order_by(EVENTS.c.epoch, EVENTS.c.seq)
        .limit(count)
    )
    return [parsed(row) for row in rows]


def parsed(row: Any) -> Event:
    """The event of a row with its number and its data."""
    return parse(row.partition, b"%d-%d" % (row.epoch, row.seq), database.raw(row.data))


def _place(event: Event) -> Place:
    return Place(event.id.epoch, event.id.seq)


def in_pieces(values: Sequence[T], size: int) -> list[Sequence[T]]:
    """Cut a sequence into pieces: databases bound how many parameters a statement may have."""
    return [values[at : at + size] for at in range(0, len(values), size)]
