# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""Protobuf messages into columns. See scan.pyi."""

import math
from collections import namedtuple

cimport cython

import numpy as np

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

cdef enum:
    _FIELDS_MAX = 32
    _NUMBER_MAX = 31
    _MESSAGES_MAX = 8
    # Wire types.
    VARINT = 0
    FIXED64 = 1
    LENGTH = 2
    # Kinds; 0 is none.
    UINT32 = 1
    ENUM = 2
    DOUBLE = 3
    TEXT = 4
    MESSAGE = 5

FIELDS_MAX = _FIELDS_MAX
NUMBER_MAX = _NUMBER_MAX
MESSAGES_MAX = _MESSAGES_MAX

_KINDS = {"uint32": UINT32, "enum": ENUM, "double": DOUBLE, "text": TEXT, "message": MESSAGE}

Scanned = namedtuple("Scanned", ("plain", "present", "numbers", "wire", "starts", "ends"))

cdef struct Entry:
    uint8_t kind
    uint8_t bit
    # Column among the numbers or the texts; of a message, its table.
    uint8_t column
    # Of a number its value, of a text its characters.
    double lowest
    double highest

cdef struct Columns:
    Py_ssize_t count
    double *numbers
    int64_t *starts
    int64_t *ends
    uint32_t present


@cython.auto_pickle(False)
cdef class Shape:
    cdef Entry entries[_MESSAGES_MAX][_NUMBER_MAX + 1]
    # Of each message the bits of the fields without which it is not plain.
    cdef uint32_t needed[_MESSAGES_MAX]
    cdef int n_numbers
    cdef int n_texts

    def __init__(self, fields, ranges=None, needed=()):
        memset(&self.entries, 0, sizeof(self.entries))
        memset(&self.needed, 0, sizeof(self.needed))
        self.n_numbers = self.n_texts = 0
        ranges = {tuple(path): ends for path, ends in (ranges or {}).items()}
        needed = {tuple(path) for path in needed}
        tables = {(): 0}
        if len(fields) > _FIELDS_MAX:
            raise ValueError(f"a shape has at most {_FIELDS_MAX} fields, not {len(fields)}")
        for bit, (path, kind) in enumerate(fields):
            path = tuple(path)
            if kind not in _KINDS:
                raise ValueError(f"the kind of field {path} is {kind!r}; expected one of {', '.join(_KINDS)}")
            if len(path) not in (1, 2) or not all(1 <= number <= _NUMBER_MAX for number in path):
                raise ValueError(f"path {path} of a field; expected one or two numbers, 1 to {_NUMBER_MAX}")
            *outer, number = path
            if tuple(outer) not in tables:
                raise ValueError(f"the message around field {path} must be a field of kind message, before it")
            lowest, highest = ranges.pop(path, (-math.inf, math.inf))
            if kind == "message" and (lowest, highest) != (-math.inf, math.inf):
                raise ValueError(f"field {path} is a message, which has no range")
            self._enter(tables, path, tables[tuple(outer)], number, _KINDS[kind], bit, lowest, highest)
            # What is absent is 0, or has no characters.
            if path in needed or not lowest <= 0 <= highest:
                self.needed[<int> tables[tuple(outer)]] |= <uint32_t> 1 << <int> bit
            needed.discard(path)
        if ranges or needed:
            raise ValueError(f"no fields of the shape: {', '.join(map(str, [*ranges, *needed]))}")

    cdef _enter(self, dict tables, path, int table, int number, int kind, int bit, double lowest, double highest):
        cdef Entry *entry = &self.entries[table][number]
        if entry.kind:
            raise ValueError(f"field {path} is twice in the shape")
        entry.kind = kind
        entry.bit = bit
        entry.lowest = lowest
        entry.highest = highest
        if kind == MESSAGE:
            if len(tables) == _MESSAGES_MAX:
                raise ValueError(f"a shape has at most {_MESSAGES_MAX} messages")
            entry.column = tables[path] = len(tables)
        elif kind == TEXT:
            entry.column = self.n_texts
            self.n_texts += 1
        else:
            entry.column = self.n_numbers
            self.n_numbers += 1


cdef inline int read_varint(const uint8_t *data, Py_ssize_t size, Py_ssize_t *at, uint64_t *value) noexcept nogil:
    """Read one varint at `at`, which moves behind it; 0 when it is cut off or longer than ten bytes."""
    cdef uint64_t found = 0
    cdef int shift = 0
    cdef uint8_t byte
    while at[0] < size and shift < 70:
        byte = data[at[0]]
        at[0] += 1
        found |= <uint64_t> (byte & 0x7F) << shift if shift < 64 else 0
        if byte < 0x80:
            value[0] = found
            return 1
        shift += 7
    return 0


cdef inline int is_plain_text(const uint8_t *data, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t i
    cdef int odd = 0
    for i in range(size):
        odd |= data[i] < 0x21 or data[i] > 0x7E
    return not odd


cdef int scan(Shape shape, int table, const uint8_t *data, Py_ssize_t start, Py_ssize_t end, Py_ssize_t row,
              Columns *columns) noexcept nogil:
    """Scan one message, data[start:end]; 0 when it is not plain.

    Invariant: start <= at <= end, and nothing at or behind end is read.
    """
    cdef Py_ssize_t at = start
    cdef uint64_t key, value
    cdef uint32_t bit
    cdef Entry entry
    cdef double real
    while at < end:
        if not read_varint(data, end, &at, &key):
            return 0
        if key >> 3 == 0 or key >> 3 > _NUMBER_MAX:
            return 0
        entry = shape.entries[table][key >> 3]
        bit = <uint32_t> 1 << entry.bit
        if entry.kind == 0 or columns.present & bit:
            return 0
        columns.present |= bit
        if entry.kind == DOUBLE:
            if key & 7 != FIXED64 or end - at < 8:
                return 0
            # Little-endian, as every machine that this runs on (a test compares with the library).
            memcpy(&real, data + at, 8)
            # Neither holds for what is no number.
            if not (real >= entry.lowest and real <= entry.highest):
                return 0
            columns.numbers[entry.column * columns.count + row] = real
            at += 8
            continue
        if key & 7 != (VARINT if entry.kind <= ENUM else LENGTH) or not read_varint(data, end, &at, &value):
            return 0
        if entry.kind <= ENUM:
            if value >> (32 if entry.kind == UINT32 else 31):
                return 0
            if <double> value < entry.lowest or <double> value > entry.highest:
                return 0
            columns.numbers[entry.column * columns.count + row] = <double> value
            continue
        if value > <uint64_t> (end - at):
            return 0
        if entry.kind == TEXT:
            if <double> value < entry.lowest or <double> value > entry.highest:
                return 0
            if not is_plain_text(data + at, <Py_ssize_t> value):
                return 0
            columns.starts[entry.column * columns.count + row] = at
            columns.ends[entry.column * columns.count + row] = at + <Py_ssize_t> value
        elif not scan(shape, entry.column, data, at, at + <Py_ssize_t> value, row, columns):
            return 0
        at += <Py_ssize_t> value
    return columns.present & shape.needed[table] == shape.needed[table]


def scan_batch(Shape shape not None, messages):
    cdef list items = list(messages)
    cdef Py_ssize_t count = len(items)
    cdef Py_ssize_t n, k, at
    for item in items:
        if type(item) is not bytes:
            raise TypeError(f"a message is bytes, not {type(item).__name__}")
    cdef bytes wire = b"".join(items)
    plain = np.zeros(count, np.bool_)
    present = np.zeros(count, np.uint32)
    numbers = np.zeros((shape.n_numbers, count), np.float64)
    starts = np.zeros((shape.n_texts, count), np.int64)
    ends = np.zeros((shape.n_texts, count), np.int64)
    if not count:
        return Scanned(plain, present, numbers, wire, starts, ends)
    cdef Columns columns
    cdef double[:, ::1] numbers_view = numbers
    cdef int64_t[:, ::1] starts_view = starts
    cdef int64_t[:, ::1] ends_view = ends
    cdef uint32_t[::1] present_view = present
    cdef uint8_t[::1] plain_view = plain.view(np.uint8)
    columns.count = count
    columns.numbers = &numbers_view[0, 0] if shape.n_numbers else NULL
    columns.starts = &starts_view[0, 0] if shape.n_texts else NULL
    columns.ends = &ends_view[0, 0] if shape.n_texts else NULL
    cdef const uint8_t *data = <const uint8_t *> PyBytes_AS_STRING(wire)
    cdef Py_ssize_t *sizes = <Py_ssize_t *> malloc(count * sizeof(Py_ssize_t))
    if sizes == NULL:
        raise MemoryError
    for n in range(count):
        sizes[n] = PyBytes_GET_SIZE(items[n])
    with nogil:
        at = 0
        for n in range(count):
            columns.present = 0
            if scan(shape, 0, data, at, at + sizes[n], n, &columns):
                plain_view[n] = 1
                present_view[n] = columns.present
            else:
                for k in range(shape.n_numbers):
                    columns.numbers[k * count + n] = 0.0
                for k in range(shape.n_texts):
                    columns.starts[k * count + n] = columns.ends[k * count + n] = 0
            at += sizes[n]
        free(sizes)
    return Scanned(plain, present, numbers, wire, starts, ends)
