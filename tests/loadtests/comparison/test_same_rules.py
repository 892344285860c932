"""The comparison does the same work: asked the same, both stacks answer the same."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import redis

from loadtests.comparison import store
from loadtests.stacks import Comparison, Ours, Stack
from loadtests.supply import FIRST_SKU, FIRST_STORE, MALL, Supply, place
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import code_service_pb2_grpc as code_grpc
from pickgate.v1 import redemption_service_pb2 as pb
from pickgate.v1 import redemption_service_pb2_grpc as redemption_grpc
from pickgate.v1 import stock_service_pb2 as stock_pb
from pickgate.v1 import stock_service_pb2_grpc as stock_grpc
from pickgate.v1 import types_pb2 as types_pb

BOUND_S = 30.0


@dataclass
class Counter:
    """Calls of one stack."""

    stack: Stack
    redemption: redemption_grpc.RedemptionServiceStub
    codes: code_grpc.CodeServiceStub
    stock: stock_grpc.StockServiceStub

    def issue(self, **fields: object) -> code_pb.IssueResponse:
        asked = code_pb.IssueRequest(
            mall_id=MALL,
            request_id=str(uuid.uuid4()),
            store_id=FIRST_STORE,
            order_id="O-1",
            lines=[types_pb.Line(sku_id=FIRST_SKU, count=2)],
            version=types_pb.VERSION_DYNAMIC,
            suite=types_pb.SUITE_AES,
        )
        for name, value in fields.items():
            setattr(asked, name, value)
        return self.codes.Issue(asked, timeout=BOUND_S)

    def show(self) -> str:
        uid = self.issue().uid
        return self.render(uid).payloads[0].text

    def render(self, uid: str) -> code_pb.RenderResponse:
        return self.codes.Render(code_pb.RenderRequest(mall_id=MALL, uid=uid), timeout=BOUND_S)

    def request(
        self, code: str, *, away_deg: float = 0.0, accuracy_m: float = 10, store_id: int = FIRST_STORE
    ) -> pb.RedeemRequest:
        latitude, longitude = place(store_id)
        return pb.RedeemRequest(
            terminal=types_pb.Terminal(mall_id=MALL, store_id=store_id, terminal_id=3),
            request_id=str(uuid.uuid4()),
            code=code,
            position=types_pb.Position(
                latitude_deg=latitude + away_deg,
                longitude_deg=longitude,
                accuracy_m=accuracy_m,
                datum=types_pb.DATUM_GCJ02,
            ),
        )

    def redeem(self, request: pb.RedeemRequest) -> pb.RedeemResponse:
        return self.redemption.Redeem(request, timeout=BOUND_S)

    def figures(self) -> tuple[int, int]:
        asked = stock_pb.ReadStockRequest(mall_id=MALL, store_id=FIRST_STORE, sku_ids=[FIRST_SKU])
        [found] = self.stock.ReadStock(asked, timeout=BOUND_S).figures
        return found.on_hand, found.reserved


@pytest.fixture(scope="module", params=[Ours, Comparison])
def counter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Counter]:
    kind: type[Stack] = request.param
    with kind(tmp_path_factory.mktemp("stack"), tcp=False) as stack, Supply(stack.address) as supply:
        supply.furnish()
        with grpc.insecure_channel(stack.address) as channel:
            yield Counter(
                stack,
                redemption_grpc.RedemptionServiceStub(channel),
                code_grpc.CodeServiceStub(channel),
                stock_grpc.StockServiceStub(channel),
            )


def test_redeemed_once_and_the_retry_gets_the_same_answer(counter: Counter) -> None:
    on_hand, reserved = counter.figures()
    code = counter.show()
    assert counter.figures() == (on_hand, reserved + 2)
    request = counter.request(code)
    first = counter.redeem(request)
    assert first.verdict == pb.REDEEM_VERDICT_REDEEMED
    assert [(line.sku_id, line.count, line.left) for line in first.lines] == [(FIRST_SKU, 2, 0)]
    assert (first.terminal_id, first.order_id, first.replayed) == (3, "O-1", False)
    assert first.event_id
    assert first.distance_bucket == 0
    assert counter.figures() == (on_hand - 2, reserved)
    again = counter.redeem(request)
    assert again.replayed
    assert (again.verdict, again.event_id, again.at_ms) == (first.verdict, first.event_id, first.at_ms)
    other = counter.redeem(counter.request(code))
    assert (other.verdict, other.at_ms, other.terminal_id) == (
        pb.REDEEM_VERDICT_ALREADY_REDEEMED,
        first.at_ms,
        3,
    )
    assert not other.event_id
    assert counter.figures() == (on_hand - 2, reserved)
    assert counter.render(first.uid).verdict == code_pb.RENDER_VERDICT_ALREADY_REDEEMED
    asked = code_pb.GetCodeRequest(mall_id=MALL, uid=first.uid)
    assert counter.codes.GetCode(asked, timeout=BOUND_S).code.state == types_pb.CODE_STATE_REDEEMED


def test_a_request_id_with_another_body(counter: Counter) -> None:
    request = counter.request(counter.show())
    counter.redeem(request)
    request.code = counter.show()
    with pytest.raises(grpc.RpcError) as raised:
        counter.redeem(request)
    assert raised.value.code() is grpc.StatusCode.ALREADY_EXISTS
    asked = code_pb.IssueRequest(
        mall_id=MALL, request_id=str(uuid.uuid4()), store_id=FIRST_STORE, order_id="O-2",
        lines=[types_pb.Line(sku_id=FIRST_SKU, count=1)], version=types_pb.VERSION_DYNAMIC, suite=types_pb.SUITE_AES,
    )  # fmt: skip
    first = counter.codes.Issue(asked, timeout=BOUND_S)
    again = counter.codes.Issue(asked, timeout=BOUND_S)
    assert (again.uid, again.replayed) == (first.uid, True)
    asked.order_id = "O-3"
    with pytest.raises(grpc.RpcError) as raised:
        counter.codes.Issue(asked, timeout=BOUND_S)
    assert raised.value.code() is grpc.StatusCode.ALREADY_EXISTS


def test_every_refusal_in_its_order(counter: Counter) -> None:
    code = counter.show()
    far = 0.02  # some 2 km
    no_position = counter.request(code)
    no_position.ClearField("position")
    more = counter.request(code)
    more.lines.add(sku_id=FIRST_SKU, count=3)
    on_hand, reserved = counter.figures()
    for request, verdict in (
        (
            counter.request(code[:40] + ("0" if code[40] != "0" else "1") + code[41:]),
            pb.REDEEM_VERDICT_INVALID_CODE,
        ),
        (counter.request(code.lower()), pb.REDEEM_VERDICT_INVALID_CODE),
        (counter.request(code, store_id=FIRST_STORE + 1), pb.REDEEM_VERDICT_WRONG_STORE),
        (counter.request(code, store_id=FIRST_STORE + 1, away_deg=far), pb.REDEEM_VERDICT_WRONG_STORE),
        (counter.request(code, away_deg=far), pb.REDEEM_VERDICT_OUT_OF_RANGE),
        (counter.request(code, accuracy_m=201), pb.REDEEM_VERDICT_LOCATION_UNRELIABLE),
        (no_position, pb.REDEEM_VERDICT_LOCATION_REQUIRED),
        (more, pb.REDEEM_VERDICT_NOTHING_LEFT),
    ):
        answer = counter.redeem(request)
        assert pb.RedeemVerdict.Name(answer.verdict) == pb.RedeemVerdict.Name(verdict)
        assert not answer.event_id
    assert counter.figures() == (on_hand, reserved)
    assert counter.redeem(counter.request(code)).verdict == pb.REDEEM_VERDICT_REDEEMED


def test_a_code_in_two_parts(counter: Counter) -> None:
    code = counter.show()
    part = counter.request(code)
    part.lines.add(sku_id=FIRST_SKU, count=1)
    answer = counter.redeem(part)
    assert (answer.verdict, answer.lines[0].left) == (pb.REDEEM_VERDICT_REDEEMED, 1)
    answer = counter.redeem(counter.request(code))
    assert (answer.verdict, answer.lines[0].count, answer.lines[0].left) == (pb.REDEEM_VERDICT_REDEEMED, 1, 0)


def test_inspect_says_what_redeem_would_and_changes_nothing(counter: Counter) -> None:
    code = counter.show()

    def look(**fields: float) -> str:
        request = counter.request(code, **fields)  # type: ignore[arg-type]
        asked = pb.InspectRequest(terminal=request.terminal, code=code, position=request.position)
        return pb.InspectVerdict.Name(counter.redemption.Inspect(asked, timeout=BOUND_S).verdict)

    assert look() == "INSPECT_VERDICT_REDEEMABLE"
    assert look(away_deg=0.02) == "INSPECT_VERDICT_OUT_OF_RANGE"
    assert look() == "INSPECT_VERDICT_REDEEMABLE"
    counter.redeem(counter.request(code))
    assert look() == "INSPECT_VERDICT_ALREADY_REDEEMED"


def test_bad_input_is_refused(counter: Counter) -> None:
    short = counter.request(counter.show())
    short.request_id = "short"
    elsewhere = counter.request(counter.show())
    elsewhere.terminal.store_id = 999_999
    with pytest.raises(grpc.RpcError) as raised:
        counter.redeem(short)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert counter.issue(store_id=999_999).verdict == code_pb.ISSUE_VERDICT_UNKNOWN_STORE
    with pytest.raises(grpc.RpcError) as raised:
        counter.codes.GetCode(code_pb.GetCodeRequest(mall_id=MALL, uid="0" * 16), timeout=BOUND_S)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


def test_nothing_is_promised_that_is_not_there(counter: Counter) -> None:
    asked = code_pb.IssueRequest(
        mall_id=MALL, request_id=str(uuid.uuid4()), store_id=FIRST_STORE, order_id="O-9", version=types_pb.VERSION_DYNAMIC,
        suite=types_pb.SUITE_AES,
    )  # fmt: skip
    for sku_id in (FIRST_SKU, FIRST_SKU + 1):
        asked.lines.add(sku_id=sku_id, count=1)
    before = counter.figures()
    assert counter.codes.Issue(asked, timeout=BOUND_S).verdict == code_pb.ISSUE_VERDICT_ISSUED
    del asked.lines[:]
    asked.lines.add(sku_id=4_000_000, count=1)
    asked.request_id = str(uuid.uuid4())
    assert counter.codes.Issue(asked, timeout=BOUND_S).verdict == code_pb.ISSUE_VERDICT_UNKNOWN_SKU
    assert counter.figures() == (before[0], before[1] + 1)


def test_the_books_agree_after_all_that(counter: Counter) -> None:
    assert counter.stack.audit([], None).findings == []


def test_a_code_whose_time_is_over_gives_its_stock_back(tmp_path: Path) -> None:
    """The comparison alone: ours has tests of its own. Its record is made old in the store, the sweep does the rest."""
    with Comparison(tmp_path, tcp=False) as stack, Supply(stack.address) as supply:
        supply.furnish()
        [uid] = supply.codes(1).uids
        with redis.Redis(
            unix_socket_path=stack.store.removeprefix("unix://"), decode_responses=True
        ) as client:
            client.hset(f"code:{uid.hex()}", "expires_at_ms", 1)
            client.zadd("expiries", {uid.hex(): 1})
            give_up = time.monotonic() + BOUND_S
            while client.hget(f"code:{uid.hex()}", "state") != "expired":
                assert time.monotonic() < give_up
                time.sleep(0.05)
            assert client.ttl(f"code:{uid.hex()}") > 0
        audit = stack.audit([], 1)
        assert audit.findings == []
        assert audit.summary()["expired"] == 1


def test_the_settings_are_those_of_the_embedded_store() -> None:
    from engine.state import server

    ours = {**server._SETTINGS, "appendonly": "yes"}
    assert {name: ours[name] for name in store.SETTINGS} == store.SETTINGS
