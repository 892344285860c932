"""Ledgers of a furnished deployment: each test runs on SQLite and, where there is one, on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.ledger import database
from engine.ledger.ledger import Ledger
from engine.ledger.writer import Writer
from engine.state.streams import Streams
from tests.engine.ledger import postgres
from tests.engine.shop import Shop

LEFT_OUT = "no PostgreSQL on this machine (initdb): the ledger's tests on it are left out; apt-get install postgresql"


@pytest.fixture(scope="session")
def postgres_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if postgres.binaries() is None:
        pytest.skip(LEFT_OUT)
    with postgres.running(tmp_path_factory.mktemp("postgres")) as folder:
        yield folder


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Address of an empty database."""
    if request.param == "sqlite":
        return database.sqlite_url(tmp_path / "ledger.sqlite3")
    return postgres.new_database(request.getfixturevalue("postgres_socket"))


@pytest.fixture
def open_ledger(shop: Shop, ledger_url: str) -> Iterator[Callable[[], Ledger]]:
    """Open the ledger of the shop's deployment, as often as a test likes."""
    opened: list[Ledger] = []

    def open_one() -> Ledger:
        deployment_id = shop.deployment.constants.deployment_id
        opened.append(Ledger.open(ledger_url, deployment_id=deployment_id, create=True))
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
