# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""Rows of bytes out of columns. See rows.pyi."""

import numpy as np

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

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
