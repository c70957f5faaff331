"""Points and voxels by class in the report, against one that looks at every pixel and every point alone."""

from dataclasses import replace
from typing import Literal

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.replay.class_pictures import points_in_camera, shaded_colours, voxels_above
from deploy.replay.pictures import indexed_png, painted_above
from perception.frame import Camera, Frame
from perception.grid import BevGrid
from perception.tasks.drawing import PointLayer, VoxelLayer

COLOURS = {"car": "#ff0000", "tree": "#00ff40", "road": "#204060"}
GRID = BevGrid(x=(-8, 8), y=(-8, 8), cell=0.8)


def frame_of(reference: Literal["ego", "lidar"] = "ego", camera: Camera | None = None) -> Frame:
    """A frame whose reference is 1.5 m above the road."""
    raised = np.eye(4)
    raised[2, 3] = 1.5
    return Frame("s", 0, reference, raised, np.eye(4), None, {} if camera is None else {"front": camera})


def place_of(pixel: tuple[int, int], size: int, reference: str) -> tuple[float, float]:
    """x and y in the reference frame of the centre of a pixel (row, column) of a view of GRID."""
    right, down = ((i + 0.5) * 16 / size - 8 for i in pixel[::-1])
    return (-down, -right) if reference == "ego" else (right, -down)


def test_a_picture_with_many_colours_is_read_back() -> None:
    rng = np.random.default_rng(0)
    for count in (3, 15, 16, 255):
        colours = rng.integers(0, 256, (count, 3)).astype(np.uint8)
        picture = rng.integers(0, count + 1, (10, 12)).astype(np.uint8)
        read = cv2.imdecode(np.frombuffer(indexed_png(picture, colours), np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(read[..., 3], np.where(picture > 0, 255, 0))
        np.testing.assert_array_equal(read[..., 2::-1][picture > 0], colours[picture[picture > 0] - 1])


@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**32 - 1), reference=st.sampled_from(["ego", "lidar"]), cell=st.sampled_from([0.4, 0.5, 1.3])
)
def test_the_topmost_voxel_of_each_pixel_has_its_class_and_shade(
    seed: int, reference: Literal["ego", "lidar"], cell: float
) -> None:
    """The voxels need not lie on the cells of the view."""
    rng, size = np.random.default_rng(seed), 24
    index = np.unique(rng.integers(0, 8, (60, 3)), axis=0)
    low = rng.uniform(-6, 0, 3)
    centers = (low + (index + 0.5) * cell).astype(np.float32)
    layer = VoxelLayer("a", centers, rng.integers(0, 3, len(centers)), np.full(3, cell), COLOURS)
    frame = frame_of(reference)
    picture, palette = voxels_above(layer, frame, GRID, size), shaded_colours(layer)
    for row in range(size):
        for column in range(size):
            x, y = place_of((row, column), size, reference)
            distance = np.abs(centers[:, :2] - [x, y]).max(axis=1)
            if (np.abs(distance - cell / 2) < 1e-4).any():
                continue  # on an edge
            there = np.flatnonzero(distance < cell / 2)
            if not len(there):
                assert picture[row, column] == 0
                continue
            top = there[centers[there, 2].argmax()]
            shade = min(max(int((centers[top, 2] + 1.5 + 0.5) / 4.5 * 8), 0), 7)
            own = np.array(list(bytes.fromhex(list(COLOURS.values())[layer.labels[top]][1:])))
            np.testing.assert_array_equal(palette[picture[row, column] - 1], np.rint(own * (0.4 + 0.6 * shade / 7)))


def test_voxels_of_many_classes_have_fewer_shades_and_none_have_none() -> None:
    many = {str(i): "#808080" for i in range(100)}
    layer = VoxelLayer("a", np.array([[0, 0, -9.0], [1, 0, 9.0]]), np.array([99, 99]), np.ones(3), many)
    assert len(shaded_colours(layer)) == 200
    seen = voxels_above(layer, frame_of(), GRID, 16)
    assert set(np.unique(seen)) == {0, 199, 200}
    empty = replace(layer, centers=np.zeros((0, 3)), labels=np.zeros(0, int))
    assert not voxels_above(empty, frame_of(), GRID, 16).any()


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), reference=st.sampled_from(["ego", "lidar"]))
def test_the_highest_point_of_each_pixel_is_seen_from_above(seed: int, reference: Literal["ego", "lidar"]) -> None:
    rng, size = np.random.default_rng(seed), 8
    points, colours = rng.uniform(-9, 9, (150, 3)), rng.integers(1, 4, 150).astype(np.uint8)
    picture = painted_above(points, colours, frame_of(reference), GRID, size)
    expected = np.zeros((size, size), np.uint8)
    for point, colour in sorted(zip(points.tolist(), colours, strict=True), key=lambda each: each[0][2]):
        x, y, z = point
        if max(abs(x), abs(y)) < 8 and -3 <= z < 5:
            right, down = (-y, -x) if reference == "ego" else (x, -y)
            expected[int((down + 8) * size / 16), int((right + 8) * size / 16)] = colour
    np.testing.assert_array_equal(picture, expected)


def test_the_nearest_point_covers_others_in_a_cameras_picture() -> None:
    """A camera that looks along x, as the vehicle; the picture is drawn at half of its size."""
    intrinsics = np.array([[20.0, 0, 20], [0, 20, 10], [0, 0, 1]])
    pose = np.eye(4)
    pose[:3, :3] = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    camera = Camera(np.zeros((20, 40, 3), np.uint8), intrinsics, pose, np.eye(4), 0)
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.uniform(-6, 6, (200, 3)), [[0.1, 0, -1.5]]])
    labels = rng.integers(0, 3, len(points))
    frame = frame_of("ego", camera)
    picture = points_in_camera(PointLayer("a", points, labels, COLOURS), frame, "front", 20)
    assert picture.shape == (10, 20)
    expected = np.zeros((10, 20), np.uint8)
    for (x, y, z), label in sorted(zip(points.tolist(), labels, strict=True), key=lambda each: -each[0][0]):
        if x <= 0.2:
            continue
        # 1.5 m of the reference's height are in the global frame, from which the camera is placed.
        column, row = int(np.floor((20 - 20 * y / x) / 2)), int(np.floor((10 - 20 * (z + 1.5) / x) / 2))
        for i, j in ((row, column), (row + 1, column), (row, column + 1), (row + 1, column + 1)):
            if 0 <= i < 10 and 0 <= j < 20:
                expected[i, j] = label + 1
    np.testing.assert_array_equal(picture, expected)
    assert len(np.unique(expected)) == 4
