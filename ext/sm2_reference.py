"""SM2 signatures and encryption with SM3 on Python integers: gmssl's equations over a faster multiplication of points.

gmssl multiplies a point in 7 ms and hashes 100 bytes in 1 ms, which would make a comparison over 100,000 codes an
affair of hours. Here its Z value, its signing and its verifying stand as they are, and two things under them are
replaced: the multiplication (tables of window multiples on plain integers) and SM3 (that of ``cryptography``). Tests
hold the result against bare gmssl, against libcrypto and against the example of GB/T 32918.5-2017.

For the reference only: Python integers are not constant-time.
"""

import secrets
from collections.abc import Iterator
from functools import lru_cache
from hmac import compare_digest as hmac_compare
from typing import Any, Final

from cryptography.hazmat.primitives import hashes, hmac
from gmssl.sm2 import CryptSM2, default_ecc_table

P: Final = int(default_ecc_table["p"], 16)
N: Final = int(default_ecc_table["n"], 16)
A: Final = int(default_ecc_table["a"], 16)
B: Final = int(default_ecc_table["b"], 16)
G: Final[str] = default_ecc_table["g"]
PRIVATE_MAX: Final = N - 2
"""The largest private key (GB/T 32918.1-2016, section 6.1)."""

SM2_MESSAGE_BYTES_MAX: Final = 255

_IDENTITY: Final = b"1234567812345678"
"""GM/T 0009-2012, section 10."""

_Affine = tuple[int, int]
_Jacobian = tuple[int, int, int]


def _double(point: _Jacobian) -> _Jacobian:
    """Twice a point, for a = -3 (Hankerson, Menezes, Vanstone, Guide to Elliptic Curve Cryptography, alg. 3.21)."""
    x, y, z = point
    zz = z * z % P
    slope = 3 * (x - zz) * (x + zz) % P
    yy = y * y % P
    s = 4 * x * yy % P
    x3 = (slope * slope - 2 * s) % P
    return x3, (slope * (s - x3) - 8 * yy * yy) % P, 2 * y * z % P


def _add(point: _Jacobian, other: _Affine) -> _Jacobian:
    """A Jacobian point (z = 0 is infinity) and an affine one (same book, alg. 3.22)."""
    x1, y1, z1 = point
    x2, y2 = other
    if z1 == 0:
        return x2, y2, 1
    zz = z1 * z1 % P
    h = (x2 * zz - x1) % P
    r = (y2 * zz * z1 - y1) % P
    if h == 0:
        return _double(point) if r == 0 else (1, 1, 0)
    hh = h * h % P
    hhh = h * hh % P
    v = x1 * hh % P
    x3 = (r * r - hhh - 2 * v) % P
    return x3, (r * (v - x3) - y1 * hhh) % P, z1 * h % P


def _affine(points: list[_Jacobian]) -> list[_Affine]:
    """Finite Jacobian points as affine ones, with one inversion for all (same book, alg. 2.26)."""
    products = [1]
    for _, _, z in points:
        products.append(products[-1] * z % P)
    inverse = pow(products[-1], -1, P)
    out: list[_Affine] = []
    for (x, y, z), before in zip(reversed(points), reversed(products[:-1]), strict=True):
        z_inverse = inverse * before % P
        inverse = inverse * z % P
        square = z_inverse * z_inverse % P
        out.append((x * square % P, y * square * z_inverse % P))
    return out[::-1]


def _window_bits(point: str) -> int:
    """How many bits of a scalar one table row serves: more for G, whose table every multiplication shares."""
    return 8 if point == G else 4


@lru_cache(maxsize=64)
def _window_multiples(point: str) -> list[list[_Affine]]:
    """Row w holds 1 to 2**bits - 1 times 2**(bits * w) times the point, whose hex is x | y."""
    bits = _window_bits(point)
    base = (int(point[:64], 16), int(point[64:], 16))
    rows = []
    for _ in range(256 // bits):
        multiples: list[_Jacobian] = [(*base, 1)]
        while len(multiples) < 2**bits:
            multiples.append(_add(multiples[-1], base))
        *row, base = _affine(multiples)
        rows.append(row)
    return rows


def multiply(scalar: int, point: str) -> str | None:
    """Multiply a point (hex x | y) by a scalar, 0 to 2**256 - 1: hex x | y, or None at infinity."""
    total: _Jacobian = (1, 1, 0)
    bits = _window_bits(point)
    for row in _window_multiples(point):
        digit = scalar & (2**bits - 1)
        scalar >>= bits
        if digit:
            total = _add(total, row[digit - 1])
    return None if total[2] == 0 else "{:064x}{:064x}".format(*_affine([total])[0])


def on_curve(public: bytes) -> bool:
    """Whether 65 bytes 0x04 | x | y are a point of the curve: y**2 = x**3 + a * x + b, both below p."""
    if len(public) != 65 or public[0] != 0x04:
        return False
    x, y = int.from_bytes(public[1:33]), int.from_bytes(public[33:])
    return x < P and y < P and (y * y - (x * x * x + A * x + B)) % P == 0


def _sm3(message: bytes) -> bytes:
    digest = hashes.Hash(hashes.SM3())
    digest.update(message)
    return digest.finalize()


@lru_cache(maxsize=64)
def _z(public: str) -> bytes:
    """The hash of the signer's identity, curve and public key (GB/T 32918.2-2016, section 5.5)."""
    curve = bytes.fromhex(default_ecc_table["a"] + default_ecc_table["b"] + G + public)
    return _sm3((len(_IDENTITY) * 8).to_bytes(2) + _IDENTITY + curve)


class _Signer(CryptSM2):  # type: ignore[misc]  # gmssl has no types
    def __init__(self, public: str, private: str = "") -> None:
        super().__init__(private, public)
        # gmssl strips every leading 0 and 4 of the key, also those that belong to x.
        self.public_key = public

    def _kg(self, k: int, point: str) -> str | None:
        return multiply(k, point)

    def _sm3_z(self, data: bytes) -> str:
        return _sm3(_z(self.public_key) + data).hex()


def public_of(private: bytes) -> bytes:
    """The public key, 0x04 | x | y, of a private key in range."""
    point = multiply(int.from_bytes(private), G)
    assert point is not None  # 0 < d < n
    return bytes.fromhex("04" + point)


def _nonces(private: bytes, digest: bytes) -> Iterator[int]:
    """Nonces of RFC 6979, section 3.2, with HMAC-SM3 and SM2's n: the same message never meets two of them.

    Deterministic, so that vectors can be made again; what gmssl would draw comes from a generator that is not made
    for secrets.
    """

    def mac(key: bytes, message: bytes) -> bytes:
        state = hmac.HMAC(key, hashes.SM3())
        state.update(message)
        return state.finalize()

    seed = private + (int.from_bytes(digest) % N).to_bytes(32)
    value, key = b"\x01" * 32, b"\x00" * 32
    for step in (b"\x00", b"\x01"):
        key = mac(key, value + step + seed)
        value = mac(key, value)
    while True:
        value = mac(key, value)
        if 1 <= int.from_bytes(value) < N:
            yield int.from_bytes(value)
        key = mac(key, value + b"\x00")
        value = mac(key, value)


def sign(private: bytes, message: bytes, public: bytes | None = None) -> bytes:
    """Sign as in GB/T 32918.2-2016, section 6.1: 64 bytes r | s.

    private must be in range. public: its public key, where the caller has it at hand; signing hashes it.
    """
    signer = _Signer((public or public_of(private)).hex()[2:], private.hex())
    digest = bytes.fromhex(signer._sm3_z(message))
    signature: Any = None
    nonces = _nonces(private, digest)
    while signature is None:
        signature = signer.sign(digest, f"{next(nonces):064x}")
    return bytes.fromhex(signature)


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Verify as in GB/T 32918.2-2016, section 7.1. public must be on the curve."""
    # B1, B2: gmssl leaves the range of r and s to its caller.
    if len(signature) != 64 or not all(
        1 <= int.from_bytes(half) < N for half in (signature[:32], signature[32:])
    ):
        return False
    checker = _Signer(public.hex()[2:])
    try:
        return bool(checker.verify_with_sm3(signature.hex(), message))
    except TypeError:
        # s * G = -t * P: gmssl has no point at infinity and trips over its own None. Such a signature is wrong.
        return False


# --- encryption -----------------------------------------------------------------------------------------------------
def _kdf(shared: bytes, size: int) -> bytes:
    """The key derivation of GB/T 32918.4-2016, section 5.4.3."""
    blocks = (_sm3(shared + count.to_bytes(4)) for count in range(1, -(-size // 32) + 1))
    return b"".join(blocks)[:size]


def encrypt(public: bytes, message: bytes) -> bytes:
    """Encrypt as in GB/T 32918.4-2016, section 6.1: C1 | C3 | C2. See ext/sm2.pyi."""
    if not 1 <= len(message) <= SM2_MESSAGE_BYTES_MAX:
        raise ValueError(f"the message has {len(message)} bytes, expected 1 to {SM2_MESSAGE_BYTES_MAX}")
    if not on_curve(public):
        raise ValueError("the bytes are not an SM2 public key: 65 bytes, 0x04 | x | y, on the curve")
    while True:
        nonce = 1 + secrets.randbelow(N - 1)
        shared = bytes.fromhex(multiply(nonce, public.hex()[2:]) or "")
        mask = _kdf(shared, len(message))
        if any(mask):
            break
    cipher = bytes(a ^ b for a, b in zip(message, mask, strict=True))
    first = bytes.fromhex("04" + (multiply(nonce, G) or ""))
    return first + _sm3(shared[:32] + message + shared[32:]) + cipher


def decrypt(private: bytes, sealed: bytes) -> bytes:
    """Decrypt as in section 7.1; raises ``ValueError`` for what does not open. What a terminal does with its secret."""
    first, digest, cipher = sealed[:65], sealed[65:97], sealed[97:]
    if len(digest) != 32 or not cipher or not on_curve(first):
        raise ValueError("not an SM2 ciphertext: 0x04 | x | y, 32 bytes, and at least one")
    shared = bytes.fromhex(multiply(int.from_bytes(private), first.hex()[2:]) or "")
    message = bytes(a ^ b for a, b in zip(cipher, _kdf(shared, len(cipher)), strict=True))
    if not hmac_compare(_sm3(shared[:32] + message + shared[32:]), digest):
        raise ValueError("the SM2 ciphertext does not open: it was changed, or is for another key")
    return message
