"""Seal, open and parse: the kernel in batches, its twin in batches, and per-code calls of `cryptography`."""

import random
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest

from ext import base32, reference, seal, sign
from ext.claims import CLAIMS, PAYLOAD_SIZE, Suite, Version, pack
from ext.status import OpenStatus
from tests.bench.conftest import Measure
from tests.bench.plain import PlainClaims, PlainKey, open_each, parse

KID: Final = 7
BATCH: Final = 1024
# A signature takes as long as hundreds of tags: fewer of them for a round of the same length.
BATCH_SIGNED: Final = {"kernel": 64, "plain": 64, "reference": 32}

SUITES = [pytest.param(suite, id=suite.name) for suite in Suite]
VERSIONS = [pytest.param(version, id=f"V{version}") for version in Version]


@dataclass(frozen=True)
class Codes:
    """n codes of one key in every form that an implementation wants, and the key in every form."""

    name: str
    count: int
    claims: npt.NDArray[np.void]
    payloads: list[bytes]
    texts: list[str]
    secret: bytes
    private: bytes | None
    public: bytes | None
    version: Version
    suite: Suite

    def table(self, module: ModuleType) -> Any:
        """Return a KeyTable of the kernel or of its twin that holds the key."""
        table = module.KeyTable()
        keys = {"public_key": self.public, "private_key": self.private} if self.private else {}
        table.add(KID, self.version, self.suite, self.secret, **keys)
        return table

    def plain(self, *, copied: bool = False) -> PlainKey:
        """Return the key for per-code calls."""
        return PlainKey(KID, self.version, self.suite, self.secret, self.private, copied=copied)


def make_codes(version: Version, suite: Suite, count: int) -> Codes:
    draw = random.Random(f"{version} {suite}")
    secret = draw.randbytes(32)
    private = public = None
    if version is Version.VALUABLE:
        private, public = sign.generate(suite)
    claims = np.zeros(count, CLAIMS)
    # docs/format.md, "The uid": below the partition version 1 has 21 zero bits, the others have not.
    bodies = (
        draw.getrandbits(33) if version is Version.STATIC else draw.getrandbits(54) | 1 << 33
        for _ in range(count)
    )
    claims["uid"] = np.frombuffer(b"".join((5 << 54 | body).to_bytes(8) for body in bodies), dtype="V8")
    for field, (low, high) in {
        "exp": (1_800_000_000, 1_900_000_000),
        **(
            {}
            if version is Version.STATIC
            else {"stamp": (1_700_000_000, 1_800_000_000), "store": (1, 10_000)}
        ),
        **({} if version is Version.STATIC else {"item": (0, 100_000), "qty": (1, 10)}),
        **({"amount": (1, 10**7)} if version is Version.VALUABLE else {}),
    }.items():
        claims[field] = [draw.randrange(low, high) for _ in range(count)]
    codes = Codes(f"V{version} {suite.name}", count, claims, [], [], secret, private, public, version, suite)
    data = seal.seal_batch(codes.table(seal), KID, claims)
    size = PAYLOAD_SIZE[version]
    codes.payloads.extend(data[at : at + size] for at in range(0, len(data), size))
    codes.texts.extend("PG" + base32.encode(payload) for payload in codes.payloads)
    return codes


def batch_size(version: Version, implementation: str) -> int:
    return BATCH_SIGNED[implementation] if version is Version.VALUABLE else BATCH


def rows_as_plain(claims: npt.NDArray[np.void]) -> list[PlainClaims]:
    return [
        PlainClaims(row["uid"].tobytes(), *(int(row[field]) for field in PlainClaims._fields[1:]))
        for row in claims
    ]


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("implementation", ["kernel", "reference", "plain", "copied"])
def test_seal(measure: Measure, version: Version, suite: Suite, implementation: str) -> None:
    if implementation in ("kernel", "reference"):
        codes = make_codes(version, suite, batch_size(version, implementation))
        module = seal if implementation == "kernel" else reference
        table = codes.table(module)
        sealed = measure(
            "seal",
            codes.name,
            implementation,
            codes.count,
            lambda: module.seal_batch(table, KID, codes.claims),
        )
    else:
        key, codes = plain_key(version, suite, implementation)
        rows = rows_as_plain(codes.claims)
        sealed = b"".join(
            measure("seal", codes.name, implementation, codes.count, lambda: [key.seal(row) for row in rows])
        )
    # SM2 signs at random: only its payloads differ each time.
    if not (version is Version.VALUABLE and suite is Suite.SM):
        assert sealed == b"".join(codes.payloads)


def plain_key(version: Version, suite: Suite, implementation: str) -> tuple[PlainKey, Codes]:
    if version is Version.VALUABLE and suite is Suite.SM:
        pytest.skip("cryptography has no SM2")
    if version is Version.VALUABLE and implementation == "copied":
        pytest.skip("the signature takes nearly all the time: how the HMAC is keyed makes no difference")
    codes = make_codes(version, suite, batch_size(version, "plain"))
    return codes.plain(copied=implementation == "copied"), codes


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("implementation", ["kernel", "reference", "plain", "copied"])
def test_open(measure: Measure, version: Version, suite: Suite, implementation: str) -> None:
    if implementation in ("kernel", "reference"):
        codes = make_codes(version, suite, batch_size(version, implementation))
        measure_open(measure, "open", codes.name, implementation, codes)
    else:
        key, codes = plain_key(version, suite, implementation)
        keys = {KID: key}
        opened = measure(
            "open", codes.name, implementation, codes.count, lambda: open_each(keys, codes.payloads)
        )
        assert opened == rows_as_plain(codes.claims)


def measure_open(measure: Measure, subject: str, case: str, implementation: str, codes: Codes) -> None:
    module = seal if implementation == "kernel" else reference
    table = codes.table(module)
    data, offsets = pack(codes.payloads)
    opened = measure(
        subject, case, implementation, codes.count, lambda: module.open_batch(table, data, offsets)
    )
    assert np.all(opened["status"] == OpenStatus.OK)
    for field in ("uid", "stamp", "exp", "store", "item", "qty", "amount"):
        assert opened[field].tolist() == codes.claims[field].tolist()


@pytest.mark.parametrize("count", [1, 8, 64, 1024])
def test_open_by_batch_size(measure: Measure, count: int) -> None:
    codes = make_codes(Version.DYNAMIC, Suite.AES, count)
    measure_open(measure, "open by batch size", f"V2 AES, batches of {count}", "kernel", codes)


@pytest.mark.parametrize("implementation", ["kernel", "reference", "plain"])
def test_refuse(measure: Measure, implementation: str) -> None:
    # A wrong tag is refused before anything is decrypted: a flood of forgeries costs less than as many good codes.
    codes = make_codes(Version.DYNAMIC, Suite.AES, BATCH)
    forged = [payload[:-1] + bytes([payload[-1] ^ 1]) for payload in codes.payloads]
    if implementation == "plain":
        keys = {KID: codes.plain()}
        assert (
            measure("refuse", codes.name, implementation, BATCH, lambda: open_each(keys, forged))
            == [None] * BATCH
        )
    else:
        module = seal if implementation == "kernel" else reference
        table = codes.table(module)
        data, offsets = pack(forged)
        opened = measure(
            "refuse", codes.name, implementation, BATCH, lambda: module.open_batch(table, data, offsets)
        )
        assert np.all(opened["status"] == OpenStatus.TAG)


@pytest.mark.parametrize("version", [Version.STATIC, Version.DYNAMIC])
@pytest.mark.parametrize("implementation", ["kernel", "reference", "plain"])
def test_decode(measure: Measure, version: Version, implementation: str) -> None:
    codes = make_codes(version, Suite.AES, BATCH)
    digits = [text[2:] for text in codes.texts]
    size = PAYLOAD_SIZE[version]
    if implementation == "plain":
        decoded = measure(
            "base32", f"V{version}", implementation, BATCH, lambda: [parse(text) for text in codes.texts]
        )
        assert decoded == codes.payloads
    else:
        module = base32 if implementation == "kernel" else reference
        joined = measure(
            "base32", f"V{version}", implementation, BATCH, lambda: module.decode_batch(digits, size)
        )
        assert joined == b"".join(codes.payloads)


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("implementation", ["kernel", "reference", "plain"])
def test_parse_and_open(measure: Measure, suite: Suite, implementation: str) -> None:
    codes = make_codes(Version.DYNAMIC, suite, BATCH)
    if implementation == "plain":
        keys = {KID: codes.plain()}

        def parse_and_open() -> list[PlainClaims | None]:
            payloads = [parse(text) for text in codes.texts]
            return open_each(keys, [payload for payload in payloads if payload])

        opened = measure("parse and open", codes.name, implementation, BATCH, parse_and_open)
        assert opened == rows_as_plain(codes.claims)
    else:
        module = seal if implementation == "kernel" else reference
        table = codes.table(module)
        joined, offsets = pack([text.encode() for text in codes.texts])
        rows = measure(
            "parse and open",
            codes.name,
            implementation,
            BATCH,
            lambda: module.open_text_batch(table, joined, offsets),
        )
        assert np.all(rows["status"] == OpenStatus.OK)
        assert rows["uid"].tolist() == codes.claims["uid"].tolist()
