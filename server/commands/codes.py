"""`pickgate issue`, `hold`, `confirm`, `extend`, `render`, `void`, `get`: what a mall's backend does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console as RichConsole
from rich.markup import escape

from engine import limits
from engine.errors import InvalidInput
from pickgate.v1 import code_service_pb2 as code_pb
from pickgate.v1 import types_pb2 as types_pb
from server import qr
from server.client import new_request_id
from server.commands import parameters, verdicts
from server.config import Settings
from server.console import EXIT_OK, Console, command, moment, table
from server.plain import enum_name, message_of, plain

R = TypeVar("R", code_pb.IssueRequest, code_pb.HoldRequest)


def _order(function: parameters.F) -> parameters.F:
    """Add the options that describe an order."""
    for option in (
        parameters.actor,
        parameters.request_id,
        click.option("--replaces", default="", metavar="UID", help="The voided code that it stands in for."),
        click.option("--amount-fen", type=parameters.WHOLE_64, default=0, help="What is paid, in fen."),
        click.option(
            "--ttl-s",
            type=parameters.WHOLE_64,
            default=0,
            help="How long it can be redeemed, in seconds. Default: what the policies say, else 48 hours.",
        ),
        click.option(
            "--channel",
            type=click.Choice(["online", "promotion", "staff"]),
            default="online",
            show_default=True,
        ),
        click.option("--suite", type=click.Choice(["aes", "sm"]), default="aes", show_default=True),
        click.option(
            "--version",
            type=click.Choice(["static", "dynamic", "valuable"]),
            help="Default: what the policies say of these SKUs, else dynamic.",
        ),
        click.option(
            "--line", "lines", multiple=True, metavar="SKU:COUNT", help="What to hand out; repeatable."
        ),
        click.option("--order", "order_id", default="", help="The mall's own number of the order."),
        parameters.store,
        parameters.mall,
    ):
        function = option(function)
    return function


def _order_request(
    kind: type[R],
    settings: Settings,
    mall_id: int | None,
    store_id: int | None,
    lines: tuple[str, ...],
    version: str | None,
    suite: str,
    channel: str,
    request_id: str,
    **fields: Any,
) -> R:
    return kind(
        mall_id=parameters.required(settings, "mall_id", mall_id, "--mall"),
        request_id=request_id or new_request_id(),
        store_id=parameters.required(settings, "store_id", store_id, "--store"),
        lines=[parameters.line_of(line) for line in lines],
        version=types_pb.Version.Value(f"VERSION_{(version or 'unspecified').upper()}"),
        suite=types_pb.Suite.Value(f"SUITE_{suite.upper()}"),
        channel=types_pb.Channel.Value(f"CHANNEL_{channel.upper()}"),
        **fields,
    )


@click.command("issue")
@click.option(
    "--file",
    "file",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Issue a batch: a JSON list of objects with the fields of IssueRequest.",
)
@_order
@command
def issue(console: Console, /, file: Path | None, actor: str, **order: Any) -> None:
    """Issue a pickup code for an order, or a batch of them from a file."""
    settings = console.settings()
    if file is not None:
        if order["order_id"] or order["lines"] or order["request_id"]:
            raise InvalidInput(
                "--file stands alone: each entry of the file says its own order and lines", field="file"
            )
        _issue_batch(console, settings, file, order["mall_id"] or settings.mall_id, actor)
        return
    request = _order_request(code_pb.IssueRequest, settings, actor=actor, **order)
    with console.client(settings) as client:
        response = client.call(client.codes.Issue, request)
    verdicts.conclude(console, response)


@click.command("hold")
@_order
@command
def hold(console: Console, /, **order: Any) -> None:
    """Reserve the stock of an order that is not paid yet. Confirm makes it a code; else it ends by itself."""
    settings = console.settings()
    request = _order_request(code_pb.HoldRequest, settings, **order)
    with console.client(settings) as client:
        response = client.call(client.codes.Hold, request)
    verdicts.conclude(console, response)


@click.command("confirm")
@click.argument("uid")
@parameters.mall
@parameters.request_id
@parameters.actor
@command
def confirm(console: Console, uid: str, mall_id: int | None, request_id: str, actor: str) -> None:
    """Make the held code UID live: its order is paid."""
    settings = console.settings()
    request = code_pb.ConfirmRequest(
        mall_id=parameters.required(settings, "mall_id", mall_id, "--mall"),
        request_id=request_id or new_request_id(),
        uid=uid,
        actor=actor,
    )
    with console.client(settings) as client:
        response = client.call(client.codes.Confirm, request)
    verdicts.conclude(console, response)


@click.command("extend")
@click.argument("uid")
@click.option(
    "--to",
    "expires_at",
    required=True,
    metavar="TIME",
    help="The new expiry, such as 2026-10-03T20:00+08:00; without an offset in this machine's time zone.",
)
@parameters.mall
@parameters.request_id
@parameters.actor
@command
def extend(
    console: Console, uid: str, expires_at: str, mall_id: int | None, request_id: str, actor: str
) -> None:
    """Move the expiry of the code UID to a later time."""
    settings = console.settings()
    request = code_pb.ExtendRequest(
        mall_id=parameters.required(settings, "mall_id", mall_id, "--mall"),
        request_id=request_id or new_request_id(),
        uid=uid,
        expires_at_ms=parameters.moment_of(expires_at, "to"),
        actor=actor,
    )
    with console.client(settings) as client:
        response = client.call(client.codes.Extend, request)
    verdicts.conclude(console, response)


def _issue_batch(console: Console, settings: Settings, file: Path, mall_id: int, actor: str) -> None:
    requests = [
        message_of(code_pb.IssueRequest, entry, f"entries[{index}]")
        for index, entry in enumerate(parameters.read_entries(file, "entries"))
    ]
    for request in requests:
        request.mall_id = request.mall_id or mall_id
        request.request_id = request.request_id or new_request_id()
        request.actor = request.actor or actor
    with console.client(settings) as client:

        def decide(some: Sequence[code_pb.IssueRequest]) -> Sequence[code_pb.IssueOutcome]:
            return client.call(client.codes.IssueBatch, code_pb.IssueBatchRequest(requests=some)).outcomes

        outcomes = verdicts.in_batches(requests, limits.BULK_MAX, decide, code_pb.IssueOutcome)

    def show(rich: RichConsole) -> None:
        said: dict[str, None] = {}
        made = table("Codes", "=order", "verdict", "=uid", "=serial", "=PIN", "expires", "=request id")
        for request, outcome in zip(requests, outcomes, strict=True):
            if outcome.HasField("error"):
                made.add_row(
                    escape(request.order_id),
                    f"[red]{outcome.error.reason}[/]",
                    "",
                    "",
                    "",
                    "",
                    escape(request.request_id),
                )
                said.setdefault(outcome.error.message)
                continue
            issued = outcome.response
            made.add_row(
                escape(request.order_id),
                verdicts.verdict_of(issued).slug,
                issued.uid,
                issued.typed,
                issued.pin,
                moment(issued.expires_at_ms),
                escape(issued.request_id),
            )
        rich.print(made)
        for message in said:
            rich.print(f"[red]{escape(message)}[/]", soft_wrap=True)

    console.emit({"outcomes": verdicts.plain_outcomes(requests, outcomes)}, show)
    sys.exit(verdicts.batch_exit_code(outcomes))


@click.command("render")
@click.argument("uid")
@parameters.mall
@click.option(
    "--count",
    type=parameters.Whole(1, parameters.UINT32_MAX),
    default=1,
    help="The next n payloads, for a phone without network.",
)
@click.option("--png", type=click.Path(path_type=Path), help="Write the QR code as PNG.")
@click.option("--svg", type=click.Path(path_type=Path), help="Write the QR code as SVG.")
@click.option("--quiet", is_flag=True, help="Don't draw the QR code on the terminal.")
@parameters.position
@parameters.request_id
@parameters.actor
@command
def render(
    console: Console,
    uid: str,
    mall_id: int | None,
    count: int,
    png: Path | None,
    svg: Path | None,
    quiet: bool,
    latitude_deg: float | None,
    longitude_deg: float | None,
    accuracy_m: float,
    datum: str | None,
    request_id: str,
    actor: str,
) -> None:
    """Show the QR code of UID as the customer's phone would: it goes stale within a minute unless the code is static.

    With --count, files are numbered: code.png becomes code-1.png, code-2.png, … The position is the customer's, for codes
    whose policy looks at it.
    """
    settings = console.settings()
    request = code_pb.RenderRequest(
        mall_id=parameters.required(settings, "mall_id", mall_id, "--mall"),
        uid=uid,
        count=count,
        position=parameters.position_of(latitude_deg, longitude_deg, accuracy_m, datum),
        # Always one: whether a try will be counted is not known before.
        request_id=request_id or new_request_id(),
        actor=actor,
    )
    with console.client(settings) as client:
        response = client.call(client.codes.Render, request)
    codes = [qr.make(payload.text) for payload in response.payloads]
    for number, code in enumerate(codes, start=1):
        for path, kind in ((png, "png"), (svg, "svg")):
            if path is not None:
                numbered = path if len(codes) == 1 else path.with_stem(f"{path.stem}-{number}")
                qr.save(code, numbered, "png" if kind == "png" else "svg")

    def show(rich: RichConsole) -> None:
        verdicts.headline(rich, response)
        verdicts.facts(rich, response)
        for payload, code in zip(response.payloads, codes, strict=True):
            rich.print(f"  payload          {payload.text}", soft_wrap=True)
            rich.print(
                f"  taken            {moment(payload.valid_from_ms)} to {moment(payload.valid_until_ms)}"
            )
            if not quiet:
                click.echo(qr.for_terminal(code))

    console.emit(plain(response), show)
    sys.exit(verdicts.exit_code([response]))


@click.command("void")
@click.argument("uid")
@parameters.mall
@click.option("--reason", default="", help="Why, for the record.")
@parameters.request_id
@parameters.actor
@command
def void(console: Console, uid: str, mall_id: int | None, reason: str, request_id: str, actor: str) -> None:
    """End the code UID and free its stock."""
    settings = console.settings()
    request = code_pb.VoidRequest(
        mall_id=parameters.required(settings, "mall_id", mall_id, "--mall"),
        request_id=request_id or new_request_id(),
        uid=uid,
        reason=reason,
        actor=actor,
    )
    with console.client(settings) as client:
        response = client.call(client.codes.Void, request)
    verdicts.conclude(console, response)


@click.command("get")
@click.argument("uid", required=False)
@click.option("--request-id", "issue_request_id", help="Find it by the request id that issued or held it.")
@parameters.mall
@command
def get(console: Console, uid: str | None, issue_request_id: str | None, mall_id: int | None) -> None:
    """Show the record of the code UID."""
    settings = console.settings()
    mall = parameters.required(settings, "mall_id", mall_id, "--mall")
    with console.client(settings) as client:
        if uid is not None and issue_request_id is None:
            code = client.call(client.codes.GetCode, code_pb.GetCodeRequest(mall_id=mall, uid=uid)).code
        elif issue_request_id is not None and uid is None:
            by_request = code_pb.GetCodeByRequestIdRequest(mall_id=mall, request_id=issue_request_id)
            code = client.call(client.codes.GetCodeByRequestId, by_request).code
        else:
            raise InvalidInput("which code? Give its UID, or --request-id of its issue", field="uid")

    def show(rich: RichConsole) -> None:
        state = enum_name(types_pb.CodeState.DESCRIPTOR, code.state)
        rich.print(f"[bold]{code.uid}[/]  {state}")
        verdicts.facts(rich, code)

    record: dict[str, Any] = plain(code)
    console.emit(record, show)
    sys.exit(EXIT_OK)
