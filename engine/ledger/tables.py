"""The ledger's tables. A change here needs a migration (migrations/versions); a test compares both.

Ids are four bytes without a sign, so they need eight in SQL. Times are unix milliseconds. In SQLite the big tables have no rowid:
their rows lie in the order of their numbers, which is the order in which they are written and verified.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
)

METADATA: Final = MetaData()

FACTS: Final = Table(
    "facts",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
"""What is fixed when a ledger is made: whose it is, and how it is chained."""

EVENTS: Final = Table(
    "events",
    METADATA,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("type", SmallInteger, nullable=False),
    Column("mall_id", BigInteger, nullable=False),
    Column("store_id", BigInteger, nullable=False),
    Column("uid", LargeBinary),
    Column("terminal_id", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("link", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
"""Every event. `data` is the event as the store had it, byte for byte; `link` chains it (engine.ledger.chain). The columns between
number and data repeat what data says, for those who search; uid is NULL where the event is of no code."""

Index(
    "events_by_uid",
    EVENTS.c.uid,
    sqlite_where=EVENTS.c.uid.isnot(None),
    postgresql_where=EVENTS.c.uid.isnot(None),
)
Index("events_by_store", EVENTS.c.store_id, EVENTS.c.at_ms)
Index("events_by_time", EVENTS.c.at_ms)
Index("events_by_actor", EVENTS.c.actor, EVENTS.c.at_ms)

ORDERS: Final = Table(
    "orders",
    METADATA,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("mall_id", BigInteger, nullable=False),
    Column("order_id", Text, nullable=False),
    Column("uid", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
"""Which code was made for which order, by the number of the event that made it."""

Index("orders_by_order", ORDERS.c.mall_id, ORDERS.c.order_id)

HEADS: Final = Table(
    "heads",
    METADATA,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("link", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
"""The last event of each partition, and how many there are: what the next one follows."""

RECONCILIATIONS: Final = Table(
    "reconciliations",
    METADATA,
    Column("run", Integer, primary_key=True, autoincrement=True),
    Column("begun_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger, nullable=False),
    Column("cause", Text, nullable=False),
    Column("clean", SmallInteger, nullable=False),
    Column("drifts", BigInteger, nullable=False),
    Column("shelves", BigInteger, nullable=False),
    Column("codes", BigInteger, nullable=False),
    Column("places", Text, nullable=False),
    Column("totals", Text, nullable=False),
)
"""Each comparison of the store with the ledger. `places` is JSON: from partition to the last event compared; `totals` JSON: codes and fen of
each mall and store. `drifts` counts all there were; the table of drifts has the first of them."""

DRIFTS: Final = Table(
    "drifts",
    METADATA,
    Column("run", Integer, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("partition", Integer, nullable=False),
    Column("mall_id", BigInteger, nullable=False),
    Column("store_id", BigInteger, nullable=False),
    Column("sku_id", BigInteger, nullable=False),
    Column("uid", LargeBinary),
    Column("what", Text, nullable=False),
    Column("in_store", Text, nullable=False),
    Column("in_ledger", Text, nullable=False),
    Column("events", Text, nullable=False),
)
"""What was not equal. `events` is JSON: numbers of events since the last clean run that touched it."""

ATTEMPTS: Final = Table(
    "attempts",
    METADATA,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("stream_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("stream_seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("uid", LargeBinary, nullable=False),
    Column("mall_id", BigInteger, nullable=False),
    Column("store_id", BigInteger, nullable=False),
    Column("terminal_id", BigInteger, nullable=False),
    Column("verdict", SmallInteger, nullable=False),
    Column("bucket", SmallInteger, nullable=False),
    sqlite_with_rowid=False,
)
"""Tries to redeem a genuine code that were refused and changed nothing: no events, so not chained. By the id in their stream."""

Index("attempts_by_uid", ATTEMPTS.c.uid)
Index("attempts_by_store", ATTEMPTS.c.store_id, ATTEMPTS.c.at_ms)
Index("attempts_by_time", ATTEMPTS.c.at_ms)

ATTEMPT_DAYS: Final = Table(
    "attempt_days",
    METADATA,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("kept", BigInteger, nullable=False),
    Column("dropped", BigInteger, nullable=False),
    Column("last_ms", BigInteger, nullable=False),
    Column("last_seq", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
"""Of each partition and day since 1970 (UTC): how many attempts are kept, how many came past the bound and are only counted, and the id
of the last one seen."""

FORGERIES: Final = Table(
    "forgeries",
    METADATA,
    Column("stream_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("stream_seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("mall_id", BigInteger, nullable=False),
    Column("store_id", BigInteger, nullable=False),
    Column("terminal_id", BigInteger, nullable=False),
    Column("count", BigInteger, nullable=False),
    Column("samples", Text, nullable=False),
    sqlite_with_rowid=False,
)
"""Codes that were not genuine, counted for each terminal and minute by each process (engine.forgeries). `samples` is JSON: when, how long,
what it looked like; nothing of the code itself. By the id in their stream; the days are counted in attempt_days, under the set-up's partition."""

Index("forgeries_by_store", FORGERIES.c.store_id, FORGERIES.c.at_ms)
Index("forgeries_by_time", FORGERIES.c.at_ms)

CONSUMERS: Final = Table(
    "consumers",
    METADATA,
    Column("feed", Text, primary_key=True),
    Column("mall_id", BigInteger, primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("cursor", Text, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("owner", Text, nullable=False, server_default=""),
    sqlite_with_rowid=False,
)
"""Up to where each consumer of a feed has acknowledged, and when; mall 0: of all malls. `owner`: the caller to whom the name belongs, '' for
nobody yet."""

OPERATIONS: Final = Table(
    "operations",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("actor", Text, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("asked_ms", BigInteger, nullable=False),
    Column("begun_ms", BigInteger, nullable=False),
    Column("seen_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger, nullable=False),
    Column("run", Integer, nullable=False),
    Column("message", Text, nullable=False),
    sqlite_with_rowid=False,
)
"""Reconciliations that were asked for over the wire, by the id of the request; `seen_ms` is when somebody last worked on one."""
CHECKPOINTS: Final = Table(
    "checkpoints",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("statement", Text, nullable=False),
    Column("signature", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
"""Signed states (engine.ledger.checkpoints) of so many rows. A row is written last: without it the pieces of its number mean nothing."""

CHECKPOINT_PIECES: Final = Table(
    "checkpoint_pieces",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("piece", Integer, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
)
"""The folded state of each partition (engine.ledger.folded), piece by piece, each compressed by zlib (RFC 1950)."""

CUTS: Final = Table(
    "cuts",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("statement", Text, nullable=False),
    Column("signature", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
"""Where the chain was cut off, signed (engine.ledger.cuts): the newest says where each partition begins now."""

DAYS: Final = Table(
    "days",
    METADATA,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
"""The first event of each partition and day since 1970 (UTC): from a place to its time, and back, without looking at the rows."""
