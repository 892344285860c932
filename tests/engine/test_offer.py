"""Which stores can serve an order: near, open, and with enough of everything for the channel."""

from __future__ import annotations

from typing import Any

import pytest

from engine import offer
from engine.calls import IssueAnswer, StockChange, StockFigures
from engine.claims import Channel, Line, Tier
from engine.errors import InvalidInput, UnknownMall
from engine.hours import Hours
from engine.offer import Offer, OfferRequest, can_promise
from engine.verdict import IssueVerdict
from tests.engine.shop import BUNDLE, FAR_STORE, MALL, NEIGHBOUR, OTHER_MALL, STORE, Shop, north


def find(shop: Shop, **fields: Any) -> list[Offer]:
    return offer.find(shop.deployment, OfferRequest(**{"mall_id": MALL, "position": north(0), **fields}))


def ids(offers: list[Offer]) -> list[int]:
    return [one.store.store_id for one in offers]


@pytest.fixture
def spread(shop: Shop) -> Shop:
    """STORE is at the place, NEIGHBOUR about 1 km north of it, FAR_STORE 5 km."""
    for store_id, metres in ((NEIGHBOUR, 1_000), (FAR_STORE, 5_000)):
        shop.put_store(store_id, latitude_deg=north(metres).latitude_deg)
    return shop


def test_nearest_first_with_their_distances(spread: Shop) -> None:
    found = find(spread)
    assert ids(found) == [STORE, NEIGHBOUR, FAR_STORE]
    assert [one.distance_m for one in found] == pytest.approx([0, 1_000, 5_000], abs=5)
    assert ids(find(spread, position=north(4_000))) == [FAR_STORE, NEIGHBOUR, STORE]
    assert ids(find(spread, distance_m_max=2_000.0)) == [STORE, NEIGHBOUR]
    assert ids(find(spread, count_max=1)) == [STORE]


def test_only_those_that_have_all_of_it(spread: Shop) -> None:
    spread.receive(5, store_id=NEIGHBOUR)
    spread.receive(9, store_id=FAR_STORE)
    spread.receive(9, store_id=FAR_STORE, sku_id=101)
    assert ids(find(spread, lines=(Line(100, 5),))) == [NEIGHBOUR, FAR_STORE]
    assert ids(find(spread, lines=(Line(100, 6),))) == [FAR_STORE]
    (found,) = find(spread, lines=(Line(100, 5), Line(101, 1)))
    assert found.figures == (StockFigures(100, 9, 0, 0, 0), StockFigures(101, 9, 0, 0, 0))
    # What is promised to others is not there.
    spread.issue(store_id=NEIGHBOUR)
    assert ids(find(spread, lines=(Line(100, 5),))) == [FAR_STORE]
    assert find(spread, lines=(Line(100, 10),)) == []


def test_a_bundle_needs_its_parts_beside_what_else_is_ordered(spread: Shop) -> None:
    spread.put_bundle()
    spread.receive(3)
    spread.receive(4, sku_id=101)
    assert ids(find(spread, lines=(Line(BUNDLE, 2),))) == [STORE]
    assert ids(find(spread, lines=(Line(BUNDLE, 2), Line(100, 1)))) == [STORE]
    assert find(spread, lines=(Line(BUNDLE, 2), Line(100, 2))) == []
    assert find(spread, lines=(Line(BUNDLE, 3),)) == []


def test_what_an_offer_promises_an_issue_keeps(spread: Shop) -> None:
    spread.put_bundle()
    spread.receive(3)
    spread.receive(4, sku_id=101)
    lines = (Line(BUNDLE, 2), Line(100, 1))
    assert ids(find(spread, lines=lines)) == [STORE]
    issued: IssueAnswer = spread.issue(lines=lines)
    assert issued.verdict is IssueVerdict.ISSUED
    assert find(spread, lines=(Line(100, 1),)) == []


def test_a_channel_that_is_closed_for_a_sku_gets_no_offer(spread: Shop) -> None:
    spread.receive(10)
    spread.receive(100, change=StockChange.BASELINE)
    lines = (Line(100, 1),)
    assert spread.figures().tier == Tier.RED
    assert ids(find(spread, lines=lines)) == [STORE]
    assert find(spread, lines=lines, channel=Channel.PROMOTION) == []
    spread.receive(-6, change=StockChange.ADJUST_BY)
    assert spread.figures().tier == Tier.CLOSED
    assert find(spread, lines=lines) == []
    assert ids(find(spread, lines=lines, channel=Channel.STAFF)) == [STORE]


@pytest.mark.parametrize("channel", Channel)
@pytest.mark.parametrize("on_hand", [0, 1, 4, 6, 9, 11, 29, 40])
def test_can_promise_says_what_the_issue_would(shop: Shop, channel: Channel, on_hand: int) -> None:
    shop.receive(100, change=StockChange.BASELINE)
    shop.receive(on_hand, change=StockChange.COUNT)
    for count in (1, 5):
        expected = can_promise(shop.figures(), count, channel)
        answer = shop.hold(lines=(Line(100, count),), channel=channel)
        assert answer.verdict.success == expected
        if answer.verdict.success:
            shop.void(answer.uid)


def test_closed_stores_are_left_out_or_say_when_they_open(spread: Shop) -> None:
    now_min = spread.clock.now_s // 60 % 1440
    later = Hours((now_min + 60) % 1440, (now_min + 120) % 1440)
    spread.put_store(STORE, time_zone="UTC", opening_hours=(later,))
    spread.put_store(FAR_STORE, closed=True)
    assert ids(find(spread)) == [NEIGHBOUR]
    found = find(spread, closed_now_too=True)
    assert ids(found) == [STORE, NEIGHBOUR]
    assert [one.open for one in found] == [False, True]
    assert found[0].opens_at_ms == (spread.clock.now_ms // 60_000 + 60) * 60_000
    assert found[1].opens_at_ms == 0


def test_what_can_not_be_asked(spread: Shop) -> None:
    with pytest.raises(UnknownMall):
        find(spread, mall_id=999)
    with pytest.raises(InvalidInput) as caught:
        find(spread, lines=(Line(100, 1), Line(999, 1)))
    assert caught.value.field == "lines[1].sku_id"
    for fields in ({"count_max": 0}, {"count_max": 51}, {"distance_m_max": 0.0}, {"distance_m_max": 1e6}):
        with pytest.raises(InvalidInput):
            find(spread, **fields)
    assert ids(find(spread, mall_id=OTHER_MALL)) == [STORE, NEIGHBOUR, FAR_STORE]
