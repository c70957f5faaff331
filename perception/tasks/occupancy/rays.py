"""Rays through voxels: free distances from the vehicle by direction, and RayIoU. numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from perception.grid import VoxelGrid, traverse
from perception.tasks.metric import RING

DIRECTIONS = 360  # of one degree each; direction 0 is along x, then counter-clockwise
OCCUPIED = 0.5  # probability above which a voxel stops the vehicle


@dataclass(frozen=True)
class FreeRays:
    """The columns of voxels that a ray on the ground from the reference point crosses, for each direction."""

    columns: np.ndarray  # (360, S) int64 flat index (row, column) of the S columns, from near to far; 0 behind the last
    distances: np.ndarray  # (360, S) float32 m, where the ray enters each; that of the grid's end behind the last
    ends: np.ndarray  # (360,) float32 m, where the ray leaves the grid; 0 if it misses it

    def free(self, blocked: np.ndarray) -> np.ndarray:
        """(360,) float32 m to the first blocked column, or to the end of the grid; blocked is (rows, columns) bool."""
        met = np.where(blocked.reshape(-1)[self.columns], self.distances, self.ends[:, None])
        return np.asarray(met.min(axis=1))


@cache
def make_free_rays(grid: VoxelGrid) -> FreeRays:
    """The rays over the ground of a grid."""
    flat = VoxelGrid(grid.x, grid.y, (0.0, grid.cell), grid.cell, grid.reference)
    angles = np.radians(np.arange(DIRECTIONS))
    height = grid.cell / 2
    directions = np.column_stack([np.cos(angles), np.sin(angles), np.zeros(DIRECTIONS)]).round(15)
    origins = np.tile([0.0, 0.0, height], (DIRECTIONS, 1))
    far = float(np.hypot(*np.abs([*grid.x, *grid.y]).reshape(2, 2).max(axis=1))) + grid.cell
    steps = [(rays.copy(), cells.copy()) for rays, cells in traverse(origins, origins + far * directions, flat)]
    columns = np.zeros((DIRECTIONS, len(steps)), np.int64)
    distances = np.full(columns.shape, np.inf)
    ends = np.zeros(DIRECTIONS)
    for i, (rays, cells) in enumerate(steps):
        columns[rays, i] = cells
        enters, leaves = clip_rays(origins[rays], directions[rays], cells, flat)
        distances[rays, i] = enters
        ends[rays] = leaves
    distances = np.where(np.isinf(distances), ends[:, None], distances)
    return FreeRays(columns, distances.astype(np.float32), ends.astype(np.float32))


def body_levels(grid: VoxelGrid, body: tuple[float, float]) -> slice:
    """The levels of a grid that overlap a range of heights (m)."""
    height = grid.edges[2]
    first = int(np.floor((body[0] - grid.z[0]) / height + 1e-6))
    last = int(np.ceil((body[1] - grid.z[0]) / height - 1e-6))
    return slice(max(first, 0), min(last, grid.shape[0]))


def clip_rays(
    origins: np.ndarray, directions: np.ndarray, voxels: np.ndarray, grid: VoxelGrid
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) m along each ray, where it enters and leaves the voxel (flat index) that it crosses; 0 where it begins in
    it."""
    _, rows, columns = grid.shape
    place = np.stack([voxels % columns, voxels // columns % rows, voxels // (rows * columns)], axis=1)
    low = np.array([grid.x[0], grid.y[0], grid.z[0]]) + place * grid.edges
    with np.errstate(divide="ignore", invalid="ignore"):
        bounds = np.stack([(low - origins) / directions, (low + grid.edges - origins) / directions])
    parallel = directions == 0
    enters = np.where(parallel, -np.inf, bounds.min(axis=0)).max(axis=1)
    leaves = np.where(parallel, np.inf, bounds.max(axis=0)).min(axis=1)
    return np.maximum(enters, 0), np.maximum(leaves, 0)


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
