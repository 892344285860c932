"""The ledger's writer as a process beside the server: its work must not take the server's interpreter from the calls.

It is started again when it ends by itself, ever more slowly, and ends with its parent, also after kill -9 (engine.state.launch):
one thread of ours forks it and outlives everything else.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from server.config import PREFIX, Settings

RESTART_WAIT_S_MIN: Final = 0.5
RESTART_WAIT_S_MAX: Final = 60.0
"""Also how often a ledger that refuses to go on says so again in the log."""
STEADY_AFTER_S: Final = 60.0
"""A writer that lived this long starts the next wait from the minimum again."""
STOP_TIMEOUT_S: Final = 15.0
"""After SIGTERM, for appending what is there; then SIGKILL, which loses nothing: the next writer goes on from the store."""

_HANDED_DOWN: Final = ("PATH", "LD_LIBRARY_PATH", "TZ", "PYTHONPATH", "PYTHONUTF8", "PICKGATE_PURE")
"""Of the environment. Not all of it: it may hold the keyring's passphrase, which the ledger has no use for."""

_log = logging.getLogger(__name__)


class LedgerProcess:
    """`pickgate ledger run` on the store at `store_url`. Use it as a context manager."""

    def __init__(self, settings: Settings, store_url: str) -> None:
        launcher = importlib.util.find_spec("engine.state.launch")
        assert launcher is not None
        assert launcher.origin is not None
        self._command = [
            *(sys.executable, "-I", "-S", launcher.origin, str(os.getpid()), "--"),
            *(sys.executable, "-m", "server.cli", "ledger", "run"),
        ]
        # By the environment, not by flags: an address may hold a password, and everybody sees a process' arguments.
        chosen = {
            "store_url": store_url,
            "durability": settings.durability,
            "replicas": settings.replicas,
            "log_level": settings.log_level,
            "ledger_url": settings.ledger_address,
            "ledger_chain": settings.ledger_chain,
            "ledger_key_file": settings.ledger_key.absolute(),
            "ledger_heads_dir": settings.ledger_heads.absolute(),
            "ledger_reconcile_at": settings.ledger_reconcile_at,
            "ledger_checkpoint_at": settings.ledger_checkpoint_at,
            "ledger_events_days": settings.ledger_events_days,
            "ledger_freeze_on_drift": settings.ledger_freeze_on_drift,
            "ledger_attempts_days": settings.ledger_attempts_days,
        }
        self._environ = {name: os.environ[name] for name in _HANDED_DOWN if name in os.environ} | {
            f"{PREFIX}{key.upper()}": str(value) for key, value in chosen.items()
        }
        self._folder: Path = settings.data_dir
        self._stopping = threading.Event()
        self._wake_fd = -1
        self._thread = threading.Thread(target=self._keep_running, name="pickgate-ledger", daemon=True)

    def start(self) -> Self:
        """Start it; whether it can write shows in the log, and in the lag that servers look at."""
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Let it append what is there, then end it."""
        self._stopping.set()
        os.eventfd_write(self._wake_fd, 1)
        self._thread.join()
        os.close(self._wake_fd)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _keep_running(self) -> None:
        wait_s = RESTART_WAIT_S_MIN
        while not self._stopping.is_set():
            born_s = time.monotonic()
            try:
                ended = f"exit status {self._run_once()}"
            except OSError as error:  # no memory, no processes
                ended = f"could not be started: {error}"
            if self._stopping.is_set():
                return
            if time.monotonic() - born_s > STEADY_AFTER_S:
                wait_s = RESTART_WAIT_S_MIN
            _log.error("the ledger's writer ended (%s); starting it again in %.1f s", ended, wait_s)
            self._wait([], wait_s)
            wait_s = min(2 * wait_s, RESTART_WAIT_S_MAX)

    def _run_once(self) -> int:
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            # What the server prints is for whoever waits for it to come up.
            stdout=subprocess.DEVNULL,
            # Its own session: Ctrl-C in a terminal is for the server, which ends it when the last call is answered.
            start_new_session=True,
            env=self._environ,
            cwd=self._folder,
        )
        pid_fd = os.pidfd_open(process.pid)
        try:
            self._wait([pid_fd], None)
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    _log.warning("the ledger's writer did not end within %g s: killed", STOP_TIMEOUT_S)
                    process.kill()
        finally:
            os.close(pid_fd)
        return process.wait()

    def _wait(self, fds: list[int], timeout_s: float | None) -> None:
        """Wait for `stop`, or for one of the descriptors."""
        poll = select.poll()
        for fd in (self._wake_fd, *fds):
            poll.register(fd, select.POLLIN)
        poll.poll(None if timeout_s is None else timeout_s * 1000)
