"""What the benchmark of a million codes makes of its findings, and a run of it with a few hundred."""

from pathlib import Path

import pytest
from rich.progress import Progress

from tests.bench import million, report
from tests.bench.million import CODE_KINDS, Findings, Kind, TooSlow, acceptable, as_text, judge, main, run
from tests.bench.report import Judgement


def findings(freed: int, all_s: float, few_s: float = 1e-4) -> Findings:
    """A run over 1,000 codes: bytes given back by records, seconds of one redemption."""
    found = Findings(1_000, 2, "valkey 9.9.9", "some")
    found.kinds = {"c": Kind(64, 1, freed, 1_000), "x": Kind(5, 1, 8_000, 500), "": Kind(1, 1, 1, 1)}
    found.bulk_s, found.alone_s, found.render_s = [1e-4], [1e-3], [5e-5]
    found.redeem_s = {"alone": {"few": [few_s] * 3, "all": [all_s] * 3}}
    return found


def test_bytes_of_a_code_are_those_of_record_and_expiry_index_with_their_share_of_the_table() -> None:
    assert findings(180_000, 1e-4).bytes_per_code == pytest.approx(180 + 1 + 8 + 0.5)


def test_the_ratio_is_the_median_of_pairs_of_the_call_that_suffers_more() -> None:
    found = findings(0, 1e-4)
    found.redeem_s["in batches"] = {"few": [1.0, 2.0, 4.0], "all": [1.0, 3.0, 80.0]}
    assert found.ratio("in batches") == pytest.approx(1.5)
    assert found.worst_ratio == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("found", "judgement"),
    [(1.2, Judgement.MET), (1.21, Judgement.NEAR), (1.4, Judgement.NEAR), (1.41, Judgement.MISSED)],
)
def test_a_cost_is_judged_against_what_it_may_be(found: float, judgement: Judgement) -> None:
    assert judge(found, million.RATIO_MAX, million.WIDE_MARGIN) is judgement


@pytest.mark.parametrize(
    ("freed", "all_s", "passes"),
    [(190_000, 1.1e-4, True), (190_000, 1.3e-4, True), (190_000, 1.5e-4, False), (191_000, 1.1e-4, False)],
)
def test_a_run_fails_by_a_byte_too_much_or_by_a_wide_margin_of_time(
    freed: int, all_s: float, passes: bool
) -> None:
    found = findings(freed, all_s)
    assert acceptable(found) is passes
    text = as_text(found)
    assert f"found {found.bytes_per_code:.1f}" in text
    assert f"found {found.worst_ratio:.3f}" in text
    assert "10.0 times" in text


def test_a_small_run_measures_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "OUT", tmp_path)
    monkeypatch.setattr(million, "PAIRS", 2)
    with Progress(disable=True) as progress:
        found = run(300, 200, 1, 5.0, progress)
    assert found.kinds.keys() >= {*CODE_KINDS, "r", "e", "s", "q"}
    assert all(found.kinds[kind].keys and found.kinds[kind].usage > 0 for kind in CODE_KINDS)
    assert 100 < found.record_bytes < 200
    assert found.record_bytes < found.bytes_per_code
    assert len(found.bulk_s) == len(found.render_s) == 1
    assert len(found.alone_s) == million.ALONE
    assert {name: len(pairs) for by_store in found.redeem_s.values() for name, pairs in by_store.items()} == {
        "few": 2,
        "all": 2,
    }
    assert "bytes per live code" in as_text(found)


def test_codes_that_are_not_made_in_time_are_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "OUT", tmp_path)
    with Progress(disable=True) as progress, pytest.raises(TooSlow, match="--minutes"):
        run(300, 200, 1, 0.0, progress)
    assert main(["--codes", "300", "--few", "200", "--partitions", "1", "--minutes", "0"]) == 2
    assert "0 of 200 codes were made within 0 minutes" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
