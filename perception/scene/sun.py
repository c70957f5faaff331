"""The elevation of the sun from time and position. numpy only.

Meeus, "Astronomical Algorithms", 2nd edition, 1998: position of the sun with low accuracy (chapter 25, 0.01 degrees),
sidereal time (12.4), horizontal coordinates (13.6). UTC is taken for UT1 and for dynamical time,
which are off by less than a second and by about a minute, and the parallax of 0.0024 degrees is left out: together less
than 0.01 degrees.
"""

from __future__ import annotations

import numpy as np

_J2000 = 946_728_000_000_000  # us since 1970 of 2000-01-01 12:00
_DAY = 86_400_000_000  # us


def elevation(timestamp: int | np.ndarray, latitude: float | np.ndarray, longitude: float | np.ndarray) -> np.ndarray:
    """Geometric elevation of the sun's centre above the horizon, degrees; the arguments are broadcast.

    Args:
        timestamp: us since 1970-01-01 UTC.
        latitude: degrees north, WGS 84.
        longitude: degrees east.
    """
    days = (np.asarray(timestamp) - _J2000) / _DAY
    t = days / 36525  # Julian centuries
    mean_longitude = 280.46646 + t * (36000.76983 + t * 0.0003032)
    anomaly = np.radians(357.52911 + t * (35999.05029 - t * 0.0001537))
    centre = (
        (1.914602 - t * (0.004817 + t * 0.000014)) * np.sin(anomaly)
        + (0.019993 - t * 0.000101) * np.sin(2 * anomaly)
        + 0.000289 * np.sin(3 * anomaly)
    )
    node = np.radians(125.04 - 1934.136 * t)  # of the moon's orbit, for the nutation
    nutation = -0.00478 * np.sin(node)
    ecliptic = np.radians(mean_longitude + centre - 0.00569 + nutation)  # apparent longitude
    obliquity = np.radians(23.439291 - t * 0.0130042 + 0.00256 * np.cos(node))
    sin_declination = np.sin(obliquity) * np.sin(ecliptic)
    right_ascension = np.arctan2(np.cos(obliquity) * np.sin(ecliptic), np.cos(ecliptic))
    sidereal = 280.46061837 + 360.98564736629 * days + t * t * 0.000387933 + nutation * np.cos(obliquity)
    hour_angle = np.radians(sidereal + longitude) - right_ascension
    phi, cos_declination = np.radians(latitude), np.sqrt(1 - sin_declination**2)
    sine = np.sin(phi) * sin_declination + np.cos(phi) * cos_declination * np.cos(hour_angle)
    return np.degrees(np.arcsin(np.clip(sine, -1, 1)))
