"""Reversal: goods come back, reserved for the same code, or refunded; never more than were out, nor twice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine import expiry, issuance, limits, redemption
from engine.calls import ReverseRequest, StockChange
from engine.claims import Decision, Line, LineState, State, Terminal, Version
from engine.errors import RequestIdReused
from engine.policies import Policy
from engine.state.events import EventType
from engine.verdict import RedeemVerdict, ReverseVerdict
from tests.engine.fold import check_against_store, fold
from tests.engine.shop import FAR_STORE, MALL, STORE, Shop

ID = "the-same-id"
FIVE = (Line(100, 5),)


def static(shop: Shop, *units: int) -> tuple[bytes, str, str]:
    """A static code of five units, of which so many were handed out, pickup by pickup."""
    shop.receive(10)
    issued = shop.issue(version=Version.STATIC, lines=FIVE)
    for count in units:
        assert shop.redeem(issued.typed, pin=issued.pin, lines=(Line(100, count),)).verdict.success
    return issued.uid, issued.typed, issued.pin


def counts(shop: Shop) -> tuple[int, int]:
    return shop.figures().on_hand, shop.figures().reserved


def checked(shop: Shop) -> None:
    check_against_store(fold(shop.events()), shop.deployment, shop.clock.now_ms)


def test_all_of_it(shop: Shop) -> None:
    uid, typed, pin = static(shop, 2, 3)
    answer = shop.reverse(uid, reason="坏了", actor="clerk:bob")
    assert answer.lines == (LineState(100, 5, 5),)
    assert answer.cycle == 1
    assert counts(shop) == (10, 5)
    assert shop.record(uid).state is State.LIVE
    event = shop.events()[-1]
    assert (event.type, event.facts["reason"], event.actor) == (EventType.REVERSED, "坏了", "clerk:bob")
    assert shop.redeem(typed, pin=pin).verdict is RedeemVerdict.REDEEMED
    checked(shop)


def test_some_of_it(shop: Shop) -> None:
    uid, typed, pin = static(shop, 5)
    assert shop.reverse(uid, lines=(Line(100, 2),)).lines == (LineState(100, 2, 2),)
    assert counts(shop) == (7, 2)
    assert shop.record(uid).state is State.PARTLY
    assert shop.reverse(uid, lines=(Line(100, 4),)).verdict is ReverseVerdict.NOT_REDEEMED
    assert shop.reverse(uid).lines == (LineState(100, 3, 5),)
    assert shop.reverse(uid).verdict is ReverseVerdict.NOT_REDEEMED
    assert shop.redeem(typed, pin=pin).lines == (LineState(100, 5, 0),)
    checked(shop)


def test_refunded_in_parts(shop: Shop) -> None:
    """What is refunded leaves the code; when all of it has, the code is void, and forgotten like any other."""
    uid, _, _ = static(shop, 5)
    assert shop.reverse(uid, lines=(Line(100, 2),), release=True).lines == (LineState(100, 2, 0),)
    record = shop.record(uid)
    assert (record.state, record.lines) == (State.REDEEMED, (LineState(100, 3, 0),))
    assert counts(shop) == (7, 0)
    shop.reverse(uid, release=True)
    assert shop.record(uid).state is State.VOIDED
    assert counts(shop) == (10, 0)
    assert shop.reverse(uid).verdict is ReverseVerdict.NOT_REDEEMED
    checked(shop)
    shop.clock.tick(limits.AFTERLIFE_S + 180)
    assert expiry.sweep(shop.deployment).forgotten == 1


def test_refunded_while_some_is_left(shop: Shop) -> None:
    uid, typed, pin = static(shop, 2)
    exp = shop.record(uid).expires_at_s
    shop.reverse(uid, release=True)
    record = shop.record(uid)
    assert (record.state, record.lines, record.expires_at_s) == (State.LIVE, (LineState(100, 3, 3),), exp)
    assert counts(shop) == (10, 3)
    assert shop.redeem(typed, pin=pin).lines == (LineState(100, 3, 0),)
    checked(shop)


@pytest.mark.parametrize("release", [False, True])
def test_of_a_locked_code(shop: Shop, release: bool) -> None:
    """It stays locked, with its tries and its review; what came back counts when it is set free."""
    uid, typed, pin = static(shop, 2)
    shop.lock(uid)
    assert shop.reverse(uid, release=release).verdict.success
    record = shop.record(uid)
    assert (record.state, record.tries) == (State.LOCKED, limits.TRIES_MAX)
    assert counts(shop) == ((10, 3) if release else (10, 5))
    assert shop.redeem(typed, pin=pin).verdict is RedeemVerdict.LOCKED
    assert shop.decide(uid, Decision.APPROVE).verdict.success
    assert shop.record(uid).state is State.LIVE
    assert shop.redeem(typed, pin=pin).lines == (LineState(100, 3 if release else 5, 0),)
    checked(shop)


def test_of_a_locked_code_of_which_nothing_is_out_any_more(shop: Shop) -> None:
    """Whenever it is asked, there is nothing to take back; not that the time for it was over."""
    uid, _, _ = static(shop, 5)
    shop.reverse(uid)
    shop.lock(uid)
    for wait_s in (0, limits.REVERSAL_WINDOW_S_DEFAULT):
        shop.clock.tick(wait_s)
        assert shop.reverse(uid).verdict is ReverseVerdict.NOT_REDEEMED


def test_of_a_code_redeemed_by_hand(shop: Shop) -> None:
    uid, typed, pin = static(shop, 2)
    shop.lock(uid)
    shop.clock.tick(limits.REVERSAL_WINDOW_S_DEFAULT)
    assert shop.decide(uid, Decision.REDEEM).lines == (LineState(100, 3, 0),)
    assert counts(shop) == (5, 0)
    # The window counts from what was handed out last, and that was now.
    assert shop.reverse(uid).lines == (LineState(100, 5, 5),)
    assert counts(shop) == (10, 5)
    record = shop.record(uid)
    assert (record.state, record.tries, record.lock) == (State.LIVE, 0, None)
    assert shop.redeem(typed, pin=pin).verdict is RedeemVerdict.REDEEMED
    checked(shop)


def test_of_a_code_whose_shelf_is_short(shop: Shop) -> None:
    uid, typed, pin = static(shop, 5)
    shop.issue(lines=FIVE)
    shop.receive(1, change=StockChange.COUNT)
    shop.reverse(uid)
    assert counts(shop) == (6, 10)
    assert shop.figures().short == 4
    assert shop.redeem(typed, pin=pin).verdict is RedeemVerdict.REDEEMED
    checked(shop)


def test_lives_on_for_a_day_at_least(shop: Shop) -> None:
    """Also when its time was over, as long as all of it had been handed out before."""
    shop.receive(10)
    issued = shop.issue(version=Version.STATIC, lines=FIVE, ttl_s=600)
    shop.redeem(issued.typed, pin=issued.pin)
    shop.clock.tick(1800)
    expiry.sweep(shop.deployment)
    answer = shop.reverse(issued.uid)
    assert answer.expires_at_s == shop.clock.now_s + limits.REVERSAL_LIFE_S
    shop.clock.tick(limits.REVERSAL_LIFE_S - 1)
    assert expiry.sweep(shop.deployment).expired == 0
    assert shop.redeem(issued.typed, pin=issued.pin, lines=(Line(100, 1),)).verdict.success
    shop.clock.tick(72)
    assert expiry.sweep(shop.deployment).expired == 1
    assert counts(shop) == (9, 0)
    checked(shop)


def test_an_expiry_that_is_far_off_stays(shop: Shop) -> None:
    uid, _, _ = static(shop, 5)
    exp = shop.record(uid).expires_at_s
    assert shop.reverse(uid).expires_at_s == exp == shop.record(uid).expires_at_s
    shop.clock.tick(limits.TTL_S_DEFAULT + 72)
    assert expiry.sweep(shop.deployment).expired == 1
    assert counts(shop) == (10, 0)


@pytest.mark.parametrize(
    ("wait_s", "verdict"), [(599, ReverseVerdict.REVERSED), (600, ReverseVerdict.REVERSAL_CLOSED)]
)
def test_the_window_is_the_policy_s(shop: Shop, wait_s: int, verdict: ReverseVerdict) -> None:
    shop.put_policies(Policy("store", store_id=STORE, reversal_window_s=600))
    uid, _, _ = static(shop, 5)
    shop.clock.tick(wait_s)
    assert shop.reverse(uid).verdict is verdict


def test_ten_cycles(shop: Shop) -> None:
    uid, typed, pin = static(shop)
    for _ in range(limits.CYCLES_MAX):
        assert shop.redeem(typed, pin=pin, lines=(Line(100, 1),)).verdict.success
        assert shop.reverse(uid).verdict.success
    shop.redeem(typed, pin=pin, lines=(Line(100, 1),))
    assert shop.reverse(uid).verdict is ReverseVerdict.REVERSAL_LIMIT
    assert shop.record(uid).cycle == limits.CYCLES_MAX
    checked(shop)


def test_again_and_with_another_body(shop: Shop) -> None:
    uid, typed, pin = static(shop, 5)
    first = shop.reverse(uid, request_id=ID, lines=(Line(100, 2),))
    shop.redeem(typed, pin=pin, lines=(Line(100, 1),))
    shop.clock.tick(limits.REVERSAL_WINDOW_S_DEFAULT * 2)
    before = shop.dump()
    assert shop.reverse(uid, request_id=ID, lines=(Line(100, 2),)) == replace(first, replayed=True)
    for fields in ({}, {"lines": (Line(100, 1),)}, {"lines": (Line(100, 2),), "release": True}):
        with pytest.raises(RequestIdReused):
            shop.reverse(uid, request_id=ID, **fields)
    assert shop.dump() == before


def test_in_one_batch_no_unit_comes_back_twice(shop: Shop) -> None:
    uid, _, _ = static(shop, 3)
    terminal = Terminal(MALL, STORE, 7)
    requests = [
        ReverseRequest(terminal, ID, uid, (Line(100, 2),)),
        ReverseRequest(terminal, ID, uid, (Line(100, 2),)),
        ReverseRequest(terminal, shop.new_id(), uid, (Line(100, 2),)),
        ReverseRequest(terminal, shop.new_id(), uid),
        ReverseRequest(terminal, shop.new_id(), uid),
        ReverseRequest(Terminal(MALL, FAR_STORE, 7), shop.new_id(), uid),
    ]
    verdicts = [getattr(answer, "verdict", None) for answer in redemption.reverse(shop.deployment, requests)]
    yes, no = ReverseVerdict.REVERSED, ReverseVerdict.NOT_REDEEMED
    assert verdicts == [yes, yes, no, yes, no, ReverseVerdict.WRONG_STORE]
    assert counts(shop) == (10, 5)
    checked(shop)


def test_a_payload_from_before_shows_no_more_than_there_is(shop: Shop) -> None:
    """Renders before and after a reversal never share a stamp, and the record decides what an old one is worth."""
    shop.receive(10)
    uid = shop.issue(lines=FIVE).uid
    texts = {shop.show(uid)}
    shop.redeem(shop.show(uid))
    shop.reverse(uid, lines=(Line(100, 2),), release=True)
    shop.reverse(uid)
    stamps = [payload.valid_from_ms for payload in shop.render(uid).payloads]
    assert shop.show(uid) not in texts
    assert stamps[0] > shop.clock.now_ms - limits.STAMP_SKEW_S * 1000
    assert shop.redeem(texts.pop()).lines == (LineState(100, 3, 0),)
    [record] = issuance.get(shop.deployment, MALL, [uid])
    assert record is not None
    assert record.lines == (LineState(100, 3, 0),)
