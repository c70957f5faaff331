"""Expected recall of a perfect network, which the cells of its heatmaps and its NMS limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from benchmark import KEYFRAMES

from perception.config import find_config, load_config
from perception.datasets.keyframes import Reads
from perception.datasets.sources import open_source
from perception.frame import Boxes
from perception.grid import BevGrid
from perception.tasks import tasks_of
from perception.tasks.detection.config import heatmaps_of, map_name
from perception.tasks.detection.targets import REGRESSION, center_labels
from perception.tasks.detection.task import DetectionTask

# Without centerpoint, whose head is that of mmdet3d, and demo, which is for simulated streets without crowds.
CONFIGS = "nuscenes/lidar,nuscenes/camera,nuscenes/fusion,nuscenes/overfit_fusion,tiny"
DISTANCE = 0.5  # m, the smallest at which nuScenes counts a detection


def ceiling(
    data: Annotated[Path, typer.Option(help="Annotated keyframes.")] = KEYFRAMES,
    version: Annotated[str | None, typer.Option(help="Of the tables, if there are several.")] = None,
    configs: Annotated[str, typer.Option(help="Names, separated by commas.")] = CONFIGS,
) -> dict[str, Any]:
    """Recall of each class that occurs in the annotated keyframes, the lowest of all configurations, and each one's.

    The network says of every object what the labels say, with a random certainty; its outputs are decoded and
    suppressed as in the product. A detection finds one object of its class within 0.5 m.
    """
    by_config: dict[str, dict[str, float]] = {}
    for name in configs.split(","):
        config = load_config(find_config(name))
        task = tasks_of(config.tasks, config.head_grid, config.taxonomy)["detection"]
        assert isinstance(task, DetectionTask)
        source = open_source(data, version, config.rig, config.taxonomy)
        rng, counts = np.random.default_rng(0), np.zeros((2, len(config.taxonomy.classes)))
        for token in source.samples("all"):
            boxes = source.frame(token, Reads(config.grid.reference, 0, lidar=False, cameras=False)).boxes
            if boxes is not None:
                counts += count_found(task, on_grid(boxes.select(boxes.num_points != 0), task.grid), rng)
        by_config[name] = {
            each: found / objects
            for each, found, objects in zip(config.taxonomy.class_names, *counts.tolist(), strict=True)
            if objects
        }
    classes = dict.fromkeys(each for recalls in by_config.values() for each in recalls)
    worst = {each: min(recalls[each] for recalls in by_config.values() if each in recalls) for each in classes}
    return worst | {"keyframes": len(source.samples("all")), "configs": by_config}


def on_grid(boxes: Boxes, grid: BevGrid) -> Boxes:
    place = grid.continuous(boxes.centers)
    return boxes.select(((place >= 0) & (place < grid.shape[::-1])).all(axis=1))


def count_found(task: DetectionTask, boxes: Boxes, rng: np.random.Generator) -> np.ndarray:
    """(2, classes) number of objects that a perfect network finds in a frame, and of all."""
    certainties = rng.uniform(0.3, 0.95, len(boxes))
    dense = perfect_outputs(task, boxes, certainties)
    with torch.no_grad():
        outputs = task.network(1).decode({name: torch.from_numpy(values[None]) for name, values in dense.items()})
    result = task.result({name: values[0].numpy() for name, values in outputs.items()})
    classes = len(task.taxonomy.classes)
    found = [
        len(match_objects(boxes.select(boxes.labels == c), result.select(result.labels == c))) for c in range(classes)
    ]
    return np.stack([found, np.bincount(boxes.labels, minlength=classes)])


def match_objects(objects: Boxes, detections: Boxes) -> set[int]:
    """Indices of the objects that the detections, best first, find."""
    taken: set[int] = set()
    for center in detections.centers[:, :2]:
        distances = np.linalg.norm(objects.centers[:, :2] - center, axis=1)
        free = [int(i) for i in np.argsort(distances) if distances[i] < DISTANCE and int(i) not in taken]
        taken.update(free[:1])
    return taken


def perfect_outputs(
    task: DetectionTask, boxes: Boxes, certainties: Sequence[float] | np.ndarray
) -> dict[str, np.ndarray]:
    """What a network that knows the labels gives for a frame: dense outputs of CenterPoint's head, without batch.

    Args:
        boxes: on the grid.
        certainties: (N,) score of each object at its peak; of two in one cell the more certain one is regressed.
    """
    head, grid, (rows, columns) = task.config, task.grid, task.grid.shape
    layers, attributes = heatmaps_of(head), np.eye(len(task.taxonomy.attributes))
    dense = {
        each.name: np.zeros((len(each.labels), rows * each.subcells, columns * each.subcells), np.float32)
        for each in layers
    }
    for group in range(len(head.groups)):
        for name, n in {**REGRESSION, "attribute": len(attributes), "iou": 1}.items():
            dense[map_name(head, name, group)] = np.zeros((n, rows * columns), np.float32)
    for i in np.argsort(certainties, kind="stable"):
        labels = center_labels(boxes.select(np.array([i])), grid, head)
        for each in layers:
            dense[each.name] = np.maximum(dense[each.name], labels[each.name] * np.float32(certainties[i]))
        cell, group = labels["cells"][0], labels["groups"][0]
        dense[map_name(head, "iou", group)][:, cell] = 9  # logit
        for name in REGRESSION:
            dense[map_name(head, name, group)][:, cell] = np.nan_to_num(labels[name][0])
        if labels["attributes"][0] >= 0:
            dense[map_name(head, "attribute", group)][:, cell] = attributes[labels["attributes"][0]]
    for each in layers:
        p = dense[each.name].clip(1e-6, 1 - 1e-6)
        dense[each.name] = np.log(p / (1 - p))
    shaped = {name: values.reshape(len(values), rows, columns) for name, values in dense.items() if values.ndim == 2}
    return dense | shaped
