"""Operations: reconciliations that somebody asked for, and how they stand.

Whoever asks lays the wish down in the ledger; the process of the ledger's writer takes it up, since it can reach both store and ledger, and
comparing them takes a processor for a while, which no server of calls should give. So an operation outlives the connection, and the server,
that it was asked through. There is one at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from engine.errors import Exhausted, RequestIdReused
from engine.ledger import database
from engine.ledger.ledger import Ledger
from engine.ledger.tables import OPERATIONS

KEPT_MS: Final = 90 * 86_400_000
"""How long an ended operation can be asked for; what it found is kept longer, with the reconciliations."""
TAKEN_UP_MS_MAX: Final = 10_000
"""An operation that nobody has taken up for so long waits for a writer that is not there."""
SILENT_MS_MAX: Final = 60_000
"""One that nobody has worked on for so long has lost its process. Whoever works on it says so every few seconds."""


class State(IntEnum):
    """How an operation stands. Numbers are stored."""

    PENDING = 1
    RUNNING = 2
    DONE = 3
    FAILED = 4


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation, as it stands."""

    id: str
    actor: str
    state: State
    asked_ms: int
    begun_ms: int
    seen_ms: int
    ended_ms: int
    run: int
    """The reconciliation that it made; 0 before."""
    message: str


def ask(ledger: Ledger, operation_id: str, actor: str, now_ms: int) -> Operation:
    """Ask for a reconciliation; the same id again gives the same operation.

    Raises RequestIdReused, Exhausted (one is under way), LedgerUnavailable.
    """
    with database.writing(ledger.engine) as connection:
        known = _find(connection, operation_id)
        if known is None:
            _see_none_under_way(connection, now_ms)
            connection.execute(
                delete(OPERATIONS).where(OPERATIONS.c.ended_ms > 0, OPERATIONS.c.ended_ms < now_ms - KEPT_MS)
            )
            _add(connection, operation_id, actor, now_ms)
            known = _find(connection, operation_id)
    assert known is not None
    if known.actor != actor:
        raise RequestIdReused(
            f"request_id {operation_id} has started an operation of {known.actor or 'nobody named'}: use another id",
            field="request_id",
        )
    return _seen_now(known, now_ms)


def find(ledger: Ledger, operation_id: str, now_ms: int) -> Operation | None:
    """An operation as it stands; None if nobody asked for it. Raises LedgerUnavailable."""
    with database.snapshot(ledger.engine) as connection:
        found = _find(connection, operation_id)
    return None if found is None else _seen_now(found, now_ms)


def _seen_now(operation: Operation, now_ms: int) -> Operation:
    """What can be told of it by now: one that lost its process does not run."""
    state, message = operation.state, operation.message
    if state is State.PENDING and now_ms - operation.asked_ms > TAKEN_UP_MS_MAX:
        message = "no writer of the ledger has taken it up yet: see that `pickgate ledger run` runs"
    elif state is State.RUNNING and now_ms - operation.seen_ms > SILENT_MS_MAX:
        state, message = State.FAILED, "its process ended without a result: ask again"
    values = {name: getattr(operation, name) for name in Operation.__dataclass_fields__}
    return Operation(**{**values, "state": state, "message": message})


def _see_none_under_way(connection: Connection, now_ms: int) -> None:
    under_way = connection.execute(
        select(OPERATIONS).where(OPERATIONS.c.state.in_((State.PENDING, State.RUNNING)))
    ).all()
    for one in map(_operation, under_way):
        if _seen_now(one, now_ms).state is not State.FAILED:
            raise Exhausted(f"a reconciliation is under way, operation {one.id}: look at that one")


def _add(connection: Connection, operation_id: str, actor: str, now_ms: int) -> None:
    zeros = dict.fromkeys(("begun_ms", "seen_ms", "ended_ms", "run"), 0)
    try:
        with connection.begin_nested():
            connection.execute(
                insert(OPERATIONS).values(
                    id=operation_id, actor=actor, state=State.PENDING, asked_ms=now_ms, message="", **zeros
                )
            )
    except IntegrityError:
        pass  # the same request, sent twice at the same moment


# --- for whoever works on them ----------------------------------------------------------------------------------------
def take_up(ledger: Ledger, now_ms: int) -> str:
    """Take up the operation that waits; gives its id, '' when there is none. Raises LedgerUnavailable."""
    pending = OPERATIONS.c.state == State.PENDING
    with database.snapshot(ledger.engine) as connection:
        waiting = connection.execute(
            select(OPERATIONS.c.id).where(pending).order_by(OPERATIONS.c.asked_ms).limit(1)
        ).scalar()
    if waiting is None:
        return ""
    with database.writing(ledger.engine) as connection:
        taken = connection.execute(
            update(OPERATIONS)
            .where(OPERATIONS.c.id == waiting, pending)
            .values(state=State.RUNNING, begun_ms=now_ms, seen_ms=now_ms)
        )
    return str(waiting) if taken.rowcount == 1 else ""


def work_on(ledger: Ledger, operation_id: str, now_ms: int) -> None:
    """Say that it is still worked on. Raises LedgerUnavailable."""
    _change(ledger, operation_id, State.RUNNING, seen_ms=now_ms)


def end(ledger: Ledger, operation_id: str, now_ms: int, *, run: int = 0, message: str = "") -> None:
    """Say how it ended: with a reconciliation, or with none and why. One that has ended stays as it is. Raises LedgerUnavailable."""
    state = State.DONE if run else State.FAILED
    _change(
        ledger,
        operation_id,
        State.RUNNING,
        state=state,
        ended_ms=now_ms,
        seen_ms=now_ms,
        run=run,
        message=message,
    )


def _change(ledger: Ledger, operation_id: str, before: State, **values: Any) -> None:
    with database.writing(ledger.engine) as connection:
        connection.execute(
            update(OPERATIONS)
            .where(OPERATIONS.c.id == operation_id, OPERATIONS.c.state == before)
            .values(**values)
        )


def _find(connection: Connection, operation_id: str) -> Operation | None:
    row = connection.execute(select(OPERATIONS).where(OPERATIONS.c.id == operation_id)).first()
    return None if row is None else _operation(row)


def _operation(row: Any) -> Operation:
    return Operation(**{**row._mapping, "state": State(row.state)})
