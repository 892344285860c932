"""What most would write: each code sealed and opened by itself, with calls of the `cryptography` package.

The comparison that a speed-up is claimed against, so it is written well and not slowed down: keys are derived and
their objects prepared once; each code has its own Cipher and HMAC object. `copied` goes one trick further and lets each
code copy an HMAC that has been keyed once, which not everybody knows and which is two to three times as fast as
keying it anew. Layouts are those of docs/format.md. `cryptography` has no SM2, so there is nothing to compare version 3 of the
SM suite with.
"""

import struct
from base64 import b32decode
from collections.abc import Sequence
from hmac import compare_digest
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ext.claims import ALPHABET, LABEL_ENC, LABEL_MAC, LABEL_SIG, LABEL_TAG, PAYLOAD_SIZE, Suite, Version

_RFC_4648: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_TO_RFC_4648: Final = str.maketrans(ALPHABET, _RFC_4648)

_HEAD: Final = struct.Struct(">BH8s")
_STATIC: Final = struct.Struct(">BH8sI")
_DYNAMIC: Final = struct.Struct(">BH8sI")
_DYNAMIC_SEALED: Final = struct.Struct(">IIIHH")
_VALUABLE: Final = struct.Struct(">BH8sIII")
_VALUABLE_SEALED: Final = struct.Struct(">IHHI")


class PlainClaims(NamedTuple):
    """What a payload says; a field that its version doesn't carry is 0."""

    uid: bytes
    stamp: int = 0
    exp: int = 0
    store: int = 0
    item: int = 0
    qty: int = 0
    flags: int = 0
    amount: int = 0


class PlainKey:
    """One key, prepared once: `seal` and `open` take one code each."""

    def __init__(
        self,
        kid: int,
        version: Version,
        suite: Suite,
        secret: bytes,
        private: bytes | None = None,
        *,
        copied: bool = False,
    ) -> None:
        self.kid = kid
        self.version = version
        self.header = version << 4 | suite
        digest: hashes.HashAlgorithm = hashes.SHA256() if suite is Suite.AES else hashes.SM3()
        bound = bytes([self.header]) + kid.to_bytes(2)
        key_size = 32 if suite is Suite.AES else 16
        cipher_key = HKDF(digest, key_size, None, LABEL_ENC + bound).derive(secret)
        self._cipher = algorithms.AES(cipher_key) if suite is Suite.AES else algorithms.SM4(cipher_key)
        self._digest = digest
        self._mac_key = HKDF(digest, 32, None, LABEL_MAC + bound).derive(secret)
        self._keyed = hmac.HMAC(self._mac_key, digest) if copied else None
        self._signer = Ed25519PrivateKey.from_private_bytes(private) if private else None
        self._verifier = self._signer.public_key() if self._signer else None

    def _tag(self, body: bytes) -> bytes:
        mac = self._keyed.copy() if self._keyed else hmac.HMAC(self._mac_key, self._digest)
        mac.update(LABEL_TAG + body)
        return mac.finalize()[:16]

    def _crypt(self, uid: bytes, stamp: int, data: bytes) -> bytes:
        # Counter mode is its own inverse.
        counter_block = uid + stamp.to_bytes(4) + bytes(4)
        return Cipher(self._cipher, modes.CTR(counter_block)).encryptor().update(data)

    def seal(self, claims: PlainClaims) -> bytes:
        """Return the payload of one code."""
        uid, stamp, exp, store, item, qty, flags, amount = claims
        if self.version is Version.STATIC:
            body = _STATIC.pack(self.header, self.kid, uid, exp)
            return body + self._tag(body)
        if self.version is Version.DYNAMIC:
            clear = _DYNAMIC.pack(self.header, self.kid, uid, stamp)
            body = clear + self._crypt(uid, stamp, _DYNAMIC_SEALED.pack(store, exp, item, qty, flags))
            return body + self._tag(body)
        assert self._signer is not None
        clear = _VALUABLE.pack(self.header, self.kid, uid, stamp, store, exp)
        body = clear + self._crypt(uid, stamp, _VALUABLE_SEALED.pack(item, qty, flags, amount))
        body += self._tag(body)
        return body + self._signer.sign(LABEL_SIG + body)

    def open(self, payload: bytes) -> PlainClaims | None:
        """Return the claims of one payload whose kid is this key's, None if it is not genuine."""
        if len(payload) != PAYLOAD_SIZE[self.version] or payload[0] != self.header:
            return None
        if self.version is Version.STATIC:
            body, tag = payload[:15], payload[15:]
        elif self.version is Version.DYNAMIC:
            body, tag = payload[:31], payload[31:]
        else:
            body, tag = payload[:35], payload[35:51]
        if not compare_digest(self._tag(body), tag):
            return None
        if self.version is Version.STATIC:
            _, _, uid, exp = _STATIC.unpack(body)
            return PlainClaims(uid, exp=exp)
        if self.version is Version.DYNAMIC:
            _, _, uid, stamp = _DYNAMIC.unpack_from(body)
            sealed = self._crypt(uid, stamp, body[15:])
            store, exp, item, qty, flags = _DYNAMIC_SEALED.unpack(sealed)
            return None if flags else PlainClaims(uid, stamp, exp, store, item, qty)
        assert self._verifier is not None
        try:
            self._verifier.verify(payload[51:], LABEL_SIG + payload[:51])
        except InvalidSignature:
            return None
        _, _, uid, stamp, store, exp = _VALUABLE.unpack_from(body)
        item, qty, flags, amount = _VALUABLE_SEALED.unpack(self._crypt(uid, stamp, body[23:]))
        return None if flags else PlainClaims(uid, stamp, exp, store, item, qty, 0, amount)


def open_each(keys: dict[int, PlainKey], payloads: Sequence[bytes]) -> list[PlainClaims | None]:
    """Open payloads one after the other, each with the key that its kid names."""
    opened = []
    for payload in payloads:
        key = keys.get(int.from_bytes(payload[1:3]))
        opened.append(key.open(payload) if key else None)
    return opened


def parse(text: str) -> bytes | None:
    """Return the bytes of a code's text, None if it is not a text of ours, canonical to the last bit."""
    if not text.startswith("PG"):
        return None
    digits = text[2:].translate(_TO_RFC_4648)
    try:
        payload = b32decode(digits + "=" * (-len(digits) % 8))
    except ValueError:
        return None
    return payload if len(payload) in PAYLOAD_SIZE.values() else None
