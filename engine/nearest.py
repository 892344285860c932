"""The nearest open stores to a point that have what is wanted: the mall's "pick a store". Pure, but for the caller's stock.

The store table lies in flat arrays, once in each datum, so that a caller's position is never converted and one call of the
distance kernel measures the whole mall. Only as many stores as the answer needs are then asked for their hours and their stock,
nearest first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
import numpy.typing as npt

from engine.entries import check_whole
from engine.errors import InvalidInput
from engine.hours import is_open
from engine.stores import Store
from ext.place import Datum, distance_batch

COUNT_MAX: Final = 50
"""Stores of one answer: what a customer scrolls through."""
DISTANCE_M_MAX: Final = 100_000.0
"""How far a store may be: the distance kernel's stated accuracy ends there, and so does picking up in person."""
ASKED_AT_ONCE: Final = 32
"""Stores whose stock is asked for in one go, if the answer isn't longer."""
_COLUMN: Final = np.dtype(np.float64)

StockOf = Callable[[Sequence[int]], Sequence[bool]]
"""For each of some store ids, whether it has what is wanted. Called with at most max(ASKED_AT_ONCE, count_max) of them at once."""


@dataclass(frozen=True, slots=True)
class Nearby:
    """One store of the answer, its distance in metres, and whether it is open at the instant asked for."""

    store: Store
    distance_m: float
    open: bool


class StoreTable:
    """All stores at one control version, by mall. Immutable; for many threads at once."""

    def __init__(self, stores: Iterable[Store]) -> None:
        self._stores = sorted(stores, key=lambda store: store.store_id)
        self._places = {int(datum): self._columns(datum) for datum in Datum}
        rows: dict[int, list[int]] = {}
        for row, store in enumerate(self._stores):
            for mall_id in store.mall_ids:
                rows.setdefault(mall_id, []).append(row)
        self._rows: Mapping[int, npt.NDArray[np.intp]] = {
            mall_id: np.array(of_mall, dtype=np.intp) for mall_id, of_mall in rows.items()
        }

    def _columns(self, datum: Datum) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        places = np.array([store.positions[datum] for store in self._stores], dtype=_COLUMN).reshape(-1, 2)
        return np.ascontiguousarray(places[:, 0]), np.ascontiguousarray(places[:, 1])

    def __len__(self) -> int:
        return len(self._stores)

    def by_distance(
        self, mall_id: int, latitude_deg: float, longitude_deg: float, datum: int, distance_m_max: float
    ) -> Iterator[tuple[Store, float]]:
        """A mall's stores within a distance of a point, with their distances, nearest first; equally near ones by id.

        latitude_deg -90 .. 90, longitude_deg -180 .. 180, of `datum` (ext.datum.Datum); distance_m_max in metres. Raises
        InvalidInput.
        """
        _check_point(latitude_deg, longitude_deg, datum)
        if not 0 < distance_m_max <= DISTANCE_M_MAX:
            raise InvalidInput(
                f"distance_m_max is {distance_m_max}; expected more than 0 and at most {DISTANCE_M_MAX:g} metres",
                field="distance_m_max",
            )
        rows = self._rows.get(mall_id)
        if rows is None:
            return iter(())
        latitudes_deg, longitudes_deg = self._places[datum]
        distances_m = distance_batch(latitude_deg, longitude_deg, latitudes_deg[rows], longitudes_deg[rows])
        near = np.flatnonzero(distances_m <= distance_m_max)
        # Rows are in order of the id and the sort is stable, so equally near stores stay in that order.
        near = near[np.argsort(distances_m[near], kind="stable")]
        # One by one: of ten thousand stores the answer needs ten.
        return ((self._stores[rows[n]], float(distances_m[n])) for n in near)


def nearest(
    table: StoreTable,
    mall_id: int,
    latitude_deg: float,
    longitude_deg: float,
    datum: int,
    *,
    now_ms: int,
    count_max: int = 10,
    distance_m_max: float = DISTANCE_M_MAX,
    open_only: bool = True,
    stock_of: StockOf | None = None,
) -> list[Nearby]:
    """A mall's nearest stores to a point, nearest first, at most count_max (1 .. COUNT_MAX); stores that are closed never.

    open_only: only those that are open at now_ms (unix milliseconds), by their hours and special days. stock_of: only those for
    which it says True; it is asked in batches, nearest first, and no further than the answer needs. Raises InvalidInput, and
    what stock_of raises.
    """
    check_whole(count_max, "count_max", 1, COUNT_MAX, "stores")
    candidates = (
        Nearby(store, distance_m, is_open(store, now_ms))
        for store, distance_m in table.by_distance(
            mall_id, latitude_deg, longitude_deg, datum, distance_m_max
        )
        if not store.closed
    )
    wanted = (candidate for candidate in candidates if candidate.open or not open_only)
    found: list[Nearby] = []
    batch_max = max(ASKED_AT_ONCE, count_max) if stock_of else count_max
    while len(found) < count_max:
        batch = list(islice(wanted, batch_max))
        if not batch:
            break
        has = stock_of([candidate.store.store_id for candidate in batch]) if stock_of else [True] * len(batch)
        found += [candidate for candidate, available in zip(batch, has, strict=True) if available]
    return found[:count_max]


def _check_point(latitude_deg: float, longitude_deg: float, datum: int) -> None:
    for name, value, most in (("latitude_deg", latitude_deg, 90.0), ("longitude_deg", longitude_deg, 180.0)):
        if not math.isfinite(value) or abs(value) > most:
            raise InvalidInput(f"{name} is {value}; expected {-most:g} to {most:g} degrees", field=name)
    if datum not in tuple(Datum):
        raise InvalidInput(f"datum is {datum}; expected 1 (WGS-84), 2 (GCJ-02) or 3 (BD-09)", field="datum")
