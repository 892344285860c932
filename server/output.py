"""What a command writes: nothing that drives a terminal, and no failure to write that looks like a verdict.

Texts from outside (arguments, files, answers) may hold control characters, which rewrite a screen, or characters that turn the
writing direction round. They are escaped here, once, where people's output is made.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any, Final, TextIO

from rich.console import Console as RichConsole
from rich.text import Text

_UNSAFE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode's categories of what is not seen but acts: controls, formats (bidi), surrogates, unassigned, line separators."""
_NOT_PLAIN: Final = re.compile(r"[^ -~]")


class OutputFailed(Exception):
    """What a command has to say can't be written: a closed pipe, a full disk. The message says why.

    Not an OSError: libraries take a closed pipe for a reader who has seen enough, and end with status 1, which is a refusal
    here.
    """


def visible(text: str, keep: str = "") -> str:
    """Write what is not printable as escapes, but for the characters in `keep`."""
    if text.isprintable():
        return text
    return "".join(
        char
        if char in keep or unicodedata.category(char) not in _UNSAFE
        else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def json_text(value: object, indent: int | None = None) -> str:
    """Write JSON with Chinese as it is, and everything unprintable as escapes."""
    return _NOT_PLAIN.sub(_json_char, json.dumps(value, ensure_ascii=False, indent=indent))


def _json_char(found: re.Match[str]) -> str:
    char = found[0]
    # A line's end stands between JSON's own tokens; within a text it is escaped already.
    return char if char == "\n" or unicodedata.category(char) not in _UNSAFE else json.dumps(char)[1:-1]


class PeopleConsole(RichConsole):
    """A console for people that shows what is not printable instead of doing it."""

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich does, with `text` made visible first; every text that is printed or put in a table passes here."""
        return super().render_str(visible(text, keep="\n"), **options)


class LogFormatter(logging.Formatter):
    """Lines of a log, which people read on terminals too."""

    def format(self, record: logging.LogRecord) -> str:
        """As logging does; lines and indents of tracebacks stay."""
        return visible(super().format(record), keep="\n\t")


def log_to_stderr(level: str) -> None:
    """Write the log of this process to stderr, from `level` (debug, info, warning, error) on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Within the context stdout raises OutputFailed where it can't be written, and escapes what its encoding lacks."""
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")
    before = sys.stdout
    if before is not None and not hasattr(before, "buffer"):
        yield  # somebody's own object: nothing of the system's is behind it
        return
    encoding = before.encoding if before is not None else "utf-8"
    raw: Any = _Guarded(before)  # the published types ask more of it than a TextIOWrapper does
    stream: Any = io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace", write_through=True)
    sys.stdout = stream
    try:
        yield
    finally:
        sys.stdout = before
        stream.detach()


class _Guarded(io.BufferedIOBase):
    """The bytes behind stdout. It never closes them: they are the process'."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._failed = "" if stream is not None else "the standard output is closed"

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    def write(self, data: Any) -> int:
        # Libraries ask whether bytes can be written by writing none.
        left = memoryview(data)
        while left and not self._failed:
            try:
                left = left[self._write(left) :]
            except (OSError, ValueError) as error:
                self._failed = getattr(error, "strerror", None) or str(error)
                self._give_up()
        if left:
            raise OutputFailed(self._failed)
        return len(data)

    def _write(self, data: memoryview) -> int:
        assert self._stream is not None
        written = self._stream.buffer.write(data)
        self._stream.buffer.flush()
        return written or 0  # None: a descriptor that does not block, and would

    def _give_up(self) -> None:
        # What could not be written is still in the buffer, and would fail once more when the process ends.
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
