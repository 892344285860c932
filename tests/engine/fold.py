"""State = fold(events): the rules of state written a second time, in plain Python, over what the events say.

Each step also checks that the event can follow those before it, so a history that breaks an invariant fails here, at the
event that broke it. Nothing is taken from the engine but the binary layouts, the parser of events and the table of a code's
life (engine.transitions).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from engine import limits, transitions
from engine.calls import Evidence, StockChange
from engine.claims import State
from engine.deployment import Deployment
from engine.state import layouts
from engine.state.events import Event, EventType, unpack_lines
from engine.state.lifecycle import parse_evidence

Shelf = tuple[int, int, int]
"""Mall, store, SKU."""
Departure = tuple[bytes, int, int, int]
"""Units that left a store: request digest, store, epoch and sequence number of the event by which they left."""
ENDED: Final = {State.REDEEMED, State.VOIDED, State.EXPIRED}


@dataclass
class Figures:
    """Stock of one shelf, and how it came about."""

    on_hand: int = 0
    reserved: int = 0
    baseline: int = 0
    tier: int = 0
    received: int = 0
    adjusted: int = 0
    redeemed: int = 0
    reversed: int = 0
    sent: int = 0
    arrived: int = 0


@dataclass
class Folded:
    """What the events so far add up to."""

    shelves: dict[Shelf, Figures] = field(default_factory=lambda: defaultdict(Figures))
    records: dict[bytes, dict[str, Any]] = field(default_factory=dict)
    evidence: dict[bytes, list[Evidence]] = field(default_factory=lambda: defaultdict(list))
    """Tries of each code that count at the moment."""
    locked_at_ms: dict[bytes, int] = field(default_factory=dict)
    """Codes whose review is open."""
    departures: dict[Departure, Event] = field(default_factory=dict)
    arrivals: dict[Departure, Event] = field(default_factory=dict)
    numbers: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Epoch and sequence number of each partition's last event."""
    changes: dict[tuple[bytes, EventType, int], int] = field(default_factory=dict)
    """When each request, by its digest, last made an event of a type (unix ms)."""
    crossings: dict[Shelf, int] = field(default_factory=lambda: defaultdict(int))
    """Crossings of tiers by shelf."""


def read_record(data: bytes) -> dict[str, Any]:
    """Every field of a record as stored, by name, with its lines, bundles, requests, order, split and replaced code."""
    r: dict[str, Any] = dict(zip(layouts.RECORD.names, layouts.RECORD.unpack(data), strict=True))
    lines, at = unpack_lines(data, layouts.RECORD.size, r.pop("n_lines"))
    r["lines"] = [[line.sku_id, line.count, line.left] for line in lines]
    r["bundles"] = []
    for _ in range(r.pop("n_bundles")):
        r["bundles"].append(list(layouts.BUNDLE.unpack(data, at)))
        at += layouts.BUNDLE.size
    requests_end = at + 12 * r.pop("n_requests")
    r["requests"] = [data[n : n + 12] for n in range(at, requests_end, 12)]
    order_end = requests_end + r.pop("order_len")
    split_end = order_end + r.pop("split_len")
    r["order"], r["split"], r["replaces"] = (
        data[requests_end:order_end],
        data[order_end:split_end],
        data[split_end:],
    )
    r["state"] = State(r["state"])
    return r


def fold(events: Iterable[Event]) -> Folded:
    """Add up events, in order within each partition. AssertionError names the first that can't be."""
    folded = Folded()
    for event in events:
        add(folded, event)
    return folded


def add(folded: Folded, event: Event) -> None:
    """Add one event. AssertionError when it can't follow those before it."""
    _number(folded, event)
    if event.type is not EventType.EPOCH:
        _STEPS[event.type](folded, event)


def _number(folded: Folded, event: Event) -> None:
    """I5: numbered without gaps; an epoch begins with its own event."""
    epoch, seq = folded.numbers.get(event.id.partition, (1, 0))
    if event.type is EventType.EPOCH:
        assert event.id.epoch == epoch + 1, event
        assert event.id.seq == 1, event
    else:
        assert (event.id.epoch, event.id.seq) == (epoch, seq + 1), event
        # An arrival hangs on its departure, not on the request: see _arrived. Units may lie in transit for longer than the id
        # is remembered, and then arrive shortly before those of the next transfer that has it.
        if any(event.request) and event.type is not EventType.TRANSFER_IN:
            # A request may change something again only when its first answer is remembered no more.
            # Of a customer's own tries that holds within a partition: an id that comes back naming a code of another one is
            # decided anew there, for renders stand in no register.
            own_try = event.type in (EventType.TRIED, EventType.LOCKED) and not event.terminal_id
            change = (event.request, event.type, event.id.partition if own_try else -1)
            last_ms = folded.changes.get(change)
            assert last_ms is None or event.at_ms - last_ms >= limits.AFTERLIFE_S * 1000, event
            folded.changes[change] = event.at_ms
    folded.numbers[event.id.partition] = event.id.epoch, event.id.seq


def _move(folded: Folded, event: Event, sku: int, *, reserved: int, on_hand: int = 0) -> Figures:
    """Change figures. I2: none goes below zero."""
    shelf = folded.shelves[event.mall_id, event.store_id, sku]
    shelf.reserved += reserved
    shelf.on_hand += on_hand
    assert shelf.reserved >= 0, event
    assert shelf.on_hand >= 0, event
    return shelf


def _follow(record: dict[str, Any], event: Event, after: State) -> None:
    """Move a record on: only as the table of a code's life has it."""
    assert any(
        step.state is record["state"] and step.after is after and step.event is event.type
        for step in transitions.TABLE
    ), f"{record['state'].name} → {after.name}: {event}"
    record["state"] = after


def _made(folded: Folded, event: Event) -> None:
    record = read_record(event.facts["record"])
    known = folded.records.get(event.uid)
    assert known is None or known["state"] in ENDED, event
    assert record["state"] is (State.HELD if event.type is EventType.HELD else State.LIVE)
    assert (record["mall"], record["store"], record["issued"]) == (event.mall_id, event.store_id, event.at_ms)
    assert (record["issue_epoch"], record["issue_seq"]) == (event.id.epoch, event.id.seq)
    assert record["exp"] * 1000 > event.at_ms
    assert (record["tries"], record["cycle"], record["requests"]) == (0, 0, [])
    for sku, units, first, parts in record["bundles"]:
        assert units > 0
        assert parts > 0
        assert first + parts - 1 <= len(record["lines"]), sku
    for sku, count, left in record["lines"]:
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


def _free(folded: Folded, record: dict[str, Any], uid: bytes) -> None:
    """Its tries and its review are over."""
    record["tries"] = record["lock_epoch"] = record["lock_seq"] = 0
    folded.evidence.pop(uid, None)
    folded.locked_at_ms.pop(uid, None)


def _own(folded: Folded, event: Event) -> dict[str, Any]:
    record = folded.records[event.uid]
    assert (record["mall"], record["store"]) == (event.mall_id, event.store_id), event
    if any(event.request):
        record["requests"].append(event.request)
    return record


def _in_time(record: dict[str, Any], event: Event) -> None:
    assert record["exp"] * 1000 > event.at_ms, f"its time was over: {event}"


def _redeemed(folded: Folded, event: Event) -> None:
    record = _own(folded, event)
    _in_time(record, event)
    assert event.facts["lines"], event
    assert len(set(event.facts["places"])) == len(event.facts["lines"]), event
    for place, line in zip(event.facts["places"], event.facts["lines"], strict=True):
        kept = record["lines"][place]
        kept[2] -= line.count
        # I1: no unit is handed out twice.
        assert kept[0] == line.sku_id, event
        assert kept[2] == line.left >= 0, event
        assert line.count > 0, event
        shelf = _move(folded, event, line.sku_id, reserved=-line.count, on_hand=-line.count)
        shelf.redeemed += line.count
    _whole_bundles(record, event)
    nothing_left = not any(left for _, _, left in record["lines"])
    assert event.facts["state"] is (State.REDEEMED if nothing_left else State.PARTLY), event
    assert event.facts["cycle"] == record["cycle"]
    _follow(record, event, event.facts["state"])
    record["last_terminal"], record["last_at"] = event.terminal_id, event.at_ms
    if event.facts["burnt"]:
        record["requests"].append(event.facts["burnt"])
    if nothing_left:
        _free(folded, record, event.uid)
    _touch(record, event)


def _whole_bundles(record: dict[str, Any], event: Event) -> None:
    """All of a bundle's parts are out, or none: as many bundles as of its first part are out of each."""
    for _, units, first, parts in record["bundles"]:
        lines = record["lines"][first - 1 : first - 1 + parts]
        if units == 0:
            assert all(count == left == 0 for _, count, left in lines), event
            continue
        left = {(left * units) / count for _, count, left in lines}
        assert len(left) == 1, f"a bundle is torn: {event}"
        assert left.pop().is_integer(), f"a bundle is torn: {event}"


def _tried(folded: Folded, event: Event) -> None:
    record = folded.records[event.uid]
    # Only the event's own store may differ: a customer's try has no terminal, and is booked at the code's store.
    assert (record["mall"], record["store"]) == (event.mall_id, event.store_id)
    record["requests"].append(event.request)
    _in_time(record, event)
    record["tries"] += 1
    assert event.facts["tries"] == record["tries"], event
    facts = event.facts
    folded.evidence[event.uid].append(
        Evidence(
            event.at_ms, event.store_id, event.terminal_id, facts["verdict"], facts["bucket"], event.actor
        )
    )
    locks = record["tries"] >= limits.TRIES_MAX
    assert event.type is (EventType.LOCKED if locks else EventType.TRIED), event
    _follow(record, event, State.LOCKED if locks else record["state"])
    if locks:
        record["lock_epoch"], record["lock_seq"] = event.id.epoch, event.id.seq
        folded.locked_at_ms[event.uid] = event.at_ms


def _release(folded: Folded, event: Event, record: dict[str, Any]) -> None:
    """A code ends with something left: that much is free again."""
    assert [(line.sku_id, line.count, line.left) for line in event.facts["lines"]] == [
        (sku, count, left) for sku, count, left in record["lines"] if left
    ], event
    for line in event.facts["lines"]:
        _move(folded, event, line.sku_id, reserved=-line.left)


def _ended(folded: Folded, event: Event) -> None:
    record = _own(folded, event)
    _release(folded, event, record)
    if event.type is EventType.VOIDED:
        _in_time(record, event)
        _follow(record, event, State.VOIDED)
    else:
        assert record["exp"] * 1000 <= event.at_ms, event
        _follow(record, event, State.EXPIRED)
    _free(folded, record, event.uid)
    _touch(record, event)


def _moved(folded: Folded, event: Event) -> None:
    """Confirmed or extended: another expiry."""
    record = _own(folded, event)
    _in_time(record, event)
    assert event.facts["expires_at_s"] * 1000 > event.at_ms, event
    if event.type is EventType.EXTENDED:
        assert event.facts["expires_at_s"] > record["exp"], event
        assert event.facts["expires_at_s"] <= record["issued"] // 1000 + limits.TTL_S_MAX, event
        _follow(record, event, record["state"])
    else:
        _follow(record, event, State.LIVE)
    record["exp"] = event.facts["expires_at_s"]
    _touch(record, event)


def _reversed(folded: Folded, event: Event) -> None:
    record = _own(folded, event)
    if record["state"] is not State.REDEEMED:
        _in_time(record, event)
    facts = event.facts
    assert facts["lines"], event
    assert len(set(facts["places"])) == len(facts["lines"]), event
    before = [count for _, count, _ in record["lines"]]
    for place, line in zip(facts["places"], facts["lines"], strict=True):
        kept = record["lines"][place]
        assert kept[0] == line.sku_id, event
        # I1: no more comes back than was out.
        assert 0 < line.count <= kept[1] - kept[2], event
        if facts["release"]:
            kept[1] -= line.count
        else:
            kept[2] += line.count
        assert kept[2] == line.left, event
        shelf = _move(
            folded, event, line.sku_id, reserved=0 if facts["release"] else line.count, on_hand=line.count
        )
        shelf.reversed += line.count
    for bundle in record["bundles"]:
        first = bundle[2] - 1
        if bundle[1]:
            bundle[1] = bundle[1] * record["lines"][first][1] // before[first]
    _whole_bundles(record, event)
    left = sum(left for _, _, left in record["lines"])
    out = sum(count - left for _, count, left in record["lines"])
    after = {
        (False, False): State.VOIDED,
        (False, True): record["state"],
        (True, False): State.LIVE,
        (True, True): State.PARTLY,
    }[left > 0, out > 0]
    if left and record["state"] is State.LOCKED:
        after = State.LOCKED
    assert facts["state"] is after, event
    _follow(record, event, after)
    record["cycle"] += 1
    assert facts["cycle"] == record["cycle"] <= limits.CYCLES_MAX, event
    assert facts["expires_at_s"] >= record["exp"], event
    assert facts["expires_at_s"] == record["exp"] or not facts["release"], event
    record["exp"] = facts["expires_at_s"]
    if left:
        assert record["exp"] * 1000 > event.at_ms, event
    else:
        _free(folded, record, event.uid)
    _touch(record, event)


def _reviewed(folded: Folded, event: Event) -> None:
    record = _own(folded, event)
    _in_time(record, event)
    assert event.actor, event
    assert all(one.actor != event.actor for one in folded.evidence[event.uid]), (
        f"decided on own tries: {event}"
    )
    after = event.facts["state"]
    if after is State.VOIDED:
        _release(folded, event, record)
    elif after is State.REDEEMED:
        assert [(line.sku_id, line.count, line.left) for line in event.facts["lines"]] == [
            (sku, left, 0) for sku, _, left in record["lines"] if left
        ], event
        for line in event.facts["lines"]:
            shelf = _move(folded, event, line.sku_id, reserved=-line.count, on_hand=-line.count)
            shelf.redeemed += line.count
        for kept in record["lines"]:
            kept[2] = 0
        record["last_terminal"], record["last_at"] = 0, event.at_ms
    else:
        assert not event.facts["lines"], event
        out = any(count > left for _, count, left in record["lines"])
        assert after is (State.PARTLY if out else State.LIVE), event
    _follow(record, event, after)
    _free(folded, record, event.uid)
    if after in ENDED:
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
    _check_figures(shelf, event)


def _check_figures(shelf: Figures, event: Event) -> None:
    facts = event.facts
    assert (facts["on_hand"], facts["reserved"], facts["baseline"]) == (
        shelf.on_hand,
        shelf.reserved,
        shelf.baseline,
    ), event
    assert facts["tier"] == shelf.tier, event


def _tier(folded: Folded, event: Event) -> None:
    """A crossing: from the tier that it was in, into another."""
    where = event.mall_id, event.store_id, event.facts["sku_id"]
    shelf = folded.shelves[where]
    assert event.facts["old"] == shelf.tier != event.facts["tier"], event
    shelf.tier = event.facts["tier"]
    _check_figures(shelf, event)
    folded.crossings[where] += 1


def _left_store(folded: Folded, event: Event) -> None:
    amount = event.facts["amount"]
    shelf = _move(folded, event, event.facts["sku_id"], reserved=0, on_hand=-amount)
    shelf.sent += amount
    assert shelf.on_hand >= shelf.reserved, f"what was promised has left: {event}"
    folded.departures[event.request, event.store_id, event.id.epoch, event.id.seq] = event


def _arrived(folded: Folded, event: Event) -> None:
    amount = event.facts["amount"]
    shelf = _move(folded, event, event.facts["sku_id"], reserved=0, on_hand=amount)
    shelf.arrived += amount
    # The departure may lie in another partition, whose events come later here: they are compared in check_against_store.
    epoch, seq = event.facts["departure"]
    key = event.request, event.facts["other_store_id"], epoch, seq
    assert key not in folded.arrivals, f"arrived twice: {event}"
    folded.arrivals[key] = event


_STEPS: Final = {
    EventType.ISSUED: _made,
    EventType.HELD: _made,
    EventType.CONFIRMED: _moved,
    EventType.EXTENDED: _moved,
    EventType.REDEEMED: _redeemed,
    EventType.REVERSED: _reversed,
    EventType.TRIED: _tried,
    EventType.LOCKED: _tried,
    EventType.REVIEWED: _reviewed,
    EventType.VOIDED: _ended,
    EventType.EXPIRED: _ended,
    EventType.STOCK: _stock,
    EventType.TIER: _tier,
    EventType.TRANSFER_OUT: _left_store,
    EventType.TRANSFER_IN: _arrived,
}


def check_against_store(folded: Folded, deployment: Deployment, now_ms: int) -> None:
    """The store holds exactly what the events add up to: figures, records, evidence, reviews, units in transit, numbers.

    A record that ended its afterlife ago may be forgotten; no other may be missing, and none may be there besides.
    """
    held = read_store(deployment)
    for partition, number in enumerate(held.numbers):
        assert number == folded.numbers.get(partition, (1, 0))
    assert held.shelves == {
        shelf: (figures.on_hand, figures.reserved, figures.baseline, figures.tier)
        for shelf, figures in folded.shelves.items()
    }
    records = dict(held.records)
    for uid, record in folded.records.items():
        if uid in records:
            assert records.pop(uid) == record
        else:
            assert record["state"] in ENDED
            assert record["changed"] + limits.AFTERLIFE_S * 1000 <= now_ms
    assert not records
    assert held.evidence == {uid: tries for uid, tries in folded.evidence.items() if tries}
    assert held.reviews == folded.locked_at_ms
    _check_transit(folded, held)

    claimed: dict[Shelf, int] = defaultdict(int)
    for record in folded.records.values():
        if record["state"] not in ENDED:
            for sku, _, left in record["lines"]:
                claimed[record["mall"], record["store"], sku] += left
    for shelf, one in folded.shelves.items():
        # I3 and I4.
        assert (
            one.on_hand == one.received + one.adjusted - one.redeemed + one.reversed - one.sent + one.arrived
        ), shelf
        assert one.reserved == claimed[shelf], shelf


def _check_transit(folded: Folded, held: Held) -> None:
    """Each departure arrived once, with what left; or it is in transit. None is lost, none is made."""
    for key, event in folded.arrivals.items():
        gone = folded.departures[key]
        assert gone.facts["other_store_id"] == event.store_id
        assert (gone.facts["sku_id"], gone.facts["amount"], gone.mall_id) == (
            event.facts["sku_id"],
            event.facts["amount"],
            event.mall_id,
        )
    # An arrived one may still stand there, if the last step was cut off.
    assert (
        folded.departures.keys() - folded.arrivals.keys() <= held.transit.keys() <= folded.departures.keys()
    )
    for key, (store, other, sku, amount) in held.transit.items():
        gone = folded.departures[key]
        assert (gone.store_id, gone.facts["other_store_id"], gone.facts["sku_id"], gone.facts["amount"]) == (
            store, other, sku, amount,
        )  # fmt: skip


# --- what the store holds -------------------------------------------------------------------------------------------------
@dataclass
class Held:
    """What the store holds now, read key by key."""

    shelves: dict[Shelf, tuple[int, ...]] = field(default_factory=dict)
    records: dict[bytes, dict[str, Any]] = field(default_factory=dict)
    evidence: dict[bytes, list[Evidence]] = field(default_factory=dict)
    reviews: dict[bytes, int] = field(default_factory=dict)
    transit: dict[Departure, tuple[int, int, int, int]] = field(default_factory=dict)
    """Store, other store, SKU, amount."""
    numbers: list[tuple[int, int]] = field(default_factory=list)


def read_store(deployment: Deployment) -> Held:
    """Read everything that events add up to, in two exchanges: which keys there are, and what is in them."""
    held = Held()
    connection = deployment.connection
    prefixes = [b"{" + names.tag + b"}" for names in connection.partitions]
    keys_of = connection.read([("KEYS", prefix + b"[cs]*") for prefix in prefixes])
    commands: list[tuple[Any, ...]] = []
    for names, keys in zip(connection.partitions, keys_of, strict=True):
        commands += [("HGETALL", key) for key in (*keys, names.evidence, names.transit)]
        commands += [
            ("HMGET", names.meta, "epoch", "seq"),
            ("ZRANGE", names.reviews, 0, -1, "WITHSCORES"),
        ]
    replies = iter(connection.read(commands))
    for prefix, keys in zip(prefixes, keys_of, strict=True):
        *hashes, number, reviews = itertools.islice(replies, len(keys) + 4)
        for key, entries in zip(keys, map(_pairs, hashes[:-2]), strict=True):
            for name, value in entries.items():
                if key.startswith(prefix + b"c"):
                    held.records[name] = read_record(value)
                else:
                    mall, store = key[len(prefix) + 1 :].split(b":")
                    held.shelves[int(mall), int(store), int(name)] = layouts.STOCK.unpack(value)
        for uid, data in _pairs(hashes[-2]).items():
            held.evidence[uid] = list(parse_evidence(data))
        for name, data in _pairs(hashes[-1]).items():
            request, departure = name[:12], layouts.DEPARTURE.unpack(name, 12)
            _, _, store, other, sku, amount, _ = layouts.TRANSIT.unpack(data)
            held.transit[request, store, *departure] = (store, other, sku, amount)
        flat = (
            [value for pair in reviews for value in pair]
            if reviews and isinstance(reviews[0], tuple | list)
            else reviews
        )
        held.reviews |= {uid: int(float(at)) for uid, at in zip(flat[::2], flat[1::2], strict=True)}
        held.numbers.append((int(number[0]), int(number[1])))
    return held


def _pairs(reply: Any) -> dict[bytes, bytes]:
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
