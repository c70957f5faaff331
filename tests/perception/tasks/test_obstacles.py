"""Unknown obstacles over a drive: ids, places, what objects explain; their file, the scene, scores of a replay."""

import json
import math
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from dependent_frames import CELL, FRAMES, SIDE, STEP, Sensor, frame_after
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import keyframe, make_boxes
from shapely import Point, Polygon
from vocabulary import CONDITIONS, NUSCENES, sensors

from deploy.recordings.choice import DriveTime
from deploy.replay.faults import HiddenClass, hide
from deploy.replay.totals import FaultDetections
from perception.config import find_config, load_config
from perception.frame import Boxes, Frame, Prediction
from perception.grid import VoxelGrid, occupancy_classes
from perception.scene.scene import Scene
from perception.tasks import tasks_of
from perception.tasks.drawing import COUNTED_SCORE, BoxLayer, VoxelLayer
from perception.tasks.metric import ReplayedFrames, Score, Weights, mean_shares
from perception.tasks.occupancy.config import OccupancyHead
from perception.tasks.occupancy.memory import FusedOccupancy
from perception.tasks.occupancy.metric import OccupancyMetric
from perception.tasks.occupancy.obstacle_scores import OBSTACLES, ObstacleWriter
from perception.tasks.occupancy.obstacles import (
    Obstacles,
    ObstacleTracker,
    distances,
    is_covered,
    obstacle_boxes,
    obstacle_clusters,
)
from perception.tasks.occupancy.result import OccupancyResult
from perception.tasks.occupancy.task import Doubts, count_unexplained_voxels
from perception.tasks.task import Task

POINT = keyframe(np.zeros((1, 5), np.float32))  # a frame without data says nothing
CAR, PEDESTRIAN = NUSCENES.label("car"), NUSCENES.label("pedestrian")
NAMES, TINY = occupancy_classes(NUSCENES), load_config(find_config("tiny"))
GRID = VoxelGrid((-4, 4), (-4, 4), (-0.4, 1.2), 0.4)
EMPTY = np.full(GRID.shape, len(NAMES) - 1, np.uint8)
PARKED = EMPTY.copy()  # a car of 24 voxels
PARKED[1:3, 13:16, 3:7] = NAMES.index("car")


def clusters(places: list[tuple[float, float]]) -> Boxes:
    centers = np.array([[*place, 0.5] for place in places]).reshape(-1, 3)
    return obstacle_boxes(centers, np.tile([0.8, 0.4, 1.2], (len(places), 1)), np.full(len(places), 0.9))


def objects(places: list[tuple[float, float]], yaw: float = 0.0, label: int = CAR) -> Boxes:
    return make_boxes([(*place, 0.8) for place in places], (2.0, 4.0, 1.6), yaw, labels=label)


def polygons_of(boxes: Boxes) -> list[Polygon]:
    return [Polygon(box[[2, 3, 7, 6], :2]) for box in boxes.corners()]


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1))
def test_distances_are_those_to_the_polygons(seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = objects([tuple(place) for place in rng.uniform(-5, 5, (3, 2))], rng.uniform(-4, 4))
    places = rng.uniform(-9, 9, (8, 3))
    expected = [[polygon.distance(Point(place[:2])) for polygon in polygons_of(boxes)] for place in places]
    np.testing.assert_allclose(distances(places, boxes), expected, atol=1e-9)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_each_obstacle_is_confirmed_kept_and_dropped_as_if_it_were_alone(seed: int) -> None:
    """Obstacles that are far from each other, seen in some frames; the oracle counts hits and misses of each."""
    rng = np.random.default_rng(seed)
    sites = np.array([[0.0, 0.0], [6.0, 0.0], [0.0, 7.0]])
    tracker, following = ObstacleTracker(), dict[int, list[Any]]()  # site -> id, hits, misses, mean place
    number = 1
    for _ in range(12):
        seen = np.flatnonzero(rng.random(3) < 0.6).tolist()
        places = {site: sites[site] + rng.uniform(-0.4, 0.4, 2) for site in seen}
        result = tracker.update(clusters([tuple(each) for each in places.values()]), Boxes.none())
        for site in list(following):
            following[site][2] += 1
            if site not in seen and following[site][2] == 3:
                del following[site]
        for site in seen:
            if site not in following:
                following[site] = [number, 0, 0, np.zeros(2)]
                number += 1
            each = following[site]
            each[1:3] = each[1] + 1, 0
            each[3] = each[3] + max(1 / each[1], 0.3) * (places[site] - each[3])
        expected = sorted((each for each in following.values() if each[1] >= 2), key=lambda each: each[0])
        assert result.ids.tolist() == [each[0] for each in expected]
        assert result.hits.tolist() == [each[1] for each in expected]
        assert result.unseen.tolist() == [each[2] for each in expected]
        places = np.array([each[3] for each in expected]).reshape(-1, 2)
        np.testing.assert_allclose(result.boxes.centers[:, :2], places, atol=1e-12)
        np.testing.assert_allclose(result.boxes.sizes, np.tile([0.8, 0.4, 1.2], (len(expected), 1)), atol=1e-12)


def test_objects_explain_what_is_within_half_a_metre_of_them() -> None:
    tracker, car = ObstacleTracker(), objects([(10.0, 0.0)], yaw=math.pi / 2)  # 2 m along x, 4 m along y
    places = [(11.4, 0.0), (11.6, 0.0), (10.0, 2.4), (10.0, -2.6)]
    for _ in range(2):
        found = tracker.update(clusters(places), car)
    np.testing.assert_allclose(found.boxes.centers[:, :2], [places[1], places[3]])
    # An obstacle that an object covers later is hidden at once, and comes back with its id.
    assert len(tracker.update(clusters(places), objects([(11.6, 0.0), (10.0, -2.6)])).ids) == 0
    assert tracker.update(clusters(places), car).ids.tolist() == found.ids.tolist()


def test_an_unlikely_object_explains_no_obstacle() -> None:
    """A detector has boxes with small scores nearly everywhere, and tracks of them."""
    for score, found in ((COUNTED_SCORE - 0.01, 1), (COUNTED_SCORE, 0)):
        tracker, car = ObstacleTracker(), objects([(10.0, 0.0)])
        for _ in range(2):
            seen = tracker.update(clusters([(10.0, 0.5)]), replace(car, scores=np.array([score])))
        assert len(seen.ids) == found


HEADS = {"occupancy": OccupancyHead(cell=0.8, z=(-0.8, 4.0)), "detection": TINY.tasks["detection"]}


def standing(frames: int) -> list[Frame]:
    here = np.eye(4)
    return [Frame(f"s{i}", i * 500_000, "ego", here, here, cameras={}, scene="a", **POINT) for i in range(frames)]


def street(grid: VoxelGrid, frame: Frame) -> OccupancyResult:
    """A pallet, and a car, which is unknown too."""
    centers = grid.centers() + frame.global_from_reference[:3, 3]
    pallet = (np.abs(centers - [30, 1, 0.4]) < [1.6, 0.8, 0.8]).all(axis=3)
    car = (np.abs(centers - [24, -8, 0.8]) < [2.2, 0.9, 0.9]).all(axis=3)
    classes = np.where(pallet, 0, np.where(car, NAMES.index("car"), len(NAMES) - 1)).astype(np.uint8)
    occupied = (pallet | car).astype(np.float32)
    return OccupancyResult(classes, occupied, occupied, np.zeros(360, np.float32), grid)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_voxels_are_explained_as_if_each_was_looked_at_alone(seed: int) -> None:
    rng, classes = np.random.default_rng(seed), EMPTY.copy()
    occupied = rng.choice(classes.size, 150, replace=False)
    classes.flat[occupied] = rng.choice(len(NAMES), len(occupied))
    boxes = objects([tuple(place) for place in rng.uniform(-4, 4, (2, 2))], rng.uniform(-4, 4))
    polygons, expected = polygons_of(boxes), np.zeros((2, len(NUSCENES.classes)), int)
    for index in occupied:
        _, row, column = np.unravel_index(index, classes.shape)
        name = NAMES[classes.flat[index]]
        if name in NUSCENES.class_names:  # those of points have the same names
            place = Point(-4 + 0.4 * (column + 0.5), -4 + 0.4 * (row + 0.5))
            expected[0, NUSCENES.label(name)] += 1
            expected[1, NUSCENES.label(name)] += all(polygon.distance(place) > 0.5 for polygon in polygons)
    np.testing.assert_array_equal(count_unexplained_voxels(classes, GRID, boxes, NUSCENES), expected)


def test_many_voxels_and_boxes_take_no_memory_for_each_pair() -> None:
    rng = np.random.default_rng(0)
    places, near = rng.uniform(-50, 50, (20_000, 3)), rng.uniform(-50, 50, (1000, 3))
    boxes = make_boxes(near, 0.5, 3 * near[:, 0])
    tracemalloc.start()
    found = is_covered(places, boxes, 0.3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(places) * len(boxes)  # not even a byte each
    np.testing.assert_array_equal(found[-2000:], (distances(places[-2000:], boxes) <= 0.3).any(axis=1))
    assert 0.1 < found.mean() < 0.9
    assert is_covered(places[:0], boxes, 0.3).shape == (0,)
    assert not is_covered(places, Boxes.none(), 0.3).any()


@pytest.mark.parametrize(
    ("label", "score", "explained"),
    [(CAR, 0.01, True), (PEDESTRIAN, COUNTED_SCORE, True), (PEDESTRIAN, COUNTED_SCORE - 0.01, False)],
)
def test_an_unlikely_box_explains_voxels_of_its_class_alone(label: int, score: float, explained: bool) -> None:
    boxes = replace(objects([(-2, 2)], label=label), scores=np.array([score]))
    found = count_unexplained_voxels(PARKED, GRID, boxes, NUSCENES)
    assert found[:, CAR].tolist() == [24, 0 if explained else 24]


def test_a_class_that_the_network_loses_is_doubted_and_no_longer_explained(tmp_path: Path) -> None:
    """A parked car beside a vehicle that stands: its voxels stay, its detections go, its track ends 3 s later."""
    tasks = tasks_of(HEADS, TINY.head_grid, NUSCENES)
    task: Task[OccupancyResult] = tasks["occupancy"]
    frames, explained = standing(16), {}
    for text, doubted, delays in (
        ("hidden:car@2-99", range(4 + 6 + 2, 16), {"objects missed": 4.0}),
        ("hidden:car", range(2, 16), {"objects missed": 1.0}),  # as a bundle without this class
        ("hidden:bus", (), {}),
    ):
        fault, scene = HiddenClass.parse(text, NUSCENES), Scene(sensors("LIDAR_TOP"), tasks, CONDITIONS)
        detections, time = FaultDetections([], [fault]), DriveTime()
        folder = tmp_path / text
        folder.mkdir()
        with ObstacleWriter.open(folder, NUSCENES) as writer:
            for i, frame in enumerate(frames):
                given = Prediction({"occupancy": street(task.voxels, frame), "detection": objects([(24, -8)])})
                scene.observe(frame)
                seen = scene.update(frame, hide(given, [fault], seconds := time(frame.scene, frame.timestamp)))
                assert list(seen.doubts) == (["car"] if i in doubted else [])
                writer.add(frame, None, seen.states["occupancy"])
                detections.add(frame, seconds, seen.health, seen.doubts)
        [found] = detections.to_rows()
        assert (found["detected"], found["delays"]) == (len(doubted), delays)
        explained[text] = scores(folder, 16)["explained_by_class"].of_class("car").values[0]
    # The first frame's detection is no confirmed track yet; with it lost from 2 s on, six more frames are explained.
    assert explained == {"hidden:car@2-99": 9 / 16, "hidden:car": 0, "hidden:bus": 15 / 16}


def test_doubts_need_enough_voxels_and_frames() -> None:
    doubts, names = Doubts(["car", "bus"]), []
    for lost, occupied in ((20, 20), (20, 20), (71, 100), (70, 100), (19, 19), (90, 90), (90, 90), (90, 90)):
        names.append(list(doubts.update(np.array([[occupied, 50], [lost, 0]]))))
    assert names == [[], [], ["car"], [], [], [], [], ["car"]]


@pytest.mark.parametrize("shared", [0.2, 0.5])
@pytest.mark.parametrize("information", [3.0, 5.0])
def test_obstacles_of_a_scene_are_more_than_a_frame_finds_with_as_few_false_alarms(
    information: float, shared: float
) -> None:
    """Blocks of eight voxels along the way. The rival is a single frame at whatever probability suits it best."""
    grid = VoxelGrid((-24.0, 24.0), (-24.0, 24.0), (-1.0, 0.6), cell=CELL)
    rng, memory, tracker = np.random.default_rng(0), FusedOccupancy(grid, 3, (), (0,), slice(0, 2)), ObstacleTracker()
    truth = np.zeros((2, SIDE, SIDE + STEP * FRAMES), bool)
    corners = np.array([[12 * k + rng.integers(8), rng.integers(2, SIDE - 4)] for k in range(truth.shape[2] // 12)])
    for column, row in corners:
        truth[:, row : row + 2, column : column + 2] = True
    places = (corners + 1) * CELL - 24.0
    sensor = Sensor(np.array(0.005), np.array(information), shared, truth.shape)
    levels = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
    counts = np.zeros((1 + len(levels), 2))  # of the scene, then of frames: found, and false alarms
    for i in range(FRAMES):
        part, frame = slice(STEP * i, STEP * i + SIDE), frame_after(0.5 * i, STEP * CELL * i)
        p = sensor.see(truth[..., part], part)
        result = OccupancyResult(np.where(p > 0.5, 0, 2).astype(np.uint8), p, p, np.zeros(360, np.float32), grid)
        pose = frame.global_from_reference
        scene = tracker.update(boxes_of(memory.update(frame, result), 0.5, pose), Boxes.none()).boxes
        within = (corners[:, 0] >= part.start) & (corners[:, 0] + 2 <= part.stop)
        for k, boxes in enumerate((scene, *(boxes_of(result, level, pose) for level in levels))):
            ahead = boxes.select(np.abs(boxes.centers[:, 0] - pose[0, 3]) < 24.0)
            away = np.linalg.norm(ahead.centers[:, None, :2] - places[within], axis=2)
            counts[k] += (away <= 2 * CELL).any(axis=0).sum(), (away > 3 * CELL).all(axis=1).sum()
    (found, alarms), frames = counts[0], counts[1:]
    assert found > 0.4 * FRAMES
    assert alarms < 0.2 * frames[0, 1]  # at the probability of the scene
    assert found > max(frames[frames[:, 1] <= alarms, 0], default=0), counts


def boxes_of(result: OccupancyResult, probability: float, pose: np.ndarray) -> Boxes:
    found = obstacle_clusters(result, probability)
    return obstacle_boxes(found.centers, found.sizes[:, [1, 0, 2]], found.probabilities).transformed(pose)


def scores(folder: Path, count: int, annotated: bool = False) -> Mapping[str, Score]:
    """The scores of frames: a drive of two, and one of the rest."""
    metric = OccupancyMetric(NUSCENES)
    lines = [{"counts": None, "obstacles": [] if annotated else None}] * count
    frames = ReplayedFrames(folder, [f"s{i}" for i in range(count)], np.zeros((count, 2)), np.arange(count))
    counts = metric.recorded(frames, lines)
    assert metric.list_usual_gates(counts) == ((("obstacle_recall", "explained") if annotated else ("explained",)), ())
    return metric.scores(counts, Weights.of(np.ones(count, bool), np.array([0, 0] + [1] * (count - 2))))


def test_what_is_explained_is_counted_by_class_and_drive(tmp_path: Path) -> None:
    nothing = np.zeros(0, int)
    followed = Obstacles(nothing, clusters([]), nothing, nothing)
    with ObstacleWriter.open(tmp_path, NUSCENES) as writer:
        for i, frame in enumerate(standing(4)):
            voxels = np.zeros((2, len(NUSCENES.classes)), int)
            voxels[:, CAR], voxels[:, PEDESTRIAN] = (100, 10 * i), (20, 20)
            writer.add(frame, None, SimpleNamespace(obstacles=followed, unexplained=voxels))
    found = scores(tmp_path, 4, annotated=True)
    by_class = found["explained_by_class"]
    assert by_class.of_class("car").values[0] == pytest.approx(1 - (0 + 10 + 20 + 30) / 400)
    assert np.isnan(by_class.of_class("bus").values[0])
    assert found["explained"].values[0] == pytest.approx(1 - (60 + 80) / 480)
    assert mean_shares(found["explained"].sizes).tolist() == [0.5, 0.5]
    assert scores(tmp_path, 5)["explained"].sizes is None  # a frame is not in the file
    assert scores(tmp_path / "none", 4)["explained"].sizes is None


def test_a_pallet_and_a_car_as_the_scene_has_them(tmp_path: Path) -> None:
    """The vehicle drives 2 m a frame towards a pallet; beside it stands a car, which the occupancy finds unknown too.

    The car is detected, or lost by the detector, or there is no detector.
    """
    for names, detected, ids in (
        (["occupancy", "detection"], True, [2]),
        (["occupancy", "detection"], False, [1, 2]),
        (["occupancy"], False, [1, 2]),
    ):
        tasks = tasks_of({name: HEADS[name] for name in names}, TINY.head_grid, NUSCENES)
        task: Task[OccupancyResult] = tasks["occupancy"]
        grid, scene = task.voxels, Scene(sensors("LIDAR_TOP"), tasks, CONDITIONS)
        with task.writer(tmp_path, ("lidar",)) as file:
            for i in range(8):
                pose = np.eye(4)
                pose[0, 3] = 2.0 * i
                frame = Frame(f"s{i}", i * 500_000, "ego", pose, pose, cameras={}, scene="a", **POINT)
                result = street(grid, frame)
                boxes = objects([(24 - 2.0 * i, -8)] if detected else [])
                scene.observe(frame)
                seen = scene.update(frame, Prediction({"occupancy": result, "detection": boxes}))
                file.add(frame, result, seen.states["occupancy"])
                voxels, obstacles = task.draw(frame, result, seen.states["occupancy"])
                assert isinstance(voxels, VoxelLayer)
                assert isinstance(obstacles, BoxLayer)
                assert list(seen.doubts) == (["car"] if i >= 2 and not detected else [])
            assert not (tmp_path / OBSTACLES).exists()
        written = json.loads((tmp_path / OBSTACLES).read_text())["frames"]
        for i in range(8):
            entry = written[f"s{i}"]
            # The car is tracked from the second frame on, when its cluster has been seen as often.
            assert [each["id"] for each in entry["obstacles"]] == (ids if i else [])
            for each in entry["obstacles"][-1:]:
                np.testing.assert_allclose(each["translation"], [30, 1, 0.4], atol=0.8)
                np.testing.assert_allclose(each["size"], [1.6, 3.2, 1.6], atol=1.2)
                assert each["probability"] == pytest.approx(0.95, abs=0.05)
            occupied, lost = (row[CAR] for row in entry["voxels"])
            assert occupied >= 20
            assert (lost == 0) == (detected and i > 0)
        (tmp_path / OBSTACLES).unlink()
