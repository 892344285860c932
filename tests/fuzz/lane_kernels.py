"""Targets over the kernels between the hot lane and the store: columns into rows, rows into calls, answers into messages.

No stranger hands these their arguments, but a stranger's texts and a store's answers go through them, with offsets that were computed
from those. So an input is read as such arguments, right and wrong ones; kernel and twin must say the same of them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from random import Random
from typing import Any, Final

import hiredis
import numpy as np

import ext.answers
import ext.answers_reference
import ext.rows
import ext.rows_reference
import ext.script_calls
import ext.script_calls_reference
from engine.state import layouts
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from tests.ext import test_script_calls

Check = Callable[[bytes], None]


def outcome(function: Callable[..., Any], *args: Any) -> Any:
    """What a function gives, or the kind of its refusal."""
    try:
        return function(*args)
    except (ValueError, TypeError) as error:
        return type(error)


# --- columns into rows ------------------------------------------------------------------------------------------------
_ROWS_HEAD: Final = struct.Struct(">BBBB")
_WIDE, _UNEVEN = 1, 2
_SPAN: Final = struct.Struct(">hh")


def rows() -> Check:
    """Spans, some outside their buffer: the same pieces, rows and digests as the twin's, or the same refusal."""

    def check(data: bytes) -> None:
        if len(data) < _ROWS_HEAD.size:
            return
        how, count, width, size = _ROWS_HEAD.unpack_from(data)
        rest = data[_ROWS_HEAD.size :]
        count = min(count, len(rest) // _SPAN.size)
        buffer = rest[_SPAN.size * count :]
        spans = np.array(list(_SPAN.iter_unpack(rest[: _SPAN.size * count])), np.int64).reshape(count, 2)
        if how & _WIDE:
            spans <<= 47
        starts, ends = np.ascontiguousarray(spans[:, 0]), np.ascontiguousarray(spans[:, 1])
        if how & _UNEVEN:
            ends = ends[:-1]
        numbers = np.resize(np.frombuffer(data[: len(data) // 4 * 4], np.uint32), (how >> 2 & 3, count))
        if how & 16:
            # Columns taken out of a table, which is not contiguous.
            numbers = np.asfortranarray(numbers)
        fixed = buffer[: width * count].ljust(width * count - (how >> 5 & 1), b"\0")
        native, twin = (
            (
                outcome(kernel.slices, buffer, starts, ends),
                _listed(outcome(kernel.gather, buffer, starts, ends)),
                outcome(kernel.join_rows, fixed, width, buffer, starts, ends),
                outcome(
                    kernel.digests, data[:3], numbers, rest[:5], buffer, starts, ends, data[-2:], size % 35
                ),
            )
            for kernel in (ext.rows, ext.rows_reference)
        )
        assert native == twin
        pieces, gathered, joined, _ = native
        assert isinstance(pieces, list) == isinstance(gathered, tuple)
        if isinstance(pieces, list):
            assert b"".join(pieces) == gathered[0]
            if isinstance(joined, list):
                assert [row[width:] for row in joined] == pieces

    return check


def _listed(gathered: Any) -> Any:
    return (gathered[0], gathered[1].tolist()) if isinstance(gathered, tuple) else gathered


def row_seeds() -> Iterable[bytes]:
    """Spans that lie in their buffer, and those that nearly do."""
    text = b"request-0001terminal:7/2001/11PG0123456789"
    for how in (0, 4, 8, 12, 28, 32):
        spans = b"".join(_SPAN.pack(*pair) for pair in ((0, 12), (12, 30), (30, len(text)), (5, 5)))
        yield _ROWS_HEAD.pack(how, 4, 7, 12) + spans + text
    for how, pair in ((0, (0, 5)), (0, (-1, 2)), (0, (3, 2)), (1, (0, 0)), (1, (1, 1)), (2, (0, 0))):
        yield _ROWS_HEAD.pack(how, 1, 0, 32) + _SPAN.pack(*pair) + b"text"
    yield _ROWS_HEAD.pack(0, 0, 0, 0)


# --- rows into script calls -------------------------------------------------------------------------------------------
_CALL_HEAD: Final = struct.Struct(">BBIQBBBB")
_POINTER: Final = struct.Struct(">BBBc")
_FITTING, _LETTERS = 1, 2
_LETTER_OF: Final = (b"b", b"b", b"p", b"n")
_OWN: Final = (b"{p}m", b"{p}e")


def script_calls() -> Check:
    """Shapes of rows and rows: the same bytes as the twin's, which the driver's parser reads as one call that names each key once."""
    kernels = (ext.script_calls, ext.script_calls_reference)

    def check(data: bytes) -> None:
        if len(data) < _CALL_HEAD.size:
            return
        how, row_bytes, mask, number, count, longer, group_max, own = _CALL_HEAD.unpack_from(data)
        rest = data[_CALL_HEAD.size :]
        count = min(count % 10, len(rest) // _POINTER.size)
        shape = [
            _fitting(row_bytes, pointer, letters=bool(how & _LETTERS)) if how & _FITTING else _named(pointer)
            for pointer in _POINTER.iter_unpack(rest[: _POINTER.size * count])
        ]
        rest = rest[_POINTER.size * count :]
        size = max(1, row_bytes + longer % 8 - (how >> 2 & 1))
        given = [rest[at : at + size] for at in range(0, len(rest), size)]
        if how & _FITTING:
            given = [row for row in given if len(row) == size]
        groups = [outcome(kernel.group_rows, given, group_max) for kernel in kernels]
        assert groups[0] == groups[1]
        if isinstance(groups[0], list):
            assert sorted(n for _, members in groups[0] for n in members) == list(range(len(given)))
        pointers = [outcome(kernel.Pointers, row_bytes, mask, shape) for kernel in kernels]
        if ValueError in pointers:
            assert pointers == [ValueError, ValueError]
            return
        prefix, keys, args = data[: own % 5], _OWN[: own % 3], [data[:own]] * (own % 2)
        before = [bytearray(row) for row in given]
        calls = [
            outcome(kernel.script_call, made, b"a" * 40, prefix, keys, number, args, given)
            for kernel, made in zip(kernels, pointers, strict=True)
        ]
        assert calls[0] == calls[1]
        assert given == before, "what was given was changed"
        if isinstance(calls[0], bytes):
            _assert_read(calls[0], prefix, keys, args, given)

    return check


def _named(pointer: tuple[int, int, int, bytes]) -> tuple[int, str, int, bytes]:
    place_at, kind, source_at, letter = pointer
    return place_at, (*ext.script_calls.KINDS, "slot")[kind % 5], source_at, letter


def _fitting(
    row_bytes: int, pointer: tuple[int, int, int, bytes], *, letters: bool
) -> tuple[int, str, int, bytes]:
    """The pointer, cut to a row that is long enough."""
    place_at, kind, source_at, letter = pointer
    source_bytes = ext.script_calls_reference._SOURCE_BYTES[ext.script_calls.KINDS[kind % 4]]
    return (
        place_at % max(1, row_bytes - 1),
        ext.script_calls.KINDS[kind % 4],
        source_at % max(1, row_bytes - source_bytes + 1),
        _LETTER_OF[kind % 4] if letters else letter,
    )


def _assert_read(
    call: bytes, prefix: bytes, own: Iterable[bytes], args: list[bytes], rows: list[bytes]
) -> None:
    reader = hiredis.Reader()
    reader.feed(call)
    parts = reader.gets()
    assert reader.gets() is False, "there is more than one call"
    assert parts[:2] == [b"EVALSHA", b"a" * 40]
    n_keys = int(parts[2])
    keys, behind = parts[3 : 3 + n_keys], parts[3 + n_keys :]
    own = list(own)
    assert keys[: len(own)] == own
    named = keys[len(own) :]
    assert len(set(named)) == len(named)
    assert all(key.startswith(prefix) for key in named)
    assert behind[: len(args)] == args
    assert list(map(len, behind[len(args) :])) == list(map(len, rows))


def call_seeds() -> Iterable[bytes]:
    """Rows as the scripts have them, and shapes that are none."""
    draw = Random(11)
    kinds = ext.script_calls.KINDS
    shape = b"".join(
        _POINTER.pack(place_at, kinds.index(kind), source_at, letter)
        for place_at, kind, source_at, letter in test_script_calls.SHAPE
    )
    for how, rows in ((0, 1), (_FITTING, 4), (_FITTING | _LETTERS, 3), (4, 1)):
        several = b"".join(test_script_calls.some_row(draw)[: test_script_calls.FIXED] for _ in range(rows))
        head = _CALL_HEAD.pack(how, test_script_calls.FIXED, 0x3FF, 29_000_000, 5, 0, 2, 2)
        yield head + shape + several
    for row_bytes, pointer in (
        (1, b""),
        (40, b"\x28\0\0c"),
        (40, b"\0\2\x21c"),
        (40, b"\0\4\0c"),
        (40, b"\0\1\x1dc"),
    ):
        yield _CALL_HEAD.pack(0, row_bytes, 1, 0, 1, 0, 0, 0) + pointer + bytes(40)
    yield _CALL_HEAD.pack(0, 40, 1, 0, 2, 0, 1, 1) + b"\0\0\0c\2\2\0c" + bytes(40)
    yield _CALL_HEAD.pack(0, 40, 1, 0, 9, 0, 1, 1) + b"\0\0\0c" * 9 + bytes(40)


# --- answers into messages --------------------------------------------------------------------------------------------
_UID_BYTES: Final = 8
_BEGUN: Final = range(200)
_MESSAGES: Final = (redemption_pb.RedeemResponse, redemption_pb.InspectResponse)


class _Stores(dict[int, bytes]):
    def __missing__(self, store_id: int) -> bytes:
        return redemption_pb.RedeemResponse(
            store_id=store_id, store_name="徐家汇店" if store_id % 2 else ""
        ).SerializeToString()


def answers() -> Check:
    """What a script may answer, and what it may not: the same messages as the twin's, byte for byte those of the protobuf library."""
    layout = layouts.REDEEM_ANSWER
    writers = []
    for message in _MESSAGES:
        numbers = message.DESCRIPTOR.fields_by_name
        begun: dict[int, bytes] = {}
        for verdict in _BEGUN:
            first = message(message_en="a sentence")
            first.verdict = verdict  # type: ignore[assignment]  # any number is one of an open enum
            begun[verdict] = first.SerializeToString()
        arguments = (
            {name: layout.at(name) for name in layout.names},
            layout.size,
            {name: numbers[name].number for name in ext.answers.FIELDS if name in numbers},
            begun,
        )
        more = {"bucket_unknown": 255, "static_version": 1, "proof_flag": layouts.FLAG_PROOF_NEEDED}
        writers.append(
            [module.Answers(*arguments, **more) for module in (ext.answers, ext.answers_reference)]
        )

    def check(data: bytes) -> None:
        if len(data) < 2 + _UID_BYTES:
            return
        how, id_bytes, uid = data[0], data[1] % 65, data[2 : 2 + _UID_BYTES]
        rest = data[2 + _UID_BYTES :]
        request_id, answer = rest[:id_bytes], rest[id_bytes:]
        # Beside others, so that one that reads past its end is seen.
        several = [answer, answer[: len(answer) // 2], answer[:-1], None, answer + b"x"]
        named = [] if how & 1 else [request_id] * len(several)
        message = _MESSAGES[how & 1]
        native, twin = (
            writer.write(several, [uid] * len(several), named, _Stores()) for writer in writers[how & 1]
        )
        assert native == twin
        assert native[3] is None
        if native[0] is None:
            return
        assert native[4] == native[0], "what stands behind an answer was looked at"
        order_bytes = answer[layout.size]
        order = answer[len(answer) - order_bytes :]
        if _is_text(request_id) and _is_text(order) and len(answer) == _whole(answer, layout.size):
            read = message.FromString(native[0])
            assert read.SerializeToString(deterministic=True) == native[0]
            assert read.uid == uid.hex()
            assert read.order_id.encode() == order

    return check


def _whole(answer: bytes, fixed: int) -> int:
    """How long an answer is that says so of its lines and order id, its last two bytes before those."""
    return 1 + fixed + layouts.LINE.size * answer[fixed - 1] + answer[fixed]


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def answer_seeds() -> Iterable[bytes]:
    """Answers that are decided and remembered, with and without lines and order id, and one that is cut off."""
    numbers: dict[str, Any] = dict.fromkeys(layouts.REDEEM_ANSWER.names, 0) | {
        **{"verdict": 1, "at": (1_800_000_000_000).to_bytes(6), "epoch": 1, "seq": (77).to_bytes(6)},
        **{"terminal": 11, "sku": 100, "store": 2001, "flavour": 0x21, "exp": 1_800_000_000, "bucket": 3},
    }
    lines = [layouts.LINE.pack(100, 1, 0), layouts.LINE.pack(2**32 - 1, 65_535, 0)]
    for kind in (b"A", b"R", b"X"):
        for n_lines, order in ((0, b""), (1, b"order-1"), (2, "订单".encode())):
            whole = layouts.REDEEM_ANSWER.pack(
                *(numbers | {"n_lines": n_lines, "order_len": len(order)}).values()
            )
            for how in (0, 1):
                head = bytes([how, 9]) + bytes(range(_UID_BYTES)) + b"request-1"
                yield head + kind + whole + b"".join(lines[:n_lines]) + order
    yield head + kind + whole[:-3]
