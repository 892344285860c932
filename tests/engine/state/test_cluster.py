"""A store of several primaries: where things go, what a server says that has them no more, and who waits for whom."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from engine import expiry, issuance, limits, redemption, stock
from engine.claims import Terminal
from engine.deployment import Deployment, Durability
from engine.errors import (
    ConfigError,
    DeploymentMismatch,
    PickgateError,
    SetupError,
    StoreSettings,
    StoreUnavailable,
)
from engine.idempotency import request_digest
from engine.policies import Policy, Tiers
from engine.state import register, snapshot
from engine.state.connection import SEVERAL
from engine.state.events import EventType
from engine.state.following import Following
from engine.state.keys import slot_of, spread_tags
from engine.state.streams import CONTROL, START, Streams
from engine.stock_watch import Level, LevelsTold, StockWatches, WatchRequest
from engine.verdict import RedeemVerdict
from tests.clusters import ClusterServers, free_ports, until
from tests.conftest import StoreFactory
from tests.engine import shop as shops
from tests.engine.fold import check_against_store, fold
from tests.engine.shop import FAR_STORE, MALL, PARTITIONS, STORE, Clock, Shop, settled
from tests.engine.state.test_partitions import everything

CALL_S_MAX: Final = 7.5
"""Three seconds for a connection, three for the answer, and slack for a busy machine."""
REFUSED_S_MAX: Final = 1.0
"""For what needs a primary that is known not to answer."""
STOPPED: Final = 0
GOING: Final = 1
"""STORE is with the first primary; FAR_STORE and the control partition with the second."""
HERE: Final = 1
"""Partition of STORE."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterServers]:
    """Two primaries that the tests of this file share. No test leaves one stopped, or moves a slot."""
    with ClusterServers(tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[ClusterServers]:
    """Two primaries of this test alone."""
    with ClusterServers(tmp_path) as made:
        yield made


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests in which it does not matter how long it takes to give a primary up."""
    monkeypatch.setattr(limits, "STORE_TIMEOUT_S", 0.5)


def open_shop(cluster: ClusterServers, clock: Clock) -> Shop:
    shops.create(cluster.url, clock)
    deployment = shops.open_deployment(cluster.url, clock)
    shops.furnish(deployment)
    return Shop(deployment, cluster.url, clock)


@pytest.fixture
def shop(cluster: ClusterServers, clock: Clock) -> Iterator[Shop]:
    cluster.empty()
    opened = open_shop(cluster, clock)
    with opened.deployment:
        yield opened


@pytest.fixture
def own_shop(own_cluster: ClusterServers, clock: Clock) -> Iterator[Shop]:
    opened = open_shop(own_cluster, clock)
    with opened.deployment:
        yield opened


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gave or raised, and how long it took in seconds."""
    began_s = time.monotonic()
    outcome: Any
    try:
        outcome = call()
    except PickgateError as error:
        outcome = error
    return outcome, time.monotonic() - began_s


def receive_there(shop: Shop, amount: int) -> None:
    """Receive units at FAR_STORE, by a request id that is registered at the primary that goes on."""
    while True:
        request = shop.stock_request(amount, store_id=FAR_STORE)
        digest = request_digest(f"mall:{MALL}", "stock", request.request_id)
        if register.partition_of(digest, PARTITIONS) >= 2:
            break
    [outcome] = stock.change(shop.deployment, [request])
    assert settled(outcome).verdict.success


def make_silent(shop: Shop) -> None:
    """Have somebody find out that the stopped primary does not answer."""
    with pytest.raises(StoreUnavailable):
        shop.figures(store_id=STORE)


# --- where things go ----------------------------------------------------------------------------------------------
def test_every_verb_over_two_primaries(shop: Shop, cluster: ClusterServers) -> None:
    connection = shop.deployment.connection
    assert connection.owners == 2
    assert [connection.owner_of(partition) for partition in range(PARTITIONS)] == [0, 0, 1, 1]
    assert connection.by_owner() == [[0, 1], [2, 3]]
    assert connection.owner_of_all([0, 1]) == 0
    assert connection.owner_of_all([1, 2]) == SEVERAL
    everything(shop)
    check_against_store(fold(shop.events()), shop.deployment, shop.clock.now_ms)
    sizes = [int(cluster.ask(n, "DBSIZE")) for n in range(2)]
    assert min(sizes) > 10, "both have their share"
    assert {event.id.epoch for event in shop.events()} == {1}


def test_one_batch_over_both_keeps_its_order(shop: Shop) -> None:
    stores = [STORE, FAR_STORE, FAR_STORE, STORE]
    for store_id in set(stores):
        shop.stock_all(store_id=store_id)
    codes = issuance.issue(shop.deployment, [shop.issue_request(store_id=store_id) for store_id in stores])
    uids = [code.uid for code in codes if not isinstance(code, PickgateError)]
    requests = [
        shop.redeem_request(shop.show(uid), terminal=Terminal(MALL, store_id, 7))
        for uid, store_id in zip(uids, stores, strict=True)
    ]
    answers = redemption.redeem(shop.deployment, requests)
    assert [answer.uid for answer in answers if not isinstance(answer, PickgateError)] == uids
    assert [figures.on_hand for figures in (shop.figures(), shop.figures(store_id=FAR_STORE))] == [8, 8]


def test_one_server_of_the_address_is_enough(shop: Shop, cluster: ClusterServers) -> None:
    for port in cluster.ports:
        url = f"redis+cluster://127.0.0.1:1,127.0.0.1:{port}"
        with shops.open_deployment(url, shop.clock) as other:
            assert other.connection.owners == 2
            assert stock.read(other, MALL, STORE) == []


def test_addresses_that_are_no_cluster_or_nobody(make_store: StoreFactory, clock: Clock) -> None:
    server = make_store(durability="memory", tcp_port=free_ports(1)[0])
    with redis.Redis.from_url(server.url) as client:
        port = client.config_get("port")["port"]
    with pytest.raises(ConfigError, match="not part of a cluster") as refused:
        Deployment.exists(f"redis+cluster://127.0.0.1:{port}")
    assert refused.value.field == "store_url"
    with pytest.raises(StoreUnavailable):
        Deployment.exists(f"redis+cluster://127.0.0.1:{free_ports(1)[0]}")


def test_a_cluster_without_slots_is_refused(make_store: StoreFactory) -> None:
    port, bus_port = free_ports(2)
    make_store(
        durability="memory",
        tcp_port=port,
        extra_settings={"cluster-enabled": "yes", "cluster-port": str(bus_port)},
    )
    with pytest.raises(SetupError, match="no slots"):
        Deployment.exists(f"redis+cluster://127.0.0.1:{port}")


def test_create_then_exists_and_only_once(shop: Shop) -> None:
    assert Deployment.exists(shop.url)
    with pytest.raises(DeploymentMismatch):
        shops.create(shop.url, shop.clock)


@pytest.mark.parametrize("wrong", [STOPPED, GOING])
def test_every_primary_s_settings_are_checked(shop: Shop, cluster: ClusterServers, wrong: int) -> None:
    cluster.ask(wrong, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(StoreSettings) as refused:
            shops.open_deployment(shop.url, shop.clock)
        assert refused.value.field == "maxmemory-policy"
        with pytest.raises(StoreSettings):
            shop.deployment.connection.look(settings=True)
        shop.deployment.connection.look(settings=False)
    finally:
        cluster.ask(wrong, "CONFIG", "SET", "maxmemory-policy", "noeviction")
    shop.deployment.connection.look(settings=True)


def test_memory_is_not_fsync_on_any_primary(shop: Shop) -> None:
    with pytest.raises(StoreSettings) as refused:
        shops.open_deployment(shop.url, shop.clock, durability=Durability.FSYNC)
    assert refused.value.field == "appendonly"


def test_scripts_flushed_behind_our_back(shop: Shop, cluster: ClusterServers) -> None:
    for store_id in (STORE, FAR_STORE):
        shop.stock_all(store_id=store_id)
        for n in range(2):
            cluster.ask(n, "SCRIPT", "FLUSH")
        uid = shop.issue(store_id=store_id).uid
        text = shop.show(uid)
        for n in range(2):
            cluster.ask(n, "SCRIPT", "FLUSH")
        assert shop.redeem(text, terminal=Terminal(MALL, store_id, 7)).verdict is RedeemVerdict.REDEEMED


def test_an_emptied_primary_is_unavailable_and_not_without_codes(shop: Shop, cluster: ClusterServers) -> None:
    shop.stock_all()
    shop.stock_all(store_id=FAR_STORE)
    uid = shop.issue().uid
    cluster.ask(STOPPED, "FLUSHALL")
    for act in (lambda: shop.render(uid), shop.receive, lambda: shop.record(uid)):
        with pytest.raises(StoreUnavailable, match="emptied"):
            act()
    with pytest.raises(StoreUnavailable, match="not initialised"):
        shop.deployment.connection.look(settings=False)
    assert shop.receive(1, store_id=FAR_STORE).verdict.success


# --- the ledger's reader, snapshots -------------------------------------------------------------------------------
def test_streams_of_all_primaries_are_read_together(shop: Shop) -> None:
    for store_id in (STORE, FAR_STORE):
        shop.stock_all(store_id=store_id)
    streams = Streams(shop.deployment.connection)
    found = streams.read(dict.fromkeys(streams.numbers, START), 0)
    assert {number: len(entries) for number, entries in found.items() if number != CONTROL} == {1: 8, 2: 8}
    assert len(found[CONTROL]) == 4, "created, and three puts"
    assert streams.unread == frozenset()
    streams.mark({number: START for number in found})
    streams.publish(caught_up_ms=1)


def test_reading_on_waits_for_news_of_any_primary(shop: Shop) -> None:
    streams = Streams(shop.deployment.connection)
    places = {number: streams.last(number) for number in streams.numbers}
    nothing, waited_s = timed(lambda: streams.read(places, 200))
    assert nothing == {}
    assert 0.2 <= waited_s < 2
    for store_id in (STORE, FAR_STORE):
        later = threading.Timer(
            0.1, shop.receive, (1,), {"store_id": store_id, "request_id": f"later-{store_id}"}
        )
        later.start()
        found, waited_s = timed(partial(streams.read, places, 2_500))
        later.join()
        assert [entry.seq for entries in found.values() for entry in entries] == [1]
        assert waited_s < 2
        places |= {number: streams.last(number) for number in found}


def test_a_snapshot_has_every_shelf_of_every_primary(shop: Shop) -> None:
    for store_id in (STORE, FAR_STORE):
        shop.stock_all(store_id=store_id)
        shop.issue(store_id=store_id)
    shelves = snapshot.read_all_shelves(shop.deployment.connection)
    assert {number: len(shelf.stock) for number, shelf in shelves.items()} == {0: 0, 1: 8, 2: 8, 3: 0}
    for number, held in ((1, 1), (2, 1), (3, 0)):
        found = snapshot.read_records(shop.deployment.connection, number)
        assert sum(len(records.records) for records in found) == held


# --- one that does not answer -------------------------------------------------------------------------------------
def test_who_waits_for_a_stopped_primary_and_who_does_not(shop: Shop, cluster: ClusterServers) -> None:
    for store_id in (STORE, FAR_STORE):
        shop.stock_all(store_id=store_id)
    here, there = shop.issue().uid, shop.issue(store_id=FAR_STORE).uid
    text = shop.show(here)
    connection = shop.deployment.connection
    with cluster.stopped(STOPPED):
        error, waited_s = timed(lambda: shop.redeem(text, request_id="redeem-0001"))
        assert isinstance(error, StoreUnavailable)
        assert limits.STORE_TIMEOUT_S - 0.5 < waited_s < CALL_S_MAX
        error, waited_s = timed(lambda: shop.redeem(text, request_id="redeem-0001"))
        assert isinstance(error, StoreUnavailable)
        assert "does not answer" in error.message
        assert waited_s < REFUSED_S_MAX
        # One batch over both: each item has its own outcome.
        requests = [shop.stock_request(1, store_id=FAR_STORE, sku_id=sku) for sku in shops.SKUS]
        requests += [shop.stock_request(1, sku_id=sku) for sku in shops.SKUS]
        outcomes, waited_s = timed(lambda: stock.change(shop.deployment, requests))
        assert waited_s < REFUSED_S_MAX
        answered = [not isinstance(outcome, PickgateError) for outcome in outcomes]
        assert any(answered[:8]), "those whose request ids are registered at the primary that goes on"
        assert not any(answered[8:])
        assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes[8:])
        # Everything of the other goes on.
        begin_s = time.monotonic()
        terminal = Terminal(MALL, FAR_STORE, 7)
        assert shop.redeem(shop.show(there), terminal=terminal).verdict is RedeemVerdict.REDEEMED
        assert shop.deployment.control.refresh().checked_at_s > 0
        shop.deployment.look()
        assert time.monotonic() - begin_s < 2 * REFUSED_S_MAX
        # A process that starts meanwhile serves what can be served.
        with shops.open_deployment(shop.url, shop.clock) as other:
            assert stock.read(other, MALL, FAR_STORE)
            with pytest.raises(StoreUnavailable):
                stock.read(other, MALL, STORE)
    until(lambda: not isinstance(timed(shop.figures)[0], PickgateError), "it answers again")
    again = shop.redeem(text, request_id="redeem-0001")
    assert again.verdict is RedeemVerdict.REDEEMED
    assert connection.owners == 2
    check_against_store(fold(shop.events()), shop.deployment, shop.clock.now_ms)


@pytest.mark.usefixtures("impatient")
def test_the_sweep_goes_on_with_the_other_stores(shop: Shop, cluster: ClusterServers) -> None:
    for store_id in (STORE, FAR_STORE):
        shop.stock_all(store_id=store_id)
        shop.issue(store_id=store_id, ttl_s=60)
    shop.clock.tick(200)
    with cluster.stopped(STOPPED):
        make_silent(shop)
        outcome, waited_s = timed(lambda: expiry.sweep(shop.deployment))
        assert isinstance(outcome, StoreUnavailable)
        assert waited_s < CALL_S_MAX
        assert shop.figures(store_id=FAR_STORE).reserved == 0
    until(lambda: not isinstance(timed(shop.figures)[0], PickgateError), "it answers again")
    assert shop.figures().reserved == 1
    assert expiry.sweep(shop.deployment).expired == 1
    assert shop.figures().reserved == 0


@pytest.mark.usefixtures("impatient")
def test_the_ledger_reads_on_and_says_what_it_could_not_read(shop: Shop, cluster: ClusterServers) -> None:
    streams = Streams(shop.deployment.connection)
    places = {number: streams.last(number) for number in streams.numbers}
    with cluster.stopped(STOPPED):
        make_silent(shop)
        receive_there(shop, 1)
        found, waited_s = timed(lambda: streams.read(places, 100))
        assert list(found) == [2]
        assert streams.unread == {0, 1}
        assert waited_s < REFUSED_S_MAX
    until(lambda: not streams.read(places, 0) or not streams.unread, "all are read again")
    assert list(streams.read(places, 0)) == [2]


@pytest.mark.usefixtures("impatient")
def test_a_watch_of_the_other_store_goes_on(shop: Shop, cluster: ClusterServers) -> None:
    watches = StockWatches(shop.deployment)
    try:
        with watches.watch(WatchRequest(MALL, (FAR_STORE,), (100,))) as watch:
            news = iter(watch)
            assert [type(next(news)) for _ in range(2)] == [Level, LevelsTold]
            with cluster.stopped(STOPPED):
                make_silent(shop)
                receive_there(shop, 5)
                told, waited_s = timed(lambda: next(news))
                assert isinstance(told, Level)
                assert told.figures.on_hand == 5
                assert waited_s < 2
                # And one that begins now.
                with watches.watch(WatchRequest(MALL, (FAR_STORE,), (100,))) as late:
                    assert [type(one) for one in islice(late, 2)] == [Level, LevelsTold]
    finally:
        watches.close()


@pytest.mark.usefixtures("impatient")
def test_followed_from_the_beginning_once_it_answers(shop: Shop, cluster: ClusterServers) -> None:
    with cluster.stopped(STOPPED):
        make_silent(shop)
        following = Following(shop.deployment.connection)
        assert following.read(50, lambda mall_id, store_id: True) == []
    lost: list[StoreUnavailable] = []

    def found() -> bool:
        try:
            following.read(50, lambda mall_id, store_id: True)
        except StoreUnavailable as error:
            lost.append(error)
        return bool(lost)

    until(found, "its end is found, and those who watch are told that something may be missing")
    shop.receive(5)
    assert [event.store_id for event in following.read(2_000, lambda mall_id, store_id: True)] == [STORE]


@pytest.mark.usefixtures("impatient")
def test_policies_reach_a_primary_that_was_silent(shop: Shop, cluster: ClusterServers) -> None:
    """The copy must not grow old for all stores because one partition can't be told of a policy."""
    control = shop.deployment.control
    with cluster.stopped(STOPPED):
        make_silent(shop)
        shop.put_policies(Policy("deployment", tiers=Tiers(40, 20, 10, 5, 2)))
        assert control.refresh().versions["policies"]
        assert _bounds(shop, 2)
    until(lambda: not isinstance(timed(shop.figures)[0], PickgateError), "it answers again")
    control.refresh()
    assert _bounds(shop, HERE) == _bounds(shop, 2)


def _bounds(shop: Shop, partition: int) -> Any:
    [found] = shop.deployment.connection.read(
        [("HGETALL", shop.deployment.connection.partitions[partition].bounds)]
    )
    return found


# --- slots that move, servers that come and go --------------------------------------------------------------------
def test_a_slot_that_moves_brings_a_new_epoch_and_loses_nothing(
    own_shop: Shop, own_cluster: ClusterServers
) -> None:
    shop, connection = own_shop, own_shop.deployment.connection
    shop.stock_all()
    uid = shop.issue().uid
    slot = slot_of(spread_tags(PARTITIONS)[HERE])
    own_cluster.move_at_once(slot, 0, 1)
    # Nobody told this process: the server that had it says so.
    assert shop.redeem(shop.show(uid)).verdict is RedeemVerdict.REDEEMED
    assert connection.owner_of(HERE) == connection.owner_of(2) != connection.owner_of(0)
    own_cluster.move_at_once(slot, 1, 0)
    shop.receive(1)
    assert connection.owner_of(HERE) == connection.owner_of(0)
    mine = [event for event in shop.events() if event.id.partition == HERE]
    assert [event.id.epoch for event in mine if event.type is EventType.EPOCH] == [2, 3]
    assert mine[-1].id.epoch == 3, "back at the first, which is another one than before"
    assert len({event.id for event in shop.events()}) == len(shop.events())
    assert {event.id.epoch for event in shop.events() if event.id.partition == 2} <= {1}
    check_against_store(fold(shop.events()), shop.deployment, shop.clock.now_ms)


@pytest.mark.usefixtures("impatient")
def test_another_primary_is_another_owner(own_shop: Shop, own_cluster: ClusterServers) -> None:
    shop, connection = own_shop, own_shop.deployment.connection
    shop.stock_all()
    number = own_cluster.add()
    own_cluster.move_at_once(slot_of(spread_tags(PARTITIONS)[HERE]), 0, number)
    shop.receive(1)
    assert connection.owners == 3
    assert len({connection.owner_of(partition) for partition in (0, HERE, 2)}) == 3
    assert [connection.owner_of(partition) for partition in (0, 2, 3)] == [0, 1, 1], (
        "the others keep their numbers"
    )
    with own_cluster.stopped(number):
        make_silent(shop)
        receive_there(shop, 1)


def test_a_promoted_replica_begins_an_epoch(own_shop: Shop, own_cluster: ClusterServers) -> None:
    shop, cluster = own_shop, own_cluster
    shop.stock_all()
    replica = cluster.add()
    cluster.replicate(0, replica)
    uids = [shop.issue().uid for _ in range(2)]
    for n, (promoted, uid) in enumerate(zip((replica, 0), uids, strict=True)):
        cluster.wait_for_replica(0, replica)
        cluster.ask(promoted, "CLUSTER", "FAILOVER")
        until(lambda: cluster.slots_of(promoted), "it is promoted")  # noqa: B023
        text = shop.show(uid)
        request = shop.redeem_request(text)

        def redeemed() -> bool:
            [outcome] = redemption.redeem(shop.deployment, [request])  # noqa: B023
            return not isinstance(outcome, PickgateError) and outcome.verdict is RedeemVerdict.REDEEMED

        until(redeemed, "it redeems")
        assert shop.events()[-1].id.epoch == n + 2
    check_against_store(fold(shop.events()), shop.deployment, shop.clock.now_ms)
    assert {event.id.epoch for event in shop.events() if event.id.partition > 1} <= {1}
