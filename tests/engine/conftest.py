"""A furnished deployment on an empty real store, with a clock that the test owns."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from engine.deployment import Deployment
from tests.engine import shop as shops
from tests.engine.contents import Furnished
from tests.engine.shop import Clock, Shop


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def _furnished(_flushed_store: str) -> Furnished:
    def empty() -> None:
        with redis.Redis.from_url(_flushed_store) as client:
            client.flushall()

    return Furnished(_flushed_store, [_flushed_store], empty)


@pytest.fixture
def shop(_furnished: Furnished, clock: Clock) -> Iterator[Shop]:
    """Malls, stores and catalogue are there; no stock and no codes."""
    _furnished.renew()
    with shops.open_deployment(_furnished.url, clock) as deployment:
        yield Shop(deployment, _furnished.url, clock)


@pytest.fixture
def deployment(shop: Shop) -> Deployment:
    return shop.deployment
