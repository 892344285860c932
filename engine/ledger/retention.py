"""Retention: what is old enough goes, in a way that what stays still verifies and rebuilds.

Events are kept for three years, refused attempts for 200 days. Rows of events go from the front of a partition only, up to a cut that is
signed (engine.ledger.cuts), and behind a checkpoint that stands for them. Kept longer are

- every event of a code that was still known three years ago, from the one that made it on: what is paid out by its later events
  follows from the earlier ones (engine.ledger.settlement);
- the last events of each partition, by which store and ledger find together (engine.ledger.writer);
- the set-up: it is small, and says who was allowed to do what.

Days are counted by the events' own times. A clock that is years ahead cuts nothing: no time counts that lies more than a day behind the
newest event.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection, Table, and_, delete, func, select, tuple_

from engine import limits
from engine.errors import LedgerUnavailable
from engine.ledger import checkpoints, cuts, database, day_tables
from engine.ledger.attempts import DAY_MS
from engine.ledger.fold import Fold
from engine.ledger.ledger import Head, Ledger
from engine.ledger.tables import ATTEMPT_DAYS, ATTEMPTS, DAYS, EVENTS, FORGERIES, ORDERS
from engine.ledger.writer import OVERLAP
from engine.state import layouts
from engine.state.streams import CONTROL, START, Place

ROWS_PER_DELETE: Final = 20_000
"""Rows that go in one transaction: the writer of events waits no longer than for that."""

_log = logging.getLogger(__name__)
_ISSUE_EPOCH, _ISSUE_SEQ = map(layouts.RECORD.names.index, ("issue_epoch", "issue_seq"))


@dataclass(frozen=True, slots=True)
class Removed:
    """What went."""

    cut: int
    """Number of the cut; 0: there was nothing to cut."""
    base: int
    """Number of the checkpoint that stands for what was cut."""
    places: Mapping[int, Place]
    """The last event that went, of each partition that was cut now."""
    events: int
    attempts: int


def cut(
    ledger: Ledger,
    key: Ed25519PrivateKey,
    *,
    now_ms: int,
    events_days: int = limits.LEDGER_EVENTS_DAYS,
    attempts_days: int = limits.LEDGER_ATTEMPTS_DAYS,
) -> Removed:
    """Take out what is older than so many days. Raises LedgerConflict when the ledger contradicts itself; LedgerUnavailable."""
    heads = {number: head for number, head in ledger.heads().items() if number != CONTROL}
    with database.snapshot(ledger.engine) as connection:
        now_ms = min(now_ms, _newest_ms(connection, heads) + DAY_MS)
    attempts = _drop_attempts(ledger, now_ms // DAY_MS - attempts_days)
    bounds, before = _bounds(ledger, key, heads, now_ms // DAY_MS - events_days)
    made, base = 0, 0
    places: dict[int, Place] = {}
    if any(place > before.get(number, START) for number, place in bounds.items()):
        made, base, places = _cut(ledger, key, heads, bounds, before, now_ms)
    # Also what an earlier cut left that was killed.
    events = _drop_events(ledger)
    checkpoints.drop_old(ledger)
    return Removed(made, base, places, events, attempts)


def _newest_ms(connection: Connection, heads: Mapping[int, Head]) -> int:
    newest = 0
    for number, head in heads.items():
        found = connection.execute(select(EVENTS.c.at_ms).where(_is(number, head.place))).scalar()
        newest = max(newest, found or 0)
    return newest


def _is(number: int, place: Place) -> Any:
    return and_(EVENTS.c.partition == number, EVENTS.c.epoch == place.epoch, EVENTS.c.seq == place.seq)


def _row_before(connection: Connection, number: int, place: Place, offset: int = 0) -> Place:
    """The last event in front of a place, or one `offset` further to the front; START for none."""
    found = connection.execute(
        select(EVENTS.c.epoch, EVENTS.c.seq)
        .where(EVENTS.c.partition == number, tuple_(EVENTS.c.epoch, EVENTS.c.seq) < tuple_(*place))
        .order_by(EVENTS.c.epoch.desc(), EVENTS.c.seq.desc())
        .offset(offset)
        .limit(1)
    ).first()
    return Place(*found) if found else START


def _bounds(
    ledger: Ledger, key: Ed25519PrivateKey, heads: Mapping[int, Head], first_day: int
) -> tuple[dict[int, Place], dict[int, Place]]:
    """Of each partition the last event in front of a day, no less than what the last cut's checkpoint stands for; and that."""
    with database.snapshot(ledger.engine) as connection:
        last = cuts.read_cut(connection, ledger, key.public_key())
        based: dict[int, Place] = {}
        for found in checkpoints.read_all(connection, ledger, key.public_key()) if last else ():
            if isinstance(found, checkpoints.Checkpoint) and last and found.number == last.base:
                based = {number: part.head.place for number, part in found.parts.items()}
        bounds = {}
        for number, head in heads.items():
            first = connection.execute(
                select(DAYS.c.epoch, DAYS.c.seq)
                .where(DAYS.c.partition == number, DAYS.c.day >= first_day)
                .order_by(DAYS.c.day)
                .limit(1)
            ).first()
            place = _row_before(connection, number, Place(*first)) if first else head.place
            bounds[number] = max(place, based.get(number, START))
    return bounds, based


def _cut(
    ledger: Ledger,
    key: Ed25519PrivateKey,
    heads: Mapping[int, Head],
    bounds: Mapping[int, Place],
    based: Mapping[int, Place],
    now_ms: int,
) -> tuple[int, int, dict[int, Place]]:
    """Write a checkpoint at the bounds, and a cut at or before them; gives their numbers, and where the cut is new."""
    begun = checkpoints.begin(ledger, key.public_key(), heads, remember=True, upto=bounds)
    reached = {
        number: checkpoints.fold_on(ledger, begun.folds[number], begun.head(ledger, number), place)
        for number, place in bounds.items()
    }
    base = checkpoints.keep(ledger, key, begun.folds, reached, at_ms=now_ms)
    with database.writing(ledger.engine) as connection:
        last = cuts.read_cut(connection, ledger, key.public_key())
        ends = dict(last.heads) if last else {}
        new = {}
        for number, fold in begun.folds.items():
            head = _cut_head(connection, number, fold, reached[number], heads[number])
            if head is not None and head.place > ends.get(number, ledger.first_head(number)).place:
                ends[number] = new[number] = head
        made = last.number + 1 if last else 1
        cuts.write_cut(connection, ledger, key, number=made, base=base.number, heads=ends, at_ms=now_ms)
    return made, base.number, {number: head.place for number, head in new.items()}


def _cut_head(connection: Connection, number: int, fold: Fold, bound: Head, last: Head) -> Head | None:
    """Where a partition can be cut: at its bound at most, in front of what made a code that is known there, and of the last events."""
    place = min(bound.place, _row_before(connection, number, last.place, OVERLAP - 1))
    unpack = layouts.RECORD.struct.unpack_from
    made = [unpack(data) for data in fold.records.values()]
    if made:
        first = min((one[_ISSUE_EPOCH], int.from_bytes(one[_ISSUE_SEQ], "big")) for one in made)
        place = min(place, _row_before(connection, number, Place(*first)))
    if place == START:
        return None
    link = connection.execute(select(EVENTS.c.link).where(_is(number, place))).scalar_one()
    behind = connection.execute(
        select(func.count()).where(
            EVENTS.c.partition == number,
            tuple_(EVENTS.c.epoch, EVENTS.c.seq) > tuple_(*place),
            tuple_(EVENTS.c.epoch, EVENTS.c.seq) <= tuple_(*bound.place),
        )
    ).scalar_one()
    return Head(place, bound.rows - behind, bytes(link))


# --- taking out ---------------------------------------------------------------------------------------------------------
def _drop_events(ledger: Ledger) -> int:
    """Take out every row up to the newest cut, some at a time; gives how many events that were."""
    ends = cuts.earliest(ledger)
    with database.writing(ledger.engine) as connection:
        for number, end in ends.items():
            # The day of the last of them stays: it says in which day the rest begins.
            days = and_(DAYS.c.partition == number, tuple_(DAYS.c.epoch, DAYS.c.seq) <= tuple_(*end))
            newest = connection.execute(select(func.max(DAYS.c.day)).where(days)).scalar()
            connection.execute(delete(DAYS).where(days, DAYS.c.day < (newest or 0)))
        first_day = connection.execute(
            select(func.min(DAYS.c.day)).where(DAYS.c.partition != CONTROL)
        ).scalar()
    dropped = _drop_day_tables(ledger, first_day or 0) if ends else 0
    for number, end in ends.items():
        _drop_rows(ledger, ORDERS, number, end)
        dropped += _drop_rows(ledger, EVENTS, number, end)
    return dropped


def _drop_day_tables(ledger: Ledger, first_day: int) -> int:
    """Where there are tables of days: drop those in which no partition has anything left."""
    if ledger.engine.dialect.name == "sqlite":
        return 0
    try:
        with database.writing(ledger.engine) as connection:
            return day_tables.drop_before(connection, first_day)
    except LedgerUnavailable as error:
        # Somebody reads them for longer than the drop may keep others waiting.
        _log.warning("tables of old days stay for now, and are dropped by the next cut: %s", error.message)
        return 0


def _drop_rows(ledger: Ledger, table: Table, number: int, end: Place) -> int:
    dropped = 0
    place = tuple_(table.c.epoch, table.c.seq)
    while True:
        with database.writing(ledger.engine) as connection:
            some = connection.execute(
                select(table.c.epoch, table.c.seq)
                .where(table.c.partition == number, place <= tuple_(*end))
                .order_by(table.c.epoch, table.c.seq)
                .limit(ROWS_PER_DELETE)
            ).all()
            if not some:
                return dropped
            gone = connection.execute(
                delete(table).where(table.c.partition == number, place <= tuple_(*some[-1]))
            )
        dropped += gone.rowcount


def _drop_attempts(ledger: Ledger, first_day: int) -> int:
    """Take out the attempts of days before `first_day`; gives how many. A partition's newest count stays: it says which was copied last."""
    dropped = 0
    with database.snapshot(ledger.engine) as connection:
        days = connection.execute(
            select(ATTEMPT_DAYS.c.partition, ATTEMPT_DAYS.c.day)
            .where(ATTEMPT_DAYS.c.day < first_day)
            .order_by(ATTEMPT_DAYS.c.day)
        ).all()
        newest = {
            partition: day
            for partition, day in connection.execute(
                select(ATTEMPT_DAYS.c.partition, func.max(ATTEMPT_DAYS.c.day)).group_by(
                    ATTEMPT_DAYS.c.partition
                )
            )
        }
    for partition, day in days:
        with database.writing(ledger.engine) as connection:
            table, whose = (
                (FORGERIES, []) if partition == CONTROL else (ATTEMPTS, [ATTEMPTS.c.partition == partition])
            )
            gone = connection.execute(delete(table).where(table.c.stream_ms < (day + 1) * DAY_MS, *whose))
            dropped += gone.rowcount
            if day != newest[partition]:
                connection.execute(
                    delete(ATTEMPT_DAYS).where(
                        ATTEMPT_DAYS.c.partition == partition, ATTEMPT_DAYS.c.day == day
                    )
                )
    return dropped
