"""Recordings as messages, and their content, whatever their format. Damaged content is refused here.

Stamps are in microseconds, as in nuScenes. The reasons for a refusal are fixed texts, so that they can be counted.

Pictures are rectified, because networks expect those of a pinhole camera. The lens models are those of ROS's CameraInfo
and image_pipeline: plumb_bob and rational_polynomial (Brown, "Close-range camera calibration", 1971, with OpenCV's
extensions) and equidistant (Kannala and Brandt, 2006).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np

from perception.frame import Conditions

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


LATEST = 1 << 53  # us, the largest stamp; it is exact as a float64
_MAX_EDGE = 1 << 14  # pixels, width or height of a picture
_MAX_NAME = 200  # characters


class CorruptMessage(ValueError):
    """A message that cannot be used. The text is the reason, without values from the message."""


@dataclass(frozen=True)
class Cloud:
    """One LiDAR sweep."""

    stamp: int
    frame: str
    points: np.ndarray  # (N, 5) float32 x y z (m), intensity, ring; sensor frame
    column: Callable[[str], np.ndarray | None]  # (N,) numbers of another field of the points; None: there is none
    nanoseconds: int = 0  # beyond the stamp


@dataclass(frozen=True)
class Picture:
    """A camera's picture, which is decoded only if a frame uses it."""

    stamp: int
    frame: str
    decode: Callable[[], np.ndarray]  # (H, W, 3) uint8 RGB; raises CorruptMessage
    size: tuple[int, int]  # width, height in pixels, by the message's header
    content: bytes = b""  # of its compressed file; empty: raw pixels
    nanoseconds: int = 0  # beyond the stamp


@dataclass(frozen=True)
class Intrinsics:
    """A camera's calibration."""

    stamp: int
    frame: str
    size: tuple[int, int]  # width, height in pixels
    matrix: np.ndarray  # (3, 3) intrinsics of the rectified picture
    lens: Lens | None  # how to rectify a picture; None if raw pictures are rectified already


@dataclass(frozen=True)
class Transform:
    """The pose of a frame of reference in its parent, at one time."""

    stamp: int
    parent: str
    child: str
    translation: np.ndarray  # (3,) m
    rotation: np.ndarray  # (4,) quaternion w x y z


@dataclass(frozen=True)
class Keyframe:
    """When to make a frame, and its metadata: token, scene, location and tagged conditions."""

    stamp: int  # of its LiDAR sweep
    token: str
    scene: str
    location: str
    conditions: Conditions
    sweeps: tuple[int, ...]  # stamps of its earlier sweeps, latest first


@dataclass(frozen=True)
class Fix:
    """The vehicle's position by satellite, WGS 84."""

    stamp: int  # 0 if the message has none
    latitude: float  # degrees
    longitude: float  # degrees


Content = Cloud | Picture | Intrinsics | Transform | Keyframe | Fix


def stamp_of(seconds: int, nanoseconds: int) -> int:
    """The stamp (us) of a time in seconds and nanoseconds."""
    if not (0 <= nanoseconds < 1_000_000_000 and 0 <= seconds <= LATEST // 1_000_000):
        raise CorruptMessage("an invalid stamp")
    return int(seconds) * 1_000_000 + int(nanoseconds) // 1000


def picture(
    stamp: int, frame: str, decode: Callable[[], np.ndarray], size: tuple[int, int], content: bytes = b""
) -> Picture:
    return Picture(stamp, check_name(frame), decode, _check_size(size), content)


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
    """Make the calibration from a CameraInfo: matrix P of rectified pictures or, if it is not set, K; and the lens.

    Args:
        model: ROS's name of the distortion model.
        d: its coefficients.
        k: (9,) row-major intrinsics of the raw picture.
        r: (9,) row-major rotation, rectified from mounted camera; zeros or empty for no rotation.
        p: (12,) row-major projection of the rectified picture.
    """
    d, k, r, p = (np.asarray(each, np.float64) for each in (d, k, r, p))
    raw = k.reshape(3, 3) if k.size == 9 and k.any() else None
    matrix = p.reshape(3, 4)[:, :3].copy() if p.size == 12 and p.any() else raw
    rotation = r.reshape(3, 3) if r.size == 9 and r.any() else np.eye(3)
    if matrix is None or not _is_pinhole(matrix) or (raw is not None and not _is_pinhole(raw)):
        raise CorruptMessage("invalid intrinsics")
    if not np.isfinite(d).all() or not (np.abs(rotation) < 1.1).all():
        raise CorruptMessage("invalid lens parameters")
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 0.01:
        raise CorruptMessage("invalid lens parameters")
    size = _check_size(size)
    lens = None
    if raw is not None and (d.any() or (rotation != np.eye(3)).any() or (raw != matrix).any()):
        coefficients = d if d.any() else np.zeros(4)
        lens = Lens(str(model) if d.any() else "plumb_bob", coefficients, raw.copy(), rotation.copy(), matrix, size)
    return Intrinsics(stamp, check_name(frame), size, matrix, lens)


def _is_pinhole(matrix: np.ndarray) -> bool:
    """Whether this is the (3, 3) matrix of a pinhole camera."""
    valid = bool(np.isfinite(matrix).all() and (np.abs(matrix) < 1e6).all() and matrix[2].tolist() == [0, 0, 1])
    return valid and bool((np.diag(matrix)[:2] > 0).all())


def transform(stamp: int, parent: str, child: str, translation: list[float], rotation: list[float]) -> Transform:
    """Make a transform from a translation (m) and a quaternion w x y z."""
    t, q = np.array(translation, np.float64), np.array(rotation, np.float64)
    if not (np.isfinite(t).all() and (np.abs(t) < 1e8).all() and np.isfinite(q).all()):
        raise CorruptMessage("a pose that is not finite")
    if abs(np.linalg.norm(q) - 1) > 0.01:
        raise CorruptMessage("a rotation that is not a unit quaternion")
    if parent == child:
        raise CorruptMessage("a frame that is its own parent")
    return Transform(stamp, check_name(parent), check_name(child), t, q)


def fix(stamp: int, latitude: float, longitude: float) -> Fix:
    if not (-90 <= latitude <= 90 and -180 <= longitude <= 180):
        raise CorruptMessage("a position that is not on earth")
    return Fix(stamp, float(latitude), float(longitude))


def keyframe(content: object) -> Keyframe:
    """Make a keyframe from the JSON object that `perception log` writes."""
    if not isinstance(content, dict):
        raise CorruptMessage("not a keyframe")
    tags, sweeps, stamp = content.get("conditions", {}), content.get("sweeps", []), content.get("stamp")
    if not isinstance(tags, dict) or not all(map(_is_tag, tags.items())):
        raise CorruptMessage("unknown conditions")
    if not isinstance(sweeps, list) or len(sweeps) > 100 or not all(map(_is_stamp, [stamp, *sweeps])):
        raise CorruptMessage("an invalid stamp")
    if any(each >= stamp for each in sweeps):
        raise CorruptMessage("an earlier sweep that is not before the keyframe")
    token, scene, location = (content.get(name, "") for name in ("token", "scene", "location"))
    if not token:
        raise CorruptMessage("a keyframe without a token")
    conditions = Conditions(**tags)
    return Keyframe(
        int(stamp or 0), check_name(token), check_name(scene), check_name(location), conditions, tuple(sweeps)
    )


def _is_tag(item: tuple[object, object]) -> bool:
    kind, value = item
    return isinstance(kind, str) and kind.isidentifier() and (value is None or isinstance(value, str))


def _is_stamp(value: object) -> bool:
    return type(value) is int and 0 <= value <= LATEST


def check_name(name: object) -> str:
    if not isinstance(name, str) or len(name) > _MAX_NAME or not name.isprintable():
        raise CorruptMessage("an invalid name")
    return name.lstrip("/")  # ROS 1 wrote frame ids with a leading slash


def _check_size(size: tuple[int, int]) -> tuple[int, int]:
    if not all(0 < edge <= _MAX_EDGE for edge in size):
        raise CorruptMessage("an invalid picture size")
    return int(size[0]), int(size[1])


class RawMessage(NamedTuple):
    """A message before decoding."""

    topic: str
    time: int  # us, when it was recorded or arrived, by the recorder's clock
    data: bytes
    decode: Callable[[bytes], list[Content]]  # raises CorruptMessage
    parse: Callable[[bytes], Any]  # into an object with the fields of its schema; raises CorruptMessage
    type_name: str = ""  # in ROS 2, if the data are CDR
    publisher: Hashable = None  # which one sent it; None: not known


@dataclass(frozen=True)
class RecordingInfo:
    """Metadata of a recording."""

    counts: Mapping[str, int]  # number of messages by topic; 0 if not known
    duration: int  # us; 0 if not known
    scene: str  # name of the drive, or of the file
    location: str = ""
    description: str = ""
    types: Mapping[str, str] = field(default_factory=dict)  # of messages in ROS 2 or Foxglove's, by topic


class MessageFile(Protocol):
    """A recorded file or folder."""

    info: RecordingInfo

    def read(self, topics: Collection[str], damage: Callable[[str], None]) -> Iterator[RawMessage]:
        """Yield the messages of these topics, in constant memory.

        Each part that cannot be read is passed to `damage` as a line of text; reading continues behind it if possible.
        """
        ...
