"""Both lanes answer the same, byte for byte: one history on two deployments that agree in time, keys and chance."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from engine import limits
from engine.deployment import Deployment
from engine.state.server import EmbeddedServer
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import code_service_pb2_grpc as code_grpc
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import redemption_service_pb2_grpc as redemption_grpc
from pickgate.v1 import types_pb2 as types_pb
from server import hot, lane_methods
from server.client import CallFailed, Client
from server.config import parse_listen
from server.serve import Server
from tests.engine import shop as shops
from tests.engine.shop import Clock
from tests.server import test_verdicts
from tests.server.conftest import House
from tests.server.test_verdicts import CASES, MALL, SKU, Counter

Told = tuple[str, bytes, object]
"""Method, request, and what came back."""


class Recording(Client):
    """A client that keeps every call of redemption and codes as it was on the wire."""

    def __init__(self, address: str) -> None:
        super().__init__(address, tries=1)
        self.told: list[Told] = []
        channel: Any = _Tap(self._channel, self.told)
        self.redemption = redemption_grpc.RedemptionServiceStub(channel)
        self.codes = code_grpc.CodeServiceStub(channel)

    def raw(self, method: str, data: bytes) -> object:
        """Call with bytes; what came back."""
        return _outcome(self._channel.unary_unary(method, None, None), data)


class _Tap:
    """A channel that writes down what its calls say and hear."""

    def __init__(self, channel: grpc.Channel, told: list[Told]) -> None:
        self._channel = channel
        self._told = told

    def unary_unary(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
        **_: Any,
    ) -> Callable[..., Any]:
        bare = self._channel.unary_unary(method, None, None)

        def call(request: Any, timeout: float, metadata: object = None) -> Any:
            data = request_serializer(request)
            try:
                answer: bytes = bare(data, timeout=timeout)
            except grpc.RpcError as error:
                self._told.append((method, data, _status(error)))
                raise
            self._told.append((method, data, answer))
            return response_deserializer(answer)

        return call


def _outcome(call: Any, data: bytes) -> object:
    try:
        return call(data, timeout=10)
    except grpc.RpcError as error:
        return _status(error)


def _status(error: Any) -> object:
    """A status with its details; the id under which the log has it is its own each time."""
    metadata = dict(error.trailing_metadata())
    rich = status_pb2.Status.FromString(metadata.pop("grpc-status-details-bin", b""))
    details = []
    for packed in rich.details:
        info = error_details_pb2.ErrorInfo()
        if packed.Unpack(info):
            info.metadata.pop("error_id", None)
            packed.Pack(info)
        details.append(packed.SerializeToString(deterministic=True))
    return error.code(), error.details(), rich.code, rich.message, details, metadata


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[Recording, Clock, Deployment]]]:
    """The same shop twice, served by the hot lane and by the ordinary handlers."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(_Shop(tmp_path_factory.mktemp(name), lane=name == "lane")).opened
            for name in ("lane", "handlers")
        ]


class _Shop:
    def __init__(self, folder: Path, *, lane: bool) -> None:
        self._folder = folder
        self._lane = lane
        self._stack = ExitStack()

    def __enter__(self) -> _Shop:
        enter, clock = self._stack.enter_context, Clock()
        store = enter(EmbeddedServer(self._folder / "data", durability="memory"))
        shops.create(store.url, clock)
        deployment: Deployment = enter(shops.open_deployment(store.url, clock))
        # Sweeping has a time of its own, and its events numbers.
        options: dict[str, Any] = {"threads": 2, "look": lambda: None, "lane": self._lane, "sweeps": False}
        server = enter(Server(deployment, [parse_listen("127.0.0.1:0")], **options))
        assert ("batches" in server.statistics()) is self._lane
        self.opened = enter(Recording(server.addresses[0])), clock, deployment
        test_verdicts.furnish(self.opened[0])
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def play(client: Recording, clock: Clock, deployment: Deployment) -> list[Told]:
    """Every case of the contract, each on a counter of its own."""
    for number, (_, act) in enumerate(CASES):
        first = 10_001 + 2 * number
        counter = test_verdicts.counter_at(client, clock, deployment, first)
        act(counter)
        clock.tick(1)
    return client.told


def test_the_whole_contract_is_answered_alike(both: list[tuple[Recording, Clock, Deployment]]) -> None:
    lane, handlers = (play(*one) for one in both)
    assert {method for method, _, _ in lane} >= set(lane_methods.methods(both[0][2]))
    assert len(lane) == len(handlers) > 2 * len(CASES)
    for ours, theirs in zip(lane, handlers, strict=True):
        assert ours == theirs


def _bad_requests() -> Iterator[tuple[str, bytes]]:
    terminal = types_pb.Terminal(mall_id=MALL, store_id=20_001, terminal_id=1)
    redeem = redemption_pb.RedeemRequest(terminal=terminal, request_id="bad-0001", code="PG" + "0" * 76)
    issue = code_pb.IssueRequest(
        mall_id=MALL,
        request_id="bad-0002",
        store_id=20_001,
        order_id="O",
        lines=[types_pb.Line(sku_id=SKU, count=1)],
        suite=types_pb.SUITE_AES,
    )
    render = code_pb.RenderRequest(mall_id=MALL, uid="0" * 16)
    for service, method, good in (
        ("RedemptionService", "Redeem", redeem.SerializeToString()),
        ("RedemptionService", "Inspect", redeem.SerializeToString()),
        ("CodeService", "Issue", issue.SerializeToString()),
        ("CodeService", "Render", render.SerializeToString()),
    ):
        path = f"/pickgate.v1.{service}/{method}"
        yield path, b""
        yield path, b"\xff" * 40
        yield path, good
        yield path, good[:-3]
        yield path, good + good
        # An unknown field is no mistake; one that is too long is.
        yield path, good + b"\xfa\x3e\x03abc"
        yield path, good + b"\xfa\x3e" + b"\x80\x80\x01" + bytes(limits.MESSAGE_BYTES_MAX)
        for cut in range(1, len(good), 7):
            yield path, good[:cut] + b"\x00" + good[cut:]
    yield (
        "/pickgate.v1.RedemptionService/Redeem",
        redemption_pb.RedeemRequest(
            terminal=terminal, request_id="x", code="P" * 600, pin="12", actor="a" * 200
        ).SerializeToString(),
    )
    yield (
        "/pickgate.v1.CodeService/Issue",
        code_pb.IssueRequest(mall_id=999, request_id="bad-0003").SerializeToString(),
    )


def test_what_is_wrong_is_refused_alike(both: list[tuple[Recording, Clock, Deployment]]) -> None:
    codes = set()
    for path, data in _bad_requests():
        ours, theirs = (one[0].raw(path, data) for one in both)
        assert ours == theirs, (path, data)
        codes.add(ours[0] if isinstance(ours, tuple) else None)
    assert codes >= {None, grpc.StatusCode.INVALID_ARGUMENT}


@pytest.mark.parametrize("verb", [hot.Redeem, hot.Inspect])
def test_a_batch_is_sorted_whoever_is_in_it(
    both: list[tuple[Recording, Clock, Deployment]], verb: type[hot.Redeem | hot.Inspect]
) -> None:
    """Unusual, wrong and forged requests among plain ones: each gets what it gets alone."""
    counter = test_verdicts.counter_at(*both[0], 40_001)
    plain = [
        redemption_pb.RedeemRequest(
            terminal=types_pb.Terminal(mall_id=MALL, store_id=40_001, terminal_id=1),
            request_id=f"company-{n:04}",
            code=counter.show(counter.issue().uid),
        ).SerializeToString()
        for n in range(3)
    ]
    unusual = plain[1] + b"\xfa\x3e\x03abc"
    forged = redemption_pb.RedeemRequest.FromString(plain[1])
    forged.code = "PG" + "0" * 76
    method = verb(both[0][2])
    for batch in (
        [plain[0], unusual, plain[2]],
        [plain[0], b"", plain[2]],
        [plain[0], forged.SerializeToString(), plain[2]],
        [b"\xff", plain[0], forged.SerializeToString(), unusual, plain[1]],
    ):
        together, alone = method.sort(batch), [method.sort([data])[0] for data in batch]
        assert list(map(repr, together)) == list(map(repr, alone))


@pytest.mark.parametrize("lane", ["unix", "handlers"])
@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("/pickgate.v1.RedemptionService/Redeem", b""),
        ("/pickgate.v1.CodeService/Issue", b""),
        ("/pickgate.v1.CodeService/Void", b""),
    ],
)
def test_a_refused_call_is_over_at_once(house: House, lane: str, path: str, data: bytes) -> None:
    """Its stream is one of the hundred of its connection: were it kept until garbage is looked for, the next would be refused."""
    own = [("grpc.use_local_subchannel_pool", 1)]
    gc.collect()
    gc.disable()
    try:
        with grpc.insecure_channel(getattr(house, lane), own) as channel:
            ask = channel.unary_unary(path, None, None)
            for _ in range(250):
                with pytest.raises(grpc.RpcError) as caught:
                    ask(data, timeout=20)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()
    finally:
        gc.enable()


def test_a_reused_request_id_is_refused_alike(both: list[tuple[Recording, Clock, Deployment]]) -> None:
    found = []
    for client, clock, deployment in both:
        counter: Counter = test_verdicts.counter_at(client, clock, deployment, 30_001)
        client.told.clear()
        counter.issue(request_id="twice-0001")
        with pytest.raises(CallFailed) as caught:
            counter.issue(request_id="twice-0001", order_id="O-2")
        assert caught.value.code is grpc.StatusCode.ALREADY_EXISTS
        found.append(list(client.told))
    assert found[0] == found[1]
