"""Keyframes from mmdet3d's nuscenes_infos_*.pkl, as a data set.

Infos have no conditions, no location (so no map), no attributes, no instance tokens and no scenes. A drive ends where
the log changes, after a gap of 1.5 s, and before a keyframe without earlier sweeps.

Layout 2 (`data_list` and `metainfo`, since mmdet3d 1.1) has poses as float32 matrices (0.03 mm at a kilometre) and a
dict for each box; layout 1 (`infos` and `metadata`) has poses as quaternions and boxes as arrays. Sources:
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
from typing import Any, NamedTuple

import numpy as np

from perception.datasets.drives import Drives
from perception.datasets.files import stamp
from perception.datasets.keyframes import (
    NO_SENSORS,
    Annotation,
    Picture,
    Reads,
    Recording,
    SweepFile,
    assemble,
    keyframe_moments,
)
from perception.datasets.nuscenes.dataset import BICYCLE_RACK
from perception.errors import InputError
from perception.frame import Boxes, Conditions, Frame
from perception.geometry import quaternions, rigid
from perception.io.stores import readable_files
from perception.io.unpickle import read_plain
from perception.rig import load_rig
from perception.taxonomy import load_taxonomy

NUSCENES, _RIG = load_taxonomy("nuscenes"), load_rig("nuscenes")
CLASSES, CAMERAS, LIDAR = NUSCENES.class_names, _RIG.sensors.cameras, _RIG.sensors.lidars[0]
_MAX_GAP = 1_500_000  # us between keyframes of a drive, which are 0.5 to 0.6 s apart
_ROTATION_TOLERANCE = 1e-3  # deviation of a rotation from orthonormal; float32 has 1e-7
_LONGER_THAN_WIDE = ("car", "truck", "bus", "trailer", "bicycle", "motorcycle")
_MIN_TIME, _MAX_TIME = 1_000_000_000_000_000, 9_000_000_000_000_000  # us: years 2001 to 2255
_US, _S = 1.0, 1e6  # units of time in us


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


def read_keyframes(content: Any, path: Path) -> list[Keyframe]:
    """The keyframes in the order of the file."""
    keys = content.keys() if isinstance(content, dict) else ()
    place = layout = "data_list" if {"data_list", "metainfo"} <= {*keys} else "infos"
    if layout == "infos" and not {"infos", "metadata"} <= {*keys}:
        raise InputError(f"{path}: no infos of mmdet3d: neither data_list and metainfo nor infos and metadata in it")
    rows: dict[str, tuple[Keyframe, _RawBoxes | None]] = {}
    try:
        read = _reader_v2(content["metainfo"]) if layout == "data_list" else _read_v1
        for i, row in enumerate(content[layout]):
            place = f"{layout}[{i}]"
            keyframe, raw_boxes = read(row, path.parent)
            if keyframe.token in rows:
                raise ValueError("its token is there twice")
            if raw_boxes is not None and (raw_boxes.numbers[:, 3:6] <= 0).any():
                raise ValueError("a box has a size that is not positive")
            rows[keyframe.token] = keyframe, raw_boxes
        if not rows:
            raise ValueError("no keyframe is in it")
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = f"{error.args[0]!a} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise InputError(f"{path}: {place}: {reason}; make the infos again with mmdet3d's converter") from None
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
    if metainfo["dataset"] != "nuscenes":
        raise ValueError(f"metainfo is of {metainfo['dataset']!a:.40}; only infos of nuscenes are read")
    return partial(_read_v2, names={number: name for name, number in metainfo["categories"].items()})


def _read_v2(row: Any, root: Path, names: Mapping[int, str]) -> tuple[Keyframe, _RawBoxes | None]:
    """A keyframe in version 2."""
    lidar, global_from_ego = row["lidar_points"], _pose(row, "ego2global")
    if lidar.get("num_pts_feats", 5) != 5:
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
    for earlier in row.get("lidar_sweeps") or ():
        lidar = earlier["lidar_points"]
        sweeps.append(sweep(lidar, earlier, global_from_lidar @ np.linalg.inv(_pose(lidar, "lidar2sensor"))))
    images = row.get("images") or {}
    pictures = {name: picture(name, images[name]) for name in CAMERAS if name in images}
    keyframe = Keyframe(str(row["token"]), global_from_ego, tuple(sweeps), pictures)
    instances = row.get("instances")
    if instances is None:
        return keyframe, None
    labels = [each["bbox_label_3d"] for each in instances]
    if unknown := {label for label in labels if label >= 0} - names.keys():
        raise ValueError(f"bbox_label_3d is {str(min(unknown))[:20]}, which is no category of metainfo")
    points = [_numbers(each, "num_lidar_pts") + _numbers(each, "num_radar_pts") for each in instances]
    return keyframe, _RawBoxes(
        np.array([_numbers(each, "bbox_3d", 7) for each in instances]).reshape(-1, 7),
        np.array([_numbers(each, "velocity", 2, unknown=True) for each in instances]).reshape(-1, 2),
        [names.get(label, "") for label in labels],
        np.array(points, np.float64),
    )


def _read_v1(row: Any, root: Path) -> tuple[Keyframe, _RawBoxes | None]:
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

    earlier, cameras = row.get("sweeps") or (), row.get("cams") or {}
    sweeps = [sweep(row, "lidar_path", "lidar2ego"), *(sweep(each, "data_path", "sensor2ego") for each in earlier)]
    pictures = {name: picture(name, cameras[name]) for name in CAMERAS if name in cameras}
    keyframe = Keyframe(str(row["token"]), pose(row, "ego2global"), tuple(sweeps), pictures)
    if row.get("gt_boxes") is None:
        return keyframe, None
    names = [*row["gt_names"]]
    if not all(isinstance(name, str) for name in names):
        raise ValueError("gt_names is no list of names")
    return keyframe, _RawBoxes(
        _numbers(row, "gt_boxes", len(names), 7),
        _numbers(row, "gt_velocity", len(names), 2, unknown=True),
        names,
        _numbers(row, "num_lidar_pts", len(names)) + _numbers(row, "num_radar_pts", len(names)),
    )


def _numbers(row: Any, key: str, *shape: int, unknown: bool = False) -> np.ndarray:
    """A float64 array of this shape; NaN only if numbers may be unknown."""
    try:
        array = np.asarray(row[key], np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.array(np.nan)
    if array.shape != shape and not array.size == 0 == np.prod(shape):
        raise ValueError(f"{key} is not {' x '.join(map(str, shape))} numbers")
    if not (np.isfinite(array) | (unknown & np.isnan(array))).all():
        raise ValueError(f"{key} holds something else than finite numbers")
    return array.reshape(shape)


def _pose(row: Any, key: str) -> np.ndarray:
    """(4, 4) rigid transformation."""
    matrix = _numbers(row, key, 4, 4)
    rotation = matrix[:3, :3]
    if abs(rotation @ rotation.T - np.eye(3)).max() > _ROTATION_TOLERANCE or matrix[3].tolist() != [0, 0, 0, 1]:
        raise ValueError(f"{key} is no rotation and translation")
    return matrix


def _time(row: Any, unit: float) -> int:
    """`timestamp` in us."""
    time = float(_numbers(row, "timestamp")) * unit
    if not _MIN_TIME <= time < _MAX_TIME:
        raise ValueError(f"timestamp is no time of a recording in {'seconds' if unit == _S else 'microseconds'}")
    return round(time)


def _file(row: Any, key: str, channel: str, root: Path) -> Path:
    """The file in the dataroot. Infos have the path on the machine that wrote them, or the name only."""
    path = PurePosixPath(row[key].replace("\\", "/"))
    if path.name in ("", ".."):
        raise ValueError(f"{key} names no file")
    return root / ("sweeps" if "sweeps" in path.parts else "samples") / channel / path.name


class Infos:
    """The keyframes of an infos file in its dataroot, beside samples/ and sweeps/."""

    has_attributes = False

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.dataroot, self.version = self.path.parent, self.path.name
        self.rig, self.taxonomy = _RIG, NUSCENES
        self._opened = [stamp(self.path.resolve())]
        content = read_plain(self.path)
        keyframes = read_keyframes(content, self.path)
        self._keyframes = {keyframe.token: keyframe for keyframe in keyframes}
        self._annotated = any(keyframe.boxes is not None and len(keyframe.boxes) for keyframe in keyframes)
        drives = Drives(str(self.path), {f"drive-{i + 1:04d}": tokens for i, tokens in enumerate(_drives(keyframes))})
        self.scenes, self.samples, self.scene = drives.scenes, drives.samples, drives.scene
        files = [keyframe.sweeps[0].path for keyframe in keyframes]
        files += [picture.path for keyframe in keyframes for picture in keyframe.pictures.values()]
        # A store is asked where the mirror has none of them yet.
        names = [str(file.relative_to(self.dataroot)) for file in files]
        if not any(file.exists() for file in files) and not readable_files(self.dataroot, names):
            raise InputError(
                f"{self.path}: none of the {len(files)} files that it names is there, such as {files[0]}; put it into "
                "the dataroot, beside samples/"
            )

    def moments(self, token: str) -> Mapping[str, int]:
        return keyframe_moments(self, token)

    def conditions(self, token: str) -> Conditions:
        return Conditions()

    def _truth(self, keyframe: Keyframe) -> dict[str, Annotation]:
        """The annotations of a keyframe; no boxes in a file without annotations, such as the test set's, and no bicycle
        racks in one since mmdet3d 1.1."""

        def boxes() -> Boxes | None:
            placed = (keyframe.boxes or Boxes.none()).transformed(keyframe.global_from_lidar)
            return placed if self._annotated else None

        def bicycle_racks() -> list[list[float]]:
            racks = (keyframe.bicycle_racks or Boxes.none()).transformed(keyframe.global_from_lidar)
            numbers = [racks.centers, racks.sizes, quaternions(racks.rotations)]
            return np.concatenate(numbers, axis=1).tolist()

        return {"boxes": Annotation(boxes), "bicycle_racks": Annotation(bicycle_racks)}

    def recording(self, token: str, reads: Reads = NO_SENSORS) -> Recording:
        """The sensor files of a keyframe with their poses, and its annotations. The file usually lists ten sweeps."""
        if token not in self._keyframes:
            raise InputError(f"{self.path}: no keyframe {token}")
        keyframe = self._keyframes[token]
        return Recording(
            token=token,
            scene=self.scene(token),
            timestamp=keyframe.sweeps[0].timestamp,
            global_from_ego=keyframe.global_from_ego,
            ego_from_lidar=np.linalg.inv(keyframe.global_from_ego) @ keyframe.global_from_lidar,
            lidars={0: keyframe.sweeps[: 1 + reads.sweeps]} if reads.lidar else {},
            pictures=keyframe.pictures if reads.cameras else {},
            truth=self._truth(keyframe),
            own=self.rig.own,
            opened=self._opened,
        )

    def frame(self, token: str, reads: Reads = Reads()) -> Frame:  # noqa: B008 - it is immutable
        return assemble(self.recording(token, reads), reads)


def _drives(keyframes: Sequence[Keyframe]) -> list[list[str]]:
    """Tokens of the keyframes of each drive, in order of time."""
    ordered = sorted(keyframes, key=lambda keyframe: (_log(keyframe), keyframe.sweeps[0].timestamp))
    with_sweeps = any(len(keyframe.sweeps) > 1 for keyframe in keyframes)
    drives: list[list[str]] = []
    last: Keyframe | None = None
    for keyframe in ordered:
        if (
            last is None
            or _log(keyframe) != _log(last)
            or keyframe.sweeps[0].timestamp - last.sweeps[0].timestamp > _MAX_GAP
            or (with_sweeps and len(keyframe.sweeps) == 1)
        ):
            drives.append([])
        drives[-1].append(keyframe.token)
        last = keyframe
    return drives


def _log(keyframe: Keyframe) -> str:
    """The log in a nuScenes file name, such as n015-2018-07-18-11-07-57+0800__SENSOR__...; '' for none."""
    log, found, _ = keyframe.sweeps[0].path.name.partition("__")
    return log if found else ""
