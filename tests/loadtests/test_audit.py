"""The audit: books that agree are found in order, and every way of cooking them is seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from loadtests.audit import FINDINGS_MAX, Audit, State

A, B, C, D = (bytes([n]) * 8 for n in range(1, 5))
SHELF = (1, 2001, 101)


def book() -> Audit:
    """Ten units came in; A is redeemed, B void, C expired, D live."""
    made = Audit()
    made.receive(SHELF, 10)
    for uid in (A, B, C, D):
        made.issue(uid, 1, 2001, [(101, 2)])
    made.extend(D)
    made.redeem(A, [(101, 2)])
    made.end(B, State.VOIDED)
    made.end(C, State.EXPIRED)
    return made


def hold(made: Audit) -> None:
    """The store agrees."""
    made.record(A, State.REDEEMED, [(101, 0)])
    made.record(B, State.VOIDED, [(101, 2)])
    made.record(C, State.EXPIRED, [(101, 2)])
    made.record(D, State.LIVE, [(101, 2)])
    made.figures({SHELF: (8, 2)})


def test_books_that_agree() -> None:
    made = book()
    hold(made)
    assert made.close(acknowledged=[A], issued=4) == []
    assert made.summary() == {
        "events": 9, "issued": 4, "live": 1, "partly": 0, "redeemed": 1, "voided": 1, "expired": 1, "units_redeemed": 2,
        "findings": [],
    }  # fmt: skip


def test_a_code_in_two_parts_and_in_several_lines() -> None:
    made = Audit()
    made.receive(SHELF, 5)
    made.receive((1, 2001, 102), 5)
    made.issue(A, 1, 2001, [(101, 2), (102, 1)])
    made.redeem(A, [(101, 1)])
    made.record(A, State.PARTLY, [(101, 1), (102, 1)])
    made.figures({SHELF: (4, 1), (1, 2001, 102): (5, 1)})
    assert made.close([A]) == []


def redeemed_twice(made: Audit) -> None:
    made.redeem(A, [(101, 2)])


def redeemed_after_its_end(made: Audit) -> None:
    made.redeem(B, [(101, 2)])


def redeemed_without_issue(made: Audit) -> None:
    made.redeem(b"nobody's", [(101, 1)])


def too_many_units(made: Audit) -> None:
    made.redeem(D, [(101, 3)])


def issued_twice(made: Audit) -> None:
    made.issue(D, 1, 2001, [(101, 2)])


def ended_twice(made: Audit) -> None:
    made.end(C, State.VOIDED)


@pytest.mark.parametrize(
    ("cook", "part"),
    [
        (redeemed_twice, "was redeemed when it was redeemed already"),
        (redeemed_after_its_end, "was redeemed when it was voided already"),
        (redeemed_without_issue, "and never issued"),
        (too_many_units, "more than were left"),
        (issued_twice, "issued twice"),
        (ended_twice, "was voided when it was expired already"),
    ],
)
def test_events_that_can_not_follow(cook: Callable[[Audit], None], part: str) -> None:
    made = book()
    cook(made)
    hold(made)
    assert any(part in finding for finding in made.close([A], 4))


@pytest.mark.parametrize(
    ("figures", "part"),
    [
        ({SHELF: (9, 2)}, "on_hand and reserved are (9, 2), the events make (8, 2)"),
        ({SHELF: (8, 1)}, "the events make (8, 2)"),
        ({}, "are (0, 0)"),
        ({SHELF: (8, 2), (1, 2001, 999): (1, 0)}, "SKU 999"),
    ],
)
def test_stock_that_is_not_what_the_events_make(
    figures: dict[tuple[int, int, int], tuple[int, int]], part: str
) -> None:
    made = book()
    hold(made)
    made.findings.clear()
    made.figures(figures)
    assert any(part in finding for finding in made.close([A], 4))


def test_records_that_differ_are_missing_or_too_many() -> None:
    made = book()
    made.record(A, State.LIVE, [(101, 2)])
    made.record(B, State.VOIDED, [(101, 2)])
    made.record(D, State.LIVE, [(101, 1)])
    made.record(D, State.LIVE, [(101, 2)])
    made.record(b"nobody's", State.LIVE, [])
    made.figures({SHELF: (8, 2)})
    text = "\n".join(made.close([A], 4))
    assert f"{A.hex()}: its record says live" in text
    assert f"{D.hex()}: its record says live with {{101: 1}} left" in text
    assert f"{D.hex()} has two records" in text
    assert "has a record and no event" in text
    assert "1 codes have events and no record" in text
    assert "records by state" in text


@pytest.mark.parametrize(
    ("told", "issued", "part"),
    [
        ([A, D], 4, f"{D.hex()}: a caller was told REDEEMED, and the store does not know"),
        ([A, b"nobody's"], 4, "the store does not know"),
        ([A, A], 4, f"{A.hex()}: 2 callers were told REDEEMED, the store knows 1"),
        ([A], 5, "5 codes were issued as callers were told, 4 as the events say"),
    ],
)
def test_what_callers_were_told_is_held_against_the_books(told: list[bytes], issued: int, part: str) -> None:
    made = book()
    hold(made)
    assert any(part in finding for finding in made.close(told, issued))


def test_many_findings_are_counted() -> None:
    made = Audit()
    for n in range(50):
        made.redeem(bytes([n]) * 8, [(101, 1)])
    findings = made.close()
    assert len(findings) == FINDINGS_MAX + 1
    assert findings[-1].startswith("and 3")
