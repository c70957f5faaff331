"""An imported CenterPoint against mmdet3d's own, with the same random weights: pillars, maps, boxes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

if find_spec("mmdet3d") is None:
    pytest.skip("mmdet3d is not installed: `make install-mmdet3d`", allow_module_level=True)

import centerpoints

from perception.data.inputs import InputSpec, prepare
from perception.data.nuscenes import NuScenesTables
from perception.data.outputs import to_prediction
from perception.frame import Frame, Prediction
from perception.mmdet3d.centerpoint import NAMES
from perception.model import PerceptionModel
from perception.training.checkpoint import load_model

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def frames(nuscenes_root: Path, sim_root: Path) -> dict[str, Frame]:
    """Keyframes in the LiDAR's frame: two real ones with nine sweeps, and a simulated one with its two."""
    real, simulated = NuScenesTables(nuscenes_root, "v1.0-mini"), NuScenesTables(sim_root, "v1.0-sim")
    first, second = real.samples(selectors=["scene-0103:0-2"])
    return {
        "real": real.frame(first, "lidar", 9, cameras=False),
        "another": real.frame(second, "lidar", 9, cameras=False),
        "simulated": simulated.frame(simulated.samples()[0], "lidar", 9, cameras=False),
    }


@pytest.fixture(scope="module")
def theirs(frames: dict[str, Frame]) -> Any:
    model = centerpoints.built()
    centerpoints.spread(model, frames["real"].points)
    return model


@pytest.fixture(scope="module")
def ours(theirs: Any) -> PerceptionModel:
    return load_model(centerpoints.run(centerpoints.saved(theirs)))[0]


@torch.no_grad()
def dense(model: PerceptionModel, frame: Frame, spec: InputSpec) -> dict[str, torch.Tensor]:
    return model({name: torch.from_numpy(array) for name, array in prepare(frame, spec).items()})


@pytest.mark.parametrize("name", ["real", "another", "simulated"])
def test_maps_are_those_of_mmdet3d(theirs: Any, ours: PerceptionModel, frames: dict[str, Frame], name: str) -> None:
    expected = centerpoints.raw(theirs, frames[name].points)
    found = dense(ours, frames[name], InputSpec.of(ours.config))
    for i, task in enumerate(expected):
        assert task.keys() == {*NAMES.values()}
        for mine, other in NAMES.items():
            wanted = task[other][:, [1, 0, 2]] if other == "dim" else task[other]
            assert wanted.std() > 0.1, other  # the map says something
            torch.testing.assert_close(found[f"group{i}_{mine}"], wanted, atol=TOLERANCE, rtol=0)
