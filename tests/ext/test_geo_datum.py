"""Conversions between WGS-84, GCJ-02 and BD-09, of the kernel and of its twin."""

import itertools
import math
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest

from ext import geo as kernel
from ext import geo_reference as reference
from ext.datum import Datum

Column = npt.NDArray[np.float64]

LAT_MIN, LAT_MAX = 0.8293, 55.8271
LON_MIN, LON_MAX = 72.004, 137.8347
PAIRS = list(itertools.permutations(Datum, 2))


@pytest.fixture(params=[kernel, reference], ids=["kernel", "reference"])
def geo(request: pytest.FixtureRequest) -> ModuleType:
    module = request.param
    assert isinstance(module, ModuleType)
    return module


def places_in_china() -> tuple[Column, Column]:
    """Return places all over the box, crowded at its edges, on the edges themselves, in the corners."""
    random = np.random.default_rng(84)
    lat = random.uniform(LAT_MIN, LAT_MAX, 60_000)
    lon = random.uniform(LON_MIN, LON_MAX, 60_000)
    # A strip of about 1 km inside each edge, where the shift can carry a place out of the box.
    lat[:5_000] = LAT_MIN + random.uniform(0.0, 0.01, 5_000)
    lat[5_000:10_000] = LAT_MAX - random.uniform(0.0, 0.01, 5_000)
    lon[10_000:15_000] = LON_MIN + random.uniform(0.0, 0.015, 5_000)
    lon[15_000:20_000] = LON_MAX - random.uniform(0.0, 0.015, 5_000)
    lat[20_000:21_000], lat[21_000:22_000] = LAT_MIN, LAT_MAX
    lon[22_000:23_000], lon[23_000:24_000] = LON_MIN, LON_MAX
    corners = [(y, x) for y in (LAT_MIN, LAT_MAX) for x in (LON_MIN, LON_MAX)]
    lat[24_000:24_004], lon[24_000:24_004] = zip(*corners, strict=True)
    # Where the roots of the formula have their vertical tangent.
    lon[25_000:26_000] = 105.0 + random.uniform(-1e-7, 1e-7, 1_000)
    return lat.clip(LAT_MIN, LAT_MAX), lon.clip(LON_MIN, LON_MAX)


def places_abroad(margin: float) -> tuple[Column, Column]:
    random = np.random.default_rng(2)
    lat = random.uniform(-90.0, 90.0, 40_000)
    lon = random.uniform(-180.0, 180.0, 40_000)
    abroad = (lat < LAT_MIN - margin) | (lat > LAT_MAX + margin)
    abroad |= (lon < LON_MIN - margin) | (lon > LON_MAX + margin)
    corners = np.array(list(itertools.product((-90.0, 0.0, 90.0), (-180.0, 0.0, 180.0))))
    return np.append(lat[abroad], corners[:, 0]), np.append(lon[abroad], corners[:, 1])


@pytest.mark.parametrize(
    ("wgs", "gcj"),
    [
        # The test pairs that the implementations of the GCJ-02 formula share (eviltransform: Shanghai, Shenzhen, Beijing).
        ((31.1774276, 121.5272106), (31.17530398364597, 121.531541859215)),
        ((22.543847, 113.912316), (22.540796131694766, 113.9171764808363)),
        ((39.911954, 116.377817), (39.91334545536069, 116.38404722455657)),
    ],
)
def test_published_gcj02_pairs(geo: ModuleType, wgs: tuple[float, float], gcj: tuple[float, float]) -> None:
    assert geo.convert(*wgs, Datum.WGS84, Datum.GCJ02) == pytest.approx(gcj, abs=1e-9)
    assert geo.convert(*gcj, Datum.GCJ02, Datum.WGS84) == pytest.approx(wgs, abs=1e-9)


def test_one_place_on_four_public_maps(geo: ModuleType) -> None:
    # One point in Shanghai as Google Earth, Google Maps and Baidu Maps gave it (tests of the R package pjutils).
    wgs, gcj, bd = (
        (31.16014354, 121.42958967),
        (31.158266019, 121.4342191628),
        (31.1646093426, 121.4406138425),
    )
    metre = 1e-5
    for (source, given), (target, expected) in itertools.permutations(
        [(Datum.WGS84, wgs), (Datum.GCJ02, gcj), (Datum.BD09, bd)], 2
    ):
        assert geo.convert(*given, source, target) == pytest.approx(expected, abs=metre)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_there_and_back_over_china(geo: ModuleType, source: Datum, target: Datum) -> None:
    lat, lon = places_in_china()
    # Real positions in the source datum: those that some place in China has.
    lat, lon = geo.convert_batch(lat, lon, Datum.WGS84, source)
    there = geo.convert_batch(lat, lon, source, target)
    back = geo.convert_batch(*there, target, source)
    # Promised is a metre; found is below a micrometre.
    assert geo.distance_batch(lat, lon, *back).max() < 0.001
    moved_m = geo.distance_batch(lat, lon, *there)
    assert np.median(moved_m) > 100.0


def test_the_way_through_a_third_datum_is_the_direct_way(geo: ModuleType) -> None:
    places = places_in_china()
    for first, middle, last in itertools.permutations(Datum):
        start = geo.convert_batch(*places, Datum.WGS84, first)
        direct = geo.convert_batch(*start, first, last)
        around = geo.convert_batch(*geo.convert_batch(*start, first, middle), middle, last)
        assert geo.distance_batch(*direct, *around).max() < 0.001


def test_the_shift_is_what_a_500_m_radius_cannot_bear(geo: ModuleType) -> None:
    lat, lon = places_in_china()
    gcj_lat, gcj_lon = geo.convert_batch(lat, lon, Datum.WGS84, Datum.GCJ02)
    shift_m = geo.distance_batch(lat, lon, gcj_lat, gcj_lon)
    assert np.count_nonzero(shift_m > 500.0) > 1_000
    assert shift_m.max() < 1_000.0
    # The inverse looks no farther beyond the box than this.
    assert max(np.abs(gcj_lat - lat).max(), np.abs(gcj_lon - lon).max()) < 0.02


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_abroad_all_datums_are_one(geo: ModuleType, source: Datum, target: Datum) -> None:
    lat, lon = places_abroad(margin=0.05)
    assert len(lat) > 30_000
    converted = geo.convert_batch(lat, lon, source, target)
    assert converted[0].tolist() == lat.tolist()
    assert converted[1].tolist() == lon.tolist()


@pytest.mark.parametrize("target", [Datum.GCJ02, Datum.BD09])
def test_the_box_ends_at_its_edges(geo: ModuleType, target: Datum) -> None:
    for lat, lon, outwards_lat, outwards_lon in [
        (LAT_MIN, 100.0, -math.inf, 100.0),
        (LAT_MAX, 100.0, math.inf, 100.0),
        (30.0, LON_MIN, 30.0, -math.inf),
        (30.0, LON_MAX, 30.0, math.inf),
    ]:
        assert geo.convert(lat, lon, Datum.WGS84, target) != (lat, lon)
        just_outside = math.nextafter(lat, outwards_lat), math.nextafter(lon, outwards_lon)
        assert geo.convert(*just_outside, Datum.WGS84, target) == just_outside


@pytest.mark.parametrize("source", [Datum.GCJ02, Datum.BD09])
def test_at_the_edge_the_place_inside_is_answered_or_none(geo: ModuleType, source: Datum) -> None:
    random = np.random.default_rng(5)
    lat = np.tile([LAT_MIN, LAT_MAX], 5_000) + random.uniform(-0.02, 0.02, 10_000)
    lon = random.uniform(LON_MIN, LON_MAX, 10_000)
    lat[5_000:] = random.uniform(LAT_MIN, LAT_MAX, 5_000)
    lon[5_000:] = np.tile([LON_MIN, LON_MAX], 2_500) + random.uniform(-0.03, 0.03, 5_000)

    wgs_lat, wgs_lon = geo.convert_batch(lat, lon, source, Datum.WGS84)
    unchanged = (wgs_lat == lat) & (wgs_lon == lon)
    inside = (wgs_lat >= LAT_MIN) & (wgs_lat <= LAT_MAX) & (wgs_lon >= LON_MIN) & (wgs_lon <= LON_MAX)
    assert np.all(unchanged | inside)
    found = ~unchanged
    assert np.count_nonzero(found) > 1_000
    assert np.count_nonzero(unchanged) > 1_000
    again = geo.convert_batch(wgs_lat[found], wgs_lon[found], Datum.WGS84, source)
    assert geo.distance_batch(lat[found], lon[found], *again).max() < 0.001


@pytest.mark.parametrize("datum", list(Datum))
def test_a_datum_to_itself_changes_nothing(geo: ModuleType, datum: Datum) -> None:
    lat, lon = places_in_china()
    converted_lat, converted_lon = geo.convert_batch(lat, lon, datum, datum)
    assert converted_lat.tolist() == lat.tolist()
    assert converted_lon.tolist() == lon.tolist()
    converted_lat[0] = -1.0
    assert lat[0] != -1.0


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_twins_agree(source: Datum, target: Datum) -> None:
    random = np.random.default_rng(9)
    lat, lon = random.uniform(-1.0, 58.0, 50_000), random.uniform(70.0, 140.0, 50_000)
    ours = kernel.convert_batch(lat, lon, source, target)
    theirs = reference.convert_batch(lat, lon, source, target)
    assert np.abs(ours[0] - theirs[0]).max() < 1e-10
    assert np.abs(ours[1] - theirs[1]).max() < 1e-10


def test_batches_equal_singles(geo: ModuleType) -> None:
    lat, lon = (column[19_900:20_100] for column in places_in_china())
    for source, target in PAIRS:
        batch = geo.convert_batch(lat, lon, source, target)
        singles = [geo.convert(*place, source, target) for place in zip(lat, lon, strict=True)]
        # NumPy's sine of many and of one may differ in the last bit; a nanometre is 1e-14 degrees.
        np.testing.assert_allclose(np.transpose(batch), singles, rtol=0.0, atol=1e-12)
    empty_lat, empty_lon = geo.convert_batch([], [], Datum.WGS84, Datum.BD09)
    assert empty_lat.shape == empty_lon.shape == (0,)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 180.5, -180.5])
def test_bad_coordinates_are_named(geo: ModuleType, bad: float) -> None:
    good = np.full(3, 31.0)
    column = np.array([31.0, bad, 31.0])
    for source, target in [*PAIRS, (Datum.WGS84, Datum.WGS84)]:
        with pytest.raises(ValueError, match=r"^lat\[1\] is .*from -90 to 90"):
            geo.convert_batch(column, good, source, target)
        with pytest.raises(ValueError, match=r"^lon\[1\] is .*from -180 to 180"):
            geo.convert_batch(good, column, source, target)
        with pytest.raises(ValueError, match=r"^lat is "):
            geo.convert(bad, 121.0, source, target)
        with pytest.raises(ValueError, match=r"^lon is "):
            geo.convert(31.0, bad, source, target)


def test_wrong_arguments_are_refused(geo: ModuleType) -> None:
    for unknown in (0, 4, 255):
        with pytest.raises(ValueError, match="not a valid Datum"):
            geo.convert(31.0, 121.0, unknown, Datum.WGS84)
        with pytest.raises(ValueError, match="not a valid Datum"):
            geo.convert_batch([31.0], [121.0], Datum.WGS84, unknown)
    with pytest.raises(ValueError, match="different lengths: lat 1, lon 2"):
        geo.convert_batch([31.0], [121.0, 121.0], Datum.WGS84, Datum.GCJ02)
    with pytest.raises(TypeError):
        geo.convert("31.0", 121.0, Datum.WGS84, Datum.GCJ02)
    with pytest.raises(TypeError):
        geo.convert_batch(["31.0"], ["121.0"], Datum.WGS84, Datum.GCJ02)


def test_datum_numbers_are_those_of_the_contract() -> None:
    assert {datum.name: datum.value for datum in Datum} == {"WGS84": 1, "GCJ02": 2, "BD09": 3}
