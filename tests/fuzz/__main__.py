"""Fuzz every target in turn, led by coverage: `make fuzz`, or `python -m tests.fuzz [--seconds S] [--keep] [TARGET…]`.

Each target gets its share of the time in a process of its own. It begins with its seeds, the corpus of the repository and what
earlier runs left under build/fuzz. An input that breaks a promise is saved as build/fuzz/findings/TARGET-…, and the command ends
with status 1. With --keep, inputs that reach something that the seeds do not are added to the corpus of the repository.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from tests.fuzz.targets import TARGETS, Target

SECONDS_DEFAULT: Final = 300
CORPUS: Final = Path(__file__).parent / "corpus"
WORK: Final = Path("build/fuzz")
FINDINGS: Final = WORK / "findings"
KEPT_MAX: Final = 40
"""Inputs of one target kept in the repository."""
INPUT_S_MAX: Final = 20
"""An input that takes longer is a finding."""
MEMORY_MB_MAX: Final = 2_048


def run(name: str, seconds: int) -> tuple[int, str]:
    """Fuzz one target; gives its exit status and what libFuzzer printed."""
    work = WORK / name
    work.mkdir(parents=True, exist_ok=True)
    FINDINGS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as seeds:
        write_seeds(TARGETS[name], Path(seeds))
        kept = [str(CORPUS / name)] if (CORPUS / name).exists() else []
        options = (
            f"-max_total_time={seconds}",
            f"-artifact_prefix={FINDINGS}/{name}-",
            f"-timeout={INPUT_S_MAX}",
            f"-rss_limit_mb={MEMORY_MB_MAX}",
            "-print_final_stats=1",
            "-verbosity=1",
        )
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.one", name, str(work), seeds, *kept, *options],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    return done.returncode, done.stdout + done.stderr


def write_seeds(target: Target, folder: Path) -> None:
    """Write the seeds of a target as files."""
    for data in target.seeds():
        (folder / hashlib.sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)


def keep(name: str) -> int:
    """Add to the repository's corpus what reached something that nothing before did; gives how many there are now."""
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    # libFuzzer writes there only what reached something new.
    found = sorted((WORK / name).iterdir(), key=lambda path: path.stat().st_size)
    room = KEPT_MAX - len(list(folder.iterdir()))
    # From the shortest to the longest, and not the shortest alone.
    for path in found[:: max(1, -(-len(found) // max(1, room)))][: max(0, room)]:
        shutil.copy(path, folder / path.name)
    return len(list(folder.iterdir()))


def figure(said: str, name: str) -> str:
    """One of libFuzzer's closing figures, '?' if it printed none."""
    found = re.findall(rf"stat::{name}:\s+(\d+)", said)
    return found[-1] if found else "?"


def main() -> int:
    """Fuzz; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz every target in turn.")
    parser.add_argument("--seconds", type=int, default=SECONDS_DEFAULT, help="for all targets together (300)")
    parser.add_argument(
        "--keep", action="store_true", help="add what was found to the corpus of the repository"
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (all)")
    given = parser.parse_args()
    if unknown := [name for name in given.targets if name not in TARGETS]:
        parser.error(f"there is no target {unknown[0]}; expected some of {', '.join(TARGETS)}")
    if find_spec("atheris") is None:
        parser.error(
            "atheris is not installed: it is published for Python 3.11 to 3.13 on x86-64; run `make fuzz` with one of those"
        )
    names = given.targets or list(TARGETS)
    seconds = max(1, given.seconds // len(names))
    status = 0
    for name in names:
        code, said = run(name, seconds)
        units, edges = figure(said, "number_of_executed_units"), re.findall(r"cov: (\d+)", said)
        print(
            f"fuzz: {name:12} {seconds:4} s, {units:>9} inputs, {edges[-1] if edges else '?':>6} edges:"
            f" {'nothing found' if code == 0 else f'status {code}'}",
            flush=True,
        )
        if code:
            status = 1
            print(said[-4_000:], file=sys.stderr)
            for path in sorted(FINDINGS.glob(f"{name}-*")):
                print(
                    f"fuzz: saved {path}; repeat with: python -m tests.fuzz.one {name} {path}",
                    file=sys.stderr,
                )
        elif given.keep:
            print(f"fuzz: {name:12} the corpus has {keep(name)} inputs")
    return status


if __name__ == "__main__":
    sys.exit(main())
