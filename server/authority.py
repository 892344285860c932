"""A certificate authority: makes itself, signs certificates of servers and of terminals. ECDSA on P-256, X.509 (RFC 5280).

A terminal's certificate carries who it is as a SPIFFE ID, the one URI among its names (SPIFFE X.509-SVID, section 2):
spiffe://<trust domain>/mall/<mall>/store/<store>/terminal/<terminal>, in decimal.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from engine import limits
from engine.errors import InvalidInput, SetupError
from server import bounds

CA_LIFE: Final = timedelta(days=3650)
BACKDATED: Final = timedelta(minutes=5)
"""A terminal's clock may be behind: a certificate is good from a little before it was made."""

_ID: Final = re.compile(
    r"spiffe://([a-z0-9._-]{1,255})/mall/([0-9]{1,10})/store/([0-9]{1,10})/terminal/([0-9]{1,10})"
)


class TerminalId(NamedTuple):
    """Which terminal: its mall, its store, its number."""

    mall_id: int
    store_id: int
    terminal_id: int

    def uri(self, trust_domain: str) -> str:
        """Its SPIFFE ID."""
        return (
            f"spiffe://{trust_domain}/mall/{self.mall_id}/store/{self.store_id}/terminal/{self.terminal_id}"
        )

    @classmethod
    def parse(cls, uri: str, trust_domain: str) -> Self | None:
        """Read a SPIFFE ID; None for one of another trust domain, of another form, or out of range."""
        match = _ID.fullmatch(uri)
        if match is None or match[1] != trust_domain:
            return None
        found = cls(*map(int, match.groups()[1:]))
        return (
            found
            if all(1 <= part <= limits.ID_MAX for part in found) and found.uri(trust_domain) == uri
            else None
        )


class Pair(NamedTuple):
    """A certificate and its private key, both in PEM."""

    certificate: bytes
    key: bytes


class Authority:
    """A CA that signs."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self._key = key

    @classmethod
    def make(cls, name: str, *, now: datetime | None = None) -> Self:
        """Make a new one, its certificate signed by itself."""
        now = now or datetime.now(UTC)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        public = key.public_key()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(now + CA_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(key, SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def read(cls, certificate: Path, key: Path) -> Self:
        """Read one from its files, in PEM. Raises SetupError."""
        try:
            found = x509.load_pem_x509_certificate(certificate.read_bytes())
            secret = load_pem_private_key(key.read_bytes(), None)
        except OSError as error:
            raise SetupError(f"{error.filename} can't be read: {error.strerror}") from None
        except (ValueError, TypeError):
            raise SetupError(
                f"{certificate} and {key} are not a certificate and its private key, in PEM"
            ) from None
        if not isinstance(secret, ec.EllipticCurvePrivateKey) or secret.public_key() != found.public_key():
            raise SetupError(
                f"the key in {key} is not the one, on an elliptic curve, of the certificate in {certificate}"
            )
        return cls(found, secret)

    @property
    def pem(self) -> bytes:
        """Its certificate."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """Its private key."""
        return _key_pem(self._key)

    def server(self, names: Sequence[str], *, life: timedelta, now: datetime | None = None) -> Pair:
        """A new key with a certificate for a server of these host names and addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        found = [_host(name) for name in names]
        return Pair(
            self._sign(key.public_key(), names[0], found, ExtendedKeyUsageOID.SERVER_AUTH, life, now),
            _key_pem(key),
        )

    def terminal(
        self, terminal: TerminalId, trust_domain: str, *, life: timedelta, now: datetime | None = None
    ) -> Pair:
        """A new key with a certificate for a terminal."""
        key = ec.generate_private_key(ec.SECP256R1())
        return Pair(
            self.sign_terminal(key.public_key(), terminal, trust_domain, life=life, now=now), _key_pem(key)
        )

    def sign_terminal(
        self,
        public: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey,
        terminal: TerminalId,
        trust_domain: str,
        *,
        life: timedelta,
        now: datetime | None = None,
    ) -> bytes:
        """A certificate, in PEM, for a terminal's own key."""
        names = [x509.UniformResourceIdentifier(terminal.uri(trust_domain))]
        subject = f"terminal {terminal.mall_id}-{terminal.store_id}-{terminal.terminal_id}"
        return self._sign(public, subject, names, ExtendedKeyUsageOID.CLIENT_AUTH, life, now)

    def _sign(
        self,
        public: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey,
        subject: str,
        names: Sequence[x509.GeneralName],
        purpose: x509.ObjectIdentifier,
        life: timedelta,
        now: datetime | None,
    ) -> bytes:
        now = now or datetime.now(UTC)
        # Nothing it signs outlives it.
        ends = min(now + life, self.certificate.not_valid_after_utc)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject[:64])]))
            .issuer_name(self.certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, SHA256())
        )
        return certificate.public_bytes(Encoding.PEM)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name.encode("idna").decode("ascii"))
    except (ValueError, UnicodeError):
        raise InvalidInput(f"{name!r} is neither a host name nor an address", field="host") from None


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


# --- requests of terminals ------------------------------------------------------------------------------------------------
class Request(NamedTuple):
    """A terminal's request for a certificate: a key, and the proof that whoever asks has it."""

    pem: bytes
    key_pem: bytes


def make_request() -> Request:
    """Make a new key, and a request (PKCS #10, RFC 2986) for a certificate for it. Who it is for, the CA says."""
    key = ec.generate_private_key(ec.SECP256R1())
    return Request(_request(key), _key_pem(key))


def request_for(path: Path) -> bytes:
    """A request for a key that is there already, in PEM. Raises SetupError."""
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise SetupError(f"{path} can't be read: {error.strerror}") from None
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SetupError(f"{path} holds no private key on an elliptic curve, in PEM without a passphrase")
    return _request(key)


def _request(key: ec.EllipticCurvePrivateKey) -> bytes:
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, SHA256())
    return request.public_bytes(Encoding.PEM)


def requested_key(pem: str) -> ec.EllipticCurvePublicKey:
    """The key of a request, which must be signed by it. Whatever else the request says is not looked at. Raises InvalidInput."""
    if len(pem) > bounds.CSR_CHARS_MAX:
        raise InvalidInput(
            f"csr_pem has {len(pem)} characters; expected at most {bounds.CSR_CHARS_MAX}", field="csr_pem"
        )
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        public, signed = request.public_key(), request.is_signature_valid
    except (ValueError, UnicodeError, InvalidSignature, TypeError):
        raise InvalidInput(
            "csr_pem is no request for a certificate; expected PKCS #10 in PEM", field="csr_pem"
        ) from None
    except Exception:
        # An algorithm that the library does not know has an exception of its own.
        raise InvalidInput(
            "csr_pem has a key of a kind that is not taken; expected ECDSA on P-256", field="csr_pem"
        ) from None
    if not signed:
        raise InvalidInput("csr_pem is not signed by its own key", field="csr_pem")
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(
        public.curve, ec.SECP256R1 | ec.SECP384R1
    ):
        raise InvalidInput(
            "csr_pem has a key that is not taken; expected ECDSA on P-256 or P-384", field="csr_pem"
        )
    return public


# --- files ------------------------------------------------------------------------------------------------------------------
def write_new(path: Path, content: bytes, *, secret: bool = False) -> None:
    """Write a new file, closed to others if it is secret. Raises SetupError, also when it is there already."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600 if secret else 0o644)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
    except FileExistsError:
        raise SetupError(
            f"{path} is there already, and nothing is overwritten: remove it, or choose another folder"
        ) from None
    except OSError as error:
        raise SetupError(f"{path} can't be written: {error.strerror}") from None
