"""The points of a recorded sweep, from packed bytes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from deploy.replay.sources.messages import Cloud, CorruptMessage, checked_name

_COLUMNS = ("x", "y", "z", "intensity", "ring")
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
    if any(name not in fields for name in _COLUMNS[:3]):
        raise CorruptMessage("points without x, y or z")
    rows = np.ascontiguousarray(data).reshape(-1, step)
    points = np.zeros((len(rows), 5), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for i, name in enumerate(_COLUMNS):
            if name in fields:
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

    return Cloud(stamp, checked_name(frame), points, column)


def _numbers(rows: np.ndarray, offset: int, dtype: np.dtype) -> np.ndarray:
    """(N,) numbers at a byte offset of the points."""
    if not 0 <= offset <= rows.shape[1] - dtype.itemsize:
        raise CorruptMessage("a field outside the point")
    return np.asarray(rows[:, offset : offset + dtype.itemsize].copy().view(dtype)[:, 0])
