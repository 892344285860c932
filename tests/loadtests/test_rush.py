"""Locust's rush: the report it leaves, and thresholds that fail the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtests.rush import Rush, RushFailed
from loadtests.stacks import Ours
from loadtests.supply import Supply


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ours]:
    """Shared by the rushes of this file: there are goods for many more."""
    with Ours(tmp_path_factory.mktemp("stack"), tcp=False) as started, Supply(started.address) as supply:
        supply.furnish()
        yield started


@pytest.fixture
def target(stack: Ours) -> Iterator[str]:
    yield stack.address
    assert stack.audit([], None).findings == []


def test_a_rush_of_two_processes_and_its_report(target: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    check = Rush(target, output, users=16, seconds=5, processes=2).run()
    assert check.passed, check.found
    rows = {row[0]: int(row[1]) for row in Rush(target, output).rows()}
    assert {"Issue", "Render", "Redeem", "Aggregated"} <= set(rows)
    assert rows["Aggregated"] >= 100
    assert "<html" in (output / "rush.html").read_text().lower()
    assert (output / "rush_stats_history.csv").exists()


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("RUSH_P95_MS_MAX", "0.001", "p95 is"),
        ("RUSH_CALLS_MIN", "10_000_000", "only"),
    ],
)
def test_a_threshold_that_is_passed_fails_the_run(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, part: str
) -> None:
    """Locust runs in processes of its own: a locustfile that tightens a bound and is the real one otherwise."""
    from loadtests import rush

    tight = tmp_path / "tight.py"
    tight.write_text(
        f"from loadtests import bounds\n\nbounds.{name} = {value}\nfrom loadtests.locustfile import *\n"
    )
    monkeypatch.setattr(rush, "LOCUSTFILE", tight)
    check = Rush(target, tmp_path / "out", users=8, seconds=2, processes=1).run()
    assert check.failed
    assert part in check.found


def test_an_unexpected_verdict_fails_the_run(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wallet that expects stock of more SKUs than there are."""
    from loadtests import rush

    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from loadtests import bounds\n\nbounds.RUSH_CALLS_MIN = 1\nbounds.RUSH_FAIL_RATIO_MAX = 1.0\n"
        "from loadtests import locustfile\nfrom loadtests.locustfile import LunchRush, Wallet\n\n"
        "locustfile.SKUS = 9\n"
    )
    monkeypatch.setattr(rush, "LOCUSTFILE", wrong)
    # Time enough for a wallet's first call on a machine that has other things to do.
    check = Rush(target, tmp_path / "out", users=6, seconds=6, processes=1).run()
    assert check.failed
    assert "unexpected verdict" in check.found


def test_nobody_at_the_target_fails_the_run(tmp_path: Path) -> None:
    check = Rush(f"unix:{tmp_path / 'nobody'}", tmp_path / "out", users=6, seconds=1, processes=1).run()
    assert check.failed
    assert "failed" in check.found or "only" in check.found


def test_a_locustfile_that_is_broken_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from loadtests import rush

    broken = tmp_path / "broken.py"
    broken.write_text("raise RuntimeError('broken for the test')\n")
    monkeypatch.setattr(rush, "LOCUSTFILE", broken)
    with pytest.raises(RushFailed, match="broken for the test"):
        Rush("unix:/nowhere", tmp_path / "out", users=6, seconds=1, processes=1).run()
