"""The scan of messages: plain ones as the protobuf library reads them, all others only marked."""

from __future__ import annotations

import math
import random
import struct
from types import ModuleType
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ext.scan
import ext.scan_reference
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import types_pb2 as types_pb
from tests.ext.twins import SOAK

FIELDS: Final = (
    ((1,), "message"),
    ((1, 1), "uint32"),
    ((1, 2), "uint32"),
    ((1, 3), "uint32"),
    ((2,), "text"),
    ((3,), "text"),
    ((4,), "text"),
    ((5,), "message"),
    ((5, 1), "double"),
    ((5, 2), "double"),
    ((5, 3), "double"),
    ((5, 4), "enum"),
    ((7,), "text"),
)
"""Of RedeemRequest, without lines and proof."""
BIT: Final = {path: n for n, (path, _) in enumerate(FIELDS)}


@pytest.fixture(params=[ext.scan, ext.scan_reference], ids=["native", "reference"])
def kernel(request: pytest.FixtureRequest) -> Any:
    return request.param


def good(draw: random.Random) -> redemption_pb.RedeemRequest:
    message = redemption_pb.RedeemRequest(
        terminal=types_pb.Terminal(
            mall_id=draw.getrandbits(32), store_id=draw.getrandbits(7), terminal_id=draw.getrandbits(32)
        ),
        request_id=f"request-{draw.getrandbits(60)}",
        code="PG" + "".join(draw.choices("0123456789ABCDEFGHJKMNPQRSTVWXYZ", k=76)),
        actor="clerk:17",
    )
    if draw.random() < 0.7:
        message.position.latitude_deg = draw.uniform(-90, 90)
        message.position.longitude_deg = draw.uniform(-180, 180)
        message.position.accuracy_m = draw.choice([0.0, 12.5])
        message.position.datum = draw.choice([1, 2, 3])  # type: ignore[assignment]
    return message


def test_a_plain_message_reads_as_the_library_reads_it(kernel: Any) -> None:
    draw = random.Random(5)
    messages = [good(draw) for _ in range(200)]
    wire = [message.SerializeToString() for message in messages]
    found = kernel.scan_batch(kernel.Shape(FIELDS), wire)
    assert found.plain.all()
    assert found.wire == b"".join(wire)
    for n, message in enumerate(messages):
        assert found.numbers[:3, n].tolist() == [
            message.terminal.mall_id,
            message.terminal.store_id,
            message.terminal.terminal_id,
        ]
        texts = [found.wire[found.starts[k, n] : found.ends[k, n]].decode() for k in range(4)]
        assert texts == [message.request_id, message.code, message.pin, message.actor]
        at = message.position
        assert found.numbers[3:, n].tolist() == [at.latitude_deg, at.longitude_deg, at.accuracy_m, at.datum]
        assert bool(found.present[n] >> BIT[5,] & 1) == message.HasField("position")
        assert bool(found.present[n] >> BIT[5, 1] & 1) == at.HasField("latitude_deg")
        assert not found.present[n] >> BIT[4,] & 1


@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("an unknown field", b"\x48\x01"),
        ("a field of another shape", b"\x32\x00"),
        ("a wrong wire type", b"\x10\x01"),
        ("a field twice", b"\x22\x00\x22\x00"),
        ("a message twice", b"\x0a\x00\x0a\x00"),
        ("field number 0", b"\x00\x00"),
        ("a field number past all", b"\xf8\xff\xff\xff\x0f\x00"),
        ("a blank in a text", b"\x22\x03a b"),
        ("a text that isn't ASCII", "\x22\x03€".encode("latin-1", "ignore") + b"\xe2\x82\xac"),
        ("a control character", b"\x22\x01\x7f"),
        ("33 bits", b"\x0a\x06\x08\x80\x80\x80\x80\x10"),
        ("a negative enum", b"\x2a\x0b\x20" + b"\xff" * 9 + b"\x01"),
        ("a varint of eleven bytes", b"\x0a\x0c\x08" + b"\x80" * 10 + b"\x00"),
        ("a varint cut off", b"\x0a\x02\x08\x80"),
        ("a key cut off", b"\x80"),
        ("a length past the end", b"\x22\x05ab"),
        ("a length past all ends", b"\x22" + b"\xff" * 9 + b"\x01"),
        ("an inner length past the inner end", b"\x0a\x02\x08" + b"\x01\x10\x01" + b"\x0a"),
        ("a double cut off", b"\x2a\x05\x09\x00\x00\x00\x00"),
        ("a group", b"\x0b\x0c"),
    ],
)
def test_anything_else_is_only_marked(kernel: Any, what: str, data: bytes) -> None:
    plain = b"\x22\x06123456"
    found = kernel.scan_batch(kernel.Shape(FIELDS), [plain, data, plain])
    assert found.plain.tolist() == [True, False, True], what
    assert found.present[1] == 0
    assert not found.numbers[:, 1].any()
    assert not found.ends[:, 1].any()
    assert found.ends[2].tolist() == [8, 0, len(found.wire)]


def test_every_cut_of_a_message_is_safe(kernel: Any) -> None:
    data = good(random.Random(3)).SerializeToString()
    found = kernel.scan_batch(kernel.Shape(FIELDS), [data[:end] for end in range(len(data) + 1)])
    whole = []
    for end in range(len(data) + 1):
        try:
            redemption_pb.RedeemRequest.FromString(data[:end])
            whole.append(True)
        except Exception:
            whole.append(False)
    # The library takes what is cut between two fields; the scan takes nothing that the library refuses.
    assert [bool(one) for one in found.plain] == whole


def test_no_message_and_no_fields(kernel: Any) -> None:
    assert len(kernel.scan_batch(kernel.Shape(FIELDS), []).plain) == 0
    empty = kernel.scan_batch(kernel.Shape([]), [b"", b"\x08\x01"])
    assert empty.plain.tolist() == [True, False]
    assert empty.numbers.shape == (0, 2)


@pytest.mark.parametrize(
    "fields",
    [
        [((1,), "int")],
        [((0,), "uint32")],
        [((32,), "uint32")],
        [((1, 2, 3), "uint32")],
        [((), "uint32")],
        [((1, 1), "uint32")],
        [((1,), "text"), ((1, 1), "uint32")],
        [((1,), "text"), ((1,), "text")],
        [((n,), "message") for n in range(1, 9)],
        [((1 + n // 20,), "message") for n in (0, 20)]
        + [((1 + n // 20, 1 + n % 20), "text") for n in range(40)],
    ],
)
def test_a_shape_that_makes_no_sense_is_refused(kernel: Any, fields: Any) -> None:
    with pytest.raises(ValueError):
        kernel.Shape(fields)


@pytest.mark.parametrize("item", ["text", bytearray(b""), memoryview(b""), None, 1])
def test_a_message_is_bytes(kernel: Any, item: Any) -> None:
    with pytest.raises(TypeError, match="bytes"):
        kernel.scan_batch(kernel.Shape(FIELDS), [b"", item])


RANGES: Final = {
    (1, 1): (1, 2**32 - 1),
    (1, 2): (0, 7),
    (2,): (2, 4),
    (4,): (0, 0),
    (5, 1): (-90.0, 90.0),
    (5, 3): (0.0, 1.7976931348623157e308),
    (5, 4): (1, 3),
}
NEEDED: Final = ((5, 2), (5, 1))
# A terminal 1:7, a request id of two, and a position at 90, -180.
TERMINAL, ID = b"\x0a\x04\x08\x01\x10\x07", b"\x12\x02ab"


def position(*fields: bytes) -> bytes:
    inner = b"".join(fields)
    return b"\x2a" + bytes([len(inner)]) + inner


def at(number: int, value: float) -> bytes:
    return bytes([number << 3 | 1]) + struct.pack("<d", value)


LATITUDE, LONGITUDE, DATUM = at(1, 90.0), at(2, -180.0), b"\x20\x03"


@pytest.mark.parametrize(
    ("what", "data", "plain"),
    [
        ("all at their ends", TERMINAL + ID + position(LATITUDE, LONGITUDE, DATUM), True),
        ("no position, which is not needed", TERMINAL + ID, True),
        ("no terminal: its range is its own", ID, True),
        ("a terminal without a mall: 0", b"\x0a\x02\x10\x07" + ID, False),
        ("a mall 0", b"\x0a\x04\x08\x00\x10\x07" + ID, False),
        ("a store past its range", b"\x0a\x04\x08\x01\x10\x08" + ID, False),
        ("no request id", TERMINAL, False),
        ("an empty request id", TERMINAL + b"\x12\x00", False),
        ("a request id of one", TERMINAL + b"\x12\x01a", False),
        ("a request id of four", TERMINAL + b"\x12\x04abcd", True),
        ("a request id of five", TERMINAL + b"\x12\x05abcde", False),
        ("a PIN of nothing", TERMINAL + ID + b"\x22\x00", True),
        ("a PIN", TERMINAL + ID + b"\x22\x011", False),
        ("no latitude", TERMINAL + ID + position(LONGITUDE, DATUM), False),
        ("no longitude", TERMINAL + ID + position(LATITUDE, DATUM), False),
        ("no datum: 0", TERMINAL + ID + position(LATITUDE, LONGITUDE), False),
        ("a datum past all", TERMINAL + ID + position(LATITUDE, LONGITUDE, b"\x20\x04"), False),
        ("past the pole", TERMINAL + ID + position(at(1, 90.00001), LONGITUDE, DATUM), False),
        ("a latitude that is no number", TERMINAL + ID + position(at(1, math.nan), LONGITUDE, DATUM), False),
        ("a longitude that is no number", TERMINAL + ID + position(LATITUDE, at(2, math.nan), DATUM), False),
        ("a longitude without a range", TERMINAL + ID + position(LATITUDE, at(2, -math.inf), DATUM), True),
        ("an endless accuracy", TERMINAL + ID + position(LATITUDE, LONGITUDE, at(3, math.inf), DATUM), False),
        ("an accuracy below 0", TERMINAL + ID + position(LATITUDE, LONGITUDE, at(3, -1.0), DATUM), False),
        ("an empty position", TERMINAL + ID + position(), False),
    ],
)
def test_what_is_out_of_its_range_or_missing_is_only_marked(
    kernel: Any, what: str, data: bytes, plain: bool
) -> None:
    shape = kernel.Shape(FIELDS, RANGES, NEEDED)
    assert kernel.scan_batch(shape, [TERMINAL + ID, data, TERMINAL + ID]).plain.tolist() == [
        True,
        plain,
        True,
    ], what


def test_a_field_that_is_needed_everywhere(kernel: Any) -> None:
    shape = kernel.Shape(FIELDS, {}, [(1,)])
    assert kernel.scan_batch(shape, [TERMINAL, ID, b"", b"\x0a\x00"]).plain.tolist() == [
        True,
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("ranges", "needed"),
    [({(9,): (0, 1)}, ()), ({}, [(9,)]), ({(5, 9): (0, 1)}, ()), ({(1,): (1, 2)}, ())],
)
def test_ranges_and_needs_are_those_of_fields(kernel: Any, ranges: Any, needed: Any) -> None:
    with pytest.raises(ValueError, match="field"):
        kernel.Shape(FIELDS, ranges, needed)


def _same(native: Any, twin: Any) -> None:
    assert native.plain.tolist() == twin.plain.tolist()
    assert native.wire == twin.wire
    assert native.present.tolist() == twin.present.tolist()
    assert native.numbers.tolist() == twin.numbers.tolist()
    assert native.starts.tolist() == twin.starts.tolist()
    assert native.ends.tolist() == twin.ends.tolist()


def scan_with(module: ModuleType, wire: list[bytes], **more: Any) -> Any:
    return module.scan_batch(module.Shape(FIELDS, **more), wire)


def test_native_and_twin_agree_on_damaged_messages() -> None:
    draw = random.Random(11)
    wire = []
    for _ in range(100_000 if SOAK else 10_000):
        data = bytearray(good(draw).SerializeToString())
        for _ in range(draw.randrange(4)):
            data[draw.randrange(len(data))] = draw.choice([draw.getrandbits(8), 0x80, 0xFF, 0])
        wire.append(bytes(data))
    native = scan_with(ext.scan, wire)
    assert 0 < native.plain.sum() < len(wire)
    _same(native, scan_with(ext.scan_reference, wire))
    for n in np.flatnonzero(native.plain)[:2000]:
        # What was taken is a message, and says what the library says.
        message = redemption_pb.RedeemRequest.FromString(wire[n])
        assert native.numbers[0, n] == message.terminal.mall_id
        assert struct.pack("<d", native.numbers[3, n]) == struct.pack("<d", message.position.latitude_deg)
        assert native.wire[native.starts[1, n] : native.ends[1, n]].decode() == message.code


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=5))
def test_native_and_twin_agree_on_any_bytes(wire: list[bytes]) -> None:
    _same(scan_with(ext.scan, wire), scan_with(ext.scan_reference, wire))
    some: Any = {"ranges": RANGES, "needed": NEEDED}
    _same(scan_with(ext.scan, wire, **some), scan_with(ext.scan_reference, wire, **some))
