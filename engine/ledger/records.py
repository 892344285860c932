"""A code's record as a value that can be changed, and as the bytes that the scripts keep: both ways, byte for byte."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final

from engine.claims import State
from engine.state import layouts


@dataclass(slots=True)
class Line:
    """One line of a record."""

    sku: int
    count: int
    left: int

    @property
    def out(self) -> int:
        """Units that were handed out and have not come back."""
        return self.count - self.left


@dataclass(slots=True)
class Bundle:
    """A bundle among the lines: `n` of them, from `first` (1-based) on, are its parts."""

    sku: int
    units: int
    first: int
    n: int


@dataclass(slots=True)
class Record:
    """layouts.RECORD by name, without the counts of what follows it; then what follows it."""

    layout: int
    state: int
    flavour: int
    channel: int
    mall: int
    store: int
    policy: int
    issued: int
    changed: int
    stamp_floor: int
    exp: int
    issue_exp: int
    amount: int
    ttl: int
    flags: int
    pin_generation: int
    revision: int
    cycle: int
    tries: int
    issue_epoch: int
    issue_seq: int
    request: bytes
    body: bytes
    last_terminal: int
    last_at: int
    lock_epoch: int
    lock_seq: int
    lines: list[Line]
    bundles: list[Bundle]
    requests: bytes
    """Digests of the requests that are remembered for it, twelve bytes each."""
    order: bytes
    split: bytes
    replaces: bytes

    @property
    def ended(self) -> bool:
        """Whether it can change no more, but for a reversal."""
        return self.state >= State.REDEEMED

    @property
    def left(self) -> int:
        """Units that can still be handed out."""
        return sum(line.left for line in self.lines)


_COUNTS: Final = ("n_lines", "n_bundles", "n_requests", "order_len", "split_len")
_FIXED: Final = tuple(name for name in layouts.RECORD.names if name not in _COUNTS)
_SIXES: Final = frozenset(
    field.partition(":")[0] for field in layouts.RECORD.text.split() if field.endswith(":I6")
)
assert tuple(field.name for field in fields(Record))[: len(_FIXED)] == _FIXED
assert layouts.RECORD.names[: len(_FIXED)] == _FIXED


_EXP: Final = layouts.RECORD.names.index("exp")
_STATE_AT: Final = 1
assert layouts.RECORD.names[_STATE_AT] == "state"
assert layouts.RECORD.text.startswith("layout:B state:B ")


def is_ended(data: bytes) -> bool:
    """As Record.ended, without reading all of it: most records of a rebuild are live."""
    return data[_STATE_AT] >= State.REDEEMED


def expiry_s(data: bytes) -> int:
    """As Record.exp, without reading all of it."""
    return int(layouts.RECORD.struct.unpack_from(data)[_EXP])


def read(data: bytes) -> Record:
    """A record as stored. Raises struct.error for bytes that end too early."""
    values = layouts.RECORD.unpack(data)
    n_lines, n_bundles, n_requests, order_len, split_len = values[len(_FIXED) :]
    at = layouts.RECORD.size
    lines = []
    for _ in range(n_lines):
        lines.append(Line(*layouts.LINE.struct.unpack_from(data, at)))
        at += layouts.LINE.size
    bundles = []
    for _ in range(n_bundles):
        bundles.append(Bundle(*layouts.BUNDLE.struct.unpack_from(data, at)))
        at += layouts.BUNDLE.size
    order_at = at + 12 * n_requests
    split_at = order_at + order_len
    end = split_at + split_len
    named: list[Any] = [*values[: len(_FIXED)], lines, bundles]
    named += (data[at:order_at], data[order_at:split_at], data[split_at:end], data[end:])
    return Record(*named)


def write(record: Record) -> bytes:
    """The bytes that the scripts keep."""
    values: list[Any] = []
    for name in _FIXED:
        value = getattr(record, name)
        values.append(value.to_bytes(6, "big") if name in _SIXES else value)
    head = layouts.RECORD.pack(
        *values,
        len(record.lines),
        len(record.bundles),
        len(record.requests) // 12,
        len(record.order),
        len(record.split),
    )
    parts = [head]
    parts += [layouts.LINE.pack(line.sku, line.count, line.left) for line in record.lines]
    parts += [
        layouts.BUNDLE.pack(bundle.sku, bundle.units, bundle.first, bundle.n) for bundle in record.bundles
    ]
    return b"".join([*parts, record.requests, record.order, record.split, record.replaces])
