"""kill -9 of `pickgate serve` in the middle of a rush: its store ends with it, and a restart knows all that was said."""

from __future__ import annotations

import signal

import pytest

from engine.state.events import EventType
from server.client import Client
from tests.fault.rush import WireCounter, open_rush
from tests.race.serving import Serving, is_alive, until
from tests.race.shop import Shop

pytestmark = pytest.mark.fault

CODES = 200
KILLS = 2


def store_pid(serving: Serving) -> int:
    with serving.open_beside() as deployment:
        [info] = deployment.connection.read([("INFO", "server")])
    return int(info["process_id"])


def test_server_killed_in_a_rush(serving: Serving, rounds: int) -> None:
    for turn in range(rounds):
        with Client(serving.address, tries=1, timeout_s=5.0) as client:
            with serving.open_beside() as deployment:
                shop = Shop(deployment, name=f"turn-{turn}")
                rush, sku = open_rush(shop, WireCounter(client), CODES, seed=turn)
                before = shop.figures(sku)
            with rush:
                for part in range(1, KILLS + 1):
                    pid = store_pid(serving)
                    rush.wait_answered(rush.jobs * part // (KILLS + 1))
                    assert serving.end(signal.SIGKILL) == -signal.SIGKILL
                    until(lambda: not is_alive(pid), "the store ends with its server", 10.0)  # noqa: B023
                    serving.start()
                assert rush.running, "the last kill came too late to disturb anything"
        assert rush.history.unanswered() >= KILLS, "nobody noticed"

        with serving.open_beside() as deployment:
            books = rush.settle(deployment)
            after = Shop(deployment, name="after").figures(sku)
        redeemed = sum(EventType.REDEEMED in books.kinds(uid) for uid in rush.uids)
        assert before.reserved - after.reserved == CODES
        assert before.on_hand - after.on_hand == redeemed
        assert set(books.epochs().values()) == {1 + (turn + 1) * KILLS}
