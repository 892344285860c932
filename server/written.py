"""Answers of redeem and inspect as bytes, straight from what the script said.

At ten thousand a second a message object with twenty fields is a tenth of a core, to be serialised and thrown away. What is
written here is what the protobuf library writes for translate.redeem_response and translate.inspect_response, byte for byte
(tests/server/test_written.py); a verdict whose sentences name facts goes that way in any case, so a clerk's sentence is made in
one place.

Source: the encoding of protocol buffers, https://protobuf.dev/programming-guides/encoding/; fields in the order of their numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from google.protobuf.message import Message

from engine.claims import Version, partition_of
from engine.state.attempts import Attempt, Facts
from engine.state.layouts import LINE
from engine.verdict import InspectVerdict, RedeemVerdict, Verdict
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from server.translate import NO_BUCKET

_VARINT, _LENGTH = 0, 2


@lru_cache(maxsize=8192)
def _varint(value: int) -> bytes:
    """A whole number, 0 or more, in groups of seven bits; the same ones come again and again."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _keys(message: type[Message], wire_type: int, *names: str) -> tuple[bytes, ...]:
    return tuple(_varint(message.DESCRIPTOR.fields_by_name[name].number << 3 | wire_type) for name in names)


_RESPONSE: Final = redemption_pb.RedeemResponse
_REQUEST_ID, _UID, _ORDER_ID, _LINES, _STORE_NAME, _EVENT_ID = _keys(
    _RESPONSE, _LENGTH, "request_id", "uid", "order_id", "lines", "store_name", "event_id"
)
_AT, _TERMINAL, _SKU, _STORE, _CYCLE, _BUCKET, _REPLAYED = _keys(
    _RESPONSE,
    _VARINT,
    *("at_ms", "terminal_id", "sku_id", "store_id", "cycle", "distance_bucket", "replayed"),
)
_VERSION, _EXPIRES, _PIN, _PROOF = _keys(
    redemption_pb.InspectResponse, _VARINT, "version", "expires_at_ms", "pin_required", "proof_required"
)


def _sentences(
    verdicts: Iterable[Verdict], message: type[redemption_pb.RedeemResponse | redemption_pb.InspectResponse]
) -> dict[int, bytes]:
    """What each verdict whose sentences name no facts begins with: fields 1 to 4."""
    found = {}
    for verdict in verdicts:
        if "{" not in verdict.answer.zh + verdict.answer.en and verdict.name != "OUTSIDE_WINDOW":
            zh, en = verdict.say()
            begun = message(message_zh=zh, message_en=en)
            begun.verdict = verdict.number  # type: ignore[assignment]  # the numbers are the enum's
            begun.next_step = verdict.next  # type: ignore[assignment]
            found[verdict.number] = begun.SerializeToString()
    return found


_REDEEM: Final = _sentences(RedeemVerdict, redemption_pb.RedeemResponse)
_INSPECT: Final = _sentences(InspectVerdict, redemption_pb.InspectResponse)
INVALID_INSPECTION: Final = _INSPECT[InspectVerdict.INVALID_CODE.number]
"""The InspectResponse to a code that is not genuine."""


@lru_cache(maxsize=4096)
def _line(line: bytes) -> bytes:
    """One line (layouts.LINE) as field `lines`; most say one unit of one of the catalogue's SKUs, none left."""
    sku_id, count, left = LINE.struct.unpack(line)
    body = b"".join(
        key + _varint(value) for key, value in ((b"\x08", sku_id), (b"\x10", count), (b"\x18", left)) if value
    )
    return _LINES + _varint(len(body)) + body


def _lines(lines: bytes) -> bytes:
    if len(lines) == LINE.size:
        return _line(lines)
    return b"".join(_line(lines[at : at + LINE.size]) for at in range(0, len(lines), LINE.size))


@lru_cache(maxsize=4096)
def _store(store_id: int, name: str) -> bytes:
    """Fields store_id and store_name."""
    text = name.encode()
    return (_STORE + _varint(store_id) if store_id else b"") + (
        _STORE_NAME + _varint(len(text)) + text if text else b""
    )


def _middle(attempt: Attempt, facts: Facts, store_name: str) -> bytes:
    """Fields 6 to 14, which redeem and inspect have in common."""
    order_id, terminal_id, sku_id = facts.order_id, facts.terminal_id, facts.sku_id
    return b"".join(
        (
            _UID + b"\x10" + attempt.uid.hex().encode(),
            _ORDER_ID + _varint(len(order_id)) + order_id if order_id else b"",
            _lines(facts.lines),
            _AT + _varint(facts.at_ms) if facts.at_ms else b"",
            _TERMINAL + _varint(terminal_id) if terminal_id else b"",
            _SKU + _varint(sku_id) if sku_id else b"",
            _store(facts.store_id, store_name),
        )
    )


def redemption(request_id: bytes, attempt: Attempt, facts: Facts, store_name: str) -> bytes | None:
    """A RedeemResponse; None for a verdict whose sentences name facts. store_name: of facts.store_id, '' for none."""
    begun = _REDEEM.get(facts.verdict)
    if begun is None:
        return None
    event = b""
    if facts.epoch:
        number = b"%d-%d-%d" % (partition_of(attempt.uid), facts.epoch, facts.seq)
        event = _EVENT_ID + _varint(len(number)) + number
    return b"".join(
        (
            begun,
            _REQUEST_ID + _varint(len(request_id)) + request_id,
            _middle(attempt, facts, store_name),
            _CYCLE + _varint(facts.cycle) if facts.cycle else b"",
            event,
            _BUCKET + _varint(facts.distance_bucket) if facts.distance_bucket != NO_BUCKET else b"",
            _REPLAYED + b"\x01" if facts.remembered else b"",
        )
    )


def invalid_redemption(request_id: bytes) -> bytes:
    """The RedeemResponse to a code that is not genuine."""
    return _REDEEM[RedeemVerdict.INVALID_CODE.number] + _REQUEST_ID + _varint(len(request_id)) + request_id


def inspection(attempt: Attempt, facts: Facts, store_name: str) -> bytes | None:
    """An InspectResponse; None for a verdict whose sentences name facts."""
    begun = _INSPECT.get(facts.verdict)
    if begun is None:
        return None
    return b"".join(
        (
            begun,
            _middle(attempt, facts, store_name),
            _BUCKET + _varint(facts.distance_bucket) if facts.distance_bucket != NO_BUCKET else b"",
            _VERSION + _varint(facts.version) if facts.version else b"",
            _EXPIRES + _varint(facts.expires_at_s * 1000) if facts.expires_at_s else b"",
            _PIN + b"\x01" if facts.version == Version.STATIC else b"",
            _PROOF + b"\x01" if facts.proof_needed else b"",
        )
    )
