"""What the entries of the control partition have in common: how they are stored, and how their fields are checked.

An entry is a frozen dataclass that checks itself when it is made, so that whatever can be put can also be read back. Each
check raises InvalidInput naming the field, its value and what was expected; `field` may be a path (`opening_hours[2].to_min`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, ClassVar, Self, TypeVar

from engine import limits
from engine.errors import InvalidInput

T = TypeVar("T")


class Entry:
    """An entry of the control partition, or a part of one: a frozen dataclass, stored as JSON with its field names."""

    NESTED: ClassVar[Mapping[str, type[Entry]]] = {}
    """Which fields hold an entry, or a tuple of them."""

    def to_json(self) -> bytes:
        """The entry as stored."""
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":")).encode()  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """An entry as stored, read back."""
        return cls.from_fields(json.loads(data))

    @classmethod
    def from_fields(cls, stored: Mapping[str, Any]) -> Self:
        """An entry from its fields as JSON knows them.

        A field that this version doesn't know is ignored: a newer process wrote it. One that is missing takes its default: an
        older process wrote it.
        """
        known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        return cls(
            **{name: _revived(value, cls.NESTED.get(name)) for name, value in stored.items() if name in known}
        )


def _revived(value: Any, nested: type[Entry] | None) -> Any:
    """Arrays as tuples at every depth, objects as the entries they were."""
    if isinstance(value, list):
        return tuple(_revived(item, nested) for item in value)
    if isinstance(value, dict) and nested is not None:
        return nested.from_fields(value)
    return value


# --- checks ---------------------------------------------------------------------------------------------------------
def check_text(value: object, field: str, chars_max: int, *, chars_min: int = 1) -> None:
    """`chars_min` to `chars_max` printable characters."""
    if not isinstance(value, str) or not chars_min <= len(value) <= chars_max or not value.isprintable():
        shown = f"has {len(value)} characters" if isinstance(value, str) else f"is {value!r}"
        raise InvalidInput(
            f"{field} {shown}; expected {chars_min} to {chars_max} printable characters", field=field
        )


def check_id(value: int, field: str) -> None:
    """The id of a mall, store or SKU."""
    check_whole(value, field, 1, limits.ID_MAX)


def check_whole(value: object, field: str, least: int, most: int, unit: str = "") -> None:
    """A whole number within its bounds. True and False are none."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidInput(
            f"{field} is {value!r}; expected {least} to {most}{unit and ' '}{unit}", field=field
        )


def check_choice(value: str, field: str, choices: Sequence[str]) -> None:
    """One of a closed set of words."""
    if value not in choices:
        raise InvalidInput(
            f"{field} is {value!r}; expected {', '.join(choices[:-1])} or {choices[-1]}", field=field
        )


def check_number_of(items: Sequence[object], field: str, least: int, most: int) -> None:
    """A list of a bounded length."""
    if not least <= len(items) <= most:
        raise InvalidInput(f"{field} has {len(items)} entries; expected {least} to {most}", field=field)


def check_different(items: Sequence[object], field: str) -> None:
    """A list in which nothing stands twice."""
    seen: set[object] = set()
    for index, item in enumerate(items):
        if item in seen:
            raise InvalidInput(f"{field}[{index}] is {item!r} again; expected each once", field=field)
        seen.add(item)
