"""Augmentation moves points, boxes, velocities, projections and pixels together."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_inputs import painted_frame, spot_of
from vocabulary import RIG

from perception.config import Augment, CameraBranch, Image
from perception.frame import Boxes, Frame
from perception.grid import BevGrid
from perception.sensors.inputs import InputSpec, fit_width, prepare
from perception.training.augment import draw_image_affine, draw_similarity, transformed

STRONG = Augment(flip=True, rotation=3.0, scale=0.3, translation=2.0, image_scale=0.2, image_flip=True)
FRAME = painted_frame(np.array([20.0, 2.0, 0.5]))
MIRRORED_CORNERS = [1, 0, 3, 2, 5, 4, 7, 6]  # left and right change places
seeds = st.integers(0, 2**32 - 1)


def _boxes(rng: np.random.Generator, number: int = 4) -> Boxes:
    """Boxes that also pitch and roll."""
    boxes = Boxes.from_yaws(
        centers=rng.uniform([5, -8, -1], [30, 8, 1], (number, 3)),
        sizes=rng.uniform(0.5, 5, (number, 3)),
        yaws=rng.uniform(-np.pi, np.pi, number),
        velocities=rng.normal(size=(number, 2)) * 5,
        labels=np.arange(number),
        attributes=np.full(number, -1),
        scores=np.ones(number),
    )
    tilt = np.linalg.qr(np.eye(3) + 0.05 * rng.normal(size=(3, 3)))[0]
    return replace(boxes, rotations=tilt * np.sign(np.linalg.det(tilt)) @ boxes.rotations)


def _frame(rng: np.random.Generator) -> Frame:
    points = rng.uniform([0, -15, -2, 0, 0], [40, 15, 2, 255, 0.5], (300, 5)).astype(np.float32)
    return replace(FRAME, points=points, boxes=_boxes(rng))


def _apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:3, :3].T + matrix[:3, 3]


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_box_corners_move_with_the_similarity(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frame, similarity = _frame(rng), draw_similarity(rng, STRONG)
    after = transformed(frame, similarity).boxes
    expected = _apply(similarity, frame.boxes.corners())
    if np.linalg.det(similarity) < 0:
        expected = expected[:, MIRRORED_CORNERS]
    np.testing.assert_allclose(after.corners(), expected, atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(after.rotations), 1, atol=1e-9)
    moved = _apply(similarity, frame.boxes.centers + 0.1 * frame.boxes.velocities)
    np.testing.assert_allclose(after.centers + 0.1 * after.velocities, moved, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_points_stay_in_their_boxes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frame = _frame(rng)
    local = rng.uniform(-0.7, 0.7, (len(frame.boxes), 50, 3)) * frame.boxes.sizes[:, None, [1, 0, 2]]
    places = local @ frame.boxes.rotations.transpose(0, 2, 1) + frame.boxes.centers[:, None]
    points = np.concatenate([places.reshape(-1, 3), rng.uniform(0, 1, (local[..., 0].size, 2))], axis=1)
    after = transformed(replace(frame, points=points.astype(np.float32)), draw_similarity(rng, STRONG))
    moved = after.points[:, :3].reshape(local.shape)
    again = (moved - after.boxes.centers[:, None]) @ after.boxes.rotations
    size = after.boxes.sizes[:, None, [1, 0, 2]]
    # In a box's own axes, and in units of its size, only left and right may have changed places.
    expected = np.abs(local / frame.boxes.sizes[:, None, [1, 0, 2]])
    np.testing.assert_allclose(np.abs(again / size), expected, atol=1e-4)
    np.testing.assert_array_equal(after.points[:, 3:], points[:, 3:].astype(np.float32))


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_projections_see_through_the_similarity(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frame, similarity = _frame(rng), draw_similarity(rng, STRONG)
    after = transformed(frame, similarity)
    before = _pixels(frame.image_from_reference("CAM_FRONT"), frame.points[:, :3].astype(np.float64))
    moved = _apply(similarity, frame.points[:, :3].astype(np.float64))
    np.testing.assert_allclose(_pixels(after.image_from_reference("CAM_FRONT"), moved), before, atol=1e-5)
    np.testing.assert_allclose(after.points[:, :3], moved, atol=1e-4)


def _pixels(projection: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(N, 2) pixels of the points in front; far to the side they need no care."""
    homogeneous = points @ projection[:, :3].T + projection[:, 3]
    return homogeneous[:, :2] / homogeneous[:, 2:]


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_pixels_move_with_the_projected_point(seed: int) -> None:
    rng = np.random.default_rng(seed)
    point = rng.uniform([15, -2, 0], [25, 2, 1])
    frame, similarity = painted_frame(point), draw_similarity(rng, STRONG)
    size = Image(height=256, width=704)
    affine = draw_image_affine(rng, STRONG, (900, 1600, 3), size)
    spec = InputSpec(BevGrid(), None, CameraBranch(image=size), RIG)
    inputs = prepare(transformed(frame, similarity), spec, {"CAM_FRONT": affine})
    projection = inputs["image_from_reference"][0, 0].astype(np.float64)
    expected = _pixels(projection, _apply(similarity, point[None]))[0]
    np.testing.assert_allclose(spot_of(inputs["images"][0, 0]), expected, atol=0.08)


@settings(max_examples=100, deadline=None)
@given(seeds)
def test_pictures_fill_the_network_or_lie_within_it(seed: int) -> None:
    size = Image(height=128, width=352)
    affine = draw_image_affine(np.random.default_rng(seed), STRONG, (900, 1600, 3), size)
    left, right = sorted((affine @ [[-0.5, 1599.5], [0, 0], [1, 1]])[0])
    assert 0.8 * 352 <= right - left <= 1.2 * 352 + 1e-9
    covers = left <= -0.5 + 1e-9 and right >= 351.5 - 1e-9
    within = left >= -0.5 - 1e-9 and right <= 351.5 + 1e-9
    assert covers or within


def test_everything_that_is_configured_is_drawn() -> None:
    rng = np.random.default_rng(0)
    similarities = np.array([draw_similarity(rng, Augment()) for _ in range(400)])
    scales = np.cbrt(np.abs(np.linalg.det(similarities)))
    forward = similarities[:, :2, 0]
    assert (similarities[:, 0, 0] < 0).mean() == pytest.approx(0.5, abs=0.1)
    assert (np.linalg.det(similarities) < 0).mean() == pytest.approx(0.5, abs=0.1)
    assert np.abs(np.arctan(forward[:, 1] / forward[:, 0])).max() == pytest.approx(0.39, abs=0.01)
    assert (scales.min(), scales.max()) == pytest.approx((0.95, 1.05), abs=0.002)
    assert similarities[:, :3, 3].std(axis=0) == pytest.approx([0.5] * 3, abs=0.05)
    size = Image(height=128, width=352)
    affines = np.array([draw_image_affine(rng, Augment(), (900, 1600), size) for _ in range(400)])
    assert (affines[:, 0, 0] < 0).mean() == pytest.approx(0.5, abs=0.1)
    assert np.abs(affines[:, 0, 0] / 0.22).min() == pytest.approx(0.94, abs=0.003)


def test_nothing_is_changed_when_all_is_off() -> None:
    off = Augment(flip=False, rotation=0, scale=0, translation=0, image_scale=0, image_flip=False)
    rng, size = np.random.default_rng(0), Image(height=128, width=352)
    np.testing.assert_array_equal(draw_similarity(rng, off), np.eye(4))
    affine = draw_image_affine(rng, off, (900, 1600), size)
    np.testing.assert_allclose(affine, fit_width((900, 1600), size), atol=1e-12)


def test_unknown_velocities_stay_unknown_and_missing_sensors_missing() -> None:
    rng = np.random.default_rng(0)
    boxes = _boxes(rng)
    boxes.velocities[1] = np.nan
    frame = replace(_frame(rng), points=None, boxes=boxes)
    after = transformed(frame, draw_similarity(rng, STRONG))
    assert after.points is None
    assert np.isnan(after.boxes.velocities).all(axis=1).tolist() == [False, True, False, False]
    assert transformed(replace(frame, boxes=None), np.eye(4)).boxes is None
