"""The house itself: what builds it says what is wrong in one line, and its lists agree with one another."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from engine.errors import (
    SetupError,
    StockFull,
    StoreBinaryMissing,
    StoreInUse,
    StoreSettings,
    StoreUnavailable,
)
from server.config import Settings

ROOT = Path(__file__).resolve().parents[1]
LOCKS = {name: (ROOT / f"{name}.lock").read_text() for name in ("requirements", "requirements-supply")}
"""Of the tools that look at the supply chain there is one apart: they are installed apart, when they are asked for."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def normal(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(lock: str) -> dict[str, int]:
    """Names in a lock and how many hashes each has."""
    found: dict[str, int] = {}
    for block in re.split(r"\n(?=[A-Za-z0-9])", LOCKS[lock]):
        if match := re.match(r"([A-Za-z0-9._-]+)==", block):
            found[normal(match[1])] = found.get(normal(match[1]), 0) + block.count("--hash=sha256:")
    return found


def test_everything_asked_for_is_locked_with_hashes() -> None:
    groups = dict(PROJECT["dependency-groups"])
    asked = {"requirements-supply": groups.pop("supply")}
    asked["requirements"] = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]
    for group in groups.values():
        asked["requirements"] += group
    for lock, texts in asked.items():
        names = {normal(re.match(r"[A-Za-z0-9._-]+", text)[0]) for text in texts}  # type: ignore[index]
        hashes = locked(lock)
        assert names <= set(hashes)
        assert [name for name, count in hashes.items() if count == 0] == []


def test_every_dependency_of_the_service_is_bounded() -> None:
    assert [text for text in PROJECT["project"]["dependencies"] if ">=" not in text or "<" not in text] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_index_and_no_path(lock: str) -> None:
    foreign = re.findall(
        r"https?:|file:|://|--(?:index|extra-index|find-links|trusted)| @ |^-e|^/", LOCKS[lock], re.M
    )
    assert foreign == []


def test_no_index_takes_this_package() -> None:
    assert "Private :: Do Not Upload" in PROJECT["project"]["classifiers"]


def test_every_kernel_has_declarations_and_types() -> None:
    kernels = sorted((ROOT / "ext").glob("*.pyx"))
    assert kernels
    missing = [
        kernel.with_suffix(suffix).name
        for kernel in kernels
        for suffix in (".pxd", ".pyi")
        if not kernel.with_suffix(suffix).exists()
    ]
    assert missing == []


def test_every_package_is_found_by_the_build() -> None:
    """A folder with Python files but without __init__.py would be missing from an installed pickgate."""
    homeless = {
        path.parent.relative_to(ROOT).as_posix()
        for folder in ("engine", "ext", "server", "loadtests", "proto/pickgate")
        for path in (ROOT / folder).rglob("*.py")
        if not (path.parent / "__init__.py").exists()
    }
    assert homeless == set()


def test_unknown_kind_of_build_is_refused() -> None:
    answer = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env={**os.environ, "PICKGATE_BUILD": "fast"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode != 0
    assert "PICKGATE_BUILD='fast'" in answer.stderr
    assert "release, debug, sanitize, coverage" in answer.stderr


def run_make(*words: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    make = shutil.which("make")
    assert make
    # Not those of a surrounding make: they would carry its flags and its job server into this one.
    env = {
        k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHON", "CC")
    }
    return subprocess.run(
        [make, *words],
        cwd=cwd,
        env={**env, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_help_lists_every_public_recipe() -> None:
    text = (ROOT / "Makefile").read_text()
    public = set(re.findall(r"^\.PHONY: (.+)$", text, re.M))
    recipes = {name for line in public for name in line.split() if not name.startswith("check-")}
    listed = re.findall(r"^  make (\S+) +\S", run_make("help", cwd=ROOT).stdout, re.M)
    assert set(listed) == recipes
    assert len(listed) == len(recipes)


def compiler_without(header: str, folder: Path) -> str:
    """A compiler that compiles everything but sources that include `header`."""
    path = folder / "cc-without"
    path.write_text(
        f'#!/bin/sh\nfor word; do case "$word" in *.c) grep -q "{header}" "$word" && exit 1 ;; esac; done\nexec cc "$@"\n'
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("python", "is missing or older than 3.11"),
        ("old python", "is missing or older than 3.11"),
        ("venv", "can not make virtual environments; run: apt-get install -y"),
        ("compiler", "no C compiler; run: apt-get install -y build-essential"),
        ("Python.h", "can not find or use Python.h"),
        ("openssl/evp.h", "OpenSSL 3.0 or newer with its headers is missing; run: apt-get install"),
    ],
)
def test_what_the_system_lacks_is_said_in_one_line(tmp_path: Path, missing: str, message: str) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    environ = {"PYTHON": sys.executable}
    fake = tmp_path / "python"
    match missing:
        case "python":
            environ["PYTHON"] = str(tmp_path / "nowhere")
        case "old python":
            fake.write_text("#!/bin/sh\nexit 1\n")
            environ["PYTHON"] = str(fake)
        case "venv":
            fake.write_text(
                f'#!/bin/sh\ncase "$*" in *ensurepip*) exit 1 ;; esac\nexec {sys.executable} "$@"\n'
            )
            environ["PYTHON"] = str(fake)
        case "compiler":
            environ["CC"] = str(tmp_path / "nowhere")
        case header:
            environ["CC"] = compiler_without(header, tmp_path)
    if fake.exists():
        fake.chmod(0o755)
    answer = run_make(".venv/.created", cwd=tmp_path, **environ)
    assert answer.returncode != 0
    ours = [line for line in answer.stderr.splitlines() if not line.startswith("make: ***")]
    assert len(ours) == 1
    assert message in ours[0]
    assert not (tmp_path / ".venv").exists()


def test_operations_names_every_setting_and_no_other() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    table = text.partition("| key | meaning |")[2].partition("\n\n")[0]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == set(Settings.model_fields)


def test_operations_names_the_store_errors_by_their_slugs() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    named = set(re.findall(r"^\| ([A-Z_]+)\b", text, re.M))
    assert named == {
        error.slug
        for error in (StoreInUse, StoreBinaryMissing, SetupError, StockFull, StoreSettings, StoreUnavailable)
    }


# --- what is said to be shown -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["docs/threat-model.md", "SECURITY.md"])
def test_what_is_said_to_be_tested_is_there(name: str) -> None:
    """Files, commands and recipes that these documents name."""
    named = re.findall(r"`([^`]+)`", (ROOT / name).read_text())
    files = [one for one in named if re.match(r"(tests|engine|server|docs|examples)/", one)]
    missing = [one for one in files if not (ROOT / one).exists()]
    for module in (one.split()[2] for one in named if one.startswith("python -m ")):
        places = (Path(*module.split(".")).with_suffix(".py"), Path(*module.split("."), "__main__.py"))
        missing += [module] if not any((ROOT / place).exists() for place in places) else []
    recipes = (ROOT / "Makefile").read_text()
    for recipe in (one.split()[1] for one in named if one.startswith("make ")):
        missing += [recipe] if f"\n{recipe}:" not in recipes else []
    assert missing == []
    assert len(named) > 5


def test_every_attack_of_the_threat_model_names_the_test_that_shows_what_stops_it() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text()
    section = text.partition("## What stops them\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 60
    for row in rows:
        attack, _, shown = row.strip("| ").split(" | ")
        assert re.search(r"`tests/[a-z0-9_/]+/test_[a-z0-9_]+\.py`|`tests/test_[a-z0-9_]+\.py`", shown), (
            attack
        )
    # One table: an empty line would end it for whoever reads it rendered.
    assert len([part for part in section.strip().split("\n\n") if part.startswith("|")]) == 1
