"""Reads the store of a pickgate deployment for the audit, beside the server and behind its back.

The one module of the load tools that may import `engine`: it needs the layouts of events and records, and nothing else. What
the contract says is not good enough here, since the server that answered the calls would also answer for them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from engine.calls import StockChange
from engine.claims import State as CodeState
from engine.deployment import Deployment, Durability
from engine.ledger import database
from engine.ledger.ledger import Ledger
from engine.state import codes, layouts
from engine.state.events import Event, EventType, parse
from engine.state.server import running_url
from loadtests import audit
from loadtests.audit import Audit

PAGE: Final = 5_000
"""Events read at once."""
BUCKETS: Final = 256
"""Hash buckets read at once."""
LEDGER_MADE_S_MAX: Final = 30.0
"""How long a server's ledger may take to be there, on a machine that does other things."""

_STATES: Final = {
    CodeState.LIVE: audit.State.LIVE,
    CodeState.PARTLY: audit.State.PARTLY,
    CodeState.REDEEMED: audit.State.REDEEMED,
    CodeState.VOIDED: audit.State.VOIDED,
    CodeState.EXPIRED: audit.State.EXPIRED,
}


def socket_of(data_dir: Path) -> Path:
    """The socket of the embedded store that runs on a data folder."""
    return Path(running_url(data_dir).removeprefix("unix://"))


def read(data_dir: Path) -> Audit:
    """Read the embedded store that runs on a data folder, at rest. Raises engine.errors.PickgateError if it can't be read."""
    url = running_url(data_dir)
    # Locked: nothing is opened or sealed here.
    with Deployment.open(url, unlock=None, durability=Durability.FSYNC) as deployment:
        return read_deployment(deployment)


def read_deployment(deployment: Deployment) -> Audit:
    """Read an open deployment."""
    made = Audit()
    for partition in range(len(deployment.connection.partitions)):
        _fold(made, deployment, partition)
    shelves: dict[audit.Shelf, tuple[int, int]] = {}
    for names in deployment.connection.partitions:
        _records(made, deployment, names.tag)
        shelves |= _figures(deployment, names.tag)
    made.figures(shelves)
    return made


def _fold(made: Audit, deployment: Deployment, partition: int) -> None:
    """Take the events of one partition, and look at their numbers: 1, 2, 3 ... in each epoch, and epochs rise."""
    epoch, seq = 0, 0
    for event in _events(deployment, partition):
        number = event.id
        if (number.epoch, number.seq) != (epoch, seq + 1) and not (number.epoch > epoch and number.seq == 1):
            made.fault(
                f"partition {partition}: event {number.epoch}-{number.seq} follows {epoch}-{seq}: a gap"
            )
        epoch, seq = number.epoch, number.seq
        _take(made, event)
    [last] = deployment.connection.read(
        [("HMGET", deployment.connection.partitions[partition].meta, "epoch", "seq")]
    )
    if tuple(int(value or 0) for value in last) != (epoch, seq):
        made.fault(f"partition {partition}: its last event is {epoch}-{seq}, the partition counts {last}")


def _events(deployment: Deployment, partition: int) -> Iterator[Event]:
    stream = deployment.connection.partitions[partition].events
    first = b"-"
    while True:
        [entries] = deployment.connection.read([("XRANGE", stream, first, "+", "COUNT", PAGE)])
        if not entries:
            return
        for entry_id, fields in entries:
            yield parse(partition, entry_id, fields[b"e"])
        first = b"(" + entries[-1][0]


def _take(made: Audit, event: Event) -> None:
    match event.type:
        case EventType.ISSUED:
            record = codes.parse_record(event.uid, event.facts["record"])
            lines = [(line.sku_id, line.count) for line in record.lines]
            made.issue(event.uid, event.mall_id, event.store_id, lines)
        case EventType.REDEEMED:
            made.redeem(event.uid, [(line.sku_id, line.count) for line in event.facts["lines"]])
        case EventType.VOIDED:
            made.end(event.uid, audit.State.VOIDED)
        case EventType.EXPIRED:
            made.end(event.uid, audit.State.EXPIRED)
        case EventType.EXTENDED:
            made.extend(event.uid)
        case EventType.STOCK if event.facts["change"] in (StockChange.RECEIVE, StockChange.ADJUST_BY):
            made.receive((event.mall_id, event.store_id, event.facts["sku_id"]), event.facts["amount"])
        case EventType.EPOCH | EventType.TIER:
            pass
        case _:
            made.fault(f"{event.type.name} event {event.id}: nothing that load tools cause")


def _records(made: Audit, deployment: Deployment, tag: bytes) -> None:
    connection = deployment.connection
    [keys] = connection.read([("KEYS", b"{%s}c*" % tag)])
    for first in range(0, len(keys), BUCKETS):
        buckets = connection.read([("HGETALL", key) for key in keys[first : first + BUCKETS]])
        for uid, data in (item for bucket in buckets for item in _pairs(bucket).items()):
            record = codes.parse_record(uid, data)
            state = _STATES.get(record.state)
            if state is None:
                made.fault(f"{uid.hex()} is {record.state.name}: nothing that load tools cause")
            else:
                made.record(uid, state, [(line.sku_id, line.left) for line in record.lines])


def _figures(deployment: Deployment, tag: bytes) -> dict[audit.Shelf, tuple[int, int]]:
    connection = deployment.connection
    [keys] = connection.read([("KEYS", b"{%s}s*" % tag)])
    found: dict[audit.Shelf, tuple[int, int]] = {}
    for key in keys:
        mall_id, store_id = map(int, key.rpartition(b"}s")[2].split(b":"))
        [fields] = connection.read([("HGETALL", key)])
        for sku, packed in _pairs(fields).items():
            on_hand, reserved, *_ = layouts.STOCK.unpack(packed)
            found[mall_id, store_id, int(sku)] = (on_hand, reserved)
    return found


def _pairs(reply: Any) -> dict[bytes, bytes]:
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


class Behind:
    """The embedded store that runs on a data folder and the ledger that is written beside it: how far each has come. For one thread."""

    def __init__(self, data_dir: Path) -> None:
        """Raises engine.errors.PickgateError when one of them is not there, the ledger not within LEDGER_MADE_S_MAX."""
        self._deployment = Deployment.open(running_url(data_dir), unlock=None, durability=Durability.FSYNC)
        try:
            self._ledger = self._open_ledger(data_dir / "ledger.sqlite3")
        except BaseException:
            self._deployment.close()
            raise

    def _open_ledger(self, path: Path) -> Ledger:
        # A new server serves before the process beside it has made the ledger.
        give_up_s = time.monotonic() + LEDGER_MADE_S_MAX
        while not path.exists() and time.monotonic() < give_up_s:
            time.sleep(0.02)
        return Ledger.open(database.sqlite_url(path), deployment_id=self._deployment.constants.deployment_id)

    def close(self) -> None:
        """Close both."""
        self._ledger.close()
        self._deployment.close()

    def in_store(self) -> dict[int, tuple[int, int]]:
        """The last event of each partition that the store has."""
        connection = self._deployment.connection
        # One exchange for all: a look must cost the store nothing that is seen in the calls.
        facts = connection.read([("HMGET", names.meta, "epoch", "seq") for names in connection.partitions])
        return {number: (int(epoch), int(seq)) for number, (epoch, seq) in enumerate(facts)}

    def in_ledger(self) -> dict[int, tuple[int, int]]:
        """The last event of each partition that is committed."""
        return {number: head.place for number, head in self._ledger.heads().items()}

    def redeemed(self) -> set[bytes]:
        """Uids of all codes of which the ledger has a redemption."""
        uid = slice(layouts.EVENT.at("uid"), layouts.EVENT.at("terminal"))
        return {
            row.entry.data[uid]
            for number in self.in_store()
            for row in self._ledger.rows(number)
            if row.entry.data[1] == EventType.REDEEMED
        }
