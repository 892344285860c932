"""Bad input: each malformed request is refused with the field, and what is merely a bad code is let through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from engine import calls, limits
from engine.claims import Channel, EventId, Line, LineState, State, Suite, Version
from engine.errors import InvalidInput, PickgateError, TooManyItems
from engine.verdict import IssueVerdict, RedeemVerdict, RenderVerdict, StockVerdict, VoidVerdict
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import stock_service_pb2 as stock_pb
from pickgate.v1 import store_service_pb2 as store_pb
from pickgate.v1 import types_pb2 as types_pb
from server import bounds, translate, translate_rules

NAN, INF = float("nan"), float("inf")


def redeem() -> redemption_pb.RedeemRequest:
    return redemption_pb.RedeemRequest(
        terminal=types_pb.Terminal(mall_id=7, store_id=2001, terminal_id=3),
        request_id="request-1",
        code="PG0",
        pin="012345",
        position=types_pb.Position(
            latitude_deg=31.2, longitude_deg=121.4, accuracy_m=10, datum=types_pb.DATUM_WGS84
        ),
        lines=[types_pb.Line(sku_id=101, count=1), types_pb.Line(sku_id=102, count=65_535)],
        actor="clerk:17",
    )


def issue() -> code_pb.IssueRequest:
    return code_pb.IssueRequest(
        mall_id=7,
        request_id="request-1",
        store_id=2001,
        order_id="订单-1",
        lines=[types_pb.Line(sku_id=101, count=2)],
        version=types_pb.VERSION_DYNAMIC,
        suite=types_pb.SUITE_SM,
        ttl_s=60,
        amount_fen=100,
        splits=[types_pb.Split(payee="p", role="seller", level=0, amount_fen=100)],
    )


def store() -> store_pb.PutStoresRequest:
    return store_pb.PutStoresRequest(
        stores=[
            store_pb.Store(
                store_id=2001,
                name="店",
                mall_ids=[7],
                latitude_deg=0.0,
                longitude_deg=0.0,
                datum=types_pb.DATUM_GCJ02,
            )
        ]
    )


def change(make: Callable[[], Any], path: str, value: object) -> Any:
    """A sound message with one field set (None: cleared)."""
    message: Any = make()
    *way, last = path.split(".")
    place = message
    for step in way:
        place = place[int(step)] if step.isdigit() else getattr(place, step)
    if value is None:
        place.ClearField(last)
    elif isinstance(value, list):
        del getattr(place, last)[:]
        getattr(place, last).extend(value)
    else:
        setattr(place, last, value)
    return message


LINE = types_pb.Line(sku_id=101, count=1)

REDEEM_FAULTS = [
    ("terminal", None, "terminal.mall_id"),
    ("terminal.mall_id", 0, "terminal.mall_id"),
    ("terminal.store_id", 0, "terminal.store_id"),
    ("terminal.terminal_id", 0, "terminal.terminal_id"),
    ("request_id", "", "request_id"),
    ("request_id", "short", "request_id"),
    ("request_id", "x" * 65, "request_id"),
    ("request_id", "with space", "request_id"),
    ("request_id", "请求编号请求编号", "request_id"),
    ("request_id", "newline-at-end\n", "request_id"),
    ("code", "", "code"),
    ("code", "P" * 513, "code"),
    ("pin", "12345", "pin"),
    ("pin", "12345a", "pin"),
    ("pin", "１２３４５６", "pin"),
    ("position.latitude_deg", None, "position.latitude_deg"),
    ("position.longitude_deg", None, "position.longitude_deg"),
    ("position.latitude_deg", NAN, "position.latitude_deg"),
    ("position.latitude_deg", INF, "position.latitude_deg"),
    ("position.latitude_deg", 90.0001, "position.latitude_deg"),
    ("position.longitude_deg", -180.0001, "position.longitude_deg"),
    ("position.longitude_deg", NAN, "position.longitude_deg"),
    ("position.accuracy_m", NAN, "position.accuracy_m"),
    ("position.accuracy_m", -1.0, "position.accuracy_m"),
    ("position.accuracy_m", INF, "position.accuracy_m"),
    ("position.datum", None, "position.datum"),
    ("position.datum", 9, "position.datum"),
    ("lines.1.count", 0, "lines[1].count"),
    ("lines.1.count", 65_536, "lines[1].count"),
    ("lines.1.count", 4_294_967_295, "lines[1].count"),
    ("lines.1.sku_id", 0, "lines[1].sku_id"),
    ("lines.1.sku_id", 101, "lines[1].sku_id"),
    ("actor", "a" * 65, "actor"),
    ("actor", "clerk\x1b[2J", "actor"),
    ("actor", "clerk\u202e71", "actor"),
]

ISSUE_FAULTS = [
    ("mall_id", 0, "mall_id"),
    ("store_id", 0, "store_id"),
    ("order_id", "", "order_id"),
    ("order_id", "o" * 49, "order_id"),
    ("order_id", " A-1", "order_id"),
    ("order_id", "A\x00", "order_id"),
    ("lines", [], "lines"),
    ("version", 4, "version"),
    ("suite", None, "suite"),
    ("suite", 3, "suite"),
    ("channel", 9, "channel"),
    ("ttl_s", 59, "ttl_s"),
    ("ttl_s", -1, "ttl_s"),
    ("ttl_s", limits.TTL_S_MAX + 1, "ttl_s"),
    ("amount_fen", -1, "amount_fen"),
    ("amount_fen", 2**32, "amount_fen"),
    ("splits.0.payee", "", "splits[0].payee"),
    ("splits.0.level", 4, "splits[0].level"),
    ("splits.0.amount_fen", -5, "splits[0].amount_fen"),
]

STORE_FAULTS = [
    ("stores", [], "stores"),
    ("stores.0.store_id", 0, "stores[0].store_id"),
    ("stores.0.name", "", "stores[0].name"),
    ("stores.0.name", "n" * 121, "stores[0].name"),
    ("stores.0.mall_ids", [], "stores[0].mall_ids"),
    ("stores.0.mall_ids", [7, 0], "stores[0].mall_ids[1]"),
    ("stores.0.mall_ids", [7, 7], "stores[0].mall_ids"),
    ("stores.0.latitude_deg", None, "stores[0].latitude_deg"),
    ("stores.0.longitude_deg", None, "stores[0].longitude_deg"),
    ("stores.0.latitude_deg", -90.1, "stores[0].latitude_deg"),
    ("stores.0.longitude_deg", NAN, "stores[0].longitude_deg"),
    ("stores.0.datum", None, "stores[0].datum"),
    ("stores.0.radius_m", 100_001, "stores[0].radius_m"),
    ("stores.0.terminal_location", 7, "stores[0].terminal_location"),
    ("stores.0.time_zone", "Asia/Atlantis", "stores[0].time_zone"),
    ("stores.0.time_zone", "../../etc/passwd", "stores[0].time_zone"),
    ("stores.0.time_zone", "localtime", "stores[0].time_zone"),
]


@pytest.mark.parametrize(("path", "value", "field"), REDEEM_FAULTS)
def test_a_misshapen_redemption_names_its_field(path: str, value: object, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        translate.redeem_request(change(redeem, path, value))
    assert caught.value.field == field
    assert field in caught.value.message
    assert "expected" in caught.value.message


@pytest.mark.parametrize(("path", "value", "field"), ISSUE_FAULTS)
def test_a_misshapen_issue_names_its_field(path: str, value: object, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        translate.issue_request(change(issue, path, value))
    assert caught.value.field == field


@pytest.mark.parametrize(("path", "value", "field"), STORE_FAULTS)
def test_a_misshapen_store_names_its_field(path: str, value: object, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        translate.stores(change(store, path, value).stores)
    assert caught.value.field == field


def test_an_entry_that_stands_twice_in_one_put_is_refused() -> None:
    """Whichever counted, the other would be lost without a word."""
    [one] = store().stores
    other = change(store, "stores.0.name", "B").stores[0]
    mall, sku = store_pb.Mall(mall_id=7, name="M"), store_pb.CatalogueEntry(mall_id=7, sku_id=9, name="x")
    policy = store_pb.Policy(level=store_pb.POLICY_LEVEL_DEPLOYMENT, hold_s=60)
    reads: list[tuple[Callable[[Any], Any], tuple[Message, Message], str]] = [
        (translate.stores, (one, other), "stores[1]"),
        (translate.malls, (mall, mall), "malls[1]"),
        (translate.catalogue, (sku, sku), "entries[1]"),
        (translate_rules.policies, (policy, policy), "policies[1]"),
    ]
    for read, pair, field in reads:
        with pytest.raises(InvalidInput) as caught:
            read(pair)
        assert caught.value.field == field
        assert len(read(pair[:1])) == 1


@pytest.mark.parametrize(
    ("read", "message", "field"),
    [
        (translate.receive_request, stock_pb.ReceiveStockRequest(count=0), "count"),
        (translate.receive_request, stock_pb.ReceiveStockRequest(count=-3), "count"),
        (translate.receive_request, stock_pb.ReceiveStockRequest(count=2**31), "count"),
        (translate.adjust_request, stock_pb.AdjustStockRequest(), "change"),
        (translate.adjust_request, stock_pb.AdjustStockRequest(by=0), "by"),
        (translate.adjust_request, stock_pb.AdjustStockRequest(by=-(2**31)), "by"),
        (translate.adjust_request, stock_pb.AdjustStockRequest(counted=-1), "counted"),
        (translate.baseline_request, stock_pb.SetBaselineRequest(), "baseline"),
        (translate.baseline_request, stock_pb.SetBaselineRequest(baseline=-1), "baseline"),
        (translate.receive_request, stock_pb.ReceiveStockRequest(count=1), "mall_id"),
        (translate.read_stock_request, stock_pb.ReadStockRequest(mall_id=1), "store_id"),
        (translate.render_request, code_pb.RenderRequest(mall_id=1, uid="0" * 15), "uid"),
        (translate.render_request, code_pb.RenderRequest(mall_id=1, uid="A" * 16), "uid"),
        (translate.render_request, code_pb.RenderRequest(mall_id=1, uid="0" * 16, count=1441), "count"),
        (translate.void_request, code_pb.VoidRequest(mall_id=1, request_id="12345678"), "uid"),
        (translate.page, store_pb.ListMallsRequest(page_size=1001), "page_size"),
        (translate.page, store_pb.ListMallsRequest(page_token="x"), "page_token"),
        (translate.page, store_pb.ListMallsRequest(page_token="9" * 11), "page_token"),
        (translate.page, store_pb.ListMallsRequest(page_token="²"), "page_token"),
    ],
)
def test_other_misshapen_requests_name_their_field(
    read: Callable[[Message], object], message: Message, field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(message)
    assert caught.value.field == field


def test_too_many_of_anything_is_told_as_such() -> None:
    many = [types_pb.Line(sku_id=n + 1, count=1) for n in range(limits.LINES_MAX + 1)]
    with pytest.raises(TooManyItems):
        translate.redeem_request(change(redeem, "lines", many))
    with pytest.raises(TooManyItems):
        translate.malls([store_pb.Mall(mall_id=1, name="m")] * (bounds.PUT_ITEMS_MAX + 1))
    translate.redeem_request(change(redeem, "lines", many[:-1]))


def test_neither_pin_nor_code_is_repeated_in_an_error() -> None:
    for path, value in (("pin", "98765"), ("code", "PGSECRET" * 80)):
        with pytest.raises(InvalidInput) as caught:
            translate.redeem_request(change(redeem, path, value))
        assert str(value)[:5] not in caught.value.message


def test_a_long_value_is_shown_in_part() -> None:
    with pytest.raises(InvalidInput) as caught:
        translate.redeem_request(change(redeem, "request_id", "x" * 5_000))
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("code", ["x", "PG", " ", "提货码", "pg0", "\x00", "P" * 512, "0000 0000 0000 0000"])
def test_whatever_was_scanned_is_left_to_the_engine_as_it_is(code: str) -> None:
    assert translate.redeem_request(change(redeem, "code", code)).code == code


def test_a_sound_redemption_is_carried_over_whole() -> None:
    request = translate.redeem_request(redeem())
    assert request.lines == (Line(101, 1), Line(102, 65_535))
    assert request.position is not None
    assert (request.position.latitude_deg, request.position.datum, request.position.accuracy_m) == (
        31.2,
        1,
        10.0,
    )
    assert (request.terminal.mall_id, request.terminal.store_id, request.terminal.terminal_id) == (7, 2001, 3)
    assert (request.pin, request.actor, request.request_id) == ("012345", "clerk:17", "request-1")
    assert translate.redeem_request(change(redeem, "position", None)).position is None
    assert translate.redeem_request(change(redeem, "lines", [])).lines == ()


def test_a_sound_issue_is_carried_over_whole() -> None:
    request = translate.issue_request(issue())
    assert (request.version, request.suite, request.channel) == (Version.DYNAMIC, Suite.SM, 1)
    assert (request.order_id, request.ttl_s, request.amount_fen) == ("订单-1", 60, 100)
    assert request.splits[0].payee == "p"


def test_the_equator_and_greenwich_are_a_place() -> None:
    (made,) = translate.stores(store().stores)
    assert (made.latitude_deg, made.longitude_deg, made.radius_m) == (0.0, 0.0, limits.RADIUS_M_DEFAULT)
    assert (made.terminal_location, made.time_zone) == ("required", "Asia/Shanghai")
    assert translate.store_message(made).datum == types_pb.DATUM_GCJ02


def test_the_latest_possible_numbers_are_taken() -> None:
    request = issue()
    request.mall_id = request.store_id = 2**32 - 1
    request.amount_fen = 2**32 - 1
    request.ttl_s = limits.TTL_S_MAX
    translate.issue_request(request)


# --- the wire ------------------------------------------------------------------------------------------------------


def test_bytes_that_are_no_message_are_bad_input() -> None:
    for data in (b"\xff", b"\x0a\xff", b"\x12\x02\xff\xfe"):
        with pytest.raises(InvalidInput, match=r"can't be parsed; expected a pickgate\.v1\.RedeemRequest"):
            translate.parse(redemption_pb.RedeemRequest, data, 100)


def test_a_message_is_bounded() -> None:
    data = redeem().SerializeToString()
    assert translate.parse(redemption_pb.RedeemRequest, data, len(data)) == redeem()
    with pytest.raises(InvalidInput, match="expected at most"):
        translate.parse(redemption_pb.RedeemRequest, data, len(data) - 1)


@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_request_or_a_clear_refusal(data: bytes) -> None:
    reads: list[tuple[type[Message], Callable[[Any], object]]] = [
        (redemption_pb.RedeemRequest, translate.redeem_request),
        (code_pb.IssueRequest, translate.issue_request),
        (stock_pb.AdjustStockRequest, translate.adjust_request),
    ]
    for kind, read in reads:
        try:
            read(translate.parse(kind, data, 1_000))
        except PickgateError as error:
            assert isinstance(error, InvalidInput)  # noqa: PT017 - passing is right too


@given(
    latitude=st.floats(allow_nan=True),
    longitude=st.floats(allow_nan=True),
    accuracy=st.floats(allow_nan=True),
    datum=st.integers(0, 9),
)
def test_no_position_gets_through_that_is_none(
    latitude: float, longitude: float, accuracy: float, datum: int
) -> None:
    message = redeem()
    message.position.latitude_deg = latitude
    message.position.longitude_deg = longitude
    message.position.accuracy_m = accuracy
    message.position.datum = datum  # type: ignore[assignment]
    sound = abs(latitude) <= 90 and abs(longitude) <= 180 and 0 <= accuracy < INF and 1 <= datum <= 3
    if sound:
        assert translate.redeem_request(message).position is not None
    else:
        with pytest.raises(InvalidInput):
            translate.redeem_request(message)


# --- answers -------------------------------------------------------------------------------------------------------

AT_MS = 1_777_600_800_123  # 2026-05-01 02:00:00 UTC


def test_an_answer_says_when_and_where_in_the_stores_time() -> None:
    answer = calls.RedeemAnswer(RedeemVerdict.ALREADY_REDEEMED, uid=b"\1" * 8, at_ms=AT_MS, terminal_id=42)
    response = translate.redeem_response("request-1", answer, "Asia/Shanghai")
    assert "2026-05-01 10:00:00+08:00" in response.message_zh
    assert "2026-05-01 10:00:00+08:00" in response.message_en
    assert "42" in response.message_zh
    assert response.uid == "0101010101010101"
    assert response.at_ms == AT_MS
    assert response.next_step == types_pb.NEXT_STEP_FINAL
    elsewhere = translate.redeem_response("request-1", answer, "Europe/Paris")
    assert "2026-05-01 04:00:00+02:00" in elsewhere.message_en


def test_a_time_zone_that_the_system_lacks_costs_no_answer() -> None:
    assert translate.local_time(AT_MS, "Asia/Atlantis") == "2026-05-01 02:00:00+00:00"


def test_tries_left_is_there_only_with_a_wrong_pin_and_also_when_none_is_left() -> None:
    wrong = translate.redeem_response("r", calls.RedeemAnswer(RedeemVerdict.PIN_WRONG, tries_left=0))
    assert wrong.HasField("tries_left")
    assert wrong.tries_left == 0
    done = translate.redeem_response("r", calls.RedeemAnswer(RedeemVerdict.REDEEMED))
    assert not done.HasField("tries_left")


def test_the_nearest_bucket_differs_from_no_distance() -> None:
    near = translate.redeem_response("r", calls.RedeemAnswer(RedeemVerdict.REDEEMED, distance_bucket=0))
    none = translate.redeem_response("r", calls.RedeemAnswer(RedeemVerdict.REDEEMED, distance_bucket=255))
    assert near.HasField("distance_bucket")
    assert near.distance_bucket == 0
    assert not none.HasField("distance_bucket")


@pytest.mark.parametrize("verdict", list(RedeemVerdict), ids=lambda verdict: verdict.slug)
def test_no_sentence_has_a_gap(verdict: RedeemVerdict) -> None:
    answer = calls.RedeemAnswer(
        verdict,
        at_ms=AT_MS,
        terminal_id=1,
        sku_id=2,
        store_id=3,
        store_name="店",
        review_id="1-1-1",
        proof_methods=("id_document",),
    )
    response = translate.redeem_response("r", answer)
    for sentence in (response.message_zh, response.message_en):
        assert sentence
        assert "…" not in sentence
        assert "{" not in sentence


@pytest.mark.parametrize("verdict", list(VoidVerdict), ids=lambda verdict: verdict.slug)
def test_no_sentence_of_a_void_has_a_gap(verdict: VoidVerdict) -> None:
    response = translate.void_response("r", calls.VoidAnswer(verdict, at_ms=AT_MS, terminal_id=1))
    assert response.message_zh
    assert "…" not in response.message_zh + response.message_en


@pytest.mark.parametrize("verdict", list(IssueVerdict), ids=lambda verdict: verdict.slug)
def test_no_sentence_of_an_issue_has_a_gap(verdict: IssueVerdict) -> None:
    response = translate.issue_response("r", calls.IssueAnswer(verdict, sku_id=1, store_id=2))
    assert response.message_zh
    assert "…" not in response.message_zh + response.message_en


@pytest.mark.parametrize("verdict", list(StockVerdict), ids=lambda verdict: verdict.slug)
def test_no_sentence_of_a_stock_change_has_a_gap(verdict: StockVerdict) -> None:
    figures = calls.StockFigures(sku_id=1, on_hand=2, reserved=5, baseline=0, tier=0)
    outcome = translate.stock_outcome("r", calls.StockAnswer(verdict, figures, sku_id=1, store_id=2))
    assert outcome.message_zh
    assert "…" not in outcome.message_zh + outcome.message_en
    assert (outcome.figures.available, outcome.figures.short) == (0, 3)


def test_a_render_of_a_redeemed_code_says_when_from_its_record() -> None:
    record = calls.Record(
        uid=b"\2" * 8,
        state=State.REDEEMED,
        version=Version.DYNAMIC,
        suite=Suite.AES,
        mall_id=7,
        store_id=2001,
        order_id="A-1",
        lines=(LineState(101, 2, 0),),
        bundles=(),
        windows_bind=False,
        proof_needed=False,
        ttl_s=60,
        replaces=b"",
        channel=Channel.ONLINE,
        policy_version=1,
        issued_at_ms=AT_MS - 1,
        changed_at_ms=AT_MS,
        expires_at_s=AT_MS // 1000 + 60,
        amount_fen=5,
        splits=(),
        pin_generation=0,
        revision=1,
        stamp_floor_s=0,
        cycle=0,
        tries=0,
        terminal_id=42,
        redeemed_at_ms=AT_MS,
        lock=EventId(1, 2, 3),
    )
    response = translate.render_response(calls.RenderAnswer(RenderVerdict.ALREADY_REDEEMED, record=record))
    assert "2026-05-01 10:00:00+08:00" in response.message_zh
    assert "42" in response.message_zh
    assert response.code.review_id == "1-2-3"
    assert response.code.expires_at_ms == (AT_MS // 1000 + 60) * 1000
    assert not translate.render_response(calls.RenderAnswer(RenderVerdict.UNKNOWN_CODE)).HasField("code")
