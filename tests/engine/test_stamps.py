"""Payloads: what they show, when terminals take them, and that no stamp ever has two contents."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Final

import pytest
import redis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from engine import limits
from engine.calls import Payload
from engine.claims import Line, Suite, Version
from engine.errors import InvalidInput
from engine.issuance import ahead_stamps, now_stamp
from engine.verdict import InspectVerdict, RenderVerdict
from ext.codec import CLAIMS, OpenStatus, open_text_batch, pack
from tests.engine import shop as shops
from tests.engine.proofs import put_provider
from tests.engine.shop import MALL, Clock, Shop

SOAK: Final = os.environ.get("PICKGATE_SOAK") == "1"
SEALED_CHARS: Final = 2 + 51 * 8 // 5
"""Of a payload's text, all that is sealed: the signature behind it (version 3) is drawn anew by SM2."""
LIFE_S: Final = limits.PAYLOAD_LIFE_S_DEFAULT


def claims_of(shop: Shop, text: str) -> dict[str, int | bytes]:
    """What a payload says, by field."""
    keys = shop.deployment.control.copy().usable_keys()
    [row] = open_text_batch(keys.payload_table, *pack([text.encode()]))
    assert row["status"] == OpenStatus.OK
    assert CLAIMS.names is not None
    return {name: row[name].tobytes() if name == "uid" else int(row[name]) for name in CLAIMS.names}


def stamp_of(payload: Payload) -> int:
    return payload.valid_from_ms // 1000 + limits.STAMP_SKEW_S


def inspected(shop: Shop, text: str, at_ms: int) -> InspectVerdict:
    shop.clock.now_ms = at_ms
    return shop.inspect(text).verdict


# --- the time that a payload states -------------------------------------------------------------------------------
@pytest.mark.parametrize("version", [Version.DYNAMIC, Version.VALUABLE])
@pytest.mark.parametrize("suite", Suite)
@pytest.mark.parametrize("start_ms", [0, 1, 999, 1000, 1999, 30_500, 59_999])
def test_windows_are_true_at_both_edges(shop: Shop, version: Version, suite: Suite, start_ms: int) -> None:
    shop.clock.now_ms += start_ms
    shop.stock_all()
    put_provider(shop)
    uid = shop.issue(version=version, suite=suite).uid
    shown_ms = shop.clock.now_ms
    payloads = shop.render(uid, count=4).payloads
    assert len(payloads) == 4
    for payload in payloads:
        for at_ms in (
            payload.valid_from_ms,
            (payload.valid_from_ms + payload.valid_until_ms) // 2,
            payload.valid_until_ms,
        ):
            assert inspected(shop, payload.text, at_ms) is InspectVerdict.REDEEMABLE
        for at_ms in (payload.valid_from_ms - 1, payload.valid_until_ms + 1):
            assert inspected(shop, payload.text, at_ms) is InspectVerdict.STALE_CODE
    assert payloads[0].valid_from_ms <= shown_ms
    # One behind the other without a gap: a phone without network always has one to show.
    for earlier, later in pairwise(payloads):
        assert earlier.valid_from_ms < later.valid_from_ms <= earlier.valid_until_ms


def test_window_ends_with_the_code(shop: Shop) -> None:
    shop.stock_all()
    uid = shop.issue(ttl_s=90).uid
    expiry_ms = shop.clock.now_ms + 90_000
    payloads = shop.render(uid, count=10).payloads
    assert 2 <= len(payloads) <= 3
    last = payloads[-1]
    assert last.valid_until_ms == expiry_ms - 1
    assert all(payload.valid_from_ms < expiry_ms for payload in payloads)
    assert inspected(shop, last.text, last.valid_until_ms) is InspectVerdict.REDEEMABLE
    assert inspected(shop, last.text, last.valid_until_ms + 1) is InspectVerdict.EXPIRED


def test_static_window_is_the_code_s_life(shop: Shop) -> None:
    shop.stock_all()
    uid = shop.issue(version=Version.STATIC).uid
    [payload] = shop.render(uid, count=5).payloads
    record = shop.record(uid)
    assert (payload.valid_from_ms, payload.valid_until_ms) == (
        record.issued_at_ms,
        record.expires_at_s * 1000 - 1,
    )
    assert inspected(shop, payload.text, payload.valid_from_ms) is InspectVerdict.REDEEMABLE
    assert inspected(shop, payload.text, payload.valid_until_ms) is InspectVerdict.REDEEMABLE
    assert inspected(shop, payload.text, payload.valid_until_ms + 1) is InspectVerdict.EXPIRED


def test_a_day_s_worth_and_no_more(shop: Shop) -> None:
    shop.stock_all()
    uid = shop.issue().uid
    most = limits.RENDER_AHEAD_S_MAX // LIFE_S
    payloads = shop.render(uid, count=most).payloads
    assert len({payload.text for payload in payloads}) == most
    for count in (0, -1, most + 1):
        with pytest.raises(InvalidInput) as refused:
            shop.render(uid, count=count)
        assert refused.value.field == "count"


# --- what a payload says ------------------------------------------------------------------------------------------
def test_payload_of_one_line_shows_it(shop: Shop) -> None:
    shop.stock_all()
    put_provider(shop)
    uid = shop.issue(lines=(Line(103, 4),), version=Version.VALUABLE, amount_fen=990).uid
    says = claims_of(shop, shop.show(uid))
    assert (says["uid"], says["store"], says["item"], says["qty"], says["amount"]) == (uid, 2001, 103, 4, 990)


def test_payload_of_several_lines_shows_none(shop: Shop) -> None:
    shop.stock_all()
    uid = shop.issue(lines=(Line(103, 4), Line(104, 1))).uid
    says = claims_of(shop, shop.show(uid))
    assert (says["item"], says["qty"]) == (0, 0)


def test_payload_after_a_partial_pickup_shows_what_is_left(shop: Shop) -> None:
    shop.stock_all()
    uid = shop.issue(lines=(Line(103, 4), Line(104, 1))).uid
    shop.redeem(shop.show(uid), lines=(Line(104, 1), Line(103, 1)))
    says = claims_of(shop, shop.show(uid))
    assert (says["item"], says["qty"]) == (103, 3)
    shop.redeem(shop.show(uid), lines=(Line(103, 2),))
    says = claims_of(shop, shop.show(uid))
    assert (says["item"], says["qty"]) == (103, 1)


# --- one stamp, one content ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("version", Version)
@pytest.mark.parametrize("suite", Suite)
def test_renders_within_one_second_are_identical(shop: Shop, version: Version, suite: Suite) -> None:
    shop.stock_all()
    put_provider(shop)
    uid = shop.issue(version=version, suite=suite).uid
    first = shop.render(uid, count=3)
    shop.clock.tick(0.999)
    second = shop.render(uid, count=3)
    assert [p.text[:SEALED_CHARS] for p in first.payloads] == [p.text[:SEALED_CHARS] for p in second.payloads]
    if (version, suite) != (Version.VALUABLE, Suite.SM):
        assert first == second


def test_a_change_within_the_second_moves_the_stamp_on(shop: Shop) -> None:
    shop.stock_all()
    uid = shop.issue(lines=(Line(100, 5),)).uid
    before = shop.render(uid, count=3).payloads
    shop.redeem(before[0].text, lines=(Line(100, 1),))
    after = shop.render(uid, count=3).payloads
    assert not {stamp_of(p) for p in before} & {stamp_of(p) for p in after}
    assert after[0].valid_from_ms <= shop.clock.now_ms
    assert shop.inspect(after[0].text).verdict is InspectVerdict.REDEEMABLE


def test_many_changes_within_a_second_are_stated_honestly(shop: Shop) -> None:
    """Each change takes two seconds of stamps, so the fourth payload of one second is good a little later; it says so."""
    shop.stock_all(20)
    uid = shop.issue(lines=(Line(100, 9),)).uid
    text = shop.show(uid)
    for _ in range(8):
        shop.redeem(text, lines=(Line(100, 1),))
    [payload] = shop.render(uid).payloads
    assert payload.valid_from_ms > shop.clock.now_ms
    assert inspected(shop, payload.text, payload.valid_from_ms - 1) is InspectVerdict.STALE_CODE
    assert inspected(shop, payload.text, payload.valid_from_ms) is InspectVerdict.REDEEMABLE


@settings(
    max_examples=200 if SOAK else 15,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("render"), st.integers(1, 4)),
            st.tuples(st.just("change"), st.integers(1, 3)),
            st.tuples(st.just("tick"), st.sampled_from((0.1, 0.4, 0.9, 1.0, 2.0, 7.0, 31.0, 60.0))),
        ),
        min_size=20,
        max_size=60,
    )
)
def test_no_stamp_has_two_contents(empty_store_url: str, steps: list[tuple[str, float]]) -> None:
    with redis.Redis.from_url(empty_store_url) as client:
        client.flushall()
    clock = Clock()
    shops.create(empty_store_url, clock, partitions=1)
    with shops.open_deployment(empty_store_url, clock, monotonic_s=lambda: 0.0) as deployment:
        shops.furnish(deployment)
        shop = Shop(deployment, empty_store_url, clock)
        shop.receive(1000)
        uid = shop.issue(lines=(Line(100, 400),)).uid
        text, seen = shop.show(uid), dict[int, str]()
        for what, amount in steps:
            if what == "tick":
                clock.tick(amount)
            elif what == "change":
                for _ in range(int(amount)):
                    if shop.record(uid).revision < limits.REVISIONS_AHEAD_MAX:
                        text = shop.render(uid).payloads[0].text
                        clock.now_ms = max(clock.now_ms, shop.render(uid).payloads[0].valid_from_ms)
                        assert shop.redeem(text, lines=(Line(100, 1),)).verdict.success
            else:
                answer = shop.render(uid, count=int(amount))
                assert answer.verdict is RenderVerdict.RENDERED
                for payload in answer.payloads:
                    assert claims_of(shop, payload.text)["stamp"] == stamp_of(payload)
                    assert seen.setdefault(stamp_of(payload), payload.text) == payload.text


@given(now_s=st.integers(1, 2**31), floor_ahead=st.integers(-100, 100))
def test_now_stamp_is_even_and_not_below_now_nor_floor(now_s: int, floor_ahead: int) -> None:
    floor_s = max(0, now_s + floor_ahead)
    stamp = now_stamp(now_s, floor_s)
    assert stamp % 2 == 0
    assert stamp in (max(now_s, floor_s), max(now_s, floor_s) + 1)


@given(
    now_s=st.integers(1, 2**31),
    life_s=st.integers(limits.PAYLOAD_LIFE_S_MIN, limits.PAYLOAD_LIFE_S_MAX),
    revision=st.integers(0, limits.REVISIONS_AHEAD_MAX - 1),
)
def test_stamps_ahead_are_odd_each_in_its_own_life_and_revision(
    now_s: int, life_s: int, revision: int
) -> None:
    stamps = ahead_stamps(now_s, revision, 5, life_s)
    later = ahead_stamps(now_s, revision + 1, 5, life_s)
    assert all(stamp % 2 == 1 for stamp in stamps)
    assert [stamp // life_s for stamp in stamps] == list(range(now_s // life_s + 1, now_s // life_s + 6))
    assert not set(stamps) & set(later)
    # The same ones a second later, as long as the first of them has not begun.
    assert ahead_stamps((now_s // life_s + 1) * life_s - 1, revision, 5, life_s) == stamps


def test_another_mall_sees_nothing(shop: Shop) -> None:
    shop.stock_all()
    uid = shop.issue().uid
    answer = shop.render(uid, mall_id=MALL + 1)
    assert answer.verdict is RenderVerdict.UNKNOWN_CODE
    assert answer.record is None
    assert answer.payloads == ()
