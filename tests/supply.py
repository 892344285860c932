"""`make audit` and `make sbom`: what is known against the locked dependencies, and a bill of materials of what is installed.

    python -m tests.supply audit        # 0 nothing known · 1 something is known · 3 the database can't be reached
    python -m tests.supply sbom         # writes build/sbom.cdx.json (CycloneDX 1.6), whose root is pickgate

pip-audit and cyclonedx-py do the work, from .venv/tools (requirements-supply.lock). pip-audit takes a database that knows none of the
packages for "no known vulnerabilities"; here that is said for what it is.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
TOOLS: Final = ROOT / ".venv" / "tools" / "bin"
LOCKS: Final = ("requirements.lock", "requirements-supply.lock")
SBOM: Final = ROOT / "build" / "sbom.cdx.json"
EXIT_FOUND, EXIT_UNKNOWN = 1, 3


class Unreachable(Exception):
    """The database of vulnerabilities says nothing."""


def judge(lock: str, report: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Lines about what is known, and names of what could not be looked up, in a report of pip-audit.

    Raises Unreachable when nothing could be looked up.
    """
    found, skipped = [], []
    for package in report["dependencies"]:
        if "skip_reason" in package:
            skipped.append(package["name"])
        for known in package.get("vulns", ()):
            fixed = ", ".join(known["fix_versions"]) or "no release yet"
            aliases = " ".join(known.get("aliases", ()))
            found.append(
                f"{lock}: {package['name']} {package['version']}: {known['id']} {aliases} (mended in: {fixed})"
            )
    if len(skipped) == len(report["dependencies"]):
        raise Unreachable(
            f"{lock}: of {len(skipped)} packages not one is known to the database; its JSON API is not reached from here"
        )
    return found, skipped


def ask(lock: str) -> Mapping[str, Any]:
    """Have pip-audit look at a lock file. Raises Unreachable."""
    done = subprocess.run(
        [str(TOOLS / "pip-audit"), "--disable-pip", "--require-hashes", "--format", "json", "-r", lock],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        report: Mapping[str, Any] = json.loads(done.stdout)
    except ValueError:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise Unreachable(f"{lock}: pip-audit could not look: {last[0][:300]}") from None
    return report


def audit() -> int:
    """Look at all lock files; gives the exit status."""
    found, skipped = [], []
    for lock in LOCKS:
        try:
            known, unknown = judge(lock, ask(lock))
        except Unreachable as error:
            print(f"audit: NOT DONE: {error}", file=sys.stderr)
            return EXIT_UNKNOWN
        found += known
        skipped += unknown
    for line in found:
        print(f"audit: {line}")
    if skipped:
        print(f"audit: could not be looked up: {', '.join(sorted(set(skipped)))}")
    print(f"audit: {len(found)} known vulnerabilities in {' and '.join(LOCKS)}")
    return EXIT_FOUND if found else 0


def sbom() -> int:
    """Write the bill of materials of .venv; gives the exit status."""
    SBOM.parent.mkdir(exist_ok=True)
    done = subprocess.run(
        [
            *(str(TOOLS / "cyclonedx-py"), "environment", str(ROOT / ".venv" / "bin" / "python")),
            *(
                "--pyproject",
                str(ROOT / "pyproject.toml"),
                "--mc-type",
                "application",
                "--output-reproducible",
            ),
            *("--spec-version", "1.6", "--output-format", "JSON", "--output-file", str(SBOM)),
        ],
        cwd=ROOT,
        check=False,
    )
    if done.returncode:
        return done.returncode
    made = json.loads(SBOM.read_text())
    print(f"sbom: {len(made['components'])} components in {SBOM.relative_to(ROOT)}")
    return 0


def main(arguments: Sequence[str]) -> int:
    """Run one of the two."""
    parser = argparse.ArgumentParser(prog="python -m tests.supply")
    parser.add_argument("what", choices=["audit", "sbom"])
    given = parser.parse_args(arguments)
    return audit() if given.what == "audit" else sbom()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
