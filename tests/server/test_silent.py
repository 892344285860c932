"""Callers that begin and then say nothing: they keep their own call waiting, for a while, and nobody else's."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pickgate.v1 import redemption_service_pb2 as redemption_pb
from server import bounds
from server.client import Client
from server.config import parse_listen
from server.serve import Server
from tests.server.conftest import House, in_flight, wait_until

UNARY = "/pickgate.v1.RedemptionService/Redeem"
EVERY_KIND = (
    UNARY,
    "/pickgate.v1.StockService/WatchStock",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)

Serve = Callable[..., Server]


@pytest.fixture
def serve(house: House) -> Iterator[Serve]:
    """Serve the house's deployment once more, with other bounds."""
    with ExitStack() as stack:

        def make(**options: Any) -> Server:
            options = {"threads": 2, "request_wait_s": 60.0} | options
            return stack.enter_context(
                Server(house.deployment, [parse_listen("127.0.0.1:0")], look=lambda: None, **options)
            )

        yield make


@pytest.fixture
def mute() -> Iterator[Callable[[str, str, int], list[Any]]]:
    """Begin calls of a method, all on one connection, and send no request; they end with the test."""
    with ExitStack() as stack:
        stop = threading.Event()
        stack.callback(stop.set)
        kept: list[Any] = []  # a call that nobody holds is cancelled

        def say_nothing() -> Iterator[bytes]:
            stop.wait()
            yield from ()

        def begin(address: str, method: str, count: int) -> list[Any]:
            channel = stack.enter_context(
                grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
            )
            calls = [channel.stream_stream(method, None, None)(say_nothing()) for _ in range(count)]
            kept.extend(calls)
            return calls

        yield begin


@pytest.mark.parametrize("method", [UNARY, EVERY_KIND[-1]])
@pytest.mark.parametrize("count", [16, 60])
def test_silent_calls_stop_nobody_else(
    house: House, serve: Serve, mute: Callable[..., list[Any]], method: str, count: int
) -> None:
    server = serve()
    calls = mute(server.addresses[0], method, count)
    wait_until(lambda: in_flight(server) >= count, "the silent calls are taken up")
    with Client(server.addresses[0], timeout_s=5, tries=1) as client:
        assert client.healthy()
        answer = client.call(client.redemption.Redeem, house.redeem_request(house.shown()))
        assert answer.verdict == redemption_pb.REDEEM_VERDICT_REDEEMED
    assert not any(call.done() for call in calls)


@pytest.mark.parametrize("method", EVERY_KIND)
def test_a_call_that_sends_no_request_is_ended(
    serve: Serve, mute: Callable[..., list[Any]], method: str
) -> None:
    server = serve(request_wait_s=0.3)
    calls = mute(server.addresses[0], method, 5)
    for call in calls:
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        assert caught.value.code() is grpc.StatusCode.CANCELLED
    wait_until(lambda: in_flight(server) == 0, "nothing is left of them")


def test_one_connection_can_not_take_every_call(
    house: House, serve: Serve, mute: Callable[..., list[Any]]
) -> None:
    server = serve(calls_max=bounds.STREAMS_PER_CONNECTION_MAX + 5)
    mute(server.addresses[0], UNARY, 3 * bounds.STREAMS_PER_CONNECTION_MAX)
    wait_until(lambda: in_flight(server) >= bounds.STREAMS_PER_CONNECTION_MAX, "as many as one may have")
    with Client(server.addresses[0], timeout_s=5, tries=1) as client:
        assert client.healthy()
        answer = client.call(client.redemption.Redeem, house.redeem_request(house.shown()))
        assert answer.verdict == redemption_pb.REDEEM_VERDICT_REDEEMED


def test_a_stop_does_not_wait_for_who_says_nothing(serve: Serve, mute: Callable[..., list[Any]]) -> None:
    server = serve()
    mute(server.addresses[0], UNARY, 16)
    mute(server.addresses[0], EVERY_KIND[-1], 16)
    wait_until(lambda: in_flight(server) >= 32, "the silent calls are taken up")
    began = time.monotonic()
    server.stop(30)
    assert time.monotonic() - began < 10


def test_a_call_that_ends_without_its_request_is_told_so(house: House) -> None:
    with grpc.insecure_channel(house.tcp) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.stream_unary(UNARY, None, None)(iter(()), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_slow_stream_of_requests_is_served_as_long_as_it_goes_on(serve: Serve) -> None:
    server = serve(request_wait_s=1.0)
    pause = threading.Event()

    def requests() -> Iterator[bytes]:
        for _ in range(3):
            pause.wait(0.5)
            yield b"\x3a\x00"  # ServerReflectionRequest.list_services, field 7

    with grpc.insecure_channel(server.addresses[0]) as channel:
        answers = list(channel.stream_stream(EVERY_KIND[-1], None, None)(requests(), timeout=20))
    assert len(answers) == 3


def test_a_health_watch_goes_on_after_its_request(serve: Serve) -> None:
    server = serve(request_wait_s=0.3)
    with grpc.insecure_channel(server.addresses[0]) as channel:
        watch: Any = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        # Longer than a silent call would live: the watch has said what it wants, and stays.
        with Client(server.addresses[0], timeout_s=5, tries=1) as client:
            give_up = time.monotonic() + 1.5
            for _ in itertools.takewhile(lambda _: time.monotonic() < give_up, itertools.count()):
                assert client.healthy()
                threading.Event().wait(0.1)
        assert watch.is_active()
        watch.cancel()


def test_a_connection_that_never_speaks_is_closed(house: House) -> None:
    host, _, port = house.tcp.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=bounds.HANDSHAKE_S_MAX + 15) as connection:
        while connection.recv(1024):  # the server's own greeting comes first
            pass
