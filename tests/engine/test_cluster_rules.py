"""The rules over two primaries: tests of single verbs again, with the stores' partitions on different servers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Final

import pytest

from tests.clusters import ClusterServers
from tests.engine import (
    shop as shops,
)
from tests.engine import (
    test_expiry,
    test_holds,
    test_idempotency,
    test_order,
    test_reversal,
    test_review,
    test_tiers,
    test_transfers,
)
from tests.engine.contents import Furnished
from tests.engine.shop import Clock, Shop

MODULES: Final = (
    test_expiry,
    test_holds,
    test_idempotency,
    test_order,
    test_reversal,
    test_review,
    test_tiers,
    test_transfers,
)


def _tests(module: ModuleType) -> list[Callable[[Shop], None]]:
    """The tests of a module that need a shop and nothing else."""
    return [
        test
        for name, test in vars(module).items()
        if name.startswith("test_")
        and inspect.isfunction(test)
        and list(inspect.signature(test).parameters) == ["shop"]
    ]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Furnished]:
    with ClusterServers(tmp_path_factory.mktemp("cluster")) as made:
        yield Furnished(made.url, made.urls, made.empty)


@pytest.fixture
def cluster_shop(cluster: Furnished, clock: Clock) -> Iterator[Shop]:
    cluster.renew()
    with shops.open_deployment(cluster.url, clock) as deployment:
        yield Shop(deployment, cluster.url, clock)


@pytest.mark.parametrize(
    "test",
    [
        pytest.param(test, id=f"{module.__name__.rpartition('.')[2]}-{test.__name__}")
        for module in MODULES
        for test in _tests(module)
    ],
)
def test_in_a_cluster(cluster_shop: Shop, test: Callable[[Shop], None]) -> None:
    test(cluster_shop)


def test_there_are_enough_of_them() -> None:
    """Found by their arguments, so a new fixture could empty the list in silence."""
    assert min(len(_tests(module)) for module in MODULES) >= 4
    assert sum(len(_tests(module)) for module in MODULES) >= 90
