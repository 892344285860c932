"""A store of several servers: a Valkey or Redis Cluster, each partition on the primary that has its hash slot.

A primary is an owner (Connection.owner_of). What is asked of several goes to each in one write, side by side, and an owner that
does not answer stops its own partitions only:

* each primary has a pool of connections, and threads that wait for it when a call waits for others too. No lock is held
  over I/O with more than one server;
* one that did not answer in time is silent from then on: whatever needs it is refused at once, nothing sent, until it answers a
  thread that does nothing but ask it. So nobody waits for it but those who were the first;
* MOVED, ASK, TRYAGAIN, CLUSTERDOWN and READONLY say that a command was not run. It is run again where they point to, a
  few times; then it is UNAVAILABLE. Whatever else goes wrong is not repeated here: that is the caller's, with the same
  request id.

Where the slots are is asked when the store is opened, each second, and whenever a primary falls silent; in between MOVED says it.
A partition is opened on each primary that it comes to before anything else is done with it there (lua/open.lua), and again when
the primary was started anew or promoted meanwhile: so it begins a new epoch.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from engine import limits
from engine.errors import ConfigError, PickgateError, SetupError, StoreUnavailable
from engine.state import scripts, store_url
from engine.state.connection import (
    Borrowed,
    Call,
    Command,
    Connection,
    Durability,
    Packed,
    ServerFacts,
    ask,
    check_settings,
    command_bytes,
    emptied,
    field_of,
    settled,
    translate,
)
from engine.state.keys import CONTROL_TAG, SLOTS, PartitionKeys, slot_of

REDIRECTS_MAX: Final = 5
"""Redis Cluster specification, 'Redirections': a client follows at most five."""
BUSY_WAITS_S: Final = (0.01, 0.02, 0.04)
"""Before asking again for a partition that is just being moved, or whose cluster is just electing. Others wait behind it, so
not for long: its callers ask again after Unavailable.retry_after_ms."""
LOOK_S: Final = 1.0
"""How often it is asked where the slots are and who the primaries are."""
LOOK_S_MIN: Final = 0.1
PROBE_S: Final = 0.25
"""Between two questions whether a silent primary answers again."""
FOLLOW_S: Final = 0.05
"""Between two looks at the streams of several primaries. A server waits for the streams of one slot only (XREAD BLOCK), so they
are looked at."""
LATE_S: Final = 0.5
"""How long a look at the streams waits for a primary that is slower than the others."""
THREADS_MAX: Final = 16
"""Threads that wait for one primary on behalf of calls that wait for others too."""

_ASKING: Final = command_bytes(("ASKING",))
_CONTROL_SLOT: Final = slot_of(CONTROL_TAG)

T = TypeVar("T")

_log = logging.getLogger(__name__)


def connect(
    url: str,
    *,
    durability: Durability,
    now_ms: Callable[[], int],
    replicas: int = 0,
    clock_compared: bool = True,
) -> Connection:
    """Make the connection that an address asks for. Raises ConfigError; of a cluster StoreUnavailable too, and SetupError."""
    kind = Cluster if store_url.is_cluster(url) else Connection
    return kind(url, durability=durability, now_ms=now_ms, replicas=replicas, clock_compared=clock_compared)


@dataclass(frozen=True, slots=True)
class _Routed(Packed):
    """Script calls with the slot of each, and what would stand behind it if it were alone."""

    slots: Sequence[int]
    behinds: Sequence[Sequence[bytes]]

    def part(self, places: Sequence[int]) -> _Routed:
        """Some of the calls."""
        return _Routed(
            [self.scripts[n] for n in places],
            [*(self.commands[n] for n in places), *self.behinds[places[0]]],
            [self.slots[n] for n in places],
            [self.behinds[n] for n in places],
        )

    def asking(self, place: int) -> Packed:
        """One of the calls, for the server that a slot moves to; its outcome is the second."""
        script, command, behind = self.scripts[place], self.commands[place], self.behinds[place]
        if not behind:
            return Packed([script] * 2, [_ASKING, command])
        return Packed([script] * 3, [_ASKING, command, _ASKING, *behind])


class _Node(Connection):
    """One primary. What a server needs before it is used, and how scripts are run, is as in Connection."""

    def __init__(self, cluster: Cluster, host: str, port: int, url: str) -> None:
        self.host, self.port = host, port
        self.silent = False
        self._cluster = cluster
        self._opened: set[int] = set()
        """Slots of the partitions that were opened on it."""
        self._closing = threading.Event()
        super().__init__(url, durability=cluster.durability, now_ms=cluster.now_ms, replicas=cluster.replicas)
        self._threads = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix=f"pickgate-store-{self.name}")
        self._callbacks: Mapping[str, Callable[..., Any]] = self._client.response_callbacks

    @property
    def name(self) -> str:
        """Its address as people write it."""
        return f"{self.host}:{self.port}"

    def close(self) -> None:
        self._closing.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        super().close()

    def retire(self) -> None:
        """It has no slots any more: let go of what nobody uses at the moment; the rest goes with whoever still asks it."""
        self._closing.set()
        self._pool.disconnect(inuse_connections=False)

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Run something that waits for this primary on one of its threads."""
        return self._threads.submit(function)

    # --- silence ----------------------------------------------------------------------------------------------
    def _borrowed(self) -> Borrowed:
        self.refuse_if_silent()
        return Borrowed(self._pool, self.failed)

    def refuse_if_silent(self) -> None:
        """Raises StoreUnavailable while it does not answer."""
        if self.silent:
            raise StoreUnavailable(
                "the primary of the store that has this does not answer: retry with the same request id; if it lasts, see that"
                " it runs, or that a replica takes over (the log names it)"
            )

    def failed(self, error: RedisError) -> None:
        """It did not answer in time, or could not be reached: nobody else shall wait for it until it does."""
        if not isinstance(error, RedisTimeoutError | RedisConnectionError) or self._closing.is_set():
            return
        with self._cluster.routing:
            if self.silent:
                return
            self.silent = True
        _log.warning(
            "the store's primary at %s does not answer (%s): its partitions are refused until it does, others go on",
            self.name,
            type(error).__name__,
        )
        self._cluster.look_soon()
        threading.Thread(target=self._probe, name=f"pickgate-probe-{self.name}", daemon=True).start()

    def _probe(self) -> None:
        """Ask it until it answers; a server that is met anew is greeted by that."""
        while not self._closing.is_set():
            connection = self._pool.connection_class(**self._pool.connection_kwargs)
            try:
                connection.connect()
                ask(connection, "PING")
            except (RedisTimeoutError, RedisConnectionError):
                self._closing.wait(PROBE_S)
                continue
            except RedisError:
                pass  # it answers, if only to say what is wrong
            finally:
                connection.disconnect()
            break
        else:
            return
        self.silent = False
        _log.warning("the store's primary at %s answers again", self.name)
        self._cluster.look_soon()

    # --- greeting ---------------------------------------------------------------------------------------------
    def _identity(self, connection: Any, info: bytes) -> str:
        """Its run id and, once it was promoted, the replication id that it took then.

        A promoted server may have been one before, demoted, and lack what was acknowledged in between. It keeps the id before as its
        second one, which has an offset. (A first replica brings a new id too, and no second one.)
        """
        text = ask(connection, "INFO", "server", "replication")
        run_id = field_of(text, "run_id")
        promoted = field_of(text, "second_repl_offset") != "-1"
        return f"{run_id}.{field_of(text, 'master_replid')}" if promoted else run_id

    def _open_partitions(self, connection: Any, run_id: str) -> None:
        self._opened.clear()
        for slot, keys in self._cluster.partitions_of(self).items():
            try:
                self._open_at(connection, slot, keys, run_id, create=False)
            except ResponseError:
                continue  # it has gone elsewhere, or is not made yet: its next call opens it, and has the error

    def _open_at(self, connection: Any, slot: int, keys: PartitionKeys, run_id: str, *, create: bool) -> None:
        self.clock_compared = self._cluster.clock_compared
        self._open_partition(connection, keys, run_id, create=create)
        self._opened.add(slot)

    def open_partitions(self, partitions: Mapping[int, PartitionKeys], *, create: bool) -> dict[int, Any]:
        """Open (or create) partitions, by slot, that are not open here yet: those that could not be, with the error."""
        failed: dict[int, Any] = {}
        try:
            with self._borrowed() as connection, self._greeting:
                self.refuse_if_silent()
                run_id = self._identity(connection, b"")
                for slot, keys in partitions.items():
                    if slot in self._opened:
                        continue
                    try:
                        self._open_at(connection, slot, keys, run_id, create=create)
                    except ResponseError as error:
                        failed[slot] = error
                    except RedisError as error:
                        self.failed(error)  # before the next in line waits as long
                        raise
        except PickgateError as error:
            return dict.fromkeys(partitions, error)
        return failed

    def left_by(self, slot: int) -> None:
        """A slot has gone elsewhere: should it come back, its partition is opened anew."""
        self._opened.discard(slot)

    def look(self, *, settings: bool) -> None:
        """Look whether it is still the server that it was and, with `settings`, is still set as the durability needs."""
        with self._borrowed() as connection:
            identity = self._identity(connection, b"")
            if identity != self._greeted_run_id:
                # Promoted, or demoted and promoted again, without a connection having been lost.
                self._opened.clear()
                self._greeted_run_id = identity
            facts = self._facts(connection, ask(connection, "INFO", "server")) if settings else None
        if facts is not None:
            check_settings(facts, self.durability)

    # --- asking -----------------------------------------------------------------------------------------------
    def _exchange(self, packed: Packed) -> list[Any]:
        if not isinstance(packed, _Routed) or self._opened.issuperset(packed.slots):
            return super()._exchange(packed)
        wanted = self._cluster.partitions_at(set(packed.slots) - self._opened)
        failed = self.open_partitions(wanted, create=False) if wanted else {}
        if not failed:
            return super()._exchange(packed)
        sound = [n for n, slot in enumerate(packed.slots) if slot not in failed]
        outcomes = [failed.get(slot) for slot in packed.slots]
        if sound:
            for n, outcome in zip(sound, super()._exchange(packed.part(sound)), strict=True):
                outcomes[n] = outcome
        return outcomes

    def outcomes(self, packed: Packed) -> list[Any]:
        """As exchange, the store's own error replies as the driver has them. Never raises."""
        return self._outcomes(packed)

    def replies(self, commands: Sequence[Command], *, asking: bool = False) -> list[Any]:
        """Run plain commands in one write: what the wire has, error replies and errors among it. Never raises."""
        packed = [command_bytes(command) for command in commands]
        if asking:
            packed = [part for command in packed for part in (_ASKING, command)]
        found: list[Any] = []
        try:
            with self._borrowed() as connection:
                connection.send_packed_command([b"".join(packed)])
                for _ in packed:
                    try:
                        found.append(connection.read_response())
                    except ResponseError as error:
                        found.append(error)
        except PickgateError as error:
            return [error for _ in commands]
        return found[1::2] if asking else found

    def parsed(self, command: Command, reply: Any) -> Any:
        """A reply as the driver gives it to those who ask through it."""
        callback = self._callbacks.get(str(command[0]))
        return reply if callback is None else callback(reply)

    def transaction(self, commands: Sequence[Command]) -> Any:
        """Run commands as one transaction: the list of their replies, or one error. Never raises."""
        try:
            self.refuse_if_silent()
            pipeline: Any = self._client.pipeline(transaction=True)
            for command in commands:
                pipeline.execute_command(*command)
            return list(pipeline.execute())
        except ResponseError as error:
            return error
        except RedisError as error:
            self.failed(error)
            return translate(error)
        except PickgateError as error:
            return error


class Cluster(Connection):
    """One deployment's store of several primaries, shared by all threads of the process."""

    def _connect(self, url: str) -> None:
        self._url = url
        self.routing = threading.Lock()
        """Held to change what follows, and never while waiting for a server."""
        self._nodes: dict[tuple[str, int], _Node] = {}
        self._slots: list[_Node | None] = [None] * SLOTS
        self._partitions_at: dict[int, PartitionKeys] = {}
        self._slots_of: list[int] = []
        self._tag_slots: dict[bytes, int] = {CONTROL_TAG: _CONTROL_SLOT}
        self._numbers: dict[_Node, int] = {}
        self._owners: list[int] = []
        self._closing = threading.Event()
        self._look = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="pickgate-cluster", daemon=True)
        try:
            self._find_out()
        except BaseException:
            self.close()
            raise
        self._watcher.start()

    def close(self) -> None:
        """Close every connection."""
        self._closing.set()
        self._look.set()
        for node in list(self._nodes.values()):
            node.close()
        if self._watcher.is_alive():
            self._watcher.join(2 * limits.STORE_TIMEOUT_S)

    # --- where the slots are ----------------------------------------------------------------------------------
    @property
    def owners(self) -> int:
        """How many primaries share the partitions."""
        return max(len(self._numbers), 1)

    def owner_of(self, partition: int) -> int:
        """Which of them has a partition now. A primary keeps its number as long as it has partitions."""
        return self._owners[partition]

    def partitions_of(self, node: _Node) -> dict[int, PartitionKeys]:
        """The partitions that a primary has, by slot."""
        return {slot: keys for slot, keys in self._partitions_at.items() if self._slots[slot] is node}

    def partitions_at(self, slots: Iterable[int]) -> dict[int, PartitionKeys]:
        """The partitions in some slots, by slot; the control partition is none."""
        return {slot: keys for slot in slots if (keys := self._partitions_at.get(slot)) is not None}

    def look_soon(self) -> None:
        """Have it asked again where the slots are."""
        self._look.set()

    def _node(self, host: str, port: int) -> _Node:
        """The server at an address. Call with `routing` held."""
        node = self._nodes.get((host, port))
        if node is None:
            node = _Node(self, host, port, store_url.server_url(self._url, host, port))
            self._nodes[host, port] = node
        return node

    def _primaries(self) -> list[_Node]:
        return list(dict.fromkeys(node for node in self._slots if node is not None))

    def _find_out(self) -> None:
        """Ask where the slots are: the primaries that are known, then the servers of the address. Raises PickgateError."""
        failure: PickgateError | None = None
        for node in sorted(self._primaries(), key=lambda node: node.silent):
            [reply] = node.replies([("CLUSTER", "SLOTS")])
            if isinstance(reply, list):
                self._take(reply, node.host)
                return
        for host, port in store_url.seeds(self._url):
            try:
                self._take(_ask_alone(store_url.server_url(self._url, host, port)), host)
                return
            except PickgateError as error:
                failure = failure or error
        raise failure or StoreUnavailable("no server of the cluster can be reached")

    def _take(self, reply: Sequence[Any], asked_host: str) -> None:
        """Take over what CLUSTER SLOTS said (each: first slot, last slot, primary, replicas …)."""
        with self.routing:
            slots: list[_Node | None] = [None] * SLOTS
            for first, last, primary, *_ in reply:
                node = self._node(_host(primary, asked_host), int(primary[1]))
                slots[first : last + 1] = [node] * (last + 1 - first)
            if not any(slots):
                raise SetupError(
                    "the cluster has no slots yet: make it one first (valkey-cli --cluster create)",
                    field="store_url",
                )
            before, self._slots = self._slots, slots
            for slot in self._partitions_at:
                old = before[slot]
                if old is not None and old is not slots[slot]:
                    old.left_by(slot)
            self._count_owners()
            present = set(slots)
            gone = [node for node in self._nodes.values() if node not in present]
            for node in gone:
                del self._nodes[node.host, node.port]
        for node in gone:
            node.retire()

    def _count_owners(self) -> None:
        """Number the primaries that have partitions. Call with `routing` held."""
        homes = [self._slots[slot] for slot in self._slots_of]
        present = dict.fromkeys(node for node in homes if node is not None)
        numbers = {node: number for node, number in self._numbers.items() if node in present}
        taken = set(numbers.values())
        free = (number for number in itertools.count() if number not in taken)
        for node in present:
            if node not in numbers:
                numbers[node] = next(free)
        self._numbers = numbers
        self._owners = [0 if node is None else numbers[node] for node in homes]

    def _moved(self, asked: _Node, moved: MovedError) -> None:
        """A slot is somewhere else than was thought."""
        with self.routing:
            node = self._node(moved.host or asked.host, moved.port)
            if self._slots[moved.slot_id] is not node:
                old = self._slots[moved.slot_id]
                self._slots[moved.slot_id] = node
                if old is not None:
                    old.left_by(moved.slot_id)
                self._count_owners()
        self.look_soon()

    def _watch(self) -> None:
        told = False
        while not self._closing.wait(LOOK_S_MIN):
            self._look.wait(LOOK_S - LOOK_S_MIN)
            self._look.clear()
            if self._closing.is_set():
                return
            try:
                self._find_out()
                told = False
            except PickgateError as error:
                if not told:
                    _log.warning("no server of the cluster says where the slots are: %s", error.message)
                told = True
            except Exception:
                _log.exception("looking at the cluster failed; going on")
            for node in self._primaries():
                try:
                    node.look(settings=False)
                except PickgateError:
                    continue  # its calls say so
                except Exception:
                    _log.exception("looking at %s failed; going on", node.name)

    # --- asking several ---------------------------------------------------------------------------------------
    def _slot_of_key(self, key: bytes) -> int:
        tag = key[1 : key.index(b"}")]
        slot = self._tag_slots.get(tag)
        return slot_of(tag) if slot is None else slot

    def _slot_of_command(self, command: Command) -> int:
        for part in command[1:]:
            name = part.encode() if isinstance(part, str) else part
            if isinstance(name, bytes) and name.startswith(b"{") and b"}" in name:
                return self._slot_of_key(name)
        return _CONTROL_SLOT

    def _everywhere(
        self,
        slots: Sequence[int],
        send: Callable[[_Node, Sequence[int]], Sequence[Any]],
        ask_at: Callable[[_Node, int], Any],
    ) -> list[Any]:
        """Do things where their slots are, and again elsewhere as long as servers point there. Never raises.

        slots: of each thing.
        send: does some of them, by number, at one primary, in one write; gives an outcome for each.
        ask_at: does one where a slot is being moved to.
        """
        outcomes: list[Any] = [None] * len(slots)
        todo: Sequence[int] = range(len(slots))
        waits = iter(BUSY_WAITS_S)
        for _ in range(REDIRECTS_MAX):
            homes = self._send_each(slots, todo, send, outcomes)
            again, busy = [], False
            for n in todo:
                outcome = outcomes[n]
                if isinstance(outcome, AskError) and not isinstance(outcome, MovedError):
                    with self.routing:
                        target = self._node(outcome.host or homes[n].host, outcome.port)
                    outcome = outcomes[n] = ask_at(target, n)
                if isinstance(outcome, MovedError):
                    self._moved(homes[n], outcome)
                    again.append(n)
                elif isinstance(outcome, TryAgainError | ClusterDownError | ReadOnlyError | AskError):
                    again.append(n)
                    busy = True
            if not again:
                break
            todo = again
            if busy:
                self.look_soon()
                wait_s = next(waits, 0.0)
                if not wait_s or self._closing.wait(wait_s):
                    break
        return outcomes

    def _send_each(
        self,
        slots: Sequence[int],
        todo: Sequence[int],
        send: Callable[[_Node, Sequence[int]], Sequence[Any]],
        outcomes: list[Any],
    ) -> dict[int, _Node]:
        """One round of `_everywhere`: fills in outcomes; which primary each was sent to."""
        groups: dict[_Node, list[int]] = {}
        homes: dict[int, _Node] = {}
        for n in todo:
            node = self._slots[slots[n]]
            if node is None:
                outcomes[n] = StoreUnavailable(
                    f"no primary of the cluster has slot {slots[n]}: retry with the same request id; if it lasts, mend the cluster"
                )
            else:
                groups.setdefault(node, []).append(n)
                homes[n] = node
        # The first on this thread, which has nothing else to do; each of the others on one of its own.
        waiting = [
            (places, node.submit(partial(send, node, places)))
            for node, places in itertools.islice(groups.items(), 1, None)
        ]
        done = [(places, send(node, places)) for node, places in itertools.islice(groups.items(), 1)]
        done += [(places, future.result()) for places, future in waiting]
        for places, found in done:
            for n, outcome in zip(places, found, strict=True):
                outcomes[n] = outcome
        return homes

    # --- Connection -------------------------------------------------------------------------------------------
    def facts(self) -> ServerFacts:
        """Ask the primary that has the control partition what it is and how it is set. Raises StoreUnavailable."""
        return self._control().facts()

    def _control(self) -> _Node:
        node = self._slots[_CONTROL_SLOT]
        if node is None:
            raise StoreUnavailable("no primary of the cluster has the control partition: mend the cluster")
        return node

    def look(self, *, settings: bool) -> None:
        """Look whether the store still has every partition and, with `settings`, is still set as the durability needs.

        A primary that does not answer is no reason, as long as the others and the control partition do: taking every server out of
        service would stop those too. Raises StoreUnavailable, StoreSettings.
        """
        control = self._control()
        failure: PickgateError | None = None
        answered = 0
        for node in self._primaries():
            slots = self.partitions_of(node)
            if not slots and node is not control:
                continue
            try:
                node.look(settings=settings)
                self._see_partitions(node, slots)
                answered += bool(slots)
            except PickgateError as error:
                if node is control or not node.silent:
                    raise
                failure = error
        if failure is not None and not answered:
            raise failure

    def _see_partitions(self, node: _Node, slots: Mapping[int, PartitionKeys]) -> None:
        for reply in node.replies([("HEXISTS", keys.meta, "epoch") for keys in slots.values()]):
            if isinstance(reply, PickgateError):
                raise reply
            if reply == 0:
                raise emptied(f"a partition is not initialised in the primary at {node.name}")

    def use_partitions(self, tags: Sequence[bytes], *, create: bool = False) -> None:
        """Set the deployment's partitions and open (or create) each where it is.

        Those of a primary that does not answer are opened when it does, unless they are to be created. Raises PickgateError.
        """
        partitions = tuple(PartitionKeys(tag) for tag in tags)
        slots = [slot_of(tag) for tag in tags]
        with self.routing:
            self._tag_slots.update(zip(tags, slots, strict=True))
            self._partitions_at = dict(zip(slots, partitions, strict=True))
            self._slots_of = slots
            self._count_owners()
            self.partitions = partitions

        def open_some(node: _Node, places: Sequence[int]) -> list[Any]:
            failed = node.open_partitions({slots[n]: partitions[n] for n in places}, create=create)
            return [failed.get(slots[n]) for n in places]

        for n, outcome in enumerate(
            self._everywhere(slots, open_some, lambda _node, _n: TryAgainError("asked"))
        ):
            error = settled(outcome)
            if error is None:
                continue
            home = self._slots[slots[n]]
            if create or home is None or not home.silent:
                raise error

        self._warn_of_coverage()

    def _warn_of_coverage(self) -> None:
        """Say what would stop every partition once one primary is gone."""
        nodes = self._primaries()
        if len(nodes) == 2:
            _log.warning(
                "the cluster has two primaries: with one gone the other has no majority and stops too, after"
                " cluster-node-timeout; have three or more"
            )
        for node in nodes:
            [pair] = node.replies([("CONFIG", "GET", "cluster-require-full-coverage")])
            if isinstance(pair, list) and pair[1:] == [b"yes"]:
                _log.warning(
                    "the store's primary at %s stops when any slot has no primary (cluster-require-full-coverage): set it to no,"
                    " so that the stores of the others go on",
                    node.name,
                )

    def pack(self, calls: Sequence[Call]) -> Packed:
        """As Connection.pack."""
        return self._routed(super().pack(calls), [call.keys[0] for call in calls])

    def packed(self, script: scripts.Script, partitions: Sequence[int], commands: Sequence[bytes]) -> Packed:
        """As Connection.packed."""
        packed = super().packed(script, partitions, commands)
        return self._routed(packed, [self.partitions[partition].meta for partition in partitions])

    def _routed(self, packed: Packed, facts: Sequence[bytes]) -> _Routed:
        return _Routed(
            packed.scripts,
            packed.commands,
            [self._slot_of_key(key) for key in facts],
            [self._behind(key) for key in facts],
        )

    def _outcomes(self, packed: Packed) -> list[Any]:
        assert isinstance(packed, _Routed)
        whole = len(packed.scripts)
        return self._everywhere(
            packed.slots,
            lambda node, places: node.outcomes(packed if len(places) == whole else packed.part(places)),
            lambda node, place: node.outcomes(packed.asking(place))[1],
        )

    def _replies(self, commands: Sequence[Command], *, parsed: bool) -> list[Any]:
        """What plain commands got, errors among it."""

        def send(node: _Node, places: Sequence[int]) -> list[Any]:
            found = node.replies([commands[n] for n in places])
            if not parsed:
                return found
            return [
                reply if isinstance(reply, Exception) else node.parsed(commands[n], reply)
                for n, reply in zip(places, found, strict=True)
            ]

        def ask_at(node: _Node, n: int) -> Any:
            [reply] = node.replies([commands[n]], asking=True)
            return node.parsed(commands[n], reply) if parsed and not isinstance(reply, Exception) else reply

        slots = [self._slot_of_command(command) for command in commands]
        return [settled(outcome) for outcome in self._everywhere(slots, send, ask_at)]

    def read(self, commands: Sequence[Command]) -> list[Any]:
        """As Connection.read."""
        return _sound(self._replies(commands, parsed=True))

    def read_raw(self, command: Sequence[bytes | str | int]) -> Any:
        """As Connection.read_raw."""
        return _sound(self._replies([tuple(command)], parsed=False))[0]

    def read_streams(
        self, places: Mapping[bytes, bytes], count: int, block_ms: int
    ) -> tuple[dict[bytes, list[Any]], frozenset[bytes]]:
        """As Connection.read_streams; in rounds of FOLLOW_S, one write to each primary."""
        ends_s = time.monotonic() + block_ms / 1000
        while True:
            found, unread = self._look_at_streams(places, count)
            left_s = ends_s - time.monotonic()
            if any(found.values()) or left_s <= 0 or self._closing.wait(min(FOLLOW_S, left_s)):
                return found, unread

    def _look_at_streams(
        self, places: Mapping[bytes, bytes], count: int
    ) -> tuple[dict[bytes, list[Any]], frozenset[bytes]]:
        groups: dict[_Node, list[bytes]] = {}
        unread = dict.fromkeys(places)
        for stream in places:
            node = self._slots[self._slot_of_key(stream)]
            if node is not None:
                groups.setdefault(node, []).append(stream)
        asked: dict[Future[list[Any]], list[bytes]] = {}
        for node, streams in groups.items():
            commands: list[Command] = [
                ("XREAD", "COUNT", count, "STREAMS", stream, places[stream]) for stream in streams
            ]
            asked[node.submit(partial(self._replies, commands, parsed=False))] = streams
        done, _ = wait_for(asked, timeout=LATE_S)
        if not done:
            done, _ = wait_for(asked, return_when="FIRST_COMPLETED")
        found: dict[bytes, list[Any]] = {}
        failure: PickgateError | None = None
        for future in done:
            for stream, reply in zip(asked[future], future.result(), strict=True):
                if isinstance(reply, PickgateError):
                    failure = failure or reply
                    continue
                del unread[stream]
                if reply:
                    found[stream] = reply[0][1]
        if places and len(unread) == len(places):
            raise failure or StoreUnavailable("no primary of the cluster answers")
        return found, frozenset(unread)

    def scan(self, pattern: str, count: int) -> set[bytes]:
        """As Connection.scan: what every primary has. A slot that moves meanwhile has it done again."""
        while True:
            slots = list(self._slots)
            found: set[bytes] = set()
            for node in dict.fromkeys(node for node in slots if node is not None):
                found |= node.scan(pattern, count)
            if slots == self._slots:
                return found

    def is_empty(self) -> bool:
        """As Connection.is_empty."""
        return all(node.is_empty() for node in self._primaries())

    def write(self, commands: Sequence[Command]) -> list[Any]:
        """As Connection.write: a transaction for each slot."""
        groups: dict[int, list[int]] = {}
        for n, command in enumerate(commands):
            groups.setdefault(self._slot_of_command(command), []).append(n)
        slots, members = list(groups), list(groups.values())

        def send(node: _Node, places: Sequence[int]) -> list[Any]:
            return [node.transaction([commands[n] for n in members[place]]) for place in places]

        outcomes = self._everywhere(slots, send, lambda _node, _n: TryAgainError("TRYAGAIN being moved"))
        replies: list[Any] = [None] * len(commands)
        for places, found in zip(members, _sound([settled(outcome) for outcome in outcomes]), strict=True):
            for n, reply in zip(places, found, strict=True):
                replies[n] = reply
        return replies


def _sound(outcomes: list[Any]) -> list[Any]:
    """The outcomes, if none is an error; raises the first that is."""
    for outcome in outcomes:
        if isinstance(outcome, PickgateError):
            raise outcome
    return outcomes


def _host(primary: Sequence[Any], asked_host: str) -> str:
    """Where a primary says it is reached: nothing, where the server that was asked is; `?` when it should have a name and has none."""
    host = (primary[0] or b"").decode()
    if host != "?":
        return host or asked_host
    metadata = primary[3] if len(primary) > 3 else []
    named = dict(zip(metadata[::2], metadata[1::2], strict=True))
    return bytes(named.get(b"ip", b"")).decode() or asked_host


def _ask_alone(url: str) -> list[Any]:
    """CLUSTER SLOTS of a server that is nothing else yet, on a connection of its own. Raises PickgateError."""
    try:
        with redis.Redis.from_url(
            url,
            socket_timeout=limits.STORE_TIMEOUT_S,
            socket_connect_timeout=limits.STORE_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        ) as client:
            connection = client.connection_pool.get_connection()
            try:
                reply: list[Any] = ask(connection, "CLUSTER", "SLOTS")
            finally:
                client.connection_pool.release(connection)
            return reply
    except ResponseError as error:
        if "cluster support disabled" in str(error):
            raise ConfigError(
                f"the server at {store_url.redacted(url)} is not part of a cluster: name it by redis:// or rediss://",
                field="store_url",
            ) from None
        raise translate(error) from None
    except RedisError as error:
        raise translate(error) from None
