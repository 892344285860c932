"""One real store per worker, every answer on its disk, with a shop that all races of the worker share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import pytest

from engine.state.server import EmbeddedServer
from tests.race import heats
from tests.race import shop as shops
from tests.race.books import check_books
from tests.race.heats import Course
from tests.race.rivals import Rivals, rivals
from tests.race.shop import SOAK, Shop

PROCESSES: Final = 3


def _scope(fixture_name: str, config: object) -> Literal["session", "function"]:
    """Each long race has a store of its own: its books are read many times, and would hold all other races' events."""
    return "function" if SOAK else "session"


@pytest.fixture(scope=_scope)
def race_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with EmbeddedServer(tmp_path_factory.mktemp("race") / "data", durability="fsync") as server:
        shops.create(server.url)
        yield server.url


@pytest.fixture(scope=_scope)
def _session_shop(race_url: str) -> Iterator[Shop]:
    with shops.open_shop(race_url) as shop:
        yield shop


@pytest.fixture(scope=_scope)
def contest(race_url: str) -> Iterator[Rivals]:
    """Three processes beside this one, on the same store."""
    with rivals(race_url, PROCESSES) as started:
        yield started


@pytest.fixture
def shop(_session_shop: Shop) -> Iterator[Shop]:
    """The shop; when the test has ended, all its books must agree."""
    yield _session_shop
    check_books(_session_shop.deployment)


@pytest.fixture
def rounds() -> int:
    """How often to repeat a race."""
    return 60 if SOAK else 4


@pytest.fixture(scope=_scope)
def course_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A store of the heats' own, which keeps nothing on disk."""
    with EmbeddedServer(tmp_path_factory.mktemp("heats") / "data", durability="memory") as server:
        heats.create(server.url)
        yield server.url


@pytest.fixture(scope=_scope)
def course(course_url: str) -> Iterator[Course]:
    """Three processes with four threads each for heats."""
    with heats.course(course_url) as opened:
        yield opened


@pytest.fixture
def runs() -> int:
    """How many runs of heats.HEATS heats."""
    return 20 if SOAK else 1
