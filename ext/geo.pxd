"""The arithmetic of distance, inline, for the kernels that decide about positions; used by cimport only.

Everything here takes degrees that the caller has checked (|lat| <= 90, |lon| <= 180), has no branch and calls
no library function, so that a loop around it becomes SIMD code with the baseline instruction set.
"""

from libc.math cimport fabs, fmax, isnan, sqrt
from libc.stdint cimport uint8_t


cdef extern from *:
    """
    /* WGS-84 (NGA.STND.0036_1.0.0, table 3.1): semi-major axis, flattening 1/298.257223563, e^2 = f (2 - f). */
    #define PICKGATE_SEMI_MAJOR_M 6378137.0
    #define PICKGATE_FLATTENING (1.0 / 298.257223563)
    #define PICKGATE_ECCENTRICITY_2 (PICKGATE_FLATTENING * (2.0 - PICKGATE_FLATTENING))
    #define PICKGATE_RAD_PER_DEGREE 0.017453292519943295
    /* Half the equator: no radius is larger. */
    #define PICKGATE_RADIUS_M_MAX 20037508.0
    /* Upper bounds, exclusive and in metres, of the distance buckets 0, 1, 2, ...; the bucket after them is "farther". */
    #define PICKGATE_BUCKETS 9
    static const double pickgate_bucket_bounds_m[PICKGATE_BUCKETS] =
        {50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 50000.0};
    #define PICKGATE_BUCKET_UNKNOWN 255
    """
    const double SEMI_MAJOR_M "PICKGATE_SEMI_MAJOR_M"
    const double ECCENTRICITY_2 "PICKGATE_ECCENTRICITY_2"
    const double RAD_PER_DEGREE "PICKGATE_RAD_PER_DEGREE"
    const double RADIUS_MAX "PICKGATE_RADIUS_M_MAX"
    const int BUCKETS "PICKGATE_BUCKETS"
    const double bucket_bounds_m "pickgate_bucket_bounds_m"[]
    const int BUCKET_UNKNOWN "PICKGATE_BUCKET_UNKNOWN"


cdef inline double sine_squared(double lat1, double lat2) noexcept nogil:
    """The square of the sine of the mid-latitude of two latitudes in degrees.

    Taylor's series of the sine to x^17. On [-90, 90] degrees what it leaves out is below
    (pi/2)^19 / 19! = 4.4e-14, a matter of nanometres in a distance of 100 km.
    """
    cdef double x = (lat1 + lat2) * (0.5 * RAD_PER_DEGREE)
    cdef double y = x * x
    cdef double sine = x * (
        1.0 + y * (-1.0 / 6.0 + y * (1.0 / 120.0 + y * (-1.0 / 5040.0 + y * (1.0 / 362880.0
        + y * (-1.0 / 39916800.0 + y * (1.0 / 6227020800.0 + y * (-1.0 / 1307674368000.0
        + y * (1.0 / 355687428096000.0))))))))
    )
    return sine * sine


cdef inline double lon_difference(double lon1, double lon2) noexcept nogil:
    """Degrees between two longitudes the short way round, 0 to 180: this is where +-180 meet."""
    cdef double difference = fabs(lon1 - lon2)
    cdef double other_way = 360.0 - difference
    return other_way if other_way < difference else difference


cdef inline double curvature(double sine2) noexcept nogil:
    """w = 1 - e^2 sin^2(lat). The radii of curvature are N = a / w^(1/2) and M = a (1 - e^2) / w^(3/2)."""
    return 1.0 - ECCENTRICITY_2 * sine2


cdef inline double scaled_square(
    double lat1, double lon1, double lat2, double lon2, double sine2, double w
) noexcept nogil:
    """(d/a)^2 w^3, where d^2 = (M dlat)^2 + (N cos(lat) dlon)^2 at the mid-latitude.

    Scaled so that neither a division nor a root is left: a radius test compares it with (radius/a)^2 w^3.
    """
    cdef double north = (1.0 - ECCENTRICITY_2) * RAD_PER_DEGREE * (lat1 - lat2)
    cdef double east = RAD_PER_DEGREE * lon_difference(lon1, lon2) * w
    return north * north + (1.0 - sine2) * (east * east)


cdef inline double distance_of(double lat1, double lon1, double lat2, double lon2) noexcept nogil:
    cdef double sine2 = sine_squared(lat1, lat2)
    cdef double w = curvature(sine2)
    # At a pole the squared cosine, a difference, may round to just below zero.
    return SEMI_MAJOR_M * sqrt(fmax(0.0, scaled_square(lat1, lon1, lat2, lon2, sine2, w)) / (w * w * w))


cdef inline double excess(double lat, double lon, double lat0, double lon0, double radius2) noexcept nogil:
    """Above 0 where the points are farther apart than the radius, radius2 = (radius_m / a)^2."""
    cdef double sine2 = sine_squared(lat, lat0)
    cdef double w = curvature(sine2)
    return scaled_square(lat, lon, lat0, lon0, sine2, w) - radius2 * (w * w * w)


cdef inline uint8_t is_position(double lat, double lon) noexcept nogil:
    """Whether both are in range: comparisons with NaN are false. `&`, not `and`: no branch."""
    return (fabs(lat) <= 90.0) & (fabs(lon) <= 180.0)


cdef inline int bucket_of(double distance_m) noexcept nogil:
    """The distance bucket of metres, 0 or more, or BUCKET_UNKNOWN of NaN."""
    cdef int bucket = 0
    if isnan(distance_m):
        return BUCKET_UNKNOWN
    while bucket < BUCKETS and distance_m >= bucket_bounds_m[bucket]:
        bucket += 1
    return bucket
