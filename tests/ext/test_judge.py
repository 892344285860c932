"""Attempts judged: how long payloads are taken, where terminals are, and the rows that say so."""

from __future__ import annotations

import random
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ext.rows
import ext.rows_reference
from ext.claims import CLAIMS, Version
from ext.standing import STANDING

NOW_S: Final = 1_800_000_000
NEVER_S: Final = 2**32 - 1
REQUIRED, UNRELIABLE, OUT = 71, 72, 73
NEVER, OPTIONAL, ALWAYS = range(3)
UNKNOWN: Final = 255

FIELDS: Final = {
    "uid": 8,
    "request": 12,
    "body": 8,
    "mall": 4,
    "store": 4,
    "terminal": 4,
    "version": 1,
    "stale": 1,
    "generation_1": 1,
    "generation_2": 1,
    "place": 1,
    "closed": 1,
    "window": 1,
    "bucket": 1,
    "dry": 1,
    "actor_len": 2,
}
GAP: Final = 3
"""Bytes of the row before the first field and behind each, which nobody writes."""
AT: dict[str, int] = {}
WIDTH = GAP
for _name, _size in FIELDS.items():
    AT[_name] = WIDTH
    WIDTH += _size + GAP
BLANK: Final = bytes([0xEE]) * WIDTH


@pytest.fixture(params=[ext.rows, ext.rows_reference], ids=["native", "reference"])
def kernel(request: pytest.FixtureRequest) -> Any:
    return request.param


def judge(kernel: Any, **other: Any) -> Any:
    settings: dict[str, Any] = {
        "skew_s": 5,
        "static_version": Version.STATIC,
        "accuracy_m_max": 200.0,
        "allowance_m_max": 100.0,
        "location_required": REQUIRED,
        "location_unreliable": UNRELIABLE,
        "out_of_range": OUT,
    }
    return kernel.Judge(BLANK, AT, **{**settings, **other})


def code(**fields: Any) -> Any:
    made = np.zeros(1, CLAIMS)
    for name, value in {"version": Version.DYNAMIC, "stamp": NOW_S, "exp": NEVER_S, **fields}.items():
        made[name] = value
    return made


def standing(**fields: Any) -> Any:
    made = np.zeros(1, STANDING)
    for name, value in {"payload_life_s": 60, **fields}.items():
        made[name] = value
    return made


def rows(kernel: Any, **columns: Any) -> Any:
    """The rows of a batch, one attempt where nothing else is said."""
    given: dict[str, Any] = {
        "claims": code(),
        "table": standing(),
        "own": [0],
        "codes": [0],
        "terminals": np.ones((3, 1), np.uint32),
        "places": np.zeros((4, 1)),
        "requests": bytes(12),
        "bodies": bytes(8),
        "actor_chars": np.zeros(1, np.int64),
        "generations": (0, 0),
        "now_s": NOW_S,
    }
    return judge(kernel).rows(*{**given, **columns}.values())


def field(row: bytes, name: str) -> int:
    return int.from_bytes(row[AT[name] : AT[name] + FIELDS[name]])


# --- freshness --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("age_s", "stale"),
    [(-6, True), (-5, False), (0, False), (60, False), (65, False), (66, True), (10_000, True)],
)
def test_life_and_skew_of_a_stamp(kernel: Any, age_s: int, stale: bool) -> None:
    assert field(rows(kernel, claims=code(stamp=NOW_S - age_s)), "stale") == stale


@pytest.mark.parametrize("version", Version)
@pytest.mark.parametrize(("left_s", "stale"), [(1, False), (0, True), (-1, True)])
def test_a_payload_s_own_expiry(kernel: Any, left_s: int, stale: bool, version: Version) -> None:
    assert field(rows(kernel, claims=code(version=version, exp=NOW_S + left_s)), "stale") == stale


def test_a_static_payload_has_no_stamp(kernel: Any) -> None:
    assert not field(rows(kernel, claims=code(stamp=0, version=Version.STATIC)), "stale")
    assert field(rows(kernel, claims=code(stamp=0, version=Version.DYNAMIC)), "stale")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 2000), st.integers(10, 600))
def test_taken_for_its_life_and_the_skew_on_both_sides(stamp_s: int, life_s: int) -> None:
    one, life = code(stamp=stamp_s), standing(payload_life_s=life_s)
    taken = [
        now_s
        for now_s in range(max(0, stamp_s - 10), stamp_s + life_s + 10)
        if not field(rows(ext.rows, claims=one, table=life, now_s=now_s), "stale")
    ]
    assert taken == list(range(max(0, stamp_s - 5), stamp_s + life_s + 6))


def test_the_life_is_that_of_the_payload_s_store_and_the_rest_that_of_the_terminal_s(kernel: Any) -> None:
    table = np.concatenate([standing(payload_life_s=60, closed=9), standing(payload_life_s=600, window=8)])
    table = table.astype(STANDING)
    old = code(stamp=NOW_S - 100)
    there = rows(kernel, claims=old, table=table, own=[0], codes=[1])
    assert (field(there, "stale"), field(there, "closed"), field(there, "window")) == (0, 9, 0)
    here = rows(kernel, claims=old, table=table, own=[1], codes=[0])
    assert (field(here, "stale"), field(here, "closed"), field(here, "window")) == (1, 0, 8)


# --- place ------------------------------------------------------------------------------------------------------------
HERE: Final = (31.2304, 121.4737)
METRE_DEG: Final = 1 / 110_900


@pytest.mark.parametrize(
    ("rule", "metres", "accuracy_m", "finding", "bucket"),
    [
        (NEVER, 5000, 10, 0, UNKNOWN),
        (NEVER, None, 0, 0, UNKNOWN),
        (OPTIONAL, None, 0, 0, UNKNOWN),
        (ALWAYS, None, 0, REQUIRED, UNKNOWN),
        (OPTIONAL, 10, 0, 0, 0),
        (ALWAYS, 99, 0, 0, 1),
        (ALWAYS, 101, 0, OUT, 2),
        (ALWAYS, 101, 5, 0, 2),
        (ALWAYS, 199, 100, 0, 2),
        (ALWAYS, 203, 150, OUT, 3),
        (ALWAYS, 10, 200, 0, 0),
        (ALWAYS, 10, 200.5, UNRELIABLE, UNKNOWN),
        (ALWAYS, 700, 0, OUT, 4),
        (ALWAYS, 70_000, 0, OUT, 9),
    ],
)
def test_what_a_position_says(
    kernel: Any, rule: int, metres: float | None, accuracy_m: float, finding: int, bucket: int
) -> None:
    """A radius of 100 m, north of the store; datum 2, whose coordinates lie elsewhere than those of the others."""
    at = standing(rule=rule, radius_m=100.0, positions=[[(0, 0), (1, 1), HERE, (3, 3)]])
    stated = (HERE[0] + (metres or 0) * METRE_DEG, HERE[1], accuracy_m, 0 if metres is None else 2)
    [row] = [rows(kernel, table=at, places=np.array([stated], np.float64).T)]
    assert (field(row, "place"), field(row, "bucket")) == (finding, bucket)


def test_a_store_that_is_nowhere_is_far_from_everything() -> None:
    at = standing(rule=ALWAYS, radius_m=100.0, positions=np.nan)
    row = rows(ext.rows, table=at, places=np.array([[*HERE, 0, 1]], np.float64).T)
    assert (field(row, "place"), field(row, "bucket")) == (OUT, UNKNOWN)


# --- rows -------------------------------------------------------------------------------------------------------------
def test_each_field_is_in_its_place_and_nothing_else_is_touched(kernel: Any) -> None:
    made = rows(
        kernel,
        claims=code(uid=np.void(b"12345678"), version=3),
        terminals=np.array([[1], [0x01020304], [2**32 - 1]], np.uint32),
        requests=b"abcdefghijkl",
        bodies=b"ABCDEFGH",
        actor_chars=np.array([0x0102], np.int64),
        generations=(7, 255),
    )
    values = {name: made[AT[name] : AT[name] + size] for name, size in FIELDS.items()}
    assert values == {
        "uid": b"12345678",
        "request": b"abcdefghijkl",
        "body": b"ABCDEFGH",
        "mall": b"\0\0\0\1",
        "store": b"\1\2\3\4",
        "terminal": b"\xff\xff\xff\xff",
        "version": b"\3",
        "stale": b"\0",
        "generation_1": b"\7",
        "generation_2": b"\xff",
        "place": b"\0",
        "closed": b"\0",
        "window": b"\0",
        "bucket": b"\xff",
        "dry": BLANK[:1],
        "actor_len": b"\1\2",
    }
    gaps = bytearray(made)
    for name, size in FIELDS.items():
        gaps[AT[name] : AT[name] + size] = BLANK[:size]
    assert gaps == BLANK


def test_to_inspect_has_no_request(kernel: Any) -> None:
    made = rows(kernel, generations=None, requests=b"", bodies=b"")
    assert field(made, "dry") == 1
    for name in ("request", "body", "generation_1", "generation_2"):
        assert made[AT[name] : AT[name] + FIELDS[name]] == BLANK[: FIELDS[name]]


def test_no_attempts(kernel: Any) -> None:
    nothing = {
        "claims": np.zeros(0, CLAIMS),
        "own": [],
        "codes": [],
        "terminals": np.zeros((3, 0), np.uint32),
        "places": np.zeros((4, 0)),
        "requests": b"",
        "bodies": b"",
        "actor_chars": np.zeros(0, np.int64),
    }
    assert rows(kernel, **nothing) == b""
    assert rows(kernel, **nothing, table=np.zeros(0, STANDING)) == b""


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"own": [1]}, "expected rows of 1 standings"),
        ({"own": [-1]}, "expected rows of 1 standings"),
        ({"codes": [1]}, "expected rows of 1 standings"),
        ({"table": np.zeros(0, STANDING)}, "expected rows of 0 standings"),
        ({"own": []}, "as many"),
        ({"codes": [0, 0]}, "as many"),
        ({"terminals": np.ones((3, 2), np.uint32)}, "as many"),
        ({"terminals": np.ones((2, 1), np.uint32)}, "as many"),
        ({"places": np.zeros((4, 2))}, "as many"),
        ({"places": np.zeros((3, 1))}, "as many"),
        ({"requests": bytes(11)}, "as many"),
        ({"bodies": bytes(9)}, "as many"),
        ({"actor_chars": np.zeros(2, np.int64)}, "as many"),
        ({"places": np.array([[0.0], [0.0], [0.0], [4.0]])}, "datum 4"),
        ({"places": np.array([[0.0], [0.0], [0.0], [-1.0]])}, "datum -1"),
        ({"places": np.array([[0.0], [0.0], [0.0], [np.nan]])}, "datum nan"),
    ],
)
def test_columns_that_do_not_fit_are_refused(kernel: Any, columns: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rows(kernel, **columns)


@pytest.mark.parametrize("columns", [{"claims": np.zeros(1, STANDING)}, {"table": np.zeros(1, CLAIMS)}])
def test_rows_of_another_kind_are_refused(kernel: Any, columns: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="expected CLAIMS and STANDING"):
        rows(kernel, **columns)


@pytest.mark.parametrize("name", FIELDS)
def test_a_place_outside_the_row_is_refused(kernel: Any, name: str) -> None:
    for place in (-1, WIDTH - FIELDS[name] + 1):
        with pytest.raises(ValueError, match=name):
            kernel.Judge(
                BLANK,
                {**AT, name: place},
                skew_s=5,
                static_version=1,
                accuracy_m_max=1.0,
                allowance_m_max=1.0,
                location_required=1,
                location_unreliable=2,
                out_of_range=3,
            )


def test_native_and_twin_agree() -> None:
    draw = random.Random(7)
    count, stores = 2000, 40
    table = np.zeros(stores, STANDING)
    for row in table:
        row["rule"], row["radius_m"] = draw.randrange(3), draw.choice([50.0, 300.0, 5000.0])
        row["closed"], row["window"] = draw.choice([0, 9]), draw.choice([0, 8])
        row["payload_life_s"] = draw.randint(30, 600)
        row["positions"] = [(draw.uniform(-89, 89), draw.uniform(-180, 180)) for _ in range(4)]
    claims = np.zeros(count, CLAIMS)
    own = [draw.randrange(stores) for _ in range(count)]
    places = np.zeros((4, count))
    for n in range(count):
        claims[n]["uid"] = np.void(draw.randbytes(8))
        claims[n]["version"] = draw.choice(list(Version))
        claims[n]["stamp"] = NOW_S + draw.randint(-700, 20)
        claims[n]["exp"] = draw.choice([NEVER_S, NOW_S, NOW_S + 1])
        datum = draw.randrange(4)
        latitude, longitude = table[own[n]]["positions"][datum].tolist()
        places[:, n] = (
            latitude + draw.gauss(0, 0.01),
            longitude + draw.gauss(0, 0.01),
            draw.choice([0.0, 30.0, 150.0, 250.0]),
            datum,
        )
    places[0], places[1] = np.clip(places[0], -90, 90), np.clip(places[1], -180, 180)
    columns = {
        "claims": claims,
        "table": table,
        "own": own,
        "codes": [draw.randrange(stores) for _ in range(count)],
        "terminals": np.array([[draw.getrandbits(32) for _ in range(count)] for _ in range(3)], np.uint32),
        "places": places,
        "requests": draw.randbytes(12 * count),
        "bodies": draw.randbytes(8 * count),
        "actor_chars": np.array([draw.randrange(200) for _ in range(count)], np.int64),
    }
    for generations in ((1, 2), None):
        native = rows(ext.rows, **columns, generations=generations)
        assert native == rows(ext.rows_reference, **columns, generations=generations)
    findings = {native[n * WIDTH + AT["place"]] for n in range(count)}
    assert findings == {0, REQUIRED, UNRELIABLE, OUT}
