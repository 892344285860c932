"""Runs Locust's lunch rush against a server of its own or one that is named, and looks at the books of its own."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtests import bounds, checks
from loadtests.checks import Check
from loadtests.stacks import Ours
from loadtests.supply import Supply

HTML_NAME: Final = "rush.html"
LOCUSTFILE: Final = Path(__file__).with_name("locustfile.py")
ROOT: Final = LOCUSTFILE.parents[1]
GRACE_S: Final = 90.0
"""For Locust to start its processes and to write its report."""


class RushFailed(Exception):
    """Locust could not run; the message has what it said."""


@dataclass(frozen=True)
class Rush:
    """What a rush needs to know."""

    target: str
    output: Path
    users: int = bounds.RUSH_USERS
    seconds: float = bounds.RUSH_SECONDS
    processes: int = bounds.RUSH_PROCESSES

    def run(self) -> Check:
        """Run it; its report is HTML_NAME and rush_*.csv in the output folder. Raises RushFailed."""
        self.output.mkdir(parents=True, exist_ok=True)
        stem = self.output.absolute() / "rush"
        command = [
            sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE), "--headless", "--only-summary",
            "--html", str(stem.with_name(HTML_NAME)), "--csv", str(stem), "--host", "http://unused", "--stop-timeout", "10",
            *(["--processes", str(self.processes)] if self.processes > 1 else []),
        ]  # fmt: skip
        environment = {
            **os.environ,
            "LOADTESTS_TARGET": self.target,
            "LOADTESTS_SECONDS": str(self.seconds),
            "LOADTESTS_USERS": str(self.users),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")]),
        }
        log = stem.with_suffix(".log")
        with log.open("w") as said:
            # In a group of its own, since it starts others; in a folder without a locust.conf of somebody else.
            process = subprocess.Popen(
                command, env=environment, cwd=self.output, stdout=said, stderr=said, start_new_session=True
            )
            try:
                status = process.wait(self.seconds + GRACE_S)
            except subprocess.TimeoutExpired:
                raise RushFailed(
                    f"Locust did not end within {self.seconds + GRACE_S:g} s; its log ends:\n{log.read_text()[-2_000:]}"
                ) from None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        text = log.read_text()
        faults = [line.removeprefix("rush: ") for line in text.splitlines() if line.startswith("rush: ")]
        if status not in (0, 1) or bool(status) != bool(faults):
            raise RushFailed(f"Locust ended with status {status}; its log ends:\n{text[-2_000:]}")
        return Check("thresholds of the rush", "; ".join(faults) or "kept", "kept", not faults)

    def rows(self) -> list[list[str]]:
        """Its figures by call, from the CSV file."""
        with (self.output / "rush_stats.csv").open(newline="") as source:
            return [
                [
                    row["Name"], row["Request Count"], row["Failure Count"], f"{float(row['Requests/s']):,.1f}",
                    row["50%"], row["95%"], row["99%"],
                ]
                for row in csv.DictReader(source)
            ]  # fmt: skip


HEADS = ("call", "calls", "failed", "per s", "p50 ms", "p95 ms", "p99 ms")


def measure(rush: Rush) -> tuple[list[list[str]], list[Check]]:
    """Set the target up and run a rush; its rows and checks. Raises RushFailed, supply.SupplyFailed."""
    with Supply(rush.target) as supply:
        supply.furnish()
    kept = rush.run()
    return rush.rows(), [kept]


def measure_own(
    folder: Path, output: Path, users: int, seconds: float, processes: int, *, tcp: bool
) -> tuple[list[list[str]], list[Check]]:
    """The same on a server of its own, whose data lies in `folder`, and whose books are looked at."""
    with Ours(folder, tcp=tcp) as own:
        rows, made = measure(Rush(own.address, output, users, seconds, processes))
        return rows, [*made, checks.books("the rush", own.audit([], None).findings)]
