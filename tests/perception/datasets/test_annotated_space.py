"""Annotated points, voxels and obstacles beside nuScenes' tables, as the devkit and Occ3D lay them out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nuscenes.utils.data_io import load_bin_file
from tiny import token
from vocabulary import NUSCENES

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.joined import JoinedTables
from perception.datasets.nuscenes.occ3d import occ3d_file
from perception.errors import InputError
from perception.rig import Box, load_rig
from perception.sensors.lidar.sweeps import Sweep, join_lidars
from perception.voxels import VoxelGrid, occupancy_classes

VERSION = "v1.0-tiny"
INDICES = {"noise": 0, "vehicle.car": 17, "human.pedestrian.adult": 2, "static_object.bicycle_rack": 13}
DATA = [token("data", "LIDAR_TOP", 2 * k + 1) for k in range(3)]  # the LiDAR's keyframes


@pytest.fixture
def annotated(tiny_root: Path) -> Path:
    """The tiny dataroot, whose first two keyframes have classes of points, and the first one has voxels."""
    folder, labels = tiny_root / VERSION, tiny_root / "lidarseg" / VERSION
    categories = json.loads((folder / "category.json").read_text())
    rows = [{**row, "index": INDICES[row["name"]]} for row in categories]
    rows.append({"token": "noise", "name": "noise", "index": 0})
    (folder / "category.json").write_text(json.dumps(rows))
    labels.mkdir(parents=True)
    rng, table = np.random.default_rng(1), []
    for path in (tiny_root / "samples" / "LIDAR_TOP").iterdir():
        points = np.fromfile(path, np.float32).reshape(-1, 5)
        points[::7, :2] *= 0.01  # returns from the roof
        path.write_bytes(points.tobytes())
    for name in DATA[:2]:
        (labels / f"{name}_lidarseg.bin").write_bytes(rng.choice([*INDICES.values()], 500).astype(np.uint8).tobytes())
        table.append({"token": name, "sample_data_token": name, "filename": f"lidarseg/{VERSION}/{name}_lidarseg.bin"})
    (folder / "lidarseg.json").write_text(json.dumps(table))
    path = voxels_of(tiny_root)
    path.parent.mkdir(parents=True)
    semantics = rng.integers(0, 18, (200, 200, 16)).astype(np.uint8)
    masks = rng.integers(0, 2, (2, 200, 200, 16)).astype(np.uint8)
    np.savez(path, semantics=semantics, mask_lidar=masks[0], mask_camera=masks[1])
    return tiny_root


def labels_of(root: Path, keyframe: int = 0) -> Path:
    return root / "lidarseg" / VERSION / f"{DATA[keyframe]}_lidarseg.bin"


def voxels_of(root: Path) -> Path:
    return occ3d_file(root, "scene-0001", token("sample", 0))


@pytest.mark.parametrize("joined", [False, True])
def test_points_have_the_classes_of_the_devkits_file(annotated: Path, joined: bool) -> None:
    """Those that the frame keeps, in its order; points of an earlier sweep have none."""
    own = NuScenesTables(annotated, VERSION)
    opened = JoinedTables(annotated.parent, VERSION, load_rig("nuscenes"), NUSCENES) if joined else own
    names = [each.name for each in NUSCENES.point_classes]
    expected = {0: -1, 17: names.index("car"), 2: names.index("pedestrian"), 13: -1}
    assert [opened.has_point_classes(sample) for sample in opened.samples()] == [True, True, False]
    for k, sample in enumerate(opened.samples()[:2]):
        frame = opened.frame(sample, "lidar", sweeps=2, cameras=False)
        file = next(each.file for each in own.recordings[sample].values() if "LIDAR" in each.file)
        intensities = np.fromfile(annotated / file, np.float32).reshape(-1, 5)[:, 3]  # no two are the same
        numbers = load_bin_file(str(labels_of(annotated, k)))
        class_of = {i: expected[n] for i, n in zip(intensities.tolist(), numbers.tolist(), strict=True)}
        assert frame.points is not None
        assert frame.class_of_point is not None
        assert frame.class_of_point.dtype == np.int16
        at_once = frame.points[:, 4] == 0
        found = zip(frame.points[at_once, 3].tolist(), frame.class_of_point[at_once].tolist(), strict=True)
        kept = [(class_of[intensity], label) for intensity, label in found]
        assert 400 < len(kept) < 450  # the roof's are left out
        assert all(a == b for a, b in kept)
        assert {label for _, label in kept} == {-1, names.index("car"), names.index("pedestrian")}
        assert (frame.class_of_point[~at_once] == -1).all()
    assert opened.frame(opened.samples()[2]).class_of_point is None
    assert opened.frame(opened.samples()[0], annotations=False).class_of_point is None


@pytest.mark.parametrize("joined", [False, True])
def test_voxels_are_those_of_the_file_by_z_y_x(annotated: Path, joined: bool) -> None:
    rig = load_rig("nuscenes")
    opened = JoinedTables(annotated.parent, VERSION, rig, NUSCENES) if joined else NuScenesTables(annotated, VERSION)
    first, second, _ = opened.samples()
    assert (opened.has_occupancy(first), opened.has_occupancy(second)) == (True, False)
    assert opened.occupancy(second) is None
    found = opened.occupancy(first)
    assert found is not None
    assert found.grid == VoxelGrid()
    assert occupancy_classes(NUSCENES)[17] == "free"
    with np.load(voxels_of(annotated)) as file:
        for x, y, z in [(0, 0, 0), (199, 3, 2), (7, 199, 15), (120, 80, 5)]:
            assert found.classes[z, y, x] == file["semantics"][x, y, z]
            assert found.seen_by_lidar[z, y, x] == bool(file["mask_lidar"][x, y, z])
            assert found.seen_by_cameras[z, y, x] == bool(file["mask_camera"][x, y, z])
        assert np.bincount(found.classes.ravel()).tolist() == np.bincount(file["semantics"].ravel()).tolist()
    assert (found.seen_by_lidar.dtype, found.classes.dtype) == (np.dtype(bool), np.dtype(np.uint8))


@pytest.mark.parametrize("joined", [False, True])
def test_obstacles_are_the_annotations_of_no_class(tiny_root: Path, joined: bool) -> None:
    rig = load_rig("nuscenes")
    opened = JoinedTables(tiny_root.parent, VERSION, rig, NUSCENES) if joined else NuScenesTables(tiny_root, VERSION)
    for sample in opened.samples():
        (rack, boxes) = opened.obstacles(sample), opened.boxes(sample)
        assert rack is not None
        assert boxes is not None
        assert rack.instances.tolist() == [token("instance", "rack")]
        assert rack.labels.tolist() == [-1]
        np.testing.assert_allclose(rack.centers, [[105, 42, 1]])
        np.testing.assert_allclose(rack.velocities, [[0, 0, 0]], atol=1e-12)
        assert boxes.instances.tolist() == [token("instance", "car"), token("instance", "walker")]


def test_obstacles_of_real_keyframes_are_all_other_annotations(nuscenes_root: Path) -> None:
    tables = NuScenesTables(nuscenes_root, "v1.0-mini")
    folder = nuscenes_root / "v1.0-mini"
    rows = {
        name: json.loads((folder / f"{name}.json").read_text())
        for name in ("category", "instance", "sample_annotation")
    }
    named = {row["token"]: row["name"] for row in rows["category"]}
    category = {row["token"]: named[row["category_token"]] for row in rows["instance"]}
    known = NUSCENES.labels_of_categories()
    others: dict[str, list[str]] = {}
    for row in rows["sample_annotation"]:
        if category[row["instance_token"]] not in known:
            others.setdefault(row["sample_token"], []).append(row["instance_token"])
    assert others
    for sample in tables.samples():
        assert tables.obstacles(sample).instances.tolist() == others.get(sample, [])


def test_a_dataroot_without_these_annotations(tiny_root: Path) -> None:
    tables = NuScenesTables(tiny_root, VERSION)
    first = tables.samples()[0]
    assert not tables.has_point_classes(first)
    assert not tables.has_occupancy(first)
    assert tables.frame(first).class_of_point is None
    (tiny_root / VERSION / "sample_annotation.json").write_text("[]")
    assert NuScenesTables(tiny_root, VERSION).obstacles(first) is None


def rewritten(path: Path, change: Callable[[dict], dict]) -> None:
    with np.load(path) as file:
        arrays = change(dict(file))
    np.savez(path, **arrays)


POINTS = {
    "the file of a sweep is missing": (lambda root: labels_of(root).unlink(), "cannot read the classes of points"),
    "fewer classes than points": (lambda root: labels_of(root).write_bytes(bytes(499)), "499 points, the sweep 500"),
    "an empty file": (lambda root: labels_of(root).write_bytes(b""), "0 points, the sweep 500"),
    "a number of no category": (lambda root: labels_of(root).write_bytes(bytes([99] * 500)), "the class 99"),
    "categories without numbers": (
        lambda root: (root / VERSION / "category.json").write_text(
            (root / VERSION / "category.json").read_text().replace("index", "x")
        ),
        "'index' is missing",
    ),
    "a number that is no byte": (
        lambda root: (root / VERSION / "category.json").write_text(
            (root / VERSION / "category.json").read_text().replace("17", "256")
        ),
        "256 is no byte",
    ),
    "a table without file names": (
        lambda root: (root / VERSION / "lidarseg.json").write_text(json.dumps([{"sample_data_token": DATA[0]}])),
        "'filename' is missing",
    ),
    "a table that is none": (lambda root: (root / VERSION / "lidarseg.json").write_text("{}"), "not a table"),
}  # fmt: skip
VOXELS = {
    "not an archive": (lambda path: path.write_bytes(b"PK"), "not Occ3D's"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:5000]), "not Occ3D's"),
    "a missing mask": (
        lambda path: rewritten(path, lambda a: {n: v for n, v in a.items() if n != "mask_camera"}), "mask_camera",
    ),
    "objects": (
        lambda path: rewritten(path, lambda a: {**a, "semantics": np.array([{}], object)}), "not Occ3D's",
    ),
    "another grid": (lambda path: rewritten(path, lambda a: {**a, "mask_lidar": a["mask_lidar"].T}), "expected uint8"),
    "numbers that are not whole": (
        lambda path: rewritten(path, lambda a: {**a, "semantics": a["semantics"] / 2}), "expected uint8",
    ),
    "further classes": (
        lambda path: rewritten(path, lambda a: {**a, "semantics": a["semantics"] + 1}), "class 18 is none",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", POINTS)
def test_damaged_classes_of_points_are_told_in_one_line(annotated: Path, name: str) -> None:
    damage, message = POINTS[name]
    damage(annotated)
    with pytest.raises(InputError, match=message) as error:
        NuScenesTables(annotated, VERSION).frame(token("sample", 0), cameras=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", VOXELS)
def test_damaged_voxels_are_told_in_one_line(annotated: Path, name: str) -> None:
    damage, message = VOXELS[name]
    damage(voxels_of(annotated))
    with pytest.raises(InputError, match=message) as error:
        NuScenesTables(annotated, VERSION).occupancy(token("sample", 0))
    assert "\n" not in str(error.value)


def test_without_the_table_a_leftover_folder_does_not_matter(annotated: Path) -> None:
    (annotated / VERSION / "lidarseg.json").unlink()
    shutil.rmtree(annotated / "gts")
    tables = NuScenesTables(annotated, VERSION)
    assert not tables.has_point_classes(token("sample", 0))
    assert tables.frame(token("sample", 0), cameras=False).class_of_point is None


def test_classes_stay_with_the_points_of_joined_lidars() -> None:
    """Sorted by time, without those of the own vehicle; a LiDAR without annotations has none."""
    rng, own = np.random.default_rng(2), Box(center=(0.0, 0.0, 0.0), size=(8.0, 8.0, 8.0))

    def swept(timestamp: int, annotated: bool) -> Sweep:
        points = np.column_stack([rng.uniform(-9, 9, (300, 3)), rng.integers(0, 16, 300), np.zeros(300)])
        points = points.astype(np.float32)
        classes = points[:, 3].astype(np.int16) if annotated else None  # the intensity is the class
        return Sweep(points, timestamp, np.eye(4), np.eye(4), classes=classes)

    sweeps = {0: [swept(1000, True), swept(500, False)], 1: [swept(1010, True)], 2: [swept(990, False)]}
    points, lidars, classes = join_lidars(sweeps, 1000, np.eye(4), own)
    assert points is not None
    assert classes is not None
    assert lidars is not None
    with_classes = (lidars == 1) | ((lidars == 0) & (points[:, 4] < 1e-5))
    assert 300 < with_classes.sum() < 600
    np.testing.assert_array_equal(classes, np.where(with_classes, points[:, 3], -1))
    single = join_lidars({0: sweeps[0]}, 1000, np.eye(4), own)
    assert single.lidars is None
    np.testing.assert_array_equal(single.classes, np.where(single.points[:, 4] < 1e-5, single.points[:, 3], -1))
    assert join_lidars({0: sweeps[0][1:]}, 1000, np.eye(4), own).classes is None
