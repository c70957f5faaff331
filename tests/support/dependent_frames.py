"""Frames of a drive whose errors depend on the place, and what a memory makes of them, against the truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def score_memory(
    fuse: Callable[[Frame, np.ndarray], np.ndarray],
    priors: Sequence[float],
    information: Sequence[float],
    shared: float,
) -> Scores:
    """Scores of a memory that fuses probabilities (layers, SIDE, SIDE), of frames 0.5 s apart.

    Each frame alone is calibrated: log-odds of the prior plus a normal variable of mean +-m and variance 2 m, with the
    information m of a layer, are those of the posterior.

    Args:
        shared: part of the variance that all frames have in common at a place.
    """
    rng, (prior, m) = np.random.default_rng(0), (np.reshape(each, (-1, 1, 1)) for each in (priors, information))
    world = (len(priors), SIDE, SIDE + STEP * FRAMES)
    truth, of_place = rng.random(world) < prior, rng.normal(size=world)
    error, both, either, above, true = np.zeros((5, 2, len(priors)))
    for i in range(FRAMES):
        seen = (..., slice(STEP * i, STEP * i + SIDE))
        own = rng.normal(size=truth[seen].shape)
        noise = np.sqrt(shared) * of_place[seen] + np.sqrt(1 - shared) * own
        logits = np.log(prior / (1 - prior)) + m * (2 * truth[seen] - 1.0) + np.sqrt(2 * m) * noise
        probabilities = (1 / (1 + np.exp(-logits))).astype(np.float32)
        pose = np.eye(4)
        pose[0, 3] = CELL * STEP * i
        frame = Frame(f"token-{i}", 1_500_000_000_000_000 + 500_000 * i, "ego", pose, pose, points=None, cameras={})
        for k, p in enumerate((probabilities, fuse(frame, probabilities))):
            found = p >= 0.5
            error[k] += ((p - truth[seen]) ** 2).mean(axis=(1, 2)) / FRAMES
            above[k], true[k] = above[k] + found.mean(axis=(1, 2)), true[k] + truth[seen].mean(axis=(1, 2))
            both[k], either[k] = (
                both[k] + (found & truth[seen]).sum((1, 2)),
                either[k] + (found | truth[seen]).sum((1, 2)),
            )
    return Scores(error, both / np.maximum(either, 1), above / FRAMES, true / FRAMES)
