"""Sensors of the ego vehicle, with mounting, intrinsics and trigger times as on the nuScenes cars."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perception.frame import CAMERAS, LIDAR

IMAGE_SIZE = (800, 450)  # pixels: width, height; half of nuScenes' 1600 x 900


@dataclass(frozen=True)
class Sensor:
    """One sensor and its calibration."""

    channel: str
    ego_from_sensor: np.ndarray  # (4, 4)
    intrinsics: np.ndarray | None  # (3, 3) pixels; None for the LiDAR
    delay: float  # s, from the LiDAR's timestamp to this sensor's


def _pose(x: float, y: float, z: float, rotation: np.ndarray) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, (x, y, z)
    return pose


def _camera(
    channel: str, position: tuple[float, float, float], yaw_degrees: float, focal: float, delay: float
) -> Sensor:
    yaw = np.radians(yaw_degrees)
    right = (np.sin(yaw), -np.cos(yaw), 0.0)
    ahead = (np.cos(yaw), np.sin(yaw), 0.0)
    rotation = np.stack([right, (0.0, 0.0, -1.0), ahead], axis=1).round(12)
    intrinsics = np.array([[focal, 0, IMAGE_SIZE[0] / 2], [0, focal, 235.0], [0, 0, 1]])
    return Sensor(channel, _pose(*position, rotation), intrinsics, delay)


def _rig() -> dict[str, Sensor]:
    # The LiDAR turns clockwise, and each camera is triggered as the beam passes its view: before the sweep's timestamp.
    cameras = [
        _camera("CAM_FRONT", (1.70, 0.0, 1.51), 0.0, 633.0, -0.035),
        _camera("CAM_FRONT_RIGHT", (1.55, -0.49, 1.50), -55.0, 633.0, -0.027),
        _camera("CAM_FRONT_LEFT", (1.55, 0.49, 1.50), 55.0, 633.0, -0.043),
        _camera("CAM_BACK", (0.03, 0.0, 1.57), 180.0, 405.0, -0.010),
        _camera("CAM_BACK_LEFT", (1.03, 0.48, 1.57), 109.0, 633.0, -0.001),
        _camera("CAM_BACK_RIGHT", (1.03, -0.48, 1.57), -109.0, 633.0, -0.019),
    ]
    # In the LiDAR's frame x points right and y forward.
    ego_from_lidar = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    lidar = Sensor(LIDAR, _pose(0.94, 0.0, 1.84, ego_from_lidar), None, 0.0)
    rig = {sensor.channel: sensor for sensor in [*cameras, lidar]}
    return {channel: rig[channel] for channel in (LIDAR, *CAMERAS)}


RIG = _rig()
