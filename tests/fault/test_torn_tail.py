"""What a crash leaves at the end of the append-only file: the last change is there or it is not, and never in part."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from engine import redemption
from engine.calls import RedeemRequest
from engine.claims import State
from engine.state import codes
from engine.state.events import EventType
from engine.state.server import EmbeddedServer
from engine.verdict import RedeemVerdict
from tests.conftest import StoreFactory
from tests.fault.rush import EngineCounter, open_rush
from tests.race.books import check_books
from tests.race.serving import until
from tests.race.shop import SOAK, open_shop, sound, terminal

pytestmark = pytest.mark.fault


def log_of(store: EmbeddedServer, data_dir: Path | None = None) -> Path:
    """The file that changes are appended to."""
    [log] = (data_dir or store.data_dir).glob("appendonlydir/*.incr.aof")
    return log


def test_a_change_cut_anywhere_never_happened(
    store: EmbeddedServer, make_store: StoreFactory, tmp_path: Path
) -> None:
    with open_shop(store.url) as shop:
        sku = shop.sku(10)
        kept, cut = shop.issue(sku, 2, units=3)
        requests = [
            RedeemRequest(terminal(n), f"torn-tail-{n}", text)
            for n, text in enumerate(shop.show([kept, cut]), 1)
        ]
        [answer] = redemption.redeem(shop.deployment, [requests[0]])
        acknowledged = sound(answer)
        before_bytes = log_of(store).stat().st_size
        [answer] = redemption.redeem(shop.deployment, [requests[1]])
        assert sound(answer).verdict is RedeemVerdict.REDEEMED
        after_bytes = log_of(store).stat().st_size
    store.stop()
    assert log_of(store).stat().st_size == after_bytes > before_bytes + 100

    step = 1 if SOAK else (after_bytes - before_bytes) // 8
    lengths = sorted({before_bytes, *range(before_bytes + 1, after_bytes, step), after_bytes - 1})
    for length in lengths:
        data_dir = tmp_path / f"cut-{length}"
        shutil.copytree(store.data_dir, data_dir)
        os.truncate(log_of(store, data_dir), length)
        torn = make_store(data_dir)
        with open_shop(torn.url) as shop:
            books = check_books(shop.deployment)
            assert books.kinds(kept.uid) == [EventType.ISSUED, EventType.REDEEMED]
            assert books.kinds(cut.uid) == [EventType.ISSUED]
            figures = shop.figures(sku)
            assert (figures.on_hand, figures.reserved) == (7, 3)
            [record] = codes.read(shop.deployment.connection, [cut.uid])
            assert record is not None
            assert record.state is State.LIVE
            # And the terminal, which retries, gets it now; the acknowledged one gets its answer again.
            [fresh] = shop.show([cut])
            retries = [requests[0], replace(requests[1], code=fresh)]
            first, second = map(sound, redemption.redeem(shop.deployment, retries))
            assert (first.replayed, first.event, first.at_ms) == (
                True,
                acknowledged.event,
                acknowledged.at_ms,
            )
            assert (second.replayed, second.verdict) == (False, RedeemVerdict.REDEEMED)
            assert second.event is not None
            assert second.event.epoch == 2
            check_books(shop.deployment)
        torn.stop()
        shutil.rmtree(data_dir)


TORN = {
    "half a command": b"*4\r\n$4\r\nHSET\r\n$5\r\n{p0.",
    "half a length": b"*4\r\n$4",
    "an unfinished transaction": b"*1\r\n$5\r\nMULTI\r\n*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$1\r\n1\r\n",
    "a transaction cut in its last command": (
        b"*1\r\n$5\r\nMULTI\r\n*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$1\r\n1\r\n*1\r\n$4\r\nEXE"
    ),
}


@pytest.mark.parametrize("what", TORN)
def test_a_torn_tail_after_a_kill_costs_nothing_acknowledged(store: EmbeddedServer, what: str) -> None:
    with open_shop(store.url) as shop:
        rush, _ = open_rush(shop, EngineCounter(shop.deployment), 40, seed=1)
        with rush:
            rush.reach(20)
            os.kill(store.pid, signal.SIGKILL)
            # Down for a while, with what the crash left at the end of its file.
            store.stop()
            rush.go_on()
            until(lambda: rush.history.unanswered() > 0, "the store is missed")
            with log_of(store).open("ab") as log:
                log.write(TORN[what])
            store.start()
        books = rush.settle(shop.deployment)
        assert max(books.epochs().values()) >= 2
        assert shop.deployment.connection.read([("EXISTS", "half")]) == [0]
