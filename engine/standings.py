"""What holds at each store at one moment: looked up once a second and store instead of once a call."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engine import hours, policy
from engine.control import Copy
from engine.verdict import RedeemVerdict
from ext.datum import Datum
from ext.standing import STANDING

_ROWS_FIRST: Final = 64


class Standings:
    """The standings of one second under one copy of the set-up. May be used by many threads.

    Opening hours and pickup windows begin and end on whole seconds (engine.hours), so within one nothing changes.
    """

    __slots__ = ("_at", "_copy", "_growing", "_now_s", "_table")

    def __init__(self, copy: Copy, now_s: int) -> None:
        self._copy = copy
        self._now_s = now_s
        self._growing = threading.Lock()
        self._table = np.zeros(_ROWS_FIRST, STANDING)
        self._at: dict[int, int] = {}
        """Row of each store that was asked for. Entered when the row is written."""

    def hold(self, copy: Copy, now_s: int) -> bool:
        """Whether these are still true."""
        mine = self._copy
        return now_s == self._now_s and copy.stores is mine.stores and copy.policies is mine.policies

    def rows(self, store_ids: Sequence[int]) -> list[int]:
        """Which rows of `table` say what holds at some stores. To be asked before the table, which may grow for them."""
        at = self._at
        try:
            return [at[store_id] for store_id in store_ids]
        except KeyError:
            with self._growing:
                for store_id in store_ids:
                    if store_id not in at:
                        self._enter(store_id)
            return [at[store_id] for store_id in store_ids]

    @property
    def table(self) -> npt.NDArray[np.void]:
        """Rows of STANDING, at least those that were asked for."""
        return self._table

    def _enter(self, store_id: int) -> None:
        row = len(self._at)
        if row == len(self._table):
            longer = np.zeros(2 * row, STANDING)
            longer[:row] = self._table
            self._table = longer
        self._table[row] = self._settle(store_id)
        self._at[store_id] = row

    def _settle(self, store_id: int) -> tuple[Any, ...]:
        store, terms = self._copy.stores.get(store_id), self._copy.policies.resolve(store_id)
        if store is None:
            return policy.RULES["off"], 0, 0, 0.0, 0.0, terms.payload_life_s
        now_ms = self._now_s * 1000
        outside = bool(store.pickup_windows) and hours.in_window(store, now_ms) is None
        return (
            policy.RULES[terms.terminal_location],
            0 if hours.is_open(store, now_ms) else RedeemVerdict.STORE_CLOSED.number,
            RedeemVerdict.OUTSIDE_WINDOW.number if outside else 0,
            store.radius_m,
            [(0.0, 0.0), *(store.positions[datum] for datum in Datum)],
            terms.payload_life_s,
        )
