"""The independent twin of the kernels: the same names, written from docs/format.md on ``cryptography`` and ``gmssl``.

It shares with the kernels only the shapes and constants of :mod:`ext.claims` and :mod:`ext.status`. It is the oracle
that the kernels are held against, and what ``PICKGATE_PURE=1`` selects. The ``.pyi`` files beside the kernels document
each function; this file says only what it does otherwise. Counter mode is here counter mode, where the kernel takes a
short cut that one block allows.
"""

import secrets
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from hmac import compare_digest
from itertools import pairwise
from operator import index
from typing import TYPE_CHECKING, Any, Final, NoReturn, final

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ext import sm2_reference
from ext.claims import (
    ALPHABET,
    CLAIMS,
    KID_MAX,
    LABEL_ENC,
    LABEL_MAC,
    LABEL_SIG,
    LABEL_TAG,
    PAYLOAD_SIZE,
    SECRET_SIZE,
    SIGNATURE_SIZE,
    TAG_SIZE,
    TEXT_PREFIX,
    TEXT_SIZE,
    Suite,
    Version,
)
from ext.status import OpenStatus

if TYPE_CHECKING:
    from typing_extensions import Buffer

Offsets = npt.NDArray[np.uint32] | npt.NDArray[np.uint64] | Sequence[int]

_VERSION_OF_SIZE: Final = {size: version for version, size in PAYLOAD_SIZE.items()}
_TEXT_LENGTHS: Final = frozenset(TEXT_SIZE.values())
_VALUES: Final = {digit: value for value, digit in enumerate(ALPHABET)}


# primitives --------------------------------------------------------------------------------------------------------


def _checked_suite(suite: int) -> Suite:
    if suite not in (Suite.AES, Suite.SM):
        raise ValueError(f"no such suite: {suite!r}; 1 (AES) or 2 (SM) expected")
    return Suite(suite)


def _expect_bytes(*values: object) -> None:
    for value in values:
        if not isinstance(value, bytes):
            raise TypeError(f"bytes expected, not {type(value).__name__}")


def _hash_of(suite: int) -> hashes.HashAlgorithm:
    return hashes.SHA256() if suite == Suite.AES else hashes.SM3()


def _ctr(suite: int, key: bytes, iv: bytes, data: bytes) -> bytes:
    _expect_bytes(key, iv, data)
    expected = 32 if suite == Suite.AES else 16
    if len(key) != expected:
        raise ValueError(f"the key has {len(key)} bytes, expected {expected}")
    if len(iv) != 16:
        raise ValueError(f"the counter block has {len(iv)} bytes, expected 16")
    algorithm = algorithms.AES(key) if suite == Suite.AES else algorithms.SM4(key)
    context = Cipher(algorithm, modes.CTR(iv)).encryptor()
    return context.update(data) + context.finalize()


def aes_256_ctr(key: bytes, iv: bytes, data: bytes) -> bytes:
    """AES-256 in counter mode."""
    return _ctr(Suite.AES, key, iv, data)


def sm4_ctr(key: bytes, iv: bytes, data: bytes) -> bytes:
    """SM4 in counter mode."""
    return _ctr(Suite.SM, key, iv, data)


def _digest(suite: int, message: bytes) -> bytes:
    _expect_bytes(message)
    state = hashes.Hash(_hash_of(suite))
    state.update(message)
    return state.finalize()


def sha256(message: bytes) -> bytes:
    """SHA-256."""
    return _digest(Suite.AES, message)


def sm3(message: bytes) -> bytes:
    """SM3."""
    return _digest(Suite.SM, message)


def _keyed(suite: int, key: bytes) -> hmac.HMAC:
    _expect_bytes(key)
    # RFC 2104 pads a key with zeros, so that no key at all and one zero byte are the same key; the library refuses
    # the first.
    return hmac.HMAC(key or b"\x00", _hash_of(suite))


def _mac(keyed: hmac.HMAC, message: bytes) -> bytes:
    _expect_bytes(message)
    state = keyed.copy()
    state.update(message)
    return state.finalize()


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    """HMAC with SHA-256."""
    return _mac(_keyed(Suite.AES, key), message)


def hmac_sm3(key: bytes, message: bytes) -> bytes:
    """HMAC with SM3."""
    return _mac(_keyed(Suite.SM, key), message)


def hkdf(suite: int, secret: bytes, salt: bytes, info: bytes, size: int) -> bytes:
    """HKDF."""
    _expect_bytes(secret, salt, info)
    algorithm = _hash_of(_checked_suite(suite))
    if not 1 <= size <= 255 * 32:
        raise ValueError(f"size is {size}, expected 1 to {255 * 32}")
    return HKDF(algorithm=algorithm, length=size, salt=salt or None, info=info).derive(secret)


def _bounds(offsets: Offsets, size: int) -> list[int]:
    array = np.array(offsets)
    if array.ndim != 1 or array.shape[0] < 1 or array.dtype.kind not in "ui":
        raise ValueError("offsets must be one-dimensional integers, one more than there are items")
    bounds: list[int] = array.tolist()
    if bounds[0] < 0 or any(after < before for before, after in pairwise(bounds)):
        raise ValueError("offsets must not be negative and must not fall")
    if bounds[-1] > size:
        raise ValueError(f"offsets end at {bounds[-1]}, the buffer at {size}")
    return bounds


def _items(data: "Buffer", offsets: Offsets) -> list[bytes]:
    view = memoryview(data)
    if view.format != "B" or view.ndim != 1 or not view.contiguous:
        raise ValueError("contiguous bytes expected")
    bounds = _bounds(offsets, view.nbytes)
    whole = bytes(view)
    return [whole[before:after] for before, after in pairwise(bounds)]


@final
class Prf:
    """A pseudo-random function keyed once."""

    suite: Final[int]

    def __init__(self, suite: int, key: bytes) -> None:
        self.suite = _checked_suite(suite)
        _expect_bytes(key)
        if len(key) != SECRET_SIZE:
            raise ValueError(f"the key has {len(key)} bytes, expected {SECRET_SIZE}")
        self._keyed = _keyed(self.suite, key)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Prf holds a secret and is never serialised")

    def __repr__(self) -> str:
        return f"<Prf suite={int(self.suite)}>"

    def one(self, message: bytes) -> bytes:
        """The function of one message: 32 bytes."""
        return _mac(self._keyed, message)

    def batch(self, messages: "Buffer", offsets: Offsets) -> bytes:
        """The function of n messages: n * 32 bytes."""
        return b"".join(_mac(self._keyed, message) for message in _items(messages, offsets))


# base32 ------------------------------------------------------------------------------------------------------------


def encode(data: bytes) -> str:
    """Base32 text of some bytes."""
    _expect_bytes(data)
    count = (len(data) * 8 + 4) // 5
    number = int.from_bytes(data) << (count * 5 - len(data) * 8)
    return "".join(ALPHABET[number >> (5 * place) & 31] for place in reversed(range(count)))


def _decode(text: str) -> bytes | OpenStatus:
    """The bytes of a text whose length encoding gives, or what is wrong with it."""
    number = 0
    for character in text:
        value = _VALUES.get(character)
        if value is None:
            return OpenStatus.ALPHABET
        number = number << 5 | value
    size = len(text) * 5 // 8
    spare = len(text) * 5 - size * 8
    if number & ((1 << spare) - 1):
        return OpenStatus.SPARE_BITS
    return (number >> spare).to_bytes(size)


def decode(text: str) -> bytes:
    """The bytes of a base32 text."""
    if not isinstance(text, str):
        raise TypeError(f"str expected, not {type(text).__name__}")
    if not text.isascii():
        raise ValueError("a character outside the alphabet 0-9 A-Z without I, L, O and U")
    if len(text) % 8 not in (0, 2, 4, 5, 7):
        raise ValueError(f"{len(text)} characters are never the encoding of whole bytes")
    decoded = _decode(text)
    if decoded is OpenStatus.ALPHABET:
        raise ValueError("a character outside the alphabet 0-9 A-Z without I, L, O and U")
    if isinstance(decoded, OpenStatus):
        raise ValueError("the spare bits of the last character are not zero")
    return decoded


def encode_batch(data: "Buffer", size: int) -> list[str]:
    """The texts of n items of size bytes each."""
    whole = b"".join(_items(data, [0, memoryview(data).nbytes]))
    if size < 1 or len(whole) % size:
        raise ValueError(f"{len(whole)} bytes are not a whole number of items of {size}")
    return [encode(whole[at : at + size]) for at in range(0, len(whole), size)]


def decode_batch(texts: Iterable[str], size: int) -> bytes:
    """The bytes of n texts that stand for size bytes each."""
    if size < 1:
        raise ValueError(f"size is {size}, expected 1 or more")
    count = (size * 8 + 4) // 5
    out = []
    for text in texts:
        if len(text) != count:
            raise ValueError(f"{len(text)} characters, expected {count} for {size} bytes")
        out.append(decode(text))
    return b"".join(out)


# signatures --------------------------------------------------------------------------------------------------------


def _checked_private(suite: int, private: bytes) -> None:
    _expect_bytes(private)
    if len(private) != 32:
        raise ValueError(f"the private key has {len(private)} bytes, expected 32")
    if suite == Suite.SM and not 1 <= int.from_bytes(private) <= sm2_reference.PRIVATE_MAX:
        raise ValueError("the bytes are not a private key of this suite")


def _checked_public(suite: int, public: bytes) -> None:
    _expect_bytes(public)
    if not (len(public) == 32 if suite == Suite.AES else sm2_reference.on_curve(public)):
        raise ValueError("the bytes are not a public key of this suite")


def generate(suite: int) -> tuple[bytes, bytes]:
    """A new private key and its public key."""
    if _checked_suite(suite) == Suite.AES:
        private = secrets.token_bytes(32)
    else:
        private = (1 + secrets.randbelow(sm2_reference.PRIVATE_MAX)).to_bytes(32)
    return private, public_of(suite, private)


def public_of(suite: int, private: bytes) -> bytes:
    """The public key of a private key."""
    _checked_private(_checked_suite(suite), private)
    if suite == Suite.SM:
        return sm2_reference.public_of(private)
    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def sign(suite: int, private: bytes, message: bytes) -> bytes:
    """A signature of 64 bytes. Deterministic here for SM2 as well (see :mod:`ext.sm2_reference`)."""
    return _sign(suite, private, message, None)


def _sign(suite: int, private: bytes, message: bytes, public: bytes | None) -> bytes:
    _checked_private(_checked_suite(suite), private)
    _expect_bytes(message)
    if suite == Suite.SM:
        return sm2_reference.sign(private, message, public)
    return Ed25519PrivateKey.from_private_bytes(private).sign(message)


def verify(suite: int, public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the signature is good."""
    _checked_public(_checked_suite(suite), public)
    _expect_bytes(message, signature)
    if suite == Suite.SM:
        return sm2_reference.verify(public, message, signature)
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def sm2_encrypt(public: bytes, message: bytes) -> bytes:
    """The SM2 ciphertext of a message, C1, C3, C2."""
    _expect_bytes(public, message)
    return sm2_reference.encrypt(public, message)


# seal and open -----------------------------------------------------------------------------------------------------


class _Key:
    """A key's derived keys; no repr that shows them."""

    def __init__(self, kid: int, version: int, suite: int, secret: bytes) -> None:
        self.version = version
        self.suite = suite
        self.header = bytes([version << 4 | suite])
        about = self.header + kid.to_bytes(2)
        self.mac = _keyed(suite, hkdf(suite, secret, b"", LABEL_MAC + about, 32))
        self.cipher_key = hkdf(suite, secret, b"", LABEL_ENC + about, 32 if suite == Suite.AES else 16)
        self.public_key: bytes | None = None
        self.private_key: bytes | None = None

    def tag(self, body: bytes) -> bytes:
        return _mac(self.mac, LABEL_TAG + body)[:TAG_SIZE]

    def crypt(self, uid_and_stamp: bytes, data: bytes) -> bytes:
        return _ctr(self.suite, self.cipher_key, uid_and_stamp + bytes(4), data)


def _checked_kid(kid: int) -> int:
    kid = index(kid)
    if not 1 <= kid <= KID_MAX:
        raise ValueError(f"the kid is {kid}, expected 1 to {KID_MAX}")
    return kid


@final
class KeyTable:
    """The keys that payloads are sealed and opened with, by kid."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: dict[int, _Key] = {}
        self._stand_ins: dict[tuple[int, int], _Key] = {
            (version, suite): _Key(0, version, suite, secrets.token_bytes(SECRET_SIZE))
            for version in Version
            for suite in Suite
        }

    def __reduce__(self) -> NoReturn:
        raise TypeError("a KeyTable holds secrets and is never serialised")

    def __repr__(self) -> str:
        return f"<KeyTable of {len(self._keys)} keys>"

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, kid: object) -> bool:
        return isinstance(kid, int) and kid in self._keys

    def add(
        self,
        kid: int,
        version: int,
        suite: int,
        secret: bytes,
        public_key: bytes | None = None,
        private_key: bytes | None = None,
    ) -> None:
        """Add a key that seals and opens this version and suite, and no other."""
        kid = _checked_kid(kid)
        _checked_suite(suite)
        _expect_bytes(secret)
        if version not in tuple(Version):
            raise ValueError(f"no such version: {version!r}; 1, 2 or 3 expected")
        if len(secret) != SECRET_SIZE:
            raise ValueError(f"the secret has {len(secret)} bytes, expected {SECRET_SIZE}")
        if version != Version.VALUABLE and (public_key is not None or private_key is not None):
            raise ValueError(f"version {version} is not signed; only version 3 takes a public or private key")
        key = _Key(kid, version, suite, secret)
        if version == Version.VALUABLE:
            if private_key is not None:
                computed = public_of(suite, private_key)
                if public_key not in (None, computed):
                    raise ValueError("the public key is not that of the private key")
                public_key = computed
            if public_key is None:
                raise ValueError("version 3 is signed; a public key, a private key or both are needed")
            _checked_public(suite, public_key)
            key.public_key, key.private_key = public_key, private_key
        with self._lock:
            if kid in self._keys:
                raise ValueError(f"kid {kid} is taken; a kid is never used again")
            self._keys[kid] = key

    def remove(self, kid: int) -> None:
        """Forget a key. Python can't wipe it."""
        with self._lock:
            del self._keys[_checked_kid(kid)]

    def _sealing(self, kid: int) -> _Key:
        # The caller holds the lock, here and below.
        key = self._keys[_checked_kid(kid)]
        if key.version == Version.VALUABLE and key.private_key is None:
            raise ValueError(f"kid {kid} has no private key: it opens, and can't seal")
        return key

    def _opening(self, kid: int, version: int, suite: int) -> tuple[_Key, bool]:
        key = self._keys.get(kid)
        if key is None or key.version != version or key.suite != suite:
            return self._stand_ins[version, suite], False
        return key, True


def _uid_fits(uid: bytes, version: int) -> bool:
    """F9."""
    after_partition = int.from_bytes(uid) >> 33 & (2**21 - 1)
    return (after_partition == 0) == (version == Version.STATIC)


def _seal(key: _Key, kid: int, row: Any) -> bytes:
    uid: bytes = row["uid"].tobytes()
    number = {name: int(row[name]) for name in ("stamp", "exp", "store", "item", "qty", "flags", "amount")}
    body = key.header + kid.to_bytes(2) + uid
    stamp = number["stamp"].to_bytes(4)
    if key.version == Version.STATIC:
        body += number["exp"].to_bytes(4)
    elif key.version == Version.DYNAMIC:
        clear = struct.pack(">IIIHH", *(number[name] for name in ("store", "exp", "item", "qty", "flags")))
        body += stamp + key.crypt(uid + stamp, clear)
    else:
        clear = struct.pack(">IHHI", *(number[name] for name in ("item", "qty", "flags", "amount")))
        body += stamp + struct.pack(">II", number["store"], number["exp"]) + key.crypt(uid + stamp, clear)
    body += key.tag(body)
    if key.version == Version.VALUABLE:
        assert key.private_key is not None  # KeyTable._sealing
        body += _sign(key.suite, key.private_key, LABEL_SIG + body, key.public_key)
    return body


def seal_batch(keys: KeyTable, kid: int, claims: npt.NDArray[np.void]) -> bytes:
    """The payloads of n rows under one key, back to back."""
    return b"".join(_sealed(keys, kid, claims))


def seal_text_batch(keys: KeyTable, kid: int, claims: npt.NDArray[np.void]) -> list[str]:
    """The texts of n rows under one key."""
    return [TEXT_PREFIX + encode(payload) for payload in _sealed(keys, kid, claims)]


def _sealed(keys: KeyTable, kid: int, claims: npt.NDArray[np.void]) -> list[bytes]:
    kid = _checked_kid(kid)
    # The type checker believes the annotation, a caller without one may not.
    rows: object = claims
    if not isinstance(rows, np.ndarray) or rows.dtype != CLAIMS or rows.ndim != 1:
        raise ValueError("claims must be a one-dimensional array of ext.claims.CLAIMS")
    with keys._lock:
        key = keys._sealing(kid)
        for i, row in enumerate(claims):
            uid, flags = row["uid"].tobytes(), int(row["flags"])
            if not _uid_fits(uid, key.version):
                raise ValueError(f"claims[{i}]: the uid {uid.hex()} is not one of version {key.version}")
            if flags:
                raise ValueError(
                    f"claims[{i}]: flags are {flags:#06x}, all bits are reserved and must be zero"
                )
        return [_seal(key, kid, row) for row in claims]


def _open(keys: KeyTable, payload: bytes) -> tuple[OpenStatus, dict[str, Any]]:
    """The status of a payload and what to put into its row."""
    if len(payload) not in _VERSION_OF_SIZE:
        return OpenStatus.LENGTH, {}
    version, suite = payload[0] >> 4, payload[0] & 15
    if _VERSION_OF_SIZE[len(payload)] != version or suite not in tuple(Suite):
        return OpenStatus.HEADER, {}
    known = {"version": version, "suite": suite}
    kid = int.from_bytes(payload[1:3])
    key, is_known = keys._opening(kid, version, suite)
    signed_end = len(payload) - (SIGNATURE_SIZE if version == Version.VALUABLE else 0)
    body, tag = payload[: signed_end - TAG_SIZE], payload[signed_end - TAG_SIZE : signed_end]
    tag_fits = compare_digest(tag, key.tag(body))
    if not is_known:
        return OpenStatus.KID, known
    if not tag_fits:
        return OpenStatus.TAG, known
    if key.public_key is not None and not verify(
        suite, key.public_key, LABEL_SIG + payload[:signed_end], payload[signed_end:]
    ):
        return OpenStatus.SIGNATURE, known
    uid = body[3:11]
    if not _uid_fits(uid, version):
        return OpenStatus.UID_SHAPE, known
    claims: dict[str, Any] = {**known, "kid": kid, "uid": uid}
    if version == Version.STATIC:
        (claims["exp"],) = struct.unpack(">I", body[11:])
        return OpenStatus.OK, claims
    (claims["stamp"],) = struct.unpack(">I", body[11:15])
    if version == Version.DYNAMIC:
        clear = key.crypt(body[3:15], body[15:])
        names = ("store", "exp", "item", "qty", "flags")
        claims.update(zip(names, struct.unpack(">IIIHH", clear), strict=True))
    else:
        claims["store"], claims["exp"] = struct.unpack(">II", body[15:23])
        clear = key.crypt(body[3:15], body[23:])
        claims.update(zip(("item", "qty", "flags", "amount"), struct.unpack(">IHHI", clear), strict=True))
    if claims["flags"]:
        return OpenStatus.RESERVED, known
    return OpenStatus.OK, claims


def _open_text(keys: KeyTable, text: bytes) -> tuple[OpenStatus, dict[str, Any]]:
    if len(text) not in _TEXT_LENGTHS:
        return OpenStatus.LENGTH, {}
    if not text.startswith(TEXT_PREFIX.encode()):
        return OpenStatus.PREFIX, {}
    # Latin-1 gives every byte a character, so that no byte raises; those above 127 are outside the alphabet.
    payload = _decode(text[len(TEXT_PREFIX) :].decode("latin-1"))
    if isinstance(payload, OpenStatus):
        return payload, {}
    return _open(keys, payload)


_Opener = Callable[[KeyTable, bytes], tuple[OpenStatus, dict[str, Any]]]


def _opened(opener: _Opener, keys: KeyTable, data: "Buffer", offsets: Offsets) -> npt.NDArray[np.void]:
    items = _items(data, offsets)
    out = np.zeros(len(items), dtype=CLAIMS)
    # As in the kernel: a batch sees the table as it is when it begins.
    with keys._lock:
        for row, item in zip(out, items, strict=True):
            status, claims = opener(keys, item)
            row["status"] = status
            for name, value in claims.items():
                row[name] = value
    return out


def open_batch(keys: KeyTable, data: "Buffer", offsets: Offsets) -> npt.NDArray[np.void]:
    """Check n binary payloads and give their claims."""
    return _opened(_open, keys, data, offsets)


def open_text_batch(keys: KeyTable, text: "Buffer", offsets: Offsets) -> npt.NDArray[np.void]:
    """Check n payloads in text form and give their claims."""
    return _opened(_open_text, keys, text, offsets)
