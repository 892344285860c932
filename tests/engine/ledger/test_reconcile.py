"""Reconciliation: equal to the unit while everything goes on; whatever was changed behind our back is found and named."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import redis
from sqlalchemy import delete, insert, select, update

from engine import expiry, limits
from engine.claims import Decision, Line, Version
from engine.errors import LedgerUnavailable
from engine.ledger import reconcile
from engine.ledger.audit import Question, search
from engine.ledger.ledger import Ledger
from engine.ledger.reconcile import Drift, Run
from engine.ledger.tables import EVENTS, HEADS
from engine.ledger.writer import Writer
from engine.state import layouts, snapshot
from engine.state.connection import Connection
from engine.state.events import EventType
from engine.state.keys import partition_of_store
from engine.state.streams import Entry, Place, Streams
from engine.verdict import IssueVerdict
from tests.engine.shop import BUNDLE, FAR_STORE, MALL, PARTITIONS, STORE, Shop

NUMBER = partition_of_store(STORE, PARTITIONS)
SALES = 400
"""Of the test that nothing has to stand still: as many as are made while it reads, and an end."""


@pytest.fixture
def busy(shop: Shop) -> list[bytes]:
    """A day with every verb in it; gives the uids of its codes."""
    shop.stock_all(50)
    shop.put_bundle()
    made = [
        shop.issue(amount_fen=9_900, version=version).uid
        for version in (Version.STATIC, Version.DYNAMIC, Version.DYNAMIC)
    ]
    made.append(shop.issue(lines=(Line(100, 2), Line(103, 3))).uid)
    made.append(shop.issue(lines=(Line(BUNDLE, 2),)).uid)
    held = shop.hold().uid
    shop.redeem(shop.show(made[1]))
    shop.redeem(shop.show(made[3]), lines=(Line(100, 1),))
    shop.redeem(shop.show(made[4]), lines=(Line(BUNDLE, 1),))
    shop.reverse(made[4])
    shop.lock(made[0])
    shop.decide(made[0], Decision.APPROVE)
    shop.confirm(held)
    shop.void(held)
    shop.transfer(5)
    return made


@pytest.fixture
def run(shop: Shop, ledger: Ledger, writer: Writer) -> Callable[[], Run]:
    """Bring the ledger up to date and reconcile."""

    def reconciled() -> Run:
        while writer.step(block_ms=0):
            pass
        return reconcile.reconcile(shop.deployment, ledger, cause="command")

    return reconciled


def client(shop: Shop) -> redis.Redis:
    return redis.Redis.from_url(shop.url)


def test_a_day_of_every_verb_is_equal(shop: Shop, busy: list[bytes], run: Callable[[], Run]) -> None:
    result = run()
    assert result.drifts == []
    assert result.clean
    assert result.codes == 6
    assert result.shelves == len({(e.mall_id, e.store_id, e.facts["sku_id"]) for e in shop.events() if "sku_id" in e.facts})  # fmt: skip
    total = result.totals[MALL, STORE]
    assert total.codes == {"LIVE": 3, "REDEEMED": 1, "PARTLY": 1, "VOIDED": 1}
    assert total.fen == {"LIVE": 2 * 9_900, "REDEEMED": 9_900, "PARTLY": 0, "VOIDED": 0}


def test_an_empty_deployment_is_equal(run: Callable[[], Run]) -> None:
    assert run().clean


def test_a_store_that_gets_its_first_stock_meanwhile_is_read(
    shop: Shop, writer: Writer, run: Callable[[], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[dict[int, list[bytes]]] = []
    stock_keys = snapshot._stock_keys

    def list_and_receive(connection: Connection) -> dict[int, list[bytes]]:
        listed.append(stock_keys(connection))
        if len(listed) == 1:
            shop.receive(7, sku_id=103, store_id=FAR_STORE)
            while writer.step(block_ms=0):
                pass
        return listed[-1]

    monkeypatch.setattr(snapshot, "_stock_keys", list_and_receive)
    result = run()
    assert listed[0] != listed[1]
    assert result.drifts == []
    assert result.books[MALL, FAR_STORE, 103][0].on_hand == 7


def test_codes_that_were_forgotten_are_not_missing(
    shop: Shop, busy: list[bytes], run: Callable[[], Run]
) -> None:
    shop.clock.tick(limits.TTL_S_DEFAULT + limits.AFTERLIFE_S + 86_400)
    for _ in range(2):
        expiry.sweep(shop.deployment)
        shop.clock.tick(limits.AFTERLIFE_S + 120)
    result = run()
    assert result.drifts == []
    assert result.codes == 0


def test_a_unit_taken_out_behind_our_back_is_named(
    shop: Shop, busy: list[bytes], run: Callable[[], Run]
) -> None:
    assert run().clean
    shop.receive(3, sku_id=103)
    key = shop.deployment.connection.partitions[NUMBER].stock(MALL, STORE)
    with client(shop) as store:
        figures = shop.figures(103)
        store.hset(key, "103", layouts.STOCK.pack(figures.on_hand - 1, figures.reserved, 0, 0))
    result = run()
    [drift] = result.drifts
    assert (drift.what, drift.mall_id, drift.store_id, drift.sku_id) == ("on_hand", MALL, STORE, 103)
    assert (drift.in_store, drift.in_ledger, drift.difference) == ("52", "53", "-1")
    last = [event for event in shop.events() if event.type is EventType.STOCK][-1]
    assert drift.events == (f"{last.id} STOCK",), "only those since the last clean run"


def test_what_drifts_is_frozen_once(
    shop: Shop, ledger: Ledger, busy: list[bytes], run: Callable[[], Run]
) -> None:
    assert reconcile.freeze(shop.deployment, run()) == []
    key = shop.deployment.connection.partitions[NUMBER].stock(MALL, STORE)
    with client(shop) as store:
        for sku, less in ((103, 1), (104, 2)):
            figures = shop.figures(sku)
            store.hset(key, str(sku), layouts.STOCK.pack(figures.on_hand - less, figures.reserved, 0, 0))
    drifted = run()
    made = reconcile.freeze(shop.deployment, drifted)
    assert [one.shelf for one in made] == [(MALL, STORE, 103), (MALL, STORE, 104)]
    assert made[0].reason == f"reconciliation {drifted.number}: on_hand differs"
    assert shop.issue(lines=(Line(103, 1),)).verdict is IssueVerdict.SKU_FROZEN
    assert shop.issue(lines=(Line(100, 1),)).verdict is IssueVerdict.ISSUED
    assert reconcile.freeze(shop.deployment, run()) == [], "they are frozen already"
    found = search(ledger, Question(actor=reconcile.FREEZER)).findings
    assert [one.what for one in found] == ["CONTROL"], "a privileged act is an event"
    assert f"{MALL}:{STORE}:103" in found[0].details


def test_a_unit_put_in_for_a_sku_that_never_was_is_named(
    shop: Shop, busy: list[bytes], run: Callable[[], Run]
) -> None:
    with client(shop) as store:
        key = shop.deployment.connection.partitions[NUMBER].stock(77, STORE)
        store.hset(key, "9", layouts.STOCK.pack(1, 0, 0, 0))
    [drift] = run().drifts
    assert (drift.mall_id, drift.store_id, drift.sku_id, drift.difference) == (77, STORE, 9, "+1")


def test_a_code_made_live_again_behind_our_back_is_named(
    shop: Shop, busy: list[bytes], run: Callable[[], Run]
) -> None:
    uid = busy[1]
    key = shop.deployment.connection.partitions[NUMBER].record(uid)
    with client(shop) as store:
        record = bytearray(store.hget(key, uid) or b"")
        record[1] = 2
        store.hset(key, uid, bytes(record))
    [drift] = run().drifts
    assert (drift.what, drift.uid, drift.store_id) == ("record", uid, STORE)
    assert '"state": "REDEEMED"' in drift.in_ledger
    assert drift.in_ledger != drift.in_store
    assert [event.split()[1] for event in drift.events] == ["REDEEMED", "ISSUED"]


@pytest.mark.parametrize("harm", [b"xx", b"", b"\xff" * 200])
def test_bytes_that_are_no_record_are_named(
    shop: Shop, busy: list[bytes], run: Callable[[], Run], harm: bytes
) -> None:
    with client(shop) as store:
        store.hset(shop.deployment.connection.partitions[NUMBER].record(busy[1]), busy[1], harm)
    [drift] = run().drifts
    assert (drift.what, drift.uid, drift.mall_id, drift.store_id) == ("record", busy[1], MALL, STORE)
    assert harm.hex() in drift.in_store
    assert '"state": "REDEEMED"' in drift.in_ledger


def test_bytes_behind_a_record_are_named(shop: Shop, busy: list[bytes], run: Callable[[], Run]) -> None:
    key = shop.deployment.connection.partitions[NUMBER].record(busy[1])
    with client(shop) as store:
        store.hset(key, busy[1], (store.hget(key, busy[1]) or b"") + b"more")
    [drift] = run().drifts
    assert drift.uid == busy[1]
    assert drift.in_store != drift.in_ledger


def test_a_record_in_another_bucket_is_named(shop: Shop, busy: list[bytes], run: Callable[[], Run]) -> None:
    names = shop.deployment.connection.partitions[NUMBER]
    uid = busy[3]
    other = names.record(uid[:7] + bytes([uid[7] ^ 1]))
    with client(shop) as store:
        store.hset(other, uid, store.hget(names.record(uid), uid) or b"")
        store.hdel(names.record(uid), uid)
    drifts = run().drifts
    assert {(one.what, one.uid, one.mall_id, one.store_id) for one in drifts} == {
        ("record", uid, MALL, STORE)
    }
    assert {one.in_store for one in drifts} == {"nothing", f"in {other.decode()}, where nothing looks for it"}


def test_figures_under_another_name_hide_nothing(
    shop: Shop, busy: list[bytes], run: Callable[[], Run]
) -> None:
    key = shop.deployment.connection.partitions[NUMBER].stock(MALL, STORE)
    with client(shop) as store:
        figures = store.hget(key, "103") or b""
        for alias in ("0103", "103x", " 103"):
            store.hset(key, alias, figures)
        store.hset(key, "103", layouts.STOCK.pack(1, 0, 0, 0))
    drifts = run().drifts
    assert {one.what: one.difference for one in drifts if one.sku_id == 103}["on_hand"] == "-49"
    assert sorted(one.in_store.rpartition(":")[0] for one in drifts if one.what == "shelf") == [
        f"{key.decode()} {alias}" for alias in (" 103", "0103", "103x")
    ]


def test_bytes_that_are_no_figures_are_named(shop: Shop, busy: list[bytes], run: Callable[[], Run]) -> None:
    key = shop.deployment.connection.partitions[NUMBER].stock(MALL, STORE)
    with client(shop) as store:
        store.hset(key, "103", b"zz")
    [drift] = run().drifts
    assert (drift.what, drift.mall_id, drift.store_id, drift.sku_id) == ("shelf", MALL, STORE, 103)
    assert drift.in_store == "7a7a"


def test_a_code_deleted_behind_our_back_is_named(
    shop: Shop, busy: list[bytes], run: Callable[[], Run]
) -> None:
    uid = busy[3]
    with client(shop) as store:
        store.hdel(shop.deployment.connection.partitions[NUMBER].record(uid), uid)
    [drift] = run().drifts
    assert (drift.what, drift.uid, drift.in_store) == ("record", uid, "nothing")


def test_a_code_that_nobody_issued_is_named(shop: Shop, busy: list[bytes], run: Callable[[], Run]) -> None:
    names = shop.deployment.connection.partitions[NUMBER]
    forged = busy[3][:7] + bytes([busy[3][7] ^ 1])
    with client(shop) as store:
        record = store.hget(names.record(busy[3]), busy[3])
        store.hset(names.record(forged), forged, record or b"")
    [drift] = run().drifts
    assert (drift.what, drift.uid, drift.in_ledger) == ("record", forged, "nothing")


def test_tries_struck_out_behind_our_back_are_named(shop: Shop, run: Callable[[], Run]) -> None:
    shop.stock_all()
    uid = shop.issue(version=Version.STATIC).uid
    shop.lock(uid)
    with client(shop) as store:
        store.delete(shop.deployment.connection.partitions[NUMBER].evidence)
    [drift] = run().drifts
    assert (drift.what, drift.uid, drift.in_store) == ("tries", uid, "nothing")


def test_units_lost_on_their_way_are_named(
    shop: Shop, run: Callable[[], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.stock_all()
    monkeypatch.setattr("engine.state.transfers._arrive", lambda connection, items: [None] * len(items))
    shop.transfer(4)
    assert run().clean, "they are in transit"
    with client(shop) as store:
        store.delete(shop.deployment.connection.partitions[NUMBER].transit)
    [drift] = run().drifts
    assert (drift.what, drift.store_id, drift.sku_id, drift.in_ledger) == ("transit", STORE, 100, "4")


def drop_row(ledger: Ledger, seq: int) -> None:
    wanted = (EVENTS.c.partition == NUMBER) & (EVENTS.c.seq == seq)
    with ledger.engine.begin() as connection:
        assert connection.execute(delete(EVENTS).where(wanted)).rowcount == 1


def test_an_event_deleted_from_the_ledger_is_named(
    shop: Shop, ledger: Ledger, busy: list[bytes], run: Callable[[], Run]
) -> None:
    assert run().clean
    drop_row(ledger, 5)
    [drift] = run().drifts
    assert (drift.what, drift.partition) == ("event", NUMBER)
    assert drift.in_store == f"{NUMBER}-1-6"
    assert "follows 1-4" in drift.in_ledger


def test_an_event_written_twice_is_named(
    shop: Shop, ledger: Ledger, busy: list[bytes], run: Callable[[], Run]
) -> None:
    """Under a number of its own, with a right chain: only what it says can't have happened."""
    assert run().clean
    redeemed = next(event for event in shop.events() if event.type is EventType.REDEEMED)
    with ledger.engine.connect() as connection:
        data = bytes(
            connection.execute(
                select(EVENTS.c.data).where(EVENTS.c.partition == NUMBER, EVENTS.c.seq == redeemed.id.seq)
            ).scalar_one()
        )
    head = ledger.heads()[NUMBER]
    ledger.append({NUMBER: head}, {NUMBER: [Entry(1, head.place.seq + 1, data)]})
    result = reconcile.reconcile(shop.deployment, ledger, cause="command")
    [drift] = result.drifts
    assert drift.what == "event"
    assert (drift.in_store, drift.in_ledger) == (
        f"ends with {head.place}",
        f"has {Place(1, head.place.seq + 1)}",
    )


def test_an_event_put_in_among_the_others_is_named(
    shop: Shop, ledger: Ledger, busy: list[bytes], run: Callable[[], Run]
) -> None:
    assert run().clean
    redeemed = next(event for event in shop.events() if event.type is EventType.REDEEMED)
    with ledger.engine.begin() as connection:
        last = ledger.heads()[NUMBER].place.seq
        for seq in range(last, redeemed.id.seq, -1):
            connection.execute(
                update(EVENTS).where(EVENTS.c.partition == NUMBER, EVENTS.c.seq == seq).values(seq=seq + 1)
            )
        row = connection.execute(
            select(EVENTS).where(EVENTS.c.partition == NUMBER, EVENTS.c.seq == redeemed.id.seq)
        ).mappings().one()  # fmt: skip
        connection.execute(insert(EVENTS), [{**row, "seq": redeemed.id.seq + 1}])
        connection.execute(update(HEADS).where(HEADS.c.partition == NUMBER).values(seq=last + 1))
    result = reconcile.reconcile(shop.deployment, ledger, cause="command")
    named = [drift for drift in result.drifts if drift.in_store == f"{NUMBER}-1-{redeemed.id.seq + 1}"]
    assert "hands out more" in named[0].in_ledger or "REDEEMED of code" in named[0].in_ledger


def test_a_ledger_that_does_not_follow_is_told(
    shop: Shop, ledger: Ledger, writer: Writer, busy: list[bytes]
) -> None:
    seconds: Iterator[float] = iter(range(0, 1_000, 10))
    with pytest.raises(LedgerUnavailable, match="see that its writer runs"):
        reconcile.reconcile(
            shop.deployment,
            ledger,
            cause="command",
            sleep=lambda s: None,
            monotonic_s=lambda: next(seconds),
        )


def test_nothing_has_to_stand_still(
    shop: Shop, ledger: Ledger, writer: Writer, open_ledger: Callable[[], Ledger]
) -> None:
    """Codes are made, picked up and taken back while the store is read."""
    shop.stock_all(10_000)
    ending = threading.Event()
    failures: list[BaseException] = []

    def sell() -> None:
        try:
            for _ in range(SALES):
                if ending.is_set():
                    return
                shop.deployment.control.refresh()  # a busy machine may keep the thread that does so waiting
                uid = shop.issue(store_id=STORE).uid
                shop.redeem(shop.show(uid))
                shop.reverse(uid)
                shop.transfer(1, to_store_id=FAR_STORE)
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=sell),
        threading.Thread(target=writer.run, args=(ending.wait,)),
    ]
    for thread in threads:
        thread.start()
    try:
        results = [reconcile.reconcile(shop.deployment, open_ledger(), cause="command") for _ in range(2)]
    finally:
        ending.set()
        for thread in threads:
            thread.join(60)
    assert failures == []
    assert [result.drifts for result in results] == [[], []]
    assert results[0].codes <= results[-1].codes > 0


def test_results_are_kept(
    shop: Shop, ledger: Ledger, busy: list[bytes], run: Callable[[], Run], open_ledger: Callable[[], Ledger]
) -> None:
    clean = run()
    with client(shop) as store:
        store.delete(shop.deployment.connection.partitions[NUMBER].stock(MALL, STORE))
    drifted = run()
    other = open_ledger()
    newest, oldest = reconcile.list_runs(other, 10)
    assert (newest.number, newest.clean, newest.drifts) == (drifted.number, False, drifted.drifts_total)
    assert (oldest.number, oldest.clean, oldest.cause) == (clean.number, True, "command")
    kept = reconcile.read_run(other)
    assert kept is not None
    assert kept.drifts == drifted.drifts
    assert kept.totals == drifted.totals
    assert kept.places == drifted.places
    assert reconcile.read_run(other, 99) is None


def test_past_the_bound_drifts_are_counted(
    shop: Shop, busy: list[bytes], run: Callable[[], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "DRIFTS_MAX", 3)
    with client(shop) as store:
        store.delete(shop.deployment.connection.partitions[NUMBER].stock(MALL, STORE))
    result = run()
    assert len(result.drifts) == 3 < result.drifts_total


def test_a_difference_is_of_numbers() -> None:
    assert Drift(0, "on_hand", "3", "5").difference == "-2"
    assert Drift(0, "record", "nothing", "{}").difference == ""


def test_streams_are_left_alone(shop: Shop, busy: list[bytes], run: Callable[[], Run]) -> None:
    before = shop.dump()
    last = Streams(shop.deployment.connection).last(NUMBER)
    run()
    assert Streams(shop.deployment.connection).last(NUMBER) == last
    assert shop.dump().keys() == before.keys()
