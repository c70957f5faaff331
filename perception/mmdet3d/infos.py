"""Keyframes from mmdet3d's nuscenes_infos_*.pkl, as a data set.

Infos have no conditions, no location (so no map), no attributes, no instance tokens and no scenes. Boxes are upright in
the LiDAR's frame. Poses in the newer layout are float32: 0.03 mm at a kilometre. A drive ends where the log changes,
after a gap of 1.5 s, and before a keyframe without earlier sweeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from perception.datasets.drives import Drives
from perception.datasets.files import stamp
from perception.datasets.keyframes import (
    NO_SENSORS,
    Annotation,
    Reads,
    Recording,
    assemble,
    keyframe_moments,
)
from perception.errors import InputError
from perception.frame import Boxes, Conditions, Frame
from perception.geometry import quaternions
from perception.io.stores import readable_files
from perception.io.unpickle import read_plain
from perception.mmdet3d.install import NUSCENES
from perception.mmdet3d.layouts import Keyframe, read_keyframes
from perception.rig import load_rig

_MAX_GAP = 1_500_000  # us between keyframes of a drive, which are 0.5 to 0.6 s apart


class Infos:
    """The keyframes of an infos file in its dataroot, beside samples/ and sweeps/."""

    has_attributes = False

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.dataroot, self.version = self.path.parent, self.path.name
        self.rig, self.taxonomy = load_rig("nuscenes"), NUSCENES
        self._opened = [stamp(self.path.resolve())]
        content = read_plain(self.path)
        keyframes = read_keyframes(content, self.path)
        self._keyframes = {keyframe.token: keyframe for keyframe in keyframes}
        self._annotated = any(keyframe.boxes is not None and len(keyframe.boxes) for keyframe in keyframes)
        drives = Drives(str(self.path), {f"drive-{i + 1:04d}": tokens for i, tokens in enumerate(_drives(keyframes))})
        self.scenes, self.samples, self.scene = drives.scenes, drives.samples, drives.scene
        files = [keyframe.sweeps[0].path for keyframe in keyframes]
        files += [picture.path for keyframe in keyframes for picture in keyframe.pictures.values()]
        # A store is asked where the mirror has none of them yet.
        names = [str(file.relative_to(self.dataroot)) for file in files]
        if not any(file.exists() for file in files) and not readable_files(self.dataroot, names):
            raise InputError(
                f"{self.path}: none of the {len(files)} files that it names is there, such as {files[0]}; put it into "
                "the dataroot, beside samples/"
            )

    def moments(self, token: str) -> Mapping[str, int]:
        return keyframe_moments(self, token)

    def conditions(self, token: str) -> Conditions:
        return Conditions()

    def _truth(self, keyframe: Keyframe) -> dict[str, Annotation]:
        """The annotations of a keyframe; no boxes in a file without annotations, such as the test set's, and no bicycle
        racks in one since mmdet3d 1.1."""

        def boxes() -> Boxes | None:
            placed = (keyframe.boxes or Boxes.none()).transformed(keyframe.global_from_lidar)
            return placed if self._annotated else None

        def bicycle_racks() -> list[list[float]]:
            racks = (keyframe.bicycle_racks or Boxes.none()).transformed(keyframe.global_from_lidar)
            numbers = [racks.centers, racks.sizes, quaternions(racks.rotations)]
            return np.concatenate(numbers, axis=1).tolist()

        return {"boxes": Annotation(boxes), "bicycle_racks": Annotation(bicycle_racks)}

    def recording(self, token: str, reads: Reads = NO_SENSORS) -> Recording:
        """The sensor files of a keyframe with their poses, and its annotations. The file usually lists ten sweeps."""
        if token not in self._keyframes:
            raise InputError(f"{self.path}: no keyframe {token}")
        keyframe = self._keyframes[token]
        return Recording(
            token=token,
            scene=self.scene(token),
            timestamp=keyframe.sweeps[0].timestamp,
            global_from_ego=keyframe.global_from_ego,
            ego_from_lidar=np.linalg.inv(keyframe.global_from_ego) @ keyframe.global_from_lidar,
            lidars={0: keyframe.sweeps[: 1 + reads.sweeps]} if reads.lidar else {},
            pictures=keyframe.pictures if reads.cameras else {},
            truth=self._truth(keyframe),
            own=self.rig.own,
            opened=self._opened,
        )

    def frame(self, token: str, reads: Reads = Reads()) -> Frame:  # noqa: B008 - it is immutable
        return assemble(self.recording(token, reads), reads)


def _drives(keyframes: Sequence[Keyframe]) -> list[list[str]]:
    """Tokens of the keyframes of each drive, in order of time."""
    ordered = sorted(keyframes, key=lambda keyframe: (_log(keyframe), keyframe.sweeps[0].timestamp))
    with_sweeps = any(len(keyframe.sweeps) > 1 for keyframe in keyframes)
    drives: list[list[str]] = []
    last: Keyframe | None = None
    for keyframe in ordered:
        if (
            last is None
            or _log(keyframe) != _log(last)
            or keyframe.sweeps[0].timestamp - last.sweeps[0].timestamp > _MAX_GAP
            or (with_sweeps and len(keyframe.sweeps) == 1)
        ):
            drives.append([])
        drives[-1].append(keyframe.token)
        last = keyframe
    return drives


def _log(keyframe: Keyframe) -> str:
    """The log in a nuScenes file name, such as n015-2018-07-18-11-07-57+0800__SENSOR__...; '' for none."""
    log, found, _ = keyframe.sweeps[0].path.name.partition("__")
    return log if found else ""
