"""Payloads of version 2, suite 1 (docs/format.md), one at a time with objects of the `cryptography` package."""

from __future__ import annotations

import struct
from base64 import b32decode, b32encode
from hmac import compare_digest
from typing import Final, NamedTuple

from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

HEADER: Final = 0x21
PAYLOAD_BYTES: Final = 47
TEXT_CHARS: Final = 78
_TAG_BYTES: Final = 16
_CLEAR: Final = struct.Struct(">BH8sI")
_SEALED: Final = struct.Struct(">IIIHH")
_CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_RFC_4648: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_READ: Final = str.maketrans(_CROCKFORD, _RFC_4648)
_WRITE: Final = str.maketrans(_RFC_4648, _CROCKFORD)
_UID_SHAPE: Final = 0x1FFFFF << 33
"""Bits of which a dynamic code's uid has at least one."""
_ALPHABET: Final = frozenset(_CROCKFORD)


class Claims(NamedTuple):
    """What a payload says; times are unix seconds."""

    uid: bytes
    stamp: int
    store_id: int
    expires_at_s: int
    item: int
    quantity: int


class Key:
    """One key, derived once; each payload has its own Cipher and HMAC object.

    Args:
        kid: 1 .. 65,535.
        secret: 32 bytes.
    """

    def __init__(self, kid: int, secret: bytes) -> None:
        self.kid = kid
        bound = bytes([HEADER]) + kid.to_bytes(2, "big")
        cipher_key = HKDF(hashes.SHA256(), 32, None, b"pickgate/enc/1:" + bound).derive(secret)
        self._cipher = algorithms.AES(cipher_key)
        self._mac_key = HKDF(hashes.SHA256(), 32, None, b"pickgate/mac/1:" + bound).derive(secret)

    def seal(self, claims: Claims) -> str:
        """The text of one payload."""
        clear = _CLEAR.pack(HEADER, self.kid, claims.uid, claims.stamp)
        sealed = _SEALED.pack(claims.store_id, claims.expires_at_s, claims.item, claims.quantity, 0)
        body = clear + self._crypt(claims.uid, claims.stamp, sealed)
        mac = self._mac(body).finalize()[:_TAG_BYTES]
        return "PG" + b32encode(body + mac).decode("ascii").rstrip("=").translate(_WRITE)

    def open(self, text: str) -> Claims | None:
        """What a text says; None if it is not genuine."""
        payload = _parse(text)
        if payload is None:
            return None
        header, kid, uid, stamp = _CLEAR.unpack_from(payload)
        if header != HEADER or kid != self.kid:
            return None
        body, tag = payload[:-_TAG_BYTES], payload[-_TAG_BYTES:]
        if not compare_digest(self._mac(body).finalize()[:_TAG_BYTES], tag):
            return None
        store_id, expires_at_s, item, quantity, flags = _SEALED.unpack(
            self._crypt(uid, stamp, body[_CLEAR.size :])
        )
        if flags or not int.from_bytes(uid, "big") & _UID_SHAPE:
            return None
        return Claims(uid, stamp, store_id, expires_at_s, item, quantity)

    def _crypt(self, uid: bytes, stamp: int, data: bytes) -> bytes:
        """Counter mode, its own inverse."""
        counter = uid + stamp.to_bytes(4, "big") + bytes(4)
        return Cipher(self._cipher, modes.CTR(counter)).encryptor().update(data)

    def _mac(self, body: bytes) -> hmac.HMAC:
        made = hmac.HMAC(self._mac_key, hashes.SHA256())
        made.update(b"pickgate/tag/1:" + body)
        return made


def _parse(text: str) -> bytes | None:
    """Bytes of a text, None if it is not canonical."""
    if len(text) != TEXT_CHARS or not text.startswith("PG") or not _ALPHABET.issuperset(text[2:]):
        return None
    digits = text[2:].translate(_READ)
    payload = b32decode(digits + "=" * (-len(digits) % 8))
    # The last character carries one bit of the payload; the other four must be zero.
    return payload if _CROCKFORD.index(text[-1]) % 16 == 0 else None
