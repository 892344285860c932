# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""Seal and open pickup payloads, in batches. See seal.pyi; the layouts and the checks F1 to F10 are in docs/format.md.

Nothing here reads unauthenticated bytes further than it must: length, text form, header and kid come before the tag,
everything else after it.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeASCII
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

import operator
import threading

import numpy as np

from ext.claims import CLAIMS as _CLAIMS

from ext.base32 cimport BASE32_ALPHABET, BASE32_OK, base32_decode, base32_encode
from ext.libcrypto cimport (
    CRYPTO_memcmp,
    EVP_CIPHER_CTX_free,
    EVP_CIPHER_CTX_new,
    EVP_CIPHER_CTX_set_padding,
    EVP_EncryptInit_ex2,
    EVP_EncryptUpdate,
    EVP_PKEY,
    EVP_PKEY_free,
    OPENSSL_cleanse,
    RAND_priv_bytes,
)
from ext.primitives cimport (
    DIGEST_SIZE,
    SUITE_AES,
    SUITE_SM,
    block_cipher_of,
    checked_offsets,
    checked_suite,
    hkdf_key,
    hmac_free,
    hmac_key,
    hmac_message,
)
from ext.sign cimport PRIVATE_SIZE, SIGNATURE_SIZE, private_pkey, public_pkey, sign_message, signature_good
from ext.sign import public_of

cdef enum:
    STATIC = 1
    DYNAMIC = 2
    VALUABLE = 3
    STATIC_SIZE = 31
    DYNAMIC_SIZE = 47
    VALUABLE_SIZE = 115
    PAYLOAD_SIZE_MAX = 115
    STATIC_TEXT = 52
    DYNAMIC_TEXT = 78
    VALUABLE_TEXT = 186
    TEXT_SIZE_MAX = 186
    PREFIX_SIZE = 2
    TAG_SIZE = 16
    LABEL_SIZE = 15
    SECRET_SIZE = 32
    BLOCK_SIZE = 16
    SEALED_AT_DYNAMIC = 15      # header 1, kid 2, uid 8, stamp 4
    SEALED_AT_VALUABLE = 23     # and store 4, exp 4
    SEALED_SIZE_DYNAMIC = 16
    SEALED_SIZE_VALUABLE = 12
    KIDS = 65536

# ext.status.OpenStatus; a test holds the two together.
cdef enum:
    OK = 0
    LENGTH = 1
    PREFIX = 2
    ALPHABET = 3
    SPARE_BITS = 4
    HEADER = 5
    KID = 6
    TAG = 7
    SIGNATURE = 8
    UID_SHAPE = 9
    RESERVED = 10
    FAILED = 255                # libcrypto failed: never leaves this file, becomes an exception

cdef const unsigned char *_label_enc = b"pickgate/enc/1:"
cdef const unsigned char *_label_mac = b"pickgate/mac/1:"
cdef const unsigned char *_label_tag = b"pickgate/tag/1:"
cdef const unsigned char *_label_sig = b"pickgate/sig/1:"

if _CLAIMS.itemsize != sizeof(Claims) or [_CLAIMS.fields[name][1] for name in _CLAIMS.names] != [
        0, 1, 2, 4, 6, 8, 16, 20, 24, 28, 32, 36]:
    raise ImportError("ext.claims.CLAIMS and the Claims struct of ext/seal.pxd differ; run `make build`")


cdef inline uint16_t _get16(const unsigned char *p) noexcept nogil:
    return <uint16_t> (p[0] << 8 | p[1])


cdef inline uint32_t _get32(const unsigned char *p) noexcept nogil:
    return <uint32_t> p[0] << 24 | <uint32_t> p[1] << 16 | <uint32_t> p[2] << 8 | p[3]


cdef inline void _put16(unsigned char *p, uint16_t value) noexcept nogil:
    p[0] = <unsigned char> (value >> 8)
    p[1] = <unsigned char> (value & 0xFF)


cdef inline void _put32(unsigned char *p, uint32_t value) noexcept nogil:
    p[0] = <unsigned char> (value >> 24)
    p[1] = <unsigned char> (value >> 16 & 0xFF)
    p[2] = <unsigned char> (value >> 8 & 0xFF)
    p[3] = <unsigned char> (value & 0xFF)


cdef inline size_t _size_of(int version) noexcept nogil:
    if version == STATIC:
        return STATIC_SIZE
    if version == DYNAMIC:
        return DYNAMIC_SIZE
    if version == VALUABLE:
        return VALUABLE_SIZE
    return 0


cdef inline size_t _tag_at(int version) noexcept nogil:
    if version == VALUABLE:
        return VALUABLE_SIZE - SIGNATURE_SIZE - TAG_SIZE
    return _size_of(version) - TAG_SIZE


cdef inline bint _uid_fits(const unsigned char *uid, int version) noexcept nogil:
    """F9: after the partition's 10 bits, the next 21 are all zero in version 1, and never all zero in the others."""
    cdef bint zero = (_get32(uid) & 0x003FFFFE) == 0
    return zero == (version == STATIC)


cdef void _key_free(Key *key) noexcept nogil:
    if key is NULL:
        return
    hmac_free(&key.mac)
    EVP_CIPHER_CTX_free(key.cipher)
    EVP_PKEY_free(key.signer)
    EVP_PKEY_free(key.checker)
    OPENSSL_cleanse(key, sizeof(Key))
    free(key)


cdef Key *_key_new(int version, int suite, uint16_t kid, const unsigned char *secret) noexcept nogil:
    """A key with its derived encryption and MAC keys in place; NULL when libcrypto or the machine has no memory."""
    cdef unsigned char info[LABEL_SIZE + 3]
    cdef unsigned char derived[SECRET_SIZE]
    cdef size_t cipher_key_size = 32 if suite == SUITE_AES else 16
    cdef int good
    cdef Key *key = <Key *> calloc(1, sizeof(Key))
    if key is NULL:
        return NULL
    key.version = version
    key.suite = suite
    info[LABEL_SIZE] = <unsigned char> (version << 4 | suite)
    _put16(info + LABEL_SIZE + 1, kid)

    memcpy(info, _label_mac, LABEL_SIZE)
    good = (hkdf_key(suite, secret, SECRET_SIZE, NULL, 0, info, LABEL_SIZE + 3, derived, SECRET_SIZE) == 0
            and hmac_key(&key.mac, suite, derived, SECRET_SIZE) == 0)

    memcpy(info, _label_enc, LABEL_SIZE)
    key.cipher = EVP_CIPHER_CTX_new()
    good = (good and key.cipher is not NULL
            and hkdf_key(suite, secret, SECRET_SIZE, NULL, 0, info, LABEL_SIZE + 3, derived, cipher_key_size) == 0
            and EVP_EncryptInit_ex2(key.cipher, block_cipher_of(suite), derived, NULL, NULL) == 1
            and EVP_CIPHER_CTX_set_padding(key.cipher, 0) == 1)
    OPENSSL_cleanse(derived, SECRET_SIZE)
    if not good:
        _key_free(key)
        return NULL
    return key


cdef int _crypt(Key *key, const unsigned char *head, unsigned char *sealed, int size) noexcept nogil:
    """Counter mode over at most one block, in place; 0 or -1.

    The initial counter block is uid | stamp | 0, and one block is all that any version seals, so counter mode is here
    one block cipher call on that block: no IV to set, and 8 times (AES) as fast on OpenSSL 3.0 as re-initialising a
    CTR context for each code. head: the payload, whose uid is at 3 and stamp at 11.
    """
    cdef unsigned char stream[BLOCK_SIZE]
    cdef int written = 0
    cdef int i
    memcpy(stream, head + 3, 12)
    memset(stream + 12, 0, 4)
    if EVP_EncryptUpdate(key.cipher, stream, &written, stream, BLOCK_SIZE) != 1 or written != BLOCK_SIZE:
        return -1
    for i in range(size):
        sealed[i] ^= stream[i]
    return 0


cdef int _check(KeyTable table, const unsigned char *payload, size_t size, Claims *row) noexcept nogil:
    """The status of one binary payload; row gets version and suite, and on OK everything else."""
    cdef unsigned char labelled[LABEL_SIZE + PAYLOAD_SIZE_MAX]
    cdef unsigned char *body = labelled + LABEL_SIZE
    cdef unsigned char tag[DIGEST_SIZE]
    cdef unsigned char *sealed
    cdef size_t tag_at
    cdef int version
    cdef int suite
    cdef uint16_t kid
    cdef Key *key
    cdef bint known
    # F1
    if size != STATIC_SIZE and size != DYNAMIC_SIZE and size != VALUABLE_SIZE:
        return LENGTH
    # Our own copy, because the GIL is released and the caller's buffer may be written to meanwhile: what was
    # authenticated must be what is parsed.
    memcpy(body, payload, size)
    # F5
    version = body[0] >> 4
    suite = body[0] & 0x0F
    if _size_of(version) != size or (suite != SUITE_AES and suite != SUITE_SM):
        return HEADER
    row.version = <uint8_t> version
    row.suite = <uint8_t> suite
    # F6. An unknown kid is checked all the same, with a stand-in, so that it takes as long as a wrong tag.
    kid = _get16(body + 1)
    key = table.keys[kid]
    known = key is not NULL and key.version == version and key.suite == suite
    if not known:
        key = table.stand_ins[version][suite]
    # F7
    memcpy(labelled, _label_tag, LABEL_SIZE)
    tag_at = _tag_at(version)
    if hmac_message(&key.mac, key.mac.work, labelled, LABEL_SIZE + tag_at, tag) != 0:
        return FAILED
    if CRYPTO_memcmp(tag, body + tag_at, TAG_SIZE) != 0:
        return TAG if known else KID
    if not known:
        return KID
    # F8
    if version == VALUABLE:
        memcpy(labelled, _label_sig, LABEL_SIZE)
        if not signature_good(suite, key.checker, labelled, LABEL_SIZE + tag_at + TAG_SIZE,
                              body + tag_at + TAG_SIZE):
            return SIGNATURE
    # F9
    if not _uid_fits(body + 3, version):
        return UID_SHAPE
    if version == STATIC:
        row.exp = _get32(body + 11)
    elif version == DYNAMIC:
        sealed = body + SEALED_AT_DYNAMIC
        if _crypt(key, body, sealed, SEALED_SIZE_DYNAMIC) != 0:
            return FAILED
        row.store = _get32(sealed)
        row.exp = _get32(sealed + 4)
        row.item = _get32(sealed + 8)
        row.qty = _get16(sealed + 12)
        row.flags = _get16(sealed + 14)
    else:
        sealed = body + SEALED_AT_VALUABLE
        if _crypt(key, body, sealed, SEALED_SIZE_VALUABLE) != 0:
            return FAILED
        row.store = _get32(body + 15)
        row.exp = _get32(body + 19)
        row.item = _get32(sealed)
        row.qty = _get16(sealed + 4)
        row.flags = _get16(sealed + 6)
        row.amount = _get32(sealed + 8)
    # F10
    if row.flags != 0:
        return RESERVED
    if version != STATIC:
        row.stamp = _get32(body + 11)
    row.kid = kid
    memcpy(row.uid, body + 3, 8)
    return OK


cdef int _settle(int status, Claims *row) noexcept nogil:
    """Write the status; unless it is OK leave nothing in the row that an unauthentic payload said of itself."""
    cdef uint8_t version = row.version
    cdef uint8_t suite = row.suite
    if status == FAILED:
        return -1
    if status != OK:
        memset(row, 0, sizeof(Claims))
        row.version = version
        row.suite = suite
    row.status = <uint8_t> status
    return 0


cdef int _open_one(KeyTable table, const unsigned char *payload, size_t size, Claims *row) noexcept nogil:
    return _settle(_check(table, payload, size, row), row)


cdef int _open_text_one(KeyTable table, const unsigned char *text, size_t size, Claims *row) noexcept nogil:
    cdef unsigned char payload[PAYLOAD_SIZE_MAX]
    cdef size_t payload_size
    cdef int answer
    # F1
    if size == STATIC_TEXT:
        payload_size = STATIC_SIZE
    elif size == DYNAMIC_TEXT:
        payload_size = DYNAMIC_SIZE
    elif size == VALUABLE_TEXT:
        payload_size = VALUABLE_SIZE
    else:
        return _settle(LENGTH, row)
    # F2
    if text[0] != c"P" or text[1] != c"G":
        return _settle(PREFIX, row)
    # F3, F4
    answer = base32_decode(text + PREFIX_SIZE, size - PREFIX_SIZE, payload)
    if answer != BASE32_OK:
        return _settle(ALPHABET if answer == BASE32_ALPHABET else SPARE_BITS, row)
    return _settle(_check(table, payload, payload_size, row), row)


cdef int _seal_one(Key *key, uint16_t kid, const Claims *row, unsigned char *out) noexcept nogil:
    """One payload of the key's version into out; 0 or -1. The row has been checked."""
    cdef unsigned char labelled[LABEL_SIZE + PAYLOAD_SIZE_MAX]
    cdef unsigned char *body = labelled + LABEL_SIZE
    cdef unsigned char tag[DIGEST_SIZE]
    cdef unsigned char *sealed
    cdef size_t tag_at = _tag_at(key.version)
    body[0] = <unsigned char> (key.version << 4 | key.suite)
    _put16(body + 1, kid)
    memcpy(body + 3, row.uid, 8)
    if key.version == STATIC:
        _put32(body + 11, row.exp)
    elif key.version == DYNAMIC:
        _put32(body + 11, row.stamp)
        sealed = body + SEALED_AT_DYNAMIC
        _put32(sealed, row.store)
        _put32(sealed + 4, row.exp)
        _put32(sealed + 8, row.item)
        _put16(sealed + 12, row.qty)
        _put16(sealed + 14, row.flags)
        if _crypt(key, body, sealed, SEALED_SIZE_DYNAMIC) != 0:
            return -1
    else:
        _put32(body + 11, row.stamp)
        _put32(body + 15, row.store)
        _put32(body + 19, row.exp)
        sealed = body + SEALED_AT_VALUABLE
        _put32(sealed, row.item)
        _put16(sealed + 4, row.qty)
        _put16(sealed + 6, row.flags)
        _put32(sealed + 8, row.amount)
        if _crypt(key, body, sealed, SEALED_SIZE_VALUABLE) != 0:
            return -1
    memcpy(labelled, _label_tag, LABEL_SIZE)
    if hmac_message(&key.mac, key.mac.work, labelled, LABEL_SIZE + tag_at, tag) != 0:
        return -1
    memcpy(body + tag_at, tag, TAG_SIZE)
    if key.version == VALUABLE:
        memcpy(labelled, _label_sig, LABEL_SIZE)
        if sign_message(key.suite, key.signer, labelled, LABEL_SIZE + tag_at + TAG_SIZE,
                        body + tag_at + TAG_SIZE) != 0:
            return -1
    memcpy(out, body, _size_of(key.version))
    return 0


cdef int _checked_kid(object kid) except -1:
    cdef object number = operator.index(kid)
    if not 1 <= number < KIDS:
        raise ValueError(f"the kid is {number}, expected 1 to {KIDS - 1}")
    return number


cdef class KeyTable:
    def __cinit__(self):
        cdef unsigned char secret[SECRET_SIZE]
        cdef int version
        cdef int suite
        self.lock = threading.Lock()
        self.keys = <Key **> calloc(KIDS, sizeof(Key *))
        if self.keys is NULL:
            raise MemoryError("no memory for a key table")
        for version in range(STATIC, VALUABLE + 1):
            for suite in range(SUITE_AES, SUITE_SM + 1):
                # Random, so that nobody can make a tag that fits a stand-in.
                if RAND_priv_bytes(secret, SECRET_SIZE) != 1:
                    raise RuntimeError("libcrypto has no randomness")
                self.stand_ins[version][suite] = _key_new(version, suite, 0, secret)
                if self.stand_ins[version][suite] is NULL:
                    raise MemoryError("libcrypto could not key a context")
        OPENSSL_cleanse(secret, SECRET_SIZE)

    def __dealloc__(self):
        cdef int i
        cdef int j
        if self.keys is not NULL:
            for i in range(KIDS):
                _key_free(self.keys[i])
            free(self.keys)
        for i in range(4):
            for j in range(3):
                _key_free(self.stand_ins[i][j])

    def __reduce__(self):
        raise TypeError("a KeyTable holds secrets and is never serialised")

    def __repr__(self):
        return f"<KeyTable of {self.count} keys>"

    def __len__(self):
        return self.count

    def __contains__(self, kid):
        return isinstance(kid, int) and 0 < kid < KIDS and self.keys[<int> kid] is not NULL

    def add(self, kid, version, suite, bytes secret not None, bytes public_key=None, bytes private_key=None):
        cdef int at = _checked_kid(kid)
        cdef int checked = checked_suite(suite)
        cdef Key *key
        if version not in (STATIC, DYNAMIC, VALUABLE):
            raise ValueError(f"no such version: {version!r}; 1, 2 or 3 expected")
        if len(secret) != SECRET_SIZE:
            raise ValueError(f"the secret has {len(secret)} bytes, expected {SECRET_SIZE}")
        if version != VALUABLE and (public_key is not None or private_key is not None):
            raise ValueError(f"version {version} is not signed; only version 3 takes a public or private key")
        if version == VALUABLE and public_key is None:
            if private_key is None:
                raise ValueError("version 3 is signed; a public key, a private key or both are needed")
            public_key = public_of(suite, private_key)
        elif private_key is not None and public_of(suite, private_key) != public_key:
            raise ValueError("the public key is not that of the private key")
        key = _key_new(version, checked, <uint16_t> at, <const unsigned char *> PyBytes_AS_STRING(secret))
        if key is NULL:
            raise MemoryError("libcrypto could not key a context")
        if version == VALUABLE:
            key.checker = public_pkey(checked, <const unsigned char *> PyBytes_AS_STRING(public_key),
                                      len(public_key))
            if private_key is not None:
                key.signer = private_pkey(checked, <const unsigned char *> PyBytes_AS_STRING(private_key))
            if key.checker is NULL or (private_key is not None and key.signer is NULL):
                _key_free(key)
                raise ValueError("the bytes are not a public key of this suite")
        with self.lock:
            if self.keys[at] is not NULL:
                _key_free(key)
                raise ValueError(f"kid {at} is taken; a kid is never used again")
            self.keys[at] = key
            self.count += 1

    def remove(self, kid):
        cdef int at = _checked_kid(kid)
        cdef Key *key
        with self.lock:
            key = self.keys[at]
            if key is NULL:
                raise KeyError(at)
            self.keys[at] = NULL
            self.count -= 1
        _key_free(key)


cdef _check_rows(const Claims *rows, Py_ssize_t n, int version):
    cdef Py_ssize_t i
    for i in range(n):
        if not _uid_fits(rows[i].uid, version):
            raise ValueError(f"claims[{i}]: the uid {bytes(rows[i].uid[:8]).hex()} is not one of version {version}")
        if rows[i].flags != 0:
            raise ValueError(f"claims[{i}]: flags are {rows[i].flags:#06x}, all bits are reserved and must be zero")


cdef bytes _sealed(KeyTable table, object kid, object claims):
    """All payloads, back to back; the size of each is the result's divided by the number of rows."""
    cdef int at = _checked_kid(kid)
    cdef Py_ssize_t n
    cdef Py_ssize_t i
    cdef size_t size
    cdef const Claims *rows
    cdef Key *key
    cdef bytes out
    cdef unsigned char *target
    cdef int good = 1
    if not isinstance(claims, np.ndarray) or claims.dtype != _CLAIMS or claims.ndim != 1:
        raise ValueError("claims must be a one-dimensional array of ext.claims.CLAIMS")
    # A copy: what is checked below must be what is sealed, whatever other threads do to the caller's array.
    cdef bytes copied = claims.tobytes()
    n = claims.shape[0]
    rows = <const Claims *> PyBytes_AS_STRING(copied)
    with table.lock:
        key = table.keys[at]
        if key is NULL:
            raise KeyError(at)
        if key.version == VALUABLE and key.signer is NULL:
            raise ValueError(f"kid {at} has no private key: it opens, and can't seal")
        _check_rows(rows, n, key.version)
        size = _size_of(key.version)
        out = PyBytes_FromStringAndSize(NULL, n * size)
        target = <unsigned char *> PyBytes_AS_STRING(out)
        with nogil:
            for i in range(n):
                if _seal_one(key, <uint16_t> at, rows + i, target + i * size) != 0:
                    good = 0
                    break
    if not good:
        raise MemoryError("libcrypto could not seal")
    return out


def seal_batch(KeyTable keys not None, kid, claims):
    return _sealed(keys, kid, claims)


def seal_text_batch(KeyTable keys not None, kid, claims):
    cdef bytes payloads = _sealed(keys, kid, claims)
    cdef const unsigned char *source = <const unsigned char *> PyBytes_AS_STRING(payloads)
    cdef unsigned char text[TEXT_SIZE_MAX]
    cdef Py_ssize_t n = claims.shape[0]
    cdef Py_ssize_t i
    cdef size_t size
    cdef size_t count
    cdef list out = []
    if n == 0:
        return out
    size = len(payloads) // n
    count = PREFIX_SIZE + (size * 8 + 4) // 5
    text[0] = c"P"
    text[1] = c"G"
    for i in range(n):
        base32_encode(source + i * size, size, text + PREFIX_SIZE)
        out.append(PyUnicode_DecodeASCII(<const char *> text, count, NULL))
    return out


cdef object _opened(KeyTable table, const unsigned char[::1] data, object offsets, bint text):
    cdef const uint64_t[::1] bounds = checked_offsets(offsets, data.shape[0])
    cdef Py_ssize_t n = bounds.shape[0] - 1
    cdef Py_ssize_t i
    cdef unsigned char empty = 0
    cdef const unsigned char *source = &data[0] if data.shape[0] else &empty
    cdef object out = np.zeros(n, dtype=_CLAIMS)
    cdef Py_buffer view
    cdef Claims *rows
    cdef int good = 1
    PyObject_GetBuffer(out, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    try:
        rows = <Claims *> view.buf
        with table.lock:
            with nogil:
                for i in range(n):
                    if (_open_text_one if text else _open_one)(table, source + bounds[i], bounds[i + 1] - bounds[i],
                                                               rows + i) != 0:
                        good = 0
                        break
    finally:
        PyBuffer_Release(&view)
    if not good:
        raise MemoryError("libcrypto could not open")
    return out


def open_batch(KeyTable keys not None, const unsigned char[::1] data not None, offsets):
    return _opened(keys, data, offsets, False)


def open_text_batch(KeyTable keys not None, const unsigned char[::1] text not None, offsets):
    return _opened(keys, text, offsets, True)
