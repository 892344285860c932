"""The audit: what happened to a code, an order, at a store, a terminal, by somebody, in a time; refused attempts among it.

Found in the order of time, a page at a time. A page ends with a cursor from which the next one goes on, whatever has been written meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, and_, literal, select, tuple_

from engine.claims import EventId
from engine.errors import InvalidInput
from engine.ledger import database
from engine.ledger.ledger import Ledger
from engine.ledger.rows import CONTROL_TYPE
from engine.ledger.tables import ATTEMPTS, EVENTS, FORGERIES, ORDERS
from engine.state.events import Event, parse
from engine.state.streams import CONTROL, unpack_fields
from engine.verdict import RedeemVerdict

PAGE_MAX: Final = 1_000


class Cursor(NamedTuple):
    """Where a page ends: time, kind (0 event, 1 attempt, 2 forgeries of a minute), and number."""

    at_ms: int
    kind: int
    partition: int
    epoch: int
    seq: int

    def __str__(self) -> str:
        return ".".join(map(str, self))

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Read a cursor that an earlier page gave. Raises InvalidInput."""
        parts = text.split(".")
        if len(parts) != 5 or not all(
            part.isascii() and part.isdigit() and len(part) <= 18 for part in parts
        ):
            raise InvalidInput(f"after is {text!r}; expected what an earlier page ended with", field="after")
        return cls(*map(int, parts))


@dataclass(frozen=True, slots=True)
class Question:
    """What is looked for: all that is given must hold. Times are unix milliseconds, from included, to not."""

    uid: bytes = b""
    mall_id: int = 0
    order_id: str = ""
    store_id: int = 0
    terminal_id: int = 0
    actor: str = ""
    from_ms: int = 0
    to_ms: int = 0

    def __post_init__(self) -> None:
        if all(getattr(self, one.name) == one.default for one in fields(self)):
            raise InvalidInput("nothing is asked for: name a code, an order, a store, an actor or a time")
        if self.order_id and not self.mall_id:
            raise InvalidInput("an order is one of a mall: name the mall too", field="mall_id")


class Finding(NamedTuple):
    """One thing that happened."""

    at_ms: int
    number: str
    """The event's number; '' for a refused attempt."""
    what: str
    """The event's type, CONTROL for a change of the set-up, or the verdict by which an attempt was refused."""
    refused: bool
    mall_id: int
    store_id: int
    terminal_id: int
    uid: bytes
    actor: str
    details: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Page:
    """What was found, and where to go on; no cursor: that was all."""

    findings: tuple[Finding, ...]
    after: Cursor | None


def search(
    ledger: Ledger,
    question: Question,
    *,
    count: int = 100,
    after: Cursor | None = None,
    time_s: float | None = None,
) -> Page:
    """The next `count` (1 .. PAGE_MAX) findings behind a cursor.

    time_s: how long the search may take; None: as long as it takes. Raises InvalidInput, Exhausted (it took longer), LedgerUnavailable.
    """
    if not 1 <= count <= PAGE_MAX:
        raise InvalidInput(f"count is {count}; expected 1 to {PAGE_MAX}", field="count")
    reading = (
        database.snapshot(ledger.engine)
        if time_s is None
        else database.bounded_snapshot(ledger.engine, time_s)
    )
    with reading as connection:
        found: list[tuple[Cursor, Any]] = []
        for kind, statement in _statements(question, count + 1, after):
            for row in connection.execute(statement):
                found.append((Cursor(row.at_ms, kind, *_NUMBERS[kind](row)), row))
    found.sort(key=lambda pair: pair[0])
    shown = found[:count]
    findings = tuple(_FINDINGS[cursor.kind](row) for cursor, row in shown)
    return Page(findings, shown[-1][0] if len(found) > count else None)


def _statements(question: Question, count: int, after: Cursor | None) -> Iterator[tuple[int, Any]]:
    """The selects to be merged: events, and attempts where the question can concern them."""
    number = (EVENTS.c.at_ms, EVENTS.c.partition, EVENTS.c.epoch, EVENTS.c.seq)
    wanted = list(_conditions(question, EVENTS))
    if question.actor:
        wanted.append(EVENTS.c.actor == question.actor)
    if question.order_id:
        wanted.append(EVENTS.c.uid.in_(_codes_of(question)))
    wanted += _behind(after, 0, number)
    yield 0, select(EVENTS).where(and_(*wanted)).order_by(*number).limit(count)
    if question.actor:
        return  # who was at the counter is not noted of what changed nothing
    number = (ATTEMPTS.c.at_ms, ATTEMPTS.c.partition, ATTEMPTS.c.stream_ms, ATTEMPTS.c.stream_seq)
    wanted = list(_conditions(question, ATTEMPTS))
    if question.order_id:
        wanted.append(ATTEMPTS.c.uid.in_(_codes_of(question)))
    wanted += _behind(after, 1, number)
    yield 1, select(ATTEMPTS).where(and_(*wanted)).order_by(*number).limit(count)
    if question.order_id or question.uid:
        return  # a code that is not genuine is nobody's
    place = (FORGERIES.c.at_ms, literal(CONTROL), FORGERIES.c.stream_ms, FORGERIES.c.stream_seq)
    wanted = [*_conditions(question, FORGERIES), *_behind(after, 2, place)]
    yield 2, select(FORGERIES).where(and_(*wanted)).order_by(*place).limit(count)


def _conditions(question: Question, table: Any) -> Iterator[ColumnElement[bool]]:
    for name in ("uid", "mall_id", "store_id", "terminal_id"):
        if value := getattr(question, name):
            yield table.c[name] == value
    if question.from_ms:
        yield table.c.at_ms >= question.from_ms
    if question.to_ms:
        yield table.c.at_ms < question.to_ms


def _codes_of(question: Question) -> Any:
    return select(ORDERS.c.uid).where(
        ORDERS.c.mall_id == question.mall_id, ORDERS.c.order_id == question.order_id
    )


def _behind(after: Cursor | None, kind: int, number: tuple[Any, ...]) -> list[ColumnElement[bool]]:
    """Behind a cursor. Within one millisecond events come before attempts, whatever their numbers."""
    if after is None:
        return []
    if kind == after.kind:
        place = (after.at_ms, after.partition, after.epoch, after.seq)
        return [tuple_(*number) > tuple_(*place)]
    return [number[0] >= after.at_ms if kind > after.kind else number[0] > after.at_ms]


def _event(row: Any) -> Finding:
    uid = bytes(row.uid or b"")
    number = EventId(row.partition, row.epoch, row.seq)
    if row.type == CONTROL_TYPE:
        said = {
            name.decode(): value.decode(errors="replace") for name, value in unpack_fields(bytes(row.data))
        }
        return Finding(row.at_ms, str(number), "CONTROL", False, 0, 0, 0, b"", row.actor, said)
    event = parse(row.partition, b"%d-%d" % (row.epoch, row.seq), bytes(row.data))
    return Finding(
        row.at_ms,
        str(number),
        event.type.name,
        False,
        row.mall_id,
        row.store_id,
        row.terminal_id,
        uid,
        row.actor,
        _details(event),
    )


def _details(event: Event) -> dict[str, Any]:
    """What the event's type says, in plain values; a record's bytes are told by its order and lines elsewhere."""
    told: dict[str, Any] = {}
    for name, value in event.facts.items():
        if name in ("record", "burnt"):
            continue
        if name == "lines":
            told["lines"] = [{"sku_id": one.sku_id, "count": one.count, "left": one.left} for one in value]
        else:
            told[name] = getattr(value, "name", value)
    return told


def _forgeries(row: Any) -> Finding:
    details = {"count": row.count, "samples": json.loads(row.samples)}
    what = RedeemVerdict.INVALID_CODE.slug
    return Finding(
        row.at_ms, "", what, True, row.mall_id, row.store_id, row.terminal_id, b"", "", details
    )  # fmt: skip


def _attempt(row: Any) -> Finding:
    verdict = RedeemVerdict.numbered(row.verdict)
    details = {"distance_bucket": row.bucket}
    return Finding(
        row.at_ms, "", verdict.slug, True, row.mall_id, row.store_id, row.terminal_id, bytes(row.uid), "", details
    )  # fmt: skip


_NUMBERS: Final[tuple[Callable[[Any], tuple[int, int, int]], ...]] = (
    lambda row: (row.partition, row.epoch, row.seq),
    lambda row: (row.partition, row.stream_ms, row.stream_seq),
    lambda row: (CONTROL, row.stream_ms, row.stream_seq),
)
_FINDINGS: Final[tuple[Callable[[Any], Finding], ...]] = (_event, _attempt, _forgeries)
"""Both by kind."""
