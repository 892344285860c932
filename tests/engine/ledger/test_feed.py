"""Reading on behind a cursor: nothing twice, nothing left out, whatever the page's size; and what a cursor may say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, tuple_

from engine import limits
from engine.claims import EventId, Terminal
from engine.errors import CursorAhead, CursorCut, InvalidInput
from engine.ledger import code_events, database, feed
from engine.ledger.feed import Cursor, cursor_text, parse_cursor
from engine.ledger.ledger import Ledger
from engine.ledger.tables import EVENTS
from engine.ledger.writer import Writer
from engine.state.events import EventType
from engine.state.keys import partition_of_store
from engine.state.streams import START, Entry, Place
from tests.engine.shop import FAR_STORE, MALL, OTHER_MALL, PARTITIONS, STORE, Shop

HERE = partition_of_store(STORE, PARTITIONS)
THERE = partition_of_store(FAR_STORE, PARTITIONS)


def write(writer: Writer) -> None:
    while writer.step(block_ms=0):
        pass


def trade(shop: Shop, codes: int = 3) -> None:
    """Codes of both malls at two stores, half of them redeemed."""
    for store in (STORE, FAR_STORE):
        for mall in (MALL, OTHER_MALL):
            for number in range(codes):
                uid = shop.issue(mall_id=mall, store_id=store).uid
                if number % 2:
                    shown = shop.render(uid, mall_id=mall).payloads[0].text
                    shop.redeem(shown, terminal=Terminal(mall, store, 7))


@pytest.fixture
def traded(shop: Shop, ledger: Ledger, writer: Writer) -> Ledger:
    for store in (STORE, FAR_STORE):
        shop.stock_all(100, store_id=store)
        shop.stock_all(100, store_id=store, mall_id=OTHER_MALL)
    trade(shop)
    write(writer)
    return ledger


def read(ledger: Ledger, cursor: Cursor, **how: object) -> feed.Page[EventId]:
    asked = {"types": code_events.TYPES, **how}
    with database.snapshot(ledger.engine) as connection:
        page = feed.read(connection, cursor, **asked)  # type: ignore[arg-type]
    return feed.Page(tuple(event.id for event in page.items), page.cursor, page.complete, page.next_partition)


def read_all(ledger: Ledger, cursor: Cursor, count: int, **how: object) -> list[EventId]:
    found: list[EventId] = []
    first = 0
    for _ in range(1_000):
        page = read(ledger, cursor, count=count, first_partition=first, **how)
        assert len(page.items) <= count
        found += page.items
        cursor, first = parse_cursor(cursor_text(page.cursor)), page.next_partition
        if page.complete:
            return found
    raise AssertionError("it has no end")


def test_pages_of_any_size_are_every_event_once_and_in_order(traded: Ledger) -> None:
    whole = read(traded, {}, count=1_000)
    assert whole.complete
    assert len(whole.items) == len(set(whole.items)) == 16
    for count in (1, 3, 16):
        found = read_all(traded, {}, count)
        assert sorted(found, key=str) == sorted(whole.items, key=str)
        for number in (HERE, THERE):
            places = [(one.epoch, one.seq) for one in found if one.partition == number]
            assert places == sorted(places)
    assert read(traded, whole.cursor).items == ()


def test_a_busy_partition_does_not_keep_the_others_waiting(traded: Ledger) -> None:
    first = read(traded, {}, count=2)
    second = read(traded, first.cursor, count=2, first_partition=first.next_partition)
    assert {one.partition for one in first.items} != {one.partition for one in second.items}


def test_what_is_not_asked_for_is_passed_over(traded: Ledger) -> None:
    of_one = read(traded, {}, mall_id=MALL)
    assert len(of_one.items) == 8
    redeemed = read(traded, {}, types={EventType.REDEEMED}, mall_id=OTHER_MALL)
    assert len(redeemed.items) == 2
    assert redeemed.cursor == of_one.cursor, "both have all that there is"
    assert read(traded, {}, mall_id=999).items == ()


def test_a_page_looks_at_no_more_than_its_bound(traded: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few there are of what is wanted: the rest is for the next pages, which come to an end."""
    monkeypatch.setattr(feed, "LOOKED_AT_MAX", 5)
    page = read(traded, {}, types={EventType.REDEEMED}, mall_id=MALL)
    assert not page.complete
    assert len(page.items) < 2
    assert len(read_all(traded, {}, 100, types={EventType.REDEEMED}, mall_id=MALL)) == 2
    assert len(read_all(traded, {}, 1)) == 16


def test_epochs_are_passed_whatever_the_bound(traded: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind another server a partition counts from one again; what lay before and behind that is told once."""
    old = [row.entry for row in traded.rows(HERE)]
    for epoch in (2, 3, 4):
        opening = Entry(epoch, 1, old[0].data[:1] + bytes([EventType.EPOCH]) + bytes(60))
        # One epoch in which nothing happens.
        following = [Entry(epoch, seq + 2, one.data) for seq, one in enumerate(old[1:])] if epoch != 3 else []
        traded.append(traded.heads(), {HERE: [opening, *following]})
    whole = read_all(traded, {}, 1_000)
    assert {one.epoch for one in whole} == {1, 2, 4}
    for bound in (1, 2, 7, 20_000):
        monkeypatch.setattr(feed, "LOOKED_AT_MAX", bound)
        for count in (1, 100):
            found = read_all(traded, {}, count)
            assert len(found) == len(whole)
            assert set(found) == set(whole)


# --- cursors --------------------------------------------------------------------------------------------------------
@given(
    st.dictionaries(
        st.integers(0, limits.PARTITIONS_MAX - 1),
        st.builds(Place, st.integers(1, 2**40), st.integers(0, 2**48)),
        max_size=limits.PARTITIONS_MAX,
    )
)
def test_a_cursor_goes_both_ways(cursor: Cursor) -> None:
    assert parse_cursor(cursor_text(cursor)) == cursor
    assert len(cursor_text(cursor)) <= feed.CURSOR_CHARS_MAX


@pytest.mark.parametrize(
    "text",
    [
        *(
            "x",
            "0",
            "0:2",
            "0:2-",
            "-1:2-3",
            "0:2-3,",
            ",",
            "0:2-3,0:2-4",
            "1024:1-1",
            "0:1-99999999999999999",
        ),
        *("٣:1-1", "0:1-1 ", "0:1_0-1", "0:1-1;1:1-1"),
    ],
)
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="is none; expected what an earlier answer ended with") as caught:
        parse_cursor(text)
    assert caught.value.field == "cursor"


def test_a_cursor_beyond_the_end_is_refused(traded: Ledger) -> None:
    end = read(traded, {}).cursor[HERE]
    beyond = {HERE: Place(end.epoch, end.seq + 1)}
    with pytest.raises(
        CursorAhead, match=f"says {HERE}:{beyond[HERE]}, and the ledger ends with {HERE}:{end}"
    ):
        read(traded, beyond)
    with pytest.raises(CursorAhead, match="nothing in partition 1000"):
        read(traded, {1_000: Place(1, 1)})


def cut(ledger: Ledger, number: int, upto: Place) -> None:
    """Take rows away as retention does."""
    with database.writing(ledger.engine) as connection:
        connection.execute(
            delete(EVENTS).where(
                EVENTS.c.partition == number, tuple_(EVENTS.c.epoch, EVENTS.c.seq) <= tuple_(*upto)
            )
        )


def test_a_cursor_below_what_is_kept_is_told_from_where_to_begin(traded: Ledger) -> None:
    end = read(traded, {}).cursor[HERE]
    kept = Place(end.epoch, end.seq - 2)
    cut(traded, HERE, kept)
    for below in ({}, {HERE: Place(1, 1)}, {HERE: Place(kept.epoch, kept.seq - 1)}):
        with pytest.raises(
            CursorCut, match=f"up to {HERE}:{kept} is no longer kept.*that says {HERE}:{kept}"
        ):
            read(traded, below)
    at_it = read(traded, {HERE: kept, THERE: read(traded, {HERE: kept}).cursor[THERE]})
    assert [(one.epoch, one.seq) for one in at_it.items] == [(end.epoch, end.seq - 1), (end.epoch, end.seq)]
    with database.snapshot(traded.engine) as connection:
        assert feed.oldest(connection) == {HERE: kept}
    assert len(read(traded, {HERE: kept}).items) == 2 + 8


def test_a_partition_of_which_nothing_is_kept_goes_on_behind_its_end(
    shop: Shop, traded: Ledger, writer: Writer
) -> None:
    end = read(traded, {}).cursor[HERE]
    cut(traded, HERE, end)
    with pytest.raises(CursorCut, match=f"up to {HERE}:{end} is no longer kept"):
        read(traded, {HERE: Place(end.epoch, end.seq - 1)})
    with database.snapshot(traded.engine) as connection:
        assert feed.oldest(connection)[HERE] == end
    shop.issue()
    write(writer)
    assert read(traded, {HERE: end}).items[0].seq == end.seq + 1


def test_an_uncut_ledger_begins_at_its_beginning(traded: Ledger) -> None:
    with database.snapshot(traded.engine) as connection:
        assert feed.oldest(connection) == {}
        assert feed.cut_place(connection, HERE) == START


@pytest.mark.parametrize("count", [0, feed.PAGE_MAX + 1])
def test_a_page_of_no_size_is_refused(traded: Ledger, count: int) -> None:
    with pytest.raises(InvalidInput, match=f"count is {count}; expected 1 to 1000"):
        read(traded, {}, count=count)
