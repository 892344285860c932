"""Rebuild: an empty store is filled with what the ledger knows, and is then the deployment that was lost.

Live codes with what is left of them, codes that ended within their afterlife, stock, reservations, tries, locks, units in transit, the answers
of earlier requests, the set-up and the wrapped keyring. What the lost store had acknowledged behind the ledger's last event is lost: the
ledger's lag at that moment.

Not rebuilt: the register of request ids that came back naming another store (it only refuses mistakes), the remembered answers of puts to the
set-up, refused attempts.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from engine import limits
from engine.errors import DeploymentMismatch, LedgerConflict
from engine.ledger import records
from engine.ledger.fold import Arrival, Contradiction, Fold
from engine.ledger.ledger import Ledger
from engine.ledger.writer import OVERLAP
from engine.state import layouts, refill
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
    took_s: float


def rebuild(
    connection: Connection,
    ledger: Ledger,
    *,
    now_ms: int,
    monotonic_s: Callable[[], float] = time.monotonic,
) -> Rebuilt:
    """Fill the empty store behind a connection.

    Raises DeploymentMismatch when it is not empty or the ledger lacks the deployment's constants, LedgerConflict when the ledger
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
    # A departure is in transit until another partition says that it arrived, so all are folded before the first is written.
    folds = []
    tails = []
    for number in range(len(setup.tags)):
        fold, tail = _fold(ledger, number)
        fold.forget(now_ms)
        folds.append(fold)
        tails.append(tail)
    arrived = {arrival for fold in folds for arrival in fold.arrivals}
    for fold, tail, tag in zip(folds, tails, setup.tags, strict=True):
        names = PartitionKeys(tag)
        refill.fill_partition(connection, names, _contents(fold, tail, names, arrived, now_ms))
    control = [row.entry for row in ledger.rows(CONTROL)]
    refill.fill_control(connection, setup.constants, setup.keyring, control, control[-OVERLAP:])
    return Rebuilt(
        partitions=len(folds),
        codes=sum(len(fold.records) for fold in folds),
        shelves=sum(len(fold.shelves) for fold in folds),
        events=sum(head.rows for head in ledger.heads().values()),
        took_s=monotonic_s() - begun_s,
    )


def _fold(ledger: Ledger, number: int) -> tuple[Fold, list[Entry]]:
    fold = Fold(number, remember=True)
    tail: deque[Entry] = deque(maxlen=OVERLAP)
    try:
        for row in ledger.rows(number):
            fold.add(row.entry)
            tail.append(row.entry)
    except Contradiction as found:
        raise LedgerConflict(
            f"the ledger can't be rebuilt from: {found}; verify its chain, and rebuild from a sound copy"
        ) from None
    return fold, list(tail)


def _contents(
    fold: Fold, tail: list[Entry], names: PartitionKeys, arrived: set[Arrival], now_ms: int
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
        evidence=fold.evidence,
        reviews=fold.reviews,
        transit={
            departure.request + departure.number: data
            for departure, data in fold.departures.items()
            if Arrival(departure.request, _left(data), departure.number) not in arrived
        },
        due={at: bytes(uids) for at, uids in due.items()},
        # What fell due while there was no store is still to be swept.
        swept=min([minute, *due]) - 1,
        tail=tail,
    )


def _left(transit: bytes) -> int:
    """The store that units in transit left."""
    return int(layouts.TRANSIT.unpack(transit)[layouts.TRANSIT.names.index("store")])


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
