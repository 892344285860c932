"""`pickgate stock`: receive, adjust, count, baseline, show."""

from __future__ import annotations

import click
from rich.console import Console as RichConsole

from pickgate.v1 import stock_service_pb2 as stock_pb
from server.client import new_request_id
from server.commands import parameters, verdicts
from server.console import Console, command, table
from server.plain import plain


@click.group("stock")
def stock() -> None:
    """Book and read the stock of a store."""


def _options(function: parameters.F) -> parameters.F:
    for option in (
        parameters.actor,
        parameters.request_id,
        click.option("--reason", default="", help="For the record, such as a delivery note."),
        click.option("--sku", "sku_id", type=parameters.ID, required=True),
        parameters.store,
        parameters.mall,
    ):
        function = option(function)
    return function


@stock.command("receive")
@click.argument("count", type=int)
@_options
@command
def receive(
    console: Console,
    count: int,
    mall_id: int | None,
    store_id: int | None,
    sku_id: int,
    reason: str,
    request_id: str,
    actor: str,
) -> None:
    """Book COUNT units that came in."""
    settings = console.settings()
    request = stock_pb.ReceiveStockRequest(
        mall_id=parameters.required(settings, "mall_id", mall_id, "--mall"),
        request_id=request_id or new_request_id(),
        store_id=parameters.required(settings, "store_id", store_id, "--store"),
        sku_id=sku_id,
        count=count,
        reason=reason,
        actor=actor,
    )
    with console.client(settings) as client:
        response = client.call(client.stock.ReceiveStock, request)
    verdicts.conclude(console, response.outcome)


@stock.command("adjust", context_settings={"ignore_unknown_options": True})
@click.argument("by", type=int)
@_options
@command
def adjust(
    console: Console,
    by: int,
    mall_id: int | None,
    store_id: int | None,
    sku_id: int,
    reason: str,
    request_id: str,
    actor: str,
) -> None:
    """Correct the figure BY so many units, such as -2."""
    settings = console.settings()
    request = stock_pb.AdjustStockRequest(
        mall_id=parameters.required(settings, "mall_id", mall_id, "--mall"),
        request_id=request_id or new_request_id(),
        store_id=parameters.required(settings, "store_id", store_id, "--store"),
        sku_id=sku_id,
        by=by,
        reason=reason,
        actor=actor,
    )
    with console.client(settings) as client:
        response = client.call(client.stock.AdjustStock, request)
    verdicts.conclude(console, response.outcome)


@stock.command("count")
@click.argument("counted", type=int)
@_options
@command
def count(
    console: Console,
    counted: int,
    mall_id: int | None,
    store_id: int | None,
    sku_id: int,
    reason: str,
    request_id: str,
    actor: str,
) -> None:
    """Book a stocktake: COUNTED units are there."""
    settings = console.settings()
    request = stock_pb.AdjustStockRequest(
        mall_id=parameters.required(settings, "mall_id", mall_id, "--mall"),
        request_id=request_id or new_request_id(),
        store_id=parameters.required(settings, "store_id", store_id, "--store"),
        sku_id=sku_id,
        counted=counted,
        reason=reason,
        actor=actor,
    )
    with console.client(settings) as client:
        response = client.call(client.stock.AdjustStock, request)
    verdicts.conclude(console, response.outcome)


@stock.command("baseline")
@click.argument("units", type=int)
@_options
@command
def baseline(
    console: Console,
    units: int,
    mall_id: int | None,
    store_id: int | None,
    sku_id: int,
    reason: str,
    request_id: str,
    actor: str,
) -> None:
    """Set the baseline, in UNITS, that stock tiers are measured against; 0 for no tiers."""
    settings = console.settings()
    request = stock_pb.SetBaselineRequest(
        mall_id=parameters.required(settings, "mall_id", mall_id, "--mall"),
        request_id=request_id or new_request_id(),
        store_id=parameters.required(settings, "store_id", store_id, "--store"),
        sku_id=sku_id,
        baseline=units,
        reason=reason,
        actor=actor,
    )
    with console.client(settings) as client:
        response = client.call(client.stock.SetBaseline, request)
    verdicts.conclude(console, response.outcome)


@stock.command("show")
@click.option("--sku", "sku_ids", type=parameters.ID, multiple=True, help="Only this SKU; repeatable.")
@parameters.mall
@parameters.store
@command
def show(console: Console, sku_ids: tuple[int, ...], mall_id: int | None, store_id: int | None) -> None:
    """Show the figures of a store."""
    settings = console.settings()
    request = stock_pb.ReadStockRequest(
        mall_id=parameters.required(settings, "mall_id", mall_id, "--mall"),
        store_id=parameters.required(settings, "store_id", store_id, "--store"),
        sku_ids=sku_ids,
    )
    with console.client(settings) as client:
        response = client.call(client.stock.ReadStock, request)

    def people(rich: RichConsole) -> None:
        title = f"Stock of store {request.store_id} for mall {request.mall_id}"
        made = table(title, "#SKU", "#on hand", "#reserved", "#available", "#short", "#baseline")
        for one in response.figures:
            made.add_row(
                *(
                    str(n)
                    for n in (one.sku_id, one.on_hand, one.reserved, one.available, one.short, one.baseline)
                )
            )
        rich.print(made)

    console.emit(plain(response), people)
