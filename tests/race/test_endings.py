"""How a code ends, when several would end it at once: redeemed, voided, expired, decided by a reviewer: exactly one of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import pytest

from engine import expiry, issuance, limits, redemption
from engine.calls import (
    ConfirmRequest,
    ExtendRequest,
    IssueAnswer,
    IssueRequest,
    RedeemAnswer,
    RedeemRequest,
    ReviewAnswer,
    ReviewRequest,
    VoidAnswer,
    VoidRequest,
)
from engine.claims import Decision, Line, State, Suite, Version
from engine.state.due import SETTLE_S
from engine.state.events import EventType
from engine.verdict import (
    ConfirmVerdict,
    ExtendVerdict,
    HoldVerdict,
    RedeemVerdict,
    ReviewVerdict,
    VoidVerdict,
)
from tests.race.books import Books, check_books
from tests.race.heats import CALLERS, HEATS, SWEEP, Caller, Course
from tests.race.shop import MALL, STORE, sound, terminal

pytestmark = pytest.mark.race

SOME: Final = HEATS // 20
"""How often each side must come first in a run, for the race to be one."""
SWEEPERS: Final = 4
BEHIND: Final = 30
"""Most trips that others start behind the sweeps, which take some twenty."""
APART_S: Final = 120
"""Between the ends of two codes: a sweep for the first does not yet look at the second."""


def redeem(
    course: Course, code: str, terminal_id: int, *lines: Line, pin: str = "", detours: int = 0, at_ms: int = 0
) -> Caller:
    request = RedeemRequest(
        terminal(terminal_id), course.request_id(), code, pin=pin, lines=lines, actor="clerk"
    )
    return Caller("redeem", request, detours, at_ms)


def void(course: Course, uid: bytes, *, detours: int = 0, at_ms: int = 0) -> Caller:
    return Caller("void", VoidRequest(MALL, course.request_id(), uid), detours, at_ms)


def test_redeem_against_redeem(course: Course, runs: int) -> None:
    firsts: Counter[int] = Counter()
    expected = []
    for _ in range(runs):
        sku = course.sku(HEATS)
        made = [
            *course.issue(sku, HEATS // 2),
            *course.issue(sku, HEATS // 2, version=Version.STATIC, suite=Suite.SM),
        ]
        heats = [
            [redeem(course, text, n, pin=code.pin) for n in range(1, CALLERS + 1)]
            for code, text in zip(made, course.show(made), strict=True)
        ]
        before = course.figures(sku)
        for code, outcomes in zip(made, course.run(heats), strict=True):
            answers = [sound(outcome) for outcome in outcomes]
            [winner] = [answer for answer in answers if answer.verdict is RedeemVerdict.REDEEMED]
            for n, answer in enumerate(answers, 1):
                assert (answer.at_ms, answer.terminal_id) == (winner.at_ms, winner.terminal_id)
                if answer is winner:
                    assert answer.terminal_id == n
                else:
                    assert (answer.verdict, answer.event) == (RedeemVerdict.ALREADY_REDEEMED, None)
            firsts[winner.terminal_id] += 1
            expected.append((code.uid, winner))
        after = course.figures(sku)
        assert before.on_hand - after.on_hand == before.reserved - after.reserved == HEATS
    books = check_books(course.deployment)
    for uid, winner in expected:
        assert books.kinds(uid) == [EventType.ISSUED, EventType.REDEEMED]
        assert (books.of_code[uid][1].id, books.lives[uid].terminal_id) == (winner.event, winner.terminal_id)
    assert len(firsts) > CALLERS // 2, f"always the same come first: {firsts}"


def test_redeem_against_void(course: Course, runs: int) -> None:
    firsts: Counter[type] = Counter()
    expected = []
    for _ in range(runs):
        sku = course.sku(2 * HEATS)
        made = course.issue(sku, HEATS, units=2)
        heats = []
        for code, text in zip(made, course.show(made), strict=True):
            detours = course.behind(4)
            callers = [redeem(course, text, n, detours=detours) for n in range(1, 5)]
            heats.append(callers + [void(course, code.uid) for _ in range(5, CALLERS + 1)])
        before = course.figures(sku)
        redeemed = 0
        for code, outcomes in zip(made, course.run(heats), strict=True):
            answers = [sound(outcome) for outcome in outcomes]
            [winner] = [answer for answer in answers if answer.verdict.success]
            late: dict[type, Any] = {
                RedeemAnswer: RedeemVerdict.VOIDED,
                VoidAnswer: VoidVerdict.ALREADY_VOIDED,
            }
            if isinstance(winner, RedeemAnswer):
                late = {
                    RedeemAnswer: RedeemVerdict.ALREADY_REDEEMED,
                    VoidAnswer: VoidVerdict.ALREADY_REDEEMED,
                }
                redeemed += 2
            for answer in answers:
                assert answer is winner or answer.verdict is late[type(answer)]
                assert answer.at_ms == winner.at_ms
            firsts[type(winner)] += 1
            expected.append((code.uid, isinstance(winner, RedeemAnswer)))
        after = course.figures(sku)
        assert before.on_hand - after.on_hand == redeemed
        assert before.reserved - after.reserved == 2 * HEATS
    books = check_books(course.deployment)
    for uid, was_redeemed in expected:
        ending = EventType.REDEEMED if was_redeemed else EventType.VOIDED
        assert books.kinds(uid) == [EventType.ISSUED, ending]
    assert min(firsts[RedeemAnswer], firsts[VoidAnswer]) >= SOME * runs, firsts


# --- expiry -----------------------------------------------------------------------------------------------------------
def sweep_ms(expires_at_s: int) -> int:
    """When a sweep first looks at codes that end at a time."""
    return -(-expires_at_s // 60) * 60_000 + SETTLE_S * 1000


def last_moment_ms(expires_at_s: int) -> int:
    return expires_at_s * 1000 - 1


def issue_for(course: Course, sku: int, ttl_s: int, *, units: int, version: Version) -> IssueAnswer:
    request = IssueRequest(
        MALL, course.request_id(), STORE, "order", (Line(sku, units),), version, Suite.AES, ttl_s=ttl_s
    )
    [answer] = issuance.issue(course.deployment, [request])
    assert sound(answer).verdict.success
    return sound(answer)


def race_the_sweep(
    course: Course, made: Sequence[IssueAnswer], callers_of: Callable[[IssueAnswer, int], list[Caller]]
) -> list[list[Any]]:
    """For each code callers whose clocks show its last moment, against sweeps behind its end. Outcomes of the former."""
    heats = []
    for code in made:
        # What is shown at the last moment must be fresh then.
        course.now_ms = at_ms = last_moment_ms(code.expires_at_s)
        callers = callers_of(code, at_ms)
        heats.append([*callers, *[Caller(SWEEP, None, 0, sweep_ms(code.expires_at_s))] * SWEEPERS])
    found = course.run(heats)
    course.now_ms = sweep_ms(made[-1].expires_at_s) + CALLERS
    for callers, outcomes in zip(heats, found, strict=True):
        assert all(sound(outcome).forgotten >= 0 for outcome in outcomes[-SWEEPERS:])
        assert len(outcomes) == len(callers)
    return [outcomes[:-SWEEPERS] for outcomes in found]


def ended_or_expired(books: Books, uid: bytes, came_first: bool, *kinds: EventType) -> None:
    assert books.kinds(uid) == [EventType.ISSUED, *(kinds if came_first else [EventType.EXPIRED])]


def test_redeem_against_expiry(course: Course, runs: int) -> None:
    firsts: Counter[bool] = Counter()
    expected = []
    for _ in range(runs):
        sku = course.sku(2 * HEATS)
        made = [
            issue_for(course, sku, APART_S * n, units=2, version=Version.STATIC if n % 2 else Version.DYNAMIC)
            for n in range(1, HEATS + 1)
        ]

        def callers_of(code: IssueAnswer, at_ms: int) -> list[Caller]:
            [text] = course.show([code])
            detours = course.behind(BEHIND)
            return [
                redeem(course, text, n, pin=code.pin, detours=detours, at_ms=at_ms)
                for n in range(1, CALLERS - SWEEPERS + 1)
            ]

        before = course.figures(sku)
        redeemed = 0
        for code, outcomes in zip(made, race_the_sweep(course, made, callers_of), strict=True):
            verdicts = Counter(sound(outcome).verdict for outcome in outcomes)
            assert verdicts in (
                {RedeemVerdict.REDEEMED: 1, RedeemVerdict.ALREADY_REDEEMED: len(outcomes) - 1},
                {RedeemVerdict.EXPIRED: len(outcomes)},
            )
            came_first = RedeemVerdict.REDEEMED in verdicts
            firsts[came_first] += 1
            redeemed += 2 * came_first
            expected.append((code.uid, came_first))
        after = course.figures(sku)
        assert before.on_hand - after.on_hand == redeemed
        assert before.reserved - after.reserved == 2 * HEATS, "what expired is free again, once"
    books = check_books(course.deployment)
    for uid, came_first in expected:
        ended_or_expired(books, uid, came_first, EventType.REDEEMED)
    assert min(firsts[False], firsts[True]) >= SOME * runs, firsts


def test_parts_against_expiry(course: Course, runs: int) -> None:
    """What was handed out before the end stays so; what was left is free again."""
    taken: Counter[int] = Counter()
    expected = []
    for _ in range(runs):
        sku = course.sku(3 * HEATS)
        made = [
            issue_for(course, sku, APART_S * n, units=3, version=Version.DYNAMIC) for n in range(1, HEATS + 1)
        ]

        def callers_of(code: IssueAnswer, at_ms: int) -> list[Caller]:
            [text] = course.show([code])
            detours = course.behind(BEHIND)
            return [
                redeem(course, text, n, Line(sku, 1), detours=detours, at_ms=at_ms)  # noqa: B023
                for n in range(1, CALLERS - SWEEPERS + 1)
            ]

        for code, outcomes in zip(made, race_the_sweep(course, made, callers_of), strict=True):
            verdicts = Counter(sound(outcome).verdict for outcome in outcomes)
            won = verdicts.pop(RedeemVerdict.REDEEMED, 0)
            assert won <= 3
            assert set(verdicts) <= {RedeemVerdict.ALREADY_REDEEMED if won == 3 else RedeemVerdict.EXPIRED}
            taken[won] += 1
            expected.append((code.uid, won))
    books = check_books(course.deployment)
    for uid, won in expected:
        ending = [] if won == 3 else [EventType.EXPIRED]
        assert books.kinds(uid) == [EventType.ISSUED, *[EventType.REDEEMED] * won, *ending]
        assert books.lives[uid].out.total() == won
    assert min(taken[0], taken[3]) >= 1, taken
    assert taken[1] + taken[2] >= 1, f"the sweep never came in between: {taken}"


def test_void_against_expiry(course: Course, runs: int) -> None:
    firsts: Counter[bool] = Counter()
    expected = []
    for _ in range(runs):
        sku = course.sku(HEATS)
        made = [
            issue_for(course, sku, APART_S * n, units=1, version=Version.DYNAMIC) for n in range(1, HEATS + 1)
        ]

        def callers_of(code: IssueAnswer, at_ms: int) -> list[Caller]:
            detours = course.behind(BEHIND)
            return [void(course, code.uid, detours=detours, at_ms=at_ms) for _ in range(CALLERS - SWEEPERS)]

        for code, outcomes in zip(made, race_the_sweep(course, made, callers_of), strict=True):
            verdicts = Counter(sound(outcome).verdict for outcome in outcomes)
            assert verdicts in (
                {VoidVerdict.VOIDED: 1, VoidVerdict.ALREADY_VOIDED: len(outcomes) - 1},
                {VoidVerdict.EXPIRED: len(outcomes)},
            )
            came_first = VoidVerdict.VOIDED in verdicts
            firsts[came_first] += 1
            expected.append((code.uid, came_first))
    books = check_books(course.deployment)
    for uid, came_first in expected:
        ended_or_expired(books, uid, came_first, EventType.VOIDED)
    assert min(firsts[False], firsts[True]) >= SOME * runs, firsts


def test_extend_against_expiry(course: Course, runs: int) -> None:
    """Extended at the last moment, a code lives on, and its end comes when it is due; or it has expired, and stays so."""
    firsts: Counter[bool] = Counter()
    expected = []
    for _ in range(runs):
        sku = course.sku(HEATS)
        made = [
            issue_for(course, sku, APART_S * n, units=1, version=Version.DYNAMIC) for n in range(1, HEATS + 1)
        ]
        last_s = made[-1].expires_at_s + APART_S

        def callers_of(code: IssueAnswer, at_ms: int) -> list[Caller]:
            detours = course.behind(BEHIND)
            requests = [
                ExtendRequest(MALL, course.request_id(), code.uid, last_s + n)  # noqa: B023
                for n in range(1, CALLERS - SWEEPERS + 1)
            ]
            return [Caller("extend", request, detours, at_ms) for request in requests]

        extended = []
        for code, outcomes in zip(made, race_the_sweep(course, made, callers_of), strict=True):
            answers = [sound(outcome) for outcome in outcomes]
            won = [answer for answer in answers if answer.verdict is ExtendVerdict.EXTENDED]
            late = ExtendVerdict.NOT_LATER if won else ExtendVerdict.EXPIRED
            assert {answer.verdict for answer in answers if answer not in won} <= {late}
            firsts[bool(won)] += 1
            kinds = [EventType.ISSUED, *[EventType.EXTENDED] * len(won), EventType.EXPIRED]
            expected.append((code.uid, kinds))
            if won:
                assert max(answer.expires_at_s for answer in won) == last_s + len(answers)
                extended.append(code.uid)
        assert all(r and r.state is State.LIVE for r in issuance.get(course.deployment, MALL, extended))
        course.now_ms = sweep_ms(last_s + CALLERS)
        assert expiry.sweep(course.deployment).expired >= len(extended)
    books = check_books(course.deployment)
    for uid, kinds in expected:
        assert books.kinds(uid) == kinds
    assert min(firsts[False], firsts[True]) >= SOME * runs, firsts


def test_confirm_against_expiry(course: Course, runs: int) -> None:
    """The payment comes at the last moment: the hold becomes a code, or its stock is free; never both, never neither."""
    firsts: Counter[bool] = Counter()
    expected = []
    for _ in range(runs * HEATS // 4):
        sku = course.sku(2)
        request = IssueRequest(
            MALL,
            course.request_id(),
            STORE,
            "order",
            (Line(sku, 2),),
            Version.DYNAMIC,
            Suite.AES,
            ttl_s=limits.TTL_S_MAX,
        )
        held = sound(issuance.hold(course.deployment, [request])[0])
        assert held.verdict is HoldVerdict.HELD
        before = course.figures(sku)
        at_ms = last_moment_ms(held.expires_at_s)
        detours = course.behind(BEHIND)
        callers = [
            Caller("confirm", ConfirmRequest(MALL, course.request_id(), held.uid), detours, at_ms)
            for _ in range(8)
        ]
        swept_ms = sweep_ms(held.expires_at_s)
        [outcomes] = course.run([[*callers, *[Caller(SWEEP, None, 0, swept_ms)] * SWEEPERS]])
        course.now_ms = swept_ms + CALLERS
        verdicts = Counter(sound(outcome).verdict for outcome in outcomes[:8])
        assert verdicts in (
            {ConfirmVerdict.CONFIRMED: 1, ConfirmVerdict.ALREADY_CONFIRMED: 7},
            {ConfirmVerdict.EXPIRED: 8},
        )
        came_first = ConfirmVerdict.CONFIRMED in verdicts
        firsts[came_first] += 1
        after = course.figures(sku)
        assert (after.on_hand, after.reserved) == (before.on_hand, before.reserved - 2 * (not came_first))
        expected.append((held.uid, EventType.CONFIRMED if came_first else EventType.EXPIRED))
    books = check_books(course.deployment)
    for uid, kind in expected:
        assert books.kinds(uid) == [EventType.HELD, kind]
    assert min(firsts[False], firsts[True]) >= runs, firsts


# --- reviews ----------------------------------------------------------------------------------------------------------
def lock(course: Course, codes: Sequence[IssueAnswer]) -> None:
    """Burn the three tries of static codes."""
    for code in codes:
        wrong = "000000" if code.pin != "000000" else "000001"
        tries = [redeem(course, code.typed, n, pin=wrong).request for n in (1, 2, 3)]
        answers = [sound(answer) for answer in redemption.redeem(course.deployment, tries)]
        assert answers[-1].verdict is RedeemVerdict.LOCKED


def test_decision_against_decision(course: Course, runs: int) -> None:
    """Reviewers disagree, and the customer stands there with the right PIN: one decision holds, and what it allows happens."""
    firsts: Counter[Decision] = Counter()
    served = 0
    expected = []
    ending = {Decision.REDEEM: RedeemVerdict.ALREADY_REDEEMED, Decision.VOID: RedeemVerdict.VOIDED}
    for _ in range(runs):
        sku = course.sku(HEATS)
        made = course.issue(sku, HEATS, version=Version.STATIC)
        lock(course, made)
        heats = []
        for code in made:
            callers = [
                Caller(
                    "decide",
                    ReviewRequest(MALL, course.request_id(), code.uid, decision, f"reviewer {n}"),
                )
                for n in range(3)
                for decision in Decision
            ]
            callers += [redeem(course, code.typed, n, pin=code.pin, detours=5) for n in (4, 5, 6)]
            heats.append(callers)
        before = course.figures(sku)
        out = claimed = 0
        for code, callers, outcomes in zip(made, heats, course.run(heats), strict=True):
            answers: list[ReviewAnswer] = [sound(outcome) for outcome in outcomes[:9]]
            redeems: list[RedeemAnswer] = [sound(outcome) for outcome in outcomes[9:]]
            [winner] = [n for n, answer in enumerate(answers) if answer.verdict.success]
            decision = callers[winner].request.decision
            assert Counter(answer.verdict for answer in answers) == {
                answers[winner].verdict: 1,
                ReviewVerdict.NOT_LOCKED: 8,
            }
            verdicts = Counter(answer.verdict for answer in redeems)
            verdicts.pop(RedeemVerdict.LOCKED, 0)
            kinds = [EventType.REVIEWED]
            if decision is Decision.APPROVE:
                won = verdicts.pop(RedeemVerdict.REDEEMED, 0)
                assert won <= 1
                assert set(verdicts) <= ({RedeemVerdict.ALREADY_REDEEMED} if won else set())
                kinds += [EventType.REDEEMED] * won
                served += won
                out, claimed = out + won, claimed + 1 - won
            else:
                assert set(verdicts) <= {ending[decision]}
                out += decision is Decision.REDEEM
            firsts[decision] += 1
            expected.append((code.uid, kinds, answers[winner].event))
        after = course.figures(sku)
        assert before.on_hand - after.on_hand == out
        assert before.reserved - after.reserved == HEATS - claimed
    books = check_books(course.deployment)
    tried = [EventType.TRIED, EventType.TRIED, EventType.LOCKED]
    for uid, kinds, event in expected:
        assert books.kinds(uid) == [EventType.ISSUED, *tried, *kinds]
        assert books.of_code[uid][4].id == event
    assert min(firsts[decision] for decision in Decision) >= SOME * runs, firsts
    assert served >= 1, "nobody was served after an approval"
