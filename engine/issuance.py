"""Issue, hold, confirm, extend, render, void, get: the verbs of the mall.

Every verb takes a batch and answers with one outcome per item: an answer, or the error of that item alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

import numpy as np

from engine import limits, policy, proof, serial
from engine.calls import (
    ConfirmAnswer,
    ConfirmRequest,
    ExtendAnswer,
    ExtendRequest,
    HoldAnswer,
    IssueAnswer,
    IssueRequest,
    Payload,
    Record,
    RenderAnswer,
    RenderRequest,
    VoidAnswer,
    VoidRequest,
)
from engine.claims import Line, State, Version, partition_of
from engine.control import Copy
from engine.deployment import Deployment
from engine.errors import InvalidInput, PickgateError, TooManyItems, UnknownMall
from engine.freezes import frozen_among
from engine.idempotency import body_digest, request_digest
from engine.keyring import Keys
from engine.registered import registered
from engine.state import codes, lifecycle, register
from engine.state.connection import Connection
from engine.state.keys import partition_of_store
from engine.verdict import (
    ConfirmVerdict,
    ExtendVerdict,
    HoldVerdict,
    IssueVerdict,
    RedeemVerdict,
    RenderVerdict,
    VoidVerdict,
)
from ext.codec import CLAIMS, Prf, seal_text_batch

_Changed = TypeVar("_Changed", ConfirmAnswer, ExtendAnswer)

SEVERAL_LINES: Final = 0
"""In place of the item: the code has several lines, see the record (docs/format.md)."""

NO_STORE: Final = 0
"""In place of a store's id: there is none."""


# --- issue and hold -------------------------------------------------------------------------------------------------
def issue(deployment: Deployment, batch: Sequence[IssueRequest]) -> list[IssueAnswer | PickgateError]:
    """Make codes, each with its stock reserved. A retry with the same request id finds the code that the first try made.

    Raises TooManyItems, StaleControl, LedgerBehind, KeyringLocked for the batch; NoActiveKey, UnknownMall, RequestIdReused, StoreUnavailable
    come per item.
    """
    return _make(deployment, batch, State.LIVE)


def hold(deployment: Deployment, batch: Sequence[IssueRequest]) -> list[HoldAnswer | PickgateError]:
    """Reserve the stock of codes before they are paid; each becomes live by confirm, or ends by itself after its hold_s.

    Raises as issue.
    """
    outcomes: list[HoldAnswer | PickgateError] = []
    for answer in _make(deployment, batch, State.HELD):
        if isinstance(answer, PickgateError):
            outcomes.append(answer)
            continue
        outcomes.append(
            HoldAnswer(
                verdict=HoldVerdict.numbered(answer.verdict.number),
                uid=answer.uid,
                expires_at_s=answer.expires_at_s,
                issued_at_ms=answer.issued_at_ms,
                sku_id=answer.sku_id,
                store_id=answer.store_id,
                event=answer.event,
                replayed=answer.replayed,
            )
        )
    return outcomes


def partitions_of_issue(deployment: Deployment, request: IssueRequest) -> tuple[int, int]:
    """The partitions that an issue needs: the store's, and that in which its request id is registered."""
    partitions = len(deployment.connection.partitions)
    digest = request_digest(f"mall:{request.mall_id}", "issue", request.request_id)
    return partition_of_store(request.store_id, partitions), register.partition_of(digest, partitions)


def _make(
    deployment: Deployment, batch: Sequence[IssueRequest], state: State
) -> list[IssueAnswer | PickgateError]:
    if len(batch) > limits.BULK_MAX:
        raise TooManyItems(
            f"{len(batch)} codes in one batch; expected at most {limits.BULK_MAX}", field="codes"
        )
    copy = deployment.control.copy_to_change()
    keys = copy.usable_keys()
    now_s = deployment.now_ms() // 1000
    outcomes: list[IssueAnswer | PickgateError | None] = [None] * len(batch)
    wanted: list[int] = []
    items: list[codes.IssueItem] = []
    for n, request in enumerate(batch):
        try:
            items.append(_issue_item(deployment, copy, keys, request, state, now_s))
            wanted.append(n)
        except PickgateError as error:
            outcomes[n] = error
    answers = registered(deployment.connection, items, codes.issue)
    for n, answer in zip(wanted, answers, strict=True):
        # What is held is not paid yet: its secrets come with the confirmation.
        outcomes[n] = answer if state is State.HELD else _with_secrets(keys, answer)
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


def take_apart(copy: Copy, mall_id: int, lines: Sequence[Line]) -> tuple[list[Line], list[codes.BundleItem]]:
    """Lines with bundles replaced by their parts, and which of them belong to which bundle.

    Done once, at issue, so that what was reserved is what will be released, whatever becomes of the catalogue. Raises
    InvalidInput when that makes too many lines, or too many units of one.
    """
    plain: list[Line] = []
    bundles: list[codes.BundleItem] = []
    for n, line in enumerate(lines):
        entry = copy.catalogue.get((mall_id, line.sku_id))
        if entry is None or not entry.parts:
            plain.append(line)
            continue
        bundles.append(codes.BundleItem(line.sku_id, line.count, len(plain) + 1, len(entry.parts)))
        for part_id, count in entry.parts:
            if line.count * count > limits.COUNT_MAX:
                raise InvalidInput(
                    f"lines[{n}].count is {line.count} bundles with {count} units of SKU {part_id} each; expected at most"
                    f" {limits.COUNT_MAX} units of a SKU",
                    field=f"lines[{n}].count",
                )
            plain.append(Line(part_id, line.count * count))
    if len(plain) > limits.LINES_MAX:
        raise InvalidInput(
            f"lines has {len(plain)} SKUs when its bundles are taken apart; expected at most {limits.LINES_MAX}",
            field="lines",
        )
    return plain, bundles


def _issue_item(
    deployment: Deployment, copy: Copy, keys: Keys, request: IssueRequest, state: State, now_s: int
) -> codes.IssueItem:
    if request.mall_id not in copy.malls:
        raise UnknownMall(f"mall {request.mall_id} is not registered: put it first", field="mall_id")
    terms = copy.policies.resolve_lines(
        request.store_id, request.mall_id, [line.sku_id for line in request.lines]
    )
    version = request.version or terms.version
    proof_needed = version is Version.VALUABLE and terms.customer_proof == "required"
    if proof_needed and not terms.proof_methods:
        raise InvalidInput(
            "the SKUs' policies have no way of proof in common: issue a code for each, or change the policies",
            field="lines",
        )
    finding, finding_sku = _finding(copy, request)
    lines, bundles = take_apart(copy, request.mall_id, request.lines)
    if finding is None and (frozen := frozen_among(copy.freezes, request.mall_id, request.store_id, lines)):
        finding, finding_sku = IssueVerdict.SKU_FROZEN, frozen
    if finding is None and proof_needed and not proof.provable(copy.providers, terms.proof_methods):
        # It could be handed out to nobody, and without a proof it must not be: refuse before anybody has paid.
        finding = IssueVerdict.PROOF_UNAVAILABLE
    # Without an active key the code could never be shown: refuse before stock is reserved for it.
    keys.active_kid(version, request.suite)
    static = version is Version.STATIC
    if static:
        keys.active_serial_prf()
    keys.active_uid_prf()
    free, others = _candidates(deployment, keys, request, version)
    ttl_s = request.ttl_s or terms.code_ttl_s
    return codes.IssueItem(
        request=request_digest(
            f"mall:{request.mall_id}", "hold" if state is State.HELD else "issue", request.request_id
        ),
        body=body_digest(
            request.store_id,
            request.order_id,
            sorted((line.sku_id, line.count) for line in request.lines),
            request.version or 0,
            request.suite,
            request.channel,
            request.ttl_s,
            request.amount_fen,
            codes.pack_splits(request.splits),
            request.replaces,
        ),
        mall_id=request.mall_id,
        store_id=request.store_id,
        channel=request.channel,
        version=version,
        suite=request.suite,
        state=state,
        policy_version=copy.version,
        expires_at_s=now_s + (terms.hold_s if state is State.HELD else ttl_s),
        ttl_s=ttl_s,
        proof_methods=terms.proof_methods if proof_needed else (),
        amount_fen=request.amount_fen,
        pin_generation=keys.active_pin_generation() if static else 0,
        candidates=[*free, *others],
        candidates_free=len(free),
        lines=lines,
        bundles=bundles,
        order_id=request.order_id,
        splits=request.splits,
        actor=request.actor,
        finding=finding,
        finding_sku=finding_sku,
        replaces=request.replaces,
    )


def _candidates(
    deployment: Deployment, keys: Keys, request: IssueRequest, version: Version
) -> tuple[list[bytes], list[bytes]]:
    """Uids that a request may get, and those under which an earlier try of it may have left its code.

    The latter are those of the other versions (the policy, or the caller, may have wanted another) and of uid keys that are
    disabled: what such a key derived once is still there.
    """
    partition = partition_of_store(request.store_id, deployment.constants.partitions)

    def of(version: Version, prfs: Sequence[Prf]) -> list[bytes]:
        return [
            uid
            for prf in prfs
            for uid in serial.uid_candidates(
                prf, request.mall_id, request.request_id.encode(), version, partition
            )
        ]

    others = [uid for other in Version if other is not version for uid in of(other, keys.uid_prfs)]
    disabled = [uid for other in Version for uid in of(other, keys.uid_prfs_disabled)]
    return of(version, keys.uid_prfs), others + disabled


def _with_secrets(keys: Keys, answer: IssueAnswer | PickgateError) -> IssueAnswer | PickgateError:
    """Add what is derived rather than stored: the typed serial and the PIN of a static code."""
    if isinstance(answer, PickgateError) or not answer.verdict.success or not answer.pin_generation:
        return answer
    try:
        typed, pin = _secrets(keys, answer.uid, answer.pin_generation)
    except PickgateError as error:
        return error
    return replace(answer, typed=typed, pin=pin)


def _secrets(keys: Keys, uid: bytes, pin_generation: int) -> tuple[str, str]:
    typed = serial.typed_of(uid, keys.active_serial_prf())
    return typed, serial.pin_of(keys.pin_prf(pin_generation), uid, pin_generation)


# --- confirm and extend ---------------------------------------------------------------------------------------------
def confirm(deployment: Deployment, batch: Sequence[ConfirmRequest]) -> list[ConfirmAnswer | PickgateError]:
    """Make held codes live, because they were paid; their life counts from now. Raises as void, and KeyringLocked."""
    _check_batch(len(batch), "confirmations")
    keys = deployment.control.copy_to_change().usable_keys()
    now_s = deployment.now_ms() // 1000
    records = codes.read(deployment.connection, [request.uid for request in batch])
    items = [
        lifecycle.ChangeItem(
            uid=request.uid,
            request=request_digest(f"mall:{request.mall_id}", "confirm", request.request_id),
            body=body_digest(request.uid),
            mall_id=request.mall_id,
            expires_at_s=now_s + (record.ttl_s if record else 0),
            actor=request.actor,
        )
        for request, record in zip(batch, records, strict=True)
    ]
    unknown = ConfirmAnswer(ConfirmVerdict.UNKNOWN_CODE)
    outcomes: list[ConfirmAnswer | PickgateError] = []
    for record, outcome in zip(records, _changed(deployment, items, lifecycle.confirm, unknown), strict=True):
        if (
            not isinstance(outcome, PickgateError)
            and outcome.verdict.success
            and record is not None
            and record.pin_generation
        ):
            try:
                typed, pin = _secrets(keys, record.uid, record.pin_generation)
                outcomes.append(replace(outcome, typed=typed, pin=pin))
            except PickgateError as error:
                outcomes.append(error)
        else:
            outcomes.append(outcome)
    return outcomes


def extend(deployment: Deployment, batch: Sequence[ExtendRequest]) -> list[ExtendAnswer | PickgateError]:
    """Move the expiry of codes to a later time, at most 400 days from their issue. Raises as void."""
    _check_batch(len(batch), "extensions")
    deployment.control.copy_to_change()
    items = [
        lifecycle.ChangeItem(
            uid=request.uid,
            request=request_digest(f"mall:{request.mall_id}", "extend", request.request_id),
            body=body_digest(request.uid, request.expires_at_s),
            mall_id=request.mall_id,
            expires_at_s=request.expires_at_s,
            actor=request.actor,
        )
        for request in batch
    ]
    return _changed(deployment, items, lifecycle.extend, ExtendAnswer(ExtendVerdict.UNKNOWN_CODE))


def _changed(
    deployment: Deployment,
    items: Sequence[lifecycle.ChangeItem],
    decide: Callable[[Connection, Sequence[lifecycle.ChangeItem]], list[_Changed | PickgateError]],
    unknown: _Changed,
) -> list[_Changed | PickgateError]:
    """Run a change behind the register of request ids; a uid of a partition that doesn't exist is unknown at once."""
    there = [partition_of(item.uid) < deployment.constants.partitions for item in items]
    answers = iter(
        registered(
            deployment.connection,
            [item for item, is_there in zip(items, there, strict=True) if is_there],
            decide,
        )
    )
    return [next(answers) if is_there else unknown for is_there in there]


def _check_batch(items: int, what: str) -> None:
    if items > limits.BATCH_MAX:
        raise TooManyItems(f"{items} {what} in one batch; expected at most {limits.BATCH_MAX}", field="codes")


# --- render ---------------------------------------------------------------------------------------------------------
def render(deployment: Deployment, batch: Sequence[RenderRequest]) -> list[RenderAnswer | PickgateError]:
    """Seal the payloads that a customer shows. Changes nothing, but for a counted try when the customer is too far away.

    Stamps. The counter block of a sealed payload is uid ‖ stamp, so two payloads of one uid and stamp must be identical. The
    payload to show now takes an even second, not below the record's floor, which each change raises; payloads ahead take an
    odd second of their own minute, 1 + 2 × revision. So neither a change of the record, nor a mixture of both kinds, can bring
    one stamp with two contents. Raises TooManyItems, StaleControl, KeyringLocked, StoreUnavailable for the batch.
    """
    _check_batch(len(batch), "renders")
    copy = deployment.control.copy()
    keys = copy.usable_keys()
    now_ms = deployment.now_ms()
    records = codes.read(deployment.connection, [request.uid for request in batch])
    places = _judge_customers(copy, batch, records)
    outcomes: list[RenderAnswer | PickgateError] = []
    far: list[int] = []
    tries: list[lifecycle.TryItem] = []
    for n, (request, record, place) in enumerate(zip(batch, records, places, strict=True)):
        try:
            outcomes.append(_render(copy, keys, request, record, place[0], now_ms))
        except PickgateError as error:
            outcomes.append(error)
        if _verdict(outcomes[n]) is RenderVerdict.OUT_OF_RANGE:
            far.append(n)
            tries.append(
                lifecycle.TryItem(
                    uid=request.uid,
                    request=request_digest(f"mall:{request.mall_id}", "render", request.request_id),
                    body=body_digest(request.uid),
                    mall_id=request.mall_id,
                    verdict=RenderVerdict.OUT_OF_RANGE,
                    distance_bucket=place[1],
                    actor=request.actor,
                )
            )
    counted_tries = lifecycle.count_tries(deployment.connection, tries)
    # Read again: the answer shows the code with the try that was counted just now.
    after = codes.read(deployment.connection, [batch[n].uid for n in far])
    for n, counted, record in zip(far, counted_tries, after, strict=True):
        if isinstance(counted, PickgateError):
            outcomes[n] = counted
        elif counted is not None:
            review_id = str(counted.event) if counted.verdict is RenderVerdict.LOCKED else ""
            outcomes[n] = RenderAnswer(
                counted.verdict, record=record, tries_left=counted.tries_left, review_id=review_id
            )
    return outcomes


def _verdict(outcome: RenderAnswer | PickgateError) -> RenderVerdict | None:
    return None if isinstance(outcome, PickgateError) else outcome.verdict


def _judge_customers(
    copy: Copy, batch: Sequence[RenderRequest], records: Sequence[Record | None]
) -> list[tuple[RenderVerdict | None, int]]:
    """What each customer's position says against showing the code, by the policy of its SKUs."""
    stores = [copy.stores.get(record.store_id) if record else None for record in records]
    rules = [
        copy.policies.resolve_lines(record.store_id, record.mall_id, record.ordered_sku_ids).customer_location
        if record
        else "off"
        for record in records
    ]
    findings = policy.judge_places(stores, [request.position for request in batch], rules)
    return [(_PLACE_OF_RENDER[finding] if finding else None, bucket) for finding, bucket in findings]


_PLACE_OF_RENDER: Final = {
    RedeemVerdict.LOCATION_REQUIRED: RenderVerdict.LOCATION_REQUIRED,
    RedeemVerdict.LOCATION_UNRELIABLE: RenderVerdict.LOCATION_UNRELIABLE,
    RedeemVerdict.OUT_OF_RANGE: RenderVerdict.OUT_OF_RANGE,
}
_RENDER_REFUSALS: Final = {
    State.HELD: RenderVerdict.NOT_CONFIRMED,
    State.REDEEMED: RenderVerdict.ALREADY_REDEEMED,
    State.VOIDED: RenderVerdict.VOIDED,
    State.EXPIRED: RenderVerdict.EXPIRED,
    State.LOCKED: RenderVerdict.LOCKED,
}


def _render(
    copy: Copy,
    keys: Keys,
    request: RenderRequest,
    record: Record | None,
    place: RenderVerdict | None,
    now_ms: int,
) -> RenderAnswer:
    if record is None or record.mall_id != request.mall_id:
        return RenderAnswer(RenderVerdict.UNKNOWN_CODE)
    life_s = copy.policies.resolve(record.store_id).payload_life_s
    if not 1 <= request.count <= limits.RENDER_AHEAD_S_MAX // life_s:
        raise InvalidInput(
            f"count is {request.count}; expected 1 to {limits.RENDER_AHEAD_S_MAX // life_s}: a day's worth",
            field="count",
        )
    now_s = now_ms // 1000
    refusal = _RENDER_REFUSALS.get(record.state)
    if not record.state.ended and record.expires_at_s <= now_s:
        refusal = RenderVerdict.EXPIRED
    refusal = refusal or place
    if refusal is RenderVerdict.OUT_OF_RANGE and not request.request_id:
        raise InvalidInput(
            "request_id is missing; expected one, because the customer's distance counts as a try here",
            field="request_id",
        )
    if refusal is not None:
        review_id = str(record.lock) if refusal is RenderVerdict.LOCKED and record.lock else ""
        return RenderAnswer(refusal, record=record, review_id=review_id)

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
    return RenderAnswer(RenderVerdict.RENDERED, tuple(payloads), record, typed=typed, pin=pin)


def now_stamp(now_s: int, stamp_floor_s: int) -> int:
    """Stamp of the payload to show now: the first even second from now on that is not below the record's floor.

    A change of what a payload shows raises the floor past every stamp given before (base.lua, touch), so the stamp lies at most
    one second ahead of now, and at most three just after a change: within the skew that terminals allow. Changes that follow
    each other faster push it further ahead; the payload's valid_from says when it will be taken.
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
    """End codes and release what they reserve. Raises TooManyItems, StaleControl, LedgerBehind, StoreUnavailable for the batch."""
    _check_batch(len(batch), "voids")
    deployment.control.copy_to_change()
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
            for prf in (*keys.uid_prfs, *keys.uid_prfs_disabled)
            for uid in serial.uid_candidates(prf, mall_id, request_id.encode(), version, partition)
        ]
        requests = {request_digest(f"mall:{mall_id}", verb, request_id) for verb in ("issue", "hold")}
        found.append(codes.find_request(deployment.connection, requests, candidates))
    return found
