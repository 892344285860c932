"""Slow-down of whoever keeps presenting forged codes or wrong PINs; and nobody else."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from engine.errors import SlowDown
from engine.verdict import InspectVerdict, RedeemVerdict
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import types_pb2 as types_pb
from server import bounds, throttle
from server.client import CallFailed, Client
from server.config import parse_listen
from server.serve import Server
from server.throttle import BAD, RATES, Throttle
from tests.server.conftest import AT_STORE, MALL, NEAR_STORE, STORE, House, wait_until

FORGED = RedeemVerdict.INVALID_CODE
ROOM = RATES["forged"]["terminal"].burst
FAR = "ipv4:203.0.113.7:41234"


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


class Desk:
    """A throttle with a clock, and what it told."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.told: list[str] = []
        self.throttle = Throttle(monotonic_s=self.clock, alert=self.told.append)

    def request(self, terminal: int = 3, store: int = STORE, pin: str = "") -> bytes:
        at = types_pb.Terminal(mall_id=MALL, store_id=store, terminal_id=terminal)
        return redemption_pb.RedeemRequest(
            terminal=at, code="x", request_id="request-1", pin=pin
        ).SerializeToString()

    def bad(self, times: int = 1, verdict: RedeemVerdict = FORGED, peer: str = FAR, **fields: Any) -> None:
        answer = redemption_pb.RedeemResponse(verdict=verdict.number).SerializeToString()  # type: ignore[arg-type]
        for _ in range(times):
            self.throttle.note("Redeem", self.request(**fields), answer, lambda: peer)

    def refusal(self, peer: str = FAR, **fields: Any) -> SlowDown | None:
        return self.throttle.refusal("Redeem", self.request(**fields), lambda: peer)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_bad_answers_are_told_by_their_first_bytes() -> None:
    """Of both methods, whatever else they say; and no other verdict's."""
    bad = {"INVALID_CODE", "PIN_WRONG", "PROOF_REJECTED", "LOCKED"}
    for verdicts, message in (
        (RedeemVerdict, redemption_pb.RedeemResponse),
        (InspectVerdict, redemption_pb.InspectResponse),
    ):
        for verdict in verdicts:
            made = message(message_zh="…", uid="f" * 16)
            made.verdict = verdict.number  # type: ignore[assignment]  # the numbers are the enum's
            written = made.SerializeToString()
            assert (written[:2] in BAD) == (verdict.name in bad), verdict


def test_a_clerk_s_mistakes_cost_nothing(desk: Desk) -> None:
    for _ in range(100):
        desk.bad()
        assert not desk.throttle.slowing
        desk.clock.now_s += RATES["forged"]["terminal"].gap_s
    assert desk.told == []


def test_a_flood_is_slowed_down_and_let_go_again(desk: Desk) -> None:
    desk.bad(ROOM)
    assert desk.refusal() is None
    desk.bad()
    refusal = desk.refusal()
    assert refusal is not None
    assert 0 < refusal.retry_after_ms <= 3_000
    assert "terminal" in refusal.message
    # After the time that it was told: one more is looked at; is that bad too, it waits again.
    desk.clock.now_s += refusal.retry_after_ms / 1000
    assert desk.refusal() is None
    assert not desk.throttle.slowing
    desk.bad()
    assert desk.refusal() is not None
    # Quiet for as long as its room is worth: as if nothing had been.
    desk.clock.now_s += RATES["forged"]["terminal"].gap_s * (ROOM + 1)
    assert desk.refusal() is None
    desk.bad(ROOM)
    assert desk.refusal() is None


def test_the_harder_the_flood_the_longer_the_wait_up_to_a_bound(desk: Desk) -> None:
    desk.bad(100_000)
    refusal = desk.refusal()
    assert refusal is not None
    assert refusal.retry_after_ms == bounds.SLOW_DOWN_S_MAX * 1000


def test_one_terminal_closes_neither_its_store_nor_its_address(desk: Desk) -> None:
    desk.bad(10_000)
    assert desk.refusal() is not None
    assert desk.refusal(terminal=4) is None
    assert desk.refusal(store=NEAR_STORE) is None


def test_many_terminals_of_a_store_close_that_store(desk: Desk) -> None:
    for terminal in range(1, 12):
        desk.bad(ROOM // 2, terminal=terminal)
    refusal = desk.refusal(terminal=99)
    assert refusal is not None
    assert "store" in refusal.message
    assert desk.refusal(terminal=99, store=NEAR_STORE) is None


def test_many_stores_of_an_address_close_that_address(desk: Desk) -> None:
    for store, terminal in itertools.product(range(1, 11), range(1, 8)):
        desk.bad(10, store=store, terminal=terminal)
    refusal = desk.refusal(store=77)
    assert refusal is not None
    assert "address" in refusal.message
    assert desk.refusal(store=77, peer="ipv4:203.0.113.8:1") is None


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:203.0.113.7:41234", "203.0.113.7"),
        ("ipv6:%5B2001:db8::1%5D:443", "2001:db8::/64"),
        ("ipv6:%5B2001:db8::ffff%5D:443", "2001:db8::/64"),
        ("ipv6:[2001:db8:0:1::1]:443", "2001:db8:0:1::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:443", "fe80::/64"),
        ("ipv4:127.0.0.1:5", ""),
        ("ipv6:%5B::1%5D:5", ""),
        ("unix:/run/x", ""),
        ("unix:", ""),
        ("", ""),
        ("nonsense", ""),
    ],
)
def test_addresses(peer: str, address: str) -> None:
    assert throttle._address(peer) == address


def test_wrong_pins_have_less_room_and_count_only_where_one_was_given(desk: Desk) -> None:
    room = RATES["tries"]["terminal"].burst
    assert room < ROOM
    desk.bad(100, verdict=RedeemVerdict.LOCKED)  # a locked code scanned again and again: no try
    assert not desk.throttle.slowing
    desk.bad(room, verdict=RedeemVerdict.PIN_WRONG, pin="000000")
    assert desk.refusal() is None
    desk.bad(1, verdict=RedeemVerdict.LOCKED, pin="000000")
    assert desk.refusal() is not None


def test_batches_are_counted_item_by_item(desk: Desk) -> None:
    terminal = types_pb.Terminal(mall_id=MALL, store_id=STORE, terminal_id=3)
    request = redemption_pb.RedeemBatchRequest(
        requests=[redemption_pb.RedeemRequest(terminal=terminal)] * (ROOM + 1)
    ).SerializeToString()
    good = redemption_pb.RedeemOutcome(
        response=redemption_pb.RedeemResponse(verdict=redemption_pb.REDEEM_VERDICT_REDEEMED)
    )
    bad = redemption_pb.RedeemOutcome(
        response=redemption_pb.RedeemResponse(verdict=redemption_pb.REDEEM_VERDICT_INVALID_CODE)
    )
    for outcomes, slowed in (([good] * (ROOM + 1), False), ([bad] * (ROOM + 1), True)):
        answer = redemption_pb.RedeemBatchResponse(outcomes=outcomes).SerializeToString()
        desk.throttle.note("RedeemBatch", request, answer, lambda: FAR)
        found = desk.throttle.refusal("RedeemBatch", request, lambda: FAR)
        assert (found is not None) is slowed


def test_one_alert_for_who_goes_on(desk: Desk) -> None:
    desk.bad(ROOM + 1)
    for _ in range(bounds.ALERT_REFUSALS - 1):
        assert desk.refusal() is not None
    assert desk.told == []
    for _ in range(10_000):
        desk.refusal()
    [told] = desk.told
    assert f"terminal 3 of store {STORE}, mall {MALL}" in told
    assert "ALERT" in told
    assert desk.throttle.figures["alerts"] == 1
    # Still there an hour later: told once more.
    for _ in range(10):
        desk.clock.now_s += bounds.ALERT_AGAIN_S / 10
        desk.bad(1_000)
        for _ in range(bounds.ALERT_REFUSALS):
            desk.refusal()
    assert len(desk.told) == 2


def test_a_wide_attack_fills_neither_memory_nor_log(desk: Desk) -> None:
    many = bounds.THROTTLED_MAX // 50
    for store in range(1, many):
        desk.bad(ROOM + 1, store=store, peer="unix:")
        for _ in range(bounds.ALERT_REFUSALS):
            desk.refusal(store=store)
    assert len(desk.told) == bounds.ALERTS_PER_HOUR_MAX
    assert desk.throttle.figures["alerts"] == many - 1
    for store in range(1, bounds.THROTTLED_MAX):
        desk.bad(1, store=store, peer="unix:")
    kept = desk.throttle.statistics()
    assert kept["kept"] == bounds.THROTTLED_MAX
    assert kept["slowing"] <= bounds.THROTTLED_MAX


@pytest.mark.parametrize("data", [b"", b"\xff", b"\x0a\xff", bytes(100)])
def test_what_is_no_request_is_nobody_s(desk: Desk, data: bytes) -> None:
    desk.bad(ROOM + 1)
    assert desk.throttle.refusal("Redeem", data, lambda: FAR) is None
    desk.throttle.note("Redeem", data, b"\x08\x06", lambda: FAR)
    assert desk.throttle.refusal("Issue", data, lambda: FAR) is None


# --- on the wire ------------------------------------------------------------------------------------------------------
@pytest.fixture(params=["lane", "handlers"])
def served(request: pytest.FixtureRequest, house: House) -> Iterator[tuple[House, Server, Client]]:
    """A server of its own over the shared deployment: what it counts is this test's."""
    with ExitStack() as stack:
        server = stack.enter_context(
            Server(
                house.deployment,
                [parse_listen("127.0.0.1:0")],
                threads=4,
                look=house.deployment.look,
                lane=request.param == "lane",
            )
        )
        yield house, server, stack.enter_context(Client(server.addresses[0], tries=1))


def redeem(client: Client, code: str, terminal: int, store: int = STORE) -> redemption_pb.RedeemResponse:
    at = types_pb.Terminal(mall_id=MALL, store_id=store, terminal_id=terminal)
    request = redemption_pb.RedeemRequest(
        terminal=at, code=code, request_id=f"flood-{time.monotonic_ns()}", position=AT_STORE
    )
    return client.call(client.redemption.Redeem, request)


def test_a_flood_from_one_terminal_leaves_the_others_alone(
    served: tuple[House, Server, Client], caplog: pytest.LogCaptureFixture
) -> None:
    house, server, client = served
    forged = "PG" + "0" * 76
    stop = threading.Event()
    refused: list[CallFailed] = []
    answered = itertools.count()

    def flood() -> None:
        while not stop.is_set():
            try:
                redeem(client, forged, terminal=666)
                next(answered)
            except CallFailed as error:
                refused.append(error)

    with caplog.at_level(logging.INFO), ThreadPoolExecutor(16) as pool:
        floods = [pool.submit(flood) for _ in range(16)]
        try:
            wait_until(lambda: len(refused) > bounds.ALERT_REFUSALS + 10, "the flood is refused")
            # Another terminal of the same store, at the same time.
            for _ in range(5):
                assert redeem(client, house.shown(), 667).verdict == redemption_pb.REDEEM_VERDICT_REDEEMED
        finally:
            stop.set()
        for one in floods:
            one.result()
    assert {error.code for error in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert {error.reason for error in refused} == {"SLOW_DOWN"}
    assert next(answered) < 2 * ROOM + 40
    alerts = [record for record in caplog.records if "ALERT" in record.getMessage()]
    assert len(alerts) == 1
    assert "terminal 666 of store 2001" in alerts[0].getMessage()
    # No line for each call.
    assert len([record for record in caplog.records if record.name.startswith("server")]) < 20
    figures: Any = server.statistics()["throttle"]
    assert figures["slowed"] == len(refused)
    assert figures["alerts"] == 1
    # A genuine code of the terminal that is slowed down is not judged either; its clerk is told when to try again.
    with pytest.raises(CallFailed) as caught:
        redeem(client, house.shown(), 666)
    assert caught.value.reason == "SLOW_DOWN"


def test_the_refusal_says_when_to_try_again(served: tuple[House, Server, Client]) -> None:
    _, server, client = served
    for _ in range(ROOM + 1):
        assert redeem(client, "PG1", 665).verdict == redemption_pb.REDEEM_VERDICT_INVALID_CODE
    wait_until(lambda: server.throttle.slowing, "the last answer is counted")
    with grpc.insecure_channel(server.addresses[0]) as channel:
        call = channel.unary_unary("/pickgate.v1.RedemptionService/Inspect", None, None)
        at = types_pb.Terminal(mall_id=MALL, store_id=STORE, terminal_id=665)
        with pytest.raises(grpc.RpcError) as caught:
            call(redemption_pb.InspectRequest(terminal=at, code="PG1").SerializeToString())
    told: Any = caught.value
    assert told.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert told.details().startswith("too many codes that are not genuine")
    status = rpc_status.from_call(told)
    assert status is not None
    delays = [detail for detail in status.details if detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR)]
    assert len(delays) == 1
    # Nothing of it says how much room there is, or who else is slowed down.
    assert "20" not in told.details().replace("2001", "")


def test_the_lane_keeps_refusals_back_until_it_stops(house: House) -> None:
    """Who floods waits for its answers; a server that stops does not wait for them."""
    with (
        Server(
            house.deployment, [parse_listen("127.0.0.1:0")], threads=4, look=house.deployment.look
        ) as server,
        Client(server.addresses[0], tries=1) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        for _ in range(ROOM + 1):
            redeem(client, "PG1", 663)
        wait_until(lambda: server.throttle.slowing, "the last answer is counted")
        began_s = time.monotonic()
        with pytest.raises(CallFailed):
            redeem(client, "PG1", 663)
        assert time.monotonic() - began_s >= bounds.SLOW_DOWN_HOLD_S
        held = pool.submit(redeem, client, "PG1", 663)
        wait_until(lambda: server.statistics()["open"] == 1, "one is kept back")
        began_s = time.monotonic()
        server.stop(30.0)
        assert time.monotonic() - began_s < 10
        with pytest.raises(CallFailed) as caught:
            held.result()
        assert caught.value.reason == "SLOW_DOWN"


def test_other_methods_are_not_slowed_down(served: tuple[House, Server, Client]) -> None:
    house, server, client = served
    for _ in range(ROOM + 1):
        redeem(client, "PG1", 664)
    wait_until(lambda: server.throttle.slowing, "the last answer is counted")
    assert client.call(client.codes.Issue, house.issue_request()).uid
