"""Rotation on schedule: what is due, and that nobody is refused for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from engine import keyring as keyrings
from engine import rotation
from engine.claims import Suite, Version
from engine.deployment import Deployment
from engine.keyring import HANDOVER_S, KeyState, Purpose
from engine.limits import KEY_AGE_S_DEFAULT as AGE_S_DEFAULT
from engine.verdict import InspectVerdict
from tests.engine import shop as shops
from tests.engine.shop import Bytes, Shop

DYNAMIC = [(Version.DYNAMIC, suite) for suite in Suite]
NOW_S = 1_800_000_000


def turn(deployment: Deployment) -> int:
    return rotation.rotate_due(deployment.control, deployment.now_ms, AGE_S_DEFAULT)


def test_keys_of_dynamic_and_valuable_codes_are_due_when_they_are_old_enough() -> None:
    ring = keyrings.initial(NOW_S, Bytes())
    assert rotation.due(ring, NOW_S + AGE_S_DEFAULT - 1, AGE_S_DEFAULT) == []
    due = rotation.due(ring, NOW_S + AGE_S_DEFAULT, AGE_S_DEFAULT)
    assert {(record.version, record.suite) for record in due} == {
        (version, suite) for version in (Version.DYNAMIC, Version.VALUABLE) for suite in Suite
    }
    ring = rotation.rotated(ring, NOW_S + AGE_S_DEFAULT, Bytes(b"r"), AGE_S_DEFAULT)
    assert rotation.due(ring, NOW_S + AGE_S_DEFAULT, AGE_S_DEFAULT) == []
    # Static codes, serials, PINs and uids are left alone.
    touched = {record.slot for record in ring.records if record.generation > 1}
    assert {slot[0] for slot in touched} == {Purpose.PAYLOAD}
    assert Version.STATIC not in {slot[1] for slot in touched}


def test_what_can_open_nothing_any_more_loses_its_secrets() -> None:
    ring = keyrings.initial(NOW_S, Bytes())
    for day in range(1, 5):
        ring = rotation.rotated(ring, NOW_S + day * AGE_S_DEFAULT, Bytes(b"%d" % day), AGE_S_DEFAULT)
    states = [record.state for record in ring.records if record.slot == (Purpose.PAYLOAD, *DYNAMIC[0])]
    # Of five days' keys: the active one, yesterday's (a day of rendering ahead and its handovers), and the others wiped.
    assert states == [KeyState.DESTROYED] * 2 + [KeyState.VERIFY_ONLY] * 2 + [KeyState.ACTIVE]
    assert not [record for record in ring.records if record.state is KeyState.DESTROYED and record.secret]


@pytest.fixture
def neighbour(shop: Shop) -> Iterator[Shop]:
    """Another process on the same store, which hears of a new key as late as it may."""
    with shops.open_deployment(shop.url, shop.clock) as deployment:
        yield Shop(deployment, shop.url, shop.clock)


@pytest.mark.parametrize("suite", Suite)
def test_no_code_is_refused_while_a_key_is_rotated(shop: Shop, neighbour: Shop, suite: Suite) -> None:
    """Second by second, from before the rotation to behind the handover: rendered here, shown there, and the other way round."""
    shop.stock_all(100)
    issued = shop.issue(version=Version.DYNAMIC, suite=suite)
    # A day of payloads, as a phone without network keeps them; the last is shown when the old key is about to end.
    shop.clock.tick(AGE_S_DEFAULT - 4)
    ahead = shop.render(issued.uid, count=600).payloads
    kids = set()
    for second in range(-4, HANDOVER_S + 5):
        if second == 0:
            assert turn(shop.deployment) == 4
            assert turn(shop.deployment) == 0
        if second % 5 == 4:  # a process looks each second; here as rarely as it may
            neighbour.deployment.control.refresh()
        for made_by, shown_to in ((shop, neighbour), (neighbour, shop)):
            text = made_by.show(issued.uid)
            assert shown_to.inspect(text).verdict is InspectVerdict.REDEEMABLE, second
        kids.add(shop.deployment.control.copy().usable_keys().active_kid(Version.DYNAMIC, suite))
        shop.clock.tick(1)
        shop.deployment.control.refresh()
    assert len(kids) == 2, "the new key never came into use"
    # What was rendered ahead, before: each in its own minute.
    for payload in ahead[:: len(ahead) // 6]:
        if payload.valid_from_ms > shop.clock.now_ms:
            shop.clock.now_ms = payload.valid_from_ms
            for process in (shop, neighbour):
                process.deployment.control.refresh()
                assert process.inspect(payload.text).verdict is InspectVerdict.REDEEMABLE


def test_who_looks_first_and_comes_second_makes_nothing(
    shop: Shop, neighbour: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.clock.tick(AGE_S_DEFAULT)
    control = shop.deployment.control
    change_keyring = control.change_keyring
    written: list[int] = []

    def late(*arguments: Any, **named: Any) -> Any:
        assert turn(neighbour.deployment) == 4
        written.append(neighbour.deployment.control.refresh().versions["keyring"])
        return change_keyring(*arguments, **named)

    monkeypatch.setattr(control, "change_keyring", late)
    assert turn(shop.deployment) == 0
    assert [control.refresh().versions["keyring"]] == written, "nothing is written that changes nothing"


def test_of_processes_that_rotate_at_once_one_does(shop: Shop, neighbour: Shop) -> None:
    shop.clock.tick(AGE_S_DEFAULT)
    made: list[int] = []
    start = threading.Barrier(2)

    def rotate(process: Shop) -> None:
        start.wait()
        made.append(turn(process.deployment))

    threads = [threading.Thread(target=rotate, args=(process,)) for process in (shop, neighbour)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [0, 4]
    ring = shop.deployment.control.refresh().keyring
    assert ring is not None
    assert len(ring.records) == 9 + 4
