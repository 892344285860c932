"""The vectors: what one twin made and the other must read, refusals included."""

import json
from typing import Any

import numpy as np
import pytest

from ext.claims import CLAIMS, Version, pack
from ext.status import OpenStatus
from tests.ext.twins import NATIVE, REFERENCE
from tests.vectors.make import FILES, HERE, SEED, add_keys, written


def document(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((HERE / name).read_text(encoding="utf-8"))
    return loaded


CODES = {name: document(name) for name in ("codes.json", "codes_native.json")}
CASES = [(name, case) for name, codes in CODES.items() for case in codes["cases"]]


def opened(codec: Any, keys: list[dict[str, Any]], case: dict[str, Any]) -> Any:
    """One row, by a reader that holds no private key."""
    table = add_keys(keys, codec.KeyTable(), private=False)
    if "text" in case:
        return codec.open_text_batch(table, *pack([case["text"].encode()]))[0]
    return codec.open_batch(table, *pack([bytes.fromhex(case["bytes"])]))[0]


@pytest.mark.parametrize(("file", "case"), CASES, ids=[f"{file}: {case['name']}" for file, case in CASES])
def test_case(codec: Any, file: str, case: dict[str, Any]) -> None:
    row = opened(codec, CODES[file]["keys"], case)
    assert OpenStatus(row["status"]).name == case["status"]
    if case["status"] == "OK":
        got = {name: int(row[name]) for name in ("version", "suite", "kid")}
        assert got == {name: case[name] for name in got}
        assert {"uid": row["uid"].tobytes().hex()} | {
            name: int(row[name]) for name in case["claims"] if name != "uid"
        } == case["claims"]
        carried = {"status", "version", "suite", "kid", *case["claims"]}
        assert not any(int(row[name]) for name in CLAIMS.names or () if name not in carried)
    else:
        row["status"] = row["version"] = row["suite"] = 0
        assert row.tobytes() == bytes(CLAIMS.itemsize), "a refused payload's own words got through"


def test_every_status_has_a_case() -> None:
    assert {case["status"] for case in CODES["codes.json"]["cases"]} == set(OpenStatus.__members__)


def test_both_made_vectors() -> None:
    assert {codes["made_by"] for codes in CODES.values()} == {"reference", "native"}


def test_sealing_makes_the_vectors(codec: Any) -> None:
    """Byte for byte, but for the signatures of SM2 by the kernel, which are fresh each time."""
    for codes in CODES.values():
        table = add_keys(codes["keys"], codec.KeyTable(), private=True)
        made = 0
        for case in codes["cases"]:
            if case["status"] != "OK":
                continue
            row = np.zeros(1, dtype=CLAIMS)
            for name, value in case["claims"].items():
                row[name] = bytes.fromhex(value) if name == "uid" else value
            fresh = case["version"] == Version.VALUABLE and case["suite"] == 2
            if "text" in case:
                (text,) = codec.seal_text_batch(table, case["kid"], row)
                assert text[:80] == case["text"][:80] if fresh else text == case["text"]
            else:
                payload = codec.seal_batch(table, case["kid"], row).hex()
                assert payload[:102] == case["bytes"][:102] if fresh else payload == case["bytes"]
            made += 1
        assert made == 48


@pytest.mark.parametrize("name", sorted(FILES))
def test_files_are_what_the_script_makes(name: str) -> None:
    assert (HERE / name).read_text(encoding="utf-8") == written(FILES[name](SEED))


def test_serials_are_the_same_on_both(codec: Any) -> None:
    from engine.serial import pin_of, typed_of, uid_candidates, uid_of_typed

    assert codec in (NATIVE, REFERENCE)
    for group in document("serials.json")["groups"]:
        prf = {use: codec.Prf(group["suite"], bytes.fromhex(key)) for use, key in group["keys"].items()}
        for case in group["cases"]:
            request_id = bytes.fromhex(case["request_id"])
            uids = uid_candidates(prf["uid"], case["mall"], request_id, case["version"], case["partition"])
            assert [uid.hex() for uid in uids] == case["uids"]
            assert [pin_of(prf["pin"], uids[0], generation) for generation in (0, 1, 255)] == case["pins"]
            for uid, typed in zip(uids, case.get("typed", ()), strict=False):
                assert typed_of(uid, prf["serial"]) == typed
                assert uid_of_typed(typed, [prf["serial"]]) == uid
        for text in group["refused"]:
            assert uid_of_typed(text, [prf["serial"]]) is None
