"""State = fold(events): what the events of one partition add up to, byte for byte what its scripts keep.

Reconciliation compares it with the store, and a lost store is rebuilt from it. Each event is held against what came before it:
one that can't have happened (more handed out than was left, a code issued twice, figures that don't add up) is a Contradiction
that names it, and nothing behind it can be told.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from engine import limits
from engine.calls import StockChange
from engine.claims import EventId, State
from engine.ledger import records
from engine.ledger.answers import Answers
from engine.ledger.records import Record
from engine.state import layouts
from engine.state.events import Event, EventType, parse, unpack_lines
from engine.state.streams import START, Entry, Place, begins_epoch, follows

Shelf: TypeAlias = tuple[int, int, int]
"""Mall, store, SKU."""


class Contradiction(Exception):
    """An event that can't follow those before it."""

    def __init__(self, event: EventId, why: str) -> None:
        super().__init__(f"event {event}: {why}")
        self.event = event
        self.why = why


@dataclass(slots=True)
class Figures:
    """Stock of one shelf."""

    on_hand: int = 0
    reserved: int = 0
    baseline: int = 0
    tier: int = 0

    def pack(self) -> bytes:
        """As the scripts keep it."""
        return layouts.STOCK.pack(self.on_hand, self.reserved, self.baseline, self.tier)


class Departure(NamedTuple):
    """Units that left a store of this partition: the key under which they are in transit until they have arrived."""

    request: bytes
    number: bytes
    """layouts.DEPARTURE of the event."""


class Arrival(NamedTuple):
    """Units that came to a store of this partition, and from where."""

    request: bytes
    store_id: int
    """The store that they left."""
    number: bytes


DAY_MS: Final = 86_400_000
REGISTER_DAYS: Final = 4
"""For how many days, the current one included, the store looks for a request id (lua/register.lua)."""
_MAKING: Final = bytes([EventType.ISSUED, EventType.HELD])
_REGISTERED: Final = frozenset(
    {
        EventType.CONFIRMED,
        EventType.EXTENDED,
        EventType.VOIDED,
        EventType.REVIEWED,
        EventType.STOCK,
        EventType.TRANSFER_OUT,
    }
)
"""Whose requests stand in the register of request ids (engine.registered), besides those that make a code."""
_ACTOR_LEN: Final = slice(layouts.EVENT.size - 2, layouts.EVENT.size)


class Fold:
    """What the events so far add up to, of one partition."""

    def __init__(self, partition: int, *, remember: bool = False) -> None:
        """remember: keep the answers of requests too, as a rebuild needs them."""
        self.partition = partition
        self.place: Place = START
        self.last_at_ms = 0
        self.shelves: dict[Shelf, Figures] = {}
        self.records: dict[bytes, bytes] = {}
        self.evidence: dict[bytes, bytes] = {}
        """Tries that count at the moment, of each code, as layouts.EVIDENCE one behind the other."""
        self.reviews: dict[bytes, int] = {}
        """Codes whose review is open, and since when (unix ms)."""
        self.departures: dict[Departure, bytes] = {}
        """As layouts.TRANSIT; arrived or not, since that another partition says."""
        self.arrivals: dict[Arrival, int] = {}
        """And when (unix ms)."""
        self.register: dict[bytes, bytes] = {}
        """If answers are kept: requests of malls, by digest: the day since 1970 in four bytes, and the body's digest."""
        self.answers = Answers() if remember else None
        self.last: Entry | None = None
        """The event at `place`; None before the first, and behind a checkpoint."""

    def add_all(self, entries: Iterable[Entry]) -> None:
        """Add events in order. Raises Contradiction."""
        for entry in entries:
            self.add(entry)

    def add(self, entry: Entry) -> None:
        """Add the next event. Raises Contradiction."""
        if not follows(self.place, entry):
            raise Contradiction(
                self._number(entry), f"it follows {self.place}: events between them are missing"
            )
        try:
            if entry.data[1] in _MAKING:
                self._make(entry)
            elif not begins_epoch(entry):
                event = parse(self.partition, b"%d-%d" % entry[:2], entry.data)
                self.last_at_ms = event.at_ms
                _STEPS[event.type](self, event)
                if self.answers is not None and event.type in _REGISTERED:
                    self.register[event.request] = _day(event.at_ms) + event.body
        except (struct.error, ValueError, KeyError, IndexError) as error:
            raise Contradiction(
                self._number(entry), f"its bytes are no event ({type(error).__name__}: {error})"
            ) from error
        self.place = Place(entry.epoch, entry.seq)
        self.last = entry

    def _number(self, entry: Entry) -> EventId:
        return EventId(self.partition, entry.epoch, entry.seq)

    # --- stock ------------------------------------------------------------------------------------------------
    def figures(self, mall_id: int, store_id: int, sku_id: int) -> Figures:
        """A shelf's figures; zeros when the store never had it."""
        return self.shelves.setdefault((mall_id, store_id, sku_id), Figures())

    def _move(self, event: Event, sku_id: int, *, on_hand: int = 0, reserved: int = 0) -> Figures:
        shelf = self.figures(event.mall_id, event.store_id, sku_id)
        shelf.on_hand += on_hand
        shelf.reserved += reserved
        if shelf.on_hand < 0 or shelf.reserved < 0:
            raise Contradiction(
                event.id,
                f"SKU {sku_id} of store {event.store_id} would have {shelf.on_hand} on hand and {shelf.reserved} reserved",
            )
        return shelf

    def stock(self, event: Event) -> None:
        """A delivery, an adjustment, a stocktake or a baseline."""
        facts = event.facts
        shelf = self.figures(event.mall_id, event.store_id, facts["sku_id"])
        change, amount = StockChange(facts["change"]), facts["amount"]
        if change is StockChange.BASELINE:
            shelf.baseline = amount
        elif change is StockChange.COUNT:
            shelf.on_hand = amount
        else:
            self._move(event, facts["sku_id"], on_hand=amount)
        self._agree(event, shelf)
        if self.answers is not None:
            self.answers.stock(event, shelf.pack())

    def tier(self, event: Event) -> None:
        """A SKU's stock crossed a bound."""
        facts = event.facts
        shelf = self.figures(event.mall_id, event.store_id, facts["sku_id"])
        if facts["old"] != shelf.tier:
            raise Contradiction(
                event.id, f"it says that the tier was {facts['old']}; it was {shelf.tier} before"
            )
        shelf.tier = facts["tier"]
        self._agree(event, shelf)
        if self.answers is not None:
            self.answers.tier(event, shelf.pack())

    def _agree(self, event: Event, shelf: Figures) -> None:
        facts = event.facts
        said = Figures(facts["on_hand"], facts["reserved"], facts["baseline"], facts["tier"])
        if said != shelf:
            raise Contradiction(
                event.id,
                f"it says that SKU {facts['sku_id']} of store {event.store_id} has {said.on_hand} on hand, {said.reserved}"
                f" reserved; the events before it add up to {shelf.on_hand} and {shelf.reserved}",
            )

    def depart(self, event: Event) -> None:
        """Units leave for another store."""
        facts = event.facts
        shelf = self._move(event, facts["sku_id"], on_hand=-facts["amount"])
        if shelf.on_hand < shelf.reserved:
            raise Contradiction(event.id, "units left that were promised to codes")
        number = layouts.DEPARTURE.pack(event.id.epoch, event.id.seq.to_bytes(6, "big"))
        self.departures[Departure(event.request, number)] = (
            layouts.TRANSIT.pack(
                event.body,
                event.mall_id,
                event.store_id,
                facts["other_store_id"],
                facts["sku_id"],
                facts["amount"],
                event.at_ms.to_bytes(6, "big"),
            )
            + event.actor.encode()
        )
        if self.answers is not None:
            self.answers.departure(event, shelf.pack())

    def arrive(self, event: Event) -> None:
        """Units come from another store."""
        facts = event.facts
        shelf = self._move(event, facts["sku_id"], on_hand=facts["amount"])
        epoch, seq = facts["departure"]
        number = layouts.DEPARTURE.pack(epoch, seq.to_bytes(6, "big"))
        arrival = Arrival(event.request, facts["other_store_id"], number)
        if arrival in self.arrivals:
            raise Contradiction(event.id, "the same departure arrives a second time")
        self.arrivals[arrival] = event.at_ms
        if self.answers is not None:
            self.answers.arrival(event, shelf.pack(), number)

    # --- codes ------------------------------------------------------------------------------------------------
    def _make(self, entry: Entry) -> None:
        """A code is issued or held. Read without the parser of events: a ledger is half made of these."""
        data = entry.data
        head = layouts.EVENT.struct.unpack_from(data)
        mall_id, store_id, uid = head[3], head[4], head[5]
        record = data[layouts.EVENT.size + int.from_bytes(data[_ACTOR_LEN], "big") :]
        fields = layouts.RECORD.struct.unpack_from(record)
        known = self.records.get(uid)
        if known is not None:
            before = records.read(known)
            if not before.ended:
                raise Contradiction(self._number(entry), f"code {uid.hex()} is made a second time")
            # Its uid could return only because it was forgotten, and all that was remembered with it.
            if self.answers is not None:
                self.answers.forget(before)
        if (fields[_MALL], fields[_STORE]) != (mall_id, store_id) or (
            fields[_ISSUE_EPOCH],
            int.from_bytes(fields[_ISSUE_SEQ], "big"),
        ) != entry[:2]:
            raise Contradiction(self._number(entry), "its record says another mall, store or event")
        lines, _ = unpack_lines(record, layouts.RECORD.size, fields[_N_LINES])
        for line in lines:
            shelf = self.figures(mall_id, store_id, line.sku_id)
            shelf.reserved += line.count
            if line.left != line.count or shelf.reserved > shelf.on_hand:
                raise Contradiction(
                    self._number(entry), f"it promises SKU {line.sku_id} that is not on the shelf"
                )
        self.last_at_ms = int.from_bytes(head[2], "big")
        self.records[uid] = record
        if self.answers is not None:
            self.register[head[7]] = _day(self.last_at_ms) + head[8]

    def _record(self, event: Event) -> Record:
        data = self.records.get(event.uid)
        if data is None:
            raise Contradiction(event.id, f"code {event.uid.hex()} was never made")
        record = records.read(data)
        if (record.mall, record.store) != (event.mall_id, event.store_id):
            raise Contradiction(event.id, f"code {event.uid.hex()} is of another mall or store")
        if any(event.request):
            record.requests += event.request
        return record

    def _keep(self, event: Event, record: Record) -> None:
        self.records[event.uid] = records.write(record)

    def _state(self, event: Event, record: Record, *allowed: State) -> None:
        if record.state not in allowed:
            raise Contradiction(
                event.id,
                f"{event.type.name} of code {event.uid.hex()}, which is {State(record.state).name.lower()}",
            )

    def _free(self, event: Event, record: Record) -> None:
        """Its tries and its review are over."""
        record.tries = record.lock_epoch = record.lock_seq = 0
        self.evidence.pop(event.uid, None)
        self.reviews.pop(event.uid, None)

    def _end(self, event: Event, record: Record, state: State) -> None:
        record.state = state
        self._free(event, record)
        _touch(record, event.at_ms)

    def move_expiry(self, event: Event) -> None:
        """A held code is paid, or a code's expiry moves."""
        record = self._record(event)
        if event.type is EventType.CONFIRMED:
            self._state(event, record, State.HELD)
            record.state = State.LIVE
        else:
            self._state(event, record, State.LIVE, State.PARTLY, State.LOCKED)
        record.exp = event.facts["expires_at_s"]
        _touch(record, event.at_ms)
        self._keep(event, record)
        if self.answers is not None:
            self.answers.change(event, record)

    def redeem(self, event: Event) -> None:
        """Units are handed out."""
        record = self._record(event)
        self._state(event, record, State.LIVE, State.PARTLY)
        facts = event.facts
        for place, line in zip(facts["places"], facts["lines"], strict=True):
            kept = record.lines[place]
            kept.left -= line.count
            if kept.sku != line.sku_id or kept.left != line.left or line.count < 1 or kept.left < 0:
                raise Contradiction(
                    event.id, f"code {event.uid.hex()} hands out more of SKU {line.sku_id} than was left"
                )
            self._move(event, line.sku_id, on_hand=-line.count, reserved=-line.count)
        record.last_terminal, record.last_at = event.terminal_id, event.at_ms
        record.requests += facts["burnt"]
        if record.left:
            record.state = State.PARTLY
            _touch(record, event.at_ms)
        else:
            self._end(event, record, State.REDEEMED)
        if record.state != facts["state"] or record.cycle != facts["cycle"]:
            raise Contradiction(
                event.id, f"it says that code {event.uid.hex()} is {facts['state'].name.lower()} after it"
            )
        self._keep(event, record)
        if self.answers is not None:
            self.answers.redeem(event, record)

    def reverse(self, event: Event) -> None:
        """Units come back."""
        record = self._record(event)
        self._state(event, record, State.LIVE, State.PARTLY, State.LOCKED, State.REDEEMED)
        facts = event.facts
        before = [line.count for line in record.lines]
        for place, line in zip(facts["places"], facts["lines"], strict=True):
            kept = record.lines[place]
            if kept.sku != line.sku_id or not 0 < line.count <= kept.out:
                raise Contradiction(
                    event.id, f"more of SKU {line.sku_id} comes back than code {event.uid.hex()} handed out"
                )
            if facts["release"]:
                kept.count -= line.count
            else:
                kept.left += line.count
            self._move(event, line.sku_id, on_hand=line.count, reserved=0 if facts["release"] else line.count)
        for bundle in record.bundles:
            if facts["release"] and bundle.units:
                first = bundle.first - 1
                bundle.units = bundle.units * record.lines[first].count // before[first]
        record.cycle += 1
        record.exp = facts["expires_at_s"]
        out = any(line.out for line in record.lines)
        if record.left:
            if record.state != State.LOCKED:
                record.state = State.PARTLY if out else State.LIVE
            _touch(record, event.at_ms)
        else:
            self._end(event, record, State(record.state) if out else State.VOIDED)
        if record.state != facts["state"] or record.cycle != facts["cycle"]:
            raise Contradiction(
                event.id, f"it says that code {event.uid.hex()} is {facts['state'].name.lower()} after it"
            )
        self._keep(event, record)
        if self.answers is not None:
            self.answers.reverse(event, record)

    def try_(self, event: Event) -> None:
        """A try that counts failed; the third locks the code."""
        record = self._record(event)
        self._state(event, record, State.LIVE, State.PARTLY)
        facts = event.facts
        record.tries += 1
        locks = record.tries >= limits.TRIES_MAX
        if facts["tries"] != record.tries or (event.type is EventType.LOCKED) != locks:
            raise Contradiction(
                event.id,
                f"it counts {facts['tries']} tries of code {event.uid.hex()}, it is the {record.tries}th",
            )
        actor = event.actor.encode()
        self.evidence[event.uid] = (
            self.evidence.get(event.uid, b"")
            + layouts.EVIDENCE.pack(
                event.at_ms.to_bytes(6, "big"),
                event.store_id,
                event.terminal_id,
                facts["verdict"],
                facts["bucket"],
                len(actor),
            )
            + actor
        )
        if locks:
            record.state, record.lock_epoch, record.lock_seq = State.LOCKED, event.id.epoch, event.id.seq
            self.reviews[event.uid] = event.at_ms
        self._keep(event, record)
        if self.answers is not None:
            self.answers.try_(event, record)

    def review(self, event: Event) -> None:
        """A locked code is decided."""
        record = self._record(event)
        self._state(event, record, State.LOCKED)
        after = event.facts["state"]
        if after is State.VOIDED:
            self._release(event, record)
        elif after is State.REDEEMED:
            for line in record.lines:
                if line.left:
                    self._move(event, line.sku, on_hand=-line.left, reserved=-line.left)
                line.left = 0
            record.last_terminal, record.last_at = 0, event.at_ms
        if after in (State.VOIDED, State.REDEEMED):
            self._end(event, record, after)
        else:
            record.state = after
            self._free(event, record)
        self._keep(event, record)
        if self.answers is not None:
            self.answers.review(event, record)

    def end(self, event: Event) -> None:
        """A code is voided, or its time is over."""
        record = self._record(event)
        self._state(event, record, State.HELD, State.LIVE, State.PARTLY, State.LOCKED)
        self._release(event, record)
        self._end(event, record, State.VOIDED if event.type is EventType.VOIDED else State.EXPIRED)
        self._keep(event, record)
        if self.answers is not None and event.type is EventType.VOIDED:
            self.answers.void(event, record)

    def _release(self, event: Event, record: Record) -> None:
        said = [(line.sku_id, line.left) for line in event.facts["lines"]]
        if said != [(line.sku, line.left) for line in record.lines if line.left]:
            raise Contradiction(
                event.id, f"it releases something else than what code {event.uid.hex()} had left"
            )
        for sku_id, left in said:
            self._move(event, sku_id, reserved=-left)

    def forget(self, now_ms: int) -> None:
        """Drop what the store has forgotten, or may: codes that ended long enough ago, and their answers."""
        for uid, data in list(self.records.items()):
            if records.is_ended(data) and forgettable(record := records.read(data), now_ms):
                del self.records[uid]
                if self.answers is not None:
                    self.answers.forget(record)

    def prune(self, *, arrived: Collection[Arrival] = ()) -> None:
        """Drop what no later event can touch and no rebuild writes, judged by the time of the last event.

        A code may be reversed until it is forgotten, and a store that nobody swept forgets late: ended ones are kept for the longest
        window of a reversal besides. arrived: departures that are over (Fold.over, of every partition).
        """
        self.forget(self._over_ms())
        today = self.last_at_ms // DAY_MS
        for request, entry in list(self.register.items()):
            if int.from_bytes(entry[:4], "big") + REGISTER_DAYS <= today:
                del self.register[request]
        for departure, data in list(self.departures.items()):
            if Arrival(departure.request, left_store(data), departure.number) in arrived:
                del self.departures[departure]
        for arrival in self.over():
            self.arrivals.pop(arrival, None)
        if self.answers is not None:
            self.answers.prune(self.last_at_ms)

    def _over_ms(self) -> int:
        return self.last_at_ms - limits.REVERSAL_WINDOW_S_MAX * 1000

    def is_over(self, data: bytes) -> bool:
        """Whether `prune` would drop a record: nothing can happen to it any more. False for bytes that are no record."""
        try:
            return records.is_ended(data) and forgettable(records.read(data), self._over_ms())
        except (struct.error, IndexError):
            return False

    def over(self) -> list[Arrival]:
        """Arrivals so old that the store has forgotten them."""
        end_ms = self.last_at_ms - limits.ARRIVAL_TTL_S * 1000
        return [arrival for arrival, at_ms in self.arrivals.items() if at_ms <= end_ms]


def left_store(transit: bytes) -> int:
    """The store that units in transit left."""
    return int(layouts.TRANSIT.unpack(transit)[layouts.TRANSIT.names.index("store")])


def _day(at_ms: int) -> bytes:
    return (at_ms // DAY_MS).to_bytes(4, "big")


def forgettable(record: Record, now_ms: int) -> bool:
    """Whether a record's afterlife is over: the sweep forgets it, without an event."""
    return record.ended and record.changed + limits.AFTERLIFE_S * 1000 <= now_ms


def _touch(record: Record, at_ms: int) -> None:
    """What a payload shows has changed: later renders get later stamps (lua/base.lua, touch)."""
    given = max(at_ms // 1000, record.stamp_floor)
    record.stamp_floor = given + given % 2 + 1
    record.changed = at_ms
    record.revision = min(255, record.revision + 1)


_names: Final = layouts.RECORD.names
_MALL, _STORE, _N_LINES, _ISSUE_EPOCH, _ISSUE_SEQ = map(
    _names.index, ("mall", "store", "n_lines", "issue_epoch", "issue_seq")
)

_STEPS: Final = {
    EventType.CONFIRMED: Fold.move_expiry,
    EventType.EXTENDED: Fold.move_expiry,
    EventType.REDEEMED: Fold.redeem,
    EventType.REVERSED: Fold.reverse,
    EventType.TRIED: Fold.try_,
    EventType.LOCKED: Fold.try_,
    EventType.REVIEWED: Fold.review,
    EventType.VOIDED: Fold.end,
    EventType.EXPIRED: Fold.end,
    EventType.STOCK: Fold.stock,
    EventType.TIER: Fold.tier,
    EventType.TRANSFER_OUT: Fold.depart,
    EventType.TRANSFER_IN: Fold.arrive,
}
