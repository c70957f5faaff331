"""Points grouped into pillars, the vertical columns of the bird's-eye-view grid.

Lang et al., "PointPillars: Fast encoders for object detection from point clouds", CVPR 2019, section 2.1.
"""

from __future__ import annotations

import numpy as np

from perception.grid import BevGrid


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
    points = np.compress(grid.inside(points), points, axis=0)
    cell_of_point = _flat_cells(points, grid)
    order = _stable_order(cell_of_point)  # points pillar by pillar
    occupancy = np.bincount(cell_of_point, minlength=grid.cells)
    cells = np.flatnonzero(occupancy)
    totals = occupancy[cells]
    place = np.arange(len(points)) - np.repeat(np.cumsum(totals) - totals, totals)  # of a point in its pillar
    row_of_cell = _rows(totals, max_pillars)
    row = np.repeat(row_of_cell, totals)
    kept = (place < points_per_pillar) & (row >= 0)
    cells = cells[row_of_cell >= 0]
    pillar_points = np.zeros((len(cells) * points_per_pillar, 5), np.float32)
    pillar_points[row[kept] * points_per_pillar + place[kept]] = np.take(points, order[kept], axis=0)
    counts = np.minimum(occupancy[cells], points_per_pillar)
    return pillar_points.reshape(-1, points_per_pillar, 5), counts.astype(np.int32), cells.astype(np.int32)


def _rows(totals: np.ndarray, max_pillars: int) -> np.ndarray:
    """Row (P0,) of each occupied cell among the max_pillars fullest; -1 for the cells that are dropped."""
    if len(totals) <= max_pillars:
        return np.arange(len(totals))
    rows = np.full(len(totals), -1)
    fullest = np.argsort(-totals, kind="stable")[:max_pillars]
    rows[np.sort(fullest)] = np.arange(max_pillars)
    return rows


def _flat_cells(points: np.ndarray, grid: BevGrid) -> np.ndarray:
    """(N,) int32 cell index of points inside the grid."""
    rows, columns = grid.shape
    place = grid.continuous(points[:, :2]).astype(np.int32)
    # The last cell takes a point that rounding puts on the far edge, or beyond it where the range is no
    # multiple of the cell.
    return np.minimum(place[:, 1], rows - 1) * columns + np.minimum(place[:, 0], columns - 1)


def _stable_order(keys: np.ndarray) -> np.ndarray:
    """Stable argsort of non-negative int32 keys; numpy's radix sort is for 16 bits, so low half, then high half."""
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    return order[np.argsort((keys >> 16).astype(np.uint16)[order], kind="stable")]
