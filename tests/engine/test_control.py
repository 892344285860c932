"""The copy of the set-up: fresh in every process within seconds, refused when old; keys that are locked, disabled, rolled back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import pytest

from engine import issuance, keyring, limits, redemption, stock
from engine.claims import Suite, Version
from engine.control import Random
from engine.errors import (
    Conflict,
    KeyringLocked,
    NoActiveKey,
    RequestIdReused,
    StaleControl,
    StoreUnavailable,
    TooManyItems,
    UnknownMall,
)
from engine.keyring import HANDOVER_S, Keyring, KeyState, Purpose
from engine.stores import CatalogueEntry, Mall, Store
from engine.verdict import RedeemVerdict, VoidVerdict
from engine.wrapping import PassphraseUnlock
from tests.conftest import StoreFactory
from tests.engine import shop as shops
from tests.engine.shop import MALL, OTHER_MALL, SKUS, STORE, Clock, Shop, settled, store

BOUND_S: Final = 20.0


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds, within a bound."""
    ends_s = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < ends_s, f"not within {BOUND_S:g} s: {what}"
        time.sleep(0.02)


class Monotonic:
    """A monotonic clock that stands still unless told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


# --- putting and listing ------------------------------------------------------------------------------------------
def test_what_was_put_is_there_at_once_and_in_order(shop: Shop) -> None:
    control = shop.deployment.control
    control.put_malls([Mall(9, "Ninth"), Mall(3, "Third")], request_id="put-0002", actor="test")
    assert [mall.mall_id for mall in control.malls()] == [MALL, OTHER_MALL, 3, 9]
    assert [entry.sku_id for entry in control.catalogue(OTHER_MALL)] == list(SKUS)
    assert control.catalogue(9) == ()
    assert [one.store_id for one in control.stores()] == sorted(one.store_id for one in control.stores())
    assert control.store(STORE) == store(STORE)
    assert control.store(999) is None
    assert control.mall(999) is None
    assert control.sku(MALL, 999) is None


def test_a_put_replaces_the_whole_entry(shop: Shop) -> None:
    shop.put_store(name="Renamed", closed=True, radius_m=50)
    shop.put_store()
    assert shop.deployment.control.store(STORE) == store(STORE)


def test_a_put_is_whole_or_not_at_all(shop: Shop) -> None:
    control = shop.deployment.control
    before = shop.dump()
    with pytest.raises(UnknownMall):
        control.put_stores([store(3001), store(3002, mall_ids=(77,))], request_id="put-0002", actor="test")
    with pytest.raises(UnknownMall):
        control.put_catalogue([CatalogueEntry(77, 1, "One")], request_id="put-0002", actor="test")
    for items in ([], [Mall(n, "Mall") for n in range(1, limits.BATCH_MAX + 2)]):
        with pytest.raises(TooManyItems):
            control.put_malls(items, request_id="put-0002", actor="test")
    assert shop.dump() == before


def test_each_put_is_one_numbered_event(shop: Shop) -> None:
    control = shop.deployment.control
    before = control.copy().version
    version = control.put_malls([Mall(3, "三号商城")], request_id="put-0002", actor="ops:1")
    assert version == before + 1 == control.copy().version
    assert control.copy().versions["malls"] == version
    assert control.copy().versions["stores"] < version
    [entries] = shop.deployment.connection.read([("XREVRANGE", "{ctl}e", "+", "-", "COUNT", 1)])
    text = repr(entries)
    assert f"{version}-0" in text
    assert "ops:1" in text


def test_stored_entries_from_a_newer_version_are_read(shop: Shop) -> None:
    """A field that this version doesn't know is left aside; the entry is used all the same."""
    data = store(STORE).to_json()
    newer = data[:-1] + b',"opens_at":"09:00"}'
    assert Store.from_json(newer) == store(STORE)


# --- other processes ----------------------------------------------------------------------------------------------
def test_a_change_reaches_other_processes_within_the_poll(shop: Shop) -> None:
    with shops.open_deployment(shop.url, shop.clock) as other:
        began_s = time.monotonic()
        shop.put_store(closed=True)
        assert shop.deployment.control.store(STORE) == store(STORE, closed=True)
        until(lambda: other.control.store(STORE) == store(STORE, closed=True), "the other process sees it")
        # The poll is one second; on a busy machine a thread may come late, but never later than copies may be old.
        assert time.monotonic() - began_s < limits.CONTROL_AGE_S_MAX


def test_a_copy_is_not_read_again_without_a_change(shop: Shop) -> None:
    control = shop.deployment.control
    first = control.refresh()
    second = control.refresh()
    assert second is not first
    assert second.stores is first.stores
    assert second.keys is first.keys


def test_an_old_copy_is_refused(make_store: StoreFactory) -> None:
    """A process that lost sight of the store must not hand out goods by yesterday's set-up and keys."""
    server, clock, monotonic = make_store(), Clock(), Monotonic()
    shops.create(server.url, clock)
    with shops.open_deployment(server.url, clock, monotonic_s=monotonic) as deployment:
        shops.furnish(deployment)
        shop = Shop(deployment, server.url, clock)
        shop.receive(5)
        uid = shop.issue().uid
        text = shop.show(uid)
        server.stop()
        with pytest.raises(StoreUnavailable):
            deployment.control.refresh()
        monotonic.now_s += limits.CONTROL_AGE_S_MAX
        deployment.control.copy()
        monotonic.now_s += 0.001
        requests: list[Callable[[], Any]] = [
            deployment.control.copy,
            shop.issue,
            lambda: shop.redeem(text),
            lambda: shop.inspect(text),
            lambda: shop.render(uid),
            lambda: shop.void(uid),
            lambda: shop.receive(1),
            lambda: deployment.control.stores(),
        ]
        for act in requests:
            with pytest.raises(StaleControl):
                act()
        server.start()
        until(lambda: _is_fresh(deployment.control.copy), "the copy is fresh again")
        assert shop.redeem(shop.show(uid)).verdict is RedeemVerdict.REDEEMED


def _is_fresh(copy: Callable[[], object]) -> bool:
    try:
        copy()
    except StaleControl:
        return False
    return True


# --- keys ---------------------------------------------------------------------------------------------------------
def rotate_payload_key(ring: Keyring, now_s: int, random: Random) -> Keyring:
    return keyring.rotate(ring, Purpose.PAYLOAD, Version.DYNAMIC, Suite.AES, now_s=now_s, random=random)


def disable_payload_key(ring: Keyring, now_s: int, random: Random) -> Keyring:
    [record] = [
        record
        for record in ring.records
        if (record.purpose, record.version, record.suite) == (Purpose.PAYLOAD, Version.DYNAMIC, Suite.AES)
        and record.state is KeyState.ACTIVE
    ]
    return keyring.disable(ring, record.kid, now_s=now_s)


def test_a_locked_keyring_serves_reads(shop: Shop) -> None:
    shop.stock_all()
    uid, other_uid = shop.issue().uid, shop.issue().uid
    text = shop.show(uid)
    wrong = PassphraseUnlock(b"not the passphrase")
    for unlock in (None, wrong):
        with shops.open_deployment(shop.url, shop.clock, unlock=unlock) as locked:
            closed = Shop(locked, shop.url, shop.clock)
            assert closed.record(uid) == shop.record(uid)
            assert closed.figures() == shop.figures()
            assert locked.control.stores() == shop.deployment.control.stores()
            acts: list[Callable[[], object]] = [
                closed.issue,
                lambda closed=closed: closed.render(uid),  # type: ignore[misc]
                lambda closed=closed: closed.redeem(text),  # type: ignore[misc]
                lambda closed=closed: closed.inspect(text),  # type: ignore[misc]
                lambda locked=locked: issuance.get_by_request_id(locked, MALL, ["request-1"]),  # type: ignore[misc]
                lambda locked=locked: change(locked, rotate_payload_key),  # type: ignore[misc]
            ]
            for act in acts:
                with pytest.raises(KeyringLocked):
                    act()
    # What needs no key goes on: stock comes in, and a code can be stopped.
    with shops.open_deployment(shop.url, shop.clock, unlock=None) as locked:
        assert settled(stock.change(locked, [shop.stock_request(1)])[0]).verdict.success
        assert Shop(locked, shop.url, shop.clock).void(other_uid, request_id="from-locked").verdict is (
            VoidVerdict.VOIDED
        )


def change(
    deployment: Any, what: Callable[[Keyring, int, Random], Keyring], request_id: str = "keys-0001"
) -> Keyring:
    changed: Keyring = deployment.control.change_keyring(what, request_id=request_id, actor="test")
    return changed


def test_a_disabled_key_stops_everywhere_within_bounds(shop: Shop) -> None:
    shop.stock_all()
    text = shop.show(shop.issue().uid)
    with shops.open_deployment(shop.url, shop.clock) as other:
        request = shop.redeem_request(text, position=shops.north(5000))
        [before] = redemption.redeem(other, [request])
        assert getattr(before, "verdict", None) is RedeemVerdict.OUT_OF_RANGE

        began_s = time.monotonic()
        change(shop.deployment, disable_payload_key)
        assert shop.redeem(text).verdict is RedeemVerdict.INVALID_CODE

        def stopped() -> bool:
            [answer] = redemption.redeem(other, [request])
            return getattr(answer, "verdict", None) is RedeemVerdict.INVALID_CODE

        until(stopped, "the other process stops")
        assert time.monotonic() - began_s < limits.CONTROL_AGE_S_MAX
    with pytest.raises(NoActiveKey):
        shop.issue()
    assert shop.issue(suite=Suite.SM).verdict.success


def test_rotation_hands_over_without_a_gap(shop: Shop) -> None:
    """Codes shown before and during a rotation are taken; after the handover the new key seals."""
    shop.stock_all()
    uid = shop.issue().uid
    old = shop.deployment.control.copy().usable_keys().active_kid(Version.DYNAMIC, Suite.AES)
    texts = [shop.show(uid)]
    change(shop.deployment, rotate_payload_key)
    texts.append(shop.show(uid))
    for text in texts:
        assert shop.inspect(text).verdict.success
    keys = shop.deployment.control.copy().usable_keys()
    assert keys.active_kid(Version.DYNAMIC, Suite.AES) == old
    shop.clock.tick(HANDOVER_S + 1)
    until(
        lambda: shop.deployment.control.refresh().usable_keys().active_kid(Version.DYNAMIC, Suite.AES) != old,
        "the new key seals",
    )
    assert shop.redeem(shop.show(uid)).verdict is RedeemVerdict.REDEEMED


def test_two_who_change_the_keyring_at_once(shop: Shop) -> None:
    with shops.open_deployment(shop.url, shop.clock) as other:

        def meanwhile(ring: Keyring, now_s: int, random: Random) -> Keyring:
            change(other, rotate_payload_key, "keys-0002")
            return rotate_payload_key(ring, now_s, random)

        with pytest.raises(Conflict):
            change(shop.deployment, meanwhile)
        ring = shop.deployment.control.refresh().keyring
        assert ring is not None
        assert ring == other.control.refresh().keyring
        assert ring.revision == 2
        shop.clock.tick(HANDOVER_S + 1)
        assert change(shop.deployment, disable_payload_key, "keys-0003").revision == 3


def test_a_change_of_keys_sent_again_is_not_made_twice(shop: Shop) -> None:
    change(shop.deployment, rotate_payload_key)
    before = shop.dump()
    with pytest.raises(RequestIdReused):
        change(shop.deployment, rotate_payload_key)
    assert shop.dump() == before


def test_the_keyring_s_event_carries_no_key_material(shop: Shop) -> None:
    change(shop.deployment, rotate_payload_key)
    [blob, entries] = shop.deployment.connection.read(
        [("HGET", "{ctl}keyring", "blob"), ("XRANGE", "{ctl}e", "-", "+")]
    )
    assert len(blob) > 500
    assert blob[:40] not in repr(entries).encode()
    assert "blob" not in repr(entries)
    ring = shop.deployment.control.copy().keyring
    assert ring is not None
    with_secrets = [record for record in ring.records if record.secret]
    assert with_secrets
    everything = repr(shop.dump()).encode()
    for record in with_secrets:
        assert record.secret not in blob
        assert repr(record.secret)[2:-1].encode() not in everything


def test_an_older_keyring_put_back_locks(shop: Shop) -> None:
    """A genuine older blob would bring back keys that were disabled."""
    connection = shop.deployment.connection
    [old] = connection.read([("HGET", "{ctl}keyring", "blob")])
    shop.stock_all()
    text = shop.show(shop.issue().uid)
    change(shop.deployment, disable_payload_key)
    connection.write([("HSET", "{ctl}keyring", "blob", old), ("HINCRBY", "{ctl}m", "keyring", 1)])
    shop.deployment.control.refresh()
    with pytest.raises(KeyringLocked, match="older"):
        shop.redeem(text)

    # Being locked doesn't make it forget what it has seen.
    connection.write([("HINCRBY", "{ctl}m", "keyring", 1)])
    shop.deployment.control.refresh()
    with pytest.raises(KeyringLocked, match="older"):
        shop.redeem(text)


def disable_maker(purpose: keyring.Purpose) -> Callable[[Keyring, int, Random], Keyring]:
    """Rotate a key of a purpose, then disable the one that made what there is."""

    def change_it(ring: Keyring, now_s: int, random: Random) -> Keyring:
        [old] = [record for record in ring.records if record.purpose is purpose]
        ring = keyring.rotate(ring, purpose, None, old.suite, now_s=now_s, random=random)
        return keyring.disable(ring, old.kid, now_s=now_s)

    return change_it


def test_a_retry_finds_its_code_although_the_uid_key_is_disabled(shop: Shop) -> None:
    shop.stock_all()
    first = shop.issue(request_id="request-of-old")
    change(shop.deployment, disable_maker(keyring.Purpose.UID))
    shop.clock.tick(60)
    again = shop.issue(request_id="request-of-old")
    assert (again.uid, again.replayed) == (first.uid, True)
    assert shop.figures().reserved == 1
    [found] = issuance.get_by_request_id(shop.deployment, MALL, ["request-of-old"])
    assert found is not None
    assert found.uid == first.uid
    assert shop.issue().uid != first.uid


def test_a_disabled_pin_key_costs_the_customer_no_try(shop: Shop) -> None:
    shop.stock_all()
    issued = shop.issue(version=Version.STATIC)
    change(shop.deployment, disable_maker(keyring.Purpose.PIN))
    shop.clock.tick(60)
    for _ in range(4):
        with pytest.raises(NoActiveKey):
            shop.redeem(issued.typed, pin=issued.pin)
    assert shop.record(issued.uid).tries == 0
    assert shop.void(issued.uid).verdict is VoidVerdict.VOIDED


def test_a_damaged_keyring_locks_and_reads_go_on(shop: Shop) -> None:
    connection = shop.deployment.connection
    shop.stock_all()
    uid = shop.issue().uid
    [blob] = connection.read([("HGET", "{ctl}keyring", "blob")])
    connection.write(
        [
            ("HSET", "{ctl}keyring", "blob", blob[:-1] + bytes([blob[-1] ^ 1])),
            ("HINCRBY", "{ctl}m", "keyring", 1),
        ]
    )
    shop.deployment.control.refresh()
    with pytest.raises(KeyringLocked):
        shop.issue()
    assert shop.record(uid).uid == uid
