"""The command `pickgate`: see `pickgate --help`, and `server.console` for exit codes."""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

# Before grpc is imported: its own diagnostics would stand between a command's lines.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import click

from server import bounds
from server.console import EXIT_OK, EXIT_UNAVAILABLE, EXIT_USAGE, Console, complain
from server.output import OutputFailed, guarded, visible

_log = logging.getLogger(__name__)


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
    "certs": "server.commands.certs:certs",
    "terminals": "server.commands.terminals:terminals",
    "sm": "server.commands.sm:sm",
    "ledger": "server.commands.ledger:ledger",
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
    "settlements": "server.commands.feeds:settlements",
    "events": "server.commands.feeds:events",
    "reconciliations": "server.commands.books:reconciliations",
    "audit": "server.commands.books:audit",
    "chain": "server.commands.books:chain",
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
            complain("SETUP", f"{error}; `pickgate doctor` looks closer")
            sys.exit(EXIT_USAGE)
        return command

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command line. Status 1 is a refusal: nothing that failed may end with it (click's own way does)."""
        given = args[0] if args else options.get("args")
        arguments = list(sys.argv[1:] if given is None else given)
        try:
            with guarded():
                _check_utf8(arguments)
                status = super().main(arguments, prog_name=options.get("prog_name"), standalone_mode=False)
        except click.ClickException as error:
            shown = io.StringIO()
            error.show(file=shown)
            complain("", shown.getvalue())
            status = EXIT_USAGE
        except (click.Abort, KeyboardInterrupt):
            complain("ABORTED", f"ended before the answer; {_SAFE}")
            status = EXIT_UNAVAILABLE
        except OutputFailed as error:
            complain(
                "OUTPUT", f"the answer can't be written: {error}; what was asked may have happened: {_SAFE}"
            )
            status = EXIT_UNAVAILABLE
        except Exception as error:
            if logging.getLogger().handlers:  # a server's log
                _log.exception("the command failed")
            text = str(error)[: bounds.ERROR_CHARS_MAX]
            complain(
                "INTERNAL",
                f"{type(error).__name__}: {text}; this is a defect of pickgate. What was asked may have happened: {_SAFE}",
            )
            status = EXIT_UNAVAILABLE
        sys.exit(status if isinstance(status, int) else EXIT_OK)


_SAFE: Final = "the same command with the same --request-id is safe"


def _check_utf8(arguments: Sequence[str]) -> None:
    for number, argument in enumerate(arguments, start=1):
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError:
            raise click.UsageError(f"argument {number}, {visible(argument)}, is not UTF-8") from None


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
