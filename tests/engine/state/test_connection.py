"""The store as it really is: wrong settings, other clocks, restarts, replicas, an emptied one."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from engine import expiry, issuance, redemption, stock
from engine.calls import IssueAnswer, StockAnswer, StockFigures
from engine.claims import Line
from engine.deployment import Deployment, Durability, system_ms
from engine.errors import (
    ClockSkew,
    ConfigError,
    DeploymentMismatch,
    InvalidInput,
    NotReplicated,
    PickgateError,
    StoreSettings,
    StoreUnavailable,
)
from engine.state.connection import ServerFacts, check_settings
from engine.state.events import EventType
from engine.verdict import IssueVerdict, RedeemVerdict
from tests.conftest import StoreFactory
from tests.engine import shop as shops
from tests.engine.fold import check_against_store, fold
from tests.engine.shop import MALL, UNLOCK, Bytes, Clock, Shop, attempts, settled

BOUND_S: Final = 20.0


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds, within a bound."""
    ends_s = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < ends_s, f"not within {BOUND_S:g} s: {what}"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def configure(url: str, name: str, value: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.config_set(name, value)


class SystemClock(Clock):
    """The system's clock, with an offset."""

    def __init__(self, offset_ms: int = 0) -> None:
        super().__init__(0)
        self.offset_ms = offset_ms

    def __call__(self) -> int:
        return system_ms() + self.offset_ms


def real_shop(url: str, clock: Clock, **options: Any) -> Shop:
    """A shop whose clock is compared with the store's."""
    shops.create(url, clock, clock_compared=True, **options)
    deployment = shops.open_deployment(url, clock, **options)
    shops.furnish(deployment)
    return Shop(deployment, url, clock)


# --- settings -----------------------------------------------------------------------------------------------------
def facts(**changes: Any) -> ServerFacts:
    sound = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
    settings = sound | changes.pop("settings", {})
    return replace(ServerFacts("valkey", (9, 1, 0), "run", settings), **changes)


@pytest.mark.parametrize("durability", Durability)
def test_sound_settings(durability: Durability) -> None:
    check_settings(facts(), durability)


@pytest.mark.parametrize(
    ("changes", "durabilities", "field"),
    [
        ({"settings": {"appendfsync": "everysec"}}, {Durability.FSYNC, Durability.REPLICATED}, "appendfsync"),
        ({"settings": {"appendonly": "no"}}, {Durability.FSYNC, Durability.REPLICATED}, "appendonly"),
        ({"settings": {"maxmemory-policy": "allkeys-lru"}}, set(Durability), "maxmemory-policy"),
        ({"version": (6, 2, 14)}, set(Durability), "version"),
        ({"product": "redis", "version": (7, 0, 15)}, {Durability.REPLICATED}, "version"),
        ({"product": "redis", "version": (7, 2)}, set(), ""),
        ({"settings": {}, "product": "redis"}, set(), ""),
    ],
)
def test_unsound_settings(changes: dict[str, Any], durabilities: set[Durability], field: str) -> None:
    for durability in Durability:
        if durability in durabilities:
            with pytest.raises(StoreSettings) as refused:
                check_settings(facts(**changes), durability)
            assert refused.value.field == field
            assert durability.value in refused.value.message
        else:
            check_settings(facts(**changes), durability)


def test_settings_that_can_t_be_asked_are_not_taken_for_good() -> None:
    with pytest.raises(StoreSettings, match="no answer"):
        check_settings(ServerFacts("valkey", (9, 1), "run", {}), Durability.MEMORY)


@pytest.mark.parametrize(
    ("name", "value"),
    [("appendfsync", "everysec"), ("appendonly", "no"), ("maxmemory-policy", "allkeys-lru")],
)
def test_a_store_with_wrong_settings_is_refused(make_store: StoreFactory, name: str, value: str) -> None:
    server = make_store()
    configure(server.url, name, value)
    with pytest.raises(StoreSettings) as refused:
        Deployment.create(server.url, unlock=UNLOCK)
    assert refused.value.field == name
    assert "CONFIG SET" in refused.value.message
    assert not _holds_anything(server.url)


def _holds_anything(url: str) -> bool:
    with redis.Redis.from_url(url) as client:
        return bool(client.dbsize())


def test_a_server_that_was_set_wrong_meanwhile_is_refused_when_it_is_another_one(
    make_store: StoreFactory,
) -> None:
    """Settings are checked on every server met, not only at the start."""
    server = make_store(durability="memory")
    with real_shop(server.url, SystemClock()).deployment as deployment:
        configure(server.url, "maxmemory-policy", "allkeys-lru")
        # To this process a server is another one when its run id differs; forgetting the id stands for a promotion.
        deployment.connection._greeted_run_id = ""
        deployment.connection._pool.disconnect()
        with pytest.raises(StoreSettings):
            issuance.get(deployment, MALL, [b"\0" * 8])


@pytest.mark.parametrize("url", ["nonsense", "http://localhost:1", ""])
def test_unusable_address(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Deployment.exists(url)
    assert refused.value.field == "store_url"


def test_store_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        Deployment.exists(f"unix://{tmp_path}/nobody.sock")
    with pytest.raises(StoreUnavailable):
        Deployment.open(f"unix://{tmp_path}/nobody.sock", unlock=UNLOCK)


# --- deployments --------------------------------------------------------------------------------------------------
def test_create_then_open(empty_store_url: str, clock: Clock) -> None:
    assert not Deployment.exists(empty_store_url)
    with pytest.raises(DeploymentMismatch):
        shops.open_deployment(empty_store_url, clock)
    shops.create(empty_store_url, clock)
    assert Deployment.exists(empty_store_url)
    with pytest.raises(DeploymentMismatch):
        shops.create(empty_store_url, clock)
    with shops.open_deployment(empty_store_url, clock, partitions=shops.PARTITIONS) as deployment:
        assert deployment.constants.partitions == shops.PARTITIONS
        assert len(deployment.connection.partitions) == shops.PARTITIONS


@pytest.mark.parametrize("partitions", [1, 3, 8, 16])
def test_another_number_of_partitions_is_refused(empty_store_url: str, clock: Clock, partitions: int) -> None:
    shops.create(empty_store_url, clock)
    with pytest.raises(DeploymentMismatch) as refused:
        shops.open_deployment(empty_store_url, clock, partitions=partitions)
    assert refused.value.field == "partitions"


@pytest.mark.parametrize("partitions", [0, -1, 1025])
def test_impossible_numbers_of_partitions(empty_store_url: str, clock: Clock, partitions: int) -> None:
    with pytest.raises(InvalidInput):
        shops.create(empty_store_url, clock, partitions=partitions)
    assert not _holds_anything(empty_store_url)


def test_only_tests_leave_clocks_uncompared(empty_store_url: str, clock: Clock) -> None:
    with pytest.raises(InvalidInput):
        shops.create(empty_store_url, clock, durability=Durability.FSYNC)


def test_replicated_needs_a_number(empty_store_url: str, clock: Clock) -> None:
    with pytest.raises(ConfigError) as refused:
        shops.create(empty_store_url, clock, clock_compared=True, durability=Durability.REPLICATED)
    assert refused.value.field == "replicas"


def test_of_several_that_create_one_wins_and_its_keys_stay(empty_store_url: str, clock: Clock) -> None:
    """Two servers started at once on an empty store: the second must not overwrite the first one's keyring."""
    errors: list[PickgateError | None] = []
    gate = threading.Barrier(4)

    def create(seed: bytes) -> None:
        gate.wait()
        try:
            shops.create(empty_store_url, clock, random=Bytes(seed))
        except PickgateError as error:
            errors.append(error)
        else:
            errors.append(None)

    threads = [threading.Thread(target=create, args=(bytes([n]),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)
    assert errors.count(None) == 1
    assert all(isinstance(error, DeploymentMismatch) for error in errors if error)
    with shops.open_deployment(empty_store_url, clock) as deployment:
        deployment.control.copy().usable_keys()


# --- clocks -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("offset_ms", [-60_000, -5_500, 5_500, 60_000])
def test_a_clock_off_by_more_than_five_seconds_is_refused(make_store: StoreFactory, offset_ms: int) -> None:
    clock = SystemClock()
    shop = real_shop(make_store(durability="memory").url, clock)
    with shop.deployment:
        shop.receive(10)
        uid = shop.issue().uid
        text = shop.show(uid)
        before, tried = shop.dump(), attempts(shop.deployment)
        clock.offset_ms = offset_ms
        for act in (
            lambda: shop.receive(5),
            shop.issue,
            lambda: shop.redeem(text),
            lambda: shop.inspect(text),
            lambda: shop.void(uid),
            lambda: shop.put_store(closed=True),
        ):
            with pytest.raises(ClockSkew) as refused:
                act()
            assert "NTP" in refused.value.message
        assert shop.dump() == before
        assert attempts(shop.deployment) == tried


@pytest.mark.parametrize("offset_ms", [-4_000, 4_000])
def test_a_clock_off_by_less_is_taken(make_store: StoreFactory, offset_ms: int) -> None:
    clock = SystemClock()
    shop = real_shop(make_store(durability="memory").url, clock)
    with shop.deployment:
        clock.offset_ms = offset_ms
        shop.receive(10)
        assert shop.redeem(shop.show(shop.issue().uid)).verdict is RedeemVerdict.REDEEMED


def test_time_never_goes_back_within_a_partition(shop: Shop) -> None:
    """A process whose clock is behind decides by the latest time that any process has written."""
    shop.stock_all()
    uid = shop.issue(ttl_s=60).uid
    text = shop.show(uid)
    shop.clock.tick(60)
    shop.receive(1)
    with shops.open_deployment(shop.url, Clock(shop.clock.now_ms - 3_000)) as slow:
        behind = Shop(slow, shop.url, Clock(shop.clock.now_ms - 3_000))
        assert behind.redeem(text).verdict is RedeemVerdict.EXPIRED
        assert behind.receive(1, request_id="from-behind").verdict.success
    times = [event.at_ms for event in shop.events()]
    assert times == sorted(times)
    assert times[-1] == shop.clock.now_ms


# --- an emptied store ---------------------------------------------------------------------------------------------
def test_an_emptied_store_is_unavailable_and_not_without_codes(shop: Shop) -> None:
    """ "No such code" would be final: the clerk would send the customer away."""
    shop.stock_all()
    uid = shop.issue().uid
    text = shop.show(uid)
    with redis.Redis.from_url(shop.url) as client:
        client.flushall()
    for act in (
        lambda: shop.receive(5),
        shop.issue,
        lambda: shop.redeem(text),
        lambda: shop.inspect(text),
        lambda: shop.void(uid),
        lambda: shop.render(uid),
        lambda: shop.record(uid),
        lambda: shop.figures(),
        lambda: stock.read(shop.deployment, MALL, shops.STORE),
        lambda: issuance.get_by_request_id(shop.deployment, MALL, ["request-1"]),
        lambda: expiry.sweep(shop.deployment),
        lambda: shop.put_store(closed=True),
        shop.deployment.control.refresh,
    ):
        with pytest.raises(StoreUnavailable) as refused:
            act()
        assert "emptied" in refused.value.message
    assert not _holds_anything(shop.url)


# --- restarts -----------------------------------------------------------------------------------------------------
def working_again(shop: Shop, **fields: Any) -> StockAnswer:
    """Receive one unit, the same request until the store answers."""
    request = shop.stock_request(1, **fields)
    found: list[StockAnswer] = []

    def received() -> bool:
        [outcome] = stock.change(shop.deployment, [request])
        if isinstance(outcome, StockAnswer):
            found.append(outcome)
        return bool(found)

    until(received, "the store answers again")
    return found[0]


def test_scripts_flushed_behind_our_back(shop: Shop) -> None:
    shop.stock_all()
    for _ in range(3):
        with redis.Redis.from_url(shop.url) as client:
            client.script_flush()
        assert shop.redeem(shop.show(shop.issue().uid)).verdict is RedeemVerdict.REDEEMED
    assert {event.id.epoch for event in shop.events()} == {1}
    assert shop.figures().on_hand == 7


def test_restarts_rise_the_epoch_and_numbers_never_repeat(make_store: StoreFactory, tmp_path: Path) -> None:
    server = make_store(tmp_path / "data")
    clock = SystemClock()
    shop = real_shop(server.url, clock, durability=Durability.FSYNC)
    with shop.deployment:
        shop.stock_all()
        uids = [shop.issue().uid for _ in range(6)]
        for round_, uid in enumerate(uids[:3]):
            if round_ == 1:
                server.stop()
                with pytest.raises(StoreUnavailable):
                    shop.receive(1)
                server.start()
            else:
                os.kill(server.pid, signal.SIGKILL)
            assert working_again(shop).event is not None
            assert shop.redeem(shop.show(uid)).verdict is RedeemVerdict.REDEEMED
        events = shop.events()
        home = next(event.id.partition for event in events if event.uid == uids[0])
        mine = [event for event in events if event.id.partition == home]
        assert [event.id.epoch for event in mine] == sorted(event.id.epoch for event in mine)
        assert mine[-1].id.epoch == 4
        assert len({event.id for event in events}) == len(events)
        assert [event.type for event in mine].count(EventType.EPOCH) == 3
        check_against_store(fold(events), shop.deployment, clock())
        assert shop.figures().on_hand == 10


def test_a_second_process_does_not_rise_the_epoch(shop: Shop) -> None:
    shop.receive(1)
    with shops.open_deployment(shop.url, shop.clock) as other:
        settled(stock.change(other, [shop.stock_request(1)])[0])
    assert [event.id.seq for event in shop.events()] == [1, 2]
    assert {event.id.epoch for event in shop.events()} == {1}


def test_memory_restarted_is_empty_and_says_so(make_store: StoreFactory) -> None:
    server = make_store(durability="memory")
    shop = real_shop(server.url, SystemClock())
    with shop.deployment:
        shop.receive(5)
        server.stop()
        server.start()
        with pytest.raises(StoreUnavailable, match="emptied"):
            shop.receive(5)


# --- replicas -----------------------------------------------------------------------------------------------------
def in_sync(url: str) -> bool:
    with redis.Redis.from_url(url) as client:
        return bool(client.info("replication").get("master_link_status") == "up")


@pytest.mark.fault
def test_replicated_means_on_the_replica_s_disk(make_store: StoreFactory, tmp_path: Path) -> None:
    # By default a primary waits five seconds for more replicas to come before it feeds the first.
    primary = make_store(
        tmp_path / "primary", tcp_port=free_port(), extra_settings={"repl-diskless-sync-delay": "0"}
    )
    replica = make_store(tmp_path / "replica")
    port = _port_of(primary.url)

    def follow() -> None:
        with redis.Redis.from_url(replica.url) as client:
            client.execute_command("REPLICAOF", "127.0.0.1", port)
        until(lambda: in_sync(replica.url), "the replica follows")

    follow()
    clock = SystemClock()
    shop = real_shop(primary.url, clock, durability=Durability.REPLICATED, replicas=1)
    with shop.deployment:
        shop.receive(10)
        first = shop.issue(request_id="reached-both")
        assert first.verdict is IssueVerdict.ISSUED
        began_s = time.monotonic()
        for _ in range(20):
            shop.receive(1, sku_id=101)
        # Replicas acknowledge by themselves once a second; the answer doesn't wait for that.
        assert time.monotonic() - began_s < 10

        replica.stop()
        request = shop.issue_request(request_id="reached-one", lines=(Line(100, 2),))
        [outcome] = issuance.issue(shop.deployment, [request])
        assert isinstance(outcome, NotReplicated)

        replica.start()
        follow()
        answers: list[IssueAnswer] = []

        def acknowledged() -> bool:
            [outcome] = issuance.issue(shop.deployment, [request])
            if isinstance(outcome, IssueAnswer):
                answers.append(outcome)
            return bool(answers)

        until(acknowledged, "the retry is acknowledged")
        assert answers[0].verdict is IssueVerdict.ISSUED
        assert shop.figures().reserved == 3
        assert [event.type for event in shop.events()].count(EventType.ISSUED) == 2

        # What was acknowledged is there when the replica takes over.
        with redis.Redis.from_url(replica.url) as client:
            client.execute_command("REPLICAOF", "NO", "ONE")
    with shops.open_deployment(replica.url, clock) as promoted:
        taken_over = Shop(promoted, replica.url, clock)
        assert taken_over.figures() == StockFigures(100, 10, 3, 0, 0)
        assert taken_over.redeem(taken_over.show(first.uid)).verdict is RedeemVerdict.REDEEMED
        assert taken_over.events()[-1].id.epoch == 2
        check_against_store(fold(taken_over.events()), promoted, clock())


def _port_of(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.config_get("port")["port"])


def test_redeem_by_way_of_a_pipe_that_breaks(make_store: StoreFactory) -> None:
    """A store that dies under a batch: every item is unavailable or decided, and the retry says which."""
    server = make_store(durability="fsync")
    clock = SystemClock()
    shop = real_shop(server.url, clock, durability=Durability.FSYNC)
    with shop.deployment:
        shop.receive(100)
        texts = [shop.show(shop.issue().uid) for _ in range(40)]
        requests = [shop.redeem_request(text) for text in texts]
        killer = threading.Timer(0.002, os.kill, (server.pid, signal.SIGKILL))
        killer.start()
        first = [redemption.redeem(shop.deployment, [request])[0] for request in requests]
        killer.join()
        working_again(shop)
        second = redemption.redeem(shop.deployment, requests)
        for before, after in zip(first, second, strict=True):
            assert not isinstance(after, PickgateError)
            assert after.verdict is RedeemVerdict.REDEEMED
            if not isinstance(before, PickgateError):
                assert after == replace(before, replayed=True)
        assert shop.figures().on_hand == 61
        check_against_store(fold(shop.events()), shop.deployment, clock())
