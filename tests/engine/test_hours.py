"""Opening hours, pickup windows and special days, with real time zones and their changes of the clocks."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import hours
from engine.errors import InvalidInput
from engine.hours import EVERY_DAY, Hours, SpecialDay, Window, in_window, is_open, next_opening, next_window
from engine.stores import Store
from tests.engine import shop

SHANGHAI = "Asia/Shanghai"
NEW_YORK = "America/New_York"
TEN_TO_TEN = Hours(10 * 60, 22 * 60)
WEEKEND = (6, 7)


def a_store(time_zone: str = SHANGHAI, **fields: Any) -> Store:
    return shop.store(1, time_zone=time_zone, **fields)


def at(text: str, time_zone: str = SHANGHAI, fold: int = 0) -> int:
    """Unix milliseconds of a wall time."""
    wall = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(time_zone), fold=fold)
    return round(wall.timestamp() * 1000)


def utc(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


# --- the week ---------------------------------------------------------------------------------------------------------
def test_a_store_without_hours_is_always_open() -> None:
    store = a_store()
    assert is_open(store, at("2026-06-01T03:00"))
    assert next_opening(store, at("2026-06-01T03:00")) == at("2026-06-01T03:00")


def test_a_closed_store_is_never_open() -> None:
    store = a_store(closed=True, opening_hours=(TEN_TO_TEN,))
    assert not is_open(store, at("2026-06-01T12:00"))
    assert not is_open(a_store(closed=True), at("2026-06-01T12:00"))
    assert next_opening(store, at("2026-06-01T12:00")) is None


def test_hours_begin_on_their_minute_and_end_before_it() -> None:
    store = a_store(opening_hours=(TEN_TO_TEN,))
    assert not is_open(store, at("2026-06-01T10:00") - 1)
    assert is_open(store, at("2026-06-01T10:00"))
    assert is_open(store, at("2026-06-01T22:00") - 1)
    assert not is_open(store, at("2026-06-01T22:00"))
    # 10:00 in Shanghai is 02:00 UTC: the store's wall clock counts, not the server's.
    assert next_opening(store, utc("2026-06-01T01:00")) == utc("2026-06-01T02:00")


def test_hours_hold_on_their_weekdays_only() -> None:
    store = a_store(opening_hours=(Hours(10 * 60, 22 * 60, WEEKEND), Hours(12 * 60, 14 * 60, (1,))))
    # 2026-06-06 is a Saturday.
    assert date(2026, 6, 6).isoweekday() == 6
    assert is_open(store, at("2026-06-06T10:30"))
    assert is_open(store, at("2026-06-07T21:30"))
    assert not is_open(store, at("2026-06-08T10:30"))
    assert is_open(store, at("2026-06-08T13:00"))
    assert not is_open(store, at("2026-06-09T13:00"))
    assert next_opening(store, at("2026-06-08T14:00")) == at("2026-06-13T10:00")


def test_hours_past_midnight_belong_to_the_day_on_which_they_begin() -> None:
    store = a_store(opening_hours=(Hours(20 * 60, 2 * 60, (5,)),))
    # 2026-06-05 is a Friday.
    assert not is_open(store, at("2026-06-05T01:00"))
    assert is_open(store, at("2026-06-05T23:59"))
    assert is_open(store, at("2026-06-06T01:59"))
    assert not is_open(store, at("2026-06-06T02:00"))
    assert not is_open(store, at("2026-06-06T21:00"))


def test_a_break_at_noon() -> None:
    store = a_store(opening_hours=(Hours(14 * 60, 18 * 60), Hours(9 * 60, 12 * 60)))
    assert is_open(store, at("2026-06-01T11:59"))
    assert not is_open(store, at("2026-06-01T13:00"))
    assert next_opening(store, at("2026-06-01T13:00")) == at("2026-06-01T14:00")
    assert next_opening(store, at("2026-06-01T18:00")) == at("2026-06-02T09:00")


# --- windows ------------------------------------------------------------------------------------------------------------
WINDOWS = (Window(9 * 60, 11 * 60, name="早市"), Window(19 * 60, 21 * 60, name="晚市"))


def test_in_a_window_or_between_two() -> None:
    store = a_store(pickup_windows=WINDOWS)
    assert in_window(store, at("2026-06-01T09:00")) == "早市"
    assert in_window(store, at("2026-06-01T10:59")) == "早市"
    assert in_window(store, at("2026-06-01T11:00")) is None
    assert in_window(store, at("2026-06-01T20:00")) == "晚市"


def test_the_next_window_is_the_present_one_or_the_one_to_come() -> None:
    store = a_store(pickup_windows=WINDOWS)
    evening = next_window(store, at("2026-06-01T11:00"))
    assert evening == hours.Span(at("2026-06-01T19:00"), at("2026-06-01T21:00"), "晚市")
    assert next_window(store, at("2026-06-01T20:59")) == evening
    tomorrow = next_window(store, at("2026-06-01T21:00"))
    assert tomorrow is not None
    assert (tomorrow.name, tomorrow.start_ms) == ("早市", at("2026-06-02T09:00"))


def test_a_window_reads_in_the_store_s_time() -> None:
    store = a_store(pickup_windows=(Window(22 * 60, 60, name="夜市"),))
    span = next_window(store, utc("2026-06-01T00:00"))
    assert span is not None
    assert span.text(store.time_zone) == "夜市 2026-06-01 22:00–01:00"
    assert span.text("UTC") == "夜市 2026-06-01 14:00–17:00"
    assert hours.Span(0, 3_600_000).text("UTC") == "1970-01-01 00:00–01:00"


def test_a_store_without_windows_has_none_to_lie_in() -> None:
    assert in_window(a_store(), at("2026-06-01T12:00")) is None
    assert next_window(a_store(), at("2026-06-01T12:00")) is None


def test_windows_and_hours_don_t_look_at_each_other() -> None:
    store = a_store(opening_hours=(TEN_TO_TEN,), pickup_windows=WINDOWS)
    assert in_window(store, at("2026-06-01T09:30")) == "早市"
    assert not is_open(store, at("2026-06-01T09:30"))


# --- special days -------------------------------------------------------------------------------------------------------
def test_a_special_day_comes_before_the_week() -> None:
    store = a_store(
        opening_hours=(TEN_TO_TEN,),
        pickup_windows=WINDOWS,
        special_days=(
            SpecialDay("2026-10-01", closed=True),
            SpecialDay("2026-10-02", opening_hours=(Hours(13 * 60, 15 * 60),)),
            SpecialDay("2026-10-03", pickup_windows=()),
            SpecialDay("2026-10-04", opening_hours=(), pickup_windows=(Window(0, 60, name="夜市"),)),
        ),
    )
    assert is_open(store, at("2026-09-30T12:00"))
    assert not is_open(store, at("2026-10-01T12:00"))
    assert in_window(store, at("2026-10-01T10:00")) is None
    # Other hours, the week's windows.
    assert not is_open(store, at("2026-10-02T12:00"))
    assert is_open(store, at("2026-10-02T14:00"))
    assert in_window(store, at("2026-10-02T10:00")) == "早市"
    # The week's hours, no window.
    assert is_open(store, at("2026-10-03T12:00"))
    assert in_window(store, at("2026-10-03T10:00")) is None
    # Open all day, another window.
    assert is_open(store, at("2026-10-04T03:00"))
    assert in_window(store, at("2026-10-04T00:30")) == "夜市"
    assert in_window(store, at("2026-10-04T10:00")) is None
    assert next_opening(store, at("2026-09-30T22:00")) == at("2026-10-02T13:00")
    following = next_window(store, at("2026-10-02T21:00"))
    assert following is not None
    assert following.start_ms == at("2026-10-04T00:00")


def test_a_night_that_began_before_a_special_day_runs_to_its_end() -> None:
    store = a_store(
        opening_hours=(Hours(18 * 60, 3 * 60),), special_days=(SpecialDay("2026-10-01", closed=True),)
    )
    assert is_open(store, at("2026-10-01T02:59"))
    assert not is_open(store, at("2026-10-01T03:00"))
    assert not is_open(store, at("2026-10-01T19:00"))
    assert not is_open(store, at("2026-10-02T02:00"))
    assert is_open(store, at("2026-10-02T18:00"))


def test_an_always_open_store_closes_for_one_whole_day() -> None:
    store = a_store(special_days=(SpecialDay("2026-02-17", closed=True),))
    assert is_open(store, at("2026-02-17T00:00") - 1)
    assert not is_open(store, at("2026-02-17T00:00"))
    assert not is_open(store, at("2026-02-18T00:00") - 1)
    assert is_open(store, at("2026-02-18T00:00"))
    assert next_opening(store, at("2026-02-17T08:00")) == at("2026-02-18T00:00")


def test_what_opens_too_far_ahead_is_not_looked_for() -> None:
    first = date(2026, 6, 1)
    closed = [SpecialDay((first + timedelta(days=n)).isoformat(), closed=True) for n in range(90)]
    store = a_store(opening_hours=(TEN_TO_TEN,), special_days=tuple(closed))
    assert next_opening(store, at("2026-06-01T12:00")) is None
    near = at("2026-08-30T10:00") - hours.AHEAD_DAYS_MAX * 86_400_000
    assert next_opening(store, near) == at("2026-08-30T10:00")


# --- clocks that change -------------------------------------------------------------------------------------------------
# New York, 2026: forward at 02:00 on 8 March (07:00 UTC), back at 02:00 on 1 November (06:00 UTC). IANA tzdb, northamerica.
def test_an_hour_that_never_comes() -> None:
    from_within = a_store(NEW_YORK, opening_hours=(Hours(2 * 60 + 30, 6 * 60),))
    assert not is_open(from_within, utc("2026-03-08T06:59:59"))
    assert is_open(from_within, utc("2026-03-08T07:00"))
    to_within = a_store(NEW_YORK, opening_hours=(Hours(22 * 60, 2 * 60 + 30),))
    assert is_open(to_within, utc("2026-03-08T06:59:59"))
    assert not is_open(to_within, utc("2026-03-08T07:00"))
    all_within = a_store(NEW_YORK, opening_hours=(Hours(2 * 60 + 10, 2 * 60 + 50),))
    assert next_opening(all_within, utc("2026-03-08T00:00")) == at("2026-03-09T02:10", NEW_YORK)


def test_an_hour_that_comes_twice() -> None:
    from_within = a_store(NEW_YORK, opening_hours=(Hours(60 + 30, 5 * 60),))
    first, second = at("2026-11-01T01:30", NEW_YORK), at("2026-11-01T01:30", NEW_YORK, fold=1)
    assert (first, second) == (utc("2026-11-01T05:30"), utc("2026-11-01T06:30"))
    assert not is_open(from_within, first - 1)
    # Once open it stays so: also at the second 01:15, though its wall clock reads too early.
    for minutes in range(0, 270, 5):
        assert is_open(from_within, first + minutes * 60_000)
    to_within = a_store(NEW_YORK, opening_hours=(Hours(22 * 60, 60 + 30),))
    assert is_open(to_within, second - 1)
    assert not is_open(to_within, second)


def test_a_day_that_has_twenty_three_hours_is_whole() -> None:
    # Beirut, 2026: the hour after midnight of 29 March doesn't come (IANA tzdb, asia: last Sunday of March at 0:00).
    store = a_store("Asia/Beirut", special_days=(SpecialDay("2026-03-29", closed=True),))
    assert is_open(store, utc("2026-03-28T21:59:59"))
    assert not is_open(store, utc("2026-03-28T22:00"))
    assert not is_open(store, utc("2026-03-29T20:59:59"))
    assert is_open(store, utc("2026-03-29T21:00"))


def test_a_day_whose_midnight_comes_twice_is_whole() -> None:
    # Havana, 2026: 01:00 on 1 November is 00:00 once more (05:00 UTC; IANA tzdb, northamerica).
    zone = "America/Havana"
    assert at("2026-11-01T00:30", zone, fold=1) - at("2026-11-01T00:30", zone) == 3_600_000
    store = a_store(zone, special_days=(SpecialDay("2026-11-01", closed=True),))
    assert is_open(store, utc("2026-11-01T03:59:59"))
    assert not is_open(store, utc("2026-11-01T04:00"))
    assert not is_open(store, utc("2026-11-02T04:59:59"))
    assert is_open(store, utc("2026-11-02T05:00"))


def test_a_date_that_never_was() -> None:
    # Samoa left out 30 December 2011 (IANA tzdb, australasia).
    store = a_store("Pacific/Apia", opening_hours=(Hours(9 * 60, 17 * 60),))
    after_closing = at("2011-12-29T17:00", "Pacific/Apia")
    assert next_opening(store, after_closing) == at("2011-12-31T09:00", "Pacific/Apia")
    assert at("2011-12-31T09:00", "Pacific/Apia") - after_closing == 16 * 3_600_000


_minutes = st.integers(0, 1439)
_weekdays = st.sets(st.integers(1, 7), min_size=1).map(lambda days: tuple(sorted(days)))


@st.composite
def _hours(draw: st.DrawFn) -> Hours:
    from_min = draw(_minutes)
    to_min = draw(st.integers(1, 1440).filter(lambda minute: minute != from_min))
    return Hours(from_min, to_min, draw(_weekdays))


@given(
    weekly=st.lists(_hours(), min_size=1, max_size=4),
    minute=st.integers(0, 3 * 7 * 1440),
    closed=st.sets(st.integers(0, 20), max_size=3),
)
def test_agrees_with_the_wall_clock_where_clocks_never_change(
    weekly: list[Hours], minute: int, closed: set[int]
) -> None:
    start = datetime(2026, 6, 1, tzinfo=ZoneInfo(SHANGHAI))
    special = tuple(
        SpecialDay((start + timedelta(days=n)).date().isoformat(), closed=True) for n in sorted(closed)
    )
    store = a_store(opening_hours=tuple(weekly), special_days=special)
    now = start + timedelta(minutes=minute)
    closed_days = {special.day for special in special}

    def begun_on(day: datetime, span: Hours) -> bool:
        return day.isoweekday() in span.weekdays and day.date().isoformat() not in closed_days

    of_day, eve = now.hour * 60 + now.minute, now - timedelta(days=1)
    expected = any(
        (
            begun_on(now, span)
            and span.from_min <= of_day < (span.to_min if span.to_min > span.from_min else 1440)
        )
        or (begun_on(eve, span) and span.to_min < span.from_min and of_day < span.to_min)
        for span in weekly
    )
    assert is_open(store, round(now.timestamp() * 1000)) == expected


@given(
    zone=st.sampled_from(
        [SHANGHAI, NEW_YORK, "Asia/Beirut", "America/Havana", "Australia/Lord_Howe", "Africa/Cairo"]
    ),
    weekly=st.lists(_hours(), min_size=1, max_size=3),
    minute=st.integers(0, 400 * 1440),
)
def test_the_next_opening_is_open_and_nothing_before_it_is(
    zone: str, weekly: list[Hours], minute: int
) -> None:
    store = a_store(zone, opening_hours=tuple(weekly))
    now_ms = utc("2026-01-01") + minute * 60_000
    opening = next_opening(store, now_ms)
    assert opening is not None
    assert now_ms <= opening <= now_ms + 9 * 86_400_000
    assert is_open(store, opening)
    step = max(60_000, (opening - now_ms) // 50)
    assert not any(is_open(store, between) for between in range(now_ms, opening, step))
    assert opening == now_ms or not is_open(store, opening - 1)


@given(
    zone=st.sampled_from([SHANGHAI, NEW_YORK, "America/Havana", "Australia/Lord_Howe"]),
    weekly=st.lists(_hours(), min_size=1, max_size=3),
    # Around the days on which New York, Havana and Lord Howe (4 April) change their clocks, and any day.
    days=st.lists(
        st.sampled_from([66, 67, 68, 93, 94, 95, 304, 305, 306]) | st.integers(0, 365), min_size=2, max_size=6
    ),
    minutes=st.lists(st.integers(0, 1439), min_size=1, max_size=6),
)
def test_an_answer_doesn_t_depend_on_what_was_asked_before(
    zone: str, weekly: list[Hours], days: list[int], minutes: list[int]
) -> None:
    windows = tuple(Window(span.from_min, span.to_min, span.weekdays, name="w") for span in weekly)
    asked_often = a_store(zone, opening_hours=tuple(weekly), pickup_windows=windows)
    for day in days:
        for minute in minutes:
            now_ms = utc("2026-01-01") + (day * 1440 + minute) * 60_000
            fresh = a_store(zone, opening_hours=tuple(weekly), pickup_windows=windows)
            assert is_open(asked_often, now_ms) == is_open(fresh, now_ms)
            assert in_window(asked_often, now_ms) == ("w" if is_open(fresh, now_ms) else None)
            assert next_window(asked_often, now_ms) == next_window(fresh, now_ms)


# --- what may be stated ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Hours(-1, 60), "from_min"),
        (lambda: Hours(1440, 60), "from_min"),
        (lambda: Hours(0, 1441), "to_min"),
        (lambda: Hours(0, 0), "to_min"),
        (lambda: Hours(600, 600), "to_min"),
        (lambda: Hours(0, 60, ()), "weekdays"),
        (lambda: Hours(0, 60, (1, 1)), "weekdays"),
        (lambda: Hours(0, 60, (0,)), "weekdays[0]"),
        (lambda: Hours(0, 60, (1, 8)), "weekdays[1]"),
        (lambda: Window(0, 60), "name"),
        (lambda: Window(0, 60, name="\n"), "name"),
        (lambda: SpecialDay("2026-02-30"), "day"),
        (lambda: SpecialDay("20260201"), "day"),
        (lambda: SpecialDay("2026-W40-4"), "day"),
        (lambda: SpecialDay(""), "day"),
        (lambda: SpecialDay("2026-02-01", closed=True, opening_hours=()), "opening_hours"),
        (lambda: SpecialDay("2026-02-01", closed=True, pickup_windows=WINDOWS), "pickup_windows"),
        (lambda: SpecialDay("2026-02-01", opening_hours=(Hours(0, 60, (7,)),)), "opening_hours[0].weekdays"),
        (lambda: a_store(special_days=(SpecialDay("2026-02-01"), SpecialDay("2026-02-01"))), "special_days"),
        (lambda: a_store(opening_hours=(TEN_TO_TEN,) * 29), "opening_hours"),
        (lambda: a_store(time_zone="Asia/Nowhere"), "time_zone"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(make: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        make()
    assert refused.value.field == field
    assert field.partition("[")[0] in refused.value.message
    assert "expected" in refused.value.message


def test_a_store_comes_back_as_it_was_put() -> None:
    store = a_store(
        opening_hours=(TEN_TO_TEN, Hours(0, 1440, WEEKEND)),
        pickup_windows=WINDOWS,
        special_days=(
            SpecialDay("2026-10-01", closed=True),
            SpecialDay("2026-10-02", opening_hours=(), pickup_windows=WINDOWS),
        ),
    )
    again = Store.from_json(store.to_json())
    assert again == store
    assert again.special_days[1].opening_hours == ()
    assert again.special_days[0].opening_hours is None
    assert again.opening_hours[0].weekdays == EVERY_DAY
