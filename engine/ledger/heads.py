"""Signed heads: what the ledger said it had, kept outside of the database.

A statement names the last row of every partition, with its link. A link covers every row before it, so whoever holds one signed
statement can tell whether anything up to there was changed or cut off since. Statements are signed with an Ed25519 key of their own
(RFC 8032) and appended to a file for each day (UTC) in a folder that should lie on another disk than the database, or be copied
away.

One line of a file is JSON: `statement`, the signed text; `signature`, Ed25519 over "pickgate heads 1" ‖ 0 ‖ statement, in hex; `key`, which
key that was. The statement is JSON too: `deployment`, `chain`, `at_ms`, and `heads`, an object from partition to [event, rows, link in hex].
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from engine.errors import SetupError
from engine.ledger import database
from engine.ledger.ledger import Head
from engine.state.streams import Place

EVERY_S: Final = 60.0
"""Between two statements, while something happens: what a cut-off tail can hide at most."""
PUBLIC_KEY_NAME: Final = "public.pem"
NEWEST_BYTES_MAX: Final = 4 << 20
"""Lines that one look at the newest statements reads (SignedHeads): with 16 partitions more than two thousand, some 0.1 s."""
_TAIL_BYTES: Final = 16_384
"""What is read of a day's end at first: a line of 16 partitions, and one that was torn, find room in it."""

_LABEL: Final = "pickgate heads 1"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Statement:
    """One signed statement, and where it was read."""

    deployment_id: str
    at_ms: int
    heads: Mapping[int, Head]
    source: str
    """File and line."""


@dataclass(frozen=True, slots=True)
class Unsound:
    """A line that is no statement of this key."""

    source: str
    why: str


def key_name(key: Ed25519PublicKey) -> str:
    """What a key is called: the first eight bytes, in hex, of the SHA-256 of its raw public half."""
    return sha256(key.public_bytes_raw()).hexdigest()[:16]


def sign_text(key: Ed25519PrivateKey, label: str, text: str) -> bytes:
    """Sign a statement of a kind: Ed25519 over label ‖ 0 ‖ text, so that none can stand for one of another kind."""
    return key.sign(label.encode() + b"\0" + text.encode())


def is_signed(key: Ed25519PublicKey, label: str, text: str | bytes, signature: bytes | str) -> bool:
    """Whether a statement of a kind is signed by a key; both as a column has them, whatever somebody has put there."""
    try:
        key.verify(database.raw(signature), label.encode() + b"\0" + database.raw(text))
    except InvalidSignature:
        return False
    return True


def load_key(path: Path) -> Ed25519PrivateKey:
    """Read the signing key, making it when there is none (mode 0600). Raises SetupError."""
    try:
        if not path.exists():
            _write_new(path, _private_pem(Ed25519PrivateKey.generate()))
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise SetupError(
            f"the ledger's key {path} can't be used: {error.strerror}", field="ledger_key_file"
        ) from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise SetupError(
            f"the ledger's key {path} is no private key in PEM without a passphrase", field="ledger_key_file"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SetupError(f"the ledger's key {path} is no Ed25519 key", field="ledger_key_file")
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Read the key that statements are verified with. Raises SetupError."""
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise SetupError(
            f"the public key of the heads {path} can't be read: {error.strerror}", field="ledger_heads_dir"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise SetupError(f"{path} is no public key in PEM", field="ledger_heads_dir") from None
    if not isinstance(key, Ed25519PublicKey):
        raise SetupError(f"{path} is no Ed25519 key", field="ledger_heads_dir")
    return key


def _private_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write_new(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file that is there whole or not at all, unless another process was faster."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(beside, path)
    finally:
        beside.unlink()


class Signer:
    """Signs the heads of one ledger and appends them to the files of a folder."""

    def __init__(self, key: Ed25519PrivateKey, folder: Path, *, deployment_id: str, algorithm: str) -> None:
        """Raises SetupError when the folder can't be written, or holds the statements of another key."""
        self._key = key
        self._name = key_name(key.public_key())
        self._folder = folder
        self._about = {"deployment": deployment_id, "chain": algorithm}
        self._said: Mapping[int, Head] = {}
        self._failing = False
        public = folder / PUBLIC_KEY_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not public.exists():
                pem = key.public_key().public_bytes(
                    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
                )
                _write_new(public, pem, 0o644)
        except OSError as error:
            raise SetupError(
                f"the folder of the ledger's heads {folder} can't be written: {error.strerror}",
                field="ledger_heads_dir",
            ) from None
        there = key_name(load_public_key(public))
        if there != self._name:
            raise SetupError(
                f"{public} is the key {there}, the ledger's key is {self._name}: name the right ledger_key_file, or begin a new"
                " folder of heads and keep the old one",
                field="ledger_heads_dir",
            )

    def sign(self, heads: Mapping[int, Head], at_ms: int) -> bool:
        """Append a statement, unless nothing has happened since the last; gives whether it was written to the disk.

        A folder that can't be written is told in the log and tried again next time: the events themselves matter more.
        """
        heads = {number: head for number, head in heads.items() if head.rows}
        if heads == self._said:
            return False
        line = self._line(heads, at_ms)
        day = datetime.fromtimestamp(at_ms / 1000, UTC).date().isoformat()
        try:
            _append(self._folder / f"{day}.jsonl", line)
        except OSError as error:
            if not self._failing:
                _log.error("the signed heads can't be written to %s: %s", self._folder, error.strerror)
            self._failing = True
            return False
        self._failing = False
        self._said = heads
        return True

    def _line(self, heads: Mapping[int, Head], at_ms: int) -> bytes:
        told = {
            str(number): [str(head.place), head.rows, head.link.hex()]
            for number, head in sorted(heads.items())
        }
        statement = json.dumps({**self._about, "at_ms": at_ms, "heads": told}, separators=(",", ":"))
        signature = sign_text(self._key, _LABEL, statement)
        line = {"key": self._name, "signature": signature.hex(), "statement": statement}
        return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def _append(path: Path, line: bytes) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            # A power cut tore the last line: what is left of it stands alone, and is passed over by readers.
            line = b"\n" + line
        os.write(fd, line)
        os.fsync(fd)
    finally:
        os.close(fd)


def read(folder: Path, key: Ed25519PublicKey) -> Iterator[Statement | Unsound]:
    """The statements that matter: the last of each day, and all of the newest day.

    A statement covers all before it, so an older one of the same day says nothing more. Lines that a power cut tore (that are not
    JSON) are passed over; one that is whole and not signed by `key` is Unsound. Raises SetupError when a file can't be read.
    """
    files = sorted(folder.glob("*.jsonl"))
    for path in files:
        lines = [
            (f"{path.name}:{number}", fields)
            for number, line in enumerate(_content(path).split(b"\n"), start=1)
            if (fields := _fields(line)) is not None
        ]
        for source, fields in lines if path == files[-1] else lines[-1:]:
            yield _statement(source, fields, key)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SetupError(
            f"the signed heads {path} can't be read: {error.strerror}", field="ledger_heads_dir"
        ) from None


@dataclass(frozen=True, slots=True)
class SignedHeads:
    """Signed heads in a folder, and the key that they must be signed by: for those who have time for the newest only."""

    folder: Path
    key: Ed25519PublicKey

    @classmethod
    def open(cls, folder: Path) -> Self | None:
        """Those of a folder, with the key that lies beside them; None when there is none. Raises SetupError."""
        path = folder / PUBLIC_KEY_NAME
        return cls(folder, load_public_key(path)) if path.exists() else None

    def newest(
        self, partition: int, wanted: Callable[[Place], bool], *, bytes_max: int = NEWEST_BYTES_MAX
    ) -> Iterator[Statement | Unsound]:
        """Of the statements that `read` gives, the newest first, those whose head of a partition is wanted.

        Only of those the signature is looked at. After bytes_max bytes of lines it ends: what is older says nothing more, since a link
        covers every row before it. Raises SetupError when a file can't be read.
        """
        left = bytes_max
        files = sorted(self.folder.glob("*.jsonl"), reverse=True)
        try:
            for path in files:
                for source, line, fields in _last_lines(path, left if path == files[0] else 0):
                    if left <= 0:
                        return
                    left -= len(line)
                    heads = _heads(fields)
                    if heads is None or (partition in heads and wanted(heads[partition].place)):
                        yield _statement(source, fields, self.key)
                    if path != files[0]:
                        break
        except OSError as error:
            raise SetupError(
                f"the signed heads in {self.folder} can't be read: {error.strerror}", field="ledger_heads_dir"
            ) from None


def _last_lines(path: Path, size: int) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """The whole lines within the last `size` bytes of a file, the last first, with what they are called; at least the last whole one."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        size = max(size, _TAIL_BYTES)
        found = False
        while not found:
            begin = max(0, end - size)
            file.seek(begin)
            lines = file.read(end - begin).rstrip(b"\n").split(b"\n")
            for number, line in enumerate(reversed(lines), start=1):
                # A line whose beginning was not read is no JSON either.
                if (fields := _fields(line)) is not None:
                    found = True
                    yield f"{path.name}, line {number} from its end", line, fields
            if not begin:
                return
            size *= 4


def _heads(fields: Mapping[str, Any]) -> dict[int, Head] | None:
    """The heads that a line states, whoever signed it; None for one that states none."""
    try:
        return _heads_of(json.loads(fields["statement"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _heads_of(said: Mapping[str, Any]) -> dict[int, Head]:
    return {
        int(number): Head(Place(*map(int, place.split("-"))), rows, bytes.fromhex(link))
        for number, (place, rows, link) in said["heads"].items()
    }


def _fields(line: bytes) -> dict[str, Any] | None:
    try:
        fields = json.loads(line)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None


def _statement(source: str, fields: Mapping[str, Any], key: Ed25519PublicKey) -> Statement | Unsound:
    try:
        text = fields["statement"]
        if not is_signed(key, _LABEL, text, bytes.fromhex(fields["signature"])):
            return Unsound(source, f"it is not signed by the key {key_name(key)}")
        said = json.loads(text)
        return Statement(said["deployment"], said["at_ms"], _heads_of(said), source)
    except (KeyError, TypeError, ValueError, AttributeError):
        return Unsound(source, "it is not a statement of heads")
