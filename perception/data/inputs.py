"""A frame made into the arrays that the network and its exported engine take. numpy and OpenCV only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from perception.config import CameraBranch, Config, Image, Lidar
from perception.data.pillars import group
from perception.frame import CAMERAS, Frame
from perception.grid import BevGrid


@dataclass(frozen=True)
class InputSpec:
    """What a model takes: the grid, and for each of its sensors the settings that shape the arrays."""

    grid: BevGrid
    lidar: Lidar | None
    camera: CameraBranch | None

    @staticmethod
    def of(config: Config) -> InputSpec:
        return InputSpec(config.grid.build(), config.model.lidar, config.model.camera)

    @property
    def sweeps(self) -> int:
        """LiDAR sweeps before the keyframe that the model wants in its frames."""
        return 0 if self.lidar is None else self.lidar.sweeps


def prepare(
    frame: Frame, spec: InputSpec, image_affines: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Inputs of one frame, with a batch dimension of 1; a missing sensor becomes padding and zeros.

    Args:
        frame: in the reference frame of the grid.
        spec: the model's sensors and sizes.
        image_affines: for some cameras, another (3, 3) network pixels from recorded pixels than `fit_width`.

    Returns:
        With LiDAR: pillar_points (1, P, M, 5) float32, pillar_counts (1, P) int32, pillar_cells (1, P) int32.
        With cameras: images (1, 6, H, W, 3) uint8 RGB, image_from_reference (1, 6, 3, 4) float32, which projects
        reference points to network pixels.
    """
    if frame.reference != spec.grid.reference:
        raise ValueError(f"the frame is in {frame.reference!r}, the model's grid in {spec.grid.reference!r}")
    inputs: dict[str, np.ndarray] = {}
    if spec.lidar is not None:
        inputs |= _lidar_inputs(frame, spec.grid, spec.lidar)
    if spec.camera is not None:
        inputs |= _camera_inputs(frame, spec.camera.image, image_affines or {})
    return inputs


def _lidar_inputs(frame: Frame, grid: BevGrid, lidar: Lidar) -> dict[str, np.ndarray]:
    inputs = {
        "pillar_points": np.zeros((1, lidar.max_pillars, lidar.points_per_pillar, 5), np.float32),
        "pillar_counts": np.zeros((1, lidar.max_pillars), np.int32),
        "pillar_cells": np.full((1, lidar.max_pillars), grid.cells, np.int32),
    }
    if frame.points is not None:
        points, counts, cells = group(frame.points, grid, lidar.max_pillars, lidar.points_per_pillar)
        inputs["pillar_points"][0, : len(cells)] = points
        inputs["pillar_counts"][0, : len(cells)] = counts
        inputs["pillar_cells"][0, : len(cells)] = cells
    return inputs


def _camera_inputs(frame: Frame, size: Image, affines: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    images = np.zeros((1, len(CAMERAS), size.height, size.width, 3), np.uint8)
    projections = np.zeros((1, len(CAMERAS), 3, 4), np.float32)
    for i, name in enumerate(CAMERAS):
        if name in frame.cameras:
            recorded = frame.cameras[name].image
            affine = affines[name] if name in affines else fit_width(recorded.shape, size)
            images[0, i] = warp(recorded, affine, size)
            projections[0, i] = affine @ frame.image_from_reference(name)
    return {"images": images, "image_from_reference": projections}


def fit_width(recorded: tuple[int, ...], size: Image) -> np.ndarray:
    """(3, 3) network pixels from recorded pixels: scale to the network's width and keep the bottom rows.

    The sky is cut off; a picture that is lower than the network's gets black rows on top. Integer coordinates are
    the middles of pixels, so a scale by s takes u to s (u + 0.5) - 0.5.
    """
    height, width = recorded[:2]
    scale = size.width / width
    shift = 0.5 * scale - 0.5
    return np.array([[scale, 0, shift], [0, scale, shift + size.height - scale * height], [0, 0, 1]])


def warp(recorded: np.ndarray, affine: np.ndarray, size: Image) -> np.ndarray:
    """(height, width, 3) uint8 picture whose pixel affine @ p shows the recorded pixel p; black outside it.

    Bilinear interpolation alone would skip pixels where the picture shrinks by more than 2, so whole multiples
    are averaged away first.
    """
    height, width = recorded.shape[:2]
    shrink = int(1 / np.sqrt(abs(np.linalg.det(affine[:2, :2]))))
    if shrink > 1:
        recorded = cv2.resize(recorded, (width // shrink, height // shrink), interpolation=cv2.INTER_AREA)
        x, y = width / recorded.shape[1], height / recorded.shape[0]
        affine = affine @ np.array([[x, 0, 0.5 * x - 0.5], [0, y, 0.5 * y - 0.5], [0, 0, 1]])
    return cv2.warpAffine(recorded, affine[:2], (size.width, size.height), flags=cv2.INTER_LINEAR)
