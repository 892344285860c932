"""Exhaustive: no payload but the one that was sealed is opened, and no text but the one it was written as."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ext.claims import ALPHABET, CLAIMS, PAYLOAD_SIZE, TEXT_SIZE, pack
from ext.status import OpenStatus
from tests.ext.twins import KINDS, NATIVE, REFERENCE, full_table, kid_of, random_claims

TABLES = {codec.name: full_table(codec) for codec in (NATIVE, REFERENCE)}


def sealed(version: int, suite: int, seed: int = 1) -> tuple[bytes, str]:
    """One payload that both twins accept, as bytes and as text."""
    keys, kid, row = TABLES["reference"], kid_of(version, suite), random_claims(version, 1, seed)
    payload: bytes = REFERENCE.seal_batch(keys, kid, row)
    text = "PG" + REFERENCE.encode(payload)
    for codec in (NATIVE, REFERENCE):
        assert codec.open_batch(TABLES[codec.name], *pack([payload]))["status"][0] == OpenStatus.OK
        assert codec.open_text_batch(TABLES[codec.name], *pack([text.encode()]))["status"][0] == OpenStatus.OK
    return payload, text


def statuses(codec: Any, items: Iterable[bytes], *, text: bool) -> list[OpenStatus]:
    """All refused, nothing of their contents passed on; which status each got."""
    opener = codec.open_text_batch if text else codec.open_batch
    rows = opener(TABLES[codec.name], *pack(list(items)))
    assert len(rows)
    assert OpenStatus.OK not in rows["status"], np.flatnonzero(rows["status"] == OpenStatus.OK)
    seen = [OpenStatus(status) for status in rows["status"]]
    rows["status"] = rows["version"] = rows["suite"] = 0
    assert rows.tobytes() == bytes(len(rows) * CLAIMS.itemsize), "a refused payload's own words got through"
    return seen


@pytest.mark.parametrize(("version", "suite"), KINDS)
def test_every_single_bit(codec: Any, version: int, suite: int) -> None:
    payload, _ = sealed(version, suite)
    number, size = int.from_bytes(payload), len(payload)
    flipped = [(number ^ 1 << bit).to_bytes(size) for bit in range(size * 8)]
    seen = statuses(codec, flipped, text=False)
    # The last bits first: the signature's, then the tag's and the body's, the kid's, the header's.
    signature_bits = 512 if version == 3 else 0
    assert set(seen[:signature_bits]) <= {OpenStatus.SIGNATURE}
    assert set(seen[signature_bits : size * 8 - 24]) == {OpenStatus.TAG}
    assert set(seen[size * 8 - 24 : size * 8 - 8]) == {OpenStatus.KID}
    assert set(seen[size * 8 - 8 :]) == {OpenStatus.HEADER}


@pytest.mark.parametrize(("version", "suite"), KINDS)
def test_every_single_bit_of_the_text_form(codec: Any, version: int, suite: int) -> None:
    _, text = sealed(version, suite)
    number, size = int.from_bytes(text.encode()), len(text)
    statuses(codec, ((number ^ 1 << bit).to_bytes(size) for bit in range(size * 8)), text=True)


@pytest.mark.parametrize(("version", "suite"), KINDS)
def test_every_byte_appended_prepended_inserted_or_removed(codec: Any, version: int, suite: int) -> None:
    payload, text = sealed(version, suite)
    for whole, is_text in ((payload, False), (text.encode(), True)):
        changed = [whole[:at] + whole[at + 1 :] for at in range(len(whole))]
        changed += [
            whole[:at] + bytes([byte]) + whole[at:] for at in range(len(whole) + 1) for byte in range(256)
        ]
        changed += [whole + bytes(count) for count in range(1, 300)]
        changed += [whole + whole, whole[: len(whole) // 2]]
        # Sixteen zeros make the length of version 1 that of version 2, and so on: there the header or the alphabet
        # is what's wrong.
        lengths = set((TEXT_SIZE if is_text else PAYLOAD_SIZE).values())
        for item, status in zip(changed, statuses(codec, changed, text=is_text), strict=True):
            if len(item) in lengths:
                assert status == (OpenStatus.ALPHABET if is_text else OpenStatus.HEADER)
            else:
                assert status == OpenStatus.LENGTH


@pytest.mark.parametrize(("version", "suite"), KINDS)
def test_every_byte_shifted(codec: Any, version: int, suite: int) -> None:
    """One byte taken out somewhere and one put in at an end, so that the length is right."""
    payload, text = sealed(version, suite)
    for whole, is_text, filler in ((payload, False, b"\x00"), (text.encode(), True, b"0")):
        shifted = []
        for at in range(len(whole)):
            rest = whole[:at] + whole[at + 1 :]
            shifted += [item for item in (rest + filler, filler + rest) if item != whole]
        statuses(codec, shifted, text=is_text)


@pytest.mark.parametrize(("version", "suite"), KINDS)
def test_every_other_character_at_every_place(codec: Any, version: int, suite: int) -> None:
    """All 255 other bytes: lower case, look-alikes, hyphens, spaces and NUL among them."""
    _, text = sealed(version, suite)
    whole = text.encode()
    for at in range(len(whole)):
        others = [byte for byte in range(256) if byte != whole[at]]
        seen = statuses(codec, (whole[:at] + bytes([byte]) + whole[at + 1 :] for byte in others), text=True)
        for byte, status in zip(others, seen, strict=True):
            if at < 2:
                assert status == OpenStatus.PREFIX
            elif chr(byte) not in ALPHABET:
                assert status == OpenStatus.ALPHABET
            else:
                assert status not in (OpenStatus.PREFIX, OpenStatus.ALPHABET, OpenStatus.LENGTH)


@pytest.mark.parametrize(("version", "suite"), KINDS)
def test_other_spellings(codec: Any, version: int, suite: int) -> None:
    _, text = sealed(version, suite)
    spellings = {text.lower(), text.swapcase(), "pg" + text[2:], "Pg" + text[2:], text[:2] + text[2:].lower()}
    spellings |= {text.replace("0", letter) for letter in "Oo"} | {
        text.replace("1", letter) for letter in "IiLl"
    }
    spellings |= {
        text.replace("V", "U"),
        " " + text,
        text + " ",
        text + "\r\n",
        "\ufeff" + text,
        text + "\x00",
    }
    spellings |= {"-".join((text[:10], text[10:])), "https://x/" + text, text + "=" * 6, text[2:]}
    spellings |= {text.translate({ord(digit): ord(digit) + 0xFEE0 for digit in ALPHABET})}
    spellings -= {text}
    assert len(spellings) >= 15
    statuses(codec, (spelling.encode() for spelling in spellings), text=True)


@pytest.mark.parametrize(("version", "suite"), KINDS)
def test_every_value_of_the_spare_bits(codec: Any, version: int, suite: int) -> None:
    payload, text = sealed(version, suite)
    spare = (len(text) - 2) * 5 - len(payload) * 8
    last = ALPHABET.index(text[-1])
    others = [text[:-1] + ALPHABET[last | bits] for bits in range(1, 1 << spare)]
    assert len(others) == {1: 3, 2: 15, 3: 0}[version]
    if others:
        assert set(statuses(codec, (other.encode() for other in others), text=True)) == {
            OpenStatus.SPARE_BITS
        }


def test_every_header_byte(codec: Any) -> None:
    for version, suite in KINDS:
        payload, _ = sealed(version, suite)
        for header in range(256):
            if header != payload[0]:
                (status,) = statuses(codec, [bytes([header]) + payload[1:]], text=False)
                same_length = header >> 4 == version and header & 15 in (1, 2)
                assert status == (OpenStatus.KID if same_length else OpenStatus.HEADER)


def test_parts_of_two_codes_do_not_make_a_third(codec: Any) -> None:
    for version, suite in KINDS:
        one, _ = sealed(version, suite, 1)
        other, _ = sealed(version, suite, 2)
        mixed = {one[:at] + other[at:] for at in range(1, len(one))} - {one, other}
        assert len(mixed) > 15
        statuses(codec, mixed, text=False)


def test_signature_of_another_code_under_the_same_key(codec: Any) -> None:
    for suite in (1, 2):
        one, _ = sealed(3, suite, 1)
        other, _ = sealed(3, suite, 2)
        assert statuses(codec, [one[:51] + other[51:]], text=False) == [OpenStatus.SIGNATURE]


SIZES = sorted({*PAYLOAD_SIZE.values(), *TEXT_SIZE.values()})
ORIGINALS = [sealed(version, suite) for version, suite in KINDS]
HOSTILE = (
    st.binary(max_size=200)
    | st.sampled_from(SIZES).flatmap(lambda size: st.binary(min_size=size, max_size=size))
    | st.sampled_from(SIZES).flatmap(
        lambda size: st.text(ALPHABET, min_size=size - 2, max_size=size - 2).map(
            lambda text: b"PG" + text.encode()
        )
    )
)


@settings(max_examples=300, deadline=None)
@given(st.lists(HOSTILE, max_size=8))
def test_noise(items: list[bytes]) -> None:
    data, offsets = pack(items)
    for name in ("open_batch", "open_text_batch"):
        rows = [getattr(codec, name)(TABLES[codec.name], data, offsets) for codec in (NATIVE, REFERENCE)]
        assert rows[0].tobytes() == rows[1].tobytes()
        assert OpenStatus.OK not in rows[0]["status"]


@st.composite
def edited(draw: st.DrawFn) -> tuple[bytes, bytes, bool]:
    """A genuine code and the same after a few random edits."""
    payload, text = draw(st.sampled_from(ORIGINALS))
    is_text = draw(st.booleans())
    whole = text.encode() if is_text else payload
    changed = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(changed) - 1)))
        byte = draw(st.sampled_from(ALPHABET.encode()) if is_text else st.integers(0, 255))
        edit = draw(st.sampled_from(["set", "insert", "remove", "swap"]))
        if edit == "set" and changed:
            changed[at] = byte
        elif edit == "insert":
            changed.insert(at, byte)
        elif edit == "remove" and changed:
            del changed[at]
        elif edit == "swap" and changed:
            other = draw(st.integers(0, len(changed) - 1))
            changed[at], changed[other] = changed[other], changed[at]
    return whole, bytes(changed), is_text


@settings(max_examples=400, deadline=None)
@given(edited())
def test_edits(case: tuple[bytes, bytes, bool]) -> None:
    whole, changed, is_text = case
    name = "open_text_batch" if is_text else "open_batch"
    rows = [getattr(codec, name)(TABLES[codec.name], *pack([changed])) for codec in (NATIVE, REFERENCE)]
    assert rows[0].tobytes() == rows[1].tobytes()
    assert (rows[0]["status"][0] == OpenStatus.OK) == (changed == whole)
