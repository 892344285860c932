"""The keyring at rest: one blob, AES-256-GCM under a key that an unlock provider derives.

Layout (big-endian):

    magic 4 "PGKR" | format 1 (=1) | scheme 1 | parameters' length 2 | parameters | nonce 12 | ciphertext | tag 16

Everything before the nonce is the header. Header and deployment id are authenticated with the ciphertext, so neither
the scheme's cost nor the blob's home can be exchanged. What the parameters mean is the provider's affair: salt and
rounds for a passphrase; a data key wrapped by a KMS or HSM for a provider of that kind.

Sources: AES-GCM NIST SP 800-38D (96-bit nonce, 128-bit tag); PBKDF2 RFC 8018 section 5.2 with HMAC-SHA-256; NIST SP
800-132 section 5.1 (salt of 128 bits); rounds: OWASP Password Storage Cheat Sheet (2023), 600,000 for this PRF.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from engine.errors import KeyringLocked, SetupError

Random = Callable[[int], bytes]
"""Source of unpredictable bytes: `random(n)` gives n of them (`os.urandom` outside tests)."""

ROUNDS_MIN: Final = 600_000
"""A blob that asks for fewer is refused: otherwise whoever can write the blob could make guessing cheap."""
ROUNDS_MAX: Final = 10_000_000
"""The rounds are read before anything is authenticated: a blob must not be able to keep a process busy for hours."""
SALT_BYTES: Final = 16
KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
PASSPHRASE_BYTES_MIN: Final = 8
"""Below this no number of rounds helps (NIST SP 800-63B section 5.1.1 asks for 8 characters)."""
PASSPHRASE_BYTES_MAX: Final = 1_024
PARAMETERS_BYTES_MAX: Final = 8_192
"""Room for a data key wrapped by a KMS with its context."""
BLOB_BYTES_MAX: Final = 64 * 1024 * 1024
"""All 65,535 kids with their histories need less than half of it."""

_MAGIC: Final = b"PGKR"
_FORMAT: Final = 1
_HEADER: Final = struct.Struct(">4sBBH")
_PASSPHRASE_PARAMETERS: Final = struct.Struct(f">I{SALT_BYTES}s")
_AAD_LABEL: Final = b"pickgate/keyring/1:"
_DERIVED_KEPT: Final = 4
"""Derived keys kept per provider: each write takes a fresh salt, so a process sees few at any time."""

_SET_PASSPHRASE: Final = (
    "give the passphrase of this deployment in PICKGATE_PASSPHRASE_FILE (or --passphrase-file)"
)


class Unlock(Protocol):
    """A provider of wrapping keys: a passphrase (below), or a KMS, an HSM or an SDF device (engine.key_service).

    A KMS provider makes a data key in `new_parameters`, lets the KMS wrap it, and returns the wrapped form as the
    parameters; `derive` has the KMS unwrap them.
    """

    @property
    def scheme(self) -> int:
        """Number of the scheme in the blob's header, 1 .. 255; 1 is the passphrase. Never reuse a number."""

    def new_parameters(self, random: Random) -> bytes:
        """Parameters for one wrap, at most PARAMETERS_BYTES_MAX; they are stored in clear and authenticated."""

    def derive(self, parameters: bytes) -> bytes:
        """Wrapping key (32 bytes) for stored parameters.

        Raises SetupError when the parameters are malformed or too weak, KeyringLocked when the key can't be had now.
        """


class MovingUnlock:
    """Two providers of different schemes while a keyring moves from one to the other: the new one wraps, both unwrap."""

    def __init__(self, new: Unlock, old: Unlock) -> None:
        if new.scheme == old.scheme:
            raise SetupError("a keyring moves between providers of different schemes")
        self._new, self._old = new, old

    @property
    def scheme(self) -> int:
        """That of the new one."""
        return self._new.scheme

    def new_parameters(self, random: Random) -> bytes:
        """Those of the new one."""
        return self._new.new_parameters(random)

    def derive(self, parameters: bytes) -> bytes:
        """The new one's key."""
        return self._new.derive(parameters)

    def of(self, scheme: int) -> Unlock:
        """The provider for a blob of this scheme; the new one if it is neither's."""
        return self._old if scheme == self._old.scheme else self._new

    def __repr__(self) -> str:
        return f"MovingUnlock({self._new!r}, {self._old!r})"


class PassphraseUnlock:
    """Wrapping keys from a passphrase by PBKDF2-HMAC-SHA256; thread-safe.

    Parameters in the blob: rounds (4 bytes, ROUNDS_MIN .. ROUNDS_MAX) and salt (16). Derived keys are kept in the
    object, since a derivation takes about 0.1 to 0.2 s by intention and processes look at the keyring often.
    """

    def __init__(self, passphrase: bytes, *, rounds: int = ROUNDS_MIN) -> None:
        if not passphrase:
            raise KeyringLocked(f"the passphrase is empty; {_SET_PASSPHRASE}", field="passphrase")
        if len(passphrase) > PASSPHRASE_BYTES_MAX:
            raise KeyringLocked(
                f"the passphrase is longer than {PASSPHRASE_BYTES_MAX} bytes; is this the right file?",
                field="passphrase",
            )
        if not ROUNDS_MIN <= rounds <= ROUNDS_MAX:
            raise SetupError(f"PBKDF2 rounds {rounds}: expected {ROUNDS_MIN} to {ROUNDS_MAX}", field="rounds")
        self._passphrase = passphrase
        self._rounds = rounds
        self._derived: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = Lock()

    @classmethod
    def from_file(cls, path: Path) -> PassphraseUnlock:
        """Read the passphrase from a file (or pipe): all bytes of it but one line end at its end.

        Raises KeyringLocked when it can't be read, is empty or too long.
        """
        try:
            # A line end of two bytes may follow the longest passphrase; one byte more shows that it is too long.
            with path.open("rb") as file:
                content = file.read(PASSPHRASE_BYTES_MAX + 3)
        except OSError as error:
            raise KeyringLocked(
                f"the passphrase file {path} can't be read ({error.strerror}); create it, readable by this user only, "
                "with the passphrase the keyring was made with",
                field="passphrase_file",
            ) from None
        line_end = b"\r\n" if content.endswith(b"\r\n") else b"\n"
        return cls(content.removesuffix(line_end))

    @classmethod
    def from_environment(cls, name: str, environment: Mapping[str, str]) -> PassphraseUnlock:
        """Take the passphrase from variable `name` of `environment` (usually os.environ), exactly as it stands.

        Raises KeyringLocked when it is not set, empty or too long.
        """
        value = environment.get(name)
        if value is None:
            raise KeyringLocked(
                f"the environment variable {name} is not set; set it to the passphrase the keyring was made with",
                field=name,
            )
        return cls(value.encode("utf-8", "surrogateescape"))

    @property
    def scheme(self) -> int:
        """1: passphrase by PBKDF2-HMAC-SHA256."""
        return 1

    def new_parameters(self, random: Random) -> bytes:
        """Rounds and a fresh salt. Raises SetupError when the passphrase is too short to protect anything."""
        if len(self._passphrase) < PASSPHRASE_BYTES_MIN:
            raise SetupError(
                f"the passphrase has fewer than {PASSPHRASE_BYTES_MIN} bytes; choose a longer one, best a random one",
                field="passphrase",
            )
        return _PASSPHRASE_PARAMETERS.pack(self._rounds, exactly(random, SALT_BYTES))

    def derive(self, parameters: bytes) -> bytes:
        """Wrapping key (32 bytes) of the salt and rounds in `parameters`. Raises SetupError when they are not sound."""
        if len(parameters) != _PASSPHRASE_PARAMETERS.size:
            raise SetupError(
                f"the stored keyring is damaged: {len(parameters)} bytes of passphrase parameters, expected "
                f"{_PASSPHRASE_PARAMETERS.size}; restore it from a backup"
            )
        rounds, salt = _PASSPHRASE_PARAMETERS.unpack(parameters)
        if not ROUNDS_MIN <= rounds <= ROUNDS_MAX:
            raise SetupError(
                f"the stored keyring asks for {rounds} PBKDF2 rounds, accepted are {ROUNDS_MIN} to {ROUNDS_MAX}: it "
                "was damaged or weakened; restore it from a backup"
            )
        # Held while deriving: callers that come together for one salt shall pay for one derivation.
        with self._lock:
            key = self._derived.get(parameters)
            if key is None:
                key = PBKDF2HMAC(SHA256(), KEY_BYTES, salt, rounds).derive(self._passphrase)
                self._derived[parameters] = key
                if len(self._derived) > _DERIVED_KEPT:
                    self._derived.popitem(last=False)
            else:
                self._derived.move_to_end(parameters)
            return key

    def __repr__(self) -> str:
        return f"PassphraseUnlock(rounds={self._rounds})"


def exactly(random: Random, size: int) -> bytes:
    """`size` bytes of `random`; raises SetupError if the source gives another number of them."""
    drawn = random(size)
    if len(drawn) != size:
        raise SetupError(
            f"the random source gave {len(drawn)} bytes, {size} were asked for: it can't be used"
        )
    return drawn


def wrap(plain: bytes, unlock: Unlock, deployment_id: str, random: Random) -> bytes:
    """Encrypt `plain` for one deployment.

    Each wrap takes fresh parameters and a fresh nonce, so for a passphrase no key ever meets a second nonce.
    Raises SetupError (too large, passphrase too short) and whatever the provider raises.
    """
    parameters = unlock.new_parameters(random)
    if not 1 <= unlock.scheme <= 0xFF or len(parameters) > PARAMETERS_BYTES_MAX:
        raise SetupError("the unlock provider breaks its contract: scheme 1 .. 255, bounded parameters")
    header = _HEADER.pack(_MAGIC, _FORMAT, unlock.scheme, len(parameters)) + parameters
    nonce = exactly(random, NONCE_BYTES)
    blob = header + nonce + _cipher(unlock, parameters).encrypt(nonce, plain, _aad(header, deployment_id))
    if len(blob) > BLOB_BYTES_MAX:
        raise SetupError(f"the keyring has {len(blob)} bytes, at most {BLOB_BYTES_MAX} are kept")
    return blob


def unwrap(blob: bytes, unlock: Unlock | None, deployment_id: str) -> bytes:
    """Decrypt and authenticate a blob of `wrap`.

    Raises KeyringLocked when there is no provider or the authentication fails: a wrong passphrase, a changed blob and
    another deployment's blob look alike, that is the nature of authenticated encryption. Raises SetupError when the
    blob is recognisably not one of ours, of an unknown format, or made with another scheme.
    """
    if unlock is None:
        raise KeyringLocked(f"no passphrase was given; {_SET_PASSPHRASE}", field="passphrase")
    header, parameters, nonce, sealed, scheme = _split(blob)
    if isinstance(unlock, MovingUnlock):
        unlock = unlock.of(scheme)
    if scheme != unlock.scheme:
        raise SetupError(
            f"the stored keyring was wrapped by scheme {scheme}, the configured provider is scheme {unlock.scheme}; "
            "configure the provider it was made with (1 = passphrase, 2 = key service)"
        )
    cipher = _cipher(unlock, parameters)
    try:
        return cipher.decrypt(nonce, sealed, _aad(header, deployment_id))
    except InvalidTag:
        raise KeyringLocked(
            "the keyring does not open: the passphrase is wrong, or the stored keyring was changed or belongs to "
            f"another deployment; {_SET_PASSPHRASE}, and if it is the right one restore the keyring from a backup",
            field="passphrase",
        ) from None


def _split(blob: bytes) -> tuple[bytes, bytes, bytes, bytes, int]:
    """Header, parameters, nonce, ciphertext with tag, scheme."""
    if len(blob) > BLOB_BYTES_MAX or len(blob) < _HEADER.size or blob[:4] != _MAGIC:
        raise SetupError(
            "what is stored as the keyring is none (wrong length or mark); restore it from a backup"
        )
    _, format_number, scheme, parameters_length = _HEADER.unpack_from(blob)
    if format_number != _FORMAT:
        raise SetupError(
            f"the stored keyring has format {format_number}, this release reads format {_FORMAT}; use the release that "
            "wrote it, or a later one"
        )
    header_length = _HEADER.size + parameters_length
    if parameters_length > PARAMETERS_BYTES_MAX or len(blob) < header_length + NONCE_BYTES + TAG_BYTES:
        raise SetupError("the stored keyring is damaged (cut short); restore it from a backup")
    nonce_end = header_length + NONCE_BYTES
    return (
        blob[:header_length],
        blob[_HEADER.size : header_length],
        blob[header_length:nonce_end],
        blob[nonce_end:],
        scheme,
    )


def _cipher(unlock: Unlock, parameters: bytes) -> AESGCM:
    key = unlock.derive(parameters)
    if len(key) != KEY_BYTES:
        raise SetupError(f"the unlock provider gave a key of {len(key)} bytes, expected {KEY_BYTES}")
    return AESGCM(key)


def _aad(header: bytes, deployment_id: str) -> bytes:
    # The id's length makes the boundary between id and header unambiguous.
    identity = deployment_id.encode()
    return _AAD_LABEL + len(identity).to_bytes(2, "big") + identity + header
