"""Redeem, inspect and reverse: the verbs of the store terminal, and the way of a redemption, which never turns back:

code text → open (kernels) → pure policy → one script call per partition → verdict.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, get_args
from zoneinfo import ZoneInfo

from engine import hours, limits, policies, policy, proof, serial
from engine.calls import (
    InspectAnswer,
    InspectRequest,
    RedeemAnswer,
    RedeemRequest,
    ReverseAnswer,
    ReverseRequest,
)
from engine.claims import Line, Position, Terminal, Version, partition_of
from engine.control import Copy
from engine.deployment import Deployment
from engine.errors import PickgateError, TooManyItems
from engine.idempotency import body_digest, request_digest
from engine.keyring import Keys
from engine.state import codes, layouts, lifecycle
from engine.stores import Store
from engine.verdict import InspectVerdict, RedeemVerdict, ReverseVerdict
from ext.codec import OpenStatus, open_text_batch, pack

_NOBODY: Final = b"\0" * 12


@dataclass(frozen=True, slots=True)
class Opened:
    """What a code says once it has proved genuine."""

    uid: bytes
    version: int
    stale: bool
    sku_id: int = 0
    """The SKU that the payload names; 0: several, or it doesn't say."""


@dataclass(frozen=True, slots=True)
class _Try:
    """What redeem and inspect have in common."""

    terminal: Terminal
    code: str
    position: Position | None


@dataclass(frozen=True, slots=True)
class _Proof:
    """What became of a proof token: a verdict against it, or its digest and the flag of its method."""

    finding: RedeemVerdict | None
    digest: bytes
    method: int


@dataclass(frozen=True, slots=True)
class _Findings:
    """What the pure policy found against one try."""

    place: RedeemVerdict | None
    distance_bucket: int
    closed: RedeemVerdict | None
    window: RedeemVerdict | None


def redeem(deployment: Deployment, batch: Sequence[RedeemRequest]) -> list[RedeemAnswer | PickgateError]:
    """Decide tries to redeem, each once and for all. A retry with the same request id gets the first answer.

    Raises TooManyItems, StaleControl, LedgerBehind, KeyringLocked for the batch; RequestIdReused and StoreUnavailable come per item.
    """
    deployment.control.copy_to_change()
    copy, keys = _ready(deployment, len(batch))
    tries = [_Try(request.terminal, request.code, request.position) for request in batch]
    opened = open_codes(deployment, copy, [request.code for request in batch])
    findings = _judge(deployment, copy, tries)
    wanted: list[int] = []
    items: list[codes.RedeemItem] = []
    for n, (request, code) in enumerate(zip(batch, opened, strict=True)):
        if code is None:
            continue
        wanted.append(n)
        items.append(
            _item(
                request.terminal,
                code,
                findings[n],
                pin=_judge_pin(keys, code, request.pin),
                pin_generations=_pin_generations(keys),
                proof=_judge_proof(deployment, copy, code, request),
                request=request_digest(
                    f"terminal:{request.terminal.mall_id}:{request.terminal.store_id}:{request.terminal.terminal_id}",
                    "redeem",
                    request.request_id,
                ),
                body=body_digest(code.uid, sorted((line.sku_id, line.count) for line in request.lines)),
                lines=request.lines,
                actor=request.actor,
                dry=False,
            )
        )
    outcomes: list[RedeemAnswer | PickgateError] = [RedeemAnswer(RedeemVerdict.INVALID_CODE) for _ in batch]
    for n, facts in zip(wanted, codes.redeem(deployment.connection, items), strict=True):
        outcomes[n] = facts if isinstance(facts, PickgateError) else _named(deployment, copy, facts.answer)
    return outcomes


def inspect(deployment: Deployment, batch: Sequence[InspectRequest]) -> list[InspectAnswer | PickgateError]:
    """Say what redeem would answer now, changing and counting nothing. A PIN is never judged.

    Raises as redeem.
    """
    copy, _ = _ready(deployment, len(batch))
    tries = [_Try(request.terminal, request.code, request.position) for request in batch]
    opened = open_codes(deployment, copy, [request.code for request in batch])
    findings = _judge(deployment, copy, tries)
    wanted: list[int] = []
    items: list[codes.RedeemItem] = []
    for n, (request, code) in enumerate(zip(batch, opened, strict=True)):
        if code is None:
            continue
        wanted.append(n)
        items.append(
            _item(
                request.terminal,
                code,
                findings[n],
                pin=(codes.NO_PIN, codes.NO_PIN),
                pin_generations=(0, 0),
                proof=_NO_PROOF,
                request=_NOBODY,
                body=_NOBODY[:8],
                lines=(),
                actor="",
                dry=True,
            )
        )
    outcomes: list[InspectAnswer | PickgateError] = [
        InspectAnswer(InspectVerdict.INVALID_CODE) for _ in batch
    ]
    for n, facts in zip(wanted, codes.redeem(deployment.connection, items), strict=True):
        outcomes[n] = facts if isinstance(facts, PickgateError) else _inspected(deployment, copy, facts)
    return outcomes


def _ready(deployment: Deployment, items: int) -> tuple[Copy, Keys]:
    if items > limits.BATCH_MAX:
        raise TooManyItems(f"{items} codes in one batch; expected at most {limits.BATCH_MAX}", field="codes")
    copy = deployment.control.copy()
    return copy, copy.usable_keys()


def open_codes(deployment: Deployment, copy: Copy, texts: Sequence[str]) -> list[Opened | None]:
    """Prove codes genuine, scanned payloads and typed serials alike; None for anything that is not.

    Whatever is wrong with a code, the answer is the same. A payload that isn't ASCII can't be one.
    """
    keys = copy.usable_keys()
    now_s = deployment.now_ms() // 1000
    opened: list[Opened | None] = [None] * len(texts)
    scanned: list[int] = []
    for n, text in enumerate(texts):
        if text[:1].isdigit():
            uid = serial.uid_of_typed(text, keys.serial_prfs) if keys.serial_prfs else None
            if uid is not None and partition_of(uid) < deployment.constants.partitions:
                opened[n] = Opened(uid, Version.STATIC, stale=False)
        else:
            scanned.append(n)
    if not scanned:
        return opened
    data, offsets = pack([texts[n].encode("utf-8", "surrogatepass") for n in scanned])
    claims = open_text_batch(keys.payload_table, data, offsets)
    for n, row in zip(scanned, claims, strict=True):
        if row["status"] != OpenStatus.OK:
            continue
        uid = row["uid"].tobytes()
        if partition_of(uid) < deployment.constants.partitions:
            stale = policy.is_stale(
                int(row["stamp"]),
                int(row["exp"]),
                now_s,
                life_s=copy.policies.resolve(int(row["store"])).payload_life_s,
                static=row["version"] == Version.STATIC,
            )
            opened[n] = Opened(uid, int(row["version"]), stale, int(row["item"]))
    return opened


def _judge(deployment: Deployment, copy: Copy, tries: Sequence[_Try]) -> list[_Findings]:
    stores = [copy.stores.get(attempt.terminal.store_id) for attempt in tries]
    rules = [copy.policies.resolve(attempt.terminal.store_id).terminal_location for attempt in tries]
    places = policy.judge_places(stores, [attempt.position for attempt in tries], rules)
    now_ms = deployment.now_ms()
    return [
        _Findings(
            place,
            bucket,
            RedeemVerdict.STORE_CLOSED if store is not None and not hours.is_open(store, now_ms) else None,
            RedeemVerdict.OUTSIDE_WINDOW
            if store is not None and store.pickup_windows and hours.in_window(store, now_ms) is None
            else None,
        )
        for store, (place, bucket) in zip(stores, places, strict=True)
    ]


_NO_PROOF: Final = _Proof(RedeemVerdict.PROOF_REQUIRED, _NOBODY, 0)


def _judge_proof(deployment: Deployment, copy: Copy, code: Opened, request: RedeemRequest) -> _Proof:
    """What the proof token says for or against a valuable code; whether it needs one, and of which method, its record says."""
    if code.version != Version.VALUABLE or not request.proof_token:
        return _NO_PROOF
    found = proof.check(
        request.proof_token,
        copy.providers,
        uid=code.uid,
        offered=get_args(policies.ProofMethod),
        now_ms=deployment.now_ms(),
    )
    if isinstance(found, proof.ProofRefusal):
        return _Proof(RedeemVerdict.PROOF_REJECTED, _NOBODY, 0)
    return _Proof(None, found.digest, layouts.FLAG_METHODS[found.method])


def _pin_generations(keys: Keys) -> tuple[int, int]:
    first, second, *_ = (*keys.pin_generations, 0, 0)
    return first, second


def _judge_pin(keys: Keys, code: Opened, pin: str) -> tuple[int, int]:
    """Generations of the PIN key under which this PIN is right (0: none); which one counts, the record says."""
    if code.version != Version.STATIC or not pin:
        return codes.NO_PIN, codes.NO_PIN
    right = [0, 0]
    for n, generation in enumerate(keys.pin_generations[:2]):
        if hmac.compare_digest(serial.pin_of(keys.pin_prf(generation), code.uid, generation), pin):
            right[n] = generation
    return right[0], right[1]


def _item(
    terminal: Terminal,
    code: Opened,
    findings: _Findings,
    *,
    pin: tuple[int, int],
    pin_generations: tuple[int, int],
    proof: _Proof,
    request: bytes,
    body: bytes,
    lines: Sequence[Line],
    actor: str,
    dry: bool,
) -> codes.RedeemItem:
    return codes.RedeemItem(
        uid=code.uid,
        request=request,
        body=body,
        mall_id=terminal.mall_id,
        store_id=terminal.store_id,
        terminal_id=terminal.terminal_id,
        version=code.version,
        stale=code.stale,
        pin=pin,
        pin_generations=pin_generations,
        proof=proof.finding,
        proof_digest=proof.digest,
        proof_method=proof.method,
        place=findings.place,
        closed=findings.closed,
        window=findings.window,
        distance_bucket=findings.distance_bucket,
        lines=lines,
        actor=actor,
        dry=dry,
    )


def _named(deployment: Deployment, copy: Copy, answer: RedeemAnswer) -> RedeemAnswer:
    """Add what only the set-up knows: the name of the code's store, and its next pickup window where that matters."""
    store = copy.stores.get(answer.store_id)
    if store is None:
        return answer
    window = ""
    if answer.verdict is RedeemVerdict.OUTSIDE_WINDOW:
        span = hours.next_window(store, deployment.now_ms())
        window = _window_text(span, store) if span else ""
    return replace(answer, store_name=store.name, window=window)


def _window_text(span: hours.Span, store: Store) -> str:
    """A pickup window as the clerk reads it, in the store's own time: name, day, from, to."""
    zone = ZoneInfo(store.time_zone)
    start, end = (datetime.fromtimestamp(at_ms / 1000, zone) for at_ms in (span.start_ms, span.end_ms))
    return f"{span.name} {start:%Y-%m-%d %H:%M}-{end:%H:%M}"


def _inspected(deployment: Deployment, copy: Copy, facts: codes.RedeemFacts) -> InspectAnswer:
    answer = _named(deployment, copy, facts.answer)
    return InspectAnswer(
        verdict=InspectVerdict.numbered(answer.verdict.number),
        uid=answer.uid,
        order_id=answer.order_id,
        version=facts.version,
        lines=answer.lines,
        at_ms=answer.at_ms,
        terminal_id=answer.terminal_id,
        sku_id=answer.sku_id,
        store_id=answer.store_id,
        store_name=answer.store_name,
        review_id=answer.review_id,
        expires_at_s=facts.expires_at_s,
        pin_required=facts.version == Version.STATIC,
        proof_required=facts.proof_needed,
        window=answer.window,
        distance_bucket=answer.distance_bucket,
    )


# --- reverse --------------------------------------------------------------------------------------------------------
def reverse(deployment: Deployment, batch: Sequence[ReverseRequest]) -> list[ReverseAnswer | PickgateError]:
    """Take back what codes handed out: the goods are on the shelf again, reserved for the same code unless it was refunded.

    By the same store, within its policy's window and number of cycles. Raises TooManyItems, StaleControl, LedgerBehind for the batch;
    RequestIdReused and StoreUnavailable come per item.
    """
    if len(batch) > limits.BATCH_MAX:
        raise TooManyItems(
            f"{len(batch)} reversals in one batch; expected at most {limits.BATCH_MAX}", field="codes"
        )
    copy = deployment.control.copy_to_change()
    now_s = deployment.now_ms() // 1000
    outcomes: list[ReverseAnswer | PickgateError] = [
        ReverseAnswer(ReverseVerdict.UNKNOWN_CODE) for _ in batch
    ]
    wanted: list[int] = []
    items: list[lifecycle.ReverseItem] = []
    for n, request in enumerate(batch):
        if partition_of(request.uid) >= deployment.constants.partitions:
            continue
        terminal = request.terminal
        terms = copy.policies.resolve(terminal.store_id)
        wanted.append(n)
        items.append(
            lifecycle.ReverseItem(
                uid=request.uid,
                request=request_digest(
                    f"terminal:{terminal.mall_id}:{terminal.store_id}:{terminal.terminal_id}",
                    "reverse",
                    request.request_id,
                ),
                body=body_digest(
                    request.uid,
                    sorted((line.sku_id, line.count) for line in request.lines),
                    int(request.release),
                ),
                mall_id=terminal.mall_id,
                store_id=terminal.store_id,
                terminal_id=terminal.terminal_id,
                window_s=terms.reversal_window_s,
                cycles_max=terms.cycles_max,
                release=request.release,
                expires_at_s=now_s + limits.REVERSAL_LIFE_S,
                lines=request.lines,
                actor=request.actor,
                reason=request.reason,
            )
        )
    for n, answer in zip(wanted, lifecycle.reverse(deployment.connection, items), strict=True):
        if isinstance(answer, PickgateError):
            outcomes[n] = answer
        else:
            store = copy.stores.get(answer.store_id)
            outcomes[n] = replace(answer, store_name=store.name) if store else answer
    return outcomes
