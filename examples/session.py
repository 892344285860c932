"""The demo's session: what it knows of orders and stock, how it shows and scans codes, and everything that it found wrong.

Every verb here makes its call, adds a row to the table, and holds the verdict and all stock figures against what they must be:
a change moves exactly what it says, a refusal moves nothing. The session keeps books of its own, which know nothing of the
server's, and `add_up` compares both at the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar
from zoneinfo import ZoneInfo

import zxingcpp
from google.protobuf.message import Message
from PIL import Image
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from examples.provider import Provider
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import review_service_pb2 as review_pb
from pickgate.v1 import stock_service_pb2 as stock_pb
from pickgate.v1 import store_service_pb2 as store_pb
from pickgate.v1 import types_pb2 as types_pb
from server import qr
from server.client import Client
from server.plain import enum_name, message_of

M = TypeVar("M", bound=Message)

FOLDER: Final = Path(__file__).resolve().parent
READS_MAX: Final = 20
TIME_ZONE: Final = ZoneInfo("Asia/Shanghai")
"""Where all stores of the examples are."""

QR_VERSIONS: Final[Mapping[int, int]] = {
    types_pb.VERSION_STATIC: 3,
    types_pb.VERSION_DYNAMIC: 4,
    types_pb.VERSION_VALUABLE: 8,
}
"""The QR version that each kind of code fits into at error level M (docs/format.md)."""

DATE: Final = re.compile(r"\d{4}-\d\d-\d\d ")

Key = tuple[int, int, int]
"""Mall, store, SKU."""


@dataclasses.dataclass(frozen=True, slots=True)
class Figures:
    """Stock of one SKU as the server tells it; or by how much it moves."""

    on_hand: int
    reserved: int


@dataclasses.dataclass(frozen=True, slots=True)
class Subject:
    """What a row of the table is about: an order or something else, and the stock figures that it shows."""

    name: str
    store_id: int
    code: str
    keys: tuple[Key, ...]


@dataclasses.dataclass(slots=True)
class Order:
    """An order of an example file, with what became of it by the demo's own books."""

    request: code_pb.IssueRequest
    total: dict[int, int]
    """SKU → units that the code stands for, bundles taken apart."""
    left: dict[int, int]
    """SKU → units not yet handed out."""
    uid: str = ""
    """Empty as long as it has no code."""
    typed: str = ""
    pin: str = ""
    expires_at_ms: int = 0
    version: int = types_pb.VERSION_UNSPECIFIED
    ends_as: str = ""
    """The state that the demo expects at the end; empty: the one that follows from what is left."""

    @property
    def keys(self) -> tuple[Key, ...]:
        """The stock figures that it concerns."""
        return tuple((self.request.mall_id, self.request.store_id, sku) for sku in self.total)

    @property
    def subject(self) -> Subject:
        """What rows about it say."""
        suite = enum_name(types_pb.Suite.DESCRIPTOR, self.request.suite)
        code = f"V{self.version} {suite}" if self.version else suite
        return Subject(self.request.order_id, self.request.store_id, code, self.keys)

    @property
    def out(self) -> dict[int, int]:
        """SKU → units that are handed out."""
        return {sku: out for sku, count in self.total.items() if (out := count - self.left[sku])}

    @property
    def state(self) -> str:
        """The state that it must be in."""
        if self.ends_as:
            return self.ends_as
        if not any(self.left.values()):
            return "REDEEMED"
        return "PARTLY" if self.out else "LIVE"

    def moved(self, units: Mapping[int, int], on_hand: int, reserved: int) -> dict[Key, Figures]:
        """By how much its stock moves when `units` (by SKU) move on hand and in what is reserved: each +1, 0 or -1."""
        place = self.request.mall_id, self.request.store_id
        return {(*place, sku): Figures(on_hand * n, reserved * n) for sku, n in units.items() if n}


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


def moved(position: types_pb.Position, *, north_m: float) -> types_pb.Position:
    """The same position further north; a degree of latitude has about 111.2 km."""
    far = types_pb.Position()
    far.CopyFrom(position)
    far.latitude_deg += north_m / 111_200
    return far


def clock(at_ms: int) -> str:
    """A moment as the wall clock of the stores shows it."""
    return f"{datetime.fromtimestamp(at_ms / 1000, TIME_ZONE):%H:%M:%S}"


class Session:
    """What is known of orders and stock, the rows of the table, and everything found wrong."""

    def __init__(self, client: Client, address: str, out: Path, console: Console) -> None:
        """`client` is connected to the server at `address`; pictures go into the folder `out`."""
        self.client = client
        self.address = address
        self.out = out
        self.console = console
        self.problems: list[str] = []
        self.sentences: list[tuple[str, str, str]] = []
        self.calls = 0
        self.scans = 0
        self.pictures = 0
        self.answers_ms: list[float] = []
        self.stores: dict[int, store_pb.Store] = {}
        self.bundles: dict[tuple[int, int], dict[int, int]] = {}
        self.terminals: dict[int, Terminal] = {}
        self.orders: dict[str, Order] = {}
        self.order_ids: dict[str, list[str]] = {}
        """By file."""
        self.ending: set[str] = set()
        """Orders whose codes end by themselves: the sweep gives their stock back at a moment of its own."""
        self.received: Counter[Key] = Counter()
        self.transferred: Counter[Key] = Counter()
        self.adjusted: Counter[Key] = Counter()
        self.redeemed: Counter[Key] = Counter()
        self.reversed: Counter[Key] = Counter()
        self.provider = Provider()
        self.shows_reserved = False
        self.table = self.new_table()

    # --- loading ------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Put malls, stores, catalogue and policies, receive the stock, set its baselines, and read the orders."""
        client = self.client
        entries = read("catalogue", store_pb.CatalogueEntry)
        malls = store_pb.PutMallsRequest(
            malls=read("malls", store_pb.Mall), request_id=self.new_id(), actor="demo"
        )
        client.call(client.stores.PutMalls, malls)
        self.put_stores(read("stores", store_pb.Store))
        catalogue = store_pb.PutCatalogueRequest(entries=entries, request_id=self.new_id(), actor="demo")
        client.call(client.stores.PutCatalogue, catalogue)
        policies = store_pb.PutPoliciesRequest(
            policies=read("policies", store_pb.Policy), request_id=self.new_id(), actor="demo"
        )
        client.call(client.stores.PutPolicies, policies)
        self.bundles = {
            (entry.mall_id, entry.sku_id): {part.sku_id: part.count for part in entry.parts}
            for entry in entries
            if entry.parts
        }
        for receipt in read("stock", stock_pb.ReceiveStockRequest):
            self.receive(receipt)
        for baseline in read("baselines", stock_pb.SetBaselineRequest):
            baseline.request_id = self.new_id()
            outcome = client.call(client.stock.SetBaseline, baseline).outcome
            self.expect("a baseline", slug(outcome), "ADJUSTED")
        for entry in json.loads((FOLDER / "terminals.json").read_text(encoding="utf-8")):
            position = entry.pop("position", None)
            identity = message_of(types_pb.Terminal, entry, "terminals")
            where = None if position is None else message_of(types_pb.Position, position, "position")
            self.terminals[identity.terminal_id] = Terminal(identity, where)
        for name in ("orders", "orders_two"):
            requests = read(name, code_pb.IssueRequest)
            self.order_ids[name] = [request.order_id for request in requests]
            for request in requests:
                units = self.apart(request.mall_id, {line.sku_id: line.count for line in request.lines})
                self.orders[request.order_id] = Order(request, units, dict(units), version=request.version)

    def new_id(self) -> str:
        """A request id that no other call of the session has."""
        self.calls += 1
        return f"demo-call-{self.calls}"

    def put_stores(self, stores: Iterable[store_pb.Store]) -> None:
        """Put stores; they are in force at once in the server that is asked, and within five seconds in every other."""
        put = store_pb.PutStoresRequest(stores=stores, request_id=self.new_id(), actor="demo")
        self.client.call(self.client.stores.PutStores, put)
        self.stores |= {store.store_id: store for store in put.stores}

    def apart(self, mall_id: int, units: Mapping[int, int]) -> dict[int, int]:
        """Units by SKU, with bundles replaced by their parts."""
        plain: Counter[int] = Counter()
        for sku, count in units.items():
            for part, each in self.bundles.get((mall_id, sku), {sku: 1}).items():
                plain[part] += each * count
        return dict(plain)

    # --- codes --------------------------------------------------------------------------------------------------

    def issue_batch(self, order_ids: Iterable[str]) -> None:
        """Issue codes for orders in one call; each must be issued.

        What the store could not decide just then is asked for again by itself, with the same request id, as a mall would.
        """
        requests = [self.orders[order_id].request for order_id in order_ids]
        batch = code_pb.IssueBatchRequest(requests=requests)
        outcomes = self.client.call(self.client.codes.IssueBatch, batch).outcomes
        for request, outcome in zip(requests, outcomes, strict=True):
            answer = outcome.response
            if outcome.HasField("error"):
                answer = self.client.call(self.client.codes.Issue, request)
            if self.expect(f"issue of order {request.order_id}", slug(answer), "ISSUED"):
                self.made(self.orders[request.order_id], answer)

    def made(
        self, order: Order, answer: code_pb.IssueResponse | code_pb.HoldResponse | code_pb.ConfirmResponse
    ) -> None:
        """Keep what the answer says of an order's code."""
        order.uid, order.expires_at_ms = answer.uid, answer.expires_at_ms
        if not isinstance(answer, code_pb.HoldResponse):
            order.typed, order.pin = answer.typed, answer.pin
        order.version = self.record(order).version

    def record(self, order: Order) -> types_pb.Code:
        """The code of an order, as the server has it."""
        request = code_pb.GetCodeRequest(mall_id=order.request.mall_id, uid=order.uid)
        return self.client.call(self.client.codes.GetCode, request).code

    def issue(
        self, order_id: str, what: str, expected: str = "ISSUED", *, replaces: str = ""
    ) -> code_pb.IssueResponse:
        """Issue a code for an order; its stock is reserved, or it is refused and nothing is."""
        order = self.orders[order_id]
        order.request.replaces = replaces
        moves = order.moved(order.total, 0, +1) if expected == "ISSUED" else {}
        before = self.books()
        answer = self.client.call(self.client.codes.Issue, order.request)
        after = self.books()
        if slug(answer) == "ISSUED":
            self.made(order, answer)
        self.row(order.subject, what, answer, expected, before, after, moves)
        return answer

    def hold(self, order_id: str, what: str = "") -> code_pb.HoldResponse:
        """Reserve the stock of an order that is not paid yet; adds a row if it says what happens."""
        order = self.orders[order_id]
        # The fields of both requests are the same, by name and by number.
        request = code_pb.HoldRequest.FromString(order.request.SerializeToString())
        before = self.books()
        answer = self.client.call(self.client.codes.Hold, request)
        after = self.books()
        if self.expect(f"hold of order {order_id}", slug(answer), "HELD"):
            self.made(order, answer)
            order.ends_as = "HELD"
        if what:
            self.row(order.subject, what, answer, "HELD", before, after, order.moved(order.total, 0, +1))
        return answer

    def confirm(self, order_id: str, what: str, expected: str = "CONFIRMED") -> None:
        """Make a held code live: its order is paid."""
        order = self.orders[order_id]
        request = code_pb.ConfirmRequest(
            mall_id=order.request.mall_id, uid=order.uid, request_id=self.new_id(), actor="mall"
        )
        before = self.books()
        answer = self.client.call(self.client.codes.Confirm, request)
        if slug(answer) == "CONFIRMED":
            self.made(order, answer)
            order.ends_as = ""
        self.row(order.subject, what, answer, expected, before, self.books())

    def extend(self, order_id: str, what: str, *, by_s: int) -> None:
        """Move the expiry of a code."""
        order = self.orders[order_id]
        to_ms = order.expires_at_ms + by_s * 1000
        request = code_pb.ExtendRequest(
            mall_id=order.request.mall_id,
            uid=order.uid,
            expires_at_ms=to_ms,
            request_id=self.new_id(),
            actor="mall",
        )
        before = self.books()
        answer = self.client.call(self.client.codes.Extend, request)
        self.row(order.subject, what, answer, "EXTENDED", before, self.books())
        self.expect(f"order {order_id}, {what}: expiry", answer.expires_at_ms, to_ms)

    def void(self, order_id: str, what: str) -> None:
        """End a code as its mall would."""
        order = self.orders[order_id]
        request = code_pb.VoidRequest(
            mall_id=order.request.mall_id,
            uid=order.uid,
            reason="refund",
            request_id=self.new_id(),
            actor="mall",
        )
        before = self.books()
        answer = self.client.call(self.client.codes.Void, request)
        self.row(order.subject, what, answer, "VOIDED", before, self.books(), order.moved(order.left, 0, -1))
        order.ends_as = "VOIDED"

    # --- showing ------------------------------------------------------------------------------------------------

    def render(
        self, order_id: str, position: types_pb.Position | None = None
    ) -> tuple[code_pb.RenderResponse, str]:
        """Ask for what the customer's phone shows now: the answer, and its verdict."""
        order = self.orders[order_id]
        request = code_pb.RenderRequest(
            mall_id=order.request.mall_id,
            uid=order.uid,
            position=position,
            request_id=self.new_id(),
            actor="phone",
        )
        answer = self.client.call(self.client.codes.Render, request)
        return answer, slug(answer)

    def rendered(self, order_id: str, position: types_pb.Position | None = None) -> code_pb.Payload:
        """The payload that the customer's phone shows now; there must be one."""
        answer, verdict = self.render(order_id, position)
        self.expect(f"render of order {order_id}", verdict, "RENDERED")
        payload = answer.payloads[0] if answer.payloads else code_pb.Payload()
        # A code that changed several times within seconds is shown for a moment to come: no two contents share a second.
        while time.time_ns() // 1_000_000 < payload.valid_from_ms:
            time.sleep(0.02)
        return payload

    def render_row(
        self, order_id: str, what: str, expected: str, position: types_pb.Position | None = None
    ) -> None:
        """Try to render, with a row for the verdict."""
        before = self.books()
        answer, _ = self.render(order_id, position)
        self.row(self.orders[order_id].subject, what, answer, expected, before, self.books())

    def show(self, order_id: str, position: types_pb.Position | None = None) -> str:
        """Render a code, draw it, and give what the decoder reads."""
        payload = self.rendered(order_id, position)
        return self.picture(payload.text, order_id, QR_VERSIONS[self.orders[order_id].version])

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

    def put_provider(self) -> None:
        """Register the provider of proofs: from now on valuable codes can be issued."""
        request = store_pb.PutProvidersRequest(
            providers=[self.provider.entry], request_id=self.new_id(), actor="demo"
        )
        self.client.call(self.client.stores.PutProviders, request)

    def proof(self, order_id: str) -> str:
        """The provider's token for the code of an order: good for two minutes and one redemption."""
        return self.provider.vouch(self.orders[order_id].uid)

    # --- at the counter -----------------------------------------------------------------------------------------

    def scan(
        self,
        order_id: str,
        what: str,
        expected: str,
        terminal_id: int,
        code: str,
        *,
        pin: str = "",
        proof_token: str = "",
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
            request_id=request_id or self.new_id(),
            code=code,
            pin=pin,
            proof_token=proof_token,
            lines=[types_pb.Line(sku_id=sku, count=count) for sku, count in (lines or {}).items()],
            actor=f"clerk:{terminal_id}",
        )
        if not without_position and (where := position or terminal.position) is not None:
            request.position.CopyFrom(where)
        taken: dict[int, int] = {}
        if expected == "REDEEMED" and not replayed:
            taken = self.apart(order.request.mall_id, lines) if lines else order.left
            taken = {sku: count for sku, count in taken.items() if count}
        before = self.books()
        started_s = time.perf_counter()
        answer = self.client.call(self.client.redemption.Redeem, request)
        self.answers_ms.append((time.perf_counter() - started_s) * 1000)
        after = self.books()
        row = f"order {order_id}, {what}"
        self.expect(f"{row}: replayed", answer.replayed, replayed)
        for name, value in (facts or {}).items():
            self.expect(f"{row}: {name}", getattr(answer, name), value)
        self.row(order.subject, what, answer, expected, before, after, order.moved(taken, -1, -1))
        if taken:
            self.hand_out(order, answer, taken)
        if say:
            self.sentences.append((slug(answer), answer.message_zh, answer.message_en))
        return answer

    def hand_out(self, order: Order, answer: redemption_pb.RedeemResponse, taken: Mapping[int, int]) -> None:
        """Book on our side what a redemption must have handed out."""
        name, place = order.request.order_id, (order.request.mall_id, order.request.store_id)
        self.expect(f"order {name}: handed out", {line.sku_id: line.count for line in answer.lines}, taken)
        self.expect(f"order {name}: the answer's order", answer.order_id, name)
        for sku, count in taken.items():
            order.left[sku] -= count
            self.redeemed[*place, sku] += count

    def inspect(self, order_id: str, what: str, terminal_id: int, code: str) -> None:
        """Look at a code that can be redeemed: the answer says what is left, and nothing changes."""
        order, terminal = self.orders[order_id], self.terminals[terminal_id]
        request = redemption_pb.InspectRequest(
            terminal=terminal.identity, code=code, position=terminal.position
        )
        before = self.books()
        answer = self.client.call(self.client.redemption.Inspect, request)
        self.row(order.subject, what, answer, "REDEEMABLE", before, self.books())
        left = {line.sku_id: line.left for line in answer.lines}
        self.expect(f"order {order_id}, {what}: left", left, order.left)

    def reverse(
        self,
        order_id: str,
        what: str,
        expected: str,
        terminal_id: int,
        *,
        lines: Mapping[int, int] | None = None,
        release: bool = False,
    ) -> None:
        """Take back what was handed out: all of it, or `lines`; with `release` the units leave the code."""
        order = self.orders[order_id]
        request = redemption_pb.ReverseRequest(
            terminal=self.terminals[terminal_id].identity,
            uid=order.uid,
            lines=[types_pb.Line(sku_id=sku, count=count) for sku, count in (lines or {}).items()],
            release=release,
            reason="refund" if release else "wrong goods",
            request_id=self.new_id(),
            actor=f"clerk:{terminal_id}",
        )
        back: dict[int, int] = {}
        if expected == "REVERSED":
            back = self.apart(order.request.mall_id, lines) if lines else order.out
        before = self.books()
        answer = self.client.call(self.client.redemption.Reverse, request)
        moves = order.moved(back, +1, 0 if release else +1)
        self.row(order.subject, what, answer, expected, before, self.books(), moves)
        came_back = {line.sku_id: line.count for line in answer.lines}
        self.expect(f"order {order_id}, {what}: came back", came_back, back)
        for sku, count in back.items():
            self.reversed[order.request.mall_id, order.request.store_id, sku] += count
            if release:
                order.total[sku] -= count
            else:
                order.left[sku] += count
        if release and not any(order.total.values()):
            order.ends_as = "VOIDED"

    # --- operations ---------------------------------------------------------------------------------------------

    def reviews(self, mall_id: int) -> list[review_pb.Review]:
        """All open reviews of a mall."""
        request = review_pb.ListReviewsRequest(mall_id=mall_id)
        return list(self.client.call(self.client.reviews.ListReviews, request).reviews)

    def decide(self, order_id: str, what: str, expected: str, actor: str) -> None:
        """Decide the review of a locked code: let it go on."""
        order = self.orders[order_id]
        request = review_pb.DecideRequest(
            mall_id=order.request.mall_id,
            uid=order.uid,
            decision=review_pb.DECISION_APPROVE,
            reason="the customer showed the order and a document",
            request_id=self.new_id(),
            actor=actor,
        )
        before = self.books()
        answer = self.client.call(self.client.reviews.Decide, request)
        self.row(order.subject, what, answer, expected, before, self.books())
        if expected == "APPROVED":
            order.ends_as = ""

    def receive(self, receipt: stock_pb.ReceiveStockRequest) -> stock_pb.StockOutcome:
        """Book goods that came in; adds no row."""
        receipt.request_id = self.new_id()
        outcome = self.client.call(self.client.stock.ReceiveStock, receipt).outcome
        self.expect("a receipt", slug(outcome), "RECEIVED")
        self.received[receipt.mall_id, receipt.store_id, receipt.sku_id] += receipt.count
        return outcome

    def delivery(self, order_id: str, sku_id: int, count: int) -> None:
        """Book goods that came in for an order's store, with a row."""
        order = self.orders[order_id]
        before = self.books()
        receipt = stock_pb.ReceiveStockRequest(
            mall_id=order.request.mall_id, store_id=order.request.store_id, sku_id=sku_id, count=count
        )
        outcome = self.receive(receipt)
        what = f"a delivery of {count} comes in"
        moves = order.moved({sku_id: count}, +1, 0)
        self.row(order.subject, what, outcome, "RECEIVED", before, self.books(), moves)

    def stocktake(self, order_id: str, sku_id: int, counted: int) -> None:
        """Set what is on hand to what somebody counted."""
        order = self.orders[order_id]
        request = stock_pb.AdjustStockRequest(
            mall_id=order.request.mall_id,
            store_id=order.request.store_id,
            sku_id=sku_id,
            counted=counted,
            reason="stocktake",
            request_id=self.new_id(),
            actor="demo",
        )
        key = request.mall_id, request.store_id, sku_id
        before = self.books()
        outcome = self.client.call(self.client.stock.AdjustStock, request).outcome
        change = counted - before[key].on_hand
        self.adjusted[key] += change
        what = f"a stocktake counts {counted} of {sku_id}"
        self.row(order.subject, what, outcome, "ADJUSTED", before, self.books(), {key: Figures(change, 0)})

    def transfer(
        self, mall_id: int, sku_id: int, count: int, *, from_store_id: int, to_store_id: int
    ) -> None:
        """Move units from one store to another."""
        request = stock_pb.TransferStockRequest(
            mall_id=mall_id,
            from_store_id=from_store_id,
            to_store_id=to_store_id,
            sku_id=sku_id,
            count=count,
            request_id=self.new_id(),
            actor="ops:lin",
        )
        left, entered = (mall_id, from_store_id, sku_id), (mall_id, to_store_id, sku_id)
        before = self.books()
        answer = self.client.call(self.client.stock.TransferStock, request)
        subject = Subject("", to_store_id, "", (entered, left))
        self.row(
            subject,
            f"{count} units come from store {from_store_id}",
            answer,
            "TRANSFERRED",
            before,
            self.books(),
            {left: Figures(-count, 0), entered: Figures(count, 0)},
        )
        self.transferred[left] -= count
        self.transferred[entered] += count

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
        about: Subject,
        what: str,
        answer: Any,
        expected: str,
        before: Mapping[Key, Figures],
        after: Mapping[Key, Figures],
        moves: Mapping[Key, Figures] | None = None,
    ) -> None:
        """Add a row; the verdict must be the expected one, and the stock have moved as `moves` says and no other way."""
        wanted = dict(before)
        for key, move in (moves or {}).items():
            wanted[key] = Figures(before[key].on_hand + move.on_hand, before[key].reserved + move.reserved)
        name = f"order {about.name}, {what}" if about.name else what
        good = self.expect(f"{name}: verdict", slug(answer), expected)
        got, wanted = self.settled(after), self.settled(wanted)
        strays = [key for key in got if got[key] != wanted.get(key)]
        good &= self.expect(
            f"{name}: stock", {key: got[key] for key in strays}, {key: wanted.get(key) for key in strays}
        )
        self.add(about, what, slug(answer), self.detail(answer), expected, good, before, after)

    def add(
        self,
        about: Subject,
        what: str,
        verdict: str,
        details: list[str],
        expected: str,
        good: bool,
        before: Mapping[Key, Figures],
        after: Mapping[Key, Figures],
    ) -> None:
        """Add a row that has been judged."""
        self.table.add_row(
            about.name,
            f"{about.store_id} {self.stores[about.store_id].city.rpartition(' ')[2]}",
            about.code,
            escape(what),
            "\n ".join([f"[{'green' if good else 'bold red'}]{verdict}[/]", *map(escape, details)]),
            self.stock(about, before),
            self.stock(about, after),
            "[green]ok[/]" if good else f"[bold red]WRONG: {expected}[/]",
        )

    def settled(self, figures: Mapping[Key, Figures]) -> dict[Key, Figures]:
        """The figures without the reservations that the sweep for expired codes may free at any moment."""
        unsettled = {key for order_id in self.ending for key in self.orders[order_id].keys}
        return {key: one if key not in unsettled else Figures(one.on_hand, 0) for key, one in figures.items()}

    def stock(self, about: Subject, figures: Mapping[Key, Figures]) -> str:
        """What is on hand of a row's SKUs (and reserved), for the table."""
        return " ".join(
            (f"{store_id}/" if store_id != about.store_id else "")
            + f"{sku}:{(one := figures[mall_id, store_id, sku]).on_hand}"
            + (f"({one.reserved})" if self.shows_reserved else "")
            for mall_id, store_id, sku in about.keys
        )

    @staticmethod
    def detail(answer: Any) -> list[str]:
        """What a table's reader wants to know besides the verdict."""
        verdict, fields = slug(answer), answer.DESCRIPTOR.fields_by_name
        if "replayed" in fields and answer.replayed:
            return ["its first answer again"]
        if verdict == "ALREADY_REDEEMED":
            return [f"at {clock(answer.at_ms)}, terminal {answer.terminal_id}"]
        if "tries_left" in fields and answer.HasField("tries_left"):
            return [f"tries left: {answer.tries_left}"]
        if verdict == "LOCKED":
            return [f"review {answer.review_id}"]
        if verdict == "WRONG_STORE":
            return [f"it is for store {answer.store_id}"]
        if verdict == "OUTSIDE_WINDOW":
            return [f"next: {DATE.sub('', answer.window)}"]
        if verdict in ("STOCK_SHORT", "OUT_OF_STOCK") and "sku_id" in fields:
            return [f"of SKU {answer.sku_id}"]
        if verdict == "REDEEMABLE":
            return ["left: " + " ".join(f"{line.sku_id}:{line.left}" for line in answer.lines)]
        return []

    def new_table(self) -> Table:
        """A table without rows."""
        table = Table(title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        stock = "on hand (reserved)" if self.shows_reserved else "on hand"
        for column in ("order", "store", "code", "what happens", "verdict", stock, "afterwards", ""):
            # Nothing is cut on a narrow terminal: who reads it looks for the numbers.
            wide = self.console.width >= 120
            table.add_column(column, no_wrap=wide and column in ("store", "what happens"), overflow="fold")
        return table

    def heading(self, text: str) -> None:
        """Begin a scene within the table."""
        self.table.add_section()
        self.table.add_row("", "", "", f"[bold]{text}[/]")

    def flush(self, title: str) -> None:
        """Print the rows so far."""
        self.table.title = title
        self.console.print(self.table)
        self.table = self.new_table()

    # --- at the end ---------------------------------------------------------------------------------------------

    def states(self) -> dict[str, types_pb.Code]:
        """Every code's record."""
        return {order_id: self.record(order) for order_id, order in self.orders.items() if order.uid}

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
            wanted = {order.state, "EXPIRED"} if order_id in self.ending else {order.state}
            if state not in wanted:
                self.problems.append(
                    f"order {order_id} ends as {state}, expected {' or '.join(sorted(wanted))}"
                )
            if state in ("HELD", "LIVE", "PARTLY", "LOCKED"):
                left = {line.sku_id: line.left for line in record.lines}
                self.expect(f"order {order_id}: left", left, order.left)
                for key in order.keys:
                    claimed[key] += order.left[key[2]]
        table = Table(title="The stock adds up", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        columns = "mall", "store", "SKU", "received", "transfers", "redeemed", "reversed", "stocktake"
        for column in (*columns, "on hand", "reserved", "claimed"):
            table.add_column(column, justify="right", overflow="fold")
        table.add_column("")
        for key in sorted(self.received):
            received, transferred, adjusted = self.received[key], self.transferred[key], self.adjusted[key]
            redeemed, back = self.redeemed[key], self.reversed[key]
            on_hand = received + transferred - redeemed + back + adjusted
            good = self.expect(f"stock {key}", figures[key], Figures(on_hand, claimed[key]))
            table.add_row(
                *map(str, key),
                *(str(number or "·") for number in (received, transferred, redeemed, back, adjusted)),
                *map(str, (figures[key].on_hand, figures[key].reserved, claimed[key])),
                "[green]yes[/]" if good else "[bold red]NO[/]",
            )
        self.console.print(table)
        self.console.print(
            "  on hand = received + transfers - redeemed + reversed + stocktake; reserved = claimed, what codes that have not "
            "ended still have to hand out.\n  The units of codes that expired come back with the sweep of their minute, at "
            "most 75 s after it: claimed counts them until then.\n",
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
