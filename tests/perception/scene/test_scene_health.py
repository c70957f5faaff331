"""Sensor health: silent on real and simulated drives in all conditions, and right about every fault put into them."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from vocabulary import CAMERAS, SENSORS, sensors

from deploy.replay.faults import Fault, inject
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Camera, Frame
from perception.rig import Rig, RigLidar
from perception.scene.health.alignment import Alignment
from perception.scene.health.features import sweep_features
from perception.scene.health.limits import LidarLimits
from perception.scene.health.monitor import HealthMonitor, SensorHealth
from perception.scene.health.scan_gaps import ring_continuity
from perception.simulate.simulate import simulate

HALF_SECOND = 500_000  # us between keyframes


@pytest.fixture(scope="module")
def foggy_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("foggy")
    simulate(root, 2, 1, seed=5, condition_names=["fog-day-boston", "fog-night-singapore"])
    return root


def frames(root: Path, version: str, selectors: list[str] | None = None, sweeps: int = 2) -> list[Frame]:
    tables = NuScenesTables(root, version)
    return [tables.frame(s, sweeps=sweeps, annotations=False) for s in tables.samples(selectors=selectors or [])]


@pytest.fixture(scope="module")
def real(nuscenes_root: Path) -> list[Frame]:
    """Seven keyframes: four with all sensors, three with the LiDAR alone."""
    return frames(nuscenes_root, "v1.0-mini", ["scene-0103:0-7"])


@pytest.fixture(scope="module")
def rainy_night(sim_root: Path) -> list[Frame]:
    return frames(sim_root, "v1.0-sim", ["scene-0002"])


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
    seen = set()
    for root in (sim_root, foggy_root):
        monitors: dict[str, HealthMonitor] = {}
        for frame in frames(root, "v1.0-sim"):
            monitor = monitors.setdefault(frame.scene, HealthMonitor(SENSORS))
            assert {name: h.reason for name, h in monitor.update(frame).items()} == dict.fromkeys(SENSORS.names, "")
            seen.add((frame.conditions["weather"], frame.conditions["light"]))
    assert seen == {("clear", "day"), ("rain", "night"), ("fog", "day"), ("fog", "night")}


def test_another_lidar_brings_its_own_limits(real: list[Frame]) -> None:
    """Every twentieth point is what a small LiDAR gives: too few for an HDL-32E, and usual for its own kind."""
    small = RigLidar.model_validate({"name": "LIDAR_TOP", "health": {"min_points": 500, "broken": 0.0}})
    for lidar, expected in ((RigLidar(name="LIDAR_TOP"), "thinned"), (small, "ok")):
        monitor = HealthMonitor(Rig(name="car", lidars=(lidar,)).sensors)
        for frame in real[:4]:
            health = monitor.update(replace(frame, points=frame.points[::20]))
            assert health["LIDAR_TOP"].status == expected


def with_camera(frame: Frame, name: str, **changes: object) -> Frame:
    return replace(frame, cameras={**frame.cameras, name: replace(frame.cameras[name], **changes)})


def pictured(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[list[Frame], int, str], Frame]:
    """The fault that changes a camera's picture."""
    return lambda drive, i, name: with_camera(drive[i], name, image=change(drive[i].cameras[name].image))


def thinned(share: float) -> Callable[[list[Frame], int, str], Frame]:
    def apply(drive: list[Frame], i: int, name: str) -> Frame:
        points = drive[i].points
        return replace(drive[i], points=points[np.random.default_rng(i).random(len(points)) < share])

    return apply


def corrupted(drive: list[Frame], i: int, name: str) -> Frame:
    points = np.array(drive[i].points)
    bits = points.view(np.uint32)
    rng = np.random.default_rng(i)
    hit = rng.choice(len(points), len(points) // 20, replace=False)  # every 20th packet
    bits[hit] ^= rng.integers(0, 2**32, (len(hit), 5), np.uint32)
    bits[hit, 4] = 0
    return replace(drive[i], points=points)


def older(drive: list[Frame], i: int, name: str) -> Frame:
    points = np.array(drive[i].points)
    points[:, 4] += 0.3
    return replace(drive[i], points=points)


def as_before(drive: list[Frame], i: int, name: str) -> Frame:
    return replace(drive[i], cameras={**drive[i].cameras, name: drive[1].cameras[name]})


CAMERA_FAULTS: dict[str, tuple[Callable[[list[Frame], int, str], Frame], str, str]] = {
    "gone": (
        lambda drive, i, name: replace(
            drive[i], cameras={n: camera for n, camera in drive[i].cameras.items() if n != name}
        ),
        "missing",
        "no picture",
    ),
    "black": (pictured(np.zeros_like), "dark", "nearly all pixels are below 10 of 255"),
    "almost black": (pictured(lambda image: image // 32), "dark", "nearly all pixels are below 10 of 255"),
    "white": (pictured(lambda image: np.full_like(image, 255)), "saturated", "nearly all pixels are above 245 of 255"),
    "grey": (pictured(lambda image: np.full_like(image, 128)), "blurred", "no fine texture"),
    "blur": (pictured(lambda image: cv2.GaussianBlur(image, (0, 0), 3)), "blurred", "no fine texture"),
    "strong blur": (pictured(lambda image: cv2.GaussianBlur(image, (0, 0), 9)), "blurred", "no fine texture"),
    "the same message again": (as_before, "frozen", "the same picture for 0.5"),
    "the same picture, stamped anew": (
        lambda drive, i, name: with_camera(drive[i], name, image=drive[1].cameras[name].image),
        "frozen",
        "the same picture for 0.5",
    ),
    "another picture, stamped as before": (
        lambda drive, i, name: with_camera(drive[i], name, timestamp=drive[1].cameras[name].timestamp),
        "frozen",
        "the same picture for 0.5",
    ),
    "delay": (
        lambda drive, i, name: with_camera(drive[i], name, timestamp=drive[i].timestamp - 300_000),
        "late",
        "taken 0.30 s before the frame",
    ),
    "clock ahead": (
        lambda drive, i, name: with_camera(drive[i], name, timestamp=drive[i].timestamp + 200_000),
        "late",
        "taken 0.20 s after the frame",
    ),
}
LIDAR_FAULTS: dict[str, tuple[Callable[[list[Frame], int, str], Frame], str, str]] = {
    "gone": (lambda drive, i, name: replace(drive[i], points=None), "missing", "no points"),
    "empty": (
        lambda drive, i, name: replace(drive[i], points=np.zeros((0, 5), np.float32)),
        "missing",
        "a sweep without a return",
    ),
    "frozen": (
        lambda drive, i, name: replace(drive[i], points=drive[1].points),
        "frozen",
        "the same points for 0.5",
    ),
    "delay": (older, "late", "the newest point is 0.30 s older than the frame"),
    "two in three dropped": (thinned(1 / 3), "thinned", "were usual"),
    "almost all dropped": (thinned(0.02), "thinned", " points"),
    "corrupt packets": (corrupted, "corrupt", "% of the points are not finite or beyond 500 m"),
}


def assert_told(drive: list[Frame], name: str, fault: tuple[Callable[..., Frame], str, str]) -> None:
    """The fault at the third frame is told then, of that sensor alone, and its end within a second."""
    apply, status, reason = fault
    monitor = HealthMonitor(SENSORS)
    for frame in drive[:2]:
        monitor.update(frame)
    health = monitor.update(apply(drive, 2, name))
    assert (health[name].status, health[name].since) == (status, drive[2].timestamp)
    assert reason in health[name].reason
    assert {health[other].status for other in SENSORS.names if other != name} == {"ok"}
    later = replace(drive[1], timestamp=drive[2].timestamp + 2 * HALF_SECOND)
    moved = {n: replace(c, timestamp=later.timestamp, image=c.image[:, ::-1]) for n, c in later.cameras.items()}
    recovered = monitor.update(replace(later, cameras=moved, points=None if later.points is None else later.points[9:]))
    assert recovered[name] == SensorHealth("ok", later.timestamp, "")


@pytest.mark.parametrize("fault", CAMERA_FAULTS)
def test_camera_faults_on_a_real_drive(real: list[Frame], fault: str) -> None:
    for name in CAMERAS:
        assert_told(real, name, CAMERA_FAULTS[fault])


@pytest.mark.parametrize("fault", CAMERA_FAULTS)
def test_camera_faults_on_a_rainy_night(rainy_night: list[Frame], fault: str) -> None:
    for name in ("CAM_FRONT", "CAM_BACK"):
        assert_told(rainy_night, name, CAMERA_FAULTS[fault])


@pytest.mark.parametrize("fault", LIDAR_FAULTS)
@pytest.mark.parametrize("drive", ["real", "rainy_night"])
def test_lidar_faults(drive: str, fault: str, request: pytest.FixtureRequest) -> None:
    assert_told(request.getfixturevalue(drive), "LIDAR_TOP", LIDAR_FAULTS[fault])


def test_a_camera_slower_than_the_frames_is_not_frozen(real: list[Frame]) -> None:
    """20 frames a second with 5 pictures a second; at the second picture the camera gets stuck."""
    monitor, name, told = HealthMonitor(sensors("CAM_FRONT")), "CAM_FRONT", []
    for i in range(14):
        now = real[0].timestamp + 50_000 * i
        image = real[min(i // 4, 1)].cameras[name].image
        frame = with_camera(replace(real[0], timestamp=now), name, image=image, timestamp=now - 50_000 * (i % 4))
        told.append(monitor.update(frame)[name])
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
        told.append(monitor.update(replace(real[0], points=points, timestamp=i * HALF_SECOND))["LIDAR_TOP"])
    assert [told[i].status for i in (9, 10, 40, 299)] == ["ok", "thinned", "thinned", "ok"]
    assert told[10].reason == "8000 points, where 19900 were usual"


@settings(max_examples=150, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 200), st.integers(1, 200)), min_size=1, max_size=4),
    clouds=st.lists(
        arrays(np.float32, st.tuples(st.integers(0, 40), st.just(5)), elements=st.floats(width=32)),
        min_size=1,
        max_size=4,
    ),
    times=st.lists(st.integers(0, 2**53), min_size=1, max_size=12),
)
def test_no_picture_points_or_time_is_too_much(
    shapes: list[tuple[int, int]], clouds: list[np.ndarray], times: list[int]
) -> None:
    """Any sizes, NaN and infinity, times to and fro: a word for each sensor, and no more memory than at first."""
    monitor, rng = HealthMonitor(sensors("LIDAR_TOP", "CAM_FRONT")), np.random.default_rng(0)
    for i, now in enumerate(times):
        image = rng.integers(0, 255, (*shapes[i % len(shapes)], 3), np.uint8)
        camera = Camera(image, np.eye(3), np.eye(4), np.eye(4), times[-i])
        points = np.repeat(clouds[i % len(clouds)], 1 + 50 * (i % 2), axis=0)
        health = monitor.update(Frame("t", now, "ego", np.eye(4), np.eye(4), points, {"CAM_FRONT": camera}))
        assert list(health) == ["LIDAR_TOP", "CAM_FRONT"]
        for each in health.values():
            assert (each.status == "ok") == (not each.findings)
            assert each.since in times
    assert len(monitor._lidars[0]._ground_planes) <= 64
    assert len(monitor._alignment._fits) <= 1


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("noise:CAM_FRONT,levels=18", "noisy"),
        ("noise:CAM_FRONT,levels=60", "noisy"),
        ("blur:CAM_FRONT,pixels=3", "blurred"),
        ("blur:CAM_FRONT,pixels=20", "blurred"),
        ("corruption:CAM_FRONT,share=0.6", "corrupt"),
        ("noise:lidar,metres=0.05", "noisy"),
        ("noise:lidar,metres=0.3", "noisy"),
        ("points:lidar,share=0.4", "thinned"),
        ("points:lidar,share=0.9", "thinned"),
        ("corruption:lidar,share=0.06", "corrupt"),
        ("corruption:lidar,share=0.6", "corrupt"),
    ],
)
@pytest.mark.parametrize("drive", ["real", "rainy_night"])
def test_weaker_and_stronger_faults_have_the_same_name(
    text: str, status: str, drive: str, request: pytest.FixtureRequest
) -> None:
    monitor = HealthMonitor(SENSORS)
    for frame in inject(request.getfixturevalue(drive)[:3], [Fault.parse(f"{text}@1.0-9.0", SENSORS)]):
        health = monitor.update(frame)
    assert {each.words for each in health.values()} == {"ok", status}


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("drive", ["real", "sim_root", "foggy_root"])
def test_points_lost_from_the_first_frame_on_are_told_at_once(
    drive: str, share: float, request: pytest.FixtureRequest
) -> None:
    """Where no usual count is known yet, by the gaps in the scan; and no more when all are there again."""
    given = request.getfixturevalue(drive)
    given = given[:3] if drive == "real" else frames(given, "v1.0-sim")
    monitors: dict[str, HealthMonitor] = {}
    for i, frame in enumerate(given):
        monitor = monitors.setdefault(frame.scene, HealthMonitor(sensors("LIDAR_TOP")))
        told = monitor.update(thinned(1 - share)(given, i, "LIDAR_TOP"))["LIDAR_TOP"]
        assert (told.words, told.reason) == ("thinned", "gaps between the points on the ground")
    restored = monitors[given[0].scene].update(replace(given[0], timestamp=given[-1].timestamp + 2 * HALF_SECOND))
    assert restored["LIDAR_TOP"].status == "ok"


@pytest.mark.parametrize(
    ("text", "status"),
    [("noise:lidar", "noisy"), ("corruption:lidar", "corrupt"), ("miscalibration:lidar,degrees=2,metres=0", "")],
)
def test_other_faults_from_the_first_frame_on_leave_no_gaps(real: list[Frame], text: str, status: str) -> None:
    monitor = HealthMonitor(sensors("LIDAR_TOP"))
    for frame in inject(real[:2], [Fault.parse(text, SENSORS)]):  # of a tilted ground three are asked for
        assert monitor.update(frame)["LIDAR_TOP"].words == (status or "ok")


@pytest.mark.parametrize("kept", [1.0, 0.8, 0.6, 0.4])
@pytest.mark.parametrize(("beams", "steps"), [(16, 1800), (32, 1090), (64, 2048)])
def test_the_share_without_gaps_is_that_of_two_neighbours_at_once(beams: int, steps: int, kept: float) -> None:
    """Rings on flat ground 1.8 m below a LiDAR over the vehicle's origin, of which each return is kept by chance."""
    elevation = np.radians(np.linspace(-25, -5, beams))
    azimuth = 2 * np.pi * np.arange(steps) / steps
    away = -1.8 / np.tan(elevation)
    x, y = away[:, None] * np.cos(azimuth), away[:, None] * np.sin(azimuth)
    points = np.stack([x, y, *[np.zeros_like(x)] * 3], axis=2).reshape(-1, 5).astype(np.float32)
    points = points[np.random.default_rng(0).random(len(points)) < kept]
    found = ring_continuity(Frame("t", 0, "ego", np.eye(4), np.eye(4), points, {}), LidarLimits())
    assert found == pytest.approx(kept**2, abs=0.05)


def test_only_the_networks_sensors_are_watched(real: list[Frame]) -> None:
    assert list(HealthMonitor(sensors("CAM_BACK")).update(real[5])) == ["CAM_BACK"]


def decoding(drive: list[Frame]) -> float:
    """Seconds of processor time that this machine needs to decode the six pictures of a frame."""
    contents = [cv2.imencode(".jpg", camera.image)[1] for camera in drive[0].cameras.values()]
    seconds = []
    for _ in range(5):
        start = time.process_time()
        for content in contents:
            cv2.imdecode(content, cv2.IMREAD_COLOR)
        seconds.append(time.process_time() - start)
    return min(seconds)


def test_a_look_at_three_cameras_takes_less_than_a_quarter_of_decoding(real: list[Frame]) -> None:
    """Of six pictures of 1600 x 900, which no cache holds; a frame of a drive has one look at most."""
    alignment, seconds = Alignment(LidarLimits()), []
    signs = [sweep_features(frame, LidarLimits()) for frame in real[:4]]
    for i in range(24):
        frame = real[i % 4]
        place = frame.global_from_ego.copy()
        place[0, 3] += 100 * i
        start = time.process_time()
        alignment.update(replace(frame, timestamp=HALF_SECOND * i, global_from_ego=place), signs[i % 4], CAMERAS)
        seconds.append(time.process_time() - start)
    assert sum(each.frames for each in alignment._fits.values()) == 3 * 24
    assert min(seconds) < decoding(real) / 4


def test_health_takes_less_than_a_quarter_of_decoding(real: list[Frame]) -> None:
    """Of six pictures of 1600 x 900, beside ten sweeps of 30,000 points, without a look at edges."""
    points = np.concatenate([real[3].points] * 15)[:300_000]  # type: ignore[list-item]
    points[:, 4] = np.repeat(0.05 * np.arange(10), 30_000)
    monitor, seconds = HealthMonitor(SENSORS), []
    for i in range(20):
        frame = replace(real[i % 4], timestamp=i, points=points)
        start = time.process_time()
        monitor.update(frame)
        seconds.append(time.process_time() - start)
    assert min(seconds) < decoding(real) / 4
