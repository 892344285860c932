"""To whom the names of the feeds' consumers belong."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Names that are there belong to nobody: the next caller who is known takes its own."""
    op.add_column("consumers", sa.Column("owner", sa.Text, nullable=False, server_default=""))
