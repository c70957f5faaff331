"""What mmdet3d's pipeline gives of a frame becomes a Frame of ours, so that one way leads from there to the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perception.errors import InputError
from perception.frame import CAMERAS, Camera, Frame
from perception.mmdet3d.install import import_mmdet3d
from perception.sensors.lidar.sweeps import far_enough

import_mmdet3d()

from mmdet3d.models.layers.fusion_layers.coord_transform import apply_3d_transformation  # noqa: E402


def frame_of(points: Tensor | None, pictures: Tensor | None, meta: Mapping[str, Any]) -> Frame:
    """One frame, in the LiDAR's frame of reference as the pipeline's augmentation left it.

    Args:
        points: (N, 5) x y z (m), intensity (0-255), dt (s, >= 0).
        pictures: (6, 3, H, W) RGB 0-255, in the order of CAMERAS, padded at the right and at the bottom.
        meta: of mmdet3d's sample. With pictures it has `cam2img`, (3, 3) each, and `lidar2cam`, (4, 4) each, at the
            picture's own time, zeros for a camera that is missing; and `img_shape` and `ori_shape`.

    Raises:
        InputError: not six pictures, or the pipeline has resized or mirrored them.
    """
    recorded_from_reference = _before_augmentation(meta)
    return Frame(
        token="",
        timestamp=0,
        reference="lidar",
        global_from_reference=recorded_from_reference,  # global: the LiDAR's frame as recorded
        global_from_ego=np.eye(4),
        points=None if points is None else _off_the_roof(points.detach().cpu().numpy(), recorded_from_reference),
        cameras={} if pictures is None else _cameras(pictures, meta),
    )


def _before_augmentation(meta: Mapping[str, Any]) -> np.ndarray:
    """(4, 4): points of the sample to where they were recorded."""
    corners = apply_3d_transformation(torch.eye(4, 3).roll(1, dims=0), "LIDAR", dict(meta), reverse=True)
    origin, *axes = corners.numpy().astype(np.float64)
    undone = np.eye(4)
    undone[:3, :3], undone[:3, 3] = np.column_stack(axes) - origin[:, None], origin
    return undone


def _off_the_roof(points: np.ndarray, recorded_from_reference: np.ndarray) -> np.ndarray:
    """Without the returns from the vehicle's own roof, as float32.

    mmdet3d drops them in earlier sweeps alone, in the sensor's frame; in the keyframe, dt is 0.
    """
    recorded = points[:, :3] @ recorded_from_reference[:3, :3].T + recorded_from_reference[:3, 3]
    return np.ascontiguousarray(points[far_enough(recorded) | (points[:, 4] > 0)], np.float32)


def _cameras(pictures: Tensor, meta: Mapping[str, Any]) -> dict[str, Camera]:
    if len(pictures) != len(CAMERAS):
        raise InputError(
            f"mmdet3d's pipeline gives {len(pictures)} pictures of a frame, it must be {len(CAMERAS)}, in the order "
            f"{', '.join(CAMERAS)}; the step LoadViewsThatAreThere stands in for those that are missing"
        )
    height, width = _recorded_size(pictures, meta)
    rgb = pictures[:, :, :height, :width].to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    cameras = {}
    for name, image, intrinsics, camera_from_lidar in zip(
        CAMERAS, rgb, meta["cam2img"], meta["lidar2cam"], strict=True
    ):
        if np.any(intrinsics):
            lidar_from_camera = np.linalg.inv(np.asarray(camera_from_lidar, np.float64))
            cameras[name] = Camera(image, np.asarray(intrinsics, np.float64), lidar_from_camera, np.eye(4), 0)
    return cameras


def _recorded_size(pictures: Tensor, meta: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width. The network's own resizing and the calibration are for pictures as recorded."""
    loaded, size, there = meta.get("ori_shape"), meta.get("img_shape"), tuple(pictures.shape[-2:])
    if size is None or size != loaded or np.any(meta.get("flip", False)) or any(np.greater(size, there)):
        raise InputError(
            f"mmdet3d's pipeline has changed the pictures, {size} in size, {loaded} as loaded, {there} at the end; "
            "leave out the steps that resize, crop or mirror them: the network resizes them itself"
        )
    height, width = size
    return int(height), int(width)
