"""Augmentation moves points, boxes, velocities, projections and pixels together; test-time flip undoes its mirror."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import keyframe, paint_frame, spot_of
from vocabulary import RIG

from perception.config import Augment
from perception.frame import PER_POINT, Boxes, Frame
from perception.grid import BevGrid
from perception.sensors.camera.config import CameraBranch, Image
from perception.sensors.camera.picture import fit_width
from perception.sensors.inputs import InputSpec, prepare
from perception.training.augment import draw_image_affine, draw_similarity, shuffle_points

STRONG = Augment(flip=True, rotation=3.0, scale=0.3, translation=2.0, image_scale=0.2, image_flip=True)
FRAME = paint_frame(np.array([20.0, 2.0, 0.5]))
MIRRORED_CORNERS = [1, 0, 3, 2, 5, 4, 7, 6]  # left and right change places
FULL, SIZE = (900, 1600, 3), Image(height=128, width=352)
seeds = st.integers(0, 2**32 - 1)


def _boxes(rng: np.random.Generator, number: int = 4) -> Boxes:
    """Boxes that also pitch and roll."""
    boxes = Boxes.from_yaws(
        rng.uniform([5, -8, -1], [30, 8, 1], (number, 3)), rng.uniform(0.5, 5, (number, 3)),
        rng.uniform(-np.pi, np.pi, number), rng.normal(size=(number, 2)) * 5, np.arange(number),
        np.full(number, -1), np.ones(number),
    )  # fmt: skip
    tilt = np.linalg.qr(np.eye(3) + 0.05 * rng.normal(size=(3, 3)))[0]
    return replace(boxes, rotations=tilt * np.sign(np.linalg.det(tilt)) @ boxes.rotations)


def _frame(rng: np.random.Generator) -> Frame:
    points = rng.uniform([0, -15, -2, 0, 0], [40, 15, 2, 255, 0.5], (300, 5)).astype(np.float32)
    return replace(FRAME, truth={"boxes": _boxes(rng).transformed(FRAME.global_from_reference)}, **keyframe(points))


def _apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def _pixels(projection: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(N, 2) pixels of the points in front; far to the side they need no care."""
    homogeneous = points @ projection[:, :3].T + projection[:, 3]
    return homogeneous[:, :2] / homogeneous[:, 2:]


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_boxes_points_and_projections_move_with_the_similarity(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frame, similarity = _frame(rng), draw_similarity(rng, STRONG)
    after = frame.transformed(similarity)
    expected = _apply(similarity, frame.boxes.corners())
    if np.linalg.det(similarity) < 0:
        expected = expected[:, MIRRORED_CORNERS]
    np.testing.assert_allclose(after.boxes.corners(), expected, atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(after.boxes.rotations), 1, atol=1e-9)
    np.testing.assert_allclose(after.boxes.sizes, frame.boxes.sizes * np.cbrt(abs(np.linalg.det(similarity))))
    later = _apply(similarity, frame.boxes.centers + 0.1 * frame.boxes.velocities)
    np.testing.assert_allclose(after.boxes.centers + 0.1 * after.boxes.velocities, later, atol=1e-9)
    points = frame.points[:, :3].astype(np.float64)
    moved = _apply(similarity, points)
    np.testing.assert_allclose(after.points[:, :3], moved, atol=1e-4)
    np.testing.assert_array_equal(after.points[:, 3:], frame.points[:, 3:])
    pixels = [_pixels(each.image_from_reference("CAM_FRONT"), p) for each, p in ((frame, points), (after, moved))]
    np.testing.assert_allclose(pixels[1], pixels[0], atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_pixels_move_with_the_projected_point(seed: int) -> None:
    rng = np.random.default_rng(seed)
    point = rng.uniform([15, -2, 0], [25, 2, 1])
    frame, similarity = paint_frame(point), draw_similarity(rng, STRONG)
    size = Image(height=256, width=704)
    affine = draw_image_affine(rng, STRONG.model_copy(update={"image_rotation": 5.4}), FULL, size)
    spec = InputSpec(BevGrid(), {"camera": CameraBranch(image=size)}, RIG)
    inputs = prepare(frame.transformed(similarity), spec, {"CAM_FRONT": affine})
    projection, spot = inputs["image_from_reference"][0, 0].astype(np.float64), spot_of(inputs["images"][0, 0])
    np.testing.assert_allclose(spot, _pixels(projection, _apply(similarity, point[None]))[0], atol=0.08)


@settings(max_examples=100, deadline=None)
@given(seeds)
def test_pictures_fill_the_network_or_lie_within_it(seed: int) -> None:
    affine = draw_image_affine(np.random.default_rng(seed), STRONG, FULL, SIZE)
    left, right = sorted((affine @ [[-0.5, 1599.5], [0, 0], [1, 1]])[0])
    assert 0.8 * 352 <= right - left <= 1.2 * 352 + 1e-9
    covers = left <= -0.5 + 1e-9 and right >= 351.5 - 1e-9
    assert covers or (left >= -0.5 - 1e-9 and right <= 351.5 + 1e-9)


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
    affines = np.array([draw_image_affine(rng, Augment(), FULL, SIZE) for _ in range(400)])
    assert (affines[:, 0, 0] < 0).mean() == pytest.approx(0.5, abs=0.1)
    assert np.abs(affines[:, 0, 0] / 0.22).min() == pytest.approx(0.94, abs=0.003)
    by_axis = Augment(translation=(0.5, 0.2, 0.0))
    shifts = np.array([draw_similarity(rng, by_axis) for _ in range(2000)])[:, :3, 3]
    np.testing.assert_allclose(shifts.std(axis=0), [0.5, 0.2, 0], rtol=0.06)
    alike = [draw_similarity(np.random.default_rng(1), Augment(translation=each)) for each in (0.5, (0.5, 0.5, 0.5))]
    np.testing.assert_array_equal(*alike)


def test_what_is_off_changes_nothing_and_draws_no_numbers() -> None:
    """So samples of configurations without later options are what they were."""
    off = Augment(flip=False, rotation=0, scale=0, translation=0, image_scale=0, image_flip=False)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(draw_similarity(rng, off), np.eye(4))
    np.testing.assert_allclose(draw_image_affine(rng, off, FULL, SIZE), fit_width(FULL[:2], SIZE), atol=1e-12)
    one, other = np.random.default_rng(0), np.random.default_rng(0)
    draw_image_affine(one, Augment(), FULL, Image())
    other.uniform(), other.random(), other.uniform(size=2)
    assert one.random() == other.random()
    three = Augment(translation=(0.5, 0.5, 0), image_scale=(0.8, 1.2))
    assert Augment.model_validate_json(three.model_dump_json()) == three


def test_unknown_velocities_stay_unknown_and_missing_sensors_missing() -> None:
    rng = np.random.default_rng(0)
    boxes = _boxes(rng)
    boxes.velocities[1] = np.nan
    frame = replace(_frame(rng), points=None, truth={"boxes": boxes})
    after = frame.transformed(draw_similarity(rng, STRONG))
    assert after.points is None
    assert np.isnan(after.boxes.velocities).all(axis=1).tolist() == [False, True, False, False]
    assert replace(frame, truth={}).transformed(np.eye(4)).boxes is None


def _affines(number: int, **settings: Any) -> np.ndarray:
    """(number, 3, 3) from the network's pixels without augmentation to those with it."""
    rng, fit = np.random.default_rng(0), np.linalg.inv(fit_width(FULL[:2], SIZE))
    off = Augment(image_scale=0, image_flip=False).model_copy(update=settings)
    return np.array([draw_image_affine(rng, off, FULL, SIZE) @ fit for _ in range(number)])


def test_images_turn_about_their_middle() -> None:
    affines = _affines(300, image_rotation=5.4)
    angles = np.degrees(np.arctan2(affines[:, 1, 0], affines[:, 0, 0]))
    assert (angles.min(), angles.max()) == pytest.approx((-5.4, 5.4), abs=0.1)
    angle, middle, offset = np.radians(angles), np.array([175.5, 63.5]), np.array([100.0, 0.0])
    # A pixel 100 to the right of the middle, by hand.
    turned = middle + 100 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    np.testing.assert_allclose((affines @ np.append(middle + offset, 1))[:, :2], turned)
    np.testing.assert_allclose(affines @ [*middle, 1], np.tile([*middle, 1], (300, 1)))


def test_a_range_of_sizes_keeps_the_bottom_row() -> None:
    affines = _affines(400, image_scale=(0.864, 1.25), image_crop="bottom")
    zooms = affines[:, 0, 0]
    assert (zooms.min(), zooms.max()) == pytest.approx((0.864, 1.25), abs=0.005)
    np.testing.assert_allclose(affines[:, 1, 1], zooms)
    np.testing.assert_allclose((affines @ [0, 127.5, 1])[:, 1], 127.5)  # the edge below the last row
    left, right = (affines @ [-0.5, 0, 1])[:, 0], (affines @ [351.5, 0, 1])[:, 0]
    large = zooms > 1.1
    assert (left[large] <= -0.5 + 1e-9).all()
    assert (right[large] >= 351.5 - 1e-9).all()
    assert left[large].std() > 1


def test_shuffled_points_keep_their_sweep_lidar_and_class() -> None:
    frame = _frame(np.random.default_rng(0))
    number = np.arange(300)
    frame.points[:, 3] = number
    own = {"sweep_of_point": number // 9, "lidar_of_point": number, "class_of_point": number}
    frame = replace(frame, **{name: each.astype(np.uint8) for name, each in own.items()})
    after = shuffle_points(frame, np.random.default_rng(1))
    order = after.points[:, 3].astype(int)
    assert sorted(order) == number.tolist()
    assert (order != number).mean() > 0.9
    for name in PER_POINT:
        np.testing.assert_array_equal(getattr(after, name), getattr(frame, name)[order])
    missing = replace(frame, points=None)
    assert shuffle_points(missing, np.random.default_rng(1)) is missing
