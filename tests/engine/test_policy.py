"""The rules that need no state: freshness at its edges, places and their accuracy, datums."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.attempts import JUDGE
from engine.claims import Position
from engine.policies import LocationRule
from engine.policy import RULES, UNKNOWN_DISTANCE, judge_places
from engine.state import layouts
from engine.stores import Store
from engine.verdict import RedeemVerdict
from ext.claims import CLAIMS
from ext.place import Datum, convert
from ext.standing import STANDING
from tests.engine.shop import LATITUDE_DEG, LONGITUDE_DEG, north, store


def judge(of: Store | None, at: Position | None, rule: LocationRule = "optional") -> RedeemVerdict | None:
    [(finding, _)] = judge_places([of], [at], [rule])
    return finding


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


def judged(of: Store | None, at: Position | None, rule: LocationRule) -> tuple[int, int]:
    """What the rows of an attempt say of its place, and the bucket."""
    standing = np.zeros(1, STANDING)
    if of is not None:
        standing["rule"], standing["radius_m"] = RULES[rule], of.radius_m
        standing["positions"] = [[(0.0, 0.0), *(of.positions[datum] for datum in Datum)]]
    stated = (at.latitude_deg, at.longitude_deg, at.accuracy_m, at.datum) if at else (0.0, 0.0, 0.0, 0)
    rows = JUDGE.rows(
        np.zeros(1, CLAIMS),
        standing,
        [0],
        [0],
        np.ones((3, 1), np.uint32),
        np.array([stated], np.float64).T,
        b"",
        b"",
        np.zeros(1, np.int64),
        None,
        0,
    )
    return rows[layouts.REDEEM_ITEM.at("place")], rows[layouts.REDEEM_ITEM.at("bucket")]


@given(
    st.sampled_from(["off", "optional", "required"]),
    st.none() | st.integers(10, 5_000),
    st.none()
    | st.tuples(
        st.floats(-2000, 2000) | st.floats(-60_000, 60_000),
        st.sampled_from([0.0, 5.0, 99.0, 100.0, 200.0, 200.5]),
        st.sampled_from(list(Datum)),
    ),
)
def test_attempts_and_values_are_judged_alike(
    rule: LocationRule, radius_m: int | None, stated: tuple[float, float, Datum] | None
) -> None:
    of = None if radius_m is None else replace(store(1), radius_m=radius_m)
    at = None
    if stated is not None:
        metres, accuracy_m, datum = stated
        at = replace(north(metres, accuracy_m), datum=datum)
    [(finding, bucket)] = judge_places([of], [at], [rule])
    assert judged(of, at, rule) == (finding.number if finding else 0, bucket)
