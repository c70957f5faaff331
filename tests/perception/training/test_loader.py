"""Training samples depend on the seed and the position alone; objects to paste are stored with all that shows them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from maps import MapWriter
from networks import assert_equal_batches as _assert_equal
from networks import loader_config as _config
from pasting import config, inside
from vocabulary import CAMERAS, CLASSES

from perception.config import Config, parse_config
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.frame import Boxes
from perception.sensors.inputs import prepare
from perception.training import loader
from perception.training.loader import Batch, FrameDataset, batches, class_balanced_order, collate
from perception.training.objects import Objects, key_of, objects_of
from perception.training.pictures import places


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> NuScenesTables:
    """The tiny drive, with a map of its location."""
    root = tmp_path_factory.mktemp("loader") / "tiny"
    tiny.write_tiny(root)
    writer = MapWriter()
    writer.area("drivable_area", writer.polygon([(50.0, 45.0), (200.0, 45.0), (200.0, 55.0), (50.0, 55.0)]))
    writer.write(root)
    return NuScenesTables(root, "v1.0-tiny")


def _dataset(tables: NuScenesTables, train: dict[str, Any] | None = None, **data: Any) -> FrameDataset:
    return FrameDataset(tables, tables.samples(), _config(train, **data))


def _batches(tables: NuScenesTables, config: Config, *start_and_processes: int) -> list[Batch]:
    return list(batches(FrameDataset(tables, tables.samples(), config), config, *start_and_processes))


def _assert_all_equal(some: list[Batch], others: list[Batch]) -> None:
    for a, b in zip(some, others, strict=True):
        _assert_equal(a, b)


def test_samples_depend_on_seed_and_position_alone(mapped: NuScenesTables, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on where a training begins, nor on workers, which start after OpenCV ran threads here, nor on the cache."""
    whole = _batches(mapped, _config())
    assert len(whole) == 6
    _assert_all_equal(whole[4:], _batches(mapped, _config(), 4))
    other = parse_config({**_config().model_dump(), "seed": 1}, "test")
    assert not torch.equal(whole[0].inputs["images"], _batches(mapped, other)[0].inputs["images"])
    threads = cv2.getNumThreads()
    cv2.setNumThreads(4)
    cv2.warpAffine(np.zeros((2000, 2000, 3), np.uint8), np.eye(2, 3), (2000, 2000))
    monkeypatch.setattr(loader, "_CACHE_BYTES", 0)
    _assert_all_equal(whole, _batches(mapped, _config(workers=2)))
    assert cv2.getNumThreads() == 4
    cv2.setNumThreads(threads)


@pytest.mark.parametrize(("processes", "passes"), [(1, 4), (2, 1), (2, 2)])
def test_processes_and_passes_share_the_positions_of_a_step(
    mapped: NuScenesTables, processes: int, passes: int
) -> None:
    whole = _batches(mapped, _config({"batch": 4, "steps": 2}), 1)
    config = _config({"batch": 4, "steps": 2, "accumulate": passes})
    shares = [_batches(mapped, config, 1, process, processes) for process in range(processes)]
    assert [len(share) for share in shares] == [passes] * processes
    parts = [batch for one_pass in zip(*shares, strict=True) for batch in one_pass]
    assert whole[0].tokens == [token for part in parts for token in part.tokens]
    assert torch.equal(whole[0].inputs["images"], torch.cat([part.inputs["images"] for part in parts]))
    with pytest.raises(InputError, match=r"train.batch: 4 frames cannot be divided among 3 processes with 1 passes"):
        _batches(mapped, _config({"batch": 4}), 0, 0, 3)


def test_without_augmentation_samples_are_the_prepared_frames(mapped: NuScenesTables) -> None:
    config = _config({"drop_lidar": 0.0, "drop_cameras": 0.0}, augment=None, class_balanced=False)
    dataset = FrameDataset(mapped, mapped.samples(), config)
    assert dataset.epoch_length == 3
    epoch = [dataset[position] for position in range(3)]
    assert sorted(sample.token for sample in epoch) == sorted(mapped.samples())
    for sample in epoch:
        frame = mapped.frame(sample.token, sweeps=dataset._spec.sweeps)
        for name, array in prepare(frame, dataset._spec).items():
            np.testing.assert_array_equal(sample.inputs[name], array)
        centers = frame.boxes.centers
        place, own = config.head_grid.continuous(centers), sample.labels["detection"]
        cells = np.floor(place).astype(int)
        np.testing.assert_array_equal(own["cells"], cells[:, 0] + config.head_grid.shape[1] * cells[:, 1])
        np.testing.assert_allclose(own["offset"], place - cells, atol=1e-6)
        np.testing.assert_array_equal(own["height"], centers[:, 2:].astype(np.float32))
        # The road is 10 m wide and the vehicle on its middle line, in cells of 0.8 m.
        assert sample.labels["map"]["cells"][0].sum(axis=0).max() == pytest.approx(10 / 0.8, abs=1)
    # Joined, and trimmed to the most pillars.
    batch, counts = collate(epoch[:2]), [int((each.inputs["pillar_counts"] > 0).sum()) for each in epoch[:2]]
    assert batch.inputs["pillar_points"].shape == (2, max(counts), 8, 5)
    assert (batch.inputs["pillar_counts"] > 0).sum(dim=1).tolist() == counts
    assert batch.inputs["images"].shape == (2, 6, 96, 256, 3)
    assert batch.labels["map"]["cells"].shape == (2, 6, 128, 128)
    assert batch.labels["map"]["known"].tolist() == [True, True]
    assert batch.labels["detection"]["real"].sum(dim=1).tolist() == [2, 2]
    assert [conditions["weather"] for conditions in batch.conditions] == ["rain", "rain"]


def test_sensors_are_dropped_in_their_shares_and_never_both(mapped: NuScenesTables) -> None:
    dataset = FrameDataset(mapped, mapped.samples(), _config({"drop_lidar": 0.3, "drop_cameras": 0.2}))
    samples = [dataset[position] for position in range(300)]
    lidar = np.array([sample.inputs["pillar_counts"].any() for sample in samples])
    cameras = np.array([sample.inputs["image_from_reference"].any() for sample in samples])
    assert (lidar | cameras).all()
    assert (~lidar).mean() == pytest.approx(0.3, abs=0.08)
    assert (~cameras).mean() == pytest.approx(0.2, abs=0.08)


def test_what_is_missing_is_marked_and_the_only_sensor_is_not_dropped(tiny_root: Path) -> None:
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    labels = _batches(tables, _config())[0].labels["map"]
    assert labels["known"].tolist() == [False, False]
    assert not labels["cells"].any()
    for file in (tiny_root / "samples").glob("CAM_*/*"):
        file.unlink()
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    assert _dataset(tables, {"drop_lidar": 1.0})[0].inputs["pillar_counts"].any()


@given(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=20, unique=True), min_size=1), st.integers(0, 99))
def test_every_class_gets_an_equal_share_of_frames(holders: list[list[int]], seed: int) -> None:
    arrays = [np.array(frames) for frames in holders]
    order = class_balanced_order(arrays, np.random.default_rng(seed))
    quota = sum(map(len, holders)) // len(holders)
    assert len(order) == quota * len(holders)
    # Taking each class's frames equally often, up to one, bounds how often a frame comes.
    drawn = Counter(order.tolist())
    least, most = Counter[int](), Counter[int]()
    for frames in holders:
        for frame in frames:
            least[frame] += quota // len(frames)
            most[frame] += -(-quota // len(frames))
    assert all(least[frame] <= drawn[frame] <= most[frame] for frame in least)
    assert set(drawn) <= set(least)


def test_rare_classes_are_seen_more_often(tiny_root: Path) -> None:
    table = tiny_root / "v1.0-tiny" / "sample_annotation.json"
    # Pedestrians stay in one keyframe of three.
    rare, walker = tiny.token("sample", 2), tiny.token("instance", "walker")
    rows = [
        row | ({"prev": "", "next": ""} if row["instance_token"] == walker else {})
        for row in json.loads(table.read_text())
        if row["instance_token"] != walker or row["sample_token"] == rare
    ]
    table.write_text(json.dumps(rows))
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    dataset = _dataset(tables, class_balanced=True)
    # Quota: (3 frames with cars + 1 with pedestrians) // 2 classes = 2 frames a class.
    assert dataset.epoch_length == 4
    shown = Counter(dataset.token(position) for position in range(400))
    assert shown[rare] / 400 == pytest.approx((2 + 2 / 3) / 4, abs=0.02)
    assert {CLASSES[label] for label in tables.boxes(rare).labels} == {"car", "pedestrian"}


def test_nothing_to_train_on(tiny_root: Path) -> None:
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    with pytest.raises(InputError, match="no keyframes to train on"):
        FrameDataset(tables, [], _config())
    (tiny_root / "v1.0-tiny" / "sample_annotation.json").write_text("[]")
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    with pytest.raises(InputError, match="no annotated box in the 3 keyframes"):
        FrameDataset(tables, tables.samples(), _config(class_balanced=True))


@pytest.fixture(scope="module")
def folder(tables: NuScenesTables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a database of the simulated drives."""
    folder = tmp_path_factory.mktemp("objects")
    objects_of(tables, tables.samples(), config(), folder)
    return folder


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _opened(tables: NuScenesTables, folder: Path) -> Objects:
    return objects_of(tables, tables.samples(), config(), folder)


def test_the_database_holds_all_points_and_pictures_of_every_object(tables: NuScenesTables, folder: Path) -> None:
    objects, number = _opened(tables, folder), 0
    for token in tables.samples()[:2]:
        frame = tables.frame(token, "ego", 2)
        for i in np.flatnonzero(frame.boxes.num_points > 0):
            points = frame.points[inside(frame.points, frame.boxes, i)]
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


def test_the_database_is_built_once_and_workers_do_not_change_its_bytes(
    tables: NuScenesTables, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = config().model_dump(mode="json")
    content["data"]["workers"] = 2
    objects_of(tables, tables.samples(), parse_config(content, "test"), tmp_path)
    assert _bytes(tmp_path) == _bytes(folder)
    monkeypatch.setattr(NuScenesTables, "frame", None)  # nothing is read again
    again = objects_of(tables, tables.samples(), config(classes={"bus": 1}, points=9, until=0.5), folder)
    assert len(again.boxes) == len(_opened(tables, folder).boxes)


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
    boxes = NuScenesTables.boxes

    def moved(source: NuScenesTables, token: str) -> Boxes:
        found = boxes(source, token)
        found.centers[-1, 0] += 1e-3
        return found

    monkeypatch.setattr(NuScenesTables, "boxes", moved)
    keys.append(key_of(tables, tokens, config()))
    assert len(set(keys)) == len(keys) == 9


def test_what_is_cut_off_leaves_nothing_and_what_is_damaged_is_said(
    tables: NuScenesTables, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, killed = NuScenesTables.frame, tables.samples()[3]

    def dying(source: NuScenesTables, token: str, *options: Any, **named: Any) -> Any:
        if token == killed:
            raise KeyboardInterrupt
        return read(source, token, *options, **named)

    with monkeypatch.context() as patch:
        patch.setattr(NuScenesTables, "frame", dying)
        with pytest.raises(KeyboardInterrupt):
            _opened(tables, tmp_path)
    assert not list(tmp_path.iterdir())
    for name, content in _bytes(folder).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content[:-1] if name.endswith("points.bin") else content)
    with pytest.raises(InputError, match="a damaged database of objects"):
        _opened(tables, tmp_path)
    next(tmp_path.rglob("objects.json")).write_text(json.dumps([]))
    with pytest.raises(InputError, match="a damaged database of objects"):
        _opened(tables, tmp_path)


def test_other_processes_wait_for_the_one_that_builds(
    tables: NuScenesTables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, settings = tables.samples()[:1], config(pictures="mask")
    built: list[Objects] = []

    def built_meanwhile(_: float) -> None:
        built.append(objects_of(tables, tokens, settings, tmp_path))

    monkeypatch.setattr("time.sleep", built_meanwhile)
    waited = objects_of(tables, tokens, settings, tmp_path, builds=False)
    assert len(built) == 1
    np.testing.assert_array_equal(waited.boxes.centers, built[0].boxes.centers)
