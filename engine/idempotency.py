"""Digests that make a retry recognisable: of the request, and of the body that must agree.

The scope of a request id is (caller, verb): two callers may use the same id, and so may one caller for two verbs. The body
that must agree is what the caller wants done: never the payload's text, the position or the PIN, because a retry comes with
a fresh QR code, from a step further on, or with the PIN typed again.

Both are SHA-256 (FIPS 180-4) cut short, each over a label of its own, so no text is ever both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Final

import numpy as np
import numpy.typing as npt

from engine.claims import UID_BYTES
from ext.lane import digests

REQUEST_BYTES: Final = 12
"""96 bits: among a hundred million remembered requests of a partition two share a digest with probability 10**-13."""
BODY_BYTES: Final = 8
"""64 bits: compared with one other digest only, that of the same request id."""

_REQUEST_LABEL: Final = b"pickgate/request/1:"
_BODY_LABEL: Final = b"pickgate/body/1:"


def request_digest(caller: str, verb: str, request_id: str) -> bytes:
    """Digest (12 bytes) of a request id in its scope, for example ("terminal:7:2001:3", "redeem", id)."""
    return sha256(_REQUEST_LABEL + f"{caller}\0{verb}\0{request_id}".encode()).digest()[:REQUEST_BYTES]


def terminal_digests(
    terminals: npt.NDArray[np.uint32],
    verb: str,
    request_ids: bytes,
    starts: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
) -> bytes:
    """`request_digest` of n requests of terminals, back to back.

    terminals: 3 × n, mall, store and terminal. request_ids: a buffer; id i is request_ids[starts[i]:ends[i]], in UTF-8.
    """
    return digests(
        _REQUEST_LABEL + b"terminal:",
        terminals,
        b"\0" + verb.encode() + b"\0",
        request_ids,
        starts,
        ends,
        b"",
        REQUEST_BYTES,
    )


def body_digest(*parts: bytes | int | str | Iterable[tuple[int, ...]]) -> bytes:
    """Digest (8 bytes) of what a request wants done. Each part is framed by its length, so parts can't run together."""
    return sha256(_BODY_LABEL + b"".join(map(_framed, parts))).digest()[:BODY_BYTES]


def uid_digests(uids: bytes, *rest: bytes | int | str | Sequence[tuple[int, ...]]) -> bytes:
    """`body_digest` of n bodies that are a uid (8 bytes each, back to back) and the same parts behind it, back to back."""
    starts = np.arange(0, len(uids), UID_BYTES, dtype=np.int64)
    return digests(
        _BODY_LABEL + UID_BYTES.to_bytes(4, "big"),
        np.zeros((0, len(starts)), np.uint32),
        b"",
        uids,
        starts,
        starts + UID_BYTES,
        b"".join(map(_framed, rest)),
        BODY_BYTES,
    )


def _framed(part: bytes | int | str | Iterable[tuple[int, ...]]) -> bytes:
    if isinstance(part, bytes):
        data = part
    elif isinstance(part, int):
        data = b"%d" % part
    elif isinstance(part, str):
        data = part.encode()
    else:
        data = repr([tuple(item) for item in part]).encode("ascii")
    return len(data).to_bytes(4, "big") + data
