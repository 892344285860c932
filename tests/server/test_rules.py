"""The rules of pickup over gRPC, on a real server and store: what the answers and records say, and what can be set up."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import review_service_pb2 as review_pb
from pickgate.v1 import stock_service_pb2 as stock_pb
from pickgate.v1 import store_service_pb2 as store_pb
from pickgate.v1 import types_pb2 as types_pb
from server.client import CallFailed
from server.translate_rules import provider_message
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
    build,
)

BUNDLE, STATIC_SKU, CUP = 210, 211, 212
FAR_AWAY = types_pb.Position(latitude_deg=31.25, longitude_deg=121.4365, datum=types_pb.DATUM_GCJ02)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, socket_dir: Path) -> Iterator[House]:
    """A house of this module's own, with a bundle and a SKU for couriers."""
    with ExitStack() as stack:
        made = build(stack, tmp_path_factory.mktemp("rules") / "data", socket_dir)
        put_catalogue(
            made,
            store_pb.CatalogueEntry(mall_id=MALL, sku_id=CUP, name="杯"),
            store_pb.CatalogueEntry(
                mall_id=MALL, sku_id=STATIC_SKU, name="快递件", pickup_mode=types_pb.PICKUP_MODE_STATIC
            ),
            store_pb.CatalogueEntry(
                mall_id=MALL,
                sku_id=BUNDLE,
                name="茶具套装",
                parts=[types_pb.Line(sku_id=SKU, count=1), types_pb.Line(sku_id=CUP, count=4)],
            ),
        )
        for sku_id in (CUP, STATIC_SKU):
            receive(made, 10_000, sku_id=sku_id)
        yield made


def put_catalogue(house: House, *entries: store_pb.CatalogueEntry) -> None:
    request = store_pb.PutCatalogueRequest(entries=entries, request_id=house.request_id())
    house.client.call(house.client.stores.PutCatalogue, request)


def put_policies(house: House, *policies: store_pb.Policy) -> None:
    request = store_pb.PutPoliciesRequest(policies=policies, request_id=house.request_id(), actor="ops:1")
    house.client.call(house.client.stores.PutPolicies, request)


def receive(house: House, count: int, **fields: Any) -> None:
    given: Any = {"mall_id": MALL, "store_id": STORE, "sku_id": SKU, **fields}
    request = stock_pb.ReceiveStockRequest(request_id=house.request_id(), count=count, **given)
    assert house.client.call(house.client.stock.ReceiveStock, request).outcome.event_id


def hold_request(house: House, **fields: Any) -> code_pb.HoldRequest:
    given: Any = {
        "mall_id": MALL,
        "request_id": house.request_id(),
        "store_id": STORE,
        "order_id": "H-1",
        "lines": [types_pb.Line(sku_id=SKU, count=2)],
        "suite": types_pb.SUITE_SM,
        **fields,
    }
    return code_pb.HoldRequest(**given)


def get(house: House, uid: str) -> types_pb.Code:
    request = code_pb.GetCodeRequest(mall_id=MALL, uid=uid)
    return house.client.call(house.client.codes.GetCode, request).code


def terminal(store_id: int = STORE) -> types_pb.Terminal:
    return types_pb.Terminal(mall_id=MALL, store_id=store_id, terminal_id=TERMINAL)


def lines(answer: Any) -> list[tuple[int, int, int]]:
    return [(line.sku_id, line.count, line.left) for line in answer.lines]


# --- hold, confirm, extend, replaces -------------------------------------------------------------------------------
def test_a_hold_becomes_a_code_when_it_is_paid(house: House) -> None:
    client = house.client
    before = house.figures(STATIC_SKU)
    request = hold_request(
        house, lines=[types_pb.Line(sku_id=STATIC_SKU, count=2)], ttl_s=7_200, amount_fen=500
    )
    held = client.call(client.codes.Hold, request)
    assert held.verdict == code_pb.HOLD_VERDICT_HELD
    assert held.expires_at_ms - held.issued_at_ms == pytest.approx(900_000, abs=1_000)
    assert house.figures(STATIC_SKU).reserved == before.reserved + 2
    record = get(house, held.uid)
    assert (record.state, record.ttl_s, record.expires_at_ms) == (
        types_pb.CODE_STATE_HELD,
        7_200,
        held.expires_at_ms,
    )
    by_request = code_pb.GetCodeByRequestIdRequest(mall_id=MALL, request_id=request.request_id)
    assert client.call(client.codes.GetCodeByRequestId, by_request).code.uid == held.uid

    confirm = code_pb.ConfirmRequest(mall_id=MALL, request_id=house.request_id(), uid=held.uid)
    confirmed = client.call(client.codes.Confirm, confirm)
    assert confirmed.verdict == code_pb.CONFIRM_VERDICT_CONFIRMED
    assert (len(confirmed.typed), len(confirmed.pin)) == (19, 6)
    record = get(house, held.uid)
    assert (record.state, record.ttl_s) == (types_pb.CODE_STATE_LIVE, 0)
    assert record.expires_at_ms == confirmed.expires_at_ms
    again = client.call(client.codes.Confirm, confirm)
    assert (again.replayed, again.typed, again.pin) == (True, confirmed.typed, confirmed.pin)
    assert house.redeem(confirmed.typed, pin=confirmed.pin).verdict == redemption_pb.REDEEM_VERDICT_REDEEMED
    assert house.figures(STATIC_SKU).on_hand == before.on_hand - 2


def test_a_retried_hold_reserves_once(house: House) -> None:
    request = hold_request(house)
    first = house.client.call(house.client.codes.Hold, request)
    reserved = house.figures().reserved
    second = house.client.call(house.client.codes.Hold, request)
    assert (second.uid, second.replayed) == (first.uid, True)
    assert house.figures().reserved == reserved
    request.amount_fen += 1
    with pytest.raises(CallFailed) as caught:
        house.client.call(house.client.codes.Hold, request)
    assert caught.value.reason == "REQUEST_ID_REUSED"


def test_an_extension_counts_a_part_of_a_second_as_a_whole_one(house: House) -> None:
    issued = house.issue()
    until_ms = issued.expires_at_ms + 3_600_001
    request = code_pb.ExtendRequest(
        mall_id=MALL, request_id=house.request_id(), uid=issued.uid, expires_at_ms=until_ms
    )
    extended = house.client.call(house.client.codes.Extend, request)
    assert extended.verdict == code_pb.EXTEND_VERDICT_EXTENDED
    assert extended.expires_at_ms == until_ms + 999 == get(house, issued.uid).expires_at_ms
    assert house.client.call(house.client.codes.Extend, request).replayed


def test_a_code_for_another_store_names_the_one_it_replaces(house: House) -> None:
    first = house.issue().uid
    void = code_pb.VoidRequest(mall_id=MALL, request_id=house.request_id(), uid=first)
    house.client.call(house.client.codes.Void, void)
    second = house.issue(store_id=NEAR_STORE, replaces=first).uid
    assert get(house, second).replaces == first
    assert get(house, first).replaces == ""


def test_a_version_that_is_not_stated_is_the_policys(house: House) -> None:
    unstated = types_pb.VERSION_UNSPECIFIED
    plain = house.issue(version=unstated)
    assert get(house, plain.uid).version == types_pb.VERSION_DYNAMIC
    courier = house.issue(version=unstated, lines=[types_pb.Line(sku_id=STATIC_SKU, count=1)])
    assert courier.typed
    both = house.issue(
        version=unstated,
        lines=[types_pb.Line(sku_id=STATIC_SKU, count=1), types_pb.Line(sku_id=SKU, count=1)],
    )
    assert get(house, both.uid).version == types_pb.VERSION_DYNAMIC
    # What is stated counts.
    stated = house.issue(version=types_pb.VERSION_VALUABLE, lines=[types_pb.Line(sku_id=STATIC_SKU, count=1)])
    record = get(house, stated.uid)
    assert (record.version, record.proof_needed) == (types_pb.VERSION_VALUABLE, True)


# --- parts, bundles, reversal --------------------------------------------------------------------------------------
def test_a_bundle_is_taken_apart_handed_out_whole_and_comes_back_whole(house: House) -> None:
    client = house.client
    issued = house.issue(
        lines=[types_pb.Line(sku_id=BUNDLE, count=2), types_pb.Line(sku_id=CUP, count=1)],
        version=types_pb.VERSION_STATIC,
    )
    record = get(house, issued.uid)
    (bundle,) = record.bundles
    assert (bundle.sku_id, bundle.units) == (BUNDLE, 2)
    assert [(part.sku_id, part.count, part.left) for part in bundle.parts] == [(SKU, 2, 2), (CUP, 8, 8)]
    assert lines(record) == [(SKU, 2, 2), (CUP, 8, 8), (CUP, 1, 1)]
    stock_before = house.figures(CUP)

    one = house.redeem_request(issued.typed, pin=issued.pin)
    one.lines.add(sku_id=BUNDLE, count=1)
    redeemed = client.call(client.redemption.Redeem, one)
    assert redeemed.verdict == redemption_pb.REDEEM_VERDICT_REDEEMED
    assert lines(redeemed) == [(SKU, 1, 1), (CUP, 4, 4)]
    part = house.redeem_request(issued.typed, pin=issued.pin)
    part.lines.add(sku_id=SKU, count=1)
    refused = client.call(client.redemption.Redeem, part)
    assert (refused.verdict, refused.sku_id) == (redemption_pb.REDEEM_VERDICT_NOTHING_LEFT, SKU)

    back = redemption_pb.ReverseRequest(
        terminal=terminal(),
        request_id=house.request_id(),
        uid=issued.uid,
        lines=[types_pb.Line(sku_id=BUNDLE, count=1)],
        reason="退货",
        actor="clerk:1",
    )
    reversed_ = client.call(client.redemption.Reverse, back)
    assert reversed_.verdict == redemption_pb.REVERSE_VERDICT_REVERSED
    assert lines(reversed_) == [(SKU, 1, 2), (CUP, 4, 8)]
    assert (reversed_.cycle, reversed_.store_name) == (1, "徐家汇店")
    retried = client.call(client.redemption.Reverse, back)
    assert retried.replayed
    assert house.figures(CUP) == stock_before


def test_a_refund_releases_the_units(house: House) -> None:
    issued = house.issue(version=types_pb.VERSION_STATIC)
    before = house.figures()
    house.redeem(issued.typed, pin=issued.pin)
    back = redemption_pb.ReverseRequest(
        terminal=terminal(), request_id=house.request_id(), uid=issued.uid, release=True
    )
    house.client.call(house.client.redemption.Reverse, back)
    after = house.figures()
    assert (after.on_hand, after.reserved) == (before.on_hand, before.reserved - 1)
    assert get(house, issued.uid).state == types_pb.CODE_STATE_VOIDED


def test_a_batch_of_redemptions_is_decided_item_by_item(house: House) -> None:
    good, late = house.shown(), house.shown()
    first = house.redeem_request(good)
    requests = [
        first,
        house.redeem_request(good),
        house.redeem_request(late, request_id="short"),
        house.redeem_request("PG" + "0" * 76),
        house.redeem_request(late),
        first,
    ]
    batch = redemption_pb.RedeemBatchRequest(requests=requests)
    outcomes = house.client.call(house.client.redemption.RedeemBatch, batch).outcomes
    told = [
        outcome.error.reason
        if outcome.HasField("error")
        else redemption_pb.RedeemVerdict.Name(outcome.response.verdict).removeprefix("REDEEM_VERDICT_")
        for outcome in outcomes
    ]
    assert told == ["REDEEMED", "ALREADY_REDEEMED", "INVALID_INPUT", "INVALID_CODE", "REDEEMED", "REDEEMED"]
    assert outcomes[2].error.field == "request_id"
    assert outcomes[5].response.event_id == outcomes[0].response.event_id
    assert [outcomes[n].response.request_id for n in (0, 1, 4)] == [requests[n].request_id for n in (0, 1, 4)]
    for count in (0, 257):
        many = redemption_pb.RedeemBatchRequest(requests=[first] * count)
        with pytest.raises(CallFailed) as caught:
            house.client.call(house.client.redemption.RedeemBatch, many)
        assert caught.value.field == "requests"


# --- second factor, locks, reviews ---------------------------------------------------------------------------------
def test_a_valuable_code_opens_to_a_proof_once(house: House) -> None:
    uid = house.issue(version=types_pb.VERSION_VALUABLE).uid
    text = house.render(uid).payloads[0].text
    inspected = house.client.call(
        house.client.redemption.Inspect,
        redemption_pb.InspectRequest(terminal=terminal(), code=text, position=AT_STORE),
    )
    assert inspected.proof_required
    token = proofs.sign(bytes.fromhex(uid), int(time.time()), method="two_staff")
    with pytest.raises(CallFailed) as caught:
        house.redeem(text, proof_token=token + "é")
    assert caught.value.field == "proof_token"
    assert token not in caught.value.message
    assert house.redeem(text, proof_token=token).verdict == redemption_pb.REDEEM_VERDICT_REDEEMED


_TERMINALS: Final = itertools.count(1_000)


def lock(house: House, version: types_pb.Version.ValueType = types_pb.VERSION_STATIC) -> str:
    issued = house.issue(version=version)
    wrong = f"{(int(issued.pin) + 1) % 1_000_000:06d}"
    # At a terminal of its own: one that has too many wrong PINs is slowed down.
    terminal_id = next(_TERMINALS)
    for n in range(3):
        request = house.redeem_request(issued.typed, pin=wrong, actor=f"clerk:{n}")
        request.terminal.terminal_id = terminal_id
        answer = house.client.call(house.client.redemption.Redeem, request)
    assert answer.verdict == redemption_pb.REDEEM_VERDICT_LOCKED
    return issued.uid


def decide(house: House, uid: str, decision: str, **fields: Any) -> review_pb.DecideResponse:
    given: Any = {"request_id": house.request_id(), "actor": "ops:ann", **fields}
    request = review_pb.DecideRequest(
        mall_id=MALL, uid=uid, decision=review_pb.Decision.Value(f"DECISION_{decision}"), **given
    )
    return house.client.call(house.client.reviews.Decide, request)


def all_reviews(house: House, page_size: int = 0) -> list[review_pb.Review]:
    found: list[review_pb.Review] = []
    token = ""
    while True:
        request = review_pb.ListReviewsRequest(mall_id=MALL, page_size=page_size, page_token=token)
        page = house.client.call(house.client.reviews.ListReviews, request)
        assert not page_size or len(page.reviews) <= page_size
        found += page.reviews
        token = page.next_page_token
        if not token:
            return found


def test_reviews_show_the_tries_and_end_with_a_decision(house: House) -> None:
    uids = [lock(house) for _ in range(5)]
    listed = {one.code.uid: one for one in all_reviews(house)}
    assert listed.keys() >= set(uids)
    assert [one.code.uid for one in all_reviews(house, page_size=2)] == list(listed)
    review = listed[uids[0]]
    assert review.review_id == review.code.review_id != ""
    assert (review.code.state, review.code.tries) == (types_pb.CODE_STATE_LOCKED, 3)
    assert [one.actor for one in review.evidence] == ["clerk:0", "clerk:1", "clerk:2"]
    for one in review.evidence:
        assert one.redeem_verdict == redemption_pb.REDEEM_VERDICT_PIN_WRONG
        assert (one.store_id, one.distance_bucket) == (STORE, 0)
        assert one.terminal_id >= 1_000
        assert review.code.issued_at_ms <= one.at_ms <= review.locked_at_ms
    # Neither coordinates nor the PIN that was tried are kept.
    assert "121.4" not in str(review)

    request_id = house.request_id()
    approved = decide(house, uids[0], "APPROVE", request_id=request_id, reason="顾客记错")
    assert approved.verdict == review_pb.REVIEW_VERDICT_APPROVED
    assert decide(house, uids[0], "APPROVE", request_id=request_id).replayed
    assert decide(house, uids[1], "REDEEM").lines[0].count == 1
    decide(house, uids[2], "VOID")
    assert decide(house, uids[3], "VOID", actor="clerk:1").verdict == review_pb.REVIEW_VERDICT_OWN_TRY
    assert [get(house, uid).state for uid in uids] == [
        types_pb.CODE_STATE_LIVE,
        types_pb.CODE_STATE_REDEEMED,
        types_pb.CODE_STATE_VOIDED,
        types_pb.CODE_STATE_LOCKED,
        types_pb.CODE_STATE_LOCKED,
    ]
    still = {one.code.uid for one in all_reviews(house)}
    assert still & set(uids) == set(uids[3:])
    record = get(house, uids[0])
    assert (record.tries, record.review_id) == (0, "")


def test_a_customer_who_is_far_away_uses_up_tries_at_render(house: House) -> None:
    sku_id = 230
    put_catalogue(house, store_pb.CatalogueEntry(mall_id=MALL, sku_id=sku_id, name="远方"))
    receive(house, 5, sku_id=sku_id)
    put_policies(
        house,
        store_pb.Policy(
            level=store_pb.POLICY_LEVEL_SKU,
            mall_id=MALL,
            sku_id=sku_id,
            customer_location=store_pb.LOCATION_RULE_OPTIONAL,
        ),
    )
    uid = house.issue(lines=[types_pb.Line(sku_id=sku_id, count=1)]).uid

    def render(**fields: Any) -> code_pb.RenderResponse:
        given: Any = {"position": FAR_AWAY, "request_id": house.request_id(), **fields}
        return house.client.call(
            house.client.codes.Render, code_pb.RenderRequest(mall_id=MALL, uid=uid, **given)
        )

    with pytest.raises(CallFailed) as caught:
        render(request_id="")
    assert caught.value.field == "request_id"
    once = house.request_id()
    assert [render(request_id=once).tries_left for _ in range(3)] == [2, 2, 2]
    assert render(position=AT_STORE).verdict == code_pb.RENDER_VERDICT_RENDERED
    assert render(actor="app:9").tries_left == 1
    locked = render(actor="app:9")
    assert locked.verdict == code_pb.RENDER_VERDICT_LOCKED
    assert locked.review_id in locked.message_zh
    assert not locked.payloads
    (review,) = [one for one in all_reviews(house) if one.code.uid == uid]
    assert review.review_id == locked.review_id
    last = review.evidence[-1]
    assert last.render_verdict == code_pb.RENDER_VERDICT_OUT_OF_RANGE
    assert (last.terminal_id, last.actor) == (0, "app:9")
    assert last.distance_bucket > 0


def test_reviews_of_what_is_not_there(house: House) -> None:
    for request, field in (
        (review_pb.ListReviewsRequest(mall_id=999), "mall_id"),
        (review_pb.ListReviewsRequest(mall_id=MALL, page_size=201), "page_size"),
        (review_pb.ListReviewsRequest(mall_id=MALL, page_token="x"), "page_token"),
    ):
        with pytest.raises(CallFailed) as caught:
            house.client.call(house.client.reviews.ListReviews, request)
        assert (caught.value.code, caught.value.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    others = review_pb.ListReviewsRequest(mall_id=OTHER_MALL)
    assert not house.client.call(house.client.reviews.ListReviews, others).reviews
    with pytest.raises(CallFailed) as caught:
        decide(house, "0" * 16, "VOID", actor="")
    assert caught.value.field == "actor"


# --- stock ---------------------------------------------------------------------------------------------------------
def test_a_transfer_moves_units_once(house: House) -> None:
    before = [house.figures(CUP, store_id).on_hand for store_id in (STORE, NEAR_STORE)]
    request = stock_pb.TransferStockRequest(
        mall_id=MALL,
        request_id=house.request_id(),
        from_store_id=STORE,
        to_store_id=NEAR_STORE,
        sku_id=CUP,
        count=30,
        actor="warehouse:1",
    )
    first = house.client.call(house.client.stock.TransferStock, request)
    assert (first.verdict, first.figures.on_hand) == (
        stock_pb.TRANSFER_VERDICT_TRANSFERRED,
        before[0] - 30,
    )
    assert house.client.call(house.client.stock.TransferStock, request).replayed
    after = [house.figures(CUP, store_id).on_hand for store_id in (STORE, NEAR_STORE)]
    assert after == [before[0] - 30, before[1] + 30]
    request.to_store_id = STORE
    with pytest.raises(CallFailed) as caught:
        house.client.call(house.client.stock.TransferStock, request)
    assert caught.value.field == "to_store_id"


def test_figures_say_their_tier(house: House) -> None:
    sku_id = 231
    put_catalogue(house, store_pb.CatalogueEntry(mall_id=MALL, sku_id=sku_id, name="紧俏"))
    receive(house, 25, sku_id=sku_id)
    assert house.figures(sku_id).tier == types_pb.STOCK_TIER_NORMAL
    request = stock_pb.SetBaselineRequest(
        mall_id=MALL, request_id=house.request_id(), store_id=STORE, sku_id=sku_id, baseline=100
    )
    outcome = house.client.call(house.client.stock.SetBaseline, request).outcome
    assert outcome.figures.tier == house.figures(sku_id).tier == types_pb.STOCK_TIER_TIGHT
    bound = house.issue(lines=[types_pb.Line(sku_id=sku_id, count=1)])
    assert get(house, bound.uid).windows_bind
    assert not get(house, house.issue().uid).windows_bind


# --- set-up --------------------------------------------------------------------------------------------------------
WEEK = store_pb.Store(
    store_id=STORE,
    name="徐家汇店",
    mall_ids=[MALL],
    latitude_deg=31.1955,
    longitude_deg=121.4365,
    datum=types_pb.DATUM_GCJ02,
    radius_m=500,
    terminal_location=store_pb.TERMINAL_LOCATION_INHERIT,
    time_zone="Asia/Shanghai",
    region="华东",
    factory=True,
    opening_hours=[
        store_pb.Hours(from_min=540, to_min=1320, weekdays=[1, 2, 3, 4, 5]),
        store_pb.Hours(from_min=600, to_min=120, weekdays=[6, 7]),
    ],
    pickup_windows=[store_pb.Window(from_min=540, to_min=660, name="早市")],
    special_days=[
        store_pb.SpecialDay(day="2030-10-01", closed=True),
        store_pb.SpecialDay(
            day="2030-10-02",
            opening_hours=store_pb.DayHours(),
            pickup_windows=store_pb.DayWindows(spans=[store_pb.Window(from_min=0, to_min=1440, name="全天")]),
        ),
        store_pb.SpecialDay(day="2030-10-03", pickup_windows=store_pb.DayWindows()),
    ],
)


def test_hours_windows_and_special_days_come_back_as_they_were_put(house: House) -> None:
    request = store_pb.GetStoreRequest(store_id=STORE)
    before = house.client.call(house.client.stores.GetStore, request).store
    try:
        put = store_pb.PutStoresRequest(stores=[WEEK], request_id=house.request_id())
        house.client.call(house.client.stores.PutStores, put)
        assert house.client.call(house.client.stores.GetStore, request).store == WEEK
    finally:
        put = store_pb.PutStoresRequest(stores=[before], request_id=house.request_id())
        house.client.call(house.client.stores.PutStores, put)


def changed(message: Any, path: str, value: Any) -> Any:
    """A copy of a message with one field set, by a path such as `opening_hours[1].to_min`."""
    copy = type(message)()
    copy.CopyFrom(message)
    *owners, last = path.replace("[", ".").replace("]", "").split(".")
    owner: Any = copy
    for name in owners:
        owner = owner[int(name)] if name.isdigit() else getattr(owner, name)
    if isinstance(value, list):
        del getattr(owner, last)[:]
        getattr(owner, last).extend(value)
    elif hasattr(value, "DESCRIPTOR"):
        getattr(owner, last).CopyFrom(value)
    else:
        setattr(owner, last, value)
    return copy


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("opening_hours[1].to_min", 600),
        ("opening_hours[0].from_min", 1440),
        ("pickup_windows[0].to_min", 1441),
        ("pickup_windows[0].name", ""),
        ("special_days[0].day", "2030-02-30"),
        ("special_days[1].day", "2030-10-01"),
        ("special_days[1].opening_hours.spans", [store_pb.Hours(from_min=5, to_min=5)]),
        ("region", ""),
        ("terminal_location", 9),
        ("opening_hours[1].weekdays", [8]),
    ],
)
def test_a_misshapen_rule_of_a_store_names_its_place(house: House, path: str, value: Any) -> None:
    put = store_pb.PutStoresRequest(stores=[changed(WEEK, path, value)], request_id=house.request_id())
    with pytest.raises(CallFailed) as caught:
        house.client.call(house.client.stores.PutStores, put)
    failed = caught.value
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    expected = {
        "special_days[1].day": "special_days",
        "special_days[1].opening_hours.spans": "special_days[1].opening_hours.spans[0].to_min",
        "opening_hours[1].weekdays": "opening_hours[1].weekdays[0]",
    }.get(path, path)
    assert failed.field == f"stores[0].{expected}"
    assert failed.message.startswith(failed.field)
    assert "expected" in failed.message


EVERYTHING = store_pb.Policy(
    level=store_pb.POLICY_LEVEL_DEPLOYMENT,
    code_ttl_s=3_600,
    hold_s=600,
    payload_life_s=90,
    reversal_window_s=0,
    cycles_max=3,
    terminal_location=store_pb.LOCATION_RULE_OPTIONAL,
    customer_location=store_pb.LOCATION_RULE_OFF,
    pickup_mode=types_pb.PICKUP_MODE_DYNAMIC,
    customer_proof=store_pb.PROOF_RULE_OFF,
    proof_methods=[types_pb.PROOF_METHOD_FACE, types_pb.PROOF_METHOD_ID_DOCUMENT],
    tiers=store_pb.StockTiers(
        tight_percent=40, red_percent=20, closed_percent=10, emergency_percent=0, hysteresis_percent=3
    ),
)


def all_policies(house: House, page_size: int = 0) -> list[store_pb.Policy]:
    found: list[store_pb.Policy] = []
    token = ""
    while True:
        request = store_pb.ListPoliciesRequest(page_size=page_size, page_token=token)
        page = house.client.call(house.client.stores.ListPolicies, request)
        found += page.policies
        token = page.next_page_token
        if not token:
            return found


def test_policies_come_back_as_they_were_put_page_by_page_and_rule(house: House) -> None:
    before = all_policies(house)
    of_store = store_pb.Policy(level=store_pb.POLICY_LEVEL_STORE, store_id=NEAR_STORE, code_ttl_s=120)
    of_sku = store_pb.Policy(
        level=store_pb.POLICY_LEVEL_SKU,
        mall_id=MALL,
        sku_id=RARE_SKU,
        pickup_mode=types_pb.PICKUP_MODE_VALUABLE,
    )
    put_policies(house, of_sku, EVERYTHING, of_store)
    try:
        listed = all_policies(house)
        assert listed[:2] == [EVERYTHING, of_store]
        assert of_sku in listed
        assert all_policies(house, page_size=1) == listed
        issued = house.issue()
        assert issued.expires_at_ms - issued.issued_at_ms == pytest.approx(3_600_000, abs=1_000)
        valuable = house.issue(version=types_pb.VERSION_VALUABLE).uid
        assert not get(house, valuable).proof_needed
        assert (
            house.redeem(house.render(valuable).payloads[0].text).verdict
            == redemption_pb.REDEEM_VERDICT_REDEEMED
        )
        near = house.issue(store_id=NEAR_STORE)
        assert near.expires_at_ms - near.issued_at_ms == pytest.approx(120_000, abs=1_000)
    finally:
        put_policies(
            house,
            store_pb.Policy(level=store_pb.POLICY_LEVEL_DEPLOYMENT),
            store_pb.Policy(level=store_pb.POLICY_LEVEL_STORE, store_id=NEAR_STORE),
            store_pb.Policy(level=store_pb.POLICY_LEVEL_SKU, mall_id=MALL, sku_id=RARE_SKU),
        )
    assert all_policies(house) == before


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("level", 0, "level"),
        ("level", 9, "level"),
        ("store_id", STORE, "store_id"),
        ("code_ttl_s", 59, "code_ttl_s"),
        ("code_ttl_s", -1, "code_ttl_s"),
        ("hold_s", 0, "hold_s"),
        ("cycles_max", 11, "cycles_max"),
        ("customer_location", 7, "customer_location"),
        ("pickup_mode", 4, "pickup_mode"),
        ("customer_proof", 3, "customer_proof"),
        ("proof_methods", [types_pb.PROOF_METHOD_FACE], "proof_methods"),
        ("proof_methods", [2, 2], "proof_methods"),
        ("proof_methods", [2, 4], "proof_methods[1]"),
        ("tiers.red_percent", 39, "tiers.tight_percent"),
        ("tiers", store_pb.StockTiers(tight_percent=30), "tiers.red_percent"),
    ],
)
def test_a_misshapen_policy_names_its_field(house: House, path: str, value: Any, field: str) -> None:
    message = changed(EVERYTHING, path, value)
    with pytest.raises(CallFailed) as caught:
        put_policies(house, message)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.field == f"policies[0].{field}"
    assert caught.value.message.startswith(caught.value.field)


def test_policies_of_what_is_not_there_and_twice(house: House) -> None:
    nowhere = store_pb.Policy(level=store_pb.POLICY_LEVEL_STORE, store_id=999, hold_s=60)
    with pytest.raises(CallFailed) as caught:
        put_policies(house, nowhere)
    assert caught.value.field == "store_id"
    with pytest.raises(CallFailed) as caught:
        put_policies(house, EVERYTHING, EVERYTHING)
    assert caught.value.field == "policies[1]"
    for token in ("x", "sku:1:1"):
        request = store_pb.ListPoliciesRequest(page_token=token)
        with pytest.raises(CallFailed) as caught:
            house.client.call(house.client.stores.ListPolicies, request)
        assert caught.value.field == "page_token"


def test_providers_come_back_as_they_were_put_and_misshapen_ones_name_their_field(house: House) -> None:
    client = house.client
    first = provider_message(proofs.provider())
    second = changed(first, "provider_id", "other.example")
    second.methods[:] = [types_pb.PROOF_METHOD_TWO_STAFF]
    second.revoked = True

    def put(*providers: store_pb.Provider) -> None:
        request = store_pb.PutProvidersRequest(providers=providers, request_id=house.request_id())
        client.call(client.stores.PutProviders, request)

    put(second)
    page = client.call(client.stores.ListProviders, store_pb.ListProvidersRequest(page_size=1))
    assert list(page.providers) == [first]
    request = store_pb.ListProvidersRequest(page_token=page.next_page_token)
    rest = client.call(client.stores.ListProviders, request)
    assert (list(rest.providers), rest.next_page_token) == ([second], "")
    for path, value in (
        ("provider_id", "UPPER"),
        ("name", ""),
        ("methods", [0]),
        ("keys[0].x", "AAAA"),
        ("keys[0].alg", 0),
        ("keys[0].y", first.keys[0].x),
        ("keys", []),
    ):
        with pytest.raises(CallFailed) as caught:
            put(changed(first, path, value))
        expected = {"methods": "methods[0]"}.get(path, path)
        assert caught.value.field == f"providers[0].{expected}"
        assert caught.value.message.startswith(caught.value.field)


def test_a_bundle_of_bundles_is_refused(house: House) -> None:
    nested = store_pb.CatalogueEntry(
        mall_id=MALL, sku_id=240, name="套中套", parts=[types_pb.Line(sku_id=BUNDLE, count=1)]
    )
    with pytest.raises(CallFailed) as caught:
        put_catalogue(house, nested)
    assert caught.value.field == "parts[0].sku_id"
    with pytest.raises(CallFailed) as caught:
        put_catalogue(house, changed(nested, "parts", [types_pb.Line(sku_id=SKU, count=0)]))
    assert caught.value.field == "entries[0].parts[0].count"
    listed = house.client.call(house.client.stores.ListCatalogue, store_pb.ListCatalogueRequest(mall_id=MALL))
    (bundle,) = [entry for entry in listed.entries if entry.sku_id == BUNDLE]
    assert [(part.sku_id, part.count) for part in bundle.parts] == [(SKU, 1), (CUP, 4)]
    (static,) = [entry for entry in listed.entries if entry.sku_id == STATIC_SKU]
    assert static.pickup_mode == types_pb.PICKUP_MODE_STATIC


def test_the_nearest_stores_that_can_serve_an_order(house: House) -> None:
    client = house.client
    here = types_pb.Position(latitude_deg=31.1964, longitude_deg=121.4365, datum=types_pb.DATUM_GCJ02)

    def find(**fields: Any) -> list[store_pb.NearbyStore]:
        given: Any = {"mall_id": MALL, "position": here, **fields}
        response = client.call(client.stores.NearestStores, store_pb.NearestStoresRequest(**given))
        return list(response.stores)

    found = find()
    assert [one.store.store_id for one in found] == [STORE, NEAR_STORE]
    assert CLOSED_STORE not in [one.store.store_id for one in found]
    assert found[0].distance_m == pytest.approx(99.8, abs=1)
    assert found[0].open
    served = find(lines=[types_pb.Line(sku_id=BUNDLE, count=1)])
    assert served[0].store.name == "徐家汇店"
    assert [one.sku_id for one in served[0].figures] == [SKU, CUP]
    assert find(lines=[types_pb.Line(sku_id=RARE_SKU, count=1)]) == []
    assert len(find(stores_max=1)) == 1
    assert find(distance_m_max=50) == []
    for fields, field in (
        ({"position": None}, "position"),
        ({"stores_max": 51}, "stores_max"),
        ({"distance_m_max": 100_001}, "distance_m_max"),
        ({"lines": [types_pb.Line(sku_id=999, count=1)]}, "lines[0].sku_id"),
        ({"mall_id": 999}, "mall_id"),
        ({"channel": 9}, "channel"),
    ):
        with pytest.raises(CallFailed) as caught:
            find(**fields)
        assert caught.value.field == field


def test_a_retried_put_gets_the_first_version(house: House) -> None:
    request = store_pb.PutPoliciesRequest(
        policies=[store_pb.Policy(level=store_pb.POLICY_LEVEL_DEPLOYMENT, hold_s=901)],
        request_id=house.request_id(),
    )
    versions = [
        house.client.call(house.client.stores.PutPolicies, request).control_version
        for _ in itertools.repeat(None, 2)
    ]
    assert versions[0] == versions[1]
    put_policies(house, store_pb.Policy(level=store_pb.POLICY_LEVEL_DEPLOYMENT))
