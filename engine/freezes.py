"""Freezes: a SKU of a mall at a store of which no more codes are made, until somebody has looked at its books.

An entry of the control partition for each, put by a reconciliation that found a drift, or by hand, and put again to lift it: each is an event
with its reason and who did it. Frozen is only what promises units: issue and hold. What was promised is handed out, since the customer
has paid, and voids, expiries and deliveries go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from engine import limits
from engine.claims import Line
from engine.entries import Entry, check_id, check_text

Shelf = tuple[int, int, int]
"""Mall, store, SKU."""


@dataclass(frozen=True)
class Freeze(Entry):
    """One shelf, frozen or not any more, and why (1 .. 200 characters). Raises InvalidInput."""

    mall_id: int
    store_id: int
    sku_id: int
    frozen: bool
    reason: str

    def __post_init__(self) -> None:
        check_id(self.mall_id, "mall_id")
        check_id(self.store_id, "store_id")
        check_id(self.sku_id, "sku_id")
        check_text(self.reason, "reason", limits.REASON_CHARS_MAX)

    @property
    def field(self) -> str:
        """Its name within its kind."""
        return f"{self.mall_id}:{self.store_id}:{self.sku_id}"

    @property
    def shelf(self) -> Shelf:
        """What it is of."""
        return self.mall_id, self.store_id, self.sku_id


def frozen_among(freezes: Mapping[Shelf, Freeze], mall_id: int, store_id: int, lines: Iterable[Line]) -> int:
    """The first SKU of some lines (bundles taken apart) that is frozen at a store; 0 for none."""
    for line in lines if freezes else ():
        found = freezes.get((mall_id, store_id, line.sku_id))
        if found is not None and found.frozen:
            return line.sku_id
    return 0
