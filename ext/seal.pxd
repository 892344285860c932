"""The key table and the layout of one code, for other kernels."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from ext.libcrypto cimport EVP_CIPHER_CTX, EVP_PKEY
from ext.primitives cimport Hmac

# A row of ext.claims.CLAIMS; seal.pyx checks at import that the two agree.
cdef struct Claims:
    uint8_t status
    uint8_t version
    uint8_t suite
    uint8_t unused
    uint16_t kid
    uint16_t qty
    uint8_t uid[8]
    uint32_t stamp
    uint32_t exp
    uint32_t store
    uint32_t item
    uint32_t amount
    uint16_t flags
    uint16_t unused_too

# One key, its contexts keyed once. signer and checker only for version 3; signer NULL where only opening is done.
cdef struct Key:
    int version
    int suite
    Hmac mac
    EVP_CIPHER_CTX *cipher
    EVP_PKEY *signer
    EVP_PKEY *checker

cdef class KeyTable:
    cdef Key **keys               # 65,536 pointers, by kid; NULL where there is none
    cdef Key *stand_ins[4][3]     # by version and suite: what an unknown kid is checked with
    cdef object lock              # held for the whole of every batch: contexts are written by use
    cdef Py_ssize_t count
