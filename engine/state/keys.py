"""Key names. Every key of a partition carries the partition's hash tag, so a script touches one slot.

Per partition, with `{tag}` in front:

| key | type | holds |
|---|---|---|
| m | hash | the partition's own facts: epoch, seq, last_seen (unix ms), run_id, swept (minute), waited (lua/barrier.lua) |
| c<bucket> | hash | records of codes: uid (8 bytes) → record (layouts.RECORD) |
| q<bucket> | hash | remembered answers: request digest (12 bytes) → body digest and answer |
| s<mall>:<store> | hash | stock: SKU (decimal) → figures (layouts.STOCK) |
| r<day>:<bucket> | hash | register of request ids: request digest → body digest and number of calls that hold it, for a few days |
| k<digest> | string | remembered answer of a stock change, with a lifetime |
| x<minute> | string | uids (8 bytes each) that fall due in that minute since 1970: to expire, or to forget |
| e | stream | events, id = epoch-seq |
| a | stream | refused attempts, bounded |
| v | hash | evidence of counted tries: uid → layouts.EVIDENCE, one behind the other |
| w | sorted set | open reviews: uid, by the time of the lock |
| b | hash | bounds of tiers, as policies state them: scope → layouts.TIERS, and `version` |
| t | hash | units in transit out of this partition: request digest, departure → layouts.TRANSIT |

Records lie in hash buckets because one key each would cost more than the record. The due index is a plain string per minute,
eight bytes a code, because it is only ever appended to and read once; an entry that no longer applies (extended, voided) is
skipped when its minute comes.

The control partition has the tag `ctl` and the keys m, malls, stores, catalogue, policies, providers, terminals, freezes, keyring, seen
(terminal → unix second), k<digest>, e, and f: a bounded stream of forgeries (engine.state.forgeries), outside the fold.
"""

from __future__ import annotations

import binascii
from typing import Final
from zlib import crc32

from engine import limits

SLOTS: Final = 16_384
"""Hash slots of a cluster (Redis cluster specification, 'Key distribution model')."""

CONTROL_TAG: Final = b"ctl"
BUCKET_MASK: Final = limits.BUCKETS_PER_PARTITION - 1
RECORDS: Final = b"c"
ANSWERS: Final = b"q"
STOCK: Final = b"s"
DUE: Final = b"x"
"""What follows the tag of the keys that kernels name (ext.script_calls)."""


def slot_of(tag: bytes) -> int:
    """Cluster slot of a hash tag: CRC-16/XMODEM mod 16,384 (Redis cluster specification, appendix A)."""
    return binascii.crc_hqx(tag, 0) % SLOTS


def spread_tags(partitions: int) -> list[bytes]:
    """Hash tags for `partitions` partitions that lie evenly over the slots: one in each equal range.

    Searched rather than numbered, because the CRC of p00, p01 … leaves most of sixteen primaries without a partition. The
    search is deterministic; its result is kept in the control partition all the same, so that it can never change.
    """
    tags = []
    for partition in range(partitions):
        low, high = partition * SLOTS // partitions, (partition + 1) * SLOTS // partitions
        attempt = 0
        while not low <= slot_of(tag := b"p%d.%d" % (partition, attempt)) < high:
            attempt += 1
        tags.append(tag)
    return tags


def partition_of_store(store_id: int, partitions: int) -> int:
    """The partition a store belongs to: CRC-32 (ISO 3309) of its four big-endian bytes, mod `partitions`."""
    return crc32(store_id.to_bytes(4, "big")) % partitions


class PartitionKeys:
    """Key names of one partition, prefixes made once."""

    __slots__ = (
        "_c",
        "_k",
        "_q",
        "_r",
        "_s",
        "_x",
        "attempts",
        "bounds",
        "events",
        "evidence",
        "meta",
        "prefix",
        "reviews",
        "tag",
        "transit",
    )

    def __init__(self, tag: bytes) -> None:
        self.tag = tag
        self.prefix = prefix = b"{" + tag + b"}"
        self.meta = prefix + b"m"
        self.events = prefix + b"e"
        self.attempts = prefix + b"a"
        self.bounds = prefix + b"b"
        self.evidence = prefix + b"v"
        self.reviews = prefix + b"w"
        self.transit = prefix + b"t"
        self._c = prefix + RECORDS
        self._q = prefix + ANSWERS
        self._r = prefix + b"r"
        self._s = prefix + STOCK
        self._k = prefix + b"k"
        self._x = prefix + DUE

    @property
    def own(self) -> tuple[bytes, ...]:
        """The keys that every script of the partition has as KEYS 1 to 6."""
        return (self.meta, self.events, self.attempts, self.evidence, self.reviews, self.bounds)

    def record(self, uid: bytes) -> bytes:
        """Hash bucket that holds the record of `uid`, chosen by its low (pseudo-random) bits."""
        return self._c + b"%x" % (int.from_bytes(uid[-4:], "big") & BUCKET_MASK)

    def answers(self, digest: bytes) -> bytes:
        """Hash bucket that holds the remembered answer of a request digest."""
        return self._q + b"%x" % (int.from_bytes(digest[:4], "big") & BUCKET_MASK)

    def stock(self, mall_id: int, store_id: int) -> bytes:
        """Stock hash of one mall at one store."""
        return self._s + b"%d:%d" % (mall_id, store_id)

    def stock_answer(self, digest: bytes) -> bytes:
        """Key that remembers the answer of one stock change."""
        return self._k + digest

    def arrival(self, digest: bytes, store_id: int, departure: bytes) -> bytes:
        """Key that remembers that units arrived which left a store by that departure (layouts.DEPARTURE)."""
        return self._k + b"i" + digest + store_id.to_bytes(4, "big") + departure

    def register(self, digest: bytes, day: int) -> bytes:
        """Bucket of the register of request ids, of one day since 1970."""
        return self._r + b"%d:%x" % (day, int.from_bytes(digest[:4], "big") & BUCKET_MASK)

    def due(self, minute: int) -> bytes:
        """Due index of one minute since 1970."""
        return self._x + b"%d" % minute


class ControlKeys:
    """Key names of the control partition."""

    __slots__ = ("events", "forgeries", "keyring", "meta")

    def __init__(self) -> None:
        self.meta = b"{ctl}m"
        self.events = b"{ctl}e"
        self.forgeries = b"{ctl}f"
        self.keyring = b"{ctl}keyring"

    def kind(self, name: str) -> bytes:
        """Hash of one kind of entry: malls, stores or catalogue."""
        return b"{ctl}" + name.encode("ascii")

    def answer(self, digest: bytes) -> bytes:
        """Key that remembers the answer of one control change."""
        return b"{ctl}k" + digest
