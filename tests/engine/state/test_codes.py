"""What only the state knows: uids that are taken, generations of PINs at their bound, the list of refused attempts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engine import issuance, limits, redemption
from engine.calls import IssueAnswer
from engine.claims import Channel, Line, State, Suite, Version
from engine.errors import PickgateError, RequestIdReused, StoreUnavailable
from engine.state import attempts as state
from engine.state import codes
from engine.state.keys import partition_of_store
from engine.verdict import IssueVerdict, RedeemVerdict
from tests.engine.shop import MALL, PARTITIONS, STORE, Shop, attempts, settled
from tests.engine.tries import packed

HOME = partition_of_store(STORE, PARTITIONS)


def uid(n: int) -> bytes:
    return (HOME << 54 | 1 << 40 | n).to_bytes(8)


def item(shop: Shop, request: bytes, *candidates: bytes, **fields: Any) -> codes.IssueItem:
    given: dict[str, Any] = {
        "request": request.ljust(12, b"\0"),
        "body": b"body-one",
        "mall_id": MALL,
        "store_id": STORE,
        "channel": Channel.ONLINE,
        "version": Version.DYNAMIC,
        "suite": Suite.AES,
        "state": State.LIVE,
        "policy_version": 1,
        "expires_at_s": shop.clock.now_s + 3600,
        "ttl_s": 3600,
        "proof_methods": (),
        "amount_fen": 0,
        "pin_generation": 0,
        "candidates": candidates,
        "candidates_free": len(candidates),
        "lines": (Line(100, 1),),
        "bundles": (),
        "order_id": "ORDER-1",
        "splits": (),
        "actor": "",
    }
    return codes.IssueItem(**given | fields)


def made(shop: Shop, *items: codes.IssueItem) -> list[IssueAnswer | PickgateError]:
    return codes.issue(shop.deployment.connection, items)


def test_a_taken_uid_is_passed_over(shop: Shop) -> None:
    shop.receive(10)
    first, second = made(shop, item(shop, b"one", uid(1), uid(2)), item(shop, b"two", uid(1), uid(2)))
    assert (settled(first).uid, settled(second).uid) == (uid(1), uid(2))
    assert shop.figures().reserved == 2


def test_a_retry_finds_its_own_although_a_better_uid_is_free_now(shop: Shop) -> None:
    shop.receive(10)
    made(shop, item(shop, b"one", uid(1), uid(2)), item(shop, b"two", uid(1), uid(2)))
    names = shop.deployment.connection.partitions[HOME]
    shop.deployment.connection.write([("HDEL", names.record(uid(1)), uid(1))])
    [again] = made(shop, item(shop, b"two", uid(1), uid(2)))
    assert settled(again).replayed
    assert settled(again).uid == uid(2)
    [other] = made(shop, item(shop, b"two", uid(1), uid(2), body=b"body-two"))
    assert isinstance(other, RequestIdReused)


def test_when_every_uid_is_taken_nothing_is_made(shop: Shop) -> None:
    shop.receive(10)
    made(shop, item(shop, b"one", uid(1)), item(shop, b"two", uid(2)))
    before = shop.dump()
    [refused] = made(shop, item(shop, b"three", uid(1), uid(2)))
    assert isinstance(refused, StoreUnavailable)
    assert shop.dump() == before


def test_a_refused_issue_takes_no_uid(shop: Shop) -> None:
    shop.receive(1)
    short, good = made(shop, item(shop, b"one", uid(1), lines=(Line(100, 2),)), item(shop, b"two", uid(1)))
    assert settled(short).verdict is IssueVerdict.STOCK_SHORT
    assert settled(short).uid == b""
    assert settled(good).uid == uid(1)


@pytest.mark.parametrize("generation", [1, 254, 255])
def test_every_generation_of_a_pin_key_is_told_from_no_pin(shop: Shop, generation: int) -> None:
    shop.receive(10)
    static = replace(item(shop, b"one", uid(1)), version=Version.STATIC, pin_generation=generation)
    made(shop, static)
    tries = [(state.NO_PIN, state.NO_PIN), (0, 0), (0, 3), (generation, 0)]
    verdicts = []
    for n, pin in enumerate(tries):
        attempt = packed(
            uid(1),
            b"%012d" % n,
            mall_id=MALL,
            store_id=STORE,
            version=Version.STATIC,
            pin=pin,
            pin_generations=(generation, 3),
        )
        [facts] = state.run(shop.deployment.connection, [attempt])
        verdicts.append(RedeemVerdict.numbered(settled(facts).verdict))
    assert verdicts == [
        RedeemVerdict.PIN_REQUIRED,
        RedeemVerdict.PIN_WRONG,
        RedeemVerdict.PIN_WRONG,
        RedeemVerdict.REDEEMED,
    ]


def test_a_payload_that_claims_another_version_than_the_record_is_no_code(shop: Shop) -> None:
    """A static claim about a dynamic code would need no fresh stamp."""
    shop.receive(10)
    made(shop, item(shop, b"one", uid(1)))
    record = replace(shop.record(uid(1)), version=Version.VALUABLE)
    keys = shop.deployment.control.copy().usable_keys()
    [text] = issuance.seal(keys, record, [shop.clock.now_s])
    before = shop.dump()
    assert shop.redeem(text).verdict is RedeemVerdict.INVALID_CODE
    assert shop.dump() == before


def test_the_list_of_refused_attempts_is_bounded(shop: Shop) -> None:
    """Anyone with a code can be refused without end; what is kept of it must have one."""
    shop.receive(10)
    issued = shop.issue()
    text = shop.show(issued.uid)
    shop.void(issued.uid)
    batch = [shop.redeem_request(text) for _ in range(limits.BATCH_MAX)]
    for _ in range(limits.ATTEMPTS_KEPT // limits.BATCH_MAX + 4):
        redemption.redeem(shop.deployment, batch)
    kept = attempts(shop.deployment)
    # Trimmed by whole nodes of the stream (stream-node-max-entries, 100 by default).
    assert limits.ATTEMPTS_KEPT <= kept < limits.ATTEMPTS_KEPT + 200
