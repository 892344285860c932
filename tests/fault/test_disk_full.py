"""A disk that fills up under the store: calls are undecided, and what was acknowledged before is still there after."""

from __future__ import annotations

import resource

import pytest

from engine.state.server import EmbeddedServer
from tests.fault.rush import EngineCounter, open_rush
from tests.fault.test_torn_tail import log_of
from tests.race.serving import until
from tests.race.shop import Shop

pytestmark = pytest.mark.fault

ROOM_BYTES = 20_000
"""What the store may still append: some redemptions' worth."""


def test_disk_full_in_a_rush(store: EmbeddedServer, shop: Shop, rounds: int) -> None:
    for turn in range(rounds):
        rush, sku = open_rush(shop, EngineCounter(shop.deployment), 150, seed=turn)
        before = shop.figures(sku)
        restarts = store.restarts
        room = log_of(store).stat().st_size + ROOM_BYTES
        resource.prlimit(store.pid, resource.RLIMIT_FSIZE, (room, room))
        with rush:
            rush.let_all_in()
            # The store can't write what it was asked to, so it ends rather than acknowledge; it comes back unlimited.
            until(lambda: store.restarts > restarts, "the store ends for want of room")  # noqa: B023
        assert rush.history.unanswered() > 0
        rush.settle(shop.deployment)
        assert before.reserved - shop.figures(sku).reserved == 150
