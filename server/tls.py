"""TLS of the listeners: version 1.3 only, certificates of terminals asked for, files read again when they change.

gRPC's Python API has no switch for the version of TLS. What it has is the list of cipher suites up to TLS 1.2 (those of TLS 1.3 are
BoringSSL's own and not in it). `server/__init__.py` sets that list to one suite for RSA certificates before gRPC is loaded, and `read`
takes ECDSA certificates only: so no suite of TLS 1.2 fits, and an offer of it is refused. `check_version` makes such an offer to each
listener when it has started, and refuses to serve if it is taken.

The files are looked at each second, and taken when they are whole: a key that belongs to its certificate, a bundle that can be read.
Until then the last good set is kept, and one error line in the log says so. A connection keeps the certificate that it began with.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple, Self

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from engine.errors import SetupError
from server import bounds

_log = logging.getLogger(__name__)

_CURVES: Final = (ec.SECP256R1, ec.SECP384R1)
"""What BoringSSL takes for a server's certificate, and every client knows."""


class Files(NamedTuple):
    """Where the certificates are, all in PEM.

    certificate: the server's own, the certificates that lead to its CA behind it.
    key: its private key, without a passphrase.
    roots: the CAs whose certificates terminals may show; None when no listener asks for any.
    """

    certificate: Path
    key: Path
    roots: Path | None = None


class Material(NamedTuple):
    """One whole set of files, as read."""

    chain: bytes
    key: bytes
    roots: bytes | None
    expires_at: datetime
    """When the server's certificate, or one that leads to its CA, ends."""


def read(files: Files, *, now: datetime | None = None) -> Material:
    """Read a set of files and make sure that it is whole. Raises SetupError, which names the file and what is wrong."""
    now = now or datetime.now(UTC)
    chain_pem, key_pem = _content(files.certificate), _content(files.key)
    chain = _certificates(files.certificate, chain_pem)
    leaf = chain[0]
    public = leaf.public_key()
    if not (isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, _CURVES)):
        raise SetupError(
            f"the certificate in {files.certificate} has no ECDSA key on P-256 or P-384: with any other, versions before"
            " TLS 1.3 could not be kept out; have one issued for such a key"
        )
    try:
        key = load_pem_private_key(key_pem, None)
    except (ValueError, TypeError):
        # Not the library's own text: it may repeat what it read.
        raise SetupError(f"{files.key} holds no private key in PEM without a passphrase") from None
    if _public_bytes(key.public_key()) != _public_bytes(public):
        raise SetupError(
            f"the key in {files.key} is not the one of the certificate in {files.certificate}: replace both together"
        )
    for one, issuer in itertools.pairwise(chain):
        try:
            one.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            raise SetupError(
                f"{files.certificate} is no chain: {_name(one)} is not issued by {_name(issuer)}"
            ) from None
    for one in chain:
        if not one.not_valid_before_utc <= now <= one.not_valid_after_utc:
            raise SetupError(
                f"a certificate in {files.certificate}, {_name(one)}, is good from {one.not_valid_before_utc:%Y-%m-%d %H:%M}"
                f" to {one.not_valid_after_utc:%Y-%m-%d %H:%M} UTC only, and it is {now:%Y-%m-%d %H:%M}"
            )
    roots_pem = None
    if files.roots is not None:
        roots_pem = _content(files.roots)
        for root in _certificates(files.roots, roots_pem):
            _check_root(files.roots, root)
    return Material(chain_pem, key_pem, roots_pem, min(one.not_valid_after_utc for one in chain))


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(bounds.CERTIFICATES_BYTES_MAX + 1)
    except OSError as error:
        raise SetupError(f"{path} can't be read: {error.strerror}") from None
    if len(content) > bounds.CERTIFICATES_BYTES_MAX:
        raise SetupError(f"{path} is longer than {bounds.CERTIFICATES_BYTES_MAX} bytes")
    return content


def _certificates(path: Path, content: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        raise SetupError(f"{path} holds no certificate in PEM, or a damaged one") from None


def _check_root(path: Path, root: x509.Certificate) -> None:
    try:
        constraints = root.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, ValueError):
        constraints = x509.BasicConstraints(ca=False, path_length=None)
    if not constraints.ca:
        raise SetupError(
            f"{_name(root)} in {path} is not the certificate of a CA: expected CAs whose certificates terminals may show"
        )


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string() or f"number {certificate.serial_number:x}"


def _public_bytes(key: object) -> bytes:
    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return encoded


_Look = tuple[tuple[int, int, int] | None, ...]


class Certificates:
    """The set of files that is in force. Use it as a context manager, or call `start` and `stop`.

    Raises SetupError when it is made and the files are not in order; later they are only logged.

    Args:
        files: where they are.
        look_s: how often they are looked at.
    """

    def __init__(self, files: Files, *, look_s: float = bounds.CERTIFICATES_LOOK_S) -> None:
        self.files = files
        self._look_s = look_s
        # Looked at before they are read: what changes meanwhile is seen as changed.
        self._looked = self._look()
        self._material = read(files)
        self._revision = 1
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pickgate-certificates", daemon=True)
        self._told_expiry = False
        self._taken: Callable[[], None] = lambda: None
        self._tell_expiry()

    def when_taken(self, then: Callable[[], None]) -> None:
        """Have `then` called each time that a new set is taken, on the looking thread."""
        self._taken = then

    @property
    def revision(self) -> int:
        """How many sets have been taken."""
        return self._revision

    @property
    def material(self) -> Material:
        """The set in force."""
        return self._material

    def credentials(self, *, ask_clients: bool) -> grpc.ServerCredentials:
        """Credentials of one listener, which follow the files. ask_clients: who has no certificate of the roots is refused."""
        given = self._revision

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            """Called by gRPC at the beginning of each handshake; None: as before."""
            nonlocal given
            if given == self._revision:
                return None
            given, material = self._revision, self._material
            return _configuration(material)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._material),
            fetch,  # type: ignore[arg-type]  # None is what the published types leave out
            require_client_authentication=ask_clients,
        )

    def start(self) -> Self:
        """Begin to look for changes."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the looking. Stopping twice, or without a start, changes nothing."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    # --- looking --------------------------------------------------------------------------------------------------
    def _watch(self) -> None:
        while not self._stopped.wait(self._look_s):
            try:
                self.refresh()
            except Exception:
                _log.exception("looking for new certificates failed")

    def refresh(self) -> None:
        """Take up the files if they have changed; keep the last good set, and say so once, if they are not in order."""
        looked = self._look()
        if looked == self._looked:
            self._tell_expiry()
            return
        # Files are replaced one after the other: what does not fit is looked at once more before it is called wrong.
        self._looked = looked
        try:
            material = read(self.files)
        except SetupError as error:
            if not self._stopped.wait(bounds.CERTIFICATES_SETTLE_S) and self._look() != looked:
                self._looked = ()
                return
            _log.error(
                "NEW CERTIFICATES REFUSED, the last good set stays in force until %s UTC: %s",
                f"{self._material.expires_at:%Y-%m-%d %H:%M}",
                error.message,
            )
            return
        self._material = material
        self._revision += 1
        self._told_expiry = False
        self._taken()
        _log.warning(
            "new certificates are in force, good until %s UTC", f"{material.expires_at:%Y-%m-%d %H:%M}"
        )
        self._tell_expiry()

    def _look(self) -> _Look:
        """What tells one content of the files from another: inode, size, and time of change."""
        found: list[tuple[int, int, int] | None] = []
        for path in self.files:
            seen = None
            if path is not None:
                with contextlib.suppress(OSError):
                    status = os.stat(path)
                    seen = status.st_ino, status.st_size, status.st_mtime_ns
            found.append(seen)
        return tuple(found)

    def _tell_expiry(self) -> None:
        if self._told_expiry:
            return
        left_s = (self._material.expires_at - datetime.now(UTC)).total_seconds()
        if left_s < bounds.CERTIFICATE_WARNING_S:
            self._told_expiry = True
            _log.warning(
                "the server's certificate ends at %s UTC: replace %s and %s, no restart is needed",
                f"{self._material.expires_at:%Y-%m-%d %H:%M}",
                self.files.certificate,
                self.files.key,
            )


def _configuration(material: Material) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(material.key, material.chain)], root_certificates=material.roots
    )


# --- proof --------------------------------------------------------------------------------------------------------------
def check_version(
    address: str, *, handshake: Callable[[str, ssl.TLSVersion], str | None] | None = None
) -> None:
    """Offer a listener TLS 1.2 alone, then TLS 1.3. Raises SetupError if it takes the one, or does not take the other.

    address: host:port, as it listens.
    """
    offer = handshake or offered
    old = offer(address, ssl.TLSVersion.TLSv1_2)
    if old is not None:
        raise SetupError(
            f"the listener on {address} takes {old}, and only TLS 1.3 may be taken: gRPC was loaded before `server`,"
            " or this grpcio does not heed GRPC_SSL_CIPHER_SUITES; start it by `pickgate serve`, with the locked grpcio",
            field="listen",
        )
    if offer(address, ssl.TLSVersion.TLSv1_3) is None:
        raise SetupError(
            f"the listener on {address} does not take TLS 1.3: see the log above", field="listen"
        )


def offered(address: str, version: ssl.TLSVersion) -> str | None:
    """The version that a listener takes when it is offered just one; None when it takes none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    # It is asked for a version, and told nothing.
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        context.minimum_version = context.maximum_version = version
    except ValueError:  # this machine's own policy has no such version
        return None
    host, _, port = address.rpartition(":")
    try:
        with (
            socket.create_connection((_reachable(host), int(port)), bounds.HANDSHAKE_S_MAX) as plain,
            context.wrap_socket(plain) as wrapped,
        ):
            return wrapped.version()
    except (ssl.SSLError, ConnectionError):
        return None
    except OSError as error:
        raise SetupError(
            f"the listener on {address} can't be reached from here: {error}", field="listen"
        ) from None


def _reachable(host: str) -> str:
    """An address of this machine that a listener's host covers."""
    host = host.strip("[]")
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def client_credentials(
    roots: Path | None, certificate: Path | None = None, key: Path | None = None
) -> grpc.ChannelCredentials:
    """Credentials of a client. roots: the CAs of the server, None for those of the system. Raises SetupError."""
    if (certificate is None) != (key is None):
        raise SetupError("a client's certificate and its key are given together, or neither")
    parts: Sequence[bytes | None] = [
        None if path is None else _content(path) for path in (roots, key, certificate)
    ]
    return grpc.ssl_channel_credentials(*parts)
