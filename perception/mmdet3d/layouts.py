"""Reads keyframes from mmdet3d's nuscenes_infos_*.pkl in both layouts.

Version 2 (`data_list` and `metainfo`, since mmdet3d 1.1) has poses as float32 matrices and a dict for each box;
version 1 (`infos` and `metadata`) has poses as quaternions and boxes as arrays. Sources:
`tools/dataset_converters/nuscenes_converter.py` and `update_infos_to_v2.py` of mmdet3d 1.4.0 and 0.17.

Boxes are upright in the LiDAR's frame, given by their centres. Since mmdet3d 1.0.0rc0 sizes are length, width, height
and the yaw r is counter-clockwise; before, sizes were width, length, height and the angle was -r - pi/2. Neither layout
says which convention it follows, so it is derived from vehicles, which are longer than wide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

import numpy as np

from perception.datasets.keyframes import Picture, SweepFile
from perception.datasets.nuscenes.dataset import BICYCLE_RACK
from perception.errors import InputError
from perception.frame import Boxes
from perception.geometry import rigid
from perception.mmdet3d.install import CAMERAS, CLASSES, LIDAR

_MAX_MAGNITUDE = 1e16  # of a number
_ROTATION_TOLERANCE = 1e-3  # deviation of a rotation from orthonormal; float32 has 1e-7
_MIN_ENTRY_BYTES = 32  # of a sweep or a box in a file
_LONGER_THAN_WIDE = ("car", "truck", "bus", "trailer", "bicycle", "motorcycle")
_MIN_TIME, _MAX_TIME = 1_000_000_000_000_000, 9_000_000_000_000_000  # us: years 2001 to 2255
_US, _S = 1.0, 1e6  # units of time in us

Value = TypeVar("Value")


@dataclass(frozen=True)
class Keyframe:
    """The content of the infos for one keyframe."""

    token: str
    global_from_ego: np.ndarray  # (4, 4) at the LiDAR's time
    sweeps: tuple[SweepFile, ...]  # LiDAR, the keyframe's first, latest first
    pictures: Mapping[str, Picture]
    boxes: Boxes | None = None  # of the ten classes, in the LiDAR's frame; None: not annotated
    bicycle_racks: Boxes | None = None  # in the LiDAR's frame; none in version 2

    @property
    def global_from_lidar(self) -> np.ndarray:
        return self.sweeps[0].global_from_ego @ self.sweeps[0].ego_from_lidar


class _RawBoxes(NamedTuple):
    """Annotated boxes in the convention of the file."""

    numbers: np.ndarray  # (N, 7) x y z, two horizontal sizes, height, angle
    velocities: np.ndarray  # (N, 2) m/s, NaN where unknown
    names: Sequence[str]
    points: np.ndarray  # (N,) LiDAR + radar

    def boxes(self, width_first: bool, labels: Mapping[str, int]) -> Boxes:
        """The boxes of these names.

        Args:
            width_first: sizes and angles are in the convention before mmdet3d 1.0.0rc0.
        """
        chosen = [i for i, name in enumerate(self.names) if name in labels]
        numbers = self.numbers[chosen]
        boxes = Boxes.from_yaws(
            centers=numbers[:, :3],
            sizes=numbers[:, 3:6] if width_first else numbers[:, [4, 3, 5]],
            yaws=-numbers[:, 6] - np.pi / 2 if width_first else numbers[:, 6],
            velocities=self.velocities[chosen],
            labels=np.array([labels[self.names[i]] for i in chosen], np.int64),
            attributes=np.full(len(chosen), -1),
            scores=np.ones(len(chosen)),
        )
        return replace(boxes, num_points=self.points[chosen].astype(np.int64))


def read_keyframes(content: Any, path: Path, size: int) -> list[Keyframe]:
    """The keyframes in the order of the file.

    Args:
        content: of the file, see `read_plain`.
        path: of the file, beside samples/ and sweeps/.
        size: of the file in bytes.
    """
    keys = {key for key, value in content.items() if value is not None} if isinstance(content, dict) else set()
    place = "data_list" if {"data_list", "metainfo"} <= keys else "infos"
    if place == "infos" and "metadata" not in keys:
        raise InputError(f"{path}: no infos of mmdet3d: neither data_list and metainfo nor infos and metadata in it")
    rows: dict[str, tuple[Keyframe, _RawBoxes | None]] = {}
    entries = 0
    try:
        read = _reader_v2(content["metainfo"]) if place == "data_list" else _read_v1
        listed = _get(content, place, list)
        if not listed:
            raise ValueError("no keyframe is in it")
        for i, row in enumerate(listed):
            place = f"{place.partition('[')[0]}[{i}]"
            keyframe, raw_boxes = read(row, path.parent)
            entries += len(keyframe.sweeps) - 1 + (0 if raw_boxes is None else len(raw_boxes.names))
            if keyframe.token in rows:
                raise ValueError("its token is there twice")
            if entries * _MIN_ENTRY_BYTES > size:  # no converter writes this; it bounds the memory by the file's size
                raise ValueError("it shares its lists with other keyframes")
            rows[keyframe.token] = keyframe, raw_boxes
    except ValueError as error:
        raise InputError(f"{path}: {place}: {error}; make the infos again with mmdet3d's converter") from None
    width_first = _is_width_first([raw_boxes for _, raw_boxes in rows.values() if raw_boxes is not None], path)
    labels = {name: i for i, name in enumerate(CLASSES)}
    return [
        keyframe
        if raw_boxes is None
        else replace(
            keyframe,
            boxes=raw_boxes.boxes(width_first, labels),
            bicycle_racks=raw_boxes.boxes(width_first, {BICYCLE_RACK: -1}),
        )
        for keyframe, raw_boxes in rows.values()
    ]


def _is_width_first(raw_boxes: list[_RawBoxes], path: Path) -> bool:
    """Whether boxes are in the convention before mmdet3d 1.0.0rc0, with width before length."""
    width_is_smaller = [
        boxes.numbers[i, 3] < boxes.numbers[i, 4]
        for boxes in raw_boxes
        for i, name in enumerate(boxes.names)
        if name in _LONGER_THAN_WIDE and boxes.numbers[i, 3] != boxes.numbers[i, 4]
    ]
    if not width_is_smaller and any(name in CLASSES for boxes in raw_boxes for name in boxes.names):
        raise InputError(
            f"{path}: whether its boxes are written as before mmdet3d 1.0 is seen from vehicles, and none is annotated "
            "in it; use infos of more keyframes"
        )
    return bool(width_is_smaller) and bool(np.mean(width_is_smaller) > 0.5)


def _reader_v2(metainfo: Any) -> Callable[[Any, Path], tuple[Keyframe, _RawBoxes | None]]:
    """The reader of keyframes in version 2."""
    if (dataset := _get(metainfo, "dataset", str)) != "nuscenes":
        raise ValueError(f"metainfo is of {dataset[:40]!a}; only infos of nuscenes are read")
    categories = _get(metainfo, "categories", dict)
    return partial(_read_v2, names={_get(categories, name, int): str(name) for name in categories})


def _read_v2(row: Any, root: Path, names: Mapping[int, str]) -> tuple[Keyframe, _RawBoxes | None]:
    """A keyframe in version 2.

    Args:
        names: of the categories.
    """
    lidar, global_from_ego = _get(row, "lidar_points", dict), _pose(row, "ego2global")
    if _get(lidar, "num_pts_feats", int, 5) != 5:
        raise ValueError("num_pts_feats is not 5, which nuScenes' sweeps have")
    global_from_lidar = global_from_ego @ _pose(lidar, "lidar2ego")

    def sweep(points: Any, timed: Any, placed: np.ndarray) -> SweepFile:
        return SweepFile(_file(points, "lidar_path", LIDAR, root), _time(timed, _S), placed, np.eye(4))

    def picture(name: str, image: Any) -> Picture:
        ego_from_camera = _pose(image, "cam2ego")
        placed = global_from_lidar @ np.linalg.inv(_pose(image, "lidar2cam")) @ np.linalg.inv(ego_from_camera)
        intrinsics = _numbers(image, "cam2img", 3, 3)
        return Picture(_file(image, "img_path", name, root), _time(image, _S), intrinsics, ego_from_camera, placed)

    sweeps = [sweep(lidar, row, global_from_lidar)]
    for earlier in _get(row, "lidar_sweeps", list, []):
        lidar = _get(earlier, "lidar_points", dict)
        sweeps.append(sweep(lidar, earlier, global_from_lidar @ np.linalg.inv(_pose(lidar, "lidar2sensor"))))
    images = _get(row, "images", dict, {})
    pictures = {name: picture(name, images[name]) for name in CAMERAS if name in images}
    keyframe = Keyframe(_get(row, "token", str), global_from_ego, tuple(sweeps), pictures)
    if row.get("instances") is None:
        return keyframe, None
    instances = _get(row, "instances", list)
    labels = [_get(each, "bbox_label_3d", int) for each in instances]
    if unknown := {label for label in labels if label >= 0} - names.keys():
        raise ValueError(f"bbox_label_3d is {str(min(unknown))[:20]}, which is no category of metainfo")
    points = [_numbers(each, "num_lidar_pts") + _numbers(each, "num_radar_pts") for each in instances]
    return keyframe, _RawBoxes(
        np.array([_boxes(each, "bbox_3d", 7) for each in instances]).reshape(-1, 7),
        np.array([_numbers(each, "velocity", 2, unknown=True) for each in instances]).reshape(-1, 2),
        [names.get(label, "") for label in labels],
        np.array(points, np.float64),
    )


def _read_v1(row: Any, root: Path) -> tuple[Keyframe, _RawBoxes | None]:
    """A keyframe in version 1."""

    def pose(placed: Any, name: str) -> np.ndarray:
        quaternion = _numbers(placed, f"{name}_rotation", 4)
        if abs(quaternion @ quaternion - 1) > _ROTATION_TOLERANCE:
            raise ValueError(f"{name}_rotation is no rotation: the quaternion's length is not 1")
        return rigid(_numbers(placed, f"{name}_translation", 3), quaternion)

    def sweep(each: Any, file: str, mounting: str) -> SweepFile:
        placed = pose(each, "ego2global") @ pose(each, mounting)
        return SweepFile(_file(each, file, LIDAR, root), _time(each, _US), placed, np.eye(4))

    def picture(name: str, camera: Any) -> Picture:
        file, intrinsics = _file(camera, "data_path", name, root), _numbers(camera, "cam_intrinsic", 3, 3)
        return Picture(file, _time(camera, _US), intrinsics, pose(camera, "sensor2ego"), pose(camera, "ego2global"))

    earlier, cameras = _get(row, "sweeps", list, []), _get(row, "cams", dict, {})
    sweeps = [sweep(row, "lidar_path", "lidar2ego"), *(sweep(each, "data_path", "sensor2ego") for each in earlier)]
    pictures = {name: picture(name, cameras[name]) for name in CAMERAS if name in cameras}
    keyframe = Keyframe(_get(row, "token", str), pose(row, "ego2global"), tuple(sweeps), pictures)
    if row.get("gt_boxes") is None:
        return keyframe, None
    names = row.get("gt_names")
    names = names.tolist() if isinstance(names, np.ndarray) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("gt_names is no list of names")
    return keyframe, _RawBoxes(
        _boxes(row, "gt_boxes", len(names), 7),
        _numbers(row, "gt_velocity", len(names), 2, unknown=True),
        names,
        _numbers(row, "num_lidar_pts", len(names)) + _numbers(row, "num_radar_pts", len(names)),
    )


# Values of unknown content; ValueError names the key.


def _get(row: Any, key: Any, kind: type[Value], default: Value | None = None) -> Value:
    """The value of a key; the default if it is missing."""
    value = row.get(key) if isinstance(row, dict) else None
    value = default if value is None else value
    if not isinstance(value, kind) or (isinstance(value, str) and not value.isprintable()):
        raise ValueError(f"{str(key)[:40]!a} is {'missing' if value is None else f'no {kind.__name__}'}")
    return value


def _numbers(row: Any, key: str, *shape: int, unknown: bool = False) -> np.ndarray:
    """A float64 array of this shape; NaN only if numbers may be unknown."""
    value = row.get(key) if isinstance(row, dict) else None
    if isinstance(value, np.ndarray):
        fits = value.dtype.kind in "biuf" and (value.shape == shape or value.size == 0 == np.prod(shape))
    else:
        fits = _has_shape(value, shape)
    if not fits:
        wanted = f"not {' x '.join(map(str, shape))} numbers" if shape else "no number"
        raise ValueError(f"{key} is {wanted}")
    try:
        array = np.array(value, np.float64).reshape(shape)
    except OverflowError:
        array = np.array(np.inf)
    if not ((np.abs(array) < _MAX_MAGNITUDE) | (unknown & np.isnan(array))).all():
        raise ValueError(f"{key} holds NaN, infinity or a number without sense")
    return array


def _has_shape(value: Any, shape: tuple[int, ...]) -> bool:
    """Whether the value is nested lists of numbers of this shape.

    Checked before an array is made of it: a pickle may repeat a list so often that the array would exceed the memory.
    """
    if not shape:
        return isinstance(value, int | float)
    return (
        isinstance(value, list | tuple)
        and len(value) == shape[0]
        and all(_has_shape(part, shape[1:]) for part in value)
    )


def _boxes(row: Any, key: str, *shape: int) -> np.ndarray:
    numbers = _numbers(row, key, *shape)
    if (numbers[..., 3:6] <= 0).any():
        raise ValueError(f"{key} has a size that is not positive")
    return numbers


def _pose(row: Any, key: str) -> np.ndarray:
    """(4, 4) rigid transformation."""
    matrix = _numbers(row, key, 4, 4)
    rotation = matrix[:3, :3]
    if abs(rotation @ rotation.T - np.eye(3)).max() > _ROTATION_TOLERANCE or matrix[3].tolist() != [0, 0, 0, 1]:
        raise ValueError(f"{key} is no rotation and translation")
    return matrix


def _time(row: Any, unit: float) -> int:
    """`timestamp` in us."""
    time = round(float(_numbers(row, "timestamp")) * unit)
    if not _MIN_TIME <= time < _MAX_TIME:
        raise ValueError(f"timestamp is no time of a recording in {'seconds' if unit == _S else 'microseconds'}")
    return time


def _file(row: Any, key: str, channel: str, root: Path) -> Path:
    """The file in the dataroot. Infos have the path on the machine that wrote them, or the name only."""
    path = PurePosixPath(_get(row, key, str).replace("\\", "/"))
    if path.name in ("", ".."):
        raise ValueError(f"{key} names no file")
    return root / ("sweeps" if "sweeps" in path.parts else "samples") / channel / path.name
