"""The most that each stack can do: closed loops with growing windows, then some rounds at the best one, in turn."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from loadtests import bounds
from loadtests.runs import Run
from loadtests.subject import Subject


@dataclass
class Peak:
    """What was found for one stack."""

    name: str
    window: int
    """Calls outstanding on each connection."""
    connections: int
    by_window: dict[int, float] = field(default_factory=dict)
    rounds: list[Run] = field(default_factory=list)

    @property
    def per_s(self) -> float:
        """The median of the rounds."""
        return statistics.median(run.goodput_per_s for run in self.rounds)

    def own_limit(self) -> str:
        """Why the generator may have set it; "" if it did not."""
        return next(filter(None, (run.own_limit() for run in self.rounds)), "")

    def row(self) -> list[str]:
        """For the table."""
        last = self.rounds[-1]
        return [
            self.name,
            f"{self.per_s:,.0f}/s",
            " ".join(f"{run.goodput_per_s:,.0f}" for run in self.rounds),
            str(self.window * self.connections),
            f"{last.percentiles_ms().get('p50', 0):.1f} ms",
            f"{last.cpu_share:.0%}",
            self.own_limit(),
        ]

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        return {
            "peak_per_s": round(self.per_s, 1),
            "window": self.window,
            "by_window": {str(window): round(rate, 1) for window, rate in self.by_window.items()},
            "rounds": [run.as_json() for run in self.rounds],
        }


HEADS = ("peak", "median", "rounds", "outstanding", "p50 then", "generator", "")


def find_peaks(
    subjects: Sequence[Subject],
    *,
    round_s: float = bounds.PEAK_ROUND_S,
    rounds: int = bounds.PEAK_ROUNDS,
    windows: Sequence[int] = bounds.WINDOWS,
) -> list[Peak]:
    """Find the peaks of stacks, all in the same minutes: a round of one, a round of the next, and again."""
    rates = [subject.probe_per_s() for subject in subjects]
    found = [Peak(subject.name, windows[0], subject.connections) for subject in subjects]
    for window in windows:
        for n, subject in enumerate(subjects):
            rates[n] = max(rates[n], _round(subject, found[n], window, round_s / 2, rates[n]))
    for peak in found:
        peak.window = max(peak.by_window, key=lambda window: peak.by_window[window])
    for _ in range(rounds):
        for n, subject in enumerate(subjects):
            subject.stock_up(rates[n] * round_s * bounds.CODES_MARGIN)
            run = subject.closed(found[n].window, round_s)
            rates[n] = max(rates[n], run.goodput_per_s)
            found[n].rounds.append(run)
    return found


def _round(subject: Subject, peak: Peak, window: int, seconds: float, rate_per_s: float) -> float:
    # The rate at this window is not known yet. With too few codes the round is shorter, and says the same.
    subject.stock_up(rate_per_s * seconds * bounds.CODES_MARGIN)
    run = subject.closed(window, seconds)
    peak.by_window[window] = run.goodput_per_s
    return run.goodput_per_s
