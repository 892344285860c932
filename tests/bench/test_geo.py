"""Distance and radius test: the kernel, its NumPy twin, and one pair after the other in plain Python."""

import math
from types import ModuleType

import numpy as np
import pytest

from ext import geo, geo_reference
from ext.datum import Datum
from tests.bench.conftest import Measure

POINTS = 1_000_000
PLAIN_POINTS = 10_000
CENTRE = (31.2304, 121.4737)

MODULES: dict[str, ModuleType] = {"kernel": geo, "reference": geo_reference}


def haversine_m(lat1: float, lon1: float, lat2: float, lon2: float) -> float:
    """Return the distance on a sphere of the mean radius: what most would write for one pair."""
    phi1, phi2 = math.radians(lat1), math.radians(lat2)
    half = math.sin((phi2 - phi1) / 2) ** 2
    half += math.cos(phi1) * math.cos(phi2) * math.sin(math.radians(lon2 - lon1) / 2) ** 2
    return 2 * 6_371_008.8 * math.asin(math.sqrt(half))


def places(count: int) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], ...]:
    random = np.random.default_rng(1)
    return random.uniform(18.0, 53.0, count), random.uniform(74.0, 134.0, count)


@pytest.mark.parametrize("implementation", ["kernel", "reference", "plain"])
def test_within(measure: Measure, implementation: str) -> None:
    lat, lon = places(PLAIN_POINTS if implementation == "plain" else POINTS)
    if implementation == "plain":
        pairs = list(zip(lat.tolist(), lon.tolist(), strict=True))
        inside = measure(
            "within",
            "one centre",
            implementation,
            PLAIN_POINTS,
            lambda: [haversine_m(y, x, *CENTRE) <= 500_000.0 for y, x in pairs],
        )
        assert 0 < sum(inside) < PLAIN_POINTS
    else:
        module = MODULES[implementation]
        flags = measure(
            "within",
            "one centre",
            implementation,
            POINTS,
            lambda: module.within_batch(lat, lon, *CENTRE, 500_000.0),
        )
        assert 0 < np.count_nonzero(flags) < POINTS


@pytest.mark.parametrize("implementation", ["kernel", "reference"])
def test_within_pairwise(measure: Measure, implementation: str) -> None:
    module = MODULES[implementation]
    lat, lon = places(POINTS)
    centre_lat, centre_lon, radius_m = lat + 0.004, lon - 0.004, np.full(POINTS, 550.0)
    flags = measure(
        "within",
        "a centre and a radius each",
        implementation,
        POINTS,
        lambda: module.within_batch(lat, lon, centre_lat, centre_lon, radius_m),
    )
    assert 0 < np.count_nonzero(flags) < POINTS


@pytest.mark.parametrize("implementation", ["kernel", "reference", "plain"])
def test_distance(measure: Measure, implementation: str) -> None:
    lat, lon = places(PLAIN_POINTS if implementation == "plain" else POINTS)
    if implementation == "plain":
        pairs = list(zip(lat.tolist(), lon.tolist(), strict=True))
        distances = measure(
            "distance",
            "from one point",
            implementation,
            PLAIN_POINTS,
            lambda: [haversine_m(y, x, *CENTRE) for y, x in pairs],
        )
    else:
        module = MODULES[implementation]
        distances = measure(
            "distance",
            "from one point",
            implementation,
            POINTS,
            lambda: module.distance_batch(lat, lon, *CENTRE),
        )
    assert 1_000_000.0 < np.median(distances) < 3_000_000.0


def test_distance_of_one_pair(measure: Measure) -> None:
    distance_m = measure(
        "distance", "one call for one pair", "kernel", 1, lambda: geo.distance_m(31.23, 121.47, 31.24, 121.48)
    )
    assert 1_000.0 < distance_m < 2_000.0


@pytest.mark.parametrize("implementation", ["kernel", "reference"])
@pytest.mark.parametrize(("source", "target"), [(Datum.WGS84, Datum.GCJ02), (Datum.BD09, Datum.WGS84)])
def test_convert(measure: Measure, source: Datum, target: Datum, implementation: str) -> None:
    module = MODULES[implementation]
    lat, lon = places(PLAIN_POINTS)
    converted_lat, _ = measure(
        "convert",
        f"{source.name} to {target.name}",
        implementation,
        PLAIN_POINTS,
        lambda: module.convert_batch(lat, lon, source, target),
    )
    assert np.all(converted_lat != lat)
