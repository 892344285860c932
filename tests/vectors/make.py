"""Make the vectors again: ``python -m tests.vectors.make [--native]`` from the repository's root.

``codes.json`` and ``serials.json`` are made by the reference (``ext/reference.py``) from the seed below, and the same
bytes come out each time; tests hold the files against this script and the kernels against the files.
``codes_native.json`` is made by the kernels, which sign SM2 with fresh randomness, so it changes with each
``--native`` and is verified by the reference.

A case of codes.json: ``text`` or ``bytes`` (hex) is what is presented, ``status`` the name of an
``ext.status.OpenStatus``, ``claims`` what is read when that is OK. ``keys`` are what the reader holds.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from engine.serial import pin_of, typed_of, uid_candidates
from ext import reference
from ext.claims import ALPHABET, CLAIMS, LABEL_SIG, PAYLOAD_SIZE, TAG_SIZE, TEXT_PREFIX, Suite, Version
from ext.status import OpenStatus

HERE: Final = Path(__file__).parent
SEED: Final = b"pickgate vectors 1"
KINDS: Final = [(version, suite) for version in Version for suite in Suite]
NUMBERS: Final = ("stamp", "exp", "store", "item", "qty", "amount")
FIELDS: Final[dict[int, tuple[str, ...]]] = {
    Version.STATIC: ("exp",),
    Version.DYNAMIC: ("stamp", "exp", "store", "item", "qty"),
    Version.VALUABLE: NUMBERS,
}

Case = dict[str, Any]


def drawn(seed: bytes, what: str, size: int) -> bytes:
    """Bytes that stand for the words, the same each time."""
    return reference.hkdf(Suite.AES, seed, b"", what.encode(), size)


def kid_of(version: int, suite: int) -> int:
    return 0x1000 * version + 0x0F * suite


def keys_of(seed: bytes) -> list[dict[str, Any]]:
    keys = []
    for version, suite in KINDS:
        key: dict[str, Any] = {"kid": kid_of(version, suite), "version": int(version), "suite": int(suite)}
        key["secret"] = drawn(seed, f"secret {version} {suite}", 32).hex()
        if version == Version.VALUABLE:
            private = drawn(seed, f"private {suite}", 32)
            key["private_key"] = private.hex()
            key["public_key"] = reference.public_of(suite, private).hex()
        keys.append(key)
    return keys


def add_keys(keys: list[dict[str, Any]], table: Any, *, private: bool) -> Any:
    """Fill a key table of either twin from the list; without private keys it can only open version 3."""
    for key in keys:
        hexes = {"public_key"} | ({"private_key"} if private else set())
        table.add(
            key["kid"],
            key["version"],
            key["suite"],
            bytes.fromhex(key["secret"]),
            **{name: bytes.fromhex(key[name]) for name in hexes & key.keys()},
        )
    return table


def uid_for(version: int, partition: int, body: int) -> bytes:
    if version != Version.STATIC:
        body |= 1 << 33
    return (partition << 54 | body).to_bytes(8)


def rows_of(seed: bytes, version: int, suite: int) -> Any:
    """Four rows: everything zero, everything at its maximum, and two drawn."""
    rows = np.zeros(4, dtype=CLAIMS)
    static = version == Version.STATIC
    rows["uid"][0] = uid_for(version, 0, 0)
    rows["uid"][1] = uid_for(version, 1023, 2**33 - 1 if static else 2**54 - 1)
    for name in FIELDS[version]:
        rows[name][1] = np.iinfo(CLAIMS[name]).max
    for i in (2, 3):
        uid = int.from_bytes(drawn(seed, f"uid {version} {suite} {i}", 8))
        rows["uid"][i] = uid_for(version, uid >> 54, uid % (2**33 if static else 2**54))
        for name in FIELDS[version]:
            size = CLAIMS[name].itemsize
            rows[name][i] = int.from_bytes(drawn(seed, f"{name} {version} {suite} {i}", size))
    return rows


def claims_of(row: Any, version: int) -> dict[str, Any]:
    return {"uid": row["uid"].tobytes().hex(), **{name: int(row[name]) for name in FIELDS[version]}}


def genuine(codec: Any, table: Any, seed: bytes) -> Iterator[Case]:
    for version, suite in KINDS:
        kid = kid_of(version, suite)
        rows = rows_of(seed, version, suite)
        size = PAYLOAD_SIZE[version]
        payloads = codec.seal_batch(table, kid, rows)
        for i, row in enumerate(rows):
            payload = payloads[i * size : (i + 1) * size]
            about = {"status": "OK", "version": int(version), "suite": int(suite), "kid": kid}
            claims = claims_of(row, version)
            name = f"version {version}, suite {suite}, row {i}"
            yield {"name": name, "bytes": payload.hex(), **about, "claims": claims}
            text = TEXT_PREFIX + codec.encode(payload)
            yield {"name": f"{name}, text", "text": text, **about, "claims": claims}


def refused(table: Any, seed: bytes) -> Iterator[Case]:
    """Every status but OK, for every kind where it can happen."""
    yield {"name": "nothing at all", "bytes": "", "status": "LENGTH"}
    yield {"name": "no text at all", "text": "", "status": "LENGTH"}
    yield {"name": "the prefix alone", "text": "PG", "status": "LENGTH"}
    yield {"name": "a kilobyte of text", "text": "PG" + "0" * 1022, "status": "LENGTH"}
    for version, suite in KINDS:
        yield from refused_of(table, seed, version, suite)


def refused_of(table: Any, seed: bytes, version: int, suite: int) -> Iterator[Case]:
    kid = kid_of(version, suite)
    row = rows_of(seed, version, suite)[2:3]
    payload: bytes = reference.seal_batch(table, kid, row)
    text: str = reference.seal_text_batch(table, kid, row)[0]
    size, kind = len(payload), f"version {version}, suite {suite}"
    tag_end = size - (64 if version == Version.VALUABLE else 0)

    def presented(name: str, what: bytes | str, status: str) -> Case:
        form = {"text": what} if isinstance(what, str) else {"bytes": what.hex()}
        return {"name": f"{kind}: {name}", **form, "status": status}

    def flipped(at: int, bits: int = 1) -> bytes:
        return payload[:at] + bytes([payload[at] ^ bits]) + payload[at + 1 :]

    def resealed(uid: bytes | None = None, flags: int = 0) -> bytes:
        """Authentic under the key, with what sealing refuses to seal."""
        made = row.copy()
        made["flags"] = flags
        if uid is not None:
            made["uid"] = uid
        return reference._seal(table._keys[kid], kid, made[0])

    yield presented("last byte gone", payload[:-1], "LENGTH")
    yield presented("a byte appended", payload + b"\x00", "LENGTH")
    yield presented("last character gone", text[:-1], "LENGTH")
    yield presented("a character appended", text + "0", "LENGTH")
    yield presented("a newline appended", text + "\n", "LENGTH")
    yield presented("padding appended", text + "=", "LENGTH")
    yield presented("a lower-case prefix", "pg" + text[2:], "PREFIX")
    yield presented("another prefix", "PH" + text[2:], "PREFIX")
    yield presented("a lower-case letter", text[:2] + letter_lowered(text[2:]), "ALPHABET")
    for alias in "ILOU-* ":
        yield presented(f"a {alias!r}", text[:10] + alias + text[11:], "ALPHABET")
    yield presented("a full-width digit", text[:-3] + "\uff11", "ALPHABET")
    spare = len(text[2:]) * 5 - size * 8
    if spare:
        last = ALPHABET.index(text[-1])
        yield presented("a spare bit", text[:-1] + ALPHABET[last | 1], "SPARE_BITS")
        yield presented("the highest spare bit", text[:-1] + ALPHABET[last | 1 << (spare - 1)], "SPARE_BITS")
    for header in (0x00, version << 4, version << 4 | 3, version << 4 | 15, 0x40 | suite, 0xFF):
        yield presented(f"header {header:#04x}", bytes([header]) + payload[1:], "HEADER")
    other_version = (version % 3 + 1) << 4 | suite
    yield presented("another version's header", bytes([other_version]) + payload[1:], "HEADER")
    yield presented("the other suite's header", bytes([payload[0] ^ 3]) + payload[1:], "KID")
    yield presented("kid 0", payload[:1] + bytes(2) + payload[3:], "KID")
    yield presented("an unknown kid", flipped(2, 0x80), "KID")
    yield presented(
        "a kid of another version",
        payload[:1] + kid_of(version % 3 + 1, suite).to_bytes(2) + payload[3:],
        "KID",
    )
    yield presented(
        "a kid of the other suite", payload[:1] + kid_of(version, 3 - suite).to_bytes(2) + payload[3:], "KID"
    )
    for name, at in (("uid", 3), ("stamp or exp", 14), ("last byte before the tag", tag_end - TAG_SIZE - 1)):
        yield presented(f"a bit of the {name}", flipped(at), "TAG")
    yield presented("first bit of the tag", flipped(tag_end - TAG_SIZE, 0x80), "TAG")
    yield presented("last bit of the tag", flipped(tag_end - 1), "TAG")
    yield presented("no tag", payload[: tag_end - TAG_SIZE] + bytes(TAG_SIZE) + payload[tag_end:], "TAG")
    if version == Version.VALUABLE:
        other = reference.sign(suite, drawn(seed, f"stranger {suite}", 32), LABEL_SIG + payload[:tag_end])
        unlabelled = reference.sign(suite, drawn(seed, f"private {suite}", 32), payload[:tag_end])
        yield presented("first bit of the signature", flipped(tag_end, 0x80), "SIGNATURE")
        yield presented("last bit of the signature", flipped(size - 1), "SIGNATURE")
        yield presented("no signature", payload[:tag_end] + bytes(64), "SIGNATURE")
        yield presented("a stranger's signature", payload[:tag_end] + other, "SIGNATURE")
        yield presented("a signature without the label", payload[:tag_end] + unlabelled, "SIGNATURE")
    wrong_uid = uid_for(Version.DYNAMIC if version == Version.STATIC else Version.STATIC, 5, 7)
    yield presented("authentic, with another version's uid", resealed(uid=wrong_uid), "UID_SHAPE")
    if version != Version.STATIC:
        for flags in (1, 0x8000):
            yield presented(f"authentic, with flags {flags:#06x}", resealed(flags=flags), "RESERVED")


def letter_lowered(text: str) -> str:
    at = next(i for i, character in enumerate(text) if character.isalpha())
    return text[:at] + text[at].lower() + text[at + 1 :]


def codes(codec: Any, seed: bytes, made_by: str) -> dict[str, Any]:
    keys = keys_of(seed)
    table = add_keys(keys, codec.KeyTable(), private=True)
    cases = list(genuine(codec, table, seed))
    if codec is reference:
        cases += refused(table, seed)
        missing = set(OpenStatus.__members__) - {case["status"] for case in cases}
        assert not missing, missing
    return {"made_by": made_by, "keys": keys, "cases": cases}


def serials(seed: bytes) -> dict[str, Any]:
    """The uids, typed serials and PINs of docs/format.md, and texts that are no typed serial."""
    groups = []
    for suite in Suite:
        secrets = {use: drawn(seed, f"{use} key {suite}", 32) for use in ("uid", "serial", "pin")}
        prf = {use: reference.Prf(suite, secret) for use, secret in secrets.items()}
        cases = []
        for i, (mall, partition) in enumerate(((0, 0), (2**32 - 1, 1023), (7, 15))):
            request_id = drawn(seed, f"request {i}", (1, 255, 16)[i])
            for version in Version:
                uids = uid_candidates(prf["uid"], mall, request_id, version, partition)  # type: ignore[arg-type]
                case: Case = {"mall": mall, "partition": partition, "request_id": request_id.hex()}
                case |= {"version": int(version), "uids": [uid.hex() for uid in uids]}
                if version == Version.STATIC:
                    case["typed"] = [typed_of(uid, prf["serial"]) for uid in uids]  # type: ignore[arg-type]
                case["pins"] = [pin_of(prf["pin"], uids[0], g) for g in (0, 1, 255)]  # type: ignore[arg-type]
                cases.append(case)
        typed = next(case["typed"][0] for case in cases if case["mall"] == 7 and "typed" in case)
        group: dict[str, Any] = {"suite": int(suite)}
        group["keys"] = {use: secret.hex() for use, secret in secrets.items()}
        groups.append(group | {"cases": cases, "refused": list(not_typed(typed))})
    return {"made_by": "reference", "groups": groups}


def not_typed(typed: str) -> Iterator[str]:
    digits = typed.replace(" ", "")
    wrong_check = f"{(int(digits[13:]) + 1) % 1000:03d}"
    yield from ("", " ", typed[:-1], typed + "0", " " + typed, typed + "\n", typed.replace(" ", "  "))
    yield from (typed.replace(" ", "-", 1), typed.replace(" ", "_"), digits[:8] + " " + digits[8:])
    yield from (digits[:13] + wrong_check, f"{(int(digits[:13]) + 1):013d}" + digits[13:])
    yield from (f"{2**43:013d}" + digits[13:], "9" * 16, "-" + digits[1:], "+" + digits[1:])
    yield from (
        "".join(chr(0x0660 + int(digit)) for digit in digits),
        "".join(chr(0xFF10 + int(d)) for d in digits),
    )


def written(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, ensure_ascii=True) + "\n"


FILES: Final[dict[str, Callable[[bytes], dict[str, Any]]]] = {
    "codes.json": lambda seed: codes(reference, seed, "reference"),
    "serials.json": serials,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the vectors again.")
    parser.add_argument(
        "--native", action="store_true", help="also codes_native.json, which changes each time"
    )
    options = parser.parse_args()
    for name, make in FILES.items():
        (HERE / name).write_text(written(make(SEED)), encoding="utf-8")
    if options.native:
        from tests.ext.twins import NATIVE

        document = codes(NATIVE, SEED + b", native", "native")
        (HERE / "codes_native.json").write_text(written(document), encoding="utf-8")


if __name__ == "__main__":
    main()
