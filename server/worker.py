"""A worker process: serves beside others on addresses that its supervisor reserved (server.workers).

It reads its orders, one line of JSON, from standard input, and says on standard output, in one line of JSON, that it serves or why
it can't. The end of its input means that the supervisor stops, or has gone: then it stops in order.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any, Final

from engine.errors import PickgateError
from server import opening
from server.config import Settings
from server.hardening import keep_memory_private
from server.output import LogFormatter
from server.serve import Server, tune_interpreter
from server.statistics import StatisticsFile
from server.stopping import StopSignal

_log = logging.getLogger(__name__)

_ORDERS_BYTES_MAX: Final = 1 << 20


def main() -> int:
    """Serve until the input ends, or SIGTERM or SIGINT comes; gives the exit status."""
    keep_memory_private()
    orders = json.loads(_first_line())
    settings = Settings.model_validate(orders["settings"])
    _log_to_stderr(settings, orders["number"])
    with StopSignal() as stop:
        threading.Thread(target=_stop_with_input, args=(stop,), name="pickgate-orders", daemon=True).start()
        try:
            with opening.open_deployment(
                settings.store_url, settings, os.environ, ask=lambda: str(orders["passphrase"])
            ) as deployment:
                server = Server(
                    deployment,
                    settings.listen,
                    threads=settings.threads,
                    look=deployment.look,
                    lane=settings.lane == "auto",
                    shares_ports=True,
                    sweeps=orders["number"] == 0,
                    key_rotation_s=settings.key_rotation_h * 3600,
                    certificates=opening.certificates(settings),
                    listen_mtls=settings.listen_mtls,
                    ledger_url=settings.ledger_address,
                    ledger_heads=settings.ledger_heads,
                    gate=opening.gate(settings, deployment),
                    issuing=opening.issuing(settings),
                )
                try:
                    server.start()
                    tune_interpreter()
                    _say({"serving": server.addresses})
                    with _statistics(orders, server):
                        stop.wait()
                finally:
                    server.stop(settings.grace_s)
        except PickgateError as error:
            _say({"error": error.slug, "message": error.message})
            return 2
    return 0


def _statistics(orders: dict[str, Any], server: Server) -> contextlib.AbstractContextManager[object]:
    if not orders["stats_file"]:
        return contextlib.nullcontext()
    return StatisticsFile(
        Path(orders["stats_file"]), lambda: {**server.statistics(), "worker": orders["number"]}
    )


def _first_line() -> bytes:
    """Read up to the first line's end, and nothing after it: unbuffered, so that nobody holds a lock on the input at the end."""
    line = b""
    while not line.endswith(b"\n") and len(line) < _ORDERS_BYTES_MAX:
        more = os.read(sys.stdin.fileno(), 65_536)
        if not more:
            break
        line += more
    return line


def _stop_with_input(stop: StopSignal) -> None:
    while os.read(sys.stdin.fileno(), 4_096):
        pass
    # No signal: one may have come already, to all processes of a unit, and a second would end this one at once.
    stop.ask()


def _log_to_stderr(settings: Settings, number: int) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter(f"%(asctime)s %(levelname)s worker {number} %(name)s: %(message)s"))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)


def _say(said: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the supervisor has gone
        os.write(sys.stdout.fileno(), json.dumps(said).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
