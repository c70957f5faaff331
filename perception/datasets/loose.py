"""Single files as frames: LiDAR sweeps (.bin, .npy, .pcd) and pictures (.jpg, .png), without tables, poses or times.

The files lie in one folder, or in a folder for each sensor, such as velodyne/000000.bin and image_02/000000.png; files
whose names differ only in their ending are one frame. Each frame is a drive of its own, since nothing says when it was
recorded, or where. A file rig.yaml beside the files says how the sensors are mounted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from perception.datasets.arrays import intrinsics_for, standard_points
from perception.datasets.drives import Drives
from perception.datasets.files import picture_size, read_floats, read_pcd
from perception.datasets.keyframes import (
    NO_SENSORS,
    Picture,
    Reads,
    Recording,
    SweepFile,
    assemble,
    keyframe_moments,
)
from perception.errors import InputError, report_damage
from perception.frame import Conditions, Frame
from perception.io.stores import read_file
from perception.rig import Rig, RigCamera, load_rig
from perception.taxonomy import Taxonomy, load_taxonomy

_SWEEPS, _PICTURES = (".bin", ".npy", ".pcd"), (".jpg", ".jpeg", ".png")
RIG = "rig.yaml"


class _File(NamedTuple):
    sensor: str  # name of its folder; "" beside the others
    frame: str
    path: Path

    @property
    def is_sweep(self) -> bool:
        return self.path.suffix in _SWEEPS


def is_loose(path: Path) -> bool:
    """Whether the path is a sweep or a picture, or a folder of them."""
    return next(_files(path), None) is not None


def _files(path: Path) -> Iterator[_File]:
    for found in [path] if path.is_file() else chain(path.glob("*"), path.glob("*/*")):
        if found.suffix in (*_SWEEPS, *_PICTURES) and found.is_file():
            below = path.is_dir() and found.parent != path
            yield _File(found.parent.name if below else "", found.name.split(".")[0], found)


def read_sweep(path: Path, _timestamp: int = 0) -> tuple[np.ndarray, None]:
    """Points (N, 5), as `read_cloud` gives them, of a .bin, .npy or .pcd file; intensities from 0 to 1 become 0 to 255.

    A .bin has 20 bytes for a point as nuScenes' (x y z intensity ring, whole numbers), else 16 as KITTI's
    (x y z intensity). An array has these four columns, too, and perhaps further ones.

    Raises:
        FileNotFoundError: there is no such file; callers treat it as a missing sensor.
    """
    try:
        return standard_points(_READERS[path.suffix](path)), None
    except (ValueError, TypeError, EOFError) as error:
        raise report_damage(f"{path}: cannot be used as points ({' '.join(str(error).split())})") from None


def _read_bin(path: Path) -> np.ndarray:
    size = path.stat().st_size
    points = read_floats(path, 4 if size % 20 else 5)
    if points.shape[1] == 5 and size % 16 == 0 and not _are_rings(points[:, 4]):
        return read_floats(path, 4)
    return points


def _are_rings(values: np.ndarray) -> bool:
    return bool(((values >= 0) & (values < 256) & (values == np.round(values))).all())


_READERS: dict[str, Callable[[Path], np.ndarray]] = {
    ".bin": _read_bin,
    ".npy": partial(np.load, allow_pickle=False),
    ".pcd": lambda path: read_pcd(path)[0],
}


class LooseFiles:
    """The frames of a folder, or the frame of a file.

    Args:
        rig: of the network, whose cameras are read; a folder without a rig.yaml has sensors mounted as on it. None: on
            nuScenes' car.
    """

    has_attributes = False

    def __init__(self, path: Path, _version: str | None, rig: Rig | None, taxonomy: Taxonomy | None) -> None:
        self.dataroot, self.version = path, "files"
        folder = path if path.is_dir() else path.parent
        mounted = load_rig(folder / RIG) if (folder / RIG).exists() else rig or load_rig("nuscenes")
        mounted.require_calibration()
        self.rig, self.taxonomy = mounted, taxonomy or load_taxonomy("nuscenes")
        read = {each.name for each in (rig or mounted).cameras}
        self._cameras = {each.name: each for each in mounted.cameras if each.name in read}
        self._sweeps: dict[str, dict[int, Path]] = {}  # frame -> index of a LiDAR -> its file
        self._pictures: dict[str, dict[str, Path]] = {}
        files = sorted(_files(path))
        folders = {each.sensor for each in files if each.is_sweep}
        for each in files:
            if each.is_sweep:
                self._sweeps.setdefault(each.frame, {})[self._lidar(each, len(folders))] = each.path
            elif (camera := self._camera(each)) is not None:
                token = folder.name if each.frame == camera else each.frame
                self._pictures.setdefault(token, {})[camera] = each.path
        tokens = sorted({*self._sweeps, *self._pictures})
        if not tokens:
            raise InputError(
                f"{path}: no picture is in a folder with a name of the rig {self.rig.name}'s cameras, "
                f"{', '.join(self._cameras) or 'none'}; name the folders so, or add {folder / RIG}"
            )
        drives = Drives(str(path), {token: [token] for token in tokens})
        self.scenes, self.samples, self.scene = drives.scenes, drives.samples, drives.scene

    def _lidar(self, file: _File, folders: int) -> int:
        lidars = self.rig.sensors.lidars
        if file.sensor in lidars:
            return lidars.index(file.sensor)
        if folders == 1:
            return 0
        raise InputError(f"{file.path.parent}: is no LiDAR of the rig {self.rig.name}; it has {', '.join(lidars)}")

    def _camera(self, file: _File) -> str | None:
        """The camera of a picture, by its folder or its own name, or the only one; None: none of the rig's."""
        named = [name for name in (file.sensor, file.frame) if name in self._cameras]
        only = [*self._cameras] if len(self._cameras) == 1 and not file.sensor else []
        return next(iter((*named, *only)), None)

    def moments(self, token: str) -> Mapping[str, int]:
        return keyframe_moments(self, token)

    def conditions(self, token: str) -> Conditions:
        return Conditions()

    def recording(self, token: str, reads: Reads = NO_SENSORS) -> Recording:
        mounts = [each.ego_from_sensor for each in self.rig.lidars]
        here = np.eye(4)
        return Recording(
            token=token,
            scene=token,
            timestamp=0,
            global_from_ego=here,
            ego_from_lidar=mounts[0],
            lidars={
                i: [SweepFile(path, 0, here, mounts[i], read=read_sweep)]
                for i, path in self._sweeps.get(token, {}).items()
            },
            pictures={
                name: _picture(path, self._cameras[name]) for name, path in self._pictures.get(token, {}).items()
            },
            own=self.rig.own,
            placed=False,
        )

    def frame(self, token: str, reads: Reads = Reads()) -> Frame:  # noqa: B008 - it is immutable
        return assemble(self.recording(token, reads), reads)


def _picture(path: Path, camera: RigCamera) -> Picture:
    """A picture of any size with the camera's aspect, to which the intrinsics are scaled."""
    try:
        size = picture_size(read_file(path))
    except ValueError:
        size = camera.size  # reading it says what is wrong
    intrinsics = intrinsics_for(camera, size)
    if intrinsics is None:
        intrinsics, size = camera.intrinsics, camera.size  # reading it says so
    distortion = None if camera.lens is None or not camera.lens.distortion else np.array(camera.lens.distortion)
    return Picture(path, 0, intrinsics, camera.ego_from_sensor, np.eye(4), size, distortion=distortion)
