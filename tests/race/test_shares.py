"""Several want parts of one thing: the units of a code, the last units of a SKU, the SKU that two bundles share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import pytest

from engine import issuance, stock
from engine.calls import IssueAnswer, IssueRequest, RedeemRequest, StockFigures
from engine.claims import Line, State, Suite, Version
from engine.state.events import EventType
from engine.verdict import HoldVerdict, IssueVerdict, RedeemVerdict
from tests.race.books import check_books
from tests.race.heats import CALLERS, FAMILIES, HEATS, Caller, Course, Family, family
from tests.race.shop import MALL, STORE, sound, terminal

pytestmark = pytest.mark.race

MANY: Final = 1_000


def issue_request(course: Course, *lines: Line) -> IssueRequest:
    return IssueRequest(MALL, course.request_id(), STORE, "order", lines, Version.DYNAMIC, Suite.AES)


def make(course: Course, requests: Sequence[IssueRequest]) -> list[IssueAnswer]:
    answers = [sound(answer) for answer in issuance.issue(course.deployment, requests)]
    assert all(answer.verdict.success for answer in answers)
    return answers


def redeem(course: Course, text: str, terminal_id: int, *lines: Line) -> Caller:
    request = RedeemRequest(terminal(terminal_id), course.request_id(), text, lines=lines)
    return Caller("redeem", request)


# --- the units of a code ----------------------------------------------------------------------------------------------
def test_part_against_part(course: Course, runs: int) -> None:
    """Two lines, and twelve terminals that want some of one or of both: as many as fit, each unit once."""
    for _ in range(runs):
        first, second = course.sku(10 * HEATS), course.sku(4 * HEATS)
        made = make(course, [issue_request(course, Line(first, 10), Line(second, 4)) for _ in range(HEATS)])
        heats = []
        for text in course.show(made):
            callers = [redeem(course, text, n, Line(first, 1 + n % 4)) for n in range(1, 9)]
            callers += [redeem(course, text, n, Line(first, 2), Line(second, 1)) for n in range(9, 13)]
            heats.append(callers)
        before = course.figures(first), course.figures(second)
        taken: Counter[int] = Counter()
        for callers, outcomes in zip(heats, course.run(heats), strict=True):
            answers = [sound(outcome) for outcome in outcomes]
            won = [answer for answer in answers if answer.verdict is RedeemVerdict.REDEEMED]
            left = {first: 10, second: 4}
            for answer in sorted(won, key=lambda answer: answer.event):
                for line in answer.lines:
                    left[line.sku_id] -= line.count
                    assert line.left == left[line.sku_id] >= 0
            for caller, answer in zip(callers, answers, strict=True):
                wanted = {line.sku_id: line.count for line in caller.request.lines}
                if answer in won:
                    assert {line.sku_id: line.count for line in answer.lines} == wanted, "all or none"
                elif answer.verdict is RedeemVerdict.NOTHING_LEFT:
                    assert wanted[answer.sku_id] > left[answer.sku_id]
                else:
                    assert answer.verdict is RedeemVerdict.ALREADY_REDEEMED
                    assert not any(left.values())
            taken.update(
                {sku: count for sku, count in ((first, 10 - left[first]), (second, 4 - left[second]))}
            )
            assert left[first] < 4, "somebody was refused who could have been served"
        for sku, start in zip((first, second), before, strict=True):
            after = course.figures(sku)
            assert start.on_hand - after.on_hand == start.reserved - after.reserved == taken[sku]
    check_books(course.deployment)


def test_bundles_of_a_code_are_handed_out_whole(course: Course, runs: int) -> None:
    """Three bundles and one unit of their shared SKU besides: each bundle goes out once, with all its parts."""
    for _ in range(runs):
        families = [family(number) for number in range(FAMILIES)]
        stock_up(course, families)
        made = make(
            course,
            [issue_request(course, Line(f.bundles[1], 3), Line(f.skus[1], 1)) for f in families],
        )
        heats = []
        for f, text in zip(families, course.show(made), strict=True):
            callers = [redeem(course, text, n, Line(f.bundles[1], 1)) for n in range(1, 9)]
            callers += [redeem(course, text, n, Line(f.skus[1], 1)) for n in range(9, 11)]
            callers += [redeem(course, text, n, Line(f.skus[2], 1)) for n in range(11, 13)]
            heats.append(callers)
        before = figures_of(course, families)
        found = course.run(heats)
        after = figures_of(course, families)
        for outcomes, start, end in zip(found, before, after, strict=True):
            answers = [sound(outcome) for outcome in outcomes]
            refused = {RedeemVerdict.NOTHING_LEFT, RedeemVerdict.ALREADY_REDEEMED}
            assert sum(answer.verdict is RedeemVerdict.REDEEMED for answer in answers[:8]) == 3
            assert sum(answer.verdict is RedeemVerdict.REDEEMED for answer in answers[8:10]) == 1
            assert {answer.verdict for answer in answers[10:]} <= refused, "a part of a bundle alone"
            assert {answer.verdict for answer in answers} <= refused | {RedeemVerdict.REDEEMED}
            assert moved(start, end) == [(0, 0), (4, -4), (6, -6)]
    books = check_books(course.deployment)
    assert all(books.lives[code.uid].state is State.REDEEMED for code in made)


# --- the last units of a SKU ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("available", [1, 5])
def test_issue_against_issue(course: Course, runs: int, available: int) -> None:
    """Orders that are paid and orders that are not yet want the last units: as many are promised as there are."""
    winners: Counter[str] = Counter()
    for _ in range(runs):
        skus = [course.sku(available) for _ in range(HEATS)]
        heats = [
            [
                Caller("hold" if n % 2 else "issue", issue_request(course, Line(sku, 1)))
                for n in range(CALLERS)
            ]
            for sku in skus
        ]
        before = [course.figures(sku) for sku in skus]
        for sku, callers, start, outcomes in zip(skus, heats, before, course.run(heats), strict=True):
            answers = [sound(outcome) for outcome in outcomes]
            won = [n for n, answer in enumerate(answers) if answer.verdict.success]
            assert len(won) == available
            winners.update(callers[n].verb for n in won)
            for answer in answers:
                if not answer.verdict.success:
                    assert answer.verdict in (IssueVerdict.STOCK_SHORT, HoldVerdict.STOCK_SHORT)
                    assert (answer.sku_id, answer.event) == (sku, None)
            after = course.figures(sku)
            assert (after.on_hand, after.reserved) == (start.on_hand, start.reserved + available)
    check_books(course.deployment)
    assert min(winners["issue"], winners["hold"]) >= HEATS // 20


def test_last_unit_against_many_codes(course: Course, runs: int) -> None:
    """A stocktake finds one unit where twelve are promised: one code is served, the others keep their claim."""
    firsts: Counter[int] = Counter()
    for _ in range(runs):
        skus = [course.sku(CALLERS) for _ in range(HEATS)]
        made = make(course, [issue_request(course, Line(sku, 1)) for sku in skus for _ in range(CALLERS)])
        texts = course.show(made)
        course.count(*[(sku, 1) for sku in skus])
        heats = [
            [redeem(course, texts[CALLERS * heat + n], n + 1) for n in range(CALLERS)]
            for heat in range(HEATS)
        ]
        before = [course.figures(sku).reserved for sku in skus]
        for sku, reserved, outcomes in zip(skus, before, course.run(heats), strict=True):
            answers = [sound(outcome) for outcome in outcomes]
            assert Counter(answer.verdict for answer in answers) == {
                RedeemVerdict.REDEEMED: 1,
                RedeemVerdict.OUT_OF_STOCK: CALLERS - 1,
            }
            assert {a.sku_id for a in answers if a.verdict is RedeemVerdict.OUT_OF_STOCK} == {sku}
            figures = course.figures(sku)
            assert (figures.on_hand, figures.reserved) == (0, reserved - 1)
            firsts[[a.verdict for a in answers].index(RedeemVerdict.REDEEMED)] += 1
    books = check_books(course.deployment)
    assert sum(books.lives[code.uid].state is State.REDEEMED for code in made) == HEATS
    assert sum(books.lives[code.uid].state is State.LIVE for code in made) == HEATS * (CALLERS - 1)
    assert len(firsts) > CALLERS // 2, f"always the same come first: {firsts}"


# --- bundles that share a SKU -----------------------------------------------------------------------------------------
def figures_of(course: Course, families: Sequence[Family]) -> list[list[StockFigures]]:
    """Figures of each family's three SKUs."""
    skus = [sku for f in families for sku in f.skus]
    found = {figures.sku_id: figures for figures in stock.read(course.deployment, MALL, STORE, skus)}
    return [[found[sku] for sku in f.skus] for f in families]


def stock_up(course: Course, families: Sequence[Family], *, shared: int = MANY) -> None:
    """Have so many units of each family's shared SKU, and plenty of the others, that nobody has claimed."""
    counted = [
        (figures.sku_id, figures.reserved + (shared if n == 1 else MANY))
        for of_family in figures_of(course, families)
        for n, figures in enumerate(of_family)
    ]
    course.count(*counted)


def moved(before: Sequence[StockFigures], after: Sequence[StockFigures]) -> list[tuple[int, int]]:
    """Units that left on_hand and that were added to reserved, by SKU."""
    return [(b.on_hand - a.on_hand, a.reserved - b.reserved) for b, a in zip(before, after, strict=True)]


@pytest.mark.parametrize("shared", [1, 5])
def test_bundle_against_bundle_when_issued(course: Course, runs: int, shared: int) -> None:
    """The shared SKU decides how many are promised, and the SKUs of those who get nothing stay untouched."""
    firsts: Counter[int] = Counter()
    for _ in range(runs):
        families = [family(number) for number in range(FAMILIES)]
        stock_up(course, families, shared=shared)
        heats = [
            [Caller("issue", issue_request(course, Line(f.bundles[n % 2], 1))) for n in range(CALLERS)]
            for f in families
        ]
        before = figures_of(course, families)
        found = course.run(heats)
        after = figures_of(course, families)
        for f, outcomes, start, end in zip(families, found, before, after, strict=True):
            answers = [sound(outcome) for outcome in outcomes]
            won = [answer.verdict is IssueVerdict.ISSUED for answer in answers]
            both, three = sum(won[0::2]), sum(won[1::2])
            assert both + three == shared
            for answer in answers:
                if answer.verdict is not IssueVerdict.ISSUED:
                    assert (answer.verdict, answer.sku_id) == (IssueVerdict.STOCK_SHORT, f.skus[1])
            assert moved(start, end) == [(0, both), (0, shared), (0, 2 * three)]
            firsts[both] += 1
    check_books(course.deployment)
    assert len(firsts) > 1, f"always the same bundle comes first: {firsts}"


@pytest.mark.parametrize("shared", [1, 5])
def test_bundle_against_bundle_when_redeemed(course: Course, runs: int, shared: int) -> None:
    """A stocktake finds fewer of the shared SKU than were promised: so many bundles go out whole, the others not at all."""
    firsts: Counter[int] = Counter()
    for _ in range(runs):
        families = [family(number) for number in range(FAMILIES)]
        stock_up(course, families)
        made = make(
            course,
            [issue_request(course, Line(f.bundles[n % 2], 1)) for f in families for n in range(CALLERS)],
        )
        texts = course.show(made)
        course.count(*[(f.skus[1], shared) for f in families])
        heats = [
            [redeem(course, texts[CALLERS * heat + n], n + 1) for n in range(CALLERS)]
            for heat in range(FAMILIES)
        ]
        before = figures_of(course, families)
        found = course.run(heats)
        after = figures_of(course, families)
        for f, outcomes, start, end in zip(families, found, before, after, strict=True):
            answers = [sound(outcome) for outcome in outcomes]
            won = [answer.verdict is RedeemVerdict.REDEEMED for answer in answers]
            both, three = sum(won[0::2]), sum(won[1::2])
            assert both + three == shared
            for answer in answers:
                if answer.verdict is not RedeemVerdict.REDEEMED:
                    assert (answer.verdict, answer.sku_id) == (RedeemVerdict.OUT_OF_STOCK, f.skus[1])
            assert moved(start, end) == [(both, -both), (shared, -shared), (2 * three, -2 * three)]
            firsts[both] += 1
    books = check_books(course.deployment)
    for code in made:
        assert books.kinds(code.uid) in ([EventType.ISSUED], [EventType.ISSUED, EventType.REDEEMED])
    assert len(firsts) > 1, f"always the same bundle comes first: {firsts}"
