"""Dense outputs that decode to given objects, and how many of those a perfect network finds."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from vocabulary import ATTRIBUTES

from perception.frame import Boxes
from perception.tasks.detection.config import heatmaps_of, map_name
from perception.tasks.detection.targets import REGRESSION, center_labels
from perception.tasks.detection.task import DetectionTask

SURE = 30.0  # logit
DISTANCE = 0.5  # m, the smallest at which nuScenes counts a detection


Dense = dict[str, Tensor]


def perfect_detection(labels: Dense) -> Dense:
    peaks = labels["heatmap"] == 1
    shape = peaks.shape[-2:]
    dense = {"heatmap": torch.where(peaks, SURE, -SURE)}
    attributes = SURE * torch.nn.functional.one_hot(labels["attributes"].clamp(min=0), len(ATTRIBUTES)).float()
    regressed = {name: labels[name] for name in REGRESSION} | {"attribute": attributes}
    for name, values in regressed.items():
        plane = torch.zeros(len(values), shape.numel(), values.shape[-1])
        for frame in range(len(values)):
            real = labels["real"][frame]
            plane[frame, labels["cells"][frame, real]] = values[frame, real].nan_to_num()
        dense[name] = plane.transpose(1, 2).reshape(len(values), -1, *shape)
    return dense


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
