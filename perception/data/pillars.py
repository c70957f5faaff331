"""Points grouped into pillars, the vertical columns of the bird's-eye-view grid.

Lang et al., "PointPillars: Fast encoders for object detection from point clouds", CVPR 2019, section 2.1.
"""

from __future__ import annotations

import numpy as np

from perception.grid import BevGrid

# Half of the time of a straightforward version went into page faults, because the memory of large temporary arrays
# goes back to the operating system after every frame: hence 32-bit indices, no copy of the points, and chunks.
_CHUNK = 16_384  # points copied at once


def group(
    points: np.ndarray, grid: BevGrid, max_pillars: int, points_per_pillar: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Group the points inside the grid by the cell they lie in.

    A pillar keeps its first points in the order of input, so the keyframe's go before those of older sweeps. Of
    too many pillars those with the most points stay; of equal ones those of the lowest cell index.

    Args:
        points: (N, 5) float32 x y z (m, reference frame), intensity, dt.
        grid: cells of the pillars.
        max_pillars: largest P.
        points_per_pillar: M.

    Returns:
        pillar_points (P, M, 5) float32, zeros as padding; counts (P,) int32 of points kept in each pillar;
        cells (P,) int32, row * columns + column, ascending.
    """
    index = np.flatnonzero(grid.inside(points)).astype(np.int32)
    cell_of_point = _flat_cells(points[index, 0], points[index, 1], grid)
    index = index[_stable_order(cell_of_point)]  # points pillar by pillar
    occupancy = np.bincount(cell_of_point, minlength=grid.cells)
    cells = np.flatnonzero(occupancy)
    totals = occupancy[cells]
    place = np.arange(len(index), dtype=np.int32)  # of a point in its pillar
    place -= np.repeat((np.cumsum(totals) - totals).astype(np.int32), totals)
    row_of_cell = _rows(totals, max_pillars)
    row = np.repeat(row_of_cell, totals)
    kept = np.flatnonzero((place < points_per_pillar) & (row >= 0))
    cells = cells[row_of_cell >= 0]
    pillar_points = np.empty((len(cells) * points_per_pillar, 5), np.float32)
    pillar_points.fill(0)  # np.zeros would not ask for huge pages
    for some in np.split(kept, range(_CHUNK, len(kept), _CHUNK)):
        pillar_points[row[some] * points_per_pillar + place[some]] = np.take(points, index[some], axis=0)
    counts = np.minimum(occupancy[cells], points_per_pillar)
    return pillar_points.reshape(-1, points_per_pillar, 5), counts.astype(np.int32), cells.astype(np.int32)


def _rows(totals: np.ndarray, max_pillars: int) -> np.ndarray:
    """Row (P0,) int32 of each occupied cell among the max_pillars fullest; -1 for the cells that are dropped."""
    if len(totals) <= max_pillars:
        return np.arange(len(totals), dtype=np.int32)
    rows = np.full(len(totals), -1, np.int32)
    fullest = np.argsort(-totals, kind="stable")[:max_pillars]
    rows[np.sort(fullest)] = np.arange(max_pillars)
    return rows


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
