"""mmdet3d's networks with random weights that all matter, what they give for points, and the same ones imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from infos import MMDET3D_CLASSES
from torch import Tensor, nn
from vocabulary import CLASSES

from perception.mmdet3d.foreign import import_mmdet3d
from perception.mmdet3d.importing import import_checkpoint

CONFIGS = Path(import_mmdet3d().__file__ or "").parent / ".mim" / "configs"

from mmdet3d.registry import MODELS  # noqa: E402
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes  # noqa: E402
from mmengine.config import Config  # noqa: E402

SHIPPED = {
    "circle": "centerpoint/centerpoint_pillar02_second_secfpn_head-circlenms_8xb4-cyclic-20e_nus-3d.py",
    "rotate": "centerpoint/centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d.py",
    "fpn": "pointpillars/pointpillars_hv_fpn_sbn-all_8xb4-2x_nus-3d.py",
    "secfpn": "pointpillars/pointpillars_hv_secfpn_sbn-all_8xb4-2x_nus-3d.py",
}
DEVIATIONS = {"heatmap": 0.7, "dim": 0.2, "boxes": 0.3}  # of a head's map, where it is not 1
BIASES = {"heatmap": -3.5, "classes": -5.5}  # an empty street has no boxes


def build(network: str) -> Any:
    torch.manual_seed(0)
    return MODELS.build(Config.fromfile(CONFIGS / SHIPPED[network]).model).eval()


def has_centers(model: Any) -> bool:
    """Whether it is a CenterPoint, and not a PointPillars."""
    return hasattr(model.pts_bbox_head, "task_heads")


def arguments_of(model: Any, points: np.ndarray) -> tuple[dict[str, Any], list[Any]]:
    """The arguments of `predict`; PointPillars do not read the intensity."""
    columns = [0, 1, 2, 3, 4] if has_centers(model) else [0, 1, 2, 4]
    sample = Det3DDataSample(metainfo={"box_type_3d": LiDARInstance3DBoxes})
    data = {"inputs": {"points": [torch.from_numpy(points[:, columns])]}, "data_samples": [sample]}
    return model.data_preprocessor(data, False)["inputs"], [sample]


@torch.no_grad()
def maps_of(model: Any, points: np.ndarray) -> dict[str, Tensor]:
    """The maps (1, C, rows, columns) from the last convolutions, under mmdet3d's names."""
    inputs, samples = arguments_of(model, points)
    found = model.pts_bbox_head(model.extract_feat(inputs, [sample.metainfo for sample in samples])[1])
    if has_centers(model):
        return {f"{i}.{name}": each for i, (task,) in enumerate(found) for name, each in task.items()}
    names = ("classes", "boxes", "directions")
    return {f"{name}.{i}": each for name, levels in zip(names, found, strict=True) for i, each in enumerate(levels)}


@torch.no_grad()
def predict(model: Any, points: np.ndarray) -> Any:
    """Boxes, scores and labels after NMS."""
    return model.predict(*arguments_of(model, points))[0].pred_instances_3d


def boxes_of(model: Any, points: np.ndarray) -> dict[str, np.ndarray]:
    """The same as arrays, as in `mmdet3d_networks.outputs`."""
    found, names = predict(model, points), CLASSES if has_centers(model) else MMDET3D_CLASSES
    boxes = found.bboxes_3d
    return {
        "boxes": torch.cat([boxes.gravity_center, boxes.tensor[:, [4, 3, 5, 6, 7, 8]]], dim=1).numpy(),
        "scores": found.scores_3d.numpy(),
        "labels": np.array([CLASSES.index(names[label]) for label in found.labels_3d]),
    }


def spread(model: Any, points: np.ndarray) -> None:
    """Set random weights such that outputs on frames like this one vary as those of a trained network, with some boxes.

    Normalisations get disturbed statistics of their inputs, and random weights and biases.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0  # take over the statistics of the next batch
    with torch.no_grad():
        maps_of(model.train(), points)
        model.eval()
        for norm in norms:
            norm.weight.uniform_(0.7, 1.3)
            norm.bias.uniform_(-0.2, 0.2)
            norm.running_mean += 0.1 * norm.running_var.sqrt() * torch.randn(norm.num_features)
            norm.running_var *= torch.empty(norm.num_features).uniform_(0.8, 1.2)
        maps, head = maps_of(model, points), model.pts_bbox_head
        if has_centers(model):
            last = {
                f"{i}.{name}": getattr(task, name)[-1] for i, task in enumerate(head.task_heads) for name in task.heads
            }
        else:
            last = {"classes.0": head.conv_cls, "boxes.0": head.conv_reg, "directions.0": head.conv_dir_cls}
        for key, layer in last.items():
            name = key.strip(".0123456789")
            layer.weight *= DEVIATIONS.get(name, 1.0) / maps[key].std()
            layer.bias.copy_(0.2 * torch.randn(layer.bias.shape) + BIASES.get(name, 0.0))


def imported(model: Any, network: str, folder: Path) -> Path:
    """The run that the import of the network's checkpoint, as mmengine writes one, makes."""
    config, checkpoint, run = folder / f"{network}.py", folder / f"{network}.pth", folder / network
    Config.fromfile(CONFIGS / SHIPPED[network]).dump(config)
    torch.save({"meta": {"mmengine_version": "0.10"}, "state_dict": model.state_dict()}, checkpoint)
    import_checkpoint(config, checkpoint, run)
    return run
