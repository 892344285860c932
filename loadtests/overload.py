"""Three times the peak, for as long as asked: what is shed, what is still done, and how soon all is well again."""

from __future__ import annotations

import math
import statistics
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from loadtests import bounds
from loadtests.checks import Check
from loadtests.openloop import poisson_arrivals
from loadtests.runs import Run, histogram
from loadtests.stacks import Usage
from loadtests.subject import Subject, Watcher


@dataclass
class Overload:
    """What was found: `before_s`, then `seconds` of overload, then `after_s`, in one run between two rounds of the peak."""

    peak_per_s: float
    """By which the load is set."""
    beside_per_s: tuple[float, float]
    """The peak just before the run and just after it."""
    seconds: float
    before_s: float
    after_s: float
    run: Run
    rss_before_bytes: int
    rss_halves_bytes: tuple[int, int]
    """The most while it lasted, in its first half and in its second."""

    @property
    def rss_most_bytes(self) -> int:
        """Of the service, while it lasted."""
        return max(self.rss_halves_bytes)

    @property
    def goodput_per_s(self) -> float:
        """Wanted answers per second while it lasted."""
        return self.run.good_within(self.before_s, self.before_s + self.seconds) / self.seconds

    @cached_property
    def p99_before_ms(self) -> float:
        """At the load before: the median of its spans' p99."""
        return statistics.median(self._p99s_ms(self.before_s / 4, self.before_s))

    @property
    def p99_after_ms(self) -> float:
        """At the same load, of calls due once recovery should be over: the median of the spans' p99."""
        return statistics.median(self._recovered_p99s_ms)

    @property
    def p99_after_worst_ms(self) -> float:
        """The worst of those spans."""
        return max(self._recovered_p99s_ms)

    @property
    def p99_allowed_ms(self) -> float:
        """What counts as being back to normal; nothing does if nothing was done before."""
        before_ms = self.p99_before_ms
        if before_ms == math.inf:
            return 0.0
        return max(before_ms * bounds.OVERLOAD_P99_TIMES, before_ms + bounds.OVERLOAD_P99_SLACK_MS)

    @property
    def recovered_s(self) -> float:
        """From the end of the overload to the first span of normal latency; infinite if there was none."""
        normal = (nth for nth, p99_ms in enumerate(self._after_p99s_ms) if p99_ms <= self.p99_allowed_ms)
        return next((nth * bounds.OVERLOAD_SPAN_S for nth in normal), math.inf)

    @cached_property
    def _after_p99s_ms(self) -> list[float]:
        end_s = self.before_s + self.seconds
        return self._p99s_ms(end_s, end_s + self.after_s)

    @property
    def _recovered_p99s_ms(self) -> list[float]:
        return self._after_p99s_ms[round(bounds.OVERLOAD_RECOVERY_S / bounds.OVERLOAD_SPAN_S) :]

    def _p99s_ms(self, from_s: float, to_s: float) -> list[float]:
        """p99 of each span, by when its calls were due; of one in which too few of them were done, infinite."""
        done_min = (
            self.peak_per_s * bounds.OVERLOAD_BESIDE * bounds.OVERLOAD_SPAN_S * bounds.OVERLOAD_DONE_MIN
        )
        count = max(1, round((to_s - from_s) / bounds.OVERLOAD_SPAN_S))
        edges_s = [from_s + nth * bounds.OVERLOAD_SPAN_S for nth in range(count + 1)]
        done_ns = [self.run.part(*span_s) for span_s in pairwise(edges_s)]
        return [_p99_ms(span_ns) if len(span_ns) >= done_min else math.inf for span_ns in done_ns]

    def checks(self) -> list[Check]:
        """What it passes and fails by."""
        run = self.run
        shed = run.statuses["RESOURCE_EXHAUSTED"]
        other = {n: c for n, c in run.statuses.items() if n not in ("OK", "RESOURCE_EXHAUSTED")}
        verdicts = {n: c for n, c in run.verdicts.items() if n != "REDEEMED"}
        calls_max = run.connections * bounds.OVERLOAD_STREAMS
        rss_max = (
            self.rss_before_bytes + calls_max * bounds.OVERLOAD_CALL_BYTES + bounds.OVERLOAD_RSS_SLACK_BYTES
        )
        growth = self.rss_halves_bytes[1] / self.rss_halves_bytes[0] - 1
        share = self.goodput_per_s / statistics.mean(self.beside_per_s)
        offered = run.planned and run.sent / run.planned
        return [
            Check("offered as planned", f"{offered:.1%} of the calls were sent", ">= 99%", offered >= 0.99),
            Check(
                "goodput by the peak beside it", f"{share:.0%}", f">= {bounds.OVERLOAD_GOODPUT_MIN:.0%}",
                share >= bounds.OVERLOAD_GOODPUT_MIN,
            ),
            Check(
                "shed calls with RetryInfo", f"{shed - run.shed_without_advice:,} of {shed:,}", "all",
                run.shed_without_advice == 0,
            ),
            Check("calls that ended otherwise", f"{other or verdicts or 'none'}", "none", not other and not verdicts),
            Check("calls without an answer", f"{run.unanswered:,}", "0", run.unanswered == 0),
            Check(
                "memory of the service", f"{self.rss_most_bytes / 2**20:.0f} MiB", f"<= {rss_max / 2**20:.0f} MiB",
                self.rss_most_bytes <= rss_max,
            ),
            Check(
                "growth of it, second half by first", f"{growth:+.1%}", f"<= {bounds.OVERLOAD_RSS_GROWTH_MAX:.0%}",
                growth <= bounds.OVERLOAD_RSS_GROWTH_MAX,
            ),
            Check(
                "latency is back to normal after", f"{self.recovered_s:.1f} s", f"<= {bounds.OVERLOAD_RECOVERY_S:g} s",
                self.recovered_s <= bounds.OVERLOAD_RECOVERY_S,
            ),
            Check(
                f"p99 from {bounds.OVERLOAD_RECOVERY_S:g} s after on, median of half seconds", f"{self.p99_after_ms:.1f} ms",
                f"<= {self.p99_allowed_ms:.1f} ms", self.p99_after_ms <= self.p99_allowed_ms,
            ),
        ]  # fmt: skip

    def rows(self) -> list[list[str]]:
        """For the table."""
        shed = self.run.statuses["RESOURCE_EXHAUSTED"]
        during = self.run.part(self.before_s, self.before_s + self.seconds)
        return [
            ["peak", f"{self.peak_per_s:,.0f}/s"],
            ["offered for", f"{self.peak_per_s * bounds.OVERLOAD_TIMES:,.0f}/s, {self.seconds:g} s"],
            ["peak just before, just after", "{:,.0f}, {:,.0f}/s".format(*self.beside_per_s)],
            ["goodput", f"{self.goodput_per_s:,.0f}/s"],
            ["calls that were due", f"{self.run.planned:,}"],
            ["of those, no place on any connection", f"{self.run.given_up:,}"],
            ["with the server", f"{self.run.sent - self.run.given_up:,}"],
            ["of those, shed with advice", f"{shed - self.run.shed_without_advice:,}"],
            ["p99 before", f"{self.p99_before_ms:.1f} ms"],
            ["p99 of what was done meanwhile", f"{_p99_ms(during):.1f} ms"],
            [
                "p99 after, its worst half second",
                f"{self.p99_after_ms:.1f}, {self.p99_after_worst_ms:.1f} ms",
            ],
            [
                "memory before, most",
                f"{self.rss_before_bytes / 2**20:.0f}, {self.rss_most_bytes / 2**20:.0f} MiB",
            ],
            ["generator", f"{self.run.cpu_share:.0%} of a core, lag p99 {self.run.lag_p99_ms:.1f} ms"],
            ["", self.run.own_limit()],
        ]

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        return {"figures": dict(map(tuple, self.rows())), "run": self.run.as_json()}  # type: ignore[arg-type]


def overload(subject: Subject, peak_per_s: float, window: int, seconds: float) -> Overload:
    """Offer OVERLOAD_TIMES the peak, between two spans at OVERLOAD_BESIDE of it; `window` is where the peak was."""
    before_s, after_s = bounds.OVERLOAD_BEFORE_S, bounds.OVERLOAD_AFTER_S
    beside = peak_per_s * bounds.OVERLOAD_BESIDE
    arrivals: array[int] = array("q")
    start_s = 0.0
    for rate, span_s in (
        (beside, before_s),
        (peak_per_s * bounds.OVERLOAD_TIMES, seconds),
        (beside, after_s),
    ):
        first_ns = int(start_s * 1e9)
        arrivals.extend(first_ns + at for at in poisson_arrivals(rate, span_s, len(arrivals) + 1))
        start_s += span_s
    # What is shed or given up is sent again, so that codes are needed for what is done, and for what is under way.
    codes = (peak_per_s * (seconds + before_s + after_s) + 20_000) * 1.1
    rounds = peak_per_s * bounds.PEAK_ROUND_S * bounds.CODES_MARGIN
    subject.stock_up(codes + 2 * rounds)
    just_before = subject.closed(window, bounds.PEAK_ROUND_S)
    with Watcher(subject.stack) as watcher:
        run = subject.open_at(
            arrivals,
            connections=bounds.OVERLOAD_CONNECTIONS,
            codes=codes,
            stream_wait_s=bounds.OVERLOAD_STREAM_WAIT_S,
        )
        began_s = time.monotonic() - run.total_s
    just_after = subject.closed(window, bounds.PEAK_ROUND_S)
    return Overload(
        peak_per_s,
        (just_before.goodput_per_s, just_after.goodput_per_s),
        seconds,
        before_s,
        after_s,
        run,
        watcher.seen[0].rss_bytes,
        _halves(watcher.seen, began_s + before_s, seconds),
    )


def _halves(seen: Sequence[Usage], from_s: float, seconds: float) -> tuple[int, int]:
    """The most of what the service used in the two halves of a span; the whole run's where nobody looked."""
    half_s = seconds / 2
    most = [
        max(
            (usage.rss_bytes for usage in seen if start_s <= usage.at_s < start_s + half_s),
            default=max(usage.rss_bytes for usage in seen),
        )
        for start_s in (from_s, from_s + half_s)
    ]
    return most[0], most[1]


def _p99_ms(latencies_ns: list[int]) -> float:
    return histogram(latencies_ns).get_value_at_percentile(99) / 1e3 if latencies_ns else 0.0
