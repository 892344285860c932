"""Many orders want the last units: as many are served as there are units, and no unit is promised twice."""

from __future__ import annotations

from collections import Counter

import pytest

from engine.calls import IssueRequest, RedeemRequest, StockChange, StockRequest, VoidRequest
from engine.claims import Line, Suite, Version
from engine.state.events import EventType
from engine.verdict import IssueVerdict, RedeemVerdict, StockVerdict
from tests.race.books import check_books
from tests.race.rivals import Rivals
from tests.race.shop import MALL, STORE, Shop, sound, terminal

pytestmark = pytest.mark.race


def issue_request(shop: Shop, sku: int, units: int = 1) -> IssueRequest:
    line = Line(sku, units)
    return IssueRequest(MALL, shop.request_id(), STORE, "order", (line,), Version.DYNAMIC, Suite.AES)


@pytest.mark.parametrize(("on_hand", "units"), [(1, 1), (7, 1), (10, 3)])
def test_last_units(shop: Shop, contest: Rivals, rounds: int, on_hand: int, units: int) -> None:
    for _ in range(rounds):
        sku = shop.sku(on_hand)
        start = shop.figures(sku)
        requests = [issue_request(shop, sku, units) for _ in range(60)]
        answers = [sound(outcome) for outcome in contest.race(requests)]

        served = on_hand // units
        assert Counter(answer.verdict for answer in answers) == {
            IssueVerdict.ISSUED: served,
            IssueVerdict.STOCK_SHORT: 60 - served,
        }
        assert len({answer.uid for answer in answers if answer.verdict.success}) == served
        assert {answer.sku_id for answer in answers if not answer.verdict.success} == {sku}
        after = shop.figures(sku)
        assert (after.on_hand, after.reserved) == (start.on_hand, start.reserved + served * units)


def test_a_voided_unit_is_promised_again_once(shop: Shop, contest: Rivals, rounds: int) -> None:
    for _ in range(rounds):
        sku = shop.sku(4)
        made = shop.issue(sku, 4)
        requests = [VoidRequest(MALL, shop.request_id(), code.uid) for code in made[:3]]
        outcomes = contest.race([*requests, *(issue_request(shop, sku) for _ in range(40))])
        issued = [sound(outcome) for outcome in outcomes[3:]]
        assert all(sound(outcome).verdict.success for outcome in outcomes[:3])
        # Those who asked before a unit was free were refused; nobody was served who had no unit.
        served = sum(answer.verdict is IssueVerdict.ISSUED for answer in issued)
        assert served <= 3
        assert shop.figures(sku).reserved == 1 + served


def test_the_last_unit_on_the_books_goes_to_one_code(shop: Shop, contest: Rivals, rounds: int) -> None:
    """A stocktake finds one unit where twelve are promised: one code is served, the others keep their claim."""
    for _ in range(rounds):
        sku = shop.sku(12)
        made = shop.issue(sku, 12)
        shop.receive(sku, -11 - (shop.figures(sku).on_hand - 12))
        requests = [
            RedeemRequest(terminal(n), shop.request_id(), text) for n, text in enumerate(shop.show(made), 1)
        ]
        answers = [sound(outcome) for outcome in contest.race(requests)]
        assert Counter(answer.verdict for answer in answers) == {
            RedeemVerdict.REDEEMED: 1,
            RedeemVerdict.OUT_OF_STOCK: 11,
        }
        figures = shop.figures(sku)
        assert (figures.on_hand, figures.reserved, figures.short) == (0, 11, 11)
        shop.receive(sku, 11)
        [*late] = contest.race([RedeemRequest(r.terminal, shop.request_id(), r.code) for r in requests])
        assert Counter(sound(answer).verdict for answer in late) == {
            RedeemVerdict.REDEEMED: 11,
            RedeemVerdict.ALREADY_REDEEMED: 1,
        }


def test_receipts_from_many_sides_all_count(shop: Shop, contest: Rivals, rounds: int) -> None:
    for _ in range(rounds):
        sku = shop.sku(0)
        on_hand = shop.figures(sku).on_hand
        requests = [
            StockRequest(MALL, shop.request_id(), STORE, sku, StockChange.RECEIVE, units)
            for units in range(1, 41)
        ]
        answers = [sound(outcome) for outcome in contest.race(requests)]
        assert {answer.verdict for answer in answers} == {StockVerdict.RECEIVED}
        assert shop.figures(sku).on_hand == on_hand + sum(range(1, 41))


def test_one_receipt_sent_many_times_counts_once(shop: Shop, contest: Rivals, rounds: int) -> None:
    for _ in range(rounds):
        sku = shop.sku(0)
        on_hand = shop.figures(sku).on_hand
        request = StockRequest(MALL, shop.request_id(), STORE, sku, StockChange.RECEIVE, 12)
        answers = [sound(outcome) for outcome in contest.race([request] * 60)]

        assert sum(not answer.replayed for answer in answers) == 1
        assert len({(answer.verdict, answer.event, answer.figures) for answer in answers}) == 1
        assert shop.figures(sku).on_hand == on_hand + 12
        books = check_books(shop.deployment)
        assert (
            sum(event.type is EventType.STOCK and event.id == answers[0].event for event in books.events) == 1
        )
