"""Retention: what is old goes, by order; what stays verifies, rebuilds and settles as before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import delete, func, insert, select, update

from engine import expiry, limits
from engine.claims import Line, Split
from engine.errors import LedgerConflict
from engine.ledger import cuts, reconcile, retention, settlement, writer
from engine.ledger import rebuild as rebuilding
from engine.ledger.audit import Question, search
from engine.ledger.ledger import Ledger
from engine.ledger.retention import Removed
from engine.ledger.tables import ATTEMPT_DAYS, ATTEMPTS, CHECKPOINTS, CUTS, DAYS, EVENTS, ORDERS
from engine.ledger.verify import verify
from engine.ledger.writer import Writer
from engine.state.streams import CONTROL, START, Place, Streams
from tests.engine.ledger.test_checkpoints import KEY, NUMBER, OTHER_KEY, lose_and_rebuild, take
from tests.engine.shop import MALL, Shop

DAYS_KEPT = 12
"""Short, as the longest window of a reversal here, since each minute is swept."""
OVERLAP = 4
"""In place of writer.OVERLAP: these histories are short."""


@pytest.fixture(autouse=True)
def short_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REVERSAL_WINDOW_S_MAX", 86_400)
    for module in (writer, rebuilding, retention):
        monkeypatch.setattr(module, "OVERLAP", OVERLAP)


def bring_up(shop: Shop, ledger: Ledger) -> None:
    made = Writer(Streams(shop.deployment.connection), ledger, now_ms=shop.clock)
    made.start()
    while made.step(block_ms=0):
        pass
    made._attempts.step()


def pass_days(shop: Shop, ledger: Ledger, days: int) -> None:
    """Let days pass, with a writer that keeps up."""
    shop.clock.tick(days * 86_400)
    bring_up(shop, ledger)
    shop.deployment.control.refresh()


def sell(shop: Shop, order_id: str, **fields: Any) -> bytes:
    given: dict[str, Any] = {
        "order_id": order_id,
        "amount_fen": 900,
        "splits": (Split("payee:shop", "goods", 0, 900),),
        "lines": (Line(100, 3),),
    }
    return shop.issue(**given | fields).uid


@pytest.fixture
def years(shop: Shop, ledger: Ledger) -> dict[str, bytes]:
    """Codes of long ago, of which one lives on; and of now."""
    for sku_id in (100, 101, 102, 103, 104, 105):
        shop.receive(100, sku_id=sku_id)
    codes = {"old": sell(shop, "OLD-1")}
    text = shop.show(codes["old"])
    shop.redeem(text)
    codes["lasting"] = sell(shop, "LASTING-1", ttl_s=limits.TTL_S_MAX)
    codes["expired"] = sell(shop, "OLD-2")
    shop.redeem(shop.show(codes["lasting"]), lines=(Line(100, 1),))
    for _ in range(3):
        shop.redeem(text)  # refused: it is picked up
    for day in (1, 6, 6, 6):
        shop.clock.tick(day * 86_400)
        expiry.sweep(shop.deployment)
        shop.clock.tick(limits.AFTERLIFE_S + 120)
        expiry.sweep(shop.deployment)
        shop.receive(5)
        codes[f"after-{day}"] = sell(shop, "LATER-1")
        shop.redeem(shop.show(codes[f"after-{day}"]), lines=(Line(100, 1),))
        shop.redeem(shop.show(codes[f"after-{day}"]), lines=(Line(100, 5),))
    bring_up(shop, ledger)
    return codes


def cut(shop: Shop, ledger: Ledger, days: int = DAYS_KEPT) -> Removed:
    return retention.cut(ledger, KEY, now_ms=shop.clock(), events_days=days, attempts_days=30)


def count(ledger: Ledger, table: Any, *conditions: Any) -> int:
    with ledger.engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(table).where(*conditions)).scalar_one()


def test_what_is_old_goes_up_to_what_made_a_code_that_lives(
    shop: Shop, ledger: Ledger, years: dict[str, bytes]
) -> None:
    before = {number: head.rows for number, head in ledger.heads().items()}
    settled = settlement.of_order(ledger, MALL, "LASTING-1")
    assert len(settled) == 1
    removed = cut(shop, ledger)
    assert removed.cut == 1
    assert removed.events > 0
    making = next(event.id for event in shop.events() if event.uid == years["lasting"])
    assert removed.places[NUMBER] == Place(making.epoch, making.seq - 1)
    assert cuts.earliest(ledger)[NUMBER] == removed.places[NUMBER]
    found = search(ledger, Question(uid=years["lasting"])).findings
    assert [one.what for one in found][:2] == ["ISSUED", "REDEEMED"]
    assert [one for one in search(ledger, Question(uid=years["old"])).findings if not one.refused] == []
    assert settlement.of_order(ledger, MALL, "LASTING-1") == settled
    assert settlement.of_order(ledger, MALL, "OLD-1") == ()
    assert count(ledger, EVENTS, EVENTS.c.partition == CONTROL) == before[CONTROL]
    assert count(ledger, EVENTS, EVENTS.c.partition == NUMBER) == before[NUMBER] - removed.events
    assert count(ledger, ORDERS, ORDERS.c.order_id == "OLD-1") == 0


def test_what_stays_verifies_reconciles_and_rebuilds(
    shop: Shop, ledger: Ledger, years: dict[str, bytes]
) -> None:
    _, whole = lose_and_rebuild(shop, ledger, None)
    cut(shop, ledger)
    report = verify(ledger, key=KEY.public_key())
    assert (report.faults, report.unsound, report.checkpoints) == ([], [], 1)
    assert report.cut is not None
    made, from_base = lose_and_rebuild(shop, ledger, KEY)
    assert made.checkpoint == 1
    assert from_base == whole
    take(shop, ledger)
    made, from_latest = lose_and_rebuild(shop, ledger, KEY)
    assert made.checkpoint == 2
    assert from_latest == whole
    bring_up_again = Writer(Streams(shop.deployment.connection), ledger, now_ms=shop.clock)
    bring_up_again.start()


def test_reconciliation_after_a_cut(shop: Shop, ledger: Ledger, years: dict[str, bytes]) -> None:
    cut(shop, ledger)
    shop.redeem(shop.show(years["lasting"]), lines=(Line(100, 1),))
    bring_up(shop, ledger)
    run = reconcile.reconcile(shop.deployment, ledger, cause="command", key=KEY.public_key())
    assert (run.drifts, run.checkpoint) == ([], 1)
    settled = settlement.of_order(ledger, MALL, "LASTING-1")
    assert [one.shares[0].amount_fen for one in settled] == [300, 300]


def test_the_code_that_lived_on_goes_when_it_is_over(
    shop: Shop, ledger: Ledger, years: dict[str, bytes]
) -> None:
    first = cut(shop, ledger)
    shop.redeem(shop.show(years["lasting"]))
    for _ in range(3):
        pass_days(shop, ledger, 8)
        for sku in (100, 101, 102, 103, 104, 105):
            shop.receive(1, sku_id=sku)
    bring_up(shop, ledger)
    take(shop, ledger)
    second = cut(shop, ledger)
    assert second.cut == 2
    assert second.places[NUMBER] > first.places[NUMBER]
    report = verify(ledger, key=KEY.public_key())
    assert (report.faults, report.unsound) == ([], [])
    run = reconcile.reconcile(shop.deployment, ledger, cause="command", key=KEY.public_key())
    assert (run.drifts, run.checkpoint) == ([], 2), "the one that is furthest"
    with ledger.engine.connect() as connection:
        assert second.base in connection.execute(select(CHECKPOINTS.c.number)).scalars().all()


def test_nothing_old_is_nothing_cut(shop: Shop, ledger: Ledger, years: dict[str, bytes]) -> None:
    removed = cut(shop, ledger, days=1_000)
    assert (removed.cut, removed.events, dict(removed.places)) == (0, 0, {})
    assert cuts.earliest(ledger) == {}
    cut(shop, ledger)
    again = cut(shop, ledger)
    assert (again.cut, again.events) == (0, 0), "once a day is enough"
    assert cut(shop, ledger, days=1_000).cut == 0, "what is gone does not come back by keeping longer"


def test_a_clock_that_is_years_ahead_cuts_nothing(
    shop: Shop, ledger: Ledger, years: dict[str, bytes]
) -> None:
    far_ms = shop.clock() + 3_000 * 86_400_000
    removed = retention.cut(ledger, KEY, now_ms=far_ms, events_days=1_096)
    assert (removed.cut, removed.events, removed.attempts) == (0, 0, 0)


def test_the_last_events_stay(shop: Shop, ledger: Ledger, years: dict[str, bytes]) -> None:
    """A store that was quiet for years and its ledger must find together."""
    retention.cut(ledger, KEY, now_ms=shop.clock() + 86_400_000, events_days=1)
    for number, head in ledger.heads().items():
        if number != CONTROL:
            assert count(ledger, EVENTS, EVENTS.c.partition == number) >= min(OVERLAP, head.rows)
    bring_up(shop, ledger)


def test_refused_attempts_go_sooner(shop: Shop, ledger: Ledger, years: dict[str, bytes]) -> None:
    """The store numbers them by its own time, which is no test's: two days are told apart by hand."""
    there = count(ledger, ATTEMPTS)
    assert there > 0
    with ledger.engine.begin() as connection:
        one = dict(connection.execute(select(ATTEMPTS).limit(1)).mappings().one())
        counted = dict(connection.execute(select(ATTEMPT_DAYS).limit(1)).mappings().one())
        for days in (31, 29):
            at_ms = shop.clock() - days * 86_400_000
            connection.execute(
                insert(ATTEMPTS).values(
                    **one | {"partition": 3, "stream_ms": at_ms, "stream_seq": 0, "at_ms": at_ms}
                )
            )
            connection.execute(
                insert(ATTEMPT_DAYS).values(**counted | {"partition": 3, "day": at_ms // 86_400_000})
            )
    removed = cut(shop, ledger, days=1_000)
    assert removed.attempts == there + 1
    with ledger.engine.connect() as connection:
        [left] = connection.execute(select(ATTEMPTS.c.at_ms)).scalars()
    assert left == shop.clock() - 29 * 86_400_000
    bring_up(shop, ledger)
    assert count(ledger, ATTEMPTS) == 1, "they are not copied again"
    assert count(ledger, ATTEMPT_DAYS, ATTEMPT_DAYS.c.partition == 3) == 1


def test_a_cut_that_was_killed_is_finished_by_the_next(
    shop: Shop, ledger: Ledger, years: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as killed:
        killed.setattr(retention, "_drop_events", lambda ledger: 0)
        cut(shop, ledger)
    assert verify(ledger, key=KEY.public_key()).sound, (
        "rows in front of the cut prove nothing, and harm nothing"
    )
    assert cut(shop, ledger).events > 0
    assert verify(ledger, key=KEY.public_key()).sound


# --- against the law of the house ---------------------------------------------------------------------------------------
def test_rows_taken_out_without_a_cut_are_found(shop: Shop, ledger: Ledger, years: dict[str, bytes]) -> None:
    with ledger.engine.begin() as connection:
        connection.execute(delete(EVENTS).where(EVENTS.c.partition == NUMBER, EVENTS.c.seq <= 3))
    [fault] = verify(ledger, key=KEY.public_key()).faults
    assert "it is missing: 1-4 follows the beginning" in fault.why


def test_rows_taken_out_behind_a_cut_are_found(shop: Shop, ledger: Ledger, years: dict[str, bytes]) -> None:
    end = cut(shop, ledger).places[NUMBER]
    with ledger.engine.begin() as connection:
        connection.execute(delete(EVENTS).where(EVENTS.c.partition == NUMBER, EVENTS.c.seq == end.seq + 1))
    [fault] = verify(ledger, key=KEY.public_key()).faults
    assert (fault.partition, fault.place) == (NUMBER, Place(1, end.seq + 1))


@pytest.mark.parametrize("forge", ["changed", "by another key"])
def test_a_cut_that_nobody_signed_is_told(
    shop: Shop, ledger: Ledger, years: dict[str, bytes], forge: str
) -> None:
    if forge == "changed":
        cut(shop, ledger)
        with ledger.engine.begin() as connection:
            text = connection.execute(select(CUTS.c.statement)).scalar_one()
            connection.execute(update(CUTS).values(statement=text.replace('"cut":1', '"cut":1 ')))
    else:
        retention.cut(ledger, OTHER_KEY, now_ms=shop.clock(), events_days=DAYS_KEPT)
    report = verify(ledger, key=KEY.public_key())
    assert any(bad.source == "cut 1" and "not signed by the key" in bad.why for bad in report.unsound)
    assert not report.sound


def test_without_a_checkpoint_a_cut_ledger_rebuilds_nothing(
    shop: Shop, ledger: Ledger, years: dict[str, bytes]
) -> None:
    cut(shop, ledger)
    with pytest.raises(LedgerConflict, match="no sound checkpoint stands for it"):
        reconcile.reconcile(shop.deployment, ledger, cause="command")
    with pytest.raises(LedgerConflict, match="there is no public key"):
        lose_and_rebuild(shop, ledger, None)


def test_the_days_say_where_each_begins(shop: Shop, ledger: Ledger, years: dict[str, bytes]) -> None:
    def days() -> dict[tuple[int, int], Place]:
        with ledger.engine.connect() as connection:
            return {
                (row.partition, row.day): Place(row.epoch, row.seq)
                for row in connection.execute(select(DAYS))
            }

    def by_rows() -> dict[tuple[int, int], Place]:
        found: dict[tuple[int, int], Place] = {}
        with ledger.engine.connect() as connection:
            for row in connection.execute(
                select(EVENTS.c.partition, EVENTS.c.at_ms, EVENTS.c.epoch, EVENTS.c.seq).order_by(
                    EVENTS.c.partition, EVENTS.c.epoch, EVENTS.c.seq
                )
            ):
                found.setdefault((row.partition, row.at_ms // 86_400_000), Place(row.epoch, row.seq))
        return found

    assert days() == by_rows()
    end = cut(shop, ledger).places[NUMBER]
    assert all(place > end or number != NUMBER for (number, _), place in sorted(days().items())[1:])
    for (number, day), place in by_rows().items():
        assert days()[number, day] <= place
    assert end > START


def test_a_ledger_of_an_older_version_gets_its_days(migrate_from: Callable[..., Any]) -> None:
    """The migration finds the first event of each day among the rows that are there."""
    rows = [
        (1, 1, 1, 5 * 86_400_000 - 1),
        (1, 1, 2, 5 * 86_400_000),
        (1, 1, 3, 5 * 86_400_000 + 7),
        (1, 2, 1, 5 * 86_400_000 + 8),
        (1, 2, 2, 7 * 86_400_000),
        (2, 1, 1, 5 * 86_400_000),
    ]

    def fill(connection: Any) -> None:
        connection.execute(
            insert(EVENTS),
            [
                {
                    "partition": partition, "epoch": epoch, "seq": seq, "at_ms": at_ms, "type": 7, "mall_id": 1, "store_id": 1,
                    "uid": None, "terminal_id": 0, "actor": "", "data": b"x", "link": b"y",
                }
                for partition, epoch, seq, at_ms in rows
            ],
        )  # fmt: skip

    engine = migrate_from("0004", fill)
    with engine.connect() as connection:
        found = connection.execute(
            select(DAYS.c.partition, DAYS.c.day, DAYS.c.epoch, DAYS.c.seq).order_by(
                DAYS.c.partition, DAYS.c.day
            )
        ).all()
    assert [tuple(row) for row in found] == [(1, 4, 1, 1), (1, 5, 1, 2), (1, 7, 2, 2), (2, 5, 1, 1)]
