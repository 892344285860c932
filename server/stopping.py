"""Waiting for SIGTERM or SIGINT, whichever thread of the process the kernel hands it to.

Python runs signal handlers in the main thread only, and a main thread that sleeps on a lock is not woken by a signal that another
thread met: the process would then ignore it for ever. The C part of Python's signal handling, which runs in whatever thread
the signal met, writes to a descriptor (signal.set_wakeup_fd), and that is what is waited on here.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
from types import FrameType, TracebackType
from typing import Any, Final, Self

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """From entering the context on, the first SIGTERM or SIGINT asks to stop; the second ends the process at once.

    To be used in the main thread.
    """

    def __init__(self) -> None:
        self._came = False
        self._reader, self._writer = socket.socketpair()
        self._before: dict[signal.Signals, Any] = {}
        self._wakeup_before = -1

    def __enter__(self) -> Self:
        self._writer.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._come) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._reader.close()
        self._writer.close()

    def wait(self) -> None:
        """Return when the process was asked to stop, also when that was before this call."""
        while not self._came:
            # Returns for any signal that has a handler; which one it was, the handler knows.
            self._reader.recv(64)

    def ask(self) -> None:
        """Ask to stop, from any thread; the first signal after it still counts as the first."""
        self._came = True
        with contextlib.suppress(BlockingIOError):  # enough lies there to wake whoever waits
            self._writer.send(b"\0")

    def came(self) -> bool:
        """Whether the process was asked to stop; never waits."""
        if not self._came:
            with contextlib.suppress(BlockingIOError):
                self._reader.recv(64, socket.MSG_DONTWAIT)
        return self._came

    def fileno(self) -> int:
        """A descriptor that can be read when `came` may have changed; for waiting on it beside others."""
        return self._reader.fileno()

    def came_within(self, wait_s: float) -> bool:
        """As `came`; if not yet, that is waited for, for at most `wait_s` seconds."""
        if not self.came() and wait_s > 0:
            poll = select.poll()
            poll.register(self, select.POLLIN)
            poll.poll(wait_s * 1000)
        return self.came()

    def _come(self, number: int, frame: FrameType | None) -> None:
        self._came = True
        for other in SIGNALS:
            signal.signal(other, signal.SIG_DFL)
