"""`pickgate sm`: a terminal gets its first secret of the SM profile."""

from __future__ import annotations

import click
from rich.console import Console as RichConsole

from engine.errors import InvalidInput
from engine.sm_enrolment import check_public_key
from pickgate.v1 import terminal_service_pb2 as terminal_pb
from server.commands.terminals import read_invitation
from server.console import Console, command


@click.group("sm")
def sm() -> None:
    """The SM profile: bodies sealed with SM4 and SM3 under a secret of each terminal (docs/sm-profile.md)."""


@sm.command("enrol")
@click.argument("invitation")
@click.option("--public-key", required=True, help="The terminal's SM2 key: 130 hex digits, 04, x, y.")
@command
def enrol(console: Console, invitation: str, public_key: str) -> None:
    """Enrol a terminal with INVITATION for a secret: prints its number, and the secret encrypted to the terminal's SM2 key.

    What the terminal had before, certificates too, counts no more within 5 s. If the answer is lost, the same command again is safe.
    """
    terminal, token = read_invitation(invitation)
    try:
        key = bytes.fromhex(public_key)
    except ValueError:
        raise InvalidInput(
            "public-key is not hexadecimal; expected 130 hex digits: 04, x, y", field="public-key"
        ) from None
    check_public_key(key, "public-key")
    request = terminal_pb.EnrolTerminalRequest(terminal=terminal, token=token, sm_public_key=key)
    with console.client(console.settings()) as client:
        response = client.call(client.terminals.EnrolTerminal, request)
    sealed = response.sm_sealed_secret.hex()

    def show(rich: RichConsole) -> None:
        rich.print(
            f"[bold green]ENROLLED[/]  terminal {terminal.terminal_id} of store {terminal.store_id}, mall {terminal.mall_id};"
            f" number {response.sm_number}"
        )
        rich.print(f"  sealed_secret {sealed}", soft_wrap=True)

    console.emit(
        {
            "mall_id": terminal.mall_id,
            "store_id": terminal.store_id,
            "terminal_id": terminal.terminal_id,
            "number": response.sm_number,
            "sealed_secret": sealed,
        },
        show,
    )
