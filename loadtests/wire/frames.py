"""HTTP/2 frames as bytes (RFC 9113, sections 4 and 6), and gRPC's frame around a message."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD: Final = struct.Struct(">IBI")
"""A frame's head: length (24 bits) and type in one number, flags, stream id."""
NUMBER: Final = struct.Struct(">I")
HEAD_BYTES: Final = 9
STREAM_MASK: Final = 0x7FFFFFFF
"""The highest bit of a stream id and of a window's increment is reserved."""

FRAME_BYTES_DEFAULT: Final = 16_384
"""Largest payload of a frame that a peer has not allowed more."""
WINDOW_DEFAULT: Final = 65_535
WINDOW_MAX: Final = 2**31 - 1
STREAM_ID_MAX: Final = 2**31 - 1

GRPC_HEAD_BYTES: Final = 5
"""Compressed or not (1), length of the message (4)."""


class Type(IntEnum):
    """Types of frames."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Setting(IntEnum):
    """Settings that matter to a client of unary calls."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5


class Code(IntEnum):
    """Error codes: RFC 9113, section 7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY: Final = 0x20


def frame(kind: Type, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One whole frame."""
    return HEAD.pack(len(payload) << 8 | kind, flags, stream_id) + payload


def settings(values: dict[Setting, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(Type.SETTINGS, 0, 0, b"".join(struct.pack(">HI", k, v) for k, v in values.items()))


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """Identifiers and values of a SETTINGS frame, in order. Raises ValueError for another length than theirs."""
    if len(payload) % 6:
        raise ValueError(f"a SETTINGS frame of {len(payload)} bytes, not a multiple of 6")
    return list(struct.iter_unpack(">HI", payload))


def window_update(stream_id: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame; increment 1 .. 2^31 - 1."""
    return frame(Type.WINDOW_UPDATE, 0, stream_id, NUMBER.pack(increment))


def reset(stream_id: int, code: Code) -> bytes:
    """A RST_STREAM frame."""
    return frame(Type.RST_STREAM, 0, stream_id, NUMBER.pack(code))


def unpadded(flags: int, payload: bytes) -> bytes:
    """The payload of a DATA or HEADERS frame without its padding and priority fields. Raises ValueError if they don't fit."""
    first, last = 0, len(payload)
    if flags & PADDED:
        if not payload:
            raise ValueError("a padded frame without a length of padding")
        first, last = 1, last - payload[0]
    if flags & PRIORITY:
        first += 5
    if first > last:
        raise ValueError("more padding than payload")
    return payload[first:last]


def message_frame(message: bytes) -> bytes:
    """Put gRPC's frame around a message, uncompressed."""
    return b"\0" + NUMBER.pack(len(message)) + message


def message_of(body: bytes) -> bytes:
    """The one message of a unary answer. Raises ValueError if it is not one whole uncompressed message."""
    if len(body) < GRPC_HEAD_BYTES or body[0]:
        raise ValueError("compressed, or no message at all")
    if int.from_bytes(body[1:GRPC_HEAD_BYTES], "big") != len(body) - GRPC_HEAD_BYTES:
        raise ValueError("not exactly one whole message")
    return body[GRPC_HEAD_BYTES:]
