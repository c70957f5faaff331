"""A drive joined from its frames: conditions before the engine runs, the rest after it; repeatable and bounded."""

import gc
import itertools
import math
import pickle
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from judged import instead
from vocabulary import CAMERAS, CONDITIONS, MAP_CLASSES, NUSCENES, PRIOR, SENSORS, sensors

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Boxes, Camera, Conditions, Frame, Prediction
from perception.grid import BevGrid
from perception.scene.belief import ConditionBelief, Origin, tagged
from perception.scene.health.monitor import HealthMonitor
from perception.scene.scene import Routed, Scene, SceneFrame
from perception.tasks import configured, tasks_of
from perception.tasks.detection.tracker import Tracker
from perception.tasks.map.memory import MapMemory

GRID = BevGrid(x=(-12.8, 12.8), y=(-12.8, 12.8), cell=1.6)
TASKS = tasks_of(configured({"detection": {}, "map": {}, "conditions": {}}), GRID, NUSCENES)
UNKNOWN = Conditions()
BY_TAGS = dict.fromkeys(CONDITIONS, Origin("tags"))
MODULES = {"rain": ("rain",), "rain-night": ("rain", "night"), "blind": ("no-cameras", "lidar"), "always": ("map",)}


def frame_at(i: int, conditions: Conditions = UNKNOWN, scene: str = "scene-0001", period: int = 500_000) -> Frame:
    """A made-up frame of a drive along a curve."""
    rng, angle = np.random.default_rng(i), 0.02 * i
    pose = np.eye(4)
    pose[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    pose[:2, 3] = 300 * math.sin(angle), 300 * (1 - math.cos(angle))
    points = rng.uniform([-50, -50, -2, 0, 0], [50, 50, 3, 255, 0], (3000, 5)).astype(np.float32)
    now = 1_500_000_000_000_000 + period * i
    camera = Camera(rng.integers(0, 255, (45, 80, 3), np.uint8), np.eye(3), np.eye(4), pose, now - 30_000)
    return Frame(
        f"token-{i}", now, "ego", pose, pose, points, dict.fromkeys(CAMERAS, camera), conditions, scene=scene
    )  # fmt: skip


def prediction_of(frame: Frame) -> Prediction:
    rng = np.random.default_rng(frame.timestamp // 1000)
    n = 5
    boxes = Boxes.from_yaws(
        rng.uniform(-10, 10, (n, 3)), np.ones((n, 3)), rng.uniform(-3, 3, n), rng.normal(size=(n, 2)),
        rng.integers(0, 10, n), np.full(n, -1), rng.random(n),
    )  # fmt: skip
    return Prediction({"detection": boxes, "map": rng.random((len(MAP_CLASSES), *GRID.shape)).astype(np.float32)})


def new_scene() -> Scene:
    return Scene(SENSORS, TASKS, CONDITIONS, MODULES)


def drive(scene: Scene, frames: list[Frame]) -> Iterator[SceneFrame]:
    for frame in frames:
        conditions = scene.observe(frame)
        weights = {"rain": float(conditions.get("weather") == "rain")}
        yield scene.update(frame, prediction_of(frame), weights)


def content(scene_frame: SceneFrame) -> bytes:
    """All of it but the time that it took."""
    f = scene_frame
    words = repr((f.token, f.scene, f.timestamp, f.conditions, f.beliefs, f.route, f.health))
    tracks = f.states["detection"]
    arrays = (f.states["map"], tracks.ids, tracks.boxes.centers, f.prediction.results["detection"].centers)
    return words.encode() + b"".join(array.tobytes() for array in arrays)


def test_a_scene_is_its_parts() -> None:
    """Each part alone, given the same frames, says what the scene says."""
    monitor, belief, memory, tracker = (
        HealthMonitor(SENSORS),
        ConditionBelief(CONDITIONS),
        MapMemory(GRID, PRIOR),
        Tracker(NUSCENES),
    )
    frames = [frame_at(i, Conditions(weather="rain", light="day")) for i in range(5)]
    for frame, found in zip(frames, drive(new_scene(), frames), strict=True):
        prediction = prediction_of(frame)
        assert (found.token, found.scene, found.timestamp) == (frame.token, frame.scene, frame.timestamp)
        assert found.health == monitor.update(frame)
        assert found.conditions == belief.update(frame.timestamp, [tagged(frame.conditions, CONDITIONS)], BY_TAGS)
        assert found.conditions == Conditions(weather="rain", light="day")
        assert found.beliefs == belief.beliefs
        memory.update(prediction.results["map"], frame.global_from_reference)
        np.testing.assert_array_equal(found.states["map"], memory.around(frame.global_from_reference))
        boxes = prediction.results["detection"]
        assert found.prediction.results["detection"].centers.tobytes() == boxes.centers.tobytes()
        tracks = tracker.update(boxes.transformed(frame.global_from_reference), frame.timestamp)
        np.testing.assert_array_equal(found.states["detection"].ids, tracks.ids)
        np.testing.assert_array_equal(found.states["detection"].boxes.centers, tracks.boxes.centers)
        assert found.route == {"rain": Routed(1.0, "rain since 0.0 s by tags: 1 of 1 frames")}
        assert set(found.seconds) == {"health", "belief", "memory"}
        assert all(seconds > 0 for seconds in found.seconds.values())


def test_another_drive_begins_anew() -> None:
    first = [frame_at(i, Conditions(weather="rain")) for i in range(4)]
    second = [frame_at(i, Conditions(weather="clear"), "scene-0002") for i in range(4)]
    scene = new_scene()
    both = [content(each) for each in drive(scene, first + second)]
    assert both[4:] == [content(each) for each in drive(new_scene(), second)]


def test_two_replays_give_the_same_bytes_and_so_does_a_stored_scene() -> None:
    frames = [frame_at(i, Conditions(weather="rain" if 10 <= i < 20 else "clear")) for i in range(40)]
    expected = [content(each) for each in drive(new_scene(), frames)]
    assert [content(each) for each in drive(new_scene(), frames)] == expected
    scene = new_scene()
    before = [content(each) for each in drive(scene, frames[:15])]
    restored = pickle.loads(pickle.dumps(scene))
    assert before + [content(each) for each in drive(restored, frames[15:])] == expected


def recognised_as(conditions: Conditions, sure: float) -> dict[str, list[float]]:
    return {
        kind: [sure if value in conditions.known() else (1 - sure) / (len(values) - 1) for value in values]
        for kind, values in CONDITIONS.items()
    }


@pytest.mark.parametrize("tags", [True, False])
@pytest.mark.parametrize("rate", [2, 20])
def test_the_route_follows_a_drive_into_rain_and_a_tunnel(rate: int, tags: bool) -> None:
    """Within 2 s, once per change, and not for a wiper stroke or a lamp; by tags, or recognised with 0.99."""
    seconds = {"rain": 20, "night": 40, "out": 60}
    scene, route, period = new_scene(), [], 1_000_000 // rate
    for i in range(80 * rate):
        weather = "rain" if i >= seconds["rain"] * rate else "clear"
        light = "night" if seconds["night"] * rate <= i < seconds["out"] * rate else "day"
        if i % (10 * rate) == 5 * rate:
            weather, light = "fog", "night" if light == "day" else "day"
        true = Conditions(weather=weather, light=light, city="boston")
        frame = frame_at(i, true if tags else UNKNOWN, period=period)
        believed = scene.observe(frame)
        known = set(believed.known())
        weights = {name: float(known.issuperset(MODULES[name])) for name in ("rain", "rain-night")}
        recognised = {} if tags else recognised_as(true, 0.99)
        found = scene.update(frame, instead(prediction_of(frame), conditions=recognised), weights)
        route.append(tuple(found.route[name].weight for name in weights))
    runs = [(value, len(list(run))) for value, run in itertools.groupby(route)]
    assert [value for value, _ in runs] == [(0, 0), (1, 0), (1, 1), (1, 0)]
    changes = list(itertools.accumulate(length / rate for _, length in runs))[:3]
    for change, at in zip(changes, seconds.values(), strict=True):
        assert 0 < change - at <= 2


def test_why_a_route_is_in_force() -> None:
    scene = new_scene()
    for i in range(4):
        frame = frame_at(i, Conditions(weather="rain", light="day" if i else None))
        scene.observe(frame)
        found = scene.update(frame, prediction_of(frame), {"rain": 1.0, "rain-night": 0.0, "blind": 0.0, "always": 1.0})
        if i == 0:
            assert found.route["rain-night"].why == "light unknown: nothing observed"
    assert {name: each.why for name, each in found.route.items()} == {
        "rain": "rain since 0.0 s by tags: 1 of 1 frames",
        "rain-night": "day since 0.5 s by tags: 1 of 1 frames",
        "blind": "cameras there",
        "always": "asks for nothing more",
    }
    blind = replace(frame_at(4, Conditions()), cameras={})
    scene.observe(blind)
    assert scene.update(blind, prediction_of(blind), {"blind": 1.0}).route == {
        "blind": Routed(1.0, "cameras missing; lidar there")
    }


def recognising(scene: Scene, frame: Frame, **recognised: list[float]) -> Conditions:
    believed = scene.observe(frame)
    scene.update(frame, instead(prediction_of(frame), conditions=recognised))
    return believed


def test_what_was_recognised_takes_the_place_of_tags_from_the_next_frame_on() -> None:
    scene, fog, night = new_scene(), [0.02, 0.03, 0.95], [0.0, 1.0]
    assert recognising(scene, frame_at(0), weather=fog, light=night) == Conditions()
    assert recognising(scene, frame_at(1), weather=fog, light=night) == Conditions(weather="fog", light="night")
    other = frame_at(2, scene="scene-0002")
    assert recognising(scene, other) == Conditions()


def test_a_tag_counts_alone() -> None:
    """Of weather, while the light goes by what is recognised."""
    scene, fog, night = new_scene(), [0.02, 0.03, 0.95], [0.0, 1.0]
    for i in range(20):
        believed = recognising(scene, frame_at(i, Conditions(weather="rain")), weather=fog, light=night)
        assert believed == Conditions(weather="rain", light="night" if i else None)


def test_what_is_recognised_without_a_sensor_is_no_evidence() -> None:
    scene, blind = new_scene(), replace(frame_at(0), cameras={}, points=None)
    recognising(scene, blind, light=[0.0, 1.0])
    assert scene.observe(frame_at(1)) == Conditions()
    scene, dark = (
        Scene(sensors("CAM_FRONT"), TASKS, CONDITIONS),
        replace(frame_at(0), cameras={"CAM_BACK": frame_at(0).cameras["CAM_BACK"]}),
    )
    recognising(scene, dark, light=[0.0, 1.0])
    assert scene.observe(frame_at(1)) == Conditions()


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


def test_wrong_use_is_refused() -> None:
    scene, frame = new_scene(), frame_at(0)
    with pytest.raises(ValueError, match="frame token-0 was not observed"):
        scene.update(frame, prediction_of(frame))
    scene.observe(frame)
    with pytest.raises(ValueError, match="frame token-1 was not observed"):
        scene.update(frame_at(1), prediction_of(frame))
    with pytest.raises(ValueError, match="a weight for snow, which is none of the modules rain, rain-night"):
        scene.update(frame, prediction_of(frame), {"snow": 1.0})


def moved(x: float, y: float) -> np.ndarray:
    pose = np.eye(4)
    pose[:2, 3] = x, y
    return pose


def test_memory_does_not_grow_with_the_drive() -> None:
    """Of 1,500 frames, 12 minutes at 2 Hz with faults and changes of the weather, tracker, map, beliefs and health
    hold as many objects, and when stored as many bytes, as of the first tenth.

    A byte more for each frame, or an object for every tenth, would fail.
    """
    scene, prediction = new_scene(), prediction_of(frame_at(0))
    pool = [frame_at(i) for i in range(8)]
    thin = {name: replace(camera, image=camera.image[:4, :8]) for name, camera in pool[0].cameras.items()}
    sizes, objects = [], []
    for i in range(1500):
        frame = replace(
            pool[i % 8],
            token=f"token-{i}",
            global_from_reference=moved(9.0 * i, 5.0 * i),
            timestamp=pool[0].timestamp + 500_000 * i,
            conditions=Conditions(weather=("clear", "rain", "fog")[i // 7 % 3], light=("day", "night")[i // 11 % 2]),
            cameras={} if i % 13 == 0 else pool[i % 8].cameras if i % 20 == 0 else thin,
            points=None if i % 17 == 0 else pool[i % 8].points if i % 20 == 0 else np.full((8, 5), i, np.float32),
        )
        scene.observe(frame)
        scene.update(frame, prediction if i % 8 == 0 else Prediction({"detection": Boxes.none()}), {"rain": 1.0})
        if i % 150 == 149:
            gc.collect()
            sizes.append(len(pickle.dumps(scene)))
            objects.append(len(gc.get_objects()))
    assert max(sizes) < sizes[0] + 1350
    assert max(sizes) < MapMemory(GRID, PRIOR).bytes + 100_000
    assert max(objects) < objects[0] + 135


def test_a_real_drive(nuscenes_root: object) -> None:
    """scene-0103, whose last keyframes have no cameras."""
    tables = NuScenesTables(nuscenes_root, "v1.0-mini")  # type: ignore[arg-type]
    frames = [tables.frame(s, sweeps=2) for s in tables.samples(selectors=["scene-0103:0-7"])]
    scene = Scene(SENSORS, TASKS, CONDITIONS, MODULES)
    for i, frame in enumerate(frames):
        assert scene.observe(frame) == Conditions(weather="clear", light="day", city="boston")
        found = scene.update(frame, prediction_of(frame), {"blind": float(i >= 4)})
        assert {h.status for h in found.health.values()} == ({"ok"} if i < 4 else {"ok", "missing"})
        assert np.abs(found.states["map"] - 0.5).max() > 0.3
    assert found.route["blind"].why == "cameras missing; lidar there"
