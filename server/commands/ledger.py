"""`pickgate ledger`: the writer as its own process, and what the ledger knows. Worked on in the database itself."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console as RichConsole

from engine.deployment import Deployment, Durability
from engine.errors import ConfigError, InvalidInput
from engine.ledger import heads
from engine.ledger.heads import Signer, Statement, Unsound
from engine.ledger.ledger import Ledger
from engine.ledger.verify import Range
from engine.ledger.verify import verify as verify_ledger
from engine.ledger.writer import Writer
from engine.state.streams import CONTROL, Place, Streams
from server import opening
from server.commands import parameters
from server.config import Settings
from server.console import EXIT_REFUSED, Console, command, moment, table
from server.output import log_to_stderr
from server.stopping import StopSignal

_log = logging.getLogger(__name__)


def where(function: parameters.F) -> parameters.F:
    """The options that say where store and ledger are."""
    for option in (
        click.option("--ledger", "ledger_url", metavar="URL", help="sqlite:////path or postgresql://…"),
        click.option("--store", "store_url", metavar="URL"),
        click.option("--data-dir", type=click.Path(path_type=Path)),
    ):
        function = option(function)
    return function


@click.group("ledger")
def ledger() -> None:
    """Every change, in SQL: what is written, proved and compared."""


def ledger_address(settings: Settings) -> str:
    """Where the ledger is. Raises ConfigError when nothing says so."""
    if not settings.ledger_address:
        raise ConfigError(
            "which ledger is meant is not said: give --ledger or PICKGATE_LEDGER_URL (sqlite:////path or postgresql://…)",
            field="ledger_url",
        )
    return settings.ledger_address


@contextlib.contextmanager
def open_both(settings: Settings, *, create: bool = False) -> Iterator[tuple[Deployment, Ledger]]:
    """The deployment, its keyring locked, and its ledger."""
    with (
        opening.store(settings, share=True) as url,
        Deployment.open(
            url, unlock=None, durability=Durability(settings.durability), replicas=settings.replicas
        ) as deployment,
        Ledger.open(
            ledger_address(settings),
            deployment_id=deployment.constants.deployment_id,
            algorithm=settings.ledger_chain if "ledger_chain" in settings.model_fields_set else None,
            create=create,
        ) as opened,
    ):
        yield deployment, opened


@ledger.command("run")
@where
@click.option("--durability", type=click.Choice(["memory", "fsync", "replicated"]))
@click.option("--replicas", type=parameters.WHOLE_32)
@click.option(
    "--chain",
    "ledger_chain",
    type=click.Choice(["sha256", "sm3"]),
    help="Of a new ledger; fixed for its life.",
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
@command
def run(
    console: Console,
    data_dir: Path | None,
    store_url: str | None,
    ledger_url: str | None,
    durability: str | None,
    replicas: int | None,
    ledger_chain: str | None,
    log_level: str | None,
) -> None:
    """Write every change of the store into the ledger, until SIGTERM or SIGINT; what is there is written first.

    `pickgate serve` with an embedded store runs this by itself. Several may run: one writes, the others stand by.
    """
    settings = console.settings(
        data_dir=data_dir,
        store_url=store_url,
        ledger_url=ledger_url,
        durability=durability,
        replicas=replicas,
        ledger_chain=ledger_chain,
        log_level=log_level,
    )
    log_to_stderr(settings.log_level)
    with StopSignal() as stop, open_both(settings, create=True) as (deployment, opened):
        signer = Signer(
            heads.load_key(settings.ledger_key),
            settings.ledger_heads,
            deployment_id=opened.deployment_id,
            algorithm=opened.chain.algorithm,
        )
        writer = Writer(Streams(deployment.connection), opened, now_ms=deployment.now_ms, signer=signer)
        writer.run(stop.came_within)
        written = sum(head.rows for head in writer.heads().values())
        _log.info("stopped; the ledger has %d events, %.1f s behind", written, writer.lag_ms() / 1000)


def _place(text: str | None, option: str) -> Place | None:
    """Read an event's number within its partition, `epoch-number`."""
    if text is None:
        return None
    epoch, dash, seq = text.partition("-")
    if not (dash and epoch.isascii() and epoch.isdigit() and seq.isascii() and seq.isdigit()):
        raise InvalidInput(f"{option} is {text!r}; expected epoch-number, for example 1-4711", field=option)
    return Place(int(epoch), int(seq))


def _partition(text: str | None) -> int | None:
    if text is None or text == "control":
        return None if text is None else CONTROL
    if not (text.isascii() and text.isdigit() and int(text) < CONTROL):
        raise InvalidInput(
            f"partition is {text!r}; expected 0 .. {CONTROL - 1}, or control", field="partition"
        )
    return int(text)


@ledger.command("verify")
@click.option("--ledger", "ledger_url", metavar="URL", help="sqlite:////path or postgresql://…")
@click.option("--data-dir", type=click.Path(path_type=Path))
@click.option("--partition", metavar="N", help="Only this one: a number, or control.")
@click.option("--from", "first", metavar="E-N", help="Of that partition, only from this event on.")
@click.option("--to", "last", metavar="E-N", help="And up to this one.")
@click.option(
    "--heads", "heads_dir", type=click.Path(path_type=Path), help="Signed heads; default: the setting's."
)
@click.option(
    "--public-key", type=click.Path(path_type=Path), help="That signed them; default: public.pem beside them."
)
@command
def verify(
    console: Console,
    data_dir: Path | None,
    ledger_url: str | None,
    partition: str | None,
    first: str | None,
    last: str | None,
    heads_dir: Path | None,
    public_key: Path | None,
) -> None:
    """Prove that no row was changed, taken out, put in or cut off: every link, and every signed head. Needs no store.

    Status 0: all is sound; 1: something is not, and the first bad row of each partition is named.
    """
    settings = console.settings(data_dir=data_dir, ledger_url=ledger_url)
    only = Range(_partition(partition), _place(first, "from"), _place(last, "to"))
    folder = heads_dir or settings.ledger_heads
    statements: list[Statement | Unsound] = []
    key = ""
    if heads_dir is not None or public_key is not None or (folder / heads.PUBLIC_KEY_NAME).exists():
        public = heads.load_public_key(public_key or folder / heads.PUBLIC_KEY_NAME)
        key, statements = heads.key_name(public), list(heads.read(folder, public))
    with Ledger.open(ledger_address(settings)) as opened:
        report = verify_ledger(opened, statements, only)
    value = {
        "sound": report.sound,
        "rows": report.rows,
        "partitions": report.partitions,
        "key": key,
        "signed_heads": report.statements,
        "signed_at_ms": report.signed_at_ms,
        "faults": [
            {"partition": fault.partition, "row": str(fault.place or ""), "why": fault.why}
            for fault in report.faults
        ],
        "unsound_heads": [{"source": bad.source, "why": bad.why} for bad in report.unsound],
    }

    def show(rich: RichConsole) -> None:
        for fault in report.faults:
            rich.print(f"[bold red]BAD[/]  {fault}")
        for bad in report.unsound:
            rich.print(f"[bold red]BAD[/]  signed head {bad.source}: {bad.why}")
        said = "[bold green]SOUND[/]" if report.sound else "[bold red]NOT SOUND[/]"
        against = (
            f"{report.statements} signed heads of key {key}, the newest of {moment(report.signed_at_ms)}"
            if report.statements
            else "no signed heads: a tail that was cut off would not show"
        )
        rich.print(f"{said}  {report.rows} rows of {report.partitions} partitions, against {against}")

    console.emit(value, show)
    if not report.sound:
        sys.exit(EXIT_REFUSED)


@ledger.command("status")
@where
@command
def status(console: Console, data_dir: Path | None, store_url: str | None, ledger_url: str | None) -> None:
    """How far the ledger has come: rows, last event and what the store has beyond, of each partition."""
    settings = console.settings(data_dir=data_dir, store_url=store_url, ledger_url=ledger_url)
    with open_both(settings) as (deployment, opened):
        facts = deployment.control.refresh().ledger
        streams = Streams(deployment.connection)
        ends = opened.heads()
        lasts = {number: streams.last(number) for number in streams.numbers}
        lag_s = max(0, deployment.now_ms() - facts.caught_up_ms) / 1000 if facts.caught_up_ms else None
        chain = opened.chain.algorithm
    partitions = [
        {
            "partition": "control" if number == CONTROL else number,
            "rows": ends[number].rows if number in ends else 0,
            "ledger": str(ends[number].place) if number in ends else "",
            "store": str(last) if last.seq else "",
        }
        for number, last in lasts.items()
    ]
    value = {
        "lag_s": lag_s,
        "caught_up_ms": facts.caught_up_ms,
        "alarm": facts.alarm,
        "chain": chain,
        "partitions": partitions,
    }

    def show(rich: RichConsole) -> None:
        made = table("Ledger", "partition", "#rows", "last in the ledger", "last in the store")
        for row in partitions:
            made.add_row(*map(str, row.values()))
        rich.print(made)
        if facts.alarm:
            rich.print(f"[bold red]ALARM[/]  {facts.alarm}")
        behind = "no writer has followed it yet" if lag_s is None else f"{lag_s:.1f} s behind"
        rich.print(f"{behind}, as of {moment(facts.caught_up_ms) or 'never'}; chained by {chain}")

    console.emit(value, show)
