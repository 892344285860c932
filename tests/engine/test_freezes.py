"""A frozen SKU: no more codes are made of it at that store, whatever was promised is handed out, and everybody can see who did it."""

from __future__ import annotations

import pytest

from engine import issuance
from engine.claims import Line
from engine.errors import InvalidInput
from engine.freezes import Freeze
from engine.verdict import HoldVerdict, IssueVerdict, RedeemVerdict
from tests.engine import shop as shops
from tests.engine.shop import BUNDLE, MALL, NEIGHBOUR, STORE, Shop, settled


@pytest.fixture(autouse=True)
def stocked(shop: Shop) -> None:
    shop.stock_all(20)
    shop.stock_all(20, store_id=NEIGHBOUR)


def test_no_more_codes_are_made_of_it_there(shop: Shop) -> None:
    shop.freeze(101)
    refused = shop.issue(lines=(Line(100, 1), Line(101, 2)))
    assert (refused.verdict, refused.sku_id) == (IssueVerdict.SKU_FROZEN, 101)
    assert shop.hold(lines=(Line(101, 1),)).verdict is HoldVerdict.SKU_FROZEN
    assert (shop.figures(100).reserved, shop.figures(101).reserved) == (0, 0)
    assert shop.issue(lines=(Line(100, 1),)).verdict is IssueVerdict.ISSUED
    assert shop.issue(lines=(Line(101, 1),), store_id=NEIGHBOUR).verdict is IssueVerdict.ISSUED


def test_a_bundle_with_a_frozen_part_is_refused(shop: Shop) -> None:
    shop.put_bundle()
    shop.freeze(101)
    refused = shop.issue(lines=(Line(BUNDLE, 1),))
    assert (refused.verdict, refused.sku_id) == (IssueVerdict.SKU_FROZEN, 101)


def test_what_was_promised_is_handed_out(shop: Shop) -> None:
    uid, held = shop.issue().uid, shop.hold().uid
    shop.freeze()
    assert shop.redeem(shop.show(uid)).verdict is RedeemVerdict.REDEEMED
    shop.confirm(held)
    assert shop.redeem(shop.show(held)).verdict is RedeemVerdict.REDEEMED
    shop.receive(5)


def test_a_retry_gets_the_code_that_was_made_before(shop: Shop) -> None:
    request = shop.issue_request(request_id="order-77")
    first = settled(issuance.issue(shop.deployment, [request])[0])
    shop.freeze()
    again = settled(issuance.issue(shop.deployment, [request])[0])
    assert (again.verdict, again.uid, again.replayed) == (IssueVerdict.ISSUED, first.uid, True)


def test_it_is_lifted_and_other_processes_know(shop: Shop) -> None:
    shop.freeze()
    [one] = shop.deployment.control.freezes()
    assert one == Freeze(MALL, STORE, 100, True, "the books differ")
    with shops.open_deployment(shop.url, shop.clock) as other:
        assert other.control.freezes() == (one,)
    shop.freeze(frozen=False)
    assert shop.deployment.control.freezes() == ()
    assert shop.issue().verdict is IssueVerdict.ISSUED


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ((0, STORE, 100, True, "why"), "mall_id"),
        ((MALL, 0, 100, True, "why"), "store_id"),
        ((MALL, STORE, 0, True, "why"), "sku_id"),
        ((MALL, STORE, 100, True, ""), "reason"),
        ((MALL, STORE, 100, True, "x" * 201), "reason"),
    ],
)
def test_a_freeze_that_is_none_is_told(fields: tuple[int, int, int, bool, str], name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Freeze(*fields)
    assert caught.value.field == name
