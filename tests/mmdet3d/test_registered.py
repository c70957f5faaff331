"""Our model under MMEngine's Runner: mmdet3d's pipeline trains it and NuScenesMetric scores it as we do."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import QUIET
from made_up import keyframe
from mmdet3d.registry import DATASETS
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from runners import LOADING, runner_config, tiny
from torch import Tensor

from perception.checkpoint import save_model
from perception.config import find_config
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.evaluation.evaluate import evaluate
from perception.frame import Frame, Prediction
from perception.mmdet3d.registered import PerceptionDetector, _make_annotated_frame
from perception.model import batch_inputs
from perception.predict import TorchPredictor
from perception.sensors.inputs import prepare
from perception.sensors.lidar.sweeps import is_outside_roof
from perception.tasks.detection.targets import REGRESSION

PREFIX = "NuScenes metric/pred_instances_3d_NuScenes"
STEPS = 80  # enough for objects to be found, so that scores say something
SWEEPS = 5  # of tiny


@pytest.fixture(scope="module")
def trained(mini_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """A Runner that has fitted `tiny`, LiDAR and cameras, to the drives which it tests on. It takes two minutes."""
    work = tmp_path_factory.mktemp("work")
    model = {"type": "PerceptionDetector", "config": str(tiny(work))}
    runner = Runner.from_cfg(runner_config(mini_root, model, work, STEPS))
    runner.train()
    return runner


def own_scores(root: Path, predictor: TorchPredictor, out: Path, attributes: bool) -> dict[str, Any]:
    """What `perception evaluate` writes; without attributes they follow from the speed, as in mmdet3d's metric."""

    def predict(frame: Frame) -> Prediction:
        prediction = predictor(frame)
        boxes = prediction.results["detection"]
        without = replace(boxes, attributes=np.full(len(boxes), -1))
        return replace(prediction, results={**prediction.results, "detection": without})

    tables = NuScenesTables(root, "v1.0-mini")
    run = predictor if attributes else predict
    return evaluate(run, tables, "mini_val", [], out, predictor.spec, QUIET)


@pytest.mark.parametrize("metric", ["NuScenesMetric", "AttributeNuScenesMetric"])
def test_scores_equal_those_of_our_own_evaluation(trained: Runner, mini_root: Path, tmp_path: Path, metric: str):
    run = tmp_path / "run"
    save_model(run, trained.model.network.config, trained.model.network)
    ours = own_scores(mini_root, TorchPredictor.load(run), tmp_path / "ours", metric == "AttributeNuScenesMetric")

    config = runner_config(mini_root, {"type": "PerceptionDetector", "checkpoint": str(run)}, tmp_path)
    config.test_evaluator.type = metric
    theirs = Runner.from_cfg(config).test()

    losses, _ = trained.message_hub.get_scalar("train/loss").data
    assert len(losses) == STEPS
    assert np.mean(losses[15:20]) < 0.8 * np.mean(losses[:5])
    assert ours["mAP"] > 0.1
    assert theirs[f"{PREFIX}/mAP"] == pytest.approx(ours["mAP"], abs=1e-6)
    assert theirs[f"{PREFIX}/NDS"] == pytest.approx(ours["NDS"], abs=1e-6)


@pytest.fixture
def detector(tmp_path: Path) -> PerceptionDetector:
    return PerceptionDetector(config=str(tiny(tmp_path)))


def frames_of(root: Path, work: Path, loaded: Sequence[dict[str, Any]] = LOADING) -> list[tuple[dict[str, Any], Frame]]:
    """Keyframes of mini_val as the pipeline gives them for training, and as our tables do."""
    tables = NuScenesTables(root, "v1.0-mini")
    content = runner_config(root, {"type": "PerceptionDetector"}, work, loaded=loaded).train_dataloader.dataset
    dataset = DATASETS.build(content)
    tokens = [dataset.get_data_info(i)["token"] for i in range(len(dataset))]
    return [(dataset[i], tables.frame(token, Reads("lidar", SWEEPS))) for i, token in enumerate(tokens)]


def inputs_of(detector: PerceptionDetector, *frames: dict[str, Any]) -> dict[str, Tensor]:
    """What the network is given of a batch."""
    batch = detector.data_preprocessor(pseudo_collate([*frames]), False)
    return detector._arrays(batch["inputs"], batch["data_samples"])


def test_frames_of_the_pipeline_become_the_inputs_and_targets_of_our_own(detector, mini_root, tmp_path):
    """Pictures and projections bit for bit; points of the keyframe and its sweeps to rounding, in the same pillars;
    boxes as the tables have them."""
    pairs = frames_of(mini_root, tmp_path)
    theirs = inputs_of(detector, *(data for data, _ in pairs))
    ours = batch_inputs([prepare(frame, detector.spec) for _, frame in pairs])
    assert theirs.keys() == ours.keys()
    assert ours["images"].float().std() > 10  # the pictures show something
    for name, expected in ours.items():
        assert theirs[name].dtype == expected.dtype
        off = 2e-5 if name == "pillar_points" else 0
        torch.testing.assert_close(theirs[name], expected, rtol=0, atol=off, msg=name)

    for data, frame in pairs:
        task = detector.network.tasks["detection"]
        got, expected = (task.labels(each) for each in (_make_annotated_frame(data["data_samples"]), frame))
        for name in ("heatmap", "attributes", "cells", "groups", "real"):
            np.testing.assert_array_equal(got[name], expected[name])
        for name in REGRESSION:
            values = expected[name]
            known = np.nan_to_num(values) if name == "velocity" else values  # mmdet3d: an unknown velocity is zero
            np.testing.assert_allclose(got[name], known, rtol=0, atol=1e-3)


def test_pictures_that_are_missing_are_so_for_the_network(detector, nuscenes_root, mini_root, tmp_path):
    """Real keyframes of which some have no pictures at all, and simulated ones without one of theirs."""
    drives = tmp_path / "drives"
    shutil.copytree(mini_root, drives, symlinks=False)
    for gone in (drives / "samples" / "CAM_BACK").iterdir():
        gone.unlink()
    loaded = [*LOADING[:-1], {"type": "LoadViewsThatAreThere"}]
    pairs = [*frames_of(nuscenes_root, tmp_path, loaded), *frames_of(drives, tmp_path, loaded)[:1]]
    assert {len(frame.cameras) for _, frame in pairs} == {0, 5, 6}
    theirs = inputs_of(detector, *(data for data, _ in pairs))
    ours = batch_inputs([prepare(frame, detector.spec) for _, frame in pairs])
    assert torch.equal(theirs["images"], ours["images"])
    assert torch.equal(theirs["image_from_reference"], ours["image_from_reference"])


def test_augmented_points_are_seen_where_they_were_recorded(detector, mini_root, tmp_path):
    """By LiDAR and cameras: what turns, scales, shifts and mirrors points and boxes leaves their pixels alone."""
    moves = {"rot_range": [0.3, 0.5], "scale_ratio_range": [1.1, 1.2], "translation_std": [2, 2, 0.5]}
    mirrored = {"type": "RandomFlip3D", "flip_ratio_bev_vertical": 1.0, "sync_2d": False}
    plain, _ = frames_of(mini_root, tmp_path)[0]
    turned, _ = frames_of(mini_root, tmp_path, [*LOADING, {"type": "GlobalRotScaleTrans", **moves}, mirrored])[0]
    points, moved = (data["inputs"]["points"][:, :3].double() for data in (plain, turned))
    assert (points - moved).abs().max() > 5

    def pixels(data: dict[str, Any], seen: Tensor) -> Tensor:
        projections = inputs_of(detector, data)["image_from_reference"][0].double()
        found = torch.einsum("cij,nj->cni", projections, torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1))
        return torch.where(found[..., 2:] > 1, found[..., :2] / found[..., 2:], 0)

    torch.testing.assert_close(pixels(turned, moved), pixels(plain, points), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ({"type": "MultiViewWrapper", "transforms": [{"type": "mmdet.Resize", "scale": (320, 180)}]}, "resize, crop"),
        ({"type": "LoadMultiViewImageFromFiles"}, "gives 5 pictures of a frame, it must be 6.*LoadViewsThatAreThere"),
    ],
)
def test_pictures_that_the_calibration_is_not_for_are_refused(detector, mini_root, tmp_path, step, reason):
    content = runner_config(mini_root, {"type": "PerceptionDetector"}, tmp_path, loaded=[*LOADING, step])
    dataset = DATASETS.build(content.train_dataloader.dataset)
    info = dataset.get_data_info(0)
    if "5 pictures" in reason:
        del info["images"]["CAM_BACK"]
    with pytest.raises(InputError, match=reason):
        inputs_of(detector, dataset.pipeline({**info, "box_type_3d": dataset.box_type_3d}))


def test_what_is_not_for_the_model_is_refused(detector: PerceptionDetector, tmp_path: Path):
    """A pipeline without pictures, other colours, and a model in the vehicle's frame."""
    with pytest.raises(InputError, match=r"set grid\.reference: lidar"):
        PerceptionDetector(config=str(find_config("tiny")))
    with pytest.raises(InputError, match="gives no imgs"):
        detector({"points": [torch.zeros(1, 5)]})
    for wrong in ({}, {"bgr_to_rgb": True, "mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4]}):
        preprocessor = {"type": "Det3DDataPreprocessor", **wrong}
        with pytest.raises(InputError, match="needs bgr_to_rgb=True and no mean"):
            PerceptionDetector(config=str(tiny(tmp_path)), data_preprocessor=preprocessor)


def test_of_too_many_pillars_those_stay_that_the_configuration_says(tmp_path: Path):
    lidar = {"max_pillars": 20, "overflow": "first", "channels": 32}
    detector = PerceptionDetector(config=str(tiny(tmp_path, camera=None, lidar=lidar))).eval()
    points = np.random.default_rng(0).uniform([-30, -30, -2, 0, 0], [30, 30, 1, 255, 0], (400, 5)).astype(np.float32)
    points = points[is_outside_roof(points)]
    frame = Frame("t", 0, "lidar", np.eye(4), np.eye(4), cameras={}, **keyframe(points))
    ours = {name: torch.from_numpy(array) for name, array in prepare(frame, detector.spec).items()}
    with torch.no_grad():
        given, expected = detector({"points": [torch.from_numpy(points)]}), detector.network(ours)
    for name in expected:
        torch.testing.assert_close(given[name], expected[name])
