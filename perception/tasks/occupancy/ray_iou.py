"""RayIoU: what rays like a LiDAR's meet first, and how far away. numpy only.

Liu et al., "Fully Sparse 3D Occupancy Prediction" (SparseOcc), ECCV 2024, arXiv:2312.17118, section 4, with the rays
and origins of its published code: 360 directions at the pitches of a scan whose rings are 1 m apart on the ground, from
up to eight places of the LiDAR along the drive.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from perception.grid import VoxelGrid, traverse
from perception.tasks.metric import RING
from perception.tasks.occupancy.free_space import clip_rays

THRESHOLDS = (1.0, 2.0, 4.0)  # m, of the error in distance
ORIGINS = 8  # most origins of a frame
INSIDE = 1.0  # m, least distance of an origin from the sides of the grid
_HIGHEST = 0.21  # rad, above which there is one more ring


class Hits(NamedTuple):
    """What N rays meet first; a ray that meets nothing has the class of free space."""

    classes: np.ndarray  # (N,) int64
    distances: np.ndarray  # (N,) m, to where the ray enters the voxel, or to the end of the grid
    voxels: np.ndarray  # (N,) flat index of the voxel; -1 for rays that meet nothing


@cache
def directions() -> np.ndarray:
    """(N, 3) unit vectors of the rays of one origin."""
    pitches = [-(np.pi / 2 - np.arctan(k + 1)) for k in range(10)]
    while pitches[-1] < _HIGHEST:
        pitches.append(2 * pitches[-1] - pitches[-2])
    pitch, azimuth = np.meshgrid(np.array(pitches), np.radians(np.arange(360)), indexing="ij")
    vectors = [np.cos(pitch) * np.cos(azimuth), np.cos(pitch) * np.sin(azimuth), np.sin(pitch)]
    return np.stack(vectors, axis=-1).reshape(-1, 3)


def choose_origins(places: np.ndarray, grid: VoxelGrid) -> np.ndarray:
    """(T, 3) m, at most ORIGINS of the places (N, 3) well inside the sides of a grid, evenly spaced in their order."""
    low, high = np.array([grid.x[0], grid.y[0]]) + INSIDE, np.array([grid.x[1], grid.y[1]]) - INSIDE
    inside = places[((places[:, :2] > low) & (places[:, :2] < high)).all(axis=1)]
    if len(inside) > ORIGINS:
        inside = inside[np.round(np.linspace(0, len(inside) - 1, ORIGINS)).astype(np.int64)]
    return inside


def cast(volumes: np.ndarray, grid: VoxelGrid, origins: np.ndarray, rays: np.ndarray, free: int) -> list[Hits]:
    """What rays, unit vectors (N, 3) from origins (N, 3) m, meet in each of the volumes (V, levels, rows, columns) of
    classes."""
    flat, count = volumes.reshape(len(volumes), -1), len(rays)
    first = np.full((len(volumes), count), -1, np.int64)
    last = np.full(count, -1, np.int64)
    reach = float(np.linalg.norm([high - low for low, high in (grid.x, grid.y, grid.z)]))
    waiting = np.full(len(volumes), count)
    for index, voxels in traverse(origins, origins + reach * rays, grid):
        last[index] = voxels
        for i, volume in enumerate(flat):
            met = index[(volume[voxels] != free) & (first[i, index] < 0)]
            first[i, met] = last[met]
            waiting[i] -= len(met)
        if not waiting.any():
            break
    hits = []
    for own, volume in zip(first, flat, strict=True):
        there = own >= 0
        ends = np.where(there, own, last)
        enters, leaves = clip_rays(origins, rays, np.maximum(ends, 0), grid)
        distances = np.where(ends < 0, 0.0, np.where(there, enters, leaves))
        hits.append(Hits(np.where(there, volume[np.maximum(own, 0)], free).astype(np.int64), distances, own))
    return hits


def count_rays(found: Hits, truth: Hits, count: int, grid: VoxelGrid) -> np.ndarray:
    """(rings, thresholds + 2, classes - 1): hits at each of THRESHOLDS, predicted and true rays of each class but free.

    Only rays that meet something in the truth count, in the ring around the vehicle in which they do.
    """
    rows, columns = grid.shape[1:]
    valid = truth.voxels >= 0
    center = grid.centers()[0, ..., :2].reshape(-1, 2)[truth.voxels[valid] % (rows * columns)]
    ring = (np.linalg.norm(center.astype(np.float64), axis=1) // RING).astype(np.int64)
    predicted, true = found.classes[valid], truth.classes[valid]
    error = np.abs(found.distances[valid] - truth.distances[valid])
    masks = [(predicted == true) & (error < threshold) for threshold in THRESHOLDS]
    kinds = [(true, mask) for mask in masks] + [(predicted, valid[valid]), (true, valid[valid])]
    size = _ring_number(grid)
    counts = [np.bincount(ring[m] * count + c[m], minlength=size * count).reshape(size, count) for c, m in kinds]
    return np.stack(counts, axis=1)[..., :-1]


@cache
def _ring_number(grid: VoxelGrid) -> int:
    corner = np.abs([*grid.x, *grid.y]).reshape(2, 2).max(axis=1)
    return int(np.hypot(*corner) // RING) + 1


def ray_ious(counts: np.ndarray) -> np.ndarray:
    """(thresholds, classes) RayIoU of counts (thresholds + 2, classes); NaN for classes that no ray meets."""
    hits, found, true = counts[:-2].astype(np.float64), counts[-2], counts[-1]
    union = found + true - hits
    return np.divide(hits, union, out=np.full(union.shape, np.nan), where=union > 0)
