"""A little network with modules on routes."""

import copy
from typing import Any

import numpy as np
import torch
from slotted import EVERYWHERE, randomised
from torch import Tensor, nn
from vocabulary import RIG

from deploy.golden import synthetic_frame
from perception.config import parse_config
from perception.model import PerceptionModel
from perception.sensors.inputs import InputSpec, prepare

LITTLE = {
    "name": "little",
    "grid": {"x": [-12.8, 12.8], "y": [-12.8, 12.8]},
    "model": {
        "lidar": {"max_pillars": 600, "points_per_pillar": 4, "channels": 8, "sweeps": 0},
        "fused_channels": 8,
        "trunk": {"channels": [8, 8], "blocks": [1, 1], "strides": [1, 2], "up_channels": 8, "stride": 1},
    },
    "tasks": {"detection": {"channels": 8, "top_k": 20}, "map": {"channels": 8}},
}
CAMERA = {
    "backbone": "resnet10t", "stages": [2], "channels": 8, "image": {"height": 32, "width": 64},
    "depth": {"bins": 8}, "heights": [0.0], "stride": 2,
}  # fmt: skip


def module(name: str, *when: str, slots: tuple[str, ...] = EVERYWHERE) -> dict[str, Any]:
    return {"name": name, "kind": "low_rank", "slots": list(slots), "rank": 2, "when": list(when)}


def little(
    modules: list[dict[str, Any]],
    routing: dict[str, Any] | None = None,
    camera: bool = False,
    recognising: bool = False,
) -> PerceptionModel:
    content: Any = copy.deepcopy(LITTLE) | {"modules": modules, "routing": routing}
    content["tasks"] |= {"conditions": {}} if recognising else {}
    content["model"] |= {"camera": CAMERA} if camera else {}
    torch.manual_seed(0)
    model = PerceptionModel(parse_config(content, "little"))
    heatmap: Any = model.heads["detection"].branches["heatmap"]
    nn.init.normal_(heatmap[1].layer.weight, 0, 0.3)  # so that the peaks differ
    return randomised(model, 0.2).eval()


def frame_inputs(model: PerceptionModel, *seeds: int) -> dict[str, Tensor]:
    frames = [prepare(synthetic_frame("ego", RIG, seed=seed), InputSpec.of(model.config)) for seed in seeds]
    return {name: torch.from_numpy(np.concatenate([f[name] for f in frames])) for name in frames[0]}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
