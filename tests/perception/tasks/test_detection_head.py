"""Targets, losses and decoding of the detection head against closed forms and each other."""

import math

import numpy as np
import pytest
import torch
from bench_ceiling import perfect_outputs
from hypothesis import given, settings
from hypothesis import strategies as st
from perfect import perfect_detection
from vocabulary import ATTRIBUTES, CLASSES, NUSCENES

from perception.frame import Boxes, Frame
from perception.grid import BevGrid
from perception.tasks.detection.center_head import REGRESSION
from perception.tasks.detection.config import DetectionHead, Suppression
from perception.tasks.detection.headings import along_axis
from perception.tasks.detection.losses import center_losses, gaussian_focal
from perception.tasks.detection.targets import center_labels, gaussian_radius
from perception.tasks.detection.task import DetectionTask
from perception.tasks.map.config import MapHead
from perception.tasks.map.network import MapSegmentationHead
from perception.training.loader import batch_labels

GRID = BevGrid(x=(-16.0, 16.0), y=(-8.0, 8.0), cell=0.5)


def labels_of(config: DetectionHead, *frames: Boxes) -> dict[str, torch.Tensor]:
    """Labels of a batch, as the loader makes and joins them."""
    task, here = DetectionTask(config, GRID, NUSCENES), np.eye(4)
    empty = [Frame("", 0, "ego", here, here, None, {}, boxes=boxes) for boxes in frames]
    return batch_labels([{"detection": task.labels(frame)} for frame in empty])["detection"]


def random_boxes(rng: np.random.Generator, n: int) -> Boxes:
    """Boxes whose cells are far enough apart that each is a peak of its own."""
    cells = rng.choice(8 * 4, size=n, replace=False)
    centers = np.stack([cells % 8 * 4.0 - 14 + rng.uniform(-1, 1, n), cells // 8 * 4.0 - 6 + rng.uniform(-1, 1, n)], 1)
    boxes = Boxes.from_yaws(
        np.concatenate([centers, rng.normal(size=(n, 1))], axis=1), rng.uniform(0.3, 6, (n, 3)),
        rng.uniform(-np.pi, np.pi, n), rng.normal(size=(n, 2)), rng.integers(0, 10, n), np.full(n, -1), np.ones(n),
    )  # fmt: skip
    return boxes


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 20))
def test_decoding_perfect_outputs_returns_the_boxes(seed, n):
    boxes = random_boxes(np.random.default_rng(seed), n)
    head = DetectionTask(DetectionHead(top_k=50), GRID, NUSCENES).network(8)
    perfect = perfect_detection(labels_of(DetectionHead(min_radius=2), boxes))
    decoded = {k: v[0].numpy() for k, v in head.decode(perfect).items()}
    assert (decoded["scores"][:n] > 0.99).all()
    order = np.lexsort((decoded["boxes"][:n, 1], decoded["boxes"][:n, 0]))
    expected_order = np.lexsort((boxes.centers[:, 1], boxes.centers[:, 0]))
    got, want = decoded["boxes"][:n][order], boxes.select(expected_order)
    np.testing.assert_allclose(got[:, :3], want.centers, atol=1e-5)
    np.testing.assert_allclose(got[:, 3:6], want.sizes, rtol=1e-5)
    np.testing.assert_allclose(got[:, 6:8], np.stack([np.sin(want.yaws), np.cos(want.yaws)], 1), atol=1e-5)
    np.testing.assert_allclose(got[:, 8:], want.velocities[:, :2], atol=1e-6)
    np.testing.assert_array_equal(decoded["labels"][:n][order], want.labels)


GROUPED = (CLASSES[:4], CLASSES[4:])
FINE = {"pedestrian": 4, "traffic_cone": 4, "bicycle": 2}


@st.composite
def crowds(draw: st.DrawFn) -> tuple[Boxes, list[float]]:
    """Objects on distinct subcells that do not touch, up to four in one cell, and their certainties."""
    label = {name: i for i, name in enumerate(CLASSES)}
    kinds = draw(st.lists(st.sampled_from(["pedestrian", "traffic_cone", "bicycle", "car"]), min_size=1, max_size=10))
    taken: dict[str, set[tuple[int, int]]] = {}
    places = []
    for kind in kinds:
        per_cell = FINE.get(kind, 1)
        place = st.integers(0, 3 * per_cell - 1)  # nine cells at the corner of the grid
        free = st.tuples(place, place).filter(
            lambda at, kind=kind: all(max(abs(at[0] - x), abs(at[1] - y)) > 1 for x, y in taken.get(kind, ()))
        )
        at = draw(free)
        taken.setdefault(kind, set()).add(at)
        places.append([GRID.x[0] + at[0] * GRID.cell / per_cell, GRID.y[0] + at[1] * GRID.cell / per_cell])
    n = len(kinds)
    inside = np.array(draw(st.lists(st.tuples(st.floats(0.1, 0.9), st.floats(0.1, 0.9)), min_size=n, max_size=n)))
    across = np.array([0.5 / FINE.get(kind, 1) for kind in kinds])
    centers = np.concatenate([np.array(places) + inside * across[:, None], np.zeros((n, 1))], axis=1)
    sizes = np.array([[2.0, 4.0, 1.5] if kind == "car" else [0.6, 0.7, 1.8] for kind in kinds])
    labels = np.array([label[kind] for kind in kinds])
    boxes = Boxes.from_yaws(centers, sizes, np.zeros(n), np.zeros((n, 2)), labels, np.full(n, -1), np.ones(n))
    return boxes, draw(st.lists(st.floats(0.4, 0.95), min_size=n, max_size=n, unique=True))


@settings(deadline=None, max_examples=40)
@given(crowds(), st.sampled_from([(), GROUPED]))
def test_each_object_of_a_crowd_has_a_peak_of_its_own(crowd, groups):
    """Also two in one cell, whose regression is that of the more certain one: the other stays at its subcell."""
    boxes, certainties = crowd
    task = DetectionTask(DetectionHead(top_k=50, groups=groups, subcells=FINE, min_radius=1), GRID, NUSCENES)
    dense = perfect_outputs(task, boxes, certainties)
    with torch.no_grad():
        decoded = task.network(8).decode({name: torch.from_numpy(values[None]) for name, values in dense.items()})
    found = task.result({name: values[0].numpy() for name, values in decoded.items()})
    found = found.select(found.scores > 0.3)
    assert sorted(found.labels) == sorted(boxes.labels)
    np.testing.assert_allclose(np.sort(found.scores), np.sort(np.float32(certainties)), atol=1e-5)
    cells = GRID.continuous(boxes.centers).astype(int)
    for center, label, certainty in zip(boxes.centers, boxes.labels, certainties, strict=True):
        place = found.centers[np.argmin(abs(found.scores - certainty))][:2]
        shared = (cells == GRID.continuous(center[None]).astype(int)).all(axis=1).sum() > 1
        across = GRID.cell / FINE.get(CLASSES[label], 1)
        np.testing.assert_allclose(place, center[:2], atol=2 * across if shared else 1e-4)


def test_the_taxonomy_says_which_classes_are_fine_and_how_far_apart():
    nms = Suppression(threshold=0.1, kind="circle", within="class")
    head = DetectionHead(subcells=4, suppression=nms).settled(NUSCENES)
    assert head.groups == (CLASSES,)
    assert head.subcells == dict.fromkeys(("motorcycle", "bicycle", "pedestrian", "traffic_cone"), 4)
    sizes = [each.size for each in NUSCENES.classes]
    assert head.suppression.radii == tuple(min(width, length) / 2 for width, length, _ in sizes)
    given = DetectionHead(
        subcells={"car": 2}, groups=GROUPED, suppression=nms.model_copy(update={"radii": (1.0,) * 10})
    )
    assert given.settled(NUSCENES) == given


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"subcells": {"tram": 2}}, "subcells: 'tram' is not among the classes"),
        ({"suppression": {"threshold": 0.1, "kind": "circle", "within": "class", "radii": [1.0]}}, "each class, 10"),
        ({"suppression": {"threshold": 0.1, "kind": "circle"}, "groups": GROUPED}, "each group, 2"),
    ],
)
def test_a_head_that_does_not_fit_its_classes_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        DetectionHead.model_validate(content).require_taxonomy(NUSCENES)


def test_each_group_is_normalised_by_its_own_objects():
    boxes = random_boxes(np.random.default_rng(3), 12)
    boxes.labels[:] = [0] * 9 + [8, 8, 6]
    config = DetectionHead(groups=GROUPED, subcells=FINE, min_radius=1)
    labels = labels_of(config, boxes)
    head = DetectionTask(config, GRID, NUSCENES).network(8)
    torch.manual_seed(0)
    dense = {name: torch.randn_like(values) for name, values in head(torch.zeros(1, 8, *GRID.shape)).items()}
    terms = center_losses(dense, labels, config)
    assert [terms[f"group{i}_regression"].counts.item() for i in (0, 1)] == [9, 3]
    for i, own in enumerate((boxes.labels < 4, boxes.labels >= 4)):
        alone = center_losses(dense, labels_of(config, boxes.select(own)), config)
        for name in ("heatmap", "regression"):
            torch.testing.assert_close(terms[f"group{i}_{name}"].mean(), alone[f"group{i}_{name}"].mean())
    heat = [gaussian_focal(dense[f"group1_{name}"], labels[f"group1_{name}"]) for name in
            ("heatmap", "heatmap_2x", "heatmap_4x")]  # fmt: skip
    expected = sum(loss.sums.item() for loss in heat) / 3
    assert terms["group1_heatmap"].mean().item() == pytest.approx(expected, rel=1e-5)


def test_attributes_fit_their_classes():
    head = DetectionTask(DetectionHead(top_k=200), GRID, NUSCENES).network(8)
    torch.manual_seed(0)
    dense = {name: torch.randn(1, n, *GRID.shape) for name, n in {**REGRESSION, "heatmap": 10, "attribute": 8}.items()}
    decoded = head.decode(dense)
    family = {"pedestrian": "pedestrian", "motorcycle": "cycle", "bicycle": "cycle"}
    for label, attribute in zip(decoded["labels"][0].tolist(), decoded["attributes"][0].tolist(), strict=True):
        name = CLASSES[label]
        if name in ("barrier", "traffic_cone"):
            assert attribute == -1
        else:
            assert ATTRIBUTES[attribute].split(".")[0] == family.get(name, "vehicle")


@given(st.floats(0.5, 30), st.floats(0.5, 30), st.floats(0.1, 0.9))
def test_radius_is_the_smallest_move_that_leaves_the_wanted_iou(length, width, overlap):
    radius = gaussian_radius(np.array(length), np.array(width), overlap).item()
    area = length * width
    shared = (length - radius) * (width - radius)
    shifted = shared / (2 * area - shared)
    shrunk = (length - 2 * radius) * (width - 2 * radius) / area
    grown = area / ((length + 2 * radius) * (width + 2 * radius))
    assert abs(min(shifted, shrunk, grown) - overlap) < 1e-9


def test_boxes_without_points_or_outside_the_grid_are_no_targets():
    boxes = random_boxes(np.random.default_rng(0), 3)
    boxes.centers[1, 0] = 16.5
    boxes.num_points[:] = [0, 5, 5]
    labels = labels_of(DetectionHead(min_radius=1), boxes, Boxes.none())
    assert labels["real"].sum(1).tolist() == [1, 0]
    assert (labels["heatmap"] == 1).sum((1, 2, 3)).tolist() == [1, 0]
    # The task leaves out what no point hit; what is outside the grid is no label of the head itself, either.
    assert center_labels(boxes, GRID, DetectionHead().settled(NUSCENES))["real"].tolist() == [True, True]


def test_gaussian_focal_equals_its_equation_and_has_right_gradients():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    target = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    target[0, 1, 2, 3] = target[1, 0, 0, 0] = 1
    target[1, 2, 3, 4] = 1
    expected = []  # of each frame
    for frame in zip(logits.tolist(), target.tolist(), strict=True):
        pairs = zip(*(np.ravel(values).tolist() for values in frame), strict=True)
        expected.append(math.fsum(cell_loss(1 / (1 + math.exp(-x)), y) for x, y in pairs))
    loss = gaussian_focal(logits, target)
    assert loss.counts.tolist() == [1, 2]
    torch.testing.assert_close(loss.sums.tolist(), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(loss.mean().item(), sum(expected) / 3, rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(lambda x: gaussian_focal(x, target).mean(), (logits,))


def cell_loss(p: float, target: float) -> float:
    return -((1 - p) ** 2) * math.log(p) if target == 1 else -((1 - target) ** 4) * p**2 * math.log(1 - p)


def test_unknown_velocities_and_padding_carry_no_gradient():
    boxes = random_boxes(np.random.default_rng(1), 4)
    boxes.velocities[2] = np.nan
    labels = labels_of(DetectionHead(min_radius=1), boxes, boxes.select(np.arange(2)))
    names = {**REGRESSION, "heatmap": 10, "attribute": 8}
    dense = {name: torch.randn(2, n, *GRID.shape, requires_grad=True) for name, n in names.items()}
    head = DetectionHead().settled(NUSCENES)
    losses = {name: term.mean() for name, term in center_losses(dense, labels, head).items()}
    assert all(torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()
    touched = (dense["velocity"].grad != 0).any(1).flatten(1)  # B cells
    assert set(touched[0].nonzero().flatten().tolist()) == {labels["cells"][0, i].item() for i in (0, 1, 3)}
    assert set(touched[1].nonzero().flatten().tolist()) == set(labels["cells"][1, :2].tolist())


@given(st.floats(-math.pi, math.pi), st.floats(-1.5, 1.5), st.floats(0.01, 2), st.floats(0.01, 2))
def test_a_rough_heading_chooses_the_end_of_the_axis(yaw, off, length, size):
    heading = length * torch.tensor([math.sin(yaw + off), math.cos(yaw + off)], dtype=torch.float64)
    axis = size * torch.tensor([math.sin(2 * yaw), math.cos(2 * yaw)], dtype=torch.float64)
    found = along_axis(heading, axis)
    expected = torch.tensor([math.sin(yaw), math.cos(yaw)], dtype=torch.float64)
    torch.testing.assert_close(found / found.norm(), expected, rtol=0, atol=1e-9)


def test_decoded_headings_lie_on_the_axis():
    """Although each regressed heading is off by 1 rad."""
    boxes, config = random_boxes(np.random.default_rng(2), 12), DetectionHead(axis=True, top_k=12)
    head = DetectionTask(config, GRID, NUSCENES).network(8)
    labels = labels_of(config, boxes)
    dense = perfect_detection(labels)
    turned = labels["heading"] @ torch.tensor([[math.cos(1), -math.sin(1)], [math.sin(1), math.cos(1)]]).T
    for name, values in (("heading", turned), ("axis", labels["axis"])):
        dense[name] = torch.zeros(1, 2, *GRID.shape)
        dense[name].flatten(2)[0, :, labels["cells"][0]] = values[0].T
    decoded = head.decode(dense)["boxes"][0].numpy()
    order, expected = np.argsort(decoded[:, 0]), boxes.select(np.argsort(boxes.centers[:, 0]))
    off = np.arctan2(decoded[order, 6], decoded[order, 7]) - expected.yaws
    np.testing.assert_allclose((off + np.pi) % (2 * np.pi) - np.pi, 0, atol=1e-5)


def test_map_loss_counts_only_frames_with_a_map():
    logits, labels = torch.randn(2, 6, 3, 3), torch.randint(0, 2, (2, 6, 3, 3))
    head = MapSegmentationHead(MapHead(weight=3.0), 8, 6)
    loss = head.losses({"logits": logits}, {"cells": labels, "known": torch.tensor([True, False])})["cells"]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[0], labels[0].float())
    torch.testing.assert_close(loss.mean(), 3.0 * expected)
    none = head.losses({"logits": logits}, {"cells": labels, "known": torch.tensor([False, False])})["cells"]
    assert none.mean().item() == 0
    assert none.each().tolist() == [0, 0]
