"""What Alembic runs: the migrations, over the connection and in the transaction of whoever opens the ledger."""

from __future__ import annotations

from alembic import context

from engine.ledger.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
context.run_migrations()
