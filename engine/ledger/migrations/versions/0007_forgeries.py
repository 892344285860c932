"""Codes that were not genuine, counted for each terminal and minute."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Make the table of forgeries."""
    op.create_table(
        "forgeries",
        sa.Column("stream_ms", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("stream_seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("mall_id", sa.BigInteger, nullable=False),
        sa.Column("store_id", sa.BigInteger, nullable=False),
        sa.Column("terminal_id", sa.BigInteger, nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("samples", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("forgeries_by_store", "forgeries", ["store_id", "at_ms"])
    op.create_index("forgeries_by_time", "forgeries", ["at_ms"])
