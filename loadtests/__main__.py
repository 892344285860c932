"""`python -m loadtests`: the lot, or one of its parts. Exit status: 0 all well, 1 something missed, 2 wrong usage or set-up."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from loadtests import behaviours, bounds, checks, h2load, identity, idle, lot, machine, stacks, steps
from loadtests import hostile as hostiles
from loadtests import lag as lags
from loadtests import overload as overloads
from loadtests import peak as peaks
from loadtests import rush as rushes
from loadtests import soak as soaks
from loadtests.checks import Check
from loadtests.peak import Peak
from loadtests.stacks import Comparison, Ours, Recorded, StackFailed
from loadtests.subject import Subject
from loadtests.supply import SupplyFailed
from loadtests.wire.pool import NotReachable

OUTPUT_DEFAULT: Final = Path("build/load")
_STACKS: Final[dict[str, list[type[stacks.Stack]]]] = {
    "ours": [Ours],
    "comparison": [Comparison],
    "both": [Ours, Comparison],
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit status."""
    asked = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _end)
    console = Console(width=None if sys.stdout.isatty() else 170)
    try:
        with _folder(asked.folder) as folder:
            status: int = asked.command(console, asked, folder)
    except (
        machine.NotADisk,
        StackFailed,
        SupplyFailed,
        NotReachable,
        idle.TooFewFiles,
        rushes.RushFailed,
        ValueError,
    ) as error:
        print(f"loadtests: {error}", file=sys.stderr)
        return 2
    return status


def _end(number: int, frame: object) -> None:
    """Leave in order: the services and stores that were started must end too."""
    raise SystemExit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests", description="Load for pickgate, and for what it is compared with."
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="folder on a disk for data; default: a new one in build/, removed afterwards",
    )
    parser.add_argument(
        "--output", type=Path, default=OUTPUT_DEFAULT, help="folder of reports; default: build/load"
    )
    parser.add_argument("--socket", choices=("tcp", "unix"), default="tcp", help="how services are reached")
    parser.add_argument("--connections", type=_whole, default=bounds.CONNECTIONS_DEFAULT)
    parser.add_argument("--seed", type=int, default=1)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(
        name: str, command: Callable[..., int], text: str, stack: str | None = "ours"
    ) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
        made.set_defaults(command=command)
        if stack is not None:
            made.add_argument("--stack", choices=tuple(_STACKS), default=stack)
        made.add_argument(
            "--round-s", type=_positive, default=bounds.PEAK_ROUND_S, help="of each round of the peak"
        )
        made.add_argument("--rounds", type=_whole, default=bounds.PEAK_ROUNDS)
        return made

    made = add(
        "lot",
        _lot,
        "Everything that make load runs: Locust, h2load, both stacks' peak and steps, books and report.",
        None,
    )
    made.add_argument("--step-s", type=_positive, default=bounds.STEP_S)
    made.add_argument(
        "--percents", type=_percents, default=bounds.STEPS_PERCENT, help="shares of the peak, as 10,50,80"
    )
    made.add_argument(
        "--named-rate", type=_positive, default=bounds.NAMED_RATE_PER_S, help="a rate to report besides"
    )
    made.add_argument("--rush-s", type=_positive, default=bounds.LOT_RUSH_SECONDS, help="of Locust's rush")
    add("peak", _peak, "The most that a stack can do.")
    made = add("steps", _steps, "Open loop at rising shares of the peak.")
    made.add_argument("--step-s", type=_positive, default=bounds.STEP_S)
    made.add_argument(
        "--percents", type=_percents, default=bounds.STEPS_PERCENT, help="shares of the peak, as 10,50,80"
    )
    made = add("overload", _overload, "Three times the peak offered.")
    made.add_argument("--seconds", type=_positive, default=60.0)
    made = add("soak", _soak, "Half the peak for minutes.")
    made.add_argument("--minutes", type=_positive, default=10.0)
    made = add("idle", _idle, "A working load beside idle terminals.")
    made.add_argument("--terminals", type=_whole, default=bounds.IDLE_TERMINALS)

    text = "Callers who mean ill or are broken, one kind after the other, beside honest ones."
    made = commands.add_parser("hostile", help=text, description=text)
    made.set_defaults(command=_hostile)
    made.add_argument(
        "--rate", type=_positive, default=bounds.HOSTILE_RATE_PER_S, help="honest redemptions a second"
    )
    made.add_argument("--seconds", type=_positive, default=bounds.HOSTILE_SECONDS, help="of each behaviour")
    made.add_argument("--only", choices=tuple(behaviours.ALL), action="append", help="one behaviour alone")

    text = "Redemptions at a set rate with the ledger written beside them: how far it is behind."
    made = commands.add_parser("lag", help=text, description=text)
    made.set_defaults(command=_lag)
    made.add_argument("--rate", type=_positive, default=bounds.LAG_RATE_PER_S)
    made.add_argument("--seconds", type=_positive, default=bounds.LAG_SECONDS)

    text = (
        "What knowing the callers costs: open, with access tokens, and with TLS and terminals' certificates."
    )
    made = commands.add_parser("identity", help=text, description=text)
    made.set_defaults(command=_identity)
    made.add_argument("--rounds", type=_whole, default=bounds.IDENTITY_ROUNDS)

    text = "Locust: terminals, a mall and wallets at lunch."
    made = commands.add_parser("rush", help=text, description=text)
    made.set_defaults(command=_rush)
    made.add_argument(
        "--target",
        help="host:port or unix:/path of a server for tests, whose mall 1 is set up for it; default: one of its own",
    )
    made.add_argument("--users", type=_whole, default=bounds.RUSH_USERS)
    made.add_argument("--seconds", type=_positive, default=bounds.RUSH_SECONDS)
    made.add_argument("--processes", type=_whole, default=bounds.RUSH_PROCESSES)

    text = "Inspect under h2load, if it is installed; prints the command."
    made = commands.add_parser("h2load", help=text, description=text)
    made.set_defaults(command=_h2load)
    made.add_argument("--calls", type=_whole, default=bounds.H2LOAD_CALLS)
    made.add_argument("--streams", type=_whole, default=bounds.H2LOAD_STREAMS)
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not more than 0")
    return value


def _whole(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def _percents(text: str) -> list[float]:
    return [_positive(part) for part in text.split(",")]


# --- commands ---------------------------------------------------------------------------------------------------------
def _lot(console: Console, asked: argparse.Namespace, folder: Path) -> int:
    plan = lot.Plan(
        round_s=asked.round_s,
        rounds=asked.rounds,
        step_s=asked.step_s,
        percents=asked.percents,
        connections=asked.connections,
        tcp=asked.socket == "tcp",
        seed=asked.seed,
        named_rate_per_s=asked.named_rate,
        rush_s=asked.rush_s,
    )
    return lot.run(console, folder, asked.output, plan)


def _peak(console: Console, asked: argparse.Namespace, folder: Path) -> int:
    with _subjects(asked, folder) as subjects:
        found = _find_peaks(console, asked, subjects)
        made = _books(subjects)
    return _finish(console, asked, "peak", {peak.name: peak.as_json() for peak in found}, made)


def _steps(console: Console, asked: argparse.Namespace, folder: Path) -> int:
    with _subjects(asked, folder) as subjects:
        found = _find_peaks(console, asked, subjects)
        taken = steps.climb(subjects, found, percents=asked.percents, seconds=asked.step_s)
        checks.show(console, "Open loop", steps.HEADS, [step.row() for step in taken])
        made = _books(subjects)
    lost = sum(step.run.sent - step.run.good for step in taken)
    made.insert(0, Check("calls that were not answered REDEEMED", f"{lost:,}", "0", lost == 0))
    value = [{"stack": step.name, **step.as_json()} for step in taken]
    return _finish(console, asked, "steps", {"steps": value}, made)


def _overload(console: Console, asked: argparse.Namespace, folder: Path) -> int:
    def measure(subject: Subject, peak: Peak) -> tuple[Any, list[Check]]:
        found = overloads.overload(subject, peak.per_s, peak.window, asked.seconds)
        checks.show(console, f"Overload of {subject.name}", ("", ""), found.rows())
        return found.as_json(), found.checks()

    return _each(console, asked, folder, "overload", measure)


def _soak(console: Console, asked: argparse.Namespace, folder: Path) -> int:
    def measure(subject: Subject, peak: Peak) -> tuple[Any, list[Check]]:
        found = soaks.soak(subject, peak.per_s, asked.minutes)
        checks.show(console, f"{subject.name} at {found.rate_per_s:,.0f}/s", soaks.HEADS, found.rows())
        return found.as_json(), found.checks()

    return _each(console, asked, folder, "soak", measure)


def _idle(console: Console, asked: argparse.Namespace, folder: Path) -> int:
    def measure(subject: Subject, peak: Peak) -> tuple[Any, list[Check]]:
        found = idle.idle(subject, peak.per_s, peak.window, terminals=asked.terminals)
        checks.show(console, f"Idle terminals, {subject.name}", idle.HEADS, found.rows())
        return found.as_json(), found.checks()

    return _each(console, asked, folder, "idle", measure)


def _lag(console: Console, asked: argparse.Namespace, folder: Path) -> int:
    with (
        Recorded(folder / Recorded.name, tcp=asked.socket == "tcp") as stack,
        Subject(stack, seed=asked.seed, connections=asked.connections) as subject,
    ):
        found = lags.lag(subject, stack, asked.rate, asked.seconds)
    checks.show(console, "The ledger beside redemptions", ("", ""), found.rows())
    return _finish(console, asked, "lag", found.as_json(), found.checks())


def _hostile(console: Console, asked: argparse.Namespace, folder: Path) -> int:
    with (
        Ours(folder / Ours.name, tcp=asked.socket == "tcp") as stack,
        Subject(stack, seed=asked.seed, connections=asked.connections) as subject,
    ):
        found = hostiles.hostile(subject, asked.rate, asked.seconds, asked.only or tuple(behaviours.ALL))
        checks.show(console, f"{asked.rate:g} honest redemptions a second", hostiles.HEADS, found.rows())
        made = [*found.checks(), *_books([subject])]
    return _finish(console, asked, "hostile", found.as_json(), made)


def _identity(console: Console, asked: argparse.Namespace, folder: Path) -> int:
    found = identity.measure(folder, seed=asked.seed, rounds=asked.rounds)
    checks.show(console, "What knowing the callers costs", identity.HEADS, found.rows())
    return _finish(console, asked, "identity", found.as_json(), found.checks())


def _rush(console: Console, asked: argparse.Namespace, folder: Path) -> int:
    how = asked.output, asked.users, asked.seconds, asked.processes
    if asked.target is None:
        rows, made = rushes.measure_own(folder / Ours.name, *how, tcp=asked.socket == "tcp")
    else:
        rows, made = rushes.measure(rushes.Rush(asked.target, *how))
    checks.show(console, f"Rush of {asked.users} users, {asked.seconds:g} s", rushes.HEADS, rows)
    console.print(f"report: {asked.output / rushes.HTML_NAME}\n")
    return _finish(console, asked, "rush", {}, made)


def _h2load(console: Console, asked: argparse.Namespace, folder: Path) -> int:
    found = h2load.measure(
        folder / Ours.name, asked.output, asked.calls, asked.connections, asked.streams, seed=asked.seed
    )
    console.print(f"{found.command}\n", soft_wrap=True)
    if found.skipped:
        console.print(found.skipped)
        return 0
    checks.show(console, "Inspect under h2load", ("", ""), found.rows)
    return _finish(console, asked, "h2load", {"rows": found.rows}, found.checks)


# --- what they share --------------------------------------------------------------------------------------------------
def _each(
    console: Console,
    asked: argparse.Namespace,
    folder: Path,
    name: str,
    measure: Callable[[Subject, Peak], tuple[Any, list[Check]]],
) -> int:
    """Find each stack's peak, measure, and look at the books."""
    values: dict[str, Any] = {}
    made: list[Check] = []
    with _subjects(asked, folder) as subjects:
        for subject, peak in zip(subjects, _find_peaks(console, asked, subjects), strict=True):
            values[subject.name], found = measure(subject, peak)
            made += found
        made += _books(subjects)
    return _finish(console, asked, name, values, made)


@contextmanager
def _folder(named: Path | None) -> Iterator[Path]:
    """The folder of the data: the one that was named, else one that is removed afterwards."""
    if named is not None:
        named.mkdir(parents=True, exist_ok=True)
        if any(named.iterdir()):
            raise ValueError(f"{named} is not empty: name a new folder for the data of this run")
        machine.filesystem(named)
        yield named
        return
    parent = Path("build")
    parent.mkdir(exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix="load-data-", dir=parent))
    try:
        machine.filesystem(made)
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def _subjects(asked: argparse.Namespace, folder: Path) -> Iterator[list[Subject]]:
    with ExitStack() as stack:
        running = [
            stack.enter_context(kind(folder / kind.name, tcp=asked.socket == "tcp"))
            for kind in _STACKS[asked.stack]
        ]
        yield [
            stack.enter_context(Subject(each, seed=asked.seed, connections=asked.connections))
            for each in running
        ]


def _find_peaks(console: Console, asked: argparse.Namespace, subjects: Sequence[Subject]) -> list[Peak]:
    found = peaks.find_peaks(subjects, round_s=asked.round_s, rounds=asked.rounds)
    checks.show(console, "Peak, closed loop", peaks.HEADS, [peak.row() for peak in found])
    return found


def _books(subjects: Sequence[Subject]) -> list[Check]:
    return [checks.books(subject.name, subject.audit().findings) for subject in subjects]


def _finish(
    console: Console, asked: argparse.Namespace, name: str, value: dict[str, Any], made: Sequence[Check]
) -> int:
    asked.output.mkdir(parents=True, exist_ok=True)
    value["checks"] = [check.as_json() for check in made]
    (asked.output / f"{name}.json").write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    return checks.conclude(console, made)


if __name__ == "__main__":
    sys.exit(main())
