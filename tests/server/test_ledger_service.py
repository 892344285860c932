"""LedgerService over gRPC: reconciliations, audit, verification, heads; and what it refuses."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from sqlalchemy import delete, select, text, update

from engine.claims import partition_of
from engine.ledger import audit, database, operations, reconcile
from engine.ledger.tables import EVENTS, HEADS, ORDERS
from engine.state.streams import CONTROL, Place
from engine.verdict import RedeemVerdict
from pickgate.v1 import ledger_service_pb2 as ledger_pb
from pickgate.v1 import settlement_service_pb2 as settlement_pb
from server import bounds
from server.cli import main
from server.client import Client
from tests.server.books import Books, refused
from tests.server.conftest import MALL, SKU, STORE, TERMINAL, House, HouseFactory


def call(client: Client, name: str, **fields: Any) -> Any:
    request = getattr(ledger_pb, f"{name}Request")(**fields)
    return client.call(getattr(client.ledger, name), request)


# --- status -----------------------------------------------------------------------------------------------------------
def test_heads_lag_and_consumers(books: Books) -> None:
    client = books.house.client
    partition = partition_of(bytes.fromhex(books.sell("ORDER-1")))
    books.write()
    books.issue("ORDER-2")
    books.house.deployment.control.refresh()
    cursor = f"{partition}:1-1"
    acknowledged = settlement_pb.AcknowledgeRequest(wallet="wallet", cursor=cursor)
    client.call(client.settlements.Acknowledge, acknowledged)
    found = call(client, "GetLedgerStatus")
    assert found.deployment_id == books.house.deployment.constants.deployment_id
    assert (found.chain, found.alarm) == ("sha256", "")
    heads = {one.partition: one for one in found.heads}
    assert set(heads) == {*range(16), CONTROL}
    kept = books.ledger.heads()
    assert {number: (one.last, one.rows, one.link) for number, one in heads.items() if one.rows} == {
        number: (str(head.place), head.rows, head.link) for number, head in kept.items()
    }
    assert heads[CONTROL].last == heads[CONTROL].last_in_store
    epoch, seq = map(int, heads[partition].last.split("-"))
    assert heads[partition].last_in_store == f"{epoch}-{seq + 1}", "what the ledger does not have yet shows"
    assert heads[(partition + 1) % 16].last_in_store == heads[(partition + 1) % 16].last
    assert found.caught_up_ms > 0
    assert 0 <= found.lag_ms < 60_000
    (consumer,) = found.consumers
    assert (consumer.feed, consumer.name, consumer.mall_id, consumer.cursor) == (
        ledger_pb.FEED_KIND_SETTLEMENTS,
        "wallet",
        0,
        cursor,
    )


# --- reconciliations --------------------------------------------------------------------------------------------------
def reconciled(books: Books) -> reconcile.Run:
    books.write()
    return reconcile.reconcile(books.house.deployment, books.ledger, cause="command")


def test_reconciliations_are_listed_and_told(books: Books) -> None:
    client = books.house.client
    assert refused(partial(call, client, "GetReconciliation")).code is grpc.StatusCode.NOT_FOUND
    books.issue("ORDER-1")
    books.sell("ORDER-2")
    runs = [reconciled(books) for _ in range(3)]
    page = call(client, "ListReconciliations", page_size=2)
    assert [one.number for one in page.reconciliations] == [3, 2]
    rest = call(client, "ListReconciliations", page_size=2, page_token=page.next_page_token)
    assert ([one.number for one in rest.reconciliations], rest.next_page_token) == ([1], "")
    newest = call(client, "GetReconciliation")
    assert newest.reconciliation == page.reconciliations[0]
    assert (newest.reconciliation.clean, newest.reconciliation.codes) == (True, runs[2].codes)
    assert {(one.mall_id, one.store_id, one.state, one.codes, one.paid_fen) for one in newest.totals} == {
        (MALL, STORE, "LIVE", 1, 8_000),
        (MALL, STORE, "REDEEMED", 1, 8_000),
    }
    assert not newest.drifts
    missing = refused(partial(call, client, "GetReconciliation", number=9))
    assert (missing.code, missing.field) == (grpc.StatusCode.NOT_FOUND, "number")


def test_drifts_are_told_a_page_at_a_time(books: Books) -> None:
    client, connection = books.house.client, books.house.deployment.connection
    books.issue("ORDER-1")
    books.write()
    [keys] = connection.read([("KEYS", "*}s7:*")])
    connection.write([("DEL", key) for key in keys])
    run = reconciled(books)
    assert len(run.drifts) >= 3
    found: list[ledger_pb.Drift] = []
    token = ""
    while True:
        page = call(client, "GetReconciliation", number=run.number, page_size=2, page_token=token)
        assert bool(page.totals) is not bool(token), "totals come with the first page"
        found += page.drifts
        token = page.next_page_token
        if not token:
            break
    assert len(found) == page.reconciliation.drifts == len(run.drifts)
    assert not page.reconciliation.clean
    on_hand = next(one for one in found if one.what == "on_hand" and one.store_id == STORE)
    assert (on_hand.mall_id, on_hand.sku_id, on_hand.in_store, on_hand.in_ledger) == (
        MALL,
        SKU,
        "0",
        "100000",
    )
    assert on_hand.difference == "-100000"
    assert any(event.endswith(" ISSUED") for event in on_hand.events)


def test_a_reconciliation_is_asked_for_and_looked_at(books: Books) -> None:
    """What the server does of it; tests/server/test_ledger.py has one made."""
    client = books.house.client
    asked = call(client, "StartReconciliation", request_id="request-000001", actor="ops:lin").operation
    assert (asked.state, asked.actor) == (ledger_pb.OPERATION_STATE_PENDING, "ops:lin")
    again = call(client, "StartReconciliation", request_id="request-000001", actor="ops:lin").operation
    assert again == asked
    other = refused(partial(call, client, "StartReconciliation", request_id="request-000002"))
    assert (other.code, other.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "EXHAUSTED")
    assert "request-000001" in other.message
    reused = refused(
        partial(call, client, "StartReconciliation", request_id="request-000001", actor="ops:bob")
    )
    assert (reused.code, reused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")

    now_ms = books.house.deployment.now_ms()
    assert operations.take_up(books.ledger, now_ms) == "request-000001"
    run = reconciled(books)
    operations.end(books.ledger, "request-000001", now_ms + 5, run=run.number)
    done = call(client, "GetOperation", operation_id="request-000001").operation
    assert (done.state, done.reconciliation, done.ended_ms) == (
        ledger_pb.OPERATION_STATE_DONE,
        run.number,
        now_ms + 5,
    )
    nobody = refused(partial(call, client, "GetOperation", operation_id="request-000009"))
    assert (nobody.code, nobody.field) == (grpc.StatusCode.NOT_FOUND, "operation_id")


# --- audit ------------------------------------------------------------------------------------------------------------
def test_the_audit_finds_events_and_attempts(books: Books) -> None:
    house, client = books.house, books.house.client
    uid = books.issue("ORDER-1")
    shown = house.render(uid).payloads[0].text
    answer = house.client.call(house.client.redemption.Redeem, house.redeem_request(shown, actor="clerk:bob"))
    assert answer.event_id
    house.redeem(shown)  # a second time: refused, and nothing changed
    books.write()
    books.writer._attempts.step()
    found = call(client, "SearchAudit", uid=uid).findings
    assert [(one.what, one.refused) for one in found] == [
        ("ISSUED", False),
        ("REDEEMED", False),
        (RedeemVerdict.ALREADY_REDEEMED.slug, True),
    ]
    redeemed = found[1]
    assert (redeemed.event_id, redeemed.actor, redeemed.terminal_id) == (
        answer.event_id,
        "clerk:bob",
        TERMINAL,
    )
    assert json.loads(redeemed.details_json)["lines"] == [{"sku_id": SKU, "count": 1, "left": 0}]
    by_order = call(client, "SearchAudit", mall_id=MALL, order_id="ORDER-1").findings
    assert list(by_order) == list(found)
    assert [one.what for one in call(client, "SearchAudit", actor="clerk:bob").findings] == ["REDEEMED"]
    at_ms = redeemed.at_ms
    in_time = call(client, "SearchAudit", terminal_id=TERMINAL, from_ms=at_ms, to_ms=at_ms + 1).findings
    assert redeemed in list(in_time)
    pages: list[ledger_pb.Finding] = []
    token = ""
    while True:
        page = call(client, "SearchAudit", uid=uid, page_size=1, page_token=token)
        pages += page.findings
        token = page.next_page_token
        if not token:
            break
    assert pages == list(found)


def test_a_search_that_takes_too_long_is_given_up(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread is free again, and so is the connection to the database."""
    client = books.house.client
    forever = text(
        "WITH RECURSIVE n(at_ms) AS (SELECT 0 UNION ALL SELECT at_ms + 1 FROM n) SELECT at_ms FROM n WHERE at_ms < 0"
    )
    monkeypatch.setattr(bounds, "AUDIT_S_MAX", 0.2)
    with monkeypatch.context() as patched:
        patched.setattr(audit, "_statements", lambda *_: iter([(0, forever)]))
        failed = refused(partial(call, client, "SearchAudit", uid="0" * 16))
    assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "EXHAUSTED")
    assert "within 0.2 s: ask for less" in failed.message
    assert not call(client, "SearchAudit", uid="0" * 16).findings


# --- the chain --------------------------------------------------------------------------------------------------------
def test_a_range_is_verified_piece_by_piece(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    client = books.house.client
    partition = partition_of(bytes.fromhex(books.sell("ORDER-1")))
    for number in range(2, 5):
        books.sell(f"ORDER-{number}")
    books.write()
    rows = books.ledger.heads()[partition].rows
    whole = call(client, "VerifyChain", partition=partition)
    assert (whole.sound, whole.rows, whole.next, whole.why) == (True, rows, "", "")
    monkeypatch.setattr(bounds, "VERIFY_ROWS_MAX", 3)
    seen, first = 0, ""
    while True:
        piece = call(client, "VerifyChain", partition=partition, first=first)
        assert piece.sound
        assert piece.rows <= 3
        seen += piece.rows
        first = piece.next
        if not first:
            break
    assert seen == rows
    part = call(client, "VerifyChain", partition=partition, first="1-2", last="1-3")
    assert (part.sound, part.rows, part.next) == (True, 2, "")
    assert call(client, "VerifyChain", partition=CONTROL).sound


def test_a_changed_row_is_named(books: Books) -> None:
    client = books.house.client
    partition = partition_of(bytes.fromhex(books.sell("ORDER-1")))
    books.write()
    with database.writing(books.ledger.engine) as connection:
        connection.execute(
            update(EVENTS).where(EVENTS.c.partition == partition, EVENTS.c.seq == 2).values(data=b"x")
        )
    found = call(client, "VerifyChain", partition=partition)
    assert (found.sound, found.rows, found.bad_row, found.next) == (False, 1, "1-2", "")
    assert "the chain breaks here" in found.why
    assert call(client, "VerifyChain", partition=partition, first="1-3").sound, (
        "what lies behind holds by itself"
    )


def test_rows_are_compared_with_what_was_signed_of_them(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Piece by piece: each head is compared in the piece that its row is in."""
    client = books.house.client
    partition = partition_of(bytes.fromhex(books.sell("ORDER-1")))
    books.write()
    assert call(client, "VerifyChain", partition=partition).signed_heads == 0, "nothing was signed yet"
    places = []
    for number in range(2, 5):
        books.sign()
        books.sign()  # the same again: one head
        places.append(books.ledger.heads()[partition].place)
        books.sell(f"ORDER-{number}")
        books.write()
    whole = call(client, "VerifyChain", partition=partition)
    assert (whole.sound, whole.signed_heads) == (True, 3)
    assert 0 <= books.house.deployment.now_ms() - whole.signed_at_ms < 60_000
    monkeypatch.setattr(bounds, "VERIFY_ROWS_MAX", 2)
    first = ""
    while True:
        piece = call(client, "VerifyChain", partition=partition, first=first)
        begin = Place(*map(int, (first or "1-1").split("-")))
        there = [place for place in places if begin <= place < Place(begin.epoch, begin.seq + 2)]
        assert (piece.sound, piece.signed_heads) == (True, len(there))
        first = piece.next
        if not first:
            break
    elsewhere = next(number for number in range(16) if number not in books.ledger.heads())
    assert call(client, "VerifyChain", partition=elsewhere).signed_heads == 0


def test_a_tail_that_was_cut_off_below_a_signed_head_is_named(books: Books) -> None:
    client = books.house.client
    partition = partition_of(bytes.fromhex(books.sell("ORDER-1")))
    books.sell("ORDER-2")
    books.write()
    books.sign()
    head = books.ledger.heads()[partition]
    kept = Place(1, head.place.seq - 2)
    with database.writing(books.ledger.engine) as connection:
        mine = EVENTS.c.partition == partition
        connection.execute(delete(EVENTS).where(mine, EVENTS.c.seq > kept.seq))
        connection.execute(delete(ORDERS).where(ORDERS.c.partition == partition, ORDERS.c.seq > kept.seq))
        link = connection.execute(select(EVENTS.c.link).where(mine, EVENTS.c.seq == kept.seq)).scalar()
        connection.execute(
            update(HEADS)
            .where(HEADS.c.partition == partition)
            .values(seq=kept.seq, rows=head.rows - 2, link=link)
        )
    found = call(client, "VerifyChain", partition=partition)
    assert (found.sound, found.rows, found.bad_row, found.next) == (False, kept.seq, f"1-{kept.seq + 1}", "")
    assert f"the tail is cut off: {head.place} was signed as its last row" in found.why
    assert found.signed_heads == 1
    assert call(client, "VerifyChain", partition=partition, last=str(kept)).sound, "what is left holds"
    with database.writing(books.ledger.engine) as connection:
        for table in (EVENTS, ORDERS, HEADS):
            connection.execute(delete(table).where(table.c.partition == partition))
    found = call(client, "VerifyChain", partition=partition)
    assert (found.sound, found.rows, found.bad_row) == (False, 0, "1-1")
    assert "the ledger ends with nothing" in found.why
    said = CliRunner().invoke(main, ["--target", books.house.unix, "chain", "verify"], catch_exceptions=False)
    assert said.exit_code == 1
    assert f"BAD  partition {partition}, row 1-1: the tail is cut off" in said.stdout


def test_a_history_that_was_calculated_anew_is_named(books: Books) -> None:
    """Every link holds, and the table of heads; only what was signed before says otherwise, also when it is signed again since."""
    client = books.house.client
    partition = partition_of(bytes.fromhex(books.sell("ORDER-1")))
    books.write()
    books.sign()
    rows = list(books.ledger.rows(partition))
    end = rows[-1].entry
    changed = end._replace(data=end.data[:-1] + bytes([end.data[-1] ^ 1]))
    link = books.ledger.chain.link(rows[-2].link, partition, changed)
    with database.writing(books.ledger.engine) as connection:
        mine = (EVENTS.c.partition == partition) & (EVENTS.c.seq == end.seq)
        connection.execute(update(EVENTS).where(mine).values(data=changed.data, link=link))
        connection.execute(update(HEADS).where(HEADS.c.partition == partition).values(link=link))
    for _ in range(2):
        found = call(client, "VerifyChain", partition=partition)
        assert (found.sound, found.bad_row) == (False, f"1-{end.seq}")
        assert "its link is not the one that was signed" in found.why
        books.sign()


def test_a_head_that_nobody_signed_is_named_and_the_rows_are_looked_at_all_the_same(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = books.house.client
    partition = partition_of(bytes.fromhex(books.sell("ORDER-1")))
    books.write()
    books.sign()
    [path] = books.heads.glob("*.jsonl")
    with path.open("a") as file:
        file.write(path.read_text().replace('"signature":"', '"signature":"00'))
    monkeypatch.setattr(bounds, "VERIFY_ROWS_MAX", 1)
    found = call(client, "VerifyChain", partition=partition)
    assert (found.sound, found.why, found.next) == (True, "", "1-2"), "not among these rows"
    monkeypatch.undo()
    found = call(client, "VerifyChain", partition=partition)
    rows = books.ledger.heads()[partition].rows
    assert (found.sound, found.rows, found.bad_row, found.signed_heads) == (False, rows, "", 1)
    assert found.why.startswith(f"{path.name}, line 1 from its end: it is not signed by the key")
    said = CliRunner().invoke(main, ["--target", books.house.unix, "chain", "verify"], catch_exceptions=False)
    assert said.exit_code == 1
    assert said.stdout.count("it is not signed by the key") == 1


# --- refusals ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "fields", "field"),
    [
        ("ListReconciliations", {"page_size": 201}, "page_size"),
        ("ListReconciliations", {"page_token": "x"}, "page_token"),
        ("GetReconciliation", {"page_size": 201}, "page_size"),
        ("GetReconciliation", {"page_token": "-1"}, "page_token"),
        ("StartReconciliation", {"request_id": ""}, "request_id"),
        ("StartReconciliation", {"request_id": "request-1", "actor": "a" * 65}, "actor"),
        ("GetOperation", {"operation_id": "x"}, "operation_id"),
        ("SearchAudit", {}, ""),
        ("SearchAudit", {"uid": "X"}, "uid"),
        ("SearchAudit", {"order_id": "ORDER-1"}, "mall_id"),
        ("SearchAudit", {"mall_id": 7, "page_size": 501}, "page_size"),
        ("SearchAudit", {"mall_id": 7, "page_token": "x"}, "page_token"),
        ("SearchAudit", {"mall_id": 7, "from_ms": -1}, "from_ms"),
        ("VerifyChain", {"partition": 1_025}, "partition"),
        ("VerifyChain", {"first": "x"}, "first"),
        ("VerifyChain", {"first": "1-5", "last": "1-4"}, "last"),
    ],
)
def test_what_can_not_be_is_refused(still: Books, name: str, fields: dict[str, Any], field: str) -> None:
    failed = refused(partial(call, still.house.client, name, **fields))
    assert (failed.code, failed.reason, failed.field) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_INPUT",
        field,
    )


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("GetLedgerStatus", {}),
        ("ListReconciliations", {}),
        ("GetReconciliation", {}),
        ("StartReconciliation", {"request_id": "request-000001"}),
        ("GetOperation", {"operation_id": "request-000001"}),
        ("SearchAudit", {"mall_id": 7}),
        ("VerifyChain", {}),
    ],
)
def test_a_server_without_a_ledger_says_so(house: House, name: str, fields: dict[str, Any]) -> None:
    failed = refused(partial(call, house.client, name, **fields))
    assert (failed.code, failed.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "LEDGER_OFF")


def test_the_ledger_of_another_deployment_is_not_read(make_house: HouseFactory, books: Books) -> None:
    stranger = make_house(ledger_url=books.url)
    failed = refused(partial(call, stranger.client, "GetLedgerStatus"))
    assert (failed.code, failed.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "DEPLOYMENT_MISMATCH",
    )
