"""`pickgate ledger`: the writer as its own process, and what the ledger knows. Worked on in the database itself."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from rich.console import Console as RichConsole
from rich.markup import escape

from engine.deployment import Deployment, Durability, system_ms
from engine.errors import ConfigError, DeploymentMismatch, InvalidInput, NotFound, PickgateError
from engine.freezes import Freeze
from engine.ledger import audit as audited
from engine.ledger import checkpoints, consumers, feed, heads, operations, retention
from engine.ledger import rebuild as rebuilding
from engine.ledger import reconcile as compare
from engine.ledger import settlement as settling
from engine.ledger.consumers import Consumer, Feed
from engine.ledger.heads import Signer, Statement, Unsound
from engine.ledger.ledger import Ledger
from engine.ledger.reconcile import Run
from engine.ledger.verify import Range
from engine.ledger.verify import verify as verify_ledger
from engine.ledger.writer import Writer
from engine.state.cluster import connect
from engine.state.streams import CONTROL, Place, Streams
from server import checks, opening
from server.asked import Asked
from server.commands import parameters, reconciled
from server.config import PREFIX, Settings
from server.console import EXIT_REFUSED, Console, command, moment, table
from server.daily import Daily
from server.output import json_text, log_to_stderr
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
def open_store(settings: Settings) -> Iterator[Deployment]:
    """The deployment alone, its keyring locked."""
    with (
        opening.store(settings, share=True) as url,
        Deployment.open(
            url, unlock=None, durability=Durability(settings.durability), replicas=settings.replicas
        ) as deployment,
    ):
        yield deployment


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
        _, signer = signing(settings, opened)
        writer = Writer(Streams(deployment.connection), opened, now_ms=deployment.now_ms, signer=signer)
        jobs = [
            Daily(at, deployment.now_ms, ("ledger", *words), _handed_down(settings))
            for at, words in (
                (settings.ledger_reconcile_at, ("reconcile", "--cause", "daily")),
                (settings.ledger_checkpoint_at, ("checkpoint", "--cut")),
            )
        ]

        asked = Asked(
            opened,
            deployment.now_ms,
            ("ledger", "reconcile", "--cause", "operation", "--operation"),
            _handed_down(settings),
        )

        def stopping(wait_s: float) -> bool:
            for job in jobs:
                job.look()
            asked.look()
            return stop.came_within(wait_s)

        try:
            writer.run(stopping)
        finally:
            for job in jobs:
                job.stop()
            asked.stop()
        written = sum(head.rows for head in writer.heads().values())
        _log.info("stopped; the ledger has %d events, %.1f s behind", written, writer.lag_ms() / 1000)


def signing(settings: Settings, opened: Ledger) -> tuple[Ed25519PrivateKey, Signer]:
    """The key that signs heads, checkpoints and cuts, made if there is none, and the signer of heads. Raises SetupError."""
    key = heads.load_key(settings.ledger_key)
    about = {"deployment_id": opened.deployment_id, "algorithm": opened.chain.algorithm}
    return key, Signer(key, settings.ledger_heads, **about)


def trusted(settings: Settings) -> Ed25519PublicKey | None:
    """The public key of heads, checkpoints and cuts; None when it is not where the settings say. Raises SetupError."""
    path = settings.ledger_heads / heads.PUBLIC_KEY_NAME
    return heads.load_public_key(path) if path.exists() else None


def show_unsound(rich: RichConsole, unsound: Iterable[Unsound]) -> None:
    """Checkpoints that were passed over."""
    for bad in unsound:
        rich.print(f"[bold red]BAD[/]  {bad.source} is not used: {bad.why}")


def _handed_down(settings: Settings) -> dict[str, str]:
    """The environment of a command that works on the same store and ledger: flags would show a password to everybody."""
    chosen = {
        "store_url": settings.store_url,
        "data_dir": settings.data_dir.absolute(),
        "durability": settings.durability,
        "replicas": settings.replicas,
        "ledger_url": settings.ledger_address,
        "ledger_key_file": settings.ledger_key.absolute(),
        "ledger_heads_dir": settings.ledger_heads.absolute(),
        "ledger_events_days": settings.ledger_events_days,
        "ledger_freeze_on_drift": settings.ledger_freeze_on_drift,
        "ledger_attempts_days": settings.ledger_attempts_days,
    }
    return os.environ | {f"{PREFIX}{key.upper()}": str(value) for key, value in chosen.items()}


@ledger.command("reconcile")
@where
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Write every shelf and drift there.")
@click.option(
    "--freeze",
    "freezing",
    is_flag=True,
    default=None,
    help="Make no more codes of SKUs whose books differ; default: the setting ledger_freeze_on_drift.",
)
@click.option("--cause", default="command", hidden=True)
@click.option("--operation", "operation_id", default="", hidden=True)
@command
def reconcile(
    console: Console,
    data_dir: Path | None,
    store_url: str | None,
    ledger_url: str | None,
    csv_file: Path | None,
    freezing: bool | None,
    cause: str,
    operation_id: str,
) -> None:
    """Compare the store with the ledger: stock per store and SKU, codes, tries, transit. Nothing has to stand still.

    Status 0: equal to the unit; 1: there are drifts. The result is kept: `pickgate ledger runs`.
    """
    settings = console.settings(
        data_dir=data_dir, store_url=store_url, ledger_url=ledger_url, ledger_freeze_on_drift=freezing
    )
    frozen: list[Freeze] = []
    with open_both(settings) as (deployment, opened), _told(opened, operation_id, deployment) as tell:
        run = compare.reconcile(deployment, opened, cause=cause, key=trusted(settings))
        if settings.ledger_freeze_on_drift:
            frozen = compare.freeze(deployment, run)
        tell(run)
    if csv_file is not None:
        reconciled.write_csv(csv_file, run)
    value = {**reconciled.run_value(run), "frozen": [asdict(one) for one in frozen]}

    def show(rich: RichConsole) -> None:
        reconciled.show_run(rich, run)
        for one in frozen:
            rich.print(
                f"[bold yellow]FROZEN[/]  SKU {one.sku_id} of mall {one.mall_id} at store {one.store_id}: no more codes are made"
                " of it; pickgate ledger unfreeze"
            )

    console.emit(value, show)
    if not run.clean:
        sys.exit(EXIT_REFUSED)


@ledger.command("frozen")
@click.option("--store", "store_url", metavar="URL")
@click.option("--data-dir", type=click.Path(path_type=Path))
@command
def frozen(console: Console, data_dir: Path | None, store_url: str | None) -> None:
    """SKUs of which no more codes are made at a store, and why."""
    settings = console.settings(data_dir=data_dir, store_url=store_url)
    with open_store(settings) as deployment:
        found = deployment.control.freezes()

    def show(rich: RichConsole) -> None:
        made = table("Frozen", "#mall", "#store", "#SKU", "why")
        for one in found:
            made.add_row(str(one.mall_id), str(one.store_id), str(one.sku_id), one.reason)
        rich.print(made)

    console.emit({"frozen": [asdict(one) for one in found]}, show)


@ledger.command("unfreeze")
@click.option("--store", "store_url", metavar="URL")
@click.option("--data-dir", type=click.Path(path_type=Path))
@click.option("--mall", "mall_id", type=parameters.WHOLE_32, required=True)
@click.option("--store-id", "store_id", type=parameters.WHOLE_32, required=True)
@click.option("--sku", "sku_id", type=parameters.WHOLE_32, required=True)
@click.option("--reason", required=True, help="What was found, for the record.")
@parameters.actor
@parameters.request_id
@command
def unfreeze(
    console: Console,
    data_dir: Path | None,
    store_url: str | None,
    mall_id: int,
    store_id: int,
    sku_id: int,
    reason: str,
    actor: str,
    request_id: str | None,
) -> None:
    """Let codes be made again of a SKU whose books have been looked at. It is an event, with its reason."""
    settings = console.settings(data_dir=data_dir, store_url=store_url)
    made = Freeze(mall_id, store_id, sku_id, frozen=False, reason=reason)
    with open_store(settings) as deployment:
        if made.shelf not in {one.shelf for one in deployment.control.freezes()}:
            raise NotFound(f"SKU {sku_id} of mall {mall_id} is not frozen at store {store_id}", field="sku")
        version = deployment.control.put_freezes(
            [made], request_id=request_id or os.urandom(16).hex(), actor=actor
        )
    console.emit(
        {"version": version, **asdict(made)},
        lambda rich: rich.print(
            f"[bold green]UNFROZEN[/]  SKU {sku_id} of mall {mall_id} at store {store_id}"
        ),
    )


@contextlib.contextmanager
def _told(opened: Ledger, operation_id: str, deployment: Deployment) -> Iterator[Callable[[Run], None]]:
    """Says how an operation ended: by what is told, or by the error that leaves the context. '': there is none.

    Its message goes to whoever asked for it over the wire: the error's own words may name files and addresses, and are in the log.
    """

    def tell(run: Run) -> None:
        if operation_id:
            operations.end(opened, operation_id, deployment.now_ms(), run=run.number)

    try:
        yield tell
    except PickgateError as error:
        if operation_id:
            operations.end(
                opened,
                operation_id,
                deployment.now_ms(),
                message=f"{error.slug}: the log of the ledger's writer says more",
            )
        raise


@ledger.command("runs")
@click.option("--ledger", "ledger_url", metavar="URL", help="sqlite:////path or postgresql://…")
@click.option("--data-dir", type=click.Path(path_type=Path))
@click.option("--run", "number", type=click.IntRange(1), help="Show the drifts of this one.")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Write its drifts there.")
@click.option("--count", type=click.IntRange(1, 1_000), default=20, show_default=True)
@command
def runs(
    console: Console,
    data_dir: Path | None,
    ledger_url: str | None,
    number: int | None,
    csv_file: Path | None,
    count: int,
) -> None:
    """Reconciliations that were made, the newest first. Needs no store."""
    settings = console.settings(data_dir=data_dir, ledger_url=ledger_url)
    with Ledger.open(ledger_address(settings)) as opened:
        if number is None and csv_file is None:
            kept = compare.list_runs(opened, count)
            console.emit(
                {"runs": [one._asdict() for one in kept]}, lambda rich: reconciled.show_runs(rich, kept)
            )
            return
        run = compare.read_run(opened, number)
    if run is None:
        raise NotFound(f"there is no reconciliation {number or ''}".rstrip(), field="run")
    if csv_file is not None:
        reconciled.write_csv(csv_file, run)
    console.emit(reconciled.run_value(run), lambda rich: reconciled.show_run(rich, run))


@ledger.command("release")
@click.argument("name")
@click.option("--ledger", "ledger_url", metavar="URL", help="sqlite:////path or postgresql://…")
@click.option("--data-dir", type=click.Path(path_type=Path))
@click.option(
    "--feed",
    "kind",
    type=click.Choice([one.value for one in Feed]),
    default=Feed.SETTLEMENTS.value,
    show_default=True,
)
@click.option(
    "--mall", "mall_id", type=parameters.WHOLE_32, default=0, help="Whose feed it is. Default: all malls'."
)
@command
def release(
    console: Console, name: str, data_dir: Path | None, ledger_url: str | None, kind: str, mall_id: int
) -> None:
    """Let the NAME of a wallet, or of a mall's consumer, go: it belongs to whoever acknowledges under it next. Needs no store.

    What it has acknowledged stays. `pickgate chain status` shows to whom names belong.
    """
    settings = console.settings(data_dir=data_dir, ledger_url=ledger_url)
    with Ledger.open(ledger_address(settings)) as opened:
        before = consumers.release(opened, Consumer(Feed(kind), mall_id, name))
    value = {"feed": kind, "mall_id": mall_id, "name": name, "belonged_to": before.owner}
    belonged = f"belonged to {escape(before.owner)}" if before.owner else "belonged to nobody"
    console.emit(
        value, lambda rich: rich.print(f"[bold green]RELEASED[/]  {name} of {kind}, which {belonged}")
    )


def _place(text: str | None, option: str) -> Place | None:
    """Read an event's number within its partition, `epoch-number`."""
    if text is None:
        return None
    epoch, dash, seq = text.partition("-")
    if not (dash and all(part.isascii() and part.isdigit() and len(part) <= 16 for part in (epoch, seq))):
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
@click.option("--latest", is_flag=True, help="Only what lies behind the latest sound checkpoint.")
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
    latest: bool,
    heads_dir: Path | None,
    public_key: Path | None,
) -> None:
    """Prove that no row was changed, taken out, put in or cut off: every link, signed head and checkpoint. Needs no store.

    Status 0: all is sound; 1: something is not, and the first bad row of each partition is named.
    """
    settings = console.settings(data_dir=data_dir, ledger_url=ledger_url)
    only = Range(_partition(partition), _place(first, "from"), _place(last, "to"), latest)
    if only.first is not None and only.last is not None and only.first > only.last:
        raise InvalidInput(f"from is {first}, to is {last}; expected from before to", field="from")
    folder = heads_dir or settings.ledger_heads
    statements: list[Statement | Unsound] = []
    key, public = "", None
    if heads_dir is not None or public_key is not None or (folder / heads.PUBLIC_KEY_NAME).exists():
        public = heads.load_public_key(public_key or folder / heads.PUBLIC_KEY_NAME)
        key, statements = heads.key_name(public), list(heads.read(folder, public))
    with Ledger.open(ledger_address(settings)) as opened:
        report = verify_ledger(opened, statements, only, key=public)
    value = {
        "sound": report.sound,
        "rows": report.rows,
        "partitions": report.partitions,
        "key": key,
        "signed_heads": report.statements,
        "signed_at_ms": report.signed_at_ms,
        "checkpoints": report.checkpoints,
        "cut": {str(number): str(head.place) for number, head in report.cut.heads.items()}
        if report.cut
        else {},
        "faults": [
            {"partition": fault.partition, "row": str(fault.place or ""), "why": fault.why}
            for fault in report.faults
        ],
        "unsound": [{"source": bad.source, "why": bad.why} for bad in report.unsound],
    }

    def show(rich: RichConsole) -> None:
        for fault in report.faults:
            rich.print(f"[bold red]BAD[/]  {fault}")
        for bad in report.unsound:
            rich.print(f"[bold red]BAD[/]  {bad.source}: {bad.why}")
        said = "[bold green]SOUND[/]" if report.sound else "[bold red]NOT SOUND[/]"
        against = (
            f"{report.statements} signed heads of key {key}, the newest of {moment(report.signed_at_ms)}"
            if report.statements
            else "no signed heads: a tail that was cut off would not show"
        )
        rich.print(
            f"{said}  {report.rows} rows of {report.partitions} partitions, {report.checkpoints} checkpoints, against {against}"
        )
        if report.cut is not None:
            rich.print(
                f"what lies before cut {report.cut.number} of {moment(report.cut.at_ms)} is gone by order"
            )

    console.emit(value, show)
    if not report.sound:
        sys.exit(EXIT_REFUSED)


def _see_whose(settings: Settings, opened: Ledger) -> None:
    """See that a ledger is not of another deployment than the one beside the embedded store; raises DeploymentMismatch.

    A rebuild writes new epochs into the ledger, which the store that it belongs to could not follow any more.
    """
    beside = settings.model_copy(update={"ledger_url": ""}).ledger_address
    if not beside or not (settings.data_dir / "ledger.sqlite3").exists():
        return
    try:
        with Ledger.open(beside) as own:
            deployment_id = own.deployment_id
    except PickgateError:
        return  # a damaged one, of which a sound copy is named instead
    if deployment_id != opened.deployment_id:
        raise DeploymentMismatch(
            f"the ledger is of deployment {opened.deployment_id}, and the data folder {settings.data_dir} has one of"
            f" {deployment_id}: name the right ledger, or another data folder"
        )


@ledger.command("rebuild")
@where
@click.option("--durability", type=click.Choice(["memory", "fsync", "replicated"]))
@click.option("--replicas", type=parameters.WHOLE_32)
@command
def rebuild(
    console: Console,
    data_dir: Path | None,
    store_url: str | None,
    ledger_url: str | None,
    durability: str | None,
    replicas: int | None,
) -> None:
    """Fill an empty store with what the ledger knows, then compare both. For a store that is lost.

    Of an embedded store, move `appendonlydir` out of the data folder first, and stop the server. Status 0: rebuilt, and equal to the unit.
    """
    settings = console.settings(
        data_dir=data_dir,
        store_url=store_url,
        ledger_url=ledger_url,
        durability=durability,
        replicas=replicas,
    )
    with opening.store(settings) as url, Ledger.open(ledger_address(settings)) as opened:
        _see_whose(settings, opened)
        connection = connect(
            url, durability=Durability(settings.durability), now_ms=system_ms, replicas=settings.replicas
        )
        try:
            made = rebuilding.rebuild(connection, opened, now_ms=system_ms(), key=trusted(settings))
        finally:
            connection.close()
        with Deployment.open(
            url, unlock=None, durability=Durability(settings.durability), replicas=settings.replicas
        ) as deployment:
            writer = Writer(Streams(deployment.connection), opened, now_ms=deployment.now_ms)
            writer.start()
            while writer.step(block_ms=0):
                pass
            run = compare.reconcile(deployment, opened, cause="rebuild", key=trusted(settings))
    value = {
        "partitions": made.partitions,
        "codes": made.codes,
        "shelves": made.shelves,
        "events": made.events,
        "took_s": round(made.took_s, 3),
        "checkpoint": made.checkpoint,
        "clean": run.clean,
        "reconciliation": run.number,
    }

    def show(rich: RichConsole) -> None:
        show_unsound(rich, made.unsound)
        rate = made.codes / made.took_s
        begun = f"checkpoint {made.checkpoint} on" if made.checkpoint else "the beginning on"
        rich.print(
            f"[bold green]REBUILT[/]  {made.codes} codes and {made.shelves} shelves of {made.partitions} partitions from"
            f" {made.events} events, from {begun}, in {made.took_s:.1f} s ({rate:.0f} codes a second)"
        )
        reconciled.show_run(rich, run)

    console.emit(value, show)
    if not run.clean:
        sys.exit(EXIT_REFUSED)


@ledger.command("checkpoint")
@click.option("--ledger", "ledger_url", metavar="URL", help="sqlite:////path or postgresql://…")
@click.option("--data-dir", type=click.Path(path_type=Path))
@click.option(
    "--cut", "cutting", is_flag=True, help="Afterwards take out what is old enough, as `ledger cut` does."
)
@command
def checkpoint(console: Console, data_dir: Path | None, ledger_url: str | None, cutting: bool) -> None:
    """Keep what the events so far add up to, signed: rebuild and reconciliation go on from there. Needs no store.

    The writer makes one each day at `ledger_checkpoint_at`. It is signed by the key of the heads.
    """
    settings = console.settings(data_dir=data_dir, ledger_url=ledger_url)
    with Ledger.open(ledger_address(settings)) as opened:
        key, _ = signing(settings, opened)
        made = checkpoints.take(opened, key, at_ms=system_ms())
        removed = _cut(opened, key, settings) if cutting else None
    value: dict[str, Any] = {
        "checkpoint": made.number,
        "at_ms": made.at_ms,
        "events": sum(part.head.rows for part in made.parts.values()),
        "bytes": sum(part.size for part in made.parts.values()),
        "places": {str(number): str(part.head.place) for number, part in made.parts.items()},
    }

    def show(rich: RichConsole) -> None:
        size_mb = value["bytes"] / 1e6
        rich.print(
            f"[bold green]KEPT[/]  checkpoint {made.number}: what {value['events']} events of {len(made.parts)} partitions add"
            f" up to, {size_mb:.1f} MB"
        )
        if removed is not None:
            _show_removed(rich, removed)

    console.emit(value | ({"removed": _removed_value(removed)} if removed else {}), show)


@ledger.command("cut")
@click.option("--ledger", "ledger_url", metavar="URL", help="sqlite:////path or postgresql://…")
@click.option("--data-dir", type=click.Path(path_type=Path))
@command
def cut(console: Console, data_dir: Path | None, ledger_url: str | None) -> None:
    """Take out what is older than `ledger_events_days` and `ledger_attempts_days`, behind a checkpoint. Needs no store.

    What stays verifies, rebuilds and settles as before; the cut is signed by the key of the heads.
    """
    settings = console.settings(data_dir=data_dir, ledger_url=ledger_url)
    with Ledger.open(ledger_address(settings)) as opened:
        removed = _cut(opened, signing(settings, opened)[0], settings)
    console.emit(_removed_value(removed), lambda rich: _show_removed(rich, removed))


def _cut(opened: Ledger, key: Ed25519PrivateKey, settings: Settings) -> retention.Removed:
    return retention.cut(
        opened,
        key,
        now_ms=system_ms(),
        events_days=settings.ledger_events_days,
        attempts_days=settings.ledger_attempts_days,
    )


def _removed_value(removed: retention.Removed) -> dict[str, Any]:
    places = {str(number): str(place) for number, place in removed.places.items()}
    return {**asdict(removed), "places": places}


def _show_removed(rich: RichConsole, removed: retention.Removed) -> None:
    if removed.cut:
        rich.print(
            f"[bold green]CUT[/]  cut {removed.cut}, behind checkpoint {removed.base}: {removed.events} events went"
        )
    else:
        rich.print("no event is old enough to go")
    if removed.attempts:
        rich.print(f"{removed.attempts} refused attempts went")


@ledger.command("settlements")
@click.option("--ledger", "ledger_url", metavar="URL", help="sqlite:////path or postgresql://…")
@click.option("--data-dir", type=click.Path(path_type=Path))
@click.option("--mall", "mall_id", type=parameters.WHOLE_32, default=0, help="Only this mall's.")
@click.option("--order", "order_id", default="", help="All of one order of that mall.")
@click.option("--count", type=click.IntRange(1, feed.PAGE_MAX), default=100, show_default=True)
@click.option("--after", "cursor", default="", metavar="CURSOR", help="Go on behind an earlier page.")
@command
def settlements(
    console: Console,
    data_dir: Path | None,
    ledger_url: str | None,
    mall_id: int,
    order_id: str,
    count: int,
    cursor: str,
) -> None:
    """What redemptions release to the parties of orders, and reversals take back: in order per partition, each event once a page.

    A page ends with the cursor from which the next one goes on; `event` tells a repetition. Needs no store.
    """
    settings = console.settings(data_dir=data_dir, ledger_url=ledger_url)
    if order_id and not mall_id:
        raise InvalidInput("an order is one of a mall: name the mall too", field="mall")
    with Ledger.open(ledger_address(settings)) as opened:
        if order_id:
            page = feed.Page(settling.of_order(opened, mall_id, order_id), {}, True)
        else:
            page = settling.page(opened, feed.parse_cursor(cursor), count=count, mall_id=mall_id)
    value = {
        "settlements": [{**asdict(one), "event": str(one.event), "uid": one.uid.hex()} for one in page.items],
        "cursor": feed.cursor_text(page.cursor),
        "complete": page.complete,
    }

    def show(rich: RichConsole) -> None:
        made = table("Settlements", "=event", "at", "#mall", "=order", "=payee", "role", "#level", "#fen")
        for one in page.items:
            for share in one.shares:
                made.add_row(
                    str(one.event),
                    moment(one.at_ms),
                    str(one.mall_id),
                    one.order_id,
                    share.payee,
                    share.role,
                    str(share.level),
                    str(share.amount_fen),
                )
        rich.print(made)
        if not order_id:
            rich.print(f"go on with --after {value['cursor'] or chr(39) * 2}")

    console.emit(value, show)


@ledger.command("audit")
@click.option("--ledger", "ledger_url", metavar="URL", help="sqlite:////path or postgresql://…")
@click.option("--data-dir", type=click.Path(path_type=Path))
@click.option("--code", "uid", metavar="UID", help="A code's uid, 16 hex digits.")
@click.option("--mall", "mall_id", type=parameters.WHOLE_32, default=0)
@click.option("--order", "order_id", default="", help="An order of that mall.")
@click.option("--store-id", "store_id", type=parameters.WHOLE_32, default=0)
@click.option("--terminal", "terminal_id", type=parameters.WHOLE_32, default=0)
@click.option("--actor", default="", help="Who did it.")
@click.option("--since", metavar="TIME", help="ISO 8601, for example 2026-11-25T08:00+08:00.")
@click.option("--until", metavar="TIME", help="Up to, and without.")
@click.option("--count", type=click.IntRange(1, audited.PAGE_MAX), default=100, show_default=True)
@click.option("--after", metavar="CURSOR", help="Go on behind an earlier page.")
@command
def audit(
    console: Console,
    /,
    data_dir: Path | None,
    ledger_url: str | None,
    uid: str | None,
    since: str | None,
    until: str | None,
    count: int,
    after: str | None,
    **about: Any,
) -> None:
    """What happened to a code, an order, at a store or terminal, by somebody, in a time; refused attempts too. Needs no store."""
    settings = console.settings(data_dir=data_dir, ledger_url=ledger_url)
    question = audited.Question(
        uid=checks.uid(uid) if uid else b"",
        from_ms=_instant(since, "since"),
        to_ms=_instant(until, "until"),
        **about,
    )
    cursor = audited.Cursor.parse(after) if after else None
    with Ledger.open(ledger_address(settings)) as opened:
        page = audited.search(opened, question, count=count, after=cursor)
    value = {
        "findings": [{**one._asdict(), "uid": one.uid.hex()} for one in page.findings],
        "after": str(page.after or ""),
    }

    def show(rich: RichConsole) -> None:
        made = table(
            "Audit", "at", "=event", "what", "#mall", "#store", "#terminal", "=code", "by", "details"
        )
        for one in page.findings:
            what = f"refused: {one.what}" if one.refused else one.what
            ids = (str(number or "") for number in (one.mall_id, one.store_id, one.terminal_id))
            made.add_row(
                moment(one.at_ms), one.number, what, *ids, one.uid.hex(), one.actor, json_text(one.details)
            )
        rich.print(made)
        if page.after is not None:
            rich.print(f"there is more: --after {page.after}")

    console.emit(value, show)


def _instant(text: str | None, option: str) -> int:
    """Read a time as ISO 8601 has it, in unix milliseconds; without an offset it is this machine's. 0 for none."""
    if text is None:
        return 0
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise InvalidInput(
            f"{option} is {text!r}; expected a time like 2026-11-25T08:00+08:00", field=option
        ) from None


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
