"""Reconciliation: what the store holds at an event, against what the ledger's events up to it add up to. Equal to the unit, or a drift.

Each partition is read in pieces, each exactly as it was at one event (engine.state.snapshot): first stock, tries, reviews and units in
transit, then the records, some buckets at a time. The ledger is folded on from its latest sound checkpoint, or from its beginning, and each
piece is compared when the fold has come to its event. So nothing has to stand still, and nothing is compared with a different moment.

A drift names the store, the SKU or the code, both sides, and the events since the last clean run that touched it. An event that can't have
happened (a deleted one, one written twice) is a drift of its own, and nothing of its partition behind it can be compared.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import Connection, and_, func, insert, select, tuple_

from engine import limits
from engine.claims import EventId, State
from engine.deployment import Deployment
from engine.errors import LedgerUnavailable
from engine.freezes import Freeze
from engine.ledger import checkpoints, database, records
from engine.ledger.fold import Arrival, Contradiction, Figures, Fold, Shelf, forgettable
from engine.ledger.heads import Unsound
from engine.ledger.ledger import Ledger
from engine.ledger.tables import DRIFTS, EVENTS, RECONCILIATIONS
from engine.state import layouts, snapshot
from engine.state.events import EventType, parse
from engine.state.following import touched_skus
from engine.state.keys import PartitionKeys
from engine.state.snapshot import Records, Shelves
from engine.state.streams import START, Place

_log = logging.getLogger(__name__)

CATCH_UP_S: Final = 60.0
"""How long a run waits for the writer to have what the snapshot has."""
LOOK_S: Final = 0.1
DRIFTS_MAX: Final = 1_000
"""Drifts of one run that are kept and shown; their number is told in full."""
EVENTS_MAX: Final = 100
"""Events named for one drift: the newest."""

FREEZER: Final = "ledger:reconciliation"
"""Who freezes, in the events."""

_STATES: Final = {state.value: state.name for state in State}
_FIGURES: Final = tuple(layouts.STOCK.names)


@dataclass(frozen=True, slots=True)
class Drift:
    """One thing that is not equal."""

    partition: int
    what: str
    """A figure of stock (on_hand, reserved, baseline, tier); shelf: what stands in place of figures, or beside them under a name that
    nothing reads; record, tries, review or transit of a code or a transfer; or event: one that can't have happened."""
    in_store: str
    in_ledger: str
    mall_id: int = 0
    store_id: int = 0
    sku_id: int = 0
    uid: bytes = b""
    events: tuple[str, ...] = ()
    """Numbers of events since the last clean run that touched it, the newest EVENTS_MAX."""

    @property
    def difference(self) -> str:
        """Store less ledger, where both are numbers; else ''."""
        try:
            return f"{int(self.in_store) - int(self.in_ledger):+d}"
        except ValueError:
            return ""


@dataclass(slots=True)
class Total:
    """Codes of one mall at one store, by the ledger."""

    codes: dict[str, int] = field(default_factory=dict)
    """By state."""
    fen: dict[str, int] = field(default_factory=dict)
    """What was paid for them, by state."""


@dataclass(slots=True)
class Run:
    """One comparison."""

    cause: str
    begun_ms: int
    ended_ms: int = 0
    number: int = 0
    shelves: int = 0
    codes: int = 0
    places: dict[int, Place] = field(default_factory=dict)
    totals: dict[tuple[int, int], Total] = field(default_factory=dict)
    """By mall and store."""
    drifts: list[Drift] = field(default_factory=list)
    drifts_total: int = 0
    books: dict[Shelf, tuple[Figures, Figures]] = field(default_factory=dict)
    """Each shelf's figures in the store and by the ledger."""
    checkpoint: int = 0
    """Number of the checkpoint that it went on from; 0: from the beginning, or one that was read back."""
    unsound: list[Unsound] = field(default_factory=list)
    """Checkpoints that were passed over, and why."""

    @property
    def clean(self) -> bool:
        """True when nothing differs."""
        return self.drifts_total == 0

    def add(self, drift: Drift) -> None:
        """Note a drift; past DRIFTS_MAX it is only counted."""
        self.drifts_total += 1
        if len(self.drifts) < DRIFTS_MAX:
            self.drifts.append(drift)


def reconcile(
    deployment: Deployment,
    ledger: Ledger,
    *,
    cause: str,
    key: Ed25519PublicKey | None = None,
    sleep: Callable[[float], None] = time.sleep,
    monotonic_s: Callable[[], float] = time.monotonic,
) -> Run:
    """Compare the whole store with the ledger and keep the result.

    cause: why this run was made, "daily", "command", "rebuild" or "operation". key: that checkpoints must be signed by; None: the ledger is folded from its
    beginning. Raises StoreUnavailable; LedgerConflict when the beginning was cut off and no sound checkpoint stands for it;
    LedgerUnavailable, also when no writer brings the ledger up to the snapshot within CATCH_UP_S.
    """
    run = Run(cause, deployment.now_ms())
    # Before the store is read: whatever the ledger has by now, the store must have too.
    before = ledger.heads()
    shelves = snapshot.read_all_shelves(deployment.connection)
    # A checkpoint that is made from now on may be behind what was read.
    begun = checkpoints.begin(
        ledger,
        key,
        range(len(deployment.connection.partitions)),
        remember=False,
        upto={number: _place_of(held.place) for number, held in shelves.items()},
    )
    run.checkpoint = begun.checkpoint.number if begun.checkpoint else 0
    run.unsound = begun.unsound
    folds = begun.folds
    for number in range(len(deployment.connection.partitions)):
        pieces = list(snapshot.read_records(deployment.connection, number))
        last = max(shelves[number].place, pieces[-1].place)
        if number in before and before[number].place > last:
            run.add(Drift(number, "event", f"ends with {last}", f"has {before[number].place}"))
        _await(ledger, number, last, sleep, monotonic_s)
        comparison = _Comparison(run, ledger, deployment.connection.partitions[number], folds[number])
        comparison.compare(shelves[number], pieces, deployment.now_ms())
        run.places[number] = last
    _compare_transit(run, ledger, folds, shelves)
    run.ended_ms = deployment.now_ms()
    with database.snapshot(ledger.engine) as connection:
        since = _last_clean(connection)
        run.drifts = [_with_events(connection, drift, since) for drift in run.drifts]
    _keep(ledger, run)
    if run.clean:
        _log.info("reconciled: %d shelves and %d codes are equal", run.shelves, run.codes)
    else:
        _log.error("reconciliation found %d drifts; run %d has them", run.drifts_total, run.number)
    return run


def freeze(deployment: Deployment, run: Run) -> list[Freeze]:
    """Freeze every shelf that a drift names by mall, store and SKU, if it is not frozen already; gives those that were.

    Each is an event of the set-up that names the run. Raises StoreUnavailable, Conflict.
    """
    known = {one.shelf for one in deployment.control.freezes()}
    drifting: dict[tuple[int, int, int], Drift] = {}
    for drift in run.drifts:
        shelf = drift.mall_id, drift.store_id, drift.sku_id
        if all(shelf) and shelf not in known:
            drifting.setdefault(shelf, drift)
    made = [
        Freeze(*shelf, frozen=True, reason=f"reconciliation {run.number}: {drift.what} differs")
        for shelf, drift in sorted(drifting.items())
    ]
    for start in range(0, len(made), limits.BATCH_MAX):
        request_id = f"reconciliation-{run.number}-{start}"
        deployment.control.put_freezes(
            made[start : start + limits.BATCH_MAX], request_id=request_id, actor=FREEZER
        )
    for one in made:
        _log.error(
            "frozen: no more codes are made of SKU %d of mall %d at store %d",
            one.sku_id,
            one.mall_id,
            one.store_id,
        )
    return made


def _await(
    ledger: Ledger,
    number: int,
    place: Place,
    sleep: Callable[[float], None],
    monotonic_s: Callable[[], float],
) -> None:
    if place.seq == 0:
        return
    give_up_s = monotonic_s() + CATCH_UP_S
    while ledger.heads().get(number, ledger.first_head(number)).place < place:
        if monotonic_s() > give_up_s:
            raise LedgerUnavailable(
                f"the ledger does not have event {number}-{place} yet, {CATCH_UP_S:g} s after the store: see that its writer runs"
            )
        sleep(LOOK_S)


# --- comparing --------------------------------------------------------------------------------------------------------
class _Comparison:
    """One partition: its events are folded, and each piece is compared when its event is reached."""

    def __init__(self, run: Run, ledger: Ledger, names: PartitionKeys, fold: Fold) -> None:
        """fold: where it goes on from, at the first piece's place at most."""
        self._run = run
        self._ledger = ledger
        self._names = names
        self._number = fold.partition
        self._fold = fold

    def compare(self, shelves: Shelves, pieces: Sequence[Records], now_ms: int) -> None:
        """Compare all pieces; the fold is then at the last of them, or as far as it could go."""
        waiting: list[Shelves | Records] = [shelves, *pieces]
        waiting.reverse()
        upto = _place_of(waiting[0].place)
        try:
            for row in self._ledger.rows(self._number, after=self._fold.place, upto=upto):
                self._compare_reached(waiting)
                self._fold.add(row.entry)
            self._compare_reached(waiting)
        except Contradiction as found:
            self._run.add(Drift(self._number, "event", str(found.event), found.why))
            return
        if waiting:
            missing = EventId(self._number, *waiting[-1].place)
            self._run.add(Drift(self._number, "event", str(missing), "the ledger does not have it"))
            return
        self._compare_missing(pieces, now_ms)
        _total(self._run, self._fold)

    def _compare_reached(self, waiting: list[Shelves | Records]) -> None:
        while waiting and _place_of(waiting[-1].place) <= self._fold.place:
            piece = waiting.pop()
            if isinstance(piece, Shelves):
                _compare_shelves(self._run, self._fold, piece)
            else:
                self._compare_records(piece)

    def _compare_records(self, piece: Records) -> None:
        for uid, bucket in piece.strange.items():
            where = f"in {bucket.decode()}, where nothing looks for it"
            mall_id, store_id = _whose(self._fold, uid)
            self._run.add(Drift(self._number, "record", where, "nothing", mall_id, store_id, 0, uid))
        for uid, in_store in piece.records.items():
            self._run.codes += 1
            in_ledger = self._fold.records.get(uid)
            if in_ledger is None and self._fold.is_over(in_store):
                continue  # no checkpoint keeps it; the store will forget it when it is swept
            if in_ledger != in_store:
                self._run.add(_record_drift(self._number, uid, in_store, in_ledger))

    def _compare_missing(self, pieces: Sequence[Records], now_ms: int) -> None:
        """Records that the ledger knows and the store does not: forgotten in time, made since, or lost."""
        seen = {uid for piece in pieces for uid in piece.records}
        places = {bucket: piece.place for piece in pieces for bucket in piece.buckets}
        for uid, data in self._fold.records.items():
            if uid in seen:
                continue
            record = records.read(data)
            made = Place(record.issue_epoch, record.issue_seq)
            if made <= places[self._names.record(uid)] and not forgettable(record, now_ms):
                self._run.add(_record_drift(self._number, uid, None, data))


def _place_of(place: Place) -> Place:
    """A partition that has no event yet stands at 1-0 in the store, at 0-0 here."""
    return place if place.seq or place.epoch > 1 else START


def _compare_shelves(run: Run, fold: Fold, held: Shelves) -> None:
    for shelf in sorted(held.stock.keys() | fold.shelves.keys()):
        in_ledger = fold.shelves.get(shelf, Figures())
        data = held.stock.get(shelf)
        if data is not None and len(data) != layouts.STOCK.size:
            run.add(Drift(fold.partition, "shelf", data.hex(), json.dumps(asdict(in_ledger)), *shelf))
            continue
        in_store = Figures() if data is None else Figures(*layouts.STOCK.struct.unpack(data))
        run.shelves += 1
        run.books[shelf] = in_store, Figures(**asdict(in_ledger))
        for figure in _FIGURES:
            one, other = getattr(in_store, figure), getattr(in_ledger, figure)
            if one != other:
                run.add(Drift(fold.partition, figure, str(one), str(other), *shelf))
    for name, data in sorted(held.strange.items()):
        said = f"{name.decode(errors='backslashreplace')}: {data.hex()}"
        run.add(Drift(fold.partition, "shelf", said, "nothing"))
    for what, one_side, other_side in (
        ("tries", held.evidence, fold.evidence),
        ("review", held.reviews, fold.reviews),
    ):
        _compare_mappings(run, fold, what, one_side, other_side)


def _compare_mappings(
    run: Run, fold: Fold, what: str, in_store: Mapping[bytes, Any], in_ledger: Mapping[bytes, Any]
) -> None:
    for uid in sorted(in_store.keys() | in_ledger.keys()):
        if in_store.get(uid) != in_ledger.get(uid):
            said = [_shown(side.get(uid)) for side in (in_store, in_ledger)]
            mall_id, store_id = _whose(fold, uid)
            run.add(Drift(fold.partition, what, said[0], said[1], mall_id, store_id, 0, uid))


def _record_drift(number: int, uid: bytes, in_store: bytes | None, in_ledger: bytes | None) -> Drift:
    sides = [None if data is None else _readable(data) for data in (in_store, in_ledger)]
    # The side that can be read says whose it is.
    known = max((side for side in sides if side is not None), key=len)
    one, other = (side or {} for side in sides)
    differing = {name for name in one | other if one.get(name) != other.get(name)}
    if not differing:  # but for bytes behind the record
        one["bytes"], other["bytes"] = (data.hex() for data in (in_store, in_ledger) if data is not None)
        differing = {"bytes"}
    said = [
        "nothing"
        if side is None
        else json.dumps({name: side[name] for name in side if name in differing}, ensure_ascii=False)
        for side in sides
    ]
    return Drift(
        number,
        "record",
        said[0],
        said[1],
        known["mall"],
        known["store"],
        known["lines"][0][0] if len(known["lines"]) == 1 else 0,
        uid,
    )


def _readable(data: bytes) -> dict[str, Any]:
    """A record's fields as JSON can say them."""
    try:
        found = asdict(records.read(data))
    except Exception:
        # Whatever somebody wrote there: it is shown as it is.
        return {"mall": 0, "store": 0, "lines": [], "bytes": data.hex()}
    found["state"] = _STATES.get(found["state"], found["state"])
    found["lines"] = [list(line.values()) for line in found["lines"]]
    found["bundles"] = [list(bundle.values()) for bundle in found["bundles"]]
    return {name: _plain(value) for name, value in found.items()}


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


def _shown(value: Any) -> str:
    return "nothing" if value is None else str(_plain(value))


def _whose(fold: Fold, uid: bytes) -> tuple[int, int]:
    """Mall and store of a code that the ledger knows, zeros of another."""
    data = fold.records.get(uid)
    if data is None:
        return 0, 0
    record = records.read(data)
    return record.mall, record.store


def _total(run: Run, fold: Fold) -> None:
    for data in fold.records.values():
        record = records.read(data)
        total = run.totals.setdefault((record.mall, record.store), Total())
        state = State(record.state).name
        total.codes[state] = total.codes.get(state, 0) + 1
        total.fen[state] = total.fen.get(state, 0) + record.amount


# --- units in transit -------------------------------------------------------------------------------------------------
def _compare_transit(
    run: Run, ledger: Ledger, folds: Mapping[int, Fold], shelves: Mapping[int, Shelves]
) -> None:
    """What left and is not in transit any more must have arrived; what is in transit must have left."""
    arrived = {arrival for fold in folds.values() for arrival in fold.arrivals}
    for number, fold in folds.items():
        held = shelves[number].transit
        left = {departure.request + departure.number: data for departure, data in fold.departures.items()}
        upto = shelves[number].place
        for key in sorted(held.keys() | left.keys()):
            if key not in left:
                run.add(Drift(number, "transit", _shown(held[key]), "nothing"))
                continue
            _, mall_id, store_id, other, sku_id, amount, at_ms = layouts.TRANSIT.unpack(left[key])
            epoch, seq = layouts.DEPARTURE.unpack(key, 12)
            if key in held or Place(epoch, seq) > upto or Arrival(key[:12], store_id, key[12:]) in arrived:
                continue
            # It may have arrived behind the place up to which that partition was folded.
            if _arrived(ledger, key, store_id, other, at_ms):
                continue
            run.add(
                Drift(
                    number,
                    "transit",
                    "0",
                    str(amount),
                    mall_id,
                    store_id,
                    sku_id,
                    events=(f"{number}-{epoch}-{seq}",),
                )
            )


def _arrived(ledger: Ledger, key: bytes, store_id: int, other_store_id: int, at_ms: int) -> bool:
    """Whether the units of a departure came to the other store, whichever partition it is of."""
    wanted = and_(
        EVENTS.c.store_id == other_store_id,
        EVENTS.c.at_ms >= at_ms,
        EVENTS.c.type == EventType.TRANSFER_IN,
    )
    with database.snapshot(ledger.engine) as connection:
        for partition, epoch, seq, data in connection.execute(
            select(EVENTS.c.partition, EVENTS.c.epoch, EVENTS.c.seq, EVENTS.c.data).where(wanted)
        ):
            event = parse(partition, b"%d-%d" % (epoch, seq), bytes(data))
            if (
                event.request == key[:12]
                and event.facts["other_store_id"] == store_id
                and event.facts["departure"] == layouts.DEPARTURE.unpack(key, 12)
            ):
                return True
    return False


# --- what is kept -----------------------------------------------------------------------------------------------------
def _last_clean(connection: Connection) -> dict[int, Place]:
    """Up to which event the last clean run compared each partition."""
    places = connection.execute(
        select(RECONCILIATIONS.c.places)
        .where(RECONCILIATIONS.c.clean == 1)
        .order_by(RECONCILIATIONS.c.run.desc())
        .limit(1)
    ).scalar()
    return _parse_places(places) if places else {}


def _with_events(connection: Connection, drift: Drift, since: Mapping[int, Place]) -> Drift:
    """The drift with the events since the last clean run that touched its code, or its SKU."""
    if drift.events or not (drift.uid or drift.sku_id):
        return drift
    after = since.get(drift.partition, START)
    wanted = and_(
        EVENTS.c.partition == drift.partition, tuple_(EVENTS.c.epoch, EVENTS.c.seq) > tuple_(*after)
    )
    about = EVENTS.c.uid == drift.uid if drift.uid else EVENTS.c.store_id == drift.store_id
    found: list[str] = []
    for epoch, seq, data in connection.execute(
        select(EVENTS.c.epoch, EVENTS.c.seq, EVENTS.c.data)
        .where(wanted, about)
        .order_by(EVENTS.c.epoch.desc(), EVENTS.c.seq.desc())
    ):
        event = parse(drift.partition, b"%d-%d" % (epoch, seq), bytes(data))
        if drift.uid or (event.mall_id == drift.mall_id and drift.sku_id in touched_skus(event)):
            found.append(f"{event.id} {event.type.name}")
            if len(found) == EVENTS_MAX:
                break
    return replace(drift, events=tuple(found))


def _keep(ledger: Ledger, run: Run) -> None:
    values = {
        "begun_ms": run.begun_ms,
        "ended_ms": run.ended_ms,
        "cause": run.cause,
        "clean": int(run.clean),
        "drifts": run.drifts_total,
        "shelves": run.shelves,
        "codes": run.codes,
        "places": json.dumps({str(number): str(place) for number, place in run.places.items()}),
        "totals": json.dumps(
            [
                {"mall_id": mall, "store_id": store, **asdict(total)}
                for (mall, store), total in sorted(run.totals.items())
            ]
        ),
    }
    with database.writing(ledger.engine) as connection:
        made = connection.execute(insert(RECONCILIATIONS).values(**values))
        assert made.inserted_primary_key is not None
        run.number = int(made.inserted_primary_key[0])
        if run.drifts:
            connection.execute(
                insert(DRIFTS),
                [
                    {
                        "run": run.number,
                        "number": number,
                        "partition": drift.partition,
                        "mall_id": drift.mall_id,
                        "store_id": drift.store_id,
                        "sku_id": drift.sku_id,
                        "uid": drift.uid or None,
                        "what": drift.what,
                        "in_store": drift.in_store,
                        "in_ledger": drift.in_ledger,
                        "events": json.dumps(drift.events),
                    }
                    for number, drift in enumerate(run.drifts, start=1)
                ],
            )


class Kept(NamedTuple):
    """A run as it was kept, without its drifts."""

    number: int
    begun_ms: int
    ended_ms: int
    cause: str
    clean: bool
    drifts: int
    shelves: int
    codes: int


def list_runs(ledger: Ledger, count: int, *, before: int | None = None) -> list[Kept]:
    """The newest runs, newest first; of those before one, if that is given. Raises LedgerUnavailable."""
    columns = [RECONCILIATIONS.c[name] for name in ("run", *Kept._fields[1:])]
    wanted = select(*columns).order_by(RECONCILIATIONS.c.run.desc()).limit(count)
    if before is not None:
        wanted = wanted.where(RECONCILIATIONS.c.run < before)
    with database.snapshot(ledger.engine) as connection:
        found = connection.execute(wanted).all()
    return [Kept(*row)._replace(clean=bool(row.clean)) for row in found]


def read_run(ledger: Ledger, number: int | None = None) -> Run | None:
    """A run with its drifts, the newest if none is named; None when there is none. Raises LedgerUnavailable."""
    with database.snapshot(ledger.engine) as connection:
        if number is None:
            number = connection.execute(select(func.max(RECONCILIATIONS.c.run))).scalar()
        row = connection.execute(select(RECONCILIATIONS).where(RECONCILIATIONS.c.run == number)).first()
        if row is None:
            return None
        drifts = connection.execute(
            select(DRIFTS).where(DRIFTS.c.run == number).order_by(DRIFTS.c.number)
        ).all()
    return Run(
        cause=row.cause,
        begun_ms=row.begun_ms,
        ended_ms=row.ended_ms,
        number=row.run,
        shelves=row.shelves,
        codes=row.codes,
        places=_parse_places(row.places),
        totals={
            (total["mall_id"], total["store_id"]): Total(total["codes"], total["fen"])
            for total in json.loads(row.totals)
        },
        drifts=[
            Drift(
                one.partition,
                one.what,
                one.in_store,
                one.in_ledger,
                one.mall_id,
                one.store_id,
                one.sku_id,
                bytes(one.uid or b""),
                tuple(json.loads(one.events)),
            )
            for one in drifts
        ],
        drifts_total=row.drifts,
    )


def _parse_places(text: str) -> dict[int, Place]:
    return {int(number): Place(*map(int, place.split("-"))) for number, place in json.loads(text).items()}
