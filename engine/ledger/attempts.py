"""Refused attempts: copied from the store's bounded streams into a bounded table, for the audit.

An attempt changed nothing, so it is no event: it is not chained, and one that is lost is lost. What a flood of them can cost is bounded:
the store keeps the last ATTEMPTS_KEPT of each partition, the ledger keeps the first DAY_MAX of each partition and day, and counts the rest.
So it is with what was told of forged codes (engine.forgeries), which are counted under the set-up's partition.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, and_, insert, select, update

from engine.ledger import database
from engine.ledger.ledger import Ledger
from engine.ledger.tables import ATTEMPT_DAYS, ATTEMPTS, FORGERIES
from engine.state import layouts
from engine.state.forgeries import Told
from engine.state.streams import CONTROL, Attempt, Streams

DAY_MAX: Final = 50_000
"""Attempts of one partition kept for one day: with 16 partitions and 200 days of retention 160 million rows at the very most."""
DAY_MS: Final = 86_400_000
_NONE: Final = (0, 0)
One = TypeVar("One", Attempt, Told)


class AttemptsWriter:
    """Copies what is new. Repeating a round changes nothing, so several writers may do it at once."""

    def __init__(self, streams: Streams, ledger: Ledger) -> None:
        self._streams = streams
        self._ledger = ledger
        self._seen: dict[int, tuple[int, int]] = {}

    def start(self) -> None:
        """Find the places to go on from. Raises LedgerUnavailable."""
        with database.snapshot(self._ledger.engine) as connection:
            self._seen = _last_seen(connection)

    def step(self) -> int:
        """Copy what is there now; gives how many there were. Raises StoreUnavailable, LedgerUnavailable."""
        return self._copy_attempts() + self._copy_forgeries()

    def _copy_attempts(self) -> int:
        found = self._streams.attempts(self._seen)
        if not found:
            return 0
        with database.writing(self._ledger.engine) as connection:
            # Another writer may have been faster since: what it copied is passed over.
            seen = _last_seen(connection)
            for number, attempts in found.items():
                new = [one for one in attempts if one[:2] > seen.get(number, _NONE)]
                for day in sorted({one.stream_ms // DAY_MS for one in new}):
                    _copy(connection, number, day, [one for one in new if one.stream_ms // DAY_MS == day])
        self._seen |= {number: attempts[-1][:2] for number, attempts in found.items()}
        return sum(map(len, found.values()))

    def _copy_forgeries(self) -> int:
        found = self._streams.forgeries(self._seen.get(CONTROL, _NONE))
        if not found:
            return 0
        with database.writing(self._ledger.engine) as connection:
            seen = _last_seen(connection).get(CONTROL, _NONE)
            new = [one for one in found if one[:2] > seen]
            for day in sorted({one.stream_ms // DAY_MS for one in new}):
                some = [one for one in new if one.stream_ms // DAY_MS == day]
                kept = _count(connection, CONTROL, day, some)
                if kept:
                    connection.execute(insert(FORGERIES), [_forgery_row(one) for one in kept])
        self._seen[CONTROL] = found[-1][:2]
        return len(found)


def _last_seen(connection: Connection) -> dict[int, tuple[int, int]]:
    seen: dict[int, tuple[int, int]] = {}
    columns = (ATTEMPT_DAYS.c.partition, ATTEMPT_DAYS.c.last_ms, ATTEMPT_DAYS.c.last_seq)
    for partition, last_ms, last_seq in connection.execute(select(*columns).order_by(ATTEMPT_DAYS.c.day)):
        seen[partition] = max(seen.get(partition, _NONE), (last_ms, last_seq))
    return seen


def _copy(connection: Connection, number: int, day: int, attempts: Sequence[Attempt]) -> None:
    """Add attempts of one partition and day."""
    kept = _count(connection, number, day, attempts)
    if kept:
        connection.execute(insert(ATTEMPTS), [_row(number, one) for one in kept])


def _count(connection: Connection, number: int, day: int, told: Sequence[One]) -> Sequence[One]:
    """Count entries of one stream and day; gives those that may be kept."""
    wanted = and_(ATTEMPT_DAYS.c.partition == number, ATTEMPT_DAYS.c.day == day)
    known = connection.execute(select(ATTEMPT_DAYS.c.kept).where(wanted)).scalar()
    kept = told[: max(0, DAY_MAX - (known or 0))]
    last = told[-1]
    if known is None:
        connection.execute(
            insert(ATTEMPT_DAYS).values(partition=number, day=day, kept=0, dropped=0, last_ms=0, last_seq=0)
        )
    connection.execute(
        update(ATTEMPT_DAYS)
        .where(wanted)
        .values(
            kept=ATTEMPT_DAYS.c.kept + len(kept),
            dropped=ATTEMPT_DAYS.c.dropped + len(told) - len(kept),
            last_ms=last.stream_ms,
            last_seq=last.stream_seq,
        )
    )
    return kept


def _forgery_row(told: Told) -> Mapping[str, Any]:
    one = told.forgery
    samples = [
        {"at_ms": sample.at_ms, "chars": sample.chars, "shape": sample.shape.name, "inspected": sample.dry}
        for sample in one.samples
    ]
    return {
        "stream_ms": told.stream_ms,
        "stream_seq": told.stream_seq,
        "at_ms": one.minute_ms,
        "mall_id": one.mall_id,
        "store_id": one.store_id,
        "terminal_id": one.terminal_id,
        "count": one.times,
        "samples": json.dumps(samples),
    }


def _row(number: int, attempt: Attempt) -> Mapping[str, Any]:
    at_ms, uid, mall_id, store_id, terminal_id, verdict, bucket = layouts.ATTEMPT.unpack(attempt.data)
    return {
        "partition": number,
        "stream_ms": attempt.stream_ms,
        "stream_seq": attempt.stream_seq,
        "at_ms": at_ms,
        "uid": uid,
        "mall_id": mall_id,
        "store_id": store_id,
        "terminal_id": terminal_id,
        "verdict": verdict,
        "bucket": bucket,
    }
