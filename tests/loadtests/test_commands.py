"""The commands as people run them: the lot in small with its report, each driver in small, and wrong usage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtests import __main__ as command
from loadtests import behaviours, h2load, hostile, idle, lot, machine
from loadtests.checks import Check
from loadtests.peak import Peak
from loadtests.runs import Run
from loadtests.steps import Step

BOUND_S = 240


@pytest.fixture
def place(tmp_path: Path) -> list[str]:
    return [
        "--folder",
        str(tmp_path / "data"),
        "--output",
        str(tmp_path / "out"),
        "--socket",
        "unix",
        "--connections",
        "2",
    ]


SHORT = ["--round-s", "0.1", "--rounds", "1"]
"""Long enough for calls to be answered; how many codes are made goes by it."""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, as people do."""
    return subprocess.run(
        [sys.executable, "-m", "loadtests", *words],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=BOUND_S,
    )


def checks_of(path: Path) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in json.loads(path.read_text())["checks"]}


def test_the_lot_in_small(place: list[str], tmp_path: Path) -> None:
    """Locust, h2load, both stacks, peak, steps, books and report; the figures of half a second decide nothing here, the books do."""
    words = ["--step-s", "0.5", "--percents", "20,80", "--named-rate", "50", "--rush-s", "4"]
    answer = run(*place, "lot", *SHORT, *words)
    assert answer.returncode in (0, 1), answer.stderr
    assert "fsync on" in answer.stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(report["peaks"]) == {"pickgate", "comparison"}
    assert {(step["stack"], step["percent"]) for step in report["steps"]} >= {
        (name, percent) for name in ("pickgate", "comparison") for percent in (20, 80)
    }
    for name, book in report["books"].items():
        assert book["findings"] == []
        assert book["redeemed"] > 0
        told = sum(step["run"]["good"] for step in report["steps"] if step["stack"] == name)
        assert book["redeemed"] > told > 0
    assert report["store_settings"]["appendfsync"] == "always"
    assert report["fsync_ms"]["p50"] > 0
    found = checks_of(tmp_path / "out" / "report.json")
    assert found["books of pickgate"]["passed"]
    assert found["books of comparison"]["passed"]
    assert found["books of the rush"]["passed"]
    assert "thresholds of the rush" in found
    assert {"Redeem", "Issue", "Aggregated"} <= {row["call"] for row in report["rush"]}
    assert "<html" in (tmp_path / "out" / "rush.html").read_text().lower()
    assert report["h2load"]["command"].startswith("h2load -n ")
    if h2load.installed():
        assert found["answers of h2load"]["passed"]
        assert found["the body's verdict, before and after"]["passed"]
    else:
        assert "apt-get install -y nghttp2-client" in report["h2load"]["skipped"]
    assert {name for name, check in found.items() if not check["decides"]} == {
        name for name in found if name.startswith("goal")
    }
    failed = any(check["decides"] and not check["passed"] for check in found.values())
    assert answer.returncode == int(failed)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<svg" in page
    assert "pickgate p99.9" in page or "comparison" in page
    assert 'href="rush.html"' in page
    for harmless in ("www.w3.org", "purl.org", "creativecommons.org", "127.0.0.1"):
        page = page.replace(f"http://{harmless}", "")
    assert "http://" not in page


LONG = pytest.mark.skipif(
    os.environ.get("PICKGATE_SOAK") != "1",
    reason="makes codes for the better part of a minute: PICKGATE_SOAK=1",
)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["peak"], {"books of comparison"}),
        (
            ["steps", "--step-s", "0.5", "--percents", "30"],
            {"calls that were not answered REDEEMED", "books of comparison"},
        ),
        (
            ["soak", "--minutes", "0.02"],
            {"long enough to say", "memory after the first minute", "books of comparison"},
        ),
        pytest.param(
            ["idle", "--terminals", "50"],
            {"cost of 50 idle terminals", "idle connections lost", "books of comparison"},
            marks=LONG,
        ),
        pytest.param(
            ["overload", "--seconds", "1"],
            {"goodput by the peak beside it", "shed calls with RetryInfo", "books of comparison"},
            marks=LONG,
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_each_driver_in_small(place: list[str], tmp_path: Path, words: list[str], names: set[str]) -> None:
    """Against the comparison, which is the quicker one to start; what they say of it is not the point."""
    answer = run(*place, *words, *SHORT, "--stack", "comparison")
    assert answer.returncode in (0, 1), answer.stderr
    found = checks_of(tmp_path / "out" / f"{words[0]}.json")
    assert names <= set(found)
    assert found["books of comparison"]["passed"], found
    if words[0] == "soak":
        assert not found["long enough to say"]["passed"], "of a second nothing is said"
        assert answer.returncode == 1
    assert answer.returncode == int(any(check["decides"] and not check["passed"] for check in found.values()))


def test_the_lag_of_the_ledger_in_small(place: list[str], tmp_path: Path) -> None:
    answer = run(*place, "lag", "--rate", "100", "--seconds", "2")
    assert answer.returncode in (0, 1), answer.stderr
    found = checks_of(tmp_path / "out" / "lag.json")
    assert found["calls answered REDEEMED"]["passed"], found
    assert found["acknowledged and not in the ledger"]["passed"], found
    assert "lag of the ledger, most" in found
    assert "complete after the last answer" in answer.stdout


def test_hostile_callers_in_small(place: list[str], tmp_path: Path) -> None:
    """Every behaviour for a moment; how long the others waited is not the point on a machine that does other things."""
    answer = run(*place, "hostile", "--rate", "100", "--seconds", "0.1")
    assert answer.returncode in (0, 1), answer.stderr
    report = json.loads((tmp_path / "out" / "hostile.json").read_text())
    assert [row["beside"] for row in report["rows"][1:-1]] == list(behaviours.ALL)
    found = checks_of(tmp_path / "out" / "hostile.json")
    missed = {name for name, check in found.items() if not check["passed"]}
    assert missed <= {"p99 of others, most", "pings sent", "settings sent", "rapid resets sent"}, found
    assert answer.returncode == int(bool(missed))


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nothing"],
        ["peak", "--stack", "theirs"],
        ["peak", "--round-s", "0"],
        ["peak", "--rounds", "0"],
        ["lot", "--percents", "50,-1"],
        ["--connections", "none", "peak"],
    ],
)
def test_wrong_usage(words: list[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        command.main(words)
    assert raised.value.code == 2


def test_a_folder_in_use_and_a_folder_in_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").write_text("x")
    assert command.main(["--folder", str(tmp_path), "peak"]) == 2
    assert "is not empty: name a new folder" in capsys.readouterr().err
    shm = Path("/dev/shm")
    if shm.is_dir() and os.path.ismount(shm):
        with pytest.raises(machine.NotADisk, match=r"lies on tmpfs, in memory.*--folder"):
            machine.filesystem(shm)


def test_fsync_is_measured_in_order(tmp_path: Path) -> None:
    found = machine.fsync_ms(tmp_path, 50)
    assert 0 < found["p50"] <= found["p99"] <= found["max"]
    assert list(tmp_path.iterdir()) == []


def test_more_files_than_allowed_are_refused() -> None:
    with pytest.raises(idle.TooFewFiles, match="raise the hard limit"):
        idle.raise_open_files(2**40)


# --- judging ----------------------------------------------------------------------------------------------------------
def peak(name: str, per_s: float) -> Peak:
    run = Run("closed", 8, 0.0, sending_s=1.0, good_while_sending=int(per_s))
    return Peak(name, 8, 8, {8: per_s}, [run])


def step(name: str, percent: float, latency_ms: float, *, rate: float = 1_000, good: int = 100) -> Step:
    run = Run("open", 8, rate, planned=100, sent=100, answered=100, good=good, sending_s=1.0)
    for n in range(good):
        run.good_due_ns.append(int(n * 1e7))
        run.good_latencies_ns.append(int(latency_ms * 1e6))
    from collections import Counter

    return Step(name, percent, run, Counter())


def test_hostile_callers_are_judged_by_the_server_and_the_others() -> None:
    def calls(latency_ms: float, good: int = 100) -> Run:
        return step("pickgate", 50, latency_ms, good=good).run

    alone = hostile.Part("nobody else", {}, {}, calls(5))

    def judge(*beside: Run, **facts: Any) -> set[str]:
        parts = [hostile.Part("pings", {"connections": 1, "pings": 10_000}, {}, run) for run in beside]
        usual: dict[str, Any] = {"pids_before": [1], "pids_after": [1], "healthy": True}
        found = hostile.Hostile(8.0, alone, parts, alone, **(usual | facts))
        return {check.name for check in found.checks() if check.failed}

    assert judge(calls(49)) == set()
    assert judge(calls(5), calls(51)) == {"p99 of others, most"}
    assert judge(calls(5, good=99)) == {"calls of others answered REDEEMED"}
    assert judge(calls(5), pids_after=[2]) == {"the server's processes"}
    assert judge(calls(5), healthy=False) == {"health afterwards"}
    assert judge(calls(5), descriptors_after=1) == {"descriptors afterwards"}
    assert judge(calls(5), rss_most_bytes=2**27) == {"memory of the service"}
    few = hostile.Part("pings", {"connections": 9_000, "pings": 9_000}, {}, calls(5))
    found = hostile.Hostile(8.0, alone, [few], alone, pids_before=[1], pids_after=[1], healthy=True)
    assert [check.name for check in found.checks() if check.failed] == ["pings sent"]


def judged(ours_per_s: float, other_per_s: float, *steps: Step) -> dict[str, Check]:
    found = lot.judge([peak("pickgate", ours_per_s), peak("comparison", other_per_s)], steps, lot.Plan())
    return {check.name: check for check in found}


def test_a_ratio_below_the_wide_margin_fails() -> None:
    good = judged(8_000, 1_000)
    assert not any(check.failed for check in good.values())
    assert good["goal: peak ratio"].passed
    near = judged(5_700, 1_000)["our peak by the comparison's"]
    assert not near.failed
    assert not judged(5_700, 1_000)["goal: peak ratio"].passed
    assert judged(5_500, 1_000)["our peak by the comparison's"].failed


def test_a_slow_p99_fails_by_its_ratio_and_not_by_milliseconds() -> None:
    slow = judged(8_000, 1_000, step("pickgate", 80, 100), step("comparison", 80, 90))
    assert not any(check.failed for check in slow.values())
    assert not slow["goal: p99 at 80 % of peak"].passed
    slower = judged(8_000, 1_000, step("pickgate", 80, 24), step("comparison", 80, 5))
    assert slower["our p99 at 80 % of peak by the comparison's"].failed


def test_p99_is_the_median_of_the_steps_there() -> None:
    name = "goal: p99 at 80 % of peak"
    others = [step("comparison", 80, 9)] * 3
    once = judged(8_000, 1_000, *(step("pickgate", 80, ms) for ms in (130, 14, 16)), *others)
    assert (once[name].passed, once[name].found) == (True, "16.0 ms")
    twice = judged(8_000, 1_000, *(step("pickgate", 80, ms) for ms in (130, 14, 90)), *others)
    assert (twice[name].passed, twice[name].found) == (False, "90.0 ms")
    assert twice["our p99 at 80 % of peak by the comparison's"].failed


def test_calls_that_were_lost_or_not_sent_fail() -> None:
    lost = "calls of the steps that were not answered REDEEMED"
    beyond = "goal: the same of the comparison past 80 % of its peak"
    for percent in (50, 80, 95):
        found = judged(8_000, 1_000, step("pickgate", percent, 1, good=99))
        assert found[lost].failed
        assert found[beyond].passed
    assert judged(8_000, 1_000, step("comparison", 80, 1, good=99))[lost].failed
    near = judged(8_000, 1_000, step("comparison", 95, 1, good=98))
    assert near[lost].passed
    assert (near[beyond].passed, near[beyond].failed, near[beyond].found) == (False, False, "2")
    short = step("pickgate", 50, 1)
    short.run.planned = 101
    assert judged(8_000, 1_000, short)["calls of the steps that were due and not sent"].failed


def test_the_named_rate_is_a_goal() -> None:
    name = "goal: p50 at 1,000/s"
    assert judged(8_000, 1_000)[name].found == "not reached"
    met = judged(8_000, 1_000, step("pickgate", 12.5, 2.0))[name]
    assert (met.passed, met.found) == (True, "2.00 ms")
    missed = judged(8_000, 1_000, step("pickgate", 12.5, 4.0))[name]
    assert (missed.passed, missed.failed) == (False, False)
