"""One request sent many times at once is decided once, and every sender gets that decision."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from engine import issuance
from engine.calls import IssueAnswer, IssueRequest, RedeemRequest, VoidRequest
from engine.claims import Line, Suite, Version
from engine.errors import PickgateError, RequestIdReused
from engine.state.events import EventType
from engine.verdict import IssueVerdict, RedeemVerdict, VoidVerdict
from tests.race.books import check_books
from tests.race.rivals import Rivals
from tests.race.shop import MALL, OTHER_STORE, STORE, Shop, all_at_once, sound, terminal

pytestmark = pytest.mark.race


def test_one_redemption_sent_sixty_times(shop: Shop, contest: Rivals, rounds: int) -> None:
    sku = shop.sku(rounds)
    for _ in range(rounds):
        before = shop.figures(sku)
        [code] = shop.issue(sku)
        [text] = shop.show([code])
        request = RedeemRequest(terminal(1), shop.request_id(), text)
        answers = [sound(outcome) for outcome in contest.race([request] * 60)]

        assert {answer.verdict for answer in answers} == {RedeemVerdict.REDEEMED}
        assert Counter(answer.replayed for answer in answers) == {False: 1, True: 59}
        assert len({replace(answer, replayed=False) for answer in answers}) == 1
        assert check_books(shop.deployment).kinds(code.uid) == [EventType.ISSUED, EventType.REDEEMED]
        assert shop.figures(sku).on_hand == before.on_hand - 1


def test_retries_among_rivals(shop: Shop, contest: Rivals, rounds: int) -> None:
    """Twelve terminals, each sending its own request five times: one terminal wins, with all five."""
    sku = shop.sku(rounds)
    for _ in range(rounds):
        [code] = shop.issue(sku)
        [text] = shop.show([code])
        own = [RedeemRequest(terminal(n), shop.request_id(), text) for n in range(1, 13)]
        answers = [sound(outcome) for outcome in contest.race(own * 5)]

        won = [n % 12 + 1 for n, answer in enumerate(answers) if answer.verdict is RedeemVerdict.REDEEMED]
        assert len(won) == 5
        assert len(set(won)) == 1
        assert {answer.terminal_id for answer in answers} == set(won)
        assert check_books(shop.deployment).kinds(code.uid) == [EventType.ISSUED, EventType.REDEEMED]


def test_one_request_id_for_two_codes_takes_one(shop: Shop, contest: Rivals, rounds: int) -> None:
    sku = shop.sku(4 * rounds)
    for _ in range(rounds):
        made = shop.issue(sku, 2)
        request_id = shop.request_id()
        requests = [RedeemRequest(terminal(1), request_id, text) for text in shop.show(made)]
        outcomes: list[object] = contest.race(requests * 10)

        books = check_books(shop.deployment)
        redeemed = [code for code in made if EventType.REDEEMED in books.kinds(code.uid)]
        # A terminal's request is remembered where its code is; these codes are in one partition.
        assert len(redeemed) == 1
        for code, outcome in zip(made * 10, outcomes, strict=True):
            if code in redeemed:
                assert isinstance(outcome, object)
                assert not isinstance(outcome, PickgateError)
            else:
                assert isinstance(outcome, RequestIdReused)


def test_one_issue_sent_sixty_times_makes_one_code(shop: Shop, contest: Rivals, rounds: int) -> None:
    for version in Version:
        for _ in range(max(1, rounds // 3)):
            sku = shop.sku(100)
            before = shop.figures(sku)
            request = IssueRequest(
                MALL, shop.request_id(), STORE, "order", (Line(sku, 2),), version, Suite.SM
            )
            answers = [sound(outcome) for outcome in contest.race([request] * 60)]

            assert {answer.verdict for answer in answers} == {IssueVerdict.ISSUED}
            assert Counter(answer.replayed for answer in answers) == {False: 1, True: 59}
            assert len({replace(answer, replayed=False) for answer in answers}) == 1
            books = check_books(shop.deployment)
            assert (
                sum(event.request == books.of_code[answers[0].uid][0].request for event in books.events) == 1
            )
            after = shop.figures(sku)
            assert (after.on_hand, after.reserved) == (before.on_hand, before.reserved + 2)


def test_one_request_id_for_two_orders_makes_one_code(shop: Shop, contest: Rivals, rounds: int) -> None:
    """Also when the orders are for stores of different partitions, which know nothing of each other."""
    for _ in range(rounds):
        sku = shop.sku(10)
        shop.receive(sku, 10, store_id=OTHER_STORE)
        request_id = shop.request_id()
        rival_orders = [
            IssueRequest(MALL, request_id, store_id, "order", (Line(sku, 1),), Version.DYNAMIC, Suite.AES)
            for store_id in (STORE, OTHER_STORE)
        ]
        outcomes = contest.race(rival_orders * 15)

        issued = [outcome for outcome in outcomes if not isinstance(outcome, PickgateError)]
        assert len(issued) == 15
        assert len({answer.uid for answer in issued}) == 1
        assert all(isinstance(outcome, RequestIdReused) for outcome in outcomes if outcome not in issued)


def test_one_void_sent_many_times(shop: Shop, contest: Rivals, rounds: int) -> None:
    for _ in range(rounds):
        sku = shop.sku(5)
        [code] = shop.issue(sku, units=5)
        request = VoidRequest(MALL, shop.request_id(), code.uid, reason="cancelled")
        answers = [sound(outcome) for outcome in contest.race([request] * 45)]

        assert {answer.verdict for answer in answers} == {VoidVerdict.VOIDED}
        assert Counter(answer.replayed for answer in answers) == {False: 1, True: 44}
        assert check_books(shop.deployment).kinds(code.uid) == [EventType.ISSUED, EventType.VOIDED]
        assert shop.figures(sku).available >= 5


def test_a_refused_call_frees_no_request_id_that_another_call_used(shop: Shop, rounds: int) -> None:
    """One order sent many times while its only unit comes in: some are refused, then it is served, and its id is taken."""
    mixed = turn = 0
    while mixed < 2 * rounds:
        turn += 1
        assert turn < 50 + 10 * rounds, "refusals and the service never meet"
        sku = shop.sku(0)
        shop.receive(sku, 1, store_id=OTHER_STORE)
        request_id = shop.request_id()

        def order(store_id: int) -> IssueAnswer | PickgateError:
            line = Line(sku, 1)  # noqa: B023
            request = IssueRequest(
                MALL,
                request_id,  # noqa: B023
                store_id,
                "order",
                (line,),
                Version.DYNAMIC,
                Suite.AES,
            )
            [outcome] = issuance.issue(shop.deployment, [request])
            return outcome

        def order_or_receive(n: int) -> IssueAnswer | PickgateError | None:
            if n:
                return order(STORE)
            shop.receive(sku, 1)  # noqa: B023
            return None

        outcomes = all_at_once(order_or_receive, range(20))[1:]
        verdicts = Counter(outcome.verdict for outcome in outcomes if isinstance(outcome, IssueAnswer))
        assert sum(verdicts.values()) == 19
        if verdicts[IssueVerdict.ISSUED]:
            mixed += bool(verdicts[IssueVerdict.STOCK_SHORT])
            assert isinstance(order(OTHER_STORE), RequestIdReused), verdicts
        else:
            assert sound(order(OTHER_STORE)).verdict is IssueVerdict.ISSUED, "only refusals: the id is free"
