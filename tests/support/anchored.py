"""PointPillars of mmdet3d with random weights that matter, and the same network imported."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from exported import folder
from mmengine.config import Config
from torch import Tensor, nn

from perception.mmdet3d.importing import import_checkpoint
from perception.mmdet3d.install import import_mmdet3d

_CONFIGS = Path(import_mmdet3d().__file__ or "").parent / ".mim" / "configs" / "pointpillars"
NECKS = {
    "fpn": _CONFIGS / "pointpillars_hv_fpn_sbn-all_8xb4-2x_nus-3d.py",
    "secfpn": _CONFIGS / "pointpillars_hv_secfpn_sbn-all_8xb4-2x_nus-3d.py",
}
LIMITS = (1500, 7000)  # pillars of the small configurations, in training and in testing
COLUMNS = [0, 1, 2, 4]  # of a point, that the network sees


@cache
def small(neck: str) -> Path:
    """The configuration with a view of 13 m instead of 50 m."""
    config = Config.fromfile(NECKS[neck])
    near = [-13, -13, -5, 13, 13, 3]
    model = config.model
    model.data_preprocessor.voxel_layer.update(point_cloud_range=near, max_voxels=LIMITS)
    model.pts_voxel_encoder.point_cloud_range = near
    model.pts_middle_encoder.output_shape = [104, 104]
    anchors = model.pts_bbox_head.anchor_generator
    anchors.ranges = [[side * 0.26 if i not in (2, 5) else side for i, side in enumerate(r)] for r in anchors.ranges]
    file = folder() / f"small-{neck}.py"
    config.dump(file)
    return file


def built(config: Path, points: np.ndarray) -> Any:
    """mmdet3d's network with random weights whose outputs on frames like this one vary as a trained network's do.

    Normalisations get the statistics of what they see, disturbed, and random weights and biases, so that all matter.
    """
    from mmdet3d.registry import MODELS

    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(config).model)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    head = model.pts_bbox_head
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0  # take over the statistics of the next batch
        model.train()
        raw(model, points)
        model.eval()
        for norm in norms:
            norm.weight.uniform_(0.7, 1.3)
            norm.bias.uniform_(-0.2, 0.2)
            norm.running_mean += 0.1 * norm.running_var.sqrt() * torch.randn(norm.num_features)
            norm.running_var *= torch.empty(norm.num_features).uniform_(0.8, 1.2)
        maps = raw(model, points)
        layers, deviations = (head.conv_cls, head.conv_reg, head.conv_dir_cls), (1.0, 0.3, 1.0)
        for layer, levels, deviation in zip(layers, maps, deviations, strict=True):
            layer.weight *= deviation / levels[0].std()
            layer.bias.copy_(0.2 * torch.randn(layer.bias.shape))
        head.conv_cls.bias -= 5.5  # an empty street has no boxes
    return model


def given(model: Any, points: np.ndarray, training: bool = False) -> tuple[dict[str, Any], list[Any]]:
    """What `predict` takes; in training there are fewer pillars."""
    from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes

    sample = Det3DDataSample(metainfo={"box_type_3d": LiDARInstance3DBoxes})
    data = {"inputs": {"points": [torch.from_numpy(points[:, COLUMNS])]}, "data_samples": [sample]}
    model.data_preprocessor.voxel_layer.train(training)
    return model.data_preprocessor(data, False)["inputs"], [sample]


@torch.no_grad()
def raw(model: Any, points: np.ndarray, training: bool = False) -> tuple[list[Tensor], ...]:
    """Classes, boxes and directions of each level, as they leave the last convolutions."""
    inputs, samples = given(model, points, training)
    features = model.extract_feat(inputs, [sample.metainfo for sample in samples])[1]
    return tuple(list(levels) for levels in model.pts_bbox_head(features))


@torch.no_grad()
def predicted(model: Any, points: np.ndarray, training: bool = False) -> Any:
    """Boxes, scores and labels behind the suppression."""
    inputs, samples = given(model, points, training)
    return model.predict(inputs, samples)[0].pred_instances_3d


def imported(model: Any, config: Path) -> Path:
    """The run that the import of the network's checkpoint, as mmengine writes one, makes."""
    file, out = folder() / f"{config.stem}.pth", folder() / f"run-{config.stem}"
    torch.save({"meta": {"mmengine_version": "0.10"}, "state_dict": model.state_dict()}, file)
    flat = folder() / f"flat-{config.name}"
    Config.fromfile(config).dump(flat)
    import_checkpoint(flat, file, out)
    return out
