"""The books of a deployment, kept a second time: folded from its events alone, then compared with what the store holds.

Not the engine's own arithmetic: what was received, handed out and released is summed up here from the events, and the
figures, the records and the numbering must agree with it to the unit.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

from engine.calls import Record, StockChange
from engine.claims import EventId, State
from engine.deployment import Deployment
from engine.state import codes, layouts
from engine.state.events import Event, EventType, parse

Shelf = tuple[int, int, int]
"""(mall, store, SKU)."""


@dataclass
class Books:
    """What the events say: units per shelf, and each code's life."""

    events: list[Event]
    on_hand: Counter[Shelf] = field(default_factory=Counter)
    reserved: Counter[Shelf] = field(default_factory=Counter)
    handed_out: Counter[Shelf] = field(default_factory=Counter)
    issued: dict[bytes, Record] = field(default_factory=dict)
    left: dict[bytes, dict[int, int]] = field(default_factory=dict)
    """Units of each code not yet handed out nor released, by SKU."""
    of_code: dict[bytes, list[Event]] = field(default_factory=lambda: defaultdict(list))

    def kinds(self, uid: bytes) -> list[EventType]:
        """Kinds of a code's events, in order."""
        return [event.type for event in self.of_code[uid]]

    def epochs(self) -> dict[int, int]:
        """Last epoch of each partition that has events."""
        return {
            partition: max(event.id.epoch for event in events)
            for partition, events in groupby(self.events, key=lambda event: event.id.partition)
        }


def read_events(deployment: Deployment) -> Iterator[Event]:
    """Every event of every partition, in order."""
    for partition, names in enumerate(deployment.connection.partitions):
        [entries] = deployment.connection.read([("XRANGE", names.events, "-", "+")])
        for entry_id, fields in entries:
            yield parse(partition, entry_id, fields[b"e"])


def fold(events: Iterable[Event]) -> Books:
    """Keep books from events. Fails where an event can't follow those before it."""
    books = Books(list(events))
    for event in books.events:
        if event.type is EventType.EPOCH:
            continue
        if event.type is EventType.STOCK:
            _fold_stock(books, event)
            continue
        if event.type is EventType.ISSUED:
            assert event.uid not in books.issued, f"issued twice: {event}"
            record = codes.parse_record(event.uid, event.facts["record"])
            books.issued[event.uid] = record
            books.left[event.uid] = {line.sku_id: line.count for line in record.lines}
            for line in record.lines:
                books.reserved[event.mall_id, event.store_id, line.sku_id] += line.count
        elif event.type is EventType.REDEEMED:
            _fold_redeemed(books, event)
        elif event.type in (EventType.VOIDED, EventType.EXPIRED):
            assert {line.sku_id: line.left for line in event.facts["lines"]} == books.left[event.uid]
            for sku_id, units in books.left.pop(event.uid).items():
                books.reserved[event.mall_id, event.store_id, sku_id] -= units
        else:
            assert event.type in (EventType.TRIED, EventType.LOCKED), f"not known to these books: {event}"
            assert event.uid in books.left, f"counted a try on a code that has ended: {event}"
        books.of_code[event.uid].append(event)
    return books


def _fold_stock(books: Books, event: Event) -> None:
    shelf = (event.mall_id, event.store_id, event.facts["sku_id"])
    if event.facts["change"] in (StockChange.RECEIVE, StockChange.ADJUST_BY):
        books.on_hand[shelf] += event.facts["amount"]
    elif event.facts["change"] == StockChange.COUNT:
        books.on_hand[shelf] = event.facts["amount"]
    assert event.facts["on_hand"] == books.on_hand[shelf], f"an event with other figures: {event}"
    assert event.facts["reserved"] == books.reserved[shelf], f"an event with other figures: {event}"


def _fold_redeemed(books: Books, event: Event) -> None:
    left = books.left[event.uid]
    for line in event.facts["lines"]:
        shelf = (event.mall_id, event.store_id, line.sku_id)
        left[line.sku_id] -= line.count
        assert left[line.sku_id] == line.left >= 0, f"handed out more than was left: {event}"
        books.on_hand[shelf] -= line.count
        books.reserved[shelf] -= line.count
        books.handed_out[shelf] += line.count
    if not any(left.values()):
        del books.left[event.uid]
    assert event.facts["state"] is (State.PARTLY if event.uid in books.left else State.REDEEMED)


def check_numbers(events: Iterable[Event]) -> None:
    """Event numbers: in each partition epochs rise, and each epoch counts 1, 2, 3 … without a gap or a repetition."""
    for partition, of_partition in groupby(events, key=lambda event: event.id.partition):
        ids = [event.id for event in of_partition]
        epochs = sorted({number.epoch for number in ids})
        expected = [
            EventId(partition, epoch, seq)
            for epoch in epochs
            for seq in range(1, 1 + sum(number.epoch == epoch for number in ids))
        ]
        assert ids == expected


def check_books(deployment: Deployment) -> Books:
    """Compare events, stock figures and records of a deployment at rest, all of them; return the books."""
    books = fold(read_events(deployment))
    check_numbers(books.events)
    connection = deployment.connection

    figures: dict[Shelf, tuple[int, int]] = {}
    records = 0
    for names in connection.partitions:
        [stock_keys] = connection.read([("KEYS", b"{%s}s*" % names.tag)])
        for key in stock_keys:
            mall_id, store_id = map(int, key.rpartition(b"}s")[2].split(b":"))
            [pairs] = connection.read([("HGETALL", key)])
            for sku, packed in pairs.items():
                on_hand, reserved, *_ = layouts.STOCK.unpack(packed)
                figures[mall_id, store_id, int(sku)] = (on_hand, reserved)
        [buckets] = connection.read([("KEYS", b"{%s}c*" % names.tag)])
        records += sum(connection.read([("HLEN", bucket) for bucket in buckets])) if buckets else 0

    shelves = set(figures) | set(books.on_hand) | set(books.reserved)
    assert {shelf: figures.get(shelf, (0, 0)) for shelf in shelves} == {
        shelf: (books.on_hand[shelf], books.reserved[shelf]) for shelf in shelves
    }, "stock figures (on_hand, reserved) and events disagree"
    assert min([*books.on_hand.values(), *books.reserved.values()], default=0) >= 0

    assert records == len(books.issued), "as many records as codes issued"
    uids = list(books.issued)
    for uid, record in zip(uids, codes.read(connection, uids), strict=True):
        assert record is not None, f"the record of {uid.hex()} has vanished"
        _check_record(books, record)
    return books


def _check_record(books: Books, record: Record) -> None:
    events = books.of_code[record.uid]
    last = events[-1]
    expected = {
        EventType.ISSUED: State.LIVE,
        EventType.REDEEMED: State.PARTLY if record.uid in books.left else State.REDEEMED,
        EventType.VOIDED: State.VOIDED,
        EventType.EXPIRED: State.EXPIRED,
        EventType.LOCKED: State.LOCKED,
    }
    if last.type in expected:
        assert record.state is expected[last.type], f"{record} after {last}"
    redeemed = [event for event in events if event.type is EventType.REDEEMED]
    if redeemed:
        assert (record.redeemed_at_ms, record.terminal_id) == (redeemed[-1].at_ms, redeemed[-1].terminal_id)
    assert record.tries == sum(event.type in (EventType.TRIED, EventType.LOCKED) for event in events)
    if record.uid in books.left:
        assert {line.sku_id: line.left for line in record.lines} == books.left[record.uid]
