"""Drives of PandaSet in its own layout: a folder for each drive, with pandas' tables, JSON and pictures.

Xiao et al., "PandaSet: Advanced sensor suite dataset for autonomous driving", ITSC 2021. A dataroot holds the folders
of the drives (002/lidar, 002/camera, 002/annotations) and static_extrinsic_calibration.yaml of the development kit.

Frames of reference: PandaSet gives points, boxes and cameras in a world of each drive, and the pose of a LiDAR frame,
in which the vehicle drives, and its front camera looks, along +y. Our `lidar` is that frame turned about z: x forward,
y left; our `ego` is below it, on the ground. The cameras' mounting follows from their poses at their times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from perception.datasets.drives import Drives
from perception.datasets.files import read_json, stamp
from perception.datasets.keyframes import (
    NO_SENSORS,
    Annotation,
    JointCloud,
    LidarPaths,
    Paths,
    Picture,
    Reads,
    Recording,
    assemble,
    keyframe_moments,
)
from perception.datasets.nuscenes.labels import voxel_truth
from perception.datasets.sweeps import Cloud
from perception.errors import InputError, report_damage
from perception.frame import Boxes, Conditions, Frame
from perception.geometry import points_in_boxes, rigid
from perception.io.section import parse_yaml
from perception.io.unpickle import read_table
from perception.rig import Rig, load_rig
from perception.taxonomy import Taxonomy, load_taxonomy

CALIBRATION = "static_extrinsic_calibration.yaml"
LIDARS = ("pandar64", "pandar_gt")  # by their number in the tables
CAMERAS = ("front", "front_left", "front_right", "left", "right", "back")
_GROUND = -0.41  # m, height of the road below the origin of PandaSet's LiDAR frame
_POSE_FROM_EGO = np.array([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, _GROUND], [0, 0, 0, 1]])
_EGO_FROM_LIDAR = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -_GROUND], [0, 0, 0, 1]])
# m, where rays begin in our `ego`. The kit's calibration of Pandar64 to each camera, with the cameras' poses, puts
# it at one place to within 3 cm. PandarGT's follows from its extrinsics; its ranges from there are multiples of 5 mm.
_MOUNTS = np.array([[0.81, 0.0, 2.26], [1.40, 0.02, 1.98]])
_NUMBERS = ("position.x", "position.y", "position.z", "dimensions.x", "dimensions.y", "dimensions.z", "yaw")
_TEXTS = ("uuid", "label", "cuboids.sibling_id")
_BOX_COLUMNS = {**dict.fromkeys(_NUMBERS, "f"), **dict.fromkeys(_TEXTS, "O"), "cuboids.sensor_id": "iu"}
_POINT_COLUMNS = {**dict.fromkeys("xyzit", "f"), "d": "iu"}
_NONE = -1  # class of points that are of no class


def is_pandaset(folder: Path) -> bool:
    return (folder / CALIBRATION).exists()


class PandaSet:
    """The drives in a dataroot.

    Args:
        taxonomy: of the classes; boxes of labels that are no category of theirs are left out. None: PandaSet's own.
        rig: of the vehicle; None: PandaSet's own. Its LiDARs are pandar64, which spins, and pandar_gt, which looks
            ahead. A moving object that both saw has two boxes, at its places for each; that of the first LiDAR is kept.
    """

    has_attributes = False

    def __init__(self, dataroot: Path, rig: Rig | None = None, taxonomy: Taxonomy | None = None) -> None:
        self.dataroot, self.version = Path(dataroot), "pandaset"
        self.rig, self.taxonomy = rig or load_rig("pandaset"), taxonomy or load_taxonomy("pandaset")
        self._labels = self.taxonomy.labels_of_categories()
        self._lidars = tuple(LIDARS.index(name) for name in self.rig.sensors.lidars if name in LIDARS)
        self._opened = [stamp((self.dataroot / CALIBRATION).resolve())]
        every = _distortions(self.dataroot / CALIBRATION)
        self._distortions = {name: every[name] for name in self.rig.sensors.cameras if name in every}
        if not self._lidars:
            raise InputError(f"{self.dataroot}: PandaSet has the LiDARs {', '.join(LIDARS)}; name one in the rig")
        folders = sorted(path.parents[1] for path in self.dataroot.glob("*/lidar/poses.json"))
        if not folders:
            raise InputError(f"{self.dataroot}: has no drive of PandaSet, such as 002/lidar/poses.json")
        self._poses = {drive.name: _poses_of(drive / "lidar") for drive in folders}
        recorded = [(drive, i) for drive in folders for i in range(len(self._poses[drive.name].times))]
        self._place = {f"{d.name}-{i:02d}": (d, i) for d, i in recorded if _file_of(d / "lidar", i).exists()}
        tokens = {d.name: [token for token, (drive, _) in self._place.items() if drive == d] for d in folders}
        drives = Drives(str(self.dataroot), tokens)
        self.scenes, self.samples, self.scene = drives.scenes, drives.samples, drives.scene
        self._inside: dict[tuple[Path, int], np.ndarray] = {}  # few numbers, for which a sweep is decoded
        self._lidar_paths = LidarPaths(self)

    def _locate(self, token: str) -> tuple[Path, int]:
        if token not in self._place:
            raise InputError(f"{self.dataroot}: no frame {token}")
        return self._place[token]

    def moments(self, token: str) -> Mapping[str, int]:
        return keyframe_moments(self, token)

    def conditions(self, token: str) -> Conditions:
        return Conditions()

    def _truth(self, token: str) -> dict[str, Annotation]:
        """The annotations of a frame in the drive's world, with velocities from the frame before to the one after;
        obstacles are such as signs and pylons. `perception annotate-occupancy` makes the voxels."""
        drive, index = self._place[token]
        classes = _file_of(drive / "annotations" / "semseg", index)
        return {
            "boxes": Annotation(partial(self._boxes, token, True)),
            "obstacles": Annotation(partial(self._boxes, token, False)),
            "points": Annotation(exists=partial(self._classifies_points, classes)),
            **voxel_truth(self.dataroot, drive.name, token, self.taxonomy, self._lidar_paths),
        }

    def _classifies_points(self, file: Path) -> bool:
        """Whether a sweep is annotated, and the drive has points of the taxonomy's categories."""
        wanted = self.taxonomy.point_labels_of_categories().keys()
        return file.exists() and not wanted.isdisjoint(_categories(file.parent / "classes.json").values())

    def _boxes(self, token: str, of_classes: bool) -> Boxes | None:
        drive, index = self._place[token]
        table, first = _cuboids(drive, index), self._lidars[0]
        if table is None:
            return None
        known = np.isin(table["label"], [*self._labels])
        chosen = np.flatnonzero(_not_doubled(table, first) & (known == of_classes))
        table = {name: column[chosen] for name, column in table.items()}
        boxes = Boxes.from_yaws(
            **_places(table),
            velocities=self._velocities(drive, index, table["uuid"].tolist()),
            labels=np.array([self._labels.get(label, -1) for label in table["label"]], np.int64),
            attributes=np.full(len(chosen), -1),
            scores=np.ones(len(chosen)),
        )
        siblings = table["cuboids.sibling_id"]
        renamed = (table["cuboids.sensor_id"] == 1 - first) & (siblings != "-")
        return replace(
            boxes,
            num_points=self._points_inside(drive, index)[chosen],
            instances=np.where(renamed, siblings, table["uuid"]).astype(np.str_),
        )

    def _velocities(self, drive: Path, index: int, tracks: list[str]) -> np.ndarray:
        """(N, 2) m/s in the drive's world; NaN for a track that is in no neighbouring frame."""
        times, frames = self._poses[drive.name].times, dict[float, dict[str, np.ndarray]]()
        for i in (index - 1, index, index + 1):
            if table := _cuboids(drive, i):
                places = np.stack([table["position.x"], table["position.y"]], axis=1)
                frames[times[i]] = dict(zip(table["uuid"], places, strict=True))
        return track_velocities(frames, tracks)

    def recording(self, token: str, reads: Reads = NO_SENSORS) -> Recording:
        drive, index = self._locate(token)
        time = self._poses[drive.name].times[index]
        fix = _fixes(drive / "meta" / "gps.json").get(index)
        paths = {name: drive / "camera" / f"{name}_camera" / f"{index:02d}.jpg" for name in self._distortions}
        pictures = paths.items() if reads.cameras else ()
        return Recording(
            token=token,
            scene=drive.name,
            timestamp=round(1e6 * time),
            global_from_ego=self._ego(drive, time),
            ego_from_lidar=_EGO_FROM_LIDAR,
            lidars=JointCloud(partial(self._cloud, token, reads.sweeps), partial(self._paths, drive)),
            pictures={name: self._picture(drive, index, name, path) for name, path in pictures if path.exists()},
            truth=self._truth(token),
            position=None if fix is None else (float(fix["lat"]), float(fix["long"])),
            files=partial(self._files, drive, index, reads),
            opened=self._opened,
        )

    def frame(self, token: str, reads: Reads = Reads()) -> Frame:  # noqa: B008 - it is immutable
        return assemble(self.recording(token, reads), reads)

    def _ego(self, drive: Path, time: float) -> np.ndarray:
        return np.asarray(self._poses[drive.name].at(time) @ _POSE_FROM_EGO)

    def _paths(self, drive: Path) -> Paths:
        times = self._poses[drive.name].times
        egos = [self._ego(drive, time) for time in times]
        places = [np.stack([ego[:3, :3] @ _MOUNTS[i] + ego[:3, 3] for ego in egos]) for i in self._lidars]
        return {i: (np.round(1e6 * times), each) for i, each in enumerate(places)}

    def _cloud(self, token: str, sweeps: int, reference_from_global: np.ndarray, classified: bool) -> Cloud:
        """Compensated for the vehicle's motion by PandaSet. Points that are later have a dt of 0.

        Points have no classes if one of the sweeps has no file of them.
        """
        drive, index = self._place[token]
        earlier = (f"{drive.name}-{i:02d}" for i in range(index - 1, max(index - sweeps, 0) - 1, -1))
        indices = [index, *(self._place[each][1] for each in earlier if each in self._place)]
        labels, classified = (
            self.taxonomy.point_labels_of_categories(),
            classified and bool(self.taxonomy.point_classes),
        )
        sweeps_by_index: dict[int, _PandaSweep] = {}
        for i in indices:
            try:
                sweeps_by_index[i] = self._sweep(drive, i)
            except FileNotFoundError:
                if i == index:
                    return Cloud()
        found = [*sweeps_by_index.values()]
        points = np.concatenate([each.columns for each in found])
        points[:, :3] = points[:, :3] @ reference_from_global[:3, :3].T + reference_from_global[:3, 3]
        points[:, 4] = np.maximum(self._poses[drive.name].times[index] - points[:, 4], 0)
        pairs = sweeps_by_index.items() if classified else ()
        classes = [_classes_of_sweep(drive, i, each.kept, labels) for i, each in pairs]
        known = [each for each in classes if each is not None]
        return Cloud(
            points.astype(np.float32),
            np.repeat(np.arange(len(found), dtype=np.uint8), [len(each.lidars) for each in found]),
            np.concatenate([each.lidars for each in found]),
            np.concatenate(known) if len(known) == len(found) else None,
        )

    def _sweep(self, drive: Path, index: int) -> _PandaSweep:
        """The points of a sweep.

        Raises:
            FileNotFoundError: it is damaged, and counted as missing (`report_damage`).
            InputError: it is damaged.
        """
        try:
            return _sweep_of(drive, index, self._lidars)
        except InputError as error:
            raise report_damage(str(error)) from None

    def _points_inside(self, drive: Path, index: int) -> np.ndarray:
        """(N,) number of points inside each of a frame's cuboids; -1 if the sweep is missing."""
        key, table = (drive, index), _cuboids(drive, index)
        assert table is not None
        if key not in self._inside:
            try:
                points = self._sweep(drive, index).columns[:, :3]
            except FileNotFoundError:
                return np.full(len(table["uuid"]), -1)
            self._inside[key] = points_in_boxes(points, **_places(table))
        return self._inside[key]

    def _files(self, drive: Path, index: int, reads: Reads) -> Iterator[Path]:
        """Those that a frame is read from, there or not."""
        classes = drive / "annotations" / "semseg"
        yield from (drive / "lidar" / "poses.json", drive / "lidar" / "timestamps.json", drive / "meta" / "gps.json")
        yield from (_file_of(drive / "annotations" / "cuboids", i) for i in (index - 1, index, index + 1))
        yield _file_of(drive / "lidar", index)  # also for the number of points in boxes
        if reads.lidar:
            yield classes / "classes.json"
            for i in range(max(index - reads.sweeps, 0), index + 1):
                yield from (_file_of(drive / "lidar", i), _file_of(classes, i))
        for name in self._distortions if reads.cameras else ():
            folder = drive / "camera" / f"{name}_camera"
            yield from (folder / file for file in ("intrinsics.json", "poses.json", "timestamps.json"))
            yield folder / f"{index:02d}.jpg"

    def _picture(self, drive: Path, index: int, name: str, path: Path) -> Picture:
        intrinsics, poses = _intrinsics_of(path.parent), _poses_of(path.parent)
        if index >= len(poses.times):
            raise InputError(f"{path.parent}: has no pose of frame {index}; copy poses.json and timestamps.json again")
        global_from_ego = self._ego(drive, poses.times[index])
        return Picture(
            path=path,
            timestamp=round(1e6 * poses.times[index]),
            intrinsics=intrinsics,
            ego_from_camera=np.linalg.inv(global_from_ego) @ poses.at(poses.times[index]),
            global_from_ego=global_from_ego,
            distortion=self._distortions[name],
        )


def _not_doubled(table: Mapping[str, np.ndarray], first: int) -> np.ndarray:
    """(N,) bool: all boxes but those of the other LiDAR with a sibling among the rest; not all links are mutual."""
    kept = table["cuboids.sensor_id"] != 1 - first
    linked = {*table["uuid"][kept], *table["cuboids.sibling_id"][kept]} - {"-"}
    pairs = zip(table["uuid"], table["cuboids.sibling_id"], strict=True)
    return kept | np.array([linked.isdisjoint(pair) for pair in pairs], bool)


def _places(table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Centers, sizes and yaws of cuboids, as of `Boxes.from_yaws`."""
    numbers = np.stack([table[name] for name in _NUMBERS], axis=1)
    # PandaSet's boxes have their length along y.
    return {"centers": numbers[:, :3], "sizes": numbers[:, 3:6], "yaws": numbers[:, 6] + np.pi / 2}


@lru_cache(maxsize=8)
def _cuboids(drive: Path, index: int) -> dict[str, np.ndarray] | None:
    path = _file_of(drive / "annotations" / "cuboids", index)
    return read_table(path, _BOX_COLUMNS) if path.exists() else None


class _PandaSweep(NamedTuple):
    """The points of some of the LiDARs in a frame's table."""

    columns: np.ndarray  # (N, 5) float64 x y z (m, in the drive's world), intensity (0-255), time (s)
    lidars: np.ndarray  # (N,) uint8, place of each point's LiDAR among them
    kept: np.ndarray  # (rows,) bool: which rows of the table they are


@lru_cache(maxsize=2)
def _sweep_of(drive: Path, index: int, lidars: tuple[int, ...]) -> _PandaSweep:
    """The points of LiDARs by their numbers in the tables."""
    table = read_table(_file_of(drive / "lidar", index), _POINT_COLUMNS)
    place = np.full(2, -1)
    place[list(lidars)] = range(len(lidars))
    of_rows = place[table["d"].astype(int)]
    kept = of_rows >= 0
    return _PandaSweep(np.stack([table[name] for name in "xyzit"], axis=1)[kept], of_rows[kept].astype(np.uint8), kept)


def _classes_of_sweep(drive: Path, index: int, kept: np.ndarray, labels: Mapping[str, int]) -> np.ndarray | None:
    """(N,) int16 label of each point of a sweep, -1 for other categories; None if the sweep is not annotated.

    Args:
        kept: as in `_PandaSweep`.
    """
    folder = drive / "annotations" / "semseg"
    path = _file_of(folder, index)
    if not path.exists():
        return None
    numbers = read_table(path, {"class": "iu"})["class"]
    if len(numbers) != len(kept):
        raise InputError(f"{path}: has {len(numbers)} points, the sweep {len(kept)}; copy both again")
    found, place = np.unique(numbers[kept], return_inverse=True)
    known = _categories(folder / "classes.json")
    if unknown := sorted({*found.tolist()} - known.keys()):
        raise InputError(f"{path}: the class {unknown[0]} is not in classes.json")
    return np.array([labels.get(known[number], _NONE) for number in found.tolist()], np.int16)[place]


@cache
def _categories(path: Path) -> dict[int, str]:
    try:
        return {int(number): str(name) for number, name in read_json(path).items()}
    except (AttributeError, ValueError) as error:
        raise InputError(f"{path}: not the classes of PandaSet's points ({error})") from None


def _file_of(folder: Path, index: int) -> Path:
    return folder / f"{index:02d}.pkl.gz"


@cache
def _poses_of(folder: Path) -> Poses:
    times, poses = (read_json(folder / name) for name in ("timestamps.json", "poses.json"))
    try:
        values = [[*(p["position"][k] for k in "xyz"), *(p["heading"][k] for k in "wxyz")] for p in poses]
        return Poses(np.array(times, np.float64), np.array(values, np.float64))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder}: poses.json and timestamps.json do not fit PandaSet's layout ({error})") from None


@cache
def _fixes(path: Path) -> dict[int, Mapping[str, float]]:
    """The position of each frame; none without the file."""
    return dict(enumerate(read_json(path))) if path.exists() else {}


@cache
def _intrinsics_of(folder: Path) -> np.ndarray:
    path = folder / "intrinsics.json"
    try:
        fx, fy, cx, cy = (float(read_json(path)[name]) for name in ("fx", "fy", "cx", "cy"))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not the intrinsics of a camera ({error})") from None
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def _distortions(path: Path) -> dict[str, np.ndarray]:
    try:
        content = parse_yaml(path.read_bytes())
        return {name: np.array(content[f"{name}_camera"]["intrinsic"]["D"], np.float64) for name in CAMERAS}
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        what = " ".join(str(error).split())
        raise InputError(f"{path}: not the calibration of PandaSet's cameras ({what})") from None


@dataclass(frozen=True, eq=False)
class Poses:
    """Two or more poses of a sensor or vehicle in order of time, less than a few degrees apart."""

    times: np.ndarray  # (N,) s
    values: np.ndarray  # (N, 7) x y z (m), quaternion w x y z

    def __post_init__(self) -> None:
        n = len(self.times)
        if n < 2 or self.times.shape != (n,) or self.values.shape != (n, 7) or not np.isfinite(self.values).all():
            raise ValueError(f"{n} times and poses of shape {self.values.shape}")
        if not (np.diff(self.times) > 0).all():
            raise ValueError("the times do not increase")

    def at(self, time: float) -> np.ndarray:
        """(4, 4) parent_from_child at a time (s), linear between two poses, and beyond the first and the last."""
        i = int(np.clip(np.searchsorted(self.times, time, side="right") - 1, 0, len(self.times) - 2))
        share = (time - self.times[i]) / (self.times[i + 1] - self.times[i])
        before, after = self.values[i], self.values[i + 1].copy()
        after[3:] *= np.copysign(1, before[3:] @ after[3:])  # a quaternion and its negative are one rotation
        pose = before + share * (after - before)
        return rigid(pose[:3], pose[3:])


def track_velocities(frames: Mapping[float, Mapping[str, np.ndarray]], tracks: Sequence[str]) -> np.ndarray:
    """(N, 2) m/s of N tracks, from the first to the last frame that has them; NaN for those in fewer than two.

    Args:
        frames: time (s), in order -> track -> x y (m) in one frame of reference.
    """
    velocities = np.full((len(tracks), 2), np.nan)
    for n, track in enumerate(tracks):
        seen = [(time, places[track]) for time, places in frames.items() if track in places]
        if len(seen) > 1:
            velocities[n] = (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0])
    return velocities
