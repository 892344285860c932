"""One code and a thousand clients at once: from processes on the store, and over the wire to a real server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

import pytest

from engine.calls import RedeemRequest
from engine.state.events import EventType
from engine.verdict import RedeemVerdict
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import types_pb2
from server.client import Client
from tests.race.books import check_books
from tests.race.rivals import Rivals
from tests.race.serving import Serving
from tests.race.shop import MALL, STORE, Shop, all_at_once, sound, terminal

pytestmark = pytest.mark.race

CLIENTS: Final = 1_000
CHANNELS: Final = 50
BOUND_S: Final = 120.0


def test_a_thousand_clients_on_the_store(shop: Shop, contest: Rivals) -> None:
    sku = shop.sku(2)
    [code] = shop.issue(sku)
    [text] = shop.show([code])
    before = shop.figures(sku)
    answers = [
        sound(outcome)
        for outcome in contest.race(
            [RedeemRequest(terminal(n), shop.request_id(), text) for n in range(1, CLIENTS + 1)]
        )
    ]
    assert Counter(answer.verdict for answer in answers) == {
        RedeemVerdict.REDEEMED: 1,
        RedeemVerdict.ALREADY_REDEEMED: CLIENTS - 1,
    }
    [winner] = [answer for answer in answers if answer.verdict is RedeemVerdict.REDEEMED]
    assert answers.index(winner) + 1 == winner.terminal_id
    assert {(answer.at_ms, answer.terminal_id) for answer in answers} == {(winner.at_ms, winner.terminal_id)}
    after = shop.figures(sku)
    assert (before.on_hand - after.on_hand, before.reserved - after.reserved) == (1, 1)
    assert check_books(shop.deployment).kinds(code.uid) == [EventType.ISSUED, EventType.REDEEMED]


@pytest.fixture
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with Serving(tmp_path_factory.mktemp("t")) as started:
        started.furnish()
        yield started


def test_a_thousand_clients_over_the_wire(serving: Serving) -> None:
    with serving.open_beside() as deployment, ExitStack() as stack:
        beside = Shop(deployment, name="beside")
        sku = beside.sku(2)
        [code] = beside.issue(sku)
        [text] = beside.show([code])
        before = beside.figures(sku)
        clients = [
            stack.enter_context(Client(serving.address, timeout_s=BOUND_S / 2)) for _ in range(CHANNELS)
        ]
        messages = [
            redemption_pb.RedeemRequest(
                terminal=types_pb2.Terminal(mall_id=MALL, store_id=STORE, terminal_id=n),
                request_id=beside.request_id(),
                code=text,
            )
            for n in range(1, CLIENTS + 1)
        ]

        def redeem(n: int) -> redemption_pb.RedeemResponse:
            client = clients[n % CHANNELS]
            return client.call(client.redemption.Redeem, messages[n])

        answers = all_at_once(redeem, range(CLIENTS), bound_s=BOUND_S)
        assert Counter(answer.verdict for answer in answers) == {
            redemption_pb.REDEEM_VERDICT_REDEEMED: 1,
            redemption_pb.REDEEM_VERDICT_ALREADY_REDEEMED: CLIENTS - 1,
        }
        [winner] = [a for a in answers if a.verdict == redemption_pb.REDEEM_VERDICT_REDEEMED]
        assert {(answer.at_ms, answer.terminal_id) for answer in answers} == {
            (winner.at_ms, winner.terminal_id)
        }
        after = beside.figures(sku)
        assert (before.on_hand - after.on_hand, before.reserved - after.reserved) == (1, 1)
        [_, event] = check_books(deployment).of_code[code.uid]
        assert (event.type, str(event.id)) == (EventType.REDEEMED, winner.event_id)
