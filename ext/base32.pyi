"""Base32 with Crockford's digits (0-9 A-Z without I, L, O, U), strict: one spelling for one string of bytes.

Big-endian groups of five bits as in RFC 4648, section 6, without padding; only the digits are Crockford's: upper case
alone, no look-alikes, no hyphens, no check symbol. The bits of the last character that carry no data are zero.
"""

from collections.abc import Iterable

from typing_extensions import Buffer

__pyx_capi__: dict[str, object]

def encode(data: bytes) -> str:
    """The text of some bytes: ceil(8 * n / 5) characters."""

def decode(text: str) -> bytes:
    """The bytes of a text. Raises ``ValueError`` for every text that :func:`encode` never gives."""

def encode_batch(data: Buffer, size: int) -> list[str]:
    """The texts of n items of size bytes each. data: contiguous bytes, n * size of them, else ``ValueError``."""

def decode_batch(texts: Iterable[str], size: int) -> bytes:
    """The bytes of n texts that stand for size bytes each: n * size. Raises ``ValueError`` at the first wrong one."""
