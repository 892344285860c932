"""Digests that make a retry recognisable: of the request, and of the body that must agree.

The scope of a request id is (caller, verb): two callers may use the same id, and so may one caller for two verbs. The body
that must agree is what the caller wants done: never the payload's text, the position or the PIN, because a retry comes with
a fresh QR code, from a step further on, or with the PIN typed again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

REQUEST_BYTES: Final = 12
"""96 bits: among a hundred million remembered requests of a partition two share a digest with probability 10**-13."""
BODY_BYTES: Final = 8
"""64 bits: compared with one other digest only, that of the same request id."""


def request_digest(caller: str, verb: str, request_id: str) -> bytes:
    """Digest (12 bytes, BLAKE2b, RFC 7693) of a request id in its scope, for example ("terminal:7:2001:3", "redeem", id)."""
    text = "\0".join((caller, verb, request_id)).encode()
    return blake2b(text, digest_size=REQUEST_BYTES, person=b"pickgate-request").digest()


def body_digest(*parts: bytes | int | str | Iterable[tuple[int, ...]]) -> bytes:
    """Digest (8 bytes, BLAKE2b) of what a request wants done. Each part is framed by its length, so parts can't run together."""
    hasher = blake2b(digest_size=BODY_BYTES, person=b"pickgate-body")
    for part in parts:
        if isinstance(part, int):
            data = b"%d" % part
        elif isinstance(part, str):
            data = part.encode()
        elif isinstance(part, bytes):
            data = part
        else:
            data = repr([tuple(item) for item in part]).encode("ascii")
        hasher.update(struct.pack(">I", len(data)))
        hasher.update(data)
    return hasher.digest()
