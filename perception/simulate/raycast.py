"""Ray casting: exact intersections with upright boxes and the ground plane."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perception.simulate.snapshot import Solids

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
    widened by the motion of origins and solids. The slab test itself (Kay & Kajiya, "Ray Tracing Complex Scenes",
    SIGGRAPH 1986) is exact.

    Args:
        velocities: (M, 3) m/s of the solids; when a ray is fired they are displaced by velocity * time.
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
    spread = np.abs(_wrapped(azimuths - column_middle[:, None])).max(axis=1)
    elevations = np.arcsin(rays.directions[..., 2].clip(-1, 1))

    sees_column = np.abs(_wrapped(column_middle - middle[:, None])) <= half_width[:, None] + spread
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
    half_width = np.abs(_wrapped(np.arctan2(y, x) - middle[:, None])).max(axis=1)

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


def _wrapped(angles: np.ndarray) -> np.ndarray:
    """The angles (rad) wrapped to (-pi, pi]."""
    return angles - 2 * np.pi * np.round(angles / (2 * np.pi))
