"""A store of two primaries under a real server: one stops and only its own stores do; a slot moves under load."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import grpc
import pytest

from engine.claims import partition_of
from engine.deployment import Deployment
from engine.state.events import EventType
from engine.state.keys import partition_of_store, slot_of, spread_tags
from tests.clusters import ClusterServers, until
from tests.engine.shop import read_events
from tests.fault.malls import Mall, Tried, open_mall, texts_of
from tests.race import shop as shops
from tests.race.serving import ROOT
from tests.race.shop import OTHER_STORE, PARTITIONS, SOAK, STORE

pytestmark = pytest.mark.fault

CALL_S_MAX: Final = 7.5
"""Three seconds for a connection, three for the answer, and slack for a busy machine."""
REFUSED_S_MAX: Final = 1.0
"""For what needs a primary that is known not to answer: nothing is waited for."""
NEAR_S_MAX: Final = 1.0
"""Half of the calls for the other store are far below; the slowest of a busy machine's may take so long, and a third of the timeout."""

PAUSE_S: Final = 0.01
"""Between two calls of those who go on, so that their codes last as long as the stop."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ClusterServers]:
    with ClusterServers(tmp_path, durability="fsync") as made:
        yield made


@pytest.fixture
def mall(cluster: ClusterServers) -> Iterator[Mall]:
    shops.create(cluster.url)
    with open_mall(cluster.url) as opened:
        yield opened


def home(store_id: int, cluster: ClusterServers) -> int:
    return cluster.home(partition_of_store(store_id, PARTITIONS), PARTITIONS)


def test_a_stopped_primary_stops_only_its_own_stores(mall: Mall, cluster: ClusterServers) -> None:
    assert cluster.ask(1, "CLUSTER", "COUNTKEYSINSLOT", slot_of(b"ctl")), (
        "the control partition is with the other"
    )
    assert (home(STORE, cluster), home(OTHER_STORE, cluster)) == (0, 1)
    mine = 40
    sku, texts = texts_of(mall, mine, STORE)
    other_sku, other_texts = texts_of(mall, 2_000, OTHER_STORE)
    others = iter(enumerate(other_texts))
    before, other_before = mall.shop.figures(sku), mall.shop.figures(other_sku, store_id=OTHER_STORE)
    went_on: list[Tried] = []
    going = threading.Event()

    def go_on() -> None:
        while not going.wait(PAUSE_S):
            n, text = next(others)
            went_on.append(mall.redeem(f"other-{n:06}", text, OTHER_STORE))

    def redeem_mine(n: int) -> Tried:
        return mall.redeem(f"mine-{n:06}", texts[n], STORE)

    with ThreadPoolExecutor(mine + 14) as pool:
        for n in range(8):
            assert redeem_mine(n).verdict == "REDEEMED"
        walkers = [pool.submit(go_on) for _ in range(2)]
        until(lambda: len(went_on) >= 20, "the other store redeems")
        with cluster.stopped(0):
            first = len(went_on)
            stopped_at_s = time.monotonic()
            # Some of these wait for the stopped one as well: those who redeem must not wait behind them.
            issuing = [pool.submit(mall.issue, f"early-{n:08}", other_sku, OTHER_STORE) for n in range(12)]
            tried = list(pool.map(redeem_mine, range(mine)))
            issued = [future.result() for future in issuing]
            # By now it is known to be silent: nobody waits any more.
            again = list(pool.map(redeem_mine, range(8, 16)))
            issued_late = [mall.issue(f"issue-{n:08}", other_sku, OTHER_STORE) for n in range(24)]
            healthy = mall.client.healthy()
            stopped_s = time.monotonic() - stopped_at_s
            last = len(went_on)
        going.set()
        for walker in walkers:
            walker.result()

    meanwhile = went_on[first:last]
    # The primary's own calls: undecided, each in its time.
    assert {(one.code, one.reason) for one in tried} <= {
        (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE"),
        (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE"),
    }
    assert max(one.s for one in tried) < CALL_S_MAX
    assert {one.code for one in again} == {grpc.StatusCode.UNAVAILABLE}
    assert max(one.s for one in again) < REFUSED_S_MAX
    # The other's: as if nothing were.
    assert {(one.code, one.verdict) for one in went_on} == {(grpc.StatusCode.OK, "REDEEMED")}
    assert len(meanwhile) > 5 * stopped_s, "it went on all the time"
    assert max(one.s for one in meanwhile) < NEAR_S_MAX
    # An issue needs the partition in which its request id is registered too: half of them are there.
    for some, s_max in ((issued, CALL_S_MAX), (issued_late, REFUSED_S_MAX)):
        assert {one.code for one in some} == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
        assert {one.verdict for one in some} == {"ISSUED", ""}
        assert max(one.s for one in some) < s_max
    assert healthy, "a balancer must not take the server from the stores that go on"

    # And afterwards nothing is lost, and nothing was done twice.
    settled = [mall.settle(f"mine-{n:06}", texts[n], STORE) for n in range(mine)]
    assert {one.verdict for one in settled} == {"REDEEMED"}
    assert all(one.replayed for one in settled[:8])
    assert mall.shop.figures(sku).on_hand == before.on_hand - mine
    assert mall.shop.figures(sku).reserved == before.reserved - mine
    after = mall.shop.figures(other_sku, store_id=OTHER_STORE)
    assert after.on_hand == other_before.on_hand - len(went_on)
    assert mall.redeemed().total() == mine + len(went_on)
    assert set(mall.redeemed().values()) == {1}
    mall.check()


@pytest.mark.parametrize("at_once", [True, False], ids=["as a whole", "key by key"])
def test_a_slot_moves_under_load(mall: Mall, cluster: ClusterServers, at_once: bool) -> None:
    """Every call ends in the right answer; those that met the partition halfway, at the second try or a later one."""
    partition = partition_of_store(STORE, PARTITIONS)
    slot = slot_of(spread_tags(PARTITIONS)[partition])
    count = 600 if SOAK else 240
    sku, texts = texts_of(mall, count, STORE)
    _, other_texts = texts_of(mall, count, OTHER_STORE)
    before = mall.shop.figures(sku)
    jobs = [
        (f"job-{n:07}-{store}", text, store)
        for store, some in ((STORE, texts), (OTHER_STORE, other_texts))
        for n, text in enumerate(some)
    ]
    jobs.sort()
    done: list[Tried] = []
    begun, moved = threading.Event(), threading.Event()

    def redeem(job: tuple[str, str, int]) -> Tried:
        one = mall.redeem(*job)
        done.append(one)
        if len(done) > count // 4:
            begun.set()
        if len(done) > count // 2:
            # The rest meets what the move has left.
            assert moved.wait(60)
        return one if one.code is grpc.StatusCode.OK else mall.settle(*job)

    def move() -> None:
        assert begun.wait(60)
        try:
            if at_once:
                cluster.move_at_once(slot, 0, 1)
            else:
                for _ in cluster.move_keys(slot, 0, 1):
                    pass
        finally:
            moved.set()

    with ThreadPoolExecutor(9) as pool:
        mover = pool.submit(move)
        answers = list(pool.map(redeem, jobs))
        mover.result()
    assert slot in cluster.slots_of(1)
    assert {one.verdict for one in answers} == {"REDEEMED"}
    assert {(one.code, one.reason) for one in done} <= {
        (grpc.StatusCode.OK, ""),
        (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE"),
    }
    if at_once:
        assert {one.code for one in done} == {grpc.StatusCode.OK}, "nobody had to ask twice"
    assert mall.shop.figures(sku).on_hand == before.on_hand - count
    assert mall.redeemed().total() == 2 * count
    assert set(mall.redeemed().values()) == {1}
    events = read_events(mall.deployment)
    epochs = {event.id.epoch for event in events if event.id.partition == partition}
    assert epochs == {1, 2}, "another server has it: another epoch"
    assert {event.id.epoch for event in events if event.id.partition != partition} == {1}
    assert all(
        partition_of(event.uid) == event.id.partition for event in events if event.type is EventType.REDEEMED
    )
    mall.check()


def test_a_replica_takes_over_by_itself(tmp_path: Path) -> None:
    """Three primaries, one of which has a replica and stands still: its stores go on while it does."""
    replica = 3
    with ClusterServers(tmp_path, 3, replicas=1, durability="fsync", node_timeout_ms=1_000) as cluster:
        homes = [
            cluster.home(partition_of_store(store, PARTITIONS), PARTITIONS) for store in (STORE, OTHER_STORE)
        ]
        assert homes == [0, 2]
        shops.create(cluster.url)
        with open_mall(cluster.url) as mall:
            sku, texts = texts_of(mall, 12, STORE)
            _, other_texts = texts_of(mall, 12, OTHER_STORE)
            before = mall.shop.figures(sku)
            assert mall.redeem("mine-00000", texts[0], STORE).verdict == "REDEEMED"
            cluster.wait_for_replica(0, replica)
            with cluster.stopped(0):
                taken_over = mall.settle("mine-00001", texts[1], STORE)
                assert (taken_over.verdict, taken_over.replayed) == ("REDEEMED", False)
                assert cluster.failed(0, asked=1)
                assert slot_of(spread_tags(PARTITIONS)[1]) in cluster.slots_of(replica)
                again = mall.redeem("mine-00000", texts[0], STORE)
                assert (again.verdict, again.replayed) == ("REDEEMED", True)
                tried = [mall.redeem(f"other-{n:05}", other_texts[n], OTHER_STORE) for n in range(12)]
                assert {one.verdict for one in tried} == {"REDEEMED"}
                assert mall.client.healthy()
            until(lambda: not cluster.slots_of(0), "the old primary has seen it")
            answers = [mall.settle(f"mine-{n:05}", texts[n], STORE) for n in range(2, 12)]
            assert {one.verdict for one in answers} == {"REDEEMED"}
            assert mall.shop.figures(sku).on_hand == before.on_hand - 12
            assert set(mall.redeemed().values()) == {1}
            assert {event.id.epoch for event in read_events(mall.deployment) if event.id.partition == 1} == {
                1,
                2,
            }
            mall.check()


def test_init_makes_the_deployment_in_a_cluster(cluster: ClusterServers) -> None:
    """The command line takes a cluster's address; what it makes lies on both primaries."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PICKGATE_")}
    done = subprocess.run(
        [sys.executable, "-m", "server.cli", "init", "--store", cluster.url],
        env=environ
        | {
            "PICKGATE_PASSPHRASE": shops.PASSPHRASE.decode(),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")]),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with Deployment.open(cluster.url, unlock=shops.unlock) as deployment:
        assert deployment.connection.owners == 2
    assert all(cluster.ask(number, "DBSIZE") > 0 for number in range(2))
