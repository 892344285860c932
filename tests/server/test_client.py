"""What the client tries again, how long it waits, and what it never tries again."""

from __future__ import annotations

import grpc
import pytest

from engine.deployment import Deployment, Durability
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import stock_service_pb2 as stock_pb
from server.client import CallFailed, Client, new_request_id
from server.config import parse_listen
from server.serve import Server
from tests.server.conftest import MALL, SKU, STORE, House, HouseFactory, wait_until


def test_nobody_there_is_tried_with_growing_waits_and_then_told() -> None:
    waits: list[float] = []
    with (
        Client("127.0.0.1:1", timeout_s=1, tries=5, sleep=waits.append, jitter=lambda: 0.0) as client,
        pytest.raises(CallFailed) as caught,
    ):
        client.call(client.codes.GetCode, code_pb.GetCodeRequest(mall_id=1, uid="0" * 16))
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert caught.value.tries == 5
    assert waits == [0.2, 0.4, 0.8, 1.6]


def test_waits_are_bounded_and_spread() -> None:
    waits: list[float] = []
    with (
        Client("127.0.0.1:1", timeout_s=1, tries=9, sleep=waits.append, jitter=lambda: 1.0) as client,
        pytest.raises(CallFailed),
    ):
        client.call(client.codes.GetCode, code_pb.GetCodeRequest(mall_id=1, uid="0" * 16))
    assert waits == [0.25, 0.5, 1.0, 2.0]


def test_advice_to_wait_long_is_passed_on_instead_of_waited_for(house: House) -> None:
    def never(_: float) -> None:
        raise AssertionError("waited")

    with (
        Deployment.open(house.store.url, unlock=None, durability=Durability.MEMORY) as locked,
        Server(locked, [parse_listen("127.0.0.1:0")], threads=1, look=lambda: None) as server,
        Client(server.addresses[0], sleep=never) as client,
        pytest.raises(CallFailed) as caught,
    ):
        client.call(client.codes.Issue, house.issue_request())
    assert (caught.value.reason, caught.value.tries) == ("KEYRING_LOCKED", 1)


def test_a_refusal_is_not_tried_again(house: House) -> None:
    def never(_: float) -> None:
        raise AssertionError("tried again")

    with Client(house.unix, sleep=never) as client:
        for request in (
            code_pb.GetCodeRequest(mall_id=MALL, uid="0" * 16),
            code_pb.GetCodeRequest(mall_id=MALL, uid="?"),
        ):
            with pytest.raises(CallFailed) as caught:
                client.call(client.codes.GetCode, request)
            assert caught.value.tries == 1


@pytest.mark.fault
def test_a_retry_takes_the_same_request_id_so_that_nothing_happens_twice(make_house: HouseFactory) -> None:
    house = make_house(durability="fsync")
    before = house.figures().on_hand
    house.store.stop()
    waits: list[float] = []

    def mend(wait_s: float) -> None:
        waits.append(wait_s)
        house.store.start()
        wait_until(house.client.healthy, "the server serves again")

    request = stock_pb.ReceiveStockRequest(
        mall_id=MALL, request_id=new_request_id(), store_id=STORE, sku_id=SKU, count=5
    )
    with Client(house.unix, sleep=mend, jitter=lambda: 0.0) as client:
        outcome = client.call(client.stock.ReceiveStock, request).outcome
        assert client.call(client.stock.ReceiveStock, request).outcome.replayed
    assert len(waits) == 1
    assert outcome.figures.on_hand == before + 5
    assert house.figures().on_hand == before + 5
