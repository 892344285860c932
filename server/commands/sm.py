"""`pickgate sm`: secrets of the SM profile, given to terminals; worked on in the store itself, because they never cross the gRPC contract."""

from __future__ import annotations

import os
from pathlib import Path

import click
from rich.console import Console as RichConsole

from engine import sm_enrolment
from server import opening
from server.client import new_request_id
from server.commands import parameters
from server.console import Console, ask_passphrase, command
from server.hardening import keep_memory_private


@click.group("sm")
def sm() -> None:
    """The SM profile: bodies sealed with SM4 and SM3 under a secret of each terminal (docs/sm-profile.md)."""


@sm.command("enrol")
@click.option("--mall", type=parameters.WHOLE_32, required=True)
@click.option("--at-store", type=parameters.WHOLE_32, required=True, help="The terminal's store.")
@click.option("--terminal", type=parameters.WHOLE_32, required=True)
@click.option("--public-key", required=True, help="The terminal's SM2 key: 130 hex digits, 04, x, y.")
@click.option("--passphrase-file", type=click.Path(path_type=Path))
@click.option("--store", "store_url", metavar="URL")
@click.option("--data-dir", type=click.Path(path_type=Path))
@command
def enrol(
    console: Console,
    mall: int,
    at_store: int,
    terminal: int,
    public_key: str,
    passphrase_file: Path | None,
    store_url: str | None,
    data_dir: Path | None,
) -> None:
    """Give a terminal its next secret, encrypted to its SM2 key; the one before counts no more within 5 s."""
    keep_memory_private()
    key = sm_enrolment.public_key(public_key)
    settings = console.settings(data_dir=data_dir, store_url=store_url, passphrase_file=passphrase_file)
    with (
        opening.store(settings, share=True) as url,
        opening.open_deployment(url, settings, os.environ, ask=ask_passphrase) as deployment,
    ):
        number, secret = sm_enrolment.give(
            deployment.control, (mall, at_store, terminal), new_id=new_request_id
        )
    sealed = sm_enrolment.seal(key, secret).hex()

    def show(rich: RichConsole) -> None:
        rich.print(
            f"[bold green]ENROLLED[/]  terminal {terminal} of store {at_store}, mall {mall}; number {number}"
        )
        rich.print(f"  sealed_secret {sealed}", soft_wrap=True)

    console.emit(
        {
            "mall_id": mall,
            "store_id": at_store,
            "terminal_id": terminal,
            "number": number,
            "sealed_secret": sealed,
        },
        show,
    )
