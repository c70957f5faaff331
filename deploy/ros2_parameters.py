"""ml_package.param.yaml: what a ROS 2 node must know of a bundle, as Autoware's nodes are told of theirs."""

from __future__ import annotations

import yaml

from deploy.live.messages.objects import AVAILABILITY, LABELS
from deploy.manifest import Manifest
from perception.tasks.drawing import LOWEST_SCORE

ROS2_PARAMETERS = "ml_package.param.yaml"


def parameters_content(manifest: Manifest) -> bytes:
    """The file of a bundle, whose `model_params` the node in deploy/ros2 reads; lists of classes are by label."""
    spec, classes = manifest.spec, manifest.taxonomy.classes
    grid = manifest.grid
    parameters = {
        "name": manifest.name,
        "reference": grid.reference,
        "point_cloud_range": [float(each[side]) for side in (0, 1) for each in (grid.x, grid.y, grid.z)],
        "cell": float(grid.cell),
        "sweeps": spec.sweeps,
        "camera_names": list(spec.named_sensors.cameras) or [""],  # ROS has no empty lists of parameters
        "class_names": list(manifest.taxonomy.class_names),
        "class_labels": [LABELS[each.ros_class or "unknown"] for each in classes],
        "class_orientations": [AVAILABILITY[each.heading] for each in classes],
        "score_threshold": LOWEST_SCORE,
    }
    content = {"/**": {"ros__parameters": {"model_params": parameters}}}
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=None).encode()
