"""PandaSet: a written drive with known answers, a recorded one against its class of every point; and its tables as
pandas reads them, without running anything."""

import contextlib
import gzip
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas
import pandaset_drive as written
import pytest
from commands import one_line_error
from damage import Damage, cut, delete, write
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas_tables import a_dict, a_list, a_tuple, call, index, pickle_table, plain, rows, table, write_table
from pandas_tables import name as named
from pandaset_drive import SPINNING, Object, rig_of
from pickles import DEEP, assert_refused
from vocabulary import taxonomy_of

from perception.datasets import pandaset
from perception.datasets.keyframes import Reads
from perception.datasets.pandaset import PandaSet
from perception.errors import DAMAGE, InputError
from perception.io.unpickle import read_table
from perception.rig import Sensors, load_rig
from perception.scene.health.monitor import HealthMonitor
from perception.taxonomy import Taxonomy, load_taxonomy

LABELS = {"Car": 0, "Pickup Truck": 0, "Pedestrian": 1, "Pedestrian with Object": 1}
OBJECTS = [
    Object("Car", "parked", (3.0, 20.0, 0.3), yaw=0.4),
    Object("Pedestrian", "walker", (-4.0, 9.0, 0.5), (1.0, -0.5), size=(0.6, 0.7, 1.8), frames=(0, 1, 2)),
    Object("Cones", "cone", (0.0, 12.0, 0.0)),
    Object("Car", "ahead", (0.0, 30.0, 0.4), (-3.0, 5.0), yaw=0.54, sensor=0, sibling="ahead-gt"),
    Object("Car", "ahead-gt", (0.2, 30.3, 0.4), (-3.0, 5.0), yaw=0.54, sensor=1, sibling="ahead"),
    Object("Car", "one-way", (8.0, 30.0, 0.4), sensor=0),  # its sibling names it, but not the other way round
    Object("Car", "one-way-gt", (8.1, 30.0, 0.4), sensor=1, sibling="one-way"),
    Object("Car", "far-gt", (0.0, 60.0, 0.4), sensor=1, sibling="far", frames=(2, 3)),
    Object("Car", "lost-gt", (0.0, 80.0, 0.4), sensor=1, frames=(2,)),
]


RNG = np.random.default_rng(0)
POINTS = np.column_stack(  # in and around the parked car, of both LiDARs
    [
        RNG.uniform([0, 17, -1], [6, 23, 2], (400, 3)), RNG.uniform(0, 255, 400), RNG.uniform(-0.1, 0.02, 400),
        RNG.integers(0, 2, 400),
    ]
)  # fmt: skip
POINT_KINDS = np.random.default_rng(1).choice([*written.CLASSES], len(POINTS))
POINT_CLASSES = {"way": ["Road"], "car": ["Pickup Truck", "Car"], "sky": ["Bird"]}  # smoke and walkers are none


def inside(points: np.ndarray) -> np.ndarray:
    """(N,) bool: points in the parked car."""
    away, turn = points[:, :3] - [3.0, 20.0, 0.3], [[-np.sin(0.4), np.cos(0.4), 0], [np.cos(0.4), np.sin(0.4), 0]]
    return (np.abs(away @ np.array([*turn, [0, 0, 1]]).T) <= [2, 1, 0.75]).all(axis=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pandaset")
    written.write_drive(folder, OBJECTS, {0: POINTS, 1: POINTS + np.array([0, 0, 0, 0, 0.1, 0])}, {1: POINT_KINDS})
    return folder


def with_points(labels: dict[str, int]) -> Taxonomy:
    kinds = [{"name": name, "categories": categories} for name, categories in POINT_CLASSES.items()]
    return Taxonomy.model_validate({**dict(taxonomy_of(labels)), "point_classes": kinds})


def opened(root: Path) -> PandaSet:
    return PandaSet(root, None, taxonomy_of(LABELS))


def test_drives_frames_and_what_is_unknown_or_not_there(root: Path, tmp_path: Path) -> None:
    drives = opened(root)
    assert drives.scenes() == ["007"]
    assert drives.samples() == ["007-00", "007-01", "007-02", "007-03"]
    assert drives.samples(selectors=["007:1-3"]) == ["007-01", "007-02"]
    assert drives.scene("007-02") == "007"
    assert drives.recording("007-02").timestamp == 1_557_539_956_700_000
    times = [drives.recording(token).timestamp for token in drives.samples()]
    assert [*drives.moments("007-02").items()] == [*zip(drives.samples(), times, strict=True)]  # each is annotated
    assert drives.conditions("007-02").known() == ()
    assert drives.recording("007-00").annotated("map") is drives.recording("007-00").annotated("bicycle_racks") is None
    with one_line_error("has no split val"):
        drives.samples("val")
    with one_line_error("no frame 007-09"):
        drives.frame("007-09")
    shutil.copy(root / "static_extrinsic_calibration.yaml", tmp_path)
    with one_line_error("has no drive of PandaSet"):
        opened(tmp_path)


@pytest.mark.parametrize("reference", ["ego", "lidar"])
@pytest.mark.parametrize("lidars", [(0, 1), (0,), (1,)])
def test_points_are_in_the_vehicles_frame_and_in_boxes(root: Path, reference: str, lidars: tuple[int, ...]) -> None:
    drives = PandaSet(root, rig_of(*lidars), taxonomy_of(LABELS))
    frame = drives.frame("007-01", Reads(reference))
    chosen = POINTS[np.isin(POINTS[:, 5], lidars)]
    in_lidar = (chosen[:, :3] - written.world_from_lidar(0.1)[:3, 3]) @ written.world_from_lidar(0.1)[:3, :3]
    height = in_lidar[:, 2] - (written.GROUND if reference == "ego" else 0)
    forward, left = in_lidar[:, 1], -in_lidar[:, 0]
    np.testing.assert_allclose(frame.points[:, :3], np.stack([forward, left, height], axis=1), atol=1e-5)
    np.testing.assert_allclose(frame.points[:, 3], chosen[:, 3], rtol=1e-6)
    np.testing.assert_allclose(frame.points[:, 4], np.maximum(-chosen[:, 4], 0), atol=1e-6)
    assert frame.points.dtype == np.float32
    assert drives.recording("007-00").annotated("boxes").num_points[0] == inside(chosen).sum() > 0


def test_earlier_sweeps_follow_in_the_same_frame(root: Path) -> None:
    frame, one = opened(root).frame("007-01", Reads(sweeps=3)), opened(root).frame("007-01").points
    two = frame.points
    assert len(two) == 2 * len(one)
    np.testing.assert_array_equal(frame.keyframe_points, one)
    np.testing.assert_array_equal(two[: len(one)], one)
    np.testing.assert_allclose(two[len(one) :, :4], one[:, :4], atol=1e-5)  # the same places in the world
    np.testing.assert_allclose(two[len(one) :, 4], np.maximum(0.1 - POINTS[:, 4], 0), atol=1e-6)


@pytest.mark.parametrize("lidars", [(0, 1), (1, 0), (1,)])
def test_points_have_the_class_that_the_taxonomy_names(root: Path, lidars: tuple[int, ...]) -> None:
    drives = PandaSet(root, rig_of(*lidars), with_points(LABELS))
    frame, chosen = drives.frame("007-01"), np.isin(POINTS[:, 5], lidars)
    expected = [{7: 0, 13: 1, 14: 1}.get(kind, -1) for kind in POINT_KINDS[chosen]]
    assert frame.class_of_point.tolist() == expected
    for i in range(len(lidars)):
        of_this = POINTS[chosen, 5] == lidars[i]
        assert frame.of_lidar(i).class_of_point.tolist() == np.array(expected)[of_this].tolist()
    assert [drives.recording(token).exists("points") for token in ("007-00", "007-01")] == [False, True]
    assert not PandaSet(root, None, load_taxonomy("nuscenes")).recording("007-01").exists("points")
    # Not annotated, not asked for, or of an earlier sweep that is not annotated: unknown.
    assert drives.frame("007-00").class_of_point is None
    assert drives.frame("007-01", Reads(annotations=False)).class_of_point is None
    assert drives.frame("007-01", Reads(lidar=False)).class_of_point is None
    assert drives.frame("007-01", Reads(sweeps=1)).class_of_point is None
    assert PandaSet(root, rig_of(*lidars), taxonomy_of(LABELS)).frame("007-01").class_of_point is None


def test_boxes_are_merged_named_and_measured(root: Path, tmp_path: Path) -> None:
    drives = opened(root)
    boxes = drives.recording("007-02").annotated("boxes")
    assert boxes.instances.tolist() == ["parked", "walker", "ahead", "one-way", "far", "lost-gt"]
    assert boxes.labels.tolist() == [0, 1, 0, 0, 0, 0]
    assert PandaSet(root, None, taxonomy_of({"Cones": 5})).recording("007-02").annotated("boxes").labels.tolist() == [5]
    np.testing.assert_allclose(boxes.centers[2], [-0.6, 31.0, 0.4])
    np.testing.assert_allclose(boxes.sizes[1], [0.6, 0.7, 1.8])
    np.testing.assert_allclose(boxes.rotations[0] @ [1, 0, 0], [-np.sin(0.4), np.cos(0.4), 0], atol=1e-12)
    moving = [[0, 0], [1, -0.5], [-3, 5], [0, 0]]
    np.testing.assert_allclose(boxes.velocities[:4, :2], moving, atol=1e-4)  # seconds since 1970 in float64
    assert np.isnan(boxes.velocities[5, :2]).all()  # in one frame only
    other_first = PandaSet(root, rig_of(1, 0), taxonomy_of(LABELS))
    first = other_first.recording("007-02").annotated("boxes")
    assert first.instances.tolist() == ["parked", "walker", "ahead-gt", "one-way-gt", "far-gt", "lost-gt"]
    np.testing.assert_allclose(first.centers[2], [-0.4, 31.3, 0.4])
    cone = drives.recording("007-02").annotated("obstacles")
    assert (cone.instances.tolist(), cone.labels.tolist()) == (["cone"], [-1])
    np.testing.assert_allclose(cone.centers, [[0, 12, 0]])
    frame = drives.frame("007-02")  # whose boxes turn with its reference
    np.testing.assert_allclose(frame.boxes.transformed(frame.global_from_reference).centers, boxes.centers, atol=1e-9)
    assert drives.frame("007-02", Reads(annotations=False, lidar=False, cameras=False)).points is None
    shutil.copytree(root, tmp_path / "unlabelled", ignore=shutil.ignore_patterns("annotations"))
    assert opened(tmp_path / "unlabelled").recording("007-02").annotated("boxes") is None


def test_pictures_are_rectified(root: Path) -> None:
    """Every mark is where a pinhole camera would see it from where the vehicle was at the exposure."""
    drives, seen, k = opened(root), 0, written.INTRINSICS
    for token in drives.samples():
        frame = drives.frame(token)
        assert [*frame.cameras] == ["front", "left", "back"]  # the others have no pictures
        for name, camera in frame.cameras.items():
            np.testing.assert_array_equal(camera.intrinsics, [[k["fx"], 0, k["cx"]], [0, k["fy"], k["cy"]], [0, 0, 1]])
            np.testing.assert_allclose(camera.ego_from_camera, written.vehicle_from_camera(name), atol=1e-4)
            assert camera.timestamp == drives.recording(token).timestamp + round(1e6 * written.EXPOSURE[name])
            marks = written.marks_in_world()
            in_reference = (marks - frame.global_from_reference[:3, 3]) @ frame.global_from_reference[:3, :3]
            u, v, depth = frame.image_from_reference(name) @ np.column_stack([in_reference, np.ones(len(marks))]).T
            expected = np.stack([u, v], axis=1)[depth > 1] / depth[depth > 1, None]
            away = np.array([20, 15])
            expected = expected[((expected > away) & (expected < written.SIZE - away)).all(axis=1)]
            discs = cv2.connectedComponentsWithStats((camera.image[..., 0] > 127).astype(np.uint8))[3][1:]
            for place in expected:
                assert np.linalg.norm(discs - place, axis=1).min() < 0.5
            seen += len(expected)
    assert seen >= 20


CALIBRATION = "../static_extrinsic_calibration.yaml"
NO_CALIBRATION = "not the calibration of PandaSet's cameras"


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("lidar/01.pkl.gz", cut(0), "truncated"),
        ("annotations/semseg/classes.json", write("[7]"), "not the classes of PandaSet's points"),
        ("annotations/semseg/classes.json", write('{"7": "Road"}'), "the class 1 is not in classes.json"),
        ("lidar/poses.json", write("[{}]"), "do not fit PandaSet's layout"),
        ("camera/front_camera/01.jpg", write("a"), "not a picture"),
        ("camera/front_camera/poses.json", delete, "no JSON file"),
        (CALIBRATION, write("front_camera: 3"), NO_CALIBRATION),
        (CALIBRATION, delete, NO_CALIBRATION),
    ],
)
def test_damaged_files_are_named_in_one_line(root: Path, tmp_path: Path, file: str, damage: Damage, says: str) -> None:
    path = (shutil.copytree(root, tmp_path / "drives") / "007" / file).resolve()
    damage(path)
    with one_line_error(re.escape(path.name), says=says):
        PandaSet(tmp_path / "drives", None, with_points(LABELS)).frame("007-01")


def test_a_damaged_sweep_is_missing_where_damage_is_counted(root: Path, tmp_path: Path) -> None:
    """As in a replay: without the keyframe's sweep there are no points, without an earlier one the others."""
    folder, lines = shutil.copytree(root, tmp_path / "drives"), list[str]()
    cut(0)((folder / "007" / "lidar" / "00.pkl.gz").resolve())
    source, reads = PandaSet(folder), Reads(sweeps=1)
    before = DAMAGE.set(lines.append)
    try:
        frame, later = source.frame("007-00", Reads(truth=("boxes",))), source.frame("007-01", reads)
    finally:
        DAMAGE.reset(before)
    whole, others = PandaSet(root).frame("007-00"), PandaSet(root).frame("007-01", reads)
    assert frame.points is frame.sweep_of_point is frame.lidar_of_point is None
    assert {*frame.cameras} == {*whole.cameras}
    np.testing.assert_array_equal(frame.boxes.centers, whole.boxes.centers)
    np.testing.assert_array_equal(later.points, others.points[others.sweep_of_point != 1])
    assert {*later.sweep_of_point.tolist()} == {0}
    assert len({*lines}) == 1
    assert re.search("00.pkl.gz.*truncated", lines[0])
    assert (frame.truth["boxes"].num_points == -1).all()
    with one_line_error("00.pkl.gz", says="truncated"):
        PandaSet(folder).recording("007-00").annotated("boxes")


def test_recorded_points_boxes_and_cameras_are_where_they_should_be(pandaset_root: Path) -> None:
    """Points have the classes that PandaSet's taxonomy names; 99.9 % of those of cars are in boxes of cars, which are
    within 0.2 m of what they hold; the road is the ground; the vehicle and those that move drive forward."""
    names, token, file = load_taxonomy("pandaset"), "002-20", "20.pkl.gz"
    of_spinning = read_table(pandaset_root / "002" / "lidar" / file, {"d": "iu"})["d"] == 0
    kinds = read_table(pandaset_root / "002/annotations/semseg" / file, {"class": "iu"})["class"][of_spinning]
    drives = PandaSet(pandaset_root, SPINNING, names)
    frame, last = drives.frame(token), drives.frame("002-31", Reads(lidar=False, cameras=False))
    known = json.loads((pandaset_root / "002/annotations/semseg/classes.json").read_text())
    assert {name for each in names.point_classes for name in each.categories} <= {*known.values()}
    for number in np.unique(kinds).tolist():
        expected = [i for i, each in enumerate(names.point_classes) if known[str(number)] in each.categories] or [-1]
        assert np.unique(frame.class_of_point[kinds == number]).tolist() == expected
    only_cars = PandaSet(pandaset_root, SPINNING, taxonomy_of({"Car": 0})).frame(token, Reads(cameras=False))
    cars, held = kinds == 13, np.zeros(len(kinds), bool)
    for box in map(only_cars.boxes.select, np.arange(len(only_cars.boxes))[:, None]):
        local = (only_cars.points[:, :3] - box.centers) @ box.rotations[0]
        held |= (np.abs(local) <= box.sizes[0, [1, 0, 2]] / 2 + 0.2).all(axis=1)
    assert held[cars].mean() >= 0.999
    assert cars[held].mean() >= 0.88
    near = (kinds == 7) & (np.hypot(*frame.points[:, :2].T) < 10)
    assert abs(np.median(frame.points[near, 2])) < 0.15
    way = (np.linalg.inv(frame.global_from_ego) @ last.global_from_ego)[:3, 3]
    assert way[0] > 0.99 * np.linalg.norm(way)
    speeds, headings = np.linalg.norm(frame.boxes.velocities[:, :2], axis=1), frame.boxes.rotations[:, :2, 0]
    fast = speeds > 3
    assert fast.sum() >= 10
    assert (np.einsum("nd,nd->n", headings, frame.boxes.velocities[:, :2])[fast] > 0.99 * speeds[fast]).all()
    for name, yaw in {"front": 0, "front_left": 57, "left": 90, "back": 180, "right": -90, "front_right": -57}.items():
        looks = frame.cameras[name].ego_from_camera[:3, 2]
        assert looks @ [np.cos(np.radians(yaw)), np.sin(np.radians(yaw)), 0] > 0.995


def test_the_keyframe_has_all_points_of_its_recorded_sweep(pandaset_root: Path) -> None:
    """Of both LiDARs, though each point has its own time, up to 0.14 s before the frame's; as many as table rows."""
    tables = [read_table(pandaset_root / f"002/lidar/{i:02d}.pkl.gz", {"d": "iu"})["d"] for i in (3, 2, 1, 0)]
    frame = PandaSet(pandaset_root).frame("002-03", Reads(sweeps=3, cameras=False))
    assert len(frame.keyframe_points) == len(frame.keyframe_classes) == len(tables[0])
    for lidar in (0, 1):
        own, there = frame.of_lidar(lidar), [(each == lidar).sum() for each in tables]
        assert np.bincount(own.sweep_of_point).tolist() == there
        np.testing.assert_array_equal(own.keyframe_points, own.points[: there[0]])


def test_each_table_is_decoded_once(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For points, their LiDARs and classes, and the points in boxes, which are then known without it."""
    decoded = Counter[str]()

    def counted(path: Path, columns: dict[str, str]) -> dict[str, np.ndarray]:
        decoded[path.relative_to(tmp_path).as_posix()] += 1
        return read_table(path, columns)

    monkeypatch.setattr(pandaset, "read_table", counted)
    shutil.copytree(root, tmp_path / "drives")
    for place in (2, 3):
        shutil.copy(root / "007/lidar/01.pkl.gz", tmp_path / f"drives/007/lidar/{place:02d}.pkl.gz")
    drives = PandaSet(tmp_path / "drives", None, with_points(LABELS))
    for i, sweeps in ((0, 0), (3, 3)):
        drives.frame(f"007-{i:02d}", Reads(sweeps=sweeps))
        assert {path: count for path, count in decoded.items() if "/lidar/" in path} == {
            f"drives/007/lidar/{each:02d}.pkl.gz": 1 for each in range(i - sweeps, i + 1)
        }
        decoded.clear()
    assert drives.recording("007-00").annotated("boxes").num_points[0] == inside(POINTS).sum()
    assert len(drives.recording("007-03").annotated("obstacles")) == 1
    assert not decoded


def test_a_healthy_drive_is_healthy_and_a_thinned_sweep_is_not(pandaset_root: Path) -> None:
    """The rig's limits: one of the LiDARs sees a part of the surroundings only. None are needed for whole sweeps."""
    drive, lidars = PandaSet(pandaset_root), replace(load_rig("pandaset").sensors, cameras=())
    monitor, without_limits = HealthMonitor(lidars), HealthMonitor(Sensors(lidars.lidars))
    for sample in drive.samples()[::8]:
        frame = drive.frame(sample, Reads(cameras=False))
        assert {health.reasons for health in monitor.update(frame).values()} == {""}
        assert not any("thinned" in health.words for health in without_limits.update(frame).values())
    thinned = frame.select_points(slice(None, None, 2))
    assert {health.status for health in monitor.update(thinned).values()} == {"thinned"}


# Its tables.

COLUMNS = {
    "x": np.array([1.5, -2.0, 0.25]),
    "label": np.array(["Car", "Cones", "Bicycle"], object),
    "d": np.array([0, 1, 0]),
    "y": np.array([4.0, 5.0, 6.0]),
    "still": np.array([True, False, True]),
    "age": np.array(["Adult", np.nan, None], object),
}
KINDS = {"x": "f", "label": "O", "d": "iu", "y": "f"}


def read(content: bytes, folder: Path) -> dict[str, np.ndarray]:
    path = folder / "00.pkl.gz"
    path.write_bytes(gzip.compress(content, 1))
    return read_table(path, KINDS)


def test_columns_are_those_of_pandas(tmp_path: Path) -> None:
    write_table(tmp_path / "00.pkl.gz", COLUMNS)
    ours, theirs = read_table(tmp_path / "00.pkl.gz", KINDS), pandas.read_pickle(tmp_path / "00.pkl.gz")
    assert list(theirs) == list(COLUMNS)
    for column in KINDS:
        np.testing.assert_array_equal(ours[column], COLUMNS[column])
        np.testing.assert_array_equal(ours[column], theirs[column].to_numpy())
        assert not ours[column].flags.writeable
    empty = read(table({column: values[:0] for column, values in COLUMNS.items()}), tmp_path)
    assert {len(values) for values in empty.values()} == {0}


FRAME, PLACE = named("pandas.core.frame DataFrame"), plain(np.array([0]))
X, SYSTEM = plain(np.zeros((1, 1))), call("posix system", plain("touch canary"))


def with_blocks(*blocks: tuple[bytes, bytes], names: bytes | None = None) -> bytes:
    """A table x y of one row with these values, each at its place."""
    axes = a_list(names or index(["x", "y"]), rows(1))
    described = a_list(*(a_dict(values=values, mgr_locs=place) for values, place in blocks))
    return pickle_table(a_tuple(axes, a_list(), a_list(), a_dict(**{"0.14.1": a_dict(axes=axes, blocks=described)})))


def having(**columns: np.ndarray) -> bytes:
    return table(COLUMNS | columns)


HOSTILE: list[tuple[Callable[[], bytes], str]] = [
    (lambda: pickle_table(SYSTEM), "contains 'posix.system'"),
    (lambda: having().replace(plain("Cones"), SYSTEM), "contains 'posix.system'"),
    (lambda: having().replace(plain("Cones"), plain([1])), "more than text and numbers"),
    (lambda: b"\x80\x03" + plain({"x": 1}) + b".", "this is no table"),
    (lambda: b"\x80\x03" + FRAME + b")\x81" + a_dict(_data=b"}") + b"b.", "no table"),
    (lambda: with_blocks((X, DEEP)), "a block of its columns is none"),
    (lambda: with_blocks((X, PLACE)), "not all there"),
    (lambda: with_blocks(*((plain(np.zeros((1, n))), plain(np.array([n]))) for n in (0, 1))), "unequal lengths"),
    (lambda: with_blocks(names=plain(np.arange(2))), "no names"),
    (lambda: having().replace(plain((2, 3)), plain((2, 4)), 1), "truncated|as many of them|damaged"),
    (lambda: table({"y": np.zeros(1)}), "has no column 'x'; it has y"),
    (lambda: having(x=COLUMNS["label"]), "'x' holds something else"),
    (lambda: having(label=COLUMNS["age"]), "something else than text"),
    (lambda: having(x=np.array([1, np.nan, 2])), "column 'x' holds NaN or infinity"),
]


@pytest.mark.parametrize(("make", "says"), HOSTILE)
def test_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], bytes], says: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(read, make(), tmp_path, says)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut(-20), "truncated"),
        (write(table(COLUMNS)), "not gzip, or damaged"),
        (write(gzip.compress(bytes((1 << 28) + 1), 1)), "more than 256 MiB"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot read the file"),
    ],
)
def test_damaged_files(tmp_path: Path, damage: Damage, says: str) -> None:
    path = tmp_path / "00.pkl.gz"
    with pytest.raises(FileNotFoundError):
        read_table(path, KINDS)
    write_table(path, COLUMNS)
    damage(path)
    with one_line_error(says):
        read_table(path, KINDS)


@settings(max_examples=400)
@given(data=st.data())
def test_a_changed_byte_is_refused_or_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(table(COLUMNS))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InputError):
        columns = read(bytes(content), tmp_path_factory.getbasetemp())
        assert columns.keys() == KINDS.keys()
        assert len({len(column) for column in columns.values()}) == 1
