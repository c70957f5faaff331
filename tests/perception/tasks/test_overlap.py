"""Overlap of boxes seen from above against polygons."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from shapely import affinity
from shapely.geometry import Polygon, box

from perception.tasks.detection.rotated_iou import footprints, rotated_iou


def random_footprints(seed: int, n: int, spread: float) -> np.ndarray:
    """Random ones; of about half of them the heading is along an axis."""
    rng = np.random.default_rng(seed)
    yaw = np.where(rng.random(n) < 0.5, rng.integers(0, 4, n) * np.pi / 2, rng.uniform(-np.pi, np.pi, n))
    sides = rng.uniform(0.2, 8, (n, 2))
    return np.column_stack([rng.uniform(-spread, spread, (n, 2)), sides, np.sin(yaw), np.cos(yaw)])


def polygon(footprint: np.ndarray) -> Polygon:
    x, y, width, length, sin, cos = footprint
    upright = box(-length / 2, -width / 2, length / 2, width / 2)
    return affinity.affine_transform(upright, [cos, -sin, sin, cos, x, y])


@given(st.integers(0, 10**6))
def test_overlap_is_that_of_the_polygons(seed: int) -> None:
    one, *others = random_footprints(seed, 6, spread=4)
    expected = [polygon(one).intersection(polygon(o)).area / polygon(one).union(polygon(o)).area for o in others]
    np.testing.assert_allclose(rotated_iou(one, np.array(others)), expected, atol=1e-9)


def test_overlap_in_closed_form() -> None:
    """With itself, with a box inside, with its neighbour across the border, with the octagon of 45 degrees."""
    one = np.array([3.0, -2.0, 2.0, 2.0, 0.0, 1.0])
    half = np.sqrt(0.5)
    others = np.array([one, [3, -2, 1, 1, 0, 1], [5, -2, 2, 2, 1, 0], [3, -2, 2, 2, half, half], [9, 9, 2, 2, 0, 1]])
    octagon = 8 * (np.sqrt(2) - 1)
    np.testing.assert_allclose(rotated_iou(one, others), [1, 1 / 4, 0, octagon / (8 - octagon), 0], atol=1e-12)


def test_boxes_without_area_overlap_nothing() -> None:
    flat = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    np.testing.assert_array_equal(rotated_iou(flat, np.array([flat, [0, 0, 2, 2, 0, 1]])), [0, 0])


def test_footprints_of_boxes() -> None:
    """The heading is a vector of any length; without one it is along x."""
    boxes = np.array([[1, 2, 3, 4, 5, 6, 3.0, 4.0, 0, 0], [1, 2, 3, 4, 5, 6, 0.0, 0.0, 0, 0]], np.float32)
    expected = [[1, 2, 4, 5, 0.6, 0.8], [1, 2, 4, 5, 0, 1]]
    np.testing.assert_allclose(footprints(boxes), expected, rtol=1e-12)
