"""One of two workers is killed in the middle of a rush: nothing acknowledged is lost, and nobody else's call either."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import grpc
import pytest

from pickgate.v1 import code_service_pb2_grpc as code_grpc
from pickgate.v1 import redemption_service_pb2_grpc as redemption_grpc
from server.client import Client
from tests.fault.history import Answer
from tests.fault.rush import WireCounter, open_rush
from tests.race.serving import Serving, is_alive, until
from tests.race.shop import Shop

pytestmark = pytest.mark.fault

CODES = 200
CONNECTIONS = 8


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Serving]:
    """`pickgate serve --workers 2`."""
    with Serving(tmp_path, workers=2) as started:
        started.furnish()
        yield started


class OwnConnection(Client):
    """A client with a connection of its own; gRPC shares one among channels that look alike."""

    def __init__(self, address: str) -> None:
        super().__init__(address, tries=1, timeout_s=5.0)
        self.close()
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1_000),
        ]
        self._channel = grpc.insecure_channel(address, options=options)
        self.redemption = redemption_grpc.RedemptionServiceStub(self._channel)
        self.codes = code_grpc.CodeServiceStub(self._channel)
        grpc.channel_ready_future(self._channel).result(10)


class Terminals:
    """Customers go to the connections in turn; it counts the calls of each that were not decided."""

    def __init__(self, clients: list[OwnConnection]) -> None:
        self._counters = [WireCounter(client) for client in clients]
        self.undecided = [0] * len(clients)

    def redeem(self, terminal_id: int, request_id: str, text: str) -> Answer | None:
        number = terminal_id % len(self._counters)
        return self._counted(number, self._counters[number].redeem(terminal_id, request_id, text))

    def void(self, request_id: str, uid: bytes) -> Answer | None:
        number = uid[-1] % len(self._counters)
        return self._counted(number, self._counters[number].void(request_id, uid))

    def _counted(self, number: int, answer: Answer | None) -> Answer | None:
        self.undecided[number] += answer is None
        return answer


def connections(pid: int, port: int) -> int:
    """How many connections to a port a process holds."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(fd))
        if found:
            inodes.add(found[1])
    count = 0
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            count += state == "01" and int(local.rpartition(":")[2], 16) == port and rest[5] in inodes
    return count


def is_replaced(crew: Serving, pid: int) -> bool:
    """Whether a worker has gone and another has its place."""
    return len(crew.workers) == 2 and pid not in crew.workers and not is_alive(pid)


def test_a_worker_dies_in_a_rush(crew: Serving, rounds: int) -> None:
    port = int(crew.address.rpartition(":")[2])
    for turn in range(rounds):
        with ExitStack() as stack:
            clients = [stack.enter_context(OwnConnection(crew.address)) for _ in range(CONNECTIONS)]
            doomed = next((pid for pid in crew.workers if 0 < connections(pid, port) < CONNECTIONS), 0)
            while not doomed:  # the kernel gave all of them to one worker: one in a hundred times
                clients.append(stack.enter_context(OwnConnection(crew.address)))
                doomed = next((pid for pid in crew.workers if 0 < connections(pid, port) < len(clients)), 0)
            with crew.open_beside() as deployment:
                shop = Shop(deployment, name=f"turn-{turn}")
                terminals = Terminals(clients)
                rush, sku = open_rush(shop, terminals, CODES, seed=turn)
                before = shop.figures(sku)
            with rush:
                rush.reach(rush.jobs // 3)
                its_own = connections(doomed, port)
                os.kill(doomed, signal.SIGKILL)
                rush.go_on()
                until(partial(is_replaced, crew, doomed), "another worker is started", 10.0)
                rush.reach(rush.jobs // 2)
        assert rush.history.unanswered() > 0, "nobody noticed"
        # Only those who were connected to it had a call that was not decided.
        assert sum(count > 0 for count in terminals.undecided) <= its_own < len(clients)
        with crew.open_beside() as deployment:
            rush.settle(deployment)
            after = Shop(deployment, name="after").figures(sku)
        assert before.reserved - after.reserved == CODES
    assert crew.log.count("ended with signal 9; it is started again") == rounds


def test_workers_end_with_a_supervisor_that_is_killed(crew: Serving) -> None:
    workers = crew.workers
    assert len(workers) == 2
    assert crew.end(signal.SIGKILL) == -signal.SIGKILL
    until(lambda: not any(map(is_alive, workers)), "the workers end", 20.0)
    crew.start()
    with Client(crew.address) as client:
        assert client.healthy()


def test_workers_stop_in_order_with_their_supervisor(crew: Serving) -> None:
    workers = crew.workers
    with Client(crew.address) as client:
        assert client.healthy()
    assert crew.end(signal.SIGTERM) == 0
    assert not any(map(is_alive, workers))
    assert "ended with" not in crew.log
