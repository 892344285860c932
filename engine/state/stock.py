"""Stock figures in the store: changes as one script call per partition and batch, figures read back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
    [figures] = read_many(connection, [(mall_id, store_id, sku_ids)])
    return figures


def read_many(
    connection: Connection, wanted: Sequence[tuple[int, int, Sequence[int]]]
) -> list[list[StockFigures]]:
    """Figures of several (mall, store, SKUs), each as `read` gives them, in one round trip. Raises StoreUnavailable."""
    partitions = [partition_of_store(store_id, len(connection.partitions)) for _, store_id, _ in wanted]
    commands: list[tuple[bytes | str | int, ...]] = []
    for partition, (mall_id, store_id, sku_ids) in zip(partitions, wanted, strict=True):
        key = connection.partitions[partition].stock(mall_id, store_id)
        commands.append(("HMGET", key, *sku_ids) if sku_ids else ("HGETALL", key))
    replies = connection.read_of(partitions, commands) if commands else []
    return [_figures(sku_ids, reply) for (_, _, sku_ids), reply in zip(wanted, replies, strict=True)]


def _figures(sku_ids: Sequence[int], reply: Any) -> list[StockFigures]:
    if sku_ids:
        found = dict(zip(sku_ids, reply, strict=True))
    else:
        # RESP2 gives a flat list or a dict, by the driver's reply callbacks; both are pairs.
        items = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
        found = {int(sku): value for sku, value in items}
    empty = layouts.STOCK.pack(0, 0, 0, 0)
    return [StockFigures(sku, *layouts.STOCK.unpack(found[sku] or empty)) for sku in sorted(found)]
