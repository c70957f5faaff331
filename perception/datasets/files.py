"""Reading the sensor files of a drive, LiDAR sweeps and images; errors are one line."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from perception.errors import InputError

_POINT_BYTES = 5 * 4  # x y z intensity ring, float32


def read_points(path: Path) -> np.ndarray:
    """(N, 5) float32 x y z (m, sensor frame), intensity (0-255), ring of a nuScenes .pcd.bin file.

    Raises:
        FileNotFoundError: there is no such file; a missing sensor is the caller's to handle.
        InputError: the file is empty, truncated or holds numbers that are not finite.
    """
    content = _read(path)
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


def read_picture(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB, as recorded.

    Raises:
        FileNotFoundError: there is no such file; a missing sensor is the caller's to handle.
        InputError: the file is no image or is truncated.
    """
    content = _read(path)
    try:
        return decode_picture(content)
    except ValueError as error:
        raise InputError(f"{path}: {error} ({len(content)} bytes); copy the file again or delete it") from None


def decode_picture(content: bytes) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a JPEG or PNG, as recorded.

    Raises:
        ValueError: it is no image or is truncated.
    """
    # OpenCV fills the missing rest of a truncated JPEG with grey and returns it as if it were whole.
    if content.startswith(b"\xff\xd8") and b"\xff\xd9" not in content[-64:]:
        raise ValueError("a truncated JPEG")
    picture = None
    if content:
        # The calibration belongs to the stored pixels, so an EXIF orientation must not turn them.
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if picture is None:
        raise ValueError("not a picture that can be decoded")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot read the file ({error.strerror})") from None
