"""Writer, store and server are killed at random moments in a rush; afterwards the ledger has everything that was acknowledged, once."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.claims import EventId
from engine.errors import StoreUnavailable
from engine.ledger import checkpoints, database, heads, reconcile
from engine.ledger.ledger import Ledger
from engine.ledger.verify import verify
from engine.state.streams import Streams
from server.client import Client
from tests.fault.rush import WireCounter, open_rush
from tests.race.serving import Serving, is_alive, until
from tests.race.shop import SOAK, Shop

pytestmark = pytest.mark.fault

ROUNDS = 100 if SOAK else 10
CODES = 40
"""Of a round: a few seconds of work, in which one thing is killed."""


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


def store_pid(serving: Serving) -> int:
    found = 0

    def answers() -> bool:
        nonlocal found
        try:
            with serving.open_beside() as deployment:
                [info] = deployment.connection.read([("INFO", "server")])
        except StoreUnavailable:
            return False
        found = int(info["process_id"])
        return True

    until(answers, "the store answers")
    return found


def kill_writer(serving: Serving, go_on: Callable[[], None]) -> None:
    found: list[int] = []

    def is_there() -> bool:
        # Asked once for each look: a writer that ends by itself between two would leave process 0, which is this test's own group.
        found.append(writer_pid(serving))
        return found[-1] > 0

    until(is_there, "there is a writer", 60.0)
    os.kill(found[-1], signal.SIGKILL)
    go_on()


def kill_store(serving: Serving, go_on: Callable[[], None]) -> None:
    os.kill(store_pid(serving), signal.SIGKILL)
    go_on()


def kill_server(serving: Serving, go_on: Callable[[], None]) -> None:
    pid = store_pid(serving)
    serving.end(signal.SIGKILL)
    until(lambda: not is_alive(pid), "the store ends with its server", 20.0)
    go_on()
    serving.start()


def test_whatever_is_killed_the_ledger_has_it_all_once(serving: Serving) -> None:
    draw = random.Random(20261125)
    acknowledged: set[EventId] = set()
    for turn in range(ROUNDS):
        harm = (kill_writer, kill_store, kill_server)[turn % 3]
        store_pid(serving)  # it has come back from the turn before
        with Client(serving.address, tries=1, timeout_s=5.0) as client:
            with serving.open_beside() as deployment:
                rush, _ = open_rush(
                    Shop(deployment, name=f"turn-{turn}"), WireCounter(client), CODES, seed=turn
                )
            with rush:
                rush.reach(draw.randrange(1, rush.jobs // 3))
                harm(serving, rush.go_on)
        acknowledged |= {
            EventId(*map(int, call.answer.event.split("-")))
            for call in rush.history.calls
            if call.answer is not None and call.answer.event
        }

    path = serving.data_dir / "ledger.sqlite3"
    until(path.exists, "there is a ledger", 60.0)
    with serving.open_beside() as deployment:
        streams = Streams(deployment.connection)
        with Ledger.open(
            database.sqlite_url(path), deployment_id=deployment.constants.deployment_id
        ) as ledger:
            until(
                lambda: all(
                    ledger.heads().get(number, ledger.first_head(number)).place == streams.last(number)
                    for number in streams.numbers
                ),
                "the ledger has caught up",
                120.0,
            )
            written = [
                EventId(number, row.entry.epoch, row.entry.seq)
                for number in range(len(deployment.connection.partitions))
                for row in ledger.rows(number)
            ]
            assert len(written) == len(set(written)), "an event stands twice"
            assert acknowledged
            assert acknowledged <= set(written)
            folder = serving.data_dir / "ledger-heads"
            public_key = heads.load_public_key(folder / "public.pem")
            # At its start, when the ledger may have had no row yet, and each minute.
            until(lambda: any(heads.read(folder, public_key)), "heads are signed", 120.0)
            statements = list(heads.read(folder, public_key))
            report = verify(ledger, statements)
            assert (report.faults, report.unsound) == ([], [])
            assert report.statements > 0
            assert reconcile.reconcile(deployment, ledger, cause="test").drifts == []
            # And what it adds up to can be kept, and gone on from.
            key = heads.load_key(serving.data_dir / "ledger-key.pem")
            taken = checkpoints.take(ledger, key, at_ms=deployment.now_ms())
            run = reconcile.reconcile(deployment, ledger, cause="test", key=key.public_key())
            assert (run.drifts, run.checkpoint) == ([], taken.number)
            assert verify(ledger, statements, key=key.public_key()).sound
