"""What thousands of terminals cost that are connected and say nothing."""

from __future__ import annotations

import resource
import statistics
from dataclasses import dataclass, field
from typing import Any, Final

from loadtests import bounds
from loadtests.checks import Check
from loadtests.runs import Run
from loadtests.subject import Subject
from loadtests.wire.pool import Pool

FILES_BESIDES: Final = 256
"""Open files of this process besides the idle connections."""


class TooFewFiles(Exception):
    """This process may not open so many connections."""


@dataclass
class Idle:
    """Rounds of a closed loop without and with idle terminals beside it, in turn."""

    terminals: int
    alone: list[Run] = field(default_factory=list)
    beside: list[Run] = field(default_factory=list)
    lost: int = 0
    """Idle connections that the server closed."""

    @property
    def cost(self) -> float:
        """The share of throughput that the idle ones took."""
        alone, beside = (
            statistics.median(run.goodput_per_s for run in runs) for runs in (self.alone, self.beside)
        )
        return 1 - beside / alone

    def checks(self) -> list[Check]:
        """What it passes and fails by."""
        return [
            Check(
                f"cost of {self.terminals:,} idle terminals", f"{self.cost:.1%} of the throughput",
                f"< {bounds.IDLE_COST_MAX:.0%}", self.cost < bounds.IDLE_COST_MAX,
            ),
            Check("idle connections lost", str(self.lost), "0", self.lost == 0),
        ]  # fmt: skip

    def rows(self) -> list[list[str]]:
        """For the table."""
        return [
            [
                name,
                " ".join(f"{run.goodput_per_s:,.0f}" for run in runs),
                f"{statistics.median(run.percentiles_ms().get('p99', 0) for run in runs):.1f} ms",
            ]
            for name, runs in (("alone", self.alone), (f"beside {self.terminals:,} idle ones", self.beside))
        ]

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        return {"terminals": self.terminals, "cost": self.cost, "rows": self.rows()}


HEADS = ("working load", "good/s in each round", "p99")


def idle(
    subject: Subject,
    peak_per_s: float,
    window: int,
    *,
    terminals: int = bounds.IDLE_TERMINALS,
    rounds: int = bounds.IDLE_ROUNDS,
    round_s: float = bounds.IDLE_ROUND_S,
) -> Idle:
    """Measure the cost of `terminals` idle connections. Raises TooFewFiles."""
    raise_open_files(terminals + FILES_BESIDES)
    found = Idle(terminals)
    for _ in range(rounds):
        subject.stock_up(2 * peak_per_s * round_s * bounds.CODES_MARGIN)
        found.alone.append(subject.closed(window, round_s))
        with Pool(subject.stack.address, terminals) as sleeping:
            sleeping.flush()
            found.beside.append(subject.closed(window, round_s))
            # Whatever came meanwhile: settings, pings, and ends of connections.
            for _ in range(10):
                sleeping.poll(0.01)
            found.lost += terminals - sleeping.alive
    return found


def raise_open_files(wanted: int) -> None:
    """Raise this process' soft limit of open files. Raises TooFewFiles if its hard limit is lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted or soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise TooFewFiles(
            f"this process may open {hard} files, {wanted} are needed: raise the hard limit (ulimit -Hn)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
