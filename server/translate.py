"""Between the wire and the engine: requests in, answers out. Pure: no clock, no store, no gRPC.

What comes from the wire is checked here for shape, length and range (`server.checks`): a malformed *request* is
InvalidInput naming the field. A malformed *code* that was scanned is no such thing: the engine judges it, INVALID_CODE.
Whether what a request names exists is the engine's to say. The numbers of the contract's enums equal the engine's
(tests/proto compares them), so that a number is carried over as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from typing import Any, Final, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import DecodeError, Message

from engine import calls, limits
from engine.claims import (
    Channel,
    Decision,
    EventId,
    Line,
    LineState,
    Position,
    Split,
    State,
    Suite,
    Terminal,
    Tier,
    Version,
)
from engine.errors import InvalidInput
from engine.nearest import COUNT_MAX as NEAREST_MAX
from engine.nearest import DISTANCE_M_MAX as NEAREST_M_MAX
from engine.offer import Offer, OfferRequest
from engine.review import PAGE_MAX
from engine.stock_watch import WATCHED_MAX, Crossing, Level, LevelsTold, News, WatchRequest
from engine.stores import CatalogueEntry, Mall, Store
from engine.verdict import RedeemVerdict, RenderVerdict, Verdict
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import review_service_pb2 as review_pb
from pickgate.v1 import stock_service_pb2 as stock_pb
from pickgate.v1 import store_service_pb2 as store_pb
from pickgate.v1 import types_pb2 as types_pb
from server import bounds, checks
from server import translate_rules as rules

NO_BUCKET: Final = 255
"""The engine's distance bucket when no distance was measured."""
TIME_ZONE_DEFAULT: Final = "Asia/Shanghai"

M = TypeVar("M", bound=Message)


def check_length(data: bytes, bytes_max: int) -> None:
    """Raise InvalidInput when a request is longer than `bytes_max`."""
    if len(data) > bytes_max:
        raise InvalidInput(f"the request has {len(data)} bytes; expected at most {bytes_max}")


def parse(kind: type[M], data: bytes, bytes_max: int) -> M:
    """Parse a message of `kind` from the wire.

    Raises:
        InvalidInput: longer than `bytes_max`, or no such message.
    """
    check_length(data, bytes_max)
    try:
        return kind.FromString(data)
    except DecodeError:
        raise InvalidInput(
            f"the request can't be parsed; expected a {kind.DESCRIPTOR.full_name}, with texts in UTF-8"
        ) from None


def enum_choices(enum: EnumDescriptor, *, unstated: bool = False) -> list[tuple[str, int]]:
    """List (name, number) of the values a caller may state; with `unstated` also 0."""
    return [(value.name, value.number) for value in enum.values if value.number or unstated]


# --- what requests share ------------------------------------------------------------------------------------------


def _terminal(message: types_pb.Terminal) -> Terminal:
    return Terminal(
        mall_id=checks.identifier(message.mall_id, "terminal.mall_id"),
        store_id=checks.identifier(message.store_id, "terminal.store_id"),
        terminal_id=checks.identifier(message.terminal_id, "terminal.terminal_id"),
    )


def position(
    message: redemption_pb.RedeemRequest
    | redemption_pb.InspectRequest
    | code_pb.RenderRequest
    | store_pb.NearestStoresRequest,
) -> Position | None:
    """Read and check the position of a request; None if it states none."""
    if not message.HasField("position"):
        return None
    position = message.position
    for field in ("latitude_deg", "longitude_deg"):
        # Absent would read as 0: a place in the Gulf of Guinea.
        if not position.HasField(field):
            raise InvalidInput(f"position.{field} is missing; expected degrees", field=f"position.{field}")
    if not math.isfinite(position.accuracy_m) or position.accuracy_m < 0:
        checks.refuse("position.accuracy_m", position.accuracy_m, "metres, 0 or more (0 = not stated)")
    return Position(
        latitude_deg=checks.degrees(position.latitude_deg, "position.latitude_deg", 90.0),
        longitude_deg=checks.degrees(position.longitude_deg, "position.longitude_deg", 180.0),
        accuracy_m=position.accuracy_m,
        datum=checks.choice(position.datum, "position.datum", enum_choices(types_pb.Datum.DESCRIPTOR)),
    )


def lines_of(messages: Sequence[types_pb.Line], *, lines_min: int) -> tuple[Line, ...]:
    """Read and check the lines of a request."""
    checks.length(messages, "lines", lines_min, limits.LINES_MAX)
    seen: set[int] = set()
    lines = []
    for index, message in enumerate(messages):
        sku_id = checks.identifier(message.sku_id, f"lines[{index}].sku_id")
        if sku_id in seen:
            checks.refuse(f"lines[{index}].sku_id", sku_id, "each SKU in one line only")
        seen.add(sku_id)
        lines.append(
            Line(sku_id, checks.whole(message.count, f"lines[{index}].count", 1, limits.COUNT_MAX, "units"))
        )
    return tuple(lines)


def _splits(messages: Sequence[types_pb.Split]) -> tuple[Split, ...]:
    checks.length(messages, "splits", 0, limits.SPLITS_MAX)
    return tuple(
        Split(
            payee=checks.text(message.payee, f"splits[{index}].payee", limits.PAYEE_CHARS_MAX, chars_min=1),
            role=checks.text(message.role, f"splits[{index}].role", limits.ROLE_CHARS_MAX, chars_min=1),
            level=checks.whole(message.level, f"splits[{index}].level", 0, limits.SPLIT_LEVEL_MAX),
            amount_fen=checks.whole(
                message.amount_fen, f"splits[{index}].amount_fen", 0, limits.AMOUNT_FEN_MAX, "fen"
            ),
        )
        for index, message in enumerate(messages)
    )


# --- what answers share -------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        # A system without a time zone database. China has had one zone, without summer time, since 1992.
        return timezone(timedelta(hours=8)) if name == TIME_ZONE_DEFAULT else UTC


def local_time(at_ms: int, time_zone: str) -> str:
    """Write unix milliseconds for a clerk: date and time of `time_zone` with its offset, "2026-05-01 09:30:00+08:00"."""
    return datetime.fromtimestamp(at_ms // 1000, _zone(time_zone)).isoformat(sep=" ")


def event_id(event: EventId | None) -> str:
    """Text form of an event's number; '' for none."""
    return "" if event is None else str(event)


def say(verdict: Verdict, answer: object, time_zone: str) -> tuple[str, str]:
    """The sentences of `verdict` (zh-CN, English), with the facts of `answer` filled in."""
    facts = {
        name: getattr(answer, name)
        for name in (
            "terminal_id",
            "sku_id",
            "store_id",
            "store_name",
            "tries_left",
            "review_id",
            "window",
        )
        if hasattr(answer, name)
    }
    if methods := getattr(answer, "proof_methods", ()):
        facts["proof_methods"] = methods
    if at_ms := getattr(answer, "at_ms", 0):
        facts["at"] = local_time(at_ms, time_zone)
    figures = getattr(answer, "figures", None)
    if isinstance(figures, calls.StockFigures):
        facts["on_hand"] = figures.on_hand
    return verdict.say(**facts)


def _next(verdict: Verdict) -> types_pb.NextStep.ValueType:
    return types_pb.NextStep.ValueType(verdict.next)


def line_states(lines: Iterable[LineState]) -> list[types_pb.LineState]:
    """Write lines of a code for the wire."""
    return [types_pb.LineState(sku_id=line.sku_id, count=line.count, left=line.left) for line in lines]


def code(record: calls.Record) -> types_pb.Code:
    """Write a record for the wire."""
    return types_pb.Code(
        uid=record.uid.hex(),
        state=types_pb.CodeState.ValueType(record.state),
        version=types_pb.Version.ValueType(record.version),
        suite=types_pb.Suite.ValueType(record.suite),
        mall_id=record.mall_id,
        store_id=record.store_id,
        order_id=record.order_id,
        lines=line_states(record.lines),
        channel=types_pb.Channel.ValueType(record.channel),
        policy_version=record.policy_version,
        issued_at_ms=record.issued_at_ms,
        changed_at_ms=record.changed_at_ms,
        expires_at_ms=record.expires_at_s * 1000,
        amount_fen=record.amount_fen,
        splits=[
            types_pb.Split(payee=split.payee, role=split.role, level=split.level, amount_fen=split.amount_fen)
            for split in record.splits
        ],
        revision=record.revision,
        cycle=record.cycle,
        tries=record.tries,
        terminal_id=record.terminal_id,
        redeemed_at_ms=record.redeemed_at_ms,
        review_id=event_id(record.lock),
        pin_generation=record.pin_generation,
        bundles=[
            types_pb.Bundle(sku_id=bundle.sku_id, units=bundle.units, parts=line_states(bundle.parts))
            for bundle in record.bundles
        ],
        windows_bind=record.windows_bind,
        proof_needed=record.proof_needed,
        replaces=record.replaces.hex(),
        ttl_s=record.ttl_s if record.state is State.HELD else 0,
    )


# --- redemption ---------------------------------------------------------------------------------------------------


def redeem_request(message: redemption_pb.RedeemRequest) -> calls.RedeemRequest:
    """Read and check a redemption."""
    return calls.RedeemRequest(
        terminal=_terminal(message.terminal),
        request_id=checks.request_id(message.request_id),
        code=checks.scanned(message.code),
        pin=checks.pin(message.pin),
        position=position(message),
        lines=lines_of(message.lines, lines_min=0),
        actor=checks.text(message.actor, "actor", limits.ACTOR_CHARS_MAX),
        proof_token=checks.proof_token(message.proof_token),
    )


def redeem_response(
    request_id: str, answer: calls.RedeemAnswer, time_zone: str = TIME_ZONE_DEFAULT
) -> redemption_pb.RedeemResponse:
    """Write the answer of a redemption; times in its sentence are those of `time_zone`."""
    verdict = answer.verdict
    zh, en = say(verdict, answer, time_zone)
    response = redemption_pb.RedeemResponse(
        verdict=redemption_pb.RedeemVerdict.ValueType(verdict.number),
        message_zh=zh,
        message_en=en,
        next_step=_next(verdict),
        request_id=request_id,
        uid=answer.uid.hex(),
        order_id=answer.order_id,
        lines=line_states(answer.lines),
        at_ms=answer.at_ms,
        terminal_id=answer.terminal_id,
        sku_id=answer.sku_id,
        store_id=answer.store_id,
        store_name=answer.store_name,
        cycle=answer.cycle,
        event_id=event_id(answer.event),
        review_id=answer.review_id,
        replayed=answer.replayed,
        window=answer.window,
    )
    if verdict in (RedeemVerdict.PIN_WRONG, RedeemVerdict.PROOF_REJECTED):
        response.tries_left = answer.tries_left
    if answer.distance_bucket != NO_BUCKET:
        response.distance_bucket = answer.distance_bucket
    return response


def inspect_request(message: redemption_pb.InspectRequest) -> calls.InspectRequest:
    """Read and check an inspection."""
    return calls.InspectRequest(
        terminal=_terminal(message.terminal),
        code=checks.scanned(message.code),
        position=position(message),
    )


def inspect_response(
    answer: calls.InspectAnswer, time_zone: str = TIME_ZONE_DEFAULT
) -> redemption_pb.InspectResponse:
    """Write the answer of an inspection; times in its sentence are those of `time_zone`."""
    zh, en = say(answer.verdict, answer, time_zone)
    response = redemption_pb.InspectResponse(
        verdict=redemption_pb.InspectVerdict.ValueType(answer.verdict.number),
        message_zh=zh,
        message_en=en,
        next_step=_next(answer.verdict),
        uid=answer.uid.hex(),
        order_id=answer.order_id,
        lines=line_states(answer.lines),
        at_ms=answer.at_ms,
        terminal_id=answer.terminal_id,
        sku_id=answer.sku_id,
        store_id=answer.store_id,
        store_name=answer.store_name,
        review_id=answer.review_id,
        version=types_pb.Version.ValueType(answer.version),
        expires_at_ms=answer.expires_at_s * 1000,
        pin_required=answer.pin_required,
        proof_required=answer.proof_required,
        window=answer.window,
    )
    if answer.distance_bucket != NO_BUCKET:
        response.distance_bucket = answer.distance_bucket
    return response


def reverse_request(message: redemption_pb.ReverseRequest) -> calls.ReverseRequest:
    """Read and check a reversal."""
    return calls.ReverseRequest(
        terminal=_terminal(message.terminal),
        request_id=checks.request_id(message.request_id),
        uid=checks.uid(message.uid),
        lines=lines_of(message.lines, lines_min=0),
        release=message.release,
        reason=checks.text(message.reason, "reason", limits.REASON_CHARS_MAX),
        actor=checks.text(message.actor, "actor", limits.ACTOR_CHARS_MAX),
    )


def reverse_response(
    request_id: str, answer: calls.ReverseAnswer, time_zone: str = TIME_ZONE_DEFAULT
) -> redemption_pb.ReverseResponse:
    """Write the answer of a reversal."""
    zh, en = say(answer.verdict, answer, time_zone)
    return redemption_pb.ReverseResponse(
        verdict=redemption_pb.ReverseVerdict.ValueType(answer.verdict.number),
        message_zh=zh,
        message_en=en,
        next_step=_next(answer.verdict),
        request_id=request_id,
        uid=answer.uid.hex(),
        lines=line_states(answer.lines),
        at_ms=answer.at_ms,
        expires_at_ms=answer.expires_at_s * 1000,
        sku_id=answer.sku_id,
        store_id=answer.store_id,
        store_name=answer.store_name,
        cycle=answer.cycle,
        event_id=event_id(answer.event),
        replayed=answer.replayed,
    )


# --- codes --------------------------------------------------------------------------------------------------------


def channel_of(number: int) -> Channel:
    """Read and check a channel; not stated is ONLINE."""
    checks.choice(number, "channel", enum_choices(types_pb.Channel.DESCRIPTOR, unstated=True))
    return Channel(number) if number else Channel.ONLINE


def issue_request(message: code_pb.IssueRequest | code_pb.HoldRequest) -> calls.IssueRequest:
    """Read and check an issue or a hold."""
    version = checks.choice(
        message.version, "version", enum_choices(types_pb.Version.DESCRIPTOR, unstated=True)
    )
    if message.ttl_s:
        checks.whole(
            message.ttl_s,
            "ttl_s",
            limits.TTL_S_MIN,
            limits.TTL_S_MAX,
            "seconds (or 0 for what the policies say)",
        )
    return calls.IssueRequest(
        mall_id=checks.identifier(message.mall_id, "mall_id"),
        request_id=checks.request_id(message.request_id),
        store_id=checks.identifier(message.store_id, "store_id"),
        order_id=checks.text(message.order_id, "order_id", limits.ORDER_ID_CHARS_MAX, chars_min=1),
        lines=lines_of(message.lines, lines_min=1),
        version=Version(version) if version else None,
        suite=Suite(checks.choice(message.suite, "suite", enum_choices(types_pb.Suite.DESCRIPTOR))),
        channel=channel_of(message.channel),
        ttl_s=message.ttl_s,
        amount_fen=checks.whole(message.amount_fen, "amount_fen", 0, limits.AMOUNT_FEN_MAX, "fen"),
        splits=_splits(message.splits),
        actor=checks.text(message.actor, "actor", limits.ACTOR_CHARS_MAX),
        replaces=checks.uid(message.replaces, "replaces") if message.replaces else b"",
    )


def issue_response(request_id: str, answer: calls.IssueAnswer) -> code_pb.IssueResponse:
    """Write the answer of an issue."""
    zh, en = say(answer.verdict, answer, TIME_ZONE_DEFAULT)
    return code_pb.IssueResponse(
        verdict=code_pb.IssueVerdict.ValueType(answer.verdict.number),
        message_zh=zh,
        message_en=en,
        next_step=_next(answer.verdict),
        request_id=request_id,
        uid=answer.uid.hex(),
        typed=answer.typed,
        pin=answer.pin,
        issued_at_ms=answer.issued_at_ms,
        expires_at_ms=answer.expires_at_s * 1000,
        sku_id=answer.sku_id,
        store_id=answer.store_id,
        event_id=event_id(answer.event),
        replayed=answer.replayed,
    )


def hold_response(request_id: str, answer: calls.HoldAnswer) -> code_pb.HoldResponse:
    """Write the answer of a hold."""
    zh, en = say(answer.verdict, answer, TIME_ZONE_DEFAULT)
    return code_pb.HoldResponse(
        verdict=code_pb.HoldVerdict.ValueType(answer.verdict.number),
        message_zh=zh,
        message_en=en,
        next_step=_next(answer.verdict),
        request_id=request_id,
        uid=answer.uid.hex(),
        issued_at_ms=answer.issued_at_ms,
        expires_at_ms=answer.expires_at_s * 1000,
        sku_id=answer.sku_id,
        store_id=answer.store_id,
        event_id=event_id(answer.event),
        replayed=answer.replayed,
    )


def confirm_request(message: code_pb.ConfirmRequest) -> calls.ConfirmRequest:
    """Read and check a confirmation."""
    return calls.ConfirmRequest(
        mall_id=checks.identifier(message.mall_id, "mall_id"),
        request_id=checks.request_id(message.request_id),
        uid=checks.uid(message.uid),
        actor=checks.text(message.actor, "actor", limits.ACTOR_CHARS_MAX),
    )


def confirm_response(request_id: str, answer: calls.ConfirmAnswer) -> code_pb.ConfirmResponse:
    """Write the answer of a confirmation."""
    zh, en = say(answer.verdict, answer, TIME_ZONE_DEFAULT)
    return code_pb.ConfirmResponse(
        verdict=code_pb.ConfirmVerdict.ValueType(answer.verdict.number),
        message_zh=zh,
        message_en=en,
        next_step=_next(answer.verdict),
        request_id=request_id,
        uid=answer.uid.hex(),
        typed=answer.typed,
        pin=answer.pin,
        expires_at_ms=answer.expires_at_s * 1000,
        event_id=event_id(answer.event),
        replayed=answer.replayed,
    )


def extend_request(message: code_pb.ExtendRequest) -> calls.ExtendRequest:
    """Read and check an extension; a part of a second counts as a whole one."""
    at_ms = checks.whole(
        message.expires_at_ms, "expires_at_ms", 1, limits.EXPIRES_AT_S_MAX * 1000, "unix milliseconds"
    )
    return calls.ExtendRequest(
        mall_id=checks.identifier(message.mall_id, "mall_id"),
        request_id=checks.request_id(message.request_id),
        uid=checks.uid(message.uid),
        expires_at_s=-(-at_ms // 1000),
        actor=checks.text(message.actor, "actor", limits.ACTOR_CHARS_MAX),
    )


def extend_response(request_id: str, answer: calls.ExtendAnswer) -> code_pb.ExtendResponse:
    """Write the answer of an extension."""
    zh, en = say(answer.verdict, answer, TIME_ZONE_DEFAULT)
    return code_pb.ExtendResponse(
        verdict=code_pb.ExtendVerdict.ValueType(answer.verdict.number),
        message_zh=zh,
        message_en=en,
        next_step=_next(answer.verdict),
        request_id=request_id,
        uid=answer.uid.hex(),
        expires_at_ms=answer.expires_at_s * 1000,
        event_id=event_id(answer.event),
        replayed=answer.replayed,
    )


def render_request(message: code_pb.RenderRequest) -> calls.RenderRequest:
    """Read and check a render; a count that is not stated is 1."""
    return calls.RenderRequest(
        mall_id=checks.identifier(message.mall_id, "mall_id"),
        uid=checks.uid(message.uid),
        count=checks.whole(message.count, "count", 0, bounds.RENDER_COUNT_MAX, "payloads") or 1,
        position=position(message),
        request_id=checks.request_id(message.request_id) if message.request_id else "",
        actor=checks.text(message.actor, "actor", limits.ACTOR_CHARS_MAX),
    )


def render_response(answer: calls.RenderAnswer, time_zone: str = TIME_ZONE_DEFAULT) -> code_pb.RenderResponse:
    """Write the answer of a render; times in its sentence are those of `time_zone`."""
    facts: object = answer
    if answer.record is not None:
        facts = _RenderFacts(answer, answer.record)
    zh, en = say(answer.verdict, facts, time_zone)
    response = code_pb.RenderResponse(
        verdict=code_pb.RenderVerdict.ValueType(answer.verdict.number),
        message_zh=zh,
        message_en=en,
        next_step=_next(answer.verdict),
        payloads=[
            code_pb.Payload(
                text=payload.text,
                valid_from_ms=payload.valid_from_ms,
                valid_until_ms=payload.valid_until_ms,
            )
            for payload in answer.payloads
        ],
        typed=answer.typed,
        pin=answer.pin,
        code=None if answer.record is None else code(answer.record),
        review_id=answer.review_id,
    )
    if answer.verdict is RenderVerdict.OUT_OF_RANGE:
        response.tries_left = answer.tries_left
    return response


class _RenderFacts:
    """The facts of a render's sentence: most are the record's."""

    def __init__(self, answer: calls.RenderAnswer, record: calls.Record) -> None:
        self.at_ms = record.redeemed_at_ms
        self.terminal_id = record.terminal_id
        self.store_id = record.store_id
        self.tries_left = answer.tries_left
        self.review_id = answer.review_id


def void_request(message: code_pb.VoidRequest) -> calls.VoidRequest:
    """Read and check a void."""
    return calls.VoidRequest(
        mall_id=checks.identifier(message.mall_id, "mall_id"),
        request_id=checks.request_id(message.request_id),
        uid=checks.uid(message.uid),
        reason=checks.text(message.reason, "reason", limits.REASON_CHARS_MAX),
        actor=checks.text(message.actor, "actor", limits.ACTOR_CHARS_MAX),
    )


def void_response(
    request_id: str, answer: calls.VoidAnswer, time_zone: str = TIME_ZONE_DEFAULT
) -> code_pb.VoidResponse:
    """Write the answer of a void; times in its sentence are those of `time_zone`."""
    zh, en = say(answer.verdict, answer, time_zone)
    return code_pb.VoidResponse(
        verdict=code_pb.VoidVerdict.ValueType(answer.verdict.number),
        message_zh=zh,
        message_en=en,
        next_step=_next(answer.verdict),
        request_id=request_id,
        uid=answer.uid.hex(),
        lines=line_states(answer.lines),
        at_ms=answer.at_ms,
        terminal_id=answer.terminal_id,
        event_id=event_id(answer.event),
        replayed=answer.replayed,
    )


# --- stock --------------------------------------------------------------------------------------------------------


def receive_request(message: stock_pb.ReceiveStockRequest) -> calls.StockRequest:
    """Read and check a receipt of goods."""
    return _stock_request(
        message,
        calls.StockChange.RECEIVE,
        checks.whole(message.count, "count", 1, limits.STOCK_MAX, "units"),
    )


def adjust_request(message: stock_pb.AdjustStockRequest) -> calls.StockRequest:
    """Read and check a correction: by a signed amount, or to what was counted."""
    match message.WhichOneof("change"):
        case "by":
            if message.by == 0:
                checks.refuse("by", 0, "a number of units to add or take off, not 0")
            amount = checks.whole(message.by, "by", -limits.STOCK_MAX, limits.STOCK_MAX, "units")
            return _stock_request(message, calls.StockChange.ADJUST_BY, amount)
        case "counted":
            amount = checks.whole(message.counted, "counted", 0, limits.STOCK_MAX, "units")
            return _stock_request(message, calls.StockChange.COUNT, amount)
        case _:
            raise InvalidInput("change is missing; expected `by` or `counted`", field="change")


def baseline_request(message: stock_pb.SetBaselineRequest) -> calls.StockRequest:
    """Read and check a baseline."""
    if not message.HasField("baseline"):
        raise InvalidInput("baseline is missing; expected units, 0 for no tiers", field="baseline")
    return _stock_request(
        message,
        calls.StockChange.BASELINE,
        checks.whole(message.baseline, "baseline", 0, limits.STOCK_MAX, "units"),
    )


def _stock_request(
    message: stock_pb.ReceiveStockRequest | stock_pb.AdjustStockRequest | stock_pb.SetBaselineRequest,
    change: calls.StockChange,
    amount: int,
) -> calls.StockRequest:
    return calls.StockRequest(
        mall_id=checks.identifier(message.mall_id, "mall_id"),
        request_id=checks.request_id(message.request_id),
        store_id=checks.identifier(message.store_id, "store_id"),
        sku_id=checks.identifier(message.sku_id, "sku_id"),
        change=change,
        amount=amount,
        reason=checks.text(message.reason, "reason", limits.REASON_CHARS_MAX),
        actor=checks.text(message.actor, "actor", limits.ACTOR_CHARS_MAX),
    )


def stock_figures(figures: calls.StockFigures) -> stock_pb.StockFigures:
    """Write stock figures for the wire."""
    return stock_pb.StockFigures(
        sku_id=figures.sku_id,
        on_hand=figures.on_hand,
        reserved=figures.reserved,
        baseline=figures.baseline,
        available=figures.available,
        short=figures.short,
        tier=_tier(figures.tier),
    )


def _tier(tier: int) -> types_pb.StockTier.ValueType:
    """The contract's number: its 0 says nothing, the engine's 0 is NORMAL."""
    return types_pb.StockTier.ValueType(Tier(tier) + 1)


def stock_outcome(request_id: str, answer: calls.StockAnswer) -> stock_pb.StockOutcome:
    """Write the answer of a stock change."""
    zh, en = say(answer.verdict, answer, TIME_ZONE_DEFAULT)
    return stock_pb.StockOutcome(
        verdict=stock_pb.StockVerdict.ValueType(answer.verdict.number),
        message_zh=zh,
        message_en=en,
        next_step=_next(answer.verdict),
        request_id=request_id,
        figures=None if answer.figures is None else stock_figures(answer.figures),
        sku_id=answer.sku_id,
        store_id=answer.store_id,
        event_id=event_id(answer.event),
        replayed=answer.replayed,
    )


def read_stock_request(message: stock_pb.ReadStockRequest) -> tuple[int, int, tuple[int, ...]]:
    """Read and check a read of stock: mall, store, SKUs (none = all)."""
    checks.length(message.sku_ids, "sku_ids", 0, bounds.READ_SKUS_MAX)
    return (
        checks.identifier(message.mall_id, "mall_id"),
        checks.identifier(message.store_id, "store_id"),
        tuple(checks.identifier(sku_id, f"sku_ids[{index}]") for index, sku_id in enumerate(message.sku_ids)),
    )


def transfer_request(message: stock_pb.TransferStockRequest) -> calls.TransferRequest:
    """Read and check a transfer."""
    from_store_id = checks.identifier(message.from_store_id, "from_store_id")
    to_store_id = checks.identifier(message.to_store_id, "to_store_id")
    if from_store_id == to_store_id:
        checks.refuse("to_store_id", to_store_id, "another store than from_store_id")
    return calls.TransferRequest(
        mall_id=checks.identifier(message.mall_id, "mall_id"),
        request_id=checks.request_id(message.request_id),
        from_store_id=from_store_id,
        to_store_id=to_store_id,
        sku_id=checks.identifier(message.sku_id, "sku_id"),
        amount=checks.whole(message.count, "count", 1, limits.STOCK_MAX, "units"),
        actor=checks.text(message.actor, "actor", limits.ACTOR_CHARS_MAX),
    )


def transfer_response(request_id: str, answer: calls.TransferAnswer) -> stock_pb.TransferStockResponse:
    """Write the answer of a transfer."""
    zh, en = say(answer.verdict, answer, TIME_ZONE_DEFAULT)
    return stock_pb.TransferStockResponse(
        verdict=stock_pb.TransferVerdict.ValueType(answer.verdict.number),
        message_zh=zh,
        message_en=en,
        next_step=_next(answer.verdict),
        request_id=request_id,
        figures=None if answer.figures is None else stock_figures(answer.figures),
        sku_id=answer.sku_id,
        store_id=answer.store_id,
        event_id=event_id(answer.event),
        replayed=answer.replayed,
    )


def watch_request(message: stock_pb.WatchStockRequest) -> WatchRequest:
    """Read and check a watch."""
    return WatchRequest(
        mall_id=checks.identifier(message.mall_id, "mall_id"),
        store_ids=_ids(message.store_ids, "store_ids"),
        sku_ids=_ids(message.sku_ids, "sku_ids"),
        tiers_only=message.tiers_only,
    )


def _ids(values: Sequence[int], field: str) -> tuple[int, ...]:
    checks.length(values, field, 0, WATCHED_MAX)
    return tuple(checks.identifier(value, f"{field}[{index}]") for index, value in enumerate(values))


def watch_response(news: News) -> stock_pb.WatchStockResponse:
    """Write one piece of news."""
    match news:
        case Level():
            level = stock_pb.StockLevel(store_id=news.store_id, figures=stock_figures(news.figures))
            return stock_pb.WatchStockResponse(level=level)
        case LevelsTold():
            return stock_pb.WatchStockResponse(levels_told=stock_pb.LevelsTold(count=news.count))
        case Crossing():
            return stock_pb.WatchStockResponse(crossing=_crossing(news))


def _crossing(crossing: Crossing) -> stock_pb.TierCrossing:
    zh, en = crossing.say()
    return stock_pb.TierCrossing(
        message_zh=zh,
        message_en=en,
        store_id=crossing.store_id,
        tier_before=_tier(crossing.before),
        figures=stock_figures(crossing.figures),
        at_ms=crossing.at_ms,
        event_id=event_id(crossing.event),
        alert=crossing.alert,
        replenish_count=crossing.replenish_count,
        factory_store_id=crossing.factory.store_id if crossing.factory else 0,
        factory_store_name=crossing.factory.name if crossing.factory else "",
    )


# --- reviews ------------------------------------------------------------------------------------------------------


def list_reviews_request(message: review_pb.ListReviewsRequest) -> tuple[int, int, str]:
    """Read and check a page of reviews: mall, how many, and where the page begins."""
    size = checks.whole(message.page_size, "page_size", 0, PAGE_MAX, "reviews")
    return (
        checks.identifier(message.mall_id, "mall_id"),
        size or bounds.REVIEWS_PAGE_DEFAULT,
        checks.text(message.page_token, "page_token", bounds.PAGE_TOKEN_CHARS_MAX),
    )


def review(found: calls.Review) -> review_pb.Review:
    """Write an open review for the wire."""
    return review_pb.Review(
        review_id=found.review_id,
        locked_at_ms=found.locked_at_ms,
        code=code(found.record),
        evidence=[_evidence(one) for one in found.evidence],
    )


def _evidence(one: calls.Evidence) -> review_pb.Evidence:
    written = review_pb.Evidence(
        at_ms=one.at_ms, store_id=one.store_id, terminal_id=one.terminal_id, actor=one.actor
    )
    if one.terminal_id:
        written.redeem_verdict = redemption_pb.RedeemVerdict.ValueType(one.verdict)
    else:
        written.render_verdict = code_pb.RenderVerdict.ValueType(one.verdict)
    if one.distance_bucket != NO_BUCKET:
        written.distance_bucket = one.distance_bucket
    return written


def decide_request(message: review_pb.DecideRequest) -> calls.ReviewRequest:
    """Read and check a decision."""
    decision = checks.choice(message.decision, "decision", enum_choices(review_pb.Decision.DESCRIPTOR))
    return calls.ReviewRequest(
        mall_id=checks.identifier(message.mall_id, "mall_id"),
        request_id=checks.request_id(message.request_id),
        uid=checks.uid(message.uid),
        decision=Decision(decision),
        actor=checks.text(message.actor, "actor", limits.ACTOR_CHARS_MAX, chars_min=1),
        reason=checks.text(message.reason, "reason", limits.REASON_CHARS_MAX),
    )


def decide_response(request_id: str, answer: calls.ReviewAnswer) -> review_pb.DecideResponse:
    """Write the answer of a decision."""
    zh, en = say(answer.verdict, answer, TIME_ZONE_DEFAULT)
    return review_pb.DecideResponse(
        verdict=review_pb.ReviewVerdict.ValueType(answer.verdict.number),
        message_zh=zh,
        message_en=en,
        next_step=_next(answer.verdict),
        request_id=request_id,
        uid=answer.uid.hex(),
        lines=line_states(answer.lines),
        at_ms=answer.at_ms,
        sku_id=answer.sku_id,
        event_id=event_id(answer.event),
        replayed=answer.replayed,
    )


# --- malls, stores, catalogue -------------------------------------------------------------------------------------


def malls(messages: Sequence[store_pb.Mall]) -> tuple[Mall, ...]:
    """Read and check malls to put."""
    checks.length(messages, "malls", 1, bounds.PUT_ITEMS_MAX)
    made = tuple(
        Mall(
            mall_id=checks.identifier(message.mall_id, f"malls[{index}].mall_id"),
            name=checks.text(message.name, f"malls[{index}].name", limits.NAME_CHARS_MAX, chars_min=1),
        )
        for index, message in enumerate(messages)
    )
    return rules.each_once(made, "malls")


def stores(messages: Sequence[store_pb.Store]) -> tuple[Store, ...]:
    """Read and check stores to put."""
    checks.length(messages, "stores", 1, bounds.PUT_ITEMS_MAX)
    made = tuple(_store(message, f"stores[{index}]") for index, message in enumerate(messages))
    return rules.each_once(made, "stores")


def _store(message: store_pb.Store, path: str) -> Store:
    for field in ("latitude_deg", "longitude_deg"):
        if not message.HasField(field):
            raise InvalidInput(f"{path}.{field} is missing; expected degrees", field=f"{path}.{field}")
    checks.length(message.mall_ids, f"{path}.mall_ids", 1, limits.MALLS_PER_STORE_MAX)
    mall_ids = tuple(
        checks.identifier(mall_id, f"{path}.mall_ids[{index}]")
        for index, mall_id in enumerate(message.mall_ids)
    )
    if len(set(mall_ids)) < len(mall_ids):
        checks.refuse(f"{path}.mall_ids", list(mall_ids), "each mall once")
    location = checks.choice(
        message.terminal_location,
        f"{path}.terminal_location",
        enum_choices(store_pb.TerminalLocation.DESCRIPTOR, unstated=True),
    )
    opening_hours = rules.hours(message.opening_hours, f"{path}.opening_hours")
    pickup_windows = rules.windows(message.pickup_windows, f"{path}.pickup_windows")
    special_days = rules.special_days(message.special_days, f"{path}.special_days")
    fields = _store_fields(message, path, mall_ids, location)
    with rules.at(path):
        return Store(
            **fields,
            factory=message.factory,
            opening_hours=opening_hours,
            pickup_windows=pickup_windows,
            special_days=special_days,
        )


def _store_fields(
    message: store_pb.Store, path: str, mall_ids: tuple[int, ...], location: int
) -> dict[str, Any]:
    return dict(
        store_id=checks.identifier(message.store_id, f"{path}.store_id"),
        name=checks.text(message.name, f"{path}.name", limits.NAME_CHARS_MAX, chars_min=1),
        city=checks.text(message.city, f"{path}.city", limits.NAME_CHARS_MAX),
        address=checks.text(message.address, f"{path}.address", limits.NAME_CHARS_MAX),
        mall_ids=mall_ids,
        latitude_deg=checks.degrees(message.latitude_deg, f"{path}.latitude_deg", 90.0),
        longitude_deg=checks.degrees(message.longitude_deg, f"{path}.longitude_deg", 180.0),
        datum=checks.choice(message.datum, f"{path}.datum", enum_choices(types_pb.Datum.DESCRIPTOR)),
        radius_m=checks.whole(
            message.radius_m or limits.RADIUS_M_DEFAULT, f"{path}.radius_m", 1, limits.RADIUS_M_MAX, "metres"
        ),
        terminal_location=rules.TERMINAL_LOCATIONS[location or store_pb.TERMINAL_LOCATION_REQUIRED],
        closed=message.closed,
        time_zone=checks.time_zone(message.time_zone or TIME_ZONE_DEFAULT, f"{path}.time_zone"),
        region=checks.text(message.region, f"{path}.region", limits.NAME_CHARS_MAX),
    )


def catalogue(messages: Sequence[store_pb.CatalogueEntry]) -> tuple[CatalogueEntry, ...]:
    """Read and check catalogue entries to put."""
    checks.length(messages, "entries", 1, bounds.PUT_ITEMS_MAX)
    made = tuple(_catalogue_entry(message, f"entries[{index}]") for index, message in enumerate(messages))
    return rules.each_once(made, "entries")


def _catalogue_entry(message: store_pb.CatalogueEntry, path: str) -> CatalogueEntry:
    mode = message.pickup_mode
    with rules.at(path):
        return CatalogueEntry(
            mall_id=checks.identifier(message.mall_id, f"{path}.mall_id"),
            sku_id=checks.identifier(message.sku_id, f"{path}.sku_id"),
            name=checks.text(message.name, f"{path}.name", limits.NAME_CHARS_MAX, chars_min=1),
            unit=checks.text(message.unit or "件", f"{path}.unit", bounds.UNIT_CHARS_MAX),
            parts=tuple((part.sku_id, part.count) for part in message.parts),
            pickup_mode=rules.word(mode, f"{path}.pickup_mode", rules.PICKUP_MODES) if mode else None,
        )


def mall_message(mall: Mall) -> store_pb.Mall:
    """Write a mall for the wire."""
    return store_pb.Mall(mall_id=mall.mall_id, name=mall.name)


def store_message(store: Store) -> store_pb.Store:
    """Write a store for the wire."""
    return store_pb.Store(
        store_id=store.store_id,
        name=store.name,
        city=store.city,
        address=store.address,
        mall_ids=store.mall_ids,
        latitude_deg=store.latitude_deg,
        longitude_deg=store.longitude_deg,
        datum=types_pb.Datum.ValueType(store.datum),
        radius_m=store.radius_m,
        terminal_location=rules.number(store.terminal_location, rules.TERMINAL_LOCATIONS),
        closed=store.closed,
        time_zone=store.time_zone,
        region=store.region,
        factory=store.factory,
        opening_hours=rules.hours_messages(store.opening_hours),
        pickup_windows=rules.windows_messages(store.pickup_windows),
        special_days=[rules.special_day_message(special) for special in store.special_days],
    )


def catalogue_message(entry: CatalogueEntry) -> store_pb.CatalogueEntry:
    """Write a catalogue entry for the wire."""
    return store_pb.CatalogueEntry(
        mall_id=entry.mall_id,
        sku_id=entry.sku_id,
        name=entry.name,
        unit=entry.unit,
        parts=[types_pb.Line(sku_id=sku_id, count=count) for sku_id, count in entry.parts],
        pickup_mode=rules.number(entry.pickup_mode, rules.PICKUP_MODES)
        if entry.pickup_mode
        else types_pb.PICKUP_MODE_UNSPECIFIED,
    )


def page(
    message: store_pb.ListMallsRequest | store_pb.ListStoresRequest | store_pb.ListCatalogueRequest,
) -> tuple[int, int]:
    """Read and check a page's bounds: how many items, and the id after which it begins (0 for the first page)."""
    size = checks.whole(message.page_size, "page_size", 0, bounds.PAGE_ITEMS_MAX, "items")
    token = message.page_token
    if token and not (token.isascii() and token.isdigit() and len(token) <= len(str(limits.ID_MAX))):
        checks.refuse("page_token", token, "the next_page_token of an earlier answer, or nothing")
    return size or bounds.PAGE_ITEMS_MAX, int(token or 0)


def nearest_request(message: store_pb.NearestStoresRequest) -> OfferRequest:
    """Read and check a search for the nearest stores."""
    place = position(message)
    if place is None:
        raise InvalidInput("position is missing; expected the point to start from", field="position")
    return OfferRequest(
        mall_id=checks.identifier(message.mall_id, "mall_id"),
        position=place,
        lines=lines_of(message.lines, lines_min=0),
        channel=channel_of(message.channel),
        count_max=checks.whole(message.stores_max, "stores_max", 0, NEAREST_MAX, "stores")
        or bounds.NEAREST_DEFAULT,
        distance_m_max=checks.whole(message.distance_m_max, "distance_m_max", 0, int(NEAREST_M_MAX), "metres")
        or NEAREST_M_MAX,
        closed_now_too=message.closed_now_too,
    )


def nearest_response(offers: Iterable[Offer]) -> store_pb.NearestStoresResponse:
    """Write the nearest stores for the wire."""
    return store_pb.NearestStoresResponse(
        stores=[
            store_pb.NearbyStore(
                store=store_message(offer.store),
                distance_m=offer.distance_m,
                open=offer.open,
                opens_at_ms=offer.opens_at_ms,
                figures=map(stock_figures, offer.figures),
            )
            for offer in offers
        ]
    )
