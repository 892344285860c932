"""Units that move between stores: out of one partition, into another, never lost or made on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine import limits
from engine.calls import StockFigures, TransferAnswer
from engine.claims import EventId, TransferStep
from engine.errors import PickgateError, RequestIdReused, StockFull
from engine.idempotency import REQUEST_BYTES
from engine.state import batch, layouts, scripts
from engine.state.connection import Connection
from engine.state.keys import PartitionKeys, partition_of_store
from engine.verdict import TransferVerdict

_REMEMBERED, _REUSED, _NO_ROOM = b"R"[0], b"X"[0], b"W"[0]


@dataclass(frozen=True, slots=True)
class TransferItem:
    """One transfer of `amount` units from one store to another."""

    request: bytes
    body: bytes
    mall_id: int
    from_store_id: int
    to_store_id: int
    sku_id: int
    amount: int
    actor: str
    finding: TransferVerdict | None = None
    """What the set-up says against it; it applies if the transfer was not made before."""
    finding_store_id: int = 0
    departure: bytes = bytes(layouts.DEPARTURE.size)
    """Number of the event by which the units left, once they have."""


def transfer(connection: Connection, items: Sequence[TransferItem]) -> list[TransferAnswer | PickgateError]:
    """Move units. An error after they left leaves them in transit, for `complete` (or a retry) to bring in."""
    departures = _step(connection, TransferStep.OUT, items)
    outcomes: list[TransferAnswer | PickgateError] = []
    left: list[int] = []
    gone: list[TransferItem] = []
    for n, (item, reply) in enumerate(zip(items, departures, strict=True)):
        if isinstance(reply, PickgateError):
            outcomes.append(reply)
        elif reply[0] == _REUSED:
            outcomes.append(
                RequestIdReused(
                    "this request id was used before for another transfer: nothing was done; use a new id for a new one",
                    field="request_id",
                )
            )
        else:
            answer = _answer(connection, item, reply)
            outcomes.append(answer)
            if answer.event is not None:
                left.append(n)
                departure = layouts.DEPARTURE.pack(answer.event.epoch, answer.event.seq.to_bytes(6, "big"))
                gone.append(replace(item, departure=departure))
    arrivals = _arrive(connection, gone)
    for n, error in zip(left, arrivals, strict=True):
        if error is not None:
            outcomes[n] = error
    return outcomes


def complete(connection: Connection) -> int:
    """Bring in all units that are in transit, as far as that can be done now; how many transfers arrived.

    Raises the first error met.
    """
    waiting: list[TransferItem] = []
    failed: PickgateError | None = None
    for names in connection.partitions:
        try:
            [pairs] = connection.read([("HGETALL", names.transit)])
        except PickgateError as error:
            if connection.owners == 1:
                raise
            failed = failed or error
            continue
        found = pairs.items() if isinstance(pairs, dict) else zip(pairs[::2], pairs[1::2], strict=True)
        for field, data in found:
            request, departure = field[:REQUEST_BYTES], field[REQUEST_BYTES:]
            body, mall, store, other, sku, amount, _ = layouts.TRANSIT.unpack(data)
            actor = data[layouts.TRANSIT.size :].decode()
            waiting.append(
                TransferItem(request, body, mall, store, other, sku, amount, actor, departure=departure)
            )
    failed = failed or next((error for error in _arrive(connection, waiting) if error is not None), None)
    if failed is not None:
        raise failed
    return len(waiting)


def _arrive(connection: Connection, items: Sequence[TransferItem]) -> list[PickgateError | None]:
    """Bring units in, then strike them out of the transit. Per item None, or the error (they stay in transit)."""
    arrivals = [
        StockFull(
            f"{item.amount} units of SKU {item.sku_id} for store {item.to_store_id} stay in transit: its figure would exceed "
            f"{limits.STOCK_MAX}; correct it, and the next sweep brings them in"
        )
        if not isinstance(reply, PickgateError) and reply[0] == _NO_ROOM
        else reply
        for item, reply in zip(items, _step(connection, TransferStep.IN, items), strict=True)
    ]
    arrived = [
        item for item, reply in zip(items, arrivals, strict=True) if not isinstance(reply, PickgateError)
    ]
    # What fails here is done again by `complete`: the arrival is remembered, so the units come in once.
    _step(connection, TransferStep.DONE, arrived)
    return [reply if isinstance(reply, PickgateError) else None for reply in arrivals]


def _step(
    connection: Connection, step: TransferStep, items: Sequence[TransferItem]
) -> list[bytes | PickgateError]:
    partitions = len(connection.partitions)

    def pack(item: TransferItem, names: PartitionKeys, keys: batch.Keys) -> bytes:
        actor = item.actor.encode()
        arriving = step is TransferStep.IN
        store, other = item.from_store_id, item.to_store_id
        if arriving:
            store, other = other, store
        head = layouts.TRANSFER_ITEM.pack(
            step,
            keys.index(names.stock(item.mall_id, store)),
            keys.index(
                names.arrival(item.request, other, item.departure)
                if arriving
                else names.stock_answer(item.request)
            ),
            keys.index(names.transit),
            item.request,
            item.body,
            item.departure,
            item.mall_id,
            store,
            other,
            item.sku_id,
            item.amount,
            item.finding.number if item.finding and step is TransferStep.OUT else 0,
            len(actor),
        )
        return head + actor

    def partition_of(item: TransferItem) -> int:
        store = item.to_store_id if step is TransferStep.IN else item.from_store_id
        return partition_of_store(store, partitions)

    return batch.run(connection, scripts.TRANSFER, items, partition_of, pack)


def _answer(connection: Connection, item: TransferItem, reply: bytes) -> TransferAnswer:
    verdict, sku, on_hand, reserved, baseline, tier, epoch, seq = layouts.STOCK_ANSWER.unpack(reply, 1)
    partition = partition_of_store(item.from_store_id, len(connection.partitions))
    return TransferAnswer(
        verdict=TransferVerdict.numbered(verdict),
        figures=None if item.finding and not epoch else StockFigures(sku, on_hand, reserved, baseline, tier),
        sku_id=sku,
        store_id=0 if epoch else item.finding_store_id,
        event=EventId(partition, epoch, seq) if epoch else None,
        replayed=reply[0] == _REMEMBERED,
    )
