"""`pickgate settlements` and `pickgate events`: the feeds of wallets and malls, over the wire."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any, Final

import click
from google.protobuf.message import Message
from rich.console import Console as RichConsole
from rich.markup import escape

from pickgate.v1 import code_event_service_pb2 as event_pb
from pickgate.v1 import settlement_service_pb2 as settlement_pb
from pickgate.v1 import types_pb2 as types_pb
from server.client import Client
from server.commands import parameters
from server.commands.places import pages
from server.console import Console, command, moment, table
from server.output import json_text, visible
from server.plain import enum_name, plain

_TYPES: Final = [
    value.name.removeprefix("CODE_EVENT_TYPE_").lower()
    for value in event_pb.CodeEventType.DESCRIPTOR.values
    if value.number
]


def _begin(function: parameters.F) -> parameters.F:
    """The options that say from where on, and how far."""
    for option in (
        click.option("--ack", is_flag=True, help="Acknowledge each batch when it is printed."),
        click.option("--until-caught-up", is_flag=True, help="End when everything that is there is told."),
        click.option(
            "--batch", "batch_size_max", type=click.IntRange(1, 500), default=100, show_default=True
        ),
        click.option("--oldest", is_flag=True, help="Begin with the oldest that is kept."),
        click.option(
            "--after",
            "cursor",
            default="",
            metavar="CURSOR",
            help="Begin behind it. Default: what was acknowledged.",
        ),
    ):
        function = option(function)
    return function


@click.group("settlements")
def settlements() -> None:
    """What redemptions release to the parties of orders, and reversals take back."""


_wallet = click.option("--wallet", required=True, help="Who asks: each name has a cursor of its own.")
_any_mall = click.option(
    "--mall", "mall_id", type=parameters.WHOLE_32, default=0, help="Only this mall's. Default: all."
)


@settlements.command("follow")
@_wallet
@_any_mall
@_begin
@command
def follow_settlements(
    console: Console, /, wallet: str, mall_id: int, ack: bool, until_caught_up: bool, **begin: Any
) -> None:
    """Tell what there is, then what happens, until Ctrl-C. With --json each line is a batch with its cursor."""

    def acknowledge(client: Client, cursor: str) -> None:
        request = settlement_pb.AcknowledgeRequest(wallet=wallet, mall_id=mall_id, cursor=cursor)
        client.call(client.settlements.Acknowledge, request)

    _follow(
        console,
        lambda client: client.settlements.Subscribe,
        settlement_pb.SubscribeRequest(wallet=wallet, mall_id=mall_id, **begin),
        lambda batch: [line for one in batch.settlements for line in _settlement_lines(one)],
        acknowledge if ack else None,
        until_caught_up,
    )


@settlements.command("ack")
@click.argument("cursor")
@_wallet
@_any_mall
@command
def acknowledge_settlements(console: Console, cursor: str, wallet: str, mall_id: int) -> None:
    """Say that WALLET has booked everything up to CURSOR. It only goes forward."""
    settings = console.settings()
    request = settlement_pb.AcknowledgeRequest(wallet=wallet, mall_id=mall_id, cursor=cursor)
    with console.client(settings) as client:
        stored = client.call(client.settlements.Acknowledge, request)
    _show_acknowledged(console, stored)


@settlements.command("order")
@click.argument("order_id")
@parameters.mall
@command
def order(console: Console, order_id: str, mall_id: int | None) -> None:
    """All settlements of one order of a mall."""
    settings = console.settings()
    mall = parameters.required(settings, "mall_id", mall_id, "--mall")
    with console.client(settings) as client:

        def fetch(token: str) -> tuple[list[settlement_pb.Settlement], str]:
            request = settlement_pb.GetByOrderRequest(mall_id=mall, order_id=order_id, page_token=token)
            page = client.call(client.settlements.GetByOrder, request)
            return list(page.settlements), page.next_page_token

        found = pages(fetch)

    def show(rich: RichConsole) -> None:
        made = table(
            f"Settlements of order {escape(order_id)}",
            "event",
            "at",
            "code",
            "payee",
            "role",
            "#level",
            "#fen",
        )
        for one in found:
            for share in one.shares:
                made.add_row(
                    one.event_id,
                    moment(one.at_ms),
                    one.uid,
                    escape(share.payee),
                    escape(share.role),
                    str(share.level),
                    str(share.amount_fen),
                )
        rich.print(made)

    console.emit({"settlements": [plain(one) for one in found]}, show)


@click.group("events")
def events() -> None:
    """What happened to a mall's codes."""


_consumer = click.option(
    "--consumer", required=True, help="Which of the mall's consumers asks: each has a cursor of its own."
)


@events.command("follow")
@parameters.mall
@_consumer
@click.option("--type", "types", type=click.Choice(_TYPES), multiple=True, help="Only these; repeatable.")
@_begin
@command
def follow_events(
    console: Console,
    /,
    mall_id: int | None,
    consumer: str,
    types: tuple[str, ...],
    ack: bool,
    until_caught_up: bool,
    **begin: Any,
) -> None:
    """Tell what there is, then what happens, until Ctrl-C. With --json each line is a batch with its cursor."""
    mall = parameters.required(console.settings(), "mall_id", mall_id, "--mall")

    def acknowledge(client: Client, cursor: str) -> None:
        request = event_pb.AcknowledgeCodeEventsRequest(mall_id=mall, consumer=consumer, cursor=cursor)
        client.call(client.code_events.AcknowledgeCodeEvents, request)

    _follow(
        console,
        lambda client: client.code_events.SubscribeCodeEvents,
        event_pb.SubscribeCodeEventsRequest(
            mall_id=mall,
            consumer=consumer,
            types=[event_pb.CodeEventType.Value(f"CODE_EVENT_TYPE_{name.upper()}") for name in types],
            **begin,
        ),
        lambda batch: [_event_line(one) for one in batch.events],
        acknowledge if ack else None,
        until_caught_up,
    )


@events.command("ack")
@click.argument("cursor")
@parameters.mall
@_consumer
@command
def acknowledge_events(console: Console, cursor: str, mall_id: int | None, consumer: str) -> None:
    """Say that CONSUMER has everything up to CURSOR. It only goes forward."""
    settings = console.settings()
    request = event_pb.AcknowledgeCodeEventsRequest(
        mall_id=parameters.required(settings, "mall_id", mall_id, "--mall"), consumer=consumer, cursor=cursor
    )
    with console.client(settings) as client:
        stored = client.call(client.code_events.AcknowledgeCodeEvents, request)
    _show_acknowledged(console, stored)


# --- what they share ------------------------------------------------------------------------------------------------


def _follow(
    console: Console,
    method: Callable[[Client], Any],
    request: Message,
    lines: Callable[[Any], list[str]],
    acknowledge: Callable[[Client, str], None] | None,
    until_caught_up: bool,
) -> None:
    with (
        console.client(console.settings()) as client,
        closing(client.stream(method(client), request)) as told,
    ):
        try:
            for batch in told:
                # Who waits for a line gets it now, also through a pipe: echo flushes.
                if console.json:
                    click.echo(json_text(plain(batch)))
                else:
                    for line in lines(batch):
                        click.echo(visible(line))
                if acknowledge is not None and batch.cursor:
                    acknowledge(client, batch.cursor)
                if batch.caught_up and until_caught_up:
                    if not console.json:
                        click.echo(f"-- that is all; go on with --after {batch.cursor or chr(39) * 2}")
                    return
        except KeyboardInterrupt:
            return


def _settlement_lines(one: settlement_pb.Settlement) -> list[str]:
    what = "takes back" if one.reversal else "releases"
    return [
        f"{moment(one.at_ms)}  {one.event_id}  mall {one.mall_id}  order {one.order_id}  {what}"
        f"  {share.amount_fen} fen  {share.payee} ({share.role}, level {share.level})"
        for share in one.shares
    ]


def _event_line(one: event_pb.CodeEvent) -> str:
    said = [moment(one.at_ms), one.event_id, enum_name(event_pb.CodeEventType.DESCRIPTOR, one.type)]
    said += [f"order {one.order_id}", f"code {one.uid}", f"store {one.store_id}"]
    said += [f"terminal {one.terminal_id}"] if one.terminal_id else []
    said += [enum_name(types_pb.CodeState.DESCRIPTOR, one.state).lower()] if one.state else []
    said += [f"{line.sku_id}:{line.count} (left {line.left})" for line in one.lines]
    said += [f"until {moment(one.expires_at_ms)}"] if one.expires_at_ms else []
    said += [text for text in (one.actor, one.reason) if text]
    return "  ".join(said)


def _show_acknowledged(
    console: Console, stored: settlement_pb.AcknowledgeResponse | event_pb.AcknowledgeCodeEventsResponse
) -> None:
    def show(rich: RichConsole) -> None:
        rich.print(f"[bold green]ACKNOWLEDGED[/]  {stored.cursor}, at {moment(stored.acknowledged_at_ms)}")

    console.emit(plain(stored), show)
