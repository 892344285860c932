"""When terminals were last seen: one hash of the control partition, beside the entries, written now and then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine import limits
from engine.errors import PickgateError
from engine.state import scripts
from engine.state.connection import Call, Connection
from engine.state.keys import ControlKeys

_KEYS = ControlKeys()
_SEEN = _KEYS.kind("seen")


def note(connection: Connection, seen: Mapping[str, int]) -> None:
    """Note sightings: terminal ("mall:store:number") → unix second; an earlier one changes nothing. Raises StoreUnavailable."""
    flat = [part for field, at_s in seen.items() for part in (field.encode("ascii"), at_s)]
    step = 2 * limits.BATCH_MAX
    calls = [
        Call(scripts.SEEN, (_KEYS.meta, _KEYS.events, _SEEN), flat[start : start + step])
        for start in range(0, len(flat), step)
    ]
    for outcome in connection.run(calls):
        if isinstance(outcome, PickgateError):
            raise outcome


def read(connection: Connection, fields: Sequence[str]) -> list[int]:
    """When each was last seen, unix seconds; 0 for never. Raises StoreUnavailable."""
    if not fields:
        return []
    [values] = connection.read([("HMGET", _SEEN, *fields)])
    return [int(value or 0) for value in values]
