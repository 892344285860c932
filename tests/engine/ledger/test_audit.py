"""The audit: everything that happened is found by each way in, in order, page by page; refused attempts are there, and bounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select

from engine import limits
from engine.claims import Line, Terminal, Version
from engine.errors import InvalidInput
from engine.ledger import attempts
from engine.ledger.attempts import AttemptsWriter
from engine.ledger.audit import Cursor, Finding, Question, search
from engine.ledger.ledger import Ledger
from engine.ledger.tables import ATTEMPT_DAYS
from engine.ledger.writer import Writer
from engine.state.streams import Streams
from tests.engine.shop import FAR_STORE, MALL, NEIGHBOUR, OTHER_MALL, STORE, Shop


@pytest.fixture
def uid(shop: Shop, ledger: Ledger, writer: Writer) -> bytes:
    """A code with a life: tried at another store, picked up, tried again; beside others."""
    shop.stock_all()
    made = shop.issue(order_id="ORDER-7", lines=(Line(100, 1), Line(101, 1)), actor="mall:till").uid
    shop.clock.tick(1)
    shop.redeem(shop.show(made), terminal=Terminal(MALL, NEIGHBOUR, 9))
    shop.clock.tick(1)
    shop.redeem(shop.show(made), actor="clerk:bob")
    shop.clock.tick(1)
    text = shop.show(shop.issue(order_id="ORDER-8").uid)
    shop.redeem(text, actor="clerk:eve")
    shop.redeem(text, actor="clerk:eve")
    shop.clock.tick(1)
    shop.receive(5, store_id=FAR_STORE, actor="warehouse:li")
    writer.step(block_ms=0)
    AttemptsWriter(Streams(shop.deployment.connection), ledger).step()
    return made


def told(findings: tuple[Finding, ...]) -> list[str]:
    return [finding.what for finding in findings]


def test_the_life_of_a_code(ledger: Ledger, uid: bytes) -> None:
    page = search(ledger, Question(uid=uid))
    assert told(page.findings) == ["ISSUED", "WRONG_STORE", "REDEEMED"]
    assert [finding.refused for finding in page.findings] == [False, True, False]
    assert page.findings[1].store_id == NEIGHBOUR
    assert page.findings[1].terminal_id == 9
    assert page.findings[2].actor == "clerk:bob"
    assert page.findings[2].details["lines"] == [
        {"sku_id": 100, "count": 1, "left": 0},
        {"sku_id": 101, "count": 1, "left": 0},
    ]
    assert page.after is None


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ({"mall_id": MALL, "order_id": "ORDER-7"}, ["ISSUED", "WRONG_STORE", "REDEEMED"]),
        ({"mall_id": OTHER_MALL, "order_id": "ORDER-7"}, []),
        ({"mall_id": MALL, "order_id": "ORDER-9"}, []),
        ({"actor": "clerk:eve"}, ["REDEEMED"]),
        ({"actor": "warehouse:li"}, ["STOCK"]),
        ({"store_id": NEIGHBOUR}, ["WRONG_STORE"]),
        ({"store_id": NEIGHBOUR, "terminal_id": 7}, []),
        ({"store_id": STORE, "terminal_id": 7}, ["REDEEMED", "REDEEMED", "ALREADY_REDEEMED"]),
        ({"store_id": FAR_STORE}, ["STOCK"]),
        ({"actor": "test"}, ["CONTROL"] * 3),
    ],
)
def test_every_way_in(ledger: Ledger, uid: bytes, question: dict[str, Any], expected: list[str]) -> None:
    assert told(search(ledger, Question(**question)).findings) == expected


def test_a_span_of_time(shop: Shop, ledger: Ledger, uid: bytes) -> None:
    end_ms = shop.clock.now_ms
    assert told(search(ledger, Question(from_ms=end_ms)).findings) == ["STOCK"]
    before = search(ledger, Question(from_ms=end_ms - 3_000, to_ms=end_ms)).findings
    assert told(before) == ["WRONG_STORE", "REDEEMED", "ISSUED", "REDEEMED", "ALREADY_REDEEMED"]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_pages_put_together_are_the_whole(ledger: Ledger, uid: bytes, count: int) -> None:
    question = Question(mall_id=MALL)
    whole = search(ledger, question, count=1_000)
    assert whole.after is None
    found: list[Finding] = []
    after: Cursor | None = None
    while True:
        page = search(ledger, question, count=count, after=after)
        found += page.findings
        if page.after is None:
            break
        after = Cursor.parse(str(page.after))
    assert tuple(found) == whole.findings
    assert [finding.at_ms for finding in found] == sorted(finding.at_ms for finding in found)


@pytest.mark.parametrize(
    ("ask", "part"),
    [
        (lambda: Question(), "nothing is asked for"),
        (lambda: Question(order_id="ORDER-7"), "name the mall too"),
        (lambda: Cursor.parse("1.2.3"), "what an earlier page ended with"),
        (lambda: Cursor.parse("1.2.3.4.x"), "what an earlier page ended with"),
    ],
)
def test_a_question_that_is_none_is_told(ask: Callable[[], object], part: str) -> None:
    with pytest.raises(InvalidInput, match=part):
        ask()


def test_a_page_is_bounded(ledger: Ledger) -> None:
    with pytest.raises(InvalidInput, match="1 to 1000"):
        search(ledger, Question(mall_id=MALL), count=1_001)


# --- attempts ---------------------------------------------------------------------------------------------------------
def refuse(shop: Shop, times: int) -> None:
    """Try to pick up a code that is picked up already."""
    text = shop.show(shop.issue().uid)
    shop.redeem(text)
    for _ in range(times):
        shop.redeem(text)


def test_attempts_are_copied_once(shop: Shop, ledger: Ledger, writer: Writer) -> None:
    shop.stock_all()
    copier = AttemptsWriter(Streams(shop.deployment.connection), ledger)
    rival = AttemptsWriter(Streams(shop.deployment.connection), ledger)
    copier.start()
    rival.start()
    refuse(shop, 3)
    assert copier.step() == 3
    assert copier.step() == 0
    rival.step()
    refuse(shop, 2)
    successor = AttemptsWriter(Streams(shop.deployment.connection), ledger)
    successor.start()
    assert successor.step() == 2
    found = search(ledger, Question(store_id=STORE)).findings
    assert sum(finding.refused for finding in found) == 5


def test_a_flood_is_counted_and_fills_nothing(
    shop: Shop, ledger: Ledger, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "DAY_MAX", 4)
    shop.stock_all()
    copier = AttemptsWriter(Streams(shop.deployment.connection), ledger)
    copier.start()
    for _ in range(2):
        refuse(shop, 5)
        copier.step()
    assert sum(finding.refused for finding in search(ledger, Question(store_id=STORE)).findings) == 4
    with ledger.engine.connect() as connection:
        counted = connection.execute(select(ATTEMPT_DAYS.c.kept, ATTEMPT_DAYS.c.dropped)).one()
    assert tuple(counted) == (4, 6)


def test_neither_pin_nor_payload_nor_place_is_in_the_ledger(
    shop: Shop, ledger: Ledger, writer: Writer
) -> None:
    shop.stock_all()
    uid = shop.issue(version=Version.STATIC).uid
    rendered = shop.render(uid)
    secrets = [rendered.pin, rendered.payloads[0].text, rendered.typed]
    for pin in ("000000" if rendered.pin != "000000" else "111111", rendered.pin):
        shop.redeem(rendered.payloads[0].text, pin=pin)
    while writer.step(block_ms=0):
        pass
    assert limits.TRIES_MAX > 1
    with ledger.engine.connect() as connection:
        for name in ("events", "orders", "attempts", "heads", "facts"):
            for row in connection.exec_driver_sql(f"SELECT * FROM {name}").all():
                for value in row:
                    text = bytes(value) if isinstance(value, bytes | memoryview) else str(value).encode()
                    for secret in secrets:
                        assert secret.encode() not in text
