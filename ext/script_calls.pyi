"""Rows of bytes into script calls as the store reads them, and the calls' keys found from the rows themselves.

Source: the Redis serialization protocol, arrays of bulk strings, https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

from collections.abc import Sequence
from typing import final

KINDS: tuple[str, ...]
"""What a pointer's key is named by: see Pointers."""
POINTERS_MAX: int
"""Pointers of a row."""

@final
class Pointers:
    """Which keys the rows of a script name, and where in a row the key's place among KEYS is to be written.

    row_bytes: a row's fixed part; a row may be longer.
    bucket_mask: what a bucket's number is cut with.
    pointers: (place_at, kind, source_at, letter) each. place_at: where the place is written, two bytes, big-endian. letter: one byte
        behind the partition's prefix. kind, what follows the letter:
        "bucket": the big-endian 32 bits at source_at, cut by the mask, in hexadecimal;
        "bucket?": the same, but where the 12 bytes at source_at are all zero there is no key, and the place is 1;
        "pair": the two big-endian 32-bit numbers at source_at in decimal, a colon between them;
        "number": the number that `script_call` is given, in decimal.
    Anything else raises ``ValueError``.
    """

    def __init__(
        self, row_bytes: int, bucket_mask: int, pointers: Sequence[tuple[int, str, int, bytes]]
    ) -> None: ...

def group_rows(rows: Sequence[bytes], group_max: int) -> list[tuple[int, list[int]]]:
    """Rows by partition (the upper 10 bits of a row), in the order of their first rows; group_max at most in one.

    Gives partition and numbers of rows, which keep their order. Raises ``ValueError`` for a row of less than two bytes.
    """

def script_call(
    pointers: Pointers,
    sha: bytes,
    prefix: bytes,
    own_keys: Sequence[bytes],
    number: int,
    args: Sequence[bytes],
    rows: Sequence[bytes],
) -> bytes:
    """One EVALSHA as the store reads it: own_keys, then each key that a row names, once; args, then the rows with their places.

    prefix: of the partition's keys. number: 0 or more. Raises ``ValueError`` for a row shorter than its fixed part, and when there
    are more than 65,535 keys.
    """
