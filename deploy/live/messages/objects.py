"""Detections and tracks as messages of vision_msgs and autoware_perception_msgs."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np

from deploy.recordings.ros_types import AVAILABILITY, LABELS, make, quaternion, vector
from perception.frame import Boxes
from perception.geometry import quaternions
from perception.tasks.detection.submission import MOVING_SPEED
from perception.tasks.published import Tracks
from perception.taxonomy import Taxonomy

_AUTOWARE = "autoware_perception_msgs/msg"
_BOX = 0  # Shape.BOUNDING_BOX
_NOTHING = np.zeros(36)  # a covariance that is unknown, as in sensor_msgs/Imu
_UNKNOWN = 1e6  # variance of what is not estimated, beside estimated values; the messages name none


def detections_3d(header: Any, boxes: Boxes, taxonomy: Taxonomy) -> Any:
    """vision_msgs/Detection3DArray of N boxes in the header's frame; `class_id` is the name of the class."""
    labels, scores, detections = boxes.labels.tolist(), boxes.scores.tolist(), []
    for label, score, pose, size in zip(labels, scores, _poses(boxes), _dimensions(boxes), strict=True):
        hypothesis = make("vision_msgs/msg/ObjectHypothesis", class_id=taxonomy.class_names[label], score=score)
        results = [make("vision_msgs/msg/ObjectHypothesisWithPose", hypothesis=hypothesis, pose=_with_covariance(pose))]
        outline = make("vision_msgs/msg/BoundingBox3D", center=pose, size=size)
        detections.append(make("vision_msgs/msg/Detection3D", header=header, results=results, bbox=outline, id=""))
    return make("vision_msgs/msg/Detection3DArray", header=header, detections=detections)


def detected_objects(header: Any, boxes: Boxes, taxonomy: Taxonomy) -> Any:
    """DetectedObjects of N boxes in the header's frame."""
    moves, twists = _twists(boxes)
    objects = []
    for i, (pose, size) in enumerate(zip(_poses(boxes), _dimensions(boxes), strict=True)):
        kinematics = make(
            f"{_AUTOWARE}/DetectedObjectKinematics",
            pose_with_covariance=_with_covariance(pose),
            has_position_covariance=False,
            orientation_availability=AVAILABILITY[taxonomy.classes[boxes.labels[i]].heading],
            twist_with_covariance=_twist(twists[i]),
            has_twist=bool(moves[i]),
            has_twist_covariance=False,
        )
        objects.append(make(f"{_AUTOWARE}/DetectedObject", kinematics=kinematics, **_facts(boxes, i, size, taxonomy)))
    return make(f"{_AUTOWARE}/DetectedObjects", header=header, objects=objects)


def tracked_objects(header: Any, tracks: Tracks, drive: str, taxonomy: Taxonomy) -> Any:
    """TrackedObjects of N tracks, whose boxes are in the header's frame, and whose ids are unique in the drive."""
    boxes = tracks.boxes
    moves, twists = _twists(boxes)
    rests = np.linalg.norm(twists, axis=1) <= MOVING_SPEED
    none = make("geometry_msgs/msg/Accel", linear=vector([0, 0, 0]), angular=vector([0, 0, 0]))
    acceleration = make("geometry_msgs/msg/AccelWithCovariance", accel=none, covariance=_covariance())
    objects = []
    for i, (pose, size) in enumerate(zip(_poses(boxes), _dimensions(boxes), strict=True)):
        kind, (place, height, velocity) = taxonomy.classes[boxes.labels[i]], tracks.variances[i].tolist()
        kinematics = make(
            f"{_AUTOWARE}/TrackedObjectKinematics",
            pose_with_covariance=_with_covariance(pose, _covariance(place, place, height)),
            twist_with_covariance=_twist(twists[i], _covariance(velocity, velocity)),
            acceleration_with_covariance=acceleration,
            orientation_availability=AVAILABILITY[kind.heading],
            is_stationary=bool(kind.static or (moves[i] and rests[i])),
        )
        facts = _facts(boxes, i, size, taxonomy)
        objects.append(
            make(f"{_AUTOWARE}/TrackedObject", object_id=_uuid(drive, tracks.ids[i]), kinematics=kinematics, **facts)
        )
    return make(f"{_AUTOWARE}/TrackedObjects", header=header, objects=objects)


def _uuid(drive: str, track: int) -> Any:
    """The same for a track in all frames of a drive, and in every replay of it."""
    value = uuid.uuid5(uuid.NAMESPACE_OID, f"{drive}/{track}")
    return make("unique_identifier_msgs/msg/UUID", uuid=np.frombuffer(value.bytes, np.uint8))


def _facts(boxes: Boxes, i: int, size: Any, taxonomy: Taxonomy) -> dict[str, Any]:
    """The fields that a detected and a tracked object have in common: existence, class and shape."""
    label = LABELS[taxonomy.classes[boxes.labels[i]].ros_class or "unknown"]
    outline = make("geometry_msgs/msg/Polygon", points=[])
    return {
        "existence_probability": float(boxes.scores[i]),
        "classification": [make(f"{_AUTOWARE}/ObjectClassification", label=label, probability=1.0)],
        "shape": make(f"{_AUTOWARE}/Shape", type=_BOX, footprint=outline, dimensions=size),
    }


def _poses(boxes: Boxes) -> Sequence[Any]:
    turns = quaternions(boxes.rotations).tolist()
    return [
        make("geometry_msgs/msg/Pose", position=vector(center, "Point"), orientation=quaternion(*turn))
        for center, turn in zip(boxes.centers.tolist(), turns, strict=True)
    ]


def _dimensions(boxes: Boxes) -> Sequence[Any]:
    """Length, width and height along the axes x, y and z of each box."""
    return [vector(size) for size in boxes.sizes[:, [1, 0, 2]].tolist()]


def _covariance(*variances: float) -> np.ndarray:
    """Row-major (6, 6) covariance with the variances of the first coordinates."""
    return np.diag([*variances, *[_UNKNOWN] * (6 - len(variances))]).ravel()


def _with_covariance(pose: Any, covariance: np.ndarray = _NOTHING) -> Any:
    return make("geometry_msgs/msg/PoseWithCovariance", pose=pose, covariance=covariance)


def _twists(boxes: Boxes) -> tuple[np.ndarray, np.ndarray]:
    """(N,) bool: the velocity is known, and (N, 3) m/s over ground along the axes of each box; 0 where unknown."""
    known = np.isfinite(boxes.velocities).all(axis=1)
    along = np.einsum("nij,ni->nj", boxes.rotations, np.where(known[:, None], boxes.velocities, 0.0))
    return known, along


def _twist(velocity: np.ndarray, covariance: np.ndarray = _NOTHING) -> Any:
    """The twist of a velocity (3,)."""
    twist = make("geometry_msgs/msg/Twist", linear=vector(velocity.tolist()), angular=vector([0, 0, 0]))
    return make("geometry_msgs/msg/TwistWithCovariance", twist=twist, covariance=covariance)
