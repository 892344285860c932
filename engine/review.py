"""Reviews: locked codes that wait for somebody's decision.

A code locks after three counted tries. Operations look at the evidence and approve (its tries start anew), redeem by hand, or
void it; never on tries of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from engine import limits
from engine.calls import Review, ReviewAnswer, ReviewRequest
from engine.claims import State, partition_of
from engine.deployment import Deployment
from engine.errors import InvalidInput, PickgateError, TooManyItems
from engine.idempotency import body_digest, request_digest
from engine.registered import registered
from engine.state import codes, lifecycle
from engine.verdict import ReviewVerdict

PAGE_MAX: Final = 200
_NO_STORE: Final = 0


def list_reviews(
    deployment: Deployment, mall_id: int, *, count: int = 50, after: str = ""
) -> tuple[list[Review], str]:
    """Open reviews of a mall's codes, by partition and then the oldest first; and where the next page begins ('' at the end).

    Raises InvalidInput for a `after` that no page gave, StoreUnavailable.
    """
    if not 1 <= count <= PAGE_MAX:
        raise InvalidInput(f"count is {count}; expected 1 to {PAGE_MAX}", field="count")
    partition, position = _parse_after(after, deployment.constants.partitions)
    found: list[Review] = []
    while partition < deployment.constants.partitions:
        page = lifecycle.open_reviews(deployment.connection, partition, position, count)
        uids = [uid for _, uid in page]
        records = codes.read(deployment.connection, uids)
        evidence = lifecycle.read_evidence(deployment.connection, uids)
        for (at_ms, uid), record, tries in zip(page, records, evidence, strict=True):
            position = at_ms, uid
            if record is None or record.mall_id != mall_id or record.state is not State.LOCKED:
                continue
            found.append(Review(str(record.lock), at_ms, record, tries))
            if len(found) == count:
                return found, f"{partition}:{at_ms}:{uid.hex()}"
        if len(page) < count:
            partition, position = partition + 1, (0, b"")
    return found, ""


def _parse_after(after: str, partitions: int) -> tuple[int, tuple[int, bytes]]:
    if not after:
        return 0, (0, b"")
    try:
        partition, at_ms, uid = after.split(":")
        parsed = int(partition), (int(at_ms), bytes.fromhex(uid))
    except ValueError:
        parsed = -1, (0, b"")
    if not 0 <= parsed[0] < partitions:
        raise InvalidInput(
            "page_token is not one that a page gave; expected the last page's, or none", field="page_token"
        )
    return parsed


def decide(deployment: Deployment, batch: Sequence[ReviewRequest]) -> list[ReviewAnswer | PickgateError]:
    """Decide locked codes. Raises TooManyItems, StaleControl, LedgerBehind, StoreUnavailable for the batch."""
    if len(batch) > limits.BATCH_MAX:
        raise TooManyItems(
            f"{len(batch)} decisions in one batch; expected at most {limits.BATCH_MAX}", field="codes"
        )
    deployment.control.copy_to_change()
    records = codes.read(deployment.connection, [request.uid for request in batch])
    outcomes: list[ReviewAnswer | PickgateError | None] = [None] * len(batch)
    wanted: list[int] = []
    items: list[lifecycle.ReviewItem] = []
    for n, (request, record) in enumerate(zip(batch, records, strict=True)):
        if partition_of(request.uid) >= deployment.constants.partitions:
            outcomes[n] = ReviewAnswer(ReviewVerdict.UNKNOWN_CODE, uid=request.uid)
            continue
        wanted.append(n)
        items.append(
            lifecycle.ReviewItem(
                uid=request.uid,
                request=request_digest(f"mall:{request.mall_id}", "review", request.request_id),
                body=body_digest(request.uid, request.decision),
                mall_id=request.mall_id,
                store_id=record.store_id if record and record.mall_id == request.mall_id else _NO_STORE,
                decision=request.decision,
                actor=request.actor,
                reason=request.reason,
            )
        )
    for n, answer in zip(wanted, registered(deployment.connection, items, lifecycle.review), strict=True):
        outcomes[n] = answer
    return [outcome for outcome in outcomes if outcome is not None]
