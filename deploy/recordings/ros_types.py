"""The types of ROS 2 messages, and how messages and their bytes in CDR are made of numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

import numpy as np
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from perception.taxonomy import RosClass

LABELS = {name: label for label, name in enumerate(get_args(RosClass))}  # of Autoware's ObjectClassification
AVAILABILITY = {"none": 0, "half": 1, "full": 2}  # heading of a class -> orientation_availability
# What the store of `rosbags` lacks: autoware_msgs and autoware_internal_msgs of autowarefoundation, and version 4 of
# ros-perception/vision_msgs. Constants are left out, since they are no part of the bytes or of the hash.
DEFINITIONS = {
    "vision_msgs/msg/ObjectHypothesis": """
        string class_id
        float64 score
    """,
    "vision_msgs/msg/ObjectHypothesisWithPose": """
        ObjectHypothesis hypothesis
        geometry_msgs/PoseWithCovariance pose
    """,
    "vision_msgs/msg/BoundingBox3D": """
        geometry_msgs/Pose center
        geometry_msgs/Vector3 size
    """,
    "vision_msgs/msg/Detection3D": """
        std_msgs/Header header
        ObjectHypothesisWithPose[] results
        BoundingBox3D bbox
        string id
    """,
    "vision_msgs/msg/Detection3DArray": """
        std_msgs/Header header
        Detection3D[] detections
    """,
    "autoware_perception_msgs/msg/ObjectClassification": """
        uint8 label
        float32 probability
    """,
    "autoware_perception_msgs/msg/Shape": """
        uint8 type
        geometry_msgs/Polygon footprint
        geometry_msgs/Vector3 dimensions
    """,
    "autoware_perception_msgs/msg/DetectedObjectKinematics": """
        geometry_msgs/PoseWithCovariance pose_with_covariance
        bool has_position_covariance
        uint8 orientation_availability
        geometry_msgs/TwistWithCovariance twist_with_covariance
        bool has_twist
        bool has_twist_covariance
    """,
    "autoware_perception_msgs/msg/DetectedObject": """
        float32 existence_probability
        ObjectClassification[] classification
        DetectedObjectKinematics kinematics
        Shape shape
    """,
    "autoware_perception_msgs/msg/DetectedObjects": """
        std_msgs/Header header
        DetectedObject[] objects
    """,
    "autoware_perception_msgs/msg/TrackedObjectKinematics": """
        geometry_msgs/PoseWithCovariance pose_with_covariance
        geometry_msgs/TwistWithCovariance twist_with_covariance
        geometry_msgs/AccelWithCovariance acceleration_with_covariance
        uint8 orientation_availability
        bool is_stationary
    """,
    "autoware_perception_msgs/msg/TrackedObject": """
        unique_identifier_msgs/UUID object_id
        float32 existence_probability
        ObjectClassification[] classification
        TrackedObjectKinematics kinematics
        Shape shape
    """,
    "autoware_perception_msgs/msg/TrackedObjects": """
        std_msgs/Header header
        TrackedObject[] objects
    """,
    "autoware_internal_debug_msgs/msg/Float64Stamped": """
        builtin_interfaces/Time stamp
        float64 data
    """,
    "autoware_sensing_msgs/msg/SourcePointCloudInfo": """
        std_msgs/Header header
        string topic
        uint8 status
        uint32 idx_begin
        uint32 length
    """,
    "autoware_sensing_msgs/msg/ConcatenatedPointCloudInfo": """
        std_msgs/Header header
        bool concatenation_success
        uint8 matching_strategy
        uint8[] matching_strategy_config
        SourcePointCloudInfo[] source_info
    """,
}


def _make_types() -> Typestore:
    types = get_typestore(Stores.ROS2_HUMBLE)  # the same in every distribution so far
    for full_name, definition in DEFINITIONS.items():
        types.register(get_types_from_msg(definition, full_name))
    return types


TYPES = _make_types()
_DATATYPES = {"|u1": 2, "<f4": 7}  # of PointField


def make(type_name: str, /, **fields: Any) -> Any:
    """A message, such as of std_msgs/msg/Header."""
    return TYPES.types[type_name](**fields)


def encode(message: Any) -> bytes:
    """The message in little-endian CDR, after the four bytes that say so."""
    return bytes(TYPES.serialize_cdr(message, message.__msgtype__, little_endian=True))


def time_of(stamp: int, nanoseconds: int = 0) -> Any:
    """builtin_interfaces/Time of a stamp in us, and so many ns."""
    seconds, microseconds = divmod(stamp, 1_000_000)
    return make("builtin_interfaces/msg/Time", sec=seconds, nanosec=1000 * microseconds + nanoseconds)


def header(stamp: int, frame: str, nanoseconds: int = 0) -> Any:
    """std_msgs/Header of a stamp in us, and so many ns."""
    return make("std_msgs/msg/Header", stamp=time_of(stamp, nanoseconds), frame_id=frame)


def vector(xyz: Iterable[float], kind: str = "Vector3") -> Any:
    """geometry_msgs/Vector3, or another kind with these fields, such as Point."""
    x, y, z = map(float, xyz)
    return make(f"geometry_msgs/msg/{kind}", x=x, y=y, z=z)


def point_cloud(header: Any, rows: np.ndarray) -> Any:
    """sensor_msgs/PointCloud2 of a structured array (N,) of float32 and uint8."""
    fields = [
        make("sensor_msgs/msg/PointField", name=name, offset=offset, datatype=_DATATYPES[kind.str], count=1)
        for name, (kind, offset, *_) in (rows.dtype.fields or {}).items()
    ]
    size = rows.dtype.itemsize
    return make(
        "sensor_msgs/msg/PointCloud2", header=header, height=1, width=len(rows), fields=fields, is_bigendian=False,
        point_step=size, row_step=rows.nbytes, data=rows.view(np.uint8).reshape(-1), is_dense=True,
    )  # fmt: skip


def quaternion(w: float, x: float, y: float, z: float) -> Any:
    return make("geometry_msgs/msg/Quaternion", x=float(x), y=float(y), z=float(z), w=float(w))
