"""A drive whose every return is known: a vehicle passes a wall, and a car passes it on the other side."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from perception.datasets.drives import Drives
from perception.datasets.keyframes import NO_SENSORS, Annotation, JointCloud, Reads, Recording, assemble
from perception.datasets.sweeps import Cloud
from perception.frame import Boxes, Camera, Conditions, Frame
from perception.grid import VoxelGrid
from perception.rig import Rig
from perception.taxonomy import Taxonomy

GRID = VoxelGrid((-12.0, 12.0), (-8.0, 8.0), (-1.0, 3.8))
WALL = 6.1  # m, y of the wall, which has its face there

POINTS = ("ground", "wall", "car")  # point classes
SPEED, PERIOD, START = 2.0, 0.5, 1_500_000_000_000_000  # m/s along x, s, us
CAR_SPEED, CAR_Y, SIZE = 6.0, -4.0, (2.0, 4.0, 1.6)  # m/s along x, m, width length height
SLOPE = 0.25  # rad, of the hill
LIDAR = np.array([0.0, 0.0, 2.0])  # m in the vehicle's frame
TAXONOMY = Taxonomy.model_validate(
    {
        "name": "walled",
        "classes": [{"name": "car"}, {"name": "sign", "static": True}],
        "point_classes": [{"name": name} for name in POINTS],
    }
)


class WalledDrive:
    """Four keyframes; earlier sweeps are every 0.1 s. The ground is flat.

    Args:
        labelled: whether points of keyframes have classes.
    """

    dataroot, version, rig = Path("walled"), "", Rig.model_validate({"name": "r", "lidars": [{"name": "L"}]})
    taxonomy, has_attributes = TAXONOMY, False

    def __init__(self, labelled: bool = True, instance: str = "car") -> None:
        drives = Drives("walled", {"drive": [str(k) for k in range(4)]})
        self.scenes, self.samples, self.scene = drives.scenes, drives.samples, drives.scene
        self.labelled, self.instance = labelled, instance

    def conditions(self, token: str) -> Conditions:
        return Conditions()

    def _boxes(self, token: str) -> Boxes:
        x = car_at(PERIOD * int(token))
        none, center, velocity = np.zeros(1), np.array([[x, CAR_Y, SIZE[2] / 2]]), np.array([[CAR_SPEED, 0]])
        boxes = Boxes.from_yaws(center, np.array([SIZE]), none, velocity, none, none - 1, none + 1)
        return replace(boxes, instances=np.array([self.instance])).transformed(self.downhill(token))

    def downhill(self, token: str) -> np.ndarray:
        """(4, 4) where the flat drive is."""
        return np.eye(4)

    def recording(self, token: str, reads: Reads = NO_SENSORS) -> Recording:
        pose, hill = np.eye(4), self.downhill(token)
        pose[0, 3] = SPEED * PERIOD * int(token)
        seconds = PERIOD * int(token) - 0.1 * np.arange(reads.sweeps, -1, -1)
        places = np.stack([np.array([SPEED * t, 0, 0]) + LIDAR for t in seconds]) @ hill[:3, :3].T + hill[:3, 3]
        cloud = JointCloud(lambda *_: self._cloud(token, reads.sweeps), lambda: {0: (START + 1e6 * seconds, places)})
        time, truth = START + round(1e6 * PERIOD * int(token)), {"boxes": Annotation(lambda: self._boxes(token))}
        return Recording(token, "drive", time, hill @ pose, np.eye(4), cloud, {}, truth)

    def frame(self, token: str, reads: Reads = Reads()) -> Frame:  # noqa: B008 - it is immutable
        frame = assemble(self.recording(token, reads), reads)
        return replace(frame, cameras={"ahead": camera(frame.global_from_ego)})

    def _cloud(self, token: str, sweeps: int) -> Cloud:
        """In the vehicle's frame."""
        parts = [self._sweep(PERIOD * int(token), 0.1 * age) for age in range(sweeps + 1)]
        points, kinds = np.concatenate([p for p, _ in parts]), np.concatenate([k for _, k in parts])
        numbers = np.repeat(np.arange(sweeps + 1, dtype=np.uint8), [len(k) for _, k in parts])
        classes = np.where(numbers == 0, kinds, -1).astype(np.int16) if self.labelled else None
        return Cloud(points.astype(np.float32), numbers, None, classes)

    def _sweep(self, now: float, age: float) -> tuple[np.ndarray, np.ndarray]:
        """(N, 5) points in the vehicle's frame now, and (N,) index in POINTS."""
        hits, kinds = cast(SPEED * (now - age), car_at(now - age))
        return np.column_stack([hits - [SPEED * now, 0, 0], np.zeros(len(hits)), np.full(len(hits), age)]), kinds


class HillyDrive(WalledDrive):
    """As above, but all of it down a hill; as in nuScenes the poses have its slope, but not its height: z is 0."""

    def downhill(self, token: str) -> np.ndarray:
        hill = np.eye(4)
        hill[[0, 0, 2, 2], [0, 2, 0, 2]] = np.cos(SLOPE), np.sin(SLOPE), -np.sin(SLOPE), np.cos(SLOPE)
        hill[2, 3] = -height(int(token))
        return hill


def height(keyframe: int) -> float:
    """m above that at the first keyframe."""
    return float(-np.sin(SLOPE) * SPEED * PERIOD * keyframe)


def car_at(time: float) -> float:
    """x of the car's middle, m."""
    return -5.0 + CAR_SPEED * time


def cast(x: float, car: float) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3) where the rays from the LiDAR at x end, global, and (N,) what they meet."""
    around, up = (each.ravel() for each in np.meshgrid(np.arange(0, 360, 2.1), range(-40, 12, 3)))
    origin, flat = np.array([x, 0, 0]) + LIDAR, np.cos(np.radians(up))
    rays = np.stack([flat * np.cos(np.radians(around)), flat * np.sin(np.radians(around)), np.sin(np.radians(up))], 1)
    low = np.array([car - SIZE[1] / 2, CAR_Y - SIZE[0] / 2, 0.0])
    high = low + np.array([SIZE[1], SIZE[0], SIZE[2]])
    with np.errstate(divide="ignore"):
        ground, wall = -origin[2] / rays[:, 2], (WALL - origin[1]) / rays[:, 1]
        first, second = (low - origin) / rays, (high - origin) / rays
    enters, leaves = np.minimum(first, second).max(axis=1), np.maximum(first, second).min(axis=1)
    box = np.where((enters < leaves) & (enters > 0), enters, np.inf)
    reach = np.stack([np.where(ground > 0, ground, np.inf), np.where(wall > 0, wall, np.inf), box], axis=1)
    kinds, length = reach.argmin(axis=1), reach.min(axis=1)
    met = length < 40
    return (origin + length[met, None] * rays[met]), kinds[met]


def camera(pose: np.ndarray) -> Camera:
    """It looks along x from above the rear axle, 90 degrees wide."""
    ego_from_camera = np.eye(4)
    ego_from_camera[:3] = [[0, 0, 1, 0.3], [-1, 0, 0, 0.1], [0, -1, 0, 1.5]]
    intrinsics = np.array([[50.0, 0, 49.5], [0, 50.0, 29.5], [0, 0, 1]])
    return Camera(np.zeros((60, 100, 3), np.uint8), intrinsics, ego_from_camera, pose, START)
