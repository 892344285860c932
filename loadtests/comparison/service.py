"""The gRPC services of the comparison, on grpc.aio."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import Message
from grpc import aio
from redis.exceptions import RedisError

from loadtests.comparison import place
from loadtests.comparison.codes import Codes, RequestIdReused, now_ms
from loadtests.comparison.payload import Claims, Key
from loadtests.comparison.setup import Setup
from loadtests.comparison.wording import WORDS
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import code_service_pb2_grpc as code_grpc
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import redemption_service_pb2_grpc as redemption_grpc
from pickgate.v1 import stock_service_pb2 as stock_pb
from pickgate.v1 import stock_service_pb2_grpc as stock_grpc
from pickgate.v1 import store_service_pb2 as store_pb
from pickgate.v1 import store_service_pb2_grpc as store_grpc
from pickgate.v1 import types_pb2 as types_pb

SKEW_S: Final = 5
BATCH_AT_ONCE: Final = 64
"""Items of a bulk issue that are worked on at the same time: as many as there are connections to the store."""
STATES: Final = {
    "live": types_pb.CODE_STATE_LIVE,
    "partly": types_pb.CODE_STATE_PARTLY,
    "redeemed": types_pb.CODE_STATE_REDEEMED,
    "voided": types_pb.CODE_STATE_VOIDED,
    "expired": types_pb.CODE_STATE_EXPIRED,
}
_INSPECT_OF_STATE: Final = {
    "redeemed": redemption_pb.INSPECT_VERDICT_ALREADY_REDEEMED,
    "voided": redemption_pb.INSPECT_VERDICT_VOIDED,
    "expired": redemption_pb.INSPECT_VERDICT_EXPIRED,
}

Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)
Context = aio.ServicerContext[Any, Any]


class Refused(Exception):
    """A call that ends with a status other than OK."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def _invalid(message: str) -> Refused:
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, message)


async def _answer(context: Context, work: Coroutine[Any, Any, R]) -> R:
    """Await a call's work; what it raises becomes a status."""
    try:
        return await work
    except Refused as refused:
        await context.abort(refused.code, refused.message)
    except RequestIdReused:
        await context.abort(grpc.StatusCode.ALREADY_EXISTS, "the request_id was used with another body")
    except RedisError:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the store can't be reached; retry")
    raise AssertionError("abort raises")


def _check_request_id(request_id: str) -> None:
    if not 8 <= len(request_id) <= 64 or not request_id.isascii() or not request_id.isprintable():
        raise _invalid("request_id must have 8 .. 64 printable ASCII characters")


class Redemption(redemption_grpc.RedemptionServiceServicer):
    """Redeem and Inspect."""

    def __init__(self, codes: Codes, setup: Setup, key: Key) -> None:
        self._codes = codes
        self._setup = setup
        self._key = key

    async def Redeem(  # noqa: N802
        self, request: redemption_pb.RedeemRequest, context: Context
    ) -> redemption_pb.RedeemResponse:
        """See the contract."""
        return await _answer(context, self._redeem(request))

    async def Inspect(  # noqa: N802
        self, request: redemption_pb.InspectRequest, context: Context
    ) -> redemption_pb.InspectResponse:
        """See the contract."""
        return await _answer(context, self._inspect(request))

    async def _redeem(self, request: redemption_pb.RedeemRequest) -> redemption_pb.RedeemResponse:
        _check_request_id(request.request_id)
        store = self._store(request.terminal)
        at_ms = now_ms()
        claims = self._key.open(request.code)
        if claims is None:
            return _redeemed(
                request, "", at_ms, {"verdict": redemption_pb.REDEEM_VERDICT_INVALID_CODE}, place.NO_BUCKET
            )
        against, bucket = _look(store, request)
        uid = claims.uid.hex()
        facts = await self._codes.redeem(
            uid,
            at_ms=at_ms,
            mall_id=request.terminal.mall_id,
            store_id=request.terminal.store_id,
            terminal_id=request.terminal.terminal_id,
            request_id=request.request_id,
            wanted=[(line.sku_id, line.count) for line in request.lines],
            stale=self._is_stale(claims, at_ms),
            place=redemption_pb.REDEEM_VERDICT_STORE_CLOSED if store.closed and not against else against,
            bucket=bucket,
            actor=request.actor,
        )
        return _redeemed(request, uid, at_ms, facts, bucket)

    async def _inspect(self, request: redemption_pb.InspectRequest) -> redemption_pb.InspectResponse:
        store = self._store(request.terminal)
        at_ms = now_ms()
        claims = self._key.open(request.code)
        if claims is None:
            return redemption_pb.InspectResponse(
                verdict=redemption_pb.INSPECT_VERDICT_INVALID_CODE, at_ms=at_ms
            )
        against, bucket = _look(store, request)
        record = await self._codes.record(claims.uid.hex())
        if not record:
            return redemption_pb.InspectResponse(
                verdict=redemption_pb.INSPECT_VERDICT_UNKNOWN_CODE, at_ms=at_ms
            )
        verdict = redemption_pb.INSPECT_VERDICT_REDEEMABLE
        if record["state"] in _INSPECT_OF_STATE:
            verdict = _INSPECT_OF_STATE[record["state"]]
        elif int(record["expires_at_ms"]) <= at_ms:
            verdict = redemption_pb.INSPECT_VERDICT_EXPIRED
        elif self._is_stale(claims, at_ms):
            verdict = redemption_pb.INSPECT_VERDICT_STALE_CODE
        elif int(record["store"]) != store.store_id:
            verdict = redemption_pb.INSPECT_VERDICT_WRONG_STORE
        elif against:
            verdict = redemption_pb.InspectVerdict.ValueType(against)
        answer = redemption_pb.InspectResponse(
            verdict=verdict,
            uid=claims.uid.hex(),
            order_id=record["order"],
            lines=_line_states(json.loads(record["lines"])),
            at_ms=at_ms,
            store_id=int(record["store"]),
            version=types_pb.VERSION_DYNAMIC,
            expires_at_ms=int(record["expires_at_ms"]),
        )
        if bucket != place.NO_BUCKET:
            answer.distance_bucket = bucket
        return answer

    def _store(self, terminal: types_pb.Terminal) -> store_pb.Store:
        store = self._setup.serves(terminal.mall_id, terminal.store_id)
        if store is None or not terminal.terminal_id:
            raise _invalid(f"terminal: store {terminal.store_id} does not serve mall {terminal.mall_id}")
        return store

    def _is_stale(self, claims: Claims, at_ms: int) -> bool:
        age_s = at_ms / 1000 - claims.stamp
        return not -SKEW_S <= age_s <= self._setup.payload_life_s + SKEW_S


def _look(
    store: store_pb.Store, request: redemption_pb.RedeemRequest | redemption_pb.InspectRequest
) -> tuple[int, int]:
    try:
        return place.look(store, request)
    except ValueError as error:
        raise _invalid(f"position: {error}") from None


def _line_states(lines: list[list[int]]) -> list[types_pb.LineState]:
    return [types_pb.LineState(sku_id=sku, count=count, left=left) for sku, count, left in lines]


def _redeemed(
    request: redemption_pb.RedeemRequest, uid: str, at_ms: int, facts: dict[str, Any], bucket: int
) -> redemption_pb.RedeemResponse:
    words = WORDS[facts["verdict"]]
    answer = redemption_pb.RedeemResponse(
        verdict=facts["verdict"],
        message_zh=words.zh,
        message_en=words.en,
        next_step=words.next_step,
        request_id=request.request_id,
        uid=uid,
        order_id=facts.get("order", ""),
        lines=_line_states(facts.get("lines", [])),
        at_ms=facts.get("at_ms", at_ms),
        terminal_id=facts.get("terminal", 0),
        sku_id=facts.get("sku", 0),
        store_id=facts.get("store", 0),
        event_id=facts.get("event", ""),
        replayed=facts.get("replayed", False),
    )
    if bucket != place.NO_BUCKET:
        answer.distance_bucket = bucket
    return answer


class CodeService(code_grpc.CodeServiceServicer):
    """Issue, IssueBatch, Render and GetCode."""

    def __init__(self, codes: Codes, setup: Setup, key: Key) -> None:
        self._codes = codes
        self._setup = setup
        self._key = key

    async def Issue(  # noqa: N802
        self, request: code_pb.IssueRequest, context: Context
    ) -> code_pb.IssueResponse:
        """See the contract."""
        return await _answer(context, self._issue(request))

    async def IssueBatch(  # noqa: N802
        self, request: code_pb.IssueBatchRequest, context: Context
    ) -> code_pb.IssueBatchResponse:
        """See the contract."""
        return await _answer(context, self._issue_batch(request))

    async def Render(  # noqa: N802
        self, request: code_pb.RenderRequest, context: Context
    ) -> code_pb.RenderResponse:
        """See the contract."""
        return await _answer(context, self._render(request))

    async def GetCode(  # noqa: N802
        self, request: code_pb.GetCodeRequest, context: Context
    ) -> code_pb.GetCodeResponse:
        """See the contract."""
        return await _answer(context, self._get(request))

    async def _issue(self, request: code_pb.IssueRequest) -> code_pb.IssueResponse:
        _check_request_id(request.request_id)
        if request.version != types_pb.VERSION_DYNAMIC or request.suite != types_pb.SUITE_AES:
            raise _invalid("version and suite: only DYNAMIC with AES is issued here")
        if not 1 <= len(request.lines) <= 32 or not request.order_id:
            raise _invalid("order_id and 1 .. 32 lines must be stated")
        if self._setup.serves(request.mall_id, request.store_id) is None:
            return code_pb.IssueResponse(
                verdict=code_pb.ISSUE_VERDICT_UNKNOWN_STORE, request_id=request.request_id
            )
        for line in request.lines:
            if (request.mall_id, line.sku_id) not in self._setup.catalogue:
                return code_pb.IssueResponse(
                    verdict=code_pb.ISSUE_VERDICT_UNKNOWN_SKU,
                    request_id=request.request_id,
                    sku_id=line.sku_id,
                )
        facts = await self._codes.issue(
            mall_id=request.mall_id,
            store_id=request.store_id,
            order_id=request.order_id,
            lines=[(line.sku_id, line.count) for line in request.lines],
            ttl_s=request.ttl_s or self._setup.code_ttl_s,
            request_id=request.request_id,
            channel=request.channel or types_pb.CHANNEL_ONLINE,
            amount_fen=request.amount_fen,
            actor=request.actor,
        )
        issued = facts["verdict"] == code_pb.ISSUE_VERDICT_ISSUED
        return code_pb.IssueResponse(
            verdict=facts["verdict"],
            message_zh="提货码已生成。" if issued else "库存不足。",
            message_en="Issued." if issued else "Not enough stock.",
            next_step=types_pb.NEXT_STEP_FINAL,
            request_id=request.request_id,
            uid=facts.get("uid", ""),
            issued_at_ms=facts.get("issued_at_ms", 0),
            expires_at_ms=facts.get("expires_at_ms", 0),
            sku_id=facts.get("sku", 0),
            event_id=facts.get("event", ""),
            replayed=facts["replayed"],
        )

    async def _issue_batch(self, request: code_pb.IssueBatchRequest) -> code_pb.IssueBatchResponse:
        turns = asyncio.Semaphore(BATCH_AT_ONCE)

        async def one(item: code_pb.IssueRequest) -> code_pb.IssueOutcome:
            async with turns:
                try:
                    return code_pb.IssueOutcome(response=await self._issue(item))
                except Refused as refused:
                    error = types_pb.ItemError(reason="INVALID_ARGUMENT", message=refused.message)
                except RequestIdReused:
                    error = types_pb.ItemError(reason="REQUEST_ID_REUSED")
                return code_pb.IssueOutcome(error=error)

        return code_pb.IssueBatchResponse(outcomes=await asyncio.gather(*map(one, request.requests)))

    async def _render(self, request: code_pb.RenderRequest) -> code_pb.RenderResponse:
        record = await self._codes.record(request.uid)
        if not record or int(record["mall"]) != request.mall_id:
            return code_pb.RenderResponse(verdict=code_pb.RENDER_VERDICT_UNKNOWN_CODE)
        code = _code(request.uid, record)
        refusal = {
            "redeemed": code_pb.RENDER_VERDICT_ALREADY_REDEEMED,
            "voided": code_pb.RENDER_VERDICT_VOIDED,
            "expired": code_pb.RENDER_VERDICT_EXPIRED,
        }.get(record["state"])
        if refusal is not None:
            return code_pb.RenderResponse(verdict=refusal, code=code)
        stamp = now_ms() // 1000
        several = len(code.lines) > 1
        claims = Claims(
            bytes.fromhex(request.uid),
            stamp,
            code.store_id,
            code.expires_at_ms // 1000,
            0 if several else code.lines[0].sku_id,
            0 if several else code.lines[0].left,
        )
        payload = code_pb.Payload(
            text=self._key.seal(claims),
            valid_from_ms=(stamp - SKEW_S) * 1000,
            valid_until_ms=(stamp + self._setup.payload_life_s + SKEW_S) * 1000,
        )
        return code_pb.RenderResponse(
            verdict=code_pb.RENDER_VERDICT_RENDERED,
            message_zh="动态码已生成。",
            message_en="Rendered.",
            next_step=types_pb.NEXT_STEP_FINAL,
            payloads=[payload],
            code=code,
        )

    async def _get(self, request: code_pb.GetCodeRequest) -> code_pb.GetCodeResponse:
        record = await self._codes.record(request.uid)
        if not record or int(record["mall"]) != request.mall_id:
            raise Refused(grpc.StatusCode.NOT_FOUND, "there is no such code")
        return code_pb.GetCodeResponse(code=_code(request.uid, record))


def _code(uid: str, record: dict[str, str]) -> types_pb.Code:
    return types_pb.Code(
        uid=uid,
        state=STATES[record["state"]],
        version=types_pb.VERSION_DYNAMIC,
        suite=types_pb.SUITE_AES,
        mall_id=int(record["mall"]),
        store_id=int(record["store"]),
        order_id=record["order"],
        lines=_line_states(json.loads(record["lines"])),
        channel=types_pb.Channel.ValueType(int(record["channel"])),
        issued_at_ms=int(record["issued_at_ms"]),
        expires_at_ms=int(record["expires_at_ms"]),
        amount_fen=int(record["amount_fen"]),
        terminal_id=int(record.get("terminal", 0)),
        redeemed_at_ms=int(record.get("redeemed_at_ms", 0)),
    )


class StockService(stock_grpc.StockServiceServicer):
    """ReceiveStock and ReadStock."""

    def __init__(self, codes: Codes, setup: Setup) -> None:
        self._codes = codes
        self._setup = setup

    async def ReceiveStock(  # noqa: N802
        self, request: stock_pb.ReceiveStockRequest, context: Context
    ) -> stock_pb.ReceiveStockResponse:
        """See the contract."""
        return await _answer(context, self._receive(request))

    async def ReadStock(  # noqa: N802
        self, request: stock_pb.ReadStockRequest, context: Context
    ) -> stock_pb.ReadStockResponse:
        """See the contract."""
        return await _answer(context, self._read(request))

    async def _receive(self, request: stock_pb.ReceiveStockRequest) -> stock_pb.ReceiveStockResponse:
        _check_request_id(request.request_id)
        outcome = stock_pb.StockOutcome(
            request_id=request.request_id, sku_id=request.sku_id, store_id=request.store_id
        )
        if self._setup.serves(request.mall_id, request.store_id) is None:
            outcome.verdict = stock_pb.STOCK_VERDICT_UNKNOWN_STORE
        elif (request.mall_id, request.sku_id) not in self._setup.catalogue:
            outcome.verdict = stock_pb.STOCK_VERDICT_UNKNOWN_SKU
        else:
            facts = await self._codes.receive(
                mall_id=request.mall_id,
                store_id=request.store_id,
                sku_id=request.sku_id,
                count=request.count,
                request_id=request.request_id,
                actor=request.actor,
            )
            outcome.verdict = stock_pb.STOCK_VERDICT_RECEIVED
            outcome.event_id, outcome.replayed = facts["event"], facts["replayed"]
            outcome.figures.CopyFrom(_figures(request.sku_id, facts["on_hand"], facts["reserved"]))
        return stock_pb.ReceiveStockResponse(outcome=outcome)

    async def _read(self, request: stock_pb.ReadStockRequest) -> stock_pb.ReadStockResponse:
        if self._setup.serves(request.mall_id, request.store_id) is None:
            raise Refused(grpc.StatusCode.NOT_FOUND, "the store does not serve the mall")
        stock = await self._codes.stock(request.mall_id, request.store_id)
        return stock_pb.ReadStockResponse(
            figures=[_figures(sku, *stock.get(sku, (0, 0))) for sku in (request.sku_ids or stock)]
        )


def _figures(sku_id: int, on_hand: int, reserved: int) -> stock_pb.StockFigures:
    return stock_pb.StockFigures(
        sku_id=sku_id,
        on_hand=on_hand,
        reserved=reserved,
        available=max(0, on_hand - reserved),
        short=max(0, reserved - on_hand),
    )


class StoreService(store_grpc.StoreServiceServicer):
    """The puts that a run needs."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    async def _put(self, context: Context, entries: dict[str, bytes], respond: Callable[[int], R]) -> R:
        async def work() -> R:
            if not 1 <= len(entries) <= 256:
                raise _invalid("1 .. 256 entries must be put")
            return respond(await self._setup.put(entries))

        return await _answer(context, work())

    async def PutMalls(  # noqa: N802
        self, request: store_pb.PutMallsRequest, context: Context
    ) -> store_pb.PutMallsResponse:
        """See the contract."""
        entries = {f"mall:{mall.mall_id}": mall.SerializeToString() for mall in request.malls}
        return await self._put(context, entries, lambda v: store_pb.PutMallsResponse(control_version=v))

    async def PutStores(  # noqa: N802
        self, request: store_pb.PutStoresRequest, context: Context
    ) -> store_pb.PutStoresResponse:
        """See the contract."""
        entries = {f"store:{store.store_id}": store.SerializeToString() for store in request.stores}
        return await self._put(context, entries, lambda v: store_pb.PutStoresResponse(control_version=v))

    async def PutCatalogue(  # noqa: N802
        self, request: store_pb.PutCatalogueRequest, context: Context
    ) -> store_pb.PutCatalogueResponse:
        """See the contract."""
        entries = {
            f"sku:{entry.mall_id}:{entry.sku_id}": entry.SerializeToString() for entry in request.entries
        }
        return await self._put(context, entries, lambda v: store_pb.PutCatalogueResponse(control_version=v))

    async def PutPolicies(  # noqa: N802
        self, request: store_pb.PutPoliciesRequest, context: Context
    ) -> store_pb.PutPoliciesResponse:
        """See the contract; the deployment's policy only."""
        entries = {
            f"policy:{policy.level}": policy.SerializeToString()
            for policy in request.policies
            if policy.level == store_pb.POLICY_LEVEL_DEPLOYMENT
        }
        return await self._put(context, entries, lambda v: store_pb.PutPoliciesResponse(control_version=v))


def add_services(server: aio.Server, codes: Codes, setup: Setup, key: Key) -> None:
    """Register everything."""
    # What a class leaves out answers UNIMPLEMENTED, which type checkers take for abstract.
    redemption_grpc.add_RedemptionServiceServicer_to_server(Redemption(codes, setup, key), server)  # type: ignore[abstract]
    code_grpc.add_CodeServiceServicer_to_server(CodeService(codes, setup, key), server)  # type: ignore[abstract]
    stock_grpc.add_StockServiceServicer_to_server(StockService(codes, setup), server)  # type: ignore[abstract]
    store_grpc.add_StoreServiceServicer_to_server(StoreService(setup), server)  # type: ignore[abstract]
