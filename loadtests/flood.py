"""A flood of forged codes from one terminal, as fast as the server takes it, beside the honest calls of others.

    python -m loadtests.flood                            # a minute, beside nothing else
    python -m loadtests.flood --rate 300 --seconds 8

Honest terminals redeem codes of their own at a steady rate, first alone, then while another process floods, then alone again. It
prints their latency and the server's memory, log and store before and after, and how many alerts there were.

Exit status: 0 when every honest call was answered REDEEMED, the flood gave one alert, and p99 beside it at most doubled; 1 when not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from loadtests.openloop import closed_loop
from loadtests.runs import Run
from loadtests.stacks import Ours
from loadtests.subject import Subject
from loadtests.supply import MALL, read_redeem, store_ids
from loadtests.wire import connection
from loadtests.wire.pool import Pool
from pickgate.v1 import redemption_service_pb2 as redemption_pb
from pickgate.v1 import types_pb2 as types_pb

RATE: Final = 300.0
SECONDS: Final = 8.0
WINDOW: Final = 32
CONNECTIONS: Final = 4
FORGED: Final = 500
FORGER: Final = 666
RATIO_MAX: Final = 2.0


def _forged() -> list[connection.Request]:
    method = connection.method("/pickgate.v1.RedemptionService/Redeem")
    at = types_pb.Terminal(mall_id=MALL, store_id=store_ids()[0], terminal_id=FORGER)
    return [
        connection.request(
            method,
            redemption_pb.RedeemRequest(
                terminal=at, request_id=str(uuid.uuid4()), code="PG" + f"{n:076d}"
            ).SerializeToString(),
        )
        for n in range(FORGED)
    ]


def flood(target: str, seconds: float) -> dict[str, Any]:
    """Send forged codes for some seconds; gives what came back."""
    # The same ones again and again: a forger's are no better.
    requests = _forged() * 2_000
    with Pool(target, CONNECTIONS) as pool:
        run = closed_loop(pool, requests, WINDOW, read_redeem, seconds=seconds)
    return {
        "per_s": round(run.answered / max(run.sending_s, 1e-9)),
        "statuses": dict(run.statuses),
        "verdicts": dict(run.verdicts),
        "without_advice": run.shed_without_advice,
    }


def _line(name: str, run: Run) -> str:
    at = run.percentiles_ms()
    figures = ", ".join(f"{q} {at.get(q, float('nan')):.1f} ms" for q in ("p50", "p99"))
    return f"{name:24} {run.good} of {run.sent} redeemed, {figures} {run.own_limit()}"


def measure(rate: float, seconds: float) -> int:
    """Measure, report, judge."""
    with (
        tempfile.TemporaryDirectory(prefix="pg-") as folder,
        Ours(Path(folder)) as stack,
        Subject(stack) as subject,
    ):
        subject.open(rate, 2.0)  # warm
        before = subject.open(rate, seconds)
        used = stack.usage()
        log = stack.log_path
        log_bytes = log.stat().st_size
        # Codes are made before, so that the flood is beside the calls alone.
        subject.stock_up(rate * seconds * 1.5)
        flooding = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "loadtests.flood",
                "--flood",
                stack.address,
                "--seconds",
                str(seconds + 2),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        time.sleep(1.0)  # it has begun
        beside = subject.open(rate, seconds)
        told, _ = flooding.communicate(timeout=60)
        after = subject.open(rate, seconds)
        ended = stack.usage()
        log_text = log.read_text(errors="replace")
        throttle = stack.statistics().get("throttle", {})
    flooded = json.loads(told)
    alerts = log_text.count("ALERT")
    ratio = beside.percentiles_ms().get("p99", float("inf")) / before.percentiles_ms().get(
        "p99", float("nan")
    )
    print(_line("alone", before), _line("beside the flood", beside), _line("alone again", after), sep="\n")
    print(f"p99 beside it is {ratio:.2f} times that alone (at most {RATIO_MAX:g})")
    print(f"the flood: {flooded['per_s']} a second, {flooded['statuses']}, {flooded['verdicts']}")
    print(f"memory of server and store: {used.rss_bytes >> 20} MiB before, {ended.rss_bytes >> 20} MiB after")
    print(f"log: {log_bytes} bytes before, {len(log_text)} after; {alerts} alert; {throttle}")
    honest = all(run.good == run.sent for run in (before, beside, after))
    return int(not (honest and alerts == 1 and ratio <= RATIO_MAX))


def main(arguments: Sequence[str]) -> int:
    """Measure and judge."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.flood")
    parser.add_argument(
        "--rate", type=float, default=RATE, help="honest redemptions a second (default: %(default)g)"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each part (default: %(default)g)")
    parser.add_argument("--flood", metavar="TARGET", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.flood:
        print(json.dumps(flood(given.flood, given.seconds)))
        return 0
    return measure(given.rate, given.seconds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
