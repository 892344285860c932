"""Answers written straight from the script's facts are those of the protobuf library, byte for byte."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from engine import redemption
from engine.control import Copy
from engine.deployment import Deployment
from engine.state.attempts import Attempt, Facts
from engine.state.layouts import LINE
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
def facts(draw: st.DrawFn, verdicts: list[int]) -> Facts:
    lines = draw(LINES)
    return Facts(
        verdict=draw(st.sampled_from(verdicts)),
        at_ms=draw(st.integers(0, 2**42)),
        epoch=draw(IDS),
        seq=draw(st.integers(0, 2**48 - 1)),
        terminal_id=draw(IDS),
        tries_left=draw(BYTES),
        sku_id=draw(IDS),
        store_id=draw(st.sampled_from([0, 2001])),
        cycle=draw(BYTES),
        flavour=draw(st.sampled_from([0, 0x11, 0x21, 0x32])),
        flags=draw(BYTES),
        expires_at_s=draw(IDS),
        distance_bucket=draw(BYTES),
        n_lines=len(lines),
        lines=b"".join(lines),
        order_id=draw(NAMES).encode(),
        remembered=draw(st.booleans()),
    )


def standing(name: str) -> tuple[Deployment, Copy]:
    """As much of a deployment as an answer needs: the name of one store, and a clock."""
    store = SimpleNamespace(name=name, time_zone="Asia/Shanghai")
    return (
        cast(Any, SimpleNamespace(now_ms=lambda: 0)),
        cast(Any, SimpleNamespace(stores={2001: store})),
    )


REDEEM = [verdict.number for verdict in RedeemVerdict if verdict is not RedeemVerdict.OUTSIDE_WINDOW]
INSPECT = [verdict.number for verdict in InspectVerdict if verdict is not InspectVerdict.OUTSIDE_WINDOW]


@settings(max_examples=400, deadline=None)
@given(facts(REDEEM), st.binary(min_size=8, max_size=8), st.text(min_size=8, max_size=64), NAMES)
def test_redemptions(found: Facts, uid: bytes, request_id: str, name: str) -> None:
    attempt = Attempt(uid, bytes(12), 1, 2001, b"")
    store_name = name if found.store_id else ""
    quick = written.redemption(request_id.encode(), attempt, found, store_name)
    answer = redemption.redeem_answer(*standing(name), attempt, found)
    whole = translate.redeem_response(request_id, answer).SerializeToString()
    named = "{" in answer.verdict.answer.zh + answer.verdict.answer.en
    assert quick == (None if named else whole)


@settings(max_examples=400, deadline=None)
@given(facts(INSPECT), st.binary(min_size=8, max_size=8), NAMES)
def test_inspections(found: Facts, uid: bytes, name: str) -> None:
    attempt = Attempt(uid, bytes(12), 1, 2001, b"")
    store_name = name if found.store_id else ""
    quick = written.inspection(attempt, found, store_name)
    answer = redemption.inspect_answer(*standing(name), attempt, found)
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
    found = Facts(1, 1, 1, 1, 7, 0, 0, 2001, 0, 0x21, 0, 1, 255, 0, b"", b"", False)
    attempt = Attempt(bytes(8), bytes(12), 1, 2001, b"")
    for verdict in (RedeemVerdict.REDEEMED, RedeemVerdict.STALE_CODE, RedeemVerdict.UNKNOWN_CODE):
        assert (
            written.redemption(b"request-1", attempt, found._replace(verdict=verdict.number), "") is not None
        )
