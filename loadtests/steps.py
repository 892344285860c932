"""Throughput against latency: open loops at rising shares of each stack's own peak, of all stacks in turn."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loadtests import bounds
from loadtests.peak import Peak
from loadtests.runs import QUANTILES, Run, histogram
from loadtests.subject import Subject


@dataclass
class Step:
    """One rate on one stack."""

    name: str
    percent: float
    """Of the stack's peak."""
    run: Run
    batches: Counter[int]
    """Batches by size, decided during the step; empty if the server does not say."""

    @property
    def latency_ms(self) -> dict[str, float]:
        """By quantile, of calls due after the warm-up; empty if nothing was answered."""
        seconds = self.run.sending_s
        latencies = self.run.part(seconds * bounds.WARM_UP_SHARE, seconds + 1)
        if not latencies:
            return {}
        made = histogram(latencies)
        return {name: made.get_value_at_percentile(value) / 1e3 for name, value in QUANTILES.items()}

    @property
    def batch_mean(self) -> float | None:
        """Calls decided together, on average; None if the server does not say."""
        batches = sum(self.batches.values())
        return sum(size * count for size, count in self.batches.items()) / batches if batches else None

    def row(self) -> list[str]:
        """For the table."""
        latency = self.latency_ms
        mean = self.batch_mean
        return [
            self.name,
            f"{self.percent:.0f} %",
            f"{self.run.offered_per_s:,.0f}/s",
            f"{self.run.goodput_per_s:,.0f}/s",
            *(f"{latency.get(name, 0):.2f}" for name in QUANTILES),
            "" if mean is None else f"{mean:.1f}",
            f"{self.run.lag_p99_ms:.1f} ms",
            f"{self.run.cpu_share:.0%}",
            str(self.run.sent - self.run.good or ""),
            self.run.own_limit(),
        ]

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        return {
            "percent": self.percent,
            "latency_ms": self.latency_ms,
            "batches": {str(size): count for size, count in sorted(self.batches.items())},
            "batch_mean": self.batch_mean,
            "run": self.run.as_json(),
        }


HEADS = (
    "step", "of peak", "offered", "good", *(f"{name} ms" for name in QUANTILES), "batch", "lag p99", "generator", "not good", "",
)  # fmt: skip


def climb(
    subjects: Sequence[Subject],
    peaks: Sequence[Peak],
    *,
    percents: Sequence[float] = bounds.STEPS_PERCENT,
    seconds: float = bounds.STEP_S,
    named_rate_per_s: float = bounds.NAMED_RATE_PER_S,
) -> list[Step]:
    """Take every step on every stack, and one at `named_rate_per_s` where the peak allows it."""
    taken = []
    for percent in percents:
        for subject, peak in zip(subjects, peaks, strict=True):
            taken.append(_step(subject, percent, peak.per_s * percent / 100, seconds))
    for subject, peak in zip(subjects, peaks, strict=True):
        if peak.per_s > named_rate_per_s:
            taken.append(_step(subject, 100 * named_rate_per_s / peak.per_s, named_rate_per_s, seconds))
    return taken


def at_percent(steps: Sequence[Step], name: str, percent: float) -> Step | None:
    """The step of one stack at a share of its peak; of several the one with the median p99, those without an answer left out."""
    taken = [step for step in steps if step.name == name and step.percent == percent and step.latency_ms]
    return sorted(taken, key=lambda step: step.latency_ms["p99"])[len(taken) // 2] if taken else None


def at_rate(steps: Sequence[Step], name: str, rate_per_s: float) -> Step | None:
    """The step of one stack nearest to a rate, within a tenth of it."""
    near = [
        step for step in steps if step.name == name and abs(step.run.offered_per_s / rate_per_s - 1) < 0.1
    ]
    return min(near, key=lambda step: abs(step.run.offered_per_s - rate_per_s), default=None)


def _codes(rate_per_s: float, seconds: float) -> float:
    """How many codes an open loop may take."""
    return rate_per_s * seconds + bounds.CODES_SIGMAS * math.sqrt(rate_per_s * seconds) + 10


def _step(subject: Subject, percent: float, rate_per_s: float, seconds: float) -> Step:
    # First: making codes takes batches too.
    subject.stock_up(_codes(rate_per_s, seconds))
    before = subject.batches()
    run = subject.open(rate_per_s, seconds)
    return Step(subject.name, percent, run, subject.batches() - before)
