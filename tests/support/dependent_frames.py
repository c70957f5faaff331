"""Frames of a drive whose errors depend on the place, and what a memory makes of them, against the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from perception.frame import Frame

CELL, SIDE, FRAMES, STEP = 0.8, 60, 40, 4  # m; cells of a frame; frames; cells that the vehicle drives between them


@dataclass
class Scores:
    """(2, layers) of each frame's and of the fused probabilities; `true` is the share of cells in truth."""

    brier: np.ndarray
    iou: np.ndarray
    above: np.ndarray
    true: np.ndarray


class Sensor:
    """A network that is calibrated on each frame alone.

    Log-odds of the prior plus a normal variable of mean +-m and variance 2 m, with the information m, are those of the
    posterior.

    Args:
        prior, information: arrays that broadcast with a frame's truth.
        shared: part of the variance that all frames have in common at a place.
    """

    def __init__(self, prior: np.ndarray, information: np.ndarray, shared: float, world: Sequence[int]) -> None:
        self._rng, self._prior, self._m, self._shared = np.random.default_rng(1), prior, information, shared
        self._of_place = self._rng.normal(size=world)

    def see(self, truth: np.ndarray, places: slice) -> np.ndarray:
        """float32 probabilities of the places, shaped as their truth."""
        own = self._rng.normal(size=truth.shape)
        noise = np.sqrt(self._shared) * self._of_place[..., places] + np.sqrt(1 - self._shared) * own
        logits = np.log(self._prior / (1 - self._prior)) + self._m * (2 * truth - 1.0) + np.sqrt(2 * self._m) * noise
        return (1 / (1 + np.exp(-logits))).astype(np.float32)


def frame_after(seconds: float, metres: float) -> Frame:
    pose = np.eye(4)
    pose[0, 3] = metres
    time = 1_500_000_000_000_000 + round(1e6 * seconds)
    return Frame(f"token-{time}", time, "ego", pose, pose, points=None, cameras={})


def score_memory(
    fuse: Callable[[Frame, np.ndarray], np.ndarray],
    priors: Sequence[float],
    information: Sequence[float],
    shared: float,
) -> Scores:
    """Scores of a memory that fuses probabilities (layers, SIDE, SIDE), of frames 0.5 s apart.

    Args:
        information, shared: of the `Sensor`.
    """
    prior, m = (np.reshape(each, (-1, 1, 1)) for each in (priors, information))
    truth = np.random.default_rng(0).random((len(priors), SIDE, SIDE + STEP * FRAMES)) < prior
    sensor = Sensor(prior, m, shared, truth.shape)
    parts = ((places := slice(STEP * i, STEP * i + SIDE), truth[..., places]) for i in range(FRAMES))
    seen = [(0.5 * i, CELL * STEP * i, part, sensor.see(part, places)) for i, (places, part) in enumerate(parts)]
    return score((part, p, fuse(frame_after(seconds, metres), p)) for seconds, metres, part, p in seen)


def score(frames: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Scores:
    """Scores of truth, each frame's and fused probabilities (layers, ...)."""
    counts = []
    for truth, *both in frames:
        axes = tuple(range(1, truth.ndim))
        rows = [((p - truth) ** 2, (p >= 0.5) & truth, (p >= 0.5) | truth, p >= 0.5, truth) for p in both]
        counts.append([[each.mean(axis=axes) for each in row] for row in rows])
    brier, inside, either, above, true = np.mean(counts, axis=0).swapaxes(0, 1)
    return Scores(brier, inside / np.maximum(either, 1e-9), above, true)
