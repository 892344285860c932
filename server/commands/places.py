"""`pickgate malls`, `stores`, `catalogue`: put and list."""

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
from server.console import Console, command, table
from server.plain import enum_name, message_of, plain

M = TypeVar("M", bound=Message)

_file = click.argument("file", type=click.Path(path_type=Path, allow_dash=True), required=False)


def _entries(kind: type[M], file: Path | None, flags: dict[str, Any], what: str) -> list[M]:
    """The entries of a file, or the single one that flags describe. Raises InvalidInput."""
    # By identity: 0 equals False, and a store may well stand on the equator.
    given = {name: value for name, value in flags.items() if value is not None and value is not False}
    if (file is None) == (not given):
        raise InvalidInput(f"which {what}? Name a JSON file, or describe one entry by options", field="file")
    values = [given] if file is None else parameters.read_entries(file, what)
    return [message_of(kind, value, f"{what}[{index}]") for index, value in enumerate(values)]


def _batches(items: list[M], request_id: str) -> Iterator[tuple[list[M], str]]:
    """Cut a file into puts, each with a request id of its own that follows from the first one's."""
    first = request_id or new_request_id()
    for number, start in enumerate(range(0, len(items), bounds.PUT_ITEMS_MAX)):
        yield items[start : start + bounds.PUT_ITEMS_MAX], f"{first}.{number}" if number else first


def _report(console: Console, what: str, count: int, version: int, request_id: str) -> None:
    value = {what: count, "control_version": version, "request_id": request_id}
    console.emit(
        value,
        lambda rich: rich.print(
            f"[bold green]PUT[/]  {count} {what}, in force as version {version}\n  request_id       {escape(request_id)}"
        ),
    )


def _pages(fetch: Callable[[str], tuple[list[M], str]]) -> list[M]:
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
    items = _entries(store_pb.Mall, file, {"mall_id": mall_id, "name": name}, "malls")
    version, used = 0, ""
    with console.client(console.settings()) as client:
        for batch, batch_id in _batches(items, request_id):
            put = store_pb.PutMallsRequest(malls=batch, request_id=batch_id, actor=actor)
            version = client.call(client.stores.PutMalls, put).control_version
            used = used or batch_id
    _report(console, "malls", len(items), version, used)


@malls.command("list")
@command
def list_malls(console: Console) -> None:
    """List the malls."""
    with console.client(console.settings()) as client:

        def fetch(token: str) -> tuple[list[store_pb.Mall], str]:
            page = client.call(client.stores.ListMalls, store_pb.ListMallsRequest(page_token=token))
            return list(page.malls), page.next_page_token

        found = _pages(fetch)

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
@click.option("--radius-m", type=int, help="Default: 500.")
@click.option(
    "--terminal-location", type=click.Choice(["required", "optional", "off"]), help="Default: required."
)
@click.option("--closed", is_flag=True)
@click.option("--time-zone", help="Default: Asia/Shanghai.")
@click.option("--region")
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
    items = _entries(store_pb.Store, file, {**flags, "mall_ids": list(mall_ids) or None}, "stores")
    version, used = 0, ""
    with console.client(console.settings()) as client:
        for batch, batch_id in _batches(items, request_id):
            put = store_pb.PutStoresRequest(stores=batch, request_id=batch_id, actor=actor)
            version = client.call(client.stores.PutStores, put).control_version
            used = used or batch_id
    _report(console, "stores", len(items), version, used)


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

    return _pages(fetch)


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
    request_id: str,
    actor: str,
) -> None:
    """Put catalogue entries from FILE (JSON, "-" for standard input), or one by options."""
    settings = console.settings()
    items = _entries(store_pb.CatalogueEntry, file, {"sku_id": sku_id, "name": name, "unit": unit}, "entries")
    for item in items:
        item.mall_id = item.mall_id or mall_id or settings.mall_id
    version, used = 0, ""
    with console.client(settings) as client:
        for batch, batch_id in _batches(items, request_id):
            put = store_pb.PutCatalogueRequest(entries=batch, request_id=batch_id, actor=actor)
            version = client.call(client.stores.PutCatalogue, put).control_version
            used = used or batch_id
    _report(console, "entries", len(items), version, used)


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

        found = _pages(fetch)

    def show(rich: RichConsole) -> None:
        made = table(f"Catalogue of mall {mall}", "#SKU", "name", "unit")
        for entry in found:
            made.add_row(str(entry.sku_id), escape(entry.name), escape(entry.unit))
        rich.print(made)

    console.emit({"entries": [plain(entry) for entry in found]}, show)
