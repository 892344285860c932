"""How items become calls, and calls become writes."""

from __future__ import annotations

import pytest

from engine import limits
from engine.state import batch, scripts
from engine.state.connection import Call, Connection, Durability
from engine.state.keys import PartitionKeys, spread_tags
from engine.state.layouts import REGISTER_ITEM

NOW_MS = 1_800_000_000_000


class Recorded(Connection):
    """A connection that notes how many items each write carried, besides sending it."""

    def __init__(self, url: str) -> None:
        super().__init__(url, durability=Durability.MEMORY, now_ms=lambda: NOW_MS, clock_compared=False)
        self.writes: list[int] = []

    def run(self, calls: list[Call]) -> list[object]:  # type: ignore[override]
        # The register's calls have one argument before the items.
        self.writes.append(sum(len(call.args) - 1 for call in calls))
        return super().run(calls)


@pytest.mark.parametrize("count", [1, 256, 1_024, 1_025, 5_000])
def test_a_bulk_goes_in_writes_of_their_own_time(empty_store_url: str, count: int) -> None:
    connection = Recorded(empty_store_url)
    connection.use_partitions(spread_tags(3), create=True)
    requests = [n.to_bytes(12, "big") for n in range(count)]

    def pack(request: bytes, names: PartitionKeys, keys: batch.Keys) -> bytes:
        days = (keys.index(names.register(request, 20_833 - back)) for back in (0, *range(4)))
        return REGISTER_ITEM.pack(request, bytes(8), *days)

    def run() -> list[object]:
        return batch.run(
            connection, scripts.REGISTER, requests, lambda request: request[-1] % 3, pack, first_args=(1,)
        )

    assert run() == [b"A"] * count
    assert sum(connection.writes) == count
    assert max(connection.writes) <= limits.WRITE_ITEMS_MAX
    least = -(-count // (limits.WRITE_ITEMS_MAX - limits.BATCH_MAX))
    assert len(connection.writes) <= least, "no more writes than are needed"
    assert run() == [b"R"] * count
    connection.close()
