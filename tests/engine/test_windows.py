"""Pickup windows bind the codes that were issued while stock was tight, for as long as they live, and no others."""

from __future__ import annotations

import pytest

from engine import limits
from engine.calls import StockChange
from engine.claims import Line, State, Version
from engine.hours import Hours, Window
from engine.verdict import InspectVerdict, Next, RedeemVerdict
from tests.engine.shop import BUNDLE, Shop, attempts


@pytest.fixture
def tight(shop: Shop) -> Shop:
    """Ten of a hundred would be red: there are twenty. In ten minutes an hour's window begins."""
    shop.receive(100, change=StockChange.BASELINE)
    shop.receive(20)
    # Shanghai is eight hours ahead all year.
    now_min = shop.clock.now_s // 60 + 8 * 60
    shop.put_store(pickup_windows=(Window((now_min + 10) % 1440, (now_min + 70) % 1440, name="晚市"),))
    return shop


def count(shop: Shop, units: int) -> None:
    shop.receive(units, change=StockChange.COUNT)


def test_refused_outside_and_served_inside(tight: Shop) -> None:
    uid = tight.issue().uid
    tried = attempts(tight.deployment)
    answer = tight.redeem(tight.show(uid))
    assert answer.verdict is RedeemVerdict.OUTSIDE_WINDOW
    assert answer.window.startswith("晚市 ")
    assert tight.inspect(tight.show(uid)).verdict is InspectVerdict.OUTSIDE_WINDOW
    assert attempts(tight.deployment) == tried + 1
    tight.clock.tick(10 * 60 - 1)
    assert tight.redeem(tight.show(uid)).verdict is RedeemVerdict.OUTSIDE_WINDOW
    tight.clock.tick(1)
    assert tight.redeem(tight.show(uid)).verdict is RedeemVerdict.REDEEMED


def test_over_when_the_window_is_over(tight: Shop) -> None:
    uid = tight.issue().uid
    tight.clock.tick(70 * 60 - 1)
    assert tight.inspect(tight.show(uid)).verdict.success
    tight.clock.tick(1)
    assert tight.redeem(tight.show(uid)).verdict is RedeemVerdict.OUTSIDE_WINDOW
    assert tight.record(uid).tries == 0


def test_what_was_issued_before_keeps_its_terms(tight: Shop) -> None:
    count(tight, 100)
    free = tight.issue().uid
    count(tight, 20)
    assert tight.redeem(tight.show(free)).verdict is RedeemVerdict.REDEEMED


def test_what_was_issued_then_keeps_its_terms_too(tight: Shop) -> None:
    bound = tight.issue().uid
    count(tight, 100)
    assert tight.redeem(tight.show(bound)).verdict is RedeemVerdict.OUTSIDE_WINDOW


def test_a_hold_is_bound_by_the_stock_of_its_own_time(tight: Shop) -> None:
    """The customer was told the terms when ordering, not when paying."""
    bound = tight.hold().uid
    count(tight, 100)
    free = tight.hold().uid
    count(tight, 20)
    for uid in (bound, free):
        tight.confirm(uid)
    assert tight.redeem(tight.show(bound)).verdict is RedeemVerdict.OUTSIDE_WINDOW
    assert tight.redeem(tight.show(free)).verdict is RedeemVerdict.REDEEMED


@pytest.mark.parametrize("lines", [(Line(101, 1), Line(100, 1)), (Line(BUNDLE, 1),)])
def test_one_tight_line_binds_the_whole_code(tight: Shop, lines: tuple[Line, ...]) -> None:
    tight.receive(10, sku_id=101)
    tight.put_bundle()
    uid = tight.issue(lines=lines).uid
    assert tight.record(uid).windows_bind
    assert tight.redeem(tight.show(uid)).verdict is RedeemVerdict.OUTSIDE_WINDOW
    other = tight.issue(lines=(Line(101, 1),)).uid
    assert tight.redeem(tight.show(other)).verdict is RedeemVerdict.REDEEMED


def test_a_store_without_windows_binds_nobody(tight: Shop) -> None:
    """Also when its windows were taken away after the issue: otherwise the code could never be handed out."""
    uid = tight.issue().uid
    tight.put_store()
    assert tight.record(uid).windows_bind
    assert tight.redeem(tight.show(uid)).verdict is RedeemVerdict.REDEEMED


def test_a_reversal_does_not_set_a_code_free_of_its_windows(tight: Shop) -> None:
    uid = tight.issue(lines=(Line(100, 2),)).uid
    tight.clock.tick(60 * 60)
    assert tight.redeem(tight.show(uid)).verdict.success
    tight.clock.tick(10 * 60)
    assert tight.reverse(uid).verdict.success
    assert tight.record(uid).state is State.LIVE
    assert tight.redeem(tight.show(uid)).verdict is RedeemVerdict.OUTSIDE_WINDOW


def test_outside_the_window_a_wrong_pin_still_counts(tight: Shop) -> None:
    """The second factor is asked before the window: guessing is not free at night."""
    issued = tight.issue(version=Version.STATIC)
    wrong = f"{(int(issued.pin) + 1) % 1_000_000:06d}"
    verdicts = [tight.redeem(issued.typed, pin=wrong).verdict for _ in range(limits.TRIES_MAX)]
    assert verdicts == [RedeemVerdict.PIN_WRONG, RedeemVerdict.PIN_WRONG, RedeemVerdict.LOCKED]


def test_a_store_that_is_not_open_says_when_it_is(shop: Shop) -> None:
    """Before it opens it is not out of business; closed until further notice it names no time."""
    shop.receive()
    text = shop.show(shop.issue().uid)
    # 1 800 000 000 is 2027-01-15 16:00 in Shanghai.
    shop.put_store(opening_hours=(Hours(17 * 60, 60),))
    before = shop.redeem(text)
    assert before.verdict is RedeemVerdict.STORE_CLOSED
    assert before.window == "2027-01-15 17:00-01:00"
    assert shop.inspect(text).window == before.window
    zh, en = before.verdict.say(window=before.window)
    assert before.window in zh
    assert before.window in en
    assert before.verdict.next is Next.RETRY
    shop.put_store(opening_hours=(Hours(17 * 60, 60),), closed=True)
    closed = shop.redeem(text)
    assert (closed.verdict, closed.window) == (RedeemVerdict.STORE_CLOSED, "")
    assert "closed until further notice" in closed.verdict.say(window=closed.window)[1]
