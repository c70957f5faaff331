"""A cloud whose axes are turned, from edges in pictures and sweeps: those of boxes whose sides and tops are known."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import keyframe
from simulated import boxes, pave, with_pictures
from vocabulary import RIG

from perception.frame import Camera, Frame
from perception.rig import LidarLimits
from perception.scene.health.turned import STEP, TurnedCloud, range_edges, unroll
from perception.simulate import lidar
from perception.simulate.camera import render
from perception.simulate.snapshot import Snapshot, Weather

TOP, MOUNTED = RIG.lidars[0], {each.name: each for each in with_pictures(7).cameras if "BACK_" not in each.name}
LIDAR_AT = TOP.ego_from_sensor[:3, 3]
WAYS = (0.0, 8.0, 16.0)  # m along x, of the frames of a drive


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


def sweep(snapshot: Snapshot, way: float) -> np.ndarray:
    """(N, 5) in the vehicle's frame."""
    points = lidar.sweep(lambda _: snapshot, lambda _: gone(way), 0.0, TOP, RIG.body, np.random.default_rng(0)).points
    found = points[:, :3] @ TOP.ego_from_sensor[:3, :3].T + LIDAR_AT
    return np.pad(found.astype(np.float32), ((0, 0), (0, 2)))


@cache
def frame(way: float) -> Frame:
    """What a vehicle sees that has gone so far (m) along x."""
    pose, rng = gone(way), np.random.default_rng(int(way))
    cameras = {}
    for each in MOUNTED.values():
        image = render(scene(1), each.intrinsics, pose @ each.ego_from_sensor, each.size, rng).image
        cameras[each.name] = Camera(image, each.intrinsics, each.ego_from_sensor, pose, 0)
    return Frame("t", 0, "ego", pose, pose, cameras=cameras, **keyframe(sweep(scene(1), way)))


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


def test_sides_and_tops_are_those_of_the_box() -> None:
    """One box ahead: its corners' azimuths and its upper edge, seen from the LiDAR, to a beam."""
    tower = (35, 30, 15, 10, 20, 30, 0)  # elsewhere, so that the box is not where the view ends
    points = sweep(Snapshot(boxes([(20, 0.5, 1.25, 2, 3, 2.5, 0), tower]), pave(), np.zeros((2, 3)), Weather()), 0.0)
    sides, tops = range_edges(points[:, :3], LIDAR_AT, np.zeros(3))
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


# Rows: what is in x and y of the cloud, and how it is said.
CLOUDS = [
    ([[0, -1], [1, 0]], "turned by 90 degrees to the left"),
    ([[-1, 0], [0, -1]], "turned by 180 degrees to the left"),
    ([[0, 1], [-1, 0]], "turned by 270 degrees to the left"),
    ([[0, 1], [1, 0]], "with x and y swapped, as in another order of the fields"),
    ([[-1, 0], [0, 1]], "with the sign of x changed"),
    ([[0, -1], [-1, 0]], "with x and y swapped and both signs changed"),
    ([[1, 0], [0, -1]], "with the sign of y changed"),
]


@pytest.mark.parametrize(("axes", "how"), CLOUDS)
def test_each_map_of_the_axes_is_named(axes: list[list[int]], how: str) -> None:
    right, wrong = TurnedCloud(LidarLimits()), TurnedCloud(LidarLimits())
    for way in WAYS:
        seen, points = frame(way), frame(way).points.copy()
        points[:, :2] = points[:, :2] @ np.array(axes, np.float32).T
        right.add(seen)
        wrong.add(replace(seen, points=points))
    assert right.load < 1
    assert wrong.load > 1
    assert wrong.how == how
