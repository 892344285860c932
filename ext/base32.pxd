"""Crockford base32 between buffers, for other kernels."""

from libc.stddef cimport size_t

cdef enum:
    BASE32_OK = 0
    BASE32_ALPHABET = 1
    BASE32_SPARE_BITS = 2

# Characters for size bytes, and bytes for count characters (which must be a length that encoding gives).
cdef inline size_t base32_length(size_t size) noexcept nogil:
    return (size * 8 + 4) // 5

cdef inline size_t base32_size(size_t count) noexcept nogil:
    return count * 5 // 8

# source and target must not overlap; target has base32_length(size) or base32_size(count) bytes.
cdef void base32_encode(const unsigned char *source, size_t size, unsigned char *target) noexcept nogil
cdef int base32_decode(const unsigned char *source, size_t count, unsigned char *target) noexcept nogil
