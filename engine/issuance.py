"""Issue, render, void, get: the verbs of the mall.

Every verb takes a batch and answers with one outcome per item: an answer, or the error of that item alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from engine import limits, serial
from engine.calls import (
    IssueAnswer,
    IssueRequest,
    Payload,
    Record,
    RenderAnswer,
    RenderRequest,
    VoidAnswer,
    VoidRequest,
)
from engine.claims import State, Version, partition_of
from engine.control import Copy
from engine.deployment import Deployment
from engine.errors import InvalidInput, PickgateError, TooManyItems, UnknownMall
from engine.idempotency import body_digest, request_digest
from engine.keyring import Keys
from engine.registered import registered
from engine.state import codes
from engine.state.keys import partition_of_store
from engine.verdict import IssueVerdict, RenderVerdict, VoidVerdict
from ext.codec import CLAIMS, seal_text_batch

SEVERAL_LINES: Final = 0
"""In place of the item: the code has several lines, see the record (docs/format.md)."""

NO_STORE: Final = 0
"""In place of a store's id: there is none."""


# --- issue ----------------------------------------------------------------------------------------------------------
def issue(deployment: Deployment, batch: Sequence[IssueRequest]) -> list[IssueAnswer | PickgateError]:
    """Make codes, each with its stock reserved. A retry with the same request id finds the code that the first try made.

    Raises TooManyItems, StaleControl, KeyringLocked for the batch; NoActiveKey, UnknownMall, RequestIdReused, StoreUnavailable
    come per item.
    """
    if len(batch) > limits.BULK_MAX:
        raise TooManyItems(
            f"{len(batch)} codes in one batch; expected at most {limits.BULK_MAX}", field="codes"
        )
    copy = deployment.control.copy()
    keys = copy.usable_keys()
    now_s = deployment.now_ms() // 1000
    outcomes: list[IssueAnswer | PickgateError | None] = [None] * len(batch)
    wanted: list[int] = []
    items: list[codes.IssueItem] = []
    for n, request in enumerate(batch):
        try:
            items.append(_issue_item(deployment, copy, keys, request, now_s))
            wanted.append(n)
        except PickgateError as error:
            outcomes[n] = error
    answers = registered(deployment.connection, items, codes.issue)
    for n, request, answer in zip(wanted, (batch[n] for n in wanted), answers, strict=True):
        outcomes[n] = _with_secrets(keys, request, answer)
    return [outcome for outcome in outcomes if outcome is not None]


def _finding(copy: Copy, request: IssueRequest) -> tuple[IssueVerdict | None, int]:
    """What the set-up says against an issue, and the SKU it says it of (0: none).

    It travels into the script and applies only if no code was made before: a retry finds its code even when the store has
    closed meanwhile.
    """
    store = copy.stores.get(request.store_id)
    if store is None or request.mall_id not in store.mall_ids:
        return IssueVerdict.UNKNOWN_STORE, 0
    if store.closed:
        return IssueVerdict.STORE_CLOSED, 0
    for line in request.lines:
        if (request.mall_id, line.sku_id) not in copy.catalogue:
            return IssueVerdict.UNKNOWN_SKU, line.sku_id
    return None, 0


def _issue_item(
    deployment: Deployment, copy: Copy, keys: Keys, request: IssueRequest, now_s: int
) -> codes.IssueItem:
    if request.mall_id not in copy.malls:
        raise UnknownMall(f"mall {request.mall_id} is not registered: put it first", field="mall_id")
    finding, finding_sku = _finding(copy, request)
    # Without an active key the code could never be shown: refuse before stock is reserved for it.
    keys.active_kid(request.version, request.suite)
    static = request.version is Version.STATIC
    if static:
        keys.active_serial_prf()
    partition = partition_of_store(request.store_id, deployment.constants.partitions)
    keys.active_uid_prf()
    candidates = [
        uid
        for prf in keys.uid_prfs
        for uid in serial.uid_candidates(
            prf, request.mall_id, request.request_id.encode(), request.version, partition
        )
    ]
    return codes.IssueItem(
        request=request_digest(f"mall:{request.mall_id}", "issue", request.request_id),
        body=body_digest(
            request.store_id,
            request.order_id,
            [(line.sku_id, line.count) for line in request.lines],
            request.version,
            request.suite,
            request.channel,
            request.ttl_s,
            request.amount_fen,
            codes.pack_splits(request.splits),
        ),
        mall_id=request.mall_id,
        store_id=request.store_id,
        channel=request.channel,
        version=request.version,
        suite=request.suite,
        policy_version=copy.version,
        expires_at_s=now_s + (request.ttl_s or limits.TTL_S_DEFAULT),
        amount_fen=request.amount_fen,
        pin_generation=keys.active_pin_generation() if static else 0,
        candidates=candidates,
        lines=request.lines,
        order_id=request.order_id,
        splits=request.splits,
        actor=request.actor,
        finding=finding,
        finding_sku=finding_sku,
    )


def _with_secrets(
    keys: Keys, request: IssueRequest, answer: IssueAnswer | PickgateError
) -> IssueAnswer | PickgateError:
    """Add what is derived rather than stored: the typed serial and the PIN of a static code."""
    if (
        isinstance(answer, PickgateError)
        or not answer.verdict.success
        or request.version is not Version.STATIC
    ):
        return answer
    try:
        typed, pin = _secrets(keys, answer.uid, answer.pin_generation)
    except PickgateError as error:
        return error
    return replace(answer, typed=typed, pin=pin)


def _secrets(keys: Keys, uid: bytes, pin_generation: int) -> tuple[str, str]:
    typed = serial.typed_of(uid, keys.active_serial_prf())
    return typed, serial.pin_of(keys.pin_prf(pin_generation), uid, pin_generation)


# --- render ---------------------------------------------------------------------------------------------------------
def render(deployment: Deployment, batch: Sequence[RenderRequest]) -> list[RenderAnswer | PickgateError]:
    """Seal the payloads that a customer shows. Changes nothing.

    Stamps. The counter block of a sealed payload is uid ‖ stamp, so two payloads of one uid and stamp must be identical. The
    payload to show now takes an even second, not below the record's floor, which each change raises; payloads ahead take an
    odd second of their own minute, 1 + 2 × revision. So neither a change of the record, nor a mixture of both kinds, can bring
    one stamp with two contents. Raises StaleControl, KeyringLocked, StoreUnavailable for the batch.
    """
    if len(batch) > limits.BATCH_MAX:
        raise TooManyItems(
            f"{len(batch)} renders in one batch; expected at most {limits.BATCH_MAX}", field="codes"
        )
    keys = deployment.control.copy().usable_keys()
    now_ms = deployment.now_ms()
    records = codes.read(deployment.connection, [request.uid for request in batch])
    outcomes: list[RenderAnswer | PickgateError] = []
    for request, record in zip(batch, records, strict=True):
        try:
            outcomes.append(_render(deployment, keys, request, record, now_ms))
        except PickgateError as error:
            outcomes.append(error)
    return outcomes


_RENDER_REFUSALS: Final = {
    State.REDEEMED: RenderVerdict.ALREADY_REDEEMED,
    State.VOIDED: RenderVerdict.VOIDED,
    State.EXPIRED: RenderVerdict.EXPIRED,
    State.LOCKED: RenderVerdict.LOCKED,
}


def _render(
    deployment: Deployment, keys: Keys, request: RenderRequest, record: Record | None, now_ms: int
) -> RenderAnswer:
    life_s = deployment.payload_life_s
    if not 1 <= request.count <= limits.RENDER_AHEAD_S_MAX // life_s:
        raise InvalidInput(
            f"count is {request.count}; expected 1 to {limits.RENDER_AHEAD_S_MAX // life_s}: a day's worth",
            field="count",
        )
    if record is None or record.mall_id != request.mall_id:
        return RenderAnswer(RenderVerdict.UNKNOWN_CODE)
    now_s = now_ms // 1000
    refusal = _RENDER_REFUSALS.get(record.state)
    if refusal is None and record.expires_at_s <= now_s:
        refusal = RenderVerdict.EXPIRED
    if refusal is not None:
        return RenderAnswer(refusal, record=record)

    typed = pin = ""
    stamps = [now_stamp(now_s, record.stamp_floor_s)]
    if record.version is Version.STATIC:
        typed, pin = _secrets(keys, record.uid, record.pin_generation)
        stamps = [0]
    elif request.count > 1:
        if record.revision > limits.REVISIONS_AHEAD_MAX:
            return RenderAnswer(RenderVerdict.TOO_MANY_CHANGES, record=record)
        stamps += ahead_stamps(now_s, record.revision, request.count - 1, life_s)
    payloads = []
    for stamp, text in zip(stamps, seal(keys, record, stamps), strict=True):
        if stamp == 0:
            payloads.append(Payload(text, record.issued_at_ms, record.expires_at_s * 1000 - 1))
            continue
        valid_from_ms = (stamp - limits.STAMP_SKEW_S) * 1000
        if valid_from_ms >= record.expires_at_s * 1000:
            break
        valid_until_ms = (stamp + life_s + limits.STAMP_SKEW_S) * 1000 + 999
        payloads.append(Payload(text, valid_from_ms, min(valid_until_ms, record.expires_at_s * 1000 - 1)))
    return RenderAnswer(RenderVerdict.RENDERED, tuple(payloads), record, typed, pin)


def now_stamp(now_s: int, stamp_floor_s: int) -> int:
    """Stamp of the payload to show now: the first even second from now on that is not below the record's floor.

    A change of what a payload shows raises the floor past every stamp given before (base.lua, touch), so the stamp lies one
    second ahead of now, and three just after a change: within the skew that terminals allow.
    """
    earliest = max(now_s, stamp_floor_s)
    return earliest + earliest % 2


def ahead_stamps(now_s: int, revision: int, count: int, life_s: int) -> list[int]:
    """Stamps of the next `count` payloads, one per life, in the odd second that belongs to the record's revision."""
    first = now_s // life_s + 1
    return [_odd_second((first + n) * life_s) + 2 * revision for n in range(count)]


def _odd_second(at_s: int) -> int:
    return at_s + 1 - at_s % 2


def seal(keys: Keys, record: Record, stamps: Sequence[int]) -> list[str]:
    """Payload texts of one record, one per stamp, under the active key. Raises NoActiveKey."""
    left = [line for line in record.lines if line.left > 0]
    claims = np.zeros(len(stamps), dtype=CLAIMS)
    claims["uid"] = np.void(record.uid)
    claims["stamp"] = stamps
    claims["exp"] = record.expires_at_s
    claims["store"] = record.store_id
    claims["item"] = left[0].sku_id if len(left) == 1 else SEVERAL_LINES
    claims["qty"] = left[0].left if len(left) == 1 else 0
    claims["amount"] = record.amount_fen
    return seal_text_batch(keys.payload_table, keys.active_kid(record.version, record.suite), claims)


# --- void -----------------------------------------------------------------------------------------------------------
def void(deployment: Deployment, batch: Sequence[VoidRequest]) -> list[VoidAnswer | PickgateError]:
    """End codes and release what they reserve. Raises TooManyItems, StaleControl, StoreUnavailable for the batch."""
    if len(batch) > limits.BATCH_MAX:
        raise TooManyItems(
            f"{len(batch)} voids in one batch; expected at most {limits.BATCH_MAX}", field="codes"
        )
    deployment.control.copy()
    records = codes.read(deployment.connection, [request.uid for request in batch])
    outcomes: list[VoidAnswer | PickgateError | None] = [None] * len(batch)
    wanted: list[int] = []
    items: list[codes.VoidItem] = []
    for n, (request, record) in enumerate(zip(batch, records, strict=True)):
        if partition_of(request.uid) >= deployment.constants.partitions:
            outcomes[n] = VoidAnswer(VoidVerdict.UNKNOWN_CODE, uid=request.uid)
            continue
        wanted.append(n)
        items.append(
            codes.VoidItem(
                uid=request.uid,
                request=request_digest(f"mall:{request.mall_id}", "void", request.request_id),
                body=body_digest(request.uid),
                mall_id=request.mall_id,
                # No store has the number 0, so the script finds no code of this mall; but a reused request id first.
                store_id=record.store_id if record and record.mall_id == request.mall_id else NO_STORE,
                actor=request.actor,
                reason=request.reason,
            )
        )
    for n, answer in zip(wanted, registered(deployment.connection, items, codes.void), strict=True):
        outcomes[n] = answer
    return [outcome for outcome in outcomes if outcome is not None]


# --- get ------------------------------------------------------------------------------------------------------------
def get(deployment: Deployment, mall_id: int, uids: Sequence[bytes]) -> list[Record | None]:
    """Records of a mall's codes, in order; None for what is not there or is another mall's. Raises StoreUnavailable."""
    records = codes.read(deployment.connection, uids)
    return [record if record and record.mall_id == mall_id else None for record in records]


def get_by_request_id(
    deployment: Deployment, mall_id: int, request_ids: Sequence[str]
) -> list[Record | None]:
    """Records that issue requests made; None where there is none. Raises KeyringLocked, StoreUnavailable."""
    keys = deployment.control.copy().usable_keys()
    found = []
    for request_id in request_ids:
        candidates = [
            uid
            for partition in range(deployment.constants.partitions)
            for version in Version
            for prf in keys.uid_prfs
            for uid in serial.uid_candidates(prf, mall_id, request_id.encode(), version, partition)
        ]
        request = request_digest(f"mall:{mall_id}", "issue", request_id)
        found.append(codes.find_request(deployment.connection, request, candidates))
    return found
