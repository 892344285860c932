"""Requests check themselves: nothing malformed reaches a verb, and the longest texts allowed fit wherever they are kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from engine import limits
from engine.calls import (
    ConfirmRequest,
    ExtendRequest,
    IssueRequest,
    RedeemRequest,
    RenderRequest,
    ReverseRequest,
    ReviewRequest,
    StockChange,
    StockRequest,
    TransferRequest,
    VoidRequest,
)
from engine.claims import Decision, Line, Position, Split, Suite, Terminal, Version
from engine.errors import InvalidInput, TooManyItems
from engine.state.events import EventType
from engine.stores import CatalogueEntry
from ext.place import Datum
from tests.engine.shop import MALL, SKUS, Shop

HAN = "审"
"""Three bytes of UTF-8 for one character."""
RARE = "𠮷"
"""Four bytes: the most a character can have."""

_ISSUE: dict[str, Any] = {
    "mall_id": 1,
    "request_id": "request-1",
    "store_id": 2001,
    "order_id": "ORDER-1",
    "lines": (Line(100, 1),),
    "version": Version.DYNAMIC,
    "suite": Suite.AES,
}


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Line(0, 1), "sku_id"),
        (lambda: Line(limits.ID_MAX + 1, 1), "sku_id"),
        (lambda: Line(1, 0), "count"),
        (lambda: Line(1, -1), "count"),
        (lambda: Line(1, limits.COUNT_MAX + 1), "count"),
        (lambda: Terminal(0, 1, 1), "mall_id"),
        (lambda: Terminal(1, 2**32, 1), "store_id"),
        (lambda: Terminal(1, 1, -1), "terminal_id"),
        (lambda: Position(90.1, 0, 0, Datum.WGS84), "position"),
        (lambda: Position(0, -180.1, 0, Datum.WGS84), "position"),
        (lambda: Position(math.nan, 0, 0, Datum.WGS84), "position"),
        (lambda: Position(0, math.inf, 0, Datum.WGS84), "position"),
        (lambda: Position(0, 0, -1, Datum.WGS84), "accuracy_m"),
        (lambda: Position(0, 0, math.nan, Datum.WGS84), "accuracy_m"),
        (lambda: Position(0, 0, math.inf, Datum.WGS84), "accuracy_m"),
        (lambda: Position(0, 0, 0, 0), "datum"),
        (lambda: Position(0, 0, 0, 4), "datum"),
        (lambda: RenderRequest(1, b"\0" * 7), "uid"),
        (lambda: VoidRequest(1, "request-1", b"\0" * 9), "uid"),
        (lambda: VoidRequest(1, "short", b"\0" * 8), "request_id"),
        (lambda: VoidRequest(1, "x" * 65, b"\0" * 8), "request_id"),
        (lambda: VoidRequest(1, HAN * 8, b"\0" * 8), "request_id"),
        (lambda: VoidRequest(1, "request-1", b"\0" * 8, reason=HAN * 201), "reason"),
        (lambda: VoidRequest(1, "request-1", b"\0" * 8, actor="x" * 65), "actor"),
        (lambda: RedeemRequest(Terminal(1, 1, 1), "request-1", "PG", pin="12345"), "pin"),
        (lambda: RedeemRequest(Terminal(1, 1, 1), "request-1", "PG", pin="１２３４５６"), "pin"),
        (lambda: RedeemRequest(Terminal(1, 1, 1), "request-1", "PG", lines=(Line(1, 1), Line(1, 2))), "lines"),
        (lambda: StockRequest(1, "request-1", 1, 1, StockChange.RECEIVE, 0), "amount"),
        (lambda: StockRequest(1, "request-1", 1, 1, StockChange.RECEIVE, -5), "amount"),
        (lambda: StockRequest(1, "request-1", 1, 1, StockChange.COUNT, -1), "amount"),
        (lambda: StockRequest(1, "request-1", 1, 1, StockChange.BASELINE, -1), "amount"),
        (lambda: StockRequest(1, "request-1", 1, 1, StockChange.BASELINE, 2**31), "amount"),
        (lambda: StockRequest(1, "request-1", 1, 1, StockChange.ADJUST_BY, -(2**31)), "amount"),
        (lambda: StockRequest(1, "request-1", 0, 1, StockChange.RECEIVE, 1), "store_id"),
        (lambda: RenderRequest(1, b"\0" * 8, request_id="short"), "request_id"),
        (lambda: RenderRequest(1, b"\0" * 8, actor="x" * 65), "actor"),
        (lambda: ConfirmRequest(0, "request-1", b"\0" * 8), "mall_id"),
        (lambda: ConfirmRequest(1, "short", b"\0" * 8), "request_id"),
        (lambda: ConfirmRequest(1, "request-1", b"\0" * 7), "uid"),
        (lambda: ConfirmRequest(1, "request-1", b"\0" * 8, actor="x" * 65), "actor"),
        (lambda: ExtendRequest(1, "request-1", b"\0" * 7, 1), "uid"),
        (lambda: ExtendRequest(1, "short", b"\0" * 8, 1), "request_id"),
        (lambda: ExtendRequest(1, "request-1", b"\0" * 8, -1), "expires_at_s"),
        (lambda: ExtendRequest(1, "request-1", b"\0" * 8, 2**32), "expires_at_s"),
        (lambda: ReverseRequest(Terminal(1, 1, 1), "short", b"\0" * 8), "request_id"),
        (lambda: ReverseRequest(Terminal(1, 1, 1), "request-1", b"\0" * 9), "uid"),
        (lambda: ReverseRequest(Terminal(1, 1, 1), "request-1", b"\0" * 8, (Line(1, 1), Line(1, 1))), "lines"),
        (lambda: ReverseRequest(Terminal(1, 1, 1), "request-1", b"\0" * 8, reason=HAN * 201), "reason"),
        (lambda: ReviewRequest(1, "request-1", b"\0" * 8, Decision.VOID, ""), "actor"),
        (lambda: ReviewRequest(1, "request-1", b"\0" * 7, Decision.VOID, "ann"), "uid"),
        (lambda: ReviewRequest(1, "request-1", b"\0" * 8, Decision.VOID, "ann", HAN * 201), "reason"),
        (lambda: TransferRequest(1, "request-1", 1, 2, 1, 0), "amount"),
        (lambda: TransferRequest(1, "request-1", 1, 2, 1, -1), "amount"),
        (lambda: TransferRequest(1, "request-1", 1, 2, 1, 2**31), "amount"),
        (lambda: TransferRequest(1, "request-1", 1, 1, 1, 1), "to_store_id"),
        (lambda: TransferRequest(1, "request-1", 0, 1, 1, 1), "from_store_id"),
        (lambda: TransferRequest(1, "request-1", 1, 2, 2**32, 1), "sku_id"),
    ],
)  # fmt: skip
def test_malformed_fields_are_refused_by_name(make: Callable[[], object], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        make()
    assert refused.value.field == field
    assert "expected" in refused.value.message or "best is" in refused.value.message


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"lines": ()}, "lines"),
        ({"lines": (Line(100, 1), Line(100, 1))}, "lines"),
        ({"ttl_s": limits.TTL_S_MIN - 1}, "ttl_s"),
        ({"ttl_s": limits.TTL_S_MAX + 1}, "ttl_s"),
        ({"ttl_s": -1}, "ttl_s"),
        ({"amount_fen": -1}, "amount_fen"),
        ({"amount_fen": 2**32}, "amount_fen"),
        ({"order_id": "x" * 49}, "order_id"),
        ({"mall_id": 0}, "mall_id"),
        ({"store_id": -7}, "store_id"),
    ],
)
def test_malformed_issues_are_refused_by_name(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        IssueRequest(**_ISSUE | fields)
    assert refused.value.field == field


def test_a_misshapen_pin_is_not_repeated() -> None:
    with pytest.raises(InvalidInput) as refused:
        RedeemRequest(Terminal(1, 1, 1), "request-1", "PG", pin="98765")
    assert "98765" not in refused.value.message


def test_too_many_lines() -> None:
    with pytest.raises(TooManyItems):
        RedeemRequest(
            Terminal(1, 1, 1),
            "request-1",
            "PG",
            lines=tuple(Line(n, 1) for n in range(1, limits.LINES_MAX + 2)),
        )


@pytest.mark.parametrize("letter", [HAN, RARE])
def test_longest_texts_are_kept_whole(shop: Shop, letter: str) -> None:
    """A limit counts characters, storage counts bytes: Chinese has three a character, rare ones four."""
    reason, actor = letter * limits.REASON_CHARS_MAX, letter * limits.ACTOR_CHARS_MAX
    order_id = letter * limits.ORDER_ID_CHARS_MAX
    shop.receive(10, reason=reason, actor=actor)
    first, second = shop.issue(order_id=order_id, actor=actor), shop.issue(order_id=order_id, actor=actor)
    assert shop.redeem(shop.show(first.uid), actor=actor).order_id == order_id
    assert shop.void(second.uid, reason=reason, actor=actor).verdict.success

    events = shop.events()
    assert [event.actor for event in events] == [actor] * 5
    assert [event.facts["reason"] for event in events if "reason" in event.facts] == [reason, reason]
    assert shop.record(first.uid).order_id == order_id


def test_largest_code(shop: Shop) -> None:
    """As many lines as there may be, each with as many units as there may be, partly redeemed, then voided."""
    skus = list(range(1000, 1000 + limits.LINES_MAX))
    shop.deployment.control.put_catalogue(
        [CatalogueEntry(MALL, sku, f"SKU {sku}") for sku in skus], request_id="put-0002", actor="test"
    )
    for sku in skus:
        shop.receive(limits.COUNT_MAX, sku_id=sku)
    lines = tuple(Line(sku, limits.COUNT_MAX) for sku in skus)
    uid = shop.issue(lines=lines, amount_fen=limits.AMOUNT_FEN_MAX).uid
    answer = shop.redeem(shop.show(uid), lines=tuple(Line(sku, limits.COUNT_MAX - 1) for sku in skus))
    assert [(line.count, line.left) for line in answer.lines] == [(limits.COUNT_MAX - 1, 1)] * len(skus)
    voided = shop.void(uid)
    assert [line.left for line in voided.lines] == [1] * len(skus)
    assert {(f.on_hand, f.reserved) for f in (shop.figures(sku) for sku in skus)} == {(1, 0)}
    assert [event.type for event in shop.events()][-3:] == [
        EventType.ISSUED, EventType.REDEEMED, EventType.VOIDED,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "splits",
    [
        (Split("a", "mall", 0, 900), Split("b", "referrer", 1, 101)),
        tuple(Split(f"payee:{number}", "mall", 0, 1) for number in range(17)),
    ],
    ids=["more than was paid", "too many"],
)
def test_splits_that_dont_add_up_are_refused(shop: Shop, splits: tuple[Split, ...]) -> None:
    with pytest.raises(InvalidInput) as refused:
        shop.issue_request(amount_fen=1000, splits=splits)
    assert refused.value.field == "splits"


def test_a_party_is_in_one_split_only(shop: Shop) -> None:
    once = (Split("a", "mall", 0, 400), Split("a", "referrer", 0, 1), Split("a", "referrer", 1, 1))
    assert shop.issue_request(amount_fen=1000, splits=once).splits == once
    with pytest.raises(
        InvalidInput, match=r"splits\[3\] names payee 'a' as 'mall' at level 0 once more"
    ) as refused:
        shop.issue_request(amount_fen=1000, splits=(*once, Split("a", "mall", 0, 500)))
    assert refused.value.field == "splits[3]"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"level": 4}, "level"),
        ({"amount_fen": -1}, "amount_fen"),
        ({"payee": ""}, "payee"),
        ({"payee": "\ud800"}, "payee"),
        ({"role": "r" * 33}, "role"),
    ],
)
def test_a_split_is_checked(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        replace(Split("p", "r", 0, 0), **fields)
    assert refused.value.field == field


def test_splits_travel_with_the_record(shop: Shop) -> None:
    shop.receive(10)
    splits = (Split("商城", "mall", 0, 900), Split("推荐人", "referrer", 1, 100))
    uid = shop.issue(amount_fen=1000, splits=splits).uid
    record = shop.record(uid)
    assert record.splits == splits
    assert record.amount_fen == 1000
    assert [line.sku_id for line in record.lines] == [SKUS[0]]
