"""Faults: what each does to which sensor and when, the same every time, and what is no fault is named."""

import re
import weakref
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import pytest
from commands import one_line_error
from hypothesis import given
from hypothesis import strategies as st
from vocabulary import CAMERAS, LIDAR, NUSCENES, RIG, SENSORS

from deploy.golden import synthetic_frame
from deploy.replay.faults import KINDS, Fault, HiddenClass, inject
from perception.errors import InputError
from perception.evaluation import corrupt
from perception.frame import PER_POINT, Frame
from perception.rig import Rig

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
        frame, place, now = recorded(i), pose(4.0 * i), i * 500_000
        cameras = {
            name: replace(camera, image=camera.image[:96, :160], timestamp=now, global_from_ego=place)
            for name, camera in frame.cameras.items()
        }
        own = {"token": f"{scene}{i}", "scene": scene, "timestamp": 7_000_000 + now, "cameras": cameras}
        made.append(replace(frame, global_from_reference=place, global_from_ego=place, **own))
    return made


def faulty(frames: Sequence[Frame], *texts: str) -> list[Frame]:
    return list(inject(frames, [Fault.parse(text, SENSORS) for text in texts]))


def equal(a: Frame, b: Frame, sensor: str) -> bool:
    if sensor == LIDAR:
        return np.array_equal(a.points, b.points)  # type: ignore[arg-type] - None as well
    if sensor not in a.cameras or sensor not in b.cameras:
        return (sensor in a.cameras) == (sensor in b.cameras)
    parts = ("image", "ego_from_camera", "global_from_ego", "timestamp")
    return all(np.array_equal(getattr(a.cameras[sensor], part), getattr(b.cameras[sensor], part)) for part in parts)


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


TWO = Rig.model_validate({"name": "two", "lidars": [{"name": "LIDAR"}, {"name": "rear"}]}).sensors


@pytest.mark.parametrize(
    ("text", "hit"),
    [(f"{kind}:lidar", ("LIDAR", "rear")) for kind in ("freeze", "delay", "noise", "miscalibration", "points")]
    + [(f"{kind}:LIDAR", ("LIDAR",)) for kind in ("drop", "blackout", "freeze", "delay", "noise", "points")]
    + [("points:rear", ("rear",)), ("drop:lidar", ("LIDAR", "rear"))],
)
def test_points_keep_their_sweep_and_lidar_under_a_fault(text: str, hit: tuple[str, ...]) -> None:
    """Their intensity is their number, which tells both; a LiDAR may be called LIDAR, whose group is `lidar`.

    They stay in the order of their times, and those of another LiDAR stay as they are.
    """
    fault, number = Fault.parse(text, TWO), np.arange(16_000)
    assert fault.sensors == hit
    own = {"sweep_of_point": (number % 3).astype(np.uint8), "lidar_of_point": (number % 2).astype(np.uint8)}
    given = [
        replace(each, points=np.column_stack([each.points[:, :3], number, number // 4000]).astype(np.float32), **own)
        for each in drive(3)
    ]
    after = [*inject(given, [fault])][2]
    if text == "drop:lidar":
        assert [getattr(after, name) for name in PER_POINT] == [None] * 4
        return
    found = after.points[:, 3].astype(int)
    np.testing.assert_array_equal(after.sweep_of_point, found % 3)
    np.testing.assert_array_equal(after.lidar_of_point, found % 2)
    assert (np.diff(after.points[:, 4]) >= 0).all()
    for i, name in enumerate(TWO.lidars):
        assert np.array_equal(after.of_lidar(i).points, given[2].of_lidar(i).points) == (name not in hit)
    assert after.has_lidar(0) == (fault.text not in ("drop:LIDAR", "blackout:LIDAR"))


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
    def in_world(frame: Frame) -> np.ndarray:
        pose = frame.global_from_reference
        return frame.points[:, :3] @ pose[:3, :3].T + pose[:3, 3]

    frames = drive()
    for now, old in zip(faulty(frames, "delay:all,seconds=0.9@1.0-9")[2:], frames, strict=False):
        # 0.9 s late: what was recorded 1.0 s ago.
        np.testing.assert_allclose(in_world(now), in_world(old), atol=1e-4)
        np.testing.assert_allclose(now.points[:, 4], old.points[:, 4] + 1.0, atol=1e-6)
        assert now.cameras["CAM_FRONT"] is old.cameras["CAM_FRONT"]
    early = faulty(frames, "delay:all,seconds=0.9")
    assert [frame.points is None for frame in early] == [True, True, False, False, False, False]
    assert [len(frame.cameras) for frame in early] == [0, 0, 6, 6, 6, 6]


def test_memory_of_a_delay_ends() -> None:
    """Of an endless drive only the frames within the delay are held."""
    alive: list[weakref.ref[Frame]] = []

    def endless():
        for frame in drive(1) * 40:
            later = replace(frame, timestamp=len(alive) * 500_000)
            alive.append(weakref.ref(later))
            yield later

    for _ in inject(endless(), [Fault.parse(t, SENSORS) for t in ("delay:all,seconds=2", "freeze:cameras@3-99")]):
        assert sum(ref() is not None for ref in alive) <= 8


def test_a_miscalibration_stays_and_is_that_of_one_camera() -> None:
    frames = drive(3)
    changed = faulty(frames, "miscalibration:cameras,degrees=3,metres=0.2")
    poses = [[[f.cameras[name].ego_from_camera for f in each] for name in CAMERAS] for each in (frames, changed)]
    moves = np.linalg.inv(poses[0]) @ poses[1]  # (cameras, frames, 4, 4)
    np.testing.assert_allclose(moves, np.repeat(moves[:, :1], 3, axis=1), atol=1e-12)
    cosines = (np.trace(moves[:, 0, :3, :3], axis1=1, axis2=2) - 1) / 2
    np.testing.assert_allclose(np.degrees(np.arccos(cosines)), 3, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(moves[:, 0, :3, 3], axis=1), 0.2)
    assert not np.allclose(moves[0, 0], moves[1, 0])


def test_amounts_are_those_that_were_asked() -> None:
    rng = np.random.default_rng(0)
    image = np.full((480, 640, 3), 128, np.uint8)
    points = rng.uniform(-50, 50, (20_000, 5)).astype(np.float32)
    frame = replace(recorded(0), points=points, sweep_of_point=np.repeat(np.array([0, 1], np.uint8), 10_000))
    noise = corrupt.noisy_image(image, 10, rng).astype(float) - 128
    assert noise.std() == pytest.approx(10, abs=0.1)
    moved = corrupt.noisy_points(frame, 0.2, rng).points - points
    assert moved[:, :3].std() == pytest.approx(0.2, abs=0.01)
    assert not moved[:, 3:].any()
    thinned = corrupt.thin_points(frame, 0.3, rng)
    assert len(thinned.points) == pytest.approx(14_000, abs=300)
    kept = np.isin(points.view("S20"), thinned.points.view("S20"))[:, 0]
    np.testing.assert_array_equal(thinned.points, points[kept])
    np.testing.assert_array_equal(thinned.sweep_of_point, frame.sweep_of_point[kept])
    edge = np.zeros((64, 64, 3), np.uint8)
    edge[:, 32:] = 255
    across = np.diff(corrupt.blur(edge, 3.0)[32, :, 0].astype(float))
    middle = (across * np.arange(63)).sum() / across.sum()  # the derivative of a blurred edge is the Gaussian itself
    assert np.sqrt((across * (np.arange(63) - middle) ** 2).sum() / across.sum()) == pytest.approx(3, abs=0.1)


def test_garbled_packets_keep_directions_and_are_whole_sectors() -> None:
    """Each of one sweep of one LiDAR, though every point has a time of its own."""
    rng = np.random.default_rng(1)
    points = rng.uniform(-50, 50, (50_000, 5)).astype(np.float32)
    sweeps, lidars = np.repeat(np.array([0, 1], np.uint8), 25_000), rng.integers(0, 2, 50_000).astype(np.uint8)
    frame = replace(recorded(0), points=points, sweep_of_point=sweeps, lidar_of_point=lidars)
    garbled = corrupt.garble_points(frame, 0.25, rng).points
    hit = (garbled != points).any(axis=1)
    assert hit.mean() == pytest.approx(0.25, abs=0.06)
    sector = np.floor(np.degrees(np.arctan2(points[:, 1], points[:, 0]) + np.pi) / 2).astype(int)
    packet = sector + 200 * (sweeps + 2 * lidars.astype(int))
    shares = np.bincount(packet, hit) / np.maximum(np.bincount(packet), 1)
    assert {*shares.tolist()} == {0.0, 1.0}
    assert all(len({*shares[part : part + 180].tolist()}) == 2 for part in (0, 200, 400, 600))
    unit = [p[hit, :3] / np.linalg.norm(p[hit, :3], axis=1, keepdims=True) for p in (points, garbled)]
    np.testing.assert_allclose(*unit, atol=1e-4)
    distance = np.linalg.norm(garbled[hit, :3], axis=1)
    np.testing.assert_allclose(np.quantile(distance, [0.25, 0.5, 0.75]), [25, 50, 75], atol=2)
    assert np.isfinite(garbled).all()


@pytest.mark.parametrize("shape", [(900, 1600), (50, 83)])
def test_a_damaged_picture_is_right_up_to_the_damage(shape: tuple[int, int]) -> None:
    image = cv2.resize(np.random.default_rng(0).integers(0, 255, (5, 8, 3), np.uint8), shape[::-1])
    damaged = corrupt.damage_image(image, 0.5, np.random.default_rng(1))
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
        ("drop:CAM_FRONT@2", "write KIND:SENSOR"),
        ("melt:lidar", "no kind 'melt'; one of drop, freeze"),
        ("drop:CAM_FRNT", "no sensor 'CAM_FRNT'; one of lidar, cameras, all, LIDAR_TOP, CAM_FRONT"),
        ("drop:lidar@4-2", "the window is @START-END"),
        ("blur:lidar", "lidar cannot have blur"),
        ("points:CAM_FRONT", "CAM_FRONT cannot have points"),
        ("noise:lidar,0.5", "'0.5': write NAME=NUMBER; options: levels, metres"),
        ("noise:lidar,meters=1", r"meters: is not a known key; did you mean metres\?; options: levels, metres"),
        ("points:lidar,share=1.5", "share: input should be less than or equal to 1"),
        ("drop:lidar,share=1", "share: is not a known key; options: none"),
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
