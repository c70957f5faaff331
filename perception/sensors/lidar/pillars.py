"""Points grouped into pillars, the vertical columns of the bird's-eye-view grid.

Lang et al., "PointPillars: Fast encoders for object detection from point clouds", CVPR 2019, section 2.1.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from perception.grid import BevGrid

# Half of the time of a straightforward version went into page faults, because the memory of large temporary arrays
# goes back to the operating system after every frame: hence 32-bit indices, no copy of the points, and chunks.
_CHUNK = 16_384  # points copied at once


def group(
    points: np.ndarray,
    grid: BevGrid,
    pillars: np.ndarray,
    counts: np.ndarray,
    cells: np.ndarray,
    overflow: Literal["fullest", "first"] = "fullest",
) -> int:
    """Group the points inside the grid by the cell they lie in.

    A pillar keeps its first points in the order of input, so the keyframe's go before those of older sweeps. Of
    too many pillars those with the most points stay; of equal ones those of the lowest cell index. With `first` it is
    those whose first point comes first, and cells are computed in float32, as mmcv's hard voxelisation does.

    Args:
        points: (N, 5) float32 x y z (m, reference frame), intensity, dt.
        grid: cells of the pillars.
        pillars: (P, M, 5) float32, is overwritten with the points of each pillar; zeros as padding.
        counts: (P,) int32, is overwritten with the number of points kept in each pillar; zeros as padding.
        cells: (P,) int32, is overwritten with row * columns + column, ascending; rows * columns as padding.

    Returns:
        How many pillars there are.
    """
    if overflow == "first":
        index, cell_of_point = _in_single_precision(points, grid)
    else:
        index = np.flatnonzero(grid.inside(points)).astype(np.int32)
        cell_of_point = _flat_cells(points[index, 0], points[index, 1], grid)
    index = index[_stable_order(cell_of_point)]  # points pillar by pillar
    occupancy = np.bincount(cell_of_point, minlength=grid.cells)
    occupied = np.flatnonzero(occupancy)
    totals = occupancy[occupied]
    place = np.arange(len(index), dtype=np.int32)  # of a point in its pillar
    place -= np.repeat((np.cumsum(totals) - totals).astype(np.int32), totals)
    most, size = pillars.shape[:2]
    row_of_cell = _rows(-totals if overflow == "fullest" else index[np.cumsum(totals) - totals], most)
    row = np.repeat(row_of_cell, totals)
    kept = np.flatnonzero((place < size) & (row >= 0))
    occupied = occupied[row_of_cell >= 0]
    found = len(occupied)
    pillars.fill(0)
    flat = pillars.reshape(most * size, 5)
    for some in np.split(kept, range(_CHUNK, len(kept), _CHUNK)):
        flat[row[some] * size + place[some]] = np.take(points, index[some], axis=0)
    counts[:found], counts[found:] = np.minimum(occupancy[occupied], size), 0
    cells[:found], cells[found:] = occupied, grid.cells
    return found


def _rows(rank: np.ndarray, max_pillars: int) -> np.ndarray:
    """Row (P0,) int32 of each occupied cell among the max_pillars of lowest rank; -1 for the cells that are dropped."""
    if len(rank) <= max_pillars:
        return np.arange(len(rank), dtype=np.int32)
    rows = np.full(len(rank), -1, np.int32)
    kept = np.argsort(rank, kind="stable")[:max_pillars]
    rows[np.sort(kept)] = np.arange(max_pillars)
    return rows


def _in_single_precision(points: np.ndarray, grid: BevGrid) -> tuple[np.ndarray, np.ndarray]:
    """Indices (N,) int32 of the points (>=N, >=3) float32 inside the grid, and the cells (N,) int32 that they lie in.

    All in float32, as `dynamic_voxelize_forward` of mmcv, so that points on the edge of a cell go to the same one.
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


def _flat_cells(x: np.ndarray, y: np.ndarray, grid: BevGrid) -> np.ndarray:
    """(N,) int32 cell index of points inside the grid, computed as in BevGrid.continuous."""
    rows, columns = grid.shape

    def along(axis: np.ndarray, low: float, cells: int) -> np.ndarray:
        real = axis.astype(np.float64)
        real -= low
        real /= grid.cell
        # The last cell takes a point that rounding puts on the far edge, or beyond it where the range is no
        # multiple of the cell.
        return np.minimum(real.astype(np.int32), cells - 1)

    return along(y, grid.y[0], rows) * np.int32(columns) + along(x, grid.x[0], columns)


def _stable_order(keys: np.ndarray) -> np.ndarray:
    """Stable argsort of non-negative int32 keys; numpy's radix sort is for 16 bits, so low half, then high half."""
    order = np.argsort(keys.astype(np.uint16), kind="stable").astype(np.int32)
    return order[np.argsort((keys >> 16).astype(np.uint16)[order], kind="stable")]
