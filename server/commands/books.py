"""`pickgate reconciliations`, `pickgate audit` and `pickgate chain`: what the ledger knows, over the wire.

`pickgate ledger` asks the database itself, and needs no server.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console as RichConsole
from rich.markup import escape

from engine.errors import InvalidInput
from engine.ledger.reconcile import Drift, Kept, Run, Total
from engine.state.streams import CONTROL
from pickgate.v1 import ledger_service_pb2 as ledger_pb
from server.client import Client, new_request_id
from server.commands import parameters, reconciled
from server.console import EXIT_REFUSED, EXIT_UNAVAILABLE, Console, command, moment, table
from server.output import json_text
from server.plain import enum_name, plain

LOOK_S: Final = 0.3
"""How often a command looks whether what it waits for is done."""
WAIT_S_DEFAULT: Final = 600.0


# --- reconciliations ------------------------------------------------------------------------------------------------


@click.group("reconciliations")
def reconciliations() -> None:
    """Comparisons of the store with the ledger."""


@reconciliations.command("list")
@click.option("--count", type=click.IntRange(1, 200), default=20, show_default=True)
@command
def list_reconciliations(console: Console, count: int) -> None:
    """Those that were made, the newest first."""
    with console.client(console.settings()) as client:
        request = ledger_pb.ListReconciliationsRequest(page_size=count)
        found = client.call(client.ledger.ListReconciliations, request).reconciliations
    kept = [
        Kept(
            one.number,
            one.begun_ms,
            one.ended_ms,
            one.cause,
            one.clean,
            one.drifts,
            one.shelves,
            one.codes,
        )
        for one in found
    ]
    console.emit({"runs": [one._asdict() for one in kept]}, lambda rich: reconciled.show_runs(rich, kept))


@reconciliations.command("show")
@click.argument("number", type=click.IntRange(1), required=False)
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Write totals and drifts there.")
@command
def show_reconciliation(console: Console, number: int | None, csv_file: Path | None) -> None:
    """One with what differed; the newest without a NUMBER. Status 0: equal to the unit; 1: there are drifts."""
    with console.client(console.settings()) as client:
        run = _run(client, number or 0)
    _conclude(console, run, csv_file)


@reconciliations.command("run")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Write totals and drifts there.")
@click.option("--no-wait", is_flag=True, help="Ask for it, print the operation, and go.")
@click.option("--wait-s", type=click.FloatRange(1), default=WAIT_S_DEFAULT, show_default=True)
@parameters.request_id
@parameters.actor
@command
def run_reconciliation(
    console: Console, csv_file: Path | None, no_wait: bool, wait_s: float, request_id: str, actor: str
) -> None:
    """Have one made now, and show it. Status 0: equal to the unit; 1: there are drifts; 3: not done."""
    request = ledger_pb.StartReconciliationRequest(request_id=request_id or new_request_id(), actor=actor)
    with console.client(console.settings()) as client:
        operation = client.call(client.ledger.StartReconciliation, request).operation
        give_up_s = time.monotonic() + wait_s
        while operation.state in (ledger_pb.OPERATION_STATE_PENDING, ledger_pb.OPERATION_STATE_RUNNING):
            if no_wait or time.monotonic() > give_up_s:
                break
            time.sleep(LOOK_S)
            asked = ledger_pb.GetOperationRequest(operation_id=operation.operation_id)
            operation = client.call(client.ledger.GetOperation, asked).operation
        if operation.state == ledger_pb.OPERATION_STATE_DONE:
            run = _run(client, operation.reconciliation)
        else:
            _show_operation(console, operation)
            if not no_wait:
                sys.exit(EXIT_UNAVAILABLE)
            return
    _conclude(console, run, csv_file)


def _show_operation(console: Console, operation: ledger_pb.Operation) -> None:
    def show(rich: RichConsole) -> None:
        state = enum_name(ledger_pb.OperationState.DESCRIPTOR, operation.state)
        why = f": {escape(operation.message)}" if operation.message else ""
        rich.print(f"[bold]{state}[/]  operation {operation.operation_id}{why}")

    console.emit(plain(operation), show)


def _conclude(console: Console, run: Run, csv_file: Path | None) -> None:
    if csv_file is not None:
        reconciled.write_csv(csv_file, run)
    console.emit(reconciled.run_value(run), lambda rich: reconciled.show_run(rich, run))
    if not run.clean:
        sys.exit(EXIT_REFUSED)


def _run(client: Client, number: int) -> Run:
    """One reconciliation with all drifts that are kept."""
    request = ledger_pb.GetReconciliationRequest(number=number, page_size=200)
    page = client.call(client.ledger.GetReconciliation, request)
    one = page.reconciliation
    run = Run(one.cause, one.begun_ms, one.ended_ms, one.number, one.shelves, one.codes)
    for total in page.totals:
        kept = run.totals.setdefault((total.mall_id, total.store_id), Total())
        kept.codes[total.state], kept.fen[total.state] = total.codes, total.paid_fen
    while True:
        run.drifts += map(_drift, page.drifts)
        if not page.next_page_token:
            break
        request = ledger_pb.GetReconciliationRequest(
            number=one.number, page_size=200, page_token=page.next_page_token
        )
        page = client.call(client.ledger.GetReconciliation, request)
    run.drifts_total = one.drifts
    return run


def _drift(one: ledger_pb.Drift) -> Drift:
    return Drift(
        one.partition,
        one.what,
        one.in_store,
        one.in_ledger,
        one.mall_id,
        one.store_id,
        one.sku_id,
        bytes.fromhex(one.uid),
        tuple(one.events),
    )


# --- audit ----------------------------------------------------------------------------------------------------------


@click.command("audit")
@click.option("--code", "uid", default="", metavar="UID", help="A code's uid, 16 hex digits.")
@click.option("--mall", "mall_id", type=parameters.WHOLE_32, default=0)
@click.option("--order", "order_id", default="", help="An order of that mall.")
@click.option("--store-id", "store_id", type=parameters.WHOLE_32, default=0)
@click.option("--terminal", "terminal_id", type=parameters.WHOLE_32, default=0)
@click.option("--actor", default="", help="Who did it.")
@click.option("--since", metavar="TIME", help="ISO 8601, for example 2026-11-25T08:00+08:00.")
@click.option("--until", metavar="TIME", help="Up to, and without.")
@click.option("--count", "page_size", type=click.IntRange(1, 500), default=100, show_default=True)
@click.option("--after", "page_token", default="", metavar="CURSOR", help="Go on behind an earlier page.")
@command
def audit(console: Console, /, since: str | None, until: str | None, **about: Any) -> None:
    """What happened to a code, an order, at a store or terminal, by somebody, in a time; refused attempts too."""
    request = ledger_pb.SearchAuditRequest(
        from_ms=parameters.moment_of(since, "since") if since else 0,
        to_ms=parameters.moment_of(until, "until") if until else 0,
        **about,
    )
    with console.client(console.settings()) as client:
        page = client.call(client.ledger.SearchAudit, request)
    findings = [{**plain(one), "details": json.loads(one.details_json or "{}")} for one in page.findings]
    for one in findings:
        del one["details_json"]

    def show(rich: RichConsole) -> None:
        made = table(
            "Audit", "at", "=event", "what", "#mall", "#store", "#terminal", "=code", "by", "details"
        )
        for one in findings:
            what = f"refused: {one['what']}" if one["refused"] else one["what"]
            ids = (str(one[name] or "") for name in ("mall_id", "store_id", "terminal_id"))
            texts = (one["uid"], escape(one["actor"]), escape(json_text(one["details"])))
            made.add_row(moment(one["at_ms"]), one["event_id"], what, *ids, *texts)
        rich.print(made)
        if page.next_page_token:
            rich.print(f"there is more: --after {page.next_page_token}")

    console.emit({"findings": findings, "after": page.next_page_token}, show)


# --- chain ----------------------------------------------------------------------------------------------------------


@click.group("chain")
def chain() -> None:
    """The ledger's chain: where it ends, and whether it holds."""


@chain.command("status")
@command
def status(console: Console) -> None:
    """How far the ledger has come, and up to where the feeds' consumers have acknowledged."""
    with console.client(console.settings()) as client:
        found = client.call(client.ledger.GetLedgerStatus, ledger_pb.GetLedgerStatusRequest())
    value = plain(found)
    for head in value["heads"]:
        head["link"] = head["link"].hex()

    def show(rich: RichConsole) -> None:
        made = table("Heads", "partition", "#rows", "last in the ledger", "last in the store", "link")
        for head in found.heads:
            name = "control" if head.partition == CONTROL else str(head.partition)
            made.add_row(name, str(head.rows), head.last, head.last_in_store, head.link.hex()[:16])
        rich.print(made)
        if found.consumers:
            made = table("Consumers", "feed", "#mall", "name", "belongs to", "acknowledged", "cursor")
            for one in found.consumers:
                feed = enum_name(ledger_pb.FeedKind.DESCRIPTOR, one.feed).lower()
                who = (str(one.mall_id or "all"), escape(one.name), escape(one.owner))
                made.add_row(feed, *who, moment(one.acknowledged_at_ms), one.cursor)
            rich.print(made)
        if found.alarm:
            rich.print(f"[bold red]ALARM[/]  {escape(found.alarm)}")
        behind = (
            f"{found.lag_ms / 1000:.1f} s behind" if found.caught_up_ms else "no writer has followed it yet"
        )
        rich.print(f"{behind}, as of {moment(found.caught_up_ms) or 'never'}; chained by {found.chain}")

    console.emit(value, show)


@chain.command("verify")
@click.option("--partition", metavar="N", help="Only this one: a number, or control. Default: all.")
@click.option(
    "--from", "first", default="", metavar="E-N", help="Of that partition, only from this event on."
)
@click.option("--to", "last", default="", metavar="E-N", help="And up to this one.")
@command
def verify(console: Console, partition: str | None, first: str, last: str) -> None:
    """Verify each row, its link, and the newest signed heads that the server has, some thousand rows at a time.

    Status 0: sound; 1: the first bad row of each partition is named. Checkpoints, and every older head, are for `pickgate ledger verify`.
    """
    if partition is None and (first or last):
        raise InvalidInput("a range of rows is of one partition: name it", field="partition")
    with console.client(console.settings()) as client:
        if partition is None:
            heads = client.call(client.ledger.GetLedgerStatus, ledger_pb.GetLedgerStatusRequest()).heads
            # Those without a row too: a head that was signed tells whether it had any.
            numbers = [head.partition for head in heads]
        else:
            numbers = [_partition(partition)]
        found = [(number, list(_pieces(client, number, first, last))) for number in numbers]
    rows = sum(piece.rows for _, pieces in found for piece in pieces)
    bad = [
        {"partition": number, "row": piece.bad_row, "why": piece.why}
        for number, pieces in found
        for piece in pieces
        if piece.bad_row
    ]
    unsound = sorted(
        {piece.why for _, pieces in found for piece in pieces if piece.why and not piece.bad_row}
    )
    signed = sum(piece.signed_heads for _, pieces in found for piece in pieces)
    signed_at_ms = max(piece.signed_at_ms for _, pieces in found for piece in pieces)
    value = {
        "sound": not bad and not unsound,
        "rows": rows,
        "partitions": len(found),
        "signed_heads": signed,
        "signed_at_ms": signed_at_ms,
        "faults": bad,
        "unsound": unsound,
    }

    def show(rich: RichConsole) -> None:
        for one in bad:
            name = "the control partition" if one["partition"] == CONTROL else f"partition {one['partition']}"
            rich.print(f"[bold red]BAD[/]  {name}, row {one['row']}: {escape(str(one['why']))}")
        for why in unsound:
            rich.print(f"[bold red]BAD[/]  {escape(why)}")
        said = "[bold green]SOUND[/]" if value["sound"] else "[bold red]NOT SOUND[/]"
        against = (
            f"{signed} signed heads, the newest of {moment(signed_at_ms)}"
            if signed
            else "no signed heads: a tail that was cut off would not show"
        )
        rich.print(f"{said}  {rows} rows of {len(found)} partitions, against {against}")

    console.emit(value, show)
    if not value["sound"]:
        sys.exit(EXIT_REFUSED)


def _partition(text: str) -> int:
    if text == "control":
        return CONTROL
    if not (text.isascii() and text.isdigit() and int(text) < CONTROL):
        raise InvalidInput(
            f"partition is {text!r}; expected 0 .. {CONTROL - 1}, or control", field="partition"
        )
    return int(text)


def _pieces(client: Client, partition: int, first: str, last: str) -> Iterator[ledger_pb.VerifyChainResponse]:
    """The range, a piece at a time, up to the first that is not sound."""
    while True:
        request = ledger_pb.VerifyChainRequest(partition=partition, first=first, last=last)
        piece = client.call(client.ledger.VerifyChain, request)
        yield piece
        if not piece.next:
            return
        first = piece.next
