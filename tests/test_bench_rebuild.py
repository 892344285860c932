"""The benchmark of a lost store, with a thousand codes."""

from pathlib import Path

import pytest

from tests.bench import rebuild, report


def test_a_small_store_is_lost_and_rebuilt_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "OUT", tmp_path)
    found = rebuild.run(1_200, real=300, ended=20, tried=150, partitions=4, tell=lambda step: None)
    assert found.met
    assert {source: made.codes for source, made in found.rebuilt.items()} == {
        "the beginning": 1_240,
        "a checkpoint": 1_240,
    }
    assert found.rebuilt["the beginning"].checkpoint == 0
    assert found.rebuilt["a checkpoint"].checkpoint == 1
    assert sum(found.verdicts.values()) == 150
    assert found.verdicts["ALREADY_REDEEMED"] >= 10
    assert found.verdicts["VOIDED"] >= 10
    assert found.retried == 40
    assert "codes/s; wanted 60 s or less" in rebuild.as_text(found)
