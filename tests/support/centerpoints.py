"""mmdet3d's CenterPoint with random weights that all matter, and the same network imported."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from perception.checkpoint import load_model
from perception.config import Config
from perception.mmdet3d.importing import import_checkpoint
from perception.mmdet3d.install import import_mmdet3d

CONFIGS = Path(import_mmdet3d().__file__ or "").parent / ".mim" / "configs" / "centerpoint"
NMS = {
    "circle": CONFIGS / "centerpoint_pillar02_second_secfpn_head-circlenms_8xb4-cyclic-20e_nus-3d.py",
    "rotate": CONFIGS / "centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d.py",
}


@cache
def folder() -> Path:
    path = Path(tempfile.mkdtemp(prefix="centerpoint-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@cache
def flat(nms: str) -> Path:
    """A file with the configuration, in the format that the import reads."""
    from mmengine.config import Config

    Config.fromfile(NMS[nms]).dump(folder() / NMS[nms].name)
    return folder() / NMS[nms].name


@cache
def build(nms: str = "circle") -> Any:
    """mmdet3d's network, built from its configuration."""
    from mmdet3d.registry import MODELS
    from mmengine.config import Config

    torch.manual_seed(0)
    return MODELS.build(Config.fromfile(NMS[nms]).model).eval()


def spread(model: Any, points: np.ndarray) -> None:
    """Set random weights such that outputs on frames like this one vary as those of a trained network, with some boxes.

    Normalisations get disturbed statistics of their inputs, and random weights and biases.
    """
    generator = torch.Generator().manual_seed(0)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0  # take over the statistics of the next batch
    with torch.no_grad():
        model.train()
        raw(model, points)
        model.eval()
        for norm in norms:
            for tensor, low, high in ((norm.weight, 0.7, 1.3), (norm.bias, -0.2, 0.2)):
                tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
            assert norm.running_mean is not None
            assert norm.running_var is not None
            deviation = norm.running_var.sqrt()
            norm.running_mean += 0.1 * deviation * torch.randn(deviation.shape, generator=generator)
            norm.running_var *= 0.8 + 0.4 * torch.rand(deviation.shape, generator=generator)
        maps = raw(model, points)
        for i, task in enumerate(model.pts_bbox_head.task_heads):
            for name in task.heads:
                last = getattr(task, name)[-1]
                wanted = {"heatmap": 0.7, "dim": 0.2}.get(name, 1.0)  # standard deviation
                last.weight *= wanted / maps[i][name].std()
                last.bias.copy_(0.2 * torch.randn(last.bias.shape, generator=generator))
                if name == "heatmap":
                    last.bias -= 3.5


def arguments_of(model: Any, points: np.ndarray) -> tuple[dict[str, Any], list[Any]]:
    """The arguments of `predict`."""
    from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes

    sample = Det3DDataSample(metainfo={"box_type_3d": LiDARInstance3DBoxes})
    data = {"inputs": {"points": [torch.from_numpy(points)]}, "data_samples": [sample]}
    return model.data_preprocessor(data, False)["inputs"], [sample]


@torch.no_grad()
def raw(model: Any, points: np.ndarray) -> list[dict[str, Tensor]]:
    """The maps of each task, from the last convolutions."""
    inputs, samples = arguments_of(model, points)
    features = model.extract_feat(inputs, [sample.metainfo for sample in samples])[1]
    return [task[0] for task in model.pts_bbox_head(features)]


@torch.no_grad()
def predict(model: Any, points: np.ndarray) -> Any:
    """Boxes, scores and labels after NMS."""
    inputs, samples = arguments_of(model, points)
    return model.predict(inputs, samples)[0].pred_instances_3d


def save(model: Any) -> Path:
    """A checkpoint of the network in mmengine's format."""
    file = folder() / f"centerpoint-{id(model)}.pth"
    torch.save({"meta": {"mmengine_version": "0.10"}, "state_dict": model.state_dict()}, file)
    return file


@cache
def run(checkpoint: Path, nms: str = "circle") -> Path:
    """The run of an imported checkpoint."""
    out = folder() / f"run-{nms}-{checkpoint.stem}"
    import_checkpoint(flat(nms), checkpoint, out)
    return out


@cache
def convert(nms: str = "circle") -> Config:
    """Our configuration of the imported network."""
    return load_model(run(save(build(nms)), nms))[1]
