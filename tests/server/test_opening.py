"""How a process comes to its deployment: the marker of an embedded one, and who may read the passphrase."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import pytest

from engine.errors import DeploymentMismatch
from server import opening
from server.config import Settings
from server.findings import Finding, Level
from tests.server.test_cli import inside


def settings_of(tmp_path: Path, **more: object) -> Settings:
    return Settings(data_dir=tmp_path / "data", **more)  # type: ignore[arg-type]


def make(settings: Settings) -> None:
    with opening.store(settings) as url:
        opening.create(url, settings, {})


def open_once(settings: Settings) -> None:
    with opening.store(settings) as url, opening.open_deployment(url, settings, {}):
        pass


def test_an_opening_writes_the_marker_that_an_earlier_release_did_not(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    make(settings)
    settings.deployment_marker.unlink()
    open_once(settings)
    assert settings.deployment_marker.exists()
    # So when its data is lost, nothing begins anew in silence.
    shutil.rmtree(settings.data_dir / "appendonlydir")
    with opening.store(settings) as url, pytest.raises(DeploymentMismatch, match="is empty now"):
        opening.create(url, settings, {})


def test_an_opening_that_fails_and_one_in_memory_write_no_marker(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    with pytest.raises(DeploymentMismatch):
        open_once(settings)
    assert not settings.deployment_marker.exists()
    in_memory = Settings(data_dir=tmp_path / "other", durability="memory")
    with opening.store(in_memory) as url:
        opening.create(url, in_memory, {})
        with opening.open_deployment(url, in_memory, {}):
            assert not in_memory.deployment_marker.exists()


@pytest.mark.parametrize(
    ("mode", "warned"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True), (0o620, True)]
)
def test_a_passphrase_file_that_others_can_open_is_told_at_each_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, warned: bool
) -> None:
    path = tmp_path / "passphrase"
    path.write_text("correct horse battery staple\n")
    path.chmod(mode)
    with caplog.at_level(logging.WARNING):
        assert opening.find_unlock(settings_of(tmp_path, passphrase_file=path), {}) is not None
    assert ("open to others" in caplog.text) is warned
    assert "correct horse" not in caplog.text


def test_a_pipe_is_closed_to_others_whatever_its_mode(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    path.chmod(0o644)
    assert opening.open_to_others(path) == 0
    assert opening.open_to_others(tmp_path / "absent") == 0


def test_the_doctor_looks_at_the_passphrase_file_of_any_store(tmp_path: Path) -> None:
    path = tmp_path / "passphrase"
    path.write_text("correct horse battery staple\n")
    path.chmod(0o644)
    more = {"PICKGATE_STORE_URL": "redis://:hunter2@127.0.0.1:1/0", "PICKGATE_PASSPHRASE_FILE": str(path)}
    done = inside("doctor", "--json", **more, PICKGATE_TARGET="127.0.0.1:1")
    assert done.returncode == 2
    found = {one["what"]: Finding(**one) for one in json.loads(done.stdout)["findings"]}
    assert found["passphrase"].level == Level.FAIL
    assert "0644" in found["passphrase"].text
    assert "hunter2" not in done.stdout + done.stderr
