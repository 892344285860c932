"""The unit of systemd: what it starts exists, and systemd finds it sound and closed."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from server import bounds
from server.cli import main

ROOT = Path(__file__).resolve().parents[1]
UNIT = ROOT / "docs" / "pickgate.service"
EXPOSURE_MAX = 2.0
"""Of 10, by systemd-analyze."""


@pytest.fixture(scope="module")
def service() -> dict[str, str]:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(UNIT.read_text())
    return dict(unit["Service"])


def test_it_is_nobody_of_rights(service: dict[str, str]) -> None:
    assert service["User"] == service["Group"] == "pickgate"
    assert service["CapabilityBoundingSet"] == service["AmbientCapabilities"] == ""
    assert service["NoNewPrivileges"] == service["ProtectHome"] == "yes"
    assert service["ProtectSystem"] == "strict"


def test_keys_stay_in_memory(service: dict[str, str]) -> None:
    assert service["LimitCORE"] == service["MemorySwapMax"] == "0"
    assert service["UMask"] == "0077"
    assert service["StateDirectoryMode"] == "0700"
    assert not [name for name in service if name.startswith("Environment")]
    assert "LoadCredential" in service


def test_it_stops_as_the_server_does(service: dict[str, str]) -> None:
    assert service["KillMode"] == "mixed"
    assert int(service["TimeoutStopSec"]) >= bounds.GRACE_S_DEFAULT + bounds.WORKER_END_S_MAX


def test_the_command_line_knows_what_it_says(service: dict[str, str]) -> None:
    program, *words = shlex.split(service["ExecStart"])
    assert program.endswith("/.venv/bin/pickgate")
    command = words.index("serve")
    for options, arguments in ((words[:command], []), (words[command:], ["serve"])):
        shown = CliRunner().invoke(main, [*arguments, "--help"], prog_name="pickgate").output
        for option in options:
            if option.startswith("--"):
                assert re.search(rf"{option}\b", shown), option


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_it_sound_and_closed(tmp_path: Path) -> None:
    # Its program is not installed here: one that is stands in for it.
    unit = tmp_path / "pickgate.service"
    unit.write_text(re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text()))
    checked = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    said = [line for line in checked.stderr.splitlines() if "pickgate.service" in line]
    assert said == []
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "Overall exposure" not in judged.stdout:
        pytest.skip("this systemd-analyze judges no unit that is not loaded")
    [level] = re.findall(r"exposure level for \S+: ([0-9.]+)", judged.stdout)
    assert float(level) < EXPOSURE_MAX
