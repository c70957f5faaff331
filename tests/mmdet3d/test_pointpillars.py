"""An imported PointPillars against mmdet3d's own, with the same random weights: maps and boxes."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from exported import folder
from infos import MMDET3D_CLASSES
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmdet3d_drives import lidar_frames
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor, nn
from vocabulary import CLASSES

from perception.checkpoint import load_model
from perception.frame import Frame, Prediction
from perception.mmdet3d.importing import import_checkpoint
from perception.mmdet3d.install import import_mmdet3d
from perception.model import PerceptionModel
from perception.sensors.inputs import InputSpec, prepare
from perception.tasks.task import add_prefix, part_of, to_prediction
from perception.training.loader import batch_labels

TOLERANCE = 1e-4  # of the maps
BOXES = 1e-3  # of what is decoded from them: places are in diagonals of the anchors, which are up to 11 m
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


class Pair(NamedTuple):
    theirs: Any
    ours: PerceptionModel


@pytest.fixture(scope="module")
def frames(nuscenes_root: Path, sim_root: Path) -> dict[str, Frame]:
    return lidar_frames(nuscenes_root, sim_root, "1-3", 10)


@pytest.fixture(scope="module", params=["fpn", "secfpn"])
def pair(request: pytest.FixtureRequest, frames: dict[str, Frame]) -> Pair:
    """mmdet3d's network with a view of 13 m, and the same as a run of ours."""
    theirs = built(small(request.param), frames["real"].points)
    return Pair(theirs, load_model(imported(theirs, small(request.param)))[0])


def inputs_of(model: PerceptionModel, frame: Frame, limit: int | None = None) -> dict[str, np.ndarray]:
    """Without the padding that no limit of pillars asks for."""
    spec = InputSpec.of(model.config)
    if limit is not None:
        spec = replace(spec, lidar=spec.lidar.model_copy(update={"max_pillars": limit}))
    inputs = prepare(frame, spec)
    there = int((inputs["pillar_counts"] > 0).sum())
    return {name: np.ascontiguousarray(array[:, : there + 1]) for name, array in inputs.items()}


@torch.no_grad()
def dense(model: PerceptionModel, inputs: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return part_of("detection", model({name: torch.from_numpy(array) for name, array in inputs.items()}))


def assert_same_maps(theirs: tuple[list[torch.Tensor], ...], ours: dict[str, torch.Tensor]) -> None:
    """Up to the order of the classes, and of width and length."""
    classes, boxes, directions = theirs
    assert len(ours) == 3 * len(classes)
    for i in range(len(classes)):
        own = [MMDET3D_CLASSES.index(name) for name in CLASSES]
        for name, theirs_, order in (
            ("classes", classes[i], own),
            ("boxes", boxes[i], [0, 1, 2, 4, 3, 5, 6, 7, 8]),
            ("directions", directions[i], [0, 1]),
        ):
            wanted = theirs_.unflatten(1, (-1, len(order)))[:, :, order].flatten(1, 2)
            assert wanted.std() > 0.1, name  # the map says something
            torch.testing.assert_close(ours[f"{name}.{i}"], wanted, atol=TOLERANCE, rtol=0)


def assert_same_boxes(theirs: Any, ours: Prediction, least: int) -> None:
    """One to one: label, score, centre, size, heading, velocity; absolute below 1, relative above."""
    boxes = theirs.bboxes_3d
    yaws = torch.stack([boxes.yaw.sin(), boxes.yaw.cos()], dim=1)
    numbers = [boxes.gravity_center, boxes.dims[:, [1, 0, 2]], yaws, boxes.tensor[:, 7:9], theirs.scores_3d[:, None]]
    numbers = torch.cat(numbers, dim=1).numpy()
    labels = np.array([CLASSES.index(MMDET3D_CLASSES[label]) for label in theirs.labels_3d])
    found = ours.results["detection"]
    headings = found.rotations[:, [1, 0], [0, 0]]
    mine = np.concatenate(
        [found.centers, found.sizes, headings, found.velocities[:, :2], found.scores[:, None]], axis=1
    )
    assert len(mine) == len(numbers) >= least
    assert len(np.unique(labels)) > 5
    left = list(range(len(mine)))
    for number, label in zip(numbers, labels, strict=True):
        distances = np.abs(mine[left] - number) / np.maximum(1, np.abs(number))
        off = np.where(found.labels[left] == label, distances.max(axis=1), np.inf)
        best = int(np.argmin(off))
        assert off[best] <= BOXES, (label, number, off[best])
        left.pop(best)


def require_same(pair: Pair, inputs: Mapping[str, np.ndarray], points: np.ndarray, training: bool, least: int) -> None:
    maps = dense(pair.ours, inputs)
    assert_same_maps(raw(pair.theirs, points, training), maps)
    outputs = {name: value.numpy() for name, value in pair.ours.heads["detection"].decode(maps).items()}
    found = to_prediction(pair.ours.tasks, add_prefix("detection", outputs))
    assert_same_boxes(predicted(pair.theirs, points, training), found, least)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", ["real", "another", "simulated"])
def test_maps_and_boxes_are_those_of_mmdet3d(pair: Pair, frames: dict[str, Frame], name: str, training: bool) -> None:
    """With as many pillars as in training and as in testing; on the real frames the first are too few for all."""
    points, limit = frames[name].points, LIMITS[0 if training else 1]
    inputs = inputs_of(pair.ours, frames[name], limit)
    if name != "simulated":
        assert (inputs["pillar_counts"].size == limit) == training
    require_same(pair, inputs, points, training, least=20)


@pytest.mark.parametrize("neck", ["fpn", "secfpn"])
def test_configurations_as_they_are_shipped(frames: dict[str, Frame], neck: str) -> None:
    """At 50 m on 400 x 400 pillars; it takes its time, because this is the size of the published checkpoints."""
    points = frames["real"].points
    theirs = built(NECKS[neck], points)
    ours, config = load_model(imported(theirs, NECKS[neck]))
    assert config.model.lidar.max_pillars == 40000
    require_same(Pair(theirs, ours), inputs_of(ours, frames["real"]), points, training=False, least=100)


def test_losses_are_those_of_mmdet3d(pair: Pair, frames: dict[str, Frame]) -> None:
    """For the annotated objects of a real keyframe; velocities that are not known are zeros in mmdet3d's data."""
    boxes, grid = frames["real"].boxes, pair.ours.config.grid
    boxes = replace(boxes, velocities=np.nan_to_num(boxes.velocities))
    maps = raw(pair.theirs, frames["real"].points)
    inside = (np.abs(boxes.centers[:, :2]) < grid.x[1]).all(axis=1) & (boxes.num_points > 0)
    near = boxes.select(inside)
    assert len(near) >= 4
    width, length, height = near.sizes.T
    underside = near.centers - np.stack([0 * height, 0 * height, height / 2], axis=1)
    numbers = [underside, length[:, None], width[:, None], height[:, None], near.yaws[:, None], near.velocities[:, :2]]
    truth = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(torch.from_numpy(np.concatenate(numbers, axis=1)).float(), box_dim=9),
        labels_3d=torch.tensor([MMDET3D_CLASSES.index(CLASSES[label]) for label in near.labels]),
    )
    expected = pair.theirs.pts_bbox_head.loss_by_feat(*maps, [truth], [{}])
    dense_ = dense(pair.ours, inputs_of(pair.ours, frames["real"]))
    frame = replace(frames["real"], boxes=boxes)
    labels = batch_labels([{"detection": pair.ours.tasks["detection"].labels(frame)}])
    found = pair.ours.head("detection").losses(dense_, labels["detection"])
    for ours, theirs in {"classes": "loss_cls", "boxes": "loss_bbox", "directions": "loss_dir"}.items():
        torch.testing.assert_close(found[ours].mean(), sum(expected[theirs]), rtol=1e-4, atol=1e-5)
