"""Turns: how many calls are worked on at the same time, and how much of what waits for its turn lies in memory."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import grpc

from engine import limits
from engine.errors import Exhausted
from server import bounds


class TooLate(Exception):
    """The caller has gone, or its deadline has passed, before the call's turn came."""


class Turns:
    """Lets `working_max` calls through at a time; the others wait, each in its thread."""

    def __init__(self, working_max: int) -> None:
        self._working = threading.Semaphore(working_max)
        self._bulks = threading.Semaphore(bounds.BULKS_MAX)

    @contextlib.contextmanager
    def taken(self, size_bytes: int, context: grpc.ServicerContext) -> Iterator[None]:
        """Wait for a turn and hold it for the context; the request, already here, has `size_bytes`.

        Raises TooLate for a call that nobody waits for any more: working on it would only take time from those who still
        wait, and a retry with the same request id is safe either way. Raises Exhausted for one large request too many.
        """
        bulk = size_bytes > limits.MESSAGE_BYTES_MAX
        if bulk and not self._bulks.acquire(blocking=False):
            raise Exhausted(f"{bounds.BULKS_MAX} bulk calls are in work or waiting already: try again later")
        try:
            in_turn = self._working.acquire(timeout=min(context.time_remaining(), bounds.TURN_WAIT_S_MAX))
            try:
                if not in_turn or not context.is_active() or context.time_remaining() <= 0:
                    raise TooLate
                yield
            finally:
                if in_turn:
                    self._working.release()
        finally:
            if bulk:
                self._bulks.release()
