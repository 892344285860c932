"""Answers into messages: the kernel as its twin; that both are the protobuf library's bytes is tests/server/test_written.py."""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any, Final

import pytest

import ext.answers
import ext.answers_reference

OFFSETS: Final = {
    **{"verdict": 0, "at": 1, "epoch": 7, "seq": 11, "terminal": 17, "sku": 22, "store": 26, "cycle": 30},
    **{"flavour": 31, "flags": 32, "exp": 33, "bucket": 37, "n_lines": 38, "order_len": 39},
}
BYTES: Final = 40
FIELDS: Final = dict(
    zip(ext.answers.FIELDS, (5, 6, 7, 8, 9, 10, 11, 15, 16, 17, 18, 19, 20, 21, 300), strict=True)
)
BEGUN: Final = {1: b"one", 7: b"", 255: b"last"}


@pytest.fixture(params=[ext.answers, ext.answers_reference], ids=["native", "reference"])
def kernel(request: pytest.FixtureRequest) -> Any:
    return request.param


def writer(module: Any, fields: dict[str, int] | None = None, **changed: Any) -> Any:
    given = {"bucket_unknown": 255, "static_version": 1, "proof_flag": 2} | changed
    return module.Answers(OFFSETS, BYTES, FIELDS if fields is None else fields, BEGUN, **given)


def some_answer(draw: random.Random) -> bytes:
    facts = bytearray(draw.choice([0, 1, 127, 128, 255, draw.getrandbits(8)]) for _ in range(BYTES))
    facts[0] = draw.choice([1, 7, 255, 3])
    n_lines, order_len = draw.choice([0, 1, 2, 40]), draw.choice([0, 1, 64, 255])
    facts[38], facts[39] = n_lines, order_len
    lines = b"".join(draw.choice([bytes(8), b"\xff" * 8, draw.randbytes(8)]) for _ in range(n_lines))
    whole = draw.choice([b"A", b"R", b"X"]) + bytes(facts) + lines + draw.randbytes(order_len)
    return whole[: draw.randrange(len(whole))] if draw.random() < 0.1 else whole


def test_the_kernel_equals_its_twin() -> None:
    draw = random.Random(3)
    answers: list[Any] = [some_answer(draw) for _ in range(3_000)]
    answers += [b"", None, ValueError("an error"), "text"]
    uids = [draw.randbytes(8) + draw.randbytes(draw.choice([0, 30])) for _ in answers]
    request_ids = [draw.randbytes(draw.choice([0, 1, 64, 200])) for _ in answers]

    class Stores(dict[int, bytes]):
        def __missing__(self, store_id: int) -> bytes:
            return b"" if store_id % 2 else b"store %d" % store_id

    for fields in (FIELDS, {}, {"uid": 1}, {"lines": 3, "proof_required": 4}):
        for ids in (request_ids, []):
            native, reference = (
                writer(module, fields).write(answers, uids, ids, Stores())
                for module in (ext.answers, ext.answers_reference)
            )
            assert native == reference
            assert native[-4:] == [None] * 4
            written = [one for one in native if one is not None]
            assert len(written) > 1_000


def test_an_answer_that_is_cut_off_is_not_written(kernel: ModuleType) -> None:
    answer = b"A\1" + bytes(37) + b"\2\3" + bytes(16) + b"ord"
    answers = [answer[:size] for size in range(len(answer) + 1)]
    found = writer(kernel).write(answers, [bytes(8)] * len(answers), [], {0: b""})
    assert found[:-1] == [None] * len(answer)
    assert found[-1] is not None


def test_parts_of_an_answer_that_no_message_says_are_passed_over(kernel: ModuleType) -> None:
    """A layout has more than is written, for example the tries that are left."""
    answer = b"A\1" + bytes(range(1, 38)) + bytes(2)
    plain, more = (
        kernel.Answers(
            offsets, BYTES, FIELDS, BEGUN, bucket_unknown=255, static_version=1, proof_flag=2
        ).write([answer], [bytes(8)], [], {0x1A1B1C1D: b"store"})
        for offsets in (OFFSETS, OFFSETS | {"tries_left": 21})
    )
    assert plain == more != [None]


def test_what_does_not_fit_is_refused(kernel: ModuleType) -> None:
    answers = writer(kernel)
    with pytest.raises(ValueError, match="as many of each"):
        answers.write([b""], [], [], {})
    with pytest.raises(ValueError, match="as many of each"):
        answers.write([b""], [bytes(8)], [b"", b""], {})
    with pytest.raises(ValueError, match="uid 1 has 7 bytes"):
        answers.write([b"", b""], [bytes(8), bytes(7)], [], {})
    with pytest.raises(KeyError):
        answers.write([b"A\1" + bytes(39)], [bytes(8)], [], {})


@pytest.mark.parametrize(
    ("offsets", "size", "fields", "begun", "said"),
    [
        (OFFSETS, 39, FIELDS, BEGUN, "order_len of an answer"),
        (OFFSETS | {"seq": 35}, 40, FIELDS, BEGUN, "seq of an answer"),
        ({}, 40, FIELDS, BEGUN, "verdict of an answer"),
        (OFFSETS, 0, FIELDS, BEGUN, "answers of 0 bytes"),
        (OFFSETS, 40, {"colour": 1}, BEGUN, "not known"),
        (OFFSETS, 40, {"uid": 6, "order_id": 5}, BEGUN, "order_id has number 5"),
        (OFFSETS, 40, {"uid": 0}, BEGUN, "uid has number 0"),
        (OFFSETS, 40, FIELDS, {256: b""}, "verdict 256"),
        (OFFSETS, 40, FIELDS, {1: "text"}, "verdict 1"),
    ],
)
def test_a_writer_that_is_none_is_refused(
    kernel: ModuleType, offsets: Any, size: int, fields: Any, begun: Any, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        kernel.Answers(offsets, size, fields, begun, bucket_unknown=255, static_version=1, proof_flag=2)
