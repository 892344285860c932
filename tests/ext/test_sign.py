"""Ed25519 and SM2 with SM3 against published examples, each other, and hostile input."""

import ctypes
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography_vectors import open_vector_file
from gmssl.sm2 import CryptSM2
from hypothesis import given, settings
from hypothesis import strategies as st

from ext import sm2_reference
from tests.ext.twins import NATIVE, REFERENCE, SOAK, private_of

N = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFF7203DF6B21C6052B53BBF40939D54123
P = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF00000000FFFFFFFFFFFFFFFF

# GB/T 32918.5-2017, appendix A.2: the signature of "message digest" under the default identity.
GBT_PRIVATE = bytes.fromhex("3945208f7b2144b13f36e38ac6d39f95889393692860b51a42fb81ef4df7c5b8")
GBT_PUBLIC = bytes.fromhex(
    "0409f9df311e5421a150dd7d161e4bc5c672179fad1833fc076bb08ff356f35020"
    "ccea490ce26775a52dc6ea718cc1aa600aed05fbf35e084a6632f6072da9ad13"
)
GBT_NONCE = "59276e27d506861a16680f3ad9c02dccef3cc1fa3cdbe4ce6d54b80deac1bc21"
GBT_SIGNATURE = bytes.fromhex(
    "f5a03b0648d2c4630eeac513e1bb81a15944da3827d5b74143ac7eaceee720b3"
    "b1b6aa29df212fd8763182bc0d421ca1bb9038fd1f7f42d4840b69c485bbc1aa"
)

# RFC 8032, section 7.1, tests 1 to 3: private, public, message, signature.
RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
        "387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
        "4a7c15e9716ed28dc027beceea1ec40a",
    ),
]


@pytest.mark.parametrize(("private", "public", "message", "signature"), RFC_8032)
def test_ed25519_of_rfc_8032(codec: Any, private: str, public: str, message: str, signature: str) -> None:
    key, text, proof = bytes.fromhex(private), bytes.fromhex(message), bytes.fromhex(signature)
    assert codec.public_of(1, key).hex() == public
    assert codec.sign(1, key, text) == proof
    assert codec.verify(1, bytes.fromhex(public), text, proof) is True


def test_ed25519_vector_file(codec: Any) -> None:
    """The 1,024 vectors of the algorithm's authors; a quarter of them where all is not asked for."""
    with open_vector_file("asymmetric/Ed25519/sign.input", "r") as file:
        lines = file.read().splitlines()
    assert len(lines) == 1024
    for line in lines[:: 1 if SOAK else 4]:
        secret, public, message, signed = (bytes.fromhex(part) for part in line.split(":")[:4])
        assert codec.public_of(1, secret[:32]) == public
        assert codec.sign(1, secret[:32], message) == signed[:64]
        assert codec.verify(1, public, message, signed[:64]) is True
        assert codec.verify(1, public, message + b"x", signed[:64]) is False


def test_sm2_example_of_the_standard(codec: Any) -> None:
    assert codec.public_of(2, GBT_PRIVATE) == GBT_PUBLIC
    assert codec.verify(2, GBT_PUBLIC, b"message digest", GBT_SIGNATURE) is True
    assert codec.verify(2, GBT_PUBLIC, b"message digesT", GBT_SIGNATURE) is False


def test_sm2_reference_makes_the_signature_of_the_standard() -> None:
    signer = sm2_reference._Signer(GBT_PUBLIC.hex()[2:], GBT_PRIVATE.hex())
    digest = bytes.fromhex(signer._sm3_z(b"message digest"))
    assert digest.hex() == "f0b43e94ba45accaace692ed534382eb17e6ab5a19ce7b31f4486fdfc0d28640"
    assert bytes.fromhex(signer.sign(digest, GBT_NONCE)) == GBT_SIGNATURE


def test_sm2_against_bare_gmssl() -> None:
    """gmssl as it comes, its own point arithmetic and SM3: signs for both twins, and checks what they sign."""
    for i in range(100 if SOAK else 10):
        private = bytes([i + 1]) * 32
        public = NATIVE.public_of(2, private)
        assert REFERENCE.public_of(2, private) == public
        bare = CryptSM2(private.hex(), "")
        bare.public_key = public.hex()[2:]
        assert bare._kg(int.from_bytes(private), sm2_reference.G) == public.hex()[2:]
        message = b"message %d" % i
        proof = bytes.fromhex(bare.sign_with_sm3(message, f"{0x1234567890 + i:064x}"))
        for codec in (NATIVE, REFERENCE):
            assert codec.verify(2, public, message, proof)
            assert not codec.verify(2, public, message + b".", proof)
            assert bare.verify_with_sm3(codec.sign(2, private, message).hex(), message)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**256 - 1))
def test_window_tables_multiply_as_gmssl_does(scalar: int) -> None:
    point = GBT_PUBLIC.hex()[2:]
    small = scalar >> 200  # gmssl is slow: a sample over few bits, and two laws over all of them
    if small:
        assert sm2_reference.multiply(small, point) == CryptSM2("", "")._kg(small, point)
    assert sm2_reference.multiply(scalar, point) == sm2_reference.multiply(scalar % N, point)
    negated = sm2_reference.multiply(-scalar % N, point)
    forward = sm2_reference.multiply(scalar, point)
    if forward is None:
        assert negated is None
    else:
        assert negated is not None
        assert negated[:64] == forward[:64]
        assert int(negated[64:], 16) + int(forward[64:], 16) == P


@pytest.mark.parametrize("suite", [1, 2])
@pytest.mark.parametrize(
    ("signer", "checker"), [(NATIVE, REFERENCE), (REFERENCE, NATIVE)], ids=["n-r", "r-n"]
)
def test_each_twin_accepts_what_the_other_signs(suite: int, signer: Any, checker: Any) -> None:
    for size in (0, 1, 31, 32, 55, 56, 64, 114, 1000):
        private, public = signer.generate(suite)
        assert checker.public_of(suite, private) == public
        message = bytes(size)
        proof = signer.sign(suite, private, message)
        assert len(proof) == 64
        assert checker.verify(suite, public, message, proof)
        assert not checker.verify(suite, public, message + b"\x00", proof)


@pytest.mark.parametrize("suite", [1, 2])
def test_no_bit_of_a_signature_may_change(codec: Any, suite: int) -> None:
    private = private_of(suite)
    public = codec.public_of(suite, private)
    proof = codec.sign(suite, private, b"message")
    assert codec.verify(suite, public, b"message", proof)
    for bit in range(512):
        changed = bytearray(proof)
        changed[bit // 8] ^= 1 << bit % 8
        assert not codec.verify(suite, public, b"message", bytes(changed)), bit
    for wrong in (b"", proof[:-1], proof + b"\x00", bytes(64), b"\xff" * 64):
        assert codec.verify(suite, public, b"message", wrong) is False


def test_signature_numbers_out_of_range_are_refused(codec: Any) -> None:
    """Another spelling of the same numbers: Ed25519 S + L, SM2 r + n and s + n where they fit."""
    order = 2**252 + 27742317777372353535851937790883648493
    private = private_of(1)
    proof = codec.sign(1, private, b"message")
    moved = (int.from_bytes(proof[32:], "little") + order).to_bytes(32, "little")
    assert not codec.verify(1, codec.public_of(1, private), b"message", proof[:32] + moved)

    public = codec.public_of(2, private_of(2))
    proof = codec.sign(2, private_of(2), b"message")
    for r, s in ((0, 1), (1, 0), (N, 1), (1, N), (N - 1, 1), (2**256 - 1, 2**256 - 1)):
        assert not codec.verify(2, public, b"message", r.to_bytes(32) + s.to_bytes(32))
    for half in (0, 32):
        number = int.from_bytes(proof[half : half + 32]) + N
        if number < 2**256:
            changed = proof[:half] + number.to_bytes(32) + proof[half + 32 :]
            assert not codec.verify(2, public, b"message", changed)


def test_ed25519_repeats_itself_and_native_sm2_does_not() -> None:
    assert NATIVE.sign(1, private_of(1), b"m") == NATIVE.sign(1, private_of(1), b"m")
    assert NATIVE.sign(2, private_of(2), b"m") != NATIVE.sign(2, private_of(2), b"m")


def test_reference_sm2_is_deterministic_with_a_nonce_of_its_own_for_each_message() -> None:
    one, again = (REFERENCE.sign(2, private_of(2), b"one") for _ in range(2))
    other = REFERENCE.sign(2, private_of(2), b"other")
    assert one == again
    assert one[:32] != other[:32]


@pytest.mark.parametrize("suite", [1, 2])
def test_wrong_keys_are_refused(codec: Any, suite: int) -> None:
    for size in (0, 31, 33, 64):
        with pytest.raises(ValueError, match="the private key has"):
            codec.public_of(suite, bytes(size))
        with pytest.raises(ValueError, match="the private key has"):
            codec.sign(suite, bytes(size), b"")
    with pytest.raises(ValueError, match="no such suite"):
        codec.generate(3)


def test_sm2_private_keys_stay_below_n_minus_1(codec: Any) -> None:
    for wrong in (0, N - 1, N, N + 1, 2**256 - 1):
        with pytest.raises(ValueError, match="not a private key"):
            codec.public_of(2, wrong.to_bytes(32))
    for good in (1, N - 2):
        public = codec.public_of(2, good.to_bytes(32))
        assert codec.verify(2, public, b"m", codec.sign(2, good.to_bytes(32), b"m"))


def test_only_points_of_the_curve_are_public_keys(codec: Any) -> None:
    x, y = GBT_PUBLIC[1:33], GBT_PUBLIC[33:]
    compressed = bytes([2 + y[-1] % 2]) + x
    off_curve = bytes([4]) + x + y[:-1] + bytes([y[-1] ^ 1])
    beyond_p = bytes([4]) + (P + 1).to_bytes(32) + y
    hybrid = bytes([6 + y[-1] % 2]) + x + y
    for wrong in (
        b"",
        compressed,
        off_curve,
        beyond_p,
        hybrid,
        bytes(65),
        GBT_PUBLIC + b"\x00",
        GBT_PUBLIC[1:],
    ):
        with pytest.raises(ValueError, match="not a public key"):
            codec.verify(2, wrong, b"message digest", GBT_SIGNATURE)
    for wrong in (b"", bytes(31), bytes(33)):
        with pytest.raises(ValueError, match="not a public key"):
            codec.verify(1, wrong, b"", bytes(64))


def test_public_key_that_begins_with_zeros_and_fours() -> None:
    """gmssl strips leading zeros and fours of a key, which belong to x: the reference must not."""
    private = next(
        d.to_bytes(32)
        for d in range(1, 10_000)
        if sm2_reference.public_of(d.to_bytes(32))[1] in (0x00, 0x04, 0x40, 0x44)
    )
    public = REFERENCE.public_of(2, private)
    assert public == NATIVE.public_of(2, private)
    assert REFERENCE.verify(2, public, b"m", NATIVE.sign(2, private, b"m"))
    assert NATIVE.verify(2, public, b"m", REFERENCE.sign(2, private, b"m"))


def test_refusals_leave_no_error_behind() -> None:
    """libcrypto's error queue is the thread's: the ssl module would report what it finds there as its own."""
    libcrypto = ctypes.CDLL("libcrypto.so.3")  # the one that the kernels have loaded
    libcrypto.ERR_peek_error.restype = ctypes.c_ulong
    libcrypto.ERR_clear_error()
    for suite in (1, 2):
        public = NATIVE.public_of(suite, private_of(suite))
        assert not NATIVE.verify(suite, public, b"m", b"\xff" * 64)
        assert not NATIVE.verify(suite, public, b"m", NATIVE.sign(suite, private_of(suite), b"other"))
        assert libcrypto.ERR_peek_error() == 0
    with pytest.raises(ValueError, match="not a public key"):
        NATIVE.verify(2, b"\x04" + bytes(64), b"m", bytes(64))
    assert libcrypto.ERR_peek_error() == 0


def test_cryptography_agrees_on_ed25519() -> None:
    private, public = NATIVE.generate(1)
    key = Ed25519PrivateKey.from_private_bytes(private)
    assert key.public_key().public_bytes_raw() == public
    key.public_key().verify(NATIVE.sign(1, private, b"m"), b"m")
