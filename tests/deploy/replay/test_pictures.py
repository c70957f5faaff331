"""What is drawn of a frame, against one that looks at every pixel alone; results.mcap and results.rrd, read back."""

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from exported import QUIET, bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from mcap.reader import make_reader
from mcap_protobuf.decoder import DecoderFactory
from nuscenes.utils.geometry_utils import view_points
from pages import picture
from pyquaternion import Quaternion
from vocabulary import CAMERAS, CLASSES, NUSCENES, SENSORS

from deploy.replay import pictures
from deploy.replay.faults import Fault, inject
from deploy.replay.pictures import (
    encode_indexed_png,
    paint_above,
    points_in_camera,
    raster_colours,
    shaded_colours,
    voxels_above,
)
from deploy.replay.run import replay
from deploy.replay.settings import Settings, Source
from deploy.runtime import Runtime
from perception.datasets.files import decode_image, jpeg_file
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Boxes, Camera, Frame
from perception.grid import BevGrid, Reference
from perception.scene.scene import SceneFrame
from perception.tasks.drawing import LOWEST_SCORE, PointLayer, RasterLayer, VoxelLayer

COLOURS = {"car": "#ff0000", "tree": "#00ff40", "road": "#204060"}
GRID = BevGrid(x=(-8, 8), y=(-8, 8), cell=0.8)


def frame_of(reference: Reference = "ego", camera: Camera | None = None) -> Frame:
    """A frame whose reference is 1.5 m above the road."""
    raised = np.eye(4)
    raised[2, 3] = 1.5
    return Frame("s", 0, reference, raised, np.eye(4), None, {} if camera is None else {"front": camera})


def place_of(pixel: tuple[int, int], size: int, reference: str) -> tuple[float, float]:
    """x and y in the reference frame of the centre of a pixel (row, column) of a view of GRID."""
    right, down = ((i + 0.5) * 16 / size - 8 for i in pixel[::-1])
    return (-down, -right) if reference == "ego" else (right, -down)


def test_a_frame_that_waits_to_be_drawn_keeps_no_truth() -> None:
    """A report keeps many such frames, and the voxels of each have megabytes."""
    frame = replace(frame_of(), truth={"occupancy": np.zeros((16, 200, 200), np.uint8)})
    assert pictures.reduce_frame(frame, 400).truth == {}


def test_a_picture_with_many_colours_is_read_back() -> None:
    rng = np.random.default_rng(0)
    for count in (3, 15, 16, 255):
        colours = rng.integers(0, 256, (count, 3)).astype(np.uint8)
        picture = rng.integers(0, count + 1, (10, 12)).astype(np.uint8)
        read = cv2.imdecode(np.frombuffer(encode_indexed_png(picture, colours), np.uint8), cv2.IMREAD_UNCHANGED)
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
    picture = paint_above(points, colours, frame_of(reference), GRID, size)
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
    sweeps = np.array([0, 1], np.uint8)
    frame = Frame("s", 0, reference, np.eye(4), np.eye(4), points, {}, sweep_of_point=sweeps)
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


# ---- the file for viewers, by the official reader: all lies where submission and scene have it

SCENE = "scene-0001"
Steps = list[tuple[Frame, SceneFrame]]
Messages = dict[str, dict[int, list[Any]]]  # topic -> log time, us -> messages


def read(path: Path) -> Messages:
    found: Messages = defaultdict(lambda: defaultdict(list))
    with path.open("rb") as file:
        reader = make_reader(file, validate_crcs=True, decoder_factories=[DecoderFactory()])
        for _, channel, message, content in reader.iter_decoded_messages():
            found[channel.topic][message.log_time // 1000].append(content)
    return found


@pytest.fixture(scope="module")
def steps(tables: NuScenesTables) -> Steps:
    runtime = Runtime(bundle().path)
    frames = [tables.frame(sample, Reads(sweeps=runtime.bundle.spec.sweeps)) for sample in tables.samples()]
    return [(frame, runtime.step(frame)) for frame in frames]


def viewed(root: Path, out: Path, *scenes: str, faults: Any = ()) -> Path:
    """The folder of a replay with a file for viewers."""
    source = Source(root, "v1.0-sim", [*scenes])
    summary = replay(source, bundle().path, out, Settings(viewer=True, faults=faults), console=QUIET)
    assert summary["viewer"] == str(out / "results.mcap")
    return out


@pytest.fixture(scope="module")
def replayed(sim_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return viewed(sim_root, tmp_path_factory.mktemp("viewers"))


@pytest.fixture(scope="module")
def messages(replayed: Path) -> Messages:
    return read(replayed / "results.mcap")


def pose(position: Any, orientation: Any) -> np.ndarray:
    matrix = Quaternion(orientation.w, orientation.x, orientation.y, orientation.z).transformation_matrix
    matrix[:3, 3] = position.x, position.y, position.z
    return matrix


def transforms(messages: Messages, time: int) -> dict[str, np.ndarray]:
    """map from each frame of reference."""
    from_parent = {
        each.child_frame_id: (each.parent_frame_id, pose(each.translation, each.rotation))
        for each in messages["/tf"][time][0].transforms
    }
    found = {"map": np.eye(4)}
    for child, (parent, matrix) in from_parent.items():
        found[child] = found[parent] @ matrix
    return found


def cubes(messages: Messages, topic: str, time: int) -> list[tuple[str, str, np.ndarray, list[float]]]:
    """Entity, text, map from box, length, width and height."""
    map_from = transforms(messages, time)
    found = []
    for entity in messages[topic][time][0].entities:
        (cube,), (text,) = entity.cubes, entity.texts
        size = [cube.size.x, cube.size.y, cube.size.z]
        map_from_box = map_from[entity.frame_id] @ pose(cube.pose.position, cube.pose.orientation)
        found.append((entity.id, text.text, map_from_box, size))
    return found


def test_boxes_are_those_of_submission_scene_and_annotations(messages: Messages, replayed: Path, steps: Steps) -> None:
    """Tracks carry their ids, annotations move with the global frame."""
    submission = json.loads((replayed / "results.json").read_text())["results"]
    compared = 0
    for frame, seen in steps:
        submitted = [box for box in submission[frame.token] if box["detection_score"] >= LOWEST_SCORE]
        shown = cubes(messages, "/detections", frame.timestamp)
        assert len(shown) == len(submitted)
        for (_, text, map_from_box, (length, width, height)), box in zip(shown, submitted, strict=True):
            np.testing.assert_allclose(map_from_box[:3, 3], box["translation"], atol=1e-4)
            np.testing.assert_allclose([width, length, height], box["size"], atol=1e-4)
            # The submission's boxes stand upright, these lean with the vehicle.
            heading = Quaternion(box["rotation"]).rotation_matrix[:2, 0]
            np.testing.assert_allclose(map_from_box[:2, 0] @ heading, 1, atol=1e-3)
            assert text == f"{box['detection_name'].replace('_', ' ')} {box['detection_score']:.2f}"
            compared += 1

        shown, tracks = cubes(messages, "/tracks", frame.timestamp), seen.states["detection"]
        kept = np.flatnonzero(tracks.confirmed & (tracks.boxes.scores >= LOWEST_SCORE))
        assert [int(name) for name, *_ in shown] == tracks.ids[kept].tolist()
        for i, (name, text, map_from_box, _) in zip(kept, shown, strict=True):
            np.testing.assert_allclose(map_from_box[:3, 3], tracks.boxes.centers[i], atol=1e-6)
            np.testing.assert_allclose(map_from_box[:3, :3], tracks.boxes.rotations[i], atol=1e-6)
            assert text == f"{CLASSES[tracks.boxes.labels[i]].replace('_', ' ')} {name}"

        truth = frame.boxes.transformed(frame.global_from_reference).select(frame.boxes.num_points != 0)
        shown = cubes(messages, "/annotations", frame.timestamp)
        assert [name for name, *_ in shown] == truth.instances.tolist()
        np.testing.assert_allclose([each[2][:3, 3] for each in shown], truth.centers, atol=1e-6)
    assert compared > 20


def test_edges_in_a_picture_are_the_cubes_seen_by_the_camera(messages: Messages, steps: Steps) -> None:
    """From the file alone: cubes, transforms and calibrations give the corners that are drawn on the pictures."""
    corners = np.array([[x, y, z, 2] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) / 2
    compared = 0
    for frame, _ in steps:
        map_from, boxes = transforms(messages, frame.timestamp), cubes(messages, "/detections", frame.timestamp)
        for name in CAMERAS:
            topic = f"/{name.lower()}"
            (info,), (drawn,) = (
                messages[f"{topic}/{kind}"][frame.timestamp] for kind in ("camera_info", "annotations")
            )
            expected = []
            for _, _, map_from_box, size in boxes:
                points = np.linalg.inv(map_from[name]) @ map_from_box @ (corners * [*size, 1]).T
                if points[2].min() < 0.3:
                    continue
                pixels = (np.array(info.K).reshape(3, 3) @ points[:3] / points[2])[:2].T
                if (pixels.max(axis=0) > 1).all() and (pixels.min(axis=0) < [info.width - 1, info.height - 1]).all():
                    expected.append(pixels)
            ends = [np.array([(point.x, point.y) for point in each.points]) for each in drawn.points]
            for pixels in expected:
                nearest = [np.linalg.norm(each[:, None] - pixels[None], axis=2).min(axis=1).max() for each in ends]
                assert min(nearest) < 0.1
                compared += 1
    assert compared > 20


def test_map_points_and_pictures_are_the_frames(messages: Messages, steps: Steps) -> None:
    grid = bundle().manifest.head_grid
    centers, task = grid.build().centers(), bundle().manifest.heads["map"]
    for frame, seen in steps:
        (shown,) = messages["/map"][frame.timestamp]
        fields = {"red": 0, "green": 1, "blue": 2, "alpha": 3}
        assert {field.name: field.offset for field in shown.fields} == fields
        cells = np.frombuffer(shown.data, np.uint8).reshape(-1, shown.row_stride)
        (layer,) = task.draw(frame, seen.prediction.results["map"], seen.states["map"])
        cells = cells.reshape(len(cells), shown.column_count, shown.cell_stride)
        np.testing.assert_array_equal(cells, raster_colours(layer))
        x = shown.pose.position.x + (np.arange(shown.column_count) + 0.5) * shown.cell_size.x
        y = shown.pose.position.y + (np.arange(len(cells)) + 0.5) * shown.cell_size.y
        np.testing.assert_allclose(np.stack(np.meshgrid(x, y), axis=-1), centers, atol=1e-4)

        (cloud,) = messages["/lidar_top"][frame.timestamp]
        points = np.frombuffer(cloud.data, "<f4").reshape(-1, cloud.point_stride // 4)
        np.testing.assert_array_equal(points, frame.points[frame.points[:, 4] == 0, :4])

        for name, camera in frame.cameras.items():
            (picture,) = messages[f"/{name.lower()}/image"][frame.timestamp]
            assert picture.data == camera.jpeg  # the recorded file
            assert picture.timestamp.ToMicroseconds() == camera.timestamp


def test_pictures_that_were_changed_are_encoded_again(sim_root: Path, steps: Steps, tmp_path: Path) -> None:
    """By a fault or rectified; and those that programs would turn by the orientation in their file."""
    viewed(sim_root, tmp_path, f"{SCENE}:0-1", faults=["noise:CAM_FRONT"])
    (frame,) = inject([steps[0][0]], [Fault.parse("noise:CAM_FRONT", SENSORS)])
    (picture,) = (each for at in read(tmp_path / "results.mcap")["/cam_front/image"].values() for each in at)
    pixels = cv2.imdecode(np.frombuffer(picture.data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    shown = frame.cameras["CAM_FRONT"].image
    assert pixels.shape == shown.shape
    small = [cv2.resize(each, (50, 28), interpolation=cv2.INTER_AREA) for each in (pixels, shown)]
    np.testing.assert_allclose(*np.asarray(small, float), atol=6)  # without the noise, which JPEG changes
    camera = steps[0][0].cameras["CAM_FRONT"]
    content = camera.jpeg
    np.testing.assert_array_equal(decode_image(content), camera.image)
    assert replace(camera, intrinsics=2 * camera.intrinsics).jpeg == content
    assert replace(camera, image=camera.image.copy()).jpeg is None
    turned = content[:2] + b"\xff\xe1\0\x08Exif\0\0" + content[2:]
    np.testing.assert_array_equal(decode_image(turned), camera.image)
    assert jpeg_file(turned, camera.image) is None


def test_changes_of_health_are_logged(sim_root: Path, tmp_path: Path) -> None:
    found = read(viewed(sim_root, tmp_path, SCENE, faults=["drop:CAM_FRONT@0.3-0.8"]) / "results.mcap")
    times = sorted(found["/tf"])
    said = {time: {log.name: (log.message, log.level) for log in found["/log"].get(time, [])} for time in times}
    first, second, third = (said[time] for time in times)
    assert first["drive"][0] == "drive: scene-0001"
    assert first["weather"][0].startswith("weather: clear (clear since 0.0 s")
    assert second["CAM_FRONT"][0].startswith("CAM_FRONT: missing")
    assert second["CAM_FRONT"][1] > first["CAM_FRONT"][1]
    assert third["CAM_FRONT"][0] == "CAM_FRONT: ok"
    assert {name for name in second if name.startswith("CAM")} == {"CAM_FRONT"}
    assert [len(found["/cam_front/image"].get(time, [])) for time in times] == [1, 0, 1]
