"""What counts as recovered after an overload."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable

from loadtests.overload import Overload, _halves
from loadtests.runs import Run
from loadtests.stacks import Usage

BEFORE_S, SECONDS, AFTER_S = 4.0, 10.0, 6.0
END_S = BEFORE_S + SECONDS
MIB = 2**20


def overloaded(
    latency_ms: Callable[[float], float],
    beside_per_s: tuple[float, float] = (110.0, 110.0),
    rss_halves_mib: tuple[int, int] = (200, 200),
) -> Overload:
    """A hundred calls a second all along, each good, with the latency that is given for when it was due."""
    due_s = [nth / 100 for nth in range(int((END_S + AFTER_S) * 100))]
    run = Run("open", 64, 100.0, planned=len(due_s), sent=len(due_s), answered=len(due_s))
    run.good = len(due_s)
    run.good_due_ns = array("q", [int(at * 1e9) for at in due_s])
    run.good_latencies_ns = array("q", [int(latency_ms(at) * 1e6) for at in due_s])
    rss_bytes = rss_halves_mib[0] * MIB, rss_halves_mib[1] * MIB
    return Overload(110.0, beside_per_s, SECONDS, BEFORE_S, AFTER_S, run, 100 * MIB, rss_bytes)


def failed(found: Overload) -> set[str]:
    return {check.name for check in found.checks() if check.failed}


BACK = "latency is back to normal after"
STAYS = "p99 from 2 s after on, median of half seconds"


def test_recovered_in_time() -> None:
    found = overloaded(lambda at: 500.0 if BEFORE_S <= at < END_S + 1.2 else 8.0)
    assert found.recovered_s == 1.5
    assert failed(found) == set()


def test_recovered_too_late() -> None:
    found = overloaded(lambda at: 500.0 if BEFORE_S <= at < END_S + 2.6 else 8.0)
    assert found.recovered_s == 3.0
    assert failed(found) == {BACK}


def test_not_recovered_at_all() -> None:
    found = overloaded(lambda at: 500.0 if at >= BEFORE_S else 8.0)
    assert found.recovered_s == math.inf
    assert failed(found) == {BACK, STAYS}


def test_recovered_for_a_moment_only() -> None:
    found = overloaded(lambda at: 500.0 if BEFORE_S <= at < END_S or at >= END_S + 1 else 8.0)
    assert found.recovered_s == 0.0
    assert failed(found) == {STAYS}


def test_a_fork_of_the_store_afterwards_is_told_and_no_more() -> None:
    found = overloaded(
        lambda at: 90.0 if END_S + 3 <= at < END_S + 3.1 else 500.0 if BEFORE_S <= at < END_S else 8.0
    )
    assert failed(found) == set()
    assert found.p99_after_worst_ms > 80


def test_few_but_quick_answers_are_no_recovery() -> None:
    found = overloaded(lambda _: 8.0)
    keep = [nth for nth, due in enumerate(found.run.good_due_ns) if due < END_S * 1e9 or nth % 3 == 0]
    for name in ("good_due_ns", "good_latencies_ns"):
        setattr(found.run, name, array("q", [getattr(found.run, name)[nth] for nth in keep]))
    assert failed(found) == {BACK, STAYS}


def test_goodput_is_held_against_the_peak_of_the_same_minute() -> None:
    assert failed(overloaded(lambda _: 8.0, (130.0, 116.0))) == set()
    assert failed(overloaded(lambda _: 8.0, (130.0, 126.0))) == {"goodput by the peak beside it"}


def test_memory_may_grow_by_what_the_connections_may_hold_and_then_no_more() -> None:
    total = "memory of the service"
    growth = "growth of it, second half by first"
    assert failed(overloaded(lambda _: 8.0, rss_halves_mib=(310, 312))) == set()
    # 6,400 calls of 24 KB are 150 MiB; with 64 MiB of slack, 314 MiB.
    assert failed(overloaded(lambda _: 8.0, rss_halves_mib=(315, 313))) == {total}
    assert failed(overloaded(lambda _: 8.0, rss_halves_mib=(200, 221))) == {growth}
    assert failed(overloaded(lambda _: 8.0, rss_halves_mib=(290, 330))) == {total, growth}


def test_halves_are_of_the_time_it_lasted() -> None:
    seen = [
        Usage(at, rss, 0, 0.0, 0, 0.0) for at, rss in [(9, 90), (10, 1), (14, 3), (15, 2), (19, 5), (20, 80)]
    ]
    assert _halves(seen, 10.0, 10.0) == (3, 5)
    assert _halves(seen, 30.0, 10.0) == (90, 90)
