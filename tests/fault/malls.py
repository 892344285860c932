"""A real server over stores that a test stops: calls through gRPC, without retries, errors as values."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from engine import limits
from engine.deployment import Deployment, Durability
from engine.state.events import EventType
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import types_pb2
from server.client import CallFailed, Client
from server.config import parse_listen
from server.serve import Server
from tests.clusters import until
from tests.engine.fold import check_against_store, fold
from tests.engine.shop import read_events
from tests.race import shop as shops
from tests.race.shop import MALL, Shop


@dataclass
class Tried:
    """What became of one call."""

    request_id: str
    code: grpc.StatusCode
    s: float
    verdict: str = ""
    replayed: bool = False
    reason: str = ""


@dataclass
class Mall:
    """A served deployment, and ways to call it that keep what became of each call."""

    deployment: Deployment
    server: Server
    client: Client
    shop: Shop

    def redeem(self, request_id: str, text: str, store_id: int) -> Tried:
        """One try of a redemption, errors as values."""
        request = redemption_pb.RedeemRequest(
            terminal=types_pb2.Terminal(mall_id=MALL, store_id=store_id, terminal_id=3),
            request_id=request_id,
            code=text,
        )
        return self._try(self.client.redemption.Redeem, request, request_id)

    def issue(self, request_id: str, sku_id: int, store_id: int) -> Tried:
        """One try to issue a code."""
        request = code_pb.IssueRequest(
            mall_id=MALL,
            request_id=request_id,
            store_id=store_id,
            order_id="order",
            lines=[types_pb2.Line(sku_id=sku_id, count=1)],
            version=types_pb2.VERSION_DYNAMIC,
            suite=types_pb2.SUITE_AES,
        )
        return self._try(self.client.codes.Issue, request, request_id)

    def _try(self, method: Any, request: Any, request_id: str) -> Tried:
        began_s = time.monotonic()
        try:
            answer = self.client.call(method, request)
        except CallFailed as failed:
            return Tried(request_id, failed.code, time.monotonic() - began_s, reason=failed.reason)
        name = answer.DESCRIPTOR.fields_by_name["verdict"].enum_type.values_by_number[answer.verdict].name
        return Tried(
            request_id,
            grpc.StatusCode.OK,
            time.monotonic() - began_s,
            name.partition("VERDICT_")[2],
            answer.replayed,
        )

    def settle(self, request_id: str, text: str, store_id: int) -> Tried:
        """Redeem, the same request again until it is decided."""
        found: list[Tried] = []

        def decided() -> bool:
            found.append(self.redeem(request_id, text, store_id))
            return found[-1].code is grpc.StatusCode.OK

        until(decided, "the call is decided")
        return found[-1]

    def check(self) -> None:
        """The books: state is what the events add up to."""
        check_against_store(fold(read_events(self.deployment)), self.deployment, self.deployment.now_ms())

    def redeemed(self) -> Counter[bytes]:
        """How often each code was redeemed, by the events."""
        return Counter(
            event.uid for event in read_events(self.deployment) if event.type is EventType.REDEEMED
        )


@contextmanager
def open_mall(url: str, durability: Durability = Durability.FSYNC, replicas: int = 0) -> Iterator[Mall]:
    """Serve the deployment that tests.race.shop made in a store, by the hot lane."""
    with ExitStack() as stack:
        deployment = stack.enter_context(
            Deployment.open(url, unlock=shops.unlock, durability=durability, replicas=replicas)
        )
        server = stack.enter_context(
            Server(deployment, [parse_listen("127.0.0.1:0")], threads=8, look=deployment.look)
        )
        assert server._lane is not None, "this is about the lane"
        client = stack.enter_context(Client(server.addresses[0], tries=1, timeout_s=20.0))
        yield Mall(deployment, server, client, Shop(deployment))


def texts_of(mall: Mall, count: int, store_id: int) -> tuple[int, list[str]]:
    """A SKU with units for so many codes and as many more, and payloads of the codes."""
    sku = mall.shop.sku(2 * count, store_id=store_id)
    codes = mall.shop.issue(sku, count, store_id=store_id)
    lots = range(0, count, limits.BATCH_MAX)
    return sku, [text for first in lots for text in mall.shop.show(codes[first : first + limits.BATCH_MAX])]
