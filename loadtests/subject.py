"""A stack that is measured: its codes, runs on it, and all that its callers were told."""

from __future__ import annotations

import threading
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from loadtests import audit, bounds
from loadtests.openloop import closed_loop, open_loop, poisson_arrivals
from loadtests.runs import Run
from loadtests.stacks import Stack, Usage
from loadtests.supply import Supply, read_redeem
from loadtests.wire.connection import Request
from loadtests.wire.pool import Pool


class Subject:
    """One running stack, furnished. Use it as a context manager around the stack's own.

    Args:
        stack: started.
        seed: of codes and arrivals.
        connections: of each run.
    """

    def __init__(self, stack: Stack, *, seed: int = 1, connections: int = bounds.CONNECTIONS_DEFAULT) -> None:
        self.stack = stack
        self.connections = connections
        self.runs: list[Run] = []
        self.acknowledged: list[bytes] = []
        self._seed = seed
        self._supply = Supply(stack.address, seed=seed)
        self._uids: list[bytes] = []
        self._requests: list[Request] = []
        self._deck: deque[int] = deque()
        self._made_at_s: list[tuple[int, float]] = []  # first number and time of each lot

    def __enter__(self) -> Self:
        self._supply.furnish()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._supply.close()

    @property
    def name(self) -> str:
        """Of the stack."""
        return self.stack.name

    @property
    def issued(self) -> int:
        """Codes issued so far."""
        return len(self._uids)

    # --- codes -------------------------------------------------------------------------------------------------------
    def stock_up(self, count: float) -> None:
        """See to it that so many codes are ready that stay fresh for the next run."""
        self._drop_old()
        missing = int(count) - len(self._deck)
        if missing <= 0:
            return
        began_s = time.monotonic()
        codes = self._supply.codes(missing)
        first = len(self._uids)
        self._made_at_s.append((first, began_s))
        self._uids += codes.uids
        self._requests += codes.redeems
        self._deck.extend(range(first, len(self._uids)))

    def _drop_old(self) -> None:
        """Leave out codes whose payload may go stale within a run; they stay live in the books."""
        oldest_s = time.monotonic() - bounds.CODES_AGE_S_MAX
        first_fresh = min(
            (first for first, at_s in self._made_at_s if at_s >= oldest_s), default=len(self._uids)
        )
        if any(card < first_fresh for card in self._deck):
            self._deck = deque(card for card in self._deck if card >= first_fresh)

    def spare(self, count: int) -> list[tuple[bytes, Request]]:
        """The codes that are ready and come last, with their requests: a run of fewer calls leaves them to those after it."""
        cards = list(self._deck)[-count:] if count else []
        return [(self._uids[card], self._requests[card]) for card in cards]

    # --- runs --------------------------------------------------------------------------------------------------------
    def probe_per_s(self) -> float:
        """A first idea of what the stack can do."""
        self.stock_up(bounds.PROBE_CODES)
        return max(1.0, self.closed(bounds.WINDOWS[0], seconds=None).goodput_per_s)

    def closed(self, window: int, seconds: float | None) -> Run:
        """A closed loop with `window` calls outstanding on each connection, over the codes there are."""
        with Pool(self.stack.address, self.connections) as pool:
            run = closed_loop(pool, self._requests, window, read_redeem, seconds=seconds, deck=self._deck)
        return self._booked(run)

    def open(self, rate_per_s: float, seconds: float) -> Run:
        """An open loop at a rate, callers coming as they please; makes the codes for it first."""
        return self.open_at(poisson_arrivals(rate_per_s, seconds, self._seed + len(self.runs)))

    def open_at(
        self,
        arrivals: array[int],
        *,
        connections: int | None = None,
        codes: float | None = None,
        stream_wait_s: float | None = None,
        each_tick: Callable[[], object] | None = None,
    ) -> Run:
        """An open loop with calls due at given instants; `codes` are made first, if not stated one for each call."""
        self.stock_up(len(arrivals) if codes is None else codes)
        with Pool(self.stack.address, connections or self.connections) as pool:
            run = open_loop(
                pool,
                self._requests,
                arrivals,
                read_redeem,
                deck=self._deck,
                stream_wait_s=stream_wait_s,
                each_tick=each_tick,
            )
        return self._booked(run)

    def _booked(self, run: Run) -> Run:
        self.runs.append(run)
        self.acknowledged += [self._uids[card] for card in run.acknowledged]
        return run

    # --- afterwards --------------------------------------------------------------------------------------------------
    def audit(self) -> audit.Audit:
        """The books, with what callers were told held against them."""
        return self.stack.audit(self.acknowledged, self.issued)

    def batches(self) -> Counter[int]:
        """How many batches of each size the server has decided so far; empty if it does not say."""
        batches = self.stack.statistics().get("batches", {})
        return Counter({int(size): int(count) for size, count in batches.items()})


class Watcher:
    """Looks at a stack's use of memory and descriptors twice a second, from a thread. Use it as a context manager."""

    INTERVAL_S: Final = 0.5

    def __init__(self, stack: Stack) -> None:
        self.seen: list[Usage] = []
        self._stack = stack
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="load-watcher", daemon=True)

    def __enter__(self) -> Self:
        self.seen.append(self._stack.usage())
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self.INTERVAL_S):
            self.seen.append(self._stack.usage())
