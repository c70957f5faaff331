"""What a recording says, message by message, checked: nothing that is damaged gets past the constructors here.

Times are microseconds, as the stamps of nuScenes. Reasons of refusal are fixed texts, so that they can be counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from deploy.replay.sources.rectify import Lens
from perception.frame import CONDITIONS, Conditions

LATEST = 1 << 53  # us; later than any clock says, and still whole as a float
_MOST_POINTS = 1 << 22
_FARTHEST = 1e4  # m from the LiDAR; farther is damage
_BRIGHTEST = 65535  # of intensities, and of rings
_LARGEST_PICTURE = 1 << 14  # pixels along an edge
_LONGEST_NAME = 200  # characters


class Corrupt(ValueError):
    """A message that cannot be used; its text is the reason, without the values in it."""


@dataclass(frozen=True)
class Cloud:
    """One LiDAR sweep."""

    stamp: int
    frame: str
    points: np.ndarray  # (N, 5) float32 x y z (m), intensity, ring; sensor frame


@dataclass(frozen=True)
class Picture:
    """One camera's picture, decoded when it is known to be needed."""

    stamp: int
    frame: str
    decode: Callable[[], np.ndarray]  # (H, W, 3) uint8 RGB; raises Corrupt
    size: tuple[int, int]  # width, height in pixels, as the message says


@dataclass(frozen=True)
class Intrinsics:
    """Calibration of a camera."""

    stamp: int
    frame: str
    size: tuple[int, int]  # width, height in pixels
    matrix: np.ndarray  # (3, 3) of the rectified picture
    lens: Lens | None  # of the picture as taken; None where that is the same


@dataclass(frozen=True)
class Transform:
    """Where a frame of reference is in its parent at one time."""

    stamp: int
    parent: str
    child: str
    translation: np.ndarray  # (3,) m
    rotation: np.ndarray  # (4,) quaternion w x y z


@dataclass(frozen=True)
class Keyframe:
    """A moment to make a frame of, and what no sensor records: token, drive, place and tagged conditions."""

    stamp: int  # of the LiDAR sweep
    token: str
    scene: str
    location: str
    conditions: Conditions
    sweeps: tuple[int, ...]  # stamps of the sweeps before it, latest first


Content = Cloud | Picture | Intrinsics | Transform | Keyframe


def stamp_of(seconds: int, nanoseconds: int) -> int:
    """us of a stamp in two parts."""
    if not (0 <= nanoseconds < 1_000_000_000 and 0 <= seconds <= LATEST // 1_000_000):
        raise Corrupt("a stamp that is no time")
    return int(seconds) * 1_000_000 + int(nanoseconds) // 1000


def cloud(
    stamp: int, frame: str, fields: Mapping[str, tuple[int, np.dtype]], step: int, data: np.ndarray, dense: bool
) -> Cloud:
    """A sweep of packed points.

    Args:
        fields: byte offset and type of each; x, y, z must be there. Without intensity or ring they are 0.
        step: bytes from one point to the next.
        data: (N * step,) uint8.
        dense: a point that is not finite is damage; otherwise it is a beam that came back from nothing.
    """
    if not 0 < step <= 1 << 12 or data.size % step:
        raise Corrupt("data that is no whole number of points")
    if data.size // step > _MOST_POINTS:
        raise Corrupt("more points than a LiDAR gives")
    names = ("x", "y", "z", "intensity", "ring")
    if any(name not in fields for name in names[:3]):
        raise Corrupt("points without x, y and z")
    if any(not 0 <= offset <= step - dtype.itemsize for name, (offset, dtype) in fields.items() if name in names):
        raise Corrupt("a field beyond the point")
    rows = np.ascontiguousarray(data).reshape(-1, step)
    points = np.zeros((len(rows), 5), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for column, name in enumerate(names):
            if name in fields:
                offset, dtype = fields[name]
                points[:, column] = rows[:, offset : offset + dtype.itemsize].copy().view(dtype)[:, 0]
    finite = np.isfinite(points).all(axis=1)
    if not finite.all():
        if dense:
            raise Corrupt("points that are not finite")
        points = points[finite]
    if (np.abs(points[:, :3]) > _FARTHEST).any():
        raise Corrupt("points farther than a LiDAR reaches")
    if (np.abs(points[:, 3:]) > _BRIGHTEST).any():
        raise Corrupt("points brighter than a LiDAR measures")
    return Cloud(stamp, _name(frame), points)


def picture(stamp: int, frame: str, decode: Callable[[], np.ndarray], size: tuple[int, int]) -> Picture:
    return Picture(stamp, _name(frame), decode, _size(size))


def intrinsics(
    stamp: int,
    frame: str,
    size: tuple[int, int],
    model: str,
    d: np.ndarray,
    k: np.ndarray,
    r: np.ndarray,
    p: np.ndarray,
) -> Intrinsics:
    """Of a CameraInfo: P, which belongs to rectified pictures, or K where P is not given; and the lens.

    Args:
        model: of the distortion, by ROS's name.
        d: its coefficients.
        k: (9,) row by row, of pictures as taken.
        r: (9,) row by row, rectified camera from the camera as mounted; zero or empty where it is not turned.
        p: (12,) row by row.
    """
    d, k, r, p = (np.asarray(each, np.float64) for each in (d, k, r, p))
    taken = k.reshape(3, 3) if k.size == 9 and k.any() else None
    matrix = p.reshape(3, 4)[:, :3].copy() if p.size == 12 and p.any() else taken
    turn = r.reshape(3, 3) if r.size == 9 and r.any() else np.eye(3)
    if matrix is None or not _projects(matrix) or (taken is not None and not _projects(taken)):
        raise Corrupt("no projection to the picture")
    if not np.isfinite(d).all() or not np.isfinite(turn).all() or np.abs(turn @ turn.T - np.eye(3)).max() > 0.01:
        raise Corrupt("a lens of numbers that are none")
    size = _size(size)
    lens = None
    if taken is not None and (d.any() or (turn != np.eye(3)).any() or (taken != matrix).any()):
        coefficients = d if d.any() else np.zeros(4)
        lens = Lens(str(model) if d.any() else "plumb_bob", coefficients, taken.copy(), turn.copy(), matrix, size)
    return Intrinsics(stamp, _name(frame), size, matrix, lens)


def _projects(matrix: np.ndarray) -> bool:
    """Whether it is a pinhole's (3, 3) matrix."""
    whole = bool(np.isfinite(matrix).all() and (np.abs(matrix) < 1e6).all() and matrix[2].tolist() == [0, 0, 1])
    return whole and bool((np.diag(matrix)[:2] > 0).all())


def transform(stamp: int, parent: str, child: str, translation: list[float], rotation: list[float]) -> Transform:
    """rotation: quaternion w x y z."""
    t, q = np.array(translation, np.float64), np.array(rotation, np.float64)
    if not (np.isfinite(t).all() and (np.abs(t) < 1e8).all() and np.isfinite(q).all()):
        raise Corrupt("a pose that is not finite")
    if abs(np.linalg.norm(q) - 1) > 0.01:
        raise Corrupt("a rotation that is no unit quaternion")
    if parent == child:
        raise Corrupt("a frame in itself")
    return Transform(stamp, _name(parent), _name(child), t, q)


def keyframe(content: object) -> Keyframe:
    """Of the JSON object that tools/make_log.py writes."""
    if not isinstance(content, dict):
        raise Corrupt("not a keyframe")
    tags, sweeps, stamp = content.get("conditions", {}), content.get("sweeps", []), content.get("stamp")
    if not isinstance(tags, dict) or any(tags.get(kind) not in (None, *known) for kind, known in CONDITIONS.items()):
        raise Corrupt("conditions that are not known")
    if not isinstance(sweeps, list) or len(sweeps) > 100 or not all(map(_is_stamp, [stamp, *sweeps])):
        raise Corrupt("a stamp that is no time")
    if any(each >= stamp for each in sweeps):
        raise Corrupt("a sweep before the keyframe that is after it")
    token, scene, location = (content.get(name, "") for name in ("token", "scene", "location"))
    if not token:
        raise Corrupt("a keyframe without a token")
    conditions = Conditions(**{kind: tags.get(kind) for kind in CONDITIONS})
    return Keyframe(int(stamp or 0), _name(token), _name(scene), _name(location), conditions, tuple(sweeps))


def _is_stamp(value: object) -> bool:
    return type(value) is int and 0 <= value <= LATEST


def _name(name: object) -> str:
    if not isinstance(name, str) or len(name) > _LONGEST_NAME or not name.isprintable():
        raise Corrupt("a name that is none")
    return name.lstrip("/")  # as ROS 1 wrote frames


def _size(size: tuple[int, int]) -> tuple[int, int]:
    if not all(0 < edge <= _LARGEST_PICTURE for edge in size):
        raise Corrupt("a picture of no sensible size")
    return int(size[0]), int(size[1])
