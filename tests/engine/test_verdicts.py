"""Every answer of every verb, produced at least once on a real store, with exactly what it changes there."""

from __future__ import annotations

import string
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any, Final

import pytest

from engine import expiry, limits, verdict
from engine.calls import RenderAnswer, StockAnswer, StockChange, StockFigures
from engine.claims import Line, Terminal, Version
from engine.verdict import (
    InspectVerdict,
    IssueVerdict,
    Next,
    RedeemVerdict,
    RenderVerdict,
    StockVerdict,
    Verdict,
    VoidVerdict,
)
from tests.engine.shop import FAR_STORE, MALL, NEIGHBOUR, OTHER_MALL, STORE, Shop, attempts, north

Act = Callable[[], Any]
"""The call under test; all that must happen before it has happened."""

ENUMS: Final = (IssueVerdict, RenderVerdict, RedeemVerdict, InspectVerdict, VoidVerdict, StockVerdict)

CHANGES: Final[dict[Verdict, tuple[int, int]]] = {
    IssueVerdict.ISSUED: (0, +1),
    RedeemVerdict.REDEEMED: (-1, -1),
    VoidVerdict.VOIDED: (0, -1),
    StockVerdict.RECEIVED: (+5, 0),
    StockVerdict.ADJUSTED: (-3, 0),
}
"""What each verdict changes of on_hand and reserved of the SKU at hand. All others: nothing."""

EVENTS: Final = CHANGES.keys() | {RedeemVerdict.PIN_WRONG}
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


@case(IssueVerdict.STOCK_SHORT)
def _stock_short(shop: Shop) -> Act:
    shop.issue(lines=(Line(100, 10),))
    return shop.issue


@case(IssueVerdict.UNKNOWN_SKU)
def _issue_unknown_sku(shop: Shop) -> Act:
    return lambda: shop.issue(lines=(Line(100, 1), Line(999, 1)))


@case(IssueVerdict.UNKNOWN_STORE)
def _issue_unknown_store(shop: Shop) -> Act:
    return lambda: shop.issue(store_id=999)


@case(IssueVerdict.UNKNOWN_STORE)
def _issue_store_of_others(shop: Shop) -> Act:
    shop.put_store(NEIGHBOUR, mall_ids=(OTHER_MALL,))
    return lambda: shop.issue(store_id=NEIGHBOUR)


@case(IssueVerdict.STORE_CLOSED)
def _issue_closed(shop: Shop) -> Act:
    shop.put_store(closed=True)
    return shop.issue


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


@case(RedeemVerdict.NOTHING_LEFT)
def _too_many_wanted(shop: Shop) -> Act:
    text = shop.show(shop.issue().uid)
    return lambda: shop.redeem(text, lines=(Line(100, 2),))


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
    assert len(new) == (wanted in EVENTS)
    if new:
        assert answer.event == new[0].id
    else:
        assert getattr(answer, "event", None) is None or wanted is RedeemVerdict.LOCKED
        assert shop.dump() == before
    on_hand, reserved = CHANGES.get(wanted, (0, 0))
    assert shop.figures() == StockFigures(100, figures.on_hand + on_hand, figures.reserved + reserved, 0, 0)
    recorded = isinstance(wanted, RedeemVerdict) and not new and wanted is not RedeemVerdict.INVALID_CODE
    assert attempts(shop.deployment) - tried == recorded
    _check_sentences(wanted, answer)


def _check_sentences(wanted: Verdict, answer: Any) -> None:
    """Every fact that a sentence names is in the answer."""
    source: Any = answer.record if isinstance(answer, RenderAnswer) else answer
    names = {name for _, name, _, _ in string.Formatter().parse(wanted.answer.zh + wanted.answer.en) if name}
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
    zh, en = wanted.say(**facts)
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
        "ISSUED", "RENDERED", "REDEEMED", "REDEEMABLE", "VOIDED", "RECEIVED", "ADJUSTED",
    }  # fmt: skip
    assert VoidVerdict.VOIDED.success
    assert not RedeemVerdict.VOIDED.success


def test_inspect_numbers_equal_those_of_redeem() -> None:
    shared = {one.name: one.number for one in RedeemVerdict}
    for one in InspectVerdict:
        assert one is InspectVerdict.REDEEMABLE or shared[one.name] == one.number
    assert InspectVerdict.REDEEMABLE.number == RedeemVerdict.REDEEMED.number
