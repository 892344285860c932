"""`pickgate serve` and `pickgate init`."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console as RichConsole

from engine.deployment import Deployment
from engine.errors import SetupError
from engine.state.store_url import redacted
from server import opening
from server.commands import parameters
from server.config import PASSPHRASE_BESIDE_DATA, Listen, Settings
from server.console import Console, ask_passphrase, command
from server.hardening import keep_memory_private
from server.issuers import Issuers
from server.ledger_process import LedgerProcess
from server.output import OutputFailed, json_text, log_to_stderr, visible
from server.serve import Server, answers, tune_interpreter
from server.statistics import StatisticsFile
from server.stopping import StopSignal
from server.workers import Supervisor, orders_of, reserved

_log = logging.getLogger(__name__)

_data_dir = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="Folder of the embedded store. Default: $XDG_STATE_HOME/pickgate, else ./pickgate-data.",
)
_store_url = click.option(
    "--store", "store_url", metavar="URL", help="Use this Redis or Valkey instead of the embedded store."
)
_durability = click.option("--durability", type=click.Choice(["memory", "fsync", "replicated"]))
_replicas = click.option(
    "--replicas",
    type=parameters.WHOLE_32,
    help="Copies that must have each change, with durability replicated.",
)
_partitions = click.option(
    "--partitions", type=parameters.WHOLE_32, help="Partitions of a new deployment; fixed for its life."
)
_passphrase_file = click.option(
    "--passphrase-file", type=click.Path(path_type=Path), help="File with the keyring's passphrase."
)


@click.command("serve")
@_data_dir
@_store_url
@click.option("--listen", multiple=True, metavar="ADDRESS", help="host:port or unix:/path; repeatable.")
@click.option(
    "--listen-mtls",
    multiple=True,
    metavar="ADDRESS",
    help="host:port on which a terminal's certificate is asked for; repeatable.",
)
@click.option(
    "--tls-cert-file", type=click.Path(path_type=Path), help="The server's certificate and chain (PEM)."
)
@click.option("--tls-key-file", type=click.Path(path_type=Path), help="Its private key (PEM).")
@click.option("--issuers-file", type=click.Path(path_type=Path), help="Issuers of access tokens (TOML).")
@click.option(
    "--tls-ca-file", type=click.Path(path_type=Path), help="CAs whose certificates terminals show (PEM)."
)
@_durability
@_replicas
@_partitions
@_passphrase_file
@click.option("--threads", type=parameters.WHOLE_32, help="Calls worked on at the same time.")
@click.option("--workers", type=parameters.WHOLE_32, help="Processes that share the ports. Default: 1.")
@click.option(
    "--lane",
    type=click.Choice(["auto", "off"]),
    help="Whether the hot lane serves, if it works here. Default: auto.",
)
@click.option("--grace-s", type=float, help="How long a stop waits for calls in flight.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
@click.option("--stats-file", type=click.Path(path_type=Path), hidden=True)
@command
def serve(
    console: Console,
    data_dir: Path | None,
    store_url: str | None,
    listen: tuple[str, ...],
    listen_mtls: tuple[str, ...],
    tls_cert_file: Path | None,
    tls_key_file: Path | None,
    tls_ca_file: Path | None,
    issuers_file: Path | None,
    durability: str | None,
    replicas: int | None,
    partitions: int | None,
    passphrase_file: Path | None,
    threads: int | None,
    workers: int | None,
    lane: str | None,
    grace_s: float | None,
    log_level: str | None,
    stats_file: Path | None,
) -> None:
    """Serve until SIGTERM or SIGINT; calls in flight finish first.

    Without --store it brings a store of its own, and makes a new deployment in it at the first start.
    """
    settings = console.settings(
        data_dir=data_dir,
        store_url=store_url,
        listen=list(listen) or None,
        listen_mtls=list(listen_mtls) or None,
        tls_cert_file=tls_cert_file,
        tls_key_file=tls_key_file,
        tls_ca_file=tls_ca_file,
        issuers_file=issuers_file,
        durability=durability,
        replicas=replicas,
        partitions=partitions,
        passphrase_file=passphrase_file,
        threads=threads,
        workers=workers,
        lane=lane,
        grace_s=grace_s,
        log_level=log_level,
    )
    log_to_stderr(settings.log_level)
    _raise_open_files()
    keep_memory_private()
    # Before anything is started: what is wrong with the files is told at once.
    opening.certificates(settings)
    opening.issuing(settings)
    if settings.issuers_file is not None:
        Issuers(settings.issuers_file)
    for address in (*settings.listen, *settings.listen_mtls):
        _check_address(address, plain=settings.tls_cert_file is None)
    # Around all: a signal while the store starts must still end it in order.
    with StopSignal() as stop, opening.store(settings) as url:
        if settings.embedded and not Deployment.exists(url):
            made = opening.create(url, settings, os.environ)
            _log.info("created a new deployment in %s", settings.data_dir)
            if made is not None:
                _log.warning(
                    "made the passphrase file %s: keep a copy of it. Note that %s",
                    made,
                    PASSPHRASE_BESIDE_DATA,
                )
        # Around the serving: it ends, with everything written, when the last call is answered.
        with _ledger(settings, url):
            if settings.workers > 1:
                _supervise(console, settings, url, stop, stats_file)
                return
            with opening.open_deployment(url, settings, os.environ, ask=ask_passphrase) as deployment:
                _run(console, settings, deployment, stop, stats_file)


def _check_address(listen: Listen, *, plain: bool) -> None:
    """Raise SetupError where an address can't be had: found out later, a new deployment would have been made for nothing."""
    if plain and (trouble := listen.plain_trouble()):
        raise SetupError(trouble, field="listen")
    if listen.port is not None:
        with reserved([listen]):
            return
    if answers(listen.address.removeprefix("unix:")):
        raise SetupError(
            f"can't listen on {listen.address}: another process listens there; stop it, or choose another address",
            field="listen",
        )


def _ledger(settings: Settings, url: str) -> contextlib.AbstractContextManager[object]:
    """The ledger's writer, beside an embedded store; an external store's runs by itself, `pickgate ledger run`."""
    if settings.embedded and settings.ledger_address:
        return LedgerProcess(settings, url)
    return contextlib.nullcontext()


def _run(
    console: Console, settings: Settings, deployment: Deployment, stop: StopSignal, stats_file: Path | None
) -> None:
    server = Server(
        deployment,
        settings.listen,
        threads=settings.threads,
        look=deployment.look,
        lane=settings.lane == "auto",
        key_rotation_s=settings.key_rotation_h * 3600,
        certificates=opening.certificates(settings),
        listen_mtls=settings.listen_mtls,
        ledger_url=settings.ledger_address,
        ledger_heads=settings.ledger_heads,
        gate=opening.gate(settings, deployment),
        issuing=opening.issuing(settings),
    ).start()
    try:
        tune_interpreter()
        _announce(console, settings, server.addresses)
        with StatisticsFile(stats_file, server.statistics) if stats_file else contextlib.nullcontext():
            stop.wait()
        _log.info("stopping: calls in flight have %g s", settings.grace_s)
    finally:
        server.stop(settings.grace_s)
    _log.info("stopped")


def _supervise(
    console: Console, settings: Settings, url: str, stop: StopSignal, stats_file: Path | None
) -> None:
    typed = ""

    def ask() -> str:
        nonlocal typed
        typed = ask_passphrase()
        return typed

    # Opened here first: what is wrong with the store or the settings is told once, as with one process.
    opening.open_deployment(url, settings, os.environ, ask=ask).close()
    with reserved(settings.listen) as listen, reserved(settings.listen_mtls) as listen_mtls:
        orders = orders_of(
            settings,
            url,
            listen,
            os.environ,
            passphrase=typed,
            listen_mtls=listen_mtls,
            stats_file=str(stats_file or ""),
        )
        with Supervisor(settings.workers, orders, grace_s=settings.grace_s, stop=stop) as supervisor:
            _announce(console, settings, [one.address for one in (*listen, *listen_mtls)])
            supervisor.run()
            _log.info("stopping: calls in flight have %g s", settings.grace_s)
    _log.info("stopped")


def _raise_open_files() -> None:
    """Raise the soft limit of open files to the hard one: each connection is one, and the usual 1,024 are soon taken.

    The soft limit is that low for programs that use select(2), which this one does not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _log.debug("open files: %d, were %d", resource.getrlimit(resource.RLIMIT_NOFILE)[0], soft)


def _announce(console: Console, settings: Settings, addresses: Sequence[str]) -> None:
    where = str(settings.data_dir) if settings.embedded else redacted(settings.store_url)
    if console.json:
        # One line: who waits for it reads a line, not a document.
        said = json_text({"serving": addresses, "store": where})
    else:
        how = "TLS 1.3" if settings.tls_cert_file else "no TLS: this machine only"
        if not settings.knows_callers:
            how += ", OPEN: callers are not known"
        said = visible(f"serving on {', '.join(addresses)} ({how}; store: {where}); Ctrl-C stops")
    try:
        click.echo(said)
    except OutputFailed as error:
        # Whom it should tell is gone; the callers are not.
        _log.warning("serving on %s; nobody could be told: %s", ", ".join(addresses), error)


@click.command("init")
@_data_dir
@_store_url
@_durability
@_replicas
@_partitions
@_passphrase_file
@command
def init(
    console: Console,
    data_dir: Path | None,
    store_url: str | None,
    durability: str | None,
    replicas: int | None,
    partitions: int | None,
    passphrase_file: Path | None,
) -> None:
    """Create a deployment in an empty store, with its first keys. `serve` with an embedded store does so by itself."""
    settings = console.settings(
        data_dir=data_dir,
        store_url=store_url,
        durability=durability,
        replicas=replicas,
        partitions=partitions,
        passphrase_file=passphrase_file,
    )
    keep_memory_private()
    with opening.store(settings) as url:
        made = opening.create(url, settings, os.environ, ask=ask_passphrase)
        with opening.open_deployment(url, settings, os.environ, ask=ask_passphrase) as deployment:
            constants = deployment.constants
    value = {
        "deployment_id": constants.deployment_id,
        "partitions": constants.partitions,
        "passphrase_file": "" if made is None else str(made),
    }

    def show(rich: RichConsole) -> None:
        rich.print(
            f"[bold green]CREATED[/]  deployment {constants.deployment_id}, {constants.partitions} partitions"
        )
        if made is not None:
            rich.print(f"  made the passphrase file {made}: keep a copy of it, without it the keys are lost")
            rich.print(f"  note: {PASSPHRASE_BESIDE_DATA}")

    console.emit(value, show)
