"""Attempts in the store: tries to redeem or inspect, one script call per partition and batch."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from engine import limits
from engine.calls import RedeemAnswer
from engine.claims import EventId, partition_of
from engine.errors import NoActiveKey, PickgateError
from engine.state import layouts, scripts
from engine.state.batch import Keys, run_calls
from engine.state.codes import forget_minute, reused, too_many_changes
from engine.state.connection import Call, Connection
from engine.state.events import unpack_lines
from engine.verdict import RedeemVerdict

NO_PIN: Final = 255
"""In place of the PIN generations: no PIN was given."""

_UID_END: Final = layouts.REDEEM_ITEM.at("record_key")
_KEYS_END: Final = layouts.REDEEM_ITEM.at("request")
_KEYS: Final = struct.Struct(">5H")
_NO_PROOF_KEY: Final = 1
"""Place of some key: a script that burns no proof never looks at it."""
_ANSWER: Final = layouts.REDEEM_ANSWER.struct
_ANSWER_END: Final = 1 + layouts.REDEEM_ANSWER.size
_REMEMBERED, _REUSED, _TOO_MANY, _NO_KEY = b"R"[0], b"X"[0], b"M"[0], b"K"[0]


class Attempt(NamedTuple):
    """One try to redeem or inspect, as lua/redeem.lua wants it, but for the places of its keys, which its batch decides."""

    uid: bytes
    request: bytes
    """Digest of the request id; zeros to inspect."""
    mall_id: int
    store_id: int
    row: bytes
    """A layouts.REDEEM_ITEM with what stands behind it; the places of keys in it say nothing."""
    proof_digest: bytes = b""
    """Of a good proof, which this redemption uses up."""


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


def run(connection: Connection, attempts: Sequence[Attempt]) -> list[Facts | PickgateError]:
    """Try to redeem (or to inspect) codes. One outcome per attempt, in order; those of one partition keep their order."""
    forget = forget_minute(connection)
    groups: dict[int, list[int]] = {}
    for n, attempt in enumerate(attempts):
        groups.setdefault(partition_of(attempt.uid), []).append(n)
    calls: list[Call] = []
    owners: list[list[int]] = []
    for partition, members in groups.items():
        for start in range(0, len(members), limits.BATCH_MAX):
            chunk = members[start : start + limits.BATCH_MAX]
            calls.append(_call(connection, partition, forget, [attempts[n] for n in chunk]))
            owners.append(chunk)
    outcomes: list[Any] = [None] * len(attempts)
    for chunk, replies in zip(owners, run_calls(connection, calls, owners), strict=True):
        if isinstance(replies, PickgateError):
            for n in chunk:
                outcomes[n] = replies
        else:
            for n, reply in zip(chunk, replies, strict=True):
                outcomes[n] = _facts(reply)
    return outcomes


def _call(connection: Connection, partition: int, forget: int, attempts: Sequence[Attempt]) -> Call:
    """One call of one partition."""
    names = connection.partitions[partition]
    keys = Keys(names.own)
    place_of = keys.index
    due_key = place_of(names.due(forget))
    args = []
    for uid, request, mall_id, store_id, row, proof_digest in attempts:
        places = _KEYS.pack(
            place_of(names.record(uid)),
            place_of(names.answers(request)),
            # Under the code's partition even when the terminal's store lies in another: then it is the wrong store, which
            # is found before any stock is looked at.
            place_of(names.stock(mall_id, store_id)),
            due_key,
            place_of(names.answers(proof_digest)) if proof_digest else _NO_PROOF_KEY,
        )
        args.append(row[:_UID_END] + places + row[_KEYS_END:])
    return Call(scripts.REDEEM, keys.names, args)


def _facts(reply: bytes) -> Facts | PickgateError:
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
        replayed=facts.remembered,
    )
