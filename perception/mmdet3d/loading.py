"""A step of mmdet3d's pipeline for drives where pictures are missing, as in keyframes of nuScenes' scene-0103."""

from __future__ import annotations

from typing import Any

import numpy as np

from perception.frame import CAMERAS
from perception.mmdet3d.install import import_mmdet3d

import_mmdet3d()

from mmdet3d.datasets.transforms import LoadMultiViewImageFromFiles  # noqa: E402
from mmdet3d.registry import TRANSFORMS  # noqa: E402
from mmengine.fileio import exists  # noqa: E402


@TRANSFORMS.register_module()
class LoadViewsThatAreThere(LoadMultiViewImageFromFiles):
    """mmdet3d's LoadMultiViewImageFromFiles, which ends with an error where a file is absent.

    Here there are always six pictures, in the order of CAMERAS; one that is missing is black, and its `cam2img` and
    `lidar2cam` are zeros, which is how PerceptionDetector knows it.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Adds and changes what the original does."""
        images = results["images"]
        there = {
            name: images[name]
            for name in CAMERAS
            if name in images and exists(images[name]["img_path"], backend_args=self.backend_args)
        }
        # Where none is there, it is a pixel each: the data preprocessor pads them to the size of the others.
        size = {"img_shape": (1, 1), "ori_shape": (1, 1), "pad_shape": (1, 1)}
        loaded = super().transform({**results, "images": there}) if there else results | size
        for key, missing in (
            ("img", np.zeros((*loaded["img_shape"], 3), np.uint8)),
            ("cam2img", np.zeros((3, 3)).tolist()),
            ("ori_cam2img", np.zeros((3, 3)).tolist()),
            ("lidar2cam", np.zeros((4, 4)).tolist()),
        ):
            views = dict(zip(there, loaded[key] if there else (), strict=True))
            loaded[key] = [views.get(name, missing) for name in CAMERAS]
        return {**loaded, "images": images}
