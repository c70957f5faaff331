"""Where the voxels lie on the trunk's feature map."""

from __future__ import annotations

from dataclasses import dataclass

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
    def of(voxels: VoxelGrid, grid: BevGrid) -> Placement:
        """The placement of voxels on the grid of the heads.

        Raises:
            ValueError: the edges of voxels and cells do not meet, or they have no area in common.
        """
        finer, coarser = _whole(grid.cell / voxels.cell), _whole(voxels.cell / grid.cell)
        if finer is None and coarser is None:
            raise ValueError(
                f"cell: {voxels.cell:g} m is neither a multiple nor a whole part of the heads' cell of {grid.cell:g} m"
            )
        places = []
        for axis, (low, high), (start, end) in (("y", voxels.y, grid.y), ("x", voxels.x, grid.x)):
            first, count = _whole((low - start) / grid.cell), _whole((high - low) / grid.cell)
            if first is None or count is None:
                raise ValueError(
                    f"{axis}: {low:g} to {high:g} m does not begin and end at edges of the heads' cells, "
                    f"{start:g} m plus multiples of {grid.cell:g} m"
                )
            if low >= end or high <= start:
                raise ValueError(f"{axis}: {low:g} to {high:g} m is outside the grid, {start:g} to {end:g} m")
            places.append((first, count))
        (row, rows), (column, columns) = places
        return Placement(row, column, rows, columns, finer or 1, coarser or 1)


def _whole(number: float) -> int | None:
    """The integer that a number is, up to rounding; None if it is none."""
    nearest = round(number)
    return nearest if abs(number - nearest) < _ROUNDING and (nearest or abs(number) < _ROUNDING) else None
