"""Consumers of the feeds: up to where each has acknowledged. A name's cursor is stored, and only goes forward.

A name belongs to the caller who acknowledged under it first, where callers are known: nobody else moves its cursor, or begins where it
stands. One that was used where they are not known belongs to nobody until somebody known acknowledges under it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from sqlalchemy import ColumnElement, Connection, and_, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from engine import limits
from engine.errors import ConsumerTaken, CursorBack, Exhausted, InvalidInput, NotFound
from engine.ledger import database, feed
from engine.ledger.feed import Cursor
from engine.ledger.ledger import Ledger
from engine.ledger.tables import CONSUMERS
from engine.state.streams import START, Place

CONSUMERS_MAX: Final = 100
"""Names of one feed and mall: each is a row, and whoever may acknowledge could make more of them. Of each mall, so that none can use up
what another needs."""
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

    @property
    def field(self) -> str:
        """What requests call the name."""
        return "wallet" if self.feed is Feed.SETTLEMENTS else "consumer"

    def __post_init__(self) -> None:
        field = self.field
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
    owner: str = ""
    """To whom its name belongs; '': to nobody yet."""


def acknowledged(ledger: Ledger, consumer: Consumer, *, caller: str = "") -> Acknowledged | None:
    """What a consumer acknowledged last; None for one that never has.

    caller: who asks; '' where callers are not known. Raises ConsumerTaken, LedgerUnavailable.
    """
    with database.snapshot(ledger.engine) as connection:
        stored = _stored(connection, consumer)
    _check_owner(stored, caller)
    return stored


def list_acknowledged(ledger: Ledger) -> list[Acknowledged]:
    """Every consumer, by feed, mall and name. Raises LedgerUnavailable."""
    with database.snapshot(ledger.engine) as connection:
        rows = connection.execute(
            select(CONSUMERS).order_by(CONSUMERS.c.feed, CONSUMERS.c.mall_id, CONSUMERS.c.name)
        ).all()
    return [
        Acknowledged(
            Consumer(Feed(row.feed), row.mall_id, row.name),
            feed.parse_cursor(row.cursor),
            row.at_ms,
            row.owner,
        )
        for row in rows
    ]


def release(ledger: Ledger, consumer: Consumer) -> Acknowledged:
    """Let a name belong to nobody, so that whoever acknowledges under it next has it; gives how it was.

    What it has acknowledged stays. Raises NotFound, LedgerUnavailable.
    """
    with database.writing(ledger.engine) as connection:
        stored = _stored(connection, consumer, to_change=True)
        if stored is None:
            of = f"of mall {consumer.mall_id}" if consumer.mall_id else "of all malls"
            raise NotFound(
                f"no {consumer.field} {consumer.name} has acknowledged {consumer.feed.value} {of}",
                field="name",
            )
        connection.execute(update(CONSUMERS).where(_is(consumer)).values(owner=""))
    return stored


def acknowledge(
    ledger: Ledger, consumer: Consumer, cursor: Mapping[int, Place], *, at_ms: int, caller: str = ""
) -> Acknowledged:
    """Store up to where a consumer has everything; what is stored already may be said again.

    caller: who says so, and to whom the name belongs from then on; '' where callers are not known, and to whom it belongs does not matter.
    Raises ConsumerTaken, CursorBack, CursorAhead, Exhausted (too many names), LedgerUnavailable.
    """
    text = feed.cursor_text(cursor)
    values: dict[str, str | int] = {"cursor": text, "at_ms": at_ms}
    with database.writing(ledger.engine) as connection:
        stored = _stored(connection, consumer, to_change=True)
        _check_owner(stored, caller)
        feed.check_not_ahead(cursor, feed.ends(connection))
        if stored is None and _add(connection, consumer, {**values, "owner": caller}):
            return Acknowledged(consumer, dict(cursor), at_ms, caller)
        # Its first one may have been stored by another call meanwhile.
        stored = stored or _stored(connection, consumer, to_change=True)
        assert stored is not None
        _check_owner(stored, caller)
        for number, before in sorted(stored.cursor.items()):
            after = cursor.get(number, START)
            if after < before:
                raise CursorBack(
                    f"the cursor says {f'{number}:{after}' if after != START else f'nothing of partition {number}'}, and {consumer.name}"
                    f" has acknowledged {number}:{before} already: nothing was changed; acknowledge what came behind it",
                    field="cursor",
                )
        owner = stored.owner or caller
        if text == feed.cursor_text(stored.cursor):
            if owner == stored.owner:
                return stored
            values["at_ms"] = at_ms = stored.at_ms
        connection.execute(update(CONSUMERS).where(_is(consumer)).values(**values, owner=owner))
        return Acknowledged(consumer, dict(cursor), at_ms, owner)


def _check_owner(stored: Acknowledged | None, caller: str) -> None:
    """See that a name does not belong to somebody else. To whom it does is not said: callers need not know of one another."""
    if stored is not None and caller and stored.owner not in ("", caller):
        consumer = stored.consumer
        raise ConsumerTaken(
            f"the {consumer.field} {consumer.name} belongs to another caller: use a name of your own; if it is yours under another"
            " identity, an operator lets go of it (pickgate ledger release)",
            field=consumer.field,
        )


def _add(connection: Connection, consumer: Consumer, values: Mapping[str, str | int]) -> bool:
    """Make the row of a consumer; False when it is there by now."""
    name = consumer.feed.value
    known = connection.execute(
        select(func.count()).where(CONSUMERS.c.feed == name, CONSUMERS.c.mall_id == consumer.mall_id)
    ).scalar_one()
    if known >= CONSUMERS_MAX:
        raise Exhausted(
            f"{known} consumers have acknowledged these {name} already, and there may be no more: use a name that is known"
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
    wanted = select(CONSUMERS.c.cursor, CONSUMERS.c.at_ms, CONSUMERS.c.owner).where(_is(consumer))
    # PostgreSQL locks the row until the commit; SQLite has one writer at a time anyway, and ignores this.
    row = connection.execute(wanted.with_for_update() if to_change else wanted).first()
    if row is None:
        return None
    return Acknowledged(consumer, feed.parse_cursor(row.cursor), row.at_ms, row.owner)
