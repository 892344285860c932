"""A server that dies or stops in the middle of a rush: its store ends with it, and after a restart all that was said is true."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from engine.errors import StoreUnavailable
from engine.state.events import EventType
from server.client import Client
from tests.fault.rush import WireCounter, open_rush
from tests.race.serving import Serving, is_alive, until
from tests.race.shop import Shop

pytestmark = pytest.mark.fault

CODES = 200
HARMS = 2


def store_pid(serving: Serving, other_than: int = 0) -> int:
    """Process id of the server's store, once it has another one than that of before."""
    found = 0

    def is_another() -> bool:
        nonlocal found
        try:
            with serving.open_beside() as deployment:
                [info] = deployment.connection.read([("INFO", "server")])
        except StoreUnavailable:
            return False
        found = int(info["process_id"])
        return found != other_than

    until(is_another, "the server has a new store")
    return found


def kill_server(serving: Serving, pid: int, go_on: Callable[[], None]) -> None:
    assert serving.end(signal.SIGKILL) == -signal.SIGKILL
    until(lambda: not is_alive(pid), "the store ends with its server", 10.0)
    go_on()
    serving.start()


def stop_server(serving: Serving, pid: int, go_on: Callable[[], None]) -> None:
    assert serving.end(signal.SIGTERM) == 0
    assert not is_alive(pid), "the store ends before its server does"
    go_on()
    serving.start()


def kill_store(serving: Serving, pid: int, go_on: Callable[[], None]) -> None:
    server = serving.pid
    os.kill(pid, signal.SIGKILL)
    go_on()
    until(lambda: not is_alive(pid), "the store is gone", 10.0)
    assert is_alive(server)


def kill_store_then_server(serving: Serving, pid: int, go_on: Callable[[], None]) -> None:
    os.kill(pid, signal.SIGKILL)
    kill_server(serving, pid, go_on)


Harm = Callable[[Serving, int, Callable[[], None]], None]


@pytest.mark.parametrize("harm", [kill_server, stop_server, kill_store, kill_store_then_server])
def test_harm_in_a_rush(serving: Serving, harm: Harm, rounds: int) -> None:
    for turn in range(rounds):
        with Client(serving.address, tries=1, timeout_s=5.0) as client:
            with serving.open_beside() as deployment:
                shop = Shop(deployment, name=f"turn-{turn}")
                rush, sku = open_rush(shop, WireCounter(client), CODES, seed=turn)
                before = shop.figures(sku)
            pid = 0
            with rush:
                for part in range(1, HARMS + 1):
                    pid = store_pid(serving, pid)
                    rush.reach(rush.jobs * part // (HARMS + 1))
                    harm(serving, pid, rush.go_on)
        assert rush.history.unanswered() > 0, "nobody noticed"

        with serving.open_beside() as deployment:
            books = rush.settle(deployment)
            after = Shop(deployment, name="after").figures(sku)
        redeemed = sum(EventType.REDEEMED in books.kinds(uid) for uid in rush.uids)
        assert before.reserved - after.reserved == CODES
        assert before.on_hand - after.on_hand == redeemed
        epochs = set(books.epochs().values())
        if harm is kill_store_then_server:
            # The store may have come back for a moment, and been met, before the server was killed.
            assert min(epochs) > (turn + 1) * HARMS
        else:
            assert epochs == {1 + (turn + 1) * HARMS}
