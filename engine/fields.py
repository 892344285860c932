"""What the fields of a request may hold. Requests check themselves as they are made, so a malformed one never reaches a verb.

One bad request of a batch would otherwise be found where it can't be told from the others any more: in a binary layout that
has no room for it. Each check raises InvalidInput naming the field, what it holds and what was expected.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from engine import limits
from engine.errors import InvalidInput, TooManyItems


class _HasSku(Protocol):
    @property
    def sku_id(self) -> int: ...


def whole(value: int, field: str, low: int, high: int) -> None:
    """A whole number, `low` to `high`, both inclusive."""
    if not low <= value <= high:
        raise InvalidInput(f"{field} is {value}; expected {low} to {high}", field=field)


def identifier(value: int, field: str) -> None:
    """An id of a mall, a store, a SKU or a terminal."""
    whole(value, field, 1, limits.ID_MAX)


def text(value: str, field: str, chars_max: int, *, chars_min: int = 0) -> None:
    """A text of so many characters."""
    if not chars_min <= len(value) <= chars_max:
        raise InvalidInput(
            f"{field} has {len(value)} characters; expected {chars_min} to {chars_max}", field=field
        )
    if not value.isprintable():
        # Control characters would reach terminals and logs, a lone surrogate has no encoding at all.
        raise InvalidInput(f"{field} holds a character that can't be printed; expected text", field=field)


def request_id(value: str) -> None:
    """A request id: 8 to 64 ASCII characters."""
    text(value, "request_id", limits.REQUEST_ID_CHARS_MAX, chars_min=limits.REQUEST_ID_CHARS_MIN)
    if not value.isascii():
        raise InvalidInput("request_id has characters outside ASCII; best is a UUID", field="request_id")


def member(value: int, field: str, allowed: Collection[int]) -> None:
    """One of a closed set of numbers."""
    if value not in allowed:
        raise InvalidInput(f"{field} is {value}; expected one of {', '.join(map(str, allowed))}", field=field)


def exactly(value: bytes, field: str, size: int) -> None:
    """So many bytes."""
    if len(value) != size:
        raise InvalidInput(f"{field} has {len(value)} bytes; expected {size}", field=field)


def lines(values: Sequence[_HasSku], *, lines_min: int) -> None:
    """Lines of a code: not too many, and each SKU in one line only, because a second line would be counted apart."""
    if len(values) > limits.LINES_MAX:
        raise TooManyItems(
            f"lines has {len(values)} items; expected at most {limits.LINES_MAX}", field="lines"
        )
    if len(values) < lines_min:
        raise InvalidInput(f"lines has {len(values)} items; expected at least {lines_min}", field="lines")
    if len({line.sku_id for line in values}) < len(values):
        raise InvalidInput("lines names a SKU twice; expected each SKU in one line only", field="lines")
