"""When a daily job is next due (the reconciliation, the checkpoint): a time of day in a time zone, whatever its clocks do."""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from engine.errors import ConfigError

AT_DEFAULT: Final = "20:00 Asia/Shanghai"
"""Of the reconciliation."""
CHECKPOINT_AT_DEFAULT: Final = "04:00 Asia/Shanghai"
"""When the stores are closed."""
_FORM: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9]) (\S{1,64})")


def parse(text: str, field: str = "ledger_reconcile_at") -> tuple[time, ZoneInfo]:
    """Read "20:00 Asia/Shanghai". Raises ConfigError."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"{field} is {text!r}; expected a time and a time zone, for example {AT_DEFAULT!r}, or 'off'",
            field=field,
        )
    try:
        zone = ZoneInfo(found[3])
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigError(
            f"{field} names the time zone {found[3]!r}, which there is not; expected one of the IANA data base",
            field=field,
        ) from None
    return time(int(found[1]), int(found[2])), zone


def next_ms(text: str, after_ms: int) -> int:
    """The next time it is due behind `after_ms`, both in unix milliseconds. Raises ConfigError."""
    at, zone = parse(text)
    after = datetime.fromtimestamp(after_ms / 1000, UTC)
    day = after.astimezone(zone).date()
    for days in range(3):
        due = datetime.combine(day + timedelta(days=days), at, zone).astimezone(UTC)
        if due > after:
            return int(due.timestamp() * 1000)
    raise AssertionError("a time of day comes within two days")
