"""A drive joined from its frames, repeatable and bounded; and its map against a loop over cells, from moving poses."""

import gc
import math
import pickle
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from dependent_frames import CELL, Sensor, frame_after, score, score_memory
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import keyframe, make_boxes
from replays import instead
from vocabulary import CAMERAS, CONDITIONS, MAP_CLASSES, NUSCENES, PRIOR, SENSORS, sensors

from perception.frame import Boxes, Camera, Conditions, Frame, Prediction
from perception.grid import BevGrid, VoxelGrid
from perception.scene.belief import ConditionBelief, Origin, evidence_of_tags
from perception.scene.health.monitor import HealthMonitor
from perception.scene.scene import Routed, Scene, SceneFrame
from perception.tasks import parse_tasks, tasks_of
from perception.tasks.detection.tracker import Tracker
from perception.tasks.map.memory import REACH, MapMemory
from perception.tasks.occupancy.memory import FusedOccupancy
from perception.tasks.occupancy.result import OccupancyResult

GRID = BevGrid(x=(-12.8, 12.8), y=(-12.8, 12.8), cell=1.6)
TASKS = tasks_of(parse_tasks({"detection": {}, "map": {}, "conditions": {}}), GRID, NUSCENES)
UNKNOWN, LIGHT = Conditions(), CONDITIONS["light"]
BY_TAGS = dict.fromkeys(CONDITIONS, Origin("tags"))
MODULES = {"rain": ("rain",), "rain-night": ("rain", "night"), "blind": ("no-cameras", "lidar"), "always": ("map",)}


def frame_at(i: int, conditions: Conditions = UNKNOWN, scene: str = "scene-0001") -> Frame:
    """A made-up frame of a drive along a curve."""
    rng, angle = np.random.default_rng(i), 0.02 * i
    pose = np.eye(4)
    pose[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    pose[:2, 3] = 300 * math.sin(angle), 300 * (1 - math.cos(angle))
    cloud = rng.uniform([-50, -50, -2, 0, 0], [50, 50, 3, 255, 0], (3000, 5)).astype(np.float32)
    now = 1_500_000_000_000_000 + 500_000 * i
    camera = Camera(rng.integers(0, 255, (9, 16, 3), np.uint8), np.eye(3), np.eye(4), pose, now - 30_000)
    cameras = dict.fromkeys(CAMERAS, camera)
    about = {"conditions": conditions, "scene": scene, **keyframe(cloud)}
    return Frame(f"token-{i}", now, "ego", pose, pose, cameras=cameras, **about)


def prediction_of(frame: Frame) -> Prediction:
    rng = np.random.default_rng(frame.timestamp // 1000)
    places, labels, scores = rng.uniform(-10, 10, (5, 3)), rng.integers(0, 10, 5), rng.random(5)
    boxes = make_boxes(places, 1.0, rng.uniform(-3, 3, 5), rng.normal(size=(5, 2)), labels, scores=scores)
    return Prediction({"detection": boxes, "map": rng.random((len(MAP_CLASSES), *GRID.shape)).astype(np.float32)})


def drive(scene: Scene, frames: list[Frame]) -> Iterator[SceneFrame]:
    for frame in frames:
        conditions = scene.observe(frame)
        weights = {"rain": float(conditions.get("weather") == "rain")}
        yield scene.update(frame, prediction_of(frame), weights)


def size_of(memory: MapMemory) -> int:
    return sum(array.nbytes for array in memory._window.arrays.values())


def new_scene() -> Scene:
    return Scene(SENSORS, TASKS, CONDITIONS, MODULES)


def content(f: SceneFrame) -> bytes:
    """All of it but the time that it took."""
    words = repr((f.token, f.scene, f.timestamp, f.conditions, f.beliefs, f.route, f.health))
    tracks = f.states["detection"]
    arrays = (f.states["map"], tracks.ids, tracks.boxes.centers, f.prediction.results["detection"].centers)
    return words.encode() + b"".join(array.tobytes() for array in arrays)


def test_a_scene_is_its_parts() -> None:
    """Each part alone, given the same frames, says what the scene says."""
    monitor, belief = HealthMonitor(SENSORS), ConditionBelief(CONDITIONS)
    memory, tracker = MapMemory(GRID, PRIOR), Tracker(NUSCENES)
    frames = [frame_at(i, Conditions(weather="rain", light="day")) for i in range(5)]
    for frame, found in zip(frames, drive(new_scene(), frames), strict=True):
        prediction = prediction_of(frame)
        boxes = prediction.results["detection"]
        assert (found.token, found.scene, found.timestamp) == (frame.token, frame.scene, frame.timestamp)
        assert found.health == monitor.update(frame)
        observed = [evidence_of_tags(frame.conditions, CONDITIONS)]
        assert found.conditions == belief.update(frame.timestamp, observed, BY_TAGS) == frame.conditions
        assert found.beliefs == belief.beliefs
        np.testing.assert_array_equal(found.states["map"], memory.update(frame, prediction.results["map"]))
        assert found.prediction.results["detection"].centers.tobytes() == boxes.centers.tobytes()
        tracks = tracker.update(boxes.transformed(frame.global_from_reference), frame.timestamp)
        np.testing.assert_array_equal(found.states["detection"].ids, tracks.ids)
        np.testing.assert_array_equal(found.states["detection"].boxes.centers, tracks.boxes.centers)
        assert found.route == {"rain": Routed(1.0, "rain since 0.0 s by tags: 1 of 1 frames")}
        assert set(found.seconds) == {"health", "belief", "memory"}
        assert all(seconds > 0 for seconds in found.seconds.values())


def test_two_replays_give_the_same_bytes_and_so_does_a_stored_scene() -> None:
    """And another drive begins anew."""
    frames = [frame_at(i, Conditions(weather="rain" if 10 <= i < 20 else "clear")) for i in range(40)]
    expected = [content(each) for each in drive(new_scene(), frames)]
    scene = new_scene()
    before = [content(each) for each in drive(scene, frames[:15])]
    restored = pickle.loads(pickle.dumps(scene))
    assert before + [content(each) for each in drive(restored, frames[15:])] == expected
    second = [replace(frame, scene="scene-0002") for frame in frames[:4]]
    again = [content(each) for each in drive(restored, second)]
    assert again == [content(each) for each in drive(new_scene(), second)]


def test_why_a_route_is_in_force() -> None:
    scene, weights = new_scene(), {"rain": 1.0, "rain-night": 0.0, "blind": 0.0, "always": 1.0}
    for i in range(4):
        frame = frame_at(i, Conditions(weather="rain", light="day" if i else None))
        scene.observe(frame)
        found = scene.update(frame, prediction_of(frame), weights)
        assert i or found.route["rain-night"].why == "light unknown: nothing observed"
    assert {name: each.why for name, each in found.route.items()} == {
        "rain": "rain since 0.0 s by tags: 1 of 1 frames",
        "rain-night": "day since 0.5 s by tags: 1 of 1 frames",
        "blind": "cameras there",
        "always": "no requirements",
    }
    blind = replace(frame_at(4), cameras={})
    scene.observe(blind)
    route = scene.update(blind, prediction_of(blind), {"blind": 1.0}).route
    assert route == {"blind": Routed(1.0, "cameras missing; lidar there")}


def recognising(scene: Scene, frame: Frame, **recognised: list[float]) -> Conditions:
    believed = scene.observe(frame)
    scene.update(frame, instead(prediction_of(frame), conditions=recognised))
    return believed


def test_what_was_recognised_takes_the_place_of_tags_from_the_next_frame_on() -> None:
    """Of the light also where a tag says the weather."""
    scene, fog, night = new_scene(), [0.02, 0.03, 0.95], [0.0, 1.0]
    assert recognising(scene, frame_at(0), weather=fog, light=night) == UNKNOWN
    assert recognising(scene, frame_at(1), weather=fog, light=night) == Conditions(weather="fog", light="night")
    for i in range(20):
        tagged = frame_at(i, Conditions(weather="rain"), "scene-0002")
        believed = recognising(scene, tagged, weather=fog, light=night)
        assert believed == Conditions(weather="rain", light="night" if i else None)


def test_what_is_recognised_without_a_sensor_is_no_evidence() -> None:
    frame = frame_at(0)
    other = replace(frame, cameras={"CAM_BACK": frame.cameras["CAM_BACK"]})
    ahead = Scene(sensors("CAM_FRONT"), TASKS, CONDITIONS)
    for scene, dark in ((new_scene(), replace(frame, cameras={}, points=None)), (ahead, other)):
        recognising(scene, dark, light=[0.0, 1.0])
        assert scene.observe(frame_at(1)) == UNKNOWN


def test_what_the_network_does_not_have_is_none() -> None:
    frame = frame_at(0)
    scene = Scene(sensors("CAM_BACK"), {}, CONDITIONS)
    scene.observe(frame)
    found = scene.update(frame, prediction_of(frame))
    assert (found.states, found.route, list(found.health)) == ({}, {}, ["CAM_BACK"])
    scene = new_scene()
    scene.observe(frame)
    detections = Prediction({"detection": prediction_of(frame).results["detection"]})
    assert scene.update(frame, detections).states.keys() == {"detection"}


@pytest.mark.slow("a drive of 240 frames")
def test_memory_does_not_grow_with_the_drive() -> None:
    """Of 240 frames, in rounds of 40 with faults and changes of the weather, tracker, map, beliefs and health hold as
    many objects, and when stored as many bytes, as of the first two rounds.

    A byte more for each frame, or an object for every tenth, would fail.
    """
    scene, prediction = new_scene(), prediction_of(frame_at(0))
    pool, sizes, objects = [frame_at(i) for i in range(8)], [], []
    for i in range(240):
        own, pose = pool[i % 8], np.eye(4)
        pose[:2, 3] = 9.0 * i, 5.0 * i
        points = None if i % 10 == 7 else own.points if i % 20 == 0 else np.full((8, 5), i, np.float32)
        frame = replace(
            own, token=f"token-{i}", global_from_reference=pose, timestamp=pool[0].timestamp + 500_000 * i,
            conditions=Conditions(weather=("clear", "rain", "fog", "rain")[i // 10 % 4], light=LIGHT[i // 20 % 2]),
            cameras={} if i % 8 == 3 else own.cameras, **keyframe(points),
        )  # fmt: skip
        scene.observe(frame)
        scene.update(frame, prediction if i % 8 == 0 else Prediction({"detection": Boxes.none()}), {"rain": 1.0})
        if i >= 40 and i % 40 == 39:
            gc.collect()
            sizes.append(len(pickle.dumps(scene)))
            objects.append(len(gc.get_objects()))
    assert max(sizes) < sizes[0] + 160
    assert max(sizes) < size_of(MapMemory(GRID, PRIOR)) + 100_000
    assert max(objects) < objects[0] + 16


SMALL = BevGrid(x=(-4.0, 6.0), y=(-5.0, 3.0), cell=1.0)
CLASSES = len(MAP_CLASSES)
PRIOR_ODDS = np.log(PRIOR) - np.log1p(-np.array(PRIOR))
STANDING = frame_at(0)
UNSEEN = np.broadcast_to(np.array(PRIOR, np.float32)[:, None, None], (CLASSES, *SMALL.shape))


def pose(x: float, y: float, yaw: float, pitch: float = 0.0) -> np.ndarray:
    """(4, 4) global from reference."""
    turn = np.array([[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]])
    tilt = np.array([[math.cos(pitch), 0, math.sin(pitch)], [0, 1, 0], [-math.sin(pitch), 0, math.cos(pitch)]])
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn @ tilt, (x, y, 0.3)
    return matrix


def standing_at(global_from_reference: np.ndarray) -> Frame:
    return replace(STANDING, global_from_reference=global_from_reference)


Seen = tuple[np.ndarray, np.ndarray]  # probabilities (6, rows, columns), and the pose


def fused_cell_by_cell(grid: BevGrid, frames: list[Seen], at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The definition: a cell has the mean log-odds, beyond the prior, of the frames' cells in which its middle lies.

    Each frame weighs as much as is new in it, and earlier frames as 4 at most; n views count as n ** 0.2.

    Returns (6, rows, columns) probabilities around the pose `at`; and (rows, columns) their views, rounded up.
    """
    odds: dict[tuple[int, int], np.ndarray] = {}
    counts: dict[tuple[int, int], float] = {}
    rows, columns = grid.shape
    for k, (probabilities, global_from_reference) in enumerate(frames):
        moved = np.linalg.norm(global_from_reference[:3, 3] - frames[k - 1][1][:3, 3])
        position = global_from_reference[:2, 3] / grid.cell
        for i in range(math.floor(position[1]) - 12, math.floor(position[1]) + 12):
            for j in range(math.floor(position[0]) - 12, math.floor(position[0]) + 12):
                ground = np.array([(j + 0.5) * grid.cell, (i + 0.5) * grid.cell]) - global_from_reference[:2, 3]
                x, y = np.linalg.solve(global_from_reference[:2, :2], ground)
                column, row = (x - grid.x[0]) / grid.cell, (y - grid.y[0]) / grid.cell
                if not (-0.25 <= row < rows + 0.25 and -0.25 <= column < columns + 0.25):
                    continue
                cell = (min(max(math.floor(row), 0), rows - 1), min(max(math.floor(column), 0), columns - 1))
                p = probabilities[(slice(None), *cell)].astype(np.float64)
                says, views = (np.log(p / (1 - p)) - PRIOR_ODDS).clip(-8, 8), counts.get((i, j), 0)
                new = 1 - np.exp(-moved / 4) if views else 1.0
                before = odds.get((i, j), np.zeros(CLASSES))
                odds[i, j], counts[i, j] = (before * views + says * new) / (views + new), min(views + new, 4)
    around, looks = np.zeros((CLASSES, rows, columns)), np.zeros((rows, columns), int)
    for row, column in np.ndindex(rows, columns):
        point = [grid.x[0] + (column + 0.5) * grid.cell, grid.y[0] + (row + 0.5) * grid.cell, 0, 1]
        x, y = (at @ point)[:2] / grid.cell
        cell = (math.floor(y), math.floor(x))
        if cell in odds:
            around[:, row, column] = 1 / (1 + np.exp(-odds[cell] * max(1, counts[cell]) ** 0.2 - PRIOR_ODDS))
            looks[row, column] = math.ceil(counts[cell])
    return around, looks


moves_of_a_vehicle = st.tuples(st.floats(-40, 40), st.floats(-40, 40), st.floats(-4, 4), st.floats(-0.1, 0.1))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(moves_of_a_vehicle, min_size=1, max_size=4))
def test_fusion_equals_a_loop_over_cells(seed: int, moves: list[tuple[float, float, float, float]]) -> None:
    """Wherever the vehicle goes; the window moves along."""
    rng, memory, frames = np.random.default_rng(seed), MapMemory(SMALL, PRIOR), list[Seen]()
    x, y = 1234.567, -987.654
    for dx, dy, yaw, pitch in moves:
        # Irrational steps, so that no middle of a cell lies on an edge of another.
        x, y = x + dx * math.sqrt(2), y + dy * math.sqrt(3)
        at = pose(x + 0.01 * rng.random(), y + 0.01 * rng.random(), yaw + 0.01 * rng.random(), pitch)
        frames.append((rng.uniform(0.02, 0.98, (CLASSES, *SMALL.shape)).astype(np.float32), at))
        memory.update(standing_at(at), frames[-1][0])
        expected, looks = fused_cell_by_cell(SMALL, frames, at)
        assert looks.min() >= 1  # every cell of the newest frame is known
        # A frame rounds to 1 / 4096 of probability, 0.006 of log-odds at 0.02; mean and views round to 1 / 256.
        np.testing.assert_allclose(memory.around(at), expected, atol=0.25 * 0.016 * len(frames))


def later(at: np.ndarray, seconds: float) -> Frame:
    return replace(standing_at(at), timestamp=STANDING.timestamp + round(1e6 * seconds))


def test_a_map_that_changed_is_learned_anew() -> None:
    """However long it was otherwise: earlier frames weigh as four views at most."""
    memory = MapMemory(SMALL, PRIOR)
    for i in range(112):
        value = 0.9 if i < 100 else 0.1
        memory.update(later(pose(0.001 * i, 0, 0), 10.0 * i), np.full((CLASSES, *SMALL.shape), value, np.float32))
        assert (memory.around(pose(0, 0, 0))[:, 3, 3] > 0.5).all() == (i < 103), i


@pytest.mark.parametrize("rate", [2, 20])
def test_frames_of_a_standing_vehicle_add_little_at_any_rate(rate: int) -> None:
    """A minute of the same error is not more certain than a few looks: in log-odds by 4 ** 0.2 at most."""
    memory, said = MapMemory(SMALL, PRIOR), np.full((CLASSES, *SMALL.shape), 0.4, np.float32)
    for i in range(60 * rate):
        fused = memory.update(later(pose(0, 0, 0), i / rate), said)
    expected = 1 / (1 + np.exp(-PRIOR_ODDS - (np.log(0.4 / 0.6) - PRIOR_ODDS) * 4**0.2))
    np.testing.assert_allclose(fused[:, 3, 3], expected, atol=0.003)


@pytest.mark.parametrize("shared", [0.5, 0.8])
def test_the_fused_map_is_closer_to_the_truth_than_a_frame(shared: float) -> None:
    """Of a large layer and of a small one that the network hardly recognises, which must not spread."""
    priors = (0.3, 0.03)
    memory = MapMemory(BevGrid(x=(-24.0, 24.0), y=(-24.0, 24.0), cell=CELL), priors)
    found = score_memory(memory.update, priors, (3.0, 1.0), shared)
    assert (found.brier[1] < found.brier[0]).all(), found
    assert (found.iou[1] >= found.iou[0]).all(), found
    assert (found.above[1] < 1.5 * found.true[1]).all(), found


SPACE = VoxelGrid((-24.0, 24.0), (-24.0, 24.0), (-1.0, 0.6), cell=CELL)
WALL, CAR, FREE = range(3)


def fuse_occupancy(memory: FusedOccupancy, frame: Frame, occupied: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The fused probabilities; the class counts where a voxel is occupied."""
    seen = np.where(occupied > 0.5, classes, FREE).astype(np.uint8)
    result = OccupancyResult(seen, occupied, np.zeros_like(occupied), np.zeros(360, np.float32), SPACE)
    return memory.update(frame, result).occupied


@pytest.mark.parametrize("shared", [0.5, 0.8])
@pytest.mark.parametrize(("priors", "information"), [((0.1, 0.3), 6.0), ((0.03, 0.2), 3.0)])
def test_the_fused_occupancy_is_closer_to_the_truth_than_a_frame(
    priors: tuple[float, ...], information: float, shared: float
) -> None:
    """In two levels of which one is fuller, of a network that recognises most voxels and of a weaker one."""
    memory = FusedOccupancy(SPACE, 3, moving=(CAR,), solid=(WALL, CAR), body=slice(0, 2))
    found = score_memory(
        lambda frame, occupied: fuse_occupancy(memory, frame, occupied, np.full(occupied.shape, WALL)),
        priors,
        (information, information),
        shared,
    )
    assert (found.brier[1] < found.brier[0]).all(), found
    assert (found.iou[1] > found.iou[0]).all(), found
    assert information < 6 or (np.abs(np.log(found.above[1] / found.true[1])) < np.log(1.5)).all(), found


@pytest.mark.parametrize("rate", [2, 10])
@pytest.mark.parametrize("speed", [1.5, 8.0])
def test_fused_occupancy_of_traffic_is_closer_to_the_truth_than_a_frame(rate: int, speed: float) -> None:
    """Of lanes in both directions, on which the vehicle stands: neither trails nor what comes too late."""
    memory = FusedOccupancy(SPACE, 3, moving=(CAR,), solid=(WALL, CAR), body=slice(0, 2))
    rng, frames = np.random.default_rng(0), list[tuple[np.ndarray, ...]]()
    sensor = Sensor(np.array(0.15), np.array(6.0), 0.5, SPACE.shape)
    for i in range(40):
        traffic = np.zeros(SPACE.shape, bool)
        for lane in range(6):
            first = math.floor(10 * lane + (-1) ** lane * speed * i / rate / CELL)
            columns = (first + np.arange(6)) % SPACE.shape[2]
            traffic[:, 9 * lane + 5 : 9 * lane + 8, columns] = True
        occupied = sensor.see(traffic, slice(None))
        classes = np.where(traffic, CAR, rng.integers(0, 2, traffic.shape))
        fused = fuse_occupancy(memory, frame_after(i / rate, 0.0), occupied, classes)
        lanes = [each.reshape(2, 6, 9, -1)[:, :, 2:5] for each in (traffic[:, 3:57], occupied[:, 3:57], fused[:, 3:57])]
        frames.append(tuple(lanes))
    found = score(frames[4:])
    assert (found.brier[1] < found.brier[0]).all(), found
    assert (found.iou[1] > found.iou[0]).all(), found


@pytest.mark.parametrize(("away", "remembered"), [(REACH - 1, True), (500.0, False)])
def test_revisits(away: float, remembered: bool) -> None:
    """In a window whose size stays."""
    memory, rng = MapMemory(SMALL, PRIOR), np.random.default_rng(2)
    home, silent = pose(77.3, -41.2, 0.4), np.full((CLASSES, *SMALL.shape), np.nan, np.float32)
    np.testing.assert_array_equal(memory.around(home), UNSEEN)
    memory.update(standing_at(home), rng.random((CLASSES, *SMALL.shape)).astype(np.float32))
    before, side = memory.around(home), 2 * (math.ceil(math.hypot(6, 5) + REACH) + 32)
    assert np.abs(before - UNSEEN).max() > 0.3
    for distance in [*np.arange(0, away, 10), away, *np.arange(away, 0, -10)]:
        memory.update(standing_at(pose(77.3 + distance * 0.8, -41.2 - distance * 0.6, -0.6)), silent)
        assert size_of(memory) == 2 * (CLASSES + 1) * side * side
    np.testing.assert_array_equal(memory.around(home), before if remembered else UNSEEN)
