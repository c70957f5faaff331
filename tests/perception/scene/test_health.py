"""Sensor health: silent on real and simulated drives, right about every fault."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made_up import keyframe
from simulated import in_town, with_pictures
from vocabulary import CAMERAS, SENSORS, sensors

from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.evaluation.corrupt import blur, thin_points
from perception.frame import Camera, Frame
from perception.rig import LidarLimits, Rig, RigLidar
from perception.scene.health.features import SAMPLE_STRIDE, latest_sweep, ring_steps, sweep_features
from perception.scene.health.monitor import HealthMonitor, SensorHealth
from perception.simulate import scenario
from perception.simulate.simulate import simulate

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
    """Each third sampled point is not finite, each fifth is too far, each seventh has a negative intensity."""
    points = real[0].points.copy()
    points[:: 3 * SAMPLE_STRIDE, 0] = np.nan
    points[:: 5 * SAMPLE_STRIDE, 1] = 1e6
    points[:: 7 * SAMPLE_STRIDE, 3] = -50
    sampled = np.arange(-(-len(points) // SAMPLE_STRIDE))
    share = ((sampled % 3 == 0) | (sampled % 5 == 0) | (sampled % 7 == 0)).mean()
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
        points[:, 3:] = 0
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
