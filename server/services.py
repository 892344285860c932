"""The services: parse, translate, ask the engine, translate back. Thin: what a call means is in the engine.

Handlers take and give raw bytes. So a request that can't be parsed gets the same kind of answer as any other bad input (gRPC's
own deserialising answers with an internal error), and the length of a message is bounded for each method.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_status import rpc_status

from engine import calls, issuance, limits, offer, redemption, review, stock
from engine.deployment import Deployment
from engine.errors import NotFound, PickgateError, UnknownMall
from engine.policies import Policy
from engine.proof import Provider
from engine.sm_profile import Sealed
from engine.stock_watch import StockWatches, Watch
from pickgate.v1 import code_event_service_pb2 as event_pb
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import ledger_service_pb2 as ledger_pb
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import review_service_pb2 as review_pb
from pickgate.v1 import settlement_service_pb2 as settlement_pb
from pickgate.v1 import stock_service_pb2 as stock_pb
from pickgate.v1 import store_service_pb2 as store_pb
from pickgate.v1 import terminal_service_pb2 as terminal_pb
from server import checks, ledger_services, roles, statuses, terminal_services, translate, translate_rules
from server.gate import Gate
from server.issuing import Issuing
from server.ledger_access import LedgerAccess
from server.roles import Grant
from server.turns import TooLate, Turns

_log = logging.getLogger(__name__)

A = TypeVar("A")
E = TypeVar("E", Policy, Provider)
G = TypeVar("G")
Q = TypeVar("Q", bound=Message)

PACKAGE: Final = "pickgate.v1"
SERVICES: Final = tuple(
    file.DESCRIPTOR.services_by_name[name]
    for file, name in (
        (redemption_pb, "RedemptionService"),
        (code_pb, "CodeService"),
        (stock_pb, "StockService"),
        (store_pb, "StoreService"),
        (review_pb, "ReviewService"),
        (settlement_pb, "SettlementService"),
        (event_pb, "CodeEventService"),
        (ledger_pb, "LedgerService"),
        (terminal_pb, "TerminalService"),
    )
)
"""Descriptors of the services that this server has."""


class Method(NamedTuple, Generic[Q]):
    """One method: the message it takes, its implementation, and the largest request in bytes."""

    request: type[Q]
    call: Callable[[Deployment, Q], Message]
    bytes_max: int = limits.MESSAGE_BYTES_MAX


class Stream(NamedTuple, Generic[Q]):
    """One method that answers with a stream: the message it takes, and what begins the watch whose news it tells."""

    request: type[Q]
    begin: Callable[[StockWatches, Q], Watch]


class Lasting(Protocol):
    """What a stream tells for as long as somebody wants to know: a watch, a subscription."""

    def __enter__(self) -> Lasting: ...

    def __exit__(self, *error: Any) -> None: ...

    def __iter__(self) -> Iterator[Any]:
        """What is told, one by one; ends when it is closed, or raises what ended it."""

    def close(self) -> None:
        """End it, from any thread."""

    def when_stalled(self, function: Callable[[], object]) -> None:
        """What to call when it ends because what it tells is not taken."""


def _one(outcomes: Sequence[A | PickgateError]) -> A:
    """The outcome of a batch of one, its error raised."""
    (outcome,) = outcomes
    if isinstance(outcome, PickgateError):
        raise outcome
    return outcome


def _time_zone(deployment: Deployment, store_id: int) -> str:
    store = deployment.control.store(store_id)
    return translate.TIME_ZONE_DEFAULT if store is None else store.time_zone


def _known_mall(deployment: Deployment, mall_id: int) -> None:
    """Check a read's mall: for one that is not there, "nothing" would be a misleading answer."""
    if deployment.control.mall(mall_id) is None:
        raise UnknownMall(f"mall {mall_id} is not registered: put it first", field="mall_id")


# --- RedemptionService --------------------------------------------------------------------------------------------


def _redeem(deployment: Deployment, message: redemption_pb.RedeemRequest) -> Message:
    request = translate.redeem_request(message)
    # Looked up first: once it is decided, nothing may stand between the caller and the answer.
    time_zone = _time_zone(deployment, request.terminal.store_id)
    answer = _one(redemption.redeem(deployment, [request]))
    return translate.redeem_response(request.request_id, answer, time_zone)


def _redeem_batch(deployment: Deployment, message: redemption_pb.RedeemBatchRequest) -> Message:
    """Each item is decided on its own, as in _issue_batch."""
    checks.length(message.requests, "requests", 1, limits.BATCH_MAX)
    outcomes: list[redemption_pb.RedeemOutcome | None] = []
    sound: list[calls.RedeemRequest] = []
    for item in message.requests:
        try:
            sound.append(translate.redeem_request(item))
            outcomes.append(None)
        except PickgateError as error:
            outcomes.append(_redeem_error(error))
    zones = [_time_zone(deployment, request.terminal.store_id) for request in sound]
    answers = iter(zip(sound, zones, redemption.redeem(deployment, sound) if sound else [], strict=True))
    return redemption_pb.RedeemBatchResponse(
        outcomes=[_redeem_outcome(*next(answers)) if known is None else known for known in outcomes]
    )


def _redeem_outcome(
    request: calls.RedeemRequest, time_zone: str, answer: calls.RedeemAnswer | PickgateError
) -> redemption_pb.RedeemOutcome:
    if isinstance(answer, PickgateError):
        return _redeem_error(answer)
    response = translate.redeem_response(request.request_id, answer, time_zone)
    return redemption_pb.RedeemOutcome(response=response)


def _redeem_error(error: PickgateError) -> redemption_pb.RedeemOutcome:
    return redemption_pb.RedeemOutcome(error=statuses.item_error(statuses.tell(error)))


def _reverse(deployment: Deployment, message: redemption_pb.ReverseRequest) -> Message:
    request = translate.reverse_request(message)
    return translate.reverse_response(request.request_id, _one(redemption.reverse(deployment, [request])))


def _inspect(deployment: Deployment, message: redemption_pb.InspectRequest) -> Message:
    request = translate.inspect_request(message)
    answer = _one(redemption.inspect(deployment, [request]))
    return translate.inspect_response(answer, _time_zone(deployment, request.terminal.store_id))


# --- CodeService --------------------------------------------------------------------------------------------------


def _issue(deployment: Deployment, message: code_pb.IssueRequest) -> Message:
    request = translate.issue_request(message)
    return translate.issue_response(request.request_id, _one(issuance.issue(deployment, [request])))


def _issue_batch(deployment: Deployment, message: code_pb.IssueBatchRequest) -> Message:
    """Each item is decided on its own, so the misshapen ones are told apart before the others go to the engine."""
    checks.length(message.requests, "requests", 1, limits.BULK_MAX)
    outcomes: list[code_pb.IssueOutcome | None] = []
    sound: list[calls.IssueRequest] = []
    for item in message.requests:
        try:
            sound.append(translate.issue_request(item))
            outcomes.append(None)
        except PickgateError as error:
            outcomes.append(_issue_error(error))
    answers = iter(zip(sound, issuance.issue(deployment, sound) if sound else [], strict=True))
    return code_pb.IssueBatchResponse(
        outcomes=[_issue_outcome(*next(answers)) if known is None else known for known in outcomes]
    )


def _issue_outcome(
    request: calls.IssueRequest, answer: calls.IssueAnswer | PickgateError
) -> code_pb.IssueOutcome:
    if isinstance(answer, PickgateError):
        return _issue_error(answer)
    return code_pb.IssueOutcome(response=translate.issue_response(request.request_id, answer))


def _issue_error(error: PickgateError) -> code_pb.IssueOutcome:
    return code_pb.IssueOutcome(error=statuses.item_error(statuses.tell(error)))


def _hold(deployment: Deployment, message: code_pb.HoldRequest) -> Message:
    request = translate.issue_request(message)
    return translate.hold_response(request.request_id, _one(issuance.hold(deployment, [request])))


def _confirm(deployment: Deployment, message: code_pb.ConfirmRequest) -> Message:
    request = translate.confirm_request(message)
    return translate.confirm_response(request.request_id, _one(issuance.confirm(deployment, [request])))


def _extend(deployment: Deployment, message: code_pb.ExtendRequest) -> Message:
    request = translate.extend_request(message)
    return translate.extend_response(request.request_id, _one(issuance.extend(deployment, [request])))


def _render(deployment: Deployment, message: code_pb.RenderRequest) -> Message:
    answer = _one(issuance.render(deployment, [translate.render_request(message)]))
    store_id = 0 if answer.record is None else answer.record.store_id
    return translate.render_response(answer, _time_zone(deployment, store_id))


def _void(deployment: Deployment, message: code_pb.VoidRequest) -> Message:
    request = translate.void_request(message)
    return translate.void_response(request.request_id, _one(issuance.void(deployment, [request])))


def _get_code(deployment: Deployment, message: code_pb.GetCodeRequest) -> Message:
    mall_id = checks.identifier(message.mall_id, "mall_id")
    (record,) = issuance.get(deployment, mall_id, [checks.uid(message.uid)])
    if record is None:
        raise NotFound(f"mall {mall_id} has no code {message.uid}", field="uid")
    return code_pb.GetCodeResponse(code=translate.code(record))


def _get_code_by_request_id(deployment: Deployment, message: code_pb.GetCodeByRequestIdRequest) -> Message:
    mall_id = checks.identifier(message.mall_id, "mall_id")
    request_id = checks.request_id(message.request_id)
    (record,) = issuance.get_by_request_id(deployment, mall_id, [request_id])
    if record is None:
        raise NotFound(f"mall {mall_id} has no code issued by request {request_id}", field="request_id")
    return code_pb.GetCodeByRequestIdResponse(code=translate.code(record))


# --- StockService -------------------------------------------------------------------------------------------------


def _change_stock(deployment: Deployment, request: calls.StockRequest) -> stock_pb.StockOutcome:
    return translate.stock_outcome(request.request_id, _one(stock.change(deployment, [request])))


def _receive_stock(deployment: Deployment, message: stock_pb.ReceiveStockRequest) -> Message:
    return stock_pb.ReceiveStockResponse(
        outcome=_change_stock(deployment, translate.receive_request(message))
    )


def _adjust_stock(deployment: Deployment, message: stock_pb.AdjustStockRequest) -> Message:
    return stock_pb.AdjustStockResponse(outcome=_change_stock(deployment, translate.adjust_request(message)))


def _set_baseline(deployment: Deployment, message: stock_pb.SetBaselineRequest) -> Message:
    return stock_pb.SetBaselineResponse(
        outcome=_change_stock(deployment, translate.baseline_request(message))
    )


def _read_stock(deployment: Deployment, message: stock_pb.ReadStockRequest) -> Message:
    mall_id, store_id, sku_ids = translate.read_stock_request(message)
    _known_mall(deployment, mall_id)
    store = deployment.control.store(store_id)
    if store is None or mall_id not in store.mall_ids:
        raise NotFound(f"there is no store {store_id} that serves mall {mall_id}", field="store_id")
    figures = stock.read(deployment, mall_id, store_id, sku_ids)
    return stock_pb.ReadStockResponse(
        figures=[translate.stock_figures(one) for one in sorted(figures, key=lambda one: one.sku_id)]
    )


def _transfer_stock(deployment: Deployment, message: stock_pb.TransferStockRequest) -> Message:
    request = translate.transfer_request(message)
    return translate.transfer_response(request.request_id, _one(stock.transfer(deployment, [request])))


def _watch_stock(watches: StockWatches, message: stock_pb.WatchStockRequest) -> Watch:
    return watches.watch(translate.watch_request(message))


# --- ReviewService ------------------------------------------------------------------------------------------------


def _list_reviews(deployment: Deployment, message: review_pb.ListReviewsRequest) -> Message:
    mall_id, count, after = translate.list_reviews_request(message)
    _known_mall(deployment, mall_id)
    found, token = review.list_reviews(deployment, mall_id, count=count, after=after)
    return review_pb.ListReviewsResponse(reviews=map(translate.review, found), next_page_token=token)


def _decide(deployment: Deployment, message: review_pb.DecideRequest) -> Message:
    request = translate.decide_request(message)
    return translate.decide_response(request.request_id, _one(review.decide(deployment, [request])))


# --- StoreService -------------------------------------------------------------------------------------------------


class _Put(NamedTuple):
    request_id: str
    actor: str


def _put(
    message: store_pb.PutMallsRequest
    | store_pb.PutStoresRequest
    | store_pb.PutCatalogueRequest
    | store_pb.PutPoliciesRequest
    | store_pb.PutProvidersRequest,
) -> _Put:
    return _Put(
        request_id=checks.request_id(message.request_id),
        actor=checks.text(message.actor, "actor", limits.ACTOR_CHARS_MAX),
    )


def _put_malls(deployment: Deployment, message: store_pb.PutMallsRequest) -> Message:
    put = _put(message)
    version = deployment.control.put_malls(
        translate.malls(message.malls), request_id=put.request_id, actor=put.actor
    )
    return store_pb.PutMallsResponse(request_id=put.request_id, control_version=version)


def _put_stores(deployment: Deployment, message: store_pb.PutStoresRequest) -> Message:
    put = _put(message)
    version = deployment.control.put_stores(
        translate.stores(message.stores), request_id=put.request_id, actor=put.actor
    )
    return store_pb.PutStoresResponse(request_id=put.request_id, control_version=version)


def _put_catalogue(deployment: Deployment, message: store_pb.PutCatalogueRequest) -> Message:
    put = _put(message)
    version = deployment.control.put_catalogue(
        translate.catalogue(message.entries), request_id=put.request_id, actor=put.actor
    )
    return store_pb.PutCatalogueResponse(request_id=put.request_id, control_version=version)


def _put_policies(deployment: Deployment, message: store_pb.PutPoliciesRequest) -> Message:
    put = _put(message)
    version = deployment.control.put_policies(
        translate_rules.policies(message.policies), request_id=put.request_id, actor=put.actor
    )
    return store_pb.PutPoliciesResponse(request_id=put.request_id, control_version=version)


def _put_providers(deployment: Deployment, message: store_pb.PutProvidersRequest) -> Message:
    put = _put(message)
    version = deployment.control.put_providers(
        translate_rules.providers(message.providers), request_id=put.request_id, actor=put.actor
    )
    return store_pb.PutProvidersResponse(request_id=put.request_id, control_version=version)


def _page(items: Iterable[A], key: Callable[[A], int], size: int, after: int) -> tuple[list[A], str]:
    """Cut the page behind id `after` out of `items`; with the token of the next page."""
    behind = sorted((item for item in items if key(item) > after), key=key)
    page = behind[:size]
    return page, str(key(page[-1])) if len(behind) > size else ""


def _list_malls(deployment: Deployment, message: store_pb.ListMallsRequest) -> Message:
    page, token = _page(deployment.control.malls(), lambda mall: mall.mall_id, *translate.page(message))
    return store_pb.ListMallsResponse(malls=map(translate.mall_message, page), next_page_token=token)


def _list_stores(deployment: Deployment, message: store_pb.ListStoresRequest) -> Message:
    wanted = message.mall_id
    page, token = _page(
        (store for store in deployment.control.stores() if not wanted or wanted in store.mall_ids),
        lambda store: store.store_id,
        *translate.page(message),
    )
    return store_pb.ListStoresResponse(stores=map(translate.store_message, page), next_page_token=token)


def _get_store(deployment: Deployment, message: store_pb.GetStoreRequest) -> Message:
    store = deployment.control.store(checks.identifier(message.store_id, "store_id"))
    if store is None:
        raise NotFound(f"there is no store {message.store_id}", field="store_id")
    return store_pb.GetStoreResponse(store=translate.store_message(store))


def _list_catalogue(deployment: Deployment, message: store_pb.ListCatalogueRequest) -> Message:
    mall_id = checks.identifier(message.mall_id, "mall_id")
    _known_mall(deployment, mall_id)
    page, token = _page(
        deployment.control.catalogue(mall_id), lambda entry: entry.sku_id, *translate.page(message)
    )
    return store_pb.ListCatalogueResponse(
        entries=map(translate.catalogue_message, page), next_page_token=token
    )


def _list_policies(deployment: Deployment, message: store_pb.ListPoliciesRequest) -> Message:
    page, token = _page_by_name(deployment.control.policies(), *translate_rules.page(message))
    return store_pb.ListPoliciesResponse(
        policies=map(translate_rules.policy_message, page), next_page_token=token
    )


def _list_providers(deployment: Deployment, message: store_pb.ListProvidersRequest) -> Message:
    page, token = _page_by_name(deployment.control.providers(), *translate_rules.page(message))
    return store_pb.ListProvidersResponse(
        providers=map(translate_rules.provider_message, page), next_page_token=token
    )


def _page_by_name(items: Sequence[E], size: int, after: str) -> tuple[list[E], str]:
    """Cut the page behind the entry named `after` out of ordered `items`; with the token of the next page."""
    names = [item.field for item in items]
    if after and after not in names:
        checks.refuse("page_token", after, "the next_page_token of an earlier answer, or nothing")
    start = names.index(after) + 1 if after else 0
    page = list(items[start : start + size])
    return page, page[-1].field if start + size < len(items) else ""


def _nearest_stores(deployment: Deployment, message: store_pb.NearestStoresRequest) -> Message:
    return translate.nearest_response(offer.find(deployment, translate.nearest_request(message)))


_BULK: Final = limits.BULK_MESSAGE_BYTES_MAX

METHODS: Final[Mapping[str, Method[Any]]] = {
    "RedemptionService.Inspect": Method(redemption_pb.InspectRequest, _inspect),
    "RedemptionService.Redeem": Method(redemption_pb.RedeemRequest, _redeem),
    "RedemptionService.RedeemBatch": Method(redemption_pb.RedeemBatchRequest, _redeem_batch, _BULK),
    "RedemptionService.Reverse": Method(redemption_pb.ReverseRequest, _reverse),
    "CodeService.Issue": Method(code_pb.IssueRequest, _issue),
    "CodeService.IssueBatch": Method(code_pb.IssueBatchRequest, _issue_batch, _BULK),
    "CodeService.Hold": Method(code_pb.HoldRequest, _hold),
    "CodeService.Confirm": Method(code_pb.ConfirmRequest, _confirm),
    "CodeService.Extend": Method(code_pb.ExtendRequest, _extend),
    "CodeService.Render": Method(code_pb.RenderRequest, _render),
    "CodeService.Void": Method(code_pb.VoidRequest, _void),
    "CodeService.GetCode": Method(code_pb.GetCodeRequest, _get_code),
    "CodeService.GetCodeByRequestId": Method(code_pb.GetCodeByRequestIdRequest, _get_code_by_request_id),
    "StockService.ReceiveStock": Method(stock_pb.ReceiveStockRequest, _receive_stock),
    "StockService.AdjustStock": Method(stock_pb.AdjustStockRequest, _adjust_stock),
    "StockService.SetBaseline": Method(stock_pb.SetBaselineRequest, _set_baseline),
    "StockService.ReadStock": Method(stock_pb.ReadStockRequest, _read_stock),
    "StockService.TransferStock": Method(stock_pb.TransferStockRequest, _transfer_stock),
    "StoreService.PutMalls": Method(store_pb.PutMallsRequest, _put_malls, _BULK),
    "StoreService.PutStores": Method(store_pb.PutStoresRequest, _put_stores, _BULK),
    "StoreService.PutCatalogue": Method(store_pb.PutCatalogueRequest, _put_catalogue, _BULK),
    "StoreService.ListMalls": Method(store_pb.ListMallsRequest, _list_malls),
    "StoreService.ListStores": Method(store_pb.ListStoresRequest, _list_stores),
    "StoreService.GetStore": Method(store_pb.GetStoreRequest, _get_store),
    "StoreService.ListCatalogue": Method(store_pb.ListCatalogueRequest, _list_catalogue),
    "StoreService.PutPolicies": Method(store_pb.PutPoliciesRequest, _put_policies, _BULK),
    "StoreService.ListPolicies": Method(store_pb.ListPoliciesRequest, _list_policies),
    "StoreService.PutProviders": Method(store_pb.PutProvidersRequest, _put_providers, _BULK),
    "StoreService.ListProviders": Method(store_pb.ListProvidersRequest, _list_providers),
    "StoreService.NearestStores": Method(store_pb.NearestStoresRequest, _nearest_stores),
    "ReviewService.ListReviews": Method(review_pb.ListReviewsRequest, _list_reviews),
    "ReviewService.Decide": Method(review_pb.DecideRequest, _decide),
}
"""Every method with one answer, by "Service.Method", but for those of server.ledger_services and server.terminal_services (a test
compares all with the contract)."""

STREAMS: Final[Mapping[str, Stream[Any]]] = {
    "StockService.WatchStock": Stream(stock_pb.WatchStockRequest, _watch_stock),
}
"""Every method with a stream of answers, likewise."""


def answer(deployment: Deployment, method: Method[Any], data: bytes, given: Grant | None = None) -> bytes:
    """Work on one call: wire bytes in, wire bytes out. Raises PickgateError.

    given: what the caller may do, None where callers are not known.
    """
    message = translate.parse(method.request, data, method.bytes_max)
    roles.enter(given, message, deployment.control.store)
    return method.call(deployment, message).SerializeToString()


def handlers(
    deployment: Deployment,
    watches: StockWatches,
    watch_pool: ThreadPoolExecutor,
    turns: Turns,
    access: LedgerAccess,
    feed_pool: ThreadPoolExecutor,
    gate: Gate | None = None,
    issuing: Issuing | None = None,
) -> list[grpc.GenericRpcHandler[bytes, bytes]]:
    """Make the gRPC handlers of all services over one deployment; calls with one answer take turns.

    Streams of stock are worked on in `watch_pool`, those of the ledger in `feed_pool`. gate: knows callers; None where everybody
    may do everything. issuing: signs terminals' certificates; None: none are given out.
    """

    def handler(name: str) -> grpc.RpcMethodHandler[bytes, bytes]:
        may: May = _anybody if gate is None else partial(gate.of_call, name)
        if name in STREAMS:
            return _watch_handler(deployment, watches, STREAMS[name], watch_pool, may)
        if name in ledger_services.STREAMS:
            return _feed_handler(deployment, access, ledger_services.STREAMS[name], feed_pool, may)
        if name in ledger_services.METHODS:
            method = ledger_services.METHODS[name]
            return _handler(partial(_ledger_answer, deployment, access, method), method.bytes_max, turns, may)
        if name in terminal_services.METHODS:
            asked = terminal_services.METHODS[name]
            return _handler(
                partial(_terminal_answer, deployment, issuing, asked),
                asked.bytes_max,
                turns,
                # A sealed call's context says by which secret (server.sealing).
                lambda context: _Asks(may(context), getattr(context, "sealed", None)),
            )
        return _handler(partial(answer, deployment, METHODS[name]), METHODS[name].bytes_max, turns, may)

    return [
        grpc.method_handlers_generic_handler(
            service.full_name,
            {method.name: handler(f"{service.name}.{method.name}") for method in service.methods},
        )
        for service in SERVICES
    ]


May = Callable[[grpc.ServicerContext], Grant | None]
"""What the caller of a call may do. Raises PickgateError for one who may nothing."""


def _anybody(context: grpc.ServicerContext) -> Grant | None:
    return None


def _ledger_answer(
    deployment: Deployment,
    access: LedgerAccess,
    method: ledger_services.LedgerMethod[Any],
    data: bytes,
    given: Grant | None,
) -> bytes:
    message = translate.parse(method.request, data, method.bytes_max)
    roles.enter(given, message, deployment.control.store)
    return method.call(ledger_services.Desk(deployment, access, given), message).SerializeToString()


class _Asks(NamedTuple):
    """Who asks for something of a terminal."""

    given: Grant | None
    sealed: Sealed | None


def _terminal_answer(
    deployment: Deployment,
    issuing: Issuing | None,
    method: terminal_services.TerminalMethod[Any],
    data: bytes,
    asks: _Asks,
) -> bytes:
    message = translate.parse(method.request, data, method.bytes_max)
    roles.enter(asks.given, message, deployment.control.store)
    desk = terminal_services.Desk(deployment, issuing, asks.given, asks.sealed)
    return method.call(desk, message).SerializeToString()


def _handler(
    work_on: Callable[[bytes, G], bytes],
    bytes_max: int,
    turns: Turns,
    may: Callable[[grpc.ServicerContext], G],
) -> grpc.RpcMethodHandler[bytes, bytes]:
    def handle(data: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            # Before it waits: what is too long must not wait in memory.
            translate.check_length(data, bytes_max)
            given = may(context)
            with turns.taken(len(data), context):
                return work_on(data, given)
        except TooLate:
            context.abort(
                grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before the call was worked on"
            )
            raise
        except Exception as error:
            context.abort_with_status(rpc_status.to_status(statuses.rich_status(statuses.tell(error))))
            raise

    # No (de)serialisers: bytes in, bytes out.
    return grpc.unary_unary_rpc_method_handler(handle)


def _watch_handler(
    deployment: Deployment, watches: StockWatches, stream: Stream[Any], pool: ThreadPoolExecutor, may: May
) -> grpc.RpcMethodHandler[bytes, bytes]:
    def begin(data: bytes, given: Grant | None) -> Lasting:
        message = translate.parse(stream.request, data, limits.MESSAGE_BYTES_MAX)
        roles.enter(given, message, deployment.control.store)
        return stream.begin(watches, message)

    return _stream_handler(begin, translate.watch_response, pool, may)


def _feed_handler(
    deployment: Deployment,
    access: LedgerAccess,
    stream: ledger_services.LedgerStream[Any, Any],
    pool: ThreadPoolExecutor,
    may: May,
) -> grpc.RpcMethodHandler[bytes, bytes]:
    def begin(data: bytes, given: Grant | None) -> Lasting:
        message = translate.parse(stream.request, data, stream.bytes_max)
        roles.enter(given, message, deployment.control.store)
        return stream.begin(ledger_services.Desk(deployment, access, given), message)

    return _stream_handler(begin, stream.tell, pool, may)


def _stream_handler(
    begin: Callable[[bytes, Grant | None], Lasting],
    tell: Callable[[Any], Message],
    pool: ThreadPoolExecutor,
    may: May,
) -> grpc.RpcMethodHandler[bytes, bytes]:
    def handle(data: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        try:
            with begin(data, may(context)) as lasting:
                # Whoever hangs up, or never reads on, must not hold the thread.
                lasting.when_stalled(context.cancel)
                if not context.add_callback(lasting.close):
                    return
                for news in lasting:
                    # It may last for days: whoever counts no more meanwhile is told no more.
                    may(context)
                    yield tell(news).SerializeToString()
        except Exception as error:
            context.abort_with_status(rpc_status.to_status(statuses.rich_status(statuses.tell(error))))
            raise

    # gRPC's own switch, as its health service uses it: a stream that lasts for days must not hold a thread of the calls.
    handle.experimental_thread_pool = pool  # type: ignore[attr-defined]
    return grpc.unary_stream_rpc_method_handler(handle)
