"""The codec that this process uses: the kernels, or their twin when ``PICKGATE_PURE=1`` (see :mod:`ext`).

The functions and classes are documented in ``ext/*.pyi``. Import from here, not from a kernel, except in tests that
compare the two.
"""

from typing import TYPE_CHECKING

from ext import PURE
from ext.claims import CLAIMS, PAYLOAD_SIZE, TEXT_SIZE, Suite, Version, pack
from ext.status import OpenStatus

if TYPE_CHECKING or not PURE:
    try:
        from ext.base32 import decode, decode_batch, encode, encode_batch
        from ext.primitives import Prf, aes_256_ctr, hkdf, hmac_sha256, hmac_sm3, sha256, sm3, sm4_ctr
        from ext.seal import KeyTable, open_batch, open_text_batch, seal_batch, seal_text_batch
        from ext.sign import generate, public_of, sign, verify
        from ext.sm2 import sm2_encrypt
    except ImportError as missing:
        raise ImportError(
            f"a kernel is not built or not loadable ({missing}): run `make build`, "
            "or set PICKGATE_PURE=1 to use the slow pure Python twin"
        ) from missing
else:
    from ext.reference import (
        KeyTable,
        Prf,
        aes_256_ctr,
        decode,
        decode_batch,
        encode,
        encode_batch,
        generate,
        hkdf,
        hmac_sha256,
        hmac_sm3,
        open_batch,
        open_text_batch,
        public_of,
        seal_batch,
        seal_text_batch,
        sha256,
        sign,
        sm2_encrypt,
        sm3,
        sm4_ctr,
        verify,
    )

__all__ = [
    "CLAIMS",
    "PAYLOAD_SIZE",
    "TEXT_SIZE",
    "KeyTable",
    "OpenStatus",
    "Prf",
    "Suite",
    "Version",
    "aes_256_ctr",
    "decode",
    "decode_batch",
    "encode",
    "encode_batch",
    "generate",
    "hkdf",
    "hmac_sha256",
    "hmac_sm3",
    "open_batch",
    "open_text_batch",
    "pack",
    "public_of",
    "seal_batch",
    "seal_text_batch",
    "sha256",
    "sign",
    "sm2_encrypt",
    "sm3",
    "sm4_ctr",
    "verify",
]
