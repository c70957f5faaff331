"""Reads the files of a drive: LiDAR sweeps, images, JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from perception.datasets.pcd import read_pcd
from perception.errors import InputError
from perception.storage import read

_POINT_BYTES = 5 * 4  # x y z intensity ring, float32


def read_cloud(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Points (N, 5) as of `read_points`, and their times (N,) us where the file has them: a .pcd or .pcd.bin.

    Raises:
        FileNotFoundError: there is no such file; callers treat it as a missing sensor.
        InputError: the file is damaged.
    """
    return read_pcd(path) if path.suffix == ".pcd" else (read_points(path), None)


def read_points(path: Path) -> np.ndarray:
    """(N, 5) float32 x y z (m, sensor frame), intensity (0-255), ring from a nuScenes .pcd.bin file.

    Raises:
        FileNotFoundError: there is no such file; callers treat it as a missing sensor.
        InputError: the file is empty, truncated or holds numbers that are not finite.
    """
    content = read(path)
    if not content:
        raise InputError(f"{path}: an empty sweep (0 bytes); copy the file again or delete it")
    if len(content) % _POINT_BYTES:
        raise InputError(
            f"{path}: {len(content)} bytes are no whole number of {_POINT_BYTES}-byte points (truncated?); "
            "copy the file again or delete it"
        )
    points = np.frombuffer(content, np.float32).reshape(-1, 5)
    if not np.isfinite(points).all():
        bad = ~np.isfinite(points).all(axis=1)
        raise InputError(
            f"{path}: {bad.sum()} of {len(points)} points hold NaN or infinity, first point {bad.argmax()}; "
            "copy the file again or delete it"
        )
    return points


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image file, as recorded.

    Raises:
        FileNotFoundError: there is no such file; callers treat it as a missing sensor.
        InputError: the file is no image or is truncated.
    """
    content = read(path)
    try:
        return decode_image(content)
    except ValueError as error:
        raise InputError(f"{path}: {error} ({len(content)} bytes); copy the file again or delete it") from None


def decode_image(content: bytes) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a JPEG or PNG, as recorded.

    Raises:
        ValueError: the content is no image or is truncated.
    """
    # OpenCV returns a truncated JPEG without an error, with the missing part grey.
    if content.startswith(b"\xff\xd8") and b"\xff\xd9" not in content[-64:]:
        raise ValueError("a truncated JPEG")
    image = None
    if content:
        # The calibration refers to the stored pixels, so the EXIF orientation is ignored.
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if image is None:
        raise ValueError("not a picture that can be decoded")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: the file is absent, or not JSON.
    """
    try:
        return json.loads(read(path))
    except (FileNotFoundError, ValueError) as error:
        raise InputError(f"{path}: no JSON file ({' '.join(str(error).split())})") from None
