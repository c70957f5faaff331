"""mmdet3d's NuScenesMetric with predicted attributes.

For LiDAR boxes mmdet3d derives attributes from the speed and ignores predicted ones, which changes NDS but not mAP.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perception.mmdet3d.install import NUSCENES, import_mmdet3d
from perception.tasks.detection.submission import ResultsWriter, fitting_attributes

import_mmdet3d()

from mmdet3d.evaluation.metrics.nuscenes_metric import (  # noqa: E402
    NuScenesMetric,
    lidar_nusc_box_to_global,
    output_to_nusc_box,
)
from mmdet3d.registry import METRICS  # noqa: E402


@METRICS.register_module()
class AttributeNuScenesMetric(NuScenesMetric):
    """Submits the predicted `attr_labels`, or mmdet3d's attribute by speed where they do not fit the class."""

    def _format_lidar_bbox(
        self, results: Sequence[Any], sample_idx_list: Sequence[int], classes: Sequence[str], jsonfile_prefix: str
    ) -> str:
        """Write boxes within the evaluated range, in the global frame, as a submission; returns its path."""
        path = Path(jsonfile_prefix) / "results_nusc.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with ResultsWriter.open(
            path, [name for name in ("lidar", "camera") if self.modality.get(f"use_{name}")], NUSCENES
        ) as submission:
            for detections, index in zip(results, sample_idx_list, strict=True):
                info = self.data_infos[index]
                boxes, attributes = output_to_nusc_box(detections)
                for box, attribute in zip(boxes, attributes, strict=True):
                    box.name = str(attribute)  # keeps the attribute with its box through the range filter
                boxes = lidar_nusc_box_to_global(info, boxes, classes, self.eval_detection_configs)
                submission.add_entries(info["token"], [_entry(box, info["token"], classes[box.label]) for box in boxes])
        return str(path)


def _entry(box: Any, sample: str, name: str) -> dict[str, object]:
    label, speed = np.array([NUSCENES.label(name)]), np.linalg.norm(box.velocity[None, :2], axis=1)
    attribute = int(fitting_attributes(label, np.array([int(box.name)]), speed, NUSCENES)[0])
    return {
        "sample_token": sample,
        "translation": box.center.tolist(),
        "size": box.wlh.tolist(),
        "rotation": box.orientation.elements.tolist(),
        "velocity": box.velocity[:2].tolist(),
        "detection_name": name,
        "detection_score": float(box.score),
        "attribute_name": (*NUSCENES.attributes, "")[attribute],
    }
