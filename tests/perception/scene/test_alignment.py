"""Turned cameras and LiDARs, told from edges: in a scene of boxes that is cast in closed form, picture and sweep."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.evaluation.corrupt import moved
from perception.frame import Camera, Frame
from perception.scene.health.alignment import Alignment
from perception.scene.health.edges import PARTS, REACH, SHIFTS, STEP, fit, range_edges, unroll
from perception.scene.health.features import latest_sweep, sweep_features
from perception.scene.health.limits import LidarLimits

FOCAL, WIDTH, HEIGHT = 190.0, 240, 136
INTRINSICS = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
LOOKS = {"CAM_FRONT": 0.0, "CAM_FRONT_LEFT": 60.0, "CAM_FRONT_RIGHT": -60.0, "CAM_BACK": 180.0}  # degrees to the left
LIDAR_AT = np.array([0.9, 0.0, 1.8])
SKY, GROUND = 230, 90
WAYS = [4.0 * i for i in range(8)]  # m along x, of the frames of a drive
Turn = tuple[float, float, float]  # a vector in degrees


def boxes(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest corners (B, 2, 3) of boxes on the ground z = 0 along the way, and their grey levels (B,)."""
    rng = np.random.default_rng(seed)
    places = np.stack([rng.uniform(-30, 70, 60), rng.choice([-1, 1], 60) * rng.uniform(5, 30, 60)], axis=1)
    sides, heights = rng.uniform(0.4, 2, (60, 2)), rng.uniform(1, 4, (60, 1))
    low = np.concatenate([places - sides, np.zeros((60, 1))], axis=1)
    high = np.concatenate([places + sides, heights], axis=1)
    return np.stack([low, high], axis=1), rng.choice([10, 40, 150, 190], 60)


def cast(scene: np.ndarray, origin: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Range (N,) in lengths of each ray (N, 3), and what it sees: a box's number, -2 the ground, -1 the sky."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        down = directions[:, 2] < 0
        ranges, seen = np.where(down, -origin[2] / directions[:, 2], np.inf), np.where(down, -2, -1)
        unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        for i, box in enumerate(scene):  # the slabs of Kay and Kajiya, 1986
            middle, reach = box.mean(axis=0) - origin, np.linalg.norm(box[1] - box[0]) / 2
            some = np.flatnonzero(unit @ middle > np.sqrt(max(0.0, middle @ middle - reach**2)))  # near its sphere
            near, far = np.sort((box[:, None] - origin) / directions[some], axis=0)
            enter, leave = near.max(axis=1), far.min(axis=1)
            hit = (enter < leave) & (enter > 0) & (enter < ranges[some])
            ranges[some[hit]], seen[some[hit]] = enter[hit], i
    return ranges, seen


def turn(x: float, y: float, z: float) -> np.ndarray:
    """(4, 4)."""
    pose = np.eye(4)
    pose[:3, :3] = cv2.Rodrigues(np.radians([x, y, z]))[0]
    return pose


def mounted(name: str) -> np.ndarray:
    """(4, 4) ego_from_camera."""
    yaw = np.radians(LOOKS[name])
    pose = np.eye(4)
    pose[:3, :3] = np.stack([(np.sin(yaw), -np.cos(yaw), 0), (0, 0, -1), (np.cos(yaw), np.sin(yaw), 0)], axis=1)
    pose[:3, 3] = (1.0 + 0.5 * np.cos(yaw), 0.5 * np.sin(yaw), 1.5)
    return pose


def sweep(scene: np.ndarray, way: float) -> np.ndarray:
    """(N, 5) of a vehicle that has gone so far (m) along x, with a 32-beam LiDAR."""
    azimuth, elevation = np.meshgrid(np.radians(np.arange(0, 360, 0.33)), np.radians(np.linspace(-30.67, 10.67, 32)))
    level = np.cos(elevation)
    rays = np.stack([level * np.cos(azimuth), level * np.sin(azimuth), np.sin(elevation)], axis=-1).reshape(-1, 3)
    ranges, _ = cast(scene, LIDAR_AT + np.array([way, 0, 0]), rays)
    kept = ranges < 80
    points = np.zeros((np.count_nonzero(kept), 5), np.float32)
    points[:, :3] = rays[kept] * ranges[kept, None] + LIDAR_AT
    return points


@cache
def swept(seed: int, way: float) -> np.ndarray:
    return sweep(boxes(seed)[0], way)


@cache
def picture(seed: int, way: float, name: str, turned: Turn) -> np.ndarray:
    """(H, W, 3) of a camera that is turned against its mounting, about its own axes."""
    scene, levels = boxes(seed)
    really = mounted(name) @ turn(*turned)
    u, v = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    pixels = np.stack([(u - WIDTH / 2) / FOCAL, (v - HEIGHT / 2) / FOCAL, np.ones_like(u)], axis=-1).reshape(-1, 3)
    _, seen = cast(scene, really[:3, 3] + np.array([way, 0, 0]), pixels @ really[:3, :3].T)
    grey = np.append(levels, [GROUND, SKY])[seen].reshape(HEIGHT, WIDTH, 1)
    noise = np.random.default_rng([seed, int(way)]).normal(0, 2, (HEIGHT, WIDTH, 3))
    return (grey + noise).clip(0, 255).astype(np.uint8)


def frame(
    way: float, turned: dict[str, Turn] | None = None, seed: int = 1, names: Sequence[str] = tuple(LOOKS)
) -> Frame:
    """What a vehicle sees that has gone so far (m) along x at 8 m/s."""
    pose, now = np.eye(4), round(1e6 * way / 8)
    pose[0, 3] = way
    images = {name: picture(seed, way, name, (turned or {}).get(name, (0, 0, 0))) for name in names}
    cameras = {name: Camera(image, INTRINSICS, mounted(name), pose, now) for name, image in images.items()}
    return Frame("t", now, "ego", pose, pose, swept(seed, way), cameras)


def with_lidar(seen: Frame, turned: np.ndarray) -> Frame:
    return replace(seen, points=moved(seen.points, turned))


def told(frames: Sequence[Frame]) -> Alignment:
    alignment = Alignment(LidarLimits())
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
def test_a_picture_is_unrolled_as_the_pinhole_says(
    width: int, height: int, focal: float, along: float, down: float
) -> None:
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
        edges = range_edges(latest_sweep(seen, LidarLimits())[:, :3], LIDAR_AT, np.zeros(3), LidarLimits())
        parts, points = fit(seen.cameras["CAM_FRONT"], np.linalg.inv(mounted("CAM_FRONT")), edges, LidarLimits())
        assert parts.shape == (PARTS, SHIFTS, SHIFTS)
        assert points > 20
        total += parts.sum(axis=0)
    down, right = STEP * (np.array(np.unravel_index(total.argmax(), total.shape)) - REACH)
    axis = turn(pitch, yaw, 0)[:3, :3].T @ [0, 0, 1]
    assert np.degrees(right - np.arctan2(axis[0], axis[2])) == pytest.approx(0, abs=0.75)
    assert np.degrees(down - axis[1]) == pytest.approx(0, abs=0.75)


def test_sides_and_tops_are_those_of_the_box() -> None:
    """One box ahead: its corners' azimuths and its upper edge, seen from the LiDAR, to a beam."""
    tower = [[30.0, 20.0, 0.0], [40.0, 40.0, 30.0]]  # elsewhere, so that the box is not where the view ends
    points = sweep(np.array([[[19.0, -1.0, 0.0], [21.0, 2.0, 2.5]], tower]), 0.0)
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


@pytest.mark.parametrize("degrees", [0.0, 0.4])
def test_nothing_is_said_of_what_looks_where_it_should_or_nearly(degrees: float) -> None:
    turned = {name: (degrees * (-1) ** i, degrees, 0.0) for i, name in enumerate(LOOKS)}
    alignment = told([frame(way, turned) for way in WAYS])
    assert (alignment.lidar, alignment.cameras) == (None, {})


@pytest.mark.parametrize("name", LOOKS)
def test_a_turned_camera_is_told_and_by_how_much(name: str) -> None:
    alignment = told([frame(way, {name: (1.5, 2.0, 0.3)}) for way in WAYS])
    assert alignment.lidar is None
    assert alignment.cameras == {name: pytest.approx(2.5, abs=0.7)}


@pytest.mark.parametrize(("axis", "degrees"), [((0, 0, 1), 3.0), ((0, 0, 1), -2.0), ((0.4, -0.4, 1), 2.5)])
def test_what_all_cameras_have_in_common_is_the_lidars(axis: Turn, degrees: float) -> None:
    move = turn(*(degrees * np.array(axis) / np.linalg.norm(axis)))
    alignment = told([with_lidar(frame(way), move) for way in WAYS])
    assert alignment.lidar == pytest.approx(abs(degrees), abs=0.7)
    assert alignment.cameras == {}


def test_a_turned_lidar_and_a_turned_camera_are_both_told() -> None:
    alignment = told([with_lidar(frame(way, {"CAM_FRONT": (0, 3.0, 0)}), turn(0, 0, 3.0)) for way in WAYS])
    assert alignment.lidar == pytest.approx(3, abs=0.7)
    assert alignment.cameras.keys() == {"CAM_FRONT"}


def test_the_same_edges_again_say_nothing_new() -> None:
    """A vehicle that stands for a minute has looked at every camera once."""
    still = frame(0.0, {"CAM_FRONT": (1.5, 2.0, 0.3)})
    alignment = told([replace(still, timestamp=still.timestamp + 500_000 * i) for i in range(120)])
    assert {name: each.frames for name, each in alignment._fits.items()} == dict.fromkeys(LOOKS, 1)
    assert alignment.cameras == {}


def test_what_was_told_is_taken_back_when_the_camera_looks_right_again() -> None:
    alignment = told([frame(way, {"CAM_FRONT": (1.5, 2.0, 0.3)}) for way in WAYS])
    assert alignment.cameras.keys() == {"CAM_FRONT"}
    for i, way in enumerate([*WAYS[::-1], *WAYS]):  # back and there again
        seen = replace(frame(way), timestamp=10_000_000 + 500_000 * i)
        alignment.update(seen, sweep_features(seen, LidarLimits()), list(seen.cameras))
    assert alignment.cameras == {}
