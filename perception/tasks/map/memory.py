"""Map fusion over a drive. numpy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from perception.frame import Frame
from perception.grid import BevGrid
from perception.tasks.moving_window import Covered, MovingWindow
from perception.tasks.task import Memory

# Log-odds and numbers of views are integers in units of 1 / SCALE: two bytes each.
SCALE = 256
LEVELS = 4096  # probabilities are quantised in steps of 1 / LEVELS
LIMIT = 8  # of the log-odds of a frame
DISTANCE, SECONDS = 4.0, 2.0  # m, s; after either, 1 - 1 / e of what a frame sees is new
VIEWS = 4  # that earlier frames count for at most, so that the map can change
GAIN = 0.2  # n independent views would multiply the mean log-odds by n; the views of a network by n ** GAIN
REACH = 100.0  # m around the grid that are kept
MOST = math.ceil(SCALE * LIMIT * VIEWS**GAIN)  # of the fused log-odds, in their units


def _log_odds(p: float) -> float:
    return math.log(p / (1 - p))


@cache
def _evidence_table(priors: tuple[float, ...]) -> np.ndarray:
    """(layers, LEVELS + 2) int16 log-odds relative to the prior of the probabilities 0, 1 / LEVELS, ... 1; 0 for NaN.

    By `math`, because numpy's logarithms may differ in the last bit between runs.
    """
    levels = np.linspace(0, 1, LEVELS + 1).clip(0.25 / LEVELS, 1 - 0.25 / LEVELS).tolist()
    evidence = np.array([[_log_odds(p) - _log_odds(prior) for p in levels] for prior in priors])
    return np.pad(np.rint(SCALE * evidence.clip(-LIMIT, LIMIT)), ((0, 0), (0, 1))).astype(np.int16)


@cache
def _gain_table() -> np.ndarray:
    """(SCALE VIEWS + 1,) float32 factors of the mean log-odds by the number of views."""
    return np.array([max(1.0, n / SCALE) ** GAIN for n in range(SCALE * VIEWS + 1)], np.float32)


@cache
def _probability_table(priors: tuple[float, ...]) -> np.ndarray:
    """(layers, 2 MOST + 1) float32 probabilities for log-odds relative to the prior from -MOST to MOST."""
    odds = range(-MOST, MOST + 1)
    return np.array([[1 / (1 + math.exp(-s / SCALE - _log_odds(p))) for s in odds] for p in priors], np.float32)


def levels_of(probabilities: np.ndarray) -> np.ndarray:
    """Quantised probabilities: uint16 in steps of 1 / LEVELS; LEVELS + 1 for NaN."""
    levels = np.rint(np.nan_to_num(probabilities).clip(0, 1) * np.float32(LEVELS)).astype(np.uint16)
    levels[np.isnan(probabilities)] = LEVELS + 1
    return levels


class MapMemory(Memory[np.ndarray]):
    """Memory whose state is the fused map segmentation around the vehicle, on the grid of the results.

    Each cell of a global grid, in a window that follows the vehicle, holds for each layer the mean of the frames'
    log-odds relative to the layer's prior, and the number of views that the mean is made of. Frames repeat each
    other's errors, so their log-odds are not summed as if they were independent (as in an occupancy grid: Thrun,
    Burgard & Fox, "Probabilistic Robotics", 2005, table 9.1). A frame counts as a view by the distance and time
    since the frame before, and n views multiply the mean by n ** GAIN. The prior is the share of the ground that a
    layer covers, about what a network predicts for unobserved cells.
    """

    def __init__(self, grid: BevGrid, priors: Sequence[float]) -> None:
        self.grid, self.priors = grid, tuple(priors)
        self._layer = np.arange(len(self.priors))[:, None, None]
        self._window = MovingWindow(grid, {"odds": (len(self.priors), np.int16), "views": (1, np.int16)}, REACH)
        self._before: tuple[int, np.ndarray] | None = None  # time (us) and position of the latest frame with a result

    def update(self, frame: Frame, result: np.ndarray | None) -> np.ndarray:
        """Fuse the probabilities of one frame (layers, rows, columns), NaN for unknown; returns the map `around` it."""
        shape = (len(self.priors), *self.grid.shape)
        if result is not None and result.shape != shape:
            raise ValueError("a map of {} on a grid of {} x {} cells".format(result.shape, *self.grid.shape))
        covered = self._window.follow(frame.global_from_reference)
        if result is not None:
            self._add(result, covered, self._new_share(frame))
            self._before = frame.timestamp, frame.global_from_reference[:3, 3].copy()
        return self.around(frame.global_from_reference)

    def _new_share(self, frame: Frame) -> float:
        """Share of the frame's view of the ground that the frame before did not have."""
        if self._before is None:
            return 1.0
        time, position = self._before
        metres = math.dist(frame.global_from_reference[:3, 3], position)
        return -math.expm1(-metres / DISTANCE - max(0, frame.timestamp - time) / 1e6 / SECONDS)

    def _add(self, result: np.ndarray, covered: Covered, new: float) -> None:
        """Add a frame to the means. Where it is the first one, it is a whole view."""
        evidence = _evidence_table(self.priors)
        frame_odds = covered.of_frame(evidence.take(levels_of(result) + self._layer * evidence.shape[1]), 0)
        known = covered.of_frame(~np.isnan(result).any(axis=0, keepdims=True), 0)
        odds, views = (self._window.arrays[name][covered.block] for name in ("odds", "views"))
        weight = np.where(views > 0, round(SCALE * new), SCALE) * known
        share = (weight / np.maximum(views + weight, 1)).astype(np.float32)
        odds += np.rint((frame_odds - odds) * share).astype(np.int16)
        views[...] = np.minimum(views + weight, SCALE * VIEWS)

    def around(self, global_from_reference: np.ndarray) -> np.ndarray:
        """(layers, rows, columns) float32 fused probabilities on the grid of a frame; the prior where unobserved."""
        window, table = self._window.around(global_from_reference), _probability_table(self.priors)
        odds = np.rint(window["odds"] * _gain_table()[window["views"]]).astype(np.int64)
        return table.take(odds + (MOST + self._layer * table.shape[1]))
