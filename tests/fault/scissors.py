"""A wire between engine and store that is cut now and then: while a request goes, or when its reply comes back."""

from __future__ import annotations

import random
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

CHUNK_BYTES: Final = 1 << 20


class Scissors:
    """Forwards connections on a unix socket of its own to the store's; a context manager.

    When `sharp`, it cuts, at random: a `request_share` of the requests, of which the store then gets only the first half, and
    a `reply_share` of the replies, which have been decided and are on disk by then, and of which the caller gets the first
    half, or nothing.
    """

    def __init__(
        self, store_socket: Path, path: Path, *, request_share: float, reply_share: float, seed: int
    ) -> None:
        self.url = f"unix://{path}"
        self.sharp = False
        self.cut_requests = 0
        self.cut_replies = 0
        self._store_socket = store_socket
        self._shares = (request_share, reply_share)
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(128)
        self._start(self._accept)

    def _start(self, body: object, *arguments: object) -> None:
        thread = threading.Thread(target=body, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:  # closed: the end
                return
            store = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            with self._lock:
                self._open |= {caller, store}
            try:
                store.connect(str(self._store_socket))
            except OSError:  # the store is down: so is its wire
                self._close(caller, store)
                continue
            self._start(self._pump, caller, store, False)
            self._start(self._pump, store, caller, True)

    def _pump(self, source: socket.socket, target: socket.socket, replies: bool) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                if self._cut(replies):
                    half = len(data) // 2 if not replies or self._random.random() < 0.5 else 0
                    target.sendall(data[:half])
                    break
                target.sendall(data)
        self._close(source, target)

    def _cut(self, replies: bool) -> bool:
        with self._lock:
            cut = self.sharp and self._random.random() < self._shares[replies]
            if cut and replies:
                self.cut_replies += 1
            elif cut:
                self.cut_requests += 1
            return cut

    def _close(self, *sockets: socket.socket) -> None:
        for one in sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)  # wakes the other pump, which then closes as well
            with self._lock:
                self._open.discard(one)
            one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            still_open = list(self._open)
        self._close(*still_open)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
