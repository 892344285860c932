"""A house with a ledger that is written when a test says so, and short ways to ask it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine.ledger import database
from engine.ledger.heads import Signer
from engine.ledger.ledger import Ledger
from engine.ledger.writer import Writer
from engine.state.streams import Streams
from pickgate.v1 import code_event_service_pb2 as event_pb
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import settlement_service_pb2 as settlement_pb
from pickgate.v1 import types_pb2 as types_pb
from server.client import CallFailed, Client
from tests.server.conftest import MALL, SKU, STORE, TERMINAL, House, HouseFactory

BOUND_S: Final = 20.0
KEY: Final = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
"""Signs heads."""
SPLITS: Final = (("store:2001", "goods", 0, 7_000), ("user:1", "referrer", 1, 999))


class Books:
    """A house, its ledger, and the writer between them."""

    def __init__(self, make_house: HouseFactory, folder: Path, **options: Any) -> None:
        self.url = database.sqlite_url(folder / "ledger.sqlite3")
        self.heads = folder / "heads"
        self.house: House = make_house(ledger_url=self.url, ledger_heads=self.heads, **options)
        deployment = self.house.deployment
        self.ledger = Ledger.open(self.url, deployment_id=deployment.constants.deployment_id, create=True)
        self.writer = Writer(Streams(deployment.connection), self.ledger, now_ms=deployment.now_ms)
        self.writer.start()
        self.write()

    def write(self) -> None:
        """Bring the ledger up to date."""
        while self.writer.step(block_ms=0):
            pass

    def sign(self) -> None:
        """Sign where each partition ends, and keep that outside of the database."""
        about = {"deployment_id": self.ledger.deployment_id, "algorithm": self.ledger.chain.algorithm}
        Signer(KEY, self.heads, **about).sign(self.ledger.heads(), self.house.deployment.now_ms())

    def issue(self, order_id: str, units: int = 1, **fields: object) -> str:
        """Issue a code whose order has splits; gives its uid."""
        request = self.house.issue_request(order_id=order_id, amount_fen=8_000, **fields)
        del request.lines[:]
        request.lines.add(sku_id=SKU, count=units)
        for payee, role, level, amount_fen in SPLITS:
            request.splits.add(payee=payee, role=role, level=level, amount_fen=amount_fen)
        return self.house.client.call(self.house.client.codes.Issue, request).uid

    def redeem(self, uid: str, units: int = 0) -> redemption_pb.RedeemResponse:
        """Redeem a code, or some units of it."""
        shown = self.house.render(uid).payloads[0].text
        request = self.house.redeem_request(shown)
        if units:
            request.lines.add(sku_id=SKU, count=units)
        answer = self.house.client.call(self.house.client.redemption.Redeem, request)
        assert answer.verdict == redemption_pb.REDEEM_VERDICT_REDEEMED
        return answer

    def reverse(self, uid: str) -> None:
        """Take back all that was handed out."""
        request = redemption_pb.ReverseRequest(
            terminal=types_pb.Terminal(mall_id=MALL, store_id=STORE, terminal_id=TERMINAL),
            request_id=self.house.request_id(),
            uid=uid,
        )
        answer = self.house.client.call(self.house.client.redemption.Reverse, request)
        assert answer.verdict == redemption_pb.REVERSE_VERDICT_REVERSED

    def sell(self, order_id: str) -> str:
        """Issue and redeem a code; gives its uid."""
        uid = self.issue(order_id)
        self.redeem(uid)
        return uid

    def close(self) -> None:
        """Close the ledger of this side."""
        self.ledger.close()


class Reader:
    """One subscription, read by a thread of its own."""

    def __init__(self, method: Any, request: Any) -> None:
        self._call: Any = method(request)
        self._told: queue.Queue[Any] = queue.Queue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for one in self._call:
                self._told.put(one)
        except grpc.RpcError as error:
            self._told.put(error)

    def next(self) -> Any:
        """The next batch, or the error that ended the stream."""
        return self._told.get(timeout=BOUND_S)

    def take(self, count: int) -> list[Any]:
        """The next settlements or events, `count` of them, whatever batches they come in."""
        found: list[Any] = []
        while len(found) < count:
            found += items(self.next())
        assert len(found) == count
        return found

    @property
    def quiet(self) -> bool:
        """Nothing came that was not taken."""
        return self._told.empty()

    def stop(self) -> None:
        """Hang up."""
        self._call.cancel()
        self._thread.join(BOUND_S)


def items(batch: Any) -> Sequence[Any]:
    """What a batch tells."""
    assert not isinstance(batch, grpc.RpcError), batch
    told: Sequence[Any] = (
        batch.settlements if isinstance(batch, settlement_pb.SubscribeResponse) else batch.events
    )
    return told


def wallet(client: Client, name: str = "wallet", **fields: Any) -> Reader:
    """A wallet that subscribes."""
    return Reader(client.settlements.Subscribe, settlement_pb.SubscribeRequest(wallet=name, **fields))


def follow(client: Client, mall_id: int = MALL, consumer: str = "shop", **fields: Any) -> Reader:
    """A mall that subscribes."""
    request = event_pb.SubscribeCodeEventsRequest(mall_id=mall_id, consumer=consumer, **fields)
    return Reader(client.code_events.SubscribeCodeEvents, request)


def refused(ask: Callable[[], Any]) -> CallFailed:
    """How a call fails."""
    with pytest.raises(CallFailed) as caught:
        ask()
    return caught.value
