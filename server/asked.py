"""Reconciliations that were asked for over the wire: taken up beside the ledger's writer, each as a process of its own."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from engine.errors import Unavailable
from engine.ledger import operations
from engine.ledger.ledger import Ledger

LOOK_S: Final = 0.5
"""How often is looked whether one waits."""
SAY_S: Final = 5.0
"""How often is said that one is still worked on."""

_log = logging.getLogger(__name__)


class Asked:
    """Starts `pickgate ledger reconcile` for each operation that waits. For one thread."""

    def __init__(
        self,
        ledger: Ledger,
        now_ms: Callable[[], int],
        arguments: Sequence[str],
        environ: Mapping[str, str],
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Arguments and environ: of the command; the operation's id is its last argument, and it says itself how that ended."""
        self._ledger = ledger
        self._now_ms = now_ms
        self._command = [sys.executable, "-m", "server.cli", *arguments]
        self._environ = dict(environ)
        self._monotonic_s = monotonic_s
        self._process: subprocess.Popen[bytes] | None = None
        self._operation_id = ""
        self._looked_at_s = float("-inf")
        self._said_at_s = float("-inf")

    def look(self) -> None:
        """Start one if it waits, and see to the one that runs. A ledger that can't be reached is looked at again later."""
        now_s = self._monotonic_s()
        if now_s - self._looked_at_s < LOOK_S:
            return
        self._looked_at_s = now_s
        try:
            if self._process is None:
                self._begin()
            elif self._process.poll() is None:
                if now_s - self._said_at_s >= SAY_S:
                    operations.work_on(self._ledger, self._operation_id, self._now_ms())
                    self._said_at_s = now_s
            else:
                self._end(f"its process ended with status {self._process.returncode}")
        except Unavailable as error:
            _log.debug("operations can't be looked at now: %s", error.message)

    def _begin(self) -> None:
        operation_id = operations.take_up(self._ledger, self._now_ms())
        if not operation_id:
            return
        self._operation_id, self._said_at_s = operation_id, self._monotonic_s()
        try:
            self._process = subprocess.Popen(
                [*self._command, operation_id],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=self._environ,
            )
        except OSError as error:  # no memory, no processes
            self._end(f"its process could not be started: {error}")

    def _end(self, why: str) -> None:
        """Note that it failed, unless its process has said how it ended."""
        operations.end(self._ledger, self._operation_id, self._now_ms(), message=why)
        self._process = None

    def stop(self) -> None:
        """End one that is running: nothing is kept of it, and it can be asked for again."""
        if self._process is None:
            return
        self._process.terminate()
        self._process.wait()
        try:
            self._end("the ledger's writer was stopped: ask again")
        except Unavailable as error:
            _log.warning("operation %s ended with the writer: %s", self._operation_id, error.message)
