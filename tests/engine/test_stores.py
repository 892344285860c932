"""What stores and catalogue entries may say, alone and together, also when two processes put at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from engine import limits
from engine.deployment import Deployment
from engine.errors import InvalidInput, PickgateError, RequestIdReused, UnknownMall
from engine.hours import Hours
from engine.stores import CatalogueEntry, Store, check_bundles, factory_store
from tests.engine import shop as shops
from tests.engine.shop import FAR_STORE, MALL, NEIGHBOUR, OTHER_MALL, SKUS, STORE, Clock, Shop

BUNDLE, PART, OTHER_PART = 500, 100, 101


def sku(sku_id: int, *parts: tuple[int, int], mall_id: int = MALL, **fields: Any) -> CatalogueEntry:
    return CatalogueEntry(mall_id, sku_id, f"SKU {sku_id}", parts=parts, **fields)


def put_skus(shop: Shop, *items: CatalogueEntry, request_id: str = "") -> int:
    return shop.deployment.control.put_catalogue(items, request_id=request_id or shop.new_id(), actor="test")


@pytest.fixture
def elsewhere(shop: Shop) -> Iterator[Deployment]:
    """The same deployment, as another process has it open."""
    with shops.open_deployment(shop.url, Clock(shop.clock.now_ms)) as deployment:
        yield deployment


# --- alone --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"parts": ((0, 1),)}, "parts[0].sku_id"),
        ({"parts": ((100, 0),)}, "parts[0].count"),
        ({"parts": ((100, 1), (101, limits.COUNT_MAX + 1))}, "parts[1].count"),
        ({"parts": ((100, 1), (100, 2))}, "parts"),
        ({"parts": tuple((n, 1) for n in range(1, limits.LINES_MAX + 2))}, "parts"),
        ({"pickup_mode": "face"}, "pickup_mode"),
        ({"sku_id": 0}, "sku_id"),
        ({"unit": ""}, "unit"),
    ],
)
def test_a_catalogue_entry_that_makes_no_sense_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    given: dict[str, Any] = {"mall_id": MALL, "sku_id": 1, "name": "Tea"}
    with pytest.raises(InvalidInput) as refused:
        CatalogueEntry(**given | fields)
    assert refused.value.field == field
    assert "expected" in refused.value.message


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"factory": True}, "region"),
        ({"terminal_location": "sometimes"}, "terminal_location"),
        ({"mall_ids": ()}, "mall_ids"),
        ({"mall_ids": (1, 1)}, "mall_ids"),
        ({"radius_m": 0}, "radius_m"),
        ({"radius_m": 100_001}, "radius_m"),
        ({"datum": 4}, "datum"),
        ({"latitude_deg": 91.0}, "latitude_deg"),
        ({"region": "r" * 121}, "region"),
    ],
)
def test_a_store_that_makes_no_sense_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        shops.store(1, **fields)
    assert refused.value.field == field
    assert "expected" in refused.value.message


def test_entries_come_back_as_they_were_put() -> None:
    bundle = sku(BUNDLE, (PART, 2), (OTHER_PART, 1), pickup_mode="static")
    assert CatalogueEntry.from_json(bundle.to_json()) == bundle
    store = shops.store(1, region="华东", factory=True, terminal_location="inherit", closed=True)
    assert Store.from_json(store.to_json()) == store


def test_what_an_older_version_stored_is_read_with_what_was_meant_then() -> None:
    store = Store.from_json(
        b'{"store_id":1,"name":"A","mall_ids":[1],"latitude_deg":31.2,"longitude_deg":121.4,"datum":1,'
        b'"terminal_location":"required","closed":false,"time_zone":"Asia/Shanghai","region":""}'
    )
    assert (store.opening_hours, store.pickup_windows, store.special_days) == ((), (), ())
    assert (store.factory, store.terminal_location) == (False, "required")
    entry = CatalogueEntry.from_json('{"mall_id":1,"sku_id":2,"name":"茶","unit":"盒"}'.encode())
    assert (entry.parts, entry.pickup_mode) == ((), None)


# --- bundles ------------------------------------------------------------------------------------------------------------
def test_a_bundle_of_what_is_there_or_comes_with_it(shop: Shop) -> None:
    put_skus(shop, sku(BUNDLE, (PART, 2), (OTHER_PART, 1)))
    found = shop.deployment.control.sku(MALL, BUNDLE)
    assert found is not None
    assert found.parts == ((PART, 2), (OTHER_PART, 1))
    put_skus(shop, sku(601, (602, 1)), sku(602))
    assert shop.deployment.control.sku(MALL, 601) is not None


@pytest.mark.parametrize(
    ("items", "field", "says"),
    [
        ([sku(BUNDLE, (999, 1))], "parts[0].sku_id", "999, which is not in the mall's catalogue"),
        ([sku(BUNDLE, (PART, 1), (BUNDLE, 1))], "parts[1].sku_id", "500, which is a bundle itself"),
        ([sku(601, (PART, 1)), sku(602, (601, 1))], "parts[0].sku_id", "601, which is a bundle itself"),
        ([sku(601, (602, 1)), sku(602, (601, 1))], "parts[0].sku_id", "which is a bundle itself"),
        ([sku(BUNDLE, (700, 1), mall_id=OTHER_MALL), sku(700)], "parts[0].sku_id", "not in the mall's"),
    ],
)
def test_a_bundle_of_bundles_or_of_nothing_is_refused_whole(
    shop: Shop, items: list[CatalogueEntry], field: str, says: str
) -> None:
    before = shop.deployment.control.refresh().version
    with pytest.raises(InvalidInput) as refused:
        put_skus(shop, sku(800), *items)
    assert refused.value.field == field
    assert says in refused.value.message
    assert shop.deployment.control.refresh().version == before
    assert shop.deployment.control.sku(MALL, 800) is None


def test_a_part_can_t_become_a_bundle_while_it_is_one(shop: Shop) -> None:
    put_skus(shop, sku(BUNDLE, (PART, 2)))
    with pytest.raises(InvalidInput) as refused:
        put_skus(shop, sku(PART, (OTHER_PART, 1)))
    assert refused.value.field == "parts"
    assert f"a part of bundle {BUNDLE}" in refused.value.message
    # Renaming it is no matter, in the other mall it is no part, and both can change in one put.
    put_skus(shop, CatalogueEntry(MALL, PART, "茶"))
    put_skus(shop, sku(PART, (OTHER_PART, 1), mall_id=OTHER_MALL))
    put_skus(shop, sku(PART, (OTHER_PART, 1)), sku(BUNDLE))
    check_bundles(shop.deployment.control.copy().catalogue, [])


def test_a_retry_gets_the_first_answer_even_if_it_would_be_refused_now(shop: Shop) -> None:
    first = put_skus(shop, sku(BUNDLE, (PART, 2)), request_id="bundle-01")
    put_skus(shop, sku(PART, (OTHER_PART, 1)), sku(BUNDLE))
    assert put_skus(shop, sku(BUNDLE, (PART, 2)), request_id="bundle-01") == first
    with pytest.raises(RequestIdReused):
        put_skus(shop, sku(BUNDLE, (PART, 3)), request_id="bundle-01")
    with pytest.raises(InvalidInput):
        put_skus(shop, sku(BUNDLE, (PART, 2)), request_id="bundle-02")
    found = shop.deployment.control.sku(MALL, BUNDLE)
    assert found is not None
    assert found.parts == ()


def test_a_mall_that_is_not_there(shop: Shop) -> None:
    with pytest.raises(UnknownMall):
        put_skus(shop, sku(1, mall_id=77))
    with pytest.raises(UnknownMall):
        shop.put_store(STORE, mall_ids=(MALL, 77))


def race(*puts: Any) -> list[PickgateError | None]:
    """Run each in a thread of its own, all at once; what each raised."""
    outcomes: list[PickgateError | None] = [None] * len(puts)
    barrier = threading.Barrier(len(puts))

    def run(n: int) -> None:
        barrier.wait()
        try:
            puts[n]()
        except PickgateError as error:
            outcomes[n] = error

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(puts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


@pytest.mark.race
def test_of_two_puts_that_would_nest_bundles_one_is_refused(shop: Shop, elsewhere: Deployment) -> None:
    """Each is right by itself; each process looks at a catalogue that the other is about to change."""
    for n in range(20):
        inner, outer = 1000 + 2 * n, 1001 + 2 * n
        put_skus(shop, sku(inner), sku(outer))
        outcomes = race(
            lambda inner=inner: put_skus(shop, sku(inner, (PART, 1)), request_id=f"inner-{inner}"),
            lambda inner=inner, outer=outer: elsewhere.control.put_catalogue(
                [sku(outer, (inner, 1))], request_id=f"outer-{outer}", actor="test"
            ),
        )
        assert [type(outcome) for outcome in outcomes if outcome] == [InvalidInput]
        catalogue = shop.deployment.control.refresh().catalogue
        assert bool(catalogue[MALL, inner].parts) != bool(catalogue[MALL, outer].parts)


# --- factory stores -----------------------------------------------------------------------------------------------------
def test_a_region_has_one_factory_store_for_a_mall(shop: Shop) -> None:
    shop.put_store(STORE, region="华东", factory=True)
    shop.put_store(NEIGHBOUR, region="华东")
    stores = shop.deployment.control.copy().stores
    found = factory_store(stores, MALL, "华东")
    assert found is not None
    assert found.store_id == STORE
    assert factory_store(stores, MALL, "华南") is None
    assert factory_store(stores, 77, "华东") is None
    assert factory_store(stores, MALL, "") is None
    with pytest.raises(InvalidInput) as refused:
        shop.put_store(NEIGHBOUR, region="华东", factory=True)
    assert refused.value.field == "factory"
    assert not shop.deployment.control.refresh().stores[NEIGHBOUR].factory
    # Of another region, or of another mall, it may be one.
    shop.put_store(NEIGHBOUR, region="华南", factory=True)
    shop.put_store(STORE, region="华东", factory=True, mall_ids=(MALL,))
    shop.put_store(FAR_STORE, region="华东", factory=True, mall_ids=(OTHER_MALL,))
    stores = shop.deployment.control.copy().stores
    assert [factory_store(stores, mall, "华东") for mall in (MALL, OTHER_MALL)] == [
        stores[STORE],
        stores[FAR_STORE],
    ]


def test_the_factory_moves_in_one_put(shop: Shop) -> None:
    shop.put_store(STORE, region="华东", factory=True)
    shop.deployment.control.put_stores(
        [shops.store(STORE, region="华东"), shops.store(NEIGHBOUR, region="华东", factory=True)],
        request_id="move-0001",
        actor="test",
    )
    found = factory_store(shop.deployment.control.copy().stores, MALL, "华东")
    assert found is not None
    assert found.store_id == NEIGHBOUR


@pytest.mark.race
def test_of_two_factories_put_at_once_one_is_refused(shop: Shop, elsewhere: Deployment) -> None:
    for n in range(20):
        region = f"region {n}"
        puts = [
            lambda control=control, store_id=store_id, region=region: control.put_stores(
                [shops.store(store_id, region=region, factory=True)],
                request_id=f"{region}-{store_id}",
                actor="t",
            )
            for control, store_id in ((shop.deployment.control, STORE), (elsewhere.control, NEIGHBOUR))
        ]
        assert [type(outcome) for outcome in race(*puts) if outcome] == [InvalidInput]


def test_what_another_process_puts_is_seen(shop: Shop, elsewhere: Deployment) -> None:
    shop.put_store(STORE, opening_hours=(Hours(600, 1320),), region="华东", factory=True)
    put_skus(shop, sku(BUNDLE, (SKUS[2], 2)))
    copy = elsewhere.control.refresh()
    assert copy.stores[STORE] == shop.deployment.control.copy().stores[STORE]
    assert copy.stores[STORE].opening_hours == (Hours(600, 1320),)
    assert copy.catalogue[MALL, BUNDLE].parts == ((SKUS[2], 2),)
