"""What mmdet3d's nuscenes_infos_*.pkl say of keyframes, in both layouts.

`data_list` and `metainfo` are mmdet3d's since 1.1: poses as matrices in float32, boxes one by one. `infos` and
`metadata` are older: poses as quaternions, boxes as arrays. Sources: `tools/dataset_converters/nuscenes_converter.py`
and `update_infos_to_v2.py` of mmdet3d 1.4.0 and 0.17.

Boxes are upright in the LiDAR's frame, with their middle. Since mmdet3d 1.0.0rc0 their sizes are length, width, height
and the yaw r turns from x to y; before, the sizes were width, length, height and the angle was -r - pi/2. No field says
which, in neither layout, so it is seen from the vehicles, which are longer than wide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from perception.datasets.nuscenes.racks import CATEGORY as RACK
from perception.errors import InputError
from perception.frame import CAMERAS, CLASSES, LIDAR, Boxes
from perception.mmdet3d.fields import Field
from perception.rotations import rigid

_ENTRY = 32  # bytes; a sweep or a box takes at least as many
_LONG = ("car", "truck", "bus", "trailer", "bicycle", "motorcycle")  # longer than wide
_EARLIEST, _LATEST = 1_000_000_000_000_000, 10_000_000_000_000_000  # us: years 2001 to 2286


@dataclass(frozen=True)
class Recorded:
    """A sensor's file, and where the sensor was."""

    file: str  # relative to the dataroot
    timestamp: int  # us
    global_from_sensor: np.ndarray  # (4, 4)


@dataclass(frozen=True)
class Picture(Recorded):
    """A camera's file."""

    intrinsics: np.ndarray  # (3, 3) pixels
    ego_from_camera: np.ndarray  # (4, 4)


@dataclass(frozen=True)
class Keyframe:
    """All that the infos say of one keyframe."""

    token: str
    lidar: Recorded
    global_from_ego: np.ndarray  # (4, 4) at the LiDAR's time
    sweeps: tuple[Recorded, ...]  # LiDAR, latest first
    cameras: Mapping[str, Picture]
    boxes: Boxes | None = None  # of the ten classes, in the LiDAR's frame; None: not annotated
    racks: Boxes = field(default_factory=Boxes.none)  # bicycle racks, in the LiDAR's frame; the new layout has none


@dataclass(frozen=True)
class _Annotated:
    """Boxes as they are in the file."""

    numbers: np.ndarray  # (N, 7) x y z, two horizontal sizes, height, angle
    velocities: np.ndarray  # (N, 2) m/s, NaN where unknown
    names: list[str]
    points: np.ndarray  # (N,) LiDAR + radar

    def boxes(self, old: bool, chosen: list[int], labels: list[int]) -> Boxes:
        """The chosen ones with their labels.

        Args:
            old: whether sizes and angles are as before mmdet3d 1.0.0rc0.
        """
        numbers = self.numbers[chosen]
        boxes = Boxes.from_yaws(
            centers=numbers[:, :3],
            sizes=numbers[:, 3:6] if old else numbers[:, [4, 3, 5]],
            yaws=-numbers[:, 6] - np.pi / 2 if old else numbers[:, 6],
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
        size: of the file, bytes.

    Raises:
        InputError: these are no infos of nuScenes, something is missing or of another shape, or nothing tells in which
            convention the boxes are.
    """
    root = Field(content, str(path))
    if "data_list" in root and "metainfo" in root:
        listed, read = root["data_list"], _new(root["metainfo"])
    elif "infos" in root and "metadata" in root:
        listed, read = root["infos"], _old_row
    else:
        raise InputError(f"{path}: no infos of mmdet3d: neither data_list and metainfo nor infos and metadata in it")
    tokens = [row["token"].text for row in listed]
    if len(set(tokens)) < len(tokens):
        raise listed.wrong(f"has {len(tokens) - len(set(tokens))} keyframes twice")
    if not tokens:
        raise listed.wrong("has no keyframe")
    rows, entries = [], 0
    for row in listed:
        rows.append(read(row))
        keyframe, annotated = rows[-1]
        entries += len(keyframe.sweeps) + (0 if annotated is None else len(annotated.names))
        if entries * _ENTRY > size:  # no converter writes this; memory must not grow beyond the file
            raise listed.wrong("has keyframes that share their lists")
    old = _sizes_are_old([annotated for _, annotated in rows if annotated is not None], path)
    return [_with_boxes(keyframe, annotated, old) for keyframe, annotated in rows]


def _with_boxes(keyframe: Keyframe, annotated: _Annotated | None, old: bool) -> Keyframe:
    if annotated is None:
        return keyframe
    own = [i for i, name in enumerate(annotated.names) if name in CLASSES]
    racks = [i for i, name in enumerate(annotated.names) if name == RACK]
    return replace(
        keyframe,
        boxes=annotated.boxes(old, own, [CLASSES.index(annotated.names[i]) for i in own]),
        racks=annotated.boxes(old, racks, [-1] * len(racks)),
    )


def _sizes_are_old(annotated: list[_Annotated], path: Path) -> bool:
    """Whether boxes are written as before 1.0.0rc0, that is width before length.

    Raises:
        InputError: there are boxes, but none of a class that is longer than wide.
    """
    shares = [
        each.numbers[i, 3] < each.numbers[i, 4]
        for each in annotated
        for i, name in enumerate(each.names)
        if name in _LONG and each.numbers[i, 3] != each.numbers[i, 4]
    ]
    if not shares and any(name in CLASSES for each in annotated for name in each.names):
        raise InputError(
            f"{path}: whether its boxes are written as before mmdet3d 1.0 is seen from vehicles, and none is annotated "
            "in it; use infos of more keyframes"
        )
    return bool(shares) and bool(np.mean(shares) > 0.5)


def _new(metainfo: Field) -> Callable[[Field], tuple[Keyframe, _Annotated | None]]:
    """The reader of a keyframe in the layout since mmdet3d 1.1."""
    if metainfo["dataset"].text != "nuscenes":
        raise metainfo["dataset"].wrong(f"is {metainfo['dataset'].text[:40]}; only infos of nuscenes are read")
    categories = {index.whole: name for name, index in metainfo["categories"].items()}
    return lambda row: _new_row(row, categories)


def _new_row(row: Field, categories: dict[int, str]) -> tuple[Keyframe, _Annotated | None]:
    lidar = row["lidar_points"]
    if "num_pts_feats" in lidar and lidar["num_pts_feats"].whole != 5:
        raise lidar["num_pts_feats"].wrong("is not 5, which nuScenes' sweeps have")
    global_from_ego = row["ego2global"].pose()
    global_from_lidar = global_from_ego @ lidar["lidar2ego"].pose()

    def recorded(points: Field, time: Field, global_from_sensor: np.ndarray) -> Recorded:
        return Recorded(_sensor_file(points["lidar_path"], LIDAR), _microseconds(time), global_from_sensor)

    def sweep(each: Field) -> Recorded:
        points = each["lidar_points"]
        placed = global_from_lidar @ np.linalg.inv(points["lidar2sensor"].pose())
        return recorded(points, each["timestamp"], placed)

    def picture(name: str, image: Field) -> Picture:
        return Picture(
            _sensor_file(image["img_path"], name),
            _microseconds(image["timestamp"]),
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
    return keyframe, _instances(row["instances"], categories) if "instances" in row else None


def _instances(rows: Field, categories: dict[int, str]) -> _Annotated:
    numbers, velocities, names, points = [], [], [], []
    for row in rows:
        label = row["bbox_label_3d"].whole
        if label >= 0 and label not in categories:
            raise row["bbox_label_3d"].wrong(f"is {label}, which is no category of metainfo")
        numbers.append(_checked(row["bbox_3d"], row["bbox_3d"].numbers(7)))
        velocities.append(row["velocity"].numbers(2, unknown=True))
        names.append(categories[label] if label >= 0 else "")
        points.append(row["num_lidar_pts"].whole + row["num_radar_pts"].whole)
    return _Annotated(
        np.array(numbers).reshape(-1, 7), np.array(velocities).reshape(-1, 2), names, np.array(points, np.float64)
    )


def _old_row(row: Field) -> tuple[Keyframe, _Annotated | None]:
    """A keyframe in the layout before mmdet3d 1.1."""
    global_from_ego = _pose(row, "ego2global")

    def recorded(each: Field, file: str, mounting: str) -> Recorded:
        placed = _pose(each, "ego2global") @ _pose(each, mounting)
        return Recorded(_sensor_file(each[file], LIDAR), _moment(each["timestamp"]), placed)

    def picture(name: str, camera: Field) -> Picture:
        ego_from_camera = _pose(camera, "sensor2ego")
        return Picture(
            _sensor_file(camera["data_path"], name),
            _moment(camera["timestamp"]),
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
    annotated = _Annotated(
        numbers=_checked(boxes, boxes.numbers(count, 7)),
        velocities=row["gt_velocity"].numbers(count, 2, unknown=True),
        names=names,
        points=row["num_lidar_pts"].numbers(count) + row["num_radar_pts"].numbers(count),
    )
    return keyframe, annotated


def _pose(row: Field, name: str) -> np.ndarray:
    """(4, 4) of a translation and a rotation."""
    return rigid(row[f"{name}_translation"].numbers(3), row[f"{name}_rotation"].quaternion())


def _checked(place: Field, numbers: np.ndarray) -> np.ndarray:
    if (numbers[..., 3:6] <= 0).any():
        raise place.wrong("has a size that is not positive")
    return numbers


def _sensor_file(place: Field, channel: str) -> str:
    """Where a file is in every dataroot. Infos have its path from where they were made, or its name alone."""
    path = PurePosixPath(place.text.replace("\\", "/"))
    if not path.name or path.name == "..":
        raise place.wrong("names no file")
    return f"{'sweeps' if 'sweeps' in path.parts else 'samples'}/{channel}/{path.name}"


def _microseconds(place: Field) -> int:
    """us of a time in seconds."""
    seconds = float(place.numbers())
    if not 1e-6 * _EARLIEST <= seconds < 1e-6 * _LATEST:
        raise place.wrong("is no time of a recording in seconds")
    return round(seconds * 1e6)


def _moment(place: Field) -> int:
    if not _EARLIEST <= place.whole < _LATEST:
        raise place.wrong("is no time of a recording in microseconds")
    return place.whole
