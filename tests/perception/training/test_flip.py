"""Test-time flip: what is mirrored and mirrored back is what was there."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import model
from training_runs import small
from vocabulary import RIG

from deploy.golden import synthetic_frame
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.frame import Boxes, Frame
from perception.grid import BevGrid
from perception.model import PerceptionModel
from perception.predict import TorchPredictor
from perception.tasks.detection.config import DetectionHead
from perception.tasks.detection.task import DetectionTask
from perception.tasks.network import Axis
from perception.taxonomy import load_taxonomy
from perception.training.augment import transformed

SIGNS = {"x": np.diag([-1.0, 1, 1, 1]), "y": np.diag([1.0, -1, 1, 1])}


def scene() -> Frame:
    """Objects in cells of their own."""
    rng, count = np.random.default_rng(0), 12
    boxes = Boxes.from_yaws(
        centers=np.stack(
            [np.linspace(-11.03, 10.61, count), rng.uniform(-12, 12, count), rng.normal(size=count)], axis=1
        ),
        sizes=rng.uniform(0.5, 4, (count, 3)),
        yaws=rng.uniform(-np.pi, np.pi, count),
        velocities=rng.normal(size=(count, 2)),
        labels=np.arange(count) % 10,
        attributes=np.full(count, -1),
        scores=np.ones(count),
    )
    return replace(synthetic_frame("ego", RIG, 0), boxes=boxes)


@pytest.mark.parametrize("axis", ["x", "y"])
def test_labels_of_the_mirror_image_become_those_of_the_scene(axis: Axis) -> None:
    grid, taxonomy, frame = BevGrid(), load_taxonomy("nuscenes"), scene()
    task = DetectionTask(DetectionHead(axis=True), grid, taxonomy)
    network = task.network(4)
    dense, wanted = [], task.labels(frame)
    for each in (frame, transformed(frame, SIGNS[axis])):
        labels = task.labels(each)
        maps = {name: torch.from_numpy(values)[None] for name, values in labels.items() if values.ndim == 3}
        for name in network.regressed.keys() & labels.keys():
            maps[name] = torch.zeros(1, labels[name].shape[1], *grid.shape)
            maps[name].flatten(2)[0, :, labels["cells"]] = torch.from_numpy(labels[name]).T
        dense.append(maps)
    assert len(set(wanted["cells"].tolist())) == len(wanted["cells"]) == 12
    found = network.unflipped(dense[1], axis)
    assert found.keys() == dense[0].keys()
    for name, values in dense[0].items():
        at = (lambda maps: maps.flatten(2)[..., wanted["cells"]]) if name in network.regressed else (lambda maps: maps)
        torch.testing.assert_close(at(found[name]), at(values), rtol=0, atol=1e-5)


@pytest.mark.parametrize("axes", ["x", "y"])
def test_the_average_over_mirror_images_sees_a_mirrored_scene_mirrored(recorded_root: Path, axes: str) -> None:
    """Whatever the weights: the four images of both scenes are the same."""
    tables = NuScenesTables(recorded_root, "v1.0-tiny")
    network, frame = model(), tables.frame(tables.samples()[0])
    mirrored = frame
    for axis in axes:
        mirrored = transformed(mirrored, SIGNS[axis])
    average, single = TorchPredictor(network, flip=True), TorchPredictor(network)
    here, there = average(frame).results, average(mirrored).results
    a, b = here["detection"], there["detection"]
    signs = np.array([-1.0 if axis in axes else 1.0 for axis in "xyz"])
    assert len(a) > 10
    np.testing.assert_allclose(b.centers * signs, a.centers, atol=1e-3)
    np.testing.assert_allclose(b.velocities * signs, a.velocities, atol=1e-3)
    np.testing.assert_allclose(np.cos(b.yaws) * signs[0], np.cos(a.yaws), atol=1e-3)
    np.testing.assert_allclose(np.sin(b.yaws) * signs[1], np.sin(a.yaws), atol=1e-3)
    np.testing.assert_allclose(b.scores, a.scores, atol=1e-4)
    rows, columns = (slice(None, None, int(sign)) for sign in (signs[1], signs[0]))
    np.testing.assert_allclose(there["map"][:, rows, columns], here["map"], atol=1e-4)
    assert not np.allclose(single(mirrored).results["map"][:, rows, columns], single(frame).results["map"], atol=1e-2)


def test_an_area_that_is_not_symmetric_has_no_mirror_image() -> None:
    lopsided = small().model_copy(update={"grid": small().grid.model_copy(update={"x": (0.0, 51.2)})})
    with pytest.raises(InputError, match=r"--flip: the area of small is not symmetric: x \(0.0, 51.2\) m"):
        TorchPredictor(PerceptionModel(lopsided), flip=True)
