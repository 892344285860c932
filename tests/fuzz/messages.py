"""Mutations of protobuf messages by their fields: bytes turned at random are hardly ever a message."""

from __future__ import annotations

import random
import string
from typing import Any, Final, TypeAlias

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tests.engine.shop import BUNDLE, FAR_STORE, MALL, NEIGHBOUR, SKUS, START_MS, STORE
from tests.engine.sm_terminals import PUBLIC

# A FieldDescriptor: two classes, by the library's implementation.
_Field: TypeAlias = Any

KNOWN_TEXTS: Final[list[str]] = []
"""Texts that can't be guessed, such as genuine codes: a target puts them here."""
_TEXTS: Final = (
    *(
        "",
        "x",
        "request-0001",
        "request-0002",
        "O-1",
        "123456",
        "Asia/Shanghai",
        "Mars/Olympus",
        "kg",
        "counter.example",
    ),
    *(
        "0" * 16,
        "f" * 16,
        "1234 5678 9012 3456",
        "1234-5678-9012-3456",
        "PG" + "0" * 76,
        "提货码",
        "\0",
        "\u202e",
        "a\nb",
    ),
    *("A" * 64, "A" * 65, "A" * 512, "A" * 513, "9" * 400, "e30.e30.AA", "-1", "09:00", "2027-01-15"),
)
_INTEGERS: Final = (
    *(
        0,
        1,
        2,
        3,
        4,
        7,
        60,
        100,
        255,
        256,
        65_535,
        65_536,
        2**31 - 1,
        2**31,
        2**32 - 1,
        2**53,
        2**63 - 1,
        -1,
        -(2**63),
    ),
    *(MALL, STORE, NEIGHBOUR, FAR_STORE, BUNDLE, *SKUS, START_MS, START_MS // 1000, START_MS // 1000 + 3600),
)
_REALS: Final = (
    0.0,
    -0.0,
    31.2304,
    121.4737,
    90.0,
    90.1,
    -180.0,
    180.1,
    5.0,
    1e308,
    float("inf"),
    float("nan"),
    5e-324,
)
_ITEMS_MAX: Final = 3
_INTEGER_BITS: Final = {
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SINT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_SINT64: (-(2**63), 2**63 - 1),
}


def class_of(descriptor: Descriptor) -> Any:
    """The class of messages of a descriptor."""
    return GetMessageClass(descriptor)


def _value(field: _Field, draw: random.Random) -> Any:
    if field.type == FieldDescriptor.TYPE_BOOL:
        return draw.random() < 0.5
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        return draw.choice(_REALS) if draw.random() < 0.8 else draw.uniform(-200, 200)
    if field.type == FieldDescriptor.TYPE_STRING:
        return _text(draw)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return PUBLIC if draw.random() < 0.5 else _text(draw).encode()
    if field.enum_type is not None:
        return draw.choice([*(value.number for value in field.enum_type.values), 99])
    least, most = _INTEGER_BITS[field.type]
    return min(max(draw.choice(_INTEGERS), least), most)


def _text(draw: random.Random) -> str:
    kind = draw.random()
    if KNOWN_TEXTS and kind < 0.4:
        return draw.choice(KNOWN_TEXTS)
    if kind < 0.8:
        return draw.choice(_TEXTS)
    return "".join(draw.choices(string.printable, k=draw.choice((1, 6, 16, 40))))


def fill(message: Message, draw: random.Random, depth: int = 0) -> None:
    """Set every field to something."""
    for field in message.DESCRIPTOR.fields:
        if field.is_repeated:
            for _ in range(draw.randrange(1, _ITEMS_MAX + 1)):
                _add(message, field, draw, depth)
        elif field.message_type is not None:
            if depth < 3:
                fill(getattr(message, field.name), draw, depth + 1)
        else:
            setattr(message, field.name, _value(field, draw))


def _add(message: Message, field: _Field, draw: random.Random, depth: int) -> None:
    items = getattr(message, field.name)
    if field.message_type is None:
        items.append(_value(field, draw))
    elif depth < 3:
        fill(items.add(), draw, depth + 1)


def mutate(message: Message, draw: random.Random) -> None:
    """Change a few fields, at any depth."""
    for _ in range(draw.randrange(1, 4)):
        _change(message, draw)


def _change(message: Message, draw: random.Random) -> None:
    fields = message.DESCRIPTOR.fields
    if not fields:
        return
    field: _Field = draw.choice(fields)
    kind = draw.random()
    if kind < 0.1:
        message.ClearField(field.name)
    elif field.is_repeated:
        items = getattr(message, field.name)
        if items and kind < 0.6:
            if field.message_type is not None:
                _change(draw.choice(items), draw)
            else:
                items[draw.randrange(len(items))] = _value(field, draw)
        elif items and kind < 0.7:
            del items[draw.randrange(len(items))]
        else:
            _add(message, field, draw, 0)
    elif field.message_type is not None:
        inner = getattr(message, field.name)
        inner.SetInParent()
        if kind < 0.2:
            fill(inner, draw, 1)
        else:
            _change(inner, draw)
    else:
        setattr(message, field.name, _value(field, draw))
