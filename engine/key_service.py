"""Wrapping keys from a key service: a KMS, an HSM by PKCS #11, an SDF device (GM/T 0018), or a file for those who have none.

    keyring blob ── AES-256-GCM under a data key ── wrapped by the service's own key, which never leaves it

For each write of the keyring a data key is drawn here and wrapped by the service; the wrapped form lies in the blob as its
parameters (engine.wrapping). To open the keyring the service unwraps it once, and the process keeps it. So the service is asked
when a keyring was changed, and not when a code is opened: it may be slow, and may be away for a while.

A service is three members (`KeyService`). It must keep the contract that `tests/engine/key_service_contract.py` checks; a provider
of one's own runs the same checks. `SoftwareKeyService` is one that works, whose keys lie in a file.
"""

from __future__ import annotations

import json
import os
import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from engine.errors import KeyringLocked, SetupError
from engine.wrapping import KEY_BYTES, NONCE_BYTES, PARAMETERS_BYTES_MAX, Random, exactly

SCHEME: Final = 2
"""Number of this scheme in a blob's header; the passphrase is 1."""
CONTEXT: Final = b"pickgate/keyring/1"
"""What the wrapping is bound to: a service that is shared with others unwraps this for nothing else."""
SERVICE_KEYS_MAX: Final = 64
_FORMAT: Final = 1
_FILE_BYTES_MAX: Final = 64 * 1024
_KEPT: Final = 4
"""Data keys kept per process; each write makes one."""
_KEY_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class KeyService(Protocol):
    """Wraps data keys under a key that it holds and does not give out. Thread-safe; may wait for a device or a network.

    Both members raise KeyringLocked when the service can't be had now (retrying makes sense), and SetupError for what will not
    mend by itself: an unknown key, a wrapped key that was changed, a wrong context.
    """

    def wrap(self, data_key: bytes, context: bytes) -> bytes:
        """Wrap 32 bytes, bound to `context`, under the service's present key; at most PARAMETERS_BYTES_MAX bytes come back.

        What comes back names the key, so that it opens after the service's key was rotated, and is another one each time.
        """

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """The 32 bytes that `wrap` was given with the same context."""

    @property
    def name(self) -> str:
        """What it is, for messages; no secret is in it."""


class ServiceUnlock:
    """An unlock provider (engine.wrapping.Unlock) over a key service; thread-safe."""

    def __init__(self, service: KeyService) -> None:
        self._service = service
        self._data_keys: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = Lock()

    @property
    def scheme(self) -> int:
        """2: a data key wrapped by a key service."""
        return SCHEME

    def new_parameters(self, random: Random) -> bytes:
        """A fresh data key, wrapped. Raises what the service raises."""
        data_key = exactly(random, KEY_BYTES)
        wrapped = self._service.wrap(data_key, CONTEXT)
        if not 1 <= len(wrapped) <= PARAMETERS_BYTES_MAX:
            raise SetupError(
                f"the key service {self._service.name} gave a wrapped key of {len(wrapped)} bytes; expected 1 to "
                f"{PARAMETERS_BYTES_MAX}"
            )
        self._keep(wrapped, data_key)
        return wrapped

    def derive(self, parameters: bytes) -> bytes:
        """The data key of a blob. Raises what the service raises, SetupError if that is no data key."""
        with self._lock:
            known = self._data_keys.get(parameters)
        if known is None:
            known = self._service.unwrap(parameters, CONTEXT)
            if len(known) != KEY_BYTES:
                raise SetupError(
                    f"the key service {self._service.name} gave a key of {len(known)} bytes, expected {KEY_BYTES}"
                )
            self._keep(parameters, known)
        return known

    def _keep(self, parameters: bytes, data_key: bytes) -> None:
        with self._lock:
            self._data_keys[parameters] = data_key
            if len(self._data_keys) > _KEPT:
                self._data_keys.popitem(last=False)

    def __repr__(self) -> str:
        return f"ServiceUnlock({self._service.name})"


# --- a service whose keys lie in a file -------------------------------------------------------------------------------
class SoftwareKeyService:
    """A key service for those who have no device: its keys lie in a file, readable by the service's user alone.

    Keep the file apart from the store and its backups: whoever has both has the keys. Wrapped form: length of the key id (1),
    key id, nonce (12), AES-256-GCM of the data key (48) with key id and context authenticated. The file is JSON: format, active,
    and keys by id in base64.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: Mapping[str, bytes] = {}
        self._active = ""
        self._lock = Lock()
        self._read()

    @property
    def name(self) -> str:
        """The file's path."""
        return f"software:{self._path}"

    @classmethod
    def create(cls, path: Path, random: Random = os.urandom) -> SoftwareKeyService:
        """Make a file with a first key, mode 0600. Raises SetupError when it is there already or can't be written."""
        _write(path, {"k1": exactly(random, KEY_BYTES)}, "k1", new=True)
        return cls(path)

    def rotate(self, random: Random = os.urandom) -> str:
        """Make a new key the one that wraps; gives its id. Those before it still unwrap. Raises SetupError."""
        with self._lock:
            self._read()
            if len(self._keys) >= SERVICE_KEYS_MAX:
                raise SetupError(
                    f"{self._path} has {len(self._keys)} keys already: rewrap the keyring and make a new file"
                )
            key_id = f"k{len(self._keys) + 1}"
            _write(self._path, {**self._keys, key_id: exactly(random, KEY_BYTES)}, key_id, new=False)
            self._read()
        return key_id

    def wrap(self, data_key: bytes, context: bytes) -> bytes:
        """See KeyService."""
        with self._lock:
            # Somebody may have rotated it meanwhile.
            self._read()
            key_id, key = self._active.encode(), self._keys[self._active]
        head = bytes([len(key_id)]) + key_id
        nonce = os.urandom(NONCE_BYTES)
        return head + nonce + AESGCM(key).encrypt(nonce, data_key, head + context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """See KeyService."""
        head = wrapped[: 1 + wrapped[0]] if wrapped else b""
        key_id = head[1:].decode("ascii", "replace")
        with self._lock:
            if key_id not in self._keys:
                self._read()
            key = self._keys.get(key_id)
        if key is None or len(wrapped) <= len(head) + NONCE_BYTES:
            raise SetupError(
                f"the stored keyring was wrapped by a key that {self._path} does not have; name the file that it was "
                "made with, or restore it from a backup"
            )
        nonce, sealed = wrapped[len(head) :][:NONCE_BYTES], wrapped[len(head) + NONCE_BYTES :]
        try:
            return AESGCM(key).decrypt(nonce, sealed, head + context)
        except InvalidTag:
            raise SetupError(
                f"the stored keyring's data key does not open with {self._path}: it was changed, or wrapped by another "
                "file's key of the same name; name the file that it was made with"
            ) from None

    def _read(self) -> None:
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                content = file.read(_FILE_BYTES_MAX + 1)
        except OSError as error:
            raise KeyringLocked(
                f"the key service's file {self._path} can't be read ({error.strerror}); make one with `pickgate keys "
                "service create`, or name the one that the keyring was made with",
                field="key_service",
            ) from None
        if status.st_mode & 0o077:
            raise SetupError(
                f"the key service's file {self._path} is open to others (mode {status.st_mode & 0o7777:04o}): close it with "
                f"chmod 600 {self._path}",
                field="key_service",
            )
        self._keys, self._active = _parsed(content, self._path)

    def __repr__(self) -> str:
        return f"SoftwareKeyService({str(self._path)!r}, {len(self._keys)} keys)"


def _parsed(content: bytes, path: Path) -> tuple[Mapping[str, bytes], str]:
    """Keys and the active one's id. No error carries content, nor its cause."""
    found: object = None
    try:
        if len(content) <= _FILE_BYTES_MAX:
            found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict) and set(found) == {"format", "active", "keys"} and found["format"] == _FORMAT:
        keys, active = found["keys"], found["active"]
        if (
            isinstance(keys, dict)
            and isinstance(active, str)
            and active in keys
            and len(keys) <= SERVICE_KEYS_MAX
        ):
            decoded = {key_id: _key(value) for key_id, value in keys.items() if _KEY_ID.fullmatch(key_id)}
            if len(decoded) == len(keys) and all(len(key) == KEY_BYTES for key in decoded.values()):
                return decoded, active
    raise SetupError(
        f"{path} is no file of a key service, or damaged; restore it from a backup", field="key_service"
    )


def _key(value: object) -> bytes:
    try:
        return b64decode(value, validate=True) if isinstance(value, str) else b""
    except (Base64Error, ValueError):
        return b""


def _write(path: Path, keys: Mapping[str, bytes], active: str, *, new: bool) -> None:
    """Whole or not at all, and on disk before anything is wrapped with it."""
    document = {
        "format": _FORMAT,
        "active": active,
        "keys": {key_id: b64encode(key).decode() for key_id, key in keys.items()},
    }
    made = path if new else path.with_name(path.name + ".new")
    try:
        if not new:
            made.unlink(missing_ok=True)
        fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            json.dump(document, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        if not new:
            made.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise SetupError(
            f"the key service's file {path} can't be written: {error.strerror}", field="key_service"
        ) from None
