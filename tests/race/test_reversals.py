"""Reversals against redemptions and against each other: each unit goes out and comes back in turn, never twice in a row."""

from __future__ import annotations

from collections import Counter

import pytest

from engine.calls import IssueAnswer, RedeemRequest, ReverseRequest
from engine.claims import Line, State
from engine.state.events import EventType
from engine.verdict import RedeemVerdict, ReverseVerdict
from tests.race.books import check_books
from tests.race.heats import CALLERS, HEATS, Caller, Course
from tests.race.shop import sound, terminal

pytestmark = pytest.mark.race

SOME = HEATS // 20
"""How often each side must come first in a run, for the race to be one."""


def redeem(course: Course, text: str, terminal_id: int, *lines: Line) -> Caller:
    return Caller("redeem", RedeemRequest(terminal(terminal_id), course.request_id(), text, lines=lines))


def reverse(
    course: Course, code: IssueAnswer, terminal_id: int, *lines: Line, release: bool = False, detours: int = 0
) -> Caller:
    request = ReverseRequest(
        terminal(terminal_id), course.request_id(), code.uid, lines=lines, release=release
    )
    return Caller("reverse", request, detours)


def redeemed_codes(course: Course, sku: int, count: int, *, units: int) -> list[IssueAnswer]:
    """Codes that were just handed out, all of it."""
    made = course.issue(sku, count, units=units)
    heats = [[redeem(course, text, 99)] for text in course.show(made)]
    assert all(
        sound(answer).verdict is RedeemVerdict.REDEEMED for answers in course.run(heats) for answer in answers
    )
    return made


def test_redeem_against_reverse(course: Course, runs: int) -> None:
    """They take turns: a redemption that comes while the code is out, and a reversal while it is in, are refused."""
    reversals: Counter[int] = Counter()
    expected = []
    for _ in range(runs):
        sku = course.sku(HEATS)
        made = course.issue(sku, HEATS)
        heats = []
        for code, text in zip(made, course.show(made), strict=True):
            callers = [redeem(course, text, n) for n in range(1, 7)]
            callers += [reverse(course, code, n, detours=course.behind(2)) for n in range(7, 13)]
            heats.append(callers)
        before = course.figures(sku)
        out = 0
        for code, outcomes in zip(made, course.run(heats), strict=True):
            answers = [sound(outcome) for outcome in outcomes]
            redeems, reverses = answers[:6], answers[6:]
            won = [answer for answer in redeems if answer.verdict is RedeemVerdict.REDEEMED]
            back = [answer for answer in reverses if answer.verdict is ReverseVerdict.REVERSED]
            assert len(won) - len(back) in (0, 1)
            terminals = {answer.terminal_id for answer in won}
            for answer in redeems:
                assert answer in won or answer.verdict is RedeemVerdict.ALREADY_REDEEMED
                assert answer.terminal_id in terminals
            for answer in reverses:
                assert answer in back or answer.verdict is ReverseVerdict.NOT_REDEEMED
            assert sorted(answer.cycle for answer in back) == list(range(1, len(back) + 1))
            in_turn = sorted([*won, *back], key=lambda answer: answer.event)
            assert all(isinstance(answer, type(won[0])) == (n % 2 == 0) for n, answer in enumerate(in_turn))
            reversals[len(back)] += 1
            out += len(won) - len(back)
            expected.append((code.uid, [EventType.REDEEMED, EventType.REVERSED] * len(won), in_turn))
        after = course.figures(sku)
        assert before.on_hand - after.on_hand == before.reserved - after.reserved == out
    books = check_books(course.deployment)
    for uid, turns, in_turn in expected:
        assert books.kinds(uid) == [EventType.ISSUED, *turns[: len(in_turn)]]
        assert [event.id for event in books.of_code[uid][1:]] == [answer.event for answer in in_turn]
    assert sum(count for back, count in reversals.items() if back) >= SOME * runs, "nothing was ever reversed"
    assert sum(count for back, count in reversals.items() if back > 1) >= 1, "nothing went out again"


def test_reverse_against_reverse(course: Course, runs: int) -> None:
    """A redemption is reversed once: its units are reserved again, or free if the one that came first says refunded."""
    firsts: Counter[bool] = Counter()
    expected = []
    for _ in range(runs):
        sku = course.sku(3 * HEATS)
        made = redeemed_codes(course, sku, HEATS, units=3)
        heats = [
            [reverse(course, code, n, release=n % 2 == 0) for n in range(1, CALLERS + 1)] for code in made
        ]
        before = course.figures(sku)
        released = 0
        for code, callers, outcomes in zip(made, heats, course.run(heats), strict=True):
            answers = [sound(outcome) for outcome in outcomes]
            [winner] = [n for n, answer in enumerate(answers) if answer.verdict is ReverseVerdict.REVERSED]
            refunded = callers[winner].request.release
            assert Counter(answer.verdict for answer in answers) == {
                ReverseVerdict.REVERSED: 1,
                ReverseVerdict.NOT_REDEEMED: CALLERS - 1,
            }
            [line] = answers[winner].lines
            assert (line.count, line.left) == (3, 0 if refunded else 3)
            firsts[refunded] += 1
            released += 3 * refunded
            expected.append((code.uid, State.VOIDED if refunded else State.LIVE))
        after = course.figures(sku)
        assert after.on_hand - before.on_hand == 3 * HEATS
        assert after.reserved - before.reserved == 3 * HEATS - released
    books = check_books(course.deployment)
    for uid, state in expected:
        assert books.kinds(uid) == [EventType.ISSUED, EventType.REDEEMED, EventType.REVERSED]
        assert books.lives[uid].state is state
    assert min(firsts[False], firsts[True]) >= SOME * runs, firsts


def test_parts_reversed_against_parts_reversed(course: Course, runs: int) -> None:
    """Of seven units that are out, reversals of two each bring back six: three of them are right, whoever they are."""
    expected = []
    for _ in range(runs):
        sku = course.sku(7 * HEATS)
        made = redeemed_codes(course, sku, HEATS, units=7)
        heats = [[reverse(course, code, n, Line(sku, 2)) for n in range(1, CALLERS + 1)] for code in made]
        for code, outcomes in zip(made, course.run(heats), strict=True):
            answers = [sound(outcome) for outcome in outcomes]
            won = [answer for answer in answers if answer.verdict is ReverseVerdict.REVERSED]
            late = [answer for answer in answers if answer.verdict is ReverseVerdict.NOT_REDEEMED]
            assert (len(won), len(late)) == (3, CALLERS - 3)
            assert sorted(answer.lines[0].left for answer in won) == [2, 4, 6]
            assert sorted(answer.cycle for answer in won) == [1, 2, 3]
            assert {answer.sku_id for answer in late} == {sku}
            expected.append(code.uid)
    books = check_books(course.deployment)
    for uid in expected:
        life = books.lives[uid]
        assert (life.state, life.left.total(), life.out.total()) == (State.PARTLY, 6, 1)


def test_parts_redeemed_against_parts_reversed(course: Course, runs: int) -> None:
    """Ten units that go out by twos and come back by threes, at once: whatever happens, each is in one place."""
    moved: Counter[tuple[int, int]] = Counter()
    for _ in range(runs):
        sku = course.sku(10 * HEATS)
        made = course.issue(sku, HEATS, units=10)
        heats = []
        for code, text in zip(made, course.show(made), strict=True):
            callers = [redeem(course, text, n, Line(sku, 2)) for n in range(1, 9)]
            heats.append(callers + [reverse(course, code, n, Line(sku, 3)) for n in range(9, 13)])
        before = course.figures(sku)
        out = 0
        for outcomes in course.run(heats):
            answers = [sound(outcome) for outcome in outcomes]
            redeems, reverses = answers[:8], answers[8:]
            won = [answer for answer in redeems if answer.verdict is RedeemVerdict.REDEEMED]
            back = [answer for answer in reverses if answer.verdict is ReverseVerdict.REVERSED]
            assert {a.verdict for a in redeems} <= {
                RedeemVerdict.REDEEMED,
                RedeemVerdict.NOTHING_LEFT,
                RedeemVerdict.ALREADY_REDEEMED,
            }
            assert {a.verdict for a in reverses} <= {ReverseVerdict.REVERSED, ReverseVerdict.NOT_REDEEMED}
            left = 10
            for answer in sorted([*won, *back], key=lambda answer: answer.event):
                left += 3 if answer in back else -2
                assert answer.lines[0].left == left
                assert 0 <= left <= 10
            moved[len(won), len(back)] += 1
            out += 10 - left
        after = course.figures(sku)
        assert before.on_hand - after.on_hand == before.reserved - after.reserved == out
    check_books(course.deployment)
    assert len(moved) > 2, f"every heat went the same way: {moved}"
