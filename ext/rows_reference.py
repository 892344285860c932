"""The twin of ext/rows.pyx in plain Python, to read and to compare with. See ext/rows.pyi."""

from collections.abc import Iterable
from hashlib import sha256

import numpy as np
import numpy.typing as npt

from ext.claims import pack


def _spans(
    buffer: bytes, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> Iterable[tuple[int, int]]:
    if len(starts) != len(ends):
        raise ValueError(f"{len(starts)} starts and {len(ends)} ends of spans; expected as many of both")
    spans = list(zip(starts.tolist(), ends.tolist(), strict=True))
    for n, (start, end) in enumerate(spans):
        if not 0 <= start <= end <= len(buffer):
            raise ValueError(f"span {n} is {start} to {end}; expected a piece of {len(buffer)} bytes")
    return spans


def slices(buffer: bytes, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> list[bytes]:
    """See ext/rows.pyi."""
    return [buffer[start:end] for start, end in _spans(buffer, starts, ends)]


def gather(
    buffer: bytes, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> tuple[bytes, npt.NDArray[np.uint64]]:
    """See ext/rows.pyi."""
    return pack(slices(buffer, starts, ends))


def join_rows(
    rows: bytes, width: int, buffer: bytes, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> list[bytes]:
    """See ext/rows.pyi."""
    tails = slices(buffer, starts, ends)
    if width < 0 or len(rows) != len(tails) * width:
        raise ValueError(f"{len(rows)} bytes of rows; expected {len(tails)} of {width} bytes")
    return [rows[n * width : (n + 1) * width] + tail for n, tail in enumerate(tails)]


def digests(
    head: bytes,
    numbers: npt.NDArray[np.uint32],
    middle: bytes,
    buffer: bytes,
    starts: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    tail: bytes,
    size: int,
) -> bytes:
    """See ext/rows.pyi."""
    if not 1 <= size <= sha256().digest_size:
        raise ValueError(f"digests of {size} bytes; expected 1 to {sha256().digest_size}")
    texts = slices(buffer, starts, ends)
    if numbers.shape[1] != len(texts):
        raise ValueError(f"numbers of {numbers.shape[1]} texts; expected {len(texts)}")
    callers = [":".join(map(str, column)).encode() for column in numbers.T.tolist()]
    return b"".join(
        sha256(head + caller + middle + text + tail).digest()[:size]
        for caller, text in zip(callers, texts, strict=True)
    )
