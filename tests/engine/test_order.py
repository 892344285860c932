"""The order of the rules: where several would refuse, the earliest in docs/rules.md answers, and only it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, Final

import pytest

from engine import issuance, limits
from engine.calls import IssueAnswer, StockChange
from engine.claims import Channel, Decision, Line, Terminal, Version
from engine.hours import Window
from engine.policies import Policy
from engine.verdict import (
    ExtendVerdict,
    InspectVerdict,
    IssueVerdict,
    RedeemVerdict,
    RenderVerdict,
    ReverseVerdict,
    ReviewVerdict,
    StockVerdict,
    TransferVerdict,
    Verdict,
)
from tests.engine.proofs import proof_token, put_provider
from tests.engine.shop import BUNDLE, FAR_STORE, MALL, NEIGHBOUR, OTHER_MALL, STORE, Shop, north


@dataclass
class Attempt:
    """A try to redeem a code of two units, issued when stock was tight, to be spoilt in as many ways as there are rules.

    The code is static and its PIN given, or valuable and proved.
    """

    shop: Shop
    issued: IssueAnswer
    code: str
    pin: str
    terminal: Terminal = field(default_factory=lambda: Terminal(MALL, STORE, 7))
    fields: dict[str, Any] = field(default_factory=dict)
    store_fields: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def good(cls, shop: Shop, version: Version = Version.STATIC) -> Attempt:
        shop.stock_all()
        shop.receive(40, change=StockChange.BASELINE)
        if version is Version.VALUABLE:
            put_provider(shop)
        issued = shop.issue(version=version, lines=(Line(100, 2),))
        attempt = cls(shop, issued, shop.show(issued.uid), issued.pin)
        if version is Version.VALUABLE:
            attempt.fields["proof_token"] = proof_token(shop, issued.uid)
        return attempt

    def put_stores(self, **fields: Any) -> None:
        """Change the stores; what an earlier offence changed stays."""
        self.store_fields |= fields
        for store_id in (STORE, NEIGHBOUR):
            self.shop.put_store(store_id, **self.store_fields)

    def redeem(self) -> Verdict:
        return self.shop.redeem(self.code, pin=self.pin, terminal=self.terminal, **self.fields).verdict

    def inspect(self) -> Verdict:
        return self.shop.inspect(
            self.code, terminal=self.terminal, position=self.fields.get("position")
        ).verdict


def wrong(pin: str) -> str:
    """Another PIN than this one; for a code without, any."""
    return f"{(int(pin or 0) + 1) % 1_000_000:06d}"


def _forged(attempt: Attempt) -> None:
    attempt.code = attempt.code[:-1] + ("0" if attempt.code[-1] != "0" else "1")


def _of_another_mall(attempt: Attempt) -> None:
    attempt.terminal = replace(attempt.terminal, mall_id=OTHER_MALL)


def _redeemed(attempt: Attempt) -> None:
    assert attempt.shop.redeem(attempt.code, pin=attempt.pin, **attempt.fields).verdict.success


def _voided(attempt: Attempt) -> None:
    assert attempt.shop.void(attempt.issued.uid).verdict.success


def _locked(attempt: Attempt) -> None:
    for _ in range(limits.TRIES_MAX):
        attempt.shop.redeem(attempt.code, pin=wrong(attempt.issued.pin), proof_token="not a token")


def _expired(attempt: Attempt) -> None:
    attempt.shop.clock.tick(limits.TTL_S_DEFAULT)


def _stale(attempt: Attempt) -> None:
    """A payload whose own expiry has passed although the record's has not, as after an extension."""
    record = attempt.shop.record(attempt.issued.uid)
    keys = attempt.shop.deployment.control.copy().usable_keys()
    past = replace(record, expires_at_s=attempt.shop.clock.now_s)
    static = record.version is Version.STATIC
    [attempt.code] = issuance.seal(keys, past, [0 if static else attempt.shop.clock.now_s])


def _wrong_store(attempt: Attempt) -> None:
    attempt.terminal = replace(attempt.terminal, store_id=NEIGHBOUR)


def _no_pin(attempt: Attempt) -> None:
    attempt.pin = ""


def _wrong_pin(attempt: Attempt) -> None:
    attempt.pin = wrong(attempt.issued.pin)


def _no_proof(attempt: Attempt) -> None:
    attempt.fields["proof_token"] = ""


def _bad_proof(attempt: Attempt) -> None:
    attempt.fields["proof_token"] = "not a token"


def _too_far(attempt: Attempt) -> None:
    attempt.fields["position"] = north(5000)


def _too_vague(attempt: Attempt) -> None:
    attempt.fields["position"] = north(0, accuracy_m=500)


def _closed(attempt: Attempt) -> None:
    attempt.put_stores(closed=True)


def _outside_window(attempt: Attempt) -> None:
    """A window that was over a minute ago; Shanghai is eight hours ahead all year."""
    now_min = (attempt.shop.clock.now_s // 60 + 8 * 60) % (24 * 60)
    attempt.put_stores(pickup_windows=(Window(now_min - 60, now_min - 1, name="early"),))


def _too_many(attempt: Attempt) -> None:
    attempt.fields["lines"] = (Line(100, 3),)


def _no_stock(attempt: Attempt) -> None:
    attempt.shop.receive(0, change=StockChange.COUNT)


@dataclass(frozen=True)
class Rule:
    """One rule: what it answers, how to offend against it, and its place in the order."""

    place: int
    verdict: RedeemVerdict
    offend: Callable[[Attempt], None]
    only_redeem: bool = False


RULES: Final = (
    Rule(1, RedeemVerdict.INVALID_CODE, _forged),
    Rule(2, RedeemVerdict.UNKNOWN_CODE, _of_another_mall),
    Rule(3, RedeemVerdict.ALREADY_REDEEMED, _redeemed),
    Rule(3, RedeemVerdict.VOIDED, _voided),
    Rule(3, RedeemVerdict.EXPIRED, _expired),
    Rule(4, RedeemVerdict.LOCKED, _locked),
    Rule(5, RedeemVerdict.STALE_CODE, _stale),
    Rule(6, RedeemVerdict.WRONG_STORE, _wrong_store),
    Rule(7, RedeemVerdict.PIN_REQUIRED, _no_pin, only_redeem=True),
    Rule(7, RedeemVerdict.PIN_WRONG, _wrong_pin, only_redeem=True),
    Rule(8, RedeemVerdict.OUT_OF_RANGE, _too_far),
    Rule(8, RedeemVerdict.LOCATION_UNRELIABLE, _too_vague),
    Rule(9, RedeemVerdict.STORE_CLOSED, _closed),
    Rule(10, RedeemVerdict.OUTSIDE_WINDOW, _outside_window),
    Rule(11, RedeemVerdict.NOTHING_LEFT, _too_many, only_redeem=True),
    Rule(12, RedeemVerdict.OUT_OF_STOCK, _no_stock),
)
_DOING: Final = (_redeemed, _voided, _locked, _stale)
"""Offences that act on the sound code, so they come before the others; a stale payload is sealed for its time."""


PROOFS: Final = (
    Rule(7, RedeemVerdict.PROOF_REQUIRED, _no_proof, only_redeem=True),
    Rule(7, RedeemVerdict.PROOF_REJECTED, _bad_proof, only_redeem=True),
)
"""What stands for valuable codes where the PIN does for static ones."""


def spoil(shop: Shop, *rules: Rule, version: Version = Version.STATIC) -> Attempt:
    """An attempt that offends against all these rules."""
    attempt = Attempt.good(shop, version)
    order = sorted(rules, key=lambda rule: rule.offend not in _DOING)
    for rule in order:
        rule.offend(attempt)
    return attempt


def later(rule: Rule) -> tuple[Rule, ...]:
    """Rules behind this one, one for each place."""
    return tuple({other.place: other for other in RULES if other.place > rule.place}.values())


PAIRS: Final = [(first, second) for first, second in combinations(RULES, 2) if first.place != second.place]


def _name(value: object) -> str:
    return value.offend.__name__.strip("_") if isinstance(value, Rule) else str(value)


@pytest.mark.parametrize("rule", RULES, ids=_name)
def test_each_rule_alone(shop: Shop, rule: Rule) -> None:
    assert spoil(shop, rule).redeem() is rule.verdict


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=_name)
def test_of_two_rules_the_earlier_answers(shop: Shop, first: Rule, second: Rule) -> None:
    assert spoil(shop, first, second).redeem() is first.verdict


@pytest.mark.parametrize("rule", RULES, ids=_name)
def test_the_earliest_answers_when_all_behind_it_would_refuse_too(shop: Shop, rule: Rule) -> None:
    assert spoil(shop, rule, *later(rule)).redeem() is rule.verdict


@pytest.mark.parametrize("rule", [rule for rule in RULES if not rule.only_redeem], ids=_name)
def test_inspect_keeps_the_order(shop: Shop, rule: Rule) -> None:
    attempt = spoil(shop, rule, *(other for other in later(rule) if not other.only_redeem))
    assert attempt.inspect() is InspectVerdict.numbered(rule.verdict.number)


def test_all_places_are_taken() -> None:
    assert sorted({rule.place for rule in RULES}) == list(range(1, 13))
    verdicts = {rule.verdict for rule in RULES}
    # Those that another kind of code meets, or another set-up: see the tests below.
    assert set(RedeemVerdict) - verdicts == {
        RedeemVerdict.REDEEMED,
        RedeemVerdict.LOCATION_REQUIRED,
        RedeemVerdict.NOT_CONFIRMED,
        *(rule.verdict for rule in PROOFS),
    }


def _held(shop: Shop) -> Attempt:
    """A code that is not paid yet. No payload of it was ever shown, so this one is sealed here."""
    shop.stock_all()
    held = shop.hold(version=Version.STATIC, lines=(Line(100, 2),))
    record = shop.record(held.uid)
    [code] = issuance.seal(shop.deployment.control.copy().usable_keys(), record, [0])
    return Attempt(shop, IssueAnswer(IssueVerdict.ISSUED, held.uid), code, "000000")


def test_a_held_code_stands_where_a_locked_one_does(shop: Shop) -> None:
    attempt = _held(shop)
    for rule in RULES:
        # A stale payload of it is sealed from what was issued; its PIN was never told to anybody.
        if rule.place > 4 and rule.offend not in (_stale, _wrong_pin):
            rule.offend(attempt)
    assert attempt.redeem() is RedeemVerdict.NOT_CONFIRMED
    assert attempt.inspect() is InspectVerdict.NOT_CONFIRMED
    attempt.shop.clock.tick(limits.HOLD_S_DEFAULT)
    assert attempt.redeem() is RedeemVerdict.EXPIRED
    _of_another_mall(attempt)
    assert attempt.redeem() is RedeemVerdict.UNKNOWN_CODE


@pytest.mark.parametrize("proof", PROOFS, ids=_name)
@pytest.mark.parametrize("other", [rule for rule in RULES if rule.place != 7], ids=_name)
def test_a_proof_stands_where_the_pin_does(shop: Shop, proof: Rule, other: Rule) -> None:
    earlier = min(proof, other, key=lambda rule: rule.place)
    attempt = spoil(shop, proof, other, version=Version.VALUABLE)
    tries = shop.record(attempt.issued.uid).tries
    assert attempt.redeem() is earlier.verdict
    counted = earlier.verdict is RedeemVerdict.PROOF_REJECTED
    assert shop.record(attempt.issued.uid).tries == tries + counted


def test_a_good_proof_lets_the_questions_behind_it_be_asked(shop: Shop) -> None:
    attempt = spoil(shop, *later(PROOFS[0]), version=Version.VALUABLE)
    assert attempt.redeem() is RedeemVerdict.LOCATION_UNRELIABLE
    # It was not used up by a try that handed nothing out.
    attempt.fields = {"proof_token": attempt.fields["proof_token"]}
    attempt.store_fields = {}
    attempt.put_stores()
    shop.receive(10, change=StockChange.COUNT)
    assert attempt.redeem() is RedeemVerdict.REDEEMED


def test_missing_position_stands_where_a_bad_one_does(shop: Shop) -> None:
    attempt = Attempt.good(shop)
    for store_id in (STORE, NEIGHBOUR):
        shop.put_store(store_id, terminal_location="required", closed=True)
    assert attempt.redeem() is RedeemVerdict.LOCATION_REQUIRED
    _wrong_pin(attempt)
    assert attempt.redeem() is RedeemVerdict.PIN_WRONG


def test_a_remembered_request_comes_before_every_rule_but_genuineness(shop: Shop) -> None:
    attempt = Attempt.good(shop)
    attempt.fields |= {"request_id": "remembered", "lines": (Line(100, 1),)}
    assert attempt.redeem() is RedeemVerdict.REDEEMED
    _stale(attempt)
    _wrong_pin(attempt)
    _too_far(attempt)
    _closed(attempt)
    _no_stock(attempt)
    _voided(attempt)
    _expired(attempt)
    assert attempt.redeem() is RedeemVerdict.REDEEMED
    _forged(attempt)
    assert attempt.redeem() is RedeemVerdict.INVALID_CODE


def test_wrong_pin_is_not_counted_where_an_earlier_rule_answers(shop: Shop) -> None:
    """A stranger in the wrong store, or with yesterday's printout, can't lock a customer out."""
    attempt = Attempt.good(shop)
    _wrong_pin(attempt)
    _wrong_store(attempt)
    for _ in range(5):
        assert attempt.redeem() is RedeemVerdict.WRONG_STORE
    assert shop.record(attempt.issued.uid).tries == 0


def test_bad_position_is_never_counted(shop: Shop) -> None:
    attempt = Attempt.good(shop)
    _too_far(attempt)
    for _ in range(5):
        assert attempt.redeem() is RedeemVerdict.OUT_OF_RANGE
    assert shop.record(attempt.issued.uid).tries == 0
    attempt.fields.clear()
    assert attempt.redeem() is RedeemVerdict.REDEEMED


# --- the other verbs ----------------------------------------------------------------------------------------------
def test_order_of_issue(shop: Shop) -> None:
    short = {"lines": (Line(100, 1), Line(999, 1))}
    shop.put_store(closed=True)
    assert shop.issue(store_id=998, **short).verdict is IssueVerdict.UNKNOWN_STORE
    assert shop.issue(**short).verdict is IssueVerdict.STORE_CLOSED
    shop.put_store()
    assert shop.issue(**short).verdict is IssueVerdict.UNKNOWN_SKU
    assert shop.issue(lines=(Line(100, 1), Line(101, 1))).verdict is IssueVerdict.STOCK_SHORT


@pytest.mark.parametrize(
    ("channel", "verdict"),
    [
        (Channel.PROMOTION, IssueVerdict.PROMOTION_STOPPED),
        (Channel.ONLINE, IssueVerdict.CHANNEL_CLOSED),
        (Channel.STAFF, IssueVerdict.STOCK_SHORT),
    ],
)
def test_a_closed_channel_answers_before_the_stock_does(
    shop: Shop, channel: Channel, verdict: IssueVerdict
) -> None:
    shop.receive(100, change=StockChange.BASELINE)
    assert shop.issue(channel=channel).verdict is verdict
    held = shop.hold(channel=channel)
    assert (held.verdict.slug, held.sku_id) == (verdict.slug, 100)
    # Line by line: what is found first is said.
    assert shop.issue(channel=channel, lines=(Line(101, 1), Line(100, 1))).sku_id == 101


def test_issue_names_the_first_sku_that_is_short(shop: Shop) -> None:
    shop.receive(5, sku_id=100)
    shop.receive(1, sku_id=101)
    answer = shop.issue(lines=(Line(100, 5), Line(101, 2), Line(102, 1)))
    assert (answer.verdict, answer.sku_id) == (IssueVerdict.STOCK_SHORT, 101)
    assert shop.figures(100).reserved == 0


def test_order_of_render(shop: Shop) -> None:
    """A code that can't be shown anyway is no reason to ask where the customer is, nor a try."""
    shop.stock_all()
    shop.put_policies(Policy("deployment", customer_location="required"))
    held, locked = shop.hold().uid, shop.issue(version=Version.STATIC).uid
    for uid, verdict in ((held, RenderVerdict.NOT_CONFIRMED), (locked, RenderVerdict.LOCATION_REQUIRED)):
        assert shop.render(uid).verdict is verdict
    assert shop.render(held, position=north(5000), request_id=shop.new_id()).verdict is (
        RenderVerdict.NOT_CONFIRMED
    )
    for _ in range(limits.TRIES_MAX):
        far = shop.render(locked, position=north(5000), request_id=shop.new_id())
    assert far.verdict is RenderVerdict.LOCKED
    assert shop.render(locked).verdict is RenderVerdict.LOCKED
    shop.clock.tick(limits.TTL_S_DEFAULT)
    assert shop.render(locked).verdict is RenderVerdict.EXPIRED
    assert shop.render(locked, mall_id=OTHER_MALL).verdict is RenderVerdict.UNKNOWN_CODE


def test_order_of_extend(shop: Shop) -> None:
    shop.stock_all()
    held, code = shop.hold(), shop.issue()
    too_early_s, too_late_s = 1, shop.clock.now_s + 2 * limits.TTL_S_MAX
    for at_s in (too_early_s, too_late_s):
        assert shop.extend(held.uid, at_s, mall_id=OTHER_MALL).verdict is ExtendVerdict.UNKNOWN_CODE
        assert shop.extend(held.uid, at_s).verdict is ExtendVerdict.NOT_CONFIRMED
    shop.clock.tick(limits.TTL_S_DEFAULT)
    for at_s in (too_early_s, too_late_s):
        assert shop.extend(held.uid, at_s).verdict is ExtendVerdict.EXPIRED
        assert shop.extend(code.uid, at_s).verdict is ExtendVerdict.EXPIRED


def test_order_of_reverse(shop: Shop) -> None:
    shop.stock_all()
    shop.put_policies(Policy("deployment", cycles_max=1))
    uid = shop.issue(lines=(Line(100, 2),)).uid
    elsewhere = Terminal(MALL, NEIGHBOUR, 7)
    nobody = Terminal(OTHER_MALL, NEIGHBOUR, 7)
    assert shop.reverse(uid, terminal=nobody).verdict is ReverseVerdict.UNKNOWN_CODE
    assert shop.reverse(uid, terminal=elsewhere).verdict is ReverseVerdict.WRONG_STORE
    shop.redeem(shop.show(uid), lines=(Line(100, 1),))
    shop.reverse(uid)
    # Nothing is out; the cycles are used up too.
    assert shop.reverse(uid).verdict is ReverseVerdict.NOT_REDEEMED
    shop.clock.tick(4)
    shop.redeem(shop.show(uid), lines=(Line(100, 1),))
    too_many = (Line(100, 2),)
    assert shop.reverse(uid, lines=too_many).verdict is ReverseVerdict.REVERSAL_LIMIT
    shop.clock.tick(limits.REVERSAL_WINDOW_S_DEFAULT)
    assert shop.reverse(uid, lines=too_many).verdict is ReverseVerdict.REVERSAL_CLOSED
    assert shop.reverse(uid, terminal=elsewhere, lines=too_many).verdict is ReverseVerdict.WRONG_STORE


def test_order_of_review(shop: Shop) -> None:
    shop.stock_all()
    uid = shop.issue(version=Version.STATIC).uid
    by_hand: dict[str, Any] = {"decision": Decision.REDEEM, "actor": "clerk:bob"}
    assert shop.decide(uid, **by_hand).verdict is ReviewVerdict.NOT_LOCKED
    shop.lock(uid, actor="clerk:bob")
    shop.receive(0, change=StockChange.COUNT)
    assert shop.decide(uid, **by_hand).verdict is ReviewVerdict.OWN_TRY
    assert shop.decide(uid, Decision.REDEEM).verdict is ReviewVerdict.OUT_OF_STOCK
    shop.clock.tick(limits.TTL_S_DEFAULT)
    assert shop.decide(uid, **by_hand).verdict is ReviewVerdict.EXPIRED
    assert shop.decide(uid, mall_id=OTHER_MALL, **by_hand).verdict is ReviewVerdict.UNKNOWN_CODE


def test_order_of_stock(shop: Shop) -> None:
    too_much: dict[str, Any] = {"amount": -5, "change": StockChange.ADJUST_BY}
    shop.put_bundle()
    assert shop.receive(store_id=998, sku_id=999, **too_much).verdict is StockVerdict.UNKNOWN_STORE
    assert shop.receive(store_id=FAR_STORE, sku_id=999, **too_much).verdict is StockVerdict.UNKNOWN_SKU
    assert shop.receive(sku_id=BUNDLE, **too_much).verdict is StockVerdict.BUNDLE
    assert shop.receive(**too_much).verdict is StockVerdict.BELOW_ZERO


def test_order_of_transfer(shop: Shop) -> None:
    assert shop.transfer(5, from_store_id=998, sku_id=999).verdict is TransferVerdict.UNKNOWN_STORE
    both = shop.transfer(5, from_store_id=998, to_store_id=997)
    assert (both.verdict, both.store_id) == (TransferVerdict.UNKNOWN_STORE, 998)
    there = shop.transfer(5, to_store_id=997, sku_id=999)
    assert (there.verdict, there.store_id) == (TransferVerdict.UNKNOWN_STORE, 997)
    assert shop.transfer(5, sku_id=999).verdict is TransferVerdict.UNKNOWN_SKU
    assert shop.transfer(5).verdict is TransferVerdict.STOCK_SHORT
