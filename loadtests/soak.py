"""Half the peak for minutes: whether memory and descriptors of the service stay where they are."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Any

from loadtests import bounds
from loadtests.checks import Check
from loadtests.runs import Run
from loadtests.stacks import Usage
from loadtests.subject import Subject


@dataclass
class Soak:
    """Slices of load, with what the service used at the end of each."""

    rate_per_s: float
    slices: list[tuple[float, Run, Usage]] = field(default_factory=list)
    """Seconds of load so far, the run, what was used then."""

    @property
    def minutes_rss_bytes(self) -> list[float]:
        """Memory of each minute after the first: the median of its readings."""
        minutes: dict[int, list[int]] = {}
        for loaded_s, _, usage in self.slices:
            if loaded_s > bounds.SOAK_SETTLED_S:
                minutes.setdefault(math.ceil(loaded_s / 60), []).append(usage.rss_bytes)
        return [statistics.median(readings) for readings in minutes.values()]

    def checks(self) -> list[Check]:
        """What it passes and fails by."""
        settled = [usage for loaded_s, _, usage in self.slices if loaded_s >= bounds.SOAK_SETTLED_S] or [
            self.slices[-1][2]
        ]
        minutes = self.minutes_rss_bytes or [settled[0].rss_bytes]
        growth = max(minutes) / minutes[0] - 1
        most = max(usage.rss_bytes for usage in settled)
        descriptors = [usage.descriptors for usage in settled]
        sent = sum(run.sent for _, run, _ in self.slices)
        good = sum(run.good for _, run, _ in self.slices)
        loaded_s = self.slices[-1][0]
        return [
            Check(
                "long enough to say", f"{loaded_s:.0f} s of load", f">= {bounds.SOAK_S_MIN:.0f} s",
                loaded_s >= bounds.SOAK_S_MIN,
            ),
            Check(
                "memory after the first minute",
                f"{growth:+.1%}, {minutes[0] / 2**20:.1f} to {max(minutes) / 2**20:.1f} MiB by minutes; one reading {most / 2**20:.1f}",
                f"<= {bounds.SOAK_RSS_GROWTH_MAX:+.0%}",
                growth <= bounds.SOAK_RSS_GROWTH_MAX,
            ),
            Check(
                "descriptors after the first minute", f"{descriptors[0]} to {max(descriptors)}", "no growth",
                max(descriptors) <= descriptors[0],
            ),
            Check("calls answered REDEEMED", f"{good:,} of {sent:,}", "all", good == sent),
        ]  # fmt: skip

    def rows(self) -> list[list[str]]:
        """For the table."""
        return [
            [
                f"{loaded_s:.0f} s",
                f"{run.goodput_per_s:,.0f}/s",
                f"{run.percentiles_ms().get('p50', 0):.1f} ms",
                f"{run.percentiles_ms().get('p99', 0):.1f} ms",
                f"{usage.rss_bytes / 2**20:.1f} MiB",
                str(usage.descriptors),
                f"{usage.store_rss_bytes / 2**20:.1f} MiB",
                run.own_limit(),
            ]
            for loaded_s, run, usage in self.slices
        ]

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        return {
            "rate_per_s": self.rate_per_s,
            "slices": [dict(zip(HEADS, row, strict=True)) for row in self.rows()],
        }


HEADS = ("after", "good", "p50", "p99", "memory", "descriptors", "store's memory", "")


def soak(subject: Subject, peak_per_s: float, minutes: float) -> Soak:
    """Load in slices until there were so many minutes of it; the time in which codes are made does not count."""
    rate = peak_per_s * bounds.SOAK_SHARE
    found = Soak(rate)
    loaded_s = 0.0
    while loaded_s < minutes * 60:
        slice_s = min(bounds.SOAK_SLICE_S, minutes * 60 - loaded_s)
        run = subject.open(rate, slice_s)
        loaded_s += slice_s
        found.slices.append((loaded_s, run, subject.stack.usage()))
    return found
