"""Figures of the hot lane for whoever measures it: one line of JSON a second, appended to a file."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from server import bounds

_log = logging.getLogger(__name__)


class StatisticsFile:
    """Appends what `read` gives each second to the file at `path`, and once at the end. Use it as a context manager.

    A file that can't be written costs its lines and one line in the log, never the serving.
    """

    def __init__(self, path: Path, read: Callable[[], Mapping[str, Any]]) -> None:
        self._path = path
        self._read = read
        self._stopped = threading.Event()
        self._told = False
        self._thread = threading.Thread(target=self._run, name="pickgate-statistics", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(bounds.STATISTICS_S):
            self._write()
        self._write()

    def _write(self) -> None:
        try:
            with self._path.open("a", encoding="ascii") as file:
                file.write(json.dumps(self._read()) + "\n")
        except OSError as error:
            if not self._told:
                _log.warning("statistics can't be written to %s: %s", self._path, error.strerror)
            self._told = True
