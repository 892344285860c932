"""Checkpoints, cuts, and the first event of each day."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the tables of checkpoints and cuts; note the days of the events that are there."""
    op.create_table(
        "checkpoints",
        *_number(),
        sa.Column("rows", sa.BigInteger, nullable=False),
        *_signed(),
        sqlite_with_rowid=False,
    )
    op.create_table("cuts", *_number(), *_signed(), sqlite_with_rowid=False)
    op.create_table(
        "checkpoint_pieces",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("piece", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "days",
        sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    # Time never runs backwards within a partition, so a day's first event is its first by number.
    op.execute(
        "INSERT INTO days (partition, day, epoch, seq)"
        " SELECT partition, day, epoch, seq FROM ("
        "  SELECT partition, at_ms / 86400000 AS day, epoch, seq,"
        "   row_number() OVER (PARTITION BY partition, at_ms / 86400000 ORDER BY epoch, seq) AS place"
        "  FROM events) AS numbered WHERE place = 1"
    )


def _number() -> list[sa.Column[int]]:
    return [
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
    ]


def _signed() -> list[sa.Column[Any]]:
    return [
        sa.Column("statement", sa.Text, nullable=False),
        sa.Column("signature", sa.LargeBinary, nullable=False),
    ]
