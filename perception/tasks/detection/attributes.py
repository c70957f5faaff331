"""The nuScenes attributes of each class, and the default one by speed. No torch is imported here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perception.frame import ATTRIBUTES, CLASSES

if TYPE_CHECKING:
    from torch import Tensor

MOVING_SPEED = 0.2  # m/s; faster objects are moving

_VEHICLE = ("vehicle.parked", "vehicle.moving")
_CYCLE = ("cycle.without_rider", "cycle.with_rider")
# Class -> attribute at rest and in motion, as in mmdet3d's NuScenesMetric; barriers and traffic cones have none.
_BY_SPEED = {
    "car": _VEHICLE,
    "truck": _VEHICLE,
    "construction_vehicle": _VEHICLE,
    "bus": ("vehicle.stopped", "vehicle.moving"),
    "trailer": _VEHICLE,
    "motorcycle": _CYCLE,
    "bicycle": _CYCLE,
    "pedestrian": ("pedestrian.standing", "pedestrian.moving"),
}


def possible_attributes(class_name: str) -> list[bool]:
    """For each of ATTRIBUTES whether objects of this class can have it."""
    family = _BY_SPEED[class_name][0].partition(".")[0] if class_name in _BY_SPEED else "-"
    return [name.startswith(family) for name in ATTRIBUTES]


def attribute_name(class_name: str, attribute: int, speed: float) -> str:
    """The attribute to submit for a box: the predicted one where its class can have it, else the default by speed.

    Args:
        class_name: one of CLASSES.
        attribute: index into ATTRIBUTES, or -1 where none was predicted.
        speed: m/s in the ground plane; NaN counts as at rest.

    Returns:
        One of ATTRIBUTES; '' for barriers and traffic cones.
    """
    if class_name not in _BY_SPEED:
        return ""
    if attribute >= 0 and possible_attributes(class_name)[attribute]:
        return ATTRIBUTES[attribute]
    return _BY_SPEED[class_name][speed > MOVING_SPEED]


def by_speed(labels: Tensor, velocities: Tensor) -> Tensor:
    """(...) default attributes, indices into ATTRIBUTES, -1 where the class has none; for networks that predict none.

    Args:
        labels: (...) index into CLASSES.
        velocities: (..., 2) m/s.
    """
    rows = [
        [ATTRIBUTES.index(_BY_SPEED[name][moving]) if name in _BY_SPEED else -1 for name in CLASSES]
        for moving in (False, True)
    ]
    at_rest, in_motion = labels.new_tensor(rows)[:, labels]
    return in_motion.where(velocities.square().sum(dim=-1) > MOVING_SPEED**2, at_rest)
