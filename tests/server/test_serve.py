"""The server as a whole: health, reflection, addresses, deadlines, a store that goes, a stop that loses nothing."""

from __future__ import annotations

import os
import signal
import socket
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from engine import limits, stock
from engine.errors import SetupError
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import stock_service_pb2 as stock_pb
from pickgate.v1 import types_pb2 as types_pb
from server import services
from server.client import CallFailed, Client
from server.config import parse_listen
from server.serve import Server
from tests.server.conftest import MALL, SKU, STORE, House, HouseFactory, in_flight, turns_left, wait_until

SERVING = health_pb2.HealthCheckResponse.SERVING


def test_health_is_told_for_each_service(house: House, raw: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(raw)
    for name in ("", *(service.full_name for service in services.SERVICES)):
        assert stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5).status == SERVING
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="no.such.Service"), timeout=5)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_lists_the_services_with_their_files(house: House, raw: grpc.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(raw)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="pickgate.v1.RedemptionService"),
    ]
    listed, file = stub.ServerReflectionInfo(iter(requests), timeout=5)
    names = {service.name for service in listed.list_services_response.service}
    assert {service.full_name for service in services.SERVICES} < names
    assert "grpc.health.v1.Health" in names
    assert file.file_descriptor_response.file_descriptor_proto


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_an_address_that_is_taken_is_refused_and_stays_its_owners(house: House, kind: str) -> None:
    address = getattr(house, kind)
    taken = Server(house.deployment, [parse_listen(address)], threads=1, look=lambda: None)
    with pytest.raises(SetupError) as caught:
        taken.start()
    assert address in caught.value.message
    taken.stop(0)
    with Client(address, tries=1) as client:
        assert client.healthy()


def test_a_socket_that_was_left_behind_is_taken_over(house: House, socket_dir: Path) -> None:
    path = socket_dir / "left.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    with (
        Server(house.deployment, [parse_listen(f"unix:{path}")], threads=1, look=lambda: None) as server,
        Client(server.addresses[0], tries=1) as client,
    ):
        assert client.healthy()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_many_callers_at_once_on_one_code_have_one_winner(house: House) -> None:
    before = house.figures()
    code = house.shown()
    with ThreadPoolExecutor(32) as pool:
        verdicts = list(pool.map(lambda _: house.redeem(code).verdict, range(64)))
    assert verdicts.count(redemption_pb.REDEEM_VERDICT_REDEEMED) == 1
    assert verdicts.count(redemption_pb.REDEEM_VERDICT_ALREADY_REDEEMED) == 63
    assert house.figures().on_hand == before.on_hand - 1


def receive(house: House, count: int) -> stock_pb.ReceiveStockRequest:
    return stock_pb.ReceiveStockRequest(
        mall_id=MALL, request_id=house.request_id(), store_id=STORE, sku_id=SKU, count=count
    )


@pytest.mark.fault
def test_a_call_whose_deadline_has_passed_is_not_worked_on(make_house: HouseFactory) -> None:
    house = make_house(threads=1)
    before = house.figures().on_hand
    store = house.store.pid
    with (
        Client(house.tcp, timeout_s=10, tries=1) as patient,
        Client(house.unix, timeout_s=0.3, tries=1) as hasty,
    ):
        with ThreadPoolExecutor(1) as pool:
            os.kill(store, signal.SIGSTOP)
            try:
                # The only turn is this call's, which waits for the store ...
                first = pool.submit(patient.call, patient.stock.ReceiveStock, receive(house, 1))
                wait_until(lambda: turns_left(house.server) == 0, "worked on")
                # ... so this one can only wait for its turn, until nobody wants its answer.
                with pytest.raises(CallFailed) as caught:
                    hasty.call(hasty.stock.ReceiveStock, receive(house, 1_000))
                wait_until(lambda: in_flight(house.server) == 1, "the server knows that too")
            finally:
                os.kill(store, signal.SIGCONT)
            assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert first.result(10).outcome.figures.on_hand == before + 1
        # One thread takes calls in turn: when this is answered, the hasty one has had its turn.
        last = patient.call(patient.stock.ReceiveStock, receive(house, 1))
    assert last.outcome.figures.on_hand == before + 2


@pytest.mark.fault
def test_one_call_too_many_is_refused_at_once(make_house: HouseFactory) -> None:
    house = make_house(threads=1)
    store = house.store.pid
    with (
        Server(
            house.deployment, [parse_listen("127.0.0.1:0")], threads=1, look=lambda: None, calls_max=3
        ) as server,
        Client(server.addresses[0], timeout_s=10, tries=1) as client,
    ):
        client.healthy()  # connected: calls that wait for a connection are sent in no order
        os.kill(store, signal.SIGSTOP)
        try:
            # On one connection the server meets calls in the order in which they were sent.
            waiting = [client.stock.ReceiveStock.future(receive(house, 1), timeout=10) for _ in range(3)]
            with pytest.raises(CallFailed) as caught:
                client.call(client.stock.ReceiveStock, receive(house, 1_000))
        finally:
            os.kill(store, signal.SIGCONT)
        assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        figures = [call.result().outcome.figures.on_hand for call in waiting]
    assert max(figures) == 100_003


@pytest.mark.fault
def test_a_store_that_is_gone_is_unavailable_and_comes_back(make_house: HouseFactory) -> None:
    house = make_house(durability="fsync")
    code = house.shown()
    with Client(house.tcp, tries=1) as client:
        assert client.healthy()
        house.store.stop()
        request = house.redeem_request(code)
        with pytest.raises(CallFailed) as caught:
            client.call(client.redemption.Redeem, request)
        failed = caught.value
        assert failed.code is grpc.StatusCode.UNAVAILABLE
        assert failed.reason in ("STORE_UNAVAILABLE", "STALE_CONTROL")
        assert failed.error_id
        assert str(house.store.data_dir) not in failed.message
        assert ".sock" not in failed.message
        wait_until(lambda: not client.healthy(), "health says NOT_SERVING")
        house.store.start()
        wait_until(client.healthy, "health says SERVING again")
        answer = client.call(client.redemption.Redeem, request)
    assert answer.verdict in (redemption_pb.REDEEM_VERDICT_REDEEMED, redemption_pb.REDEEM_VERDICT_STALE_CODE)


@pytest.mark.fault
def test_a_store_that_stalls_is_unavailable_in_time_and_comes_back(make_house: HouseFactory) -> None:
    house = make_house(durability="fsync")
    codes = [house.issue(version=types_pb.VERSION_STATIC) for _ in range(20)]
    requests = [house.redeem_request(code.typed, pin=code.pin) for code in codes]
    before = house.figures().on_hand
    with Client(house.tcp, timeout_s=30, tries=1) as client:
        assert client.healthy()
        os.kill(house.store.pid, signal.SIGSTOP)
        try:
            began_s = time.monotonic()
            # One batch hangs in the store; who waits behind it is answered by the thread that never waits for an owner.
            calls = [client.redemption.Redeem.future(request, timeout=30) for request in requests]
            for call in calls:
                assert call.code() is grpc.StatusCode.UNAVAILABLE
            took_s = time.monotonic() - began_s
            wait_until(lambda: not client.healthy(), "health says NOT_SERVING")
        finally:
            os.kill(house.store.pid, signal.SIGCONT)
        # The batch in hand has the store's timeout, and so has whoever came behind it; on a busy machine a little more.
        assert took_s < 2 * limits.STORE_TIMEOUT_S + 2
        wait_until(client.healthy, "health says SERVING again")
        # What was undecided is asked again with the same request ids, and happens once.
        for request in requests:
            answer = client.call(client.redemption.Redeem, request)
            assert answer.verdict == redemption_pb.REDEEM_VERDICT_REDEEMED
    assert house.figures().on_hand == before - len(requests)


@pytest.mark.fault
def test_a_stop_lets_calls_in_flight_finish_and_takes_no_new_ones(make_house: HouseFactory) -> None:
    house = make_house(durability="fsync", threads=8)
    codes = [house.shown() for _ in range(4)]
    before = house.figures().on_hand
    store = house.store.pid
    stopper = threading.Thread(target=house.server.stop, args=(10.0,))
    with Client(house.tcp, timeout_s=10, tries=1) as client, ThreadPoolExecutor(4) as pool:
        client.healthy()  # connected, so that the calls below are in flight at once
        os.kill(store, signal.SIGSTOP)
        try:
            answers = [
                pool.submit(client.call, client.redemption.Redeem, house.redeem_request(code))
                for code in codes
            ]
            wait_until(lambda: in_flight(house.server) >= 4, "four calls are in flight")
            stopper.start()

            def refused() -> bool:
                with Client(house.unix, timeout_s=1, tries=1) as late:
                    # It changes nothing: what is asked before the doors are shut waits for the store, and is done later on.
                    try:
                        late.healthy()
                    except CallFailed as failed:
                        return failed.code is grpc.StatusCode.UNAVAILABLE
                return False

            wait_until(refused, "new calls are refused")
            with Client(house.unix, timeout_s=1, tries=1) as late, pytest.raises(CallFailed) as failed:
                late.call(late.stock.ReceiveStock, receive(house, 1_000))
            assert failed.value.code is grpc.StatusCode.UNAVAILABLE
            assert stopper.is_alive()
            assert not any(answer.done() for answer in answers)
        finally:
            os.kill(store, signal.SIGCONT)
        verdicts = [answer.result(10).verdict for answer in answers]
    stopper.join(10)
    assert not stopper.is_alive()
    assert verdicts == [redemption_pb.REDEEM_VERDICT_REDEEMED] * 4
    # Nothing acknowledged is lost, and what was refused did not happen.
    (figures,) = stock.read(house.deployment, MALL, STORE, [SKU])
    assert figures.on_hand == before - 4


def test_stopping_twice_and_without_grace(make_house: HouseFactory) -> None:
    house = make_house()
    began = time.monotonic()
    house.server.stop(0)
    house.server.stop(10)
    assert time.monotonic() - began < 5
    with Client(house.tcp, timeout_s=1, tries=1) as client, pytest.raises(CallFailed):
        client.healthy()
