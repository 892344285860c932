"""The twin of ext/scan.pyx in plain Python, to read and to compare with. See ext/scan.pyi."""

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

FIELDS_MAX: Final = 32
NUMBER_MAX: Final = 31
MESSAGES_MAX: Final = 8

_VARINT, _FIXED64, _LENGTH = 0, 1, 2
_WIRE_TYPES: Final = {
    "uint32": _VARINT,
    "enum": _VARINT,
    "double": _FIXED64,
    "text": _LENGTH,
    "message": _LENGTH,
}
_BELOW: Final = {"uint32": 2**32, "enum": 2**31}


class Scanned(NamedTuple):
    """See ext/scan.pyi."""

    plain: npt.NDArray[np.bool_]
    present: npt.NDArray[np.uint32]
    numbers: npt.NDArray[np.float64]
    wire: bytes
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]


class Shape:
    """See ext/scan.pyi."""

    def __init__(
        self,
        fields: Sequence[tuple[tuple[int, ...], str]],
        ranges: Mapping[tuple[int, ...], tuple[float, float]] | None = None,
        needed: Iterable[tuple[int, ...]] = (),
    ) -> None:
        self.fields = {tuple(path): kind for path, kind in fields}
        paths = [tuple(path) for path, _ in fields]
        if len(fields) > FIELDS_MAX:
            raise ValueError(f"a shape has at most {FIELDS_MAX} fields, not {len(fields)}")
        for n, path in enumerate(paths):
            if self.fields[path] not in _WIRE_TYPES:
                raise ValueError(f"the kind of field {path} is {self.fields[path]!r}, which is none")
            if len(path) not in (1, 2) or not all(1 <= number <= NUMBER_MAX for number in path):
                raise ValueError(f"path {path} of a field; expected one or two numbers, 1 to {NUMBER_MAX}")
            if path[:-1] and (path[:-1] not in paths[:n] or self.fields[path[:-1]] != "message"):
                raise ValueError(
                    f"the message around field {path} must be a field of kind message, before it"
                )
            if path in paths[:n]:
                raise ValueError(f"field {path} is twice in the shape")
        if 1 + sum(kind == "message" for kind in self.fields.values()) > MESSAGES_MAX:
            raise ValueError(f"a shape has at most {MESSAGES_MAX} messages")
        self.ranges = {tuple(path): ends for path, ends in (ranges or {}).items()}
        self.needed = {tuple(path) for path in needed}
        for path in (*self.ranges, *self.needed):
            if path not in paths:
                raise ValueError(f"{path} is no field of the shape")
        for path in self.ranges:
            if self.fields[path] == "message":
                raise ValueError(f"field {path} is a message, which has no range")
        self.bits = {path: n for n, path in enumerate(paths)}
        numbers = [path for path in paths if self.fields[path] in ("uint32", "enum", "double")]
        texts = [path for path in paths if self.fields[path] == "text"]
        self.numbers = {path: n for n, path in enumerate(numbers)}
        self.texts = {path: n for n, path in enumerate(texts)}

    def check(self, path: tuple[int, ...], value: float) -> None:
        """Raises _NotPlain for a value out of the field's range."""
        lowest, highest = self.ranges.get(path, (-math.inf, math.inf))
        if not lowest <= value <= highest:
            raise _NotPlain


class _NotPlain(Exception):
    pass


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = 0
    for n in range(10):
        if at + n >= end:
            break
        value |= (data[at + n] & 0x7F) << (7 * n)
        if data[at + n] < 0x80:
            return value & (2**64 - 1), at + n + 1
    raise _NotPlain


def _scan(
    shape: Shape, outer: tuple[int, ...], data: bytes, at: int, end: int, row: int, out: Scanned
) -> None:
    while at < end:
        key, at = _varint(data, at, end)
        path = (*outer, key >> 3)
        kind = shape.fields.get(path)
        if kind is None or key & 7 != _WIRE_TYPES[kind] or out.present[row] >> shape.bits[path] & 1:
            raise _NotPlain
        out.present[row] |= np.uint32(1 << shape.bits[path])
        if kind == "double":
            if end - at < 8:
                raise _NotPlain
            [real] = struct.unpack_from("<d", data, at)
            shape.check(path, real)
            out.numbers[shape.numbers[path], row] = real
            at += 8
            continue
        value, at = _varint(data, at, end)
        if kind in _BELOW:
            if value >= _BELOW[kind]:
                raise _NotPlain
            shape.check(path, value)
            out.numbers[shape.numbers[path], row] = value
            continue
        if value > end - at:
            raise _NotPlain
        if kind == "text":
            shape.check(path, value)
            if not all(0x21 <= byte <= 0x7E for byte in data[at : at + value]):
                raise _NotPlain
            out.starts[shape.texts[path], row], out.ends[shape.texts[path], row] = at, at + value
        else:
            _scan(shape, path, data, at, at + value, row, out)
        at += value
    for path, bit in shape.bits.items():
        if path[:-1] == outer and not out.present[row] >> bit & 1:
            if path in shape.needed:
                raise _NotPlain
            shape.check(path, 0)


def scan_batch(shape: Shape, messages: Sequence[bytes]) -> Scanned:
    """See ext/scan.pyi."""
    for data in messages:
        if type(data) is not bytes:
            raise TypeError(f"a message is bytes, not {type(data).__name__}")
    count = len(messages)
    wire = b"".join(messages)
    out = Scanned(
        np.zeros(count, np.bool_),
        np.zeros(count, np.uint32),
        np.zeros((len(shape.numbers), count), np.float64),
        wire,
        np.zeros((len(shape.texts), count), np.int64),
        np.zeros((len(shape.texts), count), np.int64),
    )
    at = 0
    for row, data in enumerate(messages):
        try:
            _scan(shape, (), wire, at, at + len(data), row, out)
            out.plain[row] = True
        except _NotPlain:
            for column in (out.present, out.numbers.T, out.starts.T, out.ends.T):
                column[row] = 0
        at += len(data)
    return out
