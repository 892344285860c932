"""Keyed HMAC states for other kernels."""

from libc.stddef cimport size_t
from libc.stdint cimport uint64_t

from ext.libcrypto cimport EVP_CIPHER, EVP_MD, EVP_MD_CTX

cdef enum:
    SUITE_AES = 1
    SUITE_SM = 2
    DIGEST_SIZE = 32        # both SHA-256 and SM3
    HASH_BLOCK_SIZE = 64    # both SHA-256 and SM3

# HMAC (RFC 2104) with the two padded keys already hashed: a message costs its own blocks and one more.
# inner and outer are only read once keyed; work is written by every message.
cdef struct Hmac:
    EVP_MD_CTX *inner
    EVP_MD_CTX *outer
    EVP_MD_CTX *work

cdef const EVP_MD *digest_of(int suite) noexcept nogil
cdef const EVP_CIPHER *block_cipher_of(int suite) noexcept nogil
cdef int hmac_key(Hmac *state, int suite, const unsigned char *key, size_t size) noexcept nogil
cdef void hmac_free(Hmac *state) noexcept nogil
cdef int hmac_message(const Hmac *state, EVP_MD_CTX *work, const unsigned char *message, size_t size,
                      unsigned char *out) noexcept nogil
cdef int hkdf_key(int suite, const unsigned char *secret, size_t secret_size, const unsigned char *salt,
                  size_t salt_size, const unsigned char *info, size_t info_size, unsigned char *out,
                  size_t size) noexcept nogil

# What a caller says about itself, checked: a suite, and n + 1 offsets into a buffer of size bytes (copied; n >= 0).
cdef int checked_suite(object suite) except -1
cdef const uint64_t[::1] checked_offsets(object offsets, size_t size)
