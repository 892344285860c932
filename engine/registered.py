"""Runs a mall's verb behind the register of request ids (engine.state.register)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from engine.calls import IssueAnswer, StockAnswer, VoidAnswer
from engine.errors import PickgateError
from engine.state import register
from engine.state.connection import Connection


class _Registrable(Protocol):
    @property
    def request(self) -> bytes: ...
    @property
    def body(self) -> bytes: ...


_Item = TypeVar("_Item", bound=_Registrable)
_Answer = TypeVar("_Answer", IssueAnswer, VoidAnswer, StockAnswer)


def registered(
    connection: Connection,
    items: Sequence[_Item],
    decide: Callable[[Connection, Sequence[_Item]], list[_Answer | PickgateError]],
) -> list[_Answer | PickgateError]:
    """Decide items whose request ids are new, or come back with the same body; the others get RequestIdReused.

    A refusal changes nothing and is not remembered, so its id is struck out again and may come back with another body.
    """
    if not items:
        return []
    entries = [register.Entry(item.request, item.body) for item in items]
    errors = register.enter(connection, entries)
    going = [n for n, error in enumerate(errors) if error is None]
    answers = iter(decide(connection, [items[n] for n in going]))
    outcomes = [next(answers) if error is None else error for error in errors]
    register.strike_out(
        connection,
        [
            entry
            for entry, outcome in zip(entries, outcomes, strict=True)
            if not isinstance(outcome, PickgateError) and not outcome.verdict.success
        ],
    )
    return outcomes
