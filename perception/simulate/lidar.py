"""A 32-beam spinning LiDAR, as nuScenes' Velodyne HDL-32E: what one turn of it records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

from perception.simulate import weather
from perception.simulate.raycast import GROUND, NOTHING, Hits, Rays, cast
from perception.simulate.scenery import Ground, Snapshot, Solids

ELEVATIONS = np.deg2rad(np.linspace(-30.67, 10.67, 32))  # of ring 0 to 31
COLUMNS = 1090  # firings in a turn
SWEEP_SECONDS = 0.05
# The turn starts on the left and runs clockwise, as in nuScenes' files, so that the beam crosses each camera's axis
# about when nuScenes' cameras expose: the front 36 ms before the sweep's timestamp, the rear 11 ms before.
FIRST_AZIMUTH = np.deg2rad(188.0)  # in the LiDAR's frame, where y points forward
MIN_RANGE, MAX_RANGE = 1.0, 105.0  # m
RANGE_NOISE = 0.02  # m, standard deviation
SENSITIVITY = 1e-5  # 1/m^2: a matt wall of 10 % reflectance is seen at 100 m, half of the time
SIGNAL_SPREAD = 0.4  # standard deviation of the logarithm of the signal: speckle, and texture finer than `Solids`
ROUGHNESS = 0.3  # rad, of Oren & Nayar
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
# nuScenes' Renault Zoe, body and cabin, in the ego frame, whose origin is the ground below the rear axle. It hides
# what is behind it from the LiDAR.
_BODY_CENTERS = np.array([[1.42, 0.0, 0.6], [0.65, 0.0, 1.25]])
_BODY_SIZES = np.array([[4.08, 1.73, 0.7], [2.1, 1.1, 0.5]])


@dataclass(frozen=True)
class LidarSweep:
    """N returns of one turn."""

    points: np.ndarray  # (N, 5) float32: x y z m, intensity 0-255, ring
    owners: np.ndarray  # (N,) int64: index of the agent that was hit, -1 for anything else


def sweep(
    snapshot_at: Callable[[float], Snapshot],
    global_from_ego_at: Callable[[float], np.ndarray],
    time: float,
    ego_from_lidar: np.ndarray,
    rng: np.random.Generator,
) -> LidarSweep:
    """The turn that ends at `time` (s), as nuScenes stamps it.

    Each firing leaves from where the vehicle is at its own moment. As in nuScenes' files, points are compensated for
    the vehicle's motion: all are in the LiDAR's frame at `time`. Agents move on straight lines during the turn, and
    that is not compensated.

    global_from_ego_at, ego_from_lidar: (4, 4).
    """
    moments = time - SWEEP_SECONDS * (1 - np.arange(COLUMNS) / COLUMNS)
    azimuths = FIRST_AZIMUTH - 2 * np.pi * np.arange(COLUMNS) / COLUMNS
    horizontal = np.stack([np.cos(azimuths), np.sin(azimuths)], axis=1)
    directions = np.empty((COLUMNS, len(ELEVATIONS), 3))  # in the LiDAR's frame
    directions[..., :2] = horizontal[:, None] * np.cos(ELEVATIONS)[:, None]
    directions[..., 2] = np.sin(ELEVATIONS)

    middle = time - SWEEP_SECONDS / 2
    snapshot = snapshot_at(middle)
    global_from_lidar = _poses(global_from_ego_at, moments) @ ego_from_lidar
    rays = Rays(
        origins=global_from_lidar[:, :3, 3],
        directions=directions @ global_from_lidar[:, :3, :3].transpose(0, 2, 1),
        times=moments - middle,
    )
    solids = _within(snapshot.solids, rays.origins[COLUMNS // 2], MAX_RANGE + 5)
    solids = _joined(solids, weather.spray(snapshot, rng))
    velocities = np.append(snapshot.agent_velocities, np.zeros((1, 3)), axis=0)[solids.owners]  # -1: the zeros
    hits = cast(rays, solids, velocities)
    ranges, echoes, owners = _echoes(hits, rays, solids, snapshot, rng)

    spread = np.exp(rng.normal(-(SIGNAL_SPREAD**2) / 2, SIGNAL_SPREAD, ranges.shape))  # of mean 1
    echoes = echoes * spread
    seen = echoes / ranges**2 > SENSITIVITY
    seen &= (ranges >= MIN_RANGE) & (ranges <= MAX_RANGE) & ~_behind_body(directions, ego_from_lidar)
    column, ring = np.nonzero(seen)
    measured = ranges[seen] + rng.normal(0, RANGE_NOISE, len(column))
    # The HDL-32E reports calibrated reflectivity, 100 for a matt white wall: range is compensated, weather is not.
    intensity = np.rint(100 * echoes[seen]).clip(0, 255)
    touched = rays.origins[column] + rays.directions[seen] * measured[:, None]
    lidar_from_global = np.linalg.inv(global_from_ego_at(time) @ ego_from_lidar)
    xyz = touched @ lidar_from_global[:3, :3].T + lidar_from_global[:3, 3]
    points = np.column_stack([xyz, intensity, ring])
    return LidarSweep(points.astype(np.float32), owners[seen])


def _echoes(
    hits: Hits, rays: Rays, solids: Solids, snapshot: Snapshot, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Range (m, inf: none), echo and owner of what each beam's receiver sees strongest, all (C, R)."""
    circumstances = snapshot.weather
    solid, ground = hits.solids >= 0, hits.solids == GROUND
    reflectances, owners = np.zeros(hits.ranges.shape), np.full(hits.ranges.shape, -1)
    reflectances[solid] = solids.reflectances[hits.solids[solid]]
    owners[solid] = solids.owners[hits.solids[solid]]
    column, _ = np.nonzero(ground)
    touched = rays.origins[column] + rays.directions[ground] * hits.ranges[ground][:, None]
    dry = _GROUND_REFLECTANCES[snapshot.ground.at(touched[:, :2])]
    wet = weather.wet_albedo(dry) * weather.film_transmission(hits.cosines[ground]) ** 2
    reflectances[ground] = dry + weather.wetness(circumstances) * (wet - dry)

    ranges = hits.ranges
    path = 2 * np.where(hits.solids == NOTHING, 0, ranges)
    transmission = np.exp(-weather.extinction(circumstances) * path)  # Beer-Lambert
    echoes = reflectances * oren_nayar(hits.cosines) * transmission
    air_ranges, air_echoes = weather.volume_echo(circumstances, ranges.size, rng)
    air_ranges, air_echoes = air_ranges.reshape(ranges.shape), air_echoes.reshape(ranges.shape)
    air = (air_ranges < ranges) & (air_echoes / air_ranges**2 > echoes / ranges**2)
    return np.where(air, air_ranges, ranges), np.where(air, air_echoes, echoes), np.where(air, -1, owners)


def oren_nayar(cosines: np.ndarray) -> np.ndarray:
    """How bright a rough matt surface looks from the light itself, relative to one square to it: Oren & Nayar,
    "Generalization of Lambert's Reflectance Model", SIGGRAPH 1994, for equal directions. At grazing
    incidence it stays bright, which is why LiDARs see roads at a distance."""
    variance = ROUGHNESS**2
    matt, rough = 1 - 0.5 * variance / (variance + 0.33), 0.45 * variance / (variance + 0.09)
    return (matt * cosines + rough * (1 - cosines**2)) / matt


def _poses(pose_at: Callable[[float], np.ndarray], moments: np.ndarray) -> np.ndarray:
    """(C, 4, 4) poses at the moments, linear between nine instants: within 6 ms a turn of the vehicle differs from
    a straight line by less than a microradian."""
    knots = np.linspace(moments[0], moments[-1], 9)
    poses = np.stack([pose_at(float(knot)) for knot in knots])
    step = (moments - knots[0]) / (knots[1] - knots[0])
    index = np.floor(step).astype(int).clip(0, 7)
    weight = (step - index)[:, None, None]
    return poses[index] * (1 - weight) + poses[index + 1] * weight


def _behind_body(directions: np.ndarray, ego_from_lidar: np.ndarray) -> np.ndarray:
    """(C, R) whether the vehicle itself stands in the beam's way."""
    origins = np.broadcast_to(ego_from_lidar[:3, 3], (len(directions), 3))
    rays = Rays(origins, directions @ ego_from_lidar[:3, :3].T, np.zeros(len(directions)))
    none = np.zeros(2)
    body = Solids(_BODY_CENTERS, _BODY_SIZES, none, np.zeros((2, 3), np.uint8), none, none, none)
    return cast(rays, body, np.zeros((2, 3))).solids >= 0


def _within(solids: Solids, point: np.ndarray, distance: float) -> Solids:
    """The solids of which a part may be nearer to the point than the distance."""
    reach = distance + np.linalg.norm(solids.sizes, axis=1) / 2
    near = np.linalg.norm(solids.centers - point, axis=1) < reach
    return Solids(**{f.name: getattr(solids, f.name)[near] for f in fields(Solids)})


def _joined(a: Solids, b: Solids) -> Solids:
    return Solids(**{f.name: np.concatenate([getattr(a, f.name), getattr(b, f.name)]) for f in fields(Solids)})
