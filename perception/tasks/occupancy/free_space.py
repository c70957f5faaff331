"""Free distance from the vehicle by direction. numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from perception.grid import VoxelGrid, traverse

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
