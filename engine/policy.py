"""The rules that need no state: pure checks over arguments, `now` among them.

What they find travels into the redeem script and applies only if nothing before it answers (docs/rules.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from engine import limits
from engine.claims import Position, Version
from engine.policies import LocationRule
from engine.stores import Store
from engine.verdict import RedeemVerdict
from ext.place import DISTANCE_BUCKET_BOUNDS_M, DISTANCE_BUCKET_UNKNOWN, distance_batch, within_batch

UNKNOWN_DISTANCE: Final = DISTANCE_BUCKET_UNKNOWN
_BUCKET_BOUNDS_M: Final = np.array(DISTANCE_BUCKET_BOUNDS_M, np.float64)
_STATIC: Final = int(Version.STATIC)
"""A number: NumPy compares with a member of an enum ten times as slowly."""


def is_stale(stamp_s: int, expires_at_s: int, now_s: int, *, life_s: int, static: bool) -> bool:
    """True when a payload is no longer (or not yet) to be taken.

    A static payload carries no stamp and lives until its expiry. Any other is taken from STAMP_SKEW_S before its stamp to
    `life_s` + STAMP_SKEW_S after it. The payload's own expiry counts too: the record's may have been moved, and then a fresh
    payload says so.
    """
    version = Version.STATIC if static else Version.DYNAMIC
    [stale] = are_stale(
        np.array([stamp_s], np.int64),
        np.array([expires_at_s], np.int64),
        np.array([version], np.uint8),
        now_s,
        np.array([life_s], np.int64),
    ).tolist()
    return bool(stale)


def are_stale(
    stamps_s: npt.NDArray[np.integer[Any]],
    expiries_s: npt.NDArray[np.integer[Any]],
    versions: npt.NDArray[np.uint8],
    now_s: int,
    lives_s: npt.NDArray[np.int64],
) -> npt.NDArray[np.bool_]:
    """For each payload as `is_stale`, column by column."""
    stamps_s, lives_s = stamps_s.astype(np.int64), lives_s + limits.STAMP_SKEW_S
    fresh = (stamps_s - limits.STAMP_SKEW_S <= now_s) & (now_s <= stamps_s + lives_s)
    stale: npt.NDArray[np.bool_] = (expiries_s <= now_s) | ~((versions == _STATIC) | fresh)
    return stale


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


_OUT_OF_RANGE: Final = RedeemVerdict.OUT_OF_RANGE.number
RULES: Final[Mapping[LocationRule, int]] = {"off": 0, "optional": 1, "required": 2}


def judge_columns(places: Places) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """For each caller the number of the RedeemVerdict that its position finds against it (0: none), and its distance bucket.

    Passes when distance ≤ radius + min(accuracy, 100 m), compared in the caller's datum.
    """
    looked = (places.rules != RULES["off"]) & places.stated
    unreliable = looked & (places.accuracy_m > limits.ACCURACY_M_MAX)
    missing = (places.rules == RULES["required"]) & ~places.stated
    measured = looked & ~unreliable
    findings = np.zeros(len(looked), np.uint8)
    if measured.all():
        # Most batches: nothing is to be picked out.
        inside, distance_m = _measure(places)
        findings[~inside] = _OUT_OF_RANGE
        return findings, _buckets(distance_m)
    buckets = np.full(len(findings), UNKNOWN_DISTANCE, np.uint8)
    findings[missing] = RedeemVerdict.LOCATION_REQUIRED.number
    findings[unreliable] = RedeemVerdict.LOCATION_UNRELIABLE.number
    if measured.any():
        inside, distance_m = _measure(Places(*(column[measured] for column in places)))
        findings[measured] = np.where(inside, 0, _OUT_OF_RANGE)
        buckets[measured] = _buckets(distance_m)
    return findings, buckets


def _measure(places: Places) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Who is inside, and the distances in metres."""
    columns = (
        places.latitude_deg,
        places.longitude_deg,
        places.store_latitude_deg,
        places.store_longitude_deg,
    )
    allowance_m = np.minimum(places.accuracy_m, limits.ACCURACY_ALLOWANCE_M_MAX)
    return within_batch(*columns, places.radius_m + allowance_m), distance_batch(*columns)


def _buckets(distance_m: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """`distance_bucket` of each distance."""
    buckets = np.searchsorted(_BUCKET_BOUNDS_M, distance_m, side="right").astype(np.uint8)
    buckets[np.isnan(distance_m)] = UNKNOWN_DISTANCE
    return buckets


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
