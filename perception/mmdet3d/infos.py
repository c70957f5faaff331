"""Keyframes from mmdet3d's nuscenes_infos_*.pkl, with the interface of NuScenesTables.

Infos have no conditions, no location (so no map), no attributes, no instance tokens and no scenes. Boxes are upright in
the LiDAR's frame. Poses in the newer layout are float32: 0.03 mm at a kilometre. A drive ends where the log changes,
after a gap of 1.5 s, and before a keyframe without earlier sweeps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from perception.datasets.files import read_image, stamp
from perception.datasets.listed import ListedKeyframes
from perception.datasets.recorded import RecordedKeyframes, SweepFile
from perception.errors import InputError
from perception.frame import Boxes, Camera, reduced_intrinsics
from perception.mmdet3d.install import NUSCENES
from perception.mmdet3d.layouts import CameraFile, Keyframe, read_keyframes
from perception.rig import load_rig
from perception.rotations import quaternions
from perception.unpickle import read_plain

_MAX_GAP = 1_500_000  # us between keyframes of a drive, which are 0.5 to 0.6 s apart


class Infos(RecordedKeyframes, ListedKeyframes):
    """The keyframes of an infos file in its dataroot, beside samples/ and sweeps/.

    Raises:
        InputError: the file is unsafe, damaged, not infos of nuScenes, or none of the files that it names exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        RecordedKeyframes.__init__(self, self.path.parent, load_rig("nuscenes"), NUSCENES)
        self.version = self.path.name
        self._opened = [stamp(self.path.resolve())]
        content = read_plain(self.path)
        keyframes = read_keyframes(content, self.path, self.path.stat().st_size)
        self._keyframes = {keyframe.token: keyframe for keyframe in keyframes}
        self._annotated = any(keyframe.boxes is not None and len(keyframe.boxes) for keyframe in keyframes)
        drives = {f"drive-{i + 1:04d}": tokens for i, tokens in enumerate(_drives(keyframes))}
        ListedKeyframes.__init__(self, str(self.path), drives)
        named = [each.file for keyframe in keyframes for each in (keyframe.lidar, *keyframe.cameras.values())]
        if not any((self.dataroot / file).exists() for file in named):
            raise InputError(
                f"{self.path}: none of the {len(named)} files that it names is there, such as "
                f"{self.dataroot / named[0]}; put it into the dataroot, beside samples/"
            )

    def boxes(self, sample: str) -> Boxes | None:
        """Annotations of a keyframe in the global frame; None for a file without annotations, such as the test set."""
        keyframe = self._keyframes[sample]
        if not self._annotated:
            return None
        return (keyframe.boxes or Boxes.none()).transformed(keyframe.lidar.global_from_sensor)

    def bicycle_racks(self) -> dict[str, list[list[float]]]:
        """Annotated bicycle racks, as in `Keyframes`; infos since mmdet3d 1.1 have none."""
        return self._bicycle_racks

    @cached_property
    def _bicycle_racks(self) -> dict[str, list[list[float]]]:
        by_token = {}
        for token, keyframe in self._keyframes.items():
            racks = keyframe.bicycle_racks.transformed(keyframe.lidar.global_from_sensor)
            if len(racks):
                by_token[token] = np.column_stack([racks.centers, racks.sizes, quaternions(racks.rotations)]).tolist()
        return by_token

    def _location(self, scene: str) -> str:
        """Unknown in infos."""
        return ""

    def _keyframe(self, sample: str) -> SweepFile:
        if sample not in self._keyframes:
            raise InputError(f"{self.path}: no keyframe {sample}")
        lidar, global_from_ego = self._keyframes[sample].lidar, self._keyframes[sample].global_from_ego
        return lidar.file, lidar.timestamp, global_from_ego, np.linalg.inv(global_from_ego) @ lidar.global_from_sensor

    def _sweeps(self, sample: str, count: int) -> dict[int, Iterable[SweepFile]]:
        """As the base class; infos have one LiDAR, and the file usually lists ten sweeps."""
        return {0: self._chain(sample, count)}

    def _chain(self, sample: str, count: int) -> Iterator[SweepFile]:
        keyframe = self._keyframes[sample]
        for each in (keyframe.lidar, *keyframe.sweeps[:count]):
            yield each.file, each.timestamp, each.global_from_sensor, np.eye(4)

    def _pictures(self, sample: str) -> list[str]:
        return [picture.file for picture in self._keyframes[sample].cameras.values()]

    def _cameras(self, sample: str, least_width: int) -> dict[str, Camera]:
        pictures = self._keyframes[sample].cameras
        found = {name: self._camera(picture, least_width) for name, picture in pictures.items()}
        return {name: camera for name, camera in found.items() if camera is not None}

    def _camera(self, picture: CameraFile, least_width: int) -> Camera | None:
        path = self.dataroot / picture.file
        try:
            image, reduction, file = read_image(path, least_width)
        except FileNotFoundError:
            return None
        intrinsics = reduced_intrinsics(picture.intrinsics, reduction)
        middle = intrinsics[:2, 2] / image.shape[1::-1]
        if (abs(middle - 0.5) > 0.25).any():  # infos do not have the recorded size
            raise InputError(
                f"{path}: the picture is {image.shape[1]}x{image.shape[0]}, but {self.path.name} has its optical axis "
                f"at {intrinsics[0, 2]:.0f}, {intrinsics[1, 2]:.0f}; use the picture as recorded"
            )
        return Camera(
            image=image,
            intrinsics=intrinsics,
            ego_from_camera=picture.ego_from_camera,
            global_from_ego=picture.global_from_sensor @ np.linalg.inv(picture.ego_from_camera),
            timestamp=picture.timestamp,
            file=file,
        )


def _drives(keyframes: Sequence[Keyframe]) -> list[list[str]]:
    """Tokens of the keyframes of each drive, in order of time."""
    ordered = sorted(keyframes, key=lambda each: (_log(each), each.lidar.timestamp))
    with_sweeps = any(keyframe.sweeps for keyframe in keyframes)
    drives: list[list[str]] = []
    last: Keyframe | None = None
    for keyframe in ordered:
        if (
            last is None
            or _log(keyframe) != _log(last)
            or keyframe.lidar.timestamp - last.lidar.timestamp > _MAX_GAP
            or (with_sweeps and not keyframe.sweeps)
        ):
            drives.append([])
        drives[-1].append(keyframe.token)
        last = keyframe
    return drives


def _log(keyframe: Keyframe) -> str:
    """The log in a nuScenes file name, such as n015-2018-07-18-11-07-57+0800__SENSOR__...; '' for none."""
    log, found, _ = Path(keyframe.lidar.file).name.partition("__")
    return log if found else ""
