"""The protocol against hand-made frames of a peer: what grpcio's server never sends, or not when a test wants it."""

from __future__ import annotations

import hpack
import pytest

from loadtests.wire import connection, frames
from loadtests.wire.connection import Connection, Done
from loadtests.wire.frames import Code, Setting, Type, frame

METHOD = connection.method("/a.B/C")
BIG = connection.request(METHOD, b"m" * 100_000)


def request(message: bytes = b"hello") -> connection.Request:
    return connection.request(METHOD, message)


def block(*fields: tuple[str, str]) -> bytes:
    encoder = hpack.Encoder()
    return bytes(encoder.encode([hpack.NeverIndexedHeaderTuple(*field) for field in fields]))


def read(decoder: hpack.Decoder, data: bytes) -> dict[str, str]:
    return {str(name): str(value) for name, value in decoder.decode(data)}


HEADERS = block((":status", "200"), ("content-type", "application/grpc"))
TRAILERS = block(("grpc-status", "0"))


def response(stream_id: int, message: bytes = b"hi", trailers: bytes = TRAILERS) -> bytes:
    return (
        frame(Type.HEADERS, frames.END_HEADERS, stream_id, HEADERS)
        + frame(Type.DATA, 0, stream_id, frames.message_frame(message))
        + frame(Type.HEADERS, frames.END_HEADERS | frames.END_STREAM, stream_id, trailers)
    )


class Side:
    """A connection with its ended calls, and the frames it sent."""

    def __init__(self) -> None:
        self.done: list[Done] = []
        self.connection = Connection(self.done)
        out = self.connection.take_output()
        assert out.startswith(frames.PREFACE)
        self.preface_frames = list(parse(out[len(frames.PREFACE) :]))

    def sent(self) -> list[tuple[int, int, int, bytes]]:
        return list(parse(self.connection.take_output()))

    def take(self, data: bytes) -> None:
        self.connection.receive(data, 5)

    def only(self) -> Done:
        assert len(self.done) == 1
        return self.done.pop()


def parse(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """Frames as type, flags, stream, payload."""
    found = []
    while data:
        word, flags, stream_id = frames.HEAD.unpack_from(data)
        size = frames.HEAD_BYTES + (word >> 8)
        assert len(data) >= size
        found.append((word & 0xFF, flags, stream_id, data[9:size]))
        data = data[size:]
    return found


@pytest.fixture
def side() -> Side:
    return Side()


def test_the_preface_announces_no_table_no_push_and_large_windows(side: Side) -> None:
    (_, _, _, settings), (kind, _, stream_id, update) = side.preface_frames
    assert dict(frames.read_settings(settings)) == {
        Setting.HEADER_TABLE_SIZE: 0,
        Setting.ENABLE_PUSH: 0,
        Setting.INITIAL_WINDOW_SIZE: 2**31 - 1,
        Setting.MAX_FRAME_SIZE: connection.FRAME_BYTES_MAX,
    }
    assert (kind, stream_id, int.from_bytes(update, "big")) == (Type.WINDOW_UPDATE, 0, 2**31 - 1 - 65_535)


def test_a_request_on_the_wire_is_what_a_server_reads(side: Side) -> None:
    side.connection.start(request(), "tag")
    side.connection.start(request(b""), "tag")
    first, body, second, empty = side.sent()
    decoder = hpack.Decoder()
    for kind, flags, stream_id, payload in (first, second):
        assert (kind, flags, stream_id) == (Type.HEADERS, frames.END_HEADERS, 1 if payload is first[3] else 3)
        fields = read(decoder, payload)
        assert fields[":path"] == "/a.B/C"
        assert fields[":authority"] == "pickgate"
        assert (fields["te"], fields["content-type"]) == ("trailers", "application/grpc")
    assert body == (Type.DATA, frames.END_STREAM, 1, b"\0\0\0\0\5hello")
    assert empty == (Type.DATA, frames.END_STREAM, 3, b"\0\0\0\0\0")


@pytest.mark.parametrize("size", [1, 2, 9, 10, 1_000])
def test_answers_in_pieces_of_any_size(side: Side, size: int) -> None:
    for n in range(3):
        side.connection.start(request(), n)
    data = b"".join(response(1 + 2 * n, bytes([n]) * n) for n in (2, 0, 1))
    for start in range(0, len(data), size):
        side.take(data[start : start + size])
    assert [(done.tag, done.message, done.at_ns) for done in side.done] == [
        (2, b"\2\2", 5),
        (0, b"", 5),
        (1, b"\1", 5),
    ]


def test_a_message_in_several_frames_padded_and_empty_ones_too(side: Side) -> None:
    side.connection.start(request(), 1)
    body = frames.message_frame(b"abcdef")
    side.take(
        frame(
            Type.HEADERS,
            frames.END_HEADERS | frames.PADDED | frames.PRIORITY,
            1,
            b"\2" + b"\0" * 5 + HEADERS + b"\0\0",
        )
    )
    side.take(
        frame(Type.DATA, 0, 1, body[:3])
        + frame(Type.DATA, 0, 1)
        + frame(Type.DATA, frames.PADDED, 1, b"\3" + body[3:7] + b"\0\0\0")
    )
    side.take(
        frame(Type.DATA, 0, 1, body[7:])
        + frame(Type.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, TRAILERS)
    )
    assert side.only().message == b"abcdef"


def test_a_header_block_in_several_frames(side: Side) -> None:
    side.connection.start(request(), 1)
    trailers = block(("grpc-status", "5"), ("grpc-message", "not%20there"))
    side.take(
        frame(Type.HEADERS, frames.END_STREAM, 1, trailers[:4])
        + frame(Type.CONTINUATION, 0, 1, trailers[4:9])
    )
    side.take(frame(Type.CONTINUATION, frames.END_HEADERS, 1, trailers[9:]))
    status = side.only().status
    assert (status.code, status.message) == (5, "not there")


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"", "no message"),
        (b"\1\0\0\0\1x", "compressed"),
        (b"\0\0\0\0\2x", "not exactly one"),
        (frames.message_frame(b"x") * 2, "not exactly one"),
    ],
)
def test_ok_without_exactly_one_message_is_an_error(side: Side, body: bytes, part: str) -> None:
    side.connection.start(request(), 1)
    side.take(
        frame(Type.DATA, 0, 1, body)
        + frame(Type.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, TRAILERS)
    )
    done = side.only()
    assert (done.status.code, done.message) == (13, b"")
    assert part in done.status.message


def test_an_end_without_a_status_and_an_http_error(side: Side) -> None:
    for n in range(3):
        side.connection.start(request(), n)
    side.take(frame(Type.DATA, frames.END_STREAM, 1, frames.message_frame(b"x")))
    assert side.only().status.code == 2
    side.take(frame(Type.HEADERS, frames.END_HEADERS | frames.END_STREAM, 3, HEADERS))
    assert side.only().status.code == 2
    side.take(frame(Type.HEADERS, frames.END_HEADERS, 5, block((":status", "503"))))
    assert side.only().status.code == 14
    assert (Type.RST_STREAM, 0, 5, frames.NUMBER.pack(Code.CANCEL)) in side.sent()


@pytest.mark.parametrize(("error", "status"), [(8, 1), (11, 8), (2, 13), (99, 13)])
def test_a_reset_stream_ends_its_call_alone(side: Side, error: int, status: int) -> None:
    side.connection.start(request(), "reset")
    side.connection.start(request(), "other")
    side.take(frame(Type.RST_STREAM, 0, 1, frames.NUMBER.pack(error)))
    assert side.only().status.code == status
    side.take(response(1) + response(3))  # what is late for the first one is passed over
    assert side.only().tag == "other"


def test_a_refused_stream_is_tried_again_and_not_for_ever(side: Side) -> None:
    side.connection.start(request(), "refused")
    for stream_id in range(1, 2 * connection.REFUSALS_MAX + 1, 2):
        assert [item[2] for item in side.sent() if item[0] == Type.HEADERS] == [stream_id]
        side.take(frame(Type.RST_STREAM, 0, stream_id, frames.NUMBER.pack(Code.REFUSED_STREAM)))
        assert side.done == []
    side.take(
        frame(Type.RST_STREAM, 0, 2 * connection.REFUSALS_MAX + 1, frames.NUMBER.pack(Code.REFUSED_STREAM))
    )
    assert side.only().status.code == 14


def test_after_a_refusal_fewer_streams_are_open(side: Side) -> None:
    side.take(frames.settings({Setting.MAX_CONCURRENT_STREAMS: 4}))
    for n in range(6):
        side.connection.start(request(), n)
    side.sent()
    side.take(frame(Type.RST_STREAM, 0, 7, frames.NUMBER.pack(Code.REFUSED_STREAM)))
    assert side.sent() == []  # three are open, which is the bound now
    side.take(response(1))
    assert {stream for _, _, stream, _ in side.sent()} == {9}
    for stream_id in (3, 5, 9):
        side.take(frame(Type.RST_STREAM, 0, stream_id, frames.NUMBER.pack(Code.REFUSED_STREAM)))
    assert {stream for _, _, stream, _ in side.sent()} == {11, 13}  # half of four is the least
    assert side.connection.open_calls == 5


def test_a_refused_call_waits_until_another_has_ended(side: Side) -> None:
    side.take(frames.settings({Setting.MAX_CONCURRENT_STREAMS: 3}))
    for n in range(3):
        side.connection.start(request(), n)
    side.sent()
    side.take(frame(Type.RST_STREAM, 0, 5, frames.NUMBER.pack(Code.REFUSED_STREAM)))
    side.connection.start(request(), 3)
    assert side.sent() == []
    side.take(response(1))
    assert {stream for _, _, stream, _ in side.sent()} == {7}
    side.take(response(3) + response(7))
    assert {stream for _, _, stream, _ in side.sent()} == {9}
    assert [done.tag for done in side.done] == [0, 1, 2]


def test_room_is_what_would_leave_at_once(side: Side) -> None:
    side.take(frames.settings({Setting.MAX_CONCURRENT_STREAMS: 3}))
    assert side.connection.room == 3
    for n in range(2):
        side.connection.start(request(), n)
    assert side.connection.room == 1
    for n in range(2, 5):
        side.connection.start(request(), n)
    assert side.connection.room == 0
    side.sent()
    side.take(response(1) + response(3))  # those that waited have left
    assert side.connection.room == 0
    side.take(response(5))
    assert side.connection.room == 1
    side.take(frame(Type.RST_STREAM, 0, 7, frames.NUMBER.pack(Code.REFUSED_STREAM)))
    assert side.connection.room == 0  # until another call has ended
    side.take(frames.settings({Setting.MAX_CONCURRENT_STREAMS: 0}))
    assert side.connection.room == 0


def test_calls_that_wait_for_a_stream_can_be_given_up(side: Side) -> None:
    side.take(frames.settings({Setting.MAX_CONCURRENT_STREAMS: 2}))
    for n in range(6):
        side.connection.start(request(), n)
    side.sent()
    assert side.connection.give_up(lambda tag: tag < 4) == [2, 3]
    assert side.connection.give_up(lambda tag: tag < 2) == []
    assert side.connection.open_calls == 4
    side.take(response(1) + response(3))
    assert {stream for _, _, stream, _ in side.sent()} == {5, 7}
    assert [done.tag for done in side.done] == [0, 1]


def test_goaway_ends_what_was_not_taken_up(side: Side) -> None:
    for n in range(3):
        side.connection.start(request(), n)
    side.take(frame(Type.GOAWAY, 0, 0, frames.NUMBER.pack(3) + frames.NUMBER.pack(0) + b"bye"))
    assert side.connection.draining
    assert (side.only().tag, side.connection.open_calls) == (2, 2)
    side.take(response(1) + response(3))
    assert [done.status.code for done in side.done] == [0, 0]


def test_a_lost_connection_ends_all(side: Side) -> None:
    side.connection.start(request(), 1)
    side.connection.start(BIG, 2)
    side.connection.start(request(), 3)
    side.connection.lose("cut", 9)
    assert [(done.tag, done.status.code, done.at_ns) for done in side.done] == [
        (1, 14, 9),
        (2, 14, 9),
        (3, 14, 9),
    ]
    assert side.connection.open_calls == 0


def test_settings_and_pings_are_answered(side: Side) -> None:
    side.take(frames.settings({Setting.MAX_CONCURRENT_STREAMS: 1}) + frame(Type.SETTINGS, frames.ACK, 0))
    side.take(frame(Type.PING, 0, 0, b"12345678") + frame(Type.PING, frames.ACK, 0, b"87654321"))
    side.take(frame(Type.PRIORITY, 0, 3, bytes(5)) + frame(250, 0, 0, b"unknown"))  # type: ignore[arg-type]
    assert side.sent() == [(Type.SETTINGS, frames.ACK, 0, b""), (Type.PING, frames.ACK, 0, b"12345678")]


def test_as_many_streams_as_the_peer_allows(side: Side) -> None:
    side.take(frames.settings({Setting.MAX_CONCURRENT_STREAMS: 2}))
    side.sent()
    for n in range(4):
        side.connection.start(request(), n)
    assert [stream for _, _, stream, _ in side.sent()] == [1, 1, 3, 3]
    side.take(response(3))
    assert [stream for _, _, stream, _ in side.sent()] == [5, 5]
    side.take(response(1) + response(5))
    assert [stream for _, _, stream, _ in side.sent()] == [7, 7]


def test_windows_of_the_peer_are_honoured(side: Side) -> None:
    side.take(frames.settings({Setting.INITIAL_WINDOW_SIZE: 20_000, Setting.MAX_FRAME_SIZE: 30_000}))
    side.sent()
    side.connection.start(BIG, 1)
    side.connection.start(request(), 2)
    first, *parts = side.sent()
    assert first[0] == Type.HEADERS
    assert [len(part[3]) for part in parts] == [20_000]
    side.take(frames.window_update(1, 40_000))
    assert [len(part[3]) for part in side.sent()] == [30_000, 10_000]
    side.take(
        frames.settings({Setting.INITIAL_WINDOW_SIZE: 60_005})
    )  # the difference counts for open streams
    assert [len(part[3]) for part in side.sent()] == [
        0,
        5_535,
    ]  # the answer to SETTINGS; then the connection's window is used up
    side.take(frames.window_update(0, 100_000))
    # 65,535 bytes are out; 34,470 are left, the stream's window holds them.
    last = side.sent()
    assert [(kind, flags, stream) for kind, flags, stream, _ in last] == [
        (Type.DATA, 0, 1),
        (Type.DATA, frames.END_STREAM, 1),
        (Type.HEADERS, frames.END_HEADERS, 3),
        (Type.DATA, frames.END_STREAM, 3),
    ]
    assert sum(len(part[3]) for part in last[:2]) == 100_005 - 65_535


def test_our_window_is_made_whole_before_it_is_used_up(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "REPLENISH_BYTES", 1_000)
    side.connection.start(request(), 1)
    side.take(frame(Type.DATA, 0, 1, frames.message_frame(b"x" * 500)))
    assert side.sent()[2:] == []
    side.take(frame(Type.DATA, 0, 99, b"y" * 600))  # of no call, but it counts
    assert side.sent() == [(Type.WINDOW_UPDATE, 0, 0, frames.NUMBER.pack(1_105))]


def test_an_early_answer_ends_a_request_half_sent(side: Side) -> None:
    side.connection.start(BIG, 1)
    side.sent()
    side.take(frame(Type.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, block(("grpc-status", "8"))))
    assert side.only().status.code == 8
    assert [item[0] for item in side.sent()] == [Type.RST_STREAM]
    side.take(frames.window_update(0, 2**20))
    side.connection.start(request(), 2)
    assert [stream for _, _, stream, _ in side.sent()] == [3, 3]


def test_a_smaller_table_of_the_peer_is_acknowledged_in_the_next_block(side: Side) -> None:
    side.take(frames.settings({Setting.HEADER_TABLE_SIZE: 0}))
    side.sent()
    side.connection.start(request(), 1)
    side.connection.start(request(), 2)
    first, _, second, _ = side.sent()
    decoder = hpack.Decoder()
    decoder.max_allowed_table_size = 0
    assert read(decoder, first[3])[":path"] == read(decoder, second[3])[":path"] == "/a.B/C"
    assert len(first[3]) == len(second[3]) + 1


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (frame(Type.PUSH_PROMISE, 0, 1, bytes(8)), "push"),
        (frame(Type.CONTINUATION, 0, 1, b""), "continues nothing"),
        (frame(Type.HEADERS, 0, 1, HEADERS) + frame(Type.PING, 0, 0, bytes(8)), "within a header block"),
        (frame(Type.HEADERS, frames.END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff\xff"), "can't be decoded"),
        (frame(Type.HEADERS, frames.END_HEADERS, 1, b"\xbe"), "can't be decoded"),  # an entry of the table that we refused
        (frame(Type.SETTINGS, 0, 0, b"x"), "multiple of 6"),
        (frame(Type.PING, 0, 0, b"x"), "1 bytes that should have 8"),
        (frame(Type.GOAWAY, 0, 0, b"x"), "GOAWAY"),
        (frame(Type.WINDOW_UPDATE, 0, 0, bytes(4)), "window"),
        (frames.window_update(0, 2**31 - 1), "window"),
        (frame(Type.DATA, frames.PADDED, 1, b"\x09abc"), "padding"),
        (frames.HEAD.pack((connection.FRAME_BYTES_MAX + 1) << 8, 0, 1), "more than the"),
    ],
)  # fmt: skip
def test_a_breach_of_the_protocol_breaks_the_connection(side: Side, data: bytes, part: str) -> None:
    side.connection.start(request(), 1)
    side.take(data)
    assert part in side.connection.broken
    assert side.sent()[-1][0] == Type.GOAWAY


def test_a_cancelled_call_that_waits_is_never_sent(side: Side) -> None:
    side.take(frames.settings({Setting.MAX_CONCURRENT_STREAMS: 1}))
    side.connection.start(request(), 1)
    side.connection.start(request(), 2)
    side.sent()
    assert side.connection.cancel(2)
    assert side.only().status.code == 1
    side.take(response(1))
    assert side.sent() == []
