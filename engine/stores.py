"""Malls, stores and catalogue: what the control partition says about them, and each store's place in every datum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Final, Literal, get_args
from zoneinfo import ZoneInfo

from engine import limits
from engine.entries import (
    Entry,
    check_choice,
    check_different,
    check_id,
    check_number_of,
    check_text,
    check_whole,
)
from engine.errors import InvalidInput
from engine.hours import Calendar, Hours, SpecialDay, Window, check_week
from ext.place import Datum, convert

TerminalLocation = Literal["inherit", "required", "optional", "off"]
"""Whether a terminal must say where it is: as the deployment's policy has it; always; only checked when it does; never looked at.

This is the one place where a store says so: a policy of the store's level may not (engine.policies).
"""

PickupMode = Literal["dynamic", "static", "valuable"]
"""How a code is handed over: QR code in the store (V2), serial and PIN (V1), or QR code and proof of identity (V3)."""

PARTS_MAX: Final = limits.LINES_MAX
"""A bundle's parts become lines of the code."""


@dataclass(frozen=True)
class Mall(Entry):
    """A mall: the tenant."""

    mall_id: int
    name: str

    def __post_init__(self) -> None:
        check_id(self.mall_id, "mall_id")
        check_text(self.name, "name", limits.NAME_CHARS_MAX)

    @property
    def field(self) -> str:
        """Its name within its kind."""
        return str(self.mall_id)


@dataclass(frozen=True)
class CatalogueEntry(Entry):
    """One SKU of a mall's catalogue. `unit` is what one of it is called.

    parts: (SKU, count) of what one of it consists of, if it is a bundle; they are in the catalogue and no bundles themselves
    (check_bundles). pickup_mode: how its codes are handed over unless a policy of the SKU says otherwise; None: as the store's
    or the deployment's policy says.
    """

    mall_id: int
    sku_id: int
    name: str
    unit: str = "件"
    parts: tuple[tuple[int, int], ...] = ()
    pickup_mode: PickupMode | None = None

    def __post_init__(self) -> None:
        check_id(self.mall_id, "mall_id")
        check_id(self.sku_id, "sku_id")
        check_text(self.name, "name", limits.NAME_CHARS_MAX)
        check_text(self.unit, "unit", 16)
        check_number_of(self.parts, "parts", 0, PARTS_MAX)
        for index, (sku_id, count) in enumerate(self.parts):
            check_id(sku_id, f"parts[{index}].sku_id")
            check_whole(count, f"parts[{index}].count", 1, limits.COUNT_MAX, "units")
        check_different([sku_id for sku_id, _ in self.parts], "parts")
        if self.pickup_mode is not None:
            check_choice(self.pickup_mode, "pickup_mode", get_args(PickupMode))

    @property
    def field(self) -> str:
        """Its name within its kind."""
        return f"{self.mall_id}:{self.sku_id}"


@dataclass(frozen=True)
class Store(Entry):
    """A store (门店): where it is, which malls' codes it hands out, how near a terminal must be, when it is open.

    Position in degrees of `datum` (ext.datum.Datum), radius in metres (1 .. 100,000). opening_hours: of the week; none means
    always open. pickup_windows: of the week, for codes that a short stock has bound to them. special_days: dates with rules of
    their own, which come first. factory: it is the factory store (工厂店) of its region, which the region's other stores ask for
    goods; a region has one for each mall (check_factories).
    """

    NESTED: ClassVar = {"opening_hours": Hours, "pickup_windows": Window, "special_days": SpecialDay}

    store_id: int
    name: str
    mall_ids: tuple[int, ...]
    latitude_deg: float
    longitude_deg: float
    datum: int
    city: str = ""
    address: str = ""
    radius_m: int = limits.RADIUS_M_DEFAULT
    terminal_location: TerminalLocation = "required"
    closed: bool = False
    time_zone: str = "Asia/Shanghai"
    region: str = ""
    factory: bool = False
    opening_hours: tuple[Hours, ...] = ()
    pickup_windows: tuple[Window, ...] = ()
    special_days: tuple[SpecialDay, ...] = ()

    def __post_init__(self) -> None:
        check_id(self.store_id, "store_id")
        check_text(self.name, "name", limits.NAME_CHARS_MAX)
        for name in ("city", "address", "region"):
            check_text(getattr(self, name), name, limits.NAME_CHARS_MAX, chars_min=0)
        check_number_of(self.mall_ids, "mall_ids", 1, limits.MALLS_PER_STORE_MAX)
        check_different(self.mall_ids, "mall_ids")
        for mall_id in self.mall_ids:
            check_id(mall_id, "mall_ids")
        check_whole(self.radius_m, "radius_m", 1, limits.RADIUS_M_MAX, "metres")
        check_choice(self.terminal_location, "terminal_location", get_args(TerminalLocation))
        if self.factory and not self.region:
            raise InvalidInput(
                "region is empty; expected the region whose factory store this is", field="region"
            )
        check_week(self.opening_hours, self.pickup_windows, self.special_days)
        if self.datum not in tuple(Datum):
            raise InvalidInput(
                f"datum is {self.datum}; expected 1 (WGS-84), 2 (GCJ-02) or 3 (BD-09)", field="datum"
            )
        try:
            ZoneInfo(self.time_zone)
        except (KeyError, ValueError, OSError):
            raise InvalidInput(
                f"time_zone is {self.time_zone!r}; expected an IANA name such as Asia/Shanghai",
                field="time_zone",
            ) from None
        try:
            _ = self.positions
        except ValueError as error:
            raise InvalidInput(f"the store's position is not one: {error}", field="latitude_deg") from None

    @property
    def field(self) -> str:
        """Its name within its kind."""
        return str(self.store_id)

    @cached_property
    def positions(self) -> Mapping[int, tuple[float, float]]:
        """Its place (latitude, longitude in degrees) in every datum.

        GCJ-02 lies 44 to 666 m off, so a radius is only meaningful within one datum; the store is converted once, so that a
        caller's position never needs to be.
        """
        return {
            int(target): convert(self.latitude_deg, self.longitude_deg, Datum(self.datum), target)
            for target in Datum
        }

    @cached_property
    def calendar(self) -> Calendar:
        """Its opening hours and pickup windows, day by day (engine.hours)."""
        return Calendar(self.time_zone, self.opening_hours, self.pickup_windows, self.special_days)


# --- what entries may not say together ------------------------------------------------------------------------------
def check_bundles(
    catalogue: Mapping[tuple[int, int], CatalogueEntry], items: Iterable[CatalogueEntry]
) -> None:
    """Refuse `items` if, put into `catalogue` (by mall and SKU), they would make a bundle of what isn't there or of bundles.

    Nested bundles are refused because a code's lines are reserved and handed out one by one: two ways to one SKU would make
    "all of it or none" depend on the order in which parts are taken. Raises InvalidInput.
    """
    put = {(item.mall_id, item.sku_id): item for item in items}
    merged = {**catalogue, **put}
    new_bundles = {key for key, item in put.items() if item.parts}
    for (mall_id, sku_id), entry in merged.items():
        for index, (part_id, _) in enumerate(entry.parts):
            field = f"parts[{index}].sku_id"
            part = merged.get((mall_id, part_id))
            if (mall_id, sku_id) in new_bundles:
                if part is None:
                    raise InvalidInput(
                        f"SKU {sku_id} of mall {mall_id}: {field} is {part_id}, which is not in the mall's catalogue;"
                        " put the part first, or together with the bundle",
                        field=field,
                    )
                if part.parts:
                    raise InvalidInput(
                        f"SKU {sku_id} of mall {mall_id}: {field} is {part_id}, which is a bundle itself; expected a SKU"
                        " without parts: list its parts instead",
                        field=field,
                    )
            elif (mall_id, part_id) in new_bundles:
                raise InvalidInput(
                    f"SKU {part_id} of mall {mall_id}: parts is not empty, but the SKU is a part of bundle {sku_id}; expected"
                    " none: change that bundle first",
                    field="parts",
                )


def check_factories(stores: Mapping[int, Store], items: Iterable[Store]) -> None:
    """Refuse `items` if, put into `stores` (by id), they would give a region two factory stores for one mall.

    Raises InvalidInput.
    """
    factories: dict[tuple[int, str], int] = {}
    for store in {**stores, **{item.store_id: item for item in items}}.values():
        for mall_id in store.mall_ids if store.factory else ():
            other_id = factories.setdefault((mall_id, store.region), store.store_id)
            if other_id != store.store_id:
                raise InvalidInput(
                    f"factory is set for stores {other_id} and {store.store_id} of region {store.region!r}, which both serve"
                    f" mall {mall_id}; expected one factory store for a mall in a region",
                    field="factory",
                )


def factory_store(stores: Mapping[int, Store], mall_id: int, region: str) -> Store | None:
    """The factory store of a region for a mall, None if it has none. It may be closed."""
    if not region:
        return None
    return next(
        (
            store
            for store in stores.values()
            if store.factory and store.region == region and mall_id in store.mall_ids
        ),
        None,
    )
