# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""SM2 public-key encryption. See sm2.pyi."""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stddef cimport size_t
from libc.string cimport memset

from ext.libcrypto cimport (
    ERR_clear_error,
    EVP_PKEY,
    EVP_PKEY_CTX,
    EVP_PKEY_CTX_free,
    EVP_PKEY_CTX_new_from_pkey,
    EVP_PKEY_encrypt,
    EVP_PKEY_encrypt_init,
    EVP_PKEY_free,
)
from ext.primitives cimport SUITE_SM
from ext.sign cimport public_pkey

cdef enum:
    MESSAGE_SIZE_MAX = 255
    # SEQUENCE of two INTEGERs of at most 33 bytes, an OCTET STRING of 32 and one of the message, with their lengths.
    DER_SIZE_MAX = 512
    DIGEST_SIZE = 32

SM2_MESSAGE_BYTES_MAX = MESSAGE_SIZE_MAX


cdef tuple _element(bytes der, Py_ssize_t at, int tag):
    """Content of the DER element at `at`, of an expected tag, and where it ends; lengths below 65,536."""
    cdef Py_ssize_t size
    if at + 2 > len(der) or der[at] != tag:
        raise RuntimeError("libcrypto gave an SM2 ciphertext of another form than expected")
    size = der[at + 1]
    at += 2
    if size == 0x81:
        size = der[at]
        at += 1
    elif size == 0x82:
        size = der[at] << 8 | der[at + 1]
        at += 2
    elif size > 0x7F:
        raise RuntimeError("libcrypto gave an SM2 ciphertext of another form than expected")
    if at + size > len(der):
        raise RuntimeError("libcrypto gave an SM2 ciphertext of another form than expected")
    return der[at:at + size], at + size


def sm2_encrypt(bytes public not None, bytes message not None):
    cdef unsigned char made[DER_SIZE_MAX]
    cdef size_t size = DER_SIZE_MAX
    cdef const unsigned char *data = <const unsigned char *> PyBytes_AS_STRING(message)
    cdef size_t data_size = len(message)
    cdef EVP_PKEY *pkey
    cdef EVP_PKEY_CTX *ctx = NULL
    cdef int good
    if not 1 <= len(message) <= MESSAGE_SIZE_MAX:
        raise ValueError(f"the message has {len(message)} bytes, expected 1 to {MESSAGE_SIZE_MAX}")
    pkey = public_pkey(SUITE_SM, <const unsigned char *> PyBytes_AS_STRING(public), len(public))
    if pkey is NULL:
        raise ValueError("the bytes are not an SM2 public key: 65 bytes, 0x04 | x | y, on the curve")
    memset(made, 0, DER_SIZE_MAX)
    with nogil:
        ctx = EVP_PKEY_CTX_new_from_pkey(NULL, pkey, NULL)
        good = (ctx is not NULL and EVP_PKEY_encrypt_init(ctx) == 1
                and EVP_PKEY_encrypt(ctx, made, &size, data, data_size) == 1)
        EVP_PKEY_CTX_free(ctx)
        EVP_PKEY_free(pkey)
        if not good:
            ERR_clear_error()
    if not good:
        raise MemoryError("libcrypto could not encrypt")
    body, _ = _element(made[:size], 0, 0x30)
    x, at = _element(body, 0, 0x02)
    y, at = _element(body, at, 0x02)
    digest, at = _element(body, at, 0x04)
    cipher, at = _element(body, at, 0x04)
    if len(digest) != DIGEST_SIZE or len(cipher) != len(message) or at != len(body):
        raise RuntimeError("libcrypto gave an SM2 ciphertext of another form than expected")
    return (b"\x04" + int.from_bytes(x, "big").to_bytes(32, "big") + int.from_bytes(y, "big").to_bytes(32, "big")
            + digest + cipher)
