"""A real server over a real store for each worker, reached through a unix socket and through loopback TCP."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from engine.deployment import Deployment, Durability, system_ms
from engine.state.server import EmbeddedServer
from engine.wrapping import PassphraseUnlock, Unlock
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import stock_service_pb2 as stock_pb
from pickgate.v1 import store_service_pb2 as store_pb
from pickgate.v1 import types_pb2 as types_pb
from server.client import Client
from server.config import parse_listen
from server.serve import Server
from server.translate_rules import provider_message
from tests.engine import proofs

if TYPE_CHECKING:
    from tests.server.books import Books

MALL, OTHER_MALL = 7, 8
STORE, NEAR_STORE, CLOSED_STORE = 2001, 2002, 2003
SKU, RARE_SKU = 101, 102
TERMINAL = 3
AT_STORE = types_pb.Position(
    latitude_deg=31.1955, longitude_deg=121.4365, accuracy_m=10, datum=types_pb.DATUM_GCJ02
)

PASSPHRASE = b"correct horse battery staple"


def wait_until(condition: Callable[[], object], what: str, bound_s: float = 20.0) -> None:
    """Poll a condition; fail when it does not hold within the bound."""
    give_up = time.monotonic() + bound_s
    while not condition():
        assert time.monotonic() < give_up, f"not within {bound_s:g} s: {what}"
        threading.Event().wait(0.02)


def in_flight(server: Server) -> int:
    """Calls that a server has taken up and not ended, by either lane; nothing public says so."""
    inner: Any = server._server
    return len(inner._state.rpc_states) + (server._lane.open_calls if server._lane else 0)


def turns_left(server: Server) -> int:
    """How many more calls of the ordinary handlers a server would work on now; nothing public says so."""
    turns: Any = server._turns
    left: int = turns._working._value
    return left


@dataclass
class House:
    """A served deployment, and short ways to call it."""

    store: EmbeddedServer
    deployment: Deployment
    server: Server
    client: Client
    _orders: Iterator[int]
    handlers: str = ""
    """Address of a second server over the same deployment, whose ordinary handlers serve all methods; "" without one."""

    @property
    def tcp(self) -> str:
        return next(address for address in self.server.addresses if not address.startswith("unix:"))

    @property
    def unix(self) -> str:
        return next(address for address in self.server.addresses if address.startswith("unix:"))

    def request_id(self) -> str:
        return str(uuid.uuid4())

    def issue_request(self, **fields: object) -> code_pb.IssueRequest:
        request = code_pb.IssueRequest(
            mall_id=MALL,
            request_id=self.request_id(),
            store_id=STORE,
            order_id=f"O-{next(self._orders)}",
            lines=[types_pb.Line(sku_id=SKU, count=1)],
            version=types_pb.VERSION_DYNAMIC,
            suite=types_pb.SUITE_AES,
        )
        for name, value in fields.items():
            if name == "lines":
                del request.lines[:]
                request.lines.extend(value)  # type: ignore[arg-type]
            else:
                setattr(request, name, value)
        return request

    def issue(self, **fields: object) -> code_pb.IssueResponse:
        response = self.client.call(self.client.codes.Issue, self.issue_request(**fields))
        assert response.verdict == code_pb.ISSUE_VERDICT_ISSUED
        return response

    def render(self, uid: str, count: int = 1) -> code_pb.RenderResponse:
        return self.client.call(
            self.client.codes.Render, code_pb.RenderRequest(mall_id=MALL, uid=uid, count=count)
        )

    def shown(self, **fields: object) -> str:
        """The payload of a fresh code."""
        return self.render(self.issue(**fields).uid).payloads[0].text

    def redeem_request(self, code: str, **fields: object) -> redemption_pb.RedeemRequest:
        request = redemption_pb.RedeemRequest(
            terminal=types_pb.Terminal(mall_id=MALL, store_id=STORE, terminal_id=TERMINAL),
            request_id=self.request_id(),
            code=code,
            position=AT_STORE,
        )
        for name, value in fields.items():
            setattr(request, name, value)
        return request

    def redeem(self, code: str, **fields: object) -> redemption_pb.RedeemResponse:
        return self.client.call(self.client.redemption.Redeem, self.redeem_request(code, **fields))

    def figures(self, sku_id: int = SKU, store_id: int = STORE) -> stock_pb.StockFigures:
        request = stock_pb.ReadStockRequest(mall_id=MALL, store_id=store_id, sku_ids=[sku_id])
        (figures,) = self.client.call(self.client.stock.ReadStock, request).figures
        return figures


def furnish(house: House, units: int = 100_000) -> None:
    """Put malls, stores, catalogue, a provider of proofs, and stock."""
    client = house.client
    client.call(
        client.stores.PutMalls,
        store_pb.PutMallsRequest(
            malls=[store_pb.Mall(mall_id=MALL, name="商城"), store_pb.Mall(mall_id=OTHER_MALL, name="别家")],
            request_id=house.request_id(),
        ),
    )
    common = {"latitude_deg": 31.1955, "longitude_deg": 121.4365, "datum": types_pb.DATUM_GCJ02}
    client.call(
        client.stores.PutStores,
        store_pb.PutStoresRequest(
            stores=[
                store_pb.Store(store_id=STORE, name="徐家汇店", mall_ids=[MALL], **common),  # type: ignore[arg-type]
                store_pb.Store(
                    store_id=NEAR_STORE,
                    name="漕河泾店",
                    mall_ids=[MALL],
                    terminal_location=store_pb.TERMINAL_LOCATION_OFF,
                    **common,  # type: ignore[arg-type]
                ),
                store_pb.Store(store_id=CLOSED_STORE, name="旧店", mall_ids=[MALL], closed=True, **common),  # type: ignore[arg-type]
            ],
            request_id=house.request_id(),
        ),
    )
    client.call(
        client.stores.PutCatalogue,
        store_pb.PutCatalogueRequest(
            entries=[
                store_pb.CatalogueEntry(mall_id=MALL, sku_id=SKU, name="礼盒"),
                store_pb.CatalogueEntry(mall_id=MALL, sku_id=RARE_SKU, name="孤品", unit="只"),
            ],
            request_id=house.request_id(),
        ),
    )
    providers = store_pb.PutProvidersRequest(
        providers=[provider_message(proofs.provider())], request_id=house.request_id()
    )
    client.call(client.stores.PutProviders, providers)
    for store_id in (STORE, NEAR_STORE):
        outcome = client.call(
            client.stock.ReceiveStock,
            stock_pb.ReceiveStockRequest(
                mall_id=MALL, request_id=house.request_id(), store_id=store_id, sku_id=SKU, count=units
            ),
        ).outcome
        assert outcome.verdict == stock_pb.STOCK_VERDICT_RECEIVED


HouseFactory = Callable[..., House]


@pytest.fixture(scope="session")
def socket_dir() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    yield folder
    shutil.rmtree(folder)


def build(
    stack: ExitStack,
    data_dir: Path,
    socket_dir: Path,
    *,
    threads: int = 8,
    durability: str = "memory",
    ledger_url: str = "",
    ledger_heads: Path | None = None,
    unlock: Unlock | None = None,
    now_ms: Callable[[], int] | None = None,
) -> House:
    """now_ms: a clock that is the test's own, and compared with no other."""
    store = stack.enter_context(
        EmbeddedServer(data_dir, durability="fsync" if durability == "fsync" else "memory")
    )
    unlock = unlock or PassphraseUnlock(PASSPHRASE)
    Deployment.create(
        store.url,
        unlock=unlock,
        durability=Durability(durability),
        clock_compared=now_ms is None,
        now_ms=now_ms or system_ms,
    )
    deployment = stack.enter_context(
        Deployment.open(
            store.url, unlock=unlock, durability=Durability(durability), now_ms=now_ms or system_ms
        )
    )
    listen = [parse_listen("127.0.0.1:0"), parse_listen(f"unix:{socket_dir}/{uuid.uuid4().hex[:8]}.sock")]
    server = stack.enter_context(
        Server(
            deployment,
            listen,
            threads=threads,
            look=deployment.look,
            ledger_url=ledger_url,
            ledger_heads=ledger_heads,
        )
    )
    client = stack.enter_context(Client(server.addresses[1]))
    house = House(store, deployment, server, client, itertools.count(1))
    furnish(house)
    return house


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory, socket_dir: Path) -> Iterator[House]:
    """The house that the tests of a worker share: never stop it, and make orders of your own."""
    with ExitStack() as stack:
        built = build(stack, tmp_path_factory.mktemp("house") / "data", socket_dir)
        handlers = Server(
            built.deployment, [parse_listen("127.0.0.1:0")], threads=8, look=built.deployment.look, lane=False
        )
        (built.handlers,) = stack.enter_context(handlers).addresses
        yield built


@pytest.fixture
def make_house(tmp_path: Path, socket_dir: Path) -> Iterator[HouseFactory]:
    """Build private houses, for tests that stop or starve something."""
    with ExitStack() as stack:
        made = itertools.count(1)

        def make(**options: object) -> House:
            return build(stack, tmp_path / f"data-{next(made)}", socket_dir, **options)  # type: ignore[arg-type]

        yield make


@pytest.fixture
def books(make_house: HouseFactory, tmp_path: Path) -> Iterator[Books]:
    """Build a private house with a ledger."""
    from tests.server.books import Books

    made = Books(make_house, tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="session")
def still(tmp_path_factory: pytest.TempPathFactory, socket_dir: Path) -> Iterator[Books]:
    """One for all tests of a worker that change nothing."""
    from tests.server.books import Books

    folder = tmp_path_factory.mktemp("still")
    with ExitStack() as stack:
        made = Books(partial(build, stack, folder / "data", socket_dir), folder)
        stack.callback(made.close)
        yield made


@pytest.fixture(params=["lane", "handlers"])
def client(request: pytest.FixtureRequest, house: House) -> Iterator[Client]:
    """A client of each lane, the one through a unix socket and the other through TCP."""
    with Client(house.unix if request.param == "lane" else house.handlers) as made:
        yield made


@pytest.fixture
def raw(house: House) -> Iterator[grpc.Channel]:
    """A bare channel, for what no proper client sends."""
    with grpc.insecure_channel(house.unix) as channel:
        yield channel
