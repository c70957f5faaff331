"""A simulated street with objects, for the golden frames. Making it takes about a second.

The street has every detection class and every map class, so that an error of an engine in any of them is found. It
needs the simulator, so it is made by the export; the vehicle only reads the arrays.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from perception.datasets.sweeps import Sweep, join_lidars
from perception.frame import Camera, Frame, reduce_intrinsics
from perception.geometry import rotation_about
from perception.grid import Reference
from perception.rig import Rig, RigLidar
from perception.sensors.inputs import InputSpec
from perception.simulate import lidar
from perception.simulate.agents import SIZES, build_parts
from perception.simulate.camera import render
from perception.simulate.snapshot import CATEGORIES, MANMADE, Ground, GroundRaster, Snapshot, Solids, Weather

SEED, STREET, MOVING = 0, "street", "moving"
# us, and x and y (m) and heading (degrees) of the vehicle; each motion is clear of the one before and of its inverse.
_DRIVE = ((0, (-6.0, 0.0, 0.0)), (100_000, (-4.5, 0.3, 3.0)), (500_000, (0.0, 0.0, -4.0)))
_AGES = (0.05, 0.45)  # s, of the earlier sweeps
_SPEED, _SIDE, _TURN = 8.0, 0.8, 12.0  # m/s of the vehicle and of agents ahead, m/s of the vehicle aside, degrees/s
_SMALLER = 2  # the pictures' edges are those of the rig divided by this, to render faster
_CELL = 0.1  # m
_REACH = 80.0  # m of ground around the vehicle
_BETWEEN = 0.1  # m that the vehicle moves from picture to picture; the cameras of this rig are so much farther back
# Category, x, y (m, ego) and heading (degrees).
_AGENTS = (
    ("vehicle.car", 12.0, 0.2, 0), ("vehicle.car", 25.0, -0.3, 0), ("vehicle.car", 9.0, 3.6, 180),
    ("vehicle.car", -11.0, 0.0, 0), ("vehicle.car", -8.0, 3.5, 180), ("vehicle.car", 17.0, -5.6, 0),
    ("vehicle.car", 5.0, -5.6, 0), ("vehicle.car", -4.5, -5.6, 0), ("vehicle.car", 14.0, 16.0, 90),
    ("vehicle.car", 17.0, 16.0, 90), ("vehicle.car", 20.0, 16.0, -90), ("vehicle.truck", 21.0, 3.7, 180),
    ("vehicle.truck", -20.0, 0.1, 0), ("vehicle.bus.rigid", -23.0, 3.8, 180), ("vehicle.trailer", 38.0, 3.6, 180),
    ("vehicle.construction", 27.0, -5.8, 180), ("vehicle.motorcycle", 7.0, 0.9, 0),
    ("vehicle.motorcycle", 2.0, 3.2, 180),
    ("vehicle.bicycle", 11.0, -3.2, 0), ("vehicle.bicycle", -14.0, -3.1, 0), ("human.pedestrian.adult", 8.0, -8.6, 0),
    ("human.pedestrian.adult", 15.0, -9.0, 180), ("human.pedestrian.adult", 13.0, 7.2, 90),
    ("human.pedestrian.adult", 4.0, 7.6, 180), ("human.pedestrian.child", -6.0, 7.4, 0),
    ("human.pedestrian.adult", -12.0, -8.8, 0), ("human.pedestrian.adult", 31.5, 1.0, 90),
    *(("movable_object.barrier", 22.0 + 3 * i, -3.9, 90) for i in range(4)),
    *(("movable_object.trafficcone", 16.0 + 1.5 * i, -3.6, 0) for i in range(4)),
)  # fmt: skip
# Ground, range along the road and range across it (m), painted in this order.
_PAINT = (
    (Ground.ROAD, (-80, 80), (-7.0, 5.5)),
    (Ground.WALKWAY, (-80, 80), (-10.5, -7.0)),
    (Ground.WALKWAY, (-80, 80), (5.5, 9.0)),
    (Ground.CARPARK, (8, 30), (9.0, 22.0)),
    (Ground.YELLOW, (-80, 80), (1.7, 1.9)),
    (Ground.MARKING, (-80, 80), (-3.9, -3.75)),
    (Ground.CROSSING, (29, 33), (-7.0, 5.5)),
    (Ground.CROSSING, (-18, -14), (-7.0, 5.5)),
    (Ground.MARKING, (26.5, 27.3), (-7.0, 1.7)),
    (Ground.MARKING, (-12.3, -11.5), (1.9, 5.5)),
)


def street_frames(spec: InputSpec) -> dict[str, Frame]:
    """The street, and a version with missing sensors: only a sixteenth of the points, or half of the cameras.

    For a network with a memory also the frames of a vehicle that drives along the street. All are in order of their
    names, and each name without its number is a drive.
    """
    frame = _enlarged(street_frame(spec.grid.reference, spec.rig), spec)
    scans = [sensor.example(np.random.default_rng(SEED)) for sensor in spec.sensors.values()]
    frame = replace(frame, scans={name: scan for each in scans for name, scan in each.items()})
    if spec.sweeps:
        frame = _with_earlier_sweeps(frame, spec.rig)
    if spec.lidar is not None:
        partial = replace(frame.select_points(slice(None, None, 16)), cameras={}, scans={})
    else:
        partial = replace(frame, cameras={name: frame.cameras[name] for name in spec.rig.sensors.cameras[::2]})
    frames = {STREET: frame, "street-partial": partial}
    if spec.memory is None:
        return frames
    moving = {
        f"{MOVING}-{i}": replace(_enlarged(street_frame(spec.grid.reference, spec.rig, place), spec), timestamp=time)
        for i, (time, place) in enumerate(_DRIVE)
    }
    return moving | frames


@lru_cache(maxsize=8)
def street_frame(reference: Reference, rig: Rig, place: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Frame:
    """The street by day, seen by a rig's simulated sensors; always the same. Pictures are taken one after the other.

    The vehicle's place is x and y (m) and heading (degrees).
    """
    snapshot, still = _snapshot(), np.eye(4)
    rig = rig.calibrate()
    rng = np.random.default_rng(SEED)
    global_from_ego = _pose(*place)
    ego_from_reference = still if reference == "ego" else rig.lidars[0].ego_from_sensor
    points = []
    for sensor in rig.lidars:
        swept = _swept(snapshot, global_from_ego, sensor, rig, rng).astype(np.float64)
        xyz, move = swept[:, :3], np.linalg.inv(ego_from_reference) @ sensor.ego_from_sensor
        if not np.array_equal(move, still):
            xyz = xyz @ move[:3, :3].T + move[:3, 3]
        points.append(np.column_stack([xyz, swept[:, 3], np.zeros(len(xyz))]))
    cameras = {}
    for i, camera in enumerate(rig.cameras):
        ego = still.copy()
        ego[0, 3] = i * _BETWEEN
        width, height = (side // _SMALLER for side in camera.size)
        intrinsics, pose = np.diag([1 / _SMALLER, 1 / _SMALLER, 1]) @ camera.intrinsics, camera.ego_from_sensor
        picture = render(snapshot, intrinsics, global_from_ego @ pose, (width, height), rng, global_from_ego)
        moved = global_from_ego @ ego
        cameras[camera.name] = Camera(picture.image, intrinsics, np.linalg.inv(ego) @ pose, moved, 0)
    return Frame(
        token=f"street-{SEED}",
        timestamp=0,
        reference=reference,
        global_from_reference=global_from_ego @ ego_from_reference,
        global_from_ego=global_from_ego,
        points=np.concatenate(points).astype(np.float32),
        sweep_of_point=np.zeros(sum(map(len, points)), np.uint8),
        cameras=cameras,
    )


def _with_earlier_sweeps(frame: Frame, rig: Rig) -> Frame:
    """The street's frame with a sixteenth of two sweeps before it, of a vehicle and agents that moved since.

    A runtime that takes the age of points for nothing, or turns its sign, does not reproduce the outputs.
    """
    snapshot, rng = _snapshot(), np.random.default_rng(SEED)
    solids, parts = snapshot.solids, [(frame.points, frame.sweep_of_point)]
    assert frame.points is not None
    for number, age in enumerate(_AGES, start=1):
        ego = _pose(-_SPEED * age, -_SIDE * age, -_TURN * age)
        back = np.stack([np.cos(solids.yaws), np.sin(solids.yaws), 0 * solids.yaws], axis=1) * _SPEED * age
        earlier = replace(solids, centers=solids.centers - back * (solids.owners >= 0)[:, None])
        time = -round(1e6 * age)
        seen = replace(snapshot, solids=earlier)
        sweeps = {
            i: [Sweep(_swept(seen, ego, sensor, rig, rng)[::16], time, ego, sensor.ego_from_sensor)]
            for i, sensor in enumerate(rig.calibrate().lidars)
        }
        joined = join_lidars(sweeps, 0, np.linalg.inv(frame.global_from_reference), rig.own)
        assert joined.points is not None
        parts.append((joined.points, np.full(len(joined.points), number, np.uint8)))
    points, sweep_of_point = (np.concatenate(each) for each in zip(*parts, strict=True))
    return replace(frame, points=points, sweep_of_point=sweep_of_point)


def _pose(x: float, y: float, heading: float) -> np.ndarray:
    """(4, 4) global_from_ego of a place (m) and heading (degrees)."""
    pose = np.eye(4)
    pose[:3, :3] = rotation_about(np.array([0.0, 0.0, 1.0]), np.radians(heading))
    pose[:2, 3] = x, y
    return pose


def _swept(
    snapshot: Snapshot, global_from_ego: np.ndarray, sensor: RigLidar, rig: Rig, rng: np.random.Generator
) -> np.ndarray:
    """(N, 5) points of one sweep of a vehicle at rest, in the LiDAR's frame."""
    return lidar.sweep(lambda _: snapshot, lambda _: global_from_ego, 0.0, sensor, rig.body, rng).points


def _enlarged(frame: Frame, spec: InputSpec) -> Frame:
    if spec.picture is None:
        return frame
    width = 2 * spec.picture.width
    return replace(frame, cameras={name: _enlarge(camera, width) for name, camera in frame.cameras.items()})


def _enlarge(camera: Camera, width: int) -> Camera:
    """At least as wide as this, by repeated pixels, so that it is reduced as recorded pictures are."""
    times = max(1, -(-width // camera.image.shape[1]))
    intrinsics = reduce_intrinsics(camera.intrinsics, 1 / times)
    return replace(camera, image=camera.image.repeat(times, axis=0).repeat(times, axis=1), intrinsics=intrinsics)


def _snapshot() -> Snapshot:
    rng = np.random.default_rng(SEED)
    parts, owners = [], []
    for i, (category, x, y, degrees) in enumerate(_AGENTS):
        built = build_parts(category, np.array(SIZES[category][0]), rng, ridden=degrees == 0, lit=False)
        yaw = np.radians(degrees)
        turned = built[:, :2] @ np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
        parts.append(np.column_stack([turned + np.array([x, y]), built[:, 2:], np.full(len(built), yaw)]))
        owners += [i] * len(built)
    along = np.arange(-60.0, 61.0, 15.0)
    houses = [
        [x, side * 30.0, 4.5, 12.0, 12.0, 9.0, *rng.integers(90, 200, 3), 0.5, 0.0, 0.0]
        for side in (-1, 1) for x in along
    ]  # fmt: skip
    solids = np.concatenate([*parts, houses])
    return Snapshot(
        solids=Solids(
            centers=solids[:, 0:3],
            sizes=solids[:, 3:6],
            yaws=solids[:, 11],
            colours=solids[:, 6:9].astype(np.uint8),
            reflectances=solids[:, 9],
            lamps=solids[:, 10],
            owners=np.array(owners + [-1] * len(houses)),
            categories=np.array([CATEGORIES.index(_AGENTS[i][0]) for i in owners] + [MANMADE] * len(houses), np.uint8),
        ),
        ground=_paint_ground(),
        agent_velocities=np.zeros((len(_AGENTS), 3)),
        weather=Weather(),
    )


def _paint_ground() -> GroundRaster:
    cells = round(2 * _REACH / _CELL)
    kinds = np.full((cells, cells), Ground.GRASS, np.uint8)
    for kind, along, across in _PAINT:
        (left, right), (low, high) = ([round((edge + _REACH) / _CELL) for edge in edges] for edges in (along, across))
        kinds[low:high, left:right] = kind
    return GroundRaster(kinds, (-_REACH, -_REACH), _CELL)
