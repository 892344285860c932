"""Tiers of stock: each crossing is one event, either way; what stops in which tier; the bounds that policies state."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import expiry, issuance
from engine.calls import StockChange
from engine.claims import Channel, Decision, Line, Tier, Version
from engine.policies import Policy, Tiers
from engine.state.events import Event, EventType
from engine.verdict import HoldVerdict, IssueVerdict, RedeemVerdict
from tests.engine.fold import check_against_store, fold
from tests.engine.shop import BUNDLE, FAR_STORE, MALL, NEIGHBOUR, STORE, Shop

CROSSING = tuple[int, int, int]
"""SKU, tier before, tier after."""


def crossings(shop: Shop) -> list[CROSSING]:
    return [
        (event.facts["sku_id"], event.facts["old"], event.facts["tier"])
        for event in shop.events()
        if event.type is EventType.TIER
    ]


def last(shop: Shop) -> Event:
    return [event for event in shop.events() if event.type is EventType.TIER][-1]


def full(shop: Shop, *, sku_id: int = 100, store_id: int = STORE) -> None:
    """A hundred units of a baseline of a hundred: what is left is a percentage."""
    shop.receive(100, sku_id=sku_id, store_id=store_id)
    shop.receive(100, sku_id=sku_id, store_id=store_id, change=StockChange.BASELINE)


def take(shop: Shop, count: int, **fields: object) -> bytes:
    answer = shop.issue(lines=(Line(100, count),), channel=Channel.STAFF, **fields)
    assert answer.verdict.success
    return answer.uid


def checked(shop: Shop) -> None:
    check_against_store(fold(shop.events()), shop.deployment, shop.clock.now_ms)


@pytest.mark.parametrize(
    ("available", "tier"),
    [(100, 0), (30, 0), (29, 1), (11, 1), (10, 2), (6, 2), (5, 3), (2, 3), (1, 4), (0, 4)],
)
def test_bounds_downwards(shop: Shop, available: int, tier: int) -> None:
    full(shop)
    if available < 100:
        take(shop, 100 - available)
    assert shop.figures().tier == tier
    assert crossings(shop) == ([(100, 0, tier)] if tier else [])
    checked(shop)


@pytest.mark.parametrize(
    ("available", "tier"),
    [(1, 4), (3, 4), (4, 3), (7, 3), (8, 2), (12, 2), (13, 1), (31, 1), (32, 0), (100, 0)],
)
def test_bounds_upwards_lie_two_points_higher(shop: Shop, available: int, tier: int) -> None:
    full(shop)
    uid = take(shop, 100)
    shop.receive(100 + available, change=StockChange.COUNT)
    assert shop.figures().tier == tier
    assert crossings(shop) == [(100, 0, 4), (100, 4, tier)][: 1 + (tier < 4)]
    shop.void(uid)
    assert shop.figures().tier == 0
    checked(shop)


def test_stock_that_wavers_about_a_bound_crosses_it_once(shop: Shop) -> None:
    full(shop)
    take(shop, 70)
    for _ in range(5):
        uid = take(shop, 1)
        shop.void(uid)
    assert crossings(shop) == [(100, 0, 1)]


def test_every_crossing_says_the_figures_it_led_to(shop: Shop) -> None:
    full(shop)
    take(shop, 95)
    event = last(shop)
    assert (event.mall_id, event.store_id) == (MALL, STORE)
    assert {name: event.facts[name] for name in ("sku_id", "old", "on_hand", "reserved", "baseline", "tier")} == {
        "sku_id": 100, "old": 0, "on_hand": 100, "reserved": 95, "baseline": 100, "tier": 3,
    }  # fmt: skip
    before = [event.type for event in shop.events()][-2:]
    assert before == [EventType.ISSUED, EventType.TIER]


def test_no_baseline_no_tiers(shop: Shop) -> None:
    shop.receive(10)
    take(shop, 10)
    assert crossings(shop) == []
    shop.receive(100, change=StockChange.BASELINE)
    assert crossings(shop) == [(100, 0, 4)]
    shop.receive(0, change=StockChange.BASELINE)
    assert crossings(shop) == [(100, 0, 4), (100, 4, 0)]


def test_a_redemption_crosses_nothing_a_refund_may(shop: Shop) -> None:
    """What is handed out was promised before: available stays."""
    full(shop)
    issued = shop.issue(lines=(Line(100, 80),), version=Version.STATIC)
    before = crossings(shop)
    shop.redeem(issued.typed, pin=issued.pin)
    assert crossings(shop) == before == [(100, 0, 1)]
    shop.reverse(issued.uid, lines=(Line(100, 10),))
    assert crossings(shop) == before
    shop.reverse(issued.uid, release=True)
    assert crossings(shop) == [*before, (100, 1, 0)]
    checked(shop)


def test_one_code_that_crosses_for_several_skus(shop: Shop) -> None:
    """One event for each SKU, in their order, behind the one that caused them; those it doesn't move have none."""
    shop.put_bundle(parts=((102, 1), (100, 2)))
    for sku in (100, 101, 102, 103):
        full(shop, sku_id=sku)
    uid = shop.issue(lines=(Line(BUNDLE, 45), Line(101, 90), Line(103, 20))).uid
    assert crossings(shop) == [(100, 0, 2), (101, 0, 2)]
    assert [event.type for event in shop.events()][-3:] == [EventType.ISSUED, EventType.TIER, EventType.TIER]
    shop.void(uid)
    assert crossings(shop)[2:] == [(100, 2, 0), (101, 2, 0)]
    checked(shop)


def test_one_sku_in_two_lines_crosses_once(shop: Shop) -> None:
    """Loose and in a bundle: each line alone would stop at another tier."""
    shop.put_bundle(parts=((100, 1),))
    full(shop)
    shop.issue(lines=(Line(BUNDLE, 75), Line(100, 20)))
    assert crossings(shop) == [(100, 0, 3)]


def test_within_one_batch_each_sees_the_tier_that_the_one_before_left(shop: Shop) -> None:
    full(shop)
    requests = [
        shop.issue_request(lines=(Line(100, 70),)),
        shop.issue_request(lines=(Line(100, 5),)),
        shop.issue_request(lines=(Line(100, 15),)),
        shop.issue_request(channel=Channel.PROMOTION),
        shop.issue_request(lines=(Line(100, 5),)),
        shop.issue_request(),
        shop.issue_request(channel=Channel.STAFF),
    ]
    answers = issuance.issue(shop.deployment, requests)
    verdicts = [getattr(answer, "verdict", None) for answer in answers]
    yes = IssueVerdict.ISSUED
    assert verdicts == [yes, yes, yes, IssueVerdict.PROMOTION_STOPPED, yes, IssueVerdict.CHANNEL_CLOSED, yes]
    assert crossings(shop) == [(100, 0, 1), (100, 1, 2), (100, 2, 3)]
    bound = [shop.record(answer.uid).windows_bind for answer in answers if getattr(answer, "uid", b"")]  # type: ignore[union-attr]
    # The code that made stock tight isn't bound itself: its customer ordered before.
    assert bound == [False, False, True, True, True]


@pytest.mark.parametrize(
    ("tier", "online", "promotion"),
    [
        (Tier.NORMAL, IssueVerdict.ISSUED, IssueVerdict.ISSUED),
        (Tier.TIGHT, IssueVerdict.ISSUED, IssueVerdict.ISSUED),
        (Tier.RED, IssueVerdict.ISSUED, IssueVerdict.PROMOTION_STOPPED),
        (Tier.CLOSED, IssueVerdict.CHANNEL_CLOSED, IssueVerdict.PROMOTION_STOPPED),
        (Tier.EMERGENCY, IssueVerdict.CHANNEL_CLOSED, IssueVerdict.PROMOTION_STOPPED),
    ],
)
def test_what_stops_in_which_tier(
    shop: Shop, tier: Tier, online: IssueVerdict, promotion: IssueVerdict
) -> None:
    """Staff are never stopped before the stock is; nor is a customer who has paid."""
    full(shop)
    paid = shop.issue(version=Version.STATIC)
    left = {Tier.NORMAL: 50, Tier.TIGHT: 25, Tier.RED: 9, Tier.CLOSED: 4, Tier.EMERGENCY: 1}[tier]
    take(shop, 99 - left)
    assert shop.figures().tier == tier
    assert shop.issue(channel=Channel.PROMOTION).verdict is promotion
    if online is IssueVerdict.ISSUED:
        assert shop.void(shop.hold().uid).verdict.success
    else:
        assert shop.hold().verdict is HoldVerdict.CHANNEL_CLOSED
    assert shop.issue(channel=Channel.ONLINE, lines=(Line(100, left + 1),)).verdict is (
        IssueVerdict.STOCK_SHORT if online is IssueVerdict.ISSUED else online
    )
    assert shop.void(shop.issue(channel=Channel.STAFF).uid).verdict.success
    assert shop.redeem(paid.typed, pin=paid.pin).verdict is RedeemVerdict.REDEEMED
    checked(shop)


def test_releases_and_arrivals_cross_upwards(shop: Shop) -> None:
    """Expiry, a reviewer's void and goods from another store give back what they release; each crossing once."""
    full(shop)
    take(shop, 40, ttl_s=100)
    issued = shop.issue(lines=(Line(100, 40),), version=Version.STATIC)
    shop.lock(issued.uid)
    assert crossings(shop) == [(100, 0, 1)]
    shop.decide(issued.uid, Decision.VOID)
    assert crossings(shop)[1:] == [(100, 1, 0)]
    take(shop, 55)
    assert crossings(shop)[2:] == [(100, 0, 3)]
    shop.clock.tick(172)
    expiry.sweep(shop.deployment)
    assert crossings(shop)[3:] == [(100, 3, 0)]
    shop.transfer(25, to_store_id=NEIGHBOUR)
    assert crossings(shop)[4:] == [(100, 0, 1)]
    shop.transfer(20, from_store_id=NEIGHBOUR, to_store_id=STORE)
    assert crossings(shop)[5:] == [(100, 1, 0)]
    checked(shop)


def test_short_of_what_was_promised(shop: Shop) -> None:
    """A stocktake below what is reserved: nothing is available, the first to come are served, and nothing goes below zero."""
    full(shop)
    codes = [shop.issue(lines=(Line(100, 3),), version=Version.STATIC) for _ in range(3)]
    shop.receive(5, change=StockChange.COUNT)
    figures = shop.figures()
    assert (figures.on_hand, figures.reserved, figures.available, figures.short) == (5, 9, 0, 4)
    assert figures.tier == Tier.EMERGENCY
    verdicts = [shop.redeem(code.typed, pin=code.pin).verdict for code in codes]
    assert verdicts == [RedeemVerdict.REDEEMED, RedeemVerdict.OUT_OF_STOCK, RedeemVerdict.OUT_OF_STOCK]
    assert shop.redeem(codes[1].typed, pin=codes[1].pin, lines=(Line(100, 2),)).verdict.success
    figures = shop.figures()
    assert (figures.on_hand, figures.reserved, figures.short) == (0, 4, 4)
    shop.receive(4)
    assert shop.figures().tier == Tier.EMERGENCY
    assert [shop.redeem(code.typed, pin=code.pin).verdict.slug for code in codes[1:]] == ["REDEEMED"] * 2
    checked(shop)


# --- bounds that policies state -------------------------------------------------------------------------------------------
WIDE = Tiers(tight_percent=80, red_percent=60, closed_percent=40, emergency_percent=20, hysteresis_percent=5)


@pytest.mark.parametrize(
    ("policy", "tiers_of"),
    [
        (Policy("deployment", tiers=WIDE), (2, 2, 2)),
        (Policy("store", store_id=STORE, tiers=WIDE), (2, 0, 2)),
        (Policy("sku", mall_id=MALL, sku_id=100, tiers=WIDE), (2, 2, 0)),
    ],
)
def test_bounds_are_those_of_the_policy(shop: Shop, policy: Policy, tiers_of: tuple[int, int, int]) -> None:
    """In force in every partition; judged whenever the figures change."""
    places = [(STORE, 100), (FAR_STORE, 100), (STORE, 101)]
    for store_id, sku_id in places:
        full(shop, store_id=store_id, sku_id=sku_id)
    shop.put_policies(policy)
    for store_id, sku_id in places:
        shop.issue(lines=(Line(sku_id, 45),), store_id=store_id)
    assert tuple(shop.figures(sku_id, store_id=store_id).tier for store_id, sku_id in places) == tiers_of
    shop.put_policies(
        Policy("store", store_id=STORE), Policy("deployment"), Policy("sku", mall_id=MALL, sku_id=100)
    )
    for store_id, sku_id in places:
        shop.receive(1, sku_id=sku_id, store_id=store_id)
    assert {shop.figures(sku_id, store_id=store_id).tier for store_id, sku_id in places} == {0}
    checked(shop)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    baseline=st.integers(1, 400),
    bounds=st.lists(st.integers(1, 15), min_size=4, max_size=4),
    hysteresis=st.integers(0, 4),
    counts=st.lists(st.integers(0, 400), min_size=1, max_size=12),
)
def test_tiers_by_a_second_reckoning(
    shop: Shop, baseline: int, bounds: list[int], hysteresis: int, counts: list[int]
) -> None:
    """In whole numbers, without any division: available × 100 against (bound + slack) × baseline."""
    emergency = bounds[0]
    closed = emergency + hysteresis + bounds[1]
    red = closed + hysteresis + bounds[2]
    tight = red + hysteresis + bounds[3]
    shop.put_policies(Policy("deployment", tiers=Tiers(tight, red, closed, emergency, hysteresis)))

    def judged(available: int, slack: int) -> int:
        share = available * 100
        return (
            (share < (tight + slack) * baseline)
            + (share <= (red + slack) * baseline)
            + (share <= (closed + slack) * baseline)
            + (share <= (emergency + slack) * baseline)
        )

    shop.receive(baseline, change=StockChange.BASELINE)
    tier = shop.figures().tier
    for count in counts:
        shop.receive(count, change=StockChange.COUNT)
        now = judged(count, 0)
        tier = now if now >= tier else min(tier, judged(count, hysteresis))
        assert shop.figures().tier == tier
    fold(shop.events())
