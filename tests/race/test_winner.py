"""Many callers want the same code: one gets it, and all others hear who did."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from engine import redemption
from engine.calls import IssueAnswer, RedeemAnswer, RedeemRequest, VoidAnswer, VoidRequest
from engine.claims import Line, State, Suite, Version
from engine.errors import PickgateError
from engine.idempotency import request_digest
from engine.state import codes
from engine.state.events import EventType
from engine.verdict import RedeemVerdict, VoidVerdict
from tests.engine import proofs
from tests.race.books import check_books
from tests.race.rivals import Behind, Rivals
from tests.race.shop import MALL, STORE, Shop, all_at_once, sound, terminal

pytestmark = pytest.mark.race

CALLERS = 200
KINDS = [(version, suite) for version in Version for suite in Suite]


def redeem_request(code: IssueAnswer, text: str, terminal_id: int, request_id: str) -> RedeemRequest:
    return RedeemRequest(terminal(terminal_id), request_id, text, pin=code.pin)


def is_one_winner(shop: Shop, code: IssueAnswer, outcomes: list[RedeemAnswer | PickgateError]) -> None:
    """Exactly one REDEEMED; everybody else hears when and where that was; one event says the same."""
    answers = [sound(outcome) for outcome in outcomes]
    verdicts = Counter(answer.verdict for answer in answers)
    assert verdicts == {RedeemVerdict.REDEEMED: 1, RedeemVerdict.ALREADY_REDEEMED: len(answers) - 1}
    [winner] = [answer for answer in answers if answer.verdict is RedeemVerdict.REDEEMED]
    assert not any(answer.replayed for answer in answers)
    for answer in answers:
        assert (answer.uid, answer.at_ms, answer.terminal_id) == (code.uid, winner.at_ms, winner.terminal_id)
        assert (answer.event is None) == (answer is not winner)

    books = check_books(shop.deployment)
    [event] = [event for event in books.of_code[code.uid] if event.type is EventType.REDEEMED]
    assert (event.id, event.at_ms, event.terminal_id) == (winner.event, winner.at_ms, winner.terminal_id)
    assert answers.index(winner) + 1 == winner.terminal_id, "the one who was told so is the one in the books"


@pytest.mark.parametrize(("version", "suite"), KINDS, ids=[f"{v.name}-{s.name}".lower() for v, s in KINDS])
def test_two_hundred_threads_on_one_code(shop: Shop, version: Version, suite: Suite, rounds: int) -> None:
    sku = shop.sku(10 * rounds)
    for _ in range(max(1, rounds // 3)):
        before = shop.figures(sku)
        [code] = shop.issue(sku, version=version, suite=suite)
        [text] = shop.show([code])
        # All of them show the same proof: it is good for one redemption.
        proof = proofs.sign(code.uid, shop.deployment.now_ms() // 1000)
        requests = [
            replace(redeem_request(code, text, terminal_id, shop.request_id()), proof_token=proof)
            for terminal_id in range(1, CALLERS + 1)
        ]

        def redeem(request: RedeemRequest) -> RedeemAnswer | PickgateError:
            [outcome] = redemption.redeem(shop.deployment, [request])
            return outcome

        is_one_winner(shop, code, all_at_once(redeem, requests))
        after = shop.figures(sku)
        assert (after.on_hand, after.reserved) == (before.on_hand - 1, before.reserved)


def test_processes_with_threads_on_one_code(shop: Shop, contest: Rivals, rounds: int) -> None:
    sku = shop.sku(10 * rounds)
    for _ in range(rounds):
        [code] = shop.issue(sku)
        [text] = shop.show([code])
        requests = [redeem_request(code, text, n, shop.request_id()) for n in range(1, 91)]
        is_one_winner(shop, code, contest.race(requests))


def test_batches_with_the_same_code_inside(shop: Shop, contest: Rivals, rounds: int) -> None:
    sku = shop.sku(10 * rounds)
    for _ in range(rounds):
        [code] = shop.issue(sku)
        [text] = shop.show([code])
        requests = [redeem_request(code, text, n, shop.request_id()) for n in range(1, 61)]

        def redeem(batch: list[RedeemRequest]) -> list[RedeemAnswer | PickgateError]:
            return redemption.redeem(shop.deployment, batch)

        outcomes = all_at_once(redeem, [requests[n : n + 10] for n in range(0, 60, 10)])
        is_one_winner(shop, code, [outcome for batch in outcomes for outcome in batch])


def test_redeem_against_void(shop: Shop, contest: Rivals, rounds: int) -> None:
    """Whichever comes first. Repeated until each has come first often enough to mean something."""
    seen: Counter[EventType] = Counter()
    turn = 0
    while turn < rounds or min(seen[EventType.REDEEMED], seen[EventType.VOIDED]) < 4:
        turn += 1
        assert turn < 30 + rounds, f"one side never comes first: {seen}"
        sku = shop.sku(8)
        made = shop.issue(sku, 8)
        texts = shop.show(made)
        before = shop.figures(sku)
        requests: list[Behind | VoidRequest] = []
        for code, text in zip(made, texts, strict=True):
            for n in (1, 2, 3):
                request = redeem_request(code, text, n, shop.request_id())
                requests.append(Behind((turn + n) % 4, request))
                requests.append(VoidRequest(MALL, shop.request_id(), code.uid))
        outcomes = [sound(outcome) for outcome in contest.race(requests)]

        books = check_books(shop.deployment)
        for code in made:
            answers = [answer for answer in outcomes if answer.uid == code.uid]
            assert len(answers) == 6
            assert sum(answer.verdict.success for answer in answers) == 1
            [winner] = [answer for answer in answers if answer.verdict.success]
            redeemed = isinstance(winner, RedeemAnswer)
            for answer in answers:
                assert answer.at_ms == winner.at_ms
                if answer is winner:
                    continue
                if isinstance(answer, VoidAnswer):
                    assert answer.verdict is (
                        VoidVerdict.ALREADY_REDEEMED if redeemed else VoidVerdict.ALREADY_VOIDED
                    )
                else:
                    assert answer.verdict is (
                        RedeemVerdict.ALREADY_REDEEMED if redeemed else RedeemVerdict.VOIDED
                    )
            ending = EventType.REDEEMED if redeemed else EventType.VOIDED
            assert books.kinds(code.uid) == [EventType.ISSUED, ending]
            seen[ending] += 1
        after = shop.figures(sku)
        assert before.on_hand - after.on_hand == sum(
            isinstance(a, RedeemAnswer) and a.verdict.success for a in outcomes
        )
        assert before.reserved - after.reserved == len(made)


def test_parts_of_one_code(shop: Shop, contest: Rivals, rounds: int) -> None:
    """A code of ten units, and thirty terminals that each want three: three get theirs, one unit is left."""
    sku = shop.sku(20 * rounds)
    for _ in range(rounds):
        [code] = shop.issue(sku, units=10)
        [text] = shop.show([code])
        before = shop.figures(sku)
        requests = [
            RedeemRequest(terminal(n), shop.request_id(), text, lines=(Line(sku, 3),)) for n in range(1, 31)
        ]
        answers = [sound(outcome) for outcome in contest.race(requests)]

        assert Counter(answer.verdict for answer in answers) == {
            RedeemVerdict.REDEEMED: 3,
            RedeemVerdict.NOTHING_LEFT: 27,
        }
        winners = [answer for answer in answers if answer.verdict.success]
        assert sorted(answer.lines[0].left for answer in winners) == [1, 4, 7]
        after = shop.figures(sku)
        assert (before.on_hand - after.on_hand, before.reserved - after.reserved) == (9, 9)
        [record] = codes.read(shop.deployment.connection, [code.uid])
        assert record is not None
        assert (record.state, record.lines[0].left) == (State.PARTLY, 1)


def test_wrong_pins_in_parallel_burn_three_tries(shop: Shop, contest: Rivals, rounds: int) -> None:
    sku = shop.sku(10 * rounds)
    for _ in range(rounds):
        [code] = shop.issue(sku, version=Version.STATIC)
        before = shop.figures(sku)
        guesses = [f"{n:06}" for n in range(51) if f"{n:06}" != code.pin][:50]
        requests = [
            RedeemRequest(terminal(n), shop.request_id(), code.typed.replace(" ", ""), pin=pin)
            for n, pin in enumerate(guesses, 1)
        ]
        answers = [sound(outcome) for outcome in contest.race(requests)]

        wrong = [answer for answer in answers if answer.verdict is RedeemVerdict.PIN_WRONG]
        assert sorted(answer.tries_left for answer in wrong) == [1, 2]
        locked = [answer for answer in answers if answer.verdict is RedeemVerdict.LOCKED]
        assert len(locked) == 48
        assert len({answer.review_id for answer in locked}) == 1, "all wait for the same review"
        books = check_books(shop.deployment)
        tried = [EventType.TRIED, EventType.TRIED, EventType.LOCKED]
        assert books.kinds(code.uid) == [EventType.ISSUED, *tried]
        [lock] = [event for event in books.of_code[code.uid] if event.type is EventType.LOCKED]
        assert {answer.review_id for answer in locked} == {str(lock.id)}

        # Too late now, also for the right one; and the retry of a burnt try burns nothing.
        late = RedeemRequest(terminal(99), shop.request_id(), code.typed, pin=code.pin)
        [answer] = redemption.redeem(shop.deployment, [late])
        assert sound(answer).verdict is RedeemVerdict.LOCKED
        again = [
            sound(outcome)
            for outcome in contest.race([r for r, a in zip(requests, answers, strict=True) if a in wrong])
        ]
        assert sorted(answer.tries_left for answer in again) == [1, 2]
        assert all(answer.replayed for answer in again)
        assert shop.figures(sku) == before


def test_the_right_pin_among_wrong_ones_is_taken_or_locked_out(
    shop: Shop, contest: Rivals, rounds: int
) -> None:
    sku = shop.sku(10 * rounds)
    for _ in range(rounds):
        [code] = shop.issue(sku, version=Version.STATIC)
        right = RedeemRequest(terminal(1), shop.request_id(), code.typed, pin=code.pin)
        wrong_pin = "000000" if code.pin != "000000" else "000001"
        wrong = [
            RedeemRequest(terminal(n), shop.request_id(), code.typed, pin=wrong_pin) for n in range(2, 11)
        ]
        outcomes = contest.race([*wrong[:3], right, *wrong[3:]])
        verdicts = Counter(sound(outcome).verdict for outcome in outcomes)

        burnt = verdicts[RedeemVerdict.PIN_WRONG]
        books = check_books(shop.deployment)
        [record] = codes.read(shop.deployment.connection, [code.uid])
        assert record is not None
        if verdicts[RedeemVerdict.REDEEMED]:
            assert burnt <= 2
            assert verdicts[RedeemVerdict.ALREADY_REDEEMED] == 9 - burnt
            assert record.state is State.REDEEMED
        else:
            assert (burnt, verdicts[RedeemVerdict.LOCKED]) == (2, 8)
            assert record.state is State.LOCKED
        digest = request_digest(f"terminal:{MALL}:{STORE}:1", "redeem", right.request_id)
        redeemed = [event.request for event in books.of_code[code.uid] if event.type is EventType.REDEEMED]
        assert redeemed == [digest] * verdicts[RedeemVerdict.REDEEMED]
