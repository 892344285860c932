"""Pickup in parts, and the PIN of a static code: three tries, no more, however they come."""

from __future__ import annotations

import pytest

from engine import issuance, limits, redemption
from engine.calls import RedeemAnswer, StockChange, StockFigures
from engine.claims import EventId, Line, LineState, State, Terminal, Version
from engine.errors import TooManyItems
from engine.state.events import EventType
from engine.verdict import RedeemVerdict, RenderVerdict, VoidVerdict
from tests.engine.shop import MALL, OTHER_MALL, STORE, Shop, attempts


def wrong(pin: str, by: int = 1) -> str:
    return f"{(int(pin) + by) % 1_000_000:06d}"


# --- all at once --------------------------------------------------------------------------------------------------
def test_redemption_says_what_was_taken(shop: Shop) -> None:
    shop.stock_all()
    uid = shop.issue(lines=(Line(100, 2), Line(103, 5)), order_id="ORDER-9").uid
    shop.clock.tick(5)
    answer = shop.redeem(shop.show(uid))
    assert answer.lines == (LineState(100, 2, 0), LineState(103, 5, 0))
    assert (answer.uid, answer.order_id, answer.terminal_id) == (uid, "ORDER-9", 7)
    assert (answer.at_ms, answer.store_id, answer.store_name) == (shop.clock.now_ms, STORE, f"Store {STORE}")
    record = shop.record(uid)
    assert (record.state, record.terminal_id, record.redeemed_at_ms) == (State.REDEEMED, 7, answer.at_ms)
    assert [shop.figures(sku) for sku in (100, 103)] == [
        StockFigures(100, 8, 0, 0, 0),
        StockFigures(103, 5, 0, 0, 0),
    ]


def test_second_scan_says_when_and_where_the_first_was(shop: Shop) -> None:
    shop.stock_all()
    uid = shop.issue().uid
    text = shop.show(uid)
    first = shop.redeem(text, terminal=Terminal(MALL, STORE, 3))
    shop.clock.tick(10)
    second = shop.redeem(text, terminal=Terminal(MALL, STORE, 4))
    assert second.verdict is RedeemVerdict.ALREADY_REDEEMED
    assert (second.at_ms, second.terminal_id) == (first.at_ms, 3)
    assert second.lines == ()


def test_many_scans_in_one_batch_hand_out_once(shop: Shop) -> None:
    shop.stock_all()
    uid = shop.issue().uid
    requests = [shop.redeem_request(shop.show(uid)) for _ in range(50)]
    answers = redemption.redeem(shop.deployment, requests)
    verdicts = [answer.verdict for answer in answers if isinstance(answer, RedeemAnswer)]
    assert verdicts == [RedeemVerdict.REDEEMED] + [RedeemVerdict.ALREADY_REDEEMED] * 49
    assert shop.figures().on_hand == 9
    assert [event.type for event in shop.events()].count(EventType.REDEEMED) == 1
    assert attempts(shop.deployment) == 49


# --- in parts -----------------------------------------------------------------------------------------------------
def test_parts_until_nothing_is_left(shop: Shop) -> None:
    shop.stock_all()
    uid = shop.issue(lines=(Line(100, 3), Line(101, 1))).uid
    first = shop.redeem(shop.show(uid), lines=(Line(100, 2),))
    assert first.lines == (LineState(100, 2, 1),)
    assert shop.record(uid).state is State.PARTLY
    assert shop.record(uid).lines == (LineState(100, 3, 1), LineState(101, 1, 1))
    assert shop.inspect(shop.show(uid)).lines == (LineState(100, 3, 1), LineState(101, 1, 1))

    short = shop.redeem(shop.show(uid), lines=(Line(100, 2),))
    assert (short.verdict, short.sku_id) == (RedeemVerdict.NOTHING_LEFT, 100)
    foreign = shop.redeem(shop.show(uid), lines=(Line(101, 1), Line(107, 1)))
    assert (foreign.verdict, foreign.sku_id) == (RedeemVerdict.NOTHING_LEFT, 107)
    assert shop.figures(101).on_hand == 10

    rest = shop.redeem(shop.show(uid))
    assert rest.lines == (LineState(100, 1, 0), LineState(101, 1, 0))
    assert shop.record(uid).state is State.REDEEMED
    assert shop.render(uid).verdict is RenderVerdict.ALREADY_REDEEMED
    assert [(shop.figures(sku).on_hand, shop.figures(sku).reserved) for sku in (100, 101)] == [(7, 0), (9, 0)]


def test_an_old_payload_takes_what_the_record_says_is_left(shop: Shop) -> None:
    """The payload proves possession, the record is the truth: one scanned before a part was taken can't take it again."""
    shop.stock_all()
    uid = shop.issue(lines=(Line(100, 3),)).uid
    old = shop.show(uid)
    shop.redeem(old, lines=(Line(100, 2),))
    assert shop.redeem(old).lines == (LineState(100, 1, 0),)
    assert shop.redeem(old).verdict is RedeemVerdict.ALREADY_REDEEMED
    assert shop.figures().on_hand == 7


def test_a_line_taken_whole_does_not_stand_in_the_way_of_the_others(shop: Shop) -> None:
    shop.stock_all()
    uid = shop.issue(lines=(Line(100, 1), Line(101, 1))).uid
    shop.redeem(shop.show(uid), lines=(Line(100, 1),))
    shop.receive(0, sku_id=100, change=StockChange.COUNT)
    assert shop.redeem(shop.show(uid)).lines == (LineState(101, 1, 0),)


def test_out_of_stock_takes_nothing_of_the_other_lines(shop: Shop) -> None:
    shop.stock_all()
    uid = shop.issue(lines=(Line(100, 1), Line(101, 2))).uid
    shop.receive(1, sku_id=101, change=StockChange.COUNT)
    answer = shop.redeem(shop.show(uid))
    assert (answer.verdict, answer.sku_id) == (RedeemVerdict.OUT_OF_STOCK, 101)
    assert shop.figures(100) == StockFigures(100, 10, 1, 0, 0)
    assert shop.figures(101).short == 1
    assert shop.redeem(shop.show(uid), lines=(Line(100, 1), Line(101, 1))).verdict.success


def test_a_paid_customer_is_served_from_what_is_there(shop: Shop) -> None:
    """After a stocktake below what is promised the first to come are served, and nobody new is promised anything."""
    shop.receive(5)
    uids = [shop.issue().uid for _ in range(5)]
    counted = shop.receive(2, change=StockChange.COUNT)
    assert counted.figures is not None
    assert (counted.figures.available, counted.figures.short) == (0, 3)
    assert not shop.issue().verdict.success
    verdicts = [shop.redeem(shop.show(uid)).verdict for uid in uids]
    assert verdicts == [RedeemVerdict.REDEEMED] * 2 + [RedeemVerdict.OUT_OF_STOCK] * 3
    assert (shop.figures().on_hand, shop.figures().reserved) == (0, 3)


def test_void_after_a_part_releases_the_rest_only(shop: Shop) -> None:
    shop.stock_all()
    uid = shop.issue(lines=(Line(100, 3), Line(101, 1))).uid
    shop.redeem(shop.show(uid), lines=(Line(100, 1), Line(101, 1)))
    answer = shop.void(uid)
    assert answer.lines == (LineState(100, 3, 2),)
    assert [(shop.figures(sku).on_hand, shop.figures(sku).reserved) for sku in (100, 101)] == [(9, 0), (9, 0)]


# --- two malls at one store ---------------------------------------------------------------------------------------
def test_malls_share_a_store_but_no_stock(shop: Shop) -> None:
    shop.receive(5)
    shop.receive(3, mall_id=OTHER_MALL)
    ours, theirs = shop.issue(), shop.issue(mall_id=OTHER_MALL)
    assert shop.redeem(shop.render(theirs.uid, mall_id=OTHER_MALL).payloads[0].text).verdict is (
        RedeemVerdict.UNKNOWN_CODE
    )
    answer = shop.redeem(
        shop.render(theirs.uid, mall_id=OTHER_MALL).payloads[0].text, terminal=Terminal(OTHER_MALL, STORE, 7)
    )
    assert answer.verdict is RedeemVerdict.REDEEMED
    assert shop.figures() == StockFigures(100, 5, 1, 0, 0)
    assert shop.figures(mall_id=OTHER_MALL) == StockFigures(100, 2, 0, 0, 0)
    assert shop.void(ours.uid, mall_id=OTHER_MALL).verdict is VoidVerdict.UNKNOWN_CODE


# --- the PIN ------------------------------------------------------------------------------------------------------
def test_typed_and_scanned_are_the_same_code(shop: Shop) -> None:
    shop.stock_all()
    one, other = (shop.issue(version=Version.STATIC) for _ in range(2))
    assert shop.redeem(one.typed, pin=one.pin).verdict is RedeemVerdict.REDEEMED
    assert shop.redeem(other.typed.replace(" ", ""), pin=other.pin).verdict is RedeemVerdict.REDEEMED
    assert shop.redeem(shop_text(shop, one.uid), pin=one.pin).verdict is RedeemVerdict.ALREADY_REDEEMED
    rendered = shop.issue(version=Version.STATIC)
    shown = shop.render(rendered.uid)
    assert (shown.typed, shown.pin) == (rendered.typed, rendered.pin)


def shop_text(shop: Shop, uid: bytes) -> str:
    keys = shop.deployment.control.copy().usable_keys()
    return issuance.seal(keys, shop.record(uid), [0])[0]


def test_one_wrong_check_digit_is_refused_before_anything_is_counted(shop: Shop) -> None:
    """A stranger who types numbers can't lock a customer out."""
    shop.stock_all()
    issued = shop.issue(version=Version.STATIC)
    before = shop.dump()
    for digit in range(10):
        typed = issued.typed[:-1] + str(digit)
        if typed != issued.typed:
            answer = shop.redeem(typed, pin=wrong(issued.pin))
            assert answer == RedeemAnswer(RedeemVerdict.INVALID_CODE)
    assert shop.dump() == before
    assert attempts(shop.deployment) == 0


def test_three_wrong_pins_lock_the_code(shop: Shop) -> None:
    shop.stock_all()
    issued = shop.issue(version=Version.STATIC)
    answers = [shop.redeem(issued.typed, pin=wrong(issued.pin, by)) for by in (1, 2, 3)]
    assert [(answer.verdict, answer.tries_left) for answer in answers] == [
        (RedeemVerdict.PIN_WRONG, 2),
        (RedeemVerdict.PIN_WRONG, 1),
        (RedeemVerdict.LOCKED, 0),
    ]
    lock = answers[-1]
    assert isinstance(lock.event, EventId)
    assert lock.review_id == str(lock.event)

    right = shop.redeem(issued.typed, pin=issued.pin)
    assert right.verdict is RedeemVerdict.LOCKED
    assert right.review_id == lock.review_id
    record = shop.record(issued.uid)
    assert (record.state, record.tries, record.lock) == (State.LOCKED, 3, lock.event)
    assert shop.figures() == StockFigures(100, 10, 1, 0, 0)
    assert [event.type for event in shop.events()][-3:] == [
        EventType.TRIED,
        EventType.TRIED,
        EventType.LOCKED,
    ]


def test_a_wrong_pin_sent_again_burns_one_try(shop: Shop) -> None:
    shop.stock_all()
    issued = shop.issue(version=Version.STATIC)
    answers = [
        shop.redeem(issued.typed, pin=wrong(issued.pin, by), request_id="same-request") for by in range(1, 6)
    ]
    assert {answer.tries_left for answer in answers} == {2}
    assert [answer.replayed for answer in answers] == [False] + [True] * 4
    # Even with the right PIN it is the same request, and was answered; a new one is a new try.
    assert shop.redeem(issued.typed, pin=issued.pin, request_id="same-request").replayed
    assert shop.record(issued.uid).tries == 1
    assert shop.redeem(issued.typed, pin=issued.pin).verdict is RedeemVerdict.REDEEMED


@pytest.mark.parametrize("guesses", [3, 4, 50])
def test_parallel_guesses_burn_exactly_three(shop: Shop, guesses: int) -> None:
    shop.stock_all()
    issued = shop.issue(version=Version.STATIC)
    requests = [shop.redeem_request(issued.typed, pin=wrong(issued.pin, by)) for by in range(1, guesses + 1)]
    requests.append(shop.redeem_request(issued.typed, pin=issued.pin))
    answers = redemption.redeem(shop.deployment, requests)
    verdicts = [answer.verdict for answer in answers if isinstance(answer, RedeemAnswer)]
    locked = [RedeemVerdict.LOCKED] * (guesses - 1)
    assert verdicts == [RedeemVerdict.PIN_WRONG, RedeemVerdict.PIN_WRONG, *locked]
    assert shop.record(issued.uid).tries == limits.TRIES_MAX
    kinds = [event.type for event in shop.events()]
    assert (kinds.count(EventType.TRIED), kinds.count(EventType.LOCKED)) == (2, 1)
    assert shop.figures().on_hand == 10


def test_no_pin_is_no_try(shop: Shop) -> None:
    shop.stock_all()
    issued = shop.issue(version=Version.STATIC)
    for _ in range(10):
        assert shop.redeem(issued.typed).verdict is RedeemVerdict.PIN_REQUIRED
    assert shop.record(issued.uid).tries == 0


def test_inspect_never_judges_a_pin(shop: Shop) -> None:
    shop.stock_all()
    issued = shop.issue(version=Version.STATIC)
    answer = shop.inspect(issued.typed)
    assert answer.verdict.success
    assert answer.pin_required
    assert not shop.inspect(shop.show(shop.issue().uid)).pin_required


def test_a_dynamic_code_ignores_a_pin(shop: Shop) -> None:
    shop.stock_all()
    assert shop.redeem(shop.show(shop.issue().uid), pin="000000").verdict is RedeemVerdict.REDEEMED


# --- bounds -------------------------------------------------------------------------------------------------------
def test_batches_have_a_bound(shop: Shop) -> None:
    too_many = [shop.redeem_request("PG")] * (limits.BATCH_MAX + 1)
    with pytest.raises(TooManyItems):
        redemption.redeem(shop.deployment, too_many)
    assert redemption.redeem(shop.deployment, []) == []
    assert issuance.issue(shop.deployment, []) == []


def test_bulk_issue_is_cut_into_batches(shop: Shop) -> None:
    shop.receive(1000)
    shop.receive(1000, store_id=2002)
    count = limits.BATCH_MAX * 2 + 7
    requests = [shop.issue_request(order_id=f"ORDER-{n}") for n in range(count)]
    answers = issuance.issue(shop.deployment, requests)
    uids = {answer.uid for answer in answers if not isinstance(answer, Exception)}
    assert len(uids) == count
    records = issuance.get(shop.deployment, MALL, [a.uid for a in answers if not isinstance(a, Exception)])
    assert [record.order_id for record in records if record] == [f"ORDER-{n}" for n in range(count)]
    assert shop.figures().reserved == count
    found = issuance.get_by_request_id(
        shop.deployment, MALL, [requests[0].request_id, requests[-1].request_id, "no-such-id"]
    )
    assert found == [records[0], records[-1], None]
    assert issuance.get_by_request_id(shop.deployment, OTHER_MALL, [requests[0].request_id]) == [None]
