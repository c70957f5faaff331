"""Lighting of the surfaces in a camera's view: sun, sky, shadows, lamps and headlights.

Light is linear, in units of the light that white ground reflects under an overcast sky at noon (about 10 000 lux).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import cv2
import numpy as np

from perception.simulate import weather_effects
from perception.simulate.rasterize import Faces, project
from perception.simulate.snapshot import Snapshot, Solids, Weather

LUX = 1e-4  # in the unit of light
STREET_LAMP, CAR_LAMP, LOW_BEAM = 2500.0, 120.0, 25000.0  # cd; CAR_LAMP is the stray light of other vehicles' lamps
LAMP_LUMINANCE = 0.05
SHADOW_RANGE = 70.0  # m
SKY_DISTANCE = 1500.0  # m, height of the weather
LAMP_SUBSAMPLING = 2  # lamplight is smooth, so it is computed on every other pixel of each axis


@dataclass(frozen=True)
class Surfaces:
    """The visible surface at each pixel of an image."""

    solids: Solids  # in view
    faces: Faces  # of `solids`
    face_at: np.ndarray  # (H, W) int32 index of the face, -1 for ground or sky
    sky: np.ndarray  # (H, W) bool
    points: np.ndarray  # (3, H, W) float32 global, m
    rays: np.ndarray  # (3, H, W) float32 global direction, scaled to unit depth
    depth: np.ndarray  # (H, W) float32 m along the optical axis
    intrinsics: np.ndarray  # (3, 3)
    global_from_camera: np.ndarray  # (4, 4)

    @property
    def ground(self) -> np.ndarray:
        """(H, W) bool."""
        return (self.face_at < 0) & ~self.sky

    @cached_property
    def ray_lengths(self) -> np.ndarray:
        """(H, W) float32 m from the camera per m of depth."""
        x, y, z = self.rays
        return np.sqrt(x * x + y * y + z * z)

    @cached_property
    def upright(self) -> np.ndarray:
        """(H, W) bool: vertical faces, unlike ground, sky, and the tops and undersides of boxes."""
        return np.append(np.abs(self.faces.normals[:, 2]) < 0.5, False)[self.face_at]

    @cached_property
    def across(self) -> np.ndarray:
        """(H, W) float32 m, horizontal coordinate along a vertical face; global x elsewhere."""
        tangents = np.where(self.faces.normals[:, 2:] ** 2 < 0.25, self.faces.normals[:, [1, 0]] * [-1, 1], [1, 0])
        tangents = np.append(tangents, [[1, 0]], axis=0).astype(np.float32)
        return tangents[:, 0][self.face_at] * self.points[0] + tangents[:, 1][self.face_at] * self.points[1]

    @cached_property
    def windows(self) -> np.ndarray:
        """(H, W) uint8 upper windows of buildings, which `Solids` does not model: 1 dark, 2 lit, 0 elsewhere."""
        solids = self.solids
        building = (solids.owners < 0) & (solids.sizes[:, :2].min(axis=1) > 4) & (solids.sizes[:, 2] > 5)
        building &= ~is_foliage(solids)
        wall = np.append(building[self.faces.solids], False)[self.face_at] & self.upright
        across, up = self.across[wall] / 3.2, self.points[2][wall] / 3.3
        bay, floor = np.floor(across), np.floor(up)
        glass = (floor > 0) & (np.abs(across - bay - 0.5) < 0.26) & (np.abs(up - floor - 0.55) < 0.24)
        lit = _sample(bay * 37 + floor * 11, floor * 59 + bay * 5) > 0.35
        windows = np.zeros(wall.shape, np.uint8)
        windows[wall] = np.where(glass, 1 + lit, 0)
        return windows

    @property
    def distance(self) -> np.ndarray:
        """(H, W) float32 m from the camera; SKY_DISTANCE to the sky."""
        return np.where(self.sky, np.float32(SKY_DISTANCE), self.depth * self.ray_lengths)


@dataclass(frozen=True)
class Light:
    """Sunlight and skylight (RGB), and the exposure of the camera."""

    sun: np.ndarray  # (3,) irradiance of a surface that faces the sun
    direction: np.ndarray  # (3,) unit vector to the sun
    ambient: np.ndarray  # (3,) irradiance of level ground by the sky
    horizon: np.ndarray  # (3,) radiance of the sky at the horizon, and of dense haze
    zenith: np.ndarray  # (3,) radiance of the sky at the zenith
    exposure: float  # relative to noon
    gain: float  # of the sensor's amplifier

    @staticmethod
    def of(weather: Weather) -> Light:
        def rgb(r: float, g: float, b: float) -> np.ndarray:
            return np.array([r, g, b], np.float32)

        direction = np.array([0.45, -0.55, 0.7])
        direction /= np.linalg.norm(direction)
        dark = rgb(0, 0, 0)
        if weather.night:
            sky = rgb(0.6, 0.75, 1.2)
            return Light(dark, direction, sky * 3e-4, sky * 5e-4, sky * 2e-4, 4.0, 30.0)
        falls = weather.rain > 0 or weather.snow > 0
        if falls or weather.overcast or weather.visibility < 2000:
            grey = rgb(0.92, 0.96, 1.0) * (0.7 if falls else 1.0)
            return Light(dark, direction, grey * 0.8, grey * 0.75, grey * 0.6, 1.0, 1.15)
        blue = rgb(0.75, 0.9, 1.15)
        return Light(rgb(1.0, 0.93, 0.8), direction, blue * 0.42, rgb(0.52, 0.7, 0.92), rgb(0.06, 0.2, 0.62), 1.0, 0.95)


def radiance(
    surfaces: Surfaces, albedo: np.ndarray, snapshot: Snapshot, light: Light, global_from_ego: np.ndarray | None
) -> np.ndarray:
    """(3, H, W) float32 radiance of the surface or sky at each pixel, before the atmosphere.

    albedo: (3, H, W). global_from_ego: (4, 4) pose of the vehicle whose headlights are on at night.
    """
    faces, ground = surfaces.faces, surfaces.ground
    facing = (faces.normals @ light.direction).clip(0)[:, None] * light.sun
    from_sky = (0.62 + 0.38 * faces.normals[:, 2:]) * light.ambient
    level = light.direction[2] * light.sun + light.ambient
    irradiance = _by_face(surfaces, facing + from_sky, level)
    irradiance *= np.where(ground, 1 - _shadows(surfaces, snapshot.solids, light), _sky_occlusion(surfaces))
    if snapshot.weather.night:
        irradiance += _lamplight(surfaces, snapshot.solids, global_from_ego)
    total = albedo * irradiance
    if weather_effects.wetness(snapshot.weather) > 0:
        total += _wet_ground_reflection(surfaces, snapshot.weather, light)
    total += _gloss_and_lamps(surfaces, light, night=snapshot.weather.night)
    total[:, surfaces.sky] = _sky(surfaces, light, clear=bool(light.sun.any()))
    return total


def _by_face(surfaces: Surfaces, colours: np.ndarray, background: np.ndarray) -> np.ndarray:
    """(3, H, W) float32 the colour (F, 3) of the face at each pixel; `background` (3,) on ground and sky."""
    return np.append(colours, background[None], axis=0).astype(np.float32).T[:, surfaces.face_at]


def _gloss(surfaces: Surfaces, light: Light) -> np.ndarray:
    """(F, 3) skylight reflected by the paint and glass of agents: Schlick's approximation at the face's middle."""
    faces = surfaces.faces
    to_camera = surfaces.global_from_camera[:3, 3] - faces.corners.mean(axis=1)
    cosines = (to_camera * faces.normals).sum(axis=1) / np.linalg.norm(to_camera, axis=1)
    mirrored = 0.02 + 0.5 * (1 - cosines.clip(0, 1)) ** 5
    sees_sky = 0.5 + 0.5 * faces.normals[:, 2]
    return (mirrored * sees_sky * (surfaces.solids.owners[faces.solids] >= 0))[:, None] * light.horizon


def _gloss_and_lamps(surfaces: Surfaces, light: Light, night: bool) -> np.ndarray:
    """(3, H, W) light that does not depend on albedo: reflections in agents, lamps and, at night, lit windows and the
    lens's halo around them."""
    solid = surfaces.faces.solids
    colours = (surfaces.solids.colours[solid] / 255) ** 2 * surfaces.solids.lamps[solid, None] ** 2
    colours = colours * (LAMP_LUMINANCE if night else 0.5) + _gloss(surfaces, light)
    emitted = _by_face(surfaces, colours, np.zeros(3))
    if night:
        emitted[:, surfaces.windows == 2] = np.array([[0.006], [0.0045], [0.0022]], np.float32)
        height, width = surfaces.depth.shape
        for plane in emitted:
            small = cv2.resize(plane, (width // 4, height // 4), interpolation=cv2.INTER_AREA)
            plane += 0.35 * cv2.resize(cv2.GaussianBlur(small, (0, 0), 4), (width, height))
    return emitted


def _sky(surfaces: Surfaces, light: Light, clear: bool) -> np.ndarray:
    """(3, N) radiance of the N sky pixels: a gradient from horizon to zenith, with thin clouds on a clear day."""
    x, y, z = surfaces.rays[:, surfaces.sky]
    elevation = (z / surfaces.ray_lengths[surfaces.sky]).clip(0.001)
    height = np.sqrt(elevation)
    sky = light.horizon[:, None] * (1 - height) + light.zenith[:, None] * height
    if clear:
        flat = z.clip(0.02) + 0.1 * np.hypot(x, y)  # clouds on a plane, less stretched at the horizon
        cloud = _sample(x / flat * 60, y / flat * 60, _noise(1024, (14.0, 6.0, 2.5)))
        sky += (cloud * 1.2 - 0.1).clip(0, 0.85) * (elevation * 8).clip(0, 1) * (1 - sky)
    return sky


def _shadows(surfaces: Surfaces, solids: Solids, light: Light) -> np.ndarray:
    """(H, W) share of the light on the ground that solids block: cast shadows or, without sun, contact shadows."""
    position, rotation = surfaces.global_from_camera[:3, 3], surfaces.global_from_camera[:3, :3]
    near = np.hypot(*(solids.centers[:, :2] - position[:2]).T) < SHADOW_RANGE
    if light.sun.any():
        faces = Faces.facing(solids, None, light.direction)
        outlines = faces.corners[near[faces.solids]]
        outlines = outlines - light.direction * (outlines[..., 2:] / light.direction[2])
        level = light.sun * light.direction[2]
        strength, softness = float((level / (level + light.ambient)).mean()), 3
    else:
        near &= solids.centers[:, 2] - solids.sizes[:, 2] / 2 < 0.4
        widened = Solids(**{**vars(solids), "sizes": solids.sizes + np.array([0.3, 0.3, 0])})
        faces = Faces.facing(widened, None, np.array([0, 0, 1.0]))
        outlines = faces.corners[near[faces.solids]] * [1, 1, 0]
        strength, softness = 0.5, 9
    pixels, _ = project((outlines - position) @ rotation, surfaces.intrinsics)
    mask = np.zeros(surfaces.depth.shape, np.uint8)
    height, width = mask.shape
    inside = (pixels.max(axis=1) > 0).all(axis=1) & (pixels.min(axis=1) < [width, height]).all(axis=1)
    for outline in np.rint(pixels[inside] * 16).clip(-(2**28), 2**28).astype(np.int32):
        cv2.fillConvexPoly(mask, outline, (255,), shift=4)
    return cv2.blur(mask, (softness, softness)).astype(np.float32) * (strength / 255)


def _sky_occlusion(surfaces: Surfaces) -> np.ndarray:
    """(H, W) share of the skylight that reaches a surface; less near the ground."""
    return (0.7 + 0.3 * surfaces.points[2] / 1.0).clip(0.7, 1)


def _wet_ground_reflection(surfaces: Surfaces, weather: Weather, light: Light) -> np.ndarray:
    """(3, H, W) skylight reflected by the film of water on the ground."""
    cosines = (-surfaces.rays[2] / surfaces.ray_lengths).clip(0, 1)
    mirrored = (
        (1 - weather_effects.film_transmission(cosines))
        * (1 + 0.2 * texture(surfaces))
        * (weather_effects.wetness(weather) * (1 - weather.snow_cover))
    )
    return np.where(surfaces.ground, mirrored, np.float32(0)) * (0.7 * light.horizon[:, None, None])


def _lamplight(surfaces: Surfaces, solids: Solids, global_from_ego: np.ndarray | None) -> np.ndarray:
    """(3, H, W) irradiance of the surfaces by the ten strongest lamps and by the ego vehicle's headlights."""
    height, width = surfaces.depth.shape
    sampled = (slice(LAMP_SUBSAMPLING // 2, None, LAMP_SUBSAMPLING),) * 2
    points = surfaces.points[:, sampled[0], sampled[1]]
    normals = np.append(surfaces.faces.normals, [[0, 0, 1]], axis=0).astype(np.float32)
    normals = normals[surfaces.face_at[sampled]].transpose(2, 0, 1)
    total = np.zeros(points.shape, np.float32)

    lamps = np.flatnonzero(solids.lamps > 0.7)
    candela = np.where(solids.centers[lamps, 2] > 2.5, STREET_LAMP, CAR_LAMP)
    distance = np.linalg.norm(solids.centers[lamps] - surfaces.global_from_camera[:3, 3], axis=1)
    for i in np.argsort(distance**2 / candela, kind="stable")[:10]:
        lamp = lamps[i]
        colour = (solids.colours[lamp].astype(np.float32) / 255) ** 2
        lux, _ = _illuminance(points, normals, solids.centers[lamp], candela[i])
        total += lux * colour[:, None, None]
    if global_from_ego is not None:
        ego_from_global = np.linalg.inv(global_from_ego)
        for side in (0.6, -0.6):
            lux, to_lamp = _illuminance(points, normals, (global_from_ego @ [3.5, side, 0.7, 1])[:3], LOW_BEAM)
            forward, left, up = np.tensordot(ego_from_global[:3, :3].astype(np.float32), -to_lamp, axes=1)
            azimuth, elevation = np.arctan2(left, forward), np.arcsin(up.clip(-1, 1))
            # Low beam: wide in azimuth, brightest just below the horizon, cut off above it.
            beam = np.exp(-((azimuth / 0.45) ** 2)) * np.where(elevation < 0, np.exp(elevation / 0.15), 0.02)
            total += lux * beam * np.array([1.0, 0.93, 0.8], np.float32)[:, None, None]
    # Ground, level and upright surfaces are upsampled separately, so that light does not bleed between them.
    kinds = np.where(surfaces.upright, 2, surfaces.face_at >= 0)
    small = kinds[sampled]
    planes = [_upsample(total, small == kind, width, height) for kind in range(3)]
    return np.where(kinds == 0, planes[0], np.where(kinds == 1, planes[1], planes[2])) * np.float32(LUX)


def _upsample(coarse: np.ndarray, valid: np.ndarray, width: int, height: int) -> np.ndarray:
    """(3, H, W) bilinear upsampling of coarse (3, h, w) from its valid (h, w) values only."""
    weight = cv2.resize(valid.astype(np.float32), (width, height)) + np.float32(1e-6)
    return np.stack([cv2.resize(plane * valid, (width, height)) / weight for plane in coarse])


def _illuminance(
    points: np.ndarray, normals: np.ndarray, lamp: np.ndarray, candela: float
) -> tuple[np.ndarray, np.ndarray]:
    """(h, w) lux on surfaces at points (3, h, w) with these normals, and (3, h, w) unit vectors to the lamp."""
    to_lamp = lamp.astype(np.float32)[:, None, None] - points
    squared = (to_lamp**2).sum(axis=0) + 0.25
    to_lamp /= np.sqrt(squared)
    return candela * (to_lamp * normals).sum(axis=0).clip(0) / squared, to_lamp


def is_foliage(solids: Solids) -> np.ndarray:
    """(M,) bool: green boxes that are part of no agent."""
    red, green, blue = solids.colours.T.astype(np.int64)
    return (solids.owners < 0) & (green > 1.15 * np.maximum(red, blue))


def texture(surfaces: Surfaces) -> np.ndarray:
    """(H, W) surface texture in about [-1, 1], fixed in the world; it fades out where it is finer than a pixel."""
    first, second = surfaces.across, np.where(surfaces.upright, 1.7 * surfaces.points[2], surfaces.points[1])
    fine, coarse = np.exp(surfaces.depth * np.float32(-1 / 12)), np.exp(surfaces.depth * np.float32(-1 / 60))
    return fine * _sample(first * 40, second * 40) + coarse * _sample(first * 8, second * 8)


def _sample(u: np.ndarray, v: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
    """Tiled noise at the points (u, v); by default the fine noise of surfaces."""
    noise = _noise(256, (1.5,)) if noise is None else noise
    size = len(noise)
    return noise.ravel()[(v.astype(np.int32) % size) * size + u.astype(np.int32) % size]


@cache
def _noise(size: int, scales: tuple[float, ...]) -> np.ndarray:
    """(size, size) float32 seamless noise with standard deviation 0.5: a sum of Gaussian-blurred noise of the given
    scales (pixels), coarser ones with more weight."""
    white = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    wrapped = cv2.copyMakeBorder(white, 64, 64, 64, 64, cv2.BORDER_WRAP)
    smooth = sum(scale**1.5 * cv2.GaussianBlur(wrapped, (0, 0), scale)[64:-64, 64:-64] for scale in scales)
    return smooth / (2 * smooth.std())
