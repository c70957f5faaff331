"""Faults: what each does to which sensor and when, what is no fault, and what health says of each, alone and in pairs.

Health is told on simulated drives, in windows of time. A camera that is turned is told while the vehicle drives, after
more than two seconds: by then the short windows are over, and a longer drive shows it.
"""

import io
import json
import re
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations, permutations, product
from pathlib import Path

import cv2
import numpy as np
import pytest
from courses import in_town, with_pictures
from exported import QUIET, bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import page_data
from PIL import Image
from recordings import SPEC
from refusals import one_line_error
from vocabulary import CAMERAS, LIDAR, NUSCENES, RIG, SENSORS, sensors

from deploy.golden import synthetic_frame
from deploy.replay.class_faults import HiddenClass
from deploy.replay.fault_detection import FaultDetections
from deploy.replay.fault_kinds import KINDS, SENSORS_OF_KIND
from deploy.replay.faults import Fault, inject
from deploy.replay.run import replay
from deploy.replay.settings import Settings, Source
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.evaluation import corrupt
from perception.frame import Camera, Frame
from perception.rig import Sensors
from perception.scene.health.limits import LidarLimits
from perception.scene.health.monitor import HealthMonitor, Status
from perception.sensors.inputs import prepare
from perception.simulate.simulate import simulate

EVERY = [
    f"{kind}:{sensor}"
    for kind in KINDS
    for sensor in ("lidar", CAMERAS[0], "cameras", "all")
    if not (kind == "blur" and sensor in ("lidar", "all")) and not (kind == "points" and sensor != "lidar")
]


def pose(metres: float) -> np.ndarray:
    """The vehicle after so many metres along a bend."""
    turn = metres / 40
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    matrix[:3, 3] = 40 * np.sin(turn), 40 * (1 - np.cos(turn)), 0
    return matrix


@cache
def recorded(seed: int) -> Frame:
    return synthetic_frame("ego", RIG, seed)


def drive(frames: int = 6, scene: str = "a") -> list[Frame]:
    """Two keyframes a second; every frame has points and small pictures of its own."""
    made = []
    for i in range(frames):
        frame, place = recorded(i), pose(4.0 * i)
        cameras = {
            name: replace(camera, image=camera.image[:96, :160], timestamp=i * 500_000, global_from_ego=place)
            for name, camera in frame.cameras.items()
        }
        made.append(
            replace(
                frame, token=f"{scene}{i}", scene=scene, timestamp=7_000_000 + i * 500_000, cameras=cameras,
                global_from_reference=place, global_from_ego=place,
            )
        )  # fmt: skip
    return made


def faulty(frames: Sequence[Frame], *texts: str) -> list[Frame]:
    return list(inject(frames, [Fault.parse(text, SENSORS) for text in texts]))


def equal(a: Frame, b: Frame, sensor: str) -> bool:
    if sensor == LIDAR:
        return a.points is b.points or (
            a.points is not None and b.points is not None and np.array_equal(a.points, b.points)
        )
    if (sensor in a.cameras) != (sensor in b.cameras):
        return False
    return sensor not in a.cameras or all(
        np.array_equal(getattr(a.cameras[sensor], part), getattr(b.cameras[sensor], part))
        for part in ("image", "ego_from_camera", "global_from_ego", "timestamp")
    )


@pytest.mark.parametrize("text", EVERY)
def test_a_fault_hits_its_sensors_in_its_window_and_nothing_else(text: str) -> None:
    frames = drive()
    fault = Fault.parse(f"{text}@1.0-2.0", SENSORS)
    changed = list(inject(frames, [fault]))
    assert [frame.token for frame in changed] == [frame.token for frame in frames]
    for before, after, hit in zip(frames, changed, [False, False, True, True, False, False], strict=True):
        for sensor in (LIDAR, *CAMERAS):
            assert equal(before, after, sensor) == (not hit or sensor not in fault.sensors), (after.token, sensor)
    again = faulty(frames, f"{text}@1.0-2.0")
    assert all(equal(a, b, sensor) for a, b in zip(changed, again, strict=True) for sensor in (LIDAR, *CAMERAS))


def test_drop_and_blackout_differ() -> None:
    frames = drive(1)
    dropped, black = faulty(frames, "drop:all")[0], faulty(frames, "blackout:all")[0]
    assert dropped.points is None
    assert dropped.cameras == {}
    assert black.points.shape == (0, 5)
    assert not any(camera.image.any() for camera in black.cameras.values())
    assert list(black.cameras) == list(frames[0].cameras)


def test_a_frozen_sensor_shows_the_last_picture_before_as_if_it_were_new() -> None:
    frames = drive()
    changed = faulty(frames, "freeze:all@1.0-2.0")
    for i in (2, 3):
        assert changed[i].points is frames[1].points
        camera = changed[i].cameras["CAM_BACK"]
        assert camera.image is frames[1].cameras["CAM_BACK"].image
        assert camera.timestamp == frames[i].cameras["CAM_BACK"].timestamp
        np.testing.assert_array_equal(camera.global_from_ego, frames[i].global_from_ego)
    assert all(frame.points is frames[0].points for frame in faulty(frames, "freeze:lidar"))


def test_each_drive_has_its_own_clock_and_past() -> None:
    first, second = drive(3, "a"), drive(3, "b")
    changed = faulty([*first, *second], "freeze:lidar@0.5-9")
    assert [frame.points is first[0].points for frame in changed[:3]] == [True] * 3
    assert [frame.points is second[0].points for frame in changed[3:]] == [True] * 3
    assert [frame.points is None for frame in faulty([*first, *second], "drop:lidar@1-2")] == [False, False, True] * 2


def test_delayed_points_and_pictures_are_where_they_were_in_the_world() -> None:
    frames = drive()
    changed = faulty(frames, "delay:all,seconds=0.9@1.0-9")
    for i in range(2, 6):  # 0.9 s late: what was recorded 1.0 s ago
        old = frames[i - 2]
        points = changed[i].points
        world = points[:, :3] @ frames[i].global_from_reference[:3, :3].T + frames[i].global_from_reference[:3, 3]
        then = old.points[:, :3] @ old.global_from_reference[:3, :3].T + old.global_from_reference[:3, 3]
        np.testing.assert_allclose(world, then, atol=1e-4)
        np.testing.assert_allclose(points[:, 4], old.points[:, 4] + 1.0, atol=1e-6)
        assert changed[i].cameras["CAM_FRONT"] is old.cameras["CAM_FRONT"]
    early = faulty(frames, "delay:all,seconds=0.9")
    assert [frame.points is None for frame in early] == [True, True, False, False, False, False]
    assert [len(frame.cameras) for frame in early] == [0, 0, 6, 6, 6, 6]


def test_memory_of_a_delay_ends() -> None:
    """Of an endless drive only the frames within the delay are held."""
    alive: list[weakref.ref[Frame]] = []

    def endless():
        for frame in drive(1) * 40:
            frame = replace(frame, timestamp=len(alive) * 500_000)
            alive.append(weakref.ref(frame))
            yield frame

    for _ in inject(
        endless(), [Fault.parse("delay:all,seconds=2", SENSORS), Fault.parse("freeze:cameras@3-99", SENSORS)]
    ):
        assert sum(ref() is not None for ref in alive) <= 8


@given(degrees=st.floats(0, 20), metres=st.floats(0, 2), seed=st.integers(0, 2**32 - 1))
def test_a_displacement_turns_and_shifts_by_what_was_asked(degrees: float, metres: float, seed: int) -> None:
    motion = corrupt.displacement(degrees, metres, np.random.default_rng(seed))
    np.testing.assert_allclose(motion[:3, :3] @ motion[:3, :3].T, np.eye(3), atol=1e-12)
    turn = np.degrees(np.arccos(np.clip((np.trace(motion[:3, :3]) - 1) / 2, -1, 1)))
    np.testing.assert_allclose(turn, degrees, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(motion[:3, 3]), metres, atol=1e-12)


def test_a_miscalibration_stays_and_is_that_of_one_camera() -> None:
    frames = drive(3)
    changed = faulty(frames, "miscalibration:cameras,degrees=3,metres=0.2")
    moves = {
        name: [
            np.linalg.inv(a.cameras[name].ego_from_camera) @ b.cameras[name].ego_from_camera
            for a, b in zip(frames, changed, strict=True)
        ]
        for name in CAMERAS
    }
    for each in moves.values():
        np.testing.assert_allclose(each, [each[0]] * 3, atol=1e-12)
        np.testing.assert_allclose(np.degrees(np.arccos((np.trace(each[0][:3, :3]) - 1) / 2)), 3, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(each[0][:3, 3]), 0.2)
    assert not np.allclose(moves["CAM_FRONT"][0], moves["CAM_BACK"][0])


def test_amounts_are_those_that_were_asked() -> None:
    rng = np.random.default_rng(0)
    image = np.full((480, 640, 3), 128, np.uint8)
    points = rng.uniform(-50, 50, (20_000, 5)).astype(np.float32)
    points[:, 4] = np.repeat([0, 0.5], 10_000)
    noise = corrupt.noisy_image(image, 10, rng).astype(float) - 128
    assert noise.std() == pytest.approx(10, abs=0.1)
    moved = corrupt.noisy_points(points, 0.2, rng) - points
    assert moved[:, :3].std() == pytest.approx(0.2, abs=0.01)
    assert not moved[:, 3:].any()
    thinned = corrupt.thinned(points, 0.3, rng)
    assert len(thinned) == pytest.approx(14_000, abs=300)
    assert set(map(bytes, thinned)) <= set(map(bytes, points))
    edge = np.zeros((64, 64, 3), np.uint8)
    edge[:, 32:] = 255
    across = np.diff(corrupt.blurred(edge, 3.0)[32, :, 0].astype(float))
    middle = (across * np.arange(63)).sum() / across.sum()  # the derivative of a blurred edge is the Gaussian itself
    assert np.sqrt((across * (np.arange(63) - middle) ** 2).sum() / across.sum()) == pytest.approx(3, abs=0.1)


def test_garbled_packets_keep_directions_and_are_whole_sectors() -> None:
    rng = np.random.default_rng(1)
    points = rng.uniform(-50, 50, (50_000, 5)).astype(np.float32)
    points[:, 4] = np.repeat([0, 0.5], 25_000)
    garbled = corrupt.garbled_points(points, 0.25, rng)
    hit = (garbled != points).any(axis=1)
    assert hit.mean() == pytest.approx(0.25, abs=0.06)
    sector = np.floor(np.degrees(np.arctan2(points[:, 1], points[:, 0]) + np.pi) / 2) + 1000 * points[:, 4]
    for packet in np.unique(sector):
        assert len(set(hit[sector == packet])) == 1
    unit = [p[hit, :3] / np.linalg.norm(p[hit, :3], axis=1, keepdims=True) for p in (points, garbled)]
    np.testing.assert_allclose(*unit, atol=1e-4)
    distance = np.linalg.norm(garbled[hit, :3], axis=1)
    np.testing.assert_allclose(np.quantile(distance, [0.25, 0.5, 0.75]), [25, 50, 75], atol=2)
    assert np.isfinite(garbled).all()


@pytest.mark.parametrize("shape", [(900, 1600), (50, 83)])
def test_a_damaged_picture_is_right_up_to_the_damage(shape: tuple[int, int]) -> None:
    image = cv2.resize(np.random.default_rng(0).integers(0, 255, (5, 8, 3), np.uint8), shape[::-1])
    damaged = corrupt.damaged_image(image, 0.5, np.random.default_rng(1))
    wrong = (damaged != image).any(axis=2)
    assert 0.02 < wrong.mean() < 0.7
    for row in range(shape[0] // 16):
        blocks = wrong[row * 16 : row * 16 + 16, : shape[1] // 16 * 16].reshape(16, -1, 16).any(axis=(0, 2))
        if blocks.any():  # from the first damaged block on, to the end of the row
            assert blocks[blocks.argmax() :].mean() > 0.8
    assert not wrong[shape[0] // 16 * 16 :].any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hidden:cat", "no class 'cat'; one of car, truck"),
        ("hidden:car@2", "write hidden:CLASS@START-END"),
        ("hidden:car@4-2", "the window is @START-END"),
        ("drop", "write KIND:SENSOR"),
        ("drop:CAM_FRONT@2", "write KIND:SENSOR"),
        ("melt:lidar", "no kind 'melt'; one of drop, freeze"),
        ("drop:CAM_FRNT", "no sensor 'CAM_FRNT'; one of lidar, cameras, all, LIDAR_TOP, CAM_FRONT"),
        ("drop:lidar@4-2", "the window is @START-END"),
        ("drop:lidar@a-b", "the window is @START-END"),
        ("drop:lidar@nan-2", "the window is @START-END"),
        ("blur:lidar", "lidar cannot have blur"),
        ("blur:all", r"all cannot have blur \(LIDAR_TOP\)"),
        ("points:CAM_FRONT", "CAM_FRONT cannot have points"),
        ("noise:lidar,0.5", "'0.5': write NAME=NUMBER; options: levels, metres"),
        ("noise:lidar,metres=much", "'metres=much': write NAME=NUMBER"),
        ("noise:lidar,meters=1", "meters: is no option; options: levels, metres"),
        ("noise:lidar,metres=nan", "metres: input should be a finite number"),
        ("points:lidar,share=1.5", "share: input should be less than or equal to 1"),
        ("delay:lidar,seconds=60", "seconds: input should be less than or equal to 10"),
        ("drop:lidar,share=1", "share: is no option; options: none"),
        ("", "write KIND:SENSOR"),
    ],
)
def test_what_is_no_fault_is_named_in_one_line(text: str, message: str) -> None:
    with one_line_error(message, at=f"--fault {text}"):
        HiddenClass.parse(text, NUSCENES) if text.startswith("hidden") else Fault.parse(text, SENSORS)


@given(st.text(max_size=40) | st.from_regex(r"[a-z]{1,6}:[a-zA-Z_]{1,9}(,[a-z]*=?[0-9.e-]*)?(@[0-9.-]*)?"))
def test_any_text_is_a_fault_or_one_line(text: str) -> None:
    try:
        sensors: Sequence[str] = Fault.parse(text, SENSORS).sensors
    except InputError as error:
        sensors, text = (), str(error)
    assert sensors if re.match(r"\w+:\w+", text) else text.startswith("--fault ")


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(list(combinations(EVERY, 2))))
def test_pairs_of_faults_reach_the_network_as_finite_inputs(pair: tuple[str, str]) -> None:
    for frame in faulty(drive(2), *pair):
        for name, array in prepare(frame, SPEC).items():
            assert np.isfinite(array).all(), (pair, name)


FRAMES, WINDOW = 8, (1.0, 2.2)  # keyframes at 2 Hz, s
BEGIN, END = 2, 5  # the frames with the fault, and the first without
WATCHED = (LIDAR, "CAM_FRONT", "CAM_BACK_LEFT")  # one camera is as another
SUFFERED = [
    (kind, sensor)
    for kind in KINDS
    for sensor in WATCHED
    if SENSORS_OF_KIND.get(kind) in (None, "lidar" if sensor == LIDAR else "cameras")
]
# Health outlives what chance may hide in a frame by a second, and a tilt is the median of three frames.
LATER = {"corruption": 2, "noise": 2, "blur": 2, "points": 2, "miscalibration": 3}


def simulated(root: Path, samples: int, conditions: str) -> list[Frame]:
    """Pictures of half the height and width: large enough for all signs of faults."""
    simulate(root, 1, samples, 11, in_town(conditions), rig=with_pictures(2))
    tables = NuScenesTables(root, "v1.0-sim")
    return [tables.frame(token, sweeps=0, annotations=False) for token in tables.samples()]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drives")


@pytest.fixture(scope="module")
def long_drive(root: Path) -> list[Frame]:
    """6 s through a town by day."""
    return simulated(root / "day", 12, "clear-day-boston")


@pytest.fixture(scope="module")
def drives(root: Path, long_drive: list[Frame]) -> list[list[Frame]]:
    """The same, as long as a fault's window and what follows it, and a night in the rain."""
    return [long_drive[:FRAMES], simulated(root / "night", FRAMES, "rain-night-singapore")]


def windowed(kind: str, sensor: str) -> str:
    amount = ",degrees=3,metres=0.1" if kind == "miscalibration" else ""  # of 1 degree health says nothing
    name = "lidar" if sensor == LIDAR else sensor
    return f"{kind}:{name}{amount}@{WINDOW[0]}-{WINDOW[1]}"


def named(kind: str, sensor: str) -> set[Status]:
    """What health calls a fault; nothing where it cannot see it in so short a window."""
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


def test_healthy_drives_are_healthy(drives: list[list[Frame]], long_drive: list[Frame]) -> None:
    for frames in (long_drive, drives[1]):
        assert said(frames, [], SENSORS) == [{}] * len(frames)


def rounded(image: np.ndarray, seed: int) -> np.ndarray:
    """Each value off by -1, 0 or 1, as another implementation of a decoder or filter may round."""
    off = np.random.default_rng(seed).integers(-1, 2, image.shape, np.int8)
    return np.clip(image.astype(np.int16) + off, 0, 255).astype(np.uint8)


def recoded(image: np.ndarray, quality: int) -> np.ndarray:
    """Encoded anew, and decoded by Pillow."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=quality)
    return np.asarray(Image.open(content))


OTHERWISE: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "rounding": rounded,
    "JPEG 95": lambda image, seed: recoded(image, 95),
    "JPEG 75": lambda image, seed: recoded(image, 75),
}


def otherwise(frames: Sequence[Frame], how: str) -> list[Frame]:
    """The frames with pictures as another implementation would give them."""
    return [
        replace(
            frame,
            cameras={n: replace(c, image=OTHERWISE[how](c.image, i)) for n, c in frame.cameras.items()},
        )
        for i, frame in enumerate(frames)
    ]


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


@pytest.mark.parametrize("how", OTHERWISE)
def test_limits_are_farther_from_healthy_pictures_than_implementations_are_apart(
    drives: list[list[Frame]], how: str
) -> None:
    """At least twice as far as a sign comes nearer when another implementation decodes the same drive."""
    for frames in drives:
        recorded, other = loads(frames), loads(otherwise(frames, how))
        assert recorded.keys() == other.keys()
        for sign in recorded:
            assert np.all(other[sign] <= 1), sign
            nearer = max(0.0, (other[sign] - recorded[sign]).max())
            assert recorded[sign].max() + 2 * nearer < 1, sign


@pytest.mark.parametrize("how", OTHERWISE)
def test_faults_are_told_of_pictures_of_another_implementation(drives: list[list[Frame]], how: str) -> None:
    for frames in (otherwise(drive, how) for drive in drives):
        for kind in ("blackout", "noise", "blur", "corruption"):
            found = said(frames, [windowed(kind, "CAM_FRONT")], sensors("CAM_FRONT"))
            told = [each.get("CAM_FRONT", set()) for each in found]
            assert all(named(kind, "CAM_FRONT") <= each for each in told[BEGIN:END])
            assert not any(told[:BEGIN])


@pytest.mark.parametrize(("kind", "sensor"), SUFFERED)
def test_a_fault_is_told_from_its_first_frame_to_its_end(drives: list[list[Frame]], kind: str, sensor: str) -> None:
    """By its name, of its sensor and of no other; a tilt one frame later."""
    name, first = named(kind, sensor), BEGIN + (kind == "miscalibration")
    for frames in drives:
        found = said(frames, [windowed(kind, sensor)], SENSORS)
        assert found[:first] == [{}] * first
        for i in range(first, END):
            extra = found[i].get(sensor, set()) - name
            # The first late picture is the last one that was in time, again.
            assert extra <= ({"frozen"} if kind == "delay" and i == BEGIN else set())
            assert found[i].keys() == ({sensor} if name else set())
            assert name <= found[i].get(sensor, set())
        assert found[END + LATER.get(kind, 0) :] == [{}] * (FRAMES - END - LATER.get(kind, 0))


# Which of two faults of one sensor cannot be seen, for the other; `first` is injected first. An empty set is any fault.
HIDING = [
    # (sensors, first, second, what is hidden)
    ("any", {"drop"}, set(), "second"),  # what is not there has no other fault
    ("any", set(), {"drop"}, "first"),
    ("lidar", {"blackout"}, {"noise", "miscalibration", "points", "corruption"}, "second"),  # no returns
    ("lidar", set(), {"blackout"}, "first"),
    ("cameras", {"blackout"}, {"blur", "noise"}, "second"),  # nothing but black
    ("cameras", {"freeze", "blur", "noise", "corruption"}, {"blackout"}, "first"),
    (
        "any",
        {"blackout", "blur", "noise", "points", "corruption", "miscalibration"},
        {"freeze"},
        "first",
    ),  # shows before
    ("lidar", {"delay"}, {"freeze"}, "first"),
    ("any", {"freeze"}, {"noise", "corruption", "points"}, "first"),  # what comes is never the same
    ("lidar", {"freeze"}, {"delay"}, "first"),  # moved by the vehicle's way
    ("cameras", {"blur"}, {"noise"}, "first"),  # the last one has its way
    ("cameras", {"noise", "corruption"}, {"blur"}, "first"),
    ("lidar", {"delay"}, {"miscalibration"}, "second"),  # the ground was elsewhere
    ("lidar", {"miscalibration"}, {"delay"}, "first"),
]


def hidden(first: str, second: str, sensor: str) -> set[str]:
    return {
        {"first": first, "second": second}[what]
        for sensors, firsts, seconds, what in HIDING
        if sensors in ("any", "lidar" if sensor == LIDAR else "cameras")
        and first in (firsts or KINDS)
        and second in (seconds or KINDS)
    }


@pytest.mark.parametrize("sensor", WATCHED)
def test_two_faults_of_one_sensor_are_both_told_but_for_what_one_hides(drives: list[list[Frame]], sensor: str) -> None:
    kinds = [kind for kind, suffering in SUFFERED if suffering == sensor]
    wrong = []
    for frames, (first, second) in product(drives, permutations(kinds, 2)):
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
            wrong.append((frames[0].scene, first, second, untold, guessed, early, found[-1]))
    assert not wrong


@pytest.mark.parametrize(("degrees", "metres"), [(0.5, 0.02), (1.0, 0.1), (3.0, 0.1), (5.0, 0.3), (0.0, 0.6)])
def test_a_lidar_is_miscalibrated_where_the_ground_is_tilted_or_lifted(
    drives: list[list[Frame]], degrees: float, metres: float
) -> None:
    """The limits are those of the closed form: the plane z = 0 under the very displacement that was injected."""
    ground = np.array([[0, 0, 0, 0, 0], [10, 0, 0, 0, 0], [0, 10, 0, 0, 0]], np.float32)  # here, ahead, to the left
    limits = LidarLimits()
    for i in range(6):
        text = f"miscalibration:lidar,degrees={degrees},metres={metres}@0-{90 + i}"
        level = Frame("t", 0, "ego", np.eye(4), np.eye(4), ground, {})
        origin, *along = Fault.parse(text, SENSORS).apply(level, None).points[:, :3].astype(float)
        normal = np.cross(along[0] - origin, along[1] - origin)
        tilt, height = np.degrees(np.arccos(normal[2] / np.linalg.norm(normal))), abs(origin @ normal / normal[2])
        if min(abs(tilt / limits.tilted - 1), abs(height / limits.raised - 1)) < 0.15:
            continue  # too near the limit
        wrong = tilt > limits.tilted or height > limits.raised
        found = said(drives[0][:4], [text], sensors(LIDAR))
        assert found[-1] == ({LIDAR: {"miscalibrated"}} if wrong else {}), (tilt, height)


@pytest.mark.parametrize("degrees", [2, 3])
@pytest.mark.parametrize("name", CAMERAS)
def test_a_turned_camera_is_told_while_the_vehicle_drives(long_drive: list[Frame], name: str, degrees: int) -> None:
    """Of the displacement only what turns the optical axis can be seen."""
    found = said(long_drive, [turning(name, degrees)], SENSORS)
    told = [i for i, each in enumerate(found) if each]
    assert told
    assert 4 < told[0] <= 9  # 2.5 to 4.5 s
    assert found[-1] == {name: {"miscalibrated"}}
    assert all(each.keys() <= {name} for each in found)


def turning(name: str, degrees: float) -> str:
    """A fault, little of which turns the camera about its own axis."""
    texts = (f"miscalibration:{name},degrees={degrees}@0-{90 + i}" for i in range(99))
    return next(text for text in texts if axis_turned(text, name) > 0.9 * degrees)


def axis_turned(text: str, name: str) -> float:
    """Degrees between the optical axes before and after a fault."""
    camera = Camera(np.zeros((1, 1, 3), np.uint8), np.eye(3), np.eye(4), np.eye(4), 0)
    frame = Frame("t", 0, "ego", np.eye(4), np.eye(4), None, {name: camera})
    cosine = Fault.parse(text, SENSORS).apply(frame, None).cameras[name].ego_from_camera[2, 2]
    return float(np.degrees(np.arccos(cosine)))


def test_six_turned_cameras_are_told_or_taken_for_a_turned_lidar(long_drive: list[Frame]) -> None:
    """Each is turned in its own way, but most may agree on one turn of the LiDAR by chance."""
    found = said(long_drive, ["miscalibration:cameras,degrees=3@0-99"], SENSORS)
    assert LIDAR in found[-1] or len(found[-1]) >= 4
    assert set().union(*found[-1].values()) == {"miscalibrated"}


@pytest.mark.parametrize("degrees", [-3, -2, 2, 3])
def test_a_lidar_that_is_turned_about_the_vertical_is_told(long_drive: list[Frame], degrees: float) -> None:
    """The ground is as level as before; all cameras disagree alike, and none of them is blamed."""
    angle = np.radians(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turned = [replace(frame, points=corrupt.moved(frame.points, turn)) for frame in long_drive[:9]]  # type: ignore[arg-type]
    found = said(turned, [], SENSORS)
    assert found[:5] == [{}] * 5
    assert found[7:] == [{LIDAR: {"miscalibrated"}}] * 2


def test_the_report_lists_faults_beside_what_health_said(root: Path, long_drive: list[Frame], tmp_path: Path) -> None:
    """Through the command's own way: injected into drives that the exported network perceives."""
    texts = [
        windowed("drop", "cameras"),
        windowed("noise", LIDAR),
        "miscalibration:CAM_BACK@3.0-9.0",
        "blur:CAM_BACK@99-100",
        f"hidden:car@{WINDOW[0]}-{WINDOW[1]}",
    ]
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
    data = page_data(tmp_path / "report.html")
    assert data["faults"] == [
        dict(zip(("fault", "sensor", "frames", "detected", "delays"), each, strict=True)) for each in expected
    ]
    lanes = {
        lane["name"]: [(span["from"], span["to"], span["value"]) for span in lane["spans"]]
        for lane in data["lanes"]
        if lane["kind"] == "health"
    }
    assert lanes["CAM_FRONT"] == [(0, 1, "ok"), (2, 4, "missing"), (5, 7, "ok")]
    assert lanes[LIDAR] == [(0, 1, "ok"), (2, 5, "noisy"), (6, 7, "ok")]


def test_of_several_drives_the_longest_delay_counts(drives: list[list[Frame]]) -> None:
    """The tilt is told half a second late in each drive, whose windows count from its own first frame."""
    detections = FaultDetections([fault := Fault.parse(windowed("miscalibration", LIDAR), SENSORS)])
    for frames in drives:
        monitor = HealthMonitor(sensors(LIDAR))
        for frame in inject(detections.record_starts(frames), [fault]):
            detections.add(frame, monitor.update(frame))
    [found] = detections.listed()
    assert (found["frames"], found["detected"], found["delays"]) == (
        6,
        4,
        {"miscalibrated": pytest.approx(0.5, abs=0.02)},
    )
