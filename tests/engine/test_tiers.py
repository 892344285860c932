"""Tiers of stock: each crossing one event, some slack upwards, what each stops, and that who has paid is served."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from engine import expiry, limits, stock
from engine.calls import StockAnswer, StockChange
from engine.claims import Channel, Line, Tier
from engine.hours import Window
from engine.policies import Policy, Tiers
from engine.state.events import Event, EventType
from engine.verdict import HoldVerdict, IssueVerdict, RedeemVerdict
from tests.engine.fold import check_against_store, fold
from tests.engine.shop import MALL, NEIGHBOUR, STORE, Shop, settled

BASELINE = 1000


@pytest.fixture
def full(shop: Shop) -> Shop:
    """All that the baseline asks for is there."""
    shop.receive(BASELINE)
    shop.receive(BASELINE, change=StockChange.BASELINE)
    assert crossings(shop) == []
    return shop


def crossings(shop: Shop) -> list[tuple[Tier, Tier]]:
    """Tiers before and after each crossing, in order."""
    return [
        (Tier(event.facts["old"]), Tier(event.facts["tier"]))
        for event in shop.events()
        if event.type is EventType.TIER
    ]


def count(shop: Shop, units: int) -> Tier:
    """Have so many on hand."""
    answer = shop.receive(units, change=StockChange.COUNT)
    assert answer.figures is not None
    return Tier(answer.figures.tier)


def expected(available: int, before: Tier, bounds: Tiers) -> Tier:
    """The tier by its definition: downwards at a bound, upwards only with the slack above it."""

    def at(percent: float) -> Tier:
        if percent <= bounds.emergency_percent:
            return Tier.EMERGENCY
        if percent <= bounds.closed_percent:
            return Tier.CLOSED
        if percent <= bounds.red_percent:
            return Tier.RED
        return Tier.TIGHT if percent < bounds.tight_percent else Tier.NORMAL

    percent = available * 100 / BASELINE
    return at(percent) if at(percent) >= before else min(before, at(percent - bounds.hysteresis_percent))


@pytest.mark.parametrize("bounds", [Tiers(), Tiers(60, 40, 20, 10, 5), Tiers(30, 20, 10, 0, 0)])
def test_all_the_way_down_and_up(full: Shop, bounds: Tiers) -> None:
    full.put_policies(Policy("deployment", tiers=bounds))
    # Every percent, and the unit on either side of it.
    way = sorted({unit + by for unit in range(10, BASELINE, 10) for by in (-1, 0, 1)} | {0, 1, BASELINE})
    levels = [*reversed(way), *way]
    requests = [full.stock_request(units, change=StockChange.COUNT) for units in levels]
    tiers = [Tier.NORMAL]
    for start in range(0, len(requests), limits.BATCH_MAX):
        for answer in stock.change(full.deployment, requests[start : start + limits.BATCH_MAX]):
            figures = settled(answer).figures
            assert figures is not None
            tiers.append(Tier(figures.tier))
    wanted = [Tier.NORMAL]
    for units in levels:
        wanted.append(expected(units, wanted[-1], bounds))
    assert tiers == wanted
    assert set(tiers) == set(Tier)
    assert crossings(full) == [(old, new) for old, new in pairwise(wanted) if old is not new]
    assert len(crossings(full)) == 8
    check_against_store(fold(full.events()), full.deployment, full.clock.now_ms)


def test_stock_that_wavers_about_a_bound_crosses_it_once(full: Shop) -> None:
    for _ in range(5):
        count(full, 299)
        count(full, 301)
    assert crossings(full) == [(Tier.NORMAL, Tier.TIGHT)]
    count(full, 320)
    assert crossings(full) == [(Tier.NORMAL, Tier.TIGHT), (Tier.TIGHT, Tier.NORMAL)]


def test_a_fall_through_several_tiers_is_one_crossing(full: Shop) -> None:
    count(full, 0)
    count(full, BASELINE)
    assert crossings(full) == [(Tier.NORMAL, Tier.EMERGENCY), (Tier.EMERGENCY, Tier.NORMAL)]


def test_without_a_baseline_there_are_no_tiers(shop: Shop) -> None:
    shop.receive(1)
    assert count(shop, 0) is Tier.NORMAL
    shop.receive(10, change=StockChange.BASELINE)
    assert crossings(shop) == [(Tier.NORMAL, Tier.EMERGENCY)]
    shop.receive(0, change=StockChange.BASELINE)
    assert crossings(shop)[1:] == [(Tier.EMERGENCY, Tier.NORMAL)]


def test_every_verb_that_moves_what_is_available_crosses(full: Shop) -> None:
    """Issue, hold, void, expiry and transfer do; redeem and a reversal for the same code only move what was promised anyway."""
    lines = (Line(100, 750),)

    def tier() -> Tier:
        return Tier(full.figures().tier)

    uid = full.issue(lines=lines).uid
    assert tier() is Tier.TIGHT
    full.void(uid)
    assert tier() is Tier.NORMAL
    full.hold(lines=lines)
    assert tier() is Tier.TIGHT
    full.clock.tick(limits.HOLD_S_DEFAULT + 71)
    assert expiry.sweep(full.deployment).expired == 1
    assert tier() is Tier.NORMAL
    uid = full.issue(lines=lines).uid
    seen = len(crossings(full))
    full.redeem(full.show(uid))
    full.reverse(uid)
    assert len(crossings(full)) == seen
    full.redeem(full.show(uid))
    full.reverse(uid, release=True)
    assert tier() is Tier.NORMAL
    full.transfer(750)
    assert tier() is Tier.TIGHT
    assert len(crossings(full)) == 7
    check_against_store(fold(full.events()), full.deployment, full.clock.now_ms)


UNITS_OF = {Tier.NORMAL: 500, Tier.TIGHT: 200, Tier.RED: 100, Tier.CLOSED: 50, Tier.EMERGENCY: 10}
STOPPED_AT = {Channel.ONLINE: Tier.CLOSED, Channel.PROMOTION: Tier.RED, Channel.STAFF: None}


@pytest.mark.parametrize("channel", Channel)
@pytest.mark.parametrize("tier", Tier)
def test_what_a_tier_stops(full: Shop, tier: Tier, channel: Channel) -> None:
    assert count(full, UNITS_OF[tier]) is tier
    at = STOPPED_AT[channel]
    stopped = at is not None and tier >= at
    refusal = "PROMOTION_STOPPED" if channel is Channel.PROMOTION else "CHANNEL_CLOSED"
    before = full.dump()
    answers = full.issue(channel=channel), full.hold(channel=channel)
    if stopped:
        assert [answer.verdict for answer in answers] == [IssueVerdict[refusal], HoldVerdict[refusal]]
        assert [answer.sku_id for answer in answers] == [100, 100]
        assert full.dump() == before
        return
    assert [answer.verdict for answer in answers] == [IssueVerdict.ISSUED, HoldVerdict.HELD]
    assert all(full.record(answer.uid).windows_bind == (tier >= Tier.TIGHT) for answer in answers)


def test_the_sku_that_stops_is_named_and_the_others_stay_free(full: Shop) -> None:
    full.receive(10, sku_id=101)
    count(full, 50)
    answer = full.issue(lines=(Line(101, 1), Line(100, 1)))
    assert (answer.verdict, answer.sku_id) == (IssueVerdict.CHANNEL_CLOSED, 100)
    assert full.figures(101).reserved == 0
    assert full.issue(lines=(Line(101, 1),)).verdict.success


def test_the_order_that_crosses_is_the_last_that_is_let_through(full: Shop) -> None:
    count(full, 100 + 1)
    promotion: dict[str, Any] = {"channel": Channel.PROMOTION}
    assert full.issue(**promotion).verdict is IssueVerdict.ISSUED
    assert full.issue(**promotion).verdict is IssueVerdict.PROMOTION_STOPPED


def test_who_has_paid_is_served_while_there_is_a_unit(full: Shop) -> None:
    uids = [full.issue().uid for _ in range(3)]
    assert count(full, 2) is Tier.EMERGENCY
    verdicts = [full.redeem(full.show(uid)).verdict for uid in uids]
    assert verdicts == [RedeemVerdict.REDEEMED, RedeemVerdict.REDEEMED, RedeemVerdict.OUT_OF_STOCK]
    assert full.figures().short == 1


# --- windows ------------------------------------------------------------------------------------------------------
def _window(shop: Shop, from_min: int, to_min: int) -> None:
    """A pickup window from so many minutes from now to so many; Shanghai is eight hours ahead all year."""
    now_min = shop.clock.now_s // 60 + 8 * 60
    shop.put_store(
        pickup_windows=(Window((now_min + from_min) % 1440, (now_min + to_min) % 1440, name="晚市"),)
    )


def test_windows_bind_what_is_issued_while_it_is_tight(full: Shop) -> None:
    _window(full, 10, 70)
    early = full.issue().uid
    count(full, 200)
    late = full.issue().uid
    assert full.redeem(full.show(early)).verdict is RedeemVerdict.REDEEMED
    answer = full.redeem(full.show(late))
    assert answer.verdict is RedeemVerdict.OUTSIDE_WINDOW
    assert answer.window.startswith("晚市 ")
    full.clock.tick(10 * 60)
    assert full.redeem(full.show(late)).verdict is RedeemVerdict.REDEEMED


def test_terms_are_those_of_the_issue_whatever_the_tier_becomes(full: Shop) -> None:
    _window(full, 10, 70)
    count(full, 200)
    bound = full.issue().uid
    count(full, BASELINE)
    assert full.redeem(full.show(bound)).verdict is RedeemVerdict.OUTSIDE_WINDOW
    free = full.issue().uid
    count(full, 0)
    assert full.redeem(full.show(free)).verdict is RedeemVerdict.OUT_OF_STOCK


def test_one_tight_line_binds_the_code(full: Shop) -> None:
    full.receive(10, sku_id=101)
    count(full, 200)
    assert full.record(full.issue(lines=(Line(101, 1), Line(100, 1))).uid).windows_bind
    assert not full.record(full.issue(lines=(Line(101, 1),)).uid).windows_bind


def test_a_store_without_windows_binds_nobody(full: Shop) -> None:
    count(full, 200)
    uid = full.issue().uid
    assert full.record(uid).windows_bind
    assert full.redeem(full.show(uid)).verdict is RedeemVerdict.REDEEMED


# --- bounds by policy ---------------------------------------------------------------------------------------------
def test_the_most_specific_bounds_judge(shop: Shop) -> None:
    for store_id in (STORE, NEIGHBOUR):
        for sku_id in (100, 101):
            shop.receive(100, sku_id=sku_id, store_id=store_id)
            shop.receive(100, sku_id=sku_id, store_id=store_id, change=StockChange.BASELINE)
    shop.put_policies(
        Policy("deployment", tiers=Tiers(60, 5, 3, 1, 1)),
        Policy("store", store_id=STORE, tiers=Tiers(70, 60, 3, 1, 1)),
        Policy("sku", mall_id=MALL, sku_id=101, tiers=Tiers(80, 70, 60, 1, 1)),
    )
    tiers = {}
    for store_id in (STORE, NEIGHBOUR):
        for sku_id in (100, 101):
            answer = shop.receive(55, sku_id=sku_id, store_id=store_id, change=StockChange.COUNT)
            assert isinstance(answer, StockAnswer)
            assert answer.figures is not None
            tiers[store_id, sku_id] = Tier(answer.figures.tier)
    assert tiers == {
        (STORE, 100): Tier.RED,
        (STORE, 101): Tier.CLOSED,
        (NEIGHBOUR, 100): Tier.TIGHT,
        (NEIGHBOUR, 101): Tier.CLOSED,
    }


def test_new_bounds_count_from_the_next_change_of_the_figures(full: Shop) -> None:
    count(full, 500)
    full.put_policies(Policy("deployment", tiers=Tiers(60, 10, 5, 1, 2)))
    assert full.figures().tier == Tier.NORMAL
    full.issue()
    assert crossings(full) == [(Tier.NORMAL, Tier.TIGHT)]
    full.put_policies(Policy("deployment"))
    full.issue()
    assert crossings(full)[1:] == [(Tier.TIGHT, Tier.NORMAL)]


def test_a_crossing_is_numbered_behind_the_change_that_caused_it(full: Shop) -> None:
    issued = full.issue(lines=(Line(100, 750),))
    change, crossing = full.events()[-2:]
    assert isinstance(crossing, Event)
    assert (change.type, crossing.type) == (EventType.ISSUED, EventType.TIER)
    assert issued.event == change.id
    assert (crossing.mall_id, crossing.store_id, crossing.facts["sku_id"]) == (MALL, STORE, 100)
    figures = full.figures()
    assert {name: crossing.facts[name] for name in ("on_hand", "reserved", "baseline", "tier")} == {
        "on_hand": figures.on_hand,
        "reserved": figures.reserved,
        "baseline": figures.baseline,
        "tier": figures.tier,
    }
