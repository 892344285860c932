# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""A script's answers into protobuf messages. See answers.pyi."""

cimport cython

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy

OFFSETS = ("verdict", "at", "epoch", "seq", "terminal", "sku", "store", "cycle", "flavour", "flags", "exp", "bucket",
           "n_lines", "order_len")
FIELDS = ("request_id", "uid", "order_id", "lines", "at_ms", "terminal_id", "sku_id", "cycle", "event_id",
          "distance_bucket", "replayed", "version", "expires_at_ms", "pin_required", "proof_required")

cdef enum:
    VERDICT = 0
    AT = 1
    EPOCH = 2
    SEQ = 3
    TERMINAL = 4
    SKU = 5
    STORE = 6
    CYCLE = 7
    FLAVOUR = 8
    FLAGS = 9
    EXP = 10
    BUCKET = 11
    N_LINES = 12
    ORDER_LEN = 13
    _OFFSETS = 14

    F_REQUEST_ID = 0
    F_UID = 1
    F_ORDER_ID = 2
    F_LINES = 3
    F_AT_MS = 4
    F_TERMINAL_ID = 5
    F_SKU_ID = 6
    F_CYCLE = 7
    F_EVENT_ID = 8
    F_BUCKET = 9
    F_REPLAYED = 10
    F_VERSION = 11
    F_EXPIRES = 12
    F_PIN = 13
    F_PROOF = 14
    _FIELDS = 15

    VARINT = 0
    LENGTH = 2
    _VERDICTS = 256
    _UID_BYTES = 8
    _LINE_BYTES = 8
    _SEQ_BYTES = 6
    # A line as a message: three keys of one byte, three varints of at most five.
    _LINE_MAX = 18
    _KEY_MAX = 5
    _VARINT_MAX = 10
    # Partition, epoch and number of an event in decimal, dashes, and snprintf's end.
    _EVENT_MAX = 40


cdef inline Py_ssize_t write_varint(uint8_t *into, uint64_t value) noexcept nogil:
    cdef Py_ssize_t at = 0
    while value > 0x7F:
        into[at] = <uint8_t> (value & 0x7F | 0x80)
        value >>= 7
        at += 1
    into[at] = <uint8_t> value
    return at + 1


cdef inline uint64_t read_number(const uint8_t *data, int size) noexcept nogil:
    cdef uint64_t value = 0
    cdef int i
    for i in range(size):
        value = value << 8 | data[i]
    return value


@cython.auto_pickle(False)
cdef class Answers:
    cdef Py_ssize_t offsets[_OFFSETS]
    cdef Py_ssize_t answer_bytes
    cdef uint64_t keys[_FIELDS]
    cdef list begun
    cdef int bucket_unknown
    cdef int static_version
    cdef int proof_flag

    def __init__(self, offsets, answer_bytes, fields, begun, *, bucket_unknown, static_version, proof_flag):
        if not 1 <= answer_bytes <= 65535:
            raise ValueError(f"answers of {answer_bytes} bytes; expected 1 to 65535")
        self.answer_bytes = answer_bytes
        for n, name in enumerate(OFFSETS):
            size = _SEQ_BYTES if name in ("at", "seq") else 4 if name in ("epoch", "terminal", "sku", "store", "exp") else 1
            if name not in offsets or not 0 <= offsets[name] <= answer_bytes - size:
                raise ValueError(f"{name} of an answer begins at {offsets.get(name)}; expected a place in {answer_bytes} bytes")
            self.offsets[n] = offsets[name]
        unknown = set(fields) - set(FIELDS)
        if unknown:
            raise ValueError(f"fields {sorted(unknown)} are not known; expected some of {', '.join(FIELDS)}")
        last = 0
        for n, name in enumerate(FIELDS):
            self.keys[n] = 0
            if name in fields:
                if not last < fields[name] < 1 << 29:
                    raise ValueError(f"field {name} has number {fields[name]}; expected more than {last}, which is before it")
                last = fields[name]
                texts = ("request_id", "uid", "order_id", "lines", "event_id")
                self.keys[n] = last << 3 | (LENGTH if name in texts else VARINT)
        self.begun = [None] * _VERDICTS
        for number, text in begun.items():
            if not 0 <= number < _VERDICTS or type(text) is not bytes:
                raise ValueError(f"a message of verdict {number!r}; expected bytes for 0 to {_VERDICTS - 1}")
            self.begun[number] = text
        self.bucket_unknown = bucket_unknown
        self.static_version = static_version
        self.proof_flag = proof_flag

    cdef inline Py_ssize_t number(self, uint8_t *into, int field, uint64_t value) noexcept nogil:
        """A field that is a number, unless it is 0 or not wanted."""
        cdef Py_ssize_t at
        if not value or not self.keys[field]:
            return 0
        at = write_varint(into, self.keys[field])
        return at + write_varint(into + at, value)

    cdef inline Py_ssize_t text(self, uint8_t *into, int field, const char *data, Py_ssize_t size) noexcept nogil:
        """A field that is a text, unless it is empty or not wanted."""
        cdef Py_ssize_t at
        if not size or not self.keys[field]:
            return 0
        at = write_varint(into, self.keys[field])
        at += write_varint(into + at, <uint64_t> size)
        memcpy(into + at, data, <size_t> size)
        return at + size

    cdef Py_ssize_t lines(self, uint8_t *into, const uint8_t *data, int count) noexcept nogil:
        cdef uint8_t line[_LINE_MAX]
        cdef Py_ssize_t at = 0
        cdef Py_ssize_t size
        cdef uint64_t value
        cdef int n, k
        if not self.keys[F_LINES]:
            return 0
        for n in range(count):
            size = 0
            for k in range(3):
                value = (read_number(data, 4) if k == 0 else read_number(data + 2 + 2 * k, 2))
                if value:
                    line[size] = <uint8_t> (8 * (k + 1))
                    size += 1
                    size += write_varint(line + size, value)
            at += write_varint(into + at, self.keys[F_LINES])
            at += write_varint(into + at, <uint64_t> size)
            memcpy(into + at, line, <size_t> size)
            at += size
            data += _LINE_BYTES
        return at

    cdef bytes one(self, bytes answer, bytes uid, bytes request_id, stores):
        cdef Py_ssize_t size = PyBytes_GET_SIZE(answer)
        cdef const uint8_t *data = <const uint8_t *> PyBytes_AS_STRING(answer)
        if size < 1 + self.answer_bytes or (data[0] != c"A" and data[0] != c"R"):
            return None
        cdef int remembered = data[0] == c"R"
        data += 1
        cdef int n_lines = data[self.offsets[N_LINES]]
        cdef Py_ssize_t order_len = data[self.offsets[ORDER_LEN]]
        if size < 1 + self.answer_bytes + n_lines * _LINE_BYTES + order_len:
            return None
        begun_object = self.begun[data[self.offsets[VERDICT]]]
        if begun_object is None:
            return None
        cdef bytes begun = begun_object
        cdef bytes store = stores[<uint32_t> read_number(data + self.offsets[STORE], 4)]
        # Every number and text with its key and length; lines and texts by their own sizes.
        cdef Py_ssize_t most = (PyBytes_GET_SIZE(begun) + PyBytes_GET_SIZE(store) + PyBytes_GET_SIZE(request_id)
                                + 2 * _UID_BYTES + order_len + n_lines * (_LINE_MAX + _KEY_MAX + 1) + _EVENT_MAX
                                + _FIELDS * (_KEY_MAX + _VARINT_MAX))
        cdef bytes out = PyBytes_FromStringAndSize(NULL, most)
        cdef uint8_t *into = <uint8_t *> PyBytes_AS_STRING(out)
        cdef const uint8_t *whose = <const uint8_t *> PyBytes_AS_STRING(uid)
        cdef char scratch[_EVENT_MAX]
        cdef Py_ssize_t at = PyBytes_GET_SIZE(begun)
        cdef int n
        cdef uint64_t epoch = read_number(data + self.offsets[EPOCH], 4)
        cdef int bucket = data[self.offsets[BUCKET]]
        cdef int version = data[self.offsets[FLAVOUR]] >> 4
        memcpy(into, PyBytes_AS_STRING(begun), <size_t> at)
        at += self.text(into + at, F_REQUEST_ID, PyBytes_AS_STRING(request_id), PyBytes_GET_SIZE(request_id))
        for n in range(_UID_BYTES):
            scratch[2 * n] = b"0123456789abcdef"[whose[n] >> 4]
            scratch[2 * n + 1] = b"0123456789abcdef"[whose[n] & 15]
        at += self.text(into + at, F_UID, scratch, 2 * _UID_BYTES)
        at += self.text(into + at, F_ORDER_ID, <const char *> data + self.answer_bytes + n_lines * _LINE_BYTES, order_len)
        at += self.lines(into + at, data + self.answer_bytes, n_lines)
        at += self.number(into + at, F_AT_MS, read_number(data + self.offsets[AT], 6))
        at += self.number(into + at, F_TERMINAL_ID, read_number(data + self.offsets[TERMINAL], 4))
        at += self.number(into + at, F_SKU_ID, read_number(data + self.offsets[SKU], 4))
        memcpy(into + at, PyBytes_AS_STRING(store), <size_t> PyBytes_GET_SIZE(store))
        at += PyBytes_GET_SIZE(store)
        at += self.number(into + at, F_CYCLE, data[self.offsets[CYCLE]])
        if epoch:
            n = snprintf(scratch, _EVENT_MAX, b"%d-%llu-%llu", whose[0] << 2 | whose[1] >> 6, <unsigned long long> epoch,
                         <unsigned long long> read_number(data + self.offsets[SEQ], _SEQ_BYTES))
            at += self.text(into + at, F_EVENT_ID, scratch, n)
        if bucket != self.bucket_unknown:
            at += self.bucket(into + at, bucket)
        at += self.number(into + at, F_REPLAYED, remembered)
        at += self.number(into + at, F_VERSION, version)
        at += self.number(into + at, F_EXPIRES, read_number(data + self.offsets[EXP], 4) * 1000)
        at += self.number(into + at, F_PIN, version == self.static_version)
        at += self.number(into + at, F_PROOF, (data[self.offsets[FLAGS]] & self.proof_flag) != 0)
        return out[:at]

    cdef inline Py_ssize_t bucket(self, uint8_t *into, int bucket) noexcept nogil:
        """The distance bucket, which says something when it is 0."""
        cdef Py_ssize_t at
        if not self.keys[F_BUCKET]:
            return 0
        at = write_varint(into, self.keys[F_BUCKET])
        return at + write_varint(into + at, <uint64_t> bucket)

    def write(self, answers, uids, request_ids, stores):
        cdef list found = []
        cdef Py_ssize_t n = 0
        if len(uids) != len(answers) or (len(request_ids) and len(request_ids) != len(answers)):
            raise ValueError(f"{len(answers)} answers, {len(uids)} uids, {len(request_ids)} request ids; expected as many of each")
        cdef bint named = len(request_ids) != 0
        for answer, uid in zip(answers, uids):
            if PyBytes_GET_SIZE(<bytes?> uid) < _UID_BYTES:
                raise ValueError(f"uid {n} has {PyBytes_GET_SIZE(uid)} bytes; expected {_UID_BYTES} or more")
            if PyBytes_Check(answer):
                found.append(self.one(answer, uid, request_ids[n] if named else b"", stores))
            else:
                found.append(None)
            n += 1
        return found
