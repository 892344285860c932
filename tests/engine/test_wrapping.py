"""The keyring at rest: what opens it, and everything that must not."""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from engine.errors import KeyringLocked, PickgateError, SetupError
from engine.wrapping import PassphraseUnlock, Random, unwrap, wrap

PASSPHRASE = b"four words by dice"
DEPLOYMENT = "d-7f3a"
PLAIN = b'{"secret":"of the keyring"}'

# Byte positions of the layout that engine/wrapping.py documents, for a passphrase.
MAGIC, FORMAT, SCHEME, LENGTH = range(4), 4, 5, range(6, 8)
ROUNDS, SALT, NONCE = range(8, 12), range(12, 28), range(28, 40)


@pytest.fixture(scope="module")
def unlock() -> PassphraseUnlock:
    return PassphraseUnlock(PASSPHRASE)


@pytest.fixture(scope="module")
def blob(unlock: PassphraseUnlock) -> bytes:
    return wrap(PLAIN, unlock, DEPLOYMENT, os.urandom)


def made_by_hand(
    *, rounds: int, scheme: int = 1, format_number: int = 1, parameters: bytes | None = None
) -> bytes:
    """A blob built from the documented layout with hashlib, sharing no code with engine.wrapping."""
    salt, nonce = bytes(range(16)), bytes(range(12))
    if parameters is None:
        parameters = rounds.to_bytes(4, "big") + salt
    header = b"PGKR" + bytes([format_number, scheme]) + len(parameters).to_bytes(2, "big") + parameters
    aad = b"pickgate/keyring/1:" + len(DEPLOYMENT).to_bytes(2, "big") + DEPLOYMENT.encode() + header
    key = hashlib.pbkdf2_hmac("sha256", PASSPHRASE, salt, rounds)
    return header + nonce + AESGCM(key).encrypt(nonce, PLAIN, aad)


def test_what_was_wrapped_comes_back_with_another_object_of_the_same_passphrase(blob: bytes) -> None:
    assert unwrap(blob, PassphraseUnlock(PASSPHRASE), DEPLOYMENT) == PLAIN
    assert PLAIN not in blob


def test_a_blob_built_from_the_documented_layout_opens(unlock: PassphraseUnlock) -> None:
    assert unwrap(made_by_hand(rounds=600_000), unlock, DEPLOYMENT) == PLAIN


def test_each_wrap_takes_a_fresh_salt_and_nonce_and_the_full_rounds(
    unlock: PassphraseUnlock, blob: bytes
) -> None:
    other = wrap(PLAIN, unlock, DEPLOYMENT, os.urandom)
    assert other[SALT.start : SALT.stop] != blob[SALT.start : SALT.stop]
    assert other[NONCE.start : NONCE.stop] != blob[NONCE.start : NONCE.stop]
    assert int.from_bytes(blob[ROUNDS.start : ROUNDS.stop], "big") >= 600_000


def test_a_wrong_passphrase_says_what_may_be_wrong_and_what_to_do(blob: bytes) -> None:
    with pytest.raises(KeyringLocked) as caught:
        unwrap(blob, PassphraseUnlock(PASSPHRASE + b"!"), DEPLOYMENT)
    for words in (
        "passphrase is wrong",
        "was changed",
        "another deployment",
        "PICKGATE_PASSPHRASE_FILE",
        "backup",
    ):
        assert words in caught.value.message


def test_no_provider_is_a_locked_keyring_that_says_what_to_give(blob: bytes) -> None:
    with pytest.raises(KeyringLocked, match="PICKGATE_PASSPHRASE_FILE"):
        unwrap(blob, None, DEPLOYMENT)


@pytest.mark.parametrize("other", ["", "d-7f3b", "d-7f3a ", "d-7f3aPGKR"])
def test_a_blob_opens_in_its_own_deployment_only(unlock: PassphraseUnlock, blob: bytes, other: str) -> None:
    with pytest.raises(KeyringLocked):
        unwrap(blob, unlock, other)


def test_a_change_of_any_single_byte_is_refused(unlock: PassphraseUnlock, blob: bytes) -> None:
    for position in range(len(blob)):
        changed = bytearray(blob)
        changed[position] ^= 0x01
        # Before salt and nonce a change is recognisable for what it is; behind, only the authentication sees it. The
        # last byte of the rounds is in between: 600,001 rounds are acceptable ones.
        structural = position in MAGIC or position in (FORMAT, SCHEME) or position in LENGTH
        structural = structural or position in ROUNDS[:-1]
        with pytest.raises(SetupError if structural else KeyringLocked):
            unwrap(bytes(changed), unlock, DEPLOYMENT)


def test_a_blob_cut_short_or_grown_is_refused(unlock: PassphraseUnlock, blob: bytes) -> None:
    for length in range(len(blob)):
        with pytest.raises((SetupError, KeyringLocked)):
            unwrap(blob[:length], unlock, DEPLOYMENT)
    for grown in (blob + b"\0", b"\0" + blob, blob + blob):
        with pytest.raises((SetupError, KeyringLocked)):
            unwrap(grown, unlock, DEPLOYMENT)


@pytest.mark.parametrize("rounds", [1, 1_000, 599_999])
def test_rounds_below_the_floor_are_refused_even_in_a_genuine_blob(
    unlock: PassphraseUnlock, rounds: int
) -> None:
    with pytest.raises(SetupError, match=f"{rounds} PBKDF2 rounds"):
        unwrap(made_by_hand(rounds=rounds), unlock, DEPLOYMENT)


def test_rounds_that_would_keep_a_process_busy_are_refused_before_any_work(
    unlock: PassphraseUnlock, blob: bytes
) -> None:
    # 2**32 - 1 rounds take ten minutes: this test would not end if they were begun.
    greedy = blob[: ROUNDS.start] + b"\xff" * 4 + blob[ROUNDS.stop :]
    with pytest.raises(SetupError, match="4294967295 PBKDF2 rounds"):
        unwrap(greedy, unlock, DEPLOYMENT)


@pytest.mark.parametrize("rounds", [0, 599_999, 10_000_001])
def test_rounds_out_of_range_are_refused_when_chosen(rounds: int) -> None:
    with pytest.raises(SetupError, match=str(rounds)):
        PassphraseUnlock(PASSPHRASE, rounds=rounds)


def test_a_later_format_is_named_and_not_guessed_at(unlock: PassphraseUnlock) -> None:
    with pytest.raises(SetupError, match="format 2"):
        unwrap(made_by_hand(rounds=600_000, format_number=2), unlock, DEPLOYMENT)


def test_another_scheme_is_named_and_not_tried(unlock: PassphraseUnlock) -> None:
    with pytest.raises(SetupError, match="scheme 9"):
        unwrap(made_by_hand(rounds=600_000, scheme=9), unlock, DEPLOYMENT)


@pytest.mark.parametrize("parameters", [b"", bytes(19), bytes(21)])
def test_passphrase_parameters_of_another_length_are_refused(
    unlock: PassphraseUnlock, parameters: bytes
) -> None:
    with pytest.raises(SetupError, match="damaged"):
        unwrap(made_by_hand(rounds=600_000, parameters=parameters), unlock, DEPLOYMENT)


def test_a_short_passphrase_protects_nothing_new() -> None:
    with pytest.raises(SetupError, match="fewer than 8 bytes"):
        wrap(PLAIN, PassphraseUnlock(b"1234567"), DEPLOYMENT, os.urandom)


@pytest.mark.parametrize("surplus", [-1, 1])
def test_a_random_source_of_the_wrong_size_is_refused(unlock: PassphraseUnlock, surplus: int) -> None:
    with pytest.raises(SetupError, match="random source"):
        wrap(PLAIN, unlock, DEPLOYMENT, lambda size: os.urandom(size + surplus))


# --- where passphrases come from ----------------------------------------------------------------------------------


@pytest.mark.parametrize("line_end", [b"", b"\n", b"\r\n"])
def test_a_passphrase_file_opens_with_and_without_a_line_end(
    tmp_path: Path, blob: bytes, line_end: bytes
) -> None:
    path = tmp_path / "passphrase"
    path.write_bytes(PASSPHRASE + line_end)
    assert unwrap(blob, PassphraseUnlock.from_file(path), DEPLOYMENT) == PLAIN


@pytest.mark.parametrize("rest", [b"\n\n", b" ", b" \n", b"\r", b"\n\r"])
def test_nothing_but_one_line_end_is_taken_off_a_passphrase_file(
    tmp_path: Path, blob: bytes, rest: bytes
) -> None:
    path = tmp_path / "passphrase"
    path.write_bytes(PASSPHRASE + rest)
    with pytest.raises(KeyringLocked):
        unwrap(blob, PassphraseUnlock.from_file(path), DEPLOYMENT)


@pytest.mark.parametrize("line_end", [b"", b"\n", b"\r\n"])
def test_the_longest_passphrase_is_taken_whole_and_one_byte_more_is_refused(
    tmp_path: Path, line_end: bytes
) -> None:
    longest = os.urandom(512).hex().encode()
    path = tmp_path / "passphrase"
    path.write_bytes(longest + line_end)
    parameters = PassphraseUnlock(longest).new_parameters(os.urandom)
    assert PassphraseUnlock.from_file(path).derive(parameters) == PassphraseUnlock(longest).derive(parameters)
    path.write_bytes(longest + b"x" + line_end)
    with pytest.raises(KeyringLocked, match="longer than 1024 bytes"):
        PassphraseUnlock.from_file(path)


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n"])
def test_an_empty_passphrase_file_is_a_locked_keyring(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "passphrase"
    path.write_bytes(content)
    with pytest.raises(KeyringLocked, match="empty"):
        PassphraseUnlock.from_file(path)


def test_a_passphrase_file_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(KeyringLocked) as caught:
            PassphraseUnlock.from_file(path)
        assert str(path) in caught.value.message
        assert "create it" in caught.value.message


def test_a_passphrase_from_the_environment_opens_and_a_missing_one_is_named(blob: bytes) -> None:
    environment = {"PASS": PASSPHRASE.decode(), "EMPTY": ""}
    assert unwrap(blob, PassphraseUnlock.from_environment("PASS", environment), DEPLOYMENT) == PLAIN
    with pytest.raises(KeyringLocked, match="MISSING is not set"):
        PassphraseUnlock.from_environment("MISSING", environment)
    with pytest.raises(KeyringLocked, match="empty"):
        PassphraseUnlock.from_environment("EMPTY", environment)


def test_a_passphrase_that_is_no_utf_8_is_the_same_from_file_and_environment(tmp_path: Path) -> None:
    raw = b"\xff\xfe not utf-8"
    path = tmp_path / "passphrase"
    path.write_bytes(raw)
    from_environment = PassphraseUnlock.from_environment("PASS", {"PASS": os.fsdecode(raw)})
    parameters = from_environment.new_parameters(os.urandom)
    assert from_environment.derive(parameters) == PassphraseUnlock.from_file(path).derive(parameters)


# --- cost ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def derivations(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Salts that are really derived, noted while the real derivation runs."""
    salts: list[bytes] = []

    def noted(algorithm: SHA256, length: int, salt: bytes, iterations: int) -> object:
        salts.append(salt)
        return PBKDF2HMAC(algorithm, length, salt, iterations)

    monkeypatch.setattr("engine.wrapping.PBKDF2HMAC", noted)
    return salts


def test_threads_that_open_one_blob_together_pay_for_one_derivation(
    blob: bytes, derivations: list[bytes]
) -> None:
    fresh = PassphraseUnlock(PASSPHRASE)
    together = threading.Barrier(8)

    def opened(_: int) -> bytes:
        together.wait(timeout=10)
        return unwrap(blob, fresh, DEPLOYMENT)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(opened, range(8))) == {PLAIN}
    assert derivations == [blob[SALT.start : SALT.stop]]


def test_derived_keys_are_kept_in_bounded_number(derivations: list[bytes]) -> None:
    fresh = PassphraseUnlock(PASSPHRASE)
    parameters = [fresh.new_parameters(os.urandom) for _ in range(5)]
    keys = [fresh.derive(one) for one in parameters]
    assert len(derivations) == 5
    assert fresh.derive(parameters[4]) == keys[4]
    assert len(derivations) == 5
    # The oldest made room for the fifth.
    assert fresh.derive(parameters[0]) == keys[0]
    assert len(derivations) == 6


# --- other providers ----------------------------------------------------------------------------------------------


class WrappedDataKey:
    """A provider of the KMS kind: each blob has its own data key, kept in the blob as the master key wrapped it."""

    scheme = 200

    def __init__(self, master: bytes) -> None:
        self._master = master

    def new_parameters(self, random: Random) -> bytes:
        return aes_key_wrap(self._master, random(32))

    def derive(self, parameters: bytes) -> bytes:
        try:
            return aes_key_unwrap(self._master, parameters)
        except InvalidUnwrap:
            raise KeyringLocked("the master key does not unwrap the data key") from None


def test_a_provider_of_the_kms_kind_fits_the_same_blob(unlock: PassphraseUnlock) -> None:
    provider = WrappedDataKey(bytes(32))
    wrapped = wrap(PLAIN, provider, DEPLOYMENT, os.urandom)
    assert unwrap(wrapped, provider, DEPLOYMENT) == PLAIN
    with pytest.raises(KeyringLocked, match="master key"):
        unwrap(wrapped, WrappedDataKey(bytes(31) + b"\1"), DEPLOYMENT)
    with pytest.raises(SetupError, match="scheme 200"):
        unwrap(wrapped, unlock, DEPLOYMENT)


class Broken:
    """A provider that breaks one clause of its contract."""

    def __init__(self, *, scheme: int = 201, parameters: bytes = b"", key: bytes = bytes(32)) -> None:
        self.scheme = scheme
        self._parameters = parameters
        self._key = key

    def new_parameters(self, random: Random) -> bytes:
        return self._parameters

    def derive(self, parameters: bytes) -> bytes:
        return self._key


@pytest.mark.parametrize(
    "provider",
    [
        Broken(scheme=0),
        Broken(scheme=256),
        Broken(parameters=bytes(8_193)),
        # 16 bytes would be a sound AES-128 key, which is not what the format says.
        Broken(key=bytes(16)),
        Broken(key=bytes(31)),
    ],
    ids=["scheme 0", "scheme 256", "parameters", "AES-128 key", "odd key"],
)
def test_a_provider_that_breaks_its_contract_wraps_nothing(provider: Broken) -> None:
    with pytest.raises(SetupError):
        wrap(PLAIN, provider, DEPLOYMENT, os.urandom)


# --- silence ------------------------------------------------------------------------------------------------------


def test_no_passphrase_and_no_key_shows_in_repr_or_error(tmp_path: Path, blob: bytes) -> None:
    secret = b"hunter2 hunter2 hunter2"
    unlock = PassphraseUnlock(secret)
    key = unlock.derive(blob[8:28])
    texts = [repr(unlock), str(unlock), f"{unlock}"]
    path = tmp_path / "passphrase"
    path.write_bytes(secret * 100)
    for attempt in (
        lambda: unwrap(blob, unlock, DEPLOYMENT),
        lambda: PassphraseUnlock(secret * 100),
        lambda: PassphraseUnlock.from_file(path),
        lambda: PassphraseUnlock(secret[:7]).new_parameters(os.urandom),
    ):
        with pytest.raises(PickgateError) as caught:
            attempt()
        texts.append(repr(caught.value) + caught.value.message)
    for text in texts:
        assert "hunter" not in text
        assert key.hex() not in text
        assert repr(key)[2:-1] not in text
