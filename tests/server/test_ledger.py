"""`pickgate serve` with its ledger: written beside it, ended with it, and asked by the commands."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.race.serving import Serving, is_alive, until
from tests.race.shop import Shop


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    with Serving(tmp_path) as started:
        started.furnish()
        yield started


def rows(serving: Serving) -> int:
    """Rows of the ledger, counted by somebody else than us."""
    path = serving.data_dir / "ledger.sqlite3"
    if not path.exists():
        return 0
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as connection:
        try:
            return int(connection.execute("SELECT count(*) FROM events").fetchone()[0])
        except sqlite3.OperationalError:  # the tables are about to be made
            return 0


def events(serving: Serving) -> int:
    """Events in the store, those of the set-up too."""
    with serving.open_beside() as deployment:
        names = [*(keys.events for keys in deployment.connection.partitions), b"{ctl}e"]
        return sum(deployment.connection.read([("XLEN", name) for name in names]))


def writer_pid(serving: Serving) -> int:
    """The ledger's process, a child of the server; 0 while there is none."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text().rpartition(")")[2].split()
            command = (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(words[1]) == serving.pid and b"\0ledger\0run" in command:
            return int(stat.parent.name)
    return 0


def pickgate(serving: Serving, *words: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PICKGATE_")}
    return subprocess.run(
        [sys.executable, "-m", "server.cli", *words, "--data-dir", str(serving.data_dir)],
        env=kept | {"PYTHONPATH": os.pathsep.join(("", "proto"))},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def sell(serving: Serving, units: int) -> None:
    with serving.open_beside() as deployment:
        shop = Shop(deployment, name=f"sell-{os.urandom(4).hex()}")
        shop.issue(shop.sku(units), units)


def test_all_that_happens_comes_into_the_ledger(serving: Serving) -> None:
    sell(serving, 20)
    until(lambda: rows(serving) == events(serving), "the ledger is complete")
    done = pickgate(serving, "ledger", "status", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["alarm"] == ""
    assert said["lag_s"] < 30
    assert sum(row["rows"] for row in said["partitions"]) == rows(serving)
    assert all(row["ledger"] == row["store"] for row in said["partitions"])


def test_status_for_people(serving: Serving) -> None:
    until(lambda: rows(serving) == events(serving), "the ledger is complete")
    done = pickgate(serving, "ledger", "status")
    assert "s behind, as of" in done.stdout
    assert "chained by sha256" in done.stdout


def test_a_stopped_server_leaves_a_complete_ledger(serving: Serving) -> None:
    until(lambda: rows(serving) > 0, "the writer writes")
    pid = writer_pid(serving)
    sell(serving, 30)
    there = events(serving)
    assert serving.end(signal.SIGTERM) == 0
    assert not is_alive(pid)
    assert rows(serving) == there


def test_a_killed_server_takes_its_writer_with_it(serving: Serving) -> None:
    until(lambda: writer_pid(serving) != 0, "the writer runs")
    pid = writer_pid(serving)
    sell(serving, 5)
    serving.end(signal.SIGKILL)
    until(lambda: not is_alive(pid), "the writer ends with its server", 20.0)
    serving.start()
    until(lambda: rows(serving) == events(serving), "its successor goes on")


def test_a_killed_writer_is_started_again(serving: Serving) -> None:
    until(lambda: rows(serving) > 0, "the writer runs")
    pid = writer_pid(serving)
    os.kill(pid, signal.SIGKILL)
    sell(serving, 5)
    until(lambda: writer_pid(serving) not in (0, pid), "another writer")
    until(lambda: rows(serving) == events(serving), "the ledger is complete")


def test_the_writer_knows_no_passphrase(serving: Serving) -> None:
    until(lambda: writer_pid(serving) != 0, "the writer runs")
    environ = Path(f"/proc/{writer_pid(serving)}/environ").read_bytes()
    assert b"PASSPHRASE" not in environ


def test_which_ledger_must_be_said_for_a_store_of_ones_own(serving: Serving) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "server.cli", "ledger", "status", "--store", serving.store_url],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(("", "proto"))},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "error CONFIG: which ledger is meant is not said" in done.stderr
