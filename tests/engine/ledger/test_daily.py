"""When the daily reconciliation is due."""

from __future__ import annotations

from datetime import datetime

import pytest

from engine.errors import ConfigError
from engine.ledger.daily import AT_DEFAULT, next_ms


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


@pytest.mark.parametrize(
    ("at", "after", "due"),
    [
        (AT_DEFAULT, "2026-11-25T19:59:59+08:00", "2026-11-25T20:00:00+08:00"),
        (AT_DEFAULT, "2026-11-25T20:00:00+08:00", "2026-11-26T20:00:00+08:00"),
        # Still the day before in UTC.
        (AT_DEFAULT, "2026-11-24T22:00:00+00:00", "2026-11-25T12:00:00+00:00"),
        ("00:00 UTC", "2026-12-31T23:00:00+00:00", "2027-01-01T00:00:00+00:00"),
        # The clocks are put forward and back there (2026-03-29, 2026-10-25).
        ("02:30 Europe/Berlin", "2026-03-28T12:00:00+01:00", "2026-03-29T03:30:00+02:00"),
        ("20:00 Europe/Berlin", "2026-10-24T20:00:00+02:00", "2026-10-25T20:00:00+01:00"),
    ],
)
def test_it_is_due_at_its_time_of_day(at: str, after: str, due: str) -> None:
    assert next_ms(at, ms(after)) == ms(due)


@pytest.mark.parametrize("text", ["", "20:00", "24:00 UTC", "20:60 UTC", "8:00 UTC", "20:00 Nowhere/City"])
def test_a_time_that_is_none_is_told(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        next_ms(text, 0)
    assert caught.value.field == "ledger_reconcile_at"
