"""What is fuzzed: one function for each thing that takes bytes from a stranger, which fails if a promise is broken.

A target is opened once and then given any bytes. Those over the kernels hold kernel and twin against each other, and the fuzzer
is led by the coverage of the twin, which is plain Python and has the same checks. Behind those of the server is a real store.

A forger can't make a tag, a signature or check digits, and neither can a fuzzer; what lies behind those would never be reached. So
the first byte of such an input may ask for them to be made good, under keys that only this test has.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from importlib import import_module
from random import Random
from typing import Any, Final, NamedTuple, TypeAlias

import ext.base32
import ext.reference
import ext.scan
import ext.scan_reference
from engine import proof, serial
from ext.claims import ALPHABET, CLAIMS, LABEL_SIG, PAYLOAD_SIZE, Suite, Version, pack
from ext.status import OpenStatus
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from tests.engine import proofs
from tests.ext import test_scan
from tests.ext.twins import KINDS, NATIVE, REFERENCE, full_table, kid_of, private_of, random_claims, secret_of
from tests.fuzz import lane_kernels
from tests.fuzz.lane_kernels import outcome

Check: TypeAlias = Callable[[bytes], None]
"""Takes an input; raises anything at all if a promise is broken."""


class Target(NamedTuple):
    """A thing to fuzz."""

    open: Callable[[ExitStack], Check]
    seeds: Callable[[], Iterable[bytes]]
    """Inputs to begin with: genuine ones, and one for each way to be wrong that is hard to guess."""
    bytes_max: int
    request_class: Callable[[int], Any] | None = None
    """For inputs that are a byte and a protobuf message, to be changed by fields (tests.fuzz.messages): the byte's class."""


# --- payloads ---------------------------------------------------------------------------------------------------------
MAKE_GOOD: Final = 1
AS_TEXT: Final = 2


def made_good(payload: bytes) -> bytes:
    """The payload with a right tag and, for version 3, signature, if its header and kid are those of a key here."""
    version, suite = payload[0] >> 4, payload[0] & 15
    if PAYLOAD_SIZE.get(version) != len(payload) or suite not in tuple(Suite):
        return payload
    kid = int.from_bytes(payload[1:3])
    if kid != kid_of(version, suite):
        return payload
    key = ext.reference._Key(kid, version, suite, secret_of(version, suite))
    signature_bytes = 64 if version == Version.VALUABLE else 0
    body = payload[: len(payload) - 16 - signature_bytes]
    made = body + key.tag(body)
    if signature_bytes:
        made += NATIVE.sign(suite, private_of(suite), LABEL_SIG + made)
    return made


def _payloads(_: ExitStack) -> Check:
    tables = {codec.name: full_table(codec) for codec in (NATIVE, REFERENCE)}

    def check(data: bytes) -> None:
        if not data:
            return
        how, item = data[0], data[1:]
        if how & MAKE_GOOD and item:
            item = made_good(item)
        if how & AS_TEXT and how & MAKE_GOOD:
            item = b"PG" + NATIVE.encode(item).encode()
        opener = "open_text_batch" if how & AS_TEXT else "open_batch"
        # Beside others, so that one that reads past its end is seen.
        items = [item, item[: len(item) // 2], item]
        native = getattr(NATIVE, opener)(tables["native"], *pack(items))
        twin = getattr(REFERENCE, opener)(tables["reference"], *pack(items))
        assert native.tobytes() == twin.tobytes(), (native, twin)
        if native["status"][0] == OpenStatus.OK:
            _assert_sealed_again(tables["native"], native[:1], item, text=bool(how & AS_TEXT))

    return check


def _assert_sealed_again(table: object, row: object, item: bytes, *, text: bool) -> None:
    """What opens is exactly what sealing its claims gives, but for an SM2 signature, which is another each time."""
    version, suite = int(row["version"][0]), int(row["suite"][0])  # type: ignore[index]
    payload = NATIVE.decode(item[2:].decode()) if text else item
    again = NATIVE.seal_batch(table, kid_of(version, suite), row)
    size = 51 if version == Version.VALUABLE and suite == Suite.SM else len(payload)
    assert again[:size] == payload[:size]


def _payload_seeds() -> Iterable[bytes]:
    table = full_table(REFERENCE)
    for version, suite in KINDS:
        genuine = REFERENCE.seal_batch(table, kid_of(version, suite), random_claims(version, 1, 7))
        yield bytes([0]) + genuine
        yield bytes([MAKE_GOOD]) + genuine
        yield bytes([AS_TEXT]) + b"PG" + REFERENCE.encode(genuine).encode()
        yield bytes([AS_TEXT | MAKE_GOOD]) + genuine
        yield bytes([MAKE_GOOD]) + genuine[:3] + bytes(len(genuine) - 3)
    yield bytes(CLAIMS.itemsize)


# --- base32 -----------------------------------------------------------------------------------------------------------
def _base32(_: ExitStack) -> Check:
    def check(data: bytes) -> None:
        text = data.decode("latin-1")
        decoded = [outcome(codec.decode, text) for codec in (NATIVE, REFERENCE)]
        assert decoded[0] == decoded[1]
        if isinstance(decoded[0], bytes):
            assert NATIVE.encode(decoded[0]) == text
        encoded = NATIVE.encode(data)
        assert encoded == REFERENCE.encode(data)
        assert NATIVE.decode(encoded) == data
        assert set(encoded) <= set(ALPHABET)
        if data:
            size = 1 + data[0] % 64
            batches = [outcome(codec.encode_batch, data[1:], size) for codec in (NATIVE, REFERENCE)]
            assert batches[0] == batches[1]
            texts = [text[at : at + 13] for at in range(0, len(text), 13)]
            assert outcome(NATIVE.decode_batch, texts, 8) == outcome(REFERENCE.decode_batch, texts, 8)

    return check


def _base32_seeds() -> Iterable[bytes]:
    yield from (NATIVE.encode(bytes(range(size))).encode() for size in range(1, 12))
    yield from (b"0" * 78, b"Z" * 13, b"oil0", b"0" * 9, "０".encode())


# --- typed serials ----------------------------------------------------------------------------------------------------
def _serials(_: ExitStack) -> Check:
    prfs = [NATIVE.Prf(1, bytes(32)), NATIVE.Prf(2, bytes(range(32)))]

    def check(data: bytes) -> None:
        if not data:
            return
        text = data[1:].decode("utf-8", "replace")
        if data[0] & MAKE_GOOD and text[:13].isascii() and text[:13].isdigit() and len(text) >= 13:
            number = int(text[:13])
            text = f"{number:013d}{serial._check_digits(number, prfs[data[0] >> 1 & 1])}" + text[13:]
        uid = serial.uid_of_typed(text, prfs)
        if uid is None:
            return
        typed = {serial.typed_of(uid, prf).replace(" ", "") for prf in prfs}
        assert text.replace(" ", "").replace("-", "") in typed
        assert len(text) in (16, 19)
        assert text.isascii()

    return check


def _serial_seeds() -> Iterable[bytes]:
    prf = NATIVE.Prf(1, bytes(32))
    typed = serial.typed_of(bytes(7) + b"\x07", prf).encode()
    yield from (b"\0" + typed, b"\0" + typed.replace(b" ", b""), b"\0" + typed.replace(b" ", b"-"))
    yield from (bytes([MAKE_GOOD]) + b"0000000000042", bytes([MAKE_GOOD]) + b"8796093022208")
    yield "\0１２３４ 5678 9012 3456".encode()


# --- proof tokens -----------------------------------------------------------------------------------------------------
_UID: Final = bytes(range(8))
_NOW_MS: Final = 1_800_000_000_000


def _proofs(_: ExitStack) -> Check:
    providers = {proofs.PROVIDER_ID: proofs.provider()}

    def check(data: bytes) -> None:
        if not data:
            return
        token = data[1:].decode("utf-8", "replace")
        if data[0] & MAKE_GOOD:
            header, _, claims = data[1:].partition(b"\n")
            text = ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (header, claims))
            signed = base64.urlsafe_b64encode(proofs.signature(text.encode())).rstrip(b"=").decode()
            token = f"{text}.{signed}"
        found = proof.check(
            token, providers, uid=_UID, offered=("face", "id_document", "two_staff"), now_ms=_NOW_MS
        )
        if isinstance(found, proof.ProofRefusal):
            return
        # Only what this key signed, for this code, of this time.
        assert data[0] & MAKE_GOOD or token in _GENUINE
        assert found.provider_id == proofs.PROVIDER_ID
        assert -proof.AHEAD_S_MAX <= _NOW_MS // 1000 - found.issued_at_s <= proof.AGE_S_MAX
        assert _UID.hex() in base64.urlsafe_b64decode(token.split(".")[1] + "==").decode()
        assert len(found.jti) <= 64

    return check


_GENUINE: Final = tuple(
    proofs.sign(_UID, _NOW_MS // 1000 - age_s, jti="proof-number", method=method)
    for age_s in (0, 120)
    for method in ("face", "id_document", "two_staff")
)


def _proof_seeds() -> Iterable[bytes]:
    yield from (b"\0" + token.encode() for token in _GENUINE[:2])
    yield b"\0" + proofs.sign(_UID, 1, jti="proof-number").encode()
    claims = (
        b'{"iss":"counter.example","uid":"0001020304050607","iat":1800000000,"method":"face","jti":"12345678"'
    )
    for header in (
        b'{"alg":"EdDSA","kid":"k-1"}',
        b'{"alg":"none","kid":"k-1"}',
        b'{"alg":"EdDSA","kid":"k-1","jku":1}',
    ):
        for more in (
            b"}",
            b',"exp":1800000001,"nbf":1,"aud":"pickgate"}',
            b',"iat":NaN}',
            b',"a":[1]}',
            b',"x":1e999}',
        ):
            yield bytes([MAKE_GOOD]) + header + b"\n" + claims + more


# --- the hot lane's scan ----------------------------------------------------------------------------------------------
def _scan(_: ExitStack) -> Check:
    native_shape, twin_shape = ext.scan.Shape(test_scan.FIELDS), ext.scan_reference.Shape(test_scan.FIELDS)
    some = (test_scan.FIELDS, test_scan.RANGES, test_scan.NEEDED)
    native_strict, twin_strict = ext.scan.Shape(*some), ext.scan_reference.Shape(*some)

    def check(data: bytes) -> None:
        wire = [data, data[: len(data) // 2], data]
        native = ext.scan.scan_batch(native_shape, wire)
        test_scan._same(native, ext.scan_reference.scan_batch(twin_shape, wire))
        test_scan._same(
            ext.scan.scan_batch(native_strict, wire), ext.scan_reference.scan_batch(twin_strict, wire)
        )
        if native.plain[0]:
            # What is taken is a message to the protobuf library too, and says the same.
            message = redemption_pb.RedeemRequest.FromString(data)
            terminal = message.terminal
            assert native.numbers[:3, 0].tolist() == [
                terminal.mall_id,
                terminal.store_id,
                terminal.terminal_id,
            ]
            texts = [data[native.starts[k, 0] : native.ends[k, 0]].decode() for k in range(4)]
            assert texts == [message.request_id, message.code, message.pin, message.actor]
            assert not message.lines
            assert not message.proof_token

    return check


def _scan_seeds() -> Iterable[bytes]:
    draw = Random(9)
    yield from (test_scan.good(draw).SerializeToString() for _ in range(4))
    yield from (
        b"\x22\x03a b",
        b"\x0a\x06\x08\x80\x80\x80\x80\x10",
        b"\x22" + b"\xff" * 9 + b"\x01",
        b"\x00\x00",
    )


def _served(name: str) -> Callable[..., Any]:
    """A function of tests.fuzz.served, imported when it is called: the sanitizers run the kernels without gRPC."""
    return lambda *args: getattr(import_module("tests.fuzz.served"), name)(*args)


TARGETS: Final[Mapping[str, Target]] = {
    "payload": Target(_payloads, _payload_seeds, 256),
    "base32": Target(_base32, _base32_seeds, 256),
    "serial": Target(_serials, _serial_seeds, 64),
    "proof": Target(_proofs, _proof_seeds, 2_500),
    "scan": Target(_scan, _scan_seeds, 512),
    "rows": Target(lambda _: lane_kernels.rows(), lane_kernels.row_seeds, 256),
    "script_calls": Target(lambda _: lane_kernels.script_calls(), lane_kernels.call_seeds, 512),
    "answers": Target(lambda _: lane_kernels.answers(), lane_kernels.answer_seeds, 512),
    "envelope": Target(_served("envelopes"), _served("envelope_seeds"), 512),
    "requests": Target(_served("requests"), _served("request_seeds"), 4_096, _served("request_class")),
    "lane": Target(_served("lane"), _served("lane_seeds"), 1_024, _served("lane_class")),
}
"""By name. The names are those of the folders under tests/fuzz/corpus."""
KERNELS: Final = ("payload", "base32", "scan", "rows", "script_calls", "answers")
"""Those that run kernels and need nothing else: `make sanitize` repeats their corpus under the sanitizers."""
