"""The rules that need no state: pure checks over arguments, `now` among them.

What they find travels into the redeem script and applies only if nothing before it answers (docs/rules.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from engine import limits
from engine.claims import Position
from engine.policies import LocationRule
from engine.stores import Store
from engine.verdict import RedeemVerdict
from ext.place import DISTANCE_BUCKET_UNKNOWN, distance_batch, distance_bucket, within_batch

UNKNOWN_DISTANCE: Final = DISTANCE_BUCKET_UNKNOWN


def is_stale(stamp_s: int, expires_at_s: int, now_s: int, *, life_s: int, static: bool) -> bool:
    """True when a payload is no longer (or not yet) to be taken.

    A static payload carries no stamp and lives until its expiry. Any other is taken from STAMP_SKEW_S before its stamp to
    `life_s` + STAMP_SKEW_S after it. The payload's own expiry counts too: the record's may have been moved, and then a fresh
    payload says so.
    """
    if expires_at_s <= now_s:
        return True
    if static:
        return False
    return not stamp_s - limits.STAMP_SKEW_S <= now_s <= stamp_s + life_s + limits.STAMP_SKEW_S


def judge_places(
    stores: Sequence[Store | None], positions: Sequence[Position | None], rules: Sequence[LocationRule]
) -> list[tuple[RedeemVerdict | None, int]]:
    """For each caller, what its position says against it (None: nothing), and the distance bucket that may be kept.

    Passes when distance ≤ radius + min(accuracy, 100 m), compared in the caller's datum. `stores[i]` is the store that the
    caller should be at; None (unknown) finds nothing here. `rules[i]` says whether the position is looked at.
    """
    findings: list[tuple[RedeemVerdict | None, int]] = [(None, UNKNOWN_DISTANCE)] * len(stores)
    measured: list[int] = []
    for n, (store, position, rule) in enumerate(zip(stores, positions, rules, strict=True)):
        if store is None or rule == "off":
            continue
        if position is None:
            if rule == "required":
                findings[n] = (RedeemVerdict.LOCATION_REQUIRED, UNKNOWN_DISTANCE)
        elif position.accuracy_m > limits.ACCURACY_M_MAX:
            findings[n] = (RedeemVerdict.LOCATION_UNRELIABLE, UNKNOWN_DISTANCE)
        else:
            measured.append(n)
    if not measured:
        return findings
    rows = np.empty((5, len(measured)))
    for column, n in enumerate(measured):
        at, store = positions[n], stores[n]
        assert at is not None
        assert store is not None
        latitude_deg, longitude_deg = store.positions[at.datum]
        allowance_m = min(at.accuracy_m, limits.ACCURACY_ALLOWANCE_M_MAX)
        rows[:, column] = (
            at.latitude_deg,
            at.longitude_deg,
            latitude_deg,
            longitude_deg,
            store.radius_m + allowance_m,
        )
    inside = within_batch(*rows)
    distances_m = distance_batch(*rows[:4])
    for column, n in enumerate(measured):
        bucket = distance_bucket(float(distances_m[column]))
        findings[n] = (None if inside[column] else RedeemVerdict.OUT_OF_RANGE, bucket)
    return findings
