"""Operations: asked for once, taken up once, and always told how they stand."""

from __future__ import annotations

import pytest

from engine.errors import Exhausted, RequestIdReused
from engine.ledger import operations
from engine.ledger.ledger import Ledger
from engine.ledger.operations import State

ID, OTHER = "request-000001", "request-000002"


def state(ledger: Ledger, now_ms: int, operation_id: str = ID) -> State:
    found = operations.find(ledger, operation_id, now_ms)
    assert found is not None
    return found.state


def test_from_the_wish_to_the_result(ledger: Ledger) -> None:
    assert operations.find(ledger, ID, 1) is None
    asked = operations.ask(ledger, ID, "ops:ann", 1_000)
    assert (asked.state, asked.asked_ms, asked.actor) == (State.PENDING, 1_000, "ops:ann")
    assert operations.take_up(ledger, 2_000) == ID
    assert operations.take_up(ledger, 2_000) == "", "once"
    assert state(ledger, 2_001) is State.RUNNING
    operations.end(ledger, ID, 3_000, run=17)
    done = operations.find(ledger, ID, 4_000)
    assert done is not None
    assert (done.state, done.run, done.begun_ms, done.ended_ms) == (State.DONE, 17, 2_000, 3_000)
    operations.end(ledger, ID, 5_000, message="its process ended with status 0")
    assert state(ledger, 5_000) is State.DONE, "its end stays as it was"


def test_the_same_wish_again_is_the_same_operation(ledger: Ledger) -> None:
    operations.ask(ledger, ID, "ops:ann", 1_000)
    assert operations.ask(ledger, ID, "ops:ann", 2_000).asked_ms == 1_000
    with pytest.raises(RequestIdReused, match="of ops:ann: use another id"):
        operations.ask(ledger, ID, "ops:bob", 2_000)


def test_one_at_a_time(ledger: Ledger) -> None:
    operations.ask(ledger, ID, "", 1_000)
    for now_ms in (1_000, 2_000):
        with pytest.raises(Exhausted, match=f"under way, operation {ID}"):
            operations.ask(ledger, OTHER, "", now_ms)
        operations.take_up(ledger, now_ms)
    operations.end(ledger, ID, 3_000, message="LEDGER_UNAVAILABLE")
    assert operations.ask(ledger, OTHER, "", 4_000).state is State.PENDING


def test_one_that_nobody_takes_up_says_what_it_waits_for(ledger: Ledger) -> None:
    operations.ask(ledger, ID, "", 1_000)
    early = operations.find(ledger, ID, 1_000 + operations.TAKEN_UP_MS_MAX)
    late = operations.find(ledger, ID, 1_001 + operations.TAKEN_UP_MS_MAX)
    assert early is not None
    assert late is not None
    assert (early.message, late.state) == ("", State.PENDING)
    assert "see that `pickgate ledger run` runs" in late.message


def test_one_that_lost_its_process_has_failed(ledger: Ledger) -> None:
    operations.ask(ledger, ID, "", 1_000)
    operations.take_up(ledger, 2_000)
    operations.work_on(ledger, ID, 50_000)
    assert state(ledger, 50_000 + operations.SILENT_MS_MAX) is State.RUNNING
    found = operations.find(ledger, ID, 50_001 + operations.SILENT_MS_MAX)
    assert found is not None
    assert (found.state, found.message) == (
        State.FAILED,
        "its process ended without a result: ask again",
    )
    assert operations.ask(ledger, OTHER, "", 200_000).state is State.PENDING


def test_old_ones_are_forgotten(ledger: Ledger) -> None:
    operations.ask(ledger, ID, "", 1_000)
    operations.take_up(ledger, 2_000)
    operations.end(ledger, ID, 3_000, run=1)
    operations.ask(ledger, OTHER, "", 3_001 + operations.KEPT_MS)
    assert operations.find(ledger, ID, 1) is None
