"""`pickgate serve` with its ledger: written beside it, ended with it, and asked by the commands.

Most tests share a server: each leaves it running, its books as they were but for what it sold itself, and looks only at that.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from engine.deployment import Deployment
from engine.ledger.database import sqlite_url
from engine.ledger.ledger import Ledger
from engine.state import layouts
from pickgate.v1 import code_event_service_pb2 as event_pb
from server.cli import main
from server.client import Client
from server.daily import Daily
from tests.race import shop
from tests.race.serving import Serving, is_alive, until
from tests.race.shop import Shop

_SKUS = itertools.count(shop.FIRST_SKU)
_IDS = itertools.count(1)


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with Serving(tmp_path_factory.mktemp("l")) as started:
        started.furnish()
        yield started


@pytest.fixture
def serving(furnished: Serving) -> Serving:
    """The server that tests of a worker share, with all that happened so far in its ledger."""
    complete(furnished)
    return furnished


@contextmanager
def reading(serving: Serving) -> Iterator[sqlite3.Connection]:
    """The ledger, for somebody else than us."""
    path = serving.data_dir / "ledger.sqlite3"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as connection:
        yield connection


def rows(serving: Serving) -> int:
    """Rows of the ledger, counted by somebody else than us."""
    try:
        with reading(serving) as connection:
            return int(connection.execute("SELECT count(*) FROM events").fetchone()[0])
    except sqlite3.OperationalError:  # it is about to be made
        return 0


def events(serving: Serving) -> int:
    """Events in the store, those of the set-up too."""
    with serving.open_beside() as deployment:
        names = [*(keys.events for keys in deployment.connection.partitions), b"{ctl}e"]
        return sum(deployment.connection.read([("XLEN", name) for name in names]))


def complete(serving: Serving) -> None:
    """Wait until the ledger has everything that is in the store now."""
    there = events(serving)
    until(lambda: rows(serving) >= there, "the ledger is complete")


@contextmanager
def harmed(serving: Serving, table: str, row: str, change: str) -> Iterator[None]:
    """Change the data of a row behind the ledger's back; afterwards it is as it was."""
    with closing(sqlite3.connect(serving.data_dir / "ledger.sqlite3", timeout=10)) as connection:
        [(before,)] = connection.execute(f"SELECT data FROM {table} WHERE {row}").fetchall()
        connection.execute(f"UPDATE {table} SET data = {change} WHERE {row}")
        connection.commit()
        try:
            yield
        finally:
            connection.execute(f"UPDATE {table} SET data = ? WHERE {row}", (before,))
            connection.commit()


@contextmanager
def shelf_changed(serving: Serving, sku_id: int, figures: bytes | None) -> Iterator[None]:
    """Change a SKU's figures in the store behind everybody's back, None: take them out; afterwards they are as they were."""
    with serving.open_beside() as deployment:
        connection = deployment.connection
        [[key]] = connection.read([("KEYS", "*}s1:*")])
        [before] = connection.read([("HGET", key, sku_id)])
        connection.write([("HDEL", key, sku_id) if figures is None else ("HSET", key, sku_id, figures)])
        try:
            yield
        finally:
            connection.write([("HSET", key, sku_id, before)])


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


def inside(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command within this process."""
    ours = dict.fromkeys(name for name in os.environ if name.startswith("PICKGATE_"))
    done = CliRunner().invoke(main, words, env=ours, catch_exceptions=False, prog_name="pickgate")
    return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)


def pickgate(serving: Serving, *words: str) -> subprocess.CompletedProcess[str]:
    """A command that works on the data folder."""
    return inside(*words, "--data-dir", str(serving.data_dir))


def ask(serving: Serving, *words: str, code: int = 0) -> str:
    """What a command prints that asks the server; with `--json` as the last word it is JSON."""
    done = inside("--target", serving.address, *words)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def request_id() -> str:
    return f"request-{next(_IDS):06}"


def sell(serving: Serving, units: int) -> int:
    """Issue codes of one unit each, of a SKU of which there are so many; gives the SKU."""
    with serving.open_beside() as deployment:
        return sell_in(deployment, units, units)


def sell_in(deployment: Deployment, units: int, codes: int) -> int:
    sku_id = next(_SKUS)
    at = Shop(deployment, name=f"sell-{sku_id}")
    at.receive(sku_id, units)
    at.issue(sku_id, codes)
    return sku_id


def runs(serving: Serving) -> int:
    """Reconciliations that were made so far."""
    with reading(serving) as connection:
        return int(connection.execute("SELECT count(*) FROM reconciliations").fetchone()[0])


def live(serving: Serving) -> int:
    """Codes that were made so far."""
    with reading(serving) as connection:
        return int(connection.execute("SELECT count(*) FROM orders").fetchone()[0])


def since() -> tuple[str, str]:
    """Of the audit, only what happens from now on."""
    return "--since", datetime.now(UTC).isoformat()


def test_all_that_happens_comes_into_the_ledger(serving: Serving) -> None:
    before = rows(serving)
    sell(serving, 20)
    complete(serving)
    assert rows(serving) == events(serving) == before + 21
    done = pickgate(serving, "ledger", "status", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["alarm"] == ""
    assert 0 <= said["lag_s"] < 300, "it looks each second, but a busy machine may not let it"
    assert sum(row["rows"] for row in said["partitions"]) == rows(serving)
    assert all(row["ledger"] == row["store"] for row in said["partitions"])


def test_status_for_people(serving: Serving) -> None:
    until(
        lambda: "s behind, as of" in pickgate(serving, "ledger", "status").stdout,
        "the writer says how far it is",
    )
    done = pickgate(serving, "ledger", "status")
    assert "chained by sha256" in done.stdout


def test_a_stopped_server_leaves_a_complete_ledger(serving: Serving) -> None:
    pid = writer_pid(serving)
    sell(serving, 30)
    there = events(serving)
    assert serving.end(signal.SIGTERM) == 0
    try:
        assert not is_alive(pid)
        assert rows(serving) == there
    finally:
        serving.start()


def test_a_killed_server_takes_its_writer_with_it(serving: Serving) -> None:
    until(lambda: writer_pid(serving) != 0, "the writer runs")
    pid = writer_pid(serving)
    sell(serving, 5)
    serving.end(signal.SIGKILL)
    try:
        until(lambda: not is_alive(pid), "the writer ends with its server", 20.0)
    finally:
        serving.start()
    complete(serving)
    assert rows(serving) == events(serving), "its successor went on"


def test_a_killed_writer_is_started_again(serving: Serving) -> None:
    until(lambda: writer_pid(serving) != 0, "the writer runs")
    pid = writer_pid(serving)
    os.kill(pid, signal.SIGKILL)
    sell(serving, 5)
    until(lambda: writer_pid(serving) not in (0, pid), "another writer")
    complete(serving)


def test_the_writer_knows_no_passphrase(serving: Serving) -> None:
    until(lambda: writer_pid(serving) != 0, "the writer runs")
    environ = Path(f"/proc/{writer_pid(serving)}/environ").read_bytes()
    assert b"PASSPHRASE" not in environ


def test_which_ledger_must_be_said_for_a_store_of_ones_own(serving: Serving) -> None:
    done = inside("ledger", "status", "--store", serving.store_url)
    assert done.returncode == 2
    assert "error CONFIG: which ledger is meant is not said" in done.stderr


def test_verify_and_reconcile_of_a_running_server(serving: Serving, tmp_path: Path) -> None:
    before, run = live(serving), runs(serving) + 1
    sell(serving, 10)
    complete(serving)
    until(lambda: any((serving.data_dir / "ledger-heads").glob("*.jsonl")), "heads are signed")
    done = pickgate(serving, "ledger", "verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SOUND  {rows(serving)} rows of" in done.stdout
    assert "signed heads of key" in done.stdout

    done = pickgate(serving, "ledger", "reconcile", "--csv", str(tmp_path / "books.csv"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"EQUAL  run {run}" in done.stdout
    with (tmp_path / "books.csv").open() as file:
        found = list(csv.DictReader(file))
    on_hand = [row for row in found if row["kind"] == "shelf" and row["what"] == "on_hand"]
    assert on_hand
    assert all(row["in_store"] == row["in_ledger"] and row["difference"] == "0" for row in on_hand)
    assert {"codes LIVE": str(before + 10)}.items() <= {
        row["what"]: row["in_ledger"] for row in found if row["kind"] == "total"
    }.items()


def test_the_audit_of_a_running_server(serving: Serving) -> None:
    asked = ("ledger", "audit", "--mall", "1", *since(), "--json")
    sell(serving, 3)
    complete(serving)
    first = json.loads(pickgate(serving, *asked, "--count", "2").stdout)
    assert [one["what"] for one in first["findings"]] == ["STOCK", "ISSUED"]
    rest = json.loads(pickgate(serving, *asked, "--after", first["after"]).stdout)
    assert [one["what"] for one in rest["findings"]] == ["ISSUED", "ISSUED"]
    assert rest["after"] == ""
    uid = rest["findings"][0]["uid"]
    assert uid in pickgate(serving, "ledger", "audit", "--code", uid).stdout
    done = pickgate(serving, "ledger", "audit", "--since", "yesterday")
    assert (done.returncode, done.stderr[:28]) == (2, "error INVALID_INPUT: --since")


def test_a_drift_is_told_and_kept(serving: Serving) -> None:
    sku_id, run = sell(serving, 2), runs(serving) + 1
    complete(serving)
    with shelf_changed(serving, sku_id, None):
        done = pickgate(serving, "ledger", "reconcile")
    assert done.returncode == 1
    assert "DRIFT  partition" in done.stdout
    assert "on_hand 0 in the store, 2 by the ledger (-2)" in done.stdout
    said = json.loads(pickgate(serving, "ledger", "runs", "--json").stdout)["runs"][0]
    assert (said["number"], said["clean"], said["cause"]) == (run, False, "command")
    one = json.loads(pickgate(serving, "ledger", "runs", "--run", str(run), "--json").stdout)
    assert {drift["what"] for drift in one["drift"]} == {"on_hand", "reserved"}
    assert pickgate(serving, "ledger", "runs", "--run", str(run + 1)).returncode == 1


def test_a_drifting_sku_is_frozen_and_unfrozen(serving: Serving) -> None:
    run = runs(serving) + 1
    with serving.open_beside() as deployment:
        sku_id = sell_in(deployment, 9, 1)
    complete(serving)
    with shelf_changed(serving, sku_id, layouts.STOCK.pack(5, 1, 0, 0)):
        done = pickgate(serving, "ledger", "reconcile", "--freeze")
    assert done.returncode == 1, done.stderr
    assert f"FROZEN  SKU {sku_id} of mall 1 at store" in done.stdout
    [one] = json.loads(pickgate(serving, "ledger", "frozen", "--json").stdout)["frozen"]
    assert (one["sku_id"], one["reason"]) == (sku_id, f"reconciliation {run}: on_hand differs")
    words = ["ledger", "unfreeze", "--mall", "1", "--store-id", str(one["store_id"]), "--sku", str(sku_id)]
    done = pickgate(serving, *words, "--reason", "counted by hand", "--actor", "ops:ann")
    assert done.returncode == 0, done.stderr
    assert "UNFROZEN" in done.stdout
    assert json.loads(pickgate(serving, "ledger", "frozen", "--json").stdout)["frozen"] == []
    again = pickgate(serving, *words, "--reason", "counted by hand")
    assert (again.returncode, "is not frozen at store" in again.stderr) == (1, True)
    complete(serving)
    said = json.loads(pickgate(serving, "ledger", "audit", "--actor", "ops:ann", "--json").stdout)
    assert "counted by hand" in json.dumps(said["findings"], ensure_ascii=False)


def test_a_checkpoint_is_kept_and_gone_on_from(serving: Serving) -> None:
    sell(serving, 4)
    complete(serving)
    done = pickgate(serving, "ledger", "checkpoint", "--cut", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    number = said["checkpoint"]
    assert (number, said["removed"]["cut"], said["removed"]["events"]) == (1, 0, 0)
    assert 0 < said["events"] < rows(serving), "without the set-up"
    sell(serving, 2)
    complete(serving)
    run = json.loads(pickgate(serving, "ledger", "reconcile", "--json").stdout)
    assert (run["clean"], run["checkpoint"]) == (True, number)
    report = json.loads(pickgate(serving, "ledger", "verify", "--latest", "--json").stdout)
    assert (report["sound"], report["checkpoints"]) == (True, 1)
    assert report["rows"] == rows(serving) - said["events"]
    assert "no event is old enough to go" in pickgate(serving, "ledger", "cut").stdout

    with reading(serving) as connection:
        [where] = connection.execute("SELECT partition FROM checkpoint_pieces WHERE piece = 1").fetchone()
    piece = f"number = {number} AND partition = {where} AND piece = 1"
    with harmed(serving, "checkpoint_pieces", piece, "substr(data, 2) || x'00'"):
        done = pickgate(serving, "ledger", "reconcile")
        assert done.returncode == 0
        assert f"checkpoint {number} is not used" in done.stdout
        done = pickgate(serving, "ledger", "verify")
        assert done.returncode == 1
        assert f"BAD  checkpoint {number}: partition" in done.stdout
    assert pickgate(serving, "ledger", "verify").returncode == 0


def test_a_flipped_byte_is_named_on_the_command_line(serving: Serving) -> None:
    """As people run it, as a process, and over the wire."""
    with harmed(serving, "events", "partition = 1024 AND seq = 2", "data || x'00'"):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PICKGATE_")}
        done = subprocess.run(
            [sys.executable, "-m", "server.cli", "ledger", "verify", "--data-dir", str(serving.data_dir)],
            env=kept | {"PYTHONPATH": os.pathsep.join(("", "proto"))},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        assert "BAD  the control partition, row 1-2: its bytes or its link were changed" in done.stdout
        said = ask(serving, "chain", "verify", "--partition", "control", code=1)
        assert "BAD  the control partition, row 1-2: its bytes or its link were changed" in said
    assert pickgate(serving, "ledger", "verify").returncode == 0


def test_a_ledger_of_another_deployment_rebuilds_nothing(tmp_path: Path) -> None:
    folder, other = tmp_path / "data", tmp_path / "other.sqlite3"
    folder.mkdir(mode=0o700)
    for path, deployment_id in ((folder / "ledger.sqlite3", "own"), (other, "another")):
        Ledger.open(sqlite_url(path), deployment_id=deployment_id, create=True).close()
    words = ["ledger", "rebuild", "--data-dir", str(folder), "--ledger", sqlite_url(other)]
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 2, refused.output
    assert "the ledger is of deployment another" in refused.output
    assert "has one of own" in refused.output
    (folder / "ledger.sqlite3").write_bytes(b"torn by a dying disk")
    tried = CliRunner().invoke(main, words)
    assert "does not hold the deployment's constants" in tried.output, (
        "a damaged one does not stand in the way"
    )


def test_the_daily_reconciliation_comes_at_its_time() -> None:
    now_ms = [1_800_000_000_000 - 1_800_000_000_000 % 86_400_000 + 12 * 3_600_000 - 1_000]
    daily = Daily("12:00 UTC", lambda: now_ms[0], ["--version"], os.environ)

    def running() -> bool:
        daily.look()
        return daily.running

    assert not running(), "a second before"
    now_ms[0] += 1_000
    assert running()
    until(lambda: not running(), "it has ended")
    assert not running(), "once a day"
    daily.stop()


# --- the commands that ask the server ---------------------------------------------------------------------------------
def test_a_reconciliation_over_the_wire(serving: Serving, tmp_path: Path) -> None:
    before, run = live(serving), runs(serving) + 1
    sku_id = sell(serving, 10)
    complete(serving)
    books = str(tmp_path / "books.csv")
    said = ask(serving, "reconciliations", "run", "--actor", "ops:lin", "--csv", books)
    assert f"EQUAL  run {run}" in said
    with open(books) as file:
        totals = {row["what"]: row["in_ledger"] for row in csv.DictReader(file) if row["kind"] == "total"}
    assert totals["codes LIVE"] == str(before + 10)
    asked = ("reconciliations", "run", "--request-id", request_id())
    with shelf_changed(serving, sku_id, None):
        said = ask(serving, *asked, code=1)
    assert "on_hand 0 in the store, 10 by the ledger (-10)" in said
    # The same request again is the same operation, and has its result.
    again = json.loads(ask(serving, *asked, "--json", code=1))
    assert (again["run"], again["cause"], again["clean"]) == (run + 1, "operation", False)
    listed = json.loads(ask(serving, "reconciliations", "list", "--json"))["runs"]
    assert [(one["number"], one["clean"]) for one in listed[:2]] == [(run + 1, False), (run, True)]
    assert f"EQUAL  run {run}" in ask(serving, "reconciliations", "show", str(run))


def test_an_operation_outlives_the_writer_that_should_take_it_up(serving: Serving) -> None:
    """It lies in the ledger: the next writer finds it there."""
    until(lambda: writer_pid(serving) != 0, "the writer runs")
    pid, asked, run = writer_pid(serving), request_id(), runs(serving) + 1
    os.kill(pid, signal.SIGSTOP)
    try:
        begun = json.loads(
            ask(serving, "reconciliations", "run", "--no-wait", "--request-id", asked, "--json")
        )
        assert begun["state"] == "PENDING"
    finally:
        os.kill(pid, signal.SIGKILL)
    assert f"EQUAL  run {run}" in ask(serving, "reconciliations", "run", "--request-id", asked)


def test_feeds_over_the_wire_with_workers(tmp_path: Path) -> None:
    """Every worker tells the same; what one was told to keep, the others know."""
    with Serving(tmp_path, workers=2) as serving:
        serving.furnish()
        sell(serving, 5)
        complete(serving)
        said = ask(
            serving, "events", "follow", "--mall", "1", "--consumer", "shop", "--until-caught-up", "--ack"
        )
        assert said.count("  ISSUED  ") == 5
        cursor = said.split()[-1]
        request = event_pb.SubscribeCodeEventsRequest(mall_id=1, consumer="shop")
        # Each client is a connection, and the kernel chooses its worker.
        for oldest in (False, True) * 4:
            request.oldest = oldest
            with Client(serving.address) as client:
                batch = next(client.stream(client.code_events.SubscribeCodeEvents, request))
                assert (len(batch.events), batch.cursor) == (5 if oldest else 0, cursor)
        stored = ask(serving, "events", "ack", cursor, "--mall", "1", "--consumer", "shop")
        assert stored.startswith(f"ACKNOWLEDGED  {cursor}, at ")
        said = ask(
            serving, "settlements", "follow", "--wallet", "purse", "--until-caught-up", "--ack", "--json"
        )
        assert (json.loads(said)["settlements"], json.loads(said)["caught_up"]) == ([], True)
        status = json.loads(ask(serving, "chain", "status", "--json"))
        assert [(one["feed"], one["name"]) for one in status["consumers"]] == [
            ("CODE_EVENTS", "shop"),
            ("SETTLEMENTS", "purse"),
        ]
        assert serving.end(signal.SIGTERM) == 0


def test_audit_and_chain_over_the_wire(serving: Serving) -> None:
    asked = ("audit", "--mall", "1", *since(), "--json")
    sell(serving, 2)
    complete(serving)
    first = json.loads(ask(serving, *asked, "--count", "2"))
    assert [one["what"] for one in first["findings"]] == ["STOCK", "ISSUED"]
    assert first["findings"][0]["details"]["amount"] == 2
    rest = json.loads(ask(serving, *asked, "--after", first["after"]))
    assert ([one["what"] for one in rest["findings"]], rest["after"]) == (["ISSUED"], "")
    said = ask(serving, "chain", "verify")
    assert f"SOUND  {rows(serving)} rows of 5 partitions, against " in said
    assert " signed heads, the newest of " in said, "the server found them in its own folder"
    # The writer says how far it is once a second; before its first word nobody knows.
    until(lambda: "s behind, as of" in ask(serving, "chain", "status"), "the writer says how far it is")
    assert "Settlements of order NO-SUCH" in ask(serving, "settlements", "order", "NO-SUCH", "--mall", "1")
