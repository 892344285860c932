"""How an input is changed, with or without a fuzzer that is led by coverage."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, TypeAlias

from google.protobuf.message import DecodeError

from tests.fuzz import messages

Bytes: TypeAlias = Callable[[bytes, int], bytes]
"""Changes bytes somehow; takes them and the length that the result may have."""


def by_bytes(data: bytes, bytes_max: int, draw: Random) -> bytes:
    """Flip, set, insert, remove, repeat: what a fuzzer does, without being led."""
    changed = bytearray(data)
    for _ in range(draw.randrange(1, 5)):
        at = draw.randrange(len(changed) + 1)
        kind = draw.randrange(5)
        if kind == 0 or not changed:
            changed[at:at] = draw.randbytes(draw.randrange(1, 5))
        elif kind == 1:
            del changed[at : at + draw.randrange(1, 5)]
        elif kind == 2:
            changed[at:at] = changed[draw.randrange(len(changed)) :][: draw.randrange(1, 9)]
        elif kind == 3:
            changed[at - 1] ^= 1 << draw.randrange(8)
        else:
            changed[at - 1] = draw.choice((0, 0x7F, 0x80, 0xFF, 0x30, 0x50))
    return bytes(changed[:bytes_max])


def by_fields(
    data: bytes, bytes_max: int, draw: Random, request_class: Callable[[int], Any], otherwise: Bytes
) -> bytes:
    """Change an input that is one byte, the method, and a message of it; now and then only its bytes."""
    if not data or draw.random() < 0.2:
        return otherwise(data, bytes_max)
    number = draw.randrange(256) if draw.random() < 0.05 else data[0]
    kind = request_class(number)
    try:
        message = kind.FromString(data[1:])
    except DecodeError:
        message = kind()
    messages.mutate(message, draw)
    made = bytes([number]) + message.SerializeToString()
    return made if len(made) <= bytes_max else data
