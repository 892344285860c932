"""Parameters that several commands take, and how they are read."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from engine import limits
from engine.errors import InvalidInput
from pickgate.v1 import types_pb2 as types_pb
from server import bounds
from server.config import Settings

F = TypeVar("F", bound=Callable[..., Any])

FILE_BYTES_MAX: Final = 64 * 1024 * 1024
"""A file of orders or stores that people prepare; 10,000 orders have about 2 MB."""

UINT32_MAX: Final = 2**32 - 1


class Whole(click.ParamType):  # type: ignore[type-arg]  # generic for type checkers only
    """A whole number, `low` .. `high`: what a field of the contract can carry. The server says what it may be."""

    name = "integer"

    def __init__(self, low: int, high: int) -> None:
        self._low, self._high = low, high

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read a number, as click asks for."""
        shown = repr(value) if len(repr(value)) <= bounds.SHOWN_CHARS_MAX else "a long text"
        try:
            number = int(value)
        except (TypeError, ValueError):
            self.fail(f"{shown} is not a whole number.", param, ctx)
        if not self._low <= number <= self._high:
            self.fail(f"{shown} is not in the range {self._low} .. {self._high}.", param, ctx)
        return number


WHOLE_32: Final = Whole(0, UINT32_MAX)
WHOLE_64: Final = Whole(-(2**63), 2**63 - 1)
ID: Final = Whole(1, limits.ID_MAX)

mall: Final = click.option(
    "--mall", "mall_id", type=ID, help="The mall. Default: mall_id of the configuration."
)
store: Final = click.option(
    "--store", "store_id", type=ID, help="The store. Default: store_id of the configuration."
)
terminal: Final = click.option(
    "--terminal",
    "terminal_id",
    type=ID,
    help="The terminal. Default: terminal_id of the configuration.",
)
actor: Final = click.option("--actor", default="", help="Who does it, for the record, such as clerk:17.")
request_id: Final = click.option(
    "--request-id", default="", help="Repeat a call safely under its id. Default: a new UUID, printed."
)

_DATUMS: Final = {"wgs84": types_pb.DATUM_WGS84, "gcj02": types_pb.DATUM_GCJ02, "bd09": types_pb.DATUM_BD09}


def position(function: F) -> F:
    """Add the options that say where a terminal, or a customer, is."""
    for option in (
        click.option(
            "--datum",
            type=click.Choice(list(_DATUMS), case_sensitive=False),
            help="Datum of the coordinates. Phones' raw location: wgs84; Chinese map services: gcj02.",
        ),
        click.option("--accuracy", "accuracy_m", type=float, default=0.0, help="Accuracy in metres."),
        click.option("--lon", "longitude_deg", type=float, help="Longitude in degrees."),
        click.option("--lat", "latitude_deg", type=float, help="Latitude in degrees."),
    ):
        function = option(function)
    return function


def position_of(
    latitude_deg: float | None, longitude_deg: float | None, accuracy_m: float, datum: str | None
) -> types_pb.Position | None:
    """Read the position options; None if none was given. The server checks the values. Raises InvalidInput for a part of them."""
    if latitude_deg is None and longitude_deg is None and datum is None:
        return None
    if latitude_deg is None or longitude_deg is None or datum is None:
        raise InvalidInput(
            f"a position has all of --lat, --lon and --datum ({', '.join(_DATUMS)})", field="position"
        )
    return types_pb.Position(
        latitude_deg=latitude_deg,
        longitude_deg=longitude_deg,
        accuracy_m=accuracy_m,
        datum=_DATUMS[datum.lower()],
    )


def line_of(text: str, option: str = "line") -> types_pb.Line:
    """Read "SKU:COUNT", or "SKU" for one unit. Raises InvalidInput."""
    sku, colon, count = text.partition(":")
    shown = repr(text) if len(text) <= bounds.SHOWN_CHARS_MAX else "a long text"
    try:
        return types_pb.Line(sku_id=int(sku), count=int(count) if colon else 1)
    except ValueError:
        raise InvalidInput(
            f"--{option} {shown} is not understood; expected SKU:COUNT, such as 101:2", field=option
        ) from None


def moment_of(text: str, field: str) -> int:
    """Read an ISO 8601 time, without an offset in this machine's time zone, as unix milliseconds. Raises InvalidInput."""
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        raise InvalidInput(
            f"--{field} {text!r} is not understood; expected a time such as 2026-10-03T20:00+08:00",
            field=field,
        ) from None


def required(settings: Settings, field: str, value: int | None, option: str) -> int:
    """Return an id given by option, else by configuration. Raises InvalidInput when neither is."""
    found = value or getattr(settings, field)
    if not found:
        raise InvalidInput(
            f"no {field} is given: use {option}, or set {field} in the configuration", field=field
        )
    return int(found)


def read_entries(path: Path, what: str) -> list[object]:
    """Read a JSON file ("-": standard input) that holds one entry or a list of them. Raises InvalidInput."""
    try:
        if str(path) == "-":
            text = sys.stdin.read(FILE_BYTES_MAX + 1)
        else:
            with path.open(encoding="utf-8") as file:
                text = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise InvalidInput(f"{path} can't be read: {error.strerror}", field="file") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} is not UTF-8", field="file") from None
    if len(text) > FILE_BYTES_MAX:
        raise InvalidInput(f"{path} is longer than {FILE_BYTES_MAX} characters", field="file")
    try:
        value = json.loads(text)
    except RecursionError:
        raise InvalidInput(f"{path} is nested too deeply; expected a list of objects", field="file") from None
    except ValueError as error:
        raise InvalidInput(f"{path} is not JSON: {error}", field="file") from None
    if isinstance(value, dict):
        # What `list --json` prints has one field with the list in it.
        value = value[what] if isinstance(value.get(what), list) else [value]
    if not isinstance(value, list) or not value:
        raise InvalidInput(f"{path} holds no {what}; expected a list of objects", field="file")
    return value
