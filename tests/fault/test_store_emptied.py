"""A store that was emptied behind our back knows nothing, and we must not say that a customer's code is unknown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
import redis

from engine.deployment import Deployment
from engine.errors import DeploymentMismatch, PickgateError, StoreUnavailable
from engine.state.server import EmbeddedServer
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import stock_service_pb2 as stock_pb
from server.client import CallFailed, Client
from tests.fault.rush import WireCounter
from tests.fault.test_store_stalled import verbs
from tests.race.serving import Serving, until
from tests.race.shop import MALL, STORE, Shop, unlock

pytestmark = pytest.mark.fault


def outcome_of(call: Callable[[], list[Any]]) -> Any:
    try:
        [outcome] = call()
    except PickgateError as error:
        return error
    return outcome


def test_every_verb_is_unavailable(store: EmbeddedServer, shop: Shop) -> None:
    calls = verbs(shop, shop.sku(10))
    with redis.Redis.from_url(store.url) as client:
        client.flushall()
    for _ in range(2):
        outcomes = {name: outcome_of(call) for name, call in calls.items()}
        assert {
            name: outcome for name, outcome in outcomes.items() if not isinstance(outcome, StoreUnavailable)
        } == {}
        with pytest.raises(StoreUnavailable):
            shop.deployment.control.refresh()
    # Nothing was written into the empty store: it must stay recognisable as one.
    with redis.Redis.from_url(store.url) as client:
        assert client.dbsize() == 0
    with pytest.raises(DeploymentMismatch):
        Deployment.open(store.url, unlock=unlock)


def test_a_server_is_unavailable_and_says_so_to_balancers(serving: Serving) -> None:
    with serving.open_beside() as deployment, Client(serving.address, tries=1) as client:
        shop = Shop(deployment)
        sku = shop.sku(1)
        [code] = shop.issue(sku)
        [text] = shop.show([code])
        counter = WireCounter(client)
        assert client.healthy()
        with redis.Redis.from_url(serving.store_url) as beside:
            beside.flushall()

        asked: list[tuple[Any, Any]] = [
            (client.redemption.Redeem, counter.redeem_message(1, "emptied-1", text)),
            (client.codes.Render, code_pb.RenderRequest(mall_id=MALL, uid=code.uid.hex())),
            (client.codes.GetCode, code_pb.GetCodeRequest(mall_id=MALL, uid=code.uid.hex())),
            (
                client.codes.Void,
                code_pb.VoidRequest(mall_id=MALL, request_id="emptied-2", uid=code.uid.hex()),
            ),
            (client.stock.ReadStock, stock_pb.ReadStockRequest(mall_id=MALL, store_id=STORE)),
        ]

        def all_refused() -> None:
            for method, message in asked:
                with pytest.raises(CallFailed) as caught:
                    client.call(method, message)
                assert caught.value.code is grpc.StatusCode.UNAVAILABLE, message
                assert caught.value.reason in ("STORE_UNAVAILABLE", "STALE_CONTROL")

        all_refused()
        # The health service asks for a fresh copy of the control partition, so from here on there was an attempt at one.
        until(lambda: not client.healthy(), "the health service says NOT_SERVING")
        all_refused()
