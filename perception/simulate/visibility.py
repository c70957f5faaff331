"""Which voxels the sensors see, as in Occ3D.

Tian et al., "Occ3D", NeurIPS 2023: a LiDAR sees the voxels that its rays cross or end in, and a camera those on the way
of the rays through its pixels up to the first one with something in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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


def crossed(seen: Iterable[Seen], global_from_ego: np.ndarray, grid: VoxelGrid) -> np.ndarray:
    """(levels, rows, columns) bool: the voxels that rays cross or end in."""
    met, inverse = np.zeros(grid.shape, bool), np.linalg.inv(global_from_ego)
    for each in seen:
        for _, voxels in _steps(each, inverse, grid):
            met.ravel()[voxels] = True
    return met


def pictured(seen: Iterable[Seen], global_from_ego: np.ndarray, grid: VoxelGrid, filled: np.ndarray) -> np.ndarray:
    """(levels, rows, columns) bool: the voxels that cameras see: on the way of a ray, up to the first filled one.

    Rays are too sparse to meet each far voxel of the ground. A filled voxel also counts if a free one before its face
    towards the camera is seen.

    Args:
        seen: rays of pixels.
        filled: (levels, rows, columns) bool.
    """
    met, inverse = np.zeros(grid.shape, bool), np.linalg.inv(global_from_ego)
    for each in seen:
        own, hidden = np.zeros(grid.shape, bool), np.zeros(len(each.ends), bool)
        for rays, voxels in _steps(each, inverse, grid):
            own.ravel()[voxels[~hidden[rays]]] = True
            hidden[rays] |= filled.ravel()[voxels]
        camera = inverse[:3, :3] @ each.origin + inverse[:3, 3]
        met |= own | (filled & _behind(own & ~filled, (camera - (grid.x[0], grid.y[0], grid.z[0])) / grid.edges))
    return met


def _steps(seen: Seen, ego_from_global: np.ndarray, grid: VoxelGrid) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    origin, ends = (each @ ego_from_global[:3, :3].T + ego_from_global[:3, 3] for each in seen)
    return traverse(np.broadcast_to(origin, ends.shape), ends, grid)


def _behind(voxels: np.ndarray, place: np.ndarray) -> np.ndarray:
    """(levels, rows, columns) bool: neighbours of voxels whose face towards a place they share.

    Args:
        voxels: (levels, rows, columns) bool.
        place: (3,) column, row and level, with fractions.
    """
    found = np.zeros_like(voxels)
    for axis, at in enumerate(place[::-1]):
        source, target = np.moveaxis(voxels, axis, 0), np.moveaxis(found, axis, 0)
        beyond = int(np.clip(np.ceil(at), 1, len(source)))  # the first that is wholly on the far side
        before = int(np.clip(np.floor(at), 0, len(source) - 1))  # voxels up to here are wholly on the near side
        target[beyond:] |= source[beyond - 1 : -1]
        target[:before] |= source[1 : before + 1]
    return found
