"""The task points on PandaSet: added to a trained base, beside classes by boxes and height without a network."""

from __future__ import annotations

import argparse
import fnmatch
import time
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from perception.datasets.keyframes import Reads
from perception.datasets.pandaset import PandaSet
from perception.frame import Frame
from perception.grid import BevGrid
from perception.predict import TorchPredictor
from perception.rig import load_rig
from perception.tasks.points.metric import PointsMetric
from perception.tasks.points.panoptic import PanopticCounts, objects_of_points, panoptic_counts
from perception.taxonomy import load_taxonomy
from perception.training.adapt import add_task
from perception.training.checkpoint import load_model, newest, save_model

TRAINED, HELD_BACK = "002:0-16", "002:24-32"
RIG = load_rig("pandaset_64")
PLACES = 110_000  # a sweep of the Pandar64 has 106,000 points
HEAD: dict[str, Any] = {"points": {"max_points": PLACES}}
SLOTS = ("lidar.*", "fuse*", "trunk.*")  # of the module; `fuse` is where there are cameras
NAMES = load_taxonomy("pandaset").point_names
BAND = 0.2  # m, of heights


class LidarAlone(PandaSet):
    """PandaSet's spinning LiDAR, one sweep a frame, without pictures."""

    def frame(self, sample: str, reads: Reads = Reads()) -> Frame:  # noqa: B008 - it is immutable
        return super().frame(sample, reads._replace(sweeps=0, cameras=False))


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", type=Path, default=Path("../shared/data/pandaset"))
    command.add_argument("--base", type=Path, default=Path("runs/demo/run"), help="a trained run")
    command.add_argument("--out", type=Path, default=Path("runs/points"), help="folder of the trained heads")
    command.add_argument("--steps", type=int, default=160)
    command.add_argument("--rate", type=float, default=1e-2, help="peak of the learning rate")
    command.add_argument("--trained", default=TRAINED, help="frames to train on")
    command.add_argument("--held-back", default=HELD_BACK, help="frames to score")
    command.set_defaults(run=points)


def points(arguments: argparse.Namespace) -> dict[str, Any]:
    """IoU by class on held-back frames: of the head alone, with a module of its own, and without a network.

    Trained parts that the folder has are not trained again.
    """
    base, own = arguments.out / "base", load_taxonomy("pandaset")
    model, config = load_model(arguments.base, RIG)
    names = config.taxonomy.model_copy(update={"point_classes": own.point_classes})
    drives, annotated = (LidarAlone(arguments.data, RIG, each) for each in (names, own))
    result = dict[str, Any]()
    if newest(base) is None:
        data = config.data.model_copy(update={"class_balanced": False})
        save_model(base, config.model_copy(update={"taxonomy": names, "data": data}), model)
    slots = [pattern for pattern in SLOTS if fnmatch.filter(model.bank.slots, pattern)]
    module = {"name": "sweeps", "kind": "low_rank", "slots": slots, "rank": 8}
    ways: dict[str, dict[str, Any]] = {"head": {"tasks": HEAD}, "module": {"tasks": HEAD, "modules": [module]}}
    for way, content in ways.items():
        start, run = time.process_time(), arguments.out / way
        if newest(run) is None:
            training = {"steps": arguments.steps, "learning_rate": arguments.rate}
            add_task(base, "points", content, drives, "all", [arguments.trained], run, **training)
            result[f"{way}_processor_seconds"] = time.process_time() - start
        predictor = TorchPredictor.load(run)
        result[way] = scored(annotated, arguments.held_back, lambda frame: predictor(frame).results["points"])  # noqa: B023
    result["boxes_and_height"] = scored(annotated, arguments.held_back, by_height(annotated, arguments.trained))
    return result


def scored(drives: PandaSet, frames: str, classes: Callable[[Frame], np.ndarray]) -> dict[str, Any]:
    """`iou.summary` of the classes of points over some frames, and `panoptic`: their mean panoptic quality.

    The objects of the panoptic quality are the annotated boxes, also for the classes that a network found.
    """
    metric, counts = PointsMetric(drives, BevGrid()), list[PanopticCounts]()
    for token in drives.samples(selectors=[frames]):
        frame = drives.frame(token)
        points, truth = frame.keyframe_points, frame.keyframe_classes
        assert frame.boxes is not None
        assert truth is not None
        found = classes(frame)[: len(points)]
        metric.add(frame, found)
        owners = objects_of_points(points, frame.boxes, np.array(True))
        counts.append(panoptic_counts(found, _objects(found, owners), truth, _objects(truth, owners), len(NAMES)))
    quality = reduce(PanopticCounts.plus, counts).qualities()[0]
    return {**metric.scores()["points"], "panoptic": float(np.nanmean(quality))}


def _objects(classes: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """(M,) index of the box around each point of a class that boxes have; -1 for others."""
    boxed = [i for i, name in enumerate(NAMES) if name in load_taxonomy("pandaset").class_names]
    return np.where(np.isin(classes, boxed), owners, -1)


def by_height(drives: PandaSet, frames: str) -> Callable[[Frame], np.ndarray]:
    """The commonest class of points of these frames in boxes of each class, and elsewhere at each height."""
    count = len(drives.taxonomy.point_classes)
    found = np.zeros((len(drives.taxonomy.classes) + 200, count), np.int64)
    for token in drives.samples(selectors=[frames]):
        frame = drives.frame(token)
        classes = frame.class_of_point
        assert classes is not None
        known = classes >= 0
        np.add.at(found, (_places(frame, len(drives.taxonomy.classes))[known], classes[known]), 1)
    likeliest = found.argmax(axis=1).astype(np.uint8)
    return lambda frame: likeliest[_places(frame, len(drives.taxonomy.classes))]


def _places(frame: Frame, classes: int) -> np.ndarray:
    """(N,) class of the annotated box around each point; elsewhere the band of its height, after the classes."""
    assert frame.points is not None
    assert frame.boxes is not None
    owner = objects_of_points(frame.points, frame.boxes, np.array(True))
    band = np.clip(frame.points[:, 2] / BAND + 50, 0, 199).astype(np.int64)
    return np.where(owner >= 0, frame.boxes.labels[owner], classes + band)
