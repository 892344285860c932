"""Steps at shares of a peak: at which rates, and with how many codes."""

from __future__ import annotations

from collections import Counter
from typing import Any

from loadtests import steps
from loadtests.peak import Peak
from loadtests.runs import Run


class Machine:
    """A stack that notes what it is asked for, and has no more codes than were made."""

    name = "pickgate"

    def __init__(self) -> None:
        self.asked: list[tuple[float, float]] = []
        self.codes = 0.0

    def stock_up(self, count: float) -> None:
        self.codes = max(self.codes, count)

    def open(self, rate_per_s: float, seconds: float) -> Run:
        self.asked.append((rate_per_s, seconds))
        # As many as a Poisson process has, and some standard deviations more.
        assert (
            rate_per_s * seconds + 5 * (rate_per_s * seconds) ** 0.5
            <= self.codes
            < 1.1 * rate_per_s * seconds
        )
        self.codes = 0.0
        return Run("open", 1, rate_per_s)

    def batches(self) -> Counter[int]:
        return Counter()


def climb(machine: Machine, *percents: float) -> list[steps.Step]:
    """Climb from a peak of 10,000 a second with 64 calls on each connection."""
    peak = Peak("pickgate", 64, 8, rounds=[Run("closed", 8, 0.0, sending_s=1.0, good_while_sending=10_000)])
    subjects: Any = [machine]
    return steps.climb(subjects, [peak], percents=percents, seconds=6.0, named_rate_per_s=20_000)


def test_steps_are_shares_of_the_peak_with_no_more_codes_than_they_need() -> None:
    machine = Machine()
    taken = climb(machine, 50, 80, 80, 95)
    assert machine.asked == [(5_000, 6.0), (8_000, 6.0), (8_000, 6.0), (9_500, 6.0)]
    assert [step.percent for step in taken] == [50, 80, 80, 95]
