"""The interface of data sets of recorded drives: what they say of a keyframe, and the frame that is made of it.

A data set gives a `Recording` of each keyframe; `assemble` reads the sensor files that it names. numpy and OpenCV only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np

from perception.datasets.files import Stamp, read_cloud, read_image, stamp
from perception.datasets.sweeps import Cloud, Sweep, global_from_reference, is_measurement, join_lidars
from perception.errors import InputError, report_damage
from perception.frame import Camera, Conditions, Frame, Scan, reduce_intrinsics
from perception.grid import Reference
from perception.rig import Box, LidarLimits, Rig
from perception.taxonomy import Taxonomy

Paths = Mapping[int, tuple[np.ndarray, np.ndarray]]  # LiDAR -> (M,) times, us, ascending, and (M, 3) places, m, global


class Reads(NamedTuple):
    """Which parts of a keyframe to read."""

    reference: Reference = "ego"  # of points and boxes, at the LiDAR's time
    sweeps: int = 0  # number of earlier LiDAR sweeps to add, compensated for the vehicle's motion
    annotations: bool = True  # boxes, and classes of points if the taxonomy has some
    lidar: bool = True
    cameras: bool = True
    scans: bool = True
    least_width: int = 0  # pixels. Images may be reduced in size while they stay at least as wide; 0: as recorded
    change: Callable[[Frame], Frame] | None = None  # made to the frame, such as a corruption; the truth stays
    truth: tuple[str, ...] = ()  # kinds of truth, see `Recording`


NO_SENSORS = Reads(annotations=False, lidar=False, cameras=False, scans=False)


class SweepFile(NamedTuple):
    """The file of one sweep of a LiDAR."""

    path: Path  # if the keyframe's file is missing, so are the LiDAR's data
    timestamp: int  # us
    global_from_ego: np.ndarray  # (4, 4) at this time; without a rig's `own` only its product with the next matters
    ego_from_lidar: np.ndarray  # (4, 4)
    # Reads the annotated classes, (n,) int16, of the n points in the file, or None; None: there are none.
    classes: Callable[[int], np.ndarray | None] | None = None
    # Reads points and their times as `read_cloud` does, given path and timestamp: a .pcd, or nuScenes' 20-byte points.
    read: Callable[[Path, int], tuple[np.ndarray, np.ndarray | None]] = read_cloud


class JointCloud(NamedTuple):
    """The points of all LiDARs of a data set that has them in common files, each point at its own time."""

    # The points in a frame of reference, given (4, 4) reference_from_global, and whether with their classes.
    read: Callable[[np.ndarray, bool], Cloud]
    paths: Callable[[], Paths]  # where the rays of each LiDAR begin


class Picture(NamedTuple):
    """The file of a camera's picture."""

    path: Path  # a JPEG or PNG; the camera is missing in the frame if it is missing
    timestamp: int  # us
    intrinsics: np.ndarray  # (3, 3), of the recorded pixels
    ego_from_camera: np.ndarray  # (4, 4)
    global_from_ego: np.ndarray  # (4, 4) at this time
    size: tuple[int, int] | None = None  # width and height for which the calibration is; None: unknown
    distortion: np.ndarray | None = None  # OpenCV's coefficients, by which the picture is undistorted; None: it is


class Annotation(NamedTuple):
    """The annotation of one kind in a keyframe."""

    read: Callable[[], Any] = lambda: None  # gives None without an annotation, or where it is read with a sensor
    exists: Callable[[], bool] = lambda: True  # reads no file of the keyframe


class AnnotatedPoints(NamedTuple):
    """The points of a keyframe as recorded, and their classes."""

    points: np.ndarray  # (M, 5) as `Frame.keyframe_points`
    classes: np.ndarray  # (M,) as `Frame.keyframe_classes`


@dataclass(frozen=True)
class Recording:
    """A frame as a data set knows it: which files its sensors recorded, when and where, and what is annotated.

    A frame is a keyframe, or between two; see `Keyframes.moments`.

    Attributes:
        truth: kind -> its annotation; kinds that the data set does not have are left out. A task may have kinds of its
            own. Those of the tasks here:
            boxes: `Boxes` of the taxonomy's classes, in the global frame.
            obstacles: `Boxes` of objects of none of the classes, with the label -1, in the global frame.
            bicycle_racks: each x y z, width length height (m), rotation w x y z, in the global frame. The detection
                metric ignores bicycles and motorcycles inside them.
            occupancy: `Occupancy` in the ego frame at the keyframe's time.
            lidar_path: (N, 3) m, where the reference LiDAR was at each keyframe of the drive, in the global frame.
            map: `MapExpansion` of the location.
            points: `AnnotatedPoints`, read with the LiDAR.
    """

    token: str
    scene: str
    timestamp: int  # us, of the reference LiDAR
    global_from_ego: np.ndarray  # (4, 4) at this time
    ego_from_lidar: np.ndarray  # (4, 4), of the reference LiDAR
    # Index in the rig -> the keyframe's sweep, then earlier ones, latest first; or all LiDARs' points.
    lidars: Mapping[int, Sequence[SweepFile]] | JointCloud
    pictures: Mapping[str, Picture]  # by camera
    truth: Mapping[str, Annotation] = field(default_factory=dict)
    conditions: Conditions = Conditions()  # noqa: RUF009 - it is immutable
    location: str = ""  # name of the location of the drive, which its map has too; "" if unknown
    position: tuple[float, float] | None = None  # latitude and longitude (degrees, WGS 84); None if unknown
    own: Box | None = None  # the own vehicle, whose points are left out; None: those within 1 m of a LiDAR
    files: Callable[[], Iterable[Path]] = tuple  # further files that a frame is read from, there or not
    opened: Sequence[Stamp] = ()  # of files that were read when the data set was opened
    placed: bool = True  # whether the poses are known; else they are the identity
    # By name in the rig, of sensors of further kinds: reads the scan in a frame of reference, given (4, 4)
    # reference_from_global; None where it is missing.
    scans: Mapping[str, Callable[[np.ndarray], Scan | None]] = field(default_factory=dict)

    def annotated(self, kind: str) -> Any:
        """The annotation of a kind, as in `truth`; None without one."""
        return self.truth[kind].read() if kind in self.truth else None

    def read_truth(self, kinds: Iterable[str]) -> dict[str, Any]:
        """Kind -> its annotation, for the kinds that have one."""
        annotations = {kind: self.annotated(kind) for kind in kinds}
        return {kind: annotation for kind, annotation in annotations.items() if annotation is not None}

    def exists(self, kind: str) -> bool:
        """Whether there is something to read of a kind; reads no file of the keyframe."""
        return kind in self.truth and self.truth[kind].exists()

    def lidar_paths(self) -> Paths:
        """Where the rays of each LiDAR begin, at the times of its sweeps; a single one has one place."""
        if isinstance(self.lidars, JointCloud):
            return self.lidars.paths()
        ordered = {i: sorted(sweeps, key=lambda each: each.timestamp) for i, sweeps in self.lidars.items()}
        return {
            i: (
                np.array([each.timestamp for each in sweeps]),
                np.stack([(each.global_from_ego @ each.ego_from_lidar)[:3, 3] for each in sweeps]),
            )
            for i, sweeps in ordered.items()
        }

    def stamps(self) -> list[Stamp]:
        """Of all files that a frame with annotations is read from, by which a changed one is recognised."""
        sweeps = () if isinstance(self.lidars, JointCloud) else chain.from_iterable(self.lidars.values())
        clouds, pictures = (each.path for each in sweeps), (each.path for each in self.pictures.values())
        return [*self.opened, *map(stamp, chain(clouds, pictures, self.files()))]


class Keyframes(Protocol):
    """Drives of keyframes with tokens: nuScenes' tables, PandaSet's folders, infos of mmdet3d, or those of a user."""

    dataroot: Path  # the folder of samples/ and, if present, maps/
    version: str  # of the tables; for infos the file's name
    taxonomy: Taxonomy  # of its annotations, map and conditions
    rig: Rig  # of the vehicle
    has_attributes: bool  # whether its boxes have the attributes of the taxonomy

    def scenes(self, split: str | None = None, selectors: Sequence[str] = ()) -> list[str]:
        """Names of the drives in a split (None or 'all': all drives), or of the selected ones among them."""
        ...

    def samples(self, split: str | None = None, selectors: Sequence[str] = ()) -> list[str]:
        """Tokens of the keyframes, drive by drive, in order of time; selectors as in `Drives.samples`."""
        ...

    def moments(self, token: str) -> Mapping[str, int]:
        """Token -> time (us, of the reference LiDAR) of all frames of the drive of this frame, in order of time.

        They are its keyframes and, where it has more, frames between them, which `samples` leaves out and which have no
        annotations. The other members take the token of either.
        """
        ...

    def scene(self, token: str) -> str:
        """Name of the drive of a frame."""
        ...

    def conditions(self, token: str) -> Conditions:
        """The known conditions of a frame; reads no file."""
        ...

    def recording(self, token: str, reads: Reads = NO_SENSORS) -> Recording:
        """The sensor files of a frame that are asked for, with their poses, and its annotations."""
        ...

    def frame(self, token: str, reads: Reads = Reads()) -> Frame:  # noqa: B008 - it is immutable
        """The frame as `assemble` makes it of its recording; sensors without a file are missing."""
        ...


def keyframe_moments(source: Keyframes, token: str) -> dict[str, int]:
    """`Keyframes.moments` of a data set whose drives have no frames between keyframes."""
    return {each: source.recording(each).timestamp for each in source.samples(None, [source.scene(token)])}


class LidarPaths(dict[str, np.ndarray]):
    """Drive -> (N, 3) m, where the reference LiDAR was at each of its keyframes, in the global frame."""

    def __init__(self, source: Keyframes) -> None:
        super().__init__()
        self._source = source

    def __missing__(self, scene: str) -> np.ndarray:
        found = (self._source.recording(token) for token in self._source.samples(None, [scene]))
        poses = [global_from_reference(each.global_from_ego, each.ego_from_lidar, "lidar") for each in found]
        self[scene] = np.array([pose[:3, 3] for pose in poses])
        return self[scene]


def assemble(recording: Recording, reads: Reads) -> Frame:
    """The frame of a recording, from its files; sensors without a file are missing."""
    reference = global_from_reference(recording.global_from_ego, recording.ego_from_lidar, reads.reference)
    reference_from_global = np.linalg.inv(reference)
    truth = recording.read_truth(dict.fromkeys((*reads.truth, *(["boxes"] if reads.annotations else ()))))
    classified = reads.annotations or "points" in reads.truth
    cloud = _cloud(recording, reference_from_global, classified) if reads.lidar else Cloud()
    pictures = recording.pictures.items() if reads.cameras else ()
    cameras = {name: _camera(picture, reads.least_width) for name, picture in pictures}
    scans = {name: read(reference_from_global) for name, read in (recording.scans if reads.scans else {}).items()}
    frame = Frame(
        token=recording.token,
        timestamp=recording.timestamp,
        reference=reads.reference,
        global_from_reference=reference,
        global_from_ego=recording.global_from_ego,
        cameras={name: camera for name, camera in cameras.items() if camera is not None},
        conditions=recording.conditions,
        scene=recording.scene,
        location=recording.location,
        position=recording.position,
        truth=truth,
        placed=recording.placed,
        scans={name: scan for name, scan in scans.items() if scan is not None},
        **cloud._asdict(),
    )
    if "points" in reads.truth and frame.keyframe_classes is not None:
        truth["points"] = AnnotatedPoints(frame.keyframe_points, frame.keyframe_classes)
    return frame if reads.change is None else reads.change(frame)


def _cloud(recording: Recording, reference_from_global: np.ndarray, classified: bool) -> Cloud:
    """The points of all LiDARs; only those of the keyframe have classes."""
    if isinstance(recording.lidars, JointCloud):
        return recording.lidars.read(reference_from_global, classified)
    found = {index: _sweeps(files, classified) for index, files in recording.lidars.items()}
    return join_lidars(found, recording.timestamp, reference_from_global, recording.own)


def _sweeps(files: Sequence[SweepFile], classified: bool) -> list[Sweep]:
    """The sweeps of one LiDAR; none without the keyframe's file. Missing earlier sweeps are skipped."""
    found: list[Sweep] = []
    for i, (path, timestamp, global_from_ego, ego_from_lidar, classes_of, read) in enumerate(files):
        try:
            points, times = read(path, timestamp)
            _require_measured(points, path)
        except FileNotFoundError:
            if i == 0:
                return []
        else:
            classes = classes_of(len(points)) if classified and classes_of is not None else None
            found.append(Sweep(points, timestamp, global_from_ego, ego_from_lidar, times=times, classes=classes))
    return found


def _require_measured(points: np.ndarray, path: Path) -> None:
    limits = LidarLimits()
    wrong = np.count_nonzero(~is_measurement(points, limits.far))
    if wrong > limits.impossible * len(points):
        raise report_damage(
            f"{path}: {wrong} of {len(points)} points are beyond {limits.far:.0f} m or have an intensity below 0, as "
            "points of other columns or units; read it by a data set that says its columns (`SweepFile.read`)"
        )


def _camera(picture: Picture, least_width: int) -> Camera | None:
    """The camera with its picture, undistorted; None without the file."""
    try:
        image, reduction, file = read_image(picture.path, least_width, partial(_require_calibrated, picture))
    except FileNotFoundError:
        return None
    intrinsics = reduce_intrinsics(picture.intrinsics, reduction)
    distortion = picture.distortion
    return Camera(
        image=image if distortion is None else cv2.undistort(image, intrinsics, distortion),
        intrinsics=intrinsics,
        ego_from_camera=picture.ego_from_camera,
        global_from_ego=picture.global_from_ego,
        timestamp=picture.timestamp,
        file=file if distortion is None else None,
    )


def _require_calibrated(picture: Picture, size: tuple[int, int]) -> None:
    width, height = size
    if picture.size is not None:
        wrong = f"is for {picture.size[0]}x{picture.size[1]}" if size != picture.size else ""
    else:
        x, y = picture.intrinsics[:2, 2]
        outside = not 0.25 * width <= x <= 0.75 * width or not 0.25 * height <= y <= 0.75 * height
        wrong = f"has the optical axis at {x:.0f}, {y:.0f}" if outside else ""
    if wrong:
        raise InputError(
            f"{picture.path}: the picture is {width}x{height}, but its calibration {wrong}; use the picture as recorded"
        )
