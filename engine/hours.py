"""Opening hours, pickup windows and special days of a store, in its own time zone. Pure: the instant is an argument.

A span is stated in the wall clock of the store: minutes since midnight, on some weekdays. It belongs to the local day on which
it begins; one that ends no later than it begins ends on the next day. So what a special day changes are the spans that begin
on it: a night that began the evening before runs to its end.

A span is turned into two instants before anything is compared, so no change of the clocks makes a store open twice or never. A
wall time that comes twice (clocks put back) opens at its first coming and closes at its last; one that never comes (clocks put
forward) stands for the moment of the change. 24:00 is the first midnight that comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import TYPE_CHECKING, ClassVar, Final
from zoneinfo import ZoneInfo

from engine import limits
from engine.entries import Entry, check_different, check_number_of, check_text, check_whole
from engine.errors import InvalidInput

if TYPE_CHECKING:
    from engine.stores import Store

EVERY_DAY: Final = (1, 2, 3, 4, 5, 6, 7)
"""Weekdays as ISO 8601 counts them: 1 is Monday."""
DAY_MIN: Final = 24 * 60
SPANS_MAX: Final = 28
"""Opening hours of a week, and pickup windows of a week: four a day."""
SPECIAL_DAYS_MAX: Final = 400
"""A year ahead, and what nobody has cleared away yet."""
AHEAD_DAYS_MAX: Final = 60
"""How far the next opening or window is looked for; what lies beyond helps no customer."""
_DAYS_KEPT: Final = 128
"""Days whose spans a calendar keeps worked out."""
_OPENINGS, _WINDOWS = 0, 1


@dataclass(frozen=True)
class Hours(Entry):
    """A span in which a store is open: minutes since local midnight, from inclusive (0 .. 1,439), to exclusive (1 .. 1,440).

    `to_min` ≤ `from_min` ends on the next day. Equal ones are refused, because they could mean all day or never: all day is
    0 to 1,440.
    """

    from_min: int
    to_min: int
    weekdays: tuple[int, ...] = EVERY_DAY

    def __post_init__(self) -> None:
        check_whole(self.from_min, "from_min", 0, DAY_MIN - 1, "minutes since midnight")
        check_whole(self.to_min, "to_min", 1, DAY_MIN, "minutes since midnight")
        if self.from_min == self.to_min:
            raise InvalidInput(
                f"to_min is {self.to_min}, as from_min; expected another minute (all day is 0 to {DAY_MIN})",
                field="to_min",
            )
        check_number_of(self.weekdays, "weekdays", 1, 7)
        check_different(self.weekdays, "weekdays")
        for index, weekday in enumerate(self.weekdays):
            check_whole(weekday, f"weekdays[{index}]", 1, 7, "(1 is Monday)")


@dataclass(frozen=True)
class Window(Hours):
    """A named span in which codes may be picked up that a short stock has bound to windows."""

    name: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_text(self.name, "name", limits.NAME_CHARS_MAX)


@dataclass(frozen=True)
class SpecialDay(Entry):
    """One date on which a store is closed, or keeps other hours or windows than in the week.

    day: ISO 8601, as 2026-10-01, in the store's time zone. opening_hours and pickup_windows replace those of the week if they
    are given: None leaves them, an empty tuple of hours is open all day, an empty tuple of windows is a day without. They
    carry no weekdays of their own.
    """

    NESTED: ClassVar = {"opening_hours": Hours, "pickup_windows": Window}

    day: str
    closed: bool = False
    opening_hours: tuple[Hours, ...] | None = None
    pickup_windows: tuple[Window, ...] | None = None

    def __post_init__(self) -> None:
        _check_day(self.day)
        for name in ("opening_hours", "pickup_windows"):
            spans: tuple[Hours, ...] | None = getattr(self, name)
            if spans is None:
                continue
            if self.closed:
                raise InvalidInput(
                    f"{name} of {self.day} is given, but the day is closed; expected one or the other",
                    field=name,
                )
            check_number_of(spans, name, 0, SPANS_MAX)
            for index, span in enumerate(spans):
                if span.weekdays != EVERY_DAY:
                    raise InvalidInput(
                        f"{name}[{index}].weekdays is given for {self.day}; expected none: a date has its weekday",
                        field=f"{name}[{index}].weekdays",
                    )


def _check_day(text: str) -> None:
    try:
        # Only the extended form: fromisoformat also takes 20261001 and 2026-W40-4, and then one day could stand there twice.
        fits = date.fromisoformat(text).isoformat() == text
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise InvalidInput(f"day is {text!r}; expected a date such as 2026-10-01", field="day")


def check_week(
    opening_hours: Sequence[Hours], pickup_windows: Sequence[Window], special_days: Sequence[SpecialDay]
) -> None:
    """What a store may state, beyond what each part checks of itself. Raises InvalidInput."""
    check_number_of(opening_hours, "opening_hours", 0, SPANS_MAX)
    check_number_of(pickup_windows, "pickup_windows", 0, SPANS_MAX)
    check_number_of(special_days, "special_days", 0, SPECIAL_DAYS_MAX)
    check_different([special.day for special in special_days], "special_days")


@dataclass(frozen=True, slots=True)
class Span:
    """A span as it comes: unix milliseconds, start inclusive, end exclusive; the window's name, '' for opening hours."""

    start_ms: int
    end_ms: int
    name: str = ""

    def text(self, time_zone: str) -> str:
        """For people, in any language: name, date and wall times of `time_zone`, as "早市 2026-10-04 09:00–11:00"."""
        start, end = (
            datetime.fromtimestamp(at_ms // 1000, ZoneInfo(time_zone))
            for at_ms in (self.start_ms, self.end_ms)
        )
        return f"{self.name} {start:%Y-%m-%d %H:%M}–{end:%H:%M}".lstrip()


class Calendar:
    """The spans of one store, worked out day by day and kept. For many threads at once."""

    def __init__(
        self,
        time_zone: str,
        opening_hours: Sequence[Hours],
        pickup_windows: Sequence[Window],
        special_days: Iterable[SpecialDay],
    ) -> None:
        self._zone = ZoneInfo(time_zone)
        self._opening_hours = opening_hours
        self._pickup_windows = pickup_windows
        self._special_days = {special.day: special for special in special_days}
        self._days: dict[date, tuple[tuple[Span, ...], tuple[Span, ...]]] = {}
        self._answers: list[tuple[int, int, Span | None]] = [(0, 0, None), (0, 0, None)]

    @property
    def always_open(self) -> bool:
        """True when no rule ever closes it."""
        return not self._opening_hours and not self._special_days

    def day_of(self, at_ms: int) -> date:
        """The local day of an instant."""
        return datetime.fromtimestamp(at_ms // 1000, self._zone).date()

    def opening_at(self, at_ms: int) -> Span | None:
        """The opening hours that an instant lies in, of several those that began first."""
        return self._at(at_ms, _OPENINGS)

    def window_at(self, at_ms: int) -> Span | None:
        """The pickup window that an instant lies in, of several the one that began first."""
        return self._at(at_ms, _WINDOWS)

    def next_opening(self, at_ms: int) -> Span | None:
        """The first opening hours that have not ended, begun or not; None when there are none in AHEAD_DAYS_MAX days."""
        return self._next(at_ms, _OPENINGS)

    def next_window(self, at_ms: int) -> Span | None:
        """The first pickup window that has not ended, begun or not; None when there is none in AHEAD_DAYS_MAX days."""
        return self._next(at_ms, _WINDOWS)

    def _at(self, at_ms: int, kind: int) -> Span | None:
        # Every scan of a terminal asks this, so the last answer is kept for as long as it holds.
        since_ms, until_ms, answer = self._answers[kind]
        if since_ms <= at_ms < until_ms:
            return answer
        day = self.day_of(at_ms)
        # The day before for spans past midnight; the day after because clocks put back at midnight bring the old day once
        # more when the new one has begun.
        spans = [span for n in (-1, 0, 1) for span in self._of(day + timedelta(days=n))[kind]]
        holding = [span for span in spans if span.start_ms <= at_ms < span.end_ms]
        answer = min(holding, key=lambda span: span.start_ms, default=None)
        # It holds between two bounds of spans, and no longer than the day, whose neighbours have been looked at.
        bounds = [bound for span in spans for bound in (span.start_ms, span.end_ms)]
        bounds += (self._instant_ms(day, 0, last=False), self._instant_ms(day, DAY_MIN, last=False))
        since_ms = max((bound for bound in bounds if bound <= at_ms), default=at_ms)
        until_ms = min((bound for bound in bounds if bound > at_ms), default=at_ms + 1)
        self._answers[kind] = since_ms, until_ms, answer
        return answer

    def _next(self, at_ms: int, kind: int) -> Span | None:
        first = self.day_of(at_ms) - timedelta(days=1)
        for n in range(AHEAD_DAYS_MAX + 2):
            for span in self._of(first + timedelta(days=n))[kind]:
                if at_ms < span.end_ms:
                    return span
        return None

    def _of(self, day: date) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
        found = self._days.get(day)
        if found is None:
            if len(self._days) >= _DAYS_KEPT:
                self._days.clear()
            found = self._days[day] = self._worked_out(day)
        return found

    def _worked_out(self, day: date) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
        hours, windows = self._opening_hours, self._pickup_windows
        special = self._special_days.get(day.isoformat())
        if special is not None:
            if special.closed:
                return (), ()
            hours = hours if special.opening_hours is None else special.opening_hours
            windows = windows if special.pickup_windows is None else special.pickup_windows
        return self._spans(hours or (Hours(0, DAY_MIN),), day), self._spans(windows, day)

    def _spans(self, hours: Sequence[Hours], day: date) -> tuple[Span, ...]:
        spans = []
        for span in hours:
            if day.isoweekday() not in span.weekdays:
                continue
            start_ms = self._instant_ms(day, span.from_min, last=False)
            end_day = day if span.to_min > span.from_min else day + timedelta(days=1)
            end_ms = self._instant_ms(end_day, span.to_min, last=span.to_min < DAY_MIN)
            if start_ms < end_ms:
                spans.append(Span(start_ms, end_ms, span.name if isinstance(span, Window) else ""))
        return tuple(sorted(spans, key=lambda span: span.start_ms))

    def _instant_ms(self, day: date, minutes: int, *, last: bool) -> int:
        """The instant of a wall time; of one that comes twice the last or the first, of one that never comes the change.

        PEP 495: `fold` 0 and 1 give the same instant, or the first and the second; in a gap 0 reads the time by the offset
        before the change and 1 by the one after it, so that the change lies between them.
        """
        if minutes == DAY_MIN:
            day, minutes = day + timedelta(days=1), 0
        wall = datetime.combine(day, time(minutes // 60, minutes % 60), tzinfo=self._zone)
        first_s, second_s = int(wall.timestamp()), int(wall.replace(fold=1).timestamp())
        if first_s <= second_s:
            return (second_s if last else first_s) * 1000
        before_s, after_s = second_s, first_s
        offset_before = datetime.fromtimestamp(before_s, self._zone).utcoffset()
        while after_s - before_s > 1:
            middle_s = (before_s + after_s) // 2
            if datetime.fromtimestamp(middle_s, self._zone).utcoffset() == offset_before:
                before_s = middle_s
            else:
                after_s = middle_s
        return after_s * 1000


def is_open(store: Store, at_ms: int) -> bool:
    """True when the store is open at an instant (unix milliseconds): not closed altogether, and within its hours."""
    if store.closed:
        return False
    return store.calendar.always_open or store.calendar.opening_at(at_ms) is not None


def in_window(store: Store, at_ms: int) -> str | None:
    """Name of the pickup window that an instant lies in, of several the one that began first; None when it lies in none.

    A store that states no windows has none to lie in: whether that binds anything is the caller's question
    (`store.pickup_windows`). Opening hours are not looked at.
    """
    span = store.calendar.window_at(at_ms)
    return None if span is None else span.name


def next_opening(store: Store, at_ms: int) -> int | None:
    """From when on the store is open, unix milliseconds: at_ms itself when it is open then.

    None when it is closed altogether, or for more than AHEAD_DAYS_MAX days.
    """
    if store.closed:
        return None
    if is_open(store, at_ms):
        return at_ms
    span = store.calendar.next_opening(at_ms)
    return None if span is None else span.start_ms


def next_window(store: Store, at_ms: int) -> Span | None:
    """The pickup window that an instant lies in, else the next to begin; None when there is none in AHEAD_DAYS_MAX days."""
    return store.calendar.next_window(at_ms)
