"""Keyframes from mmdet3d's nuscenes_infos_*.pkl, as a data set.

Infos have no conditions, no location (so no map), no attributes, no instance tokens and no scenes. Boxes are upright in
the LiDAR's frame. Poses in the newer layout are float32: 0.03 mm at a kilometre. A drive ends where the log changes,
after a gap of 1.5 s, and before a keyframe without earlier sweeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from perception.datasets.drives import Drives
from perception.datasets.files import stamp
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
from perception.errors import InputError
from perception.frame import Boxes, Conditions, Frame
from perception.geometry import quaternions
from perception.io.stores import existing
from perception.io.unpickle import read_plain
from perception.mmdet3d.install import NUSCENES
from perception.mmdet3d.layouts import CameraFile, Keyframe, read_keyframes
from perception.rig import load_rig

_MAX_GAP = 1_500_000  # us between keyframes of a drive, which are 0.5 to 0.6 s apart


class Infos:
    """The keyframes of an infos file in its dataroot, beside samples/ and sweeps/.

    Raises:
        InputError: the file is unsafe, damaged, not infos of nuScenes, or none of the files that it names exists.
    """

    has_attributes = False

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.dataroot, self.version = self.path.parent, self.path.name
        self.rig, self.taxonomy = load_rig("nuscenes"), NUSCENES
        self._opened = [stamp(self.path.resolve())]
        content = read_plain(self.path)
        keyframes = read_keyframes(content, self.path, self.path.stat().st_size)
        self._keyframes = {keyframe.token: keyframe for keyframe in keyframes}
        self._annotated = any(keyframe.boxes is not None and len(keyframe.boxes) for keyframe in keyframes)
        drives = Drives(str(self.path), {f"drive-{i + 1:04d}": tokens for i, tokens in enumerate(_drives(keyframes))})
        self.scenes, self.samples, self.scene = drives.scenes, drives.samples, drives.scene
        named = [each.file for keyframe in keyframes for each in (keyframe.lidar, *keyframe.cameras.values())]
        # A store is asked where the mirror has none of them yet.
        if not any((self.dataroot / file).exists() for file in named) and not existing(self.dataroot, named):
            raise InputError(
                f"{self.path}: none of the {len(named)} files that it names is there, such as "
                f"{self.dataroot / named[0]}; put it into the dataroot, beside samples/"
            )

    def moments(self, token: str) -> Mapping[str, int]:
        """The keyframes of the drive; infos list no pictures between them."""
        return keyframe_moments(self, token)

    def conditions(self, token: str) -> Conditions:
        """Unknown."""
        return Conditions()

    def _truth(self, token: str) -> dict[str, Annotation]:
        """The annotations of a keyframe; no boxes in a file without annotations, such as the test set's, and no bicycle
        racks in one since mmdet3d 1.1."""
        racks = Annotation(partial(self._bicycle_racks, token))
        return {"boxes": Annotation(partial(self._boxes, token)), "bicycle_racks": racks}

    def _boxes(self, token: str) -> Boxes | None:
        keyframe = self._keyframes[token]
        if not self._annotated:
            return None
        return (keyframe.boxes or Boxes.none()).transformed(keyframe.lidar.global_from_sensor)

    def _bicycle_racks(self, token: str) -> list[list[float]]:
        keyframe = self._keyframes[token]
        racks = keyframe.bicycle_racks.transformed(keyframe.lidar.global_from_sensor)
        return (
            np.column_stack([racks.centers, racks.sizes, quaternions(racks.rotations)]).tolist() if len(racks) else []
        )

    def recording(self, token: str, reads: Reads = NO_SENSORS) -> Recording:
        """The sensor files of a keyframe with their poses, and its annotations. The file usually lists ten sweeps.

        Raises:
            InputError: an unknown keyframe.
        """
        if token not in self._keyframes:
            raise InputError(f"{self.path}: no keyframe {token}")
        keyframe = self._keyframes[token]
        lidar, global_from_ego = keyframe.lidar, keyframe.global_from_ego
        sweeps = [
            SweepFile(self.dataroot / each.file, each.timestamp, each.global_from_sensor, np.eye(4))
            for each in (lidar, *keyframe.sweeps[: reads.sweeps])
        ]
        pictures = keyframe.cameras.items() if reads.cameras else ()
        return Recording(
            token=token,
            scene=self.scene(token),
            timestamp=lidar.timestamp,
            global_from_ego=global_from_ego,
            ego_from_lidar=np.linalg.inv(global_from_ego) @ lidar.global_from_sensor,
            lidars={0: sweeps} if reads.lidar else {},
            pictures={name: self._picture(each) for name, each in pictures},
            truth=self._truth(token),
            own=self.rig.own,
            opened=self._opened,
        )

    def frame(self, token: str, reads: Reads = Reads()) -> Frame:  # noqa: B008 - it is immutable
        """The keyframe, as in `Keyframes`."""
        return assemble(self.recording(token, reads), reads)

    def _picture(self, file: CameraFile) -> Picture:
        """Without its recorded size, which infos do not have."""
        return Picture(
            path=self.dataroot / file.file,
            timestamp=file.timestamp,
            intrinsics=file.intrinsics,
            ego_from_camera=file.ego_from_camera,
            global_from_ego=file.global_from_sensor @ np.linalg.inv(file.ego_from_camera),
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
