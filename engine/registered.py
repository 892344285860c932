"""Runs a mall's verb behind the register of request ids (engine.state.register)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from engine.calls import (
    ConfirmAnswer,
    ExtendAnswer,
    IssueAnswer,
    ReviewAnswer,
    StockAnswer,
    TransferAnswer,
    VoidAnswer,
)
from engine.errors import Exhausted, PickgateError, RequestIdReused
from engine.state import register
from engine.state.connection import Connection

_Outcome = (
    IssueAnswer
    | VoidAnswer
    | StockAnswer
    | ConfirmAnswer
    | ExtendAnswer
    | ReviewAnswer
    | TransferAnswer
    | PickgateError
)


class _Registrable(Protocol):
    @property
    def request(self) -> bytes: ...
    @property
    def body(self) -> bytes: ...


_Item = TypeVar("_Item", bound=_Registrable)
_Answer = TypeVar(
    "_Answer", IssueAnswer, VoidAnswer, StockAnswer, ConfirmAnswer, ExtendAnswer, ReviewAnswer, TransferAnswer
)


def registered(
    connection: Connection,
    items: Sequence[_Item],
    decide: Callable[[Connection, Sequence[_Item]], list[_Answer | PickgateError]],
) -> list[_Answer | PickgateError]:
    """Decide items whose request ids are new, or come back with the same body; the others get RequestIdReused.

    A refusal changes nothing and is not remembered, so its id is struck out again and may come back with another body. So is
    one that the verb itself knew with another body: the register forgets after a few days, a record may live for months, and
    an entry left behind would then stand against the first body's own retry.
    """
    if not items:
        return []
    entries = [register.Entry(item.request, item.body) for item in items]
    errors = register.enter(connection, entries)
    going = [n for n, error in enumerate(errors) if error is None]
    answers = iter(decide(connection, [items[n] for n in going]))
    outcomes = [next(answers) if error is None else error for error in errors]
    # One id may stand twice in a batch: refused first, and done after what stood between.
    done = {entries[n].request for n in going if _is_done(outcomes[n])}
    register.strike_out(
        connection,
        [entries[n] for n in going if entries[n].request not in done and _is_settled_no(outcomes[n])],
    )
    return outcomes


def _is_done(outcome: _Outcome) -> bool:
    return not isinstance(outcome, PickgateError) and outcome.verdict.success


def _is_settled_no(outcome: _Outcome) -> bool:
    """True when nothing was changed, and certainly not: an error of the store leaves that open."""
    if isinstance(outcome, PickgateError):
        return isinstance(outcome, RequestIdReused | Exhausted)
    return not outcome.verdict.success
