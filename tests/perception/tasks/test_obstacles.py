"""Unknown obstacles over a drive: ids, places, what objects explain; their file, the scene, scores of a replay."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scene_obstacles import DriveCount
from shapely import Point, Polygon
from vocabulary import CONDITIONS, NUSCENES, sensors

from deploy.replay.class_faults import HiddenClass, hide
from deploy.replay.fault_detection import FaultDetections
from perception.config import find_config, load_config
from perception.frame import Boxes, Frame, Prediction
from perception.scene.scene import Scene
from perception.tasks import tasks_of
from perception.tasks.drawing import COUNTED_SCORE, BoxLayer, VoxelLayer
from perception.tasks.judging import ReplayedFrames, Subject, Unmeasured
from perception.tasks.occupancy.config import OccupancyHead
from perception.tasks.occupancy.disagreement import Doubts, unexplained_voxels
from perception.tasks.occupancy.footprints import distances
from perception.tasks.occupancy.obstacle_file import OBSTACLES, ObstacleWriter
from perception.tasks.occupancy.obstacle_recall import ObstacleJudge
from perception.tasks.occupancy.result import OccupancyResult
from perception.tasks.occupancy.unknown import Obstacles, ObstacleTracker, cluster_boxes
from perception.tasks.task import Memory, Task
from perception.voxels import VoxelGrid, occupancy_classes

POINT = np.zeros((1, 5), np.float32)  # a frame without data says nothing
CAR, PEDESTRIAN = NUSCENES.label("car"), NUSCENES.label("pedestrian")
NAMES, TINY = occupancy_classes(NUSCENES), load_config(find_config("tiny"))
GRID = VoxelGrid((-4, 4), (-4, 4), (-0.4, 1.2), 0.4)
EMPTY = np.full(GRID.shape, len(NAMES) - 1, np.uint8)
PARKED = EMPTY.copy()  # a car of 24 voxels
PARKED[1:3, 13:16, 3:7] = NAMES.index("car")


def clusters(places: list[tuple[float, float]]) -> Boxes:
    centers = np.array([[*place, 0.5] for place in places]).reshape(-1, 3)
    return cluster_boxes(centers, np.tile([0.4, 0.8, 1.2], (len(places), 1)), np.full(len(places), 0.9))


def objects(places: list[tuple[float, float]], yaw: float = 0.0, label: int = CAR) -> Boxes:
    count = len(places)
    centers = np.array([[*place, 0.8] for place in places]).reshape(-1, 3)
    sizes, ones = np.tile([2.0, 4.0, 1.6], (count, 1)), np.ones(count)
    return Boxes.from_yaws(centers, sizes, yaw * ones, np.zeros((count, 2)), label * ones, 0 * ones, ones)


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


@dataclass(frozen=True)
class Space:
    """State of a memory: with the fields that obstacles.json needs, and the classes whose objects seem to be missed."""

    obstacles: Obstacles
    unexplained: np.ndarray
    doubts: Mapping[str, str]


class SpaceMemory(Memory[Any]):
    def __init__(self) -> None:
        self.tracker, self.doubts = ObstacleTracker(), Doubts(NUSCENES.class_names)

    def update(self, frame: Frame, result: Any) -> Any:
        return result

    def explain(self, frame: Frame, state: tuple[Boxes, np.ndarray], objects: Boxes) -> Space:
        found, classes = state
        obstacles = self.tracker.update(found.transformed(frame.global_from_reference), objects)
        here = objects.transformed(np.linalg.inv(frame.global_from_reference))
        voxels = unexplained_voxels(classes, GRID, here, NUSCENES)
        return Space(obstacles, voxels, self.doubts.update(voxels))


class SpaceTask(Task[Any]):
    """Its result is clusters in the reference frame, and classes of voxels."""

    def memory(self) -> SpaceMemory:
        return SpaceMemory()

    def doubts(self, state: Space) -> Mapping[str, str]:
        return state.doubts


SpaceTask.__abstractmethods__ = frozenset()  # a network is not needed here


def both_tasks() -> dict[str, Task[Any]]:
    detection = tasks_of(TINY.tasks, TINY.head_grid, NUSCENES)["detection"]
    return {"space": SpaceTask(None, detection.grid, NUSCENES), "detection": detection}


def drive(frames: int) -> list[Frame]:
    """The vehicle drives 4 m a frame along x, and turns."""
    found = []
    for i in range(frames):
        pose = np.eye(4)
        pose[:2, :2] = [[math.cos(0.2 * i), -math.sin(0.2 * i)], [math.sin(0.2 * i), math.cos(0.2 * i)]]
        pose[0, 3] = 4.0 * i
        found.append(Frame(f"s{i}", i * 500_000, "ego", pose, pose, POINT, {}, scene="a"))
    return found


def test_the_scene_gives_obstacles_ids_and_leaves_out_what_tracks_explain(tmp_path: Path) -> None:
    """A car and a pallet at rest; the occupancy sees both, and the detector the car."""
    tasks = both_tasks()
    for names, expected in ((["space", "detection"], [[], [2], [2], [2]]), (["space"], [[], [1, 2], [1, 2], [1, 2]])):
        scene = Scene(sensors("LIDAR_TOP"), {name: tasks[name] for name in names}, CONDITIONS)
        with ObstacleWriter.open(tmp_path, NUSCENES) as writer:
            for frame in drive(4):
                from_global = np.linalg.inv(frame.global_from_reference)
                places = clusters([(30.0, 4.0), (24.0, -3.0)]).transformed(from_global)
                cars = objects([(30.0, 4.0)]).transformed(from_global)
                scene.observe(frame)
                seen = scene.update(frame, Prediction({"space": (places, EMPTY), "detection": cars}))
                writer.add(frame, None, seen.states["space"])
            assert not (tmp_path / OBSTACLES).exists()
        written = json.loads((tmp_path / OBSTACLES).read_text())["frames"]
        obstacles = [written[f"s{i}"]["obstacles"] for i in range(4)]
        # The car is tracked from the second frame on, when its cluster has been seen as often.
        assert [[each["id"] for each in entry] for entry in obstacles] == expected
        for entry in obstacles[1:]:
            np.testing.assert_allclose(entry[-1]["translation"], [24, -3, 0.5], atol=1e-9)
            np.testing.assert_allclose(entry[-1]["size"], [0.8, 0.4, 1.2], atol=1e-9)
            assert entry[-1]["probability"] == pytest.approx(0.9)
        (tmp_path / OBSTACLES).unlink()


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
    np.testing.assert_array_equal(unexplained_voxels(classes, GRID, boxes, NUSCENES), expected)


def test_a_hidden_class_leaves_its_voxels_unexplained() -> None:
    classes, boxes = PARKED.copy(), Boxes.joined(objects([(-2, 2)]), objects([(2, -2)], label=PEDESTRIAN))
    classes[1, 4:6, 14:17] = NAMES.index("pedestrian")
    classes[0] = NAMES.index("driveable_surface")  # no class of objects
    classes[3, 0, 0] = 0  # neither are others
    for hidden in ({}, {CAR: 24}, {PEDESTRIAN: 6}):
        left = boxes.select(~np.isin(boxes.labels, [*hidden]))
        lost = unexplained_voxels(classes, GRID, left, NUSCENES)[1]
        assert {i: lost[i] for i in lost.nonzero()[0].tolist()} == hidden


@pytest.mark.parametrize(
    ("label", "score", "explained"),
    [(CAR, 0.01, True), (PEDESTRIAN, COUNTED_SCORE, True), (PEDESTRIAN, COUNTED_SCORE - 0.01, False)],
)
def test_an_unlikely_box_explains_voxels_of_its_class_alone(label: int, score: float, explained: bool) -> None:
    boxes = replace(objects([(-2, 2)], label=label), scores=np.array([score]))
    found = unexplained_voxels(PARKED, GRID, boxes, NUSCENES)
    assert found[:, CAR].tolist() == [24, 0 if explained else 24]


def test_a_class_that_the_network_loses_is_doubted_and_no_longer_explained(tmp_path: Path) -> None:
    """A parked car beside a vehicle that stands: its voxels stay, its detections go, its track ends 3 s later."""
    frames = [replace(frame, global_from_reference=np.eye(4), global_from_ego=np.eye(4)) for frame in drive(16)]
    explained = {}
    for text, doubted, delays in (
        ("hidden:car@2-99", range(4 + 6 + 2, 16), {"objects missed": 4.0}),
        ("hidden:car", range(2, 16), {"objects missed": 1.0}),  # as a bundle without this class
        ("hidden:bus", (), {}),
    ):
        fault, scene = HiddenClass.parse(text, NUSCENES), Scene(sensors("LIDAR_TOP"), both_tasks(), CONDITIONS)
        detections = FaultDetections([], [fault])
        folder = tmp_path / text
        folder.mkdir()
        with ObstacleWriter.open(folder, NUSCENES) as writer:
            for i, frame in enumerate(detections.record_starts(frames)):
                given = Prediction({"space": (clusters([]), PARKED), "detection": objects([(-2, 2)])})
                scene.observe(frame)
                seen = scene.update(frame, hide(given, [fault], detections.seconds(frame)))
                assert list(seen.doubts) == (["car"] if i in doubted else [])
                writer.add(frame, None, seen.states["space"])
                detections.add(frame, seen.health, seen.doubts)
        [found] = detections.listed()
        assert (found["detected"], found["delays"]) == (len(doubted), delays)
        explained[text] = ObstacleJudge(replayed(folder, [None] * 16)).score(Subject("explained", "car"))[0]
    # The first frame's detection is no confirmed track yet; with it lost from 2 s on, six more frames are explained.
    assert explained == {"hidden:car@2-99": 9 / 16, "hidden:car": 0, "hidden:bus": 15 / 16}


def test_doubts_need_enough_voxels_and_frames() -> None:
    doubts, names = Doubts(["car", "bus"]), []
    for lost, occupied in ((20, 20), (20, 20), (71, 100), (70, 100), (19, 19), (90, 90), (90, 90), (90, 90)):
        names.append(list(doubts.update(np.array([[occupied, 50], [lost, 0]]))))
    assert names == [[], [], ["car"], [], [], [], [], ["car"]]


def replayed(folder: Path, truths: list[Any]) -> ReplayedFrames:
    """Frames with annotations, a drive of two frames and one of the rest."""
    count = len(truths)
    return ReplayedFrames(
        folder, NUSCENES, [f"s{i}" for i in range(count)], np.array([0, 0] + [1] * (count - 2)),
        np.zeros((count, 2)), [frozenset({"rain"} if i else ()) for i in range(count)],
        [None if truth is None else {"truth": truth} for truth in truths],
    )  # fmt: skip


def write_obstacles(folder: Path, frames: list[dict[int, tuple[float, float]]], voxels: list[np.ndarray]) -> None:
    with ObstacleWriter.open(folder, NUSCENES) as writer:
        for frame, places, counts in zip(drive(len(frames)), frames, voxels, strict=True):
            boxes, ones = clusters(list(places.values())), np.ones(len(places), int)
            writer.add(frame, None, Space(Obstacles(np.array([*places], int), boxes, ones, 0 * ones), counts, {}))


def test_recall_precision_and_what_is_explained(tmp_path: Path) -> None:
    """Counted by hand: rows of truth are x, y, width, length, yaw, points."""
    near, far = [10, 0, 1, 2, 0, 5], [0, 40, 1, 2, math.pi / 2, 3]  # the far one is long along y
    unseen, car = [20, 20, 1, 1, 0, 0], [-20, 0, 2, 4, 0, 9]
    truth = {"obstacles": [near, far, unseen], "objects": [car]}
    places: list[dict[int, tuple[float, float]]] = [
        {1: (11.9, 0.0), 2: (-22.5, 0.0), 3: (5.0, 5.0)},  # the near one; the car; nothing
        {1: (12.1, 0.0), 4: (0.0, 41.9), 5: (20.4, 20.4)},  # too far along; the far one; the one without points
        {1: (30.0, 30.0), 2: (10.0, 1.4)},  # nothing; the near one
        {6: (1.0, 1.0)},  # not annotated
    ]
    voxels = [np.zeros((2, len(NUSCENES.classes)), int) for _ in places]
    for i, counts in enumerate(voxels):
        counts[:, CAR], counts[:, PEDESTRIAN] = (100, 10 * i), (20, 20)
    write_obstacles(tmp_path, places, voxels)
    judge = ObstacleJudge(replayed(tmp_path, [truth, truth, truth, None]))
    assert judge.counts(Subject("scene_obstacle_recall")).tolist() == [[2, 4], [1, 2]]
    assert judge.score(Subject("scene_obstacle_recall")).tolist() == [0.5]
    assert judge.score(Subject("scene_obstacle_recall"), np.array([[2.0, 0], [0, 1]])).tolist() == [0.5, 0.5]
    assert judge.score(Subject("scene_obstacle_recall", range=(0, 30)))[0] == pytest.approx(2 / 3)
    assert judge.counts(Subject("scene_obstacle_recall", None, "rain")).tolist() == [[1, 2], [1, 2]]
    # Ids 1, 2, 4 and 5 of the first drive are real, 3 is not; in the second 1 is another one, and not real.
    assert judge.counts(Subject("scene_obstacle_precision")).tolist() == [[4, 5], [1, 2]]
    assert judge.score(Subject("explained", "car"))[0] == pytest.approx(1 - (0 + 10 + 20 + 30) / 400)
    assert judge.score(Subject("explained"))[0] == pytest.approx(1 - (60 + 80) / 480)
    assert judge.sizes(Subject("explained")).tolist() == [0.5, 0.5]
    assert judge.usual_differences() == ("scene_obstacle_recall", "explained")
    with pytest.raises(Unmeasured, match="nothing to count for explained"):
        judge.score(Subject("explained", "bus"))
    blind = ObstacleJudge(replayed(tmp_path, [None] * 4))
    assert blind.usual_differences() == ("explained",)
    with pytest.raises(Unmeasured, match="nothing to count for scene_obstacle_recall in rain within 0 to 30 m"):
        blind.score(Subject("scene_obstacle_recall", None, "rain", (0, 30)))
    other = replace(judge.frames, folder=tmp_path / "none")
    with pytest.raises(Unmeasured, match="lacks a frame of the replay; replay again"):
        ObstacleJudge(other).score(Subject("explained"))


def test_an_obstacle_and_a_false_alarm_count_once_in_a_drive() -> None:
    """Three frames on the spot: an annotated obstacle, a car without a track, and something that is not there."""
    places = {"obstacle": (2.2, 0.2), "car": (-2.2, 0.2), "nothing": (0.2, 3.0)}
    others = np.zeros(GRID.shape, np.float32)
    for x, y in places.values():
        row, column = (int((each + 4) / GRID.cell) for each in (y, x))
        others[2, row, column] = 0.9
    state = OccupancyResult(EMPTY, others, others, np.zeros(360, np.float32), GRID)
    obstacle = replace(objects([places["obstacle"]]), instances=np.array(["pallet"]))
    car = replace(objects([places["car"]]), instances=np.array(["car"]))
    frame = Frame("token", 0, "ego", np.eye(4), np.eye(4), None, {})
    for probability, expected in ((0.5, (1, {"pallet"})), (0.95, (0, set()))):
        count = DriveCount(probability)
        for number in range(3):
            count.add(frame, state, Boxes.none(), obstacle, Boxes.joined(obstacle, car))
            assert (count.alarms, count.found) == ((0, set()) if number == 0 else expected)  # two frames confirm


def test_a_pallet_and_a_car_as_the_scene_has_them(tmp_path: Path) -> None:
    """The vehicle drives 2 m a frame towards a pallet; a car stands beside it, and is lost by the detector or not."""
    heads = {"occupancy": OccupancyHead(cell=0.8, z=(-0.8, 4.0)), "detection": TINY.tasks["detection"]}
    for detected in (True, False):
        tasks = tasks_of(heads, TINY.head_grid, NUSCENES)
        task: Task[OccupancyResult] = tasks["occupancy"]
        grid, scene = task.voxels, Scene(sensors("LIDAR_TOP"), tasks, CONDITIONS)
        writer = task.writer(tmp_path, ("lidar",))
        assert writer is not None
        with writer as file:
            for i in range(8):
                pose = np.eye(4)
                pose[0, 3] = 2.0 * i
                frame = Frame(f"s{i}", i * 500_000, "ego", pose, pose, POINT, {}, scene="a")
                centers = grid.centers() + pose[:3, 3]
                pallet = (np.abs(centers - [30, 1, 0.4]) < [0.8, 0.8, 0.8]).all(axis=3)
                car = (np.abs(centers - [24, -8, 0.8]) < [2.2, 0.9, 0.9]).all(axis=3)
                classes = np.where(pallet, 0, np.where(car, NAMES.index("car"), len(NAMES) - 1)).astype(np.uint8)
                occupied = np.where(pallet | car, 1.0, 0.0).astype(np.float32)
                boxes = objects([(24 - 2.0 * i, -8)] if detected else [])
                others = np.where(pallet, 1.0, 0.0).astype(np.float32)
                result = OccupancyResult(classes, occupied, others, np.zeros(360, np.float32), grid)
                scene.observe(frame)
                seen = scene.update(frame, Prediction({"occupancy": result, "detection": boxes}))
                file.add(frame, result, seen.states["occupancy"])
                voxels, obstacles = task.draw(frame, result, seen.states["occupancy"])
                assert isinstance(voxels, VoxelLayer)
                assert isinstance(obstacles, BoxLayer)
                assert list(seen.doubts) == (["car"] if i >= 2 and not detected else [])
        written = json.loads((tmp_path / OBSTACLES).read_text())["frames"]
        for i in range(8):
            entry = written[f"s{i}"]
            assert [each["id"] for each in entry["obstacles"]] == ([] if i < 1 else [1])
            for each in entry["obstacles"]:
                np.testing.assert_allclose(each["translation"], [30, 1, 0.4], atol=0.8)
            occupied, lost = (row[CAR] for row in entry["voxels"])
            assert occupied >= 20
            assert (lost == 0) == (detected and i > 0)
        (tmp_path / OBSTACLES).unlink()
