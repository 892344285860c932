"""What one run of a generator was and gave: counts, latencies, and how much the generator itself got in the way."""

from __future__ import annotations

import statistics
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

from loadtests import bounds

NOT_ANSWERED: Final = -1
"""In place of a latency."""
QUANTILES: Final = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
_NAMES: Final = {code.value[0]: code.name for code in grpc.StatusCode}


def status_name(code: int) -> str:
    """Name a status code as gRPC does."""
    return _NAMES.get(code, f"CODE_{code}")


def histogram(latencies_ns: Sequence[int]) -> HdrHistogram:
    """Latencies in microseconds, 1 us to 60 s with three digits; a longer one counts as 60 s."""
    made = HdrHistogram(1, bounds.LATENCY_US_MAX, 3)
    for value in latencies_ns:
        if value >= 0:
            made.record_value(min(max(1, value // 1_000), bounds.LATENCY_US_MAX))
    return made


@dataclass
class Run:
    """One timed run. Latencies count from the instant at which a call was due, whether or not it could be sent then."""

    kind: str
    """open or closed."""
    connections: int
    offered_per_s: float
    """Calls due per second; of a closed loop 0."""
    window: int = 0
    """Of a closed loop: calls outstanding at most, all connections together."""
    planned: int = 0
    """Calls that were due."""
    sent: int = 0
    """Calls that were begun."""
    given_up: int = 0
    """Of those, the ones that never left: their connection had as many calls as the server allows, for too long."""
    answered: int = 0
    sending_s: float = 0.0
    """From the first call that was due to the end of sending."""
    total_s: float = 0.0
    """Until the last answer."""
    statuses: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    """Of the calls with status OK."""
    good: int = 0
    """Calls with the verdict that was wanted."""
    good_while_sending: int = 0
    """Those answered before the end of sending: goodput is these by `sending_s`."""
    good_latencies_ns: array[int] = field(default_factory=lambda: array("q"))
    good_due_ns: array[int] = field(default_factory=lambda: array("q"))
    """When each of these calls was due, from the beginning."""
    shed_without_advice: int = 0
    """RESOURCE_EXHAUSTED without google.rpc.RetryInfo."""
    lags_ns: array[int] = field(default_factory=lambda: array("q"))
    """At each sending: how long the first call that went out had been due."""
    cpu_share: float = 0.0
    """Of one core, used by the generator while it was sending."""
    reconnects: int = 0
    acknowledged: list[int] = field(default_factory=list)
    """Which requests came back with the verdict that was wanted."""
    samples: list[str] = field(default_factory=list)
    """A few messages of calls that failed."""

    @property
    def goodput_per_s(self) -> float:
        """Wanted verdicts per second of sending."""
        return self.good_while_sending / self.sending_s if self.sending_s else 0.0

    def part(self, from_s: float, to_s: float) -> list[int]:
        """Latencies of the good calls that were due in a span, nanoseconds."""
        first, last = from_s * 1e9, to_s * 1e9
        return [
            latency
            for due, latency in zip(self.good_due_ns, self.good_latencies_ns, strict=True)
            if first <= due < last
        ]

    def good_within(self, from_s: float, to_s: float) -> int:
        """How many good answers came in a span."""
        first, last = from_s * 1e9, to_s * 1e9
        return sum(
            first <= due + latency < last
            for due, latency in zip(self.good_due_ns, self.good_latencies_ns, strict=True)
        )

    @property
    def lag_p99_ms(self) -> float:
        """How late the generator sent, at the 99th percentile of its sendings."""
        if len(self.lags_ns) < 2:
            return max(self.lags_ns, default=0) / 1e6
        return statistics.quantiles(self.lags_ns, n=100, method="inclusive")[98] / 1e6

    @property
    def unanswered(self) -> int:
        """Calls sent that had no answer of any kind when the run ended."""
        return self.sent - self.given_up - self.answered

    def percentiles_ms(self) -> dict[str, float]:
        """Latency of the good calls, in milliseconds; empty without any."""
        if not self.good_latencies_ns:
            return {}
        made = histogram(self.good_latencies_ns)
        return {name: made.get_value_at_percentile(value) / 1e3 for name, value in QUANTILES.items()}

    def own_limit(self) -> str:
        """Why the generator, and not what it measured, may have set the figures; "" if it did not."""
        if self.kind == "open" and self.lag_p99_ms > bounds.LAG_P99_MS_MAX:
            return f"the generator was late: {self.lag_p99_ms:.1f} ms at p99, more than {bounds.LAG_P99_MS_MAX:g} ms"
        if self.cpu_share > bounds.CPU_SHARE_MAX:
            return f"the generator used {self.cpu_share:.0%} of a core, more than {bounds.CPU_SHARE_MAX:.0%}"
        return ""

    def told(self) -> str:
        """What came back, in one line."""
        return f"{self.answered} of {self.sent} calls answered: {dict(self.statuses)}, {dict(self.verdicts)} {self.samples}"

    def as_json(self) -> dict[str, Any]:
        """The run for the report, without its raw figures."""
        return {
            "kind": self.kind,
            "connections": self.connections,
            "window": self.window,
            "offered_per_s": round(self.offered_per_s, 1),
            "planned": self.planned,
            "sent": self.sent,
            "given_up": self.given_up,
            "answered": self.answered,
            "unanswered": self.unanswered,
            "sending_s": round(self.sending_s, 3),
            "goodput_per_s": round(self.goodput_per_s, 1),
            "good": self.good,
            "statuses": dict(self.statuses),
            "verdicts": dict(self.verdicts),
            "latency_ms": self.percentiles_ms(),
            "lag_p99_ms": round(self.lag_p99_ms, 3),
            "cpu_share": round(self.cpu_share, 3),
            "reconnects": self.reconnects,
            "shed_without_advice": self.shed_without_advice,
            "own_limit": self.own_limit(),
            "samples": self.samples,
            "histogram": histogram(self.good_latencies_ns).encode().decode("ascii"),
        }
