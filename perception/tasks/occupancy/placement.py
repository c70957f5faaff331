"""Where the voxels lie on the trunk's feature map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perception.grid import BevGrid
from perception.voxels import VoxelGrid

_ROUNDING = 1e-6  # cells


@dataclass(frozen=True)
class Placement:
    """The part of a feature map (rows, columns) that covers the voxels, and how its cells become columns of voxels.

    Attributes:
        row, column: the first cell of the map; negative where the voxels begin outside it.
        rows, columns: number of cells of the map.
        finer: columns of voxels along each side of a cell.
        coarser: cells along each side of a voxel; one of both is 1.
    """

    row: int
    column: int
    rows: int
    columns: int
    finer: int
    coarser: int

    @staticmethod
    def of(voxels: VoxelGrid, grid: BevGrid) -> Placement | None:
        """The placement of voxels on the grid of the heads; None if the edges of voxels and cells do not meet."""
        finer, coarser = _whole(grid.cell / voxels.cell), _whole(voxels.cell / grid.cell)
        if finer is None and coarser is None:
            return None
        places = []
        for (low, high), start in ((voxels.y, grid.y[0]), (voxels.x, grid.x[0])):
            first, count = _whole((low - start) / grid.cell), _whole((high - low) / grid.cell)
            if first is None or count is None:
                return None
            places.append((first, count))
        (row, rows), (column, columns) = places
        return Placement(row, column, rows, columns, finer or 1, coarser or 1)


@dataclass(frozen=True)
class Sampling:
    """Places at which a feature map is sampled, because no `Placement` fits: the centres of squares of voxel columns.

    Attributes:
        places: (rows, columns, 2) float32 x and y, from -1 to 1 between the outer edges of the map.
        finer: columns of voxels along each side of a square.
    """

    places: np.ndarray
    finer: int

    @staticmethod
    def of(voxels: VoxelGrid, grid: BevGrid) -> Sampling:
        """Squares as large as the cells of the heads' grid, if whole ones make up the voxels; at least a column."""
        finer = max(1, int(grid.cell / voxels.cell + _ROUNDING))
        if any(count % finer for count in voxels.shape[1:]):
            finer = 1
        low, high = np.transpose([grid.x, grid.y])
        centers = BevGrid(voxels.x, voxels.y, cell=voxels.cell * finer).centers()
        return Sampling((2 * (centers - low) / (high - low) - 1).astype(np.float32), finer)


def require_overlap(voxels: VoxelGrid, grid: BevGrid) -> None:
    """Raise ValueError if voxels and grid have no area in common."""
    for axis, (low, high), (start, end) in (("y", voxels.y, grid.y), ("x", voxels.x, grid.x)):
        if low >= end or high <= start:
            raise ValueError(f"{axis}: {low:g} to {high:g} m is outside the grid, {start:g} to {end:g} m")


def _whole(number: float) -> int | None:
    """The integer that a number is, up to rounding; None if it is none."""
    nearest = round(number)
    return nearest if abs(number - nearest) < _ROUNDING and (nearest or abs(number) < _ROUNDING) else None
