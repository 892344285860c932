"""An issuer of access tokens for tests: keys, a JWK set as a file, tokens of every kind, good and bad."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from server.roles import MALL_ROLES, STORE_ROLES, Role
from tests.server.conftest import MALL, STORE

ISSUER, AUDIENCE = "https://idp.example/realms/shop", "pickgate"

_RSA = rsa.generate_private_key(65537, 2048)
"""One for all tests: making it takes long."""


@dataclass
class Idp:
    """An issuer called "idp" that may give every role."""

    folder: Path
    roles: tuple[str, ...] = tuple(role for role in Role if role is not Role.TERMINAL)
    extra: str = ""
    keys: dict[str, ec.EllipticCurvePrivateKey] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.add("k1")
        self.file.write_text(
            f'[[issuer]]\nname = "idp"\nissuer = "{ISSUER}"\naudience = "{AUDIENCE}"\nalgorithms = ["ES256"]\n'
            f'jwks_file = "jwks.json"\nroles = {json.dumps(list(self.roles))}\nleeway_s = 5\n{self.extra}'
        )

    @property
    def file(self) -> Path:
        return self.folder / "issuers.toml"

    def add(self, kid: str) -> None:
        self.keys[kid] = ec.generate_private_key(ec.SECP256R1())
        self.publish()

    def drop(self, kid: str) -> None:
        del self.keys[kid]
        self.publish()

    def jwks(self) -> bytes:
        keys = [
            ECAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": kid, "use": "sig"}
            for kid, key in self.keys.items()
        ]
        keys.append(RSAAlgorithm.to_jwk(_RSA.public_key(), as_dict=True) | {"kid": "rsa"})
        return json.dumps({"keys": keys}).encode()

    def publish(self) -> None:
        new = self.folder / "jwks.new"
        new.write_bytes(self.jwks())
        new.replace(self.folder / "jwks.json")

    def claims(self, role: str = Role.MALL, **more: Any) -> dict[str, Any]:
        """What a good token of a role says; its mall and store are the tests'. None takes a claim out."""
        now_s = int(time.time())
        claims: dict[str, Any] = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "lin",
            "iat": now_s,
            "exp": now_s + 600,
        }
        claims["pickgate_role"] = role
        if role in STORE_ROLES | MALL_ROLES:
            claims["pickgate_mall"] = MALL
        if role in STORE_ROLES:
            claims["pickgate_store"] = STORE
        return {name: value for name, value in (claims | more).items() if value is not None}

    def token(self, role: str = Role.MALL, *, kid: str = "k1", **more: Any) -> str:
        return jwt.encode(self.claims(role, **more), self.keys[kid], "ES256", headers={"kid": kid})

    # --- tokens that must not count -----------------------------------------------------------------------------------
    def bad(self, kind: str, role: str = Role.MALL) -> str:
        claims, key, header = self.claims(role), self.keys["k1"], {"kid": "k1"}
        now_s = int(time.time())
        match kind:
            case "expired":
                return self.token(role, exp=now_s - 60)
            case "not yet":
                return self.token(role, nbf=now_s + 600)
            case "wrong audience":
                return self.token(role, aud="somebody-else")
            case "no audience":
                return self.token(role, aud=None)
            case "no end":
                return self.token(role, exp=None)
            case "no subject":
                return self.token(role, sub=None)
            case "wrong issuer":
                return self.token(role, iss="https://evil.example")
            case "wrong key":
                return jwt.encode(claims, ec.generate_private_key(ec.SECP256R1()), "ES256", headers=header)
            case "unknown key":
                return jwt.encode(claims, key, "ES256", headers={"kid": "k9"})
            case "no kid":
                return jwt.encode(claims, key, "ES256")
            case "wrong algorithm":
                return jwt.encode(claims, _RSA, "RS256", headers={"kid": "rsa"})
            case "shared secret":
                # The public key, which everybody has, taken for a secret.
                return jwt.encode(claims, self.jwks().hex(), "HS256", headers=header)
            case "unsigned":
                return jwt.encode(claims, "", "none", headers=header)
            case "tampered":
                head, body, signature = self.token(role).split(".")
                other = self.token(role, sub="boss").split(".")[1]
                assert other != body
                return f"{head}.{other}.{signature}"
            case "critical header":
                return jwt.encode(claims, key, "ES256", headers=header | {"crit": ["b64"]})
            case "another type":
                return jwt.encode(claims, key, "ES256", headers=header | {"typ": "logout+jwt"})
            case "unknown role":
                return self.token("emperor")
            case "role of a terminal":
                return self.token("terminal", pickgate_mall=MALL, pickgate_store=STORE)
            case "no role":
                return self.token(role, pickgate_role=None)
            case "no mall":
                return self.token(Role.MALL, pickgate_mall=None)
            case "no store":
                return self.token(Role.OUTLET, pickgate_store=None)
            case "mall of another kind":
                return self.token(Role.MALL, pickgate_mall="7")
            case "bound elsewhere":
                return self.token(role, cnf={"x5t#S256": "A" * 43})
            case "bound to something else":
                return self.token(role, cnf={"jkt": "A" * 43})
            case "long":
                return self.token(role, padding="x" * 9_000)
            case "garbage":
                return "a.b.c"
            case _:
                raise AssertionError(kind)


BAD = (
    *(
        "expired",
        "not yet",
        "wrong audience",
        "no audience",
        "no end",
        "no subject",
        "wrong issuer",
        "wrong key",
    ),
    *("unknown key", "no kid", "wrong algorithm", "shared secret", "unsigned", "tampered", "critical header"),
    *(
        "another type",
        "unknown role",
        "role of a terminal",
        "no role",
        "no mall",
        "no store",
        "mall of another kind",
    ),
    *("bound elsewhere", "bound to something else", "long", "garbage"),
)
"""Kinds of tokens that must not count."""
