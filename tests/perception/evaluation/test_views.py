"""A network that looks one way, on the views of a vehicle: closed forms, simulated drives, and a recorded one."""

import json
from pathlib import Path

import kitti_reference as kitti
import numpy as np
import pytest
from commands import one_line_error, refuses, succeeds
from exported import checkpoint_of
from made_up import make_boxes
from networks import LITTLE
from repository import ROOT
from rich.console import Console
from vocabulary import NUSCENES, RIG

from deploy.export import export
from perception.config import Lidar, parse_config
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.views import Views
from perception.evaluation.evaluate import evaluate
from perception.evaluation.predictions import look_to
from perception.frame import Frame, Prediction, View
from perception.grid import BevGrid
from perception.mmdet3d.importing import import_pointpillars
from perception.sensors.inputs import InputSpec
from perception.tasks import TASKS
from perception.tasks.detection.config import DetectionHead
from perception.tasks.task import Task

AHEAD = BevGrid(x=(0.0, 32.0), y=(-12.8, 12.8))
SPEC = InputSpec(AHEAD, Lidar(sweeps=0), camera=None, rig=RIG, truth=("boxes", "bicycle_racks"))
DETECTION: dict[str, Task] = {"detection": TASKS["detection"](DetectionHead(), AHEAD, NUSCENES)}
VIEWS: tuple[View, ...] = ("front", "rear")


def perfect(frame: Frame) -> Prediction:
    """What is annotated and was hit, on the grid ahead alone."""
    boxes = frame.truth["boxes"].transformed(np.linalg.inv(frame.global_from_reference))
    seen = AHEAD.inside(boxes.centers * [1, 1, 0]) & (boxes.num_points != 0)
    return Prediction({"detection": boxes.select(seen)})


def score(tables: NuScenesTables, out: Path, views: tuple[View, ...]) -> dict:
    seeing = look_to(views, perfect, SPEC, DETECTION)
    return evaluate(seeing, tables, "all", (), out, SPEC, Console(quiet=True))


def scored(tables: NuScenesTables) -> np.ndarray:
    """(N, 2) x and y (m, of the vehicle) of all objects that nuScenes scores; no drive here has bicycle racks."""
    places = []
    for token in tables.samples():
        recording = tables.recording(token)
        boxes = recording.annotated("boxes").transformed(np.linalg.inv(recording.global_from_ego))
        reach = np.array([each.range for each in NUSCENES.classes])[boxes.labels]
        counted = (np.hypot(*boxes.centers[:, :2].T) < reach) & (boxes.num_points != 0)
        places.append(boxes.centers[counted, :2])
    return np.concatenate(places)


def test_a_view_is_the_frame_turned_by_half(tables: NuScenesTables) -> None:
    token = tables.samples()[0]
    frame = tables.frame(token, Reads("ego"))
    rear = Views(tables, VIEWS).frame(f"{token}-rear", Reads("ego"))
    assert (rear.token, rear.scene, rear.timestamp) == (f"{token}-rear", frame.scene, frame.timestamp)
    np.testing.assert_array_equal(rear.points, frame.points * np.array([-1, -1, 1, 1, 1], np.float32))
    np.testing.assert_array_equal(rear.boxes.centers, frame.boxes.centers * [-1, -1, 1])
    np.testing.assert_array_equal(rear.boxes.velocities, frame.boxes.velocities * [-1, -1, 1])
    turned = (rear.boxes.yaws - frame.boxes.yaws) % (2 * np.pi)
    np.testing.assert_allclose(turned, np.pi, atol=1e-12)
    here, there = (np.column_stack([each.boxes.centers, np.ones(len(each.boxes))]) for each in (frame, rear))
    np.testing.assert_allclose(there @ rear.global_from_reference.T, here @ frame.global_from_reference.T, atol=1e-9)
    for name in frame.cameras:
        pixels = here @ frame.image_from_reference(name).T
        np.testing.assert_allclose(there @ rear.image_from_reference(name).T, pixels, rtol=1e-9, atol=1e-6)
    again = rear.facing("rear")
    np.testing.assert_array_equal(again.points, frame.points)
    np.testing.assert_array_equal(again.global_from_reference, frame.global_from_reference)
    np.testing.assert_array_equal(again.boxes.rotations, frame.boxes.rotations)


def test_each_keyframe_is_there_once_for_each_view(tables: NuScenesTables) -> None:
    views, scene = Views(tables, VIEWS), tables.scenes()[0]
    tokens = tables.samples(selectors=[f"{scene}:0-2"])
    seen = [tokens[0], f"{tokens[0]}-rear", tokens[1], f"{tokens[1]}-rear"]
    assert views.samples(selectors=[f"{scene}:0-2"]) == seen
    assert {views.scene(each) for each in seen} == {scene}
    assert views.conditions(seen[1]) == tables.conditions(tokens[0])
    assert views.recording(seen[3]).token == tokens[1]


@pytest.mark.parametrize("views", [VIEWS, ("front",), ("rear",)])
def test_all_that_a_view_covers_is_scored_and_the_rest_counted(tables, tmp_path, views):
    scores, (x, y) = score(tables, tmp_path, views), scored(tables).T
    ahead = np.any([{"front": x, "rear": -x}[view] >= 0 for view in views], axis=0)
    covered = ahead & (np.abs(x) < 32) & (np.abs(y) < 12.8)
    assert 0 < covered.sum() < len(x)
    assert sum(scores["ground_truth"].values()) == covered.sum()
    assert sum(scores["left_out"].values()) == (~covered).sum()
    assert scores["mAP_present"] == pytest.approx(1)
    for name, count in scores["ground_truth"].items():
        assert {*scores["label_recalls"][name].values()} == {1.0 if count else None}


def test_without_views_all_objects_count(tables: NuScenesTables, tmp_path: Path) -> None:
    scores = score(tables, tmp_path, ())
    assert sum(scores["ground_truth"].values()) == len(scored(tables))
    assert "left_out" not in scores


def test_an_object_that_two_views_see_is_detected_once() -> None:
    """Beside the vehicle each view sees a part of it; another one stands too far away to be the same."""
    front = make_boxes([[0.3, 5.0, 1.0], [9.0, 5.0, 1.0]], scores=[0.6, 0.5])
    rear = make_boxes([[0.2, -5.0, 1.0]], yaws=np.pi, scores=0.9)
    joined = DETECTION["detection"].join_views({"front": front, "rear": rear})
    np.testing.assert_allclose(joined.centers, [[-0.2, 5, 1], [9, 5, 1]], atol=1e-12)
    np.testing.assert_allclose(np.cos(joined.yaws), 1)
    assert joined.scores.tolist() == [0.9, 0.5]


def test_a_task_of_one_view_and_unknown_views_are_refused(tmp_path: Path) -> None:
    with one_line_error("the task map cannot join them"):
        TASKS["map"](TASKS["map"].Config(), AHEAD, NUSCENES).join_views({})
    given = ("evaluate", tmp_path, "--data", tmp_path, "--out", tmp_path / "e", "--views")
    for wrong in ("back", "", "rear,rear"):
        assert "write one or more of front, rear" in refuses(*given, wrong)


def test_the_cars_behind_a_recorded_vehicle_are_found(tmp_path: Path, pandaset_root: Path) -> None:
    """By the network for KITTI, which sees only what is ahead, on a quarter of its area."""
    text = (ROOT / "configs" / "kitti" / "pointpillars.yaml").read_text()
    for whole, part in (("69.12", "34.56"), ("39.68", "19.84"), ("16000", "8000")):
        text = text.replace(whole, part)
    (tmp_path / "near.yaml").write_text(text)
    import_pointpillars(tmp_path / "near.yaml", kitti.weights_file(), tmp_path / "run")
    drive = ("--data", pandaset_root, "--scenes", "002:24-25", "--out", tmp_path / "evaluation")
    succeeds("evaluate", tmp_path / "run", *drive, "--views", "rear")  # instead of both, as in its configuration
    found = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert found["ground_truth"]["car"] > 10
    assert found["mean_dist_aps"]["car"] > 0.5


@pytest.mark.slow("exports a network")
def test_a_replay_has_the_boxes_of_an_evaluation_in_all_views(tmp_path: Path, sim_root: Path) -> None:
    content = LITTLE | {"name": "ahead", "tasks": {"detection": {"channels": 8, "top_k": 20}}}
    content |= {"grid": {"x": [0.0, 25.6], "y": [-12.8, 12.8]}, "data": {"views": VIEWS}}
    made = export(checkpoint_of(parse_config(content, "ahead")), tmp_path / "bundle", console=Console(quiet=True))
    scenes = ("--scenes", "scene-0001", "--out")
    succeeds("evaluate", made.path, "--data", sim_root, "--split", "all", *scenes, tmp_path / "evaluation")
    succeeds("replay", sim_root, "--bundle", made.path, *scenes, tmp_path / "replay")
    files = tmp_path / "evaluation" / "results_nusc.json", tmp_path / "replay" / "results.json"
    evaluated, driven = (json.loads(file.read_text())["results"] for file in files)
    assert driven == evaluated
    tables = NuScenesTables(sim_root, "v1.0-sim")
    for token, boxes in driven.items():
        places = np.array([[*box["translation"], 1] for box in boxes])
        ahead = (places @ np.linalg.inv(tables.recording(token).global_from_ego).T)[:, 0]
        assert (ahead > 0).any()
        assert (ahead < 0).any()
