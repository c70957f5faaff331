"""Which voxels the sensors see, as in Occ3D.

Tian et al., "Occ3D", NeurIPS 2023: a LiDAR sees the voxels that its rays cross or end in, and a camera those on the way
of the rays through its pixels up to the first one with something in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from perception.voxel_rays import traverse
from perception.voxels import VoxelGrid


class Seen(NamedTuple):
    """Rays of a sensor, from one place to where they end."""

    origin: np.ndarray  # (3,) m, global
    ends: np.ndarray  # (N, 3) m, global


def pixel_rays(intrinsics: np.ndarray, size: tuple[int, int], global_from_camera: np.ndarray, grid: VoxelGrid) -> Seen:
    """Rays through pixels of a camera to the ground or beyond the grid; two are a voxel apart at the grid's edges.

    Args:
        intrinsics: (3, 3) pixels.
        size: width, height, pixels.
        global_from_camera: (4, 4).
    """
    reach = max(map(abs, (*grid.x, *grid.y)))
    step = max(1, int(min(intrinsics[0, 0], intrinsics[1, 1]) * grid.cell / reach))
    v, u = np.meshgrid(*(np.arange(step // 2, edge, step) for edge in size[::-1]), indexing="ij")
    pixels = np.stack([u.ravel(), v.ravel(), np.ones(u.size)], axis=1)
    rays = pixels @ np.linalg.inv(intrinsics).T @ global_from_camera[:3, :3].T
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    origin = global_from_camera[:3, 3]
    to_ground = np.where(rays[:, 2] < 0, origin[2] / np.maximum(-rays[:, 2], 1e-9), np.inf)
    return Seen(origin, origin + np.minimum(to_ground, 2 * reach)[:, None] * rays)


def crossed(
    seen: Iterable[Seen], global_from_ego: np.ndarray, grid: VoxelGrid, stops: np.ndarray | None = None
) -> np.ndarray:
    """(levels, rows, columns) bool: the voxels that rays cross or end in.

    Args:
        stops: (levels, rows, columns) bool, voxels that rays do not leave; None: every ray goes on to its end.
    """
    met, inverse = np.zeros(grid.shape, bool), np.linalg.inv(global_from_ego)
    flat, blocks = met.ravel(), None if stops is None else stops.ravel()
    for origin, ends in seen:
        origins = np.broadcast_to(inverse[:3, :3] @ origin + inverse[:3, 3], ends.shape)
        hidden = np.zeros(len(ends), bool)
        for rays, voxels in traverse(origins, ends @ inverse[:3, :3].T + inverse[:3, 3], grid):
            if blocks is None:
                flat[voxels] = True
            else:
                open_ = ~hidden[rays]
                flat[voxels[open_]] = True
                hidden[rays] |= blocks[voxels]
    return met
