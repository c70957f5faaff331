"""Our model under MMEngine's Runner: mmdet3d's pipeline trains it and NuScenesMetric scores it as we do."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet3d.registry import DATASETS, MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from rich.console import Console
from runners import runner_config, tiny_lidar

from perception.data.inputs import prepare
from perception.data.nuscenes import NuScenesTables
from perception.errors import InputError
from perception.evaluation.evaluate import evaluate
from perception.frame import ATTRIBUTES, Frame, Prediction
from perception.mmdet3d.registered import PerceptionDetector
from perception.predict import TorchPredictor
from perception.training.checkpoint import save_model
from perception.training.targets import detection_targets

PREFIX = "NuScenes metric/pred_instances_3d_NuScenes"
STEPS = 120  # enough for objects to be found, so that scores say something


@pytest.fixture(scope="module")
def trained(mini_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """A Runner that has fitted the drives which it tests on, keyframes alone."""
    work = tmp_path_factory.mktemp("work")
    model = {"type": "PerceptionDetector", "config": str(tiny_lidar(work, sweeps=0))}
    runner = Runner.from_cfg(runner_config(mini_root, model, work, sweeps=0, steps=STEPS))
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

    config = runner_config(mini_root, {"type": "PerceptionDetector", "checkpoint": str(run)}, tmp_path, sweeps=0)
    config["test_evaluator"]["type"] = metric
    theirs = Runner.from_cfg(config).test()

    assert ours["mAP"] > 0.02
    assert theirs[f"{PREFIX}/mAP"] == pytest.approx(ours["mAP"], abs=1e-6)
    assert theirs[f"{PREFIX}/NDS"] == pytest.approx(ours["NDS"], abs=1e-6)
