"""Fixtures that many tests share: real stores, one per pytest-xdist worker, and private ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from hypothesis import settings

# First of all that might load gRPC: it says which versions of TLS there are (server/__init__.py).
import server as _server  # noqa: F401
from engine.state.server import EmbeddedServer

# The short run is the same for everybody, every time; the long one looks for what nobody has thought of. Neither has a
# deadline per example: on a busy machine it would fail for being late, not for being wrong.
settings.register_profile("short", derandomize=True, deadline=None)
settings.register_profile("soak", max_examples=2_000, deadline=None, print_blob=True)
settings.load_profile("soak" if os.environ.get("PICKGATE_SOAK") == "1" else "short")

StoreFactory = Callable[..., EmbeddedServer]

LONGEST = ("test_demo.py", "test_readme.py", "test_model.py")
"""Files with a test that takes most of a minute, most of it waiting or in one process."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the longest tests be begun first: begun last, they would keep one worker busy while all others have nothing left."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def store_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a store that all tests of this worker share: never flushed, so use keys of your own."""
    with EmbeddedServer(tmp_path_factory.mktemp("store") / "data", durability="memory") as server:
        yield server.url


@pytest.fixture(scope="session")
def _flushed_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with EmbeddedServer(tmp_path_factory.mktemp("flushed") / "data", durability="memory") as server:
        yield server.url


@pytest.fixture
def empty_store_url(_flushed_store: str) -> str:
    """Address of a store that is empty when the test begins and that no other test uses meanwhile."""
    with redis.Redis.from_url(_flushed_store) as client:
        client.flushall()
        client.script_flush()
    return _flushed_store


@pytest.fixture
def make_store(tmp_path: Path) -> Iterator[StoreFactory]:
    """Return a function that starts a private store; it takes the options of EmbeddedServer.

    Without `data_dir` each call makes a new folder; durability is "fsync" unless another is given. All are stopped when
    the test ends.
    """
    with ExitStack() as stack:
        made = 0

        def start(data_dir: Path | None = None, **options: object) -> EmbeddedServer:
            nonlocal made
            made += 1
            server = EmbeddedServer(data_dir or tmp_path / f"store-{made}", **options)  # type: ignore[arg-type]
            return stack.enter_context(server)

        yield start
