"""Pasted objects collide with nothing, replace the scene's points and pixels, and depend on seed and position alone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pasting import CLASSES, ahead, config, inside, ordered, polygon, upright
from vocabulary import CAMERAS, NUSCENES

from perception.config import Config, parse_config
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.frame import Boxes, Frame
from perception.training.loader import FrameDataset, Sample, batches
from perception.training.objects import Objects, objects_of
from perception.training.paste import Paster


@pytest.fixture(scope="module")
def objects(tables: NuScenesTables, tmp_path_factory: pytest.TempPathFactory) -> Objects:
    """Of the simulated drives."""
    return objects_of(tables, tables.samples(), config(), tmp_path_factory.mktemp("objects"))


@pytest.fixture(scope="module")
def frames(tables: NuScenesTables) -> list[Frame]:
    return [tables.frame(token, "ego", 2) for token in tables.samples()]


def _alone(objects: Objects, number: int) -> Objects:
    """A database of one object; the files are the same."""
    parts = dict(objects.parts)
    parts["points"] = parts["points"][number : number + 2]
    parts["crops"] = parts["crops"][number : number + 2]
    return replace(objects, boxes=objects.boxes.select(np.array([number])), parts=parts)


@settings(max_examples=12)
@given(st.integers(0, 2**32 - 1))
def test_no_two_boxes_overlap_and_classes_are_filled_up(objects: Objects, frames: Sequence[Frame], seed: int) -> None:
    frame = frames[seed % len(frames)]
    bare = replace(frame, cameras={})
    result = Paster(objects, config())(bare, np.random.default_rng(seed)).boxes
    for name in ("centers", "sizes", "rotations", "velocities", "labels", "attributes", "num_points", "instances"):
        np.testing.assert_array_equal(getattr(result, name)[: len(frame.boxes)], getattr(frame.boxes, name))
    shapes = [polygon(result, i) for i in range(len(result))]
    for i in range(len(frame.boxes), len(result)):
        assert all(shapes[i].intersection(other).area < 1e-9 for other in shapes[:i])
    before, after = (np.bincount(boxes.labels, minlength=10) for boxes in (frame.boxes, result))
    most = np.zeros(10, int)
    for name, count in CLASSES.items():
        most[NUSCENES.label(name)] = count
    assert (after <= np.maximum(before, most)).all()


def test_points_in_a_pasted_box_are_the_objects_and_others_stay(objects: Objects, frames: Sequence[Frame]) -> None:
    frame, paster = replace(frames[0], cameras={}), Paster(objects, config())
    result = paster(frame, np.random.default_rng(1))
    pasted = range(len(frame.boxes), len(result.boxes))
    assert len(pasted) > 10
    removed = np.zeros(len(frame.points), bool)
    stored: list[np.ndarray] = []
    for i in pasted:
        for moving in (True, False):
            removed |= inside(frame.points, result.boxes, i, moving)
        (number,) = np.flatnonzero(
            [objects.boxes.select(np.array([n])).centers[0].tolist() == result.boxes.centers[i].tolist()
             for n in range(len(objects.boxes))]
        )  # fmt: skip
        for name in ("sizes", "rotations", "velocities", "labels", "attributes"):
            np.testing.assert_array_equal(getattr(result.boxes, name)[i], getattr(objects.boxes, name)[number])
        stored.append(objects.points(number))
        found = result.points[inside(result.points, result.boxes, i)]
        np.testing.assert_array_equal(ordered(found), ordered(stored[-1]))
    assert removed.any()
    np.testing.assert_array_equal(ordered(result.points), ordered(*stored, frame.points[~removed]))
    assert (np.diff(result.points[:, 4]) >= 0).all()
    assert (np.abs(result.boxes.velocities[pasted.start :, :2]).max(axis=1) > 1).any()  # some move


def test_objects_with_few_points_or_outside_the_grid_are_not_pasted(objects: Objects, frames: Sequence[Frame]) -> None:
    content = config(points=40).model_dump(mode="json")
    content["grid"] |= {"x": [-12.8, 25.6], "y": [-12.8, 12.8]}
    bare = replace(frames[0], cameras={}, boxes=Boxes.none())
    paster, boxes = Paster(objects, parse_config(content, "test")), []
    for seed in range(8):
        boxes.append(paster(bare, np.random.default_rng(seed)).boxes)
    assert max(map(len, boxes)) > 3
    for found in boxes:
        assert (found.num_points >= 40).all()
        assert (found.centers[:, 0] >= -12.8).all() and (found.centers[:, 0] < 25.6).all()  # noqa: PT018
        assert (np.abs(found.centers[:, 1]) <= 12.8).all()
        assert set(found.labels.tolist()) <= {NUSCENES.label(name) for name in CLASSES}


def test_an_object_pasted_where_it_was_changes_nothing(objects: Objects, frames: Sequence[Frame]) -> None:
    """Its points and pixels replace themselves."""
    frame, changed = frames[0], 0
    for number in range(0, 20, 2):  # the first ones are of this frame
        label = NUSCENES.class_names[objects.boxes.labels[number]]
        paster = Paster(_alone(objects, number), config(classes={label: 1}, points=1))
        result = paster(replace(frame, boxes=Boxes.none()), np.random.default_rng(0))
        if not len(result.boxes):
            continue  # outside the grid
        changed += 1
        static = inside(frame.points, objects.boxes, number, False) & ~inside(frame.points, objects.boxes, number)
        np.testing.assert_array_equal(ordered(result.points), ordered(frame.points[~static]))
        for name in CAMERAS:
            np.testing.assert_array_equal(result.cameras[name].image, frame.cameras[name].image)
    assert changed > 4


def test_a_picture_shows_the_crop_or_one_colour(objects: Objects, frames: Sequence[Frame]) -> None:
    seen = [n for n in range(len(objects.boxes)) if 1 in objects.cameras(n) and len(objects.points(n)) > 50]
    number = seen[-1]
    label = NUSCENES.class_names[objects.boxes.labels[number]]
    frame = replace(frames[0], boxes=Boxes.none())
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
    frame = replace(ahead(near), points=np.zeros((0, 5), np.float32))
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
    assert crops(replace(blind, cameras={}), rng(0)).boxes is blind.boxes
    unannotated = replace(frames[0], boxes=None)
    assert crops(unannotated, rng(0)) is unannotated
    one = replace(blind, cameras={CAMERAS[0]: blind.cameras[CAMERAS[0]]})
    pasted = crops(one, rng(0)).boxes
    own = {tuple(objects.boxes.centers[n]) for n in range(len(objects.boxes)) if 0 in objects.cameras(n)}
    assert 0 < len(pasted) - len(one.boxes) < len(crops(frames[0], rng(0)).boxes) - len(one.boxes)
    assert {tuple(center) for center in pasted.centers[len(one.boxes) :]} <= own


def _same(one: Sample, other: Sample) -> bool:
    return all(np.array_equal(array, other.inputs[name]) for name, array in one.inputs.items())


@pytest.mark.parametrize(("until", "steps"), [(0.5, 2), (0.29, 29), (1.0, 10), (0.0, 0)])
def test_pasting_ends_after_its_share_of_the_steps(
    tables: NuScenesTables, objects: Objects, until: float, steps: int
) -> None:
    total = steps and round(steps / until)
    settings = config({"camera": None}, {"steps": total or 4, "batch": 2}, until=until, pictures="mask")
    token = tables.samples()[:1]  # cached
    pasting = FrameDataset(tables, token, settings, (), objects)
    plain = FrameDataset(tables, token, settings, ())
    end = 2 * steps
    for position in (*range(max(end - 2, 0), end), end, end + 1):
        assert _same(pasting[position], plain[position]) == (position >= end)


def test_samples_depend_on_seed_and_position_alone(tables: NuScenesTables, objects: Objects) -> None:
    def drawn(seed: int = 0, workers: int = 0, start: int = 0) -> list[np.ndarray]:
        content = config({"camera": None}, {"steps": 4, "batch": 1}, pictures="mask").model_dump(mode="json")
        content["seed"], content["data"]["workers"], content["data"]["augment"] = seed, workers, None
        settings = parse_config(content, "test")
        dataset = FrameDataset(tables, tables.samples()[:1], settings, ("detection",), objects)
        found = list(batches(dataset, settings, start))
        assert all(batch.labels["detection"]["real"].sum() > 30 for batch in found)
        return [batch.inputs["pillar_points"].numpy() for batch in found]

    whole = drawn()
    for others in (drawn(workers=2), drawn(start=2)):
        for one, other in zip(whole[-len(others) :], others, strict=True):
            np.testing.assert_array_equal(one, other)
    assert not np.array_equal(whole[0], drawn(seed=1)[0])
    assert not np.array_equal(whole[0], whole[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": {"tram": 2}}, "data.paste.classes: tram is no class of the taxonomy; known are car, truck"),
        ({"classes": {"car": 0}}, "data.paste.classes.car"),
        ({"model": {"lidar": None}, "pictures": "mask"}, "without LiDAR nothing shows a masked object"),
    ],
)
def test_what_cannot_be_pasted_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config(**changes)  # type: ignore[arg-type]


def test_without_lidar_pictures_are_pasted() -> None:
    settings: Config = config({"lidar": None})
    assert settings.data.paste is not None
