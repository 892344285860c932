"""A furnished deployment on an empty real store, with a clock that the test owns."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine.deployment import Deployment
from tests.engine import shop as shops
from tests.engine.shop import Clock, Shop


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def shop(empty_store_url: str, clock: Clock) -> Iterator[Shop]:
    """Malls, stores and catalogue are there; no stock and no codes."""
    shops.create(empty_store_url, clock)
    with shops.open_deployment(empty_store_url, clock) as deployment:
        shops.furnish(deployment)
        yield Shop(deployment, empty_store_url, clock)


@pytest.fixture
def deployment(shop: Shop) -> Deployment:
    return shop.deployment
