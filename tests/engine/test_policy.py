"""The rules that need no state: freshness at its edges, places and their accuracy, datums."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import limits
from engine.claims import Position
from engine.policies import LocationRule
from engine.policy import UNKNOWN_DISTANCE, is_stale, judge_places
from engine.stores import Store
from engine.verdict import RedeemVerdict
from ext.place import Datum, convert
from tests.engine.shop import LATITUDE_DEG, LONGITUDE_DEG, north, store

NOW_S = 1_800_000_000
NEVER_S = 2**32 - 1


def judge(of: Store | None, at: Position | None, rule: LocationRule = "optional") -> RedeemVerdict | None:
    [(finding, _)] = judge_places([of], [at], [rule])
    return finding


# --- freshness ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("age_s", "stale"),
    [(-6, True), (-5, False), (0, False), (60, False), (65, False), (66, True), (10_000, True)],
)
def test_life_and_skew_of_a_stamp(age_s: int, stale: bool) -> None:
    assert is_stale(NOW_S - age_s, NEVER_S, NOW_S, life_s=60, static=False) is stale


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize(("left_s", "stale"), [(1, False), (0, True), (-1, True)])
def test_a_payload_s_own_expiry(left_s: int, stale: bool, static: bool) -> None:
    assert is_stale(NOW_S, NOW_S + left_s, NOW_S, life_s=60, static=static) is stale


def test_a_static_payload_has_no_stamp() -> None:
    assert not is_stale(0, NEVER_S, NOW_S, life_s=60, static=True)
    assert is_stale(0, NEVER_S, NOW_S, life_s=60, static=False)


@given(st.integers(0, 2**32 - 1), st.integers(limits.PAYLOAD_LIFE_S_MIN, limits.PAYLOAD_LIFE_S_MAX))
def test_taken_for_its_life_and_the_skew_on_both_sides(stamp_s: int, life_s: int) -> None:
    taken = [
        now_s
        for now_s in range(max(0, stamp_s - 10), stamp_s + life_s + 10)
        if not is_stale(stamp_s, 2**33, now_s, life_s=life_s, static=False)
    ]
    assert taken == list(range(max(0, stamp_s - 5), stamp_s + life_s + 6))


# --- distance -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("metres", "accuracy_m", "verdict"),
    [
        (0, 0, None),
        (499.9, 0, None),
        (500.1, 0, RedeemVerdict.OUT_OF_RANGE),
        (549.9, 50, None),
        (550.1, 50, RedeemVerdict.OUT_OF_RANGE),
        (599.9, 100, None),
        (600.1, 100, RedeemVerdict.OUT_OF_RANGE),
        # Past 100 m a worse accuracy widens nothing more, and past 200 m it decides nothing.
        (599.9, 150, None),
        (600.1, 150, RedeemVerdict.OUT_OF_RANGE),
        (599.9, 200, None),
        (600.1, 200, RedeemVerdict.OUT_OF_RANGE),
        (0, 200.1, RedeemVerdict.LOCATION_UNRELIABLE),
        (5000, 200.1, RedeemVerdict.LOCATION_UNRELIABLE),
        (5000, 0, RedeemVerdict.OUT_OF_RANGE),
    ],
)
def test_radius_and_accuracy(metres: float, accuracy_m: float, verdict: RedeemVerdict | None) -> None:
    assert judge(store(1), north(metres, accuracy_m)) is verdict


@pytest.mark.parametrize("radius_m", [1, 50, 100_000])
def test_radius_of_the_store(radius_m: int) -> None:
    here = store(1, radius_m=radius_m)
    # The kernel is good to 0.5 % up to 100 km.
    assert judge(here, north(radius_m * 0.994)) is None
    assert judge(here, north(radius_m * 1.006)) is RedeemVerdict.OUT_OF_RANGE


@pytest.mark.parametrize("stated", Datum)
@pytest.mark.parametrize("kept", Datum)
def test_datums_are_compared_in_the_caller_s(stated: Datum, kept: Datum) -> None:
    """The same place, kept by the store in one datum and stated by the terminal in another."""
    latitude_deg, longitude_deg = convert(LATITUDE_DEG, LONGITUDE_DEG, Datum.WGS84, kept)
    here = store(1, latitude_deg=latitude_deg, longitude_deg=longitude_deg, datum=kept, radius_m=20)
    assert (
        judge(here, Position(*convert(LATITUDE_DEG, LONGITUDE_DEG, Datum.WGS84, stated), 0, stated)) is None
    )


def test_gcj_02_sent_as_wgs_84_is_out_of_range() -> None:
    """The usual mistake: a map's coordinates with the wrong label are some 500 m off in Shanghai."""
    mislabelled = Position(*convert(LATITUDE_DEG, LONGITUDE_DEG, Datum.WGS84, Datum.GCJ02), 0, Datum.WGS84)
    assert judge(store(1, radius_m=300), mislabelled) is RedeemVerdict.OUT_OF_RANGE
    assert judge(store(1, radius_m=1000), mislabelled) is None


@pytest.mark.parametrize(
    ("rule", "position", "verdict"),
    [
        ("required", None, RedeemVerdict.LOCATION_REQUIRED),
        ("required", north(0), None),
        ("required", north(5000), RedeemVerdict.OUT_OF_RANGE),
        ("optional", None, None),
        ("optional", north(5000), RedeemVerdict.OUT_OF_RANGE),
        ("optional", north(0, 500), RedeemVerdict.LOCATION_UNRELIABLE),
        ("off", None, None),
        ("off", north(5000), None),
        ("off", north(0, 500), None),
    ],
)
def test_what_is_asked_of_a_caller(
    rule: LocationRule, position: Position | None, verdict: RedeemVerdict | None
) -> None:
    assert judge(store(1), position, rule) is verdict


def test_the_rule_is_the_one_given_and_not_the_store_s_own() -> None:
    """A store's rule is about its terminals; the same store is also compared with customers' phones."""
    assert judge(store(1, terminal_location="required"), None, "off") is None
    assert judge(store(1, terminal_location="off"), None, "required") is RedeemVerdict.LOCATION_REQUIRED


def test_an_unknown_store_finds_nothing() -> None:
    """It can't be a code's store either, so the rule of the store answers."""
    places = judge_places([None, None], [None, north(0)], ["required", "required"])
    assert places == [(None, UNKNOWN_DISTANCE)] * 2


def test_a_batch_keeps_its_order() -> None:
    here, strict, off = store(1), store(2), store(3)
    findings = judge_places(
        [here, strict, None, off, here, here],
        [north(5000), None, north(0), north(9), north(0), north(0, 999)],
        ["optional", "required", "optional", "off", "optional", "optional"],
    )
    assert [finding for finding, _ in findings] == [
        RedeemVerdict.OUT_OF_RANGE,
        RedeemVerdict.LOCATION_REQUIRED,
        None,
        None,
        None,
        RedeemVerdict.LOCATION_UNRELIABLE,
    ]
    buckets = [bucket for _, bucket in findings]
    assert buckets[1:4] == [UNKNOWN_DISTANCE] * 3
    assert buckets[0] > buckets[4] != UNKNOWN_DISTANCE
    assert judge_places([], [], []) == []


def test_only_a_bucket_of_the_distance_is_kept() -> None:
    """Coordinates are sensitive personal data: what remains can't tell one place from another nearby."""
    [(_, near)], [(_, nearby)] = (
        judge_places([store(1)], [north(metres)], ["optional"]) for metres in (11, 12)
    )
    assert near == nearby
    assert 0 <= near < UNKNOWN_DISTANCE <= 255
