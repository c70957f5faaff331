"""The elevation of the sun: published values of almanacs, another published formula, and what holds everywhere."""

from datetime import datetime, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perception.scene.sun import elevation

DEGREES = 0.1  # what is asked for; the formulas promise 0.01
SUNRISE, CIVIL = -50 / 60, -6.0  # geometric elevations at which almanacs place sunrise and civil twilight

OSLO, QUITO, SYDNEY, REYKJAVIK = (59.9139, 10.7522), (-0.1807, -78.4678), (-33.8688, 151.2093), (64.1466, -21.9426)
LONDON, USHUAIA, ARCTIC = (51.5074, -0.1278), (-54.8019, -68.3030), (70.0, 0.0)

times = st.integers(-631_152_000, 2_524_608_000).map(lambda seconds: seconds * 1_000_000)  # 1950 to 2050
latitudes, longitudes = st.floats(-90, 90), st.floats(-180, 180)


def utc(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp() * 1e6)


def test_the_example_of_the_solar_position_algorithm() -> None:
    """Reda and Andreas, "Solar position algorithm for solar radiation applications", Solar Energy 76, 2004, table A5.1:
    2003-10-17 12:30:30 at UTC-7, zenith 50.11162 degrees at 820 mbar, where the refraction is 0.016 degrees."""
    geometric = elevation(utc("2003-10-17T19:30:30"), 39.742476, -105.1786)
    assert geometric + 0.016 == pytest.approx(90 - 50.11162, abs=0.01)


@pytest.mark.parametrize(
    ("place", "time", "published"),
    [
        (OSLO, "2025-06-21T10:00", 51.00185),
        (OSLO, "2025-12-21T11:00", 6.58999),
        (QUITO, "2025-03-20T17:00", 84.69836),
        (QUITO, "2025-06-21T17:00", 66.07338),
        (SYDNEY, "2025-12-21T02:00", 79.46084),
        (SYDNEY, "2025-06-21T01:00", 31.11522),
        (REYKJAVIK, "2025-09-22T13:00", 25.82978),
        (REYKJAVIK, "2025-06-21T13:00", 48.99850),
    ],
)
def test_altitudes_of_the_naval_observatory(place: tuple[float, float], time: str, published: float) -> None:
    """Computed altitude (hc) of the sun by the Astronomical Applications API 4.0.1 of the U.S. Naval Observatory,
    service celnav: geometric."""
    assert elevation(utc(time), *place) == pytest.approx(published, abs=0.01)


@pytest.mark.parametrize(
    ("time", "latitude", "longitude"),
    [
        ("2000-01-01T12:00", -23.03243, 0.82128),
        ("2025-01-01T00:00", -22.99820, -179.13938),
        ("2025-03-20T09:01", -0.00028, 46.59935),
        ("2025-06-21T02:42", 23.43834, 139.94329),
        ("2025-09-22T18:19", 0.0, -96.61371),
        ("2025-12-21T15:03", -23.43824, -46.18804),
        ("2030-03-20T13:52", -0.00012, -26.14583),
    ],
)
def test_the_sun_is_overhead_where_the_almanac_has_it(time: str, latitude: float, longitude: float) -> None:
    """Declination and Greenwich hour angle by the Naval Observatory (celnav), equinoxes and solstices among them."""
    assert elevation(utc(time), latitude, longitude) > 90 - DEGREES
    assert elevation(utc(time), 90, 0) == pytest.approx(latitude, abs=0.01)  # at the pole it is the declination
    assert elevation(utc(time), 0, longitude + 90) == pytest.approx(0, abs=0.03)


def test_the_example_of_meeus() -> None:
    """Example 25.a: apparent declination -7.78507 degrees at 1992-10-13 0h of dynamical time."""
    assert elevation(utc("1992-10-13T00:00"), 90, 0) == pytest.approx(-7.78507, abs=0.001)


@pytest.mark.parametrize(
    ("place", "day", "limit", "rises", "sets"),
    [
        # The Astronomical Almanac by Reda and Andreas, table A2.1, at the meridian of Greenwich.
        ((35.0, 0.0), "1994-01-02", SUNRISE, "07:08", "16:59"),
        ((-35.0, 0.0), "1996-07-05", SUNRISE, "07:08", "17:01"),
        ((-35.0, 0.0), "2004-12-04", SUNRISE, "04:38", "19:02"),
        # The Naval Observatory (rstt/oneday), UTC.
        (OSLO, "2025-06-21", SUNRISE, "01:54", "20:44"),
        (OSLO, "2025-06-21", CIVIL, "00:10", "22:28"),
        (OSLO, "2025-12-21", CIVIL, "07:21", "15:10"),
        (QUITO, "2025-03-20", SUNRISE, "11:18", "23:24"),
        (QUITO, "2025-03-20", CIVIL, "10:57", "23:45"),
        (SYDNEY, "2025-09-22", SUNRISE, "19:44", "07:51"),
        (REYKJAVIK, "2025-12-21", SUNRISE, "11:22", "15:30"),
        (REYKJAVIK, "2025-12-21", CIVIL, "10:03", "16:49"),
        (LONDON, "2025-06-21", SUNRISE, "03:43", "20:22"),
        (LONDON, "2025-06-21", CIVIL, "02:55", "21:09"),
        (ARCTIC, "2025-12-21", CIVIL, "09:55", "14:02"),
    ],
)
def test_published_sunrises_sunsets_and_twilights(
    place: tuple[float, float], day: str, limit: float, rises: str, sets: str
) -> None:
    """To the minute, as they are printed; rounded in some tables, truncated in others."""
    seconds = np.arange(0, 86_400, 10)
    above = elevation(utc(f"{day}T00:00") + seconds * 1_000_000, *place) > limit
    for change, printed in ((1, rises), (-1, sets)):
        (at,) = seconds[1:][np.diff(above.astype(int)) == change]
        hours, minutes = map(int, printed.split(":"))
        assert at == pytest.approx(3600 * hours + 60 * minutes, abs=70)


def test_midnight_sun_and_polar_night() -> None:
    """At 70 degrees north the lowest is 3.44 in June and the highest -3.44 in December: 23.44 - 20."""
    seconds = np.arange(0, 86_400, 60) * 1_000_000
    assert elevation(utc("2025-06-21T00:00") + seconds, *ARCTIC).min() == pytest.approx(3.44, abs=0.01)
    assert elevation(utc("2025-12-21T00:00") + seconds, *ARCTIC).max() == pytest.approx(-3.44, abs=0.01)


def almanac(timestamp: int, latitude: float, longitude: float) -> float:
    """The Astronomical Almanac, page C5, "Low-precision formulas for the Sun": 0.01 degrees from 1950 to 2050."""
    n = timestamp / 86_400e6 - 10957.5
    g = np.radians(357.528 + 0.9856003 * n)
    longitude_of_sun = np.radians(280.460 + 0.9856474 * n + 1.915 * np.sin(g) + 0.020 * np.sin(2 * g))
    obliquity = np.radians(23.439 - 0.0000004 * n)
    x, y = np.cos(longitude_of_sun), np.cos(obliquity) * np.sin(longitude_of_sun)
    sun = np.array([x, y, np.sin(obliquity) * np.sin(longitude_of_sun)])
    turned = np.radians(15 * (18.697374558 + 24.06570982441908 * n) + longitude)
    phi = np.radians(latitude)
    zenith = np.array([np.cos(phi) * np.cos(turned), np.cos(phi) * np.sin(turned), np.sin(phi)])
    return float(np.degrees(np.arctan2(zenith @ sun, np.linalg.norm(np.cross(zenith, sun)))))


@given(times, latitudes, longitudes)
def test_another_published_formula_says_the_same(timestamp: int, latitude: float, longitude: float) -> None:
    assert elevation(timestamp, latitude, longitude) == pytest.approx(almanac(timestamp, latitude, longitude), abs=0.03)


@given(times, latitudes, longitudes)
def test_the_antipode_sees_the_other_side(timestamp: int, latitude: float, longitude: float) -> None:
    here = elevation(timestamp, latitude, longitude)
    assert -90 <= here <= 90
    assert elevation(timestamp, -latitude, longitude + 180) == pytest.approx(-here, abs=1e-5)
    assert elevation(timestamp, latitude, longitude - 360) == pytest.approx(here, abs=1e-5)
    later = elevation(timestamp + 60_000_000, latitude, longitude)
    assert abs(later - here) <= 15.05 / 60  # degrees that the earth turns in a minute
