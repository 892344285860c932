"""Ledgers of a furnished deployment: each test runs on SQLite and, where there is one, on a real PostgreSQL."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import Connection, Engine

from engine.ledger import database, migrating
from engine.ledger.ledger import Ledger
from engine.ledger.writer import Writer
from engine.state.streams import Streams
from tests.engine.ledger import postgres
from tests.engine.shop import Shop

LEFT_OUT = "no PostgreSQL on this machine (initdb): the ledger's tests on it are left out; run: make postgres (as root, on Debian)"


@pytest.fixture(scope="session")
def postgres_socket() -> Iterator[Path]:
    if postgres.binaries() is None:
        pytest.skip(LEFT_OUT)
    with postgres.running() as folder:
        yield folder


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite ledger with its tables, all empty."""
    path = tmp_path_factory.mktemp("migrated") / "ledger.sqlite3"
    database.connect(database.sqlite_url(path), create=True).dispose()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def dialect(request: pytest.FixtureRequest) -> str:
    """Which database: each test runs on both."""
    return str(request.param)


@pytest.fixture
def ledger_url(request: pytest.FixtureRequest, dialect: str, tmp_path: Path) -> str:
    """Address of a database without tables."""
    if dialect == "sqlite":
        return database.sqlite_url(tmp_path / "ledger.sqlite3")
    return postgres.empty_database(request.getfixturevalue("postgres_socket"))


@pytest.fixture
def migrated_url(request: pytest.FixtureRequest, dialect: str, tmp_path: Path) -> str:
    """Address of a database with the ledger's tables, all empty."""
    if dialect == "sqlite":
        path = tmp_path / "ledger.sqlite3"
        shutil.copy(request.getfixturevalue("migrated_file"), path)
        return database.sqlite_url(path)
    return postgres.migrated_database(request.getfixturevalue("postgres_socket"))


@pytest.fixture
def open_ledger(shop: Shop, migrated_url: str) -> Iterator[Callable[[], Ledger]]:
    """Open the ledger of the shop's deployment, as often as a test likes."""
    opened: list[Ledger] = []

    def open_one() -> Ledger:
        deployment_id = shop.deployment.constants.deployment_id
        opened.append(Ledger.open(migrated_url, deployment_id=deployment_id, create=True))
        return opened[-1]

    yield open_one
    for ledger in opened:
        ledger.close()


@pytest.fixture
def ledger(open_ledger: Callable[[], Ledger]) -> Ledger:
    return open_ledger()


@pytest.fixture
def writer(shop: Shop, ledger: Ledger) -> Writer:
    """A writer that has begun."""
    made = Writer(Streams(shop.deployment.connection), ledger, now_ms=shop.clock)
    made.start()
    return made


@pytest.fixture
def migrate_from(ledger_url: str) -> Iterator[Callable[[str, Callable[[Connection], None]], Engine]]:
    """Make a ledger of an older version, fill it, and bring it up to date as whoever opens it does."""
    opened: list[Engine] = []

    def migrate(revision: str, fill: Callable[[Connection], None]) -> Engine:
        with pytest.MonkeyPatch.context() as old:
            old.setattr(database, "_migrate", lambda engine: None)
            engine = database.connect(ledger_url, create=True)
        opened.append(engine)
        with database.writing(engine) as connection:
            command.upgrade(migrating.config(connection), revision)
            fill(connection)
        opened.append(database.connect(ledger_url, create=True))
        return opened[-1]

    yield migrate
    for engine in opened:
        engine.dispose()
