"""What every benchmark here has in common: it says what it measures, so that the report can set one against another."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

Result = TypeVar("Result")


class Measure(Protocol):
    """Runs a call many times and gives its result; see the fixture `measure`."""

    def __call__(
        self,
        subject: str,
        case: str,
        implementation: str,
        items: int,
        call: Callable[..., Result],
        prepare: Callable[[], tuple[Any, ...]] | None = None,
        rounds: int = 1,
    ) -> Result: ...


@pytest.fixture
def measure(benchmark: BenchmarkFixture) -> Measure:
    """Return a function that measures a call which does `items` things of one subject and case.

    Rows of the report are subject and case, its columns the implementations. With `prepare` the call uses something up:
    it runs `rounds` times, each time on the arguments that `prepare` returns, whose making is not measured.
    """

    def run(
        subject: str,
        case: str,
        implementation: str,
        items: int,
        call: Callable[..., Result],
        prepare: Callable[[], tuple[Any, ...]] | None = None,
        rounds: int = 1,
    ) -> Result:
        benchmark.group = f"{subject} {case}"
        benchmark.extra_info.update(subject=subject, case=case, implementation=implementation, items=items)
        # pytest-benchmark has no types for what its fixture's methods take and give.
        fixture: Any = benchmark
        if prepare is None:
            result: Result = fixture(call)
        else:
            result = fixture.pedantic(call, setup=lambda: (prepare(), {}), rounds=rounds)
        # Computing takes what its fastest round takes, the rest is other load. A disk's fastest round is luck.
        benchmark.extra_info["figure"] = "min" if prepare is None else "median"
        return result

    return run
