# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""Crockford base32, strict. See base32.pyi."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeASCII
from libc.stdint cimport uint64_t
from libc.string cimport memset

cdef enum:
    INVALID = 0xFF

cdef const unsigned char *_digits = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ"
cdef unsigned char _values[256]

cdef int _i
memset(_values, INVALID, sizeof(_values))
for _i in range(32):
    _values[_digits[_i]] = <unsigned char> _i


cdef void base32_encode(const unsigned char *source, size_t size, unsigned char *target) noexcept nogil:
    cdef uint64_t group
    cdef size_t done = 0
    cdef size_t out = 0
    cdef int i
    cdef int left
    # Invariant: out * 5 == done * 8; whole groups of 5 bytes are 8 characters.
    while size - done >= 5:
        group = (<uint64_t> source[done] << 32 | <uint64_t> source[done + 1] << 24 | <uint64_t> source[done + 2] << 16
                 | <uint64_t> source[done + 3] << 8 | source[done + 4])
        for i in range(8):
            target[out + i] = _digits[(group >> (35 - 5 * i)) & 31]
        done += 5
        out += 8
    if done < size:
        # The last group, filled up with zero bits: those are the spare bits.
        left = <int> (size - done)
        group = 0
        for i in range(5):
            group = group << 8 | (source[done + i] if i < left else 0)
        for i in range((left * 8 + 4) // 5):
            target[out + i] = _digits[(group >> (35 - 5 * i)) & 31]


cdef int base32_decode(const unsigned char *source, size_t count, unsigned char *target) noexcept nogil:
    cdef uint64_t group
    cdef unsigned char value
    cdef unsigned char seen = 0
    cdef size_t done = 0
    cdef size_t out = 0
    cdef int i
    cdef int left
    cdef int size
    while count - done >= 8:
        group = 0
        for i in range(8):
            value = _values[source[done + i]]
            seen |= value
            group = group << 5 | (value & 31)
        for i in range(5):
            target[out + i] = <unsigned char> (group >> (32 - 8 * i) & 0xFF)
        done += 8
        out += 5
    left = <int> (count - done)
    group = 0
    for i in range(8):
        value = _values[source[done + i]] if i < left else 0
        seen |= value
        group = group << 5 | (value & 31)
    # A digit is below 32, so its top bits are only ever set by INVALID.
    if seen & 0xE0:
        return BASE32_ALPHABET
    size = left * 5 // 8
    for i in range(size):
        target[out + i] = <unsigned char> (group >> (32 - 8 * i) & 0xFF)
    # What is left of the group below the last whole byte.
    if left and group & ((<uint64_t> 1 << (40 - 8 * size)) - 1):
        return BASE32_SPARE_BITS
    return BASE32_OK


def encode(bytes data not None):
    cdef size_t count = base32_length(len(data))
    cdef bytes out = PyBytes_FromStringAndSize(NULL, count)
    base32_encode(<const unsigned char *> PyBytes_AS_STRING(data), len(data),
                  <unsigned char *> PyBytes_AS_STRING(out))
    return out.decode("ascii")


def decode(str text not None):
    cdef bytes source
    cdef bytes out
    cdef int answer
    try:
        source = text.encode("ascii")
    except UnicodeEncodeError:
        raise ValueError("a character outside the alphabet 0-9 A-Z without I, L, O and U") from None
    if len(source) % 8 not in (0, 2, 4, 5, 7):
        raise ValueError(f"{len(source)} characters are never the encoding of whole bytes")
    out = PyBytes_FromStringAndSize(NULL, base32_size(len(source)))
    answer = base32_decode(<const unsigned char *> PyBytes_AS_STRING(source), len(source),
                           <unsigned char *> PyBytes_AS_STRING(out))
    if answer == BASE32_ALPHABET:
        raise ValueError("a character outside the alphabet 0-9 A-Z without I, L, O and U")
    if answer == BASE32_SPARE_BITS:
        raise ValueError("the spare bits of the last character are not zero")
    return out


def encode_batch(const unsigned char[::1] data not None, Py_ssize_t size):
    cdef Py_ssize_t n
    cdef Py_ssize_t i
    cdef size_t count
    cdef bytes out
    cdef const char *made
    if size < 1 or data.shape[0] % size:
        raise ValueError(f"{data.shape[0]} bytes are not a whole number of items of {size}")
    n = data.shape[0] // size
    count = base32_length(size)
    out = PyBytes_FromStringAndSize(NULL, n * count)
    made = PyBytes_AS_STRING(out)
    if n:
        with nogil:
            for i in range(n):
                base32_encode(&data[0] + i * size, size, <unsigned char *> made + i * count)
    return [PyUnicode_DecodeASCII(made + i * count, count, NULL) for i in range(n)]


def decode_batch(texts not None, Py_ssize_t size):
    cdef size_t count = base32_length(size) if size >= 0 else 0
    if size < 1:
        raise ValueError(f"size is {size}, expected 1 or more")
    out = []
    for text in texts:
        if len(text) != <Py_ssize_t> count:
            raise ValueError(f"{len(text)} characters, expected {count} for {size} bytes")
        out.append(decode(text))
    return b"".join(out)
