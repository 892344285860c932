"""`pickgate inspect` and `pickgate redeem`: what a store terminal does."""

from __future__ import annotations

import click

from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import types_pb2 as types_pb
from server.client import new_request_id
from server.commands import parameters, verdicts
from server.config import Settings
from server.console import Console, command


def _terminal(
    settings: Settings, mall_id: int | None, store_id: int | None, terminal_id: int | None
) -> types_pb.Terminal:
    return types_pb.Terminal(
        mall_id=parameters.required(settings, "mall_id", mall_id, "--mall"),
        store_id=parameters.required(settings, "store_id", store_id, "--store"),
        terminal_id=parameters.required(settings, "terminal_id", terminal_id, "--terminal"),
    )


@click.command("inspect")
@click.argument("code")
@parameters.mall
@parameters.store
@parameters.terminal
@parameters.position
@command
def inspect(
    console: Console,
    code: str,
    mall_id: int | None,
    store_id: int | None,
    terminal_id: int | None,
    latitude_deg: float | None,
    longitude_deg: float | None,
    accuracy_m: float,
    datum: str | None,
) -> None:
    """Say what redeem would say of CODE (scanned text, or 16 typed digits), changing nothing."""
    settings = console.settings()
    request = redemption_pb.InspectRequest(
        terminal=_terminal(settings, mall_id, store_id, terminal_id),
        code=code,
        position=parameters.position_of(latitude_deg, longitude_deg, accuracy_m, datum),
    )
    with console.client(settings) as client:
        response = client.call(client.redemption.Inspect, request)
    verdicts.conclude(console, response)


@click.command("redeem")
@click.argument("code")
@click.option("--pin", default="", help="The six digits of a static code.")
@click.option(
    "--line",
    "lines",
    multiple=True,
    metavar="SKU:COUNT",
    help="Hand out only this; repeatable. Default: all.",
)
@parameters.mall
@parameters.store
@parameters.terminal
@parameters.position
@parameters.request_id
@parameters.actor
@command
def redeem(
    console: Console,
    code: str,
    pin: str,
    lines: tuple[str, ...],
    mall_id: int | None,
    store_id: int | None,
    terminal_id: int | None,
    latitude_deg: float | None,
    longitude_deg: float | None,
    accuracy_m: float,
    datum: str | None,
    request_id: str,
    actor: str,
) -> None:
    """Redeem CODE (scanned text, or 16 typed digits). Exit code 0: hand over the goods; 1: don't."""
    settings = console.settings()
    request = redemption_pb.RedeemRequest(
        terminal=_terminal(settings, mall_id, store_id, terminal_id),
        request_id=request_id or new_request_id(),
        code=code,
        pin=pin,
        position=parameters.position_of(latitude_deg, longitude_deg, accuracy_m, datum),
        lines=[parameters.line_of(line) for line in lines],
        actor=actor,
    )
    with console.client(settings) as client:
        response = client.call(client.redemption.Redeem, request)
    verdicts.conclude(console, response)
