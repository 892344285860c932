"""A provider of proofs whose key the tests hold, and tokens that it signs."""

from __future__ import annotations

import base64
import itertools
import json
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from engine.proof import Provider, ProviderKey
from tests.engine.shop import Shop

PROVIDER_ID: Final = "counter.example"
_KEY: Final = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
_numbers = itertools.count(1)


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def provider() -> Provider:
    """One that may prove in every way."""
    public = _KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    key = ProviderKey.from_jwk({"kty": "OKP", "crv": "Ed25519", "kid": "k-1", "x": _b64(public)})
    return Provider(PROVIDER_ID, "Counter", (key,), ("face", "id_document", "two_staff"))


def put_provider(shop: Shop) -> None:
    """Register it: from now on valuable codes need a proof."""
    shop.deployment.control.put_providers([provider()], request_id=shop.new_id(), actor="test")


def sign(uid: bytes, iat_s: int, *, method: str = "id_document", jti: str = "") -> str:
    """A token for a code, of a moment (unix seconds); each has a number of its own unless one is given."""
    header = {"alg": "EdDSA", "kid": "k-1"}
    claims = {
        "iss": PROVIDER_ID,
        "uid": uid.hex(),
        "iat": iat_s,
        "method": method,
        "jti": jti or f"proof-{next(_numbers):08}",
    }
    text = ".".join(_b64(json.dumps(part).encode()) for part in (header, claims))
    return f"{text}.{_b64(signature(text.encode()))}"


def signature(signed: bytes) -> bytes:
    """The provider's signature of what stands before it in a token."""
    return _KEY.sign(signed)


def proof_token(shop: Shop, uid: bytes, **fields: str) -> str:
    """A token of now."""
    return sign(uid, shop.clock.now_s, **fields)
