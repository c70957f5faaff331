"""One interface for runs and bundles: arrays in, boxes out, as from files on the disk."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import exported
import numpy as np
import pytest
from commands import one_line_error, python, refuses, succeeds
from pages import page_data

from deploy.network import Network, Result, load, open_drives
from deploy.plot import plot
from perception.datasets.files import read_image, read_points
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables


@pytest.fixture(scope="module")
def bundle() -> Network:
    return load(exported.bundle().path)


def assert_close(a: Result, b: Result) -> None:
    assert len(a.boxes) == len(b.boxes) > 0
    np.testing.assert_allclose(a.boxes.scores, b.boxes.scores, atol=1e-4)
    np.testing.assert_array_equal(a.boxes.labels, b.boxes.labels)


@pytest.mark.slow("the first test that needs the bundle exports it")
def test_a_run_and_its_bundle_perceive_the_same(bundle: Network, tables: NuScenesTables) -> None:
    run = load(exported.checkpoint())
    frame = tables.frame(tables.samples()[0], Reads(bundle.spec.grid.reference, bundle.spec.sweeps))
    assert_close(run.predict(frame), bundle.predict(frame))


def test_arrays_make_the_frame_of_the_data_set(bundle: Network, tables: NuScenesTables) -> None:
    """But for earlier sweeps and times of the pictures, which arrays do not have."""
    token = tables.samples()[0]
    recording = tables.recording(token, reads := Reads(bundle.spec.grid.reference))
    expected = tables.frame(token, reads)
    made = bundle.frame(
        read_points(recording.lidars[0][0].path),
        {name: read_image(picture.path).image for name, picture in recording.pictures.items()},
        recording.global_from_ego,
        recording.timestamp,
        expected.conditions,
        token,
    )
    np.testing.assert_allclose(made.points, expected.points, atol=1e-4)
    np.testing.assert_allclose(made.global_from_reference, expected.global_from_reference, atol=1e-9)
    cameras = {
        name: replace(camera, global_from_ego=expected.global_from_ego) for name, camera in expected.cameras.items()
    }
    assert_close(bundle.predict(made), bundle.predict(replace(expected, cameras=cameras)))


def test_arrays_of_another_shape_are_refused(bundle: Network) -> None:
    points, image = np.zeros((9, 4), np.float32), np.zeros((450, 800, 3), np.uint8)
    with one_line_error(says="(9, 3)"):
        bundle.frame(points[:, :3])
    with one_line_error(says="CAM_MIDDLE"):
        bundle.frame(points, {"CAM_MIDDLE": image})
    with one_line_error(says="float64"):
        bundle.frame(points, {"CAM_FRONT": image.astype(float)})
    with one_line_error(says="LIDAR_BACK"):
        bundle.frame({"LIDAR_BACK": points})


def test_detections_stand_in_the_json_as_in_python(sim_root: Path, tmp_path: Path) -> None:
    """Of a data set: in metres in the frame's reference, with times and poses; the page shows as many."""
    network = load("demo")
    said = succeeds("predict", "demo", sim_root, "--scenes", "scene-0001", "--out", tmp_path, "--json")
    summary, content = json.loads(said), json.loads((tmp_path / "predictions.json").read_text())
    (drive,) = open_drives(sim_root, network, ["scene-0001"])
    frames = list(network.follow(drive))
    assert summary["frames"] == len(frames) == len(content["frames"]) == 3
    assert summary["without_pose"] == 0
    for (frame, result), written in zip(frames, content["frames"], strict=True):
        boxes = result.boxes
        assert (written["token"], written["timestamp"]) == (frame.token, frame.timestamp)
        np.testing.assert_array_equal(written["global_from_reference"], frame.global_from_reference)
        detections = written["detections"]
        np.testing.assert_allclose([each["center"] for each in detections], boxes.centers)
        np.testing.assert_allclose([each["size"] for each in detections], boxes.sizes[:, [1, 0, 2]])
        turned = np.array([[np.cos(each["yaw"]), np.sin(each["yaw"])] for each in detections])
        np.testing.assert_allclose(turned, boxes.rotations[:, :2, 0], atol=1e-5)
        assert [each["class"] for each in detections] == [network.taxonomy.class_names[i] for i in boxes.labels]
    assert [each["token"] for each in page_data(tmp_path / "report.html")["frames"]] == [
        each.token for each, _ in frames
    ]


def test_a_recording_is_perceived_as_the_data_set(sim_root: Path, tmp_path: Path) -> None:
    succeeds("log", sim_root, "--scene", "scene-0001", "--out", tmp_path / "drive.mcap")
    for what, out in ((sim_root, "a"), (tmp_path / "drive.mcap", "b")):
        scenes = ("--scenes", "scene-0001") if what == sim_root else ()
        succeeds("predict", "demo", what, *scenes, "--out", tmp_path / out)
    a, b = (json.loads((tmp_path / out / "predictions.json").read_text())["frames"] for out in "ab")
    scores = [[[each["score"] for each in frame["detections"]] for frame in frames] for frames in (a, b)]
    assert scores[0] == scores[1]


def test_a_plot_is_a_page_of_the_frame(bundle: Network, tables: NuScenesTables, tmp_path: Path) -> None:
    frame = tables.frame(tables.samples()[0], Reads(bundle.spec.grid.reference, bundle.spec.sweeps))
    result = bundle.predict(frame)
    plot(frame, result).save(tmp_path / "page.html")
    (shown,) = page_data(tmp_path / "page.html")["frames"]
    assert shown["token"] == frame.token


@pytest.mark.slow("exports a network with a memory")
def test_a_memory_remembers_the_frames_of_a_drive_alone(tables: NuScenesTables) -> None:
    network = load(exported.remembering().path)
    (drive, *_) = open_drives(tables.dataroot, network)
    followed = [result for _, result in network.follow(drive)]
    alone = [network.predict(frame) for frame in drive.frames()]
    np.testing.assert_array_equal(followed[0].boxes.scores, alone[0].boxes.scores)
    assert not np.array_equal(followed[-1].boxes.scores, alone[-1].boxes.scores)


def test_what_cannot_be_perceived_is_said(tmp_path: Path, sim_root: Path) -> None:
    assert "demo" in refuses("predict", tmp_path / "none", sim_root, "--out", tmp_path / "out")
    assert "bundle" in refuses("predict", "demo", sim_root, "--rig", "truck", "--out", tmp_path / "out")


def test_a_vehicle_needs_no_torch_to_predict(sim_root: Path) -> None:
    code = f"""
from deploy.network import load, open_drives
network = load("demo")
drive = open_drives({str(sim_root)!r}, network)[0]
print(sum(len(result.boxes) for _, result in network.follow(drive)))
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


USED = """
import sys, perception
assert "numpy" not in sys.modules
import numpy as np
network = perception.load("demo")
assert isinstance(network, perception.Network)
points = np.random.default_rng(0).uniform((-20, -20, 0, 0), (20, 20, 2, 255), (5000, 4)).astype(np.float32)
frame = network.frame(points)
assert isinstance(frame, perception.Frame)
result = network.predict(frame)
assert isinstance(result, perception.Result) and isinstance(result.boxes, perception.Boxes)
perception.plot(frame, result).save(sys.argv[1])
from perception import *
assert {"load", "open_drives", "plot", "Frame", "Camera", "Conditions"} <= {*dir(perception)} & {*globals()}
assert "torch" not in sys.modules
try:
    perception.nothing
except AttributeError as error:
    assert "nothing" in str(error)
else:
    raise AssertionError
"""


def test_the_package_has_few_names_which_take_no_time_until_they_are_used(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", USED, tmp_path / "frame.html"], check=True)
    assert len(page_data(tmp_path / "frame.html")["frames"]) == 1
