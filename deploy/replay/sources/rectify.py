"""Pictures as a camera took them, made those of a pinhole: networks know no lens.

The lens models are those of ROS's CameraInfo and image_pipeline: plumb_bob and rational_polynomial (Brown, "Close-range
camera calibration", 1971, with OpenCV's extensions) and equidistant (Kannala and Brandt, 2006).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

# Numbers of distortion coefficients that OpenCV takes.
COEFFICIENTS = {"plumb_bob": (4, 5), "rational_polynomial": (8, 12, 14), "equidistant": (4,)}


@dataclass(frozen=True, eq=False)
class Lens:
    """How a picture was taken, and which pinhole it becomes."""

    model: str  # a key of COEFFICIENTS
    coefficients: np.ndarray
    taken: np.ndarray  # (3, 3) intrinsics of the picture as taken
    rotation: np.ndarray  # (3, 3) rectified camera from the camera as mounted
    pinhole: np.ndarray  # (3, 3) intrinsics of the rectified picture
    size: tuple[int, int]  # width, height in pixels, of both

    @property
    def known(self) -> bool:
        """Whether the model is one that can be computed with so many coefficients."""
        return len(self.coefficients) in COEFFICIENTS.get(self.model, ())

    def equals(self, other: Lens | None) -> bool:
        if other is None or (self.model, self.size) != (other.model, other.size):
            return False
        names = ("coefficients", "taken", "rotation", "pinhole")
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names)

    @cached_property
    def _maps(self) -> tuple[np.ndarray, np.ndarray]:
        """Where in the picture as taken each rectified pixel is found, in OpenCV's fixed-point form."""
        arguments = (self.taken, self.coefficients, self.rotation, self.pinhole, self.size, cv2.CV_16SC2)
        if self.model == "equidistant":
            return cv2.fisheye.initUndistortRectifyMap(*arguments)
        return cv2.initUndistortRectifyMap(*arguments)

    def rectified(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) as a pinhole sees it; black where the lens did not look."""
        return np.asarray(cv2.remap(image, *self._maps, cv2.INTER_LINEAR))
