# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""Rows of bytes out of columns. See rows.pyi."""

cimport cython

import numpy as np

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.math cimport fmin
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ext.claims import CLAIMS as _CLAIMS
from ext.standing import STANDING as _STANDING

from ext.geo cimport BUCKET_UNKNOWN, RADIUS_MAX, SEMI_MAJOR_M, bucket_of, distance_of, excess, is_position

from ext.libcrypto cimport (
    EVP_DigestFinal_ex,
    EVP_DigestInit_ex2,
    EVP_DigestUpdate,
    EVP_MD,
    EVP_MD_CTX,
    EVP_MD_CTX_free,
    EVP_MD_CTX_new,
    EVP_MD_fetch,
)
from ext.seal cimport Claims

cdef enum:
    _DIGEST_SIZE = 32
    _DECIMAL_MAX = 10

cdef EVP_MD *_sha256 = EVP_MD_fetch(NULL, b"SHA2-256", NULL)
if _sha256 is NULL:
    raise ImportError("this libcrypto lacks SHA-256; OpenSSL 3.0 or newer is needed")


cdef Py_ssize_t check_spans(Py_ssize_t size, const int64_t[::1] starts, const int64_t[::1] ends) except -1:
    """How many spans there are; every one of them lies in a buffer of that size."""
    cdef Py_ssize_t i
    if starts.shape[0] != ends.shape[0]:
        raise ValueError(f"{starts.shape[0]} starts and {ends.shape[0]} ends of spans; expected as many of both")
    for i in range(starts.shape[0]):
        if starts[i] < 0 or ends[i] < starts[i] or ends[i] > size:
            raise ValueError(f"span {i} is {starts[i]} to {ends[i]}; expected a piece of {size} bytes")
    return starts.shape[0]


def gather(bytes buffer not None, const int64_t[::1] starts not None, const int64_t[::1] ends not None):
    cdef Py_ssize_t count = check_spans(PyBytes_GET_SIZE(buffer), starts, ends)
    offsets = np.empty(count + 1, np.uint64)
    cdef uint64_t[::1] at = offsets
    cdef uint64_t total = 0
    cdef Py_ssize_t i
    for i in range(count):
        at[i] = total
        total += <uint64_t> (ends[i] - starts[i])
    at[count] = total
    cdef bytes out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> total)
    cdef char *into = PyBytes_AS_STRING(out)
    cdef const char *source = PyBytes_AS_STRING(buffer)
    with nogil:
        for i in range(count):
            memcpy(into + at[i], source + starts[i], <size_t> (ends[i] - starts[i]))
    return out, offsets


def slices(bytes buffer not None, const int64_t[::1] starts not None, const int64_t[::1] ends not None):
    cdef Py_ssize_t count = check_spans(PyBytes_GET_SIZE(buffer), starts, ends)
    cdef const char *source = PyBytes_AS_STRING(buffer)
    cdef Py_ssize_t i
    return [
        PyBytes_FromStringAndSize(source + starts[i], <Py_ssize_t> (ends[i] - starts[i])) for i in range(count)
    ]


def join_rows(bytes rows not None, Py_ssize_t width, bytes buffer not None, const int64_t[::1] starts not None,
              const int64_t[::1] ends not None):
    cdef Py_ssize_t count = check_spans(PyBytes_GET_SIZE(buffer), starts, ends)
    if width < 0 or PyBytes_GET_SIZE(rows) != count * width:
        raise ValueError(f"{PyBytes_GET_SIZE(rows)} bytes of rows; expected {count} of {width} bytes")
    cdef const char *source = PyBytes_AS_STRING(buffer)
    cdef const char *row = PyBytes_AS_STRING(rows)
    cdef list joined = []
    cdef bytes one
    cdef Py_ssize_t i, size
    for i in range(count):
        size = <Py_ssize_t> (ends[i] - starts[i])
        one = PyBytes_FromStringAndSize(NULL, width + size)
        memcpy(PyBytes_AS_STRING(one), row + i * width, <size_t> width)
        memcpy(PyBytes_AS_STRING(one) + width, source + starts[i], <size_t> size)
        joined.append(one)
    return joined


cdef Py_ssize_t write_decimal(uint32_t number, unsigned char *into) noexcept nogil:
    """Write a number; gives its digits, at most _DECIMAL_MAX."""
    cdef unsigned char digits[_DECIMAL_MAX]
    cdef Py_ssize_t count = 0
    cdef Py_ssize_t i
    while True:
        digits[count] = <unsigned char> (c'0' + number % 10)
        count += 1
        number //= 10
        if not number:
            break
    for i in range(count):
        into[i] = digits[count - 1 - i]
    return count


cdef int update_numbers(EVP_MD_CTX *work, const uint32_t[:, :] numbers, Py_ssize_t column) noexcept nogil:
    cdef unsigned char text[_DECIMAL_MAX + 1]
    cdef Py_ssize_t size, k
    for k in range(numbers.shape[0]):
        size = 0
        if k:
            text[0] = c':'
            size = 1
        size += write_decimal(numbers[k, column], text + size)
        if not EVP_DigestUpdate(work, text, <size_t> size):
            return 0
    return 1


def digests(bytes head not None, const uint32_t[:, :] numbers not None, bytes middle not None,
            bytes buffer not None, const int64_t[::1] starts not None, const int64_t[::1] ends not None,
            bytes tail not None, Py_ssize_t size):
    if not 1 <= size <= _DIGEST_SIZE:
        raise ValueError(f"digests of {size} bytes; expected 1 to {_DIGEST_SIZE}")
    cdef Py_ssize_t count = check_spans(PyBytes_GET_SIZE(buffer), starts, ends)
    if numbers.shape[1] != count:
        raise ValueError(f"numbers of {numbers.shape[1]} texts; expected {count}")
    cdef bytes out = PyBytes_FromStringAndSize(NULL, count * size)
    cdef char *into = PyBytes_AS_STRING(out)
    cdef const char *source = PyBytes_AS_STRING(buffer)
    cdef const char *begun = PyBytes_AS_STRING(head)
    cdef size_t begun_size = <size_t> PyBytes_GET_SIZE(head)
    cdef const char *between = PyBytes_AS_STRING(middle)
    cdef size_t between_size = <size_t> PyBytes_GET_SIZE(middle)
    cdef const char *behind = PyBytes_AS_STRING(tail)
    cdef size_t behind_size = <size_t> PyBytes_GET_SIZE(tail)
    cdef unsigned char digest[_DIGEST_SIZE]
    cdef EVP_MD_CTX *work = EVP_MD_CTX_new()
    cdef int good = work is not NULL
    cdef Py_ssize_t i
    with nogil:
        for i in range(count):
            good = (good and EVP_DigestInit_ex2(work, _sha256, NULL)
                    and EVP_DigestUpdate(work, begun, begun_size)
                    and update_numbers(work, numbers, i)
                    and EVP_DigestUpdate(work, between, between_size)
                    and EVP_DigestUpdate(work, source + starts[i], <size_t> (ends[i] - starts[i]))
                    and EVP_DigestUpdate(work, behind, behind_size)
                    and EVP_DigestFinal_ex(work, digest, NULL))
            if not good:
                break
            memcpy(into + i * size, digest, <size_t> size)
        EVP_MD_CTX_free(work)
    if not good:
        raise MemoryError("libcrypto could not make a digest")
    return out


# --- judging --------------------------------------------------------------------------------------------------------

cdef enum:
    _DATUM_MAX = 3
    # Of Standing.rule; 0 is "never".
    _REQUIRED = 2

# A row of ext.standing.STANDING.
cdef struct Standing:
    uint8_t rule
    uint8_t closed
    uint8_t window
    uint8_t unused[5]
    double radius_m
    double positions[_DATUM_MAX + 1][2]
    int64_t payload_life_s

if _STANDING.itemsize != sizeof(Standing) or [_STANDING.fields[name][1] for name in _STANDING.names] != [0, 1, 2, 8, 16, 80]:
    raise ImportError("ext.rows was built for another ext.standing.STANDING: run `make build`")
if _CLAIMS.itemsize != sizeof(Claims):
    raise ImportError("ext.rows was built for another ext.claims.CLAIMS: run `make build`")

_WIDTHS = {
    "uid": 8, "request": 12, "body": 8, "mall": 4, "store": 4, "terminal": 4, "version": 1, "stale": 1, "generation_1": 1,
    "generation_2": 1, "place": 1, "closed": 1, "window": 1, "bucket": 1, "dry": 1, "actor_len": 2,
}


cdef inline void put_4(char *into, uint32_t number) noexcept nogil:
    cdef int k
    for k in range(4):
        into[k] = <char> (number >> (24 - 8 * k) & 0xFF)


@cython.auto_pickle(False)
cdef class Judge:
    cdef bytes blank
    cdef Py_ssize_t uid, request, body, mall, store, terminal, version, stale, generation_1, generation_2
    cdef Py_ssize_t place, closed, window, bucket, dry, actor_len
    cdef int64_t skew_s
    cdef int static_version
    cdef double accuracy_m_max, allowance_m_max
    cdef uint8_t location_required, location_unreliable, out_of_range

    def __init__(self, bytes blank not None, at, *, int64_t skew_s, int static_version, double accuracy_m_max,
                 double allowance_m_max, uint8_t location_required, uint8_t location_unreliable,
                 uint8_t out_of_range):
        for name, width in _WIDTHS.items():
            if not 0 <= at[name] <= len(blank) - width:
                raise ValueError(f"{name} is at {at[name]}; expected a place in a row of {len(blank)} bytes")
        self.blank = blank
        (self.uid, self.request, self.body, self.mall, self.store, self.terminal, self.version, self.stale,
         self.generation_1, self.generation_2, self.place, self.closed, self.window, self.bucket, self.dry,
         self.actor_len) = [at[name] for name in _WIDTHS]
        self.skew_s = skew_s
        self.static_version = static_version
        self.accuracy_m_max = accuracy_m_max
        self.allowance_m_max = allowance_m_max
        self.location_required = location_required
        self.location_unreliable = location_unreliable
        self.out_of_range = out_of_range

    cdef inline bint is_stale(self, const Claims *code, int64_t life_s, int64_t now_s) noexcept nogil:
        if <int64_t> code.exp <= now_s:
            return True
        if code.version == self.static_version:
            return False
        return not (<int64_t> code.stamp - self.skew_s <= now_s <= <int64_t> code.stamp + life_s + self.skew_s)

    cdef inline uint8_t find(self, const Standing *at, const double[:, :] places, Py_ssize_t i,
                             uint8_t *bucket) noexcept nogil:
        """What the position finds against an attempt, and its distance bucket."""
        cdef double latitude_deg, longitude_deg, store_latitude_deg, store_longitude_deg
        cdef double accuracy_m, radius_m
        cdef int datum = <int> places[3, i]
        bucket[0] = BUCKET_UNKNOWN
        if at.rule == 0:
            return 0
        if datum == 0:
            return self.location_required if at.rule == _REQUIRED else 0
        accuracy_m = places[2, i]
        if accuracy_m > self.accuracy_m_max:
            return self.location_unreliable
        latitude_deg, longitude_deg = places[0, i], places[1, i]
        store_latitude_deg, store_longitude_deg = at.positions[datum][0], at.positions[datum][1]
        radius_m = at.radius_m + fmin(accuracy_m, self.allowance_m_max)
        bucket[0] = <uint8_t> bucket_of(
            distance_of(latitude_deg, longitude_deg, store_latitude_deg, store_longitude_deg)
        )
        if not (0.0 <= radius_m <= RADIUS_MAX and is_position(latitude_deg, longitude_deg)
                and is_position(store_latitude_deg, store_longitude_deg)):
            return self.out_of_range
        radius_m /= SEMI_MAJOR_M
        if excess(latitude_deg, longitude_deg, store_latitude_deg, store_longitude_deg, radius_m * radius_m) > 0.0:
            return self.out_of_range
        return 0

    def rows(self, claims, table, list own not None, list codes not None, const uint32_t[:, :] terminals not None,
             const double[:, :] places not None, bytes requests not None, bytes bodies not None,
             const int64_t[::1] actor_chars not None, generations, int64_t now_s):
        if claims.dtype != _CLAIMS or table.dtype != _STANDING:
            raise TypeError(f"rows of {claims.dtype} and {table.dtype}; expected CLAIMS and STANDING")
        cdef Py_ssize_t count = len(claims)
        cdef Py_ssize_t i, k
        cdef bint dry = generations is None
        cdef uint8_t generation_1 = 0
        cdef uint8_t generation_2 = 0
        if not dry:
            generation_1, generation_2 = generations
        if (len(own) != count or len(codes) != count or terminals.shape[0] != 3 or terminals.shape[1] != count
                or places.shape[0] != 4 or places.shape[1] != count or actor_chars.shape[0] != count
                or (not dry and (len(requests) != 12 * count or len(bodies) != 8 * count))):
            raise ValueError(f"columns of {count} attempts have to be as many")
        cdef const uint8_t[::1] claims_view = np.ascontiguousarray(claims).view(np.uint8)
        cdef const uint8_t[::1] table_view = np.ascontiguousarray(table).view(np.uint8)
        cdef Py_ssize_t n_standings = len(table)
        cdef Py_ssize_t width = len(self.blank)
        cdef bytes out = PyBytes_FromStringAndSize(NULL, count * width)
        cdef char *row = PyBytes_AS_STRING(out)
        cdef const char *blank = PyBytes_AS_STRING(self.blank)
        cdef const char *request = PyBytes_AS_STRING(requests)
        cdef const char *body = PyBytes_AS_STRING(bodies)
        cdef const Claims *code = NULL
        cdef const Standing *standings = NULL
        cdef const Standing *at
        cdef uint8_t bucket
        cdef Py_ssize_t mine, its
        if not count:
            return out
        code = <const Claims *> &claims_view[0]
        if n_standings:
            standings = <const Standing *> &table_view[0]
        for i in range(count):
            mine, its = own[i], codes[i]
            if not (0 <= mine < n_standings and 0 <= its < n_standings):
                raise ValueError(f"attempt {i} is at rows {mine} and {its}; expected rows of {n_standings} standings")
            if not 0.0 <= places[3, i] <= _DATUM_MAX:
                raise ValueError(f"datum {places[3, i]} of attempt {i}; expected 0 to {_DATUM_MAX}")
            at = standings + mine
            memcpy(row, blank, <size_t> width)
            memcpy(row + self.uid, code.uid, 8)
            put_4(row + self.mall, terminals[0, i])
            put_4(row + self.store, terminals[1, i])
            put_4(row + self.terminal, terminals[2, i])
            row[self.version] = <char> code.version
            row[self.stale] = self.is_stale(code, standings[its].payload_life_s, now_s)
            row[self.place] = <char> self.find(at, places, i, &bucket)
            row[self.bucket] = <char> bucket
            row[self.closed] = <char> at.closed
            row[self.window] = <char> at.window
            row[self.actor_len] = <char> (actor_chars[i] >> 8 & 0xFF)
            row[self.actor_len + 1] = <char> (actor_chars[i] & 0xFF)
            if dry:
                row[self.dry] = 1
            else:
                row[self.generation_1], row[self.generation_2] = <char> generation_1, <char> generation_2
                memcpy(row + self.request, request, 12)
                memcpy(row + self.body, body, 8)
                request += 12
                body += 8
            row += width
            code += 1
        return out
