"""A real `pickgate serve` as a process of its own, and the way to its store from beside it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from engine.deployment import Deployment
from pickgate.v1 import store_service_pb2 as store_pb
from server.client import CallFailed, Client
from tests.race import shop

ROOT: Final = Path(__file__).resolve().parents[2]
START_BOUND_S: Final = 60.0


def until(condition: Callable[[], bool], what: str, bound_s: float = 30.0) -> None:
    """Wait for a condition, looking often; fail past the bound."""
    end = time.monotonic() + bound_s
    while not condition():
        assert time.monotonic() < end, f"not within {bound_s:g} s: {what}"
        threading.Event().wait(0.005)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be reaped does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


class Serving:
    """`pickgate serve` on one data folder and one address. `start` it as often as it was ended.

    Args:
        folder: for its data, its log, and its unix socket.
        workers: how many processes; several listen on a port of loopback.
    """

    def __init__(self, folder: Path, *, workers: int = 1) -> None:
        self.data_dir = folder / "data"
        self.address = f"unix:{folder / 's'}" if workers == 1 else "127.0.0.1:0"
        self._workers = workers
        self._log = folder / "serve.log"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> Self:
        """Start it; returns when it listens."""
        settings = {
            "PICKGATE_PASSPHRASE": shop.PASSPHRASE.decode(),
            "PICKGATE_PARTITIONS": str(shop.PARTITIONS),
            "PICKGATE_THREADS": "32",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")]),
        }
        command = [sys.executable, "-m", "server.cli", "--json", "serve", "--data-dir", str(self.data_dir)]
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [*command, "--listen", self.address, "--workers", str(self._workers)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self._log.parent,
                env={k: v for k, v in os.environ.items() if not k.startswith("PICKGATE_")} | settings,
            )
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_BOUND_S)
        line = self._process.stdout.readline() if ready else ""
        assert line, f"it did not come up; its log ends:\n{self._log.read_text()[-2000:]}"
        (address,) = json.loads(line)["serving"]
        assert address.rpartition(":")[0] == self.address.rpartition(":")[0]
        self.address = address
        return self

    @property
    def pid(self) -> int:
        """Process id of the server that was started last."""
        assert self._process is not None
        return self._process.pid

    @property
    def workers(self) -> list[int]:
        """Process ids of its workers, in the order of their start."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        found = [
            pid for pid in map(int, children) if b"server.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        return sorted(found)

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self._log.read_text(errors="replace")

    @property
    def store_url(self) -> str:
        """Address of the store that the server owns."""
        return f"unix://{self.data_dir / 'store.sock'}"

    def open_beside(self) -> Deployment:
        """Open the same deployment from this process, to look into its books."""
        return Deployment.open(self.store_url, unlock=shop.unlock)

    def furnish(self) -> None:
        """Put the mall, its stores and its catalogue; returns when every process of the server has seen them."""
        with self.open_beside() as deployment, Client(self.address) as client:
            shop.furnish(deployment)

            def has_seen_them() -> bool:
                asked = store_pb.ListCatalogueRequest(mall_id=shop.MALL, page_size=1)
                try:
                    return bool(client.call(client.stores.ListCatalogue, asked).entries)
                except CallFailed:  # it does not know the mall yet
                    return False

            until(has_seen_them, "the server's copy")
        if self._workers > 1:
            # One connection asks one worker, and another may be some seconds behind; their successors begin with it.
            assert self.end() == 0
            self.start()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal the server, and only it; returns its exit status."""
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.send_signal(number)
        try:
            status = self._process.wait(START_BOUND_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        self._process.stdout.close()
        self._process = None
        return status

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        if self._process is not None:
            self.end(signal.SIGKILL)
