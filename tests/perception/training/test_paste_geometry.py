"""Footprints, points of moving boxes, and places in pictures against shapely, loops and dense samples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pasting import ahead, inside, polygon, upright
from vocabulary import CAMERAS

from perception.frame import Boxes
from perception.training.box_geometry import footprints, overlapping, points_of
from perception.training.pictures import Layer, Place, painted, places

seeds = st.integers(0, 2**32 - 1)


def _boxes(rng: np.random.Generator, number: int) -> Boxes:
    low, high = [-6, -6, -1, 0.3, 0.3, 0.5, -4, -8, -8], [6, 6, 1, 3, 9, 3, 4, 8, 8]
    return upright(*rng.uniform(low, high, (number, 9)))


@settings(max_examples=40)
@given(seeds)
def test_overlap_is_shapelys(seed: int) -> None:
    boxes = _boxes(np.random.default_rng(seed), 12)
    shapes = [polygon(boxes, i) for i in range(12)]
    for i in range(12):
        expected = [shapes[i].intersection(shape).area > 1e-9 for shape in shapes]
        assert overlapping(footprints(boxes)[i], footprints(boxes)).tolist() == expected


@pytest.mark.parametrize(("gap", "expected"), [(-0.01, True), (0.0, False), (0.01, False)])
def test_touching_is_no_overlap(gap: float, expected: bool) -> None:
    one = footprints(upright((0, 0, 0, 2, 4, 1, 0, 0, 0), (4 + gap, 0, 0, 2, 4, 1, 0, 0, 0)))
    assert overlapping(one[0], one[1:]).tolist() == [expected]


@settings(max_examples=20)
@given(seeds, st.booleans())
def test_points_are_in_the_box_where_it_was(seed: int, moving: bool) -> None:
    rng = np.random.default_rng(seed)
    boxes = _boxes(rng, 5)
    boxes.velocities[2] = np.nan
    points = rng.uniform([-9, -9, -2, 0, -0.01], [9, 9, 2, 255, 0.5], (2000, 5)).astype(np.float32)
    for i, found in enumerate(points_of(points, boxes, moving)):
        assert found.tolist() == np.flatnonzero(inside(points, boxes, i, moving)).tolist()


@settings(max_examples=40)
@given(seeds)
def test_a_place_just_holds_the_projected_box(seed: int) -> None:
    """Boxes before, beside, behind and around the camera."""
    rng = np.random.default_rng(seed)
    boxes = _boxes(rng, 4)
    frame = ahead(boxes)
    projection = frame.image_from_reference(CAMERAS[0])
    grid = np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, 30)] * 3), axis=-1).reshape(-1, 3)
    surface = grid[np.abs(grid).max(axis=1) == 0.5]
    for i, place in enumerate(places(boxes, projection, (60, 80, 3))):
        points = surface * boxes.sizes[i][[1, 0, 2]] @ boxes.rotations[i].T + boxes.centers[i]
        seen = points @ projection[:, :3].T + projection[:, 3]
        seen = seen[seen[:, 2] >= 0.5]
        pixels = np.round(seen[:, :2] / seen[:, 2:]).astype(int)
        pixels = pixels[((pixels >= 0) & (pixels < (80, 60))).all(axis=1)]
        if place is None:
            assert not len(pixels)
        else:
            assert place.depth == pytest.approx(boxes.centers[i, 0])
            assert (pixels >= (place.left, place.top)).all()
            assert (pixels < (place.right, place.bottom)).all()
            assert 0 <= place.left < place.right <= 80
            assert 0 <= place.top < place.bottom <= 60


def test_the_place_of_a_box_straight_ahead() -> None:
    # 80 pixels to a radian: the front face, 10 m ahead, is 16 by 8 pixels around the middle (39.5, 29.5).
    box = upright((12, 0, 0, 2, 4, 1, 0, 0, 0))
    projection = ahead(box).image_from_reference(CAMERAS[0])
    assert places(box, projection, (60, 80, 3)) == [Place(pytest.approx(12), 32, 26, 48, 34)]
    assert places(upright((-12, 0, 0, 2, 4, 1, 0, 0, 0)), projection, (60, 80, 3)) == [None]
    assert places(upright((12, 20, 0, 2, 4, 1, 0, 0, 0)), projection, (60, 80, 3)) == [None]


def test_layers_are_painted_from_far_to_near() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    red, blue = np.full((4, 5, 3), (255, 0, 0), np.uint8), np.full((2, 2, 3), (0, 0, 255), np.uint8)
    near, far, mask = Place(5, 3, 4, 8, 8), Place(9, 6, 6, 12, 10), Place(20, 0, 0, 30, 5)
    result = painted(picture, [Layer(near, red), Layer(mask, None), Layer(far, blue)])
    expected = picture.copy()
    expected[0:5] = np.round(picture.reshape(-1, 3).mean(axis=0))
    expected[6:10, 6:12] = (0, 0, 255)
    expected[4:8, 3:8] = (255, 0, 0)
    np.testing.assert_array_equal(result, expected)
