"""mAP, NDS and true-positive errors of nuScenes, over all scenes or draws of scenes. numpy only.

The devkit's metrics of detection_cvpr_2019 (Caesar et al., 2020, section 3.1). Detections are matched once for all
draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from perception.tasks.detection.columns import BoxColumns, match, order_best_first
from perception.taxonomy import ObjectClass, Taxonomy

THRESHOLDS = (0.5, 1.0, 2.0, 4.0)  # m
ERRORS = {"trans_err": "ATE", "scale_err": "ASE", "orient_err": "AOE", "vel_err": "AVE", "attr_err": "AAE"}
_ERROR_THRESHOLD = THRESHOLDS.index(2.0)
RECALLS = np.linspace(0, 1, 101)  # of the precision-recall curves
_FIRST = 11  # recall above 0.1
_MIN_PRECISION = 0.1


@dataclass(frozen=True)
class Scores:
    """Scores of R draws of scenes."""

    aps: np.ndarray  # (R, classes, 4) average precision of each class at each of THRESHOLDS
    errors: np.ndarray  # (R, classes, 5) ERRORS of each class: m, 1 - IoU, rad, m/s, 1 - accuracy; NaN: not defined

    @property
    def class_aps(self) -> np.ndarray:
        """(R, classes)"""
        return self.aps.mean(axis=2)

    @property
    def mean_ap(self) -> np.ndarray:
        """(R,)"""
        return self.class_aps.mean(axis=1)

    @property
    def mean_errors(self) -> np.ndarray:
        """(R, 5) means over the classes that have the error; NaN for one that no class has."""
        known = ~np.isnan(self.errors)
        sums = np.where(known, self.errors, 0.0).sum(axis=1)
        return np.divide(sums, known.sum(axis=1), out=np.full_like(sums, np.nan), where=known.any(axis=1))

    @property
    def nds(self) -> np.ndarray:
        """(R,) nuScenes detection score; without attributes, say, the four other errors weigh as much as all five."""
        scores = np.maximum(0, 1 - self.mean_errors)
        known = ~np.isnan(scores[:1]).any(axis=0)
        return (5 * self.mean_ap + scores[:, known].sum(axis=1) * (known.size / max(1, known.sum()))) / 10


class DetectionScores:
    """Scored detections matched with scored annotations (`BoxColumns.counted`), to be scored for any draw of scenes
    (F,)."""

    def __init__(self, truth: BoxColumns, detections: BoxColumns, scenes: np.ndarray, taxonomy: Taxonomy) -> None:
        self._classes = taxonomy.classes
        self.scenes = int(scenes.max(initial=0)) + 1
        self.annotated = np.zeros((self.scenes, len(self._classes)))  # boxes of each scene and class
        np.add.at(self.annotated, (scenes[truth.frames], truth.labels), 1)
        order = order_best_first(detections.scores)
        taken = match(truth, detections, THRESHOLDS)[:, order]
        best = detections.select(order)
        self._found = []
        for label, kind in enumerate(self._classes):
            own = np.flatnonzero(best.labels == label)
            true, nearest = taken[:, own] >= 0, taken[_ERROR_THRESHOLD, own]
            errors = np.full((len(ERRORS), len(own)), np.nan)
            period = np.pi if kind.heading == "half" else 2 * np.pi
            matched = own[nearest >= 0]
            errors[:, nearest >= 0] = _errors(truth.select(nearest[nearest >= 0]), best.select(matched), period)
            self._found.append(_Found(scenes[best.frames[own]], best.scores[own], true, errors))

    def score(self, draws: np.ndarray | None = None) -> Scores:
        """Scores of draws (R, S), or of each scene once, as if there were no others; two copies are two scenes."""
        draws = np.ones((1, self.scenes)) if draws is None else draws
        aps = np.zeros((len(draws), len(self._classes), len(THRESHOLDS)))
        errors = np.ones((len(draws), len(self._classes), len(ERRORS)))
        for i, times in enumerate(draws.astype(np.int64)):
            positives = times @ self.annotated
            for label, found in enumerate(self._found):
                drawn = found.drawn(times)
                curves = [_curve(true, drawn.scores, positives[label]) for true in drawn.true]
                aps[i, label] = [_average(precision) for precision, _ in curves]
                errors[i, label] = _mean_errors(curves[_ERROR_THRESHOLD][1], drawn)
        for label, kind in enumerate(self._classes):
            errors[:, label, [list(ERRORS).index(error) for error in list_undefined_errors(kind)]] = np.nan
        return Scores(aps, errors)

    def recalls(self) -> np.ndarray:
        """(classes, 4) share of the annotated boxes that some detection matches at each of THRESHOLDS; NaN: none is."""
        found = np.array([each.true.sum(axis=1) for each in self._found], float).reshape(-1, len(THRESHOLDS))
        positives = self.annotated.sum(axis=0)[:, None]
        return np.divide(found, positives, out=np.full_like(found, np.nan), where=positives > 0)

    def precisions(self) -> np.ndarray:
        """(classes, 4, 101) precision over all scenes at each of THRESHOLDS and RECALLS; 0 where it is not reached."""
        curves = [
            [_curve(true, found.scores, positives)[0] for true in found.true]
            for found, positives in zip(self._found, self.annotated.sum(axis=0), strict=True)
        ]
        return np.array(curves).reshape(len(self._classes), len(THRESHOLDS), len(RECALLS))


def list_undefined_errors(kind: ObjectClass) -> list[str]:
    """The ERRORS that objects of a class do not have, such as a cone's heading."""
    undefined = {"orient_err": kind.heading == "none", "vel_err": kind.static, "attr_err": not kind.attributes}
    return [error for error, applies in undefined.items() if applies]


class _Found(NamedTuple):
    """The N detections of a class, best first."""

    scenes: np.ndarray  # (N,)
    scores: np.ndarray  # (N,)
    true: np.ndarray  # (4, N) whether it is matched at each of THRESHOLDS
    errors: np.ndarray  # (5, N) of those that are matched at _ERROR_THRESHOLD; NaN: unknown

    def drawn(self, times: np.ndarray) -> _Found:
        """The detections of scenes that are drawn (S,) so often; copies come one after the other."""
        index = np.repeat(np.arange(len(self.scenes)), times[self.scenes])
        return _Found(self.scenes[index], self.scores[index], self.true[:, index], self.errors[:, index])


def _curve(true: np.ndarray, scores: np.ndarray, positives: float) -> tuple[np.ndarray, np.ndarray]:
    """(101,) precision and score at each of RECALLS, linear between detections as in the devkit; 0: not reached."""
    if not true.any():
        return np.zeros_like(RECALLS), np.zeros_like(RECALLS)
    found = np.cumsum(true)
    precision, confidence = (
        np.interp(RECALLS, found / positives, each, right=0) for each in (found / np.arange(1, len(true) + 1), scores)
    )
    return precision, confidence


def _average(precision: np.ndarray) -> float:
    """Average precision from (101,) precisions: recalls above 0.1, precisions above 0.1."""
    return float(np.maximum(precision[_FIRST:] - _MIN_PRECISION, 0).mean() / (1 - _MIN_PRECISION))


def _errors(truth: BoxColumns, found: BoxColumns, period: float) -> np.ndarray:
    """(5, T) ERRORS of the matched detections of a class whose headings repeat every `period` rad; NaN: unknown."""
    away = found.centers[:, :2] - truth.centers[:, :2]
    moved = found.velocities - truth.velocities
    both = np.minimum(found.sizes, truth.sizes).prod(axis=1)
    union = found.sizes.prod(axis=1) + truth.sizes.prod(axis=1) - both
    turn = np.abs((truth.yaws - found.yaws + period / 2) % period - period / 2)
    wrong = np.where(truth.attributes < 0, np.nan, truth.attributes != found.attributes)
    distance, speed = (np.sqrt(np.square(each).sum(axis=1)) for each in (away, moved))
    return np.stack([distance, 1 - both / union, turn, speed, wrong])


def _mean_errors(confidence: np.ndarray, found: _Found) -> np.ndarray:
    """(5,) means of the cumulative mean errors over the recalls that are reached from 0.1 on, by confidence (101,)."""
    last = np.flatnonzero(confidence).max(initial=0)
    matched = found.true[_ERROR_THRESHOLD]
    scores, result = found.scores[matched][::-1], np.ones(len(ERRORS))
    for i, errors in enumerate(found.errors[:, matched]):
        known = ~np.isnan(errors)
        if last >= _FIRST and known.any():
            sums, counts = np.nancumsum(errors), np.cumsum(known)
            means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
            curve = np.interp(confidence[::-1], scores, means[::-1])[::-1]
            result[i] = curve[_FIRST : last + 1].mean()
    return result
