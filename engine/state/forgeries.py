"""The stream in which processes tell what forgeries they saw: one entry for each terminal and minute, the newest KEPT of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from engine.state import layouts
from engine.state.connection import Connection
from engine.state.keys import ControlKeys

KEPT: Final = 10_000
"""Entries that stay in the store, roughly: about 2 MB. The ledger's writer copies them each second."""
READ_MAX: Final = 2_048
_KEY: Final = ControlKeys().forgeries


class Shape(IntEnum):
    """What a forged code looked like. Numbers are stored."""

    OTHER = 0
    PAYLOAD = 1
    TYPED = 2


class Sample(NamedTuple):
    """One forgery, without a byte of it."""

    at_ms: int
    chars: int
    """Length in bytes, as UTF-8; longer ones count as 65,535."""
    shape: Shape
    dry: bool
    """Whether it was only inspected."""


class Forgery(NamedTuple):
    """What one process saw of one terminal in one minute; ids 0: terminals past the bound."""

    minute_ms: int
    mall_id: int
    store_id: int
    terminal_id: int
    times: int
    samples: tuple[Sample, ...]
    """The first of them."""

    def pack(self) -> bytes:
        """As layouts.FORGERY, then layouts.FORGERY_SAMPLE for each sample."""
        head = layouts.FORGERY.pack(
            self.minute_ms.to_bytes(6, "big"),
            self.mall_id,
            self.store_id,
            self.terminal_id,
            min(self.times, 0xFFFF_FFFF),
            len(self.samples),
        )
        return head + b"".join(
            layouts.FORGERY_SAMPLE.pack(
                one.at_ms.to_bytes(6, "big"), min(one.chars, 0xFFFF), one.shape, one.dry
            )
            for one in self.samples
        )

    @classmethod
    def unpack(cls, data: bytes) -> Forgery:
        """Read what `pack` wrote."""
        minute_ms, mall_id, store_id, terminal_id, count, n_samples = layouts.FORGERY.unpack(data)
        samples = tuple(
            Sample(at_ms, chars, Shape(shape), bool(dry))
            for at_ms, chars, shape, dry in (
                layouts.FORGERY_SAMPLE.unpack(data, layouts.FORGERY.size + n * layouts.FORGERY_SAMPLE.size)
                for n in range(n_samples)
            )
        )
        return cls(minute_ms, mall_id, store_id, terminal_id, count, samples)


class Told(NamedTuple):
    """One entry, by the number that the store gave it."""

    stream_ms: int
    stream_seq: int
    forgery: Forgery


def append(connection: Connection, forgeries: Sequence[Forgery]) -> None:
    """Add entries. Raises StoreUnavailable."""
    connection.write([("XADD", _KEY, "MAXLEN", "~", KEPT, "*", "f", one.pack()) for one in forgeries])


def read(connection: Connection, seen: tuple[int, int]) -> list[Told]:
    """Entries behind a number, at most READ_MAX. Raises StoreUnavailable."""
    reply = connection.read_raw(("XREAD", "COUNT", READ_MAX, "STREAMS", _KEY, b"%d-%d" % seen))
    return list(_told(reply or ()))


def _told(reply: Sequence[tuple[bytes, Sequence[tuple[bytes, Sequence[bytes]]]]]) -> Iterator[Told]:
    for _, entries in reply:
        for entry_id, (_, data) in entries:
            stream_ms, _, stream_seq = entry_id.partition(b"-")
            yield Told(int(stream_ms), int(stream_seq), Forgery.unpack(data))
