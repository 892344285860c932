"""Hold before payment, confirm after it, extend: a paid order is never refused for stock, an unpaid one keeps none."""

from __future__ import annotations

from typing import Any

import pytest

from engine import expiry, issuance, limits, serial
from engine.calls import ConfirmRequest, ExtendRequest, StockChange
from engine.claims import Line, State, Version
from engine.expiry import Swept
from engine.policies import Policy
from engine.state.events import EventType
from engine.verdict import ConfirmVerdict, ExtendVerdict, IssueVerdict, RedeemVerdict, RenderVerdict
from tests.engine.fold import check_against_store, fold
from tests.engine.proofs import proof_token, put_provider
from tests.engine.shop import BUNDLE, MALL, NEIGHBOUR, Shop, settled

SETTLE_S = 70
"""A minute is swept ten seconds after it began."""
HOUR_S = 3600


def types(shop: Shop) -> list[EventType]:
    return [event.type for event in shop.events()]


# --- hold -----------------------------------------------------------------------------------------------------------
def test_a_hold_reserves_and_shows_nothing(shop: Shop) -> None:
    shop.receive(10)
    held = shop.hold(version=Version.STATIC, lines=(Line(100, 4),))
    assert held.expires_at_s == shop.clock.now_s + limits.HOLD_S_DEFAULT
    assert shop.figures().reserved == 4
    record = shop.record(held.uid)
    assert (record.state, record.ttl_s) == (State.HELD, limits.TTL_S_DEFAULT)
    rendered = shop.render(held.uid)
    assert (rendered.verdict, rendered.payloads) == (RenderVerdict.NOT_CONFIRMED, ())
    assert (rendered.typed, rendered.pin) == ("", "")
    check_against_store(fold(shop.events()), shop.deployment, shop.clock.now_ms)


def test_a_paid_order_is_not_refused_for_stock(shop: Shop) -> None:
    """Held units are promised: neither another order, nor a transfer, nor a stocktake takes the promise back."""
    shop.receive(2)
    uid = shop.hold(lines=(Line(100, 2),)).uid
    assert shop.issue().verdict is IssueVerdict.STOCK_SHORT
    assert not shop.transfer(1).verdict.success
    shop.receive(0, change=StockChange.COUNT)
    assert shop.confirm(uid).verdict is ConfirmVerdict.CONFIRMED
    shop.receive(2)
    assert shop.redeem(shop.show(uid)).verdict is RedeemVerdict.REDEEMED


def test_an_unpaid_order_frees_its_stock_by_itself(shop: Shop) -> None:
    shop.receive(1)
    uid = shop.hold().uid
    shop.clock.tick(limits.HOLD_S_DEFAULT + SETTLE_S)
    assert expiry.sweep(shop.deployment) == Swept(expired=1)
    assert expiry.sweep(shop.deployment) == Swept()
    assert shop.record(uid).state is State.EXPIRED
    assert shop.issue().verdict is IssueVerdict.ISSUED
    # Paid too late: its unit is somebody else's by now.
    assert shop.confirm(uid).verdict is ConfirmVerdict.EXPIRED
    assert shop.figures().reserved == 1
    assert types(shop)[-2:] == [EventType.EXPIRED, EventType.ISSUED]
    check_against_store(fold(shop.events()), shop.deployment, shop.clock.now_ms)


def test_a_given_up_order_is_voided(shop: Shop) -> None:
    shop.stock_all()
    shop.put_bundle()
    uid = shop.hold(lines=(Line(BUNDLE, 2), Line(102, 1))).uid
    assert shop.void(uid).verdict.success
    assert [shop.figures(sku).reserved for sku in (100, 101, 102)] == [0, 0, 0]
    assert shop.confirm(uid).verdict is ConfirmVerdict.VOIDED


@pytest.mark.parametrize(
    ("policies", "hold_s"),
    [
        ((), limits.HOLD_S_DEFAULT),
        ((Policy("deployment", hold_s=100),), 100),
        ((Policy("deployment", hold_s=100), Policy("sku", mall_id=MALL, sku_id=100, hold_s=300)), 100),
        (
            (
                Policy("sku", mall_id=MALL, sku_id=100, hold_s=300),
                Policy("sku", mall_id=MALL, sku_id=101, hold_s=200),
            ),
            200,
        ),
    ],
)
def test_a_hold_lasts_as_its_policies_say_the_shortest_of_its_lines(
    shop: Shop, policies: tuple[Policy, ...], hold_s: int
) -> None:
    shop.stock_all()
    if policies:
        shop.put_policies(*policies)
    held = shop.hold(lines=(Line(100, 1), Line(101, 1)))
    assert held.expires_at_s == shop.clock.now_s + hold_s


def test_found_by_the_request_that_made_it(shop: Shop) -> None:
    shop.stock_all()
    held = shop.hold(request_id="request-held")
    assert issuance.get_by_request_id(shop.deployment, MALL, ["request-held"]) == [shop.record(held.uid)]


def test_a_hold_s_retry_after_the_confirmation_gets_the_hold_s_answer(shop: Shop) -> None:
    shop.stock_all()
    first = shop.hold(request_id="request-held")
    shop.confirm(first.uid)
    shop.clock.tick(HOUR_S)
    again = shop.hold(request_id="request-held")
    assert again.replayed
    assert (again.uid, again.expires_at_s, again.event) == (first.uid, first.expires_at_s, first.event)
    assert shop.figures().reserved == 1


# --- confirm --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("version", Version)
def test_a_confirmed_code_is_one_that_was_issued(shop: Shop, version: Version) -> None:
    shop.stock_all()
    put_provider(shop)
    held = shop.hold(version=version, ttl_s=HOUR_S)
    shop.clock.tick(600)
    confirmed = shop.confirm(held.uid)
    assert confirmed.verdict is ConfirmVerdict.CONFIRMED
    assert confirmed.expires_at_s == shop.clock.now_s + HOUR_S
    record = shop.record(held.uid)
    assert (record.state, record.expires_at_s) == (State.LIVE, confirmed.expires_at_s)
    rendered = shop.render(held.uid)
    assert (confirmed.typed, confirmed.pin) == (rendered.typed, rendered.pin)
    assert bool(confirmed.pin) == (version is Version.STATIC)
    proof = proof_token(shop, held.uid)
    answer = shop.redeem(rendered.payloads[0].text, pin=confirmed.pin, proof_token=proof)
    assert answer.verdict is RedeemVerdict.REDEEMED
    assert types(shop)[-3:] == [EventType.HELD, EventType.CONFIRMED, EventType.REDEEMED]
    check_against_store(fold(shop.events()), shop.deployment, shop.clock.now_ms)


def test_confirmed_in_the_last_second_outlives_the_hold(shop: Shop) -> None:
    shop.stock_all()
    uid = shop.hold().uid
    shop.clock.tick(limits.HOLD_S_DEFAULT - 0.001)
    assert shop.confirm(uid).verdict is ConfirmVerdict.CONFIRMED
    shop.clock.tick(SETTLE_S)
    assert expiry.sweep(shop.deployment) == Swept()
    assert shop.record(uid).state is State.LIVE
    shop.clock.tick(limits.TTL_S_DEFAULT + SETTLE_S)
    assert expiry.sweep(shop.deployment) == Swept(expired=1)
    assert shop.figures().reserved == 0


def test_confirmed_once_in_a_batch(shop: Shop) -> None:
    shop.stock_all()
    one, other = shop.hold(version=Version.STATIC), shop.hold(version=Version.STATIC)
    requests = [ConfirmRequest(MALL, shop.new_id(), uid) for uid in (one.uid, other.uid, one.uid)]
    answers = [settled(answer) for answer in issuance.confirm(shop.deployment, requests)]
    assert [answer.verdict for answer in answers] == [
        ConfirmVerdict.CONFIRMED,
        ConfirmVerdict.CONFIRMED,
        ConfirmVerdict.ALREADY_CONFIRMED,
    ]
    keys = shop.deployment.control.copy().usable_keys()
    for answer in answers[:2]:
        assert answer.typed == serial.typed_of(answer.uid, keys.active_serial_prf())
    # Whoever asks a second time under another id was not the one that paid.
    assert (answers[2].typed, answers[2].pin, answers[2].event) == ("", "", None)
    assert types(shop).count(EventType.CONFIRMED) == 2


def test_a_confirmation_s_retry_gets_its_secrets_again(shop: Shop) -> None:
    shop.stock_all()
    uid = shop.hold(version=Version.STATIC).uid
    first = shop.confirm(uid, request_id="request-paid")
    shop.clock.tick(HOUR_S)
    shop.redeem(first.typed, pin=first.pin)
    again = shop.confirm(uid, request_id="request-paid")
    assert again.replayed
    assert (again.verdict, again.typed, again.pin, again.expires_at_s, again.event) == (
        first.verdict, first.typed, first.pin, first.expires_at_s, first.event,
    )  # fmt: skip
    assert types(shop).count(EventType.CONFIRMED) == 1


# --- extend ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("version", Version)
@pytest.mark.parametrize("state", [State.LIVE, State.PARTLY])
def test_an_extended_code_lives_on(shop: Shop, version: Version, state: State) -> None:
    shop.stock_all()
    put_provider(shop)
    issued = shop.issue(ttl_s=HOUR_S, version=version, lines=(Line(100, 2),))

    def redeem(text: str, **fields: Any) -> RedeemVerdict:
        token = proof_token(shop, issued.uid)
        return shop.redeem(text, pin=issued.pin, proof_token=token, **fields).verdict

    if state is State.PARTLY:
        redeem(shop.show(issued.uid), lines=(Line(100, 1),))
    old = shop.show(issued.uid)
    at_s = issued.expires_at_s + HOUR_S
    assert shop.extend(issued.uid, at_s).expires_at_s == at_s
    assert shop.record(issued.uid).state is state
    shop.clock.tick(HOUR_S + SETTLE_S)
    assert expiry.sweep(shop.deployment) == Swept()
    # What was shown before says when it ends itself: the customer shows it anew.
    assert redeem(old) is RedeemVerdict.STALE_CODE
    assert redeem(shop.show(issued.uid)) is RedeemVerdict.REDEEMED
    check_against_store(fold(shop.events()), shop.deployment, shop.clock.now_ms)


def test_an_extended_code_ends_at_its_new_expiry(shop: Shop) -> None:
    shop.stock_all()
    issued = shop.issue(ttl_s=HOUR_S)
    shop.extend(issued.uid, issued.expires_at_s + HOUR_S)
    shop.clock.tick(2 * HOUR_S)
    assert shop.render(issued.uid).verdict is RenderVerdict.EXPIRED
    shop.clock.tick(SETTLE_S)
    assert expiry.sweep(shop.deployment) == Swept(expired=1)
    assert shop.figures().reserved == 0


def test_extending_a_locked_code_leaves_it_locked(shop: Shop) -> None:
    """A review takes its time: the code must not end while somebody looks at it."""
    shop.stock_all()
    issued = shop.issue(ttl_s=HOUR_S, version=Version.STATIC)
    shop.lock(issued.uid)
    lock = shop.record(issued.uid).lock
    assert shop.extend(issued.uid, issued.expires_at_s + HOUR_S).verdict is ExtendVerdict.EXTENDED
    record = shop.record(issued.uid)
    assert (record.state, record.lock, record.tries) == (State.LOCKED, lock, limits.TRIES_MAX)
    shop.clock.tick(HOUR_S)
    assert shop.redeem(issued.typed, pin=issued.pin).verdict is RedeemVerdict.LOCKED


def test_only_later_and_to_the_last_second_that_a_code_may_live(shop: Shop) -> None:
    shop.stock_all()
    issued = shop.issue(ttl_s=HOUR_S)
    last_s = shop.clock.now_s + limits.TTL_S_MAX
    shop.clock.tick(100)
    for at_s, verdict, in_force_s in (
        (issued.expires_at_s - 1, ExtendVerdict.NOT_LATER, issued.expires_at_s),
        (issued.expires_at_s, ExtendVerdict.NOT_LATER, issued.expires_at_s),
        (last_s + 1, ExtendVerdict.TOO_LONG, issued.expires_at_s),
        (issued.expires_at_s + 1, ExtendVerdict.EXTENDED, issued.expires_at_s + 1),
        (last_s, ExtendVerdict.EXTENDED, last_s),
    ):
        answer = shop.extend(issued.uid, at_s)
        assert (answer.verdict, answer.expires_at_s) == (verdict, in_force_s)
    assert types(shop).count(EventType.EXTENDED) == 2


def test_in_one_batch_each_extension_sees_the_one_before(shop: Shop) -> None:
    shop.stock_all()
    issued = shop.issue(ttl_s=HOUR_S)
    requests = [
        ExtendRequest(MALL, shop.new_id(), issued.uid, issued.expires_at_s + by_s) for by_s in (10, 5, 10, 20)
    ]
    answers = [settled(answer) for answer in issuance.extend(shop.deployment, requests)]
    assert [(answer.verdict.slug, answer.expires_at_s - issued.expires_at_s) for answer in answers] == [
        ("EXTENDED", 10), ("NOT_LATER", 10), ("NOT_LATER", 10), ("EXTENDED", 20),
    ]  # fmt: skip


# --- another store --------------------------------------------------------------------------------------------------
def test_another_store_is_a_void_and_an_issue_that_says_what_it_replaces(shop: Shop) -> None:
    shop.stock_all()
    shop.stock_all(store_id=NEIGHBOUR)
    old = shop.issue()
    text = shop.show(old.uid)
    shop.void(old.uid)
    new = shop.issue(store_id=NEIGHBOUR, replaces=old.uid, request_id="request-moved")
    assert shop.record(new.uid).replaces == old.uid
    assert shop.record(old.uid).replaces == b""
    assert shop.redeem(text).verdict is RedeemVerdict.VOIDED
    assert (shop.figures().reserved, shop.figures(store_id=NEIGHBOUR).reserved) == (0, 1)
    again = shop.issue(store_id=NEIGHBOUR, replaces=old.uid, request_id="request-moved")
    assert again.replayed
    check_against_store(fold(shop.events()), shop.deployment, shop.clock.now_ms)
