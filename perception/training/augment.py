"""Geometrically consistent augmentation: one similarity of the BEV, and one affine transformation for each image.

As in Huang et al., "BEVDet: High-performance multi-camera 3D object detection in bird-eye-view", 2021, section 3.3.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from perception.config import Augment
from perception.frame import Frame
from perception.sensors import SENSORS
from perception.sensors.camera.config import Image
from perception.sensors.camera.picture import fit_width


class Augmentation:
    """One augmentation, drawn at random as far as it is needed, of one frame or of all frames of a clip.

    Args:
        settings: None: frames stay as they are.
        size: of the network's pictures; None: it has none.

    Attributes:
        similarity: (4, 4) augmented_from_reference.
        affines: camera -> (3, 3) network pixels from recorded pixels, of the cameras of the frames so far.
    """

    def __init__(self, rng: np.random.Generator, settings: Augment | None, size: Image | None) -> None:
        self._rng, self._settings, self._size = rng, settings, size
        self.similarity = np.eye(4) if settings is None else draw_similarity(rng, settings)
        self.affines: dict[str, np.ndarray] = {}

    def apply(self, frame: Frame) -> Frame:
        """The frame under the similarity; its cameras are among the affine transformations then."""
        if self._settings is None:
            return frame
        frame = frame.transformed(self.similarity)
        moved = {name: SENSORS[scan.kind].moved(scan, self.similarity) for name, scan in frame.scans.items()}
        frame = replace(frame, scans=moved)
        frame = shuffle_points(frame, self._rng) if self._settings.shuffle else frame
        for name, camera in frame.cameras.items():
            if self._size is not None and name not in self.affines:
                self.affines[name] = draw_image_affine(self._rng, self._settings, camera.image.shape, self._size)
        return frame


def draw_similarity(rng: np.random.Generator, settings: Augment) -> np.ndarray:
    """(4, 4) augmented_from_reference: random flip, rotation about z, scale and translation, in this order."""
    signs = rng.choice([-1.0, 1.0], size=2) if settings.flip else np.ones(2)
    angle = rng.uniform(-settings.rotation, settings.rotation)
    scale = rng.uniform(1 - settings.scale, 1 + settings.scale)
    cos, sin = np.cos(angle), np.sin(angle)
    similarity = np.eye(4)
    similarity[:2, :2] = np.array([[cos, -sin], [sin, cos]]) * signs
    similarity[:3, :3] *= scale
    similarity[:3, 3] = rng.normal(0, settings.translation, size=3)
    return similarity


def shuffle_points(frame: Frame, rng: np.random.Generator) -> Frame:
    """The frame with its points in random order, so that a pillar with too many keeps random ones."""
    if frame.points is None:
        return frame
    return frame.select_points(rng.permutation(len(frame.points)))


def draw_image_affine(
    rng: np.random.Generator, settings: Augment, recorded: tuple[int, ...], size: Image
) -> np.ndarray:
    """(3, 3) network pixels from recorded pixels: `fit_width`, then random zoom, shift, flip and rotation.

    The shift is limited such that an enlarged image covers the network's image and a reduced one stays inside it; with
    `image_crop: bottom` its last row is that of the network's image. The rotation is about the middle of the network's
    image, and leaves black corners.
    """
    change, middle = settings.image_scale, np.array([size.width - 1, size.height - 1]) / 2
    zoom = rng.uniform(*((1 - change, 1 + change) if isinstance(change, float) else change))
    mirror = settings.image_flip and rng.random() < 0.5
    slack = abs(zoom - 1) * np.array([size.width, size.height]) / 2
    shift = rng.uniform(-slack, slack)
    if settings.image_crop == "bottom":
        shift[1] = (1 - zoom) * size.height / 2
    linear = np.diag([-zoom if mirror else zoom, zoom])
    affine = _about(middle, linear, shift) @ fit_width(recorded, size)
    if settings.image_rotation == 0:
        return affine
    angle = np.radians(rng.uniform(-settings.image_rotation, settings.image_rotation))
    cos, sin = np.cos(angle), np.sin(angle)
    return _about(middle, np.array([[cos, -sin], [sin, cos]])) @ affine


def _about(middle: np.ndarray, linear: np.ndarray, shift: np.ndarray | float = 0.0) -> np.ndarray:
    """(3, 3) affine transformation of pixels with a linear part (2, 2) that moves `middle` by `shift`."""
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = middle + shift - linear @ middle
    return matrix
