"""The two services that are measured, each a process of its own with a store of its own, and the books of each."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psutil  # type: ignore[import-untyped]

from loadtests import audit, books
from loadtests.comparison import books as comparison_books
from loadtests.comparison import store as comparison_store

ROOT: Final = Path(__file__).resolve().parents[1]
START_S_MAX: Final = 60.0
STOP_S_MAX: Final = 60.0
STATISTICS_S_MAX: Final = 30.0
"""How long a line that is due each second may take, on a machine that does other things."""
LOG_TAIL_CHARS: Final = 2_000
_OURS_PREFIX: Final = "PICKGATE_"


class StackFailed(Exception):
    """A service did not come up, or went away; the message has the end of its log."""


@dataclass(frozen=True)
class Usage:
    """What a service and its store use, all processes together."""

    at_s: float
    rss_bytes: int
    """Of the service alone, without its store: what the store holds grows with its codes."""
    descriptors: int
    cpu_s: float
    store_rss_bytes: int
    store_cpu_s: float


class Stack:
    """One service over its own store, on a data folder. Use it as a context manager; leaving ends it, store and all.

    Args:
        folder: where its data folder and its log go; made if it is not there.
        tcp: listen on loopback, as terminals would come; else on a unix socket.
    """

    name: str

    def __init__(self, folder: Path, *, tcp: bool = True) -> None:
        folder = folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        self.data_dir: Final = folder / "data"
        self.log_path: Final = folder / "server.log"
        self.statistics_path: Final = folder / "statistics.jsonl"
        self._socket_dir = None if tcp else Path(tempfile.mkdtemp(prefix="pg-"))
        self._process: subprocess.Popen[str] | None = None
        self._family: list[psutil.Process] = []
        """What its first process had started when it listened: its store outlives it if it is killed."""
        self.address = ""
        self.addresses: list[str] = []
        self.store = ""
        """What it says of its store."""

    # --- what differs ----------------------------------------------------------------------------------------------
    def command(self, listen: str) -> list[str]:
        """What starts it."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """What it finds in its environment besides ours."""
        return {}

    def audit(self, acknowledged: Iterable[bytes], issued: int | None) -> audit.Audit:
        """Read its store, at rest, and close the audit."""
        raise NotImplementedError

    # --- its life --------------------------------------------------------------------------------------------------
    def __enter__(self) -> Self:
        return self.start()

    def start(self) -> Self:
        """Start it; returns when it listens. Raises StackFailed."""
        listen = f"unix:{self._socket_dir / 's'}" if self._socket_dir else "127.0.0.1:0"
        environment = {k: v for k, v in os.environ.items() if not k.startswith(_OURS_PREFIX)}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "proto")])
        with self.log_path.open("a") as log:
            self._process = subprocess.Popen(
                self.command(listen),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env=environment | self.environment(),
            )
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_S_MAX)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            self.stop()
            raise StackFailed(f"{self.name} did not come up; its log ends:\n{self.log_tail()}")
        self._family = _family(self._process.pid)
        said = json.loads(line)
        self.addresses, self.store = said["serving"], said["store"]
        self.address = self.addresses[0]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._socket_dir:
            shutil.rmtree(self._socket_dir, ignore_errors=True)

    def stop(self) -> None:
        """End it in order; what has not ended in time is killed, its store too."""
        process, self._process = self._process, None
        if process is None:
            return
        family = {*self._family, *_family(process.pid)}
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for member in family:
            # Only those of the same start time: psutil looks before it signals.
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        if process.stdout is not None:
            process.stdout.close()

    @property
    def alive(self) -> bool:
        """Whether its first process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of its first process. Raises StackFailed when it does not run."""
        if self._process is None:
            raise StackFailed(f"{self.name} does not run")
        return self._process.pid

    @property
    def pids(self) -> list[int]:
        """Of its processes, its store's included, but not those that the store forks for a while. Raises StackFailed when it is gone."""
        try:
            return sorted([self.pid, *(member.pid for member in psutil.Process(self.pid).children())])
        except psutil.Error as error:
            raise StackFailed(f"{self.name} is gone ({error}); its log ends:\n{self.log_tail()}") from None

    def usage(self) -> Usage:
        """What its processes use now. Raises StackFailed when it is gone."""
        rss = store_rss = descriptors = 0
        cpu = store_cpu = 0.0
        try:
            for member in [psutil.Process(self.pid), *_family(self.pid)]:
                with member.oneshot():
                    times = member.cpu_times()
                    if "-server" in member.name():
                        store_rss += member.memory_info().rss
                        store_cpu += times.user + times.system
                    else:
                        rss += member.memory_info().rss
                        # Who keeps its memory to itself (server.hardening) shows these to root alone: not counted then.
                        with contextlib.suppress(psutil.AccessDenied):
                            descriptors += member.num_fds()
                        cpu += times.user + times.system
        except psutil.Error as error:
            raise StackFailed(f"{self.name} is gone ({error}); its log ends:\n{self.log_tail()}") from None
        return Usage(time.monotonic(), rss, descriptors, cpu, store_rss, store_cpu)

    def statistics(self) -> dict[str, Any]:
        """What the service says of itself from now: the next line of its statistics file; empty if it writes none.

        It writes one each second, with figures that count from its start. Raises StackFailed if it has ceased to.
        """
        if not self.statistics_path.exists():
            return {}
        before = self.statistics_path.stat().st_size
        give_up_s = time.monotonic() + STATISTICS_S_MAX
        while True:
            with self.statistics_path.open("rb") as file:
                file.seek(before)
                line, end, _ = file.read().partition(b"\n")
            if end:
                found: dict[str, Any] = json.loads(line)
                return found
            if time.monotonic() > give_up_s:
                raise StackFailed(f"{self.name} writes no statistics; its log ends:\n{self.log_tail()}")
            time.sleep(0.02)

    def log_tail(self) -> str:
        """The end of its log."""
        return self.log_path.read_text(errors="replace")[-LOG_TAIL_CHARS:].strip() or "(nothing)"


class Ours(Stack):
    """`pickgate serve` with its embedded store and durability fsync."""

    name = "pickgate"

    def command(self, listen: str) -> list[str]:
        """See Stack."""
        words = ["--data-dir", str(self.data_dir), "--durability", "fsync", "--listen", listen]
        words += ["--stats-file", str(self.statistics_path)]
        return [sys.executable, "-m", "server.cli", "--json", "serve", *words]

    def environment(self) -> dict[str, str]:
        """See Stack. The passphrase is forgotten with the folder.

        Without a ledger: the comparison has none, and with one the store drops the events that the ledger has, which the books
        want to read.
        """
        return {"PICKGATE_PASSPHRASE": secrets.token_hex(16), "PICKGATE_LEDGER_URL": "off"}

    def audit(self, acknowledged: Iterable[bytes], issued: int | None) -> audit.Audit:
        """See Stack."""
        made = books.read(self.data_dir)
        made.close(acknowledged, issued)
        return made


class Recorded(Ours):
    """Ours with its ledger, SQLite, written beside it."""

    def environment(self) -> dict[str, str]:
        """See Stack."""
        return {"PICKGATE_PASSPHRASE": secrets.token_hex(16)}

    def writer_cpu_s(self) -> float:
        """Processor time that the ledger's writer has used. Raises StackFailed when there is none."""
        try:
            for member in _family(self.pid):
                if member.cmdline()[-2:] == ["ledger", "run"]:
                    times = member.cpu_times()
                    return float(times.user + times.system)
        except psutil.Error as error:
            raise StackFailed(f"the ledger's writer can't be looked at ({error})") from None
        raise StackFailed("the ledger's writer does not run")


class Comparison(Stack):
    """`python -m loadtests.comparison` with its store."""

    name = "comparison"

    def command(self, listen: str) -> list[str]:
        """See Stack."""
        words = ["--data-dir", str(self.data_dir), "--listen", listen]
        return [sys.executable, "-m", "loadtests.comparison", *words]

    def audit(self, acknowledged: Iterable[bytes], issued: int | None) -> audit.Audit:
        """See Stack."""
        made = comparison_books.read(Path(self.store.removeprefix("unix://")))
        made.close(acknowledged, issued)
        return made


def same_durability(ours: Ours, comparison: Comparison) -> dict[str, str]:
    """The settings that durability rests on, as both stores say them. Raises StackFailed if they differ."""
    one = comparison_store.durability_settings(books.socket_of(ours.data_dir))
    other = comparison_store.durability_settings(Path(comparison.store.removeprefix("unix://")))
    if one != other:
        differing = {name: (one[name], other[name]) for name in one if one[name] != other.get(name)}
        raise StackFailed(f"the stores have different settings, which would be no comparison: {differing}")
    return one


def _family(pid: int) -> Any:
    """Descendants of a process, as a list of psutil.Process."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
