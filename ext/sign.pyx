# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""Ed25519, and SM2 with SM3, on libcrypto's EVP. See sign.pyi."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.string cimport memcmp, memcpy, memset

from ext.libcrypto cimport (
    BIGNUM,
    EC_GROUP,
    EC_POINT,
    EVP_MD_CTX,
    EVP_PKEY,
    EVP_PKEY_CTX,
    EVP_PKEY_ED25519,
    EVP_PKEY_KEYPAIR,
    EVP_PKEY_PUBLIC_KEY,
    NID_sm2,
    OSSL_PARAM,
    OSSL_PARAM_BLD,
    POINT_CONVERSION_UNCOMPRESSED,
    BN_bin2bn,
    BN_clear_free,
    EC_GROUP_free,
    EC_GROUP_new_by_curve_name,
    EC_POINT_free,
    EC_POINT_mul,
    EC_POINT_new,
    EC_POINT_point2oct,
    ERR_clear_error,
    EVP_DigestSign,
    EVP_DigestSignInit_ex,
    EVP_DigestVerify,
    EVP_DigestVerifyInit_ex,
    EVP_MD_CTX_free,
    EVP_MD_CTX_new,
    EVP_PKEY_CTX_free,
    EVP_PKEY_CTX_new_from_name,
    EVP_PKEY_CTX_set1_id,
    EVP_PKEY_free,
    EVP_PKEY_fromdata,
    EVP_PKEY_fromdata_init,
    EVP_PKEY_get_raw_public_key,
    EVP_PKEY_new_raw_private_key,
    EVP_PKEY_new_raw_public_key,
    OPENSSL_cleanse,
    OSSL_PARAM_BLD_free,
    OSSL_PARAM_BLD_new,
    OSSL_PARAM_BLD_push_BN,
    OSSL_PARAM_BLD_push_octet_string,
    OSSL_PARAM_BLD_push_utf8_string,
    OSSL_PARAM_BLD_to_param,
    OSSL_PARAM_free,
    RAND_priv_bytes,
)
from ext.primitives cimport SUITE_AES, checked_suite

cdef enum:
    # SEQUENCE of two INTEGERs of at most 33 bytes each: 2 + 2 * (2 + 33).
    DER_SIZE_MAX = 72
    # RAND_priv_bytes falls outside the range of SM2 private keys about once in 2**32.
    DRAWS_MAX = 128

# The identity that GM/T 0009-2012, section 10, gives to signers who agreed on none.
cdef const char *_sm2_id = b"1234567812345678"
# n - 2, the largest private key (GB/T 32918.1-2016, section 6.1; n from GB/T 32918.5-2017).
cdef const unsigned char *_sm2_private_max = (
    b"\xff\xff\xff\xfe\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"
    b"\x72\x03\xdf\x6b\x21\xc6\x05\x2b\x53\xbb\xf4\x09\x39\xd5\x41\x21")


cdef bint _sm2_private_in_range(const unsigned char *private) noexcept nogil:
    """1 <= d <= n - 2. Not constant-time: it tells one of 2**32 keys from the rest, at key set-up only."""
    cdef unsigned char seen = 0
    cdef int i
    for i in range(PRIVATE_SIZE):
        seen |= private[i]
    return seen != 0 and memcmp(private, _sm2_private_max, PRIVATE_SIZE) <= 0


cdef int _sm2_public_of(const unsigned char *private, unsigned char *public) noexcept nogil:
    """65 bytes of the uncompressed point d * G; 0 or -1."""
    cdef EC_GROUP *group = EC_GROUP_new_by_curve_name(NID_sm2)
    cdef EC_POINT *point = NULL
    cdef BIGNUM *scalar = NULL
    cdef int good = 0
    if group is not NULL:
        point = EC_POINT_new(group)
        scalar = BN_bin2bn(private, PRIVATE_SIZE, NULL)
        good = (point is not NULL and scalar is not NULL and EC_POINT_mul(group, point, scalar, NULL, NULL, NULL)
                and EC_POINT_point2oct(group, point, POINT_CONVERSION_UNCOMPRESSED, public, SM2_PUBLIC_SIZE,
                                       NULL) == SM2_PUBLIC_SIZE)
    BN_clear_free(scalar)
    EC_POINT_free(point)
    EC_GROUP_free(group)
    return 0 if good else -1


cdef EVP_PKEY *_sm2_pkey(const unsigned char *public, const unsigned char *private) noexcept nogil:
    """A key from its public point (65 bytes, checked to be on the curve) and, unless NULL, its private scalar."""
    cdef OSSL_PARAM_BLD *build = OSSL_PARAM_BLD_new()
    cdef OSSL_PARAM *params = NULL
    cdef BIGNUM *scalar = NULL
    cdef EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_name(NULL, b"SM2", NULL)
    cdef EVP_PKEY *pkey = NULL
    cdef int good
    good = (build is not NULL and ctx is not NULL
            and OSSL_PARAM_BLD_push_utf8_string(build, b"group", b"SM2", 0)
            and OSSL_PARAM_BLD_push_octet_string(build, b"pub", public, SM2_PUBLIC_SIZE))
    if good and private is not NULL:
        scalar = BN_bin2bn(private, PRIVATE_SIZE, NULL)
        good = scalar is not NULL and OSSL_PARAM_BLD_push_BN(build, b"priv", scalar)
    if good:
        params = OSSL_PARAM_BLD_to_param(build)
        good = (params is not NULL and EVP_PKEY_fromdata_init(ctx) == 1
                and EVP_PKEY_fromdata(ctx, &pkey, EVP_PKEY_PUBLIC_KEY if private is NULL else EVP_PKEY_KEYPAIR,
                                      params) == 1)
    if not good:
        EVP_PKEY_free(pkey)
        pkey = NULL
        ERR_clear_error()
    OSSL_PARAM_free(params)
    OSSL_PARAM_BLD_free(build)
    BN_clear_free(scalar)
    EVP_PKEY_CTX_free(ctx)
    return pkey


cdef EVP_PKEY *private_pkey(int suite, const unsigned char *private) noexcept nogil:
    cdef unsigned char public[SM2_PUBLIC_SIZE]
    cdef EVP_PKEY *pkey
    if suite == SUITE_AES:
        pkey = EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, private, PRIVATE_SIZE)
        if pkey is NULL:
            ERR_clear_error()
        return pkey
    if not _sm2_private_in_range(private) or _sm2_public_of(private, public) != 0:
        ERR_clear_error()
        return NULL
    return _sm2_pkey(public, private)


cdef EVP_PKEY *public_pkey(int suite, const unsigned char *public, size_t size) noexcept nogil:
    cdef EVP_PKEY *pkey
    if suite == SUITE_AES:
        if size != ED25519_PUBLIC_SIZE:
            return NULL
        pkey = EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, NULL, public, size)
        if pkey is NULL:
            ERR_clear_error()
        return pkey
    # 0x04: uncompressed. The other forms of a point would be other spellings of the same key.
    if size != SM2_PUBLIC_SIZE or public[0] != 0x04:
        return NULL
    return _sm2_pkey(public, NULL)


cdef size_t _der_integer(const unsigned char *number, unsigned char *out) noexcept nogil:
    """A 32-byte big-endian number as a DER INTEGER: no needless zeros, one zero before a set top bit."""
    cdef size_t skip = 0
    cdef size_t pad
    while skip < 31 and number[skip] == 0:
        skip += 1
    pad = 1 if number[skip] & 0x80 else 0
    out[0] = 0x02
    out[1] = <unsigned char> (32 - skip + pad)
    out[2] = 0
    memcpy(out + 2 + pad, number + skip, 32 - skip)
    return 2 + pad + 32 - skip


cdef size_t _der_of_raw(const unsigned char *raw, unsigned char *der) noexcept nogil:
    cdef size_t size = _der_integer(raw, der + 2)
    size += _der_integer(raw + 32, der + 2 + size)
    der[0] = 0x30
    der[1] = <unsigned char> size
    return 2 + size


cdef int _raw_of_der(const unsigned char *der, size_t size, unsigned char *raw) noexcept nogil:
    """r | s of what libcrypto just made; 0 or -1. Every length is checked all the same: it is a memory copy."""
    cdef size_t at = 2
    cdef size_t length
    cdef int i
    memset(raw, 0, SIGNATURE_SIZE)
    if size < 2 or der[0] != 0x30 or der[1] != size - 2:
        return -1
    for i in range(2):
        if at + 2 > size or der[at] != 0x02:
            return -1
        length = der[at + 1]
        at += 2
        if length < 1 or at + length > size:
            return -1
        if der[at] == 0 and length > 1:
            at += 1
            length -= 1
        if length > 32:
            return -1
        memcpy(raw + 32 * i + 32 - length, der + at, length)
        at += length
    return 0 if at == size else -1


cdef int sign_message(int suite, EVP_PKEY *pkey, const unsigned char *message, size_t size,
                      unsigned char *signature) noexcept nogil:
    cdef unsigned char der[DER_SIZE_MAX]
    cdef size_t made = DER_SIZE_MAX
    cdef EVP_PKEY_CTX *owned_by_ctx = NULL
    cdef EVP_MD_CTX *ctx = EVP_MD_CTX_new()
    cdef int good = ctx is not NULL
    if suite == SUITE_AES:
        made = SIGNATURE_SIZE
        good = (good and EVP_DigestSignInit_ex(ctx, NULL, NULL, NULL, NULL, pkey, NULL) == 1
                and EVP_DigestSign(ctx, signature, &made, message, size) == 1 and made == SIGNATURE_SIZE)
    else:
        good = (good and EVP_DigestSignInit_ex(ctx, &owned_by_ctx, b"SM3", NULL, NULL, pkey, NULL) == 1
                and EVP_PKEY_CTX_set1_id(owned_by_ctx, _sm2_id, 16) == 1
                and EVP_DigestSign(ctx, der, &made, message, size) == 1
                and _raw_of_der(der, made, signature) == 0)
    EVP_MD_CTX_free(ctx)
    if not good:
        ERR_clear_error()
        return -1
    return 0


cdef bint signature_good(int suite, EVP_PKEY *pkey, const unsigned char *message, size_t size,
                         const unsigned char *signature) noexcept nogil:
    cdef unsigned char der[DER_SIZE_MAX]
    cdef EVP_PKEY_CTX *owned_by_ctx = NULL
    cdef EVP_MD_CTX *ctx = EVP_MD_CTX_new()
    cdef bint good = ctx is not NULL
    if suite == SUITE_AES:
        good = (good and EVP_DigestVerifyInit_ex(ctx, NULL, NULL, NULL, NULL, pkey, NULL) == 1
                and EVP_DigestVerify(ctx, signature, SIGNATURE_SIZE, message, size) == 1)
    else:
        good = (good and EVP_DigestVerifyInit_ex(ctx, &owned_by_ctx, b"SM3", NULL, NULL, pkey, NULL) == 1
                and EVP_PKEY_CTX_set1_id(owned_by_ctx, _sm2_id, 16) == 1
                and EVP_DigestVerify(ctx, der, _der_of_raw(signature, der), message, size) == 1)
    EVP_MD_CTX_free(ctx)
    if not good:
        # A refused signature leaves entries in the thread's error queue, which the ssl module would take for its own.
        ERR_clear_error()
    return good


cdef EVP_PKEY *_checked_private(int suite, bytes private) except NULL:
    cdef EVP_PKEY *pkey
    if len(private) != PRIVATE_SIZE:
        raise ValueError(f"the private key has {len(private)} bytes, expected {PRIVATE_SIZE}")
    pkey = private_pkey(suite, <const unsigned char *> PyBytes_AS_STRING(private))
    if pkey is NULL:
        raise ValueError("the bytes are not a private key of this suite")
    return pkey


cdef bytes _public_bytes(int suite, bytes private):
    cdef unsigned char public[PUBLIC_SIZE_MAX]
    cdef size_t size = ED25519_PUBLIC_SIZE
    cdef EVP_PKEY *pkey = _checked_private(suite, private)
    cdef int good
    if suite == SUITE_AES:
        good = EVP_PKEY_get_raw_public_key(pkey, public, &size)
    else:
        size = SM2_PUBLIC_SIZE
        good = _sm2_public_of(<const unsigned char *> PyBytes_AS_STRING(private), public) == 0
    EVP_PKEY_free(pkey)
    if not good:
        raise MemoryError("libcrypto could not compute a public key")
    return PyBytes_FromStringAndSize(<char *> public, size)


def generate(suite):
    cdef int checked = checked_suite(suite)
    cdef unsigned char private[PRIVATE_SIZE]
    cdef bytes made = None
    cdef int i
    for i in range(DRAWS_MAX):
        if RAND_priv_bytes(private, PRIVATE_SIZE) != 1:
            break
        if checked == SUITE_AES or _sm2_private_in_range(private):
            made = PyBytes_FromStringAndSize(<char *> private, PRIVATE_SIZE)
            break
    OPENSSL_cleanse(private, PRIVATE_SIZE)
    if made is None:
        raise RuntimeError("libcrypto has no randomness for a private key")
    return made, _public_bytes(checked, made)


def public_of(suite, bytes private not None):
    return _public_bytes(checked_suite(suite), private)


def sign(suite, bytes private not None, bytes message not None):
    cdef int checked = checked_suite(suite)
    cdef unsigned char signature[SIGNATURE_SIZE]
    cdef EVP_PKEY *pkey = _checked_private(checked, private)
    cdef int done
    cdef const unsigned char *data = <const unsigned char *> PyBytes_AS_STRING(message)
    cdef size_t size = len(message)
    with nogil:
        done = sign_message(checked, pkey, data, size, signature)
        EVP_PKEY_free(pkey)
    if done != 0:
        raise MemoryError("libcrypto could not sign")
    return PyBytes_FromStringAndSize(<char *> signature, SIGNATURE_SIZE)


def verify(suite, bytes public not None, bytes message not None, bytes signature not None):
    cdef int checked = checked_suite(suite)
    cdef EVP_PKEY *pkey
    cdef bint good
    cdef const unsigned char *data = <const unsigned char *> PyBytes_AS_STRING(message)
    cdef const unsigned char *proof = <const unsigned char *> PyBytes_AS_STRING(signature)
    cdef size_t size = len(message)
    pkey = public_pkey(checked, <const unsigned char *> PyBytes_AS_STRING(public), len(public))
    if pkey is NULL:
        raise ValueError("the bytes are not a public key of this suite")
    if len(signature) != SIGNATURE_SIZE:
        EVP_PKEY_free(pkey)
        return False
    with nogil:
        good = signature_good(checked, pkey, data, size, proof)
        EVP_PKEY_free(pkey)
    return bool(good)
