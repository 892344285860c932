"""Proof tokens: what proves, and each reason why one doesn't."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final, get_args

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from engine.claims import Line, Version
from engine.deployment import Deployment
from engine.errors import InvalidInput, RequestIdReused
from engine.policies import Policy, ProofMethod
from engine.proof import (
    AGE_S_MAX,
    AHEAD_S_MAX,
    KEYS_MAX,
    TOKEN_CHARS_MAX,
    Proof,
    ProofRefusal,
    Provider,
    ProviderKey,
    check,
    provable,
)
from engine.verdict import HoldVerdict, IssueVerdict, RedeemVerdict
from tests.engine import proofs
from tests.engine import shop as shops

NOW_S: Final = 1_800_000_000
UID: Final = bytes.fromhex("00c1a2b3c4d5e6f7")
EVERY_METHOD: Final = get_args(ProofMethod)

_ED: Final = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
_EC: Final = ec.derive_private_key(0x1234567890ABCDEF_1234567890ABCDEF, ec.SECP256R1())


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def ed_jwk(kid: str = "ed-1") -> dict[str, Any]:
    return {
        "kty": "OKP",
        "crv": "Ed25519",
        "kid": kid,
        "x": b64(_ED.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)),
    }


def ec_jwk(kid: str = "ec-1") -> dict[str, Any]:
    numbers = _EC.public_key().public_numbers()
    x, y = (b64(n.to_bytes(32, "big")) for n in (numbers.x, numbers.y))
    return {"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": kid, "x": x, "y": y}


FACE_ID: Final = Provider(
    "face-id.example",
    "人证核验",
    (ProviderKey.from_jwk(ed_jwk()), ProviderKey.from_jwk(ec_jwk())),
    ("face", "id_document"),
)
COUNTER: Final = Provider("counter", "Two at the counter", (ProviderKey.from_jwk(ed_jwk()),), ("two_staff",))
PROVIDERS: Final = {provider.provider_id: provider for provider in (FACE_ID, COUNTER)}


def sign_ed(data: bytes) -> bytes:
    return _ED.sign(data)


@lru_cache(maxsize=256)
def sign_ec(data: bytes) -> bytes:
    r, s = decode_dss_signature(_EC.sign(data, ec.ECDSA(SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def claims(**changes: Any) -> dict[str, Any]:
    """Claims of a good token; a change to None leaves one out."""
    given = {
        "iss": "face-id.example",
        "uid": UID.hex(),
        "iat": NOW_S,
        "method": "id_document",
        "jti": "proof-000001",
    }
    return {name: value for name, value in (given | changes).items() if value is not None}


def token(
    payload: dict[str, Any] | bytes | None = None,
    header: dict[str, Any] | bytes | None = None,
    sign: Callable[[bytes], bytes] = sign_ed,
) -> str:
    payload = claims() if payload is None else payload
    header = {"alg": "EdDSA", "kid": "ed-1"} if header is None else header
    parts = (part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload))
    text = ".".join(b64(part) for part in parts)
    return f"{text}.{b64(sign(text.encode()))}"


def judged(text: str, **changes: Any) -> Proof | ProofRefusal:
    given: dict[str, Any] = {"uid": UID, "offered": EVERY_METHOD, "now_ms": NOW_S * 1000}
    return check(text, PROVIDERS, **given | changes)


# --- what proves --------------------------------------------------------------------------------------------------------
def test_a_good_token_proves() -> None:
    proof = judged(token())
    assert proof == Proof("face-id.example", "id_document", "proof-000001", NOW_S)
    assert isinstance(proof, Proof)
    assert proof.good_until_s == NOW_S + 120


def test_es256_proves_too() -> None:
    text = token(header={"alg": "ES256", "kid": "ec-1", "typ": "JWT"}, sign=sign_ec)
    assert judged(text) == Proof("face-id.example", "id_document", "proof-000001", NOW_S)


def test_the_example_of_rfc_8037_verifies_and_says_nothing_about_a_pickup() -> None:
    """RFC 8037, appendix A.4: its signature is right, so that a wrong answer could only come from its content."""
    key = ProviderKey.from_jwk(
        {"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    )
    signature = base64.urlsafe_b64decode(
        "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg=="
    )
    key.public_key.verify(signature, b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc")  # type: ignore[call-arg]
    text = f"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.{b64(signature)}"
    assert judged(text) is ProofRefusal.MALFORMED


@pytest.mark.parametrize(
    ("changes", "method"),
    [
        ({"method": "face"}, "face"),
        ({"iss": "counter", "method": "two_staff"}, "two_staff"),
        ({"exp": NOW_S + 1, "nbf": NOW_S + AHEAD_S_MAX, "aud": "pickgate"}, "id_document"),
        (
            {"ver": 2, "device": "kiosk-7", "live": True, "score": 0.97, "note": "", "x" * 64: "y" * 64},
            "id_document",
        ),
    ],
)
def test_each_method_and_small_claims_that_are_not_ours(changes: dict[str, Any], method: str) -> None:
    proof = judged(token(claims(**changes)))
    assert isinstance(proof, Proof)
    assert proof.method == method


@pytest.mark.parametrize("age_s", [-AHEAD_S_MAX, 0, 1, AGE_S_MAX])
def test_fresh_enough(age_s: int) -> None:
    assert isinstance(judged(token(claims(iat=NOW_S - age_s))), Proof)
    # The last millisecond of a second belongs to it.
    assert isinstance(judged(token(claims(iat=NOW_S - age_s)), now_ms=NOW_S * 1000 + 999), Proof)


def test_digests_tell_proofs_apart() -> None:
    digests = {
        Proof("a", "face", "12345678", 1).digest,
        Proof("a", "face", "12345679", 1).digest,
        Proof("a1", "face", "2345678", 1).digest,
        Proof("b", "face", "12345678", 1).digest,
    }
    assert len(digests) == 4
    assert {len(digest) for digest in digests} == {12}
    # Neither another time nor another method makes a second proof of one number.
    assert Proof("a", "face", "12345678", 1).digest == Proof("a", "two_staff", "12345678", 2).digest


# --- what doesn't: one case at least for each reason ----------------------------------------------------------------------
def _with_header(**changes: Any) -> str:
    header = {"alg": "EdDSA", "kid": "ed-1"} | changes
    return token(header={name: value for name, value in header.items() if value is not None})


def _hmac_with_public_key(data: bytes) -> bytes:
    public = _ED.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return hmac.new(public, data, hashlib.sha256).digest()


GOOD: Final = token()
HEAD, BODY, SIGNATURE = GOOD.split(".")

REFUSED: Final[dict[str, tuple[str, ProofRefusal]]] = {
    "empty": ("", ProofRefusal.MALFORMED),
    "one part": (HEAD, ProofRefusal.MALFORMED),
    "two parts": (f"{HEAD}.{BODY}", ProofRefusal.MALFORMED),
    "four parts": (f"{GOOD}.{SIGNATURE}", ProofRefusal.MALFORMED),
    "no signature": (f"{HEAD}.{BODY}.", ProofRefusal.MALFORMED),
    "no payload": (f"{HEAD}..{SIGNATURE}", ProofRefusal.MALFORMED),
    "padded": (f"{GOOD}==", ProofRefusal.MALFORMED),
    "a space before": (f" {GOOD}", ProofRefusal.MALFORMED),
    "a line after": (f"{GOOD}\n", ProofRefusal.MALFORMED),
    "standard base64": (f"{HEAD}.{BODY}.{SIGNATURE[:-2]}+/", ProofRefusal.MALFORMED),
    "a full-width letter": (f"{HEAD}.{BODY}.{SIGNATURE[:-1]}Ａ", ProofRefusal.MALFORMED),
    "a part of impossible length": (f"{HEAD}.{BODY}.{SIGNATURE}AAA", ProofRefusal.MALFORMED),
    "JSON serialisation": (json.dumps({"payload": BODY}), ProofRefusal.MALFORMED),
    "payload is no JSON": (token(b"{"), ProofRefusal.MALFORMED),
    "payload is a list": (token(b"[]"), ProofRefusal.MALFORMED),
    "payload is nested deep": (token(b"[" * 1200), ProofRefusal.MALFORMED),
    "payload is not UTF-8": (token(b'{"iss":"\xff"}'), ProofRefusal.MALFORMED),
    "payload is UTF-16": (token(json.dumps(claims()).encode("utf-16")), ProofRefusal.MALFORMED),
    "payload has NaN": (token(json.dumps(claims(score=float("nan"))).encode()), ProofRefusal.MALFORMED),
    "payload has a name twice": (
        token(json.dumps(claims()).replace('"iat"', '"uid":"0000000000000000","iat"').encode()),
        ProofRefusal.MALFORMED,
    ),
    "a number as long as a template": (token(claims(n=int("9" * 400))), ProofRefusal.MALFORMED),
    "a fraction as long as a template": (
        token(json.dumps(claims(n=1)).replace('"n": 1', '"n": 0.' + "1234567890" * 30).encode()),
        ProofRefusal.MALFORMED,
    ),
    "too long": (token(claims(template="A" * 1400)), ProofRefusal.TOO_LONG),
    "header without alg": (_with_header(alg=None), ProofRefusal.HEADER_REFUSED),
    "header without kid": (_with_header(kid=None), ProofRefusal.HEADER_REFUSED),
    "kid is a number": (_with_header(kid=1), ProofRefusal.HEADER_REFUSED),
    "another type": (_with_header(typ="secevent+jwt"), ProofRefusal.HEADER_REFUSED),
    "key in the header": (_with_header(jwk=ed_jwk()), ProofRefusal.HEADER_REFUSED),
    "key by address": (_with_header(jku="https://example.com/keys"), ProofRefusal.HEADER_REFUSED),
    "certificate by address": (_with_header(x5u="https://example.com/c"), ProofRefusal.HEADER_REFUSED),
    "critical extension": (_with_header(crit=["b64"], b64=False), ProofRefusal.HEADER_REFUSED),
    **{
        f"without {name}": (token(claims(**{name: None})), ProofRefusal.CLAIM_MISSING)
        for name in ("iss", "uid", "iat", "method", "jti")
    },
    "iss in capitals": (token(claims(iss="Face-ID.example")), ProofRefusal.CLAIM_REFUSED),
    "iss is a list": (token(claims(iss=["face-id.example"])), ProofRefusal.CLAIM_REFUSED),
    "uid in capitals": (token(claims(uid=UID.hex().upper())), ProofRefusal.CLAIM_REFUSED),
    "uid is a number": (token(claims(uid=int.from_bytes(UID, "big"))), ProofRefusal.CLAIM_REFUSED),
    "uid with a line end": (token(claims(uid=UID.hex() + "\n")), ProofRefusal.CLAIM_REFUSED),
    "iat is a text": (token(claims(iat=str(NOW_S))), ProofRefusal.CLAIM_REFUSED),
    "iat is true": (token(claims(iat=True)), ProofRefusal.CLAIM_REFUSED),
    "iat has a fraction": (token(claims(iat=NOW_S + 0.5)), ProofRefusal.CLAIM_REFUSED),
    "iat is negative": (token(claims(iat=-1)), ProofRefusal.CLAIM_REFUSED),
    "exp is a text": (token(claims(exp="never")), ProofRefusal.CLAIM_REFUSED),
    "method is unknown": (token(claims(method="selfie")), ProofRefusal.CLAIM_REFUSED),
    "method is an object": (token(claims(method={"face": 1})), ProofRefusal.CLAIM_REFUSED),
    "jti too short": (token(claims(jti="1234567")), ProofRefusal.CLAIM_REFUSED),
    "jti with a space": (token(claims(jti="proof 000001")), ProofRefusal.CLAIM_REFUSED),
    "for somebody else": (token(claims(aud="bank.example")), ProofRefusal.CLAIM_REFUSED),
    "for several": (token(claims(aud=["pickgate", "bank.example"])), ProofRefusal.CLAIM_REFUSED),
    "a picture": (token(claims(picture="A" * 65)), ProofRefusal.CLAIM_TOO_LARGE),
    "a picture as a name": (token(claims(**{"A" * 65: 1})), ProofRefusal.CLAIM_TOO_LARGE),
    "a template as a list": (token(claims(template=[1, 2, 3])), ProofRefusal.CLAIM_TOO_LARGE),
    "an object": (token(claims(face={"x": 1})), ProofRefusal.CLAIM_TOO_LARGE),
    "many small ones": (token(claims(**{f"t{n}": "A" * 60 for n in range(9)})), ProofRefusal.CLAIM_TOO_LARGE),
    "a provider nobody knows": (token(claims(iss="somebody")), ProofRefusal.UNKNOWN_PROVIDER),
    "a kid nobody knows": (_with_header(kid="ed-2"), ProofRefusal.UNKNOWN_KEY),
    "a kid of another provider": (
        token(claims(iss="counter", method="two_staff"), {"alg": "ES256", "kid": "ec-1"}, sign_ec),
        ProofRefusal.UNKNOWN_KEY,
    ),
    "alg none": (_with_header(alg="none"), ProofRefusal.WRONG_ALGORITHM),
    "alg in small letters": (_with_header(alg="eddsa"), ProofRefusal.WRONG_ALGORITHM),
    "a MAC keyed with the public key": (
        token(header={"alg": "HS256", "kid": "ed-1"}, sign=_hmac_with_public_key),
        ProofRefusal.WRONG_ALGORITHM,
    ),
    "another key's algorithm": (
        token(header={"alg": "ES256", "kid": "ed-1"}, sign=sign_ec),
        ProofRefusal.WRONG_ALGORITHM,
    ),
    "no signature at all": (token(sign=lambda _: b"\0"), ProofRefusal.BAD_SIGNATURE),
    "a signature of zeros": (token(sign=lambda _: bytes(64)), ProofRefusal.BAD_SIGNATURE),
    "ES256 of zeros": (
        token(header={"alg": "ES256", "kid": "ec-1"}, sign=lambda _: bytes(64)),
        ProofRefusal.BAD_SIGNATURE,
    ),
    "ES256 as DER": (
        token(header={"alg": "ES256", "kid": "ec-1"}, sign=lambda data: _EC.sign(data, ec.ECDSA(SHA256()))),
        ProofRefusal.BAD_SIGNATURE,
    ),
    "signed by another key": (
        token(sign=ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)).sign),
        ProofRefusal.BAD_SIGNATURE,
    ),
    "another payload under the signature": (
        f"{HEAD}.{b64(json.dumps(claims(method='face')).encode())}.{SIGNATURE}",
        ProofRefusal.BAD_SIGNATURE,
    ),
    "about another code": (token(claims(uid="00c1a2b3c4d5e6f6")), ProofRefusal.WRONG_UID),
    "too old": (token(claims(iat=NOW_S - AGE_S_MAX - 1)), ProofRefusal.TOO_OLD),
    "expired": (token(claims(exp=NOW_S)), ProofRefusal.TOO_OLD),
    "from the future": (token(claims(iat=NOW_S + AHEAD_S_MAX + 1)), ProofRefusal.NOT_YET),
    "not before later": (token(claims(nbf=NOW_S + AHEAD_S_MAX + 1)), ProofRefusal.NOT_YET),
    "a method that isn't the provider's": (
        token(claims(method="two_staff")),
        ProofRefusal.METHOD_NOT_ALLOWED,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    text, reason = REFUSED[name]
    assert judged(text) is reason


def test_refused_by_what_is_not_in_the_token() -> None:
    assert judged(token(claims(method="face")), offered=("id_document", "two_staff")) is (
        ProofRefusal.METHOD_NOT_OFFERED
    )
    assert judged(GOOD, offered=()) is ProofRefusal.METHOD_NOT_OFFERED
    revoked = Provider(FACE_ID.provider_id, FACE_ID.name, FACE_ID.keys, FACE_ID.methods, revoked=True)
    assert check(
        GOOD, {revoked.provider_id: revoked}, uid=UID, offered=EVERY_METHOD, now_ms=NOW_S * 1000
    ) is (ProofRefusal.PROVIDER_REVOKED)
    assert (
        check(GOOD, {}, uid=UID, offered=EVERY_METHOD, now_ms=NOW_S * 1000) is ProofRefusal.UNKNOWN_PROVIDER
    )


def test_every_reason_has_a_case() -> None:
    elsewhere = {ProofRefusal.METHOD_NOT_OFFERED, ProofRefusal.PROVIDER_REVOKED}
    assert {reason for _, reason in REFUSED.values()} | elsewhere == set(ProofRefusal)
    assert [reason.slug for reason in ProofRefusal] == [reason.name for reason in ProofRefusal]


def test_the_length_is_bounded_exactly() -> None:
    def of_length(length: int) -> str:
        """A token that is right but for its length, made by spaces within the JSON."""
        for spaces in range(2048):
            text = token(json.dumps(claims()).encode() + b" " * spaces)
            if len(text) >= length:
                return text
        raise AssertionError

    longest = next(text for text in (of_length(n) for n in (2048, 2047)) if len(text) <= TOKEN_CHARS_MAX)
    assert isinstance(judged(longest), Proof)
    assert judged(of_length(2049)) is ProofRefusal.TOO_LONG
    # Nobody gets to have a long text decoded.
    assert judged("A" * 10_000_000) is ProofRefusal.TOO_LONG


def test_no_flipped_bit_proves() -> None:
    for text in (GOOD, token(header={"alg": "ES256", "kid": "ec-1"}, sign=sign_ec)):
        for at, character in enumerate(text):
            for bit in range(7):
                flipped = text[:at] + chr(ord(character) ^ 1 << bit) + text[at + 1 :]
                assert isinstance(judged(flipped), ProofRefusal), (at, bit)


@given(
    st.text(max_size=300) | st.binary(max_size=200).map(b64).map(lambda part: f"{HEAD}.{part}.{SIGNATURE}")
)
def test_no_text_makes_it_fail_otherwise(text: str) -> None:
    assert isinstance(judged(text), ProofRefusal)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(name=st.sampled_from(["iss", "uid", "iat", "method", "jti", "exp", "nbf", "aud"]), value=_json)
def test_a_signed_claim_of_any_shape_is_judged(name: str, value: Any) -> None:
    """A provider may sign nonsense: the answer is a reason, never a failure, and proof only if the claim is as it was."""
    found = judged(token({**claims(), name: value}))
    assert isinstance(found, (Proof, ProofRefusal))
    if name in ("iss", "uid", "method", "jti") and value != claims()[name]:
        assert isinstance(found, ProofRefusal)


# --- providers --------------------------------------------------------------------------------------------------------------
P384: Final = ec.derive_private_key(7, ec.SECP384R1()).public_key().public_numbers()


@pytest.mark.parametrize(
    ("jwk", "field"),
    [
        (ed_jwk() | {"d": b64(bytes(range(32)))}, "d"),
        (ed_jwk() | {"crv": "Ed448"}, "crv"),
        (ed_jwk() | {"crv": None}, "crv"),
        ({"kty": "RSA", "n": "AQAB", "e": "AQAB", "kid": "r"}, "crv"),
        (ec_jwk() | {"crv": "P-384"}, "crv"),
        (ec_jwk() | {"crv": "secp256k1"}, "crv"),
        (ec_jwk() | {"kty": "OKP"}, "kty"),
        ({key: value for key, value in ed_jwk().items() if key != "kty"}, "kty"),
        (ed_jwk() | {"alg": "ES256"}, "alg"),
        (ec_jwk() | {"use": "enc"}, "use"),
        (ed_jwk() | {"kid": ""}, "kid"),
        (ed_jwk() | {"kid": "k" * 65}, "kid"),
        (ed_jwk() | {"kid": 7}, "kid"),
        (ed_jwk() | {"x": b64(bytes(31))}, "x"),
        (ed_jwk() | {"x": b64(bytes(32)) + "="}, "x"),
        (ed_jwk() | {"x": 7}, "x"),
        (ed_jwk() | {"y": b64(bytes(32))}, "y"),
        (ec_jwk() | {"y": ""}, "y"),
        (ec_jwk() | {"y": b64(bytes(32))}, "x"),
        (ec_jwk() | {"x": b64(P384.x.to_bytes(48, "big"))}, "x"),
    ],
)
def test_a_key_that_can_t_be_trusted_is_refused_by_name(jwk: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        ProviderKey.from_jwk(jwk)
    assert refused.value.field == field


def test_a_private_key_is_not_repeated_in_the_error() -> None:
    secret = b64(bytes(range(32)))
    with pytest.raises(InvalidInput) as refused:
        ProviderKey.from_jwk(ed_jwk() | {"d": secret})
    assert secret not in refused.value.message


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"provider_id": ""}, "provider_id"),
        ({"provider_id": "Face"}, "provider_id"),
        ({"provider_id": "-face"}, "provider_id"),
        ({"provider_id": "f" * 65}, "provider_id"),
        ({"name": ""}, "name"),
        ({"keys": ()}, "keys"),
        ({"keys": FACE_ID.keys[:1] * 2}, "keys"),
        ({"keys": tuple(ProviderKey.from_jwk(ed_jwk(f"k{n}")) for n in range(KEYS_MAX + 1))}, "keys"),
        ({"methods": ()}, "methods"),
        ({"methods": ("face", "face")}, "methods"),
        ({"methods": ("face", "selfie")}, "methods[1]"),
    ],
)
def test_a_provider_that_makes_no_sense_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    given = {"provider_id": "face", "name": "Face", "keys": FACE_ID.keys, "methods": ("face",)}
    with pytest.raises(InvalidInput) as refused:
        Provider(**given | fields)
    assert refused.value.field == field


def test_a_provider_comes_back_as_it_was_put() -> None:
    again = Provider.from_json(FACE_ID.to_json())
    assert again == FACE_ID
    assert isinstance(
        check(GOOD, {again.provider_id: again}, uid=UID, offered=EVERY_METHOD, now_ms=NOW_S * 1000), Proof
    )


@pytest.fixture
def elsewhere(shop: shops.Shop) -> Iterator[Deployment]:
    """The same deployment, as another process has it open."""
    with shops.open_deployment(shop.url, shops.Clock(shop.clock.now_ms)) as deployment:
        yield deployment


def test_a_revoked_provider_is_revoked_everywhere(shop: shops.Shop, elsewhere: Deployment) -> None:
    control = shop.deployment.control
    assert elsewhere.control.copy().providers == {}
    first = control.put_providers([FACE_ID, COUNTER], request_id="provider-1", actor="ops")
    assert control.providers() == (COUNTER, FACE_ID)

    def seen() -> Proof | ProofRefusal:
        providers = elsewhere.control.refresh().providers
        return check(GOOD, providers, uid=UID, offered=EVERY_METHOD, now_ms=NOW_S * 1000)

    assert isinstance(seen(), Proof)
    revoked = Provider(FACE_ID.provider_id, FACE_ID.name, FACE_ID.keys, FACE_ID.methods, revoked=True)
    control.put_providers([revoked], request_id="provider-2", actor="ops")
    assert seen() is ProofRefusal.PROVIDER_REVOKED
    # A retry of the first put doesn't bring it back.
    assert control.put_providers([FACE_ID, COUNTER], request_id="provider-1", actor="ops") == first
    assert seen() is ProofRefusal.PROVIDER_REVOKED
    with pytest.raises(RequestIdReused):
        control.put_providers([FACE_ID], request_id="provider-1", actor="ops")


# --- no proof, no code ------------------------------------------------------------------------------------------------------
def put_vouching(shop: shops.Shop, *methods: ProofMethod, revoked: bool = False) -> None:
    """Register a provider that may vouch by these methods only."""
    provider = replace(proofs.provider(), methods=methods, revoked=revoked)
    shop.deployment.control.put_providers([provider], request_id=shop.new_id(), actor="ops")


@pytest.mark.parametrize(
    ("vouching", "offered", "expected"),
    [
        ([], EVERY_METHOD, ()),
        ([("id_document",)], EVERY_METHOD, ("id_document",)),
        ([("id_document",)], ("face", "two_staff"), ()),
        ([("face",)], EVERY_METHOD, ()),
        ([("face", "two_staff")], ("face", "id_document"), ()),
        ([("face",), ("two_staff",)], EVERY_METHOD, ("face", "two_staff")),
    ],
)
@pytest.mark.parametrize("revoked", [False, True])
def test_provable_is_what_is_offered_and_somebody_may_vouch_for(
    vouching: list[tuple[ProofMethod, ...]],
    offered: tuple[ProofMethod, ...],
    expected: tuple[ProofMethod, ...],
    revoked: bool,
) -> None:
    """Face alone is nothing, whether the policy or the providers leave nothing else; a revoked provider is none."""
    providers = {
        str(n): replace(FACE_ID, provider_id=f"p{n}", methods=methods, revoked=revoked)
        for n, methods in enumerate(vouching)
    }
    assert provable(providers, offered) == (() if revoked else expected)


def test_a_valuable_code_that_nobody_could_vouch_for_is_not_made(shop: shops.Shop) -> None:
    """Neither issued nor held; its request id is free again, and serves once there is a provider."""
    shop.stock_all()
    before = shop.dump()

    def refused() -> None:
        issued = shop.issue(version=Version.VALUABLE, request_id="order-0001")
        assert (issued.verdict, issued.uid) == (IssueVerdict.PROOF_UNAVAILABLE, b"")
        assert shop.hold(version=Version.VALUABLE).verdict is HoldVerdict.PROOF_UNAVAILABLE
        assert shop.figures().reserved == 0

    refused()
    put_vouching(shop, "face")
    refused()
    put_vouching(shop, "id_document", revoked=True)
    refused()
    put_vouching(shop, "id_document")
    shop.put_policies(Policy("deployment", proof_methods=("face", "two_staff")))
    refused()
    assert [event for event in shop.events() if event.uid != bytes(8)] == []
    assert shop.dump().keys() >= before.keys()

    shop.put_policies(Policy("deployment"))
    issued = shop.issue(version=Version.VALUABLE, request_id="order-0001")
    assert issued.verdict is IssueVerdict.ISSUED
    assert shop.record(issued.uid).proof_needed
    # Once it is made, its retry finds it, whatever has become of the provider.
    put_vouching(shop, "id_document", revoked=True)
    assert shop.issue(version=Version.VALUABLE, request_id="order-0001") == replace(issued, replayed=True)


def test_other_codes_ask_for_no_provider(shop: shops.Shop) -> None:
    shop.stock_all()
    for version in (Version.STATIC, Version.DYNAMIC):
        issued = shop.issue(version=version)
        assert issued.verdict is IssueVerdict.ISSUED
        assert not shop.record(issued.uid).proof_needed


@pytest.mark.parametrize("registered", [False, True])
def test_a_policy_may_say_that_valuables_need_no_proof(shop: shops.Shop, registered: bool) -> None:
    """In so many words, and for as long as it says so; a code of several lines needs what one of them needs."""
    shop.stock_all()
    if registered:
        proofs.put_provider(shop)
    free = Policy("sku", mall_id=shops.MALL, sku_id=100, customer_proof="off")
    shop.put_policies(free)
    issued = shop.issue(version=Version.VALUABLE)
    assert issued.verdict is IssueVerdict.ISSUED
    assert not shop.record(issued.uid).proof_needed
    both = shop.issue(version=Version.VALUABLE, lines=(Line(100, 1), Line(101, 1)))
    assert both.verdict is (IssueVerdict.ISSUED if registered else IssueVerdict.PROOF_UNAVAILABLE)
    shop.put_policies(replace(free, customer_proof=None))
    later = shop.issue(version=Version.VALUABLE)
    assert later.verdict is (IssueVerdict.ISSUED if registered else IssueVerdict.PROOF_UNAVAILABLE)
    # What was issued under a policy keeps its terms.
    assert shop.redeem(shop.show(issued.uid)).verdict is RedeemVerdict.REDEEMED


def test_lines_whose_policies_have_no_proof_in_common_need_none_if_none_is_asked_for(
    shop: shops.Shop,
) -> None:
    shop.stock_all()
    apart = [
        Policy("sku", mall_id=shops.MALL, sku_id=100, proof_methods=("two_staff",)),
        Policy("sku", mall_id=shops.MALL, sku_id=101, proof_methods=("id_document",)),
    ]
    shop.put_policies(*apart)
    lines = (Line(100, 1), Line(101, 1))
    with pytest.raises(InvalidInput) as refused:
        shop.issue(version=Version.VALUABLE, lines=lines)
    assert refused.value.field == "lines"
    shop.put_policies(*(replace(policy, customer_proof="off") for policy in apart))
    assert shop.issue(version=Version.VALUABLE, lines=lines).verdict is IssueVerdict.ISSUED


@pytest.mark.parametrize(
    ("methods", "zh", "en"),
    [
        (EVERY_METHOD, "（人脸、证件或双人复核）", "(face, document or two staff)"),
        (("face", "id_document"), "（人脸或证件）", "(face or document)"),
        (("two_staff",), "（双人复核）", "(two staff)"),
    ],
)
def test_the_clerk_is_told_the_ways_that_this_code_takes(
    shop: shops.Shop, methods: tuple[ProofMethod, ...], zh: str, en: str
) -> None:
    """And no other: a customer who shows the document that the policy excludes has come for nothing."""
    shop.receive()
    proofs.put_provider(shop)
    shop.put_policies(Policy("deployment", proof_methods=methods))
    text = shop.show(shop.issue(version=Version.VALUABLE).uid)
    # What is issued keeps its terms.
    shop.put_policies(Policy("deployment"))
    answer = shop.redeem(text)
    assert answer.verdict is RedeemVerdict.PROOF_REQUIRED
    assert answer.proof_methods == methods
    said = answer.verdict.say(proof_methods=answer.proof_methods)
    assert zh in said[0]
    assert en in said[1]
