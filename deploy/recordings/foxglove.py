"""Decode messages with Foxglove's schemas, in Protobuf and JSON, as foxglove/nuscenes2mcap writes nuScenes.

PointCloud, CompressedImage, RawImage, CameraCalibration, FrameTransform, FrameTransforms and LocationFix are supported;
see https://docs.foxglove.dev/docs/sdk/schemas.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from mcap.records import Schema
from mcap_protobuf.decoder import DecoderFactory

from deploy.recordings.messages import Cloud, Content, CorruptMessage, Picture, fix, intrinsics, stamp_of, transform
from deploy.recordings.payloads import cloud, compressed_picture, raw_picture

# Numeric types of foxglove.PackedElementField, which are little-endian.
_POINT_FIELDS = {1: "u1", 2: "i1", 3: "<u2", 4: "<i2", 5: "<u4", 6: "<i4", 7: "<f4", 8: "<f8"}
_NO_TRANSLATION = [0.0, 0.0, 0.0]
_NO_ROTATION = ([0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0])  # quaternion x y z w; zeros if the field is not set


def decoder(encoding: str, schema: Schema) -> Callable[[bytes], list[Content]]:
    """Return the decoder of a channel, for the encodings `protobuf` and `json`.

    It raises CorruptMessage if the bytes are damaged or the schema is unknown.
    """
    convert, parse = CONVERTERS.get(schema.name), parser(encoding, schema)

    def decode(data: bytes) -> list[Content]:
        if convert is None:
            raise CorruptMessage("an unsupported message type")
        message = parse(data)
        try:
            return convert(message)
        except CorruptMessage:
            raise
        except Exception:  # JSON may hold anything
            raise CorruptMessage("bytes that cannot be parsed") from None

    return decode


def parser(encoding: str, schema: Schema | None) -> Callable[[bytes], Any]:
    """Return the parser of a channel with any schema, which JSON does not need; it raises as `decoder`'s do."""
    parse = _json if encoding == "json" else None if schema is None else _protobuf(schema)

    def parsed(data: bytes) -> Any:
        if parse is None:
            raise CorruptMessage("an unsupported message type")
        try:
            return parse(data)
        except Exception:  # Protobuf's errors have no common base
            raise CorruptMessage("bytes that cannot be parsed") from None

    return parsed


def _protobuf(schema: Schema) -> Callable[[bytes], Any] | None:
    try:
        return DecoderFactory().decoder_for("protobuf", schema)
    except Exception:  # a damaged schema
        return None


def _json(data: bytes) -> Any:
    return json.loads(data, object_hook=lambda fields: SimpleNamespace(**fields))


def _bytes(data: bytes | str) -> bytes:
    return base64.b64decode(data, validate=True) if isinstance(data, str) else data


def _time(message: Any) -> tuple[int, int]:
    """Seconds and nanoseconds."""
    time = message.timestamp
    return (time.sec, time.nsec) if hasattr(time, "nsec") else (time.seconds, time.nanos)  # JSON, Protobuf


def _stamp(message: Any) -> int:
    return stamp_of(*_time(message))


def _stamped(message: Any, content: Cloud | Picture) -> list[Content]:
    return [replace(content, nanoseconds=int(_time(message)[1]) % 1000)]


def _xyz(vector: Any) -> list[float]:
    return [vector.x, vector.y, vector.z]


def _cloud(message: Any) -> list[Content]:
    pose = getattr(message, "pose", None)
    if pose is not None:
        rotation = [*_xyz(pose.orientation), pose.orientation.w]
        if _xyz(pose.position) != _NO_TRANSLATION or rotation not in _NO_ROTATION:
            raise CorruptMessage("a cloud with a pose of its own, which is not supported")
    fields = {
        each.name: (int(each.offset), np.dtype(_POINT_FIELDS[each.type]))
        for each in message.fields
        if each.type in _POINT_FIELDS
    }
    data = np.frombuffer(_bytes(message.data), np.uint8)
    return _stamped(message, cloud(_stamp(message), message.frame_id, fields, int(message.point_stride), data, False))


def _read_compressed(message: Any) -> list[Content]:
    return _stamped(message, compressed_picture(_stamp(message), message.frame_id, _bytes(message.data)))


def _raw(message: Any) -> list[Content]:
    data, size = np.frombuffer(_bytes(message.data), np.uint8), (int(message.width), int(message.height))
    return _stamped(
        message, raw_picture(_stamp(message), message.frame_id, message.encoding, size, int(message.step), data)
    )


def _calibration(message: Any) -> list[Content]:
    size = int(message.width), int(message.height)
    d, k, r, p = (np.array(getattr(message, name), np.float64) for name in "DKRP")
    return [intrinsics(_stamp(message), message.frame_id, size, message.distortion_model, d, k, r, p)]


def _transform(message: Any) -> list[Content]:
    rotation = [message.rotation.w, *_xyz(message.rotation)]
    parent, child = message.parent_frame_id, message.child_frame_id
    return [transform(_stamp(message), parent, child, _xyz(message.translation), rotation)]


def _transforms(message: Any) -> list[Content]:
    return [content for each in message.transforms for content in _transform(each)]


def _fix(message: Any) -> list[Content]:
    stamp = _stamp(message) if hasattr(message, "timestamp") else 0  # earlier versions of the schema have none
    return [fix(stamp, message.latitude, message.longitude)]


CONVERTERS: dict[str, Callable[[Any], list[Content]]] = {
    "foxglove.PointCloud": _cloud,
    "foxglove.CompressedImage": _read_compressed,
    "foxglove.RawImage": _raw,
    "foxglove.CameraCalibration": _calibration,
    "foxglove.FrameTransform": _transform,
    "foxglove.FrameTransforms": _transforms,
    "foxglove.LocationFix": _fix,
}
