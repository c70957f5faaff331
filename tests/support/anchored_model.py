"""A small network with anchors, as those that are imported, with random weights that matter."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from exported import folder
from networks import settled
from vocabulary import RIG

from deploy.golden import synthetic_frame
from perception.config import Config, parse_config
from perception.frame import Boxes
from perception.model import PerceptionModel
from perception.sensors.inputs import InputSpec, prepare
from perception.training.checkpoint import save_model

SIDES = [[1.9, 4.6, 1.7], [0.7, 0.7, 1.8], [2.5, 0.5, 1.0]]
RAIN = {"name": "rain", "kind": "low_rank", "slots": ["lidar.*", "trunk.*", "heads.*"], "rank": 2, "when": ["rain"]}


def config(neck: str, modules: list[dict[str, object]] | None = None) -> Config:
    """With a `pyramid` of three maps, or with one that is `joined`; a view of 13 m, LiDAR alone."""
    pyramid = neck == "pyramid"
    anchors = [{"size": size, "bottom": -1.8, "x": [-12.8, 12.8], "y": [-12.7, 12.7]} for size in SIDES]
    suppression = {"threshold": 0.05, "kind": "rotated", "most": None, "total": 4000}
    content = {
        "name": f"anchored-{neck}",
        "grid": {"x": [-12.8, 12.8], "y": [-12.8, 12.8], "cell": 0.4, "reference": "lidar"},
        "model": {
            "lidar": {
                "max_pillars": 1500, "overflow": "first", "points_per_pillar": 8, "encoder": "padded", "hidden": [8],
                "channels": 8, "sweeps": 2,
            },
            "fusion": False, "fused_channels": 8,
            "trunk": {"channels": [8, 12, 16], "blocks": [1, 1, 1], "up_channels": 8, "stride": 2, "pyramid": pyramid},
        },
        "tasks": {"detection": {"anchors": {
            "anchors": anchors, "scales": [1, 2, 4] if pyramid else [1], "candidates": 200, "direction_offset": -0.7854,
            "suppression": suppression,
        }}},
        "modules": modules or [],
    }  # fmt: skip
    return parse_config(content, "test")


@cache
def run(neck: str, modular: bool = False) -> Path:
    """A run with this network: statistics of real activations, and scores that are low on an empty street."""
    out = folder() / f"run-anchored-{neck}-{modular}"
    torch.manual_seed(0)
    model = PerceptionModel(config(neck, [RAIN] if modular else None))
    inputs = prepare(synthetic_frame("lidar", RIG, seed=7), InputSpec.of(model.config))
    dense = settled(model, {name: torch.from_numpy(array) for name, array in inputs.items()})
    with torch.no_grad():
        for name, deviation in {"classes": 1.0, "boxes": 0.2, "directions": 1.0}.items():
            layer = model.heads["detection"].branches[name].layer
            maps = [dense[f"detection/{name}.{i}"] for i in range(len(model.heads["detection"].config.scales))]
            layer.weight *= deviation / max(values.std() for values in maps)
        model.heads["detection"].branches["classes"].layer.bias.fill_(-5.2)
        for name, parameter in model.named_parameters():
            if "computations" in name:  # modules begin as the identity; these shall matter
                parameter.normal_(0, 0.05)
    save_model(out, model.config, model.eval())
    return out


def objects(seed: int, n: int) -> Boxes:
    """Random objects of about the anchors' sizes, away from each other."""
    rng = np.random.default_rng(seed)
    places = rng.choice(16, n, replace=False)
    centers = np.stack([places % 4 * 6.0 - 9, places // 4 * 6.0 - 9, rng.uniform(-1.5, 0, n)], 1)
    centers[:, :2] += rng.uniform(-1, 1, (n, 2))
    sizes = np.array(SIDES)[rng.integers(0, 3, n)]
    return Boxes.from_yaws(
        centers, sizes * rng.uniform(0.9, 1.1, (n, 3)), rng.uniform(-np.pi, np.pi, n), rng.normal(0, 3, (n, 2)),
        rng.integers(0, 10, n), np.full(n, -1), np.ones(n),
    )  # fmt: skip
