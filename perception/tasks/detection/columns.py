"""Boxes of many frames as columns: detections of a nuScenes submission, or annotations. numpy only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from perception.errors import InputError
from perception.frame import Boxes
from perception.geometry import rotation_matrices
from perception.tasks.detection.submission import read_samples
from perception.taxonomy import Taxonomy


def _column(place: int | slice, kind: type = np.float64) -> Any:
    """A property: the column at this place of `BoxColumns.rows`."""
    return property(lambda boxes: boxes.rows[:, place].astype(kind, copy=False))


@dataclass(frozen=True, slots=True)
class BoxColumns:
    """N boxes of many frames, in the global frame."""

    rows: np.ndarray  # (N, 14) float64: frame, label, x y z, w l h, yaw, vx vy, attribute, score, points

    frames = _column(0, np.int64)  # (N,) which frame
    labels = _column(1, np.int64)  # (N,) index of the class
    centers = _column(slice(2, 5))  # (N, 3) m
    sizes = _column(slice(5, 8))  # (N, 3) m: width, length, height
    yaws = _column(8)  # (N,) rad
    velocities = _column(slice(9, 11))  # (N, 2) m/s; NaN where unknown
    attributes = _column(11, np.int64)  # (N,) index of the attribute; -1 where there is none
    scores = _column(12)  # (N,) in [0, 1]; 1 for annotations
    num_points = _column(13, np.int64)  # (N,) LiDAR + radar points inside; -1 for detections

    @staticmethod
    def of_frame(boxes: Boxes) -> BoxColumns:
        """Boxes of one frame, with the number 0, in any frame of reference."""
        columns = (
            *(np.zeros(len(boxes)), boxes.labels, boxes.centers, boxes.sizes, boxes.yaws, boxes.velocities[:, :2]),
            *(boxes.attributes, boxes.scores, boxes.num_points),
        )
        return BoxColumns(np.column_stack(columns).astype(np.float64))

    @staticmethod
    def joined(parts: Iterable[tuple[int, BoxColumns]]) -> BoxColumns:
        """The boxes of frames, which get these numbers."""
        numbered = list(parts)
        rows = np.concatenate([np.zeros((0, 14)), *(boxes.rows for _, boxes in numbered)])
        rows[:, 0] = np.repeat([frame for frame, _ in numbered], [len(boxes) for _, boxes in numbered])
        return BoxColumns(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, index: np.ndarray) -> BoxColumns:
        return BoxColumns(self.rows[index])

    def counted(self, egos: np.ndarray, bicycle_racks: np.ndarray, taxonomy: Taxonomy) -> BoxColumns:
        """The boxes that the devkit scores: within the range of their class, with points, and in no bicycle rack.

        Args:
            egos: (F, 2) m, position of the vehicle in each frame.
            bicycle_racks: (K, 11) frame, x y z, w l h and rotation w x y z.
        """
        near = self.distances(egos) < np.array([each.range for each in taxonomy.classes])[self.labels]
        racked = np.array([each.racked for each in taxonomy.classes])[self.labels]
        return self.select(near & (self.num_points != 0) & ~self._in_bicycle_rack(bicycle_racks, racked))

    def distances(self, egos: np.ndarray) -> np.ndarray:
        """(N,) m, horizontal distance from the vehicle."""
        away = self.centers[:, :2] - egos[self.frames]
        return np.sqrt(np.square(away).sum(axis=1))

    def within(self, bounds: tuple[float, float], egos: np.ndarray) -> np.ndarray:
        """(N,) bool: boxes within this interval (m) of horizontal distance from the vehicle."""
        distance = self.distances(egos)
        return np.asarray((distance >= bounds[0]) & (distance < bounds[1]))

    def _in_bicycle_rack(self, bicycle_racks: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """(N,) bool: candidates (N,) bool whose centre is in a bicycle rack."""
        racked = np.zeros(len(self), bool)
        cycles = np.flatnonzero(candidates & np.isin(self.frames, bicycle_racks[:, 0]))
        for rack in bicycle_racks if len(cycles) else ():
            rotation = rotation_matrices(rack[7:11])
            here = cycles[self.frames[cycles] == rack[0]]
            inside = np.abs((self.centers[here] - rack[1:4]) @ rotation) <= rack[[5, 4, 6]] / 2
            racked[here] |= inside.all(axis=1)
        return racked


def read_submission(path: Path, frame_of: Mapping[str, int], taxonomy: Taxonomy) -> Iterator[tuple[int, BoxColumns]]:
    """Frame and detections of each sample in `frame_of` (token -> frame), in the order of the file.

    The order matters, because the devkit breaks ties of scores by it. One sample at a time is held as Python objects.
    """
    label = {name: i for i, name in enumerate(taxonomy.class_names)}
    attribute = {name: i for i, name in enumerate(taxonomy.attributes)} | {"": -1}
    for token, boxes in read_samples(path, frame_of):
        try:
            yield frame_of[token], BoxColumns(_rows(boxes, label, attribute))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: sample {token}: a box is malformed: {error!r}") from None


def _rows(boxes: Sequence[Mapping[str, Any]], label: Mapping[str, int], attribute: Mapping[str, int]) -> np.ndarray:
    """(N, 14) rows of BoxColumns."""
    rows = np.zeros((len(boxes), 14))
    if not boxes:
        return rows
    rows[:, 1] = [label[box["detection_name"]] for box in boxes]
    rows[:, 2:5] = _vectors(boxes, "translation", 3)
    rows[:, 5:8] = _vectors(boxes, "size", 3)
    w, x, y, z = _vectors(boxes, "rotation", 4).T
    rows[:, 8] = np.arctan2(2 * (x * y + w * z), w * w + x * x - y * y - z * z)
    rows[:, 9:11] = _vectors(boxes, "velocity", 2)
    rows[:, 11] = [attribute[box["attribute_name"]] for box in boxes]
    rows[:, 12] = [box["detection_score"] for box in boxes]
    rows[:, 13] = -1
    if not np.isfinite(rows[:, [2, 3, 4, 5, 6, 7, 8, 12]]).all() or (rows[:, 5:8] <= 0).any():
        raise ValueError("a number is not finite or a size not positive")
    return rows


def _vectors(boxes: Sequence[Mapping[str, Any]], name: str, length: int) -> np.ndarray:
    """(N, length) of a field; ValueError if one has another length."""
    values = [box[name] for box in boxes]
    if set(map(len, values)) != {length}:
        raise ValueError(f"its {name} has not {length} numbers")
    return np.fromiter(chain.from_iterable(values), np.float64, length * len(values)).reshape(-1, length)


_PAIRS = 1 << 18  # pairs of boxes in memory at once
_LABELS = 1 << 20  # more than any taxonomy has


def order_best_first(scores: np.ndarray) -> np.ndarray:
    """(N,) order of descending score; of equal scores the last comes first, as in the devkit."""
    return np.lexsort((np.arange(len(scores)), scores))[::-1]


def match(truth: BoxColumns, detections: BoxColumns, thresholds: Sequence[float]) -> np.ndarray:
    """(D, N) index of the annotation of each detection at each threshold, -1 for none.

    Greedy by descending score: a detection takes the nearest free annotation of its class and frame below the threshold
    (m, in the ground plane). Vectorised over all (frame, class) groups, rank by rank.
    """
    taken_by = np.full((len(thresholds), len(detections)), -1, np.int64)
    involved, choices, distances = _list_choices(truth, detections, max(thresholds))
    if not len(involved):
        return taken_by
    _, turn = _runs(_group(detections)[involved])  # the best of each group at first, then the second ones, and so on
    turns = np.split(np.argsort(turn, kind="stable"), np.cumsum(np.bincount(turn))[:-1])
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


def _list_choices(truth: BoxColumns, detections: BoxColumns, limit: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The detections (M,) with annotations within `limit` metres, each group by descending score, and their choices.

    These are (M, K) annotations, the nearest first, and their distances; len(truth) and inf where there are fewer.
    """
    detection, annotation, distance = _pairs_within(truth, detections, limit)
    rank = np.empty(len(detections), np.int64)
    rank[order_best_first(detections.scores)] = np.arange(len(detections))
    order = np.lexsort((annotation, distance, rank[detection], _group(detections)[detection]))
    detection, annotation, distance = detection[order], annotation[order], distance[order]
    row, place = _runs(detection)
    involved = detection[place == 0]
    choices = np.full((len(involved), place.max(initial=-1) + 1), len(truth))
    distances = np.full(choices.shape, np.inf)
    choices[row, place], distances[row, place] = annotation, distance
    return involved, choices, distances


def _runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) number of the run of equal values, none below 0, that each one is in, and its place there."""
    first = np.diff(values, prepend=-1) != 0
    run = np.cumsum(first) - 1
    return run, np.arange(len(values)) - np.flatnonzero(first)[run]


def _group(boxes: BoxColumns) -> np.ndarray:
    """(N,) index of the (frame, class) group."""
    return boxes.frames * _LABELS + boxes.labels


def _pairs_within(truth: BoxColumns, detections: BoxColumns, limit: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
