"""The head with anchors against loops over all of them."""

import functools
import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import anchored_config as model_config
from networks import anchored_objects as objects
from torch import Tensor
from vocabulary import NUSCENES

from perception.config import parse_config
from perception.errors import InputError
from perception.frame import Boxes, Frame
from perception.io.section import parse_section
from perception.tasks.detection import anchor_head
from perception.tasks.detection.anchor_head import NOTHING, UNSURE, AnchorHead, all_anchors, anchor_targets
from perception.tasks.detection.config import AnchorHead as Settings
from perception.tasks.detection.task import DetectionTask
from perception.training.loader import batch_labels

ANCHORS = [
    {"size": [1.9, 4.6, 1.7], "bottom": -1.8, "x": [-8.0, 8.0], "y": [-6.0, 6.0]},
    {"size": [0.7, 0.6, 1.8], "bottom": -1.6, "x": [-7.0, 7.0], "y": [-5.0, 5.0]},
]
LEVELS = [(6, 8), (3, 4)]


def configured(**changes: object) -> Settings:
    content = {"anchors": ANCHORS, "scales": [1, 2], "candidates": 40, "direction_offset": -0.7854}
    return parse_section(Settings, content | changes, "test")


def random_dense(config: Settings, frames: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    anchors = len(config.anchors) * len(config.rotations)
    return {
        f"{name}.{i}": 2 * torch.randn(frames, anchors * n, *shape, generator=generator)
        for i, shape in enumerate(LEVELS[: len(config.scales)])
        for name, n in {"classes": 10, "boxes": 9, "directions": 2}.items()
    }


def decoded_by_loop(config: Settings, dense: dict[str, Tensor], frame: int) -> np.ndarray:
    """(K, 20) box and class scores of every chosen anchor of the frame, level by level, best class first."""
    chosen = []
    for level, scale in enumerate(config.scales):
        classes, codes, directions = (
            dense[f"{name}.{level}"][frame].double().numpy() for name in ("classes", "boxes", "directions")
        )
        _, rows, columns = classes.shape
        found, kinds = [], [*enumerate(product(config.anchors, config.rotations))]
        for row, column, (a, (anchor, rotation)) in product(range(rows), range(columns), kinds):
            w, l, h = (scale * side for side in anchor.size)  # noqa: E741
            x = anchor.x[0] + (column + 0.5) * (anchor.x[1] - anchor.x[0]) / columns
            y = anchor.y[0] + (row + 0.5) * (anchor.y[1] - anchor.y[0]) / rows
            code = codes[9 * a : 9 * a + 9, row, column]
            yaw = rotation + code[6]
            while yaw < config.direction_offset:
                yaw += math.pi
            while yaw >= config.direction_offset + math.pi:
                yaw -= math.pi
            first, second = directions[2 * a : 2 * a + 2, row, column]
            yaw += math.pi * (second > first)
            diagonal = math.hypot(w, l)
            box = [
                x + code[0] * diagonal, y + code[1] * diagonal, anchor.bottom + h / 2 + code[2] * h,
                w * math.exp(code[3]), l * math.exp(code[4]), h * math.exp(code[5]),
                math.sin(yaw), math.cos(yaw), code[7], code[8],
            ]  # fmt: skip
            found.append([*box, *(1 / (1 + np.exp(-classes[10 * a : 10 * a + 10, row, column])))])
        chosen += sorted(found, key=lambda each: -max(each[10:]))[: config.candidates]
    return np.array(sorted(chosen, key=lambda each: -max(each[10:])))


@pytest.mark.parametrize("limit", [0.0, 1.0])
@pytest.mark.parametrize("scales", [[1], [1, 2]])
def test_decoding_is_what_a_loop_over_the_anchors_gives(scales: list[int], limit: float) -> None:
    """Each class has all candidates, best first, with those below the threshold at the end."""
    config = configured(scales=scales, direction_limit_offset=limit)
    dense = random_dense(config)
    decoded = {name: value.numpy() for name, value in AnchorHead(config, 8, NUSCENES).decode(dense).items()}
    threshold, shown = config.suppression.threshold, 0
    for frame in range(2):
        candidates = decoded_by_loop(config, dense, frame)
        assert decoded["boxes"].shape == (2, 10, len(candidates), 10)
        if limit:  # another half turn back, which is the other direction's place
            candidates[:, 6:8] *= -1
        for label in range(10):
            above = candidates[candidates[:, 10 + label] > threshold]
            expected = above[np.argsort(-above[:, 10 + label])]
            own = {name: value[frame, label] for name, value in decoded.items()}
            np.testing.assert_allclose(own["boxes"][: len(above), :10], expected[:, :10], rtol=1e-5, atol=2e-5)
            np.testing.assert_allclose(own["scores"][: len(above)], expected[:, 10 + label], atol=1e-6)
            assert not own["scores"][len(above) :].any()
            assert (own["labels"] == label).all()
            shown += len(above) < len(candidates)
    assert shown > 5


def test_parts_that_do_not_fit_each_other_are_refused() -> None:
    for part, changes, message in (
        ("model.trunk", {"pyramid": False}, "detection: anchors.scales must have one for each .* feature maps, 1"),
        ("tasks.detection.anchors", {"scales": [1, 2]}, "one for each of the trunk's feature maps, 3"),
        ("tasks.map", {}, "tasks.map: reads one feature map, a trunk with `pyramid` gives one for each stage"),
        ("tasks.detection.anchors", {"candidates": 1280}, "candidates of all maps together must be fewer than 3840"),
        ("model.lidar", {"encoder": "masked"}, "model.lidar: `hidden` layers and .* are for the encoder `padded`"),
    ):
        content = model_config("pyramid").model_dump(mode="json")
        *path, last = part.split(".")
        section = functools.reduce(dict.__getitem__, path, content)
        section[last] = section.get(last, {}) | changes
        with pytest.raises(InputError, match=message):
            parse_config(content, "test")


# ---- targets and losses

SHAPES = [(32, 32), (16, 16), (8, 8)]


def task_of(neck: str) -> DetectionTask:
    config = model_config(neck)
    return DetectionTask(config.tasks["detection"], config.head_grid, NUSCENES)


def losses_of(neck: str, dense: dict[str, Tensor], boxes: Boxes) -> dict[str, Tensor]:
    """Means of one frame's losses."""
    frame = Frame("", 0, "lidar", np.eye(4), np.eye(4), None, {}, truth={"boxes": boxes})
    task = task_of(neck)
    labels = batch_labels([{"detection": task.labels(frame)}])["detection"]
    return {name: loss.mean() for name, loss in anchor_head.anchor_losses(task.config.anchors, dense, labels).items()}


def as_numbers(boxes: Boxes) -> tuple[Tensor, Tensor]:
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
    config, boxes = task_of("pyramid").config.anchors, objects(seed, n)
    anchors = all_anchors(config, SHAPES[1:])
    targets = anchor_targets(config, *as_numbers(boxes), anchors)
    numbers = np.concatenate([boxes.centers, boxes.sizes, boxes.yaws[:, None]], axis=1).tolist()
    overlaps = [[overlap(box, anchor) for anchor in anchors.tolist()] for box in numbers]
    table = np.array(overlaps).reshape(n, len(anchors))
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
    config, boxes = task_of(neck).config.anchors, objects(3, 8)
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
    losses = losses_of(neck, dense, boxes)
    assert all(loss.item() < 1e-5 for loss in losses.values()), losses
    found = AnchorHead(config, 8, NUSCENES).decode(dense)
    prediction = task_of(neck).result({k: v[0].numpy() for k, v in found.items()})
    reached = [i for i in range(len(boxes)) if (targets.labels[targets.positives] == boxes.labels[i]).any()]
    assert len(reached) > 4
    for box in range(len(prediction)):
        own = boxes.select(boxes.labels == prediction.labels[box])
        nearest = np.abs(own.centers - prediction.centers[box]).sum(axis=1).argmin()
        for field in ("centers", "rotations", "velocities"):
            np.testing.assert_allclose(getattr(prediction, field)[box], getattr(own, field)[nearest], atol=1e-4)
        np.testing.assert_allclose(prediction.sizes[box], own.sizes[nearest], rtol=1e-4)


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
    torch.testing.assert_close(anchor_head.focal(logits, labels, alpha).item(), expected, rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(lambda x: anchor_head.focal(x, labels, alpha), (logits,))


def test_unknown_velocities_unseen_objects_and_other_headings() -> None:
    """NaN has no gradient, an object without a point is none, and half a turn is the direction's matter alone."""
    boxes, generator = objects(5, 4), torch.Generator().manual_seed(0)
    boxes.velocities[:] = np.nan
    dense = {
        f"{name}.0": torch.randn(1, 6 * n, 32, 32, generator=generator, requires_grad=True)
        for name, n in {"classes": 10, "boxes": 9, "directions": 2}.items()
    }
    losses = losses_of("joined", dense, boxes)
    sum(losses.values()).backward()
    gradient = dense["boxes.0"].grad.unflatten(1, (6, 9))
    assert gradient[:, :, :7].any()
    assert not gradient[:, :, 7:].any()

    back = np.diag([-1.0, -1, 1])
    turned = replace(boxes, rotations=boxes.rotations @ back)
    other = losses_of("joined", dense, turned)
    torch.testing.assert_close(other["boxes"], losses["boxes"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other["classes"], losses["classes"])
    assert abs(other["directions"] - losses["directions"]) > 1e-3

    boxes.num_points[:] = 0
    nothing = losses_of("joined", dense, boxes)
    assert nothing["boxes"].item() == nothing["directions"].item() == 0
