"""Rectify pictures, because networks expect those of a pinhole camera.

The lens models are those of ROS's CameraInfo and image_pipeline: plumb_bob and rational_polynomial (Brown, "Close-range
camera calibration", 1971, with OpenCV's extensions) and equidistant (Kannala and Brandt, 2006).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

# Distortion model -> numbers of coefficients that OpenCV accepts.
COEFFICIENTS = {"plumb_bob": (4, 5), "rational_polynomial": (8, 12, 14), "equidistant": (4,)}


@dataclass(frozen=True, eq=False)
class Lens:
    """The lens of a raw picture, and the pinhole camera of the rectified one."""

    model: str  # a key of COEFFICIENTS
    coefficients: np.ndarray
    raw_intrinsics: np.ndarray  # (3, 3) of the raw picture
    rotation: np.ndarray  # (3, 3) rectified from mounted camera
    rectified_intrinsics: np.ndarray  # (3, 3) of the rectified picture
    size: tuple[int, int]  # width, height in pixels, of both pictures

    @property
    def known(self) -> bool:
        """Whether OpenCV supports the model with this number of coefficients."""
        return len(self.coefficients) in COEFFICIENTS.get(self.model, ())

    def equals(self, other: Lens | None) -> bool:
        if other is None or (self.model, self.size) != (other.model, other.size):
            return False
        names = ("coefficients", "raw_intrinsics", "rotation", "rectified_intrinsics")
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names)

    @cached_property
    def _remap_tables(self) -> tuple[np.ndarray, np.ndarray]:
        """Position of each rectified pixel in the raw picture, in OpenCV's fixed-point format."""
        arguments = (
            self.raw_intrinsics,
            self.coefficients,
            self.rotation,
            self.rectified_intrinsics,
            self.size,
            cv2.CV_16SC2,
        )
        if self.model == "equidistant":
            return cv2.fisheye.initUndistortRectifyMap(*arguments)
        return cv2.initUndistortRectifyMap(*arguments)

    def rectify(self, image: np.ndarray) -> np.ndarray:
        """Rectify a picture (H, W, 3); pixels outside the raw picture are black."""
        return np.asarray(cv2.remap(image, *self._remap_tables, cv2.INTER_LINEAR))
