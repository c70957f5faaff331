"""Which voxels cameras see. numpy only."""

from __future__ import annotations

import numpy as np

from perception.frame import Frame
from perception.voxel_rays import traverse
from perception.voxels import VoxelGrid

_NEAR = 0.1  # m along the optical axis


def seen_by_cameras(frame: Frame, occupied: np.ndarray, seen: np.ndarray, grid: VoxelGrid) -> np.ndarray:
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
