"""How far the ledger is behind the store while redemptions come at a set rate.

Store and ledger are looked at by turns. The ledger is behind by the age of the newest look at the store that it has not reached yet: an
event that was in the store then is not committed now. So the lag is told in full, whatever the writer says of itself.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from loadtests import bounds
from loadtests.books import Behind
from loadtests.checks import Check
from loadtests.openloop import poisson_arrivals
from loadtests.runs import Run
from loadtests.stacks import Recorded
from loadtests.subject import Subject


@dataclass
class Lag:
    """What was found."""

    rate_per_s: float
    run: Run
    lags_s: list[float] = field(default_factory=list)
    """At each look while calls came: how old the oldest event is that the ledger lacks."""
    caught_up_s: float = 0.0
    """How long after the last answer the ledger had everything."""
    writer_cpu_s: float = 0.0
    """Processor time of the ledger's writer for all of them."""
    missing: int = 0
    """Redemptions that were acknowledged and are not in the ledger at last."""

    @property
    def most_s(self) -> float:
        """The longest lag."""
        return max(self.lags_s, default=float("inf"))

    def checks(self) -> list[Check]:
        """What it passes and fails by."""
        offered = self.run.sent / self.run.planned if self.run.planned else 0.0
        rate = self.run.goodput_per_s
        return [
            Check("offered as planned", f"{offered:.1%} of the calls were sent", ">= 99%", offered >= 0.99),
            Check("calls answered REDEEMED", f"{self.run.good:,} of {self.run.sent:,}", "all", self.run.good == self.run.sent),
            Check("redemptions a second", f"{rate:,.0f}", f">= {0.95 * self.rate_per_s:,.0f}", rate >= 0.95 * self.rate_per_s),
            Check("lag of the ledger, most", f"{self.most_s * 1e3:.0f} ms", f"< {bounds.LAG_S_MAX * 1e3:.0f} ms", self.most_s < bounds.LAG_S_MAX),
            Check("acknowledged and not in the ledger", f"{self.missing:,}", "0", self.missing == 0),
        ]  # fmt: skip

    def rows(self) -> list[list[str]]:
        """For the table."""
        ordered = sorted(self.lags_s) or [float("inf")]
        return [
            ["offered", f"{self.rate_per_s:,.0f}/s"],
            ["p50, p99 of the calls", f"{self.run.percentiles_ms().get('p50', 0):.1f}, {self.run.percentiles_ms().get('p99', 0):.1f} ms"],
            ["lag of the ledger, p50", f"{ordered[len(ordered) // 2] * 1e3:.0f} ms"],
            ["p99", f"{ordered[len(ordered) * 99 // 100] * 1e3:.0f} ms"],
            ["most", f"{ordered[-1] * 1e3:.0f} ms"],
            ["looks", f"{len(self.lags_s):,}"],
            ["processor of the writer, an event", f"{self.writer_cpu_s / max(1, self.run.good) * 1e6:.0f} µs"],
            ["complete after the last answer", f"{self.caught_up_s * 1e3:.0f} ms"],
            ["", self.run.own_limit()],
        ]  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        looks_ms = [round(lag_s * 1e3) for lag_s in self.lags_s]
        return {"figures": dict(map(tuple, self.rows())), "looks_ms": looks_ms, "run": self.run.as_json()}  # type: ignore[arg-type]


class Look:
    """Looks at store and ledger by turns, from a thread. Use it as a context manager."""

    def __init__(self, data_dir: Path) -> None:
        self.lags_s: list[float] = []
        self._behind = Behind(data_dir)
        self._waiting: deque[tuple[float, dict[int, tuple[int, int]]]] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load-lag", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._behind.close()

    def end(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(bounds.LAG_LOOK_S):
            self.lags_s.append(self.step())

    def step(self) -> float:
        """Look once; gives the lag in seconds."""
        # Before the look: what is in the store then was there at this moment or came after it.
        at_s = time.monotonic()
        self._waiting.append((at_s, self._behind.in_store()))
        committed = self._behind.in_ledger()
        now_s = time.monotonic()
        while self._waiting and all(
            committed.get(number, (0, 0)) >= place
            for number, place in self._waiting[0][1].items()
            if place[1]
        ):
            self._waiting.popleft()
        return now_s - self._waiting[0][0] if self._waiting else 0.0

    def wait_until_complete(self) -> float:
        """Wait until the ledger has everything; gives how long that took. Raises TimeoutError."""
        began_s = time.monotonic()
        while self.step() > 0.0:
            if time.monotonic() > began_s + bounds.LAG_CATCH_UP_S:
                raise TimeoutError(
                    f"the ledger is not complete {bounds.LAG_CATCH_UP_S:g} s after the last answer"
                )
            time.sleep(0.01)
        return time.monotonic() - began_s

    def missing(self, acknowledged: list[bytes]) -> int:
        """How many of the codes that were acknowledged as redeemed the ledger has no redemption of."""
        return len(set(acknowledged) - self._behind.redeemed())


def lag(subject: Subject, stack: Recorded, rate_per_s: float, seconds: float) -> Lag:
    """Redeem at a rate for so long, and look at the ledger meanwhile. stack: the subject's."""
    data_dir = stack.data_dir
    arrivals = poisson_arrivals(rate_per_s, seconds, 1)
    subject.stock_up(len(arrivals))
    with Look(data_dir) as before:
        before.end()
        before.wait_until_complete()  # the codes have been issued just now
    cpu_s = stack.writer_cpu_s()
    with Look(data_dir) as look:
        run = subject.open_at(arrivals)
        look.end()
        found = Lag(rate_per_s, run, list(look.lags_s))
        found.caught_up_s = look.wait_until_complete()
        found.writer_cpu_s = stack.writer_cpu_s() - cpu_s
        found.missing = look.missing(subject.acknowledged)
    return found
