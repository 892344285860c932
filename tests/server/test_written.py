"""Answers written straight from the script's facts are those of the protobuf library, byte for byte."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from engine import redemption
from engine.control import Copy
from engine.deployment import Deployment
from engine.state.attempts import Facts, facts_of
from engine.state.layouts import LINE, REDEEM_ANSWER
from engine.verdict import InspectVerdict, RedeemVerdict
from server import translate, written

IDS = st.one_of(st.just(0), st.integers(1, 300), st.integers(0, 2**32 - 1))
BYTES = st.one_of(st.integers(0, 3), st.integers(0, 255))
LINES = st.lists(
    st.tuples(IDS, st.integers(0, 65_535), st.integers(0, 65_535)).map(lambda line: LINE.pack(*line)),
    max_size=4,
)
NAMES = st.text(max_size=12)


@st.composite
def replies(draw: st.DrawFn, verdicts: list[int]) -> bytes:
    """What the script may answer, as engine.state.attempts.facts_of reads it."""
    lines, order_id = draw(LINES), draw(NAMES).encode()
    facts = REDEEM_ANSWER.pack(
        draw(st.sampled_from(verdicts)),
        draw(st.integers(0, 2**42)).to_bytes(6, "big"),
        draw(IDS),
        draw(st.integers(0, 2**48 - 1)).to_bytes(6, "big"),
        draw(IDS),
        draw(BYTES),
        draw(IDS),
        draw(st.sampled_from([0, 2001])),
        draw(BYTES),
        draw(st.sampled_from([0, 0x11, 0x21, 0x32])),
        draw(BYTES),
        draw(IDS),
        draw(BYTES),
        len(lines),
        len(order_id),
    )
    return draw(st.sampled_from([b"A", b"R"])) + facts + b"".join(lines) + order_id


def standing(name: str) -> tuple[Deployment, Copy]:
    """As much of a deployment as an answer needs: the name of one store, and a clock."""
    store = SimpleNamespace(name=name, time_zone="Asia/Shanghai", closed=True)
    return (
        cast(Any, SimpleNamespace(now_ms=lambda: 0)),
        cast(Any, SimpleNamespace(stores={2001: store})),
    )


REDEEM = [verdict.number for verdict in RedeemVerdict if verdict is not RedeemVerdict.OUTSIDE_WINDOW]
INSPECT = [verdict.number for verdict in InspectVerdict if verdict is not InspectVerdict.OUTSIDE_WINDOW]


def told(reply: bytes) -> Facts:
    facts = facts_of(reply)
    assert isinstance(facts, Facts)
    return facts


@settings(max_examples=400, deadline=None)
@given(replies(REDEEM), st.binary(min_size=8, max_size=8), st.text(min_size=8, max_size=64), NAMES)
def test_redemptions(reply: bytes, uid: bytes, request_id: str, name: str) -> None:
    deployment, copy = standing(name)
    [quick] = written.REDEEM.write([reply], [uid], [request_id.encode()], written.Stores(copy.stores))
    answer = redemption.redeem_answer(deployment, copy, uid, told(reply))
    whole = translate.redeem_response(request_id, answer).SerializeToString()
    named = "{" in answer.verdict.answer.zh + answer.verdict.answer.en
    assert quick == (None if named else whole)


@settings(max_examples=400, deadline=None)
@given(replies(INSPECT), st.binary(min_size=8, max_size=8), NAMES)
def test_inspections(reply: bytes, uid: bytes, name: str) -> None:
    deployment, copy = standing(name)
    [quick] = written.INSPECT.write([reply], [uid], [], written.Stores(copy.stores))
    answer = redemption.inspect_answer(deployment, copy, uid, told(reply))
    whole = translate.inspect_response(answer).SerializeToString()
    named = "{" in answer.verdict.answer.zh + answer.verdict.answer.en
    assert quick == (None if named else whole)


def test_codes_that_are_not_genuine() -> None:
    deployment, copy = standing("")
    redeemed = redemption.redeem_answer(deployment, copy, None, None)
    inspected = redemption.inspect_answer(deployment, copy, None, None)
    assert (
        written.invalid_redemption(b"request-1")
        == translate.redeem_response("request-1", redeemed).SerializeToString()
    )
    assert translate.inspect_response(inspected).SerializeToString() == written.INVALID_INSPECTION


def test_the_verdicts_of_most_calls_are_written_quickly() -> None:
    """Above all the one that thousands of terminals get at once; and what a flood of forgeries gets."""
    for verdict in (RedeemVerdict.REDEEMED, RedeemVerdict.STALE_CODE, RedeemVerdict.UNKNOWN_CODE):
        zeros = [bytes(6) if name in ("at", "seq") else 0 for name in REDEEM_ANSWER.names[1:]]
        reply = b"A" + REDEEM_ANSWER.pack(verdict.number, *zeros)
        [quick] = written.REDEEM.write([reply], [bytes(8)], [b"request-1"], written.Stores({}))
        assert quick is not None
