"""What `make bench` makes of its figures: ratios, judgements, and when a run fails."""

from typing import Any

import pytest

from tests.bench.report import (
    GUARDS,
    REGRESSION,
    TARGETS,
    Judgement,
    Row,
    Target,
    acceptable,
    as_json,
    as_text,
    duration,
    guarded,
    judge,
    machine,
    rate,
    rows_of,
)

RATIO = Target("open", "V1 AES", "plain", 10.0)
RATE = Target("within", "one centre", None, 50e6)


def benchmark(
    subject: str, case: str, implementation: str, items: int, seconds: float, figure: str = "min"
) -> dict[str, Any]:
    """Return one benchmark as pytest-benchmark writes it, `seconds` for the figure that counts."""
    info = {
        "subject": subject,
        "case": case,
        "implementation": implementation,
        "items": items,
        "figure": figure,
    }
    return {"extra_info": info, "stats": {"min": 9e9, "median": 9e9, figure: seconds}}


def opening(plain_s: float) -> Row:
    return Row("open", "V1 AES", 1024, {"kernel": 1e-6, "plain": plain_s})


@pytest.mark.parametrize(
    ("plain_s", "judgement"),
    [
        *((10.1e-6, Judgement.MET), (10e-6, Judgement.MET), (9.9e-6, Judgement.NEAR)),
        *((7.1e-6, Judgement.NEAR), (6.9e-6, Judgement.MISSED), (1e-6, Judgement.MISSED)),
    ],
)
def test_a_ratio_is_judged_against_its_target(plain_s: float, judgement: Judgement) -> None:
    [finding] = judge([opening(plain_s)], [RATIO])
    assert finding.judgement is judgement
    assert finding.found == pytest.approx(plain_s / 1e-6)
    assert acceptable([finding], complete=True) is (judgement is not Judgement.MISSED)


@pytest.mark.parametrize(("per_item_s", "judgement"), [(1e-8, Judgement.MET), (5e-8, Judgement.MISSED)])
def test_a_rate_is_judged_against_its_target(per_item_s: float, judgement: Judgement) -> None:
    [finding] = judge([Row("within", "one centre", 10, {"kernel": per_item_s})], [RATE])
    assert finding.judgement is judgement


def test_only_a_complete_run_must_have_measured_every_target() -> None:
    without_comparison = Row("open", "V1 AES", 1024, {"kernel": 1e-6})
    for rows in ([], [without_comparison], [Row("open", "V2 AES", 1, {"kernel": 1e-6, "plain": 1.0})]):
        findings = judge(rows, [RATIO])
        assert [finding.judgement for finding in findings] == [Judgement.NOT_MEASURED]
        assert acceptable(findings, complete=False)
        assert not acceptable(findings, complete=True)


def test_rows_hold_seconds_per_item() -> None:
    raw = {
        "benchmarks": [
            benchmark("open", "V1 AES", "plain", 100, 2e-3),
            benchmark("open", "V1 AES", "kernel", 1000, 1e-3),
            benchmark("redeem in the store", "fsync", "engine", 8, 4e-3, figure="median"),
        ]
    }
    opened, redeemed = rows_of(raw)
    assert opened.batch == 1000
    assert opened.per_item_s == {"plain": pytest.approx(2e-5), "kernel": pytest.approx(1e-6)}
    assert opened.ratio("plain") == pytest.approx(20.0)
    assert opened.ratio("reference") is None
    assert redeemed.own_s == pytest.approx(5e-4)


def test_the_report_says_what_was_found_and_not_where() -> None:
    raw = {
        "machine_info": {"node": "a-host-name"},
        "datetime": "2026-01-01T00:00:00+00:00",
        "benchmarks": [
            benchmark("open", "V1 AES", "plain", 100, 2e-3),
            benchmark("open", "V1 AES", "kernel", 1000, 1e-3),
            {**benchmark("redeem in the store", "fsync", "engine", 8, 4e-3)},
        ],
    }
    raw["benchmarks"][2]["extra_info"]["fsync_s"] = 0.000125  # type: ignore[index]
    text = as_text(raw, machine())
    assert "fsync of 4 KiB on the disk of the store: 125 µs" in text
    assert any(
        line.split() == ["open,", "V1", "AES", "1,000", "1", "µs", "1", "M", "20.0"]
        for line in text.splitlines()
    )
    assert "met  open, V1 AES: wanted 10 times `plain`, found 20" in text
    data = as_json(raw, machine())
    assert data["rows"][0]["ratios"] == {"plain": pytest.approx(20.0)}
    assert data["fsync_s"] == 0.000125
    assert "a-host-name" not in text + str(data)


def test_every_target_has_a_name_of_its_own() -> None:
    assert len({(target.subject, target.case) for target in TARGETS}) == len(TARGETS)


def test_units() -> None:
    assert [duration(seconds) for seconds in (2.0, 2e-3, 2e-6, 2e-9)] == ["2 s", "2 ms", "2 µs", "2 ns"]
    assert [rate(per_second) for per_second in (2e6, 2e3, 2.0)] == ["2 M", "2 k", "2 "]


def guarded_run(slower: float) -> dict[str, Any]:
    """All that is guarded as it was found, ours so many times slower."""
    benchmarks = []
    for target in GUARDS:
        implementation = "kernel" if target.subject in ("seal", "open") else "engine"
        benchmarks.append(benchmark(target.subject, target.case, implementation, 64, 64e-6 * slower))
        benchmarks.append(benchmark(target.subject, target.case, "plain", 32, 32e-6 * target.wanted))
    return {"benchmarks": benchmarks}


def test_what_has_become_half_as_slow_again_fails() -> None:
    assert acceptable(guarded(guarded_run(0.99)), complete=True)
    assert acceptable(guarded(guarded_run(REGRESSION - 0.01)), complete=True)
    findings = guarded(guarded_run(REGRESSION + 0.01))
    assert {finding.judgement for finding in findings} == {Judgement.MISSED}
    assert not acceptable(findings, complete=True)


def test_a_guarded_ratio_that_was_not_measured_fails() -> None:
    run = guarded_run(1.0)
    del run["benchmarks"][-1]
    findings = guarded(run)
    assert findings[-1].judgement is Judgement.NOT_MEASURED
    assert not acceptable(findings, complete=True)
