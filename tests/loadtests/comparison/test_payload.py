"""The comparison reads and writes docs/format.md as the kernels do: version 2, AES, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadtests.comparison.payload import Claims, Key

CODES = json.loads((Path(__file__).resolve().parents[2] / "vectors" / "codes.json").read_text())
[KEY] = [key for key in CODES["keys"] if (key["version"], key["suite"]) == (2, 1)]
TEXTS = [case for case in CODES["cases"] if "text" in case]


def claims_of(case: dict[str, Any]) -> Claims:
    said = case["claims"]
    return Claims(
        bytes.fromhex(said["uid"]), said["stamp"], said["store"], said["exp"], said["item"], said["qty"]
    )


@pytest.fixture
def key() -> Key:
    return Key(KEY["kid"], bytes.fromhex(KEY["secret"]))


@pytest.mark.parametrize("case", TEXTS, ids=[case["name"] for case in TEXTS])
def test_every_vector(key: Key, case: dict[str, Any]) -> None:
    ours = case["status"] == "OK" and case["kid"] == KEY["kid"]
    assert key.open(case["text"]) == (claims_of(case) if ours else None)
    if ours:
        assert key.seal(claims_of(case)) == case["text"]


def test_there_are_vectors_of_ours() -> None:
    assert sum(case["status"] == "OK" and case["kid"] == KEY["kid"] for case in TEXTS) >= 3


def test_every_changed_character_is_refused(key: Key) -> None:
    text = key.seal(Claims((1 << 40).to_bytes(8, "big"), 1_800_000_000, 2001, 1_900_000_000, 101, 1))
    assert key.open(text) is not None
    for at in range(len(text)):
        for other in "0Z":
            if text[at] != other:
                assert key.open(text[:at] + other + text[at + 1 :]) is None
    for other in (text + "0", text[:-1], text.lower(), " " + text, text + "\n", ""):
        assert key.open(other) is None
