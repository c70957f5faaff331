"""Damaged recordings: bytes, order, stamps and files. Nothing crashes or grows; what is whole is used."""

import json
import sqlite3
import tracemalloc
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any

import lz4.frame
import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcap.data_stream import RecordBuilder
from mcap.records import Chunk, Header
from recordings import (
    SPEC,
    TINY,
    Sent,
    assemble,
    assert_equal_drives,
    assert_equal_frames,
    edit,
    nuscenes_topics,
    read,
    stream,
    write_raw_mcap,
)
from vocabulary import SENSORS

from deploy.log import write_log
from deploy.recordings import transforms
from deploy.recordings.counts import Counts
from deploy.recordings.mcap import McapRecording
from deploy.recordings.messages import LATEST
from perception.errors import InputError
from perception.frame import Frame
from perception.sensors.inputs import prepare

LIDAR, FRONT, INFO = "/lidar_top", "/cam_front/image_rect_compressed", "/cam_front/camera_info"
FUZZ = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def expected(log: list[Sent]) -> list[Frame]:
    return assemble(log)[0]


@pytest.fixture(scope="module")
def recording(log: list[Sent], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An MCAP file of many chunks."""
    return write_raw_mcap(tmp_path_factory.mktemp("mcap") / "drive.mcap", log).read_bytes()


@pytest.fixture(scope="module")
def database(recorded_root: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The SQLite file of a rosbag2."""
    folder = tmp_path_factory.mktemp("rosbag") / "drive"
    write_log(recorded_root, TINY, folder, "sqlite3")
    return (folder / "drive.db3").read_bytes()


def tokens(frames: list[Frame]) -> list[str]:
    return [frame.token for frame in frames]


def assert_usable(frames: list[Frame]) -> None:
    """What a runtime and a submission need: finite numbers, and a token only once."""
    assert len(set(tokens(frames))) == len(frames)
    for frame in frames:
        assert np.isfinite(frame.global_from_reference).all()
        assert frame.points is None or np.isfinite(frame.points).all()
        for name, camera in frame.cameras.items():
            assert camera.image.dtype == np.uint8
            assert np.isfinite(frame.image_from_reference(name)).all()


def spoiled(data: st.DataObject, content: bytes) -> bytes:
    """Bytes changed, cut off, put in, or all replaced."""
    kind = data.draw(st.sampled_from(["change", "number", "cut", "insert", "other"]))
    place = data.draw(st.integers(0, max(len(content) - 1, 0)))
    if kind == "change":
        return content[:place] + data.draw(st.binary(min_size=1, max_size=4)) + content[place + 1 :]
    if kind == "number":  # where lengths, sizes and numbers are
        place -= place % 4
        number = data.draw(st.sampled_from([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000, 0x7F800000, 0x7F7FFFFF]))
        return content[:place] + number.to_bytes(4, "little") + content[place + 4 :]
    if kind == "cut":
        return content[:place]
    return content[:place] + data.draw(st.binary(max_size=64)) + (content[place:] if kind == "insert" else b"")


@FUZZ
@given(data=st.data())
def test_any_stamps(log: list[Sent], data: st.DataObject) -> None:
    """Stamps in headers, and times of the recording, of any size: no loop goes from one to the next."""
    bad = [*log]
    stamped = [i for i, each in enumerate(log) if each.topic not in ("/tf", "/tf_static", "/keyframe")]
    near = st.integers(-2_000_000, 2_000_000).map(lambda offset: log[0].time + offset)
    stamps = st.one_of(near, st.integers(0, (1 << 31) * 1_000_000 - 1))
    for i in data.draw(st.lists(st.sampled_from(stamped), min_size=1, max_size=20)):
        bad[i] = edit(bad[i], stamp=data.draw(stamps))
    for i in data.draw(st.lists(st.integers(0, len(log) - 1), max_size=20)):
        bad[i] = bad[i]._replace(time=data.draw(st.one_of(near, st.integers(0, LATEST))))
    frames, _ = assemble(bad, nuscenes_topics(odometry="/odometry"), keyframed=data.draw(st.booleans()))
    assert_usable(frames)
    assert len(frames) <= len(log)


@FUZZ
@given(data=st.data())
def test_bytes_order_and_stamps_at_once_take_no_memory(log: list[Sent], data: st.DataObject) -> None:
    """No more than the messages and the frames of a whole recording, whatever lengths and sizes they claim to have."""
    bad = [log[i] for i in data.draw(st.lists(st.integers(0, len(log) - 1), min_size=1, max_size=len(log)))]
    for i in data.draw(st.lists(st.integers(0, len(bad) - 1), max_size=8)):
        bad[i] = bad[i]._replace(time=data.draw(st.integers(0, LATEST)))
    for i in data.draw(st.lists(st.integers(0, len(bad) - 1), max_size=8)):
        bad[i] = bad[i]._replace(data=spoiled(data, bad[i].data))
    keyframed = data.draw(st.booleans())
    tracemalloc.start()
    frames, _ = assemble(bad, nuscenes_topics(odometry="/odometry"), keyframed=keyframed)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert_usable(frames)
    assert peak < 10 * sum(len(each.data) for each in log)


@pytest.mark.parametrize("kind", [".mcap", ".db3"])
@FUZZ
@given(data=st.data())
def test_a_spoiled_file(
    recording: bytes, database: bytes, expected: list[Frame], tmp_path: Path, kind: str, data: st.DataObject
) -> None:
    """Frames that are in it, or an error for the user; nothing else."""
    path = tmp_path / f"drive{kind}"
    path.write_bytes(spoiled(data, recording if kind == ".mcap" else database))
    with suppress(InputError):
        frames, _ = read(path)
        assert_usable(frames)
        assert {*tokens(frames)} <= {*tokens(expected)}


def test_a_file_cut_off_is_replayed_up_to_there(recording: bytes, expected: list[Frame], tmp_path: Path) -> None:
    """And what comes after 64 bytes of noise in the middle of it."""
    path = tmp_path / "drive.mcap"
    seen = []
    for share in (1.0, 0.95, 0.6, 0.3):
        path.write_bytes(recording[: round(len(recording) * share)])
        frames, counts = read(path)
        assert tokens(frames) == tokens(expected)[: len(frames)]
        for a, b in zip(frames[:-1], expected, strict=False):
            np.testing.assert_array_equal(a.global_from_ego, b.global_from_ego)
            assert a.cameras.keys() == b.cameras.keys()
        assert len(counts["damage"]) == (share < 1)
        seen.append(len(frames))
    assert seen[0] == 3
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] >= 1
    endless_record = recording[:9] + b"\xff" * 8 + recording[17:]
    for content, why in ((recording[:200], "it has none of the topics"), (endless_record, "damaged in 1 places")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"no frame can be assembled from it: .*{why}"):
            read(path)
    middle = len(recording) // 2
    path.write_bytes(recording[:middle] + bytes(range(64)) + recording[middle + 64 :])
    frames, counts = read(path)
    assert (frames[-1].token, counts["damaged_places"]) == (expected[-1].token, 1)
    assert "drive.mcap: damaged before byte" in counts["damage"][0]


def test_a_rosbag_of_several_files(recording: bytes, database: bytes, expected: list[Frame], tmp_path: Path) -> None:
    """Whose recorder was killed: without metadata.yaml. One of them cannot be read: the others are."""
    for name, condition in (("bag.db3", ">="), ("bag_1.db3", "<")):
        (tmp_path / name).write_bytes(database)
        with sqlite3.connect(tmp_path / name) as file:
            file.execute(f"DELETE FROM messages WHERE timestamp {condition} ?", (expected[1].timestamp * 1000,))
    frames, _ = read(tmp_path)
    assert [(each.token, each.cameras.keys()) for each in frames] == [(f.token, f.cameras.keys()) for f in expected]
    (tmp_path / "bag_1.db3").write_bytes((tmp_path / "bag_1.db3").read_bytes()[:3000])
    frames, counts = read(tmp_path)
    assert tokens(frames) == [expected[0].token]
    assert "bag_1.db3: cannot read the recording" in counts["damage"][0]
    (tmp_path / "mcap").mkdir()
    (tmp_path / "mcap" / "drive.mcap").write_bytes(recording)
    assert tokens(read(tmp_path / "mcap")[0]) == tokens(expected)


@pytest.mark.parametrize(
    ("compression", "size", "reason"),
    [("zstd", 1000, "has more"), ("lz4", 1000, "has more"), ("", 1 << 27, "has less"), ("zstd", 1 << 40, "an invalid")],
)  # fmt: skip
def test_a_chunk_of_another_size_than_it_says_is_damage(
    compression: str, size: int, reason: str, tmp_path: Path
) -> None:
    """It is never decompressed beyond that: a few KB could be GB of zeros."""
    content = bytes(1 << 26)
    packed = {"zstd": zstandard.compress(content), "lz4": lz4.frame.compress(content), "": content}[compression]
    builder = RecordBuilder()
    Header("", "").write(builder)
    Chunk(compression, packed, 0, 0, 0, size).write(builder)
    (tmp_path / "bomb.mcap").write_bytes(b"\x89MCAP0\r\n" + builder.end())
    damage: list[str] = []
    assert not [*McapRecording(tmp_path / "bomb.mcap").read({"/points"}, damage.append)]
    assert reason in damage[0]


def changed(log: list[Sent], topic: str, **changes: Any) -> list[Sent]:
    """With some fields of the last message of a topic replaced."""
    i = max(i for i, each in enumerate(log) if each.topic == topic)
    return [*log[:i], edit(log[i], **changes), *log[i + 1 :]]


def bytes_of(value: float) -> np.ndarray:
    """The data of a cloud that is nothing but this value."""
    return np.full((500, 5), value, np.float32).view(np.uint8).ravel()


def jpeg(numbers: bytes) -> np.ndarray:
    """What begins as a JPEG picture; then height and width should come."""
    return np.frombuffer(b"\xff\xd8\xff\xe0\x00\x04ab\xff\xc0\x00\x11\x08" + 3 * numbers, np.uint8)


OTHER_SIZE, UNDECODED = "data of another size than the cloud", "a picture that cannot be decoded"


@pytest.mark.parametrize(
    ("topic", "changes", "reason"),
    [
        (LIDAR, {"data": bytes_of(np.nan)}, "points that are not finite"),
        (LIDAR, {"data": bytes_of(1e30)}, "points beyond the range of a LiDAR"),
        (LIDAR, {"width": 501}, OTHER_SIZE),
        (LIDAR, {"point_step": 0, "row_step": 10_000}, "data of a size that is not a multiple of the point's"),
        (LIDAR, {"fields": []}, "points without x, y or z"),
        (FRONT, {"data": np.arange(99, dtype=np.uint8)}, UNDECODED),
        (FRONT, {"data": jpeg(b"\xff\xff\xff\xff")}, "an invalid picture size"),
        (FRONT, {"data": jpeg(b"\x00\x40\x00\x40")}, "a picture of another size than its CameraInfo"),
        (INFO, {"width": 0}, "an invalid picture size"),
        (INFO, {"r": np.array([1, 0.5, 0, 0, 1, 0, 0, 0, 1.0])}, "invalid lens parameters"),  # a shear
        (INFO, {"k": np.full(9, np.nan), "p": np.full(12, np.nan)}, "invalid intrinsics"),
    ],
)
def test_a_corrupt_message_is_dropped_for_its_reason(
    log: list[Sent], expected: list[Frame], topic: str, changes: dict[str, Any], reason: str
) -> None:
    frames, counter = assemble(changed(log, topic, **changes))
    counts = counter.summary()
    assert (counts["reasons"], counts["corrupt"]) == ({topic: {reason: 1}}, {topic: 1})
    assert_equal_drives(frames[:2], expected[:2])
    missing = {LIDAR: {"LIDAR_TOP": 1}, FRONT: {"CAM_FRONT": 1}, INFO: {}}  # the calibration stays as it was
    assert counts["missing"] == missing[topic]


def test_a_cloud_that_is_not_dense_loses_the_beams_without_return(log: list[Sent], expected: list[Frame]) -> None:
    frames, _ = assemble(changed(log, LIDAR, is_dense=False))
    assert_equal_frames(frames[-1], expected[-1])
    frames, counts = assemble(changed(log, LIDAR, is_dense=False, data=bytes_of(np.nan)), sweeps=0)
    assert len(frames[-1].points) == 0
    assert "corrupt" not in counts.summary()
    assert prepare(frames[-1], SPEC)["pillar_counts"].sum() == 0


def endless(log: list[Sent], keyframes: bool) -> Any:
    """The same second and a half over and over, without end; every fifteenth message is spoiled or misplaced."""
    rng = np.random.default_rng(0)
    for lap in range(1 << 30):
        offset = lap * 1_500_000
        for each in log:
            if each.topic in ("/tf", "/tf_static") or (each.topic == "/keyframe" and not keyframes):
                continue
            time = each.time + offset
            if each.topic == "/keyframe":
                said = {"stamp": time, "token": f"{time}", "sweeps": [time - 250_000]}
                yield edit(each, data=json.dumps(said), time=time)
                continue
            kind = rng.integers(30)
            if kind == 0:
                yield each._replace(time=time, data=each.data[: rng.integers(len(each.data))])
            elif kind == 1:
                yield edit(each, stamp=int(rng.integers(0, 1 << 50)), time=time)
            else:
                yield edit(each, stamp=time, time=time)


@pytest.mark.parametrize("keyframed", [True, False])
def test_memory_does_not_grow(log: list[Sent], keyframed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second half of 45 s takes no more than the first, once all that is bounded is full."""
    monkeypatch.setattr(transforms, "MOST_POSES", 256)
    static = [each for each in log if each.topic == "/tf_static"]
    messages = islice(chain(static, endless(log, keyframed)), 30 * len(log))
    counts = Counts(SENSORS)
    frames = stream(messages, counts, nuscenes_topics(odometry="/odometry", keyframes="/keyframe"), 5, "ego", keyframed)
    tracemalloc.start()
    held = []
    for _ in frames:
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert counts.frames > 50
    assert max(held[len(held) // 2 :]) < 1.3 * max(held[: len(held) // 2])
