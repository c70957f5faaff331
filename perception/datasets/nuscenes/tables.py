"""Reads the JSON tables of a nuScenes dataroot row by row and keeps only what frames need.

v1.0-trainval has 2.6 million rows of sample_data and of ego_pose, and 1.2 million annotations. Rows of RADARs, of
camera images between keyframes and of categories that are not detected are dropped.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from perception.errors import InputError
from perception.frame import ATTRIBUTES, CLASSES
from perception.rig import Rig
from perception.rotations import rigid

_CHUNK = 1 << 24  # characters per read; much longer than any row
_BETWEEN_ROWS = re.compile(r"[\s,]*")

# nuScenes category -> detection class, as in the devkit's category_to_detection_name.
_DETECTION_CLASS = {
    "movable_object.barrier": "barrier",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}


def versions(dataroot: Path) -> list[str]:
    """The versions of the tables in a dataroot."""
    return sorted(path.parent.name for path in dataroot.glob("*/sample_data.json"))


def only_version(dataroot: Path) -> str:
    """The version of a dataroot with a single one.

    Raises:
        InputError: it has several, or none.
    """
    found = versions(dataroot)
    if len(found) != 1:
        raise InputError(f"{dataroot}: holds {', '.join(found) or 'no tables'}; say which with --version")
    return found[0]


def rows(folder: Path, table: str) -> Iterator[dict[str, Any]]:
    """The rows of one table, streamed so that memory does not grow with the table.

    Raises:
        InputError: the table is missing or is not a JSON list of objects.
    """
    path = folder / f"{table}.json"
    try:
        with path.open(encoding="utf-8") as file:
            yield from _rows(file, path)
    except FileNotFoundError:
        raise InputError(f"{path}: the table is missing; complete {folder.name}/ from the dataset") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the table ({error.__class__.__name__})") from None


def _rows(file: Any, path: Path) -> Iterator[dict[str, Any]]:
    decoder = json.JSONDecoder()
    text, position = file.read(_CHUNK).lstrip(), 1
    if not text.startswith("["):
        raise InputError(f"{path}: not a table: a JSON list of objects is expected; copy it again")
    while True:
        position = _BETWEEN_ROWS.match(text, position).end()  # type: ignore[union-attr]
        try:
            row, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            if text[position : position + 1] == "]":
                return
            more = file.read(_CHUNK) if len(text) - position < _CHUNK else ""
            if not more:
                start = " ".join(text[position : position + 40].split()) or "the end of the file"
                raise InputError(f"{path}: not valid JSON ({error.msg.lower()} at {start!r}); copy it again") from None
            text, position = text[position:] + more, 0
            continue
        if not isinstance(row, dict):
            raise InputError(f"{path}: a row is {type(row).__name__}, not an object; copy it again")
        yield row


@contextmanager
def linked(folder: Path, table: str) -> Iterator[None]:
    """Report a missing field or an unknown token, raised as KeyError, as an InputError about this table."""
    try:
        yield
    except KeyError as error:
        raise InputError(
            f"{folder / table}.json: the field or token {error.args[0]!r} is missing; copy the tables again"
        ) from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{folder / table}.json: a row has a wrong value ({error}); copy it again") from None


class Recording(NamedTuple):
    """A row of sample_data: the file of one sweep or image."""

    sample: str  # token
    timestamp: int  # us
    calibration: str  # token
    pose: str  # token
    file: str  # relative to the dataroot
    previous: str  # token of the sensor's previous recording; '' at the start of the drive
    width: int  # pixels, of images
    height: int  # pixels, of images
    channel: str


_COLUMNS = (
    "sample_token", "timestamp", "calibrated_sensor_token", "ego_pose_token", "filename", "prev", "width", "height",
)  # fmt: skip


class Recordings:
    """All LiDAR sweeps, and the keyframes of the cameras, with poses and calibrations.

    Args:
        rig: its sensors are read, by the names of their channels.

    Raises:
        InputError: the rig's first LiDAR is not among the sensors, or none of its cameras is.
    """

    def __init__(self, folder: Path, rig: Rig) -> None:
        self._folder, self._sensors = folder, rig.sensors
        with linked(folder, "sensor"):
            sensors = list(rows(folder, "sensor"))
            channels = {row["token"]: row["channel"] for row in sensors}
            _require_rig(folder, rig, sensors)
        with linked(folder, "calibrated_sensor"):
            calibrations = {row["token"]: row for row in rows(folder, "calibrated_sensor")}
            channel_of = {token: channels[row["sensor_token"]] for token, row in calibrations.items()}
        self.sweeps: dict[str, Recording] = {}  # LiDAR, by token
        self.keyframes: dict[str, dict[str, Recording]] = {}  # by sample token and channel
        with linked(folder, "sample_data"):
            for row in rows(folder, "sample_data"):
                self._add(row, channel_of[row["calibrated_sensor_token"]])
        with linked(folder, "calibrated_sensor"):
            # By token of the calibration: (7,) translation (m), quaternion w x y z; and as (4, 4) matrices.
            self.mountings = {
                token: np.array([*row["translation"], *row["rotation"]], np.float64)
                for token, row in calibrations.items()
            }
            self.ego_from_sensor = {token: rigid(m[:3], m[3:]) for token, m in self.mountings.items()}
            self.intrinsics = {
                token: np.array(row["camera_intrinsic"], np.float64).reshape(3, 3)
                for token, row in calibrations.items()
                if channel_of[token] in self._sensors.cameras
            }
        self._read_poses(folder)

    def _add(self, row: dict[str, Any], channel: str) -> None:
        lidar = channel in self._sensors.lidars
        if not lidar and not (channel in self._sensors.cameras and row["is_key_frame"]):
            return
        recording = Recording._make([*(row[column] for column in _COLUMNS), channel])
        if lidar:
            self.sweeps[row["token"]] = recording
        if row["is_key_frame"]:
            self.keyframes.setdefault(recording.sample, {})[channel] = recording

    def _read_poses(self, folder: Path) -> None:
        needed = {recording.pose for recording in self.sweeps.values()}
        needed.update(r.pose for keyframe in self.keyframes.values() for r in keyframe.values())
        self._pose_rows: dict[str, int] = {}
        values = array("d")
        with linked(folder, "ego_pose"):
            for row in rows(folder, "ego_pose"):
                if row["token"] in needed:
                    self._pose_rows[row["token"]] = len(self._pose_rows)
                    values.extend(row["translation"])
                    values.extend(row["rotation"])
        self._poses = np.frombuffer(values, np.float64).reshape(-1, 7)
        missing = needed - self._pose_rows.keys()
        if missing:
            raise InputError(
                f"{folder / 'ego_pose.json'}: lacks {len(missing)} poses that sample_data.json refers to, "
                f"such as {min(missing)}; copy the tables again"
            )

    def chain(self, keyframe: Recording, sweeps: int) -> Iterator[Recording]:
        """A LiDAR keyframe, then up to `sweeps` earlier sweeps of the drive, latest first."""
        recording = keyframe
        yield recording
        for _ in range(sweeps):
            if not recording.previous:
                return
            with linked(self._folder, "sample_data"):
                recording = self.sweeps[recording.previous]
            yield recording

    def pose(self, recording: Recording) -> np.ndarray:
        """(7,) pose of the vehicle at the recording's time: translation (m), quaternion w x y z."""
        return np.asarray(self._poses[self._pose_rows[recording.pose]])

    def global_from_ego(self, recording: Recording) -> np.ndarray:
        """(4, 4) pose of the vehicle at the recording's time."""
        pose = self.pose(recording)
        return rigid(pose[:3], pose[3:])


def _require_rig(folder: Path, rig: Rig, sensors: list[dict[str, Any]]) -> None:
    """Raise InputError if the sensors (rows of the table) are those of another rig."""
    found = [row["channel"] for row in sensors]
    pictures = [row["channel"] for row in sensors if row.get("modality") == "camera"]
    cameras, reference = rig.sensors.cameras, rig.sensors.lidars[0]
    if reference not in found:
        missing = reference
    elif cameras and pictures and not {*cameras} & {*pictures}:
        missing = cameras[0]
    else:
        return
    raise InputError(
        f"{folder / 'sensor.json'}: these drives are of another vehicle than the rig {rig.name}: they have no "
        f"{missing}, but {', '.join(sorted(found))}"
    )


@dataclass(frozen=True)
class Annotations:
    """The boxes of the ten detection classes, as columns in the global frame."""

    centers: np.ndarray  # (N, 3) m
    sizes: np.ndarray  # (N, 3) m: width, length, height
    quaternions: np.ndarray  # (N, 4) w x y z
    velocities: np.ndarray  # (N, 3) m/s; NaN where unknown
    labels: np.ndarray  # (N,) index into CLASSES
    attributes: np.ndarray  # (N,) index into ATTRIBUTES; -1 for none
    num_points: np.ndarray  # (N,) LiDAR + radar points
    instances: np.ndarray  # (N,) row of instance_tokens
    instance_tokens: np.ndarray  # (I,) str
    of_sample: dict[str, list[int]]  # rows of a sample, in the order of the table

    @staticmethod
    def read(folder: Path, timestamps: dict[str, int]) -> Annotations:
        """The annotations in a folder of tables; timestamps: sample token -> us, for velocities."""
        instance_tokens, labels_of = _instances(folder)
        with linked(folder, "attribute"):
            attribute_of = {
                row["token"]: ATTRIBUTES.index(row["name"])
                for row in rows(folder, "attribute")
                if row["name"] in ATTRIBUTES
            }
        instance_row = {token: i for i, token in enumerate(instance_tokens)}
        row_of: dict[str, int] = {}
        of_sample: dict[str, list[int]] = {}
        links: list[tuple[str, str]] = []
        real, whole = array("d"), array("q")
        with linked(folder, "sample_annotation"):
            for row in rows(folder, "sample_annotation"):
                instance = instance_row[row["instance_token"]]
                if labels_of[instance] < 0:
                    continue
                of_sample.setdefault(row["sample_token"], []).append(len(row_of))
                row_of[row["token"]] = len(row_of)
                links.append((row["prev"], row["next"]))
                real.extend((*row["translation"], *row["size"], *row["rotation"]))
                attribute = next((attribute_of.get(t, -1) for t in row["attribute_tokens"]), -1)
                points = row["num_lidar_pts"] + row["num_radar_pts"]
                whole.extend((timestamps[row["sample_token"]], attribute, points, instance))
            linked_rows = np.array(
                [(row_of[a] if a else -1, row_of[b] if b else -1) for a, b in links], np.int64
            ).reshape(-1, 2)
            floats = np.frombuffer(real, np.float64).reshape(-1, 10)
            integers = np.frombuffer(whole, np.int64).reshape(-1, 4)
        return Annotations(
            centers=floats[:, :3],
            sizes=floats[:, 3:6],
            quaternions=floats[:, 6:],
            velocities=_velocities(floats[:, :3], integers[:, 0], linked_rows),
            labels=labels_of[integers[:, 3]],
            attributes=integers[:, 1],
            num_points=integers[:, 2],
            instances=integers[:, 3],
            instance_tokens=instance_tokens,
            of_sample=of_sample,
        )


def _instances(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (I,) of all instances, and their labels (I,); -1 for those of none of the ten classes."""
    label = {category: CLASSES.index(name) for category, name in _DETECTION_CLASS.items()}
    with linked(folder, "category"):
        labels = {row["token"]: label.get(row["name"], -1) for row in rows(folder, "category")}
    with linked(folder, "instance"):
        instances = [(row["token"], labels[row["category_token"]]) for row in rows(folder, "instance")]
    return np.array([token for token, _ in instances], np.str_), np.array([label for _, label in instances], np.int64)


def _velocities(centers: np.ndarray, timestamps: np.ndarray, links: np.ndarray) -> np.ndarray:
    """(N, 3) m/s between the previous and the next annotation of the instance, as NuScenes.box_velocity.

    The annotation itself replaces a missing one. NaN if both are missing, or if they are more than 1.5 s apart (3 s
    with both).
    """
    current = np.arange(len(centers))
    first = np.where(links[:, 0] >= 0, links[:, 0], current)
    last = np.where(links[:, 1] >= 0, links[:, 1], current)
    seconds = 1e-6 * timestamps
    elapsed = seconds[last] - seconds[first]
    allowed = np.where((links >= 0).all(axis=1), 3.0, 1.5)
    known = (first != last) & (elapsed <= allowed)
    return (centers[last] - centers[first]) / np.where(known, elapsed, np.nan)[:, None]
