"""kill -9 of the store in the middle of a rush: it comes back by itself, and nothing that was said is untrue."""

from __future__ import annotations

import os
import signal

import pytest

from engine.errors import StoreUnavailable
from engine.state.events import EventType
from engine.state.server import EmbeddedServer
from tests.fault.rush import EngineCounter, open_rush
from tests.race.serving import until
from tests.race.shop import Shop

pytestmark = pytest.mark.fault

CODES = 240
KILLS = 3


def epochs(shop: Shop) -> set[int]:
    """Epochs that the partitions are in; empty while the store is down."""
    connection = shop.deployment.connection
    try:
        values = connection.read([("HGET", names.meta, "epoch") for names in connection.partitions])
    except StoreUnavailable:
        return set()
    return {int(value) for value in values}


def test_store_killed_in_a_rush(store: EmbeddedServer, shop: Shop, rounds: int) -> None:
    kills = 0
    for turn in range(rounds):
        rush, sku = open_rush(shop, EngineCounter(shop.deployment), CODES, seed=turn)
        before = shop.figures(sku)
        with rush:
            for part in range(1, KILLS + 1):
                rush.reach(rush.jobs * part // (KILLS + 1))
                os.kill(store.pid, signal.SIGKILL)
                kills += 1
                rush.go_on()
                until(lambda: store.restarts == kills, "the store is started again")  # noqa: B023
                # A partition's epoch rises when the new store is met: before the next one is killed.
                until(lambda: epochs(shop) == {1 + kills}, "the new store is met")  # noqa: B023
        assert rush.history.unanswered() > 0, "nobody noticed"

        books = rush.settle(shop.deployment)
        after = shop.figures(sku)
        redeemed = sum(EventType.REDEEMED in books.kinds(uid) for uid in rush.uids)
        assert before.reserved - after.reserved == CODES
        assert before.on_hand - after.on_hand == redeemed
        assert set(books.epochs().values()) == {1 + kills}, "each partition has met each new store once"
        new_epochs = [event for event in books.events if event.type is EventType.EPOCH]
        assert len({event.facts["run_id"] for event in new_epochs}) == kills
