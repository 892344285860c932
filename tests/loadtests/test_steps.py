"""Steps at shares of a peak: of which peak, and with how many codes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from loadtests import bounds, steps
from loadtests.peak import Peak
from loadtests.runs import Run


class Machine:
    """A stack that does in a closed loop what `peaks` say, one after the other; it notes what it was asked for."""

    name = "pickgate"

    def __init__(self, *peaks: float) -> None:
        self._peaks = list(peaks)
        self.asked: list[Any] = []
        self.codes = 0.0

    def stock_up(self, count: float) -> None:
        self.codes = max(self.codes, count)

    def closed(self, window: int, seconds: float) -> Run:
        per_s = self._peaks.pop(0)
        self.asked.append(("closed", window, seconds))
        self._take(per_s * seconds)
        return Run("closed", 1, 0.0, window, sending_s=seconds, good_while_sending=int(per_s * seconds))

    def open(self, rate_per_s: float, seconds: float) -> Run:
        self.asked.append(("open", rate_per_s, seconds))
        self._take(rate_per_s * seconds)
        return Run("open", 1, rate_per_s)

    def _take(self, count: float) -> None:
        assert count <= self.codes
        self.codes -= count

    def batches(self) -> Counter[int]:
        return Counter()


def climb(machine: Machine, *percents: float) -> list[steps.Step]:
    """Climb from a peak of 10,000 a second with 64 calls on each connection."""
    peak = Peak("pickgate", 64, 8, rounds=[Run("closed", 8, 0.0, sending_s=1.0, good_while_sending=10_000)])
    subjects: Any = [machine]
    return steps.climb(subjects, [peak], percents=percents, seconds=6.0, named_rate_per_s=20_000)


def test_most_steps_are_shares_of_the_peak_that_was_found() -> None:
    machine = Machine()
    taken = climb(machine, 50, 95)
    assert machine.asked == [("open", 5_000, 6.0), ("open", 9_500, 6.0)]
    assert [step.percent for step in taken] == [50, 95]


def test_those_that_are_judged_are_shares_of_what_is_done_just_before() -> None:
    machine = Machine(8_000, 11_000)
    taken = climb(machine, 80, 80)
    assert [asked[0] for asked in machine.asked] == ["closed", "open", "closed", "open"]
    assert machine.asked[0] == ("closed", 64, bounds.JUDGED_PEAK_S)
    rates = [asked[1] for asked in machine.asked if asked[0] == "open"]
    assert rates == pytest.approx([6_400, 8_800])
    assert [step.percent for step in taken] == [80, 80]


def test_a_short_step_has_a_short_round_before_it() -> None:
    machine = Machine(10_000)
    peak = Peak("pickgate", 64, 8, rounds=[Run("closed", 8, 0.0, sending_s=1.0, good_while_sending=10_000)])
    subjects: Any = [machine]
    steps.climb(subjects, [peak], percents=[80], seconds=0.5, named_rate_per_s=20_000)
    assert machine.asked[0] == ("closed", 64, 0.5)
