"""A window of a global grid on the ground, which follows the vehicle: for memories over a drive. numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from perception.grid import BevGrid

STEP = 32  # cells by which the window follows the vehicle
MARGIN = 0.25  # cells around a frame's grid that repeat its outermost values


class Covered(NamedTuple):
    """The cells of a window that a frame's grid covers."""

    block: tuple[slice, slice, slice]  # layers, rows and columns of the window
    frame_cells: np.ndarray  # index of the frame's cell in each cell of the block; rows * columns: none

    def of_frame(self, values: np.ndarray, nothing: int) -> np.ndarray:
        """The values (layers, rows, columns) of the frame for the cells of the block."""
        layers = len(values)
        padded = np.full((layers, values[0].size + 1), nothing, values.dtype)
        padded[:, :-1] = values.reshape(layers, -1)
        return padded.take(self.frame_cells, axis=1)


class MovingWindow:
    """Arrays (layers, side, side) on cells of the size of the frames', aligned with the global axes.

    Cells farther than the reach (m) from the frames' grid may be forgotten, so that the memory is bounded. The ground
    is the plane z = 0 of the frames' reference. `layers` has the number and type of the layers of each array.
    """

    def __init__(self, grid: BevGrid, layers: Mapping[str, tuple[int, type[np.generic]]], reach: float) -> None:
        self.grid = grid
        corners = np.abs([*grid.x, *grid.y]).reshape(2, 2).max(axis=1)
        half = (np.hypot(*corners) + reach) / grid.cell
        self.side = 2 * (int(np.ceil(half)) + STEP)
        self.arrays: dict[str, np.ndarray] = {
            name: np.zeros((count, self.side, self.side), kind) for name, (count, kind) in layers.items()
        }
        self._origin: np.ndarray | None = None  # row and column of the window's first cell in the global frame

    def follow(self, global_from_reference: np.ndarray) -> Covered:
        """Shift the window so that the vehicle is in its middle; returns the cells that its grid covers."""
        rows, columns = self.grid.shape
        first, last = self._footprint(global_from_reference)
        origin = self._shift(global_from_reference[1::-1, 3])
        row, column = self._grid_cells(first, last, global_from_reference)
        outside = (row < -MARGIN) | (row >= rows + MARGIN) | (column < -MARGIN) | (column >= columns + MARGIN)
        row, column = (np.floor(i).clip(0, n - 1).astype(np.intp) for i, n in ((row, rows), (column, columns)))
        (top, left), (bottom, right) = first - origin, last - origin
        index = np.where(outside, rows * columns, row * columns + column)
        return Covered((slice(None), slice(top, bottom), slice(left, right)), index)

    def around(self, global_from_reference: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays (layers, rows, columns) on a frame's grid; zero outside the window."""
        index, inside = self._cells_around(global_from_reference)
        flat = {name: array.reshape(len(array), -1) for name, array in self.arrays.items()}
        return {name: np.where(inside, array.take(index, axis=1), 0) for name, array in flat.items()}

    def _cells_around(self, global_from_reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each cell (rows, columns) of a frame's grid the flat index in the window, and whether it is inside."""
        rows, columns = self.grid.shape
        if self._origin is None:
            return np.zeros((rows, columns), np.intp), np.zeros((rows, columns), bool)
        xs = self.grid.x[0] + (np.arange(columns) + 0.5) * self.grid.cell
        ys = self.grid.y[0] + (np.arange(rows)[:, None] + 0.5) * self.grid.cell
        (xx, xy), (yx, yy) = global_from_reference[:2, :2] / self.grid.cell
        x, y = global_from_reference[:2, 3] / self.grid.cell
        column = np.floor(xx * xs + xy * ys + x).astype(np.intp) - self._origin[1]
        row = np.floor(yx * xs + yy * ys + y).astype(np.intp) - self._origin[0]
        inside = (row >= 0) & (row < self.side) & (column >= 0) & (column < self.side)
        return np.where(inside, row * self.side + column, 0), inside

    def _footprint(self, global_from_reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First (row, column) of the global cells that the grid touches, and the first ones after it."""
        margin = MARGIN * self.grid.cell
        xs = np.array([self.grid.x[0] - margin, self.grid.x[1] + margin])
        ys = np.array([[self.grid.y[0] - margin], [self.grid.y[1] + margin]])
        (xx, xy), (yx, yy) = global_from_reference[:2, :2]
        x, y = global_from_reference[:2, 3]
        corners = np.stack([yx * xs + yy * ys + y, xx * xs + xy * ys + x]).reshape(2, 4) / self.grid.cell
        return np.floor(corners.min(axis=1)).astype(np.intp), np.floor(corners.max(axis=1)).astype(np.intp) + 1

    def _grid_cells(
        self, first: np.ndarray, last: np.ndarray, global_from_reference: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Continuous row and column on the frame's grid of the centres of the global cells from first to last."""
        (xx, xy), (yx, yy) = global_from_reference[:2, :2]
        determinant = xx * yy - xy * yx
        x = (np.arange(first[1], last[1]) + 0.5) * self.grid.cell - global_from_reference[0, 3]
        y = (np.arange(first[0], last[0])[:, None] + 0.5) * self.grid.cell - global_from_reference[1, 3]
        column = ((yy * x - xy * y) / determinant - self.grid.x[0]) / self.grid.cell
        row = ((xx * y - yx * x) / determinant - self.grid.y[0]) / self.grid.cell
        return row, column

    def _shift(self, position: np.ndarray) -> np.ndarray:
        """Shift the window by whole steps so that (y, x) m in the global frame is in its middle; returns its origin."""
        middle = np.floor(position / self.grid.cell / STEP).astype(np.intp) * STEP
        origin = middle - self.side // 2
        if self._origin is not None and (origin != self._origin).any():
            shifts = origin - self._origin
            kept = [slice(max(d, 0), max(self.side + min(d, 0), 0)) for d in shifts]
            target = [slice(max(-d, 0), max(self.side - max(d, 0), 0)) for d in shifts]
            for name, array in self.arrays.items():
                moved = np.zeros_like(array)
                moved[:, target[0], target[1]] = array[:, kept[0], kept[1]]
                self.arrays[name] = moved
        self._origin = origin
        return np.asarray(origin)
