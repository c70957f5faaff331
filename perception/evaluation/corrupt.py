"""Sensor corruptions of arrays and frames: noise, lost points, garbled packets, damaged images. numpy and OpenCV only.

Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations", 2019;
Dong et al., "Benchmarking robustness of 3D object detection to common corruptions", 2023.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from perception.datasets.files import MCU
from perception.frame import Frame
from perception.geometry import rotation_about

SECTOR = np.radians(2.0)  # azimuth of one packet of a spinning LiDAR: 12 firings, as of a Velodyne HDL-32E
REACH = 100.0  # m, the largest range in a packet


def blur(image: np.ndarray, pixels: float) -> np.ndarray:
    """(H, W, 3) blurred by a Gaussian with this standard deviation in recorded pixels."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), pixels))


def noisy_image(image: np.ndarray, levels: float, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8 with Gaussian noise of this standard deviation in grey levels."""
    noise = rng.standard_normal(image.shape, np.float32)
    noise *= levels
    noise += image
    return np.clip(np.rint(noise, out=noise), 0, 255, out=noise).astype(np.uint8)


def damage_image(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8 as decoded from a JPEG with damaged bytes.

    A wrong byte derails the Huffman decoding up to the next restart marker, here the end of a row of 16 x 16 blocks:
    blocks after it are shifted, and all are off by one level, because DC coefficients are coded as differences.

    Args:
        share: of damaged rows of blocks.
    """
    rows, columns = image.shape[0] // MCU, image.shape[1] // MCU
    blocks = image[: rows * MCU, : columns * MCU].reshape(rows, MCU, columns, MCU, 3).copy()
    hit = rng.permutation(rows)[: int(np.ceil(share * rows))]
    spoilt = np.arange(columns) >= rng.integers(0, columns, len(hit))[:, None]
    row, column = np.nonzero(spoilt)
    elsewhere = blocks[rng.integers(0, rows, len(row)), :, rng.integers(0, columns, len(row))]
    levels = rng.integers(-96, 97, (len(hit), 1, 1, 3))[row]
    blocks[hit[row], :, column] = np.clip(elsewhere.astype(np.int64) + levels, 0, 255)
    damaged = image.copy()
    damaged[: rows * MCU, : columns * MCU] = blocks.reshape(rows * MCU, columns * MCU, 3)
    return damaged


def noisy_points(frame: Frame, metres: float, rng: np.random.Generator) -> Frame:
    """The frame, which must have points, with Gaussian noise of this standard deviation (m) on their x, y and z."""
    assert frame.points is not None
    noisy = frame.points.copy()
    noisy[:, :3] += metres * rng.standard_normal((len(noisy), 3), np.float32)
    return replace(frame, points=noisy)


def thin_points(frame: Frame, share: float, rng: np.random.Generator) -> Frame:
    """The frame, which must have points, without a random share of them."""
    assert frame.points is not None
    return frame.select_points(rng.random(len(frame.points)) >= share)


def garble_points(frame: Frame, share: float, rng: np.random.Generator) -> Frame:
    """The frame, which must have points, with random ranges and intensities in this share of the packets.

    A packet has the returns of 2 degrees of azimuth of one sweep of a LiDAR, here about the origin of the frame of
    reference. Ranges are up to 100 m; directions do not change.
    """
    points, lidars = frame.points, 0 if frame.lidar_of_point is None else frame.lidar_of_point
    assert points is not None
    assert frame.sweep_of_point is not None
    azimuth = np.floor((np.arctan2(points[:, 1], points[:, 0]) + np.pi) / SECTOR).astype(np.int64)
    _, sweep = np.unique(frame.sweep_of_point + np.int64(256) * lidars, return_inverse=True)
    packets = rng.random((sweep.max(initial=0) + 1, azimuth.max(initial=0) + 1)) < share
    hit = np.flatnonzero(packets[sweep, azimuth])
    garbled = points.copy()
    distance = np.maximum(np.linalg.norm(points[hit, :3], axis=1, keepdims=True), 1e-3)
    garbled[hit, :3] *= rng.uniform(0, REACH, (len(hit), 1)).astype(np.float32) / distance
    garbled[hit, 3] = rng.uniform(0, 255, len(hit))
    return replace(frame, points=garbled)


def move_points(frame: Frame, to_from: np.ndarray) -> Frame:
    """The frame, which must have points, with their x, y and z transformed by a rigid motion (4, 4)."""
    assert frame.points is not None
    placed = frame.points.copy()
    move = to_from.astype(np.float32)
    placed[:, :3] = frame.points[:, :3] @ move[:3, :3].T + move[:3, 3]
    return replace(frame, points=placed)


def displacement(degrees: float, metres: float, rng: np.random.Generator) -> np.ndarray:
    """(4, 4) rigid motion: rotation by these degrees about a random axis, shift by these metres in any direction."""
    axis, way = rng.standard_normal((2, 3))
    motion = np.eye(4)
    motion[:3, :3] = rotation_about(-axis / np.linalg.norm(axis), np.radians(degrees))
    motion[:3, 3] = metres * way / np.linalg.norm(way)
    return motion
