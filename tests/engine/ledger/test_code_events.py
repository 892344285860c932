"""Code events: everything that happens to a code is told to its mall, with its order, and to no other."""

from __future__ import annotations

import pytest

from engine.claims import Decision, Line, State, Version
from engine.errors import InvalidInput
from engine.ledger import code_events
from engine.ledger.code_events import CodeEvent
from engine.ledger.ledger import Ledger
from engine.ledger.writer import Writer
from engine.state.events import EventType
from tests.engine.shop import FAR_STORE, MALL, OTHER_MALL, REVIEWER, STORE, Shop


def told(ledger: Ledger, writer: Writer, mall_id: int = MALL, **how: object) -> list[CodeEvent]:
    while writer.step(block_ms=0):
        pass
    return list(code_events.page(ledger, {}, mall_id=mall_id, count=1_000, **how).items)  # type: ignore[arg-type]


def names(events: list[CodeEvent]) -> list[str]:
    return [event.type.name for event in events]


def test_the_life_of_a_code_is_told(shop: Shop, ledger: Ledger, writer: Writer) -> None:
    shop.stock_all()
    uid = shop.hold(order_id="ORDER-7", lines=(Line(100, 2), Line(101, 1))).uid
    shop.confirm(uid)
    until_s = shop.clock.now_s + 7 * 86_400
    shop.extend(uid, until_s)
    shop.redeem(shop.show(uid), lines=(Line(100, 1),), actor="clerk:bob")
    shop.clock.tick(5)
    shop.reverse(uid, lines=(Line(100, 1),))
    shop.clock.tick(5)
    shop.redeem(shop.show(uid))
    found = told(ledger, writer)
    assert names(found) == ["HELD", "CONFIRMED", "EXTENDED", "REDEEMED", "REVERSED", "REDEEMED"]
    assert {(one.uid, one.order_id, one.mall_id, one.store_id) for one in found} == {
        (uid, "ORDER-7", MALL, STORE)
    }
    held, confirmed, extended, part, back, rest = found
    assert (held.state, [(one.sku_id, one.count, one.left) for one in held.lines]) == (
        State.HELD,
        [(100, 2, 2), (101, 1, 1)],
    )
    assert held.expires_at_s == held.at_ms // 1000 + 900
    assert (confirmed.state, confirmed.expires_at_s > held.expires_at_s) == (State.LIVE, True)
    assert (extended.state, extended.expires_at_s) == (None, until_s)
    assert (part.state, part.terminal_id, part.actor) == (State.PARTLY, 7, "clerk:bob")
    assert [(one.sku_id, one.count, one.left) for one in part.lines] == [(100, 1, 1)]
    assert (back.state, back.release, back.cycle) == (State.LIVE, False, 1)
    assert (rest.state, [one.left for one in rest.lines]) == (State.REDEEMED, [0, 0])


def test_ends_locks_and_reviews_are_told(shop: Shop, ledger: Ledger, writer: Writer) -> None:
    shop.stock_all()
    void = shop.issue(order_id="ORDER-1").uid
    shop.void(void, reason="refund")
    successor = shop.issue(order_id="ORDER-1", replaces=void).uid
    locked = shop.issue(order_id="ORDER-2", version=Version.STATIC).uid
    shop.lock(locked)
    shop.decide(locked, Decision.VOID)
    found = told(ledger, writer)
    assert names(found) == ["ISSUED", "VOIDED", "ISSUED", "ISSUED", "TRIED", "TRIED", "LOCKED", "REVIEWED"]
    assert (found[1].reason, found[1].state, [one.left for one in found[1].lines]) == (
        "refund",
        State.VOIDED,
        [1],
    )
    assert (found[2].uid, found[2].replaces) == (successor, void)
    assert [one.tries for one in found[4:7]] == [1, 2, 3]
    assert [one.state for one in found[4:]] == [None, None, State.LOCKED, State.VOIDED]
    assert (found[7].decision, found[7].actor) == (Decision.VOID, REVIEWER)
    assert {one.order_id for one in found[3:]} == {"ORDER-2"}


def test_a_mall_is_told_of_its_own_codes_only(shop: Shop, ledger: Ledger, writer: Writer) -> None:
    for mall in (MALL, OTHER_MALL):
        for store in (STORE, FAR_STORE):
            shop.stock_all(mall_id=mall, store_id=store)
            shop.issue(mall_id=mall, store_id=store, order_id=f"ORDER-OF-{mall}")
    for mall in (MALL, OTHER_MALL):
        found = told(ledger, writer, mall)
        assert [(one.mall_id, one.order_id) for one in found] == [(mall, f"ORDER-OF-{mall}")] * 2
    with pytest.raises(InvalidInput, match="mall_id is 0; expected a mall"):
        code_events.page(ledger, {}, mall_id=0)


def test_only_what_is_asked_for(shop: Shop, ledger: Ledger, writer: Writer) -> None:
    shop.stock_all()
    shop.redeem(shop.show(shop.issue().uid))
    assert names(told(ledger, writer, types={EventType.REDEEMED})) == ["REDEEMED"]
    with pytest.raises(InvalidInput, match="an event that is of no code"):
        told(ledger, writer, types={EventType.STOCK})
