"""A spinning LiDAR that casts its rays into the simulated world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from perception.rig import Beams, Box, RigLidar
from perception.simulate import weather_effects
from perception.simulate.snapshot import GROUND_CATEGORIES, NOISE, Ground, Snapshot, Solids

NOTHING, GROUND = -2, -1  # values of `Hits.solids`


@dataclass(frozen=True)
class Rays:
    """C firings of R beams each; the beams of a firing share origin and time."""

    origins: np.ndarray  # (C, 3) m, global
    directions: np.ndarray  # (C, R, 3) unit vectors, global
    times: np.ndarray  # (C,) s, relative to the time of the positions in `Solids`


@dataclass(frozen=True)
class Hits:
    """The first intersection of each ray."""

    ranges: np.ndarray  # (C, R) m; inf for none
    solids: np.ndarray  # (C, R) int64 index of the solid, or GROUND, or NOTHING
    cosines: np.ndarray  # (C, R) of the angle of incidence, in [0, 1]


def cast(rays: Rays, solids: Solids, velocities: np.ndarray) -> Hits:
    """First intersection of every ray with the solids, entered from outside, and with the ground z = 0.

    A ray is tested only against solids whose angular extent contains it, seen from the middle of all origins and
    widened by the motion of origins and solids (velocities (M, 3) m/s). The slab test itself (Kay & Kajiya, "Ray
    Tracing Complex Scenes", SIGGRAPH 1986) is exact.
    """
    columns, beams = rays.directions.shape[:2]
    down = rays.directions[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        ground = np.where(down < 0, -rays.origins[:, None, 2] / down, np.inf)
    ranges = np.where(ground >= 0, ground, np.inf).ravel()
    hit = np.where(np.isfinite(ranges), GROUND, NOTHING)
    cosines = np.where(np.isfinite(ranges), np.abs(down).ravel(), 0.0)

    solid, column, beam = _candidates(rays, solids, velocities)
    distance, cosine = _enter_boxes(rays, solids, velocities, solid, column, beam)
    ray = column * beams + beam
    pairs = np.flatnonzero(distance < ranges[ray])
    pairs = pairs[np.argsort(-distance[pairs], kind="stable")]  # far to near: the nearest overwrites the others
    ranges[ray[pairs]] = distance[pairs]
    hit[ray[pairs]] = solid[pairs]
    cosines[ray[pairs]] = cosine[pairs]
    shape = (columns, beams)
    return Hits(ranges.reshape(shape), hit.reshape(shape), cosines.reshape(shape))


def _enter_boxes(
    rays: Rays, solids: Solids, velocities: np.ndarray, solid: np.ndarray, column: np.ndarray, beam: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) range at which each ray enters its box, inf for never, and (N,) the cosine of incidence there."""
    offset = rays.origins[column] - solids.centers[solid] - velocities[solid] * rays.times[column, None]
    direction = rays.directions[column, beam]
    cos, sin = np.cos(solids.yaws)[solid], np.sin(solids.yaws)[solid]
    half = solids.sizes[solid].T / 2
    position = np.stack(
        [cos * offset[:, 0] + sin * offset[:, 1], cos * offset[:, 1] - sin * offset[:, 0], offset[:, 2]]
    )
    slope = np.stack(
        [cos * direction[:, 0] + sin * direction[:, 1], cos * direction[:, 1] - sin * direction[:, 0], direction[:, 2]]
    )
    # A ray parallel to a face would divide zero by zero; a negligible slope keeps the slab test free of NaN.
    slope = np.where(np.abs(slope) < 1e-12, 1e-12, slope)
    near = (-np.copysign(half, slope) - position) / slope
    far = (np.copysign(half, slope) - position) / slope
    entry = near.max(axis=0)
    enters = (entry <= far.min(axis=0)) & (entry > 0)
    cosine = np.abs(slope[near.argmax(axis=0), np.arange(len(entry))])
    return np.where(enters, entry, np.inf), cosine


def _candidates(rays: Rays, solids: Solids, velocities: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N,) solid, column and beam of the pairs that may intersect: a superset, by azimuth and elevation."""
    centre = (rays.origins.min(axis=0) + rays.origins.max(axis=0)) / 2
    drift = np.linalg.norm(rays.origins - centre, axis=1).max(initial=0)
    drift = drift + np.linalg.norm(velocities, axis=1) * np.abs(rays.times).max(initial=0)  # (M,)
    middle, half_width, low, high = _angular_extent(solids, centre, drift)

    azimuths = np.arctan2(rays.directions[..., 1], rays.directions[..., 0])
    column_middle = azimuths[:, azimuths.shape[1] // 2]
    spread = np.abs(_wrap(azimuths - column_middle[:, None])).max(axis=1)
    elevations = np.arcsin(rays.directions[..., 2].clip(-1, 1))

    sees_column = np.abs(_wrap(column_middle - middle[:, None])) <= half_width[:, None] + spread
    sees_beam = (elevations.max(axis=0) >= low[:, None]) & (elevations.min(axis=0) <= high[:, None])
    solid, column = np.nonzero(sees_column)
    pair, beam = np.nonzero(sees_beam[solid])
    return solid[pair], column[pair], beam


def _angular_extent(
    solids: Solids, centre: np.ndarray, drift: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(M,) central azimuth, half the azimuth width, lowest and highest elevation in rad, seen from anywhere within
    `drift` (M,) m of the centre. The full circle for a solid that may contain the viewpoint or lie above it."""
    margin = 1e-6  # rad: rounding
    cos, sin = np.cos(solids.yaws)[:, None], np.sin(solids.yaws)[:, None]
    half = solids.sizes / 2
    along, across = half[:, :1] * np.array([1, 1, -1, -1]), half[:, 1:2] * np.array([1, -1, -1, 1])
    offset = solids.centers - centre
    x = offset[:, :1] + cos * along - sin * across
    y = offset[:, 1:2] + sin * along + cos * across
    middle = np.arctan2(offset[:, 1], offset[:, 0])
    half_width = np.abs(_wrap(np.arctan2(y, x) - middle[:, None])).max(axis=1)

    # The nearest horizontal distance, from the position of the centre in the box's frame.
    forward = np.abs(cos[:, 0] * offset[:, 0] + sin[:, 0] * offset[:, 1]) - half[:, 0]
    sideways = np.abs(cos[:, 0] * offset[:, 1] - sin[:, 0] * offset[:, 0]) - half[:, 1]
    nearest = np.hypot(forward.clip(0), sideways.clip(0))
    around = nearest <= drift
    farthest = np.hypot(x, y).max(axis=1) + drift
    widening = np.arcsin((drift / np.maximum(nearest, 1e-9)).clip(0, 1))
    nearest = np.maximum(nearest - drift, 1e-9)
    top, bottom = offset[:, 2] + half[:, 2] + drift, offset[:, 2] - half[:, 2] - drift
    high = np.arctan2(top, np.where(top > 0, nearest, farthest))
    low = np.arctan2(bottom, np.where(bottom > 0, farthest, nearest))
    half_width = np.where(around, np.pi, half_width + widening)
    return middle, half_width + margin, low - margin, high + margin


def _wrap(angles: np.ndarray) -> np.ndarray:
    """The angles (rad) wrapped to (-pi, pi]."""
    return angles - 2 * np.pi * np.round(angles / (2 * np.pi))


# A spinning LiDAR modelled on the Velodyne HDL-32E of nuScenes; a rig gives its rings, firings and reach.

SWEEP_SECONDS = 0.05
MIN_RANGE = 1.0  # m
RANGE_NOISE = 0.02  # m, standard deviation
SENSITIVITY = 1e-5  # 1/m^2: a matt wall of 10 % reflectance is detected at 100 m half of the time
SIGNAL_SPREAD = 0.4  # standard deviation of the logarithm of the signal: speckle, and texture finer than `Solids`
NEVER_DETECTED = SENSITIVITY * np.exp(-4 * SIGNAL_SPREAD)  # 1/m^2: even four standard deviations above it are not
ROUGHNESS = 0.3  # rad, in the Oren-Nayar model
REFLECTANCES = {  # at 905 nm
    Ground.GRASS: 0.45,
    Ground.ROAD: 0.17,
    Ground.MARKING: 0.6,
    Ground.CROSSING: 0.6,
    Ground.WALKWAY: 0.3,
    Ground.CARPARK: 0.2,
    Ground.YELLOW: 0.5,
}
_GROUND_REFLECTANCES = np.array([REFLECTANCES[kind] for kind in Ground])


@dataclass(frozen=True)
class LidarSweep:
    """N returns of one revolution."""

    points: np.ndarray  # (N, 5) float32: x y z m, intensity 0-255, ring
    owners: np.ndarray  # (N,) int64 index of the agent that was hit, -1 for anything else
    categories: np.ndarray  # (N,) uint8 index into `CATEGORIES`


def sweep(
    snapshot_at: Callable[[float], Snapshot],
    global_from_ego_at: Callable[[float], np.ndarray],
    time: float,
    sensor: RigLidar,
    body: Sequence[Box],
    rng: np.random.Generator,
) -> LidarSweep:
    """The revolution that ends at `time` (s), which is its timestamp, as in nuScenes; the body blocks beams.

    nuScenes' starts on the left and runs clockwise, so that the beam crosses the axis of each camera about when that
    exposes: the front 36 ms before the sweep's timestamp, the rear 11 ms before. Points are compensated for the motion
    of the ego vehicle: all are in the LiDAR's frame at `time`. The motion of agents, linear during the revolution, is
    not compensated.
    """
    ego_from_lidar, columns, reach = sensor.ego_from_sensor, sensor.beams.columns, sensor.beams.reach
    firing_times = time - SWEEP_SECONDS * (1 - np.arange(columns) / columns)
    directions = _directions(sensor.beams)
    middle = time - SWEEP_SECONDS / 2
    snapshot = snapshot_at(middle)
    global_from_lidar = _interpolate_poses(global_from_ego_at, firing_times) @ ego_from_lidar
    rays = Rays(
        origins=global_from_lidar[:, :3, 3],
        directions=directions @ global_from_lidar[:, :3, :3].transpose(0, 2, 1),
        times=firing_times - middle,
    )
    solids = _within(snapshot.solids, rays.origins[columns // 2], reach + 5)
    solids = Solids.concatenate(solids, weather_effects.spray(snapshot, rng))
    velocities = np.append(snapshot.agent_velocities, np.zeros((1, 3)), axis=0)[solids.owners]  # -1: the zeros
    hits = cast(rays, solids, velocities)
    ranges, echoes, owners, categories = _echoes(hits, rays, solids, snapshot, rng)

    spread = np.exp(rng.normal(-(SIGNAL_SPREAD**2) / 2, SIGNAL_SPREAD, ranges.shape))  # of mean 1
    echoes = echoes * spread
    detected = echoes / ranges**2 > SENSITIVITY
    detected &= (ranges >= MIN_RANGE) & (ranges <= reach) & ~_is_blocked(body, directions, ego_from_lidar)
    column, ring = np.nonzero(detected)
    measured = ranges[detected] + rng.normal(0, RANGE_NOISE, len(column))
    # The HDL-32E reports reflectivity, 100 for a matt white wall, compensated for range but not for weather.
    intensity = np.rint(100 * echoes[detected]).clip(0, 255)
    global_xyz = rays.origins[column] + rays.directions[detected] * measured[:, None]
    lidar_from_global = np.linalg.inv(global_from_ego_at(time) @ ego_from_lidar)
    xyz = global_xyz @ lidar_from_global[:3, :3].T + lidar_from_global[:3, 3]
    points = np.column_stack([xyz, intensity, ring])
    return LidarSweep(points.astype(np.float32), owners[detected], categories[detected])


def _directions(beams: Beams) -> np.ndarray:
    """(C, R, 3) unit vectors of the beams of each firing, in the LiDAR's frame."""
    elevations = np.deg2rad(np.linspace(*beams.elevation, beams.rings))
    azimuths = np.deg2rad(beams.first) - 2 * np.pi * np.arange(beams.columns) / beams.columns
    horizontal = np.stack([np.cos(azimuths), np.sin(azimuths)], axis=1)
    directions = np.empty((beams.columns, beams.rings, 3))
    directions[..., :2] = horizontal[:, None] * np.cos(elevations)[:, None]
    directions[..., 2] = np.sin(elevations)
    return directions


def _echoes(
    hits: Hits, rays: Rays, solids: Solids, snapshot: Snapshot, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Range (m, inf for none), signal, owner and category of the strongest echo in each beam, all (C, R)."""
    weather = snapshot.weather
    solid, ground = hits.solids >= 0, hits.solids == GROUND
    reflectances, owners = np.zeros(hits.ranges.shape), np.full(hits.ranges.shape, -1)
    categories = np.full(hits.ranges.shape, NOISE, np.uint8)
    reflectances[solid] = solids.reflectances[hits.solids[solid]]
    owners[solid] = solids.owners[hits.solids[solid]]
    categories[solid] = solids.categories[hits.solids[solid]]
    column, _ = np.nonzero(ground)
    ground_xyz = rays.origins[column] + rays.directions[ground] * hits.ranges[ground][:, None]
    kinds = snapshot.ground.at(ground_xyz[:, :2])
    categories[ground] = GROUND_CATEGORIES[kinds]
    dry = _GROUND_REFLECTANCES[kinds]
    wet = weather_effects.wet_albedo(dry) * weather_effects.film_transmission(hits.cosines[ground]) ** 2
    bare = dry + weather_effects.wetness(weather) * (wet - dry)
    reflectances[ground] = weather_effects.under_snow(bare, weather.snow_cover, weather_effects.SNOW_REFLECTANCE)

    ranges = hits.ranges
    path = 2 * np.where(hits.solids == NOTHING, 0, ranges)
    transmission = np.exp(-weather_effects.extinction(weather) * path)  # Beer-Lambert
    echoes = reflectances * oren_nayar(hits.cosines) * transmission
    air_ranges, air_echoes = weather_effects.volume_echo(weather, NEVER_DETECTED, ranges.size, rng)
    air_ranges, air_echoes = air_ranges.reshape(ranges.shape), air_echoes.reshape(ranges.shape)
    air = (air_ranges < ranges) & (air_echoes / air_ranges**2 > echoes / ranges**2)
    owners[air], categories[air] = -1, NOISE
    return np.where(air, air_ranges, ranges), np.where(air, air_echoes, echoes), owners, categories


def oren_nayar(cosines: np.ndarray) -> np.ndarray:
    """Retroreflection of a rough matt surface relative to normal incidence, by the cosine of incidence.

    Oren & Nayar, "Generalization of Lambert's Reflectance Model", SIGGRAPH 1994, with equal directions of light and
    view. It stays high at grazing incidence, as the returns of distant roads do.
    """
    variance = ROUGHNESS**2
    matt, rough = 1 - 0.5 * variance / (variance + 0.33), 0.45 * variance / (variance + 0.09)
    return (matt * cosines + rough * (1 - cosines**2)) / matt


def _interpolate_poses(pose_at: Callable[[float], np.ndarray], times: np.ndarray) -> np.ndarray:
    """(C, 4, 4) poses at the times (C,), linear between nine of them: over their 6 ms the error of the rotation is
    below a microradian."""
    knots = np.linspace(times[0], times[-1], 9)
    poses = np.stack([pose_at(float(knot)) for knot in knots])
    step = (times - knots[0]) / (knots[1] - knots[0])
    index = np.floor(step).astype(int).clip(0, 7)
    weight = (step - index)[:, None, None]
    return poses[index] * (1 - weight) + poses[index + 1] * weight


def _is_blocked(body: Sequence[Box], directions: np.ndarray, ego_from_lidar: np.ndarray) -> np.ndarray:
    """(C, R) whether the vehicle's own body blocks the beam."""
    origins = np.broadcast_to(ego_from_lidar[:3, 3], (len(directions), 3))
    rays = Rays(origins, directions @ ego_from_lidar[:3, :3].T, np.zeros(len(directions)))
    none, places = np.zeros(len(body)), np.zeros((len(body), 3))
    centers, sizes = (np.array([getattr(box, name) for box in body]).reshape(-1, 3) for name in ("center", "size"))
    solids = Solids(centers, sizes, none, places.astype(np.uint8), none, none, none, none)
    return np.asarray(cast(rays, solids, places).solids >= 0)


def _within(solids: Solids, point: np.ndarray, distance: float) -> Solids:
    """The solids whose bounding sphere reaches within this distance of the point."""
    radii = np.linalg.norm(solids.sizes, axis=1) / 2
    return solids[np.linalg.norm(solids.centers - point, axis=1) < distance + radii]
