"""Imports trained networks as runs: of mmdet3d, and PointPillars of SECOND's family, such as one for KITTI."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from perception.checkpoint import require_same_keys, save_model
from perception.config import Config, load_config
from perception.errors import InputError
from perception.grid import BevGrid
from perception.mmdet3d import centerpoint, pillarnest, pointpillars
from perception.mmdet3d.checkpoint import NORM_EPSILON, ConfigSection, read_config, read_state
from perception.model import PerceptionModel

Converter = Callable[[ConfigSection, Path, Mapping[str, Tensor]], tuple[Config, PerceptionModel]]
CONVERTERS: Mapping[str, Converter] = {"CenterPoint": centerpoint.convert, "MVXFasterRCNN": pointpillars.convert}
FOREIGN = "it loads as a foreign trunk (`backbone: {kind: mmdet3d, ...}`)"


def import_checkpoint(config: Path, checkpoint: Path, out: Path) -> tuple[Config, PerceptionModel]:
    """Write the converted network to the folder `out` as a run; returns configuration and model."""
    foreign = read_config(config)
    model = foreign.part("model")
    kind = str(model.get("type", None))
    middle_encoder = model.get("pts_middle_encoder", model.get("middle_encoder", None))
    encoder = str(middle_encoder.get("type")) if isinstance(middle_encoder, dict) else ""
    if "Sparse" in encoder or kind == "BEVFusion":
        raise InputError(
            f"{config}: {kind} with {encoder or 'sparse convolutions'} has no counterpart here: {FOREIGN}, and its "
            "sparse convolutions do not export without a plugin"
        )
    if kind not in CONVERTERS:
        raise InputError(
            f"{config}: {kind} is none of {', '.join(CONVERTERS)}, which have a counterpart here; {FOREIGN}"
        )
    convert = CONVERTERS[kind]
    if kind == "CenterPoint" and model.part("pts_backbone").get("type", None) == pillarnest.BACKBONE:
        convert = pillarnest.convert  # it has CenterPoint's class
    try:
        converted, network = convert(foreign, checkpoint, read_state(checkpoint))
    except ValidationError as error:  # a value that our configuration does not allow
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{config}: no counterpart here: {where}: {first['msg']}".replace(": : ", ": ")) from None
    save_model(out, converted, network, [f"checkpoint {checkpoint.name} of mmdet3d"])
    return converted, network


# Imports a PointPillars network with folded batch normalisations, as inference toolkits keep it, as a run.
#
# The network is SECOND's for KITTI (Yan et al., 2018; Lang et al., 2019). Its tensors are called pillar, blocks.I.J,
# deblocks.I and heads.NAME; grid, layers, classes and anchors are those of a configuration such as
# configs/kitti/pointpillars.yaml. The weights absorb what differs from ours:
#
# - A point is x, y, z between 0 and 1 within the grid, and intensity between 0 and 1; without offsets from the pillar.
# - Padding has features of 0 in that scale, so that it counts as the layer's bias in the maximum over a pillar.
# - Convolutions have biases. They become those of batch normalisations that change nothing else.
# - Rotations are clockwise, from -y. Encoded rotations change their sign; the anchors' are in the configuration.

_HEADS = {"classes": "cls", "boxes": "box", "directions": "dir_cls"}  # our branch -> theirs
_POINTS = "lidar.layers.0.points.layer.weight"
_Z, _Z_FROM_CENTRE = 2, 10  # features of a point, see `sensors/lidar/network.py`
_ROTATION = 6  # place in an encoded box


def import_pointpillars(config: Path, weights: Path, out: Path) -> tuple[Config, PerceptionModel]:
    """Write the network to the folder `out` as a run; returns configuration and model."""
    ours = load_config(config)
    _require_supported(ours, config)
    network = PerceptionModel(ours)
    state = network.state_dict()
    layers = _layers(ours)
    tensors = _read(weights)
    require_same_keys(tensors, _expected_tensors(state, layers), weights)
    for name, theirs in layers.items():
        weight = tensors[f"{theirs}.weight"]
        # Deblocks of stride 1 are transposed convolutions, and convolutions in our trunk.
        state[f"{name}.weight"] = weight.transpose(0, 1) if _is_unit_deblock(theirs, weight) else weight
        if name.startswith("heads."):
            state[f"{name}.bias"] = tensors[f"{theirs}.bias"]
        else:
            state |= _only_bias(
                name.replace(".points.", ".norm.").replace(".conv.", ".norm."), tensors[f"{theirs}.bias"]
            )
    state[_POINTS] = _point_weights(tensors["pillar.weight"], ours.grid.build(), network.get_buffer("lidar.scale"))
    for leaf in ("weight", "bias"):
        state[f"heads.detection.branches.boxes.layer.{leaf}"].unflatten(0, (-1, 7))[:, _ROTATION] *= -1
    network.load_state_dict(state)
    save_model(out, ours, network.eval(), [f"weights {weights.name}"])
    return ours, network


def _require_supported(config: Config, path: Path) -> None:
    lidar, head = config.model.lidar, config.tasks.get("detection")
    anchors = getattr(head, "anchors", None)
    if list(config.tasks) != ["detection"] or anchors is None or anchors.velocity:
        raise InputError(f"{path}: `tasks` must be detection alone, with `anchors` and `velocity: false`")
    if lidar is None or lidar.encoder != "padded" or lidar.hidden or config.model.fusion or config.model.trunk.pyramid:
        raise InputError(f"{path}: `model` must be LiDAR alone, its encoder padded and of one layer, without `fusion`")
    if sum(config.grid.z) == 0:
        raise InputError(f"{path}: grid.z must not be symmetric: z from its middle tells points from padding")


def _layers(config: Config) -> dict[str, str]:
    """Our layer -> theirs."""
    layers = {"lidar.layers.0.points.layer": "pillar"}
    for i, blocks in enumerate(config.model.trunk.blocks):
        layers |= {f"trunk.stages.{i}.{j}.conv.layer": f"blocks.{i}.{j}" for j in range(blocks + 1)}
        layers[f"trunk.lifts.{i}.conv.layer"] = f"deblocks.{i}"
    return layers | {f"heads.detection.branches.{ours}.layer": f"heads.{name}" for ours, name in _HEADS.items()}


def _expected_tensors(state: dict[str, Tensor], layers: dict[str, str]) -> dict[str, Tensor]:
    expected = {}
    for name, theirs in layers.items():
        weight = state[f"{name}.weight"]
        weight = weight[:, :4] if theirs == "pillar" else weight
        expected[f"{theirs}.weight"] = weight.transpose(0, 1) if _is_unit_deblock(theirs, weight) else weight
        channels = weight.shape[1 if theirs.startswith("deblocks") and not _is_unit_deblock(theirs, weight) else 0]
        expected[f"{theirs}.bias"] = weight.new_zeros(channels)
    return expected


def _is_unit_deblock(theirs: str, weight: Tensor) -> bool:
    return theirs.startswith("deblocks") and weight.shape[-1] == 1


def _only_bias(norm: str, bias: Tensor) -> dict[str, Tensor]:
    """A batch normalisation that adds a bias."""
    one = torch.ones_like(bias)
    values = {"weight": one, "bias": bias, "running_mean": 0 * one, "running_var": one - NORM_EPSILON}
    return {f"{norm}.{leaf}": value for leaf, value in values.items()}


def _point_weights(weight: Tensor, grid: BevGrid, scale: Tensor) -> Tensor:
    """(C, 11) of our features of a point from (C, 4) of x, y, z scaled to the grid, and intensity.

    What scaling adds for points, and not for padding, is a constant: z minus its distance from the grid's middle.
    """
    low, high = (torch.tensor(side, dtype=torch.float64) for side in zip(grid.x, grid.y, grid.z, strict=True))
    per_metre = weight[:, :3].double() / (high - low)
    constant = -(per_metre * low).sum(dim=1) / (sum(grid.z) / 2)
    ours = weight.new_zeros(len(weight), len(scale), dtype=torch.float64)
    ours[:, :3], ours[:, 3] = per_metre, weight[:, 3].double() / 255
    ours[:, _Z] += constant
    ours[:, _Z_FROM_CENTRE] -= constant
    return (ours / scale.double()).float()


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot read the weights ({' '.join(str(error).split())})") from None
