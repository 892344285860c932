"""Refused attempts, bounded by the day."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the tables of attempts."""
    op.create_table(
        "attempts",
        sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("stream_ms", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("stream_seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("uid", sa.LargeBinary, nullable=False),
        sa.Column("mall_id", sa.BigInteger, nullable=False),
        sa.Column("store_id", sa.BigInteger, nullable=False),
        sa.Column("terminal_id", sa.BigInteger, nullable=False),
        sa.Column("verdict", sa.SmallInteger, nullable=False),
        sa.Column("bucket", sa.SmallInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("attempts_by_uid", "attempts", ["uid"])
    op.create_index("attempts_by_store", "attempts", ["store_id", "at_ms"])
    op.create_index("attempts_by_time", "attempts", ["at_ms"])
    op.create_table(
        "attempt_days",
        sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("kept", sa.BigInteger, nullable=False),
        sa.Column("dropped", sa.BigInteger, nullable=False),
        sa.Column("last_ms", sa.BigInteger, nullable=False),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
