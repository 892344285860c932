"""The look at a deployment that serves: what was right when it was opened may not be any more."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import redis

from engine.deployment import SETTINGS_LOOK_S, Durability, system_ms
from engine.errors import StoreSettings, StoreUnavailable
from tests.conftest import StoreFactory
from tests.engine import shop as shops
from tests.engine.shop import PARTITIONS, Clock


class Seconds:
    """A monotonic clock, as the test sets it."""

    now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def change(client: redis.Redis, name: str) -> Callable[[], object]:
    """Set something wrong; gives what sets it right again."""
    wrong, right = {
        "appendfsync": ("everysec", "always"),
        "appendonly": ("no", "yes"),
        "maxmemory-policy": ("allkeys-lru", "noeviction"),
    }[name]
    client.config_set(name, wrong)
    return lambda: client.config_set(name, right)


def await_rewrite(client: redis.Redis) -> None:
    """Poll until no append-only file is being written; 20 s at most."""
    give_up_s = time.monotonic() + 20
    while client.info("persistence")["aof_rewrite_in_progress"]:
        assert time.monotonic() < give_up_s
        time.sleep(0.02)


@pytest.mark.parametrize("name", ["appendfsync", "appendonly", "maxmemory-policy"])
def test_settings_changed_at_run_time_are_noticed_within_a_minute(
    make_store: StoreFactory, name: str
) -> None:
    server, clock, seconds = make_store(durability="fsync"), Clock(), Seconds()
    shops.create(server.url, clock, durability=Durability.FSYNC, clock_compared=True, now_ms=system_ms)
    with (
        redis.Redis.from_url(server.url) as client,
        shops.open_deployment(
            server.url, clock, durability=Durability.FSYNC, now_ms=system_ms, monotonic_s=seconds
        ) as deployment,
    ):
        deployment.look()
        mend = change(client, name)
        seconds.now_s += SETTINGS_LOOK_S
        # Not once, but as long as it lasts.
        for _ in range(2):
            with pytest.raises(StoreSettings) as caught:
                deployment.look()
            assert caught.value.field == name
            assert name in caught.value.message
            seconds.now_s += 1
        mend()
        deployment.look()
        # A store that still writes its first append-only file does not stop.
        await_rewrite(client)


def test_every_wrong_setting_is_named(make_store: StoreFactory) -> None:
    server, clock, seconds = make_store(durability="memory"), Clock(), Seconds()
    shops.create(server.url, clock)
    with shops.open_deployment(server.url, clock, monotonic_s=seconds) as deployment:
        deployment.connection.durability = Durability.FSYNC
        with redis.Redis.from_url(server.url) as client:
            change(client, "maxmemory-policy")
            change(client, "appendfsync")
        seconds.now_s += SETTINGS_LOOK_S
        with pytest.raises(StoreSettings) as caught:
            deployment.look()
    for name in ("maxmemory-policy", "appendonly", "appendfsync"):
        assert f"CONFIG SET {name} " in caught.value.message


@pytest.mark.parametrize("partition", range(PARTITIONS))
def test_a_partition_that_is_gone_is_noticed_at_once(make_store: StoreFactory, partition: int) -> None:
    server, clock = make_store(durability="memory"), Clock()
    shops.create(server.url, clock)
    with (
        redis.Redis.from_url(server.url) as client,
        shops.open_deployment(server.url, clock, monotonic_s=Seconds()) as deployment,
    ):
        deployment.look()
        meta = deployment.connection.partitions[partition].meta
        client.rename(meta, b"gone")
        with pytest.raises(StoreUnavailable, match="emptied"):
            deployment.look()
        client.rename(b"gone", meta)
        deployment.look()
