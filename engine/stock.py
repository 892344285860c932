"""Stock of each mall at each store: receive, adjust, count, baseline, read."""

from __future__ import annotations

from collections.abc import Sequence

from engine import limits
from engine.calls import StockAnswer, StockFigures, StockRequest
from engine.control import Copy
from engine.deployment import Deployment
from engine.errors import PickgateError, TooManyItems, UnknownMall
from engine.idempotency import body_digest, request_digest
from engine.registered import registered
from engine.state import stock as state
from engine.verdict import StockVerdict


def change(deployment: Deployment, batch: Sequence[StockRequest]) -> list[StockAnswer | PickgateError]:
    """Change stock figures, each once. A retry with the same request id gets the first answer for 72 h.

    Raises TooManyItems, StaleControl for the batch; UnknownMall, RequestIdReused, StoreUnavailable come per item.
    """
    if len(batch) > limits.BATCH_MAX:
        raise TooManyItems(
            f"{len(batch)} changes in one batch; expected at most {limits.BATCH_MAX}", field="changes"
        )
    copy = deployment.control.copy()
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
    if (request.mall_id, request.sku_id) not in copy.catalogue:
        return StockVerdict.UNKNOWN_SKU
    return None


def read(
    deployment: Deployment, mall_id: int, store_id: int, sku_ids: Sequence[int] = ()
) -> list[StockFigures]:
    """Figures of one mall at one store, by SKU; all that it ever had if none is named. Raises StoreUnavailable."""
    return state.read(deployment.connection, mall_id, store_id, sku_ids)
