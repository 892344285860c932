"""Certificates for terminals, signed by the deployment's own CA: at enrolment, and before the present one ends."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from engine.errors import ConfigError, SetupError
from engine.terminals import Issued, digest_of
from server.authority import Authority, TerminalId, requested_key


class Signed(NamedTuple):
    """A certificate, and what the terminal's entry keeps of it."""

    certificate_pem: str
    ca_pem: str
    issued: Issued


class Issuing:
    """Signs requests of terminals. The CA's files are read at each signing: it is rare, and they may be replaced.

    Raises SetupError when it is made and they are not in order.

    Args:
        certificate, key: of the CA, in PEM.
        trust_domain: of the terminals' SPIFFE IDs.
        days: how long a certificate is good.
        now: the clock of the certificates.
    """

    def __init__(
        self,
        certificate: Path,
        key: Path,
        *,
        trust_domain: str,
        days: int,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._files = certificate, key
        self._trust_domain = trust_domain
        self._life = timedelta(days=days)
        self._now = now
        self._authority()

    def _authority(self) -> Authority:
        authority = Authority.read(*self._files)
        if authority.certificate.not_valid_after_utc <= self._now():
            raise SetupError(
                f"the CA in {self._files[0]} has ended: have terminals' certificates signed by another"
            )
        return authority

    def check_trusted(self, roots: Path) -> None:
        """See that what it signs will be let in. Raises ConfigError when its CA is not among the roots."""
        try:
            trusted = x509.load_pem_x509_certificates(roots.read_bytes())
        except (OSError, ValueError):
            return  # reading the roots themselves says what is wrong
        if self._authority().certificate not in trusted:
            raise ConfigError(
                f"the CA in {self._files[0]} is not among those of tls_ca_file, {roots}: no terminal that it enrols would be let"
                " in; add it there",
                field="issuing_cert_file",
            )

    def sign(self, csr_pem: str, terminal: TerminalId) -> Signed:
        """Sign a request. Raises InvalidInput for one that is not in order, SetupError."""
        public = requested_key(csr_pem)
        authority = self._authority()
        pem = authority.sign_terminal(public, terminal, self._trust_domain, life=self._life, now=self._now())
        certificate = x509.load_pem_x509_certificate(pem)
        key = digest_of(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
        issued = Issued(
            key, certificate.fingerprint(SHA256()).hex(), int(certificate.not_valid_after_utc.timestamp())
        )
        return Signed(pem.decode(), authority.pem.decode(), issued)
