"""The hot lane on a real server, over methods of its own: what reaches it, what it refuses, and what must not hurt it."""

from __future__ import annotations

import datetime
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from engine import limits
from engine.errors import Exhausted, InvalidInput, Unavailable
from loadtests import behaviours
from server import bounds, hotlane, lane_check
from server.batches import Blocking, Outcome, Sorted
from server.hotlane import Arrival, Lane
from server.serve import Server
from tests.server.conftest import House, wait_until

METHOD = "/pickgate.test.Lane/Call"
OTHER = "/pickgate.test.Lane/Other"
UNKNOWN = "/pickgate.test.Lane/Unknown"


@dataclass
class Echo(Blocking):
    """Answers with the request; refuses b"bad"; while its gate is closed it decides nothing."""

    gate: threading.Event = field(default_factory=threading.Event)
    deciding: threading.Event = field(default_factory=threading.Event)
    batches: list[list[bytes]] = field(default_factory=list)
    mark: bytes = b""

    def __post_init__(self) -> None:
        self.gate.set()

    def sort(self, batch: Sequence[bytes], grants: object = ()) -> list[Sorted | Outcome]:
        return [
            InvalidInput("it is bad; expected good", field="code") if data == b"bad" else Sorted(0, data)
            for data in batch
        ]

    def decide(self, owner: int, batch: Sequence[Any]) -> list[Outcome]:
        self.batches.append(list(batch))
        self.deciding.set()
        assert self.gate.wait(30)
        return [self.mark + data for data in batch]


@dataclass
class Post:
    """A server with a lane, and a channel to it."""

    server: grpc.Server
    lane: Lane
    address: str
    channel: grpc.Channel
    echo: Echo

    def call(self, data: bytes, method: str = METHOD, **options: Any) -> bytes:
        answer: bytes = self.channel.unary_unary(method, None, None)(data, **({"timeout": 10} | options))
        return answer

    def future(self, data: bytes, **options: Any) -> Any:
        return self.channel.unary_unary(METHOD, None, None).future(data, **({"timeout": 20} | options))

    def refused(self, data: bytes, **options: Any) -> Any:
        with pytest.raises(grpc.RpcError) as caught:
            self.call(data, **options)
        return caught.value

    def settled(self) -> None:
        wait_until(lambda: self.lane.open_calls == 0, "no call is open")


Open = Callable[..., Post]


@pytest.fixture
def post() -> Iterator[Open]:
    """Open posts; each stops in order at the end, and nothing may be left of its calls."""
    with ExitStack() as stack:

        def make(**options: Any) -> Post:
            echo = options.pop("echo", Echo())
            bind = options.pop("bind", lambda server: server.add_insecure_port("127.0.0.1:0"))
            credentials = options.pop("credentials", None)
            pool = stack.enter_context(ThreadPoolExecutor(2))
            server = grpc.server(pool, options=options.pop("server_options", None))
            lane = Lane(server, {METHOD: echo, OTHER: Echo(mark=b"other ")}, **options)
            port = bind(server)
            server.start()
            lane.start()

            def stop() -> None:
                echo.gate.set()
                assert server.stop(5).wait(20)
                lane.stop()
                assert lane.open_calls == 0

            stack.callback(stop)
            own = [("grpc.use_local_subchannel_pool", 1)]
            address = f"localhost:{port}" if credentials else f"127.0.0.1:{port}"
            channel = (
                grpc.secure_channel(address, credentials, own)
                if credentials
                else grpc.insecure_channel(address, own)
            )
            stack.enter_context(channel)
            return Post(server, lane, address, channel, echo)

        yield make


# --- what reaches it -----------------------------------------------------------------------------------------------
def test_each_method_answers_its_own_calls(post: Open) -> None:
    made = post()
    assert made.call(b"x") == b"x"
    assert made.call(b"x", OTHER) == b"other x"
    assert made.call(b"") == b""
    assert made.refused(b"x", method=UNKNOWN).code() is grpc.StatusCode.UNIMPLEMENTED
    assert made.lane.names == ["Call", "Other"]


def test_metadata_deadline_and_peer_reach_it(post: Open) -> None:
    seen: list[tuple[Sequence[tuple[str, str | bytes]], float, str, bytes | None]] = []

    def admit(call: Arrival) -> Exception | None:
        seen.append((call.metadata(), call.deadline_s, call.peer(), call.certificate()))
        return Exhausted("no more") if ("as", "guest") in call.metadata() else None

    made = post(admit=admit)
    deadline_s = time.time() + 7
    assert made.call(b"x", timeout=7, metadata=[("as", "clerk"), ("key-bin", b"\0\xff")]) == b"x"
    assert made.call(b"x", timeout=None) == b"x"
    (metadata, seen_s, peer, identities), (_, endless_s, _, _) = seen
    assert ("as", "clerk") in metadata
    assert ("key-bin", b"\0\xff") in metadata
    assert seen_s == pytest.approx(deadline_s, abs=1)
    assert endless_s > deadline_s + 1e9
    assert peer.startswith("ipv4:127.0.0.1:")
    assert identities is None
    assert made.refused(b"x", metadata=[("as", "guest")]).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert made.echo.batches == [[b"x"], [b"x"]]


def test_the_tls_identity_of_a_caller_reaches_it(post: Open) -> None:
    authority, authority_key = _certificate("authority", None)
    seen: list[bytes | None] = []
    chains = {}
    for name in ("localhost", "terminal-7"):
        certificate, key = _certificate(name, (authority, authority_key))
        chains[name] = (
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
            certificate.public_bytes(serialization.Encoding.PEM),
        )
    root = authority.public_bytes(serialization.Encoding.PEM)
    server = grpc.ssl_server_credentials([chains["localhost"]], root, require_client_auth=True)
    made = post(
        bind=lambda inner: inner.add_secure_port("127.0.0.1:0", server),
        credentials=grpc.ssl_channel_credentials(root, *chains["terminal-7"]),
        admit=lambda call: seen.append(call.certificate()),
    )
    assert made.call(b"x") == b"x"
    assert seen == [chains["terminal-7"][1]]


def _certificate(
    name: str, issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if issuer is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    return builder.sign(issuer[1] if issuer else key, hashes.SHA256()), key


# --- what it refuses -----------------------------------------------------------------------------------------------
def test_an_error_carries_its_details(post: Open) -> None:
    error = post().refused(b"bad")
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    rich: Any = rpc_status.from_call(error)
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert rich.details[0].Unpack(info)
    assert rich.details[1].Unpack(bad_request)
    assert info.reason == "INVALID_INPUT"
    assert [one.field for one in bad_request.field_violations] == ["code"]


def test_a_message_that_is_too_long_is_refused_before_anything(post: Open) -> None:
    made = post()
    assert made.call(bytes(limits.MESSAGE_BYTES_MAX))
    error = made.refused(bytes(limits.MESSAGE_BYTES_MAX + 1))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert str(limits.MESSAGE_BYTES_MAX) in error.details()
    assert len(made.echo.batches) == 1


def test_one_call_too_many_is_shed_with_advice(post: Open) -> None:
    made = post(queue_calls_max=3)
    made.echo.gate.clear()
    first = made.future(b"first")
    assert made.echo.deciding.wait(10)
    waiting = [made.future(b"%d" % n) for n in range(2)]
    wait_until(lambda: made.lane.statistics()["waiting"] == 3, "three wait")
    error = made.refused(b"one more")
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    rich: Any = rpc_status.from_call(error)
    retry = error_details_pb2.RetryInfo()
    assert rich.details[-1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == Exhausted.retry_after_ms
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == str(Exhausted.retry_after_ms)
    made.echo.gate.set()
    assert [call.result() for call in (first, *waiting)] == [b"first", b"0", b"1"]
    assert made.call(b"again") == b"again"
    assert made.lane.statistics()["shed"] == 1


def rush(made: Post, waiting: int) -> list[Any]:
    """Close the gate, and make calls one by one, until so many wait."""
    made.echo.gate.clear()
    calls = []
    for n in range(waiting):
        calls.append(made.future(b"%d" % n))
        wait_until(lambda: made.lane.statistics()["waiting"] == len(calls), "all of them wait")
    return calls


def has_taken(made: Post, count: int) -> bool:
    """Whether so many calls have been shed or wait to be decided."""
    statistics = made.lane.statistics()
    return bool(statistics["shed"] + statistics["waiting"] == count)


def test_what_comes_while_too_many_wait_is_left_with_grpc(
    post: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "REQUESTED_AHEAD", 1)
    made = post(queue_calls_max=6)
    # From three on gRPC is asked for no more, and it was asked for one.
    calls = rush(made, 4)
    left = [made.future(b"left %d" % n) for n in range(5)]
    # On the same connection, and so behind them.
    assert made.refused(b"x", method=UNKNOWN).code() is grpc.StatusCode.UNIMPLEMENTED
    assert made.lane.statistics()["calls"] == 4
    assert not any(call.done() for call in left)
    made.echo.gate.set()
    assert [call.result() for call in calls] == [b"0", b"1", b"2", b"3"]
    assert [call.result() for call in left] == [b"left %d" % n for n in range(5)]
    made.settled()
    assert made.call(b"y", OTHER) == b"other y"
    statistics = made.lane.statistics()
    assert (statistics["calls"], statistics["shed"]) == (10, 0)


def test_one_of_many_is_shed_in_a_rush_that_lasts_and_none_after_it(
    post: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "SHED_AFTER_S", 0.0)
    monkeypatch.setattr(bounds, "SHED_EVERY", 4)
    made = post(queue_calls_max=20)
    calls = rush(made, 10)
    errors: list[Any] = []
    for n in range(2 * 4):
        late = made.future(b"late %d" % n)
        wait_until(partial(has_taken, made, len(calls) + len(errors) + 1), "it is shed, or waits")
        if made.lane.statistics()["shed"] > len(errors):
            errors.append(late.exception())
        else:
            calls.append(late)
    assert [error.code() for error in errors] == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 2
    assert all("grpc-retry-pushback-ms" in dict(error.trailing_metadata()) for error in errors)
    made.echo.gate.set()
    assert all(call.result() for call in calls)
    made.settled()
    for n in range(2 * 4):
        assert made.call(b"%d" % n) == b"%d" % n
    assert made.lane.statistics()["shed"] == 2


def test_a_burst_is_not_shed(post: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "SHED_AFTER_S", 60.0)
    monkeypatch.setattr(bounds, "SHED_EVERY", 1)
    made = post(queue_calls_max=20)
    calls = rush(made, 18)
    made.echo.gate.set()
    assert [call.result() for call in calls] == [b"%d" % n for n in range(18)]


def test_nothing_is_left_with_grpc_when_the_server_stops(post: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "REQUESTED_AHEAD", 1)
    made = post(queue_calls_max=6)
    calls = rush(made, 4)
    left = [made.future(b"left %d" % n) for n in range(5)]
    made.lane.hurry()
    wait_until(lambda: made.lane.statistics()["calls"] == 9, "all are taken up")
    made.echo.gate.set()
    assert [call.result() for call in calls] == [b"0", b"1", b"2", b"3"]
    # About as many as may wait are decided, the rest is told to come again; gRPC would have cancelled them.
    assert {call.code() for call in left} <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_a_call_whose_deadline_has_passed_is_not_decided(post: Open) -> None:
    made = post()
    made.echo.gate.clear()
    first = made.future(b"first")
    assert made.echo.deciding.wait(10)
    error = made.refused(b"hasty", timeout=0.3)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    made.echo.gate.set()
    assert first.result() == b"first"
    made.settled()
    assert made.echo.batches == [[b"first"]]
    assert made.lane.statistics()["expired"] == 1


def test_a_late_owner_is_unavailable_for_those_who_wait(post: Open) -> None:
    made = post(queue_wait_s=0.3)
    made.echo.gate.clear()
    first = made.future(b"first")
    assert made.echo.deciding.wait(10)
    error = made.refused(b"waits")
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "request_id" in error.details()
    made.echo.gate.set()
    assert first.result() == b"first"
    assert made.lane.statistics()["late"] == 1


# --- callers that behave strangely ---------------------------------------------------------------------------------
@pytest.fixture
def mute() -> Iterator[Callable[[Post, int], list[Any]]]:
    """Begin calls that send no request, until the test ends."""
    stop = threading.Event()
    kept: list[Any] = []

    def say_nothing() -> Iterator[bytes]:
        stop.wait()
        yield from ()

    def begin(made: Post, count: int) -> list[Any]:
        calls = [made.channel.stream_unary(METHOD, None, None).future(say_nothing()) for _ in range(count)]
        kept.extend(calls)
        return calls

    yield begin
    stop.set()


def test_a_silent_call_is_cancelled_without_any_traffic(post: Open, mute: Callable[..., list[Any]]) -> None:
    made = post(request_wait_s=0.3)
    for call in mute(made, 20):
        assert call.code() is grpc.StatusCode.CANCELLED
    made.settled()


def test_silent_calls_are_bounded_and_take_nobodys_place(
    post: Open, mute: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "SILENT_CALLS_MAX", 10)
    monkeypatch.setattr(bounds, "SILENT_S_MIN", 0.0)
    made = post(queue_calls_max=3)
    calls = mute(made, 30)
    wait_until(lambda: sum(call.done() for call in calls) == 20, "all but the last ten are cancelled")
    assert made.call(b"x") == b"x"
    assert not any(call.done() for call in calls if not call.done())


def test_calls_of_a_rush_are_not_taken_for_silent_ones(
    post: Open, mute: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose request may be on its way keeps its place; for one more there is none, and advice."""
    monkeypatch.setattr(bounds, "SILENT_CALLS_MAX", 10)
    monkeypatch.setattr(bounds, "SILENT_S_MIN", 60.0)
    made = post()
    calls = mute(made, 10)
    wait_until(lambda: made.lane.open_calls == 10, "all have come")
    error = made.refused(b"one more")
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not any(call.done() for call in calls)


@pytest.fixture
def shut() -> Iterator[Callable[[Post, int], Callable[[], int]]]:
    """Make calls on a connection that takes no byte of their answers; gives how many have been reset."""
    with ExitStack() as stack:

        def begin(made: Post, count: int) -> Callable[[], int]:
            scene = behaviours.Scene(made.address, 0.0)
            stack.callback(scene.end)
            peer = behaviours.Peer(scene, behaviours.opening(window=0))
            of = behaviours.block(METHOD)
            for _ in range(count):
                peer.send(behaviours.call(peer.stream(), of, b"x"))

            def reset() -> int:
                peer.hear()
                assert peer.open
                return sum(count for name, count in scene.told.items() if name.startswith("RST_STREAM"))

            return reset

        yield begin


def test_an_answer_that_is_not_taken_is_given_up(
    post: Open, shut: Callable[..., Callable[[], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "UNTAKEN_S_MAX", 0.3)
    made = post()
    reset = shut(made, 20)
    wait_until(lambda: reset() == 20, "all are given up")
    made.settled()
    assert made.lane.calls == 20
    assert made.call(b"x") == b"x"


def test_answers_that_are_not_taken_are_bounded(
    post: Open, shut: Callable[..., Callable[[], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "UNTAKEN_CALLS_MAX", 10)
    monkeypatch.setattr(bounds, "UNTAKEN_S_MIN", 0.0)
    made = post()
    reset = shut(made, 30)
    wait_until(lambda: reset() == 20, "all but the last ten are given up")
    assert made.lane.open_calls == 10
    # One on its way to a caller that takes it counts as well, for the moment.
    assert [made.call(b"%d" % n) for n in range(20)] == [b"%d" % n for n in range(20)]
    wait_until(lambda: made.lane.open_calls + reset() == 30, "nothing else is open")
    assert reset() <= 21


def test_a_call_without_a_request_is_told_so(post: Open) -> None:
    made = post()
    with pytest.raises(grpc.RpcError) as caught:
        made.channel.stream_unary(METHOD, None, None)(iter(()), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert made.call(b"x") == b"x"


def test_cancelled_calls_hurt_nobody(post: Open) -> None:
    made = post()
    made.echo.gate.clear()
    first = made.future(b"first")
    assert made.echo.deciding.wait(10)
    given_up = [made.future(b"gone %d" % n) for n in range(50)]
    kept = [made.future(b"kept %d" % n) for n in range(50)]
    wait_until(lambda: made.lane.statistics()["waiting"] == 101, "all wait")
    for call in given_up:
        call.cancel()
    made.echo.gate.set()
    assert [call.result() for call in kept] == [b"kept %d" % n for n in range(50)]
    assert first.result() == b"first"
    made.settled()


def test_many_callers_at_once_get_their_own_answers(post: Open) -> None:
    made = post()
    with ThreadPoolExecutor(16) as pool:
        sent = [b"%d" % n for n in range(3_000)]
        assert list(pool.map(made.call, sent)) == sent
    made.settled()
    sizes = {int(size): count for size, count in made.lane.statistics()["batches"].items()}
    assert sum(size * count for size, count in sizes.items()) == 3_000


def test_calls_leave_nothing_behind(post: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    made = post()
    seen: list[weakref.ref[Any]] = []

    class Seen(Arrival):
        __slots__ = ("__weakref__",)

        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            seen.append(weakref.ref(self))

    monkeypatch.setattr(hotlane, "Arrival", Seen)
    for _ in range(50):
        made.call(b"x")
        made.refused(b"bad")
    made.settled()
    made.call(b"the last event of the one before is let go with the next")
    gc.collect()
    assert len(seen) == 101
    wait_until(lambda: sum(one() is not None for one in seen) <= 1, "all are gone")


# --- defects -------------------------------------------------------------------------------------------------------
def test_a_defect_in_deciding_is_internal_and_passes(
    post: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = post()
    with monkeypatch.context() as patch:
        patch.setattr(made.echo, "decide", lambda owner, batch: 1 / 0)
        error = made.refused(b"x")
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "division" not in error.details()
    assert "ZeroDivisionError" in caplog.text
    assert made.call(b"x") == b"x"


@pytest.mark.parametrize("step", ["_look", "_hand_on"])
def test_a_defect_in_draining_leaves_the_lane_working(
    post: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    made = post()
    failed = threading.Event()

    def fail() -> None:
        if made.lane._read or step == "_look":
            failed.set()
            raise ZeroDivisionError("a defect")

    with monkeypatch.context() as patch:
        patch.setattr(made.lane, step, fail)
        if step == "_hand_on":
            assert made.refused(b"x").code() is grpc.StatusCode.INTERNAL
        else:
            assert made.call(b"x") == b"x"
        assert failed.wait(10)
        wait_until(lambda: "a defect" in caplog.text, "the log says so")
    assert made.call(b"x") == b"x"
    made.settled()


# --- stopping ------------------------------------------------------------------------------------------------------
def test_a_stop_answers_what_is_in_flight(post: Open) -> None:
    made = post()
    made.echo.gate.clear()
    calls = [made.future(b"%d" % n) for n in range(20)]
    wait_until(lambda: made.lane.statistics()["waiting"] == 20, "all wait")
    stopped = made.server.stop(20)
    assert not stopped.wait(0.2)
    made.echo.gate.set()
    assert [call.result() for call in calls] == [b"%d" % n for n in range(20)]
    assert stopped.wait(10)


def test_a_stop_without_grace_cuts_off_what_hangs(post: Open) -> None:
    made = post()
    made.echo.gate.clear()
    call = made.future(b"x")
    assert made.echo.deciding.wait(10)
    stopped = made.server.stop(0)
    with pytest.raises(grpc.RpcError):
        call.result()
    assert stopped.wait(10)
    made.echo.gate.set()


# --- the check before the start ------------------------------------------------------------------------------------
@pytest.fixture
def fresh_check() -> Iterator[None]:
    lane_check.find.cache_clear()
    yield
    lane_check.find.cache_clear()


@pytest.mark.usefixtures("fresh_check")
def test_the_check_finds_the_lane_in_order(caplog: pytest.LogCaptureFixture) -> None:
    assert lane_check.find() is Lane
    assert not caplog.records


class _Wrong(Lane):
    """Answers with something else."""

    def _reply(self, call: Arrival, message: bytes, now_s: float) -> None:
        super()._reply(call, message[1:], now_s)


class _Poor(Lane):
    """Refuses without details."""

    def _refuse(self, call: Arrival, status: Any) -> None:
        super()._refuse(call, status._replace(metadata=()))


class _Deaf(Lane):
    """Takes no calls."""

    def start(self) -> None:
        pass


class _Broken(Lane):
    """Finds grpcio changed."""

    def start(self) -> None:
        raise AttributeError("request_registered_call")


class _Leaky(Lane):
    """Forgets what has ended."""

    def _ended(self, call: Arrival) -> None:
        pass


@pytest.mark.usefixtures("fresh_check")
@pytest.mark.parametrize(
    ("lane", "reason"),
    [
        (_Wrong, "came back as"),
        (_Poor, "details"),
        (_Deaf, ""),
        (_Broken, "request_registered_call"),
        (_Leaky, "still open"),
    ],
)
def test_a_lane_that_does_not_work_is_left_out_loudly(
    house: House,
    lane: type[Lane],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(hotlane, "Lane", lane)
    monkeypatch.setattr(bounds, "LANE_CHECK_S_MAX", 1.0)
    assert lane_check.find() is None
    (record,) = (record for record in caplog.records if record.name == "server.lane_check")
    assert record.levelname == "WARNING"
    assert "ordinary handlers" in record.getMessage()
    assert reason in record.getMessage()
    server = Server(house.deployment, [], threads=1, look=lambda: None)
    assert set(server.statistics()) == {"throttle", "seals_refused"}
    server.stop(0)


def test_a_server_without_the_lane_says_nothing_of_batches(house: House) -> None:
    house.shown()
    assert house.server.statistics()["calls"] >= 2
    assert next(iter(house.server.statistics())) == "batches"
    server = Server(house.deployment, [], threads=1, look=lambda: None, lane=False)
    assert set(server.statistics()) == {"throttle", "seals_refused"}
    server.stop(0)


# --- what is left of a call ----------------------------------------------------------------------------------------
class _Failing(Echo):
    def decide(self, owner: int, batch: Sequence[Any]) -> list[Outcome]:
        if batch[0] == b"defect":
            raise ZeroDivisionError
        raise Unavailable("the store is away")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"good", grpc.StatusCode.UNAVAILABLE),
        (b"defect", grpc.StatusCode.INTERNAL),
        (b"bad", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_a_call_that_fails_is_over_at_once(post: Open, data: bytes, code: grpc.StatusCode) -> None:
    """A connection has a hundred streams: a call that some error's traceback kept would take one until garbage is looked for."""
    served = post(echo=_Failing(), server_options=[("grpc.max_concurrent_streams", 100)])
    gc.collect()
    gc.disable()
    try:
        for _ in range(250):
            error = served.refused(data)
            assert error.code() is code, error.details()
    finally:
        gc.enable()
