"""Keys: their life, what they open when, and what is never shown of them."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.claims import Suite, Version
from engine.errors import (
    Exhausted,
    InvalidInput,
    KeyringLocked,
    KeyStateError,
    NoActiveKey,
    NotFound,
    PickgateError,
    SetupError,
)
from engine.keyring import (
    HANDOVER_S,
    TRANSITIONS,
    KeyRecord,
    Keyring,
    Keys,
    KeyState,
    Purpose,
    activate,
    create,
    destroy,
    disable,
    dump,
    initial,
    lifetime_after_retirement_s,
    list_keys,
    load,
    rotate,
)
from engine.limits import (
    AFTERLIFE_S,
    CLOCK_SKEW_MS_MAX,
    CONTROL_AGE_S_MAX,
    PAYLOAD_LIFE_S_MAX,
    RENDER_AHEAD_S_MAX,
    STAMP_SKEW_S,
    TTL_S_MAX,
)
from engine.wrapping import Random, unwrap, wrap
from ext import codec
from ext.status import OpenStatus

NOW = 1_800_000_000
DEPLOYMENT = "d-7f3a"
VERSIONS = [(version, suite) for version in Version for suite in Suite]
PRF_PURPOSES = [Purpose.UID, Purpose.SERIAL, Purpose.PIN]


class Draws:
    """A repeatable random source: SHA-256 of a counter."""

    def __init__(self, seed: bytes = b"") -> None:
        self._seed = seed
        self._count = 0

    def __call__(self, size: int) -> bytes:
        self._count += 1
        return hashlib.shake_256(self._seed + self._count.to_bytes(8, "big")).digest(size)


class FixedKey:
    """An unlock provider without the cost of a passphrase: these tests are about what is inside the wrap."""

    scheme = 250

    def new_parameters(self, random: Random) -> bytes:
        return b""

    def derive(self, parameters: bytes) -> bytes:
        return bytes(32)


UNLOCK = FixedKey()


@pytest.fixture
def draws() -> Draws:
    return Draws()


@pytest.fixture
def keyring(draws: Draws) -> Keyring:
    return initial(NOW, draws)


def sealed(keys: Keys, kid: int, version: Version) -> bytes:
    """One payload under a kid."""
    claims = np.zeros(1, dtype=codec.CLAIMS)
    low_54 = 12_345 if version is Version.STATIC else (1 << 53) + 12_345
    claims["uid"][0] = np.void(((7 << 54) + low_54).to_bytes(8, "big"))
    claims["stamp"], claims["exp"], claims["store"], claims["qty"] = NOW, NOW + 3600, 9, 1
    return codec.seal_batch(keys.payload_table, kid, claims)


def opens(keys: Keys, payload: bytes) -> bool:
    status = int(codec.open_batch(keys.payload_table, *codec.pack([payload]))["status"][0])
    assert status in (OpenStatus.OK, OpenStatus.KID)
    return status == OpenStatus.OK


def kid_of(
    keyring: Keyring, purpose: Purpose, version: Version | None = None, suite: Suite = Suite.AES
) -> int:
    """Kid of the active key."""
    found = [
        record.kid
        for record in keyring.records
        if record.purpose is purpose
        and record.state is KeyState.ACTIVE
        and (purpose is not Purpose.PAYLOAD or (record.version, record.suite) == (version, suite))
    ]
    assert len(found) == 1
    return found[0]


# --- the first keyring --------------------------------------------------------------------------------------------


def test_the_first_keyring_seals_and_opens_every_version_and_suite(keyring: Keyring) -> None:
    keys = Keys.build(keyring, NOW)
    assert len(keys.payload_table) == 6
    for version, suite in VERSIONS:
        payload = sealed(keys, keys.active_kid(version, suite), version)
        assert payload[0] == version << 4 | suite
        assert opens(keys, payload)
    assert len(keys.uid_prfs) == len(keys.serial_prfs) == len(keys.pin_generations) == 1
    assert keys.next_change_s is None


def test_the_first_keyring_has_ascending_kids_and_one_revision(keyring: Keyring) -> None:
    assert [record.kid for record in keyring.records] == list(range(1, 10))
    assert (keyring.next_kid, keyring.revision) == (10, 1)
    assert {record.state for record in keyring.records} == {KeyState.ACTIVE}
    assert {record.generation for record in keyring.records} == {1}


@pytest.mark.parametrize("suite", list(Suite))
def test_the_suite_of_the_first_derivation_keys_is_chosen(draws: Draws, suite: Suite) -> None:
    keys = Keys.build(initial(NOW, draws, suite=suite), NOW)
    assert keys.active_uid_prf().suite == keys.active_serial_prf().suite == suite
    assert keys.pin_prf(keys.active_pin_generation()).suite == suite


def test_keys_for_valuables_carry_a_key_pair_that_signs_and_others_none(keyring: Keyring) -> None:
    for record in keyring.records:
        if record.version is Version.VALUABLE:
            signature = codec.sign(record.suite, record.signing_private, b"message")
            assert codec.verify(record.suite, record.signing_public, b"message", signature)
            assert not codec.verify(record.suite, record.signing_public, b"massage", signature)
            assert record.signing_private != record.secret
        else:
            assert record.signing_private == record.signing_public == b""


def test_all_secrets_differ(keyring: Keyring) -> None:
    secrets = [record.secret for record in keyring.records]
    secrets += [record.signing_private for record in keyring.records if record.signing_private]
    assert len(set(secrets)) == len(secrets) == 11


# --- transitions --------------------------------------------------------------------------------------------------

P, A, V, X, D = KeyState.PENDING, KeyState.ACTIVE, KeyState.VERIFY_ONLY, KeyState.DISABLED, KeyState.DESTROYED
ALLOWED = {(P, A), (P, X), (P, D), (A, V), (A, X), (V, X), (V, D), (X, D)}


def in_state(state: KeyState, draws: Draws) -> tuple[Keyring, int, int]:
    """A keyring of two keys whose first is in `state`, its kid, and a time at which its use has ended."""
    keyring = create(
        Keyring(),
        Purpose.PAYLOAD,
        Version.DYNAMIC,
        Suite.AES,
        now_s=NOW,
        random=draws,
        activate=state is not P,
    )
    later = NOW + 10 * 24 * 3600
    if state is V:
        keyring = rotate(keyring, Purpose.PAYLOAD, Version.DYNAMIC, Suite.AES, now_s=NOW, random=draws)
    if state in (X, D):
        keyring = disable(keyring, 1, now_s=NOW)
    if state is D:
        keyring = destroy(keyring, 1, now_s=later)
    assert keyring.record(1).state is state
    return keyring, 1, later


def test_the_table_of_transitions_is_closed_over_all_states() -> None:
    assert set(TRANSITIONS) == set(KeyState)
    assert {(before, after) for before in KeyState for after in TRANSITIONS[before]} == ALLOWED


@pytest.mark.parametrize("after", list(KeyState))
@pytest.mark.parametrize("before", list(KeyState))
def test_every_pair_of_states_is_reached_or_refused_as_the_table_says(
    before: KeyState, after: KeyState, draws: Draws
) -> None:
    keyring, kid, later = in_state(before, draws)
    operations: dict[KeyState, Callable[[], Keyring]] = {
        A: lambda: activate(keyring, kid, now_s=later),
        X: lambda: disable(keyring, kid, now_s=later),
        D: lambda: destroy(keyring, kid, now_s=later),
        # Not asked of one key but of its slot: the active one becomes verify-only, no other is touched.
        V: lambda: rotate(keyring, Purpose.PAYLOAD, Version.DYNAMIC, Suite.AES, now_s=later, random=draws),
    }
    if after is P:
        # Nothing leads back: no operation gives a pending key but create, which makes another one.
        grown = create(
            keyring, Purpose.PAYLOAD, Version.DYNAMIC, Suite.AES, now_s=later, random=draws, activate=False
        )
        assert grown.record(kid) == keyring.record(kid)
        return
    if after is V and before is not A:
        assert operations[V]().record(kid) == keyring.record(kid)
        return
    if (before, after) in ALLOWED:
        changed = operations[after]()
        assert changed.record(kid).state is after
        assert changed.revision == keyring.revision + 1
    else:
        with pytest.raises(KeyStateError, match=f"key {kid}"):
            operations[after]()


def test_no_operation_changes_the_keyring_it_was_given(keyring: Keyring, draws: Draws) -> None:
    before = replace(keyring)
    rotate(keyring, Purpose.PAYLOAD, Version.DYNAMIC, Suite.AES, now_s=NOW, random=draws)
    destroy(disable(keyring, 3, now_s=NOW), 3, now_s=NOW)
    assert keyring == before


def test_a_pending_key_opens_nothing_until_it_is_activated(keyring: Keyring, draws: Draws) -> None:
    grown = create(
        keyring, Purpose.PAYLOAD, Version.DYNAMIC, Suite.SM, now_s=NOW, random=draws, activate=False
    )
    kid = grown.records[-1].kid
    assert kid not in Keys.build(grown, NOW).payload_table
    taken_over = activate(grown, kid, now_s=NOW + 50)
    assert kid in Keys.build(taken_over, NOW + 50).payload_table
    old = taken_over.record(kid_of(keyring, Purpose.PAYLOAD, Version.DYNAMIC, Suite.SM))
    assert (old.state, old.retired_at_s) == (KeyState.VERIFY_ONLY, NOW + 50)


def test_a_second_active_key_is_not_created_beside_the_first(keyring: Keyring, draws: Draws) -> None:
    for record in keyring.records:
        with pytest.raises(KeyStateError, match="rotate"):
            create(
                keyring, record.purpose, record.version, record.suite, now_s=NOW, random=draws, activate=True
            )


@pytest.mark.parametrize("purpose", list(Purpose))
def test_a_version_goes_with_payload_keys_and_only_with_them(purpose: Purpose, draws: Draws) -> None:
    version = None if purpose is Purpose.PAYLOAD else Version.STATIC
    with pytest.raises(InvalidInput) as caught:
        create(Keyring(), purpose, version, Suite.AES, now_s=NOW, random=draws, activate=False)
    assert caught.value.field == "version"


@pytest.mark.parametrize("kid", [0, -1, 10, 65_536])
def test_an_unknown_kid_is_named(keyring: Keyring, kid: int) -> None:
    for operation in (activate, disable, destroy):
        with pytest.raises(NotFound, match=f"no key {kid}"):
            operation(keyring, kid, now_s=NOW)


# --- kids, generations, random sources ----------------------------------------------------------------------------


def test_a_kid_is_never_given_again_also_after_destruction(draws: Draws) -> None:
    keyring = Keyring()
    for expected in range(1, 6):
        keyring = create(
            keyring, Purpose.PAYLOAD, Version.STATIC, Suite.AES, now_s=NOW, random=draws, activate=False
        )
        assert keyring.records[-1].kid == expected
        keyring = destroy(keyring, expected, now_s=NOW)
    assert [record.state for record in keyring.records] == [KeyState.DESTROYED] * 5
    assert len(Keys.build(keyring, NOW).payload_table) == 0


def test_when_all_kids_are_given_the_error_says_so(keyring: Keyring, draws: Draws) -> None:
    last = replace(keyring, next_kid=65_535)
    used_up = rotate(last, Purpose.PAYLOAD, Version.STATIC, Suite.AES, now_s=NOW, random=draws)
    assert used_up.records[-1].kid == 65_535
    assert 65_535 in Keys.build(used_up, NOW).payload_table
    assert load(dump(used_up, UNLOCK, DEPLOYMENT, draws), UNLOCK, DEPLOYMENT) == used_up
    with pytest.raises(Exhausted, match="all 65535 key ids"):
        rotate(used_up, Purpose.PAYLOAD, Version.DYNAMIC, Suite.AES, now_s=NOW, random=draws)


def test_a_pin_generation_fits_one_byte_or_is_refused(draws: Draws) -> None:
    keyring = Keyring()
    for _ in range(255):
        keyring = create(keyring, Purpose.PIN, None, Suite.AES, now_s=NOW, random=draws, activate=False)
    assert keyring.records[-1].generation == 255
    with pytest.raises(Exhausted, match="255 generations"):
        create(keyring, Purpose.PIN, None, Suite.AES, now_s=NOW, random=draws, activate=False)


@pytest.mark.parametrize("random", [lambda size: bytes(size), lambda size: b"\x5a" * size, lambda size: b""])
def test_a_random_source_that_is_none_makes_no_keyring(random: Random) -> None:
    with pytest.raises(SetupError, match="random source"):
        initial(NOW, random)


def scripted(parts: list[bytes]) -> Random:
    script = iter(parts)

    def draw(size: int) -> bytes:
        part = next(script)
        assert len(part) == size
        return part

    return draw


SM2_ORDER = int("FFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFF7203DF6B21C6052B53BBF40939D54123", 16)


def test_a_draw_that_is_no_sm2_key_is_drawn_again() -> None:
    bad = [scalar.to_bytes(32, "big") for scalar in (0, SM2_ORDER - 1, SM2_ORDER, 2**256 - 1)]
    greatest = (SM2_ORDER - 2).to_bytes(32, "big")
    keyring = create(
        Keyring(),
        Purpose.PAYLOAD,
        Version.VALUABLE,
        Suite.SM,
        now_s=NOW,
        random=scripted([b"s" * 32, *bad, greatest]),
        activate=True,
    )
    assert keyring.records[0].signing_private == greatest
    keys = Keys.build(keyring, NOW)
    assert opens(keys, sealed(keys, 1, Version.VALUABLE))


def test_a_source_that_never_gives_an_sm2_key_is_refused() -> None:
    with pytest.raises(SetupError, match="SM2"):
        create(
            Keyring(),
            Purpose.PAYLOAD,
            Version.VALUABLE,
            Suite.SM,
            now_s=NOW,
            random=lambda size: b"\xff" * size,
            activate=True,
        )


# --- rotation: no genuine code is refused, no old one lives for ever ------------------------------------------------


@pytest.mark.parametrize(("version", "suite"), VERSIONS)
def test_a_rotated_key_opens_to_its_last_second_and_not_after(
    keyring: Keyring, draws: Draws, version: Version, suite: Suite
) -> None:
    before = Keys.build(keyring, NOW)
    old_kid = before.active_kid(version, suite)
    payload = sealed(before, old_kid, version)
    rotated = rotate(keyring, Purpose.PAYLOAD, version, suite, now_s=NOW + 100, random=draws)
    until_s = rotated.record(old_kid).usable_until_s

    for now_s in (NOW + 100, NOW + 100 + HANDOVER_S, until_s - 1, until_s):
        assert opens(Keys.build(rotated, now_s), payload)
    after = Keys.build(rotated, until_s + 1)
    assert not opens(after, payload)
    # The new one seals by then, and only its own slot was touched.
    new_kid = rotated.records[-1].kid
    assert after.active_kid(version, suite) == new_kid != old_kid
    assert opens(after, sealed(after, new_kid, version))
    for other, other_suite in VERSIONS:
        if (other, other_suite) != (version, suite):
            assert after.active_kid(other, other_suite) == before.active_kid(other, other_suite)


def test_lifetimes_cover_the_longest_that_a_code_may_be_shown() -> None:
    slack_s = CONTROL_AGE_S_MAX + 4 * CLOCK_SKEW_MS_MAX / 1000
    shown_s = RENDER_AHEAD_S_MAX + PAYLOAD_LIFE_S_MAX + STAMP_SKEW_S
    for version in (Version.DYNAMIC, Version.VALUABLE):
        assert shown_s + slack_s <= lifetime_after_retirement_s(Purpose.PAYLOAD, version) < shown_s + 60
    for purpose, purpose_version in (
        (Purpose.PAYLOAD, Version.STATIC),
        (Purpose.SERIAL, None),
        (Purpose.PIN, None),
    ):
        assert TTL_S_MAX + slack_s <= lifetime_after_retirement_s(purpose, purpose_version) < TTL_S_MAX + 60
    assert TTL_S_MAX + AFTERLIFE_S + slack_s <= lifetime_after_retirement_s(Purpose.UID, None)


@pytest.mark.parametrize("age_of_keyring_s", [0, 3, HANDOVER_S, 100_000])
def test_what_one_process_seals_every_other_opens_through_a_rotation(age_of_keyring_s: int) -> None:
    """All processes' clocks may be 5 s off the store's, and their copies of the keyring 5 s old."""
    keyring = initial(NOW - age_of_keyring_s, Draws())
    skew_s, age_s = CLOCK_SKEW_MS_MAX // 1000, int(CONTROL_AGE_S_MAX)
    slot = (Version.DYNAMIC, Suite.AES)
    views: dict[tuple[int, int], tuple[int, set[int]]] = {}

    def view(rings: list[Keyring], index: int, clock_s: int) -> tuple[int, set[int]]:
        """The kid that seals and the kids that open."""
        if (index, clock_s) not in views:
            keys = Keys.build(rings[index], clock_s)
            kids = {record.kid for record in rings[index].records if record.kid in keys.payload_table}
            views[index, clock_s] = (keys.active_kid(*slot), kids)
        return views[index, clock_s]

    for operator_clock_s in (-skew_s, 0, skew_s):
        views.clear()
        rotated = rotate(
            keyring, Purpose.PAYLOAD, *slot, now_s=NOW + operator_clock_s, random=Draws(b"rotation")
        )
        rings = [keyring, rotated]
        for true_s in range(NOW - 2, NOW + 60):
            sealing = [
                view(rings, int(true_s >= NOW + lag_s), true_s + clock_s)[0]
                for lag_s in (0, age_s)
                for clock_s in (-skew_s, 0, skew_s)
            ]
            opening = [
                view(rings, int(true_s >= NOW + lag_s), true_s + clock_s)[1]
                for lag_s in (0, age_s)
                for clock_s in (-skew_s, 0, skew_s)
            ]
            assert all(kid in kids for kid in sealing for kids in opening), true_s - NOW
        # The last payload of the old key: rendered by the slowest clock, a day ahead, shown in its last second to the
        # fastest clock.
        old_kid = kid_of(keyring, Purpose.PAYLOAD, *slot)
        last_s = max(s for s in range(NOW, NOW + 60) if view(rings, 1, s - skew_s)[0] == old_kid)
        shown_s = (last_s - skew_s) + RENDER_AHEAD_S_MAX + PAYLOAD_LIFE_S_MAX + STAMP_SKEW_S
        assert old_kid in view(rings, 1, shown_s + 2 * skew_s)[1]


def test_a_new_key_waits_for_its_handover_and_then_takes_over(keyring: Keyring, draws: Draws) -> None:
    slot = (Version.VALUABLE, Suite.SM)
    old_kid = kid_of(keyring, Purpose.PAYLOAD, *slot)
    rotated = rotate(keyring, Purpose.PAYLOAD, *slot, now_s=NOW + 1000, random=draws)
    new_kid = rotated.records[-1].kid
    during = Keys.build(rotated, NOW + 1000 + HANDOVER_S - 1)
    assert during.active_kid(*slot) == old_kid
    assert opens(during, sealed(during, old_kid, Version.VALUABLE))
    assert during.next_change_s == NOW + 1000 + HANDOVER_S
    after = Keys.build(rotated, NOW + 1000 + HANDOVER_S)
    assert after.active_kid(*slot) == new_kid
    # The retired key lost what it needs to sign, not what it needs to verify.
    assert opens(after, sealed(during, old_kid, Version.VALUABLE))
    with pytest.raises(ValueError, match="private"):
        sealed(after, old_kid, Version.VALUABLE)


def test_two_rotations_in_a_row_seal_with_what_everybody_knows(keyring: Keyring, draws: Draws) -> None:
    slot = (Version.DYNAMIC, Suite.AES)
    first = kid_of(keyring, Purpose.PAYLOAD, *slot)
    at = NOW + 1000
    twice = rotate(keyring, Purpose.PAYLOAD, *slot, now_s=at, random=draws)
    second = twice.records[-1].kid
    twice = rotate(twice, Purpose.PAYLOAD, *slot, now_s=at + 5, random=draws)
    third = twice.records[-1].kid
    sealing = [Keys.build(twice, at + s).active_kid(*slot) for s in range(5, HANDOVER_S + 7)]
    assert sealing == [first] * (HANDOVER_S - 5) + [second] * 5 + [third] * 2


def test_the_order_of_rotations_holds_though_the_second_operators_clock_is_behind(
    keyring: Keyring, draws: Draws
) -> None:
    slot = (Version.DYNAMIC, Suite.AES)
    first = kid_of(keyring, Purpose.PAYLOAD, *slot)
    # The pending key has the lower kid but takes over last.
    twice = create(keyring, Purpose.PAYLOAD, *slot, now_s=NOW, random=draws, activate=False)
    third = twice.records[-1].kid
    twice = rotate(twice, Purpose.PAYLOAD, *slot, now_s=NOW + 1000, random=draws)
    second = twice.records[-1].kid
    twice = activate(twice, third, now_s=NOW + 996)
    sealing = [Keys.build(twice, NOW + 1000 + s).active_kid(*slot) for s in range(HANDOVER_S + 3)]
    assert sealing == [first] * HANDOVER_S + [second] * 1 + [third] * 2


def test_without_a_predecessor_a_new_key_seals_at_once(keyring: Keyring, draws: Draws) -> None:
    slot = (Version.DYNAMIC, Suite.AES)
    stopped = disable(keyring, kid_of(keyring, Purpose.PAYLOAD, *slot), now_s=NOW + 1000)
    renewed = rotate(stopped, Purpose.PAYLOAD, *slot, now_s=NOW + 1001, random=draws)
    assert Keys.build(renewed, NOW + 1001).active_kid(*slot) == renewed.records[-1].kid
    assert renewed.records[-1].generation == 2


def test_a_retired_key_does_not_seal_again_because_its_successor_was_stopped(
    keyring: Keyring, draws: Draws
) -> None:
    slot = (Version.DYNAMIC, Suite.AES)
    rotated = rotate(keyring, Purpose.PAYLOAD, *slot, now_s=NOW + 1000, random=draws)
    stopped = disable(rotated, rotated.records[-1].kid, now_s=NOW + 1001)
    for now_s in (NOW + 1001, NOW + 1000 + HANDOVER_S, NOW + 5000):
        with pytest.raises(NoActiveKey, match="version 2, suite 1"):
            Keys.build(stopped, now_s).active_kid(*slot)
    # A key made much later does not wait for the retired one either.
    renewed = rotate(stopped, Purpose.PAYLOAD, *slot, now_s=NOW + 5000, random=draws)
    assert Keys.build(renewed, NOW + 5000).active_kid(*slot) == renewed.records[-1].kid


# --- the emergency stop and the end -------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "suite"), VERSIONS)
def test_a_disabled_key_opens_nothing_from_the_next_view_on(
    keyring: Keyring, draws: Draws, version: Version, suite: Suite
) -> None:
    before = Keys.build(keyring, NOW)
    kid = before.active_kid(version, suite)
    payload = sealed(before, kid, version)
    stopped = disable(keyring, kid, now_s=NOW)
    after = Keys.build(stopped, NOW)
    assert not opens(after, payload)
    assert len(after.payload_table) == 5
    with pytest.raises(NoActiveKey, match=f"version {version:d}, suite {suite:d}"):
        after.active_kid(version, suite)
    # Neither time, nor activation, nor a rotation brings it back.
    renewed = rotate(stopped, Purpose.PAYLOAD, version, suite, now_s=NOW, random=draws)
    for now_s in (0, NOW - 1, NOW + 10**6):
        assert not opens(Keys.build(renewed, now_s), payload)


def test_a_disabled_verify_only_key_stops_too_and_shows_when_its_use_ended(
    keyring: Keyring, draws: Draws
) -> None:
    rotated = rotate(keyring, Purpose.PAYLOAD, Version.STATIC, Suite.AES, now_s=NOW, random=draws)
    payload = sealed(Keys.build(keyring, NOW), 1, Version.STATIC)
    stopped = disable(rotated, 1, now_s=NOW + 60)
    assert opens(Keys.build(rotated, NOW + 60), payload)
    assert not opens(Keys.build(stopped, NOW + 60), payload)
    assert stopped.record(1).usable_until_s == NOW + 60
    # Disabling what has ended already does not make its history longer.
    ended_s = rotated.record(1).usable_until_s
    assert disable(rotated, 1, now_s=ended_s + 500).record(1).usable_until_s == ended_s


def test_a_verify_only_key_is_destroyed_only_past_its_last_second(keyring: Keyring, draws: Draws) -> None:
    rotated = rotate(keyring, Purpose.PAYLOAD, Version.VALUABLE, Suite.SM, now_s=NOW, random=draws)
    old = rotated.record(6)
    for now_s in (NOW, old.usable_until_s):
        with pytest.raises(KeyStateError, match="still opens codes until 20"):
            destroy(rotated, 6, now_s=now_s)
    wiped = destroy(rotated, 6, now_s=old.usable_until_s + 1).record(6)
    assert wiped.secret == wiped.signing_private == b""
    # What it signed can still be proven.
    assert wiped.signing_public == old.signing_public
    assert wiped.state is KeyState.DESTROYED


def test_destruction_leaves_no_trace_of_the_secrets_in_what_is_stored(keyring: Keyring, draws: Draws) -> None:
    record = keyring.record(5)
    gone = destroy(disable(keyring, 5, now_s=NOW), 5, now_s=NOW)
    stored = stored_json(gone)
    assert base64.b64encode(record.secret).decode() not in stored
    assert base64.b64encode(record.signing_private).decode() not in stored
    assert base64.b64encode(record.secret).decode() in stored_json(keyring)


# --- uid, serial and PIN keys -------------------------------------------------------------------------------------


def prfs_of(keys: Keys, purpose: Purpose) -> list[bytes]:
    """What each usable key of a purpose makes of one message, in order."""
    prfs = {
        Purpose.UID: keys.uid_prfs,
        Purpose.SERIAL: keys.serial_prfs,
        Purpose.PIN: tuple(keys.pin_prf(generation) for generation in keys.pin_generations),
    }[purpose]
    return [prf.one(b"message") for prf in prfs]


def expected(record: KeyRecord) -> bytes:
    hmac = codec.hmac_sha256 if record.suite is Suite.AES else codec.hmac_sm3
    return hmac(record.secret, b"message")


def maker(keys: Keys, purpose: Purpose) -> bytes:
    if purpose is Purpose.PIN:
        return keys.pin_prf(keys.active_pin_generation()).one(b"message")
    prf = keys.active_uid_prf() if purpose is Purpose.UID else keys.active_serial_prf()
    return prf.one(b"message")


@pytest.mark.parametrize("purpose", PRF_PURPOSES)
def test_two_generations_serve_after_a_rotation_the_new_one_first(
    keyring: Keyring, draws: Draws, purpose: Purpose
) -> None:
    old = keyring.record(kid_of(keyring, purpose))
    rotated = rotate(keyring, purpose, None, Suite.SM, now_s=NOW + 500, random=draws)
    new = rotated.records[-1]
    assert (new.generation, new.suite) == (2, Suite.SM)

    during = Keys.build(rotated, NOW + 500 + HANDOVER_S - 1)
    assert prfs_of(during, purpose) == [expected(old), expected(new)]
    assert maker(during, purpose) == expected(old)

    until_s = rotated.record(old.kid).usable_until_s
    for now_s in (NOW + 500 + HANDOVER_S, until_s):
        keys = Keys.build(rotated, now_s)
        assert prfs_of(keys, purpose) == [expected(new), expected(old)]
        assert maker(keys, purpose) == expected(new)
    assert prfs_of(Keys.build(rotated, until_s + 1), purpose) == [expected(new)]


@pytest.mark.parametrize("purpose", PRF_PURPOSES)
def test_a_third_generation_waits_until_the_first_is_not_needed_any_more(
    keyring: Keyring, draws: Draws, purpose: Purpose
) -> None:
    first = kid_of(keyring, purpose)
    rotated = rotate(keyring, purpose, None, Suite.AES, now_s=NOW, random=draws)
    until_s = rotated.record(first).usable_until_s
    pending = create(rotated, purpose, None, Suite.AES, now_s=NOW, random=draws, activate=False)
    for now_s in (NOW + 1, until_s):
        with pytest.raises(KeyStateError, match=f"key {first} .* is still needed until"):
            rotate(rotated, purpose, None, Suite.AES, now_s=now_s, random=draws)
        with pytest.raises(KeyStateError, match="still needed until"):
            activate(pending, pending.records[-1].kid, now_s=now_s)
    third = rotate(rotated, purpose, None, Suite.AES, now_s=until_s + 1, random=draws)
    assert len(prfs_of(Keys.build(third, until_s + 1), purpose)) == 2


@pytest.mark.parametrize("purpose", PRF_PURPOSES)
def test_after_an_emergency_stop_another_key_is_made_at_once(
    keyring: Keyring, draws: Draws, purpose: Purpose
) -> None:
    rotated = rotate(keyring, purpose, None, Suite.AES, now_s=NOW, random=draws)
    first, second = kid_of(keyring, purpose), rotated.records[-1].kid
    # The new one leaked: the first may stay, a third takes over.
    stopped = disable(rotated, second, now_s=NOW + 100)
    keys = Keys.build(stopped, NOW + 100)
    assert prfs_of(keys, purpose) == [expected(stopped.record(first))]
    with pytest.raises(NoActiveKey, match=f"no active {purpose} key"):
        maker(keys, purpose)
    third = rotate(stopped, purpose, None, Suite.AES, now_s=NOW + 101, random=draws)
    keys = Keys.build(third, NOW + 101)
    assert prfs_of(keys, purpose) == [expected(third.records[-1]), expected(third.record(first))]
    assert maker(keys, purpose) == expected(third.records[-1])


def test_without_any_key_each_purpose_says_what_is_missing() -> None:
    keys = Keys.build(Keyring(), NOW)
    assert (keys.uid_prfs, keys.serial_prfs, keys.pin_generations) == ((), (), ())
    for call, name in (
        (keys.active_uid_prf, "uid"),
        (keys.active_serial_prf, "serial"),
        (keys.active_pin_generation, "pin"),
    ):
        with pytest.raises(NoActiveKey, match=f"no active {name} key"):
            call()
    with pytest.raises(NoActiveKey, match="version 1"):
        keys.active_kid(Version.STATIC, Suite.AES)


@pytest.mark.parametrize("generation", [0, 2, -1, 256])
def test_an_unknown_pin_generation_is_named(keyring: Keyring, generation: int) -> None:
    with pytest.raises(NoActiveKey, match=f"generation {generation} "):
        Keys.build(keyring, NOW).pin_prf(generation)


# --- time ---------------------------------------------------------------------------------------------------------


def view_of(keyring: Keyring, now_s: int) -> tuple[object, ...]:
    """Everything that a Keys answers, comparable."""
    keys = Keys.build(keyring, now_s)
    return (
        {record.kid for record in keyring.records if record.kid in keys.payload_table},
        {slot: keys.active_kid(*slot) for slot in VERSIONS},
        [prfs_of(keys, purpose) for purpose in PRF_PURPOSES],
        [maker(keys, purpose) for purpose in PRF_PURPOSES],
    )


def test_nothing_changes_before_the_announced_time_and_something_does_at_it(
    keyring: Keyring, draws: Draws
) -> None:
    at = NOW + 1000
    for step, purpose in enumerate([Purpose.PIN, Purpose.UID, Purpose.SERIAL]):
        keyring = rotate(keyring, purpose, None, Suite.AES, now_s=at + step, random=draws)
    for step, (version, suite) in enumerate([*VERSIONS, *VERSIONS]):
        keyring = rotate(keyring, Purpose.PAYLOAD, version, suite, now_s=at + step, random=draws)
    now_s = at + len(VERSIONS) * 2
    changes = 0
    # One that was to hand over is stopped: its predecessor and its successor remain.
    keyring = disable(keyring, keyring.records[-7].kid, now_s=now_s)
    while (next_s := Keys.build(keyring, now_s).next_change_s) is not None:
        assert next_s > now_s
        assert view_of(keyring, next_s - 1) == view_of(keyring, now_s)
        assert view_of(keyring, next_s) != view_of(keyring, now_s)
        now_s = next_s
        changes += 1
        assert changes < 100
    # 14 retired keys end by themselves (some in the same second as others), and the handovers came before.
    assert changes > 15
    assert len(Keys.build(keyring, now_s).payload_table) == 6


def test_a_view_is_of_one_revision_and_one_time(keyring: Keyring) -> None:
    keys = Keys.build(keyring, NOW + 3)
    assert (keys.revision, keys.built_at_s) == (1, NOW + 3)


# --- at rest ------------------------------------------------------------------------------------------------------


def stored_json(keyring: Keyring) -> str:
    """What stands inside the wrap."""
    return unwrap(dump(keyring, UNLOCK, DEPLOYMENT, os.urandom), UNLOCK, DEPLOYMENT).decode()


def rewrapped(text: str) -> bytes:
    return wrap(text.encode(), UNLOCK, DEPLOYMENT, os.urandom)


def eventful(draws: Draws) -> Keyring:
    """A keyring with keys in every state."""
    keyring = rotate(
        initial(NOW, draws), Purpose.PAYLOAD, Version.VALUABLE, Suite.SM, now_s=NOW, random=draws
    )
    keyring = rotate(keyring, Purpose.PIN, None, Suite.SM, now_s=NOW, random=draws)
    keyring = create(keyring, Purpose.UID, None, Suite.AES, now_s=NOW, random=draws, activate=False)
    keyring = disable(keyring, 1, now_s=NOW)
    keyring = destroy(disable(keyring, 5, now_s=NOW), 5, now_s=NOW)
    assert {record.state for record in keyring.records} == set(KeyState)
    return keyring


def test_a_keyring_comes_back_whole(draws: Draws) -> None:
    keyring = eventful(draws)
    assert load(dump(keyring, UNLOCK, DEPLOYMENT, os.urandom), UNLOCK, DEPLOYMENT) == keyring
    assert load(dump(Keyring(), UNLOCK, DEPLOYMENT, os.urandom), UNLOCK, DEPLOYMENT) == Keyring()


def test_a_keyring_of_another_deployment_does_not_load(keyring: Keyring) -> None:
    with pytest.raises(KeyringLocked):
        load(dump(keyring, UNLOCK, DEPLOYMENT, os.urandom), UNLOCK, DEPLOYMENT + "x")


RECORD_CHANGES = {
    "kid that is taken": {"kid": 1},
    "kid 0": {"kid": 0},
    "kid past the next": {"kid": 9_999},
    "kid as text": {"kid": "3"},
    "kid as a fraction": {"kid": 3.0},
    "kid as truth": {"kid": True},
    "unknown purpose": {"purpose": "signing"},
    "purpose as number": {"purpose": 1},
    "purpose that has no version": {"purpose": "uid"},
    "no version": {"version": None},
    "version 0": {"version": 0},
    "version 4": {"version": 4},
    "version as truth": {"version": True},
    "suite 3": {"suite": 3},
    "suite as text": {"suite": "AES"},
    "unknown state": {"state": "retired"},
    "state in capitals": {"state": "ACTIVE"},
    "pending with an activation": {"state": "pending"},
    "verify-only without an end": {"state": "verify_only"},
    "active with an end": {"usable_until_s": NOW},
    "active without a beginning": {"activated_at_s": 0},
    "destroyed with its secret": {"state": "destroyed"},
    "negative time": {"created_at_s": -1},
    "generation 0": {"generation": 0},
    "generation as truth": {"generation": True},
    "secret cut short": {"secret": base64.b64encode(bytes(31)).decode()},
    "no secret": {"secret": ""},
    "secret that is no base64": {"secret": "!" * 44},
    "secret with a line end": {"secret": base64.b64encode(bytes(32)).decode() + "\n"},
    "secret with spare bits set": {"secret": "A" * 42 + "B="},
    "secret in capitals of other alphabets": {"secret": "\N{FULLWIDTH LATIN CAPITAL LETTER A}" * 44},
    "secret as list": {"secret": [0] * 32},
    "signing key of a version that does not sign": {"signing_private": base64.b64encode(bytes(32)).decode()},
    "public key of a version that does not sign": {"signing_public": base64.b64encode(bytes(32)).decode()},
    "another field": {"comment": ""},
    "field removed": {"retired_at_s": ...},
}


@pytest.mark.parametrize("change", RECORD_CHANGES.values(), ids=RECORD_CHANGES.keys())
def test_a_record_that_is_not_exactly_one_is_refused(keyring: Keyring, change: dict[str, object]) -> None:
    document = json.loads(stored_json(keyring))
    record = document["records"][2]
    record.update(change)
    document["records"][2] = {name: value for name, value in record.items() if value is not ...}
    with pytest.raises(SetupError, match="restore it from a backup"):
        load(rewrapped(json.dumps(document)), UNLOCK, DEPLOYMENT)


def documents(keyring: Keyring) -> Iterator[tuple[str, str]]:
    text = stored_json(keyring)
    document = json.loads(text)
    records = document["records"]
    swapped = [records[1], records[0], *records[2:]]
    twin = records[0] | {"kid": 10, "generation": 2}
    same_generation = records[0] | {"kid": 10, "state": "disabled"}
    yield "records out of order", json.dumps(document | {"records": swapped})
    yield "a record twice", json.dumps(document | {"records": [records[0], *records]})
    yield "two active keys in a slot", json.dumps(document | {"records": [*records, twin], "next_kid": 11})
    yield (
        "a generation twice",
        json.dumps(document | {"records": [*records, same_generation], "next_kid": 11}),
    )
    yield "next kid that is given", json.dumps(document | {"next_kid": 9})
    yield "next kid past the last", json.dumps(document | {"next_kid": 65_537})
    yield "negative revision", json.dumps(document | {"revision": -1})
    yield "revision as text", json.dumps(document | {"revision": "1"})
    yield "another field", json.dumps(document | {"extra": 1})
    yield "no records", json.dumps({name: value for name, value in document.items() if name != "records"})
    yield "records as object", json.dumps(document | {"records": {}})
    yield "record as list", json.dumps(document | {"records": [[1, 2]]})
    yield "field twice", text.replace('"next_kid":10', '"next_kid":10,"next_kid":10')
    yield "cut short", text[:-1]
    yield "grown", text + "}"
    yield "a list", "[" + text + "]"
    yield "nothing", ""
    yield "nested without end", "[" * 100_000
    yield "no text", "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")


def test_a_document_that_is_not_exactly_one_is_refused(keyring: Keyring) -> None:
    for name, text in documents(keyring):
        with pytest.raises(SetupError) as caught:
            load(rewrapped(text), UNLOCK, DEPLOYMENT)
        assert "restore it from a backup" in caught.value.message, name


@pytest.mark.parametrize("number", [0, 2, "1", True, 1.0, None])
def test_another_format_is_left_to_the_release_that_wrote_it(keyring: Keyring, number: object) -> None:
    document = json.loads(stored_json(keyring)) | {"format": number, "what later releases add": 1}
    with pytest.raises(SetupError, match="release that wrote it"):
        load(rewrapped(json.dumps(document)), UNLOCK, DEPLOYMENT)


# --- silence ------------------------------------------------------------------------------------------------------


def spellings(secret: bytes) -> list[str]:
    return [secret.hex(), secret.hex().upper(), repr(secret)[2:-1], base64.b64encode(secret).decode()]


def test_no_secret_shows_in_any_repr_or_text(draws: Draws) -> None:
    keyring = eventful(draws)
    keys = Keys.build(keyring, NOW)
    shown = [
        *(f"{thing!r} {thing!s}" for thing in (keyring, keys, keys.payload_table, keys.uid_prfs)),
        *(f"{record!r} {record!s} {record}" for record in keyring.records),
        *(repr(row) for row in list_keys(keyring, NOW)),
    ]
    for record in keyring.records:
        for secret in filter(None, (record.secret, record.signing_private)):
            for spelling in spellings(secret):
                assert not any(spelling in text for text in shown)
    # The search does find what is there.
    public = keyring.record(11 - 1).signing_public or keyring.record(6).signing_public
    assert any(repr(public)[2:-1] in text for text in shown)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        # The cause, and what was being handled: error trackers walk to both.
        error = error.__cause__ or error.__context__


def test_no_secret_shows_in_any_error_or_what_led_to_it(draws: Draws) -> None:
    keyring = eventful(draws)
    text = stored_json(keyring)
    attempts: list[Callable[[], object]] = [
        lambda: load(rewrapped(text[:-1]), UNLOCK, DEPLOYMENT),
        lambda: load(rewrapped(text.replace('"revision"', '"revision":1,"revision"')), UNLOCK, DEPLOYMENT),
        lambda: load(rewrapped(text.replace('=","sign', '","sign')), UNLOCK, DEPLOYMENT),
        lambda: load(rewrapped(text.replace('"generation":1', '"generation":0')), UNLOCK, DEPLOYMENT),
        lambda: load(rewrapped(text.replace('"pin"', '"pen"')), UNLOCK, DEPLOYMENT),
        lambda: load(dump(keyring, UNLOCK, "other", draws), UNLOCK, DEPLOYMENT),
        lambda: replace(keyring.record(2), secret=keyring.record(2).secret[:-1]),
        lambda: replace(keyring, next_kid=1),
        lambda: activate(keyring, 2, now_s=NOW),
        lambda: destroy(keyring, 2, now_s=NOW),
        lambda: destroy(keyring, 6, now_s=NOW),
        lambda: disable(keyring, 1, now_s=NOW),
        lambda: rotate(keyring, Purpose.PIN, None, Suite.AES, now_s=NOW, random=draws),
        lambda: keyring.record(77),
        lambda: rotate(
            keyring, Purpose.UID, None, Suite.AES, now_s=NOW, random=lambda size: keyring.record(2).secret
        ),
    ]
    secrets = [
        secret
        for record in keyring.records
        for secret in (record.secret, record.secret[:-1], record.signing_private)
        if secret
    ]
    for attempt in attempts:
        with pytest.raises(PickgateError) as caught:
            attempt()
        for error in chain(caught.value):
            shown = f"{error!r} {error!s} {vars(error)!r} {error.args!r} {getattr(error, 'doc', '')}"
            for secret in secrets:
                for spelling in spellings(secret):
                    assert spelling not in shown


def test_the_list_of_keys_tells_everything_but_key_material(draws: Draws) -> None:
    keyring = eventful(draws)
    rows = list_keys(keyring, NOW)
    assert [row.kid for row in rows] == [record.kid for record in keyring.records]
    material = {"secret", "signing_private", "signing_public"}
    for row, record in zip(rows, keyring.records, strict=True):
        for name in KeyRecord.__slots__:
            if name in material:
                assert not hasattr(row, name)
            else:
                assert getattr(row, name) == getattr(record, name)
        assert row.usable == (record.state in (KeyState.ACTIVE, KeyState.VERIFY_ONLY))
    assert not any(row.usable for row in list_keys(keyring, NOW + 2 * TTL_S_MAX) if row.kid == 6)


# --- any life -----------------------------------------------------------------------------------------------------

OPERATIONS = st.one_of(
    st.tuples(st.just("rotate"), st.sampled_from(Purpose), st.sampled_from(Version), st.sampled_from(Suite)),
    st.tuples(st.just("create"), st.sampled_from(Purpose), st.sampled_from(Version), st.sampled_from(Suite)),
    st.tuples(st.sampled_from(["activate", "disable", "destroy"]), st.integers(1, 20)),
    st.tuples(st.just("wait"), st.sampled_from([1, HANDOVER_S, 90_000, TTL_S_MAX + 100, TTL_S_MAX * 2])),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(OPERATIONS, max_size=25))
def test_any_sequence_of_operations_leaves_a_sound_keyring(operations: list[tuple[object, ...]]) -> None:
    draws, now_s = Draws(), NOW
    keyring = initial(now_s, draws)
    for operation in operations:
        before = keyring
        try:
            match operation:
                case ("wait", int(seconds)):
                    now_s += seconds
                    continue
                case (
                    "rotate" | "create" as name,
                    Purpose() as purpose,
                    Version() as version,
                    Suite() as suite,
                ):
                    of_purpose = version if purpose is Purpose.PAYLOAD else None
                    if name == "rotate":
                        keyring = rotate(keyring, purpose, of_purpose, suite, now_s=now_s, random=draws)
                    else:
                        keyring = create(
                            keyring, purpose, of_purpose, suite, now_s=now_s, random=draws, activate=False
                        )
                case (str(name), int(kid)):
                    change = {"activate": activate, "disable": disable, "destroy": destroy}[name]
                    keyring = change(keyring, kid, now_s=now_s)
        except (KeyStateError, NotFound):
            assert keyring is before
            continue

        assert keyring.revision == before.revision + 1
        assert [record.kid for record in keyring.records] == list(range(1, keyring.next_kid))
        for old in before.records:
            new = keyring.record(old.kid)
            assert new.state is old.state or (old.state, new.state) in ALLOWED
            # What a key is never changes, only how it stands.
            for name in ("purpose", "version", "suite", "generation", "created_at_s", "signing_public"):
                assert getattr(new, name) == getattr(old, name)
            assert new.secret == (b"" if new.state is KeyState.DESTROYED else old.secret)
        keys = Keys.build(keyring, now_s)
        for record in keyring.records:
            usable = record.purpose is Purpose.PAYLOAD and record.usable(now_s)
            assert (record.kid in keys.payload_table) == usable
        assert max(len(keys.uid_prfs), len(keys.serial_prfs), len(keys.pin_generations)) <= 2
        for version, suite in VERSIONS:
            active = keyring.active((Purpose.PAYLOAD, version, suite))
            if active is None:
                with pytest.raises(NoActiveKey):
                    keys.active_kid(version, suite)
            else:
                assert keyring.record(keys.active_kid(version, suite)).slot == active.slot
    assert load(dump(keyring, UNLOCK, DEPLOYMENT, draws), UNLOCK, DEPLOYMENT) == keyring
