"""The sensor files of a nuScenes dataroot with poses and calibrations, as rows of one array."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, count, islice, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from perception.datasets.nuscenes.tables import report_links, rows, stamps
from perception.errors import InputError
from perception.geometry import rigid
from perception.io.cache import cached_arrays
from perception.rig import DISTORTIONS, Rig, Sensors

LATER = 10_000  # us, that a recording may be after the sweep; rigs have delays of a few milliseconds
OLDEST = 100_000  # us before the sweep; nuScenes' cameras take a picture each 83 ms

_START, _LOST = -1, -2  # for a row: the drive's first recording, and one whose predecessor is not in the table


class SampleData(NamedTuple):
    """A row of sample_data: the file of one sweep or image."""

    row: int  # in `Recordings`
    timestamp: int  # us
    calibration: str  # token
    file: str  # relative to the dataroot
    width: int  # pixels, of images
    height: int  # pixels, of images
    channel: str


class Recordings(Mapping[str, Mapping[str, SampleData]]):
    """All LiDAR sweeps, and the keyframes of the cameras, with poses and calibrations.

    It maps the token of a sample to its keyframe: channel -> recording.

    Args:
        rig: its sensors are read, by the names of their channels.
        between: also the pictures between keyframes, which are most of v1.0-trainval's rows.
    """

    def __init__(self, folder: Path, rig: Rig, between: bool = False) -> None:
        self._folder, sensors = folder, rig.sensors
        self._channels, self._lidars = (*sensors.lidars, *sensors.cameras), len(sensors.lidars)
        with report_links(folder, "sensor"):
            listed = list(rows(folder, "sensor"))
            channels = {row["token"]: row["channel"] for row in listed}
            _require_rig(folder, rig, listed)
        with report_links(folder, "calibrated_sensor"):
            calibrations = {row["token"]: row for row in rows(folder, "calibrated_sensor")}
            channel_of = {token: channels[row["sensor_token"]] for token, row in calibrations.items()}
            # By token of the calibration: (7,) translation (m), quaternion w x y z; and as (4, 4) matrices.
            self.mountings = {
                token: np.array([*row["translation"], *row["rotation"]], np.float64)
                for token, row in calibrations.items()
            }
            self.ego_from_sensor = {token: rigid(m[:3], m[3:]) for token, m in self.mountings.items()}
            cameras = {token: row for token, row in calibrations.items() if channel_of[token] in sensors.cameras}
            self.intrinsics = {
                token: np.array(row["camera_intrinsic"], np.float64).reshape(3, 3) for token, row in cameras.items()
            }
            # Of T4's cameras, whose pictures are as taken: OpenCV's coefficients.
            self.distortions = {
                token: np.array(row["camera_distortion"], np.float64)
                for token, row in cameras.items()
                if any(row.get("camera_distortion") or ())
            }
            if wrong := [len(each) for each in self.distortions.values() if len(each) not in DISTORTIONS]:
                raise ValueError(f"camera_distortion has {wrong[0]} coefficients; OpenCV's models have 4, 5 or 8")
        self._calibrations = list(calibrations)
        names = ("sensor", "calibrated_sensor", "sample_data", "ego_pose")
        about, calibrated = [sensors.lidars, sensors.cameras, *(["between"] if between else [])], self._calibrations
        self._arrays = cached_arrays(
            "recordings", stamps(folder, names), about, lambda: _read(folder, sensors, channel_of, calibrated, between)
        )
        self._sample_rows = dict(zip(_text(self._arrays["samples"]), self._arrays["keyframes"], strict=True))

    def __getitem__(self, sample: str) -> dict[str, SampleData]:
        found = zip(self._channels, self._sample_rows[sample].tolist(), strict=True)
        return {channel: self._recording(row) for channel, row in found if row >= 0}

    def __iter__(self) -> Iterator[str]:
        return iter(self._sample_rows)

    def __len__(self) -> int:
        return len(self._sample_rows)

    def _recording(self, row: int) -> SampleData:
        *numbers, channel = self._arrays["numbers"][row].tolist()
        timestamp, calibration, width, height = numbers
        file = self._arrays["files"][row].decode()
        return SampleData(row, timestamp, self._calibrations[calibration], file, width, height, self._channels[channel])

    def sweep_files(self) -> dict[str, str]:
        """Token of sample_data -> file, of all LiDAR sweeps."""
        lidar = self._arrays["numbers"][:, 4] < self._lidars
        return dict(zip(_text(self._arrays["tokens"][lidar]), _text(self._arrays["files"][lidar]), strict=True))

    @cached_property
    def of_keyframe(self) -> np.ndarray:
        """(N,) bool: whether each row is of a keyframe."""
        keyframes = self._arrays["keyframes"]
        return np.isin(np.arange(len(self._arrays["files"])), keyframes[keyframes >= 0])

    def chain(self, latest: SampleData, sweeps: int | None = None) -> Iterator[SampleData]:
        """A LiDAR sweep, then up to `sweeps` earlier ones of the drive, latest first; None: all.

        With the pictures between keyframes, also a camera's pictures.
        """
        yield latest
        row = latest.row
        for _ in count() if sweeps is None else range(sweeps):
            row = int(self._arrays["previous"][row])
            if row == _START:
                return
            if row == _LOST:
                raise InputError(
                    f"{self._folder / 'sample_data.json'}: lacks a sweep before {latest.file}; copy the tables again"
                )
            yield self._recording(row)

    def pose(self, row: SampleData) -> np.ndarray:
        """(7,) pose of the vehicle at its time: translation (m), quaternion w x y z."""
        return np.array(self._arrays["poses"][row.row])

    def global_from_ego(self, row: SampleData) -> np.ndarray:
        pose = self.pose(row)
        return rigid(pose[:3], pose[3:])


class FramesBetween:
    """What sensors recorded between keyframes: sweeps and pictures that are no keyframes.

    A frame is a sweep of the reference LiDAR with a recording of each other sensor that no other frame has.

    Args:
        rig: its sensors are read; the first LiDAR is the reference.
    """

    def __init__(self, folder: Path, rig: Rig) -> None:
        self.recordings, self._reference = Recordings(folder, rig, between=True), rig.sensors.lidars[0]

    def before(self, sample: str) -> dict[str, Mapping[str, SampleData]]:
        """Token -> recordings by channel, of the frames from the keyframe before this one up to it, in order of time.

        A sweep is no frame where a sensor of the keyframe has no recording of about its time, or one that a keyframe
        or the frame before has already: LiDARs may be faster than cameras. There are none before a keyframe without
        the reference LiDAR.
        """
        keyframe = self.recordings.get(sample, {})
        if self._reference not in keyframe:
            return {}
        last = keyframe[self._reference]
        sweeps = [last, *takewhile(self._is_between, islice(self.recordings.chain(last), 1, None))]
        oldest, others = sweeps[-1].timestamp - OLDEST, list[tuple[int, list[SampleData]]]()
        for row in keyframe.values():
            if row is not last:
                rows = takewhile(lambda each: each.timestamp >= oldest, self.recordings.chain(row))
                others.append((row.timestamp - last.timestamp, [*rows]))
        frames, of_frame_before = dict[str, Mapping[str, SampleData]](), list[SampleData]()
        for sweep in reversed(sweeps[1:]):
            recorded = [each for delay, rows in others for each in _near(rows, sweep.timestamp, delay)]
            complete = len(recorded) == len(others)
            if complete and all(self._is_between(row) and row not in of_frame_before for row in recorded):
                frames[f"{sample}@{sweep.timestamp}"] = {each.channel: each for each in (sweep, *recorded)}
                of_frame_before = recorded
        return frames

    def _is_between(self, row: SampleData) -> bool:
        return not self.recordings.of_keyframe[row.row]


def _near(rows: Iterable[SampleData], time: int, delay: int) -> list[SampleData]:
    """The recording of about the time of a sweep, us, whose delay is most like the keyframe's; none if there is none.

    It is not always the latest: nuScenes' cameras expose as the LiDAR turns to them, the first one 43 ms before the end
    of its sweep, which is 7 ms after the end of the sweep before.
    """
    near = (each for each in rows if time - OLDEST <= each.timestamp <= time + LATER)
    return sorted(near, key=lambda each: abs(each.timestamp - time - delay))[:1]


@dataclass
class _Rows:
    """Rows of sample_data that are read, N of them, in the order of the table."""

    numbers: array[int] = field(default_factory=lambda: array("q"))  # timestamp, calibration, width, height, channel
    files: list[bytes] = field(default_factory=list)
    tokens: list[bytes] = field(default_factory=list)  # b"" for what is not linked: pictures of keyframes alone
    previous: list[bytes] = field(default_factory=list)  # token; b"" for none and for what is not linked
    poses: list[str] = field(default_factory=list)  # tokens
    keyframes: dict[bytes, dict[int, int]] = field(default_factory=dict)  # sample -> channel -> row

    def add(self, row: Mapping[str, Any], calibration: int, channel: int, linked: bool) -> None:
        if row["is_key_frame"]:
            self.keyframes.setdefault(row["sample_token"].encode(), {})[channel] = len(self.files)
        self.numbers.extend((row["timestamp"], calibration, row["width"] or 0, row["height"] or 0, channel))
        self.files.append(row["filename"].encode())
        self.tokens.append(row["token"].encode() if linked else b"")
        self.previous.append(row["prev"].encode() if linked else b"")
        self.poses.append(row["ego_pose_token"])


def _read(
    folder: Path, sensors: Sensors, channel_of: Mapping[str, str], calibrations: list[str], between: bool
) -> dict[str, np.ndarray]:
    """What `Recordings` keeps of sample_data and ego_pose, as arrays.

    numbers (N, 5) int64, files (N,), tokens (N,) and previous (N,) int32 as in `_Rows`, poses (N, 7); samples (S,) with
    keyframes (S, channels) int32 rows, -1 for none.
    """
    channels = {name: i for i, name in enumerate((*sensors.lidars, *sensors.cameras))}
    index = {token: i for i, token in enumerate(calibrations)}
    found, before_invalid = _Rows(), dict[bytes, bytes]()
    with report_links(folder, "sample_data"):
        for row in rows(folder, "sample_data"):
            channel = channel_of[row["calibrated_sensor_token"]]
            lidar = channel in sensors.lidars
            picture = channel in sensors.cameras and (between or row["is_key_frame"])
            # `is_valid` is T4's word for a picture to be left out.
            if lidar or (picture and row.get("is_valid", True)):
                found.add(row, index[row["calibrated_sensor_token"]], channels[channel], lidar or between)
            elif picture:
                before_invalid[row["token"].encode()] = row["prev"].encode()
        for i, token in enumerate(found.previous):
            while token in before_invalid:
                found.previous[i] = token = before_invalid[token]
        row_of = {token: i for i, token in enumerate(found.tokens) if token}
        keyframes = np.full((len(found.keyframes), len(channels)), -1, np.int32)
        for i, own in enumerate(found.keyframes.values()):
            keyframes[i, list(own)] = list(own.values())
        return {
            "numbers": np.frombuffer(found.numbers, np.int64).reshape(-1, 5),
            "files": np.array(found.files, np.bytes_),
            "tokens": np.array(found.tokens, np.bytes_),
            "previous": np.array([row_of.get(t, _LOST) if t else _START for t in found.previous], np.int32),
            "poses": _poses(folder, found.poses),
            "samples": np.array([*found.keyframes], np.bytes_),
            "keyframes": keyframes,
        }


def _poses(folder: Path, tokens: list[str]) -> np.ndarray:
    """(N, 7) translation and quaternion of the poses with these tokens."""
    place: dict[str, int] = dict.fromkeys(tokens, -1)
    values = array("d")
    with report_links(folder, "ego_pose"):
        for row in rows(folder, "ego_pose"):
            if row["token"] in place:
                place[row["token"]] = len(values) // 7
                values.extend(chain(row["translation"], row["rotation"]))
    if missing := [token for token, row in place.items() if row < 0]:
        raise InputError(
            f"{folder / 'ego_pose.json'}: lacks {len(missing)} poses that sample_data.json refers to, "
            f"such as {min(missing)}; copy the tables again"
        )
    found = np.frombuffer(values, np.float64).reshape(-1, 7)
    usable = np.isfinite(found).all(axis=1) & found[:, 3:].any(axis=1)
    if wrong := [token for token, row in place.items() if not usable[row]]:
        raise InputError(
            f"{folder / 'ego_pose.json'}: {len(wrong)} poses are not finite or have no rotation, such as {min(wrong)}; "
            "copy the tables again"
        )
    return found[[place[token] for token in tokens]]


def _text(values: np.ndarray) -> list[str]:
    return [value.decode() for value in values.tolist()]


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
