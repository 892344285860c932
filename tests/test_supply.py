"""What is said of a report of pip-audit. The tools themselves run by `make audit` and `make sbom`: they need the network."""

from __future__ import annotations

from typing import Any

import pytest

from tests import supply


def report(*packages: dict[str, Any]) -> dict[str, Any]:
    return {"dependencies": list(packages), "fixes": []}


SOUND: dict[str, Any] = {"name": "good", "version": "1.0", "vulns": []}
BAD: dict[str, Any] = {
    "name": "bad",
    "version": "1.0",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"], "aliases": ["CVE-1"], "description": "…"}],
}
UNKNOWN: dict[str, Any] = {"name": "strange", "skip_reason": "Dependency not found on PyPI"}


def test_nothing_known() -> None:
    assert supply.judge("a.lock", report(SOUND, SOUND)) == ([], [])


def test_what_is_known_is_named_with_the_release_that_mends_it() -> None:
    found, skipped = supply.judge("a.lock", report(SOUND, BAD, UNKNOWN))
    assert found == ["a.lock: bad 1.0: PYSEC-1 CVE-1 (mended in: 1.1)"]
    assert skipped == ["strange"]


def test_a_database_that_knows_nothing_is_no_clean_bill() -> None:
    with pytest.raises(supply.Unreachable, match="not one is known"):
        supply.judge("a.lock", report(UNKNOWN, UNKNOWN))


def test_a_tool_that_says_nothing_is_no_clean_bill(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    tool = tmp_path / "pip-audit"
    tool.write_text("#!/bin/sh\necho 'ERROR: Connection refused' >&2; exit 1\n")
    tool.chmod(0o755)
    monkeypatch.setattr(supply, "TOOLS", tmp_path)
    with pytest.raises(supply.Unreachable, match="Connection refused"):
        supply.ask("requirements.lock")
    assert supply.audit() == supply.EXIT_UNKNOWN
