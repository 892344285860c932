"""A provider of proofs, as the demo needs one: it signs that it has made sure who a customer is."""

from __future__ import annotations

import base64
import time
import uuid
from typing import Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pickgate.v1 import store_service_pb2 as store_pb
from pickgate.v1 import types_pb2 as types_pb

PROVIDER_ID: Final = "id-check.example"
_KID: Final = "demo"


class Provider:
    """A key pair, and the tokens it signs in the provider's name. One that is never registered is a stranger."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()

    @property
    def entry(self) -> store_pb.Provider:
        """What is registered of it: its public key, and how it makes sure."""
        public = base64.urlsafe_b64encode(self._key.public_key().public_bytes_raw()).rstrip(b"=")
        return store_pb.Provider(
            provider_id=PROVIDER_ID,
            name="身份核验服务 ID Check",
            keys=[store_pb.ProviderKey(kid=_KID, alg=store_pb.PROOF_ALGORITHM_EDDSA, x=public.decode())],
            methods=[types_pb.PROOF_METHOD_FACE, types_pb.PROOF_METHOD_ID_DOCUMENT],
        )

    def vouch(self, uid: str) -> str:
        """What it hands out once it has seen the customer's document: a signed token for this one code."""
        claims = {
            "iss": PROVIDER_ID,
            "uid": uid,
            "iat": int(time.time()),
            "method": "id_document",
            "jti": uuid.uuid4().hex,
        }
        return jwt.encode(claims, self._key, algorithm="EdDSA", headers={"kid": _KID})
