"""`pickgate inspect`, `redeem`, `reverse`: what a store terminal does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console as RichConsole
from rich.markup import escape

from engine import limits
from engine.errors import InvalidInput
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import types_pb2 as types_pb
from server.client import new_request_id
from server.commands import parameters, verdicts
from server.config import Settings
from server.console import Console, command, table
from server.plain import message_of


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
@click.argument("code", required=False)
@click.option(
    "--file",
    "file",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Redeem a batch: a JSON list of objects with the fields of RedeemRequest.",
)
@click.option("--pin", default="", help="The six digits of a static code.")
@click.option(
    "--proof", "proof_token", default="", metavar="TOKEN", help="The proof token of a valuable code."
)
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
    code: str | None,
    file: Path | None,
    pin: str,
    proof_token: str,
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
    terminal = _terminal(settings, mall_id, store_id, terminal_id)
    if file is not None:
        if code or pin or proof_token or lines or request_id:
            raise InvalidInput("--file stands alone: each entry says its own code and lines", field="file")
        _redeem_batch(console, settings, file, terminal, actor)
        return
    if code is None:
        raise InvalidInput("which code? Give CODE, or --file for a batch", field="code")
    request = redemption_pb.RedeemRequest(
        terminal=terminal,
        request_id=request_id or new_request_id(),
        code=code,
        pin=pin,
        proof_token=proof_token,
        position=parameters.position_of(latitude_deg, longitude_deg, accuracy_m, datum),
        lines=[parameters.line_of(line) for line in lines],
        actor=actor,
    )
    with console.client(settings) as client:
        response = client.call(client.redemption.Redeem, request)
    verdicts.conclude(console, response)


def _redeem_batch(
    console: Console, settings: Settings, file: Path, terminal: types_pb.Terminal, actor: str
) -> None:
    requests = [
        message_of(redemption_pb.RedeemRequest, entry, f"entries[{index}]")
        for index, entry in enumerate(parameters.read_entries(file, "entries"))
    ]
    for request in requests:
        if not request.HasField("terminal"):
            request.terminal.CopyFrom(terminal)
        request.request_id = request.request_id or new_request_id()
        request.actor = request.actor or actor
    with console.client(settings) as client:

        def decide(some: Sequence[redemption_pb.RedeemRequest]) -> Sequence[redemption_pb.RedeemOutcome]:
            batch = redemption_pb.RedeemBatchRequest(requests=some)
            return client.call(client.redemption.RedeemBatch, batch).outcomes

        outcomes = verdicts.in_batches(requests, limits.BATCH_MAX, decide, redemption_pb.RedeemOutcome)

    def show(rich: RichConsole) -> None:
        made = table("Redemptions", "=order", "verdict", "=uid", "sentence", "=request id")
        for request, outcome in zip(requests, outcomes, strict=True):
            if outcome.HasField("error"):
                made.add_row(
                    "",
                    f"[red]{outcome.error.reason}[/]",
                    "",
                    escape(outcome.error.message),
                    request.request_id,
                )
                continue
            answer = outcome.response
            made.add_row(
                escape(answer.order_id),
                verdicts.verdict_of(answer).slug,
                answer.uid,
                escape(answer.message_zh),
                escape(answer.request_id),
            )
        rich.print(made)

    console.emit({"outcomes": verdicts.plain_outcomes(requests, outcomes)}, show)
    sys.exit(verdicts.batch_exit_code(outcomes))


@click.command("reverse")
@click.argument("uid")
@click.option(
    "--line",
    "lines",
    multiple=True,
    metavar="SKU:COUNT",
    help="Take back only this; repeatable. Default: all that was handed out.",
)
@click.option(
    "--release", is_flag=True, help="The customer was refunded: don't reserve the units for the code again."
)
@click.option("--reason", default="", help="Why, for the record.")
@parameters.mall
@parameters.store
@parameters.terminal
@parameters.request_id
@parameters.actor
@command
def reverse(
    console: Console,
    uid: str,
    lines: tuple[str, ...],
    release: bool,
    reason: str,
    mall_id: int | None,
    store_id: int | None,
    terminal_id: int | None,
    request_id: str,
    actor: str,
) -> None:
    """Take back what the code UID handed out: the goods are in the store again."""
    settings = console.settings()
    request = redemption_pb.ReverseRequest(
        terminal=_terminal(settings, mall_id, store_id, terminal_id),
        request_id=request_id or new_request_id(),
        uid=uid,
        lines=[parameters.line_of(line) for line in lines],
        release=release,
        reason=reason,
        actor=actor,
    )
    with console.client(settings) as client:
        response = client.call(client.redemption.Reverse, request)
    verdicts.conclude(console, response)
