"""Rebuild: an empty store is filled with what the ledger knows, and is then the deployment that was lost.

Live codes with what is left of them, codes that ended within their afterlife, stock, reservations, tries, locks, units in transit, the answers
of earlier requests, the set-up and the wrapped keyring. What the lost store had acknowledged behind the ledger's last event is lost: the
ledger's lag at that moment.

The ledger is folded on from its latest sound checkpoint (engine.ledger.checkpoints), or from its beginning; both give the same.

Not rebuilt: the remembered answers of puts to the set-up, refused attempts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from engine import limits
from engine.errors import DeploymentMismatch
from engine.ledger import checkpoints, database, records
from engine.ledger.fold import DAY_MS, REGISTER_DAYS, Arrival, Fold, left_store
from engine.ledger.heads import Unsound
from engine.ledger.ledger import Ledger, read_tail
from engine.ledger.writer import OVERLAP
from engine.state import refill, register
from engine.state.codes import due_minute
from engine.state.connection import Connection
from engine.state.keys import PartitionKeys
from engine.state.refill import Contents
from engine.state.streams import CONTROL, Entry

SPARE_MINUTES: Final = 1
"""As the scripts' callers enter it: a code is forgotten a minute after its afterlife (engine.state.codes.forget_minute)."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What was made."""

    partitions: int
    codes: int
    shelves: int
    events: int
    """In the ledger."""
    took_s: float
    checkpoint: int
    """Number of the checkpoint that it went on from; 0: from the beginning."""
    unsound: tuple[Unsound, ...]
    """Checkpoints that were passed over, and why."""


def rebuild(
    connection: Connection,
    ledger: Ledger,
    *,
    now_ms: int,
    key: Ed25519PublicKey | None = None,
    monotonic_s: Callable[[], float] = time.monotonic,
) -> Rebuilt:
    """Fill the empty store behind a connection.

    key: that checkpoints must be signed by; None: the ledger is folded from its beginning. Raises DeploymentMismatch when it is not empty or the ledger lacks the deployment's constants, LedgerConflict when the ledger
    contradicts itself, StoreUnavailable, LedgerUnavailable.
    """
    begun_s = monotonic_s()
    if not refill.is_empty(connection):
        raise DeploymentMismatch(
            "the store is not empty: a rebuild fills an empty one only; if this one was left half filled by a rebuild that was cut off,"
            " empty it (FLUSHALL) and repeat"
        )
    setup = ledger.setup()
    if setup is None:
        raise DeploymentMismatch(
            "the ledger does not hold the deployment's constants and keyring: no writer of this version has followed it"
        )
    # A departure is in transit until another partition says that it arrived, and the register of request ids lies elsewhere than their
    # events, so all are folded before the first is written.
    begun = checkpoints.begin(ledger, key, range(len(setup.tags)), remember=True)
    ends = ledger.heads()
    for number, fold in begun.folds.items():
        if number in ends:
            checkpoints.fold_on(ledger, fold, begun.head(ledger, number), ends[number].place)
        fold.forget(now_ms)
    folds = [begun.folds[number] for number in range(len(setup.tags))]
    arrived = {arrival for fold in folds for arrival in fold.arrivals}
    registers = _registers(folds, [PartitionKeys(tag) for tag in setup.tags], now_ms)
    for number, fold in enumerate(folds):
        names = PartitionKeys(setup.tags[number])
        with database.snapshot(ledger.engine) as rows:
            tail = read_tail(rows, number, OVERLAP)
        contents = _contents(fold, tail, names, arrived, registers[number], now_ms)
        refill.fill_partition(connection, names, contents)
    control = [row.entry for row in ledger.rows(CONTROL)]
    refill.fill_control(connection, setup.constants, setup.keyring, control, control[-OVERLAP:])
    return Rebuilt(
        partitions=len(folds),
        codes=sum(len(fold.records) for fold in folds),
        shelves=sum(len(fold.shelves) for fold in folds),
        events=sum(head.rows for head in ends.values()),
        took_s=monotonic_s() - begun_s,
        checkpoint=begun.checkpoint.number if begun.checkpoint else 0,
        unsound=tuple(begun.unsound),
    )


def _registers(
    folds: Sequence[Fold], names: Sequence[PartitionKeys], now_ms: int
) -> list[dict[bytes, dict[bytes, bytes]]]:
    """The buckets of the register of request ids, of each partition: those that the store still looks into."""
    oldest = now_ms // DAY_MS - REGISTER_DAYS + 1
    found: list[dict[bytes, dict[bytes, bytes]]] = [{} for _ in names]
    for fold in folds:
        for request, entry in fold.register.items():
            day = int.from_bytes(entry[:4], "big")
            if day >= oldest:
                number = register.partition_of(request, len(names))
                bucket = found[number].setdefault(names[number].register(request, day), {})
                bucket[request] = register.held_once(entry[4:])
    return found


def _contents(
    fold: Fold,
    tail: list[Entry],
    names: PartitionKeys,
    arrived: set[Arrival],
    registered: Mapping[bytes, Mapping[bytes, bytes]],
    now_ms: int,
) -> Contents:
    assert fold.answers is not None
    due: dict[int, bytearray] = {}
    for uid, data in fold.records.items():
        due.setdefault(_due(data), bytearray()).extend(uid)
    minute = now_ms // 60_000
    return Contents(
        place=fold.place,
        last_seen_ms=fold.last_at_ms,
        stock={shelf: figures.pack() for shelf, figures in fold.shelves.items()},
        records=fold.records,
        answers=fold.answers.of_codes,
        lasting=_lasting(fold, names, now_ms),
        register=registered,
        evidence=fold.evidence,
        reviews=fold.reviews,
        transit={
            departure.request + departure.number: data
            for departure, data in fold.departures.items()
            if Arrival(departure.request, left_store(data), departure.number) not in arrived
        },
        due={at: bytes(uids) for at, uids in due.items()},
        # What fell due while there was no store is still to be swept.
        swept=min([minute, *due]) - 1,
        tail=tail,
    )


def _due(data: bytes) -> int:
    """The minute in which a record is to be looked at: at its expiry, or, once it has ended, to be forgotten."""
    if records.is_ended(data):
        return due_minute(records.read(data).changed // 1000 + limits.AFTERLIFE_S) + SPARE_MINUTES
    return due_minute(records.expiry_s(data))


def _lasting(fold: Fold, names: PartitionKeys, now_ms: int) -> list[tuple[bytes, bytes, int]]:
    assert fold.answers is not None
    found = []
    for digest, (at_ms, answer) in fold.answers.of_stock.items():
        found.append((names.stock_answer(digest), answer, at_ms + limits.STOCK_ANSWER_TTL_S * 1000 - now_ms))
    for (digest, store, number), (at_ms, answer) in fold.answers.of_arrivals.items():
        left_ms = at_ms + limits.ARRIVAL_TTL_S * 1000 - now_ms
        found.append((names.arrival(digest, store, number), answer, left_ms))
    return [(key, answer, left_ms) for key, answer, left_ms in found if left_ms > 0]
