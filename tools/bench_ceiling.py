"""Expected recall of a perfect network, which the cells of its heatmaps and its NMS limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmark import KEYFRAMES
from perfect import count_found

from perception.config import find_config, load_config
from perception.datasets.keyframes import Reads
from perception.datasets.sources import open_source
from perception.frame import Boxes
from perception.grid import BevGrid
from perception.tasks import tasks_of
from perception.tasks.detection.task import DetectionTask

# Without centerpoint, whose head is that of mmdet3d, and demo, which is for simulated streets without crowds.
CONFIGS = ("nuscenes/lidar", "nuscenes/camera", "nuscenes/fusion", "nuscenes/overfit_fusion", "tiny")


def ceiling(quick: bool) -> dict[str, Any]:
    """Recall of each class that occurs in the annotated keyframes, the lowest of all configurations, and each one's."""
    return recalls(KEYFRAMES, CONFIGS, 8 if quick else 1)


def recalls(data: Path, configs: Sequence[str], step: int = 1) -> dict[str, Any]:
    """Those of these configurations on every so many keyframes.

    The network says of every object what the labels say, with a random certainty; its outputs are decoded and
    suppressed as in the product. A detection finds one object of its class within 0.5 m.
    """
    by_config: dict[str, dict[str, float]] = {}
    for name in configs:
        config = load_config(find_config(name))
        task = tasks_of(config.tasks, config.head_grid, config.taxonomy)["detection"]
        assert isinstance(task, DetectionTask)
        source = open_source(data, None, config.rig, config.taxonomy)
        tokens = source.samples("all")[::step]
        rng, counts = np.random.default_rng(0), np.zeros((2, len(config.taxonomy.classes)))
        for token in tokens:
            boxes = source.frame(token, Reads(config.grid.reference, 0, lidar=False, cameras=False)).boxes
            if boxes is not None:
                counts += count_found(task, _on_grid(boxes.select(boxes.num_points != 0), task.grid), rng)
        by_config[name] = {
            each: found / objects
            for each, found, objects in zip(config.taxonomy.class_names, *counts.tolist(), strict=True)
            if objects
        }
    classes = dict.fromkeys(each for own in by_config.values() for each in own)
    worst = {each: min(own[each] for own in by_config.values() if each in own) for each in classes}
    return worst | {"keyframes": len(tokens), "configs": by_config}


def _on_grid(boxes: Boxes, grid: BevGrid) -> Boxes:
    place = grid.continuous(boxes.centers)
    return boxes.select(((place >= 0) & (place < grid.shape[::-1])).all(axis=1))
