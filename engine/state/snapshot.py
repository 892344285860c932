"""What a partition holds at an event: read by scripts, so that each piece is exactly what the events up to its number add up to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from engine import limits
from engine.errors import PickgateError
from engine.state import scripts
from engine.state.connection import Call, Connection
from engine.state.keys import PartitionKeys
from engine.state.streams import Place

BUCKETS_PER_CALL: Final = 64
"""Hash buckets of records in one script call: at a million codes about a thousand records, a millisecond of the store's thread."""
SCAN_COUNT: Final = 5_000


class Shelves(NamedTuple):
    """Stock, tries, reviews and transit of a partition at an event."""

    place: Place
    stock: dict[tuple[int, int, int], bytes]
    """By mall, store and SKU: layouts.STOCK."""
    evidence: dict[bytes, bytes]
    """By uid: layouts.EVIDENCE, one behind the other."""
    reviews: dict[bytes, int]
    """By uid: when it was locked, unix ms."""
    transit: dict[bytes, bytes]
    """By request and departure: layouts.TRANSIT."""
    strange: dict[bytes, bytes]
    """By key and field, what is among the stock under a name that no script reads."""


class Records(NamedTuple):
    """Some of a partition's records at an event."""

    place: Place
    buckets: frozenset[bytes]
    """Names of the buckets that were read: every record of theirs is here."""
    records: dict[bytes, bytes]
    strange: dict[bytes, bytes]
    """By uid, the bucket of a record that is not in its own, where no script looks for it."""


def read_all_shelves(connection: Connection) -> dict[int, Shelves]:
    """Read stock, tries, reviews and transit of every partition, by its number. Raises StoreUnavailable.

    A store's first stock makes a key, maybe between the listing of keys and the reading: a partition whose keys have grown meanwhile
    is read again, so that what is given holds every shelf that its event knows.
    """
    shelves: dict[int, Shelves] = {}
    listed: dict[int, list[bytes]] = {}
    while True:
        found = _stock_keys(connection)
        grown = [number for number, keys in found.items() if keys != listed.get(number)]
        if not grown:
            return shelves
        for number in grown:
            shelves[number] = _read_shelves(connection, number, found[number])
        listed = found


def _stock_keys(connection: Connection) -> dict[int, list[bytes]]:
    """The stock hashes that there are, of each partition, whoever made them. Raises StoreUnavailable."""
    prefixes = {b"{" + names.tag + b"}s": number for number, names in enumerate(connection.partitions)}
    found: dict[int, set[bytes]] = {number: set() for number in range(len(connection.partitions))}
    for key in connection.scan("{*}s*", SCAN_COUNT):
        number = prefixes.get(key[: key.index(b"}") + 2])
        if number is not None:
            found[number].add(key)
    return {number: sorted(keys) for number, keys in found.items()}


def _read_shelves(connection: Connection, number: int, keys: Sequence[bytes]) -> Shelves:
    """Read stock (the hashes `keys`), tries, reviews and transit of one partition. Raises StoreUnavailable."""
    names = connection.partitions[number]
    place, contents = _read(connection, names, [names.evidence, names.reviews, names.transit, *keys])
    evidence, reviews, transit, *stock = contents
    shelves: dict[tuple[int, int, int], bytes] = {}
    strange: dict[bytes, bytes] = {}
    for key, skus in zip(keys, stock, strict=True):
        for sku, figures in skus.items():
            shelf = _shelf(names, key, sku)
            if shelf is None:
                strange[key + b" " + sku] = figures
            else:
                shelves[shelf] = figures
    return Shelves(
        place, shelves, evidence, {uid: _at_ms(at) for uid, at in reviews.items()}, transit, strange
    )


def _shelf(names: PartitionKeys, key: bytes, sku: bytes) -> tuple[int, int, int] | None:
    """Mall, store and SKU of a stock figure; None for names that are not exactly those that scripts use."""
    try:
        mall_id, store_id = map(int, key.rpartition(b"}s")[2].split(b":"))
        sku_id = int(sku)
    except ValueError:
        return None
    # int() reads 007, 7_0 and " 7" too: such a field would stand in for the one that is sold from.
    as_used = key == names.stock(mall_id, store_id) and sku == b"%d" % sku_id
    return (mall_id, store_id, sku_id) if as_used else None


def _at_ms(score: bytes) -> int:
    """A time, as a score of a sorted set; -1 for an infinite one."""
    at_ms = float(score)
    return int(at_ms) if math.isfinite(at_ms) else -1


def read_records(connection: Connection, number: int) -> Iterator[Records]:
    """Read all records of one partition, some buckets at a time, each at its own event. Raises StoreUnavailable."""
    names = connection.partitions[number]
    for start in range(0, limits.BUCKETS_PER_PARTITION, BUCKETS_PER_CALL):
        buckets = [
            names.record(bucket.to_bytes(8, "big")) for bucket in range(start, start + BUCKETS_PER_CALL)
        ]
        place, contents = _read(connection, names, buckets)
        found: dict[bytes, bytes] = {}
        strange: dict[bytes, bytes] = {}
        for bucket_name, held in zip(buckets, contents, strict=True):
            for uid, data in held.items():
                if names.record(uid) == bucket_name:
                    found[uid] = data
                else:
                    strange[uid] = bucket_name
        yield Records(place, frozenset(buckets), found, strange)


def _read(
    connection: Connection, names: PartitionKeys, keys: Sequence[bytes]
) -> tuple[Place, list[dict[bytes, bytes]]]:
    [reply] = connection.run([Call(scripts.SNAPSHOT, (names.meta, names.events, *keys), ())])
    if isinstance(reply, PickgateError):
        raise reply
    epoch, seq, *contents = reply
    return Place(int(epoch), int(seq)), [_pairs(flat) for flat in contents]


def _pairs(flat: Sequence[Any]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
