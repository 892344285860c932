"""Codes in the store: issue and void as one script call per partition and batch; records read back."""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Final

from engine import limits
from engine.calls import (
    Bundle,
    IssueAnswer,
    Record,
    VoidAnswer,
)
from engine.claims import Channel, EventId, Line, Split, State, Suite, Version, partition_of
from engine.errors import Exhausted, PickgateError, RequestIdReused, StoreUnavailable
from engine.state import batch, layouts, scripts
from engine.state.connection import Connection
from engine.state.events import unpack_lines
from engine.state.keys import PartitionKeys, partition_of_store
from engine.verdict import IssueVerdict, VoidVerdict

NOBODY: Final = bytes(8)
"""In place of a uid: there is none."""

_REQUEST_FIELD: Final = layouts.RECORD.names.index("request")
_REMEMBERED, _REUSED, _COLLISION = b"R"[0], b"X"[0], b"C"[0]


@dataclass(frozen=True, slots=True)
class BundleItem:
    """A bundle among an item's lines: its SKU and units, and which lines (1-based) are its parts."""

    sku_id: int
    units: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class IssueItem:
    """One code to make: everything the script writes down. `candidates` are the uids the request may get, best first.

    `finding` is what the set-up says against it, of the SKU `finding_sku` if of one: it applies if no code was made before.
    """

    request: bytes
    body: bytes
    mall_id: int
    store_id: int
    channel: Channel
    version: Version
    suite: Suite
    state: State
    policy_version: int
    expires_at_s: int
    ttl_s: int
    proof_methods: Sequence[str]
    """Ways of proof that open the code; none: it needs no proof."""
    amount_fen: int
    pin_generation: int
    candidates: Sequence[bytes]
    candidates_free: int
    """How many of the candidates, from the first, the code may take; the others are only looked at."""
    lines: Sequence[Line]
    bundles: Sequence[BundleItem]
    order_id: str
    splits: Sequence[Split]
    actor: str
    finding: IssueVerdict | None = None
    finding_sku: int = 0
    replaces: bytes = b""
    """Uid of the voided code that this one stands in for; empty: none."""


@dataclass(frozen=True, slots=True)
class VoidItem:
    """One code to void; `store_id` is that of its record, as read before."""

    uid: bytes
    request: bytes
    body: bytes
    mall_id: int
    store_id: int
    actor: str
    reason: str


def flavour_of(version: int, suite: int) -> int:
    """Version and suite in one byte, as in a payload's header."""
    return version << 4 | suite


def pack_splits(splits: Sequence[Split]) -> bytes:
    """Splits as stored: compact JSON, or nothing."""
    if not splits:
        return b""
    rows = [[split.payee, split.role, split.level, split.amount_fen] for split in splits]
    return json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode()


def unpack_splits(data: bytes) -> tuple[Split, ...]:
    """Splits as stored, read back."""
    return tuple(Split(*row) for row in json.loads(data)) if data else ()


def parse_record(uid: bytes, data: bytes) -> Record:
    """A record as stored, as a value."""
    r = dict(zip(layouts.RECORD.names, layouts.RECORD.unpack(data), strict=True))
    lines, at = unpack_lines(data, layouts.RECORD.size, r["n_lines"])
    bundles = tuple(
        Bundle(sku_id, units, lines[first - 1 : first - 1 + count], first - 1)
        for sku_id, units, first, count in (
            layouts.BUNDLE.unpack(data, at + n * layouts.BUNDLE.size) for n in range(r["n_bundles"])
        )
    )
    at += r["n_bundles"] * layouts.BUNDLE.size + 12 * r["n_requests"]
    order_end = at + r["order_len"]
    partition = partition_of(uid)
    return Record(
        uid=uid,
        state=State(r["state"]),
        version=Version(r["flavour"] >> 4),
        suite=Suite(r["flavour"] & 15),
        mall_id=r["mall"],
        store_id=r["store"],
        order_id=data[at:order_end].decode(),
        lines=lines,
        bundles=bundles,
        windows_bind=bool(r["flags"] & layouts.FLAG_WINDOWS_BIND),
        proof_needed=bool(r["flags"] & layouts.FLAG_PROOF_NEEDED),
        ttl_s=r["ttl"],
        channel=Channel(r["channel"]),
        policy_version=r["policy"],
        issued_at_ms=r["issued"],
        changed_at_ms=r["changed"],
        stamp_floor_s=r["stamp_floor"],
        expires_at_s=r["exp"],
        amount_fen=r["amount"],
        splits=unpack_splits(data[order_end : order_end + r["split_len"]]),
        replaces=data[order_end + r["split_len"] :],
        pin_generation=r["pin_generation"],
        revision=r["revision"],
        cycle=r["cycle"],
        tries=r["tries"],
        terminal_id=r["last_terminal"],
        redeemed_at_ms=r["last_at"],
        lock=EventId(partition, r["lock_epoch"], r["lock_seq"]) if r["lock_epoch"] else None,
    )


def _event(partition: int, epoch: int, seq: int) -> EventId | None:
    return EventId(partition, epoch, seq) if epoch else None


def reused(verb: str) -> RequestIdReused:
    """The error for a request id that was used before for another `verb`."""
    return RequestIdReused(
        f"this request id was used before for another {verb}: nothing was done; use a new id for a new request, and the"
        " same id only to repeat exactly the same one",
        field="request_id",
    )


def too_many_changes() -> Exhausted:
    """The error for a code that can't remember another change."""
    return Exhausted(
        f"this code was changed {limits.REMEMBERED_REQUESTS_MAX} times, which is the limit: void it, and issue another"
        " for what is left"
    )


def due_minute(at_s: int) -> int:
    """The first minute that begins at or after `at_s`: nothing in a due index is ever looked at too early."""
    return -(-at_s // 60)


def forget_minute(connection: Connection) -> int:
    """The minute in which a code that ends now is forgotten, with one minute to spare."""
    return due_minute(connection.now_ms() // 1000 + limits.AFTERLIFE_S) + 1


# --- issue ----------------------------------------------------------------------------------------------------------
def issue(connection: Connection, items: Sequence[IssueItem]) -> list[IssueAnswer | PickgateError]:
    """Make codes, each with its reservation. One outcome per item, in order."""
    partitions = len(connection.partitions)

    def pack(item: IssueItem, names: PartitionKeys, keys: batch.Keys) -> bytes:
        order, split, actor = item.order_id.encode(), pack_splits(item.splits), item.actor.encode()
        head = layouts.ISSUE_ITEM.pack(
            item.request,
            item.body,
            item.replaces or NOBODY,
            item.mall_id,
            item.store_id,
            item.state,
            item.channel,
            flavour_of(item.version, item.suite),
            sum((layouts.FLAG_METHODS[method] for method in item.proof_methods), 0)
            + (layouts.FLAG_PROOF_NEEDED if item.proof_methods else 0),
            item.policy_version,
            item.expires_at_s,
            item.ttl_s,
            item.amount_fen,
            item.pin_generation,
            item.finding.number if item.finding else 0,
            item.finding_sku,
            keys.index(names.stock(item.mall_id, item.store_id)),
            keys.index(names.due(due_minute(item.expires_at_s))),
            len(item.candidates),
            item.candidates_free,
            len(item.lines),
            len(item.bundles),
            len(order),
            len(split),
            len(actor),
        )
        candidates = b"".join(
            layouts.CANDIDATE.pack(uid, keys.index(names.record(uid))) for uid in item.candidates
        )
        lines = b"".join(layouts.WANTED.pack(line.sku_id, line.count) for line in item.lines)
        bundles = b"".join(
            layouts.BUNDLE.pack(bundle.sku_id, bundle.units, bundle.first, bundle.count)
            for bundle in item.bundles
        )
        return head + candidates + lines + bundles + order + split + actor

    replies = batch.run(
        connection, scripts.ISSUE, items, lambda item: partition_of_store(item.store_id, partitions), pack
    )
    return [_issue_answer(item, reply) for item, reply in zip(items, replies, strict=True)]


def _issue_answer(item: IssueItem, reply: bytes | PickgateError) -> IssueAnswer | PickgateError:
    if isinstance(reply, PickgateError):
        return reply
    if reply[0] == _REUSED:
        return reused("code")
    if reply[0] == _COLLISION:
        return StoreUnavailable(
            "every uid derived from this request id is taken by another code: retry with another request id"
        )
    verdict, uid, issued, exp, pin_generation, epoch, seq, sku = layouts.ISSUE_ANSWER.unpack(reply, 1)
    issued_code = verdict == IssueVerdict.ISSUED.number
    return IssueAnswer(
        verdict=IssueVerdict.numbered(verdict),
        uid=uid if issued_code else b"",
        expires_at_s=exp,
        issued_at_ms=issued if issued_code else 0,
        pin_generation=pin_generation,
        sku_id=sku,
        store_id=item.store_id,
        event=_event(partition_of(uid), epoch, seq),
        replayed=reply[0] == _REMEMBERED,
    )


# --- void -----------------------------------------------------------------------------------------------------------
def void(connection: Connection, items: Sequence[VoidItem]) -> list[VoidAnswer | PickgateError]:
    """Void codes and release what they reserve. One outcome per item, in order."""
    forget = forget_minute(connection)

    def pack(item: VoidItem, names: PartitionKeys, keys: batch.Keys) -> bytes:
        actor, reason = item.actor.encode(), item.reason.encode()
        head = layouts.VOID_ITEM.pack(
            item.uid,
            keys.index(names.record(item.uid)),
            keys.index(names.answers(item.request)),
            keys.index(names.stock(item.mall_id, item.store_id)),
            keys.index(names.due(forget)),
            item.request,
            item.body,
            item.mall_id,
            item.store_id,
            len(actor),
            len(reason),
        )
        return head + actor + reason

    replies = batch.run(connection, scripts.VOID, items, lambda item: partition_of(item.uid), pack)
    return [_void_answer(item.uid, reply) for item, reply in zip(items, replies, strict=True)]


def _void_answer(uid: bytes, reply: bytes | PickgateError) -> VoidAnswer | PickgateError:
    if isinstance(reply, PickgateError):
        return reply
    if reply[0] == _REUSED:
        return reused("void")
    verdict, at_ms, epoch, seq, terminal, n_lines = layouts.VOID_ANSWER.unpack(reply, 1)
    lines, _ = unpack_lines(reply, 1 + layouts.VOID_ANSWER.size, n_lines)
    return VoidAnswer(
        verdict=VoidVerdict.numbered(verdict),
        uid=uid,
        at_ms=at_ms,
        terminal_id=terminal,
        lines=lines,
        event=_event(partition_of(uid), epoch, seq),
        replayed=reply[0] == _REMEMBERED,
    )


# --- reading --------------------------------------------------------------------------------------------------------
def read(connection: Connection, uids: Sequence[bytes]) -> list[Record | None]:
    """Records of uids, in order; None where there is none. Raises StoreUnavailable."""
    known = [n for n, uid in enumerate(uids) if partition_of(uid) < len(connection.partitions)]
    commands: list[tuple[bytes | str | int, ...]] = [
        ("HGET", connection.partitions[partition_of(uids[n])].record(uids[n]), uids[n]) for n in known
    ]
    records: list[Record | None] = [None] * len(uids)
    if commands:
        found = connection.read_of((partition_of(uids[n]) for n in known), commands)
        for n, data in zip(known, found, strict=True):
            records[n] = parse_record(uids[n], data) if data else None
    return records


def find_request(connection: Connection, requests: Set[bytes], candidates: Sequence[bytes]) -> Record | None:
    """The record that one of the requests made, among the uids it may have got in any partition. Raises StoreUnavailable."""
    commands: list[tuple[bytes | str | int, ...]] = [
        ("HGET", connection.partitions[partition_of(uid)].record(uid), uid) for uid in candidates
    ]
    found = connection.read_of(map(partition_of, candidates), commands)
    for uid, data in zip(candidates, found, strict=True):
        if data and layouts.RECORD.unpack(data)[_REQUEST_FIELD] in requests:
            return parse_record(uid, data)
    return None
