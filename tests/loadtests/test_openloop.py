"""The generators: what they send when, and what they say of it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import pairwise

import pytest

from loadtests import bounds
from loadtests.openloop import closed_loop, even_arrivals, open_loop, poisson_arrivals
from loadtests.runs import Run, histogram
from loadtests.wire.pool import Pool
from tests.loadtests.conftest import Peer, ask


def read(message: bytes) -> tuple[str, bool]:
    return message[:1].decode(), message != b"bad"


def test_even_arrivals_are_even() -> None:
    assert list(even_arrivals(4, 1)) == [0, 250_000_000, 500_000_000, 750_000_000]


def test_poisson_arrivals_are_seeded_rising_and_of_the_rate() -> None:
    first, again, other = (poisson_arrivals(1_000, 20, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert list(first) == sorted(first)
    assert 0 <= first[0] < first[-1] < 20e9
    assert len(first) == pytest.approx(20_000, rel=0.05)
    gaps = [b - a for a, b in pairwise(first)]
    # Exponential: as many gaps above the mean as e^-1 says, where even arrivals would have half.
    assert sum(gap > 1e6 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.02)


@pytest.mark.parametrize(("rate", "seconds"), [(0, 1), (1, 0), (-5, 1)])
def test_no_arrivals_without_rate_and_time(rate: float, seconds: float) -> None:
    for make in (even_arrivals, lambda r, s: poisson_arrivals(r, s, 1)):
        with pytest.raises(ValueError, match="more than 0"):
            make(rate, seconds)


def test_open_loop_sends_each_request_once_and_on_time(peer: Peer) -> None:
    requests = [ask("Say", f"{n % 3}".encode()) for n in range(300)]
    with Pool(peer.unix, 3) as pool:
        run = open_loop(pool, requests, even_arrivals(600, 0.5), read)
    assert (run.planned, run.sent, run.answered, run.good) == (300, 300, 300, 300)
    assert run.verdicts == {"0": 100, "1": 100, "2": 100}
    assert run.statuses == {"OK": 300}
    assert sorted(run.acknowledged) == list(range(300))
    assert 0.49 < run.sending_s < 10
    assert run.lags_ns
    assert 0 < run.cpu_share < 2


def test_latency_includes_the_wait_for_a_server_that_stalls(peer: Peer) -> None:
    """Coordinated omission: every call due in the stall shows it, where a closed loop shows it once."""
    requests = [ask("Wait", b"x") for _ in range(200)]
    opener = threading.Timer(0.6, peer.echo.gate.set)

    def begin_to_wait() -> None:
        # Within the run, so that nothing before it shortens the stall.
        if not opener.ident:
            opener.start()

    with Pool(peer.unix, 2) as pool:
        run = open_loop(pool, requests, even_arrivals(400, 0.5), read, each_tick=begin_to_wait)
    opener.join()
    assert run.answered == 200
    # The gate opened no earlier than 0.6 s after the first tick, and the calls were due within 0.5 s.
    slow = sum(latency_ns > 100e6 for latency_ns in run.good_latencies_ns)
    assert slow >= 190
    assert run.percentiles_ms()["p50"] > 300
    assert run.percentiles_ms()["max"] > 590

    peer.echo.gate.clear()
    opener = threading.Timer(0.3, peer.echo.gate.set)
    opener.start()
    with Pool(peer.unix, 1) as pool:
        closed = closed_loop(pool, requests, 1, read)
    opener.join()
    assert sum(latency_ns > 150e6 for latency_ns in closed.good_latencies_ns) <= 5
    assert closed.percentiles_ms()["p50"] < 150


def test_latency_counts_from_the_due_instant_not_from_the_sending(peer: Peer) -> None:
    """The generator itself is held up for a third of a second: its calls were due all the same."""
    held = threading.Event()

    def hold_up() -> None:
        if not held.is_set():
            held.set()
            threading.Event().wait(0.3)

    requests = [ask("Say", b"x") for _ in range(100)]
    with Pool(peer.unix, 1) as pool:
        run = open_loop(pool, requests, even_arrivals(400, 0.25), read, each_tick=hold_up)
    assert run.percentiles_ms()["max"] > 200
    assert run.lag_p99_ms > bounds.LAG_P99_MS_MAX
    assert "the generator was late" in run.own_limit()


def test_a_call_that_finds_no_place_is_given_up_and_goes_back_under_the_deck(
    peer_with: Callable[..., Peer],
) -> None:
    """As many calls as the connection may have hang; others never leave, and are not taken for unanswered."""
    peer = peer_with(max_concurrent_streams=4)
    deck = deque(range(400))
    began_s: list[float] = []

    def open_gate_later() -> None:
        """By the run's own time: on a busy machine it may begin late."""
        began_s.append(time.monotonic())
        if began_s[-1] - began_s[0] > 0.4:
            peer.echo.gate.set()

    with Pool(peer.unix, 1) as pool:
        # After an answer the server's settings are known.
        assert closed_loop(pool, [ask("Say", b"first")], 1, read).good == 1
        run = open_loop(
            pool,
            [ask("Wait", b"x")] * 400,
            even_arrivals(400, 1.0),
            read,
            deck=deck,
            stream_wait_s=0.05,
            each_tick=open_gate_later,
        )
    assert run.given_up > 50
    assert run.answered == run.good == run.sent - run.given_up
    assert run.unanswered == 0
    assert sorted([*run.acknowledged, *deck]) == list(range(400))


def test_a_call_that_finds_no_place_on_one_connection_goes_over_another(
    peer_with: Callable[..., Peer],
) -> None:
    peer = peer_with(max_concurrent_streams=2)
    with Pool(peer.unix, 2) as pool:
        for slot in range(2):
            pool.start(slot, ask("Say", b"first"), slot)
        while pool.open_calls:
            pool.poll(1.0)
        for n in range(2):
            pool.start(0, ask("Wait", b"x"), n)  # the first connection is full
        run = open_loop(
            pool, [ask("Say", b"x")] * 40, even_arrivals(400, 0.1), read, stream_wait_s=5.0, drain_s=0.1
        )
    assert (run.sent, run.given_up, run.good) == (40, 0, 40)


def test_a_call_that_was_shed_goes_back_under_the_deck(peer: Peer) -> None:
    messages = [f"{'ab'[n % 2]}{n}".encode() for n in range(40)]
    deck = deque(range(40))
    with Pool(peer.unix, 2) as pool:
        run = open_loop(pool, [ask("Shed", m) for m in messages], even_arrivals(200, 0.6), read, deck=deck)
    assert run.statuses == {"RESOURCE_EXHAUSTED": 40, "OK": 40}
    assert sorted(run.acknowledged) == list(range(40))
    assert (run.shed_without_advice, run.sent, len(deck)) == (20, 80, 0)
    assert run.samples == ["RESOURCE_EXHAUSTED: full"]


def test_other_verdicts_and_failures_are_counted_apart(peer: Peer) -> None:
    requests = [ask("Say", b"bad"), ask("Status", b"14 away"), ask("Say", b"good")]
    with Pool(peer.unix, 1) as pool:
        run = closed_loop(pool, requests, 1, read)
    assert (run.answered, run.good) == (3, 1)
    assert run.statuses == {"OK": 2, "UNAVAILABLE": 1}
    assert run.verdicts == {"b": 1, "g": 1}
    assert run.acknowledged == [2]
    assert run.samples == ["UNAVAILABLE: away"]


def test_calls_without_an_answer_are_told(peer: Peer) -> None:
    with Pool(peer.unix, 1) as pool:
        run = open_loop(pool, [ask("Wait", b"x")] * 3, even_arrivals(100, 0.03), read, drain_s=0.2)
    assert (run.sent, run.answered, run.unanswered) == (3, 0, 3)
    assert run.percentiles_ms() == {}


def test_closed_loop_keeps_its_window_and_its_time(peer: Peer) -> None:
    requests = [ask("Say", b"x")] * 1_000_000
    deck = deque(range(len(requests)))
    with Pool(peer.unix, 2) as pool:
        run = closed_loop(pool, requests, 4, read, seconds=0.3, deck=deck)
    assert run.window == 8
    assert 0.3 <= run.sending_s < 5
    assert run.sent == run.answered == run.good == len(requests) - len(deck)
    assert 0 < run.good_while_sending <= run.good
    assert run.goodput_per_s == run.good_while_sending / run.sending_s


def test_the_histogram_is_right_to_three_digits() -> None:
    made = histogram([1_000_000 * n for n in range(1, 1_001)])  # 1 .. 1,000 ms
    assert made.get_value_at_percentile(50) == pytest.approx(500_000, rel=0.002)
    assert made.get_value_at_percentile(99) == pytest.approx(990_000, rel=0.002)
    assert made.get_total_count() == 1_000


def test_a_generator_that_needs_its_core_says_so() -> None:
    run = Run("closed", 1, 0.0, cpu_share=0.95)
    assert run.own_limit() == "the generator used 95% of a core, more than 80%"
    assert Run("closed", 1, 0.0, cpu_share=0.5).own_limit() == ""
