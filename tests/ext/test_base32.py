"""Base32: one spelling for one string of bytes, and nothing else is read."""

from base64 import b32encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ext.claims import ALPHABET
from tests.ext.twins import NATIVE, REFERENCE

RFC_4648 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


@given(st.binary(max_size=130))
def test_is_rfc_4648_with_other_digits(data: bytes) -> None:
    expected = b32encode(data).decode().rstrip("=").translate(str.maketrans(RFC_4648, ALPHABET))
    for codec in (NATIVE, REFERENCE):
        assert codec.encode(data) == expected
        assert codec.decode(expected) == data


@given(st.text(st.characters(max_codepoint=0x7F), max_size=60) | st.text(ALPHABET, max_size=60) | st.text())
def test_what_is_read_is_what_would_be_written(text: str) -> None:
    answers = []
    for codec in (NATIVE, REFERENCE):
        try:
            answers.append(codec.decode(text))
        except ValueError as error:
            answers.append(str(error))
    assert answers[0] == answers[1]
    if isinstance(answers[0], bytes):
        assert NATIVE.encode(answers[0]) == text


@pytest.mark.parametrize("size", range(12))
def test_every_length(codec: Any, size: int) -> None:
    data = bytes(range(0xF0, 0xF0 + size))
    text = codec.encode(data)
    assert len(text) == -(-size * 8 // 5)
    assert codec.decode(text) == data


@pytest.mark.parametrize("count", [1, 3, 6, 9, 11, 14, 51])
def test_lengths_of_no_encoding_are_refused(codec: Any, count: int) -> None:
    with pytest.raises(ValueError, match="never the encoding"):
        codec.decode("0" * count)


@pytest.mark.parametrize(
    ("size", "spare"), [(1, 2), (2, 4), (3, 1), (4, 3), (5, 0), (31, 2), (47, 4), (115, 0)]
)
def test_spare_bits_must_be_zero(codec: Any, size: int, spare: int) -> None:
    text = codec.encode(b"\xff" * size)
    last = ALPHABET.index(text[-1])
    assert last & ((1 << spare) - 1) == 0
    for added in range(1, 1 << spare):
        with pytest.raises(ValueError, match="spare bits"):
            codec.decode(text[:-1] + ALPHABET[last | added])


def test_every_other_character_is_refused(codec: Any) -> None:
    text = codec.encode(bytes(31))
    for place in (0, 7, 8, 48, 49):
        for code in range(0x180):
            character = chr(code)
            if character not in ALPHABET:
                with pytest.raises(ValueError, match="outside the alphabet"):
                    codec.decode(text[:place] + character + text[place + 1 :])


def test_batches(codec: Any) -> None:
    data = bytes(range(93))
    texts = codec.encode_batch(data, 31)
    assert texts == [codec.encode(data[at : at + 31]) for at in (0, 31, 62)]
    assert codec.decode_batch(texts, 31) == data
    assert codec.encode_batch(b"", 31) == []
    assert codec.decode_batch([], 31) == b""
    for size in (-1, 0, 2, 94):
        with pytest.raises(ValueError, match="not a whole number"):
            codec.encode_batch(data, size)
    with pytest.raises(ValueError, match="expected 50"):
        codec.decode_batch([*texts, texts[0][:-1]], 31)
    with pytest.raises(ValueError, match="expected 1 or more"):
        codec.decode_batch(texts, 0)


@pytest.mark.parametrize("wrong", [None, 5, "text"])
def test_only_bytes_are_encoded(codec: Any, wrong: Any) -> None:
    with pytest.raises(TypeError):
        codec.encode(wrong)


@pytest.mark.parametrize("wrong", [None, 5, b"00"])
def test_only_text_is_decoded(codec: Any, wrong: Any) -> None:
    with pytest.raises(TypeError):
        codec.decode(wrong)
