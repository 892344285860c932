"""Redeem and inspect: the verbs of the store terminal, and the way of a redemption, which never turns back:

code text → open (kernels) → pure policy → one script call per partition → verdict.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from engine import limits, policy, serial
from engine.calls import InspectAnswer, InspectRequest, RedeemAnswer, RedeemRequest
from engine.claims import Line, Position, Terminal, Version, partition_of
from engine.control import Copy
from engine.deployment import Deployment
from engine.errors import PickgateError, TooManyItems
from engine.idempotency import body_digest, request_digest
from engine.keyring import Keys
from engine.state import codes
from engine.verdict import InspectVerdict, RedeemVerdict
from ext.codec import OpenStatus, open_text_batch, pack

_NOBODY: Final = b"\0" * 12


@dataclass(frozen=True, slots=True)
class Opened:
    """What a code says once it has proved genuine."""

    uid: bytes
    version: int
    stale: bool


@dataclass(frozen=True, slots=True)
class _Try:
    """What redeem and inspect have in common."""

    terminal: Terminal
    code: str
    position: Position | None


def redeem(deployment: Deployment, batch: Sequence[RedeemRequest]) -> list[RedeemAnswer | PickgateError]:
    """Decide tries to redeem, each once and for all. A retry with the same request id gets the first answer.

    Raises TooManyItems, StaleControl, KeyringLocked for the batch; RequestIdReused and StoreUnavailable come per item.
    """
    copy, keys = _ready(deployment, len(batch))
    tries = [_Try(request.terminal, request.code, request.position) for request in batch]
    opened = open_codes(deployment, keys, [request.code for request in batch])
    places = _judge_places(copy, tries)
    wanted: list[int] = []
    items: list[codes.RedeemItem] = []
    for n, (request, code) in enumerate(zip(batch, opened, strict=True)):
        if code is None:
            continue
        wanted.append(n)
        items.append(
            _item(
                copy,
                request.terminal,
                code,
                places[n],
                pin=_judge_pin(keys, code, request.pin),
                request=request_digest(
                    f"terminal:{request.terminal.mall_id}:{request.terminal.store_id}:{request.terminal.terminal_id}",
                    "redeem",
                    request.request_id,
                ),
                body=body_digest(code.uid, [(line.sku_id, line.count) for line in request.lines]),
                lines=request.lines,
                actor=request.actor,
                dry=False,
            )
        )
    outcomes: list[RedeemAnswer | PickgateError] = [RedeemAnswer(RedeemVerdict.INVALID_CODE) for _ in batch]
    for n, facts in zip(wanted, codes.redeem(deployment.connection, items), strict=True):
        outcomes[n] = facts if isinstance(facts, PickgateError) else _named(copy, facts.answer)
    return outcomes


def inspect(deployment: Deployment, batch: Sequence[InspectRequest]) -> list[InspectAnswer | PickgateError]:
    """Say what redeem would answer now, changing and counting nothing. A PIN is never judged.

    Raises as redeem.
    """
    copy, keys = _ready(deployment, len(batch))
    tries = [_Try(request.terminal, request.code, request.position) for request in batch]
    opened = open_codes(deployment, keys, [request.code for request in batch])
    places = _judge_places(copy, tries)
    wanted: list[int] = []
    items: list[codes.RedeemItem] = []
    for n, (request, code) in enumerate(zip(batch, opened, strict=True)):
        if code is None:
            continue
        wanted.append(n)
        items.append(
            _item(
                copy,
                request.terminal,
                code,
                places[n],
                pin=(codes.NO_PIN, codes.NO_PIN),
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
        outcomes[n] = facts if isinstance(facts, PickgateError) else _inspected(copy, facts)
    return outcomes


def _ready(deployment: Deployment, items: int) -> tuple[Copy, Keys]:
    if items > limits.BATCH_MAX:
        raise TooManyItems(f"{items} codes in one batch; expected at most {limits.BATCH_MAX}", field="codes")
    copy = deployment.control.copy()
    return copy, copy.usable_keys()


def open_codes(deployment: Deployment, keys: Keys, texts: Sequence[str]) -> list[Opened | None]:
    """Prove codes genuine, scanned payloads and typed serials alike; None for anything that is not.

    Whatever is wrong with a code, the answer is the same. A payload that isn't ASCII can't be one.
    """
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
                life_s=deployment.payload_life_s,
                static=row["version"] == Version.STATIC,
            )
            opened[n] = Opened(uid, int(row["version"]), stale)
    return opened


def _judge_places(copy: Copy, tries: Sequence[_Try]) -> list[tuple[RedeemVerdict | None, int]]:
    stores = [copy.stores.get(attempt.terminal.store_id) for attempt in tries]
    return policy.judge_places(stores, [attempt.position for attempt in tries])


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
    copy: Copy,
    terminal: Terminal,
    code: Opened,
    place: tuple[RedeemVerdict | None, int],
    *,
    pin: tuple[int, int],
    request: bytes,
    body: bytes,
    lines: Sequence[Line],
    actor: str,
    dry: bool,
) -> codes.RedeemItem:
    store = copy.stores.get(terminal.store_id)
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
        place=place[0],
        closed=RedeemVerdict.STORE_CLOSED if store is not None and store.closed else None,
        distance_bucket=place[1],
        lines=lines,
        actor=actor,
        dry=dry,
    )


def _named(copy: Copy, answer: RedeemAnswer) -> RedeemAnswer:
    """Add the name of the store that a code is for."""
    store = copy.stores.get(answer.store_id)
    return replace(answer, store_name=store.name) if store else answer


def _inspected(copy: Copy, facts: codes.RedeemFacts) -> InspectAnswer:
    answer = _named(copy, facts.answer)
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
        distance_bucket=answer.distance_bucket,
    )
