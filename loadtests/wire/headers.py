"""Header blocks: those of requests made once per method, those of responses decoded once per distinct block.

Both sides go without HPACK's dynamic table: our encoder never adds to it, and we announce a table of 0 bytes. So a block means
the same wherever it stands, and a block that was seen before need not be decoded again.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

import hpack

from loadtests.wire.frames import WINDOW_MAX

STATUS_OK: Final = 0
STATUS_CANCELLED: Final = 1
STATUS_UNKNOWN: Final = 2
STATUS_RESOURCE_EXHAUSTED: Final = 8
STATUS_INTERNAL: Final = 13
STATUS_UNAVAILABLE: Final = 14
# https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md
_OF_HTTP: Final = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}

BLOCKS_MAX: Final = 4_096
"""Distinct blocks kept; with more (each refusal with details of its own) the oldest half is forgotten."""


@dataclass(frozen=True, slots=True)
class Status:
    """How a call ended: gRPC's status code and message, and google.rpc.Status as bytes (empty: no details)."""

    code: int
    message: str = ""
    details: bytes = b""

    @property
    def ok(self) -> bool:
        """Whether there is an answer."""
        return self.code == STATUS_OK


def request_block(
    path: str, authority: str, timeout_ms: int | None = None, metadata: Sequence[tuple[str, str]] = ()
) -> bytes:
    """The header block of one method's requests.

    Args:
        path: /package.Service/Method.
        authority: what the server is called.
        timeout_ms: the deadline that the server is told, from its arrival, 1 .. 99,999,999; None: none.
        metadata: sent besides, whole each time, where a gRPC client would send an index from the second time on.
    """
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", authority),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "pickgate-loadtests"),
    ]
    if timeout_ms is not None:
        if not 1 <= timeout_ms <= 99_999_999:
            raise ValueError(f"timeout_ms is {timeout_ms}, not 1 .. 99,999,999")
        fields.append(("grpc-timeout", f"{timeout_ms}m"))
    fields += metadata
    encoder = hpack.Encoder()
    # Marked sensitive, fields are written as "never indexed" literals: nothing goes into the table.
    return bytes(encoder.encode([hpack.NeverIndexedHeaderTuple(*field) for field in fields], huffman=False))


class Blocks:
    """Meanings of response header blocks: the status they end a call with, or None for headers before the message."""

    def __init__(self) -> None:
        self.known: dict[bytes, Status | None] = {}
        """Looked up by the connection itself, before it calls `read`."""

    def read(self, block: bytes) -> Status | None:
        """Decode a block and keep its meaning. Raises ValueError for one that can't stand alone or is malformed."""
        decoder = hpack.Decoder(max_header_list_size=WINDOW_MAX)
        decoder.max_allowed_table_size = 0
        decoder.header_table_size = 0
        try:
            fields = {bytes(name): bytes(value) for name, value in decoder.decode(block, raw=True)}
        except hpack.HPACKError as error:
            raise ValueError(f"a header block that can't be decoded: {error}") from None
        if len(self.known) >= BLOCKS_MAX:
            for old in list(self.known)[: BLOCKS_MAX // 2]:
                del self.known[old]
        meaning = self.known[block] = _meaning(fields)
        return meaning


def _meaning(fields: dict[bytes, bytes]) -> Status | None:
    if b"grpc-status" in fields:
        code = fields[b"grpc-status"]
        if not code.isdigit():
            raise ValueError(f"grpc-status is {code!r}, not a number")
        message = unquote_to_bytes(fields.get(b"grpc-message", b"")).decode("utf-8", "replace")
        return Status(int(code), message, _binary(fields.get(b"grpc-status-details-bin", b"")))
    http = fields.get(b":status", b"200")
    if http != b"200":
        number = int(http) if http.isdigit() else 0
        return Status(_OF_HTTP.get(number, STATUS_UNKNOWN), f"HTTP status {http.decode('ascii', 'replace')}")
    return None


def _binary(value: bytes) -> bytes:
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(f"grpc-status-details-bin is not base64: {error}") from None
