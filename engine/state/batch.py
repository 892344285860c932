"""Turns items into script calls: groups by partition, cuts at the batch bound, collects keys, spreads the outcomes back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from engine import limits
from engine.errors import PickgateError
from engine.state.connection import Call, Connection
from engine.state.keys import PartitionKeys
from engine.state.scripts import Script

Item = TypeVar("Item")


class Keys:
    """The KEYS of one call: each key once; items point to it by its 1-based index."""

    __slots__ = ("_index", "names")

    def __init__(self, fixed: Iterable[bytes]) -> None:
        self.names: list[bytes] = []
        self._index: dict[bytes, int] = {}
        for name in fixed:
            self.index(name)

    def index(self, name: bytes) -> int:
        """Index of a key, entering it if it is new."""
        at = self._index.get(name)
        if at is None:
            self.names.append(name)
            at = self._index[name] = len(self.names)
        return at


def run(
    connection: Connection,
    script: Script,
    items: Sequence[Item],
    partition_of: Callable[[Item], int],
    pack: Callable[[Item, PartitionKeys, Keys], bytes],
    *,
    first_args: Sequence[bytes | int] = (),
) -> list[Any]:
    """Run `script` over `items`; one outcome per item, in order: the script's reply for it, or a PickgateError.

    `first_args` stand before the items. Items of one partition keep their order. A failed call gives its error to its own items only.
    """
    groups: dict[int, list[int]] = {}
    for n, item in enumerate(items):
        groups.setdefault(partition_of(item), []).append(n)
    calls: list[Call] = []
    owners: list[list[int]] = []
    for partition, members in groups.items():
        names = connection.partitions[partition]
        for start in range(0, len(members), limits.BATCH_MAX):
            chunk = members[start : start + limits.BATCH_MAX]
            keys = Keys(names.own)
            packed = [pack(items[n], names, keys) for n in chunk]
            calls.append(Call(script, keys.names, [*first_args, *packed]))
            owners.append(chunk)
    outcomes: list[Any] = [None] * len(items)
    for chunk, reply in zip(owners, run_calls(connection, calls, owners), strict=True):
        if isinstance(reply, PickgateError):
            for n in chunk:
                outcomes[n] = reply
        else:
            for n, outcome in zip(chunk, reply, strict=True):
                outcomes[n] = outcome
    return outcomes


def run_calls(
    connection: Connection, calls: Sequence[Call], owners: Sequence[Sequence[int]]
) -> list[list[bytes] | PickgateError]:
    """Run calls, in as many writes as their items (`owners`: those of each call) need: each has the time of its own moment (limits.WRITE_ITEMS_MAX)."""
    replies: list[list[bytes] | PickgateError] = []
    start = items = 0
    for end, chunk in enumerate(owners):
        if items and items + len(chunk) > limits.WRITE_ITEMS_MAX:
            replies += connection.run(calls[start:end])
            start, items = end, 0
        items += len(chunk)
    return replies + connection.run(calls[start:])
