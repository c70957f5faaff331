"""Replay: the same numbers as the predictor, every frame, and a report that needs nothing else."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import QUIET, bundle
from nuscenes.utils.geometry_utils import view_points
from pages import page_data, picture
from pyquaternion import Quaternion
from vocabulary import CAMERAS, NUSCENES

from deploy.replay import pictures
from deploy.replay.gates import Gates
from deploy.replay.latency import STAGES, Latency
from deploy.replay.run import replay
from deploy.replay.settings import Source
from deploy.runtime import Runtime
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.frame import Boxes, Camera, Frame
from perception.grid import BevGrid
from perception.tasks.detection.submission import sample_results
from perception.tasks.drawing import RasterLayer

SCENE = "scene-0103:2-8"  # all sensors twice, three times LiDAR only, then none


@pytest.fixture(scope="module")
def replayed(nuscenes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("replay") / "out"
    replay(Source(nuscenes_root, "v1.0-mini", [SCENE]), bundle().path, out, console=QUIET)
    return out


def test_results_are_the_predictors(nuscenes_root: Path, replayed: Path) -> None:
    tables, runtime = NuScenesTables(nuscenes_root, "v1.0-mini"), Runtime(bundle().path)
    submission = json.loads((replayed / "results.json").read_text())
    samples = tables.samples(selectors=[SCENE])
    frames = [tables.frame(sample, sweeps=runtime.bundle.spec.sweeps) for sample in samples]
    assert submission["results"] == {
        frame.token: sample_results(frame, runtime(frame).results["detection"], NUSCENES) for frame in frames
    }
    assert submission["meta"]["use_lidar"]
    assert submission["meta"]["use_camera"]


def test_latency_file(replayed: Path) -> None:
    latency = json.loads((replayed / "latency.json").read_text())
    assert latency["frames"] == 6
    assert list(latency["stages"]) == [*STAGES, "total"]
    for numbers in latency["stages"].values():
        assert 0 < numbers["p50"] <= numbers["p95"] <= numbers["p99"] <= numbers["max"]
    stages = {name: numbers["mean"] for name, numbers in latency["stages"].items()}
    assert stages.pop("total") == pytest.approx(sum(stages.values()), abs=0.01)


def test_latency_percentiles() -> None:
    latency = Latency()
    for i in range(101):
        frame = Frame("s", 0, "ego", np.eye(4), np.eye(4), None, {}, scene=str(i))
        latency.add(frame, dict.fromkeys(STAGES, 0.0) | {"read": i / 1e3, "memory": (100 - i) / 1e3})
    assert latency.summary()["deadline_misses"] is None  # no drive has two frames
    stages = latency.summary()["stages"]
    assert stages["read"] == {"p50": 50, "p95": 95, "p99": 99, "mean": 50, "max": 100}
    assert stages["memory"]["p95"] == 95
    assert stages["total"]["p99"] == 100


def test_report_has_the_verdict(sim_root: Path, tmp_path: Path) -> None:
    gates = Gates.model_validate({"gates": [{"metric": "dropped", "at_most": 0}, {"metric": "mAP", "at_least": 1}]})
    replay(Source(sim_root, "v1.0-sim", ["scene-0001"]), bundle().path, tmp_path, console=QUIET, gates=gates)
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert page_data(tmp_path / "report.html")["verdict"] == verdict
    assert [case["passed"] for case in verdict["cases"]] == [True, False]


def test_report_is_self_contained(replayed: Path) -> None:
    page = (replayed / "report.html").read_text()
    assert "://" not in page
    assert not re.search(r'(?:src|href)\s*=\s*["\'](?!data:)', page)
    assert "@import" not in page
    assert "url(" not in page


def test_report_shows_missing_sensors(replayed: Path) -> None:
    frames = page_data(replayed / "report.html")["frames"]
    assert [len(frame["cameras"]) for frame in frames] == [6, 6, 0, 0, 0, 0]
    assert [frame["points"] is not None for frame in frames] == [True] * 5 + [False]
    assert all(frame["layers"]["map"] for frame in frames)
    assert frames[0]["conditions"] == ["clear", "day", "boston"]
    assert frames[5]["seconds"] == pytest.approx(2.5, abs=0.1)  # keyframes come at 2 Hz


def test_report_counts_annotations_as_the_devkit_does(nuscenes_root: Path, replayed: Path) -> None:
    tables = NuScenesTables(nuscenes_root, "v1.0-mini")
    for frame in page_data(replayed / "report.html")["frames"]:
        boxes = tables.frame(frame["token"]).boxes
        near = (np.abs(boxes.centers[:, :2]) < 51.2).all(axis=1)
        assert len(frame["layers"]["annotations"]) == ((boxes.num_points > 0) & near).sum()


@pytest.mark.parametrize("reference", ["ego", "lidar"])
def test_points_map_and_boxes_meet_from_above(reference: Any) -> None:
    """A point, a map cell and a box at one place are drawn at one place, ahead up and left to the left."""
    grid = BevGrid(x=(-51.2, 51.2), y=(-51.2, 51.2), cell=0.8, reference=reference)
    place = np.array([20.4, 12.4, 1.0]) if reference == "ego" else np.array([-12.4, 20.4, 1.0])  # ahead, to the left
    points = np.array([[*place, 0, 0], [*place, 0, 0.05]], np.float32)
    frame = Frame("s", 0, reference, np.eye(4), np.eye(4), points, {})
    layer = np.zeros((6, 128, 128), np.float32)
    column, row = grid.continuous(place[None]).astype(int)[0]
    layer[0, row, column] = 1
    one = np.ones((1, 2))
    box = Boxes.from_yaws(
        place[None], np.array([[2.0, 4, 1.5]]), np.array([0.3]), one, one[0, :1], one[0, :1], one[0, :1]
    )

    expected = (51.2 - np.array([12.4, 20.4])) / 102.4  # share of the picture from its left and its top
    drawn = picture(pictures.points_picture(frame, grid, 512) or "")
    np.testing.assert_allclose(np.argwhere(drawn[..., 3])[:, ::-1] / 512, [expected], atol=1 / 512)
    assert drawn.max(axis=(0, 1)).tolist() == [*pictures.HEIGHT_COLOURS[4, ::-1], 255]  # 1 m up, of -0.5 to 4 m
    drawn = picture(pictures.raster_picture(RasterLayer("map", layer, grid, NUSCENES.map_colours())))
    np.testing.assert_allclose((np.argwhere(drawn[..., 3])[:, ::-1] + 0.5) / 128, [expected], atol=0.5 / 128)
    assert drawn[..., 2::-1].max(axis=(0, 1)).tolist() == [58, 74, 96]
    outline = pictures.box_outlines(box, reference)[0]
    np.testing.assert_allclose(outline[4], expected * 102.4 - 51.2)
    np.testing.assert_allclose(np.linalg.norm(outline[5] - outline[4]), 2.0)


def test_boxes_in_a_camera_are_the_devkits(nuscenes_root: Path) -> None:
    tables = NuScenesTables(nuscenes_root, "v1.0-mini")
    frame = tables.frame(tables.samples(selectors=["scene-0103:0-1"])[0])
    shown = 0
    for name in CAMERAS:
        camera = frame.cameras[name]
        camera_from_reference = (
            np.linalg.inv(camera.global_from_ego @ camera.ego_from_camera) @ frame.global_from_reference
        )
        edges = pictures.box_edges_resized(frame.boxes, frame.image_from_reference(name), camera.image.shape, 1600)
        for i, box in enumerate(frame.boxes.transformed(camera_from_reference).corners()):
            if box[:, 2].min() < 0.5:
                continue
            corners = view_points(box.T, camera.intrinsics, normalize=True)[:2].T
            inside = ((corners.max(axis=0) > 0) & (corners.min(axis=0) < [1600, 900])).all()
            assert (i in edges) == inside
            if inside:
                drawn = np.reshape(edges[i], (24, 2))
                assert {tuple(p) for p in drawn} == {tuple(p) for p in np.clip(corners.round(), -6400, 8000)}
                shown += 1
    assert shown > 20


def test_box_edges_end_at_the_cameras_plane() -> None:
    """A box that reaches behind the camera is cut at the near plane, one behind it is not drawn."""
    projection = np.array([[500.0, 0, 800, 0], [0, 500, 450, 0], [0, 0, 1, 0]])
    turn = Quaternion(axis=[0, 1, 0], degrees=90).rotation_matrix  # the heading along the camera's axis
    zeros = np.zeros(2)
    boxes = Boxes.from_yaws(
        np.array([[0.5, 0, 0], [0, 0, -9]]), np.full((2, 3), 4.0), zeros, np.zeros((2, 2)), zeros, zeros, zeros
    )
    boxes = replace(boxes, rotations=np.stack([turn] * 2))
    (drawn,) = pictures.box_edges_resized(boxes, projection, (900, 1600), 1600).items()
    assert drawn[0] == 0
    ends = np.reshape(drawn[1], (2 * 8, 2))  # four edges of the front face, four that are cut; the rear is behind
    np.testing.assert_array_equal(
        np.unique(ends[:, 1]), [450 - 2000 / 0.4, 450 - 1000 / 2, 450 + 1000 / 2, 450 + 2000 / 0.4]
    )


def test_unwritable_folder_is_one_line(nuscenes_root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the folder"):
        replay(Source(nuscenes_root, "v1.0-mini", [SCENE]), bundle().path, tmp_path / "file" / "out", console=QUIET)


def test_camera_picture_keeps_colours() -> None:
    image = np.zeros((900, 1600, 3), np.uint8)
    image[:] = (200, 60, 20)
    content = pictures.small_jpeg(Camera(image, np.eye(3), np.eye(4), np.eye(4), 0), 448)
    drawn = picture(pictures.data_uri("jpeg", content))
    assert drawn.shape == (252, 448, 3)
    np.testing.assert_allclose(drawn[100, 100, ::-1], (200, 60, 20), atol=3)
