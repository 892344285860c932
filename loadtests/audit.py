"""The audit behind every run: what the events add up to, against what the store holds and what callers were told.

Events are folded with arithmetic of its own, in plain Python; who reads a store (loadtests.books, loadtests.comparison.books)
feeds it with events, records and figures. It knows the kinds of change that load tools cause, and no other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

Shelf = tuple[int, int, int]
"""Mall, store, SKU."""
Lines = Sequence[tuple[int, int]]
"""SKUs and counts."""
FINDINGS_MAX: Final = 20
"""Findings that are told in full; more are counted."""


class State(Enum):
    """State of a code, as far as load tools bring one into it."""

    LIVE = "live"
    PARTLY = "partly"
    REDEEMED = "redeemed"
    VOIDED = "voided"
    EXPIRED = "expired"


_OPEN: Final = (State.LIVE, State.PARTLY)


@dataclass(slots=True)
class Life:
    """What the events so far say of one code."""

    mall_id: int
    store_id: int
    left: dict[int, int]
    state: State = State.LIVE
    redemptions: int = 0


@dataclass
class Audit:
    """The books of one store. Feed it, then call `close`."""

    lives: dict[bytes, Life] = field(default_factory=dict)
    received: Counter[Shelf] = field(default_factory=Counter)
    redeemed: Counter[Shelf] = field(default_factory=Counter)
    claimed: Counter[Shelf] = field(default_factory=Counter)
    events: int = 0
    records: Counter[State] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    found: int = 0
    _seen: set[bytes] = field(default_factory=set)

    def fault(self, text: str) -> None:
        """Note that something does not agree."""
        self.found += 1
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(text)

    # --- events ----------------------------------------------------------------------------------------------------
    def receive(self, shelf: Shelf, units: int) -> None:
        """Units came in (or, negative, were written off)."""
        self.events += 1
        self.received[shelf] += units

    def issue(self, uid: bytes, mall_id: int, store_id: int, lines: Lines) -> None:
        """A code was made."""
        self.events += 1
        if uid in self.lives:
            self.fault(f"{uid.hex()} was issued twice")
            return
        left: dict[int, int] = {}
        for sku_id, count in lines:
            left[sku_id] = left.get(sku_id, 0) + count
            self.claimed[mall_id, store_id, sku_id] += count
        self.lives[uid] = Life(mall_id, store_id, left)

    def redeem(self, uid: bytes, lines: Lines) -> None:
        """A code was redeemed: units were handed out."""
        life = self._open_life(uid, "redeemed")
        if life is None:
            return
        life.redemptions += 1
        for sku_id, count in lines:
            shelf = (life.mall_id, life.store_id, sku_id)
            life.left[sku_id] = life.left.get(sku_id, 0) - count
            self.redeemed[shelf] += count
            self.claimed[shelf] -= count
            if life.left[sku_id] < 0 or count <= 0:
                self.fault(f"{uid.hex()}: {count} units of SKU {sku_id} were handed out, more than were left")
        life.state = State.PARTLY if any(life.left.values()) else State.REDEEMED

    def end(self, uid: bytes, state: State) -> None:
        """A code was voided, or expired: what was left of it is free."""
        life = self._open_life(uid, state.value)
        if life is None:
            return
        for sku_id, count in life.left.items():
            self.claimed[life.mall_id, life.store_id, sku_id] -= count
            life.left[sku_id] = 0
        life.state = state

    def extend(self, uid: bytes) -> None:
        """A code lives longer."""
        self._open_life(uid, "extended")

    def _open_life(self, uid: bytes, what: str) -> Life | None:
        self.events += 1
        life = self.lives.get(uid)
        if life is None:
            self.fault(f"{uid.hex()} was {what} and never issued")
        elif life.state not in _OPEN:
            self.fault(f"{uid.hex()} was {what} when it was {life.state.value} already")
            return None
        return life

    # --- what the store holds --------------------------------------------------------------------------------------
    def record(self, uid: bytes, state: State, left: Lines) -> None:
        """A code's record, as it is now."""
        self.records[state] += 1
        if uid in self._seen:
            self.fault(f"{uid.hex()} has two records")
        self._seen.add(uid)
        life = self.lives.get(uid)
        if life is None:
            self.fault(f"{uid.hex()} has a record and no event")
            return
        units: Counter[int] = Counter()
        for sku_id, count in left:
            units[sku_id] += count
        if state in (State.VOIDED, State.EXPIRED):
            units.clear()  # a record keeps what was left when it ended
        if life.state is not state or +units != +Counter(life.left):
            self.fault(
                f"{uid.hex()}: its record says {state.value} with {dict(+units)} left, "
                f"its events {life.state.value} with {dict(+Counter(life.left))}"
            )

    def figures(self, shelves: dict[Shelf, tuple[int, int]]) -> None:
        """Stock by shelf, on_hand and reserved, as it is now."""
        for shelf in {*shelves, *self.received, *self.claimed, *self.redeemed}:
            expected = (self.received[shelf] - self.redeemed[shelf], self.claimed[shelf])
            held = shelves.get(shelf, (0, 0))
            if held != expected or min(held) < 0:
                self.fault(
                    f"stock of mall {shelf[0]}, store {shelf[1]}, SKU {shelf[2]}: on_hand and reserved are {held}, "
                    f"the events make {expected}"
                )

    # --- the end ---------------------------------------------------------------------------------------------------
    def close(self, acknowledged: Iterable[bytes] = (), issued: int | None = None) -> list[str]:
        """Compare the totals, and what callers were told.

        Args:
            acknowledged: uids of which a caller was told REDEEMED.
            issued: how many codes callers were told of; None: not known.

        Returns the findings, none if all agree.
        """
        states = Counter(life.state for life in self.lives.values())
        if states != self.records:
            self.fault(f"records by state are {_told(self.records)}, the events make {_told(states)}")
        if missing := len(self.lives.keys() - self._seen):
            self.fault(f"{missing} codes have events and no record")
        if issued is not None and issued != len(self.lives):
            self.fault(
                f"{issued} codes were issued as callers were told, {len(self.lives)} as the events say"
            )
        told: Counter[bytes] = Counter(acknowledged)
        for uid, times in told.items():
            life = self.lives.get(uid)
            if life is None or not life.redemptions:
                self.fault(f"{uid.hex()}: a caller was told REDEEMED, and the store does not know")
            elif times > life.redemptions:
                self.fault(
                    f"{uid.hex()}: {times} callers were told REDEEMED, the store knows {life.redemptions}"
                )
        if self.found > len(self.findings):
            self.findings.append(f"and {self.found - len(self.findings)} more")
        return self.findings

    def summary(self) -> dict[str, Any]:
        """Totals for the report."""
        return {
            "events": self.events,
            "issued": len(self.lives),
            **{state.value: self.records[state] for state in State},
            "units_redeemed": sum(self.redeemed.values()),
            "findings": self.findings,
        }


def _told(states: Counter[State]) -> dict[str, int]:
    return {state.value: count for state, count in states.items()}
