"""SM2 public-key encryption (GB/T 32918.4-2016) on the curve of GB/T 32918.5-2017, with SM3: how a terminal is given its secret."""

from typing import Final

SM2_MESSAGE_BYTES_MAX: Final[int]

def sm2_encrypt(public: bytes, message: bytes) -> bytes:
    """Encrypt to a public key: 0x04 | x | y (65 bytes, C1), digest (32, C3), and as many bytes as the message has (C2).

    public: 65 bytes, 0x04 | x | y. message: 1 to SM2_MESSAGE_BYTES_MAX bytes. Others raise ``ValueError``. Fresh each time. Whoever
    decrypts finds out by C3 whether it was changed; who made it, nobody finds out.
    """
