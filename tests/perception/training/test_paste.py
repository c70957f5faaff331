"""Pasted objects collide with nothing, replace points and pixels, and are stored with all that shows them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import keyframe
from occupied import random_occupancy
from shapely import Polygon, unary_union
from shapely import box as square
from vocabulary import CAMERAS, NUSCENES

from perception.config import Augment, Config, find_config, load_config, parse_config
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.frame import Boxes, Camera, Frame
from perception.grid import BevGrid, VoxelGrid
from perception.tasks.occupancy.config import OccupancyHead
from perception.tasks.occupancy.labels import UNKNOWN
from perception.tasks.occupancy.task import OccupancyTask
from perception.training.augment import draw_similarity
from perception.training.loader import FrameDataset
from perception.training.objects import Objects, key_of, objects_of
from perception.training.paste import Paster
from perception.training.placement import Place, footprints, overlapping, places

seeds = st.integers(0, 2**32 - 1)
TINY = load_config(find_config("tiny")).model_dump(mode="json")
CLASSES = {"car": 32, "pedestrian": 25, "truck": 3, "bus": 2}


def config(model: dict[str, Any] | None = None, train: dict[str, Any] | None = None, **paste: Any) -> Config:
    """`tiny` with two sweeps that pastes crops."""
    content = {**TINY, "data": {**TINY["data"], "paste": {"classes": CLASSES, "pictures": "paste", **paste}}}
    content["model"] = {**TINY["model"], "lidar": {**TINY["model"]["lidar"], "sweeps": 2}, **(model or {})}
    content["train"] = {**TINY["train"], **(train or {})}
    return parse_config(content, "test")


def polygon(boxes: Boxes, number: int) -> Polygon:
    """The footprint of a box."""
    width, length = boxes.sizes[number, :2]
    yaw = boxes.yaws[number]
    ahead, left = np.array([np.cos(yaw), np.sin(yaw)]) * length / 2, np.array([-np.sin(yaw), np.cos(yaw)]) * width / 2
    return Polygon([boxes.centers[number, :2] + i * ahead + j * left for i, j in ((1, 1), (1, -1), (-1, -1), (-1, 1))])


def inside(points: np.ndarray, boxes: Boxes, number: int, moving: bool = True) -> np.ndarray:
    """(N,) bool, in float64: inside the box, which is where it was at each point's time."""
    velocity = np.nan_to_num(boxes.velocities[number]) if moving else np.zeros(3)
    centers = boxes.centers[number] - points[:, 4:5].astype(float) * velocity
    local = (points[:, :3].astype(float) - centers) @ boxes.rotations[number]
    return (np.abs(local) <= boxes.sizes[number][[1, 0, 2]] / 2).all(axis=1)


def ordered(*points: np.ndarray) -> np.ndarray:
    """All the points, in an order that does not depend on theirs."""
    every = np.concatenate(points)
    return every[np.lexsort(every.T)]


def upright(*rows: tuple[float, ...]) -> Boxes:
    """Boxes of label 0, each x y z, width length height, yaw, vx vy."""
    n = np.array(rows, float).reshape(-1, 9)
    zero = np.zeros(len(n), int)
    return Boxes.from_yaws(n[:, :3], n[:, 3:6], n[:, 6], n[:, 7:], zero, zero - 1, zero + 1.0)


def ahead(boxes: Boxes, size: tuple[int, int] = (60, 80), seed: int = 0) -> Frame:
    """A frame of nothing but a front camera at the origin, 80 pixels to a radian, with a picture of noise."""
    ego_from_camera = np.eye(4)
    ego_from_camera[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    intrinsics = np.array([[80.0, 0, (size[1] - 1) / 2], [0, 80, (size[0] - 1) / 2], [0, 0, 1]])
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    cameras = {CAMERAS[0]: Camera(noise, intrinsics, ego_from_camera, np.eye(4), 0)}
    return Frame("t", 0, "ego", np.eye(4), np.eye(4), None, cameras, truth={"boxes": boxes})


@pytest.fixture(scope="module")
def folder(tables: NuScenesTables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a database of the simulated drives."""
    folder = tmp_path_factory.mktemp("objects")
    objects_of(tables, tables.samples(), config(), folder)
    return folder


@pytest.fixture(scope="module")
def objects(tables: NuScenesTables, folder: Path) -> Objects:
    return objects_of(tables, tables.samples(), config(), folder)


@pytest.fixture(scope="module")
def frames(tables: NuScenesTables) -> list[Frame]:
    return [tables.frame(token, Reads("ego", 2)) for token in tables.samples()]


def _alone(objects: Objects, number: int) -> Objects:
    """A database of one object; the files are the same."""
    parts = dict(objects.parts)
    parts["points"] = parts["points"][number : number + 2]
    parts["crops"] = parts["crops"][number : number + 2]
    return replace(objects, boxes=objects.boxes.select(np.array([number])), parts=parts)


@settings(max_examples=12)
@given(seeds)
def test_no_two_boxes_overlap_and_classes_are_filled_up(objects: Objects, frames: Sequence[Frame], seed: int) -> None:
    frame = frames[seed % len(frames)]
    bare = replace(frame, cameras={})
    result = Paster(objects, config())(bare, np.random.default_rng(seed)).boxes
    for name in ("centers", "sizes", "rotations", "velocities", "labels", "attributes", "num_points", "instances"):
        require_same(getattr(result, name)[: len(frame.boxes)], getattr(frame.boxes, name))
    shapes = [polygon(result, i) for i in range(len(result))]
    for i in range(len(frame.boxes), len(result)):
        assert all(shapes[i].intersection(other).area < 1e-9 for other in shapes[:i])
    before, after = (np.bincount(boxes.labels, minlength=10) for boxes in (frame.boxes, result))
    most = np.array([CLASSES.get(name, 0) for name in NUSCENES.class_names])
    assert (after <= np.maximum(before, most)).all()


def require_same(found: np.ndarray, expected: np.ndarray) -> None:
    """But for the rounding on the way through the global frame, whose numbers are up to 1e4 m."""
    if expected.dtype.kind == "f":
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    else:
        np.testing.assert_array_equal(found, expected)


def numbered(frame: Frame) -> np.ndarray:
    """(N, 6) the points, and of which sweep each is."""
    return np.column_stack([frame.points, frame.sweep_of_point]).astype(np.float32)


def test_points_in_a_pasted_box_are_the_objects_and_others_stay(objects: Objects, frames: Sequence[Frame]) -> None:
    number = np.arange(len(frames[0].points), dtype=np.int32)  # instead of classes
    frame, paster = replace(frames[0], cameras={}, class_of_point=number), Paster(objects, config())
    result = paster(frame, np.random.default_rng(1))
    pasted = range(len(frame.boxes), len(result.boxes))
    assert len(pasted) > 10
    removed, stored = np.zeros(len(frame.points), bool), []
    for i in pasted:
        for moving in (True, False):
            removed |= inside(frame.points, result.boxes, i, moving)
        (number,) = np.flatnonzero(np.isclose(objects.boxes.centers, result.boxes.centers[i], atol=1e-9).all(axis=1))
        for name in ("sizes", "rotations", "velocities", "labels", "attributes"):
            require_same(getattr(result.boxes, name)[i], getattr(objects.boxes, name)[number])
        stored.append(objects.points(number))
        found = numbered(result)[inside(result.points, result.boxes, i)]
        np.testing.assert_array_equal(ordered(found), ordered(stored[-1]))
    assert removed.any()
    np.testing.assert_array_equal(ordered(numbered(result)), ordered(*stored, numbered(frame)[~removed]))
    assert (np.diff(result.points[:, 4]) >= 0).all()
    own = result.class_of_point
    np.testing.assert_array_equal(np.sort(own[own >= 0]), np.flatnonzero(~removed))
    np.testing.assert_array_equal(result.points[own >= 0], frame.points[own[own >= 0]])
    assert (np.abs(result.boxes.velocities[pasted.start :, :2]).max(axis=1) > 1).any()  # some move


def test_where_an_object_is_pasted_the_voxels_are_unknown(objects: Objects, frames: Sequence[Frame]) -> None:
    """Annotated as free or not; so are those that its footprint touches or nearly does, others stay."""
    grid = VoxelGrid((-51.2, 51.2), (-51.2, 51.2), (-1.0, 3.0), 0.8)
    voxels = {"x": grid.x, "y": grid.y, "z": grid.z, "cell": grid.cell}
    task = OccupancyTask(OccupancyHead.model_validate(voxels), BevGrid(), NUSCENES)
    frame = replace(
        frames[0], cameras={}, truth={**frames[0].truth, "occupancy": random_occupancy(frames[0].token, grid)}
    )
    turned = draw_similarity(np.random.default_rng(2), Augment(flip=True, rotation=0.4, scale=0.1, translation=0.5))
    pasted = Paster(objects, config())(frame, np.random.default_rng(1))
    frame, pasted = frame.transformed(turned), pasted.transformed(turned)
    plain, found = (task.labels(each)["classes"] for each in (frame, pasted))
    footprints = unary_union([polygon(pasted.boxes, i) for i in range(len(frame.boxes), len(pasted.boxes))])
    cells = grid.centers()[0, ..., :2]
    for row, column in np.ndindex(*cells.shape[:2]):
        x, y = cells[row, column].tolist()
        distance = footprints.distance(square(x - 0.4, y - 0.4, x + 0.4, y + 0.4))
        before, after = plain[:, row, column], found[:, row, column]
        if distance == 0:
            assert (after == UNKNOWN).all()
        elif distance > 0.4:
            np.testing.assert_array_equal(after, before)
    assert 0.005 < ((plain != UNKNOWN) & (found == UNKNOWN)).mean() < 0.2


def test_objects_with_few_points_or_outside_the_grid_are_not_pasted(objects: Objects, frames: Sequence[Frame]) -> None:
    content = config(points=40).model_dump(mode="json")
    content["grid"] |= {"x": [-12.8, 25.6], "y": [-12.8, 12.8]}
    bare = replace(frames[0], cameras={}, truth={"boxes": Boxes.none()})
    paster = Paster(objects, parse_config(content, "test"))
    boxes = [paster(bare, np.random.default_rng(seed)).boxes for seed in range(8)]
    assert max(map(len, boxes)) > 3
    for found in boxes:
        assert (found.num_points >= 40).all()
        assert ((found.centers[:, :2] >= -12.8) & (found.centers[:, :2] <= [25.6, 12.8])).all()
        assert set(found.labels.tolist()) <= {NUSCENES.label(name) for name in CLASSES}


def test_a_picture_shows_the_crop_or_one_colour(objects: Objects, frames: Sequence[Frame]) -> None:
    seen = [n for n in range(len(objects.boxes)) if 1 in objects.cameras(n) and len(objects.points(n)) > 50]
    number = seen[-1]
    label = NUSCENES.class_names[objects.boxes.labels[number]]
    frame = replace(frames[0], truth={"boxes": Boxes.none()})
    before = {name: camera.image.copy() for name, camera in frame.cameras.items()}
    crop, camera = objects.crop(number, 1), CAMERAS[1]
    assert crop is not None
    for pictures in ("paste", "mask"):
        paster = Paster(_alone(objects, number), config(classes={label: 1}, points=1, pictures=pictures))
        result = paster(frame, np.random.default_rng(0))
        differs = (result.cameras[camera].image != before[camera]).any(axis=2)
        rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
        part = result.cameras[camera].image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        # The same place but for the vehicle's motion between LiDAR and camera.
        np.testing.assert_allclose(part.shape[:2], crop.shape[:2], atol=2)
        if pictures == "mask":
            assert (part == np.round(before[camera].mean(axis=(0, 1)))).all()
        else:
            assert np.abs(part.mean(axis=(0, 1)) - crop.mean(axis=(0, 1))).max() < 8
    for name, image in before.items():  # the frame may be in a cache
        np.testing.assert_array_equal(frame.cameras[name].image, image)


def test_a_nearer_object_of_the_frame_hides_a_pasted_one(tmp_path: Path) -> None:
    near, far = upright((6, 0.5, 0, 1, 1, 1, 0, 0, 0)), upright((14, 0, 0, 2, 4, 1, 0, 0, 0))
    far.num_points[:] = 9
    parts = {name: np.array(values) for name, values in {"points": [0, 0], "crops": [0, 0], "cameras": []}.items()}
    paster = Paster(Objects(tmp_path, far, parts), config(classes={"car": 9}, pictures="mask"))
    (tmp_path / "points.bin").touch()
    frame = replace(ahead(near), **keyframe(np.zeros((0, 5), np.float32)))
    image, before = paster(frame, np.random.default_rng(0)).cameras[CAMERAS[0]].image, frame.cameras[CAMERAS[0]].image
    # Front faces: the pasted one 12 m ahead, +-1 m; the near one 5.5 m ahead, 0 to 1 m to the left.
    hidden, shown = (slice(26, 33), slice(33, 39)), (slice(27, 32), slice(41, 46))
    np.testing.assert_array_equal(image[hidden], before[hidden])
    assert (image[shown] == image[29, 43]).all()
    assert not (before[shown] == before[29, 43]).all()


def test_only_what_a_sensor_shows_is_pasted(objects: Objects, frames: Sequence[Frame]) -> None:
    crops, masks, rng = Paster(objects, config()), Paster(objects, config(pictures="mask")), np.random.default_rng
    blind = replace(frames[0], points=None)
    assert masks(blind, rng(0)) is blind
    assert crops(replace(blind, cameras={}), rng(0)).truth is blind.truth
    unannotated = replace(frames[0], truth={})
    assert crops(unannotated, rng(0)) is unannotated
    one = replace(blind, cameras={CAMERAS[0]: blind.cameras[CAMERAS[0]]})
    pasted = crops(one, rng(0)).boxes
    own = {tuple(objects.boxes.centers[n].round(6)) for n in range(len(objects.boxes)) if 0 in objects.cameras(n)}
    assert 0 < len(pasted) - len(one.boxes) < len(crops(frames[0], rng(0)).boxes) - len(one.boxes)
    assert {tuple(center) for center in pasted.centers[len(one.boxes) :].round(6)} <= own


@pytest.mark.parametrize(("until", "steps"), [(0.5, 2), (0.29, 29), (1.0, 10), (0.0, 0)])
def test_pasting_ends_after_its_share_of_the_steps(tables, objects, until, steps):
    total = steps and round(steps / until)
    settings = config({"camera": None}, {"steps": total or 4, "batch": 2}, until=until, pictures="mask")
    token = tables.samples()[:1]  # cached
    pasting = FrameDataset(tables, token, settings, ("detection",), objects)
    plain = FrameDataset(tables, token, settings, ("detection",))
    end = 2 * steps
    for position in (*range(max(end - 2, 0), end), end, end + 1):
        with_objects, without = pasting[position], plain[position]
        (some, _), (others, _) = with_objects.frames[-1], without.frames[-1]
        same = all(np.array_equal(array, others[name]) for name, array in some.items())
        more = len(with_objects.labels["detection"]["cells"]) - len(without.labels["detection"]["cells"])
        assert (same, more > 10) == (position >= end, position < end)


def test_what_cannot_be_pasted_is_refused() -> None:
    for changes, message in (
        ({"classes": {"tram": 2}}, "data.paste.classes: tram is no class of the taxonomy; known are car, truck"),
        ({"classes": {"car": 0}}, "data.paste.classes.car"),
        ({"model": {"lidar": None}, "pictures": "mask"}, "without LiDAR nothing shows a masked object"),
    ):
        with pytest.raises(InputError, match=message):
            config(**changes)  # type: ignore[arg-type]
    assert config({"lidar": None}).data.paste is not None  # crops


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


# ---- the database of objects


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_database_holds_all_points_and_pictures_of_every_object(tables: NuScenesTables, objects: Objects) -> None:
    number = 0
    for token in tables.samples()[:2]:
        frame = tables.frame(token, Reads("ego", 2))
        for i in np.flatnonzero(frame.boxes.num_points > 0):
            points = numbered(frame)[inside(frame.points, frame.boxes, i)]
            if not len(points):
                continue
            np.testing.assert_array_equal(objects.points(number), points)
            for name in ("centers", "sizes", "rotations", "velocities", "labels", "attributes", "num_points"):
                np.testing.assert_array_equal(getattr(objects.boxes, name)[number], getattr(frame.boxes, name)[i])
            seen = 0
            for camera, name in enumerate(CAMERAS):
                picture, projection = frame.cameras[name].image, frame.image_from_reference(name)
                (place,) = places(frame.boxes.select([i]), projection, picture.shape)
                crop = objects.crop(number, camera)
                assert (place is None) == (crop is None)
                if place is not None:
                    seen += 1
                    np.testing.assert_array_equal(crop, picture[place.top : place.bottom, place.left : place.right])
            assert len(objects.cameras(number)) == seen
            number += 1
    # Points of earlier sweeps as well, and other keyframes follow.
    ages = np.concatenate([*map(objects.points, range(number))])[:, 4]
    assert {0, 50, 100} == set(np.round(1000 * ages).tolist())
    assert number < len(objects.boxes)


def test_without_lidar_the_database_holds_what_cameras_saw(tables: NuScenesTables, tmp_path: Path) -> None:
    content, tokens = config({"lidar": None}).model_dump(mode="json"), tables.samples()[:1]
    content["rig"]["cameras"] = content["rig"]["cameras"][:1]
    objects, frame = objects_of(tables, tokens, parse_config(content, "test"), tmp_path), tables.frame(tokens[0])
    name = CAMERAS[0]
    found = places(frame.boxes, frame.image_from_reference(name), frame.cameras[name].image.shape)
    seen = [i for i, place in enumerate(found) if place is not None and frame.boxes.num_points[i] > 0]
    assert 0 < len(seen) < (frame.boxes.num_points > 0).sum()
    np.testing.assert_array_equal(objects.boxes.centers, frame.boxes.centers[seen])
    assert not len(objects.points(0))


def test_the_database_is_built_once_and_workers_do_not_change_its_bytes(tables, folder, objects, tmp_path, monkeypatch):
    content = config().model_dump(mode="json")
    content["data"]["workers"] = 2
    objects_of(tables, tables.samples(), parse_config(content, "test"), tmp_path)
    assert _bytes(tmp_path) == _bytes(folder)
    monkeypatch.setattr(NuScenesTables, "frame", None)  # nothing is read again
    again = objects_of(tables, tables.samples(), config(classes={"bus": 1}, points=9, until=0.5), folder)
    assert len(again.boxes) == len(objects.boxes)


def _changed(**keys: Any) -> Config:
    content = config().model_dump(mode="json")
    for path, value in keys.items():
        *sections, last = path.split("__")
        section = content
        for name in sections:
            section = section[name]
        section[last] = value
    return parse_config(content, "test")


def test_the_databases_key_depends_on_its_making(tables: NuScenesTables, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tables.samples()
    masked = _changed(data__paste__pictures="mask")
    others = [
        *(_changed(model__lidar__sweeps=1), _changed(grid__reference="lidar"), masked),
        *(_changed(model__lidar=None), _changed(rig="pandaset")),
    ]
    keys = [key_of(tables, some, config()) for some in (tokens, tokens[1:], tokens[::-1])]
    keys += [key_of(tables, tokens, other) for other in others]
    assert key_of(tables, tokens, _changed(model__camera=None)) == key_of(tables, tokens, masked)  # without pictures
    unnamed = config().model_copy(update={"taxonomy": config().taxonomy.without_ros_classes()})
    assert key_of(tables, tokens, unnamed) == keys[0]
    boxes = NuScenesTables._boxes

    def moved(source: NuScenesTables, token: str) -> Boxes:
        found = boxes(source, token)
        found.centers[-1, 0] += 1e-3
        return found

    monkeypatch.setattr(NuScenesTables, "_boxes", moved)
    keys.append(key_of(tables, tokens, config()))
    assert len(set(keys)) == len(keys) == 9


def test_what_is_cut_off_leaves_nothing_and_what_is_damaged_is_said(tables, folder, tmp_path, monkeypatch):
    read, killed = NuScenesTables.frame, tables.samples()[3]

    def dying(source: NuScenesTables, token: str, *options: Any, **named: Any) -> Any:
        if token == killed:
            raise KeyboardInterrupt
        return read(source, token, *options, **named)

    with monkeypatch.context() as patch:
        patch.setattr(NuScenesTables, "frame", dying)
        with pytest.raises(KeyboardInterrupt):
            objects_of(tables, tables.samples(), config(), tmp_path)
    assert not list(tmp_path.iterdir())
    for name, content in _bytes(folder).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content[:-1] if name.endswith("points.bin") else content)
    with pytest.raises(InputError, match="a damaged database of objects"):
        objects_of(tables, tables.samples(), config(), tmp_path)
    next(tmp_path.rglob("objects.json")).write_text(json.dumps([]))
    with pytest.raises(InputError, match="a damaged database of objects"):
        objects_of(tables, tables.samples(), config(), tmp_path)
