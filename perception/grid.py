"""The BEV grid, grids of voxels, and the voxels that rays cross."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from perception.taxonomy import Taxonomy

Reference = Literal["ego", "lidar"]


@dataclass(frozen=True)
class BevGrid:
    """A regular grid on the ground around the vehicle.

    Ranges and cell size are metres in the reference frame: `ego` has x forward and y left; `lidar` is the sensor's
    frame, as in mmdet3d checkpoints. Tensors on the grid are (..., rows, columns), with rows along y and columns along
    x, so that cell (0, 0) has the smallest x and y.
    """

    x: tuple[float, float] = (-51.2, 51.2)
    y: tuple[float, float] = (-51.2, 51.2)
    z: tuple[float, float] = (-3.0, 5.0)
    cell: float = 0.8
    reference: Reference = "ego"

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) = cells along y, cells along x."""
        return round((self.y[1] - self.y[0]) / self.cell), round((self.x[1] - self.x[0]) / self.cell)

    @property
    def cells(self) -> int:
        """Number of cells; also the index of the extra cell for padding."""
        rows, columns = self.shape
        return rows * columns

    def coarser(self, stride: int) -> BevGrid:
        """The same area with cells `stride` times as large."""
        return BevGrid(self.x, self.y, self.z, self.cell * stride, self.reference)

    def inside(self, points: np.ndarray) -> np.ndarray:
        """(N,) bool: points (N, >=3) inside the grid's volume; False for NaN."""
        x, y, z = points[:, 0], points[:, 1], points[:, 2]
        return (
            (x >= self.x[0]) & (x < self.x[1]) & (y >= self.y[0]) & (y < self.y[1]) & (z >= self.z[0]) & (z < self.z[1])
        )

    def continuous(self, points: np.ndarray) -> np.ndarray:
        """(N, 2) continuous column and row of points (N, >=2); cell i spans [i, i + 1)."""
        origin = np.array([self.x[0], self.y[0]])
        return (np.asarray(points, dtype=np.float64)[:, :2] - origin) / self.cell

    def centers(self) -> np.ndarray:
        """(rows, columns, 2) float32 x and y (m) of the cell centres."""
        rows, columns = self.shape
        xs = self.x[0] + (np.arange(columns) + 0.5) * self.cell
        ys = self.y[0] + (np.arange(rows) + 0.5) * self.cell
        return np.stack(np.meshgrid(xs, ys), axis=-1).astype(np.float32)


# Semantic occupancy: what each voxel around the vehicle holds.
#
# Classes are those of Occ3D-nuScenes (Tian et al., 2023): 0 for objects of none of the taxonomy's point classes, then
# these in their order, then free space.

OTHERS = 0  # class of what is there and of no point class


def occupancy_classes(taxonomy: Taxonomy) -> tuple[str, ...]:
    """Names of the classes of voxels; the last is free space."""
    return *taxonomy.voxel_names, "free"


@dataclass(frozen=True)
class VoxelGrid:
    """Voxels around the vehicle; ranges and edge lengths in m, in the reference frame as of `BevGrid`.

    Arrays on the grid are (levels, rows, columns): levels along z, rows along y, columns along x, from small to large.
    """

    x: tuple[float, float] = (-40.0, 40.0)
    y: tuple[float, float] = (-40.0, 40.0)
    z: tuple[float, float] = (-1.0, 5.4)
    cell: float = 0.4  # edge along x and y
    reference: Reference = "ego"
    height: float | None = None  # edge along z; None: as long

    @property
    def edges(self) -> np.ndarray:
        """(3,) m, edges of a voxel along x, y and z."""
        return np.array([self.cell, self.cell, self.cell if self.height is None else self.height])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(levels, rows, columns)."""
        columns, rows, levels = (
            round((high - low) / edge)
            for (low, high), edge in zip((self.x, self.y, self.z), self.edges.tolist(), strict=True)
        )
        return levels, rows, columns

    def indices(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N,) flat voxel index of points (N, >=3), and (N,) bool whether they are inside; the index is 0 outside."""
        low = np.array([self.x[0], self.y[0], self.z[0]])
        place = np.floor((points[:, :3].astype(np.float64) - low) / self.edges)
        levels, rows, columns = self.shape
        inside = np.asarray(((place >= 0) & (place < (columns, rows, levels))).all(axis=1))
        column, row, level = np.where(inside[:, None], place, 0).astype(np.int64).T
        return (level * rows + row) * columns + column, inside

    def centers(self) -> np.ndarray:
        """(levels, rows, columns, 3) float32 x y z (m) of the voxels' centres."""
        zs, ys, xs = (
            low + (np.arange(count) + 0.5) * edge
            for count, (low, _), edge in zip(
                self.shape, (self.z, self.y, self.x), self.edges[::-1].tolist(), strict=True
            )
        )
        z, y, x = np.meshgrid(zs, ys, xs, indexing="ij")
        return np.stack([x, y, z], axis=-1).astype(np.float32)


@dataclass(frozen=True)
class Occupancy:
    """Annotated voxels of a keyframe, in the reference frame of the grid at the keyframe's time."""

    grid: VoxelGrid
    classes: np.ndarray  # (levels, rows, columns) uint8 index into `occupancy_classes`
    seen_by_lidar: np.ndarray  # (levels, rows, columns) bool; others are unknown to it
    seen_by_cameras: np.ndarray  # (levels, rows, columns) bool


# Rays through voxels.
#
# Amanatides and Woo, "A Fast Voxel Traversal Algorithm for Ray Tracing", Eurographics 1987, for many rays at once.


def traverse(origins: np.ndarray, ends: np.ndarray, grid: VoxelGrid) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The voxels that rays cross, in order from origin to end; each item is one step of all rays that go on.

    A ray starts in the voxel of its origin, or where it meets the grid, and stops in the voxel of its end, or where it
    leaves the grid; the next voxel always shares a face with the one before. Rays that miss the grid, or have a
    coordinate that is not finite, give nothing.

    Args:
        origins, ends: (N, 3) m, in the reference frame of the grid.

    Yields:
        (M,) int64 index of the rays, and (M,) int64 flat index of the voxel that each is in. A ray takes part in
        every step until its last; the arrays hold until the next step only.
    """
    count = np.array(grid.shape[::-1])
    low = np.array([grid.x[0], grid.y[0], grid.z[0]])
    start = (np.asarray(origins, np.float64) - low) / grid.edges
    end = (np.asarray(ends, np.float64) - low) / grid.edges
    direction = end - start
    enters, leaves = _clip_rays(start, direction, count)
    touches = _in_grid(start, count) | _in_grid(end, count)  # a face of the grid that a ray only meets is in or out
    rays = np.flatnonzero((enters < leaves) | ((enters == leaves) & touches))
    start, end, direction = start[rays], end[rays], direction[rays]
    first = _voxel(np.where(enters[rays, None] > 0, start + enters[rays, None] * direction, start), count)
    last = _voxel(np.where(leaves[rays, None] < 1, start + leaves[rays, None] * direction, end), count)

    # The rays with the most steps come first, so that those which go on are always the first ones.
    steps = np.abs(last - first)
    order = np.argsort(-steps.sum(axis=1), kind="stable")
    rays, first, last, start, direction, steps = (each[order] for each in (rays, first, last, start, direction, steps))
    longest = steps.sum(axis=1)
    going = len(rays) - np.cumsum(np.bincount(longest)) if len(rays) else ()
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        crossing = np.where(steps > 0, (first + (last > first) - start) / direction, np.inf).T.copy()
        between = np.abs(1 / direction).T.copy()
    strides = (np.sign(last - first) * [1, count[0], count[0] * count[1]]).T.copy()
    left, column = steps.T.copy(), np.arange(len(rays))
    voxel = (first[:, 2] * count[1] + first[:, 1]) * count[0] + first[:, 0]
    if len(rays):
        yield rays, voxel
    for n in going[:-1]:
        ray, axis = column[:n], crossing[:, :n].argmin(axis=0)
        voxel[:n] += strides[axis, ray]
        left[axis, ray] -= 1
        crossing[axis, ray] = np.where(left[axis, ray] > 0, crossing[axis, ray] + between[axis, ray], np.inf)
        yield rays[:n], voxel[:n]


def _clip_rays(start: np.ndarray, direction: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) shares of a ray's length, from 0 to 1, where it enters and leaves the grid; enters > leaves: it misses."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        at_low, at_high = -start / direction, (count - start) / direction
    parallel = direction == 0
    within = (start >= 0) & (start < count)
    enters = np.where(parallel, np.where(within, -np.inf, np.inf), np.minimum(at_low, at_high))
    leaves = np.where(parallel, np.where(within, np.inf, -np.inf), np.maximum(at_low, at_high))
    return np.maximum(enters.max(axis=1), 0), np.minimum(leaves.min(axis=1), 1)


def _in_grid(place: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.asarray(((place >= 0) & (place < count)).all(axis=1))


def _voxel(place: np.ndarray, count: np.ndarray) -> np.ndarray:
    """(N, 3) int64 column, row, level of places on or in the grid, which rounding may have put a little outside."""
    return np.clip(np.floor(place), 0, count - 1).astype(np.int64)
