"""The same races over the wire, against a real server process with a store of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from engine.state.events import EventType
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import stock_service_pb2 as stock_pb
from pickgate.v1 import types_pb2
from server.client import Client
from tests.race.books import check_books
from tests.race.serving import Serving
from tests.race.shop import MALL, STORE, Shop, all_at_once

pytestmark = pytest.mark.race

CALLERS = 200
CHANNELS = 20


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with Serving(tmp_path_factory.mktemp("g")) as started:
        started.furnish()
        yield started


@pytest.fixture(scope="module")
def clients(serving: Serving) -> Iterator[list[Client]]:
    """Twenty connections, each shared by ten callers."""
    with ExitStack() as stack:
        yield [stack.enter_context(Client(serving.address, timeout_s=20.0)) for _ in range(CHANNELS)]


@pytest.fixture(scope="module")
def beside(serving: Serving) -> Iterator[Shop]:
    """The server's deployment, opened from this process: for the books, and to make what is raced for."""
    with serving.open_beside() as deployment:
        yield Shop(deployment, name="beside")


def redeem_message(text: str, terminal_id: int, request_id: str) -> redemption_pb.RedeemRequest:
    place = types_pb2.Terminal(mall_id=MALL, store_id=STORE, terminal_id=terminal_id)
    return redemption_pb.RedeemRequest(terminal=place, request_id=request_id, code=text)


def test_two_hundred_callers_on_one_code(clients: list[Client], beside: Shop, rounds: int) -> None:
    sku = beside.sku(rounds)
    for _ in range(max(1, rounds // 2)):
        before = beside.figures(sku)
        [code] = beside.issue(sku)
        [text] = beside.show([code])
        messages = [redeem_message(text, n, beside.request_id()) for n in range(1, CALLERS + 1)]

        def redeem(n: int) -> redemption_pb.RedeemResponse:
            client = clients[n % CHANNELS]
            return client.call(client.redemption.Redeem, messages[n])  # noqa: B023

        answers = all_at_once(redeem, range(CALLERS))

        assert Counter(answer.verdict for answer in answers) == {
            redemption_pb.REDEEM_VERDICT_REDEEMED: 1,
            redemption_pb.REDEEM_VERDICT_ALREADY_REDEEMED: CALLERS - 1,
        }
        [n] = [
            n for n, answer in enumerate(answers) if answer.verdict == redemption_pb.REDEEM_VERDICT_REDEEMED
        ]
        winner = answers[n]
        assert winner.terminal_id == n + 1
        for message, answer in zip(messages, answers, strict=True):
            assert answer.request_id == message.request_id
            assert (answer.uid, answer.at_ms, answer.terminal_id) == (code.uid.hex(), winner.at_ms, n + 1)
            assert str(n + 1) in answer.message_zh or answer is winner
        after = beside.figures(sku)
        assert (before.on_hand - after.on_hand, after.reserved) == (1, before.reserved)
        [event] = [
            event
            for event in check_books(beside.deployment).of_code[code.uid]
            if event.type is EventType.REDEEMED
        ]
        assert (str(event.id), event.at_ms) == (winner.event_id, winner.at_ms)


def test_one_redemption_sent_by_a_hundred_threads(clients: list[Client], beside: Shop) -> None:
    sku = beside.sku(1)
    [code] = beside.issue(sku)
    [text] = beside.show([code])
    message = redeem_message(text, 7, beside.request_id())

    def redeem(n: int) -> redemption_pb.RedeemResponse:
        client = clients[n % CHANNELS]
        return client.call(client.redemption.Redeem, message)

    answers = all_at_once(redeem, range(100))
    assert Counter(answer.replayed for answer in answers) == {False: 1, True: 99}
    for answer in answers:
        answer.replayed = False
    assert len({answer.SerializeToString(deterministic=True) for answer in answers}) == 1
    assert check_books(beside.deployment).kinds(code.uid) == [EventType.ISSUED, EventType.REDEEMED]


def test_last_units_over_the_wire(clients: list[Client], beside: Shop) -> None:
    sku = beside.sku(5)
    messages = [
        code_pb.IssueRequest(
            mall_id=MALL,
            request_id=beside.request_id(),
            store_id=STORE,
            order_id=f"order-{n}",
            lines=[types_pb2.Line(sku_id=sku, count=1)],
            version=types_pb2.VERSION_DYNAMIC,
            suite=types_pb2.SUITE_SM,
        )
        for n in range(100)
    ]

    def issue(n: int) -> code_pb.IssueResponse:
        client = clients[n % CHANNELS]
        return client.call(client.codes.Issue, messages[n])

    answers = all_at_once(issue, range(100))
    assert Counter(answer.verdict for answer in answers) == {
        code_pb.ISSUE_VERDICT_ISSUED: 5,
        code_pb.ISSUE_VERDICT_STOCK_SHORT: 95,
    }
    assert beside.figures(sku).available == 0
    check_books(beside.deployment)


def test_one_receipt_over_many_connections_counts_once(clients: list[Client], beside: Shop) -> None:
    sku = beside.sku(0)
    on_hand = beside.figures(sku).on_hand
    message = stock_pb.ReceiveStockRequest(
        mall_id=MALL, request_id=beside.request_id(), store_id=STORE, sku_id=sku, count=12
    )

    def receive(n: int) -> stock_pb.ReceiveStockResponse:
        client = clients[n % CHANNELS]
        return client.call(client.stock.ReceiveStock, message)

    answers = all_at_once(receive, range(60))
    assert len({answer.outcome.event_id for answer in answers}) == 1
    assert {answer.outcome.figures.on_hand for answer in answers} == {on_hand + 12}
    assert beside.figures(sku).on_hand == on_hand + 12
    check_books(beside.deployment)


def test_redeem_against_void_over_the_wire(clients: list[Client], beside: Shop, rounds: int) -> None:
    seen: Counter[EventType] = Counter()
    turn = 0
    while turn < rounds or min(seen[EventType.REDEEMED], seen[EventType.VOIDED]) < 2:
        turn += 1
        assert turn < 30 + rounds, f"one side never comes first: {seen}"
        sku = beside.sku(1)
        [code] = beside.issue(sku)
        [text] = beside.show([code])
        # A void takes three trips to the store and a redemption one: let the terminals look first, more or less often.
        looks = redemption_pb.InspectRequest(terminal=redeem_message(text, 1, "").terminal, code=text)
        redeems = [redeem_message(text, n, beside.request_id()) for n in range(1, 11)]
        voids = [
            code_pb.VoidRequest(mall_id=MALL, request_id=beside.request_id(), uid=code.uid.hex())
            for _ in range(10)
        ]

        def ask(n: int) -> bool:
            client = clients[n % CHANNELS]
            if n % 2:
                for _ in range(turn % 4):  # noqa: B023
                    client.call(client.redemption.Inspect, looks)  # noqa: B023
                redeemed = client.call(client.redemption.Redeem, redeems[n // 2])  # noqa: B023
                return redeemed.verdict == redemption_pb.REDEEM_VERDICT_REDEEMED
            voided = client.call(client.codes.Void, voids[n // 2])  # noqa: B023
            return voided.verdict == code_pb.VOID_VERDICT_VOIDED

        won = all_at_once(ask, range(20))
        assert sum(won) == 1
        ending = EventType.REDEEMED if won.index(True) % 2 else EventType.VOIDED
        assert check_books(beside.deployment).kinds(code.uid) == [EventType.ISSUED, ending]
        seen[ending] += 1
