# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""Ciphers, digests, HMAC, HKDF and a keyed PRF, on libcrypto's EVP. See primitives.pyi."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memset

import numpy as np

from ext.libcrypto cimport (
    EVP_CIPHER,
    EVP_CIPHER_CTX,
    EVP_CIPHER_CTX_free,
    EVP_CIPHER_CTX_new,
    EVP_CIPHER_fetch,
    EVP_DigestFinal_ex,
    EVP_DigestInit_ex2,
    EVP_DigestUpdate,
    EVP_EncryptInit_ex2,
    EVP_EncryptUpdate,
    EVP_MD,
    EVP_MD_CTX,
    EVP_MD_CTX_copy_ex,
    EVP_MD_CTX_free,
    EVP_MD_CTX_new,
    EVP_MD_fetch,
    OPENSSL_cleanse,
)

cdef enum:
    # EVP_EncryptUpdate counts in int; more than this in one call would wrap.
    CIPHER_INPUT_MAX = 1 << 30
    HKDF_BLOCKS_MAX = 255     # RFC 5869, section 2.3

# Fetched once: a fetch by name for every message costs more than the message.
cdef EVP_MD *_sha256 = EVP_MD_fetch(NULL, b"SHA2-256", NULL)
cdef EVP_MD *_sm3 = EVP_MD_fetch(NULL, b"SM3", NULL)
cdef EVP_CIPHER *_aes_ctr = EVP_CIPHER_fetch(NULL, b"AES-256-CTR", NULL)
cdef EVP_CIPHER *_sm4_ctr = EVP_CIPHER_fetch(NULL, b"SM4-CTR", NULL)
cdef EVP_CIPHER *_aes_ecb = EVP_CIPHER_fetch(NULL, b"AES-256-ECB", NULL)
cdef EVP_CIPHER *_sm4_ecb = EVP_CIPHER_fetch(NULL, b"SM4-ECB", NULL)
if (_sha256 is NULL or _sm3 is NULL or _aes_ctr is NULL or _sm4_ctr is NULL or _aes_ecb is NULL
        or _sm4_ecb is NULL):
    raise ImportError("this libcrypto lacks AES-256, SM4, SHA-256 or SM3; OpenSSL 3.0 or newer with SM3 and SM4 is needed")


cdef const EVP_MD *digest_of(int suite) noexcept nogil:
    return _sha256 if suite == SUITE_AES else _sm3


cdef const EVP_CIPHER *block_cipher_of(int suite) noexcept nogil:
    return _aes_ecb if suite == SUITE_AES else _sm4_ecb


cdef int _digest(int suite, const unsigned char *message, size_t size, unsigned char *out) noexcept nogil:
    cdef EVP_MD_CTX *work = EVP_MD_CTX_new()
    cdef int good = (work is not NULL and EVP_DigestInit_ex2(work, digest_of(suite), NULL)
                     and EVP_DigestUpdate(work, message, size) and EVP_DigestFinal_ex(work, out, NULL))
    EVP_MD_CTX_free(work)
    return 0 if good else -1


cdef void hmac_free(Hmac *state) noexcept nogil:
    """Free the contexts (libcrypto wipes them) and forget them; harmless on a zeroed state."""
    EVP_MD_CTX_free(state.inner)
    EVP_MD_CTX_free(state.outer)
    EVP_MD_CTX_free(state.work)
    memset(state, 0, sizeof(Hmac))


cdef int hmac_key(Hmac *state, int suite, const unsigned char *key, size_t size) noexcept nogil:
    """Key a state; 0, or -1 (state freed) when libcrypto has no memory. A key over one block is hashed first."""
    cdef unsigned char pad[HASH_BLOCK_SIZE]
    cdef int good
    cdef size_t i
    memset(state, 0, sizeof(Hmac))
    memset(pad, 0, HASH_BLOCK_SIZE)
    if size > HASH_BLOCK_SIZE:
        good = _digest(suite, key, size, pad) == 0
    else:
        if size:      # an empty key may be NULL, which memcpy must not be given even for nothing
            memcpy(pad, key, size)
        good = 1
    state.inner = EVP_MD_CTX_new()
    state.outer = EVP_MD_CTX_new()
    state.work = EVP_MD_CTX_new()
    for i in range(HASH_BLOCK_SIZE):
        pad[i] ^= 0x36
    good = (good and state.inner is not NULL and state.outer is not NULL and state.work is not NULL
            and EVP_DigestInit_ex2(state.inner, digest_of(suite), NULL)
            and EVP_DigestUpdate(state.inner, pad, HASH_BLOCK_SIZE))
    for i in range(HASH_BLOCK_SIZE):
        pad[i] ^= 0x36 ^ 0x5C
    good = (good and EVP_DigestInit_ex2(state.outer, digest_of(suite), NULL)
            and EVP_DigestUpdate(state.outer, pad, HASH_BLOCK_SIZE))
    OPENSSL_cleanse(pad, HASH_BLOCK_SIZE)
    if not good:
        hmac_free(state)
        return -1
    return 0


cdef int hmac_message(const Hmac *state, EVP_MD_CTX *work, const unsigned char *message, size_t size,
                      unsigned char *out) noexcept nogil:
    """32 bytes of HMAC into out; 0, or -1 when libcrypto has no memory. work must belong to the caller alone.

    Copies of the two keyed states: measured on OpenSSL 3.0 cheaper than EVP_MAC with a NULL key (by a quarter) and
    than hashing the padded keys again (SM3: by half).
    """
    cdef unsigned char inner[DIGEST_SIZE]
    if (EVP_MD_CTX_copy_ex(work, state.inner) and EVP_DigestUpdate(work, message, size)
            and EVP_DigestFinal_ex(work, inner, NULL)
            and EVP_MD_CTX_copy_ex(work, state.outer) and EVP_DigestUpdate(work, inner, DIGEST_SIZE)
            and EVP_DigestFinal_ex(work, out, NULL)):
        return 0
    return -1


cdef int _hmac_once(int suite, const unsigned char *key, size_t key_size, const unsigned char *message, size_t size,
                    unsigned char *out) noexcept nogil:
    cdef Hmac state
    cdef int done
    if hmac_key(&state, suite, key, key_size) != 0:
        return -1
    done = hmac_message(&state, state.work, message, size, out)
    hmac_free(&state)
    return done


cdef int hkdf_key(int suite, const unsigned char *secret, size_t secret_size, const unsigned char *salt,
                  size_t salt_size, const unsigned char *info, size_t info_size, unsigned char *out,
                  size_t size) noexcept nogil:
    """HKDF (RFC 5869) with the suite's digest; 0 or -1. size <= 255 * 32 is the caller's duty.

    An empty salt is HMAC's empty key, which is the same as the RFC's string of zeros: HMAC pads its key with zeros.
    """
    cdef unsigned char prk[DIGEST_SIZE]
    cdef unsigned char block[DIGEST_SIZE]
    cdef unsigned char counter = 0
    cdef size_t done = 0
    cdef size_t take
    cdef Hmac state
    cdef int good
    if _hmac_once(suite, salt, salt_size, secret, secret_size, prk) != 0:
        return -1
    good = hmac_key(&state, suite, prk, DIGEST_SIZE) == 0
    while good and done < size:
        counter += 1
        # T(i) = HMAC(PRK, T(i-1) | info | i), section 2.3; streamed, so that info needs no copy.
        good = (EVP_MD_CTX_copy_ex(state.work, state.inner)
                and (counter == 1 or EVP_DigestUpdate(state.work, block, DIGEST_SIZE))
                and EVP_DigestUpdate(state.work, info, info_size) and EVP_DigestUpdate(state.work, &counter, 1)
                and EVP_DigestFinal_ex(state.work, block, NULL)
                and EVP_MD_CTX_copy_ex(state.work, state.outer)
                and EVP_DigestUpdate(state.work, block, DIGEST_SIZE)
                and EVP_DigestFinal_ex(state.work, block, NULL))
        if good:
            take = size - done if size - done < <size_t> DIGEST_SIZE else <size_t> DIGEST_SIZE
            memcpy(out + done, block, take)
            done += take
    OPENSSL_cleanse(prk, DIGEST_SIZE)
    OPENSSL_cleanse(block, DIGEST_SIZE)
    hmac_free(&state)
    return 0 if good else -1


cdef bytes _ctr(const EVP_CIPHER *cipher, size_t key_size, bytes key, bytes iv, bytes data):
    cdef EVP_CIPHER_CTX *ctx
    cdef bytes out
    cdef int good
    cdef int written = 0
    if len(key) != <Py_ssize_t> key_size:
        raise ValueError(f"the key has {len(key)} bytes, expected {key_size}")
    if len(iv) != 16:
        raise ValueError(f"the counter block has {len(iv)} bytes, expected 16")
    if len(data) > CIPHER_INPUT_MAX:
        raise ValueError(f"the data has {len(data)} bytes, at most {CIPHER_INPUT_MAX} fit one call")
    out = PyBytes_FromStringAndSize(NULL, len(data))
    ctx = EVP_CIPHER_CTX_new()
    good = (ctx is not NULL
            and EVP_EncryptInit_ex2(ctx, cipher, <const unsigned char *> PyBytes_AS_STRING(key),
                                    <const unsigned char *> PyBytes_AS_STRING(iv), NULL)
            and EVP_EncryptUpdate(ctx, <unsigned char *> PyBytes_AS_STRING(out), &written,
                                  <const unsigned char *> PyBytes_AS_STRING(data), <int> len(data)))
    EVP_CIPHER_CTX_free(ctx)
    if not good or written != len(data):
        raise MemoryError("libcrypto could not encrypt")
    return out


def aes_256_ctr(bytes key not None, bytes iv not None, bytes data not None):
    return _ctr(_aes_ctr, 32, key, iv, data)


def sm4_ctr(bytes key not None, bytes iv not None, bytes data not None):
    return _ctr(_sm4_ctr, 16, key, iv, data)


cdef bytes _digest_bytes(int suite, bytes message):
    cdef unsigned char out[DIGEST_SIZE]
    if _digest(suite, <const unsigned char *> PyBytes_AS_STRING(message), len(message), out) != 0:
        raise MemoryError("libcrypto could not hash")
    return PyBytes_FromStringAndSize(<char *> out, DIGEST_SIZE)


def sha256(bytes message not None):
    return _digest_bytes(SUITE_AES, message)


def sm3(bytes message not None):
    return _digest_bytes(SUITE_SM, message)


cdef bytes _hmac_bytes(int suite, bytes key, bytes message):
    cdef unsigned char out[DIGEST_SIZE]
    if _hmac_once(suite, <const unsigned char *> PyBytes_AS_STRING(key), len(key),
                  <const unsigned char *> PyBytes_AS_STRING(message), len(message), out) != 0:
        raise MemoryError("libcrypto could not compute an HMAC")
    return PyBytes_FromStringAndSize(<char *> out, DIGEST_SIZE)


def hmac_sha256(bytes key not None, bytes message not None):
    return _hmac_bytes(SUITE_AES, key, message)


def hmac_sm3(bytes key not None, bytes message not None):
    return _hmac_bytes(SUITE_SM, key, message)


cdef int checked_suite(object suite) except -1:
    if suite not in (SUITE_AES, SUITE_SM):
        raise ValueError(f"no such suite: {suite!r}; 1 (AES) or 2 (SM) expected")
    return suite


def hkdf(suite, bytes secret not None, bytes salt not None, bytes info not None, Py_ssize_t size):
    cdef int checked = checked_suite(suite)
    cdef bytes out
    if not 1 <= size <= HKDF_BLOCKS_MAX * DIGEST_SIZE:
        raise ValueError(f"size is {size}, expected 1 to {HKDF_BLOCKS_MAX * DIGEST_SIZE}")
    out = PyBytes_FromStringAndSize(NULL, size)
    if hkdf_key(checked, <const unsigned char *> PyBytes_AS_STRING(secret), len(secret),
                <const unsigned char *> PyBytes_AS_STRING(salt), len(salt),
                <const unsigned char *> PyBytes_AS_STRING(info), len(info),
                <unsigned char *> PyBytes_AS_STRING(out), size) != 0:
        raise MemoryError("libcrypto could not derive a key")
    return out


cdef const uint64_t[::1] checked_offsets(object offsets, size_t size):
    # Always a copy: the kernels read it with the GIL released, and what was checked must be what is used.
    array = np.array(offsets)
    if array.ndim != 1 or array.shape[0] < 1 or array.dtype.kind not in "ui":
        raise ValueError("offsets must be one-dimensional integers, one more than there are items")
    if array.dtype.kind == "i" and array.min() < 0:
        raise ValueError("offsets must not be negative")
    array = array.astype(np.uint64, copy=False)
    cdef const uint64_t[::1] bounds = array
    cdef Py_ssize_t i
    cdef uint64_t before = 0
    for i in range(bounds.shape[0]):
        if bounds[i] < before:
            raise ValueError(f"offsets must not fall: offsets[{i}] is {bounds[i]}, after {before}")
        before = bounds[i]
    if before > size:
        raise ValueError(f"offsets end at {before}, the buffer at {size}")
    return bounds


cdef class Prf:
    cdef Hmac _state
    cdef readonly int suite

    def __cinit__(self, suite, bytes key not None):
        self.suite = checked_suite(suite)
        if len(key) != 32:
            raise ValueError(f"the key has {len(key)} bytes, expected 32")
        if hmac_key(&self._state, self.suite, <const unsigned char *> PyBytes_AS_STRING(key), 32) != 0:
            raise MemoryError("libcrypto could not key an HMAC")

    def __dealloc__(self):
        hmac_free(&self._state)

    def __reduce__(self):
        raise TypeError("a Prf holds a secret and is never serialised")

    def __repr__(self):
        return f"<Prf suite={self.suite}>"

    def one(self, bytes message not None):
        cdef unsigned char out[DIGEST_SIZE]
        # The GIL is held, so the state's own work context is ours alone.
        if hmac_message(&self._state, self._state.work, <const unsigned char *> PyBytes_AS_STRING(message),
                        len(message), out) != 0:
            raise MemoryError("libcrypto could not compute an HMAC")
        return PyBytes_FromStringAndSize(<char *> out, DIGEST_SIZE)

    def batch(self, const unsigned char[::1] messages not None, offsets):
        cdef const uint64_t[::1] bounds = checked_offsets(offsets, messages.shape[0])
        cdef Py_ssize_t n = bounds.shape[0] - 1
        cdef Py_ssize_t i
        cdef bytes out = PyBytes_FromStringAndSize(NULL, n * DIGEST_SIZE)
        cdef unsigned char *target = <unsigned char *> PyBytes_AS_STRING(out)
        cdef unsigned char empty = 0
        cdef const unsigned char *source = &messages[0] if messages.shape[0] else &empty
        cdef int good = 1
        # A work context of its own: other threads may be in one() or batch() while the GIL is away.
        cdef EVP_MD_CTX *work = EVP_MD_CTX_new()
        if work is NULL:
            raise MemoryError("libcrypto could not compute an HMAC")
        with nogil:
            for i in range(n):
                if hmac_message(&self._state, work, source + bounds[i], bounds[i + 1] - bounds[i],
                                target + i * DIGEST_SIZE) != 0:
                    good = 0
                    break
        EVP_MD_CTX_free(work)
        if not good:
            raise MemoryError("libcrypto could not compute an HMAC")
        return out
