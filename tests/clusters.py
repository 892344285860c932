"""Real clusters for tests: a few store servers that share the slots, each of which a test may stop."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import redis

from engine.state.keys import SLOTS, slot_of, spread_tags
from engine.state.server import EmbeddedServer

BOUND_S: Final = 30.0
NODE_TIMEOUT_MS: Final = 60_000
"""How long a primary may be silent before the others take it for failed: longer than a test stops one, if it says nothing else."""


def until(condition: Callable[[], object], what: str, bound_s: float = BOUND_S) -> None:
    """Wait for a condition, looking often; fail past the bound."""
    ends_s = time.monotonic() + bound_s
    while not condition():
        assert time.monotonic() < ends_s, f"not within {bound_s:g} s: {what}"
        threading.Event().wait(0.01)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


class ClusterServers:
    """Primaries that share the slots in equal ranges, the first has the first. Use it as a context manager.

    replicas: so many of the primaries, from the first on, have a replica: the servers behind the primaries, in the same order.
    """

    def __init__(
        self,
        folder: Path,
        primaries: int = 2,
        *,
        replicas: int = 0,
        durability: str = "memory",
        node_timeout_ms: int = NODE_TIMEOUT_MS,
    ) -> None:
        self._folder = folder
        self._node_timeout_ms = node_timeout_ms
        self._durability = durability
        self._primaries = primaries
        self._replicas = replicas
        self._stack = ExitStack()
        self.servers: list[EmbeddedServer] = []
        self.ports: list[int] = []
        self.bus_ports: list[int] = []

    def __enter__(self) -> ClusterServers:
        with ExitStack() as stack:
            for _ in range(self._primaries + self._replicas):
                self._start_one(stack)
            for n, client in enumerate(map(self.client, range(self._primaries))):
                with client:
                    # Of two with one epoch the smaller id wins, some day: give each its own, as redis-cli --cluster does.
                    client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
                    first, end = n * SLOTS // self._primaries, (n + 1) * SLOTS // self._primaries
                    client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
            for n in range(1, self._primaries + self._replicas):
                self.meet(n)
            self.wait_until_agreed()
            for n in range(self._replicas):
                self.replicate(n, self._primaries + n)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _start_one(self, stack: ExitStack) -> int:
        number = len(self.servers)
        port, bus_port = free_ports(2)
        server = EmbeddedServer(
            self._folder / f"node-{number}",
            durability=self._durability,  # type: ignore[arg-type]
            tcp_port=port,
            extra_settings={
                "cluster-enabled": "yes",
                "cluster-port": str(bus_port),
                "cluster-node-timeout": str(self._node_timeout_ms),
                "cluster-require-full-coverage": "no",
                "cluster-announce-ip": "127.0.0.1",
                # By default a primary waits five seconds for more replicas before it feeds the first.
                "repl-diskless-sync-delay": "0",
            },
        )
        stack.enter_context(server)
        self.servers.append(server)
        self.ports.append(port)
        self.bus_ports.append(bus_port)
        return number

    def add(self) -> int:
        """One more primary, without slots."""
        number = self._start_one(self._stack)
        self.meet(number)
        self.wait_until_agreed()
        return number

    def meet(self, number: int) -> None:
        """Have the first get to know another."""
        with self.client(0) as client:
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", self.ports[number], self.bus_ports[number])

    def wait_until_agreed(self) -> None:
        """Wait until each knows all, and says that all is well."""

        def agreed() -> bool:
            wanted = (
                b"cluster_state:ok",
                b"cluster_slots_assigned:%d" % SLOTS,
                b"cluster_known_nodes:%d" % len(self.servers),
            )
            said = [bytes(self.ask(n, "CLUSTER", "INFO")) for n in range(len(self.servers))]
            return all(fact in text for text in said for fact in wanted)

        until(agreed, "the cluster agrees")

    @property
    def url(self) -> str:
        """The cluster's address, naming every server."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in self.ports)

    @property
    def urls(self) -> list[str]:
        """Every server's own address."""
        return [server.url for server in self.servers]

    def empty(self) -> None:
        """Forget everything but the slots."""
        for number in range(len(self.servers)):
            self.ask(number, "FLUSHALL")
            self.ask(number, "SCRIPT", "FLUSH")

    def client(self, number: int) -> Any:
        """A client of one server, through its socket."""
        return redis.Redis.from_url(self.servers[number].url)

    def ask(self, number: int, *command: str | int | bytes) -> Any:
        """Ask one server something."""
        with self.client(number) as client:
            return client.execute_command(*command)

    def replicate(self, number: int, replica: int) -> None:
        """Have a server without slots follow a primary; returns when it has all that the primary has."""
        self.ask(replica, "CLUSTER", "REPLICATE", self.id_of(number))

        until(
            lambda: self.ask(replica, "INFO", "replication").get("master_link_status") == "up",
            "the replica follows",
        )
        self.wait_for_replica(number, replica)

    def wait_for_replica(self, number: int, replica: int) -> None:
        """Wait until a replica has all that its primary has."""

        def has_all() -> bool:
            return (
                len({self.ask(n, "INFO", "replication")["master_repl_offset"] for n in (number, replica)})
                == 1
            )

        until(has_all, "the replica has all")

    def id_of(self, number: int) -> str:
        """How the cluster calls a server."""
        return bytes(self.ask(number, "CLUSTER", "MYID")).decode()

    def home(self, partition: int, partitions: int) -> int:
        """Which server has a partition, as the slots were dealt out in the beginning."""
        return slot_of(spread_tags(partitions)[partition]) * self._primaries // SLOTS

    @contextmanager
    def stopped(self, number: int) -> Iterator[None]:
        """One server stands still (SIGSTOP), and goes on."""
        pid = self.servers[number].pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def move_keys(self, slot: int, source: int, target: int) -> Iterator[int]:
        """Move a slot as was always done: the keys one by one, then the slot. Gives how many keys are left, after each lot."""
        self.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        self.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(target))
        while keys := self.ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 20):
            self.ask(source, "MIGRATE", "127.0.0.1", self.ports[target], "", 0, 5000, "KEYS", *keys)
            yield int(self.ask(source, "CLUSTER", "COUNTKEYSINSLOT", slot))
        for number in (target, source):
            self.ask(number, "CLUSTER", "SETSLOT", slot, "NODE", self.id_of(target))

    def move_at_once(self, slot: int, source: int, target: int) -> None:
        """Move a slot whole (Valkey 9): it is copied while it is used, and changes hands in one moment."""
        self.ask(source, "CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", self.id_of(target))
        until(lambda: slot in self.slots_of(target), "the slot has moved")

    def slots_of(self, number: int) -> Sequence[int]:
        """The slots that a server says it has."""
        found: list[int] = []
        for line in bytes(self.ask(number, "CLUSTER", "NODES")).decode().splitlines():
            words = line.split()
            if "myself" in words[2]:
                # Behind eight columns: slots, ranges of slots, and in brackets those that are being moved.
                ranges = [part.partition("-") for part in words[8:] if not part.startswith("[")]
                found += [
                    slot for first, _, last in ranges for slot in range(int(first), int(last or first) + 1)
                ]
        return found

    def failed(self, number: int, *, asked: int) -> bool:
        """Whether one server takes another for failed, by the majority's word."""
        nodes = bytes(self.ask(asked, "CLUSTER", "NODES")).decode().splitlines()
        [flags] = [line.split()[2] for line in nodes if f":{self.ports[number]}@" in line]
        return "fail" in flags.split(",")
