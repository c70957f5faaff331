"""What is in the voxels around the vehicle: the ground and the solids of the simulated world."""

from __future__ import annotations

import numpy as np

from perception.simulate.categories import CATEGORIES, GROUND_CATEGORIES, NOISE
from perception.simulate.snapshot import GroundRaster, Solids
from perception.taxonomy import Taxonomy
from perception.voxels import OTHERS, VoxelGrid, occupancy_classes

STEP = 0.2  # m, between the places at which the plan of a solid is sampled
SKIN = 0.005  # m, by which a solid reaches into a voxel that it is in


def voxel_classes(
    solids: Solids, ground: GroundRaster, global_from_ego: np.ndarray, taxonomy: Taxonomy, grid: VoxelGrid
) -> np.ndarray:
    """(levels, rows, columns) uint8 index into `occupancy_classes`: what is in each voxel.

    The ground is in the voxels of its plane. Of several solids in a voxel, the one that fills most of it counts.

    Args:
        global_from_ego: (4, 4), upright: the vehicle neither pitches nor rolls.
    """
    class_of = np.full(len(CATEGORIES), OTHERS, np.uint8)
    for name, label in taxonomy.point_labels_of_categories().items():
        if name in CATEGORIES:
            class_of[CATEGORIES.index(name)] = label + 1
    levels, rows, columns = grid.shape
    classes = np.full((levels, rows, columns), len(occupancy_classes(taxonomy)) - 1, np.uint8)
    level, centers = _level_of(grid, global_from_ego[2, 3]), grid.centers()[0, :, :, :2].astype(np.float64)
    if 0 <= level < levels:
        kinds = ground.at(centers @ global_from_ego[:2, :2].T + global_from_ego[:2, 3])
        classes[level] = class_of[GROUND_CATEGORIES[kinds]]
    solids = _near(solids[solids.categories != NOISE], global_from_ego, grid)
    solid, voxel, volume = _filled(solids, global_from_ego, grid)
    order = np.argsort(volume, kind="stable")
    classes.ravel()[voxel[order]] = class_of[solids.categories[solid[order]]]
    return classes


def _level_of(grid: VoxelGrid, height: float) -> int:
    """Level of the ground, which is at z = 0 of the global frame, for a vehicle at this height."""
    return int(np.floor((-height - grid.z[0]) / grid.cell))


def _near(solids: Solids, global_from_ego: np.ndarray, grid: VoxelGrid) -> Solids:
    """The solids that may be in the grid."""
    reach = np.hypot(max(map(abs, grid.x)), max(map(abs, grid.y)))
    apart = np.linalg.norm(solids.centers[:, :2] - global_from_ego[:2, 3], axis=1)
    return solids[apart < reach + np.hypot(solids.sizes[:, 0], solids.sizes[:, 1]) / 2]


def _filled(solids: Solids, global_from_ego: np.ndarray, grid: VoxelGrid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N,) solid, flat voxel that it is in, and the volume (m^3) of it there, about."""
    solid, xy, area = _plan(solids)
    local = (xy - global_from_ego[:2, 3]) @ global_from_ego[:2, :2]
    place = np.floor((local - (grid.x[0], grid.y[0])) / grid.cell).astype(np.int64)
    levels, rows, columns = grid.shape
    inside = ((place >= 0) & (place < (columns, rows))).all(axis=1)
    solid, place, area = solid[inside], place[inside], area[inside]
    pillar, which, count = np.unique(
        (solid * rows + place[:, 1]) * columns + place[:, 0], return_index=True, return_counts=True
    )
    solid, area, pillar = solid[which], area[which] * count, pillar % (rows * columns)

    low = solids.centers[:, 2] - solids.sizes[:, 2] / 2 - global_from_ego[2, 3] - grid.z[0]
    high, skin = low + solids.sizes[:, 2], np.minimum(SKIN, solids.sizes[:, 2] / 2)
    first = np.floor((low + skin) / grid.cell).astype(np.int64)
    last = np.maximum(np.floor((high - skin) / grid.cell).astype(np.int64), first)
    first, last = first.clip(0, levels), last.clip(-1, levels - 1)
    heights = (last - first + 1).clip(0)[solid]
    which = np.repeat(np.arange(len(solid)), heights)
    level = np.arange(len(which)) - np.repeat(np.cumsum(heights) - heights, heights) + first[solid[which]]
    solid, area, pillar = solid[which], area[which], pillar[which]
    inner = np.minimum(high[solid], (level + 1) * grid.cell) - np.maximum(low[solid], level * grid.cell)
    return solid, level * (rows * columns) + pillar, area * inner


def _plan(solids: Solids) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N,) solid, (N, 2) m places in its plan, edges included, at most STEP apart, and (N,) m^2 the area of each."""
    inner = (solids.sizes[:, :2] - 2 * SKIN).clip(0)
    counts = np.ceil(inner / STEP).astype(np.int64) + 1
    total = counts.prod(axis=1)
    solid = np.repeat(np.arange(len(total)), total)
    at = np.arange(len(solid)) - np.repeat(np.cumsum(total) - total, total)
    index = np.stack([at // counts[solid, 1], at % counts[solid, 1]], axis=1)
    local = (index / (counts - 1).clip(1)[solid] - 0.5) * inner[solid]
    cos, sin = np.cos(solids.yaws)[solid], np.sin(solids.yaws)[solid]
    x, y = cos * local[:, 0] - sin * local[:, 1], sin * local[:, 0] + cos * local[:, 1]
    area = solids.sizes[:, :2].prod(axis=1) / total
    return solid, solids.centers[solid, :2] + np.stack([x, y], axis=1), area[solid]
