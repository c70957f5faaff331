"""A real drive at a real sensor's pace, recorded by a library that is not ours: frames, replay, drive, and a process
that sends it over zenoh."""

import json
import signal
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import succeeds
from kitti import SWEEPS, bundle_of_kitti, drive_of_kitti, topics_of_kitti
from live import PATIENT, RESULTS, driving, driving_process, network, recorded, replayed
from recordings import Sent
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore

from deploy.live.policy import Policy
from deploy.live.zenoh import Zenoh
from deploy.recordings.drives import RecordedDrive
from deploy.recordings.ros_types import header
from deploy.recordings.topics import Topics, load_topics
from deploy.runtime import Runtime
from perception.grid import BevGrid
from perception.rig import load_rig
from perception.sensors.camera.config import CameraBranch
from perception.sensors.inputs import InputSpec
from perception.sensors.lidar.config import Lidar
from perception.tasks.detection.task import TrackMemory
from perception.tasks.detection.tracker import FADED
from perception.tasks.published import ScoreThresholds

STORE = get_typestore(Stores.ROS2_HUMBLE)


def topics() -> Topics:
    return load_topics(topics_of_kitti(), load_rig(topics_of_kitti().with_name("rig.yaml")))


@pytest.mark.parametrize(
    ("period", "jitter", "options"),
    [
        (0.094, 0.0005, ()),
        (0.1, 0.008, ()),
        (0.1035, 0.0005, ()),
        (0.13, 0.0005, ("--field", "i")),  # as kitti2bag calls the intensity
        (0.1035, 0.002, ("--drop", 0.2)),
    ],
)
def test_every_sweep_is_a_frame(period: float, jitter: float, options: tuple[object, ...]) -> None:
    """With its stamp to the nanosecond; the topics say a period of 0.1 s, and pictures come before their sweep."""
    rig = load_rig(topics_of_kitti().with_name("rig.yaml"))
    spec = InputSpec(BevGrid(reference="ego"), {"lidar": Lidar(sweeps=0), "camera": CameraBranch()}, rig)
    recording = RecordedDrive(drive_of_kitti(period, jitter, *options), topics(), spec)
    frames = list(recording.frames())
    sweeps = recording.counts.messages["/velodyne/points"]
    assert sweeps == SWEEPS or "--drop" in options
    assert sum(frame.has_lidar(0) for frame in frames) == sweeps
    assert len(frames) == sweeps
    assert all(frame.cameras for frame in frames)
    with Reader(drive_of_kitti(period, jitter, *options)) as reader:
        clouds = [
            STORE.deserialize_cdr(data, each.msgtype) for each, _, data in reader.messages() if "points" in each.topic
        ]
    stamps = [header(frame.timestamp, "velodyne", frame.nanoseconds).stamp for frame in frames]
    assert [(each.sec, each.nanosec) for each in stamps] == [
        (each.header.stamp.sec, each.header.stamp.nanosec) for each in clouds
    ]
    assert frames[0].points is not None
    assert np.median(frames[0].points[:, 3]) == np.median(clouds[0].data.view(np.float32)[3::4])


@pytest.mark.slow("a real sweep has 114,000 points, and the network of KITTI is exported")
def test_a_drive_at_its_own_pace_is_its_replay(tmp_path: Path) -> None:
    recording, bundle = drive_of_kitti(0.1035), bundle_of_kitti()
    replay = replayed(recording, tmp_path / "replay", topics_of_kitti(), bundle)
    patient = topics().model_copy(update={"wait": PATIENT})
    runtime = Runtime(bundle, checks=False, threads=1)
    drive = driving(recording, tmp_path / "live", runtime, patient, Policy(lateness=PATIENT), rate=0.4)
    drive.require_outcomes()
    assert drive.driven.outcomes == {"perceived": SWEEPS}
    for name in RESULTS:
        assert (tmp_path / "live" / name).read_bytes() == (replay / name).read_bytes()
    assert len(json.loads((replay / "results.json").read_text())["results"]) == SWEEPS


@pytest.mark.slow("a real sweep has 114,000 points, and the network of KITTI is exported")
def test_a_bundle_knows_what_the_sensors_of_a_recording_deliver() -> None:
    """Its topics have names of their own; another recording of the same sensors has no finding."""
    statistics = json.loads((bundle_of_kitti() / "statistics.json").read_text())
    assert {name: each["keyframes"] for name, each in statistics["sensors"].items()} == {"velodyne": SWEEPS}
    later = drive_of_kitti(0.1, 0.008)
    assert succeeds("check", later, "--bundle", bundle_of_kitti(), "--topics", topics_of_kitti()).count("\n") == 1


@pytest.mark.slow("a real sweep has 114,000 points, and the network of KITTI is exported")
def test_what_is_published_is_likely() -> None:
    """Thresholds drop more than half of the confirmed tracks, but no track whose score is 0.4 or more."""
    runtime = Runtime(bundle_of_kitti(), checks=False, threads=1)
    task = runtime.bundle.manifest.heads["detection"]
    recording = RecordedDrive(drive_of_kitti(0.1035), topics(), runtime.bundle.spec)
    everything, counts = TrackMemory(task.taxonomy, ScoreThresholds(default=0.0)), list[tuple[int, int]]()
    for frame in recording.frames():
        seen = runtime.step(frame)
        tracks, before = seen.states["detection"], everything.update(frame, seen.prediction.results["detection"])
        np.testing.assert_array_equal(tracks.ids, before.ids)  # every track is followed all the same
        assert tracks.confirmed[before.confirmed & (before.boxes.scores >= 0.4)].all()
        assert (tracks.boxes.scores[tracks.confirmed] >= FADED * task.config.score_thresholds.default).all()
        counts.append((before.confirmed.sum(), tracks.confirmed.sum()))
    before, now = np.mean(counts[5:], axis=0)
    assert 0 < now < before / 2


@pytest.mark.slow("a real sweep has 114,000 points, and the network of KITTI is exported")
def test_a_network_without_its_only_sensor_is_down(tmp_path: Path) -> None:
    """Pictures of a camera that it does not use go on, and make no frames of empty clouds."""
    with Reader(drive_of_kitti(0.1035)) as reader:
        messages = [
            Sent(connection.topic, connection.msgtype, time // 1000, data)
            for connection, time, data in reader.messages()
            if connection.topic != "/velodyne/points" or time < reader.start_time + 800_000_000
        ]
    sweeps = sum(each.topic == "/velodyne/points" for each in messages)
    drive = driving(messages, tmp_path, Runtime(bundle_of_kitti(), checks=False, threads=1), topics(), rate=1.0)
    drive.require_outcomes()
    assert drive.driven.announced == sweeps < SWEEPS
    assert "silent" in {each.code for each in drive.driven.status.reasons}
    assert drive.driven.status.state == "DOWN"


@pytest.mark.slow("a real sweep has 114,000 points, and the network of KITTI is exported")
def test_frames_whose_poses_are_lost_hold_the_latest_one_and_are_counted(tmp_path: Path) -> None:
    """Those of half a second, which begins 30 ms before a sweep or so; also the last frame has no later pose."""
    delays = {"/velodyne/points": 55_000, "/odometry": 5_000, "/camera/color/left/image_rect/compressed": 20_000}
    with Reader(drive_of_kitti(0.1035)) as reader:
        every = [Sent(each.topic, each.msgtype, time // 1000, data) for each, time, data in reader.messages()]
    stamps = {topic: [each.time - delay for each in every if each.topic == topic] for topic, delay in delays.items()}
    sweeps, poses, pictures = stamps.values()
    lost = [each for each in poses if sweeps[8] - 30_000 < each < sweeps[8] + 500_000]
    left = sorted({*poses} - {*lost})
    expected = Counter[str]()
    for sweep, picture in zip(sweeps, pictures, strict=True):
        newest = max(each for each in left if each <= sweep)
        later = any(picture <= each < newest + 450_000 for each in left)  # so that it comes while the frame waits
        held = max((each - newest for each in (sweep, picture) if each - newest <= 50_000), default=0)
        expected["stale" if held > 20_000 else "extrapolated"] += held > 0 and not later
    assert expected["stale"]
    kept = [each for each in every if each.topic != "/odometry" or each.time - 5_000 not in lost]
    runtime, recording = Runtime(bundle_of_kitti(), checks=False, threads=1), recorded(tmp_path, kept)
    replay = RecordedDrive(recording, topics(), runtime.bundle.spec)
    assert sum(1 for _ in replay.frames()) + replay.counts.unposed_frames == SWEEPS
    drive = driving(recording, tmp_path / "live", runtime, topics(), rate=0.4)
    drive.require_outcomes()
    for counts in (replay.counts.summary(), drive.driven.counts):
        for kind in ("extrapolated", "stale"):
            assert counts.get(kind, {}) == ({"/odometry": expected[kind]} if expected[kind] else {})
    assert drive.watch.first("DEGRADED", "stale", "/odometry") < float("inf")


@pytest.mark.slow("a real sweep has 114,000 points; a driving process")
def test_a_process_that_listens_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stamps go on at the recorded pace, while what is sent comes at a third of it."""
    recording, bundle, options = drive_of_kitti(0.1035), bundle_of_kitti(), ["--threads", "1"]
    for name, content in (("topics", {"wait": PATIENT}), ("policy", {"lateness": PATIENT})):
        known = yaml.safe_load(topics_of_kitti().read_text()) if name == "topics" else {}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(known | content))
        options += [f"--{name}", str(tmp_path / f"{name}.yaml")]
    here, there = network(tmp_path)
    driver = driving_process(tmp_path / "live", here, *options, network=bundle)
    for name, value in there.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("deploy.live.zenoh._DISCOVERY", 60.0)  # s; a loaded machine takes long to start a process
    with closing(Zenoh()) as zenoh:
        send(recording, zenoh)
    driver.send_signal(signal.SIGTERM)
    said, errors = driver.communicate(timeout=60)
    assert driver.returncode == 0, errors
    lines = [json.loads(line) for line in (tmp_path / "live" / "frames.jsonl").read_text().splitlines()]
    outcomes = Counter(line["outcome"] for line in lines)
    assert outcomes.total() == SWEEPS, said
    assert outcomes.keys() <= {"perceived", "superseded"}  # the latter on a machine that is not fast enough
    replay = replayed(recording, tmp_path / "replay", topics_of_kitti(), bundle)
    expected = json.loads((replay / "results.json").read_text())["results"]
    results = json.loads((tmp_path / "live" / "results.json").read_text())["results"]
    assert len(results) == outcomes["perceived"] > 0
    for token, found in results.items():
        drive, stamp = token.split("@")
        assert (
            json.loads(json.dumps(found).replace(f"{drive}@", f"{recording.stem}@"))
            == (expected[f"{recording.stem}@{stamp}"])
        )


def send(recording: Path, zenoh: Zenoh) -> None:
    """Send what rosbags reads, as it is, at a third of its pace."""
    with Reader(recording) as reader:
        for connection in reader.connections:
            zenoh.advertise(connection.topic, connection.msgtype)
        zenoh.wait_for_subscribers()
        first, begin = 0, time.monotonic()
        for connection, stamp, data in reader.messages():
            first = first or stamp
            time.sleep(max(0.0, begin + 3e-9 * (stamp - first) - time.monotonic()))
            zenoh.publish(connection.topic, connection.msgtype, data)
    time.sleep(2)  # what was sent last must arrive, and be perceived
