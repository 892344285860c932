"""The ledger's writer from a full stream into SQLite, against the same events inserted one by one; a store rebuilt from it."""

import itertools
import json
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from engine.calls import StockChange
from engine.deployment import system_ms
from engine.ledger import database
from engine.ledger.ledger import Head, Ledger
from engine.ledger.rebuild import rebuild
from engine.ledger.writer import Writer
from engine.state import attempts, stock, streams
from engine.state.connection import Connection, Durability
from engine.state.keys import spread_tags
from engine.state.server import EmbeddedServer
from engine.state.streams import Entry, Streams
from tests.bench.conftest import Measure
from tests.bench.report import OUT
from tests.bench.test_state import MALL, SKU, STORE, draw, issue, tries

EVENTS = 40_000
"""Half of them issues, half redemptions."""
ROUNDS = 3
ONE_BY_ONE = 500
CODES = 50_000

SUBJECT, CASE = "write the ledger", "SQLite, a full stream"


@pytest.fixture(scope="module")
def connection() -> Iterator[Connection]:
    """Connect to a store of one partition whose stream holds EVENTS events and a few more."""
    OUT.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=OUT, prefix="store-") as data_dir,
        EmbeddedServer(data_dir, durability="memory") as server,
    ):
        opened = Connection(server.url, durability=Durability.MEMORY, now_ms=system_ms)
        opened.use_partitions(spread_tags(1), create=True)
        received = stock.StockItem(
            draw.randbytes(12), bytes(8), MALL, STORE, SKU, StockChange.RECEIVE, 1_000_000, "", ""
        )
        stock.change(opened, [received])
        for _ in range(EVENTS // 2 // 250):
            attempts.run(opened, tries(issue(opened, 250)))
        yield opened
        opened.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder on the disk of the report, where the store's data lies too."""
    with tempfile.TemporaryDirectory(dir=OUT, prefix="ledger-") as made:
        yield Path(made)


def test_batches(
    measure: Measure, connection: Connection, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each round reads the whole stream again.
    monkeypatch.setattr(streams, "KEPT", 10 * EVENTS)
    numbers = itertools.count()

    def begin() -> tuple[Writer]:
        url = database.sqlite_url(folder / f"{next(numbers)}.sqlite3")
        ledger = Ledger.open(url, deployment_id="bench", create=True)
        writer = Writer(Streams(connection), ledger, now_ms=system_ms)
        writer.start()
        return (writer,)

    def write(writer: Writer) -> int:
        return sum(iter(lambda: writer.step(block_ms=0), 0))

    written = measure(SUBJECT, CASE, "engine", EVENTS, write, prepare=begin, rounds=ROUNDS)
    assert EVENTS <= written < EVENTS + 10


def test_one_by_one(measure: Measure, connection: Connection, folder: Path) -> None:
    entries = Streams(connection).read({0: streams.START}, 0)[0][:ONE_BY_ONE]
    numbers = itertools.count()

    def begin() -> tuple[Ledger]:
        url = database.sqlite_url(folder / f"{next(numbers)}.sqlite3")
        return (Ledger.open(url, deployment_id="bench", create=True),)

    def write(ledger: Ledger) -> Head:
        head = ledger.first_head(0)
        for entry in entries:
            head = _append_one(ledger, head, entry)
        return head

    head = measure(SUBJECT, CASE, "plain", ONE_BY_ONE, write, prepare=begin, rounds=ROUNDS)
    assert head.rows == ONE_BY_ONE


def _append_one(ledger: Ledger, head: Head, entry: Entry) -> Head:
    """A transaction for each event, as its answer would be waited for."""
    return ledger.append({0: head}, {0: [entry]})[0]


def test_rebuild(measure: Measure, folder: Path) -> None:
    """CODES live codes in a ledger, into an empty store: the figure of a code is what the whole rebuild took for each."""
    tag = spread_tags(1)[0]
    with (
        tempfile.TemporaryDirectory(dir=OUT, prefix="store-") as data_dir,
        EmbeddedServer(data_dir, durability="memory") as server,
        closing(Connection(server.url, durability=Durability.MEMORY, now_ms=system_ms)) as opened,
        Ledger.open(database.sqlite_url(folder / "l.sqlite3"), deployment_id="bench", create=True) as ledger,
    ):
        opened.use_partitions([tag], create=True)
        received = stock.StockItem(
            draw.randbytes(12), bytes(8), MALL, STORE, SKU, StockChange.RECEIVE, 1_000_000, "", ""
        )
        stock.change(opened, [received])
        for _ in range(CODES // 250):
            issue(opened, 250)
        writer = Writer(Streams(opened), ledger, now_ms=system_ms)
        writer.start()
        while writer.step(block_ms=0):
            pass
        ledger.keep_setup(json.dumps({"partitions": 1, "tags": [tag.decode()]}).encode(), b"")

        def empty() -> tuple[()]:
            opened.write([("FLUSHALL",)])
            return ()

        def fill() -> int:
            with closing(
                Connection(server.url, durability=Durability.MEMORY, now_ms=system_ms)
            ) as connection:
                return rebuild(connection, ledger, now_ms=system_ms()).codes

        codes_made = measure(
            "rebuild a store", "from SQLite, live codes", "engine", CODES, fill, prepare=empty, rounds=ROUNDS
        )
        assert codes_made == CODES
