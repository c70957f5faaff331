"""How well a map of features that is moved with the vehicle fits the next one, on a recorded drive."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark import SHARED
from torch import Tensor

from perception.checkpoint import load_model
from perception.datasets.pandaset import PandaSet
from perception.mmdet3d.importing import import_pointpillars
from perception.model import batch_inputs
from perception.rig import load_rig
from perception.sensors.inputs import InputSpec, prepare
from perception.sensors.state import Limits, Moment, state_inputs

CONFIG = Path(__file__).parents[1] / "configs" / "kitti" / "pointpillars.yaml"
GAPS = (1, 5, 10)  # frames of 0.1 s


@torch.inference_mode()
def time(
    data: Path = SHARED / "pandaset",
    weights: Path = SHARED / "pointpillars_kitti" / "pointpillars.safetensors",
    frames: str = "002:16-32",
) -> dict[str, Any]:
    """Pearson correlation of the fused features of PandaSet's frames with those of earlier frames, of KITTI's network.

    As they were, moved by the vehicle's motion as the memory does, and moved by its inverse; over the cells and
    channels that all three have from inside of the earlier map and that are not zero in all maps. Mean over the
    frames, in which the vehicle starts; before, it stands.
    """
    with tempfile.TemporaryDirectory() as folder:
        import_pointpillars(CONFIG, weights, Path(folder) / "kitti")
        model, config = load_model(Path(folder) / "kitti")
    spec, limits = InputSpec.of(config), Limits(seconds=1.0, speed=70.0)
    drives = PandaSet(data, load_rig("pandaset_64"), config.taxonomy)
    earlier: list[tuple[Moment, Tensor]] = []
    found: dict[str, list[float]] = {}
    for token in drives.samples(selectors=[frames]):
        frame = drives.frame(token, spec.reads)
        moment = Moment.of(frame)
        features = model.next_state(batch_inputs([prepare(frame, spec)]), [frame.conditions], None)
        for gap in GAPS:
            if gap <= len(earlier):
                motion = state_inputs(earlier[-gap][0], moment, limits)["current_from_previous"][0]
                ways = {"unwarped": np.eye(4), "warped": motion, "inverse": np.linalg.inv(motion)}
                for way, value in _correlations(model.memory.layer, features, earlier[-gap][1], ways).items():
                    found.setdefault(f"{way}_{gap / 10}s", []).append(value)
                found.setdefault(f"meters_{gap / 10}s", []).append(float(np.linalg.norm(motion[:2, 3])))
        earlier = [*earlier[1 - max(GAPS) :], (moment, features)]
    return {name: round(float(np.mean(values)), 3) for name, values in found.items()}


def _correlations(layer: Any, features: Tensor, before: Tensor, ways: dict[str, np.ndarray]) -> dict[str, float]:
    """By way; `ways` are matrices (4, 4) by which the features before are moved."""
    moved = {way: layer.warp(before, torch.from_numpy(matrix)[None].float()) for way, matrix in ways.items()}
    maps = torch.cat([features, *(each for each, _ in moved.values())])
    inside = torch.cat([share for _, share in moved.values()]).amin(dim=0)[0] == 1
    seen = inside & (maps != 0).any(dim=0).any(dim=0)
    own, *others = maps[:, :, seen].flatten(1)
    return {way: float(torch.corrcoef(torch.stack([own, each]))[0, 1]) for way, each in zip(ways, others, strict=True)}
