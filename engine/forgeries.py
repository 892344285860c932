"""Forgeries: codes that are not genuine, counted for each terminal and minute, and a few of them described; never their bytes.

Who tries forged codes wants to be seen in the audit, and a flood of them must not cost anything: a payload that is not genuine never reaches
the store, so each process counts them by itself, and tells the store once a minute. What that can cost is bounded by the terminals that
are told apart in a minute (TERMINALS_MAX), the rest is counted together, as of no terminal.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final

from engine.errors import PickgateError
from engine.state import forgeries as state
from engine.state.connection import Connection
from engine.state.forgeries import Forgery, Sample, Shape

TERMINALS_MAX: Final = 1_000
"""Terminals that one process tells apart in one minute."""
SAMPLES_MAX: Final = 3
"""Forgeries of one terminal and minute that are described: the first."""
MINUTE_MS: Final = 60_000
MINUTES_MAX: Final = 10
"""Minutes that are kept for a store that can't be reached; older ones are forgotten."""

_Terminal = tuple[int, int, int]
_OTHERS: Final[_Terminal] = (0, 0, 0)


class _Count:
    __slots__ = ("count", "samples")

    def __init__(self) -> None:
        self.count = 0
        self.samples: list[Sample] = []


class Forgeries:
    """What one process has seen. For many threads at once."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self._minutes: dict[int, dict[_Terminal, _Count]] = {}

    def note(self, terminals: Sequence[Sequence[int]], codes: Sequence[bytes], *, dry: bool) -> None:
        """Count codes that were not genuine, each with the mall, store and terminal that presented it; dry: they were only inspected."""
        at_ms = self._now_ms()
        with self._lock:
            minute = self._minutes.setdefault(at_ms // MINUTE_MS, {})
            for (mall_id, store_id, terminal_id), code in zip(terminals, codes, strict=True):
                terminal = mall_id, store_id, terminal_id
                kept = minute.get(terminal)
                if kept is None:
                    if len(minute) >= TERMINALS_MAX:
                        terminal = _OTHERS
                    kept = minute.setdefault(terminal, _Count())
                kept.count += 1
                if len(kept.samples) < SAMPLES_MAX:
                    kept.samples.append(Sample(at_ms, len(code), _shape_of(code), dry))

    def tell(self, connection: Connection, *, all_: bool = False) -> int:
        """Tell the store what the minutes that are over held (all_: the current one too); gives how many entries that were.

        Raises StoreUnavailable: then they are told next time.
        """
        current = self._now_ms() // MINUTE_MS
        with self._lock:
            for minute in sorted(self._minutes)[:-MINUTES_MAX]:
                del self._minutes[minute]
            over = {
                minute: self._minutes.pop(minute)
                for minute in list(self._minutes)
                if all_ or minute < current
            }
        found = [
            Forgery(minute * MINUTE_MS, *terminal, kept.count, tuple(kept.samples))
            for minute, counts in sorted(over.items())
            for terminal, kept in counts.items()
        ]
        if not found:
            return 0
        try:
            state.append(connection, found)
        except PickgateError:
            with self._lock:
                for minute, counts in over.items():
                    self._minutes.setdefault(minute, counts)
            raise
        return len(found)


def _shape_of(code: bytes) -> Shape:
    """What it looked like: nothing of it is kept but this and its length."""
    if code[:1].isdigit():
        return Shape.TYPED
    return Shape.PAYLOAD if code[:2] == b"PG" else Shape.OTHER
