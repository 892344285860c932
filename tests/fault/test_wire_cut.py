"""Cut wires between engine and store: what was done and not heard of is done once, and the retry hears of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.state.events import EventType
from engine.state.server import EmbeddedServer
from tests.fault.rush import EngineCounter, open_rush
from tests.fault.scissors import Scissors
from tests.race.shop import Shop, open_shop

pytestmark = pytest.mark.fault

CODES = 200


def test_cut_requests_and_replies(store: EmbeddedServer, shop: Shop, tmp_path: Path, rounds: int) -> None:
    store_socket = Path(store.url.removeprefix("unix://"))
    for turn in range(rounds):
        wire = Scissors(store_socket, tmp_path / f"w{turn}", request_share=0.04, reply_share=0.08, seed=turn)
        with wire, open_shop(wire.url) as beyond:
            rush, sku = open_rush(shop, EngineCounter(beyond.deployment), CODES, seed=turn)
            before = shop.figures(sku)
            wire.sharp = True
            with rush:
                pass
            wire.sharp = False
        assert wire.cut_requests > 5
        assert wire.cut_replies > 10
        # A cut reply left the caller in doubt, and what it had asked for had been done: only the retry could tell.
        told_late = [
            call
            for call in rush.history.calls
            if call.answer and call.answer.success and call.answer.replayed
        ]
        assert told_late, "no reply of a redemption that was done was ever lost"

        books = rush.settle(shop.deployment)
        redeemed = sum(EventType.REDEEMED in books.kinds(uid) for uid in rush.uids)
        after = shop.figures(sku)
        assert (before.on_hand - after.on_hand, before.reserved - after.reserved) == (redeemed, CODES)
