"""Consumers of the feeds: up to where each has acknowledged. A name's cursor is stored, and only goes forward."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from sqlalchemy import ColumnElement, Connection, and_, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from engine import limits
from engine.errors import CursorBack, Exhausted, InvalidInput
from engine.ledger import database, feed
from engine.ledger.feed import Cursor
from engine.ledger.ledger import Ledger
from engine.ledger.tables import CONSUMERS
from engine.state.streams import START, Place

CONSUMERS_MAX: Final = 1_000
"""Names of one feed: each is a row, and whoever may acknowledge could make more of them."""
NAME_CHARS_MAX: Final = 64
_NAME: Final = re.compile(r"[A-Za-z0-9._:-]+")


class Feed(Enum):
    """The feeds there are. Values are stored."""

    SETTLEMENTS = "settlements"
    CODE_EVENTS = "code_events"


@dataclass(frozen=True, slots=True)
class Consumer:
    """Who takes in a feed: a name among those that ask for the same mall's part of it (0: for all). Raises InvalidInput."""

    feed: Feed
    mall_id: int
    name: str

    def __post_init__(self) -> None:
        field = "wallet" if self.feed is Feed.SETTLEMENTS else "consumer"
        if not 1 <= len(self.name) <= NAME_CHARS_MAX or not _NAME.fullmatch(self.name):
            raise InvalidInput(
                f"{field} is {self.name[: NAME_CHARS_MAX + 1]!r}; expected 1 .. {NAME_CHARS_MAX} letters, digits, '.', '_', ':'"
                " and '-'",
                field=field,
            )
        if not 0 <= self.mall_id <= limits.ID_MAX:
            raise InvalidInput(f"mall_id is {self.mall_id}; expected 0 .. {limits.ID_MAX}", field="mall_id")


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Up to where a consumer has everything, and when it said so."""

    consumer: Consumer
    cursor: Cursor
    at_ms: int


def acknowledged(ledger: Ledger, consumer: Consumer) -> Acknowledged | None:
    """What a consumer acknowledged last; None for one that never has. Raises LedgerUnavailable."""
    with database.snapshot(ledger.engine) as connection:
        return _stored(connection, consumer)


def list_acknowledged(ledger: Ledger) -> list[Acknowledged]:
    """Every consumer, by feed, mall and name. Raises LedgerUnavailable."""
    with database.snapshot(ledger.engine) as connection:
        rows = connection.execute(
            select(CONSUMERS).order_by(CONSUMERS.c.feed, CONSUMERS.c.mall_id, CONSUMERS.c.name)
        ).all()
    return [
        Acknowledged(
            Consumer(Feed(row.feed), row.mall_id, row.name), feed.parse_cursor(row.cursor), row.at_ms
        )
        for row in rows
    ]


def acknowledge(
    ledger: Ledger, consumer: Consumer, cursor: Mapping[int, Place], *, at_ms: int
) -> Acknowledged:
    """Store up to where a consumer has everything; what is stored already may be said again.

    Raises CursorBack, CursorAhead, Exhausted (too many names), LedgerUnavailable.
    """
    made = Acknowledged(consumer, dict(cursor), at_ms)
    values: dict[str, str | int] = {"cursor": feed.cursor_text(cursor), "at_ms": at_ms}
    with database.writing(ledger.engine) as connection:
        feed.check_not_ahead(cursor, feed.ends(connection))
        stored = _stored(connection, consumer, to_change=True)
        if stored is None and _add(connection, consumer, values):
            return made
        # Its first one may have been stored by another call meanwhile.
        stored = stored or _stored(connection, consumer, to_change=True)
        assert stored is not None
        for number, before in sorted(stored.cursor.items()):
            after = cursor.get(number, START)
            if after < before:
                raise CursorBack(
                    f"the cursor says {f'{number}:{after}' if after != START else f'nothing of partition {number}'}, and {consumer.name}"
                    f" has acknowledged {number}:{before} already: nothing was changed; acknowledge what came behind it",
                    field="cursor",
                )
        if feed.cursor_text(cursor) == feed.cursor_text(stored.cursor):
            return stored
        connection.execute(update(CONSUMERS).where(_is(consumer)).values(**values))
        return made


def _add(connection: Connection, consumer: Consumer, values: Mapping[str, str | int]) -> bool:
    """Make the row of a consumer; False when it is there by now."""
    name = consumer.feed.value
    known = connection.execute(select(func.count()).where(CONSUMERS.c.feed == name)).scalar() or 0
    if known >= CONSUMERS_MAX:
        raise Exhausted(
            f"{known} consumers have acknowledged {name} already, and there may be no more: use a name that is known"
        )
    try:
        with connection.begin_nested():
            connection.execute(
                insert(CONSUMERS).values(feed=name, mall_id=consumer.mall_id, name=consumer.name, **values)
            )
    except IntegrityError:
        return False
    return True


def _is(consumer: Consumer) -> ColumnElement[bool]:
    return and_(
        CONSUMERS.c.feed == consumer.feed.value,
        CONSUMERS.c.mall_id == consumer.mall_id,
        CONSUMERS.c.name == consumer.name,
    )


def _stored(connection: Connection, consumer: Consumer, *, to_change: bool = False) -> Acknowledged | None:
    wanted = select(CONSUMERS.c.cursor, CONSUMERS.c.at_ms).where(_is(consumer))
    # PostgreSQL locks the row until the commit; SQLite has one writer at a time anyway, and ignores this.
    row = connection.execute(wanted.with_for_update() if to_change else wanted).first()
    return None if row is None else Acknowledged(consumer, feed.parse_cursor(row.cursor), row.at_ms)
