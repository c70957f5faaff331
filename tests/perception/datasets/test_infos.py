"""Infos of mmdet3d give the frames that the tables give, in every layout and convention."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from infos import new_infos, old_infos, write_infos
from nuscenes import NuScenes
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.utils.data_classes import Box
from nuscenes.utils.geometry_utils import BoxVisibility
from repository import ROOT
from rich.console import Console
from vocabulary import NUSCENES, RIG

from perception.config import Lidar, load_config, parse_config
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.evaluation.evaluate import evaluate
from perception.frame import Boxes, Conditions, Frame, Prediction
from perception.grid import BevGrid
from perception.mmdet3d.infos import Infos
from perception.sensors.inputs import InputSpec
from perception.tasks.detection.columns import read_submission
from perception.tasks.detection.metric import DetectionMetric
from perception.training.loader import FrameDataset, batches

LAYOUTS = ("since 1.1", "1.0", "before 1.0")


@dataclass(frozen=True)
class Sources:
    tables: NuScenesTables
    devkit: NuScenes
    infos: Infos
    layout: str
    folder: Path


def infos_in(folder: Path, root: Path, devkit: NuScenes, layout: str) -> Infos:
    """Infos beside links to the files of a dataroot."""
    for name in ("samples", "sweeps"):
        (folder / name).symlink_to(root / name)
    old = old_infos(devkit, old_boxes=layout == "before 1.0")
    return Infos(write_infos(folder / "nuscenes_infos_val.pkl", new_infos(old) if layout == "since 1.1" else old))


@pytest.fixture(scope="module")
def opened(keyframes: tuple[Path, str]) -> tuple[Path, NuScenesTables, NuScenes]:
    root, version = keyframes
    return root, NuScenesTables(root, version), NuScenes(version, str(root), verbose=False)


@pytest.fixture(scope="module", params=LAYOUTS)
def sources(opened: Any, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    root, tables, devkit = opened
    folder = tmp_path_factory.mktemp("infos")
    return Sources(tables, devkit, infos_in(folder, root, devkit, request.param), request.param, folder)


def lidar_boxes(devkit: NuScenes, sample: str) -> list[Box]:
    """The devkit's boxes of the ten classes in the LiDAR's frame."""
    boxes = devkit.get_sample_data(devkit.get("sample", sample)["data"]["LIDAR_TOP"], BoxVisibility.NONE)[1]
    return [box for box in boxes if category_to_detection_name(box.name)]


def test_the_same_keyframes_in_the_same_order(sources: Sources) -> None:
    assert set(sources.infos.samples()) == set(sources.tables.samples())
    for scene in sources.tables.scenes():
        tokens = sources.tables.samples(selectors=[scene])
        (drive,) = {sources.infos.scene(token) for token in tokens}
        assert sources.infos.samples(selectors=[drive]) == tokens
        assert sources.infos.samples(None, [f"{drive}:1-3"]) == tokens[1:3]
    assert [sources.infos.timestamp(t) for t in sources.tables.samples()] == [
        sources.tables.timestamp(t) for t in sources.tables.samples()
    ]


@pytest.mark.parametrize("reference", ["ego", "lidar"])
def test_frames_equal_the_tables(sources: Sources, reference: Any) -> None:
    """Poses since 1.1 are float32, of kilometres: what goes through them differs by 0.1 mm, all else by 1e-6."""
    places = 1e-4 if sources.layout == "since 1.1" else 1e-9
    seen = 0
    for token in sources.tables.samples():
        ours, theirs = (each.frame(token, reference, sweeps=3) for each in (sources.infos, sources.tables))
        assert (ours.token, ours.timestamp, ours.reference) == (theirs.token, theirs.timestamp, theirs.reference)
        np.testing.assert_allclose(ours.global_from_ego, theirs.global_from_ego, atol=places)
        np.testing.assert_allclose(ours.global_from_reference, theirs.global_from_reference, atol=places)
        assert (ours.points is None) == (theirs.points is None)
        if ours.points is not None and theirs.points is not None:
            # Points are float32, of up to 100 m: the spacing of those is 8e-6.
            np.testing.assert_allclose(ours.points[:, :3], theirs.points[:, :3], atol=2e-5)
            np.testing.assert_array_equal(ours.points[:, 3:], theirs.points[:, 3:])
            seen += 1
        assert ours.cameras.keys() == theirs.cameras.keys()
        for name in ours.cameras:
            _assert_same_camera(ours, theirs, name, places)
    assert seen >= 6


def _assert_same_camera(ours: Frame, theirs: Frame, name: str, places: float) -> None:
    a, b = ours.cameras[name], theirs.cameras[name]
    assert a.timestamp == b.timestamp
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.intrinsics, b.intrinsics)
    np.testing.assert_allclose(a.ego_from_camera, b.ego_from_camera, atol=1e-6)
    np.testing.assert_allclose(a.global_from_ego, b.global_from_ego, atol=places)
    projections = [each.image_from_reference(name) for each in (ours, theirs)]
    np.testing.assert_allclose(projections[0], projections[1], rtol=1e-5, atol=2e-3)  # focal length 1266, m: 2e-6


def test_boxes_equal_the_devkits(sources: Sources) -> None:
    """In the LiDAR's frame, where infos have them upright."""
    seen = 0
    for token in sources.tables.samples():
        truth = sources.tables.boxes(token)
        ours = sources.infos.frame(token, "lidar", lidar=False, cameras=False).boxes
        theirs = lidar_boxes(sources.devkit, token)
        assert len(ours) == len(theirs)
        for i, box in enumerate(theirs):
            np.testing.assert_allclose(ours.centers[i], box.center, atol=1e-6)
            np.testing.assert_allclose(ours.sizes[i], box.wlh, atol=1e-12)
            turn = ours.yaws[i] - box.orientation.yaw_pitch_roll[0]
            assert abs(np.angle(np.exp(1j * turn))) < 1e-6
            seen += 1
        global_from_lidar = sources.tables.frame(token, "lidar", lidar=False, cameras=False).global_from_reference
        flat = truth.velocities * [1, 1, 0]
        np.testing.assert_allclose(ours.velocities[:, :2], (flat @ global_from_lidar[:3, :3])[:, :2], atol=1e-6)
        np.testing.assert_array_equal(ours.labels, truth.labels)
        np.testing.assert_array_equal(ours.num_points, truth.num_points)
        moved = sources.infos.boxes(token)
        np.testing.assert_allclose(moved.centers, truth.centers, atol=2e-4)
    assert seen > 20


class Detector:
    """Finds the annotated boxes out of place, among others that are nowhere; always the same ones in a keyframe."""

    def __init__(self, tables: NuScenesTables) -> None:
        self.tables = tables

    def __call__(self, frame: Frame) -> Prediction:
        boxes = self.tables.frame(frame.token, frame.reference, lidar=False, cameras=False).boxes
        rng = np.random.default_rng(frame.timestamp)
        boxes = boxes.select(rng.integers(0, len(boxes), 2 * len(boxes)))
        spread = np.where(rng.random((len(boxes), 1)) < 0.6, 0.5, 5.0)
        boxes = replace(
            boxes,
            centers=boxes.centers + spread * rng.normal(0, 1, boxes.centers.shape),
            sizes=boxes.sizes * rng.uniform(0.8, 1.2, boxes.sizes.shape),
            scores=rng.uniform(0.01, 1, len(boxes)),
        )
        return Prediction({"detection": boxes})


def test_scores_equal_those_of_the_tables(sources: Sources, tmp_path: Path) -> None:
    """By the devkit there, by our own numpy here; only attributes are not known, and their error counts as 1."""
    spec = InputSpec(BevGrid(), Lidar(sweeps=0), camera=None, rig=RIG)
    results = [
        evaluate(Detector(sources.tables), source, None, [], tmp_path / source.version, spec, Console(quiet=True))
        for source in (sources.tables, sources.infos)
    ]
    tables, infos = results
    assert tables["mAP"] > 0.02
    np.testing.assert_allclose(infos["mAP"], tables["mAP"], atol=1e-6)
    assert infos["ground_truth"] == tables["ground_truth"]
    for error in ("trans_err", "scale_err"):
        np.testing.assert_allclose(infos["tp_errors"][error], tables["tp_errors"][error], atol=1e-5)
    # The LiDAR is tilted: a yaw in its frame is not that on the ground, and infos lack the third part of velocities.
    for error in ("orient_err", "vel_err"):
        np.testing.assert_allclose(infos["tp_errors"][error], tables["tp_errors"][error], atol=2e-3)
    assert infos["tp_errors"]["attr_err"] == 1
    attributes = 0.1 * tables["tp_scores"]["attr_err"]
    np.testing.assert_allclose(infos["NDS"], tables["NDS"] - attributes, atol=4e-4)
    assert json.loads((tmp_path / sources.infos.version / "metrics.json").read_text()) == infos


def test_scores_are_those_of_the_submission_that_was_written(opened: Any, tmp_path: Path) -> None:
    tables = opened[1]
    spec, samples = InputSpec(BevGrid(), Lidar(sweeps=0), camera=None, rig=RIG), tables.samples()
    found = evaluate(Detector(tables), tables, None, [], tmp_path, spec, Console(quiet=True))
    metric = DetectionMetric(tables, spec.grid)
    for token in samples:
        metric.add(tables.frame(token, annotations=False, lidar=False, cameras=False), Boxes.none())
    written = read_submission(tmp_path / "results_nusc.json", {token: i for i, token in enumerate(samples)}, NUSCENES)
    metric.detections = written.counted(metric.egos, metric.bicycle_racks, NUSCENES)
    of_file = metric.scores()
    assert of_file.keys() < found.keys()
    _assert_close(of_file, {key: found[key] for key in of_file})


def _assert_close(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            _assert_close(ours[key], value)
    else:
        assert ours == theirs if theirs is None else abs(ours - theirs) < 1e-9


def test_training_sees_the_same_batches(sources: Sources) -> None:
    content = load_config(ROOT / "configs" / "tiny.yaml").model_dump()
    content["train"] |= {"steps": 2}
    content["data"] |= {"augment": None}
    config = parse_config(content, "test")
    tokens = [token for token in sources.tables.samples() if sources.tables.frame(token).cameras]
    ours, theirs = (list(batches(FrameDataset(s, tokens, config), config)) for s in (sources.infos, sources.tables))
    for a, b in zip(ours, theirs, strict=True):
        assert a.tokens == b.tokens
        assert a.inputs.keys() == b.inputs.keys()
        assert all(conditions == Conditions() for conditions in a.conditions)
        assert not a.labels["map"]["known"].any()
        for name in ("images", "pillar_counts"):
            np.testing.assert_array_equal(a.inputs[name], b.inputs[name])
        np.testing.assert_allclose(a.inputs["image_from_reference"], b.inputs["image_from_reference"], atol=2e-3)
        mine, other = a.labels["detection"], b.labels["detection"]
        for name in ("real", "groups", "cells"):
            np.testing.assert_array_equal(mine[name], other[name])
        for name in ("offset", "height"):  # of the centres, in cells of 0.8 m and in m
            np.testing.assert_allclose(mine[name], other[name], atol=1e-5 if name == "height" else 1e-5 / 0.8)
        np.testing.assert_array_equal(mine["heatmap"] == 1, other["heatmap"] == 1)  # which class, and where
