"""On PostgreSQL the events of each day lie in a table of their own: made ahead, found by whoever reads, dropped by a cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import insert, select, text

from engine.ledger import day_tables, reconcile
from engine.ledger.day_tables import DAY_MS
from engine.ledger.ledger import Ledger
from engine.ledger.tables import EVENTS
from engine.ledger.verify import verify
from engine.state.streams import CONTROL
from tests.engine.ledger.test_checkpoints import KEY, NUMBER
from tests.engine.ledger.test_retention import bring_up, cut, pass_days, short_overlap, years
from tests.engine.shop import Shop

__all__ = ["short_overlap", "years"]


@pytest.fixture(params=["postgresql"])
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def days(ledger: Ledger) -> list[int]:
    with ledger.engine.connect() as connection:
        return day_tables.list_days(connection)


def rows_of(ledger: Ledger, table: str) -> int:
    with ledger.engine.connect() as connection:
        return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())


@pytest.fixture(autouse=True)
def no_tables_of_other_tests(ledger: Ledger) -> None:
    with ledger.engine.begin() as connection:
        day_tables.drop_before(connection, 100_000)


def test_each_day_has_a_table_and_the_coming_ones_too(shop: Shop, ledger: Ledger) -> None:
    shop.receive(3)
    bring_up(shop, ledger)
    today = shop.clock() // DAY_MS
    assert days(ledger) == [today + ahead for ahead in range(day_tables.AHEAD_DAYS + 1)]
    assert rows_of(ledger, day_tables.name_of(today)) == 1
    assert rows_of(ledger, "events_control") == ledger.heads()[CONTROL].rows
    pass_days(shop, ledger, 10)
    shop.receive(3)
    bring_up(shop, ledger)
    assert rows_of(ledger, day_tables.name_of(today + 10)) == 1
    assert verify(ledger).sound
    assert reconcile.reconcile(shop.deployment, ledger, cause="command").drifts == []


def test_an_event_of_a_day_without_a_table_makes_it(
    shop: Shop, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ledger, "make_ahead", lambda self, now_ms: None)
    shop.receive(3)
    bring_up(shop, ledger)
    assert days(ledger) == [shop.clock() // DAY_MS]


def test_two_that_make_the_same_day_make_it_once(shop: Shop, open_ledger: Callable[[], Ledger]) -> None:
    first, second = open_ledger(), open_ledger()
    for one in (first, second, first):
        one.make_ahead(shop.clock())
    assert len(days(first)) == day_tables.AHEAD_DAYS + 1


def test_a_cut_drops_whole_days(shop: Shop, ledger: Ledger, years: dict[str, bytes]) -> None:
    """The code that lives on holds its partition back: its day's table stays, until it is over."""
    before = days(ledger)
    with_rows = [day for day in before if rows_of(ledger, day_tables.name_of(day))]
    cut(shop, ledger)
    assert days(ledger) == before, "the first day is the one in which it was made"
    shop.redeem(shop.show(years["lasting"]))
    for _ in range(4):
        pass_days(shop, ledger, 8)
        for sku in (100, 101, 102, 103, 104, 105):
            shop.receive(1, sku_id=sku)
    bring_up(shop, ledger)
    removed = cut(shop, ledger)
    assert removed.events > 0
    assert days(ledger)[0] > with_rows[0]
    assert not any(day in days(ledger) for day in with_rows[:2])
    assert rows_of(ledger, "events_control") == ledger.heads()[CONTROL].rows
    report = verify(ledger, key=KEY.public_key())
    assert (report.faults, report.unsound) == ([], [])
    left = [row.entry for row in ledger.rows(NUMBER)]
    assert left[0][:2] == (removed.places[NUMBER].epoch, removed.places[NUMBER].seq + 1)


def test_events_of_an_older_version_are_put_into_their_days(
    migrate_from: Callable[..., Any],
) -> None:
    rows = [
        (1, 1, 1, 5 * DAY_MS),
        (1, 1, 2, 6 * DAY_MS - 1),
        (2, 1, 1, 9 * DAY_MS),
        (CONTROL, 1, 1, 4 * DAY_MS),
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

    engine = migrate_from("0005", fill)
    with engine.connect() as connection:
        assert day_tables.list_days(connection) == [5, 9]
        found = connection.execute(
            select(EVENTS.c.partition, EVENTS.c.epoch, EVENTS.c.seq, EVENTS.c.at_ms).order_by(
                EVENTS.c.partition, EVENTS.c.seq
            )
        ).all()
        assert [tuple(row) for row in found] == rows
        count = connection.execute(text(f"SELECT count(*) FROM {day_tables.name_of(5)}")).scalar_one()
        assert count == 2
