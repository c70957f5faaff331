"""Effects of rain, fog and snow on LiDAR and camera, and the camera's exposure, after published physics.

The strength of a LiDAR echo is given as the reflectance of a matt wall at normal incidence with the same echo; the
power at the detector is that divided by the squared range.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from perception.simulate.snapshot import NOISE, Snapshot, Solids, Weather

DROPS = 8000.0  # per m^3 and mm of diameter: N0 of Marshall & Palmer, J. Meteorology 5 (1948)
EXPOSURE = 0.008  # s, of a camera in bad weather
PULSE_LENGTH = 0.75  # m, half the length of a 5 ns pulse: the air that echoes at once
OVERLAP = (2.5, 10.0)  # m, where the receiver begins to see the beam, and sees all of it: docs/own_data.md
FARTHEST_PARTICLE = 100.0  # m
BEAM_EXIT, BEAM_DIVERGENCE = 0.011, 0.0019  # m and rad, geometric means of the HDL-32E's two axes
CLEAR_AIR = 3.912 / 23e3  # 1/m of light on a clear day: a visual range of 23 km (Kruse 1962)
WATER_INDEX = 1.33
WATER_REFLECTION = 0.0201  # at normal incidence
# Backscatter of a drop relative to a sphere that scatters all light evenly: the axial rays reflected by its front and,
# focused by n / (2 - n), by its back (van de Hulst, "Light Scattering by Small Particles", 1957, ch. 12).
DROP_GAIN = WATER_REFLECTION * (1 + (1 - WATER_REFLECTION) ** 2 * (WATER_INDEX / (2 - WATER_INDEX)) ** 2)

# Snow: density relative to water, as in Hahner et al., "LiDAR Snowfall Simulation for Robust 3D Object Detection", CVPR
# 2022; albedo of fresh snow in daylight and at 905 nm (Warren, "Optical properties of snow", Rev. Geophys. 20, 1982).
# A flake is too thin to be as white; its lidar ratio, in sr, is its extinction over its backscatter per sr (ice: Young
# & Vaughan, J. Atmos. Oceanic Technol. 26, 2009).
SNOW_DENSITY, SNOW_ALBEDO, SNOW_REFLECTANCE, FLAKE_LIDAR_RATIO = 0.1, 0.95, 0.9, 25.0
FLAKE_DIAMETER = SNOW_DENSITY ** (-1 / 3)  # relative to that of the drop to which a flake melts


class Particles(NamedTuple):
    """What falls in a volume of air, `number` exp(-`slope` D) per m^3 and mm of the diameter D of its water."""

    number: float  # per m^3 and mm
    slope: float  # 1/mm
    diameter: float  # relative to that of the water
    echo: float  # of one as wide as the beam


def rain_drops(rain: float) -> Particles:
    """Drops at a rate in mm/h (Marshall & Palmer 1948). One of diameter D scatters back DROP_GAIN D^2 / 16 per sr."""
    return Particles(DROPS, 4.1 * rain**-0.21, 1.0, DROP_GAIN / 4)


def snow_flakes(snow: float) -> Particles:
    """Flakes at a rate in mm/h of melted water: Gunn & Marshall, "The distribution with size of aggregate snowflakes",
    J. Meteorology 15 (1958). One of area A takes 2 A from a beam, and a matt wall scatters back A / pi per sr."""
    number, slope = 3.8e3 * snow**-0.87, 2.55 * snow**-0.48
    return Particles(number, slope, FLAKE_DIAMETER, 2 * np.pi / FLAKE_LIDAR_RATIO)


def extinction(weather: Weather) -> float:
    """Extinction coefficient of the air, 1/m, for LiDAR and camera: drops are much larger than both wavelengths.

    Fog: 3.912 / visibility, the 2 % contrast of Koschmieder (1924) and Kruse (1962). Rain: twice the area of the drops
    of Marshall & Palmer, 3.6e-4 rain^0.63, near ITU-R P.1814's 2.5e-4 rain^0.67. Snow: the same over the flakes of Gunn
    & Marshall, 3.3e-3 snow^0.57, a visibility of 1.2 km at 1 mm/h (light snow ends at 1 km: Rasmussen et al., J. Appl.
    Meteor. 38, 1999, who found a spread of several times around that).
    """
    fog = 3.912 / weather.visibility
    rain = 0.0 if weather.rain <= 0 else _extinction_of(rain_drops(weather.rain))
    snow = 0.0 if weather.snow <= 0 else _extinction_of(snow_flakes(weather.snow))
    return float(fog + rain + snow)


def _extinction_of(particles: Particles) -> float:
    """1/m."""
    return np.pi * particles.number / particles.slope**3 * 1e-6 * particles.diameter**2


def volume_echo(
    weather: Weather, weakest: float, beams: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The strongest echo of fog, rain or snow in each beam: range (beams,) >= 1 m, and strength (beams,) with the
    extinction on the way, 0 for no echo.

    Args:
        weakest: 1/m^2, power of a drop or flake below which it counts as no echo.
    """
    ranges, echoes = np.ones(beams), np.zeros(beams)
    alpha = extinction(weather)
    if np.isfinite(weather.visibility):
        ranges, echoes = _fog_echo(weather.visibility, alpha, beams, rng)
    for rate, kind in ((weather.rain, rain_drops), (weather.snow, snow_flakes)):
        if rate > 0:
            own_ranges, own_echoes = _particle_echo(kind(rate), alpha, weakest, beams, rng)
            stronger = own_echoes / own_ranges**2 > echoes / ranges**2
            ranges, echoes = np.where(stronger, own_ranges, ranges), np.where(stronger, own_echoes, echoes)
    return ranges, echoes


def _fog_echo(visibility: float, alpha: float, beams: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Fog as a soft target (Hahner et al., "Fog Simulation on Real LiDAR Point Clouds", ICCV 2021).

    The power per metre of pulse is beta exp(-2 alpha r) / r^2 with beta = 0.046 / visibility. The range at which the
    detector triggers is drawn from this profile, the power from an exponential distribution because of speckle
    (Goodman, "Some fundamental properties of speckle", JOSA 66, 1976).
    """
    r = np.linspace(1, 40, 400)
    ranges = np.interp(rng.random(beams), *_distribution(np.exp(-2 * alpha * r) / r**2, r))
    echoes = np.pi * 0.046 / visibility * PULSE_LENGTH * np.exp(-2 * alpha * ranges)
    return ranges, echoes * rng.exponential(size=beams)


def _particle_echo(
    particles: Particles, alpha: float, weakest: float, beams: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Single drops or flakes, drawn in the volume of the beams by size as in LISA (Kilic et al., arXiv:2107.07004,
    2021) and, for snow, in Hahner et al. (CVPR 2022). Each covers only part of the beam.

    Only those with at least the power `weakest` are drawn. From any diameter on, their sizes are distributed as from 0
    on, since the distribution is exponential.
    """
    r = np.linspace(OVERLAP[0], FARTHEST_PARTICLE, 2000)[1:]
    section = np.pi / 4 * (BEAM_EXIT + BEAM_DIVERGENCE * r) ** 2
    smallest = _smallest_seen(particles, alpha, weakest, r)
    density = section * particles.number / particles.slope * np.exp(-particles.slope * smallest)  # 1/m of a beam
    count = rng.poisson(density.sum() * (r[1] - r[0]) * beams)
    beam = rng.integers(beams, size=count)
    distance = np.interp(rng.random(count), *_distribution(density, r))
    water = _smallest_seen(particles, alpha, weakest, distance) + rng.exponential(1 / particles.slope, count)  # mm
    share = np.minimum(water * 1e-3 * particles.diameter / (BEAM_EXIT + BEAM_DIVERGENCE * distance), 1) ** 2
    echo = particles.echo * share * overlap(distance) * np.exp(-2 * alpha * distance)
    weakest_first = np.argsort(echo / distance**2)
    ranges, echoes = np.ones(beams), np.zeros(beams)
    ranges[beam[weakest_first]] = distance[weakest_first]
    echoes[beam[weakest_first]] = echo[weakest_first]
    return ranges, echoes


def _smallest_seen(particles: Particles, alpha: float, weakest: float, ranges: np.ndarray) -> np.ndarray:
    """(N,) mm of water in the smallest particle at these ranges (N,) whose power is at least `weakest`; inf where one
    as wide as the beam has less."""
    share = weakest * ranges**2 / (particles.echo * overlap(ranges) * np.exp(-2 * alpha * ranges))
    width = BEAM_EXIT + BEAM_DIVERGENCE * ranges
    return np.where(share <= 1, np.sqrt(share) * width / (1e-3 * particles.diameter), np.inf)


def overlap(ranges: np.ndarray) -> np.ndarray:
    """Share of a beam that the receiver sees at these ranges (m): the crossover function xi of Rasshofer et al.,
    "Influences of weather phenomena on automotive laser radar systems", Adv. Radio Sci. 9 (2011), eq. 3, as in Hahner
    et al. (ICCV 2021, CVPR 2022)."""
    return ((ranges - OVERLAP[0]) / (OVERLAP[1] - OVERLAP[0])).clip(0, 1)


def _distribution(density: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) cumulative distribution of an unnormalised density (N,) at the points (N,), and the points: the arguments
    of `np.interp` for inverse transform sampling."""
    cumulated = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) * np.diff(at))])
    return cumulated / cumulated[-1], at


def wetness(weather: Weather) -> float:
    """Share of the ground, where no snow lies, that is covered by a film of water."""
    return max(weather.wet, min(weather.rain / 2, 1.0))


def under_snow(bare: np.ndarray, cover: float, white: float) -> np.ndarray:
    """Mean reflectance of surfaces of which snow of reflectance `white` covers a share."""
    return bare + cover * (white - bare)


def wet_albedo(albedo: np.ndarray) -> np.ndarray:
    """Albedo of a matt surface under a film of water, which traps part of the light by total internal reflection:
    Lekner & Dorf, "Why some things are darker when wet", Applied Optics 27 (1988)."""
    enter = 1 - WATER_REFLECTION
    inside = 1 - (1 - 0.066) / WATER_INDEX**2  # share of the diffuse light that the film reflects back down
    return enter * albedo * (1 - inside) / (1 - inside * albedo)


def film_transmission(cosines: np.ndarray) -> np.ndarray:
    """Share of the light that enters a film of water at these cosines of incidence (Fresnel, unpolarised). The rest is
    reflected away from a LiDAR, as on the wet ground of Hahner et al., "LiDAR Snowfall Simulation", CVPR 2022."""
    inside = np.sqrt(1 - (1 - cosines**2) / WATER_INDEX**2)
    perpendicular = (cosines - WATER_INDEX * inside) / (cosines + WATER_INDEX * inside)
    parallel = (inside - WATER_INDEX * cosines) / (inside + WATER_INDEX * cosines)
    return 1 - (perpendicular**2 + parallel**2) / 2


def spray(snapshot: Snapshot, rng: np.random.Generator) -> Solids:
    """Spray behind vehicles on a wet road: clusters of droplets as solids without owner.

    A LiDAR detects spray as clusters in a widening plume behind the vehicle; their number grows with speed and with
    the water on the road (Linnhoff et al., "Simulating Road Spray Effects in Automotive Lidar Sensor Models", IEEE
    Sensors J. 2022). Vehicles below 8 m/s raise none.
    """
    solids, speeds = snapshot.solids, np.linalg.norm(snapshot.agent_velocities[:, :2], axis=1)
    water = min(snapshot.weather.rain / 10, 1.0)
    centers, sizes = [np.zeros((0, 3))], [np.zeros((0, 3))]
    for agent in np.flatnonzero(speeds > 8) if water > 0 else []:
        parts = solids.owners == agent
        if not parts.any():
            continue
        heading = snapshot.agent_velocities[agent, :2] / speeds[agent]
        left = np.array([-heading[1], heading[0]])
        xy = solids.centers[parts, :2]
        middle = (xy.max(axis=0) + xy.min(axis=0)) / 2
        rear = ((xy - middle) @ heading - solids.sizes[parts, 0] / 2).min()
        width = solids.sizes[parts, 1].max()
        count = rng.poisson(30 * water * (speeds[agent] / 10) ** 2)
        behind = rng.exponential(0.25 * speeds[agent], count)
        aside = rng.normal(0, width / 3 + 0.08 * behind)
        height = rng.uniform(0.1, 0.5 + 0.15 * behind.clip(0, 8))
        plan = middle + (rear - behind)[:, None] * heading + aside[:, None] * left
        centers.append(np.column_stack([plan, height]))
        sizes.append(rng.uniform(0.05, 0.3, (count, 3)))
    n = sum(map(len, centers))
    return Solids(
        centers=np.concatenate(centers),
        sizes=np.concatenate(sizes),
        yaws=np.zeros(n),
        colours=np.full((n, 3), 200, np.uint8),
        reflectances=rng.uniform(0.01, 0.05, n),
        lamps=np.zeros(n),
        owners=np.full(n, -1),
        categories=np.full(n, NOISE, np.uint8),
    )


def koschmieder(radiance: np.ndarray, distance: np.ndarray, alpha: float, airlight: np.ndarray) -> np.ndarray:
    """(3, H, W) radiance after `distance` (H, W) m of scattering air: J t + A (1 - t) with t = exp(-alpha distance)
    (Koschmieder 1924; Narasimhan & Nayar, IJCV 48, 2002); A is the airlight (3,), at infinite distance.
    """
    transmission = np.exp(distance * np.float32(-alpha))
    airlight = airlight[:, None, None]
    return (radiance - airlight) * transmission + airlight


def rain_streaks(
    radiance: np.ndarray, rain: float, focal_length: float, airlight: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """(3, H, W) the image with streaks of drops near the camera, and the dimming of wet optics.

    The number of drops follows Marshall & Palmer, their speed is 9.65 - 10.3 exp(-0.6 D) m/s (Atlas et al., Rev.
    Geophys. 11, 1973), and they refract skylight (Garg & Nayar, "Vision and Rain", IJCV 75, 2007).
    """
    if rain <= 0:
        return radiance
    height, width = radiance.shape[1:]
    smallest, farthest, exposure = 1.0, 4.0, EXPOSURE  # mm, m, s
    slope = rain_drops(rain).slope
    volume = width * height / focal_length**2 * farthest**3 / 3
    # Nine in ten are out of focus or too thin to be seen.
    count = rng.poisson(0.1 * DROPS / slope * np.exp(-slope * smallest) * volume)
    distance = farthest * rng.random(count) ** (1 / 3)
    diameter = smallest + rng.exponential(1 / slope, count)
    length = (9.65 - 10.3 * np.exp(-0.6 * diameter)) * exposure * focal_length / distance
    breadth = diameter * 1e-3 * focal_length / distance  # px
    start = rng.random((count, 2)) * [width, height + 60] - [0, 60]
    end = start + np.stack([rng.normal(0.06, 0.02, count), np.ones(count)], axis=1) * length[:, None]
    veil = _veil(start, end, breadth, 0.35, 4, (height, width))
    dimming = np.float32(1 - 0.15 * min(rain / 20, 1))
    return (radiance * (1 - veil) + 1.2 * airlight[:, None, None] * veil) * dimming


def falling_snow(
    radiance: np.ndarray, snow: float, focal_length: float, airlight: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """(3, H, W) the image with flakes near the camera, white in the light of the sky.

    The number of flakes follows Gunn & Marshall, their speed is 0.8 D^0.16 m/s with D in mm (aggregates of dendrites:
    Locatelli & Hobbs, "Fall speeds and masses of solid precipitation particles", J. Geophys. Res. 79, 1974).
    """
    if snow <= 0:
        return radiance
    height, width = radiance.shape[1:]
    smallest, farthest = 0.5, 6.0  # mm of water, m
    flakes = snow_flakes(snow)
    volume = width * height / focal_length**2 * farthest**3 / 3
    count = rng.poisson(flakes.number / flakes.slope * np.exp(-flakes.slope * smallest) * volume)
    distance = farthest * rng.random(count) ** (1 / 3)
    diameter = (smallest + rng.exponential(1 / flakes.slope, count)) * flakes.diameter
    length = 0.8 * diameter**0.16 * EXPOSURE * focal_length / distance
    breadth = diameter * 1e-3 * focal_length / distance  # px
    start = rng.random((count, 2)) * [width, height]
    end = start + np.stack([rng.normal(0, 0.5, count), np.ones(count)], axis=1) * length[:, None]  # they tumble
    veil = _veil(start, end, breadth, 1.0, 40, (height, width))
    return radiance * (1 - veil) + np.float32(SNOW_ALBEDO) * airlight[:, None, None] * veil


def _veil(
    start: np.ndarray, end: np.ndarray, breadth: np.ndarray, opacity: float, widest: int, shape: tuple[int, int]
) -> np.ndarray:
    """(H, W) share of the light that streaks from start to end (N, 2), breadth (N,) px wide, take from an image."""
    ends = np.rint(np.stack([start, end], axis=1) * 16).astype(int).tolist()
    shades = (255 * opacity * breadth.clip(0, 1)).tolist()
    widths = np.rint(breadth).clip(1, widest).astype(int).tolist()
    mask = np.zeros(shape, np.uint8)
    for i in np.argsort(breadth, kind="stable").tolist():
        cv2.line(mask, ends[i][0], ends[i][1], (shades[i],), widths[i], cv2.LINE_AA, shift=4)
    return cv2.blur(mask, (3, 3)).astype(np.float32) / 255


def expose(radiance: np.ndarray, exposure: float, gain: float, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8 the sensor's image of radiance (3, H, W): lens blur, shot noise, read noise, gain and gamma 2
    (EMVA 1288; white at noon is 10 000 electrons per pixel)."""
    image = np.empty((*radiance.shape[1:], 3), np.uint8)
    for channel, plane in enumerate(radiance):
        electrons = cv2.GaussianBlur(plane, (3, 3), 0.55) * np.float32(1e4 * exposure)
        noise = rng.standard_normal(plane.shape, np.float32)
        noise *= np.sqrt(electrons + np.float32(4.0**2))
        electrons += noise
        electrons *= np.float32(gain / 1e4)
        np.sqrt(electrons.clip(0, 1, out=electrons), out=electrons)
        image[..., channel] = electrons * 255 + np.float32(0.5)
    return image
