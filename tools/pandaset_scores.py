"""Scores on PandaSet's held-back frames, and what a network has forgotten of simulated sweeps of KITTI's LiDAR."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from perception.datasets.keyframes import Keyframes, Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Boxes, Frame, Prediction
from perception.rig import Rig
from perception.simulate.simulate import simulate
from perception.tasks.detection.columns import BoxColumns, match
from perception.taxonomy import Taxonomy

AHEAD, ASIDE = (2.0, 60.0), 35.0  # m
POINTS, NEAR, OTHER = 5, 1.0, 2.0  # fewest points of an object; m to a match; m to something else, where nothing counts
SCORE = 0.4
HDL_64 = {
    "name": "kitti",
    "lidars": [
        {
            "name": "velodyne",
            "mount": {"position": [0.0, 0.0, 1.73]},
            "beams": {"elevation": [-24.8, 2.0], "rings": 64, "columns": 1024},
        }
    ],
}
Predict = Callable[[Frame], Prediction]


def score(
    predict: Predict, drives: Keyframes, everything: Keyframes, tokens: Sequence[str], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """`ap`, `recall`, `precision` at SCORE and `objects` of each class of these names.

    AP is the mean precision at 100 recalls, with matches at NEAR. Objects with at least POINTS count, within AHEAD and
    ASIDE; detections within OTHER of anything else that is annotated are left out.

    Args:
        everything: the same drives with all that is annotated, under the same names.
    """
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    objects = dict.fromkeys(names, 0)
    for i, token in enumerate(tokens):
        frame = drives.frame(token, Reads("ego", cameras=False))
        others = everything.frame(token, Reads("ego", lidar=False, cameras=False)).boxes
        assert frame.boxes is not None
        assert others is not None
        predicted = predict(replace(frame, boxes=None)).results["detection"]
        for name in names:
            own = frame.boxes.select(frame.boxes.labels == drives.taxonomy.label(name))
            counted = _seen(own) & (own.num_points >= POINTS)
            rest = others.centers[others.labels != everything.taxonomy.label(name)]
            label = drives.taxonomy.label(name)
            mine = predicted.select(_seen(predicted) & (predicted.labels == label))
            right = _right(own.select(counted), mine, i)
            elsewhere = np.concatenate([rest, own.centers[~counted]])
            kept = right | (_distances(mine.centers, elsewhere) > OTHER)
            found[name].append(np.column_stack([mine.scores, right])[kept])
            objects[name] += int(counted.sum())
    return {name: average_precision(np.concatenate(found[name]), objects[name]) for name in names}


def _right(truth: Boxes, found: Boxes, frame: int) -> np.ndarray:
    """(N,) bool: detections of a frame that match an object, each of which has one."""
    return match(BoxColumns.of_frame(truth, frame), BoxColumns.of_frame(found, frame), (NEAR,))[0] >= 0


def _distances(places: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) m on the ground from each place to the nearest other one."""
    away = np.linalg.norm(places[:, None, :2] - others[None, :, :2], axis=2)
    return np.asarray(away.min(axis=1, initial=np.inf))


def _seen(boxes: Boxes) -> np.ndarray:
    ahead, aside = boxes.centers[:, 0], np.abs(boxes.centers[:, 1])
    return np.asarray((ahead >= AHEAD[0]) & (ahead <= AHEAD[1]) & (aside <= ASIDE))


def average_precision(found: np.ndarray, objects: int) -> dict[str, float]:
    """AP over 100 recalls, and recall and precision at SCORE; found (N, 2) scores, and whether they are right."""
    found = found[np.argsort(-found[:, 0], kind="stable")]
    right = np.cumsum(found[:, 1])
    precision, recall = right / np.arange(1, len(found) + 1), right / max(1, objects)
    best = [precision[recall >= level].max(initial=0.0) for level in np.linspace(0.01, 1, 100)]
    sure = found[found[:, 0] >= SCORE]
    hits = float(sure[:, 1].sum())
    scores = {"ap": float(np.mean(best)), "recall": hits / max(1, objects), "precision": hits / max(1, len(sure))}
    return {**scores, "objects": objects}


class Memory:
    """What a network still knows of simulated sweeps of a LiDAR such as KITTI's.

    Args:
        base: the network before it was adapted.
        folder: to write the drives to.
        car: index of the class of cars.
    """

    def __init__(self, base: Predict, folder: Path, car: int) -> None:
        rig = Rig.model_validate(HDL_64)
        if not folder.exists():
            simulate(folder, 2, 6, seed=0, condition_names=["clear-day-boston"], rig=rig)
        names = Taxonomy.model_validate({"name": "cars", "classes": [{"name": "car", "categories": ["vehicle.car"]}]})
        self._tables: Keyframes = NuScenesTables(folder, "v1.0-sim", rig, names)
        self._base, self._car = base, car

    @cached_property
    def _frames(self) -> list[Frame]:
        return [self._tables.frame(token, Reads("ego", cameras=False)) for token in self._tables.samples()]

    @cached_property
    def _before(self) -> list[Boxes]:
        return self._cars(self._base)

    def _cars(self, predict: Predict) -> list[Boxes]:
        found = [predict(replace(frame, boxes=None)).results["detection"] for frame in self._frames]
        return [boxes.select(_seen(boxes) & (boxes.labels == self._car)) for boxes in found]

    def of(self, predict: Predict) -> dict[str, float]:
        """`ap` of simulated cars, and of the base's sure detections the share that is `kept`, within NEAR; of the
        network's own those that are `new`."""
        after, found, objects = self._cars(predict), [], 0
        kept, new = [], []
        for i, (frame, mine, before) in enumerate(zip(self._frames, after, self._before, strict=True)):
            assert frame.boxes is not None
            counted = frame.boxes.select(_seen(frame.boxes) & (frame.boxes.num_points >= POINTS))
            found.append(np.column_stack([mine.scores, _right(counted, mine, i)]))
            objects += len(counted)
            sure, known = (boxes.select(boxes.scores >= SCORE) for boxes in (mine, before))
            kept.append(_distances(known.centers, sure.centers) <= NEAR)
            new.append(_distances(sure.centers, known.centers) > NEAR)
        return {
            "ap": average_precision(np.concatenate(found), objects)["ap"],
            "kept": float(np.concatenate(kept).mean()),
            "new": float(np.concatenate(new).mean()),
        }
