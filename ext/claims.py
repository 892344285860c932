"""The shapes that the kernels and their twin share: sizes, labels and the array type of claims.

Layouts and values are those of docs/format.md.
"""

from collections.abc import Sequence
from enum import IntEnum, unique
from typing import Final

import numpy as np
import numpy.typing as npt


@unique
class Version(IntEnum):
    """How a code is protected: the high half of the header byte."""

    STATIC = 1
    """Authenticated, readable, valid until it expires; also has a typed form."""
    DYNAMIC = 2
    """Encrypted, then authenticated; rendered anew while it is shown."""
    VALUABLE = 3
    """As DYNAMIC, and signed by the issuer."""


@unique
class Suite(IntEnum):
    """Which algorithms: the low half of the header byte."""

    AES = 1
    """AES-256-CTR, HMAC-SHA-256, HKDF-SHA-256, Ed25519."""
    SM = 2
    """SM4-CTR, HMAC-SM3, HKDF-SM3, SM2 with SM3."""


PAYLOAD_SIZE: Final[dict[int, int]] = {Version.STATIC: 31, Version.DYNAMIC: 47, Version.VALUABLE: 115}
"""Bytes of a payload, by version."""

TEXT_SIZE: Final[dict[int, int]] = {Version.STATIC: 52, Version.DYNAMIC: 78, Version.VALUABLE: 186}
"""Characters of a payload's text, prefix included, by version."""

TEXT_PREFIX: Final = "PG"
ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Crockford's base32 digits, without I, L, O and U."""

LABEL_ENC: Final = b"pickgate/enc/1:"
LABEL_MAC: Final = b"pickgate/mac/1:"
LABEL_TAG: Final = b"pickgate/tag/1:"
LABEL_SIG: Final = b"pickgate/sig/1:"

TAG_SIZE: Final = 16
SIGNATURE_SIZE: Final = 64
SECRET_SIZE: Final = 32
"""Bytes of a key's secret, of every suite, and of a PRF's key."""
KID_MAX: Final = 65_535

CLAIMS: Final[np.dtype[np.void]] = np.dtype(
    {
        "names": [
            "status",
            "version",
            "suite",
            "kid",
            "qty",
            "uid",
            "stamp",
            "exp",
            "store",
            "item",
            "amount",
            "flags",
        ],
        "formats": ["u1", "u1", "u1", "u2", "u2", "V8", "u4", "u4", "u4", "u4", "u4", "u2"],
        # Explicit offsets, so that every number is aligned and the C struct of ext/seal.pyx can be laid over a row.
        "offsets": [0, 1, 2, 4, 6, 8, 16, 20, 24, 28, 32, 36],
        "itemsize": 40,
    }
)
"""One row per code; numbers in the machine's byte order.

status: :class:`ext.status.OpenStatus`. version, suite: zero unless the header passed check F5. kid: the key's id.
uid: its 8 bytes as they are in the payload (big-endian). stamp, exp: unix seconds. store: store id. item: SKU id, 0
for "several lines, see the record". qty: units. flags: reserved, zero. amount: fen. A field that the version doesn't
carry is zero; so is everything but status, version and suite when status isn't OK.
"""


def pack(items: Sequence[bytes]) -> tuple[bytes, npt.NDArray[np.uint64]]:
    """Join items into one buffer and the offsets (uint64, length n + 1) that the batch functions take."""
    offsets = np.zeros(len(items) + 1, dtype=np.uint64)
    if items:
        np.cumsum([len(item) for item in items], out=offsets[1:])
    return b"".join(items), offsets
