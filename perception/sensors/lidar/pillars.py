"""Groups points into pillars, the vertical columns of the BEV grid.

Lang et al., "PointPillars: Fast encoders for object detection from point clouds", CVPR 2019, section 2.1.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from perception.grid import BevGrid

_SHORT = 1 << 16  # numpy sorts 16-bit numbers by radix
_CHUNK = 16_384  # places filled at once, so that they stay in the cache


def group(
    points: np.ndarray,
    grid: BevGrid,
    pillars: np.ndarray,
    counts: np.ndarray,
    cells: np.ndarray,
    overflow: Literal["fullest", "first"] = "fullest",
    cells_of_points: np.ndarray | None = None,
) -> int:
    """Group the points inside the grid by cell.

    A pillar keeps its first M points in the order of input, which is from the keyframe to older sweeps.

    Args:
        points: (N, 5) float32 x y z (m, reference frame), intensity, dt.
        grid: cells of the pillars.
        pillars: (P, M, 5) float32, overwritten with the points of each pillar, padded with zeros.
        counts: (P,) int32, overwritten with the number of points kept in each pillar, padded with zeros.
        cells: (P,) int32, overwritten with row * columns + column, ascending, padded with rows * columns.
        overflow: the pillars to keep if there are more than P. fullest: those with the most points, of equal ones the
            lowest cells. first: those whose first point comes first, with cells computed in float32, as in mmcv's hard
            voxelisation.
        cells_of_points: (N,) int32, overwritten with the cell of each point, rows * columns outside the grid; None: it
            is not needed.

    Returns:
        The number of pillars.
    """
    find_cells = _in_single_precision if overflow == "first" else _in_double_precision
    index, cell_of_point = find_cells(points, grid)
    if cells_of_points is not None:
        cells_of_points.fill(grid.cells)
        cells_of_points[index] = cell_of_point
    occupancy = np.bincount(cell_of_point, minlength=grid.cells)
    occupied = np.flatnonzero(occupancy != 0)
    totals = occupancy[occupied]
    index = index[_stable_order(cell_of_point, occupied, grid.cells)]  # points pillar by pillar
    position = np.arange(len(index), dtype=np.int32)  # of a point in its pillar
    position -= np.repeat((np.cumsum(totals) - totals).astype(np.int32), totals)
    max_pillars, size = pillars.shape[:2]
    row_of_cell = _rows(-totals if overflow == "fullest" else index[np.cumsum(totals) - totals], max_pillars)
    row = np.repeat(row_of_cell, totals)
    kept = np.flatnonzero((position < size) & (row >= 0))
    occupied = occupied[row_of_cell >= 0]
    count = len(occupied)
    # Filling every place from its point, or from a row of zeros, is faster than scattering the points.
    source = np.full(count * size, len(points), np.int32)
    source[row[kept] * size + position[kept]] = index[kept]
    padded = np.concatenate([points, np.zeros((1, 5), np.float32)])
    places = pillars[:count].reshape(-1, 5)
    for start in range(0, len(source), _CHUNK):
        part = slice(start, start + _CHUNK)
        np.take(padded, source[part], axis=0, out=places[part], mode="clip")
    pillars[count:].fill(0)
    counts[:count], counts[count:] = np.minimum(occupancy[occupied], size), 0
    cells[:count], cells[count:] = occupied, grid.cells
    return count


def _rows(rank: np.ndarray, max_pillars: int) -> np.ndarray:
    """Row (P0,) int32 of each occupied cell among the `max_pillars` of lowest rank; -1 for dropped cells."""
    if len(rank) <= max_pillars:
        return np.arange(len(rank), dtype=np.int32)
    rows = np.full(len(rank), -1, np.int32)
    kept = np.argsort(rank, kind="stable")[:max_pillars]
    rows[np.sort(kept)] = np.arange(max_pillars)
    return rows


def _in_single_precision(points: np.ndarray, grid: BevGrid) -> tuple[np.ndarray, np.ndarray]:
    """Indices (N,) int32 of the points (>=N, >=3) float32 inside the grid, and their cells (N,) int32.

    Computed in float32 as in `dynamic_voxelize_forward` of mmcv, so that points on the edge of a cell are in the same.
    """
    rows, columns = grid.shape
    inside, places = np.ones(len(points), bool), []
    for axis, ((low, _), cell, cells) in enumerate(
        ((grid.x, grid.cell, columns), (grid.y, grid.cell, rows), (grid.z, grid.z[1] - grid.z[0], 1))
    ):
        place = (points[:, axis] - np.float32(low)) / np.float32(cell)
        inside &= (place >= 0) & (place < cells)
        places.append(place)
    index = np.flatnonzero(inside).astype(np.int32)
    return index, places[1][index].astype(np.int32) * np.int32(columns) + places[0][index].astype(np.int32)


def _in_double_precision(points: np.ndarray, grid: BevGrid) -> tuple[np.ndarray, np.ndarray]:
    """As `_in_single_precision`, with the cells of `BevGrid.continuous`."""
    columns = np.ascontiguousarray(points[:, :3].T)  # numpy is slow on every fifth number
    inside = np.flatnonzero(grid.inside(columns.T))
    return inside.astype(np.int32), _flat_cells(columns[0, inside], columns[1, inside], grid)


def _flat_cells(x: np.ndarray, y: np.ndarray, grid: BevGrid) -> np.ndarray:
    """(N,) int32 cell index of points inside the grid, computed as in BevGrid.continuous."""
    rows, columns = grid.shape

    def along(axis: np.ndarray, low: float, cells: int) -> np.ndarray:
        real = axis.astype(np.float64)
        real -= low
        real /= grid.cell
        # Points that rounding puts on the far edge, or beyond if the range is no multiple of the cell, are in the last.
        return np.minimum(real.astype(np.int32), cells - 1)

    return along(y, grid.y[0], rows) * np.int32(columns) + along(x, grid.x[0], columns)


def _stable_order(cells: np.ndarray, occupied: np.ndarray, count: int) -> np.ndarray:
    """Stable argsort (N,) int32 of points by cell; `occupied` lists the cells that occur among `count`, ascending."""
    if len(occupied) > _SHORT:
        return np.argsort(cells, kind="stable").astype(np.int32)
    rank = np.empty(count, np.uint16)
    rank[occupied] = np.arange(len(occupied), dtype=np.uint16)
    return np.argsort(rank[cells], kind="stable").astype(np.int32)
