"""What happens to a code besides issue, redeem and void: confirm, extend, reverse, a customer's failed try, a review."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.calls import ConfirmAnswer, Evidence, ExtendAnswer, ReverseAnswer, ReviewAnswer
from engine.claims import Decision, EventId, Line, partition_of
from engine.errors import PickgateError
from engine.state import batch, layouts, scripts
from engine.state.codes import due_minute, forget_minute, reused, too_many_changes
from engine.state.connection import Connection
from engine.state.events import unpack_lines
from engine.state.keys import PartitionKeys
from engine.verdict import ConfirmVerdict, ExtendVerdict, RenderVerdict, ReverseVerdict, ReviewVerdict

_REMEMBERED, _REUSED, _NOT_NOW, _TOO_MANY = b"R"[0], b"X"[0], b"N"[0], b"M"[0]


@dataclass(frozen=True, slots=True)
class ChangeItem:
    """One confirm or extend: `expires_at_s` is the new expiry."""

    uid: bytes
    request: bytes
    body: bytes
    mall_id: int
    expires_at_s: int
    actor: str


@dataclass(frozen=True, slots=True)
class ReverseItem:
    """One reversal, with the window and the number of cycles that the policy allows."""

    uid: bytes
    request: bytes
    body: bytes
    mall_id: int
    store_id: int
    terminal_id: int
    window_s: int
    cycles_max: int
    release: bool
    expires_at_s: int
    lines: Sequence[Line]
    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class TryItem:
    """One failed try of the customer's own, seen when the code was to be rendered."""

    uid: bytes
    request: bytes
    body: bytes
    mall_id: int
    verdict: RenderVerdict
    distance_bucket: int
    actor: str


@dataclass(frozen=True, slots=True)
class TryFacts:
    """What a counted try came to."""

    verdict: RenderVerdict
    tries_left: int
    event: EventId


@dataclass(frozen=True, slots=True)
class ReviewItem:
    """One decision; `store_id` is that of the code's record, as read before."""

    uid: bytes
    request: bytes
    body: bytes
    mall_id: int
    store_id: int
    decision: Decision
    actor: str
    reason: str


def _event(uid: bytes, epoch: int, seq: int) -> EventId | None:
    return EventId(partition_of(uid), epoch, seq) if epoch else None


# --- confirm and extend -----------------------------------------------------------------------------------------------
def _pack_change(item: ChangeItem, names: PartitionKeys, keys: batch.Keys) -> bytes:
    actor = item.actor.encode()
    head = layouts.CHANGE_ITEM.pack(
        item.uid,
        keys.index(names.record(item.uid)),
        keys.index(names.answers(item.request)),
        keys.index(names.due(due_minute(item.expires_at_s))),
        item.request,
        item.body,
        item.mall_id,
        item.expires_at_s,
        len(actor),
    )
    return head + actor


def confirm(connection: Connection, items: Sequence[ChangeItem]) -> list[ConfirmAnswer | PickgateError]:
    """Make held codes live. One outcome per item, in order."""
    replies = batch.run(connection, scripts.CONFIRM, items, lambda item: partition_of(item.uid), _pack_change)
    outcomes: list[ConfirmAnswer | PickgateError] = []
    for item, reply in zip(items, replies, strict=True):
        if isinstance(reply, PickgateError):
            outcomes.append(reply)
        elif reply[0] == _REUSED:
            outcomes.append(reused("confirmation"))
        else:
            verdict, _, exp, epoch, seq = layouts.CHANGE_ANSWER.unpack(reply, 1)
            event = _event(item.uid, epoch, seq)
            outcomes.append(
                ConfirmAnswer(ConfirmVerdict.numbered(verdict), item.uid, exp, event, reply[0] == _REMEMBERED)
            )
    return outcomes


def extend(connection: Connection, items: Sequence[ChangeItem]) -> list[ExtendAnswer | PickgateError]:
    """Move expiries. One outcome per item, in order."""
    replies = batch.run(connection, scripts.EXTEND, items, lambda item: partition_of(item.uid), _pack_change)
    outcomes: list[ExtendAnswer | PickgateError] = []
    for item, reply in zip(items, replies, strict=True):
        if isinstance(reply, PickgateError):
            outcomes.append(reply)
        elif reply[0] == _REUSED:
            outcomes.append(reused("extension"))
        elif reply[0] == _TOO_MANY:
            outcomes.append(too_many_changes())
        else:
            verdict, _, exp, epoch, seq = layouts.CHANGE_ANSWER.unpack(reply, 1)
            event = _event(item.uid, epoch, seq)
            outcomes.append(
                ExtendAnswer(ExtendVerdict.numbered(verdict), item.uid, exp, event, reply[0] == _REMEMBERED)
            )
    return outcomes


# --- reverse ----------------------------------------------------------------------------------------------------------
def reverse(connection: Connection, items: Sequence[ReverseItem]) -> list[ReverseAnswer | PickgateError]:
    """Take back what redemptions handed out. One outcome per item, in order."""
    forget = forget_minute(connection)

    def pack(item: ReverseItem, names: PartitionKeys, keys: batch.Keys) -> bytes:
        actor, reason = item.actor.encode(), item.reason.encode()
        head = layouts.REVERSE_ITEM.pack(
            item.uid,
            keys.index(names.record(item.uid)),
            keys.index(names.answers(item.request)),
            keys.index(names.stock(item.mall_id, item.store_id)),
            keys.index(names.due(due_minute(item.expires_at_s))),
            keys.index(names.due(forget)),
            item.request,
            item.body,
            item.mall_id,
            item.store_id,
            item.terminal_id,
            item.window_s,
            item.cycles_max,
            item.release,
            item.expires_at_s,
            len(item.lines),
            len(actor),
            len(reason),
        )
        lines = b"".join(layouts.WANTED.pack(line.sku_id, line.count) for line in item.lines)
        return head + lines + actor + reason

    replies = batch.run(connection, scripts.REVERSE, items, lambda item: partition_of(item.uid), pack)
    outcomes: list[ReverseAnswer | PickgateError] = []
    for item, reply in zip(items, replies, strict=True):
        if isinstance(reply, PickgateError):
            outcomes.append(reply)
        elif reply[0] == _REUSED:
            outcomes.append(reused("reversal"))
        else:
            a = dict(zip(layouts.REVERSE_ANSWER.names, layouts.REVERSE_ANSWER.unpack(reply, 1), strict=True))
            lines, _ = unpack_lines(reply, 1 + layouts.REVERSE_ANSWER.size, a["n_lines"])
            outcomes.append(
                ReverseAnswer(
                    verdict=ReverseVerdict.numbered(a["verdict"]),
                    uid=item.uid,
                    at_ms=a["at"],
                    lines=lines,
                    expires_at_s=a["exp"],
                    sku_id=a["sku"],
                    store_id=a["store"],
                    cycle=a["cycle"],
                    event=_event(item.uid, a["epoch"], a["seq"]),
                    replayed=reply[0] == _REMEMBERED,
                )
            )
    return outcomes


# --- a customer's failed try ------------------------------------------------------------------------------------------
def count_tries(connection: Connection, items: Sequence[TryItem]) -> list[TryFacts | PickgateError | None]:
    """Count failed tries of customers; None where the code can't be tried now, so that nothing was counted."""

    def pack(item: TryItem, names: PartitionKeys, keys: batch.Keys) -> bytes:
        actor = item.actor.encode()
        head = layouts.TRY_ITEM.pack(
            item.uid,
            keys.index(names.record(item.uid)),
            keys.index(names.answers(item.request)),
            item.request,
            item.body,
            item.mall_id,
            item.verdict.number,
            item.distance_bucket,
            len(actor),
        )
        return head + actor

    replies = batch.run(connection, scripts.TRY, items, lambda item: partition_of(item.uid), pack)
    outcomes: list[TryFacts | PickgateError | None] = []
    for item, reply in zip(items, replies, strict=True):
        if isinstance(reply, PickgateError):
            outcomes.append(reply)
        elif reply[0] == _REUSED:
            outcomes.append(reused("render"))
        elif reply[0] == _TOO_MANY:
            outcomes.append(too_many_changes())
        elif reply[0] == _NOT_NOW:
            outcomes.append(None)
        else:
            verdict, _, epoch, seq, tries_left = layouts.TRY_ANSWER.unpack(reply, 1)
            event = EventId(partition_of(item.uid), epoch, seq)
            outcomes.append(TryFacts(RenderVerdict.numbered(verdict), tries_left, event))
    return outcomes


# --- reviews ----------------------------------------------------------------------------------------------------------
def review(connection: Connection, items: Sequence[ReviewItem]) -> list[ReviewAnswer | PickgateError]:
    """Decide locked codes. One outcome per item, in order."""
    forget = forget_minute(connection)

    def pack(item: ReviewItem, names: PartitionKeys, keys: batch.Keys) -> bytes:
        actor, reason = item.actor.encode(), item.reason.encode()
        head = layouts.REVIEW_ITEM.pack(
            item.uid,
            keys.index(names.record(item.uid)),
            keys.index(names.answers(item.request)),
            keys.index(names.stock(item.mall_id, item.store_id)),
            keys.index(names.due(forget)),
            item.request,
            item.body,
            item.mall_id,
            item.store_id,
            item.decision,
            len(actor),
            len(reason),
        )
        return head + actor + reason

    replies = batch.run(connection, scripts.REVIEW, items, lambda item: partition_of(item.uid), pack)
    outcomes: list[ReviewAnswer | PickgateError] = []
    for item, reply in zip(items, replies, strict=True):
        if isinstance(reply, PickgateError):
            outcomes.append(reply)
        elif reply[0] == _REUSED:
            outcomes.append(reused("decision"))
        else:
            verdict, at_ms, epoch, seq, sku, n_lines = layouts.REVIEW_ANSWER.unpack(reply, 1)
            lines, _ = unpack_lines(reply, 1 + layouts.REVIEW_ANSWER.size, n_lines)
            outcomes.append(
                ReviewAnswer(
                    verdict=ReviewVerdict.numbered(verdict),
                    uid=item.uid,
                    at_ms=at_ms,
                    lines=lines,
                    sku_id=sku,
                    event=_event(item.uid, epoch, seq),
                    replayed=reply[0] == _REMEMBERED,
                )
            )
    return outcomes


def open_reviews(
    connection: Connection, partition: int, after: tuple[int, bytes], count: int
) -> list[tuple[int, bytes]]:
    """Open reviews of one partition behind `after` (time of lock in unix ms, uid), oldest first: at most `count`."""
    names = connection.partitions[partition]
    behind: list[tuple[int, bytes]] = []
    offset = 0
    # One batch may lock many codes in one millisecond, so a page may begin amid codes of the same time.
    while len(behind) < count:
        [found] = connection.read(
            [("ZRANGE", names.reviews, after[0], "+inf", "BYSCORE", "LIMIT", offset, count + 1, "WITHSCORES")]
        )
        flat = (
            [value for pair in found for value in pair]
            if found and isinstance(found[0], (list, tuple))
            else found
        )
        pairs = [(int(float(at)), uid) for uid, at in zip(flat[::2], flat[1::2], strict=True)]
        behind += [pair for pair in pairs if pair > after]
        if len(pairs) <= count:
            break
        offset += count + 1
    return behind[:count]


def read_evidence(connection: Connection, uids: Sequence[bytes]) -> list[tuple[Evidence, ...]]:
    """The counted tries of codes, oldest first. Raises StoreUnavailable."""
    commands: list[tuple[bytes | str | int, ...]] = [
        ("HGET", connection.partitions[partition_of(uid)].evidence, uid) for uid in uids
    ]
    return [parse_evidence(data or b"") for data in connection.read(commands)] if commands else []


def parse_evidence(data: bytes) -> tuple[Evidence, ...]:
    """Evidence as stored, read back."""
    tries = []
    at = 0
    while at < len(data):
        at_ms, store, terminal, verdict, bucket, actor_len = layouts.EVIDENCE.unpack(data, at)
        at += layouts.EVIDENCE.size
        tries.append(Evidence(at_ms, store, terminal, verdict, bucket, data[at : at + actor_len].decode()))
        at += actor_len
    return tuple(tries)
