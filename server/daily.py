"""Daily jobs (the reconciliation, the checkpoint), each as a process of its own: it folds for a while, and the ledger's writer must go on."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from engine.ledger import daily

OFF: Final = "off"
_log = logging.getLogger(__name__)


class Daily:
    """Starts a command of pickgate when its time of day has come. For one thread."""

    def __init__(
        self, at: str, now_ms: Callable[[], int], arguments: Sequence[str], environ: Mapping[str, str]
    ) -> None:
        """at: "HH:MM zone", or OFF. arguments and environ: of the command."""
        self._at = at
        self._now_ms = now_ms
        self._name = " ".join(arguments)
        self._command = [sys.executable, "-m", "server.cli", *arguments]
        self._environ = dict(environ)
        self._due_ms = 0 if at == OFF else daily.next_ms(at, now_ms())
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether one is running, as `look` last saw it."""
        return self._process is not None

    def look(self) -> None:
        """Start it if it is due, and tell how the one before ended."""
        if self._process is not None and self._process.poll() is not None:
            if self._process.returncode:
                _log.error(
                    "the daily job 'pickgate %s' ended with status %d", self._name, self._process.returncode
                )
            self._process = None
        if self._due_ms and self._now_ms() >= self._due_ms:
            self._due_ms = daily.next_ms(self._at, self._now_ms())
            if self._process is None:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env=self._environ,
                )

    def stop(self) -> None:
        """End one that is running: nothing is kept of it, and it can be repeated."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
