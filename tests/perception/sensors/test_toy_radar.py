"""A sensor goes the whole way, with no line of the product for it."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from commands import command, one_line_error
from exported import bundles_of
from live import KEYFRAMES, PATIENT, RESULTS, driving, log, recorded, replayed
from networks import LITTLE
from recordings import Sent, message, nuscenes_topics
from tiny import _SPEED as SPEED
from tiny import _START as START
from toy_radar import NAME, ROW, RadarDrives, RadarSensor, rig_with_radar

from deploy.bundle import Bundle
from deploy.precision.calibrate import Drives
from deploy.recordings.drives import RecordedDrive
from deploy.recordings.ros_types import header, point_cloud
from deploy.replay.faults import Fault, inject
from deploy.runtime import Runtime
from perception.config import Augment
from perception.datasets.keyframes import Reads
from perception.frame import Frame, Scan
from perception.predict import TorchPredictor
from perception.rig import load_rig
from perception.scene.admission import admit
from perception.sensors import SENSORS
from perception.training.augment import Augmentation
from perception.training.frame_cache import FrameCache

RIG = rig_with_radar(load_rig("nuscenes"))


@pytest.fixture(scope="module", autouse=True)
def _radar() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SENSORS, "radar", RadarSensor)
        yield


class Way(NamedTuple):
    run: Path
    bundle: Bundle
    frames: list[Frame]


@pytest.fixture(scope="module")
def way(_radar: None, tmp_path_factory: pytest.TempPathFactory, sim_root: Path) -> Way:
    """Trained, with a module for frames without the radar, and exported."""
    folder, given = tmp_path_factory.mktemp("radar"), copy.deepcopy(LITTLE)
    given["model"]["scanners"] = {"radar": {}}
    blind = {"name": "blind", "kind": "low_rank", "slots": ["radar.*", "trunk.*"], "rank": 2, "when": ["no-radar"]}
    train = {"steps": 30, "batch": 2, "learning_rate": 0.02, "drop": {"radar": 0.4}}
    content = given | {"name": "radar", "rig": RIG.model_dump(mode="json"), "modules": [blind], "train": train}
    (folder / "radar.yaml").write_text(yaml.safe_dump(content))
    data = ("--data", f"toy_radar:RadarDrives={sim_root}", "--split", "all")
    command("train", folder / "radar.yaml", *data, "--out", folder / "run")
    command("evaluate", folder / "run", *data, "--out", folder / "scores")
    bundle = bundles_of(folder / "run", folder, ("fp32",), Drives(sim_root, "v1.0-sim"))["fp32"]
    tables = RadarDrives(sim_root, None, None, None)
    frames = [tables.frame(token, Reads("ego")) for token in tables.samples()]
    return Way(folder / "run", bundle, frames)


def returns(frame: Frame) -> np.ndarray:
    return frame.scans[NAME].arrays["returns"]


def hidden(frame: Frame) -> Frame:
    return frame.without({NAME}, RIG.sensors.lidars)


@pytest.mark.slow("trains a network and exports it")
def test_what_runs_on_the_vehicle_is_what_was_trained_with_the_sensor_and_without(way: Way) -> None:
    command("verify", way.bundle.path)
    predictor, runtime = TorchPredictor.load(way.run), Runtime(way.bundle.path)
    changed = 0
    for frame in way.frames:
        for seen in (frame, hidden(frame)):
            step, expected = runtime.step(seen), predictor(seen)
            assert (step.route["blind"].weight > 0) == (not seen.scans)
            assert ("radar missing" in step.route["blind"].why) == (not seen.scans)
            for task in ("detection", "map"):
                arrays = [
                    runtime.bundle.manifest.heads[task].arrays(each.results[task])
                    for each in (step.prediction, expected)
                ]
                for name, values in arrays[0].items():
                    np.testing.assert_allclose(values, arrays[1][name], rtol=1e-3, atol=1e-3, err_msg=f"{task}/{name}")
        scores = [predictor(each).results["map"].mean() for each in (frame, hidden(frame))]
        changed += scores[0] != scores[1]
    assert changed == len(way.frames)


def test_engines_are_compared_on_scans_and_a_wrong_return_is_found(way: Way) -> None:
    golden = way.bundle.golden_frames()
    there = {frame.name: bool(frame.inputs["radar_returns"].any()) for frame in golden}
    assert (there["street"], there["street-partial"]) == (True, False)
    [described] = [each for each in way.bundle.manifest.inputs if each.name == "radar_returns"]
    assert (described.shape, described.unit) == ((1, 16, 5), "x y z m, vx vy m/s; zeros as padding")


def test_returns_move_with_the_boxes_when_a_frame_is_augmented(way: Way) -> None:
    settings = Augment(rotation=3.0, scale=0.3, translation=2.0)
    for seed, frame in enumerate(way.frames):
        moved = Augmentation(np.random.default_rng(seed), settings, None).apply(frame)
        assert moved.boxes is not None
        assert len(moved.boxes)
        np.testing.assert_allclose(returns(moved)[:, :3], moved.boxes.centers, atol=1e-4)
        np.testing.assert_allclose(returns(moved)[:, 3:], np.nan_to_num(moved.boxes.velocities[:, :2]), atol=1e-4)


def test_a_fault_takes_it_away(way: Way) -> None:
    fault = Fault.parse("drop:radar@0.5-1.0", RIG.sensors)
    start = way.frames[0].timestamp
    of_drive = [frame for frame in way.frames if frame.scene == way.frames[0].scene]
    for frame in inject(of_drive, [fault]):
        assert bool(frame.scans) != (0.5 <= 1e-6 * (frame.timestamp - start) < 1.0)
    with one_line_error(at="--fault noise:radar: radar cannot have noise"):
        Fault.parse("noise:radar", RIG.sensors)
    assert {*Fault.parse("freeze:all", RIG.sensors).sensors} == {*RIG.sensors.lidars, *RIG.sensors.cameras}
    assert NAME in Fault.parse("drop:all", RIG.sensors).sensors


def test_what_cannot_be_used_of_a_scan_is_missing_and_said(way: Way) -> None:
    frame, sensors = way.frames[0], RIG.sensors.of({"lidar", "camera", "radar"})
    right = frame.scans[NAME]
    for scans, found in (
        ({NAME: right}, {}),
        ({NAME: None}, {"scans": f"scans cannot be used: {NAME!r} is no scan"}),
        ({"RADAR_BACK": right}, {"scans": "'RADAR_BACK' is none of the network's"}),
        ({NAME: replace(right, timestamp=-1)}, {NAME: "timestamp cannot be used: -1"}),
        ({NAME: replace(right, arrays={"returns": np.full((1, 5), np.nan)})}, {NAME: "its numbers are not finite"}),
        ({NAME: right, "SONAR": replace(right, kind="sonar")}, {}),
    ):
        given: Any = scans
        admitted, findings = admit(replace(frame, scans=given), sensors, "ego", None)
        assert findings == found
        assert [*admitted.scans] == ([] if found else [NAME])


def test_a_cached_frame_has_scans_of_any_numbers(way: Way, sim_root: Path, tmp_path: Path) -> None:
    tables, token = RadarDrives(sim_root, None, None, None), way.frames[0].token
    arrays = {kind: np.arange(3).astype(kind) for kind in ("f2", "f4", "f8", "i1", "i4", "u2", "u4", "u8", "?")}
    exact = replace(tables.frame(token), scans={NAME: Scan("radar", 7, arrays)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "frame", lambda *_: exact)
        FrameCache(tmp_path, tables, Reads()).frame(token)
    cached = FrameCache(tmp_path, tables, Reads()).frame(token).scans[NAME]
    assert cached.timestamp == 7
    for kind, array in arrays.items():
        assert cached.arrays[kind].dtype == array.dtype
        np.testing.assert_array_equal(cached.arrays[kind], array)


LATE = 2_500  # us, from the stamps of sweeps to those of scans; between two poses
WORLD = np.array([[110.0, 52.0, 0.5], [94.0, 59.0, 1.0], [130.0, 30.0, 0.0]])  # m
MOUNTED = np.array([1.0, 0.0, 1.5])  # m, of the LiDAR on the vehicle


def radar_messages() -> list[Sent]:
    """What stands at WORLD, seen from where the LiDAR is, LATE after each of its sweeps."""
    found = []
    for time in [each.time + LATE for each in log() if each.topic == "/lidar_top"]:
        rows = np.zeros(len(WORLD), ROW)
        for axis, values in zip("xyz", (WORLD - place(time) - MOUNTED).T, strict=True):
            rows[axis] = values
        found.append(message("/radar_front", time, point_cloud(header(time, "lidar_top"), rows)))
    return found


def place(time: int) -> np.ndarray:
    """(3,) m, of the vehicle, which drives straight on."""
    return np.array([100 + SPEED * 1e-6 * (time - START), 50.0, 0.0])


@pytest.mark.slow("trains a network and exports it")
def test_a_drive_has_the_scans_of_a_recording_where_they_were_measured(way: Way, tmp_path: Path) -> None:
    recording = recorded(tmp_path, [*log(), *radar_messages()])
    topics = nuscenes_topics(keyframes=None, scanners={NAME: {"topic": "/radar_front"}})
    drive = RecordedDrive(recording, topics, way.bundle.spec)
    frames = list(drive.frames())
    assert len(frames) == KEYFRAMES
    assert drive.counts.summary()["missing"] == {}
    assert all(frame.scans[NAME].timestamp == frame.timestamp + LATE for frame in frames)
    for frame in frames:
        expected = WORLD - frame.global_from_reference[:3, 3]
        np.testing.assert_allclose(returns(frame), np.hstack([expected, np.zeros((3, 2))]), atol=1e-4)
    (tmp_path / "topics.yaml").write_text(topics.model_dump_json())
    expected_of = replayed(recording, tmp_path / "replay", tmp_path / "topics.yaml", way.bundle.path)
    patient = topics.model_copy(update={"wait": PATIENT})
    driven = driving(recording, tmp_path / "drive", Runtime(way.bundle.path, checks=False), patient)
    driven.require_outcomes()
    for name in RESULTS:
        assert (tmp_path / "drive" / name).read_bytes() == (expected_of / name).read_bytes()


def test_a_message_of_another_sensor_is_counted(way: Way, tmp_path: Path) -> None:
    wrong = [each for each in log() if each.topic == "/tf"][:3]
    messages = [each._replace(topic="/radar_front") for each in wrong]
    topics = nuscenes_topics(keyframes=None, scanners={NAME: {"topic": "/radar_front"}})
    drive = RecordedDrive(recorded(tmp_path, [*log(), *messages]), topics, way.bundle.spec)
    frames = list(drive.frames())
    assert not any(frame.scans for frame in frames)
    assert drive.counts.summary()["missing"] == {NAME: len(frames)}
    assert drive.counts.problems("corrupt") == {"/radar_front": len(messages)}
