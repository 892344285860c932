"""Texts and numbers of a batch into rows of bytes, the GIL released: what a script takes of each call.

A span is a piece of one buffer, ``buffer[starts[i]:ends[i]]``; starts and ends are int64 arrays of one length. A span that lies not
in its buffer raises ``ValueError``.
"""

from collections.abc import Mapping, Sequence
from typing import final

import numpy as np
import numpy.typing as npt

@final
class Judge:
    """Judges attempts by what needs no state, and writes a row of bytes for each: numbers big-endian, all else as it is.

    blank: a row of an attempt against which nothing is found. at: where in it stands what is written of each: uid (8 bytes), request (12),
    body (8), mall, store and terminal (4 each), version, stale, generation_1, generation_2, place, closed, window, bucket and dry (1 each),
    actor_len (2). skew_s: what clocks may differ. static_version: of payloads that do not go stale. accuracy_m_max: a position less accurate says
    nothing. allowance_m_max: what of the accuracy counts for the caller. location_required, location_unreliable, out_of_range: the numbers that
    `place` has of what is found. Raises ``ValueError`` for a place outside the row.
    """

    def __init__(
        self,
        blank: bytes,
        at: Mapping[str, int],
        *,
        skew_s: int,
        static_version: int,
        accuracy_m_max: float,
        allowance_m_max: float,
        location_required: int,
        location_unreliable: int,
        out_of_range: int,
    ) -> None: ...
    def rows(
        self,
        claims: npt.NDArray[np.void],
        table: npt.NDArray[np.void],
        own: list[int],
        codes: list[int],
        terminals: npt.NDArray[np.uint32],
        places: npt.NDArray[np.float64],
        requests: bytes,
        bodies: bytes,
        actor_chars: npt.NDArray[np.int64],
        generations: Sequence[int] | None,
        now_s: int,
    ) -> bytes:
        """Rows of n attempts, back to back.

        claims: of their codes, rows of ext.claims.CLAIMS. table: rows of ext.standing.STANDING; own and codes say, for each attempt, which of them
        is that of the terminal's store and which of the payload's. terminals: 3 × n, mall, store, terminal. places: 4 × n, latitude and longitude in degrees,
        accuracy in metres, datum (0: no position was stated). requests: n × 12 bytes. bodies: n × 8 bytes. actor_chars: n.
        generations: two of the PIN key; None to inspect, and then nothing of requests and bodies is looked at. now_s: unix seconds.

        A payload is stale from its expiry on, and, unless it is static, before its stamp less skew_s and after stamp, life and skew_s. A position passes
        when distance <= radius + min(accuracy, allowance_m_max), both in its datum; the bucket is that of ext.geo.distance_bucket.

        Raises ``TypeError`` for rows of another kind, ``ValueError`` when lengths differ, or for a row or a datum that there is not.
        """

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
