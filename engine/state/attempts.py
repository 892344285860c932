"""Attempts in the store: tries to redeem or inspect, one script call per partition and batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from engine import limits
from engine.calls import RedeemAnswer
from engine.claims import UID_BYTES, EventId, partition_of
from engine.errors import NoActiveKey, PickgateError
from engine.state import keys, layouts, scripts
from engine.state.codes import forget_minute, reused, too_many_changes
from engine.state.connection import Connection, Packed
from engine.state.events import unpack_lines
from engine.verdict import RedeemVerdict
from ext.lane import Pointers, group_rows, script_call

NO_PIN: Final = 255
"""In place of the PIN generations: no PIN was given."""

_ITEM: Final = layouts.REDEEM_ITEM
_POINTERS: Final = Pointers(
    _ITEM.size,
    keys.BUCKET_MASK,
    [
        (_ITEM.at("record_key"), "bucket", _ITEM.at("uid") + UID_BYTES - 4, keys.RECORDS),
        (_ITEM.at("answer_key"), "bucket", _ITEM.at("request"), keys.ANSWERS),
        # Under the code's partition even when the terminal's store lies in another: then it is the wrong store, which is found
        # before any stock is looked at.
        (_ITEM.at("stock_key"), "pair", _ITEM.at("mall"), keys.STOCK),
        (_ITEM.at("due_key"), "number", 0, keys.DUE),
        # A script that burns no proof never looks at this key.
        (_ITEM.at("proof_key"), "bucket?", _ITEM.at("proof_digest"), keys.ANSWERS),
    ],
)
"""Which keys an attempt names: those of PartitionKeys.record, answers, stock and due."""
_STORE: Final = slice(_ITEM.at("store"), _ITEM.at("store") + 4)
_ANSWER: Final = layouts.REDEEM_ANSWER.struct
_ANSWER_END: Final = 1 + layouts.REDEEM_ANSWER.size
_REMEMBERED, _REUSED, _TOO_MANY, _NO_KEY = b"R"[0], b"X"[0], b"M"[0], b"K"[0]

Attempt: TypeAlias = bytes
"""One try to redeem or inspect, as lua/redeem.lua wants it: a layouts.REDEEM_ITEM with what stands behind it.

It begins with the uid. The places of keys in it say nothing: its batch decides them. To inspect, the request's digest is zeros; the
proof's digest is zeros unless a good proof is used up.
"""


def uid_of(attempt: Attempt) -> bytes:
    """The code that an attempt is about."""
    return attempt[:UID_BYTES]


def store_of(attempt: Attempt) -> int:
    """The store whose terminal makes an attempt."""
    return int.from_bytes(attempt[_STORE], "big")


class Facts(NamedTuple):
    """What the script answered to one attempt: fields of layouts.REDEEM_ANSWER, then what stands behind it."""

    verdict: int
    at_ms: int
    epoch: int
    seq: int
    terminal_id: int
    tries_left: int
    sku_id: int
    store_id: int
    cycle: int
    flavour: int
    flags: int
    expires_at_s: int
    distance_bucket: int
    n_lines: int
    lines: bytes
    """n_lines × layouts.LINE."""
    order_id: bytes
    remembered: bool
    """Whether this is the answer of an earlier call with the same request id."""

    @property
    def version(self) -> int:
        """Version of the code; 0 when there is no record of it."""
        return self.flavour >> 4

    @property
    def proof_needed(self) -> bool:
        """Whether the code is handed out with a proof token only."""
        return bool(self.flags & layouts.FLAG_PROOF_NEEDED)

    @property
    def proof_methods(self) -> tuple[str, ...]:
        """The ways of proof that the code takes."""
        return tuple(method for method, flag in layouts.FLAG_METHODS.items() if self.flags & flag)


class Batch(NamedTuple):
    """Attempts on their way to the store: packed calls, and which of the attempts are in each."""

    packed: Packed
    members: Sequence[Sequence[int]]
    size: int


def pack(connection: Connection, attempts: Sequence[Attempt]) -> Batch:
    """Pack attempts, at most limits.WRITE_ITEMS_MAX: one call for each partition. Those of one partition keep their order."""
    forget = forget_minute(connection)
    head = connection.head()
    groups = group_rows(attempts, limits.BATCH_MAX)
    commands: list[bytes] = []
    for partition, group in groups:
        names = connection.partitions[partition]
        rows = attempts if len(group) == len(attempts) else [attempts[n] for n in group]
        commands.append(
            script_call(_POINTERS, scripts.REDEEM.sha.encode(), names.prefix, names.own, forget, head, rows)
        )
    packed = connection.packed(scripts.REDEEM, [partition for partition, _ in groups], commands)
    return Batch(packed, [group for _, group in groups], len(attempts))


def unpack(batch: Batch, outcomes: Sequence[Any | PickgateError]) -> list[bytes | PickgateError]:
    """What the store answered to each attempt, in order: for `facts_of`. outcomes: of Connection.exchange."""
    if len(batch.members) == 1 and not isinstance(outcomes[0], PickgateError):
        return list(outcomes[0])
    found: list[Any] = [None] * batch.size
    for chunk, replies in zip(batch.members, outcomes, strict=True):
        if isinstance(replies, PickgateError):
            for n in chunk:
                found[n] = replies
        else:
            for n, reply in zip(chunk, replies, strict=True):
                found[n] = reply
    return found


def run(connection: Connection, attempts: Sequence[Attempt]) -> list[Facts | PickgateError]:
    """Try to redeem (or to inspect) codes. One outcome per attempt, in order."""
    if not attempts:
        return []
    batch = pack(connection, attempts)
    return [facts_of(reply) for reply in unpack(batch, connection.exchange(batch.packed))]


def facts_of(reply: bytes | PickgateError) -> Facts | PickgateError:
    """What an answer of the script says; an error as it is."""
    if isinstance(reply, PickgateError):
        return reply
    kind = reply[0]
    if kind == _REUSED:
        return reused("redemption")
    if kind == _TOO_MANY:
        return too_many_changes()
    if kind == _NO_KEY:
        return NoActiveKey(
            "the PIN key that this code was made with is not usable any more: void the code and issue another"
        )
    (
        verdict,
        at_ms,
        epoch,
        seq,
        terminal_id,
        tries_left,
        sku_id,
        store_id,
        cycle,
        flavour,
        flags,
        expires_at_s,
        distance_bucket,
        n_lines,
        order_len,
    ) = _ANSWER.unpack_from(reply, 1)
    lines_end = _ANSWER_END + n_lines * layouts.LINE.size
    return Facts(
        verdict,
        int.from_bytes(at_ms, "big"),
        epoch,
        int.from_bytes(seq, "big"),
        terminal_id,
        tries_left,
        sku_id,
        store_id,
        cycle,
        flavour,
        flags,
        expires_at_s,
        distance_bucket,
        n_lines,
        reply[_ANSWER_END:lines_end],
        reply[lines_end : lines_end + order_len],
        kind == _REMEMBERED,
    )


def answer_of(uid: bytes, facts: Facts) -> RedeemAnswer:
    """The answer of redeem that the facts stand for, but for what only the set-up knows."""
    verdict = RedeemVerdict.numbered(facts.verdict)
    event = EventId(partition_of(uid), facts.epoch, facts.seq) if facts.epoch else None
    return RedeemAnswer(
        verdict=verdict,
        uid=uid,
        order_id=facts.order_id.decode(),
        lines=unpack_lines(facts.lines, 0, facts.n_lines)[0],
        at_ms=facts.at_ms,
        terminal_id=facts.terminal_id,
        tries_left=facts.tries_left,
        sku_id=facts.sku_id,
        store_id=facts.store_id,
        cycle=facts.cycle,
        event=event,
        review_id=str(event) if verdict is RedeemVerdict.LOCKED else "",
        distance_bucket=facts.distance_bucket,
        proof_methods=facts.proof_methods if verdict is RedeemVerdict.PROOF_REQUIRED else (),
        replayed=facts.remembered,
    )
