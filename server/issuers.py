"""Issuers of access tokens: who may say who somebody is, with which keys, and whom they may speak for.

Access tokens are signed JWTs (RFC 7519, profile RFC 9068), checked by PyJWT; the keys come as a JWK set (RFC 7517) from a file or an
https URL. The file of issuers is TOML:

    [[issuer]]
    name = "idp"                                  # for the record: actors are "idp:<sub>"
    issuer = "https://idp.example/realms/shop"    # claim iss
    audience = "pickgate"                         # claim aud
    algorithms = ["ES256"]                        # and no others, whatever a token says
    jwks_url = "https://idp.example/realms/shop/certs"    # or jwks_file
    roles = ["operations", "administrator"]       # what it may make somebody
    mall_ids = [1]                                # whom it may speak for; none: all
    leeway_s = 30                                 # how far its clock may be off

A token says who somebody is by `sub` and by three claims of ours: `pickgate_role`, and, as the role needs, `pickgate_mall` and
`pickgate_store`. Keys are fetched in the background, never while a call waits: a token under a key that is not there yet is refused,
and makes the next fetch come sooner.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import logging
import re
import threading
import time
import tomllib
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, Self

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from engine import limits
from engine.errors import ConfigError, SetupError
from server import bounds
from server.roles import MALL_ROLES, STORE_ROLES, Place, Role

_log = logging.getLogger(__name__)

ALGORITHMS: Final = ("ES256", "ES384", "EdDSA", "PS256", "PS384", "RS256", "RS384")
"""Signatures only: with a shared secret whoever can check a token can make one."""
RSA_BITS_MIN: Final = 2048
"""NIST SP 800-131A."""
_TYPES: Final = frozenset({"at+jwt", "application/at+jwt", "jwt"})
"""RFC 9068, 2.1; most issuers write JWT. An ID token has no other, so its audience, the client, is what keeps it out."""
_NAME: Final = r"^[a-z0-9-]{1,16}$"


class Refused(Exception):
    """A token that does not count. `reason` is for counters and the log; callers are not told."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Issuer(BaseModel):
    """One issuer, as the file has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=_NAME)]
    issuer: Annotated[str, Field(min_length=1, max_length=512)]
    audience: Annotated[str, Field(min_length=1, max_length=512)]
    algorithms: Annotated[tuple[str, ...], Field(min_length=1)]
    jwks_file: Path | None = None
    jwks_url: str = ""
    roles: Annotated[tuple[Role, ...], Field(min_length=1)]
    mall_ids: tuple[Annotated[int, Field(ge=1, le=limits.ID_MAX)], ...] = ()
    leeway_s: Annotated[int, Field(ge=0, le=bounds.TOKEN_LEEWAY_S_MAX)] = 30

    @field_validator("algorithms")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            if one not in ALGORITHMS:
                raise ValueError(f"{one!r:.40} is not taken; expected some of {', '.join(ALGORITHMS)}")
        return value

    @field_validator("roles")
    @classmethod
    def _no_terminals(cls, value: tuple[Role, ...]) -> tuple[Role, ...]:
        if Role.TERMINAL in value:
            raise ValueError("terminals are known by their certificates, not by tokens")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.jwks_file is None) == (not self.jwks_url):
            raise ValueError("expected either jwks_file or jwks_url")
        if self.jwks_url and not _is_safe(self.jwks_url):
            raise ValueError("jwks_url is not https")
        return self


def _is_safe(url: str) -> bool:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https":
        return bool(parts.hostname)
    try:
        return parts.scheme == "http" and ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def read_issuers(path: Path) -> tuple[Issuer, ...]:
    """Read the file of issuers. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}", field="issuers_file") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}", field="issuers_file") from None
    tables = content.pop("issuer", None)
    if content or not isinstance(tables, list) or not tables:
        raise ConfigError(
            f"{path} holds something else than [[issuer]] tables, or none", field="issuers_file"
        )
    found = []
    for number, table in enumerate(tables, start=1):
        try:
            one = Issuer.model_validate(table)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            where = ".".join(map(str, first["loc"])) or "a table"
            raise ConfigError(
                f"{path}: issuer {number}, {where}: {first['msg'].removeprefix('Value error, ')}",
                field="issuers_file",
            ) from None
        if one.jwks_file is not None:
            one = one.model_copy(update={"jwks_file": path.absolute().parent / one.jwks_file})
        found.append(one)
    for what in ("name", "issuer"):
        values = [getattr(one, what) for one in found]
        if len(set(values)) < len(values):
            raise ConfigError(f"{path}: two issuers have one {what}", field="issuers_file")
    return tuple(found)


# --- keys ---------------------------------------------------------------------------------------------------------------
def read_keys(content: bytes, algorithms: Sequence[str]) -> dict[tuple[str, str], Any]:
    """The keys of a JWK set, by kid and algorithm; what is no key for a signature of `algorithms` is left out.

    Raises ValueError.
    """
    if len(content) > bounds.JWKS_BYTES_MAX:
        raise ValueError(f"it is longer than {bounds.JWKS_BYTES_MAX} bytes")
    document = json.loads(content)
    items = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(items, list) or len(items) > bounds.JWKS_KEYS_MAX:
        raise ValueError(f"it is no JWK set of at most {bounds.JWKS_KEYS_MAX} keys")
    found: dict[tuple[str, str], Any] = {}
    for item in items:
        if (
            not isinstance(item, dict)
            or not isinstance(item.get("kid"), str)
            or item.get("use", "sig") != "sig"
        ):
            continue
        for algorithm in algorithms:
            if item.get("alg", algorithm) != algorithm:
                continue
            try:
                key = jwt.PyJWK({name: value for name, value in item.items() if name != "d"}, algorithm).key
            except (jwt.PyJWTError, ValueError, TypeError, KeyError):
                continue  # of another kind: the algorithm does not go with it
            if isinstance(key, RSAPublicKey) and key.key_size < RSA_BITS_MIN:
                continue
            if hasattr(key, "private_bytes") or isinstance(key, bytes):
                continue
            found[item["kid"], algorithm] = key
    if not found:
        raise ValueError(f"it holds no key with a kid for {', '.join(algorithms)}")
    return found


Fetch = Callable[[str], bytes]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def fetch(url: str) -> bytes:
    """Get a JWK set. Raises OSError (which urllib's errors are)."""
    opener = urllib.request.build_opener(_NoRedirects)
    with opener.open(url, timeout=bounds.JWKS_FETCH_S_MAX) as answer:
        content: bytes = answer.read(bounds.JWKS_BYTES_MAX + 1)
    return content


class _Keys:
    """Keys of one issuer, and when they came."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer
        self.keys: Mapping[tuple[str, str], Any] = {}
        self.content = b""
        self.came_s: float | None = None
        self.tried_s: float | None = None
        self.wanted = False
        """A token came under a key that is not there."""
        self.told = ""


class Identity(NamedTuple):
    """Whom a token is about, and until when it says so."""

    role: Role
    place: Place
    actor: str
    until_s: float
    thumbprint: str
    """Of the certificate that it is bound to (RFC 8705), base64url; '' for one that is not."""


class Issuers:
    """The issuers and their keys. Use `start` and `stop` around; `check` never waits.

    Raises ConfigError, and SetupError when a file of keys can't be used. A URL that does not answer is tried again.

    Args:
        path: the file of issuers.
        get: gets a JWK set.
        monotonic_s: the clock of the fetches.
        unix_s: the clock of the tokens.
    """

    def __init__(
        self,
        path: Path,
        *,
        get: Fetch = fetch,
        monotonic_s: Callable[[], float] = time.monotonic,
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        self._get = get
        self._monotonic_s = monotonic_s
        self._unix_s = unix_s
        self._by_issuer = {one.issuer: _Keys(one) for one in read_issuers(path)}
        self.revision = 1
        """Rises whenever a key comes or goes."""
        for kept in self._by_issuer.values():
            self._refresh(kept)
            if kept.told and kept.issuer.jwks_file is not None:
                raise SetupError(kept.told, field="issuers_file")
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pickgate-issuers", daemon=True)

    def start(self) -> None:
        """Begin to look for new keys."""
        self._thread.start()

    def stop(self) -> None:
        """End the looking. Stopping twice, or without a start, changes nothing."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(bounds.JWKS_LOOK_S):
            try:
                self.look()
            except Exception:
                _log.exception("looking for new keys of issuers failed")

    def look(self) -> None:
        """Bring the keys up to date where it is time to."""
        now_s = self._monotonic_s()
        for kept in self._by_issuer.values():
            if kept.issuer.jwks_file is None and kept.tried_s is not None:
                hurry = kept.wanted or kept.came_s is None
                wait_s = bounds.JWKS_REFETCH_S_MIN if hurry else bounds.JWKS_REFETCH_S
                if now_s - kept.tried_s < wait_s:
                    continue
            self._refresh(kept)
            if kept.came_s is not None and kept.keys and now_s - kept.came_s > bounds.JWKS_AGE_S_MAX:
                # Whoever can keep us from the issuer could keep a stolen key alive for ever.
                kept.keys, kept.content = {}, b""
                self.revision += 1

    def _refresh(self, kept: _Keys) -> None:
        issuer = kept.issuer
        where = str(issuer.jwks_file or issuer.jwks_url)
        kept.tried_s, kept.wanted = self._monotonic_s(), False
        try:
            content = issuer.jwks_file.read_bytes() if issuer.jwks_file else self._get(issuer.jwks_url)
            if content != kept.content:
                keys = read_keys(content, issuer.algorithms)
                changed = kept.came_s is not None
                kept.keys, kept.content = keys, content
                self.revision += 1
                if changed:
                    _log.warning("new keys of issuer %s are in force: %s", issuer.name, _shown(keys))
            kept.came_s, kept.told = kept.tried_s, ""
        except (OSError, ValueError, RecursionError) as error:
            told = f"the keys of issuer {issuer.name} at {where} can't be used: {error}"
            if told != kept.told:
                _log.error(
                    "%s; %s", told, "the last good ones stay" if kept.keys else "nobody is known by it"
                )
            kept.told = told

    # --- tokens ---------------------------------------------------------------------------------------------------
    def check(self, token: str) -> Identity:
        """Check a token, all of it. Raises Refused."""
        if len(token) > bounds.TOKEN_CHARS_MAX:
            raise Refused("long")
        try:
            header = jwt.get_unverified_header(token)
            claimed = jwt.decode(token, options={"verify_signature": False}).get("iss")
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise Refused("malformed") from None
        kept = self._by_issuer.get(claimed) if isinstance(claimed, str) else None
        if kept is None:
            raise Refused("issuer")
        issuer, algorithm, kid = kept.issuer, header.get("alg"), header.get("kid")
        if algorithm not in issuer.algorithms:
            raise Refused("algorithm")
        if "crit" in header or str(header.get("typ", "JWT")).lower() not in _TYPES:
            raise Refused("header")
        key = kept.keys.get((kid, algorithm)) if isinstance(kid, str) else None
        if key is None:
            kept.wanted = True
            raise Refused("key")
        try:
            claims = jwt.decode(
                token,
                key=key,
                algorithms=[algorithm],
                audience=issuer.audience,
                issuer=issuer.issuer,
                leeway=issuer.leeway_s,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            raise Refused("expired") from None
        except jwt.InvalidAudienceError:
            raise Refused("audience") from None
        except jwt.InvalidSignatureError:
            raise Refused("signature") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError):
            raise Refused("claims") from None
        return self._identity(issuer, claims)

    def _identity(self, issuer: Issuer, claims: Mapping[str, Any]) -> Identity:
        said = claims.get("pickgate_role")
        if said not in issuer.roles:
            raise Refused("role")
        role, place = Role(said), Place(_id(claims, "pickgate_mall"), _id(claims, "pickgate_store"))
        if issuer.mall_ids and place.mall_id not in issuer.mall_ids:
            raise Refused("mall")
        if (role in STORE_ROLES and not place.store_id) or (
            role in STORE_ROLES | MALL_ROLES and not place.mall_id
        ):
            raise Refused("place")
        if place.store_id and role not in STORE_ROLES | {Role.WAREHOUSE}:
            raise Refused("place")
        bound = claims.get("cnf")
        thumbprint = bound.get("x5t#S256", "") if isinstance(bound, dict) else ""
        if bound is not None and (not isinstance(thumbprint, str) or not thumbprint):
            raise Refused("binding")
        return Identity(
            role,
            place,
            actor_of(issuer.name, str(claims["sub"])),
            claims["exp"] + issuer.leeway_s,
            thumbprint,
        )


def _id(claims: Mapping[str, Any], name: str) -> int:
    value = claims.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limits.ID_MAX:
        raise Refused("claims")
    return value


def actor_of(issuer: str, subject: str) -> str:
    """Whom the record names: "<issuer>:<subject>"; a subject that is too long, or no text, by the digest of it."""
    if re.fullmatch(r"[!-~]+", subject) and len(issuer) + 1 + len(subject) <= limits.ACTOR_CHARS_MAX:
        return f"{issuer}:{subject}"
    digest = hashlib.sha256(subject.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{issuer}:sha256-{digest[:32]}"


def _shown(keys: Mapping[tuple[str, str], Any]) -> str:
    return ", ".join(sorted(f"{kid:.40} ({algorithm})" for kid, algorithm in keys))
