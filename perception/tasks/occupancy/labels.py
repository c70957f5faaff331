"""Annotated voxels on another grid, in another frame of reference. numpy only."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import numpy as np

from perception.frame import Frame
from perception.grid import Occupancy, VoxelGrid

UNKNOWN = 255  # label of voxels that nothing observed
Observed = Literal["lidar", "cameras", "either"]


def ego_from_reference(frame: Frame) -> np.ndarray:
    """(4, 4) of the frame at its time; after augmentation its reference is another one, and this a similarity."""
    return np.asarray(np.linalg.inv(frame.global_from_ego) @ frame.global_from_reference)


def lookup(
    grid: VoxelGrid,
    source: VoxelGrid,
    source_from_grid: np.ndarray,
    offset: np.ndarray | tuple[float, float, float] = (0, 0, 0),
) -> tuple[np.ndarray, np.ndarray]:
    """For a grid's voxels: (levels, rows, columns) flat index in the source, and whether it is inside.

    Args:
        source_from_grid: (4, 4) affine, between their frames of reference.
        offset: m, x y z from each voxel's centre to the point that is looked up.
    """
    levels, rows, columns = grid.shape
    xs, ys, zs = (
        low + (np.arange(count) + 0.5) * edge + shift
        for (low, _), count, edge, shift in zip(
            (grid.x, grid.y, grid.z), (columns, rows, levels), grid.edges, offset, strict=True
        )
    )
    index, inside = np.zeros(grid.shape, np.int64), np.ones(grid.shape, bool)
    sizes, lows = source.shape[::-1], (source.x[0], source.y[0], source.z[0])
    strides = (1, sizes[0], sizes[0] * sizes[1])
    axes = zip(source_from_grid[:3], lows, sizes, strides, source.edges, strict=True)
    for row, low, size, stride, edge in axes:
        flat = (row[0] * xs)[None, None] + (row[1] * ys)[None, :, None] + (row[2] * zs)[:, None, None]
        place = np.floor((flat + (row[3] - low)) / edge)
        inside &= (place >= 0) & (place < size)
        index += np.where(inside, place, 0).astype(np.int64) * stride
    return np.where(inside, index, 0), inside


def hide_unobserved(occupancy: Occupancy, observed: Observed) -> np.ndarray:
    """(levels, rows, columns) uint8 annotated classes, UNKNOWN where these sensors saw nothing."""
    seen = {
        "lidar": occupancy.seen_by_lidar,
        "cameras": occupancy.seen_by_cameras,
        "either": occupancy.seen_by_lidar | occupancy.seen_by_cameras,
    }[observed]
    return np.where(seen, occupancy.classes, np.uint8(UNKNOWN))


def resample(
    classes: np.ndarray,
    source: VoxelGrid,
    grid: VoxelGrid,
    source_from_grid: np.ndarray,
    count: int,
    flat: Collection[int] = (),
) -> np.ndarray:
    """(levels, rows, columns) uint8 classes on a grid: of the nearest voxel of the source, UNKNOWN outside it.

    A voxel that is larger than those of the source has the most frequent class of those in it: of those that stand up,
    else of the flat ones, else it is free; otherwise a low obstacle would be lost in the ground. UNKNOWN has no vote;
    the last of `count` classes is free space.
    """
    parts = np.maximum(1, np.round(grid.edges / source.edges)).astype(int)  # along x, y and z
    if (parts == 1).all():
        index, inside = lookup(grid, source, source_from_grid)
        return np.where(inside, classes.reshape(-1)[index], np.uint8(UNKNOWN))
    # A vote counts 1; a class that stands up is before any flat one, and that before free space.
    before = parts.prod() + 1
    worth = np.full(count, 2 * before)
    worth[list(flat)], worth[-1] = before, 0
    votes = np.zeros((count, *grid.shape), np.int32)
    for part in np.ndindex(*parts):
        offset = ((np.array(part) + 0.5) / parts - 0.5) * grid.edges
        index, inside = lookup(grid, source, source_from_grid, offset)
        found = np.where(inside, classes.reshape(-1)[index], np.uint8(UNKNOWN)).reshape(-1)
        voters = np.flatnonzero(found != UNKNOWN)
        votes.reshape(count, -1)[found[voters], voters] += 1
    score = np.where(votes > 0, votes + worth[:, None, None, None], 0)
    return np.where(votes.any(axis=0), score.argmax(axis=0), UNKNOWN).astype(np.uint8)
