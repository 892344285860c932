"""Owners of partitions: batches, bounds, deadlines, one slow owner among others, and what no defect may do."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from engine import limits
from engine.errors import Exhausted, PickgateError, StaleControl, Unavailable
from engine.state.connection import SEVERAL
from server import bounds
from server.batches import Blocking, Method, Outcome, Sorted
from server.owners import Answered, Owners, Waiting
from server.turns import TooLate
from tests.server.conftest import wait_until


class Clock:
    """Seconds that the test moves."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


class Gates(Blocking):
    """A method whose requests say which owner decides them; an owner with a closed gate does not come back."""

    def __init__(self, owners: int) -> None:
        self.gates = [threading.Event() for _ in range(owners)]
        for gate in self.gates:
            gate.set()
        self.batches: list[tuple[int, list[bytes]]] = []
        self.sorted: list[list[bytes]] = []
        self.deciding = [threading.Event() for _ in range(owners)]
        self.sort_error: Exception | None = None
        self.poison = b""
        self.taking_s = 0.0
        self.clock: Clock | None = None

    def sort(self, batch: Sequence[bytes], grants: object = ()) -> list[Sorted | Outcome]:
        self.sorted.append(list(batch))
        if self.sort_error is not None:
            raise self.sort_error
        return [b"known" if data == b"known" else Sorted(int(data[:1]), data) for data in batch]

    def decide(self, owner: int, batch: Sequence[Any]) -> list[Outcome]:
        self.batches.append((owner, list(batch)))
        self.deciding[owner].set()
        assert self.gates[owner].wait(30)
        if self.clock is not None:
            self.clock.now_s += self.taking_s
        if self.poison and self.poison in batch:
            raise ZeroDivisionError("a defect")
        return [data + b"!" for data in batch]


class Counter:
    """Owners, and what they answered."""

    def __init__(self, methods: Sequence[Method], owners: int, **options: Any) -> None:
        self.monotonic, self.unix = Clock(), Clock()
        self.outcomes: dict[bytes, Outcome] = {}
        self.times = 0
        self.woken = threading.Event()
        self.owners = Owners(
            methods,
            owners,
            self._take,
            lambda _: self.woken.set(),
            monotonic_s=self.monotonic,
            unix_s=self.unix,
            **options,
        )

    def _take(self, done: Answered) -> None:
        self.times += len(done)
        self.outcomes.update({call.message: outcome for call, outcome in done})

    def send(self, *messages: bytes, deadline_s: float = math.inf, method: int = 0) -> None:
        calls = []
        for message in messages:
            call = Waiting()
            call.method, call.message, call.deadline_s = method, message, deadline_s
            call.came_s, call.alone, call.grant = self.monotonic(), False, None
            calls.append(call)
        self.owners.submit(calls)

    def go_on(self) -> None:
        """As the draining thread does: take up what has come back, and answer."""
        self.owners.turn()
        while self.owners.has_answers:
            self.owners.answer(bounds.ANSWERED_AT_ONCE)

    def wait_until(self, reached: Callable[[], bool], what: str) -> None:
        def look() -> bool:
            self.go_on()
            return reached()

        wait_until(look, what)

    def wait_for(self, count: int) -> None:
        self.wait_until(lambda: len(self.outcomes) >= count, f"{count} outcomes")


Make = Callable[..., Counter]


@pytest.fixture
def make() -> Iterator[Make]:
    with ExitStack() as stack:

        def make(*methods: Gates, owners: int = 1, **options: Any) -> Counter:
            counter = Counter(methods, owners, **options)
            counter.owners.start()

            def stop() -> None:
                for method in methods:
                    for gate in method.gates:
                        gate.set()
                counter.wait_until(lambda: counter.owners.idle, "everything is answered")
                counter.owners.stop()

            stack.callback(stop)
            return counter

        yield make


def test_what_waits_meanwhile_is_the_next_batch(make: Make) -> None:
    gates = Gates(1)
    counter = make(gates)
    gates.gates[0].clear()
    counter.send(b"0first")
    assert gates.deciding[0].wait(10)
    for n in range(5):
        counter.send(b"0-%d" % n, b"0+%d" % n)
    assert counter.owners.waiting == 11
    gates.gates[0].set()
    counter.wait_for(11)
    assert [len(batch) for _, batch in gates.batches] == [1, 10]
    assert counter.outcomes[b"0+3"] == b"0+3!"
    assert counter.owners.sizes == {1: 1, 10: 1}


def test_a_batch_has_its_bound(make: Make) -> None:
    gates = Gates(1)
    counter = make(gates)
    gates.gates[0].clear()
    counter.send(b"0first")
    assert gates.deciding[0].wait(10)
    counter.send(*(b"0%d" % n for n in range(3 * limits.BATCH_MAX)))
    gates.gates[0].set()
    counter.wait_for(1 + 3 * limits.BATCH_MAX)
    assert max(len(batch) for _, batch in gates.batches) <= limits.BATCH_MAX
    assert max(len(batch) for batch in gates.sorted) <= limits.BATCH_MAX


def test_an_owner_that_hangs_stops_only_its_own(make: Make) -> None:
    gates = Gates(2)
    counter = make(gates, owners=2)
    gates.gates[0].clear()
    counter.send(b"0hangs")
    assert gates.deciding[0].wait(10)
    for n in range(20):
        counter.send(b"0%d" % n, b"1%d" % n)
    counter.wait_until(
        lambda: all(b"1%d" % n in counter.outcomes for n in range(20)), "the other owner goes on"
    )
    assert all(data.startswith(b"1") for data in counter.outcomes)
    # Too late for those that wait; what the owner has in hand stays with it.
    counter.monotonic.now_s += limits.STORE_TIMEOUT_S + 0.1
    counter.send(b"1fresh", b"0fresh")
    counter.owners.sweep()
    counter.wait_for(41)
    late = {data for data, outcome in counter.outcomes.items() if isinstance(outcome, Unavailable)}
    assert late == {b"0%d" % n for n in range(20)}
    assert counter.owners.late == 20
    gates.gates[0].set()
    counter.wait_for(43)
    assert counter.outcomes[b"0hangs"] == b"0hangs!"
    counter.wait_until(lambda: counter.outcomes.get(b"0fresh") == b"0fresh!", "it goes on")
    assert counter.times == 43


def test_a_call_too_late_is_not_worked_on(make: Make) -> None:
    gates = Gates(1)
    counter = make(gates)
    gates.gates[0].clear()
    counter.send(b"0first")
    assert gates.deciding[0].wait(10)
    counter.send(b"0hasty", deadline_s=counter.unix() + 1)
    counter.send(b"0patient", deadline_s=counter.unix() + 100)
    counter.unix.now_s += 2
    gates.gates[0].set()
    counter.wait_for(3)
    assert isinstance(counter.outcomes[b"0hasty"], TooLate)
    assert counter.outcomes[b"0patient"] == b"0patient!"
    assert all(b"0hasty" not in batch for _, batch in gates.batches)
    assert counter.owners.expired == 1


def test_a_call_that_would_wait_too_long_is_shed_at_once(make: Make) -> None:
    gates = Gates(2)
    counter = make(gates, owners=2)
    gates.clock, gates.taking_s = counter.monotonic, 2.0
    counter.send(b"0teaches")
    counter.wait_for(1)
    gates.gates[0].clear()
    gates.deciding[0].clear()
    counter.send(b"0holds")
    assert gates.deciding[0].wait(10)
    # Sorted by the owner that is free; a batch takes two seconds.
    counter.send(b"0hasty", deadline_s=counter.unix() + 1)
    counter.send(b"0patient", deadline_s=counter.unix() + 10)
    counter.wait_for(2)
    shed = counter.outcomes[b"0hasty"]
    assert isinstance(shed, Exhausted)
    assert shed.retry_after_ms > 0
    assert counter.owners.shed == 1
    gates.gates[0].set()
    counter.wait_for(4)
    assert counter.outcomes[b"0patient"] == b"0patient!"


def test_behind_an_owner_that_hangs_no_queue_grows(make: Make) -> None:
    """A call without a deadline that would be given up for its wait is told at once, and takes nobody's place."""
    gates = Gates(2)
    counter = make(gates, owners=2)
    gates.gates[0].clear()
    counter.send(b"0hangs")
    assert gates.deciding[0].wait(10)
    counter.monotonic.now_s += bounds.QUEUE_WAIT_S - 0.5
    count = 2 * limits.BATCH_MAX
    for n in range(count):
        counter.send(b"0%d" % n)
    counter.wait_for(count - limits.BATCH_MAX)
    assert all(isinstance(outcome, Exhausted) for outcome in counter.outcomes.values())
    counter.send(b"1goes on")
    counter.wait_for(count - limits.BATCH_MAX + 1)
    assert counter.outcomes[b"1goes on"] == b"1goes on!"
    gates.gates[0].set()
    counter.wait_for(count + 2)
    assert counter.owners.shed == count - limits.BATCH_MAX


def test_an_owner_that_is_free_sheds_nothing(make: Make) -> None:
    gates = Gates(1)
    counter = make(gates)
    gates.clock, gates.taking_s = counter.monotonic, 2.9
    counter.send(b"0slow")
    counter.wait_for(1)
    gates.taking_s = 0.0
    counter.wait_until(lambda: counter.owners.waiting == 0, "all answered")
    counter.send(b"0hasty", deadline_s=counter.unix() + 0.5)
    counter.wait_for(2)
    assert counter.outcomes[b"0hasty"] == b"0hasty!"


def test_a_batch_has_no_more_work_than_a_batch_of_ordinary_calls(make: Make) -> None:
    """Calls that are much work each wait for one another, and nobody else waits for all of them."""
    light, heavy = Gates(1), Gates(1)
    heavy.weigh = lambda data: int(data[1:])
    counter = make(light, heavy)
    light.gates[0].clear()
    counter.send(b"0first")
    assert light.deciding[0].wait(10)
    half = limits.BATCH_MAX // 2
    large = [b"0%d" % (half + n) for n in range(5)]
    counter.send(*large, method=1)
    counter.send(b"0in between", b"0and more")
    counter.owners.sort_ahead()
    light.gates[0].set()
    counter.wait_for(8)
    assert [batch for _, batch in heavy.batches] == [large[:2], large[2:4], large[4:]]
    assert light.batches == [(0, [b"0first"]), (0, [b"0in between", b"0and more"])]


class Sharing(Gates):
    """Gates at which some calls need several owners."""

    def sort(self, batch: Sequence[bytes], grants: object = ()) -> list[Sorted | Outcome]:
        return [
            Sorted(SEVERAL, data) if data.startswith(b"several") else Sorted(int(data[:1]), data)
            for data in batch
        ]


def test_owners_that_come_later_and_calls_that_need_several(make: Make) -> None:
    """A primary more, and those who wait for two of them: nobody's calls wait behind another's."""
    gates = Sharing(3)
    counter = make(gates, owners=1)
    gates.gates[SEVERAL].clear()
    counter.send(b"several", b"0a", b"1a")
    assert gates.deciding[SEVERAL].wait(10)
    counter.wait_for(2)
    counter.send(b"0b", b"1b")
    counter.wait_for(4)
    assert b"several" not in counter.outcomes
    gates.gates[1].clear()
    counter.send(b"1c", b"0c")
    counter.wait_for(5)
    assert counter.outcomes[b"0c"] == b"0c!"
    for gate in gates.gates:
        gate.set()
    counter.wait_for(7)
    assert counter.outcomes == {call: call + b"!" for call in counter.outcomes}
    assert counter.owners.idle


def test_what_is_known_when_sorted_is_not_decided(make: Make) -> None:
    gates = Gates(1)
    counter = make(gates)
    counter.send(b"known", b"0")
    counter.wait_for(2)
    assert counter.outcomes == {b"known": b"known", b"0": b"0!"}
    assert gates.batches == [(0, [b"0"])]


def test_methods_of_a_batch_are_asked_one_behind_the_other(make: Make) -> None:
    first, second = Gates(1), Gates(1)
    counter = make(first, second)
    first.gates[0].clear()
    counter.send(b"0a")
    assert first.deciding[0].wait(10)
    counter.send(b"0b", method=1)
    counter.send(b"0c")
    counter.send(b"0d", method=1)
    first.gates[0].set()
    counter.wait_for(4)
    assert [batch for _, batch in first.batches] == [[b"0a"], [b"0c"]]
    assert [batch for _, batch in second.batches] == [[b"0b", b"0d"]]


@pytest.mark.parametrize("step", ["sort", "decide"])
def test_an_error_of_the_batch_is_everybodys(make: Make, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gates = Gates(1)
    counter = make(gates)

    def refuse(*_: object) -> Any:
        raise StaleControl("too old")

    monkeypatch.setattr(gates, step, refuse)
    counter = make(gates)
    counter.send(b"0a", b"0b")
    counter.wait_for(2)
    assert all(isinstance(outcome, StaleControl) for outcome in counter.outcomes.values())
    monkeypatch.undo()
    counter.send(b"0c")
    counter.wait_for(3)
    assert counter.outcomes[b"0c"] == b"0c!"


def test_a_defect_that_one_call_brings_up_is_its_own(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    gates = Gates(1)
    counter = make(gates)
    gates.gates[0].clear()
    counter.send(b"0first")
    assert gates.deciding[0].wait(10)
    gates.poison = b"0poison"
    counter.send(b"0a", b"0poison", b"0b")
    gates.gates[0].set()
    counter.wait_for(4)
    assert isinstance(counter.outcomes.pop(b"0poison"), ZeroDivisionError)
    assert not any(isinstance(outcome, Exception) for outcome in counter.outcomes.values())
    assert "a defect" in caplog.text


def test_a_method_that_loses_count_answers_all(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    gates = Gates(1)
    monkeypatch.setattr(gates, "decide", lambda owner, batch: [b"only one"] * (len(batch) + 1))
    counter = make(gates)
    counter.send(b"0a", b"0b")
    counter.wait_for(2)
    assert all(
        isinstance(outcome, Exception) and not isinstance(outcome, PickgateError)
        for outcome in counter.outcomes.values()
    )


def test_a_defect_of_the_owner_itself_leaves_it_working(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gates = Gates(1)
    counter = make(gates)

    def fail(*_: object) -> None:
        raise ZeroDivisionError("of its own")

    with monkeypatch.context() as patch:
        patch.setattr(counter.owners, "_sort", fail)
        counter.send(b"0a", b"0b")
    with monkeypatch.context() as patch:
        patch.setattr(gates, "begin", fail)
        counter.send(b"0c", b"0d")
        counter.wait_for(4)
    assert [type(outcome) for outcome in counter.outcomes.values()] == [ZeroDivisionError] * 4
    counter.send(b"0after")
    counter.wait_for(5)
    assert counter.outcomes[b"0after"] == b"0after!"
    assert counter.owners.waiting == 0
    assert "of its own" in caplog.text


def test_the_next_batch_goes_out_whatever_the_lane_is_at(make: Make) -> None:
    gates = Gates(1)
    counter = make(gates)
    gates.gates[0].clear()
    counter.send(b"0first")
    assert gates.deciding[0].wait(10)
    counter.send(b"0sorted")
    assert counter.owners.sort_ahead()
    assert not counter.owners.sort_ahead()
    counter.send(b"0not yet")
    gates.gates[0].set()
    # Nobody takes up what has come back.
    wait_until(lambda: len(gates.batches) == 2, "the owner's thread goes on by itself")
    assert counter.outcomes == {}
    counter.wait_for(3)
    assert [batch for _, batch in gates.batches] == [[b"0first"], [b"0sorted"], [b"0not yet"]]
    assert counter.owners.sizes == {1: 3}


def test_a_call_that_is_late_in_the_queue_is_told_by_the_lane(make: Make) -> None:
    """And the owner that found nothing else there takes the next."""
    gates = Gates(1)
    counter = make(gates)
    gates.gates[0].clear()
    counter.send(b"0first")
    assert gates.deciding[0].wait(10)
    counter.send(b"0hasty", deadline_s=counter.unix() + 1)
    assert counter.owners.sort_ahead()
    counter.unix.now_s += 2
    gates.gates[0].set()
    counter.wait_for(2)
    assert isinstance(counter.outcomes[b"0hasty"], TooLate)
    counter.send(b"0next")
    counter.wait_for(3)
    assert counter.outcomes[b"0next"] == b"0next!"
    assert counter.owners.expired == 1


def test_answers_go_out_a_few_at_a_time_and_the_next_batch_before_them(make: Make) -> None:
    gates = Gates(1)
    counter = make(gates)
    gates.gates[0].clear()
    counter.send(*(b"0%d" % n for n in range(100)))
    assert gates.deciding[0].wait(10)
    counter.send(b"0next")
    gates.deciding[0].clear()
    gates.gates[0].set()
    assert counter.woken.wait(10)
    counter.owners.turn()
    assert gates.deciding[0].wait(10)
    assert counter.outcomes == {}
    counter.owners.answer(32)
    assert list(counter.outcomes) == [b"0%d" % n for n in range(32)]
    counter.wait_for(101)
    assert counter.times == 101
