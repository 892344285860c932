"""Types of ext/geo.pyx; what the functions do is documented there."""

from typing import Final

import numpy as np
import numpy.typing as npt

from ext.datum import Datum

RADIUS_M_MAX: Final[float]
DISTANCE_BUCKET_BOUNDS_M: Final[tuple[float, ...]]
DISTANCE_BUCKET_UNKNOWN: Final[int]

def distance_m(lat1: float, lon1: float, lat2: float, lon2: float) -> float: ...
def distance_batch(
    lat1: npt.ArrayLike, lon1: npt.ArrayLike, lat2: npt.ArrayLike, lon2: npt.ArrayLike
) -> npt.NDArray[np.float64]: ...
def within(lat: float, lon: float, lat0: float, lon0: float, radius_m: float) -> bool: ...
def within_batch(
    lat: npt.ArrayLike,
    lon: npt.ArrayLike,
    lat0: npt.ArrayLike,
    lon0: npt.ArrayLike,
    radius_m: npt.ArrayLike,
) -> npt.NDArray[np.bool_]: ...
def distance_bucket(distance_m: float) -> int: ...
def convert(lat: float, lon: float, source: Datum, target: Datum) -> tuple[float, float]: ...
def convert_batch(
    lat: npt.ArrayLike, lon: npt.ArrayLike, source: Datum, target: Datum
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]: ...
