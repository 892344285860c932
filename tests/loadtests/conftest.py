"""A real gRPC server whose methods do what a test wants, reached through a unix socket and through TCP."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from loadtests.wire import connection
from loadtests.wire.connection import Done, Request
from loadtests.wire.pool import Pool

BOUND_S = 20.0
SERVICE = "test.Echo"


class Echo(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic for type checkers only
    """Methods: Say answers with the request, Status fails as the request says, Wait answers when the test opens the gate.

    Shed refuses the first call of each request, with advice to retry if the request begins with `a`, then answers.
    """

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.cancelled = threading.Event()
        self.deadlines_s: list[float | None] = []
        self.seen: Counter[bytes] = Counter()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:  # type: ignore[type-arg]
        name = details.method.rpartition("/")[2]
        call = {"Say": self.say, "Status": self.status, "Wait": self.wait, "Shed": self.shed}.get(name)
        return None if call is None else grpc.unary_unary_rpc_method_handler(call)

    def say(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        left_s = context.time_remaining()
        self.deadlines_s.append(left_s)
        return message

    def status(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        number, _, text = message.partition(b" ")
        code = next(code for code in grpc.StatusCode if code.value[0] == int(number))
        context.set_trailing_metadata((("grpc-status-details-bin", b"\x08" + bytes([int(number)]) + text),))
        context.abort(code, text.decode())

    def shed(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        self.seen[message] += 1
        if self.seen[message] > 1:
            return message
        rich = status_pb2.Status(code=8, message="full")
        if message.startswith(b"a"):
            rich.details.add().Pack(error_details_pb2.RetryInfo())
        context.set_trailing_metadata((("grpc-status-details-bin", rich.SerializeToString()),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    def wait(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        if not context.add_callback(self.cancelled.set):
            self.cancelled.set()  # it had ended before its turn came
        self.gate.wait(BOUND_S)
        return message


class Peer:
    """The server with its addresses."""

    def __init__(self, folder: Path, **options: int) -> None:
        self.echo = Echo()
        self.server = grpc.server(
            ThreadPoolExecutor(8),
            handlers=[self.echo],
            options=[
                ("grpc.max_receive_message_length", -1),
                *((f"grpc.{k}", v) for k, v in options.items()),
            ],
        )
        self.unix = f"unix:{folder / 'echo.sock'}"
        self.server.add_insecure_port(self.unix)
        self.tcp = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def stop(self) -> None:
        self.echo.gate.set()
        self.server.stop(0).wait()


@pytest.fixture
def peer_with() -> Iterator[Callable[..., Peer]]:
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    made: list[Peer] = []

    def make(**options: int) -> Peer:
        made.append(Peer(folder, **options))
        return made[-1]

    yield make
    for each in made:
        each.stop()
    shutil.rmtree(folder)


@pytest.fixture
def peer(peer_with: Callable[..., Peer]) -> Peer:
    return peer_with()


def ask(name: str, message: bytes, timeout_ms: int | None = None) -> Request:
    return connection.request(connection.method(f"/{SERVICE}/{name}", timeout_ms=timeout_ms), message)


def answers(pool: Pool, count: int) -> dict[object, Done]:
    """Poll until so many calls have ended."""
    give_up = time.monotonic() + BOUND_S
    found: dict[object, Done] = {}
    while len(found) < count:
        assert time.monotonic() < give_up, f"only {len(found)} of {count} calls ended"
        for done in pool.poll(0.1):
            assert done.tag not in found, "a call ended twice"
            found[done.tag] = done
    return found
