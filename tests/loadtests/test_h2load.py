"""h2load's recipe: the body file, the command, and a run where the program is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtests import h2load
from loadtests.h2load import Recipe
from loadtests.stacks import Comparison
from loadtests.supply import Supply


@pytest.fixture
def recipe(tmp_path: Path) -> Iterator[Recipe]:
    with Comparison(tmp_path / "stack", tcp=True) as stack, Supply(stack.address) as supply:
        supply.furnish()
        message = supply.inspect_message(supply.codes(1), 0)
        yield Recipe(stack.address, message, tmp_path / "out", calls=200, connections=2, streams=4)


def test_the_body_is_one_grpc_frame_and_the_command_names_it(tmp_path: Path) -> None:
    recipe = Recipe("127.0.0.1:7425", b"message", tmp_path / "a folder", calls=10)
    path = recipe.write_body()
    assert path.read_bytes() == b"\0\0\0\0\x07message"
    assert recipe.text() == (
        "h2load -n 10 -c 8 -m 16 -H 'content-type: application/grpc' -H 'te: trailers' "
        f"-d '{path}' http://127.0.0.1:7425/pickgate.v1.RedemptionService/Inspect"
    )


def test_without_h2load_the_recipe_is_made_and_the_way_to_get_it_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = h2load.measure(tmp_path / "data", tmp_path / "out", 10, 1, 1, seed=1)
    assert (found.rows, found.checks) == ([], [])
    assert "apt-get install -y nghttp2-client" in found.skipped
    assert str(tmp_path / "out" / h2load.BODY_NAME) in found.command
    assert (tmp_path / "out" / h2load.BODY_NAME).stat().st_size > 5


@pytest.mark.skipif(not h2load.installed(), reason="no h2load: apt-get install -y nghttp2-client")
def test_a_run(recipe: Recipe) -> None:
    rows, checks = recipe.run()
    assert not any(check.failed for check in checks), checks
    assert rows[0] == ["calls", "200 of 200"]
    assert any(row[0] == "time for request" for row in rows)


@pytest.mark.skipif(not h2load.installed(), reason="no h2load: apt-get install -y nghttp2-client")
def test_a_body_that_is_refused_fails_though_h2load_is_content(recipe: Recipe, tmp_path: Path) -> None:
    refused = Recipe(recipe.address, b"", tmp_path / "refused", calls=20, connections=1, streams=1)
    _, checks = refused.run()
    assert not checks[0].failed
    assert checks[1].failed
    assert "INVALID_ARGUMENT" in checks[1].found
