"""Checks of single fields of a request: what passes is returned, what does not is `InvalidInput` naming the field.

Each message says what the field holds, what was expected, and nothing secret: a PIN or a code is never repeated. A field's
name is its path in the request, `lines[2].count`.
"""

from __future__ import annotations

import math
import re
import zoneinfo
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NoReturn

from engine import limits, proof
from engine.claims import UID_BYTES
from engine.errors import InvalidInput, TooManyItems
from server import bounds

_REQUEST_ID: Final = re.compile(r"[!-~]+")
_UID: Final = re.compile(r"[0-9a-f]{16}")
_PIN: Final = re.compile(r"[0-9]{6}")


def refuse(field: str, found: object, expected: str) -> NoReturn:
    """Raise InvalidInput: `field` holds `found`, and `expected` says what it should hold."""
    shown = repr(found)
    if len(shown) > bounds.SHOWN_CHARS_MAX:
        shown = shown[: bounds.SHOWN_CHARS_MAX] + "…"
    raise InvalidInput(f"{field} is {shown}; expected {expected}", field=field)


def identifier(value: int, field: str) -> int:
    """Return an id, 1 .. 2**32 - 1."""
    if not 1 <= value <= limits.ID_MAX:
        refuse(field, value, f"an id, 1 .. {limits.ID_MAX}")
    return value


def whole(value: int, field: str, low: int, high: int, unit: str = "") -> int:
    """Return a whole number, `low` .. `high` (both inclusive), of `unit`."""
    if not low <= value <= high:
        refuse(field, value, f"{low} .. {high}{' ' + unit if unit else ''}")
    return value


def text(value: str, field: str, chars_max: int, *, chars_min: int = 0) -> str:
    """Return a text of `chars_min` .. `chars_max` printable characters, without blanks at its ends."""
    if not chars_min <= len(value) <= chars_max:
        if not value:
            refuse(field, value, f"{chars_min} .. {chars_max} characters")
        raise InvalidInput(
            f"{field} has {len(value)} characters; expected {chars_min} .. {chars_max}", field=field
        )
    if value != value.strip():
        refuse(field, value, "no blanks at its beginning or end")
    # Control and format characters could rewrite a terminal's screen or a log, or turn the writing direction round.
    if not value.isprintable():
        refuse(field, value, "printable characters only")
    return value


def request_id(value: str, field: str = "request_id") -> str:
    """Return a request id: 8 .. 64 printable ASCII characters without spaces."""
    low, high = limits.REQUEST_ID_CHARS_MIN, limits.REQUEST_ID_CHARS_MAX
    if not low <= len(value) <= high or not _REQUEST_ID.fullmatch(value):
        refuse(field, value, f"{low} .. {high} printable ASCII characters without spaces, for example a UUID")
    return value


def uid(value: str, field: str = "uid") -> bytes:
    """Return the 8 bytes of a uid written as 16 lower-case hexadecimal digits."""
    if not _UID.fullmatch(value):
        refuse(field, value, f"{2 * UID_BYTES} lower-case hexadecimal digits")
    return bytes.fromhex(value)


def scanned(value: str, field: str = "code") -> str:
    """Return a scanned or typed code of 1 .. 512 characters; what it says is judged later, as a verdict."""
    if not 1 <= len(value) <= bounds.CODE_CHARS_MAX:
        raise InvalidInput(
            f"{field} has {len(value)} characters; expected what was scanned or typed, 1 .. {bounds.CODE_CHARS_MAX}",
            field=field,
        )
    return value


def pin(value: str, field: str = "pin") -> str:
    """Return a PIN, six digits, or '' for none. A misshapen one is refused here, so that it costs the customer no try."""
    if value and not _PIN.fullmatch(value):
        raise InvalidInput(f"{field} is misshapen; expected six digits, or nothing", field=field)
    return value


def proof_token(value: str, field: str = "proof_token") -> str:
    """Return a proof token of at most 2,048 ASCII characters, or '' for none; what it says is judged later, as a verdict."""
    if len(value) > proof.TOKEN_CHARS_MAX or not value.isascii():
        raise InvalidInput(
            f"{field} is misshapen; expected a JWS in compact form of at most {proof.TOKEN_CHARS_MAX} characters, or nothing",
            field=field,
        )
    return value


def degrees(value: float, field: str, limit_deg: float) -> float:
    """Return an angle, finite, within ± `limit_deg` degrees."""
    if not math.isfinite(value) or abs(value) > limit_deg:
        refuse(field, value, f"-{limit_deg:g} .. {limit_deg:g} degrees")
    return value


def length(values: Sequence[object], field: str, low: int, high: int) -> None:
    """Check that a list has `low` .. `high` items (TooManyItems past it)."""
    if len(values) > high:
        raise TooManyItems(f"{field} has {len(values)} items; expected at most {high}", field=field)
    if len(values) < low:
        raise InvalidInput(f"{field} has {len(values)} items; expected at least {low}", field=field)


def choice(value: int, field: str, known: Sequence[tuple[str, int]]) -> int:
    """Return an enum's number that is among `known` (name, number); 0, not stated, is in it only if allowed."""
    if value not in [number for _, number in known]:
        refuse(field, value, " or ".join(f"{name} ({number})" for name, number in known))
    return value


def time_zone(value: str, field: str) -> str:
    """Return an IANA time zone's name. Checked by shape only on a system without a time zone database."""
    text(value, field, bounds.TIME_ZONE_CHARS_MAX, chars_min=1)
    known = _time_zones()
    if known and value not in known:
        refuse(field, value, "an IANA time zone, for example Asia/Shanghai")
    return value


@lru_cache(maxsize=1)
def _time_zones() -> frozenset[str]:
    # What these mean is each machine's own affair.
    return frozenset(zoneinfo.available_timezones()) - {"localtime", "Factory"}
