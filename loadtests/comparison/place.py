"""How far a terminal is from its store, and what that means."""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Final

from pickgate.v1 import redemption_service_pb2 as pb
from pickgate.v1 import store_service_pb2 as store_pb
from pickgate.v1 import types_pb2 as types_pb

EARTH_M: Final = 6_371_008.8
ACCURACY_M_MAX: Final = 200.0
ACCURACY_ALLOWANCE_M_MAX: Final = 100.0
BUCKETS_M: Final = (50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 50_000)
NO_BUCKET: Final = -1


def look(store: store_pb.Store, request: pb.RedeemRequest | pb.InspectRequest) -> tuple[int, int]:
    """The verdict that a position has against it (0: none), and its bucket.

    Raises ValueError for a position in another datum than the store's, which this service does not convert.
    """
    rule = store.terminal_location or store_pb.TERMINAL_LOCATION_REQUIRED
    if rule == store_pb.TERMINAL_LOCATION_OFF:
        return 0, NO_BUCKET
    if not request.HasField("position"):
        required = rule != store_pb.TERMINAL_LOCATION_OPTIONAL
        return (pb.REDEEM_VERDICT_LOCATION_REQUIRED if required else 0), NO_BUCKET
    position = request.position
    if position.datum != store.datum:
        raise ValueError(f"the store's datum is {types_pb.Datum.Name(store.datum)}; state the position in it")
    if position.accuracy_m > ACCURACY_M_MAX:
        return pb.REDEEM_VERDICT_LOCATION_UNRELIABLE, NO_BUCKET
    distance_m = haversine_m(
        store.latitude_deg, store.longitude_deg, position.latitude_deg, position.longitude_deg
    )
    bucket = bisect_left(BUCKETS_M, distance_m)
    allowed_m = (store.radius_m or 500) + min(position.accuracy_m, ACCURACY_ALLOWANCE_M_MAX)
    return (0 if distance_m <= allowed_m else pb.REDEEM_VERDICT_OUT_OF_RANGE), bucket


def haversine_m(lat1_deg: float, lon1_deg: float, lat2_deg: float, lon2_deg: float) -> float:
    """Great-circle distance on the mean sphere."""
    lat1, lon1, lat2, lon2 = map(math.radians, (lat1_deg, lon1_deg, lat2_deg, lon2_deg))
    half = math.sin((lat2 - lat1) / 2) ** 2
    half += math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    return 2 * EARTH_M * math.asin(min(1.0, math.sqrt(half)))
