"""A scene replayed from its recording: the same bytes as from the tables, whatever the file it was written to."""

import filecmp
import json
from pathlib import Path

import numpy as np
import pytest
from commands import perception, refuses
from exported import QUIET, bundle
from mcap.reader import make_reader
from recordings import (
    SPEC,
    STORAGES,
    TINY,
    assembled,
    assert_equal_frames,
    make_log,
    nuscenes_topics,
    sent,
    write_raw_mcap,
)
from refusals import one_line_error
from rosbags.highlevel import AnyReader
from vocabulary import CAMERAS

from deploy.replay.run import replay
from deploy.replay.settings import Source
from deploy.replay.sources import open_drives
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError


def recorded(root: Path, scene: str, storage: str, folder: Path, version: str | None = None) -> Path:
    path = folder / STORAGES[storage]
    make_log(root, scene, path, storage, version)
    return path


@pytest.fixture(scope="module")
def results(sim_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of scene-0002, from the tables."""
    out = tmp_path_factory.mktemp("tables")
    replay(Source(sim_root, "v1.0-sim", ["scene-0002"]), bundle().path, out, console=QUIET)
    return out / "results.json"


@pytest.mark.parametrize("storage", STORAGES)
def test_a_simulated_scene_gives_the_same_bytes(sim_root: Path, results: Path, storage: str, tmp_path: Path) -> None:
    path = recorded(sim_root, "scene-0002", storage, tmp_path)
    replay(Source(path), bundle().path, tmp_path / "out", console=QUIET)
    assert filecmp.cmp(tmp_path / "out" / "results.json", results, shallow=False)
    [counts] = json.loads((tmp_path / "out" / "sources.json").read_text())
    assert counts["frames"] == 3
    assert counts["missing"] == {}
    assert not {"corrupt", "duplicated", "out_of_order", "late", "unposed"} & counts.keys()


def test_a_recorded_scene_with_missing_sensors_gives_the_same_bytes(nuscenes_root: Path, tmp_path: Path) -> None:
    """All sensors, then LiDAR alone, then none."""
    scene = "scene-0103:3-8"
    replay(Source(nuscenes_root, "v1.0-mini", [scene]), bundle().path, tmp_path / "tables", console=QUIET)
    path = recorded(nuscenes_root, scene, "sqlite3", tmp_path)
    replay(Source(path), bundle().path, tmp_path / "out", console=QUIET)
    assert filecmp.cmp(tmp_path / "out" / "results.json", tmp_path / "tables" / "results.json", shallow=False)
    [counts] = json.loads((tmp_path / "out" / "sources.json").read_text())
    assert counts["missing"] == {"LIDAR_TOP": 1, **dict.fromkeys(CAMERAS, 4)}


@pytest.mark.parametrize("reference", ["ego", "lidar"])
@pytest.mark.parametrize("sweeps", [0, 1, 3])
def test_frames_are_those_of_the_tables(tiny_root: Path, reference: str, sweeps: int) -> None:
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    frames, _ = assembled(sent(tiny_root, "v1.0-tiny", TINY), sweeps=sweeps, reference=reference)
    assert [frame.token for frame in frames] == tables.samples()
    for frame in frames:
        assert_equal_frames(frame, tables.frame(frame.token, reference, sweeps))


def test_every_keyframe_of_a_real_scene_is_that_of_the_tables(nuscenes_root: Path, tmp_path: Path) -> None:
    tables = NuScenesTables(nuscenes_root, "v1.0-mini")
    [drive] = open_drives(recorded(nuscenes_root, "scene-0103", "mcap", tmp_path), None, (), SPEC, None)
    frames = list(drive.frames())
    assert [frame.token for frame in frames] == tables.samples(selectors=["scene-0103"])
    assert len(drive) == len(frames) == 40
    for frame in frames:
        assert_equal_frames(frame, tables.frame(frame.token, "ego", SPEC.sweeps))


def test_a_missing_sweep_is_left_out_as_from_the_tables(tiny_root: Path) -> None:
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    sample = tables.samples()[-1]
    chain = list(tables.recordings.chain(tables.recordings[sample]["LIDAR_TOP"], 3))
    (tiny_root / chain[1].file).unlink()
    frames, _ = assembled(sent(tiny_root, "v1.0-tiny", TINY), sweeps=2)
    assert_equal_frames(frames[-1], tables.frame(sample, "ego", 2))
    assert len(np.unique(frames[-1].points[:, 4])) == 2  # not three: none took its place


def test_a_recording_without_keyframes_or_lidar(tiny_root: Path, tmp_path: Path) -> None:
    """Pictures set the pace, without waiting for sweeps; the frames are named after the file."""
    log = [each for each in sent(tiny_root, "v1.0-tiny", TINY) if each.topic not in ("/keyframe", "/lidar_top")]
    [drive] = open_drives(write_raw_mcap(tmp_path / "walk.mcap", log), None, (), SPEC, None)
    frames = list(drive.frames())
    assert len(frames) == 3
    assert [frame.token for frame in frames] == [f"walk@{frame.cameras['CAM_FRONT'].timestamp}" for frame in frames]
    assert drive.counts.summary()["missing"] == {"LIDAR_TOP": 3}


def test_odometry_takes_the_place_of_transforms(tiny_root: Path) -> None:
    log = sent(tiny_root, "v1.0-tiny", TINY)
    expected, _ = assembled(log)
    without = [each for each in log if each.topic != "/tf"]
    assert assembled(without)[0] == []
    frames, _ = assembled(without, nuscenes_topics(odometry="/odometry"))
    assert len(frames) == 3
    for a, b in zip(frames, expected, strict=True):
        assert_equal_frames(a, b)


@pytest.mark.parametrize("storage", STORAGES)
def test_the_log_is_what_other_readers_read(tiny_root: Path, storage: str, tmp_path: Path) -> None:
    """rosbags' own reader for recordings, mcap's for the file: bytes of pictures and points, stamps, latched topic."""
    path = recorded(tiny_root, TINY, storage, tmp_path)
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    files = {each.file: each for sample in tables.recordings.values() for each in sample.values()}
    for sample in tables.recordings.values():
        files |= {each.file: each for each in tables.recordings.chain(sample["LIDAR_TOP"], 99)}
    expected = {
        (each.channel.lower(), each.timestamp * 1000): (tiny_root / each.file).read_bytes() for each in files.values()
    }
    found: dict[tuple[str, int], bytes] = {}
    times = []
    with AnyReader([path]) as reader:
        for connection, time, data in reader.messages():
            message = reader.deserialize(data, connection.msgtype)
            times.append(time)
            if connection.msgtype in ("sensor_msgs/msg/PointCloud2", "sensor_msgs/msg/CompressedImage"):
                stamp = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
                assert stamp == time
                found[message.header.frame_id, stamp] = message.data.tobytes()
    assert found == expected
    assert times == sorted(times)
    if storage == "file":
        with path.open("rb") as file:
            summary = make_reader(file, validate_crcs=True).get_summary()
        assert summary.statistics.message_count == len(times)


def test_a_log_is_not_written_over_another(tiny_root: Path, tmp_path: Path) -> None:
    recorded(tiny_root, TINY, "file", tmp_path)
    with pytest.raises(InputError, match="exists; choose another --out"):
        recorded(tiny_root, TINY, "file", tmp_path)
    with pytest.raises(InputError, match="no such scene"):
        make_log(tiny_root, "scene-0009", tmp_path / "other.mcap")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_command_replays_a_recording(sim_root: Path, results: Path, tmp_path: Path) -> None:
    path = recorded(sim_root, "scene-0002", "sqlite3", tmp_path)
    given = ("replay", path / f"{path.name}.db3", "--bundle", bundle().path, "--out", tmp_path / "out")
    done = perception(*given, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == 3
    assert "3 frames, " in done.stderr
    assert filecmp.cmp(tmp_path / "out" / "results.json", results, shallow=False)

    (tmp_path / "frames.yaml").write_text("global_frame: odom\n")
    line = refuses(*given, "--topics", tmp_path / "frames.yaml")
    assert "no pose of base_link in odom at the time of any of 3 frames" in line


@pytest.mark.parametrize(
    ("path", "version", "scenes", "topics", "message"),
    [
        ("none.mcap", None, (), None, "none.mcap: cannot read the recording .No such file or directory"),
        ("empty.mcap", None, (), None, "empty.mcap: not an MCAP file; copy it again"),
        ("empty.db3", None, (), None, "empty.db3: cannot read the recording"),
        ("bag", None, (), None, "bag: no .db3 or .mcap file of a rosbag2 in it"),
        ("drive.mcap", None, ("scene-0001",), None, "drive.mcap: a recording is one drive"),
        ("drive.mcap", None, (), "none.yaml", "none.yaml: cannot read the map of topics"),
        (
            "drive.mcap",
            None,
            (),
            "other.yaml",
            "it has none of the topics that are read; it has /cam_back/",
        ),
        (".", "v1.0-tiny", (), "other.yaml", "a dataroot has no topics"),
        ("nowhere", None, (), None, "nowhere: neither a recording .* nor a dataroot"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    tiny_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    version: str | None,
    scenes: tuple[str, ...],
    topics: str | None,
    message: str,
) -> None:
    monkeypatch.chdir(tiny_root)
    make_log(tiny_root, TINY, Path("drive.mcap"))
    Path("empty.mcap").touch()
    Path("empty.db3").touch()
    Path("bag").mkdir()
    Path("bag/metadata.yaml").write_text("rosbag2_bagfile_information: [")
    Path("other.yaml").write_text(
        "lidars: {LIDAR_TOP: {topic: /top}}\ncameras: {}\ntransforms: /a\nstatic_transforms: /b\nkeyframes: null\n"
    )
    with one_line_error(message):
        _read(path, version, scenes, topics)


def _read(path: str, version: str | None, scenes: tuple[str, ...], topics: str | None) -> None:
    for drive in open_drives(Path(path), version, scenes, SPEC, None if topics is None else Path(topics)):
        list(drive.frames())
