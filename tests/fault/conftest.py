"""Stores and servers that a test may do harm to: never shared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.state.server import EmbeddedServer
from tests.conftest import StoreFactory
from tests.race import shop as shops
from tests.race.serving import Serving
from tests.race.shop import SOAK, Shop


@pytest.fixture
def store(make_store: StoreFactory) -> EmbeddedServer:
    """A store of this test, every answer on its disk, with the deployment in it."""
    server = make_store()
    shops.create(server.url)
    return server


@pytest.fixture
def shop(store: EmbeddedServer) -> Iterator[Shop]:
    with shops.open_shop(store.url) as opened:
        yield opened


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    """`pickgate serve` on a data folder of this test, with the deployment in it."""
    with Serving(tmp_path) as started:
        started.furnish()
        yield started


@pytest.fixture
def rounds() -> int:
    """How often to repeat a fault."""
    return 8 if SOAK else 1
