"""Primitives against vectors that others published, as called through ext."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography_vectors import open_vector_file
from gmssl import sm3 as gmssl_sm3
from gmssl.sm4 import SM4_ENCRYPT, CryptSM4
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ext.twins import NATIVE, REFERENCE


def records(path: str) -> Iterator[dict[str, str]]:
    """The "NAME = value" blocks of a vector file, names in lower case; a block ends where a name comes again."""
    block: dict[str, str] = {}
    with open_vector_file(path, "r") as file:
        for line in file:
            name, equals, value = line.partition("=")
            if not equals or line.startswith(("#", "[")):
                continue
            name = name.strip().lower()
            if name in block:
                yield block
                block = {}
            block[name] = value.strip()
    yield block


@pytest.mark.parametrize(
    ("path", "cipher", "least"),
    [
        ("ciphers/AES/CTR/aes-256-ctr.txt", "aes_256_ctr", 3),
        ("ciphers/SM4/draft-ribose-cfrg-sm4-10-ctr.txt", "sm4_ctr", 2),
    ],
)
def test_counter_mode(codec: Any, path: str, cipher: str, least: int) -> None:
    crypt = getattr(codec, cipher)
    seen = 0
    for block in records(path):
        key, iv = bytes.fromhex(block["key"]), bytes.fromhex(block["iv"])
        clear, sealed = bytes.fromhex(block["plaintext"]), bytes.fromhex(block["ciphertext"])
        assert crypt(key, iv, clear) == sealed
        assert crypt(key, iv, sealed) == clear
        seen += 1
    assert seen >= least


@pytest.mark.parametrize(
    ("path", "digest", "least"),
    [
        ("hashes/SHA2/SHA256ShortMsg.rsp", "sha256", 65),
        ("hashes/SHA2/SHA256LongMsg.rsp", "sha256", 64),
        ("hashes/SM3/oscca.txt", "sm3", 6),
    ],
)
def test_digests(codec: Any, path: str, digest: str, least: int) -> None:
    seen = 0
    for block in records(path):
        if "msg" not in block:
            continue
        message = bytes.fromhex(block["msg"])[: int(block["len"]) // 8]
        assert getattr(codec, digest)(message).hex() == block["md"].lower()
        seen += 1
    assert seen >= least


def test_hmac_sha256(codec: Any) -> None:
    """RFC 4231, with keys shorter and longer than a block."""
    seen = 0
    for block in records("HMAC/rfc-4231-sha256.txt"):
        message = bytes.fromhex(block["msg"])
        assert codec.hmac_sha256(bytes.fromhex(block["key"]), message).hex() == block["md"].lower()
        seen += 1
    assert seen >= 6


# GM/T 0042-2015, appendix D.3.
HMAC_SM3 = [
    (
        bytes(range(1, 33)),
        b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq" * 2,
        "ca05e144ed05d1857840d1f318a4a8669e559fc8391f414485bfdf7bb408963a",
    ),
    (
        bytes(range(1, 38)),
        b"\xcd" * 50,
        "220bf579ded555393f0159f66c99877822a3ecf610d1552154b41d44b94db3ae",
    ),
    (b"\x0b" * 32, b"Hi There", "c0ba18c68b90c88bc07de794bfc7d2c8d19ec31ed8773bc2b390c9604e0be11e"),
    (
        b"Jefe",
        b"what do ya want for nothing?",
        "2e87f1d16862e6d964b50a5200bf2b10b764faa9680a296a2405f24bec39f882",
    ),
]


@pytest.mark.parametrize(("key", "message", "expected"), HMAC_SM3)
def test_hmac_sm3(codec: Any, key: bytes, message: bytes, expected: str) -> None:
    assert codec.hmac_sm3(key, message).hex() == expected


@pytest.mark.parametrize("path", ["KDF/rfc-5869-HKDF-SHA256.txt", "KDF/hkdf-generated.txt"])
def test_hkdf_sha256(codec: Any, path: str) -> None:
    seen = 0
    for block in records(path):
        if block["hash"] != "SHA-256":
            continue
        made = codec.hkdf(
            1,
            bytes.fromhex(block["ikm"]),
            bytes.fromhex(block["salt"]),
            bytes.fromhex(block["info"]),
            int(block["l"]),
        )
        assert made.hex() == block["okm"].lower()
        seen += 1
    assert seen


def gmssl_sm3_of(message: bytes) -> bytes:
    return bytes.fromhex(gmssl_sm3.sm3_hash(list(message)))


def gmssl_hmac_sm3(key: bytes, message: bytes) -> bytes:
    """RFC 2104 written out over gmssl's SM3: shares nothing with libcrypto or cryptography."""
    padded = (gmssl_sm3_of(key) if len(key) > 64 else key).ljust(64, b"\x00")
    inner = gmssl_sm3_of(bytes(b ^ 0x36 for b in padded) + message)
    return gmssl_sm3_of(bytes(b ^ 0x5C for b in padded) + inner)


def gmssl_sm4_ctr(key: bytes, iv: bytes, data: bytes) -> bytes:
    cipher = CryptSM4()
    cipher.set_key(key, SM4_ENCRYPT)
    out = b""
    for at in range(0, len(data), 16):
        counter = (int.from_bytes(iv) + at // 16) % 2**128
        stream = bytes(cipher.one_round(cipher.sk, list(counter.to_bytes(16))))
        out += bytes(a ^ b for a, b in zip(data[at : at + 16], stream, strict=False))
    return out


def test_hkdf_sm3_against_gmssl(codec: Any) -> None:
    """No vectors of HKDF with SM3 are published: RFC 5869 written out over gmssl's SM3 instead."""
    secret, info = bytes(range(32)), b"pickgate"
    for salt in (b"", b"salt" * 5, b"s" * 100):
        extracted = gmssl_hmac_sm3(salt, secret)
        expected, block = b"", b""
        for counter in range(1, 5):
            block = gmssl_hmac_sm3(extracted, block + info + bytes([counter]))
            expected += block
        for size in (1, 16, 32, 33, 100):
            assert codec.hkdf(2, secret, salt, info, size) == expected[:size]
            assert codec.hkdf(2, secret, salt, info, size) == HKDF(
                algorithm=hashes.SM3(), length=size, salt=salt or None, info=info
            ).derive(secret)


@settings(max_examples=20, deadline=None)
@given(st.binary(max_size=150), st.binary(max_size=150))
def test_sm_primitives_against_gmssl(key: bytes, message: bytes) -> None:
    sm4_key = key.ljust(16, b"k")[:16]
    iv = message.ljust(16, b"\xff")[:16]
    for codec in (NATIVE, REFERENCE):
        assert codec.hmac_sm3(key, message) == gmssl_hmac_sm3(key, message)
        assert codec.sm4_ctr(sm4_key, iv, message) == gmssl_sm4_ctr(sm4_key, iv, message)
        if message:
            assert codec.sm3(message) == gmssl_sm3_of(message)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.binary(max_size=300), st.binary(max_size=80), st.integers(1, 200))
def test_twins_agree(key: bytes, message: bytes, salt: bytes, size: int) -> None:
    for name in ("hmac_sha256", "hmac_sm3"):
        assert getattr(NATIVE, name)(key, message) == getattr(REFERENCE, name)(key, message)
    for suite in (1, 2):
        derived = NATIVE.hkdf(suite, key, salt, message, size)
        assert derived == REFERENCE.hkdf(suite, key, salt, message, size)
        assert len(derived) == size
    iv = message.ljust(16, b"\xff")[:16]
    assert NATIVE.aes_256_ctr(key.ljust(32)[:32], iv, message) == REFERENCE.aes_256_ctr(
        key.ljust(32)[:32], iv, message
    )


def test_counter_wraps_over_all_128_bits(codec: Any) -> None:
    key, zeros = bytes(32), bytes(32)
    stream = codec.aes_256_ctr(key, b"\xff" * 16, zeros)
    assert stream[16:] == codec.aes_256_ctr(key, bytes(16), bytes(16))


@pytest.mark.parametrize(("name", "key_size"), [("aes_256_ctr", 32), ("sm4_ctr", 16)])
def test_cipher_lengths_are_checked(codec: Any, name: str, key_size: int) -> None:
    crypt = getattr(codec, name)
    assert crypt(bytes(key_size), bytes(16), b"") == b""
    for wrong in (0, key_size - 1, key_size + 1, 48 - key_size):
        with pytest.raises(ValueError, match="the key has"):
            crypt(bytes(wrong), bytes(16), b"data")
    for wrong in (0, 12, 15, 17):
        with pytest.raises(ValueError, match="the counter block has"):
            crypt(bytes(key_size), bytes(wrong), b"data")


@pytest.mark.parametrize("size", [-1, 0, 8161])
def test_hkdf_sizes_are_checked(codec: Any, size: int) -> None:
    with pytest.raises(ValueError, match="size is"):
        codec.hkdf(1, b"secret", b"", b"", size)
    assert len(codec.hkdf(1, b"secret", b"", b"", 8160)) == 8160


@pytest.mark.parametrize("suite", [-1, 0, 3, 255, "1", None])
def test_unknown_suites_are_refused(codec: Any, suite: Any) -> None:
    with pytest.raises(ValueError, match="no such suite"):
        codec.hkdf(suite, b"secret", b"", b"", 32)
    with pytest.raises(ValueError, match="no such suite"):
        codec.Prf(suite, bytes(32))


@pytest.mark.parametrize("wrong", [None, "text", 5, bytearray(32)])
def test_only_bytes_are_taken(codec: Any, wrong: Any) -> None:
    calls: list[Callable[[], object]] = [
        lambda: codec.sha256(wrong),
        lambda: codec.hmac_sm3(wrong, b""),
        lambda: codec.hmac_sm3(b"", wrong),
        lambda: codec.aes_256_ctr(wrong, bytes(16), b""),
        lambda: codec.hkdf(1, wrong, b"", b"", 32),
        lambda: codec.Prf(1, wrong),
        lambda: codec.Prf(1, bytes(32)).one(wrong),
    ]
    for call in calls:
        with pytest.raises(TypeError):
            call()


@pytest.mark.parametrize("suite", [1, 2])
def test_prf_is_hmac(codec: Any, suite: int) -> None:
    key = bytes(range(32))
    hmac = codec.hmac_sha256 if suite == 1 else codec.hmac_sm3
    prf = codec.Prf(suite, key)
    messages = [b"", b"a", b"b" * 63, b"c" * 64, b"d" * 200]
    expected = [hmac(key, message) for message in messages]
    assert [prf.one(message) for message in messages] == expected
    assert prf.suite == suite
    offsets = np.cumsum([0, *map(len, messages)])
    for dtype in (np.uint32, np.uint64, np.int64):
        assert prf.batch(b"".join(messages), offsets.astype(dtype)) == b"".join(expected)
    assert prf.batch(bytearray(b"".join(messages)), offsets.tolist()) == b"".join(expected)
    assert prf.batch(b"", [0]) == b""
    assert prf.batch(b"", [0, 0]) == expected[0]


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_prf_key_size_is_checked(codec: Any, size: int) -> None:
    with pytest.raises(ValueError, match="the key has"):
        codec.Prf(1, bytes(size))


BAD_OFFSETS = [
    [],
    [1, 0],
    [0, 4],
    [0, 2, 1],
    [-1, 0],
    [0, 2**40],
    [[0, 1]],
    [0.0, 1.0],
    ["0", "1"],
    np.array([0, 2**64 - 1], dtype=np.uint64),
    5,
]


@pytest.mark.parametrize("offsets", BAD_OFFSETS, ids=repr)
def test_bad_offsets_are_refused(codec: Any, offsets: Any) -> None:
    with pytest.raises(ValueError, match="offsets"):
        codec.Prf(1, bytes(32)).batch(b"abc", offsets)


def test_secrets_stay_inside(codec: Any) -> None:
    import pickle

    prf = codec.Prf(1, b"k" * 32)
    assert repr(prf) == "<Prf suite=1>"
    with pytest.raises(TypeError, match="never serialised"):
        pickle.dumps(prf)
