"""What a code says: versions, suites, states, and the small value types that every verb shares.

Source of the layouts: docs/format.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from engine import fields, limits
from engine.errors import InvalidInput
from ext.claims import Suite, Version
from ext.datum import Datum

__all__ = [
    "UID_BYTES",
    "Channel",
    "Decision",
    "EventId",
    "Line",
    "LineState",
    "Position",
    "Split",
    "State",
    "Suite",
    "Terminal",
    "Tier",
    "TransferStep",
    "Version",
    "is_static",
    "partition_of",
]

UID_BYTES: Final = 8
_LOW_54: Final = (1 << 54) - 1
_STATIC_ZERO_BITS: Final = ((1 << 21) - 1) << 33
_DATUMS: Final = frozenset(Datum)


class Channel(IntEnum):
    """Where an order came from; promotional issue is the first that a short stock stops."""

    ONLINE = 1
    PROMOTION = 2
    STAFF = 3


class Tier(IntEnum):
    """How short a SKU is at a store, by available ÷ baseline. Numbers are stored and ordered: never renumber."""

    NORMAL = 0
    TIGHT = 1
    RED = 2
    CLOSED = 3
    EMERGENCY = 4


class Decision(IntEnum):
    """What a reviewer decides on a locked code."""

    APPROVE = 1
    REDEEM = 2
    VOID = 3


class TransferStep(IntEnum):
    """Steps of moving units between stores."""

    OUT = 1
    IN = 2
    DONE = 3


class State(IntEnum):
    """State of a code's record. Numbers are stored: never renumber."""

    HELD = 1
    LIVE = 2
    PARTLY = 3
    LOCKED = 4
    REDEEMED = 5
    VOIDED = 6
    EXPIRED = 7

    @property
    def ended(self) -> bool:
        """True when only the afterlife remains."""
        return self >= State.REDEEMED


@dataclass(frozen=True, slots=True)
class Line:
    """One SKU and its count (1 .. 65,535). Raises InvalidInput outside these."""

    sku_id: int
    count: int

    def __post_init__(self) -> None:
        fields.identifier(self.sku_id, "sku_id")
        fields.whole(self.count, "count", 1, limits.COUNT_MAX)


@dataclass(frozen=True, slots=True)
class LineState:
    """One line of a code: SKU, count, and units not yet handed out.

    In a record `count` is what was issued; in the answer of a redemption it is what that redemption took.
    """

    sku_id: int
    count: int
    left: int


@dataclass(frozen=True, slots=True)
class Split:
    """One party's share of an order: role and referral level (0 .. 3), amount in fen. Raises InvalidInput outside these."""

    payee: str
    role: str
    level: int
    amount_fen: int

    def __post_init__(self) -> None:
        fields.text(self.payee, "payee", limits.PAYEE_CHARS_MAX, chars_min=1)
        fields.text(self.role, "role", limits.ROLE_CHARS_MAX, chars_min=1)
        fields.whole(self.level, "level", 0, limits.SPLIT_LEVEL_MAX)
        fields.whole(self.amount_fen, "amount_fen", 0, limits.AMOUNT_FEN_MAX)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a caller says it is: degrees, metres of accuracy (0 = not stated), and the datum (ext.datum.Datum).

    Raises InvalidInput for what is no place on Earth, or no datum.
    """

    latitude_deg: float
    longitude_deg: float
    accuracy_m: float
    datum: int

    def __post_init__(self) -> None:
        # Written so that a NaN, which compares false with everything, is refused.
        if not (abs(self.latitude_deg) <= 90.0 and abs(self.longitude_deg) <= 180.0):
            raise InvalidInput(
                "position is no place on Earth; expected a latitude of -90 to 90 and a longitude of -180 to 180 degrees",
                field="position",
            )
        if not 0.0 <= self.accuracy_m < math.inf:
            raise InvalidInput(
                f"accuracy_m is {self.accuracy_m}; expected metres, 0 or more (0 = not stated)",
                field="accuracy_m",
            )
        if self.datum not in _DATUMS:
            raise InvalidInput(
                f"datum is {self.datum}; expected 1 (WGS-84), 2 (GCJ-02) or 3 (BD-09)", field="datum"
            )


@dataclass(frozen=True, slots=True)
class Terminal:
    """The caller of a redemption: a terminal of one store of one mall. Raises InvalidInput for an id out of range."""

    mall_id: int
    store_id: int
    terminal_id: int

    def __post_init__(self) -> None:
        fields.identifier(self.mall_id, "mall_id")
        fields.identifier(self.store_id, "store_id")
        fields.identifier(self.terminal_id, "terminal_id")


@dataclass(frozen=True, slots=True, order=True)
class EventId:
    """Number of one event: partition, epoch of the server behind it, sequence within the epoch."""

    partition: int
    epoch: int
    seq: int

    def __str__(self) -> str:
        """Text form `partition-epoch-seq`, as used in ids shown to people."""
        return f"{self.partition}-{self.epoch}-{self.seq}"


def partition_of(uid: bytes) -> int:
    """Partition of a uid: its first ten bits."""
    return int.from_bytes(uid[:2], "big") >> 6


def is_static(uid: bytes) -> bool:
    """True for a uid of a static (V1) code: the 21 bits behind the partition are zero."""
    return int.from_bytes(uid, "big") & _STATIC_ZERO_BITS == 0
