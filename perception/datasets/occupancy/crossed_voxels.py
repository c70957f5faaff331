"""Which voxels the rays of LiDARs and of cameras cross."""

from __future__ import annotations

from itertools import product

import numpy as np

from perception.frame import Frame
from perception.grid import VoxelGrid, traverse

# The voxels that rays have crossed on a drive. numpy only.

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


# Which voxels cameras see. numpy only.

_NEAR = 0.1  # m along the optical axis


def find_seen_by_cameras(frame: Frame, occupied: np.ndarray, seen: np.ndarray, grid: VoxelGrid) -> np.ndarray:
    """(levels, rows, columns) bool: the middle of a seen voxel is in a picture, and no occupied voxel is before it.

    Args:
        frame: in the grid's frame of reference.
        occupied, seen: (levels, rows, columns) bool; what is not seen hides nothing.
    """
    wanted = np.flatnonzero(seen)
    centers, visible = grid.centers().reshape(-1, 3)[wanted].astype(np.float64), np.zeros(len(wanted), bool)
    for name, camera in frame.cameras.items():
        pixels = np.column_stack([centers, np.ones(len(centers))]) @ frame.image_from_reference(name).T
        height, width = camera.image.shape[:2]
        with np.errstate(divide="ignore", invalid="ignore"):
            x, y = (pixels[:, :2] / pixels[:, 2:]).T
        view = (pixels[:, 2] > _NEAR) & (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)
        there = np.flatnonzero(view & ~visible)
        global_from_camera = camera.global_from_ego @ camera.ego_from_camera
        origin = (np.linalg.inv(frame.global_from_reference) @ global_from_camera)[:3, 3]
        visible[there] = _unhidden(origin, centers[there], wanted[there], occupied.reshape(-1), grid)
    result = np.zeros(grid.shape, bool)
    result.reshape(-1)[wanted] = visible
    return result


def _unhidden(
    origin: np.ndarray, centers: np.ndarray, voxels: np.ndarray, occupied: np.ndarray, grid: VoxelGrid
) -> np.ndarray:
    """(N,) bool: no occupied voxel on the ray from the origin to the middle of a voxel, but itself."""
    free = np.ones(len(centers), bool)
    for rays, crossed in traverse(np.broadcast_to(origin, centers.shape), centers, grid):
        blocked = occupied[crossed] & (crossed != voxels[rays])
        free[rays[blocked]] = False
    return free
