"""The ledger of a store of two primaries: followed, compared, and brought back from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from engine import limits
from engine.claims import Terminal
from engine.deployment import Durability
from engine.errors import PickgateError, StoreUnavailable
from engine.ledger import reconcile
from engine.ledger.ledger import Ledger
from engine.ledger.rebuild import rebuild
from engine.ledger.writer import Writer
from engine.state.cluster import connect
from engine.state.keys import partition_of_store
from engine.state.streams import Streams
from engine.verdict import RedeemVerdict
from tests.clusters import ClusterServers, until
from tests.engine import shop as shops
from tests.engine.shop import FAR_STORE, MALL, STORE, Clock, Shop

STOPPED = 0
"""It has STORE; the other FAR_STORE and the control partition."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterServers]:
    with ClusterServers(tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture
def shop(cluster: ClusterServers, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    # It does not matter here how long it takes to give a primary up.
    monkeypatch.setattr(limits, "STORE_TIMEOUT_S", 0.5)
    cluster.empty()
    shops.create(cluster.url, clock)
    with shops.open_deployment(cluster.url, clock) as deployment:
        shops.furnish(deployment)
        yield Shop(deployment, cluster.url, clock)


@pytest.fixture
def dialect() -> str:
    return "sqlite"


def busy(shop: Shop) -> None:
    for store_id in (STORE, FAR_STORE):
        shop.stock_all(20, store_id=store_id)
        first, second = (shop.issue(store_id=store_id) for _ in range(2))
        terminal = Terminal(MALL, store_id, 7)
        assert shop.redeem(shop.show(first.uid), terminal=terminal).verdict is RedeemVerdict.REDEEMED
        shop.void(second.uid)
    shop.transfer(3)


def write_all(writer: Writer) -> int:
    written = 0
    while appended := writer.step(block_ms=0):
        written += appended
    return written


def works(shop: Shop) -> bool:
    try:
        shop.figures()
    except PickgateError:
        return False
    return True


def test_followed_and_compared_to_the_unit(shop: Shop, ledger: Ledger, writer: Writer) -> None:
    busy(shop)
    write_all(writer)
    events = len(shop.events())
    assert sum(head.rows for number, head in ledger.heads().items() if number < 4) == events
    run = reconcile.reconcile(shop.deployment, ledger, cause="command")
    assert not run.drifts


def test_rebuilt_into_an_emptied_cluster(
    shop: Shop, ledger: Ledger, writer: Writer, cluster: ClusterServers
) -> None:
    busy(shop)
    live = shop.issue(store_id=FAR_STORE)
    write_all(writer)
    figures = [shop.figures(store_id=store_id) for store_id in (STORE, FAR_STORE)]
    shop.deployment.close()
    cluster.empty()
    with closing(connect(cluster.url, durability=Durability.MEMORY, now_ms=shop.clock)) as connection:
        assert connection.is_empty()
        rebuild(connection, ledger, now_ms=shop.clock())
    with shops.open_deployment(cluster.url, shop.clock) as again:
        back = Shop(again, cluster.url, shop.clock)
        assert [back.figures(store_id=store_id) for store_id in (STORE, FAR_STORE)] == figures
        terminal = Terminal(MALL, FAR_STORE, 7)
        assert back.redeem(back.show(live.uid), terminal=terminal).verdict is RedeemVerdict.REDEEMED


def test_with_a_primary_that_does_not_answer(
    shop: Shop, ledger: Ledger, writer: Writer, cluster: ClusterServers
) -> None:
    """The others' events are written on, and yet nobody is told that the ledger has all there is."""
    busy(shop)
    write_all(writer)
    caught_up_ms = writer.caught_up_ms
    assert caught_up_ms == shop.clock()
    here = partition_of_store(STORE, shops.PARTITIONS)
    shop.receive(1)
    with cluster.stopped(STOPPED):
        with pytest.raises(StoreUnavailable):
            shop.figures(store_id=STORE)
        shop.clock.tick(2)
        for _ in range(8):
            # Some ids are registered at the primary that does not answer.
            try:
                shop.receive(1, store_id=FAR_STORE)
            except StoreUnavailable:
                continue
            break
        before = {number: head.rows for number, head in ledger.heads().items()}
        assert write_all(writer) == 1
        assert writer.caught_up_ms == caught_up_ms
        # A writer that begins now does the same.
        second = Writer(Streams(shop.deployment.connection), ledger, now_ms=shop.clock)
        second.start()
        assert write_all(second) == 0
        assert second.caught_up_ms == 0
        assert ledger.heads()[here].rows == before[here]
    until(lambda: works(shop), "it answers again")
    assert write_all(second) == 1
    assert second.caught_up_ms == shop.clock()
    assert ledger.heads()[here].rows == before[here] + 1


def test_a_lost_event_is_seen_once_the_primary_answers(
    shop: Shop, ledger: Ledger, writer: Writer, cluster: ClusterServers
) -> None:
    busy(shop)
    write_all(writer)
    with cluster.stopped(STOPPED):
        with pytest.raises(StoreUnavailable):
            shop.figures(store_id=STORE)
        second = Writer(Streams(shop.deployment.connection), ledger, now_ms=shop.clock)
        second.start()
    until(lambda: works(shop), "it answers again")
    names = shop.deployment.connection.partitions[1]
    [last] = shop.deployment.connection.read([("XREVRANGE", names.events, "+", "-", "COUNT", 1)])
    shop.deployment.connection.write([("XDEL", names.events, last[0][0])])
    shop.receive(1)
    with pytest.raises(PickgateError, match="partition 1"):
        write_all(second)
