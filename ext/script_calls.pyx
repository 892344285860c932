# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""Script calls as the store reads them. See script_calls.pyi."""

cimport cython

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

cdef enum:
    _POINTERS_MAX = 8
    _KEYS_MAX = 65535
    _OPTIONAL_BYTES = 12
    # Longest text behind a key's letter: two decimals of 32 bits and a colon, and snprintf's end.
    _NAME_MAX = 24
    # A head of the protocol: a sign, a decimal of 64 bits, CR and LF, and snprintf's end.
    _HEAD_MAX = 32
    BUCKET = 0
    BUCKET_OR_NONE = 1
    PAIR = 2
    NUMBER = 3

KINDS = ("bucket", "bucket?", "pair", "number")
POINTERS_MAX = _POINTERS_MAX
_SOURCE_BYTES = (4, _OPTIONAL_BYTES, 8, 0)

cdef struct Pointer:
    Py_ssize_t place_at
    Py_ssize_t source_at
    int kind
    uint8_t letter

# One entry of the table of keys: a key's letter and number, and its place; place 0 is free.
cdef struct Entry:
    uint64_t number
    uint32_t place
    uint8_t letter


@cython.auto_pickle(False)
cdef class Pointers:
    cdef Pointer pointers[_POINTERS_MAX]
    cdef Py_ssize_t count
    cdef Py_ssize_t row_bytes
    cdef uint32_t bucket_mask

    def __init__(self, row_bytes, bucket_mask, pointers):
        if not 2 <= row_bytes <= 65535:
            raise ValueError(f"rows of {row_bytes} bytes; expected 2 to 65535")
        if not 0 <= bucket_mask <= 0xFFFFFFFF:
            raise ValueError(f"the mask of buckets is {bucket_mask}; expected 32 bits")
        if len(pointers) > _POINTERS_MAX:
            raise ValueError(f"{len(pointers)} pointers of a row; expected at most {_POINTERS_MAX}")
        self.row_bytes = row_bytes
        self.bucket_mask = bucket_mask
        self.count = 0
        for place_at, kind, source_at, letter in pointers:
            if kind not in KINDS:
                raise ValueError(f"the kind of a pointer is {kind!r}; expected one of {', '.join(KINDS)}")
            if not 0 <= place_at <= row_bytes - 2:
                raise ValueError(f"a place at byte {place_at} of a row of {row_bytes}")
            if not 0 <= source_at <= row_bytes - _SOURCE_BYTES[KINDS.index(kind)]:
                raise ValueError(f"a source at byte {source_at} of a row of {row_bytes}")
            if len(letter) != 1:
                raise ValueError(f"a letter of {len(letter)} bytes; expected one")
            for p in range(self.count):
                if self.pointers[p].letter == letter[0] and kind.rstrip("?") != KINDS[self.pointers[p].kind].rstrip("?"):
                    raise ValueError(f"letter {letter!r} names keys of two kinds")
            self.pointers[self.count] = Pointer(place_at, source_at, KINDS.index(kind), letter[0])
            self.count += 1


def group_rows(rows, Py_ssize_t group_max):
    if group_max < 1:
        raise ValueError(f"groups of {group_max} rows; expected 1 or more")
    cdef list groups = []
    cdef dict last = {}
    cdef list members
    cdef Py_ssize_t n = 0
    cdef const uint8_t *data
    cdef int partition
    for row in rows:
        if PyBytes_GET_SIZE(<bytes?> row) < 2:
            raise ValueError(f"row {n} has less than two bytes")
        data = <const uint8_t *> PyBytes_AS_STRING(row)
        partition = data[0] << 2 | data[1] >> 6
        members = last.get(partition)
        if members is None or len(members) == group_max:
            members = last[partition] = []
            groups.append((partition, members))
        members.append(n)
        n += 1
    return groups


cdef inline uint32_t read_32(const uint8_t *data) noexcept nogil:
    return <uint32_t> data[0] << 24 | <uint32_t> data[1] << 16 | <uint32_t> data[2] << 8 | data[3]


cdef inline int is_zero(const uint8_t *data, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t i
    cdef int found = 0
    for i in range(size):
        found |= data[i]
    return not found


cdef inline Py_ssize_t write_bulk(char *into, const char *data, Py_ssize_t size) noexcept nogil:
    """One bulk string; gives its bytes, at most size + _HEAD_MAX."""
    cdef Py_ssize_t at = snprintf(into, _HEAD_MAX, b"$%zd\r\n", size)
    memcpy(into + at, data, <size_t> size)
    into[at + size] = c"\r"
    into[at + size + 1] = c"\n"
    return at + size + 2


@cython.auto_pickle(False)
cdef class _Keys:
    """The keys of one call as they are written: each once, its place found by letter and number."""

    cdef Entry *table
    cdef uint64_t mask
    cdef char *written
    cdef Py_ssize_t size
    cdef Py_ssize_t count
    cdef const char *prefix
    cdef Py_ssize_t prefix_size

    def __cinit__(self, bytes prefix, Py_ssize_t own, Py_ssize_t most):
        cdef uint64_t slots = 16
        while slots < 2 * <uint64_t> most:
            slots *= 2
        self.mask = slots - 1
        self.table = <Entry *> calloc(slots, sizeof(Entry))
        self.written = <char *> malloc(<size_t> (most * (PyBytes_GET_SIZE(prefix) + 1 + _NAME_MAX + _HEAD_MAX) + 1))
        if self.table is NULL or self.written is NULL:
            raise MemoryError
        self.prefix = PyBytes_AS_STRING(prefix)
        self.prefix_size = PyBytes_GET_SIZE(prefix)
        self.count = own

    def __dealloc__(self):
        free(self.table)
        free(self.written)

    cdef uint32_t place(self, const Pointer *pointer, uint64_t number) noexcept nogil:
        """The place of a key, which is written if it is new. Invariant: at most `most` different ones."""
        # Fibonacci hashing: numbers that follow each other lie apart.
        cdef uint64_t slot = (number * 0x9E3779B97F4A7C15u ^ <uint64_t> pointer.letter) >> 32 & self.mask
        cdef Entry *entry = &self.table[slot]
        while entry.place:
            if entry.number == number and entry.letter == pointer.letter:
                return entry.place
            slot = slot + 1 & self.mask
            entry = &self.table[slot]
        self.count += 1
        entry.number, entry.letter, entry.place = number, pointer.letter, <uint32_t> self.count
        cdef char name[_NAME_MAX]
        cdef Py_ssize_t size
        if pointer.kind == PAIR:
            size = snprintf(name, _NAME_MAX, b"%u:%u", <uint32_t> (number >> 32), <uint32_t> number)
        elif pointer.kind == NUMBER:
            size = snprintf(name, _NAME_MAX, b"%llu", <unsigned long long> number)
        else:
            size = snprintf(name, _NAME_MAX, b"%x", <uint32_t> number)
        cdef char *into = self.written + self.size
        cdef Py_ssize_t at = snprintf(into, _HEAD_MAX, b"$%zd\r\n", self.prefix_size + 1 + size)
        memcpy(into + at, self.prefix, <size_t> self.prefix_size)
        at += self.prefix_size
        into[at] = <char> pointer.letter
        memcpy(into + at + 1, name, <size_t> size)
        at += 1 + size
        into[at] = c"\r"
        into[at + 1] = c"\n"
        self.size += at + 2
        return entry.place


cdef void write_places(Pointers pointers, _Keys keys, uint64_t number, uint8_t *row) noexcept nogil:
    cdef Py_ssize_t p
    cdef const Pointer *pointer
    cdef const uint8_t *source
    cdef uint32_t place
    for p in range(pointers.count):
        pointer = &pointers.pointers[p]
        source = row + pointer.source_at
        if pointer.kind == PAIR:
            place = keys.place(pointer, <uint64_t> read_32(source) << 32 | read_32(source + 4))
        elif pointer.kind == NUMBER:
            place = keys.place(pointer, number)
        elif pointer.kind == BUCKET_OR_NONE and is_zero(source, _OPTIONAL_BYTES):
            place = 1
        else:
            place = keys.place(pointer, read_32(source) & pointers.bucket_mask)
        row[pointer.place_at] = <uint8_t> (place >> 8)
        row[pointer.place_at + 1] = <uint8_t> place


def script_call(Pointers pointers not None, bytes sha not None, bytes prefix not None, own_keys, uint64_t number, args,
                rows):
    cdef list row_list = list(rows)
    cdef list own = list(own_keys)
    cdef list leading = list(args)
    cdef Py_ssize_t count = len(row_list)
    cdef Py_ssize_t most = count * pointers.count
    cdef Py_ssize_t size = 0
    cdef Py_ssize_t n
    if len(own) + most > _KEYS_MAX:
        raise ValueError(f"{len(own) + most} keys of one call; expected at most {_KEYS_MAX}")
    for item in row_list:
        if PyBytes_GET_SIZE(<bytes?> item) < pointers.row_bytes:
            raise ValueError(f"a row of {PyBytes_GET_SIZE(item)} bytes; expected {pointers.row_bytes} or more")
        size += PyBytes_GET_SIZE(item) + _HEAD_MAX
    for item in (*own, *leading, sha):
        size += PyBytes_GET_SIZE(<bytes?> item) + _HEAD_MAX
    cdef _Keys keys = _Keys(prefix, len(own), most)
    # Rows first, into a buffer of their own: how many keys there are is known behind them.
    cdef char *written = <char *> malloc(<size_t> size + 1)
    if written is NULL:
        raise MemoryError
    cdef Py_ssize_t rows_size = 0
    cdef Py_ssize_t row_size
    cdef char head[4 * _HEAD_MAX]
    cdef Py_ssize_t at
    cdef bytes out
    cdef char *into
    try:
        for item in row_list:
            row_size = PyBytes_GET_SIZE(item)
            at = rows_size + write_bulk(written + rows_size, PyBytes_AS_STRING(item), row_size)
            write_places(pointers, keys, number, <uint8_t *> written + (at - 2 - row_size))
            rows_size = at
        at = snprintf(head, 4 * _HEAD_MAX, b"*%zd\r\n$7\r\nEVALSHA\r\n", 3 + keys.count + <Py_ssize_t> len(leading) + count)
        out = PyBytes_FromStringAndSize(NULL, at + size + keys.size + 2 * _HEAD_MAX)
        into = PyBytes_AS_STRING(out)
        memcpy(into, head, <size_t> at)
        at += write_bulk(into + at, PyBytes_AS_STRING(sha), PyBytes_GET_SIZE(sha))
        n = snprintf(head, _HEAD_MAX, b"%zd", keys.count)
        at += write_bulk(into + at, head, n)
        for item in own:
            at += write_bulk(into + at, PyBytes_AS_STRING(item), PyBytes_GET_SIZE(item))
        memcpy(into + at, keys.written, <size_t> keys.size)
        at += keys.size
        for item in leading:
            at += write_bulk(into + at, PyBytes_AS_STRING(item), PyBytes_GET_SIZE(item))
        memcpy(into + at, written, <size_t> rows_size)
        at += rows_size
    finally:
        free(written)
    return out[:at]
