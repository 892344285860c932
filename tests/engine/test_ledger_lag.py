"""A ledger too far behind: no change is taken until it has caught up; reading goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from engine import issuance, limits
from engine.claims import Decision, Version
from engine.errors import LedgerBehind
from engine.state.streams import Streams
from engine.verdict import RedeemVerdict
from tests.engine.shop import MALL, STORE, Shop

BOUND_MS = int(limits.LEDGER_LAG_S_MAX * 1000)


@pytest.fixture
def streams(shop: Shop) -> Streams:
    return Streams(shop.deployment.connection)


@pytest.fixture
def behind(shop: Shop, streams: Streams) -> Callable[[int], None]:
    """Say that the ledger is so many milliseconds behind, and let the copy see it."""

    def say(lag_ms: int) -> None:
        streams.publish(caught_up_ms=shop.clock.now_ms - lag_ms)
        shop.deployment.control.refresh()

    return say


Change = Callable[[], object]


@pytest.fixture
def changes(shop: Shop) -> dict[str, Change]:
    """Every verb that changes something, ready to be asked."""
    shop.stock_all()
    live, held, void, locked = (
        shop.issue().uid,
        shop.hold().uid,
        shop.issue().uid,
        shop.issue(version=Version.STATIC).uid,
    )
    picked_up = shop.issue().uid
    shop.redeem(shop.show(picked_up))
    shop.lock(locked)
    text = shop.show(live)
    return {
        "receive": lambda: shop.receive(1),
        "transfer": lambda: shop.transfer(1),
        "issue": shop.issue,
        "hold": shop.hold,
        "confirm": lambda: shop.confirm(held),
        "extend": lambda: shop.extend(live, shop.clock.now_s + limits.TTL_S_DEFAULT + 60),
        "redeem": lambda: shop.redeem(text),
        "reverse": lambda: shop.reverse(picked_up),
        "void": lambda: shop.void(void),
        "decide": lambda: shop.decide(locked, Decision.APPROVE),
    }


def test_every_change_is_refused_and_nothing_happens(
    shop: Shop, behind: Callable[[int], None], changes: dict[str, Change]
) -> None:
    behind(BOUND_MS + 1)
    before = shop.dump()
    for name, change in changes.items():
        with pytest.raises(LedgerBehind, match="300 s behind, more than 300 s"):
            change()
        assert shop.dump() == before, name


def test_reading_goes_on(shop: Shop, behind: Callable[[int], None]) -> None:
    shop.stock_all()
    uid = shop.issue().uid
    behind(BOUND_MS + 1)
    assert shop.inspect(shop.show(uid)).verdict.slug == "REDEEMABLE"
    assert shop.record(uid).store_id == STORE
    assert issuance.get(shop.deployment, MALL, [uid])[0] is not None
    assert shop.figures().reserved == 1


def test_at_the_bound_changes_are_taken(behind: Callable[[int], None], changes: dict[str, Change]) -> None:
    behind(BOUND_MS)
    for change in changes.values():
        change()


def test_a_writer_that_says_nothing_more_is_behind_by_itself(
    shop: Shop, behind: Callable[[int], None]
) -> None:
    shop.stock_all()
    code = shop.issue().uid
    behind(0)
    shop.clock.tick(limits.LEDGER_LAG_S_MAX + 0.001)
    with pytest.raises(LedgerBehind):
        shop.redeem(shop.show(code))
    behind(0)
    assert shop.redeem(shop.show(code)).verdict is RedeemVerdict.REDEEMED


def test_without_a_ledger_nothing_is_refused(shop: Shop) -> None:
    shop.clock.tick(10 * limits.LEDGER_LAG_S_MAX)
    shop.receive(1)


def test_the_alarm_is_told_once_and_named_in_the_refusal(
    shop: Shop, streams: Streams, caplog: pytest.LogCaptureFixture
) -> None:
    streams.publish(caught_up_ms=1, alarm="partition 3: event 1-7 has other bytes")
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            shop.deployment.control.refresh()
    assert [record.getMessage() for record in caplog.records] == [
        "the ledger does not go on: partition 3: event 1-7 has other bytes"
    ]
    with pytest.raises(LedgerBehind, match="event 1-7 has other bytes"):
        shop.receive(1)
