"""Digests that make a retry recognisable: of the request, and of the body that must agree.

The scope of a request id is (caller, verb): two callers may use the same id, and so may one caller for two verbs. The body
that must agree is what the caller wants done: never the payload's text, the position or the PIN, because a retry comes with
a fresh QR code, from a step further on, or with the PIN typed again.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

REQUEST_BYTES: Final = 12
"""96 bits: among a hundred million remembered requests of a partition two share a digest with probability 10**-13."""
BODY_BYTES: Final = 8
"""64 bits: compared with one other digest only, that of the same request id."""


_REQUESTS: Final = blake2b(digest_size=REQUEST_BYTES, person=b"pickgate-request")
_BODIES: Final = blake2b(digest_size=BODY_BYTES, person=b"pickgate-body")
"""Hashers with nothing in them yet: a copy costs a third of a new one."""


def request_digest(caller: str, verb: str, request_id: str) -> bytes:
    """Digest (12 bytes, BLAKE2b, RFC 7693) of a request id in its scope, for example ("terminal:7:2001:3", "redeem", id)."""
    hasher = _REQUESTS.copy()
    hasher.update(f"{caller}\0{verb}\0{request_id}".encode())
    return hasher.digest()


def body_digest(*parts: bytes | int | str | Iterable[tuple[int, ...]]) -> bytes:
    """Digest (8 bytes, BLAKE2b) of what a request wants done. Each part is framed by its length, so parts can't run together."""
    framed: list[bytes] = []
    for part in parts:
        if isinstance(part, bytes):
            data = part
        elif isinstance(part, int):
            data = b"%d" % part
        elif isinstance(part, str):
            data = part.encode()
        else:
            data = repr([tuple(item) for item in part]).encode("ascii")
        framed += (len(data).to_bytes(4, "big"), data)
    hasher = _BODIES.copy()
    hasher.update(b"".join(framed))
    return hasher.digest()
