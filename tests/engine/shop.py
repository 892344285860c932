"""A small deployment whose time and randomness the test owns: two malls, a few stores, eight SKUs, and short ways to each verb.

Every short way takes what a test wants to vary and fills in the rest, asks one verb for one thing, and gives its answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final, TypeVar

from engine import issuance, limits, redemption, review, stock
from engine.calls import (
    ConfirmAnswer,
    ConfirmRequest,
    ExtendAnswer,
    ExtendRequest,
    HoldAnswer,
    InspectAnswer,
    InspectRequest,
    IssueAnswer,
    IssueRequest,
    Record,
    RedeemAnswer,
    RedeemRequest,
    RenderAnswer,
    RenderRequest,
    ReverseAnswer,
    ReverseRequest,
    ReviewAnswer,
    ReviewRequest,
    StockAnswer,
    StockChange,
    StockFigures,
    StockRequest,
    TransferAnswer,
    TransferRequest,
    VoidAnswer,
    VoidRequest,
)
from engine.claims import Decision, Line, Position, Suite, Terminal, Version
from engine.deployment import Deployment, Durability
from engine.errors import PickgateError
from engine.freezes import Freeze
from engine.policies import Policy
from engine.state.connection import Command
from engine.state.events import Event, parse
from engine.state.keys import ControlKeys, partition_of_store
from engine.stores import CatalogueEntry, Mall, Store
from engine.wrapping import PassphraseUnlock
from ext.place import Datum

MALL: Final = 1
OTHER_MALL: Final = 2
PARTITIONS: Final = 4
SKUS: Final = tuple(range(100, 108))
BUNDLE: Final = 200
"""A bundle that Shop.put_bundle puts: one unit of SKU 100 and two of SKU 101."""
REVIEWER: Final = "ops:ann"
LATITUDE_DEG, LONGITUDE_DEG = 31.2304, 121.4737
START_MS: Final = 1_800_000_000_000

UNLOCK: Final = PassphraseUnlock(b"correct horse battery staple")
"""Shared by all tests: deriving a key takes a tenth of a second, and it keeps those that it has derived."""


def _stores_in_partition(partition: int) -> list[int]:
    return [n for n in range(2001, 2100) if partition_of_store(n, PARTITIONS) == partition]


STORE: Final = 2001
NEIGHBOUR: Final = next(n for n in _stores_in_partition(partition_of_store(STORE, PARTITIONS)) if n != STORE)
"""Another store in the same partition as STORE."""
FAR_STORE: Final = _stores_in_partition((partition_of_store(STORE, PARTITIONS) + 1) % PARTITIONS)[0]
"""A store in another partition than STORE."""

A = TypeVar("A")


class Clock:
    """Unix milliseconds, as the test sets them."""

    def __init__(self, now_ms: int = START_MS) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms

    def tick(self, s: float) -> None:
        """Let time pass."""
        self.now_ms += round(s * 1000)

    @property
    def now_s(self) -> int:
        return self.now_ms // 1000


class Bytes:
    """Random bytes that are the same in every run."""

    def __init__(self, seed: bytes = b"") -> None:
        self._seed = seed
        self._drawn = itertools.count()

    def __call__(self, size: int) -> bytes:
        out = b""
        while len(out) < size:
            out += blake2b(b"%d" % next(self._drawn), key=self._seed).digest()
        return out[:size]


def store(store_id: int, **fields: Any) -> Store:
    """A store of both malls at one place; its terminals needn't say where they are."""
    given: dict[str, Any] = {
        "store_id": store_id,
        "name": f"Store {store_id}",
        "mall_ids": (MALL, OTHER_MALL),
        "latitude_deg": LATITUDE_DEG,
        "longitude_deg": LONGITUDE_DEG,
        "datum": Datum.WGS84,
        "terminal_location": "optional",
    }
    return Store(**given | fields)


def north(metres: float, accuracy_m: float = 0.0, datum: int = Datum.WGS84) -> Position:
    """A position so many metres north of the stores' place, within a millionth."""
    # One degree of latitude at 31.23 degrees north is 110,869 m on the WGS-84 ellipsoid (radius of curvature
    # 6,352,540 m in the meridian: NIMA TR8350.2, section 3).
    return Position(LATITUDE_DEG + metres / 110_869.0, LONGITUDE_DEG, accuracy_m, datum)


def create(url: str, clock: Clock, **options: Any) -> None:
    """Create the deployment in an empty store."""
    given: dict[str, Any] = {
        "unlock": UNLOCK,
        "durability": Durability.MEMORY,
        "partitions": PARTITIONS,
        "clock_compared": False,
        "now_ms": clock,
        "random": Bytes(),
    }
    Deployment.create(url, **given | options)


def open_deployment(url: str, clock: Clock, **options: Any) -> Deployment:
    """Open it, as one process would."""
    given: dict[str, Any] = {
        "unlock": UNLOCK,
        "durability": Durability.MEMORY,
        "now_ms": clock,
        "random": Bytes(b"process"),
    }
    return Deployment.open(url, **given | options)


def furnish(deployment: Deployment) -> None:
    """Put malls, stores and catalogue."""
    control = deployment.control
    control.put_malls(
        [Mall(MALL, "Mall"), Mall(OTHER_MALL, "Other mall")], request_id="put-0001", actor="test"
    )
    control.put_stores(
        [store(STORE), store(NEIGHBOUR), store(FAR_STORE)], request_id="put-0001", actor="test"
    )
    control.put_catalogue(
        [CatalogueEntry(mall, sku, f"SKU {sku}") for mall in (MALL, OTHER_MALL) for sku in SKUS],
        request_id="put-0001",
        actor="test",
    )


def settled(outcome: A | PickgateError) -> A:
    """An answer; an error that came in its place is raised."""
    if isinstance(outcome, PickgateError):
        raise outcome
    return outcome


class Shop:
    """A furnished deployment with short ways to its verbs. Request ids are new unless given."""

    def __init__(self, deployment: Deployment, url: str, clock: Clock) -> None:
        self.deployment = deployment
        self.url = url
        self.clock = clock
        self._ids = itertools.count(1)

    def new_id(self) -> str:
        return f"request-{next(self._ids):06}"

    # --- requests ---------------------------------------------------------------------------------------------
    def issue_request(self, **fields: Any) -> IssueRequest:
        given: dict[str, Any] = {
            "mall_id": MALL,
            "request_id": "",
            "store_id": STORE,
            "order_id": "ORDER-1",
            "lines": (Line(100, 1),),
            "version": Version.DYNAMIC,
            "suite": Suite.AES,
        }
        given |= fields
        given["request_id"] = given["request_id"] or self.new_id()
        return IssueRequest(**given)

    def redeem_request(self, code: str, *, terminal: Terminal | None = None, **fields: Any) -> RedeemRequest:
        fields["request_id"] = fields.get("request_id") or self.new_id()
        return RedeemRequest(terminal or Terminal(MALL, STORE, 7), code=code, **fields)

    def stock_request(self, amount: int = 10, **fields: Any) -> StockRequest:
        given: dict[str, Any] = {
            "mall_id": MALL,
            "request_id": "",
            "store_id": STORE,
            "sku_id": 100,
            "change": StockChange.RECEIVE,
        }
        given |= fields
        given["request_id"] = given["request_id"] or self.new_id()
        return StockRequest(amount=amount, **given)

    # --- verbs, one thing each --------------------------------------------------------------------------------
    def receive(self, amount: int = 10, **fields: Any) -> StockAnswer:
        return settled(stock.change(self.deployment, [self.stock_request(amount, **fields)])[0])

    def stock_all(self, amount: int = 10, **fields: Any) -> None:
        """Receive every SKU."""
        requests = [self.stock_request(amount, sku_id=sku, **fields) for sku in SKUS]
        for outcome in stock.change(self.deployment, requests):
            settled(outcome)

    def issue(self, **fields: Any) -> IssueAnswer:
        return settled(issuance.issue(self.deployment, [self.issue_request(**fields)])[0])

    def hold(self, **fields: Any) -> HoldAnswer:
        return settled(issuance.hold(self.deployment, [self.issue_request(**fields)])[0])

    def confirm(self, uid: bytes, *, mall_id: int = MALL, request_id: str = "") -> ConfirmAnswer:
        request = ConfirmRequest(mall_id, request_id or self.new_id(), uid)
        return settled(issuance.confirm(self.deployment, [request])[0])

    def extend(
        self, uid: bytes, expires_at_s: int, *, mall_id: int = MALL, request_id: str = ""
    ) -> ExtendAnswer:
        request = ExtendRequest(mall_id, request_id or self.new_id(), uid, expires_at_s)
        return settled(issuance.extend(self.deployment, [request])[0])

    def render(self, uid: bytes, count: int = 1, mall_id: int = MALL, **fields: Any) -> RenderAnswer:
        return settled(issuance.render(self.deployment, [RenderRequest(mall_id, uid, count, **fields)])[0])

    def show(self, uid: bytes) -> str:
        """Text of the payload to show now."""
        return self.render(uid).payloads[0].text

    def redeem(self, code: str, **fields: Any) -> RedeemAnswer:
        return settled(redemption.redeem(self.deployment, [self.redeem_request(code, **fields)])[0])

    def inspect(
        self, code: str, *, terminal: Terminal | None = None, position: Position | None = None
    ) -> InspectAnswer:
        request = InspectRequest(terminal or Terminal(MALL, STORE, 7), code, position)
        return settled(redemption.inspect(self.deployment, [request])[0])

    def void(self, uid: bytes, *, mall_id: int = MALL, request_id: str = "", **fields: Any) -> VoidAnswer:
        request = VoidRequest(mall_id, request_id or self.new_id(), uid, **fields)
        return settled(issuance.void(self.deployment, [request])[0])

    def reverse(
        self, uid: bytes, *, terminal: Terminal | None = None, request_id: str = "", **fields: Any
    ) -> ReverseAnswer:
        request = ReverseRequest(
            terminal or Terminal(MALL, STORE, 7), request_id or self.new_id(), uid, **fields
        )
        return settled(redemption.reverse(self.deployment, [request])[0])

    def decide(
        self,
        uid: bytes,
        decision: Decision,
        *,
        actor: str = REVIEWER,
        mall_id: int = MALL,
        request_id: str = "",
        **fields: Any,
    ) -> ReviewAnswer:
        request = ReviewRequest(mall_id, request_id or self.new_id(), uid, decision, actor, **fields)
        return settled(review.decide(self.deployment, [request])[0])

    def transfer_request(self, amount: int = 1, **fields: Any) -> TransferRequest:
        given: dict[str, Any] = {
            "mall_id": MALL,
            "request_id": "",
            "from_store_id": STORE,
            "to_store_id": FAR_STORE,
            "sku_id": 100,
        }
        given |= fields
        given["request_id"] = given["request_id"] or self.new_id()
        return TransferRequest(amount=amount, **given)

    def transfer(self, amount: int = 1, **fields: Any) -> TransferAnswer:
        return settled(stock.transfer(self.deployment, [self.transfer_request(amount, **fields)])[0])

    def lock(self, uid: bytes, *, actor: str = "clerk:bob") -> None:
        """Lock a static code by three wrong PINs."""
        [issued] = issuance.get(self.deployment, MALL, [uid])
        assert issued is not None
        rendered = self.render(uid)
        wrong = f"{(int(rendered.pin) + 1) % 1_000_000:06d}"
        terminal = Terminal(MALL, issued.store_id, 7)
        for _ in range(limits.TRIES_MAX):
            self.redeem(rendered.payloads[0].text, pin=wrong, actor=actor, terminal=terminal)

    def record(self, uid: bytes, mall_id: int = MALL) -> Record:
        [found] = issuance.get(self.deployment, mall_id, [uid])
        assert found is not None
        return found

    def figures(self, sku_id: int = 100, *, store_id: int = STORE, mall_id: int = MALL) -> StockFigures:
        return stock.read(self.deployment, mall_id, store_id, [sku_id])[0]

    def put_store(self, store_id: int = STORE, **fields: Any) -> None:
        """Put a store anew, changed."""
        self.deployment.control.put_stores(
            [store(store_id, **fields)], request_id=self.new_id(), actor="test"
        )

    def freeze(self, sku_id: int = 100, *, store_id: int = STORE, frozen: bool = True) -> None:
        """Freeze a SKU of the mall, or lift that."""
        freeze = Freeze(MALL, store_id, sku_id, frozen, "the books differ")
        self.deployment.control.put_freezes([freeze], request_id=self.new_id(), actor="ledger")

    def put_bundle(self, parts: tuple[tuple[int, int], ...] = ((100, 1), (101, 2)), **fields: Any) -> None:
        """Put the bundle into both malls' catalogues."""
        self.deployment.control.put_catalogue(
            [CatalogueEntry(mall, BUNDLE, "Bundle", parts=parts, **fields) for mall in (MALL, OTHER_MALL)],
            request_id=self.new_id(),
            actor="test",
        )

    def put_policies(self, *items: Policy) -> None:
        """Put policies, each whole."""
        self.deployment.control.put_policies(items, request_id=self.new_id(), actor="test")

    # --- what the store holds ---------------------------------------------------------------------------------
    def events(self) -> list[Event]:
        """All events, by partition and number."""
        return read_events(self.deployment)

    def dump(self) -> Mapping[bytes, Any]:
        """Everything the store holds but the streams of refused attempts and the register of request ids."""
        return dump(self.deployment)


def read_events(deployment: Deployment) -> list[Event]:
    """All events of a deployment, by partition and number."""
    found = []
    for partition, names in enumerate(deployment.connection.partitions):
        [entries] = deployment.connection.read([("XRANGE", names.events, "-", "+")])
        found += [parse(partition, number, fields[b"e"]) for number, fields in _entries(entries)]
    return found


def _entries(entries: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    return [
        (number, fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True)))
        for number, fields in entries
    ]


_READERS: Final = {
    b"hash": ("HGETALL",),
    b"string": ("GET",),
    b"stream": ("XRANGE", "-", "+"),
    b"zset": ("ZRANGE", "0", "-1", "WITHSCORES"),
}


def dump(deployment: Deployment) -> Mapping[bytes, Any]:
    """Everything the store holds, by key, but the streams of refused attempts, of forgeries, and the register of request ids."""
    connection = deployment.connection
    keys = connection.scan("*", 1_000)
    skipped = (*(names.attempts for names in connection.partitions), ControlKeys().forgeries)
    registers = tuple(b"{" + names.tag + b"}r" for names in connection.partitions)
    wanted = sorted(key for key in keys if key not in skipped and not key.startswith(registers))
    types = connection.read([("TYPE", key) for key in wanted])
    commands: list[Command] = []
    for key, kind in zip(wanted, types, strict=True):
        command, *rest = _READERS[kind if isinstance(kind, bytes) else kind.encode()]
        commands.append((command, key, *rest))
    return dict(zip(wanted, connection.read(commands), strict=True))


def attempts(deployment: Deployment) -> int:
    """How many refused attempts are on record."""
    return sum(
        deployment.connection.read([("XLEN", names.attempts) for names in deployment.connection.partitions])
    )
