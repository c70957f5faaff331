"""Sensor health: silent on real and simulated drives, right about every fault; and turned cameras and LiDARs by edges.

The edges are those of simulated boxes, whose sides and tops are known.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made_up import keyframe
from simulated import boxes, in_town, pave, with_pictures
from vocabulary import CAMERAS, RIG, SENSORS, sensors

from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.evaluation.corrupt import blur, move_points, thin_points
from perception.frame import Camera, Frame
from perception.rig import LidarLimits, Rig, RigLidar
from perception.scene.health.alignment import PARTS, REACH, SHIFTS, STEP, Alignment, fit, range_edges, unroll
from perception.scene.health.features import latest_sweep, sweep_features
from perception.scene.health.lidar_readings import ring_steps
from perception.scene.health.monitor import HealthMonitor, SensorHealth
from perception.simulate import lidar, scenario
from perception.simulate.camera import render
from perception.simulate.simulate import simulate
from perception.simulate.snapshot import Snapshot, Weather

HALF_SECOND = 500_000  # us between keyframes


@pytest.fixture(scope="module")
def foggy_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("foggy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenario, "MAX_CANDIDATES", 1)
        simulate(root, 1, 2, 5, in_town("fog-day-boston/fog-night-boston"), rig=with_pictures(2))
    return root


def frames(root: Path, version: str, selectors: list[str] | None = None, sweeps: int = 2) -> list[Frame]:
    tables = NuScenesTables(root, version)
    return [tables.frame(s, Reads(sweeps=sweeps, annotations=False)) for s in tables.samples(selectors=selectors or [])]


@pytest.fixture(scope="module")
def real(nuscenes_root: Path) -> list[Frame]:
    """Seven keyframes: four with all sensors, three with the LiDAR alone."""
    return frames(nuscenes_root, "v1.0-mini", ["scene-0103:0-7"])


def test_real_keyframes_are_healthy(real: list[Frame]) -> None:
    """And where the recording has no pictures, the cameras are missing from there on."""
    monitor, begin, end = HealthMonitor(SENSORS), real[0].timestamp, real[4].timestamp
    for frame in real:
        health = monitor.update(frame)
        assert list(health) == list(SENSORS.names)
        assert health["LIDAR_TOP"] == SensorHealth("ok", begin, "")
        expected = SensorHealth("ok", begin, "") if frame.cameras else SensorHealth("missing", end, "no picture")
        assert [health[name] for name in CAMERAS] == [expected] * 6


def test_simulated_drives_are_healthy(sim_root: Path, foggy_root: Path) -> None:
    """Day and night; clear, rain and fog."""
    seen, monitors = set(), {}
    for frame in (*frames(sim_root, "v1.0-sim"), *frames(foggy_root, "v1.0-sim")):
        monitor = monitors.setdefault((frame.location, frame.scene), HealthMonitor(SENSORS))
        assert {name: h.reason for name, h in monitor.update(frame).items()} == dict.fromkeys(SENSORS.names, "")
        seen.add((frame.conditions["weather"], frame.conditions["light"]))
    assert seen == {("clear", "day"), ("rain", "night"), ("fog", "day"), ("fog", "night")}


def test_another_lidar_brings_its_own_limits(real: list[Frame]) -> None:
    """Every twentieth point is what a small LiDAR gives: too few for an HDL-32E, and usual for its own kind."""
    small = RigLidar.model_validate({"name": "LIDAR_TOP", "health": {"min_points": 500, "broken": 0.0}})
    for each, expected in ((RigLidar(name="LIDAR_TOP"), "thinned"), (small, "ok")):
        monitor = HealthMonitor(Rig(name="car", lidars=(each,)).sensors)
        for frame in real[:4]:
            health = monitor.update(frame.select_points(slice(None, None, 20)))["LIDAR_TOP"]
            assert health.status == expected
            few = f"{-(-len(frame.keyframe_points) // 20)} points, below the rig's health.min_points 2000"
            assert health.reason == (few if expected == "thinned" else "")


def test_the_share_of_impossible_points_is_counted(real: list[Frame]) -> None:
    """On every 64th point: of these, each third one is not finite, each fifth one too far."""
    points = real[0].points.copy()
    points[:: 3 * 64, 0] = np.nan
    points[:: 5 * 64, 1] = 1e6
    sampled = np.arange(-(-len(points) // 64))
    share = ((sampled % 3 == 0) | (sampled % 5 == 0)).mean()
    assert sweep_features(replace(real[0], points=points), LidarLimits()).impossible == pytest.approx(share)
    assert sweep_features(real[0], LidarLimits()).impossible == 0


def test_the_latest_sweep_is_that_of_the_frame_in_any_order_of_the_points(real: list[Frame]) -> None:
    """Or the next one, where the keyframe's has no return."""
    earlier = real[2].sweep_of_point > 0
    mixed = real[2].select_points(np.random.default_rng(0).permutation(len(earlier)))
    for frame, expected in ((mixed, ~earlier), (real[2].select_points(earlier), real[2].sweep_of_point == 1)):
        found, there = latest_sweep(frame), real[2].points[expected]
        assert {*map(bytes, found)} == {*map(bytes, there)}
        assert sweep_features(frame, LidarLimits()).points == len(there)


C = "CAM_BACK"


def other(frame: Frame, **changes: object) -> Frame:
    """With changes of a camera."""
    return replace(frame, cameras={**frame.cameras, C: replace(frame.cameras[C], **changes)})


def fewer(frame: Frame, lost: float) -> Frame:
    return thin_points(frame, lost, np.random.default_rng(2))


DARK, BRIGHT = "nearly all pixels are below 10 of 255", "nearly all pixels are above 245 of 255"
# Frames instead of the last of two; the status, and words of the reason.
FAULTS: list[tuple[Callable[[Frame, Frame], Frame], str, str]] = [
    (lambda _, now: other(now, image=now.cameras[C].image // 32), "dark", DARK),
    (lambda _, now: other(now, image=np.full_like(now.cameras[C].image, 255)), "saturated", BRIGHT),
    (lambda _, now: other(now, image=blur(now.cameras[C].image, 3)), "blurred", "no fine texture"),
    # The same picture, or another one that is stamped as before.
    (lambda last, now: other(now, image=last.cameras[C].image), "frozen", "the same picture for 0.5"),
    (lambda last, now: other(now, timestamp=last.cameras[C].timestamp), "frozen", "the same picture for 0.5"),
    (lambda _, now: other(now, timestamp=now.timestamp + 200_000), "late", "taken 0.20 s after the frame"),
]


@pytest.mark.parametrize(("instead", "status", "reason"), FAULTS)
def test_a_fault_of_a_real_camera_is_told_at_once_and_of_no_other_sensor(real, instead, status, reason):
    """At the third frame, and its end within a second."""
    monitor, (_, before, now) = HealthMonitor(SENSORS), real[:3]
    for frame in real[:2]:
        monitor.update(frame)
    health = monitor.update(instead(before, now))
    assert (health[C].status, health[C].since) == (status, now.timestamp)
    assert reason in health[C].reason
    assert {health[other].status for other in SENSORS.names if other != C} == {"ok"}
    later = replace(before.select_points(slice(9, None)), timestamp=now.timestamp + 2 * HALF_SECOND)
    moved = {n: replace(c, timestamp=later.timestamp, image=c.image[:, ::-1]) for n, c in later.cameras.items()}
    assert monitor.update(replace(later, cameras=moved))[C] == SensorHealth("ok", later.timestamp, "")


def test_a_camera_slower_than_the_frames_is_not_frozen(real: list[Frame]) -> None:
    """20 frames and 5 pictures a second; at the second picture the camera, which alone is watched, gets stuck."""
    monitor, name, told = HealthMonitor(sensors("CAM_FRONT")), "CAM_FRONT", []
    for i in range(14):
        now = real[0].timestamp + 50_000 * i
        picture = real[min(i // 4, 1)].cameras[name].image
        camera = replace(real[0].cameras[name], image=picture, timestamp=now - 50_000 * (i % 4))
        health = monitor.update(replace(real[0], timestamp=now, cameras={**real[0].cameras, name: camera}))
        assert list(health) == [name]
        told.append(health[name])
    assert [health.status for health in told] == ["ok"] * 10 + ["frozen"] * 4
    assert [health.reason for health in told[-2:]] == ["the same picture for 0.40 s", "the same picture for 0.45 s"]
    assert told[-1].since == real[0].timestamp + 500_000


def test_fewer_points_for_long_become_usual(real: list[Frame]) -> None:
    """A drive out of town has fewer echoes, which is no fault for ever."""
    monitor, rng = HealthMonitor(sensors("LIDAR_TOP")), np.random.default_rng(0)
    told = []
    for i in range(300):
        points = rng.uniform(-50, 50, (20_000 if i < 10 else 8_000, 5)).astype(np.float32)
        points[:, 4] = 0
        frame = replace(real[0], timestamp=i * HALF_SECOND, **keyframe(points))
        told.append(monitor.update(frame)["LIDAR_TOP"])
    assert [told[i].status for i in (9, 10, 40, 299)] == ["ok", "thinned", "thinned", "ok"]
    assert told[10].reason == "8000 points, where 19900 were usual"


clouds = arrays(np.float32, st.tuples(st.integers(0, 40), st.just(5)), elements=st.floats(width=32))


@settings(max_examples=150, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 200), st.integers(1, 200)), min_size=1, max_size=4),
    clouds=st.lists(clouds, min_size=1, max_size=4),
    times=st.lists(st.integers(0, 2**53), min_size=1, max_size=12),
)
def test_no_input_is_too_much(shapes: list[tuple[int, int]], clouds: list[np.ndarray], times: list[int]) -> None:
    """Any sizes, NaN and infinity, times to and fro: a word for each sensor, and no more memory than at first."""
    monitor, rng = HealthMonitor(sensors("LIDAR_TOP", "CAM_FRONT")), np.random.default_rng(0)
    for i, now in enumerate(times):
        image = rng.integers(0, 255, (*shapes[i % len(shapes)], 3), np.uint8)
        camera = Camera(image, np.eye(3), np.eye(4), np.eye(4), times[-i])
        points = np.repeat(clouds[i % len(clouds)], 1 + 50 * (i % 2), axis=0)
        frame = Frame("t", now, "ego", np.eye(4), np.eye(4), cameras={"CAM_FRONT": camera}, **keyframe(points))
        health = monitor.update(frame)
        assert list(health) == ["LIDAR_TOP", "CAM_FRONT"]
        for each in health.values():
            assert (each.status == "ok") == (not each.findings)
            assert each.since in times
    assert len(monitor._lidars[0]._ground_planes) <= 64
    assert len(monitor._alignment._fits) <= 1


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("drive", ["real", "sim_root", "foggy_root"])
def test_points_lost_from_the_first_frame_on_are_told(drive: str, share: float, request: pytest.FixtureRequest) -> None:
    """Where no usual count is known yet, by the gaps in the scan; and no more when all are there again."""
    given = request.getfixturevalue(drive)
    given = given[:3] if drive == "real" else frames(given, "v1.0-sim")
    monitors: dict[str, HealthMonitor] = {}
    for frame in given:
        monitor = monitors.setdefault(frame.scene, HealthMonitor(sensors("LIDAR_TOP")))
        told = monitor.update(fewer(frame, share))["LIDAR_TOP"]
        assert told.words == "thinned"
        assert re.fullmatch(r"gaps: 0\.\d\d of .* below the rig's health\.broken 0\.6", told.reason)
    restored = monitors[given[0].scene].update(replace(given[0], timestamp=given[-1].timestamp + 2 * HALF_SECOND))
    assert restored["LIDAR_TOP"].status == "ok"


@pytest.mark.parametrize("kept", [1.0, 0.8, 0.4])
@pytest.mark.parametrize(("beams", "steps"), [(16, 1800), (32, 1090), (64, 2048)])
def test_the_share_without_gaps_is_that_of_two_neighbours_at_once(beams: int, steps: int, kept: float) -> None:
    """Rings on flat ground 1.8 m below a LiDAR over the vehicle's origin, of which each return is kept by chance."""
    elevation = np.radians(np.linspace(-25, -5, beams))
    azimuth = 2 * np.pi * np.arange(steps) / steps
    away = -1.8 / np.tan(elevation)
    x, y = away[:, None] * np.cos(azimuth), away[:, None] * np.sin(azimuth)
    points = np.stack([x, y, *[np.zeros_like(x)] * 3], axis=2).reshape(-1, 5).astype(np.float32)
    points = points[np.random.default_rng(0).random(len(points)) < kept]
    frame = Frame("t", 0, "ego", np.eye(4), np.eye(4), cameras={}, **keyframe(points))
    found = ring_steps(frame, LidarLimits())[0]
    assert found == pytest.approx(kept**2, abs=0.05)


def seconds(call: Callable[[], object]) -> float:
    """Of processor time."""
    start = time.process_time()
    call()
    return time.process_time() - start


def test_health_takes_less_than_a_quarter_of_decoding(real: list[Frame]) -> None:
    """Of what this machine needs for the six pictures of a frame, 1600 x 900.

    A look at three cameras, of which a frame of a drive has one at most, of pictures that no cache holds; and all else
    beside ten sweeps of 30,000 points.
    """
    contents = [cv2.imencode(".jpg", camera.image)[1] for camera in real[0].cameras.values()]
    decoding = min(seconds(lambda: [cv2.imdecode(each, cv2.IMREAD_COLOR) for each in contents]) for _ in range(5))
    alignment, looks = Alignment(LidarLimits()), []
    signs = [sweep_features(frame, LidarLimits()) for frame in real[:4]]
    for i in range(24):
        place = real[i % 4].global_from_ego.copy()
        place[0, 3] += 100 * i
        frame = replace(real[i % 4], timestamp=HALF_SECOND * i, global_from_ego=place)
        looks.append(seconds(lambda: alignment.update(frame, signs[i % 4], CAMERAS)))  # noqa: B023 - called at once
    assert sum(each.frames for each in alignment._fits.values()) == 3 * 24
    points = np.concatenate([real[3].points] * 15)[:300_000]  # type: ignore[list-item]
    points[:, 4] = np.repeat(0.05 * np.arange(10), 30_000)
    of_points = {"points": points, "sweep_of_point": np.repeat(np.arange(10, dtype=np.uint8), 30_000)}
    monitor, given = HealthMonitor(SENSORS), [replace(real[i % 4], timestamp=i, **of_points) for i in range(20)]
    rest = min(seconds(lambda: monitor.update(frame)) for frame in given)  # noqa: B023
    assert max(min(looks), rest) < decoding / 4


TOP, MOUNTED = RIG.lidars[0], {each.name: each for each in with_pictures(7).cameras if "BACK_" not in each.name}
LIDAR_AT = TOP.ego_from_sensor[:3, 3]
WAYS = [4.0 * i for i in range(8)]  # m along x, of the frames of a drive
Turn = tuple[float, float, float]  # a vector in degrees


@cache
def scene(seed: int) -> Snapshot:
    """Boxes on the ground along the way."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-30, 70, 60), rng.choice([-1, 1], 60) * rng.uniform(5, 30, 60)
    length, width, height = *rng.uniform(0.8, 4, (2, 60)), rng.uniform(1, 4, 60)
    solids = boxes(np.column_stack([x, y, height / 2, length, width, height, np.zeros(60)]))
    solids = replace(solids, colours=np.repeat(rng.choice([10, 40, 150, 190], (60, 1)), 3, axis=1).astype(np.uint8))
    return Snapshot(solids, pave(), np.zeros((60, 3)), Weather())


def gone(way: float) -> np.ndarray:
    """The pose of a vehicle that has gone so far (m) along x."""
    pose = np.eye(4)
    pose[0, 3] = way
    return pose


def turn(x: float, y: float, z: float) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = cv2.Rodrigues(np.radians([x, y, z]))[0]
    return pose


def sweep(snapshot: Snapshot, way: float) -> np.ndarray:
    """(N, 5) in the vehicle's frame."""
    points = lidar.sweep(lambda _: snapshot, lambda _: gone(way), 0.0, TOP, RIG.body, np.random.default_rng(0)).points
    found = points[:, :3] @ TOP.ego_from_sensor[:3, :3].T + LIDAR_AT
    return np.pad(found.astype(np.float32), ((0, 0), (0, 2)))


@cache
def swept(seed: int, way: float) -> np.ndarray:
    return sweep(scene(seed), way)


@cache
def picture(seed: int, way: float, name: str, turned: Turn) -> np.ndarray:
    """(H, W, 3) of a camera that is turned against its mounting, about its own axes."""
    camera, rng = MOUNTED[name], np.random.default_rng([seed, int(way)])
    pose = gone(way) @ camera.ego_from_sensor @ turn(*turned)
    return render(scene(seed), camera.intrinsics, pose, camera.size, rng).image


def frame(way: float, turned: dict[str, Turn], seed: int = 1, names: Sequence[str] = tuple(MOUNTED)) -> Frame:
    """What a vehicle sees that has gone so far (m) along x at 8 m/s."""
    pose, now = gone(way), round(1e6 * way / 8)
    images = ((MOUNTED[name], picture(seed, way, name, turned.get(name, (0, 0, 0)))) for name in names)
    cameras = {c.name: Camera(image, c.intrinsics, c.ego_from_sensor, pose, now) for c, image in images}
    return Frame("t", now, "ego", pose, pose, cameras=cameras, **keyframe(swept(seed, way)))


def told(frames: Sequence[Frame], alignment: Alignment | None = None) -> Alignment:
    alignment = alignment or Alignment(LidarLimits())
    for each in frames:
        alignment.update(each, sweep_features(each, LidarLimits()), list(each.cameras))
    return alignment


@settings(max_examples=20, deadline=None)
@given(
    width=st.integers(150, 400).map(lambda half: 2 * half),
    height=st.integers(200, 500),
    focal=st.floats(0.4, 1.5),
    along=st.floats(-0.18, 0.18),
    down=st.floats(-0.15, 0.15),
)
def test_a_picture_is_unrolled_as_by_a_pinhole(width, height, focal, along, down):
    """A ramp of grey, which interpolation keeps: each pixel of the cylinder has the grey where its ray meets it."""
    centre, focal = np.array([width / 2 + 3.3, height / 2 - 2.7]), focal * width
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    ramp = 128 + along * (u - width / 2) + down * (v - height / 2)
    image = np.repeat(np.rint(ramp)[:, :, None], 3, axis=2).astype(np.uint8)
    intrinsics = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1]])
    (azimuth, slope), found = unroll(Camera(image, intrinsics, np.eye(4), np.eye(4), 0))
    azimuths, slopes = azimuth + STEP * np.arange(found.shape[1]), slope + STEP * np.arange(found.shape[0])
    across = np.broadcast_to(focal * np.tan(azimuths) + centre[0], found.shape)
    below = focal * slopes[:, None] / np.cos(azimuths) + centre[1]
    every = max(1, round(focal * STEP / 1.5))  # rows that are looked at
    inside = (across >= 1) & (across <= width - 2) & (below >= every) & (below <= height - 1 - every)
    assert inside.any()
    expected = ramp[0, 0] + along * across + down * below
    # The picture, the mean of two columns and the interpolation are rounded; places to 1/32 of a pixel.
    bound = 3 * 0.5 + (2 * abs(along) + every * abs(down)) / 64 + 1e-6
    assert np.abs(found - expected)[inside].max() <= bound


@settings(max_examples=10, deadline=None)
@given(pitch=st.floats(-4, 4), yaw=st.floats(-4, 4), seed=st.integers(0, 3))
def test_edges_fit_best_where_the_camera_was_turned_to(pitch: float, yaw: float, seed: int) -> None:
    """The optical axis of the calibration, seen by the camera as it really looks, says by how much."""
    total = np.zeros((SHIFTS, SHIFTS))
    for way in WAYS[:3]:
        seen = frame(way, {"CAM_FRONT": (pitch, yaw, 0)}, seed, ["CAM_FRONT"])
        edges = range_edges(latest_sweep(seen)[:, :3], LIDAR_AT, np.zeros(3), LidarLimits())
        front = seen.cameras["CAM_FRONT"]
        parts, points = fit(front, np.linalg.inv(front.ego_from_camera), edges, LidarLimits())
        assert parts.shape == (PARTS, SHIFTS, SHIFTS)
        assert points > 20
        total += parts.sum(axis=0)
    down, right = STEP * (np.array(np.unravel_index(total.argmax(), total.shape)) - REACH)
    axis = turn(pitch, yaw, 0)[:3, :3].T @ [0, 0, 1]
    assert np.degrees(right - np.arctan2(axis[0], axis[2])) == pytest.approx(0, abs=0.75)
    assert np.degrees(down - axis[1]) == pytest.approx(0, abs=0.75)


def test_sides_and_tops_are_those_of_the_box() -> None:
    """One box ahead: its corners' azimuths and its upper edge, seen from the LiDAR, to a beam."""
    tower = (35, 30, 15, 10, 20, 30, 0)  # elsewhere, so that the box is not where the view ends
    points = sweep(Snapshot(boxes([(20, 0.5, 1.25, 2, 3, 2.5, 0), tower]), pave(), np.zeros((2, 3)), Weather()), 0.0)
    sides, tops = range_edges(points[:, :3], LIDAR_AT, np.zeros(3), LidarLimits())
    sides, tops = (each[np.abs(each[:, 1]) < 5] - LIDAR_AT for each in (sides, tops))
    corners = [np.degrees(np.arctan2(y, 19 - LIDAR_AT[0])) for y in (-1.0, 2.0)]
    to_corner = np.abs(np.degrees(np.arctan2(sides[:, 1], sides[:, 0]))[:, None] - corners)
    assert set(to_corner.argmin(axis=1)) == {0, 1}
    assert to_corner.min(axis=1).max() < 0.4
    away = np.hypot(tops[:, 0], tops[:, 1])
    below = np.degrees(np.arctan2(2.5 - LIDAR_AT[2], away) - np.arctan2(tops[:, 2], away))
    assert len(tops) >= 15
    assert below.min() > -0.05
    assert below.max() < 1.4


TURNED, STRAIGHT = (1.5, 2.0, 0.3), (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("cameras", "lidar"),
    [
        ({}, STRAIGHT),
        ({name: (0.4 * (-1) ** i, 0.4, 0.0) for i, name in enumerate(MOUNTED)}, STRAIGHT),  # nearly as it should
        *(({name: TURNED}, STRAIGHT) for name in MOUNTED),
        ({}, (0.0, 0.0, 3.0)),  # what all cameras have in common is the LiDAR's
        ({}, (0.0, 0.0, -2.0)),
        ({}, (0.87, -0.87, 2.18)),
        ({"CAM_FRONT": (0.0, 3.0, 0.0)}, (0.0, 0.0, 3.0)),
    ],
)
def test_what_is_turned_is_told_and_by_how_much(cameras: dict[str, Turn], lidar: Turn) -> None:
    seen = [frame(way, cameras) for way in WAYS]
    alignment = told([move_points(each, turn(*lidar)) for each in seen])
    expected = {name: np.hypot(*turned[:2]) for name, turned in cameras.items()}  # not about its own axis
    expected = {name: pytest.approx(degrees, abs=0.7) for name, degrees in expected.items() if degrees > 1}
    assert alignment.cameras == expected
    assert alignment.lidar == (None if lidar == STRAIGHT else pytest.approx(np.linalg.norm(lidar), abs=0.7))


def test_a_turned_camera_that_looks_right_again_is_taken_back() -> None:
    alignment = told([frame(way, {"CAM_FRONT": TURNED}) for way in WAYS])
    assert alignment.cameras.keys() == {"CAM_FRONT"}
    again = [frame(way, {}) for way in (*WAYS[::-1], *WAYS)]
    told([replace(each, timestamp=10_000_000 + HALF_SECOND * i) for i, each in enumerate(again)], alignment)
    assert alignment.cameras == {}


def test_the_same_edges_again_say_nothing_new() -> None:
    """A vehicle that stands for a minute has looked at every camera once."""
    still = frame(0.0, {"CAM_FRONT": TURNED})
    alignment = told([replace(still, timestamp=still.timestamp + HALF_SECOND * i) for i in range(120)])
    assert {name: each.frames for name, each in alignment._fits.items()} == dict.fromkeys(MOUNTED, 1)
    assert alignment.cameras == {}
