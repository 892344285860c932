"""Between the wire and the engine: requests in, answers out. Pure: no clock, no store, no gRPC.

What comes from the wire is checked here for shape, length and range (`server.checks`): a malformed *request* is
InvalidInput naming the field. A malformed *code* that was scanned is no such thing: the engine judges it, INVALID_CODE.
Whether what a request names exists is the engine's to say. The numbers of the contract's enums equal the engine's
(tests/proto compares them), so that a number is carried over as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from typing import Final, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import DecodeError, Message

from engine import calls, limits
from engine.claims import Channel, EventId, Line, LineState, Position, Split, Suite, Terminal, Version
from engine.errors import InvalidInput
from engine.stores import CatalogueEntry, Mall, Store, TerminalLocation
from engine.verdict import Verdict
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import stock_service_pb2 as stock_pb
from pickgate.v1 import store_service_pb2 as store_pb
from pickgate.v1 import types_pb2 as types_pb
from server import bounds, checks

NO_BUCKET: Final = 255
"""The engine's distance bucket when no distance was measured."""
TIME_ZONE_DEFAULT: Final = "Asia/Shanghai"

M = TypeVar("M", bound=Message)


def parse(kind: type[M], data: bytes, bytes_max: int) -> M:
    """Parse a message of `kind` from the wire.

    Raises:
        InvalidInput: longer than `bytes_max`, or no such message.
    """
    if len(data) > bytes_max:
        raise InvalidInput(f"the request has {len(data)} bytes; expected at most {bytes_max}")
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


def _position(message: redemption_pb.RedeemRequest | redemption_pb.InspectRequest) -> Position | None:
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


def _lines(messages: Sequence[types_pb.Line], *, lines_min: int) -> tuple[Line, ...]:
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
    checks.length(messages, "splits", 0, bounds.SPLITS_MAX)
    return tuple(
        Split(
            payee=checks.text(message.payee, f"splits[{index}].payee", bounds.PAYEE_CHARS_MAX, chars_min=1),
            role=checks.text(message.role, f"splits[{index}].role", bounds.ROLE_CHARS_MAX, chars_min=1),
            level=checks.whole(message.level, f"splits[{index}].level", 0, bounds.SPLIT_LEVEL_MAX),
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
        for name in ("terminal_id", "sku_id", "store_id", "store_name", "tries_left", "review_id")
        if hasattr(answer, name)
    }
    if at_ms := getattr(answer, "at_ms", 0):
        facts["at"] = local_time(at_ms, time_zone)
    figures = getattr(answer, "figures", None)
    if isinstance(figures, calls.StockFigures):
        facts["on_hand"] = figures.on_hand
    return verdict.say(**facts)


def _next(verdict: Verdict) -> types_pb.NextStep.ValueType:
    return types_pb.NextStep.ValueType(verdict.next)


def _line_states(lines: Iterable[LineState]) -> list[types_pb.LineState]:
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
        lines=_line_states(record.lines),
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
    )


# --- redemption ---------------------------------------------------------------------------------------------------


def redeem_request(message: redemption_pb.RedeemRequest) -> calls.RedeemRequest:
    """Read and check a redemption."""
    return calls.RedeemRequest(
        terminal=_terminal(message.terminal),
        request_id=checks.request_id(message.request_id),
        code=checks.scanned(message.code),
        pin=checks.pin(message.pin),
        position=_position(message),
        lines=_lines(message.lines, lines_min=0),
        actor=checks.text(message.actor, "actor", limits.ACTOR_CHARS_MAX),
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
        lines=_line_states(answer.lines),
        at_ms=answer.at_ms,
        terminal_id=answer.terminal_id,
        sku_id=answer.sku_id,
        store_id=answer.store_id,
        store_name=answer.store_name,
        cycle=answer.cycle,
        event_id=event_id(answer.event),
        review_id=answer.review_id,
        replayed=answer.replayed,
    )
    if verdict.slug == "PIN_WRONG":
        response.tries_left = answer.tries_left
    if answer.distance_bucket != NO_BUCKET:
        response.distance_bucket = answer.distance_bucket
    return response


def inspect_request(message: redemption_pb.InspectRequest) -> calls.InspectRequest:
    """Read and check an inspection."""
    return calls.InspectRequest(
        terminal=_terminal(message.terminal),
        code=checks.scanned(message.code),
        position=_position(message),
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
        lines=_line_states(answer.lines),
        at_ms=answer.at_ms,
        terminal_id=answer.terminal_id,
        sku_id=answer.sku_id,
        store_id=answer.store_id,
        store_name=answer.store_name,
        review_id=answer.review_id,
        version=types_pb.Version.ValueType(answer.version),
        expires_at_ms=answer.expires_at_s * 1000,
        pin_required=answer.pin_required,
    )
    if answer.distance_bucket != NO_BUCKET:
        response.distance_bucket = answer.distance_bucket
    return response


# --- codes --------------------------------------------------------------------------------------------------------


def issue_request(message: code_pb.IssueRequest) -> calls.IssueRequest:
    """Read and check an issue."""
    channel = checks.choice(
        message.channel, "channel", enum_choices(types_pb.Channel.DESCRIPTOR, unstated=True)
    )
    if message.ttl_s:
        checks.whole(
            message.ttl_s, "ttl_s", limits.TTL_S_MIN, limits.TTL_S_MAX, "seconds (or 0 for 48 hours)"
        )
    return calls.IssueRequest(
        mall_id=checks.identifier(message.mall_id, "mall_id"),
        request_id=checks.request_id(message.request_id),
        store_id=checks.identifier(message.store_id, "store_id"),
        order_id=checks.text(message.order_id, "order_id", limits.ORDER_ID_CHARS_MAX, chars_min=1),
        lines=_lines(message.lines, lines_min=1),
        version=Version(checks.choice(message.version, "version", enum_choices(types_pb.Version.DESCRIPTOR))),
        suite=Suite(checks.choice(message.suite, "suite", enum_choices(types_pb.Suite.DESCRIPTOR))),
        channel=Channel(channel) if channel else Channel.ONLINE,
        ttl_s=message.ttl_s,
        amount_fen=checks.whole(message.amount_fen, "amount_fen", 0, limits.AMOUNT_FEN_MAX, "fen"),
        splits=_splits(message.splits),
        actor=checks.text(message.actor, "actor", limits.ACTOR_CHARS_MAX),
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


def render_request(message: code_pb.RenderRequest) -> calls.RenderRequest:
    """Read and check a render; a count that is not stated is 1."""
    return calls.RenderRequest(
        mall_id=checks.identifier(message.mall_id, "mall_id"),
        uid=checks.uid(message.uid),
        count=checks.whole(message.count, "count", 0, bounds.RENDER_COUNT_MAX, "payloads") or 1,
    )


def render_response(answer: calls.RenderAnswer, time_zone: str = TIME_ZONE_DEFAULT) -> code_pb.RenderResponse:
    """Write the answer of a render; times in its sentence are those of `time_zone`."""
    facts: object = answer
    if answer.record is not None:
        facts = _RecordFacts(answer.record)
    zh, en = say(answer.verdict, facts, time_zone)
    return code_pb.RenderResponse(
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
    )


class _RecordFacts:
    """The facts of a sentence, taken from a record."""

    def __init__(self, record: calls.Record) -> None:
        self.at_ms = record.redeemed_at_ms
        self.terminal_id = record.terminal_id
        self.store_id = record.store_id
        self.review_id = event_id(record.lock)


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
        lines=_line_states(answer.lines),
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
    )


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


# --- malls, stores, catalogue -------------------------------------------------------------------------------------

_TERMINAL_LOCATION: Final[Mapping[store_pb.TerminalLocation.ValueType, TerminalLocation]] = {
    store_pb.TERMINAL_LOCATION_REQUIRED: "required",
    store_pb.TERMINAL_LOCATION_OPTIONAL: "optional",
    store_pb.TERMINAL_LOCATION_OFF: "off",
}
_TERMINAL_LOCATION_NUMBER: Final = {name: number for number, name in _TERMINAL_LOCATION.items()}


def malls(messages: Sequence[store_pb.Mall]) -> tuple[Mall, ...]:
    """Read and check malls to put."""
    checks.length(messages, "malls", 1, bounds.PUT_ITEMS_MAX)
    return tuple(
        Mall(
            mall_id=checks.identifier(message.mall_id, f"malls[{index}].mall_id"),
            name=checks.text(message.name, f"malls[{index}].name", limits.NAME_CHARS_MAX, chars_min=1),
        )
        for index, message in enumerate(messages)
    )


def stores(messages: Sequence[store_pb.Store]) -> tuple[Store, ...]:
    """Read and check stores to put."""
    checks.length(messages, "stores", 1, bounds.PUT_ITEMS_MAX)
    return tuple(_store(message, f"stores[{index}]") for index, message in enumerate(messages))


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
    return Store(
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
        terminal_location=_TERMINAL_LOCATION[
            store_pb.TerminalLocation.ValueType(location or store_pb.TERMINAL_LOCATION_REQUIRED)
        ],
        closed=message.closed,
        time_zone=checks.time_zone(message.time_zone or TIME_ZONE_DEFAULT, f"{path}.time_zone"),
        region=checks.text(message.region, f"{path}.region", limits.NAME_CHARS_MAX),
    )


def catalogue(messages: Sequence[store_pb.CatalogueEntry]) -> tuple[CatalogueEntry, ...]:
    """Read and check catalogue entries to put."""
    checks.length(messages, "entries", 1, bounds.PUT_ITEMS_MAX)
    return tuple(
        CatalogueEntry(
            mall_id=checks.identifier(message.mall_id, f"entries[{index}].mall_id"),
            sku_id=checks.identifier(message.sku_id, f"entries[{index}].sku_id"),
            name=checks.text(message.name, f"entries[{index}].name", limits.NAME_CHARS_MAX, chars_min=1),
            unit=checks.text(message.unit or "件", f"entries[{index}].unit", bounds.UNIT_CHARS_MAX),
        )
        for index, message in enumerate(messages)
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
        terminal_location=_TERMINAL_LOCATION_NUMBER[store.terminal_location],
        closed=store.closed,
        time_zone=store.time_zone,
        region=store.region,
    )


def catalogue_message(entry: CatalogueEntry) -> store_pb.CatalogueEntry:
    """Write a catalogue entry for the wire."""
    return store_pb.CatalogueEntry(
        mall_id=entry.mall_id, sku_id=entry.sku_id, name=entry.name, unit=entry.unit
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
