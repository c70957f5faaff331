"""Random scenes with a known true change of the score, to test intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from perception.evaluation.interval import jackknife_interval
from perception.tasks.detection.columns import BoxColumns
from perception.tasks.detection.scores import DetectionScores
from perception.tasks.map.task import ious
from perception.tasks.metric import leave_one_out
from perception.taxonomy import load_taxonomy

NUSCENES = load_taxonomy("nuscenes")
MAP_CLASSES = NUSCENES.map_names


@dataclass(frozen=True)
class Drawn:
    """R samples of N scenes each."""

    score: Callable[[np.ndarray], np.ndarray]  # weights (K, N) of the scenes -> changes (R, K) of the score
    sizes: np.ndarray  # (R, N) of the scenes
    truth: float  # the change over infinitely many scenes

    def jackknife(self, confidence: float = 0.95) -> np.ndarray:
        """The intervals (R, 2) of a verdict; NaN if there is none."""
        scenes = self.sizes.shape[1]
        return jackknife_interval(self.score(leave_one_out(scenes)), self.sizes, confidence)


Draw = Callable[[np.random.Generator, int, int], Drawn]


def _means(changes: np.ndarray) -> Drawn:
    return Drawn(lambda draws: changes @ draws.T / draws.sum(axis=1), np.ones(changes.shape), -0.01)


def gaussian(rng: np.random.Generator, repeats: int, scenes: int) -> Drawn:
    """The mean of changes that are normal from scene to scene."""
    return _means(rng.normal(-0.01, 0.03, (repeats, scenes)))


def heavy_tails(rng: np.random.Generator, repeats: int, scenes: int) -> Drawn:
    """The mean of changes with Student's t of 3 degrees of freedom."""
    return _means(0.03 * rng.standard_t(3, (repeats, scenes)) - 0.01)


def _map_counts(rng: np.random.Generator, repeats: int, scenes: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts (R, N, 3, 6) like count_rings, of the baseline and of a worse network; the loss varies between scenes."""
    shape = repeats, scenes, len(MAP_CLASSES)
    there = (rng.random(shape) < 0.8) * rng.lognormal(5, 0.6, (repeats, scenes, 1)) * rng.lognormal(0, 0.4, shape)
    truth = np.rint(there).astype(np.int64)
    level = rng.normal(0.8, 0.6, (repeats, scenes, 1)) + rng.normal(0, 0.3, shape)
    sides = []
    for worse in (0.0, rng.normal(0.1, 0.25, (repeats, scenes, 1))):
        recalled = rng.binomial(truth, 1 / (1 + np.exp(worse - level)))
        extra = rng.poisson(truth / (1 + np.exp(level + 1 - worse)))
        sides.append(np.stack([recalled, truth + extra, truth], axis=2))
    return sides[0], sides[1]


def _mean_iou(counts: np.ndarray) -> np.ndarray:
    found = ious(counts)
    present = ~np.isnan(found)
    return np.nan_to_num(found).sum(axis=-1) / np.maximum(1, present.sum(axis=-1))


@cache
def _change_of_iou() -> float:
    many = _map_counts(np.random.default_rng(0), 1, 400_000)
    before, after = (float(_mean_iou(counts[0].sum(axis=0))) for counts in many)
    return after - before


def iou(rng: np.random.Generator, repeats: int, scenes: int) -> Drawn:
    """The mean IoU of six map classes, each absent from some scenes; scene sizes differ by a factor of 5 and more."""
    before, after = _map_counts(rng, repeats, scenes)

    def score(draws: np.ndarray) -> np.ndarray:
        sums = (np.einsum("kn,rncm->rkcm", draws, counts, optimize=True) for counts in (before, after))
        first, second = (_mean_iou(each) for each in sums)
        return second - first

    return Drawn(score, _shares(before[:, :, 2]), _change_of_iou())


def _shares(there: np.ndarray) -> np.ndarray:
    """The share (R, N) of each scene in amounts (R, N, C), averaged over the classes that occur."""
    total = there.sum(axis=1, keepdims=True)
    shares = np.divide(there, total, out=np.zeros(there.shape), where=total > 0)
    return shares.sum(axis=2) / np.maximum(1, (total > 0).sum(axis=2))


_BOXES = {0: 6.0, 8: 4.0, 3: 1.0}  # mean annotations per scene: car, pedestrian, and bus, which most scenes do not have


@cache
def _networks(count: int) -> tuple[DetectionScores, DetectionScores]:
    """Scores of the baseline and of a network that finds less; the loss varies between the `count` scenes."""
    rng = np.random.default_rng(5)
    truth: list[list[float]] = []
    found: tuple[list[list[float]], list[list[float]]] = ([], [])
    for scene in range(count):
        size, level = rng.lognormal(0, 0.5), rng.normal(0.6, 0.5)
        quality = level, level + rng.normal(-0.15, 0.25)
        for label, mean in _BOXES.items():
            for _ in range(rng.poisson(size * mean * rng.gamma(1.5, 1 / 1.5))):
                x, own = 100.0 * len(truth), rng.normal(0, 0.7)
                truth.append([scene, label, x, 0, 0, 2, 4, 2, 0, 0, 0, 0, 1, 5])
                for side, good in zip(found, quality, strict=True):
                    seen = own + good + rng.normal(0, 0.3)
                    if rng.random() < 1 / (1 + np.exp(-0.5 - seen)):
                        away, score = rng.rayleigh(0.5 * np.exp(-0.3 * seen)), 1 / (1 + np.exp(-seen))
                        turn = rng.normal(0, 0.3)
                        side.append([scene, label, x + away, 0, 0, 2, 4, 2, turn, 0, 0, 0, score, -1])
            for side, good in zip(found, quality, strict=True):
                for _ in range(rng.poisson(0.8 * size * mean * np.exp(-0.5 * good))):
                    score = 1 / (1 + np.exp(rng.normal(1, 0.9)))
                    side.append([scene, label, 50 - 100.0 * len(side), 0, 0, 2, 4, 2, 0, 0, 0, 0, score, -1])
    annotated = BoxColumns.of(np.array(truth))
    first, second = (DetectionScores(annotated, BoxColumns.of(np.array(s)), np.arange(count), NUSCENES) for s in found)
    return first, second


def detection(rng: np.random.Generator, repeats: int, scenes: int, count: int = 40) -> tuple[Drawn, Drawn]:
    """mAP and NDS of simulated detections, by the code that scores a replay.

    Scenes are drawn with replacement from a population of `count`. With 20, a single one has so much of the loss that
    the changes are strongly skewed.
    """
    sides = _networks(count)
    picked = rng.integers(0, count, (repeats, scenes))

    @cache
    def scored(draws: bytes) -> np.ndarray:
        """Changes (2, 1 + R K) of mAP and NDS, for all scenes and for each draw of the picked ones."""
        given = np.frombuffer(draws).reshape(-1, scenes)
        each = np.einsum("kn,rns->rks", given, np.eye(count)[picked]).reshape(-1, count)
        before, after = (side.score(np.vstack([np.ones((1, count)), each])) for side in sides)
        return np.stack([after.mean_ap - before.mean_ap, after.nds - before.nds])

    def score(draws: np.ndarray, metric: int) -> np.ndarray:
        return scored(draws.astype(np.float64).tobytes())[metric, 1:].reshape(repeats, -1)

    sizes = _shares(sides[0].annotated[picked][..., list(_BOXES)])
    truth = scored(b"")[:, 0]
    first, second = (Drawn(partial(score, metric=metric), sizes, float(truth[metric])) for metric in (0, 1))
    return first, second
