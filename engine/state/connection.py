"""The connection to the store: greets each server it meets, runs scripts, and turns every failure into an error of ours.

A server is greeted on every new connection, before anything else is sent on it. When it is another one than before (its
run_id differs: it restarted, or a replica was promoted), its settings are checked against the durability that was asked for,
the scripts are loaded, and every partition starts a new epoch there, all before the connection is used.

`Connection` is a store of one server. One of several, a cluster, is engine.state.cluster; `engine.state.cluster.connect` makes
the one that an address asks for.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, TypeAlias

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from engine import limits
from engine.errors import (
    ClockSkew,
    ConfigError,
    NotReplicated,
    PickgateError,
    SetupError,
    StoreSettings,
    StoreUnavailable,
)
from engine.state import scripts, store_url
from engine.state.keys import PartitionKeys

VERSION_MIN: Final = (7, 0)
VERSION_WAITAOF: Final = (7, 2)
CONNECTIONS_MAX: Final = 64
"""Connections of one process to one server. A caller that finds none free waits, bounded by STORE_TIMEOUT_S."""
SEVERAL: Final = -1
"""In place of an owner: a call that needs more than one."""

Command: TypeAlias = tuple[bytes | str | int, ...]
"""One plain command. All its keys are of one partition."""


command_bytes: Final[Callable[[tuple[bytes | str | int, ...]], bytes]] = hiredis.pack_command  # type: ignore[assignment]
"""Writes one command as the store reads it. The published type takes tuples of one part only."""


class Durability(Enum):
    """What an acknowledgement means."""

    MEMORY = "memory"
    """The store has it in memory: for tests."""
    FSYNC = "fsync"
    """It is on the store's disk (appendonly with appendfsync always)."""
    REPLICATED = "replicated"
    """It is on the store's disk and on that of n replicas (WAIT and WAITAOF behind each batch)."""


@dataclass(frozen=True, slots=True)
class Call:
    """One script call of one partition: all its keys (which carry the partition's tag) and arguments."""

    script: scripts.Script
    keys: Sequence[bytes]
    args: Sequence[bytes | int]


@dataclass(frozen=True, slots=True)
class Packed:
    """Script calls as the store reads them: which scripts, and one command each; behind them what waits for replicas, if asked for."""

    scripts: Sequence[scripts.Script]
    commands: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server says about itself: product name, version, and its settings in force."""

    product: str
    version: tuple[int, ...]
    run_id: str
    settings: Mapping[str, str]


class _Refused(RedisError):
    """Carries an error of ours out of the driver's connection callback."""

    def __init__(self, error: PickgateError) -> None:
        super().__init__(error.message)
        self.error = error


def translate(error: RedisError) -> PickgateError:
    """The error of ours that stands for a failure of the driver or an error reply of the server."""
    if isinstance(error, _Refused):
        return error.error
    text = str(error)
    if text.startswith("PGCLOCK"):
        return ClockSkew(
            f"the clock of this process and that of the store differ by more than {limits.CLOCK_SKEW_MS_MAX} ms"
            f" ({text[8:]}, unix ms): synchronise both (NTP), then retry with the same request id"
        )
    if text.startswith("PGMETA"):
        return emptied(text[7:])
    if isinstance(error, RedisTimeoutError):
        return StoreUnavailable(
            f"the store did not answer within {limits.STORE_TIMEOUT_S:g} s: retry with the same request id"
        )
    if isinstance(error, RedisConnectionError):
        return StoreUnavailable(
            "the store can't be reached: retry with the same request id; if it lasts, check that the store runs"
        )
    first_word = text.split(" ", 1)[0] if text else type(error).__name__
    return StoreUnavailable(
        f"the store refused the call ({first_word}): retry with the same request id; if it lasts, read the store's log"
    )


def emptied(what: str) -> StoreUnavailable:
    """The error for a store that lacks what every deployment has; `what` says what."""
    return StoreUnavailable(
        f"{what}: it was emptied, or it is not the store of this deployment; restore it from a backup"
    )


def check_settings(facts: ServerFacts, durability: Durability) -> None:
    """Compare a server's settings in force with what a durability needs.

    Raises StoreSettings naming every setting that is wrong, its value, the value needed, and the commands that mend it; its
    field is the first of them.
    """
    wanted = {"maxmemory-policy": "noeviction"}
    if durability is not Durability.MEMORY:
        wanted |= {"appendonly": "yes", "appendfsync": "always"}
    wrong = [name for name, value in wanted.items() if facts.settings.get(name) != value]
    if wrong:
        needs = ", and ".join(
            f"{name} {wanted[name]} on the store, which has {facts.settings.get(name) or 'no answer'}"
            for name in wrong
        )
        commands = " and ".join(f"CONFIG SET {name} {wanted[name]}" for name in wrong)
        raise StoreSettings(
            f"durability {durability.value!r} needs {needs}: run {commands} there, and write it into the store's"
            " configuration file",
            field=wrong[0],
        )
    needed = VERSION_WAITAOF if durability is Durability.REPLICATED else VERSION_MIN
    if facts.version < needed:
        raise StoreSettings(
            f"durability {durability.value!r} needs a store of version {'.'.join(map(str, needed))} or newer, this is"
            f" {facts.product} {'.'.join(map(str, facts.version))}",
            field="version",
        )


class Connection:
    """One deployment's store: a pool of greeted connections, shared by all threads of the process."""

    def __init__(
        self,
        url: str,
        *,
        durability: Durability,
        now_ms: Callable[[], int],
        replicas: int = 0,
        clock_compared: bool = True,
    ) -> None:
        if durability is Durability.REPLICATED and replicas < 1:
            raise ConfigError(
                "durability 'replicated' needs the number of replicas, 1 or more", field="replicas"
            )
        self.durability = durability
        self.replicas = replicas
        self.now_ms = now_ms
        self.clock_compared = clock_compared
        self.partitions: tuple[PartitionKeys, ...] = ()
        store_url.check(url)
        self._connect(url)

    def _connect(self, url: str) -> None:
        self._greeted_run_id = ""
        self._greeting = threading.Lock()
        self._pool: Any = redis.BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS_MAX,
            timeout=limits.STORE_TIMEOUT_S,
            socket_timeout=limits.STORE_TIMEOUT_S,
            socket_connect_timeout=limits.STORE_TIMEOUT_S,
            # A retry is the caller's decision: the driver must not repeat what may have happened.
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            redis_connect_func=self._greet,
        )
        self._client = redis.Redis(connection_pool=self._pool)

    @property
    def owners(self) -> int:
        """How many servers share the partitions."""
        return 1

    def owner_of(self, partition: int) -> int:
        """Which of them has a partition, 0 .. owners - 1."""
        return 0

    def owner_of_all(self, partitions: Iterable[int]) -> int:
        """Which of them has all of some partitions; SEVERAL if they lie with more than one."""
        owners = {self.owner_of(partition) for partition in partitions}
        return owners.pop() if len(owners) == 1 else SEVERAL

    def by_owner(self) -> list[list[int]]:
        """All partitions, those of one owner together."""
        groups: dict[int, list[int]] = {}
        for partition in range(len(self.partitions)):
            groups.setdefault(self.owner_of(partition), []).append(partition)
        return list(groups.values())

    def close(self) -> None:
        """Close every connection."""
        self._client.close()
        self._pool.disconnect()

    # --- greeting ---------------------------------------------------------------------------------------------
    def _greet(self, connection: Any) -> None:
        """Runs on each new connection, before it is used (called by the driver)."""
        connection.on_connect()
        info = ask(connection, "INFO", "server")
        run_id = self._identity(connection, info)
        with self._greeting:
            if run_id == self._greeted_run_id:
                return
            facts = self._facts(connection, info)
            try:
                check_settings(facts, self.durability)
            except SetupError as error:
                raise _Refused(error) from None
            for script in scripts.ALL:
                ask(connection, "SCRIPT", "LOAD", script.source)
            self._open_partitions(connection, run_id)
            self._greeted_run_id = run_id

    def _identity(self, connection: Any, info: bytes) -> str:
        """What tells a server from the one that was there before."""
        return field_of(info, "run_id")

    def _open_partitions(self, connection: Any, run_id: str) -> None:
        for keys in self.partitions:
            self._open_partition(connection, keys, run_id, create=False)

    def _open_partition(self, connection: Any, keys: PartitionKeys, run_id: str, *, create: bool) -> None:
        args = (self.now_ms(), int(self.clock_compared), run_id, int(create))
        ask(connection, "EVALSHA", scripts.OPEN.sha, 2, keys.meta, keys.events, *args)

    def _facts(self, connection: Any, info: bytes) -> ServerFacts:
        names = (
            "appendonly",
            "appendfsync",
            "maxmemory-policy",
            "hash-max-listpack-value",
            "hash-max-listpack-entries",
        )
        settings = {}
        for name in names:
            try:
                pair = ask(connection, "CONFIG", "GET", name)
            except ResponseError:
                continue  # a managed store without CONFIG: check_settings says "no answer"
            if len(pair) == 2:
                settings[pair[0].decode()] = pair[1].decode()
        product = "valkey" if b"valkey_version:" in info else "redis"
        version = field_of(info, f"{product}_version")
        return ServerFacts(
            product, tuple(int(part) for part in version.split(".")[:3]), field_of(info, "run_id"), settings
        )

    def facts(self) -> ServerFacts:
        """Ask the server what it is and how it is set. Raises StoreUnavailable."""
        with self._borrowed() as connection:
            return self._facts(connection, ask(connection, "INFO", "server"))

    def look(self, *, settings: bool) -> None:
        """Look whether the store still has every partition and, with `settings`, is still set as the durability needs.

        Raises StoreUnavailable, StoreSettings.
        """
        self.read_of(range(len(self.partitions)), [])
        if settings:
            check_settings(self.facts(), self.durability)

    def use_partitions(self, tags: Sequence[bytes], *, create: bool = False) -> None:
        """Set the deployment's partitions and open (or create) each on the server. Raises PickgateError."""
        partitions = tuple(PartitionKeys(tag) for tag in tags)
        with self._borrowed() as connection, self._greeting:
            run_id = self._identity(connection, ask(connection, "INFO", "server"))
            for keys in partitions:
                self._open_partition(connection, keys, run_id, create=create)
            self.partitions = partitions
            self._greeted_run_id = run_id

    def _borrowed(self) -> Borrowed:
        return Borrowed(self._pool)

    # --- running ----------------------------------------------------------------------------------------------
    def run(self, calls: Sequence[Call]) -> list[Any | PickgateError]:
        """Run script calls in one write, each with its own outcome: the script's reply, or the error of that call alone.

        With durability `replicated` the outcomes wait for the copies, on the same connection.
        """
        return self.exchange(self.pack(calls)) if calls else []

    def pack(self, calls: Sequence[Call]) -> Packed:
        """Write script calls as the bytes that go to the store. Pure, but for the clock.

        now_ms and the clock switch are put in front of each call's arguments here, so all calls of a batch agree on the time.
        """
        head = self.head()
        commands = [
            command_bytes(("EVALSHA", call.script.sha, len(call.keys), *call.keys, *head, *call.args))
            for call in calls
        ]
        return self._packed([call.script for call in calls], commands, calls[0].keys[0] if calls else b"")

    def packed(self, script: scripts.Script, partitions: Sequence[int], commands: Sequence[bytes]) -> Packed:
        """As `pack`, for calls of one script that are written already, each with `head` in front of its arguments.

        partitions: whose keys each of them has.
        """
        facts = self.partitions[partitions[0]].meta if partitions else b""
        return self._packed([script] * len(commands), list(commands), facts)

    def head(self) -> tuple[bytes, bytes]:
        """What stands in front of the arguments of every call of a batch: the time and the clock switch."""
        return b"%d" % self.now_ms(), b"%d" % self.clock_compared

    def _packed(self, called: Sequence[scripts.Script], commands: list[bytes], facts: bytes) -> Packed:
        if facts:
            commands += self._behind(facts)
        return Packed(called, commands)

    def _behind(self, facts: bytes) -> tuple[bytes, ...]:
        """What stands behind calls and waits for replicas, if that was asked for. facts: a partition's, of one of the calls."""
        if self.durability is not Durability.REPLICATED:
            return ()
        # The barrier first: a remembered answer has written nothing that could be waited for (lua/barrier.lua). Then WAIT: what a
        # replica acknowledges in answer to a first question is what it had synced before it read the batch, and its next
        # acknowledgement comes by itself a second later. By the second question it has synced.
        keys = (facts, facts[:-1] + b"e")
        return (
            command_bytes(("EVALSHA", scripts.BARRIER.sha, 2, *keys, *self.head())),
            command_bytes(("WAIT", self.replicas, limits.REPLICATION_TIMEOUT_MS)),
            command_bytes(("WAITAOF", 1, self.replicas, limits.REPLICATION_TIMEOUT_MS)),
        )

    def exchange(self, packed: Packed) -> list[Any | PickgateError]:
        """Send what was packed, in one write, and wait for the outcomes, as `run`. Never raises."""
        return [settled(outcome) for outcome in self._outcomes(packed)]

    def _outcomes(self, packed: Packed) -> list[Any]:
        """As `exchange`, the store's own error replies as the driver has them."""
        outcomes = self._exchange(packed)
        again = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, NoScriptError)]
        if again:
            # SCRIPT FLUSH behind our back. NOSCRIPT means that nothing was run, so running it now is safe.
            try:
                with self._borrowed() as connection:
                    wanted = {packed.scripts[n].sha: packed.scripts[n] for n in again}
                    for script in (*wanted.values(), scripts.BARRIER):
                        ask(connection, "SCRIPT", "LOAD", script.source)
            except PickgateError as error:
                return [error if n in again else outcome for n, outcome in enumerate(outcomes)]
            behind = packed.commands[len(packed.scripts) :]
            retry = Packed(
                [packed.scripts[n] for n in again], [*(packed.commands[n] for n in again), *behind]
            )
            for n, outcome in zip(again, self._exchange(retry), strict=True):
                outcomes[n] = outcome
        return outcomes

    def _exchange(self, packed: Packed) -> list[Any]:
        outcomes: list[Any] = []
        try:
            with self._borrowed() as connection:
                connection.send_packed_command([b"".join(packed.commands)])
                for _ in packed.commands:
                    try:
                        outcomes.append(connection.read_response())
                    except ResponseError as error:
                        outcomes.append(error)
        except PickgateError as error:
            return [error for _ in packed.scripts]
        if self.durability is Durability.REPLICATED:
            reached = outcomes.pop()
            outcomes.pop()  # of WAIT, which only asked; WAITAOF's counts
            written = outcomes.pop()
            if (
                written != 1
                or isinstance(reached, RedisError)
                or reached[0] < 1
                or reached[1] < self.replicas
            ):
                missed = NotReplicated(
                    f"the change did not reach the disk of {self.replicas} replicas within"
                    f" {limits.REPLICATION_TIMEOUT_MS} ms: retry with the same request id"
                )
                # What was refused did nothing, here or anywhere.
                return [outcome if isinstance(outcome, RedisError) else missed for outcome in outcomes]
        return outcomes

    def read(self, commands: Sequence[Command]) -> list[Any]:
        """Run plain read commands in one write. Raises the error of the first that fails.

        In a cluster one without a key (INFO, TIME) asks the server that has the control partition.
        """
        pipeline: Any = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        try:
            return list(pipeline.execute())
        except RedisError as error:
            raise translate(error) from None

    def read_raw(self, command: Sequence[bytes | str | int]) -> Any:
        """Run one read command and give its reply as the wire has it: arrays as lists, text as bytes.

        For replies of thousands of entries, which the driver would make dicts of. Raises StoreUnavailable.
        """
        with self._borrowed() as connection:
            return ask(connection, *command)

    def read_streams(
        self, places: Mapping[bytes, bytes], count: int, block_ms: int
    ) -> tuple[dict[bytes, list[Any]], frozenset[bytes]]:
        """What lies behind a place of each stream, at most `count` entries of each; streams without news are left out.

        Waits for at most block_ms milliseconds (0: not at all; less than the store's timeout) while there is nothing anywhere.

        Returns the entries, as the wire has them, by stream; and the streams that could not be read now, whose server does not answer
        in time. Raises StoreUnavailable when that is all of them.
        """
        block: tuple[str | int, ...] = ("BLOCK", block_ms) if block_ms else ()
        reply = self.read_raw(("XREAD", "COUNT", count, *block, "STREAMS", *places, *places.values()))
        return dict(reply or ()), frozenset()

    def scan(self, pattern: str, count: int) -> set[bytes]:
        """Every key of the store whose name matches, asked for `count` at a time. Raises StoreUnavailable."""
        found: set[bytes] = set()
        cursor = b"0"
        while True:
            cursor, keys = self.read_raw(("SCAN", cursor, "MATCH", pattern, "COUNT", count))
            found.update(keys)
            if cursor == b"0":
                return found

    def is_empty(self) -> bool:
        """Whether the store holds nothing at all. Raises StoreUnavailable."""
        return int(self.read_raw(("DBSIZE",))) == 0

    def read_of(self, partitions: Iterable[int], commands: Sequence[Command]) -> list[Any]:
        """Read, as `read`, from partitions that must be there: nothing found in an emptied store is no answer.

        Raises StoreUnavailable too when one of the partitions isn't in the store.
        """
        looks = [
            ("HEXISTS", self.partitions[partition].meta, "epoch") for partition in sorted(set(partitions))
        ]
        replies = self.read([*commands, *looks])
        if not all(replies[len(commands) :]):
            raise emptied("the partition is not initialised in this store")
        return replies[: len(commands)]

    def write(self, commands: Sequence[Command]) -> list[Any]:
        """Run plain write commands as one transaction (in a cluster: one for each partition). Raises PickgateError."""
        pipeline: Any = self._client.pipeline(transaction=True)
        for command in commands:
            pipeline.execute_command(*command)
        try:
            return list(pipeline.execute())
        except RedisError as error:
            raise translate(error) from None


class Borrowed:
    """A connection of the pool for one raw exchange; failures come out as errors of ours.

    failed: told of each failure of the driver.
    """

    def __init__(self, pool: Any, failed: Callable[[RedisError], None] | None = None) -> None:
        self._pool = pool
        self._failed = failed
        self._connection: Any = None

    def __enter__(self) -> Any:
        try:
            self._connection = self._pool.get_connection()
        except RedisError as error:
            if self._failed is not None:
                self._failed(error)
            raise translate(error) from None
        return self._connection

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._connection.disconnect()
        self._pool.release(self._connection)
        if isinstance(error, RedisError):
            if self._failed is not None:
                self._failed(error)
            raise translate(error) from None


def settled(outcome: Any) -> Any:
    """An outcome, errors of the driver as ours."""
    return translate(outcome) if isinstance(outcome, RedisError) else outcome


def ask(connection: Any, *command: bytes | str | int) -> Any:
    """Send one command on a connection and read its reply. Raises RedisError."""
    connection.send_command(*command)
    return connection.read_response()


def field_of(info: bytes | str, field: str) -> str:
    """One field of what INFO said. Raises ResponseError when it isn't there."""
    text = info.decode() if isinstance(info, bytes) else info
    found = re.search(rf"^{field}:(.*?)\r?$", text, re.MULTILINE)
    if found is None:
        raise ResponseError(f"INFO lacks {field}")
    return found.group(1)
