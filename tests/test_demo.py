"""The demo as a newcomer runs it: once from beginning to end, and cut off in the middle."""

from __future__ import annotations

import io
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from rich.console import Console

from examples import act_one, act_three, act_two, demo
from examples.session import Session
from pickgate.v1 import ledger_service_pb2 as ledger_pb
from pickgate.v1 import types_pb2 as types_pb
from server.client import CallFailed, Client

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith("PICKGATE_") and name != "COLUMNS"
}

ROWS = Counter(
    {
        ("", "TRANSFERRED"): 1,
        ("1001", "REDEEMED"): 1,
        ("1002", "PIN_REQUIRED"): 1,
        ("1002", "REDEEMED"): 1,
        ("1003", "REDEEMED"): 1,
        ("1004", "APPROVED"): 1,
        ("1004", "LOCKED"): 2,
        ("1004", "OWN_TRY"): 1,
        ("1004", "PIN_WRONG"): 2,
        ("1004", "REDEEMED"): 1,
        ("1005", "ALREADY_REDEEMED"): 1,
        ("1005", "REDEEMED"): 2,
        ("1005", "REVERSED"): 1,
        ("1005", "WRONG_STORE"): 1,
        ("1006", "REDEEMED"): 1,
        ("1007", "NOTHING_LEFT"): 1,
        ("1007", "REDEEMED"): 2,
        ("1008", "NOT_REDEEMED"): 1,
        ("1008", "REDEEMED"): 2,
        ("1008", "REVERSED"): 1,
        ("1009", "PROOF_UNAVAILABLE"): 1,
        ("1009", "REDEEMED"): 1,
        ("1010", "REDEEMED"): 1,
        ("1011", "REDEEMED"): 1,
        ("1011", "STALE_CODE"): 1,
        ("1012", "INVALID_CODE"): 1,
        ("1013", "WRONG_STORE"): 1,
        ("1014", "OUT_OF_RANGE"): 1,
        ("1015", "OUT_OF_RANGE"): 1,
        ("1015", "REDEEMED"): 1,
        ("1016", "LOCATION_REQUIRED"): 1,
        ("1016", "LOCATION_UNRELIABLE"): 1,
        ("1017", "REDEEMED"): 1,
        ("1018", "VOIDED"): 2,
        ("1019", "EXPIRED"): 1,
        ("1020", "ADJUSTED"): 1,
        ("1020", "OUT_OF_STOCK"): 1,
        ("1021", "REDEEMED"): 1,
        ("1021", "UNKNOWN_CODE"): 1,
        ("1022", "INVALID_CODE"): 1,
        ("1023", "INVALID_CODE"): 1,
        ("1023", "REDEEMED"): 1,
        ("1024", "INVALID_CODE"): 1,
        ("1024", "REDEEMED"): 1,
        ("1025", "STOCK_SHORT"): 1,
        ("3001", "CONFIRMED"): 1,
        ("3001", "HELD"): 1,
        ("3001", "NOT_CONFIRMED"): 1,
        ("3001", "REDEEMED"): 1,
        ("3002", "EXPIRED"): 1,
        ("3003", "ISSUED"): 1,
        ("3003", "NOTHING_LEFT"): 1,
        ("3003", "REDEEMABLE"): 1,
        ("3003", "REDEEMED"): 3,
        ("3003", "REVERSED"): 1,
        ("3004", "ISSUED"): 1,
        ("3004", "LOCATION_REQUIRED"): 1,
        ("3004", "OUT_OF_RANGE"): 1,
        ("3004", "PROOF_REJECTED"): 1,
        ("3004", "PROOF_REQUIRED"): 1,
        ("3004", "REDEEMED"): 1,
        ("3005", "STOCK_SHORT"): 1,
        ("3006", "ADJUSTED"): 1,
        ("3006", "ISSUED"): 1,
        ("3006", "NOTHING_LEFT"): 1,
        ("3006", "OUT_OF_STOCK"): 1,
        ("3006", "RECEIVED"): 1,
        ("3006", "REDEEMED"): 2,
        ("3007", "ISSUED"): 1,
        ("3007", "REDEEMED"): 1,
        ("3008", "ISSUED"): 1,
        ("3009", "ISSUED"): 1,
        ("3009", "OUTSIDE_WINDOW"): 1,
        ("3009", "REDEEMED"): 1,
        ("3010", "ISSUED"): 1,
        ("3011", "PROMOTION_STOPPED"): 1,
        ("3012", "ISSUED"): 1,
        ("3013", "CHANNEL_CLOSED"): 1,
        ("3014", "ISSUED"): 1,
        ("3015", "ISSUED"): 1,
        ("3016", "ISSUED"): 1,
        ("3016", "VOIDED"): 1,
        ("3017", "ISSUED"): 1,
        ("3017", "REDEEMED"): 1,
        ("3018", "EXTENDED"): 1,
        ("3018", "REDEEMED"): 1,
        ("watch", "CLOSED"): 1,
        ("watch", "EMERGENCY"): 1,
        ("watch", "NORMAL"): 1,
        ("watch", "RED"): 1,
        ("watch", "TIGHT"): 1,
    }
)
"""Order and verdict of every row of the tables: what the rules demand, whatever order the demo plays it in."""

ROW = re.compile(r"^ (?P<order>\d{4}|watch| {5}) .* {2}(?P<verdict>[A-Z][A-Z_]+) {2}.* ok *$")
STOCK_ROW = re.compile(
    r"^ +[12] +200\d +\d{3} +(\d+) +(-?\d+|·) +(\d+|·) +(\d+|·) +(-?\d+|·)"
    r" +(?P<on_hand>\d+) +(?P<reserved>\d+) +(?P<claimed>\d+) +yes *$"
)


def rows_of(lines: Iterable[str]) -> Counter[tuple[str, str]]:
    """Order (or "watch", or "") and verdict of the rows among printed lines, each judged ok."""
    return Counter((row["order"].strip(), row["verdict"]) for row in map(ROW.match, lines) if row)


def until(condition: Callable[[], bool], what: str, bound_s: float = 30.0) -> None:
    """Wait for a condition, looking often; fail past the bound."""
    end = time.monotonic() + bound_s
    while not condition():
        assert time.monotonic() < end, f"not within {bound_s:g} s: {what}"
        threading.Event().wait(0.02)


def processes_in(folder: Path) -> dict[int, str]:
    """Processes that run in a folder or name it in their command line: pid → command line."""
    found = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            where = os.readlink(process / "cwd")
        except OSError:  # it has ended meanwhile, or is another user's
            continue
        if str(folder) in line or Path(where).is_relative_to(folder):
            found[int(process.name)] = line
    return found


def start(folder: Path, **variables: str) -> subprocess.Popen[str]:
    """Start the demo with all that it makes under `folder`."""
    temporary = folder / "tmp"
    temporary.mkdir()
    return subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "demo.py"), "--out", str(folder / "codes")],
        env=ENVIRONMENT
        | {"TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")])}
        | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A demo whose server is up and whose scans have begun."""
    process = start(tmp_path)
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("pickgate serve answers on 127.0.0.1:")
        until(
            lambda: (tmp_path / "codes").exists() and any((tmp_path / "codes").iterdir()),
            "a QR code is drawn",
        )
        assert len(processes_in(tmp_path)) >= 3  # demo, server, store
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_the_demo_from_beginning_to_end(tmp_path: Path) -> None:
    # A setting of another deployment in the environment does not reach the demo's.
    process = start(tmp_path, PICKGATE_DURABILITY="memory", PICKGATE_LISTEN="127.0.0.1:1")
    started_s = time.monotonic()
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, output
    assert "WRONG:" not in output
    lines = output.splitlines()

    assert rows_of(lines) == ROWS, output

    sums = [row for row in map(STOCK_ROW.match, lines) if row]
    assert len(sums) == 28
    moved = 0
    for row in sums:
        received, transfers, redeemed, back, stocktake, on_hand, reserved, claimed = (
            int(figure.replace("·", "0")) for figure in row.groups()
        )
        assert on_hand == received + transfers - redeemed + back + stocktake
        assert reserved == claimed
        moved += transfers
    assert moved == 0  # what left one store has come to another
    assert sum(int(row["claimed"]) for row in sums) >= 12

    assert re.search(r"ALREADY_REDEEMED.*\n.* at \d\d:\d\d:\d\d, terminal 11", output)
    told = [row["verdict"] for row in map(ROW.match, lines) if row and row["order"] == "watch"]
    assert told == ["TIGHT", "RED", "CLOSED", "EMERGENCY", "NORMAL"]
    assert re.search(r"have 99 units transferred from factory store 2004", output)
    assert len(re.findall(r"terminal 21  PIN_WRONG  clerk:21", output)) == 3
    assert re.search(r"2005 人民广场店 .* 1\.6 km +open ", output)
    assert re.search(r"2005 人民广场店 .* 1\.6 km +opens \d\d ", output)
    assert re.search(r"^EQUAL  store and ledger, 28 shelves and 39 codes compared", output, re.MULTILINE)
    assert re.search(r"^SOUND  1\d\d rows of \d partitions, .*against \d signed heads", output, re.MULTILINE)
    assert re.findall(r"^ ((?:store|user):\d+) +(\d+\.\d\d) *$", output, re.MULTILINE) == [
        # 565.20 of 1001, 245.10 of 1005 and 811.82 of 3003; nothing of 1008, which was refunded.
        ("store:2001", "1622.12"),
        ("user:88012", "107.09"),
        ("user:88034", "58.79"),
    ]
    assert "mall 2 is told 3 events of its 2 codes: 2 issued, 1 redeemed" in output
    assert len(re.findall(r"(?:TRIED|LOCKED) +terminal 21  clerk:21$", output, re.MULTILINE)) == 3
    assert "二维码已失效" in output
    assert "The QR code is stale" in output
    pictures = list((tmp_path / "codes").glob("*.png"))
    assert len(pictures) == int(re.search(r"(\d+) QR codes drawn", output)[1])  # type: ignore[index]
    assert (
        65 < time.monotonic() - started_s < 110
    )  # the screenshot was really old; all of it is under two minutes

    assert processes_in(tmp_path) == {}
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_cut_off_ends_all_that_it_started(
    begun: subprocess.Popen[str], tmp_path: Path, number: signal.Signals
) -> None:
    begun.send_signal(number)
    assert begun.wait(60) == 130
    assert begun.stdout is not None
    assert "Traceback" not in begun.stdout.read()
    assert processes_in(tmp_path) == {}
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_server_and_the_store_do_not_outlive_a_killed_demo(
    begun: subprocess.Popen[str], tmp_path: Path
) -> None:
    begun.kill()
    begun.wait()
    until(lambda: not processes_in(tmp_path), "server and store have ended")


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    """A demo's session on a server of its own, with the examples loaded."""
    with demo.serving(tmp_path) as address, Client(address) as client:
        demo.wait_healthy(client)
        session = Session(client, address, tmp_path, Console(file=io.StringIO(), width=demo.WIDTH))
        session.load()
        assert session.problems == []
        yield session
    assert processes_in(tmp_path) == {}


def test_the_demo_notices_what_is_not_as_expected(session: Session) -> None:
    act_one.begin(session)
    assert session.problems == []

    # A verdict other than the expected one, and that the stock moved although a refusal was expected.
    code = session.show("1005")
    session.scan("1005", "QR code", "OUT_OF_STOCK", 11, code)
    assert session.problems == [
        "order 1005, QR code: verdict: got 'REDEEMED', expected 'OUT_OF_STOCK'",
        "order 1005, QR code: stock: got {(1, 2001, 103): Figures(on_hand=57, reserved=3)},"
        " expected {(1, 2001, 103): Figures(on_hand=60, reserved=6)}",
    ]
    session.problems.clear()

    # A fact of the answer that is not what it should be: it was terminal 11.
    session.scan("1005", "again", "ALREADY_REDEEMED", 12, code, facts={"terminal_id": 12})
    assert session.problems == ["order 1005, again: terminal_id: got 11, expected 12"]
    session.problems.clear()

    # A reversal that was not expected.
    session.reverse("1005", "brought back", "REVERSAL_CLOSED", 11)
    assert session.problems[0] == (
        "order 1005, brought back: verdict: got 'REVERSED', expected 'REVERSAL_CLOSED'"
    )
    session.problems.clear()
    session.scan("1005", "once more", "STALE_CODE", 11, session.show("1005"))
    session.problems.clear()

    # Stock that does not add up: that redemption was never booked by the demo.
    session.add_up()
    assert any(problem.startswith("stock (1, 2001, 103): got ") for problem in session.problems)
    assert any(problem.startswith("order 1005 ends as REDEEMED") for problem in session.problems)
    session.problems.clear()

    # A picture that another QR version than the expected one is drawn for.
    session.picture(session.rendered("1006").text, "1006", 8)
    assert [problem.partition(":")[2] for problem in session.problems] == [" QR version 4, expected 8"]


def test_the_demo_notices_books_that_do_not_add_up(session: Session, tmp_path: Path) -> None:
    def ledger_is_made() -> bool:
        try:
            session.client.call(session.client.ledger.GetLedgerStatus, ledger_pb.GetLedgerStatusRequest())
        except CallFailed:
            return False
        return True

    act_one.begin(session)
    session.scan("1005", "QR code", "REDEEMED", 11, session.show("1005"))
    until(ledger_is_made, "the writer has begun")
    session.orders = {name: session.orders[name] for name in ("1005", "1021", "3003")}
    session.problems.clear()

    # Codes that our own books know nothing of, and one that nobody was told of.
    session.orders["3003"].uid = "0" * 16
    act_three.reconciled(session)
    assert [problem.partition(":")[0] for problem in session.problems] == ["codes that were compared"]
    session.problems.clear()
    act_three.told(session)
    assert session.problems[0].startswith("orders that mall 1 is told of: got {")
    session.problems.clear()

    # A redemption that our own books don't know.
    session.orders["1005"].left[103] += 1
    act_three.paid(session, tmp_path)
    assert session.problems == [
        "the wallet's balances: got {'store:2001': '245.10', 'user:88034': '12.90'},"
        " expected {'store:2001': '163.40', 'user:88012': '0.00', 'user:88034': '8.60'}"
    ]
    session.problems.clear()

    # A chain that was changed behind our back.
    with closing(sqlite3.connect(tmp_path / act_three.DATA / "ledger.sqlite3", timeout=10)) as connection:
        connection.execute("UPDATE events SET data = data || x'00' WHERE partition = 1024 AND seq = 2")
        connection.commit()
    act_three.verified(session, tmp_path)
    assert [problem.partition(":")[0] for problem in session.problems] == ["verify", "the chain"]


def test_the_demo_notices_what_a_watch_tells_wrong(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(act_two, "NEWS_S_MAX", 2.0)
    with act_two.Watcher(session.address, act_two.WATCHED) as watcher:
        session.issue("3007", "sold")
        session.issue("3008", "sold")
        act_two.told(session, watcher, types_pb.STOCK_TIER_RED)
        assert session.problems == ["the watch is told: got 'TIGHT', expected 'RED'"]
        session.problems.clear()

        # Nothing is told where nothing is crossed.
        act_two.told(session, watcher, types_pb.STOCK_TIER_RED)
        assert session.problems[0] == "the watch is told: got 'UNSPECIFIED', expected 'RED'"
        session.problems.clear()

        # A crossing that nobody has waited for.
        session.issue("3010", "sold")
        session.issue("3009", "sold")
        until(lambda: watcher.waiting == 1, "red is told")
        act_two.watched(session, watcher)
        assert session.problems == ["crossings told besides: got 1, expected 0"]
