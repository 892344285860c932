"""`make bench`: runs the benchmarks, prints ratios, writes build/bench/report.json.

Arguments are pytest's (`-k open`). `--guard` alone (`make ratios`) runs only what report.GUARDS names and holds that against them:
a ratio that has become 1.5 times worse fails. Exit status: 0 all is well; 1 a target was missed by a wide margin or, in a run
without arguments, was not measured; 1 too if a benchmark failed; 2 and up as pytest's.
"""

import json
import sys
from pathlib import Path
from typing import Final

import pytest

from ext import PURE
from tests.bench import report

HERE = Path(__file__).parent


GUARDED: Final = "(test_codes and (kernel or plain) and (V1 or V2)) or (test_lane and 64) or (test_state and memory and 64)"
"""Benchmarks of the guarded ratios, as pytest's -k says it."""


def main(arguments: list[str]) -> int:
    """Run, report, judge."""
    guard = arguments == ["--guard"]
    if guard:
        arguments = ["-k", GUARDED]
    if PURE:
        print("bench: PICKGATE_PURE=1 is set: there is no kernel to measure; unset it", file=sys.stderr)
        return 2
    report.OUT.mkdir(parents=True, exist_ok=True)
    raw_file, report_file = report.OUT / "pytest-benchmark.json", report.OUT / "report.json"
    for stale in (raw_file, report_file):
        stale.unlink(missing_ok=True)
    status = pytest.main(
        [
            str(HERE),
            # The project's own options skip benchmarks; these replace them.
            *("-o", "addopts=--import-mode=importlib --strict-markers --strict-config"),
            *("-p", "no:cacheprovider", "-q", "--no-header"),
            # "Nothing was measured" is for the end of the run, not a reason to break off.
            *("-W", "default::pytest_benchmark.logger.PytestBenchmarkWarning"),
            *("--benchmark-only", "--benchmark-disable-gc", "--benchmark-quiet"),
            # No warm-up is needed where the fastest round counts.
            *("--benchmark-min-rounds=5", "--benchmark-max-time=0.4"),
            f"--benchmark-json={raw_file}",
            *arguments,
        ]
    )
    if not raw_file.exists() or not raw_file.stat().st_size:
        return int(status) or 1
    raw = json.loads(raw_file.read_text())
    about = report.machine()
    report_file.write_text(json.dumps(report.as_json(raw, about), indent=2, ensure_ascii=False) + "\n")
    print()
    findings = report.guarded(raw) if guard else report.judge(report.rows_of(raw))
    print(report.as_text(raw, about, findings))
    print(f"\nwritten: {report_file.relative_to(HERE.parent.parent)}")
    return int(status) or int(not report.acceptable(findings, complete=guard or not arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
