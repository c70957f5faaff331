"""Voxels seen from above: the cells of the ground that they take or leave free. numpy only."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from perception.grid import BevGrid, VoxelGrid
from perception.tasks.occupancy.rays import OCCUPIED
from perception.tasks.occupancy.result import OccupancyResult, levels_of, probabilities_of
from perception.tasks.published import FREE, TAKEN, UNKNOWN

_UNOBSERVED = probabilities_of(levels_of(np.array([0.5], np.float32)))[0]  # of a fused voxel


class _Columns(NamedTuple):
    """The columns of voxels on a grid of the ground."""

    columns: np.ndarray  # (rows, columns) flat index of the column at the centre of each cell
    inside: np.ndarray  # (rows, columns) bool: whether there is one
    cells: np.ndarray  # (columns of voxels,) flat index of the cell at the centre of each; behind the last: none


@cache
def _columns_on(grid: BevGrid, voxels: VoxelGrid) -> _Columns:
    centers = grid.centers().reshape(-1, 2)
    low = np.full((len(centers), 1), voxels.z[0])
    columns, inside = (each.reshape(grid.shape) for each in voxels.indices(np.hstack([centers, low])))
    places = grid.continuous(voxels.centers()[0].reshape(-1, 3))
    on_grid = ((places >= 0) & (places < grid.shape[::-1])).all(axis=1)
    column, row = np.where(on_grid[:, None], np.floor(places), 0).astype(np.int64).T
    return _Columns(columns, inside, np.where(on_grid, row * grid.shape[1] + column, grid.cells))


def cells_of_voxels(fused: OccupancyResult, body: slice, solid: np.ndarray, grid: BevGrid) -> np.ndarray:
    """(rows, columns) taken where a voxel at the height of the vehicle's body is solid, free where none is.

    Args:
        body: levels of the voxels at that height.
        solid: (classes,) bool: the classes through which no vehicle drives.
    """
    on_ground = _columns_on(grid, fused.grid)
    occupied, classes = fused.occupied[body], fused.classes[body]
    taken = ((occupied > OCCUPIED) & solid[classes]).any(axis=0).ravel()
    known = (occupied != _UNOBSERVED).any(axis=0).ravel()
    cells = np.where(on_ground.inside & known[on_ground.columns], FREE, UNKNOWN)
    cells[on_ground.inside & taken[on_ground.columns]] = TAKEN
    within = np.append(cells.ravel(), UNKNOWN)  # one more for columns beyond the grid
    within[on_ground.cells[taken]] = TAKEN
    return within[:-1].reshape(cells.shape)
