"""Ciphers, digests, HMAC, HKDF and a keyed PRF, on libcrypto's EVP.

Everything takes and gives ``bytes``. Suites are those of :class:`ext.claims.Suite`. Any function may raise
``MemoryError`` when libcrypto has none left.
"""

from collections.abc import Sequence
from typing import Final, NoReturn, Self, final

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

__pyx_capi__: dict[str, object]

def aes_256_ctr(key: bytes, iv: bytes, data: bytes) -> bytes:
    """AES-256 in counter mode (FIPS 197; NIST SP 800-38A, section 6.5); its own inverse.

    key: 32 bytes. iv: the initial counter block, 16 bytes, counted up as one big-endian number. data: at most 2**30
    bytes. Other lengths raise ``ValueError``.
    """

def sm4_ctr(key: bytes, iv: bytes, data: bytes) -> bytes:
    """SM4 (GB/T 32907-2016) in counter mode (NIST SP 800-38A, section 6.5); as :func:`aes_256_ctr`, key 16 bytes."""

def sha256(message: bytes) -> bytes:
    """SHA-256 (FIPS 180-4, section 6.2): 32 bytes."""

def sm3(message: bytes) -> bytes:
    """SM3 (GB/T 32905-2016): 32 bytes."""

def hmac_sha256(key: bytes, message: bytes) -> bytes:
    """HMAC (RFC 2104) with SHA-256: 32 bytes. A key of any length."""

def hmac_sm3(key: bytes, message: bytes) -> bytes:
    """HMAC (RFC 2104) with SM3: 32 bytes. A key of any length."""

def hkdf(suite: int, secret: bytes, salt: bytes, info: bytes, size: int) -> bytes:
    """HKDF, extract then expand (RFC 5869, sections 2.2 and 2.3), with SHA-256 (suite 1) or SM3 (suite 2).

    An empty salt is the RFC's default salt of zeros. size: 1 to 8160 bytes. Raises ``ValueError`` otherwise, and for
    an unknown suite.
    """

@final
class Prf:
    """A pseudo-random function keyed once: HMAC-SHA-256 (suite 1) or HMAC-SM3 (suite 2), 32 bytes out.

    May be used from many threads at once. Never shows, gives back or serialises its key.
    """

    suite: Final[int]
    """1 or 2."""

    def __new__(cls, suite: int, key: bytes) -> Self:
        """key: exactly 32 bytes. Raises ``ValueError`` otherwise, and for an unknown suite."""

    def one(self, message: bytes) -> bytes:
        """The function of one message of any length: 32 bytes."""

    def batch(
        self, messages: Buffer, offsets: npt.NDArray[np.uint32] | npt.NDArray[np.uint64] | Sequence[int]
    ) -> bytes:
        """The function of n messages at once, with the GIL released: n * 32 bytes.

        messages: contiguous bytes; message i is ``messages[offsets[i]:offsets[i + 1]]``. offsets: n + 1 integers that
        never fall and end inside the buffer; anything else raises ``ValueError``.
        """

    def __reduce__(self) -> NoReturn: ...
