"""Signatures of the issuer: Ed25519 (suite 1) and SM2 with SM3 (suite 2).

Ed25519: RFC 8032, section 5.1 (the plain variant: no context, no prehash). SM2: GB/T 32918.2-2016 on the curve of
GB/T 32918.5-2017, with the signer's identity "1234567812345678" (GM/T 0009-2012, section 10).

Private keys: 32 bytes (Ed25519 seed; SM2 scalar d, big-endian, 1 <= d <= n - 2). Public keys: Ed25519 32 bytes; SM2
65 bytes, 0x04 | x | y. Signatures: 64 bytes (Ed25519 R | S; SM2 r | s, big-endian, 32 bytes each). An unknown suite,
or bytes that are not a key, raise ``ValueError``.
"""

__pyx_capi__: dict[str, object]

def generate(suite: int) -> tuple[bytes, bytes]:
    """A new private key from libcrypto's random generator, and its public key."""

def public_of(suite: int, private: bytes) -> bytes:
    """The public key of a private key."""

def sign(suite: int, private: bytes, message: bytes) -> bytes:
    """A signature of 64 bytes. Ed25519 gives the same one each time, SM2 a fresh one."""

def verify(suite: int, public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the signature is good. One of another length than 64 is not. Never raises for a bad signature."""
