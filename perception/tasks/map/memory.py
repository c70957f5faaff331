"""Map fusion over a drive. numpy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from perception.frame import Frame
from perception.grid import BevGrid
from perception.tasks.moving_window import MovingWindow
from perception.tasks.task import Memory

# Log-odds are integers in units of 1 / SCALE: two bytes a cell, no rounding, and independent of the order of frames.
SCALE = 256
LEVELS = 4096  # probabilities are quantised in steps of 1 / LEVELS
FRAME_LIMIT = 3  # of the log-odds that one frame adds
LIMIT = 8  # of their sum, so that the map can change
REACH = 100.0  # m around the grid that are kept


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


class MapMemory(Memory[np.ndarray]):
    """Memory whose state is the fused map segmentation around the vehicle, on the grid of the results.

    Each cell of a global grid sums the log-odds of each layer relative to its prior, as an occupancy grid (Thrun,
    Burgard & Fox, "Probabilistic Robotics", 2005, table 9.1). A window of it follows the vehicle. The prior is the
    share of the ground that a layer covers, about what a network predicts for unobserved cells, so that these do not
    accumulate.
    """

    def __init__(self, grid: BevGrid, priors: Sequence[float]) -> None:
        self.grid, self.priors = grid, tuple(priors)
        self._layer = np.arange(len(self.priors))[:, None, None]
        self._window = MovingWindow(grid, {"odds": (len(self.priors), np.int16)}, REACH)

    def update(self, frame: Frame, result: np.ndarray | None) -> np.ndarray:
        """Fuse the probabilities of one frame (layers, rows, columns), NaN for unknown; returns the map `around` it."""
        shape = (len(self.priors), *self.grid.shape)
        if result is not None and result.shape != shape:
            raise ValueError("a map of {} on a grid of {} x {} cells".format(result.shape, *self.grid.shape))
        covered = self._window.follow(frame.global_from_reference)
        if result is not None:
            evidence = _evidence_table(self.priors)
            says = evidence.take(levels_of(result) + self._layer * evidence.shape[1])
            odds = self._window.arrays["odds"][covered.block]
            odds += covered.of_frame(says, 0)
            np.clip(odds, -SCALE * LIMIT, SCALE * LIMIT, out=odds)
        return self.around(frame.global_from_reference)

    def around(self, global_from_reference: np.ndarray) -> np.ndarray:
        """(layers, rows, columns) float32 fused probabilities on the grid of a frame; the prior where unobserved."""
        odds, table = self._window.around(global_from_reference)["odds"], _probability_table(self.priors)
        return table.take(odds + (SCALE * LIMIT + self._layer * table.shape[1]))
