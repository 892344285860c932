"""Redeem, inspect and reverse: the verbs of the store terminal, and the way of a redemption, which never turns back:

attempts (engine.attempts: open, judge, pack) → one script call per partition → verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from zoneinfo import ZoneInfo

from engine import attempts, hours, limits
from engine.attempts import Attempts
from engine.calls import (
    InspectAnswer,
    InspectRequest,
    RedeemAnswer,
    RedeemRequest,
    ReverseAnswer,
    ReverseRequest,
)
from engine.claims import Version, partition_of
from engine.control import Copy
from engine.deployment import Deployment
from engine.errors import PickgateError, TooManyItems
from engine.idempotency import body_digest, request_digest
from engine.state import attempts as state
from engine.state import lifecycle
from engine.state.attempts import Attempt, Facts
from engine.stores import Store
from engine.verdict import InspectVerdict, RedeemVerdict, ReverseVerdict


def redeem(deployment: Deployment, batch: Sequence[RedeemRequest]) -> list[RedeemAnswer | PickgateError]:
    """Decide tries to redeem, each once and for all. A retry with the same request id gets the first answer.

    Raises TooManyItems, StaleControl, LedgerBehind, KeyringLocked for the batch; RequestIdReused and StoreUnavailable come per item.
    """
    copy = deployment.control.copy()
    return [
        outcome if isinstance(outcome, PickgateError) else redeem_answer(deployment, copy, *outcome)
        for outcome in _decide(deployment, attempts.of_redemptions(batch))
    ]


def inspect(deployment: Deployment, batch: Sequence[InspectRequest]) -> list[InspectAnswer | PickgateError]:
    """Say what redeem would answer now, changing and counting nothing. A PIN is never judged.

    Raises as redeem.
    """
    copy = deployment.control.copy()
    return [
        outcome if isinstance(outcome, PickgateError) else inspect_answer(deployment, copy, *outcome)
        for outcome in _decide(deployment, attempts.of_inspections(batch))
    ]


def _decide(
    deployment: Deployment, batch: Attempts
) -> list[tuple[Attempt | None, Facts | None] | PickgateError]:
    """Each attempt with what the script said of it; two Nones for a code that isn't genuine."""
    if len(batch.codes) > limits.BATCH_MAX:
        raise TooManyItems(
            f"{len(batch.codes)} codes in one batch; expected at most {limits.BATCH_MAX}", field="codes"
        )
    prepared = attempts.prepare(deployment, batch)
    answers = iter(state.run(deployment.connection, [attempt for attempt in prepared if attempt is not None]))
    outcomes: list[tuple[Attempt | None, Facts | None] | PickgateError] = []
    for attempt in prepared:
        found = None if attempt is None else next(answers)
        outcomes.append(found if isinstance(found, PickgateError) else (attempt, found))
    return outcomes


def redeem_answer(
    deployment: Deployment, copy: Copy, attempt: Attempt | None, facts: Facts | None
) -> RedeemAnswer:
    """The answer of redeem to an attempt: with what only the set-up knows, the store's name and when it hands out next."""
    if attempt is None or facts is None:
        return RedeemAnswer(RedeemVerdict.INVALID_CODE)
    return _named(deployment, copy, state.answer_of(state.uid_of(attempt), facts))


def _named(deployment: Deployment, copy: Copy, answer: RedeemAnswer) -> RedeemAnswer:
    """Add what only the set-up knows: the name of the code's store, and when it hands out next where that matters."""
    store = copy.stores.get(answer.store_id)
    if store is None:
        return answer
    span = None
    if answer.verdict is RedeemVerdict.OUTSIDE_WINDOW:
        span = hours.next_window(store, deployment.now_ms())
    elif answer.verdict is RedeemVerdict.STORE_CLOSED and not store.closed:
        span = store.calendar.next_opening(deployment.now_ms())
    return replace(answer, store_name=store.name, window=_window_text(span, store) if span else "")


def _window_text(span: hours.Span, store: Store) -> str:
    """A pickup window or opening hours as the clerk reads them, in the store's own time: name, day, from, to."""
    zone = ZoneInfo(store.time_zone)
    start, end = (datetime.fromtimestamp(at_ms / 1000, zone) for at_ms in (span.start_ms, span.end_ms))
    return f"{span.name} {start:%Y-%m-%d %H:%M}-{end:%H:%M}".lstrip()


def inspect_answer(
    deployment: Deployment, copy: Copy, attempt: Attempt | None, facts: Facts | None
) -> InspectAnswer:
    """The answer of inspect to an attempt, as redeem_answer."""
    if attempt is None or facts is None:
        return InspectAnswer(InspectVerdict.INVALID_CODE)
    answer = redeem_answer(deployment, copy, attempt, facts)
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
