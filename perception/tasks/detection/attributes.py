"""The nuScenes attributes of each class, and the default one by speed."""

from __future__ import annotations

from perception.frame import ATTRIBUTES

MOVING_SPEED = 0.2  # m/s; faster objects are moving

_VEHICLE = ("vehicle.parked", "vehicle.moving")
_CYCLE = ("cycle.without_rider", "cycle.with_rider")
# Class -> attribute at rest and in motion, as in mmdet3d's NuScenesMetric; barriers and traffic cones have none.
BY_SPEED = {
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
    family = BY_SPEED[class_name][0].partition(".")[0] if class_name in BY_SPEED else "-"
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
    if class_name not in BY_SPEED:
        return ""
    if attribute >= 0 and possible_attributes(class_name)[attribute]:
        return ATTRIBUTES[attribute]
    return BY_SPEED[class_name][speed > MOVING_SPEED]
