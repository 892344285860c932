"""A store that stops answering (SIGSTOP) without being gone: calls end in time, undecided, and go on when it does."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from engine import issuance, limits, redemption, stock
from engine.calls import (
    InspectRequest,
    IssueRequest,
    RedeemRequest,
    RenderRequest,
    StockChange,
    StockRequest,
    VoidRequest,
)
from engine.claims import Line, Suite, Version
from engine.errors import StoreUnavailable
from engine.state.server import EmbeddedServer
from server.client import CallFailed, Client
from tests.fault.rush import EngineCounter, WireCounter, open_rush
from tests.race.serving import Serving, until
from tests.race.shop import MALL, SOAK, STORE, Shop, all_at_once, terminal

pytestmark = pytest.mark.fault

CALL_S_MAX = 7.5
"""Three seconds for a free connection, three for the answer, and slack for a busy machine."""


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def verbs(shop: Shop, sku: int) -> dict[str, Callable[[], list[Any]]]:
    """Every verb, ready to be called."""
    deployment = shop.deployment
    [code] = shop.issue(sku)
    [text] = shop.show([code])
    line = Line(sku, 1)
    issued = IssueRequest(MALL, shop.request_id(), STORE, "order", (line,), Version.DYNAMIC, Suite.AES)
    received = StockRequest(MALL, shop.request_id(), STORE, sku, StockChange.RECEIVE, 1)
    redeemed = RedeemRequest(terminal(1), shop.request_id(), text)
    voided = VoidRequest(MALL, shop.request_id(), code.uid)
    return {
        "redeem": lambda: redemption.redeem(deployment, [redeemed]),
        "inspect": lambda: redemption.inspect(deployment, [InspectRequest(terminal(1), text)]),
        "issue": lambda: issuance.issue(deployment, [issued]),
        "render": lambda: issuance.render(deployment, [RenderRequest(MALL, code.uid)]),
        "void": lambda: issuance.void(deployment, [voided]),
        "get": lambda: list(issuance.get(deployment, MALL, [code.uid])),
        "get by request id": lambda: list(issuance.get_by_request_id(deployment, MALL, ["shop-00000000"])),
        "change stock": lambda: stock.change(deployment, [received]),
        "read stock": lambda: list(stock.read(deployment, MALL, STORE, [sku])),
    }


def error_and_time(call: Callable[[], list[Any]]) -> tuple[Any, float]:
    """The outcome of a verb, errors as values, and how long it took in seconds."""
    start = time.monotonic()
    try:
        [outcome] = call()
    except StoreUnavailable as error:
        outcome = error
    return outcome, time.monotonic() - start


def test_every_verb_ends_in_time(store: EmbeddedServer, shop: Shop) -> None:
    calls = verbs(shop, shop.sku(10))
    with stopped(store.pid):
        outcomes = dict(zip(calls, all_at_once(error_and_time, list(calls.values())), strict=True))
    assert {
        name for name, (outcome, _) in outcomes.items() if not isinstance(outcome, StoreUnavailable)
    } == set()
    assert max(seconds for _, seconds in outcomes.values()) < CALL_S_MAX


@pytest.mark.parametrize("stop_s", [0.0, 7.0] if SOAK else [0.0])
def test_a_rush_goes_on_when_the_store_does(
    store: EmbeddedServer, shop: Shop, rounds: int, stop_s: float
) -> None:
    """After more than five seconds, what was sent before the stop is too old to be done; before that, it may be."""
    for turn in range(rounds):
        rush, sku = open_rush(shop, EngineCounter(shop.deployment), 120, seed=turn)
        before = shop.figures(sku)
        with rush:
            rush.reach(rush.jobs // 2)
            with stopped(store.pid):
                end = time.monotonic() + stop_s
                rush.go_on()
                until(lambda: rush.history.unanswered() > 0, "a call ends undecided", CALL_S_MAX)  # noqa: B023
                until(lambda: time.monotonic() >= end, "the stop is over")  # noqa: B023
        durations = [call.ended_at_ms - call.sent_at_ms for call in rush.history.calls]
        assert max(durations) < CALL_S_MAX * 1000
        assert max(durations) >= limits.STORE_TIMEOUT_S * 1000 - 100, "it was given its time"
        # What was sent before the stop may have been done after it, when nobody listened any more: the retries say so.
        rush.settle(shop.deployment)
        assert before.reserved - shop.figures(sku).reserved == 120
        assert store.restarts == 0


def test_a_server_over_a_stalled_store_says_so(serving: Serving) -> None:
    with serving.open_beside() as deployment, Client(serving.address, tries=1, timeout_s=30.0) as client:
        shop = Shop(deployment)
        sku = shop.sku(1)
        [code] = shop.issue(sku)
        [text] = shop.show([code])
        counter = WireCounter(client)
        [info] = deployment.connection.read([("INFO", "server")])
        with stopped(int(info["process_id"])):
            start = time.monotonic()
            with pytest.raises(CallFailed) as caught:
                client.call(client.redemption.Redeem, counter.redeem_message(1, "stalled-1", text))
            assert time.monotonic() - start < CALL_S_MAX
            assert (caught.value.code, caught.value.reason) == (
                grpc.StatusCode.UNAVAILABLE,
                "STORE_UNAVAILABLE",
            )
        answer = counter.redeem(1, "stalled-1", text)
        assert answer is not None
        assert answer.success
        rival = counter.redeem(2, "stalled-2", text)
        assert rival is not None
        assert (rival.verdict, rival.terminal_id, rival.at_ms) == ("ALREADY_REDEEMED", 1, answer.at_ms)
