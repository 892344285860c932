"""When the embedded store rewrites its append-only file: in a quiet moment, or in a rush that has grown it too far.

A rewrite begins with a fork, and while it lasts each page that is written is copied first: calls that come just then wait. So the
bound from which the store rewrites a file that has doubled lies high (`RUSH_BYTES_MIN`), and whenever the store has hardly anything to do
and the file has doubled, the bound is taken down for a moment.

Only `auto-aof-rewrite-min-size` is moved, and the store decides: whoever sets `auto-aof-rewrite-percentage` to 0, as for a
backup, has no rewrite begun under their copy.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

LOOK_S: Final = 1.0
"""Between two looks at how busy the store is: a bound that was taken down for a rewrite is down for as long."""
QUIET_SHARE_MAX: Final = 0.1
"""Of a core, in each of two looks: a store that uses no more is quiet. Two thousand redemptions a second take it that much."""
QUIET_BYTES_MIN: Final = 64 * 1024 * 1024
"""A file that has grown by less is not rewritten at all."""
RUSH_BYTES_MIN: Final = 512 * 1024 * 1024
"""A file is rewritten in a rush when it is longer, and `RUSH_TIMES` what the last rewrite left: a start reads it in five seconds."""
RUSH_TIMES: Final = 4
TELL_TIMEOUT_S: Final = 1.0

_FOLDER: Final = "appendonlydir"
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


class File(NamedTuple):
    """The append-only file: bytes that the last rewrite left, and bytes written behind them."""

    base_bytes: int
    grown_bytes: int


class Rewrites:
    """Moves the bound of one running store; `look` is to be called now and then, by one thread.

    Args:
        file: the append-only file of now.
        used_s: processor time that the store has used, seconds.
        tell: sets the bound, bytes; False if the store did not take it.
        clock: seconds.
    """

    def __init__(
        self,
        file: Callable[[], File],
        used_s: Callable[[], float],
        tell: Callable[[int], bool],
        clock: Callable[[], float],
    ) -> None:
        self._file = file
        self._used_s = used_s
        self._tell = tell
        self._clock = clock
        self._bound_bytes = RUSH_BYTES_MIN  # as it is started with
        self._seen_s, self._seen_used_s = clock(), used_s()
        self._was_quiet = False
        self._asked_bytes = 0

    def look(self) -> None:
        """Look how busy the store is and how far its file has grown, if it is time to, and move the bound. Does not raise."""
        now_s = self._clock()
        if now_s - self._seen_s < LOOK_S:
            return
        used_s = self._used_s()
        quiet = used_s - self._seen_used_s <= QUIET_SHARE_MAX * (now_s - self._seen_s)
        self._seen_s, self._seen_used_s = now_s, used_s
        file = self._file()
        if file.grown_bytes < self._asked_bytes:  # it was rewritten
            self._asked_bytes = 0
        wanted = max(RUSH_BYTES_MIN, RUSH_TIMES * file.base_bytes)
        # A store that was started with a grown file takes all of it for what it started with, and does not rewrite it yet though it was
        # asked to; then it isn't asked again at each look.
        if (
            quiet
            and self._was_quiet
            and self._bound_bytes >= RUSH_BYTES_MIN
            and file.grown_bytes >= max(QUIET_BYTES_MIN, file.base_bytes) + self._asked_bytes
        ):
            wanted = QUIET_BYTES_MIN
        self._was_quiet = quiet
        if wanted != self._bound_bytes and self._tell(wanted):
            self._bound_bytes = wanted
            if wanted == QUIET_BYTES_MIN:
                self._asked_bytes = file.grown_bytes


def of_store(pid: int, data_dir: Path, socket_path: Path, clock: Callable[[], float]) -> Rewrites:
    """For the store with a process id that has been started on a data folder and listens, or will, on a socket."""
    return Rewrites(
        lambda: file_in(data_dir),
        lambda: used_s(pid),
        lambda bound_bytes: _set_bound(socket_path, bound_bytes),
        clock,
    )


def file_in(data_dir: Path) -> File:
    """The append-only file in a data folder; nothing where there is none."""
    base_bytes = grown_bytes = 0
    with contextlib.suppress(OSError), os.scandir(data_dir / _FOLDER) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # a rewrite has removed it meanwhile
                if entry.name.endswith(".incr.aof"):
                    grown_bytes += entry.stat().st_size
                elif ".base." in entry.name:
                    base_bytes += entry.stat().st_size
    return File(base_bytes, grown_bytes)


def used_s(pid: int) -> float:
    """Processor time that a process has used, seconds (proc(5), /proc/pid/stat: utime and stime); 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _set_bound(socket_path: Path, bound_bytes: int) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(TELL_TIMEOUT_S)
        try:
            connection.connect(str(socket_path))
            connection.sendall(b"CONFIG SET auto-aof-rewrite-min-size %d\r\n" % bound_bytes)
            return connection.recv(256).startswith(b"+OK")
        except OSError:
            return False
