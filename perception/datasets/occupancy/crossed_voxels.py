"""The voxels that rays have crossed on a drive. numpy only."""

from __future__ import annotations

from itertools import product

import numpy as np

from perception.voxel_rays import traverse
from perception.voxels import VoxelGrid

_SIDE = 16  # voxels along an edge of a brick


class CrossedVoxels:
    """Which voxels of an unbounded grid rays have crossed before they ended.

    The voxels are kept in bricks, so that the memory grows with the space that was seen. A ray is followed while it is
    within the reach of the LiDAR.

    Args:
        cell: m, edge length of a voxel.
        reach: (3,) m from the LiDAR along each axis, at least.
    """

    def __init__(self, cell: float, reach: tuple[float, float, float]) -> None:
        self._brick, self._cell, self._reach = cell * _SIDE, cell, np.array(reach)
        self._bricks: dict[tuple[int, ...], np.ndarray] = {}  # x y z -> (16, 16, 16) bool by level, row, column

    def add(self, origins: np.ndarray, ends: np.ndarray) -> None:
        """Rays from origins (N, 3), which are near each other, to ends (N, 3), m."""
        low = np.floor((origins.min(axis=0) - self._reach) / self._brick).astype(np.int64)
        high = np.floor((origins.max(axis=0) + self._reach) / self._brick).astype(np.int64) + 1
        x, y, z = ((float(a), float(b)) for a, b in zip(low * self._brick, high * self._brick, strict=True))
        grid = VoxelGrid(x, y, z, self._cell)
        crossed = np.zeros(grid.shape, bool)
        mark_crossed(crossed.reshape(-1), grid, origins, ends)
        columns, rows, levels = high - low  # of bricks
        blocks = crossed.reshape(levels, _SIDE, rows, _SIDE, columns, _SIDE).transpose(4, 2, 0, 1, 3, 5)
        for place in np.argwhere(blocks.any(axis=(3, 4, 5))):
            block, name = blocks[tuple(place)], tuple((low + place).tolist())
            if name in self._bricks:
                self._bricks[name] |= block
            else:
                self._bricks[name] = block.copy()

    def at(self, points: np.ndarray) -> np.ndarray:
        """(N,) bool: whether the voxel that a point (N, 3) m is in was crossed."""
        voxel = np.floor(points / self._cell).astype(np.int64)
        brick = voxel // _SIDE
        low, high = brick.min(axis=0), brick.max(axis=0) + 1
        dense = np.zeros((*(high - low), _SIDE, _SIDE, _SIDE), bool)
        for place in product(*(range(size) for size in dense.shape[:3])):
            found = self._bricks.get(tuple((low + place).tolist()))
            if found is not None:
                dense[place] = found
        (i, j, k), (column, row, level) = (brick - low).T, (voxel % _SIDE).T
        return np.asarray(dense[i, j, k, level, row, column])


def mark_crossed(crossed: np.ndarray, grid: VoxelGrid, origins: np.ndarray, ends: np.ndarray) -> None:
    """Set those of the flat voxels (V,) bool that a ray crosses before the voxel that it ends in."""
    last, inside = grid.indices(ends)
    last[~inside] = -1
    for rays, voxels in traverse(origins, ends, grid):
        crossed[voxels[voxels != last[rays]]] = True
