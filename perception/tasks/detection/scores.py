"""mAP, NDS and true-positive errors of nuScenes, over all scenes or bootstrap draws of scenes. numpy only.

The devkit's metrics of detection_cvpr_2019 (Caesar et al., 2020, section 3.1). Detections are matched once; the
contributions to the precision-recall curves are kept per scene, so that a further draw of scenes needs only sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from perception.tasks.detection.columns import BoxColumns, match, order_best_first
from perception.taxonomy import ObjectClass, Taxonomy

THRESHOLDS = (0.5, 1.0, 2.0, 4.0)  # m
ERRORS = {"trans_err": "ATE", "scale_err": "ASE", "orient_err": "AOE", "vel_err": "AVE", "attr_err": "AAE"}
_ERROR_THRESHOLD = THRESHOLDS.index(2.0)
RECALLS = np.linspace(0, 1, 101)  # of the precision-recall curves
_FIRST = 11  # recall above 0.1
_MIN_PRECISION = 0.1
_HELD = 1 << 23  # numbers in memory at once


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
    """Detections matched with annotations, to be scored for any draw of scenes.

    Args:
        truth: scored annotations, see BoxColumns.counted.
        detections: scored detections.
        scenes: (F,) int, the scene of each frame, from 0 on.
        taxonomy: of the labels and attributes.
    """

    def __init__(self, truth: BoxColumns, detections: BoxColumns, scenes: np.ndarray, taxonomy: Taxonomy) -> None:
        self._classes = taxonomy.classes
        self.scenes = int(scenes.max(initial=0)) + 1
        self.annotated = np.zeros((self.scenes, len(self._classes)))  # boxes of each scene and class
        np.add.at(self.annotated, (scenes[truth.frames], truth.labels), 1)
        order = order_best_first(detections.scores)
        taken = match(truth, detections, THRESHOLDS)[:, order]
        best = detections.select(order)
        self._curves, self._scores, self._errors = [], [], []
        for label, kind in enumerate(self._classes):
            own = np.flatnonzero(best.labels == label)
            self._curves.append([_Curve(each[own] >= 0, scenes[best.frames[own]], self.scenes) for each in taken])
            self._scores.append(best.scores[own])
            found = own[taken[_ERROR_THRESHOLD][own] >= 0]
            matched = truth.select(taken[_ERROR_THRESHOLD][found])
            self._errors.append(_errors(matched, best.select(found), np.pi if kind.heading == "half" else 2 * np.pi))

    def score(self, draws: np.ndarray | None = None) -> Scores:
        """Scores of each draw as if there were no other scenes; a scene drawn twice counts as two scenes.

        Args:
            draws: (R, S) multiplicity of each scene; None: each once, R = 1.
        """
        draws = np.ones((1, self.scenes)) if draws is None else draws.astype(np.float64)  # whole numbers, for BLAS
        aps = np.zeros((len(draws), len(self._classes), len(THRESHOLDS)))
        errors = np.ones((len(draws), len(self._classes), len(ERRORS)))
        for label, kind in enumerate(self._classes):
            curves = self._curves[label]
            held = max(len(curve.positions) for curve in curves) + len(RECALLS) * self.scenes
            for part in _parts(len(draws), held):
                positives = draws[part] @ self.annotated[:, label]
                for level, curve in enumerate(curves):
                    at = _AtRecalls(curve, draws[part], positives)
                    aps[part, label, level] = _average(at.precision())
                    if level == _ERROR_THRESHOLD and len(curve.positions):
                        confidence = at.confidence(self._scores[label])
                        weights = draws[part][:, curve.scenes]
                        errors[part, label] = _mean_errors(
                            confidence, weights, self._scores[label][curve.positions], self._errors[label]
                        )
            errors[:, label, [list(ERRORS).index(error) for error in list_undefined_errors(kind)]] = np.nan
        return Scores(aps, errors)

    def recalls(self) -> np.ndarray:
        """(classes, 4) share of the annotated boxes that some detection matches at each of THRESHOLDS; NaN: none is."""
        found = [[len(curve.positions) for curve in each] for each in self._curves]
        positives = self.annotated.sum(axis=0)[:, None]
        none = np.full((len(self._classes), len(THRESHOLDS)), np.nan)
        return np.divide(np.array(found, float).reshape(none.shape), positives, out=none, where=positives > 0)

    def precisions(self) -> np.ndarray:
        """(classes, 4, 101) precision over all scenes at each of THRESHOLDS and RECALLS; 0 where it is not reached."""
        once = np.ones((1, self.scenes))
        positives = once @ self.annotated
        curves = [
            [_AtRecalls(curve, once, positives[:, label]).precision()[0] for curve in each]
            for label, each in enumerate(self._curves)
        ]
        return np.array(curves).reshape(len(self._classes), len(THRESHOLDS), len(RECALLS))


def list_undefined_errors(kind: ObjectClass) -> list[str]:
    """The ERRORS that objects of a class do not have, such as a cone's heading."""
    undefined = {"orient_err": kind.heading == "none", "vel_err": kind.static, "attr_err": not kind.attributes}
    return [error for error, applies in undefined.items() if applies]


def _parts(rows: int, held: int) -> Iterator[slice]:
    size = max(1, _HELD // max(1, held))
    for start in range(0, rows, size):
        yield slice(start, start + size)


class _Curve:
    """Ranks of the T true positives among the detections of a class, best first, and the counts before each of them."""

    def __init__(self, true: np.ndarray, scenes: np.ndarray, count: int) -> None:
        self.positions = np.flatnonzero(true)
        self.scenes = scenes[self.positions]
        # Row t is of the detections between true positive t - 1, included, and t; the last one of those after all.
        rows, shape = np.cumsum(true), (len(self.positions) + 1, count)
        false = np.bincount((rows * count + scenes)[~true], minlength=shape[0] * count).reshape(shape)
        false = np.cumsum(false, axis=0, dtype=np.float64)
        last = np.full(shape, -1, np.int64)
        last[rows, scenes] = np.arange(len(true))  # of several the last one stays
        last = np.maximum.accumulate(last, axis=0)
        self.false_before, self.false = false[:-1], false[-1]  # number of false positives of each scene
        self.last_before, self.last = last[:-1], last[-1]  # position; -1 for none


class _AtRecalls:
    """The precision-recall curves of R draws at the 101 recalls.

    The devkit interpolates linearly between the points of the curve, one for each detection. A scene that is drawn
    twice has each detection twice, one after the other.
    """

    def __init__(self, curve: _Curve, draws: np.ndarray, positives: np.ndarray) -> None:
        self.curve, self.draws = curve, draws
        weights = draws[:, curve.scenes]
        found, total = np.cumsum(weights, axis=1), weights.sum(axis=1)[:, None]
        count = np.maximum(positives, 1)[:, None]
        whole = np.floor(RECALLS * count)
        whole += (whole + 1) / count <= RECALLS  # with the rounding of the devkit's recalls
        whole -= whole / count > RECALLS
        self.reached = (whole <= total) & (total > 0) & ((whole < total) | (whole / count == RECALLS))
        self.before = np.minimum(whole, total)
        self.fraction = np.clip(RECALLS * count - whole, 0, 1)
        self.ended = self.before >= total
        # The true positive number `before + 1`; none if all were found.
        self.next = np.where(self.ended, 0, _search_rows(found, self.before + 1))
        if found.size:
            row = np.arange(len(draws))[:, None]
            self.copies = self.before - (found - weights)[row, self.next]  # of the next one that were already counted
            false = draws @ curve.false_before.T
            self.false = np.where(self.ended, (draws @ curve.false)[:, None], false[row, self.next])

    def precision(self) -> np.ndarray:
        """(R, 101) precision; 0 at recalls that are not reached."""
        if not len(self.curve.positions):
            return np.zeros(self.reached.shape)
        before, false = self.before, self.false
        low = np.divide(before, before + false, out=np.ones_like(before), where=before + false > 0)
        high = np.where(self.ended, low, (before + 1) / (before + 1 + false))
        return np.where(self.reached, low + self.fraction * (high - low), 0.0)

    def confidence(self, scores: np.ndarray) -> np.ndarray:
        """(R, 101) score at which each recall is reached; 0 if it is not."""
        curve = self.curve
        there = (self.draws > 0)[:, None]
        positions = np.where(self.ended[..., None], curve.last, curve.last_before[self.next])
        previous = np.where(there, positions, -1).max(axis=2)
        own = scores[curve.positions[self.next]]
        low = np.where((self.copies > 0) & ~self.ended | (previous < 0), own, scores[previous])
        high = np.where(self.ended, low, own)
        return np.where(self.reached, low + self.fraction * (high - low), 0.0)


def _search_rows(rows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """(R, N) index in its row of the first of (R, T), ascending, that is not below each of (R, N) numbers."""
    index = np.arange(len(rows))[:, None]
    offset = index * (rows.max(initial=0) + 2)  # one ascending array of all rows
    place = np.searchsorted((rows + offset).ravel(), (numbers + offset).ravel()).reshape(numbers.shape)
    return np.asarray(place - index * rows.shape[1])


def _average(precision: np.ndarray) -> np.ndarray:
    """(R,) average precision from (R, 101) precisions: recalls above 0.1, precisions above 0.1."""
    above = np.maximum(precision[:, _FIRST:] - _MIN_PRECISION, 0)
    return np.asarray(above.mean(axis=1) / (1 - _MIN_PRECISION))


def _errors(truth: BoxColumns, found: BoxColumns, period: float) -> np.ndarray:
    """(5, T) ERRORS of the matched detections of one class; NaN for unknown.

    Args:
        period: rad, by which headings are ambiguous.
    """
    away = found.centers[:, :2] - truth.centers[:, :2]
    moved = found.velocities - truth.velocities
    both = np.minimum(found.sizes, truth.sizes).prod(axis=1)
    union = found.sizes.prod(axis=1) + truth.sizes.prod(axis=1) - both
    turn = np.abs((truth.yaws - found.yaws + period / 2) % period - period / 2)
    wrong = np.where(truth.attributes < 0, np.nan, truth.attributes != found.attributes)
    distance, speed = (np.sqrt(np.square(each).sum(axis=1)) for each in (away, moved))
    return np.stack([distance, 1 - both / union, turn, speed, wrong])


def _mean_errors(confidence: np.ndarray, weights: np.ndarray, scores: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """(R, 5) means over the recalls from 0.1 to the largest of the cumulative mean errors down to that confidence.

    Args:
        confidence: (R, 101) of the recalls.
        weights: (R, T) multiplicity of each match in each draw.
        scores: (T,) of the matches, descending.
        errors: (5, T) of the matches.
    """
    rows, recalls = np.arange(len(weights))[:, None], np.arange(len(RECALLS))
    following, preceding = _matches_around(confidence, weights, scores)  # the points of the curve beside each recall
    inside = (following < len(scores)) & (preceding >= 0)
    low, high = np.minimum(following, len(scores) - 1), np.maximum(preceding, 0)
    gap = scores[high] - scores[low]
    share = np.divide(confidence - scores[low], gap, out=np.zeros_like(confidence), where=inside & (gap > 0))
    last = np.where(confidence > 0, recalls, 0).max(axis=1)
    averaged = (recalls >= _FIRST) & (recalls <= last[:, None])
    result = np.ones((len(weights), len(errors)))
    for i, each in enumerate(errors):
        first_copy, all_copies = _cumulative_means(weights, each)
        lower, upper = first_copy[rows, low], all_copies[rows, high]
        curve = np.where(inside, lower + share * (upper - lower), np.where(preceding >= 0, upper, lower))
        mean = (curve * averaged).sum(axis=1) / np.maximum(averaged.sum(axis=1), 1)
        known = weights[:, ~np.isnan(each)].any(axis=1)
        result[:, i] = np.where(known & (last >= _FIRST), mean, 1.0)
    return result


def _matches_around(confidence: np.ndarray, weights: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(R, 101) the first drawn match of this score or less, T for none, and the last of a higher one, -1 for none."""
    matches, drawn = np.arange(len(scores)), weights > 0
    following = np.minimum.accumulate(np.where(drawn, matches, len(scores))[:, ::-1], axis=1)[:, ::-1]
    following = np.pad(following, ((0, 0), (0, 1)), constant_values=len(scores))
    preceding = np.maximum.accumulate(np.where(drawn, matches, -1), axis=1)
    preceding = np.pad(preceding, ((0, 0), (1, 0)), constant_values=-1)
    rows, above = np.arange(len(weights))[:, None], np.searchsorted(-scores, -confidence, side="left")  # higher scores
    return following[rows, above], preceding[rows, above]


def _cumulative_means(weights: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(R, T) mean of the known errors (T,) down to each match: to its first copy in a draw, and to its last one."""
    known = ~np.isnan(errors)
    values = np.where(known, errors, 0.0)
    sums, counts = np.cumsum(weights * values, axis=1), np.cumsum(weights * known, axis=1)
    return _ratio(sums - (weights - 1) * values, counts - (weights - 1) * known), _ratio(sums, counts)


def _ratio(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
