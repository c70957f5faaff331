"""Scores of finished replays: of all frames or some, of all ranges or some, and how they vary with the scenes drawn."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from deploy.replay.results import Finished
from perception.frame import CLASSES, MAP_CLASSES
from perception.tasks.detection.columns import BoxColumns
from perception.tasks.detection.matching import match
from perception.tasks.detection.scores import DetectionScores, Scores
from perception.tasks.map.counts import ious, rings

Range = tuple[float, float] | None


class Subject(NamedTuple):
    """What is scored: mAP, NDS, AP of a class, or IoU of a class or (None) the mean of those that are there."""

    metric: str
    class_: str | None
    condition: str | None  # None: all frames
    range: Range  # m; None: all


class Unmeasured(Exception):
    """Why a gate has no number, such as frames without annotations."""


class Measures:
    """Scores of one replay, each computed once."""

    def __init__(self, finished: Finished) -> None:
        self.finished = finished
        self._detection = lru_cache(maxsize=None)(self._matched)
        self._scored: dict[tuple[str | None, Range, bytes], Scores] = {}

    def score(self, subject: Subject, draws: np.ndarray | None = None) -> np.ndarray:
        """(R,) score of each draw.

        Args:
            draws: (R, S) how often each scene counts; None: once, R = 1.

        Raises:
            Unmeasured: the frames hold nothing to measure it on.
        """
        metric, class_, condition, bounds = subject
        if metric == "IoU":
            return self._iou(class_, condition, bounds, draws)
        scores = self._detection(condition, bounds)
        key = condition, bounds, b"" if draws is None else draws.tobytes()
        if key not in self._scored:
            self._scored[key] = scores.scored(draws)
        scored = self._scored[key]
        if metric == "AP":
            label = CLASSES.index(str(class_))
            if not scores.annotated[:, label].any():
                raise Unmeasured(f"no {class_} is annotated{_in(condition, bounds)}")
            return scored.class_aps[:, label]
        return scored.mean_ap if metric == "mAP" else scored.nds

    def sizes(self, subject: Subject) -> np.ndarray:
        """(S,) share of each scene in what there is to score: annotated boxes, or cells; the mean over the classes."""
        metric, class_, condition, bounds = subject
        there = (
            self._detection(condition, bounds).annotated if metric != "IoU" else self._cells(condition, bounds)[:, 2]
        )
        there = there if class_ is None else there[:, [_index(metric, class_)]]
        present = there[:, there.any(axis=0)]
        return np.asarray((present / present.sum(axis=0)).sum(axis=1) / max(1, present.shape[1]))

    def same_results(self, other: Measures, subject: Subject) -> bool:
        """Whether what is scored is the same, number by number, in another replay of the same frames."""
        metric, class_, condition, bounds = subject
        if metric == "IoU":
            different = self._cells(condition, bounds) != other._cells(condition, bounds)
            return not (different if class_ is None else different[..., _index(metric, class_)]).any()
        sides = []
        for finished in (self.finished, other.finished):
            boxes = _part(finished.detections, finished, _frames(finished, condition), bounds)
            sides.append(boxes if class_ is None else boxes.select(boxes.labels == _index(metric, class_)))
        return sides[0].equals(sides[1])

    def classes(self, condition: str | None, bounds: Range) -> list[str]:
        """Detection classes with annotations."""
        there = self._detection(condition, bounds).annotated.any(axis=0)
        return [name for name, present in zip(CLASSES, there, strict=True) if present]

    def _matched(self, condition: str | None, bounds: Range) -> DetectionScores:
        finished, truth = self.finished, self.finished.truth
        if truth is None:
            raise Unmeasured("the drive has no annotations")
        frames = _frames(finished, condition)
        boxes = [_part(each, finished, frames, bounds) for each in (truth, finished.detections)]
        return DetectionScores(boxes[0], boxes[1], finished.scenes)

    def _cells(self, condition: str | None, bounds: Range) -> np.ndarray:
        """(S, 3, 6) cells of each scene, as count_rings counts them."""
        finished, counts = self.finished, self.finished.map_counts
        if counts is None:
            raise Unmeasured("there is no map of the drive, or the network has none")
        frames = _frames(finished, condition)
        per_scene = np.zeros((finished.scenes.max() + 1, *counts.shape[1:3]))
        np.add.at(per_scene, finished.scenes[frames], counts[frames][..., rings(bounds)].sum(axis=-1))
        return per_scene

    def _iou(self, class_: str | None, condition: str | None, bounds: Range, draws: np.ndarray | None) -> np.ndarray:
        per_scene = self._cells(condition, bounds)
        draws = np.ones((1, len(per_scene))) if draws is None else draws
        found = ious(np.tensordot(draws.astype(np.float64), per_scene, 1))
        if class_ is None:
            present = ~np.isnan(found)
            if not present[0].any() and len(found) == 1:
                raise Unmeasured(f"the map shows nothing{_in(condition, bounds)}")
            sums, number = np.nansum(found, axis=1), present.sum(axis=1)
            return np.divide(sums, number, out=np.zeros_like(sums), where=number > 0)
        own = found[:, MAP_CLASSES.index(class_)]
        if np.isnan(own).all():
            raise Unmeasured(f"the map shows no {class_}{_in(condition, bounds)}")
        return np.nan_to_num(own)


def detection_agreement(
    a: Finished, b: Finished, class_: str | None, condition: str | None, bounds: Range, score: float, metres: float
) -> tuple[float, int, int]:
    """2 M / (A + B), and A and B, of two replays of the same frames; see gates.Agreement.

    Raises:
        Unmeasured: neither detects anything over the score.
    """
    frames = _frames(a, condition)
    sides = []
    for finished in (a, b):
        boxes = _part(finished.detections, finished, frames, bounds)
        chosen = boxes.scores >= score
        sides.append(boxes.select(chosen if class_ is None else chosen & (boxes.labels == CLASSES.index(class_))))
    if not len(sides[0]) + len(sides[1]):
        raise Unmeasured(f"neither replay detects anything with a score of {score:g}{_in(condition, bounds)}")
    matched = (match(sides[1], sides[0], (metres,)) >= 0).sum()
    return float(2 * matched / (len(sides[0]) + len(sides[1]))), len(sides[0]), len(sides[1])


def map_agreement(a: Finished, b: Finished, class_: str | None, condition: str | None) -> float:
    """IoU of the cells of both replays, of a class or the mean of the classes that either shows.

    Raises:
        Unmeasured: neither shows any.
    """
    both = either = np.zeros(len(MAP_CLASSES))
    for frame in np.flatnonzero(_frames(a, condition)):
        cells, others = a.map_cells(frame), b.map_cells(frame)
        if cells is not None and others is not None:
            if cells.shape != others.shape:
                raise Unmeasured("the networks' maps have different grids")
            both, either = both + (cells & others).sum(axis=(1, 2)), either + (cells | others).sum(axis=(1, 2))
    chosen = either > 0 if class_ is None else np.array(MAP_CLASSES) == class_
    if not either[chosen].any():
        raise Unmeasured(f"neither replay shows a map{' of ' + class_ if class_ else ''}{_in(condition, None)}")
    return float((both[chosen] / either[chosen]).mean())


def _frames(finished: Finished, condition: str | None) -> np.ndarray:
    """(F,) bool"""
    frames = np.ones(len(finished), bool) if condition is None else finished.known(condition)
    if not frames.any():
        raise Unmeasured(f"no frame is known to be in {condition}")
    return frames


def _part(boxes: BoxColumns, finished: Finished, frames: np.ndarray, bounds: Range) -> BoxColumns:
    chosen = frames[boxes.frames]
    if bounds is not None:
        chosen &= boxes.within(bounds, finished.egos)
    return boxes.select(chosen)


def _index(metric: str, class_: str) -> int:
    return (MAP_CLASSES if metric == "IoU" else CLASSES).index(class_)


def _in(condition: str | None, bounds: Range) -> str:
    return (f" in {condition}" if condition else "") + (" within {:g} to {:g} m".format(*bounds) if bounds else "")
