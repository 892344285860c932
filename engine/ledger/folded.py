"""A fold as bytes, and back: what a checkpoint keeps of one partition.

A list of pieces, each some megabytes at most. The first is the head:

    "PGFS" layout:1 partition:4 epoch:8 number:8 last_at_ms:8, and the last event's bytes where the next one may follow from it (a change
    of stock, whose tier is told by the event behind it)

Every other is a part of one of the fold's tables (`_TABLES`): table:1 count:4, the lengths of `count` keys (2 bytes each) and values (4 bytes
each), all keys, all values. Integers are big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice, pairwise
from typing import Any, Final

import numpy as np

from engine.ledger.fold import Arrival, Departure, Figures, Fold
from engine.state import layouts
from engine.state.events import parse
from engine.state.streams import START, Entry, Place

PIECE_ENTRIES: Final = 8_192
"""Entries of a table in one piece: about two megabytes of records."""

_MAGIC: Final = b"PGFS"
_LAYOUT: Final = 1
_HEAD: Final = struct.Struct(">4sBIQQQ")
_PART: Final = struct.Struct(">BI")
_SHELF: Final = struct.Struct(">III")
_AT: Final = struct.Struct(">Q")
_KEY_BYTES: Final = 12
"""Of a request's digest."""

Table = Mapping[bytes, bytes]


class Malformed(ValueError):
    """Bytes that are no fold."""


def dump(fold: Fold) -> Iterator[bytes]:
    """The pieces of a fold that remembers answers."""
    assert fold.answers is not None
    cause, last = fold.answers.cause, b""
    if cause is not None and fold.last is not None and Place(cause.id.epoch, cause.id.seq) == fold.place:
        last = fold.last.data
    yield _HEAD.pack(_MAGIC, _LAYOUT, fold.partition, *fold.place, fold.last_at_ms) + last
    for number, (read, _) in enumerate(_TABLES):
        entries = iter(read(fold))
        while some := list(islice(entries, PIECE_ENTRIES)):
            yield _pack(number, some)


def load(pieces: Iterable[bytes], *, remember: bool) -> Fold:
    """The fold that `dump` was given; without `remember`, without its answers. Raises Malformed."""
    try:
        return _load(iter(pieces), remember)
    except (struct.error, IndexError, KeyError, StopIteration) as error:
        raise Malformed(f"{type(error).__name__}: {error}") from error


def _load(pieces: Iterator[bytes], remember: bool) -> Fold:
    head = next(pieces)
    magic, layout, partition, epoch, seq, last_at_ms = _HEAD.unpack_from(head)
    if (magic, layout) != (_MAGIC, _LAYOUT):
        raise Malformed(f"it begins with {head[:5].hex()}, this version writes {_MAGIC.hex()}{_LAYOUT:02x}")
    fold = Fold(partition, remember=remember)
    fold.place = Place(epoch, seq) if epoch else START
    fold.last_at_ms = last_at_ms
    if fold.answers is not None and len(head) > _HEAD.size:
        data = head[_HEAD.size :]
        fold.last = Entry(epoch, seq, data)
        fold.answers.go_on_from(parse(partition, b"%d-%d" % fold.place, data))
    for piece in pieces:
        number, keys, values = _unpack(piece)
        _, put = _TABLES[number]
        put(fold, keys, values)
    return fold


def _pack(number: int, entries: list[tuple[bytes, bytes]]) -> bytes:
    keys, values = zip(*entries, strict=True)
    count = len(entries)
    sizes = (
        np.fromiter(map(len, keys), dtype=">u2", count=count).tobytes(),
        np.fromiter(map(len, values), dtype=">u4", count=count).tobytes(),
    )
    return b"".join(chain((_PART.pack(number, count), *sizes), keys, values))


def _unpack(piece: bytes) -> tuple[int, list[bytes], list[bytes]]:
    number, count = _PART.unpack_from(piece)
    at = _PART.size
    found = []
    body = at + 6 * count
    for dtype, size in ((">u2", 2), (">u4", 4)):
        lengths = np.frombuffer(piece, dtype=dtype, count=count, offset=at).astype(np.int64)
        at += size * count
        ends = [body, *(body + np.cumsum(lengths)).tolist()]
        found.append([piece[start:end] for start, end in pairwise(ends)])
        body = ends[-1]
    if body != len(piece):
        raise Malformed(f"a piece of {len(piece)} bytes says that it has {body}")
    return number, found[0], found[1]


# --- the tables: how each is read from a fold, and put into one ---------------------------------------------------------
def _put_shelves(fold: Fold, keys: list[bytes], values: list[bytes]) -> None:
    for key, value in zip(keys, values, strict=True):
        fold.shelves[_SHELF.unpack(key)] = Figures(*layouts.STOCK.struct.unpack(value))


def _put_departures(fold: Fold, keys: list[bytes], values: list[bytes]) -> None:
    for key, value in zip(keys, values, strict=True):
        fold.departures[Departure(key[:_KEY_BYTES], key[_KEY_BYTES:])] = value


def _pack_arrival(arrival: tuple[bytes, int, bytes]) -> bytes:
    request, store_id, number = arrival
    return request + store_id.to_bytes(4, "big") + number


def _unpack_arrival(key: bytes) -> tuple[bytes, int, bytes]:
    end = _KEY_BYTES + 4
    return key[:_KEY_BYTES], int.from_bytes(key[_KEY_BYTES:end], "big"), key[end:]


def _put_arrivals(fold: Fold, keys: list[bytes], values: list[bytes]) -> None:
    for key, value in zip(keys, values, strict=True):
        fold.arrivals[Arrival(*_unpack_arrival(key))] = _AT.unpack(value)[0]


def _put_code_answers(fold: Fold, keys: list[bytes], values: list[bytes]) -> None:
    if fold.answers is not None:
        fold.answers.of_codes.update(zip(keys, values, strict=True))


def _put_stock_answers(fold: Fold, keys: list[bytes], values: list[bytes]) -> None:
    if fold.answers is not None:
        for key, value in zip(keys, values, strict=True):
            fold.answers.of_stock[key] = _AT.unpack_from(value)[0], value[_AT.size :]


def _put_arrival_answers(fold: Fold, keys: list[bytes], values: list[bytes]) -> None:
    if fold.answers is not None:
        for key, value in zip(keys, values, strict=True):
            fold.answers.of_arrivals[_unpack_arrival(key)] = _AT.unpack_from(value)[0], value[_AT.size :]


def _put_register(fold: Fold, keys: list[bytes], values: list[bytes]) -> None:
    if fold.answers is not None:
        fold.register.update(zip(keys, values, strict=True))


def _remembered(fold: Fold) -> Any:
    assert fold.answers is not None
    return fold.answers


_Read = Callable[[Fold], Iterable[tuple[bytes, bytes]]]
_Put = Callable[[Fold, list[bytes], list[bytes]], None]

# By number: never renumber, never reuse.
_TABLES: Final[tuple[tuple[_Read, _Put], ...]] = (
    (
        lambda fold: ((_SHELF.pack(*shelf), figures.pack()) for shelf, figures in fold.shelves.items()),
        _put_shelves,
    ),
    (
        lambda fold: fold.records.items(),
        lambda fold, keys, values: fold.records.update(zip(keys, values, strict=True)),
    ),
    (
        lambda fold: fold.evidence.items(),
        lambda fold, keys, values: fold.evidence.update(zip(keys, values, strict=True)),
    ),
    (
        lambda fold: ((uid, _AT.pack(at_ms)) for uid, at_ms in fold.reviews.items()),
        lambda fold, keys, values: fold.reviews.update(
            (uid, _AT.unpack(at)[0]) for uid, at in zip(keys, values, strict=True)
        ),
    ),
    (
        lambda fold: (
            (departure.request + departure.number, units) for departure, units in fold.departures.items()
        ),
        _put_departures,
    ),
    (
        lambda fold: ((_pack_arrival(arrival), _AT.pack(at_ms)) for arrival, at_ms in fold.arrivals.items()),
        _put_arrivals,
    ),
    (lambda fold: _remembered(fold).of_codes.items(), _put_code_answers),
    (
        lambda fold: (
            (digest, _AT.pack(at_ms) + answer)
            for digest, (at_ms, answer) in _remembered(fold).of_stock.items()
        ),
        _put_stock_answers,
    ),
    (
        lambda fold: (
            (_pack_arrival(key), _AT.pack(at_ms) + answer)
            for key, (at_ms, answer) in _remembered(fold).of_arrivals.items()
        ),
        _put_arrival_answers,
    ),
    (lambda fold: fold.register.items(), _put_register),
)
