"""SM2 encryption: kernel and twin, each opened by the twin, by gmssl, and what a changed one does."""

from __future__ import annotations

from typing import Any

import pytest
from gmssl.sm2 import CryptSM2
from hypothesis import given
from hypothesis import strategies as st

import ext.sm2
from ext import sm2_reference

PRIVATE = bytes(range(1, 33))
PUBLIC = sm2_reference.public_of(PRIVATE)


@pytest.fixture(params=[ext.sm2.sm2_encrypt, sm2_reference.encrypt], ids=["native", "reference"])
def encrypt(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("size", [1, 16, 31, 32, 33, 64, 127, 128, 255])
def test_what_is_encrypted_opens(encrypt: Any, size: int) -> None:
    message = bytes(n % 256 for n in range(size))
    # Often, so that x and y with leading zero bytes, and set top bits, are among them.
    for _ in range(100 if encrypt is ext.sm2.sm2_encrypt and size == 32 else 3):
        sealed = encrypt(PUBLIC, message)
        assert len(sealed) == 97 + size
        assert sealed[0] == 4
        assert sm2_reference.on_curve(sealed[:65])
        assert sm2_reference.decrypt(PRIVATE, sealed) == message
    assert encrypt(PUBLIC, message) != sealed


def test_gmssl_opens_it(encrypt: Any) -> None:
    # mode 1: C1 | C3 | C2, as the later standard has it; C1 without its 04.
    other = CryptSM2(private_key=PRIVATE.hex(), public_key=PUBLIC.hex()[2:], mode=1)
    assert other.decrypt(encrypt(PUBLIC, b"a secret of a terminal")[1:]) == b"a secret of a terminal"


def test_the_example_of_the_standard_opens() -> None:
    """GB/T 32918.5-2017, annex C.2: its key, its message, its ciphertext."""
    private = bytes.fromhex("3945208F7B2144B13F36E38AC6D39F95889393692860B51A42FB81EF4DF7C5B8")
    sealed = bytes.fromhex(
        "04"
        "04EBFC718E8D1798620432268E77FEB6415E2EDE0E073C0F4F640ECD2E149A73"
        "E858F9D81E5430A57B36DAAB8F950A3C64E6EE6A63094D99283AFF767E124DF0"
        "59983C18F809E262923C53AEC295D30383B54E39D609D160AFCB1908D0BD8766"
        "21886CA989CA9C7D58087307CA93092D651EFA"
    )
    assert sm2_reference.decrypt(private, sealed) == b"encryption standard"


def test_a_changed_one_does_not_open() -> None:
    sealed = ext.sm2.sm2_encrypt(PUBLIC, b"secret")
    for bit in range(len(sealed) * 8):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="SM2 ciphertext"):
            sm2_reference.decrypt(PRIVATE, bytes(changed))
    with pytest.raises(ValueError, match="another key"):
        sm2_reference.decrypt(bytes(range(2, 34)), sealed)


@pytest.mark.parametrize(
    "public",
    [
        b"",
        PUBLIC[1:],
        PUBLIC + b"\0",
        b"\x02" + PUBLIC[1:33],
        b"\x04" + bytes(64),
        PUBLIC[:-1] + bytes([PUBLIC[-1] ^ 1]),
        b"\x04" + b"\xff" * 64,
    ],
)
def test_what_is_no_key_is_refused(encrypt: Any, public: bytes) -> None:
    with pytest.raises(ValueError, match="public key"):
        encrypt(public, b"secret")


@pytest.mark.parametrize("size", [0, 256, 10_000])
def test_a_message_of_another_size_is_refused(encrypt: Any, size: int) -> None:
    with pytest.raises(ValueError, match="1 to 255"):
        encrypt(PUBLIC, bytes(size))


@pytest.mark.parametrize("wrong", [None, "text", bytearray(65), 5])
def test_bytes_are_asked_for(wrong: Any) -> None:
    with pytest.raises(TypeError):
        ext.sm2.sm2_encrypt(wrong, b"x")
    with pytest.raises(TypeError):
        ext.sm2.sm2_encrypt(PUBLIC, wrong)


@given(st.binary(min_size=0, max_size=200))
def test_any_bytes_are_no_ciphertext_or_open(data: bytes) -> None:
    with pytest.raises(ValueError, match="SM2 ciphertext"):
        sm2_reference.decrypt(PRIVATE, data)
