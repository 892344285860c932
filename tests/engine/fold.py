"""State = fold(events): the rules of state written a second time, in plain Python, over what the events say.

Each step also checks that the event can follow those before it, so a history that breaks an invariant fails here, at the
event that broke it. Nothing is taken from the engine but the binary layouts and the parser of events.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from engine import limits
from engine.calls import StockChange
from engine.claims import State
from engine.deployment import Deployment
from engine.state import layouts
from engine.state.events import Event, EventType, unpack_lines

Shelf = tuple[int, int, int]
"""Mall, store, SKU."""
LIVE: Final = {State.LIVE, State.PARTLY}
ENDED: Final = {State.REDEEMED, State.VOIDED, State.EXPIRED}


@dataclass
class Figures:
    """Stock of one shelf, and how it came about."""

    on_hand: int = 0
    reserved: int = 0
    baseline: int = 0
    received: int = 0
    adjusted: int = 0
    redeemed: int = 0


@dataclass
class Folded:
    """What the events so far add up to."""

    shelves: dict[Shelf, Figures] = field(default_factory=lambda: defaultdict(Figures))
    records: dict[bytes, dict[str, Any]] = field(default_factory=dict)
    numbers: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Epoch and sequence number of each partition's last event."""
    changes: dict[bytes, int] = field(default_factory=dict)
    """When each request, by its digest, last changed something (unix ms)."""


def read_record(data: bytes) -> dict[str, Any]:
    """Every field of a record as stored, by name, with its lines, requests, order and split."""
    r: dict[str, Any] = dict(zip(layouts.RECORD.names, layouts.RECORD.unpack(data), strict=True))
    lines, at = unpack_lines(data, layouts.RECORD.size, r.pop("n_lines"))
    r["lines"] = {line.sku_id: [line.count, line.left] for line in lines}
    requests_end = at + 12 * r.pop("n_requests")
    r["requests"] = [data[n : n + 12] for n in range(at, requests_end, 12)]
    order_end = requests_end + r.pop("order_len")
    r["order"], r["split"] = data[requests_end:order_end], data[order_end:]
    assert len(r["split"]) == r.pop("split_len")
    r["state"] = State(r["state"])
    return r


def fold(events: Iterable[Event]) -> Folded:
    """Add up events, in order within each partition. AssertionError names the first that can't be."""
    folded = Folded()
    for event in events:
        _number(folded, event)
        if event.type is not EventType.EPOCH:
            _STEPS[event.type](folded, event)
    return folded


def _number(folded: Folded, event: Event) -> None:
    """I5: numbered without gaps; an epoch begins with its own event."""
    epoch, seq = folded.numbers.get(event.id.partition, (1, 0))
    if event.type is EventType.EPOCH:
        assert event.id.epoch == epoch + 1, event
        assert event.id.seq == 1, event
    else:
        assert (event.id.epoch, event.id.seq) == (epoch, seq + 1), event
        if any(event.request):
            last_ms = folded.changes.get(event.request)
            # A request may change something again only when its first answer is remembered no more.
            assert last_ms is None or event.at_ms - last_ms >= limits.AFTERLIFE_S * 1000, event
            folded.changes[event.request] = event.at_ms
    folded.numbers[event.id.partition] = event.id.epoch, event.id.seq


def _take(folded: Folded, event: Event, sku: int, *, reserved: int, on_hand: int = 0) -> None:
    """I2: no figure goes below zero."""
    shelf = folded.shelves[event.mall_id, event.store_id, sku]
    shelf.reserved -= reserved
    shelf.on_hand -= on_hand
    assert shelf.reserved >= 0, event
    assert shelf.on_hand >= 0, event


def _issued(folded: Folded, event: Event) -> None:
    record = read_record(event.facts["record"])
    known = folded.records.get(event.uid)
    assert known is None or known["state"] in ENDED, event
    assert record["state"] is State.LIVE
    assert (record["mall"], record["store"], record["issued"]) == (event.mall_id, event.store_id, event.at_ms)
    assert (record["issue_epoch"], record["issue_seq"]) == (event.id.epoch, event.id.seq)
    assert record["exp"] * 1000 > event.at_ms
    assert record["tries"] == 0
    for sku, (count, left) in record["lines"].items():
        assert count == left
        shelf = folded.shelves[event.mall_id, event.store_id, sku]
        assert shelf.on_hand - shelf.reserved >= count, f"promised what is not there: {event}"
        shelf.reserved += count
    folded.records[event.uid] = record


def _touch(record: dict[str, Any], event: Event) -> None:
    """What a payload shows has changed: later renders get later stamps."""
    given = max(event.at_ms // 1000, record["stamp_floor"])
    record["stamp_floor"] = given + (2 if given % 2 else 1)
    record["changed"] = event.at_ms
    record["revision"] = min(255, record["revision"] + 1)


def _redeemed(folded: Folded, event: Event) -> None:
    record = folded.records[event.uid]
    assert record["state"] in LIVE, event
    assert record["exp"] * 1000 > event.at_ms, event
    assert (record["mall"], record["store"]) == (event.mall_id, event.store_id)
    assert event.facts["lines"], event
    for line in event.facts["lines"]:
        kept = record["lines"][line.sku_id]
        kept[1] -= line.count
        # I1: no unit is handed out twice.
        assert kept[1] == line.left >= 0, event
        assert line.count > 0, event
        _take(folded, event, line.sku_id, reserved=line.count, on_hand=line.count)
        folded.shelves[event.mall_id, event.store_id, line.sku_id].redeemed += line.count
    nothing_left = not any(left for _, left in record["lines"].values())
    assert event.facts["state"] is (State.REDEEMED if nothing_left else State.PARTLY), event
    record["state"] = event.facts["state"]
    record["last_terminal"], record["last_at"] = event.terminal_id, event.at_ms
    record["requests"].append(event.request)
    _touch(record, event)


def _tried(folded: Folded, event: Event) -> None:
    record = folded.records[event.uid]
    assert record["state"] in LIVE, event
    record["tries"] += 1
    record["requests"].append(event.request)
    assert event.facts["tries"] == record["tries"], event
    locks = record["tries"] >= limits.TRIES_MAX
    assert event.type is (EventType.LOCKED if locks else EventType.TRIED), event
    if locks:
        record["state"] = State.LOCKED
        record["lock_epoch"], record["lock_seq"] = event.id.epoch, event.id.seq


def _released(folded: Folded, event: Event) -> None:
    """A code ends with something left: that much is free again."""
    record = folded.records[event.uid]
    assert record["state"] not in ENDED, event
    assert {line.sku_id: line.left for line in event.facts["lines"]} == {
        sku: left for sku, (_, left) in record["lines"].items() if left
    }, event
    for line in event.facts["lines"]:
        _take(folded, event, line.sku_id, reserved=line.left)
    if event.type is EventType.VOIDED:
        assert record["exp"] * 1000 > event.at_ms, event
        record["state"] = State.VOIDED
        record["requests"].append(event.request)
    else:
        assert record["exp"] * 1000 <= event.at_ms, event
        record["state"] = State.EXPIRED
    _touch(record, event)


def _stock(folded: Folded, event: Event) -> None:
    facts = event.facts
    shelf = folded.shelves[event.mall_id, event.store_id, facts["sku_id"]]
    change, amount = StockChange(facts["change"]), facts["amount"]
    if change is StockChange.RECEIVE:
        assert amount > 0
        shelf.on_hand += amount
        shelf.received += amount
    elif change is StockChange.BASELINE:
        shelf.baseline = amount
    else:
        by = amount if change is StockChange.ADJUST_BY else amount - shelf.on_hand
        shelf.on_hand += by
        shelf.adjusted += by
    assert 0 <= shelf.on_hand <= limits.STOCK_MAX, event
    assert (facts["on_hand"], facts["reserved"], facts["baseline"], facts["tier"]) == (
        shelf.on_hand,
        shelf.reserved,
        shelf.baseline,
        0,
    ), event


_STEPS: Final = {
    EventType.ISSUED: _issued,
    EventType.REDEEMED: _redeemed,
    EventType.TRIED: _tried,
    EventType.LOCKED: _tried,
    EventType.VOIDED: _released,
    EventType.EXPIRED: _released,
    EventType.STOCK: _stock,
}


def check_against_store(folded: Folded, deployment: Deployment, now_ms: int) -> None:
    """The store holds exactly what the events add up to: figures, records, numbers.

    A record that ended its afterlife ago may be forgotten; no other may be missing, and none may be there besides.
    """
    connection = deployment.connection
    records: dict[bytes, dict[str, Any]] = {}
    shelves: dict[Shelf, tuple[int, ...]] = {}
    for partition, names in enumerate(connection.partitions):
        prefix = b"{" + names.tag + b"}"
        [keys] = connection.read([("KEYS", prefix + b"[cs]*")])
        for key in keys:
            [pairs] = connection.read([("HGETALL", key)])
            entries = pairs if isinstance(pairs, dict) else dict(zip(pairs[::2], pairs[1::2], strict=True))
            for name, value in entries.items():
                if key.startswith(prefix + b"c"):
                    records[name] = read_record(value)
                else:
                    mall, store = key[len(prefix) + 1 :].split(b":")
                    shelves[int(mall), int(store), int(name)] = layouts.STOCK.unpack(value)
        [facts] = connection.read([("HMGET", names.meta, "epoch", "seq")])
        assert tuple(map(int, facts)) == folded.numbers.get(partition, (1, 0))

    assert shelves == {
        shelf: (figures.on_hand, figures.reserved, figures.baseline, 0)
        for shelf, figures in folded.shelves.items()
    }
    for uid, record in folded.records.items():
        if uid in records:
            assert records.pop(uid) == record
        else:
            assert record["state"] in ENDED
            assert record["changed"] + limits.AFTERLIFE_S * 1000 <= now_ms
    assert not records

    claimed: dict[Shelf, int] = defaultdict(int)
    for record in folded.records.values():
        if record["state"] not in ENDED:
            for sku, (_, left) in record["lines"].items():
                claimed[record["mall"], record["store"], sku] += left
    for shelf, figures in folded.shelves.items():
        # I3 and I4.
        assert figures.on_hand == figures.received - figures.redeemed + figures.adjusted, shelf
        assert figures.reserved == claimed[shelf], shelf
