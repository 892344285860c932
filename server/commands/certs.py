"""`pickgate certs`: certificates for trials."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import click
from rich.console import Console as RichConsole

from engine.errors import InvalidInput, SetupError
from server.authority import Authority, TerminalId, write_new
from server.console import Console, command

_TRIAL_LIFE = timedelta(days=90)


@click.group("certs")
def certs() -> None:
    """Certificates for TLS."""


@certs.command("dev")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--host",
    "hosts",
    multiple=True,
    help="Name or address of the server; repeatable. Default: this machine's own.",
)
@click.option(
    "--terminal",
    "terminals",
    multiple=True,
    metavar="MALL/STORE/TERMINAL",
    help="A terminal that gets a certificate; repeatable.",
)
@command
def dev(console: Console, folder: Path, hosts: tuple[str, ...], terminals: tuple[str, ...]) -> None:
    """Make a CA, a server's certificate, and those of some terminals in FOLDER, for development and trials.

    A CA that is there already is used again. Its key lies in the folder: whoever copies that can be any terminal.
    """
    trust_domain = console.settings().trust_domain
    wanted = [_terminal(text) for text in terminals]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"the folder {folder} can't be made: {error.strerror}") from None
    made: list[Path] = []

    def write(name: str, content: bytes, *, secret: bool = False) -> None:
        write_new(folder / name, content, secret=secret)
        made.append(folder / name)

    if (folder / "ca.pem").exists():
        authority = Authority.read(folder / "ca.pem", folder / "ca-key.pem")
    else:
        authority = Authority.make("pickgate development CA")
        write("ca-key.pem", authority.key_pem, secret=True)
        write("ca.pem", authority.pem)
    if hosts or not (folder / "server.pem").exists():
        pair = authority.server(hosts or ("localhost", "127.0.0.1", "::1"), life=_TRIAL_LIFE)
        write("server-key.pem", pair.key, secret=True)
        write("server.pem", pair.certificate)
    for terminal in wanted:
        pair = authority.terminal(terminal, trust_domain, life=_TRIAL_LIFE)
        name = f"terminal-{terminal.mall_id}-{terminal.store_id}-{terminal.terminal_id}"
        write(f"{name}-key.pem", pair.key, secret=True)
        write(f"{name}.pem", pair.certificate)

    def show(rich: RichConsole) -> None:
        for path in made:
            rich.print(f"[bold green]MADE[/]  {path}")
        rich.print("  for trials only: the CA's key lies beside what it signs")

    console.emit({"made": [str(path) for path in made]}, show)


def _terminal(text: str) -> TerminalId:
    found = TerminalId.parse(
        "spiffe://x/mall/{}/store/{}/terminal/{}".format(
            *(text.split("/") if text.count("/") == 2 else ("", "", ""))
        ),
        "x",
    )
    if found is None:
        raise InvalidInput(
            f"--terminal {text!r:.60} is not understood; expected MALL/STORE/TERMINAL, such as 1/2001/11",
            field="terminal",
        )
    return found
