"""Connections to one server with their sockets: non-blocking, one epoll, lost ones replaced."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

from loadtests.wire import headers
from loadtests.wire.connection import Connection, Done, Request
from loadtests.wire.headers import Status

READ_BYTES: Final = 2**18
SELECT_FILES_MAX: Final = 1024
"""select(2): FD_SETSIZE. A pool made beside thousands of open files waits in whole milliseconds."""
CONNECT_TIMEOUT_S: Final = 5.0
RECONNECT_WAIT_S: Final = 0.05
"""Between two attempts of one line; until then its calls fail at once."""


class NotReachable(Exception):
    """Nobody takes connections at the target."""


def connect(target: str, tls: ssl.SSLContext | None = None) -> socket.socket:
    """A connected socket for host:port or unix:/path, under TLS if a context is given.

    Raises NotReachable, and ValueError for what is no target.
    """
    try:
        if target.startswith("unix:"):
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                made.settimeout(CONNECT_TIMEOUT_S)
                made.connect(target.removeprefix("unix:"))
            except OSError:
                made.close()
                raise
        else:
            host, colon, port = target.rpartition(":")
            if not colon or not port.isdigit():
                raise ValueError(f"{target!r} is no target: write host:port or unix:/path")
            made = socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                made = tls.wrap_socket(made, server_hostname=host.strip("[]"))
    except OSError as error:
        raise NotReachable(f"{target}: {error.strerror or error}") from None
    made.setblocking(False)
    return made


def _rest(connection: socket.socket, data: bytes) -> bytes:
    """What TLS has taken off the socket already, behind `data`: epoll does not see it."""
    parts = [data]
    with contextlib.suppress(ssl.SSLWantReadError):
        while parts[-1]:
            parts.append(connection.recv(READ_BYTES))
    return b"".join(parts)


class _Line:
    """One connection with its socket."""

    __slots__ = ("connection", "socket", "unsent")

    def __init__(
        self, target: str, done: list[Done], blocks: headers.Blocks, tls: ssl.SSLContext | None
    ) -> None:
        self.socket = connect(target, tls)
        self.connection = Connection(done, blocks)
        self.unsent = b""


class Pool:
    """Calls over several connections. Use it as a context manager, or call `close`; not thread-safe.

    Args:
        target: host:port or unix:/path, spoken to in HTTP/2 without an upgrade.
        connections: how many.
        tls: for TLS; None: without.
        clock_ns: what `Done.at_ns` and the waits between attempts go by.

    Raises NotReachable if the first connections can't be had. Later on, a lost one ends its open calls with UNAVAILABLE and is
    made anew.
    """

    def __init__(
        self,
        target: str,
        connections: int = 8,
        *,
        tls: ssl.SSLContext | None = None,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._target = target
        self._tls = tls
        self._clock_ns = clock_ns
        self._blocks = headers.Blocks()
        self._done: list[Done] = []
        self._epoll = select.epoll()
        self._by_fd: dict[int, _Line] = {}
        self._lines: list[_Line | None] = [None] * connections
        self._next_try_ns = [0] * connections
        self._touched: set[_Line] = set()
        self.reconnects = 0
        try:
            for slot in range(connections):
                self._open(slot)
        except NotReachable:
            self.close()
            raise

    @property
    def connections(self) -> int:
        """How many it was made with."""
        return len(self._lines)

    @property
    def open_calls(self) -> int:
        """Calls started and not ended."""
        return sum(line.connection.open_calls for line in self._by_fd.values())

    @property
    def alive(self) -> int:
        """How many connections there are now."""
        return len(self._by_fd)

    def rooms(self) -> list[tuple[int, int]]:
        """Which of the connections would send a call at once, and how many; a lost one would fail it at once, or be made anew for it."""
        rooms = (
            1 if line is None or line.connection.draining else line.connection.room for line in self._lines
        )
        return [(slot, room) for slot, room in enumerate(rooms) if room]

    def start(self, slot: int, request: Request, tag: Any) -> None:
        """Begin a call on one of the connections, 0 .. connections - 1; it is sent by the next `flush` or `poll`."""
        line = self._lines[slot]
        if line is None or line.connection.draining:
            line = self._replace(slot)
            if line is None:
                status = Status(headers.STATUS_UNAVAILABLE, f"{self._target} takes no connection")
                self._done.append(Done(tag, status, b"", self._clock_ns()))
                return
        line.connection.start(request, tag)
        self._touched.add(line)

    def cancel(self, tag: Any) -> bool:
        """End a call by its tag; says whether it was open."""
        for line in self._by_fd.values():
            if line.connection.cancel(tag):
                self._touched.add(line)
                return True
        return False

    def give_up(self, is_overdue: Callable[[Any], bool]) -> list[Any]:
        """Forget overdue calls of which nothing was sent, since their connections have as many as they may; gives their tags."""
        return [tag for line in self._by_fd.values() for tag in line.connection.give_up(is_overdue)]

    def flush(self) -> None:
        """Send what has been started."""
        while self._touched:
            self._send(self._touched.pop())

    def poll(self, timeout_s: float) -> list[Done]:
        """Send, wait for answers at most `timeout_s`, and take the calls that ended. It returns at once if some have already."""
        self.flush()
        wait_s = 0.0 if self._done else timeout_s
        if wait_s > 0 and self._epoll.fileno() < SELECT_FILES_MAX:
            # epoll knows whole milliseconds only, select microseconds.
            select.select([self._epoll], [], [], wait_s)
            wait_s = 0.0
        for fd, mask in self._epoll.poll(wait_s):
            line = self._by_fd.get(fd)
            if line is not None and mask & select.EPOLLOUT:
                self._send(line)
            if line is not None and mask & ~select.EPOLLOUT:
                self._read(line)
        self.flush()
        done, self._done[:] = self._done[:], ()
        return done

    def close(self) -> None:
        """Close every connection; calls that are open end unheard."""
        for line in self._by_fd.values():
            line.socket.close()
        self._by_fd.clear()
        self._lines = [None] * len(self._lines)
        self._epoll.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- sockets -----------------------------------------------------------------------------------------------------
    def _open(self, slot: int) -> _Line:
        line = _Line(self._target, self._done, self._blocks, self._tls)
        self._lines[slot] = line
        self._by_fd[line.socket.fileno()] = line
        self._epoll.register(line.socket, select.EPOLLIN)
        self._touched.add(line)
        return line

    def _replace(self, slot: int) -> _Line | None:
        """A new connection in place of one that takes no more calls; what it had not sent goes over the new one."""
        if self._clock_ns() < self._next_try_ns[slot]:
            return None
        old = self._lines[slot]
        self._next_try_ns[slot] = self._clock_ns() + int(RECONNECT_WAIT_S * 1e9)
        try:
            new = self._open(slot)
        except NotReachable:
            return None
        self.reconnects += 1
        if old is not None:
            for request, tag in old.connection.take_waiting():
                new.connection.start(request, tag)
        return new

    def _send(self, line: _Line) -> None:
        connection = line.connection
        data = line.unsent + connection.take_output() if line.unsent else connection.take_output()
        if not data or line.socket.fileno() < 0:
            return
        try:
            sent = line.socket.send(data)
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            sent = 0
        except OSError as error:
            self._lose(line, error.strerror or str(error))
            return
        blocked_before = bool(line.unsent)
        line.unsent = data[sent:] if sent < len(data) else b""
        if bool(line.unsent) != blocked_before:
            waits_for = select.EPOLLIN | (select.EPOLLOUT if line.unsent else 0)
            self._epoll.modify(line.socket, waits_for)

    def _read(self, line: _Line) -> None:
        if line.socket.fileno() < 0:
            return  # lost while it was written to
        try:
            data = line.socket.recv(READ_BYTES)
            if self._tls is not None:
                data = _rest(line.socket, data)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError as error:
            self._lose(line, error.strerror or str(error))
            return
        if not data:
            self._lose(line, "the server closed it")
            return
        connection = line.connection
        connection.receive(data, self._clock_ns())
        self._send(line)
        if connection.broken:
            self._lose(line, connection.broken)
        elif connection.draining:
            self._retire(line)

    def _retire(self, line: _Line) -> None:
        """Move what waits off a connection that takes no more calls; close it when its last call has ended."""
        if line in self._lines and line.connection.open_calls:
            self._replace(self._lines.index(line))
        if not line.connection.open_calls:
            self._lose(line, "no more calls after GOAWAY")

    def _lose(self, line: _Line, why: str) -> None:
        line.connection.lose(why, self._clock_ns())
        fd = line.socket.fileno()
        if fd >= 0:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)
            del self._by_fd[fd]
            line.socket.close()
        if line in self._lines:
            self._lines[self._lines.index(line)] = None
