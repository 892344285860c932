"""Every verb over gRPC, on a real server and store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.deployment import Deployment, Durability
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import stock_service_pb2 as stock_pb
from pickgate.v1 import store_service_pb2 as store_pb
from pickgate.v1 import types_pb2 as types_pb
from server import services
from server.client import CallFailed, Client
from server.config import parse_listen
from server.serve import Server
from tests.engine import proofs
from tests.server.conftest import (
    AT_STORE,
    CLOSED_STORE,
    MALL,
    NEAR_STORE,
    OTHER_MALL,
    RARE_SKU,
    SKU,
    STORE,
    TERMINAL,
    House,
)

VERSIONS = [types_pb.VERSION_STATIC, types_pb.VERSION_DYNAMIC, types_pb.VERSION_VALUABLE]
SUITES = [types_pb.SUITE_AES, types_pb.SUITE_SM]


# --- a code's way --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_code_is_issued_shown_inspected_redeemed_once(
    house: House, client: Client, version: types_pb.Version.ValueType, suite: types_pb.Suite.ValueType
) -> None:
    before = house.figures()
    request = house.issue_request(version=version, suite=suite, lines=[types_pb.Line(sku_id=SKU, count=2)])
    issued = client.call(client.codes.Issue, request)
    assert issued.verdict == code_pb.ISSUE_VERDICT_ISSUED
    assert issued.request_id == request.request_id
    assert issued.expires_at_ms - issued.issued_at_ms == pytest.approx(48 * 3600 * 1000, abs=1000)
    assert bool(issued.typed) == bool(issued.pin) == (version == types_pb.VERSION_STATIC)

    rendered = client.call(client.codes.Render, code_pb.RenderRequest(mall_id=MALL, uid=issued.uid))
    assert rendered.verdict == code_pb.RENDER_VERDICT_RENDERED
    (payload,) = rendered.payloads
    assert len(payload.text) == {1: 52, 2: 78, 3: 186}[version]
    assert payload.valid_from_ms < payload.valid_until_ms
    assert rendered.code.state == types_pb.CODE_STATE_LIVE

    terminal = types_pb.Terminal(mall_id=MALL, store_id=STORE, terminal_id=TERMINAL)
    inspected = client.call(
        client.redemption.Inspect,
        redemption_pb.InspectRequest(terminal=terminal, code=payload.text, position=AT_STORE),
    )
    assert inspected.verdict == redemption_pb.INSPECT_VERDICT_REDEEMABLE
    assert inspected.pin_required == (version == types_pb.VERSION_STATIC)
    assert (inspected.uid, inspected.order_id, inspected.version) == (issued.uid, request.order_id, version)

    assert inspected.proof_required == (version == types_pb.VERSION_VALUABLE)
    proof = proofs.sign(bytes.fromhex(issued.uid), int(time.time()))

    redeem = house.redeem_request(payload.text, pin=issued.pin, proof_token=proof)
    redeemed = client.call(client.redemption.Redeem, redeem)
    assert redeemed.verdict == redemption_pb.REDEEM_VERDICT_REDEEMED
    assert (redeemed.uid, redeemed.terminal_id, redeemed.replayed) == (issued.uid, TERMINAL, False)
    assert [(line.sku_id, line.count, line.left) for line in redeemed.lines] == [(SKU, 2, 0)]
    assert redeemed.event_id.count("-") == 2
    assert redeemed.message_zh == "核销成功，请交付商品。"

    again = client.call(client.redemption.Redeem, redeem)
    assert again.replayed
    again.replayed = False
    assert again == redeemed

    second = house.redeem(payload.text, pin=issued.pin)
    assert second.verdict == redemption_pb.REDEEM_VERDICT_ALREADY_REDEEMED
    assert (second.at_ms, second.terminal_id, second.event_id) == (redeemed.at_ms, TERMINAL, "")

    after = house.figures()
    assert (after.on_hand, after.reserved) == (before.on_hand - 2, before.reserved)
    code = client.call(client.codes.GetCode, code_pb.GetCodeRequest(mall_id=MALL, uid=issued.uid)).code
    assert (code.state, code.redeemed_at_ms) == (types_pb.CODE_STATE_REDEEMED, redeemed.at_ms)


def test_a_retried_issue_gives_the_same_code_and_reserves_once(house: House) -> None:
    request = house.issue_request(version=types_pb.VERSION_STATIC)
    first = house.client.call(house.client.codes.Issue, request)
    reserved = house.figures().reserved
    second = house.client.call(house.client.codes.Issue, request)
    assert (second.uid, second.typed, second.pin) == (first.uid, first.typed, first.pin)
    assert house.figures().reserved == reserved
    by_request = code_pb.GetCodeByRequestIdRequest(mall_id=MALL, request_id=request.request_id)
    assert house.client.call(house.client.codes.GetCodeByRequestId, by_request).code.uid == first.uid


def test_a_typed_serial_with_its_pin_is_redeemed(house: House) -> None:
    issued = house.issue(version=types_pb.VERSION_STATIC)
    asked = house.redeem(issued.typed)
    assert asked.verdict == redemption_pb.REDEEM_VERDICT_PIN_REQUIRED
    wrong = house.redeem(issued.typed, pin="000000" if issued.pin != "000000" else "000001")
    assert wrong.verdict == redemption_pb.REDEEM_VERDICT_PIN_WRONG
    assert wrong.tries_left == 2
    assert "2" in wrong.message_zh
    assert house.redeem(issued.typed, pin=issued.pin).verdict == redemption_pb.REDEEM_VERDICT_REDEEMED


def test_a_code_is_redeemed_in_parts(house: House) -> None:
    code = house.shown(lines=[types_pb.Line(sku_id=SKU, count=3)], version=types_pb.VERSION_DYNAMIC)
    request = house.redeem_request(code)
    request.lines.add(sku_id=SKU, count=1)
    first = house.client.call(house.client.redemption.Redeem, request)
    assert first.verdict == redemption_pb.REDEEM_VERDICT_REDEEMED
    assert [(line.count, line.left) for line in first.lines] == [(1, 2)]
    request = house.redeem_request(house.render(first.uid).payloads[0].text)
    request.lines.add(sku_id=SKU, count=3)
    assert (
        house.client.call(house.client.redemption.Redeem, request).verdict
        == redemption_pb.REDEEM_VERDICT_NOTHING_LEFT
    )


def test_the_next_payloads_can_be_had_ahead(house: House) -> None:
    rendered = house.render(house.issue().uid, count=5)
    assert len({payload.text for payload in rendered.payloads}) == 5
    starts = [payload.valid_from_ms for payload in rendered.payloads]
    assert starts == sorted(starts)


def test_a_void_code_frees_its_stock_and_is_refused(house: House) -> None:
    before = house.figures()
    issued = house.issue()
    code = house.render(issued.uid).payloads[0].text
    request = code_pb.VoidRequest(mall_id=MALL, request_id=house.request_id(), uid=issued.uid, reason="退款")
    voided = house.client.call(house.client.codes.Void, request)
    assert voided.verdict == code_pb.VOID_VERDICT_VOIDED
    assert [(line.sku_id, line.count) for line in voided.lines] == [(SKU, 1)]
    assert house.client.call(house.client.codes.Void, request).replayed
    assert house.figures() == before
    assert house.redeem(code).verdict == redemption_pb.REDEEM_VERDICT_VOIDED
    assert house.render(issued.uid).verdict == code_pb.RENDER_VERDICT_VOIDED
    request.request_id = house.request_id()
    assert house.client.call(house.client.codes.Void, request).verdict == code_pb.VOID_VERDICT_ALREADY_VOIDED


def test_a_batch_is_decided_item_by_item(house: House) -> None:
    batch = code_pb.IssueBatchRequest(
        requests=[
            house.issue_request(),
            house.issue_request(order_id=""),
            house.issue_request(lines=[types_pb.Line(sku_id=999, count=1)]),
            house.issue_request(mall_id=999),
            house.issue_request(),
        ]
    )
    outcomes = house.client.call(house.client.codes.IssueBatch, batch).outcomes
    assert [outcome.WhichOneof("outcome") for outcome in outcomes] == [
        "response",
        "error",
        "response",
        "error",
        "response",
    ]
    assert outcomes[0].response.verdict == outcomes[4].response.verdict == code_pb.ISSUE_VERDICT_ISSUED
    assert outcomes[0].response.request_id == batch.requests[0].request_id
    assert outcomes[4].response.request_id == batch.requests[4].request_id
    assert (outcomes[1].error.reason, outcomes[1].error.field) == ("INVALID_INPUT", "order_id")
    assert outcomes[2].response.verdict == code_pb.ISSUE_VERDICT_UNKNOWN_SKU
    assert outcomes[3].error.reason == "UNKNOWN_MALL"


def test_a_thousand_codes_in_one_call(house: House) -> None:
    batch = code_pb.IssueBatchRequest(requests=[house.issue_request() for _ in range(1_000)])
    outcomes = house.client.call(house.client.codes.IssueBatch, batch).outcomes
    assert len({outcome.response.uid for outcome in outcomes}) == 1_000


def test_more_than_the_largest_batch_is_refused_whole(house: House) -> None:
    before = house.figures()
    batch = code_pb.IssueBatchRequest(requests=[house.issue_request()] + [code_pb.IssueRequest()] * 10_000)
    failed = failure(house.client.codes.IssueBatch, batch, house.client)
    assert (failed.code, failed.reason, failed.field) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "TOO_MANY_ITEMS",
        "requests",
    )
    assert house.figures() == before
    failed = failure(house.client.codes.IssueBatch, code_pb.IssueBatchRequest(), house.client)
    assert failed.field == "requests"


# --- refusals ------------------------------------------------------------------------------------------------------


def test_the_refusals_of_a_terminal(house: House) -> None:
    verdict = redemption_pb.RedeemVerdict
    code = house.shown()
    far = types_pb.Position(latitude_deg=31.2405, longitude_deg=121.4365, datum=types_pb.DATUM_GCJ02)
    vague = types_pb.Position(
        latitude_deg=31.1955, longitude_deg=121.4365, accuracy_m=5_000, datum=types_pb.DATUM_GCJ02
    )
    here = types_pb.Terminal(mall_id=MALL, store_id=STORE, terminal_id=TERMINAL)
    elsewhere = types_pb.Terminal(mall_id=MALL, store_id=NEAR_STORE, terminal_id=9)

    def ask(code: str, position: types_pb.Position | None, terminal: types_pb.Terminal) -> str:
        request = redemption_pb.RedeemRequest(
            terminal=terminal, request_id=house.request_id(), code=code, position=position
        )
        return verdict.Name(house.client.call(house.client.redemption.Redeem, request).verdict)

    flipped = code[:-1] + ("0" if code[-1] != "0" else "1")
    assert ask(code, far, here) == "REDEEM_VERDICT_OUT_OF_RANGE"
    assert ask(code, vague, here) == "REDEEM_VERDICT_LOCATION_UNRELIABLE"
    assert ask(code, None, here) == "REDEEM_VERDICT_LOCATION_REQUIRED"
    assert ask(code, None, elsewhere) == "REDEEM_VERDICT_WRONG_STORE"
    for nonsense in (flipped, code + "0", code.lower(), "提货码", "P" * 512, "0000 0000 0000 0000", " "):
        assert ask(nonsense, AT_STORE, here) == "REDEEM_VERDICT_INVALID_CODE"
    assert ask(code, AT_STORE, here) == "REDEEM_VERDICT_REDEEMED"


def test_a_wrong_store_is_named_in_the_sentence(house: House) -> None:
    request = house.redeem_request(house.shown())
    request.terminal.store_id = NEAR_STORE
    response = house.client.call(house.client.redemption.Redeem, request)
    assert (response.store_id, response.store_name) == (STORE, "徐家汇店")
    assert "徐家汇店" in response.message_zh


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ({"store_id": 9999}, "UNKNOWN_STORE"),
        ({"lines": [types_pb.Line(sku_id=999, count=1)]}, "UNKNOWN_SKU"),
        ({"lines": [types_pb.Line(sku_id=RARE_SKU, count=1)]}, "STOCK_SHORT"),
        ({"store_id": CLOSED_STORE}, "STORE_CLOSED"),
    ],
)
def test_the_refusals_of_an_issue(house: House, fields: dict[str, object], verdict: str) -> None:
    response = house.client.call(house.client.codes.Issue, house.issue_request(**fields))
    assert code_pb.IssueVerdict.Name(response.verdict) == f"ISSUE_VERDICT_{verdict}"
    assert response.uid == ""
    assert response.message_zh
    assert "…" not in response.message_zh


# --- stock and stores ----------------------------------------------------------------------------------------------


def test_stock_is_received_adjusted_counted(house: House) -> None:
    client = house.client
    common: dict[str, Any] = {"mall_id": MALL, "store_id": NEAR_STORE, "sku_id": RARE_SKU}

    def adjust(**change: Any) -> stock_pb.StockOutcome:
        request = stock_pb.AdjustStockRequest(request_id=house.request_id(), **common, **change)
        return client.call(client.stock.AdjustStock, request).outcome

    receipt = stock_pb.ReceiveStockRequest(request_id=house.request_id(), count=10, **common)
    first = client.call(client.stock.ReceiveStock, receipt).outcome
    assert (first.verdict, first.figures.on_hand) == (stock_pb.STOCK_VERDICT_RECEIVED, 10)
    again = client.call(client.stock.ReceiveStock, receipt).outcome
    assert (again.figures.on_hand, again.replayed) == (10, True)
    assert adjust(by=-4).figures.on_hand == 6
    refused = adjust(by=-7)
    assert refused.verdict == stock_pb.STOCK_VERDICT_BELOW_ZERO
    assert refused.figures.on_hand == 6
    assert "6" in refused.message_zh
    assert adjust(by=2_147_483_647).verdict == stock_pb.STOCK_VERDICT_ABOVE_LIMIT
    assert adjust(counted=3).figures.on_hand == 3
    baseline = stock_pb.SetBaselineRequest(request_id=house.request_id(), baseline=30, **common)
    assert client.call(client.stock.SetBaseline, baseline).outcome.figures.baseline == 30
    figures = house.figures(RARE_SKU, NEAR_STORE)
    assert (figures.on_hand, figures.reserved, figures.available, figures.short) == (3, 0, 3, 0)
    assert adjust(counted=0).figures.on_hand == 0


def test_stock_of_what_is_not_there_is_refused(house: House) -> None:
    client = house.client
    request = stock_pb.ReceiveStockRequest(
        mall_id=MALL, request_id=house.request_id(), store_id=STORE, sku_id=999, count=1
    )
    assert (
        client.call(client.stock.ReceiveStock, request).outcome.verdict == stock_pb.STOCK_VERDICT_UNKNOWN_SKU
    )
    request.sku_id, request.store_id = SKU, 9999
    outcome = client.call(client.stock.ReceiveStock, request).outcome
    assert outcome.verdict == stock_pb.STOCK_VERDICT_UNKNOWN_STORE
    assert not outcome.HasField("figures")


def test_reading_where_nothing_can_be_says_so(house: House) -> None:
    client = house.client
    read = stock_pb.ReadStockRequest(mall_id=999, store_id=STORE)
    assert failure(client.stock.ReadStock, read, client).reason == "UNKNOWN_MALL"
    read = stock_pb.ReadStockRequest(mall_id=OTHER_MALL, store_id=STORE)
    failed = failure(client.stock.ReadStock, read, client)
    assert (failed.code, failed.field) == (grpc.StatusCode.NOT_FOUND, "store_id")
    listed = store_pb.ListCatalogueRequest(mall_id=999)
    assert failure(client.stores.ListCatalogue, listed, client).reason == "UNKNOWN_MALL"
    never = stock_pb.ReadStockRequest(mall_id=MALL, store_id=CLOSED_STORE)
    assert not client.call(client.stock.ReadStock, never).figures


def test_malls_stores_and_catalogue_are_listed_in_pages(house: House) -> None:
    client = house.client
    page = client.call(client.stores.ListStores, store_pb.ListStoresRequest(page_size=2))
    assert [store.store_id for store in page.stores] == [STORE, NEAR_STORE]
    assert page.next_page_token
    rest = client.call(
        client.stores.ListStores, store_pb.ListStoresRequest(page_size=2, page_token=page.next_page_token)
    )
    assert [store.store_id for store in rest.stores] == [CLOSED_STORE]
    assert rest.next_page_token == ""
    assert rest.stores[0].closed
    others = client.call(client.stores.ListStores, store_pb.ListStoresRequest(mall_id=OTHER_MALL))
    assert not others.stores
    malls = client.call(client.stores.ListMalls, store_pb.ListMallsRequest()).malls
    assert [mall.mall_id for mall in malls] == [MALL, OTHER_MALL]
    entries = client.call(client.stores.ListCatalogue, store_pb.ListCatalogueRequest(mall_id=MALL)).entries
    assert [(entry.sku_id, entry.unit) for entry in entries] == [(SKU, "件"), (RARE_SKU, "只")]
    store = client.call(client.stores.GetStore, store_pb.GetStoreRequest(store_id=STORE)).store
    assert (store.name, store.radius_m, store.time_zone) == ("徐家汇店", 500, "Asia/Shanghai")
    assert store.terminal_location == store_pb.TERMINAL_LOCATION_REQUIRED


# --- statuses ------------------------------------------------------------------------------------------------------


def failure(call: Any, request: Message, client: Client) -> CallFailed:
    with pytest.raises(CallFailed) as caught:
        client.call(call, request)
    return caught.value


def test_bad_input_is_a_status_with_reason_and_field(house: House) -> None:
    client = house.client
    request = house.redeem_request("PG0")
    request.lines.add(sku_id=1, count=70_000)
    failed = failure(client.redemption.Redeem, request, client)
    assert (failed.code, failed.reason, failed.field) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_INPUT",
        "lines[0].count",
    )
    assert "70000" in failed.message
    assert failed.tries == 1


@pytest.mark.parametrize(
    ("latitude", "longitude"), [(float("nan"), 0.0), (0.0, float("inf")), (91.0, 0.0), (0.0, -181.0)]
)
def test_coordinates_that_are_none(house: House, latitude: float, longitude: float) -> None:
    request = house.redeem_request("PG0")
    request.position.latitude_deg, request.position.longitude_deg = latitude, longitude
    failed = failure(house.client.redemption.Redeem, request, house.client)
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failed.field.startswith("position.")


def test_an_unknown_mall(house: House) -> None:
    failed = failure(house.client.codes.Issue, house.issue_request(mall_id=999), house.client)
    assert (failed.code, failed.reason, failed.field) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "UNKNOWN_MALL",
        "mall_id",
    )


def test_a_reused_request_id_is_refused(house: House) -> None:
    client = house.client
    first = house.issue_request()
    client.call(client.codes.Issue, first)
    other = house.issue_request(request_id=first.request_id, lines=[types_pb.Line(sku_id=SKU, count=9)])
    failed = failure(client.codes.Issue, other, client)
    assert (failed.code, failed.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")

    redeemed = house.redeem_request(house.shown())
    client.call(client.redemption.Redeem, redeemed)
    redeemed.code = house.shown()
    failed = failure(client.redemption.Redeem, redeemed, client)
    assert (failed.code, failed.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


def test_what_is_not_there(house: House) -> None:
    client = house.client
    failed = failure(
        client.codes.GetCode, code_pb.GetCodeRequest(mall_id=MALL, uid="0123456789abcdef"), client
    )
    assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    failed = failure(client.stores.GetStore, store_pb.GetStoreRequest(store_id=4_000_000_000), client)
    assert failed.code is grpc.StatusCode.NOT_FOUND


def test_another_malls_code_is_not_there(house: House) -> None:
    uid = house.issue().uid
    failed = failure(
        house.client.codes.GetCode, code_pb.GetCodeRequest(mall_id=OTHER_MALL, uid=uid), house.client
    )
    assert failed.code is grpc.StatusCode.NOT_FOUND
    rendered = house.client.call(
        house.client.codes.Render, code_pb.RenderRequest(mall_id=OTHER_MALL, uid=uid)
    )
    assert rendered.verdict == code_pb.RENDER_VERDICT_UNKNOWN_CODE
    assert not rendered.payloads


def raw_call(raw: grpc.Channel, method: str, data: bytes) -> grpc.RpcError:
    """Send bytes as they are; returns the error that they must cause."""
    call = raw.unary_unary(f"/pickgate.v1.{method}", request_serializer=None, response_deserializer=None)
    with pytest.raises(grpc.RpcError) as caught:
        call(data, timeout=10)
    return caught.value


ALL_BY_DEFAULT = {
    f"StoreService.{method}" for method in ("ListMalls", "ListStores", "ListPolicies", "ListProviders")
}
"""Methods that an empty request asks for all there is."""


@pytest.mark.parametrize("method", sorted(services.METHODS))
def test_unparsable_bytes_and_empty_requests_are_bad_input_everywhere(raw: grpc.Channel, method: str) -> None:
    path = method.replace(".", "/")
    error = raw_call(raw, path, b"\x0a\xff\xff\xff")
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "can't be parsed" in str(error.details())
    if method not in ALL_BY_DEFAULT:
        assert raw_call(raw, path, b"").code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("method", sorted(services.METHODS))
def test_a_message_past_its_bound_is_refused_with_the_bound(raw: grpc.Channel, method: str) -> None:
    bytes_max = services.METHODS[method].bytes_max
    error = raw_call(raw, method.replace(".", "/"), b"\x00" * (bytes_max + 1))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert str(bytes_max) in str(error.details())


def test_a_message_past_every_bound_is_not_read(raw: grpc.Channel) -> None:
    error = raw_call(raw, "RedemptionService/Redeem", b"\x00" * (5 * 1024 * 1024))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_text_that_is_not_utf8_is_bad_input(raw: grpc.Channel) -> None:
    error = raw_call(raw, "RedemptionService/Redeem", b"\x1a\x02\xff\xfe")
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "UTF-8" in str(error.details())


def test_a_method_that_is_not_there(raw: grpc.Channel) -> None:
    assert raw_call(raw, "RedemptionService/Steal", b"").code() is grpc.StatusCode.UNIMPLEMENTED


def test_details_reach_any_client(raw: grpc.Channel) -> None:
    error = raw_call(raw, "RedemptionService/Redeem", b"")
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    kinds = {detail.type_url.rpartition(".")[2] for detail in status.details}
    assert kinds == {"ErrorInfo", "BadRequest"}
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.domain, info.reason) == ("pickgate", "INVALID_INPUT")


# --- a locked keyring ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(house: House) -> Iterator[Client]:
    """A second server on the same store, which nobody gave the passphrase."""
    with (
        Deployment.open(house.store.url, unlock=None, durability=Durability.MEMORY) as deployment,
        Server(
            deployment,
            [parse_listen("127.0.0.1:0")],
            threads=2,
            look=lambda: deployment.control.refresh().usable_keys(),
        ) as server,
        Client(server.addresses[0], tries=1) as client,
    ):
        yield client


def test_a_locked_keyring_decides_nothing_and_says_so(house: House, locked: Client) -> None:
    for call, request in (
        (locked.codes.Issue, house.issue_request()),
        (locked.redemption.Redeem, house.redeem_request(house.shown())),
        (locked.codes.Render, code_pb.RenderRequest(mall_id=MALL, uid=house.issue().uid)),
    ):
        failed = failure(call, request, locked)
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "KEYRING_LOCKED")
        assert failed.error_id
    assert not locked.healthy()


def test_a_locked_keyring_still_lets_read(house: House, locked: Client) -> None:
    uid = house.issue().uid
    assert locked.call(locked.codes.GetCode, code_pb.GetCodeRequest(mall_id=MALL, uid=uid)).code.uid == uid


# --- nothing leaks -------------------------------------------------------------------------------------------------


def test_a_defect_tells_the_client_an_id_only(house: House) -> None:
    """The real handler over a deployment that is broken inside: what any defect looks like from outside."""
    broken = Deployment.__new__(Deployment)
    sound = house.deployment
    broken.control, broken.now_ms, broken.connection = sound.control, sound.now_ms, sound.connection
    with (
        Server(broken, [parse_listen("127.0.0.1:0")], threads=1, look=lambda: None) as server,
        Client(server.addresses[0], tries=1) as client,
    ):
        failed = failure(client.codes.Issue, house.issue_request(), client)
    assert (failed.code, failed.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert failed.error_id
    assert "attribute" not in failed.message
    assert "Deployment" not in failed.message


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_bytes_on_the_wire_cause_an_internal_error(
    house: House, raw: grpc.Channel, data: st.DataObject
) -> None:
    """Sound requests with bytes changed, removed or put in: an answer or a clear refusal, never a defect's trace."""
    sound: Message
    name = data.draw(st.sampled_from(sorted(services.METHODS)))
    if name == "CodeService.Issue":
        # Of one length in every run: the bytes to change are drawn from it.
        sound = house.issue_request(order_id="O-1", request_id="request-1")
    elif name.startswith("RedemptionService"):
        sound = house.redeem_request("PG0", pin="123456")
    else:
        kind = services.METHODS[name].request
        # Without a request id no put is sound, so that none changes the house that other tests live in.
        given_fields = {"request_id": "" if ".Put" in name else "request-1", "mall_id": MALL}
        sound = kind(
            **{key: value for key, value in given_fields.items() if key in kind.DESCRIPTOR.fields_by_name}
        )
    body = bytearray(sound.SerializeToString())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(body)))
        body[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=4))
    call = raw.unary_unary(
        f"/pickgate.v1.{name.replace('.', '/')}", request_serializer=None, response_deserializer=None
    )
    try:
        call(bytes(body), timeout=10)
    except grpc.RpcError as error:
        assert error.code() in (  # noqa: PT017 - an answer is right too
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.ALREADY_EXISTS,
        )
