"""Watching stock: the levels asked for, then what changes, for as long as somebody wants to know.

One thread of the process follows the event streams (engine.state.following) while anybody watches, and spreads what it finds;
each watcher takes its news in a thread of its own, at its own pace. Levels are read again rather than folded from the events, so
they can't drift; of several changes only the latest level waits for a slow watcher. Crossings of tiers wait one by one, up to a
bound: past it, or when nothing is taken for a while, the watch ends, because a watcher that misses an alert in silence is worse
off than one that must begin anew.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from engine import fields
from engine.calls import StockFigures
from engine.claims import EventId, Tier
from engine.deployment import Deployment
from engine.errors import (
    Exhausted,
    InvalidInput,
    PickgateError,
    StaleControl,
    Stopping,
    TooManyItems,
    UnknownMall,
)
from engine.state import stock as state
from engine.state.events import Event, EventType
from engine.state.following import Following, touched_skus
from engine.stores import Store, factory_store

_log = logging.getLogger(__name__)

WATCHERS_MAX: Final = 64
"""Watches at the same time in one process: each holds a thread and a connection of its caller."""
WATCHED_MAX: Final = 1_000
"""Stores, and SKUs, that one watch may name."""
CROSSINGS_WAITING_MAX: Final = 1_000
LEVELS_WAITING_MAX: Final = 100_000
"""A hundred stores with a thousand SKUs each, all changed since the watcher last took anything: about 30 MB."""
STALLED_S_MAX: Final = 30.0
"""How long a watcher may leave news untaken."""
FOLLOW_MS: Final = 500
"""How long one read of the streams waits; a stop waits as long."""
RETRY_S: Final = 1.0
_STORES_AT_ONCE: Final = 32
"""Stores whose levels are read together at the beginning: with a thousand SKUs each about 1 MB."""


# --- what is told ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Level:
    """Figures of one SKU at one store, as they are now."""

    store_id: int
    figures: StockFigures


@dataclass(frozen=True, slots=True)
class LevelsTold:
    """All levels of the beginning are told, so many; what follows is news."""

    count: int


_TIER_ZH: Final = {
    Tier.NORMAL: "正常",
    Tier.TIGHT: "偏紧",
    Tier.RED: "告急",
    Tier.CLOSED: "线上关闭",
    Tier.EMERGENCY: "紧急",
}
_WHERE_ZH: Final = "商品 {sku_id} 在门店 {store_id} "
_WHERE_EN: Final = "SKU {sku_id} at store {store_id} "
_DOWN: Final[Mapping[Tier, tuple[str, str]]] = {
    Tier.TIGHT: (
        "库存偏紧（可售 {available} 件）：此后生成的提货码仅限提货时段提货。",
        "is tight ({available} available): codes issued from now on are handed out in pickup windows only.",
    ),
    Tier.RED: (
        "库存告急（可售 {available} 件）：促销发码已停止，请补货 {missing} 件。",
        "is running out ({available} available): promotional issue is stopped, replenish {missing} units.",
    ),
    Tier.CLOSED: (
        "库存告急（可售 {available} 件）：线上渠道已关闭，请补货 {missing} 件。",
        "is nearly gone ({available} available): the online channel is closed, replenish {missing} units.",
    ),
    Tier.EMERGENCY: (
        "库存见底（可售 {available} 件）：请从工厂店 {factory_id}（{factory_name}）调拨 {missing} 件。",
        "is gone ({available} available): have {missing} units transferred from factory store {factory_id} ({factory_name}).",
    ),
}
_NO_FACTORY: Final = (
    "库存见底（可售 {available} 件）：本区域没有工厂店，请补货 {missing} 件。",
    "is gone ({available} available), and the region has no factory store: replenish {missing} units.",
)
_UP: Final = (
    "库存回升（可售 {available} 件），现为：{tier_zh}。",
    "has recovered ({available} available): its tier is {tier_en} now.",
)


@dataclass(frozen=True, slots=True)
class Crossing:
    """A SKU's stock at a store crossed into another tier. `figures` are those right after it, with the new tier.

    `factory` is the factory store of the store's region, when the stock has come down to EMERGENCY and there is one.
    """

    event: EventId
    at_ms: int
    store_id: int
    before: Tier
    figures: StockFigures
    factory: Store | None = None

    @property
    def tier(self) -> Tier:
        """The tier that it crossed into."""
        return Tier(self.figures.tier)

    @property
    def alert(self) -> bool:
        """True when somebody should act: it came down, to RED or below."""
        return self.tier > self.before and self.tier >= Tier.RED

    @property
    def replenish_count(self) -> int:
        """Units that are missing up to the baseline, with an alert; else 0."""
        return max(0, self.figures.baseline - self.figures.available) if self.alert else 0

    def say(self) -> tuple[str, str]:
        """What it means and what to do (zh-CN, English)."""
        if self.tier < self.before:
            zh, en = _UP
        elif self.tier is Tier.EMERGENCY and self.factory is None:
            zh, en = _NO_FACTORY
        else:
            zh, en = _DOWN[self.tier]
        facts = {
            "sku_id": self.figures.sku_id,
            "store_id": self.store_id,
            "available": self.figures.available,
            "missing": self.replenish_count,
            "tier_zh": _TIER_ZH[self.tier],
            "tier_en": self.tier.name.lower(),
            "factory_id": self.factory.store_id if self.factory else 0,
            "factory_name": self.factory.name if self.factory else "",
        }
        return (_WHERE_ZH + zh).format_map(facts), (_WHERE_EN + en).format_map(facts)


News = Level | LevelsTold | Crossing


# --- watching -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class WatchRequest:
    """Watch a mall's stock at some stores (none named: all that serve it now), of some SKUs (none: all).

    tiers_only: after the levels of the beginning tell crossings alone. Raises InvalidInput.
    """

    mall_id: int
    store_ids: tuple[int, ...] = ()
    sku_ids: tuple[int, ...] = ()
    tiers_only: bool = False

    def __post_init__(self) -> None:
        fields.identifier(self.mall_id, "mall_id")
        for name in ("store_ids", "sku_ids"):
            values: tuple[int, ...] = getattr(self, name)
            if len(values) > WATCHED_MAX:
                raise TooManyItems(
                    f"{name} has {len(values)} items; expected at most {WATCHED_MAX}", field=name
                )
            for value in values:
                fields.identifier(value, name)


class Watch:
    """One watch: iterate over it, in one thread, for its news. Use it as a context manager, or call `close`."""

    def __init__(
        self,
        deployment: Deployment,
        request: WatchRequest,
        store_ids: Sequence[int],
        monotonic_s: Callable[[], float],
        leave: Callable[[Watch], None],
    ) -> None:
        self._deployment = deployment
        self._mall_id = request.mall_id
        self._store_ids = tuple(store_ids)
        self._sku_ids = frozenset(request.sku_ids)
        self._tiers_only = request.tiers_only
        self._monotonic_s = monotonic_s
        self._leave = leave
        self._changed = threading.Condition()
        self._crossings: deque[Crossing] = deque()
        self._levels: dict[tuple[int, int], StockFigures] = {}
        self._anew = False
        self._closed = False
        self._error: PickgateError | None = None
        self._busy_since_s: float | None = None
        self._when_ended: Callable[[], object] | None = None
        self.places = frozenset((request.mall_id, store_id) for store_id in store_ids)
        """The (mall, store) that it is about."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[News]:
        """The levels, LevelsTold, then news as it comes; ends when the watch is closed.

        Raises StoreUnavailable, and what ended the watch: Exhausted (too slow), Stopping.
        """
        for one in self._news():
            self._busy_since_s = self._monotonic_s()
            yield one
        if self._error is not None:
            raise self._error

    def _news(self) -> Iterator[News]:
        count = 0
        for level in self._read_levels():
            count += 1
            yield level
        yield LevelsTold(count)
        while not self._closed:
            crossings, levels, anew = self._take()
            yield from crossings
            if anew:
                yield from self._read_levels()
            else:
                yield from (Level(store_id, figures) for (store_id, _), figures in levels.items())

    def _read_levels(self) -> Iterator[Level]:
        sku_ids = sorted(self._sku_ids)
        for start in range(0, len(self._store_ids), _STORES_AT_ONCE):
            stores = self._store_ids[start : start + _STORES_AT_ONCE]
            read = state.read_many(
                self._deployment.connection, [(self._mall_id, store_id, sku_ids) for store_id in stores]
            )
            for store_id, figures in zip(stores, read, strict=True):
                for one in figures:
                    if self._closed:
                        return
                    yield Level(store_id, one)

    def _take(self) -> tuple[list[Crossing], dict[tuple[int, int], StockFigures], bool]:
        """Wait for news and take all of it; what is there when the watch is closed is given too."""
        with self._changed:
            self._busy_since_s = None
            while not (self._crossings or self._levels or self._anew or self._closed):
                self._changed.wait()
            taken = list(self._crossings), self._levels, self._anew and not self._closed
            self._crossings.clear()
            self._levels, self._anew = {}, False
            return taken

    def close(self) -> None:
        """End it. From any thread, any number of times."""
        self.end(None)

    def end(self, error: PickgateError | None) -> None:
        """End it, with the error that its iterator raises (None: none)."""
        with self._changed:
            if self._closed:
                return
            self._closed, self._error = True, error
            self._changed.notify_all()
        self._leave(self)

    def when_stalled(self, function: Callable[[], object]) -> None:
        """What to call, once, when it ends because its news is not taken: it may hang in handing on what it took."""
        self._when_ended = function

    # --- from the follower's side ---------------------------------------------------------------------------------
    def wants(self, sku_id: int) -> bool:
        """True when a SKU is among those watched."""
        return not self._sku_ids or sku_id in self._sku_ids

    def wants_levels(self) -> bool:
        """False when crossings alone are told."""
        return not self._tiers_only

    def tell(self, crossings: Sequence[Crossing], levels: Mapping[tuple[int, int], StockFigures]) -> None:
        """Lay news down for the watcher; one who does not take it is cut off."""
        with self._changed:
            self._crossings.extend(crossings)
            self._levels.update(levels)
            if self._crossings or self._levels:
                self._changed.notify_all()
            too_many = len(self._crossings) > CROSSINGS_WAITING_MAX or len(self._levels) > LEVELS_WAITING_MAX
            since_s = self._busy_since_s
            stalled = (
                since_s is not None
                and bool(self._crossings or self._levels)
                and self._monotonic_s() - since_s > STALLED_S_MAX
            )
            if too_many or stalled:
                self._crossings.clear()
                self._levels.clear()
        if too_many or stalled:
            self.end(Exhausted("the news of this watch is not taken fast enough: read faster, or watch less"))
            if stalled and self._when_ended is not None:
                self._when_ended()

    def tell_anew(self) -> None:
        """Have all levels told again: the follower lost sight of some."""
        with self._changed:
            self._anew = not self._tiers_only
            self._changed.notify_all()


class StockWatches:
    """All watches of a process, and the thread that follows the streams for them."""

    def __init__(self, deployment: Deployment, *, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._deployment = deployment
        self._monotonic_s = monotonic_s
        self._changed = threading.Condition()
        self._watches: set[Watch] = set()
        self._places: frozenset[tuple[int, int]] = frozenset()
        self._following: Following | None = None
        self._stopped = False
        self._stores: Mapping[int, Store] = {}
        self._thread: threading.Thread | None = None
        self._failing = False

    def watch(self, request: WatchRequest) -> Watch:
        """Begin a watch: everything that happens after the levels it tells first will be told.

        Raises UnknownMall, InvalidInput for a store that does not serve the mall, Exhausted when too many watch already,
        Stopping, StaleControl, StoreUnavailable.
        """
        store_ids = self._store_ids(request)
        watch = Watch(self._deployment, request, store_ids, self._monotonic_s, self._leave)
        with self._changed:
            if self._stopped:
                raise _stopping()
            if len(self._watches) >= WATCHERS_MAX:
                raise Exhausted(f"{WATCHERS_MAX} watch the stock already: try again later")
            if not self._watches:
                # Nobody followed until now, so nothing was read: begin here, before the levels are read.
                self._following = Following(self._deployment.connection)
            if self._thread is None:
                self._thread = threading.Thread(target=self._follow, name="pickgate-stock-watch", daemon=True)
                self._thread.start()
            self._watches.add(watch)
            self._places |= watch.places
            self._changed.notify_all()
        return watch

    def _store_ids(self, request: WatchRequest) -> list[int]:
        copy = self._deployment.control.copy()
        if request.mall_id not in copy.malls:
            raise UnknownMall(f"mall {request.mall_id} is not registered: put it first", field="mall_id")
        serving = [store.store_id for store in copy.stores.values() if request.mall_id in store.mall_ids]
        for index, store_id in enumerate(request.store_ids):
            if store_id not in serving:
                raise InvalidInput(
                    f"store_ids[{index}] is {store_id}; expected a store that serves mall {request.mall_id}",
                    field=f"store_ids[{index}]",
                )
        return sorted(set(request.store_ids) or serving)

    def close(self) -> None:
        """End every watch, and take no new ones. Waits for the thread."""
        with self._changed:
            self._stopped = True
            watches = list(self._watches)
            self._changed.notify_all()
        for watch in watches:
            watch.end(_stopping())
        if self._thread is not None:
            self._thread.join()

    def _leave(self, watch: Watch) -> None:
        with self._changed:
            self._watches.discard(watch)
            self._places = frozenset(place for other in self._watches for place in other.places)

    # --- the thread -----------------------------------------------------------------------------------------------
    def _follow(self) -> None:
        while True:
            with self._changed:
                while not self._watches and not self._stopped:
                    self._changed.wait()
                if self._stopped:
                    return
                following, watches = self._following, tuple(self._watches)
            assert following is not None
            try:
                # Whoever begins while this waits wants what it finds: so the places are looked up afterwards.
                events = following.read(
                    FOLLOW_MS, lambda mall_id, store_id: (mall_id, store_id) in self._places
                )
                with self._changed:
                    watches = tuple(self._watches) if following is self._following else ()
                self._spread(events, watches)
                self._failing = False
            except Exception as error:
                # Whatever it was, the thread goes on: watches that hear nothing more would look like quiet ones.
                if not self._failing:
                    detail = error.message if isinstance(error, PickgateError) else ""
                    _log.warning(
                        "following the stock failed, and goes on: %s",
                        detail,
                        exc_info=None if detail else error,
                    )
                self._failing = True
                for watch in watches:
                    watch.tell_anew()
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped, RETRY_S)

    def _spread(self, events: Sequence[Event], watches: Sequence[Watch]) -> None:
        crossings = [self._crossing(event) for event in events if event.type is EventType.TIER]
        where = [event.mall_id for event in events if event.type is EventType.TIER]
        touched: dict[tuple[int, int], set[int]] = {}
        for event in events:
            touched.setdefault((event.mall_id, event.store_id), set()).update(touched_skus(event))
        for watch in watches:
            # Before the levels are read, which may fail: a crossing is told once.
            told = [
                crossing
                for mall_id, crossing in zip(where, crossings, strict=True)
                if (mall_id, crossing.store_id) in watch.places and watch.wants(crossing.figures.sku_id)
            ]
            watch.tell(told, {})
        watched = {place for watch in watches if watch.wants_levels() for place in watch.places}
        wanted = [(*place, sorted(skus)) for place, skus in touched.items() if skus and place in watched]
        read = state.read_many(self._deployment.connection, wanted)
        for watch in watches:
            if watch.wants_levels():
                watch.tell(
                    (),
                    {
                        (store_id, one.sku_id): one
                        for (mall_id, store_id, _), figures in zip(wanted, read, strict=True)
                        if (mall_id, store_id) in watch.places
                        for one in figures
                        if watch.wants(one.sku_id)
                    },
                )

    def _crossing(self, event: Event) -> Crossing:
        facts = event.facts
        figures = StockFigures(
            facts["sku_id"], facts["on_hand"], facts["reserved"], facts["baseline"], facts["tier"]
        )
        factory = None
        if figures.tier == Tier.EMERGENCY:
            stores = self._known_stores()
            store = stores.get(event.store_id)
            factory = factory_store(stores, event.mall_id, store.region if store else "")
            if factory is not None and factory.store_id == event.store_id:
                factory = None
        return Crossing(event.id, event.at_ms, event.store_id, Tier(facts["old"]), figures, factory)

    def _known_stores(self) -> Mapping[int, Store]:
        """The stores, of an older copy if there is no fresh one: an alert decides nothing, and should not be lost."""
        with contextlib.suppress(StaleControl):
            self._stores = self._deployment.control.copy().stores
        return self._stores


def _stopping() -> Stopping:
    return Stopping("the service stops: watch again, elsewhere or when it is back")
