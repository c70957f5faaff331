"""Drives of PandaSet in its own layout: a folder for each drive, with pandas' tables, JSON and pictures.

Xiao et al., "PandaSet: Advanced sensor suite dataset for autonomous driving", ITSC 2021. A dataroot holds the folders
of the drives (002/lidar, 002/camera, 002/annotations) and static_extrinsic_calibration.yaml of the development kit.

Frames of reference: PandaSet gives points, boxes and cameras in a world of each drive, and the pose of a LiDAR frame,
in which the vehicle drives, and its front camera looks, along +y. Our `lidar` is that frame turned about z: x forward,
y left; our `ego` is below it, on the ground. The cameras' mounting follows from their poses at their times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path

import cv2
import numpy as np

from perception.datasets.assembled import AssembledKeyframes
from perception.datasets.dataframe_pickle import read_table
from perception.datasets.files import read_image, stamp
from perception.datasets.listed import ListedKeyframes
from perception.datasets.motion import track_velocities
from perception.datasets.nuscenes.occ3d import occ3d_file, read_occ3d
from perception.datasets.pandaset_files import distortions, file_of, fixes, intrinsics_of, poses_of
from perception.datasets.pandaset_points import classes_of_sweep, sweep
from perception.errors import InputError
from perception.frame import Boxes, Camera, reduced_intrinsics
from perception.rig import Rig, load_rig
from perception.sensors.lidar.points_in_boxes import points_in_boxes
from perception.sensors.lidar.sweeps import Cloud
from perception.taxonomy import Taxonomy, load_taxonomy
from perception.voxels import Occupancy

CALIBRATION = "static_extrinsic_calibration.yaml"
LIDARS = ("pandar64", "pandar_gt")  # by their number in the tables
_GROUND = -0.41  # m, height of the road below the origin of PandaSet's LiDAR frame
_POSE_FROM_EGO = np.array([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, _GROUND], [0, 0, 0, 1]])
_EGO_FROM_LIDAR = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -_GROUND], [0, 0, 0, 1]])
# m, where rays begin in our `ego`. The kit's calibration of Pandar64 to each camera, with the cameras' poses, puts
# it at one place to within 3 cm. PandarGT's follows from its extrinsics; its ranges from there are multiples of 5 mm.
_MOUNTS = np.array([[0.81, 0.0, 2.26], [1.40, 0.02, 1.98]])
_NUMBERS = ("position.x", "position.y", "position.z", "dimensions.x", "dimensions.y", "dimensions.z", "yaw")
_TEXTS = ("uuid", "label", "cuboids.sibling_id")
_BOX_COLUMNS = {**dict.fromkeys(_NUMBERS, "f"), **dict.fromkeys(_TEXTS, "O"), "cuboids.sensor_id": "iu"}


def is_pandaset(folder: Path) -> bool:
    """Whether a folder is a dataroot of PandaSet."""
    return (folder / CALIBRATION).exists()


class PandaSet(AssembledKeyframes, ListedKeyframes):
    """The drives in a dataroot.

    Args:
        taxonomy: of the classes; boxes of labels that are no category of theirs are left out. None: PandaSet's own.
        rig: of the vehicle; None: PandaSet's own. Its LiDARs are pandar64, which spins, and pandar_gt, which looks
            ahead. A moving object that both saw has two boxes, at its places for each; that of the first LiDAR is kept.

    Raises:
        InputError: this is no dataroot of PandaSet.
    """

    def __init__(self, dataroot: Path, rig: Rig | None = None, taxonomy: Taxonomy | None = None) -> None:
        self.dataroot, self.version = Path(dataroot), "pandaset"
        self.rig, self.taxonomy = rig or load_rig("pandaset"), taxonomy or load_taxonomy("pandaset")
        self._labels = self.taxonomy.labels_of_categories()
        self._lidars = tuple(LIDARS.index(name) for name in self.rig.sensors.lidars if name in LIDARS)
        self._opened = [stamp((self.dataroot / CALIBRATION).resolve())]
        every = distortions(self.dataroot / CALIBRATION)
        self._distortions = {name: every[name] for name in self.rig.sensors.cameras if name in every}
        if not self._lidars:
            raise InputError(f"{self.dataroot}: PandaSet has the LiDARs {', '.join(LIDARS)}; name one in the rig")
        drives = sorted(path.parents[1] for path in self.dataroot.glob("*/lidar/poses.json"))
        if not drives:
            raise InputError(f"{self.dataroot}: has no drive of PandaSet, such as 002/lidar/poses.json")
        self._poses = {drive.name: poses_of(drive / "lidar") for drive in drives}
        recorded = [(drive, i) for drive in drives for i in range(len(self._poses[drive.name].times))]
        self._place = {f"{d.name}-{i:02d}": (d, i) for d, i in recorded if file_of(d / "lidar", i).exists()}
        tokens = {d.name: [token for token, (drive, _) in self._place.items() if drive == d] for d in drives}
        ListedKeyframes.__init__(self, str(self.dataroot), tokens)

    def boxes(self, sample: str) -> Boxes | None:
        """Annotations of a frame in the drive's world, with velocities from the frame before to the one after."""
        return self._boxes(sample, of_classes=True)

    def obstacles(self, sample: str) -> Boxes | None:
        """Annotated objects of none of the classes, such as signs and pylons, as in `Keyframes`."""
        return self._boxes(sample, of_classes=False)

    def _boxes(self, sample: str, of_classes: bool) -> Boxes | None:
        drive, index = self._place[sample]
        table, first = _cuboids(drive, index), self._lidars[0]
        if table is None:
            return None
        known = np.isin(table["label"], [*self._labels])
        chosen = np.flatnonzero(_not_doubled(table, first) & (known == of_classes))
        table = {name: column[chosen] for name, column in table.items()}
        boxes = Boxes.from_yaws(
            **_placed(table),
            velocities=self._velocities(drive, index, table["uuid"].tolist()),
            labels=np.array([self._labels.get(label, -1) for label in table["label"]], np.int64),
            attributes=np.full(len(chosen), -1),
            scores=np.ones(len(chosen)),
        )
        siblings = table["cuboids.sibling_id"]
        renamed = (table["cuboids.sensor_id"] == 1 - first) & (siblings != "-")
        return replace(
            boxes,
            num_points=_points_inside(drive, index, self._lidars)[chosen],
            instances=np.where(renamed, siblings, table["uuid"]).astype(np.str_),
        )

    def has_point_classes(self, sample: str) -> bool:
        """Whether there are classes of points."""
        drive, index = self._place[sample]
        return bool(self.taxonomy.point_classes) and file_of(drive / "annotations" / "semseg", index).exists()

    def has_occupancy(self, sample: str) -> bool:
        """Whether the voxels of a frame have a file, which `perception annotate-occupancy` makes."""
        return bool(self.taxonomy.point_classes) and occ3d_file(self.dataroot, self.scene(sample), sample).exists()

    def occupancy(self, sample: str) -> Occupancy | None:
        """Annotated voxels of a frame, in the ego frame; None if they have no file. InputError: it is damaged."""
        path = occ3d_file(self.dataroot, self.scene(sample), sample)
        return read_occ3d(path, self.taxonomy) if self.taxonomy.point_classes else None

    def _velocities(self, drive: Path, index: int, tracks: list[str]) -> np.ndarray:
        """(N, 2) m/s in the drive's world; NaN for a track that is in no neighbouring frame."""
        times, frames = self._poses[drive.name].times, dict[float, dict[str, np.ndarray]]()
        for i in (index - 1, index, index + 1):
            if table := _cuboids(drive, i):
                places = np.stack([table["position.x"], table["position.y"]], axis=1)
                frames[times[i]] = dict(zip(table["uuid"], places, strict=True))
        return track_velocities(frames, tracks)

    def _pose(self, sample: str) -> tuple[int, np.ndarray, np.ndarray]:
        if sample not in self._place:
            raise InputError(f"{self.dataroot}: no frame {sample}")
        drive, index = self._place[sample]
        time = self._poses[drive.name].times[index]
        return round(1e6 * time), self._ego(drive, time), _EGO_FROM_LIDAR

    def _position(self, sample: str, global_from_ego: np.ndarray) -> tuple[float, float] | None:
        drive, index = self._place[sample]
        fix = fixes(drive / "meta" / "gps.json").get(index)
        return None if fix is None else (float(fix["lat"]), float(fix["long"]))

    def _ego(self, drive: Path, time: float) -> np.ndarray:
        """(4, 4) global_from_ego at a time (s)."""
        return np.asarray(self._poses[drive.name].at(time) @ _POSE_FROM_EGO)

    def lidar_paths(self, sample: str, sweeps: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
        """As in the base: over the whole drive."""
        times = self._poses[self._place[sample][0].name].times
        egos = [self._ego(self._place[sample][0], time) for time in times]
        places = [np.stack([ego[:3, :3] @ _MOUNTS[i] + ego[:3, 3] for ego in egos]) for i in self._lidars]
        return [(np.round(1e6 * times), each) for each in places]

    def _cloud(self, sample: str, sweeps: int, reference_from_global: np.ndarray, classified: bool) -> Cloud:
        """As in the base; compensated for the vehicle's motion by PandaSet. Points that are later have a dt of 0.

        Points have no classes if one of the sweeps has no file of them.
        """
        drive, index = self._place[sample]
        indices, labels = self._sweeps(sample, sweeps), self.taxonomy.point_labels_of_categories()
        found = [sweep(drive, i, self._lidars) for i in indices]
        points = np.concatenate([each.columns for each in found])
        points[:, :3] = points[:, :3] @ reference_from_global[:3, :3].T + reference_from_global[:3, 3]
        points[:, 4] = np.maximum(self._poses[drive.name].times[index] - points[:, 4], 0)
        pairs = zip(indices, found, strict=True)
        classes = [classes_of_sweep(drive, i, each.kept, labels) for i, each in pairs] if classified else []
        known = [each for each in classes if each is not None]
        return Cloud(
            points.astype(np.float32),
            np.repeat(np.arange(len(found), dtype=np.uint8), [len(each.lidars) for each in found]),
            np.concatenate([each.lidars for each in found]),
            np.concatenate(known) if len(known) == len(found) else None,
        )

    def _sweeps(self, sample: str, sweeps: int) -> list[int]:
        """Index of a frame and of those of earlier ones that are there."""
        drive, index = self._place[sample]
        earlier = (f"{drive.name}-{i:02d}" for i in range(index - 1, max(index - sweeps, 0) - 1, -1))
        return [index, *(self._place[token][1] for token in earlier if token in self._place)]

    def _files(self, sample: str, sweeps: int, lidar: bool, cameras: bool) -> Iterator[Path]:
        """As in the base."""
        drive, index = self._place[sample]
        classes = drive / "annotations" / "semseg"
        yield from (drive / "lidar" / "poses.json", drive / "lidar" / "timestamps.json", drive / "meta" / "gps.json")
        yield from (file_of(drive / "annotations" / "cuboids", i) for i in (index - 1, index, index + 1))
        yield file_of(drive / "lidar", index)  # also for the number of points in boxes
        if lidar:
            yield classes / "classes.json"
            for i in range(max(index - sweeps, 0), index + 1):
                yield from (file_of(drive / "lidar", i), file_of(classes, i))
        for name in self._distortions if cameras else ():
            folder = drive / "camera" / f"{name}_camera"
            yield from (folder / file for file in ("intrinsics.json", "poses.json", "timestamps.json"))
            yield folder / f"{index:02d}.jpg"

    def _cameras(self, sample: str, least_width: int) -> dict[str, Camera]:
        cameras, (drive, index) = {}, self._place[sample]
        for name, distortion in self._distortions.items():
            folder = drive / "camera" / f"{name}_camera"
            try:
                image, reduction, _ = read_image(folder / f"{index:02d}.jpg", least_width)
            except FileNotFoundError:
                continue
            intrinsics, poses = reduced_intrinsics(intrinsics_of(folder), reduction), poses_of(folder)
            if index >= len(poses.times):
                raise InputError(f"{folder}: has no pose of frame {index}; copy poses.json and timestamps.json again")
            global_from_ego = self._ego(drive, poses.times[index])
            cameras[name] = Camera(
                image=cv2.undistort(image, intrinsics, distortion),
                intrinsics=intrinsics,
                ego_from_camera=np.linalg.inv(global_from_ego) @ poses.at(poses.times[index]),
                global_from_ego=global_from_ego,
                timestamp=round(1e6 * poses.times[index]),
            )
        return cameras


def _not_doubled(table: Mapping[str, np.ndarray], first: int) -> np.ndarray:
    """(N,) bool: all boxes but those of the other LiDAR with a sibling among the rest; not all links are mutual."""
    kept = table["cuboids.sensor_id"] != 1 - first
    linked = {*table["uuid"][kept], *table["cuboids.sibling_id"][kept]} - {"-"}
    pairs = zip(table["uuid"], table["cuboids.sibling_id"], strict=True)
    return kept | np.array([linked.isdisjoint(pair) for pair in pairs], bool)


def _placed(table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Centers, sizes and yaws of cuboids, as of `Boxes.from_yaws`."""
    numbers = np.stack([table[name] for name in _NUMBERS], axis=1)
    # PandaSet's boxes have their length along y.
    return {"centers": numbers[:, :3], "sizes": numbers[:, 3:6], "yaws": numbers[:, 6] + np.pi / 2}


@cache  # few numbers, for which a sweep is decoded
def _points_inside(drive: Path, index: int, lidars: tuple[int, ...]) -> np.ndarray:
    """(N,) number of points of these LiDARs inside each of a frame's cuboids."""
    table = _cuboids(drive, index)
    assert table is not None
    return points_in_boxes(sweep(drive, index, lidars).columns[:, :3], **_placed(table))


@lru_cache(maxsize=8)
def _cuboids(drive: Path, index: int) -> dict[str, np.ndarray] | None:
    path = file_of(drive / "annotations" / "cuboids", index)
    return read_table(path, _BOX_COLUMNS) if path.exists() else None
