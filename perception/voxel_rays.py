"""Rays through voxels. numpy only.

Amanatides and Woo, "A Fast Voxel Traversal Algorithm for Ray Tracing", Eurographics 1987, for many rays at once.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from perception.voxels import VoxelGrid


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
    enters, leaves = _inside(start, direction, count)
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


def _inside(start: np.ndarray, direction: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
