"""The rules that need no state: pure checks over arguments.

For positions as values. Of attempts, a batch at a time, a kernel judges by the same rules, and how long a payload is taken
(ext.rows.Judge). What is found travels into the redeem script and applies only if nothing before it answers (docs/rules.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from engine import limits
from engine.claims import Position
from engine.policies import LocationRule
from engine.stores import Store
from engine.verdict import RedeemVerdict
from ext.place import DISTANCE_BUCKET_UNKNOWN, distance_batch, distance_bucket, within_batch

UNKNOWN_DISTANCE: Final = DISTANCE_BUCKET_UNKNOWN


class Places(NamedTuple):
    """Where callers are and where they should be: columns of one length.

    latitude_deg, longitude_deg, accuracy_m: float64, as stated; where nothing is stated they say nothing. stated: bool.
    store_latitude_deg, store_longitude_deg: float64, the store in the caller's datum. radius_m: float64. rules: uint8, RULES'
    numbers; "off" for a store that nobody knows.
    """

    stated: npt.NDArray[np.bool_]
    latitude_deg: npt.NDArray[np.float64]
    longitude_deg: npt.NDArray[np.float64]
    accuracy_m: npt.NDArray[np.float64]
    store_latitude_deg: npt.NDArray[np.float64]
    store_longitude_deg: npt.NDArray[np.float64]
    radius_m: npt.NDArray[np.float64]
    rules: npt.NDArray[np.uint8]


RULES: Final[Mapping[LocationRule, int]] = {"off": 0, "optional": 1, "required": 2}


def judge_columns(places: Places) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """For each caller the number of the RedeemVerdict that its position finds against it (0: none), and its distance bucket.

    Passes when distance ≤ radius + min(accuracy, 100 m), compared in the caller's datum.
    """
    looked = places.rules != RULES["off"]
    findings = np.where(
        (places.rules == RULES["required"]) & ~places.stated, RedeemVerdict.LOCATION_REQUIRED.number, 0
    ).astype(np.uint8)
    unreliable = looked & places.stated & (places.accuracy_m > limits.ACCURACY_M_MAX)
    findings[unreliable] = RedeemVerdict.LOCATION_UNRELIABLE.number
    buckets = np.full(len(findings), UNKNOWN_DISTANCE, np.uint8)
    measured = np.flatnonzero(looked & places.stated & ~unreliable)
    if not len(measured):
        return findings, buckets
    at = places.latitude_deg[measured], places.longitude_deg[measured]
    store = places.store_latitude_deg[measured], places.store_longitude_deg[measured]
    allowance_m = np.minimum(places.accuracy_m[measured], limits.ACCURACY_ALLOWANCE_M_MAX)
    inside = within_batch(*at, *store, places.radius_m[measured] + allowance_m)
    findings[measured[~inside]] = RedeemVerdict.OUT_OF_RANGE.number
    buckets[measured] = [distance_bucket(metres) for metres in distance_batch(*at, *store).tolist()]
    return findings, buckets


def judge_places(
    stores: Sequence[Store | None], positions: Sequence[Position | None], rules: Sequence[LocationRule]
) -> list[tuple[RedeemVerdict | None, int]]:
    """As `judge_columns`, for positions and stores as values: what is found against each, and the distance bucket.

    `stores[i]` is the store that the caller should be at; None (unknown) finds nothing here. `rules[i]` says whether the
    position is looked at.
    """
    rows = []
    for store, at, rule in zip(stores, positions, rules, strict=True):
        place = store.positions[at.datum] if store and at else (0.0, 0.0)
        radius_m = store.radius_m if store else 0
        stated = (at.latitude_deg, at.longitude_deg, at.accuracy_m) if at else (0.0, 0.0, 0.0)
        rows.append((at is not None, *stated, *place, radius_m, RULES[rule if store else "off"]))
    table = np.array(rows, np.float64).reshape(len(rows), len(Places._fields)).T
    findings, buckets = judge_columns(
        Places(
            table[0] != 0,
            table[1],
            table[2],
            table[3],
            table[4],
            table[5],
            table[6],
            table[7].astype(np.uint8),
        )
    )
    return [
        (RedeemVerdict.numbered(finding) if finding else None, bucket)
        for finding, bucket in zip(findings.tolist(), buckets.tolist(), strict=True)
    ]
