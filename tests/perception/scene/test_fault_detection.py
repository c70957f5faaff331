"""What health says of every fault, alone and in pairs, and when.

The faults are those of the command, in windows of time, on simulated drives. A camera that is turned is not told.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from exported import QUIET, bundle
from made_up import keyframe
from pages import page_data
from simulated import in_town, with_pictures
from vocabulary import CAMERAS, LIDAR, SENSORS, sensors

from deploy.recordings.choice import DriveTime
from deploy.replay.faults import KINDS, SENSORS_OF_KIND, Fault, inject
from deploy.replay.run import replay
from deploy.replay.settings import Settings, Source
from deploy.replay.totals import FaultDetections
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Frame
from perception.rig import LidarLimits, Sensors
from perception.scene.health.monitor import HealthMonitor, Status
from perception.simulate.conditions import Course
from perception.simulate.simulate import simulate

FRAMES, WINDOW = 8, (1.0, 2.2)  # keyframes at 2 Hz, s
BEGIN, END = 2, 5  # the frames with the fault, and the first without
Drives = list[list[Frame]]
WATCHED = (LIDAR, "CAM_FRONT", "CAM_BACK")  # one camera is as another
SUFFERED = [
    (kind, sensor)
    for kind in KINDS
    for sensor in WATCHED
    if SENSORS_OF_KIND.get(kind) in (None, "lidar" if sensor == LIDAR else "cameras")
]
# Health outlives what chance may hide in a frame by a second, and a tilt is the median of three frames.
LATER = {"corruption": 2, "noise": 2, "blur": 2, "points": 2, "miscalibration": 3}


def simulated(root: Path, course: Course) -> list[Frame]:
    """Pictures of half the height and width: large enough for all signs of faults."""
    simulate(root, 1, FRAMES, 11, [course], rig=with_pictures(2))
    tables = NuScenesTables(root, "v1.0-sim")
    return [tables.frame(token, Reads(sweeps=0, annotations=False)) for token in tables.samples()]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drives")


@pytest.fixture(scope="module")
def drives(root: Path) -> Drives:
    """Through the city by day, and on a night in the rain; as long as a fault's window and what follows it."""
    courses = in_town("clear-day-boston", "rain-night-singapore")
    return [simulated(root / name, course) for name, course in zip(("day", "night"), courses, strict=True)]


def windowed(kind: str, sensor: str) -> str:
    amount = ",degrees=3,metres=0.1" if kind == "miscalibration" else ""  # of 1 degree health says nothing
    name = "lidar" if sensor == LIDAR else sensor
    return f"{kind}:{name}{amount}@{WINDOW[0]}-{WINDOW[1]}"


def named(kind: str, sensor: str) -> set[Status]:
    """What health calls a fault; nothing where it cannot see it."""
    if kind == "miscalibration" and sensor != LIDAR:
        return set()
    by_kind: dict[str, Status] = {"delay": "late", "blackout": "missing" if sensor == LIDAR else "dark"}
    return {by_kind[kind]} if kind in by_kind else set(KINDS[kind].expected_statuses)


def said(frames: Sequence[Frame], texts: Sequence[str], watched: Sensors) -> list[Mapping[str, set[Status]]]:
    """All that health says at every frame of the sensors that are wrong."""
    monitor = HealthMonitor(watched)
    found = []
    for frame in inject(frames, [Fault.parse(text, SENSORS) for text in texts]):
        health = monitor.update(frame)
        found.append({name: {each.status for each in h.findings} for name, h in health.items() if h.status != "ok"})
    return found


def loads(frames: Sequence[Frame]) -> dict[tuple[str, str], np.ndarray]:
    """How near its limit each sign of each sensor is at each frame; 0 where it was not looked at."""
    monitor = HealthMonitor(SENSORS)
    found: dict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.zeros(len(frames)))
    for i, frame in enumerate(frames):
        monitor.update(frame)
        for name, signs in monitor.loads.items():
            for sign, load in signs.items():
                found[name, sign][i] = load
    return found


@pytest.mark.parametrize(("kind", "sensor"), SUFFERED)
def test_a_fault_is_told_from_its_first_frame_to_its_end(drives: Drives, kind: str, sensor: str) -> None:
    """By its name, of its sensor and of no other; a tilt one frame later."""
    name, first, last = named(kind, sensor), BEGIN + (kind == "miscalibration"), END + LATER.get(kind, 0)
    for frames in drives:
        found = said(frames, [windowed(kind, sensor)], SENSORS)
        assert found[:first] == [{}] * first
        for i in range(first, END):
            extra = found[i].get(sensor, set()) - name
            # The first late picture is the last one that was in time, again.
            assert extra <= ({"frozen"} if kind == "delay" and i == BEGIN else set())
            assert found[i].keys() == ({sensor} if name else set())
            assert name <= found[i].get(sensor, set())
        assert found[last:] == [{}] * (FRAMES - last)


# Which of two faults of one sensor cannot be seen, for the other; `first` is injected first. An empty set is any fault.
HIDING = [
    # (sensors, first, second, what is hidden)
    ("any", {"drop"}, set(), "second"),  # what is not there has no other fault
    ("any", set(), {"drop"}, "first"),
    ("lidar", {"blackout"}, {"noise", "miscalibration", "points", "corruption"}, "second"),  # no returns
    ("lidar", set(), {"blackout"}, "first"),
    ("cameras", {"blackout"}, {"blur", "noise"}, "second"),  # nothing but black
    ("cameras", {"freeze", "blur", "noise", "corruption"}, {"blackout"}, "first"),
    # What was before shows.
    ("any", {"blackout", "blur", "noise", "points", "corruption", "miscalibration"}, {"freeze"}, "first"),
    ("lidar", {"delay"}, {"freeze"}, "first"),
    ("any", {"freeze"}, {"noise", "corruption", "points"}, "first"),  # what comes is never the same
    ("lidar", {"freeze"}, {"delay"}, "first"),  # moved by the vehicle's way
    ("cameras", {"blur"}, {"noise"}, "first"),  # the last one has its way
    ("cameras", {"noise", "corruption"}, {"blur"}, "first"),
    ("lidar", {"delay"}, {"miscalibration"}, "second"),  # the ground was elsewhere
    ("lidar", {"miscalibration"}, {"delay"}, "first"),
]


def hidden(first: str, second: str, sensor: str) -> set[str]:
    own = ("any", "lidar" if sensor == LIDAR else "cameras")
    return {
        {"first": first, "second": second}[what]
        for sensors, firsts, seconds, what in HIDING
        if sensors in own and first in (firsts or KINDS) and second in (seconds or KINDS)
    }


@pytest.mark.parametrize("sensor", WATCHED)
def test_two_faults_of_one_sensor_are_both_told_but_for_what_one_hides(drives: Drives, sensor: str) -> None:
    kinds, frames = [kind for kind, suffering in SUFFERED if suffering == sensor], drives[0]
    wrong = []
    for first, second in permutations(kinds, 2):
        found = said(frames, [windowed(first, sensor), windowed(second, sensor)], sensors(sensor))
        lies = hidden(first, second, sensor)
        if (first, second) == ("blackout", "corruption") and sensor != LIDAR:
            # Garbage out of black blocks is either brighter, or as black.
            assert all(each.keys() == {sensor} for each in found[BEGIN:END])
            continue
        early = set().union(*(each.get(sensor, set()) for each in found[BEGIN : BEGIN + 3]))
        untold = {kind for kind in {first, second} - lies if not named(kind, sensor) <= early}
        # What is hidden is not told, unless both have the same name.
        shown = named(first, sensor) if second in lies else named(second, sensor)
        guessed = {kind for kind in lies if named(kind, sensor) and named(kind, sensor) <= early - shown}
        if untold or guessed or not early or found[-1]:
            wrong.append((first, second, untold, guessed, early, found[-1]))
    assert not wrong


@pytest.mark.parametrize(("degrees", "metres"), [(0.5, 0.02), (1.0, 0.1), (3.0, 0.1), (5.0, 0.3), (0.0, 0.6)])
def test_a_lidar_is_miscalibrated_where_the_ground_is_tilted(drives: Drives, degrees: float, metres: float) -> None:
    """The limits are those of the closed form: the plane z = 0 under the very displacement that was injected."""
    ground = np.array([[0, 0, 0, 0, 0], [10, 0, 0, 0, 0], [0, 10, 0, 0, 0]], np.float32)  # here, ahead, to the left
    limits = LidarLimits()
    for i in range(6):
        text = f"miscalibration:lidar,degrees={degrees},metres={metres}@0-{90 + i}"
        level = Frame("t", 0, "ego", np.eye(4), np.eye(4), cameras={}, **keyframe(ground))
        origin, *along = Fault.parse(text, SENSORS).apply(level, None).points[:, :3].astype(float)
        normal = np.cross(along[0] - origin, along[1] - origin)
        tilt, height = np.degrees(np.arccos(normal[2] / np.linalg.norm(normal))), abs(origin @ normal / normal[2])
        if min(abs(tilt / limits.tilted - 1), abs(height / limits.raised - 1)) < 0.15:
            continue  # too near the limit
        wrong = tilt > limits.tilted or height > limits.raised
        found = said(drives[0][:4], [text], sensors(LIDAR))
        assert found[-1] == ({LIDAR: {"miscalibrated"}} if wrong else {}), (tilt, height)


@pytest.mark.slow("exports a network, unless another test has done so")
@pytest.mark.usefixtures("drives")
def test_the_report_lists_faults_beside_what_health_said(root: Path, tmp_path: Path) -> None:
    """Through the command's own way: injected into drives that the exported network perceives."""
    texts = [windowed("drop", "cameras"), windowed("noise", LIDAR), "miscalibration:CAM_BACK@3.0-9.0"]
    texts += ["blur:CAM_BACK@99-100", f"hidden:car@{WINDOW[0]}-{WINDOW[1]}"]
    source = Source(root / "day", "v1.0-sim", [f"scene-0001:0-{FRAMES}"])
    summary = replay(source, bundle().path, tmp_path, Settings(faults=texts), console=QUIET)
    assert summary["frames"] == FRAMES
    expected = [(texts[0], name, 3, 3, {"missing": 0.0}) for name in CAMERAS]
    expected += [
        (texts[1], LIDAR, 3, 3, {"noisy": 0.0}),
        (texts[2], "CAM_BACK", 2, 0, {}),
        (texts[3], "CAM_BACK", 0, 0, {}),
        (texts[4], "car", 3, 0, {}),  # no task looks for it
    ]
    detections = json.loads((tmp_path / "results.json").read_text())["results"].values()
    cars = [sum(box["detection_name"] == "car" for box in each) for each in detections]
    assert not any(cars[BEGIN:END])
    assert any(cars[:BEGIN])  # a random network need not find one in every frame
    assert all(len(each) for each in list(detections)[BEGIN:END])  # of other classes
    data, columns = page_data(tmp_path / "report.html"), ("fault", "sensor", "frames", "detected", "delays")
    assert data["faults"] == [dict(zip(columns, each, strict=True)) for each in expected]
    spans = {lane["name"]: lane["spans"] for lane in data["lanes"] if lane["kind"] == "health"}
    lanes = {name: [(each["from"], each["to"], each["value"]) for each in own] for name, own in spans.items()}
    assert lanes["CAM_FRONT"] == [(0, 1, "ok"), (2, 4, "missing"), (5, 7, "ok")]
    assert lanes[LIDAR] == [(0, 1, "ok"), (2, 5, "noisy"), (6, 7, "ok")]


def test_of_several_drives_the_longest_delay_counts(drives: Drives) -> None:
    """The tilt is told half a second late in each drive, whose windows count from its own first frame."""
    detections = FaultDetections([fault := Fault.parse(windowed("miscalibration", LIDAR), SENSORS)])
    for frames in drives:
        monitor, time = HealthMonitor(sensors(LIDAR)), DriveTime()
        for frame in inject(frames, [fault], time):
            detections.add(frame, time(frame.scene, frame.timestamp), monitor.update(frame))
    [found] = detections.to_rows()
    assert (found["frames"], found["detected"]) == (6, 4)
    assert found["delays"] == {"miscalibrated": pytest.approx(0.5, abs=0.02)}
