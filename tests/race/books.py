"""The books of a deployment, kept a second time: folded from its events alone, then compared with what the store holds.

Not the engine's own arithmetic: what was received, handed out, taken back, sent on and released is summed up here from the
events, and the figures, the records and the numbering must agree with it to the unit.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final

from engine import limits
from engine.calls import Record, StockChange
from engine.claims import Decision, EventId, LineState, State
from engine.deployment import Deployment
from engine.idempotency import REQUEST_BYTES
from engine.state import codes, layouts
from engine.state.events import Event, EventType, parse

Shelf = tuple[int, int, int]
"""(mall, store, SKU)."""
Departure = tuple[bytes, int, int]
"""Units that left a store: request digest, epoch and seq of the event."""

OPEN: Final = (State.LIVE, State.PARTLY)
"""States in which units can be handed out."""


@dataclass
class Life:
    """What the events so far say of one code; `left` and `out` are units by SKU: still claimed, and handed out."""

    state: State
    left: Counter[int]
    expires_at_s: int
    out: Counter[int] = field(default_factory=Counter)
    cycle: int = 0
    tries: int = 0
    redeemed_at_ms: int = 0
    terminal_id: int = 0
    ended_at_ms: int = 0


@dataclass
class Books:
    """What the events say: units per shelf, and each code's life."""

    events: list[Event]
    on_hand: Counter[Shelf] = field(default_factory=Counter)
    reserved: Counter[Shelf] = field(default_factory=Counter)
    handed_out: Counter[Shelf] = field(default_factory=Counter)
    """Units that codes took away, less those that came back."""
    received: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Units that receipts and corrections brought in, by mall and SKU, all stores together."""
    transit: dict[Departure, Event] = field(default_factory=dict)
    """Departures of units that have not arrived."""
    arrived: set[Departure] = field(default_factory=set)
    lives: dict[bytes, Life] = field(default_factory=dict)
    issued: dict[bytes, Record] = field(default_factory=dict)
    """Each code's record as it was made."""
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


# --- folding ----------------------------------------------------------------------------------------------------------
def fold(events: Iterable[Event]) -> Books:
    """Keep books from events. Fails where an event can't follow those before it in its partition."""
    books = Books(list(events))
    for event in books.events:
        if event.type in _STEPS_OF_STOCK:
            _STEPS_OF_STOCK[event.type](books, event)
        elif event.type is not EventType.EPOCH:
            if event.type in (EventType.ISSUED, EventType.HELD):
                _make(books, event)
            else:
                _STEPS_OF_CODE[event.type](books, event, books.lives[event.uid])
            books.of_code[event.uid].append(event)
    # Both ends of a transfer lie in partitions of their own, whose events are not ordered among each other.
    for departure in books.arrived:
        assert departure in books.transit, "units arrived that nobody sent"
        del books.transit[departure]
    return books


def _move_stock(books: Books, event: Event) -> None:
    mall_id, sku_id = event.mall_id, event.facts["sku_id"]
    shelf = (mall_id, event.store_id, sku_id)
    before = books.on_hand[shelf]
    if event.facts["change"] in (StockChange.RECEIVE, StockChange.ADJUST_BY):
        books.on_hand[shelf] += event.facts["amount"]
    elif event.facts["change"] == StockChange.COUNT:
        books.on_hand[shelf] = event.facts["amount"]
    books.received[mall_id, sku_id] += books.on_hand[shelf] - before
    _agree_on_figures(books, event)


def _agree_on_figures(books: Books, event: Event) -> None:
    shelf = (event.mall_id, event.store_id, event.facts["sku_id"])
    assert event.facts["on_hand"] == books.on_hand[shelf], f"an event with other figures: {event}"
    assert event.facts["reserved"] == books.reserved[shelf], f"an event with other figures: {event}"


def _send(books: Books, event: Event) -> None:
    shelf = (event.mall_id, event.store_id, event.facts["sku_id"])
    books.on_hand[shelf] -= event.facts["amount"]
    assert books.on_hand[shelf] >= books.reserved[shelf], f"sent away what was promised: {event}"
    books.transit[event.request, event.id.epoch, event.id.seq] = event


def _arrive(books: Books, event: Event) -> None:
    books.on_hand[event.mall_id, event.store_id, event.facts["sku_id"]] += event.facts["amount"]
    departure = (event.request, *event.facts["departure"])
    assert departure not in books.arrived, f"one transfer arrived twice: {event}"
    books.arrived.add(departure)


def _make(books: Books, event: Event) -> None:
    assert event.uid not in books.lives, f"issued twice: {event}"
    record = codes.parse_record(event.uid, event.facts["record"])
    assert record.state is (State.HELD if event.type is EventType.HELD else State.LIVE)
    books.issued[event.uid] = record
    life = Life(record.state, Counter(), record.expires_at_s)
    for line in record.lines:
        life.left[line.sku_id] += line.count
        shelf = (event.mall_id, event.store_id, line.sku_id)
        books.reserved[shelf] += line.count
        assert books.on_hand[shelf] >= books.reserved[shelf], f"promised what is not there: {event}"
    books.lives[event.uid] = life


def _confirm(books: Books, event: Event, life: Life) -> None:
    assert life.state is State.HELD, f"confirmed what was not held: {event}"
    assert life.expires_at_s * 1000 > event.at_ms, f"confirmed too late: {event}"
    life.state, life.expires_at_s = State.LIVE, event.facts["expires_at_s"]


def _extend(books: Books, event: Event, life: Life) -> None:
    assert life.state in (*OPEN, State.LOCKED), f"extended what has ended: {event}"
    assert event.facts["expires_at_s"] > life.expires_at_s > event.at_ms // 1000, (
        f"extended too late: {event}"
    )
    life.expires_at_s = event.facts["expires_at_s"]


def _redeem(books: Books, event: Event, life: Life) -> None:
    assert life.state in OPEN, f"handed out on a code that was not open: {event}"
    assert life.expires_at_s * 1000 > event.at_ms, f"handed out too late: {event}"
    _hand_out(books, event, life, event.facts["lines"])
    life.state = State.PARTLY if any(life.left.values()) else State.REDEEMED
    assert (event.facts["state"], event.facts["cycle"]) == (life.state, life.cycle)
    if life.state is State.REDEEMED:
        _end(life, event)


def _hand_out(books: Books, event: Event, life: Life, lines: Iterable[LineState]) -> None:
    for line in lines:
        shelf = (event.mall_id, event.store_id, line.sku_id)
        life.left[line.sku_id] -= line.count
        life.out[line.sku_id] += line.count
        assert life.left[line.sku_id] >= line.left >= 0, f"handed out more than was left: {event}"
        books.on_hand[shelf] -= line.count
        books.reserved[shelf] -= line.count
        books.handed_out[shelf] += line.count
        assert min(books.on_hand[shelf], books.reserved[shelf]) >= 0, (
            f"handed out what was not there: {event}"
        )
    life.redeemed_at_ms, life.terminal_id = event.at_ms, event.terminal_id


def _reverse(books: Books, event: Event, life: Life) -> None:
    assert life.state in (*OPEN, State.LOCKED, State.REDEEMED), f"reversed on a code that has ended: {event}"
    for line in event.facts["lines"]:
        shelf = (event.mall_id, event.store_id, line.sku_id)
        life.out[line.sku_id] -= line.count
        assert life.out[line.sku_id] >= 0, f"took back more than was out: {event}"
        books.on_hand[shelf] += line.count
        books.handed_out[shelf] -= line.count
        if not event.facts["release"]:
            life.left[line.sku_id] += line.count
            books.reserved[shelf] += line.count
    life.cycle += 1
    assert event.facts["cycle"] == life.cycle <= limits.CYCLES_MAX, f"a cycle out of turn: {event}"
    left, out = any(life.left.values()), any(life.out.values())
    if left:
        locked = life.state is State.LOCKED
        life.state = State.LOCKED if locked else State.PARTLY if out else State.LIVE
        life.expires_at_s = event.facts["expires_at_s"]
    else:
        life.state = State.REDEEMED if out else State.VOIDED
        _end(life, event)
    assert event.facts["state"] is life.state, f"reversed to another state: {event}"


def _try(books: Books, event: Event, life: Life) -> None:
    assert life.state in OPEN, f"counted a try on a code that was not open: {event}"
    life.tries += 1
    assert event.facts["tries"] == life.tries
    assert event.type is (EventType.LOCKED if life.tries == limits.TRIES_MAX else EventType.TRIED)
    if event.type is EventType.LOCKED:
        life.state = State.LOCKED


def _review(books: Books, event: Event, life: Life) -> None:
    assert life.state is State.LOCKED, f"decided what was not locked: {event}"
    decision = Decision(event.facts["decision"])
    if decision is Decision.APPROVE:
        life.state, life.tries = State.PARTLY if any(life.out.values()) else State.LIVE, 0
    elif decision is Decision.REDEEM:
        _hand_out(books, event, life, event.facts["lines"])
        life.state = State.REDEEMED
        _end(life, event)
    else:
        _release(books, event, life)
        life.state = State.VOIDED
    assert event.facts["state"] is life.state


def _void(books: Books, event: Event, life: Life) -> None:
    assert life.expires_at_s * 1000 > event.at_ms, f"voided too late: {event}"
    _release(books, event, life)
    life.state = State.VOIDED


def _expire(books: Books, event: Event, life: Life) -> None:
    assert life.expires_at_s * 1000 <= event.at_ms, f"expired too early: {event}"
    _release(books, event, life)
    life.state = State.EXPIRED


def _release(books: Books, event: Event, life: Life) -> None:
    assert life.state < State.REDEEMED, f"ended twice: {event}"
    released: Counter[int] = Counter()
    for line in event.facts["lines"]:
        released[line.sku_id] += line.left
    assert +life.left == released, f"released something else than was left: {event}"
    for sku_id, units in released.items():
        books.reserved[event.mall_id, event.store_id, sku_id] -= units
    life.left.clear()
    _end(life, event)


def _end(life: Life, event: Event) -> None:
    life.tries, life.ended_at_ms = 0, event.at_ms


_STEPS_OF_STOCK: Final = {
    EventType.STOCK: _move_stock,
    EventType.TIER: _agree_on_figures,
    EventType.TRANSFER_OUT: _send,
    EventType.TRANSFER_IN: _arrive,
}
_STEPS_OF_CODE: Final = {
    EventType.CONFIRMED: _confirm,
    EventType.EXTENDED: _extend,
    EventType.REDEEMED: _redeem,
    EventType.REVERSED: _reverse,
    EventType.TRIED: _try,
    EventType.LOCKED: _try,
    EventType.REVIEWED: _review,
    EventType.VOIDED: _void,
    EventType.EXPIRED: _expire,
}


def check_numbers(events: Iterable[Event]) -> None:
    """Event numbers: in each partition epochs rise, and each epoch counts 1, 2, 3 … without a gap or a repetition."""
    for partition, of_partition in groupby(events, key=lambda event: event.id.partition):
        ids = [event.id for event in of_partition]
        sizes = Counter(number.epoch for number in ids)
        expected = [
            EventId(partition, epoch, seq) for epoch in sorted(sizes) for seq in range(1, 1 + sizes[epoch])
        ]
        assert ids == expected


# --- comparing --------------------------------------------------------------------------------------------------------
def check_books(deployment: Deployment) -> Books:
    """Compare events, stock figures and records of a deployment at rest, all of them; return the books."""
    books = fold(read_events(deployment))
    check_numbers(books.events)
    _check_shelves(books, deployment)
    _check_transit(books, deployment)
    _check_codes(books, deployment)
    return books


def _pairs(reply: Any) -> dict[bytes, bytes]:
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


def _check_shelves(books: Books, deployment: Deployment) -> None:
    connection = deployment.connection
    figures: dict[Shelf, tuple[int, int]] = {}
    for names in connection.partitions:
        [stock_keys] = connection.read([("KEYS", b"{%s}s*" % names.tag)])
        for key in stock_keys:
            mall_id, store_id = map(int, key.rpartition(b"}s")[2].split(b":"))
            [fields] = connection.read([("HGETALL", key)])
            for sku, packed in _pairs(fields).items():
                on_hand, reserved, *_ = layouts.STOCK.unpack(packed)
                figures[mall_id, store_id, int(sku)] = (on_hand, reserved)

    shelves = set(figures) | set(books.on_hand) | set(books.reserved)
    assert {shelf: figures.get(shelf, (0, 0)) for shelf in shelves} == {
        shelf: (books.on_hand[shelf], books.reserved[shelf]) for shelf in shelves
    }, "stock figures (on_hand, reserved) and events disagree"
    assert min([*books.on_hand.values(), *books.reserved.values()], default=0) >= 0

    claimed: Counter[Shelf] = Counter()
    for uid, life in books.lives.items():
        record = books.issued[uid]
        for sku_id, units in life.left.items():
            claimed[record.mall_id, record.store_id, sku_id] += units
    assert +claimed == +books.reserved, "what codes still claim is not what is reserved"


def _check_transit(books: Books, deployment: Deployment) -> None:
    connection = deployment.connection
    kept: dict[Departure, int] = {}
    for names in connection.partitions:
        [fields] = connection.read([("HGETALL", names.transit)])
        for key, data in _pairs(fields).items():
            epoch, seq = layouts.DEPARTURE.unpack(key, REQUEST_BYTES)
            units = layouts.TRANSIT.unpack(data)[layouts.TRANSIT.names.index("amount")]
            kept[key[:REQUEST_BYTES], epoch, seq] = units
    # One that has arrived may wait to be struck out; one that has not must be there.
    assert {departure: units for departure, units in kept.items() if departure not in books.arrived} == {
        departure: event.facts["amount"] for departure, event in books.transit.items()
    }

    there: Counter[tuple[int, int]] = Counter()
    for (mall_id, _, sku_id), units in books.on_hand.items():
        there[mall_id, sku_id] += units
    for (mall_id, _, sku_id), units in books.handed_out.items():
        there[mall_id, sku_id] += units
    for event in books.transit.values():
        there[event.mall_id, event.facts["sku_id"]] += event.facts["amount"]
    assert +there == +books.received, "units were lost or made"


def _check_codes(books: Books, deployment: Deployment) -> None:
    connection = deployment.connection
    records = 0
    kept_evidence: set[bytes] = set()
    open_reviews: set[bytes] = set()
    for names in connection.partitions:
        [buckets, evidence, reviews] = connection.read(
            [
                ("KEYS", b"{%s}c*" % names.tag),
                ("HKEYS", names.evidence),
                ("ZRANGE", names.reviews, 0, -1),
            ]
        )
        kept_evidence.update(evidence)
        open_reviews.update(reviews)
        records += sum(connection.read([("HLEN", bucket) for bucket in buckets])) if buckets else 0

    uids = list(books.lives)
    found = dict(zip(uids, codes.read(connection, uids), strict=True))
    assert records == sum(record is not None for record in found.values()), "a record of a code never issued"
    for uid, record in found.items():
        life = books.lives[uid]
        if record is None:
            forgettable_ms = life.ended_at_ms + limits.AFTERLIFE_S * 1000
            assert life.state >= State.REDEEMED, f"the record of {uid.hex()} has vanished"
            assert forgettable_ms <= deployment.now_ms(), f"the record of {uid.hex()} was forgotten too early"
        else:
            _check_record(life, record)
    assert kept_evidence == {uid for uid, life in books.lives.items() if life.tries}
    assert open_reviews == {uid for uid, life in books.lives.items() if life.state is State.LOCKED}


def _check_record(life: Life, record: Record) -> None:
    left: Counter[int] = Counter()
    if life.state < State.REDEEMED:
        for line in record.lines:
            left[line.sku_id] += line.left
    assert (record.state, record.cycle, record.tries) == (life.state, life.cycle, life.tries), record
    assert (record.redeemed_at_ms, record.terminal_id) == (life.redeemed_at_ms, life.terminal_id), record
    assert record.expires_at_s == life.expires_at_s, record
    assert +left == +life.left, record
    assert (record.lock is not None) == (life.state is State.LOCKED), record
