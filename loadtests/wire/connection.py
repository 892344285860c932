"""One HTTP/2 connection of a client of unary calls: the protocol, without any I/O.

Bytes that came in go into `receive`, bytes to send come out of `take_output`, calls that ended stand in the list that was given.
A call whose message fits into one frame and the peer's windows, which is nearly every one, costs five references to bytes
that were there before; all else (large messages, exhausted windows, too many streams) goes through `_waiting` and `_pump`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from loadtests.wire import frames, headers
from loadtests.wire.frames import Code, Setting, Type
from loadtests.wire.headers import Status

REPLENISH_BYTES: Final = 2**28
"""How much of our window is used before it is made whole again: an eighth, so that updates are rare and no peer ever waits."""
FRAME_BYTES_MAX: Final = 2**20
"""Of frames that we take."""
BODY_BYTES_MAX: Final = 64 * 2**20
"""Of one answer; a larger one is no answer of this service."""
BLOCK_BYTES_MAX: Final = 256 * 1024
"""Of one header block in several frames."""

REFUSALS_MAX: Final = 32
"""How often one call is sent again because the peer refused its stream (see `_on_refusal`)."""

_OF_RESET: Final = {
    Code.REFUSED_STREAM: headers.STATUS_UNAVAILABLE,
    Code.CANCEL: headers.STATUS_CANCELLED,
    Code.ENHANCE_YOUR_CALM: headers.STATUS_RESOURCE_EXHAUSTED,
}
"""gRPC's statuses for HTTP/2 errors; every other one is INTERNAL. Source: PROTOCOL-HTTP2.md, "Errors"."""


class Method(NamedTuple):
    """What all requests of one method have in common: the head of the HEADERS frame without its stream, and its payload."""

    head: bytes
    block: bytes


class Request(NamedTuple):
    """One request, ready to send but for its stream id."""

    head: bytes
    """Length, type and flags of the HEADERS frame."""
    middle: bytes
    """Its payload, and length, type and flags of the DATA frame."""
    body: bytes
    """Payload of the DATA frame."""
    block_bytes: int


class Done(NamedTuple):
    """A call that ended."""

    tag: Any
    """What the call was started with."""
    status: Status
    message: bytes
    """The answer; empty unless the status is OK."""
    at_ns: int
    """When its last bytes had been read, by the caller's clock."""


def method(
    path: str,
    authority: str = "pickgate",
    timeout_ms: int | None = None,
    metadata: Sequence[tuple[str, str]] = (),
) -> Method:
    """Prepare a method, as `headers.request_block`. Raises ValueError if its headers don't fit into one frame."""
    block = headers.request_block(path, authority, timeout_ms, metadata)
    if len(block) >= frames.FRAME_BYTES_DEFAULT:
        raise ValueError(f"the headers of {path[:60]!r} have {len(block)} bytes, more than one frame")
    return Method(_head(len(block), Type.HEADERS, frames.END_HEADERS), block)


def request(of: Method, message: bytes) -> Request:
    """Prepare a request from its serialised message."""
    body = frames.message_frame(message)
    return Request(of.head, of.block + _head(len(body), Type.DATA, frames.END_STREAM), body, len(of.block))


def _head(size: int, kind: Type, flags: int) -> bytes:
    """A frame's head up to its stream id. A size past 24 bits is of a message that is sent in parts and never uses it."""
    return frames.HEAD.pack((size & 0xFFFFFF) << 8 | kind, flags, 0)[:5]


_Call = tuple[Request, Any, int]
"""What was asked, its tag, and how often its stream was refused."""


@dataclass(slots=True)
class _Partial:
    """A request under way whose message is not yet sent whole."""

    stream_id: int
    rest: memoryview
    window: int


class Connection:
    """The client's side of one connection, its preface already waiting in the output.

    Args:
        done: where calls that ended are appended.
        blocks: meanings of response headers, shared by connections to the same server.
    """

    def __init__(self, done: list[Done], blocks: headers.Blocks | None = None) -> None:
        self._done = done
        self._blocks = headers.Blocks() if blocks is None else blocks
        self._out: list[bytes] = [
            frames.PREFACE,
            frames.settings(
                {
                    Setting.HEADER_TABLE_SIZE: 0,
                    Setting.ENABLE_PUSH: 0,
                    Setting.INITIAL_WINDOW_SIZE: frames.WINDOW_MAX,
                    Setting.MAX_FRAME_SIZE: FRAME_BYTES_MAX,
                }
            ),
            frames.window_update(0, frames.WINDOW_MAX - frames.WINDOW_DEFAULT),
        ]
        self._rest = b""
        self._received = 0
        self._calls: dict[int, _Call] = {}
        self._bodies: dict[int, bytes | bytearray] = {}
        self._waiting: deque[_Call] = deque()
        self._partial: _Partial | None = None
        self._next_id = 1
        self._window = frames.WINDOW_DEFAULT
        self._window_initial = frames.WINDOW_DEFAULT
        self._frame_max = frames.FRAME_BYTES_DEFAULT
        self._whole_max = min(self._window_initial, self._frame_max)
        self._streams_max = self._streams_told = frames.STREAM_ID_MAX
        self._table_shrunk = False
        self._refused = False
        """A stream was refused, and no call has ended since."""
        self._gathering: tuple[int, int, bytes] | None = None  # flags, stream and block so far
        self.draining = False
        """It takes no new calls (GOAWAY, or out of stream ids); those under way go on."""
        self.broken = ""
        """Why nothing more can come of it; "" while it works."""

    @property
    def open_calls(self) -> int:
        """Calls started and not ended, those that wait to be sent included."""
        return len(self._calls) + len(self._waiting)

    @property
    def room(self) -> int:
        """How many calls, if they are small, would be sent at once."""
        if self._waiting or self._refused or self.draining:
            return 0
        return max(0, self._streams_max - len(self._calls))

    # --- what goes out ---------------------------------------------------------------------------------------------
    def start(self, request: Request, tag: Any) -> None:
        """Begin a call; it is sent with the next output, or waits for the peer's windows and streams."""
        size = len(request.body)
        if (
            self._waiting
            or size > self._window
            or size > self._whole_max
            or len(self._calls) >= self._streams_max
            or self._partial is not None
            or self._table_shrunk
        ):
            self._waiting.append((request, tag, 0))
            self._pump()
            return
        stream_id = self._next_id
        self._next_id = stream_id + 2
        self._window -= size
        self._calls[stream_id] = (request, tag, 0)
        number = stream_id.to_bytes(4, "big")
        self._out += (request.head, number, request.middle, number, request.body)
        if stream_id >= frames.STREAM_ID_MAX - 2:
            self.draining = True

    def cancel(self, tag: Any) -> bool:
        """End a call by its tag; says whether there was one. It ends with CANCELLED, at 0 ns of the clock."""
        for number, call in enumerate(self._waiting):
            if call[1] == tag:
                del self._waiting[number]
                self._done.append(Done(tag, Status(headers.STATUS_CANCELLED, "cancelled here"), b"", 0))
                return True
        for stream_id, call in self._calls.items():
            if call[1] == tag:
                self._out.append(frames.reset(stream_id, Code.CANCEL))
                self._end(stream_id, Status(headers.STATUS_CANCELLED, "cancelled here"), 0)
                return True
        return False

    def take_output(self) -> bytes:
        """All bytes to send now."""
        if not self._out:
            return b""
        data = b"".join(self._out)
        self._out.clear()
        return data

    def take_waiting(self) -> list[tuple[Request, Any]]:
        """Calls of which nothing was sent, for another connection."""
        taken = [call[:2] for call in self._waiting]
        self._waiting.clear()
        return taken

    def give_up(self, is_overdue: Callable[[Any], bool]) -> list[Any]:
        """Forget calls of which nothing was sent, from the one that has waited longest on, while they are overdue; gives their tags."""
        tags = []
        while self._waiting and is_overdue(self._waiting[0][1]):
            tags.append(self._waiting.popleft()[1])
        return tags

    def lose(self, why: str, at_ns: int) -> None:
        """The connection is gone: every call that is open ends with UNAVAILABLE."""
        self.broken = self.broken or why
        status = Status(headers.STATUS_UNAVAILABLE, f"connection lost: {self.broken}")
        for stream_id in list(self._calls):
            self._end(stream_id, status, at_ns)
        for _, tag in self.take_waiting():
            self._done.append(Done(tag, status, b"", at_ns))

    def _pump(self) -> None:
        """Send of what waits as much as windows and streams allow, in order."""
        while self._partial is not None or self._waiting:
            if self._partial is None:
                self._refused = self._refused and bool(self._calls)
                if self.draining or len(self._calls) >= self._streams_max or self._refused:
                    return
                self._begin(self._waiting.popleft())
            if not self._send_part():
                return

    def _begin(self, call: _Call) -> None:
        stream_id = self._next_id
        self._next_id += 2
        self._calls[stream_id] = call
        request = call[0]
        block = request.middle[: request.block_bytes]
        if self._table_shrunk:
            # RFC 7541, section 4.2: the first block after it must say that our table has become smaller; it has 0 bytes.
            self._table_shrunk = False
            block = b"\x20" + block
        self._out.append(frames.frame(Type.HEADERS, frames.END_HEADERS, stream_id, block))
        self._partial = _Partial(stream_id, memoryview(request.body), self._window_initial)
        if stream_id >= frames.STREAM_ID_MAX - 2:
            self.draining = True

    def _send_part(self) -> bool:
        """Send of the partial request what fits; says whether it is sent whole."""
        part = self._partial
        assert part is not None
        while part.rest:
            size = min(len(part.rest), self._frame_max, self._window, part.window)
            if size <= 0:
                return False
            last = frames.END_STREAM if size == len(part.rest) else 0
            self._out.append(frames.frame(Type.DATA, last, part.stream_id, bytes(part.rest[:size])))
            part.rest = part.rest[size:]
            part.window -= size
            self._window -= size
        self._partial = None
        return True

    # --- what comes in ---------------------------------------------------------------------------------------------
    def receive(self, data: bytes, at_ns: int) -> None:
        """Take bytes of the peer, read at `at_ns`. A breach of the protocol sets `broken`."""
        try:
            self._receive(self._rest + data if self._rest else data, at_ns)
        except ValueError as error:
            self._out.append(
                frames.frame(Type.GOAWAY, 0, 0, bytes(4) + frames.NUMBER.pack(Code.PROTOCOL_ERROR))
            )
            self.broken = str(error)
            return
        if self._waiting or self._partial is not None:
            self._pump()

    def _receive(self, data: bytes, at_ns: int) -> None:
        unpack, known, bodies = frames.HEAD.unpack_from, self._blocks.known, self._bodies
        here, end = 0, len(data)
        while end - here >= frames.HEAD_BYTES:
            word, flags, stream_id = unpack(data, here)
            first = here + frames.HEAD_BYTES
            here = first + (word >> 8)
            if here > end:
                if word >> 8 > FRAME_BYTES_MAX:
                    raise ValueError(f"a frame of {word >> 8} bytes, more than the {FRAME_BYTES_MAX} allowed")
                here = first - frames.HEAD_BYTES
                break
            kind = word & 0xFF
            payload = data[first:here]
            if self._gathering is not None and kind != Type.CONTINUATION:
                raise ValueError("another frame within a header block")
            if kind == Type.HEADERS and flags & ~frames.END_STREAM == frames.END_HEADERS:
                # The usual one: looked up before anything is called.
                status = known[payload] if payload in known else self._blocks.read(payload)
                if status is not None or flags:
                    self._on_block(stream_id, status, flags & frames.END_STREAM, at_ns)
            elif kind == Type.DATA and not flags and stream_id not in bodies:
                self._received += here - first
                if stream_id in self._calls:
                    bodies[stream_id] = payload
            else:
                self._on_frame(kind, flags, stream_id & frames.STREAM_MASK, payload, at_ns)
        self._rest = data[here:]
        if self._received >= REPLENISH_BYTES:
            self._out.append(frames.window_update(0, self._received))
            self._received = 0

    def _on_block(self, stream_id: int, status: Status | None, ended: int, at_ns: int) -> None:
        """Headers of a response: before the message (no status), or at its end."""
        if stream_id not in self._calls:
            return
        if not ended:
            if status is not None:
                # A status in front of more is an answer all the same (a proxy's error page).
                self._out.append(frames.reset(stream_id, Code.CANCEL))
                self._end(stream_id, status, at_ns)
            return
        if self._partial is not None and self._partial.stream_id == stream_id:
            self._out.append(frames.reset(stream_id, Code.CANCEL))
        self._end(
            stream_id, status or Status(headers.STATUS_UNKNOWN, "the response ended without a status"), at_ns
        )

    def _end(self, stream_id: int, status: Status, at_ns: int) -> None:
        _, tag, _ = self._calls.pop(stream_id)
        self._refused = False
        body = self._bodies.pop(stream_id, b"")
        if self._partial is not None and self._partial.stream_id == stream_id:
            self._partial = None
        message = b""
        if not status.code:
            try:
                message = frames.message_of(bytes(body))
            except ValueError as error:
                status = Status(headers.STATUS_INTERNAL, f"status OK with a body that is {error}")
        self._done.append(Done(tag, status, message, at_ns))

    def _on_frame(self, kind: int, flags: int, stream_id: int, payload: bytes, at_ns: int) -> None:
        """Every frame but the two usual ones."""
        if kind == Type.DATA:
            self._on_data(flags, stream_id, payload, at_ns)
        elif kind == Type.HEADERS:
            self._gather(flags, stream_id, frames.unpadded(flags, payload), at_ns)
        elif kind == Type.CONTINUATION:
            if self._gathering is None or self._gathering[1] != stream_id:
                raise ValueError("a CONTINUATION frame that continues nothing")
            began, _, block = self._gathering
            self._gather(
                began & frames.END_STREAM | flags & frames.END_HEADERS, stream_id, block + payload, at_ns
            )
        elif kind == Type.SETTINGS:
            self._on_settings(flags, payload)
        elif kind == Type.WINDOW_UPDATE:
            self._on_window(stream_id, frames.NUMBER.unpack(_exactly(4, payload))[0] & frames.STREAM_MASK)
        elif kind == Type.PING:
            if not flags & frames.ACK:
                self._out.append(frames.frame(Type.PING, frames.ACK, 0, _exactly(8, payload)))
        elif kind == Type.RST_STREAM:
            self._on_reset(stream_id, frames.NUMBER.unpack(_exactly(4, payload))[0], at_ns)
        elif kind == Type.GOAWAY:
            self._on_goaway(payload, at_ns)
        elif kind == Type.PUSH_PROMISE:
            raise ValueError("a push, which was not allowed")
        # PRIORITY and types that are not known are ignored: RFC 9113, section 4.1.

    def _on_data(self, flags: int, stream_id: int, payload: bytes, at_ns: int) -> None:
        self._received += len(payload)
        if stream_id not in self._calls:
            return
        piece = frames.unpadded(flags & ~frames.PRIORITY, payload)
        body = self._bodies.get(stream_id)
        if body is None:
            self._bodies[stream_id] = piece
        else:
            if not isinstance(body, bytearray):
                body = self._bodies[stream_id] = bytearray(body)
            body += piece
            if len(body) > BODY_BYTES_MAX:
                self._out.append(frames.reset(stream_id, Code.CANCEL))
                status = Status(headers.STATUS_INTERNAL, f"an answer of more than {BODY_BYTES_MAX} bytes")
                self._end(stream_id, status, at_ns)
                return
        if flags & frames.END_STREAM:
            self._on_block(stream_id, None, frames.END_STREAM, at_ns)

    def _gather(self, flags: int, stream_id: int, block: bytes, at_ns: int) -> None:
        """A header block, perhaps not yet whole."""
        if len(block) > BLOCK_BYTES_MAX:
            raise ValueError(f"a header block of more than {BLOCK_BYTES_MAX} bytes")
        if not flags & frames.END_HEADERS:
            self._gathering = (flags, stream_id, block)
            return
        self._gathering = None
        known = self._blocks.known
        status = known[block] if block in known else self._blocks.read(block)
        self._on_block(stream_id, status, flags & frames.END_STREAM, at_ns)

    def _on_settings(self, flags: int, payload: bytes) -> None:
        if flags & frames.ACK:
            return
        for name, value in frames.read_settings(payload):
            if name == Setting.MAX_CONCURRENT_STREAMS:
                self._streams_max = self._streams_told = value
            elif name == Setting.INITIAL_WINDOW_SIZE:
                if value > frames.WINDOW_MAX:
                    raise ValueError(f"an initial window of {value}")
                if self._partial is not None:
                    self._partial.window += value - self._window_initial
                self._window_initial = value
            elif name == Setting.MAX_FRAME_SIZE:
                if not frames.FRAME_BYTES_DEFAULT <= value < 2**24:
                    raise ValueError(f"a largest frame of {value}")
                self._frame_max = value
            elif name == Setting.HEADER_TABLE_SIZE and value < 4096:
                self._table_shrunk = True
        self._whole_max = min(self._window_initial, self._frame_max)
        self._out.append(frames.frame(Type.SETTINGS, frames.ACK, 0))

    def _on_window(self, stream_id: int, increment: int) -> None:
        if stream_id == 0:
            if not increment or self._window + increment > frames.WINDOW_MAX:
                raise ValueError(f"a window of {self._window} made larger by {increment}")
            self._window += increment
        elif self._partial is not None and self._partial.stream_id == stream_id:
            self._partial.window += increment

    def _on_reset(self, stream_id: int, code: int, at_ns: int) -> None:
        if stream_id not in self._calls:
            return
        if code == Code.REFUSED_STREAM and self._calls[stream_id][2] < REFUSALS_MAX and not self.draining:
            self._on_refusal(stream_id)
            return
        status = _OF_RESET.get(code, headers.STATUS_INTERNAL)  # type: ignore[call-overload]  # an IntEnum is an int
        self._end(stream_id, Status(status, f"the stream was reset with HTTP/2 error {code}"), at_ns)

    def _on_refusal(self, stream_id: int) -> None:
        """Send a call again: the peer promises that nothing was done, so every gRPC client does.

        It comes up when calls follow answers so fast that the peer still counts answered streams as open. So from now on
        fewer are open at a time, though never less than half of what the peer announced; and this one waits for its turn, and until a call has
        ended: sent at once, it was refused as often as it may be within a millisecond.
        """
        request, tag, refusals = self._calls.pop(stream_id)
        if self._partial is not None and self._partial.stream_id == stream_id:
            self._partial = None
        self._streams_max = min(self._streams_max, max(1, self._streams_told // 2, len(self._calls)))
        self._waiting.append((request, tag, refusals + 1))
        self._refused = True

    def _on_goaway(self, payload: bytes, at_ns: int) -> None:
        if len(payload) < 8:
            raise ValueError("a GOAWAY frame that is too short")
        last, code = (frames.NUMBER.unpack_from(payload, at)[0] for at in (0, 4))
        self.draining = True
        status = Status(headers.STATUS_UNAVAILABLE, f"not taken up before GOAWAY, HTTP/2 error {code}")
        for stream_id in [number for number in self._calls if number > last & frames.STREAM_MASK]:
            self._end(stream_id, status, at_ns)


def _exactly(size: int, payload: bytes) -> bytes:
    if len(payload) != size:
        raise ValueError(f"a frame of {len(payload)} bytes that should have {size}")
    return payload
