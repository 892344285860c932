"""What is derived rather than stored: a code's uid, its typed serial and its PIN.

The formulas are those of docs/format.md, sections "The uid", "The typed form" and "The PIN". Everything is a pure
function of a keyed PRF (:class:`ext.codec.Prf`) and its arguments; the three uses take three different keys.
"""

import hmac
import re
from collections.abc import Sequence
from typing import Final

from ext.codec import Prf, Version

UID_SIZE: Final = 8
PARTITION_BITS: Final = 10
PARTITION_MAX: Final = 2**PARTITION_BITS - 1
BODY_BITS: Final = 54
"""Bits of a uid below its partition."""
TYPED_BITS: Final = 33
"""Bits of them that a version 1 uid has, so that partition and these fit 13 decimal digits."""
REQUEST_ID_BYTES_MAX: Final = 255
GENERATION_MAX: Final = 255
TYPED_KEYS_MAX: Final = 2
"""Generations of a serial key that may be in use at once: the one place where more than one key is tried."""

_SERIAL_END: Final = 2 ** (PARTITION_BITS + TYPED_BITS)
_BODY_MASK: Final = 2**BODY_BITS - 1
_TYPED_MASK: Final = 2**TYPED_BITS - 1

LABEL_UID: Final = b"pickgate/uid/1:"
LABEL_SERIAL: Final = b"pickgate/serial/1:"
LABEL_PIN: Final = b"pickgate/pin/1:"

# [0-9] and not \d, which also matches the digits of other scripts.
_TYPED: Final = re.compile(r"[0-9]{16}|[0-9]{4}(?: [0-9]{4}){3}|[0-9]{4}(?:-[0-9]{4}){3}")


def uid_candidates(
    prf: Prf, mall_id: int, request_id: bytes, version: int, partition: int
) -> tuple[bytes, ...]:
    """The four uids, 8 bytes each, that a request to issue may get: the first that is free is the one.

    The same request always has the same four, which is how a retry finds the record that the first try made. mall_id:
    uint32. request_id: 1 to 255 bytes. version: 1, 2 or 3. partition: 0 to 1023, the first ten bits of every uid.
    Raises ``ValueError`` outside these. Two of the four may be equal (about once in 2**31 for version 1).
    """
    if not 0 <= mall_id < 2**32:
        raise ValueError(f"the mall id is {mall_id}, expected 0 to {2**32 - 1}")
    if not 1 <= len(request_id) <= REQUEST_ID_BYTES_MAX:
        raise ValueError(f"the request id has {len(request_id)} bytes, expected 1 to {REQUEST_ID_BYTES_MAX}")
    if version not in (Version.STATIC, Version.DYNAMIC, Version.VALUABLE):
        raise ValueError(f"no such version: {version!r}; 1, 2 or 3 expected")
    if not 0 <= partition <= PARTITION_MAX:
        raise ValueError(f"the partition is {partition}, expected 0 to {PARTITION_MAX}")
    drawn = prf.one(
        LABEL_UID + mall_id.to_bytes(4) + len(request_id).to_bytes(1) + request_id + int(version).to_bytes(1)
    )
    return tuple(
        _uid(int.from_bytes(drawn[at : at + UID_SIZE]), version, partition)
        for at in range(0, len(drawn), UID_SIZE)
    )


def _uid(drawn: int, version: int, partition: int) -> bytes:
    if version == Version.STATIC:
        body = drawn & _TYPED_MASK
    else:
        body = drawn & _BODY_MASK
        # The bits that version 1 leaves zero must not all be zero here: that is how the two are told apart.
        if body <= _TYPED_MASK:
            body |= 1 << TYPED_BITS
    return (partition << BODY_BITS | body).to_bytes(UID_SIZE)


def typed_of(uid: bytes, prf: Prf) -> str:
    """The typed form of a version 1 uid, "1234 5678 9012 3456": 13 digits of serial, 3 keyed check digits.

    prf: the serial key's. Raises ``ValueError`` if the uid is not 8 bytes or not one of version 1.
    """
    if len(uid) != UID_SIZE:
        raise ValueError(f"the uid has {len(uid)} bytes, expected {UID_SIZE}")
    number = int.from_bytes(uid)
    body = number & _BODY_MASK
    if body > _TYPED_MASK:
        raise ValueError(f"the uid {uid.hex()} is not one of version 1: it has no typed form")
    serial = number >> BODY_BITS << TYPED_BITS | body
    digits = f"{serial:013d}{_check_digits(serial, prf)}"
    return " ".join(digits[at : at + 4] for at in range(0, 16, 4))


def uid_of_typed(text: str, prfs: Sequence[Prf]) -> bytes | None:
    """The uid that a typed form stands for, or None for everything that :func:`typed_of` didn't make.

    text: exactly 16 digits, or four groups of four joined by single spaces or by single hyphens. prfs: the serial
    keys in use, one or two, else ``ValueError``. Each of them is computed whether or not one before it agreed, and one
    answer covers every way to be wrong.
    """
    if not 1 <= len(prfs) <= TYPED_KEYS_MAX:
        raise ValueError(f"{len(prfs)} serial keys, expected 1 to {TYPED_KEYS_MAX}")
    if _TYPED.fullmatch(text) is None:
        return None
    digits = text.replace(" ", "").replace("-", "")
    serial = int(digits[:13])
    if serial >= _SERIAL_END:
        return None
    genuine = False
    for prf in prfs:
        genuine |= hmac.compare_digest(digits[13:], _check_digits(serial, prf))
    if not genuine:
        return None
    return (serial >> TYPED_BITS << BODY_BITS | serial & _TYPED_MASK).to_bytes(UID_SIZE)


def _check_digits(serial: int, prf: Prf) -> str:
    return f"{int.from_bytes(prf.one(LABEL_SERIAL + serial.to_bytes(8))[:8]) % 1000:03d}"


def pin_of(prf: Prf, uid: bytes, generation: int) -> str:
    """The PIN of a code, six digits. prf: the PIN key's. uid: 8 bytes. generation: 0 to 255, else ``ValueError``.

    A new generation is a new PIN; the old one is then wrong.
    """
    if len(uid) != UID_SIZE:
        raise ValueError(f"the uid has {len(uid)} bytes, expected {UID_SIZE}")
    if not 0 <= generation <= GENERATION_MAX:
        raise ValueError(f"the generation is {generation}, expected 0 to {GENERATION_MAX}")
    return f"{int.from_bytes(prf.one(LABEL_PIN + uid + generation.to_bytes(1))[:8]) % 10**6:06d}"
