"""How surfaces in a camera's view are lit: sun, sky, shadows, lamps and headlights.

Light is linear, in units of what a white sheet on the ground sends back under an overcast noon (about 10 000 lux).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from perception.simulate import weather
from perception.simulate.rasterize import Faces, project
from perception.simulate.scenery import Snapshot, Solids, Weather

LUX = 1e-4  # in the unit of light
STREET_LAMP, CAR_LAMP, LOW_BEAM = 2500.0, 120.0, 12000.0  # cd; CAR_LAMP is what others' lamps spill to all sides
LAMP_LUMINANCE = 0.05
SHADOW_RANGE = 70.0  # m
COARSE = 4  # lamps are summed on every fourth pixel: their light is smooth


@dataclass(frozen=True)
class Surfaces:
    """What covers each pixel of a picture."""

    solids: Solids  # in view
    faces: Faces  # of those solids
    face_at: np.ndarray  # (H, W) int32 index of the face, -1 for ground or sky
    sky: np.ndarray  # (H, W) bool
    points: np.ndarray  # (3, H, W) float32 global
    rays: np.ndarray  # (3, H, W) float32 global direction of unit depth
    depth: np.ndarray  # (H, W) float32 m along the optical axis
    intrinsics: np.ndarray  # (3, 3)
    global_from_camera: np.ndarray  # (4, 4)

    @property
    def ground(self) -> np.ndarray:
        """(H, W) bool."""
        return (self.face_at < 0) & ~self.sky

    @property
    def distance(self) -> np.ndarray:
        """(H, W) m from the camera; inf for the sky."""
        length = np.sqrt((self.rays**2).sum(axis=0))
        return np.where(self.sky, np.float32(np.inf), self.depth * length)


@dataclass(frozen=True)
class Light:
    """The light of the day or night, RGB, and how the camera is set for it."""

    sun: np.ndarray  # (3,) on a surface that faces it
    direction: np.ndarray  # (3,) unit vector to the sun
    ambient: np.ndarray  # (3,) from the whole sky on level ground
    horizon: np.ndarray  # (3,) radiance of the sky at the horizon, and of deep haze
    zenith: np.ndarray  # (3,)
    exposure: float  # of the sensor, 1 at noon
    gain: float  # of its amplifier

    @staticmethod
    def of(circumstances: Weather) -> Light:
        def rgb(r: float, g: float, b: float) -> np.ndarray:
            return np.array([r, g, b], np.float32)

        direction = np.array([0.45, -0.55, 0.7])
        direction /= np.linalg.norm(direction)
        dark = rgb(0, 0, 0)
        if circumstances.night:
            sky = rgb(0.6, 0.75, 1.2)
            return Light(dark, direction, sky * 3e-4, sky * 5e-4, sky * 2e-4, 4.0, 30.0)
        if circumstances.rain > 0 or circumstances.visibility < 2000:
            grey = rgb(0.92, 0.96, 1.0)
            return Light(dark, direction, grey * 0.8, grey * 0.72, grey * 0.55, 1.0, 1.15)
        blue = rgb(0.75, 0.9, 1.15)
        return Light(
            rgb(1.0, 0.93, 0.8), direction, blue * 0.42, rgb(0.72, 0.82, 0.92), rgb(0.18, 0.36, 0.75), 1.0, 0.95
        )


def radiance(
    surfaces: Surfaces, albedo: np.ndarray, snapshot: Snapshot, light: Light, global_from_ego: np.ndarray | None
) -> np.ndarray:
    """(H, W, 3) float32 light that leaves each pixel's surface, or sky, towards the camera.

    albedo: (H, W, 3). global_from_ego: (4, 4) pose of the vehicle whose headlights shine at night.
    """
    faces, ground = surfaces.faces, surfaces.ground
    facing = (faces.normals @ light.direction).clip(0)[:, None] * light.sun
    from_sky = (0.62 + 0.38 * faces.normals[:, 2:]) * light.ambient
    level = light.direction[2] * light.sun + light.ambient
    table = np.concatenate([facing + from_sky, level[None]]).astype(np.float32)
    lit = table[surfaces.face_at]
    shade = _shadows(surfaces, snapshot.solids, light)
    lit *= np.where(ground, 1 - shade, _near_ground(surfaces))[..., None]
    if snapshot.weather.night:
        lit += _lamplight(surfaces, snapshot.solids, global_from_ego)
    seen = albedo * lit
    if snapshot.weather.rain > 0:
        seen += _wet_mirror(surfaces, snapshot.weather, light)
    glow = np.append(surfaces.solids.lamps[faces.solids] ** 2, 0).astype(np.float32)[surfaces.face_at]
    seen += _lamps(surfaces, glow, night=snapshot.weather.night)
    seen[surfaces.sky] = _sky(surfaces, light, clear=bool(light.sun.any()))
    return seen


def _lamps(surfaces: Surfaces, glow: np.ndarray, night: bool) -> np.ndarray:
    """(H, W, 3) light of the lamps themselves, and the halo that a lens makes around them at night."""
    colours = (surfaces.solids.colours[surfaces.faces.solids].astype(np.float32) / 255) ** 2
    colours = np.concatenate([colours, np.zeros((1, 3), np.float32)])
    shining = glow[..., None] * colours[surfaces.face_at]
    if not night:
        return shining * 0.5
    shining *= LAMP_LUMINANCE
    height, width = glow.shape
    halo = cv2.GaussianBlur(
        cv2.resize(shining, (width // COARSE, height // COARSE), interpolation=cv2.INTER_AREA), (0, 0), 4
    )
    return shining + 0.35 * cv2.resize(halo, (width, height))


def _sky(surfaces: Surfaces, light: Light, clear: bool) -> np.ndarray:
    """(N, 3) radiance of the N sky pixels: from horizon to zenith, with thin clouds when it is clear."""
    x, y, z = (axis[surfaces.sky] for axis in surfaces.rays)
    elevation = (z / np.sqrt(x**2 + y**2 + z**2)).clip(0.001)
    height = np.sqrt(elevation)[:, None]
    sky = light.horizon * (1 - height) + light.zenith * height
    if clear:
        plane = np.stack([x, y]) / (z.clip(0.02) + 0.08 * np.hypot(x, y))
        noise = _sample(*(plane * 28)) + 0.5 * _sample(*(plane * 70))
        cloud = ((noise - 0.25) * 0.9).clip(0, 0.8) * (elevation * 6).clip(0, 1)
        sky += cloud[:, None] * (np.array([1.0, 1.0, 1.0], np.float32) - sky)
    return sky


def _shadows(surfaces: Surfaces, solids: Solids, light: Light) -> np.ndarray:
    """(H, W) share of the light on the ground that solids keep off: the sun's shadows or, under a grey or dark
    sky, the shade around what stands on the ground."""
    position, rotation = surfaces.global_from_camera[:3, 3], surfaces.global_from_camera[:3, :3]
    near = np.hypot(*(solids.centers[:, :2] - position[:2]).T) < SHADOW_RANGE
    if light.sun.any():
        faces = Faces.towards(solids, None, light.direction)
        outlines = faces.corners[near[faces.solids]]
        outlines = outlines - light.direction * (outlines[..., 2:] / light.direction[2])
        level = light.sun * light.direction[2]
        strength, softness = float((level / (level + light.ambient)).mean()), 3
    else:
        near &= solids.centers[:, 2] - solids.sizes[:, 2] / 2 < 0.4
        widened = Solids(**{**vars(solids), "sizes": solids.sizes + np.array([0.3, 0.3, 0])})
        faces = Faces.towards(widened, None, np.array([0, 0, 1.0]))
        outlines = faces.corners[near[faces.solids]] * [1, 1, 0]
        strength, softness = 0.5, 9
    pixels, _ = project((outlines - position) @ rotation, surfaces.intrinsics)
    mask = np.zeros(surfaces.depth.shape, np.uint8)
    height, width = mask.shape
    inside = (pixels.max(axis=1) > 0).all(axis=1) & (pixels.min(axis=1) < [width, height]).all(axis=1)
    for outline in np.rint(pixels[inside] * 16).clip(-(2**28), 2**28).astype(np.int32):
        cv2.fillConvexPoly(mask, outline, (255,), shift=4)
    return cv2.blur(mask, (softness, softness)).astype(np.float32) * (strength / 255)


def _near_ground(surfaces: Surfaces) -> np.ndarray:
    """(H, W) share of the sky's light that reaches a standing surface, less near the ground."""
    return (0.7 + 0.3 * surfaces.points[2] / 1.0).clip(0.7, 1)


def _wet_mirror(surfaces: Surfaces, circumstances: Weather, light: Light) -> np.ndarray:
    """(H, W, 3) the sky mirrored in the film of water on the ground."""
    down = -surfaces.rays[2]
    cosines = (down / np.sqrt((surfaces.rays**2).sum(axis=0))).clip(0, 1)
    ripples = 1 + 0.5 * texture(surfaces)
    mirrored = (1 - weather.film_transmission(cosines)) * ripples * weather.wetness(circumstances)
    return np.where(surfaces.ground, mirrored, 0)[..., None] * light.horizon * 0.7


def _lamplight(surfaces: Surfaces, solids: Solids, global_from_ego: np.ndarray | None) -> np.ndarray:
    """(H, W, 3) light that falls on each surface from the lamps around and from the vehicle's headlights: intensity,
    times the cosine of incidence, over the squared distance."""
    height, width = surfaces.depth.shape
    points = surfaces.points[:, ::COARSE, ::COARSE]
    normals = np.append(surfaces.faces.normals, [[0, 0, 1]], axis=0).astype(np.float32)
    normals = normals[surfaces.face_at[::COARSE, ::COARSE]].transpose(2, 0, 1)
    total = np.zeros((*points.shape[1:], 3), np.float32)

    lamps = np.flatnonzero(solids.lamps > 0.7)
    distance = np.linalg.norm(solids.centers[lamps] - surfaces.global_from_camera[:3, 3], axis=1)
    for lamp in lamps[np.argsort(distance, kind="stable")[:24]]:
        colour = (solids.colours[lamp].astype(np.float32) / 255) ** 2
        hangs = solids.centers[lamp, 2] > 2.5
        lux, _ = _illuminance(points, normals, solids.centers[lamp], STREET_LAMP if hangs else CAR_LAMP)
        total += lux[..., None] * colour
    if global_from_ego is not None:
        ego_from_global = np.linalg.inv(global_from_ego)
        for side in (0.6, -0.6):
            lux, towards = _illuminance(points, normals, (global_from_ego @ [3.5, side, 0.7, 1])[:3], LOW_BEAM)
            forward, left, up = np.tensordot(ego_from_global[:3, :3].astype(np.float32), -towards, axes=1)
            azimuth, elevation = np.arctan2(left, forward), np.arcsin(up.clip(-1, 1))
            # Low beam: a broad fan, brightest just below the horizon and cut off above it.
            fan = np.exp(-((azimuth / 0.45) ** 2)) * np.where(elevation < 0, np.exp(elevation / 0.15), 0.02)
            total += (lux * fan)[..., None] * np.array([1.0, 0.93, 0.8], np.float32)
    return cv2.resize(total * LUX, (width, height))


def _illuminance(
    points: np.ndarray, normals: np.ndarray, lamp: np.ndarray, candela: float
) -> tuple[np.ndarray, np.ndarray]:
    """(h, w) lux on surfaces at points (3, h, w) with those normals, and (3, h, w) unit vectors to the lamp."""
    towards = lamp.astype(np.float32)[:, None, None] - points
    squared = (towards**2).sum(axis=0) + 0.25
    towards /= np.sqrt(squared)
    return candela * (towards * normals).sum(axis=0).clip(0) / squared, towards


def texture(surfaces: Surfaces) -> np.ndarray:
    """(H, W) grain of surfaces, about -1 to 1, fixed in the world, and finer than a pixel far away: fading to 0."""
    x, y, z = surfaces.points
    standing = surfaces.face_at >= 0
    first, second = np.where(standing, x + y, x), np.where(standing, 1.7 * z, y)
    near, far = np.exp(-surfaces.depth / 12), np.exp(-surfaces.depth / 60)
    return near * _sample(first * 40, second * 40) + far * _sample(first * 7, second * 7)


def _sample(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The noise at the points, of unit wavelength some four units long."""
    return _noise()[v.astype(np.int64) & 255, u.astype(np.int64) & 255]


@cache
def _noise() -> np.ndarray:
    """(256, 256) float32 smooth noise that repeats without a seam."""
    white = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
    smooth = cv2.GaussianBlur(np.tile(white, (3, 3)), (0, 0), 1.5)[256:512, 256:512]
    return smooth / (2 * smooth.std())
