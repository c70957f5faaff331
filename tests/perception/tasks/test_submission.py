"""The submission writer: attributes, the global frame, limits, and files that are whole or absent."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.eval.detection.utils import detection_name_to_rel_attributes
from nuscenes.utils.data_classes import Box
from pyquaternion import Quaternion
from vocabulary import ATTRIBUTES, CLASSES, NUSCENES

from perception.errors import InputError
from perception.frame import Boxes, Frame
from perception.tasks.detection.attributes import fitting_attributes
from perception.tasks.detection.submission import SubmissionWriter, sample_results

angles = st.floats(-math.pi, math.pi)


def a_frame(token: str = "sample", pose: np.ndarray | None = None) -> Frame:
    pose = np.eye(4) if pose is None else pose
    return Frame(token, 0, "ego", pose, pose, points=None, cameras={})


def detections(n: int, seed: int = 0) -> Boxes:
    rng = np.random.default_rng(seed)
    return Boxes.from_yaws(
        centers=rng.uniform(-50, 50, (n, 3)),
        sizes=rng.uniform(0.3, 5, (n, 3)),
        yaws=rng.uniform(-np.pi, np.pi, n),
        velocities=rng.normal(0, 3, (n, 2)),
        labels=rng.integers(0, len(CLASSES), n),
        attributes=rng.integers(-1, len(ATTRIBUTES), n),
        scores=rng.permutation(n) / n,
    )


def write(path: Path, *pairs: tuple[Frame, Boxes]) -> dict:
    with SubmissionWriter.open(path, ["lidar"], NUSCENES) as submission:
        for frame, boxes in pairs:
            submission.add(frame, boxes)
    return json.loads(path.read_text())


def attribute_of(name: str, attribute: int, speed: float) -> str:
    columns = (np.array([each]) for each in (CLASSES.index(name), attribute, speed))
    return (*ATTRIBUTES, "")[fitting_attributes(*columns, NUSCENES)[0]]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("attribute", range(-1, len(ATTRIBUTES)))
@pytest.mark.parametrize("speed", [0.0, 5.0, math.nan])
def test_attribute_is_one_that_the_devkit_allows_for_the_class(name: str, attribute: int, speed: float) -> None:
    allowed = detection_name_to_rel_attributes(name)
    found = attribute_of(name, attribute, speed)
    assert found in (allowed or [""])
    if attribute >= 0 and ATTRIBUTES[attribute] in allowed:
        assert found == ATTRIBUTES[attribute]


@pytest.mark.parametrize(
    ("name", "still", "moving"),
    [
        ("car", "vehicle.parked", "vehicle.moving"),
        ("truck", "vehicle.parked", "vehicle.moving"),
        ("trailer", "vehicle.parked", "vehicle.moving"),
        ("construction_vehicle", "vehicle.parked", "vehicle.moving"),
        ("bus", "vehicle.stopped", "vehicle.moving"),
        ("bicycle", "cycle.without_rider", "cycle.with_rider"),
        ("motorcycle", "cycle.without_rider", "cycle.with_rider"),
        ("pedestrian", "pedestrian.standing", "pedestrian.moving"),
        ("barrier", "", ""),
        ("traffic_cone", "", ""),
    ],
)
def test_default_attribute_follows_the_speed(name: str, still: str, moving: str) -> None:
    misfit = ATTRIBUTES.index("cycle.with_rider" if name == "pedestrian" else "pedestrian.moving")
    for attribute in (-1, misfit):
        assert attribute_of(name, attribute, 0.2) == still
        assert attribute_of(name, attribute, 0.21) == moving


@given(yaw=angles, pitch=st.floats(-0.3, 0.3), seed=st.integers(0, 99))
def test_boxes_are_moved_to_the_global_frame_as_the_devkit_moves_them(yaw: float, pitch: float, seed: int) -> None:
    turn = Quaternion(axis=[0, 0, 1], radians=yaw) * Quaternion(axis=[0, 1, 0], radians=pitch)
    pose = turn.transformation_matrix
    pose[:3, 3] = 600, 1600, 0.5
    boxes = detections(3, seed)
    entries = sample_results(a_frame(pose=pose), boxes, NUSCENES)
    best_first = np.argsort(-boxes.scores)
    for i, entry in zip(best_first, entries, strict=True):
        box = Box(
            boxes.centers[i],
            boxes.sizes[i],
            Quaternion(matrix=boxes.rotations[i]),
            velocity=tuple(boxes.velocities[i]),
        )
        box.rotate(turn)
        box.translate(pose[:3, 3])
        np.testing.assert_allclose(entry["translation"], box.center, atol=1e-9)
        np.testing.assert_allclose(entry["size"], box.wlh)
        np.testing.assert_allclose(entry["velocity"], box.velocity[:2], atol=1e-9)
        assert Quaternion.absolute_distance(Quaternion(entry["rotation"]), box.orientation) < 1e-9
        assert entry["detection_name"] == CLASSES[boxes.labels[i]]
        assert entry["detection_score"] == boxes.scores[i]


def test_the_devkit_reads_the_file(tmp_path: Path) -> None:
    content = write(tmp_path / "r.json", (a_frame("one"), detections(4)), (a_frame("two"), Boxes.none()))
    assert content["meta"] == {
        "use_camera": False,
        "use_lidar": True,
        "use_radar": False,
        "use_map": False,
        "use_external": False,
    }
    boxes = EvalBoxes.deserialize(content["results"], DetectionBox)
    assert boxes.sample_tokens == ["one", "two"]
    assert [len(boxes["one"]), len(boxes["two"])] == [4, 0]


def test_only_the_best_500_boxes_are_kept(tmp_path: Path) -> None:
    boxes = detections(700)
    entries = write(tmp_path / "r.json", (a_frame(), boxes))["results"]["sample"]
    assert [entry["detection_score"] for entry in entries] == sorted(boxes.scores, reverse=True)[:500]


def test_unknown_velocity_is_strict_json(tmp_path: Path) -> None:
    boxes = detections(2)
    boxes.velocities[:] = np.nan
    write(tmp_path / "r.json", (a_frame(), boxes))
    assert "NaN" not in (tmp_path / "r.json").read_text()


@pytest.mark.parametrize(
    ("field", "value"),
    [("centers", np.nan), ("velocities", np.inf), ("sizes", 0.0), ("sizes", np.inf), ("scores", np.nan)],
)
def test_a_broken_box_is_named_and_the_earlier_file_survives(tmp_path: Path, field: str, value: float) -> None:
    path = tmp_path / "r.json"
    before = write(path, (a_frame(), detections(2)))
    boxes = detections(5)
    getattr(boxes, field)[3] = value
    with pytest.raises(InputError, match="sample b: 1 of 5 predicted boxes are not finite or have no extent"):
        write(path, (a_frame("a"), detections(5)), (a_frame("b"), boxes))
    assert json.loads(path.read_text()) == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_sample_is_predicted_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sample one is predicted twice"):
        write(tmp_path / "r.json", (a_frame("one"), Boxes.none()), (a_frame("one"), Boxes.none()))


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write the submission"):
        write(tmp_path / "no" / "r.json", (a_frame(), Boxes.none()))
