"""What the commands share: settings, output for people or machines, errors in one line, exit codes.

Exit codes: 0 done · 1 the answer is no (a refusing verdict, or nothing there) · 2 wrong usage, input or set-up ·
3 not decided now (server or store can't be reached, or too busy): the same command with the same --request-id is safe.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Concatenate, Final, NoReturn, ParamSpec, TypeVar

import click
import grpc
from google.protobuf.message import Message
from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from engine.errors import ConfigError, Exhausted, NotFound, PickgateError, Unavailable
from server import config
from server.client import CallFailed, Client
from server.output import OutputFailed, PeopleConsole, json_text, visible

EXIT_OK: Final = 0
EXIT_REFUSED: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNAVAILABLE: Final = 3

_EXIT_OF_STATUS: Final[Mapping[grpc.StatusCode, int]] = {
    grpc.StatusCode.NOT_FOUND: EXIT_REFUSED,
    grpc.StatusCode.INVALID_ARGUMENT: EXIT_USAGE,
    grpc.StatusCode.ALREADY_EXISTS: EXIT_USAGE,
    grpc.StatusCode.ABORTED: EXIT_USAGE,
    grpc.StatusCode.FAILED_PRECONDITION: EXIT_USAGE,
    grpc.StatusCode.OUT_OF_RANGE: EXIT_USAGE,
    grpc.StatusCode.UNIMPLEMENTED: EXIT_USAGE,
    grpc.StatusCode.UNAUTHENTICATED: EXIT_USAGE,
    grpc.StatusCode.PERMISSION_DENIED: EXIT_USAGE,
}

P = ParamSpec("P")
R = TypeVar("R")


class Console:
    """One run of a command: where it reads its settings, how it prints."""

    def __init__(self, *, config_file: Path | None, flags: Mapping[str, object]) -> None:
        self._config_file = config_file
        self._flags = dict(flags)
        self.json = False
        self.repeats = False
        """Whether the command takes --request-id."""
        self.request_id = ""
        """The id under which the command's change can be asked for again; '' before it has one."""

    def settings(self, **flags: object) -> config.Settings:
        """Put the settings together, with this command's own flags. Raises ConfigError."""
        given = {**self._flags, **{key: value for key, value in flags.items() if value is not None}}
        return config.load(given, os.environ, file=self._config_file)

    def client(self, settings: config.Settings) -> Client:
        """Connect to the server that the settings name."""

        def wait(wait_s: float) -> None:
            if sys.stderr.isatty() and not self.json:
                click.echo(f"not decided now, trying again in {wait_s:.1f} s", err=True)
            time.sleep(wait_s)

        def asking(request: Message) -> None:
            if self.repeats:
                self.request_id = self.request_id or getattr(request, "request_id", "")

        return Client(
            settings.server_address,
            credentials=credentials(settings),
            token=token(settings),
            timeout_s=settings.timeout_s,
            sleep=wait,
            asking=asking,
        )

    def emit(self, value: Mapping[str, Any] | Sequence[Any], show: Callable[[RichConsole], None]) -> None:
        """Print a result: `value` as JSON for machines, or what `show` prints for people."""
        try:
            if self.json:
                click.echo(json_text(value, None if isinstance(value, list) else 2))
            else:
                show(people())
        except OutputFailed as error:
            # The last chance to say what was decided, and under which id it can be asked again.
            known = value if isinstance(value, Mapping) else {}
            said = [f"{name} {known[name]}" for name in ("verdict", "uid", "request_id") if known.get(name)]
            raise OutputFailed("; ".join((str(error), *said))) from None

    def fail(self, reason: str, message: str, field: str, exit_code: int, error_id: str = "") -> NoReturn:
        """Print an error, one line to stderr, and end with `exit_code`. What was not decided says how to ask again."""
        again = self.request_id if exit_code == EXIT_UNAVAILABLE else ""
        if self.json:
            error = {"reason": reason, "message": message, "field": field}
            known = {"error_id": error_id, "request_id": again}
            complain("", json_text({"error": error | {name: one for name, one in known.items() if one}}))
        else:
            message += f" (log id {error_id})" if error_id else ""
            complain(reason, message + (f"; ask again with --request-id {again}" if again else ""))
        sys.exit(exit_code)


def credentials(settings: config.Settings) -> grpc.ChannelCredentials | None:
    """Credentials for the server that the settings name; None without TLS. Raises SetupError."""
    if settings.target_ca_file is None and settings.target_cert_file is None:
        return None
    # Here: a command without TLS does not wait for what reads certificates.
    from server.tls import client_credentials

    return client_credentials(settings.target_ca_file, settings.target_cert_file, settings.target_key_file)


def token(settings: config.Settings) -> str:
    """The access token of the settings; '' for none. Raises ConfigError."""
    if settings.token_file is None:
        return ""
    try:
        read = settings.token_file.read_text(encoding="ascii").strip()
    except OSError as error:
        raise ConfigError(
            f"token_file {settings.token_file} can't be read: {error.strerror}", field="token_file"
        ) from None
    except UnicodeDecodeError:
        read = ""
    if not read or len(read.split()) != 1:
        # Never what it holds.
        raise ConfigError(f"token_file {settings.token_file} holds no access token", field="token_file")
    return read


def complain(reason: str, message: str) -> None:
    """Print an error to stderr: one line with its reason, or, without a reason, the message with its lines as they are.

    An stderr that can't be written to changes nothing: the exit code says what there is to say.
    """
    text = f"error {reason}: {' '.join(message.split())}" if reason else message.rstrip("\n")
    with contextlib.suppress(OSError, ValueError):
        click.echo(visible(text, keep="\n"), err=True)


def people(*, soft_wrap: bool = False) -> RichConsole:
    """A console for people on stdout. Wide when it is no terminal: a cut column helps nobody who pipes it."""
    terminal = sys.stdout.isatty()
    return PeopleConsole(
        highlight=False, soft_wrap=soft_wrap or not terminal, width=None if terminal else 200
    )


class _Whole(Table):
    """A table that cuts nothing. What somebody will copy stays in one line as long as the terminal is wide enough for it."""

    def __rich_console__(self, console: RichConsole, options: ConsoleOptions) -> RenderResult:
        """As rich does."""
        needed = 3 * len(self.columns) + 1
        for column in self.columns:
            cells = [cell for cell in (column.header, *column.cells) if isinstance(cell, str)]
            needed += max(map(_width, cells)) if column.no_wrap else _CELLS_MIN
        if needed > options.max_width:
            for column in self.columns:
                column.no_wrap = False
        return super().__rich_console__(console, options)


_CELLS_MIN: Final = 8
"""A column of words is readable down to this."""


def _width(markup: str) -> int:
    return max((cell_len(line) for line in Text.from_markup(markup).plain.splitlines()), default=0)


def table(title: str, *columns: str) -> Table:
    """An empty table for people; columns that begin with '#' hold numbers, with '=' identifiers. Neither are wrapped needlessly."""
    made = _Whole(title=title, title_justify="left")
    for column in columns:
        made.add_column(
            column.lstrip("#="),
            justify="right" if column.startswith("#") else "left",
            no_wrap=column.startswith(("#", "=")),
            overflow="fold",
        )
    return made


def ask_passphrase() -> str:
    """Ask for the passphrase on a terminal; '' when there is none."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return ""
    return str(
        click.prompt("Passphrase of the keyring", hide_input=True, err=True, default="", show_default=False)
    )


def moment(at_ms: int) -> str:
    """Write unix milliseconds for people, in this machine's time zone; '' for 0."""
    if not at_ms:
        return ""
    return datetime.fromtimestamp(at_ms // 1000, UTC).astimezone().isoformat(sep=" ")


_STEP: Final = re.compile(r"(\w+)(?:\[(\d+)\])?")
"""One step of a field's path: `lines[2]` of `lines[2].count`."""


def _in_options(context: click.Context, message: str, field: str) -> str:
    """A message about a field of the contract, with the field as whoever typed the command knows it: by its option.

    As it is where a file was read, whose entries have the contract's fields, or where no option is the field's.
    """
    steps = _STEP.findall(field)
    if not steps or not message.startswith(f"{field} ") or context.params.get("file") is not None:
        return message
    options = {(param.name or "").removesuffix("_ms"): param for param in context.command.params}
    (first, number), leaf = steps[0], steps[-1][0].removesuffix("_ms")
    if first in options and len(steps) > 1:
        shown = f"the {leaf} of {_typed(options[first])} number {int(number or 0) + 1}"
    elif leaf in options:
        number = steps[-1][1]
        shown = _typed(options[leaf]) + (f" number {int(number) + 1}" if number else "")
    else:
        return message
    return shown + message.removeprefix(field)


def _typed(param: click.Parameter) -> str:
    return max(param.opts, key=len) if isinstance(param, click.Option) else param.human_readable_name


def command(function: Callable[Concatenate[Console, P], R]) -> Callable[..., R]:
    """Give a command its --json, and turn the errors it raises into one line and an exit code."""

    def run(context: click.Context, /, *args: Any, as_json: bool, **options: Any) -> R:
        console = context.obj
        assert isinstance(console, Console)
        console.json = console.json or as_json
        console.repeats = any(param.name == "request_id" for param in context.command.params)
        try:
            return function(console, *args, **options)
        except CallFailed as error:
            reason = error.reason or error.code.name
            message = error.message
            if error.code is grpc.StatusCode.UNAVAILABLE and not error.reason:
                message = (
                    f"no answer from the server ({message}); is it running? `pickgate doctor` looks closer"
                )
            console.fail(
                reason,
                _in_options(context, message, error.field),
                error.field,
                _EXIT_OF_STATUS.get(error.code, EXIT_UNAVAILABLE),
                error.error_id,
            )
        except NotFound as error:
            console.fail(error.slug, error.message, error.field, EXIT_REFUSED)
        except PickgateError as error:
            unavailable = isinstance(error, Unavailable | Exhausted)
            console.fail(
                error.slug,
                _in_options(context, error.message, error.field),
                error.field,
                EXIT_UNAVAILABLE if unavailable else EXIT_USAGE,
            )
        except KeyboardInterrupt:
            if not console.request_id:
                raise
            console.fail("ABORTED", "ended before the answer", "", EXIT_UNAVAILABLE)

    functools.update_wrapper(run, function)
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")(
        click.pass_context(run)
    )
