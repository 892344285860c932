"""The kernels and their twin under one roof: everything in ext.codec, twice, whatever this process selected."""

import os
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

import ext.base32
import ext.primitives
import ext.reference
import ext.seal
import ext.sign
import ext.sm2
from ext.claims import CLAIMS, Suite, Version

NAMES: Final = {
    ext.primitives: ("Prf", "aes_256_ctr", "hkdf", "hmac_sha256", "hmac_sm3", "sha256", "sm3", "sm4_ctr"),
    ext.base32: ("decode", "decode_batch", "encode", "encode_batch"),
    ext.sign: ("generate", "public_of", "sign", "verify"),
    ext.sm2: ("sm2_encrypt",),
    ext.seal: ("KeyTable", "open_batch", "open_text_batch", "seal_batch", "seal_text_batch"),
}

NATIVE: Final[Any] = SimpleNamespace(
    name="native", **{name: getattr(module, name) for module, names in NAMES.items() for name in names}
)
REFERENCE: Final[Any] = SimpleNamespace(
    name="reference", **{name: getattr(ext.reference, name) for names in NAMES.values() for name in names}
)

SOAK: Final = os.environ.get("PICKGATE_SOAK") == "1"

KINDS: Final = [(version, suite) for version in Version for suite in Suite]
"""Every version with every suite."""


def kid_of(version: int, suite: int) -> int:
    """The kid that these tests give a kind: all different, both bytes used."""
    return 0x0100 * version + suite


def secret_of(version: int, suite: int) -> bytes:
    return bytes([version, suite]) * 16


def private_of(suite: int) -> bytes:
    """A signing key, the same each time."""
    return bytes(range(suite, suite + 32))


def add_key(codec: Any, keys: Any, version: int, suite: int, kid: int | None = None) -> int:
    kid = kid_of(version, suite) if kid is None else kid
    private = private_of(suite) if version == Version.VALUABLE else None
    keys.add(kid, version, suite, secret_of(version, suite), private_key=private)
    return kid


def full_table(codec: Any) -> Any:
    """One key of every kind."""
    keys = codec.KeyTable()
    for version, suite in KINDS:
        add_key(codec, keys, version, suite)
    return keys


def random_claims(version: int, count: int, seed: int) -> npt.NDArray[np.void]:
    """Rows with every field that the version carries drawn over its whole range, the edges included."""
    rng = np.random.default_rng([seed, version])

    def drawn(bits: int) -> npt.NDArray[np.uint64]:
        values = rng.integers(0, 2**bits, count, dtype=np.uint64)
        edge = rng.integers(0, 16, count)
        values[edge == 0] = 0
        values[edge == 1] = 2**bits - 1
        return values

    rows = np.zeros(count, dtype=CLAIMS)
    partition = drawn(10) << np.uint64(54)
    if version == Version.STATIC:
        uid = partition | drawn(33)
    else:
        body = drawn(54)
        body[body < 2**33] |= np.uint64(2**33)
        uid = partition | body
        rows["stamp"] = drawn(32)
        rows["store"] = drawn(32)
        rows["item"] = drawn(32)
        rows["qty"] = drawn(16)
    if version == Version.VALUABLE:
        rows["amount"] = drawn(32)
    rows["uid"] = uid.astype(">u8").view("V8")
    rows["exp"] = drawn(32)
    return rows


def opened_as(version: int, suite: int, claims: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """What opening must give back for rows that were sealed: themselves, with version, suite and kid."""
    rows = claims.copy()
    rows["version"], rows["suite"], rows["kid"] = version, suite, kid_of(version, suite)
    return rows
