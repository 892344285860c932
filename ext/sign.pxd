"""Keys of libcrypto and signatures with them, for other kernels."""

from libc.stddef cimport size_t

from ext.libcrypto cimport EVP_PKEY

cdef enum:
    PRIVATE_SIZE = 32
    ED25519_PUBLIC_SIZE = 32
    SM2_PUBLIC_SIZE = 65
    PUBLIC_SIZE_MAX = 65
    SIGNATURE_SIZE = 64

# NULL when the bytes are not a key. The caller frees.
cdef EVP_PKEY *private_pkey(int suite, const unsigned char *private) noexcept nogil
cdef EVP_PKEY *public_pkey(int suite, const unsigned char *public, size_t size) noexcept nogil
# 0, or -1 when libcrypto fails.
cdef int sign_message(int suite, EVP_PKEY *pkey, const unsigned char *message, size_t size,
                      unsigned char *signature) noexcept nogil
# True for a good signature, False for a bad one or when libcrypto fails: a doubt is never a yes.
cdef bint signature_good(int suite, EVP_PKEY *pkey, const unsigned char *message, size_t size,
                         const unsigned char *signature) noexcept nogil
