"""Decode ROS 2 messages in CDR without ROS; `rosbags` provides the types and the encoding."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_typestore

from deploy.replay.sources.encoded import compressed_picture, raw_picture
from deploy.replay.sources.messages import (
    Content,
    CorruptMessage,
    fix,
    intrinsics,
    keyframe,
    stamp_of,
    transform,
)
from deploy.replay.sources.points import cloud

# These types have been the same in every ROS 2 distribution so far.
TYPES = get_typestore(Stores.ROS2_HUMBLE)
# sensor_msgs/PointField's datatypes.
POINT_FIELDS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}


def decode(type_name: str, data: bytes) -> list[Content]:
    """Decode a message; one message may hold several transforms.

    Raises:
        CorruptMessage: the bytes are damaged, or the type is not in CONVERTERS.
    """
    if type_name not in CONVERTERS:
        raise CorruptMessage("an unsupported message type")
    try:
        message = TYPES.deserialize_cdr(data, type_name)
    except (SerdeError, MemoryError):
        raise CorruptMessage("bytes that cannot be parsed") from None
    return CONVERTERS[type_name](message)


def _cloud(message: Any) -> list[Content]:
    order = ">" if message.is_bigendian else "<"
    fields = {
        field.name: (field.offset, np.dtype(order + POINT_FIELDS[field.datatype]))
        for field in message.fields
        if field.datatype in POINT_FIELDS
    }
    data, step, rows = message.data, message.point_step, message.height
    if rows * message.row_step != data.size or message.row_step < message.width * step:
        raise CorruptMessage("data of another size than the cloud")
    if rows > 1:  # a row may end in padding
        data = data.reshape(rows, message.row_step)[:, : message.width * step].ravel()
    else:
        data = data[: message.width * step]
    return [cloud(_stamp(message), message.header.frame_id, fields, step, data, bool(message.is_dense))]


def _compressed(message: Any) -> list[Content]:
    return [compressed_picture(_stamp(message), message.header.frame_id, message.data.tobytes())]


def _image(message: Any) -> list[Content]:
    size = message.width, message.height
    frame = message.header.frame_id
    return [raw_picture(_stamp(message), frame, message.encoding, size, message.step, message.data)]


def _camera_info(message: Any) -> list[Content]:
    size = message.width, message.height
    frame, model = message.header.frame_id, message.distortion_model
    return [intrinsics(_stamp(message), frame, size, model, message.d, message.k, message.r, message.p)]


def _transforms(message: Any) -> list[Content]:
    return [_transform(each, each.transform.translation, each.transform.rotation) for each in message.transforms]


def _odometry(message: Any) -> list[Content]:
    pose = message.pose.pose
    return [_transform(message, pose.position, pose.orientation)]


def _transform(stamped: Any, t: Any, q: Any) -> Content:
    parent, child = stamped.header.frame_id, stamped.child_frame_id
    return transform(_stamp(stamped), parent, child, [t.x, t.y, t.z], [q.w, q.x, q.y, q.z])


def _fix(message: Any) -> list[Content]:
    if message.status.status < 0:  # the receiver has no fix
        return []
    return [fix(_stamp(message), message.latitude, message.longitude)]


def _keyframe(message: Any) -> list[Content]:
    try:
        return [keyframe(json.loads(message.data))]
    except (ValueError, RecursionError):  # also for a number of thousands of digits
        raise CorruptMessage("not a keyframe") from None


def _stamp(message: Any) -> int:
    return stamp_of(message.header.stamp.sec, message.header.stamp.nanosec)


CONVERTERS: dict[str, Callable[[Any], list[Content]]] = {
    "sensor_msgs/msg/PointCloud2": _cloud,
    "sensor_msgs/msg/CompressedImage": _compressed,
    "sensor_msgs/msg/Image": _image,
    "sensor_msgs/msg/CameraInfo": _camera_info,
    "tf2_msgs/msg/TFMessage": _transforms,
    "nav_msgs/msg/Odometry": _odometry,
    "sensor_msgs/msg/NavSatFix": _fix,
    "std_msgs/msg/String": _keyframe,
}
