"""Training samples depend on the seed and the position alone, also where decoded frames are kept in files."""

import dataclasses
import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandaset_drive as written
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from infos import new_infos, old_infos, open_tiny, write_infos
from maps import MapWriter
from networks import assert_equal_batches as _assert_equal
from networks import loader_config as _config
from occupied import SMALL, Occupied, random_occupancy
from vocabulary import CLASSES

from perception.config import Config, find_config, load_config, parse_config
from perception.datasets import files, keyframes, pandaset
from perception.datasets.infos import Infos
from perception.datasets.keyframes import Keyframes, Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.pandaset import PandaSet
from perception.errors import InputError
from perception.frame import PER_POINT, Camera, Frame, Reading
from perception.grid import Occupancy
from perception.rig import load_rig
from perception.sensors.inputs import prepare
from perception.taxonomy import load_taxonomy
from perception.training import frame_cache, loader
from perception.training.frame_cache import FrameCache, code_version
from perception.training.loader import Batch, FrameDataset, batches, class_balanced_order, collate


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


def _pictures(batch: Batch) -> torch.Tensor:
    return batch.frames[-1][0]["images"]


def _of_folder(root: Path, **data: Any) -> list[Batch]:
    return _batches(NuScenesTables(root, "v1.0-tiny"), _config(**data))


def _assert_all_equal(some: list[Batch], others: list[Batch]) -> None:
    for a, b in zip(some, others, strict=True):
        _assert_equal(a, b)


def test_samples_depend_on_seed_and_position_alone(mapped: NuScenesTables, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on where a training begins, nor on workers, which start after OpenCV ran threads here, nor on the cache."""
    whole = _batches(mapped, _config())
    assert len(whole) == 6
    _assert_all_equal(whole[4:], _batches(mapped, _config(), 4))
    other = parse_config({**_config().model_dump(), "seed": 1}, "test")
    assert not torch.equal(_pictures(whole[0]), _pictures(_batches(mapped, other)[0]))
    threads = cv2.getNumThreads()
    cv2.setNumThreads(4)
    cv2.warpAffine(np.zeros((2000, 2000, 3), np.uint8), np.eye(2, 3), (2000, 2000))
    monkeypatch.setattr(loader, "_CACHE_BYTES", 0)
    _assert_all_equal(whole, _batches(mapped, _config(workers=2)))
    assert cv2.getNumThreads() == 4
    cv2.setNumThreads(threads)


@pytest.mark.parametrize(("processes", "passes"), [(1, 4), (2, 1), (2, 2)])
def test_processes_and_passes_share_the_positions_of_a_step(mapped, processes, passes):
    whole = _batches(mapped, _config({"batch": 4, "steps": 2}), 1)
    config = _config({"batch": 4, "steps": 2, "accumulate": passes})
    shares = [_batches(mapped, config, 1, process, processes) for process in range(processes)]
    assert [len(share) for share in shares] == [passes] * processes
    parts = [batch for one_pass in zip(*shares, strict=True) for batch in one_pass]
    assert whole[0].tokens == [token for part in parts for token in part.tokens]
    assert torch.equal(_pictures(whole[0]), torch.cat([_pictures(part) for part in parts]))
    with pytest.raises(InputError, match=r"train.batch: 4 frames cannot be divided among 3 processes with 1 passes"):
        _batches(mapped, _config({"batch": 4}), 0, 0, 3)


def test_without_augmentation_samples_are_the_prepared_frames(mapped: NuScenesTables) -> None:
    config = _config({"drop": {}}, augment=None, class_balanced=False)
    dataset = FrameDataset(mapped, mapped.samples(), config)
    assert dataset.epoch_length == 3
    epoch = [dataset[position] for position in range(3)]
    assert sorted(sample.token for sample in epoch) == sorted(mapped.samples())
    for sample in epoch:
        ((inputs, conditions),) = sample.frames
        frame = mapped.frame(sample.token, Reads(sweeps=dataset._spec.sweeps))
        for name, array in prepare(frame, dataset._spec).items():
            np.testing.assert_array_equal(inputs[name], array)
        assert conditions == frame.conditions
        centers = frame.boxes.centers
        place, own = config.head_grid.continuous(centers), sample.labels["detection"]
        cells = np.floor(place).astype(int)
        np.testing.assert_array_equal(own["cells"], cells[:, 0] + config.head_grid.shape[1] * cells[:, 1])
        np.testing.assert_allclose(own["offset"], place - cells, atol=1e-6)
        np.testing.assert_array_equal(own["height"], centers[:, 2:].astype(np.float32))
        # The road is 10 m wide and the vehicle on its middle line, in cells of 0.8 m.
        assert sample.labels["map"]["cells"][0].sum(axis=0).max() == pytest.approx(10 / 0.8, abs=1)
    # Joined, and trimmed to the most pillars.
    batch, counts = collate(epoch[:2]), [int((each.frames[0][0]["pillar_counts"] > 0).sum()) for each in epoch[:2]]
    ((tensors, facts),) = batch.frames
    assert tensors["pillar_points"].shape == (2, max(counts), 8, 5)
    assert (tensors["pillar_counts"] > 0).sum(dim=1).tolist() == counts
    assert batch.labels["detection"]["real"].sum(dim=1).tolist() == [2, 2]
    assert [conditions["weather"] for conditions in facts] == ["rain", "rain"]


def test_labels_are_made_of_truth_that_is_not_kept(mapped: NuScenesTables) -> None:
    """Voxels of all frames would fill the memory, so they are read anew for each sample; the frames are kept."""
    read, head = list[str](), {"x": list(SMALL.x), "y": list(SMALL.y), "z": list(SMALL.z), "cell": SMALL.cell}

    def voxels(token: str) -> Occupancy:
        read.append(token)
        return random_occupancy(token)

    config = load_config(find_config("tiny"), ["data.class_balanced=false", "data.augment=null"])
    content = config.model_dump(mode="json") | {"tasks": {"map": {}, "occupancy": head}}
    source: Any = Occupied(mapped, voxels)
    dataset = FrameDataset(source, mapped.samples()[:1], parse_config(content, "voxels"))
    first, again = dataset[0], dataset[0]
    token = mapped.samples()[0]
    assert read == [token, token]
    truth = random_occupancy(token)
    seen = truth.seen_by_lidar | truth.seen_by_cameras
    area = mapped.recording(token).annotated("map")
    for sample in (first, again):
        classes = sample.labels["occupancy"]["classes"]
        np.testing.assert_array_equal(classes[seen], truth.classes[seen])
        cells = area.rasterize(mapped.frame(token), parse_config(content, "voxels").head_grid)
        np.testing.assert_array_equal(sample.labels["map"]["cells"], cells)
    assert [{*frame.truth} for frame in dataset._frames._frames.values()] == [{"boxes"}]


def test_sensors_are_dropped_in_their_shares_and_never_both(mapped: NuScenesTables, every_kind: Any) -> None:
    """Of the points nothing is left, of whichever LiDAR they are."""
    shares, rng = {"drop": {"lidar": 0.3, "cameras": 0.2}}, np.random.default_rng(0)
    dataset, tables = FrameDataset(mapped, mapped.samples(), _config(shares)), every_kind["truck"]
    frame = tables.frame(tables.samples()[0])
    assert frame.lidar_of_point is not None
    seen = [dataset._with_dropped_sensors(frame, rng) for _ in range(2000)]
    lidar, cameras = np.array([(each.points is not None, bool(each.cameras)) for each in seen]).T
    assert (lidar | cameras).all()
    assert (~lidar).mean() == pytest.approx(0.3, abs=0.03)
    assert (~cameras).mean() == pytest.approx(0.2, abs=0.03)
    blind = seen[lidar.argmin()]
    assert [getattr(blind, name) for name in PER_POINT] == [None] * 4
    for shares, name in (({"lidar": 1.0}, "pillar_counts"), ({"cameras": 1.0}, "image_from_reference")):
        assert not _dataset(mapped, {"drop": shares})[0].frames[-1][0][name].any()


def test_what_is_missing_is_marked_and_the_only_sensor_is_not_dropped(tiny_root: Path) -> None:
    labels = _of_folder(tiny_root)[0].labels["map"]
    assert labels["known"].tolist() == [False, False]
    assert not labels["cells"].any()
    for file in (tiny_root / "samples").glob("CAM_*/*"):
        file.unlink()
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    assert _dataset(tables, {"drop": {"lidar": 1.0}})[0].frames[-1][0]["pillar_counts"].any()


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
    assert {CLASSES[label] for label in tables.recording(rare).annotated("boxes").labels} == {"car", "pedestrian"}


def test_nothing_to_train_on(tiny_root: Path) -> None:
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    with pytest.raises(InputError, match="no keyframes to train on"):
        FrameDataset(tables, [], _config())
    (tiny_root / "v1.0-tiny" / "sample_annotation.json").write_text("[]")
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    with pytest.raises(InputError, match="no annotated box in the 3 keyframes"):
        FrameDataset(tables, tables.samples(), _config(class_balanced=True))
    of_map = FrameDataset(tables, tables.samples(), _config(class_balanced=True), ("map",))  # which learns no boxes
    assert {of_map.token(position) for position in range(3)} == {*tables.samples()}


# ---- decoded frames in files: never those of other data or code


READS = Reads("ego", 2)


@pytest.fixture(autouse=True)
def _a_disk_with_room(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(total=1 << 40, free=1 << 39)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


def same(a: Any, b: Any) -> bool:
    """Of frames and all that is in them: equal values, to the bit and of equal types."""
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if dataclasses.is_dataclass(a):
        kept = {field.name for field in dataclasses.fields(a)} - {"file", "ahead"}  # of a picture: not kept
        return all(same(getattr(a, name), getattr(b, name)) for name in kept)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[name], b[name]) for name in a)
    return type(a) is type(b) and a == b


@pytest.fixture(scope="module")
def every_kind(nuscenes_root, sim_root, truck_root, tmp_path_factory):
    """Data sets with real pictures, classes of points, several LiDARs, and lenses that distort."""
    root = tmp_path_factory.mktemp("pandaset")
    points = np.random.default_rng(0).uniform([-9, -9, 0, 0, 0, 0], [9, 9, 2, 255, 0.1, 1.99], (50, 6)).round(3)
    points[:, 5] = np.floor(points[:, 5])
    car = written.Object("Car", "parked", (3.0, 20.0, 0.3))
    written.write_drive(root, [car], {0: points, 1: points}, {0: np.full(50, 13)})
    return {
        "real": NuScenesTables(nuscenes_root, "v1.0-mini"),
        "simulated": NuScenesTables(sim_root, "v1.0-sim"),
        "truck": NuScenesTables(truck_root, "v1.0-sim", load_rig("truck"), load_taxonomy("truckscenes")),
        "pandaset": PandaSet(root),
    }


def _no_reading(patch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise AssertionError("a sensor file is read again")

    for module, name in (
        (keyframes, "read_image"),
        (files, "read_floats"),
        (files, "read_pcd"),
        (pandaset, "_sweep_of"),
    ):
        patch.setattr(module, name, refused)


def test_stored_frames_are_the_read_ones(every_kind: dict[str, Keyframes], tmp_path: Path) -> None:
    lidars, classes = set(), set()
    for name, tables in every_kind.items():
        tokens = tables.samples()[:2]
        whole = [tables.frame(token, READS) for token in tokens]
        cache = FrameCache(tmp_path, tables, READS)
        assert all(same(cache.frame(token), frame) for token, frame in zip(tokens, whole, strict=True)), name
        with pytest.MonkeyPatch.context() as patch:
            _no_reading(patch)
            stored = [cache.frame(token) for token in tokens]
        assert all(same(a, b) for a, b in zip(stored, whole, strict=True)), name
        assert stored[0].points is not None
        assert not stored[0].points.flags.writeable
        lidars |= {name} if whole[0].lidar_of_point is not None else set()
        classes |= {name} if whole[0].class_of_point is not None else set()
    assert lidars >= {"truck", "pandaset"}
    assert classes >= {"simulated", "pandaset"}


def test_all_files_that_are_opened_have_a_stamp(every_kind, tiny_root, tmp_path):
    """By Python's own hook for files that are opened."""
    infos = write_infos(tiny_root / "infos.pkl", new_infos(old_infos(open_tiny(tiny_root), old_boxes=False)))
    opened = set[str]()
    watching = [True]

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if watching[0] and event == "open" and isinstance(arguments[0], str | os.PathLike):
            opened.add(os.path.realpath(arguments[0]))

    sys.addaudithook(note)
    unread = shutil.copytree(every_kind["pandaset"].dataroot, tmp_path / "not in memory yet")
    written.write(unread / "007" / "meta", "gps.json", [{"lat": 1.0, "long": 2.0}] * written.FRAMES)
    for name, tables in (every_kind | {"pandaset": PandaSet(unread), "infos": Infos(infos)}).items():
        opened.clear()
        token = tables.samples()[1]
        tables.frame(token, READS)
        named = {os.path.realpath(path) for path, _, _ in tables.recording(token, READS).stamps()}
        read = {path for path in opened if Path(path).is_relative_to(tables.dataroot.resolve())}
        assert len(read) >= 3, name
        assert read <= named, name
    watching[0] = False


def test_every_field_of_a_frame_is_stored(tmp_path: Path) -> None:
    """Also those that no data set fills, and a frame without any sensor."""
    none, one = np.zeros((0, 5), np.float32), np.eye(4)
    byte = np.zeros(0, np.uint8)
    camera = Camera(np.zeros((3, 5, 3), np.uint8), np.eye(3), one, one, 7)
    frame = Frame(
        "t", 1, "lidar", one, 2 * one, none, {"A": camera}, position=(1.5, 2.5), scene="s", location="l",
        sweep_of_point=byte, lidar_of_point=byte, class_of_point=np.zeros(0, np.int16),
        signals={"rain": [Reading(3, 0.5), Reading(4, "off")]},
    )  # fmt: skip
    for i, each in enumerate((frame, dataclasses.replace(frame.without_points(), cameras={}, position=None))):
        path = tmp_path / f"{i}.frame"
        path.write_bytes(frame_cache._pack(each))
        assert same(frame_cache._read_frame(path), each)


def test_a_training_sees_the_same_samples(tiny_root: Path, tmp_path: Path) -> None:
    for reduced in (False, True):
        alone = _of_folder(tiny_root, reduced_pictures=reduced)
        options = {"reduced_pictures": reduced, "cache": str(tmp_path / "cache")}
        for workers in (2 * reduced, 0):  # which fill it, and which only read it
            _assert_all_equal(alone, _of_folder(tiny_root, **options, workers=workers))
    assert len(list((tmp_path / "cache").iterdir())) == 2  # frames as recorded, and as asked for by the other
    with pytest.MonkeyPatch.context() as patch:
        _no_reading(patch)
        assert len(_of_folder(tiny_root, **options)) == 6


class Counted:
    """Opens the tables again, and counts the frames that are read instead of found."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder

    def __call__(self, reads: Reads = READS, taxonomy: str = "nuscenes") -> int:
        tables, read = NuScenesTables(self.root, "v1.0-tiny", taxonomy=load_taxonomy(taxonomy)), 0
        cache = FrameCache(self.folder, tables, reads)
        for token in tables.samples():
            before = sum(1 for _ in self.folder.rglob("*.frame"))
            assert same(cache.frame(token), tables.frame(token, reads))
            read += sum(1 for _ in self.folder.rglob("*.frame")) - before
        return read


def test_what_a_frame_depends_on_makes_it_anew(tiny_root, tmp_path, monkeypatch):
    count = Counted(tiny_root, tmp_path / "cache")
    assert (count(), count()) == (3, 0)
    for change in ({"sweeps": 1}, {"reference": "lidar"}, {"cameras": False}, {"lidar": False}):
        assert (count(READS._replace(**change)), count()) == (3, 0), change
    assert count(taxonomy="pandaset") == 3
    picture = next((tiny_root / "samples" / "CAM_FRONT").iterdir())
    picture.write_bytes(cv2.imencode(".jpg", np.zeros((50, 80, 3), np.uint8))[1].tobytes())
    assert (count(), count()) == (1, 0)
    sweep = min((tiny_root / "sweeps" / "LIDAR_TOP").iterdir())  # of the first keyframe, and the next one's second
    kept = sweep.read_bytes()
    sweep.unlink()
    missing = count()
    assert missing >= 1
    sweep.write_bytes(kept)
    os.utime(sweep, ns=(1, 1))
    assert (count(), count()) == (missing, 0)
    table = tiny_root / "v1.0-tiny" / "ego_pose.json"
    table.write_text(table.read_text().replace("50.0", "51.0"))
    assert (count(), count()) == (3, 0)
    mine = tmp_path / "cache" / "frames-of mine"
    mine.mkdir()
    (mine / "a.frame").touch()
    sources = tiny_root / "sources"  # other code: a file more, its content, its name, one in a folder
    (sources / "inner").mkdir(parents=True)
    monkeypatch.setattr(frame_cache, "_SOURCES", sources)
    for change in (
        lambda: (sources / "a.py").write_text("a = 1"),
        lambda: (sources / "a.py").write_text("a = 2"),
        lambda: (sources / "a.py").rename(sources / "b.py"),
        (sources / "inner" / "c.py").touch,
    ):
        change()
        code_version.cache_clear()
        assert (count(), count()) == (3, 0)
        assert [*mine.iterdir()] == [mine / "a.frame"]
        assert len(list((tmp_path / "cache").iterdir())) == 2  # mine, and that of this code
    (sources / "tasks").mkdir()  # which makes no frames
    (sources / "tasks" / "a.py").touch()
    (sources / "notes.txt").write_text("no code")
    code_version.cache_clear()
    assert count() == 0
    code_version.cache_clear()


def test_damaged_files_are_not_taken_for_frames(tiny_root: Path, tmp_path: Path) -> None:
    count = Counted(tiny_root, tmp_path / "cache")
    count()
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    path = sorted((tmp_path / "cache").rglob("*.frame"))[0]
    whole = path.read_bytes()
    flipped = [bytearray(whole) for _ in range(40)]
    for place, content in zip(np.linspace(0, len(whole) - 1, 40).astype(int), flipped, strict=True):
        content[place] ^= 4
    zeroed = whole[:4096] + bytes(len(whole) - 4096)
    cut = [whole[:length] for length in (0, 4, 8, 20, 3000, len(whole) - 1)]
    for content in (*flipped, zeroed, bytes(len(whole)), *cut, whole + b"0", b"no frame"):
        path.write_bytes(content)
        assert frame_cache._read_frame(path) is None
    cache = FrameCache(tmp_path / "cache", tables, READS)
    assert all(same(cache.frame(token), tables.frame(token, READS)) for token in tables.samples())
    assert path.read_bytes() == whole


def test_a_folder_that_cannot_be_made_or_filled(tiny_root, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^data\.cache: cannot make .*file.* name another folder$"):
        _of_folder(tiny_root, cache=str(tmp_path / "file"))
    alone, usage = _of_folder(tiny_root), shutil.disk_usage(tmp_path)
    # 5 % stay free, of a large disk 4 GiB.
    for total, free, stored in ((16 << 30, 0.049, 0), (16 << 30, 0.051, 3), (4 << 40, 0.0009, 0), (4 << 40, 0.0011, 3)):
        disk, folder = usage._replace(total=total, free=int(free * total)), tmp_path / f"{total} {free}"
        monkeypatch.setattr(shutil, "disk_usage", lambda _, disk=disk: disk)
        _assert_all_equal(alone, _of_folder(tiny_root, cache=str(folder)))
        assert len(list(folder.rglob("*.frame"))) == stored
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    cache, token = FrameCache(tmp_path / "deleted", tables, READS), tables.samples()[0]
    shutil.rmtree(tmp_path / "deleted")
    assert same(cache.frame(token), tables.frame(token, READS))
