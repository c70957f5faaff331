"""Matches detections with annotations by the distance of their centres, as the nuScenes devkit does. numpy only.

Caesar et al., "nuScenes: A multimodal dataset for autonomous driving", 2020, section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from perception.tasks.detection.columns import BoxColumns

_PAIRS = 1 << 18  # pairs of boxes in memory at once
_LABELS = 1 << 20  # more than any taxonomy has


def best_first(scores: np.ndarray) -> np.ndarray:
    """(N,) order of descending score; of equal scores the last comes first, as in the devkit."""
    return np.lexsort((np.arange(len(scores)), scores))[::-1]


def match(truth: BoxColumns, detections: BoxColumns, thresholds: Sequence[float]) -> np.ndarray:
    """(D, N) index of the annotation of each detection at each threshold, -1 for none.

    Greedy by descending score: a detection takes the nearest free annotation of its class and frame below the threshold
    (m, in the ground plane). Vectorised over all (frame, class) groups, rank by rank.
    """
    taken_by = np.full((len(thresholds), len(detections)), -1, np.int64)
    detection, annotation, distance = _near(truth, detections, max(thresholds))
    if not len(detection):
        return taken_by
    rank = np.empty(len(detections), np.int64)
    rank[best_first(detections.scores)] = np.arange(len(detections))
    order = np.lexsort((annotation, distance, rank[detection], _group(detections)[detection]))
    detection, annotation, distance = detection[order], annotation[order], distance[order]

    first = np.flatnonzero(np.diff(detection, prepend=-1))  # of each detection's pairs
    row = np.cumsum(np.diff(detection, prepend=-1) != 0) - 1
    involved, place = detection[first], np.arange(len(detection)) - first[row]
    choices = np.full((len(involved), place.max() + 1), len(truth))  # nearest first; the last index is no annotation
    distances = np.full(choices.shape, np.inf)
    choices[row, place], distances[row, place] = annotation, distance

    group = _group(detections)[involved]
    beginning = np.flatnonzero(np.diff(group, prepend=-1))
    step = np.arange(len(involved)) - beginning[np.cumsum(np.diff(group, prepend=-1) != 0) - 1]
    turns = np.split(np.argsort(step, kind="stable"), np.cumsum(np.bincount(step))[:-1])
    free = np.ones((len(thresholds), len(truth) + 1), bool)
    free[:, -1] = False
    limits = np.asarray(thresholds)[:, None]
    for rows in turns:
        available = free[:, choices[rows]]
        nearest = available.argmax(axis=2)
        matched = available.any(axis=2) & (distances[rows, nearest] < limits)
        chosen = choices[rows, nearest]
        level, at = np.nonzero(matched)
        taken_by[level, involved[rows][at]] = chosen[level, at]
        free[level, chosen[level, at]] = False
    return taken_by


def _group(boxes: BoxColumns) -> np.ndarray:
    """(N,) index of the (frame, class) group."""
    return boxes.frames * _LABELS + boxes.labels


def _near(truth: BoxColumns, detections: BoxColumns, limit: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of a detection and an annotation of the same group within `limit` metres, with their distance."""
    groups, own = _group(truth), _group(detections)
    order = np.argsort(groups, kind="stable")
    low, high = (np.searchsorted(groups[order], own, side) for side in ("left", "right"))
    counts = high - low
    ends = np.concatenate([[0], np.cumsum(counts)])
    bounds = [*np.searchsorted(ends, np.arange(0, ends[-1], _PAIRS)), len(detections)]
    nothing = np.zeros(0, np.int64)
    found = [(nothing, nothing, np.zeros(0))]
    for start, stop in pairwise(bounds):
        detection = np.repeat(np.arange(start, stop), counts[start:stop])
        within = np.arange(len(detection)) - (ends[detection] - ends[start])
        annotation = order[low[detection] + within]
        away = detections.centers[detection, :2] - truth.centers[annotation, :2]
        distance = np.sqrt(np.square(away).sum(axis=1))
        near = distance < limit
        found.append((detection[near], annotation[near], distance[near]))
    pairs = [np.concatenate(column) for column in zip(*found, strict=True)]
    return pairs[0], pairs[1], pairs[2]
