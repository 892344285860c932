"""Messages as plain values, for --json and for files that people write: what one writes the other reads.

Unlike protobuf's own JSON mapping, whole numbers are numbers (never strings), field names are those of the contract, and
enums are written without their type's prefix, "DYNAMIC" for VERSION_DYNAMIC; reading takes them in any case.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, TypeVar

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from engine.errors import InvalidInput

M = TypeVar("M", bound=Message)

# A FieldDescriptor; the published types call it a union of two implementations.
_Field: TypeAlias = Any

_FLOATS: Final = frozenset({FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT})


def plain(message: Message) -> dict[str, Any]:
    """Write a message: every field that has no notion of absence, and the others if they are there."""
    return {
        field.name: _plain_field(message, field)
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }


def _plain_field(message: Message, field: _Field) -> Any:
    value = getattr(message, field.name)
    return [_plain_value(item, field) for item in value] if field.is_repeated else _plain_value(value, field)


def _plain_value(value: Any, field: _Field) -> Any:
    if field.message_type is not None:
        return plain(value)
    return enum_name(field.enum_type, value) if field.enum_type is not None else value


def enum_prefix(enum: EnumDescriptor) -> str:
    """The prefix of an enum's values: VERSION_ for Version."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", enum.name).upper() + "_"


def enum_name(enum: EnumDescriptor, number: int) -> str:
    """Write an enum's value without its prefix, or as its number if this release does not know it."""
    value = enum.values_by_number.get(number)
    return str(number) if value is None else value.name.removeprefix(enum_prefix(enum))


def message_of(kind: type[M], value: object, path: str) -> M:
    """Read a message of `kind` from plain values; `path` names the place in errors.

    Raises:
        InvalidInput: an unknown field, or a value of the wrong type.
    """
    message = kind()
    try:
        _fill(message, value, path)
    except RecursionError:  # in writing down what was found instead
        raise InvalidInput(f"{path} is nested too deeply", field=path) from None
    return message


def _fill(message: Message, value: object, path: str) -> None:
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{path} is {value!r:.60}; expected an object with fields", field=path)
    fields = message.DESCRIPTOR.fields_by_name
    for name, item in value.items():
        field = fields.get(name)
        if field is None:
            raise InvalidInput(
                f"{path}.{name} is not known; expected one of {', '.join(fields)}", field=f"{path}.{name}"
            )
        _fill_field(message, field, item, f"{path}.{name}")


def _fill_field(message: Message, field: _Field, value: object, path: str) -> None:
    if field.is_repeated:
        if not isinstance(value, list):
            raise InvalidInput(f"{path} is {value!r:.60}; expected a list", field=path)
        target = getattr(message, field.name)
        for index, item in enumerate(value):
            if field.message_type is not None:
                _fill(target.add(), item, f"{path}[{index}]")
            else:
                _set(target.append, item, field, f"{path}[{index}]")
    elif field.message_type is not None:
        submessage = getattr(message, field.name)
        submessage.SetInParent()
        _fill(submessage, value, path)
    else:
        _set(functools.partial(setattr, message, field.name), value, field, path)


def _set(setter: Callable[[Any], None], value: object, field: _Field, path: str) -> None:
    try:
        setter(_value(value, field, path))
    except (TypeError, ValueError, OverflowError):  # a number outside the field's range
        raise InvalidInput(f"{path} is {value!r:.60}; expected {_expected(field)}", field=path) from None


def _value(value: object, field: _Field, path: str) -> Any:
    if field.enum_type is not None and isinstance(value, str):
        name = enum_prefix(field.enum_type) + value.upper().removeprefix(enum_prefix(field.enum_type))
        if name in field.enum_type.values_by_name:
            return field.enum_type.values_by_name[name].number
    elif field.type == FieldDescriptor.TYPE_STRING:
        if isinstance(value, str):
            return value
    elif field.type == FieldDescriptor.TYPE_BOOL:
        if isinstance(value, bool):
            return value
    elif field.type in _FLOATS:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        return value
    raise InvalidInput(f"{path} is {value!r:.60}; expected {_expected(field)}", field=path)


def _expected(field: _Field) -> str:
    if field.enum_type is not None:
        prefix = enum_prefix(field.enum_type)
        return "one of " + ", ".join(value.name.removeprefix(prefix) for value in field.enum_type.values)
    if field.type == FieldDescriptor.TYPE_STRING:
        return "a text in quotes"
    if field.type == FieldDescriptor.TYPE_BOOL:
        return "true or false"
    if field.type in _FLOATS:
        return "a number"
    return "a whole number, not negative" if field.type == FieldDescriptor.TYPE_UINT32 else "a whole number"
