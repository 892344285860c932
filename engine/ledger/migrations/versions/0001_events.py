"""Events, the codes of orders, heads, facts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables of a new ledger."""
    op.create_table(
        "facts",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.create_table(
        "events",
        *_number(),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("type", sa.SmallInteger, nullable=False),
        sa.Column("mall_id", sa.BigInteger, nullable=False),
        sa.Column("store_id", sa.BigInteger, nullable=False),
        sa.Column("uid", sa.LargeBinary),
        sa.Column("terminal_id", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.Column("link", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
    of_a_code = sa.text("uid IS NOT NULL")
    op.create_index("events_by_uid", "events", ["uid"], sqlite_where=of_a_code, postgresql_where=of_a_code)
    op.create_index("events_by_store", "events", ["store_id", "at_ms"])
    op.create_index("events_by_time", "events", ["at_ms"])
    op.create_index("events_by_actor", "events", ["actor", "at_ms"])
    op.create_table(
        "orders",
        *_number(),
        sa.Column("mall_id", sa.BigInteger, nullable=False),
        sa.Column("order_id", sa.Text, nullable=False),
        sa.Column("uid", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("orders_by_order", "orders", ["mall_id", "order_id"])
    op.create_table(
        "heads",
        sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("link", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )


def _number() -> list[sa.Column[int]]:
    """The columns of an event's number, by which a table is keyed."""
    return [
        sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("epoch", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    ]
