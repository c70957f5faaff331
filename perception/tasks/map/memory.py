"""Map fusion over a drive. numpy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from perception.grid import BevGrid

# Log-odds are integers in units of 1 / SCALE: two bytes a cell, no rounding, and independent of the order of frames.
SCALE = 256
LEVELS = 4096  # probabilities are quantised in steps of 1 / LEVELS
FRAME_LIMIT = 3  # of the log-odds that one frame adds
LIMIT = 8  # of their sum, so that the map can change
REACH = 100.0  # m around the grid that are kept
STEP = 32  # cells by which the window follows the vehicle
MARGIN = 0.25  # cells around the grid that repeat its outermost values


def _log_odds(p: float) -> float:
    return math.log(p / (1 - p))


@cache
def _evidence_table(priors: tuple[float, ...]) -> np.ndarray:
    """(layers, LEVELS + 2) int16 log-odds relative to the prior of the probabilities 0, 1 / LEVELS, ... 1; 0 for NaN.

    By `math`, because numpy's logarithms may differ in the last bit between runs.
    """
    levels = np.linspace(0, 1, LEVELS + 1).clip(0.25 / LEVELS, 1 - 0.25 / LEVELS).tolist()
    evidence = np.array([[_log_odds(p) - _log_odds(prior) for p in levels] for prior in priors])
    return np.pad(np.rint(SCALE * evidence.clip(-FRAME_LIMIT, FRAME_LIMIT)), ((0, 0), (0, 1))).astype(np.int16)


@cache
def _probability_table(priors: tuple[float, ...]) -> np.ndarray:
    """(layers, 2 SCALE LIMIT + 1) float32 probabilities for sums of log-odds from -LIMIT to LIMIT."""
    sums = range(-SCALE * LIMIT, SCALE * LIMIT + 1)
    return np.array([[1 / (1 + math.exp(-s / SCALE - _log_odds(p))) for s in sums] for p in priors], np.float32)


def levels_of(probabilities: np.ndarray) -> np.ndarray:
    """Quantised probabilities: uint16 in steps of 1 / LEVELS; LEVELS + 1 for NaN."""
    levels = np.rint(np.nan_to_num(probabilities).clip(0, 1) * np.float32(LEVELS)).astype(np.uint16)
    levels[np.isnan(probabilities)] = LEVELS + 1
    return levels


class MapMemory:
    """Fuses map segmentation over a drive, compensated for the vehicle's motion.

    Each cell of a global grid sums the log-odds of each layer relative to its prior, as an occupancy grid (Thrun,
    Burgard & Fox, "Probabilistic Robotics", 2005, table 9.1). Its cells have the size of the frames' and are aligned
    with the global axes. A window of it follows the vehicle: cells farther than REACH from the frames' grid may be
    forgotten, so that the memory is bounded.

    Args:
        grid: of the frames' maps, in their reference frame.
        priors: the share of the ground near the vehicle that each layer covers. A network predicts about this for
            unobserved cells; log-odds are relative to it, so that uninformative cells do not accumulate.
    """

    def __init__(self, grid: BevGrid, priors: Sequence[float]) -> None:
        self.grid, self.priors = grid, tuple(priors)
        self._layer = np.arange(len(self.priors))[:, None, None]
        corners = np.abs([*grid.x, *grid.y]).reshape(2, 2).max(axis=1)
        half = (np.hypot(*corners) + REACH) / grid.cell
        side = 2 * (int(np.ceil(half)) + STEP)
        self._odds = np.zeros((len(self.priors), side, side), np.int16)
        self._origin: np.ndarray | None = None  # row and column of the window's first cell in the global frame

    @property
    def bytes(self) -> int:
        """Size of the memory, the same for the whole drive."""
        return self._odds.nbytes

    def update(self, probabilities: np.ndarray, global_from_reference: np.ndarray) -> None:
        """Fuse the probabilities of one frame.

        Args:
            probabilities: (layers, rows, columns) in [0, 1] on the grid; NaN for unknown.
            global_from_reference: (4, 4) of the frame.

        Raises:
            ValueError: the map is not on the grid.
        """
        rows, columns = self.grid.shape
        if probabilities.shape != (len(self.priors), rows, columns):
            raise ValueError(f"a map of {probabilities.shape} on a grid of {rows} x {columns} cells")
        first, last = self._footprint(global_from_reference)
        self._follow(global_from_reference[1::-1, 3])
        row, column = self._grid_cells(first, last, global_from_reference)
        outside = (row < -MARGIN) | (row >= rows + MARGIN) | (column < -MARGIN) | (column >= columns + MARGIN)
        row, column = (np.floor(i).clip(0, n - 1).astype(np.intp) for i, n in ((row, rows), (column, columns)))
        index = np.where(outside, rows * columns, row * columns + column)

        evidence = _evidence_table(self.priors)
        levels = levels_of(probabilities) + self._layer * evidence.shape[1]
        says = np.zeros((len(self.priors), rows * columns + 1), np.int16)  # the last one: nothing
        says[:, :-1] = evidence.take(levels).reshape(len(self.priors), -1)
        (top, left), (bottom, right) = first - self._origin, last - self._origin
        block = self._odds[:, top:bottom, left:right]
        block += says.take(index, axis=1)
        np.clip(block, -SCALE * LIMIT, SCALE * LIMIT, out=block)

    def around(self, global_from_reference: np.ndarray) -> np.ndarray:
        """(layers, rows, columns) float32 fused probabilities on the grid of a frame; the prior where unobserved."""
        rows, columns = self.grid.shape
        if self._origin is None:
            return np.tile(np.array(self.priors, np.float32)[:, None, None], (1, rows, columns))
        xs = self.grid.x[0] + (np.arange(columns) + 0.5) * self.grid.cell
        ys = self.grid.y[0] + (np.arange(rows)[:, None] + 0.5) * self.grid.cell
        (xx, xy), (yx, yy) = global_from_reference[:2, :2] / self.grid.cell
        x, y = global_from_reference[:2, 3] / self.grid.cell
        column = np.floor(xx * xs + xy * ys + x).astype(np.intp) - self._origin[1]
        row = np.floor(yx * xs + yy * ys + y).astype(np.intp) - self._origin[0]
        side = self._odds.shape[1]
        inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
        index = np.where(inside, row * side + column, 0)
        odds = np.where(inside, self._odds.reshape(len(self.priors), -1).take(index, axis=1), 0)
        table = _probability_table(self.priors)
        return table.take(odds + (SCALE * LIMIT + self._layer * table.shape[1]))

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
        (xx, xy), (yx, yy) = global_from_reference[:2, :2]  # the ground is the plane z = 0 of the reference frame
        determinant = xx * yy - xy * yx
        x = (np.arange(first[1], last[1]) + 0.5) * self.grid.cell - global_from_reference[0, 3]
        y = (np.arange(first[0], last[0])[:, None] + 0.5) * self.grid.cell - global_from_reference[1, 3]
        column = ((yy * x - xy * y) / determinant - self.grid.x[0]) / self.grid.cell
        row = ((xx * y - yx * x) / determinant - self.grid.y[0]) / self.grid.cell
        return row, column

    def _follow(self, position: np.ndarray) -> None:
        """Shift the window by whole cells so that the vehicle at (y, x) m in the global frame is in its middle."""
        side = self._odds.shape[1]
        middle = np.floor(position / self.grid.cell / STEP).astype(np.intp) * STEP
        origin = middle - side // 2
        if self._origin is not None and (origin != self._origin).any():
            moved = np.zeros_like(self._odds)
            (down, right) = origin - self._origin
            kept = [slice(max(d, 0), max(side + min(d, 0), 0)) for d in (down, right)]
            target = [slice(max(-d, 0), max(side - max(d, 0), 0)) for d in (down, right)]
            moved[:, target[0], target[1]] = self._odds[:, kept[0], kept[1]]
            self._odds = moved
        self._origin = origin
