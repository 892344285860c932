"""Sealing and opening: what comes back, what is refused at the door, and what never gets out."""

import gc
import os
import pickle
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ext.claims import CLAIMS, PAYLOAD_SIZE, TEXT_SIZE, Version, pack
from ext.status import OpenStatus
from tests.ext.twins import (
    KINDS,
    add_key,
    full_table,
    kid_of,
    opened_as,
    private_of,
    random_claims,
    secret_of,
)


def offsets_of(count: int, size: int) -> Any:
    return np.arange(count + 1, dtype=np.uint32) * size


@pytest.mark.parametrize(("version", "suite"), KINDS)
def test_what_is_sealed_is_opened(codec: Any, version: int, suite: int) -> None:
    keys, kid = full_table(codec), kid_of(version, suite)
    count = 40 if version == Version.VALUABLE else 400
    claims = random_claims(version, count, 1)
    expected = opened_as(version, suite, claims)

    payloads = codec.seal_batch(keys, kid, claims)
    assert len(payloads) == count * PAYLOAD_SIZE[version]
    opened = codec.open_batch(keys, payloads, offsets_of(count, PAYLOAD_SIZE[version]))
    assert opened.dtype == CLAIMS
    assert opened.tolist() == expected.tolist()

    texts = codec.seal_text_batch(keys, kid, claims)
    assert {len(text) for text in texts} == {TEXT_SIZE[version]}
    opened = codec.open_text_batch(keys, *pack([text.encode() for text in texts]))
    assert opened.tolist() == expected.tolist()


def test_layout_written_out_once_more(codec: Any) -> None:
    """Version 2, suite 1, from docs/format.md by hand: neither twin's code is used to make it."""
    kid = kid_of(2, 1)
    uid, stamp = bytes.fromhex("0140000200000005"), (1_760_000_000).to_bytes(4)
    info = b"\x21" + kid.to_bytes(2)

    def derived(label: bytes) -> bytes:
        return HKDF(hashes.SHA256(), 32, b"", label + info).derive(secret_of(2, 1))

    fields = [(77, 4), (1_760_172_800, 4), (9001, 4), (3, 2), (0, 2)]
    clear = b"".join(value.to_bytes(size) for value, size in fields)
    cipher = Cipher(algorithms.AES(derived(b"pickgate/enc/1:")), modes.CTR(uid + stamp + bytes(4)))
    body = info + uid + stamp + cipher.encryptor().update(clear)
    mac = hmac.HMAC(derived(b"pickgate/mac/1:"), hashes.SHA256())
    mac.update(b"pickgate/tag/1:" + body)
    payload = body + mac.finalize()[:16]

    (row,) = codec.open_batch(full_table(codec), payload, [0, 47])
    assert row["status"] == OpenStatus.OK
    assert [int(row[name]) for name in ("store", "exp", "item", "qty")] == [77, 1_760_172_800, 9001, 3]
    assert row["uid"].tobytes() == uid
    assert int(row["stamp"]) == 1_760_000_000


def test_sealed_fields_are_not_readable(codec: Any) -> None:
    keys = full_table(codec)
    row = random_claims(2, 1, 3)
    row["store"], row["item"] = 0x41424344, 0x45464748
    payload = codec.seal_batch(keys, kid_of(2, 1), row)
    assert b"ABCD" not in payload
    assert b"EFGH" not in payload


def test_fields_that_a_version_lacks_are_not_read(codec: Any) -> None:
    keys = full_table(codec)
    row = random_claims(1, 1, 4)
    plain = codec.seal_batch(keys, kid_of(1, 1), row)
    for name in ("status", "version", "suite", "kid", "stamp", "store", "item", "qty", "amount"):
        row[name] = np.iinfo(CLAIMS[name]).max
    assert codec.seal_batch(keys, kid_of(1, 1), row) == plain


def test_empty_batches(codec: Any) -> None:
    keys = full_table(codec)
    none = np.zeros(0, dtype=CLAIMS)
    assert codec.seal_batch(keys, kid_of(2, 1), none) == b""
    assert codec.seal_text_batch(keys, kid_of(2, 1), none) == []
    for opened in (codec.open_batch(keys, b"", [0]), codec.open_text_batch(keys, b"", [0])):
        assert opened.shape == (0,)
        assert opened.dtype == CLAIMS


def test_strided_claims_are_taken(codec: Any) -> None:
    keys = full_table(codec)
    claims = random_claims(1, 6, 5)
    assert codec.seal_batch(keys, kid_of(1, 2), claims[::2]) == codec.seal_batch(
        keys, kid_of(1, 2), claims[::2].copy()
    )


@pytest.mark.parametrize(
    "wrong", [None, [], b"x" * 40, np.zeros(1), np.zeros((1, 1), CLAIMS), np.zeros((), CLAIMS)]
)
def test_only_claims_are_sealed(codec: Any, wrong: Any) -> None:
    for seal in (codec.seal_batch, codec.seal_text_batch):
        with pytest.raises(ValueError, match="claims must be"):
            seal(full_table(codec), kid_of(1, 1), wrong)


@pytest.mark.parametrize(("version", "suite"), KINDS)
def test_sealing_refuses_what_opening_would(codec: Any, version: int, suite: int) -> None:
    keys = full_table(codec)
    claims = random_claims(version, 3, 6)
    claims["flags"][2] = 0x8000
    with pytest.raises(ValueError, match=r"claims\[2\]: flags are 0x8000"):
        codec.seal_batch(keys, kid_of(version, suite), claims)
    claims["flags"] = 0
    claims["uid"][1] = random_claims(2 if version == 1 else 1, 1, 7)["uid"][0]
    with pytest.raises(
        ValueError, match=rf"claims\[1\]: the uid [0-9a-f]{{16}} is not one of version {version}"
    ):
        codec.seal_batch(keys, kid_of(version, suite), claims)


@pytest.mark.parametrize("bit", range(64))
def test_uid_shape_by_bit(codec: Any, bit: int) -> None:
    """One bit set: bits 33 to 53 make it a uid of versions 2 and 3, every other leaves it one of version 1."""
    keys, row = full_table(codec), np.zeros(1, dtype=CLAIMS)
    row["uid"] = (1 << bit).to_bytes(8)
    for version, fits in ((1, not 33 <= bit <= 53), (2, 33 <= bit <= 53), (3, 33 <= bit <= 53)):
        if fits:
            payload = codec.seal_batch(keys, kid_of(version, 1), row)
            assert codec.open_batch(keys, payload, [0, len(payload)])["status"][0] == OpenStatus.OK
        else:
            with pytest.raises(ValueError, match="is not one of version"):
                codec.seal_batch(keys, kid_of(version, 1), row)


def test_unknown_kid_on_sealing(codec: Any) -> None:
    keys, row = full_table(codec), random_claims(1, 1, 8)
    with pytest.raises(KeyError):
        codec.seal_batch(keys, 9, row)
    for kid in (0, -1, 65_536, 2**70):
        with pytest.raises(ValueError, match="the kid is"):
            codec.seal_batch(keys, kid, row)
    with pytest.raises(TypeError):
        codec.seal_batch(keys, "1", row)


BAD_OFFSETS = [
    [],
    [1, 0],
    [0, 32],
    [0, 31, 30],
    [-31, 0],
    [0, 2**40],
    [[0, 31]],
    [0.0, 31.0],
    np.array([0, 2**64 - 1], dtype=np.uint64),
    np.array([2**63, 2**63 + 31], dtype=np.uint64),
    31,
    None,
]


@pytest.mark.parametrize("offsets", BAD_OFFSETS, ids=repr)
def test_bad_offsets_raise(codec: Any, offsets: Any) -> None:
    for opener in (codec.open_batch, codec.open_text_batch):
        with pytest.raises(ValueError, match="offsets"):
            opener(full_table(codec), bytes(31), offsets)


def test_offsets_may_begin_late_and_end_early_and_repeat(codec: Any) -> None:
    keys, kid = full_table(codec), kid_of(1, 1)
    claims = random_claims(1, 2, 9)
    data = b"junk" + codec.seal_batch(keys, kid, claims) + b"junk"
    for dtype in (np.uint8, np.uint32, np.uint64, np.int64):
        opened = codec.open_batch(keys, data, np.array([4, 35, 35, 66], dtype=dtype))
        assert opened["status"].tolist() == [OpenStatus.OK, OpenStatus.LENGTH, OpenStatus.OK]
        assert opened["uid"].tolist() == [claims["uid"][0].tobytes(), bytes(8), claims["uid"][1].tobytes()]


def test_any_byte_buffer_is_taken(codec: Any) -> None:
    keys = full_table(codec)
    payload = codec.seal_batch(keys, kid_of(1, 1), random_claims(1, 1, 10))
    for data in (payload, bytearray(payload), memoryview(payload), np.frombuffer(payload, np.uint8)):
        assert codec.open_batch(keys, data, [0, 31])["status"][0] == OpenStatus.OK


@pytest.mark.parametrize("wrong", [None, "text", 5, [1, 2]])
def test_other_things_are_not_buffers(codec: Any, wrong: Any) -> None:
    for opener in (codec.open_batch, codec.open_text_batch):
        with pytest.raises(TypeError):
            opener(full_table(codec), wrong, [0])


@pytest.mark.parametrize(
    "wrong", [np.zeros(8, np.uint32), np.zeros((4, 8), np.uint8), np.zeros(62, np.uint8)[::2]]
)
def test_buffers_of_another_shape_raise(codec: Any, wrong: Any) -> None:
    with pytest.raises(ValueError):
        codec.open_batch(full_table(codec), wrong, [0, 31])


# the key table -----------------------------------------------------------------------------------------------------


def test_keys_come_and_go(codec: Any) -> None:
    keys, other = codec.KeyTable(), full_table(codec)
    payload = codec.seal_batch(other, kid_of(2, 2), random_claims(2, 1, 11))
    assert len(keys) == 0
    assert codec.open_batch(keys, payload, [0, 47])["status"][0] == OpenStatus.KID
    kid = add_key(codec, keys, 2, 2)
    assert len(keys) == 1
    assert kid in keys
    assert kid + 1 not in keys
    assert codec.open_batch(keys, payload, [0, 47])["status"][0] == OpenStatus.OK
    keys.remove(kid)
    assert len(keys) == 0
    assert kid not in keys
    assert codec.open_batch(keys, payload, [0, 47])["status"][0] == OpenStatus.KID
    with pytest.raises(KeyError):
        keys.remove(kid)
    add_key(codec, keys, 2, 2)
    assert codec.open_batch(keys, payload, [0, 47])["status"][0] == OpenStatus.OK


def test_membership_takes_anything(codec: Any) -> None:
    keys = full_table(codec)
    for odd in (0, -1, 65_536, 2**70, "1", None, 1.5, b"1"):
        assert odd not in keys


@pytest.mark.parametrize("kid", [1, 255, 256, 65_535])
def test_edges_of_kids(codec: Any, kid: int) -> None:
    keys = codec.KeyTable()
    add_key(codec, keys, 1, 1, kid)
    payload = codec.seal_batch(keys, kid, random_claims(1, 1, 12))
    assert payload[1:3] == kid.to_bytes(2)
    opened = codec.open_batch(keys, payload, [0, 31])
    assert opened["status"][0] == OpenStatus.OK
    assert int(opened["kid"][0]) == kid


def test_a_kid_is_bound_to_its_version_and_suite(codec: Any) -> None:
    """The same secret under the same kid as another version or suite: refused, and not for its tag."""
    for version, suite in KINDS:
        sealing, reading = codec.KeyTable(), codec.KeyTable()
        add_key(codec, sealing, version, suite, 7)
        payload = codec.seal_batch(sealing, 7, random_claims(version, 1, 13))
        for other_version, other_suite in KINDS:
            if (other_version, other_suite) != (version, suite):
                add_key(codec, reading, other_version, other_suite, 7)
                status = codec.open_batch(reading, payload, [0, len(payload)])["status"][0]
                assert status == OpenStatus.KID
                reading.remove(7)


def test_the_same_secret_makes_other_keys_under_another_kid(codec: Any) -> None:
    keys, row = codec.KeyTable(), random_claims(2, 1, 14)
    for kid in (7, 8):
        keys.add(kid, 2, 1, b"s" * 32)
    one, other = (codec.seal_batch(keys, kid, row) for kid in (7, 8))
    assert one[15:31] != other[15:31]
    assert codec.open_batch(keys, other[:2] + b"\x07" + other[3:], [0, 47])["status"][0] == OpenStatus.TAG


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 1, 1, bytes(32)), "the kid is"),
        ((65_536, 1, 1, bytes(32)), "the kid is"),
        ((-1, 1, 1, bytes(32)), "the kid is"),
        ((1, 0, 1, bytes(32)), "no such version"),
        ((1, 4, 1, bytes(32)), "no such version"),
        ((1, 1, 0, bytes(32)), "no such suite"),
        ((1, 1, 3, bytes(32)), "no such suite"),
        ((1, 1, 1, bytes(31)), "the secret has"),
        ((1, 1, 1, bytes(33)), "the secret has"),
        ((1, 1, 1, b""), "the secret has"),
        ((1, 1, 1, bytes(32), bytes(32)), "is not signed"),
        ((1, 2, 1, bytes(32), None, bytes(32)), "is not signed"),
        ((1, 3, 1, bytes(32)), "version 3 is signed"),
        ((1, 3, 1, bytes(32), bytes(31)), "not a public key"),
        ((1, 3, 2, bytes(32), bytes(65)), "not a public key"),
        ((1, 3, 1, bytes(32), None, bytes(31)), "the private key has"),
        ((1, 3, 2, bytes(32), None, bytes(32)), "not a private key"),
        ((1, 3, 1, bytes(32), bytes(32), bytes(32)), "not that of the private key"),
    ],
)
def test_wrong_keys_are_refused(codec: Any, arguments: tuple[Any, ...], words: str) -> None:
    keys = codec.KeyTable()
    with pytest.raises(ValueError, match=words):
        keys.add(*arguments)
    assert len(keys) == 0
    assert 1 not in keys


def test_a_taken_kid_stays_as_it_is(codec: Any) -> None:
    keys = codec.KeyTable()
    keys.add(1, 1, 1, b"a" * 32)
    payload = codec.seal_batch(keys, 1, random_claims(1, 1, 15))
    with pytest.raises(ValueError, match="taken"):
        keys.add(1, 1, 1, b"b" * 32)
    assert len(keys) == 1
    assert codec.open_batch(keys, payload, [0, 31])["status"][0] == OpenStatus.OK


@pytest.mark.parametrize("suite", [1, 2])
def test_public_key_alone_opens_and_does_not_seal(codec: Any, suite: int) -> None:
    issuer, store = codec.KeyTable(), codec.KeyTable()
    kid = add_key(codec, issuer, 3, suite)
    public = codec.public_of(suite, private_of(suite))
    store.add(kid, 3, suite, secret_of(3, suite), public_key=public)
    row = random_claims(3, 1, 16)
    payload = codec.seal_batch(issuer, kid, row)
    assert codec.open_batch(store, payload, [0, 115])["status"][0] == OpenStatus.OK
    with pytest.raises(ValueError, match="no private key"):
        codec.seal_batch(store, kid, row)


def test_tag_comes_before_signature(codec: Any) -> None:
    keys = full_table(codec)
    payload = bytearray(codec.seal_batch(keys, kid_of(3, 1), random_claims(3, 1, 17)))
    payload[-1] ^= 1
    assert codec.open_batch(keys, bytes(payload), [0, 115])["status"][0] == OpenStatus.SIGNATURE
    payload[40] ^= 1
    assert codec.open_batch(keys, bytes(payload), [0, 115])["status"][0] == OpenStatus.TAG


def test_secrets_stay_inside(codec: Any) -> None:
    keys = full_table(codec)
    assert repr(keys) == "<KeyTable of 6 keys>"
    with pytest.raises(TypeError, match="never serialised"):
        pickle.dumps(keys)


@pytest.mark.skipif(
    "asan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer keeps what was freed"
)
def test_many_tables_and_keys_leave_nothing_behind() -> None:
    """Memory of the process after thousands of keys added and removed is what it was after the first ones."""
    from tests.ext.twins import NATIVE

    def resident_kb() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4

    def churn() -> None:
        for _ in range(30):
            keys = full_table(NATIVE)
            for kid in range(20_000, 20_050):
                keys.add(kid, 2, 2, bytes(32))
            for kid in range(20_000, 20_025):
                keys.remove(kid)
            for suite in (1, 2):
                public = NATIVE.public_of(suite, private_of(suite))
                assert not NATIVE.verify(suite, public, b"", bytes(64))
                assert NATIVE.verify(suite, public, b"", NATIVE.sign(suite, private_of(suite), b""))
            for _ in range(100):
                with pytest.raises(ValueError, match="not a public key"):
                    keys.add(1, 3, 2, bytes(32), public_key=b"\x04" + bytes(64))
                NATIVE.Prf(1, NATIVE.hkdf(2, b"", b"", b"", 32)).batch(b"ab", [0, 1, 2])
        gc.collect()

    churn()
    before = resident_kb()
    for _ in range(5):
        churn()
    # 7,500 keys of about 3 kB, 15,000 refused ones and 150 tables of 512 kB (mostly untouched) went by.
    assert resident_kb() - before < 4_000
