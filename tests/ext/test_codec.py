"""Which of the twins serves: chosen by one variable, and never by accident."""

import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import pytest

import ext.reference
from ext import claims, codec, status
from tests.ext.twins import NAMES, NATIVE, REFERENCE

ROOT = Path(ext.reference.__file__).parent.parent


def run(code: str, pure: str | None, where: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that finds our packages in one folder only."""
    environment = {name: value for name, value in os.environ.items() if name != "PICKGATE_PURE"}
    if pure is not None:
        environment["PICKGATE_PURE"] = pure
    # -S, and the libraries by hand: an editable installation would find a kernel that `where` lacks in the source tree.
    environment["PYTHONPATH"] = str(Path(numpy.__file__).parent.parent)
    return subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


WHICH = "import ext, ext.codec as c; print(ext.PURE, c.KeyTable.__module__, c.Prf.__module__, c.encode.__module__)"


@pytest.mark.parametrize("pure", [None, "", "0"])
def test_kernels_are_the_default(pure: str | None) -> None:
    assert run(WHICH, pure).stdout.split() == ["False", "ext.seal", "ext.primitives", "ext.base32"]


def test_pure_selects_the_reference() -> None:
    assert run(WHICH, "1").stdout.split() == ["True", "ext.reference", "ext.reference", "ext.reference"]
    loaded = run("import sys, ext.codec; print('ext.seal' in sys.modules)", "1")
    assert loaded.stdout.strip() == "False"


@pytest.mark.parametrize("pure", ["2", "yes", "true", " 1"])
def test_other_values_are_an_error(pure: str) -> None:
    answer = run("import ext.codec", pure)
    assert answer.returncode != 0
    assert "ImportError: PICKGATE_PURE is" in answer.stderr


def test_a_kernel_that_is_not_built_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "ext", tmp_path / "ext", ignore=shutil.ignore_patterns("*.so", "*.c", "__pycache__")
    )
    answer = run("import ext.codec", None, tmp_path)
    assert answer.returncode != 0
    assert "ImportError: a kernel is not built" in answer.stderr
    assert "run `make build`" in answer.stderr
    assert run("import ext.codec; print('served')", "1", tmp_path).stdout == "served\n"


def parameters(function: Any) -> list[str]:
    """Names of the parameters, but for the instance's."""
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_twins_have_the_same_names_and_parameters() -> None:
    for module, names in NAMES.items():
        public = {
            name
            for name, value in vars(module).items()
            if not name.startswith("_")
            and not isinstance(value, ModuleType)
            and getattr(value, "__module__", "") == module.__name__
        }
        assert public == set(names)
        for name in names:
            native, reference = getattr(NATIVE, name), getattr(REFERENCE, name)
            if not isinstance(native, type):
                assert parameters(native) == parameters(reference), name
                continue
            assert isinstance(reference, type)
            methods = {name for name in vars(native) if not name.startswith("_")} - {"suite"}
            assert methods == {name for name in vars(reference) if not name.startswith("_")} - {"suite"}
            for method in methods:
                assert parameters(getattr(native, method)) == parameters(getattr(reference, method)), method


def test_codec_exports_every_function_of_the_twins() -> None:
    assert set(codec.__all__) == {name for names in NAMES.values() for name in names} | {
        "CLAIMS",
        "PAYLOAD_SIZE",
        "TEXT_SIZE",
        "OpenStatus",
        "Suite",
        "Version",
        "pack",
    }
    assert all(hasattr(codec, name) for name in codec.__all__)


def test_format_document_names_every_status() -> None:
    """docs/format.md and ext.status number the same checks in the same order."""
    document = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    refusals = [member for member in status.OpenStatus if member is not status.OpenStatus.OK]
    for number, member in enumerate(refusals, start=1):
        assert f"| F{number} | {member.name} |" in document
        assert int(member) == number
    assert f"F{len(refusals) + 1}" not in document


def test_sizes_of_the_document() -> None:
    document = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    for version in claims.Version:
        row = f"| {claims.PAYLOAD_SIZE[version]} | {claims.TEXT_SIZE[version]} |"
        assert row in document
        assert claims.TEXT_SIZE[version] == 2 + -(-claims.PAYLOAD_SIZE[version] * 8 // 5)
    for label in (claims.LABEL_ENC, claims.LABEL_MAC, claims.LABEL_TAG, claims.LABEL_SIG):
        assert f'"{label.decode()}"' in document
    assert claims.ALPHABET in document


def test_pack() -> None:
    data, offsets = claims.pack([b"ab", b"", b"c"])
    assert data == b"abc"
    assert offsets.tolist() == [0, 2, 2, 3]
    assert offsets.dtype == "uint64"
    data, offsets = claims.pack([])
    assert (data, offsets.tolist()) == (b"", [0])
