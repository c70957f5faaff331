"""What the report draws: points, voxels, boxes and pictures, each against one that looks at every pixel alone."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nuscenes.utils.geometry_utils import view_points
from pages import picture
from pyquaternion import Quaternion
from vocabulary import CAMERAS, NUSCENES

from deploy.replay import pictures
from deploy.replay.class_pictures import points_in_camera, shaded_colours, voxels_above
from deploy.replay.pictures import indexed_png, painted_above
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Boxes, Camera, Frame
from perception.grid import BevGrid
from perception.tasks.drawing import PointLayer, RasterLayer, VoxelLayer

COLOURS = {"car": "#ff0000", "tree": "#00ff40", "road": "#204060"}
GRID = BevGrid(x=(-8, 8), y=(-8, 8), cell=0.8)
Reference = Literal["ego", "lidar"]


def frame_of(reference: Reference = "ego", camera: Camera | None = None) -> Frame:
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
def test_the_topmost_voxel_of_each_pixel_has_its_class_and_shade(seed: int, reference: Reference, cell: float) -> None:
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
            assert (picture[row, column] > 0) == (len(there) > 0)
            if not len(there):
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
def test_the_highest_point_of_each_pixel_is_seen_from_above(seed: int, reference: Reference) -> None:
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


@pytest.mark.parametrize("reference", ["ego", "lidar"])
def test_points_map_and_boxes_meet_from_above(reference: Reference) -> None:
    """A point, a map cell and a box at one place are drawn at one place, ahead up and left to the left."""
    grid = BevGrid(x=(-51.2, 51.2), y=(-51.2, 51.2), cell=0.8, reference=reference)
    place = np.array([20.4, 12.4, 1.0]) if reference == "ego" else np.array([-12.4, 20.4, 1.0])  # ahead, to the left
    points = np.array([[*place, 0, 0], [*place, 0, 0.05]], np.float32)
    frame = Frame("s", 0, reference, np.eye(4), np.eye(4), points, {})
    layer = np.zeros((6, 128, 128), np.float32)
    column, row = grid.continuous(place[None]).astype(int)[0]
    layer[0, row, column] = 1
    one = np.ones((1, 2))
    box = Boxes.from_yaws(
        place[None], np.array([[2.0, 4, 1.5]]), np.array([0.3]), one, one[0, :1], one[0, :1], one[0, :1]
    )

    expected = (51.2 - np.array([12.4, 20.4])) / 102.4  # share of the picture from its left and its top
    drawn = picture(pictures.points_picture(frame, grid, 512) or "")
    np.testing.assert_allclose(np.argwhere(drawn[..., 3])[:, ::-1] / 512, [expected], atol=1 / 512)
    assert drawn.max(axis=(0, 1)).tolist() == [*pictures.HEIGHT_COLOURS[4, ::-1], 255]  # 1 m up, of -0.5 to 4 m
    drawn = picture(pictures.raster_picture(RasterLayer("map", layer, grid, NUSCENES.map_colours())))
    np.testing.assert_allclose((np.argwhere(drawn[..., 3])[:, ::-1] + 0.5) / 128, [expected], atol=0.5 / 128)
    assert drawn[..., 2::-1].max(axis=(0, 1)).tolist() == [58, 74, 96]
    outline = pictures.box_outlines(box, reference)[0]
    np.testing.assert_allclose(outline[4], expected * 102.4 - 51.2)
    np.testing.assert_allclose(np.linalg.norm(outline[5] - outline[4]), 2.0)


def test_boxes_in_a_camera_are_the_devkits(nuscenes_root: Path) -> None:
    tables = NuScenesTables(nuscenes_root, "v1.0-mini")
    frame = tables.frame(tables.samples(selectors=["scene-0103:0-1"])[0])
    shown = 0
    for name in CAMERAS:
        camera = frame.cameras[name]
        camera_from_reference = (
            np.linalg.inv(camera.global_from_ego @ camera.ego_from_camera) @ frame.global_from_reference
        )
        edges = pictures.box_edges_resized(frame.boxes, frame.image_from_reference(name), camera.image.shape, 1600)
        for i, box in enumerate(frame.boxes.transformed(camera_from_reference).corners()):
            if box[:, 2].min() < 0.5:
                continue
            corners = view_points(box.T, camera.intrinsics, normalize=True)[:2].T
            inside = ((corners.max(axis=0) > 0) & (corners.min(axis=0) < [1600, 900])).all()
            assert (i in edges) == inside
            if inside:
                drawn = np.reshape(edges[i], (24, 2))
                assert {tuple(p) for p in drawn} == {tuple(p) for p in np.clip(corners.round(), -6400, 8000)}
                shown += 1
    assert shown > 20


def test_box_edges_end_at_the_cameras_plane() -> None:
    """A box that reaches behind the camera is cut at the near plane, one behind it is not drawn."""
    projection = np.array([[500.0, 0, 800, 0], [0, 500, 450, 0], [0, 0, 1, 0]])
    turn = Quaternion(axis=[0, 1, 0], degrees=90).rotation_matrix  # the heading along the camera's axis
    zeros = np.zeros(2)
    boxes = Boxes.from_yaws(
        np.array([[0.5, 0, 0], [0, 0, -9]]), np.full((2, 3), 4.0), zeros, np.zeros((2, 2)), zeros, zeros, zeros
    )
    boxes = replace(boxes, rotations=np.stack([turn] * 2))
    (drawn,) = pictures.box_edges_resized(boxes, projection, (900, 1600), 1600).items()
    assert drawn[0] == 0
    ends = np.reshape(drawn[1], (2 * 8, 2))  # four edges of the front face, four that are cut; the rear is behind
    np.testing.assert_array_equal(
        np.unique(ends[:, 1]), [450 - 2000 / 0.4, 450 - 1000 / 2, 450 + 1000 / 2, 450 + 2000 / 0.4]
    )


def test_camera_picture_keeps_colours() -> None:
    image = np.zeros((900, 1600, 3), np.uint8)
    image[:] = (200, 60, 20)
    content = pictures.small_jpeg(Camera(image, np.eye(3), np.eye(4), np.eye(4), 0), 448)
    drawn = picture(pictures.data_uri("jpeg", content))
    assert drawn.shape == (252, 448, 3)
    np.testing.assert_allclose(drawn[100, 100, ::-1], (200, 60, 20), atol=3)
