"""A step of mmdet3d's pipeline that accepts missing camera images, as in keyframes of nuScenes' scene-0103."""

from __future__ import annotations

from typing import Any

import numpy as np

from perception.mmdet3d.install import CAMERAS, import_mmdet3d

import_mmdet3d()

from mmdet3d.datasets.transforms import LoadMultiViewImageFromFiles  # noqa: E402
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
