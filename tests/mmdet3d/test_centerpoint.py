"""An imported CenterPoint against mmdet3d's own, with the same random weights: pillars, maps, boxes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import centerpoints
import numpy as np
import pytest
import torch
from made_up import keyframe
from mmdet3d_drives import lidar_frames
from vocabulary import NUSCENES

from perception.checkpoint import load_model
from perception.frame import Boxes, Frame
from perception.mmdet3d.centerpoint import NAMES
from perception.model import PerceptionModel
from perception.sensors.inputs import InputSpec, prepare
from perception.tasks import tasks_of
from perception.tasks.task import add_prefix, part_of, to_prediction

TOLERANCE = 1e-4
TURNS = [([1, 0, 2, 3, 4], [-1, 1, 1, 1, 1]), ([0, 1, 2, 3, 4], [-1, -1, 1, 1, 1]), ([1, 0, 2, 3, 4], [1, -1, 1, 1, 1])]


@pytest.fixture(scope="module")
def frames(nuscenes_root: Path, sim_root: Path) -> dict[str, Frame]:
    return lidar_frames(nuscenes_root, sim_root, "0-2", 9)


@pytest.fixture(scope="module")
def theirs(frames: dict[str, Frame]) -> Any:
    model = centerpoints.build()
    centerpoints.spread(model, frames["real"].points)
    return model


@pytest.fixture(scope="module")
def ours(theirs: Any) -> PerceptionModel:
    return load_model(centerpoints.run(centerpoints.save(theirs)))[0]


@torch.no_grad()
def dense(model: PerceptionModel, frame: Frame, spec: InputSpec) -> dict[str, torch.Tensor]:
    return part_of("detection", model({name: torch.from_numpy(a) for name, a in prepare(frame, spec).items()}))


@pytest.mark.parametrize("name", ["real", "another", "simulated"])
def test_maps_are_those_of_mmdet3d(theirs: Any, ours: PerceptionModel, frames: dict[str, Frame], name: str) -> None:
    expected = centerpoints.raw(theirs, frames[name].points)
    found = dense(ours, frames[name], InputSpec.of(ours.config))
    for i, task in enumerate(expected):
        assert task.keys() == {*NAMES.values()}
        for mine, other in NAMES.items():
            wanted = task[other][:, [1, 0, 2]] if other == "dim" else task[other]
            assert wanted.std() > 0.1, other  # the map says something
            torch.testing.assert_close(found[f"group{i}_{mine}"], wanted, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("limit", ["train", "eval"])
def test_pillars_are_those_of_hard_voxelisation(frames: dict[str, Frame], limit: str) -> None:
    """With the limits of training, 30000, and of testing, 40000, on more pillars than either."""
    layer = centerpoints.build().data_preprocessor.voxel_layer
    clouds = [frame.points for frame in frames.values()]
    clouds += [cloud[:, order] * np.float32(sign) for cloud in clouds for order, sign in TURNS]
    points = np.concatenate(clouds)
    layer.train(limit == "train")
    voxels, cells, counts = (array.numpy() for array in layer(torch.from_numpy(points)))
    layer.eval()
    most = {"train": 30_000, "eval": 40_000}[limit]
    assert len(voxels) == most
    spec = InputSpec.of(centerpoints.convert())
    spec = replace(spec, lidar=spec.lidar.model_copy(update={"max_pillars": most}))
    inputs = prepare(replace(frames["real"], **keyframe(points)), spec)
    places = cells[:, 1] * 512 + cells[:, 2]
    order = np.argsort(places)
    np.testing.assert_array_equal(inputs["pillar_cells"][0], places[order])
    np.testing.assert_array_equal(inputs["pillar_counts"][0], counts[order])
    np.testing.assert_array_equal(inputs["pillar_points"][0], voxels[order])


@pytest.mark.parametrize("name", ["real", "simulated"])
@pytest.mark.parametrize("nms", ["circle", "rotate"])
def test_boxes_are_those_of_mmdet3d(theirs, ours, frames, name, nms):
    theirs.pts_bbox_head.test_cfg["nms_type"] = nms
    config = centerpoints.convert(nms)
    with torch.no_grad():
        outputs = ours.heads["detection"].decode(dense(ours, frames[name], InputSpec.of(config)))
    arrays = {key: value.numpy() for key, value in outputs.items()}
    tasks = tasks_of(config.tasks, config.head_grid, NUSCENES)
    found = to_prediction(tasks, add_prefix("detection", arrays)).results["detection"]
    require_equal(found, centerpoints.predict(theirs, frames[name].points))


def require_equal(found: Boxes, expected: Any) -> None:
    """One to one: corners, centres, velocities, scores, labels."""
    assert len(found) == len(expected.scores_3d) > 60
    boxes = expected.bboxes_3d
    centers, corners = boxes.gravity_center.numpy(), boxes.corners.numpy()
    # Each of theirs has one of ours at its place with its label, and no two the same one.
    distance = np.abs(found.centers[:, None] - centers).max(axis=-1)
    distance += found.labels[:, None] != expected.labels_3d.numpy()
    distance += np.abs(found.scores[:, None] - expected.scores_3d.numpy())
    partner = distance.argmin(axis=1)
    assert len({*partner.tolist()}) == len(found)
    assert distance.min(axis=1).max() < TOLERANCE
    tensor = boxes.tensor.numpy()[partner]
    np.testing.assert_allclose(found.sizes, tensor[:, [4, 3, 5]], rtol=TOLERANCE)
    np.testing.assert_allclose(found.velocities[:, :2], tensor[:, 7:9], atol=TOLERANCE)
    turn = found.yaws - tensor[:, 6]
    np.testing.assert_allclose(np.sin(turn), 0, atol=1e-3)
    np.testing.assert_allclose(np.cos(turn), 1, atol=1e-3)
    # Whatever the conventions of size and yaw are: the corners are at the same places.
    apart = np.linalg.norm(found.corners()[:, :, None] - corners[partner][:, None], axis=-1).min(axis=2)
    assert (apart < 1e-3 * np.maximum(1, found.sizes.max(axis=1, keepdims=True))).all()
