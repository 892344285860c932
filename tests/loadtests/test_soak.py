"""What a soak says of memory: growth fails it, calls that are under way for a moment do not."""

from __future__ import annotations

from collections.abc import Sequence

from loadtests.runs import Run
from loadtests.soak import Soak
from loadtests.stacks import Usage

MIB = 2**20


def soaked(rss_mib: Sequence[float], *, descriptors: int = 30) -> Soak:
    """A soak with a reading every twenty seconds."""
    run = Run("open", 8, 1.0, sent=1, good=1)
    usages = [Usage(0.0, int(rss * MIB), descriptors, 0.0, 0, 0.0) for rss in rss_mib]
    return Soak(1.0, [(20.0 * (nth + 1), run, usage) for nth, usage in enumerate(usages)])


def failed(found: Soak) -> set[str]:
    return {check.name for check in found.checks() if check.failed}


def test_flat_is_flat_whatever_the_first_minute_was() -> None:
    assert failed(soaked([90, 120, 140] + [145, 146, 144] * 9)) == set()


def test_a_slow_leak_is_seen() -> None:
    assert failed(soaked([140 + nth * 0.4 for nth in range(30)])) == {"memory after the first minute"}


def test_one_high_reading_is_told_but_is_no_growth() -> None:
    found = soaked([143, 143, 143] + [144, 152, 145] * 9)
    assert failed(found) == set()
    told = next(check.found for check in found.checks() if check.name == "memory after the first minute")
    assert "152.0" in told


def test_a_minute_that_stays_high_is_growth() -> None:
    assert failed(soaked([143] * 27 + [152] * 3)) == {"memory after the first minute"}


def test_two_minutes_say_nothing() -> None:
    assert failed(soaked([143] * 6)) == {"long enough to say"}
    assert failed(soaked([143] * 9)) == set()


def test_descriptors_may_not_grow() -> None:
    found = soaked([143] * 9)
    loaded_s, run, last = found.slices[-1]
    found.slices[-1] = (loaded_s, run, Usage(0.0, last.rss_bytes, 31, 0.0, 0, 0.0))
    assert failed(found) == {"descriptors after the first minute"}
