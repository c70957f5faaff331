"""mmdet3d against its stored outputs; and imported networks of full size against mmdet3d itself."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import foreign_networks
import make_mmdet3d_outputs as small
import numpy as np
import pytest
import torch
from infos import MMDET3D_CLASSES
from mmdet3d.structures import LiDARInstance3DBoxes
from mmdet3d_networks import CONFIGS, outputs, require_boxes, require_maps
from mmengine.structures import InstanceData
from vocabulary import CLASSES

from perception.checkpoint import load_model
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Frame
from perception.model import PerceptionModel
from perception.predict import TorchPredictor
from perception.sensors.inputs import prepare
from perception.tasks.task import part_of
from perception.training.loader import batch_labels

Maps = dict[str, torch.Tensor]


@pytest.mark.parametrize(
    ("network", "make"), [("kitti", small.of_kitti), *((name, partial(small.of_network, name)) for name in CONFIGS)]
)
def test_stored_outputs_are_those_of_mmdet3d(network: str, make: Callable[[], small.Arrays]) -> None:
    stored, found = outputs(network), make()
    assert stored.keys() == found.keys()
    for name, values in found.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(stored[name], values, rtol=1e-5, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(stored[name], values, name)


@pytest.fixture(scope="module")
def frame(nuscenes_root: Path) -> Frame:
    tables = NuScenesTables(nuscenes_root, "v1.0-mini")
    return tables.frame(tables.samples(selectors=["scene-0103:1-2"])[0], Reads("lidar", 9, cameras=False))


@torch.no_grad()
def maps_of(model: PerceptionModel, frame: Frame) -> Maps:
    inputs = {name: torch.from_numpy(array) for name, array in prepare(frame, model.config.spec).items()}
    return part_of("detection", model(inputs))


@pytest.mark.slow("networks of full size")
@pytest.mark.parametrize("network", foreign_networks.SHIPPED)
def test_shipped_configurations_at_the_size_of_published_checkpoints(
    frame: Frame, tmp_path: Path, network: str
) -> None:
    """Maps, boxes, and the losses of PointPillars."""
    theirs, points = foreign_networks.build(network), frame.points
    foreign_networks.spread(theirs, points)
    run = foreign_networks.imported(theirs, network, tmp_path)
    ours = load_model(run)[0]
    assert ours.config.model.lidar.max_pillars == 40_000
    found, expected = maps_of(ours, frame), foreign_networks.maps_of(theirs, points)
    require_maps(found, expected, tolerance=1e-4)
    boxes = TorchPredictor.load(run)(frame).results["detection"]
    require_boxes(boxes, foreign_networks.boxes_of(theirs, points), tolerance=1e-3)
    if not foreign_networks.has_centers(theirs):
        require_losses(ours, found, theirs.pts_bbox_head, expected, frame)


def require_losses(ours: PerceptionModel, found: Maps, head: Any, maps: Maps, frame: Frame) -> None:
    """For the annotated objects; velocities that are not known are zeros in mmdet3d's data."""
    boxes = replace(frame.boxes, velocities=np.nan_to_num(frame.boxes.velocities))
    near = (np.abs(boxes.centers[:, :2]) < ours.config.grid.x[1]).all(axis=1) & (boxes.num_points > 0)
    near = boxes.select(near)
    assert len(near) >= 4
    underside = near.centers - np.outer(near.sizes[:, 2] / 2, [0, 0, 1])
    numbers = [underside, near.sizes[:, [1, 0, 2]], near.yaws[:, None], near.velocities[:, :2]]
    truth = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(torch.from_numpy(np.concatenate(numbers, axis=1)).float(), box_dim=9),
        labels_3d=torch.tensor([MMDET3D_CLASSES.index(CLASSES[label]) for label in near.labels]),
    )
    levels = [[maps[key] for key in maps if key.startswith(name)] for name in ("classes", "boxes", "directions")]
    expected = head.loss_by_feat(*levels, [truth], [{}])
    annotated = replace(frame, truth={"boxes": boxes.transformed(frame.global_from_reference)})
    labels = batch_labels([{"detection": ours.tasks["detection"].labels(annotated)}])
    losses = ours.head("detection").losses(found, labels["detection"])
    for mine, other in {"classes": "loss_cls", "boxes": "loss_bbox", "directions": "loss_dir"}.items():
        torch.testing.assert_close(losses[mine].mean(), sum(expected[other]), rtol=1e-4, atol=1e-5)
