# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True, autotestdict=False
"""Distance on the ellipsoid, radius tests, and the datums WGS-84, GCJ-02 and BD-09.

Batch first: arrays in, arrays out, the work done without the GIL. A single pair goes through the same arithmetic.
Latitudes and longitudes are degrees, distances metres. Nothing is kept: positions of people are sensitive data,
and what may be stored afterwards is `distance_bucket`.

**Distance** is taken with the local radii of curvature of the WGS-84 ellipsoid, M along the meridian and N in the
prime vertical, at the mid-latitude of the two points (W. Torge, J. Mueller, *Geodesy*, 4th ed., section 4.1.3):
d^2 = (M dlat)^2 + (N cos(lat) dlon)^2. Below 80 degrees of latitude it is within 0.1 % of the geodesic up to 10 km
and within 0.5 % up to 100 km (tests/ext/test_geo_distance.py measures it). Farther, and nearer to the poles, it is
an estimate that errs on the long side (on the short one by less than 1 %). A sphere of mean radius would err by up
to 0.56 % at any distance.

**Datums.** GCJ-02 was never published. The formula is the one in common use since 2010, public as
*eviltransform*, with the axes of Krasovsky's ellipsoid; BD-09 is Baidu's further shift as it is commonly known.
Neither applies outside China: there GCJ-02 equals WGS-84, and so does BD-09 (Baidu's SDK documentation: "in
overseas regions WGS-84 is used throughout"). "China" here is the box that goes with the formula, edges included:
latitude 0.8293 to 55.8271, longitude 72.004 to 137.8347. It is wider than the country by at least 1.4 degrees.

At the edge of the box the shift begins at once, by some hundred metres, so in a strip narrower than 1 km one GCJ-02
position can stand for two places (one inside and shifted, one outside and not) and in others for none. Back to
WGS-84 the place inside the box is answered if there is one, otherwise the coordinates as they are. So every place
inside comes back to itself; a place outside does too, except in that strip.
"""

import numpy as np

from ext.datum import Datum

from libc.math cimport atan2, cos, fabs, sin, sqrt
from libc.stdint cimport uint8_t

from ext.geo cimport (
    BUCKET_UNKNOWN,
    BUCKETS,
    RAD_PER_DEGREE,
    RADIUS_MAX,
    SEMI_MAJOR_M,
    bucket_bounds_m,
    bucket_of,
    distance_of,
    excess,
    is_position,
)

#: Half the equator of WGS-84, in metres: no radius is larger.
RADIUS_M_MAX = RADIUS_MAX
#: Upper bounds, exclusive and in metres, of the distance buckets 0, 1, 2, ...; the bucket after them is "farther".
DISTANCE_BUCKET_BOUNDS_M = tuple(bucket_bounds_m[k] for k in range(BUCKETS))
#: The bucket of a distance that is not known.
DISTANCE_BUCKET_UNKNOWN = BUCKET_UNKNOWN


cdef extern from *:
    """
    /* The Krasovsky 1940 ellipsoid as the GCJ-02 formula has it: semi-major axis, e^2. */
    #define PICKGATE_GCJ_SEMI_MAJOR_M 6378245.0
    #define PICKGATE_GCJ_ECCENTRICITY_2 0.00669342162296594323
    #define PICKGATE_PI 3.14159265358979323846
    /* BD-09's wave number: pi * 3000 / 180, per degree. */
    #define PICKGATE_BD_WAVE (PICKGATE_PI * 3000.0 / 180.0)
    /* The box of the GCJ-02 formula, in degrees of WGS-84. */
    #define PICKGATE_LAT_MIN 0.8293
    #define PICKGATE_LAT_MAX 55.8271
    #define PICKGATE_LON_MIN 72.004
    #define PICKGATE_LON_MAX 137.8347
    /* More than GCJ-02 shifts anywhere in the box (the tests find 0.011 degrees): farther out, no look is needed. */
    #define PICKGATE_REACH 0.02
    /* 0.1 mm, in degrees: what may be lost in rounding at the edge of the box without the place falling out of it. */
    #define PICKGATE_EDGE_SLACK 1e-9
    /* A step of the iterations that changes nothing anybody could measure (10 um). */
    #define PICKGATE_STEP_ENOUGH 1e-10
    /* Each step gains two digits or more; both iterations are through after at most 7. */
    #define PICKGATE_STEPS_MAX 16
    """
    const double GCJ_SEMI_MAJOR_M "PICKGATE_GCJ_SEMI_MAJOR_M"
    const double GCJ_ECCENTRICITY_2 "PICKGATE_GCJ_ECCENTRICITY_2"
    const double PI "PICKGATE_PI"
    const double BD_WAVE "PICKGATE_BD_WAVE"
    const double BOX_LAT_MIN "PICKGATE_LAT_MIN"
    const double BOX_LAT_MAX "PICKGATE_LAT_MAX"
    const double BOX_LON_MIN "PICKGATE_LON_MIN"
    const double BOX_LON_MAX "PICKGATE_LON_MAX"
    const double REACH "PICKGATE_REACH"
    const double EDGE_SLACK "PICKGATE_EDGE_SLACK"
    const double STEP_ENOUGH "PICKGATE_STEP_ENOUGH"
    const int STEPS_MAX "PICKGATE_STEPS_MAX"


cdef enum:
    # Points in a block of the radius test: its 2 KiB of intermediate results stay in the first-level cache.
    BLOCK = 256

cdef enum:
    # The members of Datum, for code without the GIL; the import below compares them.
    WGS84 = 1
    GCJ02 = 2
    BD09 = 3

if (Datum.WGS84, Datum.GCJ02, Datum.BD09) != (WGS84, GCJ02, BD09):
    raise ImportError("ext.geo was built for another ext.datum.Datum: run `make build`")


# --- what callers pass ---------------------------------------------------------------------------------------


cdef double scalar_of(str name, value, double limit) except? -1.0:
    """`value` as degrees within +-limit, or ValueError."""
    cdef double number = value
    if not fabs(number) <= limit:
        raise ValueError(f"{name} is {number}: degrees from {-limit:g} to {limit:g} expected")
    return number


cdef double radius_of(value) except? -1.0:
    cdef double radius_m = value
    if not 0.0 <= radius_m <= RADIUS_MAX:
        raise ValueError(f"radius_m is {radius_m}: metres from 0 to {RADIUS_M_MAX:g} expected")
    return radius_m


cdef bint is_scalar(value) except -1:
    return isinstance(value, (float, int)) or np.ndim(value) == 0


cdef object column_of(str name, value):
    """`value` as numbers, float64 and one-dimensional (not yet of the common length), or TypeError, ValueError."""
    column = np.asarray(value)
    if column.dtype.kind not in "fiu":
        if column.size:
            raise TypeError(f"{name} has dtype {column.dtype}: real numbers expected")
        column = column.astype(np.float64)
    if column.ndim != 1:
        raise ValueError(f"{name} has {column.ndim} dimensions: one expected")
    return column.astype(np.float64, copy=False)


cdef list columns_of(tuple names, tuple values):
    """All of them as C-contiguous float64 of one length; a scalar is repeated. ValueError if lengths differ."""
    cdef list columns = [
        None if is_scalar(value) else column_of(name, value) for name, value in zip(names, values, strict=True)
    ]
    lengths = {len(column) for column in columns if column is not None}
    if len(lengths) > 1:
        described = ", ".join(
            f"{name} {len(column)}" for name, column in zip(names, columns, strict=True) if column is not None
        )
        raise ValueError(f"arrays of different lengths: {described}")
    length = lengths.pop() if lengths else 1
    return [
        np.full(length, <double>value) if column is None else np.ascontiguousarray(column)
        for column, value in zip(columns, values, strict=True)
    ]


cdef int check_degrees(str name, const double[::1] column, double limit) except -1:
    """ValueError, naming the first of them, if a value is not within +-limit (NaN never is)."""
    cdef Py_ssize_t i
    cdef Py_ssize_t n = column.shape[0]
    cdef int good = 1
    with nogil:
        for i in range(n):
            good &= fabs(column[i]) <= limit
    if not good:
        for i in range(n):
            if not fabs(column[i]) <= limit:
                raise ValueError(
                    f"{name}[{i}] is {column[i]}: degrees from {-limit:g} to {limit:g} expected"
                )
    return 0


# --- distance ------------------------------------------------------------------------------------------------


cdef void within_one(
    const double* lat, const double* lon, Py_ssize_t n, double lat0, double lon0, double radius2, uint8_t* out
) noexcept nogil:
    """n points against one centre. In blocks: compilers make SIMD code of a loop that stays in float64, and none
    of one that goes from float64 to bytes."""
    cdef double farther[BLOCK]
    cdef Py_ssize_t start = 0
    cdef Py_ssize_t i, size
    while start < n:
        size = min(<Py_ssize_t>BLOCK, n - start)
        for i in range(size):
            farther[i] = excess(lat[start + i], lon[start + i], lat0, lon0, radius2)
        for i in range(size):
            out[start + i] = (farther[i] <= 0.0) & is_position(lat[start + i], lon[start + i])
        start += size


def distance_m(double lat1, double lon1, double lat2, double lon2):
    """The distance of two points.

    :param lat1, lon1, lat2, lon2: degrees, |lat| <= 90, |lon| <= 180, both points in the same datum.
    :return: metres (accuracy: see the module).
    :raises ValueError: a coordinate is NaN, infinite or out of range; the message names it.
    """
    scalar_of("lat1", lat1, 90.0)
    scalar_of("lon1", lon1, 180.0)
    scalar_of("lat2", lat2, 90.0)
    scalar_of("lon2", lon2, 180.0)
    return distance_of(lat1, lon1, lat2, lon2)


def distance_batch(lat1, lon1, lat2, lon2):
    """The distances of n pairs of points, or of n points from one.

    :param lat1, lon1, lat2, lon2: degrees; each a number or an array of shape (n,), real dtype, read only. Numbers
        stand for n equal values; all arrays have the same n (0 is allowed). Only numbers: n is 1.
    :return: float64, shape (n,), metres; always a new array.
    :raises ValueError: a coordinate is NaN, infinite or out of range (the message names it and the index of the
        first), an array is not one-dimensional, or lengths differ.
    :raises TypeError: something is not a real number.
    """
    columns = columns_of(("lat1", "lon1", "lat2", "lon2"), (lat1, lon1, lat2, lon2))
    cdef const double[::1] lat1_column = columns[0]
    cdef const double[::1] lon1_column = columns[1]
    cdef const double[::1] lat2_column = columns[2]
    cdef const double[::1] lon2_column = columns[3]
    check_degrees("lat1", lat1_column, 90.0)
    check_degrees("lon1", lon1_column, 180.0)
    check_degrees("lat2", lat2_column, 90.0)
    check_degrees("lon2", lon2_column, 180.0)
    distances = np.empty(lat1_column.shape[0], dtype=np.float64)
    cdef double[::1] out = distances
    cdef Py_ssize_t i
    with nogil:
        for i in range(out.shape[0]):
            out[i] = distance_of(lat1_column[i], lon1_column[i], lat2_column[i], lon2_column[i])
    return distances


def within(double lat, double lon, double lat0, double lon0, double radius_m):
    """Whether a point lies within a radius of a centre; the single form of `within_batch`, with its rules."""
    scalar_of("lat0", lat0, 90.0)
    scalar_of("lon0", lon0, 180.0)
    cdef double radius = radius_of(radius_m) / SEMI_MAJOR_M
    cdef uint8_t inside
    within_one(&lat, &lon, 1, lat0, lon0, radius * radius, &inside)
    return bool(inside)


def within_batch(lat, lon, lat0, lon0, radius_m):
    """Whether each of n points lies within a radius of a centre, edge included: `distance_batch` <= radius.

    Needs no trigonometric function and no root. All positions are in the same datum.

    :param lat, lon: the points, degrees; arrays of shape (n,), real dtype, read only.
    :param lat0, lon0: the centre, degrees; numbers, or arrays of shape (n,) for a centre to each point.
    :param radius_m: metres, 0 to RADIUS_M_MAX; a number, or an array of shape (n,).
    :return: bool, shape (n,); always a new array. Whatever an array holds that is not a position or not a radius
        (NaN, infinite, out of range) makes its item False and never raises: one bad item must not fail a batch.
    :raises ValueError: lat0, lon0 or radius_m is one number for all and is not a position or a radius; an array is
        not one-dimensional; lengths differ.
    :raises TypeError: something is not a real number.
    """
    cdef const double[::1] lats, lons, centre_lats, centre_lons, radii
    cdef double centre_lat, centre_lon, limit
    cdef Py_ssize_t i, n
    cdef uint8_t[::1] out
    if is_scalar(lat0):
        scalar_of("lat0", lat0, 90.0)
    if is_scalar(lon0):
        scalar_of("lon0", lon0, 180.0)
    if is_scalar(radius_m):
        radius_of(radius_m)
    if is_scalar(lat0) and is_scalar(lon0) and is_scalar(radius_m):
        lats, lons = columns_of(("lat", "lon"), (lat, lon))
        n = lats.shape[0]
        inside = np.empty(n, dtype=np.bool_)
        out = inside.view(np.uint8)
        centre_lat = lat0
        centre_lon = lon0
        limit = radius_m / SEMI_MAJOR_M
        limit *= limit
        if n:
            with nogil:
                within_one(&lats[0], &lons[0], n, centre_lat, centre_lon, limit, &out[0])
        return inside
    lats, lons, centre_lats, centre_lons, radii = columns_of(
        ("lat", "lon", "lat0", "lon0", "radius_m"), (lat, lon, lat0, lon0, radius_m)
    )
    n = lats.shape[0]
    inside = np.empty(n, dtype=np.bool_)
    out = inside.view(np.uint8)
    with nogil:
        for i in range(n):
            limit = radii[i] / SEMI_MAJOR_M
            out[i] = (
                (excess(lats[i], lons[i], centre_lats[i], centre_lons[i], limit * limit) <= 0.0)
                & is_position(lats[i], lons[i])
                & is_position(centre_lats[i], centre_lons[i])
                & (radii[i] >= 0.0)
                & (radii[i] <= RADIUS_MAX)
            )
    return inside


def distance_bucket(double distance_m):
    """The coarse class of a distance, fit to be stored where the distance or the position is not.

    :param distance_m: metres, >= 0; NaN for a distance that is not known.
    :return: the index of the first of DISTANCE_BUCKET_BOUNDS_M that is larger (0: < 50 m, 1: < 100 m, 2: < 200 m,
        3: < 500 m, 4: < 1 km, 5: < 2 km, 6: < 5 km, 7: < 10 km, 8: < 50 km), 9 for farther,
        DISTANCE_BUCKET_UNKNOWN (255) for NaN. One byte.
    :raises ValueError: the distance is negative.
    """
    if distance_m < 0.0:
        raise ValueError(f"distance_m is {distance_m}: metres from 0 up, or NaN, expected")
    return bucket_of(distance_m)


# --- datums --------------------------------------------------------------------------------------------------


cdef inline bint in_box(double lat, double lon, double margin) noexcept nogil:
    return (
        BOX_LAT_MIN - margin <= lat <= BOX_LAT_MAX + margin
        and BOX_LON_MIN - margin <= lon <= BOX_LON_MAX + margin
    )


cdef inline double clamped(double value, double low, double high) noexcept nogil:
    if value < low:
        return low
    return high if value > high else value


cdef void gcj_of(double lat, double lon, double* gcj_lat, double* gcj_lon) noexcept nogil:
    """The GCJ-02 formula, applied whether or not the point is in the box."""
    cdef double x = lon - 105.0
    cdef double y = lat - 35.0
    cdef double phi = lat * (PI / 180.0)
    cdef double w = 1.0 - GCJ_ECCENTRICITY_2 * sin(phi) * sin(phi)
    cdef double ripple = 20.0 * sin(6.0 * PI * x) + 20.0 * sin(2.0 * PI * x)
    cdef double root = sqrt(fabs(x))
    cdef double north_m = (
        -100.0 + 2.0 * x + 3.0 * y + 0.2 * y * y + 0.1 * x * y + 0.2 * root
        + (ripple + 20.0 * sin(PI * y) + 40.0 * sin(PI / 3.0 * y)
           + 160.0 * sin(PI / 12.0 * y) + 320.0 * sin(PI / 30.0 * y)) * (2.0 / 3.0)
    )
    cdef double east_m = (
        300.0 + x + 2.0 * y + 0.1 * x * x + 0.1 * x * y + 0.1 * root
        + (ripple + 20.0 * sin(PI * x) + 40.0 * sin(PI / 3.0 * x)
           + 150.0 * sin(PI / 12.0 * x) + 300.0 * sin(PI / 30.0 * x)) * (2.0 / 3.0)
    )
    # Metres to degrees by the radii of curvature of Krasovsky's ellipsoid, M northwards and N eastwards.
    gcj_lat[0] = lat + north_m * (180.0 / PI) * (w * sqrt(w)) / (GCJ_SEMI_MAJOR_M * (1.0 - GCJ_ECCENTRICITY_2))
    gcj_lon[0] = lon + east_m * (180.0 / PI) * sqrt(w) / (GCJ_SEMI_MAJOR_M * cos(phi))


cdef bint wgs_of_gcj(double gcj_lat, double gcj_lon, double* lat, double* lon) noexcept nogil:
    """The place in the box that GCJ-02 shifts to these coordinates; False, and nothing written, if there is none.

    Fixed-point iteration: the shift varies by less than 1 % of the step, so each one gains two digits.
    """
    cdef double wgs_lat = gcj_lat
    cdef double wgs_lon = gcj_lon
    cdef double there_lat, there_lon
    cdef int step
    if not in_box(gcj_lat, gcj_lon, REACH):
        return False
    for step in range(STEPS_MAX):
        gcj_of(wgs_lat, wgs_lon, &there_lat, &there_lon)
        wgs_lat += gcj_lat - there_lat
        wgs_lon += gcj_lon - there_lon
        if fabs(gcj_lat - there_lat) < STEP_ENOUGH and fabs(gcj_lon - there_lon) < STEP_ENOUGH:
            break
    if not in_box(wgs_lat, wgs_lon, EDGE_SLACK):
        return False
    # A place on the edge must stay on it: one ulp outside, converting it once more would not shift it.
    lat[0] = clamped(wgs_lat, BOX_LAT_MIN, BOX_LAT_MAX)
    lon[0] = clamped(wgs_lon, BOX_LON_MIN, BOX_LON_MAX)
    return True


cdef void bd_of_gcj(double gcj_lat, double gcj_lon, double* bd_lat, double* bd_lon) noexcept nogil:
    """The BD-09 formula: a ripple of length and angle in the plane of degrees, and an offset."""
    cdef double length = sqrt(gcj_lon * gcj_lon + gcj_lat * gcj_lat) + 0.00002 * sin(gcj_lat * BD_WAVE)
    cdef double angle = atan2(gcj_lat, gcj_lon) + 0.000003 * cos(gcj_lon * BD_WAVE)
    bd_lat[0] = length * sin(angle) + 0.006
    bd_lon[0] = length * cos(angle) + 0.0065


cdef void gcj_of_bd(double bd_lat, double bd_lon, double* gcj_lat, double* gcj_lon) noexcept nogil:
    """The inverse of the BD-09 formula.

    The inverse in common use takes the ripple at the wrong place and errs by up to about a metre. Here that is
    the idea of the first step, and the iteration goes on: the ripple varies by 2 % of the step.
    """
    cdef double lat = bd_lat - 0.006
    cdef double lon = bd_lon - 0.0065
    cdef double there_lat, there_lon
    cdef int step
    for step in range(STEPS_MAX):
        bd_of_gcj(lat, lon, &there_lat, &there_lon)
        lat += bd_lat - there_lat
        lon += bd_lon - there_lon
        if fabs(bd_lat - there_lat) < STEP_ENOUGH and fabs(bd_lon - there_lon) < STEP_ENOUGH:
            break
    gcj_lat[0] = lat
    gcj_lon[0] = lon


cdef void convert_one(
    double lat, double lon, int source, int target, double* out_lat, double* out_lon
) noexcept nogil:
    cdef double gcj_lat = lat
    cdef double gcj_lon = lon
    cdef double wgs_lat = lat
    cdef double wgs_lon = lon
    cdef bint in_china
    if source == WGS84:
        in_china = in_box(lat, lon, 0.0)
        if in_china:
            gcj_of(lat, lon, &gcj_lat, &gcj_lon)
    else:
        # Far outside the box BD-09 is not undone: it never applied there.
        if source == BD09 and in_box(lat, lon, 2.0 * REACH):
            gcj_of_bd(lat, lon, &gcj_lat, &gcj_lon)
        in_china = wgs_of_gcj(gcj_lat, gcj_lon, &wgs_lat, &wgs_lon)
    if source == target or not in_china:
        out_lat[0] = lat
        out_lon[0] = lon
    elif target == WGS84:
        out_lat[0] = wgs_lat
        out_lon[0] = wgs_lon
    elif target == GCJ02:
        out_lat[0] = gcj_lat
        out_lon[0] = gcj_lon
    else:
        bd_of_gcj(gcj_lat, gcj_lon, out_lat, out_lon)


def convert(double lat, double lon, source, target):
    """A position in another datum.

    :param lat, lon: degrees, |lat| <= 90, |lon| <= 180, in the datum `source`.
    :param source, target: a `Datum` each.
    :return: (lat, lon), degrees, in the datum `target`. Outside China they are the same in all three; there and
        back is exact to less than a millimetre (the module says what happens at the edge of the box).
    :raises ValueError: a coordinate is NaN, infinite or out of range (the message names it); a datum is unknown.
    """
    cdef int source_datum = Datum(source)
    cdef int target_datum = Datum(target)
    cdef double out_lat, out_lon
    scalar_of("lat", lat, 90.0)
    scalar_of("lon", lon, 180.0)
    convert_one(lat, lon, source_datum, target_datum, &out_lat, &out_lon)
    return out_lat, out_lon


def convert_batch(lat, lon, source, target):
    """n positions in another datum; the batch form of `convert`, with its rules.

    :param lat, lon: degrees; arrays of shape (n,), real dtype, read only.
    :param source, target: a `Datum` each, for all positions.
    :return: (lat, lon), float64, shape (n,) each; always new arrays.
    :raises ValueError: as `convert`, with the index of the first bad value; an array is not one-dimensional;
        lengths differ.
    :raises TypeError: something is not a real number.
    """
    cdef int source_datum = Datum(source)
    cdef int target_datum = Datum(target)
    columns = columns_of(("lat", "lon"), (lat, lon))
    cdef const double[::1] lats = columns[0]
    cdef const double[::1] lons = columns[1]
    check_degrees("lat", lats, 90.0)
    check_degrees("lon", lons, 180.0)
    converted_lat = np.empty(lats.shape[0], dtype=np.float64)
    converted_lon = np.empty(lats.shape[0], dtype=np.float64)
    cdef double[::1] out_lat = converted_lat
    cdef double[::1] out_lon = converted_lon
    cdef Py_ssize_t i
    with nogil:
        for i in range(lats.shape[0]):
            convert_one(lats[i], lons[i], source_datum, target_datum, &out_lat[i], &out_lon[i])
    return converted_lat, converted_lon
