"""Request ids: a retry gets the first answer, the same id with another body is refused, a refusal is forgotten."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import pytest

from engine import expiry, issuance, limits, redemption, stock
from engine.calls import RedeemAnswer, RedeemRequest, StockChange, StockRequest, VoidAnswer, VoidRequest
from engine.claims import Channel, Line, Split, State, Suite, Terminal, Version
from engine.errors import Exhausted, PickgateError, RequestIdReused
from engine.policies import VERSION_OF_MODE, Policy
from engine.state import register
from engine.state.events import EventType
from engine.stores import CatalogueEntry, Mall, PickupMode
from engine.verdict import IssueVerdict, RedeemVerdict, StockVerdict, VoidVerdict
from tests.engine.proofs import put_provider
from tests.engine.shop import FAR_STORE, MALL, NEIGHBOUR, OTHER_MALL, STORE, Shop, north

ID: Final = "the-same-id"
DAY_S: Final = 86_400


def first_again(first: Any, again: Any) -> None:
    """`again` is the first answer, marked as one that was given before."""
    assert not first.replayed
    assert again == replace(first, replayed=True)


# --- issue --------------------------------------------------------------------------------------------------------
def test_issue_again_gets_the_same_code(shop: Shop) -> None:
    shop.stock_all()
    first = shop.issue(request_id=ID, version=Version.STATIC)
    before = shop.dump()
    shop.clock.tick(3600)
    first_again(first, shop.issue(request_id=ID, version=Version.STATIC))
    assert shop.dump() == before


def test_issue_again_gets_its_secrets_and_expiry_after_anything(shop: Shop) -> None:
    """After a redemption, a stocktake, long after; the answer is that of the first moment."""
    shop.stock_all()
    first = shop.issue(request_id=ID, version=Version.STATIC)
    assert shop.redeem(first.typed, pin=first.pin).verdict.success
    shop.receive(0, change=StockChange.COUNT)
    shop.clock.tick(limits.TTL_S_DEFAULT * 1.2)
    first_again(first, shop.issue(request_id=ID, version=Version.STATIC))


@pytest.mark.parametrize(
    ("change", "now"),
    [
        ({"closed": True}, IssueVerdict.STORE_CLOSED),
        ({"mall_ids": (OTHER_MALL,)}, IssueVerdict.UNKNOWN_STORE),
    ],
)
def test_issue_again_after_the_set_up_changed(shop: Shop, change: dict[str, Any], now: IssueVerdict) -> None:
    """The code was made, whatever the store has become since; a new request is judged by what is now."""
    shop.stock_all()
    first = shop.issue(request_id=ID)
    shop.put_store(**change)
    first_again(first, shop.issue(request_id=ID))
    assert shop.issue().verdict is now


OTHER_BODIES: Final[dict[str, dict[str, Any]]] = {
    "store": {"store_id": NEIGHBOUR},
    "store in another partition": {"store_id": FAR_STORE},
    "order": {"order_id": "ORDER-2"},
    "count": {"lines": (Line(100, 2),)},
    "sku": {"lines": (Line(101, 1),)},
    "more lines": {"lines": (Line(100, 1), Line(101, 1))},
    "version": {"version": Version.STATIC},
    "suite": {"suite": Suite.SM},
    "channel": {"channel": Channel.PROMOTION},
    "ttl": {"ttl_s": 3600},
    "amount": {"amount_fen": 1},
    "splits": {"splits": (Split("payee", "role", 0, 0),)},
}


@pytest.mark.parametrize("fields", OTHER_BODIES.values(), ids=OTHER_BODIES)
def test_issue_id_with_another_body(shop: Shop, fields: dict[str, Any]) -> None:
    for store_id in (STORE, NEIGHBOUR, FAR_STORE):
        shop.stock_all(store_id=store_id)
    first = shop.issue(request_id=ID)
    before = shop.dump()
    for _ in range(2):
        with pytest.raises(RequestIdReused) as refused:
            shop.issue(request_id=ID, **fields)
        assert refused.value.field == "request_id"
    assert shop.dump() == before
    first_again(first, shop.issue(request_id=ID))


def test_an_id_is_known_for_as_long_as_its_code_lives_whatever_version_is_asked_for(shop: Shop) -> None:
    """Days after the register of request ids has forgotten it."""
    shop.stock_all()
    first = shop.issue(request_id=ID, ttl_s=30 * 86_400)
    shop.clock.tick(6 * 86_400)
    for version in (Version.STATIC, Version.VALUABLE, None):
        with pytest.raises(RequestIdReused):
            shop.issue(request_id=ID, ttl_s=30 * 86_400, version=version)
    first_again(first, shop.issue(request_id=ID, ttl_s=30 * 86_400))
    assert shop.figures().reserved == 1


def test_lines_in_another_order_are_the_same_body(shop: Shop) -> None:
    shop.stock_all()
    lines = (Line(100, 2), Line(101, 1))
    first = shop.issue(request_id=ID, lines=lines)
    first_again(first, shop.issue(request_id=ID, lines=lines[::-1]))
    text = shop.show(first.uid)
    took = shop.redeem(text, request_id=ID, lines=(Line(100, 1), Line(101, 1)))
    again = shop.redeem(text, request_id=ID, lines=(Line(101, 1), Line(100, 1)))
    assert (took.replayed, again.replayed) == (False, True)
    assert again.event == took.event


def test_who_acts_is_not_part_of_the_body(shop: Shop) -> None:
    shop.stock_all()
    first = shop.issue(request_id=ID, actor="mall:1")
    first_again(first, shop.issue(request_id=ID, actor="mall:1 retry job"))


def test_issue_twice_in_one_batch(shop: Shop) -> None:
    shop.stock_all()
    requests = [
        shop.issue_request(request_id=ID),
        shop.issue_request(request_id=ID),
        shop.issue_request(request_id=ID, order_id="ORDER-2"),
        shop.issue_request(request_id=ID, store_id=FAR_STORE),
        shop.issue_request(),
    ]
    first, again, reused, elsewhere, other = issuance.issue(shop.deployment, requests)
    first_again(first, again)
    assert isinstance(reused, RequestIdReused)
    assert isinstance(elsewhere, RequestIdReused)
    assert not isinstance(other, PickgateError)
    assert other.verdict.success
    assert other.uid != getattr(first, "uid", b"")
    assert (shop.figures().on_hand, shop.figures().reserved) == (10, 2)
    assert shop.figures(store_id=FAR_STORE).reserved == 0


def test_refused_issue_is_forgotten(shop: Shop) -> None:
    assert shop.issue(request_id=ID).verdict is IssueVerdict.STOCK_SHORT
    shop.stock_all()
    answer = shop.issue(request_id=ID)
    assert answer.verdict is IssueVerdict.ISSUED
    assert not answer.replayed


def test_refused_issue_may_come_back_with_another_body(shop: Shop) -> None:
    shop.stock_all(store_id=FAR_STORE)
    assert shop.issue(request_id=ID).verdict is IssueVerdict.STOCK_SHORT
    answer = shop.issue(request_id=ID, store_id=FAR_STORE, order_id="ORDER-2")
    assert answer.verdict is IssueVerdict.ISSUED
    with pytest.raises(RequestIdReused):
        shop.issue(request_id=ID)


def test_scope_is_mall_and_verb(shop: Shop) -> None:
    shop.stock_all()
    shop.stock_all(mall_id=OTHER_MALL)
    first = shop.issue(request_id=ID)
    others = shop.issue(request_id=ID, mall_id=OTHER_MALL)
    assert others.verdict.success
    assert others.uid != first.uid
    assert shop.receive(5, request_id=ID).verdict is StockVerdict.RECEIVED
    assert shop.redeem(shop.show(first.uid), request_id=ID).verdict is RedeemVerdict.REDEEMED
    assert shop.void(others.uid, request_id=ID, mall_id=OTHER_MALL).verdict is VoidVerdict.VOIDED
    shop.deployment.control.put_malls([Mall(3, "Third")], request_id=ID, actor="test")
    shop.deployment.control.put_catalogue([CatalogueEntry(3, 1, "One")], request_id=ID, actor="test")


def test_old_request_with_another_body_does_not_stand_against_its_own_retry(shop: Shop) -> None:
    """The register keeps ids a few days, a record may live for months: afterwards the record alone decides."""
    shop.stock_all()
    first = shop.issue(request_id=ID, ttl_s=60 * DAY_S)
    shop.clock.tick(10 * DAY_S)
    with pytest.raises(RequestIdReused):
        shop.issue(request_id=ID, ttl_s=60 * DAY_S, order_id="ORDER-2")
    first_again(first, shop.issue(request_id=ID, ttl_s=60 * DAY_S))


def test_register_keeps_ids_over_midnights(shop: Shop) -> None:
    shop.stock_all()
    shop.issue(request_id=ID)
    for _ in range(3):
        shop.clock.tick(DAY_S)
        with pytest.raises(RequestIdReused):
            shop.issue(request_id=ID, store_id=FAR_STORE)


# --- redeem -------------------------------------------------------------------------------------------------------
def test_redeem_again_with_a_fresh_payload_long_after(shop: Shop) -> None:
    """The retry comes with another QR, another position, after the stamp went stale and the code expired."""
    shop.stock_all()
    uid = shop.issue(lines=(Line(100, 2),)).uid
    text = shop.show(uid)
    first = shop.redeem(text, request_id=ID, lines=(Line(100, 1),), position=north(10))
    shop.clock.tick(30)
    fresh = shop.show(uid)
    assert fresh != text
    for code, position, wait_s in [
        (fresh, north(5000), 0),
        (fresh, None, 600),
        (text, north(0, accuracy_m=1000), limits.TTL_S_DEFAULT),
    ]:
        shop.clock.tick(wait_s)
        before = shop.dump()
        first_again(first, shop.redeem(code, request_id=ID, lines=(Line(100, 1),), position=position))
        assert shop.dump() == before
    shop.clock.tick(60)
    assert expiry.sweep(shop.deployment).expired == 1
    first_again(first, shop.redeem(text, request_id=ID, lines=(Line(100, 1),)))


def test_redeem_again_after_it_was_voided_or_the_store_closed(shop: Shop) -> None:
    shop.stock_all()
    uid = shop.issue(lines=(Line(100, 2),)).uid
    text = shop.show(uid)
    first = shop.redeem(text, request_id=ID, lines=(Line(100, 1),))
    shop.put_store(closed=True, terminal_location="required")
    first_again(first, shop.redeem(text, request_id=ID, lines=(Line(100, 1),)))
    shop.void(uid)
    first_again(first, shop.redeem(text, request_id=ID, lines=(Line(100, 1),)))


def test_redeem_again_without_its_pin(shop: Shop) -> None:
    shop.stock_all()
    issued = shop.issue(version=Version.STATIC)
    first = shop.redeem(issued.typed, request_id=ID, pin=issued.pin)
    for code, pin in [
        (issued.typed, ""),
        (shop_text(shop, issued.uid), "000000"),
        (issued.typed, issued.pin),
    ]:
        first_again(first, shop.redeem(code, request_id=ID, pin=pin))


def shop_text(shop: Shop, uid: bytes) -> str:
    """Payload of an ended static code, sealed as it was: render refuses ended ones, a printed one still exists."""
    keys = shop.deployment.control.copy().usable_keys()
    return issuance.seal(keys, shop.record(uid), [0])[0]


def test_redeem_id_with_another_body(shop: Shop) -> None:
    shop.stock_all()
    one, other = (shop.issue(lines=(Line(100, 2), Line(101, 2))).uid for _ in range(2))
    first = shop.redeem(shop.show(one), request_id=ID, lines=(Line(100, 1),))
    before = shop.dump()
    for code, lines in [
        (shop.show(other), (Line(100, 1),)),
        (shop.show(one), (Line(100, 2),)),
        (shop.show(one), (Line(101, 1),)),
        (shop.show(one), (Line(100, 1), Line(101, 1))),
        (shop.show(one), ()),
    ]:
        with pytest.raises(RequestIdReused):
            shop.redeem(code, request_id=ID, lines=lines)
    assert shop.dump() == before
    first_again(first, shop.redeem(shop.show(one), request_id=ID, lines=(Line(100, 1),)))


def test_redeem_id_for_a_code_of_another_store_is_refused_and_changes_nothing(shop: Shop) -> None:
    """A code of another store lies in another partition, which knows nothing of the id; it refuses all the same."""
    shop.stock_all()
    shop.stock_all(store_id=FAR_STORE)
    mine, theirs = shop.issue(), shop.issue(store_id=FAR_STORE)
    first = shop.redeem(shop.show(mine.uid), request_id=ID)
    before = shop.dump()
    assert shop.redeem(shop.show(theirs.uid), request_id=ID).verdict is RedeemVerdict.WRONG_STORE
    assert shop.dump() == before
    shop.clock.tick(1)
    assert first.verdict.success


def test_redeem_scope_is_the_terminal(shop: Shop) -> None:
    shop.stock_all()
    uids = [shop.issue().uid for _ in range(2)]
    for uid, terminal_id in zip(uids, (7, 8), strict=True):
        answer = shop.redeem(shop.show(uid), request_id=ID, terminal=Terminal(MALL, STORE, terminal_id))
        assert answer.verdict is RedeemVerdict.REDEEMED
        assert not answer.replayed


def test_redeem_twice_in_one_batch(shop: Shop) -> None:
    shop.stock_all()
    uid, other = shop.issue().uid, shop.issue().uid
    text = shop.show(uid)
    requests = [
        shop.redeem_request(text, request_id=ID),
        shop.redeem_request(text, request_id=ID),
        shop.redeem_request(shop.show(other), request_id=ID),
        shop.redeem_request(text),
    ]
    first, again, reused, late = redemption.redeem(shop.deployment, requests)
    first_again(first, again)
    assert isinstance(reused, RequestIdReused)
    assert isinstance(late, RedeemAnswer)
    assert late.verdict is RedeemVerdict.ALREADY_REDEEMED
    assert late.at_ms == getattr(first, "at_ms", 0)
    assert shop.figures().on_hand == 9
    assert shop.record(other).state is State.LIVE


@pytest.mark.parametrize("same_body", [True, False])
def test_refused_redemption_is_forgotten(shop: Shop, same_body: bool) -> None:
    shop.stock_all()
    uid, other = shop.issue().uid, shop.issue().uid
    text = shop.show(uid)
    assert shop.redeem(text, request_id=ID, position=north(5000)).verdict is RedeemVerdict.OUT_OF_RANGE
    answer = shop.redeem(text if same_body else shop.show(other), request_id=ID, position=north(0))
    assert answer.verdict is RedeemVerdict.REDEEMED
    assert not answer.replayed


def test_answers_are_remembered_until_the_afterlife_ends(shop: Shop) -> None:
    shop.stock_all()
    uid = shop.issue().uid
    text = shop.show(uid)
    first = shop.redeem(text, request_id=ID)
    shop.clock.tick(limits.AFTERLIFE_S - 1)
    assert expiry.sweep(shop.deployment).forgotten == 0
    first_again(first, shop.redeem(text, request_id=ID))
    shop.clock.tick(180)
    assert expiry.sweep(shop.deployment).forgotten == 1
    assert shop.redeem(text, request_id=ID).verdict is RedeemVerdict.UNKNOWN_CODE


def test_a_code_changed_too_often_is_refused_rather_than_forgotten(shop: Shop) -> None:
    """Past the limit nothing more is remembered, so nothing more is done; what was done is still answered."""
    count = limits.REMEMBERED_REQUESTS_MAX
    shop.receive(1000)
    uid = shop.issue(lines=(Line(100, count + 5),)).uid
    # One payload for all: it proves possession, the record says what is left.
    text = shop.show(uid)
    requests = [shop.redeem_request(text, lines=(Line(100, 1),)) for _ in range(count)]
    firsts = redemption.redeem(shop.deployment, requests)
    assert all(isinstance(first, RedeemAnswer) and first.verdict.success for first in firsts)
    with pytest.raises(Exhausted):
        shop.redeem(text, lines=(Line(100, 1),))
    assert shop.figures().on_hand == 1000 - count
    [again] = redemption.redeem(shop.deployment, requests[:1])
    first_again(firsts[0], again)
    assert shop.void(uid).verdict is VoidVerdict.VOIDED
    assert shop.figures().reserved == 0


def test_a_code_extended_too_often_stays_whole(shop: Shop) -> None:
    """A record counts what it remembers in one byte: without a bound the 256th would make nonsense of it."""
    shop.stock_all()
    uid = shop.issue(order_id="ORDER-9").uid
    exp = shop.record(uid).expires_at_s
    for n in range(1, limits.REMEMBERED_REQUESTS_MAX + 1):
        assert shop.extend(uid, exp + n, request_id=f"extend-{n:04}").verdict.success
    before = shop.dump()
    with pytest.raises(Exhausted):
        shop.extend(uid, exp + 1000, request_id=ID)
    assert shop.dump() == before
    assert shop.extend(uid, exp + 1, request_id="extend-0001").replayed
    assert (shop.record(uid).order_id, shop.record(uid).expires_at_s) == (
        "ORDER-9",
        exp + limits.REMEMBERED_REQUESTS_MAX,
    )
    # The id was not used up by the refusal.
    other = shop.issue()
    assert shop.extend(other.uid, other.expires_at_s + 1, request_id=ID).verdict.success
    assert shop.void(uid).verdict is VoidVerdict.VOIDED
    shop.clock.tick(limits.AFTERLIFE_S + 180)
    assert expiry.sweep(shop.deployment).forgotten == 1


# --- hold, confirm, extend ----------------------------------------------------------------------------------------
def test_hold_and_confirm_again(shop: Shop) -> None:
    """Confirming tells the secrets, also again; a hold asked again after that still tells of the hold."""
    shop.stock_all()
    held = shop.hold(request_id=ID, version=Version.STATIC)
    assert shop.hold(request_id=ID, version=Version.STATIC) == replace(held, replayed=True)
    shop.clock.tick(600)
    confirmed = shop.confirm(held.uid, request_id=ID)
    assert confirmed.typed
    assert confirmed.pin
    assert confirmed.expires_at_s == shop.clock.now_s + limits.TTL_S_DEFAULT
    shop.clock.tick(3600)
    first_again(confirmed, shop.confirm(held.uid, request_id=ID))
    assert shop.hold(request_id=ID, version=Version.STATIC) == replace(held, replayed=True)
    assert shop.redeem(confirmed.typed, pin=confirmed.pin).verdict.success
    first_again(confirmed, shop.confirm(held.uid, request_id=ID))


def test_one_id_for_hold_and_issue_makes_two_codes(shop: Shop) -> None:
    """Their scopes differ; both are found by it, the hold as well as the code."""
    shop.stock_all()
    held, issued = shop.hold(request_id=ID), shop.issue(request_id=ID)
    assert held.uid != issued.uid
    [found] = issuance.get_by_request_id(shop.deployment, MALL, [ID])
    assert found is not None
    assert found.uid in (held.uid, issued.uid)
    shop.hold(request_id="another-one")
    [other] = issuance.get_by_request_id(shop.deployment, MALL, ["another-one"])
    assert other is not None
    assert other.state is State.HELD
    assert issuance.get_by_request_id(shop.deployment, OTHER_MALL, [ID]) == [None]


@pytest.mark.parametrize(
    ("before", "after"), [("dynamic", "static"), ("static", "valuable"), ("valuable", "dynamic")]
)
@pytest.mark.parametrize("verb", ["issue", "hold"])
def test_again_after_the_policy_asks_for_another_kind_of_code(
    shop: Shop, before: PickupMode, after: PickupMode, verb: str
) -> None:
    shop.stock_all()
    put_provider(shop)
    make = getattr(shop, verb)
    shop.put_policies(Policy("deployment", pickup_mode=before, code_ttl_s=600, hold_s=60))
    first = make(request_id=ID, version=None)
    shop.put_policies(Policy("deployment", pickup_mode=after, code_ttl_s=7200, hold_s=600))
    assert make(request_id=ID, version=None) == replace(first, replayed=True)
    assert shop.figures().reserved == 1
    with pytest.raises(RequestIdReused):
        make(request_id=ID, version=VERSION_OF_MODE[before])
    new = make(version=None)
    assert shop.record(new.uid).version is VERSION_OF_MODE[after]


def test_extend_again_after_a_later_one(shop: Shop) -> None:
    shop.stock_all()
    issued = shop.issue()
    first = shop.extend(issued.uid, issued.expires_at_s + 100, request_id=ID)
    shop.extend(issued.uid, issued.expires_at_s + 200)
    assert shop.extend(issued.uid, issued.expires_at_s + 100, request_id=ID) == replace(first, replayed=True)
    with pytest.raises(RequestIdReused):
        shop.extend(issued.uid, issued.expires_at_s + 300, request_id=ID)
    # Of three entries in the due index only the last one applies.
    shop.clock.tick(limits.TTL_S_DEFAULT + 199)
    assert expiry.sweep(shop.deployment).expired == 0
    shop.clock.tick(72)
    assert expiry.sweep(shop.deployment).expired == 1
    assert [event.type for event in shop.events()].count(EventType.EXPIRED) == 1


# --- void ---------------------------------------------------------------------------------------------------------
def test_void_again(shop: Shop) -> None:
    shop.stock_all()
    uid = shop.issue(lines=(Line(100, 3),)).uid
    first = shop.void(uid, request_id=ID, reason="refund")
    shop.clock.tick(3600)
    before = shop.dump()
    first_again(first, shop.void(uid, request_id=ID, reason="asked twice"))
    assert shop.dump() == before
    assert shop.void(uid).verdict is VoidVerdict.ALREADY_VOIDED


@pytest.mark.parametrize("store_id", [STORE, FAR_STORE])
def test_void_id_with_another_code(shop: Shop, store_id: int) -> None:
    shop.stock_all()
    shop.stock_all(store_id=store_id)
    uid, other = shop.issue().uid, shop.issue(store_id=store_id).uid
    shop.void(uid, request_id=ID)
    before = shop.dump()
    with pytest.raises(RequestIdReused):
        shop.void(other, request_id=ID)
    unknown = other[:7] + bytes([other[7] ^ 1])
    with pytest.raises(RequestIdReused):
        shop.void(unknown, request_id=ID)
    assert shop.dump() == before


def test_void_in_one_batch(shop: Shop) -> None:
    shop.stock_all()
    uid, other = shop.issue().uid, shop.issue().uid
    requests = [VoidRequest(MALL, ID, uid), VoidRequest(MALL, ID, uid), VoidRequest(MALL, ID, other)]
    first, again, reused = issuance.void(shop.deployment, requests)
    first_again(first, again)
    assert isinstance(reused, RequestIdReused)
    assert isinstance(first, VoidAnswer)
    assert first.verdict is VoidVerdict.VOIDED
    assert shop.figures().reserved == 1


def test_refused_void_is_forgotten(shop: Shop) -> None:
    shop.stock_all()
    redeemed, live = shop.issue().uid, shop.issue().uid
    shop.redeem(shop.show(redeemed))
    assert shop.void(redeemed, request_id=ID).verdict is VoidVerdict.ALREADY_REDEEMED
    assert shop.void(live, request_id=ID).verdict is VoidVerdict.VOIDED


# --- stock --------------------------------------------------------------------------------------------------------
def test_stock_again(shop: Shop) -> None:
    first = shop.receive(5, request_id=ID)
    shop.receive(100)
    before = shop.dump()
    first_again(first, shop.receive(5, request_id=ID))
    assert shop.dump() == before


def test_stock_again_after_the_set_up_changed(shop: Shop) -> None:
    first = shop.receive(5, request_id=ID)
    shop.put_store(mall_ids=(OTHER_MALL,))
    first_again(first, shop.receive(5, request_id=ID))
    assert shop.receive(5).verdict is StockVerdict.UNKNOWN_STORE


@pytest.mark.parametrize(
    "fields",
    [
        {"amount": 6},
        {"sku_id": 101},
        {"change": StockChange.COUNT},
        {"store_id": NEIGHBOUR},
        {"store_id": FAR_STORE},
    ],
)
def test_stock_id_with_another_body(shop: Shop, fields: dict[str, Any]) -> None:
    fields = dict(fields)
    shop.receive(5, request_id=ID)
    before = shop.dump()
    with pytest.raises(RequestIdReused):
        shop.receive(fields.pop("amount", 5), request_id=ID, **fields)
    assert shop.dump() == before


def test_stock_in_one_batch(shop: Shop) -> None:
    requests = [
        shop.stock_request(5, request_id=ID),
        shop.stock_request(5, request_id=ID),
        shop.stock_request(7),
    ]
    first, again, other = stock.change(shop.deployment, requests)
    first_again(first, again)
    assert getattr(other, "figures").on_hand == 12  # noqa: B009 - an error would have no figures
    assert shop.figures().on_hand == 12


def take_off(shop: Shop, **fields: Any) -> StockRequest:
    return shop.stock_request(-5, request_id=ID, change=StockChange.ADJUST_BY, **fields)


def test_refused_and_then_done_in_one_batch_is_remembered_everywhere(shop: Shop) -> None:
    """The refusal in front must not strike out what the success behind it entered."""
    refused, _, done = stock.change(shop.deployment, [take_off(shop), shop.stock_request(10), take_off(shop)])
    assert getattr(refused, "verdict", None) is StockVerdict.BELOW_ZERO
    assert getattr(done, "verdict", None) is StockVerdict.ADJUSTED
    shop.receive(10, store_id=FAR_STORE)
    [reused] = stock.change(shop.deployment, [take_off(shop, store_id=FAR_STORE)])
    assert isinstance(reused, RequestIdReused)
    assert shop.figures(store_id=FAR_STORE).on_hand == 10


def test_refused_stock_change_is_forgotten(shop: Shop) -> None:
    [refused] = stock.change(shop.deployment, [take_off(shop)])
    assert getattr(refused, "verdict", None) is StockVerdict.BELOW_ZERO
    shop.receive(10, store_id=FAR_STORE)
    [done] = stock.change(shop.deployment, [take_off(shop, store_id=FAR_STORE)])
    assert getattr(done, "verdict", None) is StockVerdict.ADJUSTED


# --- control ------------------------------------------------------------------------------------------------------
def test_put_again(shop: Shop) -> None:
    control = shop.deployment.control
    first = control.put_malls([Mall(3, "Third")], request_id=ID, actor="test")
    control.put_malls([Mall(3, "Third, renamed")], request_id="another-id", actor="test")
    before = shop.dump()
    assert control.put_malls([Mall(3, "Third")], request_id=ID, actor="test") == first
    assert shop.dump() == before
    assert control.mall(3) == Mall(3, "Third, renamed")
    with pytest.raises(RequestIdReused):
        control.put_malls([Mall(3, "Fourth")], request_id=ID, actor="test")
    assert shop.dump() == before


# --- where an id is noted -----------------------------------------------------------------------------------------
def test_entering_and_striking_out(shop: Shop) -> None:
    """The register itself: the first body holds the id, only its own body strikes it out."""
    connection = shop.deployment.connection
    one, other = register.Entry(b"r" * 12, b"a" * 8), register.Entry(b"r" * 12, b"b" * 8)
    assert register.enter(connection, [one, one]) == [None, None]
    [reused] = register.enter(connection, [other])
    assert isinstance(reused, RequestIdReused)
    register.strike_out(connection, [other])
    assert isinstance(register.enter(connection, [other])[0], RequestIdReused)
    register.strike_out(connection, [one])
    assert register.enter(connection, [other]) == [None]
    assert isinstance(register.enter(connection, [one])[0], RequestIdReused)


def test_an_id_entered_by_a_faster_clock_just_behind_midnight_is_found(shop: Shop) -> None:
    """Each clock may differ from the store's, one to either side; what one of them calls tomorrow the other must look into."""
    connection = shop.deployment.connection
    one, other = register.Entry(b"m" * 12, b"a" * 8), register.Entry(b"m" * 12, b"b" * 8)
    shop.clock.tick(DAY_S - shop.clock.now_s % DAY_S)
    assert register.enter(connection, [one]) == [None]
    shop.clock.tick(-2 * limits.CLOCK_SKEW_MS_MAX / 1000)
    assert isinstance(register.enter(connection, [other])[0], RequestIdReused)
    register.strike_out(connection, [one])
    assert register.enter(connection, [other]) == [None]


def test_redeem_retries_of_a_whole_batch(shop: Shop) -> None:
    """A batch whose reply was lost is sent again, in another order and mixed with new ones."""
    shop.stock_all(100)
    texts = [shop.show(shop.issue().uid) for _ in range(20)]
    requests: list[RedeemRequest] = [shop.redeem_request(text) for text in texts[:15]]
    firsts = redemption.redeem(shop.deployment, requests)
    new = [shop.redeem_request(text) for text in texts[15:]]
    mixed = [*new, *reversed(requests)]
    answers = redemption.redeem(shop.deployment, mixed)
    for first, again in zip(firsts, reversed(answers[5:]), strict=True):
        first_again(first, again)
    assert not any(getattr(answer, "replayed", True) for answer in answers[:5])
    assert shop.figures().on_hand == 80
