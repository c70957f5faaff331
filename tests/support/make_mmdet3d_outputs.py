"""Outputs of mmdet3d's networks, which tests without mmdet3d compare imported networks with.

    PYTHONPATH=.:tests/support .venv-mmdet3d/bin/python tests/support/make_mmdet3d_outputs.py

writes them anew; `tests/mmdet3d/test_outputs.py` compares the files with what mmdet3d gives. PillarNeSt's repository
needs mmdet3d 0.18: its network is built of mmdet3d's and timm's parts, under its own names. The network for KITTI is
that of Vitis AI's `VoxelNet_int`, with normalisations that only add a bias.
"""

import json
from itertools import pairwise
from typing import Any

import mmdet3d_networks
import numpy as np
import torch
from foreign_networks import CONFIGS, boxes_of, maps_of
from mmdet3d.models import CenterHead, PillarFeatureNet
from mmdet3d.models.layers import circle_nms
from mmdet3d.models.task_modules import DeltaXYZWLHRBBoxCoder
from mmdet3d.registry import MODELS
from mmengine.config import Config
from safetensors.torch import load_file
from timm.layers import LayerNorm2d
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

Arrays = dict[str, np.ndarray]
RENAMED = {"conv_dw": "depthwise_conv", "mlp.fc1": "pointwise_conv1", "mlp.fc2": "pointwise_conv2"}  # timm's
BETA = 0.4  # share of the IoU in PillarNeSt's scores


@MODELS.register_module()
class ConvNeXt_PC(nn.Module):
    def __init__(self, arch, in_channels, out_indices, **_settings):
        super().__init__()
        channels, self.joined = [in_channels, *arch["channels"][1:]], out_indices
        downs = [
            nn.Sequential(LayerNorm2d(before, eps=1e-5), nn.Conv2d(before, after, 2, 2))
            for before, after in pairwise(channels)
        ]
        self.downsample_layers = nn.ModuleList([nn.Identity(), *downs])
        self.stages = nn.ModuleList(
            nn.Sequential(*(ConvNeXtBlock(width, ls_init_value=1.0) for _ in range(depth)))
            for depth, width in zip(arch["depths"], channels, strict=True)
        )
        for i in out_indices:
            self.add_module(f"norm{i}", LayerNorm2d(channels[i], eps=1e-6))
        self.bias = nn.Parameter(torch.zeros(3))  # its forward pass does not read it

    def forward(self, x):
        found = []
        for i, (down, stage) in enumerate(zip(self.downsample_layers, self.stages, strict=True)):
            x = stage(down(x))
            if i in self.joined:
                found.append(getattr(self, f"norm{i}")(x))
        return found


@MODELS.register_module()
class HeightPillarFeatureNet(PillarFeatureNet):
    """The mean of a pillar's maximum and average (`maxavg`)."""

    def __init__(self, mode, **settings):
        assert mode == "maxavg"
        super().__init__(**settings)

    def forward(self, features, num_points, coors, *rest):
        found = []
        for self.pfn_layers[-1].mode in ("max", "avg"):
            found.append(super().forward(features.clone(), num_points, coors, *rest))
        return sum(found) / 2


@MODELS.register_module()
class CenterPlusHead(CenterHead):
    def __init__(self, iou_score, iou_score_weight, **settings):
        super().__init__(**settings)


def build(network: str) -> Any:
    """mmdet3d's network with the weights of `mmdet3d_networks`."""
    config = Config.fromstring(mmdet3d_networks.CONFIGS[network], ".py").model
    if network == "pillarnest":
        layer = config.pop("pts_voxel_layer")
        config.data_preprocessor = {"type": "Det3DDataPreprocessor", "voxel": True, "voxel_layer": layer}
        del config.pts_backbone.init_cfg
    model = MODELS.build(config).eval()
    model.load_state_dict({name: mmdet3d_networks.weight(named(name), each.shape)
                           for name, each in model.state_dict().items()})  # fmt: skip
    return model


def named(name: str) -> str:
    """A weight's name in a checkpoint."""
    for ours, theirs in RENAMED.items():
        name = name.replace(ours, theirs)
    return name


@torch.no_grad()
def of_network(network: str) -> Arrays:
    model, points = build(network), mmdet3d_networks.points()
    maps, shapes = maps_of(model, points), {named(name): [*each.shape] for name, each in model.state_dict().items()}
    found = before_suppression(model.pts_bbox_head, maps) if network == "pillarnest" else boxes_of(model, points)
    stored = {name: each[0, :, :: max(1, each.shape[2] // 16), :: max(1, each.shape[3] // 16)].numpy()
              for name, each in maps.items()}  # fmt: skip
    return {"shapes": np.array(json.dumps(shapes)), **stored, **found}


def before_suppression(head: Any, raw: dict[str, Tensor]) -> Arrays:
    """PillarNeSt's boxes of all tasks, best first, with scores weighted by the predicted IoU.

    Its boxes are those of mmdet3d before 1.0: width before length, and an angle of -r - pi/2.
    """
    head.bbox_coder.post_center_range = [-1e3] * 3 + [1e3] * 3
    found: dict[str, list[np.ndarray]] = {"boxes": [], "scores": [], "labels": []}
    for i in range(len(mmdet3d_networks.TASKS)):
        task = {key.split(".")[1]: each for key, each in raw.items() if key.startswith(f"{i}.")}
        sine, cosine = task["rot"][:, :1], task["rot"][:, 1:]
        maps = [task["heatmap"].sigmoid(), sine, cosine, task["height"], task["dim"].exp()]
        iou = task["iou"].sigmoid().expand(-1, 2, -1, -1)  # in place of the velocity
        (decoded,), (rated,) = (head.bbox_coder.decode(*maps, each, reg=task["reg"]) for each in (task["vel"], iou))
        boxes = decoded["bboxes"].double()
        scores = decoded["scores"].double() ** (1 - BETA) * rated["bboxes"][:, 7].double() ** BETA
        order = scores.argsort(descending=True)
        boxes[:, 6] = -boxes[:, 6] - torch.pi / 2
        first = sum(map(len, mmdet3d_networks.TASKS[:i]))
        found["boxes"].append(boxes[order].numpy())
        found["scores"].append(scores[order].numpy())
        found["labels"].append(first + decoded["labels"][order].numpy())
    return {name: np.concatenate(arrays) for name, arrays in found.items()}


# PointPillars for KITTI.

LOW, HIGH, GROUND = np.array([0, -39.68, -3]), np.array([69.12, 39.68, 1]), -1.73  # m, the LiDAR's frame
RADII = (1.0, 0.6, 0.4)  # m, of NMS
ANCHORS = {  # of SECOND: at rotation 0 a box has its length along y and faces -y; rotations are clockwise
    "sizes": [[1.6, 3.9, 1.56], [0.6, 1.76, 1.73], [0.6, 0.8, 1.73]],  # width, length, height
    "ranges": [[*LOW[:2], bottom, *HIGH[:2], bottom] for bottom in (-1.78, -1.465, -1.465)],
    "rotations": [0, np.pi / 2],
}


def build_kitti(weights: dict[str, Tensor]) -> Any:
    config = Config.fromfile(CONFIGS / "pointpillars" / "pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class.py").model
    config.data_preprocessor.voxel_layer.update(max_num_points=100, max_voxels=(16000, 16000))
    config.voxel_encoder.update(with_cluster_center=False, with_voxel_center=False)
    config.backbone.out_channels = config.neck.in_channels = [32, 32, 64]
    config.neck.out_channels = [64, 64, 64]
    config.bbox_head.update(in_channels=192, feat_channels=192)
    config.bbox_head.anchor_generator.update(ANCHORS, reshape_out=True)
    model = MODELS.build(config).eval()
    heads = {"cls": "conv_cls", "box": "conv_reg", "dir_cls": "conv_dir_cls"}
    places = {"pillar": ("voxel_encoder.pfn_layers.0.linear", "voxel_encoder.pfn_layers.0.norm")}
    for i, count in enumerate((4, 6, 6)):
        for j in range(count):
            places[f"blocks.{i}.{j}"] = (f"backbone.blocks.{i}.{3 * j}", f"backbone.blocks.{i}.{3 * j + 1}")
        places[f"deblocks.{i}"] = (f"neck.deblocks.{i}.0", f"neck.deblocks.{i}.1")
    places |= {f"heads.{name}": (f"bbox_head.{theirs}",) * 2 for name, theirs in heads.items()}
    state = {name: torch.full_like(each, 1 - 1e-3) if name.endswith("running_var") else each
             for name, each in model.state_dict().items()}  # fmt: skip
    for name, (layer, norm_or_layer) in places.items():
        state |= {f"{layer}.weight": weights[f"{name}.weight"], f"{norm_or_layer}.bias": weights[f"{name}.bias"]}
    model.load_state_dict(state)
    return model


@torch.no_grad()
def maps_of_kitti(model: Any, points: np.ndarray) -> list[Tensor]:
    """Classes, boxes and directions, (1, C, 248, 216).

    Args:
        points: (N, 4) x y z (m, ground near -1.73), intensity (0-1).
    """
    data = {"inputs": {"points": [torch.from_numpy(points.astype(np.float32))]}, "data_samples": None}
    inputs = model.data_preprocessor(data, False)["inputs"]
    voxels = inputs["voxels"]
    there = torch.arange(100) < voxels["num_points"][:, None]
    scaled = ((voxels["voxels"][..., :3] - torch.from_numpy(LOW)) / torch.from_numpy(HIGH - LOW)).float()
    voxels["voxels"][..., :3] = torch.where(there[..., None], scaled, 0)
    return [level for (level,) in model.bbox_head(model.extract_feat(inputs))]


def boxes_of_kitti(model: Any, maps: list[Tensor], threshold: float) -> Arrays:
    """Of each class after NMS, best first: boxes as in `mmdet3d_networks.outputs`, without velocities."""
    classes, codes, directions = (each[0].permute(1, 2, 0).double() for each in maps)
    head = model.bbox_head
    (anchors,) = head.prior_generator.grid_anchors([classes.shape[:2]], device="cpu")
    boxes = DeltaXYZWLHRBBoxCoder.decode(anchors.double(), codes.reshape(-1, 7)).numpy()
    turned = (boxes[:, 6] > 0) != (directions.reshape(-1, 2).argmax(dim=1) == 1).numpy()
    boxes[:, 6] = -(boxes[:, 6] + np.pi * turned) - np.pi / 2  # as in mmdet3d since 1.0
    boxes[:, 2] += boxes[:, 5] / 2
    scores, found = classes.reshape(-1, 3).sigmoid().numpy(), {"boxes": [], "scores": [], "labels": []}
    for label, radius in enumerate(RADII):
        above = np.flatnonzero(scores[:, label] >= threshold)
        rows = np.column_stack([boxes[above, :2], scores[above, label]])
        kept = above[circle_nms(rows, radius**2, 83)]
        for name, values in {"boxes": boxes[kept], "scores": scores[kept, label], "labels": 0 * kept + label}.items():
            found[name].append(values)
    return {name: np.concatenate(arrays) for name, arrays in found.items()}


def of_kitti() -> Arrays:
    """Maps for random weights and points, on every 16th cell; boxes for the trained weights and a recorded frame."""
    made, recorded = mmdet3d_networks.kitti_points(), mmdet3d_networks.recorded_frame().points
    maps = maps_of_kitti(build_kitti(mmdet3d_networks.kitti_weights()), mmdet3d_networks.for_kitti(made))
    trained = build_kitti(load_file(mmdet3d_networks.trained_kitti()))
    return {
        **{name: each[0, :, ::16, ::16].numpy() for name, each in zip(("cls", "box", "dir_cls"), maps, strict=True)},
        **boxes_of_kitti(trained, maps_of_kitti(trained, mmdet3d_networks.for_kitti(recorded)), threshold=0.15),
    }


def main() -> None:
    mmdet3d_networks.OUTPUTS.mkdir(exist_ok=True)
    for network in mmdet3d_networks.CONFIGS:
        np.savez_compressed(mmdet3d_networks.OUTPUTS / network, **of_network(network))
    np.savez_compressed(mmdet3d_networks.OUTPUTS / "kitti", **of_kitti())


if __name__ == "__main__":
    main()
