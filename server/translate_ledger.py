"""Between the wire and the ledger: settlements, code events, reconciliations, audit and verification. Pure, as server.translate."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from engine import limits
from engine.claims import EventId
from engine.errors import InvalidInput
from engine.ledger import audit, code_events, feed
from engine.ledger.consumers import Acknowledged, Consumer, Feed
from engine.ledger.feed import Cursor
from engine.ledger.feeds import Batch
from engine.ledger.ledger import Head
from engine.ledger.operations import Operation
from engine.ledger.reconcile import Drift, Kept, Run
from engine.ledger.settlement import Settlement
from engine.ledger.verify import Report
from engine.state.events import EventType
from engine.state.streams import CONTROL, START, Place
from pickgate.v1 import code_event_service_pb2 as event_pb
from pickgate.v1 import ledger_service_pb2 as ledger_pb
from pickgate.v1 import review_service_pb2 as review_pb
from pickgate.v1 import settlement_service_pb2 as settlement_pb
from pickgate.v1 import types_pb2 as types_pb
from server import bounds, checks, translate

_PLACE: Final = re.compile(r"([0-9]{1,15})-([0-9]{1,15})")
_TOKEN: Final = "the next_page_token of an earlier answer, or nothing"
_FEED_KINDS: Final[Mapping[Feed, ledger_pb.FeedKind.ValueType]] = {
    Feed.SETTLEMENTS: ledger_pb.FEED_KIND_SETTLEMENTS,
    Feed.CODE_EVENTS: ledger_pb.FEED_KIND_CODE_EVENTS,
}


# --- subscriptions ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SubscribeRequest:
    """Who subscribes, from where, and how much at once."""

    consumer: Consumer
    cursor: Cursor | None
    """None: where the consumer has acknowledged."""
    oldest: bool
    count: int
    types: frozenset[EventType] = code_events.TYPES


@dataclass(frozen=True, slots=True)
class AcknowledgeRequest:
    """Who has everything up to where."""

    consumer: Consumer
    cursor: Cursor


def subscribe_request(message: settlement_pb.SubscribeRequest) -> SubscribeRequest:
    """Read and check a wallet's subscription."""
    consumer = Consumer(Feed.SETTLEMENTS, message.mall_id, message.wallet)
    return SubscribeRequest(consumer, _begin(message), message.oldest, _batch(message.batch_size_max))


def subscribe_code_events_request(message: event_pb.SubscribeCodeEventsRequest) -> SubscribeRequest:
    """Read and check a mall's subscription."""
    mall_id = checks.identifier(message.mall_id, "mall_id")
    known = {type_.value for type_ in code_events.TYPES}
    checks.length(message.types, "types", 0, len(known))
    for index, number in enumerate(message.types):
        if number not in known:
            checks.refuse(f"types[{index}]", number, "a type of code events")
    return SubscribeRequest(
        Consumer(Feed.CODE_EVENTS, mall_id, message.consumer),
        _begin(message),
        message.oldest,
        _batch(message.batch_size_max),
        frozenset(map(EventType, message.types)) or code_events.TYPES,
    )


def _begin(message: settlement_pb.SubscribeRequest | event_pb.SubscribeCodeEventsRequest) -> Cursor | None:
    if message.cursor and message.oldest:
        raise InvalidInput(
            "oldest is set together with a cursor; expected one of them, or neither", field="oldest"
        )
    return cursor(message.cursor) if message.cursor else None


def _batch(size: int) -> int:
    return checks.whole(size, "batch_size_max", 0, bounds.FEED_BATCH_MAX) or bounds.FEED_BATCH_DEFAULT


def cursor(text: str) -> Cursor:
    """Read and check a cursor."""
    if len(text) > feed.CURSOR_CHARS_MAX:
        raise InvalidInput(
            f"cursor has {len(text)} characters; expected what an earlier answer ended with", field="cursor"
        )
    return feed.parse_cursor(text)


def acknowledge_request(message: settlement_pb.AcknowledgeRequest) -> AcknowledgeRequest:
    """Read and check a wallet's acknowledgement."""
    consumer = Consumer(Feed.SETTLEMENTS, message.mall_id, message.wallet)
    return AcknowledgeRequest(consumer, _stated(message.cursor))


def acknowledge_code_events_request(message: event_pb.AcknowledgeCodeEventsRequest) -> AcknowledgeRequest:
    """Read and check a mall's acknowledgement."""
    consumer = Consumer(Feed.CODE_EVENTS, checks.identifier(message.mall_id, "mall_id"), message.consumer)
    return AcknowledgeRequest(consumer, _stated(message.cursor))


def _stated(text: str) -> Cursor:
    if not text:
        raise InvalidInput("cursor is missing; expected the last one that came with a batch", field="cursor")
    return cursor(text)


def subscribe_response(batch: Batch[Settlement]) -> settlement_pb.SubscribeResponse:
    """Write a batch of settlements for the wire."""
    return settlement_pb.SubscribeResponse(
        settlements=map(settlement, batch.items),
        cursor=feed.cursor_text(batch.cursor),
        caught_up=batch.caught_up,
    )


def settlement(one: Settlement) -> settlement_pb.Settlement:
    """Write a settlement for the wire."""
    return settlement_pb.Settlement(
        event_id=str(one.event),
        at_ms=one.at_ms,
        mall_id=one.mall_id,
        store_id=one.store_id,
        order_id=one.order_id,
        uid=one.uid.hex(),
        reversal=one.reversal,
        shares=[
            settlement_pb.Share(
                payee=share.payee, role=share.role, level=share.level, amount_fen=share.amount_fen
            )
            for share in one.shares
        ],
    )


def subscribe_code_events_response(
    batch: Batch[code_events.CodeEvent],
) -> event_pb.SubscribeCodeEventsResponse:
    """Write a batch of code events for the wire."""
    return event_pb.SubscribeCodeEventsResponse(
        events=map(code_event, batch.items),
        cursor=feed.cursor_text(batch.cursor),
        caught_up=batch.caught_up,
    )


def code_event(one: code_events.CodeEvent) -> event_pb.CodeEvent:
    """Write a code event for the wire."""
    return event_pb.CodeEvent(
        event_id=str(one.event),
        type=event_pb.CodeEventType.ValueType(one.type),
        at_ms=one.at_ms,
        uid=one.uid.hex(),
        order_id=one.order_id,
        store_id=one.store_id,
        terminal_id=one.terminal_id,
        actor=one.actor,
        state=types_pb.CodeState.ValueType(one.state or 0),
        lines=translate.line_states(one.lines),
        expires_at_ms=one.expires_at_s * 1000,
        cycle=one.cycle,
        tries=one.tries,
        reason=one.reason,
        decision=review_pb.Decision.ValueType(one.decision or 0),
        release=one.release,
        replaces=one.replaces.hex(),
    )


def by_order_request(
    message: settlement_pb.GetByOrderRequest,
) -> tuple[int, str, int, tuple[bytes, EventId] | None]:
    """Read and check a question for an order's settlements: mall, order, how many, and behind which."""
    return (
        checks.identifier(message.mall_id, "mall_id"),
        checks.text(message.order_id, "order_id", limits.ORDER_ID_CHARS_MAX, chars_min=1),
        checks.whole(message.page_size, "page_size", 0, bounds.FEED_BATCH_MAX) or bounds.FEED_BATCH_DEFAULT,
        _by_order_token(message.page_token),
    )


def _by_order_token(token: str) -> tuple[bytes, EventId] | None:
    if not token:
        return None
    uid, _, number = token.partition(".")
    parts = number.split("-")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) <= 15 for part in parts):
        checks.refuse("page_token", token, _TOKEN)
    return checks.uid(uid, "page_token"), EventId(*map(int, parts))


def by_order_response(found: Sequence[Settlement], count: int) -> settlement_pb.GetByOrderResponse:
    """Write a page of an order's settlements, of which one more than `count` was looked for."""
    shown = found[:count]
    token = f"{shown[-1].uid.hex()}.{shown[-1].event}" if len(found) > count else ""
    return settlement_pb.GetByOrderResponse(settlements=map(settlement, shown), next_page_token=token)


# --- reconciliations ----------------------------------------------------------------------------------------------


def _page_size(size: int) -> int:
    found = checks.whole(size, "page_size", 0, bounds.RECONCILIATIONS_PAGE_MAX)
    return found or bounds.RECONCILIATIONS_PAGE_DEFAULT


def _number_token(token: str) -> int | None:
    if token and not (token.isascii() and token.isdigit() and len(token) <= 10):
        checks.refuse("page_token", token, _TOKEN)
    return int(token) if token else None


def list_reconciliations_request(
    message: ledger_pb.ListReconciliationsRequest,
) -> tuple[int, int | None]:
    """Read and check a page of reconciliations: how many, and before which number."""
    return _page_size(message.page_size), _number_token(message.page_token)


def list_reconciliations_response(found: Sequence[Kept], count: int) -> ledger_pb.ListReconciliationsResponse:
    """Write a page of reconciliations, of which one more than `count` was looked for."""
    shown = found[:count]
    return ledger_pb.ListReconciliationsResponse(
        reconciliations=[
            ledger_pb.Reconciliation(
                number=one.number,
                clean=one.clean,
                cause=one.cause,
                begun_ms=one.begun_ms,
                ended_ms=one.ended_ms,
                shelves=one.shelves,
                codes=one.codes,
                drifts=one.drifts,
            )
            for one in shown
        ],
        next_page_token=str(shown[-1].number) if len(found) > count else "",
    )


def get_reconciliation_request(
    message: ledger_pb.GetReconciliationRequest,
) -> tuple[int | None, int, int]:
    """Read and check a question for one: its number (None: the newest), how many drifts, and behind how many."""
    return message.number or None, _page_size(message.page_size), _number_token(message.page_token) or 0


def get_reconciliation_response(run: Run, count: int, behind: int) -> ledger_pb.GetReconciliationResponse:
    """Write one reconciliation with `count` drifts behind the first ones."""
    shown = run.drifts[behind : behind + count]
    totals = [] if behind else sorted(run.totals.items())
    return ledger_pb.GetReconciliationResponse(
        reconciliation=ledger_pb.Reconciliation(
            number=run.number,
            clean=run.clean,
            cause=run.cause,
            begun_ms=run.begun_ms,
            ended_ms=run.ended_ms,
            shelves=run.shelves,
            codes=run.codes,
            drifts=run.drifts_total,
        ),
        totals=[
            ledger_pb.ReconciliationTotal(
                mall_id=mall_id,
                store_id=store_id,
                state=state,
                codes=total.codes[state],
                paid_fen=total.fen.get(state, 0),
            )
            for (mall_id, store_id), total in totals
            for state in sorted(total.codes)
        ],
        drifts=map(_drift, shown),
        next_page_token=str(behind + count) if behind + count < len(run.drifts) else "",
    )


def _drift(drift: Drift) -> ledger_pb.Drift:
    return ledger_pb.Drift(
        partition=drift.partition,
        what=drift.what,
        in_store=drift.in_store,
        in_ledger=drift.in_ledger,
        difference=drift.difference,
        mall_id=drift.mall_id,
        store_id=drift.store_id,
        sku_id=drift.sku_id,
        uid=drift.uid.hex(),
        events=drift.events,
    )


def start_reconciliation_request(message: ledger_pb.StartReconciliationRequest) -> tuple[str, str]:
    """Read and check a wish for a reconciliation: its id, and whose it is."""
    return checks.request_id(message.request_id), checks.text(message.actor, "actor", limits.ACTOR_CHARS_MAX)


def operation(found: Operation) -> ledger_pb.Operation:
    """Write an operation for the wire."""
    return ledger_pb.Operation(
        operation_id=found.id,
        state=ledger_pb.OperationState.ValueType(found.state),
        asked_ms=found.asked_ms,
        begun_ms=found.begun_ms,
        ended_ms=found.ended_ms,
        reconciliation=found.run,
        message=found.message,
        actor=found.actor,
    )


# --- audit and chain ----------------------------------------------------------------------------------------------


def search_audit_request(
    message: ledger_pb.SearchAuditRequest,
) -> tuple[audit.Question, int, audit.Cursor | None]:
    """Read and check a question to the audit: what, how many, and behind which finding."""
    for field in ("from_ms", "to_ms"):
        checks.whole(getattr(message, field), field, 0, 2**53, "unix milliseconds")
    question = audit.Question(
        uid=checks.uid(message.uid) if message.uid else b"",
        mall_id=message.mall_id,
        order_id=checks.text(message.order_id, "order_id", limits.ORDER_ID_CHARS_MAX),
        store_id=message.store_id,
        terminal_id=message.terminal_id,
        actor=checks.text(message.actor, "actor", limits.ACTOR_CHARS_MAX),
        from_ms=message.from_ms,
        to_ms=message.to_ms,
    )
    size = checks.whole(message.page_size, "page_size", 0, bounds.AUDIT_PAGE_MAX)
    token = checks.text(message.page_token, "page_token", bounds.PAGE_TOKEN_CHARS_MAX)
    try:
        after = audit.Cursor.parse(token) if token else None
    except InvalidInput:
        checks.refuse("page_token", token, _TOKEN)
    return question, size or bounds.AUDIT_PAGE_DEFAULT, after


def search_audit_response(page: audit.Page) -> ledger_pb.SearchAuditResponse:
    """Write a page of the audit for the wire."""
    return ledger_pb.SearchAuditResponse(
        findings=[
            ledger_pb.Finding(
                at_ms=one.at_ms,
                event_id=one.number,
                what=one.what,
                refused=one.refused,
                mall_id=one.mall_id,
                store_id=one.store_id,
                terminal_id=one.terminal_id,
                uid=one.uid.hex(),
                actor=one.actor,
                details_json=json.dumps(one.details, ensure_ascii=False, default=_plain),
            )
            for one in page.findings
        ],
        next_page_token=str(page.after or ""),
    )


def _plain(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def verify_chain_request(
    message: ledger_pb.VerifyChainRequest,
) -> tuple[int, Place | None, Place | None]:
    """Read and check a range of rows: partition, first and last place."""
    partition = checks.whole(message.partition, "partition", 0, CONTROL)
    first, last = _row(message.first, "first"), _row(message.last, "last")
    if first is not None and last is not None and last < first:
        checks.refuse("last", message.last, f"a row not before {first}")
    return partition, first, last


def _row(text: str, field: str) -> Place | None:
    if not text:
        return None
    found = _PLACE.fullmatch(text)
    if found is None:
        checks.refuse(field, text, "epoch-seq in decimal, for example 1-4711, or nothing")
    return Place(int(found[1]), int(found[2]))


def verify_chain_response(report: Report, following: Place | None) -> ledger_pb.VerifyChainResponse:
    """Write what verifying a range has found."""
    fault = next(iter(report.faults), None)
    unsound = next((f"{bad.source}: {bad.why}" for bad in report.unsound), "")
    return ledger_pb.VerifyChainResponse(
        sound=report.sound,
        rows=report.rows,
        next=str(following) if following is not None and fault is None else "",
        bad_row="" if fault is None else str(fault.place or ""),
        why=unsound if fault is None else fault.why,
        signed_heads=report.compared,
        signed_at_ms=report.signed_at_ms,
    )


@dataclass(frozen=True, slots=True)
class Status:
    """How far the ledger is."""

    deployment_id: str
    chain: str
    caught_up_ms: int
    now_ms: int
    alarm: str
    heads: Mapping[int, Head]
    in_store: Mapping[int, Place]
    consumers: Sequence[Acknowledged]


def status_response(status: Status) -> ledger_pb.GetLedgerStatusResponse:
    """Write how far the ledger is."""
    return ledger_pb.GetLedgerStatusResponse(
        deployment_id=status.deployment_id,
        chain=status.chain,
        caught_up_ms=status.caught_up_ms,
        lag_ms=max(0, status.now_ms - status.caught_up_ms) if status.caught_up_ms else 0,
        alarm=status.alarm,
        heads=[
            _head(number, status.heads.get(number), status.in_store.get(number, START))
            for number in sorted({*status.heads, *status.in_store})
        ],
        consumers=[
            ledger_pb.FeedConsumer(
                feed=_FEED_KINDS[one.consumer.feed],
                mall_id=one.consumer.mall_id,
                name=one.consumer.name,
                cursor=feed.cursor_text(one.cursor),
                acknowledged_at_ms=one.at_ms,
                owner=one.owner,
            )
            for one in status.consumers
        ],
    )


def _head(number: int, head: Head | None, in_store: Place) -> ledger_pb.LedgerHead:
    return ledger_pb.LedgerHead(
        partition=number,
        last="" if head is None else str(head.place),
        rows=0 if head is None else head.rows,
        link=b"" if head is None else head.link,
        last_in_store=str(in_store) if in_store.seq else "",
    )
