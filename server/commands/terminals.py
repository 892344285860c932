"""`pickgate terminals`: invite, enrol, rotate, list, suspend, resume, revoke."""

from __future__ import annotations

import base64
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console as RichConsole
from rich.markup import escape

from engine import limits
from engine.errors import InvalidInput, SetupError
from engine.terminals import TOKEN_CHARS, digest_of
from pickgate.v1 import terminal_service_pb2 as terminal_pb
from pickgate.v1 import types_pb2 as types_pb
from server import qr
from server.authority import make_request, request_for, write_new
from server.client import Client, new_request_id
from server.commands import parameters
from server.commands.places import pages
from server.console import Console, command, moment, table
from server.plain import enum_name, plain

_INVITATION: Final = re.compile(
    rf"PGT-([0-9]{{1,10}})-([0-9]{{1,10}})-([0-9]{{1,10}})-([A-Z2-7]{{{TOKEN_CHARS}}})"
)
"""What an invitation's QR code says: terminal, and token. All of it within a QR code's alphanumeric mode."""


def read_invitation(text: str) -> tuple[types_pb.Terminal, str]:
    """What an invitation says: the terminal and its token. Raises InvalidInput."""
    match = _INVITATION.fullmatch(text.strip().upper())
    ids = [int(part) for part in match.groups()[:3]] if match else [0]
    if match is None or not all(1 <= one <= limits.ID_MAX for one in ids):
        raise InvalidInput(
            "the invitation is not understood; expected PGT-…, as `invite` shows it", field="invitation"
        )
    return types_pb.Terminal(mall_id=ids[0], store_id=ids[1], terminal_id=ids[2]), match[4]


_reason = click.option("--reason", default="", help="Why, for the record.")


@click.group("terminals")
def terminals() -> None:
    """The terminals: who may redeem, with which certificates."""


def _terminal(
    console: Console, mall_id: int | None, store_id: int | None, terminal_id: int | None
) -> types_pb.Terminal:
    settings = console.settings()
    return types_pb.Terminal(
        mall_id=parameters.required(settings, "mall_id", mall_id, "--mall"),
        store_id=parameters.required(settings, "store_id", store_id, "--store"),
        terminal_id=parameters.required(settings, "terminal_id", terminal_id, "--terminal"),
    )


@terminals.command("invite")
@parameters.mall
@parameters.store
@parameters.terminal
@click.option("--name", default="", help="For people, such as 'counter 2'.")
@click.option("--valid-s", type=parameters.WHOLE_32, default=0, help="How long it is good. Default: an hour.")
@click.option("--png", type=click.Path(path_type=Path), help="Write the QR code as PNG.")
@click.option("--svg", type=click.Path(path_type=Path), help="Write the QR code as SVG.")
@click.option("--quiet", is_flag=True, help="Don't draw the QR code on the terminal.")
@_reason
@parameters.request_id
@parameters.actor
@command
def invite(
    console: Console,
    mall_id: int | None,
    store_id: int | None,
    terminal_id: int | None,
    name: str,
    valid_s: int,
    png: Path | None,
    svg: Path | None,
    quiet: bool,
    reason: str,
    request_id: str,
    actor: str,
) -> None:
    """Invite a terminal to enrol: shows a one-time token as QR code, to be scanned or typed at the terminal.

    The token is made here and shown once; the server has its digest only.
    """
    terminal = _terminal(console, mall_id, store_id, terminal_id)
    token = base64.b32encode(secrets.token_bytes(TOKEN_CHARS * 5 // 8)).decode("ascii")
    request = terminal_pb.InviteTerminalRequest(
        terminal=terminal,
        request_id=request_id or new_request_id(),
        token_sha256=digest_of(token.encode()),
        valid_s=valid_s,
        name=name,
        reason=reason,
        actor=actor,
    )
    with console.client(console.settings()) as client:
        response = client.call(client.terminals.InviteTerminal, request)
    text = f"PGT-{terminal.mall_id}-{terminal.store_id}-{terminal.terminal_id}-{token}"
    code = qr.make(text)
    for path, kind in ((png, "png"), (svg, "svg")):
        if path is not None:
            qr.save(code, path, "png" if kind == "png" else "svg")

    def show(rich: RichConsole) -> None:
        rich.print(f"[bold green]INVITED[/]  {text}")
        rich.print(f"  until            {moment(response.entry.invitation_expires_at_ms)}")
        rich.print(f"  request_id       {escape(response.request_id)}")
        if not quiet:
            click.echo(qr.for_terminal(code))

    console.emit({**plain(response), "invitation": text}, show)


@terminals.command("enrol")
@click.argument("invitation")
@click.argument("folder", type=click.Path(path_type=Path))
@command
def enrol(console: Console, invitation: str, folder: Path) -> None:
    """Enrol this terminal with INVITATION: makes a key in FOLDER, and has a certificate made for it.

    The key never leaves the folder. If the answer is lost, the same command again is safe. Then use terminal.pem, terminal-key.pem
    and the server's CA as target_cert_file, target_key_file and target_ca_file.
    """
    terminal, token = read_invitation(invitation)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"the folder {folder} can't be made: {error.strerror}") from None
    if (folder / "terminal.pem").exists():
        raise SetupError(
            f"{folder} holds a certificate already: `pickgate terminals rotate` renews it, or choose another folder"
        )
    key = folder / "terminal-key.pem"
    if not key.exists():
        write_new(key, make_request().key_pem, secret=True)
    request = terminal_pb.EnrolTerminalRequest(
        terminal=terminal,
        token=token,
        csr_pem=request_for(key).decode(),
    )
    with console.client(console.settings()) as client:
        response = client.call(client.terminals.EnrolTerminal, request)
    write_new(folder / "terminal.pem", response.certificate_pem.encode())
    _report(console, "ENROLLED", folder, response.expires_at_ms)


@terminals.command("rotate")
@click.argument("folder", type=click.Path(path_type=Path))
@parameters.mall
@parameters.store
@parameters.terminal
@command
def rotate(
    console: Console, folder: Path, mall_id: int | None, store_id: int | None, terminal_id: int | None
) -> None:
    """Make a new key and certificate for this terminal in FOLDER, with its present one (target_cert_file, target_key_file).

    The one before counts on until the next rotation, and is kept as terminal-old.pem and terminal-old-key.pem.
    """
    made = make_request()
    request = terminal_pb.RotateCertificateRequest(
        terminal=_terminal(console, mall_id, store_id, terminal_id), csr_pem=made.pem.decode()
    )
    with console.client(console.settings()) as client:
        response = client.call(client.terminals.RotateCertificate, request)
    new = {
        "terminal-key.pem": (made.key_pem, True),
        "terminal.pem": (response.certificate_pem.encode(), False),
    }
    for name, (content, secret) in new.items():
        (folder / f"{name}.new").unlink(missing_ok=True)
        write_new(folder / f"{name}.new", content, secret=secret)
    try:
        for name in new:
            if (folder / name).exists():
                os.replace(folder / name, folder / name.replace("terminal", "terminal-old", 1))
            os.replace(folder / f"{name}.new", folder / name)
    except OSError as error:
        raise SetupError(
            f"{folder} can't be written: {error.strerror}; the old certificate counts on"
        ) from None
    _report(console, "ROTATED", folder, response.expires_at_ms)


def _report(console: Console, done: str, folder: Path, expires_at_ms: int) -> None:
    value = {
        "certificate": str(folder / "terminal.pem"),
        "key": str(folder / "terminal-key.pem"),
        "expires_at_ms": expires_at_ms,
    }
    console.emit(
        value,
        lambda rich: rich.print(
            f"[bold green]{done}[/]  {escape(value['certificate'])}\n  until            {moment(expires_at_ms)}"  # type: ignore[arg-type]
        ),
    )


@terminals.command("list")
@click.option("--mall", "mall_id", type=parameters.ID, default=None, help="Of this mall only.")
@click.option("--store", "store_id", type=parameters.ID, default=None, help="Of this store only.")
@command
def list_terminals(console: Console, mall_id: int | None, store_id: int | None) -> None:
    """List the terminals that were invited, suspended or revoked, with when they were last seen."""
    with console.client(console.settings()) as client:

        def fetch(token: str) -> tuple[list[terminal_pb.TerminalEntry], str]:
            request = terminal_pb.ListTerminalsRequest(
                mall_id=mall_id or 0, store_id=store_id or 0, page_token=token
            )
            page = client.call(client.terminals.ListTerminals, request)
            return list(page.entries), page.next_page_token

        found = pages(fetch)

    def show(rich: RichConsole) -> None:
        made = table(
            "Terminals",
            "#mall",
            "#store",
            "#terminal",
            "name",
            "state",
            "certificate until",
            "last seen",
            "reason",
        )
        for one in found:
            made.add_row(
                *map(str, (one.terminal.mall_id, one.terminal.store_id, one.terminal.terminal_id)),
                escape(one.name),
                enum_name(terminal_pb.TerminalState.DESCRIPTOR, one.state).lower(),
                moment(one.certificate_expires_at_ms),
                moment(one.last_seen_ms),
                escape(one.reason),
            )
        rich.print(made)

    console.emit({"entries": [plain(one) for one in found]}, show)


def _changing(name: str, done: str, text: str, request: Any, method: Callable[[Client], Any]) -> None:
    """Add a command that changes a terminal's state."""

    @terminals.command(name, help=text)
    @parameters.mall
    @parameters.store
    @parameters.terminal
    @_reason
    @parameters.request_id
    @parameters.actor
    @command
    def change(
        console: Console,
        mall_id: int | None,
        store_id: int | None,
        terminal_id: int | None,
        reason: str,
        request_id: str,
        actor: str,
    ) -> None:
        asked = request(
            terminal=_terminal(console, mall_id, store_id, terminal_id),
            request_id=request_id or new_request_id(),
            reason=reason,
            actor=actor,
        )
        with console.client(console.settings()) as client:
            response = client.call(method(client), asked)

        def show(rich: RichConsole) -> None:
            one = response.entry.terminal
            rich.print(
                f"[bold green]{done}[/]  terminal {one.terminal_id} of store {one.store_id} of mall {one.mall_id}"
            )
            rich.print(f"  request_id       {escape(response.request_id)}")

        console.emit(plain(response), show)


_changing(
    "suspend",
    "SUSPENDED",
    "Refuse a terminal until it is resumed; in force in every server within five seconds.",
    terminal_pb.SuspendTerminalRequest,
    lambda client: client.terminals.SuspendTerminal,
)
_changing(
    "resume",
    "RESUMED",
    "Let a suspended terminal ask again.",
    terminal_pb.ResumeTerminalRequest,
    lambda client: client.terminals.ResumeTerminal,
)
_changing(
    "revoke",
    "REVOKED",
    "Refuse a terminal and all its certificates for good; only a new invitation brings it back.",
    terminal_pb.RevokeTerminalRequest,
    lambda client: client.terminals.RevokeTerminal,
)
