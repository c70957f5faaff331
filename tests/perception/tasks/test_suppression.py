"""Overlap of boxes seen from above and suppression of boxes, against shapely's polygons and a loop over pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import affinity
from shapely.geometry import Polygon, box
from vocabulary import CLASSES, NUSCENES

from perception.frame import Boxes
from perception.grid import BevGrid
from perception.tasks.detection.config import DetectionHead, Suppression
from perception.tasks.detection.nms import footprints, non_maximum_suppression, rotated_iou
from perception.tasks.detection.task import DetectionTask
from perception.tasks.task import add_prefix, to_prediction


def crowd(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes on top of each other, some of them the same, and their scores."""
    boxes = np.zeros((n, 10), np.float32)
    boxes[:, :3] = rng.normal(size=(n, 3)) * 3
    boxes[:, 3:6] = rng.uniform(0.3, 5, (n, 3))
    yaws = rng.choice([0, np.pi / 2, 0.3, *rng.uniform(-np.pi, np.pi, 5)], n)
    boxes[:, 6], boxes[:, 7] = np.sin(yaws) * 2, np.cos(yaws) * 2
    twins = rng.random(n) < 0.3
    boxes[twins] = boxes[rng.integers(0, n, twins.sum())]
    return boxes, (rng.permutation(n) / n).astype(np.float32)  # no two alike


def polygon(box: np.ndarray) -> Polygon:
    return rectangle(np.array([*box[[0, 1, 3, 4]], *box[6:8] / np.hypot(*box[6:8])], np.float64))


def one_by_one(boxes: np.ndarray, scores: np.ndarray, rules: Suppression, group: int) -> tuple[list[int], bool]:
    """The definition, and whether rounding could decide otherwise."""
    kept: list[int] = []
    close = False
    for i in np.argsort(-scores):
        x, y, z = boxes[i, :3].astype(float)
        limits = zip((x, y, z), rules.low, rules.high, strict=True)
        if scores[i] <= np.float32(rules.threshold) or not all(low <= v <= high for v, low, high in limits):
            continue
        good = True
        for j in kept:
            if rules.kind == "circle":
                value, limit = -np.hypot(*(boxes[i, :2].astype(float) - boxes[j, :2])), -rules.radii[group]
            else:
                a, b = polygon(boxes[i]), polygon(boxes[j])
                value, limit = a.intersection(b).area / a.union(b).area, rules.overlap
            close |= abs(value - limit) < 1e-4
            good &= value < limit
        if good:
            kept.append(int(i))
    return kept[: rules.most], close


def outputs(boxes: np.ndarray, scores: np.ndarray, labels: int | np.ndarray) -> dict[str, np.ndarray]:
    return {"boxes": boxes, "scores": scores, "labels": np.broadcast_to(labels, scores.shape)}


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 40),
    kind=st.sampled_from(["circle", "rotated"]),
    overlap=st.floats(0.05, 0.9),
    most=st.integers(1, 20),
)
def test_survivors_equal_a_loop_over_pairs(seed: int, n: int, kind: str, overlap: float, most: int) -> None:
    boxes, scores = crowd(np.random.default_rng(seed), n)
    space = {"low": (-5, -4, -6), "high": (5, 6, 6), "radii": (0.5, 2.0)}
    rules = Suppression(threshold=0.2, kind=kind, overlap=overlap, most=most, **space)
    expected, close = one_by_one(boxes, scores, rules, 1)
    if not close:
        assert non_maximum_suppression(outputs(boxes, scores, 0), rules, 1).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.sampled_from(["circle", "rotated"]))
def test_within_a_class_only_boxes_of_that_class_suppress_each_other(seed: int, n: int, kind: str) -> None:
    """As if each class were alone, in a group of its own."""
    rng = np.random.default_rng(seed)
    (boxes, scores), labels = crowd(rng, n), rng.integers(0, 3, n)
    rules = Suppression(threshold=0.2, kind=kind, within="class", radii=(0.5, 2.0, 4.0), most=4)
    alone = rules.model_copy(update={"within": "group"})
    expected: set[int] = set()
    for label in range(3):
        own = np.flatnonzero(labels == label)
        expected |= {*own[non_maximum_suppression(outputs(boxes[own], scores[own], label), alone, label)].tolist()}
    assert {*non_maximum_suppression(outputs(boxes, scores, labels), rules, 0).tolist()} == expected


def test_groups_do_not_suppress_each_other() -> None:
    one, _ = crowd(np.random.default_rng(0), 1)
    outputs = {
        "boxes": np.broadcast_to(one, (1, 2, 3, 10)),
        "scores": np.array([[[0.5, 0.4, 0.3], [0.9, 0.8, 0.05]]], np.float32),
        "labels": np.array([[[0, 0, 0], [1, 2, 1]]]),
        "attributes": np.zeros((1, 2, 3), np.int64),
    }
    rules = Suppression(threshold=0.1, low=(-99,) * 3, high=(99,) * 3, kind="circle", radii=(1.0, 1.0))
    classes = (CLASSES[:1], CLASSES[1:])

    def predicted(suppression: Suppression | None) -> Boxes:
        task = DetectionTask(DetectionHead(groups=classes, suppression=suppression), BevGrid(), NUSCENES)
        return to_prediction({"detection": task}, add_prefix("detection", outputs)).results["detection"]

    found = predicted(rules)
    assert found.scores.tolist() == pytest.approx([0.9, 0.5])
    assert found.labels.tolist() == [1, 0]
    assert len(predicted(None)) == 6


# ---- overlap


def rectangle(footprint: np.ndarray) -> Polygon:
    x, y, width, length, sin, cos = footprint
    upright = box(-length / 2, -width / 2, length / 2, width / 2)
    return affinity.affine_transform(upright, [cos, -sin, sin, cos, x, y])


@given(st.integers(0, 10**6))
def test_overlap_is_that_of_the_polygons(seed: int) -> None:
    """Of about half of the boxes the heading is along an axis."""
    rng = np.random.default_rng(seed)
    yaw = np.where(rng.random(6) < 0.5, rng.integers(0, 4, 6) * np.pi / 2, rng.uniform(-np.pi, np.pi, 6))
    boxes = np.column_stack([rng.uniform(-4, 4, (6, 2)), rng.uniform(0.2, 8, (6, 2)), np.sin(yaw), np.cos(yaw)])
    one, *others = map(rectangle, boxes)
    expected = [one.intersection(each).area / one.union(each).area for each in others]
    np.testing.assert_allclose(rotated_iou(boxes[0], boxes[1:]), expected, atol=1e-9)


def test_a_box_without_area_overlaps_nothing_and_one_without_heading_is_along_x() -> None:
    flat = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    np.testing.assert_array_equal(rotated_iou(flat, np.array([flat, [0, 0, 2, 2, 0, 1]])), [0, 0])
    boxes = np.array([[1, 2, 3, 4, 5, 6, 3.0, 4.0, 0, 0], [1, 2, 3, 4, 5, 6, 0.0, 0.0, 0, 0]], np.float32)
    np.testing.assert_allclose(footprints(boxes), [[1, 2, 4, 5, 0.6, 0.8], [1, 2, 4, 5, 0, 1]], rtol=1e-12)
