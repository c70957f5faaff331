"""What messages carry, whatever their schema: points with their times, and pictures."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

from deploy.recordings.messages import Cloud, CorruptMessage, Picture, check_name, picture
from deploy.recordings.topics import LidarTopic
from perception.datasets.files import decode_image, picture_size

# Drivers name and count the times of points in their own ways:
#
# - Ouster (ouster-ros): `t`, uint32 ns after the stamp
# - Velodyne (ros-drivers/velodyne): `time`, float32 s after the stamp, below 0 where the stamp is that of the last
#   packet
# - Hesai (HesaiLidar_ROS), RoboSense: `timestamp`, float64 s since 1970
# - Livox (livox_ros_driver2): `timestamp`, float64 ns since 1970; `offset_time`, uint32 ns after the stamp
# - Nebula (Autoware): `time_stamp`, uint32 ns after the stamp

# Names of the columns; drivers and converters call the intensity differently, and the first that is there counts.
_COLUMNS = (("x",), ("y",), ("z",), ("intensity", "i", "reflectivity"), ("ring",))
_MAX_POINTS = 1 << 22
_MAX_COORDINATE = 1e4  # m from the LiDAR
_MAX_INTENSITY = 65535  # also the largest ring

Fields = Mapping[str, tuple[int, np.dtype]]  # name -> byte offset and type


def cloud(stamp: int, frame: str, fields: Fields, step: int, data: np.ndarray, dense: bool) -> Cloud:
    """Make a sweep from packed points.

    Args:
        fields: x, y and z are required; a missing intensity or ring is 0.
        step: bytes from one point to the next.
        data: (N * step,) uint8.
        dense: whether a non-finite point is damage; otherwise it is a beam without a return, which is removed.
    """
    if not 0 < step <= 1 << 12 or data.size % step:
        raise CorruptMessage("data of a size that is not a multiple of the point's")
    if data.size // step > _MAX_POINTS:
        raise CorruptMessage("too many points")
    if any(name not in fields for name in "xyz"):
        raise CorruptMessage("points without x, y or z")
    rows = np.ascontiguousarray(data).reshape(-1, step)
    points = np.zeros((len(rows), 5), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for i, names in enumerate(_COLUMNS):
            for name in [each for each in names if each in fields][:1]:
                points[:, i] = _numbers(rows, *fields[name])
    finite = np.isfinite(points).all(axis=1)
    every = bool(finite.all())
    if not every:
        if dense:
            raise CorruptMessage("points that are not finite")
        points = points[finite]
    if (np.abs(points[:, :3]) > _MAX_COORDINATE).any():
        raise CorruptMessage("points beyond the range of a LiDAR")
    if (np.abs(points[:, 3:]) > _MAX_INTENSITY).any():
        raise CorruptMessage("intensities or rings out of range")

    def column(name: str) -> np.ndarray | None:
        if name not in fields:
            return None
        numbers = _numbers(rows, *fields[name])
        return numbers if every else numbers[finite]

    return Cloud(stamp, check_name(frame), points, column)


def _numbers(rows: np.ndarray, offset: int, dtype: np.dtype) -> np.ndarray:
    """(N,) numbers at a byte offset of the points."""
    if not 0 <= offset <= rows.shape[1] - dtype.itemsize:
        raise CorruptMessage("a field outside the point")
    return np.asarray(rows[:, offset : offset + dtype.itemsize].copy().view(dtype)[:, 0])


NAMES = ("t", "time", "timestamp", "time_stamp", "offset_time")
UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_LONGEST = 1.0  # s between a point and its stamp
_SHORTEST = 1e-3  # s from the first point to the last; less means that they are counted in another unit


def point_times(cloud: Cloud, topic: LidarTopic) -> np.ndarray | None:
    """(N,) float64 s from the stamp of a sweep to each of its points; None without times, or if none differs from it.

    Whole numbers are nanoseconds. Other numbers are seconds or, where those would be far from the stamp, nanoseconds;
    after the stamp or, where that is far from it, since 1970. The topic may name the field and its unit. Times that
    fit neither the stamp nor the time that a sweep takes are corrupt.
    """
    if topic.compensated or not len(cloud.points):
        return None
    names = NAMES if topic.time_field is None else (topic.time_field,)
    column = next((found for name in names if (found := cloud.column(name)) is not None), None)
    if column is None:
        if topic.time_field is not None:
            raise CorruptMessage("points without the field of their times")
        return None
    units = ("ns",) if column.dtype.kind in "iu" else ("s", "ns")
    for unit in units if topic.time_unit is None else (topic.time_unit,):
        times = _after(column, unit, cloud.stamp)
        if times is not None and not times.any():
            return None
        if times is not None and (topic.time_unit is not None or np.ptp(times) >= _SHORTEST):
            return times
    raise CorruptMessage("times of points that do not fit the stamp")


def _after(column: np.ndarray, unit: str, stamp: int) -> np.ndarray | None:
    """(N,) s after the stamp (us); None if they are far from it."""
    for start in (0, stamp * 1e-6 / UNITS[unit]):
        times = (column.astype(np.float64) - start) * UNITS[unit]
        if (np.abs(times) <= _LONGEST).all():
            return np.asarray(times)
    return None


# Raw encoding -> bytes per pixel, and OpenCV's conversion to RGB.
_RAW = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
    "8UC3": (3, cv2.COLOR_BGR2RGB),
    "8UC1": (1, cv2.COLOR_GRAY2RGB),
}


def compressed_picture(stamp: int, frame: str, content: bytes) -> Picture:
    """Make a picture from the bytes of a JPEG or PNG file; the message's format field is not trusted.

    Raises:
        CorruptMessage: the header is damaged. Other damage is found when the picture is decoded.
    """
    try:
        size = picture_size(content)
    except ValueError:
        raise CorruptMessage("a picture that cannot be decoded") from None

    def decode() -> np.ndarray:
        try:
            return decode_image(content)
        except (ValueError, cv2.error):
            raise CorruptMessage("a picture that cannot be decoded") from None

    return picture(stamp, frame, decode, size, content)


def raw_picture(stamp: int, frame: str, encoding: str, size: tuple[int, int], step: int, data: np.ndarray) -> Picture:
    """Make a picture from rows of pixels.

    Args:
        size: width, height in pixels.
        step: bytes from one row to the next.
        data: (height * step,) uint8.
    """
    if encoding not in _RAW:
        raise CorruptMessage(
            "an unsupported encoding; 8-bit RGB and BGR, with or without alpha, and grey are supported"
        )
    (width, height), (channels, conversion) = size, _RAW[encoding]
    if step < width * channels or data.size != height * step:
        raise CorruptMessage("data of another size than the picture")

    def decode() -> np.ndarray:
        pixels = data.reshape(height, step)[:, : width * channels].reshape(height, width, channels)
        return pixels.copy() if conversion is None else cv2.cvtColor(np.ascontiguousarray(pixels), conversion)

    return picture(stamp, frame, decode, size)
