"""Migrations of the ledger's tables, run by Alembic. Loaded where tables are not up to date, and nowhere else."""

from __future__ import annotations

from importlib import resources
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from engine.errors import SetupError
from engine.ledger import database

_MIGRATING: Final = 7425_0001
"""Key of the PostgreSQL advisory lock under which migrations run: any number that no other application uses in this database."""


def config(connection: Connection) -> Config:
    """Alembic's configuration over an open connection: nothing is read from a file."""
    made = Config()
    made.set_main_option("script_location", str(resources.files("engine.ledger").joinpath("migrations")))
    made.set_main_option("path_separator", "os")
    made.attributes["connection"] = connection
    return made


def migrate(engine: Engine) -> None:
    """Bring the tables up to date. Raises SetupError when a newer version made them; LedgerUnavailable."""
    # Two processes may open a new ledger at once: the second waits for the first, then finds nothing to do.
    with database.writing(engine) as connection:
        if connection.dialect.name != "sqlite":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATING})
        script = ScriptDirectory.from_config(config(connection))
        known = {revision.revision for revision in script.walk_revisions()}
        revision = database.revision(connection)
        if revision is not None and revision not in known:
            raise SetupError(
                f"the ledger has tables of version {revision}, which this version of pickgate does not know: use the newer one",
                field="ledger_url",
            )
        command.upgrade(config(connection), "head")
