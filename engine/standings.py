"""What holds at each store at one moment: looked up once a second and store instead of once a call."""

from __future__ import annotations

from typing import NamedTuple

from engine import hours, policy
from engine.control import Copy
from engine.verdict import RedeemVerdict
from ext.datum import Datum


class Standing(NamedTuple):
    """What a store (or an id that is none) says about a redemption at it."""

    rule: int
    """policy.RULES' number: whether the terminal's position is looked at; "off" for an id that is no store."""
    radius_m: float
    positions: tuple[tuple[float, float], ...]
    """Latitude and longitude in degrees, by datum; entry 0 stands for a datum that was not stated."""
    payload_life_s: int
    closed: int
    """STORE_CLOSED's number, or 0."""
    window: int
    """OUTSIDE_WINDOW's number when the store has pickup windows and this is none, or 0."""


_NOWHERE = ((0.0, 0.0),) * (len(Datum) + 1)


class Standings:
    """The standings of one second under one copy of the set-up.

    Opening hours and pickup windows begin and end on whole seconds (engine.hours), so within one nothing changes.
    """

    __slots__ = ("_by_store", "_copy", "_now_s")

    def __init__(self, copy: Copy, now_s: int) -> None:
        self._copy = copy
        self._now_s = now_s
        self._by_store: dict[int, Standing] = {}

    def hold(self, copy: Copy, now_s: int) -> bool:
        """Whether these are still true."""
        mine = self._copy
        return now_s == self._now_s and copy.stores is mine.stores and copy.policies is mine.policies

    def of(self, store_id: int) -> Standing:
        """What holds at a store."""
        found = self._by_store.get(store_id)
        if found is None:
            found = self._by_store[store_id] = self._settle(store_id)
        return found

    def _settle(self, store_id: int) -> Standing:
        store, terms = self._copy.stores.get(store_id), self._copy.policies.resolve(store_id)
        if store is None:
            return Standing(policy.RULES["off"], 0.0, _NOWHERE, terms.payload_life_s, 0, 0)
        now_ms = self._now_s * 1000
        outside = bool(store.pickup_windows) and hours.in_window(store, now_ms) is None
        return Standing(
            rule=policy.RULES[terms.terminal_location],
            radius_m=float(store.radius_m),
            positions=(_NOWHERE[0], *(store.positions[datum] for datum in Datum)),
            payload_life_s=terms.payload_life_s,
            closed=0 if hours.is_open(store, now_ms) else RedeemVerdict.STORE_CLOSED.number,
            window=RedeemVerdict.OUTSIDE_WINDOW.number if outside else 0,
        )
