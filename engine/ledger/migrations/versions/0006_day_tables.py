"""On PostgreSQL, a table of events for each day (engine.ledger.day_tables)."""

from __future__ import annotations

from alembic import op

from engine.ledger import day_tables

revision = "0006"
down_revision = "0005"

_CONTROL = 1024
"""engine.state.streams.CONTROL."""
_INDEXES = (
    ("events_by_uid", "(uid) WHERE uid IS NOT NULL"),
    ("events_by_store", "(store_id, at_ms)"),
    ("events_by_time", "(at_ms)"),
    ("events_by_actor", "(actor, at_ms)"),
)


def upgrade() -> None:
    """Put the events that are there into tables of their days; nothing on SQLite."""
    connection = op.get_bind()
    if not day_tables.are_there(connection):
        return
    op.execute("ALTER TABLE events RENAME TO events_before")
    op.execute("ALTER TABLE events_before DROP CONSTRAINT events_pkey")
    for name, _ in _INDEXES:
        op.execute(f"DROP INDEX {name}")
    op.execute("CREATE TABLE events (LIKE events_before) PARTITION BY LIST (partition)")
    # A table's key must contain what it is divided by.
    op.execute("ALTER TABLE events ADD PRIMARY KEY (partition, epoch, seq, at_ms)")
    for name, columns in _INDEXES:
        op.execute(f"CREATE INDEX {name} ON events {columns}")
    op.execute(f"CREATE TABLE events_control PARTITION OF events FOR VALUES IN ({_CONTROL})")
    op.execute("CREATE TABLE events_days PARTITION OF events DEFAULT PARTITION BY RANGE (at_ms)")
    days = connection.exec_driver_sql(
        f"SELECT DISTINCT at_ms / {day_tables.DAY_MS} FROM events_before WHERE partition <> {_CONTROL}"
    ).scalars()
    day_tables.make(connection, list(days))
    op.execute("INSERT INTO events SELECT * FROM events_before")
    op.execute("DROP TABLE events_before")
