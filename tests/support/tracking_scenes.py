"""A scene whose detections are the annotations, for trackers; and a simpler tracker."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from bench_tracking import CLASSES, NUSCENES, Moment, Scene

from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Boxes
from perception.tasks.association import associate
from perception.tasks.detection.tracker import LIFETIME, Tracker, Tracks

GATE = 4.0  # m, of the naive tracker, for all classes


def nuscenes_tracker() -> Tracker:
    return Tracker(NUSCENES)


class NaiveTracker:
    """Assigns a detection to the nearest track of its class, within GATE and LIFETIME, without a motion model."""

    def __init__(self) -> None:
        self.boxes, self.ids, self.seen, self.next = Boxes.none(), np.zeros(0, int), np.zeros(0, int), 1

    def update(self, boxes_global: Boxes, timestamp: int) -> Tracks:
        boxes = replace(boxes_global, velocities=np.zeros((len(boxes_global), 3)))
        ids = np.zeros(len(boxes), int)
        recent = self.seen >= timestamp - 1e6 * LIFETIME
        for label in range(len(CLASSES)):
            old, new = np.flatnonzero(recent & (self.boxes.labels == label)), np.flatnonzero(boxes.labels == label)
            rows, columns = associate(self.boxes.centers[old, :2], boxes.centers[new, :2], GATE)
            ids[new[columns]] = self.ids[old[rows]]
        born = ids == 0
        ids[born] = self.next + np.arange(born.sum())
        self.next += born.sum()
        gone = recent & ~np.isin(self.ids, ids)
        self.boxes = Boxes.joined(boxes, self.boxes.select(gone))
        self.ids = np.concatenate([ids, self.ids[gone]])
        self.seen = np.concatenate([np.full(len(ids), timestamp), self.seen[gone]])
        unseen = 1e-6 * (timestamp - self.seen)
        return Tracks(self.ids, self.boxes, np.zeros(len(self.ids)), unseen, np.ones(len(self.ids), bool))


def scene_of_annotations(tables: NuScenesTables, scene: str) -> Scene:
    """A scene whose detections are the annotations themselves."""
    moments = []
    for sample in tables.samples(selectors=[scene]):
        frame = tables.frame(sample, Reads(annotations=False, lidar=False, cameras=False))
        boxes = tables.recording(sample).annotated("boxes")
        assert boxes is not None, f"{scene} has no annotations"
        boxes = boxes.select(boxes.num_points > 0)
        moments.append(Moment(sample, frame.timestamp, boxes, boxes))
    return moments
