"""Rows into script calls: what the store reads is what the driver would have written, each key once."""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any, Final

import hiredis
import pytest

import ext.script_calls
import ext.script_calls_reference

SHAPE: Final = (
    (8, "bucket", 4, b"c"),
    (10, "bucket", 12, b"q"),
    (16, "pair", 18, b"s"),
    (26, "number", 0, b"x"),
    (28, "bucket?", 30, b"q"),
)
"""Of a row: uid 0:8, two places, digest 12:16, a place, pair 18:26, two places, digest of the last 30:42."""
FIXED: Final = 42


@pytest.fixture(params=[ext.script_calls, ext.script_calls_reference], ids=["native", "reference"])
def kernel(request: pytest.FixtureRequest) -> Any:
    return request.param


def some_row(draw: random.Random) -> bytes:
    row = bytearray(draw.randbytes(FIXED + draw.choice([0, 0, 3, 60])))
    # Few different keys, so that some come again.
    row[4:8] = draw.randrange(3000, 3003).to_bytes(4, "big")
    row[12:16] = draw.getrandbits(32).to_bytes(4, "big")
    row[18:26] = draw.choice([bytes(8), b"\xff" * 8, draw.randbytes(8)])
    row[30:42] = draw.choice([bytes(12), draw.randbytes(12), bytes(11) + b"\1"])
    return bytes(row)


def expected(sha: bytes, own: list[bytes], number: int, args: list[bytes], rows: list[bytes]) -> bytes:
    """By the driver's own packing, the keys named as people name them."""
    keys = list(own)

    def place(name: bytes) -> bytes:
        if name not in keys:
            keys.append(name)
        return (keys.index(name) + 1).to_bytes(2, "big")

    written = []
    for given in rows:
        row = bytearray(given)
        row[8:10] = place(b"{p}c%x" % (int.from_bytes(row[4:8], "big") & 0x3FF))
        row[10:12] = place(b"{p}q%x" % (int.from_bytes(row[12:16], "big") & 0x3FF))
        row[16:18] = place(
            b"{p}s%d:%d" % (int.from_bytes(row[18:22], "big"), int.from_bytes(row[22:26], "big"))
        )
        row[26:28] = place(b"{p}x%d" % number)
        burnt = any(row[30:42])
        row[28:30] = place(b"{p}q%x" % (int.from_bytes(row[30:34], "big") & 0x3FF)) if burnt else b"\0\1"
        written.append(bytes(row))
    command: tuple[Any, ...] = ("EVALSHA", sha, len(keys), *keys, *args, *written)
    packed: bytes = hiredis.pack_command(command)
    return packed


@pytest.mark.parametrize("count", [0, 1, 2, 64, 300])
def test_a_call_is_what_the_driver_writes(kernel: ModuleType, count: int) -> None:
    draw = random.Random(count)
    pointers = kernel.Pointers(FIXED, 0x3FF, SHAPE)
    own, args = [b"{p}m", b"{p}e"], [b"1800000000000", b"1"]
    for number in (0, 29_000_000, 2**63):
        rows = [some_row(draw) for _ in range(count)]
        found = kernel.script_call(pointers, b"a" * 40, b"{p}", own, number, args, rows)
        assert found == expected(b"a" * 40, own, number, args, rows)
        assert rows == [bytes(row) for row in rows], "what was given is not changed"


def test_the_kernel_equals_its_twin_on_many_keys() -> None:
    """As many different keys as a batch can have: the table of them is full of neighbours."""
    draw = random.Random(1)
    rows = [draw.randbytes(FIXED) for _ in range(1_000)]
    found = [
        module.script_call(
            module.Pointers(FIXED, 2**32 - 1, SHAPE), b"sha", b"{tag.1}", [b"m"], 7, [b"1"], rows
        )
        for module in (ext.script_calls, ext.script_calls_reference)
    ]
    assert found[0] == found[1]


def test_any_byte_is_a_letter(kernel: ModuleType) -> None:
    for letter in (b"\0", b"\x7f", b"\x80", b"\xff"):
        pointers = kernel.Pointers(12, 0xF, [(8, "bucket", 0, letter), (10, "bucket", 4, letter)])
        found = kernel.script_call(pointers, b"sha", b"p", [], 0, [], [b"\0\0\0\5" * 3])
        assert found == hiredis.pack_command(
            ("EVALSHA", b"sha", 1, b"p" + letter + b"5", b"\0\0\0\5" * 2 + b"\0\1" * 2)  # type: ignore[arg-type]
        )


def test_rows_are_grouped_by_partition_in_order(kernel: ModuleType) -> None:
    rows = [(partition << 6 | 63).to_bytes(2, "big") + b"rest" for partition in (5, 0, 1023, 5, 5, 0)]
    assert kernel.group_rows(rows, 64) == [(5, [0, 3, 4]), (0, [1, 5]), (1023, [2])]
    assert kernel.group_rows(rows, 2) == [(5, [0, 3]), (0, [1, 5]), (1023, [2]), (5, [4])]
    assert kernel.group_rows([], 2) == []


def test_what_does_not_fit_is_refused(kernel: ModuleType) -> None:
    pointers = kernel.Pointers(FIXED, 0x3FF, SHAPE)
    with pytest.raises(ValueError, match="a row of 41 bytes"):
        kernel.script_call(pointers, b"sha", b"p", [], 0, [], [bytes(FIXED), bytes(FIXED - 1)])
    with pytest.raises(ValueError, match="keys of one call"):
        kernel.script_call(pointers, b"sha", b"p", [], 0, [], [bytes(FIXED)] * 13_108)
    with pytest.raises(ValueError, match="row 1 has less"):
        kernel.group_rows([b"12", b"1"], 1)
    with pytest.raises(ValueError, match="groups of 0"):
        kernel.group_rows([b"12"], 0)


@pytest.mark.parametrize(
    ("row_bytes", "mask", "pointer", "said"),
    [
        (1, 0, (0, "bucket", 0, b"c"), "rows of 1 bytes"),
        (40, 2**32, (0, "bucket", 0, b"c"), "mask of buckets"),
        (40, 0, (0, "slot", 0, b"c"), "kind of a pointer"),
        (40, 0, (39, "bucket", 0, b"c"), "a place at byte 39"),
        (40, 0, (-1, "bucket", 0, b"c"), "a place at byte -1"),
        (40, 0, (0, "bucket", 37, b"c"), "a source at byte 37"),
        (40, 0, (0, "bucket?", 29, b"c"), "a source at byte 29"),
        (40, 0, (0, "pair", 33, b"c"), "a source at byte 33"),
        (40, 0, (0, "pair", 0, b""), "a letter of 0 bytes"),
    ],
)
def test_pointers_that_are_none_are_refused(
    kernel: ModuleType, row_bytes: int, mask: int, pointer: Any, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        kernel.Pointers(row_bytes, mask, [pointer])


def test_one_letter_names_keys_of_one_kind(kernel: ModuleType) -> None:
    with pytest.raises(ValueError, match="two kinds"):
        kernel.Pointers(40, 0, [(0, "pair", 0, b"c"), (2, "bucket", 0, b"c")])
    with pytest.raises(ValueError, match="9 pointers"):
        kernel.Pointers(40, 0, [(0, "pair", 0, b"c")] * 9)
