"""Boxes of many frames as columns: detections of a nuScenes submission, or annotations. numpy only."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from perception.errors import InputError
from perception.frame import Boxes
from perception.geometry import rotation_matrices
from perception.io.files import pause_collector
from perception.tasks.detection.submission import read_samples
from perception.taxonomy import Taxonomy


@dataclass(frozen=True)
class BoxColumns:
    """N boxes of many frames, in the global frame."""

    frames: np.ndarray  # (N,) int, which frame
    labels: np.ndarray  # (N,) int, index of the class
    centers: np.ndarray  # (N, 3) m
    sizes: np.ndarray  # (N, 3) m: width, length, height
    yaws: np.ndarray  # (N,) rad
    velocities: np.ndarray  # (N, 2) m/s; NaN where unknown
    attributes: np.ndarray  # (N,) int, index of the attribute; -1 where there is none
    scores: np.ndarray  # (N,) in [0, 1]; 1 for annotations
    num_points: np.ndarray  # (N,) int, LiDAR + radar points inside; -1 for detections

    @staticmethod
    def of(rows: np.ndarray) -> BoxColumns:
        """From rows (N, 14): frame, label, x y z, w l h, yaw, vx vy, attribute, score, points."""
        whole = rows[:, [0, 1, 11, 13]].astype(np.int64)
        return BoxColumns(
            frames=whole[:, 0],
            labels=whole[:, 1],
            centers=rows[:, 2:5],
            sizes=rows[:, 5:8],
            yaws=rows[:, 8],
            velocities=rows[:, 9:11],
            attributes=whole[:, 2],
            scores=rows[:, 12],
            num_points=whole[:, 3],
        )

    @staticmethod
    def of_frame(boxes: Boxes, frame: int = 0) -> BoxColumns:
        """Boxes of one frame with this index, in any frame of reference."""
        return BoxColumns(
            frames=np.full(len(boxes), frame, np.int64),
            labels=boxes.labels,
            centers=boxes.centers,
            sizes=boxes.sizes,
            yaws=boxes.yaws,
            velocities=boxes.velocities[:, :2],
            attributes=boxes.attributes,
            scores=boxes.scores,
            num_points=boxes.num_points,
        )

    @staticmethod
    def joined(parts: Sequence[BoxColumns]) -> BoxColumns:
        """The boxes of all parts, concatenated."""
        every = [BoxColumns.of(np.zeros((0, 14))), *parts]
        return BoxColumns(
            **{f.name: np.concatenate([getattr(part, f.name) for part in every]) for f in fields(BoxColumns)}
        )

    def __len__(self) -> int:
        return len(self.frames)

    def equals(self, other: BoxColumns) -> bool:
        """Whether both have identical boxes in the same order."""
        return len(self) == len(other) and all(
            np.array_equal(getattr(self, f.name), getattr(other, f.name), equal_nan=f.name == "velocities")
            for f in fields(self)
        )

    def select(self, index: np.ndarray) -> BoxColumns:
        """The boxes at the integer or boolean index (M,)."""
        return BoxColumns(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def counted(self, egos: np.ndarray, bicycle_racks: np.ndarray, taxonomy: Taxonomy) -> BoxColumns:
        """The boxes that the devkit scores: within the range of their class, with points, and in no bicycle rack.

        Args:
            egos: (F, 2) m, position of the vehicle in each frame.
            bicycle_racks: (K, 11) frame, x y z, w l h and rotation w x y z.
        """
        return self.select(self.are_counted(egos, bicycle_racks, taxonomy))

    def are_counted(self, egos: np.ndarray, bicycle_racks: np.ndarray, taxonomy: Taxonomy) -> np.ndarray:
        """(N,) bool, see `counted`."""
        near = self.distances(egos) < np.array([each.range for each in taxonomy.classes])[self.labels]
        racked = np.array([each.racked for each in taxonomy.classes])[self.labels]
        return np.asarray(near & (self.num_points != 0) & ~self._in_bicycle_rack(bicycle_racks, racked))

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


class GrowingColumns:
    """Boxes that are collected frame by frame, in little more memory than their columns take."""

    def __init__(self) -> None:
        self._empty = BoxColumns.of(np.zeros((0, 14)))
        self._columns = {f.name: array(getattr(self._empty, f.name).dtype.char) for f in fields(BoxColumns)}

    def add(self, boxes: BoxColumns) -> None:
        """Append the boxes of a frame, as made by BoxColumns.of."""
        for name, column in self._columns.items():
            column.frombytes(getattr(boxes, name).tobytes())

    def columns(self) -> BoxColumns:
        """All of them; no more can be added."""
        shapes = {name: (-1, *getattr(self._empty, name).shape[1:]) for name in self._columns}
        return BoxColumns(
            **{
                name: np.frombuffer(column, column.typecode).reshape(shapes[name])
                for name, column in self._columns.items()
            }
        )


def read_submission(
    path: Path,
    frame_of: Mapping[str, int],
    taxonomy: Taxonomy,
    chosen: Callable[[BoxColumns], np.ndarray] | None = None,
) -> BoxColumns:
    """The detections of the samples in `frame_of` (token -> frame), in the order of the file.

    The order matters, because the devkit breaks ties of scores by it. One sample at a time is held as Python objects.

    Args:
        chosen: (N,) bool, which boxes of a sample are kept; None: all.

    Raises:
        InputError: the file is no submission, a box is malformed, or a sample is absent or has more than 500 boxes.
    """
    found = GrowingColumns()
    label = {name: i for i, name in enumerate(taxonomy.class_names)}
    attribute = {name: i for i, name in enumerate(taxonomy.attributes)} | {"": -1}
    with pause_collector():
        for token, boxes in read_samples(path, frame_of):
            try:
                own = BoxColumns.of(_rows(boxes, frame_of[token], label, attribute))
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(f"{path}: sample {token}: a box is malformed: {error!r}") from None
            found.add(own if chosen is None else own.select(chosen(own)))
    return found.columns()


def _rows(
    boxes: Sequence[Mapping[str, Any]], frame: int, label: Mapping[str, int], attribute: Mapping[str, int]
) -> np.ndarray:
    """(N, 14) rows for BoxColumns.of."""
    if not boxes:
        return np.zeros((0, 14))
    rows = np.empty((len(boxes), 14))
    rows[:, 0] = frame
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


# Matches detections with annotations by the distance of their centres, as the nuScenes devkit does.
#
# Caesar et al., "nuScenes: A multimodal dataset for autonomous driving", 2020, section 3.1.

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
