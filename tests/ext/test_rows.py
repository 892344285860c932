"""Columns into rows: spans, rows with their tails, digests."""

from __future__ import annotations

import random
from hashlib import sha256
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import ext.rows
import ext.rows_reference


@pytest.fixture(params=[ext.rows, ext.rows_reference], ids=["native", "reference"])
def kernel(request: pytest.FixtureRequest) -> Any:
    return request.param


def spans(draw: random.Random, count: int) -> tuple[bytes, Any, Any]:
    buffer = draw.randbytes(draw.randrange(200))
    pairs = [sorted((draw.randint(0, len(buffer)), draw.randint(0, len(buffer)))) for _ in range(count)]
    table = np.array(pairs, np.int64).reshape(count, 2)
    return buffer, np.ascontiguousarray(table[:, 0]), np.ascontiguousarray(table[:, 1])


def pieces(buffer: bytes, starts: Any, ends: Any) -> list[bytes]:
    return [buffer[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_spans_come_out_as_they_are(kernel: ModuleType, count: int) -> None:
    draw = random.Random(count)
    for _ in range(20):
        buffer, starts, ends = spans(draw, count)
        expected = pieces(buffer, starts, ends)
        assert kernel.slices(buffer, starts, ends) == expected
        gathered, offsets = kernel.gather(buffer, starts, ends)
        assert gathered == b"".join(expected)
        assert offsets.dtype == np.uint64
        assert offsets.tolist() == [sum(map(len, expected[:n])) for n in range(count + 1)]
        rows = draw.randbytes(7 * count)
        joined = kernel.join_rows(rows, 7, buffer, starts, ends)
        assert joined == [rows[7 * n : 7 * n + 7] + piece for n, piece in enumerate(expected)]


@pytest.mark.parametrize("size", [1, 8, 12, 32])
def test_digests_are_those_of_the_texts(kernel: ModuleType, size: int) -> None:
    draw = random.Random(size)
    count = 40
    buffer, starts, ends = spans(draw, count)
    numbers = np.array(
        [
            [draw.choice([0, 1, 9, 10, 2**32 - 1, draw.getrandbits(32)]) for _ in range(count)]
            for _ in range(3)
        ],
        np.uint32,
    )
    found = kernel.digests(b"head:", numbers, b"\0middle\0", buffer, starts, ends, b"tail", size)
    expected = [
        sha256(b"head:%d:%d:%d\0middle\0%btail" % (*numbers[:, n].tolist(), piece)).digest()[:size]
        for n, piece in enumerate(pieces(buffer, starts, ends))
    ]
    assert found == b"".join(expected)
    none = np.zeros((0, count), np.uint32)
    plain = kernel.digests(b"head", none, b"", buffer, starts, ends, b"tail", size)
    assert plain == b"".join(
        sha256(b"head" + piece + b"tail").digest()[:size] for piece in pieces(buffer, starts, ends)
    )


def test_numbers_may_be_a_view(kernel: ModuleType) -> None:
    """Columns taken out of a table need no copy."""
    numbers = np.arange(12, dtype=np.uint32).reshape(4, 3).T
    at = np.zeros(4, np.int64)
    assert kernel.digests(b"", numbers, b"", b"", at, at, b"", 8) == kernel.digests(
        b"", np.ascontiguousarray(numbers), b"", b"", at, at, b"", 8
    )


@pytest.mark.parametrize(
    ("starts", "ends", "said"),
    [
        ([-1], [1], "span 0"),
        ([0, 3], [1, 2], "span 1"),
        ([0], [6], "span 0"),
        ([2**62], [2**62], "span 0"),
        ([0, 1], [1], "as many of both"),
    ],
)
def test_spans_outside_the_buffer_are_refused(
    kernel: ModuleType, starts: list[int], ends: list[int], said: str
) -> None:
    one, other = np.array(starts, np.int64), np.array(ends, np.int64)
    numbers = np.zeros((3, len(starts)), np.uint32)
    for name, arguments in {
        "slices": (b"12345", one, other),
        "gather": (b"12345", one, other),
        "join_rows": (bytes(len(starts)), 1, b"12345", one, other),
        "digests": (b"", numbers, b"", b"12345", one, other, b"", 8),
    }.items():
        with pytest.raises(ValueError, match=said):
            getattr(kernel, name)(*arguments)


def test_sizes_that_do_not_fit_are_refused(kernel: ModuleType) -> None:
    none = np.zeros(0, np.int64)
    one = np.zeros(1, np.int64)
    with pytest.raises(ValueError, match="of 3 bytes"):
        kernel.join_rows(b"1234", 3, b"", one, one)
    for size in (0, 33):
        with pytest.raises(ValueError, match="expected 1 to 32"):
            kernel.digests(b"", np.zeros((3, 0), np.uint32), b"", b"", none, none, b"", size)
    with pytest.raises(ValueError, match="numbers of 2 texts"):
        kernel.digests(b"", np.zeros((3, 2), np.uint32), b"", b"", one, one, b"", 8)
