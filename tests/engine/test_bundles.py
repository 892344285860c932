"""Bundles: taken apart at issue, handed out whole or not at all, also beside loose units of the same SKU."""

from __future__ import annotations

import pytest

from engine.calls import StockChange
from engine.claims import Line, LineState, State, Version
from engine.errors import InvalidInput
from engine.policies import Policy
from engine.verdict import IssueVerdict, RedeemVerdict, RenderVerdict, ReverseVerdict
from tests.engine.fold import check_against_store, fold
from tests.engine.proofs import put_provider
from tests.engine.shop import BUNDLE, MALL, NEIGHBOUR, STORE, Shop, north

LINES = (Line(BUNDLE, 3), Line(100, 2))
"""Three bundles of one unit of SKU 100 and two of SKU 101, and two loose units of SKU 100."""


@pytest.fixture
def bundled(shop: Shop) -> Shop:
    shop.put_bundle()
    shop.stock_all(20)
    return shop


def counts(shop: Shop) -> list[tuple[int, int]]:
    return [(shop.figures(sku).on_hand, shop.figures(sku).reserved) for sku in (100, 101)]


def checked(shop: Shop) -> None:
    check_against_store(fold(shop.events()), shop.deployment, shop.clock.now_ms)


def test_reserved_by_its_parts(bundled: Shop) -> None:
    record = bundled.record(bundled.issue(lines=LINES).uid)
    assert counts(bundled) == [(20, 5), (20, 6)]
    assert record.lines == (LineState(100, 3, 3), LineState(101, 6, 6), LineState(100, 2, 2))
    [bundle] = record.bundles
    assert (bundle.sku_id, bundle.units, bundle.parts) == (BUNDLE, 3, record.lines[:2])


def test_short_of_one_part_nothing_is_reserved(bundled: Shop) -> None:
    bundled.receive(5, sku_id=101, change=StockChange.COUNT)
    answer = bundled.issue(lines=LINES)
    assert (answer.verdict, answer.sku_id) == (IssueVerdict.STOCK_SHORT, 101)
    assert counts(bundled) == [(20, 0), (5, 0)]


def test_handed_out_bundle_by_bundle_never_in_pieces(bundled: Shop) -> None:
    uid = bundled.issue(lines=LINES).uid
    text = bundled.show(uid)
    part = bundled.redeem(text, lines=(Line(101, 1),))
    assert (part.verdict, part.sku_id) == (RedeemVerdict.NOTHING_LEFT, 101)
    # Three loose units of SKU 100 would only be there if a bundle were torn.
    assert bundled.redeem(text, lines=(Line(100, 3),)).verdict is RedeemVerdict.NOTHING_LEFT
    assert bundled.redeem(text, lines=(Line(BUNDLE, 4),)).verdict is RedeemVerdict.NOTHING_LEFT
    one = bundled.redeem(text, lines=(Line(BUNDLE, 1), Line(100, 2)))
    assert one.lines == (LineState(100, 1, 2), LineState(101, 2, 4), LineState(100, 2, 0))
    assert counts(bundled) == [(17, 2), (18, 4)]
    assert bundled.redeem(text).lines == (LineState(100, 2, 0), LineState(101, 4, 0))
    assert bundled.record(uid).state is State.REDEEMED
    checked(bundled)


def test_short_of_one_part_nothing_is_handed_out(bundled: Shop) -> None:
    text = bundled.show(bundled.issue(lines=LINES).uid)
    bundled.receive(1, sku_id=101, change=StockChange.COUNT)
    answer = bundled.redeem(text, lines=(Line(BUNDLE, 1),))
    assert (answer.verdict, answer.sku_id) == (RedeemVerdict.OUT_OF_STOCK, 101)
    assert counts(bundled) == [(20, 5), (1, 6)]


def test_events_say_which_of_two_lines_of_a_sku_was_meant(bundled: Shop) -> None:
    """Three units of SKU 100 in bundles and three loose: only the place in the record tells them apart."""
    uid = bundled.issue(lines=(Line(BUNDLE, 3), Line(100, 3))).uid
    bundled.redeem(bundled.show(uid), lines=(Line(100, 1),))
    event = bundled.events()[-1]
    assert (event.facts["lines"], event.facts["places"]) == ((LineState(100, 1, 2),), (2,))
    bundled.clock.tick(4)
    bundled.reverse(uid, lines=(Line(100, 1),))
    event = bundled.events()[-1]
    assert (event.facts["lines"], event.facts["places"]) == ((LineState(100, 1, 3),), (2,))
    checked(bundled)


@pytest.mark.parametrize("release", [False, True])
def test_comes_back_bundle_by_bundle(bundled: Shop, release: bool) -> None:
    uid = bundled.issue(lines=LINES).uid
    bundled.redeem(bundled.show(uid))
    part = bundled.reverse(uid, lines=(Line(101, 1),), release=release)
    assert (part.verdict, part.sku_id) == (ReverseVerdict.NOT_REDEEMED, 101)
    assert bundled.reverse(uid, lines=(Line(BUNDLE, 4),)).verdict is ReverseVerdict.NOT_REDEEMED
    back = bundled.reverse(uid, lines=(Line(BUNDLE, 2),), release=release)
    assert [line.count for line in back.lines] == [2, 4]
    assert counts(bundled) == [(17, 0), (18, 0)] if release else [(17, 2), (18, 4)]
    [bundle] = bundled.record(uid).bundles
    assert bundle.units == (1 if release else 3)
    checked(bundled)


def test_a_bundle_that_was_refunded_is_gone_for_good(bundled: Shop) -> None:
    """Nothing of it is left and nothing is out: neither can it be asked for, nor brought back, nor shrink any more."""
    uid = bundled.issue(lines=LINES).uid
    bundled.redeem(bundled.show(uid), lines=(Line(BUNDLE, 3), Line(100, 1)))
    assert bundled.reverse(uid, lines=(Line(BUNDLE, 3),), release=True).verdict.success
    assert counts(bundled) == [(19, 1), (20, 0)]
    checked(bundled)
    bundled.clock.tick(4)
    text = bundled.show(uid)
    before = bundled.dump()
    assert bundled.redeem(text, lines=(Line(BUNDLE, 1),)).verdict is RedeemVerdict.NOTHING_LEFT
    assert bundled.reverse(uid, lines=(Line(BUNDLE, 1),)).verdict is ReverseVerdict.NOT_REDEEMED
    assert bundled.dump() == before
    assert bundled.reverse(uid, lines=(Line(100, 1),), release=True).verdict.success
    assert [bundle.units for bundle in bundled.record(uid).bundles] == [0]
    bundled.clock.tick(4)
    assert bundled.redeem(bundled.show(uid)).lines == (LineState(100, 1, 0),)
    assert bundled.reverse(uid, release=True).verdict.success
    assert bundled.record(uid).state is State.VOIDED
    assert counts(bundled) == [(20, 0), (20, 0)]
    checked(bundled)


def test_what_was_reserved_is_what_is_released(bundled: Shop) -> None:
    """The catalogue may make something else of the bundle meanwhile."""
    uid = bundled.issue(lines=LINES).uid
    bundled.put_bundle(parts=((102, 7),))
    bundled.void(uid)
    assert counts(bundled) == [(20, 0), (20, 0)]
    assert bundled.figures(102).reserved == 0
    checked(bundled)


def test_a_part_that_makes_too_many_units_is_refused(bundled: Shop) -> None:
    with pytest.raises(InvalidInput) as refused:
        bundled.issue(lines=(Line(BUNDLE, 40_000),))
    assert refused.value.field == "lines[0].count"


# --- policies of bundles and of their parts ---------------------------------------------------------------------------
def test_policies_go_by_what_was_ordered(bundled: Shop) -> None:
    """A bundle's own policy holds for it, at issue and whenever it is shown; its parts' are for those who order them loose."""
    put_provider(bundled)
    bundled.put_policies(
        Policy(
            "sku",
            mall_id=MALL,
            sku_id=BUNDLE,
            customer_location="required",
            pickup_mode="static",
            code_ttl_s=600,
        ),
        Policy(
            "sku", mall_id=MALL, sku_id=101, customer_location="off", pickup_mode="valuable", code_ttl_s=60
        ),
    )
    issued = bundled.issue(lines=(Line(BUNDLE, 1),), version=None)
    record = bundled.record(issued.uid)
    assert (record.version, record.ttl_s, record.ordered_sku_ids) == (Version.STATIC, 600, (BUNDLE,))
    assert bundled.render(issued.uid).verdict is RenderVerdict.LOCATION_REQUIRED
    assert bundled.render(issued.uid, position=north(0)).verdict is RenderVerdict.RENDERED

    loose = bundled.record(bundled.issue(lines=(Line(101, 1), Line(100, 1)), version=None).uid)
    assert (loose.version, loose.ttl_s, loose.ordered_sku_ids) == (Version.VALUABLE, 60, (101, 100))
    assert bundled.render(loose.uid).verdict is RenderVerdict.RENDERED


def test_tiers_are_those_of_the_parts(bundled: Shop) -> None:
    bundled.receive(300, sku_id=101, change=StockChange.BASELINE)
    bundled.receive(10, store_id=NEIGHBOUR, sku_id=100)
    answer = bundled.issue(lines=(Line(BUNDLE, 1),), store_id=STORE)
    assert answer.verdict is IssueVerdict.ISSUED
    assert bundled.record(answer.uid).windows_bind
    bundled.receive(1000, sku_id=101, change=StockChange.BASELINE)
    answer = bundled.issue(lines=(Line(BUNDLE, 1),))
    assert (answer.verdict, answer.sku_id) == (IssueVerdict.CHANNEL_CLOSED, 101)
