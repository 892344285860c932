"""The nearest stores to a point, on real places in Shanghai, Beijing and Singapore."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

import pytest
from geographiclib.geodesic import Geodesic

from engine.errors import InvalidInput
from engine.hours import Hours
from engine.nearest import ASKED_AT_ONCE, COUNT_MAX, StoreTable, nearest
from engine.stores import Store
from ext.place import Datum, convert
from tests.engine import shop as shops

NOON: Final = round(datetime(2026, 6, 3, 12, tzinfo=ZoneInfo("Asia/Shanghai")).timestamp() * 1000)
PEOPLE_S_SQUARE: Final = (31.2304, 121.4737)
# Public places, WGS-84 to four digits.
PLACES: Final[dict[int, tuple[str, float, float]]] = {
    1: ("南京东路", 31.2381, 121.4846),
    2: ("静安寺", 31.2231, 121.4453),
    3: ("陆家嘴", 31.2397, 121.4998),
    4: ("徐家汇", 31.1950, 121.4374),
    5: ("虹桥站", 31.1940, 121.3200),
    6: ("王府井", 39.9139, 116.4109),
    7: ("Orchard Road", 1.3040, 103.8318),
}
IN_SHANGHAI: Final = [1, 2, 3, 4, 5]
"""Ids of the stores within 100 km of People's Square."""


def stores(**changes: dict[str, Any]) -> list[Store]:
    """The stores at PLACES; `s3={...}` changes store 3."""
    return [
        shops.store(n, **{"name": name, "latitude_deg": lat, "longitude_deg": lon} | changes.get(f"s{n}", {}))
        for n, (name, lat, lon) in PLACES.items()
    ]


def ids(found: Sequence[Any]) -> list[int]:
    return [near.store.store_id for near in found]


def ask(all_stores: Sequence[Store], **options: Any) -> list[Any]:
    given: dict[str, Any] = {"now_ms": NOON}
    return nearest(StoreTable(all_stores), shops.MALL, *PEOPLE_S_SQUARE, Datum.WGS84, **given | options)


def geodesic_m(store_id: int) -> float:
    _, lat, lon = PLACES[store_id]
    return float(Geodesic.WGS84.Inverse(*PEOPLE_S_SQUARE, lat, lon)["s12"])


def test_nearest_first_with_their_distances() -> None:
    found = ask(stores())
    assert ids(found) == sorted(IN_SHANGHAI, key=geodesic_m)
    for near in found:
        assert near.distance_m == pytest.approx(geodesic_m(near.store.store_id), rel=1e-3)
        assert near.open
    assert found[0].distance_m == pytest.approx(1344, abs=15)


def test_what_is_farther_than_the_bound_is_left_out() -> None:
    assert set(ids(ask(stores(), distance_m_max=6_000))) == {1, 2, 3, 4}
    assert ids(ask(stores(), distance_m_max=1_000)) == []
    edge = ask(stores())[1].distance_m
    assert len(ask(stores(), distance_m_max=edge)) == 2
    assert len(ask(stores(), distance_m_max=edge - 0.001)) == 1


def test_no_more_than_asked_for() -> None:
    everything = ids(ask(stores()))
    for count in range(1, 6):
        assert ids(ask(stores(), count_max=count)) == everything[:count]


def test_only_stores_of_the_mall() -> None:
    all_stores = stores(s1={"mall_ids": (shops.OTHER_MALL,)})
    assert 1 not in ids(ask(all_stores))
    other = nearest(StoreTable(all_stores), shops.OTHER_MALL, *PEOPLE_S_SQUARE, Datum.WGS84, now_ms=NOON)
    assert ids(other)[0] == 1
    assert nearest(StoreTable(all_stores), 77, *PEOPLE_S_SQUARE, Datum.WGS84, now_ms=NOON) == []


def test_only_open_ones_unless_asked_and_closed_ones_never() -> None:
    evening = {"opening_hours": (Hours(18 * 60, 22 * 60),)}
    all_stores = stores(s1=evening, s2={"closed": True})
    assert ids(ask(all_stores)) == [n for n in sorted(IN_SHANGHAI, key=geodesic_m) if n not in (1, 2)]
    everything = ask(all_stores, open_only=False)
    assert 2 not in ids(everything)
    assert [near.open for near in everything if near.store.store_id == 1] == [False]
    assert 1 in ids(ask(all_stores, now_ms=NOON + 7 * 3_600_000))


def test_only_stores_that_have_it_and_only_as_many_are_asked_as_needed() -> None:
    asked: list[list[int]] = []

    def stock_of(store_ids: Sequence[int]) -> list[bool]:
        asked.append(list(store_ids))
        return [store_id in (3, 4) for store_id in store_ids]

    assert ids(ask(stores(), stock_of=stock_of)) == [3, 4]
    # Nobody is asked about a store of another city.
    assert asked == [sorted(IN_SHANGHAI, key=geodesic_m)]


def test_stock_is_asked_for_in_batches_nearest_first_until_there_are_enough() -> None:
    many = [
        shops.store(n, latitude_deg=PEOPLE_S_SQUARE[0] + n * 1e-4, longitude_deg=PEOPLE_S_SQUARE[1])
        for n in range(1, 201)
    ]
    asked: list[int] = []

    def stock_of(store_ids: Sequence[int]) -> list[bool]:
        assert len(store_ids) <= ASKED_AT_ONCE
        asked.extend(store_ids)
        return [store_id % 40 == 0 for store_id in store_ids]

    found = ask(many, stock_of=stock_of, count_max=2)
    assert ids(found) == [40, 80]
    assert asked == list(range(1, 97))
    asked.clear()
    assert ids(ask(many, stock_of=stock_of, count_max=10)) == [40, 80, 120, 160, 200]
    assert asked == list(range(1, 201))


def test_each_datum_finds_the_same_stores_at_the_same_distance() -> None:
    """The stores are kept in a datum each, the caller asks in any: only a mixture would be some 500 m off."""
    mixed = stores(
        s2={"datum": Datum.GCJ02, **_in(Datum.GCJ02, 2)}, s3={"datum": Datum.BD09, **_in(Datum.BD09, 3)}
    )
    expected = ask(stores())
    for datum in Datum:
        latitude_deg, longitude_deg = convert(*PEOPLE_S_SQUARE, Datum.WGS84, datum)
        found = nearest(StoreTable(mixed), shops.MALL, latitude_deg, longitude_deg, datum, now_ms=NOON)
        assert ids(found) == ids(expected)
        for near, same in zip(found, expected, strict=True):
            # GCJ-02 and BD-09 stretch the map by up to a hundredth, and differently from place to place.
            assert near.distance_m == pytest.approx(same.distance_m, rel=1e-2)


def _in(datum: Datum, store_id: int) -> dict[str, float]:
    latitude_deg, longitude_deg = convert(*PLACES[store_id][1:], Datum.WGS84, datum)
    return {"latitude_deg": latitude_deg, "longitude_deg": longitude_deg}


def test_equally_near_stores_come_by_id() -> None:
    same = [shops.store(n, latitude_deg=31.23, longitude_deg=121.47) for n in (9, 3, 7, 1)]
    assert ids(ask(same)) == [1, 3, 7, 9]


def test_a_thousand_stores_agree_with_a_search_one_by_one() -> None:
    draw = random.Random(7)
    all_stores = [
        shops.store(n, latitude_deg=draw.uniform(30.9, 31.5), longitude_deg=draw.uniform(121.1, 121.9))
        for n in range(1, 1001)
    ]

    def distance_m(store: Store) -> float:
        there = (store.latitude_deg, store.longitude_deg)
        return float(Geodesic.WGS84.Inverse(*PEOPLE_S_SQUARE, *there)["s12"])

    expected = sorted(all_stores, key=distance_m)[:COUNT_MAX]
    found = ask(all_stores, count_max=COUNT_MAX)
    for near, store in zip(found, expected, strict=True):
        # Two stores may be as near as the kernel's 0.1 %: then either may come first.
        assert near.store is store or distance_m(near.store) == pytest.approx(distance_m(store), rel=1e-3)


def test_no_stores_at_all() -> None:
    assert ask([]) == []
    assert len(StoreTable([])) == 0


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"count_max": 0}, "count_max"),
        ({"count_max": COUNT_MAX + 1}, "count_max"),
        ({"distance_m_max": 0.0}, "distance_m_max"),
        ({"distance_m_max": 100_001.0}, "distance_m_max"),
        ({"distance_m_max": float("nan")}, "distance_m_max"),
        ({"latitude_deg": 90.1}, "latitude_deg"),
        ({"latitude_deg": float("nan")}, "latitude_deg"),
        ({"longitude_deg": -180.1}, "longitude_deg"),
        ({"longitude_deg": float("inf")}, "longitude_deg"),
        ({"datum": 0}, "datum"),
        ({"datum": 4}, "datum"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(options: dict[str, Any], field: str) -> None:
    given = {"latitude_deg": 31.2, "longitude_deg": 121.4, "datum": 1, "now_ms": NOON} | options
    with pytest.raises(InvalidInput) as refused:
        nearest(StoreTable(stores()), shops.MALL, **given)
    assert refused.value.field == field


def test_the_deployment_s_table_follows_its_stores(shop: shops.Shop) -> None:
    control = shop.deployment.control
    first = control.copy().table
    assert len(first) == len(control.copy().stores)
    shop.put_store(shops.STORE, closed=True)
    after = control.copy().table
    found = nearest(after, shops.MALL, shops.LATITUDE_DEG, shops.LONGITUDE_DEG, Datum.WGS84, now_ms=NOON)
    assert sorted(ids(found)) == sorted({shops.NEIGHBOUR, shops.FAR_STORE})
    assert found[0].distance_m == 0
