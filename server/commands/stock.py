"""`pickgate stock`: receive, adjust, count, baseline, transfer, show, tiers, watch."""

from __future__ import annotations

from contextlib import closing
from typing import Final

import click
from rich.console import Console as RichConsole

from pickgate.v1 import stock_service_pb2 as stock_pb
from pickgate.v1 import types_pb2 as types_pb
from server.client import new_request_id
from server.commands import parameters, verdicts
from server.console import Console, command, moment, table
from server.output import json_text, visible
from server.plain import enum_name, plain


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
@click.argument("count", type=parameters.WHOLE_64)
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
@click.argument("by", type=parameters.WHOLE_64)
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
@click.argument("counted", type=parameters.WHOLE_64)
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
@click.argument("units", type=parameters.WHOLE_64)
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
        made = table(title, *_FIGURES)
        for one in response.figures:
            made.add_row(*_figures(one))
        rich.print(made)

    console.emit(plain(response), people)


_FIGURES: Final = ("#SKU", "#on hand", "#reserved", "#available", "#short", "#baseline", "tier")


def _figures(one: stock_pb.StockFigures) -> list[str]:
    numbers = (one.sku_id, one.on_hand, one.reserved, one.available, one.short, one.baseline)
    return [*map(str, numbers), enum_name(types_pb.StockTier.DESCRIPTOR, one.tier).lower()]


@stock.command("transfer")
@click.argument("count", type=parameters.WHOLE_64)
@click.option("--from", "from_store_id", type=parameters.ID, required=True, help="The store that gives.")
@click.option("--to", "to_store_id", type=parameters.ID, required=True, help="The store that gets.")
@click.option("--sku", "sku_id", type=parameters.ID, required=True)
@parameters.mall
@parameters.request_id
@parameters.actor
@command
def transfer(
    console: Console,
    count: int,
    from_store_id: int,
    to_store_id: int,
    sku_id: int,
    mall_id: int | None,
    request_id: str,
    actor: str,
) -> None:
    """Move COUNT units that nobody has reserved from one store to another."""
    settings = console.settings()
    request = stock_pb.TransferStockRequest(
        mall_id=parameters.required(settings, "mall_id", mall_id, "--mall"),
        request_id=request_id or new_request_id(),
        from_store_id=from_store_id,
        to_store_id=to_store_id,
        sku_id=sku_id,
        count=count,
        actor=actor,
    )
    with console.client(settings) as client:
        response = client.call(client.stock.TransferStock, request)
    verdicts.conclude(console, response)


def _watched(function: parameters.F) -> parameters.F:
    for option in (
        click.option(
            "--sku", "sku_ids", type=parameters.ID, multiple=True, help="Only this SKU; repeatable."
        ),
        click.option(
            "--store",
            "store_ids",
            type=parameters.ID,
            multiple=True,
            help="Only this store; repeatable. Default: all that serve the mall.",
        ),
        parameters.mall,
    ):
        function = option(function)
    return function


@stock.command("tiers")
@click.option("--all", "every", is_flag=True, help="Also what is normal, or has no baseline.")
@_watched
@command
def tiers(
    console: Console, every: bool, mall_id: int | None, store_ids: tuple[int, ...], sku_ids: tuple[int, ...]
) -> None:
    """Show what is short, and where: the tier of each SKU at each store of a mall."""
    settings = console.settings()
    mall = parameters.required(settings, "mall_id", mall_id, "--mall")
    request = stock_pb.WatchStockRequest(mall_id=mall, store_ids=store_ids, sku_ids=sku_ids, tiers_only=True)
    levels: list[stock_pb.StockLevel] = []
    with console.client(settings) as client, closing(client.stream(client.stock.WatchStock, request)) as news:
        for one in news:
            if one.HasField("levels_told"):
                break
            if one.HasField("level") and (every or one.level.figures.tier > types_pb.STOCK_TIER_NORMAL):
                levels.append(one.level)
    # The shortest first.
    levels.sort(key=lambda level: (-level.figures.tier, level.store_id, level.figures.sku_id))

    def people(rich: RichConsole) -> None:
        made = table(f"Tiers of mall {mall}", "#store", *_FIGURES)
        for level in levels:
            made.add_row(str(level.store_id), *_figures(level.figures))
        rich.print(made)

    console.emit({"levels": [plain(level) for level in levels]}, people)


@stock.command("watch")
@click.option(
    "--tiers-only", is_flag=True, help="After the levels of the beginning tell crossings of tiers alone."
)
@_watched
@command
def watch(
    console: Console,
    tiers_only: bool,
    mall_id: int | None,
    store_ids: tuple[int, ...],
    sku_ids: tuple[int, ...],
) -> None:
    """Tell the levels, then what changes, line by line until Ctrl-C. With --json each line is an object."""
    settings = console.settings()
    request = stock_pb.WatchStockRequest(
        mall_id=parameters.required(settings, "mall_id", mall_id, "--mall"),
        store_ids=store_ids,
        sku_ids=sku_ids,
        tiers_only=tiers_only,
    )
    with console.client(settings) as client, closing(client.stream(client.stock.WatchStock, request)) as news:
        try:
            for one in news:
                # Who waits for a line gets it now, also through a pipe: echo flushes.
                click.echo(json_text(plain(one)) if console.json else visible(_line(one)))
        except KeyboardInterrupt:
            return


def _line(news: stock_pb.WatchStockResponse) -> str:
    if news.HasField("levels_told"):
        return f"-- {news.levels_told.count} levels told; from here on what changes"
    if news.HasField("level"):
        figures = zip(
            (name.removeprefix("#") for name in _FIGURES), _figures(news.level.figures), strict=True
        )
        return f"store {news.level.store_id}  " + "  ".join(f"{name} {value}" for name, value in figures)
    crossing = news.crossing
    mark = "ALERT" if crossing.alert else "TIER"
    return f"{mark} {moment(crossing.at_ms)}  {crossing.message_zh} {crossing.message_en}"
