"""Texts and numbers of a batch into rows of bytes, the GIL released: what a script takes of each call.

A span is a piece of one buffer, ``buffer[starts[i]:ends[i]]``; starts and ends are int64 arrays of one length. A span that lies not
in its buffer raises ``ValueError``.
"""

import numpy as np
import numpy.typing as npt

def gather(
    buffer: bytes, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> tuple[bytes, npt.NDArray[np.uint64]]:
    """Spans back to back, and the offsets (n + 1) that the batch functions of :mod:`ext.seal` take."""

def slices(buffer: bytes, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> list[bytes]:
    """Each span by itself."""

def join_rows(
    rows: bytes, width: int, buffer: bytes, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> list[bytes]:
    """N rows of width bytes each, back to back, taken apart, the i-th span behind the i-th row.

    Raises ``ValueError`` when rows is not n * width bytes.
    """

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
    """Digests of n texts, back to back: SHA-256 (FIPS 180-4) cut to its first size bytes, 1 to 32.

    Text i is head, the numbers of column i in decimal with colons between them, middle, span i, and tail. numbers: k × n.
    """
