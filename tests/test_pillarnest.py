"""An imported PillarNeSt against its published code, written once more; its trunk, and scores with the IoU."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pillarnest_reference
import pytest
import torch
from centerpoint_reference import voxelised
from exported import QUIET
from pillarnest_reference import decoded, reference
from pydantic import ValidationError
from refusals import one_line_error
from vocabulary import RIG

from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.export import export
from deploy.golden import synthetic_frame
from deploy.onnx_export import to_onnx
from deploy.precision.half import to_half
from deploy.precision.quantise import CPU, TENSORRT, activations, quantisable, quantise
from deploy.targets import find_target
from perception.bev.convnext import ConvNextTrunk
from perception.config import Trunk, find_config, load_config, parse_config
from perception.mmdet3d.importing import import_checkpoint
from perception.mmdet3d.pillarnest import HEAD_NAMES
from perception.model import PerceptionModel
from perception.sensors.inputs import InputSpec, prepare
from perception.tasks.task import part_of
from perception.training.checkpoint import load_model

FRAME = synthetic_frame("lidar", RIG, seed=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pillarnest")
    import_checkpoint(*pillarnest_reference.files(folder), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def maps() -> list[dict[str, torch.Tensor]]:
    """Of each task, of the network written plainly."""
    voxels = voxelised(FRAME.points, 700, 6)
    assert len(voxels[0]) == 700
    with torch.no_grad():
        return reference()(*map(torch.from_numpy, voxels))


@torch.no_grad()
def test_maps_are_those_of_the_published_code(run: Path, maps: list[dict[str, torch.Tensor]]) -> None:
    ours, config = load_model(run)
    assert (config.model.lidar.sweeps, config.model.lidar.max_pillars, config.model.trunk.stride) == (2, 700, 4)
    inputs = prepare(FRAME, InputSpec.of(config))
    found = part_of("detection", ours({name: torch.from_numpy(array) for name, array in inputs.items()}))
    assert len(found) == 6 * 7
    for i, task in enumerate(maps):
        for mine, theirs in HEAD_NAMES.items():
            wanted = task[theirs] if theirs != "rot" else -task[theirs][:, [1, 0]]
            assert wanted.std() > 0.05
            torch.testing.assert_close(found[f"group{i}_{mine}"], wanted, atol=1e-5, rtol=1e-5)


def test_the_export_gives_the_boxes_of_the_published_code(run: Path, maps: list[Any], tmp_path: Path) -> None:
    bundle = export(run, tmp_path / "bundle", console=QUIET)
    found = OnnxRuntimeEngine(bundle.onnx).run(prepare(FRAME, InputSpec.of(load_model(run)[1])))
    lowest = 1.0
    for i, task in enumerate(maps):
        boxes = decoded(task)
        scores = found["detection/scores"][0, i]
        np.testing.assert_allclose(scores[: len(boxes)], [score for _, score, _ in boxes], atol=1e-5)
        assert 10 < len(boxes) and not scores[len(boxes) :].any()
        lowest = min(lowest, len(boxes) / len(scores))
        for (_, _, box), ours in zip(boxes, found["detection/boxes"][0, i], strict=False):
            yaw = np.arctan2(ours[6], ours[7])
            np.testing.assert_allclose([*ours[:6], *ours[8:]], [*box[:6], *box[7:]], atol=1e-4, rtol=1e-4)
            assert abs(np.exp(1j * yaw) - np.exp(1j * box[6])) < 1e-3
    assert lowest < 1  # a task has cells under the threshold
