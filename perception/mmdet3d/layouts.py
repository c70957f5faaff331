"""Reads keyframes from mmdet3d's nuscenes_infos_*.pkl in both layouts.

Version 2 (`data_list` and `metainfo`, since mmdet3d 1.1) has poses as float32 matrices and a dict for each box;
version 1 (`infos` and `metadata`) has poses as quaternions and boxes as arrays. Sources:
`tools/dataset_converters/nuscenes_converter.py` and `update_infos_to_v2.py` of mmdet3d 1.4.0 and 0.17.

Boxes are upright in the LiDAR's frame, given by their centres. Since mmdet3d 1.0.0rc0 sizes are length, width, height
and the yaw r is counter-clockwise; before, sizes were width, length, height and the angle was -r - pi/2. Neither layout
says which convention it follows, so it is derived from vehicles, which are longer than wide.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from perception.datasets.nuscenes.dataset import BICYCLE_RACK
from perception.errors import InputError
from perception.frame import Boxes
from perception.geometry import rigid
from perception.mmdet3d.install import CAMERAS, CLASSES, LIDAR

# Checked access to values of unknown content; errors name the file and the path of keys to the value.

_MAX_MAGNITUDE = 1e16  # above any time in us
_ROTATION_TOLERANCE = 1e-3  # deviation of a rotation from orthonormal; float32 has 1e-7


class Field:
    """A value in a file, with its path of keys. Reading it as a type that it has not raises InputError.

    Args:
        value: dicts, lists, tuples, numbers, text, arrays.
        name: key of the value in `parent`; without a parent the file.
    """

    def __init__(self, value: Any, name: str, parent: Field | None = None) -> None:
        self.value, self.name, self.parent = value, name, parent

    def error(self, what: str) -> InputError:
        """The error "PATH OF KEYS `what`"."""
        names, field = [], self
        while field.parent is not None:
            names.append(field.name)
            field = field.parent
        place = re.sub(r"[^ -~]", "?", ".".join(reversed(names)).replace(".[", "["))[:200]
        return InputError(
            f"{field.name}: {place or 'the content'} {what}; make the infos again with mmdet3d's converter"
        )

    def __contains__(self, key: str) -> bool:
        return isinstance(self.value, dict) and self.value.get(key) is not None

    def __getitem__(self, key: str) -> Field:
        if not isinstance(self.value, dict):
            raise self.error("is no dict")
        if self.value.get(key) is None:
            raise self.error(f"has no {key}")
        return Field(self.value[key], key, self)

    def optional(self, key: str, default: Any) -> Field:
        """field[key], or the default where it is absent."""
        return self[key] if key in self else Field(default, key, self)

    def items(self) -> Iterator[tuple[str, Field]]:
        """Keys and values of a dict."""
        if not isinstance(self.value, dict):
            raise self.error("is no dict")
        for key, value in self.value.items():
            yield str(key), Field(value, str(key), self)

    def __iter__(self) -> Iterator[Field]:
        """Entries of a list."""
        if not isinstance(self.value, list | tuple):
            raise self.error("is no list")
        for i, value in enumerate(self.value):
            yield Field(value, f"[{i}]", self)

    @property
    def text(self) -> str:
        if not isinstance(self.value, str) or not self.value.isprintable():
            raise self.error("is no text")
        return str(self.value)

    @property
    def integer(self) -> int:
        if not isinstance(self.value, int) or abs(self.value) >= 1 << 62:
            raise self.error("is no whole number")
        return int(self.value)

    def numbers(self, *shape: int, unknown: bool = False) -> np.ndarray:
        """A float64 array of this shape; NaN only if numbers may be unknown."""
        value = self.value
        if isinstance(value, np.ndarray):
            fits = value.dtype.kind in "biuf" and (value.shape == shape or value.size == 0 == np.prod(shape))
        else:
            fits = _has_shape(value, shape) or (len(shape) > 0 and shape[0] == 0 and _has_shape(value, (0,)))
        if not fits:
            raise self.error(f"is not {' x '.join(map(str, shape))} numbers" if shape else "is no number")
        try:
            array = np.array(value, np.float64).reshape(shape)
        except OverflowError:
            array = np.array(np.inf)
        if not ((np.abs(array) < _MAX_MAGNITUDE) | (unknown & np.isnan(array))).all():
            raise self.error("holds NaN, infinity or a number without sense")
        return array

    def names(self) -> list[str]:
        """The entries of a list or an array of text."""
        value = self.value
        if isinstance(value, np.ndarray) and (value.dtype.kind == "U" or value.size == 0) and value.ndim == 1:
            value = value.tolist()
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.error("is no list of names")
        return value

    def pose(self) -> np.ndarray:
        """(4, 4) rigid transformation."""
        matrix = self.numbers(4, 4)
        rotation = matrix[:3, :3]
        if not np.allclose(rotation @ rotation.T, np.eye(3), atol=_ROTATION_TOLERANCE) or not np.array_equal(
            matrix[3], [0, 0, 0, 1]
        ):
            raise self.error("is no rotation and translation")
        return matrix

    def quaternion(self) -> np.ndarray:
        """(4,) unit quaternion w x y z."""
        value = self.numbers(4)
        if abs(value @ value - 1) > _ROTATION_TOLERANCE:
            raise self.error("is no rotation: the quaternion's length is not 1")
        return value


def _has_shape(value: Any, shape: tuple[int, ...]) -> bool:
    """Whether the value is nested lists of numbers of this shape.

    Checked before an array is made of it: a pickle may repeat a list so often that the array would exceed the memory.
    """
    if not shape:
        return isinstance(value, int | float)
    return (
        isinstance(value, list | tuple)
        and len(value) == shape[0]
        and all(_has_shape(each, shape[1:]) for each in value)
    )


_MIN_ENTRY_BYTES = 32  # of a sweep or a box in a file
_LONGER_THAN_WIDE = ("car", "truck", "bus", "trailer", "bicycle", "motorcycle")
_MIN_TIME, _MAX_TIME = 1_000_000_000_000_000, 10_000_000_000_000_000  # us: years 2001 to 2286


@dataclass(frozen=True)
class SensorFile:
    """A sensor's file and pose."""

    file: str  # relative to the dataroot
    timestamp: int  # us
    global_from_sensor: np.ndarray  # (4, 4)


@dataclass(frozen=True)
class CameraFile(SensorFile):
    """A camera's file, pose and calibration."""

    intrinsics: np.ndarray  # (3, 3) pixels
    ego_from_camera: np.ndarray  # (4, 4)


@dataclass(frozen=True)
class Keyframe:
    """The content of the infos for one keyframe."""

    token: str
    lidar: SensorFile
    global_from_ego: np.ndarray  # (4, 4) at the LiDAR's time
    sweeps: tuple[SensorFile, ...]  # LiDAR, latest first
    cameras: Mapping[str, CameraFile]
    boxes: Boxes | None = None  # of the ten classes, in the LiDAR's frame; None: not annotated
    bicycle_racks: Boxes = field(default_factory=Boxes.none)  # in the LiDAR's frame; none in version 2


@dataclass(frozen=True)
class _RawBoxes:
    """Annotated boxes in the convention of the file."""

    numbers: np.ndarray  # (N, 7) x y z, two horizontal sizes, height, angle
    velocities: np.ndarray  # (N, 2) m/s, NaN where unknown
    names: list[str]
    points: np.ndarray  # (N,) LiDAR + radar

    def boxes(self, width_first: bool, chosen: list[int], labels: list[int]) -> Boxes:
        """The boxes with these indices and labels.

        Args:
            width_first: sizes and angles are in the convention before mmdet3d 1.0.0rc0.
        """
        numbers = self.numbers[chosen]
        boxes = Boxes.from_yaws(
            centers=numbers[:, :3],
            sizes=numbers[:, 3:6] if width_first else numbers[:, [4, 3, 5]],
            yaws=-numbers[:, 6] - np.pi / 2 if width_first else numbers[:, 6],
            velocities=self.velocities[chosen],
            labels=np.array(labels, np.int64),
            attributes=np.full(len(chosen), -1),
            scores=np.ones(len(chosen)),
        )
        return replace(boxes, num_points=self.points[chosen].astype(np.int64))


def read_keyframes(content: Any, path: Path, size: int) -> list[Keyframe]:
    """The keyframes in the order of the file.

    Args:
        content: of the file, see `read_plain`.
        path: of the file, for errors.
        size: of the file in bytes.

    Raises:
        InputError: not infos of nuScenes, a value is missing or of another shape, or the convention of the boxes
            cannot be derived.
    """
    root = Field(content, str(path))
    if "data_list" in root and "metainfo" in root:
        listed, read = root["data_list"], _reader_v2(root["metainfo"])
    elif "infos" in root and "metadata" in root:
        listed, read = root["infos"], _read_v1
    else:
        raise InputError(f"{path}: no infos of mmdet3d: neither data_list and metainfo nor infos and metadata in it")
    tokens = [row["token"].text for row in listed]
    if len(set(tokens)) < len(tokens):
        raise listed.error(f"has {len(tokens) - len(set(tokens))} keyframes twice")
    if not tokens:
        raise listed.error("has no keyframe")
    rows, entries = [], 0
    for row in listed:
        rows.append(read(row))
        keyframe, raw_boxes = rows[-1]
        entries += len(keyframe.sweeps) + (0 if raw_boxes is None else len(raw_boxes.names))
        if entries * _MIN_ENTRY_BYTES > size:  # no converter writes this; it bounds the memory by the file's size
            raise listed.error("has keyframes that share their lists")
    width_first = _is_width_first([raw_boxes for _, raw_boxes in rows if raw_boxes is not None], path)
    return [_with_boxes(keyframe, raw_boxes, width_first) for keyframe, raw_boxes in rows]


def _with_boxes(keyframe: Keyframe, raw_boxes: _RawBoxes | None, width_first: bool) -> Keyframe:
    if raw_boxes is None:
        return keyframe
    objects = [i for i, name in enumerate(raw_boxes.names) if name in CLASSES]
    racks = [i for i, name in enumerate(raw_boxes.names) if name == BICYCLE_RACK]
    return replace(
        keyframe,
        boxes=raw_boxes.boxes(width_first, objects, [CLASSES.index(raw_boxes.names[i]) for i in objects]),
        bicycle_racks=raw_boxes.boxes(width_first, racks, [-1] * len(racks)),
    )


def _is_width_first(raw_boxes: list[_RawBoxes], path: Path) -> bool:
    """Whether boxes are in the convention before mmdet3d 1.0.0rc0, with width before length.

    Raises:
        InputError: there are boxes, but none of a class that is longer than wide.
    """
    width_is_smaller = [
        each.numbers[i, 3] < each.numbers[i, 4]
        for each in raw_boxes
        for i, name in enumerate(each.names)
        if name in _LONGER_THAN_WIDE and each.numbers[i, 3] != each.numbers[i, 4]
    ]
    if not width_is_smaller and any(name in CLASSES for each in raw_boxes for name in each.names):
        raise InputError(
            f"{path}: whether its boxes are written as before mmdet3d 1.0 is seen from vehicles, and none is annotated "
            "in it; use infos of more keyframes"
        )
    return bool(width_is_smaller) and bool(np.mean(width_is_smaller) > 0.5)


def _reader_v2(metainfo: Field) -> Callable[[Field], tuple[Keyframe, _RawBoxes | None]]:
    """The reader of keyframes in version 2."""
    if metainfo["dataset"].text != "nuscenes":
        raise metainfo["dataset"].error(f"is {metainfo['dataset'].text[:40]}; only infos of nuscenes are read")
    categories = {index.integer: name for name, index in metainfo["categories"].items()}
    return lambda row: _read_v2(row, categories)


def _read_v2(row: Field, categories: dict[int, str]) -> tuple[Keyframe, _RawBoxes | None]:
    lidar = row["lidar_points"]
    if "num_pts_feats" in lidar and lidar["num_pts_feats"].integer != 5:
        raise lidar["num_pts_feats"].error("is not 5, which nuScenes' sweeps have")
    global_from_ego = row["ego2global"].pose()
    global_from_lidar = global_from_ego @ lidar["lidar2ego"].pose()

    def recorded(points: Field, time: Field, global_from_sensor: np.ndarray) -> SensorFile:
        return SensorFile(_sensor_file(points["lidar_path"], LIDAR), _time_from_seconds(time), global_from_sensor)

    def sweep(each: Field) -> SensorFile:
        points = each["lidar_points"]
        placed = global_from_lidar @ np.linalg.inv(points["lidar2sensor"].pose())
        return recorded(points, each["timestamp"], placed)

    def picture(name: str, image: Field) -> CameraFile:
        return CameraFile(
            _sensor_file(image["img_path"], name),
            _time_from_seconds(image["timestamp"]),
            global_from_lidar @ np.linalg.inv(image["lidar2cam"].pose()),
            image["cam2img"].numbers(3, 3),
            image["cam2ego"].pose(),
        )

    keyframe = Keyframe(
        token=row["token"].text,
        lidar=recorded(lidar, row["timestamp"], global_from_lidar),
        global_from_ego=global_from_ego,
        sweeps=tuple(map(sweep, row.optional("lidar_sweeps", []))),
        cameras={name: picture(name, each) for name, each in row.optional("images", {}).items() if name in CAMERAS},
    )
    return keyframe, _read_instances(row["instances"], categories) if "instances" in row else None


def _read_instances(rows: Field, categories: dict[int, str]) -> _RawBoxes:
    numbers, velocities, names, points = [], [], [], []
    for row in rows:
        label = row["bbox_label_3d"].integer
        if label >= 0 and label not in categories:
            raise row["bbox_label_3d"].error(f"is {label}, which is no category of metainfo")
        numbers.append(_with_positive_sizes(row["bbox_3d"], row["bbox_3d"].numbers(7)))
        velocities.append(row["velocity"].numbers(2, unknown=True))
        names.append(categories[label] if label >= 0 else "")
        points.append(row["num_lidar_pts"].integer + row["num_radar_pts"].integer)
    return _RawBoxes(
        np.array(numbers).reshape(-1, 7), np.array(velocities).reshape(-1, 2), names, np.array(points, np.float64)
    )


def _read_v1(row: Field) -> tuple[Keyframe, _RawBoxes | None]:
    """A keyframe in version 1."""
    global_from_ego = _pose(row, "ego2global")

    def recorded(each: Field, file: str, mounting: str) -> SensorFile:
        placed = _pose(each, "ego2global") @ _pose(each, mounting)
        return SensorFile(_sensor_file(each[file], LIDAR), _time(each["timestamp"]), placed)

    def picture(name: str, camera: Field) -> CameraFile:
        ego_from_camera = _pose(camera, "sensor2ego")
        return CameraFile(
            _sensor_file(camera["data_path"], name),
            _time(camera["timestamp"]),
            _pose(camera, "ego2global") @ ego_from_camera,
            camera["cam_intrinsic"].numbers(3, 3),
            ego_from_camera,
        )

    keyframe = Keyframe(
        token=row["token"].text,
        lidar=recorded(row, "lidar_path", "lidar2ego"),
        global_from_ego=global_from_ego,
        sweeps=tuple(recorded(each, "data_path", "sensor2ego") for each in row.optional("sweeps", [])),
        cameras={name: picture(name, each) for name, each in row.optional("cams", {}).items() if name in CAMERAS},
    )
    if "gt_boxes" not in row:
        return keyframe, None
    boxes, names = row["gt_boxes"], row["gt_names"].names()
    count = len(names)
    raw_boxes = _RawBoxes(
        numbers=_with_positive_sizes(boxes, boxes.numbers(count, 7)),
        velocities=row["gt_velocity"].numbers(count, 2, unknown=True),
        names=names,
        points=row["num_lidar_pts"].numbers(count) + row["num_radar_pts"].numbers(count),
    )
    return keyframe, raw_boxes


def _pose(row: Field, name: str) -> np.ndarray:
    """(4, 4) from the fields NAME_translation and NAME_rotation."""
    return rigid(row[f"{name}_translation"].numbers(3), row[f"{name}_rotation"].quaternion())


def _with_positive_sizes(place: Field, numbers: np.ndarray) -> np.ndarray:
    if (numbers[..., 3:6] <= 0).any():
        raise place.error("has a size that is not positive")
    return numbers


def _sensor_file(place: Field, channel: str) -> str:
    """The file relative to its dataroot. Infos have the path on the machine that wrote them, or the name only."""
    path = PurePosixPath(place.text.replace("\\", "/"))
    if not path.name or path.name == "..":
        raise place.error("names no file")
    return f"{'sweeps' if 'sweeps' in path.parts else 'samples'}/{channel}/{path.name}"


def _time_from_seconds(place: Field) -> int:
    """Time in us from a field in seconds."""
    seconds = float(place.numbers())
    if not 1e-6 * _MIN_TIME <= seconds < 1e-6 * _MAX_TIME:
        raise place.error("is no time of a recording in seconds")
    return round(seconds * 1e6)


def _time(place: Field) -> int:
    if not _MIN_TIME <= place.integer < _MAX_TIME:
        raise place.error("is no time of a recording in microseconds")
    return place.integer
