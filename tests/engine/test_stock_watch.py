"""Watching stock, seen from the engine: bounds of one who does not take the news, and the sentences of crossings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from engine import stock_watch
from engine.calls import StockChange, StockFigures
from engine.claims import EventId, Tier
from engine.errors import Exhausted, InvalidInput, Stopping, TooManyItems, UnknownMall
from engine.stock_watch import Crossing, Level, LevelsTold, StockWatches, Watch, WatchRequest
from tests.engine import shop as shops
from tests.engine.shop import MALL, STORE, Shop


def crossing(n: int = 1, before: Tier = Tier.NORMAL, tier: Tier = Tier.RED) -> Crossing:
    return Crossing(EventId(0, 1, n), 0, STORE, before, StockFigures(100, 8, 0, 100, tier))


class Monotonic:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def monotonic() -> Monotonic:
    return Monotonic()


@pytest.fixture
def watches(shop: Shop, monotonic: Monotonic) -> Iterator[StockWatches]:
    made = StockWatches(shop.deployment, monotonic_s=monotonic)
    yield made
    made.close()


def begun(watch: Watch) -> Iterator[object]:
    """The news of a watch behind the levels of the beginning."""
    news = iter(watch)
    for one in news:
        if isinstance(one, LevelsTold):
            return news
    raise AssertionError("the levels of the beginning were not told")


def test_of_several_levels_the_last_waits_and_every_crossing_does(watches: StockWatches) -> None:
    with watches.watch(WatchRequest(MALL, (STORE,))) as watch:
        news = begun(watch)
        for on_hand in (9, 8, 7):
            watch.tell([crossing(on_hand)], {(STORE, 100): StockFigures(100, on_hand, 0, 100, 2)})
        assert list(itertools.islice(news, 4)) == [
            crossing(9),
            crossing(8),
            crossing(7),
            Level(STORE, StockFigures(100, 7, 0, 100, 2)),
        ]


def test_too_many_crossings_that_nobody_takes_end_the_watch(watches: StockWatches) -> None:
    watch = watches.watch(WatchRequest(MALL, (STORE,)))
    news = begun(watch)
    watch.tell([crossing(n) for n in range(stock_watch.CROSSINGS_WAITING_MAX)], {})
    watch.tell([crossing()], {})
    with pytest.raises(Exhausted):
        next(news)


def test_so_do_too_many_levels(watches: StockWatches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock_watch, "LEVELS_WAITING_MAX", 2)
    watch = watches.watch(WatchRequest(MALL, (STORE,)))
    news = begun(watch)
    figures = StockFigures(100, 1, 0, 0, 0)
    watch.tell((), {(STORE, 100): figures, (STORE, 101): figures})
    watch.tell((), {(STORE, 102): figures})
    with pytest.raises(Exhausted):
        next(news)


def test_news_left_untaken_for_long_ends_the_watch_and_says_so(
    watches: StockWatches, monotonic: Monotonic
) -> None:
    watch = watches.watch(WatchRequest(MALL, (STORE,)))
    ended: list[bool] = []
    watch.when_stalled(lambda: ended.append(True))
    news = begun(watch)
    watch.tell([crossing(1)], {})
    assert next(news) == crossing(1)
    # Whoever took it is still at work with it. Without news there is nothing to miss, however long it takes.
    monotonic.now_s += 2 * stock_watch.STALLED_S_MAX
    watch.tell((), {})
    assert not ended
    watch.tell([crossing(2)], {})
    assert ended == [True]
    with pytest.raises(Exhausted):
        next(news)


def test_closing_ends_the_watches_and_takes_no_more(watches: StockWatches) -> None:
    watch = watches.watch(WatchRequest(MALL))
    news = begun(watch)
    watches.close()
    with pytest.raises(Stopping):
        next(news)
    with pytest.raises(Stopping):
        watches.watch(WatchRequest(MALL))


def test_a_watch_that_is_closed_just_ends(watches: StockWatches) -> None:
    watch = watches.watch(WatchRequest(MALL))
    news = begun(watch)
    watch.close()
    watch.close()
    assert list(news) == []


def test_a_crossing_between_the_beginning_and_the_levels_is_not_lost(
    shop: Shop, watches: StockWatches
) -> None:
    shop.receive(100)
    shop.receive(100, change=StockChange.BASELINE)
    with watches.watch(WatchRequest(MALL, (STORE,))) as watch:
        shop.receive(5, change=StockChange.COUNT)
        news = begun(watch)
        told = next(one for one in news if isinstance(one, Crossing))
        assert (told.before, told.tier, told.figures.on_hand) == (Tier.NORMAL, Tier.CLOSED, 5)


def test_requests_are_checked(watches: StockWatches) -> None:
    with pytest.raises(TooManyItems):
        WatchRequest(MALL, tuple(range(1, stock_watch.WATCHED_MAX + 2)))
    with pytest.raises(InvalidInput):
        WatchRequest(MALL, (0,))
    with pytest.raises(UnknownMall):
        watches.watch(WatchRequest(999))
    with pytest.raises(InvalidInput) as caught:
        watches.watch(WatchRequest(MALL, (STORE, 999)))
    assert caught.value.field == "store_ids[1]"


@pytest.mark.parametrize("before", Tier)
@pytest.mark.parametrize("after", Tier)
def test_every_crossing_has_its_sentences(before: Tier, after: Tier) -> None:
    if before is after:
        return
    for factory in (None, shops.store(2099, name="工厂店", factory=True, region="East")):
        one = Crossing(EventId(0, 1, 1), 0, STORE, before, StockFigures(100, 8, 0, 100, after), factory)
        zh, en = one.say()
        assert f"商品 100 在门店 {STORE} " in zh
        assert en.startswith(f"SKU 100 at store {STORE} ")
        assert "{" not in zh + en
        assert one.alert == (after > before and after >= Tier.RED)
        assert one.replenish_count == (92 if one.alert else 0)
        assert ("2099" in zh and "2099" in en) == (factory is not None and after is Tier.EMERGENCY)
