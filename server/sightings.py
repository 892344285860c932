"""Which terminals have called, noted in the store once in a while: at most one write for a minute's callers, none for a call."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from engine.deployment import Deployment
from engine.errors import PickgateError
from engine.state import sightings
from server import bounds
from server.gate import Gate

_log = logging.getLogger(__name__)


class Sightings:
    """Notes who has called. `start`, then `stop`, which notes the rest."""

    def __init__(
        self,
        deployment: Deployment,
        gate: Gate,
        *,
        every_s: float = bounds.SIGHTINGS_S,
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        self._connection = deployment.connection
        self._gate = gate
        self._every_s = every_s
        self._unix_s = unix_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pickgate-sightings", daemon=True)

    def start(self) -> None:
        """Begin to note."""
        self._thread.start()

    def stop(self) -> None:
        """Note the rest, and end. Stopping twice, or without a start, changes nothing."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        going_on = True
        while going_on:
            going_on = not self._stopped.wait(self._every_s)
            try:
                self.note()
            except PickgateError as error:
                # Nothing depends on it; those who call again are noted with the next.
                _log.debug("sightings of terminals could not be noted: %s", error.message)
            except Exception:
                _log.exception("noting the sightings of terminals failed")

    def note(self) -> None:
        """Note those who have called since the last time. Raises StoreUnavailable."""
        now_s = int(self._unix_s())
        seen: dict[str, int] = {}
        for caller in self._gate.callers():
            if caller.used and caller.terminal is not None:
                caller.used = False
                seen["{}:{}:{}".format(*caller.terminal)] = now_s
        if seen:
            sightings.note(self._connection, seen)
