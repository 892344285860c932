"""Inspect under h2load, nghttp2's generator in C: for calls whose body may repeat, a second opinion from another client.

h2load counts HTTP statuses and knows nothing of gRPC's. So the body is tried before and after by our own client: both must be
answered REDEEMABLE, else its figures would be those of a refusal.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtests import bounds
from loadtests.checks import Check
from loadtests.openloop import closed_loop
from loadtests.stacks import Ours
from loadtests.supply import INSPECT, Supply
from loadtests.wire import connection, frames
from loadtests.wire.pool import Pool
from pickgate.v1 import redemption_service_pb2 as redemption_pb

BINARY: Final = "h2load"
PACKAGE: Final = "nghttp2-client"
BODY_NAME: Final = "inspect.grpc"


@dataclass(frozen=True)
class Recipe:
    """One run of h2load.

    Args:
        address: host:port.
        message: a serialised InspectRequest.
        output: folder for the body file.
        calls: how many.
        connections: how many.
        streams: calls outstanding on each.
    """

    address: str
    message: bytes
    output: Path
    calls: int = bounds.H2LOAD_CALLS
    connections: int = bounds.CONNECTIONS_DEFAULT
    streams: int = bounds.H2LOAD_STREAMS

    def command(self) -> list[str]:
        """What is run; the body file must be written."""
        return [
            BINARY, "-n", str(self.calls), "-c", str(self.connections), "-m", str(self.streams),
            "-H", "content-type: application/grpc", "-H", "te: trailers", "-d", str(self.output / BODY_NAME),
            f"http://{self.address}{INSPECT}",
        ]  # fmt: skip

    def write_body(self) -> Path:
        """Write the message in gRPC's frame."""
        self.output.mkdir(parents=True, exist_ok=True)
        path = self.output / BODY_NAME
        path.write_bytes(frames.message_frame(self.message))
        return path

    def text(self) -> str:
        """The command as one types it."""
        return shlex.join(self.command())

    def run(self) -> tuple[list[list[str]], list[Check]]:
        """Run it; rows for the table, and the checks. Raises FileNotFoundError without h2load (see `installed`)."""
        self.write_body()
        before = self._verdict()
        answer = subprocess.run(self.command(), capture_output=True, text=True, check=False)
        after = self._verdict()
        told = answer.stdout
        done = re.search(r"requests: (\d+) total, .* (\d+) succeeded, (\d+) failed", told)
        rate = re.search(r"finished in .*?, ([\d.]+) req/s", told)
        succeeded = int(done[2]) if done else 0
        rows = [
            ["calls", f"{succeeded:,} of {self.calls:,}"],
            ["rate", f"{float(rate[1]):,.0f}/s" if rate else "?"],
        ]
        rows += [
            [line.split(":")[0].strip(), line.split(":", 1)[1].strip()]
            for line in told.splitlines()
            if line.startswith("time for")
        ]
        return rows, [
            Check("answers of h2load", f"{succeeded:,} of {self.calls:,} with HTTP status 200", "all", succeeded == self.calls),
            Check("the body's verdict, before and after", f"{before}, {after}", "REDEEMABLE", before == after == "REDEEMABLE"),
        ]  # fmt: skip

    def _verdict(self) -> str:
        """What the body is answered."""
        request = connection.request(connection.method(INSPECT), self.message)
        with Pool(self.address, 1) as pool:
            run = closed_loop(pool, [request], 1, read_inspect)
        return next(iter(run.verdicts or run.statuses), "no answer")


@dataclass(frozen=True)
class Measured:
    """What h2load said of a server of its own."""

    command: str
    """As one types it."""
    rows: list[list[str]]
    """For the table; empty if there is no h2load."""
    checks: list[Check]
    skipped: str
    """Why it did not run, and what to do; "" if it did."""


def measure(folder: Path, output: Path, calls: int, connections: int, streams: int, *, seed: int) -> Measured:
    """Run it against a server of its own, whose data lies in `folder`; the body's file stays in `output`.

    Raises supply.SupplyFailed.
    """
    with Ours(folder) as stack, Supply(stack.address, seed=seed) as supply:
        supply.furnish()
        message = supply.inspect_message(supply.codes(1), 0)
        recipe = Recipe(stack.address, message, output, calls, connections, streams)
        if not installed():
            recipe.write_body()
            return Measured(
                recipe.text(), [], [], f"skipped: no {BINARY} on PATH; apt-get install -y {PACKAGE}"
            )
        rows, made = recipe.run()
    return Measured(recipe.text(), rows, made, "")


def installed() -> bool:
    """Whether there is an h2load."""
    return shutil.which(BINARY) is not None


def read_inspect(message: bytes) -> tuple[str, bool]:
    """The verdict of an InspectResponse, and whether it is REDEEMABLE."""
    verdict = redemption_pb.InspectResponse.FromString(message).verdict
    name = redemption_pb.InspectVerdict.Name(verdict).removeprefix("INSPECT_VERDICT_")
    return name, verdict == redemption_pb.INSPECT_VERDICT_REDEEMABLE
