"""The services that read the ledger: settlements and code events as streams, reconciliations, audit, verification.

As server.services: parse, translate, ask, translate back. What a caller may see follows from the mall in its request; that it is the caller's own
is for whoever checks identities, before these are called. Names of consumers belong to whoever used them first (engine.ledger.consumers).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Generic, NamedTuple, TypeVar

from google.protobuf.message import Message

from engine import limits
from engine.deployment import Deployment
from engine.errors import NotFound, UnknownMall
from engine.ledger import (
    audit,
    code_events,
    consumers,
    database,
    feed,
    operations,
    reconcile,
    settlement,
)
from engine.ledger import verify as verifying
from engine.ledger.code_events import CodeEvent
from engine.ledger.feed import Cursor
from engine.ledger.feeds import Batch, ReadPage, Subscription
from engine.ledger.settlement import Settlement
from engine.state.streams import Streams
from pickgate.v1 import code_event_service_pb2 as event_pb
from pickgate.v1 import ledger_service_pb2 as ledger_pb
from pickgate.v1 import settlement_service_pb2 as settlement_pb
from server import bounds, checks, translate_ledger
from server.ledger_access import LedgerAccess
from server.roles import Grant
from server.translate_ledger import AcknowledgeRequest, SubscribeRequest

Q = TypeVar("Q", bound=Message)
T = TypeVar("T")


class Desk(NamedTuple):
    """What the methods need: the deployment, the ledger, and what the caller may do, None where nobody is known."""

    deployment: Deployment
    access: LedgerAccess
    given: Grant | None

    @property
    def caller(self) -> str:
        """Whom the record names for this call; '' where callers are not known."""
        return "" if self.given is None else self.given.actor


class LedgerMethod(NamedTuple, Generic[Q]):
    """One method with one answer: the message it takes, its implementation, and the largest request in bytes."""

    request: type[Q]
    call: Callable[[Desk, Q], Message]
    bytes_max: int = limits.MESSAGE_BYTES_MAX


class LedgerStream(NamedTuple, Generic[Q, T]):
    """One method with a stream of answers: the message it takes, what begins the subscription, and how a batch of it is told."""

    request: type[Q]
    begin: Callable[[Desk, Q], Subscription[T]]
    tell: Callable[[Batch[T]], Message]
    bytes_max: int = bounds.CURSOR_MESSAGE_BYTES_MAX


def _known_mall(deployment: Deployment, mall_id: int) -> None:
    if mall_id and deployment.control.mall(mall_id) is None:
        raise UnknownMall(f"mall {mall_id} is not registered: put it first", field="mall_id")


# --- feeds --------------------------------------------------------------------------------------------------------


def _subscribe(desk: Desk, message: settlement_pb.SubscribeRequest) -> Subscription[Settlement]:
    request = translate_ledger.subscribe_request(message)
    return _begin(desk, request, partial(settlement.page, mall_id=request.consumer.mall_id))


def _subscribe_code_events(
    desk: Desk, message: event_pb.SubscribeCodeEventsRequest
) -> Subscription[CodeEvent]:
    request = translate_ledger.subscribe_code_events_request(message)
    read = partial(code_events.page, mall_id=request.consumer.mall_id, types=request.types)
    return _begin(desk, request, read)


def _begin(desk: Desk, request: SubscribeRequest, read: ReadPage[T]) -> Subscription[T]:
    desk.access.ledger()  # before the mall: a server without a ledger says so, whoever asks
    _known_mall(desk.deployment, request.consumer.mall_id)
    return desk.access.feeds.subscribe(read, _from(desk, request), count=request.count)


def _from(desk: Desk, request: SubscribeRequest) -> Cursor:
    """Where a subscription begins: at its cursor, else where its consumer has acknowledged, else at the oldest that is kept."""
    ledger = desk.access.ledger()
    # Also with a cursor: whoever subscribes under another's name would find out only when they acknowledge.
    known = consumers.acknowledged(ledger, request.consumer, caller=desk.caller)
    if request.cursor is not None:
        return request.cursor
    if known is not None and not request.oldest:
        return known.cursor
    with database.snapshot(ledger.engine) as connection:
        return feed.oldest(connection)


def _acknowledge(desk: Desk, message: settlement_pb.AcknowledgeRequest) -> Message:
    stored = _store(desk, translate_ledger.acknowledge_request(message))
    return settlement_pb.AcknowledgeResponse(
        cursor=feed.cursor_text(stored.cursor), acknowledged_at_ms=stored.at_ms
    )


def _acknowledge_code_events(desk: Desk, message: event_pb.AcknowledgeCodeEventsRequest) -> Message:
    stored = _store(desk, translate_ledger.acknowledge_code_events_request(message))
    return event_pb.AcknowledgeCodeEventsResponse(
        cursor=feed.cursor_text(stored.cursor), acknowledged_at_ms=stored.at_ms
    )


def _store(desk: Desk, request: AcknowledgeRequest) -> consumers.Acknowledged:
    ledger = desk.access.ledger()
    _known_mall(desk.deployment, request.consumer.mall_id)
    now_ms = desk.deployment.now_ms()
    return consumers.acknowledge(ledger, request.consumer, request.cursor, at_ms=now_ms, caller=desk.caller)


def _get_by_order(desk: Desk, message: settlement_pb.GetByOrderRequest) -> Message:
    mall_id, order_id, count, after = translate_ledger.by_order_request(message)
    ledger = desk.access.ledger()
    _known_mall(desk.deployment, mall_id)
    found = settlement.of_order(ledger, mall_id, order_id, count=count + 1, after=after)
    return translate_ledger.by_order_response(found, count)


# --- LedgerService ------------------------------------------------------------------------------------------------


def _get_ledger_status(desk: Desk, message: ledger_pb.GetLedgerStatusRequest) -> Message:
    ledger = desk.access.ledger()
    facts = desk.deployment.control.copy().ledger
    # The ledger first: the store then has at least as much.
    heads = ledger.heads()
    return translate_ledger.status_response(
        translate_ledger.Status(
            deployment_id=ledger.deployment_id,
            chain=ledger.chain.algorithm,
            caught_up_ms=facts.caught_up_ms,
            now_ms=desk.deployment.now_ms(),
            alarm=facts.alarm,
            heads=heads,
            in_store=Streams(desk.deployment.connection).lasts(),
            consumers=consumers.list_acknowledged(ledger),
        )
    )


def _list_reconciliations(desk: Desk, message: ledger_pb.ListReconciliationsRequest) -> Message:
    count, before = translate_ledger.list_reconciliations_request(message)
    found = reconcile.list_runs(desk.access.ledger(), count + 1, before=before)
    return translate_ledger.list_reconciliations_response(found, count)


def _get_reconciliation(desk: Desk, message: ledger_pb.GetReconciliationRequest) -> Message:
    number, count, behind = translate_ledger.get_reconciliation_request(message)
    run = reconcile.read_run(desk.access.ledger(), number)
    if run is None:
        which = f"reconciliation {number}" if number else "reconciliation yet"
        raise NotFound(f"there is no {which}", field="number")
    return translate_ledger.get_reconciliation_response(run, count, behind)


def _start_reconciliation(desk: Desk, message: ledger_pb.StartReconciliationRequest) -> Message:
    operation_id, actor = translate_ledger.start_reconciliation_request(message)
    asked = operations.ask(desk.access.ledger(), operation_id, actor, desk.deployment.now_ms())
    return ledger_pb.StartReconciliationResponse(operation=translate_ledger.operation(asked))


def _get_operation(desk: Desk, message: ledger_pb.GetOperationRequest) -> Message:
    operation_id = checks.request_id(message.operation_id, "operation_id")
    found = operations.find(desk.access.ledger(), operation_id, desk.deployment.now_ms())
    if found is None:
        raise NotFound(f"nobody has started an operation {operation_id}", field="operation_id")
    return ledger_pb.GetOperationResponse(operation=translate_ledger.operation(found))


def _search_audit(desk: Desk, message: ledger_pb.SearchAuditRequest) -> Message:
    question, count, after = translate_ledger.search_audit_request(message)
    page = audit.search(desk.access.ledger(), question, count=count, after=after, time_s=bounds.AUDIT_S_MAX)
    return translate_ledger.search_audit_response(page)


def _verify_chain(desk: Desk, message: ledger_pb.VerifyChainRequest) -> Message:
    partition, first, last = translate_ledger.verify_chain_request(message)
    report, following = verifying.verify_piece(
        desk.access.ledger(),
        partition,
        first=first,
        last=last,
        rows_max=bounds.VERIFY_ROWS_MAX,
        signed=desk.access.signed_heads(),
    )
    return translate_ledger.verify_chain_response(report, following)


_CURSOR: Final = bounds.CURSOR_MESSAGE_BYTES_MAX

METHODS: Final[Mapping[str, LedgerMethod[Any]]] = {
    "SettlementService.Acknowledge": LedgerMethod(settlement_pb.AcknowledgeRequest, _acknowledge, _CURSOR),
    "SettlementService.GetByOrder": LedgerMethod(settlement_pb.GetByOrderRequest, _get_by_order),
    "CodeEventService.AcknowledgeCodeEvents": LedgerMethod(
        event_pb.AcknowledgeCodeEventsRequest, _acknowledge_code_events, _CURSOR
    ),
    "LedgerService.GetLedgerStatus": LedgerMethod(ledger_pb.GetLedgerStatusRequest, _get_ledger_status),
    "LedgerService.ListReconciliations": LedgerMethod(
        ledger_pb.ListReconciliationsRequest, _list_reconciliations
    ),
    "LedgerService.GetReconciliation": LedgerMethod(ledger_pb.GetReconciliationRequest, _get_reconciliation),
    "LedgerService.StartReconciliation": LedgerMethod(
        ledger_pb.StartReconciliationRequest, _start_reconciliation
    ),
    "LedgerService.GetOperation": LedgerMethod(ledger_pb.GetOperationRequest, _get_operation),
    "LedgerService.SearchAudit": LedgerMethod(ledger_pb.SearchAuditRequest, _search_audit),
    "LedgerService.VerifyChain": LedgerMethod(ledger_pb.VerifyChainRequest, _verify_chain),
}
"""Every method with one answer, by "Service.Method"."""

STREAMS: Final[Mapping[str, LedgerStream[Any, Any]]] = {
    "SettlementService.Subscribe": LedgerStream(
        settlement_pb.SubscribeRequest, _subscribe, translate_ledger.subscribe_response
    ),
    "CodeEventService.SubscribeCodeEvents": LedgerStream(
        event_pb.SubscribeCodeEventsRequest,
        _subscribe_code_events,
        translate_ledger.subscribe_code_events_response,
    ),
}
"""Every method with a stream of answers, likewise."""
