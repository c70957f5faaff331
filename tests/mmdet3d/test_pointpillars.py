"""An imported PointPillars against mmdet3d's own, with the same random weights: maps and boxes."""

from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

if find_spec("mmdet3d") is None:
    pytest.skip("mmdet3d is not installed: `make install-mmdet3d`", allow_module_level=True)

import anchored
from infos import MMDET3D_CLASSES
from vocabulary import CLASSES

from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.onnx_export import to_onnx
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Frame, Prediction
from perception.model import PerceptionModel
from perception.sensors.inputs import InputSpec, prepare
from perception.tasks.result import to_prediction
from perception.tasks.task import part_of, prefixed
from perception.training.checkpoint import load_model
from perception.training.loader import batch_labels

TOLERANCE = 1e-4  # of the maps
BOXES = 1e-3  # of what is decoded from them: places are in diagonals of the anchors, which are up to 11 m


class Pair(NamedTuple):
    theirs: Any
    ours: PerceptionModel


@pytest.fixture(scope="module")
def frames(nuscenes_root: Path, sim_root: Path) -> dict[str, Frame]:
    """Keyframes in the LiDAR's frame: two real ones with ten sweeps, and a simulated one with its two."""
    real, simulated = NuScenesTables(nuscenes_root, "v1.0-mini"), NuScenesTables(sim_root, "v1.0-sim")
    first, second = real.samples(selectors=["scene-0103:1-3"])
    return {
        "real": real.frame(first, "lidar", 10, cameras=False),
        "another": real.frame(second, "lidar", 10, cameras=False),
        "simulated": simulated.frame(simulated.samples()[0], "lidar", 10, cameras=False),
    }


@pytest.fixture(scope="module", params=["fpn", "secfpn"])
def pair(request: pytest.FixtureRequest, frames: dict[str, Frame]) -> Pair:
    """mmdet3d's network with a view of 13 m, and the same as a run of ours."""
    theirs = anchored.built(anchored.small(request.param), frames["real"].points)
    return Pair(theirs, load_model(anchored.imported(theirs, anchored.small(request.param)))[0])


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
    numbers = np.concatenate(
        [
            boxes.gravity_center.numpy(),
            boxes.dims.numpy()[:, [1, 0, 2]],
            np.stack([np.sin(boxes.yaw.numpy()), np.cos(boxes.yaw.numpy())], axis=1),
            boxes.tensor.numpy()[:, 7:9],
            theirs.scores_3d.numpy()[:, None],
        ],
        axis=1,
    )
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


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", ["real", "another", "simulated"])
def test_maps_and_boxes_are_those_of_mmdet3d(pair: Pair, frames: dict[str, Frame], name: str, training: bool) -> None:
    """With as many pillars as in training and as in testing; on the real frames the first are too few for all."""
    points, limit = frames[name].points, anchored.LIMITS[0 if training else 1]
    inputs = inputs_of(pair.ours, frames[name], limit)
    if name != "simulated":
        assert (inputs["pillar_counts"].size == limit) == training
    maps = dense(pair.ours, inputs)
    assert_same_maps(anchored.raw(pair.theirs, points, training), maps)
    outputs = {k: v.numpy() for k, v in pair.ours.heads["detection"].decode(maps).items()}
    found = to_prediction(pair.ours.tasks, prefixed("detection", outputs))
    assert_same_boxes(anchored.predicted(pair.theirs, points, training), found, least=20)


def test_boxes_of_the_exported_graph_are_those_of_mmdet3d(pair: Pair, frames: dict[str, Frame]) -> None:
    inputs = {name: inputs_of(pair.ours, frame) for name, frame in frames.items()}
    longest = max(each["pillar_counts"].size for each in inputs.values())
    spec = InputSpec.of(pair.ours.config)
    spec = replace(spec, lidar=spec.lidar.model_copy(update={"max_pillars": longest}))
    names = [f"detection/{output.name}" for output in pair.ours.tasks["detection"].outputs]
    engine = OnnxRuntimeEngine(to_onnx(pair.ours, prepare(frames["real"], spec), names).SerializeToString())
    for frame in frames.values():
        found = to_prediction(pair.ours.tasks, engine.run(prepare(frame, spec)))
        assert_same_boxes(anchored.predicted(pair.theirs, frame.points), found, least=20)


@pytest.mark.parametrize("neck", ["fpn", "secfpn"])
def test_configurations_as_they_are_shipped(frames: dict[str, Frame], neck: str) -> None:
    """At 50 m on 400 x 400 pillars; it takes its time, because this is the size of the published checkpoints."""
    points = frames["real"].points
    theirs = anchored.built(anchored.NECKS[neck], points)
    ours, config = load_model(anchored.imported(theirs, anchored.NECKS[neck]))
    assert config.model.lidar.max_pillars == 40000
    maps = dense(ours, inputs_of(ours, frames["real"]))
    assert_same_maps(anchored.raw(theirs, points), maps)
    outputs = {name: value.numpy() for name, value in ours.heads["detection"].decode(maps).items()}
    found = to_prediction(ours.tasks, prefixed("detection", outputs))
    assert_same_boxes(anchored.predicted(theirs, points), found, least=100)


def test_losses_are_those_of_mmdet3d(pair: Pair, frames: dict[str, Frame]) -> None:
    """For the annotated objects of a real keyframe; velocities that are not known are zeros in mmdet3d's data."""
    from mmdet3d.structures import LiDARInstance3DBoxes
    from mmengine.structures import InstanceData

    boxes, grid = frames["real"].boxes, pair.ours.config.grid
    boxes = replace(boxes, velocities=np.nan_to_num(boxes.velocities))
    maps = anchored.raw(pair.theirs, frames["real"].points)
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
