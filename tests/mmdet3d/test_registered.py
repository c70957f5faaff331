"""Our model under MMEngine's Runner: mmdet3d's pipeline trains it and NuScenesMetric scores it as we do."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from mmdet3d.registry import DATASETS
from mmengine.runner import Runner
from rich.console import Console
from runners import runner_config, tiny_lidar

from perception.data.inputs import prepare
from perception.data.nuscenes import NuScenesTables
from perception.data.sweeps import far_enough
from perception.errors import InputError
from perception.evaluation.evaluate import evaluate
from perception.frame import Frame, Prediction
from perception.mmdet3d.registered import PerceptionDetector, _boxes
from perception.predict import TorchPredictor
from perception.training.checkpoint import save_model
from perception.training.targets import detection_targets

PREFIX = "NuScenes metric/pred_instances_3d_NuScenes"
STEPS = 80  # enough for objects to be found, so that scores say something
SWEEPS = 5


@pytest.fixture(scope="module")
def trained(mini_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """A Runner that has fitted the drives which it tests on. It takes half a minute."""
    work = tmp_path_factory.mktemp("work")
    model = {"type": "PerceptionDetector", "config": str(tiny_lidar(work, SWEEPS))}
    runner = Runner.from_cfg(runner_config(mini_root, model, work, SWEEPS, STEPS))
    runner.train()
    return runner


def test_the_loss_falls_within_twenty_iterations(trained: Runner):
    losses, _ = trained.message_hub.get_scalar("train/loss").data
    assert len(losses) == STEPS
    assert np.mean(losses[15:20]) < 0.8 * np.mean(losses[:5])


def own_scores(root: Path, predictor: TorchPredictor, out: Path, attributes: bool) -> dict[str, Any]:
    """What `perception evaluate` writes; without attributes they follow from the speed, as in mmdet3d's metric."""

    def predict(frame: Frame) -> Prediction:
        prediction = predictor(frame)
        boxes = prediction.boxes
        return replace(prediction, boxes=replace(boxes, attributes=np.full(len(boxes), -1)))

    tables = NuScenesTables(root, "v1.0-mini")
    run = predictor if attributes else predict
    return evaluate(run, tables, "mini_val", [], out, predictor.spec, Console(file=StringIO()))


@pytest.mark.parametrize("metric", ["NuScenesMetric", "AttributeNuScenesMetric"])
def test_scores_equal_those_of_our_own_evaluation(trained: Runner, mini_root: Path, tmp_path: Path, metric: str):
    run = tmp_path / "run"
    save_model(run, trained.model.network.config, trained.model.network)
    ours = own_scores(mini_root, TorchPredictor.load(run), tmp_path / "ours", metric == "AttributeNuScenesMetric")

    config = runner_config(mini_root, {"type": "PerceptionDetector", "checkpoint": str(run)}, tmp_path, SWEEPS)
    config.test_evaluator.type = metric
    theirs = Runner.from_cfg(config).test()

    assert ours["mAP"] > 0.1
    assert theirs[f"{PREFIX}/mAP"] == pytest.approx(ours["mAP"], abs=1e-6)
    assert theirs[f"{PREFIX}/NDS"] == pytest.approx(ours["NDS"], abs=1e-6)


@pytest.fixture
def detector(tmp_path: Path) -> PerceptionDetector:
    return PerceptionDetector(config=str(tiny_lidar(tmp_path, SWEEPS)))


def test_frames_of_the_pipeline_become_the_inputs_and_targets_of_our_own(
    detector: PerceptionDetector, mini_root: Path, tmp_path: Path
):
    """Points of the keyframe and its sweeps to rounding, in the same pillars; boxes as the tables have them."""
    config = runner_config(mini_root, {"type": "PerceptionDetector"}, tmp_path, SWEEPS)
    tables = NuScenesTables(mini_root, "v1.0-mini")
    for data in DATASETS.build(config.train_dataloader.dataset):
        sample = data["data_samples"]
        frame = tables.frame(_token(tables, sample.lidar_path), "lidar", SWEEPS, cameras=False)
        theirs, ours = detector._pillars([data["inputs"]["points"]]), prepare(frame, detector.spec)
        pillars = theirs["pillar_counts"].shape[1]
        assert not ours["pillar_counts"][:, pillars:].any()
        assert np.array_equal(theirs["pillar_cells"], ours["pillar_cells"][:, :pillars])
        np.testing.assert_allclose(theirs["pillar_points"], ours["pillar_points"][:, :pillars], rtol=0, atol=2e-5)

        grid, head = detector.spec.grid, detector.network.config.model.detection
        assert frame.boxes is not None
        got, expected = (
            detection_targets([boxes], grid, head) for boxes in (_boxes(sample.gt_instances_3d), frame.boxes)
        )
        assert torch.equal(got.heatmap, expected.heatmap)
        assert torch.equal(got.attributes, expected.attributes)
        for name, values in expected.regression.items():
            known = values.nan_to_num() if name == "velocity" else values  # mmdet3d: an unknown velocity is zero
            torch.testing.assert_close(got.regression[name], known, rtol=0, atol=1e-3)


def test_of_too_many_pillars_those_stay_that_the_configuration_says(tmp_path: Path):
    file = tiny_lidar(tmp_path, SWEEPS)
    content = yaml.safe_load(file.read_text())
    content["model"]["lidar"] |= {"max_pillars": 20, "overflow": "first"}
    file.write_text(yaml.safe_dump(content))
    detector = PerceptionDetector(config=str(file)).eval()
    points = np.random.default_rng(0).uniform([-30, -30, -2, 0, 0], [30, 30, 1, 255, 0], (400, 5)).astype(np.float32)
    points = points[far_enough(points)]
    frame = Frame("t", 0, "lidar", np.eye(4), np.eye(4), points, {})
    ours = {name: torch.from_numpy(array) for name, array in prepare(frame, detector.spec).items()}
    with torch.no_grad():
        given, expected = detector({"points": [torch.from_numpy(points)]}), detector.network(ours)
    for name in expected:
        torch.testing.assert_close(given[name], expected[name])


def _token(tables: NuScenesTables, file: str) -> str:
    """The keyframe of a LiDAR file."""
    name = Path(file).name
    return next(r.sample for r in tables.recordings.sweeps.values() if Path(r.file).name == name)


def test_a_model_in_the_vehicles_frame_and_one_with_cameras_are_refused(tmp_path: Path):
    path = tiny_lidar(tmp_path, 0)
    for changed, reason in (
        ({"grid": {"cell": 0.8}}, "set grid.reference: lidar"),
        ({"model": {"camera": {}}}, "camera"),
    ):
        wrong = tmp_path / "wrong.yaml"
        wrong.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changed}))
        with pytest.raises(InputError, match=reason):
            PerceptionDetector(config=str(wrong))
