"""Targets and losses of the head with anchors against loops, closed forms and its own decoding."""

import math

import numpy as np
import pytest
import torch
from anchor_objects import objects
from anchored_model import config as model_config
from anchored_model import run
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabulary import NUSCENES

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Boxes, Frame
from perception.modules.base_weights import base_hash
from perception.tasks.detection.anchor_head import AnchorHead
from perception.tasks.detection.anchor_losses import NOTHING, UNSURE, anchor_losses, anchor_targets, focal
from perception.tasks.detection.anchors import all_anchors
from perception.tasks.detection.config import AnchorHead as Settings
from perception.tasks.detection.task import DetectionTask
from perception.tasks.network import Loss
from perception.training.adapt import adapt
from perception.training.checkpoint import load_model
from perception.training.loader import batch_labels

SHAPES = [(32, 32), (16, 16), (8, 8)]


def anchors_of(neck: str) -> Settings:
    head = model_config(neck).tasks["detection"]
    return head.anchors


def task_of(neck: str) -> DetectionTask:
    config = model_config(neck)
    return DetectionTask(config.tasks["detection"], config.head_grid, NUSCENES)


def labels_of(neck: str, boxes: Boxes) -> dict[str, torch.Tensor]:
    """Of one frame."""
    frame = Frame("", 0, "lidar", np.eye(4), np.eye(4), None, {}, boxes=boxes)
    return batch_labels([{"detection": task_of(neck).labels(frame)}])["detection"]


def means(losses: dict[str, Loss]) -> dict[str, torch.Tensor]:
    return {name: loss.mean() for name, loss in losses.items()}


def as_numbers(boxes: Boxes) -> tuple[torch.Tensor, torch.Tensor]:
    """x y z w l h yaw vx vy, and the classes."""
    numbers = [boxes.centers, boxes.sizes, boxes.yaws[:, None], boxes.velocities[:, :2]]
    return torch.from_numpy(np.concatenate(numbers, axis=1)), torch.from_numpy(boxes.labels)


def overlap(a: list[float], b: list[float]) -> float:
    """Of two boxes x y z w l h yaw, as the rectangles along the axes that are nearest to them."""
    spans = []
    for x, y, _, w, l, _, yaw in (a, b):  # noqa: E741
        dx, dy = (w, l) if abs(math.sin(yaw)) > math.sqrt(0.5) else (l, w)
        spans.append((x - dx / 2, x + dx / 2, y - dy / 2, y + dy / 2))
    (a0, a1, a2, a3), (b0, b1, b2, b3) = spans
    shared = max(min(a1, b1) - max(a0, b0), 0) * max(min(a3, b3) - max(a2, b2), 0)
    return shared / (a[3] * a[4] + b[3] * b[4] - shared)


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 10**6), st.integers(0, 6))
def test_targets_are_what_a_loop_over_objects_and_anchors_gives(seed: int, n: int) -> None:
    config, boxes = anchors_of("pyramid"), objects(seed, n)
    anchors = all_anchors(config, SHAPES[1:])
    targets = anchor_targets(config, *as_numbers(boxes), anchors)
    numbers = np.concatenate([boxes.centers, boxes.sizes, boxes.yaws[:, None]], axis=1).tolist()
    table = np.array([[overlap(box, anchor) for anchor in anchors.tolist()] for box in numbers]).reshape(
        n, len(anchors)
    )
    expected = np.full(len(anchors), NOTHING)
    close: np.ndarray = np.zeros(len(anchors), bool)  # to a limit, or to another object's overlap: rounding decides
    if n:
        most = table.max(axis=0)
        expected = np.where(most < 0.3, NOTHING, np.where(most >= 0.6, boxes.labels[table.argmax(axis=0)], UNSURE))
        for label, own in zip(boxes.labels, table, strict=True):
            if own.max() >= 0.3:
                expected[own > own.max() - 1e-5] = label
        close = (np.abs(most - 0.3) < 1e-5) | (np.abs(most - 0.6) < 1e-5)
        for own in table:
            near = own > own.max() - 1e-5
            close |= near & bool(np.ptp(own[near]) > 0)
    assert (targets.labels.numpy() == expected)[~close].all()
    assert set(targets.positives.tolist()) == set(np.flatnonzero(targets.labels.numpy() >= 0))


@pytest.mark.parametrize("neck", ["pyramid", "joined"])
def test_perfect_outputs_lose_nothing_and_decode_to_the_objects(neck: str) -> None:
    config, boxes = anchors_of(neck), objects(3, 8)
    shapes = SHAPES[: len(config.scales)]
    anchors = all_anchors(config, shapes)
    targets = anchor_targets(config, *as_numbers(boxes), anchors)
    classes, codes = torch.full((len(anchors), 10), -30.0), torch.zeros(len(anchors), 9)
    directions = torch.zeros(len(anchors), 2)
    classes[targets.positives, targets.labels[targets.positives]] = 30.0
    codes[targets.positives] = targets.codes
    directions[targets.positives, targets.directions] = 60.0
    dense, first = {}, 0
    for i, (rows, columns) in enumerate(shapes):
        count = 6 * rows * columns
        for name, values in (("classes", classes), ("boxes", codes), ("directions", directions)):
            part = values[first : first + count].reshape(1, 6, rows, columns, -1)
            dense[f"{name}.{i}"] = part.movedim(-1, 2).flatten(1, 2)
        first += count
    losses = means(anchor_losses(config, dense, labels_of(neck, boxes)))
    assert all(loss.item() < 1e-5 for loss in losses.values()), losses
    found = AnchorHead(config, 8, NUSCENES).decode(dense)
    prediction = task_of(neck).result({k: v[0].numpy() for k, v in found.items()})
    matched = {label: boxes.labels == label for label in np.unique(boxes.labels)}
    reached = [i for i in range(len(boxes)) if (targets.labels[targets.positives] == boxes.labels[i]).any()]
    assert len(reached) > 4
    for box in range(len(prediction)):
        own = boxes.select(matched[prediction.labels[box]])
        nearest = np.abs(own.centers - prediction.centers[box]).sum(axis=1).argmin()
        np.testing.assert_allclose(prediction.centers[box], own.centers[nearest], atol=1e-4)
        np.testing.assert_allclose(prediction.sizes[box], own.sizes[nearest], rtol=1e-4)
        np.testing.assert_allclose(prediction.rotations[box], own.rotations[nearest], atol=1e-4)
        np.testing.assert_allclose(prediction.velocities[box], own.velocities[nearest], atol=1e-4)


@pytest.mark.parametrize("alpha", [0.25, 0.6])
def test_focal_loss_equals_its_equation_and_has_right_gradients(alpha: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 10, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([3, NOTHING, UNSURE, 0, 9, NOTHING])
    expected = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        for i, x in enumerate(row):
            p = 1 / (1 + math.exp(-x))
            if label != UNSURE:
                right, other = alpha * (1 - p) ** 2 * math.log(p), (1 - alpha) * p**2 * math.log(1 - p)
                expected -= right if i == label else other
    torch.testing.assert_close(focal(logits, labels, alpha).item(), expected, rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(lambda x: focal(x, labels, alpha), (logits,))


def test_unknown_velocities_unseen_objects_and_other_headings() -> None:
    """NaN has no gradient, an object without a point is none, and half a turn is the direction's matter alone."""
    config, boxes = anchors_of("joined"), objects(5, 4)
    boxes.velocities[:] = np.nan
    dense = {
        f"{name}.0": torch.randn(1, 6 * n, 32, 32, requires_grad=True)
        for name, n in {"classes": 10, "boxes": 9, "directions": 2}.items()
    }
    losses = means(anchor_losses(config, dense, labels_of("joined", boxes)))
    sum(losses.values()).backward()  # type: ignore[union-attr]
    gradient = dense["boxes.0"].grad.unflatten(1, (6, 9))  # type: ignore[union-attr]
    assert gradient[:, :, :7].any()
    assert not gradient[:, :, 7:].any()

    turned = Boxes.from_headings(
        boxes.centers, boxes.sizes, -np.stack([np.sin(boxes.yaws), np.cos(boxes.yaws)], 1), boxes.velocities[:, :2],
        boxes.labels, boxes.attributes, boxes.scores,
    )  # fmt: skip
    other = means(anchor_losses(config, dense, labels_of("joined", turned)))
    torch.testing.assert_close(other["boxes"], losses["boxes"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other["classes"], losses["classes"])
    assert abs(other["directions"] - losses["directions"]) > 1e-3

    boxes.num_points[:] = 0
    nothing = means(anchor_losses(config, dense, labels_of("joined", boxes)))
    assert nothing["boxes"].item() == nothing["directions"].item() == 0


def test_a_module_trains_on_a_frozen_base_with_anchors(sim_root, tmp_path) -> None:
    tables, module = NuScenesTables(sim_root, "v1.0-sim"), {"name": "wet", "kind": "low_rank", "slots": ["trunk.*"]}
    base, _ = load_model(run("pyramid"))
    last = adapt(run("pyramid"), module, tables, None, [], tmp_path / "wet", steps=2, batch=1, learning_rate=1e-3)
    adapted, config = load_model(last)
    assert base_hash(adapted) == base_hash(base)
    assert [each.name for each in config.modules] == ["wet"]
    moved = [p for name, p in adapted.named_parameters() if ".computations.wet." in name and name.endswith("up")]
    assert all(p.any() for p in moved)
