"""The chain: each row's link is a hash over the link before it in its partition, the row's number, and its bytes.

A partition's chain begins with a link of its own, made of the deployment's id and the partition's number, so that no chain can
stand in for another. What a link covers, in bytes:

    first link   HASH("pickgate ledger 1" ‖ 0 ‖ deployment id ‖ 0 ‖ partition:4)
    every other  HASH(link before:32 ‖ partition:4 ‖ epoch:8 ‖ seq:8 ‖ data)

HASH is SHA-256 (FIPS 180-4) or SM3 (GB/T 32905-2016), chosen when the ledger is made. Both have 32 bytes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from typing import Any, Final

from engine.errors import ConfigError
from engine.state.streams import Entry

ALGORITHMS: Final = ("sha256", "sm3")
LINK_BYTES: Final = 32

_LABEL: Final = b"pickgate ledger 1"
_NUMBER: Final = struct.Struct(">IQQ")


class Chain:
    """How the rows of one ledger are linked."""

    def __init__(self, algorithm: str, deployment_id: str) -> None:
        """Raises ConfigError for an algorithm that there is not, here or at all."""
        if algorithm not in ALGORITHMS:
            raise ConfigError(
                f"ledger_chain is {algorithm!r}; expected {' or '.join(ALGORITHMS)}", field="ledger_chain"
            )
        if algorithm not in hashlib.algorithms_available:
            raise ConfigError(
                f"this Python's OpenSSL has no {algorithm}: use sha256, or an OpenSSL with it",
                field="ledger_chain",
            )
        self.algorithm = algorithm
        self._deployment_id = deployment_id
        self._new: Any = hashlib.sha256 if algorithm == "sha256" else lambda data: hashlib.new("sm3", data)

    def hasher(self) -> Any:
        """A new hash object of the chain's algorithm, as hashlib has them."""
        return hashlib.new(self.algorithm)

    def first(self, partition: int) -> bytes:
        """The link before a partition's first row."""
        parts = (_LABEL, self._deployment_id.encode(), partition.to_bytes(4, "big"))
        return bytes(self._new(b"\0".join(parts)).digest())

    def link(self, before: bytes, partition: int, entry: Entry) -> bytes:
        """The link of a row."""
        epoch, seq, data = entry
        return bytes(self._new(before + _NUMBER.pack(partition, epoch, seq) + data).digest())

    def links(self, before: bytes, partition: int, entries: Iterable[Entry]) -> Iterator[bytes]:
        """The links of rows that follow one another."""
        new, pack = self._new, _NUMBER.pack
        for epoch, seq, data in entries:
            before = new(before + pack(partition, epoch, seq) + data).digest()
            yield before
