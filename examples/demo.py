"""The demo: pickup codes are issued, shown, scanned and redeemed on real parts, by all the rules, and every way to be refused.

`make demo` runs it. It starts `pickgate serve` with an embedded store on a fresh folder (every answer fsynced), loads the
files beside this one over gRPC, issues a code for each order, draws the QR codes as PNG, reads them back with an
independent decoder (zxing-cpp), and redeems over gRPC what the decoder read. Each call has its expected verdict. The exit
status is 0 only if every verdict is the expected one, every QR code read back as what was drawn, no refusal moved any
stock, in the end the stock adds up, and so do the books (act_three.py). It takes a little over a minute, because a screenshot
has to grow really old; the second act (act_two.py) is played meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

# Before grpc is imported: its own diagnostics would stand between the lines of the table.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
# A script has its own folder on the path. What it plays is the code beside it, whatever else is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "proto"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.markup import escape

from engine.state import launch
from examples import act_one, act_three, act_two
from examples.session import FOLDER, Session
from pickgate.v1 import types_pb2 as types_pb
from server.client import CallFailed, Client

OUT_DEFAULT: Final = FOLDER.parent / "build" / "demo"
DATA: Final = act_three.DATA
START_S_MAX: Final = 60.0
STOP_S_MAX: Final = 30.0
WIDTH: Final = 148
"""Columns of the table where the output is no terminal."""

KEPT_VARIABLES: Final = {"PICKGATE_PURE", "PICKGATE_STORE_BINARY"}
"""Which kernels and which store binary to use: not settings of a deployment."""


def play(session: Session, folder: Path) -> None:
    """All that happens, in order; the server's data is in `folder`."""
    session.load()
    waiting = act_one.begin(session)
    until_ms = max(waiting.until_ms, act_two.begin(session))
    act_one.play(session)
    act_two.play(session)
    session.wait_until(until_ms + 1_000, "a screenshot grows old, and two codes run out")
    act_one.a_minute_later(session, waiting)
    act_two.a_minute_later(session)
    session.flush("A minute later")
    session.add_up()
    act_three.play(session, folder)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Run `pickgate serve` with an embedded store on a fresh folder; gives its address.

    It ends with this process, whatever becomes of it: `engine.state.launch` has the kernel see to that.
    """
    command = [
        sys.executable, "-m", "server.cli", "--json", "serve",
        "--data-dir", str(folder / DATA), "--listen", "127.0.0.1:0", "--durability", "fsync", "--log-level", "warning",
    ]  # fmt: skip
    # Settings of the machine's own deployment must not reach this one; and it runs the code that this process runs.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PICKGATE_") or name in KEPT_VARIABLES
    }
    roots = [str(Path(file).resolve().parents[2]) for file in (launch.__file__, types_pb.__file__)]
    environment["PYTHONPATH"] = os.pathsep.join([*roots, environment.get("PYTHONPATH", "")]).rstrip(
        os.pathsep
    )
    log_path = folder / "serve.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), "--", *command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            process_group=0,  # Ctrl-C is for this process, which then stops the server in order
        )
    try:
        yield first_address(process, log_path)
    finally:
        process.terminate()
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def first_address(process: subprocess.Popen[bytes], log_path: Path) -> str:
    """Wait for the line that says where the server listens."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        ready = selector.select(START_S_MAX)
    line = process.stdout.readline() if ready else b""
    if not line:
        told = log_path.read_text(encoding="utf-8", errors="replace").strip()
        raise SystemExit(f"pickgate serve did not start: {told or 'it said nothing'}")
    return str(json.loads(line)["serving"][0])


def wait_healthy(client: Client) -> None:
    """Wait until the health service says SERVING."""
    deadline_s = time.monotonic() + START_S_MAX
    while not client.healthy():
        if time.monotonic() > deadline_s:
            raise SystemExit("the server does not become healthy")
        time.sleep(0.05)


def end(number: int, frame: FrameType | None) -> None:
    """Turn a signal into the exception that unwinds everything."""
    raise KeyboardInterrupt


def run(out: Path, console: Console) -> int:
    """Run the demo; gives its exit status."""
    started_s = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.png"):
        old.unlink()
    with tempfile.TemporaryDirectory(prefix="pickgate-demo-") as folder, serving(Path(folder)) as address:
        console.print(
            f"pickgate serve answers on {address}, its store on a fresh folder, every answer fsynced\n"
        )
        with Client(address) as client:
            wait_healthy(client)
            session = Session(client, address, out, console)
            try:
                play(session, Path(folder))
            except CallFailed:
                # What went wrong before says why.
                tell_problems(session, console)
                raise
    console.print("What the clerk reads")
    for verdict, zh, en in session.sentences:
        console.print(f"  {verdict:<18} {escape(zh)}\n  {'':<18} {escape(en)}", soft_wrap=True)
    console.print(
        f"\n{session.scans} scans, median answer {statistics.median(session.answers_ms):.1f} ms; "
        f"{session.pictures} QR codes drawn in {shown(out)} and read back; {time.monotonic() - started_s:.0f} s in all"
    )
    if session.problems:
        tell_problems(session, console)
        return 1
    console.print(
        "[bold green]every verdict as expected, every QR code read back, the stock and the books add up[/]"
    )
    return 0


def tell_problems(session: Session, console: Console) -> None:
    """Print what was not as expected."""
    console.print(f"\n[bold red]{len(session.problems)} things are not as expected[/]")
    for problem in session.problems:
        console.print(f"  {escape(problem)}", soft_wrap=True)


def shown(path: Path) -> Path:
    """The path as a person in the current folder would write it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Issue, show, scan and redeem pickup codes on real parts.")
    parser.add_argument(
        "--out", type=Path, default=OUT_DEFAULT, help="folder for the PNGs (default: build/demo)"
    )
    out = parser.parse_args(arguments).out.absolute()
    terminal = sys.stdout.isatty()
    console = Console(highlight=False, width=None if terminal else WIDTH)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    try:
        return run(out, console)
    except KeyboardInterrupt:
        console.print("\nstopped; the server and its store are ended")
        return 130
    except CallFailed as error:
        console.print(
            f"[bold red]a call failed[/]: {error.reason or error.code.name}: {escape(error.message)}"
        )
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
