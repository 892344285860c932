"""Acknowledged cursors: stored under a name, and only ever forward."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.errors import ConsumerTaken, CursorAhead, CursorBack, Exhausted, InvalidInput, NotFound
from engine.ledger import consumers, feed
from engine.ledger.consumers import Consumer, Feed, acknowledge, acknowledged, list_acknowledged, release
from engine.ledger.feed import Cursor
from engine.ledger.ledger import Ledger
from engine.ledger.writer import Writer
from engine.state.keys import partition_of_store
from engine.state.streams import Place
from tests.engine.shop import FAR_STORE, MALL, PARTITIONS, STORE, Shop

HERE = partition_of_store(STORE, PARTITIONS)
THERE = partition_of_store(FAR_STORE, PARTITIONS)
WALLET = Consumer(Feed.SETTLEMENTS, 0, "wallet")


@pytest.fixture
def end(shop: Shop, ledger: Ledger, writer: Writer) -> Cursor:
    """The end of a ledger that has something in two partitions."""
    for store in (STORE, FAR_STORE):
        shop.stock_all(store_id=store)
    while writer.step(block_ms=0):
        pass
    return {number: ledger.heads()[number].place for number in (HERE, THERE)}


def before(place: Place, by: int = 1) -> Place:
    return Place(place.epoch, place.seq - by)


def test_what_is_acknowledged_is_kept(ledger: Ledger, end: Cursor) -> None:
    assert acknowledged(ledger, WALLET) is None
    first = {HERE: before(end[HERE])}
    assert acknowledge(ledger, WALLET, first, at_ms=5).cursor == first
    assert acknowledge(ledger, WALLET, end, at_ms=7).cursor == end
    found = acknowledged(ledger, WALLET)
    assert found is not None
    assert (found.cursor, found.at_ms) == (end, 7)


def test_the_same_again_changes_nothing(ledger: Ledger, end: Cursor) -> None:
    acknowledge(ledger, WALLET, end, at_ms=5)
    assert acknowledge(ledger, WALLET, end, at_ms=9).at_ms == 5


def test_it_never_goes_back_in_any_partition(ledger: Ledger, end: Cursor) -> None:
    at = {HERE: before(end[HERE]), THERE: before(end[THERE])}
    acknowledge(ledger, WALLET, at, at_ms=5)
    for late, what in (
        ({HERE: before(at[HERE]), THERE: end[THERE]}, f"says {HERE}:{before(at[HERE])}"),
        ({THERE: end[THERE]}, f"says nothing of partition {HERE}"),
        ({}, "says nothing of partition"),
    ):
        with pytest.raises(CursorBack, match=f"{what}.* has acknowledged .* already: nothing was changed"):
            acknowledge(ledger, WALLET, late, at_ms=6)
    found = acknowledged(ledger, WALLET)
    assert found is not None
    assert (found.cursor, found.at_ms) == (at, 5)


def test_it_never_goes_beyond_the_end(ledger: Ledger, end: Cursor) -> None:
    with pytest.raises(CursorAhead, match=f"and the ledger ends with {HERE}:{end[HERE]}"):
        acknowledge(ledger, WALLET, end | {HERE: before(end[HERE], -1)}, at_ms=5)
    assert acknowledged(ledger, WALLET) is None


def test_each_name_of_each_mall_and_feed_has_its_own(ledger: Ledger, end: Cursor) -> None:
    others = [
        WALLET,
        Consumer(Feed.SETTLEMENTS, 0, "other"),
        Consumer(Feed.SETTLEMENTS, MALL, "wallet"),
        Consumer(Feed.CODE_EVENTS, MALL, "wallet"),
    ]
    for number, one in enumerate(others, start=1):
        acknowledge(ledger, one, {HERE: before(end[HERE], number)}, at_ms=number)
    for number, one in enumerate(others, start=1):
        found = acknowledged(ledger, one)
        assert found is not None
        assert (found.cursor, found.at_ms) == ({HERE: before(end[HERE], number)}, number)
    assert [(one.consumer.feed.value, one.consumer.mall_id, one.consumer.name) for one in list_acknowledged(ledger)] == [
        ("code_events", MALL, "wallet"),
        ("settlements", 0, "other"),
        ("settlements", 0, "wallet"),
        ("settlements", MALL, "wallet"),
    ]  # fmt: skip


def test_two_that_acknowledge_at_once_end_with_the_later_one(ledger: Ledger, end: Cursor) -> None:
    last = end[HERE].seq

    def one(seq: int) -> bool:
        try:
            acknowledge(ledger, WALLET, {HERE: Place(end[HERE].epoch, seq)}, at_ms=seq)
        except CursorBack:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(one, range(1, last + 1)))
    assert done[-1]
    found = acknowledged(ledger, WALLET)
    assert found is not None
    assert found.cursor[HERE].seq == last


@pytest.mark.parametrize("name", ["", "a b", "a" * 65, "钱包", "a\n", "a/b"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match=r"wallet is .*; expected 1 [.]{2} 64 letters") as caught:
        Consumer(Feed.SETTLEMENTS, 0, name)
    assert caught.value.field == "wallet"
    with pytest.raises(InvalidInput) as caught:
        Consumer(Feed.CODE_EVENTS, MALL, name)
    assert caught.value.field == "consumer"


def test_there_are_only_so_many_names(ledger: Ledger, end: Cursor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumers, "CONSUMERS_MAX", 2)
    for name in ("one", "two"):
        acknowledge(ledger, Consumer(Feed.SETTLEMENTS, 0, name), {}, at_ms=1)
    with pytest.raises(Exhausted, match="there may be no more"):
        acknowledge(ledger, Consumer(Feed.SETTLEMENTS, 0, "three"), {}, at_ms=1)
    acknowledge(ledger, Consumer(Feed.SETTLEMENTS, 0, "one"), end, at_ms=2)
    for other in (Consumer(Feed.CODE_EVENTS, MALL, "one"), Consumer(Feed.SETTLEMENTS, MALL, "three")):
        acknowledge(ledger, other, end, at_ms=2)
    assert feed.cursor_text(end)


# --- whose they are ---------------------------------------------------------------------------------------------------
def test_a_name_belongs_to_who_acknowledges_under_it_first(ledger: Ledger, end: Cursor) -> None:
    first = {HERE: before(end[HERE])}
    acknowledge(ledger, WALLET, first, at_ms=5, caller="idp:purse")
    for cursor in (first, end, end | {HERE: before(end[HERE], -1)}):
        with pytest.raises(ConsumerTaken, match="the wallet wallet belongs to another caller") as caught:
            acknowledge(ledger, WALLET, cursor, at_ms=6, caller="idp:thief")
        assert caught.value.field == "wallet"
        assert "idp:purse" not in caught.value.message
    with pytest.raises(ConsumerTaken):
        acknowledged(ledger, WALLET, caller="idp:thief")
    found = acknowledged(ledger, WALLET, caller="idp:purse")
    assert found is not None
    assert (found.cursor, found.at_ms, found.owner) == (first, 5, "idp:purse")
    assert acknowledge(ledger, WALLET, end, at_ms=7, caller="idp:purse").cursor == end
    others = (Consumer(Feed.SETTLEMENTS, MALL, "wallet"), Consumer(Feed.CODE_EVENTS, MALL, "wallet"))
    for other in others:
        assert acknowledge(ledger, other, end, at_ms=8, caller="idp:thief").owner == "idp:thief"


def test_a_name_that_was_used_where_nobody_is_known_is_taken_by_the_first_who_is(
    ledger: Ledger, end: Cursor
) -> None:
    acknowledge(ledger, WALLET, end, at_ms=5)
    taken = acknowledge(ledger, WALLET, end, at_ms=6, caller="idp:purse")
    assert (taken.owner, taken.at_ms) == ("idp:purse", 5), "the cursor is the same"
    with pytest.raises(ConsumerTaken):
        acknowledge(ledger, WALLET, end, at_ms=7, caller="idp:thief")
    # Where callers are not known nothing is looked at, and nothing changes hands.
    assert acknowledge(ledger, WALLET, end, at_ms=8).owner == "idp:purse"
    assert [one.owner for one in list_acknowledged(ledger)] == ["idp:purse"]


def test_a_name_that_is_let_go_belongs_to_the_next(ledger: Ledger, end: Cursor) -> None:
    with pytest.raises(NotFound, match="no wallet wallet has acknowledged settlements of all malls"):
        release(ledger, WALLET)
    acknowledge(ledger, WALLET, end, at_ms=5, caller="idp:old")
    assert release(ledger, WALLET).owner == "idp:old"
    found = acknowledged(ledger, WALLET, caller="idp:new")
    assert found is not None
    assert (found.cursor, found.owner) == (end, "")
    acknowledge(ledger, WALLET, end, at_ms=6, caller="idp:new")
    with pytest.raises(ConsumerTaken):
        acknowledge(ledger, WALLET, end, at_ms=7, caller="idp:old")


def test_of_two_that_come_first_at_once_one_has_it(ledger: Ledger, end: Cursor) -> None:
    def one(number: int) -> str:
        try:
            return acknowledge(ledger, WALLET, end, at_ms=number, caller=f"idp:{number}").owner
        except ConsumerTaken:
            return ""

    with ThreadPoolExecutor(4) as pool:
        owners = list(pool.map(one, range(4)))
    [owner] = filter(None, owners)
    assert [one.owner for one in list_acknowledged(ledger)] == [owner]
