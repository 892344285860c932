"""Settlements and code events over gRPC, on a real server, store and ledger."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from sqlalchemy import delete

from engine.claims import partition_of
from engine.ledger import database, feeds
from engine.ledger.feed import cursor_text, parse_cursor
from engine.ledger.tables import EVENTS
from engine.state.streams import Place
from pickgate.v1 import code_event_service_pb2 as event_pb
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import ledger_service_pb2 as ledger_pb
from pickgate.v1 import settlement_service_pb2 as settlement_pb
from pickgate.v1 import stock_service_pb2 as stock_pb
from pickgate.v1 import store_service_pb2 as store_pb
from pickgate.v1 import types_pb2 as types_pb
from server.cli import main
from server.client import CallFailed, Client
from server.config import parse_listen
from server.gate import Gate
from server.issuers import Issuers
from server.roles import Role
from server.serve import Server
from server.tls import Certificates
from tests.server.books import BOUND_S, Books, Reader, follow, items, refused, wallet
from tests.server.conftest import MALL, OTHER_MALL, SKU, STORE, House, HouseFactory, wait_until
from tests.server.tokens import Idp
from tests.server.trust import DOMAIN, Trust


@pytest.fixture
def begin(books: Books) -> Iterator[Callable[..., Reader]]:
    """Begin subscriptions that end with the test."""
    made: list[Reader] = []

    def start(kind: Callable[..., Reader] = wallet, **fields: Any) -> Reader:
        made.append(kind(books.house.client, **fields))
        return made[-1]

    yield start
    for one in made:
        one.stop()


def acknowledge(
    client: Client, cursor: str, name: str = "wallet", **fields: Any
) -> settlement_pb.AcknowledgeResponse:
    request = settlement_pb.AcknowledgeRequest(wallet=name, cursor=cursor, **fields)
    return client.call(client.settlements.Acknowledge, request)


@contextmanager
def slow_wallet(house: House) -> Iterator[Any]:
    """A subscription that takes one settlement at a time, and whose connection takes no more ahead than it must."""
    options = [("grpc.http2.lookahead_bytes", 1), ("grpc.http2.bdp_probe", 0)]
    with grpc.insecure_channel(house.unix, options=options) as channel:
        method = channel.unary_stream(
            "/pickgate.v1.SettlementService/Subscribe",
            request_serializer=settlement_pb.SubscribeRequest.SerializeToString,
            response_deserializer=settlement_pb.SubscribeResponse.FromString,
        )
        slow: Any = method(settlement_pb.SubscribeRequest(wallet="slow", batch_size_max=1))
        yield slow
        slow.cancel()


def sell_wordy(books: Books, orders: int) -> None:
    """Sell orders whose settlements take some kilobytes each."""
    payee = "p" * 64
    for number in range(orders):
        request = books.house.issue_request(order_id=f"ORDER-{number}", amount_fen=16)
        for share in range(16):
            request.splits.add(payee=f"{share:02}{payee[2:]}", role="r" * 32, level=0, amount_fen=1)
        books.redeem(books.house.client.call(books.house.client.codes.Issue, request).uid)
    books.write()


def event_ids(told: list[Any]) -> list[str]:
    return [one.event_id for one in told]


def in_order(told: list[Any]) -> bool:
    """Whether events of each partition are in the order of their numbers."""
    last: dict[str, tuple[int, int]] = {}
    for one in told:
        partition, epoch, seq = one.event_id.split("-")
        place = int(epoch), int(seq)
        if last.get(partition, (0, 0)) >= place:
            return False
        last[partition] = place
    return True


# --- settlements ----------------------------------------------------------------------------------------------------
def test_what_there_was_then_what_happens(books: Books, begin: Callable[..., Reader]) -> None:
    uid = books.issue("ORDER-1", 2)
    books.redeem(uid, 1)
    books.write()
    reader = begin()
    first = reader.next()
    assert first.caught_up
    (part,) = first.settlements
    assert (part.order_id, part.uid, part.mall_id, part.store_id) == ("ORDER-1", uid, MALL, STORE)
    assert (part.reversal, part.at_ms > 0) == (False, True)
    assert [(one.payee, one.role, one.level, one.amount_fen) for one in part.shares] == [
        ("store:2001", "goods", 0, 3_500),
        ("user:1", "referrer", 1, 499),
    ]
    books.redeem(uid)
    books.write()
    (rest,) = reader.take(1)
    assert [one.amount_fen for one in rest.shares] == [3_500, 500]
    books.reverse(uid)
    books.write()
    (back,) = reader.take(1)
    assert (back.reversal, [one.amount_fen for one in back.shares]) == (True, [-7_000, -999])
    assert in_order([part, rest, back])
    assert reader.quiet


def test_a_subscription_goes_on_where_its_cursor_says(books: Books, begin: Callable[..., Reader]) -> None:
    for number in range(5):
        books.sell(f"ORDER-{number}")
    books.write()
    first = begin(batch_size_max=2).next()
    assert (len(first.settlements), first.caught_up) == (2, False)
    rest = begin(cursor=first.cursor).take(3)
    again = begin(cursor=first.cursor).take(3)
    assert event_ids(rest) == event_ids(again)
    assert not set(event_ids(rest)) & set(event_ids(list(first.settlements)))
    assert len(begin().take(5)) == 5, "nothing was acknowledged: from the beginning"


def test_without_a_cursor_it_begins_where_the_wallet_has_acknowledged(
    books: Books, begin: Callable[..., Reader]
) -> None:
    client = books.house.client
    for number in range(4):
        books.sell(f"ORDER-{number}")
    books.write()
    batch = begin(batch_size_max=3).next()
    stored = acknowledge(client, batch.cursor)
    assert stored.cursor == batch.cursor
    assert stored.acknowledged_at_ms > 0
    assert acknowledge(client, batch.cursor) == stored
    (last,) = begin().take(1)
    assert last.event_id not in event_ids(list(batch.settlements))
    assert len(begin(oldest=True).take(4)) == 4
    assert len(begin(name="another").take(4)) == 4, "each name has its own"
    assert len(begin(mall_id=MALL).take(4)) == 4, "and for each mall"


def test_an_acknowledgement_only_goes_forward(books: Books, begin: Callable[..., Reader]) -> None:
    client = books.house.client
    books.sell("ORDER-1")
    books.write()
    early = begin().next().cursor
    books.sell("ORDER-2")
    books.write()
    late = begin(cursor=early).next().cursor
    acknowledge(client, late)
    with pytest.raises(CallFailed) as caught:
        acknowledge(client, early)
    assert (caught.value.code, caught.value.reason, caught.value.field) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "CURSOR_BACK",
        "cursor",
    )
    assert "has acknowledged" in caught.value.message
    partition, place = next(iter(parse_cursor(late).items()))
    beyond = f"{partition}:{place.epoch}-{place.seq + 1}"
    for ask in (lambda: acknowledge(client, beyond), lambda: next(subscribe(client, cursor=beyond))):
        with pytest.raises(CallFailed) as caught:
            ask()
        assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_AHEAD")
    assert acknowledge(client, late).cursor == late


def subscribe(client: Client, wallet: str = "wallet", **fields: Any) -> Iterator[Any]:
    request = settlement_pb.SubscribeRequest(wallet=wallet, **fields)
    return client.stream(client.settlements.Subscribe, request)


def test_what_is_no_longer_kept_is_said(books: Books) -> None:
    """A wallet that was away for longer than rows are kept: it learns of the gap, and how to go on."""
    client = books.house.client
    partition = partition_of(bytes.fromhex(books.sell("ORDER-1")))
    books.write()
    cursor = next(subscribe(client)).cursor
    books.sell("ORDER-2")
    books.sell("ORDER-3")
    books.write()
    place = parse_cursor(cursor)[partition]
    with database.writing(books.ledger.engine) as connection:
        connection.execute(
            delete(EVENTS).where(EVENTS.c.partition == partition, EVENTS.c.seq <= place.seq + 1)
        )
    with pytest.raises(CallFailed) as caught:
        next(subscribe(client, cursor=cursor))
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_CUT")
    kept = f"{partition}:{place.epoch}-{place.seq + 1}"
    assert f"or with a cursor that says {kept} instead" in caught.value.message
    assert next(subscribe(client, oldest=True)).caught_up
    rest = {**parse_cursor(cursor), partition: Place(place.epoch, place.seq + 1)}
    assert next(subscribe(client, cursor=cursor_text(rest))).caught_up
    assert next(subscribe(client, wallet="new")).caught_up, "who never acknowledged begins with what is kept"


def test_several_wallets_do_not_wait_for_one_another(
    books: Books, begin: Callable[..., Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One reads nothing at all; the others have everything, and so has it when it reads on."""
    with slow_wallet(books.house) as slow:
        quick = [begin(name=f"quick-{number}") for number in range(3)]
        for number in range(30):
            books.sell(f"ORDER-{number}")
        books.write()
        told = [reader.take(30) for reader in quick]
        assert all(event_ids(one) == event_ids(told[0]) for one in told)
        assert in_order(told[0])
        late: list[Any] = []
        while len(late) < 30:
            late += next(slow).settlements
        assert sorted(event_ids(late)) == sorted(event_ids(told[0]))
        assert in_order(late)


def test_a_slow_reader_is_waited_for_and_nothing_piles_up(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the server has read for one who does not take it is a batch and what is on the wire, however much there is."""
    read: list[int] = []
    original = feeds.Subscription.__iter__

    def counted(self: Any) -> Iterator[Any]:
        for batch in original(self):
            read.append(len(batch.items))
            yield batch

    monkeypatch.setattr(feeds.Subscription, "__iter__", counted)
    sell_wordy(books, 40)
    with slow_wallet(books.house) as slow:
        first = next(slow)
        # It stands still: until nothing more was read for a while.
        before = -1
        while before != (before := len(read)):
            threading.Event().wait(0.3)
        assert 1 <= len(read) < 40, "2 KB each, and a window of 64 KB at most"
        assert len(first.settlements) == 1
        rest = [one for _ in range(39) for one in next(slow).settlements]
        assert len({*event_ids(rest), first.settlements[0].event_id}) == 40


def test_one_that_never_reads_on_is_cut_off(
    books: Books, monkeypatch: pytest.MonkeyPatch, begin: Callable[..., Reader]
) -> None:
    monkeypatch.setattr(feeds, "STALLED_S_MAX", 0.3)
    served: Any = books.house.server._ledger.feeds
    sell_wordy(books, 60)
    with slow_wallet(books.house) as slow:
        next(slow)
        wait_until(lambda: len(served) == 0, "whoever does not read is cut off")
    assert len(begin().take(60)) == 60


def test_orders_are_told_by_themselves(books: Books) -> None:
    client = books.house.client
    uid = books.issue("ORDER-1", 3)
    for _ in range(3):
        books.redeem(uid, 1)
        wait_until(lambda: books.house.render(uid).verdict, "another second")
    books.sell("ORDER-2")
    books.write()

    def ask(
        order_id: str = "ORDER-1", mall_id: int = MALL, **fields: Any
    ) -> settlement_pb.GetByOrderResponse:
        request = settlement_pb.GetByOrderRequest(mall_id=mall_id, order_id=order_id, **fields)
        return client.call(client.settlements.GetByOrder, request)

    whole = ask()
    assert len(whole.settlements) == 3
    assert sum(share.amount_fen for one in whole.settlements for share in one.shares) == 7_999
    found: list[Any] = []
    token = ""
    while True:
        page = ask(page_size=1, page_token=token)
        found += page.settlements
        token = page.next_page_token
        if not token:
            break
    assert found == list(whole.settlements)
    assert not ask(mall_id=OTHER_MALL).settlements
    assert not ask(order_id="NO SUCH").settlements


# --- code events ----------------------------------------------------------------------------------------------------
@pytest.fixture
def neighbours(books: Books) -> House:
    """Both malls sell at the same store."""
    house, client = books.house, books.house.client
    store = store_pb.Store(
        store_id=STORE,
        name="共用店",
        mall_ids=[MALL, OTHER_MALL],
        latitude_deg=31.1955,
        longitude_deg=121.4365,
        datum=types_pb.DATUM_GCJ02,
    )
    client.call(
        client.stores.PutStores, store_pb.PutStoresRequest(stores=[store], request_id=house.request_id())
    )
    entry = store_pb.CatalogueEntry(mall_id=OTHER_MALL, sku_id=SKU, name="别家的")
    client.call(
        client.stores.PutCatalogue,
        store_pb.PutCatalogueRequest(entries=[entry], request_id=house.request_id()),
    )
    receipt = stock_pb.ReceiveStockRequest(
        mall_id=OTHER_MALL, request_id=house.request_id(), store_id=STORE, sku_id=SKU, count=100
    )
    client.call(client.stock.ReceiveStock, receipt)
    return house


def test_a_mall_is_told_of_its_own_codes_and_of_no_others(
    books: Books, neighbours: House, begin: Callable[..., Reader]
) -> None:
    ours, theirs = (
        begin(follow, mall_id=MALL),
        begin(follow, mall_id=OTHER_MALL),
    )
    assert not items(ours.next())
    assert not items(theirs.next())
    for number in range(3):
        books.issue(f"OURS-{number}")
        books.issue(f"THEIRS-{number}", mall_id=OTHER_MALL)
    books.write()
    # Both are in the same partition, since both are of one store.
    told, others = ours.take(3), theirs.take(3)
    assert [one.order_id for one in told] == [f"OURS-{number}" for number in range(3)]
    assert [one.order_id for one in others] == [f"THEIRS-{number}" for number in range(3)]
    # Nor by a cursor of the other's, nor by another name.
    assert [one.order_id for one in begin(follow, mall_id=OTHER_MALL, consumer="spy").take(3)] == [
        f"THEIRS-{number}" for number in range(3)
    ]
    assert ours.quiet
    assert theirs.quiet


def test_the_life_of_a_code_as_its_mall_reads_it(books: Books, begin: Callable[..., Reader]) -> None:
    house, client = books.house, books.house.client
    held = code_pb.HoldRequest.FromString(house.issue_request(order_id="ORDER-1").SerializeToString())
    uid = client.call(client.codes.Hold, held).uid
    client.call(
        client.codes.Confirm,
        code_pb.ConfirmRequest(mall_id=MALL, uid=uid, request_id=house.request_id(), actor="pay"),
    )
    books.redeem(uid)
    books.reverse(uid)
    client.call(
        client.codes.Void,
        code_pb.VoidRequest(mall_id=MALL, uid=uid, request_id=house.request_id(), reason="refund"),
    )
    books.write()
    told = begin(follow).take(5)
    assert [event_pb.CodeEventType.Name(one.type).removeprefix("CODE_EVENT_TYPE_") for one in told] == [
        *("HELD", "CONFIRMED", "REDEEMED", "REVERSED", "VOIDED"),
    ]
    assert {(one.uid, one.order_id, one.store_id) for one in told} == {(uid, "ORDER-1", STORE)}
    assert [types_pb.CodeState.Name(one.state).removeprefix("CODE_STATE_") for one in told] == [
        *("HELD", "LIVE", "REDEEMED", "LIVE", "VOIDED"),
    ]
    assert (told[1].actor, told[1].expires_at_ms > told[0].expires_at_ms > 0) == ("pay", True)
    assert (told[2].terminal_id, told[2].lines[0].count, told[2].lines[0].left) == (3, 1, 0)
    assert (told[4].reason, told[4].lines[0].left) == ("refund", 1)
    (only,) = begin(follow, types=[event_pb.CODE_EVENT_TYPE_VOIDED]).take(1)
    assert only == told[4]


def test_a_mall_acknowledges_too(books: Books, begin: Callable[..., Reader]) -> None:
    client = books.house.client
    books.issue("ORDER-1")
    books.write()
    cursor = begin(follow).next().cursor
    request = event_pb.AcknowledgeCodeEventsRequest(mall_id=MALL, consumer="shop", cursor=cursor)
    assert client.call(client.code_events.AcknowledgeCodeEvents, request).cursor == cursor
    books.issue("ORDER-2")
    books.write()
    (second,) = begin(follow).take(1)
    assert second.order_id == "ORDER-2"
    # The wallet of the same name and mall has acknowledged nothing.
    books.sell("ORDER-3")
    books.write()
    assert len(begin(wallet, name="shop", mall_id=MALL).take(1)) == 1


@pytest.fixture
def guarded(books: Books, neighbours: House, tmp_path: Path) -> Iterator[tuple[Server, Trust, Idp]]:
    """A server over the same books that knows its callers."""
    trust, idp = Trust.make(tmp_path / "trust"), Idp(tmp_path / "idp")
    deployment = books.house.deployment
    server = Server(
        deployment,
        [parse_listen("127.0.0.1:0")],
        look=deployment.look,
        ledger_url=books.url,
        certificates=Certificates(trust.files),
        gate=Gate(deployment, trust_domain=DOMAIN, issuers=Issuers(idp.file)),
    )
    with server:
        yield server, trust, idp


def test_a_mall_that_is_known_can_not_ask_for_another(
    books: Books, guarded: tuple[Server, Trust, Idp]
) -> None:
    """Whatever mall the request names: it is the caller's own, or nothing is told."""
    server, trust, idp = guarded
    books.issue("OURS")
    books.issue("THEIRS", mall_id=OTHER_MALL)
    books.write()

    def ask(role: Role, mall_id: int, **claims: Any) -> list[str]:
        token = idp.token(role, **claims)
        with Client(server.addresses[0], credentials=trust.credentials(), token=token, tries=1) as client:
            request = event_pb.SubscribeCodeEventsRequest(mall_id=mall_id, consumer="shop")
            batch = next(client.stream(client.code_events.SubscribeCodeEvents, request))
            return [one.order_id for one in batch.events]

    assert ask(Role.MALL, MALL) == ["OURS"]
    assert ask(Role.MALL, OTHER_MALL, pickgate_mall=OTHER_MALL) == ["THEIRS"]
    for role, mall_id in (
        (Role.MALL, OTHER_MALL),
        (Role.WALLET, MALL),
        (Role.OUTLET, MALL),
        (Role.PARTNER, MALL),
    ):
        with pytest.raises(CallFailed) as caught:
            ask(role, mall_id)
        assert caught.value.code is grpc.StatusCode.PERMISSION_DENIED


def test_a_wallet_of_one_mall_is_told_of_that_mall_only(
    books: Books, guarded: tuple[Server, Trust, Idp]
) -> None:
    server, trust, idp = guarded
    books.sell("OURS")
    books.write()
    for mall_id, named, allowed in (
        (MALL, MALL, True),
        (0, None, True),
        (0, MALL, False),
        (OTHER_MALL, MALL, False),
    ):
        token = idp.token(Role.WALLET, pickgate_mall=named)
        with Client(server.addresses[0], credentials=trust.credentials(), token=token, tries=1) as client:
            asked = subscribe(client, mall_id=mall_id)
            if allowed:
                assert [one.order_id for one in next(asked).settlements] == ["OURS"]
                continue
            with pytest.raises(CallFailed) as caught:
                next(asked)
            assert caught.value.code is grpc.StatusCode.PERMISSION_DENIED


def test_a_name_belongs_to_the_caller_who_acknowledged_under_it_first(
    books: Books, guarded: tuple[Server, Trust, Idp]
) -> None:
    """Of two who may both be wallets, and of two of one mall, neither moves the other's cursor, nor begins at it."""
    server, trust, idp = guarded
    books.sell("ORDER-1")
    books.write()
    books.sell("ORDER-2")
    books.write()
    cursors = [next(subscribe(books.house.client, batch_size_max=1, oldest=True)).cursor]
    cursors.append(next(subscribe(books.house.client, cursor=cursors[0])).cursor)

    def ask(role: Role, sub: str, cursor: str = "", mall_id: int = MALL) -> str:
        """Acknowledge a cursor, or begin where the name stands; gives what is stored, or the first order that is told."""
        token = idp.token(
            role, sub=sub, pickgate_mall=None if role in (Role.WALLET, Role.OPERATIONS) else mall_id
        )
        with Client(server.addresses[0], credentials=trust.credentials(), token=token, tries=1) as client:
            if role is Role.WALLET:
                if cursor:
                    return acknowledge(client, cursor, "purse").cursor
                return str(next(subscribe(client, "purse")).settlements[0].order_id)
            if cursor:
                request = event_pb.AcknowledgeCodeEventsRequest(
                    mall_id=mall_id, consumer="shop", cursor=cursor
                )
                return client.call(client.code_events.AcknowledgeCodeEvents, request).cursor
            wanted = event_pb.SubscribeCodeEventsRequest(
                mall_id=mall_id, consumer="shop", types=[event_pb.CODE_EVENT_TYPE_REDEEMED]
            )
            told = next(client.stream(client.code_events.SubscribeCodeEvents, wanted))
            return told.events[0].order_id

    for role, field in ((Role.WALLET, "wallet"), (Role.MALL, "consumer")):
        assert ask(role, "first", cursors[0]) == cursors[0]
        for cursor in (cursors[1], cursors[0], ""):
            with pytest.raises(CallFailed) as caught:
                ask(role, "second", cursor)
            assert (caught.value.code, caught.value.reason, caught.value.field) == (
                grpc.StatusCode.PERMISSION_DENIED,
                "CONSUMER_TAKEN",
                field,
            )
            assert "belongs to another caller: use a name of your own" in caught.value.message
            assert "first" not in caught.value.message
        assert ask(role, "first") == "ORDER-2", "its cursor stands where it left it"
    assert ask(Role.MALL, "second", cursors[0], mall_id=OTHER_MALL) == cursors[0], "a name of another mall"
    # A server beside it that knows nobody, and so asks nobody.
    assert acknowledge(books.house.client, cursors[0], "purse").cursor == cursors[0]

    status = books.house.client.call(
        books.house.client.ledger.GetLedgerStatus, ledger_pb.GetLedgerStatusRequest()
    )
    assert [(one.name, one.mall_id, one.owner) for one in status.consumers] == [
        ("shop", MALL, "idp:first"),
        ("shop", OTHER_MALL, "idp:second"),
        ("purse", 0, "idp:first"),
    ]
    # An operator lets go of one: the next has it.
    release = ["ledger", "release", "purse", "--ledger", books.url]
    done = CliRunner().invoke(main, release, catch_exceptions=False)
    assert (done.exit_code, done.stdout) == (
        0,
        "RELEASED  purse of settlements, which belonged to idp:first\n",
    )
    assert ask(Role.WALLET, "second", cursors[1]) == cursors[1]
    with pytest.raises(CallFailed):
        ask(Role.WALLET, "first", cursors[1])
    done = CliRunner().invoke(main, [*release, "--mall", str(MALL)], catch_exceptions=False)
    assert (done.exit_code, "no wallet purse has acknowledged" in done.stderr) == (1, True)


# --- the server -----------------------------------------------------------------------------------------------------
def test_duplicates_and_restarts_leave_each_event_once(make_house: HouseFactory, tmp_path: Path) -> None:
    """A reader that keeps event ids and its last cursor, over servers that stop and others that begin."""
    books = Books(make_house, tmp_path)
    deployment = books.house.deployment
    booked: dict[str, int] = {}
    cursor, repeated = "", 0
    for round_ in range(4):
        for number in range(3):
            books.sell(f"ORDER-{round_}-{number}")
        books.write()
        server = Server(deployment, [parse_listen("127.0.0.1:0")], look=deployment.look, ledger_url=books.url)
        with server, Client(server.addresses[0], tries=1) as client:
            # Every other time with the cursor of the round before: then what came since is told again.
            found: list[Any] = []
            for batch in subscribe(client, cursor=cursor, oldest=not cursor, batch_size_max=2):
                found += batch.settlements
                if batch.caught_up:
                    break
        assert in_order(found)
        for one in found:
            repeated += one.event_id in booked
            booked[one.event_id] = sum(share.amount_fen for share in one.shares)
        if round_ % 2:
            cursor = batch.cursor
    assert len(booked) == 12
    assert repeated == 6
    assert sum(booked.values()) == 12 * 7_999
    books.close()


def test_a_stop_ends_subscriptions_at_once(make_house: HouseFactory, tmp_path: Path) -> None:
    books = Books(make_house, tmp_path)
    readers = [wallet(books.house.client), follow(books.house.client)]
    for reader in readers:
        assert reader.next().caught_up
    stopper = threading.Thread(target=books.house.server.stop, args=(60.0,))
    stopper.start()
    for reader in readers:
        ended = reader.next()
        assert isinstance(ended, grpc.RpcError)
        assert ended.code() is grpc.StatusCode.UNAVAILABLE
    stopper.join(BOUND_S)
    assert not stopper.is_alive()
    assert not [thread for thread in threading.enumerate() if thread.name == "pickgate-feeds"]
    books.close()


def test_who_hangs_up_leaves_no_trace_and_holds_no_thread_of_the_calls(
    make_house: HouseFactory, tmp_path: Path
) -> None:
    books = Books(make_house, tmp_path, threads=1)
    readers = [wallet(books.house.client, f"wallet-{number}") for number in range(5)]
    for reader in readers:
        assert reader.next().caught_up
    # The only thread of the calls is free.
    books.sell("ORDER-1")
    books.write()
    for reader in readers:
        assert len(reader.take(1)) == 1
    served: Any = books.house.server._ledger.feeds
    assert len(served) == 5
    for reader in readers:
        reader.stop()
    wait_until(lambda: len(served) == 0, "nobody subscribes")
    books.close()


def test_too_many_are_told_so(
    books: Books, begin: Callable[..., Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "SUBSCRIBERS_MAX", 2)
    for _ in range(2):
        assert begin().next().caught_up
    ended = begin().next()
    assert isinstance(ended, grpc.RpcError)
    assert ended.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_the_cursor_moves_on_past_what_is_not_asked_for(
    books: Books, begin: Callable[..., Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the cursor of a wallet with little to do would at last fall behind what is kept."""
    monkeypatch.setattr(feeds, "TELL_CURSOR_S", 0.1)
    reader = begin()
    first = reader.next()
    books.issue("ORDER-1")
    books.write()
    later = reader.next()
    assert not later.settlements
    assert later.caught_up
    assert parse_cursor(later.cursor) != parse_cursor(first.cursor)


def test_a_ledger_that_is_lost_ends_them_and_they_may_begin_anew(books: Books, tmp_path: Path) -> None:
    client = books.house.client
    reader = wallet(client)
    assert reader.next().caught_up
    path = tmp_path / "ledger.sqlite3"
    with database.writing(books.ledger.engine) as connection:
        connection.exec_driver_sql("ALTER TABLE heads RENAME TO taken_away")
    ended = reader.next()
    assert isinstance(ended, grpc.RpcError)
    assert ended.code() is grpc.StatusCode.UNAVAILABLE
    assert str(path) not in str(ended)
    with database.writing(books.ledger.engine) as connection:
        connection.exec_driver_sql("ALTER TABLE taken_away RENAME TO heads")
    again = wallet(client)
    assert again.next().caught_up
    again.stop()


# --- refusals -------------------------------------------------------------------------------------------------------
SUBSCRIPTIONS = [
    ({"wallet": ""}, "INVALID_INPUT", "wallet"),
    ({"wallet": "a b"}, "INVALID_INPUT", "wallet"),
    ({"mall_id": 999}, "UNKNOWN_MALL", "mall_id"),
    ({"cursor": "nonsense"}, "INVALID_INPUT", "cursor"),
    ({"cursor": "0:1-1," * 7_000}, "INVALID_INPUT", "cursor"),
    ({"cursor": "0:1-1", "oldest": True}, "INVALID_INPUT", "oldest"),
    ({"batch_size_max": 501}, "INVALID_INPUT", "batch_size_max"),
]


@pytest.mark.parametrize(("fields", "reason", "field"), SUBSCRIPTIONS)
def test_a_subscription_that_can_not_be_is_refused(
    still: Books, fields: dict[str, Any], reason: str, field: str
) -> None:
    failed = refused(lambda: next(subscribe(still.house.client, **fields)))
    assert (failed.code, failed.reason, failed.field) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        reason,
        field,
    )


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"mall_id": 0}, "INVALID_INPUT", "mall_id"),
        ({"mall_id": 999}, "UNKNOWN_MALL", "mall_id"),
        ({"consumer": ""}, "INVALID_INPUT", "consumer"),
        ({"types": [7]}, "INVALID_INPUT", "types[0]"),
        ({"types": [1] * 12}, "TOO_MANY_ITEMS", "types"),
        ({"cursor": "1:1-1", "oldest": True}, "INVALID_INPUT", "oldest"),
    ],
)
def test_a_malls_subscription_that_can_not_be_is_refused(
    still: Books, fields: dict[str, Any], reason: str, field: str
) -> None:
    client = still.house.client
    request = event_pb.SubscribeCodeEventsRequest(**{"mall_id": MALL, "consumer": "shop", **fields})
    failed = refused(lambda: next(client.stream(client.code_events.SubscribeCodeEvents, request)))
    assert (failed.code, failed.reason, failed.field) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        reason,
        field,
    )


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"cursor": ""}, "INVALID_INPUT", "cursor"),
        ({"cursor": "x"}, "INVALID_INPUT", "cursor"),
        ({"wallet": "钱包"}, "INVALID_INPUT", "wallet"),
        ({"mall_id": 999}, "UNKNOWN_MALL", "mall_id"),
    ],
)
def test_an_acknowledgement_that_can_not_be_is_refused(
    still: Books, fields: dict[str, Any], reason: str, field: str
) -> None:
    client = still.house.client
    request = settlement_pb.AcknowledgeRequest(**{"wallet": "wallet", "cursor": "0:1-1", **fields})
    failed = refused(partial(client.call, client.settlements.Acknowledge, request))
    assert (failed.code, failed.reason, failed.field) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        reason,
        field,
    )


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"mall_id": 0}, "mall_id"),
        ({"mall_id": 999}, "mall_id"),
        ({"order_id": ""}, "order_id"),
        ({"page_size": 501}, "page_size"),
        ({"page_token": "x"}, "page_token"),
    ],
)
def test_a_question_for_an_order_that_can_not_be_is_refused(
    still: Books, fields: dict[str, Any], field: str
) -> None:
    client = still.house.client
    request = settlement_pb.GetByOrderRequest(**{"mall_id": MALL, "order_id": "ORDER-1", **fields})
    failed = refused(partial(client.call, client.settlements.GetByOrder, request))
    assert (failed.code, failed.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)


def test_a_server_without_a_ledger_says_so(house: House) -> None:
    client = house.client
    streams: list[tuple[Any, Any]] = [
        (client.settlements.Subscribe, settlement_pb.SubscribeRequest(wallet="wallet")),
        (
            client.code_events.SubscribeCodeEvents,
            event_pb.SubscribeCodeEventsRequest(mall_id=MALL, consumer="shop"),
        ),
    ]
    calls: list[tuple[Any, Any]] = [
        (
            client.settlements.Acknowledge,
            settlement_pb.AcknowledgeRequest(wallet="wallet", cursor="0:1-1"),
        ),
        (
            client.settlements.GetByOrder,
            settlement_pb.GetByOrderRequest(mall_id=MALL, order_id="ORDER-1"),
        ),
        (
            client.code_events.AcknowledgeCodeEvents,
            event_pb.AcknowledgeCodeEventsRequest(mall_id=MALL, consumer="shop", cursor="0:1-1"),
        ),
    ]
    asks: list[Callable[[], Any]] = [
        partial(next, client.stream(method, request)) for method, request in streams
    ]
    asks += [partial(client.call, method, request) for method, request in calls]
    for ask in asks:
        failed = refused(ask)
        assert (failed.code, failed.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "LEDGER_OFF")
        assert "ledger_url" in failed.message


def test_a_ledger_that_its_writer_has_not_made_yet_is_waited_for(
    make_house: HouseFactory, tmp_path: Path
) -> None:
    house = make_house(ledger_url=database.sqlite_url(tmp_path / "later.sqlite3"))
    with pytest.raises(CallFailed) as caught:
        next(subscribe(house.client))
    assert (caught.value.code, caught.value.reason) == (
        grpc.StatusCode.UNAVAILABLE,
        "LEDGER_UNAVAILABLE",
    )
    assert str(tmp_path) not in caught.value.message
    assert not (tmp_path / "later.sqlite3").exists(), "reading makes none"
