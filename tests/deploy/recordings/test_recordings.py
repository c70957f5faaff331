"""Recordings replayed: the same frames as from the tables, whatever file, compression or schema they are written in."""

import filecmp
import json
import shutil
import sqlite3
import tracemalloc
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zstandard
from commands import one_line_error, perception, refuses
from exported import QUIET, bundle
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
from mcap.reader import make_reader
from mcap.records import Schema
from mcap.writer import Writer
from mcap_protobuf.schema import build_file_descriptor_set
from recordings import (
    SPEC,
    STORAGES,
    TINY,
    assemble,
    assert_equal_drives,
    assert_equal_frames,
    messages_of,
    nuscenes_topics,
    read,
    write_raw_mcap,
)
from rosbags import rosbag2
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from vocabulary import CAMERAS, LIDAR

from deploy.log import write_log
from deploy.recordings import foxglove, ros
from deploy.recordings.drives import open_drives
from deploy.recordings.mcap import MAX_RECORD
from deploy.recordings.messages import CorruptMessage, Fix, Transform
from deploy.replay.run import replay
from deploy.replay.settings import Source
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.recordings import SampleData


def recorded(root: Path, scene: str, storage: str, folder: Path) -> Path:
    path = folder / STORAGES[storage]
    write_log(root, scene, path, storage)
    return path


def test_a_simulated_scene_gives_the_same_bytes(sim_root: Path, tmp_path: Path) -> None:
    """By the command; nothing is lost on the way."""
    tables, out, path = tmp_path / "tables", tmp_path / "out", recorded(sim_root, "scene-0002", "sqlite3", tmp_path)
    replay(Source(sim_root, "v1.0-sim", ["scene-0002"]), bundle().path, tables, console=QUIET)
    given = ("replay", path / f"{path.name}.db3", "--bundle", bundle().path, "--out", out)
    done = perception(*given, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == 3
    assert "3 frames, " in done.stderr
    assert filecmp.cmp(out / "results.json", tables / "results.json", shallow=False)
    [counts] = json.loads((out / "sources.json").read_text())
    assert (counts["frames"], counts["missing"]) == (3, {})
    assert not {"corrupt", "duplicated", "out_of_order", "late", "unposed"} & counts.keys()
    (tmp_path / "frames.yaml").write_text("global_frame: odom\n")
    line = refuses(*given, "--topics", tmp_path / "frames.yaml")
    assert "no pose of base_link in odom at the time of any of 3 frames" in line


@pytest.mark.parametrize("reference", ["ego", "lidar"])
@pytest.mark.parametrize("sweeps", [0, 1, 3])
def test_frames_are_those_of_the_tables(tiny_root: Path, reference: str, sweeps: int) -> None:
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    frames, _ = assemble(messages_of(tiny_root, "v1.0-tiny", TINY), sweeps=sweeps, reference=reference)
    assert [frame.token for frame in frames] == tables.samples()
    for frame in frames:
        assert_equal_frames(frame, tables.frame(frame.token, Reads(reference, sweeps)))


def test_every_keyframe_of_a_real_scene_is_that_of_the_tables(nuscenes_root: Path, tmp_path: Path) -> None:
    """All sensors, then LiDAR alone, then none."""
    tables = NuScenesTables(nuscenes_root, "v1.0-mini")
    [drive] = open_drives(recorded(nuscenes_root, "scene-0103", "mcap", tmp_path), None, (), SPEC, None)
    frames = list(drive.frames())
    assert [frame.token for frame in frames] == tables.samples(selectors=["scene-0103"])
    assert len(drive) == len(frames) == 40
    missing = Counter()
    for frame in frames:
        expected = tables.frame(frame.token, Reads("ego", SPEC.sweeps))
        assert_equal_frames(frame, expected)
        missing.update({*CAMERAS} - expected.cameras.keys())
        missing["LIDAR_TOP"] += expected.points is None
    assert drive.counts.summary()["missing"] == missing


def test_a_missing_sweep_is_left_out_as_from_the_tables(tiny_root: Path) -> None:
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    sample = tables.samples()[-1]
    chain = list(tables.recordings.chain(tables.recordings[sample]["LIDAR_TOP"], 3))
    (tiny_root / chain[1].file).unlink()
    frames, _ = assemble(messages_of(tiny_root, "v1.0-tiny", TINY), sweeps=2)
    assert_equal_frames(frames[-1], tables.frame(sample, Reads("ego", 2)))
    assert len(np.unique(frames[-1].points[:, 4])) == 2  # not three: none took its place


def test_keyframes_that_are_declared_but_never_sent_are_as_none(tiny_root: Path, tmp_path: Path) -> None:
    log = [each for each in messages_of(tiny_root, "v1.0-tiny", TINY) if each.topic != "/keyframe"]
    expected, _ = read(write_raw_mcap(tmp_path / "drive.mcap", log))
    (tmp_path / "declared").mkdir()
    frames, _ = read(write_raw_mcap(tmp_path / "declared" / "drive.mcap", log, {"/keyframe": "std_msgs/msg/String"}))
    assert_equal_drives(frames, expected)


def test_odometry_takes_the_place_of_transforms(tiny_root: Path) -> None:
    log = messages_of(tiny_root, "v1.0-tiny", TINY)
    expected, _ = assemble(log)
    without = [each for each in log if each.topic != "/tf"]
    assert assemble(without)[0] == []
    frames, _ = assemble(without, nuscenes_topics(odometry="/odometry"))
    assert len(frames) == 3
    assert_equal_drives(frames, expected)


@pytest.mark.parametrize("storage", STORAGES)
def test_the_log_is_what_other_readers_read(tiny_root: Path, storage: str, tmp_path: Path) -> None:
    """rosbags' own reader for recordings, mcap's for the file: bytes of pictures and points, stamps, latched topic."""
    path, recordings = recorded(tiny_root, TINY, storage, tmp_path), NuScenesTables(tiny_root, "v1.0-tiny").recordings
    files = {each for sample in recordings.values() for each in sample.values()}
    files |= {each for sample in recordings.values() for each in recordings.chain(sample["LIDAR_TOP"], 99)}
    expected = {(each.channel.lower(), each.timestamp * 1000): (tiny_root / each.file).read_bytes() for each in files}
    found: dict[tuple[str, int], bytes] = {}
    times = []
    with AnyReader([path]) as reader:
        for connection, time, data in reader.messages():
            message = reader.deserialize(data, connection.msgtype)
            times.append(time)
            if connection.msgtype in ("sensor_msgs/msg/PointCloud2", "sensor_msgs/msg/CompressedImage"):
                stamp = message.header.stamp
                assert stamp.sec * 1_000_000_000 + stamp.nanosec == time
                found[message.header.frame_id, time] = message.data.tobytes()
    assert found == expected
    assert times == sorted(times)
    if storage == "file":
        with path.open("rb") as file:
            summary = make_reader(file, validate_crcs=True).get_summary()
        assert summary.statistics.message_count == len(times)


def test_a_log_is_not_written_over_another(tiny_root: Path, tmp_path: Path) -> None:
    recorded(tiny_root, TINY, "file", tmp_path)
    for scene, file, says in ((TINY, "drive.mcap", "exists; choose another --out"), ("x", "x.mcap", "no such scene")):
        assert says in refuses("log", tiny_root, "--scene", scene, "--out", tmp_path / file)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("path", "version", "scenes", "topics", "message"),
    [
        ("none.mcap", None, (), None, "none.mcap: cannot read the recording .No such file or directory"),
        ("empty.mcap", None, (), None, "empty.mcap: not an MCAP file; copy it again"),
        ("empty.db3", None, (), None, "empty.db3: cannot read the recording"),
        ("bag", None, (), None, "bag: no .db3 or .mcap file of a rosbag2 in it"),
        ("drive.mcap", None, ("scene-0001",), None, "drive.mcap: a recording is one drive"),
        ("drive.mcap", None, (), "none.yaml", "none.yaml: cannot read the map of topics"),
        ("drive.mcap", None, (), "other.yaml", "it has none of the topics that are read; it has /cam_back/"),
        (".", "v1.0-tiny", (), "other.yaml", "a dataroot has no topics"),
        ("nowhere", None, (), None, "nowhere: neither a recording .* nor a dataroot"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    tiny_root: Path, monkeypatch: pytest.MonkeyPatch, path: str, version: str | None, scenes: Any, topics: str | None,
    message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tiny_root)
    write_log(tiny_root, TINY, Path("drive.mcap"))
    Path("empty.mcap").touch()
    Path("empty.db3").touch()
    Path("bag").mkdir()
    Path("bag/metadata.yaml").write_text("rosbag2_bagfile_information: [")
    Path("other.yaml").write_text(
        "lidars: {LIDAR_TOP: {topic: /top}}\ncameras: {}\ntransforms: /a\nstatic_transforms: /b\nkeyframes: null\n"
    )
    with one_line_error(message):
        for drive in open_drives(Path(path), version, scenes, SPEC, None if topics is None else Path(topics)):
            list(drive.frames())


def compressed(source: Path, out: Path, mode: str, storage: str) -> Path:
    """The messages of a rosbag2 again, as a recorder with compression writes them."""
    writer = rosbag2.Writer(out, version=9, storage_plugin=StoragePlugin[storage])
    writer.set_compression(CompressionMode[mode], CompressionFormat.ZSTD)
    with rosbag2.Reader(source) as reader, writer:
        there = {
            each.id: writer.add_connection(each.topic, each.msgtype, msgdef=each.msgdef.data, rihs01=each.digest)
            for each in reader.connections
        }
        for connection, time, data in reader.messages():
            writer.write(there[connection.id], time, data)
    return out


@pytest.mark.parametrize(("mode", "storage"), [("FILE", "SQLITE3"), ("FILE", "MCAP"), ("MESSAGE", "SQLITE3")])
def test_a_compressed_recording_gives_the_same_frames(tiny_root: Path, tmp_path: Path, mode: str, storage: str) -> None:
    """And a compressed file that was cut off is told in one line."""
    plain = recorded(tiny_root, TINY, "sqlite3", tmp_path)
    small = compressed(plain, tmp_path / "small", mode, storage)
    assert sum(file.stat().st_size for file in small.iterdir()) < sum(file.stat().st_size for file in plain.iterdir())
    (ours, counted), (theirs, expected) = read(small), read(plain)
    assert len(ours) == 3
    assert_equal_drives(ours, theirs)
    assert counted == expected
    for archive in small.glob("*.zstd"):
        archive.write_bytes(archive.read_bytes()[:-100])
        with one_line_error("cannot read the recording"):
            read(small)


def test_files_that_decompress_to_more_than_the_disk_holds_are_refused(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is the one thing that is made up."""
    small = compressed(recorded(tiny_root, TINY, "sqlite3", tmp_path), tmp_path / "small", "FILE", "SQLITE3")
    (archive,) = small.glob("*.zstd")
    needed = len(zstandard.ZstdDecompressor().stream_reader(archive.read_bytes()).read())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    assert len(read(small)[0]) == 3
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    with one_line_error("set TMPDIR to a larger folder"):
        read(small)


@pytest.mark.parametrize("stated", [True, False])
def test_a_message_that_decompresses_to_more_than_a_record_is_corrupt(
    stated: bool, tiny_root: Path, tmp_path: Path
) -> None:
    """A few KB could be GB of zeros, whether or not they state it."""
    small = compressed(recorded(tiny_root, TINY, "sqlite3", tmp_path), tmp_path / "small", "MESSAGE", "SQLITE3")
    before, _ = read(small)
    with sqlite3.connect(next(small.glob("*.db3"))) as file:
        pictures = "FROM messages JOIN topics ON topics.id = topic_id WHERE type LIKE '%CompressedImage'"
        (number,) = file.execute(f"SELECT messages.id {pictures} ORDER BY messages.id").fetchone()
        bomb = zstandard.ZstdCompressor(write_content_size=stated).compress(bytes(1 << 30))
        file.execute("UPDATE messages SET data = ? WHERE id = ?", (bomb, number))
    tracemalloc.start()
    after, counts = read(small)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * MAX_RECORD
    assert [len(each.cameras) for each in after] == [len(before[0].cameras) - 1, *(len(f.cameras) for f in before[1:])]
    assert sum(counts["corrupt"].values()) == 1


def stamped(recording: SampleData) -> dict[str, Any]:
    seconds, microseconds = divmod(recording.timestamp, 1_000_000)
    return {"timestamp": Timestamp(seconds=seconds, nanos=1000 * microseconds), "frame_id": recording.channel.lower()}


def placed(recording: SampleData, parent: str, child: str, pose: np.ndarray) -> FrameTransform:
    message = FrameTransform(timestamp=stamped(recording)["timestamp"], parent_frame_id=parent, child_frame_id=child)
    for part, field, value in zip(3 * ["translation"] + 4 * ["rotation"], "xyzwxyz", pose, strict=True):
        setattr(getattr(message, part), field, value)
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


def sensor(tables: NuScenesTables, each: SampleData) -> list[tuple[str, Any]]:
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
    options = ("preserving_proto_field_name", "use_integers_for_enums", "always_print_fields_with_no_presence")
    fields, stamp = MessageToDict(message, **dict.fromkeys(options, True)), message.timestamp
    return json.dumps(fields | {"timestamp": {"sec": stamp.seconds, "nsec": stamp.nanos}}).encode()


def schema_of(kind: Any) -> bytes:
    return bytes(build_file_descriptor_set(kind).SerializeToString())


def write(path: Path, log: list[tuple[str, int, Any]], encoding: str) -> None:
    with path.open("wb") as file:
        writer = Writer(file)
        writer.start()
        info = {"name": "scene-0001", "description": "Night, rain", "location": "boston-seaport", "vehicle": "n015"}
        writer.add_metadata("scene-info", info)
        channels: dict[str, int] = {}
        for topic, time, message in log:
            if topic not in channels:
                given = ("jsonschema", b"{}") if encoding == "json" else ("protobuf", schema_of(type(message)))
                schema = writer.register_schema(message.DESCRIPTOR.full_name, *given)
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
    found, counts = read(tmp_path / "drive.mcap", tmp_path / "topics.yaml")
    frames = {frame.timestamp: frame for frame in found}
    assert len(frames) == 6
    for sample in tables.samples():
        expected = tables.frame(sample, Reads("ego", SPEC.sweeps))
        frame = frames[expected.timestamp]
        np.testing.assert_array_equal(frame.global_from_ego, expected.global_from_ego)
        now, then = (each.points[each.points[:, 4] <= 1.0] for each in (frame, expected))  # type: ignore[index]
        np.testing.assert_array_equal(now, then)
        assert frame.cameras.keys() == expected.cameras.keys()
        for name, camera in frame.cameras.items():
            for field in ("image", "intrinsics", "ego_from_camera", "timestamp"):
                np.testing.assert_array_equal(getattr(camera, field), getattr(expected.cameras[name], field))
            # 5 m/s; after the last pose of the drive the vehicle is taken to stand still, for 6 ms at most.
            np.testing.assert_allclose(camera.global_from_ego, expected.cameras[name].global_from_ego, atol=0.031)
        assert (frame.scene, frame.conditions, frame.location) == ("scene-0001", expected.conditions, "boston-seaport")
        assert frame.position == (1.5, 1e-6 * (frame.timestamp % 1_000_000))  # of a fix without a stamp
    assert not {"corrupt", "late", "unposed"} & counts.keys()


KINDS = (PointCloud, CompressedImage, RawImage, CameraCalibration, FrameTransform, FrameTransforms, LocationFix)
SCHEMAS = {
    kind.DESCRIPTOR.full_name: Schema(1, schema_of(kind), "protobuf", kind.DESCRIPTOR.full_name) for kind in KINDS
}


def decoded(message: Any) -> Any:
    return foxglove.decoder("protobuf", SCHEMAS[message.DESCRIPTOR.full_name])(message.SerializeToString())


def test_raw_images_lists_of_transforms_fixes_and_clouds_with_a_pose() -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    [picture] = decoded(RawImage(frame_id="cam", width=3, height=2, encoding="bgr8", step=9, data=pixels.tobytes()))
    np.testing.assert_array_equal(picture.decode(), pixels[..., ::-1])
    with pytest.raises(CorruptMessage, match="an unsupported encoding"):
        decoded(RawImage(frame_id="cam", width=3, height=2, encoding="yuv422", step=9, data=pixels.tobytes()))
    both = FrameTransforms()
    for child in ("a", "b"):
        both.transforms.add(parent_frame_id="root", child_frame_id=child).rotation.w = 1
    assert [each.child for each in decoded(both) if isinstance(each, Transform)] == ["a", "b"]
    at = Timestamp(seconds=1_700_000_000)
    assert decoded(LocationFix(timestamp=at, latitude=1.5, longitude=103.8)) == [Fix(1_700_000_000_000_000, 1.5, 103.8)]
    with pytest.raises(CorruptMessage, match="a position that is not on earth"):
        decoded(LocationFix(timestamp=at, latitude=95, longitude=103.8))
    message = PointCloud(frame_id="top", point_stride=12)
    for i, name in enumerate("xyz"):
        message.fields.add(name=name, offset=4 * i, type=PackedElementField.FLOAT32)
    message.pose.orientation.w = 1
    assert len(decoded(message)) == 1
    message.pose.position.x = 1
    with pytest.raises(CorruptMessage, match="a pose of its own"):
        decoded(message)


@pytest.mark.parametrize("encoding", ["protobuf", "json"])
def test_stamps_keep_their_nanoseconds(encoding: str) -> None:
    at = Timestamp(seconds=1_700_000_000, nanos=123_456_789)
    picture = RawImage(timestamp=at, width=1, height=1, encoding="rgb8", step=3, data=b"rgb")
    sweep = PointCloud(timestamp=at, point_stride=12)
    for i, name in enumerate("xyz"):
        sweep.fields.add(name=name, offset=4 * i, type=PackedElementField.FLOAT32)
    for message in (picture, sweep):
        data = as_json(message) if encoding == "json" else message.SerializeToString()
        content: Any
        [content] = foxglove.decoder(encoding, SCHEMAS[message.DESCRIPTOR.full_name])(data)
        assert 1000 * content.stamp + content.nanoseconds == 1_700_000_000_123_456_789


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


def test_a_keyframe_message_is_a_keyframe_or_corrupt() -> None:
    convert = ros.CONVERTERS["std_msgs/msg/String"]
    for text in ("{", "[" * 100_000, f'{{"stamp": {"1" * 5000}}}', "[]"):
        with pytest.raises(CorruptMessage, match="not a keyframe"):
            convert(SimpleNamespace(data=text))
    (found,) = convert(SimpleNamespace(data='{"stamp": 1, "token": "a", "conditions": {"self": "rain"}}'))
    assert found.conditions == {"self": "rain"}
