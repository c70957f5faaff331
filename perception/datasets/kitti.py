"""KITTI as published: the drives of its raw recordings, and the single frames of its object benchmark.

Geiger et al., "Vision meets robotics: the KITTI dataset", IJRR 2013. A dataroot holds a folder for each date of the
raw recordings (2011_09_26/2011_09_26_drive_0001_sync), or the folders of the benchmark (training/velodyne). The frames
of the benchmark are unrelated: each is a drive of one frame, without a pose. `ego` is below the LiDAR, on the ground.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from perception.datasets.drives import Drives, read_splits
from perception.datasets.files import read_floats
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
from perception.errors import InputError, report_damage
from perception.frame import Boxes, Conditions, Frame
from perception.geometry import points_in_boxes
from perception.io.stores import read_file
from perception.rig import Rig, load_rig
from perception.taxonomy import Taxonomy, load_taxonomy

CAMERA = "image_02"  # the left colour camera; a rig that names it gets its pictures
_EGO_FROM_LIDAR = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1.73], [0, 0, 0, 1]])  # m above the road
_EARTH = 6_378_137.0  # m, radius in KITTI's Mercator projection
_OF_DATE = ("cam_to_cam", "velo_to_cam", "imu_to_velo")


class _Place(NamedTuple):
    """The files of one frame."""

    sweep: Path
    picture: Path
    timestamp: int  # us
    calibration: Path  # the folder of a raw recording's date, or the file of a frame of the benchmark
    oxts: tuple[Path, Path] | None = None  # the vehicle's position and attitude, and those at the drive's beginning
    labels: Path | None = None


def is_kitti(folder: Path) -> bool:
    patterns = ("*/*/velodyne_points", "training/velodyne", "testing/velodyne")
    return any(any(folder.glob(pattern)) for pattern in patterns)


def read_sweep(path: Path, _timestamp: int = 0) -> tuple[np.ndarray, None]:
    """Points (N, 5), as `read_cloud` gives them, of a file with x y z (m) and reflectance (0 to 1); rings are 0.

    Raises:
        FileNotFoundError: there is no such file; callers treat it as a missing sensor.
    """
    points = read_floats(path, 4)
    if ((points[:, 3] < 0) | (points[:, 3] > 1)).any():
        raise report_damage(
            f"{path}: a reflectance is not from 0 to 1; KITTI's points are four numbers x y z reflectance"
        )
    return np.column_stack([points * np.array([1, 1, 1, 255], np.float32), np.zeros(len(points), np.float32)]), None


class Kitti:
    """The drives in a dataroot.

    Args:
        rig: of the vehicle; None: KITTI's LiDAR alone.
        taxonomy: of the classes; boxes of labels that are no category of theirs are left out. None: KITTI's own.
    """

    has_attributes = False

    def __init__(self, dataroot: Path, _version: str | None, rig: Rig | None, taxonomy: Taxonomy | None) -> None:
        self.dataroot, self.version = Path(dataroot), "kitti"
        self.rig, self.taxonomy = rig or load_rig("kitti"), taxonomy or load_taxonomy("kitti")
        drives = {**_raw(self.dataroot), **_benchmark(self.dataroot)}
        if not drives:
            raise InputError(
                f"{dataroot}: has no frame of KITTI, as in 2011_09_26/*/velodyne_points or training/velodyne"
            )
        self._places = {f"{name}-{i:06d}": place for name, drive in drives.items() for i, place in enumerate(drive)}
        tokens = {name: [f"{name}-{i:06d}" for i in range(len(drive))] for name, drive in drives.items()}
        named = Drives(str(dataroot), tokens, partial(read_splits, self.dataroot))
        self.scenes, self.samples, self.scene = named.scenes, named.samples, named.scene

    def moments(self, token: str) -> Mapping[str, int]:
        return keyframe_moments(self, token)

    def conditions(self, token: str) -> Conditions:
        return Conditions()

    def recording(self, token: str, reads: Reads = NO_SENSORS) -> Recording:
        if token not in self._places:
            raise InputError(f"{self.dataroot}: no frame {token}")
        place, tokens = self._places[token], self.samples(None, [self.scene(token)])
        number = tokens.index(token)
        places = [self._places[each] for each in reversed(tokens[max(number - reads.sweeps, 0) : number + 1])]
        ego = _global_from_ego(place)
        picture = Picture(place.picture, place.timestamp, *_calibration(place.calibration).camera(), ego)
        sweeps = [
            SweepFile(each.sweep, each.timestamp, _global_from_ego(each), _EGO_FROM_LIDAR, read=read_sweep)
            for each in places
        ]
        annotated = place.labels is not None and place.labels.exists()
        return Recording(
            token=token,
            scene=self.scene(token),
            timestamp=place.timestamp,
            global_from_ego=ego,
            ego_from_lidar=_EGO_FROM_LIDAR,
            lidars={0: sweeps},
            pictures={CAMERA: picture} if CAMERA in self.rig.sensors.cameras else {},
            truth={"boxes": Annotation(partial(self._boxes, place))} if annotated else {},
            own=self.rig.own,
            placed=place.oxts is not None,
            files=lambda: [*(place.oxts or ()), *filter(None, [place.labels])],
        )

    def frame(self, token: str, reads: Reads = Reads()) -> Frame:  # noqa: B008 - it is immutable
        return assemble(self.recording(token, reads), reads)

    def _boxes(self, place: _Place) -> Boxes:
        """The labelled objects, which are those in the picture; label files have them in the camera's frame."""
        assert place.labels is not None
        labels = self.taxonomy.labels_of_categories()
        with _reading(place.labels):
            rows = [row for row in _words(place.labels) if row[0] in labels]
            numbers = np.array([row[8:15] for row in rows], np.float64).reshape(len(rows), 7)
            classes = np.array([labels[row[0]] for row in rows], np.int64)
        height, width, length, x, y, z, turn = numbers.T
        ego_from_rectified = _calibration(place.calibration).ego_from_rectified
        middles = np.stack([x, y - height / 2, z], axis=1)  # y is down, and a label's place is on the ground
        centers = middles @ ego_from_rectified[:3, :3].T + ego_from_rectified[:3, 3]
        headings = np.stack([np.cos(turn), 0 * turn, -np.sin(turn)], axis=1) @ ego_from_rectified[:3, :3].T
        yaws, sizes = np.arctan2(headings[:, 1], headings[:, 0]), np.stack([width, length, height], axis=1)
        unknown = np.full((len(rows), 2), np.nan)
        boxes = Boxes.from_yaws(centers, sizes, yaws, unknown, classes, np.full(len(rows), -1), np.ones(len(rows)))
        try:
            points = read_sweep(place.sweep)[0][:, :3] + _EGO_FROM_LIDAR[:3, 3]
        except FileNotFoundError:
            return boxes
        return replace(boxes, num_points=points_in_boxes(points, centers, sizes, yaws))


def _raw(dataroot: Path) -> dict[str, list[_Place]]:
    drives: dict[str, list[_Place]] = {}
    for folder in sorted(dataroot.glob("*/*/velodyne_points")):
        drive, times = folder.parent, folder / "timestamps.txt"
        with _reading(times):
            stamps = np.array([" ".join(row) for row in _words(times)], "datetime64[us]").astype(np.int64)
        oxts = [drive / "oxts" / "data" / f"{i:010d}.txt" for i in range(len(stamps))]
        drives[drive.name] = [
            _Place(
                folder / "data" / f"{i:010d}.bin",
                drive / CAMERA / "data" / f"{i:010d}.png",
                int(stamp),
                drive.parent,
                (oxts[i], oxts[0]),
            )
            for i, stamp in enumerate(stamps)
        ]
    return drives


def _benchmark(dataroot: Path) -> dict[str, list[_Place]]:
    """The moments of its frames are not published; all have the time 0."""
    return {
        f"{part}-{sweep.stem}": [
            _Place(
                sweep,
                dataroot / part / "image_2" / f"{sweep.stem}.png",
                0,
                dataroot / part / "calib" / f"{sweep.stem}.txt",
                labels=dataroot / part / "label_2" / f"{sweep.stem}.txt",
            )
        ]
        for part in ("training", "testing")
        for sweep in sorted((dataroot / part / "velodyne").glob("*.bin"))
    }


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, ValueError, LookupError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a file as KITTI has it ({reason}); copy it again") from None


def _words(path: Path) -> list[list[str]]:
    return [line.split() for line in read_file(path).decode().splitlines() if line.strip()]


class _Calibration(NamedTuple):
    ego_from_rectified: np.ndarray  # (4, 4), of the frame of camera 0 in which labels and projections are
    projection: np.ndarray  # (3, 4) of the left colour camera
    lidar_from_imu: np.ndarray  # (4, 4)

    def camera(self) -> tuple[np.ndarray, np.ndarray]:
        """Intrinsics (3, 3) and ego_from_camera (4, 4): a projection is K [I | t], t from camera 0 to this one."""
        intrinsics, ego_from_camera = self.projection[:, :3], self.ego_from_rectified.copy()
        ego_from_camera[:3, 3] -= ego_from_camera[:3, :3] @ np.linalg.solve(intrinsics, self.projection[:, 3])
        return intrinsics, ego_from_camera


@lru_cache(maxsize=64)
def _calibration(path: Path) -> _Calibration:
    """The calibration of a raw recording's date, which is a folder, or of one frame of the benchmark."""
    with _reading(path):
        if path.suffix:
            frame = _numbers(path)
            rectify, projection = frame["R0_rect"], frame["P2"]
            camera_from_lidar, lidar_from_imu = frame["Tr_velo_to_cam"], frame["Tr_imu_to_velo"]
        else:
            cameras, lidar, imu = (_numbers(path / f"calib_{each}.txt") for each in _OF_DATE)
            rectify, projection = cameras["R_rect_00"], cameras["P_rect_02"]
            camera_from_lidar, lidar_from_imu = (
                np.column_stack([each["R"].reshape(3, 3), each["T"]]) for each in (lidar, imu)
            )
        rectified_from_lidar = _square(rectify.reshape(3, 3)) @ _square(camera_from_lidar.reshape(3, 4))
        return _Calibration(
            _EGO_FROM_LIDAR @ np.linalg.inv(rectified_from_lidar),
            projection.reshape(3, 4),
            _square(lidar_from_imu.reshape(3, 4)),
        )


def _numbers(path: Path) -> dict[str, np.ndarray]:
    rows = [row for row in _words(path) if row[0] != "calib_time:"]
    return {name.rstrip(":"): np.array(values, np.float64) for name, *values in rows}


def _square(matrix: np.ndarray) -> np.ndarray:
    square = np.eye(4)
    square[: matrix.shape[0], : matrix.shape[1]] = matrix
    return square


@lru_cache(maxsize=1024)
def _global_from_ego(place: _Place) -> np.ndarray:
    """(4, 4) from the drive's first position; the identity for a frame of the benchmark."""
    if place.oxts is None:
        return np.eye(4)
    (path, first), poses = place.oxts, []
    for each in (path, first):
        with _reading(each):
            latitude, longitude, altitude, roll, pitch, yaw = np.array(_words(each)[0][:6], np.float64)
            origin = float(_words(first)[0][0])
        scale, north = _EARTH * np.cos(np.radians(origin)), np.log(np.tan(np.radians(90 + latitude) / 2))
        pose = np.eye(4)
        pose[:3, :3] = _turn(2, yaw) @ _turn(1, pitch) @ _turn(0, roll)
        pose[:3, 3] = scale * np.radians(longitude), scale * north, altitude
        poses.append(pose)
    poses[0][:3, 3] -= poses[1][:3, 3]
    lidar_from_imu = _calibration(place.calibration).lidar_from_imu
    return np.asarray(poses[0] @ np.linalg.inv(_EGO_FROM_LIDAR @ lidar_from_imu))


def _turn(axis: int, angle: float) -> np.ndarray:
    """(3, 3) rotation about x, y or z."""
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[[i, j], [i, j]], matrix[i, j], matrix[j, i] = np.cos(angle), -np.sin(angle), np.sin(angle)
    return matrix
