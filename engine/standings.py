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

STANDING: Final = np.dtype(
    [
        ("rule", np.uint8),
        ("radius_m", np.float64),
        ("positions", np.float64, (len(Datum) + 1, 2)),
        ("payload_life_s", np.int64),
        ("closed", np.uint8),
        ("window", np.uint8),
    ]
)
"""What a store (or an id that is none) says about a redemption at it.

rule: policy.RULES' number: whether the terminal's position is looked at; "off" for an id that is no store. radius_m: metres.
positions: latitude and longitude in degrees, by datum; row 0 stands for a datum that was not stated. payload_life_s: seconds. closed:
STORE_CLOSED's number, or 0. window: OUTSIDE_WINDOW's number when the store has pickup windows and this is none, or 0.
"""
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

    def of(self, store_ids: Sequence[int]) -> npt.NDArray[np.void]:
        """What holds at each of some stores: rows of STANDING."""
        rows = self._rows(store_ids)
        # The table after the rows: it may have been replaced by a longer one, which has them too.
        found: npt.NDArray[np.void] = self._table[rows]
        return found

    def lives_s(self, store_ids: Sequence[int]) -> npt.NDArray[np.int64]:
        """How long a payload of each of some stores lives, in seconds."""
        rows = self._rows(store_ids)
        found: npt.NDArray[np.int64] = self._table["payload_life_s"][rows]
        return found

    def _rows(self, store_ids: Sequence[int]) -> list[int]:
        at = self._at
        try:
            return [at[store_id] for store_id in store_ids]
        except KeyError:
            with self._growing:
                for store_id in store_ids:
                    if store_id not in at:
                        self._enter(store_id)
            return [at[store_id] for store_id in store_ids]

    def _enter(self, store_id: int) -> None:
        row = len(self._at)
        if row == len(self._table):
            self._table = np.concatenate((self._table, np.zeros(row, STANDING)))
        self._table[row] = self._settle(store_id)
        self._at[store_id] = row

    def _settle(self, store_id: int) -> tuple[Any, ...]:
        store, terms = self._copy.stores.get(store_id), self._copy.policies.resolve(store_id)
        if store is None:
            return policy.RULES["off"], 0.0, 0.0, terms.payload_life_s, 0, 0
        now_ms = self._now_s * 1000
        outside = bool(store.pickup_windows) and hours.in_window(store, now_ms) is None
        return (
            policy.RULES[terms.terminal_location],
            store.radius_m,
            [(0.0, 0.0), *(store.positions[datum] for datum in Datum)],
            terms.payload_life_s,
            0 if hours.is_open(store, now_ms) else RedeemVerdict.STORE_CLOSED.number,
            RedeemVerdict.OUTSIDE_WINDOW.number if outside else 0,
        )
