"""A small drive in PandaSet's layout: a vehicle that drives along a known line past known objects."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import yaml
from pandas_tables import write_table

from perception.datasets.pandaset import LIDARS
from perception.geometry import quaternion
from perception.rig import Rig, load_rig

FRAMES, PERIOD, START = 4, 0.1, 1_557_539_956.5  # s
YAW = 0.7  # rad, of the LiDAR's frame in the world; the vehicle drives along its y
SPEED = 8.0  # m/s
GROUND = -0.41  # m in the LiDAR's frame
SIZE = (192, 108)  # pixels
INTRINSICS = {"fx": 100.0, "fy": 101.0, "cx": 97.0, "cy": 52.0}
CLASSES = {1: "Smoke", 7: "Road", 13: "Car", 14: "Pickup Truck", 30: "Pedestrian"}  # of points
DISTORTION = [-0.25, 0.08, 0.001, -0.001, -0.02]
CAMERAS = {"front": 0.0, "left": np.pi / 2, "back": np.pi}  # yaw, rad; the other three have no pictures
EXPOSURE = {"front": -0.05, "left": -0.08, "back": -0.1}  # s from the end of the sweep
MARKS = np.array([[20.0, 3.0, 2.0], [20, -4, 0.5], [14, 1, 3], [3, 15, 1], [-3, 16, 2.5], [-18, 2, 1], [-15, -5, 3]])


@dataclass
class Object:
    label: str
    uuid: str
    place: tuple[float, float, float]  # m in the world at the first frame
    velocity: tuple[float, float] = (0.0, 0.0)
    yaw: float = 0.0  # rad, PandaSet's
    size: tuple[float, float, float] = (2.0, 4.0, 1.5)
    sensor: int = -1
    sibling: str = "-"
    frames: tuple[int, ...] = field(default_factory=lambda: tuple(range(FRAMES)))

    def at(self, frame: int) -> np.ndarray:
        return np.array(self.place) + np.array([*self.velocity, 0]) * PERIOD * frame


def world_from_lidar(time: float) -> np.ndarray:
    """(4, 4) of PandaSet's LiDAR frame, s after the first frame."""
    pose, c, s = np.eye(4), np.cos(YAW), np.sin(YAW)
    pose[:2, :2] = [[c, -s], [s, c]]
    pose[:2, 3] = SPEED * time * np.array([-s, c])
    return pose


def vehicle_from_lidar() -> np.ndarray:
    """(4, 4): x forward, y left, z up from the ground; of PandaSet's LiDAR frame, whose y is forward and x right."""
    return np.array([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, -GROUND], [0, 0, 0, 1]])


def vehicle_from_camera(name: str) -> np.ndarray:
    yaw = CAMERAS[name]
    ahead, left = np.array([np.cos(yaw), np.sin(yaw), 0]), np.array([-np.sin(yaw), np.cos(yaw), 0])
    pose = np.eye(4)
    pose[:3, :3] = np.stack([-left, [0, 0, -1], ahead], axis=1)
    pose[:3, 3] = [0.5, 0.2, 1.8]
    return pose


def poses(matrices: list[np.ndarray]) -> list[dict[str, dict[str, float]]]:
    named = [(dict(zip("xyz", m[:3, 3].tolist(), strict=True)), quaternion(m[:3, :3])) for m in matrices]
    return [{"position": place, "heading": dict(zip("wxyz", turn, strict=True))} for place, turn in named]


def write(folder: Path, name: str, content: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))


def write_drive(
    root: Path, objects: list[Object], points: dict[int, np.ndarray], classes: dict[int, np.ndarray] | None = None
) -> None:
    """Drive 007. points: frame -> (N, 6) x y z (m, world), intensity, s after the first frame, LiDAR; classes (N,)."""
    drive, times = root / "007", [PERIOD * i for i in range(FRAMES)]
    write(drive / "lidar", "poses.json", poses([world_from_lidar(t) for t in times]))
    write(drive / "lidar", "timestamps.json", [START + t for t in times])
    for i in range(FRAMES):
        given = points.get(i, np.zeros((0, 6)))
        columns = {column: given[:, n] for n, column in enumerate("xyzi")}
        columns |= {"t": START + given[:, 4], "d": given[:, 5].astype(np.int64)}
        write_table(drive / "lidar" / f"{i:02d}.pkl.gz", columns)
        write_table(drive / "annotations" / "cuboids" / f"{i:02d}.pkl.gz", cuboids(objects, i))
    for i, numbers in (classes or {}).items():
        write_table(drive / "annotations" / "semseg" / f"{i:02d}.pkl.gz", {"class": numbers})
        write(drive / "annotations" / "semseg", "classes.json", CLASSES)
    for name in CAMERAS:
        write_camera(drive / "camera" / f"{name}_camera", name)
    sections = {f"{name}_camera": {"intrinsic": {"D": DISTORTION}} for name in (*CAMERAS, "right")}
    sections |= {f"front_{side}_camera": {"intrinsic": {"D": [0.0] * 5}} for side in ("left", "right")}
    (root / "static_extrinsic_calibration.yaml").write_text(yaml.safe_dump(sections))


def cuboids(objects: list[Object], frame: int) -> dict[str, np.ndarray]:
    seen = [each for each in objects if frame in each.frames]
    columns = {
        "uuid": ([each.uuid for each in seen], object),
        "label": ([each.label for each in seen], object),
        "yaw": ([each.yaw for each in seen], np.float64),
        "cuboids.sibling_id": ([each.sibling for each in seen], object),
        "cuboids.sensor_id": ([each.sensor for each in seen], np.int64),
        "attributes.rider_status": ([np.nan] * len(seen), object),
    }
    for n, axis in enumerate("xyz"):
        columns[f"position.{axis}"] = [each.at(frame)[n] for each in seen], np.float64
        columns[f"dimensions.{axis}"] = [each.size[n] for each in seen], np.float64
    return {name: np.array(values, kind) for name, (values, kind) in columns.items()}


def write_camera(folder: Path, name: str) -> None:
    """Pictures as the lens distorts them: black, with a white disc at each mark that is in front of the camera."""
    times = [PERIOD * i + EXPOSURE[name] for i in range(FRAMES)]
    matrices = [world_from_lidar(t) @ np.linalg.inv(vehicle_from_lidar()) @ vehicle_from_camera(name) for t in times]
    write(folder, "poses.json", poses(matrices))
    write(folder, "timestamps.json", [START + t for t in times])
    write(folder, "intrinsics.json", INTRINSICS)
    for i, pose in enumerate(matrices):
        image = np.zeros((SIZE[1], SIZE[0]), np.uint8)
        for u, v in distort(marks_in_world() @ np.linalg.inv(pose)[:3, :3].T + np.linalg.inv(pose)[:3, 3]):
            cv2.circle(image, (round(16 * u), round(16 * v)), 16 * 3, 255, -1, cv2.LINE_AA, shift=4)
        cv2.imwrite(str(folder / f"{i:02d}.jpg"), image)


def marks_in_world() -> np.ndarray:
    """(M, 3) m."""
    first = world_from_lidar(0) @ np.linalg.inv(vehicle_from_lidar())
    return MARKS @ first[:3, :3].T + first[:3, 3]


def distort(points: np.ndarray) -> np.ndarray:
    """(K, 2) pixels of the points (M, 3) m in the camera's frame that are well in its view, by OpenCV's own model."""
    near = points[(points[:, 2] > 1) & (np.abs(points[:, :2]) < 0.6 * points[:, 2:3]).all(axis=1)]
    k = INTRINSICS
    matrix = np.array([[k["fx"], 0, k["cx"]], [0, k["fy"], k["cy"]], [0, 0, 1]])
    if not len(near):
        return np.zeros((0, 2))
    return cv2.projectPoints(near, np.zeros(3), np.zeros(3), matrix, np.array(DISTORTION))[0][:, 0]


def rig_of(*lidars: int) -> Rig:
    """With the LiDARs of these numbers, in this order."""
    rig = load_rig("pandaset")
    named = {each.name: each for each in rig.lidars}
    return rig.model_copy(update={"lidars": tuple(named[LIDARS[i]] for i in lidars)})


SPINNING = rig_of(0)
