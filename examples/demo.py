"""The demo: pickup codes are issued, shown, scanned and redeemed on real parts, and every way to be refused is tried.

`make demo` runs it. It starts `pickgate serve` with an embedded store on a fresh folder (every answer fsynced), loads the
files beside this one over gRPC, issues a code for each order, draws the QR codes as PNG, reads them back with an
independent decoder (zxing-cpp), and redeems over gRPC what the decoder read. Each scan has its expected verdict. The exit
status is 0 only if every verdict is the expected one, every QR code read back as what was drawn, no refusal moved any
stock, and in the end the stock adds up. It takes a little over a minute, because a screenshot has to grow really old.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import selectors
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, Final, TypeVar
from zoneinfo import ZoneInfo

# Before grpc is imported: its own diagnostics would stand between the lines of the table.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import zxingcpp
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from PIL import Image
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.state import launch
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import stock_service_pb2 as stock_pb
from pickgate.v1 import store_service_pb2 as store_pb
from pickgate.v1 import types_pb2 as types_pb
from server import qr
from server.client import CallFailed, Client
from server.plain import enum_name, message_of

M = TypeVar("M", bound=Message)

FOLDER: Final = Path(__file__).resolve().parent
OUT_DEFAULT: Final = FOLDER.parent / "build" / "demo"
START_S_MAX: Final = 60.0
STOP_S_MAX: Final = 30.0
READS_MAX: Final = 20
TIME_ZONE: Final = ZoneInfo("Asia/Shanghai")
"""Where all stores of the examples are."""
WIDTH: Final = 148
"""Columns of the table where the output is no terminal."""

QR_VERSIONS: Final = {types_pb.VERSION_STATIC: 3, types_pb.VERSION_DYNAMIC: 4, types_pb.VERSION_VALUABLE: 8}
"""The QR version that each kind of code fits into at error level M (docs/format.md)."""

KEPT_VARIABLES: Final = {"PICKGATE_PURE", "PICKGATE_STORE_BINARY"}
"""Which kernels and which store binary to use: not settings of a deployment."""

EXPIRING: Final = "1019"
"""The order whose code expires during the demo: a sweep gives its stock back at a moment of its own."""

Key = tuple[int, int, int]
"""Mall, store, SKU."""


@dataclasses.dataclass(frozen=True, slots=True)
class Figures:
    """Stock of one SKU as the server tells it."""

    on_hand: int
    reserved: int


@dataclasses.dataclass(slots=True)
class Order:
    """An order of orders.json, with what became of it."""

    request: code_pb.IssueRequest
    issued: code_pb.IssueResponse
    left: dict[int, int]
    """SKU → units not yet handed out, by the demo's own books."""
    ends_as: str = "LIVE"
    """The state that the demo expects at the end, for codes with something left."""

    @property
    def keys(self) -> list[Key]:
        """The stock figures that it concerns."""
        return [(self.request.mall_id, self.request.store_id, line.sku_id) for line in self.request.lines]


@dataclasses.dataclass(frozen=True, slots=True)
class Terminal:
    """A terminal of terminals.json: who it is, and where it says it stands (None: it does not say)."""

    identity: types_pb.Terminal
    position: types_pb.Position | None


def read(name: str, kind: type[M]) -> list[M]:
    """Read an example file with the fields of `kind`."""
    entries = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return [message_of(kind, entry, f"{name}[{index}]") for index, entry in enumerate(entries)]


def slug(response: Any) -> str:
    """The verdict's name, such as ALREADY_REDEEMED."""
    return enum_name(response.DESCRIPTOR.fields_by_name["verdict"].enum_type, response.verdict)


def flip(text: str, at: int) -> str:
    """Change one character of a payload into another one of its alphabet."""
    return text[:at] + ("Z" if text[at] != "Z" else "0") + text[at + 1 :]


def moved(position: types_pb.Position, *, north_m: float) -> types_pb.Position:
    """The same position further north; a degree of latitude has about 111.2 km."""
    far = types_pb.Position()
    far.CopyFrom(position)
    far.latitude_deg += north_m / 111_200
    return far


class Demo:
    """The session: what is known of orders and stock, the rows of the table, and everything found wrong."""

    def __init__(self, client: Client, out: Path, console: Console) -> None:
        self.client = client
        self.out = out
        self.console = console
        self.problems: list[str] = []
        self.sentences: list[tuple[str, str, str]] = []
        self.scans = 0
        self.pictures = 0
        self.answers_ms: list[float] = []
        self.stores: dict[int, store_pb.Store] = {}
        self.terminals: dict[int, Terminal] = {}
        self.orders: dict[str, Order] = {}
        self.received: Counter[Key] = Counter()
        self.adjusted: Counter[Key] = Counter()
        self.redeemed: Counter[Key] = Counter()
        self.table = self.new_table()

    # --- loading and issuing ------------------------------------------------------------------------------------

    def load(self) -> None:
        """Put malls, stores and catalogue, and receive the stock."""
        client = self.client
        malls = read("malls", store_pb.Mall)
        stores = read("stores", store_pb.Store)
        entries = read("catalogue", store_pb.CatalogueEntry)
        client.call(
            client.stores.PutMalls,
            store_pb.PutMallsRequest(malls=malls, request_id="demo-malls", actor="demo"),
        )
        client.call(
            client.stores.PutStores,
            store_pb.PutStoresRequest(stores=stores, request_id="demo-stores", actor="demo"),
        )
        client.call(
            client.stores.PutCatalogue,
            store_pb.PutCatalogueRequest(entries=entries, request_id="demo-catalogue", actor="demo"),
        )
        self.stores = {store.store_id: store for store in stores}
        for number, receipt in enumerate(read("stock", stock_pb.ReceiveStockRequest)):
            receipt.request_id = f"demo-receipt-{number}"
            response = client.call(client.stock.ReceiveStock, receipt)
            self.expect("a receipt", slug(response.outcome), "RECEIVED")
            self.received[receipt.mall_id, receipt.store_id, receipt.sku_id] += receipt.count
        for entry in json.loads((FOLDER / "terminals.json").read_text(encoding="utf-8")):
            position = entry.pop("position", None)
            identity = message_of(types_pb.Terminal, entry, "terminals")
            where = None if position is None else message_of(types_pb.Position, position, "position")
            self.terminals[identity.terminal_id] = Terminal(identity, where)

    def issue(self) -> None:
        """Issue a code for every order; all but the last, which asks for more than there is, must be issued."""
        requests = read("orders", code_pb.IssueRequest)
        batch = code_pb.IssueBatchRequest(requests=requests)
        outcomes = self.client.call(self.client.codes.IssueBatch, batch).outcomes
        for request, outcome in zip(requests, outcomes, strict=True):
            if outcome.HasField("error"):
                self.problems.append(f"order {request.order_id}: {outcome.error.message}")
                continue
            issued = outcome.response
            order = Order(request, issued, {line.sku_id: line.count for line in request.lines})
            self.orders[request.order_id] = order
            if request is not requests[-1]:
                self.expect(f"issue of order {request.order_id}", slug(issued), "ISSUED")
        last = self.orders[requests[-1].order_id]
        last.left, last.ends_as = {}, "NOT ISSUED"
        before = self.books()
        self.row(last, "issue: more than there is", last.issued, "STOCK_SHORT", before, self.books())

    # --- showing ------------------------------------------------------------------------------------------------

    def render(self, order_id: str) -> code_pb.Payload:
        """Ask for the payload that the customer's phone shows now."""
        order = self.orders[order_id]
        request = code_pb.RenderRequest(mall_id=order.request.mall_id, uid=order.issued.uid)
        response = self.client.call(self.client.codes.Render, request)
        self.expect(f"render of order {order_id}", slug(response), "RENDERED")
        return response.payloads[0]

    def show(self, order_id: str) -> str:
        """Render a code, draw it, and give what the decoder reads."""
        payload = self.render(order_id)
        return self.picture(payload.text, order_id, QR_VERSIONS[self.orders[order_id].request.version])

    def picture(self, text: str, name: str, version: int | None = None) -> str:
        """Draw a QR code as PNG, read the file with zxing-cpp, and give what it read."""
        code = qr.make(text)
        path = self.out / f"{self.pictures:02}-{name}.png"
        self.pictures += 1
        qr.save(code, path, "png")
        if version is not None and code.version != version:
            self.problems.append(f"{path.name}: QR version {code.version}, expected {version}")
        with Image.open(path) as image:
            found = zxingcpp.read_barcodes(image.convert("L"))
        if len(found) != 1 or found[0].text != text:
            self.problems.append(
                f"{path.name}: drew {text!r}, the decoder read {[one.text for one in found]}"
            )
            return ""
        return str(found[0].text)

    # --- scanning -----------------------------------------------------------------------------------------------

    def scan(
        self,
        order_id: str,
        what: str,
        expected: str,
        terminal_id: int,
        code: str,
        *,
        pin: str = "",
        position: types_pb.Position | None = None,
        without_position: bool = False,
        lines: Mapping[int, int] | None = None,
        request_id: str = "",
        replayed: bool = False,
        facts: Mapping[str, object] | None = None,
        say: bool = False,
    ) -> redemption_pb.RedeemResponse:
        """Try to redeem, and hold the answer and the stock against what is expected.

        `position` replaces the terminal's own, `lines` asks for a part, `facts` are further fields of the answer that
        must have these values, `say` keeps the clerk's sentences for the end.
        """
        order, terminal = self.orders[order_id], self.terminals[terminal_id]
        self.scans += 1
        request = redemption_pb.RedeemRequest(
            terminal=terminal.identity,
            request_id=request_id or f"demo-scan-{self.scans}",
            code=code,
            pin=pin,
            lines=[types_pb.Line(sku_id=sku, count=count) for sku, count in (lines or {}).items()],
            actor=f"clerk:{terminal_id}",
        )
        if not without_position and (where := position or terminal.position) is not None:
            request.position.CopyFrom(where)
        before = self.books()
        started_s = time.perf_counter()
        answer = self.client.call(self.client.redemption.Redeem, request)
        self.answers_ms.append((time.perf_counter() - started_s) * 1000)
        after = self.books()
        if expected == "REDEEMED" and not replayed:
            self.hand_out(order, answer, lines)
        row = f"order {order_id}, {what}"
        self.expect(f"{row}: replayed", answer.replayed, replayed)
        for name, value in (facts or {}).items():
            self.expect(f"{row}: {name}", getattr(answer, name), value)
        taken = {} if expected != "REDEEMED" or replayed else (lines or self.counts(answer))
        self.row(order, what, answer, expected, before, after, taken)
        if say:
            self.sentences.append((slug(answer), answer.message_zh, answer.message_en))
        return answer

    def hand_out(
        self, order: Order, answer: redemption_pb.RedeemResponse, lines: Mapping[int, int] | None
    ) -> None:
        """Book on our side what a redemption must have handed out: what was asked for, or all that was left."""
        wanted = dict(lines) if lines else {sku: left for sku, left in order.left.items() if left}
        self.expect(f"order {order.request.order_id}: handed out", self.counts(answer), wanted)
        self.expect(
            f"order {order.request.order_id}: the answer's order", answer.order_id, order.request.order_id
        )
        for sku, count in wanted.items():
            order.left[sku] -= count
            self.redeemed[order.request.mall_id, order.request.store_id, sku] += count

    @staticmethod
    def counts(answer: redemption_pb.RedeemResponse) -> dict[int, int]:
        """What a redemption says it took: SKU → units."""
        return {line.sku_id: line.count for line in answer.lines}

    def void(self, order_id: str) -> None:
        """End a code as its mall would."""
        order = self.orders[order_id]
        request = code_pb.VoidRequest(
            mall_id=order.request.mall_id,
            request_id=f"demo-void-{order_id}",
            uid=order.issued.uid,
            reason="refund",
        )
        before = self.books()
        response = self.client.call(self.client.codes.Void, request)
        after = self.books()
        self.row(order, "the mall voids the code", response, "VOIDED", before, after, freed=dict(order.left))
        order.ends_as = "VOIDED"

    def stocktake(self, order_id: str, sku_id: int, counted: int) -> None:
        """Set what is on hand to what somebody counted."""
        order = self.orders[order_id]
        request = stock_pb.AdjustStockRequest(
            mall_id=order.request.mall_id,
            request_id=f"demo-count-{order_id}",
            store_id=order.request.store_id,
            sku_id=sku_id,
            counted=counted,
            reason="stocktake",
        )
        key = request.mall_id, request.store_id, sku_id
        before = self.books()
        outcome = self.client.call(self.client.stock.AdjustStock, request).outcome
        change = counted - before[key].on_hand
        self.adjusted[key] += change
        self.row(
            order, f"a stocktake counts {counted}", outcome, "ADJUSTED", before, self.books(), {sku_id: -change},
            keeps_reserved=True,
        )  # fmt: skip

    # --- holding against the books ------------------------------------------------------------------------------

    def expect(self, what: str, got: object, wanted: object) -> bool:
        """Note a problem unless `got` is what was wanted."""
        if got != wanted:
            self.problems.append(f"{what}: got {got!r}, expected {wanted!r}")
        return got == wanted

    def books(self) -> dict[Key, Figures]:
        """All stock figures, as the server tells them."""
        figures: dict[Key, Figures] = {}
        for mall_id, store_id in sorted({key[:2] for key in self.received}):
            request = stock_pb.ReadStockRequest(mall_id=mall_id, store_id=store_id)
            for one in self.client.call(self.client.stock.ReadStock, request).figures:
                figures[mall_id, store_id, one.sku_id] = Figures(one.on_hand, one.reserved)
        return figures

    def row(
        self,
        order: Order,
        what: str,
        answer: Any,
        expected: str,
        before: Mapping[Key, Figures],
        after: Mapping[Key, Figures],
        taken: Mapping[int, int] | None = None,
        *,
        freed: Mapping[int, int] | None = None,
        keeps_reserved: bool = False,
    ) -> None:
        """Add a row; the verdict must be the expected one, and exactly what was taken may be gone from the stock.

        `freed` are units that are reserved no longer without being handed out.
        """
        request = order.request
        wanted = dict(before)
        for sku, count in (taken or {}).items():
            key = request.mall_id, request.store_id, sku
            reserved = before[key].reserved - (0 if keeps_reserved else count)
            wanted[key] = Figures(before[key].on_hand - count, reserved)
        for sku, count in (freed or {}).items():
            key = request.mall_id, request.store_id, sku
            wanted[key] = Figures(before[key].on_hand, before[key].reserved - count)
        good = self.expect(f"order {request.order_id}, {what}: verdict", slug(answer), expected)
        good &= self.expect(
            f"order {request.order_id}, {what}: stock", self.settled(after), self.settled(wanted)
        )
        self.table.add_row(
            request.order_id,
            self.stores[request.store_id].city.rpartition(" ")[2],
            f"V{request.version}",
            enum_name(types_pb.Suite.DESCRIPTOR, request.suite),
            escape(what),
            f"[{'green' if good else 'bold red'}]{slug(answer)}[/]{escape(self.detail(answer))}",
            self.stock(order, before),
            self.stock(order, after),
            "[green]ok[/]" if good else f"[bold red]WRONG: {expected}[/]",
        )

    def settled(self, figures: Mapping[Key, Figures]) -> dict[Key, Figures]:
        """The figures without the one reservation that the sweep for expired codes may free at any moment."""
        unsettled = set(self.orders[EXPIRING].keys) if EXPIRING in self.orders else set()
        return {key: one if key not in unsettled else Figures(one.on_hand, 0) for key, one in figures.items()}

    @staticmethod
    def stock(order: Order, figures: Mapping[Key, Figures]) -> str:
        """What is on hand of an order's SKUs, for the table."""
        return " ".join(f"{key[2]}:{figures[key].on_hand}" for key in order.keys)

    @staticmethod
    def detail(answer: Any) -> str:
        """What a table's reader wants to know besides the verdict."""
        fields = MessageToDict(answer, preserving_proto_field_name=True)
        verdict = slug(answer)
        if verdict == "ALREADY_REDEEMED":
            at = datetime.fromtimestamp(answer.at_ms / 1000, TIME_ZONE)
            return f"\n at {at:%H:%M:%S}, terminal {answer.terminal_id}"
        if verdict == "PIN_WRONG":
            return f"\n tries left: {answer.tries_left}"
        if verdict == "LOCKED":
            return f"\n review {answer.review_id}"
        if verdict == "WRONG_STORE":
            return f"\n it is for store {answer.store_id}"
        return "\n its first answer again" if fields.get("replayed") else ""

    @staticmethod
    def new_table() -> Table:
        """A table without rows."""
        table = Table(title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for column in (
            "order",
            "store",
            "code",
            "suite",
            "what happens",
            "verdict",
            "on hand before",
            "after",
            "",
        ):
            table.add_column(column, no_wrap=column == "what happens")
        return table

    def flush(self, title: str) -> None:
        """Print the rows so far."""
        self.table.title = title
        self.console.print(self.table)
        self.table = self.new_table()

    # --- at the end ---------------------------------------------------------------------------------------------

    def states(self) -> dict[str, types_pb.Code]:
        """Every code's record."""
        records: dict[str, types_pb.Code] = {}
        for order_id, order in self.orders.items():
            if slug(order.issued) == "ISSUED":
                request = code_pb.GetCodeRequest(mall_id=order.request.mall_id, uid=order.issued.uid)
                records[order_id] = self.client.call(self.client.codes.GetCode, request).code
        return records

    def add_up(self) -> None:
        """Hold every code's record and every stock figure against our own books, and print them."""
        records, figures = self.states(), self.books()
        for _ in range(READS_MAX):
            again = self.states()
            if records == again:
                break
            # The sweep expired a code between the two readings: the figures may be older than the records.
            records, figures = again, self.books()
        claimed: Counter[Key] = Counter()
        for order_id, record in records.items():
            order = self.orders[order_id]
            state = enum_name(types_pb.CodeState.DESCRIPTOR, record.state)
            wanted = {"EXPIRED", "LIVE"} if order_id == EXPIRING else {order.ends_as}
            if not any(order.left.values()):
                wanted = {"REDEEMED"}
            if state not in wanted:
                self.problems.append(f"order {order_id} ends as {state}, expected {' or '.join(wanted)}")
            if state in ("LIVE", "PARTLY", "LOCKED"):
                left = {line.sku_id: line.left for line in record.lines}
                self.expect(f"order {order_id}: left", left, order.left)
                for key in order.keys:
                    claimed[key] += order.left[key[2]]
        table = Table(title="The stock adds up", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for column in (
            "mall",
            "store",
            "SKU",
            "received",
            "redeemed",
            "stocktake",
            "on hand",
            "reserved",
            "claimed",
        ):
            table.add_column(column, justify="right")
        table.add_column("")
        for key in sorted(self.received):
            on_hand = self.received[key] - self.redeemed[key] + self.adjusted[key]
            good = self.expect(f"stock {key}", figures[key], Figures(on_hand, claimed[key]))
            table.add_row(
                *map(str, key),
                *map(str, (self.received[key], self.redeemed[key], self.adjusted[key] or "")),
                *map(str, (figures[key].on_hand, figures[key].reserved, claimed[key])),
                "[green]yes[/]" if good else "[bold red]NO[/]",
            )
        self.console.print(table)
        self.console.print(
            "  on hand = received - redeemed + stocktake; reserved = claimed, what codes that have not ended still have "
            "to hand out.\n  The expired code's unit comes back with the sweep of its minute, at most 75 s after it "
            "expired: claimed counts it until then.\n",
            soft_wrap=True,
        )

    def wait_until(self, at_ms: int, why: str) -> None:
        """Count down to a moment."""
        told_s = -1
        with self.console.status("") if self.console.is_terminal else contextlib.nullcontext() as status:
            while (left_ms := at_ms - time.time_ns() // 1_000_000) > 0:
                left_s = left_ms // 1000 + 1
                if status is not None:
                    status.update(f"{why}: {left_s} s")
                elif told_s < 0 or told_s - left_s >= 15:
                    self.console.print(f"{why}: {left_s} s")
                    told_s = left_s
                time.sleep(min(left_ms / 1000, 0.5))


def play(demo: Demo) -> None:
    """All that happens, in order."""
    demo.load()
    demo.issue()
    # First of all the two that need time to pass: a screenshot is taken, and a code of 60 s begins to run out.
    screenshot = demo.render("1011")
    screenshot_read = demo.picture(screenshot.text, "1011-screenshot", QR_VERSIONS[types_pb.VERSION_DYNAMIC])
    expiring_read = demo.show(EXPIRING)
    expires_at_ms = demo.orders[EXPIRING].issued.expires_at_ms

    serials_and_pins(demo)
    pickups(demo)
    forgeries(demo)
    places(demo)
    ended_and_missing(demo)
    demo.flush("Codes, scans and stock")

    demo.wait_until(
        max(screenshot.valid_until_ms, expires_at_ms) + 1_000,
        "a screenshot grows old, and the code of order 1019 runs out",
    )
    demo.scan("1011", "a screenshot, over 65 s old", "STALE_CODE", 11, screenshot_read, say=True)
    demo.scan("1011", "the phone shows a fresh one", "REDEEMED", 11, demo.show("1011"))
    demo.scan(EXPIRING, "code of 60 s, after 60 s", "EXPIRED", 21, expiring_read, say=True)
    demo.flush("A minute later")
    demo.add_up()


def serials_and_pins(demo: Demo) -> None:
    """Static codes: on paper or typed in, with their PINs."""
    pins = {order_id: order.issued.pin for order_id, order in demo.orders.items()}
    typed = {order_id: order.issued.typed for order_id, order in demo.orders.items()}

    demo.scan("1001", "QR code and PIN", "REDEEMED", 11, demo.show("1001"), pin=pins["1001"], say=True)
    paper = demo.show("1002")
    demo.scan("1002", "QR code, PIN missing", "PIN_REQUIRED", 12, paper, say=True)
    demo.scan("1002", "the same with its PIN", "REDEEMED", 12, paper, pin=pins["1002"])
    demo.scan("1003", "serial and PIN typed in", "REDEEMED", 31, typed["1003"], pin=pins["1003"])

    wrong = f"{(int(pins['1004']) + 1) % 10**6:06}"
    paper = demo.show("1004")
    demo.scan("1004", "wrong PIN", "PIN_WRONG", 21, paper, pin=wrong, facts={"tries_left": 2}, say=True)
    demo.scan("1004", "wrong PIN again", "PIN_WRONG", 21, paper, pin=wrong, facts={"tries_left": 1})
    locked = demo.scan("1004", "wrong PIN, third time", "LOCKED", 21, paper, pin=wrong)
    demo.scan(
        "1004",
        "the right PIN, too late",
        "LOCKED",
        21,
        paper,
        pin=pins["1004"],
        facts={"review_id": locked.review_id},
        say=True,
    )
    demo.orders["1004"].ends_as = "LOCKED"

    mistyped = typed["1024"][:-1] + str((int(typed["1024"][-1]) + 1) % 10)
    demo.scan("1024", "serial mistyped by one digit", "INVALID_CODE", 11, mistyped, pin=pins["1024"])
    demo.scan("1024", "typed right", "REDEEMED", 11, typed["1024"], pin=pins["1024"])


def pickups(demo: Demo) -> None:
    """Dynamic and valuable codes: whole, in parts, twice, and with a call that is repeated."""
    code = demo.show("1005")
    first = demo.scan("1005", "QR code", "REDEEMED", 11, code)
    demo.scan(
        "1005",
        "second scan, next counter",
        "ALREADY_REDEEMED",
        12,
        code,
        facts={"terminal_id": 11, "at_ms": first.at_ms},
        say=True,
    )
    demo.scan("1006", "QR code, three lines", "REDEEMED", 21, demo.show("1006"))

    demo.scan("1007", "picks up a part", "REDEEMED", 31, demo.show("1007"), lines={103: 1, 106: 2})
    demo.scan("1007", "asks for more than is left", "NOTHING_LEFT", 31, demo.show("1007"), lines={103: 4})
    demo.scan("1007", "picks up the rest", "REDEEMED", 32, demo.show("1007"))

    code = demo.show("1008")
    first = demo.scan("1008", "QR code", "REDEEMED", 11, code, request_id="a-retry-of-terminal-11")
    demo.scan(
        "1008",
        "the terminal repeats its call",
        "REDEEMED",
        11,
        code,
        request_id="a-retry-of-terminal-11",
        replayed=True,
        facts={"event_id": first.event_id, "at_ms": first.at_ms},
    )
    demo.scan("1009", "QR code, signed (Ed25519)", "REDEEMED", 21, demo.show("1009"))
    demo.scan("1010", "QR code, signed (SM2)", "REDEEMED", 31, demo.show("1010"))


def forgeries(demo: Demo) -> None:
    """What is no code, or no longer the one that was issued."""
    flipped = demo.picture(flip(demo.render("1012").text, 40), "1012-flipped")
    demo.scan("1012", "one character flipped", "INVALID_CODE", 31, flipped, say=True)
    forged = demo.picture(flip(demo.render("1023").text, 150), "1023-forged")
    demo.scan("1023", "flipped in the signature", "INVALID_CODE", 31, forged)
    demo.scan("1023", "the genuine one", "REDEEMED", 31, demo.show("1023"))
    poster = demo.picture("HTTPS://EXAMPLE.COM/COUPON/42", "not-a-code")
    demo.scan("1022", "not a code: a poster's QR code", "INVALID_CODE", 19, poster)


def places(demo: Demo) -> None:
    """Codes at other stores, terminals at other places."""
    code = demo.show("1013")
    demo.scan("1013", "at another store", "WRONG_STORE", 11, code, facts={"store_id": 2002}, say=True)

    beijing, shanghai = demo.terminals[21].position, demo.terminals[12].position
    assert beijing is not None
    assert shanghai is not None
    far = moved(beijing, north_m=5_000)
    demo.scan("1014", "terminal 5 km away", "OUT_OF_RANGE", 21, demo.show("1014"), position=far, say=True)

    # Terminal 12 takes its position from a Chinese map service. Said to be WGS-84 it is half a kilometre off.
    mistaken = types_pb.Position()
    mistaken.CopyFrom(shanghai)
    mistaken.datum = types_pb.DATUM_WGS84
    demo.scan(
        "1015", "GCJ-02 position sent as WGS-84", "OUT_OF_RANGE", 12, demo.show("1015"), position=mistaken
    )
    demo.scan("1015", "the same, said to be GCJ-02", "REDEEMED", 12, demo.show("1015"))

    code = demo.show("1016")
    demo.scan("1016", "location missing", "LOCATION_REQUIRED", 21, code, without_position=True, say=True)
    vague = types_pb.Position()
    vague.CopyFrom(beijing)
    vague.accuracy_m = 800
    demo.scan(
        "1016", "location accurate to 800 m", "LOCATION_UNRELIABLE", 21, demo.show("1016"), position=vague
    )
    demo.scan("1017", "no location, and none required", "REDEEMED", 32, demo.show("1017"))


def ended_and_missing(demo: Demo) -> None:
    """Codes that were ended, goods that are not there, codes of somebody else."""
    code = demo.show("1018")
    demo.void("1018")
    demo.scan("1018", "scan of the voided code", "VOIDED", 11, code, say=True)

    demo.stocktake("1020", 108, 0)
    code = demo.show("1020")
    demo.scan("1020", "paid, but none is there", "OUT_OF_STOCK", 21, code, facts={"sku_id": 108}, say=True)

    code = demo.show("1021")
    demo.scan("1021", "mall 2's code, mall 1's terminal", "UNKNOWN_CODE", 11, code, say=True)
    demo.scan("1021", "the same at mall 2's terminal", "REDEEMED", 19, code)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Run `pickgate serve` with an embedded store on a fresh folder; gives its address.

    It ends with this process, whatever becomes of it: `engine.state.launch` has the kernel see to that.
    """
    command = [
        sys.executable, "-m", "server.cli", "--json", "serve",
        "--data-dir", str(folder / "data"), "--listen", "127.0.0.1:0", "--durability", "fsync", "--log-level", "warning",
    ]  # fmt: skip
    # Settings of the machine's own deployment must not reach this one.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PICKGATE_") or name in KEPT_VARIABLES
    }
    log_path = folder / "serve.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), *command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            process_group=0,  # Ctrl-C is for this process, which then stops the server in order
        )
    try:
        yield first_address(process, log_path)
    finally:
        process.terminate()
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def first_address(process: subprocess.Popen[bytes], log_path: Path) -> str:
    """Wait for the line that says where the server listens."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        ready = selector.select(START_S_MAX)
    line = process.stdout.readline() if ready else b""
    if not line:
        told = log_path.read_text(encoding="utf-8", errors="replace").strip()
        raise SystemExit(f"pickgate serve did not start: {told or 'it said nothing'}")
    return str(json.loads(line)["serving"][0])


def wait_healthy(client: Client) -> None:
    """Wait until the health service says SERVING."""
    deadline_s = time.monotonic() + START_S_MAX
    while not client.healthy():
        if time.monotonic() > deadline_s:
            raise SystemExit("the server does not become healthy")
        time.sleep(0.05)


def end(number: int, frame: FrameType | None) -> None:
    """Turn a signal into the exception that unwinds everything."""
    raise KeyboardInterrupt


def run(out: Path, console: Console) -> int:
    """Run the demo; gives its exit status."""
    started_s = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.png"):
        old.unlink()
    with tempfile.TemporaryDirectory(prefix="pickgate-demo-") as folder, serving(Path(folder)) as address:
        console.print(
            f"pickgate serve answers on {address}, its store on a fresh folder, every answer fsynced\n"
        )
        with Client(address) as client:
            wait_healthy(client)
            demo = Demo(client, out, console)
            play(demo)
    console.print("What the clerk reads")
    for verdict, zh, en in demo.sentences:
        console.print(f"  {verdict:<18} {escape(zh)}\n  {'':<18} {escape(en)}", soft_wrap=True)
    console.print(
        f"\n{demo.scans} scans, median answer {statistics.median(demo.answers_ms):.1f} ms; "
        f"{demo.pictures} QR codes drawn in {shown(out)} and read back; {time.monotonic() - started_s:.0f} s in all"
    )
    if demo.problems:
        console.print(f"\n[bold red]{len(demo.problems)} things are not as expected[/]")
        for problem in demo.problems:
            console.print(f"  {escape(problem)}", soft_wrap=True)
        return 1
    console.print("[bold green]every verdict as expected, every QR code read back, the stock adds up[/]")
    return 0


def shown(path: Path) -> Path:
    """The path as a person in the current folder would write it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Issue, show, scan and redeem pickup codes on real parts.")
    parser.add_argument(
        "--out", type=Path, default=OUT_DEFAULT, help="folder for the PNGs (default: build/demo)"
    )
    out = parser.parse_args(arguments).out.absolute()
    terminal = sys.stdout.isatty()
    console = Console(highlight=False, width=None if terminal else WIDTH)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    try:
        return run(out, console)
    except KeyboardInterrupt:
        console.print("\nstopped; the server and its store are ended")
        return 130
    except CallFailed as error:
        console.print(
            f"[bold red]a call failed[/]: {error.reason or error.code.name}: {escape(error.message)}"
        )
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
