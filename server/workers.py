"""Workers: several processes that serve one deployment on the same ports, and the supervisor that starts them again.

Each worker is a fresh process (a copy of one that has used gRPC can't be relied on), with its own connections to the store. The
kernel spreads new connections over those that listen on a port (SO_REUSEPORT); a connection stays with its worker. What has to
outlive a worker is the supervisor's: the embedded store, the reservation of the ports, the passphrase that somebody typed.

A worker that dies takes its own connections along, and no other's. What it had acknowledged is in the store; callers that had no
answer connect anew, to whichever worker there is, and ask again with the same request id.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from engine.errors import SetupError
from server import bounds
from server.config import PASSPHRASE_VARIABLE, Listen, Settings
from server.stopping import StopSignal

_log = logging.getLogger(__name__)

Command = Sequence[str]
WORKER: Final[Command] = (sys.executable, "-P", "-m", "server.worker")
"""-P: a folder called `server` where somebody happens to be must not be taken for ours."""


# --- the ports ------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def reserved(listen: Sequence[Listen]) -> Iterator[tuple[Listen, ...]]:
    """Hold ports for the workers as long as the context lasts; gives the addresses with their real ports.

    Workers share a port by SO_REUSEPORT, which would let anybody else of the same user in as well; so each port is first taken
    without it, which fails while somebody listens there. Raises SetupError then, and for unix sockets, which can't be shared.
    """
    with contextlib.ExitStack() as stack:
        yield tuple(_reserve(stack, one) for one in listen)


def _reserve(stack: contextlib.ExitStack, listen: Listen) -> Listen:
    if listen.port is None:
        raise SetupError(
            f"several workers can't share the socket {listen.address}: listen on a loopback port, or use one worker",
            field="listen",
        )
    host, port = listen.address.rpartition(":")[0], listen.port
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise SetupError(f"can't listen on {listen.address}: {error.strerror}", field="listen") from None
    places = dict.fromkeys((family, address[0]) for family, _, _, _, address in found)
    held = 0
    for family, place in places:
        try:
            with _bound(family, str(place), port, socket.SO_REUSEADDR) as probe:
                port = probe.getsockname()[1]
            stack.enter_context(_held(family, str(place), port))
            held += 1
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) and len(places) > 1:
                continue  # localhost, on a machine without IPv6
            raise SetupError(
                f"can't listen on {listen.address}: {error.strerror}; stop the other process that listens there, or "
                "choose another address",
                field="listen",
            ) from None
    if not held:
        raise SetupError(f"can't listen on {listen.address}: it is not this machine's", field="listen")
    return Listen(f"{host}:{port}", port)


def _held(family: int, host: str, port: int) -> socket.socket:
    """Bind without listening: it takes no connection, and nobody else gets the port."""
    try:
        return _bound(family, host, port, socket.SO_REUSEPORT)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        # Connections of an earlier server linger, nobody listens.
        return _bound(family, host, port, socket.SO_REUSEPORT, socket.SO_REUSEADDR)


def _bound(family: int, host: str, port: int, *options: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        for option in options:
            made.setsockopt(socket.SOL_SOCKET, option, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((host, port))
    except BaseException:
        made.close()
        raise
    return made


# --- orders ---------------------------------------------------------------------------------------------------------
def orders_of(
    settings: Settings,
    store_url: str,
    listen: Sequence[Listen],
    environ: Mapping[str, str],
    *,
    passphrase: str,
    listen_mtls: Sequence[Listen] = (),
    stats_file: str = "",
) -> Callable[[int], bytes]:
    """What workers are told, by their numbers: the settings, with the store and the ports that there really are.

    passphrase: typed by a person, "" if it comes from a file or the environment: workers read those by themselves.
    """
    given = settings.model_dump(
        mode="json", include=settings.model_fields_set - {"listen", "listen_mtls", "workers"}
    )
    given |= {
        "data_dir": str(settings.data_dir),
        "store_url": store_url,
        "listen": [one.address for one in listen],
        "listen_mtls": [one.address for one in listen_mtls],
        # Workers don't know the store as embedded, and would not look beside it.
        "ledger_url": settings.ledger_address or "off",
    }
    own = settings.embedded and settings.own_passphrase_file.exists()
    if own and settings.passphrase_file is None and PASSPHRASE_VARIABLE not in environ:
        # Workers don't know the store as embedded, and would not look there.
        given["passphrase_file"] = str(settings.own_passphrase_file)

    def of(number: int) -> bytes:
        told = {"number": number, "settings": given, "passphrase": passphrase, "stats_file": stats_file}
        return json.dumps(told).encode() + b"\n"

    return of


# --- the processes --------------------------------------------------------------------------------------------------
class _Worker:
    """One place among the workers, and the process that has it at the moment."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: subprocess.Popen[bytes] | None = None
        self.said = b""
        self.serving = False
        self.started_s = 0.0
        self.failures = 0
        """How often it ended in short order."""
        self.due_s = 0.0
        """When to start it again, while it has no process."""

    def trouble(self) -> str:
        """What it said before it ended."""
        with contextlib.suppress(ValueError, KeyError):
            said = json.loads(self.said)
            return f"{said['error']}: {said['message']}"
        return "see its log above"


class Supervisor:
    """Keeps workers running. Use it as a context manager: entering starts them, leaving stops them in order.

    Args:
        count: how many.
        orders: what each is told first, by its number.
        grace_s: how long a stop waits for calls in flight.
        stop: asks to stop.
        command: starts a worker.
        monotonic_s: the clock of the waits.
    """

    def __init__(
        self,
        count: int,
        orders: Callable[[int], bytes],
        *,
        grace_s: float,
        stop: StopSignal,
        command: Command = WORKER,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._workers = [_Worker(number) for number in range(count)]
        self._orders = orders
        self._grace_s = grace_s
        self._stop = stop
        self._command = command
        self._monotonic_s = monotonic_s

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that run."""
        return [worker.process.pid for worker in self._workers if worker.process is not None]

    def __enter__(self) -> Supervisor:
        """Start them all; returns when all serve, or when a stop was asked for meanwhile.

        Raises SetupError when one can't.
        """
        try:
            for worker in self._workers:
                self._start(worker)
            give_up_s = self._monotonic_s() + bounds.WORKER_START_S_MAX
            while not all(worker.serving for worker in self._workers):
                if self._stop.came():
                    break
                self._wait(give_up_s)
                ended = next((worker for worker in self._workers if worker.process is None), None)
                if ended is not None:
                    raise SetupError(f"worker {ended.number} can't serve: {ended.trouble()}")
                if self._monotonic_s() >= give_up_s:
                    raise SetupError(f"the workers did not serve within {bounds.WORKER_START_S_MAX:g} s")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def run(self) -> None:
        """Start again what ends, until a stop is asked for."""
        while not self._stop.came():
            now_s = self._monotonic_s()
            for worker in self._workers:
                if worker.process is None and worker.due_s <= now_s:
                    self._start(worker)
            due = [worker.due_s for worker in self._workers if worker.process is None]
            self._wait(min(due, default=None))

    # --- one worker -------------------------------------------------------------------------------------------
    def _start(self, worker: _Worker) -> None:
        worker.said, worker.serving, worker.started_s = b"", False, self._monotonic_s()
        # The same modules as ours, wherever they came from.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        worker.process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            # A terminal's Ctrl-C is for the supervisor, which passes it on; twice would cut calls off.
            process_group=0,
        )
        assert worker.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended already, which is noticed by its output
            worker.process.stdin.write(self._orders(worker.number))
            worker.process.stdin.flush()

    def _wait(self, until_s: float | None) -> None:
        """Wait for a stop, for what workers say, for their end; at most until a time."""
        outputs = {
            worker.process.stdout.fileno(): worker
            for worker in self._workers
            if worker.process is not None and worker.process.stdout is not None
        }
        timeout_s = None if until_s is None else max(0.0, until_s - self._monotonic_s())
        ready, _, _ = select.select([self._stop.fileno(), *outputs], [], [], timeout_s)
        for fd in ready:
            if fd in outputs:
                self._hear(outputs[fd], fd)

    def _hear(self, worker: _Worker, fd: int) -> None:
        said = os.read(fd, 65_536)
        worker.said += said
        if not said:
            self._ended(worker)
        elif b'"serving"' in worker.said and not worker.serving:
            worker.serving = True
            assert worker.process is not None
            _log.info("worker %d serves (process %d)", worker.number, worker.process.pid)

    def _ended(self, worker: _Worker) -> None:
        process = worker.process
        assert process is not None
        # Its output has ended, so it has, or is about to.
        status = self._reaped(process)
        worker.process = None
        now_s = self._monotonic_s()
        steady = now_s - worker.started_s >= bounds.WORKER_STEADY_S
        worker.failures = 1 if steady else worker.failures + 1
        wait_s = min(bounds.WORKER_WAIT_S_MIN * 2 ** min(worker.failures - 1, 16), bounds.WORKER_WAIT_S_MAX)
        worker.due_s = now_s + wait_s
        how = f"signal {-status}" if status < 0 else f"status {status}"
        _log.error(
            "worker %d (process %d) ended with %s%s; it is started again in %.1f s",
            worker.number,
            process.pid,
            how,
            "" if worker.serving else f" before it served: {worker.trouble()}",
            wait_s,
        )

    def _reaped(self, process: subprocess.Popen[bytes]) -> int:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            return process.wait(bounds.WORKER_END_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    # --- the end ----------------------------------------------------------------------------------------------
    def _end(self) -> None:
        """Let all stop in order; what has not ended long after its grace is killed."""
        running = [worker.process for worker in self._workers if worker.process is not None]
        for process in running:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        give_up_s = self._monotonic_s() + self._grace_s + bounds.WORKER_END_S_MAX
        for process in running:
            try:
                process.wait(max(0.0, give_up_s - self._monotonic_s()))
            except subprocess.TimeoutExpired:
                _log.error("process %d did not stop: killed", process.pid)
                process.send_signal(signal.SIGKILL)
            self._reaped(process)
        for worker in self._workers:
            worker.process = None
