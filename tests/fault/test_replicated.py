"""Durability `replicated` through the hot lane: an answer means that a replica has it on its disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import grpc
import pytest

from engine import limits
from engine.deployment import Durability
from engine.state.keys import partition_of_store
from tests.clusters import ClusterServers
from tests.fault.malls import Mall, open_mall, texts_of
from tests.race import shop as shops
from tests.race.shop import OTHER_STORE, PARTITIONS, STORE

pytestmark = pytest.mark.fault

COUNT: Final = 16
MISSED_S_MAX: Final = 2 * (2 * limits.REPLICATION_TIMEOUT_MS / 1000) + 3.0
"""The waits of the batch before and of its own, and slack for a busy machine."""
NEAR_S_MAX: Final = 1.5


@contextmanager
def replicated(folder: Path, primaries: int) -> Iterator[tuple[ClusterServers, Mall]]:
    """A cluster in which each primary has one replica, number primaries + its own."""
    with ClusterServers(folder, primaries, replicas=primaries, durability="fsync") as cluster:
        shops.create(cluster.url)
        with open_mall(cluster.url, Durability.REPLICATED, replicas=1) as mall:
            yield cluster, mall


def test_a_stopped_replica_leaves_calls_undecided_and_retries_safe(tmp_path: Path) -> None:
    with replicated(tmp_path, 1) as (cluster, mall), ThreadPoolExecutor(COUNT) as pool:
        sku, texts = texts_of(mall, 2 * COUNT, STORE)
        before = mall.shop.figures(sku)

        began_s = time.monotonic()
        reached = [mall.redeem(f"redeem-{n:05}", texts[n], STORE) for n in range(4)]
        assert {one.verdict for one in reached} == {"REDEEMED"}
        assert time.monotonic() - began_s < 3, (
            "it is not the replica's own clock of one second that is waited for"
        )

        with cluster.stopped(1):
            # The first one's retry changes nothing, and yet says nothing that the replica may not have.
            tried = [0, *range(4, COUNT)]
            missed = list(pool.map(lambda n: mall.redeem(f"redeem-{n:05}", texts[n], STORE), tried))
            # Nor does another process, none of whose connections has ever written anything.
            with open_mall(cluster.url, Durability.REPLICATED, replicas=1) as other:
                elsewhere = [other.redeem(f"redeem-{n:05}", texts[n], STORE) for n in (0, 5)]
        assert {(one.code, one.reason) for one in (*missed, *elsewhere)} == {
            (grpc.StatusCode.UNAVAILABLE, "NOT_REPLICATED")
        }
        assert max(one.s for one in missed) < MISSED_S_MAX
        settled = [mall.settle(f"redeem-{n:05}", texts[n], STORE) for n in range(COUNT)]
        assert {one.verdict for one in settled} == {"REDEEMED"}
        assert all(one.replayed for one in settled), "the change had happened, and is not made again"
        assert mall.shop.figures(sku).on_hand == before.on_hand - COUNT
        assert mall.redeemed().total() == COUNT
        mall.check()


def test_each_primary_waits_for_its_own_replica(tmp_path: Path) -> None:
    with replicated(tmp_path, 2) as (cluster, mall), ThreadPoolExecutor(COUNT) as pool:
        homes = [
            cluster.home(partition_of_store(store, PARTITIONS), PARTITIONS) for store in (STORE, OTHER_STORE)
        ]
        assert homes == [0, 1]
        _, mine = texts_of(mall, COUNT, STORE)
        _, others = texts_of(mall, COUNT, OTHER_STORE)
        with cluster.stopped(2):
            waiting = [pool.submit(mall.redeem, f"mine-{n:07}", mine[n], STORE) for n in range(4)]
            answered = [mall.redeem(f"other-{n:06}", others[n], OTHER_STORE) for n in range(COUNT)]
            missed = [future.result() for future in waiting]
        assert {one.verdict for one in answered} == {"REDEEMED"}
        assert max(one.s for one in answered) < NEAR_S_MAX
        assert {one.reason for one in missed} == {"NOT_REPLICATED"}
        assert mall.settle("mine-0000000", mine[0], STORE).replayed
        mall.check()
