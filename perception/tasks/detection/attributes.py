"""Attributes from an object's speed, for networks that predict none, as in mmdet3d for nuScenes."""

from __future__ import annotations

import torch
from torch import Tensor

from perception.frame import ATTRIBUTES, CLASSES

MOVING_SPEED = 0.2  # m/s; faster is moving
MOVING = {"pedestrian": "pedestrian.moving", "motorcycle": "cycle.with_rider", "bicycle": "cycle.with_rider"}
STILL = {
    "pedestrian": "pedestrian.standing",
    "motorcycle": "cycle.without_rider",
    "bicycle": "cycle.without_rider",
    "bus": "vehicle.stopped",
}
WITHOUT = ("barrier", "traffic_cone")


def by_speed(labels: Tensor, velocities: Tensor) -> Tensor:
    """(...) indices into ATTRIBUTES, -1 where the class has none, of labels (...) and velocities (..., 2) in m/s."""
    table = torch.tensor([_index(STILL, "vehicle.parked"), _index(MOVING, "vehicle.moving")], device=labels.device)
    still, moving = table[:, labels]
    return torch.where(velocities.square().sum(dim=-1) > MOVING_SPEED**2, moving, still)


def _index(of: dict[str, str], otherwise: str) -> list[int]:
    return [-1 if name in WITHOUT else ATTRIBUTES.index(of.get(name, otherwise)) for name in CLASSES]
