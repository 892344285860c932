"""Locks and reviews: which tries count, who may decide, what a decision does, and how open reviews are listed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine import expiry, issuance, limits, redemption, review
from engine.calls import RedeemRequest, StockChange
from engine.claims import Decision, Line, LineState, State, Terminal, Version
from engine.errors import Exhausted, InvalidInput, RequestIdReused
from engine.policies import Policy
from engine.state.events import EventType
from engine.verdict import RedeemVerdict, RenderVerdict, ReviewVerdict
from tests.engine.fold import check_against_store, fold, read_store
from tests.engine.proofs import proof_token, put_provider
from tests.engine.shop import FAR_STORE, MALL, OTHER_MALL, STORE, Shop, north

ID = "the-same-id"


def locked(shop: Shop, *, store_id: int = STORE, units: int = 3, out: int = 0) -> bytes:
    """A locked static code, of which some units may be out."""
    shop.receive(units, store_id=store_id)
    issued = shop.issue(version=Version.STATIC, lines=(Line(100, units),), store_id=store_id)
    if out:
        terminal = Terminal(MALL, store_id, 7)
        shop.redeem(issued.typed, pin=issued.pin, lines=(Line(100, out),), terminal=terminal)
    shop.lock(issued.uid)
    assert shop.record(issued.uid).state is State.LOCKED
    return issued.uid


def checked(shop: Shop) -> None:
    check_against_store(fold(shop.events()), shop.deployment, shop.clock.now_ms)


# --- what counts --------------------------------------------------------------------------------------------------------
def test_tries_of_every_kind_count_together(shop: Shop) -> None:
    """A rejected proof, a proof used before, and the customer somewhere else: the third locks, and the evidence says which."""
    put_provider(shop)
    shop.put_policies(Policy("deployment", customer_location="optional"))
    shop.receive(10)
    uid = shop.issue(version=Version.VALUABLE, lines=(Line(100, 2),)).uid
    token = proof_token(shop, uid)
    assert shop.redeem(shop.show(uid), lines=(Line(100, 1),), proof_token=token).verdict.success
    shop.clock.tick(4)
    far = shop.render(uid, position=north(5000), request_id=shop.new_id(), actor="customer:1")
    assert (far.verdict, far.tries_left) == (RenderVerdict.OUT_OF_RANGE, 2)
    used = shop.redeem(shop.show(uid), proof_token=token, actor="clerk:bob")
    assert (used.verdict, used.tries_left) == (RedeemVerdict.PROOF_REJECTED, 1)
    last = shop.render(uid, position=north(5000), request_id=shop.new_id())
    assert (last.verdict, last.tries_left) == (RenderVerdict.LOCKED, 0)
    [found], after = review.list_reviews(shop.deployment, MALL)
    assert after == ""
    assert found.review_id == last.review_id
    assert [(one.terminal_id, one.verdict, one.actor) for one in found.evidence] == [
        (0, RenderVerdict.OUT_OF_RANGE.number, "customer:1"),
        (7, RedeemVerdict.PROOF_REJECTED.number, "clerk:bob"),
        (0, RenderVerdict.OUT_OF_RANGE.number, ""),
    ]
    assert found.evidence[0].distance_bucket < 255
    checked(shop)


def test_a_customer_s_try_is_counted_once(shop: Shop) -> None:
    shop.put_policies(Policy("deployment", customer_location="optional"))
    shop.receive(10)
    uid = shop.issue().uid
    for _ in range(5):
        assert shop.render(uid, position=north(5000), request_id=ID).tries_left == 2
    assert shop.record(uid).tries == 1
    assert shop.render(uid, position=north(0), request_id=ID).verdict is RenderVerdict.RENDERED
    with pytest.raises(InvalidInput) as refused:
        shop.render(uid, position=north(5000))
    assert refused.value.field == "request_id"
    other = shop.issue().uid
    with pytest.raises(RequestIdReused):
        shop.render(other, position=north(5000), request_id=ID)
    assert shop.record(other).tries == 0


def test_guesses_at_once_gain_nothing(shop: Shop) -> None:
    """Of many guesses in one batch three count; the right PIN behind them comes too late."""
    shop.receive(10)
    issued = shop.issue(version=Version.STATIC)
    terminal = Terminal(MALL, STORE, 7)
    pins = [f"{(int(issued.pin) + n) % 1_000_000:06d}" for n in range(1, 20)] + [issued.pin]
    answers = redemption.redeem(
        shop.deployment, [RedeemRequest(terminal, shop.new_id(), issued.typed, pin=pin) for pin in pins]
    )
    verdicts = [getattr(answer, "verdict", None) for answer in answers]
    assert verdicts == [RedeemVerdict.PIN_WRONG] * 2 + [RedeemVerdict.LOCKED] * 18
    assert sum(event.type in (EventType.TRIED, EventType.LOCKED) for event in shop.events()) == 3


def test_a_success_in_between_does_not_wipe_tries_out(shop: Shop) -> None:
    shop.receive(10)
    issued = shop.issue(version=Version.STATIC, lines=(Line(100, 3),))
    wrong = f"{(int(issued.pin) + 1) % 1_000_000:06d}"
    for pin, verdict in [
        (wrong, "PIN_WRONG"),
        (issued.pin, "REDEEMED"),
        (wrong, "PIN_WRONG"),
        (wrong, "LOCKED"),
    ]:
        assert shop.redeem(issued.typed, pin=pin, lines=(Line(100, 1),)).verdict.slug == verdict
    checked(shop)


# --- decisions ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("out", [0, 1])
@pytest.mark.parametrize(
    ("decision", "state", "on_hand", "reserved"),
    [
        (Decision.APPROVE, None, 3, 3),
        (Decision.REDEEM, State.REDEEMED, 0, 0),
        (Decision.VOID, State.VOIDED, 3, 0),
    ],
)
def test_what_a_decision_does(
    shop: Shop, decision: Decision, state: State | None, on_hand: int, reserved: int, out: int
) -> None:
    uid = locked(shop, out=out)
    before = shop.record(uid)
    answer = shop.decide(uid, decision, reason="见过证件")
    assert answer.verdict.success
    record = shop.record(uid)
    assert record.state is (state or (State.PARTLY if out else State.LIVE))
    assert (record.tries, record.lock) == (0, None)
    figures = shop.figures()
    assert figures.on_hand == on_hand - (out if decision is not Decision.REDEEM else 0)
    assert figures.reserved == (reserved - out if reserved else 0)
    moved = {
        Decision.APPROVE: (),
        Decision.REDEEM: (LineState(100, 3 - out, 0),),
        Decision.VOID: (LineState(100, 3, 3 - out),),
    }
    assert answer.lines == moved[decision]
    event = shop.events()[-1]
    assert (event.type, event.actor, event.facts["decision"]) == (EventType.REVIEWED, "ops:ann", decision)
    assert event.facts["reason"] == "见过证件"
    held = read_store(shop.deployment)
    assert held.evidence == {}
    assert held.reviews == {}
    assert review.list_reviews(shop.deployment, MALL) == ([], "")
    assert before.lock is not None
    checked(shop)


def test_tries_start_anew_after_an_approval(shop: Shop) -> None:
    uid = locked(shop)
    shop.decide(uid, Decision.APPROVE)
    shop.lock(uid)
    assert shop.record(uid).state is State.LOCKED
    [found], _ = review.list_reviews(shop.deployment, MALL)
    assert len(found.evidence) == limits.TRIES_MAX
    checked(shop)


def test_redeem_by_hand_takes_all_or_nothing(shop: Shop) -> None:
    """Two lines share a SKU with a bundle; what is on the shelf must do for both."""
    shop.put_bundle()
    shop.receive(3, sku_id=100)
    shop.receive(9, sku_id=101)
    issued = shop.issue(version=Version.STATIC, lines=(Line(200, 2), Line(100, 1)))
    shop.lock(issued.uid)
    shop.receive(-1, sku_id=100, change=StockChange.ADJUST_BY)
    answer = shop.decide(issued.uid, Decision.REDEEM)
    assert (answer.verdict, answer.sku_id) == (ReviewVerdict.OUT_OF_STOCK, 100)
    assert (shop.figures(100).on_hand, shop.figures(101).on_hand) == (2, 9)
    assert shop.record(issued.uid).state is State.LOCKED
    shop.receive(1, sku_id=100)
    assert shop.decide(issued.uid, Decision.REDEEM).verdict is ReviewVerdict.REDEEMED
    assert (shop.figures(100).on_hand, shop.figures(101).on_hand) == (0, 5)
    checked(shop)


def test_nobody_decides_on_tries_of_their_own(shop: Shop) -> None:
    """One try among three is enough."""
    shop.receive(10)
    issued = shop.issue(version=Version.STATIC)
    wrong = f"{(int(issued.pin) + 1) % 1_000_000:06d}"
    for actor in ("clerk:bob", "clerk:eve", "clerk:bob"):
        shop.redeem(issued.typed, pin=wrong, actor=actor)
    before = shop.dump()
    for actor in ("clerk:bob", "clerk:eve"):
        for decision in Decision:
            assert shop.decide(issued.uid, decision, actor=actor).verdict is ReviewVerdict.OWN_TRY
    assert shop.dump() == before
    assert shop.decide(issued.uid, Decision.VOID, actor="clerk:bo").verdict.success


def test_again_and_with_another_body(shop: Shop) -> None:
    uid, other = locked(shop), locked(shop)
    first = shop.decide(uid, Decision.APPROVE, request_id=ID)
    shop.void(uid)
    assert shop.decide(uid, Decision.APPROVE, request_id=ID) == replace(first, replayed=True)
    for of, decision in [(uid, Decision.VOID), (other, Decision.APPROVE)]:
        with pytest.raises(RequestIdReused):
            shop.decide(of, decision, request_id=ID)
    assert shop.record(other).state is State.LOCKED


@pytest.mark.parametrize("end", ["void", "expire", "decide"])
def test_an_ended_code_leaves_no_review_and_no_evidence(shop: Shop, end: str) -> None:
    uid = locked(shop)
    if end == "void":
        shop.void(uid)
    elif end == "decide":
        shop.decide(uid, Decision.VOID)
    shop.clock.tick(limits.TTL_S_DEFAULT + 72)
    expiry.sweep(shop.deployment)
    held = read_store(shop.deployment)
    assert (held.evidence, held.reviews) == ({}, {})
    shop.clock.tick(limits.AFTERLIFE_S + 120)
    assert expiry.sweep(shop.deployment).forgotten <= 1
    assert issuance.get(shop.deployment, MALL, [uid]) == [None]
    kinds = {key.rpartition(b"}")[2][:1] for key in shop.dump() if not key.startswith(b"{ctl}")}
    assert kinds == {b"m", b"e", b"s", b"k"}


def test_a_code_tried_and_set_free_without_end_stays_whole(shop: Shop) -> None:
    """What a record remembers has a bound; past it nothing is counted any more, and nothing breaks."""
    uid = locked(shop)
    rendered_pin = ""
    for _ in range(limits.REMEMBERED_REQUESTS_MAX):
        if shop.decide(uid, Decision.APPROVE).verdict is not ReviewVerdict.APPROVED:
            break
        rendered_pin = shop.render(uid).pin
        try:
            shop.lock(uid)
        except Exhausted:
            break
    record = shop.record(uid)
    assert record.order_id == "ORDER-1"
    assert record.lines == (LineState(100, 3, 3),)
    with pytest.raises(Exhausted):
        shop.redeem(shop.show(uid) if record.state is State.LIVE else "", pin=rendered_pin)
    assert shop.void(uid).verdict.success
    checked(shop)
    shop.clock.tick(limits.AFTERLIFE_S + 200)
    assert expiry.sweep(shop.deployment).forgotten == 1


# --- the list -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_review_stands_on_one_page(shop: Shop, count: int) -> None:
    """Also when many codes were locked in one millisecond, in several partitions, and between another mall's."""
    wanted = {locked(shop, store_id=store_id) for store_id in (STORE, FAR_STORE) for _ in range(5)}
    shop.receive(3, mall_id=OTHER_MALL)
    others = shop.issue(version=Version.STATIC, mall_id=OTHER_MALL)
    wrong = f"{(int(others.pin) + 1) % 1_000_000:06d}"
    for _ in range(limits.TRIES_MAX):
        shop.redeem(others.typed, pin=wrong, terminal=Terminal(OTHER_MALL, STORE, 7))
    shop.clock.tick(1)
    wanted.add(locked(shop))
    seen: list[bytes] = []
    after = ""
    for _ in range(20):
        page, after = review.list_reviews(shop.deployment, MALL, count=count, after=after)
        assert len(page) <= count
        seen += [one.record.uid for one in page]
        if not after:
            break
    assert sorted(seen) == sorted(wanted)
    [only], _ = review.list_reviews(shop.deployment, OTHER_MALL)
    assert only.record.uid == others.uid


@pytest.mark.parametrize("after", ["x", "9:0:", "0:0:zz", "-1:0:00", "0:0"])
def test_a_page_that_never_was(shop: Shop, after: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        review.list_reviews(shop.deployment, MALL, after=after)
    assert refused.value.field == "page_token"
