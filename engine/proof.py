"""Proof tokens: a registered provider's word that it has made sure who the customer is.

A token is a JWS in compact form (RFC 7515) whose payload is a JWT claims set (RFC 7519), signed with EdDSA over Ed25519
(RFC 8037) or ES256 (RFC 7518, 3.4), at most 2 KiB. It says that something was done, how, when and for which code. It never
carries what it was done with: no picture, no template, no number of a document. So besides its own claims only short plain
values are let through, and nothing of a token is kept but provider, method, jti and time.

Header: exactly alg and kid, and typ if it is JWT. Claims:

| claim | |
|---|---|
| iss | provider_id of the registered provider |
| uid | the code's uid, 16 lower-case hex digits |
| iat | unix seconds, whole: when the customer was identified; at most 120 s ago, at most 5 s ahead |
| method | face, id_document or two_staff |
| jti | the provider's number of this proof, 8 .. 64 of A-Z a-z 0-9 . _ ~ - |
| exp, nbf | if there: whole unix seconds, honoured |
| aud | if there: must be "pickgate" |

Checks, in this order; `check` answers with the first that fails

1. length and form: three parts of canonical base64url without padding, JSON objects without a name that comes twice
2. header: alg and kid, nothing else that could steer the verification (jwk, jku, x5u, crit …)
3. claims: each of the right type, nothing of size besides
4. the provider is known and not revoked; it has a key of that kid; the key's own algorithm is alg
5. the signature
6. it is about this uid, and of the right time
7. the provider may vouch by this method, and the code's policy offers it

A token is good for one code within two minutes. That it is used once is for the state to see to: `Proof.digest` is burnt there
until `Proof.good_until_s`.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, unique
from functools import cached_property
from hashlib import blake2b
from typing import Any, ClassVar, Final, Literal, Self, get_args

from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePublicKey,
    EllipticCurvePublicNumbers,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from jwt import InvalidTokenError, PyJWS

from engine import limits
from engine.entries import Entry, check_choice, check_different, check_number_of, check_text
from engine.errors import InvalidInput
from engine.policies import ProofMethod

TOKEN_CHARS_MAX: Final = 2048
AGE_S_MAX: Final = 120
AHEAD_S_MAX: Final = 5
"""How far a provider's clock may be ahead of ours. It is not added to the age: two minutes are two minutes."""
AUDIENCE: Final = "pickgate"
STRANGE_CLAIMS_MAX: Final = 8
STRANGE_CLAIM_CHARS_MAX: Final = 64
"""A claim that we don't know may be a number, true, false, null or so short a text, under so short a name."""
NUMBER_CHARS_MAX: Final = 24
"""Digits of a 64-bit number, or of a double in full precision. A number as long as the token could carry anything."""
KEYS_MAX: Final = 8
"""Keys of one provider: the one in use, the next, and some that are being replaced."""
KID_CHARS_MAX: Final = 64
"""A JWK thumbprint (RFC 7638) has 43."""
DIGEST_BYTES: Final = 12

_ID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_JTI: Final = re.compile(r"[A-Za-z0-9._~-]{8,64}")
_UID: Final = re.compile(r"[0-9a-f]{16}")
_PART: Final = re.compile(r"[A-Za-z0-9_-]+")


@unique
class ProofRefusal(Enum):
    """Why a token proves nothing. For operations and the provider; the clerk reads PROOF_REJECTED. Slugs never change."""

    TOO_LONG = "TOO_LONG"
    MALFORMED = "MALFORMED"
    HEADER_REFUSED = "HEADER_REFUSED"
    CLAIM_MISSING = "CLAIM_MISSING"
    CLAIM_REFUSED = "CLAIM_REFUSED"
    CLAIM_TOO_LARGE = "CLAIM_TOO_LARGE"
    UNKNOWN_PROVIDER = "UNKNOWN_PROVIDER"
    PROVIDER_REVOKED = "PROVIDER_REVOKED"
    UNKNOWN_KEY = "UNKNOWN_KEY"
    WRONG_ALGORITHM = "WRONG_ALGORITHM"
    BAD_SIGNATURE = "BAD_SIGNATURE"
    WRONG_UID = "WRONG_UID"
    TOO_OLD = "TOO_OLD"
    NOT_YET = "NOT_YET"
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"
    METHOD_NOT_OFFERED = "METHOD_NOT_OFFERED"

    @property
    def slug(self) -> str:
        """Stable name, for metrics and the attempt's record."""
        return self.value


@dataclass(frozen=True, slots=True)
class Proof:
    """What is kept of a token that proves: who vouched, how, its number, and when the customer was identified."""

    provider_id: str
    method: ProofMethod
    jti: str
    issued_at_s: int

    @property
    def digest(self) -> bytes:
        """Digest (12 bytes, BLAKE2b, RFC 7693) of provider and jti: what is burnt, so that no proof is used twice."""
        text = f"{self.provider_id}\0{self.jti}".encode("ascii")
        return blake2b(text, digest_size=DIGEST_BYTES, person=b"pickgate-proof").digest()

    @property
    def good_until_s(self) -> int:
        """Last unix second in which the token can be presented."""
        return self.issued_at_s + AGE_S_MAX


# --- providers --------------------------------------------------------------------------------------------------------
_CURVE_OF_ALG: Final = {"EdDSA": "Ed25519", "ES256": "P-256"}
_COORDINATE_BYTES: Final = 32


@dataclass(frozen=True)
class ProviderKey(Entry):
    """A provider's public key, as a JWK has it (RFC 7517): alg is EdDSA (OKP, Ed25519: x) or ES256 (EC, P-256: x and y).

    x, y: base64url without padding, 32 bytes each. Raises InvalidInput, also when x and y are no point of the curve.
    """

    kid: str
    alg: Literal["EdDSA", "ES256"]
    x: str
    y: str = ""

    def __post_init__(self) -> None:
        check_text(self.kid, "kid", KID_CHARS_MAX)
        check_choice(self.alg, "alg", tuple(_CURVE_OF_ALG))
        for name in ("x", "y") if self.alg == "ES256" else ("x",):
            data = _decoded(getattr(self, name))
            if data is None or len(data) != _COORDINATE_BYTES:
                raise InvalidInput(
                    f"{name} is {getattr(self, name)!r}; expected {_COORDINATE_BYTES} bytes as base64url without padding",
                    field=name,
                )
        if self.alg == "EdDSA" and self.y:
            raise InvalidInput(f"y is {self.y!r}; expected none with EdDSA", field="y")
        try:
            _ = self.public_key
        except ValueError:
            raise InvalidInput(
                f"x and y are no point of {_CURVE_OF_ALG[self.alg]}; expected the provider's public key",
                field="x",
            ) from None

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, Any]) -> Self:
        """A key from a provider's JWK. Raises InvalidInput, for a private one too: it must not be taken in."""
        if "d" in jwk:
            raise InvalidInput(
                "d is there: this is a private key; expected the public one. Whoever has seen it can sign proofs: the"
                " provider must replace it",
                field="d",
            )
        curve = jwk.get("crv")
        alg = next((name for name, known in _CURVE_OF_ALG.items() if known == curve), None)
        if alg is None:
            raise InvalidInput(f"crv is {curve!r}; expected Ed25519 or P-256", field="crv")
        expected = {"kty": "OKP" if alg == "EdDSA" else "EC", "alg": alg, "use": "sig"}
        for name, value in expected.items():
            if jwk.get(name, None if name == "kty" else value) != value:
                raise InvalidInput(f"{name} is {jwk.get(name)!r}; expected {value} with {curve}", field=name)
        return cls(kid=jwk.get("kid", ""), alg=alg, x=jwk.get("x", ""), y=jwk.get("y", ""))  # type: ignore[arg-type]

    @cached_property
    def public_key(self) -> Ed25519PublicKey | EllipticCurvePublicKey:
        """The key to verify with."""
        x, y = _decoded(self.x) or b"", _decoded(self.y) or b""
        if self.alg == "EdDSA":
            return Ed25519PublicKey.from_public_bytes(x)
        return EllipticCurvePublicNumbers(
            int.from_bytes(x, "big"), int.from_bytes(y, "big"), SECP256R1()
        ).public_key()


@dataclass(frozen=True)
class Provider(Entry):
    """Somebody whose proof tokens count: its keys, and the methods by which it may vouch. Once revoked, none counts.

    provider_id: 1 .. 64 of a-z 0-9 . _ -, what its tokens carry as iss.
    """

    NESTED: ClassVar = {"keys": ProviderKey}

    provider_id: str
    name: str
    keys: tuple[ProviderKey, ...]
    methods: tuple[ProofMethod, ...]
    revoked: bool = False

    def __post_init__(self) -> None:
        if not _matches(_ID, self.provider_id):
            raise InvalidInput(
                f"provider_id is {self.provider_id!r}; expected 1 to 64 of a-z, 0-9, '.', '_' and '-', the first a letter or a digit",
                field="provider_id",
            )
        check_text(self.name, "name", limits.NAME_CHARS_MAX)
        check_number_of(self.keys, "keys", 1, KEYS_MAX)
        check_different([key.kid for key in self.keys], "keys")
        check_number_of(self.methods, "methods", 1, len(get_args(ProofMethod)))
        for index, method in enumerate(self.methods):
            check_choice(method, f"methods[{index}]", get_args(ProofMethod))
        check_different(self.methods, "methods")

    @property
    def field(self) -> str:
        """Its name within its kind."""
        return self.provider_id

    def key(self, kid: str) -> ProviderKey | None:
        """The key of exactly this kid: there is no trying one after the other."""
        return next((key for key in self.keys if key.kid == kid), None)


def provable(providers: Mapping[str, Provider], offered: Sequence[ProofMethod]) -> tuple[ProofMethod, ...]:
    """Of the methods that a policy offers, those by which a registered provider may vouch now; none if that is face alone.

    Face is never the only way (engine.policies.ProofMethod), whether the policy or the providers would make it so.
    """
    known = {method for one in providers.values() if not one.revoked for method in one.methods}
    methods = tuple(method for method in offered if method in known)
    return () if methods == ("face",) else methods


# --- tokens -------------------------------------------------------------------------------------------------------------
class _Refused(Exception):
    def __init__(self, reason: ProofRefusal) -> None:
        super().__init__(reason)
        self.reason = reason


_CLAIMS: Final = ("iss", "uid", "iat", "method", "jti")
_HONOURED: Final = ("exp", "nbf", "aud")
# Knows no algorithm but these two, so neither `none` nor a MAC keyed with a public key can be asked for.
_JWS: Final = PyJWS(algorithms=tuple(_CURVE_OF_ALG))


def check(
    token: str,
    providers: Mapping[str, Provider],
    *,
    uid: bytes,
    offered: Sequence[ProofMethod],
    now_ms: int,
) -> Proof | ProofRefusal:
    """What a token proves about the code `uid`, or the first reason why it doesn't.

    providers: by provider_id. offered: the methods that the code's policy offers. now_ms: unix milliseconds. Whether the proof
    was used before is not known here (module docstring).
    """
    try:
        header, claims = _parsed(token)
        _check_header(header)
        _check_claims(claims)
        provider = _verified(token, header, claims, providers)
        _check_moment(claims, uid, now_ms // 1000)
        if claims["method"] not in provider.methods:
            raise _Refused(ProofRefusal.METHOD_NOT_ALLOWED)
        if claims["method"] not in offered:
            raise _Refused(ProofRefusal.METHOD_NOT_OFFERED)
    except _Refused as refused:
        return refused.reason
    return Proof(provider.provider_id, claims["method"], claims["jti"], claims["iat"])


def _parsed(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Check 1."""
    if len(token) > TOKEN_CHARS_MAX:
        raise _Refused(ProofRefusal.TOO_LONG)
    parts = [_decoded(part) for part in token.split(".")]
    if len(parts) != 3 or parts[0] is None or parts[1] is None or parts[2] is None:
        raise _Refused(ProofRefusal.MALFORMED)
    return _object(parts[0]), _object(parts[1])


def _decoded(part: object) -> bytes | None:
    """Canonical base64url without padding (RFC 7515, 2), None if it isn't that.

    Python's own decoder skips characters that are none of its alphabet and ignores spare bits, so that many texts would stand
    for one token.
    """
    if not isinstance(part, str) or not _PART.fullmatch(part):
        return None
    try:
        data = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except binascii.Error:
        return None
    return data if base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii") == part else None


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_each_once,
            parse_constant=_no_constant,
            parse_int=lambda digits: int(_short(digits)),
            parse_float=lambda digits: float(_short(digits)),
        )
    except (ValueError, RecursionError):
        raise _Refused(ProofRefusal.MALFORMED) from None
    if not isinstance(value, dict):
        raise _Refused(ProofRefusal.MALFORMED)
    return value


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names are different (RFC 7515, 4): of two values with one name, two readers may take different ones."""
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a name comes twice")
    return dict(pairs)


def _short(digits: str) -> str:
    if len(digits) > NUMBER_CHARS_MAX:
        raise ValueError("a number is too long")
    return digits


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _check_header(header: Mapping[str, Any]) -> None:
    """Check 2."""
    if not {"alg", "kid"} <= header.keys() <= {"alg", "kid", "typ"} or not all(
        isinstance(value, str) for value in header.values()
    ):
        raise _Refused(ProofRefusal.HEADER_REFUSED)
    # Media types are compared without regard to case (RFC 7515, 4.1.9).
    if header.get("typ", "JWT").upper() != "JWT":
        raise _Refused(ProofRefusal.HEADER_REFUSED)


def _check_claims(claims: Mapping[str, Any]) -> None:
    """Check 3."""
    if not claims.keys() >= set(_CLAIMS):
        raise _Refused(ProofRefusal.CLAIM_MISSING)
    strange = {name: value for name, value in claims.items() if name not in _CLAIMS + _HONOURED}
    if len(strange) > STRANGE_CLAIMS_MAX or not all(
        _is_small(name) and _is_small(value) for name, value in strange.items()
    ):
        raise _Refused(ProofRefusal.CLAIM_TOO_LARGE)
    fits = (
        _matches(_ID, claims["iss"])
        and _matches(_UID, claims["uid"])
        and _matches(_JTI, claims["jti"])
        and claims["method"] in get_args(ProofMethod)
        and all(_is_second(claims[name]) for name in ("iat", "exp", "nbf") if name in claims)
        and claims.get("aud", AUDIENCE) == AUDIENCE
    )
    if not fits:
        raise _Refused(ProofRefusal.CLAIM_REFUSED)


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_second(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40


def _is_small(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= STRANGE_CLAIM_CHARS_MAX
    return value is None or isinstance(value, (int, float))


def _verified(
    token: str, header: Mapping[str, Any], claims: Mapping[str, Any], providers: Mapping[str, Provider]
) -> Provider:
    """Checks 4 and 5."""
    provider = providers.get(claims["iss"])
    if provider is None:
        raise _Refused(ProofRefusal.UNKNOWN_PROVIDER)
    if provider.revoked:
        raise _Refused(ProofRefusal.PROVIDER_REVOKED)
    key = provider.key(header["kid"])
    if key is None:
        raise _Refused(ProofRefusal.UNKNOWN_KEY)
    if header["alg"] != key.alg:
        raise _Refused(ProofRefusal.WRONG_ALGORITHM)
    try:
        _JWS.decode(token, key=key.public_key, algorithms=[key.alg])
    except InvalidTokenError:
        raise _Refused(ProofRefusal.BAD_SIGNATURE) from None
    return provider


def _check_moment(claims: Mapping[str, Any], uid: bytes, now_s: int) -> None:
    """Check 6."""
    if claims["uid"] != uid.hex():
        raise _Refused(ProofRefusal.WRONG_UID)
    if claims["iat"] > now_s + AHEAD_S_MAX or claims.get("nbf", 0) > now_s + AHEAD_S_MAX:
        raise _Refused(ProofRefusal.NOT_YET)
    if now_s - claims["iat"] > AGE_S_MAX or claims.get("exp", now_s + 1) <= now_s:
        raise _Refused(ProofRefusal.TOO_OLD)
