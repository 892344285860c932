"""What the redeem script answered, into protobuf messages as the wire has them.

Source: the encoding of protocol buffers, https://protobuf.dev/programming-guides/encoding/
"""

from collections.abc import Mapping, Sequence
from typing import final

OFFSETS: tuple[str, ...]
"""Fields of an answer that `Answers` must be told the places of."""
FIELDS: tuple[str, ...]
"""Fields of a message that it can write, in the order in which it writes them."""

@final
class Answers:
    """Writes the answers of one method.

    offsets: where each field of an answer begins, in bytes behind its first (which says what kind it is: ``A`` decided now, ``R``
        remembered). Every name of OFFSETS, others are not looked at; the sizes are those of layouts.REDEEM_ANSWER: verdict, cycle,
        flavour, flags, bucket, n_lines and order_len one byte, epoch, terminal, sku, store and exp four, at and seq six, all
        big-endian.
    answer_bytes: of the fixed part; behind it n_lines lines (SKU four bytes, count two, left two) and the order id.
    fields: number of each field of the message that is to be written, by a name of FIELDS. An absent one is not written. Fields are
        written in the order of FIELDS, which the numbers must follow.
    begun: what a message of a verdict begins with, by the verdict's number: 0 to 255.
    bucket_unknown: the distance bucket that is not written.
    static_version: the version of a code (the upper half of flavour) that needs a PIN. proof_flag: the bit of flags that says that a
        proof is needed.

    A field is written when it says something: a number that is not 0, a text that is not empty. Anything else raises ``ValueError``.
    """

    def __init__(
        self,
        offsets: Mapping[str, int],
        answer_bytes: int,
        fields: Mapping[str, int],
        begun: Mapping[int, bytes],
        *,
        bucket_unknown: int,
        static_version: int,
        proof_flag: int,
    ) -> None: ...
    def write(
        self,
        answers: Sequence[object],
        uids: Sequence[bytes],
        request_ids: Sequence[bytes],
        stores: Mapping[int, bytes],
    ) -> list[bytes | None]:
        """The message for each answer; None where there is none: no bytes, another kind, a verdict that nothing begins, cut off.

        uids: 8 bytes each, or more, whose first 8 count. request_ids: as many, or none when the message has no such field. stores:
        what is written for a store's id, fields of its own; asked for every message, 0 included. Raises ``ValueError`` when there
        are not as many of each, and for a uid that is shorter.
        """
