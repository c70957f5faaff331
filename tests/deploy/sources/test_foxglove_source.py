"""Recordings with Foxglove's schemas, as foxglove/nuscenes2mcap lays out nuScenes: in Protobuf and in JSON.

The messages are written with Foxglove's own generated classes and with `mcap-protobuf-support`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foxglove_schemas_protobuf.CameraCalibration_pb2 import CameraCalibration
from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage
from foxglove_schemas_protobuf.FrameTransform_pb2 import FrameTransform
from foxglove_schemas_protobuf.FrameTransforms_pb2 import FrameTransforms
from foxglove_schemas_protobuf.LocationFix_pb2 import LocationFix
from foxglove_schemas_protobuf.PackedElementField_pb2 import PackedElementField
from foxglove_schemas_protobuf.PointCloud_pb2 import PointCloud
from foxglove_schemas_protobuf.RawImage_pb2 import RawImage
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from mcap.records import Schema
from mcap.writer import Writer
from mcap_protobuf.schema import build_file_descriptor_set
from recordings import SPEC
from vocabulary import LIDAR

from deploy.replay.sources import foxglove, open_drives
from deploy.replay.sources.messages import CorruptMessage, Transform
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.recordings import Recording


def stamped(recording: Recording) -> dict[str, Any]:
    seconds, microseconds = divmod(recording.timestamp, 1_000_000)
    return {"timestamp": Timestamp(seconds=seconds, nanos=1000 * microseconds), "frame_id": recording.channel.lower()}


def placed(recording: Recording, parent: str, child: str, pose: np.ndarray) -> FrameTransform:
    message = FrameTransform(timestamp=stamped(recording)["timestamp"], parent_frame_id=parent, child_frame_id=child)
    for field, value in zip("xyz", pose[:3], strict=True):
        setattr(message.translation, field, value)
    for field, value in zip("wxyz", pose[3:], strict=True):
        setattr(message.rotation, field, value)
    return message


def layout(tables: NuScenesTables) -> list[tuple[str, int, Any]]:
    """Topic, time and message. All of a keyframe is at its time: the pose, and every sensor's mounting and data."""
    recordings, log = tables.recordings, []
    chains = [recordings.chain(recordings[sample][LIDAR], 99) for sample in tables.samples()]
    sweeps = {each.file: each for chain in chains for each in chain}
    for sample in tables.samples():
        keyframe = recordings[sample]
        top = keyframe[LIDAR]
        sweeps.pop(top.file)
        log.append(("/tf", top.timestamp, placed(top, "map", "base_link", recordings.pose(top))))
        log.append(("/gps", top.timestamp, LocationFix(latitude=1.5, longitude=1e-6 * (top.timestamp % 1_000_000))))
        for channel, each in keyframe.items():
            mounting = placed(each, "base_link", channel.lower(), recordings.mountings[each.calibration])
            log.append(("/tf", top.timestamp, mounting))
            log += [(topic, top.timestamp, message) for topic, message in sensor(tables, each)]
    for each in sweeps.values():
        log.append(("/tf", each.timestamp, placed(each, "map", "base_link", recordings.pose(each))))
        log += [(topic, each.timestamp, message) for topic, message in sensor(tables, each)]
    return sorted(log, key=lambda message: message[1])


def sensor(tables: NuScenesTables, each: Recording) -> list[tuple[str, Any]]:
    content, topic = (tables.dataroot / each.file).read_bytes(), f"/{each.channel.lower()}"
    if each.channel == LIDAR:
        names = ("x", "y", "z", "intensity", "ring")
        fields = [
            PackedElementField(name=n, offset=4 * i, type=PackedElementField.FLOAT32) for i, n in enumerate(names)
        ]
        return [(topic, PointCloud(**stamped(each), point_stride=20, fields=fields, data=content))]
    k = tables.recordings.intrinsics[each.calibration]
    info = CameraCalibration(
        **stamped(each), width=each.width, height=each.height, K=k.ravel(), R=np.eye(3).ravel(),
        P=np.concatenate([k, np.zeros((3, 1))], axis=1).ravel(),
    )  # fmt: skip
    picture = CompressedImage(**stamped(each), format="jpeg", data=content)
    return [(f"{topic}/image_rect_compressed", picture), (f"{topic}/camera_info", info)]


def as_json(message: Any) -> bytes:
    """Foxglove's JSON: base64, snake case, and stamps of sec and nsec."""
    fields = MessageToDict(
        message,
        preserving_proto_field_name=True,
        use_integers_for_enums=True,
        always_print_fields_with_no_presence=True,
    )
    stamp = message.timestamp
    return json.dumps(fields | {"timestamp": {"sec": stamp.seconds, "nsec": stamp.nanos}}).encode()


def write(path: Path, log: list[tuple[str, int, Any]], encoding: str) -> None:
    with path.open("wb") as file:
        writer = Writer(file)
        writer.start()
        info = {"name": "scene-0001", "description": "Night, rain", "location": "boston-seaport", "vehicle": "n015"}
        writer.add_metadata("scene-info", info)
        channels: dict[str, int] = {}
        for topic, time, message in log:
            if topic not in channels:
                name = message.DESCRIPTOR.full_name
                schema = (
                    writer.register_schema(name, "jsonschema", b"{}")
                    if encoding == "json"
                    else writer.register_schema(
                        name, "protobuf", build_file_descriptor_set(type(message)).SerializeToString()
                    )
                )
                channels[topic] = writer.register_channel(topic, encoding, schema)
            data = as_json(message) if encoding == "json" else message.SerializeToString()
            writer.add_message(channels[topic], 1000 * time, data, 1000 * time)
        writer.finish()


@pytest.mark.parametrize("encoding", ["protobuf", "json"])
def test_the_layout_of_nuscenes2mcap(tiny_root: Path, tmp_path: Path, encoding: str) -> None:
    """Points and pictures are the tables'. Cameras have no poses of their own there: theirs are interpolated."""
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    write(tmp_path / "drive.mcap", layout(tables), encoding)
    (tmp_path / "topics.yaml").write_text("period: 0.25\nwait: 0.4\n")
    [drive] = open_drives(tmp_path / "drive.mcap", None, (), SPEC, tmp_path / "topics.yaml")
    frames = {frame.timestamp: frame for frame in drive.frames()}
    assert len(frames) == 6
    for sample in tables.samples():
        expected = tables.frame(sample, "ego", SPEC.sweeps)
        frame = frames[expected.timestamp]
        np.testing.assert_array_equal(frame.global_from_ego, expected.global_from_ego)
        now, then = (each.points[each.points[:, 4] <= 1.0] for each in (frame, expected))  # type: ignore[index]
        np.testing.assert_array_equal(now, then)
        assert frame.cameras.keys() == expected.cameras.keys()
        for name, camera in frame.cameras.items():
            np.testing.assert_array_equal(camera.image, expected.cameras[name].image)
            np.testing.assert_array_equal(camera.intrinsics, expected.cameras[name].intrinsics)
            np.testing.assert_array_equal(camera.ego_from_camera, expected.cameras[name].ego_from_camera)
            assert camera.timestamp == expected.cameras[name].timestamp
            # 5 m/s; after the last pose of the drive the vehicle is taken to stand still, for 6 ms at most.
            np.testing.assert_allclose(camera.global_from_ego, expected.cameras[name].global_from_ego, atol=0.031)
        assert frame.scene == "scene-0001"
        assert frame.conditions == expected.conditions
        assert frame.location == "boston-seaport"
        assert frame.position == (1.5, 1e-6 * (frame.timestamp % 1_000_000))  # of a fix without a stamp
    assert not {"corrupt", "late", "unposed"} & drive.counts.summary().keys()


def decoder(kind: Any) -> Any:
    return foxglove.decoder("protobuf", SCHEMAS[kind.DESCRIPTOR.full_name])


def test_raw_images_and_lists_of_transforms() -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    message = RawImage(frame_id="cam", width=3, height=2, encoding="bgr8", step=9, data=pixels.tobytes())
    [picture] = decoder(RawImage)(message.SerializeToString())
    np.testing.assert_array_equal(picture.decode(), pixels[..., ::-1])
    both = FrameTransforms()
    for child in ("a", "b"):
        each = both.transforms.add(parent_frame_id="root", child_frame_id=child)
        each.rotation.w = 1
    found = decoder(FrameTransforms)(both.SerializeToString())
    assert [each.child for each in found if isinstance(each, Transform)] == ["a", "b"]


def test_a_cloud_with_a_pose_of_its_own_is_refused() -> None:
    message = PointCloud(frame_id="top", point_stride=12)
    for i, name in enumerate("xyz"):
        message.fields.add(name=name, offset=4 * i, type=PackedElementField.FLOAT32)
    message.pose.orientation.w = 1
    assert len(decoder(PointCloud)(message.SerializeToString())) == 1
    message.pose.position.x = 1
    with pytest.raises(CorruptMessage, match="a pose of its own"):
        decoder(PointCloud)(message.SerializeToString())


@given(data=st.binary(max_size=80), kind=st.sampled_from(sorted(foxglove.CONVERTERS)), text=st.booleans())
def test_any_bytes(data: bytes, kind: str, text: bool) -> None:
    """Are a message or corrupt; so are schemas that are noise."""
    encoding = "json" if text else "protobuf"
    for schema in (Schema(1, data, encoding, kind), SCHEMAS[kind]):
        try:
            foxglove.decoder(encoding, schema)(data)
        except CorruptMessage:
            continue


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["timestamp", "sec", "nsec", "frame_id", "data", "fields", "width"]), inner
            )
        ),
        max_leaves=12,
    ),
    kind=st.sampled_from(sorted(foxglove.CONVERTERS)),
)
def test_any_json(value: Any, kind: str) -> None:
    try:
        foxglove.decoder("json", SCHEMAS[kind])(json.dumps(value).encode())
    except CorruptMessage:
        return


KINDS = (PointCloud, CompressedImage, RawImage, CameraCalibration, FrameTransform, FrameTransforms, LocationFix)
SCHEMAS = {
    kind.DESCRIPTOR.full_name: Schema(
        1, build_file_descriptor_set(kind).SerializeToString(), "protobuf", kind.DESCRIPTOR.full_name
    )
    for kind in KINDS
}
