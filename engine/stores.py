"""Malls, stores and catalogue: what the control partition says about them, and each store's place in every datum."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Literal, Self, get_args
from zoneinfo import ZoneInfo

from engine import limits
from engine.errors import InvalidInput
from ext.place import Datum, convert

TerminalLocation = Literal["required", "optional", "off"]
"""Whether a terminal must say where it is: always; only checked when it does; never looked at."""


def _text(value: str, field: str, chars_max: int, *, chars_min: int = 1) -> None:
    if not chars_min <= len(value) <= chars_max or not value.isprintable():
        raise InvalidInput(
            f"{field} has {len(value)} characters; expected {chars_min} to {chars_max} printable ones",
            field=field,
        )


def _id(value: int, field: str) -> None:
    if not 1 <= value <= limits.ID_MAX:
        raise InvalidInput(f"{field} is {value}; expected 1 to {limits.ID_MAX}", field=field)


class _Entry:
    """An entry of the control partition: a frozen dataclass, stored as JSON with its field names."""

    def to_json(self) -> bytes:
        """The entry as stored."""
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":")).encode()  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """An entry as stored, read back. A field that this version doesn't know is ignored: a newer process wrote it."""
        stored: Mapping[str, Any] = json.loads(data)
        known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        return cls(
            **{name: tuple(v) if isinstance(v, list) else v for name, v in stored.items() if name in known}
        )


@dataclass(frozen=True)
class Mall(_Entry):
    """A mall: the tenant."""

    mall_id: int
    name: str

    def __post_init__(self) -> None:
        _id(self.mall_id, "mall_id")
        _text(self.name, "name", limits.NAME_CHARS_MAX)

    @property
    def field(self) -> str:
        """Its name within its kind."""
        return str(self.mall_id)


@dataclass(frozen=True)
class CatalogueEntry(_Entry):
    """One SKU of a mall's catalogue. `unit` is what one of it is called."""

    mall_id: int
    sku_id: int
    name: str
    unit: str = "件"

    def __post_init__(self) -> None:
        _id(self.mall_id, "mall_id")
        _id(self.sku_id, "sku_id")
        _text(self.name, "name", limits.NAME_CHARS_MAX)
        _text(self.unit, "unit", 16)

    @property
    def field(self) -> str:
        """Its name within its kind."""
        return f"{self.mall_id}:{self.sku_id}"


@dataclass(frozen=True)
class Store(_Entry):
    """A store (门店): where it is, which malls' codes it hands out, how near a terminal must be.

    Position in degrees of `datum` (ext.datum.Datum), radius in metres (1 .. 100,000).
    """

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

    def __post_init__(self) -> None:
        _id(self.store_id, "store_id")
        _text(self.name, "name", limits.NAME_CHARS_MAX)
        for name in ("city", "address", "region"):
            _text(getattr(self, name), name, limits.NAME_CHARS_MAX, chars_min=0)
        if not 1 <= len(self.mall_ids) <= limits.MALLS_PER_STORE_MAX or len(set(self.mall_ids)) != len(
            self.mall_ids
        ):
            raise InvalidInput(
                f"mall_ids has {len(self.mall_ids)} entries; expected 1 to {limits.MALLS_PER_STORE_MAX} different malls",
                field="mall_ids",
            )
        for mall_id in self.mall_ids:
            _id(mall_id, "mall_ids")
        if not 1 <= self.radius_m <= limits.RADIUS_M_MAX:
            raise InvalidInput(
                f"radius_m is {self.radius_m}; expected 1 to {limits.RADIUS_M_MAX} metres", field="radius_m"
            )
        if self.terminal_location not in get_args(TerminalLocation):
            raise InvalidInput(
                f"terminal_location is {self.terminal_location!r}; expected required, optional or off",
                field="terminal_location",
            )
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
