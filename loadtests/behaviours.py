"""Callers who mean ill or are broken, one kind after the other: a process of its own beside a load of honest ones.

    python -m loadtests.behaviours TARGET

It reads orders from standard input, one line of JSON each, and answers with one line when it has behaved so for as long as it was
told: what it did, and what came back. It is no client: what it sends are bytes that no client would send, or not in that way.
"""

from __future__ import annotations

import base64
import json
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import hpack

from loadtests import bounds
from loadtests.runs import status_name
from loadtests.wire import frames, headers, pool
from loadtests.wire.connection import Request, method
from loadtests.wire.frames import Code, Setting, Type, frame

INSPECT: Final = "/pickgate.v1.RedemptionService/Inspect"
REDEEM: Final = "/pickgate.v1.RedemptionService/Redeem"
RENDER: Final = "/pickgate.v1.CodeService/Render"

TICK_S: Final = 0.005
READ_BYTES: Final = 2**18
AFTERWARDS_S: Final = 0.3
"""How long what comes back is still listened to at the end."""
_ERRORS: Final = (Type.GOAWAY, Type.RST_STREAM)
_SETTINGS_TAKEN: Final = frame(Type.SETTINGS, frames.ACK, 0)


def opening(window: int = frames.WINDOW_MAX) -> bytes:
    """What a client says first; `window` is how much of each answer it will take."""
    told = {
        Setting.HEADER_TABLE_SIZE: 0,  # so that each block of headers can be read alone
        Setting.ENABLE_PUSH: 0,
        Setting.INITIAL_WINDOW_SIZE: window,
    }
    more = frames.window_update(0, frames.WINDOW_MAX - frames.WINDOW_DEFAULT)
    return frames.PREFACE + frames.settings(told) + more


class Peer:
    """One connection that says what it is told to, and counts what comes back.

    Args:
        scene: where is called, and what is counted.
        first: what it says at once.
        little: its own side takes hardly anything that is not read.
    """

    def __init__(self, scene: Scene, first: bytes = b"", *, little: bool = False) -> None:
        self._scene = scene
        self._socket = pool.connect(scene.target)
        if little:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        self._unsent = b""
        self._heard = b""
        self._next_id = 1
        self.open = True
        scene.peers.append(self)
        scene.did["connections"] += 1
        self.send(first)

    @property
    def stuck(self) -> bool:
        """Whether the server does not take what has been said already."""
        return bool(self._unsent)

    def stream(self) -> int:
        """The next stream's id."""
        number, self._next_id = self._next_id, self._next_id + 2
        return number

    def send(self, data: bytes) -> None:
        """Say something, as soon as the server takes it."""
        self._unsent += data
        if self.open and self._unsent:
            try:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
            except BlockingIOError:
                pass
            except OSError:
                self._lost()

    def hear(self) -> None:
        """Take what has come back."""
        self.send(b"")
        while self.open:
            try:
                data = self._socket.recv(READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lost()
                return
            self._read(self._heard + data)

    def close(self) -> None:
        """Hang up."""
        if self.open:
            self._scene.told["left open"] += 1
        self.open = False
        self._socket.close()

    def _lost(self) -> None:
        self.open = False
        self._socket.close()
        self._scene.told["closed"] += 1

    def _read(self, data: bytes) -> None:
        at = 0
        while len(data) - at >= frames.HEAD_BYTES:
            word, flags, _ = frames.HEAD.unpack_from(data, at)
            first = at + frames.HEAD_BYTES
            if first + (word >> 8) > len(data):
                break
            at = first + (word >> 8)
            if word & 0xFF == Type.SETTINGS and not flags & frames.ACK:
                # Until then the server takes a hundred streams from us altogether.
                self.send(_SETTINGS_TAKEN)
            self._scene.hear(word & 0xFF, flags, data[first:at])
        self._heard = data[at:]


@dataclass
class Scene:
    """One behaviour's time: whom it calls, how long, what it has to send, and what is counted."""

    target: str
    seconds: float
    redeems: Sequence[bytes] = ()
    """Good requests, for calls that are cancelled."""
    inspect: bytes = b""
    render: bytes = b""
    render_long: bytes = b""
    """Good requests that may repeat; the last one's answer is the longest there is."""
    seed: int = 1
    did: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)
    peers: list[Peer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self._blocks = headers.Blocks()

    @property
    def share(self) -> float:
        """Of the whole, that a shorter run does."""
        return min(1.0, self.seconds / bounds.HOSTILE_SECONDS)

    def some(self, count: int) -> int:
        """Of so many, those of this run."""
        return max(2, int(count * self.share))

    def ticks(self, per_s: float, seconds: float | None = None) -> Iterator[int]:
        """Come round every TICK_S until the time is over, with how many are due."""
        began_s, given = time.monotonic(), 0
        lasts_s = self.seconds if seconds is None else seconds
        while (passed_s := time.monotonic() - began_s) < lasts_s:
            due = int(passed_s * per_s) - given
            given += due
            yield due
            time.sleep(TICK_S)

    def listen(self) -> None:
        """Hear all."""
        for peer in self.peers:
            if peer.open:
                peer.hear()

    def end(self) -> None:
        """Hear the last, and hang up."""
        for _ in self.ticks(0, min(AFTERWARDS_S, self.seconds)):
            self.listen()
        for peer in self.peers:
            peer.close()

    def hear(self, kind: int, flags: int, payload: bytes) -> None:
        """Count one frame of the server."""
        if kind in _ERRORS and len(payload) >= 4:
            number = frames.NUMBER.unpack_from(payload, 4 if kind == Type.GOAWAY else 0)[0]
            self.told[f"{Type(kind).name} {_code_name(number)}"] += 1
        elif kind == Type.PING and flags & frames.ACK:
            self.told["PING answered"] += 1
        elif kind == Type.HEADERS and flags & frames.END_STREAM:
            status = self._blocks.known.get(payload) or self._blocks.read(payload)
            if status is not None:
                self.told[status_name(status.code)] += 1


def _code_name(number: int) -> str:
    try:
        return Code(number).name
    except ValueError:
        return f"error {number}"


def block(path: str, timeout: str = "", more: Mapping[str, str] | None = None) -> bytes:
    """The block of a request's headers; `timeout` as gRPC writes it, not only what a client would."""
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "pickgate"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *([("grpc-timeout", timeout)] if timeout else []),
        *(more or {}).items(),
    ]
    # Never indexed: the same bytes each time.
    made = hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(*one) for one in fields], huffman=False)
    return bytes(made)


def headers_of(stream: int, of: bytes) -> bytes:
    """The HEADERS frame of a call whose request is still to come."""
    return frame(Type.HEADERS, frames.END_HEADERS, stream, of)


def call(stream: int, of: bytes, message: bytes) -> bytes:
    """A whole call."""
    return headers_of(stream, of) + frame(Type.DATA, frames.END_STREAM, stream, frames.message_frame(message))


# --- the behaviours -------------------------------------------------------------------------------------------------
def slow_requests(scene: Scene) -> None:
    """Everything byte by byte, a few a second: the greeting, the headers, the message."""
    head, body = headers_of(1, block(INSPECT)), frames.message_frame(scene.inspect)
    first = head + frames.HEAD.pack(len(body) << 8 | Type.DATA, frames.END_STREAM, 1)
    starts = ((b"", opening() + first + body), (opening(), first + body), (opening() + first, body))
    rests = []
    for said, rest in starts:
        rests += [(Peer(scene, said), rest) for _ in range(scene.some(bounds.HOSTILE_PEERS))]
    at = 0
    for due in scene.ticks(bounds.HOSTILE_SLOW_BYTES_PER_S):
        for peer, rest in rests:
            if peer.open:
                peer.send(rest[at : at + due])
                scene.did["bytes"] += len(rest[at : at + due])
        at += due
        scene.listen()


def unread_answers(scene: Scene) -> None:
    """Answers asked for and not taken: by a window of nothing, or, long ones, by not reading at all."""
    of = block(RENDER)
    peers = scene.some(bounds.HOSTILE_PEERS)
    shut = [Peer(scene, opening(window=0)) for _ in range(peers)]
    deaf = [Peer(scene, opening() + _SETTINGS_TAKEN, little=True) for _ in range(peers)]
    most = len(shut) * bounds.HOSTILE_STREAMS
    for due in scene.ticks(bounds.HOSTILE_CALLS_PER_S):
        for _ in range(due):
            number = scene.did["without a window"]
            if number < most:
                peer = shut[number % len(shut)]
                peer.send(call(peer.stream(), of, scene.render))
                scene.did["without a window"] += 1
            # A fifth of them: these are long.
            peer = deaf[scene.did["not read"] % len(deaf)]
            if number % 5 == 0 and peer.open and not peer.stuck:
                peer.send(call(peer.stream(), of, scene.render_long))
                scene.did["not read"] += 1
        for peer in shut:
            peer.hear()


def half_open(scene: Scene) -> None:
    """Connections and calls that are begun, and then silence, as of a peer whose line was cut."""
    of = block(INSPECT)
    for number in range(10 * scene.some(bounds.HOSTILE_PEERS)):
        peer = Peer(scene, b"" if number % 2 else opening())
        if number % 10 == 0:
            for _ in range(bounds.HOSTILE_STREAMS):
                peer.send(headers_of(peer.stream(), of))
                scene.did["calls without a request"] += 1
    for _ in scene.ticks(0):
        scene.listen()


def cancelled_calls(scene: Scene) -> None:
    """Good redemptions, cancelled: at once, or a moment after. The same requests are sent again later, by honest callers."""
    of = block(REDEEM)
    peers = [Peer(scene, opening()) for _ in range(4)]
    late: list[tuple[Peer, bytes]] = []
    left = iter(scene.redeems)
    for due in scene.ticks(len(scene.redeems) / (0.8 * scene.seconds)):
        for peer, reset in late:
            peer.send(reset)
        late.clear()
        for _, message in zip(range(due), left, strict=False):
            peer = peers[scene.did["cancelled"] % len(peers)]
            stream = peer.stream()
            reset = frames.reset(stream, Code.CANCEL)
            peer.send(call(stream, of, message))
            if scene.did["cancelled"] % 2:
                late.append((peer, reset))
            else:
                peer.send(reset)
            scene.did["cancelled"] += 1
        scene.listen()


def expired_deadlines(scene: Scene) -> None:
    """Calls whose time is over when they come."""
    blocks = [block(INSPECT, timeout) for timeout in ("1n", "1u", "0m")]
    peer = Peer(scene, opening())
    for due in scene.ticks(bounds.HOSTILE_CALLS_PER_S):
        for _ in range(due):
            if not peer.open:
                peer = Peer(scene, opening())
            peer.send(call(peer.stream(), blocks[scene.did["calls"] % len(blocks)], scene.inspect))
            scene.did["calls"] += 1
        scene.listen()


def oversized_messages(scene: Scene) -> None:
    """Messages past every bound, and frames of messages that lie about their length, or are compressed by no known way."""
    of, little = method(INSPECT), scene.inspect
    length = frames.NUMBER.pack
    bodies = {
        "1 MiB": frames.message_frame(bytes(2**20)),
        "8 MiB": frames.message_frame(bytes(2**23)),
        "says 4 GiB": b"\0" + length(2**32 - 1) + little,
        "says more than there is": b"\0" + length(len(little) + 900) + little,
        "says less than there is": b"\0" + length(10) + little,
        "two messages": 2 * frames.message_frame(little),
        "compressed": b"\1" + length(len(little)) + little,
        "flagged otherwise": b"\x7f" + length(len(little)) + little,
        "half a length": b"\0\0",
        "nothing": b"",
    }
    kinds = list(bodies)
    with pool.Pool(scene.target, len(kinds)) as lines:
        scene.did["connections"] += len(kinds)

        def ask(number: int) -> None:
            kind = kinds[number]
            data = frames.HEAD.pack((len(bodies[kind]) & 0xFFFFFF) << 8, frames.END_STREAM, 0)[:5]
            lines.start(number, Request(of.head, of.block + data, bodies[kind], len(of.block)), number)
            scene.did[kind] += 1

        free = list(range(len(kinds)))
        for _ in scene.ticks(0):
            while free:
                ask(free.pop())
            for done in lines.poll(0.02):
                scene.told[status_name(done.status.code)] += 1
                free.append(done.tag)
        scene.told["connections lost"] += lines.reconnects


def garbage(scene: Scene) -> None:
    """What is no HTTP/2, or nearly: each on a connection of its own."""
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    head, some = frames.HEAD.pack, opening()
    kinds: dict[str, Callable[[], bytes]] = {
        "HTTP/1.1": lambda: b"GET / HTTP/1.1\r\nHost: pickgate\r\n\r\n",
        "TLS": lambda: hello + scene.random.randbytes(500),
        "random bytes": lambda: scene.random.randbytes(1_000),
        "wrong preface": lambda: frames.PREFACE[:-4] + b"MS\r\n" + some[len(frames.PREFACE) :],
        "random frames": lambda: some + b"".join(_random_frame(scene.random) for _ in range(20)),
        "frame of 16 MiB": lambda: some + head((2**24 - 1) << 8 | Type.DATA, 0, 1) + bytes(1_000),
        "random headers": lambda: some + headers_of(1, scene.random.randbytes(200)),
        "index beyond the table": lambda: some + headers_of(1, b"\xff\xff\xff\xff\x7f"),
        "string of 256 MiB": lambda: some + headers_of(1, b"\x00\x7f\x80\x80\x80\x7f" + bytes(50)),
        "headers of 64 KiB": lambda: some + _large_headers(),
        "settings of 5 bytes": lambda: some + frame(Type.SETTINGS, 0, 0, bytes(5)),
        "settings that can't be": lambda: some + frames.settings({Setting.MAX_FRAME_SIZE: 1}),
        "window too large": lambda: some + 2 * frames.window_update(0, frames.WINDOW_MAX),
        "window of nothing more": lambda: some + frame(Type.WINDOW_UPDATE, 0, 0, bytes(4)),
        "data without a stream": lambda: some + frame(Type.DATA, 0, 0, bytes(100)),
        "data on an idle stream": lambda: some + frame(Type.DATA, 0, 99, bytes(100)),
        "a stream of the server": lambda: some + call(2, block(INSPECT), scene.inspect),
        "a stream of before": lambda: some + call(9, block(INSPECT), b"") + call(3, block(INSPECT), b""),
        "a push": lambda: some + frame(Type.PUSH_PROMISE, frames.END_HEADERS, 1, bytes(8)),
        "a continuation of nothing": lambda: some + frame(Type.CONTINUATION, 0, 1, bytes(8)),
        "padding beyond the frame": lambda: (
            some + frame(Type.HEADERS, frames.PADDED | frames.END_HEADERS, 1, b"\xff" + bytes(9))
        ),
    }
    names = list(kinds)
    for due in scene.ticks(bounds.HOSTILE_GARBAGE_PER_S):
        for _ in range(due):
            name = names[scene.did["connections"] % len(names)]
            Peer(scene, kinds[name]())
        scene.listen()
        _hang_up_on_all_but(scene, bounds.HOSTILE_STREAMS)
    scene.did["kinds"] = len(kinds)


def _random_frame(source: random.Random) -> bytes:
    size = source.randrange(60)
    kind, flags, stream = source.randrange(12), source.randrange(256), source.randrange(8)
    return frames.HEAD.pack(size << 8 | kind, flags, stream) + source.randbytes(size)


def _large_headers() -> bytes:
    of = block(INSPECT, more={f"x-{n}": "x" * 1_000 for n in range(64)})
    parts = [of[at : at + frames.FRAME_BYTES_DEFAULT] for at in range(0, len(of), frames.FRAME_BYTES_DEFAULT)]
    first = frame(Type.HEADERS, 0, 1, parts[0])
    rest = [frame(Type.CONTINUATION, 0, 1, part) for part in parts[1:-1]]
    return b"".join([first, *rest, frame(Type.CONTINUATION, frames.END_HEADERS, 1, parts[-1])])


def _hang_up_on_all_but(scene: Scene, kept: int) -> None:
    while len(scene.peers) > kept:
        scene.peers.pop(0).close()


def continuations(scene: Scene) -> None:
    """Headers that never end: large pieces, and pieces of nothing."""
    of = block(INSPECT)
    large = frame(Type.CONTINUATION, 0, 1, (b"\x00\x01x\x7f\x81\x7e" + b"x" * 510) * 31)
    small = 100 * frame(Type.CONTINUATION, 0, 1)
    begin = opening() + frame(Type.HEADERS, 0, 1, of)
    peers = [(Peer(scene, begin), piece) for piece in (large, small)]
    for due in scene.ticks(bounds.HOSTILE_CONTINUATIONS_PER_S):
        for number, (peer, piece) in enumerate(peers):
            if not peer.open:
                peers[number] = (Peer(scene, begin), piece)
            elif due and not peer.stuck:
                peer.send(piece)
                scene.did["frames, large" if piece is large else "frames, empty"] += piece.count(piece[:9])
        scene.listen()


def pings(scene: Scene) -> None:
    """Ten thousand of them; each asks for an answer."""
    _flood(scene, "pings", frame(Type.PING, 0, 0, bytes(8)))


def settings(scene: Scene) -> None:
    """As many settings, each of which has to be acknowledged."""
    _flood(scene, "settings", frames.settings({Setting.INITIAL_WINDOW_SIZE: frames.WINDOW_MAX}))


def _flood(scene: Scene, name: str, one: bytes) -> None:
    wanted = int(bounds.HOSTILE_PINGS * scene.share)
    peer = Peer(scene, opening())
    for due in scene.ticks(1.2 * wanted / scene.seconds):
        if not peer.open:
            peer = Peer(scene, opening())
        count = min(due, wanted - scene.did[name])
        peer.send(count * one)
        scene.did[name] += count
        scene.listen()


def resets(scene: Scene) -> None:
    """A thousand calls a second on one connection, each reset with the same write: with and without their requests."""
    of = block(INSPECT)
    peer = Peer(scene, opening())
    for due in scene.ticks(bounds.HOSTILE_RESETS_PER_S):
        out = []
        if not peer.open:
            peer = Peer(scene, opening())
        for _ in range(due):
            stream = peer.stream()
            begun = call(stream, of, scene.inspect) if stream & 2 else headers_of(stream, of)
            out.append(begun + frames.reset(stream, Code.CANCEL))
        peer.send(b"".join(out))
        scene.did["resets"] += due
        scene.listen()


ALL: Final[dict[str, Callable[[Scene], None]]] = {
    "slow requests": slow_requests,
    "answers not read": unread_answers,
    "half-open": half_open,
    "cancelled calls": cancelled_calls,
    "expired deadlines": expired_deadlines,
    "oversized messages": oversized_messages,
    "garbage": garbage,
    "continuation flood": continuations,
    "pings": pings,
    "settings": settings,
    "rapid resets": resets,
}


# --- the process ----------------------------------------------------------------------------------------------------
def behave(target: str, order: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Carry out one order."""
    scene = Scene(
        target,
        float(order["seconds"]),
        [base64.b64decode(one) for one in order["redeems"]],
        base64.b64decode(order["inspect"]),
        base64.b64decode(order["render"]),
        base64.b64decode(order["render_long"]),
    )
    try:
        ALL[order["behaviour"]](scene)
        scene.end()
    except pool.NotReachable as error:
        scene.told[str(error)] += 1
    finally:
        for peer in scene.peers:
            peer.close()
    return {"did": dict(scene.did), "told": dict(scene.told)}


def main() -> None:
    """Serve orders until there are no more."""
    target = sys.argv[1]
    for line in sys.stdin:
        print(json.dumps(behave(target, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
