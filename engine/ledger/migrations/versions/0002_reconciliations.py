"""Reconciliations and what they found."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the tables of reconciliation."""
    op.create_table(
        "reconciliations",
        sa.Column("run", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("begun_ms", sa.BigInteger, nullable=False),
        sa.Column("ended_ms", sa.BigInteger, nullable=False),
        sa.Column("cause", sa.Text, nullable=False),
        sa.Column("clean", sa.SmallInteger, nullable=False),
        sa.Column("drifts", sa.BigInteger, nullable=False),
        sa.Column("shelves", sa.BigInteger, nullable=False),
        sa.Column("codes", sa.BigInteger, nullable=False),
        sa.Column("places", sa.Text, nullable=False),
        sa.Column("totals", sa.Text, nullable=False),
    )
    op.create_table(
        "drifts",
        sa.Column("run", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("partition", sa.Integer, nullable=False),
        sa.Column("mall_id", sa.BigInteger, nullable=False),
        sa.Column("store_id", sa.BigInteger, nullable=False),
        sa.Column("sku_id", sa.BigInteger, nullable=False),
        sa.Column("uid", sa.LargeBinary),
        sa.Column("what", sa.Text, nullable=False),
        sa.Column("in_store", sa.Text, nullable=False),
        sa.Column("in_ledger", sa.Text, nullable=False),
        sa.Column("events", sa.Text, nullable=False),
    )
