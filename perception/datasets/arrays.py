"""A frame from arrays in memory, such as the points of a driver and the pictures of a camera."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

from perception.datasets.sweeps import Sweep, global_from_reference, join_lidars
from perception.errors import InputError
from perception.frame import Camera, Conditions, Frame, reduce_intrinsics
from perception.grid import Reference
from perception.rig import Rig, RigCamera, require_cameras


def frame_of(
    rig: Rig,
    reference: Reference,
    points: Mapping[str, np.ndarray],
    images: Mapping[str, np.ndarray],
    pose: np.ndarray | None,
    timestamp: int,
    conditions: Conditions,
    name: str,
) -> Frame:
    """Build a frame from arrays, for a rig whose sensors all have mounts; arguments as in `Network.frame`."""
    rig.require_calibration()
    require_cameras([*images], rig, name)
    lidars, here = rig.sensors.lidars, np.eye(4) if pose is None else np.asarray(pose, np.float64)
    if strange := [lidar for lidar in points if lidar not in lidars]:
        raise InputError(f"{name}: {strange[0]} is no LiDAR of the rig {rig.name}; it has {', '.join(lidars)}")
    to_global = global_from_reference(here, rig.lidars[0].ego_from_sensor, reference)
    sweeps = {
        lidars.index(lidar): [
            Sweep(standard_points(each), timestamp, here, rig.lidars[lidars.index(lidar)].ego_from_sensor)
        ]
        for lidar, each in points.items()
    }
    cameras = {each.name: each for each in rig.cameras}
    return Frame(
        token=name,
        timestamp=timestamp,
        reference=reference,
        global_from_reference=to_global,
        global_from_ego=here,
        cameras={camera: _camera(each, cameras[camera], here, timestamp) for camera, each in images.items()},
        conditions=conditions,
        scene=name,
        placed=pose is not None,
        **join_lidars(sweeps, timestamp, np.linalg.inv(to_global), rig.own)._asdict(),
    )


def standard_points(points: np.ndarray) -> np.ndarray:
    """Points (N, >=4), x y z (m) and an intensity, as (M, 5) float32 with ring 0; intensities of 0-1 become 0-255.

    Points that are not finite, as drivers give them for beams without a return, are left out.

    Raises:
        ValueError: it is no such array.
    """
    if points.ndim != 2 or points.shape[1] < 4 or points.dtype.kind not in "fiu":
        raise ValueError(f"points are an array (N, 4) of x y z intensity, not {points.dtype} {points.shape}")
    there = points[np.isfinite(points[:, :4]).all(axis=1), :4]
    found = np.zeros((len(there), 5), np.float32)
    found[:, :4] = there
    found[:, 3] *= 255 if found[:, 3].max(initial=0) <= 1 else 1
    return found


def intrinsics_for(camera: RigCamera, size: tuple[int, int]) -> np.ndarray | None:
    """(3, 3) intrinsics of a picture of this width and height that shows what the camera's does; None: it does not."""
    width, height = camera.size
    same = abs(size[0] * height - size[1] * width) <= max(width, height)
    return reduce_intrinsics(camera.intrinsics, width / size[0]) if same else None


def _camera(image: np.ndarray, camera: RigCamera, global_from_ego: np.ndarray, timestamp: int) -> Camera:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InputError(f"{camera.name}: a picture is an array (H, W, 3) uint8 RGB, not {image.dtype} {image.shape}")
    height, width = image.shape[:2]
    intrinsics = intrinsics_for(camera, (width, height))
    if intrinsics is None:
        raise InputError(
            f"{camera.name}: the picture is {width}x{height}, but its calibration is for "
            f"{camera.size[0]}x{camera.size[1]}; use the picture as recorded, or reduced in size"
        )
    if camera.lens is not None and camera.lens.distortion:
        image = cv2.undistort(image, intrinsics, np.array(camera.lens.distortion))
    return Camera(image, intrinsics, camera.ego_from_sensor, global_from_ego, timestamp)
