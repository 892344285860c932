"""Settlements: released and taken back to the fen, whatever the order of parts; the same to whoever asks, from wherever."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import limits
from engine.claims import Decision, Line, Split, Terminal, Version
from engine.errors import InvalidInput
from engine.ledger.feed import cursor_text, parse_cursor
from engine.ledger.ledger import Ledger
from engine.ledger.settlement import Settlement, of_order, page, shares_due
from engine.ledger.writer import Writer
from tests.engine.shop import FAR_STORE, MALL, OTHER_MALL, STORE, Shop

SPLITS = (
    Split("store:2001", "goods", 0, 7_000),
    Split("user:1", "referrer", 1, 999),
    Split("user:2", "referrer", 2, 1),
)


def write(writer: Writer) -> None:
    while writer.step(block_ms=0):
        pass


def amounts(settlement: Settlement) -> list[int]:
    return [share.amount_fen for share in settlement.shares]


def issue(shop: Shop, **fields: object) -> bytes:
    return shop.issue(**{"amount_fen": 8_000, "splits": SPLITS, "order_id": "ORDER-7"} | fields).uid


# --- the rule ---------------------------------------------------------------------------------------------------------
splits = st.lists(
    st.builds(Split, st.just("payee"), st.just("role"), st.just(0), st.integers(0, limits.AMOUNT_FEN_MAX)),
    min_size=1,
    max_size=limits.SPLITS_MAX,
)


@given(splits, st.integers(1, 2_000), st.data())
def test_parts_add_up_to_the_whole_in_any_order(parts: list[Split], units: int, data: st.DataObject) -> None:
    """However units go out and come back: what was released is what is due, never more, and all of it in the end."""
    steps = data.draw(st.lists(st.integers(0, units), max_size=12))
    released = [0] * len(parts)
    out = 0
    for after in [*steps, units]:
        moved = [
            new - old
            for old, new in zip(shares_due(parts, out, units), shares_due(parts, after, units), strict=True)
        ]
        released = [sum(pair) for pair in zip(released, moved, strict=True)]
        out = after
        assert all(0 <= one <= split.amount_fen for one, split in zip(released, parts, strict=True))
    assert released == [split.amount_fen for split in parts]


def test_without_units_nothing_is_due() -> None:
    assert shares_due(SPLITS, 0, 0) == [0, 0, 0]


# --- of real codes ----------------------------------------------------------------------------------------------------
def test_a_redemption_releases_and_a_reversal_takes_back(shop: Shop, ledger: Ledger, writer: Writer) -> None:
    shop.stock_all()
    uid = issue(shop)
    shop.redeem(shop.show(uid))
    shop.reverse(uid)
    write(writer)
    out, back = of_order(ledger, MALL, "ORDER-7")
    assert (amounts(out), out.reversal) == ([7_000, 999, 1], False)
    assert (amounts(back), back.reversal) == ([-7_000, -999, -1], True)
    assert [(one.payee, one.role, one.level) for one in out.shares] == [
        (one.payee, one.role, one.level) for one in SPLITS
    ]
    assert (out.uid, out.order_id, out.mall_id, out.store_id) == (uid, "ORDER-7", MALL, STORE)


def test_parts_are_settled_in_proportion_and_the_last_brings_the_rest(
    shop: Shop, ledger: Ledger, writer: Writer
) -> None:
    shop.stock_all()
    uid = issue(shop, lines=(Line(100, 2), Line(101, 1)))
    for sku in (100, 101, 100):
        shop.redeem(shop.show(uid), lines=(Line(sku, 1),))
        shop.clock.tick(5)
    write(writer)
    found = of_order(ledger, MALL, "ORDER-7")
    assert [amounts(one) for one in found] == [[2_333, 333, 0], [2_333, 333, 0], [2_334, 333, 1]]


def test_a_refund_takes_back_what_left(shop: Shop, ledger: Ledger, writer: Writer) -> None:
    """Units that leave the code still count among those it was issued for."""
    shop.stock_all()
    uid = issue(shop, lines=(Line(100, 4),))
    shop.redeem(shop.show(uid))
    shop.reverse(uid, lines=(Line(100, 1),), release=True)
    write(writer)
    assert [amounts(one) for one in of_order(ledger, MALL, "ORDER-7")] == [
        [7_000, 999, 1],
        [-1_750, -250, -1],
    ]


def test_by_hand_releases_and_void_does_not(shop: Shop, ledger: Ledger, writer: Writer) -> None:
    shop.stock_all()
    for order, decision in (
        ("ORDER-1", Decision.REDEEM),
        ("ORDER-2", Decision.VOID),
        ("ORDER-3", Decision.APPROVE),
    ):
        uid = issue(shop, version=Version.STATIC, order_id=order)
        shop.lock(uid)
        shop.decide(uid, decision)
    write(writer)
    assert [amounts(one) for one in of_order(ledger, MALL, "ORDER-1")] == [[7_000, 999, 1]]
    assert of_order(ledger, MALL, "ORDER-2") == of_order(ledger, MALL, "ORDER-3") == ()


def test_an_order_without_splits_settles_nothing(shop: Shop, ledger: Ledger, writer: Writer) -> None:
    shop.stock_all()
    shop.redeem(shop.show(shop.issue(order_id="ORDER-7").uid))
    write(writer)
    assert of_order(ledger, MALL, "ORDER-7") == ()
    assert page(ledger, {}).items == ()


def test_an_order_of_another_mall_is_another(shop: Shop, ledger: Ledger, writer: Writer) -> None:
    shop.stock_all()
    shop.redeem(shop.show(issue(shop)))
    write(writer)
    assert of_order(ledger, OTHER_MALL, "ORDER-7") == ()


# --- the feed ---------------------------------------------------------------------------------------------------------
def trade(shop: Shop) -> None:
    for store in (STORE, FAR_STORE):
        terminal = Terminal(MALL, store, 7)
        for _ in range(3):
            uid = issue(shop, store_id=store, lines=(Line(100, 2),))
            shop.redeem(shop.show(uid), lines=(Line(100, 1),), terminal=terminal)
            shop.redeem(shop.show(uid), lines=(Line(100, 1),), terminal=terminal)
            shop.reverse(uid, terminal=terminal)


@pytest.mark.parametrize("count", [1, 4, 1_000])
def test_pages_put_together_are_every_settlement_once(
    shop: Shop, ledger: Ledger, writer: Writer, count: int
) -> None:
    shop.stock_all(100)
    shop.stock_all(100, store_id=FAR_STORE)
    trade(shop)
    write(writer)
    found: list[Settlement] = []
    cursor = ""
    while True:
        one = page(ledger, parse_cursor(cursor), count=count)
        found += one.items
        cursor = cursor_text(one.cursor)
        if one.complete:
            break
    assert len(found) == len({settlement.event for settlement in found}) == 18
    for number in {settlement.event.partition for settlement in found}:
        order = [(s.event.epoch, s.event.seq) for s in found if s.event.partition == number]
        assert order == sorted(order)
    balances: Counter[str] = Counter()
    for settlement in found:
        for share in settlement.shares:
            balances[share.payee] += share.amount_fen
    assert set(balances.values()) == {0}, "everything came back"
    assert page(ledger, parse_cursor(cursor)).items == ()
    trade(shop)
    write(writer)
    later = page(ledger, parse_cursor(cursor), count=1_000).items
    assert len(later) == 18
    assert not {one.event for one in later} & {one.event for one in found}


def test_a_feed_may_be_of_one_mall(shop: Shop, ledger: Ledger, writer: Writer) -> None:
    shop.stock_all()
    shop.redeem(shop.show(issue(shop)))
    write(writer)
    assert len(page(ledger, {}, mall_id=MALL).items) == 1
    assert page(ledger, {}, mall_id=OTHER_MALL).items == ()


def test_an_order_is_told_a_page_at_a_time(shop: Shop, ledger: Ledger, writer: Writer) -> None:
    """Two codes of one order, each handed out in parts and taken back."""
    shop.stock_all()
    for _ in range(2):
        uid = issue(shop, lines=(Line(100, 2),))
        for _ in range(2):
            shop.redeem(shop.show(uid), lines=(Line(100, 1),))
            shop.clock.tick(5)
        shop.reverse(uid)
    write(writer)
    whole = of_order(ledger, MALL, "ORDER-7")
    assert len(whole) == 6
    for count in (1, 2, 4):
        found: list[Settlement] = []
        while part := of_order(
            ledger,
            MALL,
            "ORDER-7",
            count=count,
            after=(found[-1].uid, found[-1].event) if found else None,
        ):
            assert len(part) <= count
            found += part
        assert tuple(found) == whole
    with pytest.raises(InvalidInput, match="count is 0"):
        of_order(ledger, MALL, "ORDER-7", count=0)
