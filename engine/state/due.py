"""The due index: which codes a minute concerns, and what became of them.

A partition's facts carry `swept`, the last minute that is done. A minute is read, its codes are handed to the expire script,
then its key is deleted and `swept` moves on; cut off anywhere in between, the next sweep does the minute again, harmlessly.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from engine import limits
from engine.claims import UID_BYTES
from engine.errors import PickgateError
from engine.state import batch, codes, layouts, scripts
from engine.state.connection import Call, Connection
from engine.state.keys import PartitionKeys

_log = logging.getLogger(__name__)

SETTLE_S: Final = 2 * limits.CLOCK_SKEW_MS_MAX // 1000
"""A minute is swept this long after its beginning: until then a process with a slower clock may still enter codes."""
MINUTES_PER_READ: Final = 512
MINUTES_PER_LOOK: Final = 32
"""Minutes that one command asks for together: where nothing is due, which is nearly everywhere after a long stop, it is all."""
_EXPIRED, _FORGOTTEN, _AGAIN = b"E", b"F", b"S"


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep did."""

    expired: int = 0
    forgotten: int = 0

    def __add__(self, other: Swept) -> Swept:
        return Swept(self.expired + other.expired, self.forgotten + other.forgotten)


@dataclass(frozen=True, slots=True)
class _Item:
    uid: bytes
    mall_id: int
    store_id: int
    requests: bytes


def sweep(
    connection: Connection, *, since_ms: int, stopping: Callable[[], bool]
) -> tuple[Swept, PickgateError | None]:
    """Expire and forget all that is due in every partition. `since_ms` is when the deployment was created.

    `stopping` is asked after every batch: once it says True, the rest is left for the next sweep.

    Gives what was done, and the first error met. A partition that fails is left at its last finished minute, and the others
    go on, as do those of other owners when one can't be reached. Raises StoreUnavailable when the only one can't.
    """
    now_s = connection.now_ms() // 1000
    last = (now_s - SETTLE_S) // 60
    swept = Swept()
    failed: PickgateError | None = None
    groups = connection.by_owner()
    for group in groups:
        partitions = [connection.partitions[number] for number in group]
        try:
            facts = connection.read_of(group, [("HGET", names.meta, "swept") for names in partitions])
        except PickgateError as error:
            if len(groups) == 1:
                raise
            failed = failed or error
            continue
        for names, done in zip(partitions, facts, strict=True):
            # A minute ahead of the time was noted by mistake: begin again where nothing can have been missed.
            first = int(done) + 1 if done and int(done) <= now_s // 60 else since_ms // 60_000
            try:
                swept += _sweep_partition(connection, names, range(first, last + 1), stopping)
            except PickgateError as error:
                failed = failed or error
    return swept, failed


def _sweep_partition(
    connection: Connection, names: PartitionKeys, minutes: range, stopping: Callable[[], bool]
) -> Swept:
    swept = Swept()
    for start in range(0, len(minutes), MINUTES_PER_READ):
        chunk = minutes[start : start + MINUTES_PER_READ]
        for minute, length in _due(connection, names, chunk):
            done, all_done = _sweep_minute(connection, names, minute, length, stopping)
            swept += done
            if not all_done:
                return swept
        # Another process may have swept further meanwhile; going back only means looking at empty minutes again.
        [noted] = connection.run([Call(scripts.SWEPT, names.own, [chunk[-1]])])
        if isinstance(noted, PickgateError):
            raise noted
    return swept


def _due(connection: Connection, names: PartitionKeys, minutes: range) -> list[tuple[int, int]]:
    """Those of the minutes in which something is due, and the bytes of each one's index."""
    looks = [minutes[start : start + MINUTES_PER_LOOK] for start in range(0, len(minutes), MINUTES_PER_LOOK)]
    found = connection.read([("EXISTS", *map(names.due, look)) for look in looks])
    asked = [minute for look, there in zip(looks, found, strict=True) if there for minute in look]
    lengths = connection.read([("STRLEN", names.due(minute)) for minute in asked]) if asked else []
    return [(minute, length) for minute, length in zip(asked, lengths, strict=True) if length]


def _sweep_minute(
    connection: Connection, names: PartitionKeys, minute: int, length: int, stopping: Callable[[], bool]
) -> tuple[Swept, bool]:
    """What was done, and whether the minute is done."""
    swept = Swept()
    step = limits.BATCH_MAX * UID_BYTES
    for start in range(0, length, step):
        [data] = connection.read([("GETRANGE", names.due(minute), start, start + step - 1)])
        uids = {data[at : at + UID_BYTES] for at in range(0, len(data), UID_BYTES)}
        while uids:
            if stopping():
                return swept, False
            uids, done = _expire(connection, names, sorted(uids))
            swept += done
    connection.write([("DEL", names.due(minute))])
    return swept, True


def _expire(connection: Connection, names: PartitionKeys, uids: Sequence[bytes]) -> tuple[set[bytes], Swept]:
    """Expire or forget codes of one partition; gives those that changed in between, to be done again."""
    records = connection.read([("HGET", names.record(uid), uid) for uid in uids])
    items = [
        item
        for uid, record in zip(uids, records, strict=True)
        if record and (item := _item(uid, record)) is not None
    ]
    forget_minute = -(-(connection.now_ms() // 1000 + limits.AFTERLIFE_S) // 60) + 1

    def pack(item: _Item, names: PartitionKeys, keys: batch.Keys) -> bytes:
        requests = [item.requests[at : at + 12] for at in range(0, len(item.requests), 12)]
        head = layouts.EXPIRE_ITEM.pack(
            item.uid,
            keys.index(names.record(item.uid)),
            keys.index(names.stock(item.mall_id, item.store_id)),
            keys.index(names.due(forget_minute)),
            len(requests),
        )
        return head + b"".join(
            layouts.ANSWER_KEY.pack(request, keys.index(names.answers(request))) for request in requests
        )

    partition = connection.partitions.index(names)
    replies = batch.run(connection, scripts.EXPIRE, items, lambda _: partition, pack)
    for reply in replies:
        if isinstance(reply, PickgateError):
            raise reply
    again = {item.uid for item, reply in zip(items, replies, strict=True) if reply == _AGAIN}
    return again, Swept(replies.count(_EXPIRED), replies.count(_FORGOTTEN))


def _item(uid: bytes, record: bytes) -> _Item | None:
    try:
        read = codes.parse_record(uid, record)
    except (struct.error, ValueError, IndexError):
        # One damaged record must not stop the expiry of all others. It stays as it is, for somebody to look at.
        _log.error(
            "the record of code %s is damaged: it can't be expired; restore it from a backup", uid.hex()
        )
        return None
    fields = dict(zip(layouts.RECORD.names, layouts.RECORD.unpack(record), strict=True))
    at = (
        layouts.RECORD.size
        + fields["n_lines"] * layouts.LINE.size
        + fields["n_bundles"] * layouts.BUNDLE.size
    )
    return _Item(uid, read.mall_id, read.store_id, record[at : at + 12 * fields["n_requests"]])
