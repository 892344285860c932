"""The plain twin of ext/geo.pyx: same functions, same answers, written anew with NumPy and nothing shared.

It is the oracle of the tests and what PICKGATE_PURE=1 selects. Formulas, sources, accuracy and the rules for bad
input are documented in ext/geo.pyx; comments here say only where this way of writing them differs.
"""

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from ext.datum import Datum

Column = npt.NDArray[np.float64]

RADIUS_M_MAX: Final[float] = 20_037_508.0
DISTANCE_BUCKET_BOUNDS_M: Final[tuple[float, ...]] = (
    *(50.0, 100.0, 200.0, 500.0),
    *(1_000.0, 2_000.0, 5_000.0, 10_000.0, 50_000.0),
)
DISTANCE_BUCKET_UNKNOWN: Final[int] = 255

# WGS-84: semi-major and semi-minor axis in metres (NGA.STND.0036_1.0.0, tables 3.1 and 3.5).
_A_M = 6_378_137.0
_B_M = 6_356_752.314245179

_GCJ_A_M = 6_378_245.0
_GCJ_E2 = 0.00669342162296594323
_BD_WAVE = math.pi * 3000.0 / 180.0
_BOX_LAT = (0.8293, 55.8271)
_BOX_LON = (72.004, 137.8347)
_EDGE_SLACK = 1e-9
# Of any iteration here: seven steps reach the limit of float64.
_STEPS = 12


def _scalar(name: str, value: float, limit: float) -> float:
    # math.fabs, not abs, and no float(): what is not a number is a TypeError, a string of digits too.
    if not math.fabs(value) <= limit:
        raise ValueError(f"{name} is {value}: degrees from {-limit:g} to {limit:g} expected")
    return float(value)


def _radius(radius_m: float) -> float:
    if not 0.0 <= radius_m <= RADIUS_M_MAX:
        raise ValueError(f"radius_m is {radius_m}: metres from 0 to {RADIUS_M_MAX:g} expected")
    return float(radius_m)


def _columns(values: dict[str, npt.ArrayLike]) -> list[Column]:
    columns: dict[str, Column] = {}
    lengths: dict[str, int] = {}
    for name, value in values.items():
        column = np.asarray(value)
        if column.size and column.dtype.kind not in "fiu":
            raise TypeError(f"{name} has dtype {column.dtype}: real numbers expected")
        if column.ndim > 1:
            raise ValueError(f"{name} has {column.ndim} dimensions: one expected")
        columns[name] = column.astype(np.float64)
        if column.ndim:
            lengths[name] = len(column)
    if len(set(lengths.values())) > 1:
        described = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"arrays of different lengths: {described}")
    shape = (next(iter(lengths.values()), 1),)
    return [np.broadcast_to(column, shape) for column in columns.values()]


def _check_degrees(name: str, column: Column, limit: float) -> None:
    bad = np.flatnonzero(~(np.abs(column) <= limit))
    if bad.size:
        index = int(bad[0])
        raise ValueError(f"{name}[{index}] is {column[index]}: degrees from {-limit:g} to {limit:g} expected")


def _distance(lat1: Column, lon1: Column, lat2: Column, lon2: Column) -> Column:
    # The radii from both axes: N = a^2 / D, M = a^2 b^2 / D^3, D^2 = a^2 cos^2 + b^2 sin^2.
    middle = np.radians((lat1 + lat2) / 2.0)
    d = np.hypot(_A_M * np.cos(middle), _B_M * np.sin(middle))
    prime_vertical = _A_M**2 / d
    meridian = (_A_M * _B_M) ** 2 / d**3
    # Into [-180, 180).
    lon_difference = (lon1 - lon2 + 180.0) % 360.0 - 180.0
    north = meridian * np.radians(lat1 - lat2)
    east = prime_vertical * np.cos(middle) * np.radians(lon_difference)
    return np.hypot(north, east)


def distance_m(lat1: float, lon1: float, lat2: float, lon2: float) -> float:
    """See ext.geo.distance_m."""
    _scalar("lat1", lat1, 90.0)
    _scalar("lon1", lon1, 180.0)
    _scalar("lat2", lat2, 90.0)
    _scalar("lon2", lon2, 180.0)
    return float(distance_batch(lat1, lon1, lat2, lon2)[0])


def distance_batch(
    lat1: npt.ArrayLike, lon1: npt.ArrayLike, lat2: npt.ArrayLike, lon2: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """See ext.geo.distance_batch."""
    names: dict[str, npt.ArrayLike] = {"lat1": lat1, "lon1": lon1, "lat2": lat2, "lon2": lon2}
    columns = _columns(names)
    for name, column in zip(names, columns, strict=True):
        _check_degrees(name, column, 90.0 if name.startswith("lat") else 180.0)
    return _distance(*columns)


def within(lat: float, lon: float, lat0: float, lon0: float, radius_m: float) -> bool:
    """See ext.geo.within."""
    return bool(within_batch(lat, lon, lat0, lon0, radius_m)[0])


def within_batch(
    lat: npt.ArrayLike,
    lon: npt.ArrayLike,
    lat0: npt.ArrayLike,
    lon0: npt.ArrayLike,
    radius_m: npt.ArrayLike,
) -> npt.NDArray[np.bool_]:
    """See ext.geo.within_batch."""
    if np.ndim(lat0) == 0:
        _scalar("lat0", float(np.asarray(lat0)), 90.0)
    if np.ndim(lon0) == 0:
        _scalar("lon0", float(np.asarray(lon0)), 180.0)
    if np.ndim(radius_m) == 0:
        _radius(float(np.asarray(radius_m)))
    names = {"lat": lat, "lon": lon, "lat0": lat0, "lon0": lon0, "radius_m": radius_m}
    lats, lons, centre_lats, centre_lons, radii = _columns(names)
    # A comparison with NaN is false, so only what is known to be good is looked at.
    good = (np.abs(lats) <= 90.0) & (np.abs(centre_lats) <= 90.0)
    good &= (np.abs(lons) <= 180.0) & (np.abs(centre_lons) <= 180.0)
    good &= (radii >= 0.0) & (radii <= RADIUS_M_MAX)
    inside = np.zeros(lats.shape, dtype=np.bool_)
    distances = _distance(lats[good], lons[good], centre_lats[good], centre_lons[good])
    inside[good] = distances <= radii[good]
    return inside


def distance_bucket(distance_m: float) -> int:
    """See ext.geo.distance_bucket."""
    if math.isnan(distance_m):
        return DISTANCE_BUCKET_UNKNOWN
    if distance_m < 0.0:
        raise ValueError(f"distance_m is {distance_m}: metres from 0 up, or NaN, expected")
    return sum(distance_m >= bound for bound in DISTANCE_BUCKET_BOUNDS_M)


def _in_box(lat: Column, lon: Column, margin: float) -> npt.NDArray[np.bool_]:
    in_lat = (lat >= _BOX_LAT[0] - margin) & (lat <= _BOX_LAT[1] + margin)
    in_lon = (lon >= _BOX_LON[0] - margin) & (lon <= _BOX_LON[1] + margin)
    return np.asarray(in_lat & in_lon)


def _waves(degrees: Column, amplitude_of_period: dict[float, float]) -> Column:
    # Amplitudes in metres of sines with these periods in degrees, two thirds of each, as the formula has them.
    total = np.zeros_like(degrees)
    for period, amplitude in amplitude_of_period.items():
        total += amplitude * 2.0 / 3.0 * np.sin(2.0 * math.pi / period * degrees)
    return total


def _shift_to_gcj(lat: Column, lon: Column) -> tuple[Column, Column]:
    x, y = lon - 105.0, lat - 35.0
    fine = _waves(x, {1.0 / 3.0: 20.0, 1.0: 20.0})
    north_m = -100.0 + 2.0 * x + 3.0 * y + 0.2 * y**2 + 0.1 * x * y + 0.2 * np.sqrt(np.abs(x))
    north_m += fine + _waves(y, {2.0: 20.0, 6.0: 40.0, 24.0: 160.0, 60.0: 320.0})
    east_m = 300.0 + x + 2.0 * y + 0.1 * x**2 + 0.1 * x * y + 0.1 * np.sqrt(np.abs(x))
    east_m += fine + _waves(x, {2.0: 20.0, 6.0: 40.0, 24.0: 150.0, 60.0: 300.0})
    sine = np.sin(np.radians(lat))
    prime_vertical = _GCJ_A_M / np.sqrt(1.0 - _GCJ_E2 * sine**2)
    meridian = _GCJ_A_M * (1.0 - _GCJ_E2) / (1.0 - _GCJ_E2 * sine**2) ** 1.5
    parallel = prime_vertical * np.cos(np.radians(lat))
    return np.degrees(north_m / meridian), np.degrees(east_m / parallel)


def _gcj_of_wgs(lat: Column, lon: Column) -> tuple[Column, Column]:
    north, east = _shift_to_gcj(lat, lon)
    return lat + north, lon + east


def _wgs_of_gcj(gcj_lat: Column, gcj_lon: Column) -> tuple[Column, Column]:
    # Solved as w = g - shift(w), where the kernel corrects w by what it misses g.
    lat, lon = gcj_lat, gcj_lon
    for _ in range(_STEPS):
        north, east = _shift_to_gcj(lat, lon)
        lat, lon = gcj_lat - north, gcj_lon - east
    return lat, lon


def _bd_of_gcj(lat: Column, lon: Column) -> tuple[Column, Column]:
    # As a turn and a stretch of one complex number.
    place = lon + 1j * lat
    stretched = np.abs(place) + 0.00002 * np.sin(lat * _BD_WAVE)
    turned = np.angle(place) + 0.000003 * np.cos(lon * _BD_WAVE)
    shifted = stretched * np.exp(1j * turned) + (0.0065 + 0.006j)
    return np.asarray(shifted.imag), np.asarray(shifted.real)


def _gcj_of_bd(bd_lat: Column, bd_lon: Column) -> tuple[Column, Column]:
    offset_lat, offset_lon = bd_lat - 0.006, bd_lon - 0.0065
    lat, lon = offset_lat, offset_lon
    for _ in range(_STEPS):
        # The closed-form inverse, with the ripple taken where the last step has put the place.
        length = np.hypot(offset_lon, offset_lat) - 0.00002 * np.sin(lat * _BD_WAVE)
        angle = np.arctan2(offset_lat, offset_lon) - 0.000003 * np.cos(lon * _BD_WAVE)
        lat, lon = length * np.sin(angle), length * np.cos(angle)
    return lat, lon


def convert(lat: float, lon: float, source: Datum, target: Datum) -> tuple[float, float]:
    """See ext.geo.convert."""
    lats = np.array([_scalar("lat", lat, 90.0)])
    lons = np.array([_scalar("lon", lon, 180.0)])
    converted_lat, converted_lon = convert_batch(lats, lons, source, target)
    return float(converted_lat[0]), float(converted_lon[0])


def convert_batch(
    lat: npt.ArrayLike, lon: npt.ArrayLike, source: Datum, target: Datum
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """See ext.geo.convert_batch."""
    source, target = Datum(source), Datum(target)
    lats, lons = _columns({"lat": lat, "lon": lon})
    _check_degrees("lat", lats, 90.0)
    _check_degrees("lon", lons, 180.0)
    out_lat, out_lon = lats.copy(), lons.copy()
    if source == target:
        return out_lat, out_lon

    # Whatever the source: which of the positions are in China, and where they are there in WGS-84 and GCJ-02.
    china = np.flatnonzero(_in_box(lats, lons, 0.0 if source == Datum.WGS84 else 0.1))
    if source == Datum.WGS84:
        wgs = lats[china], lons[china]
        gcj = _gcj_of_wgs(*wgs)
    else:
        given = lats[china], lons[china]
        gcj = _gcj_of_bd(*given) if source == Datum.BD09 else given
        wgs = _wgs_of_gcj(*gcj)
        found = _in_box(*wgs, _EDGE_SLACK)
        china = china[found]
        gcj = gcj[0][found], gcj[1][found]
        wgs = wgs[0][found].clip(*_BOX_LAT), wgs[1][found].clip(*_BOX_LON)
    wanted = {Datum.WGS84: wgs, Datum.GCJ02: gcj, Datum.BD09: _bd_of_gcj(*gcj)}
    out_lat[china], out_lon[china] = wanted[target]
    return out_lat, out_lon
