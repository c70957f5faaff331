"""Configurations that paste, the oracles of boxes and points, and frames in memory."""

from typing import Any

import numpy as np
from shapely import Polygon
from vocabulary import CAMERAS

from perception.config import Config, find_config, load_config, parse_config
from perception.frame import Boxes, Camera, Frame

TINY = load_config(find_config("tiny")).model_dump(mode="json")
CLASSES = {"car": 32, "pedestrian": 25, "truck": 3, "bus": 2}


def config(model: dict[str, Any] | None = None, train: dict[str, Any] | None = None, **paste: Any) -> Config:
    """`tiny` with two sweeps that pastes crops."""
    content = {**TINY, "data": {**TINY["data"], "paste": {"classes": CLASSES, "pictures": "paste", **paste}}}
    content["model"] = {**TINY["model"], "lidar": {**TINY["model"]["lidar"], "sweeps": 2}, **(model or {})}
    content["train"] = {**TINY["train"], **(train or {})}
    return parse_config(content, "test")


def polygon(boxes: Boxes, number: int) -> Polygon:
    """The footprint of a box."""
    width, length = boxes.sizes[number, :2]
    yaw = boxes.yaws[number]
    ahead, left = np.array([np.cos(yaw), np.sin(yaw)]) * length / 2, np.array([-np.sin(yaw), np.cos(yaw)]) * width / 2
    return Polygon([boxes.centers[number, :2] + i * ahead + j * left for i, j in ((1, 1), (1, -1), (-1, -1), (-1, 1))])


def inside(points: np.ndarray, boxes: Boxes, number: int, moving: bool = True) -> np.ndarray:
    """(N,) bool, in float64: inside the box, which is where it was at each point's time."""
    velocity = np.nan_to_num(boxes.velocities[number]) if moving else np.zeros(3)
    centers = boxes.centers[number] - points[:, 4:5].astype(float) * velocity
    local = (points[:, :3].astype(float) - centers) @ boxes.rotations[number]
    return (np.abs(local) <= boxes.sizes[number][[1, 0, 2]] / 2).all(axis=1)


def ordered(*points: np.ndarray) -> np.ndarray:
    """All the points, in an order that does not depend on theirs."""
    every = np.concatenate(points)
    return every[np.lexsort(every.T)]


def upright(*rows: tuple[float, ...]) -> Boxes:
    """Boxes of label 0, each x y z, width length height, yaw, vx vy."""
    n = np.array(rows, float).reshape(-1, 9)
    zero = np.zeros(len(n), int)
    return Boxes.from_yaws(n[:, :3], n[:, 3:6], n[:, 6], n[:, 7:], zero, zero - 1, zero + 1.0)


def ahead(boxes: Boxes, size: tuple[int, int] = (60, 80), seed: int = 0) -> Frame:
    """A frame of nothing but a front camera at the origin, 80 pixels to a radian, with a picture of noise."""
    ego_from_camera = np.eye(4)
    ego_from_camera[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    intrinsics = np.array([[80.0, 0, (size[1] - 1) / 2], [0, 80, (size[0] - 1) / 2], [0, 0, 1]])
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    cameras = {CAMERAS[0]: Camera(noise, intrinsics, ego_from_camera, np.eye(4), 0)}
    return Frame("t", 0, "ego", np.eye(4), np.eye(4), None, cameras, boxes=boxes)
