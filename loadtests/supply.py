"""Malls, stores, goods and codes for a run, all made over the contract, as a deployment's own callers would."""

from __future__ import annotations

import math
import random
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

import grpc

from loadtests.openloop import closed_loop
from loadtests.wire import connection
from loadtests.wire.connection import Request
from loadtests.wire.pool import Pool
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import code_service_pb2_grpc as code_grpc
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import stock_service_pb2 as stock_pb
from pickgate.v1 import store_service_pb2 as store_pb
from pickgate.v1 import store_service_pb2_grpc as store_grpc
from pickgate.v1 import types_pb2 as types_pb

MALL: Final = 1
STORES: Final = 64
"""Enough to spread over all partitions of a default deployment."""
FIRST_STORE: Final = 2001
FIRST_SKU: Final = 101
SKUS: Final = 8
TERMINALS_PER_STORE: Final = 4
UNITS: Final = 10_000_000
"""Received of each SKU at each store: more than any run hands out."""
RADIUS_M: Final = 500
STRAY_M: Final = 200
"""How far from its store a terminal says it is, at most; the check of the distance must pass."""
PAYLOAD_LIFE_S: Final = 600
"""The longest that the contract allows: codes are rendered before a run, not within it."""
ISSUE_BATCH: Final = 1_000
"""Codes of one bulk issue: some 150 KB, and not so many that the store stalls for long."""
RENDER_WINDOW: Final = 16
CALL_TIMEOUT_S: Final = 60.0

SUPPLY_CONNECTIONS: Final = 4
REDEEM: Final = "/pickgate.v1.RedemptionService/Redeem"
INSPECT: Final = "/pickgate.v1.RedemptionService/Inspect"
RENDER: Final = "/pickgate.v1.CodeService/Render"
RECEIVE: Final = "/pickgate.v1.StockService/ReceiveStock"

_REDEEMED: Final = redemption_pb.REDEEM_VERDICT_REDEEMED
_REDEEMED_FIRST: Final = bytes((1 << 3, _REDEEMED))
"""How nearly every answer begins: field 1, the verdict. protobuf allows other orders, which are parsed in full."""


class SupplyFailed(Exception):
    """What a run needs could not be made; the message says what the server answered."""


def read_redeem(message: bytes) -> tuple[str, bool]:
    """The verdict of a RedeemResponse, and whether it is REDEEMED."""
    if message.startswith(_REDEEMED_FIRST):
        return "REDEEMED", True
    verdict = redemption_pb.RedeemResponse.FromString(message).verdict
    return redemption_pb.RedeemVerdict.Name(verdict).removeprefix("REDEEM_VERDICT_"), verdict == _REDEEMED


@dataclass
class Codes:
    """Codes ready to be redeemed, one request for each."""

    uids: list[bytes] = field(default_factory=list)
    store_ids: list[int] = field(default_factory=list)
    request_ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    redeems: list[Request] = field(default_factory=list)
    claimed: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Units by store and SKU."""

    def __len__(self) -> int:
        return len(self.uids)


class Supply:
    """Makes codes on one server. Use it as a context manager.

    Args:
        target: host:port or unix:/path.
        seed: of order numbers, lines and positions; request ids are new ones each time.
    """

    def __init__(self, target: str, *, seed: int = 1) -> None:
        self.target = target
        self._random = random.Random(seed)
        self._channel = grpc.insecure_channel(target, options=(("grpc.max_receive_message_length", -1),))
        self._codes = code_grpc.CodeServiceStub(self._channel)
        self._stores = store_grpc.StoreServiceStub(self._channel)
        self._redeem = connection.method(REDEEM)
        self._render = connection.method(RENDER)

    # --- the set-up ----------------------------------------------------------------------------------------------------
    def furnish(self) -> None:
        """Put mall, stores, catalogue and policy, and receive goods. Raises SupplyFailed."""
        ids = iter(str(uuid.uuid4()) for _ in range(8))
        try:
            self._stores.PutMalls(
                store_pb.PutMallsRequest(
                    malls=[store_pb.Mall(mall_id=MALL, name="Load")], request_id=next(ids)
                ),
                timeout=CALL_TIMEOUT_S,
            )
            self._stores.PutStores(
                store_pb.PutStoresRequest(stores=[_store(n) for n in range(STORES)], request_id=next(ids)),
                timeout=CALL_TIMEOUT_S,
            )
            self._stores.PutCatalogue(
                store_pb.PutCatalogueRequest(
                    entries=[
                        store_pb.CatalogueEntry(
                            mall_id=MALL,
                            sku_id=sku_id,
                            name=f"SKU {sku_id}",
                            pickup_mode=types_pb.PICKUP_MODE_DYNAMIC,
                        )
                        for sku_id in skus()
                    ],
                    request_id=next(ids),
                ),
                timeout=CALL_TIMEOUT_S,
            )
            self._stores.PutPolicies(
                store_pb.PutPoliciesRequest(
                    policies=[
                        store_pb.Policy(level=store_pb.POLICY_LEVEL_DEPLOYMENT, payload_life_s=PAYLOAD_LIFE_S)
                    ],
                    request_id=next(ids),
                ),
                timeout=CALL_TIMEOUT_S,
            )
            self._receive()
        except grpc.RpcError as error:
            raise SupplyFailed(f"the set-up of {self.target} failed: {_told(error)}") from None

    def _receive(self) -> None:
        method = connection.method(RECEIVE)
        requests = [
            connection.request(
                method,
                stock_pb.ReceiveStockRequest(
                    mall_id=MALL, request_id=str(uuid.uuid4()), store_id=store_id, sku_id=sku_id, count=UNITS
                ).SerializeToString(),
            )
            for store_id in store_ids()
            for sku_id in skus()
        ]

        def read(message: bytes) -> tuple[str, bool]:
            verdict = stock_pb.ReceiveStockResponse.FromString(message).outcome.verdict
            return stock_pb.StockVerdict.Name(verdict), verdict == stock_pb.STOCK_VERDICT_RECEIVED

        with Pool(self.target, SUPPLY_CONNECTIONS) as pool:
            run = closed_loop(pool, requests, RENDER_WINDOW, read)
        if run.good != len(requests):
            raise SupplyFailed(f"stock was not received: {run.told()}")

    # --- codes ---------------------------------------------------------------------------------------------------------
    def codes(self, count: int) -> Codes:
        """Issue and render `count` codes, good for PAYLOAD_LIFE_S from now. Raises SupplyFailed."""
        made = Codes()
        for first in range(0, count, ISSUE_BATCH):
            asked = [self._issue_request() for _ in range(min(ISSUE_BATCH, count - first))]
            for request, uid in zip(asked, self._issue(asked), strict=True):
                made.uids.append(bytes.fromhex(uid))
                made.store_ids.append(request.store_id)
                for line in request.lines:
                    made.claimed[request.store_id, line.sku_id] += line.count
        made.texts = self._texts(made.uids)
        for store_id, text in zip(made.store_ids, made.texts, strict=True):
            request_id = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
            made.request_ids.append(request_id)
            message = self._redeem_message(store_id, request_id, text)
            made.redeems.append(connection.request(self._redeem, message.SerializeToString()))
        return made

    def inspect_message(self, codes: Codes, number: int) -> bytes:
        """What a terminal asks that looks at one of the codes first, serialised."""
        asked = redemption_pb.InspectRequest(
            terminal=types_pb.Terminal(mall_id=MALL, store_id=codes.store_ids[number], terminal_id=1),
            code=codes.texts[number],
            position=near(codes.store_ids[number], self._random),
        )
        return asked.SerializeToString()

    def _issue_request(self) -> code_pb.IssueRequest:
        source = self._random
        return code_pb.IssueRequest(
            mall_id=MALL,
            request_id=str(uuid.uuid4()),
            store_id=FIRST_STORE + source.randrange(STORES),
            order_id=f"{source.getrandbits(60):018}",
            lines=[types_pb.Line(sku_id=FIRST_SKU + source.randrange(SKUS), count=1)],
            version=types_pb.VERSION_DYNAMIC,
            suite=types_pb.SUITE_AES,
            actor="load",
        )

    def _issue(self, requests: Sequence[code_pb.IssueRequest]) -> Iterator[str]:
        try:
            answer = self._codes.IssueBatch(
                code_pb.IssueBatchRequest(requests=requests), timeout=CALL_TIMEOUT_S
            )
        except grpc.RpcError as error:
            raise SupplyFailed(f"codes were not issued: {_told(error)}") from None
        for outcome in answer.outcomes:
            if outcome.response.verdict != code_pb.ISSUE_VERDICT_ISSUED:
                raise SupplyFailed(f"a code was not issued: {outcome}")
            yield outcome.response.uid

    def _texts(self, uids: Sequence[bytes]) -> list[str]:
        """Payloads of codes, in order."""
        texts = [""] * len(uids)
        requests = [
            connection.request(
                self._render, code_pb.RenderRequest(mall_id=MALL, uid=uid.hex()).SerializeToString()
            )
            for uid in uids
        ]
        by_uid = {uid: n for n, uid in enumerate(uids)}

        def read(message: bytes) -> tuple[str, bool]:
            response = code_pb.RenderResponse.FromString(message)
            if response.payloads:
                texts[by_uid[bytes.fromhex(response.code.uid)]] = response.payloads[0].text
            return code_pb.RenderVerdict.Name(response.verdict), bool(response.payloads)

        with Pool(self.target, SUPPLY_CONNECTIONS) as pool:
            run = closed_loop(pool, requests, RENDER_WINDOW, read)
        if not all(texts):
            raise SupplyFailed(f"{texts.count('')} of {len(uids)} codes were not rendered: {run.told()}")
        return texts

    def _redeem_message(self, store_id: int, request_id: str, text: str) -> redemption_pb.RedeemRequest:
        """What a terminal of the store sends, from somewhere near it: the distance is really looked at."""
        return redemption_pb.RedeemRequest(
            terminal=types_pb.Terminal(
                mall_id=MALL,
                store_id=store_id,
                terminal_id=1 + self._random.randrange(TERMINALS_PER_STORE),
            ),
            request_id=request_id,
            code=text,
            position=near(store_id, self._random),
        )

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def skus() -> range:
    """Every SKU of the catalogue."""
    return range(FIRST_SKU, FIRST_SKU + SKUS)


def store_ids() -> range:
    """Every store."""
    return range(FIRST_STORE, FIRST_STORE + STORES)


def place(store_id: int) -> tuple[float, float]:
    """Latitude and longitude of a store, GCJ-02: on a grid of 2 km over Shanghai."""
    row, column = divmod(store_id - FIRST_STORE, 8)
    return 31.10 + 0.018 * row, 121.35 + 0.021 * column


def near(store_id: int, source: random.Random) -> types_pb.Position:
    """A position at most STRAY_M from a store."""
    latitude, longitude = place(store_id)
    angle, distance_m = source.uniform(0, 2 * math.pi), source.uniform(0, STRAY_M)
    metre_deg = 1 / 111_000
    return types_pb.Position(
        latitude_deg=latitude + distance_m * metre_deg * math.sin(angle),
        longitude_deg=longitude + distance_m * metre_deg * math.cos(angle),
        accuracy_m=source.uniform(5, 40),
        datum=types_pb.DATUM_GCJ02,
    )


def _store(number: int) -> store_pb.Store:
    store_id = FIRST_STORE + number
    latitude, longitude = place(store_id)
    return store_pb.Store(
        store_id=store_id,
        name=f"Store {store_id}",
        mall_ids=[MALL],
        latitude_deg=latitude,
        longitude_deg=longitude,
        datum=types_pb.DATUM_GCJ02,
        radius_m=RADIUS_M,
        terminal_location=store_pb.TERMINAL_LOCATION_REQUIRED,
    )


def _told(error: grpc.RpcError) -> str:
    # What a stub raises is a Call too; the published types don't say so.
    return f"{error.code().name}: {error.details()}"
