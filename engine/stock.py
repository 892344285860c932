"""Stock of each mall at each store: receive, adjust, count, baseline, transfer, read."""

from __future__ import annotations

from collections.abc import Sequence

from engine import limits
from engine.calls import StockAnswer, StockFigures, StockRequest, TransferAnswer, TransferRequest
from engine.control import Copy
from engine.deployment import Deployment
from engine.errors import PickgateError, TooManyItems, UnknownMall
from engine.idempotency import body_digest, request_digest
from engine.registered import registered
from engine.state import stock as state
from engine.state import transfers
from engine.verdict import StockVerdict, TransferVerdict


def change(deployment: Deployment, batch: Sequence[StockRequest]) -> list[StockAnswer | PickgateError]:
    """Change stock figures, each once. A retry with the same request id gets the first answer for 72 h.

    Raises TooManyItems, StaleControl, LedgerBehind for the batch; UnknownMall, RequestIdReused, StoreUnavailable come per item.
    """
    if len(batch) > limits.BATCH_MAX:
        raise TooManyItems(
            f"{len(batch)} changes in one batch; expected at most {limits.BATCH_MAX}", field="changes"
        )
    copy = deployment.control.copy_to_change()
    outcomes: list[StockAnswer | PickgateError | None] = [None] * len(batch)
    wanted: list[int] = []
    items: list[state.StockItem] = []
    for n, request in enumerate(batch):
        if request.mall_id not in copy.malls:
            outcomes[n] = UnknownMall(
                f"mall {request.mall_id} is not registered: put it first", field="mall_id"
            )
            continue
        wanted.append(n)
        items.append(
            state.StockItem(
                request=request_digest(f"mall:{request.mall_id}", "stock", request.request_id),
                body=body_digest(request.store_id, request.sku_id, request.change, request.amount),
                mall_id=request.mall_id,
                store_id=request.store_id,
                sku_id=request.sku_id,
                change=request.change,
                amount=request.amount,
                actor=request.actor,
                reason=request.reason,
                finding=_finding(copy, request),
            )
        )
    for n, answer in zip(wanted, registered(deployment.connection, items, state.change), strict=True):
        outcomes[n] = answer
    return [outcome for outcome in outcomes if outcome is not None]


def _finding(copy: Copy, request: StockRequest) -> StockVerdict | None:
    """What the set-up says against a change. The script applies it behind a remembered answer: a retry gets the first one."""
    store = copy.stores.get(request.store_id)
    if store is None or request.mall_id not in store.mall_ids:
        return StockVerdict.UNKNOWN_STORE
    entry = copy.catalogue.get((request.mall_id, request.sku_id))
    if entry is None:
        return StockVerdict.UNKNOWN_SKU
    return StockVerdict.BUNDLE if entry.parts else None


def transfer(
    deployment: Deployment, batch: Sequence[TransferRequest]
) -> list[TransferAnswer | PickgateError]:
    """Move units that nobody has reserved from one store to another, without ever losing or making one.

    An error after the units left (StoreUnavailable) leaves them in transit: a retry with the same request id, or the sweep of
    any server, brings them in. Raises TooManyItems, StaleControl, LedgerBehind, StoreUnavailable for the batch; UnknownMall,
    RequestIdReused, StoreUnavailable, StockFull come per item.
    """
    if len(batch) > limits.BATCH_MAX:
        raise TooManyItems(
            f"{len(batch)} transfers in one batch; expected at most {limits.BATCH_MAX}", field="transfers"
        )
    copy = deployment.control.copy_to_change()
    full = _without_room(deployment, batch)
    outcomes: list[TransferAnswer | PickgateError | None] = [None] * len(batch)
    wanted: list[int] = []
    items: list[transfers.TransferItem] = []
    for n, (request, is_full) in enumerate(zip(batch, full, strict=True)):
        if request.mall_id not in copy.malls:
            outcomes[n] = UnknownMall(
                f"mall {request.mall_id} is not registered: put it first", field="mall_id"
            )
            continue
        finding, finding_store_id = _transfer_finding(copy, request)
        if finding is None and is_full:
            finding, finding_store_id = TransferVerdict.ABOVE_LIMIT, request.to_store_id
        wanted.append(n)
        items.append(
            transfers.TransferItem(
                request=request_digest(f"mall:{request.mall_id}", "transfer", request.request_id),
                body=body_digest(request.from_store_id, request.to_store_id, request.sku_id, request.amount),
                mall_id=request.mall_id,
                from_store_id=request.from_store_id,
                to_store_id=request.to_store_id,
                sku_id=request.sku_id,
                amount=request.amount,
                actor=request.actor,
                finding=finding,
                finding_store_id=finding_store_id,
            )
        )
    for n, answer in zip(wanted, registered(deployment.connection, items, transfers.transfer), strict=True):
        outcomes[n] = answer
    return [outcome for outcome in outcomes if outcome is not None]


def _transfer_finding(copy: Copy, request: TransferRequest) -> tuple[TransferVerdict | None, int]:
    """What the set-up says against a transfer, and the store it says it of (0: none). A retry gets the first answer before it."""
    for store_id in (request.from_store_id, request.to_store_id):
        store = copy.stores.get(store_id)
        if store is None or request.mall_id not in store.mall_ids:
            return TransferVerdict.UNKNOWN_STORE, store_id
    entry = copy.catalogue.get((request.mall_id, request.sku_id))
    if entry is None:
        return TransferVerdict.UNKNOWN_SKU, 0
    return (TransferVerdict.BUNDLE if entry.parts else None), 0


def _without_room(deployment: Deployment, batch: Sequence[TransferRequest]) -> list[bool]:
    """Of each transfer whether its units would not fit into the other store's figure.

    Asked before they leave, because once they have left they can't be refused any more: where several come at once and together
    don't fit, the last ones stay in transit until there is room (transfer.lua).
    """
    found = state.read_many(
        deployment.connection, [(one.mall_id, one.to_store_id, [one.sku_id]) for one in batch]
    )
    return [
        figures.on_hand + one.amount > limits.STOCK_MAX for one, [figures] in zip(batch, found, strict=True)
    ]


def read(
    deployment: Deployment, mall_id: int, store_id: int, sku_ids: Sequence[int] = ()
) -> list[StockFigures]:
    """Figures of one mall at one store, by SKU; all that it ever had if none is named. Raises StoreUnavailable."""
    return state.read(deployment.connection, mall_id, store_id, sku_ids)
