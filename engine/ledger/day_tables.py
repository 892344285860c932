"""On PostgreSQL the events lie in a table for each day (UTC), so that what is old goes with its table and not row by row.

    events          by partition: the set-up's in events_control, which is never cut, all others in
    events_days     by time: events_20261125, one for each day, made ahead; an event for whose day there is none makes it

SQLite has one table, in the order of the events' numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

DAY_MS: Final = 86_400_000
AHEAD_DAYS: Final = 3
"""Made before their time comes."""
LOCK_TIMEOUT_S: Final = 5
"""How long the end of a day's table waits for those who read; whoever comes later waits behind it."""
_PARENT: Final = "events_days"


def are_there(connection: Connection) -> bool:
    """Whether this database has such tables."""
    return connection.dialect.name == "postgresql"


def name_of(day: int) -> str:
    """What a day's table is called; the day counts from 1970."""
    return f"events_{datetime.fromtimestamp(day * DAY_MS / 1000, UTC):%Y%m%d}"


def list_days(connection: Connection) -> list[int]:
    """The days that have a table, in order."""
    found = connection.execute(
        text(
            "SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid"
            " WHERE inhparent = to_regclass(:parent) ORDER BY relname"
        ),
        {"parent": _PARENT},
    ).scalars()
    begin = datetime(1970, 1, 1, tzinfo=UTC)
    return [
        (datetime.strptime(name.rpartition("_")[2], "%Y%m%d").replace(tzinfo=UTC) - begin).days
        for name in found
    ]


def make(connection: Connection, days: Iterable[int]) -> None:
    """Make the tables of days that have none, in a transaction of the caller's."""
    wanted = set(days)
    for day in sorted(wanted - set(list_days(connection))):
        name = name_of(day)
        try:
            with connection.begin_nested():
                # Made apart and put in then: only so does nobody who reads or writes have to wait (CREATE TABLE, "PARTITION OF").
                connection.execute(
                    text(f"CREATE TABLE {name} (LIKE {_PARENT} INCLUDING DEFAULTS INCLUDING CONSTRAINTS)")
                )
                connection.execute(
                    text(
                        f"ALTER TABLE {_PARENT} ATTACH PARTITION {name}"
                        f" FOR VALUES FROM ({day * DAY_MS}) TO ({(day + 1) * DAY_MS})"
                    )
                )
        except DBAPIError:
            # Another process may have made it at the same moment.
            if day not in list_days(connection):
                raise


def drop_before(connection: Connection, first_day: int) -> int:
    """Drop the tables of all days before one, in a transaction of the caller's; gives how many rows went."""
    dropped = 0
    connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'"))
    for day in list_days(connection):
        if day < first_day:
            name = name_of(day)
            dropped += connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one()
            connection.execute(text(f"DROP TABLE {name}"))
    return dropped
