"""Stock figures in the store: changes as one script call per partition and batch, figures read back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.calls import StockAnswer, StockChange, StockFigures
from engine.claims import EventId
from engine.errors import PickgateError, RequestIdReused
from engine.state import batch, layouts, scripts
from engine.state.connection import Connection
from engine.state.keys import PartitionKeys, partition_of_store
from engine.verdict import StockVerdict

_REMEMBERED, _REUSED = b"R"[0], b"X"[0]


@dataclass(frozen=True, slots=True)
class StockItem:
    """One change as the script takes it; see engine.calls.StockRequest."""

    request: bytes
    body: bytes
    mall_id: int
    store_id: int
    sku_id: int
    change: StockChange
    amount: int
    actor: str
    reason: str
    finding: StockVerdict | None = None


def change(connection: Connection, items: Sequence[StockItem]) -> list[StockAnswer | PickgateError]:
    """Change stock figures. One outcome per item, in order."""
    partitions = len(connection.partitions)

    def pack(item: StockItem, names: PartitionKeys, keys: batch.Keys) -> bytes:
        actor, reason = item.actor.encode(), item.reason.encode()
        head = layouts.STOCK_ITEM.pack(
            keys.index(names.stock(item.mall_id, item.store_id)),
            keys.index(names.stock_answer(item.request)),
            item.request,
            item.body,
            item.mall_id,
            item.store_id,
            item.sku_id,
            item.change,
            item.amount < 0,
            abs(item.amount),
            item.finding.number if item.finding else 0,
            len(actor),
            len(reason),
        )
        return head + actor + reason

    replies = batch.run(
        connection, scripts.STOCK, items, lambda item: partition_of_store(item.store_id, partitions), pack
    )
    return [
        _answer(item, partition_of_store(item.store_id, partitions), reply)
        for item, reply in zip(items, replies, strict=True)
    ]


def _answer(item: StockItem, partition: int, reply: bytes | PickgateError) -> StockAnswer | PickgateError:
    if isinstance(reply, PickgateError):
        return reply
    if reply[0] == _REUSED:
        return RequestIdReused(
            "this request id was used before for another stock change: nothing was done; use a new id for a new change",
            field="request_id",
        )
    verdict, sku, on_hand, reserved, baseline, tier, epoch, seq = layouts.STOCK_ANSWER.unpack(reply, 1)
    return StockAnswer(
        verdict=StockVerdict.numbered(verdict),
        figures=None if item.finding and not epoch else StockFigures(sku, on_hand, reserved, baseline, tier),
        sku_id=sku,
        store_id=item.store_id,
        event=EventId(partition, epoch, seq) if epoch else None,
        replayed=reply[0] == _REMEMBERED,
    )


def read(
    connection: Connection, mall_id: int, store_id: int, sku_ids: Sequence[int] = ()
) -> list[StockFigures]:
    """Figures of one mall at one store, by SKU, ascending; all that it ever had if no SKU is named. Raises StoreUnavailable."""
    partition = partition_of_store(store_id, len(connection.partitions))
    key = connection.partitions[partition].stock(mall_id, store_id)
    if sku_ids:
        [values] = connection.read_of([partition], [("HMGET", key, *sku_ids)])
        found = dict(zip(sku_ids, values, strict=True))
    else:
        # RESP2 gives a flat list or a dict, by the driver's reply callbacks; both are pairs.
        [pairs] = connection.read_of([partition], [("HGETALL", key)])
        items = pairs.items() if isinstance(pairs, dict) else zip(pairs[::2], pairs[1::2], strict=True)
        found = {int(sku): value for sku, value in items}
    empty = layouts.STOCK.pack(0, 0, 0, 0)
    return [StockFigures(sku, *layouts.STOCK.unpack(found[sku] or empty)) for sku in sorted(found)]
