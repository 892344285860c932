"""Expiry: a code ends on time, its stock comes back with an event, and after its afterlife it is forgotten whole."""

from __future__ import annotations

import time

import pytest

from engine import expiry, limits
from engine.claims import Line, LineState, State, Version, partition_of
from engine.errors import ClockSkew
from engine.expiry import Swept
from engine.state.events import EventType
from engine.verdict import IssueVerdict, RedeemVerdict
from tests.engine import shop as shops
from tests.engine.fold import check_against_store, fold
from tests.engine.proofs import proof_token, put_provider
from tests.engine.shop import BUNDLE, FAR_STORE, START_MS, Shop

SETTLE_S = 70
"""A minute is swept ten seconds after it began."""


def test_refused_from_the_second_it_ends(shop: Shop) -> None:
    shop.stock_all()
    uid = shop.issue(ttl_s=100).uid
    shop.clock.tick(99.999)
    text = shop.show(uid)
    assert shop.inspect(text).verdict.success
    shop.clock.tick(0.001)
    assert shop.redeem(text).verdict is RedeemVerdict.EXPIRED


@pytest.mark.parametrize("prepare", ["live", "partly", "locked"])
def test_sweep_gives_the_stock_back(shop: Shop, prepare: str) -> None:
    shop.stock_all()
    issued = shop.issue(lines=(Line(100, 3), Line(101, 1)), ttl_s=100, version=Version.STATIC)
    left = 3
    if prepare == "partly":
        shop.redeem(issued.typed, pin=issued.pin, lines=(Line(100, 1), Line(101, 1)))
        left = 2
    if prepare == "locked":
        for _ in range(3):
            shop.redeem(issued.typed, pin=f"{(int(issued.pin) + 1) % 1_000_000:06d}")
    shop.clock.tick(99)
    assert expiry.sweep(shop.deployment) == Swept()
    shop.clock.tick(1 + SETTLE_S)
    assert expiry.sweep(shop.deployment) == Swept(expired=1)
    assert expiry.sweep(shop.deployment) == Swept()

    event = shop.events()[-1]
    assert event.type is EventType.EXPIRED
    expected = [LineState(100, 3, left)] + ([] if prepare == "partly" else [LineState(101, 1, 1)])
    assert list(event.facts["lines"]) == expected
    assert shop.figures(100).reserved == shop.figures(101).reserved == 0
    assert shop.record(issued.uid).state is State.EXPIRED
    check_against_store(fold(shop.events()), shop.deployment, shop.clock.now_ms)


def test_a_clock_that_runs_ahead_steps_over_nothing(empty_store_url: str) -> None:
    """Minutes that a fast clock called done would never be looked at when they come."""
    now = shops.Clock(time.time_ns() // 1_000_000)
    shops.create(empty_store_url, now, clock_compared=True)
    with shops.open_deployment(empty_store_url, now) as deployment:
        shops.furnish(deployment)
        shop = Shop(deployment, empty_store_url, now)
        shop.stock_all()
        shop.issue(ttl_s=100)
        now.tick(86_400)
        with pytest.raises(ClockSkew):
            expiry.sweep(deployment)
        noted = deployment.connection.read(
            [("HGET", names.meta, "swept") for names in deployment.connection.partitions]
        )
        assert all(minute is None or int(minute) * 60 <= time.time() for minute in noted)


def test_a_minute_noted_ahead_of_the_time_is_taken_back(shop: Shop) -> None:
    shop.stock_all()
    shop.issue(ttl_s=100)
    ahead = shop.clock.now_s // 60 + 1_440
    shop.deployment.connection.write(
        [("HSET", names.meta, "swept", ahead) for names in shop.deployment.connection.partitions]
    )
    shop.clock.tick(100 + SETTLE_S)
    assert expiry.sweep(shop.deployment) == Swept(expired=1)
    assert shop.figures().reserved == 0


def test_one_damaged_record_stops_no_other(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    shop.stock_all()
    shop.stock_all(store_id=FAR_STORE)
    damaged, neighbour, far = (
        shop.issue(ttl_s=100).uid,
        shop.issue(ttl_s=100).uid,
        shop.issue(ttl_s=100, store_id=FAR_STORE).uid,
    )
    names = shop.deployment.connection.partitions[partition_of(damaged)]
    shop.deployment.connection.write([("HSET", names.record(damaged), damaged, b"\x01\x02torn")])
    shop.clock.tick(100 + SETTLE_S)
    assert expiry.sweep(shop.deployment) == Swept(expired=2)
    assert shop.record(neighbour).state is shop.record(far).state is State.EXPIRED
    assert damaged.hex() in caplog.text


def test_a_sweep_that_is_stopped_leaves_the_rest_for_the_next(shop: Shop) -> None:
    shop.stock_all()
    for n in range(5):
        shop.issue(ttl_s=100 + 60 * n)
    shop.clock.tick(1_000)
    asked = iter([False, False, False, True])
    done = expiry.sweep(shop.deployment, stopping=lambda: next(asked, True))
    assert 0 < done.expired < 5
    assert expiry.sweep(shop.deployment) == Swept(expired=5 - done.expired)
    assert shop.figures().reserved == 0


def test_ended_codes_are_not_expired(shop: Shop) -> None:
    shop.stock_all()
    redeemed, voided = shop.issue(ttl_s=100).uid, shop.issue(ttl_s=100).uid
    shop.redeem(shop.show(redeemed))
    shop.void(voided)
    before = shop.events()
    shop.clock.tick(100 + SETTLE_S)
    assert expiry.sweep(shop.deployment) == Swept()
    assert shop.events() == before


def test_stock_that_came_back_can_be_promised_again(shop: Shop) -> None:
    shop.receive(1)
    shop.issue(ttl_s=100)
    assert shop.issue().verdict is IssueVerdict.STOCK_SHORT
    shop.clock.tick(100 + SETTLE_S)
    expiry.sweep(shop.deployment)
    assert shop.issue().verdict is IssueVerdict.ISSUED


@pytest.mark.parametrize("end", ["redeem", "void", "expire"])
def test_forgotten_whole_after_the_afterlife(shop: Shop, end: str) -> None:
    shop.stock_all()
    issued = shop.issue(ttl_s=100, version=Version.STATIC, lines=(Line(100, 2),))
    shop.redeem(issued.typed, pin=f"{(int(issued.pin) + 1) % 1_000_000:06d}")
    shop.redeem(issued.typed, pin=issued.pin, lines=(Line(100, 1),))
    if end == "redeem":
        shop.redeem(issued.typed, pin=issued.pin)
    elif end == "void":
        shop.void(issued.uid)
    shop.clock.tick(100 + SETTLE_S)
    assert expiry.sweep(shop.deployment).expired == (end == "expire")
    events = shop.events()
    shop.clock.tick(limits.AFTERLIFE_S - 200)
    assert expiry.sweep(shop.deployment) == Swept()
    shop.clock.tick(400)
    assert expiry.sweep(shop.deployment) == Swept(forgotten=1)
    assert shop.events() == events
    # Neither record, nor remembered answers, nor due entries remain.
    assert _kinds(shop) == {b"m", b"e", b"s", b"k"}


@pytest.mark.parametrize("kind", ["bundle", "proof", "review", "held"])
def test_what_is_remembered_of_any_code_is_forgotten_with_it(shop: Shop, kind: str) -> None:
    """Answers, burnt proofs and evidence go with the record, whatever else the record carries."""
    shop.stock_all()
    if kind == "bundle":
        shop.put_bundle()
        uid = shop.issue(lines=(Line(BUNDLE, 2), Line(102, 1))).uid
        shop.redeem(shop.show(uid), lines=(Line(BUNDLE, 1),))
        shop.reverse(uid)
    elif kind == "proof":
        put_provider(shop)
        uid = shop.issue(version=Version.VALUABLE, lines=(Line(100, 2),)).uid
        token = proof_token(shop, uid)
        assert shop.redeem(shop.show(uid), lines=(Line(100, 1),), proof_token=token).verdict.success
    elif kind == "review":
        uid = shop.issue(version=Version.STATIC).uid
        shop.lock(uid)
    else:
        uid = shop.hold().uid
        shop.confirm(uid)
        shop.extend(uid, shop.clock.now_s + 2 * limits.TTL_S_DEFAULT)
    shop.void(uid)
    shop.clock.tick(limits.AFTERLIFE_S + 180)
    assert expiry.sweep(shop.deployment) == Swept(forgotten=1)
    # Records, answers, evidence, open reviews. A due entry of a later minute says nothing, and goes with its minute.
    assert not _kinds(shop) & {b"c", b"q", b"v", b"w"}


def _kinds(shop: Shop) -> set[bytes]:
    """Kinds of keys that are left in the partitions, by their first letter."""
    return {key.rpartition(b"}")[2][:1] for key in shop.dump() if not key.startswith(b"{ctl}")}


def test_a_sweep_that_was_cut_off_or_repeated_changes_nothing(shop: Shop) -> None:
    """Two processes sweep at once, one of them from the beginning: each release happens once."""
    for store_id in (2001, FAR_STORE):
        shop.stock_all(20, store_id=store_id)
    uids = [
        shop.issue(ttl_s=60 + n, store_id=store_id).uid for n in range(5) for store_id in (2001, FAR_STORE)
    ]
    shop.clock.tick(60 + 5 + SETTLE_S)
    with shops.open_deployment(shop.url, shop.clock) as other:
        assert expiry.sweep(shop.deployment).expired == len(uids)
        for names in other.connection.partitions:
            other.connection.write([("HDEL", names.meta, "swept")])
            for minute in range(START_MS // 60_000, START_MS // 60_000 + 4):
                other.connection.write([("SET", names.due(minute), b"".join(uids))])
        assert expiry.sweep(other) == Swept()
    assert shop.figures().reserved == 0
    assert [event.type for event in shop.events()].count(EventType.EXPIRED) == len(uids)


def test_more_codes_in_one_minute_than_a_batch_holds(shop: Shop) -> None:
    count = limits.BATCH_MAX + 30
    shop.receive(count)
    for _ in range(count):
        shop.issue(ttl_s=100)
    shop.clock.tick(100 + SETTLE_S)
    assert expiry.sweep(shop.deployment) == Swept(expired=count)
    assert shop.figures().reserved == 0


def test_an_uid_may_return_after_it_was_forgotten(shop: Shop) -> None:
    shop.stock_all()
    first = shop.issue(request_id="the-same-id")
    shop.void(first.uid)
    shop.clock.tick(limits.AFTERLIFE_S + 300)
    assert expiry.sweep(shop.deployment).forgotten == 1
    again = shop.issue(request_id="the-same-id")
    assert not again.replayed
    assert again.uid == first.uid
    assert again.event != first.event
    check_against_store(fold(shop.events()), shop.deployment, shop.clock.now_ms)
