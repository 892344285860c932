"""The light client against a real gRPC server."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import grpc
import pytest

from loadtests.wire import connection, pool
from loadtests.wire.connection import Done
from loadtests.wire.pool import NotReachable, Pool
from tests.loadtests.conftest import BOUND_S, Peer, answers, ask


@pytest.mark.parametrize("way", ["unix", "tcp"])
def test_answers_find_their_calls(peer: Peer, way: str) -> None:
    with Pool(getattr(peer, way), 3) as calls:
        for n in range(600):
            calls.start(n % 3, ask("Say", f"number {n}".encode()), n)
        found = answers(calls, 600)
        assert calls.open_calls == 0
    assert {n: (done.status.code, done.message) for n, done in found.items()} == {
        n: (0, f"number {n}".encode()) for n in range(600)
    }


def test_every_status_comes_with_its_message_and_details(peer: Peer) -> None:
    codes = [code.value[0] for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
    with Pool(peer.unix, 1) as calls:
        for number in codes:
            calls.start(0, ask("Status", f"{number} 没有 100 % of it".encode()), number)
        found = answers(calls, len(codes))
    for number in codes:
        status = found[number].status
        assert (status.code, status.message) == (number, "没有 100 % of it")
        assert status.details == b"\x08" + bytes([number]) + "没有 100 % of it".encode()
        assert found[number].message == b""


def test_a_method_that_is_not_there(peer: Peer) -> None:
    with Pool(peer.unix, 1) as calls:
        calls.start(0, ask("Nothing", b""), 1)
        assert answers(calls, 1)[1].status.code == grpc.StatusCode.UNIMPLEMENTED.value[0]


def test_empty_and_large_messages_both_ways(peer: Peer) -> None:
    """Larger than a frame, than a stream's window and than the connection's; small ones between them are not lost."""
    source = random.Random(4)
    messages = {
        n: source.randbytes(size)
        for n, size in enumerate((0, 3_000_000, 5, 16_379, 16_380, 65_536, 900_000, 1))
    }
    with Pool(peer.tcp, 1) as calls:
        for n, message in messages.items():
            calls.start(0, ask("Say", message), n)
        found = answers(calls, len(messages))
    assert {n: done.message for n, done in found.items()} == messages


def test_more_calls_than_the_server_takes_at_once(peer_with: Callable[..., Peer]) -> None:
    peer = peer_with(max_concurrent_streams=4)
    with Pool(peer.unix, 1) as calls:
        calls.start(0, ask("Say", b"first"), "first")  # after its answer the server's settings are known
        answers(calls, 1)
        for n in range(50):
            calls.start(0, ask("Say", bytes([n])), n)
        assert {n: done.message for n, done in answers(calls, 50).items()} == {
            n: bytes([n]) for n in range(50)
        }


def test_rooms_are_told_by_connection(peer_with: Callable[..., Peer]) -> None:
    peer = peer_with(max_concurrent_streams=2)
    with Pool(peer.unix, 2) as calls:
        for slot in range(2):
            calls.start(slot, ask("Say", b"first"), slot)
        answers(calls, 2)
        assert calls.rooms() == [(0, 2), (1, 2)]
        calls.start(0, ask("Wait", b""), "a")
        assert calls.rooms() == [(0, 1), (1, 2)]
        calls.start(0, ask("Wait", b""), "b")
        assert calls.rooms() == [(1, 2)]
        assert calls.cancel("a")
        assert calls.rooms() == [(0, 1), (1, 2)]


def test_the_deadline_is_told(peer: Peer) -> None:
    with Pool(peer.unix, 1) as calls:
        calls.start(0, ask("Say", b"", timeout_ms=7_000), "with")
        answers(calls, 1)
        calls.start(0, ask("Say", b""), "without")
        answers(calls, 1)
    first, second = peer.echo.deadlines_s
    assert first is not None
    assert 1 < first <= 7
    assert second is None or second > 1e6


def test_a_deadline_that_passes(peer: Peer) -> None:
    with Pool(peer.unix, 1) as calls:
        calls.start(0, ask("Wait", b"", timeout_ms=50), 1)
        code = answers(calls, 1)[1].status.code
    # The server either says so or resets the stream.
    assert code in (grpc.StatusCode.DEADLINE_EXCEEDED.value[0], grpc.StatusCode.CANCELLED.value[0])


def test_a_cancelled_call_ends_here_and_there(peer: Peer) -> None:
    with Pool(peer.unix, 2) as calls:
        calls.start(1, ask("Wait", b""), "waits")
        calls.start(1, ask("Say", b"x"), "other")
        assert answers(calls, 1)["other"].message == b"x"
        assert calls.cancel("waits")
        assert not calls.cancel("waits")
        assert answers(calls, 1)["waits"].status.code == grpc.StatusCode.CANCELLED.value[0]
        assert peer.echo.cancelled.wait(BOUND_S)
        calls.start(1, ask("Say", b"y"), "after")
        assert answers(calls, 1)["after"].message == b"y"


def test_a_stopping_server_sends_calls_elsewhere_and_loses_none_it_took(peer: Peer) -> None:
    """GOAWAY: what is under way is finished, and the next call finds no server."""
    with Pool(peer.unix, 1) as calls:
        calls.start(0, ask("Wait", b"under way"), 1)
        calls.start(0, ask("Say", b"taken"), 2)
        answers(calls, 1)
        stopped = peer.server.stop(BOUND_S)
        give_up = time.monotonic() + BOUND_S
        failed: list[Done] = []
        while not failed:
            assert time.monotonic() < give_up
            calls.start(0, ask("Say", b"late"), f"late {time.monotonic()}")
            failed = [done for done in calls.poll(0.02) if done.status.code]
        # CANCELLED: it had arrived, and was not taken up.
        assert {done.status.code for done in failed} <= {
            grpc.StatusCode.UNAVAILABLE.value[0],
            grpc.StatusCode.CANCELLED.value[0],
        }
        peer.echo.gate.set()
        give_up = time.monotonic() + BOUND_S
        found: dict[object, Done] = {}
        while 1 not in found:
            assert time.monotonic() < give_up
            found |= {done.tag: done for done in calls.poll(0.1)}
        assert found[1].message == b"under way"
        assert stopped.wait(BOUND_S)


def test_a_server_that_comes_back_is_found_again(peer_with: Callable[..., Peer]) -> None:
    first = peer_with()
    with Pool(first.unix, 1) as calls:
        calls.start(0, ask("Wait", b""), "cut off")
        calls.start(0, ask("Say", b"x"), "ok")
        assert answers(calls, 1)["ok"].message == b"x"
        first.server.stop(0).wait()
        first.echo.gate.set()
        cut_off = answers(calls, 1)["cut off"].status
        assert cut_off.code in (grpc.StatusCode.UNAVAILABLE.value[0], grpc.StatusCode.CANCELLED.value[0])
        peer_with()
        give_up = time.monotonic() + BOUND_S
        messages: list[bytes] = []
        while b"again" not in messages:
            assert time.monotonic() < give_up
            calls.start(0, ask("Say", b"again"), object())
            messages = [done.message for done in calls.poll(0.1)]
        assert calls.reconnects >= 1


def test_nobody_at_the_target(tmp_path: object) -> None:
    with pytest.raises(NotReachable, match="unix:/nowhere"):
        Pool("unix:/nowhere/at/all", 2)
    with pytest.raises(ValueError, match="write host:port"):
        Pool("nonsense", 1)


def test_headers_that_do_not_fit_into_a_frame() -> None:
    with pytest.raises(ValueError, match="more than one frame"):
        connection.method("/" + "x" * 20_000)
    with pytest.raises(ValueError, match="timeout_ms is 0"):
        connection.method("/a/b", timeout_ms=0)


def test_the_clock_is_read_after_the_answer_is(peer: Peer) -> None:
    ticks = iter(range(10, 10_000_000, 10))
    with pool.Pool(peer.unix, 1, clock_ns=lambda: next(ticks)) as calls:
        before = next(ticks)
        calls.start(0, ask("Say", b""), 1)
        done = answers(calls, 1)[1]
    assert before < done.at_ns < next(ticks)
