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
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from perception.errors import InputError
from perception.rig import DISTORTIONS, Rig
from perception.rotations import rigid

_CHUNK = 1 << 24  # characters per read; much longer than any row
_BETWEEN_ROWS = re.compile(r"[\s,]*")


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
            # Of T4's cameras, whose pictures are as taken: OpenCV's coefficients.
            self.distortions = {
                token: np.array(row["camera_distortion"], np.float64)
                for token, row in calibrations.items()
                if channel_of[token] in self._sensors.cameras and any(row.get("camera_distortion") or ())
            }
            if wrong := [len(each) for each in self.distortions.values() if len(each) not in DISTORTIONS]:
                raise ValueError(f"camera_distortion has {wrong[0]} coefficients; OpenCV's models have 4, 5 or 8")
        self._read_poses(folder)

    def _add(self, row: dict[str, Any], channel: str) -> None:
        lidar = channel in self._sensors.lidars
        if not lidar and not (channel in self._sensors.cameras and row["is_key_frame"]):
            return
        if not lidar and not row.get("is_valid", True):  # T4's word for a picture to be left out
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
