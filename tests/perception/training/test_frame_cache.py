"""Decoded frames in files: the same as read anew, by any number of processes, and never those of other data or code."""

import dataclasses
import multiprocessing
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandaset_drive as written
import pytest
from infos import new_infos, old_infos, opened_tiny, write_infos
from networks import assert_equal_batches as _assert_equal
from networks import loader_config as _config

from perception.datasets import pandaset, recorded
from perception.datasets.keyframes import Keyframes
from perception.datasets.nuscenes import dataset
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.pandaset import PandaSet
from perception.errors import InputError
from perception.frame import Camera, Frame, Reading
from perception.mmdet3d.infos import Infos
from perception.rig import load_rig
from perception.taxonomy import load_taxonomy
from perception.training import frame_cache
from perception.training.frame_cache import FrameCache, code_version
from perception.training.frames import Reads
from perception.training.loader import Batch, FrameDataset, batches

READS = Reads("ego", 2, lidar=True, cameras=True, least_width=0)


def same(a: Any, b: Any) -> bool:
    """Of frames and all that is in them: equal values, to the bit and of equal types."""
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if dataclasses.is_dataclass(a):
        names = [field.name for field in dataclasses.fields(a) if field.name != "file"]  # of a picture: not kept
        return all(same(getattr(a, name), getattr(b, name)) for name in names)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[name], b[name]) for name in a)
    return type(a) is type(b) and a == b


@pytest.fixture(scope="module")
def every_kind(
    nuscenes_root: Path, sim_root: Path, truck_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Keyframes]:
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
        (dataset, "read_image"), (recorded, "read_cloud"), (pandaset, "read_image"), (pandaset, "sweep")
    ):  # fmt: skip
        patch.setattr(module, name, refused)


def test_stored_frames_are_the_read_ones(every_kind: dict[str, Keyframes], tmp_path: Path) -> None:
    lidars, classes = set(), set()
    for name, tables in every_kind.items():
        tokens = tables.samples()[:2]
        whole = [READS.frame(tables, token) for token in tokens]
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


def test_all_files_that_are_opened_have_a_stamp(
    every_kind: dict[str, Keyframes], tiny_root: Path, tmp_path: Path
) -> None:
    """By Python's own hook for files that are opened."""
    infos = write_infos(tiny_root / "infos.pkl", new_infos(old_infos(opened_tiny(tiny_root), old_boxes=False)))
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
        READS.frame(tables, token)
        named = {os.path.realpath(path) for path, _, _ in tables.stamps(token, READS.sweeps)}
        read = {path for path in opened if Path(path).is_relative_to(tables.dataroot.resolve())}
        assert len(read) >= 3, name
        assert read <= named, name
    watching[0] = False


def test_every_field_of_a_frame_is_stored(tmp_path: Path) -> None:
    """Also those that no data set fills, and a frame without any sensor."""
    none, one = np.zeros((0, 5), np.float32), np.eye(4)
    camera = Camera(np.zeros((3, 5, 3), np.uint8), np.eye(3), one, one, 7)
    frame = Frame(
        "t", 1, "lidar", one, 2 * one, none, {"A": camera}, position=(1.5, 2.5), scene="s", location="l",
        lidar_of_point=np.zeros(0, np.uint8), class_of_point=np.zeros(0, np.int16),
        signals={"rain": [Reading(3, 0.5), Reading(4, "off")]},
    )  # fmt: skip
    for i, each in enumerate((frame, dataclasses.replace(frame, points=None, cameras={}, position=None))):
        path = tmp_path / f"{i}.frame"
        path.write_bytes(frame_cache._packed(each))
        assert same(frame_cache._stored(path), each)


def _batches(root: Path, **data: Any) -> list[Batch]:
    tables, config = NuScenesTables(root, "v1.0-tiny"), _config(**data)
    return list(batches(FrameDataset(tables, tables.samples(), config), config))


def _assert_all_equal(some: list[Batch], others: list[Batch]) -> None:
    for a, b in zip(some, others, strict=True):
        _assert_equal(a, b)


def test_a_training_sees_the_same_samples(tiny_root: Path, tmp_path: Path) -> None:
    for reduced in (False, True):
        alone = _batches(tiny_root, reduced_pictures=reduced)
        options = {"reduced_pictures": reduced, "cache": str(tmp_path / "cache")}
        for workers in (2 * reduced, 0):  # which fill it, and which only read it
            _assert_all_equal(alone, _batches(tiny_root, **options, workers=workers))
    assert len(list((tmp_path / "cache").iterdir())) == 2  # frames as recorded, and as asked for by the other
    with pytest.MonkeyPatch.context() as patch:
        _no_reading(patch)
        assert len(_batches(tiny_root, **options)) == 6


class Counted:
    """Opens the tables again, and counts the frames that are read instead of found."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder

    def __call__(self, reads: Reads = READS, taxonomy: str = "nuscenes") -> int:
        tables, read = NuScenesTables(self.root, "v1.0-tiny", taxonomy=load_taxonomy(taxonomy)), 0
        cache = FrameCache(self.folder, tables, reads)
        for token in tables.samples():
            before = sum(1 for _ in self.folder.rglob("*.frame"))
            assert same(cache.frame(token), reads.frame(tables, token))
            read += sum(1 for _ in self.folder.rglob("*.frame")) - before
        return read


def test_what_a_frame_depends_on_makes_it_anew(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = Counted(tiny_root, tmp_path / "cache")
    assert (count(), count()) == (3, 0)
    for change in ({"sweeps": 1}, {"grid_reference": "lidar"}, {"cameras": False}, {"lidar": False}):
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
        assert frame_cache._stored(path) is None
    cache = FrameCache(tmp_path / "cache", tables, READS)
    assert all(same(cache.frame(token), READS.frame(tables, token)) for token in tables.samples())
    assert path.read_bytes() == whole


def _fill(root: Path, folder: Path, barrier: Any) -> None:
    tables = NuScenesTables(root, "v1.0-tiny")
    barrier.wait()
    for _ in range(5):
        cache = FrameCache(folder, tables, READS)
        for token in tables.samples():
            assert same(cache.frame(token), READS.frame(tables, token))
        for path in cache.folder.glob("*.frame"):
            path.unlink(missing_ok=True)
    for token in tables.samples():
        cache.frame(token)


def test_processes_fill_a_cache_together(tiny_root: Path, tmp_path: Path) -> None:
    """And delete its files under one another's hands."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    running = [context.Process(target=_fill, args=(tiny_root, tmp_path / "cache", barrier)) for _ in range(3)]
    for each in running:
        each.start()
    for each in running:
        each.join()
    assert [each.exitcode for each in running] == [0, 0, 0]
    files = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert all(name.endswith(".frame") and not name.startswith(".") for name in files)


def test_a_folder_that_cannot_be_made_or_filled(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^data\.cache: cannot make .*file.* name another folder$"):
        _batches(tiny_root, cache=str(tmp_path / "file"))
    alone, disk = _batches(tiny_root), shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=disk.total // 21))
    _assert_all_equal(alone, _batches(tiny_root, cache=str(tmp_path / "full")))
    assert not list((tmp_path / "full").rglob("*.frame"))
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    cache, token = FrameCache(tmp_path / "deleted", tables, READS), tables.samples()[0]
    shutil.rmtree(tmp_path / "deleted")
    assert same(cache.frame(token), READS.frame(tables, token))
