"""`pickgate malls`, `stores`, `catalogue`: put and list; the nearest stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click
from google.protobuf.message import Message
from rich.console import Console as RichConsole
from rich.markup import escape

from engine.errors import InvalidInput
from pickgate.v1 import store_service_pb2 as store_pb
from pickgate.v1 import types_pb2 as types_pb
from server import bounds
from server.client import Client, new_request_id
from server.commands import parameters
from server.console import Console, command, moment, table
from server.plain import enum_name, message_of, plain

M = TypeVar("M", bound=Message)

_file = click.argument("file", type=click.Path(path_type=Path, allow_dash=True), required=False)


def entries(kind: type[M], file: Path | None, flags: dict[str, Any], what: str) -> list[M]:
    """The entries of a file, or the single one that flags describe. Raises InvalidInput."""
    # By identity: 0 equals False, and a store may well stand on the equator.
    given = {name: value for name, value in flags.items() if value is not None and value is not False}
    if (file is None) == (not given):
        raise InvalidInput(f"which {what}? Name a JSON file, or describe one entry by options", field="file")
    values = [given] if file is None else parameters.read_entries(file, what)
    return [message_of(kind, value, f"{what}[{index}]") for index, value in enumerate(values)]


def batches(items: list[M], request_id: str) -> Iterator[tuple[list[M], str]]:
    """Cut a file into puts, each with a request id of its own that follows from the first one's."""
    first = request_id or new_request_id()
    for number, start in enumerate(range(0, len(items), bounds.PUT_ITEMS_MAX)):
        yield items[start : start + bounds.PUT_ITEMS_MAX], f"{first}.{number}" if number else first


def report(console: Console, what: str, count: int, version: int, request_id: str) -> None:
    """Print what a put came to."""
    value = {what: count, "control_version": version, "request_id": request_id}
    console.emit(
        value,
        lambda rich: rich.print(
            f"[bold green]PUT[/]  {count} {what}, in force as version {version}\n  request_id       {escape(request_id)}"
        ),
    )


def pages(fetch: Callable[[str], tuple[list[M], str]]) -> list[M]:
    """Fetch page after page: `fetch` gives the items behind a token, and the next token ("" at the end)."""
    found: list[M] = []
    token = ""
    while True:
        page, token = fetch(token)
        found += page
        if not token:
            return found


# --- malls --------------------------------------------------------------------------------------------------------


@click.group("malls")
def malls() -> None:
    """The malls: the tenants."""


@malls.command("put")
@_file
@click.option("--id", "mall_id", type=parameters.ID)
@click.option("--name")
@parameters.request_id
@parameters.actor
@command
def put_malls(
    console: Console, file: Path | None, mall_id: int | None, name: str | None, request_id: str, actor: str
) -> None:
    """Put malls from FILE (JSON, "-" for standard input), or one by options."""
    items = entries(store_pb.Mall, file, {"mall_id": mall_id, "name": name}, "malls")
    version, used = 0, ""
    with console.client(console.settings()) as client:
        for batch, batch_id in batches(items, request_id):
            put = store_pb.PutMallsRequest(malls=batch, request_id=batch_id, actor=actor)
            version = client.call(client.stores.PutMalls, put).control_version
            used = used or batch_id
    report(console, "malls", len(items), version, used)


@malls.command("list")
@command
def list_malls(console: Console) -> None:
    """List the malls."""
    with console.client(console.settings()) as client:

        def fetch(token: str) -> tuple[list[store_pb.Mall], str]:
            page = client.call(client.stores.ListMalls, store_pb.ListMallsRequest(page_token=token))
            return list(page.malls), page.next_page_token

        found = pages(fetch)

    def show(rich: RichConsole) -> None:
        made = table("Malls", "#id", "name")
        for mall in found:
            made.add_row(str(mall.mall_id), escape(mall.name))
        rich.print(made)

    console.emit({"malls": [plain(mall) for mall in found]}, show)


# --- stores -------------------------------------------------------------------------------------------------------


@click.group("stores")
def stores() -> None:
    """The stores where codes are redeemed."""


@stores.command("put")
@_file
@click.option("--id", "store_id", type=parameters.ID)
@click.option("--name")
@click.option("--city")
@click.option("--address")
@click.option("--mall", "mall_ids", type=parameters.ID, multiple=True, help="A mall it serves; repeatable.")
@click.option("--lat", "latitude_deg", type=float)
@click.option("--lon", "longitude_deg", type=float)
@click.option("--datum", type=click.Choice(["wgs84", "gcj02", "bd09"], case_sensitive=False))
@click.option("--radius-m", type=parameters.WHOLE_32, help="Default: 500.")
@click.option(
    "--terminal-location",
    type=click.Choice(["required", "optional", "off", "inherit"]),
    help="Whether a terminal says where it is; inherit: as the deployment's policy has it. Default: required.",
)
@click.option("--closed", is_flag=True)
@click.option("--time-zone", help="Default: Asia/Shanghai.")
@click.option("--region")
@click.option("--factory", is_flag=True, help="It is the factory store of its region.")
@parameters.request_id
@parameters.actor
@command
def put_stores(
    console: Console,
    /,
    file: Path | None,
    request_id: str,
    actor: str,
    mall_ids: tuple[int, ...],
    **flags: Any,
) -> None:
    """Put stores from FILE (JSON, "-" for standard input), or one by options."""
    items = entries(store_pb.Store, file, {**flags, "mall_ids": list(mall_ids) or None}, "stores")
    version, used = 0, ""
    with console.client(console.settings()) as client:
        for batch, batch_id in batches(items, request_id):
            put = store_pb.PutStoresRequest(stores=batch, request_id=batch_id, actor=actor)
            version = client.call(client.stores.PutStores, put).control_version
            used = used or batch_id
    report(console, "stores", len(items), version, used)


@stores.command("list")
@parameters.mall
@command
def list_stores(console: Console, mall_id: int | None) -> None:
    """List the stores: all, or those that serve one mall."""
    with console.client(console.settings()) as client:
        found = _all_stores(client, mall_id or 0)

    def show(rich: RichConsole) -> None:
        made = table("Stores", "#id", "name", "city", "malls", "position", "#radius m", "location", "state")
        for store in found:
            datum = enum_name(types_pb.Datum.DESCRIPTOR, store.datum)
            made.add_row(
                str(store.store_id),
                escape(store.name),
                escape(store.city),
                ", ".join(map(str, store.mall_ids)),
                f"{store.latitude_deg:.6f}, {store.longitude_deg:.6f} {datum}",
                str(store.radius_m),
                enum_name(store_pb.TerminalLocation.DESCRIPTOR, store.terminal_location).lower(),
                "closed" if store.closed else "open",
            )
        rich.print(made)

    console.emit({"stores": [plain(store) for store in found]}, show)


def _all_stores(client: Client, mall_id: int) -> list[store_pb.Store]:
    def fetch(token: str) -> tuple[list[store_pb.Store], str]:
        request = store_pb.ListStoresRequest(mall_id=mall_id, page_token=token)
        page = client.call(client.stores.ListStores, request)
        return list(page.stores), page.next_page_token

    return pages(fetch)


@stores.command("show")
@click.argument("store_id", type=parameters.ID)
@command
def show_store(console: Console, store_id: int) -> None:
    """Show one store."""
    with console.client(console.settings()) as client:
        store = client.call(client.stores.GetStore, store_pb.GetStoreRequest(store_id=store_id)).store

    def show(rich: RichConsole) -> None:
        for name, value in plain(store).items():
            rich.print(f"  {name:<18} {escape(str(value))}")

    console.emit(plain(store), show)


@stores.command("nearest")
@parameters.position
@click.option(
    "--line",
    "lines",
    multiple=True,
    metavar="SKU:COUNT",
    help="What the store must be able to promise; repeatable.",
)
@click.option(
    "--channel", type=click.Choice(["online", "promotion", "staff"]), default="online", show_default=True
)
@click.option("--stores-max", type=parameters.WHOLE_32, default=0, help="Default: 10.")
@click.option(
    "--distance-m",
    "distance_m_max",
    type=parameters.WHOLE_32,
    default=0,
    help="How far at most. Default: 100 km.",
)
@click.option("--closed-too", is_flag=True, help="Also stores that are outside their hours now.")
@parameters.mall
@command
def nearest_stores(
    console: Console,
    latitude_deg: float | None,
    longitude_deg: float | None,
    accuracy_m: float,
    datum: str | None,
    lines: tuple[str, ...],
    channel: str,
    stores_max: int,
    distance_m_max: int,
    closed_too: bool,
    mall_id: int | None,
) -> None:
    """Find the nearest stores to a point that are open and could serve an order now."""
    settings = console.settings()
    request = store_pb.NearestStoresRequest(
        mall_id=parameters.required(settings, "mall_id", mall_id, "--mall"),
        position=parameters.position_of(latitude_deg, longitude_deg, accuracy_m, datum),
        lines=[parameters.line_of(line) for line in lines],
        channel=types_pb.Channel.Value(f"CHANNEL_{channel.upper()}"),
        stores_max=stores_max,
        distance_m_max=distance_m_max,
        closed_now_too=closed_too,
    )
    with console.client(settings) as client:
        response = client.call(client.stores.NearestStores, request)

    def show(rich: RichConsole) -> None:
        made = table("Nearest stores", "#id", "name", "city", "#metres", "now", "available")
        for one in response.stores:
            opens = f"opens {moment(one.opens_at_ms)}" if one.opens_at_ms else "closed"
            made.add_row(
                str(one.store.store_id),
                escape(one.store.name),
                escape(one.store.city),
                f"{one.distance_m:.0f}",
                "open" if one.open else opens,
                ", ".join(f"{figures.sku_id}:{figures.available}" for figures in one.figures),
            )
        rich.print(made)

    console.emit(plain(response), show)


# --- catalogue ----------------------------------------------------------------------------------------------------


@click.group("catalogue")
def catalogue() -> None:
    """The SKUs of each mall."""


@catalogue.command("put")
@_file
@parameters.mall
@click.option("--sku", "sku_id", type=parameters.ID)
@click.option("--name")
@click.option("--unit", help="What one is called. Default: 件.")
@click.option(
    "--part", "parts", multiple=True, metavar="SKU:COUNT", help="It is a bundle of this; repeatable."
)
@click.option("--pickup-mode", type=click.Choice(["static", "dynamic", "valuable"]))
@parameters.request_id
@parameters.actor
@command
def put_catalogue(
    console: Console,
    file: Path | None,
    mall_id: int | None,
    sku_id: int | None,
    name: str | None,
    unit: str | None,
    parts: tuple[str, ...],
    pickup_mode: str | None,
    request_id: str,
    actor: str,
) -> None:
    """Put catalogue entries from FILE (JSON, "-" for standard input), or one by options."""
    settings = console.settings()
    flags = {
        "sku_id": sku_id,
        "name": name,
        "unit": unit,
        "parts": [plain(parameters.line_of(part, "part")) for part in parts] or None,
        "pickup_mode": pickup_mode,
    }
    items = entries(store_pb.CatalogueEntry, file, flags, "entries")
    for item in items:
        item.mall_id = item.mall_id or mall_id or settings.mall_id
    version, used = 0, ""
    with console.client(settings) as client:
        for batch, batch_id in batches(items, request_id):
            put = store_pb.PutCatalogueRequest(entries=batch, request_id=batch_id, actor=actor)
            version = client.call(client.stores.PutCatalogue, put).control_version
            used = used or batch_id
    report(console, "entries", len(items), version, used)


@catalogue.command("list")
@parameters.mall
@command
def list_catalogue(console: Console, mall_id: int | None) -> None:
    """List the SKUs of a mall."""
    settings = console.settings()
    mall = parameters.required(settings, "mall_id", mall_id, "--mall")
    with console.client(settings) as client:

        def fetch(token: str) -> tuple[list[store_pb.CatalogueEntry], str]:
            request = store_pb.ListCatalogueRequest(mall_id=mall, page_token=token)
            page = client.call(client.stores.ListCatalogue, request)
            return list(page.entries), page.next_page_token

        found = pages(fetch)

    def show(rich: RichConsole) -> None:
        made = table(f"Catalogue of mall {mall}", "#SKU", "name", "unit", "parts", "pickup")
        for entry in found:
            mode = enum_name(types_pb.PickupMode.DESCRIPTOR, entry.pickup_mode).lower()
            made.add_row(
                str(entry.sku_id),
                escape(entry.name),
                escape(entry.unit),
                ", ".join(f"{part.sku_id}:{part.count}" for part in entry.parts),
                mode if entry.pickup_mode else "",
            )
        rich.print(made)

    console.emit({"entries": [plain(entry) for entry in found]}, show)
