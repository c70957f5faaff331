"""Training samples depend on the seed and the position alone; classes and sensors get their shares."""

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loaders import _assert_equal, _config
from map_writer import MapWriter
from tiny import token, write_tiny
from vocabulary import CLASSES

from perception.config import Config, parse_config
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.sensors.inputs import prepare
from perception.training import loader
from perception.training.loader import Batch, FrameDataset, batches, class_balanced_order, collate


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> NuScenesTables:
    """The tiny drive, with a map of its location."""
    root = tmp_path_factory.mktemp("loader") / "tiny"
    write_tiny(root)
    writer = MapWriter()
    writer.area("drivable_area", writer.polygon([(50.0, 45.0), (200.0, 45.0), (200.0, 55.0), (50.0, 55.0)]))
    writer.write(root)
    return NuScenesTables(root, "v1.0-tiny")


def _batches(tables: NuScenesTables, config: Config, *start_and_processes: int) -> list[Batch]:
    return list(batches(FrameDataset(tables, tables.samples(), config), config, *start_and_processes))


def test_a_resumed_training_sees_the_same_samples(tables: NuScenesTables) -> None:
    config = _config()
    whole, rest = _batches(tables, config), _batches(tables, config, 4)
    assert (len(whole), len(rest)) == (6, 2)
    for a, b in zip(whole[4:], rest, strict=True):
        _assert_equal(a, b)


def test_workers_and_the_cache_change_nothing(tables: NuScenesTables, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = _batches(tables, _config())
    monkeypatch.setattr(loader, "_CACHE_BYTES", 0)
    for a, b in zip(alone, _batches(tables, _config(workers=2)), strict=True):
        _assert_equal(a, b)


def test_workers_start_after_opencv_ran_threads_here(tables: NuScenesTables) -> None:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(4)
    cv2.warpAffine(np.zeros((2000, 2000, 3), np.uint8), np.eye(2, 3), (2000, 2000))
    assert len(_batches(tables, _config(workers=1))) == 6
    assert cv2.getNumThreads() == 4
    cv2.setNumThreads(threads)


@pytest.mark.parametrize(("processes", "passes"), [(1, 4), (2, 1), (2, 2)])
def test_processes_and_passes_share_the_positions_of_a_step(
    tables: NuScenesTables, processes: int, passes: int
) -> None:
    whole = _batches(tables, _config({"batch": 4, "steps": 2}), 1)
    config = _config({"batch": 4, "steps": 2, "accumulate": passes})
    shares = [_batches(tables, config, 1, process, processes) for process in range(processes)]
    assert [len(share) for share in shares] == [passes] * processes
    parts = [batch for one_pass in zip(*shares, strict=True) for batch in one_pass]
    assert whole[0].tokens == [token for part in parts for token in part.tokens]
    assert torch.equal(whole[0].inputs["images"], torch.cat([part.inputs["images"] for part in parts]))
    with pytest.raises(InputError, match=r"train.batch: 4 frames cannot be divided among 3 processes with 1 passes"):
        _batches(tables, _config({"batch": 4}), 0, 0, 3)


def test_epochs_have_the_length_of_the_sampling(tables: NuScenesTables) -> None:
    """Three keyframes, each with a car and a pedestrian: an epoch of balanced classes has six."""
    for balanced, frames in ((False, 3), (True, 6)):
        config = _config({"steps": None, "epochs": 5, "batch": 4}, class_balanced=balanced)
        assert FrameDataset(tables, tables.samples(), config).steps == -(-5 * frames // 4)


def test_seeds_differ(tables: NuScenesTables) -> None:
    other = parse_config({**_config().model_dump(), "seed": 1}, "test")
    a, b = _batches(tables, _config())[0], _batches(tables, other)[0]
    assert not torch.equal(a.inputs["images"], b.inputs["images"])


def test_without_augmentation_samples_are_the_prepared_frames(tables: NuScenesTables) -> None:
    config = _config({"drop_lidar": 0.0, "drop_cameras": 0.0}, augment=None, class_balanced=False)
    dataset = FrameDataset(tables, tables.samples(), config)
    epoch = [dataset[position] for position in range(3)]
    assert sorted(sample.token for sample in epoch) == sorted(tables.samples())
    for sample in epoch:
        frame = tables.frame(sample.token, sweeps=dataset._spec.sweeps)
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


def test_batches_are_joined_and_trimmed(tables: NuScenesTables) -> None:
    config = _config({"drop_lidar": 0.0, "drop_cameras": 0.0}, augment=None, class_balanced=False)
    dataset = FrameDataset(tables, tables.samples(), config)
    samples = [dataset[0], dataset[1]]
    batch = collate(samples)
    counts = [int((sample.inputs["pillar_counts"] > 0).sum()) for sample in samples]
    assert batch.inputs["pillar_points"].shape == (2, max(counts), 8, 5)
    assert (batch.inputs["pillar_counts"] > 0).sum(dim=1).tolist() == counts
    assert batch.inputs["images"].shape == (2, 6, 96, 256, 3)
    assert batch.labels["map"]["cells"].shape == (2, 6, 128, 128)
    assert batch.labels["map"]["known"].tolist() == [True, True]
    assert batch.labels["detection"]["real"].sum(dim=1).tolist() == [2, 2]
    assert [conditions["weather"] for conditions in batch.conditions] == ["rain", "rain"]


def test_a_location_without_a_map_is_marked(tiny_root: Path) -> None:
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    batch = _batches(tables, _config())[0]
    assert batch.labels["map"]["known"].tolist() == [False, False]
    assert not batch.labels["map"]["cells"].any()


def test_sensors_are_dropped_in_their_shares_and_never_both(tables: NuScenesTables) -> None:
    dataset = FrameDataset(tables, tables.samples(), _config({"drop_lidar": 0.3, "drop_cameras": 0.2}))
    samples = [dataset[position] for position in range(300)]
    lidar = np.array([sample.inputs["pillar_counts"].any() for sample in samples])
    cameras = np.array([sample.inputs["image_from_reference"].any() for sample in samples])
    assert (lidar | cameras).all()
    assert (~lidar).mean() == pytest.approx(0.3, abs=0.08)
    assert (~cameras).mean() == pytest.approx(0.2, abs=0.08)


def test_the_only_sensor_is_not_dropped(tiny_root: Path) -> None:
    for folder in (tiny_root / "samples").glob("CAM_*"):
        for file in folder.iterdir():
            file.unlink()
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    dataset = FrameDataset(tables, tables.samples(), _config({"drop_lidar": 1.0}))
    assert dataset[0].inputs["pillar_counts"].any()


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
    rows = json.loads(table.read_text())
    rare = token("sample", 2)  # pedestrians stay in one keyframe of three
    walker = token("instance", "walker")
    rows = [row for row in rows if row["instance_token"] != walker or row["sample_token"] == rare]
    for row in rows:
        row |= {"prev": "", "next": ""} if row["instance_token"] == walker else {}
    table.write_text(json.dumps(rows))
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    dataset = FrameDataset(tables, tables.samples(), _config(class_balanced=True))
    # Quota: (3 frames with cars + 1 with pedestrians) // 2 classes = 2 frames a class.
    assert dataset.epoch_length == 4
    shown = Counter(dataset.token(position) for position in range(400))
    assert shown[rare] / 400 == pytest.approx((2 + 2 / 3) / 4, abs=0.02)
    boxes = tables.boxes(rare)
    assert {CLASSES[label] for label in boxes.labels} == {"car", "pedestrian"}


def test_nothing_to_train_on(tiny_root: Path) -> None:
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    with pytest.raises(InputError, match="no keyframes to train on"):
        FrameDataset(tables, [], _config())
    (tiny_root / "v1.0-tiny" / "sample_annotation.json").write_text("[]")
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    with pytest.raises(InputError, match="no annotated box in the 3 keyframes"):
        FrameDataset(tables, tables.samples(), _config(class_balanced=True))
