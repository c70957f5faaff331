"""From mmdet3d's data pipeline to a Frame, so that both share the preprocessing of `prepare`.

One step of the pipeline is ours: it accepts missing camera images, as in keyframes of nuScenes' scene-0103.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perception.errors import InputError
from perception.frame import Camera, Frame
from perception.mmdet3d.install import CAMERAS, import_mmdet3d
from perception.sensors.lidar.sweeps import is_outside_roof

import_mmdet3d()

from mmdet3d.datasets.transforms import LoadMultiViewImageFromFiles  # noqa: E402
from mmdet3d.models.layers.fusion_layers.coord_transform import apply_3d_transformation  # noqa: E402
from mmdet3d.registry import TRANSFORMS  # noqa: E402
from mmengine.fileio import exists  # noqa: E402


@TRANSFORMS.register_module()
class LoadViewsThatAreThere(LoadMultiViewImageFromFiles):
    """LoadMultiViewImageFromFiles without its error for an absent file.

    Returns six images in the order of CAMERAS. A missing one is black, with zeros for `cam2img` and `lidar2cam`, by
    which PerceptionDetector recognises it.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Adds the same keys as LoadMultiViewImageFromFiles."""
        images = results["images"]
        available = {
            name: images[name]
            for name in CAMERAS
            if name in images and exists(images[name]["img_path"], backend_args=self.backend_args)
        }
        # Without any image each is one pixel; the data preprocessor pads them to the size of other frames.
        size = {"img_shape": (1, 1), "ori_shape": (1, 1), "pad_shape": (1, 1)}
        loaded = super().transform({**results, "images": available}) if available else results | size
        for key, missing in (
            ("img", np.zeros((*loaded["img_shape"], 3), np.uint8)),
            ("cam2img", np.zeros((3, 3)).tolist()),
            ("ori_cam2img", np.zeros((3, 3)).tolist()),
            ("lidar2cam", np.zeros((4, 4)).tolist()),
        ):
            views = dict(zip(available, loaded[key] if available else (), strict=True))
            loaded[key] = [views.get(name, missing) for name in CAMERAS]
        return {**loaded, "images": images}


def to_frame(points: Tensor | None, images: Tensor | None, meta: Mapping[str, Any]) -> Frame:
    """One frame, in the LiDAR's frame of reference after the pipeline's augmentation.

    Args:
        points: (N, 5) x y z (m), intensity (0-255), dt (s, >= 0), which mmdet3d sets to 0 in the keyframe's sweep.
        images: (6, 3, H, W) RGB 0-255, in the order of CAMERAS, padded at the right and at the bottom.
        meta: metainfo of mmdet3d's sample. With images it has `cam2img`, (3, 3) each, and `lidar2cam`, (4, 4) each, at
            the time of the image, zeros for a missing camera; and `img_shape` and `ori_shape`.

    Raises:
        InputError: not six images, or the pipeline has resized or mirrored them.
    """
    recorded_from_reference, own = _invert_augmentation(meta), None
    if points is not None:
        own = _without_roof_returns(points.detach().cpu().numpy(), recorded_from_reference)
    return Frame(
        token="",
        timestamp=0,
        reference="lidar",
        global_from_reference=recorded_from_reference,  # "global" is the LiDAR's frame before augmentation
        global_from_ego=np.eye(4),
        points=own,
        sweep_of_point=None if own is None else (own[:, 4] > 0).astype(np.uint8),
        cameras={} if images is None else _cameras(images, meta),
    )


def _invert_augmentation(meta: Mapping[str, Any]) -> np.ndarray:
    """(4, 4) the inverse of the pipeline's augmentation of points."""
    corners = apply_3d_transformation(torch.eye(4, 3).roll(1, dims=0), "LIDAR", dict(meta), reverse=True)
    origin, *axes = corners.numpy().astype(np.float64)
    inverse = np.eye(4)
    inverse[:3, :3], inverse[:3, 3] = np.column_stack(axes) - origin[:, None], origin
    return inverse


def _without_roof_returns(points: np.ndarray, recorded_from_reference: np.ndarray) -> np.ndarray:
    """The points as float32, without returns from the vehicle's own roof.

    mmdet3d removes these from earlier sweeps only; here they are removed from the keyframe, too (dt = 0).
    """
    recorded = points[:, :3] @ recorded_from_reference[:3, :3].T + recorded_from_reference[:3, 3]
    return np.ascontiguousarray(points[is_outside_roof(recorded) | (points[:, 4] > 0)], np.float32)


def _cameras(images: Tensor, meta: Mapping[str, Any]) -> dict[str, Camera]:
    if len(images) != len(CAMERAS):
        raise InputError(
            f"mmdet3d's pipeline gives {len(images)} pictures of a frame, it must be {len(CAMERAS)}, in the order "
            f"{', '.join(CAMERAS)}; the step LoadViewsThatAreThere stands in for those that are missing"
        )
    height, width = _recorded_size(images, meta)
    rgb = images[:, :, :height, :width].to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    cameras = {}
    for name, image, intrinsics, camera_from_lidar in zip(
        CAMERAS, rgb, meta["cam2img"], meta["lidar2cam"], strict=True
    ):
        if np.any(intrinsics):
            lidar_from_camera = np.linalg.inv(np.asarray(camera_from_lidar, np.float64))
            cameras[name] = Camera(image, np.asarray(intrinsics, np.float64), lidar_from_camera, np.eye(4), 0)
    return cameras


def _recorded_size(images: Tensor, meta: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width without padding. Calibration and `prepare` need images in their recorded size."""
    loaded, size, padded = meta.get("ori_shape"), meta.get("img_shape"), tuple(images.shape[-2:])
    if size is None or size != loaded or np.any(meta.get("flip", False)) or any(np.greater(size, padded)):
        raise InputError(
            f"mmdet3d's pipeline has changed the pictures, {size} in size, {loaded} as loaded, {padded} at the end; "
            "leave out the steps that resize, crop or mirror them: the network resizes them itself"
        )
    height, width = size
    return int(height), int(width)
