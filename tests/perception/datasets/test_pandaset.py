"""PandaSet's own layout: a written drive with known answers, and a recorded one against its class of every point."""

from __future__ import annotations

import gzip
import json
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandaset_drive as written
import pytest
from pandaset_drive import Object
from pandaset_rigs import SPINNING, rig_of
from pickles import system
from vocabulary import taxonomy_of

from perception.datasets.dataframe_pickle import read_table
from perception.datasets.pandaset import PandaSet
from perception.errors import InputError
from perception.frame import Frame
from perception.rig import load_rig
from perception.scene.health.monitor import HealthMonitor
from perception.taxonomy import Taxonomy, load_taxonomy

LABELS = {"Car": 0, "Pickup Truck": 0, "Pedestrian": 1, "Pedestrian with Object": 1}
ROAD, CAR = 7, 13  # classes of points
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


def points_of(rng: np.random.Generator) -> np.ndarray:
    """(N, 6) in and around the parked car, of both LiDARs."""
    xyz = rng.uniform([0, 17, -1], [6, 23, 2], (400, 3))
    return np.column_stack([xyz, rng.uniform(0, 255, 400), rng.uniform(-0.1, 0.02, 400), rng.integers(0, 2, 400)])


POINTS = points_of(np.random.default_rng(0))
KINDS = np.random.default_rng(1).choice([*written.CLASSES], len(POINTS))
POINT_CLASSES = {"way": ["Road"], "car": ["Pickup Truck", "Car"], "sky": ["Bird"]}  # smoke and walkers are none


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pandaset")
    written.write_drive(folder, OBJECTS, {0: POINTS, 1: POINTS + np.array([0, 0, 0, 0, 0.1, 0])}, {1: KINDS})
    return folder


def with_points(labels: dict[str, int]) -> Taxonomy:
    kinds = [{"name": name, "categories": categories} for name, categories in POINT_CLASSES.items()]
    return Taxonomy.model_validate({**dict(taxonomy_of(labels)), "point_classes": kinds})


def test_drives_frames_and_what_is_unknown(root: Path) -> None:
    drives = PandaSet(root, None, taxonomy_of(LABELS))
    assert drives.scenes() == ["007"]
    assert drives.samples() == ["007-00", "007-01", "007-02", "007-03"]
    assert drives.samples(selectors=["007:1-3"]) == ["007-01", "007-02"]
    assert drives.scene("007-02") == "007"
    assert drives.timestamp("007-02") == 1_557_539_956_700_000
    assert drives.conditions("007-02").known() == ()
    assert (drives.map(""), drives.bicycle_racks()) == (None, {})
    with pytest.raises(InputError, match="has no split val"):
        drives.samples("val")


@pytest.mark.parametrize("reference", ["ego", "lidar"])
@pytest.mark.parametrize("lidars", [(0, 1), (0,), (1,)])
def test_points_are_in_the_vehicles_frame(root: Path, reference: str, lidars: tuple[int, ...]) -> None:
    frame = PandaSet(root, rig_of(*lidars), taxonomy_of(LABELS)).frame("007-01", reference)
    chosen = POINTS[np.isin(POINTS[:, 5], lidars)]
    in_lidar = (chosen[:, :3] - written.world_from_lidar(0.1)[:3, 3]) @ written.world_from_lidar(0.1)[:3, :3]
    height = in_lidar[:, 2] - (written.GROUND if reference == "ego" else 0)
    forward, left = in_lidar[:, 1], -in_lidar[:, 0]
    np.testing.assert_allclose(frame.points[:, :3], np.stack([forward, left, height], axis=1), atol=1e-5)
    np.testing.assert_allclose(frame.points[:, 3], chosen[:, 3], rtol=1e-6)
    np.testing.assert_allclose(frame.points[:, 4], np.maximum(-chosen[:, 4], 0), atol=1e-6)
    assert frame.points.dtype == np.float32


def test_earlier_sweeps_follow_in_the_same_frame(root: Path) -> None:
    drives = PandaSet(root, None, taxonomy_of(LABELS))
    one, two = drives.frame("007-01").points, drives.frame("007-01", sweeps=3).points
    assert len(two) == 2 * len(one)
    np.testing.assert_array_equal(two[: len(one)], one)
    np.testing.assert_allclose(two[len(one) :, :4], one[:, :4], atol=1e-5)  # the same places in the world
    np.testing.assert_allclose(two[len(one) :, 4], np.maximum(0.1 - POINTS[:, 4], 0), atol=1e-6)


@pytest.mark.parametrize("lidars", [(0, 1), (1, 0), (1,)])
def test_points_have_the_class_that_the_taxonomy_names(root: Path, lidars: tuple[int, ...]) -> None:
    drives = PandaSet(root, rig_of(*lidars), with_points(LABELS))
    frame, chosen = drives.frame("007-01"), np.isin(POINTS[:, 5], lidars)
    expected = [{7: 0, 13: 1, 14: 1}.get(kind, -1) for kind in KINDS[chosen]]
    assert frame.class_of_point.tolist() == expected
    for i in range(len(lidars)):
        own = frame.of_lidar(i)
        assert own.class_of_point.tolist() == [
            kind for kind, lidar in zip(expected, POINTS[chosen, 5], strict=True) if lidar == lidars[i]
        ]
    # Not annotated, not asked for, or of an earlier sweep that is not annotated: unknown.
    assert drives.frame("007-00").class_of_point is None
    assert drives.frame("007-01", annotations=False).class_of_point is None
    assert drives.frame("007-01", lidar=False).class_of_point is None
    assert drives.frame("007-01", sweeps=1).class_of_point is None
    assert PandaSet(root, rig_of(*lidars), taxonomy_of(LABELS)).frame("007-01").class_of_point is None


def test_boxes_are_merged_named_and_measured(root: Path) -> None:
    drives = PandaSet(root, None, taxonomy_of(LABELS))
    boxes = drives.boxes("007-02")
    assert boxes.instances.tolist() == ["parked", "walker", "ahead", "one-way", "far", "lost-gt"]
    assert boxes.labels.tolist() == [0, 1, 0, 0, 0, 0]
    assert PandaSet(root, None, taxonomy_of({"Cones": 5})).boxes("007-02").labels.tolist() == [5]
    np.testing.assert_allclose(boxes.centers[2], [-0.6, 31.0, 0.4])
    np.testing.assert_allclose(boxes.sizes[1], [0.6, 0.7, 1.8])
    np.testing.assert_allclose(boxes.rotations[0] @ [1, 0, 0], [-np.sin(0.4), np.cos(0.4), 0], atol=1e-12)
    np.testing.assert_allclose(
        boxes.velocities[:4, :2], [[0, 0], [1, -0.5], [-3, 5], [0, 0]], atol=1e-4
    )  # seconds since 1970 in float64
    assert np.isnan(boxes.velocities[5, :2]).all()  # in one frame only
    first = PandaSet(root, rig_of(1, 0), taxonomy_of(LABELS)).boxes("007-02")  # the other LiDAR's boxes
    assert first.instances.tolist() == ["parked", "walker", "ahead-gt", "one-way-gt", "far-gt", "lost-gt"]
    np.testing.assert_allclose(first.centers[2], [-0.4, 31.3, 0.4])
    cone = drives.obstacles("007-02")
    assert (cone.instances.tolist(), cone.labels.tolist()) == (["cone"], [-1])
    np.testing.assert_allclose(cone.centers, [[0, 12, 0]])


@pytest.mark.parametrize("lidars", [(0, 1), (0,), (1,)])
def test_points_in_boxes_are_counted(root: Path, lidars: tuple[int, ...]) -> None:
    boxes = PandaSet(root, rig_of(*lidars), taxonomy_of(LABELS)).boxes("007-00")
    away = POINTS[:, :3] - [3.0, 20.0, 0.3]
    along = away[:, :2] @ [-np.sin(0.4), np.cos(0.4)]
    across = away[:, :2] @ [np.cos(0.4), np.sin(0.4)]
    inside = (np.abs(along) <= 2) & (np.abs(across) <= 1) & (np.abs(away[:, 2]) <= 0.75)
    assert boxes.num_points[0] == (inside & np.isin(POINTS[:, 5], lidars)).sum() > 0


def test_a_frames_boxes_turn_with_its_reference(root: Path) -> None:
    drives = PandaSet(root, None, taxonomy_of(LABELS))
    frame, boxes = drives.frame("007-02"), drives.boxes("007-02")
    np.testing.assert_allclose(frame.boxes.transformed(frame.global_from_reference).centers, boxes.centers, atol=1e-9)
    assert drives.frame("007-02", annotations=False, lidar=False, cameras=False).points is None
    shutil.copytree(root, root.parent / "unlabelled", ignore=shutil.ignore_patterns("annotations"))
    assert PandaSet(root.parent / "unlabelled", None, taxonomy_of(LABELS)).boxes("007-02") is None


def test_pictures_are_rectified(root: Path) -> None:
    """Every mark is where a pinhole camera would see it from where the vehicle was at the exposure."""
    drives, seen = PandaSet(root, None, taxonomy_of(LABELS)), 0
    for token in drives.samples():
        frame = drives.frame(token)
        assert [*frame.cameras] == ["front", "left", "back"]  # the others have no pictures
        for name, camera in frame.cameras.items():
            np.testing.assert_allclose(camera.ego_from_camera, written.vehicle_from_camera(name), atol=1e-4)
            assert camera.timestamp == drives.timestamp(token) + round(1e6 * written.EXPOSURE[name])
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


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("lidar/01.pkl.gz", b"", "truncated"),
        ("lidar/01.pkl.gz", gzip.compress(b"\x80\x03cposix\nsystem\n.", mtime=0), "asks for 'posix.system'"),
        ("annotations/cuboids/01.pkl.gz", gzip.compress(b"\x80\x03}.", mtime=0), "this is no table"),
        ("annotations/semseg/01.pkl.gz", b"", "truncated"),
        ("annotations/semseg/classes.json", b"[7]", "not the classes of PandaSet's points"),
        ("annotations/semseg/classes.json", b'{"7": "Road"}', "the class 1 is not in classes.json"),
        ("lidar/poses.json", b"[{}]", "do not fit PandaSet's layout"),
        ("lidar/timestamps.json", b"[3, 2, 1, 0]", "do not fit PandaSet's layout"),
        ("lidar/timestamps.json", b"[3", "no JSON file"),
        ("camera/front_camera/intrinsics.json", b"{}", "not the intrinsics of a camera"),
        ("camera/front_camera/01.jpg", b"a", "not a picture"),
        ("camera/front_camera/poses.json", None, "no JSON file"),
        ("../static_extrinsic_calibration.yaml", b"front_camera: 3", "not the calibration of PandaSet's cameras"),
        ("../static_extrinsic_calibration.yaml", b"a: [", "not the calibration of PandaSet's cameras"),
        ("../static_extrinsic_calibration.yaml", None, "not the calibration of PandaSet's cameras"),
    ],
)
def test_damaged_files_are_named_in_one_line(
    root: Path, tmp_path: Path, file: str, content: bytes | None, message: str
) -> None:
    path = (shutil.copytree(root, tmp_path / "drives") / "007" / file).resolve()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        PandaSet(tmp_path / "drives", None, with_points(LABELS)).frame("007-01")
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def test_a_malicious_table_leaves_no_trace(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    drives = shutil.copytree(root, tmp_path / "drives")
    (drives / "007/annotations/cuboids/01.pkl.gz").write_bytes(gzip.compress(pickle.dumps(system(), 3)))
    with pytest.raises(InputError, match=r"asks for 'posix\.system'"):
        PandaSet(drives, None, taxonomy_of(LABELS)).boxes("007-01")
    assert not (tmp_path / "canary").exists()


def test_what_is_not_there(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no frame 007-09"):
        PandaSet(root, None, taxonomy_of(LABELS)).frame("007-09")
    shutil.copy(root / "static_extrinsic_calibration.yaml", tmp_path)
    with pytest.raises(InputError, match="has no drive of PandaSet"):
        PandaSet(tmp_path, None, taxonomy_of(LABELS))


# The recorded drive.

FRAMES = ("002-00", "002-10", "002-20", "002-31")


def classes(root: Path, token: str) -> np.ndarray:
    """(N,) class of each point of the spinning LiDAR."""
    scene, frame = token.split("-")
    found = read_table(root / scene / "annotations" / "semseg" / f"{frame}.pkl.gz", {"class": "iu"})["class"]
    return found[read_table(root / scene / "lidar" / f"{frame}.pkl.gz", {"d": "iu"})["d"] == 0]


def inside(frame: Frame, margin: float) -> np.ndarray:
    """(N,) bool: points in any box that is larger by a margin (m)."""
    found = np.zeros(len(frame.points), bool)
    for center, size, rotation in zip(frame.boxes.centers, frame.boxes.sizes, frame.boxes.rotations, strict=True):
        local = (frame.points[:, :3] - center) @ rotation
        found |= (np.abs(local) <= size[[1, 0, 2]] / 2 + margin).all(axis=1)
    return found


def test_every_recorded_point_has_its_class(pandaset_root: Path) -> None:
    """In PandaSet's taxonomy, and only what no class names has none; points of cars are in boxes of cars."""
    names = load_taxonomy("pandaset")
    frame = PandaSet(pandaset_root, SPINNING, names).frame("002-10", cameras=False)
    kinds, found = classes(pandaset_root, "002-10"), frame.class_of_point
    known = json.loads((pandaset_root / "002/annotations/semseg/classes.json").read_text())
    assert len(found) == len(frame.points)
    for number in np.unique(kinds).tolist():
        expected = [i for i, each in enumerate(names.point_classes) if known[str(number)] in each.categories] or [-1]
        assert np.unique(found[kinds == number]).tolist() == expected
    categories = {name for each in names.point_classes for name in each.categories}
    assert categories <= {*known.values()}
    left_out = {"Smoke", "Exhaust", "Spray or rain", "Reflection", "Animals - Bird", "Animals - Other"}
    assert {*known.values()} - categories == left_out


@pytest.mark.parametrize("token", FRAMES)
def test_points_of_cars_are_in_boxes_of_cars(pandaset_root: Path, token: str) -> None:
    """As the annotators have it: 99.9 % of the points; boxes are within 0.2 m of what they hold."""
    frame = PandaSet(pandaset_root, SPINNING, taxonomy_of({"Car": 0})).frame(token, cameras=False)
    cars = classes(pandaset_root, token) == CAR
    assert inside(frame, 0.2)[cars].mean() >= 0.999
    assert cars[inside(frame, 0.2)].mean() >= 0.88


def test_every_recorded_object_is_one_of_a_class_or_an_obstacle(pandaset_root: Path) -> None:
    """Of cars and pedestrians; the drive has no object that is of no class of PandaSet's own taxonomy."""
    drives = PandaSet(pandaset_root, load_rig("pandaset_64"), taxonomy_of(LABELS))
    named, found = dict[str, str](), 0
    for token in FRAMES:
        table = read_table(
            pandaset_root / "002" / "annotations" / "cuboids" / f"{token[-2:]}.pkl.gz",
            {"label": "O", "uuid": "O", "cuboids.sibling_id": "O", "cuboids.sensor_id": "iu"},
        )
        rows = list(zip(*table.values(), strict=True))
        named |= {uuid: label for label, uuid, _, _ in rows} | {twin: label for label, _, twin, _ in rows}
        twins = [{uuid, twin} - {"-"} for _, uuid, twin, sensor in rows if sensor != 1]
        linked = set[str]().union(*twins)
        alone = sum(sensor != 1 or linked.isdisjoint({uuid, twin}) for _, uuid, twin, sensor in rows)
        boxes, obstacles = drives.boxes(token), drives.obstacles(token)
        assert len(boxes.instances) + len(obstacles.instances) == alone
        assert {named[name] for name in boxes.instances} <= LABELS.keys()
        assert LABELS.keys().isdisjoint(named[name] for name in obstacles.instances)
        found += len(obstacles.instances)
    assert found


@pytest.mark.parametrize("token", FRAMES)
def test_the_vehicle_drives_forward_on_the_ground_and_so_do_others(pandaset_root: Path, token: str) -> None:
    drives = PandaSet(pandaset_root, SPINNING, taxonomy_of(LABELS))
    frame, last = drives.frame(token), drives.frame("002-31", lidar=False)
    near = (classes(pandaset_root, token) == ROAD) & (np.hypot(*frame.points[:, :2].T) < 10)
    assert abs(np.median(frame.points[near, 2])) < 0.15
    if token != "002-31":
        way = (np.linalg.inv(frame.global_from_ego) @ last.global_from_ego)[:3, 3]
        assert way[0] > 0.99 * np.linalg.norm(way)
    speeds, headings = np.linalg.norm(frame.boxes.velocities[:, :2], axis=1), frame.boxes.rotations[:, :2, 0]
    fast = speeds > 3
    assert fast.sum() >= 10
    assert (np.einsum("nd,nd->n", headings, frame.boxes.velocities[:, :2])[fast] > 0.99 * speeds[fast]).all()
    looks = {name: camera.ego_from_camera[:3, 2] for name, camera in frame.cameras.items()}
    for name, yaw in {"front": 0, "front_left": 57, "left": 90, "back": 180, "right": -90, "front_right": -57}.items():
        assert looks[name] @ [np.cos(np.radians(yaw)), np.sin(np.radians(yaw)), 0] > 0.995


def test_pictures_show_what_the_points_are_of(pandaset_root: Path) -> None:
    """Mutual information between the class of a point and the brightness of its pixel: highest without a shift.

    Pandey et al., "Automatic targetless extrinsic calibration of a 3D lidar and camera by maximizing mutual
    information", AAAI 2012. Up and down only ahead: to the sides brightness depends on the height alone.
    """
    aside, up_and_down = [(0, 0), (60, 0), (-60, 0)], [(0, 60), (0, -60)]
    shared = dict.fromkeys(aside, 0.0)
    for token in ("002-00", "002-31"):
        frame, kinds = (
            PandaSet(pandaset_root, SPINNING, taxonomy_of(LABELS)).frame(token),
            classes(pandaset_root, token),
        )
        for name, camera in frame.cameras.items():
            u, v, depth = frame.image_from_reference(name) @ np.c_[frame.points[:, :3], np.ones(len(kinds))].T
            ahead = (depth > 1) & (np.hypot(*frame.points[:, :2].T) > 2.5)  # not the vehicle itself
            x, y = np.round(np.stack([u, v])[:, ahead] / depth[ahead]).astype(int)
            height, width = camera.image.shape[:2]
            seen = (x >= 60) & (x < width - 60) & (y >= 60) & (y < height - 60)
            assert seen.sum() > 5000
            grey = cv2.GaussianBlur(camera.image, (0, 0), 2).mean(axis=2)
            found = {
                (dx, dy): mutual_information(kinds[ahead][seen], grey[y[seen] + dy, x[seen] + dx])
                for dx, dy in aside + up_and_down
            }
            shared = {shift: value + found[shift] for shift, value in shared.items()}
            assert name != "front" or max(found, key=found.__getitem__) == (0, 0), found
    assert max(shared, key=shared.__getitem__) == (0, 0), shared


def mutual_information(kinds: np.ndarray, grey: np.ndarray) -> float:
    joint = np.histogram2d(kinds, grey, bins=(43, 16), range=((0, 43), (0, 256)))[0]
    joint /= joint.sum()
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    return float((joint[joint > 0] * np.log(joint[joint > 0] / apart[joint > 0])).sum())


def test_a_healthy_drive_is_healthy_and_a_thinned_sweep_is_not(pandaset_root: Path) -> None:
    """The rig's limits: points have their own times, and one of the LiDARs sees a part of the surroundings only."""
    drive, lidars = PandaSet(pandaset_root), replace(load_rig("pandaset").sensors, cameras=())
    monitor = HealthMonitor(lidars)
    for sample in drive.samples()[::4]:
        frame = drive.frame(sample, cameras=False)
        assert {name: health.reasons for name, health in monitor.update(frame).items()} == dict.fromkeys(
            lidars.names, ""
        )
    thinned = replace(frame, points=frame.points[::2], lidar_of_point=frame.lidar_of_point[::2], class_of_point=None)
    assert {health.status for health in monitor.update(thinned).values()} == {"thinned"}
