"""The register of request ids: notices an id that comes back with another body, whichever partition it names.

A mall's verbs enter their request ids here before the deciding script runs, and strike them out again when the answer is a
refusal, since a refusal changes nothing and is not remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from engine import limits
from engine.errors import PickgateError, RequestIdReused
from engine.state import batch, layouts, scripts
from engine.state.connection import Connection
from engine.state.keys import PartitionKeys

_DAY_MS: Final = 86_400_000
BUCKET_TTL_S: Final = 4 * 86_400
"""As lua/register.lua has it."""
_REUSED: Final = b"X"


@dataclass(frozen=True, slots=True)
class Entry:
    """One request id in its scope, and the body that must agree."""

    request: bytes
    body: bytes


def enter(connection: Connection, entries: Sequence[Entry]) -> list[PickgateError | None]:
    """Enter request ids for one call, which holds each once. Per entry None, or the error: RequestIdReused, StoreUnavailable."""
    return _run(connection, entries, enter=True)


def strike_out(connection: Connection, entries: Sequence[Entry]) -> None:
    """Let go of request ids that were refused. What fails here only makes a later reuse be refused."""
    if entries:
        _run(connection, entries, enter=False)


def partition_of(request: bytes, partitions: int) -> int:
    """The partition whose register a request id stands in: chosen by the id alone, whatever store the request names."""
    return int.from_bytes(request[4:8], "big") % partitions


def held_once(body: bytes) -> bytes:
    """What is kept of a request id that one call holds."""
    return body + b"1"


def _run(connection: Connection, entries: Sequence[Entry], *, enter: bool) -> list[PickgateError | None]:
    partitions = len(connection.partitions)
    # An id may stand more than once in a call.
    distinct = list(dict.fromkeys(entries))
    now_ms = connection.now_ms()
    today, ahead = now_ms // _DAY_MS, (now_ms + 2 * limits.CLOCK_SKEW_MS_MAX) // _DAY_MS

    def pack(entry: Entry, names: PartitionKeys, keys: batch.Keys) -> bytes:
        # By the clocks of the callers, of which each may differ from the store's.
        days = (
            keys.index(names.register(entry.request, day)) for day in (ahead, *range(today, today - 4, -1))
        )
        return layouts.REGISTER_ITEM.pack(entry.request, entry.body, *days)

    replies = batch.run(
        connection,
        scripts.REGISTER,
        distinct,
        lambda entry: partition_of(entry.request, partitions),
        pack,
        first_args=(int(enter),),
    )
    outcomes: dict[Entry, PickgateError | None] = {}
    for entry, reply in zip(distinct, replies, strict=True):
        if isinstance(reply, PickgateError):
            outcomes[entry] = reply
        elif reply == _REUSED:
            outcomes[entry] = RequestIdReused(
                "this request id was used before for another request: nothing was done; use a new id for a new request,"
                " and the same id only to repeat exactly the same one",
                field="request_id",
            )
        else:
            outcomes[entry] = None
    return [outcomes[entry] for entry in entries]
