"""Decode ROS 2 messages in CDR without ROS: those of sensors, and any other by the schema that a recording carries."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
from rosbags.interfaces import Nodetype
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore

from deploy.recordings.messages import (
    Cloud,
    Content,
    CorruptMessage,
    Picture,
    RawMessage,
    fix,
    intrinsics,
    keyframe,
    stamp_of,
    transform,
)
from deploy.recordings.payloads import cloud, compressed_picture, raw_picture
from deploy.recordings.ros_types import TYPES

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


def raw_message(topic: str, time: int, data: bytes, type_name: str, publisher: bytes | None = None) -> RawMessage:
    """A message that a middleware delivered at a time (us)."""
    parse = cdr_parser(type_name, "", "msg")
    return RawMessage(topic, time, data, partial(decode, type_name), parse, type_name, publisher)


def dds_type(type_name: str) -> str:
    """The name of a type on the wire, such as sensor_msgs::msg::dds_::PointCloud2_."""
    package, kind, name = type_name.split("/")
    return f"{package}::{kind}::dds_::{name}_"


def type_of_dds(dds_name: str) -> str:
    """The type of a name on the wire, such as sensor_msgs/msg/PointCloud2."""
    return dds_name.replace("::dds_::", "::").removesuffix("_").replace("::", "/")


def type_hash(type_name: str) -> str:
    """The hash of a type's definition by which ROS 2 tells its versions apart (REP 2016)."""
    return str(TYPES.hash_rihs01(type_name))


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
    return _stamped(
        message, cloud(_stamp(message), message.header.frame_id, fields, step, data, bool(message.is_dense))
    )


def _read_compressed(message: Any) -> list[Content]:
    return _stamped(message, compressed_picture(_stamp(message), message.header.frame_id, message.data.tobytes()))


def _image(message: Any) -> list[Content]:
    size = message.width, message.height
    frame = message.header.frame_id
    return _stamped(message, raw_picture(_stamp(message), frame, message.encoding, size, message.step, message.data))


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


def _stamped(message: Any, content: Cloud | Picture) -> list[Content]:
    return [replace(content, nanoseconds=int(message.header.stamp.nanosec) % 1000)]


CONVERTERS: dict[str, Callable[[Any], list[Content]]] = {
    "sensor_msgs/msg/PointCloud2": _cloud,
    "sensor_msgs/msg/CompressedImage": _read_compressed,
    "sensor_msgs/msg/Image": _image,
    "sensor_msgs/msg/CameraInfo": _camera_info,
    "tf2_msgs/msg/TFMessage": _transforms,
    "nav_msgs/msg/Odometry": _odometry,
    "sensor_msgs/msg/NavSatFix": _fix,
    "std_msgs/msg/String": _keyframe,
}


Parse = Callable[[bytes], Any]

_MAX_SCHEMA = 1 << 20  # characters
_MAX_ARRAY = 1 << 20
_MAX_UNROLLED = 256  # messages in an array, for each of which there is a line of code
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_/]{0,200}")
_NUMBERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_BASE = {"bool", "byte", "char", "octet", "float32", "float64", "string", "wstring", *_NUMBERS}
_SEPARATOR = "=" * 80 + "\n"


def cdr_parser(type_name: str, schema: str, language: str) -> Parse:
    """The parser of a ROS 2 type, made when it is used. It raises CorruptMessage for damaged bytes or an unknown type.

    `schema` has the types that it consists of, in the language `msg` or `idl`; without it ROS's own are used.
    """
    return partial(_parse, type_name, schema, language)


def _parse(type_name: str, schema: str, language: str, data: bytes) -> Any:
    return _parser(type_name, schema, language)(data)


@lru_cache(maxsize=64)  # whoever sends or records can invent any number of types
def _parser(type_name: str, schema: str, language: str) -> Parse:
    types, known = TYPES, type_name in TYPES.fielddefs
    if schema:
        try:
            types, known = get_typestore(Stores.EMPTY), True
            types.register(_definitions(type_name, schema, language))
        except Exception:  # a damaged schema can make the parser raise anything
            known = False

    def parse(data: bytes) -> Any:
        if not known:
            raise CorruptMessage("an unsupported message type")
        try:
            return types.deserialize_cdr(data, type_name)
        except Exception:  # its fields may be of types that the schema lacks
            raise CorruptMessage("bytes that cannot be parsed") from None

    return parse


def _definitions(type_name: str, schema: str, language: str) -> Any:
    """The types of a schema without its constants.

    `rosbags` makes code of them and runs it, so nothing but plain names and types is let through.
    """
    if len(schema) > _MAX_SCHEMA:
        raise ValueError("too long")
    if language == "msg":
        found = get_types_from_msg(schema, type_name)
    else:
        parts = [part.partition("\n")[2] for part in schema.split(_SEPARATOR)[1:]] or [schema]
        found = {name: each for part in parts for name, each in get_types_from_idl(part).items()}
    return {
        _name(name): ([], [(_name(each), _check_description(kind)) for each, kind in found[name][1]]) for name in found
    }


def _name(name: Any) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError("an invalid name")
    return name


def _check_description(description: Any) -> Any:
    kind, content = description
    if kind == Nodetype.NAME:
        return kind, _name(content)
    if kind == Nodetype.BASE:
        if content[0] not in _BASE or not isinstance(content[1], int):
            raise ValueError("an unknown type")
        return kind, content
    of, length = content
    if kind not in (Nodetype.ARRAY, Nodetype.SEQUENCE) or not isinstance(length, int):
        raise ValueError("an unknown type")
    if kind == Nodetype.ARRAY and not 0 < length <= (_MAX_ARRAY if of[0] == Nodetype.BASE else _MAX_UNROLLED):
        raise ValueError("an array of that length")
    return kind, (_check_description(of), length)
