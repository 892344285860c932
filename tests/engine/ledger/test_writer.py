"""The writer: everything once and in order, whatever happens in between; what contradicts itself stops it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis
from sqlalchemy import delete, func, select, update

from engine.claims import Line
from engine.errors import LedgerConflict, LedgerUnavailable
from engine.ledger.ledger import Head, HeadMoved, Ledger
from engine.ledger.rows import CONTROL_TYPE
from engine.ledger.tables import EVENTS, ORDERS
from engine.ledger.writer import Writer
from engine.state import streams
from engine.state.events import EventType
from engine.state.streams import CONTROL, Entry, Place, Streams, unpack_fields
from engine.stores import Mall
from tests.engine.shop import MALL, STORE, Shop


def in_store(shop: Shop) -> dict[int, list[Entry]]:
    """Every event of every stream, read apart from the writer's way."""
    found: dict[int, list[Entry]] = {}
    with redis.Redis.from_url(shop.url) as client:
        for number, keys in enumerate(shop.deployment.connection.partitions):
            for entry_id, fields in client.xrange(keys.events):
                epoch, seq = map(int, entry_id.split(b"-"))
                found.setdefault(number, []).append(Entry(epoch, seq, fields[b"e"]))
        for entry_id, fields in client.xrange("{ctl}e"):
            flat = [part for pair in fields.items() for part in pair]
            entry = Entry(1, int(entry_id.split(b"-")[0]), streams.pack_fields(flat))
            found.setdefault(CONTROL, []).append(entry)
    return found


def in_ledger(ledger: Ledger) -> dict[int, list[Entry]]:
    return {number: [row.entry for row in ledger.rows(number)] for number in ledger.heads()}


def write_all(writer: Writer) -> int:
    written = 0
    while appended := writer.step(block_ms=0):
        written += appended
    return written


def drop_from_store(shop: Shop, partition: int, place: Place) -> None:
    with redis.Redis.from_url(shop.url) as client:
        assert client.xdel(shop.deployment.connection.partitions[partition].events, str(place)) == 1


def busy(shop: Shop) -> tuple[bytes, bytes]:
    """A day in short: a code picked up, another voided; gives their uids."""
    shop.stock_all()
    first, second = shop.issue(order_id="ORDER-7"), shop.issue(order_id="ORDER-8", lines=(Line(101, 2),))
    shop.redeem(shop.show(first.uid), actor="clerk:bob")
    shop.void(second.uid)
    return first.uid, second.uid


def test_every_event_of_every_partition_is_there_byte_for_byte(
    shop: Shop, ledger: Ledger, writer: Writer
) -> None:
    busy(shop)
    written = write_all(writer)
    expected = in_store(shop)
    assert in_ledger(ledger) == expected
    assert written == sum(map(len, expected.values()))
    assert {number: head.rows for number, head in ledger.heads().items()} == {
        number: len(entries) for number, entries in expected.items()
    }


def test_columns_repeat_what_the_bytes_say(shop: Shop, ledger: Ledger, writer: Writer) -> None:
    uid, _ = busy(shop)
    write_all(writer)
    events = {event.id: event for event in shop.events()}
    with ledger.engine.connect() as connection:
        rows = connection.execute(select(EVENTS).where(EVENTS.c.type != CONTROL_TYPE)).all()
        orders = connection.execute(select(ORDERS.c.order_id).where(ORDERS.c.uid == uid)).scalars().all()
    assert len(rows) == len(events)
    for row in rows:
        event = next(e for e in events.values() if (e.id.partition, e.id.epoch, e.id.seq) == tuple(row[:3]))
        assert (row.at_ms, row.type, row.mall_id, row.store_id, row.terminal_id, row.actor) == (
            event.at_ms,
            event.type,
            event.mall_id,
            event.store_id,
            event.terminal_id,
            event.actor,
        )
        assert (row.uid or bytes(8)) == event.uid
    assert any(row.type == EventType.REDEEMED and row.actor == "clerk:bob" for row in rows)
    assert orders == ["ORDER-7"]


def test_changes_of_the_set_up_are_there(shop: Shop, ledger: Ledger, writer: Writer) -> None:
    shop.deployment.control.put_malls([Mall(9, "九")], request_id="put-0009", actor="ops:lin")
    write_all(writer)
    with ledger.engine.connect() as connection:
        row = connection.execute(
            select(EVENTS).where(EVENTS.c.partition == CONTROL).order_by(EVENTS.c.seq.desc()).limit(1)
        ).one()
    assert (row.type, row.actor, row.at_ms, row.uid) == (CONTROL_TYPE, "ops:lin", shop.clock.now_ms, None)
    said = dict(unpack_fields(bytes(row.data)))
    assert said[b"kind"] == b"malls"
    assert "九" in said[b"9"].decode()


def test_a_provider_may_bear_the_name_of_a_field(shop: Shop, ledger: Ledger, writer: Writer) -> None:
    """Entries of the set-up come behind the script's own fields, under any name."""
    with redis.Redis.from_url(shop.url) as client:
        version = int(client.hget("{ctl}m", "version") or 0) + 1
        client.execute_command(
            "XADD", "{ctl}e", f"{version}-0", "at", "5", "kind", "providers", "version", version,
            "actor", "a", "at", "{}",
        )  # fmt: skip
    write_all(writer)
    with ledger.engine.connect() as connection:
        at_ms = connection.execute(
            select(EVENTS.c.at_ms).where(EVENTS.c.partition == CONTROL, EVENTS.c.seq == version)
        ).scalar_one()
    assert at_ms == 5


def test_a_round_without_news_writes_nothing(writer: Writer, ledger: Ledger) -> None:
    write_all(writer)
    before = ledger.heads()
    assert writer.step(block_ms=1) == 0
    assert ledger.heads() == before


def test_a_writer_that_was_killed_goes_on_where_it_stood(
    shop: Shop, writer: Writer, open_ledger: Callable[[], Ledger]
) -> None:
    busy(shop)
    write_all(writer)
    busy(shop)
    # The first is simply not there any more; nothing of it was put in order.
    ledger = open_ledger()
    successor = Writer(Streams(shop.deployment.connection), ledger, now_ms=shop.clock)
    successor.start()
    write_all(successor)
    assert in_ledger(ledger) == in_store(shop)


def test_two_writers_at_once_write_everything_once(
    shop: Shop, writer: Writer, open_ledger: Callable[[], Ledger]
) -> None:
    rival = Writer(Streams(shop.deployment.connection), open_ledger(), now_ms=shop.clock)
    rival.start()
    for _ in range(3):
        busy(shop)
        assert writer.step(block_ms=0) > 0
        busy(shop)
        assert rival.step(block_ms=0) == 0, "it finds the head moved, and looks again"
        assert rival.step(block_ms=0) > 0
        assert writer.step(block_ms=0) == 0
    write_all(writer)
    assert in_ledger(open_ledger()) == in_store(shop)


def test_an_append_happens_whole_or_not_at_all(shop: Shop, ledger: Ledger, writer: Writer) -> None:
    busy(shop)
    stale = {number: ledger.first_head(number) for number in (*range(4), CONTROL)}
    write_all(writer)
    busy(shop)
    before = in_ledger(ledger)
    fresh = ledger.heads()
    following = {
        number: entries[len(before[number]) :] for number, entries in in_store(shop).items() if entries
    }
    following = {number: entries for number, entries in following.items() if entries}
    last = max(following)
    heads: dict[int, Head] = {**fresh, last: stale[last]}
    with pytest.raises(HeadMoved):
        ledger.append(heads, following)
    assert in_ledger(ledger) == before


# --- what contradicts itself ----------------------------------------------------------------------------------------
def partition_of_store(shop: Shop) -> int:
    return next(event.id.partition for event in shop.events() if event.store_id == STORE)


def test_one_number_with_other_bytes_stops_the_writer(shop: Shop, ledger: Ledger, writer: Writer) -> None:
    busy(shop)
    write_all(writer)
    number = partition_of_store(shop)
    forged = in_store(shop)[number][-1].data[:-1] + b"\xff"
    with ledger.engine.begin() as connection:
        head = ledger.heads()[number]
        connection.execute(
            update(EVENTS)
            .where(EVENTS.c.partition == number, EVENTS.c.seq == head.place.seq)
            .values(data=forged)
        )
    with pytest.raises(LedgerConflict, match=rf"partition {number}: event {head.place} has other bytes"):
        writer.start()


def test_a_row_missing_in_the_ledger_stops_the_writer(shop: Shop, ledger: Ledger, writer: Writer) -> None:
    busy(shop)
    write_all(writer)
    number = partition_of_store(shop)
    with ledger.engine.begin() as connection:
        connection.execute(delete(EVENTS).where(EVENTS.c.partition == number, EVENTS.c.seq == 3))
    with pytest.raises(
        LedgerConflict, match=f"partition {number}: the store has event 1-3, the ledger has not"
    ):
        writer.start()


def test_an_event_deleted_before_the_ledger_had_it_stops_the_writer(
    shop: Shop, ledger: Ledger, writer: Writer
) -> None:
    busy(shop)
    write_all(writer)
    number = partition_of_store(shop)
    last = ledger.heads()[number].place
    busy(shop)
    drop_from_store(shop, number, Place(1, last.seq + 2))
    before = in_ledger(ledger)
    with pytest.raises(
        LedgerConflict, match=rf"partition {number}: event 1-{last.seq + 3} follows 1-{last.seq + 1}"
    ):
        writer.step(block_ms=0)
    assert in_ledger(ledger) == before


def test_a_store_put_back_to_an_older_state_stops_the_writer(
    shop: Shop, ledger: Ledger, writer: Writer
) -> None:
    busy(shop)
    write_all(writer)
    number = partition_of_store(shop)
    last = ledger.heads()[number].place
    drop_from_store(shop, number, last)
    with pytest.raises(LedgerConflict, match=f"ends with event {last}, the store has none newer than"):
        writer.start()


def test_a_tail_lost_before_a_new_epoch_stops_the_writer(shop: Shop, ledger: Ledger, writer: Writer) -> None:
    """A promoted replica that lacked the last events: its epoch begins behind a place that the ledger is past."""
    busy(shop)
    write_all(writer)
    number = partition_of_store(shop)
    last = ledger.heads()[number].place
    epoch = next(iter(in_store(shop)[number])).data[:1] + bytes([EventType.EPOCH]) + bytes(60)
    with redis.Redis.from_url(shop.url) as client:
        stream = shop.deployment.connection.partitions[number].events
        client.xadd(stream, {"e": epoch}, id="2-1")
        client.xdel(stream, str(last))
    with pytest.raises(LedgerConflict, match=f"ends with event {last}"):
        writer.step(block_ms=0)


def test_an_epoch_that_begins_in_order_is_followed(shop: Shop, ledger: Ledger, writer: Writer) -> None:
    busy(shop)
    write_all(writer)
    number = partition_of_store(shop)
    epoch = next(iter(in_store(shop)[number])).data[:1] + bytes([EventType.EPOCH]) + bytes(60)
    with redis.Redis.from_url(shop.url) as client:
        client.xadd(shop.deployment.connection.partitions[number].events, {"e": epoch}, id="2-1")
    write_all(writer)
    assert ledger.heads()[number].place == Place(2, 1)


def test_an_alarm_is_published_and_ends_the_writing(shop: Shop, ledger: Ledger, writer: Writer) -> None:
    busy(shop)
    write_all(writer)
    number = partition_of_store(shop)
    drop_from_store(shop, number, ledger.heads()[number].place)
    with pytest.raises(LedgerConflict):
        Writer(Streams(shop.deployment.connection), ledger, now_ms=shop.clock).run(lambda wait_s: False)
    with redis.Redis.from_url(shop.url) as client:
        alarm = client.hget("{ctl}m", "ledger_alarm")
    assert b"rebuild it from the ledger" in alarm


# --- marks, trimming, lag ---------------------------------------------------------------------------------------------
@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> int:
    """Events that stay behind the mark; the store drops whole nodes of a hundred only."""
    monkeypatch.setattr(streams, "KEPT", 20)
    return 20


def fill(shop: Shop, events: int) -> None:
    for _ in range(events):
        shop.receive(1)


def lengths(shop: Shop) -> tuple[int, bytes]:
    """Of the stream of STORE's partition: entries it has, and the ledger's mark."""
    number = partition_of_store(shop)
    with redis.Redis.from_url(shop.url) as client:
        stream = shop.deployment.connection.partitions[number].events
        groups = client.xinfo_groups(stream)
        return client.xlen(stream), groups[0]["last-delivered-id"] if groups else b""


def test_the_store_drops_what_is_committed_and_keeps_the_last_events(
    shop: Shop, ledger: Ledger, writer: Writer, kept: int
) -> None:
    fill(shop, 450)
    before, _ = lengths(shop)
    write_all(writer)
    place = ledger.heads()[partition_of_store(shop)].place
    after, mark = lengths(shop)
    assert (before, mark.decode()) == (450, str(place))
    assert kept <= after <= kept + 100
    writer.start()  # there is enough left to see that both agree


def test_a_store_that_often_begins_anew_keeps_its_few_events(shop: Shop, writer: Writer) -> None:
    """Each epoch has few of them: what is kept is counted over all epochs."""
    fill(shop, 250)
    write_all(writer)
    number = partition_of_store(shop)
    Streams(shop.deployment.connection).mark({number: streams.Place(4, 1)})
    assert lengths(shop)[0] == 250


def test_nothing_is_dropped_before_it_is_committed(
    shop: Shop, ledger: Ledger, writer: Writer, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(shop, 150)
    write_all(writer)
    fill(shop, 300)

    def fail(*_: object) -> None:
        raise LedgerUnavailable("the disk is full")

    monkeypatch.setattr(ledger, "append", fail)
    with pytest.raises(LedgerUnavailable):
        writer.step(block_ms=0)
    monkeypatch.undo()
    number = partition_of_store(shop)
    stored = [(entry.epoch, entry.seq) for entry in in_store(shop)[number]]
    assert set(stored) >= {(1, seq) for seq in range(150 - kept, 451)}
    write_all(writer)
    assert ledger.heads()[number].rows == 450


def test_the_lag_is_the_age_of_the_oldest_event_that_may_be_missing(shop: Shop, writer: Writer) -> None:
    shop.clock.tick(5)
    assert writer.caught_up_ms == 0
    write_all(writer)
    caught_up_ms = shop.clock.now_ms
    assert (writer.caught_up_ms, writer.lag_ms()) == (caught_up_ms, 0)
    shop.clock.tick(7)
    assert writer.lag_ms() == 7_000
    writer.step(block_ms=0)
    assert writer.lag_ms() == 0


def test_a_full_read_says_that_there_may_be_more(
    shop: Shop, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all(writer)
    monkeypatch.setattr("engine.state.streams.ENTRIES_MAX", 10)
    monkeypatch.setattr("engine.ledger.writer.ENTRIES_MAX", 10)
    shop.clock.tick(1)
    at_ms = shop.clock.now_ms
    fill(shop, 15)
    shop.clock.tick(60)
    assert writer.step(block_ms=0) == 10
    assert writer.caught_up_ms == at_ms
    assert writer.step(block_ms=0) == 5
    assert writer.caught_up_ms == shop.clock.now_ms


def test_servers_are_told_each_second_how_far_it_has_come(shop: Shop, ledger: Ledger) -> None:
    now_s = [0.0]
    writer = Writer(
        Streams(shop.deployment.connection), ledger, now_ms=shop.clock, monotonic_s=lambda: now_s[0]
    )
    writer.start()

    def told() -> int:
        with redis.Redis.from_url(shop.url) as client:
            return int(client.hget("{ctl}m", "ledger_caught_up") or 0)

    writer.step(block_ms=0)
    first = told()
    assert first == shop.clock.now_ms
    shop.clock.tick(1)
    now_s[0] = 0.5
    writer.step(block_ms=0)
    assert told() == first, "not more often than each second"
    now_s[0] = 1.0
    writer.step(block_ms=0)
    assert told() == shop.clock.now_ms


def test_a_database_that_comes_back_is_written_to_again(
    shop: Shop, ledger: Ledger, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy(shop)
    append = ledger.append
    failures = iter([True, True, False])

    def sometimes(*arguments: Any) -> object:
        if next(failures, False):
            raise LedgerUnavailable("the disk is full")
        return append(*arguments)

    monkeypatch.setattr(ledger, "append", sometimes)
    waited: list[float] = []

    def stopping(wait_s: float) -> bool:
        waited.append(wait_s)
        return writer.lag_ms() == 0 and wait_s > 0

    writer.run(stopping)
    assert in_ledger(ledger) == in_store(shop)
    assert [wait_s for wait_s in waited if wait_s][:2] == [0.2, 0.4], "ever more slowly"


def test_an_order_of_another_mall_is_another_order(shop: Shop, ledger: Ledger, writer: Writer) -> None:
    busy(shop)
    write_all(writer)
    with ledger.engine.connect() as connection:
        found = connection.execute(
            select(func.count()).where(ORDERS.c.mall_id == MALL, ORDERS.c.order_id == "ORDER-7")
        ).scalar_one()
    assert found == 1
