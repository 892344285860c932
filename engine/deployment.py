"""A deployment: the store, its partitions, the process' copy of the set-up, and the clock. Every verb takes one."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from engine import keyring as keyrings
from engine import limits
from engine.control import Control, Copy, Random
from engine.errors import DeploymentMismatch, InvalidInput
from engine.standings import Standings
from engine.state import control as state
from engine.state.cluster import connect
from engine.state.connection import Connection, Durability
from engine.wrapping import Unlock

__all__ = ["Deployment", "Durability", "system_ms"]

PARTITIONS_MIN: Final = 1
SETTINGS_LOOK_S: Final = 60.0
"""How often a store's settings are looked at again. Once they are wrong, at every look until they are mended."""


def system_ms() -> int:
    """Unix milliseconds of the system's clock."""
    return time.time_ns() // 1_000_000


class Deployment:
    """One open deployment; for many threads at once.

    now_ms: the clock of every verb, unix milliseconds.
    """

    def __init__(
        self,
        connection: Connection,
        constants: state.Constants,
        control: Control,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.connection = connection
        self.constants = constants
        self.control = control
        self.now_ms = connection.now_ms
        self.forgeries = control.forgeries
        self._monotonic_s = monotonic_s
        self._standings: Standings | None = None
        # Opening it greeted the server, which looks at its settings.
        self._settings_sound_at_s = monotonic_s()

    @classmethod
    def create(
        cls,
        store_url: str,
        *,
        unlock: Unlock,
        durability: Durability = Durability.FSYNC,
        replicas: int = 0,
        partitions: int = limits.PARTITIONS_DEFAULT,
        clock_compared: bool = True,
        now_ms: Callable[[], int] = system_ms,
        random: Random = os.urandom,
    ) -> None:
        """Create a deployment in an empty store, with a first keyring.

        clock_compared False leaves out the comparison of clocks: for tests that own the time, with durability `memory` only.
        Raises DeploymentMismatch when there is one already, StoreSettings, StoreUnavailable, KeyringLocked.
        """
        if not PARTITIONS_MIN <= partitions <= limits.PARTITIONS_MAX:
            raise InvalidInput(
                f"partitions is {partitions}; expected {PARTITIONS_MIN} to {limits.PARTITIONS_MAX}",
                field="partitions",
            )
        if not clock_compared and durability is not Durability.MEMORY:
            raise InvalidInput(
                "only a deployment for tests (durability memory) may leave its clock uncompared"
            )
        connection = connect(
            store_url, durability=durability, now_ms=now_ms, replicas=replicas, clock_compared=clock_compared
        )
        try:
            deployment_id = str(uuid.UUID(bytes=random(16), version=4))
            ring = keyrings.initial(now_ms() // 1000, random)
            blob = keyrings.dump(ring, unlock, deployment_id, random)
            state.create(
                connection,
                deployment_id=deployment_id,
                partitions=partitions,
                clock_compared=clock_compared,
                keyring=blob,
            )
        finally:
            connection.close()

    @classmethod
    def exists(cls, store_url: str) -> bool:
        """True when the store holds a deployment. Raises StoreUnavailable."""
        connection = connect(store_url, durability=Durability.MEMORY, now_ms=system_ms)
        try:
            return state.read_constants(connection) is not None
        finally:
            connection.close()

    @classmethod
    def open(
        cls,
        store_url: str,
        *,
        unlock: Unlock | None,
        durability: Durability = Durability.FSYNC,
        replicas: int = 0,
        partitions: int | None = None,
        now_ms: Callable[[], int] = system_ms,
        random: Random = os.urandom,
        monotonic_s: Callable[[], float] = time.monotonic,
        ledger_lag_s_max: float = limits.LEDGER_LAG_S_MAX,
    ) -> Self:
        """Open the deployment in a store; without `unlock` the keyring stays locked, and only reads are served.

        `partitions`, when given, must be the number it was created with. Changes are refused while the ledger is more than
        `ledger_lag_s_max` behind. Raises DeploymentMismatch, StoreSettings, StoreUnavailable, InvalidInput.
        """
        connection = connect(store_url, durability=durability, now_ms=now_ms, replicas=replicas)
        try:
            constants = state.read_constants(connection)
            if constants is None:
                raise DeploymentMismatch("the store holds no deployment: create one with `pickgate init`")
            if partitions is not None and partitions != constants.partitions:
                raise DeploymentMismatch(
                    f"the deployment has {constants.partitions} partitions, the configuration says {partitions}: the number is"
                    " fixed when a deployment is created; correct the configuration",
                    field="partitions",
                )
            if not constants.clock_compared and durability is not Durability.MEMORY:
                raise DeploymentMismatch(
                    "the deployment was created for tests, without comparing clocks: create a new one"
                )
            connection.clock_compared = constants.clock_compared
            connection.use_partitions([tag.encode() for tag in constants.tags])
            control = Control(
                connection,
                constants.deployment_id,
                unlock,
                random=random,
                monotonic_s=monotonic_s,
                ledger_lag_s_max=ledger_lag_s_max,
            )
            control.start()
        except BaseException:
            connection.close()
            raise
        return cls(connection, constants, control, monotonic_s=monotonic_s)

    def standings(self, copy: Copy, now_s: int) -> Standings:
        """What holds at each store in this second, under a copy of the set-up."""
        kept = self._standings
        if kept is None or not kept.hold(copy, now_s):
            kept = self._standings = Standings(copy, now_s)
        return kept

    def look(self) -> None:
        """Look whether calls can be answered now: the set-up fresh, the keyring open, every partition there.

        The store's settings are looked at again when they were last sound SETTINGS_LOOK_S ago: somebody may have changed
        them meanwhile, and then an acknowledgement does not mean any more what was promised. For one thread at a time.
        Raises StoreUnavailable, StaleControl, KeyringLocked, StoreSettings.
        """
        self.control.refresh().usable_keys()
        now_s = self._monotonic_s()
        due = now_s - self._settings_sound_at_s >= SETTINGS_LOOK_S
        self.connection.look(settings=due)
        if due:
            self._settings_sound_at_s = now_s

    def close(self) -> None:
        """Stop watching and close the connections. Calls in flight fail with StoreUnavailable."""
        self.control.stop()
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
