"""The gate: who calls, and whether they may. One seam for both lanes.

    certificate, token ─ who (cached) ─ table of rights (server.roles) ─ grant ─ the request's own mall, store, terminal ─ handler

Who calls is found out once for each certificate and each token, and kept until either ends, a key or a terminal changes, or
bounds.CALLERS_KEPT others came since; then a call costs two look-ups. What a request says is held against the grant by whoever reads it
(`roles.enter`), since that is where it is read anyway.

Without certificates and issuers there is no gate: everything is open, to this machine alone.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from engine import limits
from engine.deployment import Deployment
from engine.errors import PermissionDenied, PickgateError, StaleControl, Unauthenticated
from engine.terminals import Key, Terminal
from server import bounds, roles
from server.authority import BACKDATED, TerminalId
from server.issuers import Identity, Issuers, Refused
from server.roles import ANYBODY, DENIED, Grant, Place, Role

_log = logging.getLogger(__name__)

UNKNOWN: Final = "who calls is not known: a terminal's certificate or an access token that counts is needed"
"""What a caller reads; what is wrong with theirs is not said."""
_NOBODY: Final = Grant(0, 0, 0, "")
"""For methods whose request itself proves who asks."""
_PACKAGE: Final = "/pickgate.v1."
_NEW_S: Final = BACKDATED.total_seconds() + limits.CONTROL_AGE_S_MAX + limits.CLOCK_SKEW_MS_MAX / 1000
"""A certificate that begins no longer ago than this may have been issued by another process and not be in this one's copy yet."""
_NOT_YET: Final = (
    "this process does not know of the terminal's new certificate yet: retry with the same request id"
)

Metadata: TypeAlias = Iterable[tuple[str, str | bytes]]


class Caller:
    """Somebody who is known: by certificate, by token, or both."""

    __slots__ = (
        *("epoch", "grants", "identity", "since_s", "terminal", "terminals", "thumbprint", "until_s", "used"),
        "certificate_until_s",
    )

    def __init__(self, identity: Identity, terminal: Key | None, thumbprint: str, epoch: int) -> None:
        self.identity = identity
        self.terminal = terminal
        self.since_s = self.certificate_until_s = 0.0
        """Of a terminal's certificate: when it begins and ends, unix seconds."""
        self.thumbprint = thumbprint
        self.until_s = identity.until_s
        self.epoch = epoch
        """Which keys of issuers this was found out with."""
        self.terminals: object = None
        """The terminals' entries that it was held against last."""
        self.used = True
        """Whether it has called since somebody looked (server.sightings)."""
        self.grants: dict[str, Grant | None] = {}
        """By method, one of the server's own each. No errors: those would keep alive the calls that they were raised in."""


class Gate:
    """Knows callers. For many threads at once.

    Args:
        deployment: whose terminals count.
        trust_domain: of terminals' certificates.
        issuers: of access tokens; None: there are none.
        socket_role: of whoever asks through a unix socket without a token; None: nobody.
        unix_s: the clock of certificates and tokens.
    """

    def __init__(
        self,
        deployment: Deployment,
        *,
        trust_domain: str,
        issuers: Issuers | None = None,
        socket_role: Role | None = None,
        unix_s: Callable[[], float] = time.time,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._control = deployment.control
        self._trust_domain = trust_domain
        self._issuers = issuers
        self._socket_role = socket_role
        self._unix_s = unix_s
        self._monotonic_s = monotonic_s
        self._known: OrderedDict[object, Caller] = OrderedDict()
        self._guard = threading.Lock()
        self._epoch = 0
        self.refused: Counter[str] = Counter()
        """Calls refused, by the reason that callers are not told."""
        self._told: dict[str, float] = {}

    def start(self) -> None:
        """Begin to follow the issuers' keys."""
        if self._issuers is not None:
            self._issuers.start()

    def stop(self) -> None:
        """End that."""
        if self._issuers is not None:
            self._issuers.stop()

    def forget(self) -> None:
        """Find everybody out anew: the CAs whose certificates count have changed."""
        with self._guard:
            self._epoch += 1
            self._known.clear()

    def callers(self) -> list[Caller]:
        """Those who are known at the moment."""
        with self._guard:
            return list(self._known.values())

    # --- the seam -------------------------------------------------------------------------------------------------
    def grant(
        self, method: str, certificate: bytes | None, metadata: Metadata, peer: Callable[[], str]
    ) -> Grant:
        """What the caller of "Service.Method" may do by it.

        certificate: the caller's, in PEM. metadata: of the call. peer: gives its address, as gRPC writes it. Raises
        Unauthenticated, PermissionDenied, StaleControl (also where a terminal's new certificate may not be in the copy yet).
        """
        if method in ANYBODY:
            return _NOBODY
        caller = self._caller(certificate, metadata, peer)
        caller.used = True
        if method in caller.grants:
            found = caller.grants[method]
        else:
            identity = caller.identity
            found = caller.grants[method] = roles.grant(
                method, identity.role, identity.place, identity.actor, caller.thumbprint
            )
        if found is None:
            self._count("role")
            raise PermissionDenied(DENIED)
        return found

    def of_call(self, method: str, context: Any) -> Grant:
        """As `grant`, of an ordinary handler's context (grpc.ServicerContext)."""
        pem = context.auth_context().get("x509_pem_cert")
        return self.grant(method, pem[0] if pem else None, context.invocation_metadata(), context.peer)

    def admit(self, methods: Sequence[str], *, tls: bool) -> Callable[[Any], Exception | None]:
        """As `grant`, for the hot lane (server.hotlane.Admit): methods by number. tls: callers may have certificates."""
        names = [path.removeprefix(_PACKAGE).replace("/", ".") for path in methods]

        def admit(call: Any) -> Exception | None:
            try:
                certificate = call.certificate() if tls else None
                call.grant = self.grant(names[call.method], certificate, call.metadata(), call.peer)
            except PickgateError as error:
                return error
            return None

        return admit

    # --- who ------------------------------------------------------------------------------------------------------
    def _caller(self, certificate: bytes | None, metadata: Metadata, peer: Callable[[], str]) -> Caller:
        copy = self._control.copy()
        authorization = None
        for name, value in metadata:
            if name == "authorization":
                if authorization is not None:
                    raise self._unknown("authorization")
                authorization = value if isinstance(value, str) else value.decode("latin-1")
        key: object = certificate
        if authorization is not None:
            # Not the token itself: what is kept in memory for long should open no door.
            key = (certificate, hashlib.sha256(authorization.encode("utf-8", "surrogatepass")).digest())
        caller = self._known.get(key)
        # Both only rise, so their sum tells one state from all before it.
        epoch = self._epoch if self._issuers is None else self._epoch + self._issuers.revision
        if caller is None or caller.epoch != epoch or caller.until_s < self._unix_s():
            caller = self._meet(certificate, authorization, peer, epoch)
            if key is not None:
                self._keep(key, caller)
        elif len(self._known) > bounds.CALLERS_KEPT // 2:
            with self._guard:
                if key in self._known:
                    self._known.move_to_end(key)
        if caller.terminals is not copy.terminals:
            self._check_terminal(caller, copy.terminals)
            caller.terminals = copy.terminals
        return caller

    def _keep(self, key: object, caller: Caller) -> None:
        with self._guard:
            self._known[key] = caller
            while len(self._known) > bounds.CALLERS_KEPT:
                self._known.popitem(last=False)

    def _check_terminal(self, caller: Caller, terminals: Any) -> None:
        if caller.terminal is None:
            return
        entry = terminals.get(caller.terminal)
        if entry is None or entry.admits(caller.thumbprint):
            return
        if self._is_newer(caller, entry):
            raise StaleControl(_NOT_YET)
        raise self._unknown("terminal")

    def _is_newer(self, caller: Caller, entry: Terminal) -> bool:
        """Whether a certificate may be the next one of an active terminal, of which the copy has not heard yet. Lets nobody in."""
        return (
            entry.state == "active"
            and 0 < entry.certificate_until_s < caller.certificate_until_s
            and self._unix_s() - caller.since_s < _NEW_S
        )

    def _meet(
        self, certificate: bytes | None, authorization: str | None, peer: Callable[[], str], epoch: int
    ) -> Caller:
        leaf = None if certificate is None else x509.load_pem_x509_certificate(certificate)
        thumbprint = b"" if leaf is None else leaf.fingerprint(SHA256())
        token = None if authorization is None else self._token(authorization, thumbprint)
        if leaf is not None and (terminal := self._terminal(leaf)) is not None:
            until_s = leaf.not_valid_after_utc.timestamp()
            if until_s < self._unix_s():
                raise self._unknown("certificate ended")
            identity = Identity(
                Role.TERMINAL, Place(*terminal), "terminal:{}/{}/{}".format(*terminal), until_s, ""
            )
            if token is not None:
                # Who stands at the terminal: it says whom the record names, and gives no rights that the terminal has not.
                if (
                    token.place.mall_id or terminal.mall_id,
                    token.place.store_id or terminal.store_id,
                ) != terminal[:2]:
                    raise self._unknown("token of another place")
                identity = identity._replace(actor=token.actor, until_s=min(until_s, token.until_s))
            caller = Caller(identity, terminal, thumbprint.hex(), epoch)
            caller.since_s, caller.certificate_until_s = leaf.not_valid_before_utc.timestamp(), until_s
            return caller
        if token is None:
            if self._socket_role is not None and peer().startswith("unix:"):
                token = Identity(self._socket_role, Place(), "local", float("inf"), "")
                return Caller(token, None, "", epoch)
            raise self._unknown("nothing" if leaf is None else "certificate")
        return Caller(token, None, thumbprint.hex(), epoch)

    def _terminal(self, leaf: x509.Certificate) -> TerminalId | None:
        """Which terminal a certificate is of: its one URI says so."""
        try:
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        except (x509.ExtensionNotFound, ValueError):
            return None
        return TerminalId.parse(uris[0], self._trust_domain) if len(uris) == 1 else None

    def _token(self, authorization: str, thumbprint: bytes) -> Identity:
        scheme, _, token = authorization.partition(" ")
        if self._issuers is None or scheme.lower() != "bearer":
            raise self._unknown("authorization")
        try:
            identity = self._issuers.check(token)
        except Refused as refused:
            raise self._unknown(f"token {refused.reason}") from None
        if identity.thumbprint:
            # Bound to a certificate (RFC 8705): whoever has copied it has not the key.
            shown = base64.urlsafe_b64encode(thumbprint).rstrip(b"=").decode() if thumbprint else ""
            if not hmac.compare_digest(shown, identity.thumbprint):
                raise self._unknown("token binding")
        return identity

    # --- refusals -------------------------------------------------------------------------------------------------
    def _unknown(self, reason: str) -> Unauthenticated:
        self._count(reason)
        return Unauthenticated(UNKNOWN)

    def _count(self, reason: str) -> None:
        """Count a refusal; the log tells each reason once in a while, with how many there were."""
        self.refused[reason] += 1
        now_s = self._monotonic_s()
        if now_s - self._told.get(reason, float("-inf")) >= bounds.REFUSALS_TOLD_S:
            self._told[reason] = now_s
            _log.warning("callers refused, %s: %d since the start", reason, self.refused[reason])
