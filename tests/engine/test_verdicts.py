"""Every answer of every verb, produced at least once on a real store, with exactly what it changes there."""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from functools import partial
from typing import Any, Final

import pytest

from engine import expiry, issuance, limits, verdict
from engine.calls import RenderAnswer, StockAnswer, StockChange
from engine.claims import Channel, Decision, Line, Terminal, Version
from engine.hours import Window
from engine.policies import Policy
from engine.state.events import EventType
from engine.verdict import (
    ConfirmVerdict,
    ExtendVerdict,
    HoldVerdict,
    InspectVerdict,
    IssueVerdict,
    Next,
    RedeemVerdict,
    RenderVerdict,
    ReverseVerdict,
    ReviewVerdict,
    StockVerdict,
    TransferVerdict,
    Verdict,
    VoidVerdict,
)
from tests.engine.proofs import put_provider
from tests.engine.shop import (
    BUNDLE,
    FAR_STORE,
    MALL,
    NEIGHBOUR,
    OTHER_MALL,
    START_MS,
    STORE,
    Shop,
    attempts,
    north,
)

Act = Callable[[], Any]
"""The call under test; all that must happen before it has happened."""

ENUMS: Final = (
    HoldVerdict,
    IssueVerdict,
    ConfirmVerdict,
    ExtendVerdict,
    RenderVerdict,
    RedeemVerdict,
    InspectVerdict,
    ReverseVerdict,
    ReviewVerdict,
    VoidVerdict,
    StockVerdict,
    TransferVerdict,
)

CHANGES: Final[dict[Verdict, tuple[int, int]]] = {
    IssueVerdict.ISSUED: (0, +1),
    HoldVerdict.HELD: (0, +1),
    ConfirmVerdict.CONFIRMED: (0, 0),
    ExtendVerdict.EXTENDED: (0, 0),
    RedeemVerdict.REDEEMED: (-1, -1),
    ReverseVerdict.REVERSED: (+1, +1),
    ReviewVerdict.APPROVED: (0, 0),
    ReviewVerdict.REDEEMED: (-1, -1),
    ReviewVerdict.VOIDED: (0, -1),
    VoidVerdict.VOIDED: (0, -1),
    TransferVerdict.TRANSFERRED: (-3, 0),
    StockVerdict.RECEIVED: (+5, 0),
    StockVerdict.ADJUSTED: (-3, 0),
}
"""What each verdict changes of on_hand and reserved of the SKU at hand. All others: nothing."""

EVENTS: Final = CHANGES.keys() | {
    RedeemVerdict.PIN_WRONG,
    RedeemVerdict.PROOF_REJECTED,
    RenderVerdict.OUT_OF_RANGE,
}
"""Verdicts with an event. All others leave the store exactly as it was."""

CASES: Final[list[tuple[Verdict, Callable[[Shop], Act]]]] = []


def case(*verdicts: Verdict) -> Callable[[Callable[..., Act]], Callable[..., Act]]:
    """Register the preparation of a case under each verdict; with several, the preparation is told which."""

    def register(prepare: Callable[..., Act]) -> Callable[..., Act]:
        for one in verdicts:
            CASES.append((one, prepare if len(verdicts) == 1 else partial(_told, prepare, one)))
        return prepare

    return register


def _told(prepare: Callable[..., Act], wanted: Verdict, shop: Shop) -> Act:
    return prepare(shop, wanted)


# --- issue --------------------------------------------------------------------------------------------------------
@case(IssueVerdict.ISSUED)
def _issued(shop: Shop) -> Act:
    return shop.issue


@case(HoldVerdict.HELD)
def _held(shop: Shop) -> Act:
    return shop.hold


def _make(shop: Shop, wanted: Verdict, **fields: Any) -> Act:
    make = shop.hold if isinstance(wanted, HoldVerdict) else shop.issue
    return lambda: make(**fields)


@case(IssueVerdict.STOCK_SHORT, HoldVerdict.STOCK_SHORT)
def _stock_short(shop: Shop, wanted: Verdict) -> Act:
    shop.issue(lines=(Line(100, 10),))
    return _make(shop, wanted)


@case(IssueVerdict.UNKNOWN_SKU, HoldVerdict.UNKNOWN_SKU)
def _issue_unknown_sku(shop: Shop, wanted: Verdict) -> Act:
    return _make(shop, wanted, lines=(Line(100, 1), Line(999, 1)))


@case(IssueVerdict.UNKNOWN_STORE, HoldVerdict.UNKNOWN_STORE)
def _issue_unknown_store(shop: Shop, wanted: Verdict) -> Act:
    return _make(shop, wanted, store_id=999)


@case(IssueVerdict.UNKNOWN_STORE, HoldVerdict.UNKNOWN_STORE)
def _issue_store_of_others(shop: Shop, wanted: Verdict) -> Act:
    shop.put_store(NEIGHBOUR, mall_ids=(OTHER_MALL,))
    return _make(shop, wanted, store_id=NEIGHBOUR)


@case(IssueVerdict.STORE_CLOSED, HoldVerdict.STORE_CLOSED)
def _issue_closed(shop: Shop, wanted: Verdict) -> Act:
    shop.put_store(closed=True)
    return _make(shop, wanted)


@case(IssueVerdict.PROOF_UNAVAILABLE, HoldVerdict.PROOF_UNAVAILABLE)
def _nobody_can_vouch(shop: Shop, wanted: Verdict) -> Act:
    return _make(shop, wanted, version=Version.VALUABLE)


@case(IssueVerdict.SKU_FROZEN, HoldVerdict.SKU_FROZEN)
def _books_of_it_differ(shop: Shop, wanted: Verdict) -> Act:
    shop.freeze()
    return _make(shop, wanted)


@case(IssueVerdict.CHANNEL_CLOSED, HoldVerdict.CHANNEL_CLOSED)
def _issue_nearly_gone(shop: Shop, wanted: Verdict) -> Act:
    shop.receive(200, change=StockChange.BASELINE)
    return _make(shop, wanted)


@case(IssueVerdict.PROMOTION_STOPPED, HoldVerdict.PROMOTION_STOPPED)
def _issue_running_low(shop: Shop, wanted: Verdict) -> Act:
    shop.receive(100, change=StockChange.BASELINE)
    return _make(shop, wanted, channel=Channel.PROMOTION)


# --- confirm and extend -------------------------------------------------------------------------------------------
@case(ConfirmVerdict.CONFIRMED)
def _paid(shop: Shop) -> Act:
    uid = shop.hold().uid
    return lambda: shop.confirm(uid)


@case(ConfirmVerdict.ALREADY_CONFIRMED)
def _paid_already(shop: Shop) -> Act:
    uid = shop.hold().uid
    shop.confirm(uid)
    return lambda: shop.confirm(uid)


@case(ConfirmVerdict.ALREADY_CONFIRMED)
def _confirm_issued(shop: Shop) -> Act:
    uid = shop.issue().uid
    return lambda: shop.confirm(uid)


@case(ConfirmVerdict.EXPIRED)
def _paid_too_late(shop: Shop) -> Act:
    uid = shop.hold().uid
    shop.clock.tick(limits.HOLD_S_DEFAULT)
    return lambda: shop.confirm(uid)


@case(ConfirmVerdict.VOIDED, ExtendVerdict.VOIDED)
def _change_voided(shop: Shop, wanted: Verdict) -> Act:
    uid, _ = _voided(shop)
    return _change(shop, wanted, uid)


@case(ConfirmVerdict.UNKNOWN_CODE, ExtendVerdict.UNKNOWN_CODE)
def _change_unknown(shop: Shop, wanted: Verdict) -> Act:
    return _change(shop, wanted, b"\0" * 8)


@case(ConfirmVerdict.UNKNOWN_CODE, ExtendVerdict.UNKNOWN_CODE)
def _change_outside(shop: Shop, wanted: Verdict) -> Act:
    return _change(shop, wanted, b"\xff" * 8)


@case(ConfirmVerdict.UNKNOWN_CODE, ExtendVerdict.UNKNOWN_CODE)
def _change_of_others(shop: Shop, wanted: Verdict) -> Act:
    uid = shop.hold().uid
    return _change(shop, wanted, uid, mall_id=OTHER_MALL)


def _change(shop: Shop, wanted: Verdict, uid: bytes, **fields: Any) -> Act:
    if isinstance(wanted, ConfirmVerdict):
        return lambda: shop.confirm(uid, **fields)
    return lambda: shop.extend(uid, shop.clock.now_s + 10 * limits.TTL_S_DEFAULT, **fields)


@case(ExtendVerdict.EXTENDED)
def _extended(shop: Shop) -> Act:
    return _change(shop, ExtendVerdict.EXTENDED, shop.issue().uid)


@case(ExtendVerdict.EXTENDED)
def _extended_locked(shop: Shop) -> Act:
    return _change(shop, ExtendVerdict.EXTENDED, _locked(shop)[0])


@case(ExtendVerdict.ALREADY_REDEEMED)
def _extend_redeemed(shop: Shop) -> Act:
    return _change(shop, ExtendVerdict.ALREADY_REDEEMED, _redeemed(shop)[0])


@case(ExtendVerdict.EXPIRED)
def _extend_expired(shop: Shop) -> Act:
    return _change(shop, ExtendVerdict.EXPIRED, _expired(shop)[0])


@case(ExtendVerdict.NOT_CONFIRMED)
def _extend_held(shop: Shop) -> Act:
    return _change(shop, ExtendVerdict.NOT_CONFIRMED, shop.hold().uid)


@case(ExtendVerdict.NOT_LATER)
def _extend_not_later(shop: Shop) -> Act:
    issued = shop.issue()
    return lambda: shop.extend(issued.uid, issued.expires_at_s)


@case(ExtendVerdict.TOO_LONG)
def _extend_too_far(shop: Shop) -> Act:
    uid = shop.issue().uid
    return lambda: shop.extend(uid, shop.clock.now_s + limits.TTL_S_MAX + 1)


# --- the states that several verbs meet ---------------------------------------------------------------------------
def _redeemed(shop: Shop) -> tuple[bytes, str]:
    uid = shop.issue().uid
    text = shop.show(uid)
    assert shop.redeem(text).verdict is RedeemVerdict.REDEEMED
    return uid, text


def _voided(shop: Shop) -> tuple[bytes, str]:
    uid = shop.issue().uid
    text = shop.show(uid)
    assert shop.void(uid).verdict is VoidVerdict.VOIDED
    return uid, text


def _expired(shop: Shop) -> tuple[bytes, str]:
    uid = shop.issue().uid
    text = shop.show(uid)
    shop.clock.tick(limits.TTL_S_DEFAULT)
    return uid, text


def _swept(shop: Shop) -> tuple[bytes, str]:
    uid, text = _expired(shop)
    shop.clock.tick(90)
    assert expiry.sweep(shop.deployment).expired == 1
    return uid, text


def _locked(shop: Shop) -> tuple[bytes, str]:
    issued = shop.issue(version=Version.STATIC)
    text = shop.show(issued.uid)
    wrong = _wrong(issued.pin)
    assert [shop.redeem(text, pin=wrong).verdict for _ in range(3)] == [
        RedeemVerdict.PIN_WRONG,
        RedeemVerdict.PIN_WRONG,
        RedeemVerdict.LOCKED,
    ]
    return issued.uid, text


def _wrong(pin: str) -> str:
    return f"{(int(pin) + 1) % 1_000_000:06d}"


# --- render -------------------------------------------------------------------------------------------------------
@case(RenderVerdict.RENDERED)
def _rendered(shop: Shop) -> Act:
    uid = shop.issue().uid
    return lambda: shop.render(uid, count=5)


@case(RenderVerdict.UNKNOWN_CODE)
def _render_unknown(shop: Shop) -> Act:
    return lambda: shop.render(b"\0" * 8)


@case(RenderVerdict.UNKNOWN_CODE)
def _render_of_others(shop: Shop) -> Act:
    uid = shop.issue().uid
    return lambda: shop.render(uid, mall_id=OTHER_MALL)


@case(RenderVerdict.ALREADY_REDEEMED, RenderVerdict.VOIDED, RenderVerdict.EXPIRED, RenderVerdict.LOCKED)
def _render_ended(shop: Shop, wanted: RenderVerdict) -> Act:
    prepare = {"ALREADY_REDEEMED": _redeemed, "VOIDED": _voided, "EXPIRED": _expired, "LOCKED": _locked}
    uid, _ = prepare[wanted.slug](shop)
    return lambda: shop.render(uid)


@case(RenderVerdict.EXPIRED)
def _render_swept(shop: Shop) -> Act:
    uid, _ = _swept(shop)
    return lambda: shop.render(uid)


@case(RenderVerdict.NOT_CONFIRMED)
def _render_held(shop: Shop) -> Act:
    uid = shop.hold().uid
    return lambda: shop.render(uid)


@case(RenderVerdict.LOCATION_REQUIRED)
def _render_no_position(shop: Shop) -> Act:
    shop.put_policies(Policy("deployment", customer_location="required"))
    uid = shop.issue().uid
    return lambda: shop.render(uid)


@case(RenderVerdict.LOCATION_UNRELIABLE)
def _render_vague_position(shop: Shop) -> Act:
    shop.put_policies(Policy("deployment", customer_location="optional"))
    uid = shop.issue().uid
    return lambda: shop.render(uid, position=north(0, accuracy_m=201))


@case(RenderVerdict.OUT_OF_RANGE)
def _render_at_home(shop: Shop) -> Act:
    shop.put_policies(Policy("deployment", customer_location="optional"))
    uid = shop.issue().uid
    return lambda: shop.render(uid, position=north(5000), request_id=shop.new_id())


@case(RenderVerdict.TOO_MANY_CHANGES)
def _render_much_changed(shop: Shop) -> Act:
    shop.receive(90)
    uid = shop.issue(lines=(Line(100, 60),)).uid
    for _ in range(30):
        shop.clock.tick(4)
        assert shop.redeem(shop.show(uid), lines=(Line(100, 1),)).verdict.success
    return lambda: shop.render(uid, count=2)


# --- redeem and inspect: what both refuse for the same reason -----------------------------------------------------
def _try(shop: Shop, wanted: Verdict, text: str, **fields: Any) -> Act:
    if isinstance(wanted, InspectVerdict):
        return lambda: shop.inspect(text, **fields)
    return lambda: shop.redeem(text, **fields)


@case(RedeemVerdict.REDEEMED, InspectVerdict.REDEEMABLE)
def _good(shop: Shop, wanted: Verdict) -> Act:
    return _try(shop, wanted, shop.show(shop.issue().uid), position=north(400))


@case(RedeemVerdict.ALREADY_REDEEMED, InspectVerdict.ALREADY_REDEEMED)
def _second_scan(shop: Shop, wanted: Verdict) -> Act:
    _, text = _redeemed(shop)
    return _try(shop, wanted, text)


@case(RedeemVerdict.EXPIRED, InspectVerdict.EXPIRED)
def _late(shop: Shop, wanted: Verdict) -> Act:
    _, text = _expired(shop)
    return _try(shop, wanted, text)


@case(RedeemVerdict.EXPIRED, InspectVerdict.EXPIRED)
def _later(shop: Shop, wanted: Verdict) -> Act:
    _, text = _swept(shop)
    return _try(shop, wanted, text)


@case(RedeemVerdict.VOIDED, InspectVerdict.VOIDED)
def _void(shop: Shop, wanted: Verdict) -> Act:
    _, text = _voided(shop)
    return _try(shop, wanted, text)


@case(RedeemVerdict.STALE_CODE, InspectVerdict.STALE_CODE)
def _screenshot(shop: Shop, wanted: Verdict) -> Act:
    text = shop.show(shop.issue().uid)
    shop.clock.tick(120)
    return _try(shop, wanted, text)


@case(RedeemVerdict.INVALID_CODE, InspectVerdict.INVALID_CODE)
def _flipped(shop: Shop, wanted: Verdict) -> Act:
    text = shop.show(shop.issue().uid)
    return _try(shop, wanted, text[:-1] + ("0" if text[-1] != "0" else "1"))


@case(RedeemVerdict.UNKNOWN_CODE, InspectVerdict.UNKNOWN_CODE)
def _code_of_others(shop: Shop, wanted: Verdict) -> Act:
    text = shop.show(shop.issue().uid)
    return _try(shop, wanted, text, terminal=Terminal(OTHER_MALL, STORE, 7))


@case(RedeemVerdict.UNKNOWN_CODE, InspectVerdict.UNKNOWN_CODE)
def _forgotten(shop: Shop, wanted: Verdict) -> Act:
    _, text = _voided(shop)
    shop.clock.tick(limits.AFTERLIFE_S + 180)
    assert expiry.sweep(shop.deployment).forgotten == 1
    return _try(shop, wanted, text)


@case(RedeemVerdict.WRONG_STORE, InspectVerdict.WRONG_STORE)
def _next_door(shop: Shop, wanted: Verdict) -> Act:
    text = shop.show(shop.issue().uid)
    return _try(shop, wanted, text, terminal=Terminal(MALL, NEIGHBOUR, 7))


@case(RedeemVerdict.WRONG_STORE, InspectVerdict.WRONG_STORE)
def _far_away(shop: Shop, wanted: Verdict) -> Act:
    text = shop.show(shop.issue().uid)
    return _try(shop, wanted, text, terminal=Terminal(MALL, FAR_STORE, 7))


@case(RedeemVerdict.OUT_OF_RANGE, InspectVerdict.OUT_OF_RANGE)
def _five_km_away(shop: Shop, wanted: Verdict) -> Act:
    return _try(shop, wanted, shop.show(shop.issue().uid), position=north(5000))


@case(RedeemVerdict.LOCATION_REQUIRED, InspectVerdict.LOCATION_REQUIRED)
def _no_position(shop: Shop, wanted: Verdict) -> Act:
    shop.put_store(terminal_location="required")
    return _try(shop, wanted, shop.show(shop.issue().uid))


@case(RedeemVerdict.LOCATION_UNRELIABLE, InspectVerdict.LOCATION_UNRELIABLE)
def _vague_position(shop: Shop, wanted: Verdict) -> Act:
    return _try(shop, wanted, shop.show(shop.issue().uid), position=north(0, accuracy_m=201))


@case(RedeemVerdict.LOCKED, InspectVerdict.LOCKED)
def _lock(shop: Shop, wanted: Verdict) -> Act:
    _, text = _locked(shop)
    return _try(shop, wanted, text)


@case(RedeemVerdict.OUT_OF_STOCK, InspectVerdict.OUT_OF_STOCK)
def _empty_shelf(shop: Shop, wanted: Verdict) -> Act:
    text = shop.show(shop.issue().uid)
    shop.receive(0, change=StockChange.COUNT)
    return _try(shop, wanted, text)


@case(RedeemVerdict.STORE_CLOSED, InspectVerdict.STORE_CLOSED)
def _closed(shop: Shop, wanted: Verdict) -> Act:
    text = shop.show(shop.issue().uid)
    shop.put_store(closed=True)
    return _try(shop, wanted, text)


@case(RedeemVerdict.NOT_CONFIRMED, InspectVerdict.NOT_CONFIRMED)
def _not_paid(shop: Shop, wanted: Verdict) -> Act:
    uid = shop.hold().uid
    # No payload of it was ever shown, so this one is sealed here.
    keys = shop.deployment.control.copy().usable_keys()
    [text] = issuance.seal(keys, shop.record(uid), [shop.clock.now_s])
    return _try(shop, wanted, text)


@case(RedeemVerdict.OUTSIDE_WINDOW, InspectVerdict.OUTSIDE_WINDOW)
def _outside_window(shop: Shop, wanted: Verdict) -> Act:
    shop.receive(40, change=StockChange.BASELINE)
    text = shop.show(shop.issue().uid)
    # Shanghai is eight hours ahead of UTC all year.
    now_min = (START_MS // 60_000 + 8 * 60) % (24 * 60)
    shop.put_store(pickup_windows=(Window(now_min - 60, now_min - 1, name="早市"),))
    return _try(shop, wanted, text)


# --- redeem alone -------------------------------------------------------------------------------------------------
@case(RedeemVerdict.PIN_REQUIRED)
def _no_pin(shop: Shop) -> Act:
    text = shop.show(shop.issue(version=Version.STATIC).uid)
    return lambda: shop.redeem(text)


@case(RedeemVerdict.PIN_WRONG)
def _wrong_pin(shop: Shop) -> Act:
    issued = shop.issue(version=Version.STATIC)
    text = shop.show(issued.uid)
    return lambda: shop.redeem(text, pin=_wrong(issued.pin))


@case(RedeemVerdict.PROOF_REQUIRED)
def _no_proof(shop: Shop) -> Act:
    put_provider(shop)
    text = shop.show(shop.issue(version=Version.VALUABLE).uid)
    return lambda: shop.redeem(text)


@case(RedeemVerdict.PROOF_REJECTED)
def _bad_proof(shop: Shop) -> Act:
    put_provider(shop)
    text = shop.show(shop.issue(version=Version.VALUABLE).uid)
    return lambda: shop.redeem(text, proof_token="not a token")


@case(RedeemVerdict.NOTHING_LEFT)
def _too_many_wanted(shop: Shop) -> Act:
    text = shop.show(shop.issue().uid)
    return lambda: shop.redeem(text, lines=(Line(100, 2),))


# --- reverse ------------------------------------------------------------------------------------------------------
@case(ReverseVerdict.REVERSED)
def _taken_back(shop: Shop) -> Act:
    uid, _ = _redeemed(shop)
    return lambda: shop.reverse(uid, reason="顾客退回")


@case(ReverseVerdict.NOT_REDEEMED)
def _reverse_live(shop: Shop) -> Act:
    uid = shop.issue().uid
    return lambda: shop.reverse(uid)


@case(ReverseVerdict.NOT_REDEEMED)
def _reverse_more_than_is_out(shop: Shop) -> Act:
    uid, _ = _redeemed(shop)
    return lambda: shop.reverse(uid, lines=(Line(100, 2),))


@case(ReverseVerdict.NOT_REDEEMED)
def _reverse_voided(shop: Shop) -> Act:
    uid, _ = _voided(shop)
    return lambda: shop.reverse(uid)


@case(ReverseVerdict.REVERSAL_CLOSED)
def _reverse_too_late(shop: Shop) -> Act:
    uid, _ = _redeemed(shop)
    shop.clock.tick(limits.REVERSAL_WINDOW_S_DEFAULT)
    return lambda: shop.reverse(uid)


@case(ReverseVerdict.REVERSAL_CLOSED)
def _reverse_partly_void(shop: Shop) -> Act:
    uid = shop.issue(lines=(Line(100, 2),)).uid
    shop.redeem(shop.show(uid), lines=(Line(100, 1),))
    shop.void(uid)
    return lambda: shop.reverse(uid)


@case(ReverseVerdict.REVERSAL_CLOSED)
def _reverse_never(shop: Shop) -> Act:
    """A policy without reversals: not even in the same millisecond."""
    shop.put_policies(Policy("deployment", reversal_window_s=0))
    uid, _ = _redeemed(shop)
    return lambda: shop.reverse(uid)


@case(ReverseVerdict.REVERSAL_LIMIT)
def _reverse_too_often(shop: Shop) -> Act:
    shop.put_policies(Policy("deployment", cycles_max=1))
    uid, _ = _redeemed(shop)
    shop.reverse(uid)
    shop.clock.tick(4)
    shop.redeem(shop.show(uid))
    return lambda: shop.reverse(uid)


@case(ReverseVerdict.UNKNOWN_CODE)
def _reverse_unknown(shop: Shop) -> Act:
    return lambda: shop.reverse(b"\0" * 8)


@case(ReverseVerdict.UNKNOWN_CODE)
def _reverse_outside(shop: Shop) -> Act:
    return lambda: shop.reverse(b"\xff" * 8)


@case(ReverseVerdict.UNKNOWN_CODE)
def _reverse_of_others(shop: Shop) -> Act:
    uid, _ = _redeemed(shop)
    return lambda: shop.reverse(uid, terminal=Terminal(OTHER_MALL, STORE, 7))


@case(ReverseVerdict.WRONG_STORE)
def _reverse_next_door(shop: Shop) -> Act:
    uid, _ = _redeemed(shop)
    return lambda: shop.reverse(uid, terminal=Terminal(MALL, NEIGHBOUR, 7))


# --- reviews ------------------------------------------------------------------------------------------------------
@case(ReviewVerdict.APPROVED, ReviewVerdict.REDEEMED, ReviewVerdict.VOIDED)
def _decided(shop: Shop, wanted: Verdict) -> Act:
    decisions = {"APPROVED": Decision.APPROVE, "REDEEMED": Decision.REDEEM, "VOIDED": Decision.VOID}
    uid, _ = _locked(shop)
    return lambda: shop.decide(uid, decisions[wanted.slug], reason="核对过证件")


@case(ReviewVerdict.NOT_LOCKED)
def _decide_live(shop: Shop) -> Act:
    uid = shop.issue().uid
    return lambda: shop.decide(uid, Decision.APPROVE)


@case(ReviewVerdict.UNKNOWN_CODE)
def _decide_unknown(shop: Shop) -> Act:
    return lambda: shop.decide(b"\0" * 8, Decision.APPROVE)


@case(ReviewVerdict.UNKNOWN_CODE)
def _decide_outside(shop: Shop) -> Act:
    return lambda: shop.decide(b"\xff" * 8, Decision.APPROVE)


@case(ReviewVerdict.UNKNOWN_CODE)
def _decide_of_others(shop: Shop) -> Act:
    uid, _ = _locked(shop)
    return lambda: shop.decide(uid, Decision.APPROVE, mall_id=OTHER_MALL)


@case(ReviewVerdict.EXPIRED)
def _decide_too_late(shop: Shop) -> Act:
    uid, _ = _locked(shop)
    shop.clock.tick(limits.TTL_S_DEFAULT)
    return lambda: shop.decide(uid, Decision.APPROVE)


@case(ReviewVerdict.OUT_OF_STOCK)
def _decide_empty_shelf(shop: Shop) -> Act:
    uid, _ = _locked(shop)
    shop.receive(0, change=StockChange.COUNT)
    return lambda: shop.decide(uid, Decision.REDEEM)


@case(ReviewVerdict.OWN_TRY)
def _decide_own_try(shop: Shop) -> Act:
    uid = shop.issue(version=Version.STATIC).uid
    shop.lock(uid, actor="clerk:bob")
    return lambda: shop.decide(uid, Decision.APPROVE, actor="clerk:bob")


# --- transfer -----------------------------------------------------------------------------------------------------
@case(TransferVerdict.TRANSFERRED)
def _transferred(shop: Shop) -> Act:
    return lambda: shop.transfer(3)


@case(TransferVerdict.STOCK_SHORT)
def _transfer_promised(shop: Shop) -> Act:
    shop.issue(lines=(Line(100, 8),))
    return lambda: shop.transfer(3)


@case(TransferVerdict.UNKNOWN_SKU)
def _transfer_unknown_sku(shop: Shop) -> Act:
    return lambda: shop.transfer(3, sku_id=999)


@case(TransferVerdict.BUNDLE)
def _transfer_bundle(shop: Shop) -> Act:
    shop.put_bundle()
    return lambda: shop.transfer(3, sku_id=BUNDLE)


@case(TransferVerdict.ABOVE_LIMIT)
def _transfer_too_much(shop: Shop) -> Act:
    shop.receive(limits.STOCK_MAX - 2, store_id=FAR_STORE)
    return lambda: shop.transfer(3)


@case(TransferVerdict.UNKNOWN_STORE)
def _transfer_from_nowhere(shop: Shop) -> Act:
    return lambda: shop.transfer(3, from_store_id=998)


@case(TransferVerdict.UNKNOWN_STORE)
def _transfer_to_others(shop: Shop) -> Act:
    shop.put_store(NEIGHBOUR, mall_ids=(OTHER_MALL,))
    return lambda: shop.transfer(3, to_store_id=NEIGHBOUR)


# --- void ---------------------------------------------------------------------------------------------------------
@case(VoidVerdict.VOIDED)
def _void_live(shop: Shop) -> Act:
    uid = shop.issue().uid
    return lambda: shop.void(uid, reason="顾客退款", actor="mall:1")


@case(VoidVerdict.VOIDED)
def _void_locked(shop: Shop) -> Act:
    uid, _ = _locked(shop)
    return lambda: shop.void(uid)


@case(VoidVerdict.ALREADY_VOIDED)
def _void_again(shop: Shop) -> Act:
    uid, _ = _voided(shop)
    return lambda: shop.void(uid)


@case(VoidVerdict.ALREADY_REDEEMED)
def _void_redeemed(shop: Shop) -> Act:
    uid, _ = _redeemed(shop)
    return lambda: shop.void(uid)


@case(VoidVerdict.EXPIRED)
def _void_expired(shop: Shop) -> Act:
    uid, _ = _expired(shop)
    return lambda: shop.void(uid)


@case(VoidVerdict.EXPIRED)
def _void_swept(shop: Shop) -> Act:
    uid, _ = _swept(shop)
    return lambda: shop.void(uid)


@case(VoidVerdict.UNKNOWN_CODE)
def _void_unknown(shop: Shop) -> Act:
    return lambda: shop.void(b"\0" * 8)


@case(VoidVerdict.UNKNOWN_CODE)
def _void_outside(shop: Shop) -> Act:
    return lambda: shop.void(b"\xff" * 8)


@case(VoidVerdict.UNKNOWN_CODE)
def _void_of_others(shop: Shop) -> Act:
    uid = shop.issue().uid
    return lambda: shop.void(uid, mall_id=OTHER_MALL)


# --- stock --------------------------------------------------------------------------------------------------------
@case(StockVerdict.RECEIVED)
def _received(shop: Shop) -> Act:
    return lambda: shop.receive(5, reason="到货", actor="warehouse:3")


@case(StockVerdict.ADJUSTED)
def _adjusted(shop: Shop) -> Act:
    return lambda: shop.receive(-3, change=StockChange.ADJUST_BY, reason="破损")


@case(StockVerdict.BELOW_ZERO)
def _below_zero(shop: Shop) -> Act:
    return lambda: shop.receive(-11, change=StockChange.ADJUST_BY)


@case(StockVerdict.ABOVE_LIMIT)
def _above_limit(shop: Shop) -> Act:
    return lambda: shop.receive(limits.STOCK_MAX)


@case(StockVerdict.UNKNOWN_SKU)
def _stock_unknown_sku(shop: Shop) -> Act:
    return lambda: shop.receive(5, sku_id=999)


@case(StockVerdict.UNKNOWN_STORE)
def _stock_unknown_store(shop: Shop) -> Act:
    return lambda: shop.receive(5, store_id=999)


@case(StockVerdict.BUNDLE)
def _stock_of_a_bundle(shop: Shop) -> Act:
    shop.put_bundle()
    return lambda: shop.receive(5, sku_id=BUNDLE)


# --- the tests ----------------------------------------------------------------------------------------------------
def _id(value: object) -> str:
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    prepare = value.args[0] if isinstance(value, partial) else value
    return str(getattr(prepare, "__name__", "")).strip("_")


@pytest.mark.parametrize("enum", ENUMS)
def test_every_verdict_has_a_case(enum: type[Verdict]) -> None:
    assert {wanted for wanted, _ in CASES if isinstance(wanted, enum)} == set(enum)


def test_every_enum_of_verdicts_is_looked_at() -> None:
    enums = {
        value for value in vars(verdict).values() if isinstance(value, type) and issubclass(value, Verdict)
    }
    assert enums - {Verdict} == set(ENUMS)


@pytest.mark.parametrize(("wanted", "prepare"), CASES, ids=_id)
def test_verdict_and_what_it_changes(shop: Shop, wanted: Verdict, prepare: Callable[[Shop], Act]) -> None:
    shop.stock_all(10)
    act = prepare(shop)
    before, events, figures = shop.dump(), shop.events(), shop.figures()
    tried = attempts(shop.deployment)

    answer = act()

    assert answer.verdict is wanted
    new = shop.events()[len(events) :]
    arrivals = [event for event in new if event.type is EventType.TRANSFER_IN]
    assert len(arrivals) == (wanted is TransferVerdict.TRANSFERRED)
    new = [event for event in new if event not in arrivals]
    assert len(new) == (wanted in EVENTS)
    if new:
        assert isinstance(answer, RenderAnswer) or answer.event == new[0].id
    else:
        assert getattr(answer, "event", None) is None or wanted is RedeemVerdict.LOCKED
        assert shop.dump() == before
    on_hand, reserved = CHANGES.get(wanted, (0, 0))
    assert shop.figures() == replace(
        figures, on_hand=figures.on_hand + on_hand, reserved=figures.reserved + reserved
    )
    recorded = isinstance(wanted, RedeemVerdict) and not new and wanted is not RedeemVerdict.INVALID_CODE
    assert attempts(shop.deployment) - tried == recorded
    _check_sentences(wanted, answer)


def _check_sentences(wanted: Verdict, answer: Any) -> None:
    """Every fact that a sentence names is in the answer."""
    # What a refused render says of the code, it says by showing its record.
    only_record = isinstance(answer, RenderAnswer) and wanted is not RenderVerdict.OUT_OF_RANGE
    source: Any = answer.record if only_record else answer
    names = {name for _, name, _, _ in string.Formatter().parse(wanted.answer.zh + wanted.answer.en) if name}
    if {"by_zh", "by_en"} & names:
        # Who it was, is said in words that the terminal's number makes.
        names = names - {"by_zh", "by_en"} | {"terminal_id"}
    worded: dict[str, Any] = {}
    for made, fact in (("opens", "window"), ("methods", "proof_methods")):
        # So is when it opens, and how the customer is identified: in test_hours and test_proof.
        if f"{made}_zh" in names:
            names = names - {f"{made}_zh", f"{made}_en"}
            worded[fact] = getattr(source, fact)
    facts: dict[str, object] = {}
    for name in names:
        if name == "at":
            facts[name] = getattr(source, "at_ms", 0) or source.redeemed_at_ms
        elif name == "review_id":
            facts[name] = getattr(source, "review_id", "") or str(source.lock)
        elif name == "on_hand" and isinstance(answer, StockAnswer):
            assert answer.figures is not None
            facts[name] = answer.figures.on_hand
        else:
            facts[name] = getattr(source, name)
    assert all(facts.values()), facts
    zh, en = wanted.say(**facts, **worded)
    assert zh
    assert en
    assert "…" not in zh + en
    assert "{" not in zh + en
    for value in facts.values():
        assert str(value) in zh
        assert str(value) in en


@pytest.mark.parametrize("one", [member for enum in ENUMS for member in enum], ids=_id)
def test_sentences_and_next_step(one: Verdict) -> None:
    assert isinstance(one.next, Next)
    zh, en = one.say()
    assert any("一" <= letter <= "鿿" for letter in zh)
    assert en.isascii() or "…" in en
    assert zh.endswith("。")
    assert en.endswith(".")
    assert type(one).numbered(one.number) is one
    assert one.slug == one.name


def test_what_succeeds() -> None:
    assert {one.name for enum in ENUMS for one in enum if one.success} == {
        "ISSUED", "HELD", "CONFIRMED", "EXTENDED", "RENDERED", "REDEEMED", "REDEEMABLE", "REVERSED", "APPROVED", "VOIDED",
        "RECEIVED", "ADJUSTED", "TRANSFERRED",
    }  # fmt: skip
    assert VoidVerdict.VOIDED.success
    assert not RedeemVerdict.VOIDED.success


def test_inspect_numbers_equal_those_of_redeem() -> None:
    shared = {one.name: one.number for one in RedeemVerdict}
    for one in InspectVerdict:
        assert one is InspectVerdict.REDEEMABLE or shared[one.name] == one.number
    assert InspectVerdict.REDEEMABLE.number == RedeemVerdict.REDEEMED.number
