"""Watching stock over gRPC, on a real server and store."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from engine import stock_watch
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import stock_service_pb2 as stock_pb
from pickgate.v1 import store_service_pb2 as store_pb
from pickgate.v1 import types_pb2 as types_pb
from server.client import CallFailed, Client
from tests.server.conftest import MALL, NEAR_STORE, OTHER_MALL, SKU, STORE, House, HouseFactory, wait_until

FACTORY = 2009
BOUND_S = 20.0


class Watcher:
    """One watch, read by a thread of its own."""

    def __init__(self, client: Client, **fields: Any) -> None:
        request = stock_pb.WatchStockRequest(**{"mall_id": MALL, **fields})
        self._call: Any = client.stock.WatchStock(request)
        self._news: queue.Queue[stock_pb.WatchStockResponse | grpc.RpcError] = queue.Queue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for one in self._call:
                self._news.put(one)
        except grpc.RpcError as error:
            self._news.put(error)

    def next(self) -> Any:
        """The next news, or the error that ended the watch."""
        return self._news.get(timeout=BOUND_S)

    def begin(self) -> dict[tuple[int, int], stock_pb.StockFigures]:
        """The levels of the beginning."""
        levels: dict[tuple[int, int], stock_pb.StockFigures] = {}
        while not (one := self.next()).HasField("levels_told"):
            levels[one.level.store_id, one.level.figures.sku_id] = one.level.figures
        assert one.levels_told.count == len(levels)
        return levels

    def until(self, wanted: Callable[[Any], bool]) -> list[Any]:
        """News up to the first that is wanted."""
        news = [self.next()]
        while not wanted(news[-1]):
            news.append(self.next())
        return news

    def crossing(self) -> stock_pb.TierCrossing:
        crossing: stock_pb.TierCrossing = self.until(lambda one: one.HasField("crossing"))[-1].crossing
        return crossing

    def quiet(self) -> bool:
        """Nothing came that was not taken."""
        return self._news.empty()

    def stop(self) -> None:
        self._call.cancel()
        self._thread.join(BOUND_S)


@pytest.fixture
def place(make_house: HouseFactory) -> House:
    """A house with a factory store, two SKUs of which 100 are on each shelf, and baselines of 100."""
    house = make_house()
    client = house.client
    common: dict[str, Any] = {
        "latitude_deg": 31.1955,
        "longitude_deg": 121.4365,
        "datum": types_pb.DATUM_GCJ02,
    }
    stores = [
        store_pb.Store(store_id=STORE, name="徐家汇店", mall_ids=[MALL, OTHER_MALL], region="华东", **common),
        store_pb.Store(store_id=NEAR_STORE, name="漕河泾店", mall_ids=[MALL], region="华北", **common),
        store_pb.Store(
            store_id=FACTORY, name="工厂店", mall_ids=[MALL], region="华东", factory=True, **common
        ),
    ]
    put = store_pb.PutStoresRequest(stores=stores, request_id=house.request_id())
    client.call(client.stores.PutStores, put)
    entries = [store_pb.CatalogueEntry(mall_id=OTHER_MALL, sku_id=SKU, name="别家的")]
    client.call(
        client.stores.PutCatalogue,
        store_pb.PutCatalogueRequest(entries=entries, request_id=house.request_id()),
    )
    for store_id in (STORE, NEAR_STORE):
        adjust(house, 100, store_id=store_id)
        request = stock_pb.SetBaselineRequest(
            mall_id=MALL, request_id=house.request_id(), store_id=store_id, sku_id=SKU, baseline=100
        )
        client.call(client.stock.SetBaseline, request)
    return house


def adjust(house: House, counted: int, store_id: int = STORE, **fields: Any) -> stock_pb.StockOutcome:
    given = {"mall_id": MALL, "store_id": store_id, "sku_id": SKU, "counted": counted}
    request = stock_pb.AdjustStockRequest(**{"request_id": house.request_id(), **given, **fields})
    outcome = house.client.call(house.client.stock.AdjustStock, request).outcome
    assert outcome.verdict == stock_pb.STOCK_VERDICT_ADJUSTED
    return outcome


@pytest.fixture
def watch(place: House) -> Iterator[Callable[..., Watcher]]:
    made: list[Watcher] = []

    def begin(**fields: Any) -> Watcher:
        made.append(Watcher(place.client, **fields))
        return made[-1]

    yield begin
    for one in made:
        one.stop()


def test_levels_first_then_every_change(place: House, watch: Callable[..., Watcher]) -> None:
    watcher = watch()
    levels = watcher.begin()
    assert levels.keys() == {(STORE, SKU), (NEAR_STORE, SKU)}
    assert (levels[STORE, SKU].on_hand, levels[STORE, SKU].tier) == (100, types_pb.STOCK_TIER_NORMAL)
    issued = place.issue(lines=[types_pb.Line(sku_id=SKU, count=3)])
    news = watcher.next()
    assert (news.level.store_id, news.level.figures.reserved) == (STORE, 3)
    assert place.redeem(place.render(issued.uid).payloads[0].text).event_id
    news = watcher.next()
    assert (news.level.figures.on_hand, news.level.figures.reserved) == (97, 0)
    # What each other way of changing stock leaves behind is told too.
    moved = stock_pb.TransferStockRequest(
        mall_id=MALL,
        request_id=place.request_id(),
        from_store_id=STORE,
        to_store_id=FACTORY,
        sku_id=SKU,
        count=7,
    )
    assert place.client.call(place.client.stock.TransferStock, moved).event_id
    told = [watcher.next().level for _ in range(2)]
    assert {level.store_id: level.figures.on_hand for level in told} == {STORE: 90, FACTORY: 7}
    void = place.issue()
    assert watcher.next().level.figures.reserved == 1
    place.client.call(
        place.client.codes.Void,
        code_pb.VoidRequest(mall_id=MALL, request_id=place.request_id(), uid=void.uid),
    )
    assert watcher.next().level.figures.reserved == 0


def test_each_crossing_is_told_once_with_what_to_do(place: House, watch: Callable[..., Watcher]) -> None:
    watcher = watch(tiers_only=True)
    watcher.begin()
    told = []
    for counted in (29, 28, 10, 5, 1, 0, 50):
        adjust(place, counted)
    for _ in range(5):
        told.append(watcher.crossing())
    names = [types_pb.StockTier.Name(one.figures.tier).removeprefix("STOCK_TIER_") for one in told]
    assert names == ["TIGHT", "RED", "CLOSED", "EMERGENCY", "NORMAL"]
    assert [one.alert for one in told] == [False, True, True, True, False]
    assert [one.replenish_count for one in told] == [0, 90, 95, 99, 0]
    assert [one.factory_store_id for one in told] == [0, 0, 0, FACTORY, 0]
    assert len({one.event_id for one in told}) == 5
    assert told[1].tier_before == types_pb.STOCK_TIER_TIGHT
    for one in told:
        assert f" {SKU} " in one.message_zh
        assert f" {STORE} " in one.message_en
        assert "{" not in one.message_zh + one.message_en
    assert "工厂店" in told[3].message_zh
    assert f"factory store {FACTORY}" in told[3].message_en
    # Crossings alone: the stock changed seven times.
    assert watcher.quiet()


def test_an_emergency_in_a_region_without_a_factory_says_so(
    place: House, watch: Callable[..., Watcher]
) -> None:
    watcher = watch(store_ids=[NEAR_STORE])
    watcher.begin()
    adjust(place, 1, NEAR_STORE)
    told = watcher.crossing()
    assert (told.factory_store_id, told.factory_store_name) == (0, "")
    assert "没有工厂店" in told.message_zh
    assert "no factory store" in told.message_en


def test_what_was_not_asked_for_is_not_told(place: House, watch: Callable[..., Watcher]) -> None:
    near, one_sku, others = (
        watch(store_ids=[NEAR_STORE]),
        watch(sku_ids=[SKU + 1]),
        watch(mall_id=OTHER_MALL),
    )
    assert near.begin().keys() == {(NEAR_STORE, SKU)}
    assert all(figures.on_hand == 0 for figures in one_sku.begin().values())
    assert not others.begin()
    adjust(place, 5)
    adjust(place, 60, NEAR_STORE)
    assert near.next().level.figures.on_hand == 60
    receipt = stock_pb.ReceiveStockRequest(
        mall_id=OTHER_MALL, request_id=place.request_id(), store_id=STORE, sku_id=SKU, count=4
    )
    place.client.call(place.client.stock.ReceiveStock, receipt)
    assert others.next().level.figures.on_hand == 4
    assert near.quiet()
    assert one_sku.quiet()
    assert others.quiet()


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"mall_id": 0}, "INVALID_INPUT", "mall_id"),
        ({"mall_id": 999}, "UNKNOWN_MALL", "mall_id"),
        ({"store_ids": [STORE, 999]}, "INVALID_INPUT", "store_ids[1]"),
        ({"sku_ids": [0]}, "INVALID_INPUT", "sku_ids[0]"),
        ({"sku_ids": range(1, 1_002)}, "TOO_MANY_ITEMS", "sku_ids"),
    ],
)
def test_a_watch_of_what_can_not_be_is_refused(
    house: House, fields: dict[str, Any], reason: str, field: str
) -> None:
    request = stock_pb.WatchStockRequest(**{"mall_id": MALL, **fields})
    with pytest.raises(CallFailed) as caught:
        next(house.client.stream(house.client.stock.WatchStock, request))
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert caught.value.field == field


def test_watchers_hold_no_thread_of_the_calls_and_leave_no_trace(make_house: HouseFactory) -> None:
    house = make_house(threads=1)
    watchers = [Watcher(house.client) for _ in range(5)]
    for watcher in watchers:
        watcher.begin()
    # The only thread of the calls is free.
    adjust(house, 50)
    for watcher in watchers:
        assert watcher.next().level.figures.on_hand == 50
    served: Any = house.server._watches
    assert len(served._watches) == 5
    for watcher in watchers[:-1]:
        watcher.stop()
    wait_until(lambda: len(served._watches) == 1, "those who hung up are forgotten")
    adjust(house, 40)
    assert watchers[-1].next().level.figures.on_hand == 40
    watchers[-1].stop()
    wait_until(lambda: not served._watches, "nobody watches")


def test_too_many_watchers_are_told_so(make_house: HouseFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock_watch, "WATCHERS_MAX", 2)
    house = make_house()
    watchers = [Watcher(house.client) for _ in range(2)]
    for watcher in watchers:
        watcher.begin()
    late = Watcher(house.client)
    refused = late.next()
    assert isinstance(refused, grpc.RpcError)
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    watchers[0].stop()

    def in_again() -> bool:
        watcher = Watcher(house.client)
        entered = not isinstance(watcher.next(), grpc.RpcError)
        watcher.stop()
        return entered

    wait_until(in_again, "one hung up, so another may watch")
    watchers[1].stop()


def test_a_stop_ends_the_watches_at_once(make_house: HouseFactory) -> None:
    house = make_house()
    watcher = Watcher(house.client)
    watcher.begin()
    stopper = threading.Thread(target=house.server.stop, args=(60.0,))
    stopper.start()
    # Far sooner than the grace that calls in flight would have.
    ended = watcher.next()
    assert isinstance(ended, grpc.RpcError)
    assert ended.code() is grpc.StatusCode.UNAVAILABLE
    stopper.join(BOUND_S)
    assert not stopper.is_alive()
    assert not [thread for thread in threading.enumerate() if thread.name == "pickgate-stock-watch"]


@pytest.mark.fault
def test_a_store_that_stalls_and_comes_back_is_followed_on(make_house: HouseFactory) -> None:
    house = make_house(durability="fsync")
    watcher = Watcher(house.client, tiers_only=True)
    watcher.begin()
    served: Any = house.server._watches
    request = stock_pb.SetBaselineRequest(
        mall_id=MALL, request_id=house.request_id(), store_id=STORE, sku_id=SKU, baseline=100
    )
    house.client.call(house.client.stock.SetBaseline, request)
    house.store.stop()
    wait_until(lambda: served._failing, "the follower noticed")
    house.store.start()
    with Client(house.tcp, tries=1) as patient:
        wait_until(patient.healthy, "serving again")
    adjust(house, 1)
    assert watcher.crossing().figures.tier == types_pb.STOCK_TIER_EMERGENCY
    watcher.stop()


@pytest.mark.fault
def test_who_never_reads_is_cut_off(make_house: HouseFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock_watch, "STALLED_S_MAX", 0.5)
    house = make_house()
    served: Any = house.server._watches
    many = range(1, 900)
    entries = [store_pb.CatalogueEntry(mall_id=MALL, sku_id=sku, name="品") for sku in many]
    for start in range(0, len(entries), 256):
        put = store_pb.PutCatalogueRequest(
            entries=entries[start : start + 256], request_id=house.request_id()
        )
        house.client.call(house.client.stores.PutCatalogue, put)
    # A window of the smallest size, and a reader that takes one message and no more.
    options = [("grpc.http2.lookahead_bytes", 1), ("grpc.http2.bdp_probe", 0)]
    with grpc.insecure_channel(house.unix, options=options) as channel:
        call: Any = channel.unary_stream(
            "/pickgate.v1.StockService/WatchStock",
            request_serializer=stock_pb.WatchStockRequest.SerializeToString,
            response_deserializer=stock_pb.WatchStockResponse.FromString,
        )(stock_pb.WatchStockRequest(mall_id=MALL, store_ids=[STORE], sku_ids=many))
        assert next(call).HasField("level")
        wait_until(lambda: len(served._watches) == 1, "it watches")

        def cut_off() -> bool:
            adjust(house, 10)
            adjust(house, 11)
            return not served._watches

        wait_until(cut_off, "whoever does not read is cut off")
        call.cancel()
    watcher = Watcher(house.client)
    watcher.begin()
    watcher.stop()


def test_the_store_is_not_asked_while_nobody_watches(make_house: HouseFactory) -> None:
    house = make_house()

    def reads() -> int:
        [info] = house.deployment.connection.read([("INFO", "commandstats")])
        return int(info.get("cmdstat_xread", {}).get("calls", 0))

    assert reads() == 0
    watcher = Watcher(house.client)
    watcher.begin()
    wait_until(reads, "the streams are followed")
    watcher.stop()
    served: Any = house.server._watches
    wait_until(lambda: not served._watches, "nobody watches")
    # The read that is waiting ends; then there are no more.
    before = -1
    while before != (before := reads()):
        threading.Event().wait(3 * stock_watch.FOLLOW_MS / 1000)
    assert reads() == before
