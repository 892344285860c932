"""The command `pickgate`: see `pickgate --help`, and `server.console` for exit codes."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

# Before grpc is imported: its own diagnostics would stand between a command's lines.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import click

from server.console import EXIT_USAGE, Console


def _version() -> str:
    try:
        return version("pickgate")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown (not installed)"


_COMMANDS: Final = {
    "serve": "server.commands.serving:serve",
    "init": "server.commands.serving:init",
    "doctor": "server.commands.doctor:doctor",
    "keys": "server.commands.keys:keys",
    "malls": "server.commands.places:malls",
    "stores": "server.commands.places:stores",
    "catalogue": "server.commands.places:catalogue",
    "policies": "server.commands.rules:policies",
    "providers": "server.commands.rules:providers",
    "stock": "server.commands.stock:stock",
    "issue": "server.commands.codes:issue",
    "hold": "server.commands.codes:hold",
    "confirm": "server.commands.codes:confirm",
    "extend": "server.commands.codes:extend",
    "render": "server.commands.codes:render",
    "void": "server.commands.codes:void",
    "get": "server.commands.codes:get",
    "inspect": "server.commands.redemption:inspect",
    "redeem": "server.commands.redemption:redeem",
    "reverse": "server.commands.redemption:reverse",
    "reviews": "server.commands.reviews:reviews",
}
"""Each command and where it is, in the order of the help."""


class _Commands(click.Group):
    """Loads a command when it is called: a clerk's `redeem` does not wait for what only `serve` needs."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[name].partition(":")
        try:
            command: click.Command = getattr(importlib.import_module(module), attribute)
        except ImportError as error:
            # A kernel that is not built, or a dependency that is missing: the message says which.
            click.echo(
                f"error SETUP: {' '.join(str(error).split())}; `pickgate doctor` looks closer", err=True
            )
            sys.exit(EXIT_USAGE)
        return command


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    # \b keeps click from filling the lines up.
    epilog="\b\nExit codes: 0 done"
    "\n            1 the answer is no: a refusal, or nothing there"
    "\n            2 wrong usage, input or set-up"
    "\n            3 not decided now: the same command with the same --request-id is safe",
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="Configuration file (TOML). Default: PICKGATE_CONFIG, else ./pickgate.toml if there.",
)
@click.option("--target", metavar="ADDRESS", help="The server to ask: host:port or unix:/path.")
@click.option("--timeout-s", type=float, help="How long one try of a call may take.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
@click.version_option(_version(), prog_name="pickgate")
@click.pass_context
def main(
    context: click.Context,
    config_file: Path | None,
    target: str | None,
    timeout_s: float | None,
    as_json: bool,
) -> None:
    """Issue, check and redeem pickup codes (提货码), once and for all."""
    context.obj = Console(config_file=config_file, flags={"target": target, "timeout_s": timeout_s})
    context.obj.json = as_json


if __name__ == "__main__":
    main(prog_name="pickgate")
